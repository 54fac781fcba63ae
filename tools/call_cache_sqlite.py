"""Results in a file that runs share: SQLite, in one thread of its own, bounded by what was used last.

A cache is never worth a failed call: a file that is locked for too long, full or torn while it is used answers as if
it knew nothing, with one warning. Only opening it raises.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from engine.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BUSY_S = 2.0
"""How long one process waits for another one's write."""
_KEEP_SHARE = 0.9
"""Of the bound, behind an eviction: so that not every write evicts."""
_WRITES_A_COUNT = 256
"""Every so many writes the size is counted anew: other processes write too."""
_NEXT = "(SELECT coalesce(max(used), 0) + 1 FROM results)"
"""A clock that ticks with every use, for all processes."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, text TEXT NOT NULL, size INTEGER NOT NULL,
                                    used INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS results_used ON results (used, size);
"""


class SqliteCache:
    """`CallCache` in a file; several processes may use it at once."""

    def __init__(self, path: str | Path, *, max_bytes: int) -> None:
        """Raises `ConfigError`, one line, where the file cannot be opened or is something else."""
        self._path = path
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._num_writes = 0
        self._has_warned = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="call-cache")
        try:
            self._thread.submit(self._open).result()
        except sqlite3.Error as error:
            self._thread.shutdown()
            raise ConfigError(f"cache {path}: {error}") from None

    async def get(self, key: bytes) -> str | None:
        return await self._run(lambda: self._get(key), otherwise=None)

    async def put(self, key: bytes, text: str) -> None:
        await self._run(lambda: self._put(key, text), otherwise=None)

    async def aclose(self) -> None:
        """Close the file, behind what is still being written."""
        await self._run(lambda: self._connection.close(), otherwise=None)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T], *, otherwise: T) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            if not self._has_warned:
                logger.warning("cache %s: %s; calls are executed as if nothing were cached", self._path, error)
            self._has_warned = True
            return otherwise

    # -- in the thread ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            # A lost write costs one execution: not worth waiting for the disk.
            self._connection.execute("PRAGMA synchronous=OFF")
            self._connection.executescript(_SCHEMA)
            self._count()
        except sqlite3.Error:
            self._connection.close()
            raise

    def _get(self, key: bytes) -> str | None:
        row = self._connection.execute("SELECT text FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        self._connection.execute(f"UPDATE results SET used = {_NEXT} WHERE key = ?", (key,))
        return str(row[0])

    def _put(self, key: bytes, text: str) -> None:
        # A lone surrogate has no UTF-8 form, which SQLite asks for.
        text = text.encode("utf-8", "replace").decode()
        size = len(text.encode())
        if size > self._max_bytes:
            return
        self._connection.execute(f"INSERT OR REPLACE INTO results VALUES (?, ?, ?, {_NEXT})", (key, text, size))
        self._num_bytes += size
        self._num_writes += 1
        if self._num_bytes > self._max_bytes or self._num_writes % _WRITES_A_COUNT == 0:
            self._count()
            self._evict()

    def _count(self) -> None:
        (self._num_bytes,) = self._connection.execute("SELECT coalesce(sum(size), 0) FROM results").fetchone()

    def _evict(self) -> None:
        if self._num_bytes <= self._max_bytes:
            return
        surplus = self._num_bytes - int(self._max_bytes * _KEEP_SHARE)
        # The running sum over the oldest: everything whose predecessors do not yet free enough.
        self._connection.execute(
            "DELETE FROM results WHERE key IN (SELECT key FROM (SELECT key, size, sum(size) OVER "
            "(ORDER BY used, key) AS freed FROM results) WHERE freed - size < ?)",
            (surplus,),
        )
        self._count()
