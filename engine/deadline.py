"""Deadlines: what waits too long says what it waited for."""

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Self, TypeVar

from engine.errors import StalledError

T = TypeVar("T")


async def within(seconds: float, work: Awaitable[T], *, name: str) -> T:
    """The result of `work`. Raises `StalledError` with the name where it takes longer; `work` is then cancelled."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise StalledError(f"{name} took more than {seconds:g} s") from None


class Patience:
    """One deadline for many waits in a row: `renew` begins the next one, and costs next to nothing.

    Raises `TimeoutError` around its block, as `asyncio.timeout` does, `seconds` behind the last `renew`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self.renew()
        self._set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._timer.cancel()
        return await self._timeout.__aexit__(kind, error, traceback)

    def renew(self) -> None:
        """What was waited for has come."""
        self._until = self._loop.time() + self._seconds

    def _set(self) -> None:
        self._looks_at = self._until
        self._timer = self._loop.call_at(self._looks_at, self._look)

    def _look(self) -> None:
        # The timer of an earlier wait stays until it fires: most of them are over long before.
        if self._until > self._looks_at:
            self._set()
        else:
            self._timeout.reschedule(self._until)
