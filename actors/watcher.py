"""Watcher: what a long command tells the person who waits for it."""

from collections.abc import Sequence

from engine.events import AnyEvent, ControlEvaluated, Evaluated, PhaseStarted, SupervisedStep
from engine.metrics import StepMetrics
from engine.reports import StepReport
from engine.types import TrajectoryGroup


class Watcher:
    """Does nothing unless overridden; `display.Display` is the one with a terminal."""

    def event(self, event: AnyEvent) -> None:
        """Hear of an event: calls the method that it is for, if there is one."""
        match event:
            case PhaseStarted():
                self.phase(event.name, event.total)
            case SupervisedStep():
                self.sft_step(event.report)
            case Evaluated():
                self.evaluated(event)
            case ControlEvaluated():
                self.control_evaluated(event)
            case _:
                pass

    def phase(self, name: str, total: int | None) -> None:
        """A part of the command begins; `total` counts what it will report, where that is known."""

    def resumed(self, rows: Sequence[StepMetrics], evaluations: Sequence[Evaluated]) -> None:
        """What earlier processes of this run came to; before the first `step`."""

    def sft_step(self, report: StepReport) -> None:
        """One step of the cold start."""

    def step(self, row: StepMetrics) -> None:
        """One RL step."""

    def group(self, group: TrajectoryGroup) -> None:
        """One prompt's trajectories, where nothing is trained."""

    def verdict(self, is_correct: bool | None) -> None:
        """The judge spoke of one answer; None where it did not."""

    def evaluated(self, event: Evaluated) -> None:
        """The policy was measured."""

    def control_evaluated(self, event: ControlEvaluated) -> None:
        """What RL is compared with was measured."""


class Watchers(Watcher):
    """Tells several, in their order."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def event(self, event: AnyEvent) -> None:
        for watcher in self._watchers:
            watcher.event(event)

    def phase(self, name: str, total: int | None) -> None:
        for watcher in self._watchers:
            watcher.phase(name, total)

    def resumed(self, rows: Sequence[StepMetrics], evaluations: Sequence[Evaluated]) -> None:
        for watcher in self._watchers:
            watcher.resumed(rows, evaluations)

    def sft_step(self, report: StepReport) -> None:
        for watcher in self._watchers:
            watcher.sft_step(report)

    def step(self, row: StepMetrics) -> None:
        for watcher in self._watchers:
            watcher.step(row)

    def group(self, group: TrajectoryGroup) -> None:
        for watcher in self._watchers:
            watcher.group(group)

    def verdict(self, is_correct: bool | None) -> None:
        for watcher in self._watchers:
            watcher.verdict(is_correct)

    def evaluated(self, event: Evaluated) -> None:
        for watcher in self._watchers:
            watcher.evaluated(event)

    def control_evaluated(self, event: ControlEvaluated) -> None:
        for watcher in self._watchers:
            watcher.control_evaluated(event)
