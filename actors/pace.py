"""Pace: how fast work goes, and how long the rest of it takes."""

from math import exp

MEMORY_S = 30.0
"""The pace forgets what is much longer ago than this ..."""
MEMORY_UNITS = 8
"""... but never more than one part in so many at a time, so that one slow step does not throw the estimate over."""
MIN_SPAN_S = 1.0
"""Below this the pace is an accident."""


class Pace:
    """Seconds from one unit of work to the next: a mean that forgets.

    What comes before the first unit does not count: it is mostly processes that start.
    """

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._units = 0.0
        self._time_s = 0.0

    def tick(self, now_s: float) -> None:
        """Another unit is done."""
        if self._last_s is not None:
            gone_s = now_s - self._last_s
            keep = max(exp(-gone_s / MEMORY_S), 1 - 1 / MEMORY_UNITS)
            self._units = self._units * keep + 1
            self._time_s = self._time_s * keep + gone_s
        self._last_s = now_s

    def skip(self, now_s: float) -> None:
        """What was done since the last unit was other work."""
        if self._last_s is not None:
            self._last_s = now_s

    @property
    def seconds_each(self) -> float | None:
        """None while it cannot be told."""
        return self._time_s / self._units if self._time_s >= MIN_SPAN_S else None

    def left_s(self, num_left: int, *, now_s: float) -> float | None:
        """Until `num_left` more are done. Runs down evenly, and waits one unit before the end for one that is late."""
        each_s = self.seconds_each
        if each_s is None or self._last_s is None:
            return None
        begun = min((now_s - self._last_s) / each_s, 1.0) if num_left else 0.0
        return (num_left - begun) * each_s
