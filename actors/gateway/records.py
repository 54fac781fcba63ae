"""Records: the events of each tree of traffic in a file of its own, so that one can be deleted, or grow old, alone.

TENANT/trees/TREE.log             events, in the form of the journal
TENANT/conversations/NAME         the trees a conversation took part in, one a line

A name of a conversation is what a client may choose, a name of a tree is not; both are one component of a path.
"""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from engine.events import AnyTreeEvent
from engine.journal import unnumbered

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""What a conversation may be called."""


class Records:
    """The folder of all tenants; `None` keeps nothing. Writes are small and whole turns at a time."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def append(self, tenant: str, tree: str, events: Sequence[AnyTreeEvent]) -> None:
        """Add events to the file of a tree, which is not kept open: there may be more trees than file handles."""
        if self._folder is None or not events:
            return
        path = self._folder / tenant / "trees" / f"{tree}.log"
        with _appending(path) as file:
            file.write(unnumbered(events))

    def name(self, tenant: str, conversation: str, tree: str) -> None:
        """Remember that a conversation takes part in a tree."""
        if self._folder is None:
            return
        path = self._folder / tenant / "conversations" / conversation
        with _appending(path) as file:
            file.write(f"{tree}\n".encode())

    def delete(self, tenant: str, conversation: str) -> list[str]:
        """Remove what is known of a conversation; returns the trees that were removed with it."""
        if self._folder is None or not NAME.fullmatch(conversation):
            return []
        path = self._folder / tenant / "conversations" / conversation
        if not path.is_file():
            return []
        trees = path.read_text(encoding="utf-8").split()
        for tree in trees:
            (self._folder / tenant / "trees" / f"{tree}.log").unlink(missing_ok=True)
        path.unlink()
        return trees

    def expire(self, *, retention_s: float) -> int:
        """Remove what nobody has written to for so long; returns how many trees that were."""
        if self._folder is None:
            return 0
        oldest = time.time() - retention_s
        old = [path for path in self._folder.glob("*/*/*") if path.is_file() and path.stat().st_mtime < oldest]
        for path in old:
            path.unlink(missing_ok=True)
        return sum(path.parent.name == "trees" for path in old)


def _appending(path: Path) -> BinaryIO:
    """The file at its end, in a folder that is made where it is missing: nearly always it is there."""
    try:
        return path.open("ab")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
