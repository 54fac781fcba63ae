"""Publishing in real processes: learner ranks of a layout on one side, an embedded generator on the other.

Each round takes a training step, so that every version is new, publishes it and has the generator take it over. The
bound is `safetensors.save_file` of the same tensors, which lie in memory, into the same folder: one process, one file,
nothing gathered, nothing atomic. Float32 on both sides, as on a CPU.
"""

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from actors.bench.bench import Record
from actors.cluster import LocalCluster
from actors.entering import enter_all
from actors.messages import StartLearner
from actors.remote import RemoteTrainer
from actors.runtime import KEPT_WEIGHTS, base_for_weights
from actors.wire import Caller
from engine.errors import LearnerError
from engine.inference.embedded import EmbeddedConfig, EmbeddedGenerator
from engine.inference.tiny import make_tiny_model
from engine.types import Batch, WeightRef
from learner.config import LearnerConfig, Nll, NoCorrection
from learner.sft import batch_of, sample_of

GIB = 2**30


class Publishing:
    """The arms; the model they publish is made at once, and what they publish is removed behind each."""

    def __init__(self, folder: Path, *, hidden_size: int, rounds: int, num_layers: int = 8) -> None:
        self._model = folder / "model"
        self._logs = folder / "logs"
        self._rounds = rounds
        make_tiny_model(
            self._model,
            vocab_size=16_384,
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=hidden_size // 64,
            num_kv_heads=hidden_size // 128,
            head_dim=64,
            intermediate_size=3 * hidden_size,
        )
        self.num_bytes = sum(file.stat().st_size for file in self._model.glob("*.safetensors"))
        self._weights = base_for_weights(self.num_bytes) / f"arpo-bench-{folder.name}"

    def publish(self, *, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> Record:
        """`publish_s` and `takeover_s` are medians over the rounds; `gib_per_s` is of publishing alone."""
        config = LearnerConfig(
            dtype="float32",
            loss=Nll(),
            correction=NoCorrection(),
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
            publish_bucket_mib=64,
        )
        with _folder(self._weights):
            publish_s, takeover_s = asyncio.run(self._rounds_of(config))
        return {
            "publish_s": publish_s,
            "takeover_s": takeover_s,
            "gib_per_s": self.num_bytes / GIB / publish_s,
            "mib": self.num_bytes / 2**20,
        }

    def save_file(self) -> Record:
        """The bound."""
        from safetensors.torch import load_file, save_file

        tensors = {name: tensor.clone() for name, tensor in load_file(self._model / "model.safetensors").items()}
        seconds: list[float] = []
        with _folder(self._weights):
            for number in range(self._rounds):
                started = time.perf_counter()
                save_file(tensors, self._weights / f"{number % KEPT_WEIGHTS}.safetensors")
                seconds.append(time.perf_counter() - started)
        return {"publish_s": median(seconds), "gib_per_s": self.num_bytes / GIB / median(seconds)}

    async def _rounds_of(self, config: LearnerConfig) -> tuple[float, float]:
        publish_s: list[float] = []
        takeover_s: list[float] = []
        generator = EmbeddedGenerator(EmbeddedConfig(max_kv_tokens=256, device="cpu"), model_path=str(self._model))
        async with AsyncExitStack() as stack:
            trainer = RemoteTrainer(await self._ranks(config, stack))
            await stack.enter_async_context(generator)
            for step in range(1, self._rounds + 1):
                await trainer.step(_batch(step))
                started = time.perf_counter()
                ref: WeightRef = await trainer.publish()
                published = time.perf_counter()
                await generator.update_weights(ref, mode="retract")
                takeover_s.append(time.perf_counter() - published)
                publish_s.append(published - started)
                assert (await generator.statistics()).version == step
        return median(publish_s), median(takeover_s)

    async def _ranks(self, config: LearnerConfig, stack: AsyncExitStack) -> list[Caller]:
        cluster = await stack.enter_async_context(LocalCluster(logs=self._logs, threads=1, start_timeout_s=300.0))
        address = await cluster.meeting_point() if config.world_size > 1 else None
        names = [f"learner-{rank}" for rank in range(config.world_size)]
        starts = [
            StartLearner(
                config=config,
                model_path=str(self._model),
                weights_dir=str(self._weights),
                rank=rank,
                world_size=config.world_size,
                init_method=address,
            )
            for rank in range(config.world_size)
        ]
        actors = [(n, cluster.actor(n, start, kind=LearnerError)) for n, start in zip(names, starts, strict=True)]
        return await enter_all(actors, stack)


def _batch(step: int) -> Batch:
    token_ids = np.random.default_rng(step).integers(0, 1024, 16).astype(np.int32)
    return batch_of(step, [sample_of("trace", token_ids=token_ids, is_trained=np.arange(16) > 0)])


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    path.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(path)
