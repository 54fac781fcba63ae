"""Rows of a data file: parquet (the door to pyarrow) or JSON lines, read once and checked at once.

A column is named by its path, `reward_model.ground_truth` for a field of a struct.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from engine.answers import join_alternatives
from engine.errors import DataError, boundary

_JSON = msgspec.json.Decoder(dict[str, Any])


class _Message(msgspec.Struct):
    role: str
    content: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a file, not yet tokenised."""

    index: int
    """Position in the file, from 0."""
    messages: tuple[dict[str, str], ...]
    ground_truth: str
    """As `engine.answers` writes it; empty where the file has no answer."""
    data_source: str


def read_rows(path: Path, *, prompt: str, answer: str, source: str) -> Iterator[Row]:
    """Read `path`, whose suffix is its form: `.parquet`, `.jsonl`.

    `prompt` holds messages (role and content each) or the text of a question; `answer` a string, a number or a list
    of those; `source` is optional, and the file's stem stands in for it. Raises `DataError`, one line that names the
    file: unreadable, without a needed column (and which there are), or a row of another shape (and which).
    """
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    match path.suffix:
        case ".parquet":
            records = _read_parquet(path, columns=(prompt, answer, source), needed=(prompt, answer))
        case ".jsonl":
            records = _read_jsonl(path, needed=(prompt, answer))
        case _:
            raise DataError(f"{path}: a data file ends in .parquet or .jsonl")
    for index, record in enumerate(records):
        try:
            yield Row(
                index=index,
                messages=_messages(_field(record, prompt)),
                ground_truth=_ground_truth(_field(record, answer)),
                data_source=str(_field(record, source) or path.stem),
            )
        except msgspec.ValidationError as error:
            raise DataError(f"{path}: row {index}: {error}") from None


def _read_parquet(path: Path, *, columns: Sequence[str], needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

    library: Any = pyarrow.parquet
    with boundary(DataError, str(path)), library.ParquetFile(path) as file:
        # A list's own path is behind `prompt.list.element.content`, the path of what it holds.
        leaves = [str(file.schema.column(i).path).split(".list.")[0] for i in range(len(file.schema.names))]
        _check_columns(path, needed=needed, leaves=leaves)
        table: Any = file.read(columns=list(columns))  # those that are not there are left out
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _read_jsonl(path: Path, *, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    with boundary(DataError, str(path)):
        lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _JSON.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: line {number}: {error}") from None
        _check_columns(path, needed=needed, leaves=list(_leaves(record)), where=f"line {number}: ")
        yield record


def _check_columns(path: Path, *, needed: Sequence[str], leaves: Sequence[str], where: str = "") -> None:
    missing = [name for name in needed if name not in leaves]
    if missing:
        there = ", ".join(dict.fromkeys(leaves)) or "none"
        raise DataError(f"{path}: {where}no column {', '.join(missing)}; there are: {there}")


def _leaves(record: dict[str, Any], *, prefix: str = "") -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _leaves(cast("dict[str, Any]", value), prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _field(record: dict[str, Any], name: str) -> Any:
    value: Any = record
    for key in name.split("."):
        if not isinstance(value, dict):
            return None
        value = cast("dict[str, Any]", value).get(key)
    return value


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    messages = msgspec.convert(value, list[_Message])
    if not messages:
        raise msgspec.ValidationError("a prompt needs one message at least")
    return tuple({"role": message.role, "content": message.content} for message in messages)


def _ground_truth(value: Any) -> str:
    """One string of all answers that are not blank; empty where there is none."""
    answers: list[str | int | float | None] = msgspec.convert(
        value if isinstance(value, list) else [value], list[str | int | float | None]
    )
    texts = [str(answer).strip() for answer in answers if answer is not None]
    texts = [text for text in texts if text]
    return join_alternatives(texts) if texts else ""
