"""Watchdog: where nothing happens for too long, says who waits for what and since when; then helps, then ends it.

| loop  | consumes | waits for              | produces         | unblocked by     |
|-------|----------|------------------------|------------------|------------------|
| watch | progress | a share of the patience| dumps, an error  | its own timer    |

Every wait of the loops has a deadline or a named unblocker, so this is for the one that was forgotten. What is told of
a task is the chain of what it awaits, innermost last, and how long that has not changed.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from pathlib import PurePath
from typing import Any

from engine.errors import StalledError

logger = logging.getLogger(__name__)

LOOKS = 8
"""A look at the tasks for each of so many parts of the patience: how exactly it is known since when."""
SHOWN = 20
"""Names of tasks that wait at the same place; the others are counted."""


class Watchdog:
    """`progress` whenever something happens; `watch` runs beside the loops and raises `StalledError` in the end."""

    def __init__(
        self,
        *,
        patience_s: float,
        limit_s: float,
        dump: Callable[[str], object],
        rescue: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """After `patience_s` without progress `dump` gets the text, and `rescue` is called; after `limit_s`, longer
        than any deadline, the watch ends with an error."""
        self._patience_s = patience_s
        self._limit_s = limit_s
        self._dump = dump
        self._rescue = rescue
        self._num_progress = 0
        self._since: dict[asyncio.Task[Any], tuple[str, float]] = {}

    def progress(self) -> None:
        """Something happened."""
        self._num_progress += 1

    async def watch(self) -> None:
        """Look for ever."""
        loop = asyncio.get_running_loop()
        seen, quiet_since, told_at = -1, loop.time(), 0.0
        while True:
            now = loop.time()
            if self._num_progress != seen:
                seen, quiet_since, told_at = self._num_progress, now, 0.0
                self._since.clear()
            self._look(now)
            quiet_s = now - quiet_since
            if quiet_s >= self._limit_s:
                self._dump(self.describe(quiet_s))
                raise StalledError(f"nothing has happened for {quiet_s:.0f} s: {self._first()}")
            if quiet_s >= self._patience_s and not told_at:
                told_at = now
                text = self.describe(quiet_s)
                logger.warning("%s", text)
                self._dump(text)
                if self._rescue is not None:
                    await self._rescue()
            await asyncio.sleep(self._patience_s / LOOKS)

    def describe(self, quiet_s: float) -> str:
        """Who waits for what and since when, those that have waited longest first."""
        now = asyncio.get_running_loop().time()
        by_place: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for task, (place, since) in self._since.items():
            by_place[place].append((now - since, task.get_name()))
        lines = [f"nothing has happened for {quiet_s:.0f} s; who waits for what:"]
        for place, waiting in sorted(by_place.items(), key=lambda item: -max(item[1])[0]):
            names = ", ".join(name for _, name in sorted(waiting, reverse=True)[:SHOWN])
            more = f" and {len(waiting) - SHOWN} more" if len(waiting) > SHOWN else ""
            lines.append(f"  {names}{more}: for {max(waiting)[0]:.0f} s in {place}")
        return "\n".join(lines)

    def _look(self, now: float) -> None:
        me = asyncio.current_task()
        found: dict[asyncio.Task[Any], tuple[str, float]] = {}
        for task in asyncio.all_tasks():
            if task is not me:
                place = " > ".join(chain(task.get_coro())) or "its first step"
                known = self._since.get(task)
                found[task] = known if known is not None and known[0] == place else (place, now)
        self._since = found

    def _first(self) -> str:
        waiting = sorted((since, task.get_name(), place) for task, (place, since) in self._since.items())
        return f"{waiting[0][1]} waits in {waiting[0][2]}" if waiting else "no task is left"


def chain(awaited: Any) -> Iterable[str]:
    """What a suspended coroutine awaits, and what that does, as `function (file:line)`."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            yield f"{frame.f_code.co_qualname} ({PurePath(frame.f_code.co_filename).name}:{frame.f_lineno})"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
