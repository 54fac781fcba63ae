"""The supervised cold start: nll steps on traces, through the same learner as everything else."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from actors.config import Config, SftConfig
from actors.materials import fingerprint
from actors.runtime import LocalRuntime
from actors.watcher import Watcher
from engine.coins import coin, seed_of
from engine.errors import ConfigError, DataError
from engine.traces import read_traces, tokenise
from engine.types import Sample
from learner.config import Nll

logger = logging.getLogger(__name__)


class ColdStart:
    """Traces that were read and found usable, to be trained on later; no process has started for them."""

    def __init__(self, config: SftConfig, runtime: LocalRuntime, *, seed: int) -> None:
        """Raises `ConfigError` or `DataError` for settings and traces that cannot be used."""
        if not isinstance(config.learner.loss, Nll):
            raise ConfigError("a cold start needs loss.kind = 'nll' - at $.sft.learner.loss")
        self._shares = config.shares or (1.0,) * len(config.traces)
        if len(self._shares) != len(config.traces):
            raise ConfigError(f"{len(self._shares)} shares for {len(config.traces)} files of traces - at $.sft.shares")
        self._config = config
        self._runtime = runtime
        self._seed = seed
        self._files = [_samples(path, config, runtime) for path in config.traces]

    async def run(self, target: Path, *, watcher: Watcher) -> None:
        """Train on the traces and write the model to `target`, a Hugging Face folder, whole or not at all."""
        from learner.sft import batch_of

        config, model_path = self._config, self._runtime.model_path
        batches = _draws(self._files, self._shares, batch_size=config.batch_size, seed=self._seed)
        async with self._runtime.learner(config=config.learner, model_path=model_path, name="sft") as trainer:
            for step in range(1, config.steps + 1):
                watcher.sft_step(await trainer.step(batch_of(step, next(batches))))
            await trainer.export_hf(str(target))


class StartingModel:
    """The model a run starts from: the configured one, or what its cold start makes of it, which is made once."""

    def __init__(self, config: Config, runtime: LocalRuntime) -> None:
        """Raises `ConfigError` or `DataError` for traces that cannot be used."""
        self._path = Path(runtime.model_path)
        self._cold_start: ColdStart | None = None
        self._num_steps = 0
        if config.sft is not None:
            name = f"sft-{fingerprint((config.sft, config.renderer, runtime.model_path, config.run.seed))}"
            self._path = Path(config.run.dir) / "made" / name
            if not self._path.exists():
                self._cold_start = ColdStart(config.sft, runtime, seed=config.run.seed)
                self._num_steps = config.sft.steps

    async def make(self, *, watcher: Watcher) -> str:
        """The path of the model, after its cold start where there is one to be done."""
        if self._cold_start is not None:
            watcher.phase("supervised cold start", self._num_steps)
            await self._cold_start.run(self._path, watcher=watcher)
            self._cold_start = None
        return str(self._path)


async def starting_model(config: Config, runtime: LocalRuntime, *, watcher: Watcher) -> str:
    """The path of the model a run starts from, made where need be. Raises as `StartingModel` does."""
    return await StartingModel(config, runtime).make(watcher=watcher)


def _draws(files: list[list[Sample]], shares: Sequence[float], *, batch_size: int, seed: int) -> Iterator[list[Sample]]:
    """Batches without end: traces of each file in a shuffled order that depends on the seed alone."""
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
            files[file].sort(key=lambda s: seed_of(seed, "order", epoch, s.group.prompt.prompt_id))
        positions[file] += 1
        return files[file][place]

    while True:
        yield [one() for _ in range(batch_size)]


def _samples(path: str, config: SftConfig, runtime: LocalRuntime) -> list[Sample]:
    from learner.sft import sample_of

    samples: list[Sample] = []
    for row, trace in enumerate(read_traces(path)):
        token_ids, is_trained = tokenise(trace, tokenizer=runtime.tokenizer, renderer=runtime.renderer)
        if token_ids.size > config.max_tokens:
            raise DataError(f"{path}: trace {row} has {token_ids.size} tokens, sft.max_tokens is {config.max_tokens}")
        samples.append(sample_of(f"{Path(path).stem}-{row}", token_ids=token_ids, is_trained=is_trained, row=row))
    if not samples:
        raise DataError(f"{path}: no traces")
    logger.info("%s: %d traces, %d trained tokens", path, len(samples), sum(_trained(s) for s in samples))
    return samples


def _trained(sample: Sample) -> int:
    return int(sum(advantages.sum() for advantages in sample.advantages))
