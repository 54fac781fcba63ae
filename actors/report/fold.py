"""The fold that turns the events of a journal into a `RunRecord`, in one pass."""

from collections.abc import Iterable, Sequence
from typing import cast

from actors.report.generators import GeneratorsFold
from actors.report.record import Curve, GrownTree, RunRecord, Span, ToolRun
from engine.errors import JournalError
from engine.events import (
    AnyEvent,
    AnyTreeEvent,
    BatchTaken,
    ControlEvaluated,
    Evaluated,
    ForkConsidered,
    GroupFinished,
    GroupRefused,
    PromptAdmitted,
    RunFinished,
    RunStarted,
    StepFinished,
    ToolFinished,
    TreeEvent,
    WeightsPublished,
)
from engine.metrics import MetricsFold
from engine.phases import PhaseFold
from engine.tree import TreeBuilder
from engine.types import Version


def read_record(events: Iterable[AnyEvent]) -> RunRecord:
    """Fold the events of a journal, in order. Raises `JournalError` for one that cannot follow what came before."""
    fold = _Fold()
    for event in events:
        fold.apply(event)
    return fold.close()


class _Fold:
    """What has to be remembered between events."""

    def __init__(self) -> None:
        self._record = RunRecord()
        self._metrics = MetricsFold()
        self._builders: dict[str, TreeBuilder] = {}
        self._considered: dict[str, list[ForkConsidered]] = {}
        self._versions: dict[str, Version] = {}
        self._grown: dict[str, GrownTree] = {}
        self._phases = PhaseFold()
        self._taken: BatchTaken | None = None
        self._finished_s: dict[int, float] = {}
        self._generators = GeneratorsFold()

    def apply(self, event: AnyEvent) -> None:
        record = self._record
        self._phases.apply(event)
        self._generators.apply(event)
        row = self._metrics.apply(event)
        if row is not None:
            assert self._taken is not None, "a row is that of the batch taken last"
            record.rows.append(row)
            record.steps.append(Span(self._taken.t - row.wait_s, row.t))
        match event:
            case TreeEvent():
                self._apply_to_tree(event)
            case RunStarted():
                record.num_starts += 1
            case BatchTaken():
                self._taken = event
                for name in event.prompt_ids:
                    if name in self._grown:
                        self._grown.pop(name).trained_in = event.step
            case StepFinished():
                self._finished_s.setdefault(event.report.step, event.t)
            case WeightsPublished():
                if event.step in self._finished_s:
                    record.published.setdefault(event.step, event.t - self._finished_s[event.step])
            case Evaluated():
                record.evaluations.append(event)
            case ControlEvaluated():
                record.control = event
            case RunFinished():
                record.is_finished = True
            case _:
                pass
        record.end_s = max(record.end_s, event.t)

    def close(self) -> RunRecord:
        record = self._record
        record.phases = self._phases.phases
        record.generators = self._generators.levels
        record.num_unfinished = len(self._builders)
        record.curves = _without_repetitions([Curve(p.name, p.reports) for p in record.phases if p.reports])
        return record

    # -- trees ------------------------------------------------------------------------------------------------

    def _apply_to_tree(self, event: TreeEvent) -> None:
        name = event.prompt_id
        match event:
            case PromptAdmitted():
                self._builders[name] = TreeBuilder(event.prompt)
                self._considered[name] = []
                self._versions[name] = event.version
            case GroupRefused():
                self._builders.pop(name, None)
                if name in self._grown:
                    self._grown.pop(name).is_refused = True
            case _ if name not in self._builders:
                raise JournalError(f"an event of {name}, which is not growing")
            case GroupFinished():
                self._harvest(name)
            case _:
                if isinstance(event, ForkConsidered):
                    self._considered[name].append(event)
                elif isinstance(event, ToolFinished):
                    self._add_tool_run(event)
                self._builders[name].apply(cast("AnyTreeEvent", event))

    def _harvest(self, name: str) -> None:
        builder = self._builders.pop(name)
        tree = GrownTree(
            group=builder.group(),
            paths=builder.paths,
            considered=self._considered.pop(name),
            version=self._versions.pop(name),
            num_steps=len(self._finished_s),
        )
        self._grown[name] = tree
        self._record.trees.append(tree)

    def _add_tool_run(self, event: ToolFinished) -> None:
        result = event.result
        span = Span(event.t - result.duration_s, event.t)
        self._record.tools.append(ToolRun(result.name, span, result.was_executed))


def _without_repetitions(curves: Sequence[Curve]) -> list[Curve]:
    """A process that goes on with a run tells of steps made earlier again: the first curve stays, at its longest."""
    kept: list[Curve] = []
    for curve in curves:
        earlier = next((other for other in kept if curve.repeats(other) or other.repeats(curve)), None)
        if earlier is None:
            kept.append(curve)
        else:
            earlier.reports = max(earlier.reports, curve.reports, key=len)
    return kept
