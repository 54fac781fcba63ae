"""Case: what is examined, a configuration together with its model and the machine it is examined on.

A configuration may be meant for other machines. It is where it asks for GPUs that are not here, or for a Ray cluster;
what is said about the programs and files of this machine is a warning then.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from actors.config import Config
from actors.doctor.finding import Finding, refused, warning
from actors.doctor.machine import Machine
from actors.doctor.model import Model, find_model
from actors.doctor.rows import Rows, count_rows
from actors.doctor.sglang_args import SglangArgs
from engine.inference.sglang_config import SglangConfig
from engine.inference.shape import ModelShape

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration on one machine."""

    config: Config
    machine: Machine
    gpu_bytes: int | None = None
    """Memory of one GPU, as a person says; unset is that of this machine's GPUs."""
    num_gpus: int | None = None
    """GPUs there are, as a person says; unset is this machine's."""

    @cached_property
    def model(self) -> Model:
        return find_model(self.config)

    @cached_property
    def rows(self) -> Rows:
        """Of the training data, one epoch."""
        return count_rows(self.config.data, world=self.config.world)

    @property
    def shape(self) -> ModelShape | None:
        return self.model.shape

    # -- where it will run ------------------------------------------------------------------------------------

    @property
    def is_on_ray(self) -> bool:
        return self.config.runtime.backend == "ray"

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is meant for other machines than this one."""
        return self.is_on_ray or (self.wants_gpus and not self.machine.gpus)

    def unfit(self, key: str, text: str) -> Finding:
        """Something that this machine lacks, which matters only where the run is meant for it."""
        return warning(key, self.here(text)) if self.is_elsewhere else refused(key, text)

    def here(self, text: str) -> str:
        """A sentence about this machine, which says so where the run is meant for others."""
        return f"on this machine, {text}" if self.is_elsewhere else text

    @property
    def wants_gpus(self) -> bool:
        """Whether the configuration, or who asks, says that there are GPUs."""
        ray = self.config.runtime.ray
        has_ray_gpus = self.is_on_ray and (ray.generator.gpus > 0 or ray.learner.gpus > 0)
        return self.config.generator.device == "cuda" or has_ray_gpus or bool(self.num_gpus)

    @property
    def generator_device(self) -> Device:
        wanted = self.config.generator.device
        if wanted != "auto":
            return wanted
        if self.is_on_ray:
            return "cuda" if self.config.runtime.ray.generator.gpus else "cpu"
        return self._local_device

    @property
    def learner_device(self) -> Device:
        if self.is_on_ray:
            return "cuda" if self.config.runtime.ray.learner.gpus else "cpu"
        return self._local_device

    @property
    def _local_device(self) -> Device:
        return "cuda" if self.machine.gpus or self.wants_gpus else "cpu"

    @property
    def memory_of_gpu(self) -> int | None:
        """Bytes of the smallest GPU; None where there is none and nobody said."""
        if self.gpu_bytes is not None:
            return self.gpu_bytes
        return min((gpu.num_bytes for gpu in self.machine.gpus), default=None)

    # -- generators -------------------------------------------------------------------------------------------

    @cached_property
    def sglang(self) -> SglangArgs:
        """What SGLang's own arguments say; of the embedded engine, one process on one GPU."""
        generator = self.config.generator
        return SglangArgs.of(generator.args if isinstance(generator, SglangConfig) else ())

    @property
    def urls(self) -> tuple[str, ...]:
        """Servers that are there already."""
        generator = self.config.generator
        return generator.urls if isinstance(generator, SglangConfig) else ()

    @property
    def num_launched(self) -> int:
        """Generators that the run starts."""
        return 0 if self.urls else self.config.runtime.num_generators

    @property
    def generator_dtype_bytes(self) -> int:
        """Of one weight, or one key, in a generator."""
        generator = self.config.generator
        if generator.dtype != "auto":
            return 4 if generator.dtype == "float32" else 2
        if self.generator_device == "cpu":
            return 4
        return self.model.dtype_bytes if isinstance(generator, SglangConfig) else 2

    # -- lengths ----------------------------------------------------------------------------------------------

    @property
    def longest_response(self) -> int:
        return self.config.rollout.sampling.max_response_tokens

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest path there can be."""
        longest = self.config.data.max_prompt_tokens + self.longest_response
        return longest if self.shape is None else min(longest, self.shape.max_positions)
