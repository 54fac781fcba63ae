"""MegatronLearner: batches of trees in, weights out, on one process or on many that call the same methods."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import LearnerError
from engine.inference.shape import read_shape
from engine.reports import StepReport
from engine.types import Batch, Float32, Int32, WeightRef
from learner.config import LearnerConfig
from learner.forward import RowRunner
from learner.layout import check_layout
from learner.mcore import DistributedDataParallel, DistributedDataParallelConfig, no_megatron_warnings
from learner.mcore_cpu import cuda_means_cpu
from learner.network.model import PolicyModel, build_model
from learner.optimizer import PolicyOptimizer
from learner.packing.batcher import pack
from learner.packing.flatten import FlatSequence
from learner.packing.rows import Row
from learner.parallel import Parallel
from learner.schedule import learning_rate
from learner.storage import checkpoint
from learner.storage.hf_transfer import import_weights
from learner.storage.publisher import Publisher
from learner.training import Training

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def _on_device(method: Callable[P, R]) -> Callable[P, R]:
    """Run a method where Megatron finds its device."""

    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with cuda_means_cpu(), no_megatron_warnings():
            return method(*args, **kwargs)

    wrapped.__doc__, wrapped.__name__ = method.__doc__, method.__name__
    return wrapped


class MegatronLearner:
    """The policy under training. Synchronous; all ranks construct it and call the same methods with the same arguments.

    One learner a process at a time; `close` (or the context manager) lets another one follow. `weights_dir` must be
    seen by all ranks of the first replica and by the readers of `publish`, a checkpoint's folder by all ranks.
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        model_path: str | Path,
        weights_dir: str | Path,
        rank: int = 0,
        world_size: int = 1,
        init_method: str | None = None,
        timeout_s: float = 1800.0,
    ) -> None:
        """Join the other ranks, build the model and fill it from `model_path` (a Hugging Face folder).

        `init_method` is an address such as `tcp://127.0.0.1:29500`; one process needs none. A collective that waits
        longer than `timeout_s` fails. Raises `DataError` for a model it cannot read, `ConfigError` for a layout that
        does not divide it, or does not give `world_size`.
        """
        started_s = time.monotonic()
        self._config = config
        self._shape = read_shape(model_path)
        check_layout(self._shape, config)
        self._model_path = Path(model_path)
        self._weights_dir = Path(weights_dir)
        self._version = 0
        self._num_steps = 0
        self._is_closed = False
        self._parallel = Parallel.start(
            config, rank=rank, world_size=world_size, init_method=init_method, timeout_s=timeout_s
        )
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        logger.info("learner rank %d of %d ready in %.1f s", rank, world_size, time.monotonic() - started_s)

    @_on_device
    def _build(self) -> None:
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=self._config.dtype == "bf16",
            use_distributed_optimizer=self._config.distributed_optimizer,
        )
        self._module = module = self._loaded()
        self._model = DistributedDataParallel(config=module.config, ddp_config=ddp, module=module)
        self._optimizer = PolicyOptimizer(self._model, self._config)
        self._publisher = Publisher(
            module,
            source=self._model_path,
            weights_dir=self._weights_dir,
            shape=self._shape,
            config=self._config,
            parallel=self._parallel,
        )
        self._reference = None if self._config.kl is None else self._loaded().requires_grad_(False)

    def _loaded(self) -> PolicyModel:
        """This rank's part of the model as the folder has it."""
        module = build_model(self._shape, self._config, self._parallel)
        import_weights(module, self._model_path, shape=self._shape, parallel=self._parallel)
        return module

    @property
    def config(self) -> LearnerConfig:
        return self._config

    @property
    def version(self) -> int:
        """Steps behind the present weights."""
        return self._version

    @_on_device
    def step(self, batch: Batch) -> StepReport:
        """Train on one batch: `num_minibatches` updates, then the version is one higher; see `Training.step`.

        Raises `LearnerError`, naming the step, for a batch it cannot train on; then nothing was applied.
        """
        for sample in batch.samples:
            self._check_tokens([n.token_ids for n in sample.group.tree.nodes])
        rate = learning_rate(self._config.schedule, lr=self._config.lr, step=self._num_steps)
        report = self._training(self._config).step(batch, version=self._version + 1, learning_rate=rate)
        self._version += 1
        self._num_steps += 1
        return report

    @_on_device
    def gradients(self, batch: Batch, config: LearnerConfig | None = None) -> dict[str, Tensor]:
        """Gradients of a batch's loss under the present weights, as of one update, by the names of this rank's
        parameters; nothing is applied. `config` asks about another loss, correction or packing than the learner's."""
        return self._training(config or self._config).gradients(batch)

    def _training(self, config: LearnerConfig) -> Training:
        def runner(model: nn.Module) -> RowRunner:
            return RowRunner(model, shape=self._shape, config=config, parallel=self._parallel)

        return Training(
            self._module,
            optimizer=self._optimizer,
            runner=runner(self._model),
            reference=None if self._reference is None else runner(self._reference),
            config=config,
            parallel=self._parallel,
        )

    def _check_tokens(self, token_ids: Sequence[Int32]) -> None:
        for ids in token_ids:
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._shape.vocab_size:
                raise LearnerError(
                    f"token ids reach from {ids.min()} to {ids.max()}, the vocabulary has {self._shape.vocab_size}"
                )

    @_on_device
    def logprobs(self, sequences: Sequence[Int32], *, temperature: float = 1.0) -> list[Float32]:
        """For each sequence, the log-probability of every token given those before it; the first entry is 0.

        Computed by every replica for itself; equal on all ranks.
        """
        self._check_tokens(sequences)
        flat = [FlatSequence.scored(ids, sample=index) for index, ids in enumerate(sequences)]
        rows = pack(flat, budget=self._config.micro_batch_tokens)
        runner = RowRunner(self._model, shape=self._shape, config=self._config, parallel=self._parallel)
        scored = runner.logprobs(rows, temperature=temperature)
        results = [np.zeros(len(ids), np.float32) for ids in sequences]
        for row, values in zip(rows, self._from_last_stage(scored, rows), strict=True):
            for member, positions, own in row.split(values[row.tokens]):
                results[member][positions] = own
        return results

    def _from_last_stage(self, scored: list[Tensor], rows: list[Row]) -> list[Float32]:
        """The last stage's values on every rank, as arrays."""
        if self._parallel.pp_size > 1:
            if not self._parallel.is_last_stage:
                scored = [torch.zeros(len(r.targets), device=self._parallel.device) for r in rows]
            speakers = self._parallel.tp_size * self._parallel.dp_size
            scored = [self._parallel.total(s.double()) / speakers for s in scored]
        return [s.float().cpu().numpy() for s in scored]

    @_on_device
    def publish(self) -> WeightRef:
        """Write the present weights to `weights_dir/v000012`; the newest two stay, older ones are removed."""
        return self._publisher.publish(self._version)

    @_on_device
    def export_hf(self, path: str | Path) -> None:
        """Write a complete Hugging Face folder, tokenizer included, in the learner's dtype."""
        self._publisher.export(Path(path))

    @_on_device
    def save(self, path: str | Path) -> None:
        """Write a checkpoint folder atomically: weights, optimiser, version, place in the schedule."""
        checkpoint.save(path, self._optimizer, manifest=self._manifest(), parallel=self._parallel)

    @_on_device
    def load(self, path: str | Path) -> int:
        """Restore a checkpoint of any layout; returns its version. Raises `DataError` on all ranks, with nothing
        changed, for one that is torn or was made of another model."""
        manifest = checkpoint.load(
            path, self._module, self._optimizer, expected=self._manifest(), parallel=self._parallel
        )
        self._version, self._num_steps = manifest.version, manifest.num_steps
        return self._version

    def _manifest(self) -> checkpoint.Manifest:
        return checkpoint.Manifest(
            version=self._version,
            num_steps=self._num_steps,
            num_updates=self._optimizer.num_updates,
            dtype=self._config.dtype,
            tensor_parallel=self._parallel.tp_size,
            shape=self._shape,
        )

    def close(self) -> None:
        """Leave the groups; the process may hold another learner afterwards. Further calls do nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._parallel.stop()

    def __enter__(self) -> "MegatronLearner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
