"""What one packed row contributes: its share of the loss, and the sums that the step's report is made of."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.batcher import Row
from learner.config import LearnerConfig, NoCorrection
from learner.correction import clamp_log_ratio, correct
from learner.loss import token_loss
from learner.regularisers import regularised


@dataclass(frozen=True, kw_only=True)
class RowStatistics:
    """Sums over the trained tokens of a row, as one tensor that adds up over rows and ranks."""

    sums: Tensor
    """[5] float64: loss, entropy, k3, clipped tokens, tokens."""
    max_log_ratio: Tensor
    """[] float64: largest log(train / behaviour)."""

    @classmethod
    def nothing(cls, device: torch.device) -> "RowStatistics":
        return cls(
            sums=torch.zeros(5, dtype=torch.float64, device=device),
            max_log_ratio=torch.tensor(-torch.inf, dtype=torch.float64, device=device),
        )

    def __add__(self, other: "RowStatistics") -> "RowStatistics":
        return RowStatistics(
            sums=self.sums + other.sums, max_log_ratio=torch.maximum(self.max_log_ratio, other.max_log_ratio)
        )


def row_objective(
    config: LearnerConfig,
    row: Row,
    *,
    logprobs_N: Tensor,
    entropies_N: Tensor,
    proximal_N: Tensor | None,
    reference_N: Tensor | None = None,
    keep_N: Tensor | None = None,
) -> tuple[Tensor, RowStatistics]:
    """sum over the row's trained tokens of weight * correction * loss; weights hold the mini-batch's denominator.

    `proximal_N` unset: the proximal policy is taken to be the present one, which it is in the first update of a step.
    `reference_N`, log-probabilities of the reference policy, is needed for `kl`, `keep_N` for M2PO (see `correct`).
    Train against behaviour (k3, ratio) is measured with the proximal policy. A supervised loss has no behaviour policy:
    it is not corrected, and reports a k3 of 0 and a ratio of 1.
    """

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(logprobs_N)

    behaviour_N = tensor(row.behaviour)
    correction, rejections = config.correction, config.rejections
    if config.is_supervised:
        behaviour_N, correction, rejections = logprobs_N.detach(), NoCorrection(), ()
    leaf_N, num_leaves = _leaves(row, logprobs_N.device), len(row.counts)
    corrected = correct(
        correction,
        rejections=rejections,
        logprobs_N=logprobs_N,
        behaviour_N=behaviour_N,
        proximal_N=proximal_N,
        leaf_N=leaf_N,
        num_leaves=num_leaves,
        keep_N=keep_N,
    )
    losses = token_loss(
        config.loss,
        logprobs_N=logprobs_N,
        log_ratio_N=corrected.log_ratio,
        advantages_N=tensor(row.advantages),
        leaf_N=leaf_N,
        num_leaves=num_leaves,
    )
    loss_N = regularised(
        losses.loss,
        kl=config.kl,
        entropy_coef=config.entropy_coef,
        logprobs_N=logprobs_N,
        entropies_N=entropies_N,
        reference_N=reference_N,
    )
    loss = (tensor(row.weights) * corrected.weights * loss_N).sum()
    before_N = logprobs_N if proximal_N is None else proximal_N
    return loss, _statistics(loss, entropies_N, clamp_log_ratio(before_N - behaviour_N), losses.is_clipped)


@torch.no_grad()
def _statistics(loss: Tensor, entropies_N: Tensor, log_rho_N: Tensor, is_clipped_N: Tensor) -> RowStatistics:
    log_rho_N = log_rho_N.double()
    k3_N = log_rho_N.exp() - 1 - log_rho_N
    sums = (loss.double(), entropies_N.double().sum(), k3_N.sum(), is_clipped_N.double().sum())
    count = loss.new_tensor(len(log_rho_N), dtype=torch.float64)
    empty = RowStatistics.nothing(loss.device)
    return RowStatistics(
        sums=torch.stack((*sums, count)),
        max_log_ratio=log_rho_N.max() if len(log_rho_N) else empty.max_log_ratio,
    )


def _leaves(row: Row, device: torch.device) -> Tensor:
    """[N] which of the row's trajectories each trained token belongs to."""
    counts = torch.tensor(row.counts, dtype=torch.long, device=device)
    return torch.arange(len(row.counts), device=device).repeat_interleave(counts)
