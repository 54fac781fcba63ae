"""A mini-batch becomes rows under a token budget: trees cut or flattened, balanced, in a deterministic order.

Plain numpy.
"""

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from learner.config import (
    ConstantLength,
    LeafWeighting,
    LearnerConfig,
    NormalisationConfig,
    SequenceMean,
    TokenMean,
)
from learner.packing.flatten import FlatSequence
from learner.packing.rows import Row, make_row, padded
from learner.packing.tree_pack import depth_first, divide, shared_tokens

MIN_SHARED = 0.05
"""A tree is worth its name where it saves this share of its trajectories' tokens; below, they are packed flat."""


class MiniBatch(NamedTuple):
    """The rows of one update."""

    rows: list[Row]
    """Those of one replica."""
    num_computed_tokens: int
    """Tokens of all replicas' rows."""


def plan(sequences: Sequence[FlatSequence], config: LearnerConfig, *, replica: int, num_replicas: int) -> MiniBatch:
    """The rows of one update for one replica: one at least, and together of about the size of those of any other."""
    rows = pack(
        sequences,
        budget=config.micro_batch_tokens,
        weights=loss_weights(sequences, config.normalisation, leaf_weighting=config.leaf_weighting),
        multiple=num_replicas,
        as_trees=config.packing == "tree",
    )
    shares = balance([len(r.token_ids) for r in rows], num_replicas)
    return MiniBatch([rows[i] for i in sorted(shares[replica])], sum(len(r.token_ids) for r in rows if r.members))


def loss_weights(
    sequences: Sequence[FlatSequence], config: NormalisationConfig, *, leaf_weighting: LeafWeighting = "equal"
) -> list[float]:
    """What each trained token of each sequence weighs, the sequences being a whole mini-batch.

    With 1 and 3 trained tokens: token_mean 1/4, 1/4; sequence_mean 1/2, 1/6; constant 10: 1/20, 1/20. By inverse
    branching the means are weighted ones: with leaf weights 0.5 and 1.5, sequence_mean is 1/4, 1/4.
    """
    counts = [s.num_trained for s in sequences]
    leaves = [s.leaf_weight if leaf_weighting == "inverse_branching" else 1.0 for s in sequences]
    num_tokens = sum(leaf * count for leaf, count in zip(leaves, counts, strict=True)) or 1.0
    num_sequences = sum(leaf for leaf, count in zip(leaves, counts, strict=True) if count) or 1.0
    match config:
        case TokenMean():
            return [leaf / num_tokens for leaf in leaves]
        case SequenceMean():
            return [leaf / (num_sequences * max(count, 1)) for leaf, count in zip(leaves, counts, strict=True)]
        case ConstantLength(length=length):
            return [leaf / (num_sequences * length) for leaf in leaves]


def split_minibatches(sequences: Sequence[FlatSequence], count: int) -> list[list[FlatSequence]]:
    """Contiguous shares of the prompts, at most `count`, each with something to train."""
    prompts = sorted({s.sample for s in sequences})
    shares = [set(part.tolist()) for part in np.array_split(np.array(prompts, dtype=np.int64), count)]
    minibatches = [[s for s in sequences if s.sample in share] for share in shares]
    return [m for m in minibatches if any(s.num_trained for s in m)]


def pack(
    sequences: Sequence[FlatSequence],
    *,
    budget: int,
    weights: Sequence[float] | None = None,
    multiple: int = 1,
    as_trees: bool = True,
) -> list[Row]:
    """Rows of at most `budget` tokens, as few as first-fit decreasing finds, rounded up to `multiple`, balanced.

    The trajectories of a sample share the tokens of their common nodes, unless `as_trees` is off or they share next to
    nothing. A tree beyond the budget is cut; a trajectory longer than the budget has a row of its own. Equal input
    gives equal rows. A row may be empty of members (one padding token) where `multiple` asks for more rows than there
    are trees.
    """
    trees = _trees(sequences, budget=budget) if as_trees else [[i] for i in range(len(sequences))]
    sizes = [num_unique_tokens([sequences[i] for i in tree]) for tree in trees]
    by_size = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    tight = _first_fit(by_size, sizes, budget)
    num_rows = max(-(-len(tight) // multiple) * multiple, multiple)
    balanced = balance(sizes, num_rows)
    fits = all(sum(sizes[i] for i in part) <= max(budget, sizes[part[0]]) for part in balanced if part)
    parts = balanced if fits else tight + [[] for _ in range(num_rows - len(tight))]
    weights = weights if weights is not None else [1.0] * len(sequences)
    return [padded(make_row(sequences, [trees[i] for i in sorted(part)], weights), 1) for part in parts]


def num_unique_tokens(sequences: Sequence[FlatSequence]) -> int:
    """Tokens of the tree that these trajectories of one sample span."""
    ordered = [sequences[i] for i in depth_first(sequences)]
    shared = sum(shared_tokens(a, b) for a, b in pairwise(ordered))
    return sum(len(s.token_ids) for s in ordered) - shared


def _trees(sequences: Sequence[FlatSequence], *, budget: int) -> list[list[int]]:
    """Indices of the trajectories that share a tree in one row."""
    by_sample: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_sample.setdefault(sequence.sample, []).append(index)
    trees: list[list[int]] = []
    for own in by_sample.values():
        for part in divide([sequences[i] for i in own], budget=budget):
            members = [own[i] for i in sorted(part)]
            num_flat = sum(len(sequences[i].token_ids) for i in members)
            is_tree = num_unique_tokens([sequences[i] for i in members]) <= (1 - MIN_SHARED) * num_flat
            trees += [members] if is_tree else [[i] for i in members]
    return trees


def _first_fit(by_size: list[int], sizes: list[int], budget: int) -> list[list[int]]:
    parts: list[list[int]] = []
    room: list[int] = []
    for i in by_size:
        place = next((k for k, r in enumerate(room) if r >= sizes[i]), len(parts))
        if place == len(parts):
            parts.append([])
            room.append(budget)
        parts[place].append(i)
        room[place] -= sizes[i]
    return parts


def balance(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Indices in `num_parts` parts of nearly equal sums: the largest first, each into the smallest part so far.

    >>> balance([5, 4, 3, 2], 2)
    [[0, 3], [1, 2]]
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    heap = [(0, k) for k in range(num_parts)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        total, k = heapq.heappop(heap)
        parts[k].append(i)
        heapq.heappush(heap, (total + sizes[i], k))
    return parts
