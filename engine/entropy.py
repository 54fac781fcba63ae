"""The entropy signal: how uncertain the policy is in the k tokens behind a tool result, against its own start.

ARPO (2507.19849) eq. 3 and 4, with two repairs. The probe looks at the tokens *after* the result, and the signal is a
mean over the k positions, so that a short segment is not mistaken for a certain one. The paper's normalisation
(a sum divided by the vocabulary size) is read as division by ln V, the largest entropy there is.
"""

import msgspec
import numpy as np

from engine.types import Float32, Float64

_LOWEST = float(np.finfo(np.float64).min)


class Interval(msgspec.Struct, frozen=True):
    """Bounds of an entropy in nats; equal where the backend sees the whole distribution."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """What a decision uses, also where the interval straddles a threshold."""
        return (self.low + self.high) / 2


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What a branching policy decides on."""

    entropy: float
    """Mean over the probe, in nats."""
    baseline: float
    """Mean over the first k sampled tokens of the initial path it descends from, in nats."""
    num_probed: int
    """Positions behind `entropy`: k, or fewer where the segment was shorter."""
    num_baseline: int
    log_vocab: float
    """ln V: the largest entropy there is."""
    coin: float
    """Uniform in [0, 1), drawn from (run, prompt, path, observation)."""
    streak: int = 0
    """Observations in a row before this one behind which a fork was wanted."""

    @property
    def delta(self) -> float:
        """(H_t - H_initial) / ln V, in [-1, 1] (eq. 4)."""
        return (self.entropy - self.baseline) / self.log_vocab


def probe_mean(low_K: Float32, high_K: Float32) -> Interval:
    """Mean entropy over the probe positions; (0, 0) for an empty probe.

    >>> probe_mean(np.array([1.0, 3.0], np.float32), np.array([1.0, 4.0], np.float32))
    Interval(low=2.0, high=2.5)
    """
    if not low_K.size:
        return Interval(0.0, 0.0)
    return Interval(float(np.add.reduce(low_K) / low_K.size), float(np.add.reduce(high_K) / high_K.size))


def entropy_bounds(top_logprobs_TN: Float32, *, vocab_size: int) -> tuple[Float64, Float64]:
    """Bounds (low_T, high_T), in nats, of the entropies of T distributions of which the N >= 1 most probable of
    `vocab_size` tokens are known.

    With q the unseen mass and p_n the smallest seen probability, every unseen token has probability at most p_n, so
    the tail adds at least `-q ln p_n`; it adds at most `-q ln(q / (V - n))`, when q is spread evenly.

    >>> top = np.log(np.array([[0.5, 0.25]], np.float32))                         # the tail is 0.125, 0.125
    >>> low, high = entropy_bounds(top, vocab_size=4)
    >>> round(float(low[0]), 4), round(float(high[0]), 4)
    (1.0397, 1.213)
    """
    logprobs = top_logprobs_TN.astype(np.float64)
    probabilities = np.exp(logprobs)
    # What has no probability at all adds nothing, however far from 0 its logarithm is taken to be.
    seen = -np.einsum("tn,tn->t", probabilities, np.maximum(logprobs, _LOWEST))
    num_unseen = vocab_size - logprobs.shape[-1]
    smallest = np.minimum.reduce(logprobs, -1)
    # What rounding leaves of 1 is no mass: the tail cannot hold more than its tokens at p_n each, nothing for p_n = 0.
    unseen = np.minimum(1.0 - np.add.reduce(probabilities, -1), num_unseen * np.exp(smallest))
    has_tail = unseen > 1e-9
    unseen = np.where(has_tail, unseen, 0.0)
    low = seen - unseen * np.where(has_tail, smallest, 0.0)
    high = seen - unseen * np.log(np.where(has_tail, unseen / max(num_unseen, 1), 1.0))
    return np.minimum(low, high), np.maximum(low, high)
