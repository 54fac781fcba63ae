"""Credit that looks at the whole batch, against the sums written out trajectory by trajectory."""

from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Section
from engine.types import Sample, TrajectoryGroup
from learner.algorithms.advantage import ESTIMATORS, estimate
from learner.algorithms.batch_credit import by_entropy, finish_batch, whitened
from learner.config import Aepo, Grpo, ReinforcePp, ReinforcePpBaseline
from tests.credit_trees import DONE, FAILED, O, P, S, alive, group, groups, node

BATCH_LEVEL = (ReinforcePp, ReinforcePpBaseline, Aepo)


def tokens(sample: Sample) -> list[tuple[int, int, float, float]]:
    """(trajectory, place in its path, advantage, entropy) of every trained token, a shared one once a trajectory."""
    found: list[tuple[int, int, float, float]] = []
    for i in alive(sample.group):
        place = 0
        for index in sample.group.tree.path_to(sample.group.trajectories[i].leaf):
            current = sample.group.tree.nodes[index]
            for k in range(len(current.token_ids)):
                if current.kind is S:
                    found.append((i, place, float(sample.advantages[i][place]), float(current.entropies[k])))
                place += 1
    return found


def z(values: list[float], value: float, eps: float) -> float:
    return 0.0 if len(set(values)) < 2 else (value - mean(values)) / (stdev(values) + eps)


@given(st.lists(groups(), max_size=4), st.sampled_from(BATCH_LEVEL), st.sampled_from([1e-6, 0.1]))
def test_statistics_are_those_of_the_batchs_flat_tokens(
    drawn: list[TrajectoryGroup], kind: type[ReinforcePp], eps: float
) -> None:
    config = kind(eps=eps)
    before = [sample for g in drawn if (sample := estimate(g, config)) is not None]
    after = finish_batch(before, config)
    flat = [token for sample in before for token in tokens(sample)]
    for old, new in zip(before, after, strict=True):
        assert new.group is old.group
        for (i, place, advantage, entropy), changed in zip(tokens(old), tokens(new), strict=True):
            if isinstance(config, Aepo):
                scale = 1 + config.entropy_weight * z([t[3] for t in flat], entropy, eps)
                expected = advantage * scale
            else:
                expected = z([t[2] for t in flat], advantage, eps)
            assert changed[:2] == (i, place)
            assert changed[2] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(st.lists(groups(), min_size=1, max_size=3), st.sampled_from(BATCH_LEVEL))
def test_what_nobody_sampled_and_what_failed_stays_zero(drawn: list[TrajectoryGroup], kind: type[Section]) -> None:
    samples = finish_batch([s for g in drawn if (s := estimate(g, kind())) is not None], kind())
    for sample in samples:
        for trajectory, advantages in zip(sample.group.trajectories, sample.advantages, strict=True):
            nodes = [sample.group.tree.nodes[i] for i in sample.group.tree.path_to(trajectory.leaf)]
            is_sampled = np.concatenate([np.full(len(n.token_ids), n.kind is S) for n in nodes])
            assert advantages.dtype == np.float32
            assert (advantages[~is_sampled] == 0).all()
            assert trajectory.status is not FAILED or (advantages == 0).all()


@pytest.mark.parametrize("kind", set(ESTIMATORS) - set(BATCH_LEVEL))
def test_an_estimator_that_needs_no_batch_is_left_alone(kind: type[Section]) -> None:
    sample = estimate(group([node(-1, P, 1), node(0, S, 2), node(0, S, 3)], [(1, 1, DONE), (2, 0, DONE)]), kind())
    assert sample is not None
    assert finish_batch([sample], kind()) == (sample,)


def test_a_group_of_equal_rewards_is_told_apart_by_the_rest_of_the_batch() -> None:
    nodes = [node(-1, P, 1), node(0, S, 2), node(1, O, 2), node(2, S, 1), node(0, S, 3)]
    good, bad = (group(nodes, [(3, reward, DONE), (4, reward, DONE)]) for reward in (1.0, 0.0))
    samples = [sample for g in (good, bad) if (sample := estimate(g, ReinforcePp())) is not None]
    after = finish_batch(samples, ReinforcePp())
    # six tokens of 1 and six of 0: the unbiased deviation is sqrt(12 / 11) / 2
    assert after[0].advantages[0][[1, 2, 5]] == pytest.approx([0.957] * 3, abs=1e-3)
    assert after[1].advantages[1][1:] == pytest.approx([-0.957] * 3, abs=1e-3)
    assert estimate(good, ReinforcePp()) is not None
    assert estimate(good, Grpo()) is None


def test_the_examples_of_the_docstrings_hold() -> None:
    assert whitened(np.array([1.0, 1.0, 0.0]), eps=1e-6) == pytest.approx([0.577, 0.577, -1.155], abs=1e-3)
    scaled = by_entropy(np.ones(3), np.array([1.0, 2.0, 3.0]), Aepo())
    assert scaled == pytest.approx([0.8, 1.0, 1.2], abs=1e-3)


def test_a_batch_of_nothing_is_nothing() -> None:
    assert finish_batch([], ReinforcePp()) == ()
