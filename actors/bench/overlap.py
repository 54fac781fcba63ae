"""Overlap: the same training with generation beside the learner and without, in real processes.

A generator and a Megatron learner in a process each, one thread each, under the controller: the whole of `arpo train`
on a generated task. `max_staleness = 1` lets the next batch be generated while the learner steps; 0 is its serial
form, with the same batching and the same concurrent tools. Timed from the first batch taken to the last weights
published, as the journal has it: no start-up, no checkpoint.
"""

import asyncio
from functools import cached_property
from pathlib import Path

import msgspec

from actors.bench.bench import Record
from actors.config import Config, HfModel
from actors.materials import materialise
from actors.run_dir import RunDir
from actors.runtime import LocalRuntime
from actors.sft import starting_model
from actors.train import train
from actors.watcher import Watcher
from engine import config as configuration
from engine import journal
from engine.events import AnyEvent, BatchTaken, StepFinished, WeightsPublished

CONFIG = Path(__file__).with_name("overlap.toml")


class Overlap:
    """Both arms; what they share is made at the first run."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        self._folder = folder
        self._steps = steps

    def overlapped(self, seed: int) -> Record:
        return self._train(seed, max_staleness=1)

    def serial(self, seed: int) -> Record:
        return self._train(seed, max_staleness=0)

    def _train(self, seed: int, *, max_staleness: int) -> Record:
        config = msgspec.structs.replace(
            self._config,
            run=msgspec.structs.replace(self._config.run, seed=seed),
            train=msgspec.structs.replace(self._config.train, steps=self._steps, max_staleness=max_staleness),
        )
        run = RunDir(self._folder / f"seed{seed}-staleness{max_staleness}")
        asyncio.run(train(config, run, watcher=Watcher()))
        return timings(list(journal.read(run.journal)))

    @cached_property
    def _config(self) -> Config:
        """The configuration with a model that has learned to call tools, so that groups hold a signal."""
        overrides = [f"run.dir={self._folder}"]
        config = materialise(configuration.load(CONFIG, Config, overrides=overrides))

        async def cold_start() -> str:
            async with LocalRuntime(config, self._folder) as runtime:
                return await starting_model(config, runtime, emit=lambda event: None)

        return msgspec.structs.replace(config, model=HfModel(path=asyncio.run(cold_start())), sft=())


def timings(events: list[AnyEvent]) -> Record:
    """What a run's events say: wall time from the first batch to the last weights, and where the learner spent it.

    `step_s` is spent in steps, `publish_s` between the end of a step and its weights on every generator, `wait_s`
    waiting for the next batch.
    """
    taken = [event.t for event in events if isinstance(event, BatchTaken)]
    stepped = [event.t for event in events if isinstance(event, StepFinished)]
    published = [event.t for event in events if isinstance(event, WeightsPublished)]
    return {
        "wall_s": published[-1] - taken[0],
        "step_s": sum(end - start for start, end in zip(taken, stepped, strict=True)),
        "publish_s": sum(end - start for start, end in zip(stepped, published, strict=True)),
        "wait_s": sum(start - end for end, start in zip(published, taken[1:], strict=False)),
    }
