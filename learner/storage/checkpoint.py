"""A checkpoint is a folder with a manifest, whole or refused, and any layout continues what any other one saved.

    manifest.json                            version, steps, model shape; size and digest of every file
    tp00-pp00-dp00.safetensors, ...          one for each rank that has something to say

Of every parameter there are the master (which the weights are, rounded to their dtype) and AdamW's two moments. Each
rank writes what it holds and no other rank has said: nothing is gathered, and no rank needs another one's memory. A
rank that loads looks up, parameter by parameter, what it needs (see `learner.storage.shards`).

Megatron's own format would need its resharding of a distributed optimiser's buckets, which does not run without
Transformer Engine; the exact map between parameters and Hugging Face tensors, which weights need anyway, is all that
re-sharding takes. Where a run is (data, random streams) is in its journal, and not here.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from engine.errors import DataError
from engine.inference.shape import ModelShape
from learner.optimizer import KINDS, PolicyOptimizer
from learner.parallel import Parallel
from learner.storage.shards import ShardReader, piece_key, whole_names
from learner.storage.shared_folder import write_together
from learner.storage.tensor_file import TensorSpec, write_tensors
from learner.storage.weights import Mapping, stage_mappings

MANIFEST = "manifest.json"
_DIGEST_BYTES = 16


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a checkpoint."""

    name: str
    tensor_rank: int
    """Tensor-parallel rank of its writer."""
    num_bytes: int
    digest: str
    """BLAKE2b of its content, 16 bytes, in hexadecimal."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds; written last."""

    version: int
    num_steps: int
    num_updates: int
    """Of the optimiser; a step may have several."""
    dtype: str
    tensor_parallel: int
    shape: ModelShape
    files: tuple[FileEntry, ...] = ()


def save(path: str | Path, optimizer: PolicyOptimizer, *, manifest: Manifest, parallel: Parallel) -> None:
    """Write the state of all ranks, which all call it. The folder appears when every file of it is on disk.

    Raises `LearnerError` on all ranks where one cannot write; what had this path before is still there then.
    """

    def finish(folder: Path, entries: list[FileEntry | None]) -> None:
        complete = msgspec.structs.replace(manifest, files=tuple(e for e in entries if e is not None))
        (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(complete), indent=2))

    pieces = dict(_own_pieces(optimizer, shape=manifest.shape, parallel=parallel))
    write_together(path, parallel, fill=lambda folder: _write(folder, pieces, parallel), finish=finish)


def _own_pieces(optimizer: PolicyOptimizer, *, shape: ModelShape, parallel: Parallel) -> Iterator[tuple[str, Tensor]]:
    """What this rank speaks for; the tensors are alive."""
    names = whole_names(shape)
    mappings = {m.parameter: m for m in _mappings(shape, parallel)}
    for own in optimizer.slices:
        mapping = mappings[own.parameter]
        is_said = (
            not mapping.is_exported
            or (mapping.rule == "whole" and parallel.tp_rank > 0)
            or (not optimizer.is_distributed and parallel.dp_rank > 0)
        )
        if not is_said:
            for kind in KINDS:
                yield piece_key(kind, names[mapping.tensors], own.start), own.tensors[kind]


def _write(folder: Path, pieces: dict[str, Tensor], parallel: Parallel) -> FileEntry | None:
    if not pieces:
        return None
    file = folder / f"tp{parallel.tp_rank:02d}-pp{parallel.pp_rank:02d}-dp{parallel.dp_rank:02d}.safetensors"
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    specs = {key: TensorSpec(dtype=t.dtype, shape=tuple(t.shape)) for key, t in pieces.items()}
    num_bytes = write_tensors(file, specs, pieces.values(), hasher=hasher)
    return FileEntry(name=file.name, tensor_rank=parallel.tp_rank, num_bytes=num_bytes, digest=hasher.hexdigest())


@torch.no_grad()
def load(
    path: str | Path, module: nn.Module, optimizer: PolicyOptimizer, *, expected: Manifest, parallel: Parallel
) -> Manifest:
    """Restore this rank's weights and optimiser; all ranks call it.

    Raises `DataError` on all ranks, in one line and with nothing changed, for a checkpoint that is torn or was made of
    another model. Digests are checked by all ranks together, each file by one.
    """
    folder = Path(path)
    manifest = parallel.together(lambda: _checked(folder, expected, parallel), kind=DataError)[0]
    held = {own.parameter: own for own in optimizer.slices}
    with _reader(folder, manifest) as reader:
        for mapping in _mappings(manifest.shape, parallel):
            master = reader.shard(mapping, KINDS[0], tp_rank=parallel.tp_rank, tp_size=parallel.tp_size)
            module.get_parameter(mapping.parameter).copy_(master)
            if (own := held.get(mapping.parameter)) is not None:
                own.tensors[KINDS[0]].copy_(master.flatten()[own.start : own.stop])
                for kind in KINDS[1:]:
                    moment = reader.shard(mapping, kind, tp_rank=parallel.tp_rank, tp_size=parallel.tp_size)
                    own.tensors[kind].copy_(moment.flatten()[own.start : own.stop])
    optimizer.num_updates = manifest.num_updates
    return manifest


def _mappings(shape: ModelShape, parallel: Parallel) -> list[Mapping]:
    return stage_mappings(shape, stage=parallel.pp_rank, num_stages=parallel.pp_size)


def _reader(folder: Path, manifest: Manifest) -> ShardReader:
    files = [(folder / entry.name, entry.tensor_rank) for entry in manifest.files]
    return ShardReader(files, shape=manifest.shape, tp_size=manifest.tensor_parallel)


def _checked(folder: Path, expected: Manifest, parallel: Parallel) -> Manifest:
    """The manifest, when this rank finds nothing wrong with its share of the files, and all that it needs in them."""
    manifest = _read_manifest(folder)
    for name in ("shape", "dtype"):
        ours, theirs = getattr(expected, name), getattr(manifest, name)
        if name == "shape" and ours != theirs:
            name, ours, theirs = _first_difference(ours, theirs)
        if ours != theirs:
            raise DataError(f"{folder}: checkpoint has {name} {theirs!r}, this learner has {ours!r}")
    for entry in manifest.files:
        if not (folder / entry.name).exists():
            raise DataError(f"{folder}: {entry.name} is missing")
    for entry in manifest.files[parallel.rank :: parallel.world_size]:
        file = folder / entry.name
        if file.stat().st_size != entry.num_bytes or _digest(file) != entry.digest:
            raise DataError(f"{file}: torn: not the {entry.num_bytes} bytes that the manifest names")
    with _reader(folder, manifest) as reader:
        for mapping in _mappings(manifest.shape, parallel):
            for kind in KINDS:
                reader.check(mapping, kind)
    return manifest


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise DataError(f"{folder}: no checkpoint here: {MANIFEST} is missing") from None
    except msgspec.DecodeError as error:
        raise DataError(f"{folder / MANIFEST}: {error}") from None


def _first_difference(ours: ModelShape, theirs: ModelShape) -> tuple[str, Any, Any]:
    name = next(n for n in ModelShape.__struct_fields__ if getattr(ours, n) != getattr(theirs, n))
    return name, getattr(ours, name), getattr(theirs, name)
