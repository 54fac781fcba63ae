"""The policy losses: one value for each trained token, from what the token's own probability became.

Axes: N trained tokens. A advantage, r = th / reference, where the correction says what the reference is. Each loss here
is token-separable and positively homogeneous in A (f(r, cA) = c f(r, A) for c > 0), so a token that several
trajectories share needs only the sums of its weights by the sign of A.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from learner.config import LossConfig, Nll, Ppo, Reinforce


class TokenLoss(NamedTuple):
    """What a loss says about each token."""

    loss: Tensor
    """[N] to be minimised; with gradient."""
    is_clipped: Tensor
    """[N] true where clipping took the gradient away."""


def token_loss(config: LossConfig, *, logprobs_N: Tensor, log_ratio_N: Tensor, advantages_N: Tensor) -> TokenLoss:
    """The loss of each token. `log_ratio_N` = log r, already clamped; its gradient is that of `logprobs_N`."""
    match config:
        case Ppo():
            return ppo(config, log_ratio_N=log_ratio_N, advantages_N=advantages_N)
        case Reinforce() | Nll():
            return TokenLoss(-logprobs_N * advantages_N, torch.zeros_like(logprobs_N, dtype=torch.bool))


def ppo(config: Ppo, *, log_ratio_N: Tensor, advantages_N: Tensor) -> TokenLoss:
    """L = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A); with dual clip, L <= -c A where A < 0 (1912.09729).

    With eps 0.2 and A = 1: r = 1.5 gives -1.2 and no gradient, r = 0.5 gives -0.5 and a gradient.
    """
    ratio_N = log_ratio_N.exp()
    plain_N = -ratio_N * advantages_N
    clipped_N = -ratio_N.clamp(1 - config.eps_low, 1 + config.eps_high) * advantages_N
    is_clipped_N = clipped_N > plain_N
    loss_N = torch.maximum(plain_N, clipped_N)
    if config.dual_clip is not None:
        bound_N = -config.dual_clip * advantages_N
        is_bounded_N = (advantages_N < 0) & (loss_N > bound_N)
        loss_N = torch.where(is_bounded_N, bound_N, loss_N)
        is_clipped_N = is_clipped_N | is_bounded_N
    return TokenLoss(loss_N, is_clipped_N)
