"""Data: whether the files that a run names are there, and can be read."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from actors.doctor.case import Case
from actors.doctor.finding import Finding, of_error, ok, refused
from actors.doctor.rows import Rows, count_rows
from actors.materials import DRILL, WORLD
from tools.toolworld import ToolworldFiles

SUFFIXES = (".parquet", ".jsonl")
WORLD_PARTS = sorted(field.name for field in msgspec.structs.fields(ToolworldFiles) if field.type is str)


def check_data(case: Case) -> Iterator[Finding]:
    config = case.config
    yield from _data(case, "data", config.data.path, case.rows)
    if config.eval is not None:
        for section, data in (("eval.data", config.eval.data), ("eval.validation", config.eval.validation)):
            if data is not None:
                yield from _data(case, section, data.path, count_rows(data, world=config.world))
    for number, stage in enumerate(config.sft):
        for path in stage.traces:
            yield from _path(case, f"sft.{number}.traces", path)
    if config.tools.search is not None:
        yield from _path(case, "tools.search.corpus", config.tools.search.corpus)
    if config.tools.cache.search_cache:
        yield from _path(case, "tools.cache.search_cache", config.tools.cache.search_cache)


def _data(case: Case, section: str, path: str, rows: Rows) -> Iterator[Finding]:
    key = f"{section}.path"
    if not path.startswith(WORLD) and Path(path).suffix not in SUFFIXES:
        yield refused(key, f"{path}: a data file ends in {' or '.join(SUFFIXES)}")
        return
    yield from _path(case, key, path)
    if rows.error is not None:
        yield of_error(rows.error, key=key)
    elif rows.number == 0:
        yield refused(key, f"{path}: no row has an answer")
    elif rows.number is not None:
        yield ok(key, f"{path}: {rows.number:,} rows with an answer")


def _path(case: Case, key: str, path: str) -> Iterator[Finding]:
    """Nothing is said of a path that is there."""
    if path == DRILL:
        return
    if not path.startswith(WORLD):
        if not case.machine.exists(path):
            yield case.unfit(key, f"there is no {path}")
    elif case.config.world is None:
        yield refused(key, f"{path!r} needs a [world] section")
    elif path.removeprefix(WORLD) not in WORLD_PARTS:
        yield refused(key, f"{path!r}: a world has {', '.join(WORLD_PARTS)}")
