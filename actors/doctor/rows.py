"""Rows: how many prompts an epoch of a data section has, without tokenising one."""

from dataclasses import dataclass
from pathlib import Path

from actors.materials import WORLD
from engine.dataset import DataConfig
from engine.dataset_files import read_rows
from engine.errors import DataError
from tools.toolworld import ToolworldConfig


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What became of reading a data file."""

    number: int | None = None
    """Rows that are used; None where the file cannot be read."""
    error: DataError | None = None
    """Why, where it is one of the file's own."""


def count_rows(data: DataConfig, *, world: ToolworldConfig | None) -> Rows:
    """Of a generated task as many as its section says; of a file those with an answer."""
    number: int | None
    if data.path.startswith(WORLD):
        number = getattr(world, f"num_{data.path.removeprefix(WORLD)}", None)
        return Rows(number=None if number is None else min(number, data.limit or number))
    if not Path(data.path).exists():
        return Rows()
    columns = {"prompt": data.prompt_column, "answer": data.answer_column, "source": data.source_column}
    try:
        number = sum(bool(row.ground_truth) for row in read_rows(Path(data.path), **columns))
    except DataError as error:
        return Rows(error=error)
    return Rows(number=min(number, data.limit or number))
