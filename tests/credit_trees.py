"""Trees with rewards, written down or drawn at random, for what looks at credit."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from hypothesis import strategies as st

from engine.types import (
    Node,
    NodeKind,
    Prompt,
    Reward,
    RolloutStatus,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTree,
)

P, S, O = NodeKind.PROMPT, NodeKind.SAMPLED, NodeKind.OBSERVED  # noqa: E741
DONE, FAILED = RolloutStatus.COMPLETED, RolloutStatus.FAILED


def node(parent: int, kind: NodeKind, length: int) -> Node:
    sampled = length if kind is S else 0
    return Node(
        parent=parent,
        kind=kind,
        token_ids=np.arange(length, dtype=np.int32),
        logprobs=np.zeros(sampled, np.float32),
        versions=np.zeros(sampled, np.int32),
        entropies=np.linspace(0.1 + parent, 2.0, sampled, dtype=np.float32),
    )


def group(
    nodes: list[Node], ends: list[tuple[int, float, RolloutStatus]], *, forked_from: Sequence[int] = ()
) -> TrajectoryGroup:
    """Trajectories by (leaf, reward, status); `forked_from` is -1 where it is not given."""
    prompt = Prompt(prompt_id="e0-r0", epoch=0, row=0, token_ids=nodes[0].token_ids, question="q", ground_truth="a")
    trajectories = tuple(
        Trajectory(path=i, leaf=leaf, status=status, reward=Reward(score=score), forked_from=origin)
        for i, ((leaf, score, status), origin) in enumerate(zip_longest(ends, forked_from, fillvalue=-1))
    )
    return TrajectoryGroup(prompt=prompt, tree=TrajectoryTree(nodes=tuple(nodes)), trajectories=trajectories)


@st.composite
def groups(draw: st.DrawFn) -> TrajectoryGroup:
    nodes = [node(-1, P, draw(st.integers(1, 4)))]
    for _ in range(draw(st.integers(1, 12))):
        parent = draw(st.integers(0, len(nodes) - 1))
        nodes.append(node(parent, draw(st.sampled_from([S, S, O])), draw(st.integers(0, 4))))
    parents = {n.parent for n in nodes}
    leaves = [i for i in range(len(nodes)) if i not in parents]
    status = st.sampled_from([DONE, DONE, DONE, RolloutStatus.TRUNCATED, FAILED])
    return group(
        nodes,
        [(leaf, draw(st.sampled_from([-1.0, 0.0, 0.5, 1.1])), draw(status)) for leaf in leaves],
        forked_from=[draw(st.integers(-1, i - 1)) for i in range(len(leaves))],
    )


def alive(g: TrajectoryGroup) -> list[int]:
    """Indices of the trajectories that did not fail."""
    return [i for i, t in enumerate(g.trajectories) if t.status is not FAILED]
