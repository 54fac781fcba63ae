"""Flights: the requests of one client, from its gate to their ends.

A request is one stream to its caller and may be several requests to the server, one after the other: its *parts*. A
part ends where it is meant to, or where it is cut short, so that its rest goes on as another one. The gate keeps new
requests while weights are updated; what is on its way already goes on to its next part while it is drained, and not
while it is shut.
"""

import asyncio
from collections.abc import Callable
from typing import Literal
from uuid import uuid4

from engine.errors import GeneratorError
from engine.types import Version

Gate = Literal["open", "draining", "shut"]


class Flight:
    """One request of ours."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.name = ""
        """The server's name of the part that it was sent last."""
        self.is_running = False
        """Past the gate."""
        self.is_heard = False
        """The server has said something of this part, so it knows the part's name."""
        self.is_aborted = False
        self.is_cut = False
        """The part that was sent last is being ended, and is not the last one."""
        self.has_more = False
        """A later part is not at the server yet."""
        self.version: Version = 0
        """The latest that the server has named to it."""


class Flights:
    """All requests that are under way; waiting ends with a change of the gate, an abort, or an end."""

    def __init__(self) -> None:
        self._all: dict[str, Flight] = {}
        self._gate: Gate = "open"
        self._changed = asyncio.Event()
        # SGLang aborts every name once more 2 s after its stream, so no client may use those of another one.
        self._client = uuid4().hex[:12]
        self._num_parts = 0
        self.num_running = 0
        """Past the gate."""
        self._busy_s = 0.0
        self._busy_since = 0.0

    @property
    def num_waiting(self) -> int:
        return len(self._all) - self.num_running

    @property
    def busy_s(self) -> float:
        """Seconds in which a request was past the gate."""
        return self._busy_s + (_now() - self._busy_since if self.num_running else 0.0)

    # -- one request ------------------------------------------------------------------------------------------------

    def begin(self, request_id: str) -> Flight:
        """Raises `GeneratorError` where a request of this id has not ended yet."""
        if request_id in self._all:
            raise GeneratorError(f"request {request_id}: a request of this id is in flight")
        flight = self._all[request_id] = Flight(request_id)
        return flight

    async def enter(self, flight: Flight) -> None:
        """Pass the gate, or learn that the request was aborted before it."""
        await self._until(lambda: self._gate == "open" or flight.is_aborted)
        if not flight.is_aborted:
            if not self.num_running:
                self._busy_since = _now()
            flight.is_running = True
            self.num_running += 1

    async def go_on(self, flight: Flight) -> None:
        """Wait until the next part may be sent, or the request is aborted."""
        await self._until(lambda: self._gate != "shut" or flight.is_aborted)

    def send(self, flight: Flight, *, has_more: bool) -> None:
        """A part is on its way to the server, under a name of its own."""
        self._num_parts += 1
        # SGLang aborts whatever begins with a name, so no name may begin another one.
        flight.name = f"{self._client};{self._num_parts};{flight.request_id};"
        flight.is_heard = flight.is_cut = False
        flight.has_more |= has_more

    def cut(self, flight: Flight) -> None:
        """The part that is at the server is ended early; its rest is still to be sent."""
        flight.is_cut = flight.has_more = True

    def hear(self, flight: Flight, *, has_more: bool) -> bool:
        """The server said something of a part; True where it may have missed that the request is aborted."""
        is_first, flight.is_heard = not flight.is_heard, True
        is_last = flight.has_more and not (has_more or flight.is_cut)
        if is_last:
            flight.has_more = False
        if is_first or is_last:
            self._change()
        return is_first and flight.is_aborted

    def abort(self, request_id: str) -> str:
        """Mark a request; returns the name by which the server may know it, empty where it knows none."""
        flight = self._all.get(request_id)
        if flight is None:
            return ""
        flight.is_aborted = True
        self._change()
        return flight.name

    def end(self, flight: Flight) -> None:
        del self._all[flight.request_id]
        if flight.is_running:
            self.num_running -= 1
            if not self.num_running:
                self._busy_s += _now() - self._busy_since
        self._change()

    # -- all of them ------------------------------------------------------------------------------------------------

    def turn(self, gate: Gate) -> None:
        """Open or close the gate."""
        self._gate = gate
        self._change()

    async def until_whole(self) -> None:
        """Wait until the server has the last part of every request, and has begun with it; new ones must be kept at the
        gate. One that is on its way could arrive behind what is sent next."""

        def is_whole(flight: Flight) -> bool:
            return not flight.has_more and (flight.is_heard or not flight.is_running)

        await self._until(lambda: all(map(is_whole, self._all.values())))

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _now() -> float:
    return asyncio.get_running_loop().time()
