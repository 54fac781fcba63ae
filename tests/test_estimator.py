"""The gradient that branching estimates, against the one that enumeration finds: thousands of trees of a toy policy.

Seeds are fixed, so a test passes always or never. Standard errors are those of the mean over batches of 32 trees.
"""

import numpy as np
import pytest
import torch

from engine.clock import run_virtual
from engine.types import NodeKind
from tests.estimator_arms import BIASED, EXACT
from tests.toy_estimator import Bias, estimates, grow
from tests.toy_policy import OLDER, TABLE, Enumerated

FAMILY = 4.0
"""No one of 45 z-scores is beyond it as rarely as a single one is beyond 3."""


@pytest.fixture(scope="module")
def every() -> Enumerated:
    return Enumerated()


@pytest.fixture(scope="module")
def true_G(every: Enumerated) -> np.ndarray:  # noqa: N802
    return every.gradient(TABLE)


def check_unbiased(bias: Bias, *directions_G: np.ndarray) -> None:
    assert np.abs(bias.z_scores).max() < FAMILY
    assert all(abs(bias.z_along(direction_G)) < 3 for direction_G in directions_G)


def test_enumeration_is_complete_and_its_gradient_that_of_differences(every: Enumerated, true_G: np.ndarray) -> None:
    chances_L = every.logprobs(torch.tensor(TABLE)).sum(1).exp()
    assert len(chances_L) == 7231
    assert float(chances_L.sum()) == pytest.approx(1.0, rel=1e-12)
    for place in range(0, TABLE.size, 4):
        step = np.zeros(TABLE.size)
        step[place] = 1e-5
        above, below = (float(every.value(torch.tensor(TABLE + sign * step.reshape(TABLE.shape)))) for sign in (1, -1))
        assert true_G[place] == pytest.approx((above - below) / 2e-5, abs=1e-8)


def test_a_tree_mixes_versions_and_forks_behind_what_it_inherits() -> None:
    groups = run_virtual(grow(EXACT["arpo"], seed=0))
    versions = {v for g in groups for n in g.tree.nodes if n.kind is NodeKind.SAMPLED for v in n.versions.tolist()}
    assert versions == {0, 1}
    assert sum(g.num_forks for g in groups) > len(groups)


def test_stale_branching_has_the_true_gradient(every: Enumerated, true_G: np.ndarray) -> None:
    bias = Bias(estimates(EXACT["arpo"], num_trajectories=10_240), true_G)
    assert bias.resolution < 0.05
    check_unbiased(bias, true_G, *(every.prefix_gradient(TABLE, older) - true_G for older in OLDER))


def test_equal_leaves_are_biased(true_G: np.ndarray) -> None:
    bias = Bias(estimates(BIASED["equal leaves"], num_trajectories=4096), true_G)
    assert np.abs(bias.z_scores).max() > 8
    assert 0.2 < bias.relative < 0.4


def test_branches_that_sample_the_probe_anew_are_biased(true_G: np.ndarray) -> None:
    bias = Bias(estimates(BIASED["tool_result with k = 2"], num_trajectories=4096), true_G)
    assert np.abs(bias.z_scores).max() > 7
    assert 0.15 < bias.relative < 0.35


def test_products_over_prefixes_credit_a_token_with_how_the_old_policy_goes_on(
    every: Enumerated, true_G: np.ndarray
) -> None:
    arm = BIASED["stale, products over prefixes"]
    expected_G = every.prefix_gradient(TABLE, OLDER[0])
    assert np.linalg.norm(expected_G - true_G) > 0.2 * np.linalg.norm(true_G)
    check_unbiased(Bias(estimates(arm, num_trajectories=4096), expected_G), true_G, expected_G - true_G)


@pytest.mark.real
@pytest.mark.parametrize("name", EXACT)
def test_every_exact_estimator_has_the_true_gradient_to_three_percent(name: str, true_G: np.ndarray) -> None:
    bias = Bias(estimates(EXACT[name], num_trajectories=25_600), true_G)
    assert bias.resolution < 0.035
    check_unbiased(bias, true_G)


@pytest.mark.real
@pytest.mark.parametrize("name", ["tree_grpo", "ranked, 1 place for a fork"])
def test_grants_that_look_back_are_biased(name: str, true_G: np.ndarray) -> None:
    assert np.abs(Bias(estimates(BIASED[name], num_trajectories=51_200), true_G).z_scores).max() > FAMILY + 0.5
