"""Losses and corrections against references written token by token."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.config import Decoupled, Nll, NoCorrection, Ppo, Reinforce, TruncatedIs
from learner.correction import MAX_LOG_RATIO, clamp_log_ratio, correct, needs_proximal
from learner.loss import token_loss

log_ratios = st.floats(-3, 3).map(lambda x: round(x, 4))
advantages = st.floats(-2, 2).map(lambda x: round(x, 4))


def ppo_reference(config: Ppo, ratio: float, advantage: float) -> float:
    low, high = 1 - config.eps_low, 1 + config.eps_high
    objective = min(ratio * advantage, min(max(ratio, low), high) * advantage)
    if config.dual_clip is not None and advantage < 0:
        objective = max(objective, config.dual_clip * advantage)
    return -objective


configs = st.builds(
    Ppo,
    eps_low=st.sampled_from([0.0, 0.2]),
    eps_high=st.sampled_from([0.2, 0.28]),
    dual_clip=st.sampled_from([None, 3.0]),
)


@given(configs, st.lists(st.tuples(log_ratios, advantages), min_size=1, max_size=8))
def test_ppo_equals_its_definition_and_is_clipped_exactly_where_its_gradient_is_zero(
    config: Ppo, tokens: list[tuple[float, float]]
) -> None:
    log_ratio = torch.tensor([t[0] for t in tokens], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([t[1] for t in tokens], dtype=torch.float64)
    out = token_loss(config, logprobs_N=log_ratio, log_ratio_N=log_ratio, advantages_N=advantage)
    expected = [ppo_reference(config, math.exp(x), a) for x, a in tokens]
    np.testing.assert_allclose(out.loss.detach(), expected, rtol=1e-12, atol=1e-12)
    out.loss.sum().backward()
    assert log_ratio.grad is not None
    for i, (x, a) in enumerate(tokens):
        is_away_from_kinks = all(abs(math.exp(x) - k) > 1e-6 for k in (1 - config.eps_low, 1 + config.eps_high, 3.0))
        if a != 0 and is_away_from_kinks:
            assert bool(out.is_clipped[i]) == (log_ratio.grad[i] == 0)


@given(configs, log_ratios, advantages, st.floats(0.1, 10))
def test_ppo_is_positively_homogeneous_in_the_advantage(config: Ppo, x: float, a: float, scale: float) -> None:
    log_ratio = torch.tensor([x, x], dtype=torch.float64)
    pair = torch.tensor([a, scale * a], dtype=torch.float64)
    loss = token_loss(config, logprobs_N=log_ratio, log_ratio_N=log_ratio, advantages_N=pair).loss
    np.testing.assert_allclose(loss[1], scale * loss[0], rtol=1e-9, atol=1e-12)


def test_clip_higher_and_dual_clip_bound_the_two_signs() -> None:
    log_ratio = torch.tensor([1.5, 0.5, 10.0]).log()
    out = token_loss(
        Ppo(eps_high=0.28, dual_clip=3.0),
        logprobs_N=log_ratio,
        log_ratio_N=log_ratio,
        advantages_N=torch.tensor([1.0, 1.0, -1.0]),
    )
    np.testing.assert_allclose(out.loss, [-1.28, -0.5, 3.0], rtol=1e-6)
    assert out.is_clipped.tolist() == [True, False, True]


@pytest.mark.parametrize("config", [Nll(), Reinforce()])
def test_likelihood_losses_are_minus_the_weighted_log_probability(config: Nll | Reinforce) -> None:
    logprobs = torch.tensor([-1.0, -2.0])
    out = token_loss(
        config, logprobs_N=logprobs, log_ratio_N=torch.tensor([5.0, 5.0]), advantages_N=torch.tensor([1.0, -3.0])
    )
    assert out.loss.tolist() == [1.0, -6.0]
    assert not out.is_clipped.any()


def test_bypass_compares_with_the_behaviour_policy() -> None:
    now = torch.tensor([math.log(0.3)], requires_grad=True)
    out = correct(NoCorrection(), logprobs_N=now, behaviour_N=torch.tensor([math.log(0.1)]), proximal_N=None)
    assert not needs_proximal(NoCorrection())
    assert out.log_ratio.exp().item() == pytest.approx(3)
    assert out.weights.item() == 1


def test_without_a_separate_pass_the_proximal_policy_is_the_present_one_and_the_ratio_keeps_its_gradient() -> None:
    now = torch.tensor([math.log(0.3)], requires_grad=True)
    out = correct(Decoupled(cap=5.0), logprobs_N=now, behaviour_N=torch.tensor([math.log(0.1)]), proximal_N=None)
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
    kwargs = {"logprobs_N": now, "behaviour_N": behaviour, "proximal_N": proximal}
    rho = [math.exp(p - b) for _, p, b in tokens]
    bound = cap if cap is not None else math.inf
    clipped = correct(Decoupled(cap=cap, mode="clip"), **kwargs)
    np.testing.assert_allclose(clipped.weights, [min(r, bound) for r in rho], rtol=1e-12)
    np.testing.assert_allclose(clipped.log_ratio, now - proximal, rtol=1e-12, atol=1e-15)
    masked = correct(Decoupled(cap=cap, mode="mask"), **kwargs)
    np.testing.assert_allclose(masked.weights, [r if r <= bound else 0.0 for r in rho], rtol=1e-12)
    if cap is not None:
        truncated = correct(TruncatedIs(cap=cap), **kwargs)
        np.testing.assert_allclose(truncated.weights, [min(r, cap) for r in rho], rtol=1e-12)


def test_absurd_log_ratios_stay_finite() -> None:
    wild = torch.tensor([-1e4, 1e4])
    assert clamp_log_ratio(wild).tolist() == [-MAX_LOG_RATIO, MAX_LOG_RATIO]
    out = correct(Decoupled(cap=None), logprobs_N=wild, behaviour_N=-wild, proximal_N=None)
    assert torch.isfinite(out.weights).all()
