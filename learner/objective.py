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
    config: LearnerConfig, row: Row, *, logprobs_N: Tensor, entropies_N: Tensor, proximal_N: Tensor | None
) -> tuple[Tensor, RowStatistics]:
    """sum over the row's trained tokens of weight * correction * loss; weights hold the mini-batch's denominator.

    `proximal_N` unset: the proximal policy is taken to be the present one, which it is in the first update of a step.
    Train against behaviour (k3, ratio) is measured with the proximal policy. A supervised loss has no behaviour policy:
    it is not corrected, and reports a k3 of 0 and a ratio of 1.
    """

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(logprobs_N)

    behaviour_N = tensor(row.behaviour)
    correction = config.correction
    if config.is_supervised:
        behaviour_N, correction = logprobs_N.detach(), NoCorrection()
    corrected = correct(correction, logprobs_N=logprobs_N, behaviour_N=behaviour_N, proximal_N=proximal_N)
    losses = token_loss(
        config.loss,
        logprobs_N=logprobs_N,
        log_ratio_N=corrected.log_ratio,
        advantages_N=tensor(row.advantages),
    )
    loss = (tensor(row.weights) * corrected.weights * losses.loss).sum()
    with torch.no_grad():
        before_N = logprobs_N if proximal_N is None else proximal_N
        log_rho_N = clamp_log_ratio(before_N - behaviour_N).double()
        k3_N = log_rho_N.exp() - 1 - log_rho_N
        sums = (loss.double(), entropies_N.double().sum(), k3_N.sum(), losses.is_clipped.double().sum())
        count = loss.new_tensor(len(row.targets), dtype=torch.float64)
        empty = RowStatistics.nothing(logprobs_N.device)
        statistics = RowStatistics(
            sums=torch.stack((*sums, count)),
            max_log_ratio=log_rho_N.max() if len(row.targets) else empty.max_log_ratio,
        )
    return loss, statistics
