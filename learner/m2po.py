"""M2PO: the second moment of the log-ratio over a mini-batch, held below a threshold by dropping its largest tokens."""

import numpy as np
from numpy.typing import NDArray


def m2po_keep(log_rho_N: NDArray[np.floating], *, tau: float) -> NDArray[np.bool_]:
    """[N] true for the most tokens, smallest (log rho)^2 first, whose mean square is at most `tau` (2510.01161).

    `log_rho_N` = log p - log b of all trained tokens of the mini-batch, a shared one once for each trajectory; of
    equal squares the earlier token stays. With tau 0.04: 0.1, -0.3, 0.1 keeps all (mean 0.037), 0.1, -0.5, 0.1 drops
    the second (0.09, then 0.01).
    """
    squares_N = np.square(log_rho_N.astype(np.float64))
    order_N = np.argsort(squares_N, kind="stable")
    # means of a rising sequence rise, so what may stay is a prefix
    means_N = np.cumsum(squares_N[order_N]) / np.arange(1, len(order_N) + 1)
    keep_N = np.zeros(len(order_N), dtype=np.bool_)
    keep_N[order_N[: np.searchsorted(means_N, tau, side="right")]] = True
    return keep_N
