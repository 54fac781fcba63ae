"""Trees become packed rows: the flat form of a batch, cut to a token budget, balanced, in a deterministic order.

Plain numpy. Axes: T tokens of a sequence or of a row, N trained tokens of a row, in the order of their row.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.errors import LearnerError
from engine.types import Batch, Float32, Int32, NodeKind, RolloutStatus, Sample, Trajectory
from learner.config import ConstantLength, NormalisationConfig, SequenceMean, TokenMean

Bool = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class FlatSequence:
    """One trajectory without its tree; all arrays are [T]."""

    token_ids: Int32
    is_trained: Bool
    """True at sampled tokens of a trajectory that did not fail."""
    behaviour: Float32
    """Behaviour log-probabilities; 0 where not sampled."""
    versions: Int32
    advantages: Float32
    sample: int = 0
    """Index of the prompt in the batch."""

    @property
    def num_trained(self) -> int:
        return int(self.is_trained.sum())

    @classmethod
    def scored(cls, token_ids: Int32) -> "FlatSequence":
        """A sequence of which every token but the first is to be scored, and nothing else is known."""
        length = len(token_ids)
        zeros = np.zeros(length, np.float32)
        return cls(
            token_ids=np.asarray(token_ids, dtype=np.int32),
            is_trained=np.arange(length) > 0,
            behaviour=zeros,
            versions=np.zeros(length, np.int32),
            advantages=zeros,
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """Sequences packed one after another: what goes through the model at once."""

    token_ids: Int32
    """[T]"""
    lengths: tuple[int, ...]
    """Of the packed sequences, padding included as a last one."""
    members: tuple[int, ...]
    """Which sequences they are, without the padding."""
    counts: tuple[int, ...]
    """Trained tokens of each member."""
    predictors: Int32
    """[N] index in the row of the token before the trained one."""
    targets: Int32
    """[N] the trained tokens."""
    behaviour: Float32
    advantages: Float32
    weights: NDArray[np.float64]
    """[N] what the normalisation gives each token's loss; they hold the whole mini-batch's denominator."""

    def split(self, values: NDArray[np.floating]) -> Iterator[tuple[int, Int32, NDArray[np.floating]]]:
        """[N] values as (sequence, positions of its trained tokens, their values)."""
        start = 0
        offsets = np.cumsum((0, *self.lengths))
        for member, offset, count in zip(self.members, offsets, self.counts, strict=False):
            stop = start + count
            yield member, (self.predictors[start:stop] - offset + 1).astype(np.int32), values[start:stop]
            start = stop


def flatten(batch: Batch) -> list[FlatSequence]:
    """Every trajectory of the batch that did not fail, in the batch's order.

    Raises `LearnerError`, naming the prompt, where arrays disagree in length or a number is not finite.
    """
    return [
        _flatten_trajectory(sample, trajectory, advantages, index)
        for index, sample in enumerate(batch.samples)
        for trajectory, advantages in zip(sample.group.trajectories, _checked_advantages(sample), strict=True)
        if trajectory.status is not RolloutStatus.FAILED
    ]


def _checked_advantages(sample: Sample) -> tuple[Float32, ...]:
    if len(sample.advantages) != len(sample.group.trajectories):
        raise LearnerError(
            f"prompt {sample.group.prompt.prompt_id}: {len(sample.advantages)} arrays of advantages for "
            f"{len(sample.group.trajectories)} trajectories"
        )
    return sample.advantages


def _flatten_trajectory(sample: Sample, trajectory: Trajectory, advantages: Float32, index: int) -> FlatSequence:
    tree = sample.group.tree
    nodes = [tree.nodes[i] for i in tree.path_to(trajectory.leaf)]
    where = f"prompt {sample.group.prompt.prompt_id}, path {trajectory.path}"
    for node in nodes:
        length = len(node.token_ids)
        if node.kind is NodeKind.SAMPLED and not len(node.logprobs) == len(node.versions) == length:
            raise LearnerError(
                f"{where}: {length} sampled tokens have {len(node.logprobs)} log-probabilities and "
                f"{len(node.versions)} versions"
            )
    is_sampled = [node.kind is NodeKind.SAMPLED for node in nodes]

    def spread(values: list[NDArray[np.generic]], dtype: type) -> NDArray[np.generic]:
        return np.concatenate(
            [
                np.asarray(v, dtype=dtype) if sampled else np.zeros(len(n.token_ids), dtype)
                for v, n, sampled in zip(values, nodes, is_sampled, strict=True)
            ]
        )

    sequence = FlatSequence(
        token_ids=np.concatenate([n.token_ids for n in nodes]).astype(np.int32, copy=False),
        is_trained=np.concatenate([np.full(len(n.token_ids), s) for n, s in zip(nodes, is_sampled, strict=True)]),
        behaviour=spread([n.logprobs for n in nodes], np.float32),
        versions=spread([n.versions for n in nodes], np.int32),
        advantages=np.asarray(advantages, dtype=np.float32),
        sample=index,
    )
    if len(sequence.advantages) != len(sequence.token_ids):
        raise LearnerError(f"{where}: {len(sequence.token_ids)} tokens have {len(sequence.advantages)} advantages")
    if len(sequence.is_trained) and sequence.is_trained[0]:
        raise LearnerError(f"{where}: a sampled token has nothing before it")
    for name, values in (("log-probability", sequence.behaviour), ("advantage", sequence.advantages)):
        if not np.isfinite(values).all():
            raise LearnerError(f"{where}: a {name} is not finite")
    return sequence


def loss_weights(sequences: Sequence[FlatSequence], config: NormalisationConfig) -> list[float]:
    """What each trained token of each sequence weighs, the sequences being a whole mini-batch.

    With 1 and 3 trained tokens: token_mean 1/4, 1/4; sequence_mean 1/2, 1/6; constant 10: 1/20, 1/20.
    """
    counts = [s.num_trained for s in sequences]
    num_sequences = sum(count > 0 for count in counts)
    match config:
        case TokenMean():
            return [1 / max(sum(counts), 1)] * len(counts)
        case SequenceMean():
            return [1 / (num_sequences * count) if count else 0.0 for count in counts]
        case ConstantLength(length=length):
            return [1 / (num_sequences * length) if count else 0.0 for count in counts]


def split_minibatches(sequences: Sequence[FlatSequence], count: int) -> list[list[FlatSequence]]:
    """Contiguous shares of the prompts, at most `count`, each with something to train."""
    prompts = sorted({s.sample for s in sequences})
    shares = [set(part.tolist()) for part in np.array_split(np.array(prompts, dtype=np.int64), count)]
    minibatches = [[s for s in sequences if s.sample in share] for share in shares]
    return [m for m in minibatches if any(s.num_trained for s in m)]


def pack(
    sequences: Sequence[FlatSequence], *, budget: int, weights: Sequence[float] | None = None, multiple: int = 1
) -> list[Row]:
    """Rows of at most `budget` tokens, as few as first-fit decreasing finds, rounded up to `multiple`, balanced.

    A sequence longer than the budget has a row of its own. Inside a row, sequences keep their order; equal input
    gives equal rows. A row may be empty of members (one padding token) where `multiple` asks for more rows than there
    are sequences.
    """
    lengths = [len(s.token_ids) for s in sequences]
    by_size = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    tight = _first_fit(by_size, lengths, budget)
    num_rows = max(-(-len(tight) // multiple) * multiple, multiple)
    balanced = balance(lengths, num_rows)
    fits = all(sum(lengths[i] for i in part) <= max(budget, lengths[part[0]]) for part in balanced if part)
    parts = balanced if fits else tight + [[] for _ in range(num_rows - len(tight))]
    weights = weights if weights is not None else [1.0] * len(sequences)
    return [_row(sequences, sorted(part), weights) for part in parts]


def _first_fit(by_size: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    parts: list[list[int]] = []
    room: list[int] = []
    for i in by_size:
        place = next((k for k, r in enumerate(room) if r >= lengths[i]), len(parts))
        if place == len(parts):
            parts.append([])
            room.append(budget)
        parts[place].append(i)
        room[place] -= lengths[i]
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


def _row(sequences: Sequence[FlatSequence], members: list[int], weights: Sequence[float]) -> Row:
    chosen = [sequences[i] for i in members]
    lengths = tuple(len(s.token_ids) for s in chosen)
    offsets = np.cumsum((0, *lengths))[:-1]
    trained = [np.flatnonzero(s.is_trained) for s in chosen]
    counts = tuple(len(t) for t in trained)

    def joined(pieces: list[NDArray[np.generic]], dtype: type) -> NDArray[np.generic]:
        return np.concatenate([np.zeros(0, dtype), *pieces]).astype(dtype, copy=False)

    row = Row(
        token_ids=joined([s.token_ids for s in chosen], np.int32),
        lengths=lengths,
        members=tuple(members),
        counts=counts,
        predictors=joined([o + t - 1 for o, t in zip(offsets, trained, strict=True)], np.int32),
        targets=joined([s.token_ids[t] for s, t in zip(chosen, trained, strict=True)], np.int32),
        behaviour=joined([s.behaviour[t] for s, t in zip(chosen, trained, strict=True)], np.float32),
        advantages=joined([s.advantages[t] for s, t in zip(chosen, trained, strict=True)], np.float32),
        weights=np.repeat(np.array([weights[i] for i in members], np.float64), counts),
    )
    return row if members else padded(row, 1)


def padded(row: Row, length: int) -> Row:
    """The row with a last, untrained sequence of token 0 that makes it `length` long; longer rows stay as they are."""
    missing = length - len(row.token_ids)
    if missing <= 0:
        return row
    return replace(
        row,
        token_ids=np.concatenate((row.token_ids, np.zeros(missing, np.int32))),
        lengths=(*row.lengths, missing),
    )
