"""`arpo replay`: the learner again, from the journal alone: no policy samples, and no tool runs.

    journal ──> groups ──> credit ──> batch ──> learner step ──> checkpoint
                                        │            │               │
                    digest as journaled ┘      report as journaled   └ files as the run left them

A replay begins at the first event, or at the oldest checkpoint that the journal still goes back to.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from actors.config import Config
from actors.credit import credit
from actors.materials import materialise
from actors.remote import RemoteTrainer
from actors.run_dir import RunDir
from actors.runtime import LocalRuntime
from actors.sft import StartingModel
from actors.watcher import Watcher
from engine import journal, snapshot
from engine.batches import Batches, digest
from engine.errors import ConfigError, DataError
from engine.events import AnyEvent, BatchTaken, Checkpointed, StepFinished
from engine.metrics import MetricsFold
from engine.reports import StepReport
from engine.run_state import RunState
from engine.snapshot import Snapshot
from engine.types import Batch
from learner.algorithms.batch_credit import finish_batch

MANIFEST = "manifest.json"


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay came to."""

    first_step: int
    """The one it began with; 1 unless the journal no longer goes back to the beginning."""
    last_step: int
    num_checkpoints: int
    """That were there to be compared with."""
    differences: tuple[str, ...]
    """Of the first step that has any: what follows one differs anyway."""


class Replay:
    """Folds a journal once more, and compares whatever it comes to with what is written there."""

    def __init__(self, config: Config, base: Snapshot | None) -> None:
        self._state = RunState() if base is None else base.restore()
        self._metrics = MetricsFold()
        if base is not None:
            self._metrics.restore(base.metrics)
        self._batches = Batches(
            lambda group: credit(group, config), lambda samples: finish_batch(samples, config.learner.advantage)
        )
        self._report: StepReport | None = None
        self.step = self._state.step
        self.num_checkpoints = 0
        self.differences: list[str] = []

    def batch_of(self, event: AnyEvent) -> Batch | None:
        """Take the next event; the batch again, where one was taken here."""
        self._state.apply(event)
        if not isinstance(event, BatchTaken):
            return None
        self.step = event.step
        batch = self._batches.make(event.step, self._state.batches.pop(event.step))
        if event.digest and (found := digest(batch)) != event.digest:
            self.differences.append(f"step {event.step}: its batch has the digest {found}, journaled is {event.digest}")
        return batch

    async def carry_out(self, event: AnyEvent, trainer: RemoteTrainer, scratch: Path, *, watcher: Watcher) -> None:
        """Take the next event, with a learner that does what it did then."""
        batch = self.batch_of(event)
        if batch is not None and batch.samples:
            self._report = await trainer.step(batch)
        row = self._metrics.apply(event)
        if row is not None:
            watcher.step(row)
        match event:
            case StepFinished() if self._report is not None:
                self._compare(event.report, self._report)
            case Checkpointed() if (there := Path(event.path) / MANIFEST).exists() and event.step == self.step:
                again = scratch / Path(event.path).name
                await trainer.save(str(again))
                self.num_checkpoints += 1
                if _manifest(again / MANIFEST) != _manifest(there):
                    self.differences.append(f"step {event.step}: the parameters are not those in {event.path}")
            case _:
                pass

    def _compare(self, journaled: StepReport, found: StepReport) -> None:
        for name in StepReport.__struct_fields__:
            then, now = getattr(journaled, name), getattr(found, name)
            if name != "duration_s" and then != now:
                self.differences.append(f"step {journaled.step}: {name} is {now}, journaled is {then}")


async def replay(run: RunDir, *, until: int | None, watcher: Watcher) -> ReplayReport:
    """Train again what the run trained, up to step `until`. Raises `ConfigError` for a folder that holds no run."""
    config = replayable(run)
    start, base = beginning(run)
    with tempfile.TemporaryDirectory(prefix="arpo-replay-") as name:
        scratch = Path(name)
        async with LocalRuntime(materialise(config), scratch) as runtime:
            model_path = await StartingModel(runtime.config, runtime).make(emit=watcher.event)
            trainer = await runtime.start_trainer(model_path)
            if base is not None:
                await trainer.load(base.checkpoint.path)
            again = Replay(runtime.config, base)
            first = again.step + 1
            watcher.phase("replay", _last_step(run) if until is None else until)
            for event in journal.read(run.journal, start=start):
                if again.differences or (isinstance(event, BatchTaken) and until is not None and event.step > until):
                    break
                await again.carry_out(event, trainer, scratch, watcher=watcher)
    return ReplayReport(
        first_step=first,
        last_step=again.step,
        num_checkpoints=again.num_checkpoints,
        differences=tuple(again.differences),
    )


def dump_batch(run: RunDir, step: int, *, write: Callable[[bytes], object]) -> None:
    """Write the trajectories of a step's batch, one JSON object each; nothing is trained.

    Raises `DataError` where the journal has no such batch.
    """
    start, base = beginning(run)
    again = Replay(replayable(run), base)
    for event in journal.read(run.journal, start=start):
        batch = again.batch_of(event)
        if batch is not None and batch.step == step:
            for sample in batch.samples:
                for trajectory, advantages in zip(sample.group.trajectories, sample.advantages, strict=True):
                    line = {
                        "step": step,
                        "prompt_id": sample.group.prompt.prompt_id,
                        "path": trajectory.path,
                        "status": trajectory.status,
                        "score": trajectory.reward.score,
                        "token_ids": sample.group.tree.token_ids(trajectory.leaf).tolist(),
                        "advantages": advantages.tolist(),
                    }
                    write(msgspec.json.encode(line) + b"\n")
            return
    raise DataError(f"{run.journal}: no batch of step {step}, the last one is {again.step}")


def replayable(run: RunDir) -> Config:
    """The run's configuration, for processes of this machine, with its materials where the run's folder is now."""
    config = run.config
    if config is None:
        raise ConfigError(f"{run.path}: no run there (config.json is missing)")
    return msgspec.structs.replace(
        config,
        run=msgspec.structs.replace(config.run, dir=str(run.path.parent)),
        runtime=msgspec.structs.replace(config.runtime, backend="local"),
    )


def beginning(run: RunDir) -> tuple[int, Snapshot | None]:
    """The segment to begin at, and what was before it."""
    if journal.is_whole(run.journal):
        return 0, None
    return snapshot.where_to_begin(run.journal, is_there=lambda path: Path(path).is_dir())


def _manifest(path: Path) -> dict[str, object]:
    """What a checkpoint says of itself: digests of all its files, so equal ones are equal bit for bit."""
    return msgspec.json.decode(path.read_bytes())


def _last_step(run: RunDir) -> int | None:
    return None if run.summary is None else run.summary.steps
