"""The supervised cold start: nll steps on traces, through the same learner as everything else."""

import logging
from collections.abc import Iterator
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


async def starting_model(config: Config, runtime: LocalRuntime, *, watcher: Watcher) -> str:
    """The model a run starts from: the configured one, or what its cold start makes of it, which is made once.

    Raises `ConfigError` or `DataError` for traces that cannot be used, before any process is started.
    """
    if config.sft is None:
        return runtime.model_path
    folder = Path(config.run.dir) / "made" / f"sft-{fingerprint((config.sft, runtime.model_path, config.run.seed))}"
    if not folder.exists():
        watcher.phase("supervised cold start", config.sft.steps)
        await run_sft(config.sft, runtime, target=folder, seed=config.run.seed, watcher=watcher)
    return str(folder)


async def run_sft(config: SftConfig, runtime: LocalRuntime, *, target: Path, seed: int, watcher: Watcher) -> None:
    """Train on the traces and write the model to `target`, a Hugging Face folder, whole or not at all."""
    from learner.sft import batch_of

    if not isinstance(config.learner.loss, Nll):
        raise ConfigError("a cold start needs loss.kind = 'nll' - at $.sft.learner.loss")
    batches = _draws(config, runtime, seed=seed)
    async with runtime.learner(config=config.learner, model_path=runtime.model_path, name="sft") as trainer:
        for step in range(1, config.steps + 1):
            watcher.sft_step(await trainer.step(batch_of(step, next(batches))))
        await trainer.export_hf(str(target))


def _draws(config: SftConfig, runtime: LocalRuntime, *, seed: int) -> Iterator[list[Sample]]:
    """Batches without end: traces of each file in a shuffled order that depends on the seed alone."""
    files = [_samples(path, config, runtime) for path in config.traces]
    shares = config.shares or (1.0,) * len(files)
    if len(shares) != len(files):
        raise ConfigError(f"{len(shares)} shares for {len(files)} files of traces - at $.sft.shares")
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
        yield [one() for _ in range(config.batch_size)]


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
