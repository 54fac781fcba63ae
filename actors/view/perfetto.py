"""Perfetto: a run as trace events (JSON), for ui.perfetto.dev or chrome://tracing.

| process    | a thread each                                     | arrows                                    |
|------------|---------------------------------------------------|-------------------------------------------|
| learner    | waiting, stepping, publishing                     | from the group that ended a wait          |
| groups     | slots of the buffer: growing, buffered, training  |                                           |
| paths      | lanes: sampling, tool, scoring                    |                                           |
| tools      | lanes of each tool: one slice a call              |                                           |

A lane is used again when what was on it has ended, so there are as many as there were at once. Counters say how many of
each kind there were, and what each step came to. Times are microseconds on the clock of the run.
"""

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from actors.view.spans import AnySpan, CallSpan, GroupSpan, LearnerSpan, PathSpan, SpanFold, State
from engine.events import AnyEvent, BatchTaken, GroupFinished
from engine.metrics import MetricsFold, StepMetrics

LEARNER, GROUPS, PATHS, TOOLS = 1, 2, 3, 4
_COUNTED = ("reward", "success", "staleness", "kl_rollout")
PATH_LEVELS: tuple[State, ...] = ("sampling", "tool", "scoring")
GROUP_LEVELS: tuple[State, ...] = ("growing", "buffered", "training")
COUNTER_S = 0.01
"""Between two readings of a counter; closer ones would be most of the trace, and no wider than a pixel."""
_ENCODER = msgspec.json.Encoder()

Trace = dict[str, Any]
"""One trace event."""


class _Wait(NamedTuple):
    """The learner waited for a batch until this group, the last one of it, was finished."""

    step: int
    prompt_id: str
    finished_s: float
    taken_s: float


class _Lanes:
    """Puts intervals, given by their starts in order, on the first lane that is free."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._busy: list[tuple[float, int]] = []
        self.num_lanes = 0

    def place(self, start_s: float, end_s: float) -> int:
        while self._busy and self._busy[0][0] <= start_s:
            heapq.heappush(self._free, heapq.heappop(self._busy)[1])
        if self._free:
            lane = heapq.heappop(self._free)
        else:
            lane, self.num_lanes = self.num_lanes, self.num_lanes + 1
        heapq.heappush(self._busy, (end_s, lane))
        return lane


def trace_events(events: Iterable[AnyEvent], *, name: str) -> Iterator[Trace]:
    """The trace of a run; what is open when its journal ends is left out."""
    for number, title in ((LEARNER, "learner"), (GROUPS, "groups"), (PATHS, "paths"), (TOOLS, "tools")):
        yield {"ph": "M", "name": "process_name", "pid": number, "args": {"name": f"{title} · {name}"}}
        yield {"ph": "M", "name": "process_sort_index", "pid": number, "args": {"sort_index": number}}
    fold, metrics, finished = SpanFold(), MetricsFold(), dict[str, float]()
    spans: list[AnySpan] = []
    waits: list[_Wait] = []
    levels, told_s = dict[State, int](), float("-inf")
    for event in events:
        spans += fold.apply(event)
        if (row := metrics.apply(event)) is not None:
            yield from _counters(row)
        if levels != fold.levels and event.t >= told_s + COUNTER_S:
            levels, told_s = dict(fold.levels), event.t
            yield {"ph": "C", "name": "paths", "pid": PATHS, "ts": _us(event.t), "args": _of(levels, PATH_LEVELS)}
            yield {"ph": "C", "name": "groups", "pid": GROUPS, "ts": _us(event.t), "args": _of(levels, GROUP_LEVELS)}
        match event:
            case GroupFinished():
                finished[event.prompt_id] = event.t
            case BatchTaken() if event.wait_s > 0 and (known := [n for n in event.prompt_ids if n in finished]):
                last = max(known, key=lambda name: finished[name])
                waits.append(_Wait(event.step, last, finished[last], event.t))
            case _:
                pass
    yield from _slices(spans, waits)


def write_perfetto(target: Path, events: Iterable[AnyEvent], *, name: str) -> int:
    """Write the trace to a file, event by event; returns how many there are."""
    count = 0
    with target.open("wb") as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
        for count, event in enumerate(trace_events(events, name=name), start=1):
            file.write((b",\n" if count > 1 else b"\n") + _ENCODER.encode(event))
        file.write(b"\n]}\n")
    return count


def _slices(spans: list[AnySpan], waits: list[_Wait]) -> Iterator[Trace]:
    """The slices of all spans, each on a lane of its process, and the names of the lanes."""
    groups = _whole_groups(spans)
    paths, calls = _Lanes(), dict[str, _Lanes]()
    first_thread: dict[str, int] = {}
    lane_of: dict[tuple[str, int], int] = {}
    ends = _path_ends(spans)
    for span in sorted(spans, key=lambda span: (span.start_s, span.end_s)):
        match span:
            case LearnerSpan():
                yield _slice(span.state, LEARNER, 0, span, {"step": span.step})
            case GroupSpan():
                yield _slice(span.prompt_id, GROUPS, groups[span.prompt_id], span, {"state": span.state})
            case PathSpan():
                key = span.prompt_id, span.path
                if key not in lane_of:
                    lane_of[key] = paths.place(span.start_s, ends[key])
                about = {"prompt": span.prompt_id, "path": span.path, "tokens": span.num_tokens}
                yield _slice(span.state, PATHS, lane_of[key], span, about)
            case CallSpan():
                lanes = calls.setdefault(span.name, _Lanes())
                thread = first_thread.setdefault(span.name, 1000 * len(first_thread))
                lane = thread + min(lanes.place(span.start_s, span.end_s), 999)
                about = {"prompt": span.prompt_id, "path": span.path, "outcome": span.outcome, "status": span.status}
                yield _slice(span.name, TOOLS, lane, span, about)
    for wait in waits:
        if wait.prompt_id in groups:
            yield from _arrow(wait, groups[wait.prompt_id])
    yield _thread(LEARNER, 0, "learner")
    for name, thread in first_thread.items():
        for lane in range(min(calls[name].num_lanes, 1000)):
            yield _thread(TOOLS, thread + lane, name)
    for lane in range(paths.num_lanes):
        yield _thread(PATHS, lane, f"path lane {lane}")
    for lane in range(max(groups.values(), default=-1) + 1):
        yield _thread(GROUPS, lane, f"slot {lane}")


def _whole_groups(spans: list[AnySpan]) -> dict[str, int]:
    """A slot for each group, from its first span to its last."""
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    for span in spans:
        if isinstance(span, GroupSpan):
            starts[span.prompt_id] = min(starts.get(span.prompt_id, span.start_s), span.start_s)
            ends[span.prompt_id] = max(ends.get(span.prompt_id, span.end_s), span.end_s)
    lanes = _Lanes()
    return {name: lanes.place(starts[name], ends[name]) for name in sorted(starts, key=lambda name: starts[name])}


def _path_ends(spans: list[AnySpan]) -> dict[tuple[str, int], float]:
    ends: dict[tuple[str, int], float] = {}
    for span in spans:
        if isinstance(span, PathSpan):
            key = span.prompt_id, span.path
            ends[key] = max(ends.get(key, span.end_s), span.end_s)
    return ends


def _slice(name: str, process: int, thread: int, span: AnySpan, about: Trace) -> Trace:
    start, end = _us(span.start_s), _us(span.end_s)
    return {"ph": "X", "name": name, "pid": process, "tid": thread, "ts": start, "dur": end - start, "args": about}


def _thread(process: int, thread: int, name: str) -> Trace:
    return {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": name}}


def _arrow(wait: _Wait, slot: int) -> Iterator[Trace]:
    """From the end of a group's growth to the step that begins with it."""
    about = {"name": "ends the wait", "cat": "wait", "id": wait.step}
    # Binds to the slice it lies in: the last microsecond of one, the first of the other.
    yield {"ph": "s", "pid": GROUPS, "tid": slot, "ts": _us(wait.finished_s) - 1, **about}
    yield {"ph": "f", "bp": "e", "pid": LEARNER, "tid": 0, "ts": _us(wait.taken_s), **about}


def _counters(row: StepMetrics) -> Iterator[Trace]:
    for name in _COUNTED:
        yield {"ph": "C", "name": name, "pid": LEARNER, "ts": _us(row.t), "args": {name: getattr(row, name)}}


def _of(levels: dict[State, int], names: tuple[State, ...]) -> dict[State, int]:
    return {name: levels[name] for name in names}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
