"""SpanFold: what every path, group, tool and the learner were doing, and from when to when, folded from the events.

    path     sampling -> tool -> sampling -> ... -> scoring -> (ended)
    group    growing -> buffered -> training -> (released)         refused: growing or buffered ends
    learner  waiting -> stepping -> publishing

A path samples from the moment it may ask a generator, so its spans hold the queueing and the prefill. Times are those
of the run's clock, which stands still while no process works on the run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from engine.events import (
    AnyEvent,
    BatchTaken,
    Forked,
    GroupFinished,
    GroupRefused,
    Observed,
    PathEnded,
    PathStarted,
    PromptAdmitted,
    Rewarded,
    StepFinished,
    TokensSampled,
    ToolFinished,
    ToolRequested,
    TreeEvent,
    WeightsPublished,
)

PathState = Literal["sampling", "tool", "scoring"]
GroupState = Literal["growing", "buffered", "training"]
State = Literal["sampling", "tool", "scoring", "growing", "buffered", "training"]
STATES: tuple[State, ...] = ("sampling", "tool", "scoring", "growing", "buffered", "training")


class PathSpan(NamedTuple):
    """One path did one thing. `tool` covers a call from its request to its result, queueing included."""

    prompt_id: str
    path: int
    state: PathState
    start_s: float
    end_s: float
    num_tokens: int = 0


class CallSpan(NamedTuple):
    """One call of a tool."""

    prompt_id: str
    path: int
    number: int
    """Which call of the path, from 0."""
    name: str
    outcome: str
    status: str
    start_s: float
    end_s: float


class GroupSpan(NamedTuple):
    """One group was in one state."""

    prompt_id: str
    state: GroupState
    start_s: float
    end_s: float


class LearnerSpan(NamedTuple):
    """The learner did one thing for one step."""

    step: int
    state: Literal["waiting", "stepping", "publishing"]
    start_s: float
    end_s: float


AnySpan = PathSpan | CallSpan | GroupSpan | LearnerSpan


@dataclass(slots=True)
class _Path:
    state: PathState | None
    """None when it has ended."""
    since_s: float
    num_tokens: int = 0
    calls: dict[int, tuple[str, float]] = field(default_factory=dict[int, tuple[str, float]])
    """Calls under way, by index: whose, and since when."""


@dataclass(slots=True)
class _Group:
    state: GroupState
    since_s: float
    paths: dict[int, _Path] = field(default_factory=dict[int, _Path])


class SpanFold:
    """`apply` every event; it answers with the spans that ended with it. `levels` says how many are open."""

    def __init__(self) -> None:
        self.levels: dict[State, int] = dict.fromkeys(STATES, 0)
        self.calls: dict[str, int] = {}
        """Calls under way, by tool."""
        self._groups: dict[str, _Group] = {}
        self._taken: dict[int, float] = {}
        self._finished: dict[int, float] = {}

    def apply(self, event: AnyEvent) -> list[AnySpan]:
        return list(self._apply(event))

    def _apply(self, event: AnyEvent) -> Iterator[AnySpan]:
        match event:
            case PromptAdmitted():
                self._groups[event.prompt_id] = _Group("growing", event.t)
                self.levels["growing"] += 1
            case TreeEvent() if event.prompt_id not in self._groups:
                pass
            case GroupFinished():
                yield from self._move(event.prompt_id, "buffered", event.t)
            case GroupRefused():
                yield from self._leave(event.prompt_id, event.t)
            case BatchTaken():
                self._taken[event.step] = event.t
                if event.wait_s > 0:
                    yield LearnerSpan(event.step, "waiting", max(event.t - event.wait_s, 0.0), event.t)
                for name in event.prompt_ids:
                    yield from self._move(name, "training", event.t)
            case StepFinished():
                step = event.report.step
                self._finished[step] = event.t
                start_s = self._taken.pop(step, event.t - event.report.duration_s)
                yield LearnerSpan(step, "stepping", start_s, event.t)
            case WeightsPublished():
                if event.step in self._finished:
                    yield LearnerSpan(event.step, "publishing", self._finished.pop(event.step), event.t)
                for name in event.prompt_ids:
                    yield from self._leave(name, event.t)
            case TreeEvent():
                yield from self._apply_to_path(event)
            case _:
                pass

    def state_of(self, prompt_id: str, path: int) -> PathState | None:
        """What a path does now; None for one of a group that is gone."""
        group = self._groups.get(prompt_id)
        known = None if group is None else group.paths.get(path)
        return None if known is None else known.state

    # -- groups -----------------------------------------------------------------------------------------------

    def _move(self, name: str, state: GroupState, t: float) -> Iterator[AnySpan]:
        group = self._groups.get(name)
        # A resumed learner is given a batch again that it trained before its checkpoint.
        if group is not None and group.state != state:
            yield GroupSpan(name, group.state, group.since_s, t)
            self.levels[group.state] -= 1
            self.levels[state] += 1
            group.state, group.since_s = state, t

    def _leave(self, name: str, t: float) -> Iterator[AnySpan]:
        group = self._groups.pop(name, None)
        if group is not None:
            yield GroupSpan(name, group.state, group.since_s, t)
            self.levels[group.state] -= 1
            for number in group.paths:
                yield from self._end(name, number, group.paths[number], t)

    # -- paths ------------------------------------------------------------------------------------------------

    def _apply_to_path(self, event: TreeEvent) -> Iterator[AnySpan]:
        paths, name = self._groups[event.prompt_id].paths, event.prompt_id
        match event:
            case PathStarted():
                self._begin(paths, event.path, event.t)
            case Forked():
                self._begin(paths, event.child, event.t)
            case TokensSampled():
                paths[event.path].num_tokens += event.token_ids.size
                if event.finish_reason:
                    yield from self._turn(name, event.path, "scoring", event.t)
            case ToolRequested():
                paths[event.path].calls[event.index] = event.call.name, event.t
                self.calls[event.call.name] = self.calls.get(event.call.name, 0) + 1
                yield from self._turn(name, event.path, "tool", event.t)
            case ToolFinished():
                yield from self._finish_call(name, paths[event.path], event)
            case Observed():
                yield from self._turn(name, event.path, "sampling", event.t)
            case Rewarded() | PathEnded():
                yield from self._end(name, event.path, paths[event.path], event.t)
            case _:
                pass

    def _begin(self, paths: dict[int, _Path], number: int, t: float) -> None:
        paths[number] = _Path("sampling", t)
        self.levels["sampling"] += 1

    def _turn(self, name: str, number: int, state: PathState, t: float) -> Iterator[AnySpan]:
        path = self._groups[name].paths[number]
        if path.state is None or path.state == state:
            return
        self.levels[path.state] -= 1
        self.levels[state] += 1
        if (path.state, state) == ("scoring", "tool"):  # the segment had ended in a call, as we learn now
            path.state = state
            return
        yield PathSpan(name, number, path.state, path.since_s, t, path.num_tokens)
        path.state, path.since_s, path.num_tokens = state, t, 0

    def _finish_call(self, name: str, path: _Path, event: ToolFinished) -> Iterator[AnySpan]:
        if event.index in path.calls:
            tool, since_s = path.calls.pop(event.index)
            self.calls[tool] -= 1
            result = event.result
            yield CallSpan(name, event.path, event.index, tool, result.outcome, result.status, since_s, event.t)

    def _end(self, name: str, number: int, path: _Path, t: float) -> Iterator[AnySpan]:
        if path.state is not None:
            yield PathSpan(name, number, path.state, path.since_s, t, path.num_tokens)
            self.levels[path.state] -= 1
            path.state = None
        for tool, _ in path.calls.values():
            self.calls[tool] -= 1
        path.calls.clear()
