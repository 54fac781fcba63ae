"""Buckets: parameters that are gathered together, written by one rank, and are one file; all ranks know all of them.

A stage's tensor-parallel ranks take turns at writing, so that they write side by side. What one needs beside its own
shards is about one bucket: `limit` bytes, or one larger tensor, which goes alone.
"""

from dataclasses import dataclass
from math import prod

import torch

from engine.inference.shape import ModelShape
from learner.storage.tensor_file import TensorSpec
from learner.storage.weights import Mapping, stage_mappings


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One file of published weights."""

    stage: int
    writer: int
    """Tensor-parallel rank, in the first replica of the stage."""
    mappings: tuple[Mapping, ...]

    def specs(self, dtype: torch.dtype) -> dict[str, TensorSpec]:
        """Its tensors, in the order in which they are written."""
        return {
            name: TensorSpec(dtype=dtype, shape=extents)
            for mapping in self.mappings
            for name, extents in zip(mapping.tensors, mapping.shapes, strict=True)
        }


def plan_buckets(
    shape: ModelShape, *, num_stages: int, tp_size: int, dtype: torch.dtype, limit: int
) -> tuple[Bucket, ...]:
    """All buckets of a model, in the order of the forward pass."""
    return tuple(
        Bucket(stage=stage, writer=number % tp_size, mappings=tuple(mappings))
        for stage in range(num_stages)
        for number, mappings in enumerate(_split(shape, stage, num_stages, dtype=dtype, limit=limit))
    )


def _split(shape: ModelShape, stage: int, num_stages: int, *, dtype: torch.dtype, limit: int) -> list[list[Mapping]]:
    parts: list[list[Mapping]] = [[]]
    room = limit
    for mapping in stage_mappings(shape, stage=stage, num_stages=num_stages):
        if not mapping.is_exported:
            continue
        num_bytes = dtype.itemsize * sum(map(prod, mapping.shapes))
        if parts[-1] and num_bytes > room:
            parts.append([])
            room = limit
        parts[-1].append(mapping)
        room -= num_bytes
    return parts
