"""Bench: a few arms, measured in turn, and the figures that follow from their records.

The arms are interleaved (A B C, A B C, ...): what else a machine does then falls on all of them alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

import msgspec

Record = dict[str, float]
"""What one repetition of one arm came to, by name."""
Records = Mapping[str, list[Record]]
"""For each arm, the records of its repetitions, in order."""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """How busy something was during one repetition of one arm."""

    seed: int
    seconds: float
    """From its begin to its end."""
    busy: dict[str, list[float]]
    """By what was busy: its busy share in each of equally long parts of the time."""


Timelines = Mapping[str, list[Timeline]]
"""For each arm that has them, those of its repetitions, in order."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured. Repetition i runs every arm with seed i, in the order of `arms`."""

    name: str
    arms: Mapping[str, Callable[[int], Record]]
    """Name to a function of the seed."""
    repetitions: int
    figures: Callable[[Records], dict[str, float]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Arms that this machine has not got what for, and why."""
    timelines: Timelines = field(default_factory=dict[str, list[Timeline]])
    """Filled by the arms as they run."""


class ArmReport(msgspec.Struct, frozen=True, kw_only=True):
    """One arm: every repetition, and its middle and spread by name."""

    records: list[Record]
    median: Record
    min: Record
    max: Record

    @property
    def rows(self) -> dict[str, str]:
        """For a table: the median, and behind it the smallest and the largest."""
        return {n: f"{self.median[n]:.4g}  ({self.min[n]:.4g} to {self.max[n]:.4g})" for n in self.median}


def measure(bench: Bench, *, on_progress: Callable[[str], None]) -> dict[str, list[Record]]:
    """Run all arms, interleaved; `on_progress` gets a line after each run of an arm."""
    records: dict[str, list[Record]] = {name: [] for name in bench.arms}
    for seed in range(bench.repetitions):
        for name, arm in bench.arms.items():
            record = arm(seed)
            records[name].append(record)
            facts = "  ".join(f"{key} {value:.4g}" for key, value in record.items())
            on_progress(f"{bench.name} {seed + 1}/{bench.repetitions}  {name}: {facts}")
    return records


def arm_report(records: list[Record]) -> ArmReport:
    """Medians and extremes over repetitions, which all have the same names.

    >>> report = arm_report([{"wall_s": 3.0}, {"wall_s": 1.0}, {"wall_s": 2.5}])
    >>> report.median, report.min, report.max
    ({'wall_s': 2.5}, {'wall_s': 1.0}, {'wall_s': 3.0})
    """

    def over(statistic: Callable[[list[float]], float]) -> Record:
        return {name: statistic([record[name] for record in records]) for name in records[0]}

    return ArmReport(records=records, median=over(median), min=over(min), max=over(max))


def median_ratio(records: Records, above: str, below: str, *, of: str) -> float:
    """Median over repetitions of one arm's value divided by another's: pairs that ran next to each other.

    >>> median_ratio({"a": [{"s": 2.0}, {"s": 9.0}], "b": [{"s": 1.0}, {"s": 3.0}]}, "a", "b", of="s")
    2.5
    """
    pairs = zip(records[above], records[below], strict=True)
    return median(one[of] / other[of] for one, other in pairs)


def median_of(records: Records, arm: str, name: str) -> float:
    """Median over repetitions of one value of one arm."""
    return median(record[name] for record in records[arm])
