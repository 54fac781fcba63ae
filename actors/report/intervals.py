"""Intervals: how far a share or a mean may be off, by Wilson's formula or by resampling prompts.

Axes: G trees (one a prompt), B resamples, X places at which the same quantity is measured.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

Z_95 = 1.959964
"""Two-sided 95 % of a normal distribution."""
NUM_RESAMPLES = 1000
SEED = 20250728
"""Of the resamples: one journal gives one report."""
MIN_TREES = 2
"""Fewer cannot be resampled: the estimate then comes without an interval."""


class Estimate(NamedTuple):
    """A value with its 95 % interval; NaN for what is not known."""

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        return not np.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        return not (np.isnan(self.low) or np.isnan(self.high))


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


def wilson(share: float, count: float) -> Estimate:
    """The interval of Wilson (1927) for a share of `count` independent trials; no trials know nothing.

    >>> low, high = wilson(0.9, 100)[1:]
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    """
    if count <= 0:
        return UNKNOWN
    shrink = 1.0 + Z_95**2 / count
    centre = (share + Z_95**2 / (2 * count)) / shrink
    reach = Z_95 / shrink * np.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    return Estimate(share, max(float(centre - reach), 0.0), min(float(centre + reach), 1.0))


def difference(before: Estimate, after: Estimate) -> Estimate:
    """`after - before` for two shares with Wilson's intervals, by Newcombe's (1998) hybrid score method.

    >>> [round(x, 4) for x in difference(wilson(48 / 80, 80), wilson(56 / 70, 70))]
    [0.2, 0.0524, 0.3339]
    """
    shift = after.value - before.value
    below = np.hypot(after.value - after.low, before.high - before.value)
    above = np.hypot(after.high - after.value, before.value - before.low)
    return Estimate(shift, float(shift - below), float(shift + above))


def resampled(sums_GX: Float64, counts_GX: Float64) -> tuple[Float64, Float64]:
    """Means by place, `sums / counts` over all trees, and B of them with the trees drawn anew, `(X,)` and `(B, X)`.

    Whole trees are drawn, with replacement: tokens of one tree are no independent samples. A place nobody reached is
    NaN. Without two trees there is nothing to draw from, and B is 0.
    """
    num_trees = sums_GX.shape[0]
    means_X = divide(sums_GX.sum(0), counts_GX.sum(0))
    if num_trees < MIN_TREES:
        return means_X, np.empty((0, sums_GX.shape[1]))
    even = np.full(num_trees, 1.0 / num_trees)
    weights_BG = np.random.default_rng(SEED).multinomial(num_trees, even, size=NUM_RESAMPLES).astype(np.float64)
    return means_X, divide(weights_BG @ sums_GX, weights_BG @ counts_GX)


def estimates(means_X: Float64, draws_BX: Float64) -> list[Estimate]:
    """Each mean between the 2.5 % and 97.5 % points of its resamples.

    Resamples that missed a place altogether say nothing about it; where most did, there is no interval.
    """
    found: list[Estimate] = []
    for place, mean in enumerate(means_X.tolist()):
        draws_B = draws_BX[:, place]
        known_B = draws_B[~np.isnan(draws_B)]
        if np.isnan(mean) or known_B.size <= draws_B.size / 2:
            found.append(Estimate(mean, float("nan"), float("nan")))
        else:
            low, high = np.percentile(known_B, (2.5, 97.5)).tolist()
            found.append(Estimate(mean, low, high))
    return found


def ratio(sums_GX: Float64, counts_GX: Float64) -> tuple[Estimate, Estimate, Estimate]:
    """Two means, and the first over the second, from the same resamples; X = 2.

    With sums (6, 2) and counts (3, 4) in every tree: 2, 0.5 and 4, each with an interval of no width.
    """
    means_X, draws_BX = resampled(sums_GX, counts_GX)
    first, second = estimates(means_X, draws_BX)
    quotients_B = divide(draws_BX[:, 0], draws_BX[:, 1])
    (quotient,) = estimates(divide(means_X[:1], means_X[1:]), quotients_B[:, None])
    return first, second, quotient


def divide(numerators: Float64, denominators: Float64) -> Float64:
    """NaN where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerators.shape, denominators.shape), np.nan)
    np.divide(numerators, denominators, out=result, where=denominators != 0)
    return result
