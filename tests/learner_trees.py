"""Random trees for the learner: any shape that a rollout could leave behind, and some that it hardly will."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from engine.types import (
    Batch,
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
from learner.packing.flatten import FlatSequence, flatten


def make_sample(
    rng: np.random.Generator, parents: list[int], lengths: list[int], *, vocab: int, row: int = 0
) -> Sample:
    """A tree behind a prompt of three tokens whose node i + 1 hangs on node `parents[i]`; every node without a child is
    a trajectory, and so is now and then one in the middle. Some nodes are observed, versions differ, a few fail."""
    nodes = [_node(rng, -1, NodeKind.PROMPT, 3, vocab)]
    for parent, length in zip(parents, lengths, strict=True):
        kind = NodeKind.OBSERVED if rng.random() < 0.3 else NodeKind.SAMPLED
        nodes.append(_node(rng, parent, kind, length, vocab))
    inner = set(parents)
    leaves = [i for i in range(1, len(nodes)) if i not in inner or rng.random() < 0.1]
    statuses = [RolloutStatus.FAILED if rng.random() < 0.1 else RolloutStatus.COMPLETED for _ in leaves]
    tree = TrajectoryTree(nodes=tuple(nodes))
    group = TrajectoryGroup(
        prompt=Prompt(
            prompt_id=f"e0-r{row}", epoch=0, row=row, token_ids=nodes[0].token_ids, question="", ground_truth=""
        ),
        tree=tree,
        trajectories=tuple(
            Trajectory(path=i, leaf=leaf, status=status, reward=Reward(score=0.0))
            for i, (leaf, status) in enumerate(zip(leaves, statuses, strict=True))
        ),
    )
    advantages = tuple(_advantages(rng, tree, leaf) for leaf in leaves)
    return Sample(group=group, advantages=advantages)


def _node(rng: np.random.Generator, parent: int, kind: NodeKind, length: int, vocab: int) -> Node:
    num_sampled = length if kind is NodeKind.SAMPLED else 0
    return Node(
        parent=parent,
        kind=kind,
        token_ids=rng.integers(0, vocab, length).astype(np.int32),
        logprobs=(-np.log(vocab) + rng.normal(0, 0.7, num_sampled)).astype(np.float32),
        versions=rng.integers(0, 3, num_sampled).astype(np.int32),
        entropies=rng.random(num_sampled).astype(np.float32),
    )


def _advantages(rng: np.random.Generator, tree: TrajectoryTree, leaf: int) -> np.ndarray:
    """Another one for each token, zero where nothing was sampled."""
    pieces = [
        rng.normal(0, 1, len(n.token_ids)) if n.kind is NodeKind.SAMPLED else np.zeros(len(n.token_ids))
        for n in (tree.nodes[i] for i in tree.path_to(leaf))
    ]
    return np.concatenate(pieces).astype(np.float32)


@st.composite
def samples(draw: Any, *, max_nodes: int = 12, max_length: int = 6, vocab: int = 31, row: int = 0) -> Sample:
    """Trees of any shape; nodes may be empty."""
    count = draw(st.integers(1, max_nodes))
    parents = [draw(st.integers(0, i)) for i in range(count)]
    lengths = [draw(st.integers(0, max_length)) for _ in range(count)]
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return make_sample(rng, parents, lengths, vocab=vocab, row=row)


@st.composite
def batches(draw: Any, *, max_samples: int = 3, **kwargs: Any) -> Batch:
    """Batches of such trees with something to train."""
    count = draw(st.integers(1, max_samples))
    made = Batch(step=0, samples=tuple(draw(samples(row=row, **kwargs)) for row in range(count)))
    return made if any(s.num_trained for s in flatten(made)) else draw(batches(max_samples=max_samples, **kwargs))


def sequences_of(sample: Sample) -> list[FlatSequence]:
    """Its trajectories that did not fail."""
    return flatten(Batch(step=0, samples=(sample,)))
