"""Trajectories of a tree in one row of tokens: every node once, and what each token may see.

A row is a forest. Its tokens stand depth first, so the tokens behind a node (its descendants) are one stretch of the
row, and a token j is an ancestor of i, or i itself, exactly where `j <= i < ends[j]`. The row falls into *chains*: a
chain runs from a root or from a fork to a leaf without a gap, and is causal in itself; what hangs off a chain sees the
chain up to where it forks, which is a *rectangle* of queries and keys. A tree of L leaves has at most L chains and
L - 1 rectangles, and these meet each pair of a token and its ancestor once.

Plain numpy. Axes: T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from engine.types import Int32
from learner.packing.flatten import FlatSequence


class Rectangle(NamedTuple):
    """Queries that see all of some keys: half-open stretches of a row."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Who sees whom in a row. A prompt of 2 tokens with leaves of 3 and 1: depths 0 1 2 3 4 2, ends 6 6 5 5 5 6, chains
    (0, 5) and (5, 6), one rectangle with queries (5, 6) and keys (0, 2)."""

    depths: Int32
    """[T] tokens before each one on its path."""
    ends: Int32
    """[T] where the stretch of a token and its descendants ends."""
    chains: tuple[tuple[int, int], ...]
    rectangles: tuple[Rectangle, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.depths)

    @classmethod
    def joined(cls, parts: Sequence["Structure"]) -> "Structure":
        """Forests one after another, blind to each other."""
        offsets = np.cumsum([0, *(p.num_tokens for p in parts)]).tolist()
        placed = list(zip(parts, offsets, strict=False))
        return cls(
            depths=_concatenated([p.depths for p in parts]),
            ends=_concatenated([p.ends + o for p, o in placed]),
            chains=tuple((start + o, stop + o) for p, o in placed for start, stop in p.chains),
            rectangles=tuple(Rectangle(*(x + o for x in r)) for p, o in placed for r in p.rectangles),
        )

    @classmethod
    def chain(cls, length: int) -> "Structure":
        """One sequence."""
        return cls(
            depths=np.arange(length, dtype=np.int32),
            ends=np.full(length, length, np.int32),
            chains=((0, length),) if length else (),
        )


class Placement(NamedTuple):
    """Trajectories of one tree, placed."""

    structure: Structure
    positions: tuple[Int32, ...]
    """For each trajectory as given, where in the row its tokens stand."""


def depth_first(sequences: Sequence[FlatSequence]) -> list[int]:
    """The order in which a tree's trajectories are placed: depth first, below each node the longest one first.

    With the longest first, the first chain is the longest path. Equal input gives equal order.
    """
    height: dict[int, int] = {}
    for s in sequences:
        below = 0
        for node, length in zip(reversed(s.nodes), reversed(s.node_lengths), strict=True):
            below += length
            height[node] = max(height.get(node, 0), below)
    return sorted(range(len(sequences)), key=lambda i: ([(-height[n], n) for n in sequences[i].nodes], i))


def shared_nodes(first: FlatSequence, second: FlatSequence) -> int:
    """Nodes with which both paths begin."""
    pairs = enumerate(zip(first.nodes, second.nodes, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(first.nodes), len(second.nodes)))


def shared_tokens(first: FlatSequence, second: FlatSequence) -> int:
    """Tokens with which both paths begin because their nodes are the same."""
    return sum(first.node_lengths[: shared_nodes(first, second)])


def place(sequences: Sequence[FlatSequence]) -> Placement:
    """The tree that these trajectories of one sample span, which may be a part of a larger one."""
    walk = _Walk()
    ordered = depth_first(sequences)
    for before, index in zip([None, *ordered], ordered, strict=False):
        kept = 0 if before is None else shared_nodes(sequences[before], sequences[index])
        walk.add(sequences[index], kept)
    return Placement(walk.structure(), tuple(walk.positions(s) for s in sequences))


class _Chain(NamedTuple):
    start: int
    stop: int
    parent: int
    """The chain it hangs on; -1 for one that begins at the root."""
    fork: int
    """The parent's position behind the last token that this chain sees of it."""
    depth: int


class _Walk:
    """Places trajectories in depth-first order."""

    def __init__(self) -> None:
        self._length = 0
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._owners: dict[int, int] = {}
        self._pieces: list[tuple[int, int]] = []
        self._chains: list[_Chain] = []

    def add(self, sequence: FlatSequence, kept: int) -> None:
        """Place a trajectory of which the first `kept` nodes are placed already."""
        seen = [(n, length) for n, length in zip(sequence.nodes[:kept], sequence.node_lengths, strict=False) if length]
        parent, fork = -1, 0
        if seen:
            node, length = seen[-1]
            parent, fork = self._owners[node], self._starts[node] + length
        start = self._length
        for node, length in zip(sequence.nodes[kept:], sequence.node_lengths[kept:], strict=True):
            self._starts[node], self._owners[node] = self._length, len(self._chains)
            self._pieces.append((node, length))
            self._length += length
        for node in sequence.nodes:
            self._ends[node] = self._length
        if self._length > start:
            self._chains.append(_Chain(start, self._length, parent, fork, sum(length for _, length in seen)))

    def positions(self, sequence: FlatSequence) -> Int32:
        pairs = zip(sequence.nodes, sequence.node_lengths, strict=True)
        return _concatenated(
            [np.arange(self._starts[n], self._starts[n] + length, dtype=np.int32) for n, length in pairs]
        )

    def structure(self) -> Structure:
        return Structure(
            depths=_concatenated(
                [np.arange(c.depth, c.depth + c.stop - c.start, dtype=np.int32) for c in self._chains]
            ),
            ends=_concatenated([np.full(length, self._ends[node], np.int32) for node, length in self._pieces]),
            chains=tuple((c.start, c.stop) for c in self._chains),
            rectangles=self._rectangles(),
        )

    def _rectangles(self) -> tuple[Rectangle, ...]:
        """What hangs at one place of one chain stands together, and is one rectangle."""
        stops = [c.stop for c in self._chains]
        for index in range(len(self._chains) - 1, -1, -1):
            parent = self._chains[index].parent
            if parent >= 0:
                stops[parent] = max(stops[parent], stops[index])
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for chain, stop in zip(self._chains, stops, strict=True):
            if chain.parent >= 0:
                key = (self._chains[chain.parent].start, chain.fork)
                found[key] = (found[key][0] if key in found else chain.start, stop)
        return tuple(Rectangle(*queries, *keys) for keys, queries in found.items())


def _concatenated(pieces: Sequence[Int32]) -> Int32:
    return np.concatenate([np.zeros(0, np.int32), *pieces]).astype(np.int32, copy=False)


def divide(sequences: Sequence[FlatSequence], *, budget: int) -> list[list[int]]:
    """A sample's trajectories in parts whose trees have at most `budget` tokens, as few parts as depth-first filling
    finds, and as even as it can make them.

    Each part holds whole paths, so a prefix that several parts need is computed in each. A path longer than the budget
    is a part of its own.
    """
    ordered = depth_first(sequences)
    lengths = [len(sequences[i].token_ids) for i in ordered]
    new = [lengths[0]] + [
        length - shared_tokens(sequences[a], sequences[b])
        for (a, b), length in zip(pairwise(ordered), lengths[1:], strict=True)
    ]
    parts = _filled(lengths, new, budget)
    low, high = max(1, budget // 2), budget
    while low < high:  # the smallest budget that needs no more parts makes them even
        middle = (low + high) // 2
        narrower = _filled(lengths, new, middle)
        if len(narrower) <= len(parts):
            parts, high = narrower, middle
        else:
            low = middle + 1
    return [[ordered[i] for i in part] for part in parts]


def _filled(lengths: Sequence[int], new: Sequence[int], budget: int) -> list[list[int]]:
    """Places in the order, cut where the next trajectory's new tokens do not fit any more."""
    parts: list[list[int]] = []
    filled = budget + 1
    for place_, (length, added) in enumerate(zip(lengths, new, strict=True)):
        if filled + added > budget:
            parts.append([])
            filled, added = 0, length
        parts[-1].append(place_)
        filled += added
    return parts
