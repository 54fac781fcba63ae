"""Supervised traces are rollouts that someone else sampled: chains for trees, advantage 1 for every trained token.

So fine-tuning is a `Batch` like any other, trained with the `nll` loss; observations are in it and are masked.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.types import (
    Batch,
    Float32,
    Int32,
    Node,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    Sample,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
)

Bool = NDArray[np.bool_]


def sample_of(trace_id: str, *, token_ids: Int32, is_trained: Bool, row: int = 0, epoch: int = 0) -> Sample:
    """One trace as a sample. `is_trained` marks the tokens that the policy shall learn to sample.

    The tokens before the first trained one are the prompt; after it, runs of trained tokens are sampled nodes and the
    others observed ones. Behaviour log-probabilities are 0 and versions 0: the `nll` loss reads neither. Raises
    `DataError` where the lengths differ, nothing is trained, or the first token is trained.
    """
    if len(token_ids) != len(is_trained):
        raise DataError(f"trace {trace_id}: {len(token_ids)} tokens, but a mask of {len(is_trained)}")
    if not is_trained.any():
        raise DataError(f"trace {trace_id}: no token is trained")
    if is_trained[0]:
        raise DataError(f"trace {trace_id}: the first token is trained, but nothing predicts it")
    cuts = np.flatnonzero(np.diff(is_trained.astype(np.int8))) + 1
    pieces = np.split(np.asarray(token_ids, dtype=np.int32), cuts)
    kinds = [NodeKind.PROMPT, *(NodeKind.SAMPLED if is_trained[c] else NodeKind.OBSERVED for c in cuts)]
    nodes = tuple(_node(i - 1, kind, piece) for i, (kind, piece) in enumerate(zip(kinds, pieces, strict=True)))
    group = TrajectoryGroup(
        prompt=Prompt(
            prompt_id=trace_id, epoch=epoch, row=row, token_ids=nodes[0].token_ids, question="", ground_truth=""
        ),
        tree=TrajectoryTree(nodes=nodes),
        trajectories=(
            Trajectory(path=0, leaf=len(nodes) - 1, status=RolloutStatus.COMPLETED, reward=Reward(score=1.0)),
        ),
    )
    return Sample(group=group, advantages=(is_trained.astype(np.float32),))


def _node(parent: int, kind: NodeKind, token_ids: Int32) -> Node:
    length = len(token_ids) if kind is NodeKind.SAMPLED else 0
    zeros: Float32 = np.zeros(length, np.float32)
    return Node(
        parent=parent,
        kind=kind,
        token_ids=token_ids,
        logprobs=zeros,
        versions=np.zeros(length, np.int32),
        entropies=zeros,
    )


def batch_of(step: int, samples: Sequence[Sample]) -> Batch:
    """The samples of one optimiser step."""
    return Batch(step=step, samples=tuple(samples))
