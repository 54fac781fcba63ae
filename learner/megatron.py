"""MegatronLearner: batches of trees in, weights out, on one process or on many that call the same methods."""

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.errors import LearnerError
from engine.inference.shape import read_shape
from engine.types import Batch, Float32, Int32, StepReport, WeightRef
from learner import checkpoint
from learner.batcher import FlatSequence, Row, balance, flatten, loss_weights, pack, split_minibatches
from learner.config import LearnerConfig
from learner.correction import needs_proximal
from learner.forward import RowRunner
from learner.hf_transfer import import_weights
from learner.layout import check_layout
from learner.mcore import DistributedDataParallel, DistributedDataParallelConfig, no_megatron_warnings
from learner.mcore_cpu import cuda_means_cpu
from learner.model import build_model
from learner.objective import RowStatistics
from learner.optimizer import PolicyOptimizer
from learner.parallel import Parallel
from learner.publisher import Publisher
from learner.schedule import learning_rate

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
        module = build_model(self._shape, self._config, self._parallel)
        import_weights(module, self._model_path, shape=self._shape, parallel=self._parallel)
        self._module = module
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
        self._runner = RowRunner(self._model, shape=self._shape, config=self._config, parallel=self._parallel)

    @property
    def version(self) -> int:
        """Steps behind the present weights."""
        return self._version

    @_on_device
    def step(self, batch: Batch) -> StepReport:
        """Train on one batch: `num_minibatches` updates, then the version is one higher.

        The report's loss and norm are means over the updates, its other figures means over all trained tokens. Several
        updates keep a copy of the state until the last one, to be able to undo. Raises `LearnerError`, naming the step,
        for a batch it cannot train on and where the loss or the gradient is not finite; then nothing was applied.
        """
        started_s = time.monotonic()
        sequences = flatten(batch)
        self._check_tokens([s.token_ids for s in sequences])
        minibatches = [self._rows(m) for m in split_minibatches(sequences, self._config.num_minibatches)]
        if not minibatches:
            raise LearnerError(f"step {batch.step}: the batch holds no trained token")
        rate = learning_rate(self._config.schedule, lr=self._config.lr, step=self._num_steps)
        proximal = self._proximal(minibatches)
        undo = copy.deepcopy(self._state()) if len(minibatches) > 1 else None
        totals, norms = RowStatistics.nothing(self._parallel.device), []
        losses: list[float] = []
        for rows, before in zip(minibatches, proximal, strict=True):
            statistics, norm = self._update_gradients(rows, before)
            loss = float(statistics.sums[0])
            if not (math.isfinite(loss) and math.isfinite(norm)):
                if undo is not None and norms:
                    self._restore(undo)
                raise LearnerError(f"step {batch.step}: {loss=}, gradient norm={norm}; nothing was applied")
            self._optimizer.apply(learning_rate=rate, grad_norm=norm)
            totals = totals + statistics
            norms.append(norm)
            losses.append(loss)
        self._version += 1
        self._num_steps += 1
        _, entropy, k3, clipped, count = totals.sums.tolist()
        return StepReport(
            step=batch.step,
            version=self._version,
            loss=sum(losses) / len(losses),
            grad_norm=sum(norms) / len(norms),
            learning_rate=rate,
            num_trained_tokens=int(count),
            num_computed_tokens=sum(len(s.token_ids) for s in sequences),
            entropy=entropy / count,
            kl_rollout=k3 / count,
            ratio_max=math.exp(float(totals.max_log_ratio)),
            clip_fraction=clipped / count,
            duration_s=time.monotonic() - started_s,
        )

    def _rows(self, sequences: Sequence[FlatSequence]) -> list[Row]:
        """This replica's rows of one mini-batch."""
        weights = loss_weights(sequences, self._config.normalisation)
        num_replicas = self._parallel.dp_size
        rows = pack(sequences, budget=self._config.micro_batch_tokens, weights=weights, multiple=num_replicas)
        shares = balance([len(r.token_ids) for r in rows], num_replicas)
        return [rows[i] for i in sorted(shares[self._parallel.dp_rank])]

    def _proximal(self, minibatches: list[list[Row]]) -> list[list[Tensor] | None]:
        """Log-probabilities before the step, where later updates need them; the first update reads its own."""
        is_needed = needs_proximal(self._config.correction) and not self._config.is_supervised
        if len(minibatches) == 1 or not is_needed:
            return [None] * len(minibatches)
        temperature = self._config.temperature
        return [self._runner.logprobs(rows, temperature=temperature) for rows in minibatches]

    def _update_gradients(self, rows: list[Row], proximal: list[Tensor] | None) -> tuple[RowStatistics, float]:
        """Gradients of one mini-batch, its statistics over all ranks, and the global norm."""
        self._optimizer.zero_grad()
        own = self._runner.train(rows, proximal=proximal)
        statistics = RowStatistics(
            sums=self._parallel.total(own.sums),
            max_log_ratio=self._parallel.total(own.max_log_ratio, maximum=True),
        )
        return statistics, self._optimizer.prepare()

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
        flat = [FlatSequence.scored(ids) for ids in sequences]
        rows = pack(flat, budget=self._config.micro_batch_tokens)
        scored = self._runner.logprobs(rows, temperature=temperature)
        results = [np.zeros(len(ids), np.float32) for ids in sequences]
        for row, values in zip(rows, self._from_last_stage(scored, rows), strict=True):
            for member, positions, own in row.split(values):
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

    def _state(self) -> dict[str, Any]:
        """This rank's parameters and optimiser: the living tensors, not copies."""
        parameters = {name: p.detach() for name, p in self._module.named_parameters()}
        return {"parameters": parameters, "optimizer": self._optimizer.state()}

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        for name, parameter in self._module.named_parameters():
            parameter.copy_(state["parameters"][name])
        self._optimizer.restore(state["optimizer"])

    def close(self) -> None:
        """Leave the groups; the process may hold another learner afterwards. Further calls do nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._parallel.stop()

    def __enter__(self) -> "MegatronLearner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
