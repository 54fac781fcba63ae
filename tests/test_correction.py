"""Corrections and rejections against references written token by token and trajectory by trajectory."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from learner.algorithms.correction import MAX_LOG_RATIO, Corrected, clamp_log_ratio, correct, m2po_of, needs_proximal
from learner.algorithms.m2po import m2po_keep
from learner.config import (
    CorrectionConfig,
    Decoupled,
    ExactIs,
    IcePop,
    M2po,
    NoCorrection,
    RejectionConfig,
    SequenceGeometric,
    SequenceK3,
    SequenceProduct,
    TruncatedIs,
    Veto,
)


def corrected(
    config: CorrectionConfig,
    now: torch.Tensor,
    behaviour: torch.Tensor,
    *,
    leaves: Sequence[int] | None = None,
    **options: Any,
) -> Corrected:
    leaf = torch.tensor([0] * len(now) if leaves is None else leaves, dtype=torch.long)
    proximal = options.pop("proximal", None)
    return correct(
        config,
        logprobs_N=now,
        behaviour_N=behaviour,
        proximal_N=proximal,
        leaf_N=leaf,
        num_leaves=int(leaf.max()) + 1,
        **options,
    )


def test_bypass_compares_with_the_behaviour_policy() -> None:
    now = torch.tensor([math.log(0.3)], requires_grad=True)
    out = corrected(NoCorrection(), now, torch.tensor([math.log(0.1)]))
    assert not needs_proximal(NoCorrection())
    assert needs_proximal(NoCorrection(), [Veto()])
    assert out.log_ratio.exp().item() == pytest.approx(3)
    assert out.weights.item() == 1


def test_without_a_separate_pass_the_proximal_policy_is_the_present_one_and_the_ratio_keeps_its_gradient() -> None:
    now = torch.tensor([math.log(0.3)], requires_grad=True)
    out = corrected(Decoupled(cap=5.0), now, torch.tensor([math.log(0.1)]))
    assert out.log_ratio.item() == 0
    assert out.weights.item() == pytest.approx(3)
    assert not out.weights.requires_grad
    out.log_ratio.exp().sum().backward()
    assert now.grad is not None
    assert now.grad.item() == 1


@given(
    st.lists(st.tuples(st.floats(-3, 0), st.floats(-3, 0), st.floats(-3, 0)), min_size=1, max_size=6),
    st.sampled_from([None, 0.5, 2.0]),
)
def test_weights_are_the_bounded_ratio_of_proximal_to_behaviour(
    tokens: list[tuple[float, float, float]], cap: float | None
) -> None:
    now, proximal, behaviour = (torch.tensor(x, dtype=torch.float64) for x in zip(*tokens, strict=True))
    rho = [math.exp(p - b) for _, p, b in tokens]
    bound = cap if cap is not None else math.inf
    clipped = corrected(Decoupled(cap=cap, mode="clip"), now, behaviour, proximal=proximal)
    np.testing.assert_allclose(clipped.weights, [min(r, bound) for r in rho], rtol=1e-12)
    np.testing.assert_allclose(clipped.log_ratio, now - proximal, rtol=1e-12, atol=1e-15)
    masked = corrected(Decoupled(cap=cap, mode="mask"), now, behaviour, proximal=proximal)
    np.testing.assert_allclose(masked.weights, [r if r <= bound else 0.0 for r in rho], rtol=1e-12)
    if cap is not None:
        truncated = corrected(TruncatedIs(cap=cap), now, behaviour, proximal=proximal)
        np.testing.assert_allclose(truncated.weights, [min(r, cap) for r in rho], rtol=1e-12)
        icepop = corrected(IcePop(low=cap / 2, high=cap), now, behaviour, proximal=proximal)
        np.testing.assert_allclose(icepop.weights, [r * (cap / 2 <= r <= cap) for r in rho], rtol=1e-12)


rows = st.lists(st.tuples(st.integers(0, 3), st.floats(-1.5, 1.5)), min_size=1, max_size=12)
"""(trajectory, log rho) of each token; a trajectory may have none."""


def by_leaf(row: list[tuple[int, float]]) -> dict[int, list[float]]:
    return {leaf: [x for other, x in row if other == leaf] for leaf, _ in row}


def keeps(rejection: RejectionConfig, log_rhos: list[float]) -> bool:
    """Whether a trajectory with these tokens stays."""
    rhos = [math.exp(x) for x in log_rhos]
    match rejection:
        case SequenceProduct(low=low, high=high):
            return low <= math.prod(rhos) <= high
        case SequenceGeometric(low=low, high=high):
            return low <= math.prod(rhos) ** (1 / len(rhos)) <= high
        case SequenceK3(limit=limit):
            return sum(r - 1 - math.log(r) for r in rhos) / len(rhos) <= limit
        case Veto(low=low, high=high):
            return all(low <= r <= high for r in rhos)
        case _:
            raise AssertionError(rejection)


REJECTIONS: list[RejectionConfig] = [
    SequenceProduct(),
    SequenceGeometric(low=0.6, high=1.5),
    SequenceK3(limit=0.3),
    Veto(low=0.3, high=3.0),
]


@given(rows, st.sampled_from([NoCorrection(), Decoupled(cap=None), TruncatedIs(level="sequence", cap=3.0)]),
       st.lists(st.sampled_from(REJECTIONS), max_size=3))  # fmt: skip
def test_a_token_is_trained_where_its_trajectory_passes_every_rejection_with_the_weight_of_the_correction(
    row: list[tuple[int, float]], config: CorrectionConfig, rejections: list[RejectionConfig]
) -> None:
    behaviour = torch.linspace(-3, -1, len(row), dtype=torch.float64)
    now = behaviour + torch.tensor([x for _, x in row], dtype=torch.float64)
    out = corrected(config, now, behaviour, leaves=[leaf for leaf, _ in row], rejections=rejections)
    for i, (leaf, x) in enumerate(row):
        mine = by_leaf(row)[leaf]
        weight = {
            NoCorrection: 1.0,
            Decoupled: math.exp(x),
            TruncatedIs: min(math.prod(math.exp(other) for other in mine), 3.0),
        }[type(config)]
        is_kept = all(keeps(rejection, mine) for rejection in rejections)
        assert bool(out.is_rejected[i]) is not is_kept
        assert out.weights[i].item() == pytest.approx(weight * is_kept, rel=1e-9)


@given(rows)
def test_an_exact_weight_is_the_product_over_the_trajectory_or_over_what_precedes_the_token_in_it(
    row: list[tuple[int, float]],
) -> None:
    behaviour = torch.linspace(-3, -1, len(row), dtype=torch.float64)
    now = behaviour + torch.tensor([x for _, x in row], dtype=torch.float64)
    leaves = [leaf for leaf, _ in row]
    whole = corrected(ExactIs(), now, behaviour, leaves=leaves).weights
    prefix = corrected(ExactIs(over="prefix"), now, behaviour, leaves=leaves).weights
    for i, leaf in enumerate(leaves):
        assert whole[i].item() == pytest.approx(math.exp(sum(by_leaf(row)[leaf])), rel=1e-9)
        assert prefix[i].item() == pytest.approx(math.exp(sum(by_leaf(row[: i + 1])[leaf])), rel=1e-9)


@given(
    st.lists(st.integers(-200, 200).map(lambda n: n / 100), max_size=30), st.sampled_from([0.001234, 0.04321, 0.54321])
)
def test_m2po_drops_the_largest_squares_until_the_mean_of_the_others_is_small_enough(
    log_rhos: list[float], tau: float
) -> None:
    left = list(range(len(log_rhos)))
    while left and sum(log_rhos[i] ** 2 for i in left) / len(left) > tau:
        largest = max(abs(log_rhos[i]) for i in left)
        left = [i for i in left if abs(log_rhos[i]) < largest]  # equal ones go together
    keep = m2po_keep(np.array(log_rhos), tau=tau)
    assert keep.dtype == np.bool_
    assert np.flatnonzero(keep).tolist() == left


def test_the_example_of_m2po_holds_and_needs_the_whole_mini_batch() -> None:
    assert m2po_keep(np.array([0.1, -0.3, 0.1]), tau=0.04).tolist() == [True, True, True]
    assert m2po_keep(np.array([0.1, -0.5, 0.1]), tau=0.04).tolist() == [True, False, True]
    assert m2po_keep(np.array([5.0]), tau=0.04).tolist() == [False]
    now, behaviour = torch.tensor([-1.0, -1.0]), torch.tensor([-1.1, -0.5])
    keep = torch.tensor([True, False])
    out = corrected(Decoupled(cap=None), now, behaviour, rejections=[M2po(), Veto()], keep_N=keep)
    assert out.weights.tolist() == pytest.approx([math.exp(0.1), 0.0])
    assert out.is_rejected.tolist() == [False, True]
    assert m2po_of([Veto(), M2po(tau=0.1)]) == M2po(tau=0.1)
    assert m2po_of([Veto()]) is None
    with pytest.raises(ValueError, match="keep_N is needed"):
        corrected(Decoupled(), now, behaviour, rejections=[M2po()])


def test_the_examples_of_the_docstring_hold() -> None:
    now, behaviour = torch.full((2,), math.log(0.3)), torch.full((2,), math.log(0.1))

    def weights(config: CorrectionConfig, *rejections: RejectionConfig) -> list[float]:
        return corrected(config, now, behaviour, rejections=rejections).weights.tolist()

    assert weights(Decoupled(cap=5.0)) == pytest.approx([3.0, 3.0])
    assert weights(TruncatedIs(cap=2.0)) == [2.0, 2.0]
    assert weights(IcePop(high=2.0)) == [0.0, 0.0]
    assert weights(TruncatedIs(level="sequence", cap=10.0)) == pytest.approx([9.0, 9.0])
    assert weights(Decoupled(cap=None), SequenceProduct(high=2.0)) == [0.0, 0.0]
    assert weights(ExactIs()) == pytest.approx([9.0, 9.0])
    assert weights(ExactIs(over="prefix")) == pytest.approx([3.0, 9.0])


def test_absurd_log_ratios_stay_finite() -> None:
    wild = torch.tensor([-1e4, 1e4, 1e4])
    assert clamp_log_ratio(wild).tolist() == [-MAX_LOG_RATIO, MAX_LOG_RATIO, MAX_LOG_RATIO]
    for config in (Decoupled(cap=None), TruncatedIs(level="sequence"), IcePop(), ExactIs(), ExactIs(over="prefix")):
        out = corrected(config, wild, -wild, rejections=REJECTIONS)
        assert torch.isfinite(out.weights).all()


@pytest.mark.parametrize("kind", [IcePop, SequenceProduct, SequenceGeometric, Veto])
def test_an_empty_range_is_refused(kind: type) -> None:
    with pytest.raises(ConfigError, match=r"expected low < high, got low=3\.0, high=2\.0"):
        kind(low=3.0, high=2.0)


def test_nothing_in_a_correction_has_a_gradient_but_the_ratio() -> None:
    now = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    out = corrected(TruncatedIs(level="sequence"), now, torch.full((3,), -1.0), rejections=REJECTIONS, leaves=[0, 1, 0])
    assert out.log_ratio.requires_grad
    assert not out.weights.requires_grad
