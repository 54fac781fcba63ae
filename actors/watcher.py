"""Watcher: what a long command tells the person who waits for it."""

from engine.events import Evaluated
from engine.metrics import StepMetrics
from engine.types import StepReport, TrajectoryGroup


class Watcher:
    """Does nothing unless overridden; `display.Display` is the one with a terminal."""

    def phase(self, name: str, total: int | None) -> None:
        """A part of the command begins; `total` counts what it will report, where that is known."""

    def sft_step(self, report: StepReport) -> None:
        """One step of the cold start."""

    def step(self, row: StepMetrics) -> None:
        """One RL step."""

    def group(self, group: TrajectoryGroup) -> None:
        """One prompt's trajectories, where nothing is trained."""

    def evaluated(self, event: Evaluated) -> None:
        """The policy was measured."""
