"""Folders of Hugging Face form, read tensor by tensor and written whole or not at all.

A folder appears under its name by a rename, so a reader sees a complete one or none.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import DataError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


class TensorReader:
    """The tensors of a folder by name, read when asked for; a context manager.

    Raises `DataError` for a folder without safetensors, a torn file, or a name that is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._file_of = self._index()

    def _index(self) -> dict[str, str]:
        index = self._folder / INDEX
        if index.exists():
            return msgspec.json.decode(index.read_bytes())["weight_map"]
        if not (self._folder / WEIGHTS).exists():
            raise DataError(f"{self._folder}: neither {WEIGHTS} nor {INDEX}")
        return dict.fromkeys(self._open(WEIGHTS).keys(), WEIGHTS)

    def _open(self, name: str) -> Any:
        if name not in self._files:
            try:
                self._files[name] = safe_open(self._folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(f"{self._folder / name}: {error}") from None
        return self._files[name]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._file_of)

    def read(self, name: str, *, shape: tuple[int, ...]) -> Tensor:
        """One tensor, which must have this shape."""
        if name not in self._file_of:
            raise DataError(f"{self._folder}: tensor {name!r} is missing")
        file = self._open(self._file_of[name])
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
            raise DataError(f"{self._folder}: tensor {name!r} has shape {found}, the model needs {shape}")
        return file.get_tensor(name)

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()


def part_name(number: int, count: int) -> str:
    """The file that holds one of `count` parts of the weights; `number` is from 0."""
    return WEIGHTS if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, parts: Sequence[Sequence[str]]) -> None:
    """Says which part holds which tensors, by name; nothing to say where there is one part."""
    if len(parts) > 1:
        weight_map = {name: part_name(number, len(parts)) for number, names in enumerate(parts) for name in names}
        (folder / INDEX).write_bytes(msgspec.json.encode({"metadata": {}, "weight_map": weight_map}))


def write_config(folder: Path, source: str | Path, *, dtype: str) -> None:
    """config.json of the model that was loaded from `source`, with the dtype of what is written now."""
    raw: dict[str, Any] = msgspec.json.decode((Path(source) / "config.json").read_bytes())
    merged = {k: v for k, v in raw.items() if k not in ("dtype", "torch_dtype")} | {"torch_dtype": dtype}
    (folder / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(merged), indent=2))


def copy_tokenizer(source: str | Path, folder: Path) -> None:
    """The tokenizer's files, as far as the source has them."""
    for name in TOKENIZER_FILES:
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, folder / name)


def staging(target: str | Path) -> Path:
    """The hidden sibling in which a folder is written before it gets its name; equal on all ranks."""
    target = Path(target).absolute()
    return target.parent / f".{target.name}.partial"


def begin(target: str | Path) -> None:
    """Make an empty staging folder."""
    discard(target)
    staging(target).mkdir(parents=True)


def commit(target: str | Path, *, is_durable: bool = True) -> None:
    """Give the staging folder its name, in place of what has it now; if it `is_durable`, all is on disk by then."""
    target, partial = Path(target).absolute(), staging(target)
    if is_durable:
        _sync(partial)
    if target.exists():
        previous = target.parent / f".{target.name}.previous"
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
        partial.rename(target)
        shutil.rmtree(previous)
    else:
        partial.rename(target)
    if is_durable:
        _sync_entry(target.parent)


def discard(target: str | Path) -> None:
    """Remove the staging folder; there may be none."""
    shutil.rmtree(staging(target), ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    _sync_entry(folder)


def _sync_entry(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
