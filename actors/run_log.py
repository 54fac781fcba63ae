"""RunLog: what happens in a run, written down and told; every event goes through here once.

event ─> journal (disk) ─> folds: state, metrics, phases ─> metrics.jsonl ─> watcher
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import msgspec

from actors.checkpoint_folders import CheckpointFolders
from actors.config import Config
from actors.run_dir import RunDir, Status, Summary, write_whole
from actors.watcher import Watcher
from engine import journal as journals
from engine import snapshot as snapshots
from engine.config import digest
from engine.errors import JournalError, boundary
from engine.events import (
    AnyEvent,
    Checkpointed,
    ControlEvaluated,
    Evaluated,
    Event,
    RunStarted,
    StepFinished,
    WeightsPublished,
)
from engine.journal import Journal
from engine.metrics import MetricsFold, StepMetrics
from engine.phases import PhaseFold
from engine.recovery import recover
from engine.run_state import RunState
from engine.snapshot import Snapshot, SnapshotFold

logger = logging.getLogger(__name__)

_SYNCED: dict[str, tuple[type[Event], ...]] = {
    "checkpoint": (Checkpointed,),
    "step": (Checkpointed, WeightsPublished),
    "event": (Event,),
}
"""Events behind which the journal is made durable."""


class RunLog:
    """Opened once for each process that works on a run: reads what the ones before wrote, then goes on.

    A context manager; leaving makes the journal durable.
    """

    def __init__(self, config: Config, run: RunDir, *, watcher: Watcher) -> None:
        self.state = RunState()
        """As the processes before left it; a running controller knows better."""
        self.num_steps = 0
        self.phases = PhaseFold()
        self.evaluations: list[Evaluated] = []
        self.control: ControlEvaluated | None = None
        self.on_event: Callable[[], object] = lambda: None
        """Hears that something happened."""
        self._config = config
        self._run = run
        self._watcher = watcher
        self._metrics = MetricsFold()
        self._kept = SnapshotFold()
        self._folders = CheckpointFolders(run.checkpoints)
        self._snapshots: list[int] = []
        """Segments that begin with the last two snapshots."""
        self._started_s = time.monotonic()
        self._base_t = 0.0

    def __enter__(self) -> Self:
        start, base = snapshots.where_to_begin(self._run.journal, is_there=self._folders.holds)
        recover(self._run.journal, start=start)
        rows = [] if base is None else self._go_on_from(start, base)
        self.state.is_there = self._folders.holds
        for event in journals.read(self._run.journal, start=start):
            self.state.apply(event)
            if (row := self._fold(event)) is not None:
                rows.append(row)
        self._folders.know(self.state.checkpoints)
        self._base_t = self.state.last_t
        # Written anew from the journal, as far as it was read, so it never disagrees with it.
        write_whole(self._run.metrics, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        if self.state.num_starts:
            logger.info("%s: going on after step %d", self._run.path, self.state.step)
        self._journal = Journal(self._run.journal)
        self._rows = self._run.metrics.open("ab")
        started = RunStarted(run=self._run.path.name, config_digest=digest(self._config), resumed=self.state.num_starts)
        self.emit(started)
        self._watcher.resumed(rows, self.evaluations)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with boundary(JournalError, str(self._run.metrics)):
                self._rows.close()
        finally:
            self._journal.close()

    @property
    def now(self) -> float:
        """Seconds on the clock of the run: of all processes that worked on it."""
        return self._base_t + time.monotonic() - self._started_s

    def emit(self, event: AnyEvent) -> None:
        """Take note of an event that happened now."""
        event = msgspec.structs.replace(event, t=self.now)
        self._journal.append(event)
        if isinstance(event, _SYNCED[self._config.journal.fsync]):
            self._journal.sync()
        row = self._fold(event)
        if row is not None:
            self._write(row)
            self._watcher.step(row)
        self._watcher.event(event)
        self.on_event()
        match event:
            case StepFinished():
                self.state.reports[event.report.step] = event.report
            case Checkpointed():
                self._folders.keep(event)
                self._roll(event)
            case _:
                pass

    def summary(self, *, status: Status, error: str = "") -> Summary:
        """What the run has come to so far, over all processes that worked on it."""
        success = [event.metrics["success"] for event in self.evaluations]
        return Summary(
            status=status,
            seed=self._config.run.seed,
            steps=self.num_steps,
            wall_s=self.now,
            train_s=self._metrics.train_s,
            success_before=success[0] if success else None,
            success_after=success[-1] if len(success) > 1 else None,
            success_control=None if self.control is None else self.control.metrics["success"],
            num_tool_calls_requested=self._metrics.num_tool_calls_requested,
            num_tool_calls_executed=self._metrics.num_tool_calls_executed,
            journal_s=self._journal.busy_s,
            error=error,
        )

    def _go_on_from(self, number: int, base: Snapshot) -> list[StepMetrics]:
        """Know what a snapshot knows; the rows of the steps before it."""
        self.state = base.restore()
        self._snapshots, self._kept = [number], SnapshotFold(base)
        self._metrics.restore(base.metrics)
        self.phases.restore(base.phases)
        self.evaluations, self.control = list(base.evaluations), base.control
        self.num_steps = base.checkpoint.step
        return [row for row in _read_rows(self._run.metrics) if row.step <= base.checkpoint.step]

    def _roll(self, event: Checkpointed) -> None:
        """Begin a segment with a snapshot, and let go of those that nobody who resumes will read."""
        snapshot = self._kept.snapshot(event, phases=tuple(self.phases.phases), metrics=self._metrics.totals)
        if snapshot is None:
            return
        try:
            path = self._journal.roll()
            snapshots.write(path, snapshot)
            self._snapshots = [*self._snapshots[-1:], journals.number_of(path)]
            if len(self._snapshots) > 1:
                retain = self._config.journal.retain
                journals.retire(self._run.journal, before=self._snapshots[0], retain=retain)
        except OSError as error:
            raise JournalError(f"{self._run.journal}: {error}") from error

    def _fold(self, event: AnyEvent) -> StepMetrics | None:
        self.phases.apply(event)
        self._kept.apply(event)
        match event:
            case StepFinished():
                self.num_steps = event.report.step
            case Evaluated():
                self.evaluations.append(event)
            case ControlEvaluated():
                self.control = event
            case _:
                pass
        return self._metrics.apply(event)

    def _write(self, row: StepMetrics) -> None:
        try:
            self._rows.write(msgspec.json.encode(row) + b"\n")
            self._rows.flush()
        except OSError as error:
            raise JournalError(f"{self._run.metrics}: {error}") from error


def _read_rows(path: Path) -> Iterator[StepMetrics]:
    """The rows of a file, those that can be read."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(msgspec.DecodeError):
            yield msgspec.json.decode(line, type=StepMetrics)
