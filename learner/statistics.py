"""What a step measures: sums over trained tokens that add up over rows and ranks, and the means a report makes of them.

Axes: E trained tokens, V versions that sampled tokens of the batch, ascending.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.reports import VersionReport
from engine.types import Int32
from learner.packing.flatten import FlatSequence


@dataclass(frozen=True, kw_only=True)
class RowStatistics:
    """Sums over the trained tokens of a row, by the version that sampled them; they add up over rows and ranks."""

    sums: Tensor
    """[V, 6] float64: loss, entropy, k3, clipped tokens, rejected tokens, tokens."""
    max_log_ratio: Tensor
    """[V] float64: largest log(train / behaviour)."""

    @classmethod
    def nothing(cls, num_versions: int, device: torch.device) -> "RowStatistics":
        return cls(
            sums=torch.zeros(num_versions, 6, dtype=torch.float64, device=device),
            max_log_ratio=torch.full((num_versions,), -torch.inf, dtype=torch.float64, device=device),
        )

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        version_E: Tensor,
        *,
        num_versions: int,
        loss_E: Tensor,
        entropies_E: Tensor,
        log_rho_E: Tensor,
        is_clipped_E: Tensor,
        is_rejected_E: Tensor,
    ) -> "RowStatistics":
        """Of tokens whose versions are the `version_E`-th ones of the batch; log rho = log(train / behaviour)."""
        log_rho_E = log_rho_E.double()
        k3_E = torch.expm1(log_rho_E) - log_rho_E
        columns = (loss_E, entropies_E, k3_E, is_clipped_E, is_rejected_E, torch.ones_like(k3_E))
        made = cls.nothing(num_versions, loss_E.device)
        made.sums.index_add_(0, version_E, torch.stack([c.double() for c in columns], dim=1))
        made.max_log_ratio.scatter_reduce_(0, version_E, log_rho_E, reduce="amax")
        return made

    def __add__(self, other: "RowStatistics") -> "RowStatistics":
        return RowStatistics(
            sums=self.sums + other.sums, max_log_ratio=torch.maximum(self.max_log_ratio, other.max_log_ratio)
        )

    @property
    def loss(self) -> float:
        """Sum of the tokens' shares of the loss."""
        return float(self.sums[:, 0].sum())

    @property
    def kl_rollout(self) -> float:
        """Mean over all tokens."""
        return float(self.sums[:, 2].sum() / self.sums[:, -1].sum())

    def means(self) -> dict[str, float]:
        """Means over all tokens, as a `StepReport` calls them."""
        return _means(self.sums.sum(dim=0).tolist(), float(self.max_log_ratio.max()))

    def by_version(self, versions: Int32) -> tuple[VersionReport, ...]:
        """The same for each version, the newest first."""
        rows = zip(versions.tolist(), self.sums.tolist(), self.max_log_ratio.tolist(), strict=True)
        reports = [
            VersionReport(version=version, num_trained_tokens=int(sums[-1]), **_means(sums, largest))
            for version, sums, largest in rows
            if sums[-1]
        ]
        return tuple(reports[::-1])


def _means(sums: Sequence[float], max_log_ratio: float) -> dict[str, float]:
    _, entropy, k3, clipped, rejected, count = sums
    return {
        "entropy": entropy / count,
        "kl_rollout": k3 / count,
        "ratio_max": math.exp(max_log_ratio),
        "clip_fraction": clipped / count,
        "rejected_fraction": rejected / count,
    }


def versions_of(sequences: Sequence[FlatSequence]) -> Int32:
    """All versions that sampled a trained token of these sequences, ascending."""
    return np.unique(np.concatenate([np.zeros(0, np.int32), *(s.versions[s.is_trained] for s in sequences)]))
