"""Weights between a Hugging Face folder and the sharded model of all ranks, exactly, one tensor at a time."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import DataError
from engine.inference.shape import ModelShape
from learner.parallel import Parallel
from learner.storage import hf_folder
from learner.storage.buckets import Bucket, plan_buckets
from learner.storage.shared_folder import write_together
from learner.storage.tensor_file import write_tensors
from learner.storage.weights import cut, join, stage_mappings

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
    bucket_bytes: int,
    with_tokenizer: bool = False,
    is_durable: bool = True,
) -> None:
    """Write the model as a Hugging Face folder; all ranks call it. The folder appears whole, or not at all.

    config.json, and the tokenizer where asked for, come from `source`. Weights are whole tensors, in files of at most
    `bucket_bytes` (one larger tensor has its own) and with an index where these are several; what a rank needs beside
    its model is about one file. Raises `LearnerError` on all ranks where one cannot write.
    """
    buckets = plan_buckets(
        shape, num_stages=parallel.pp_size, tp_size=parallel.tp_size, dtype=dtype, limit=bucket_bytes
    )

    def fill(folder: Path) -> None:
        failure: OSError | None = None
        for number, bucket in enumerate(buckets):
            if parallel.dp_rank > 0 or bucket.stage != parallel.pp_rank:
                continue
            tensors = _whole_tensors(model, bucket, shape=shape, parallel=parallel, dtype=dtype)
            if bucket.writer == parallel.tp_rank and failure is None:
                try:
                    write_tensors(folder / hf_folder.part_name(number, len(buckets)), bucket.specs(dtype), tensors)
                except OSError as error:
                    failure = error  # raised behind the other buckets: their ranks gather from this one
        if failure is not None:
            raise failure

    def finish(folder: Path, _: list[None]) -> None:
        hf_folder.write_config(folder, source, dtype=DTYPE_NAMES[dtype])
        hf_folder.write_index(folder, [tuple(bucket.specs(dtype)) for bucket in buckets])
        if with_tokenizer:
            hf_folder.copy_tokenizer(source, folder)

    write_together(target, parallel, fill=fill, finish=finish, is_durable=is_durable)


@torch.no_grad()
def _whole_tensors(
    model: nn.Module, bucket: Bucket, *, shape: ModelShape, parallel: Parallel, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The tensors of one bucket, each made when it is asked for; only the rank that writes it may ask.

    All tensor-parallel ranks of the stage call it: their shards are gathered at once, already in `dtype`.
    """
    own = [model.get_parameter(mapping.parameter).detach() for mapping in bucket.mappings]
    gathered: list[Tensor] = []
    if parallel.tp_size > 1:
        gathered = parallel.gather_flat(torch.cat([shard.to(dtype).flatten() for shard in own]), to=bucket.writer)

    def joined() -> Iterator[Tensor]:
        place = 0
        for mapping, shard in zip(bucket.mappings, own, strict=True):
            shards = [flat[place : place + shard.numel()].view(shard.shape) for flat in gathered]
            place += shard.numel()
            yield from join(mapping, shards or [shard.to(dtype)], shape=shape)

    return joined()
