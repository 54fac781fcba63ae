"""Weights between a Hugging Face folder and the sharded model of all ranks, exactly, one tensor at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import DataError
from engine.inference.shape import ModelShape
from learner import hf_folder
from learner.parallel import Parallel
from learner.weights import cut, join, stage_mappings

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}
UNUSED_SUFFIXES = ("rotary_emb.inv_freq",)


@torch.no_grad()
def import_weights(model: nn.Module, folder: str | Path, *, shape: ModelShape, parallel: Parallel) -> None:
    """Fill this rank's parameters from a folder; equal dtypes make it bitwise.

    Raises `DataError`, in one line with the tensor's name, where one is missing, has another shape, or is not known.
    """
    parameters = dict(model.named_parameters())
    mappings = stage_mappings(shape, stage=parallel.pp_rank, num_stages=parallel.pp_size)
    assert {m.parameter for m in mappings} == set(parameters), "every parameter has exactly one mapping"
    with hf_folder.TensorReader(folder) as reader:
        _refuse_strangers(reader.names, folder, shape)
        for mapping in mappings:
            whole = [reader.read(n, shape=s) for n, s in zip(mapping.tensors, mapping.shapes, strict=True)]
            shard = cut(mapping, whole, shape=shape, rank=parallel.tp_rank, size=parallel.tp_size)
            parameters[mapping.parameter].copy_(shard)


def _refuse_strangers(names: frozenset[str], folder: str | Path, shape: ModelShape) -> None:
    known = {name for mapping in stage_mappings(shape) for name in mapping.tensors}
    known |= {"lm_head.weight"} if shape.is_tied else set()  # some folders repeat the tied embedding under this name
    strangers = sorted(n for n in names - known if not n.endswith(UNUSED_SUFFIXES))
    if strangers:
        raise DataError(f"{folder}: tensor {strangers[0]!r} has no place in a {shape.kind} model")


def export_weights(
    model: nn.Module,
    target: str | Path,
    *,
    source: str | Path,
    shape: ModelShape,
    parallel: Parallel,
    dtype: torch.dtype,
    with_tokenizer: bool = False,
) -> None:
    """Write the model as a Hugging Face folder; all ranks call it. The folder appears whole, or not at all.

    config.json, and the tokenizer where asked for, come from `source`. A pipeline writes one file a stage, with an
    index.
    """
    tensors = _stage_tensors(model, shape=shape, parallel=parallel, dtype=dtype)
    with _shared_staging(target, parallel) as folder:
        if parallel.speaks_for_stage:
            hf_folder.write_part(folder, tensors, stage=parallel.pp_rank, num_stages=parallel.pp_size)
        if parallel.rank == 0:
            hf_folder.write_config(folder, source, dtype=DTYPE_NAMES[dtype])
            hf_folder.write_index(folder, _stage_of(shape, parallel.pp_size), num_stages=parallel.pp_size)
            if with_tokenizer:
                hf_folder.copy_tokenizer(source, folder)
    parallel.barrier()


@torch.no_grad()
def _stage_tensors(model: nn.Module, *, shape: ModelShape, parallel: Parallel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The whole tensors of this stage on the CPU, on the rank that writes them; empty elsewhere."""
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for mapping in stage_mappings(shape, stage=parallel.pp_rank, num_stages=parallel.pp_size):
        if not mapping.is_exported:
            continue
        shards = parallel.gather_shards(parameters[mapping.parameter].detach())
        if parallel.speaks_for_stage:
            whole = join(mapping, shards, shape=shape)
            tensors |= {n: t.to("cpu", dtype) for n, t in zip(mapping.tensors, whole, strict=True)}
    return tensors


def _stage_of(shape: ModelShape, num_stages: int) -> dict[str, int]:
    return {
        name: stage
        for stage in range(num_stages)
        for mapping in stage_mappings(shape, stage=stage, num_stages=num_stages)
        if mapping.is_exported
        for name in mapping.tensors
    }


@contextmanager
def _shared_staging(target: str | Path, parallel: Parallel) -> Iterator[Path]:
    """The staging folder on every rank; it gets its name when all have left the block."""
    if parallel.rank == 0:
        with hf_folder.fresh_staging(target) as folder:
            parallel.barrier()
            yield folder
            parallel.barrier()
    else:
        parallel.barrier()
        yield hf_folder.staging(target)
        parallel.barrier()
