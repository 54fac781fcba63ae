"""Activity: how many of each kind there were at each moment of a run, in a bounded number of bins.

A bin holds, for each series, the mean level over its time: two paths that sample for half of it are 1.0. When the bins
are used up, neighbours are put together and each is twice as wide; what they integrate to stays the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 4096
FIRST_WIDTH_S = 0.05


class Activity:
    """`advance` to each time with the levels that held until then."""

    def __init__(self, *, max_bins: int = MAX_BINS, first_width_s: float = FIRST_WIDTH_S) -> None:
        self.width_s = first_width_s
        self._max_bins = max_bins
        self._t = 0.0
        self._areas: dict[str, NDArray[np.float64]] = {}
        """For each series, level times seconds, by bin."""
        self._changed_in = np.zeros(max_bins, np.int64)

    @property
    def num_bins(self) -> int:
        """That time has come to."""
        return min(int(self._t / self.width_s) + 1, self._max_bins) if self._t else 0

    def advance(self, t: float, levels: Mapping[str, int], *, revision: int = 0) -> None:
        """The levels held from the last time until `t`; a time that is not later changes nothing."""
        if t <= self._t:
            return
        while t >= self._max_bins * self.width_s:
            self._double(revision)
        first, last = int(self._t / self.width_s), int(t / self.width_s)
        self._changed_in[first : last + 1] = revision
        for name, level in levels.items():
            if level:
                areas = self._areas.get(name)
                if areas is None:
                    areas = self._areas[name] = np.zeros(self._max_bins)
                if first == last:
                    areas[first] += level * (t - self._t)
                else:
                    areas[first] += level * ((first + 1) * self.width_s - self._t)
                    areas[first + 1 : last] += level * self.width_s
                    areas[last] += level * (t - last * self.width_s)
        self._t = t

    def total(self, name: str) -> float:
        """Level times seconds of a series, over all time."""
        return float(self._areas[name].sum()) if name in self._areas else 0.0

    def changes(self, since: int) -> dict[str, Any] | None:
        """The bins that changed behind a revision, as `start` and means for each series; None where none did.

        `start` is 0 where bins were put together since, and what was known of them is void.
        """
        count = self.num_bins
        changed = np.flatnonzero(self._changed_in[:count] > since)
        if not changed.size:
            return None
        start = int(changed[0])
        series = {name: np.round(areas[start:count] / self.width_s, 3).tolist() for name, areas in self._areas.items()}
        return {"width_s": self.width_s, "start": start, "series": series}

    def _double(self, revision: int) -> None:
        self.width_s *= 2
        for name, areas in self._areas.items():
            halved = areas.reshape(-1, 2).sum(axis=1)
            self._areas[name] = np.concatenate([halved, np.zeros_like(halved)])
        self._changed_in[:] = np.where(np.arange(self._max_bins) < self._max_bins // 2, revision, -1)
