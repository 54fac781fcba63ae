"""NodeStore: the token runs that the paths of one tree share, split only where a branch starts inside one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from engine.types import Float32, Int32, Node, NodeKind

_NO_IDS = np.empty(0, np.int32)
_NO_FLOATS = np.empty(0, np.float32)


class Tipped(Protocol):
    """Whatever ends in a node: the store moves its tip when that node is split."""

    tip: int


@dataclass(slots=True)
class Run:
    """A growing run of tokens with one parent: the mutable form of `Node`."""

    index: int
    parent: int
    kind: NodeKind
    token_ids: Int32
    logprobs: Float32 = field(default_factory=lambda: _NO_FLOATS)
    entropy_low: Float32 = field(default_factory=lambda: _NO_FLOATS)
    entropy_high: Float32 = field(default_factory=lambda: _NO_FLOATS)
    versions: Int32 = field(default_factory=lambda: _NO_IDS)
    has_children: bool = False

    def cut(self, at: int, *, index: int) -> "Run":
        """Keep the tokens before `at`; return those behind as a child with this `index`."""
        tail = Run(
            index,
            self.index,
            self.kind,
            self.token_ids[at:],
            self.logprobs[at:],
            self.entropy_low[at:],
            self.entropy_high[at:],
            self.versions[at:],
            self.has_children,
        )
        self.token_ids, self.logprobs, self.versions = self.token_ids[:at], self.logprobs[:at], self.versions[:at]
        self.entropy_low, self.entropy_high = self.entropy_low[:at], self.entropy_high[:at]
        self.has_children = True
        return tail

    def freeze(self, parent: int) -> Node:
        return Node(
            parent=parent,
            kind=self.kind,
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            versions=self.versions,
            entropies=(self.entropy_low + self.entropy_high) * np.float32(0.5),
        )


class NodeStore:
    """Nodes by index; index 0 is the prompt. Paths are known only by their tips.

    `paths` is the living list of all paths of the tree, owned by the builder.
    """

    def __init__(self, prompt: Int32, *, paths: Iterable[Tipped]) -> None:
        self._runs = [Run(0, -1, NodeKind.PROMPT, prompt)]
        self._paths = paths

    def walk(self, tip: int) -> Iterator[Run]:
        """The runs from the root to `tip`."""
        chain: list[Run] = []
        while tip >= 0:
            chain.append(self._runs[tip])
            tip = self._runs[tip].parent
        return reversed(chain)

    def tail(self, path: Tipped, kind: NodeKind) -> Run:
        """The run `path` may append to: its tip where no other path shares it, else a new child of the tip."""
        tip = self._runs[path.tip]
        is_shared = tip.has_children or any(p is not path and p.tip == path.tip for p in self._paths)
        if tip.kind is kind and not is_shared:
            return tip
        tip.has_children = True
        run = Run(len(self._runs), path.tip, kind, _NO_IDS)
        self._runs.append(run)
        path.tip = run.index
        return run

    def split(self, tip: int, length: int) -> int:
        """Make a node end `length` tokens behind the root on the way to `tip`, and return it.

        Raises `ValueError` where the path is shorter.
        """
        position = 0
        for run in self.walk(tip):
            end = position + run.token_ids.size
            if length <= end:
                if length < end:
                    self._cut(run, length - position)
                return run.index
            position = end
        raise ValueError(f"no position {length} on a path of {position} tokens")

    def freeze(self) -> tuple[dict[int, int], tuple[Node, ...]]:
        """The nodes in depth-first order, parents first, and for each index its place among them.

        Siblings come in the order of the first path through them: the form depends on no timing.
        """
        first_path: dict[int, int] = {}
        for number, path in enumerate(self._paths):
            for run in self.walk(path.tip):
                first_path.setdefault(run.index, number)
        children: dict[int, list[int]] = {}
        for index in sorted(first_path, key=lambda index: first_path[index]):
            if index:
                children.setdefault(self._runs[index].parent, []).append(index)
        places: dict[int, int] = {}
        nodes: list[Node] = []
        stack = [0]
        while stack:
            run = self._runs[stack.pop()]
            places[run.index] = len(nodes)
            nodes.append(run.freeze(places[run.parent] if run.parent >= 0 else -1))
            stack.extend(reversed(children.get(run.index, [])))
        return places, tuple(nodes)

    def _cut(self, run: Run, at: int) -> None:
        """Keep the first `at` tokens in place; move the others, with all that hangs on them, to a new node."""
        tail = run.cut(at, index=len(self._runs))
        for other in self._runs:
            if other.parent == run.index:
                other.parent = tail.index
        for path in self._paths:
            if path.tip == run.index:
                path.tip = tail.index
        self._runs.append(tail)
