"""`arpo trace RUN`: the page of a run as one static file, and the run as a Perfetto trace."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from actors.report.partial import whole_trees
from actors.run_dir import RunDir, write_whole
from actors.view.page import static_page
from actors.view.perfetto import write_perfetto
from actors.view.run_view import RunView
from actors.view.tree_rows import TreeRow
from engine import journal
from engine.errors import DataError

TRACE = "trace.html"
MAX_TREE_BYTES = 32 * 2**20
"""Of the documents of all trees in one file; a browser reads that in a second or two."""


def write_trace(run: RunDir, *, target: Path | None = None, max_trees: int = 200) -> Path:
    """Write the page of a run, finished or not, into its folder or to `target`; whole or not at all.

    The texts of at most `max_trees` trees are in it, and of at most `MAX_TREE_BYTES`, and the page says of how many.
    Raises `DataError` for a folder without a journal, `JournalError` for a damaged one.
    """
    _check(run)
    view = RunView(run)
    view.refresh_all()
    trees: dict[str, Any] = {}
    room = MAX_TREE_BYTES
    for row in choose(view.fold.rows, limit=max_trees):
        document = view.document(row.id)
        assert document is not None, "a row has events"
        encoded = msgspec.json.encode(document)
        if len(encoded) <= room:
            room -= len(encoded)
            trees[row.id] = msgspec.Raw(encoded)
    state = view.changes() | {"settings": view.settings(), "texts_note": view.texts.note, "documents": list(trees)}
    target = run.path / TRACE if target is None else target
    write_whole(target, static_page(title=run.path.name, state=state, trees=trees).encode())
    return target


def write_run_perfetto(run: RunDir, target: Path) -> int:
    """Write the Perfetto trace of a run; returns how many events it has."""
    _check(run)
    events = journal.read(run.journal)
    whole = events if journal.is_whole(run.journal) else whole_trees(events)
    return write_perfetto(target, whole, name=run.path.name)


def choose(rows: Sequence[TreeRow], *, limit: int) -> list[TreeRow]:
    """Which trees are shown with their texts: of each step as many, those first from which most is learned.

    In turn one of each step, of what still grows, and of what was refused; within those by mixed outcomes, then by
    forks. So of 3 steps with 12 trees and a limit of 7, two or three of each.
    """
    parts: dict[int, list[TreeRow]] = {}
    for row in rows:
        parts.setdefault(-1 if row.step is None else row.step, []).append(row)
    ranked = [sorted(parts[step], key=_dullness) for step in sorted(parts)]
    turns = [row for turn in zip_longest(*ranked) for row in turn if row is not None]
    return turns[:limit]


def _dullness(row: TreeRow) -> tuple[bool, int]:
    return row.score_min == row.score_max, -row.forks


def _check(run: RunDir) -> None:
    if not any(run.journal.glob("*.log")) and not any((run.journal / journal.ARCHIVE).glob("*.log")):
        raise DataError(f"{run.path}: no run there (no journal)")
