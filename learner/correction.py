"""Off-policy correction: what a token's ratio refers to, and the weight in front of its loss.

Symbols: b behaviour (recorded by the rollout, never recomputed), p proximal (the learner's weights at the start of the
step), th current. Log-ratios are clamped to +-20 before they are exponentiated. Axes: N trained tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from learner.config import CorrectionConfig, Decoupled, NoCorrection, TruncatedIs

MAX_LOG_RATIO = 20.0


class Corrected(NamedTuple):
    """What a correction says about each token."""

    log_ratio: Tensor
    """[N] log(th / reference), with the gradient of th."""
    weights: Tensor
    """[N] in front of the loss; without gradient."""


def needs_proximal(config: CorrectionConfig) -> bool:
    """Whether the log-probabilities at the start of the step are needed."""
    return not isinstance(config, NoCorrection)


def clamp_log_ratio(log_ratio_N: Tensor) -> Tensor:
    """Keep exp finite; beyond the bounds there is no gradient."""
    return log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def correct(
    config: CorrectionConfig, *, logprobs_N: Tensor, behaviour_N: Tensor, proximal_N: Tensor | None
) -> Corrected:
    """The ratio's logarithm and the weight of each token.

    `proximal_N` unset means that th still is p (the first update of a step), so p is `logprobs_N` detached and the
    ratio is 1 with a gradient. With b = 0.1, p = 0.3, th = 0.3: `none` has ratio 3, weight 1; `decoupled` with cap 5
    ratio 1, weight 3; `truncated_is` with cap 2 ratio 1, weight 2.
    """
    if not needs_proximal(config):
        return Corrected(clamp_log_ratio(logprobs_N - behaviour_N), torch.ones_like(behaviour_N))
    reference_N = logprobs_N.detach() if proximal_N is None else proximal_N
    weights_N = clamp_log_ratio(reference_N - behaviour_N).exp()
    match config:
        case Decoupled(cap=None):
            pass
        case Decoupled(cap=cap, mode="mask"):
            weights_N = weights_N.masked_fill(weights_N > cap, 0.0)
        case Decoupled(cap=cap) | TruncatedIs(cap=cap):
            weights_N = weights_N.clamp(max=cap)
    return Corrected(clamp_log_ratio(logprobs_N - reference_N), weights_N)
