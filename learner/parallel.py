"""Processes and their groups: who this rank is, and the collectives that the learner itself needs.

One learner a process at a time: Megatron keeps its groups in module globals. `Parallel.start` makes them and `stop`
takes them all down, so that a process may hold one learner after another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

from engine.errors import ArpoError, ConfigError, LearnerError
from learner.config import LearnerConfig
from learner.mcore import parallel_state, tensor_parallel
from learner.mcore_cpu import cuda_means_cpu
from learner.meeting import meet

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """This rank's place; ranks count tensor-parallel fastest, then data-parallel, then pipeline stages."""

    rank: int
    world_size: int
    device: torch.device
    tp_rank: int
    pp_rank: int
    dp_rank: int
    tp_size: int
    pp_size: int
    dp_size: int
    tp_group: ProcessGroup

    @classmethod
    def start(
        cls,
        config: LearnerConfig,
        *,
        rank: int,
        world_size: int,
        init_method: str | None,
        timeout_s: float,
    ) -> "Parallel":
        """Join the other ranks (NCCL on GPUs, gloo without) and build Megatron's groups.

        One process needs no address: its store lives in its own memory. Raises `ConfigError` where the layout does not
        give `world_size`, `LearnerError` where this process holds a learner already.
        """
        if config.world_size != world_size:
            raise ConfigError(
                f"tensor_parallel * pipeline_parallel * data_parallel = {config.world_size}, but got {world_size=}"
            )
        if world_size > 1 and init_method is None:
            raise ConfigError(f"a learner of {world_size=} needs an init_method, such as tcp://127.0.0.1:29500")
        if dist.is_initialized() or parallel_state.is_initialized():
            raise LearnerError("this process holds a distributed group already; close the learner that made it")
        has_cuda = torch.cuda.is_available()
        device = torch.device("cuda", rank % torch.cuda.device_count()) if has_cuda else torch.device("cpu")
        if has_cuda:
            torch.cuda.set_device(device)
        if world_size == 1:
            store: dist.Store = dist.HashStore()
        else:
            assert init_method is not None
            store = meet(init_method, rank=rank, world_size=world_size, timeout_s=timeout_s)
        dist.init_process_group(
            "nccl" if has_cuda else "gloo",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
            store=store,
        )
        try:
            return cls._join(config, rank=rank, device=device, timeout_s=timeout_s)
        except BaseException:
            _leave()
            raise

    @classmethod
    def _join(cls, config: LearnerConfig, *, rank: int, device: torch.device, timeout_s: float) -> "Parallel":
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tensor_parallel,
            pipeline_model_parallel_size=config.pipeline_parallel,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=max(int(timeout_s // 60), 1),
        )
        with cuda_means_cpu(), torch.random.fork_rng(devices=[]):  # Megatron seeds the device's own generator
            tensor_parallel.model_parallel_cuda_manual_seed(config.seed, force_reset_rng=True)
        return cls(
            rank=rank,
            world_size=config.world_size,
            device=device,
            tp_rank=parallel_state.get_tensor_model_parallel_rank(),
            pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
            dp_rank=parallel_state.get_data_parallel_rank(),
            tp_size=config.tensor_parallel,
            pp_size=config.pipeline_parallel,
            dp_size=config.data_parallel,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )

    def stop(self) -> None:
        """Take down every group."""
        _leave()

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    def barrier(self) -> None:
        """Return when all ranks are here."""
        if self.world_size > 1:
            dist.barrier()

    def gather_flat(self, flat: Tensor, *, to: int) -> list[Tensor]:
        """What each tensor-parallel rank holds, in order, on rank `to` of the group; nothing on the others."""
        found = [torch.empty_like(flat) for _ in range(self.tp_size)] if self.tp_rank == to else None
        dist.gather(flat, found, group=self.tp_group, group_dst=to)
        return found or []

    def gather_objects(self, value: Any) -> list[Any]:
        """One small value of each rank, on every rank."""
        values: list[Any] = [None] * self.world_size
        if self.world_size == 1:
            return [value]
        dist.all_gather_object(values, value)
        return values

    def gather_replicas(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """The arrays of all replicas, in order, on each of them; lengths may differ."""
        gathered: list[Any] = [None] * self.dp_size
        if self.dp_size == 1:
            return [values]
        dist.all_gather_object(gathered, values, group=parallel_state.get_data_parallel_group())
        return gathered

    def together(self, work: Callable[[], T], *, kind: type[ArpoError]) -> list[T]:
        """Do this rank's part of something; returns what it came to on every rank, in order.

        Where a part raises an error of this project or of the operating system, all ranks raise the first of them, as
        a `kind`. Parts must not wait for each other behind what may fail.
        """
        error, result = "", None
        try:
            result = work()
        except (ArpoError, OSError) as failure:
            error = str(failure)
        outcomes = self.gather_objects((error, result))
        if errors := [text for text, _ in outcomes if text]:
            raise kind(errors[0])
        return [found for _, found in outcomes]

    def total(self, values: Tensor, *, maximum: bool = False) -> Tensor:
        """Sum (or maximum) over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM)
        return values


def _leave() -> None:
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
