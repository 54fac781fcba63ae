"""Entropy around tool results: how uncertain the policy is behind them, against everywhere else (ARPO, figure 1).

A token is counted once, however many paths of its tree share it. It belongs to the tool whose result came last before
it, or to the first segment, at its distance from there: 1 is the first token behind the result. What is estimated is a
mean over tokens; the intervals resample trees (see `intervals`).

Axes: G trees, D distances from 1 to `NUM_DISTANCES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.report.intervals import UNKNOWN, Estimate, Float64, estimates, ratio, resampled
from actors.report.record import GrownTree
from engine.types import Float32, NodeKind

NUM_DISTANCES = 20
MIN_TOKENS = 20
MIN_SHARE = 0.02
"""Where fewer tokens are found, or a smaller share of those at the most frequent distance, no mean is reported: the few
longest segments are no typical ones."""
FIRST_SEGMENT = ""
"""In place of a tool: tokens before any result."""


@dataclass(slots=True)
class Stretch:
    """Sampled tokens of one node; a segment is one stretch, or several where a branch starts inside it."""

    source: str
    """The tool whose result came last, or `FIRST_SEGMENT`."""
    distance: int
    """Of the first token, from 1."""
    entropies: Float32
    passed: set[str] = field(default_factory=set[str])
    """Tools whose results stand on some path through the node, before it or behind it."""


def stretches(tree: GrownTree) -> list[Stretch]:
    """The sampled nodes of a tree, each with where it lies between the tool results of its paths."""
    nodes = tree.group.tree.nodes
    found: dict[int, Stretch] = {}
    for path, trajectory in zip(tree.paths, tree.group.trajectories, strict=True):
        sources = [(path.prompt_length, FIRST_SEGMENT)]
        sources += [(m.length, path.calls[m.num_calls - 1].name) for m in path.marks if m.num_calls]
        passed = {name for _, name in sources[1:]}
        position = 0
        for index in tree.group.tree.path_to(trajectory.leaf):
            node = nodes[index]
            if node.kind is NodeKind.SAMPLED and node.token_ids.size:
                if index not in found:
                    start, name = max((s for s in sources if s[0] <= position), key=lambda s: s[0])
                    found[index] = Stretch(name, position - start + 1, node.entropies)
                found[index].passed |= passed
            position += node.token_ids.size
    return list(found.values())


def by_distance(grown: Sequence[list[Stretch]], source: str) -> list[Estimate]:
    """Mean entropy, in nats, at each of the first D places behind `source`; one list of stretches a tree.

    Unknown at a place that few segments reach (`MIN_TOKENS`, `MIN_SHARE`).
    """
    sums_GD, counts_GD = np.zeros((2, len(grown), NUM_DISTANCES))
    for row, tree in enumerate(grown):
        for stretch in tree:
            first = stretch.distance - 1
            if stretch.source == source and first < NUM_DISTANCES:
                entropies = stretch.entropies[: NUM_DISTANCES - first]
                sums_GD[row, first : first + entropies.size] += entropies
                counts_GD[row, first : first + entropies.size] += 1
    found = estimates(*resampled(*_with_tokens(sums_GD, counts_GD)))
    counts_D = counts_GD.sum(0)
    enough = counts_D >= max(MIN_TOKENS, MIN_SHARE * counts_D.max())
    return [estimate if is_enough else UNKNOWN for estimate, is_enough in zip(found, enough.tolist(), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The k tokens behind the results of one tool, or of any, against the rest of the same trajectories."""

    source: str | None
    """The tool; None for all of them together."""
    behind: Estimate
    """Mean entropy of the first k tokens behind its results, in nats."""
    elsewhere: Estimate
    """Of every other sampled token of the trajectories that hold such a result, but for the k behind other tools'."""
    ratio: Estimate
    num_behind: int
    num_elsewhere: int
    num_trees: int
    """With at least one such token."""


def contrast(grown: Sequence[list[Stretch]], source: str | None, *, probe_tokens: int) -> Contrast:
    """Entropy behind results against elsewhere, with k = `probe_tokens`; one list of stretches a tree."""
    sums_G2, counts_G2 = np.zeros((2, len(grown), 2))
    for row, tree in enumerate(grown):
        for stretch in tree:
            is_counted = bool(stretch.passed) if source is None else source in stretch.passed
            if not is_counted:
                continue
            # How many of its tokens are among the k behind the latest result.
            num_near = 0
            if stretch.source != FIRST_SEGMENT:
                num_near = min(max(probe_tokens - stretch.distance + 1, 0), stretch.entropies.size)
            if source is None or stretch.source == source:
                sums_G2[row, 0] += stretch.entropies[:num_near].sum(dtype=np.float64)
                counts_G2[row, 0] += num_near
            sums_G2[row, 1] += stretch.entropies[num_near:].sum(dtype=np.float64)
            counts_G2[row, 1] += stretch.entropies.size - num_near
    sums_G2, counts_G2 = _with_tokens(sums_G2, counts_G2)
    behind, elsewhere, quotient = ratio(sums_G2, counts_G2)
    num_behind, num_elsewhere = counts_G2.sum(0).tolist()
    return Contrast(
        source=source,
        behind=behind,
        elsewhere=elsewhere,
        ratio=quotient,
        num_behind=int(num_behind),
        num_elsewhere=int(num_elsewhere),
        num_trees=int((counts_G2[:, 0] > 0).sum()),
    )


def _with_tokens(sums_GX: Float64, counts_GX: Float64) -> tuple[Float64, Float64]:
    """Only the trees that have anything to say."""
    has_any_G = counts_GX.sum(1) > 0
    return sums_GX[has_any_G], counts_GX[has_any_G]
