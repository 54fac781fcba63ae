"""Losses against references written token by token, and against finite differences."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.algorithms.loss import TokenLoss, token_loss
from learner.config import AepoClip, Cispo, Gspo, LossConfig, Nll, Ppo, Reinforce

log_ratios = st.floats(-3, 3).map(lambda x: round(x, 4))
advantages = st.floats(-2, 2).map(lambda x: round(x, 4))
tokens = st.lists(st.tuples(log_ratios, advantages), min_size=1, max_size=8)


def on_policy_values(config: LossConfig, log_ratio: Sequence[float], advantage: Sequence[float]) -> TokenLoss:
    """The loss where the reference gave every token probability 1: log th is log r; one trajectory."""
    x = torch.tensor(log_ratio, dtype=torch.float64)
    return losses(config, x, torch.zeros_like(x), torch.tensor(advantage, dtype=torch.float64))


def losses(
    config: LossConfig, logprobs: Tensor, reference: Tensor, advantage: Tensor, leaves: Sequence[int] | None = None
) -> TokenLoss:
    leaf = torch.tensor([0] * len(logprobs) if leaves is None else leaves, dtype=torch.long)
    return token_loss(
        config,
        logprobs_N=logprobs,
        log_ratio_N=logprobs - reference,
        advantages_N=advantage,
        leaf_N=leaf,
        num_leaves=int(leaf.max()) + 1,
    )


def ppo_reference(config: Ppo | AepoClip, ratio: float, advantage: float) -> float:
    low, high = 1 - config.eps_low, 1 + config.eps_high
    objective = min(ratio * advantage, min(max(ratio, low), high) * advantage)
    if config.dual_clip is not None and advantage < 0:
        objective = max(objective, config.dual_clip * advantage)
    return -objective


def clips(kind: type[Ppo] | type[AepoClip]) -> st.SearchStrategy[Ppo | AepoClip]:
    return st.builds(
        kind,
        eps_low=st.sampled_from([0.0, 0.2]),
        eps_high=st.sampled_from([0.2, 0.28]),
        dual_clip=st.sampled_from([None, 3.0]),
    )


def is_near_a_kink(config: Ppo | AepoClip, ratio: float) -> bool:
    return any(abs(ratio - kink) < 1e-4 for kink in (1 - config.eps_low, 1 + config.eps_high, 3.0))


@given(clips(Ppo), tokens)
def test_ppo_equals_its_definition_and_is_clipped_exactly_where_its_gradient_is_zero(
    config: Ppo, tokens: list[tuple[float, float]]
) -> None:
    x = torch.tensor([t[0] for t in tokens], dtype=torch.float64, requires_grad=True)
    out = losses(config, x, torch.zeros_like(x), torch.tensor([t[1] for t in tokens], dtype=torch.float64))
    expected = [ppo_reference(config, math.exp(x), a) for x, a in tokens]
    np.testing.assert_allclose(out.loss.detach(), expected, rtol=1e-12, atol=1e-12)
    out.loss.sum().backward()
    assert x.grad is not None
    for i, (log_ratio, a) in enumerate(tokens):
        if a != 0 and not is_near_a_kink(config, math.exp(log_ratio)):
            assert bool(out.is_clipped[i]) == (x.grad[i] == 0)


@given(clips(AepoClip), tokens)
def test_aepos_clip_has_the_values_of_ppo_and_keeps_a_bounded_gradient_above(
    config: AepoClip, tokens: list[tuple[float, float]]
) -> None:
    x = torch.tensor([t[0] for t in tokens], dtype=torch.float64, requires_grad=True)
    out = losses(config, x, torch.zeros_like(x), torch.tensor([t[1] for t in tokens], dtype=torch.float64))
    expected = [ppo_reference(config, math.exp(x), a) for x, a in tokens]
    np.testing.assert_allclose(out.loss.detach(), expected, rtol=1e-12, atol=1e-12)
    out.loss.sum().backward()
    assert x.grad is not None
    for i, (log_ratio, a) in enumerate(tokens):
        ratio = math.exp(log_ratio)
        if is_near_a_kink(config, ratio):
            continue
        factor = ratio
        if ratio > 1 + config.eps_high and a > 0:
            factor = 1 + config.eps_high
        if (ratio < 1 - config.eps_low and a < 0) or (a < 0 and ratio > (config.dual_clip or math.inf)):
            factor = 0.0
        assert x.grad[i].item() == pytest.approx(-factor * a, rel=1e-12)
        assert bool(out.is_clipped[i]) == (factor != ratio and a != 0)


@given(tokens, st.sampled_from([None, 0.3]), st.sampled_from([0.5, 4.0]))
def test_cispo_weighs_the_log_probability_by_a_bounded_ratio(
    tokens: list[tuple[float, float]], eps_low: float | None, eps_high: float
) -> None:
    reference = torch.linspace(-2, 0, len(tokens), dtype=torch.float64)
    x = (reference + torch.tensor([t[0] for t in tokens])).requires_grad_()
    config = Cispo(eps_low=eps_low, eps_high=eps_high)
    out = losses(config, x, reference, torch.tensor([t[1] for t in tokens], dtype=torch.float64))
    low = 0.0 if eps_low is None else 1 - eps_low
    ratios = (x.detach() - reference).exp().tolist()
    weights = [min(max(ratio, low), 1 + eps_high) for ratio in ratios]
    expected = [-w * a * now for w, (_, a), now in zip(weights, tokens, x.tolist(), strict=True)]
    np.testing.assert_allclose(out.loss.detach(), expected, rtol=1e-12, atol=1e-12)
    out.loss.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, [-w * a for w, (_, a) in zip(weights, tokens, strict=True)], rtol=1e-12)


trajectories = st.lists(
    st.tuples(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=5), advantages), min_size=1, max_size=4
)


@given(trajectories, st.randoms(use_true_random=False))
def test_gspo_clips_whole_trajectories_and_has_the_gradient_of_the_sequence_ratio(
    drawn: list[tuple[list[float], float]], random: "object"
) -> None:
    flat = [(leaf, x, a) for leaf, (log_ratios, a) in enumerate(drawn) for x in log_ratios]
    random.shuffle(flat)  # type: ignore[attr-defined]  # tokens of a trajectory need not stand together
    leaves = [t[0] for t in flat]
    x = torch.tensor([t[1] for t in flat], dtype=torch.float64, requires_grad=True)
    config = Gspo(eps_low=0.1, eps_high=0.2)
    out = losses(config, x, torch.zeros_like(x), torch.tensor([t[2] for t in flat], dtype=torch.float64), leaves)
    # the sequence mean of the token form is the sequence loss, in value and in gradient
    counts = torch.bincount(torch.tensor(leaves))
    (out.loss / counts[leaves]).sum().backward()
    y = x.detach().clone().requires_grad_()
    total = y.new_zeros(())
    for leaf, (log_ratios, a) in enumerate(drawn):
        s = torch.exp(y[[i for i, other in enumerate(leaves) if other == leaf]].mean())
        total = total - torch.minimum(s * a, s.clamp(0.9, 1.2) * a)
        for i, other in enumerate(leaves):
            if other == leaf:
                assert out.loss[i].item() == pytest.approx(
                    ppo_reference(Ppo(eps_low=0.1, eps_high=0.2), math.exp(np.mean(log_ratios)), a), abs=1e-12
                )
    total.backward()
    assert x.grad is not None
    assert y.grad is not None
    np.testing.assert_allclose(x.grad, y.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("config", [Ppo(), Ppo(eps_high=0.28, dual_clip=3.0), Reinforce(), Nll()])
def test_gradients_are_those_of_finite_differences(config: LossConfig) -> None:
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(0, 0.5, 40)).requires_grad_()
    a = torch.from_numpy(rng.normal(0, 1, 40))
    reference = torch.from_numpy(rng.normal(0, 0.1, 40))
    assert torch.autograd.gradcheck(lambda x: losses(config, x, reference, a).loss, x, eps=1e-7, atol=1e-6)


def held_cispo(x: Tensor, r: Tensor, a: Tensor) -> Tensor:
    return -r.clamp(max=5) * a * x


def held_aepo(x: Tensor, r: Tensor, a: Tensor) -> Tensor:
    factor = torch.where((r > 1.2) & (a > 0), 1.2, torch.where((r < 0.8) & (a < 0), 0.0, r))
    return -factor * a * x


@pytest.mark.parametrize(("config", "surrogate"), [(Cispo(), held_cispo), (AepoClip(), held_aepo)])
def test_gradients_behind_a_stop_gradient_are_those_with_its_value_held(
    config: LossConfig, surrogate: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    # a stop-gradient is invisible to differences, so they are taken of what is left when its value is held
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.normal(0, 0.8, 40)).requires_grad_()
    a = torch.from_numpy(rng.normal(0, 1, 40))
    losses(config, x, torch.zeros_like(x), a).loss.sum().backward()
    held = x.detach().exp()
    step = 1e-6
    slope = (surrogate(x.detach() + step, held, a) - surrogate(x.detach() - step, held, a)) / (2 * step)
    np.testing.assert_allclose(x.grad, slope, rtol=1e-7, atol=1e-9)


@given(st.sampled_from([Ppo(), AepoClip(dual_clip=3.0), Cispo(), Gspo(), Reinforce()]), tokens, st.floats(0.1, 10))
def test_every_loss_is_positively_homogeneous_in_the_advantage(
    config: LossConfig, tokens: list[tuple[float, float]], scale: float
) -> None:
    x = [t[0] for t in tokens]
    once = on_policy_values(config, x, [t[1] for t in tokens]).loss
    scaled = on_policy_values(config, x, [scale * t[1] for t in tokens]).loss
    np.testing.assert_allclose(scaled, scale * once, rtol=1e-9, atol=1e-12)


def test_clip_higher_and_dual_clip_bound_the_two_signs() -> None:
    log_ratio = [math.log(1.5), math.log(0.5), math.log(10.0)]
    out = on_policy_values(Ppo(eps_high=0.28, dual_clip=3.0), log_ratio, [1.0, 1.0, -1.0])
    np.testing.assert_allclose(out.loss, [-1.28, -0.5, 3.0], rtol=1e-6)
    assert out.is_clipped.tolist() == [True, False, True]


@pytest.mark.parametrize("config", [Nll(), Reinforce()])
def test_likelihood_losses_are_minus_the_weighted_log_probability(config: Nll | Reinforce) -> None:
    out = losses(config, torch.tensor([-1.0, -2.0]), torch.tensor([-6.0, -7.0]), torch.tensor([1.0, -3.0]))
    assert out.loss.tolist() == [1.0, -6.0]
    assert not out.is_clipped.any()


@pytest.mark.parametrize(
    ("config", "log_ratio", "advantage", "value", "gradient"),
    [
        (Ppo(), [1.5], 1.0, -1.2, 0.0),
        (Ppo(), [0.5], 1.0, -0.5, -0.5),
        (AepoClip(), [1.5], 1.0, -1.2, -1.2),
        (Cispo(), [7.0], 1.0, -5 * math.log(7.0), -5.0),
        (Cispo(), [0.1], 1.0, -0.1 * math.log(0.1), -0.1),
        (Gspo(eps_high=0.5), [math.exp(0.2), math.exp(0.4)], 1.0, -1.35, -1.35),
    ],
)
def test_the_examples_of_the_docstrings_hold(
    config: LossConfig, log_ratio: list[float], advantage: float, value: float, gradient: float
) -> None:
    x = torch.tensor(log_ratio, dtype=torch.float64).log().requires_grad_()
    out = losses(config, x, torch.zeros_like(x), torch.full_like(x, advantage))
    out.loss.sum().backward()
    assert x.grad is not None
    assert out.loss.tolist() == pytest.approx([value] * len(log_ratio), abs=1e-3)
    assert x.grad.tolist() == pytest.approx([gradient] * len(log_ratio), abs=1e-3)
