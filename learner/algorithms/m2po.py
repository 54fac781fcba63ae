"""M2PO: the second moment of the log-ratio over a mini-batch, held below a threshold by dropping its largest tokens."""

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 1e-6
"""Log-ratios that differ by less are equal: float32 log-probabilities say no more."""


def m2po_keep(log_rho_N: NDArray[np.floating], *, tau: float) -> NDArray[np.bool_]:
    """[N] true for the most tokens, smallest (log rho)^2 first, whose mean square is at most `tau` (2510.01161).

    `log_rho_N` = log p - log b of all trained tokens of the mini-batch, a shared one once for each trajectory; those of
    equal squares stay or go together, so that the order of tokens does not matter. With tau 0.04: 0.1, -0.3, 0.1 keeps
    all (mean 0.037), 0.1, -0.5, 0.1 drops the second (0.09, then 0.01).
    """
    sizes_N = np.round(np.abs(log_rho_N.astype(np.float64)) / RESOLUTION)
    sorted_N = np.sort(sizes_N)
    # means of a rising sequence rise, so what may stay is a prefix
    means_N = np.cumsum((sorted_N * RESOLUTION) ** 2) / np.arange(1, len(sorted_N) + 1)
    num_kept = int(np.searchsorted(means_N, tau, side="right"))
    return sizes_N < sorted_N[num_kept] if num_kept < len(sorted_N) else np.ones(len(sorted_N), dtype=np.bool_)
