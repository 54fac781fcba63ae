"""Batches of trees as trajectories: what every loss is defined on, checked on the way.

Plain numpy. Axis: T tokens of a trajectory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import LearnerError
from engine.types import Batch, Float32, Int32, Node, NodeKind, RolloutStatus, Sample
from learner.algorithms.leaf_weights import inverse_branching

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
    nodes: tuple[int, ...]
    """The path's nodes in the tree, root first: those of a sample that begin with equal nodes share their tokens."""
    node_lengths: tuple[int, ...]
    """Tokens of each node; they add up to T."""
    sample: int = 0
    """Index of the prompt in the batch."""
    leaf_weight: float = 1.0
    """By inverse branching: 1 for a path that begins at the prompt, divided by its forks; see `leaf_weights`."""

    @property
    def num_trained(self) -> int:
        return int(self.is_trained.sum())

    @classmethod
    def scored(cls, token_ids: Int32, *, sample: int = 0) -> "FlatSequence":
        """A sequence of which every token but the first is to be scored, and nothing else is known. It shares no token
        with one of another `sample`."""
        length = len(token_ids)
        zeros = np.zeros(length, np.float32)
        return cls(
            token_ids=np.asarray(token_ids, dtype=np.int32),
            is_trained=np.arange(length) > 0,
            behaviour=zeros,
            versions=np.zeros(length, np.int32),
            advantages=zeros,
            nodes=(0,),
            node_lengths=(length,),
            sample=sample,
        )


def flatten(batch: Batch) -> list[FlatSequence]:
    """Every trajectory of the batch that did not fail, in the batch's order.

    Raises `LearnerError`, naming the prompt, where arrays disagree in length or a number is not finite.
    """
    return [sequence for index, sample in enumerate(batch.samples) for sequence in _flattened(sample, index)]


def check(sample: Sample, *, max_tokens: int | None) -> None:
    """Raise `LearnerError`, naming the prompt, for a sample that `flatten` refuses, or with a longer trajectory."""
    for sequence in _flattened(sample, 0):
        if max_tokens is not None and len(sequence.token_ids) > max_tokens:
            raise LearnerError(
                f"prompt {sample.group.prompt.prompt_id}: a trajectory of {len(sequence.token_ids)} tokens, "
                f"learner.max_trajectory_tokens is {max_tokens}"
            )


def _flattened(sample: Sample, index: int) -> Iterator[FlatSequence]:
    group = sample.group
    where = f"prompt {group.prompt.prompt_id}"
    if len(sample.advantages) != len(group.trajectories):
        raise LearnerError(
            f"{where}: {len(sample.advantages)} arrays of advantages for {len(group.trajectories)} trajectories"
        )
    nodes = [_of_node(node, f"{where}, node {i}") for i, node in enumerate(group.tree.nodes)]
    weights = inverse_branching(group).tolist()
    for trajectory, advantages, weight in zip(group.trajectories, sample.advantages, weights, strict=True):
        if trajectory.status is RolloutStatus.FAILED:
            continue
        path = tuple(group.tree.path_to(trajectory.leaf))
        token_ids, is_trained, behaviour, versions = (
            np.concatenate(arrays) for arrays in zip(*(nodes[i] for i in path), strict=True)
        )
        own = f"{where}, path {trajectory.path}"
        if len(advantages) != len(token_ids):
            raise LearnerError(f"{own}: {len(token_ids)} tokens have {len(advantages)} advantages")
        if not np.isfinite(advantages).all():
            raise LearnerError(f"{own}: an advantage is not finite")
        if len(is_trained) and is_trained[0]:
            raise LearnerError(f"{own}: a sampled token has nothing before it")
        yield FlatSequence(
            token_ids=token_ids,
            is_trained=is_trained,
            behaviour=behaviour,
            versions=versions,
            advantages=np.asarray(advantages, dtype=np.float32),
            nodes=path,
            node_lengths=tuple(len(nodes[i].token_ids) for i in path),
            sample=index,
            leaf_weight=weight,
        )


class _NodeArrays(NamedTuple):
    """What a node adds to each path through it."""

    token_ids: Int32
    is_trained: Bool
    behaviour: Float32
    versions: Int32


def _of_node(node: Node, where: str) -> _NodeArrays:
    length = len(node.token_ids)
    token_ids = np.asarray(node.token_ids, dtype=np.int32)
    if node.kind is not NodeKind.SAMPLED:
        zeros = np.zeros(length, np.int32)
        return _NodeArrays(token_ids, np.zeros(length, bool), zeros.astype(np.float32), zeros)
    if not len(node.logprobs) == len(node.versions) == length:
        raise LearnerError(
            f"{where}: {length} sampled tokens have {len(node.logprobs)} log-probabilities and "
            f"{len(node.versions)} versions"
        )
    if not np.isfinite(node.logprobs).all():
        raise LearnerError(f"{where}: a log-probability is not finite")
    behaviour, versions = np.asarray(node.logprobs, dtype=np.float32), np.asarray(node.versions, dtype=np.int32)
    return _NodeArrays(token_ids, np.ones(length, bool), behaviour, versions)
