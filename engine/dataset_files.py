"""Rows of a data file: parquet (the door to pyarrow) or JSON lines, read once and checked at once.

A column is named by its path, `reward_model.ground_truth` for a field of a struct. Where a file has not the columns of
ARPO's training sets, and no others were asked for, each row is read as a benchmark's (`benchmark_rows`).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from engine.answers import join_alternatives
from engine.benchmark_rows import Layout, answer_of, layout_of, question_of
from engine.errors import DataError, boundary

PROMPT_COLUMN, ANSWER_COLUMN = "prompt", "reward_model.ground_truth"
"""Of ARPO's training sets."""
ABILITY_COLUMN = "ability"

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
    ability: str = ""
    """What kind of question it is, `math` or `qa`, where the file says so."""
    level: str = ""
    """How hard it is, in the words of the file."""


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
            records = _read_parquet(path, prompt=prompt, answer=answer, source=source)
        case ".jsonl":
            records = _read_jsonl(path, prompt=prompt, answer=answer)
        case _:
            raise DataError(f"{path}: a data file ends in .parquet or .jsonl")
    for index, (record, layout) in enumerate(records):
        field = partial(_field, record)
        try:
            yield Row(
                index=index,
                messages=_messages(question_of(layout, field)),
                ground_truth=_ground_truth(answer_of(layout, field)),
                data_source=str(field(source) or path.stem),
                ability=str(field(ABILITY_COLUMN) or ""),
                level=str(field(layout.level) or "") if layout.level else "",
            )
        except msgspec.ValidationError as error:
            raise DataError(f"{path}: row {index}: {error}") from None


def _read_parquet(path: Path, *, prompt: str, answer: str, source: str) -> Iterator[tuple[dict[str, Any], Layout]]:
    import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

    library: Any = pyarrow.parquet
    with boundary(DataError, str(path)), library.ParquetFile(path) as file:
        # A list's own path is behind `prompt.list.element.content`, the path of what it holds.
        leaves = [str(file.schema.column(i).path).split(".list.")[0] for i in range(len(file.schema.names))]
        layout = _layout(path, prompt=prompt, answer=answer, leaves=leaves)
        columns = [layout.question, layout.answer, layout.options, layout.level, source, ABILITY_COLUMN]
        table: Any = file.read(columns=columns)  # those that are not there are left out
    for batch in table.to_batches(max_chunksize=1024):
        for record in batch.to_pylist():
            yield record, layout


def _read_jsonl(path: Path, *, prompt: str, answer: str) -> Iterator[tuple[dict[str, Any], Layout]]:
    with boundary(DataError, str(path)):
        lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _JSON.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: line {number}: {error}") from None
        where = f"line {number}: "
        yield record, _layout(path, prompt=prompt, answer=answer, leaves=list(_leaves(record)), where=where)


def _layout(path: Path, *, prompt: str, answer: str, leaves: Sequence[str], where: str = "") -> Layout:
    """The columns that were asked for; those of a benchmark, where these are the defaults and are not all there."""
    missing = [name for name in (prompt, answer) if name not in leaves]
    if not missing:
        return Layout(question=prompt, answer=answer)
    benchmark = layout_of(frozenset(leaves)) if (prompt, answer) == (PROMPT_COLUMN, ANSWER_COLUMN) else None
    if benchmark is None:
        there = ", ".join(dict.fromkeys(leaves)) or "none"
        raise DataError(f"{path}: {where}no column {', '.join(missing)}; there are: {there}")
    return benchmark


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
