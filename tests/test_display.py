"""What a person sees: the plain lines and the dashboard of one scripted run, and estimates that can be trusted."""

import io
import logging
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors import dashboard
from actors.display import Display
from actors.figures import evaluations
from actors.pace import MEMORY_UNITS, Pace
from actors.progress import Progress
from actors.quantities import BLOCKS, NOTHING, duration, left, pace, percent, quantity, sparkline
from actors.run_dir import Summary
from actors.watcher import Watcher
from engine.errors import ConfigError
from engine.events import ControlEvaluated, Evaluated, PhaseStarted, SupervisedStep
from engine.metrics import StepMetrics
from engine.reports import StepReport
from engine.types import Prompt, Reward, RolloutStatus, Trajectory, TrajectoryGroup, TrajectoryTree


class Now:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s

    def after(self, seconds: float) -> None:
        self.s += seconds


def report(loss: float) -> StepReport:
    zeros = dict.fromkeys(("grad_norm", "learning_rate", "entropy", "kl_rollout", "ratio_max", "clip_fraction"), 0.0)
    counts = dict.fromkeys(("step", "version", "num_trained_tokens", "num_computed_tokens"), 0)
    return StepReport(**zeros, **counts, loss=loss, duration_s=0.1)


def row(step: int, **changes: Any) -> StepMetrics:
    made = {f: 0 if t is int else 0.0 for f, t in StepMetrics.__annotations__.items()}
    made |= {"step": step, "t": 10.0 * step, "reward": 0.25, "success": 0.5, "num_sampled_tokens": 12_340}
    made |= {"num_tool_calls_requested": 1234, "num_tool_calls_executed": 1200, "num_forks": 96}
    return StepMetrics(**(made | {"step_s": 0.35, "wait_s": 9.65, "kl_rollout": 2.1e-4} | changes))


def group(*is_correct: bool) -> TrajectoryGroup:
    ids = np.zeros(1, np.int32)
    prompt = Prompt(prompt_id="p", epoch=0, row=0, token_ids=ids, question="", ground_truth="")
    trajectories = tuple(
        Trajectory(path=i, leaf=0, status=RolloutStatus.COMPLETED, reward=Reward(score=0.0, is_correct=x))
        for i, x in enumerate(is_correct)
    )
    return TrajectoryGroup(prompt=prompt, tree=TrajectoryTree(nodes=()), trajectories=trajectories)


def evaluated(step: int, success: float) -> Evaluated:
    return Evaluated(step=step, version=step, metrics={"questions": 4.0, "success": success, "tool_calls": 3.25})


def cold_start(watcher: Watcher, now: Now) -> None:
    watcher.event(PhaseStarted(name="cold start, stage 1 of 2", total=6))
    for number in range(6):
        now.after(20.0 if number == 0 else 2.0)
        watcher.event(SupervisedStep(report=report(3.0 / (number + 1))))
    watcher.event(PhaseStarted(name="cold start, stage 2 of 2", total=2000))
    for _ in range(3):
        now.after(0.5)
        watcher.event(SupervisedStep(report=report(0.125)))
    watcher.event(PhaseStarted(name="start"))
    now.after(61.0)


def evaluation(watcher: Watcher, now: Now, *, step: int, success: float) -> None:
    watcher.event(PhaseStarted(name="evaluation", total=4))
    for number in range(4):
        now.after(1.5)
        watcher.group(group(number < 4 * success))


def learning(watcher: Watcher, now: Now, *, first: int, last: int) -> None:
    for step in range(first, last + 1):
        now.after(10.0)
        watcher.step(row(step, t=now.s, success=0.02 * step, num_truncated=3 if step == 20 else 0))


def run(watcher: Watcher, now: Now, *, last: int = 40) -> None:
    """A whole run, in the order in which training tells of it: a phase begins before the evaluation's event."""
    cold_start(watcher, now)
    evaluation(watcher, now, step=0, success=0.25)
    watcher.event(PhaseStarted(name="reinforcement learning", total=40))
    watcher.event(evaluated(0, 0.25))
    learning(watcher, now, first=1, last=20)
    evaluation(watcher, now, step=20, success=0.5)
    watcher.event(PhaseStarted(name="reinforcement learning", total=40))
    watcher.event(evaluated(20, 0.5))
    learning(watcher, now, first=21, last=last)


def ending(watcher: Watcher, now: Now) -> None:
    evaluation(watcher, now, step=40, success=1.0)
    watcher.event(PhaseStarted(name="reinforcement learning", total=40))
    watcher.event(evaluated(40, 1.0))
    watcher.event(PhaseStarted(name="control", total=1))
    now.after(3700.0)
    watcher.event(SupervisedStep(report=report(0.5)))
    watcher.event(ControlEvaluated(num_steps=12_345, metrics={"success": 0.31}))


def plain(script: Callable[[Display, Now], None]) -> list[str]:
    out, now = io.StringIO(), Now()
    with Display(Path("runs/demo"), console=Console(file=out, width=40), clock=now) as display:
        script(display, now)
    assert out.getvalue().isprintable() or set(re.findall(r"[^ -~]", out.getvalue())) == {"\n"}
    return out.getvalue().splitlines()


def frame(script: Callable[[Progress, Now], None], *, width: int, height: int | None = None) -> list[str]:
    now = Now()
    progress = Progress(now)
    script(progress, now)
    return drawn(progress, width=width, height=height)


def drawn(progress: Progress, *, width: int, height: int | None = None) -> list[str]:
    lines = dashboard.frame(progress, subject="runs/demo", width=width, height=height)
    return ["".join(text for text, _ in line).rstrip() for line in lines]


# -- plain lines ----------------------------------------------------------------------------------------------


def test_without_a_terminal_each_line_says_what_it_is_about() -> None:
    def script(display: Display, now: Now) -> None:
        cold_start(display, now)
        evaluation(display, now, step=0, success=0.25)
        display.event(PhaseStarted(name="reinforcement learning", total=40))
        display.event(evaluated(0, 0.25))
        learning(display, now, first=1, last=3)

    rl = "reward 0.250  success {}.0 %  staleness 0  1,234 tokens/s  calls 1,234 requested 1,200 executed  forks 96"
    times = "KL 2.1e-04  learner step 0.35 s wait 9.7 s"
    assert plain(script) == [
        "runs/demo: cold start, stage 1 of 2, 6 in all",
        "cold start, stage 1 of 2 1/6  loss 3.0000",
        "cold start, stage 1 of 2 4/6  loss 0.7500  4 s left",
        "cold start, stage 1 of 2 6/6  loss 0.5000",
        "runs/demo: cold start, stage 2 of 2, 2,000 in all, after 30 s",
        "cold start, stage 2 of 2 3/2000  loss 0.1250",
        "runs/demo: start, after 32 s",
        "runs/demo: evaluation, 4 in all, after 1 min 32 s",
        "evaluation 4/4  success 25.0 %",
        "runs/demo: reinforcement learning, 40 in all, after 1 min 38 s",
        "evaluation after step 0: questions 4  success 25.0 %  tool calls 3.25",
        f"reinforcement learning 1/40  {rl.format(2)}  {times}",
        f"reinforcement learning 2/40  {rl.format(4)}  {times}  6 min 20 s left",
        f"reinforcement learning 3/40  {rl.format(6)}  {times}  6 min 10 s left",
    ]


def test_training_that_goes_on_after_an_evaluation_is_not_announced_again() -> None:
    lines = plain(lambda display, now: (run(display, now), ending(display, now))[0])
    assert sum("reinforcement learning, 40 in all" in line for line in lines) == 1
    assert sum(line.startswith("runs/demo: evaluation") for line in lines) == 3
    assert [line for line in lines if line.startswith("reinforcement learning 2")][2].endswith("3 min 10 s left")
    assert "truncated 3" in next(line for line in lines if " 20/40" in line)
    assert not any("truncated" in line for line in lines if " 21/40" in line)
    assert lines[-2:] == ["control 1/1  loss 0.5000", "control after 12,345 supervised steps: success 31.0 %"]


def test_questions_of_an_evaluation_without_a_phase_are_no_steps() -> None:
    def script(display: Display, now: Now) -> None:
        display.phase("reinforcement learning", 2)
        learning(display, now, first=1, last=1)
        for _ in range(3):
            now.after(4.0)
            display.group(group(True, False))
        display.evaluated(evaluated(1, 0.5))

    assert [line for line in plain(script) if "asked" in line] == [
        "reinforcement learning 1/2  evaluation: 2 asked  success 50.0 %",
        "reinforcement learning 1/2  evaluation: 3 asked  success 50.0 %",
    ]


def test_the_last_line_of_a_phase_is_told_at_once() -> None:
    out, now = io.StringIO(), Now()
    display = Display(Path("runs/demo"), console=Console(file=out), clock=now)
    display.phase("evaluation", 3)
    for _ in range(3):
        display.group(group(True))
    assert out.getvalue().splitlines()[1:] == ["evaluation 3/3  success 100.0 %"]


def test_each_phase_counts_its_own_success() -> None:
    def script(display: Display, now: Now) -> None:
        for name, is_correct in (("rollouts", True), ("more rollouts", False)):
            display.phase(name, 1)
            display.group(group(is_correct))

    assert plain(script)[1::2] == ["rollouts 1/1  success 100.0 %", "more rollouts 1/1  success 0.0 %"]


def test_verdicts_are_counted_with_those_that_are_missing() -> None:
    def script(display: Display, now: Now) -> None:
        display.phase("evaluation on gaia", 1)
        display.group(group(False))
        display.phase("judge", 4)
        for is_correct in (True, None, False, True):
            now.after(6.0)
            display.verdict(is_correct)

    assert [line.partition("  ")[2].partition("  ")[0] for line in plain(script) if line.startswith("judge ")] == [
        "correct 100.0 %",
        "correct 100.0 %, 1 without a verdict",
        "correct 50.0 %, 1 without a verdict",
        "correct 66.7 %, 1 without a verdict",
    ]


def test_a_table_of_several_columns_keeps_what_it_is_told() -> None:
    out = io.StringIO()
    with Display(Path("runs/demo"), console=Console(file=out, width=80)) as display:
        display.grid("scores", ["set", "metric", "value"], [["gaia", "judge", "40.0"], ["[red]", "", "7.0"]])
    assert [re.split(r" *│ *", line)[1:-1] for line in out.getvalue().splitlines() if line.startswith("│")] == [
        ["gaia", "judge", "40.0"],
        ["[red]", "", "7.0"],
    ]


def test_a_resumed_run_says_where_it_goes_on() -> None:
    def script(display: Display, now: Now) -> None:
        display.resumed([row(1), row(2)], [evaluated(0, 0.25)])
        display.phase("reinforcement learning", 4)
        now.after(5.0)
        display.step(row(3, t=1e6))

    lines = plain(script)
    assert lines[0] == "runs/demo: going on after step 2"
    assert " 3/4 " in lines[-1]
    assert "1,234 tokens/s" in lines[-1], "the time between two processes is no time of the step"


def test_a_pipe_gets_no_control_characters_though_colours_are_forced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    with Display(Path("runs/demo")) as display:
        display.preparing()
        display.phase("start", None)
        display.note("a [bold]name[/bold] with :smile: 0x1f " + "and no end " * 20)
        display.table("found", {"success": 0.5})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\x1b" not in captured.err
    assert captured.err.startswith("runs/demo: start\na [bold]name[/bold] with :smile: 0x1f and")
    assert captured.err.splitlines()[1].endswith("and no end ")


# -- the dashboard --------------------------------------------------------------------------------------------

IN_THE_MIDDLE = """\
runs/demo                                                   elapsed 6 min 54 s
✓ cold start, stage 1 of 2                   6/6         30 s  loss 0.5000
✓ cold start, stage 2 of 2               3/2,000        1.5 s  loss 0.1250
✓ start                                            1 min 01 s
✓ evaluation                                 4/4        6.0 s  success 25.0 %
⠹ reinforcement learning                           5 min 16 s  success 55.0 %
  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  31/40       10 s/step   1 min 30 s left

                    step 31  mean of 8                      step 31  mean of 8
reward                0.250      0.250  sampled tokens/s      1,234      1,234
success              62.0 %     55.0 %  calls requested       1,234      1,234
staleness                 0        0.0  calls executed        1,200      1,200
KL to rollouts      2.1e-04    2.1e-04  forks                    96       96.0
learner step         0.35 s     0.35 s  truncated                 0        0.0
learner waits         9.7 s      9.7 s

success      ▁▁▁▂▂▂▂▂▂▂▃▃▃▃▃▃▃▄▄▄▄▄▄▄▅▅▅▅▅▅▅  8.0 % → 56.0 %
reward       ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁  0.250 → 0.250
evaluations  step 0: 25.0 %   step 20: 50.0 %"""


def test_the_dashboard_in_the_middle_of_training_fits_80_columns() -> None:
    shown = frame(lambda progress, now: run(progress, now, last=31), width=78)
    assert "\n".join(shown) == IN_THE_MIDDLE


def test_a_wider_terminal_shows_the_same_with_more_room() -> None:
    wide = frame(lambda progress, now: run(progress, now, last=31), width=118)
    assert ["".join(re.findall(r"[^━╸ ]", line)) for line in wide] == [
        "".join(re.findall(r"[^━╸ ]", line)) for line in IN_THE_MIDDLE.splitlines()
    ]
    assert {len(wide[0]), len(wide[6])} == {98}


def test_an_evaluation_holds_training_up_and_is_forgotten_when_it_goes_on() -> None:
    def held_up(progress: Progress, now: Now) -> None:
        run(progress, now, last=31)
        progress.event(PhaseStarted(name="evaluation", total=4))
        now.after(2.0)
        progress.group(group(True))

    names = [line.split("  ")[0] for line in frame(held_up, width=78)]
    assert names[5:7] == ["‖ reinforcement learning", "⠹ evaluation"]
    assert any("mean of 8" in line for line in frame(held_up, width=78)), "the table stays where it is"
    shown = frame(
        lambda progress, now: (held_up(progress, now), learning(progress, now, first=32, last=32))[0], width=78
    )
    assert [line[0] for line in shown[1:6]] == [*"✓✓✓✓", "⠹"]


def test_the_end_is_compact_and_has_what_came_of_every_phase() -> None:
    def script(progress: Progress, now: Now) -> None:
        run(progress, now)
        ending(progress, now)
        progress.finish()

    shown = frame(script, width=78)
    assert shown[:8] == [
        "runs/demo                                                   elapsed 1 h 10 min",
        "✓ cold start, stage 1 of 2                   6/6         30 s  loss 0.5000",
        "✓ cold start, stage 2 of 2               3/2,000        1.5 s  loss 0.1250",
        "✓ start                                            1 min 01 s",
        "✓ evaluation                                 4/4        6.0 s  success 25.0 %",
        "✓ reinforcement learning                   40/40   6 min 46 s  success 73.0 %",
        "✓ evaluation                                 4/4        6.0 s  success 100.0 %",
        "✓ control                                    1/1   1 h 02 min  success 31.0 %",
    ]
    assert shown[8] == ""
    assert shown[-1] == "evaluations  step 0: 25.0 %   step 20: 50.0 %   step 40: 100.0 %"
    assert len(shown) == 12


def test_a_low_terminal_leaves_out_the_oldest_phases() -> None:
    whole = frame(lambda progress, now: run(progress, now, last=31), width=78)
    low = frame(lambda progress, now: run(progress, now, last=31), width=78, height=len(whole) - 2)
    assert low == whole[:1] + whole[3:]


def test_a_phase_of_unknown_length_has_a_spinner_that_turns_with_the_clock() -> None:
    now = Now()
    progress = Progress(now)
    progress.phase("start", None)
    first = drawn(progress, width=78)
    now.after(0.2)
    second = drawn(progress, width=78)
    assert len(first) == 2
    assert (first[1][0], second[1][0]) == (dashboard.SPINNER[0], dashboard.SPINNER[1])


def test_a_stopped_run_shows_in_which_phase() -> None:
    def script(progress: Progress, now: Now) -> None:
        run(progress, now, last=31)
        progress.finish(is_stopped=True)

    assert "✗ reinforcement learning                   31/40   5 min 16 s  success 55.0 %" in frame(script, width=78)


def test_training_that_an_evaluation_held_up_is_stopped_with_it() -> None:
    def script(progress: Progress, now: Now) -> None:
        run(progress, now, last=31)
        evaluation(progress, now, step=31, success=0.5)
        progress.finish(is_stopped=True)

    assert [line[:3] for line in frame(script, width=78)[4:7]] == ["✓ e", "✗ r", "✗ e"]


def test_a_long_name_gives_way_to_the_numbers() -> None:
    now = Now()
    progress = Progress(now)
    progress.phase("a cold start of which somebody has said far too much, made earlier", 1_000_000)
    progress.phase("next", None)
    (line,) = [line for line in drawn(progress, width=78) if "somebody" in line]
    assert "…" in line
    assert line.endswith(" 0.00 s")


def test_a_long_path_keeps_its_end() -> None:
    lines = dashboard.frame(Progress(Now()), subject="/" + "a" * 90 + "/demo", width=78)
    assert lines[0][0][0].startswith("…aaa")
    assert lines[0][0][0].rstrip().endswith("/demo")


@given(
    width=st.integers(78, 200),
    step=st.integers(1, 999_000),
    count=st.integers(0, 999_999),
    value=st.floats(-1e3, 1e3),
    seconds=st.floats(0.1, 1e5),
    num_rows=st.integers(1, 20),
)
def test_no_line_is_wider_than_the_terminal(
    width: int, step: int, count: int, value: float, seconds: float, num_rows: int
) -> None:
    now = Now()
    progress = Progress(now)
    progress.phase("cold start, stage 1 of 2, made earlier", 100_000)
    progress.phase("reinforcement learning", step + num_rows)
    counts = {name: count for name, kind in StepMetrics.__annotations__.items() if kind is int}
    for number in range(num_rows):
        now.after(seconds)
        values = {"reward": value, "success": 1.0, "step_s": seconds, "wait_s": seconds, "kl_rollout": abs(value)}
        progress.step(row(**(counts | values | {"step": step + number, "t": now.s})))
        progress.evaluated(evaluated(step + number, 1.0))
    assert max(map(len, drawn(progress, width=width))) <= width


def test_evaluations_that_do_not_fit_leave_the_first_and_the_last() -> None:
    progress = Progress(Now())
    for step in range(0, 100, 10):
        progress.evaluated(evaluated(step, step / 100))
    assert evaluations(progress, width=60) == "step 0: 0.0 %   …   step 80: 80.0 %   step 90: 90.0 %"
    assert evaluations(progress, width=5) == "step 90: 90.0 %"


# -- the terminal ---------------------------------------------------------------------------------------------


def screen(written: str) -> list[str]:
    """What a terminal that never scrolls shows after these characters; colours are left out."""
    lines, y, x = [""], 0, 0
    for control, up, _, text in re.findall(r"(\x1b\[(?:\?25[lh]|[\d;]*m|2K|(\d+)A)|([\r\n]))|([^\x1b\r\n]+)", written):
        if up:
            y -= int(up)
        elif control == "\x1b[2K":
            lines[y] = ""
        elif control == "\r":
            x = 0
        elif control == "\n":
            y, x = y + 1, 0
            lines += [""] * (y + 1 - len(lines))
        elif text:
            lines[y] = lines[y][:x].ljust(x) + text + lines[y][x + len(text) :]
            x += len(text)
    return [line.rstrip() for line in lines]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm")
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80, height=24)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_on_a_terminal_the_last_frame_stays_and_the_summary_follows(terminal: Console) -> None:
    now = Now()
    with Display(Path("runs/demo"), console=terminal, clock=now) as display:
        display.preparing()
        now.after(2.0)
        run(display, now)
        ending(display, now)
        display.summary(
            Summary(status="finished", seed=1234, steps=1234, wall_s=4242.0, train_s=14.25, success_after=0.94)
        )
    shown = screen(written(terminal))
    assert shown[1] == "✓ preparation                                           2.0 s"
    assert shown[12] == "evaluations  step 0: 25.0 %   step 20: 50.0 %   step 40: 100.0 %"
    assert not any("left" in line or "mean of" in line for line in shown), "what was live is gone"
    cells = dict(re.findall(r"│ (\w[\w ]*\w) +│ +(.*\S) │", "\n".join(shown)))
    assert cells == {
        "status": "finished",
        "seed": "1234",
        "steps": "1,234",
        "wall time": "1 h 11 min",
        "train time": "14 s",
        "success after": "94.0 %",
        "tool calls requested": "0",
        "tool calls executed": "0",
        "journal time": "0.00 s",
    }


def test_what_is_logged_and_warned_of_stands_above_the_dashboard(terminal: Console) -> None:
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    try:
        with Display(Path("runs/demo"), console=terminal, clock=Now()) as display:
            display.phase("start", None)
            logging.getLogger("engine").warning("32 groups in a row")
            sys.stderr.write("a library speaks\n")
            display.note("and so do we")
        assert handler.stream is sys.stderr
    finally:
        root.removeHandler(handler)
    shown = screen(written(terminal))
    assert shown[:3] == ["32 groups in a row", "a library speaks", "and so do we"]
    assert shown[3].startswith("runs/demo ")
    assert shown[4].startswith("✓ start ")


def test_the_cursor_is_not_hidden_while_the_dashboard_is_live(terminal: Console) -> None:
    display = Display(Path("runs/demo"), console=terminal, clock=Now())
    display.phase("start", None)
    assert re.findall(r"\x1b\[\?25([lh])", written(terminal))[-1] == "h"
    display.finish()


def test_an_interrupted_command_leaves_its_dashboard_with_a_mark(terminal: Console) -> None:
    def command() -> None:
        with Display(Path("runs/demo"), console=terminal, clock=Now()) as display:
            display.preparing()
            display.phase("start", None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command()
    assert [line[:7] for line in screen(written(terminal))[1:3]] == ["✓ prepa", "✗ start"]


def test_a_command_that_is_refused_while_it_prepares_leaves_nothing(terminal: Console) -> None:
    def command() -> None:
        with Display(Path("runs/demo"), console=terminal) as display:
            display.preparing()
            raise ConfigError("refused")

    with pytest.raises(ConfigError):
        command()
    assert set(screen(written(terminal))) == {""}


# -- how long it takes ----------------------------------------------------------------------------------------


def steady(each_s: float, *, num: int, first_s: float = 0.0) -> tuple[Pace, float]:
    made, now_s = Pace(), first_s
    for _ in range(num):
        now_s += each_s
        made.tick(now_s)
    return made, now_s


@given(each_s=st.floats(0.5, 500), num=st.integers(4, 100), num_left=st.integers(0, 1000), first_s=st.floats(0, 1e4))
def test_a_steady_pace_is_told_exactly_whatever_came_before(
    each_s: float, num: int, num_left: int, first_s: float
) -> None:
    made, now_s = steady(each_s, num=num, first_s=first_s)
    assert made.seconds_each == pytest.approx(each_s)
    assert made.left_s(num_left, now_s=now_s) == pytest.approx(num_left * each_s)


@given(each_s=st.floats(0.5, 100), num_left=st.integers(1, 100), waited=st.floats(0, 10))
def test_time_left_runs_down_and_waits_for_a_unit_that_is_late(each_s: float, num_left: int, waited: float) -> None:
    made, now_s = steady(each_s, num=20)
    expected = (num_left - min(waited, 1.0)) * each_s
    assert made.left_s(num_left, now_s=now_s + waited * each_s) == pytest.approx(expected, abs=1e-6)


@given(each_s=st.floats(0.1, 100), factor=st.floats(1, 20))
def test_one_slow_unit_does_not_throw_the_estimate_over(each_s: float, factor: float) -> None:
    made, now_s = steady(each_s, num=200)
    before = made.seconds_each
    made.tick(now_s + factor * each_s)
    assert before is not None
    assert made.seconds_each is not None
    assert before - 1e-9 <= made.seconds_each <= before * (1 + 1.05 * factor / MEMORY_UNITS)


def test_a_lasting_change_of_pace_is_believed_after_a_while() -> None:
    made, now_s = steady(1.0, num=200)
    for _ in range(40):
        now_s += 4.0
        made.tick(now_s)
    assert made.seconds_each == pytest.approx(4.0, rel=0.02)


def test_nothing_is_said_of_the_time_left_before_it_can_be_told() -> None:
    made = Pace()
    made.tick(100.0)
    assert made.left_s(5, now_s=160.0) is None, "the first unit's time is mostly that of processes that start"
    made.tick(100.01)
    assert made.left_s(5, now_s=160.0) is None
    made.tick(110.0)
    assert made.left_s(2, now_s=110.0) == pytest.approx(10.0, rel=0.1)


def test_an_evaluation_is_not_counted_in_the_pace_of_training() -> None:
    now = Now()
    progress = Progress(now)
    run(progress, now, last=20)
    before = progress.phases[-1].pace.seconds_each
    for announced in (True, False):
        if announced:
            evaluation(progress, now, step=20, success=0.5)
            progress.phase("reinforcement learning", 40)
        now.after(500.0)
        progress.evaluated(evaluated(20, 0.5))
        now.after(10.0)
        progress.step(row(21, t=now.s))
        assert progress.phases[-1].name == "reinforcement learning"
        assert progress.phases[-1].pace.seconds_each == pytest.approx(before)


# -- numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(0.035), "0.04 s"),
        (duration(0.996), "1.0 s"),
        (duration(9.96), "10 s"),
        (duration(59.4), "59 s"),
        (duration(59.6), "1 min 00 s"),
        (duration(75.0), "1 min 15 s"),
        (duration(151.2), "2 min 31 s"),
        (duration(3599.7), "1 h 00 min"),
        (duration(3 * 3600 + 299), "3 h 05 min"),
        (duration(math.nan), NOTHING),
        (percent(0.0), "0.0 %"),
        (percent(0.312), "31.2 %"),
        (percent(math.nan), NOTHING),
        (left(7.4), "7 s left"),
        (left(63.0), "1 min 05 s left"),
        (left(151.2), "2 min 30 s left"),
        (left(1234.0), "21 min left"),
        (left(2 * 3600), "2 h 00 min left"),
        (pace(0.08, unit="step"), "12.5 steps/s"),
        (pace(0.0004, unit="step"), "2,500 steps/s"),
        (pace(3.4, unit="question"), "3.4 s/question"),
        (quantity("success", 0.123), "12.3 %"),
        (quantity("pass@4", 1.0), "100.0 %"),
        (quantity("questions", 1000.0), "1,000"),
        (quantity("tokens_per_s", 12.3456), "12.35"),
        (quantity("wall_s", 61.0), "1 min 01 s"),
        (quantity("wall_s", 0.123456), "0.12 s"),
        (quantity("name", "x"), "x"),
        (quantity("is_quick", True), "True"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), width=st.integers(1, 100))
def test_a_sparkline_has_a_block_a_value_and_rises_with_it(values: list[float], width: int) -> None:
    ordered = sorted(values)
    line = sparkline(ordered, width=width, low=ordered[0], high=ordered[-1])
    assert len(line) == min(len(values), width)
    assert list(line) == sorted(line)
    if len(values) <= width and ordered[0] < ordered[-1]:
        assert (line[0], line[-1]) == (BLOCKS[0], BLOCKS[-1])


def test_a_watcher_passes_every_event_to_its_method() -> None:
    class Heard(Watcher):
        names: tuple[str, ...] = ()

        def phase(self, name: str, total: int | None) -> None:
            self.names += ("phase",)

        def sft_step(self, report: StepReport) -> None:
            self.names += ("sft_step",)

        def evaluated(self, event: Evaluated) -> None:
            self.names += ("evaluated",)

        def control_evaluated(self, event: ControlEvaluated) -> None:
            self.names += ("control_evaluated",)

    heard = Heard()
    control = ControlEvaluated(num_steps=1, metrics={})
    for event in (PhaseStarted(name="x"), SupervisedStep(report=report(0.0)), evaluated(0, 0.0), control):
        heard.event(msgspec.structs.replace(event, t=1.0))
    assert heard.names == ("phase", "sft_step", "evaluated", "control_evaluated")
