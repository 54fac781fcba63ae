"""What one packed row contributes: its share of the loss, and the sums that the step's report is made of.

Axes: N scored tokens of the row, E trained tokens of its trajectories, V versions of the batch.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.types import Int32
from learner.algorithms.correction import clamp_log_ratio, correct
from learner.algorithms.loss import token_loss
from learner.algorithms.regularisers import regularised
from learner.config import LearnerConfig, NoCorrection
from learner.packing.rows import Row
from learner.statistics import RowStatistics


class Before(NamedTuple):
    """What is known of a row before it is trained; unset where the configuration does not ask for it."""

    proximal: Tensor | None = None
    """[N] log-probabilities at the start of the step; unset where the present weights still are those."""
    reference: Tensor | None = None
    """[N] log-probabilities of the reference policy."""
    keep: Tensor | None = None
    """[E] which tokens M2PO keeps of the mini-batch."""


def row_objective(
    config: LearnerConfig, row: Row, before: Before, *, logprobs_N: Tensor, entropies_N: Tensor, versions: Int32
) -> tuple[Tensor, RowStatistics]:
    """sum over the row's trained tokens of weight * correction * loss; weights hold the mini-batch's denominator.

    A token that several trajectories share is scored once and counts for each of them. Train against behaviour (k3,
    ratio) is measured with the proximal policy, or with the present weights where the correction asks for none. A
    supervised loss is not corrected, and reports a k3 of 0 and a ratio of 1. `versions` are the batch's, ascending.
    """

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(logprobs_N)

    def index(values: Int32) -> Tensor:
        return torch.from_numpy(values).long().to(logprobs_N.device)

    tokens_E, leaf_E, num_leaves = index(row.tokens), index(row.leaves), len(row.counts)
    logprobs_E, entropies_E = logprobs_N[tokens_E], entropies_N[tokens_E]
    proximal_E, reference_E = (None if v is None else v[tokens_E] for v in (before.proximal, before.reference))
    behaviour_E, correction, rejections = tensor(row.behaviour), config.correction, config.rejections
    if config.is_supervised:
        behaviour_E, correction, rejections = logprobs_E.detach(), NoCorrection(), ()
    corrected = correct(
        correction,
        rejections=rejections,
        logprobs_N=logprobs_E,
        behaviour_N=behaviour_E,
        proximal_N=proximal_E,
        leaf_N=leaf_E,
        num_leaves=num_leaves,
        keep_N=before.keep,
    )
    losses = token_loss(
        config.loss,
        logprobs_N=logprobs_E,
        log_ratio_N=corrected.log_ratio,
        advantages_N=tensor(row.advantages),
        leaf_N=leaf_E,
        num_leaves=num_leaves,
    )
    loss_E = regularised(
        losses.loss,
        kl=config.kl,
        entropy_coef=config.entropy_coef,
        logprobs_N=logprobs_E,
        entropies_N=entropies_E,
        reference_N=reference_E,
    )
    loss_E = tensor(row.weights) * corrected.weights * loss_E
    log_rho_E = clamp_log_ratio((logprobs_E if proximal_E is None else proximal_E) - behaviour_E)
    statistics = RowStatistics.of(
        torch.from_numpy(np.searchsorted(versions, row.versions)).to(logprobs_N.device),
        num_versions=len(versions),
        loss_E=loss_E,
        entropies_E=entropies_E,
        log_rho_E=log_rho_E,
        is_clipped_E=losses.is_clipped,
        is_rejected_E=corrected.is_rejected,
    )
    return loss_E.sum(), statistics
