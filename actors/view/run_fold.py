"""RunFold: everything about a run but the texts of its trees, and what of it changed when."""

from typing import Any

import msgspec

from actors.report.generators import GeneratorsFold
from actors.view.activity import Activity
from actors.view.feed import Feed
from actors.view.spans import AnySpan, GroupSpan, LearnerSpan, PathSpan, SpanFold
from actors.view.tail import Place
from actors.view.tool_fold import ToolFold
from actors.view.tree_rows import Growth, TreeRow
from engine.events import (
    AnyEvent,
    AnyTreeEvent,
    BatchTaken,
    ControlEvaluated,
    Evaluated,
    PromptAdmitted,
    RunFinished,
    RunStarted,
    SupervisedStep,
    TreeEvent,
    WeightsPublished,
)
from engine.metrics import MetricsFold, StepMetrics
from engine.phases import PhaseFold

MAX_TREES = 5_000
"""Rows that a page is sent; every tree can be opened by its name."""
MAX_POINTS = 20_000
"""Of each kind of point in time."""


class RunFold:
    """`apply` every event, with where it lies and the revision that it belongs to; revisions never fall."""

    def __init__(self) -> None:
        self.is_finished = False
        self.t = 0.0
        self.tools = ToolFold()
        self.activity = Activity()
        self._spans = SpanFold()
        self._metrics = MetricsFold()
        self._phases = PhaseFold()
        self._generators = GeneratorsFold()
        self._growths: dict[str, Growth] = {}
        self._num_starts = 0
        self._num_supervised = 0
        self._control: ControlEvaluated | None = None
        self._feeds: dict[str, Feed[Any, Any]] = {
            "steps": Feed[int, StepMetrics](limit=MAX_POINTS),
            "evaluations": Feed[int, dict[str, Any]](limit=MAX_POINTS),
            "supervised": Feed[int, dict[str, Any]](limit=MAX_POINTS),
            "learner": Feed[tuple[int, str], LearnerSpan](limit=MAX_POINTS),
            "generators": Feed[int, dict[str, Any]](limit=MAX_POINTS),
            "trees": Feed[str, TreeRow](limit=MAX_TREES),
        }

    def apply(self, event: AnyEvent, place: Place, *, revision: int) -> list[AnySpan]:
        """Take the next event; returns the spans that ended with it."""
        self.activity.advance(event.t, self._levels(), revision=revision)
        self.t = max(self.t, event.t)
        spans = self._spans.apply(event)
        for span in spans:
            self._add_span(span, revision)
        self._phases.apply(event)
        self.tools.apply(event, revision=revision)
        if (row := self._metrics.apply(event)) is not None:
            self._put("steps", row.step, row, revision)
        self._measure(event, revision)
        match event:
            case RunStarted():
                self._num_starts += 1
            case Evaluated():
                point = {"step": event.step, "version": event.version, "t": event.t, "metrics": event.metrics}
                self._put("evaluations", event.step, point, revision)
            case ControlEvaluated():
                self._control = event
            case SupervisedStep():
                self._add_supervised(event, revision)
            case RunFinished():
                self.is_finished = True
            case TreeEvent() | BatchTaken() | WeightsPublished():
                self._apply_to_trees(event, place, revision)
            case _:
                pass
        return spans

    def header(self) -> dict[str, Any]:
        """The state of the run as a whole."""
        phases = self._phases.phases
        last = phases[-1] if phases else None
        trees = self._feeds["trees"]
        return {
            "t": round(self.t, 3),
            "num_starts": self._num_starts,
            "phase": None if last is None else {"name": last.name, "total": last.total, "num": len(last.reports)},
            "phases": [
                {"name": phase.name, "start_s": round(phase.start_s, 3), "end_s": round(phase.end_s, 3)}
                for phase in phases
            ],
            "control": None if self._control is None else self._control.metrics,
            "num_trees": len(self._growths),
            "num_listed": len(trees),
            "levels": dict(self._spans.levels),
            "calls": {name: number for name, number in self._spans.calls.items() if number},
            "requested": self._metrics.num_tool_calls_requested,
            "executed": self._metrics.num_tool_calls_executed,
        }

    def changes(self, since: int) -> dict[str, Any]:
        """What changed behind a revision, by kind; kinds in which nothing changed are left out."""
        found: dict[str, Any] = {name: values for name, feed in self._feeds.items() if (values := feed.since(since))}
        if self.tools.revision > since and self.tools.table.tools:
            found["tools"] = self.tools.table
        if (bins := self.activity.changes(since)) is not None:
            found["activity"] = bins
        return {name: msgspec.to_builtins(value) for name, value in found.items()}

    def places_of(self, prompt_id: str) -> list[Place]:
        """Where the events of a tree lie; empty for one that is not known."""
        growth = self._growths.get(prompt_id)
        return [] if growth is None else growth.places

    @property
    def rows(self) -> list[TreeRow]:
        """Of all trees, in the order of admission."""
        return [growth.row for growth in self._growths.values()]

    # -- inside -----------------------------------------------------------------------------------------------

    def _levels(self) -> dict[str, int]:
        calls = {f"tool:{name}": number for name, number in self._spans.calls.items() if number}
        return {**self._spans.levels, **calls}

    def _put(self, feed: str, key: Any, value: Any, revision: int) -> None:
        self._feeds[feed].put(key, value, revision=revision)

    def _add_span(self, span: AnySpan, revision: int) -> None:
        match span:
            case LearnerSpan():
                self._put("learner", (span.step, span.state), span, revision)
            case PathSpan() | GroupSpan():
                self._growths[span.prompt_id].add_span(span)
            case _:
                pass

    def _measure(self, event: AnyEvent, revision: int) -> None:
        known = len(self._generators.levels)
        self._generators.apply(event)
        for number, level in enumerate(self._generators.levels[known:], start=known):
            point = {"t": level.t, "busy_s": level.busy_s, "num_sampled_tokens": level.num_sampled_tokens}
            self._put("generators", number, point, revision)

    def _add_supervised(self, event: SupervisedStep, revision: int) -> None:
        phases = self._phases.phases
        point = {"phase": phases[-1].name if phases else "", "number": len(phases), "t": event.t}
        point |= {"step": event.report.step, "loss": event.report.loss}
        self._num_supervised += 1
        self._put("supervised", self._num_supervised, point, revision)

    def _apply_to_trees(self, event: AnyTreeEvent | BatchTaken | WeightsPublished, place: Place, revision: int) -> None:
        names = event.prompt_ids if isinstance(event, BatchTaken | WeightsPublished) else (event.prompt_id,)
        if isinstance(event, PromptAdmitted):
            self._growths[event.prompt_id] = Growth(event)
        for name in names:
            growth = self._growths[name]
            match event:
                case BatchTaken():
                    growth.take(event)
                case WeightsPublished():
                    growth.release(event)
                case _:
                    growth.add_place(place)
                    growth.apply(event)
            self._put("trees", name, growth.row, revision)
