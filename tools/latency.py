"""Latency: how long executions took, as counts in buckets that grow by a fifth, from 0.1 ms to a quarter of an hour."""

import math
from collections import Counter

import msgspec

_SMALLEST_S = 1e-4
_PER_OCTAVE = 4
_LAST = 23 * _PER_OCTAVE


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a histogram. Produced by the executor, consumed by metrics and reports."""

    counts: dict[float, int] = {}
    """Upper bound of a bucket, in seconds, to how many durations fell into it; in order, without empty ones."""

    def quantile(self, share: float) -> float:
        """Upper bound of the bucket behind which at most `1 - share` of all durations lie; 0 where there are none.

        >>> Latency(counts={0.1: 98, 2.0: 2}).quantile(0.5), Latency(counts={0.1: 98, 2.0: 2}).quantile(0.99)
        (0.1, 2.0)
        """
        wanted = share * sum(self.counts.values())
        seen = 0
        for bound_s, count in self.counts.items():
            seen += count
            if seen >= wanted:
                return bound_s
        return 0.0


class LatencyRecorder:
    """A histogram that grows."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, duration_s: float) -> None:
        octaves = math.log2(max(duration_s, _SMALLEST_S) / _SMALLEST_S)
        self._counts[min(math.ceil(octaves * _PER_OCTAVE), _LAST)] += 1

    def snapshot(self) -> Latency:
        bounds = {_SMALLEST_S * 2 ** (bucket / _PER_OCTAVE): n for bucket, n in sorted(self._counts.items())}
        return Latency(counts=bounds)
