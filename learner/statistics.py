"""What a step measures: sums over trained tokens that add up over rows and ranks, and the means a report makes of them.

Axis: V versions that sampled tokens of the batch, ascending.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.reports import VersionReport
from engine.types import Int32
from learner.flatten import FlatSequence


@dataclass(frozen=True, kw_only=True)
class RowStatistics:
    """Sums over the trained tokens of a row, by the version that sampled them; they add up over rows and ranks."""

    sums: Tensor
    """[V, 5] float64: loss, entropy, k3, clipped tokens, tokens."""
    max_log_ratio: Tensor
    """[V] float64: largest log(train / behaviour)."""

    @classmethod
    def nothing(cls, num_versions: int, device: torch.device) -> "RowStatistics":
        return cls(
            sums=torch.zeros(num_versions, 5, dtype=torch.float64, device=device),
            max_log_ratio=torch.full((num_versions,), -torch.inf, dtype=torch.float64, device=device),
        )

    def __add__(self, other: "RowStatistics") -> "RowStatistics":
        return RowStatistics(
            sums=self.sums + other.sums, max_log_ratio=torch.maximum(self.max_log_ratio, other.max_log_ratio)
        )

    def means(self) -> dict[str, float]:
        """Entropy, k3, largest ratio and share of clipped tokens, as a `StepReport` calls them."""
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
    _, entropy, k3, clipped, count = sums
    return {
        "entropy": entropy / count,
        "kl_rollout": k3 / count,
        "ratio_max": math.exp(max_log_ratio),
        "clip_fraction": clipped / count,
    }


def versions_of(sequences: Sequence[FlatSequence]) -> Int32:
    """All versions that sampled a trained token of these sequences, ascending."""
    return np.unique(np.concatenate([np.zeros(0, np.int32), *(s.versions[s.is_trained] for s in sequences)]))
