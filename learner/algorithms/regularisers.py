"""What is added to a policy loss: a penalty on leaving the reference policy, and a bonus for entropy.

Axes: N trained tokens. q = th / reference, sg(x) the value of x without gradient.
"""

import torch
from torch import Tensor

from engine.errors import LearnerError
from learner.algorithms.correction import clamp_log_ratio
from learner.algorithms.loss_config import Kl


def kl_penalty(config: Kl, *, logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """[N] an estimate of KL(th || reference) at each token, before `coef`; the gradient is that of th alone.

    The values are Schulman's: k1 = log q, k2 = (log q)^2 / 2, k3 = 1/q - 1 + log q; k1 and k3 have the mean
    KL(th || reference) over tokens drawn from th, and k2 is biased by little where q is near 1. The gradient of log q
    itself has mean 0, so k1 carries the one that a penalty in the reward has, log q times that of log th; k2 has the
    same by itself, and its mean is the gradient of KL(th || reference). k3 is differentiated as it is, as in GRPO
    (2402.03300, Eq 4): (1 - 1/q) times the gradient of log th, whose mean is that of KL(reference || th).

    A token's penalty does not look at what it makes of later tokens. With q = 2: k1 0.693, k2 0.240, k3 0.193, and the
    gradients 0.693, 0.693, 0.5.
    """
    log_q_N = clamp_log_ratio(logprobs_N - reference_N)
    match config.estimator:
        case "k1":
            # the value is sg(log q): what is added to it is 0
            return log_q_N.detach() * (1 + log_q_N - log_q_N.detach())
        case "k2":
            return log_q_N.square() / 2
        case "k3":
            return torch.expm1(-log_q_N) + log_q_N


def regularised(
    loss_N: Tensor,
    *,
    kl: Kl | None,
    entropy_coef: float,
    logprobs_N: Tensor,
    entropies_N: Tensor,
    reference_N: Tensor | None,
) -> Tensor:
    """[N] the policy loss + coef * KL penalty - entropy_coef * H.

    The result is weighted by the correction as a whole: that makes of tokens which the behaviour policy drew those
    that the proximal policy would draw, for the penalty as for the loss. With coef 0.1 and entropy_coef 0.01, a loss of
    1, a penalty of 0.5 and an entropy of 2 nats make 1.03. Raises `LearnerError` for a `kl` without `reference_N`.
    """
    if kl is not None:
        if reference_N is None:
            raise LearnerError("learner.kl needs the log-probabilities of a reference policy")
        loss_N = loss_N + kl.coef * kl_penalty(kl, logprobs_N=logprobs_N, reference_N=reference_N)
    return loss_N - entropy_coef * entropies_N if entropy_coef else loss_N
