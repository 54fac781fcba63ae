"""What one run of `tool-budget` says: success by what was spent, and what it took to get somewhere.

A curve is measured on a few hundred questions every few steps, so it shakes. It is read through its monotone fit: else
whoever is measured most often seems to arrive first.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.bench.bench import Record, curve

Float64 = NDArray[np.float64]
Cost = Literal["executed", "requested", "tokens"]
"""Tool calls that ran, tool calls that were asked for, tokens that were sampled; in training, not in evaluation."""
NOT_REACHED = math.inf
"""Censored: a run ended before it got there. A median over seeds stands where less than half of them are."""
NUM_RESAMPLES = 10_000
MIN_SEEDS = 3
SEED = 20250728


class Curve(NamedTuple):
    """Success where it was measured, as a monotone fit, by what had been spent until then."""

    spent: Float64
    success: Float64

    @property
    def end(self) -> float:
        """The success at which the run ended."""
        return float(self.success[-1])


def curve_of(record: Record, cost: Cost) -> Curve:
    """The curve of one run."""
    spent = dict(curve(record, cost))
    points = curve(record, "success")
    return Curve(np.array([spent[x] for x, _ in points]), monotone([y for _, y in points]))


def monotone(values: Sequence[float]) -> Float64:
    """The nearest values that never fall, by least squares: neighbours that fall are pooled (Ayer et al. 1955).

    >>> monotone([0.4, 0.7, 0.6, 0.9]).tolist()
    [0.4, 0.65, 0.65, 0.9]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while pools and pools[-1][0] >= mean:
            other, count = pools.pop()
            mean, size = (other * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    return np.concatenate([np.full(size, round(mean, 12)) for mean, size in pools])


def spent_to_reach(curve: Curve, target: float) -> float:
    """What had been spent when success first was `target`, between two measurements in proportion; `NOT_REACHED`.

    >>> spent_to_reach(Curve(np.array([0.0, 100.0, 300.0]), np.array([0.25, 0.5, 1.0])), 0.75)
    200.0
    """
    above = np.flatnonzero(curve.success >= target)
    if not above.size:
        return NOT_REACHED
    place = int(above[0])
    if place == 0:
        return float(curve.spent[0])
    (x0, x1), (y0, y1) = curve.spent[place - 1 : place + 1], curve.success[place - 1 : place + 1]
    return float(x0 + (x1 - x0) * (target - y0) / (y1 - y0))


def mean_success(curve: Curve, *, up_to: float) -> float:
    """Mean of success over the spending from 0 to `up_to`, in proportion between measurements: who is above whom.

    >>> mean_success(Curve(np.array([0.0, 100.0]), np.array([0.4, 0.8])), up_to=50.0)
    0.5
    """
    inner = curve.spent[(curve.spent > 0) & (curve.spent < up_to)]
    x = np.concatenate([[0.0], inner, [up_to]])
    y = np.interp(x, curve.spent, curve.success)
    return float(np.trapezoid(y, x) / up_to)


class Middle(NamedTuple):
    """The median over seeds with its 95 % interval, resampled by seeds; infinite where too many are censored."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)

    def __str__(self) -> str:
        return _short(self.value) + (f" ({_short(self.low)} to {_short(self.high)})" if self.has_interval else "")


def middle(values: Sequence[float]) -> Middle:
    """Median and percentile interval. The seeds of a pair are resampled together: `values` are one number a pair.

    Fewer than three come without an interval, which is NaN: one or two say nothing about the next.

    >>> middle([0.5, 0.5, 0.5])
    Middle(value=0.5, low=0.5, high=0.5)
    """
    value = float(_median(np.asarray(values)[None])[0])
    if len(values) < MIN_SEEDS:
        return Middle(value, math.nan, math.nan)
    drawn = np.asarray(values)[np.random.default_rng(SEED).integers(len(values), size=(NUM_RESAMPLES, len(values)))]
    # A quantile that is one of the medians: between a number and infinity there is nothing to interpolate.
    low, high = np.quantile(_median(drawn), (0.025, 0.975), method="inverted_cdf")
    return Middle(value, float(low), float(high))


def _median(values_BN: Float64) -> Float64:
    """Of each row. The mean of the two in the middle, or the infinite one of them."""
    ordered = np.sort(values_BN, axis=1)
    size = ordered.shape[1]
    lower, upper = ordered[:, (size - 1) // 2], ordered[:, size // 2]
    return np.where(np.isinf(upper), upper, (lower + np.where(np.isinf(upper), 0.0, upper)) / 2)


def _short(value: float) -> str:
    return "not reached" if math.isinf(value) else f"{value:.3g}"
