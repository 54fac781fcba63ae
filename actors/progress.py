"""Progress: how far a command is, in phases, and how long the present one will take; a fold over a watcher's calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from actors.pace import Pace
from actors.quantities import percent
from actors.watcher import Watcher
from engine.events import ControlEvaluated, Evaluated
from engine.metrics import StepMetrics
from engine.reports import StepReport
from engine.types import TrajectoryGroup

Clock = Callable[[], float]

SHORTEST_S = 1e-9
"""What a rate is of took at least this."""
LATELY = 8
"""Steps that "lately" speaks of."""


@dataclass(kw_only=True)
class Phase:
    """A part of the command."""

    name: str
    total: int | None
    started_s: float
    ended_s: float | None = None
    done: int = 0
    unit: Literal["", "supervised", "step", "question"] = ""
    """What it is counted in: what was reported first."""
    outcome: str = ""
    is_stopped: bool = False
    """The command ended in the middle of it."""
    pace: Pace = field(default_factory=Pace)

    @property
    def is_over(self) -> bool:
        return self.ended_s is not None

    def left_s(self, now_s: float) -> float | None:
        """Seconds to its end; None for a phase that is over, of unknown length, or too young to tell."""
        if self.is_over or self.total is None:
            return None
        return self.pace.left_s(max(self.total - self.done, 0), now_s=now_s)

    def advance(self, done: int, now_s: float) -> None:
        self.done = done
        self.pace.tick(now_s)


class Progress(Watcher):
    """The phases so far, all steps, all evaluations. A phase ends where the next one begins.

    Training that an evaluation held up goes on as the same phase; that evaluation is then none of the `phases`.
    Training that was complete does not begin again.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.started_s = clock()
        self.phases: list[Phase] = []
        self.rows: list[StepMetrics] = []
        self._spans_s: dict[int, float] = {}
        self.evaluations: list[tuple[int, float]] = []
        """(step, success) of each."""
        self.num_asked = 0
        """Questions of an evaluation that is not a phase of its own, so far."""
        self._num_trajectories = 0
        self._num_correct = 0
        self._num_missing = 0

    @property
    def now_s(self) -> float:
        return self.clock()

    @property
    def current(self) -> Phase | None:
        """The phase that goes on."""
        return self.phases[-1] if self.phases and not self.phases[-1].is_over else None

    @property
    def training(self) -> Phase | None:
        """RL that goes on, or that an evaluation holds up."""
        current = self.current
        if current is None or current.unit == "step":
            return current
        before = self.phases[-2] if len(self.phases) > 1 else None
        is_held_up = before is not None and before.unit == "step" and before.done != before.total
        return before if is_held_up and current.unit != "supervised" else None

    def phase(self, name: str, total: int | None) -> None:
        self.finish()
        before = next((p for p in self.phases[-2:-1] if p.name == name and p.unit in ("", "step")), None)
        if before is None:
            self.phases.append(Phase(name=name, total=total, started_s=self.now_s))
        elif before.done != total:
            self._go_on_with(before)

    def finish(self, *, is_stopped: bool = False) -> None:
        """The present phase is over; `is_stopped` where it did not come to its end."""
        self._forget_questions()
        if is_stopped and self.training is not None:  # held up by an evaluation, it is stopped as well
            self.training.is_stopped = True
        if self.current is not None:
            self.current.is_stopped = is_stopped
            self.current.ended_s = self.now_s

    def resumed(self, rows: Sequence[StepMetrics], evaluations: Sequence[Evaluated]) -> None:
        self.rows[:0] = rows
        self.evaluations[:0] = [(event.step, event.metrics["success"]) for event in evaluations]

    def sft_step(self, report: StepReport) -> None:
        phase = self._counting("supervised")
        phase.advance(phase.done + 1, self.now_s)
        phase.outcome = f"loss {report.loss:.4f}"

    def step(self, row: StepMetrics) -> None:
        if self.training is not None and self.training is not self.current:
            self._go_on_with(self.training)
        phase = self._counting("step")
        if self._spans_s:  # an earlier process's last row is too long ago
            self._spans_s[row.step] = max(row.t - self.rows[-1].t, SHORTEST_S)
        else:
            self._spans_s[row.step] = self.span_s(row)
        self.rows.append(row)
        phase.advance(row.step, self.now_s)
        lately = self.rows[-LATELY:]
        phase.outcome = f"success {percent(sum(r.success for r in lately) / len(lately))}"

    def group(self, group: TrajectoryGroup) -> None:
        self._num_trajectories += len(group.trajectories)
        self._num_correct += sum(t.reward.is_correct for t in group.trajectories)
        phase = self._counting("question")
        if phase.unit == "question":
            phase.advance(phase.done + 1, self.now_s)
            phase.outcome = f"success {percent(self.asked_success)}"
        else:
            self.num_asked += 1

    def verdict(self, is_correct: bool | None) -> None:
        phase = self._counting("question")
        self._num_missing += is_correct is None
        self._num_correct += is_correct is True
        phase.advance(phase.done + 1, self.now_s)
        missing = f", {self._num_missing} without a verdict" if self._num_missing else ""
        phase.outcome = f"correct {percent(self._num_correct / max(phase.done - self._num_missing, 1))}{missing}"

    def evaluated(self, event: Evaluated) -> None:
        success = event.metrics["success"]
        self.evaluations.append((event.step, success))
        if self.current is not None and self.current.unit == "question":
            self.current.outcome = f"success {percent(success)}"
        if self.training is not None:  # an evaluation now and then is no measure of how long a step takes
            self.training.pace.skip(self.now_s)
        self._forget_questions()

    def control_evaluated(self, event: ControlEvaluated) -> None:
        if self.current is not None:
            self.current.outcome = f"success {percent(event.metrics['success'])}"
        self._forget_questions()

    def span_s(self, row: StepMetrics) -> float:
        """Seconds from the step before to this one, more than 0: what its counts are of."""
        return self._spans_s.get(row.step, max(row.step_s + row.wait_s, SHORTEST_S))

    @property
    def asked_success(self) -> float:
        """Of the evaluation that goes on."""
        return self._num_correct / max(self._num_trajectories, 1)

    def _counting(self, unit: Literal["supervised", "step", "question"]) -> Phase:
        """The present phase, which counts in `unit` from now on if it counted nothing, or questions."""
        if self.current is None:
            self.phase(unit, None)
        phase = self.phases[-1]
        if phase.unit == "" or (phase.unit == "question" and unit != "question"):
            phase.unit, phase.done, phase.pace = unit, 0, Pace()
        return phase

    def _go_on_with(self, phase: Phase) -> None:
        del self.phases[self.phases.index(phase) + 1 :]
        phase.ended_s = None

    def _forget_questions(self) -> None:
        self.num_asked = self._num_trajectories = self._num_correct = self._num_missing = 0
