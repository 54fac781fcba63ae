"""Batches of trees as trajectories: what every loss is defined on, checked on the way.

Plain numpy. Axis: T tokens of a trajectory.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import LearnerError
from engine.types import Batch, Float32, Int32, NodeKind, RolloutStatus, Sample, Trajectory

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
    path = tree.path_to(trajectory.leaf)
    nodes = [tree.nodes[i] for i in path]
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
        nodes=tuple(path),
        node_lengths=tuple(len(n.token_ids) for n in nodes),
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
