"""TreeDocument: one tree as the page draws it, columns instead of objects, made from the tree's events.

`nodes` are in depth-first order, parents first; node 0 is the prompt. Tokens of sampled nodes lie one behind another in
`tokens`, in the order of the nodes; other nodes have one text each. A tree that still grows has a document too.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from actors.config import Config
from actors.credit import credit
from actors.report.pieces import CONTEXT
from actors.view.texts import Texts
from engine.errors import LearnerError
from engine.events import (
    AnyTreeEvent,
    ForkConsidered,
    Forked,
    ForkLapsed,
    ForkRanked,
    GroupFinished,
    Observed,
    PathEnded,
    PathStarted,
    PromptAdmitted,
    TokensSampled,
    ToolFinished,
    ToolRequested,
)
from engine.tree import Path, TreeBuilder
from engine.types import Node, NodeKind, Sample, TrajectoryGroup

DIGITS = 3
MAX_ARGUMENTS = 2000
KINDS = {NodeKind.PROMPT: "p", NodeKind.SAMPLED: "s", NodeKind.OBSERVED: "o"}

Columns = dict[str, list[Any]]


class TreeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one tree. Times are seconds on the clock of the run, positions are tokens from the root."""

    id: str
    question: str
    ground_truth: str
    prompt: str
    is_growing: bool
    note: str = ""
    """Why there are no advantages, where one would expect them."""
    nodes: Columns
    """`parent kind start size path t0 t1 advantage text`; `path` wrote it, `text` is empty for sampled ones."""
    tokens: Columns
    """`text entropy logprob version` of sampled tokens."""
    paths: list[dict[str, Any]]
    looks: list[dict[str, Any]]
    """Where the entropy monitor spoke, and what came of it."""
    calls: list[dict[str, Any]]


def tree_document(events: Sequence[AnyTreeEvent], *, config: Config | None, texts: Texts) -> TreeDocument:
    """`events` are those of one prompt, from its admission on."""
    admitted = events[0]
    assert isinstance(admitted, PromptAdmitted)
    times = _Times()
    builder = TreeBuilder(admitted.prompt)
    for event in events:
        builder.apply(event)
        times.apply(event, builder)
    group = builder.group()
    is_scored = any(isinstance(event, GroupFinished) for event in events)
    sample, note = _credited(group, config) if is_scored else (None, "")
    prompt = admitted.prompt
    layout = _Layout(group, builder.paths, times, sample=sample, texts=texts)
    return TreeDocument(
        id=prompt.prompt_id,
        question=prompt.question,
        ground_truth=prompt.ground_truth,
        prompt=texts.decode(prompt.token_ids),
        is_growing=not builder.is_finished,
        note=note,
        nodes=layout.nodes,
        tokens=layout.tokens,
        paths=[_path(path, group, times, sample) for path in builder.paths],
        looks=_looks(events),
        calls=times.calls,
    )


def _credited(group: TrajectoryGroup, config: Config | None) -> tuple[Sample | None, str]:
    """Its advantages: those of the group alone, without what a whole batch makes of them."""
    if config is None:
        return None, "no config.json: how it was credited is not known"
    try:
        sample = credit(group, config)
    except LearnerError as error:
        return None, str(error)
    return sample, "" if sample is not None else "no learning signal: its rewards do not differ"


class _Times:
    """When each path had come how far, and when its calls were made."""

    def __init__(self) -> None:
        self.started: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.calls: list[dict[str, Any]] = []
        self._lengths: dict[int, list[int]] = {}
        self._at: dict[int, list[float]] = {}
        self._open: dict[tuple[int, int], dict[str, Any]] = {}

    def apply(self, event: AnyTreeEvent, builder: TreeBuilder) -> None:
        match event:
            case PathStarted():
                self._begin(event.path, builder.prompt.token_ids.size, event.t)
            case Forked():
                self._begin(event.child, event.length, event.t)
            case TokensSampled() | Observed():
                self._lengths[event.path].append(builder.paths[event.path].length)
                self._at[event.path].append(event.t)
            case PathEnded():
                self.ended[event.path] = event.t
            case ToolRequested():
                arguments = msgspec.json.encode(event.call.arguments).decode()[:MAX_ARGUMENTS]
                call = {"path": event.path, "index": event.index, "name": event.call.name, "arguments": arguments}
                call |= {"t0": _rounded(event.t), "t1": None, "status": "running", "outcome": "", "duration_s": 0.0}
                call["length"] = builder.paths[event.path].length
                self._open[event.path, event.index] = call
                self.calls.append(call)
            case ToolFinished() if (event.path, event.index) in self._open:
                result = event.result
                self._open.pop((event.path, event.index)).update(
                    t1=_rounded(event.t),
                    status=result.status,
                    outcome=result.outcome,
                    duration_s=_rounded(result.duration_s),
                )
            case _:
                pass

    def when(self, path: int, length: int) -> float:
        """When a path had reached a length."""
        lengths = self._lengths[path]
        return self._at[path][min(bisect_left(lengths, length), len(lengths) - 1)]

    def _begin(self, path: int, length: int, t: float) -> None:
        self.started[path] = t
        self._lengths[path], self._at[path] = [length], [t]


class _Layout:
    """The columns of all nodes and tokens."""

    def __init__(
        self, group: TrajectoryGroup, paths: Sequence[Path], times: _Times, *, sample: Sample | None, texts: Texts
    ) -> None:
        self._nodes = group.tree.nodes
        self._texts = texts
        self._starts = [0] * len(self._nodes)
        for index, node in enumerate(self._nodes[1:], start=1):
            self._starts[index] = self._starts[node.parent] + self._nodes[node.parent].token_ids.size
        first_path = [-1] * len(self._nodes)
        credits: list[list[float]] = [[] for _ in self._nodes]
        for number, trajectory in enumerate(group.trajectories):
            for index in group.tree.path_to(trajectory.leaf):
                if first_path[index] < 0:
                    first_path[index] = trajectory.path
                if sample is not None and self._nodes[index].kind is NodeKind.SAMPLED:
                    start = self._starts[index]
                    credits[index].append(
                        float(sample.advantages[number][start : start + self._nodes[index].token_ids.size].mean())
                    )
        self.nodes: Columns = {
            name: [] for name in ("parent", "kind", "start", "size", "path", "t0", "t1", "advantage", "text")
        }
        self.tokens: Columns = {name: [] for name in ("text", "entropy", "logprob", "version")}
        for index, node in enumerate(self._nodes):
            self._add(index, node, first_path[index], times, credits[index])

    def _add(self, index: int, node: Node, path: int, times: _Times, credits: list[float]) -> None:
        start, size = self._starts[index], node.token_ids.size
        t0, t1 = (0.0, 0.0) if not index or path < 0 else (times.when(path, start), times.when(path, start + size))
        row: dict[str, Any] = {
            "parent": node.parent,
            "kind": KINDS[node.kind],
            "start": start,
            "size": size,
            "path": path,
        }
        row |= {"t0": _rounded(t0), "t1": _rounded(t1)}
        row["advantage"] = _rounded(sum(credits) / len(credits)) if credits else None
        row["text"] = self._texts.decode(node.token_ids) if node.kind is NodeKind.OBSERVED else ""
        for name, value in row.items():
            self.nodes[name].append(value)
        if node.kind is NodeKind.SAMPLED:
            self.tokens["text"] += self._texts.pieces(self._before(index), node.token_ids)
            self.tokens["entropy"] += np.round(node.entropies.astype(np.float64), DIGITS).tolist()
            self.tokens["logprob"] += np.round(node.logprobs.astype(np.float64), DIGITS).tolist()
            self.tokens["version"] += node.versions.tolist()

    def _before(self, index: int) -> Any:
        """Some tokens in front of a node, enough for the text of its first one."""
        parts: list[Any] = []
        parent = self._nodes[index].parent
        while parent >= 0 and sum(part.size for part in parts) < CONTEXT:
            parts.append(self._nodes[parent].token_ids[-CONTEXT:])
            parent = self._nodes[parent].parent
        return np.concatenate([np.empty(0, np.int32), *parts[::-1]])


def _path(path: Path, group: TrajectoryGroup, times: _Times, sample: Sample | None) -> dict[str, Any]:
    trajectory, reward = group.trajectories[path.number], path.reward
    given = np.empty(0) if sample is None else sample.advantages[path.number]
    own = given[np.flatnonzero(given)]
    return {
        "number": path.number,
        "leaf": trajectory.leaf,
        "from": path.forked_from,
        "at": path.fork_length,
        "is_supplement": path.is_supplement,
        "status": "growing" if path.status is None else path.status.value,
        "detail": path.detail,
        "reward": None if reward is None else reward.score,
        "is_correct": None if reward is None else reward.is_correct,
        "reason": "" if reward is None else reward.reason,
        "components": {} if reward is None else reward.components,
        "advantage": None if sample is None else _rounded(float(own[-1])) if own.size else 0.0,
        "t0": _rounded(times.started[path.number]),
        "t1": None if path.number not in times.ended else _rounded(times.ended[path.number]),
    }


def _looks(events: Sequence[AnyTreeEvent]) -> list[dict[str, Any]]:
    """What the monitor saw, and its `fate`: `granted`, `lapsed`, `waiting` (wanted, not granted so far), `declined`."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for event in events:
        match event:
            case ForkConsidered():
                found[event.path, event.length] = {
                    "path": event.path,
                    "length": event.length,
                    "observation": event.observation,
                    "entropy": _rounded((event.entropy_low + event.entropy_high) / 2),
                    "entropy_width": _rounded(event.entropy_high - event.entropy_low),
                    "baseline": _rounded(event.baseline),
                    "score": _rounded(event.score),
                    "coin": _rounded(event.coin),
                    "fate": "waiting" if event.is_wanted else "declined",
                    "place": None,
                    "children": [],
                }
            case ForkRanked() if (event.path, event.length) in found:
                found[event.path, event.length]["place"] = event.place
            case ForkLapsed() if (event.path, event.length) in found:
                found[event.path, event.length]["fate"] = "lapsed"
            case Forked() if (event.path, event.length) in found:
                found[event.path, event.length]["fate"] = "granted"
                found[event.path, event.length]["children"].append(event.child)
            case _:
                pass
    return list(found.values())


def _rounded(value: float) -> float:
    return round(value, 4)
