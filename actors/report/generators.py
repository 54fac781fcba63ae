"""GeneratorsFold: what the generators of all processes had done at each measurement, folded from the events."""

from actors.report.record import GeneratorsLevel
from engine.events import AnyEvent, GeneratorsMeasured, PhaseStarted, RunStarted, SupervisedStep


class GeneratorsFold:
    """`apply` every event. Generators count from their own start; `levels` goes on over all processes."""

    def __init__(self) -> None:
        self.levels: list[GeneratorsLevel] = []
        self._is_supervised = False
        """Whether supervised steps were the last thing that happened in the present phase."""
        self._base = GeneratorsLevel(0.0, 0.0, 0)
        """What the generators of earlier processes had done in all."""
        self._since_s: float | None = 0.0
        """When the generators of this process began: in the first phase behind supervised steps. None once they have
        been measured."""

    def apply(self, event: AnyEvent) -> None:
        match event:
            case RunStarted():
                self._since_s = event.t
                if self.levels:
                    self._base = self.levels[-1]
            case SupervisedStep():
                self._is_supervised = True
            case PhaseStarted() if self._is_supervised:
                self._is_supervised = False
                if self._since_s is not None:
                    self._since_s = event.t
            case GeneratorsMeasured():
                if self._since_s is not None:
                    self.levels.append(self._base._replace(t=self._since_s))
                    self._since_s = None
                tokens = self._base.num_sampled_tokens + event.num_sampled_tokens
                self.levels.append(GeneratorsLevel(event.t, self._base.busy_s + event.busy_s, tokens))
            case _:
                pass
