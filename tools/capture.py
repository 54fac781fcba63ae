"""Capture: what a process writes into a pipe, read to the end and kept in part."""

import asyncio
import contextlib
import os
from typing import IO


class Capture(asyncio.Protocol):
    """One pipe: always read, so the writer never blocks, but only `max_bytes` are kept."""

    def __init__(self, *, max_bytes: int, keep_tail: bool, flood: "Flood") -> None:
        self.num_dropped = 0
        self.ended = asyncio.Event()
        self._kept = bytearray()
        self._max_bytes = max_bytes
        self._keep_tail = keep_tail
        self._flood = flood

    @property
    def text(self) -> str:
        return self._kept.decode("utf-8", "replace").strip()

    def data_received(self, data: bytes) -> None:
        self._flood.rise(len(data))
        self._kept += data
        surplus = len(self._kept) - self._max_bytes
        if surplus > 0:
            self.num_dropped += surplus
            if self._keep_tail:
                del self._kept[:surplus]
            else:
                del self._kept[self._max_bytes :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


class Flood:
    """Bytes that a program has written in all; `reached` is done when they are more than anyone will read."""

    def __init__(self, *, max_bytes: int) -> None:
        self.reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room = max_bytes

    def rise(self, num_bytes: int) -> None:
        self._room -= num_bytes
        if self._room < 0 and not self.reached.done():
            self.reached.set_result(None)


async def open_capture(
    pipes: contextlib.AsyncExitStack, *, max_bytes: int, keep_tail: bool, flood: Flood
) -> tuple[Capture, IO[bytes]]:
    """A pipe: what is written into the file arrives in the capture. Both ends close with `pipes`, if not before."""
    read_fd, write_fd = os.pipe()
    reading = pipes.enter_context(os.fdopen(read_fd, "rb", buffering=0))
    writing = pipes.enter_context(os.fdopen(write_fd, "wb", buffering=0))
    transport, capture = await asyncio.get_running_loop().connect_read_pipe(
        lambda: Capture(max_bytes=max_bytes, keep_tail=keep_tail, flood=flood), reading
    )
    pipes.callback(transport.close)
    return capture, writing
