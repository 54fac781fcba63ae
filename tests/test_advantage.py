"""Credit for each token, against references of a few lines on random trees."""

import subprocess
import sys
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Section
from engine.errors import ConfigError
from engine.types import RolloutStatus, TrajectoryGroup
from learner.algorithms.advantage import ESTIMATORS, estimate
from learner.config import (
    AdvantageConfig,
    Aepo,
    ArpoHard,
    ArpoSoft,
    Dapo,
    DrGrpo,
    Grpo,
    Overlong,
    PlainReward,
    ReinforcePp,
    ReinforcePpBaseline,
    Rloo,
    TreeGrpo,
)
from tests.credit_trees import DONE, FAILED, P, S, alive, group, groups, node


def z_scores(rewards: list[float], eps: float) -> list[float]:
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    return [(r - mean(rewards)) / (stdev(rewards) + eps) for r in rewards]


def scores(config: AdvantageConfig, rewards: list[float]) -> list[float]:
    """What each trajectory gets; of estimators that look at nothing but the rewards."""
    match config:
        case Grpo(normalise_std=False) | DrGrpo() | ReinforcePpBaseline():
            return [r - mean(rewards) for r in rewards]
        case Rloo():
            return [r - mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
        case ReinforcePp() | PlainReward():
            return rewards
        case Grpo(eps=eps) | Aepo(eps=eps):
            return z_scores(rewards, eps)
        case _:
            raise AssertionError(config)


eps = st.sampled_from([0.0, 1e-6, 0.1])
grpo_configs = st.one_of(
    *(st.builds(kind, normalise_std=st.booleans(), eps=eps) for kind in (Grpo, ArpoSoft, ArpoHard, Dapo))
)
plain_configs = st.sampled_from([DrGrpo(), Rloo(), ReinforcePp(), PlainReward()])
other_configs = st.one_of(plain_configs, st.builds(Aepo, eps=eps))


@given(groups(), grpo_configs | other_configs)
def test_every_estimator_equals_its_definition_token_by_token(g: TrajectoryGroup, config: AdvantageConfig) -> None:
    sample = estimate(g, config)
    rewards = [g.trajectories[i].reward.score for i in alive(g)]
    if not isinstance(config, ReinforcePp | PlainReward) and len(set(rewards)) < 2:
        assert sample is None
        return
    if not rewards:
        assert sample is None
        return
    by_trajectory = dict(zip(alive(g), scores(config, rewards), strict=True))
    assert sample is not None
    for i, (trajectory, advantages) in enumerate(zip(g.trajectories, sample.advantages, strict=True)):
        expected: list[float] = []
        for index in g.tree.path_to(trajectory.leaf):
            sharing = [j for j in alive(g) if index in g.tree.path_to(g.trajectories[j].leaf)]
            value = 0.0
            if g.tree.nodes[index].kind is S and i in by_trajectory:
                is_shared = isinstance(config, ArpoHard)
                value = mean(by_trajectory[j] for j in sharing) if is_shared else by_trajectory[i]
            expected += [value] * len(g.tree.nodes[index].token_ids)
        assert advantages.dtype == np.float32
        assert len(advantages) == len(g.tree.token_ids(trajectory.leaf))
        np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)


@given(groups(), eps)
def test_tree_grpo_adds_the_scores_among_all_and_among_those_of_one_initial_path(
    g: TrajectoryGroup, eps: float
) -> None:
    sample = estimate(g, TreeGrpo(eps=eps))
    if sample is None:
        return

    def initial(i: int) -> int:
        origin = g.trajectories[i].forked_from
        return i if origin < 0 else initial(origin)

    rewards = {i: g.trajectories[i].reward.score for i in alive(g)}
    everywhere = dict(zip(rewards, z_scores(list(rewards.values()), eps), strict=True))
    for i in rewards:
        tree = [j for j in rewards if initial(j) == initial(i)]
        inside = z_scores([rewards[j] for j in tree], eps)[tree.index(i)]
        path = g.tree.path_to(g.trajectories[i].leaf)
        is_sampled = np.concatenate([np.full(len(g.tree.nodes[k].token_ids), g.tree.nodes[k].kind is S) for k in path])
        np.testing.assert_allclose(sample.advantages[i], is_sampled * (everywhere[i] + inside), rtol=1e-5, atol=1e-6)


def three(first: float, second: float, third: float, *, forked_from: tuple[int, ...] = ()) -> TrajectoryGroup:
    ends = [(1, first, DONE), (2, second, DONE), (3, third, DONE)]
    return group([node(-1, P, 2), node(0, S, 1), node(0, S, 1), node(0, S, 1)], ends, forked_from=forked_from)


@pytest.mark.parametrize(
    ("config", "forked_from", "expected"),
    [
        (Grpo(), (), [0.577, -1.155, 0.577]),
        (Rloo(), (), [0.5, -1.0, 0.5]),
        (DrGrpo(), (), [1 / 3, -2 / 3, 1 / 3]),
        (ReinforcePp(), (), [1, 0, 1]),
        (PlainReward(), (), [1, 0, 1]),
        # The second path grew from the first, the third is alone.
        (TreeGrpo(), (-1, 0, -1), [0.577 + 0.707, -1.155 - 0.707, 0.577]),
    ],
)
def test_the_examples_of_the_docstrings_hold(
    config: AdvantageConfig, forked_from: tuple[int, ...], expected: list[float]
) -> None:
    sample = estimate(three(1, 0, 1, forked_from=forked_from), config)
    assert sample is not None
    np.testing.assert_allclose([a[-1] for a in sample.advantages], expected, atol=1e-3)
    assert all((a[:2] == 0).all() for a in sample.advantages)


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


@pytest.mark.parametrize(
    "ends",
    [
        [(1, 1.0, DONE), (2, 1.0, DONE)],
        [(1, 1.0, DONE), (2, 0.0, FAILED)],
        [(1, 0.0, FAILED), (2, 1.0, FAILED)],
        [],
    ],
)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_group_without_signal_is_none(kind: type[Section], ends: list[tuple[int, float, RolloutStatus]]) -> None:
    g = group([node(-1, P, 2), node(0, S, 1), node(0, S, 1)], ends)
    needs_no_contrast = kind in (ReinforcePp, PlainReward) and alive(g)
    assert (estimate(g, kind()) is None) is not bool(needs_no_contrast)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_failed_trajectory_neither_gets_credit_nor_moves_the_mean(kind: type[Section]) -> None:
    nodes = [node(-1, P, 2), *(node(0, S, 3) for _ in range(3))]
    with_failed = estimate(group(nodes, [(1, 1, DONE), (2, 0, DONE), (3, 100, FAILED)]), kind())
    without = estimate(group(nodes, [(1, 1, DONE), (2, 0, DONE)]), kind())
    assert with_failed is not None
    assert without is not None
    assert (with_failed.advantages[2] == 0).all()
    np.testing.assert_array_equal(np.stack(with_failed.advantages[:2]), np.stack(without.advantages))


def test_a_branch_of_a_failed_path_still_belongs_to_its_tree() -> None:
    nodes = [node(-1, P, 2), *(node(0, S, 1) for _ in range(3))]
    ends = [(1, 0, FAILED), (2, 1, DONE), (3, 0, DONE)]
    sample = estimate(group(nodes, ends, forked_from=(-1, 0, 1)), TreeGrpo())
    assert sample is not None
    np.testing.assert_allclose([a[-1] for a in sample.advantages], [0, 1.414, -1.414], atol=1e-3)


def test_a_long_response_loses_reward_before_credit_is_given() -> None:
    nodes = [node(-1, P, 50), node(0, S, 100), node(0, S, 90), node(0, S, 80)]
    ends = [(1, 1.0, DONE), (2, 1.0, DONE), (3, 0.0, DONE)]
    sample = estimate(group(nodes, ends), DrGrpo(), overlong=Overlong(limit=100, buffer=0.2, factor=0.6))
    assert sample is not None
    # 100 of 100 tokens lose 0.6, 90 lose half of it, 80 nothing; the prompt does not count
    shaped = np.array([0.4, 0.7, 0.0])
    np.testing.assert_allclose([a[-1] for a in sample.advantages], shaped - shaped.mean(), rtol=1e-6)


def test_lengths_alone_are_no_signal() -> None:
    nodes = [node(-1, P, 1), node(0, S, 100), node(0, S, 10)]
    g = group(nodes, [(1, 1.0, DONE), (2, 1.0, DONE)])
    assert estimate(g, Grpo(), overlong=Overlong(limit=100)) is None


def test_a_penalty_without_a_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overlong\.limit is not set"):
        estimate(three(1, 0, 1), Grpo(), overlong=Overlong())


def test_estimating_needs_no_torch() -> None:
    code = (
        "import sys, learner, learner.config, learner.packing.batcher, learner.sft;"
        "from learner.algorithms import advantage, batch_credit, leaf_weights, m2po;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'megatron', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
