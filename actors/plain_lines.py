"""PlainLines: what a command tells where there is no terminal; each line can be understood alone."""

from collections.abc import Callable, Mapping, Sequence

from actors.progress import Progress
from actors.quantities import count, duration, label, left, percent, quantity
from actors.watcher import Watcher
from engine.events import ControlEvaluated, Evaluated
from engine.metrics import StepMetrics
from engine.reports import StepReport
from engine.types import TrajectoryGroup

EVERY_S = 5.0
"""Seconds between lines of one phase; RL's steps are all told, and the last line of every phase."""


class PlainLines(Watcher):
    """Says what `progress` has come to; `progress` hears of everything first."""

    def __init__(self, progress: Progress, *, subject: str, say: Callable[[str], None]) -> None:
        self._progress = progress
        self._subject = subject
        self._say = say
        self._last_s = 0.0
        self._held_back = ""

    def phase(self, name: str, total: int | None) -> None:
        self.finish()
        phase = self._progress.current
        if phase is None or phase.done:  # it goes on, or is complete
            return
        elapsed_s = self._progress.now_s - self._progress.started_s
        in_all = f", {count(total)} in all" if total else ""
        after = f", after {duration(elapsed_s)}" if elapsed_s >= 1 else ""
        self._tell(f"{self._subject}: {name}{in_all}{after}")

    def finish(self) -> None:
        """Say what was held back last."""
        if self._held_back:
            self._tell(self._held_back)

    def resumed(self, rows: Sequence[StepMetrics], evaluations: Sequence[Evaluated]) -> None:
        if rows:
            self._tell(f"{self._subject}: going on after step {count(rows[-1].step)}")

    def sft_step(self, report: StepReport) -> None:
        self._tell_now_and_then(self._line(self._progress.phases[-1].outcome))

    def step(self, row: StepMetrics) -> None:
        bad = {"truncated": row.num_truncated, "failed": row.num_failed, "groups refused": row.num_refused}
        self._tell(
            self._line(
                f"reward {row.reward:.3f}",
                f"success {percent(row.success)}",
                f"staleness {row.staleness}",
                f"{count(row.num_sampled_tokens / self._progress.span_s(row))} tokens/s",
                f"calls {count(row.num_tool_calls_requested)} requested {count(row.num_tool_calls_executed)} executed",
                f"forks {count(row.num_forks)}",
                *(f"{name} {count(number)}" for name, number in bad.items() if number),
                f"KL {row.kl_rollout:.1e}",
                f"learner step {duration(row.step_s)} wait {duration(row.wait_s)}",
            )
        )

    def group(self, group: TrajectoryGroup) -> None:
        progress = self._progress
        if progress.num_asked:
            asked = f"evaluation: {count(progress.num_asked)} asked"
            self._tell_now_and_then(self._line(asked, f"success {percent(progress.asked_success)}"))
        else:
            self._tell_now_and_then(self._line(progress.phases[-1].outcome))

    def verdict(self, is_correct: bool | None) -> None:
        self._tell_now_and_then(self._line(self._progress.phases[-1].outcome))

    def evaluated(self, event: Evaluated) -> None:
        self.finish()
        self._tell(f"evaluation after step {count(event.step)}: {_facts(event.metrics)}")

    def control_evaluated(self, event: ControlEvaluated) -> None:
        self.finish()
        self._tell(f"control after {count(event.num_steps)} supervised steps: {_facts(event.metrics)}")

    def _line(self, *facts: str) -> str:
        phase = self._progress.phases[-1]
        done = f"{phase.name} {phase.done}" + (f"/{phase.total}" if phase.total else "")
        left_s = phase.left_s(self._progress.now_s)
        time_left = [] if left_s is None or phase.done == phase.total else [left(left_s)]
        return "  ".join([done, *facts, *time_left])

    def _tell(self, line: str) -> None:
        self._held_back = ""
        self._last_s = self._progress.now_s
        self._say(line)

    def _tell_now_and_then(self, line: str) -> None:
        phase = self._progress.phases[-1]
        is_last = phase.done == phase.total and not self._progress.num_asked
        if is_last or self._progress.now_s - self._last_s >= EVERY_S:
            self._tell(line)
        else:
            self._held_back = line


def _facts(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{label(name)} {quantity(name, value)}" for name, value in metrics.items())
