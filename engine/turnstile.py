"""Turnstile: a fixed number of places, and a line before them in which the most urgent stands first.

Who comes while a place is free passes at once. Who waits is served by precedence, the smallest first, and among equals
in the order of arrival; with one precedence for all it is a semaphore that serves first come, first served. A place
that is given up goes straight to the head of the line: nobody who comes later overtakes within a turn of the loop.
"""

import asyncio
import heapq
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Precedence = tuple[float, ...]
"""Compared entry by entry, the smaller goes first; the empty one goes before all others."""
FIRST_COME: Precedence = ()


@dataclass(order=True, slots=True)
class _Waiter:
    precedence: Precedence
    arrival: int
    called: asyncio.Future[None] = field(compare=False)
    """Set when a place is this waiter's."""
    is_in_line: bool = field(default=True, compare=False)
    is_gone: bool = field(default=False, compare=False)
    """It was cancelled, and is still in the line."""


class Turnstile:
    """`async with turnstile.place(precedence):` holds one of `num_places`; waiting and leaving cost O(log n).

    A waiter that is cancelled leaves the line; one that is cancelled when its place was already given to it gives it
    on. Nobody is overtaken by one of a greater precedence, nor by one of the same that came later.

    >>> async def order() -> list[str]:
    ...     turnstile, served = Turnstile(1), list[str]()
    ...     async def pass_through(name: str, *precedence: float) -> None:
    ...         async with turnstile.place(precedence):
    ...             served.append(name)
    ...             await asyncio.sleep(0)
    ...     await asyncio.gather(pass_through("a"), pass_through("b", 0, -1.0), pass_through("c", 0, -2.0))
    ...     return served
    >>> asyncio.run(order())
    ['a', 'c', 'b']
    """

    def __init__(self, num_places: int) -> None:
        """Raises `ValueError` for fewer than one place."""
        if num_places < 1:
            raise ValueError(f"a turnstile needs at least one place, got {num_places=}")
        self.num_free = num_places
        self._line: list[_Waiter] = []
        self._num_gone = 0
        """Waiters that were cancelled and are still in the line: at most half of it."""
        self._num_arrived = 0

    @property
    def num_waiting(self) -> int:
        return len(self._line) - self._num_gone

    @asynccontextmanager
    async def place(self, precedence: Precedence = FIRST_COME) -> AsyncGenerator[None]:
        """Hold a place for the length of the block."""
        await self.enter(precedence)
        try:
            yield
        finally:
            self.leave()

    async def enter(self, precedence: Precedence = FIRST_COME) -> None:
        """Wait for a place; whoever has one gives it back by `leave`."""
        if self.num_free:
            self.num_free -= 1
            return
        called = asyncio.get_running_loop().create_future()
        self._num_arrived += 1
        waiter = _Waiter(precedence, self._num_arrived, called)
        heapq.heappush(self._line, waiter)
        try:
            await called
        except asyncio.CancelledError:
            if called.cancelled():
                self._forget(waiter)
            else:
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place to the head of the line; free it where nobody waits."""
        while self._line:
            waiter = heapq.heappop(self._line)
            waiter.is_in_line = False
            self._num_gone -= waiter.is_gone
            if not waiter.called.cancelled():
                waiter.called.set_result(None)
                return
        self.num_free += 1

    def _forget(self, waiter: _Waiter) -> None:
        """A waiter was cancelled; when most of the line is gone it is made anew, at O(1) for each that is gone."""
        if not waiter.is_in_line:
            return
        waiter.is_gone = True
        self._num_gone += 1
        if 2 * self._num_gone > len(self._line):
            self._line = [other for other in self._line if not other.is_gone]
            heapq.heapify(self._line)
            self._num_gone = 0

    def __repr__(self) -> str:
        return f"Turnstile({self.num_free} free, {self.num_waiting} waiting)"
