"""What one packed row contributes: its share of the loss, and the sums that the step's report is made of.

Axes: N scored tokens of the row, E trained tokens of its trajectories, V versions of the batch.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.types import Int32
from learner.config import LearnerConfig, NoCorrection
from learner.correction import clamp_log_ratio, correct
from learner.loss import token_loss
from learner.rows import Row
from learner.statistics import RowStatistics


def row_objective(
    config: LearnerConfig,
    row: Row,
    *,
    logprobs_N: Tensor,
    entropies_N: Tensor,
    proximal_N: Tensor | None,
    versions: Int32,
) -> tuple[Tensor, RowStatistics]:
    """sum over the row's trained tokens of weight * correction * loss; weights hold the mini-batch's denominator.

    A token that several trajectories share is scored once and counts for each of them. `proximal_N` unset: the proximal
    policy is taken to be the present one, which it is in the first update of a step. Train against behaviour (k3,
    ratio) is measured with the proximal policy. A supervised loss has no behaviour policy: it is not corrected, and
    reports a k3 of 0 and a ratio of 1. `versions` are those of the whole batch, ascending.
    """

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(logprobs_N)

    tokens_E = torch.from_numpy(row.tokens).long().to(logprobs_N.device)
    logprobs_E = logprobs_N[tokens_E]
    proximal_E = None if proximal_N is None else proximal_N[tokens_E]
    behaviour_E, correction = tensor(row.behaviour), config.correction
    if config.is_supervised:
        behaviour_E, correction = logprobs_E.detach(), NoCorrection()
    corrected = correct(correction, logprobs_N=logprobs_E, behaviour_N=behaviour_E, proximal_N=proximal_E)
    losses = token_loss(
        config.loss,
        logprobs_N=logprobs_E,
        log_ratio_N=corrected.log_ratio,
        advantages_N=tensor(row.advantages),
    )
    losses_E = tensor(row.weights) * corrected.weights * losses.loss
    with torch.no_grad():
        log_rho_E = clamp_log_ratio((logprobs_E if proximal_E is None else proximal_E) - behaviour_E).double()
        k3_E = log_rho_E.exp() - 1 - log_rho_E
        is_clipped_E = losses.is_clipped.double()
        columns = (losses_E.double(), entropies_N[tokens_E].double(), k3_E, is_clipped_E, torch.ones_like(k3_E))
        statistics = RowStatistics.nothing(len(versions), logprobs_N.device)
        version_E = torch.from_numpy(np.searchsorted(versions, row.versions)).to(logprobs_N.device)
        statistics.sums.index_add_(0, version_E, torch.stack(columns, dim=1))
        statistics.max_log_ratio.scatter_reduce_(0, version_E, log_rho_E, reduce="amax")
    return losses_E.sum(), statistics
