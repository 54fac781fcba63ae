"""What went to each server and what came back, in one order: the raw material of `prefix_account`."""

import contextlib
from collections.abc import AsyncGenerator
from typing import NamedTuple

from engine.interfaces import Generator
from engine.reports import GeneratorStatistics
from engine.types import Completion, GenerateRequest, UpdateMode, Version, WeightRef


class Sent(NamedTuple):
    """A request left for a server."""

    number: int
    """Its place among all requests, from 0."""
    server: str
    request: GenerateRequest


class Received(NamedTuple):
    """A chunk of a request arrived."""

    number: int
    chunk: Completion


class Updating(NamedTuple):
    """A weight update of a server begins, or is over."""

    server: str
    version: Version
    is_over: bool


Happening = Sent | Received | Updating


class Log:
    """Happenings of several servers, in the order in which this process saw them."""

    def __init__(self) -> None:
        self.happenings: list[Happening] = []
        self.num_sent = 0

    def send(self, server: str, request: GenerateRequest) -> int:
        """Note a request; returns its number."""
        self.happenings.append(Sent(self.num_sent, server, request))
        self.num_sent += 1
        return self.num_sent - 1

    def receive(self, number: int, chunk: Completion) -> None:
        self.happenings.append(Received(number, chunk))

    def update(self, server: str, version: Version, *, is_over: bool) -> None:
        self.happenings.append(Updating(server, version, is_over))


class RecordingGenerator:
    """`engine.interfaces.Generator` around another one, between it and the router: notes what passes by."""

    def __init__(self, generator: Generator, *, name: str, log: Log) -> None:
        self.name = name
        self._generator = generator
        self._log = log

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        number = self._log.send(self.name, request)
        async with contextlib.aclosing(self._generator.generate(request)) as chunks:
            async for chunk in chunks:
                self._log.receive(number, chunk)
                yield chunk

    async def abort(self, request_id: str) -> None:
        await self._generator.abort(request_id)

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        self._log.update(self.name, ref.version, is_over=False)
        await self._generator.update_weights(ref, mode=mode)
        self._log.update(self.name, ref.version, is_over=True)

    async def statistics(self) -> GeneratorStatistics:
        return await self._generator.statistics()
