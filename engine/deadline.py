"""A deadline with a name: what waits too long says what it waited for."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from engine.errors import StalledError

T = TypeVar("T")


async def within(seconds: float, work: Awaitable[T], *, name: str) -> T:
    """The result of `work`. Raises `StalledError` with the name where it takes longer; `work` is then cancelled."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise StalledError(f"{name} took more than {seconds:g} s") from None
