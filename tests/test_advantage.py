"""Credit for each token, against references of a few lines on random trees."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
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
from learner.advantage import ESTIMATORS, ArpoHard, ArpoSoft, Grpo, estimate

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
        entropies=np.zeros(sampled, np.float32),
    )


def group(nodes: list[Node], ends: list[tuple[int, float, RolloutStatus]]) -> TrajectoryGroup:
    prompt = Prompt(prompt_id="e0-r0", epoch=0, row=0, token_ids=nodes[0].token_ids, question="q", ground_truth="a")
    trajectories = tuple(
        Trajectory(path=i, leaf=leaf, status=status, reward=Reward(score=score))
        for i, (leaf, score, status) in enumerate(ends)
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
    return group(nodes, [(leaf, draw(st.sampled_from([-1.0, 0.0, 0.5, 1.1])), draw(status)) for leaf in leaves])


def z_scores(rewards: list[float], config: Grpo) -> list[float]:
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    return [(r - mean) / (std + config.eps) if config.normalise_std else r - mean for r in rewards]


options = st.builds(dict, normalise_std=st.booleans(), eps=st.sampled_from([0.0, 1e-6, 0.1]))


@given(groups(), options, st.sampled_from([Grpo, ArpoSoft, ArpoHard]))
def test_every_estimator_equals_its_definition_token_by_token(
    g: TrajectoryGroup, kwargs: dict[str, float], kind: type[Grpo]
) -> None:
    config = kind(**kwargs)
    sample = estimate(g, config)
    alive = [i for i, t in enumerate(g.trajectories) if t.status is not FAILED]
    if len({g.trajectories[i].reward.score for i in alive}) < 2:
        assert sample is None
        return
    scores = dict(zip(alive, z_scores([g.trajectories[i].reward.score for i in alive], config), strict=True))
    assert sample is not None
    for i, (trajectory, advantages) in enumerate(zip(g.trajectories, sample.advantages, strict=True)):
        expected: list[float] = []
        for index in g.tree.path_to(trajectory.leaf):
            sharing = [j for j in alive if index in g.tree.path_to(g.trajectories[j].leaf)]
            value = 0.0
            if g.tree.nodes[index].kind is S and i in scores:
                value = np.mean([scores[j] for j in sharing]) if kind is ArpoHard else scores[i]
            expected += [value] * len(g.tree.nodes[index].token_ids)
        assert advantages.dtype == np.float32
        assert len(advantages) == len(g.tree.token_ids(trajectory.leaf))
        np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)


@given(groups())
def test_hard_and_soft_give_a_shared_token_the_same_sum(g: TrajectoryGroup) -> None:
    soft, hard = estimate(g, ArpoSoft()), estimate(g, ArpoHard())
    if soft is None or hard is None:
        return
    sums = {kind: np.zeros(len(g.tree.nodes)) for kind in ("soft", "hard")}
    for name, sample in (("soft", soft), ("hard", hard)):
        for trajectory, advantages in zip(g.trajectories, sample.advantages, strict=True):
            start = 0
            for index in g.tree.path_to(trajectory.leaf):
                stop = start + len(g.tree.nodes[index].token_ids)
                sums[name][index] += advantages[start:stop].sum()
                start = stop
    np.testing.assert_allclose(sums["hard"], sums["soft"], atol=1e-4)


def test_the_example_of_the_docstring_holds() -> None:
    g = group([node(-1, P, 2), node(0, S, 1), node(0, S, 1), node(0, S, 1)], [(1, 1, DONE), (2, 0, DONE), (3, 1, DONE)])
    sample = estimate(g, Grpo())
    assert sample is not None
    np.testing.assert_allclose([a[-1] for a in sample.advantages], [0.577, -1.155, 0.577], atol=1e-3)
    assert all((a[:2] == 0).all() for a in sample.advantages)


@pytest.mark.parametrize(
    "ends",
    [
        [(1, 1.0, DONE), (2, 1.0, DONE)],
        [(1, 1.0, DONE), (2, 0.0, FAILED)],
        [(1, 0.0, FAILED), (2, 1.0, FAILED)],
        [],
    ],
)
def test_a_group_without_signal_is_none(ends: list[tuple[int, float, RolloutStatus]]) -> None:
    g = group([node(-1, P, 2), node(0, S, 1), node(0, S, 1)], ends)
    for kind in ESTIMATORS:
        assert estimate(g, kind()) is None


def test_a_failed_trajectory_neither_gets_credit_nor_moves_the_mean() -> None:
    nodes = [node(-1, P, 2), *(node(0, S, 3) for _ in range(3))]
    with_failed = estimate(group(nodes, [(1, 1, DONE), (2, 0, DONE), (3, 100, FAILED)]), ArpoSoft())
    without = estimate(group(nodes, [(1, 1, DONE), (2, 0, DONE)]), ArpoSoft())
    assert with_failed is not None
    assert without is not None
    assert (with_failed.advantages[2] == 0).all()
    np.testing.assert_array_equal(np.stack(with_failed.advantages[:2]), np.stack(without.advantages))


def test_estimating_needs_no_torch() -> None:
    code = (
        "import sys, learner, learner.config, learner.advantage, learner.batcher, learner.sft;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'megatron', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
