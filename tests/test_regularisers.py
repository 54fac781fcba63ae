"""What is added to a loss: values, and whose gradients they have, over a vocabulary that can be enumerated."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import LearnerError
from learner.algorithms.correction import MAX_LOG_RATIO
from learner.algorithms.regularisers import kl_penalty, regularised
from learner.config import Kl

VALUES = {
    "k1": lambda log_q: log_q,
    "k2": lambda log_q: log_q**2 / 2,
    "k3": lambda log_q: math.exp(-log_q) - 1 + log_q,
}


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.sampled_from(sorted(VALUES)))
def test_values_are_schulmans(log_qs: list[float], estimator: str) -> None:
    x = torch.tensor(log_qs, dtype=torch.float64)
    found = kl_penalty(Kl(estimator=estimator), logprobs_N=x - 1, reference_N=torch.full_like(x, -1.0))
    np.testing.assert_allclose(found, [VALUES[estimator](x) for x in log_qs], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("estimator", "is_reverse"), [("k1", True), ("k2", True), ("k3", False)])
def test_the_mean_gradient_over_all_tokens_is_that_of_the_divergence(estimator: str, is_reverse: bool) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=7)).requires_grad_()
    reference = torch.from_numpy(rng.normal(size=7)).log_softmax(0)
    logprobs = logits.log_softmax(0)
    penalties = kl_penalty(Kl(estimator=estimator), logprobs_N=logprobs, reference_N=reference)
    # tokens are drawn from th, whose probabilities are weights without a gradient here
    (mean,) = torch.autograd.grad((logprobs.exp().detach() * penalties).sum(), logits, retain_graph=True)
    reverse = (logprobs.exp() * (logprobs - reference)).sum()
    forward = (reference.exp() * (reference - logprobs)).sum()
    (expected,) = torch.autograd.grad(reverse if is_reverse else forward, logits, retain_graph=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-12)
    if estimator != "k2":
        assert (logprobs.exp() * penalties).sum().item() == pytest.approx(reverse.item(), rel=1e-9)


def test_the_example_of_the_docstring_holds() -> None:
    for estimator, value, gradient in (("k1", 0.693, 0.693), ("k2", 0.240, 0.693), ("k3", 0.193, 0.5)):
        x = torch.tensor([math.log(0.5)], requires_grad=True)
        found = kl_penalty(Kl(estimator=estimator), logprobs_N=x, reference_N=torch.tensor([math.log(0.25)]))
        found.sum().backward()
        assert x.grad is not None
        assert found.item() == pytest.approx(value, abs=1e-3)
        assert x.grad.item() == pytest.approx(gradient, abs=1e-3)


def test_the_reference_gets_no_gradient_and_absurd_ratios_stay_finite() -> None:
    x = torch.tensor([-1e4, -1.0], requires_grad=True)
    found = kl_penalty(Kl(), logprobs_N=x, reference_N=torch.tensor([-1.0, -1e4]))
    assert found.detach().tolist() == pytest.approx([math.expm1(MAX_LOG_RATIO) - MAX_LOG_RATIO, MAX_LOG_RATIO - 1])


def test_penalty_and_bonus_are_added_with_their_coefficients_and_gradients() -> None:
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.0, -1.2, -1.1], dtype=torch.float64)

    def total(logits: torch.Tensor) -> torch.Tensor:
        logprobs = logits.log_softmax(0)
        entropy = -(logprobs.exp() * logprobs).sum().expand(3)
        return regularised(
            torch.ones(3, dtype=torch.float64),
            kl=Kl(coef=0.1, estimator="k2"),
            entropy_coef=0.01,
            logprobs_N=logprobs,
            entropies_N=entropy,
            reference_N=reference,
        )

    logprobs = logits.detach().log_softmax(0)
    entropy = -(logprobs.exp() * logprobs).sum()
    np.testing.assert_allclose(total(logits).detach(), 1 + 0.1 * (logprobs - reference) ** 2 / 2 - 0.01 * entropy)
    assert torch.autograd.gradcheck(total, logits)


def test_a_penalty_without_a_reference_is_refused_and_none_costs_nothing() -> None:
    x = torch.tensor([-1.0])
    options = {"entropy_coef": 0.0, "logprobs_N": x, "entropies_N": x, "reference_N": None}
    assert regularised(x, kl=None, **options) is x
    with pytest.raises(LearnerError, match="reference policy"):
        regularised(x, kl=Kl(), **options)
