"""Bench: a few arms, measured in turn, and the figures that follow from their records.

The arms are interleaved (A B C, A B C, ...): what else a machine does then falls on all of them alike. Records of arms
that have a key are kept on disk, and a bench that was interrupted goes on behind the last of them.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import msgspec

from actors.bench.record_store import RecordStore

Record = dict[str, float]
"""What one repetition of one arm came to, by name. `name@x` is the point of a curve: what `name` was at x."""
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
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    """Arms that this machine has not got what for, and why."""
    timelines: Timelines = field(default_factory=dict[str, list[Timeline]])
    """Filled by the arms as they run."""
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    """Arms that are measured with the first seeds alone, and with how many of them."""
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the records of an arm depend on besides the seed, as a short name. Only arms that have one are kept: a
    duration of yesterday says nothing about today."""
    jobs: int = 1
    """Runs at once; more than one only where no duration is a figure."""
    prepare: Callable[[Callable[[str], None]], None] = field(default=lambda say: None)
    """Makes what all runs need, before the first one, and says so; not called where every record is kept already."""
    stop: Callable[[], None] = field(default=lambda: None)
    """Ends the runs that are under way, and gives back what `prepare` took: in the end, however that comes."""

    @property
    def turns(self) -> list[tuple[int, str]]:
        """(seed, arm), in the order in which they are begun."""
        return [
            (seed, arm)
            for seed in range(self.repetitions)
            for arm in self.arms
            if seed < self.limits.get(arm, self.repetitions)
        ]


class ArmReport(msgspec.Struct, frozen=True, kw_only=True):
    """One arm: every repetition, and its middle and spread by name."""

    records: list[Record]
    median: Record
    min: Record
    max: Record

    @property
    def rows(self) -> dict[str, str]:
        """For a table: the median, and behind it the smallest and the largest; without the points of curves."""
        names = [name for name in self.median if "@" not in name]
        return {n: f"{self.median[n]:.4g}  ({self.min[n]:.4g} to {self.max[n]:.4g})" for n in names}


def measure(
    bench: Bench, *, on_progress: Callable[[str], None], store: RecordStore | None = None
) -> dict[str, list[Record]]:
    """Run all arms, interleaved; `on_progress` gets a line for each run of an arm, in the order of the turns.

    What `store` holds already is not run again, and what is run is there when the next turn begins.
    """
    records: dict[str, list[Record]] = {name: [] for name in bench.arms}

    def kept_of(seed: int, arm: str) -> Record | None:
        key = bench.keys.get(arm)
        return None if store is None or key is None else store.get(arm, key=key, seed=seed)

    def run(seed: int, arm: str) -> tuple[Record, bool]:
        if (kept := kept_of(seed, arm)) is not None:
            return kept, True
        record = bench.arms[arm](seed)
        if store is not None and arm in bench.keys:
            store.put(arm, key=bench.keys[arm], seed=seed, record=record)
        return record, False

    try:
        if any(kept_of(seed, arm) is None for seed, arm in bench.turns):
            bench.prepare(on_progress)
        with _started(bench, run) as results:
            for seed, arm, result in results:
                record, is_kept = result()
                records[arm].append(record)
                facts = "  ".join(f"{key} {value:.4g}" for key, value in record.items() if "@" not in key)
                kept = "  (kept)" if is_kept else ""
                on_progress(f"{bench.name} {seed + 1}/{bench.repetitions}  {arm}: {facts}{kept}")
    finally:
        bench.stop()
    return records


Run = Callable[[int, str], tuple[Record, bool]]
"""Seed and arm to the record, and whether it was kept from an earlier time."""
Turn = tuple[int, str, Callable[[], tuple[Record, bool]]]


@contextmanager
def _started(bench: Bench, run: Run) -> Generator[Iterator[Turn]]:
    """Each turn with what gives its result: run when it is asked for, or `jobs` at once. Where one fails, no further
    one is begun."""
    if bench.jobs == 1:
        yield ((seed, arm, lambda seed=seed, arm=arm: run(seed, arm)) for seed, arm in bench.turns)
        return
    pool = ThreadPoolExecutor(max_workers=bench.jobs)
    try:
        begun: list[tuple[int, str, Future[tuple[Record, bool]]]]
        begun = [(seed, arm, pool.submit(run, seed, arm)) for seed, arm in bench.turns]
        yield ((seed, arm, future.result) for seed, arm, future in begun)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        bench.stop()
        raise
    finally:
        pool.shutdown()


def arm_report(records: list[Record]) -> ArmReport:
    """Medians and extremes over repetitions, which all have the same names.

    >>> report = arm_report([{"wall_s": 3.0}, {"wall_s": 1.0}, {"wall_s": 2.5}])
    >>> report.median, report.min, report.max
    ({'wall_s': 2.5}, {'wall_s': 1.0}, {'wall_s': 3.0})
    """

    def over(statistic: Callable[[list[float]], float]) -> Record:
        return {name: statistic([record[name] for record in records]) for name in records[0]}

    return ArmReport(records=records, median=over(median), min=over(min), max=over(max))


def curve(record: Record, name: str) -> list[tuple[float, float]]:
    """The points of a curve of one run, by x.

    >>> curve({"success@10": 0.9, "success@0": 0.4, "wall_s": 3.0}, "success")
    [(0.0, 0.4), (10.0, 0.9)]
    """
    found = (key.partition("@") for key in record if key.startswith(f"{name}@"))
    return sorted((float(x), record[f"{label}@{x}"]) for label, _, x in found)


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
