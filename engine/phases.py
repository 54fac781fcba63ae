"""PhaseFold: the parts of a run one after another, and how long each took, folded from the events."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.events import AnyEvent, PhaseStarted, RunStarted, SupervisedStep
from engine.reports import StepReport


@dataclass
class Phase:
    """One part of a run. Seconds are those of the run's clock, which stands still while no process works on it."""

    name: str
    start_s: float
    end_s: float
    """Of its last event so far, or where the next phase began."""
    total: int | None = None
    reports: list[StepReport] = field(default_factory=list[StepReport])
    """Of its supervised steps."""

    @property
    def wall_s(self) -> float:
        return self.end_s - self.start_s


class PhaseFold:
    """`apply` every event. A run that was interrupted has the phases of all its processes."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self._is_open = False

    def restore(self, phases: Iterable[Phase]) -> None:
        """Go on from there, in the last of them."""
        self.phases = list(phases)
        self._is_open = bool(self.phases)

    def apply(self, event: AnyEvent) -> None:
        if self._is_open and not isinstance(event, RunStarted):
            self.phases[-1].end_s = event.t
        match event:
            case RunStarted():
                self._is_open = False
            case PhaseStarted():
                self._is_open = True
                self.phases.append(Phase(event.name, event.t, event.t, event.total))
            case SupervisedStep():
                self.phases[-1].reports.append(event.report)
            case _:
                pass

    def wall_s(self, name: str) -> float:
        """Seconds of all phases of that name."""
        return sum(phase.wall_s for phase in self.phases if phase.name == name)
