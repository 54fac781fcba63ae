"""RunState: what a run has come to, folded from its events; what a resumed run starts from."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from engine.errors import JournalError
from engine.events import (
    AnyEvent,
    BatchTaken,
    Checkpointed,
    ControlEvaluated,
    Evaluated,
    GeneratorsMeasured,
    GroupFinished,
    GroupRefused,
    PhaseStarted,
    PromptAdmitted,
    RunFinished,
    RunStarted,
    StepFinished,
    SupervisedStep,
    WeightsPublished,
)
from engine.reports import StepReport
from engine.tree import TreeBuilder
from engine.types import Prompt, TrajectoryGroup, Version


@dataclass(slots=True)
class CohortUse:
    """What trees of one cohort have used of its budgets."""

    num_trees: int = 0
    """That are finished or refused, and will not join again."""
    num_leaves: int = 0
    num_calls: int = 0
    num_ranked: int = 0
    """Forks that entered its ranking."""


@dataclass
class RunState:
    """A fold over events: `for event in journal.read(folder): state.apply(event)`."""

    num_starts: int = 0
    num_admitted: int = 0
    last_prompt: Prompt | None = None
    """The last one admitted: fresh prompts come behind it."""
    num_refused: int = 0
    num_trained: int = 0
    """Groups handed to the learner."""
    step: int = 0
    """Last step whose batch was composed."""
    published_step: int = 0
    """Last step whose weights every generator had."""
    version: Version = 0
    """Last version that every generator had."""
    admissions: dict[str, PromptAdmitted] = field(default_factory=dict[str, PromptAdmitted])
    """Of prompts that hold a slot: not refused, and not yet released."""
    refused: dict[str, PromptAdmitted] = field(default_factory=dict[str, PromptAdmitted])
    """Of refused prompts whose cohort is not published: batches by cohort need to know them."""
    trees: dict[str, TreeBuilder] = field(default_factory=dict[str, TreeBuilder])
    """Trees that still grow, partial branches and results included."""
    groups: dict[str, TrajectoryGroup] = field(default_factory=dict[str, TrajectoryGroup])
    """Finished groups that no batch has taken."""
    used: dict[int, CohortUse] = field(default_factory=dict[int, CohortUse])
    """By cohort, by trees that left it."""
    batches: dict[int, tuple[TrajectoryGroup, ...]] = field(default_factory=dict[int, tuple[TrajectoryGroup, ...]])
    """Batches since the older of `checkpoints`, by step: what a resumed learner may be given again."""
    digests: dict[int, str] = field(default_factory=dict[int, str])
    """Of `batches`."""
    reports: dict[int, StepReport] = field(default_factory=dict[int, StepReport])
    checkpoints: tuple[Checkpointed, ...] = ()
    """The newest two, in order; the older one is there for where the newest turns out to be torn."""
    evaluated_step: int = -1
    """The last one behind which the policy was measured; 0 is before the first."""
    is_finished: bool = False
    last_t: float = 0.0
    is_there: Callable[[str], bool] = lambda path: True
    """Whether the checkpoint of a path is; one that vanished counts as never made, and its batches are kept."""

    def apply(self, event: AnyEvent) -> None:
        """Take the next event. Raises `JournalError` for one that cannot follow what came before."""
        self.last_t = max(self.last_t, event.t)
        match event:
            case RunStarted():
                self.num_starts += 1
            case PromptAdmitted():
                self.num_admitted += 1
                self.last_prompt = event.prompt
                self.admissions[event.prompt_id] = event
                self.trees[event.prompt_id] = TreeBuilder(event.prompt)
            case GroupFinished():
                self.groups[event.prompt_id] = self._tree(event.prompt_id).group()
                self._leave(event.prompt_id)
            case GroupRefused():
                self.num_refused += 1
                self.groups.pop(event.prompt_id, None)
                if event.prompt_id in self.trees:
                    self._leave(event.prompt_id)
                self.refused[event.prompt_id] = self.admissions.pop(event.prompt_id)
            case BatchTaken():
                self._take(event)
            case StepFinished():
                self.reports[event.report.step] = event.report
            case WeightsPublished():
                self.version = event.version
                self.published_step = event.step
                # Step n trains cohort n - 1 where batches go by cohort; elsewhere nobody asks.
                self.refused = {name: a for name, a in self.refused.items() if a.cohort >= event.step}
                for prompt_id in event.prompt_ids:
                    self.admissions.pop(prompt_id, None)
            case Checkpointed() if not self.is_there(event.path):
                pass
            case Checkpointed():
                # One that was found torn is written again.
                before = tuple(one for one in self.checkpoints if one.step != event.step)
                self.checkpoints = (*before[-1:], event)
                floor = self.checkpoints[0].step if len(self.checkpoints) > 1 else 0
                self.batches = {step: batch for step, batch in self.batches.items() if step > floor}
                self.digests = {step: digest for step, digest in self.digests.items() if step > floor}
            case Evaluated():
                self.evaluated_step = event.step
            case RunFinished():
                self.is_finished = True
            case PhaseStarted() | SupervisedStep() | ControlEvaluated() | GeneratorsMeasured():
                pass
            case _:
                self._tree(event.prompt_id).apply(event)

    @property
    def usage(self) -> dict[int, CohortUse]:
        """What each cohort has used of its budgets, by trees that left it and by trees that still grow."""
        total = {number: replace(use) for number, use in self.used.items()}
        for prompt_id, tree in self.trees.items():
            use = total.setdefault(self.admissions[prompt_id].cohort, CohortUse())
            use.num_leaves += len(tree.paths)
            use.num_calls += tree.num_executed
            use.num_ranked += len(tree.ranked)
        return total

    def _leave(self, prompt_id: str) -> None:
        tree = self.trees.pop(prompt_id)
        use = self.used.setdefault(self.admissions[prompt_id].cohort, CohortUse())
        use.num_trees += 1
        use.num_leaves += len(tree.paths)
        use.num_calls += tree.num_executed
        use.num_ranked += len(tree.ranked)

    def _take(self, event: BatchTaken) -> None:
        if missing := [name for name in event.prompt_ids if name not in self.groups]:
            raise JournalError(f"step {event.step} takes {missing[0]}, which is not a finished group")
        self.step = event.step
        self.num_trained += len(event.prompt_ids)
        self.digests[event.step] = event.digest
        self.batches[event.step] = tuple(self.groups.pop(name) for name in event.prompt_ids)

    def _tree(self, prompt_id: str) -> TreeBuilder:
        if prompt_id not in self.trees:
            raise JournalError(f"an event of {prompt_id}, which is not growing")
        return self.trees[prompt_id]
