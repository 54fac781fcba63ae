"""NodeStore: the token runs that the paths of one tree share, split only where a branch starts inside one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from engine.types import Float32, Int32, Node, NodeKind

_NO_IDS = np.empty(0, np.int32)
_NO_FLOATS = np.empty(0, np.float32)


class Piece(NamedTuple):
    """Some tokens of a run, in order. For those that were not sampled the other arrays are empty."""

    token_ids: Int32
    logprobs: Float32 = _NO_FLOATS
    entropy_low: Float32 = _NO_FLOATS
    entropy_high: Float32 = _NO_FLOATS
    versions: Int32 = _NO_IDS

    def part(self, where: slice) -> "Piece":
        return Piece(
            self.token_ids[where],
            self.logprobs[where],
            self.entropy_low[where],
            self.entropy_high[where],
            self.versions[where],
        )


def _join(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        np.concatenate([piece.token_ids for piece in pieces]),
        np.concatenate([piece.logprobs for piece in pieces]),
        np.concatenate([piece.entropy_low for piece in pieces]),
        np.concatenate([piece.entropy_high for piece in pieces]),
        np.concatenate([piece.versions for piece in pieces]),
    )


class Tipped(Protocol):
    """Whatever ends in a node: the store moves its tip when that node is split."""

    tip: int


@dataclass(slots=True)
class Run:
    """A growing run of tokens with one parent: the mutable form of `Node`."""

    index: int
    parent: int
    kind: NodeKind
    pieces: list[Piece] = field(default_factory=list[Piece])
    size: int = 0
    """Tokens."""
    is_closed: bool = False
    """It has a child, or a path began at its end: whoever goes on from there does so in a run of its own."""

    def append(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.size += piece.token_ids.size

    @property
    def whole(self) -> Piece:
        """All of it; put together when somebody asks, and not with each of many small pieces."""
        if len(self.pieces) != 1:
            self.pieces = [_join(self.pieces)]
        return self.pieces[0]

    def cut(self, at: int, *, index: int) -> "Run":
        """Keep the tokens before `at`; return those behind as a child with this `index`."""
        whole = self.whole
        tail = Run(index, self.index, self.kind, [whole.part(slice(at, None))], self.size - at, self.is_closed)
        self.pieces, self.size, self.is_closed = [whole.part(slice(at))], at, True
        return tail

    def freeze(self, parent: int) -> Node:
        tokens = self.whole
        return Node(
            parent=parent,
            kind=self.kind,
            token_ids=tokens.token_ids,
            logprobs=tokens.logprobs,
            versions=tokens.versions,
            entropies=(tokens.entropy_low + tokens.entropy_high) * np.float32(0.5),
        )


class NodeStore:
    """Nodes by index; index 0 is the prompt. Paths are known only by their tips.

    `paths` is the living list of all paths of the tree, owned by the builder.
    """

    def __init__(self, prompt: Int32, *, paths: Iterable[Tipped]) -> None:
        self._runs = [Run(0, -1, NodeKind.PROMPT, [Piece(prompt)], prompt.size)]
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
        if tip.kind is kind and not tip.is_closed:
            return tip
        tip.is_closed = True
        run = Run(len(self._runs), path.tip, kind)
        self._runs.append(run)
        path.tip = run.index
        return run

    def split(self, tip: int, length: int) -> int:
        """Make a node end `length` tokens behind the root on the way to `tip`, and return it: a path begins there.

        Raises `ValueError` where the path is shorter.
        """
        position = 0
        for run in self.walk(tip):
            end = position + run.size
            if length <= end:
                if length < end:
                    self._cut(run, length - position)
                run.is_closed = True
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
