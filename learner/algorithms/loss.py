"""The policy losses: one value for each trained token, from what the token's own probability became.

Axes: N trained tokens of a row, a token that trajectories share standing once for each of them; L trajectories. A
advantage, r = th / reference, where the correction says what the reference is, sg(x) the value of x without gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from learner.algorithms.loss_config import AepoClip, Cispo, Gspo, LossConfig, Nll, Ppo, Reinforce
from learner.packing.segments import leaf_means


class TokenLoss(NamedTuple):
    """What a loss says about each token."""

    loss: Tensor
    """[N] to be minimised; with gradient."""
    is_clipped: Tensor
    """[N] true where a clip holds the token: its gradient is gone, or no longer grows with the ratio."""


def token_loss(
    config: LossConfig,
    *,
    logprobs_N: Tensor,
    log_ratio_N: Tensor,
    advantages_N: Tensor,
    leaf_N: Tensor,
    num_leaves: int,
) -> TokenLoss:
    """The loss of each token. `log_ratio_N` = log r, already clamped; its gradient is that of `logprobs_N`.

    `leaf_N` [N] int64 says which of the `num_leaves` trajectories a token belongs to; all trained tokens of a
    trajectory are here.
    """
    match config:
        case Ppo():
            return ppo(config, log_ratio_N=log_ratio_N, advantages_N=advantages_N)
        case AepoClip():
            return aepo_clip(config, log_ratio_N=log_ratio_N, advantages_N=advantages_N)
        case Cispo():
            return cispo(config, logprobs_N=logprobs_N, log_ratio_N=log_ratio_N, advantages_N=advantages_N)
        case Gspo():
            means_L = leaf_means(log_ratio_N.detach(), leaf_N, num_leaves=num_leaves)
            return gspo(config, logprobs_N=logprobs_N, log_mean_N=means_L[leaf_N], advantages_N=advantages_N)
        case Reinforce() | Nll():
            return TokenLoss(-logprobs_N * advantages_N, torch.zeros_like(logprobs_N, dtype=torch.bool))


def ppo(config: Ppo, *, log_ratio_N: Tensor, advantages_N: Tensor) -> TokenLoss:
    """L = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A); with dual clip, L <= -c A where A < 0 (1912.09729).

    With eps 0.2 and A = 1: r = 1.5 gives -1.2 and no gradient, r = 0.5 gives -0.5 and a gradient.
    """
    ratio_N = log_ratio_N.exp()
    plain_N = -ratio_N * advantages_N
    clipped_N = -ratio_N.clamp(1 - config.eps_low, 1 + config.eps_high) * advantages_N
    found = TokenLoss(torch.maximum(plain_N, clipped_N), clipped_N > plain_N)
    return _bounded(found, advantages_N, dual_clip=config.dual_clip)


def aepo_clip(config: AepoClip, *, log_ratio_N: Tensor, advantages_N: Tensor) -> TokenLoss:
    """L = -min(r A, clip(r, 1 - eps_low, (1 + eps_high) r / sg(r)) A) (AEPO, 2510.14545; the form of GPPO).

    The values are PPO's. Gradient with respect to log th: 0 where r < 1 - eps_low and A < 0, -(1 + eps_high) A where
    r > 1 + eps_high and A > 0, else -r A. With eps 0.2 and A = 1: r = 1.5 gives -1.2 and the gradient -1.2.
    """
    ratio_N = log_ratio_N.exp()
    plain_N = -ratio_N * advantages_N
    lowest, highest = 1 - config.eps_low, 1 + config.eps_high
    held_N = highest * ratio_N / ratio_N.detach()
    inside_N = torch.where(ratio_N > highest, held_N, ratio_N.clamp(min=lowest))
    clipped_N = -inside_N * advantages_N
    found = TokenLoss(torch.where(clipped_N > plain_N, clipped_N, plain_N), clipped_N > plain_N)
    return _bounded(found, advantages_N, dual_clip=config.dual_clip)


def cispo(config: Cispo, *, logprobs_N: Tensor, log_ratio_N: Tensor, advantages_N: Tensor) -> TokenLoss:
    """L = -sg(clip(r, 1 - eps_low, 1 + eps_high)) A log th (CISPO, 2506.13585); unset eps_low does not clip below.

    With eps_high 4 and A = 1: r = 7 gives the gradient -5 with respect to log th, r = 0.1 gives -0.1.
    """
    ratio_N = log_ratio_N.detach().exp()
    lowest = 0.0 if config.eps_low is None else 1 - config.eps_low
    weights_N = ratio_N.clamp(lowest, 1 + config.eps_high)
    return TokenLoss(-weights_N * advantages_N * logprobs_N, weights_N != ratio_N)


def gspo(config: Gspo, *, logprobs_N: Tensor, log_mean_N: Tensor, advantages_N: Tensor) -> TokenLoss:
    """L = -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A), s = sg(s_i) th / sg(th) (GSPO, 2507.18071, Eq 5 and 14).

    s_i = exp(mean over trajectory i of log r_t), whose logarithm is `log_mean_N` at each of its tokens. All tokens of a
    trajectory are equal in value, and clipped together where they have one advantage. log r = 0.2 and 0.4 make s = 1.35
    at both.
    """
    log_s_N = log_mean_N.detach() + logprobs_N - logprobs_N.detach()
    limits = Ppo(eps_low=config.eps_low, eps_high=config.eps_high)
    return ppo(limits, log_ratio_N=log_s_N, advantages_N=advantages_N)


def _bounded(found: TokenLoss, advantages_N: Tensor, *, dual_clip: float | None) -> TokenLoss:
    """Dual clip: where A < 0, the loss is at most -c A."""
    if dual_clip is None:
        return found
    bound_N = -dual_clip * advantages_N
    is_bounded_N = (advantages_N < 0) & (found.loss > bound_N)
    return TokenLoss(torch.where(is_bounded_N, bound_N, found.loss), found.is_clipped | is_bounded_N)
