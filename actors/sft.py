"""The supervised cold start: nll steps on traces, through the same learner as everything else."""

import logging
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from actors.config import Config, SftConfig
from actors.materials import fingerprint, identity, whole_folder
from actors.runtime import LocalRuntime
from engine.coins import coin, seed_of
from engine.errors import ConfigError, DataError, LearnerError
from engine.events import AnyEvent, PhaseStarted, SupervisedStep
from engine.interfaces import Trainer
from engine.reports import StepReport
from engine.traces import read_traces, tokenise
from engine.types import Sample
from learner.config import Nll

logger = logging.getLogger(__name__)

LOSS_WINDOW = 20
"""Steps over which `until_loss` looks at the mean loss."""
REPORTS = "cold_start.jsonl"
"""In the folder of a made model: the reports of the steps that made it."""


class TraceFiles:
    """The traces of a run as samples: a file is read when it is first asked for, and kept for whoever asks next."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime
        self._read: dict[str, tuple[Sample, ...]] = {}

    def samples(self, path: str, *, max_tokens: int, key: str) -> tuple[Sample, ...]:
        """All traces of a file, in its order; `key` names who asks in errors.

        Raises `DataError` for a file without traces, for one that cannot be trained, and for one of too many tokens.
        """
        if path not in self._read:
            self._read[path] = _samples(path, self._runtime)
        for row, sample in enumerate(self._read[path]):
            if (size := sample.advantages[0].size) > max_tokens:
                raise DataError(f"{path}: trace {row} has {size} tokens, {key}.max_tokens is {max_tokens}")
        return self._read[path]


class ColdStart:
    """One stage: traces that were read and found usable, to be trained on later; no process has started for them."""

    def __init__(self, config: SftConfig, runtime: LocalRuntime, traces: TraceFiles, *, seed: int, key: str) -> None:
        """`key` names the stage in errors. Raises `ConfigError` or `DataError` for what cannot be used."""
        if not isinstance(config.learner.loss, Nll):
            raise ConfigError(f"a cold start needs loss.kind = 'nll' - at $.{key}.learner.loss")
        self._shares = config.shares or (1.0,) * len(config.traces)
        if len(self._shares) != len(config.traces):
            raise ConfigError(
                f"{len(self._shares)} shares for {len(config.traces)} files of traces - at $.{key}.shares"
            )
        if config.until_loss is not None and config.steps < LOSS_WINDOW:
            raise ConfigError(
                f"until_loss is about {LOSS_WINDOW} steps, there are {config.steps} - at $.{key}.until_loss"
            )
        self._config = config
        self._runtime = runtime
        self._seed = seed
        self._key = key
        self._files = [traces.samples(path, max_tokens=config.max_tokens, key=key) for path in config.traces]

    async def run(self, model_path: str, target: Path, *, emit: Callable[[AnyEvent], None]) -> None:
        """Train the model of `model_path` on the traces and write it to `target`, a Hugging Face folder, whole or not
        at all. Raises `LearnerError` where `until_loss` is not reached."""
        learner = self._config.learner
        with whole_folder(target) as scratch:
            async with self._runtime.learner(config=learner, model_path=model_path, name="sft") as trainer:
                reports = await self._train(trainer, emit=emit)
                await trainer.export_hf(str(scratch))
            (scratch / REPORTS).write_bytes(b"".join(msgspec.json.encode(report) + b"\n" for report in reports))

    async def _train(self, trainer: Trainer, *, emit: Callable[[AnyEvent], None]) -> list[StepReport]:
        from learner.sft import batch_of

        config = self._config
        batches = _draws(self._files, self._shares, batch_size=config.batch_size, seed=self._seed)
        reports: list[StepReport] = []
        losses: deque[float] = deque(maxlen=LOSS_WINDOW)
        while len(reports) < config.steps and not self._is_reached(losses):
            report = await trainer.step(batch_of(len(reports) + 1, next(batches)))
            emit(SupervisedStep(report=report))
            reports.append(report)
            losses.append(report.loss)
        if config.until_loss is not None and not self._is_reached(losses):
            raise LearnerError(
                f"the cold start does not learn: a loss of {statistics.fmean(losses):.3f} after {config.steps} "
                f"steps, not below {config.until_loss} - at $.{self._key}.until_loss"
            )
        return reports

    def _is_reached(self, losses: deque[float]) -> bool:
        limit = self._config.until_loss
        return limit is not None and len(losses) == LOSS_WINDOW and statistics.fmean(losses) < limit


class StartingModel:
    """The model a run starts from: the configured one, or what its cold start makes of it, which is made once."""

    def __init__(self, config: Config, runtime: LocalRuntime) -> None:
        """Raises `ConfigError` or `DataError` for traces that cannot be used."""
        self.traces = TraceFiles(runtime)
        """What the stages read, also for who goes on with them."""
        self._base = runtime.model_path
        self._stages: list[tuple[SftConfig, Path, ColdStart | None]] = []
        path, made = Path(self._base), Path(config.run.dir) / "made"
        for number, stage in enumerate(config.sft):
            traces = tuple(identity(file, made) for file in stage.traces)
            described = msgspec.structs.replace(stage, traces=traces)
            path = made / f"sft-{fingerprint((described, config.renderer, identity(path, made), config.run.seed))}"
            seed = seed_of(config.run.seed, "cold start", number)
            is_made = path.exists()
            cold_start = None if is_made else ColdStart(stage, runtime, self.traces, seed=seed, key=f"sft.{number}")
            self._stages.append((stage, path, cold_start))

    async def make(self, *, emit: Callable[[AnyEvent], None]) -> str:
        """The path of the model, after those stages that are still to be done.

        Of a stage that was made earlier, the reports of its steps are emitted again.
        """
        path = self._base
        for number, (stage, target, cold_start) in enumerate(self._stages, start=1):
            name = "cold start" if len(self._stages) == 1 else f"cold start {number} of {len(self._stages)}"
            emit(PhaseStarted(name=name if cold_start else f"{name}, made earlier", total=stage.steps))
            if cold_start is None:
                for line in (target / REPORTS).read_bytes().splitlines():
                    emit(SupervisedStep(report=msgspec.json.decode(line, type=StepReport)))
            else:
                await cold_start.run(path, target, emit=emit)
            path = str(target)
        return path


async def starting_model(config: Config, runtime: LocalRuntime, *, emit: Callable[[AnyEvent], None]) -> str:
    """The path of the model a run starts from, made where need be. Raises as `StartingModel` does."""
    return await StartingModel(config, runtime).make(emit=emit)


def _draws(
    files: Sequence[Sequence[Sample]], shares: Sequence[float], *, batch_size: int, seed: int
) -> Iterator[list[Sample]]:
    """Batches without end: traces of each file in a shuffled order that depends on the seed alone."""
    orders: list[list[Sample]] = [[] for _ in files]
    positions = [0] * len(files)
    number = 0

    def one() -> Sample:
        nonlocal number
        where = coin(seed, "share", number) * sum(shares)
        number += 1
        file = 0
        while file < len(files) - 1 and where >= shares[file]:
            where -= shares[file]
            file += 1
        epoch, place = divmod(positions[file], len(files[file]))
        if place == 0:
            orders[file] = sorted(files[file], key=lambda s: seed_of(seed, "order", epoch, s.group.prompt.prompt_id))
        positions[file] += 1
        return orders[file][place]

    while True:
        yield [one() for _ in range(batch_size)]


def _samples(path: str, runtime: LocalRuntime) -> tuple[Sample, ...]:
    from learner.sft import sample_of

    samples: list[Sample] = []
    for row, trace in enumerate(read_traces(path)):
        token_ids, is_trained = tokenise(trace, tokenizer=runtime.tokenizer, renderer=runtime.renderer)
        samples.append(sample_of(f"{Path(path).stem}-{row}", token_ids=token_ids, is_trained=is_trained, row=row))
    if not samples:
        raise DataError(f"{path}: no traces")
    logger.info("%s: %d traces, %d trained tokens", path, len(samples), sum(_trained(s) for s in samples))
    return tuple(samples)


def _trained(sample: Sample) -> int:
    return int(sum(advantages.sum() for advantages in sample.advantages))
