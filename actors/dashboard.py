"""Dashboard: what stands where on the terminal, as lines of styled text; `display` puts it there."""

from itertools import zip_longest

from actors import figures
from actors.progress import LATELY, Phase, Progress
from actors.quantities import count, duration, left, pace, percent

Span = tuple[str, str]
"""Text and its style, in rich's words."""
Line = list[Span]

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
SPINNER_PER_S = 5
GAP = 2
MIN_BAR = 8
MAX_BAR = 60
MAX_WIDTH = 98
"""Of all but the curves: on a wider line the eye loses its way."""
MAX_GAP = 12
"""Between the two halves of the table of steps."""
CURVE_NAME = 13
CURVE_ENDS = 20
MARKS = {"✓": "green", "✗": "bold red", "‖": "yellow"}


def frame(progress: Progress, *, subject: str, width: int, height: int | None = None) -> list[Line]:
    """All lines, none longer than `width`, from 78 on. With `height`, the oldest phases go where there is no room."""
    current = progress.current
    narrow = min(width, MAX_WIDTH)
    below = [*_figures(progress, narrow), *_curves(progress, width)]
    bar = [] if current is None else _bar(progress, current, narrow)
    num_left_out = 0 if height is None else max(1 + len(progress.phases) + len(bar) + len(below) - height, 0)
    phases = _phases(progress, narrow)[num_left_out:]
    return [_header(progress, subject, narrow), *phases, *bar, *below]


def _header(progress: Progress, subject: str, width: int) -> Line:
    elapsed = f"elapsed {duration(progress.now_s - progress.started_s)}"
    room = max(width - len(elapsed) - GAP, 2)
    shown = subject if len(subject) <= room else f"…{subject[1 - room :]}"
    return [(f"{shown:<{room + GAP}}", "bold"), (elapsed, "")]


def _phases(progress: Progress, width: int) -> list[Line]:
    """Mark, name, how many, how long, what came of it."""
    rows = [(p, _counted(p) if p.is_over and p.unit else "", _elapsed(progress, p)) for p in progress.phases]
    # The least widths keep the columns where they are while the numbers grow.
    wide_done = max([7, *(len(done) for _, done, _ in rows)])
    wide_elapsed = max([11, *(len(elapsed) for *_, elapsed in rows)])
    wide_outcome = max([15, *(len(p.outcome) for p in progress.phases)])
    room = max(width - 2 - wide_done - wide_elapsed - wide_outcome - 3 * GAP, 8)
    lines: list[Line] = []
    for phase, done, elapsed in rows:
        mark = _mark(progress, phase)
        name = phase.name if len(phase.name) <= room else f"{phase.name[: room - 1]}…"
        style = "bold" if phase is progress.current else ""
        lines.append(
            [
                (mark, MARKS.get(mark, "cyan")),
                (f" {name:<{room}}", style),
                (f"{'':{GAP}}{done:>{wide_done}}{'':{GAP}}{elapsed:>{wide_elapsed}}{'':{GAP}}", "dim"),
                (phase.outcome, style),
            ]
        )
    return lines


def _bar(progress: Progress, phase: Phase, width: int) -> list[Line]:
    """How many are done, how fast, how long it still takes; nothing where nothing is counted."""
    if not phase.unit and not phase.total:
        return []
    each_s, left_s = phase.pace.seconds_each, phase.left_s(progress.now_s)
    unit = "question" if phase.unit == "question" else "step"
    rate = pace(each_s, unit=unit) if each_s else ""
    if progress.num_asked:
        facts = f"evaluation: {count(progress.num_asked)} asked, {percent(progress.asked_success)}"
    else:
        facts = f"{rate:>14}{'':{GAP}}{left(left_s) if left_s is not None else '':>16}"
    text = f"{'':{GAP}}{_counted(phase)}{'':{GAP}}{facts}"
    room = min(width - 2 - len(text), MAX_BAR)
    if not phase.total or room < MIN_BAR:
        return [[(f"{text.lstrip():>{width}}", "")]]
    num_halves = 2 * room * min(phase.done, phase.total) // phase.total
    full = "━" * (num_halves // 2) + "╸" * (num_halves % 2)
    return [
        [("  ", ""), (full, "cyan"), ("━" * (room - len(full)), "bright_black"), (f"{text:>{width - 2 - room}}", "")]
    ]


def _figures(progress: Progress, width: int) -> list[Line]:
    """The table of steps, in two halves, while there are steps to come."""
    if progress.training is None or not progress.rows:
        return []
    head = figures.Figure("", f"step {progress.rows[-1].step}", f"mean of {min(LATELY, len(progress.rows))}")
    halves = [[head, *part] for part in figures.figures(progress)]
    texts = [[f"{name:<16}{latest:>11}{lately:>11}" for name, latest, lately in part] for part in halves]
    between = min(width - 2 * 38, MAX_GAP)
    lines = [f"{a:<38}{'':{between}}{b}" for a, b in zip_longest(*texts, fillvalue="")]
    return [[], *([(line, "dim" if number == 0 else "")] for number, line in enumerate(lines))]


def _curves(progress: Progress, width: int) -> list[Line]:
    lines: list[Line] = [
        [(f"{name:<{CURVE_NAME}}", ""), (blocks, "green"), (f"{'':{GAP}}{ends}", "")]
        for name, blocks, ends in figures.curves(progress, width=max(width - CURVE_NAME - CURVE_ENDS - GAP, 1))
    ]
    if told := figures.evaluations(progress, width=width - CURVE_NAME):
        lines.append([(f"{'evaluations':<{CURVE_NAME}}{told}", "")])
    return [[], *lines] if lines else []


def _mark(progress: Progress, phase: Phase) -> str:
    if not phase.is_over:
        return SPINNER[int(progress.now_s * SPINNER_PER_S) % len(SPINNER)]
    if phase.is_stopped:
        return "✗"
    return "‖" if phase is progress.training else "✓"


def _elapsed(progress: Progress, phase: Phase) -> str:
    return duration((progress.now_s if phase.ended_s is None else phase.ended_s) - phase.started_s)


def _counted(phase: Phase) -> str:
    return count(phase.done) + (f"/{count(phase.total)}" if phase.total else "")
