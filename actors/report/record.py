"""RunRecord: everything a report asks of a run; `fold.read_record` makes it from the journal."""

from dataclasses import dataclass, field
from typing import NamedTuple

from engine.events import ControlEvaluated, Evaluated, ForkConsidered
from engine.metrics import StepMetrics
from engine.phases import Phase
from engine.reports import StepReport
from engine.tree import Path
from engine.types import TrajectoryGroup, Version


class Span(NamedTuple):
    """Seconds on the clock of the run."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(slots=True)
class Curve:
    """Reports of the supervised steps of one phase."""

    phase: str
    reports: list[StepReport] = field(default_factory=list[StepReport])

    def repeats(self, other: "Curve") -> bool:
        """Whether these steps are those of `other` again, or begin it: another process told of the same steps."""
        mine, theirs = [(r.step, r.loss) for r in self.reports], [(r.step, r.loss) for r in other.reports]
        return bool(mine) and theirs[: len(mine)] == mine


@dataclass(slots=True)
class GrownTree:
    """A tree whose trajectories are all scored, trained or not."""

    group: TrajectoryGroup
    paths: list[Path]
    """By number, as `group.trajectories` are: calls, results, and where observations end."""
    considered: list[ForkConsidered]
    version: Version
    """Version of the weights when the prompt was admitted."""
    num_steps: int
    """Steps that were finished when the tree was."""
    trained_in: int | None = None
    """The step whose batch holds it; None for one that was refused, or that no batch has taken."""
    is_refused: bool = False


class ToolRun(NamedTuple):
    """One call on the clock."""

    name: str
    span: Span
    was_executed: bool


class GeneratorsLevel(NamedTuple):
    """What generators of all processes had done by then."""

    t: float
    busy_s: float
    num_sampled_tokens: int


@dataclass
class RunRecord:
    """What there is, of a finished run or of an interrupted one; times are seconds on the clock of the run."""

    phases: list[Phase] = field(default_factory=list[Phase])
    """Parts of the run, each in one process; a run comes back to a part of the same name."""
    curves: list[Curve] = field(default_factory=list[Curve])
    rows: list[StepMetrics] = field(default_factory=list[StepMetrics])
    steps: list[Span] = field(default_factory=list[Span])
    """Of each row: when its batch was asked for, and when its step was finished."""
    published: dict[int, float] = field(default_factory=dict[int, float])
    """Seconds from the end of a step until all generators had its weights, by step."""
    evaluations: list[Evaluated] = field(default_factory=list[Evaluated])
    control: ControlEvaluated | None = None
    trees: list[GrownTree] = field(default_factory=list[GrownTree])
    tools: list[ToolRun] = field(default_factory=list[ToolRun])
    generators: list[GeneratorsLevel] = field(default_factory=list[GeneratorsLevel])
    num_starts: int = 0
    num_unfinished: int = 0
    """Trees that still grew when the journal ended."""
    end_s: float = 0.0
    is_finished: bool = False

    @property
    def num_steps(self) -> int:
        return max((row.step for row in self.rows), default=0)

    @property
    def tool_names(self) -> list[str]:
        """Of tools that were called, the most used first."""
        counts: dict[str, int] = {}
        for run in self.tools:
            counts[run.name] = counts.get(run.name, 0) + 1
        return sorted(counts, key=lambda name: (-counts[name], name))
