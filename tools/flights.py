"""Flights: equal calls that overlap cause one execution; the first one leads, the others wait for what it brings.

| who      | waits for            | unblocked by                                                         |
|----------|----------------------|----------------------------------------------------------------------|
| leader   | its own work         | the deadline of that work                                            |
| follower | the leader's result  | the result, or the leader's end without one: then a follower leads   |

No task is started: a cancelled leader ends its own work, which is charged to it, and a follower does it again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.landed = asyncio.Event()
        self.result: T | None = None


class Flights(Generic[T]):
    """Work under way, by key. Results are never None."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[T]] = {}

    async def join(self, key: bytes, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result of `work`, and whether somebody else's under the same key brought it."""
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.result is not None:
                return flight.result, True
        flight = self._flights[key] = _Flight[T]()
        try:
            flight.result = await work()
            return flight.result, False
        finally:
            del self._flights[key]
            flight.landed.set()
