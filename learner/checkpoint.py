"""A checkpoint is a folder with a manifest: whole and its own, or refused.

    manifest.json                    version, steps, model shape, layout, size and digest of every file
    rank-tp00-pp00.pt ...            one file for each model-parallel rank: parameters and optimiser

Replicas hold the same state, so their number may change between saving and loading; tensor- and pipeline-parallel
sizes may not (export Hugging Face weights to change those).
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine.errors import DataError
from engine.inference.shape import ModelShape
from learner.hf_folder import fresh_staging, staging
from learner.parallel import Parallel

MANIFEST = "manifest.json"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a checkpoint."""

    name: str
    num_bytes: int
    digest: str
    """BLAKE2b of its content, 16 bytes, in hexadecimal."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds; written last."""

    version: int
    num_steps: int
    dtype: str
    tensor_parallel: int
    pipeline_parallel: int
    shape: ModelShape
    files: tuple[FileEntry, ...] = ()


def rank_file(parallel: Parallel) -> str:
    """The file of this rank's model-parallel place."""
    return f"rank-tp{parallel.tp_rank:02d}-pp{parallel.pp_rank:02d}.pt"


def save(path: str | Path, state: dict[str, Any], *, manifest: Manifest, parallel: Parallel) -> None:
    """Write this rank's state; all ranks call it. The folder appears when every file of it is on disk."""
    if parallel.rank == 0:
        with fresh_staging(path) as folder:
            parallel.barrier()
            entries = _write(folder, state, parallel)
            complete = msgspec.structs.replace(manifest, files=tuple(entries))
            (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(complete), indent=2))
    else:
        parallel.barrier()
        _write(staging(path), state, parallel)
    parallel.barrier()


def _write(folder: Path, state: dict[str, Any], parallel: Parallel) -> list[FileEntry]:
    entry = None
    if parallel.dp_rank == 0:
        file = folder / rank_file(parallel)
        torch.save(state, file)
        entry = FileEntry(name=file.name, num_bytes=file.stat().st_size, digest=_digest(file))
    return sorted((e for e in parallel.gather_objects(entry) if e is not None), key=lambda e: e.name)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def load(path: str | Path, *, expected: Manifest, parallel: Parallel) -> tuple[Manifest, dict[str, Any]]:
    """The manifest and this rank's state. Raises `DataError`, in one line, for a torn or a foreign checkpoint."""
    folder = Path(path)
    manifest = _read_manifest(folder)
    for name in ("shape", "dtype", "tensor_parallel", "pipeline_parallel"):
        ours, theirs = getattr(expected, name), getattr(manifest, name)
        if name == "shape" and ours != theirs:
            name, ours, theirs = _first_difference(ours, theirs)
        if ours != theirs:
            raise DataError(f"{folder}: checkpoint has {name} {theirs!r}, this learner has {ours!r}")
    file = folder / rank_file(parallel)
    entry = next((e for e in manifest.files if e.name == file.name), None)
    if entry is None or not file.exists():
        raise DataError(f"{folder}: {file.name} is missing")
    if file.stat().st_size != entry.num_bytes or _digest(file) != entry.digest:
        raise DataError(f"{file}: torn: not the {entry.num_bytes} bytes that the manifest names")
    return manifest, torch.load(file, map_location=parallel.device, weights_only=True)


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
