"""Off-policy correction: what a token's ratio refers to, the weight in front of its loss, and what is not trained.

Symbols: b behaviour (recorded by the rollout, never recomputed), p proximal (the learner's weights at the start of the
step), th current, rho = p / b. Log-ratios, and their sums over a trajectory, are clamped to +-20 before they are
exponentiated. Axes: N trained tokens of a row, L trajectories of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learner.algorithms.correction_config import (
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
from learner.packing.segments import leaf_means, leaf_prefix_sums, leaf_sums

MAX_LOG_RATIO = 20.0


class Corrected(NamedTuple):
    """What a correction says about each token."""

    log_ratio: Tensor
    """[N] log(th / reference), with the gradient of th."""
    weights: Tensor
    """[N] in front of the loss, 0 for what is rejected; without gradient."""
    is_rejected: Tensor
    """[N] true where a rejection, not the weight's own bound, keeps the token from being trained."""


def needs_proximal(config: CorrectionConfig, rejections: Sequence[RejectionConfig] = ()) -> bool:
    """Whether the log-probabilities at the start of the step are needed."""
    return bool(rejections) or not isinstance(config, NoCorrection)


def m2po_of(rejections: Sequence[RejectionConfig]) -> M2po | None:
    """The rejection that looks at the whole mini-batch, if there is one: its result is `correct`'s `keep_N`."""
    return next((r for r in rejections if isinstance(r, M2po)), None)


def clamp_log_ratio(log_ratio_N: Tensor) -> Tensor:
    """Keep exp finite; beyond the bounds there is no gradient."""
    return log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def correct(
    config: CorrectionConfig,
    *,
    rejections: Sequence[RejectionConfig] = (),
    logprobs_N: Tensor,
    behaviour_N: Tensor,
    proximal_N: Tensor | None,
    leaf_N: Tensor,
    num_leaves: int,
    keep_N: Tensor | None = None,
) -> Corrected:
    """The ratio's logarithm and the weight of each token.

    `proximal_N` unset means that th still is p (the first update of a step), so p is `logprobs_N` detached and the
    ratio is 1 with a gradient. `leaf_N` [N] int64 says which of the `num_leaves` trajectories a token belongs to; all
    trained tokens of a trajectory are here, in their order. `keep_N` [N] bool is what `m2po_keep` says of these tokens
    among all of the mini-batch; needed where `m2po_of(rejections)` is.

    With b = 0.1, p = 0.3, th = 0.3: `none` has ratio 3, weight 1; `decoupled` with cap 5 ratio 1, weight 3;
    `truncated_is` with cap 2 ratio 1, weight 2; `icepop` up to 2 ratio 1, weight 0. Two such tokens in a trajectory:
    `truncated_is` by sequence with cap 10 weighs both 9, `sequence_product` up to 2 rejects both; `exact_is`
    weighs both 9, over prefixes 3 and 9.
    """
    before_N = logprobs_N.detach() if proximal_N is None else proximal_N
    log_rho_N = clamp_log_ratio(before_N - behaviour_N)
    reference_N = behaviour_N if isinstance(config, NoCorrection) else before_N
    weights_N = _weights(config, log_rho_N, leaf_N, num_leaves)
    is_kept_N = torch.ones_like(leaf_N, dtype=torch.bool)
    for rejection in rejections:
        is_kept_N &= _keeps(rejection, log_rho_N, leaf_N, num_leaves, keep_N)
    return Corrected(
        clamp_log_ratio(logprobs_N - reference_N), weights_N.masked_fill(~is_kept_N, 0.0), is_rejected=~is_kept_N
    )


def _weights(config: CorrectionConfig, log_rho_N: Tensor, leaf_N: Tensor, num_leaves: int) -> Tensor:
    rho_N = log_rho_N.exp()
    match config:
        case NoCorrection():
            return torch.ones_like(rho_N)
        case Decoupled(cap=None):
            return rho_N
        case Decoupled(cap=cap, mode="mask"):
            return rho_N.masked_fill(rho_N > cap, 0.0)
        case Decoupled(cap=cap) | TruncatedIs(cap=cap, level="token"):
            return rho_N.clamp(max=cap)
        case TruncatedIs(cap=cap):
            products_L = clamp_log_ratio(leaf_sums(log_rho_N, leaf_N, num_leaves=num_leaves)).exp()
            return products_L.clamp(max=cap)[leaf_N]
        case IcePop(low=low, high=high):
            return rho_N.masked_fill((rho_N < low) | (rho_N > high), 0.0)
        case ExactIs(over="trajectory"):
            return clamp_log_ratio(leaf_sums(log_rho_N, leaf_N, num_leaves=num_leaves)).exp()[leaf_N]
        case ExactIs():
            return clamp_log_ratio(leaf_prefix_sums(log_rho_N, leaf_N)).exp()


def _keeps(
    rejection: RejectionConfig, log_rho_N: Tensor, leaf_N: Tensor, num_leaves: int, keep_N: Tensor | None
) -> Tensor:
    """[N] true for what one rejection lets through."""
    match rejection:
        case SequenceProduct(low=low, high=high):
            products_L = clamp_log_ratio(leaf_sums(log_rho_N, leaf_N, num_leaves=num_leaves)).exp()
            return ((products_L >= low) & (products_L <= high))[leaf_N]
        case SequenceGeometric(low=low, high=high):
            means_L = leaf_means(log_rho_N, leaf_N, num_leaves=num_leaves).exp()
            return ((means_L >= low) & (means_L <= high))[leaf_N]
        case SequenceK3(limit=limit):
            k3_N = torch.expm1(log_rho_N) - log_rho_N
            return (leaf_means(k3_N, leaf_N, num_leaves=num_leaves) <= limit)[leaf_N]
        case Veto(low=low, high=high):
            rho_N = log_rho_N.exp()
            is_outlier_N = (rho_N < low) | (rho_N > high)
            return (leaf_sums(is_outlier_N.to(rho_N), leaf_N, num_leaves=num_leaves) == 0)[leaf_N]
        case M2po():
            if keep_N is None:
                raise ValueError("m2po looks at the whole mini-batch: keep_N is needed")
            return keep_N
