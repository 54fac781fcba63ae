"""Corpora on disk: rows of JSON lines or parquet (a door to pyarrow), and passages that are read where they lie."""

import logging
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np

from engine.errors import ConfigError
from tools.passages import Passage, PassageRow

logger = logging.getLogger(__name__)

_NUM_NAMED_ROWS = 5
_COLUMNS = ("id", "title", "text", "contents")
_PASSAGES, _OFFSETS = "passages.jsonl", "offsets.npy"

Numbered = tuple[int, Passage | None]
"""Which row, from 1, and what it holds; None for a broken one."""


def read_corpus(path: str | Path) -> tuple[list[Passage], tuple[int, ...]]:
    """All usable passages of a `.parquet` or JSONL file, and the numbers, from 1, of the rows that are broken.

    Empty lines are skipped. A row without text, or that cannot be read, is left out, counted and named in one warning.
    Raises `ConfigError`, one line, where the file cannot be read or no row can be used.
    """
    rows = _parquet_rows(path) if str(path).endswith(".parquet") else _json_rows(path)
    passages: list[Passage] = []
    broken: list[int] = []
    try:
        for number, passage in rows:
            if passage is None:
                broken.append(number)
            else:
                passages.append(passage)
    except OSError as error:
        raise ConfigError(f"corpus {path}: {error.strerror or error}") from None
    if not passages:
        raise ConfigError(f"corpus {path}: no usable passage ({len(broken)} broken rows)")
    if broken:
        named = ", ".join(map(str, broken[:_NUM_NAMED_ROWS])) + (", ..." if len(broken) > _NUM_NAMED_ROWS else "")
        logger.warning("corpus %s: %d broken rows left out (lines %s)", path, len(broken), named)
    return passages, tuple(broken)


def _json_rows(path: str | Path) -> Iterator[Numbered]:
    decoder = msgspec.json.Decoder(PassageRow)
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, decoder.decode(line).passage
            except (msgspec.DecodeError, UnicodeDecodeError):  # a ValidationError is a DecodeError
                yield number, None


def _parquet_rows(path: str | Path) -> Iterator[Numbered]:
    import pyarrow.parquet

    library: Any = pyarrow.parquet
    try:
        with library.ParquetFile(path) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            if not {"text", "contents"} & set(columns):
                raise ConfigError(f"corpus {path}: no column text or contents")
            number = 0
            for batch in file.iter_batches(columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    known = {key: value for key, value in record.items() if value is not None}
                    try:
                        yield number, msgspec.convert(known, PassageRow).passage
                    except msgspec.ValidationError:
                        yield number, None
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"corpus {path}: {str(error).splitlines()[0]}") from None


class StoredPassages(Sequence[Passage]):
    """Passages in a folder, decoded one by one when they are asked for: opening a million takes no longer than ten."""

    def __init__(self, folder: Path) -> None:
        """Raises `OSError` or `ValueError` where the folder holds no such files."""
        self._offsets = np.load(folder / _OFFSETS, mmap_mode="r")
        with (folder / _PASSAGES).open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._decoder = msgspec.json.Decoder(Passage)

    @staticmethod
    def write(folder: Path, passages: Sequence[Passage]) -> None:
        """Write what `StoredPassages(folder)` reads; `passages` is not empty."""
        lines = [msgspec.json.encode(passage) + b"\n" for passage in passages]
        with (folder / _PASSAGES).open("wb") as file:
            file.writelines(lines)
        np.save(folder / _OFFSETS, np.cumsum([0, *map(len, lines)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._decoder.decode(self._bytes[int(self._offsets[place]) : int(self._offsets[place + 1])])
