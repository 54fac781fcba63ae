"""Wire: frames of Structs over a stream of bytes; the calling side with many calls in flight.

A frame is its length (u32, little endian) and msgpack. Frames of different calls interleave freely.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator
from typing import Protocol

from actors.messages import Answer, AnyAnswer, AnyCall, Call, Failed
from engine import codec, errors
from engine.errors import ArpoError

_LENGTH = struct.Struct("<I")
_ANSWERS: codec.Decoder[Answer] = codec.Decoder(Answer)
_CALLS: codec.Decoder[Call] = codec.Decoder(Call)


def write_frame(writer: asyncio.StreamWriter, value: Call | Answer) -> None:
    """Queue one frame; `drain` the writer where much is sent."""
    payload = codec.encode(value)
    writer.write(_LENGTH.pack(len(payload)))
    writer.write(payload)


async def read_call(reader: asyncio.StreamReader) -> Call | None:
    """The next call; None where the other side has gone."""
    frame = await _read_frame(reader)
    return None if frame is None else _CALLS.decode(frame)


async def _read_frame(reader: asyncio.StreamReader) -> bytes | None:
    try:
        header = await reader.readexactly(_LENGTH.size)
        return await reader.readexactly(_LENGTH.unpack(header)[0])
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Caller(Protocol):
    """The calling side of one actor."""

    name: str

    async def call(self, body: AnyCall, kind: type[ArpoError]) -> AnyAnswer:
        """One call with one answer. Raises the actor's own error, or `kind` where the actor is gone."""
        async with contextlib.aclosing(self.stream(body, kind)) as answers:
            async for answer in answers:
                return answer
        raise kind(f"{self.name}: no answer to {type(body).__name__}")

    def stream(self, body: AnyCall, kind: type[ArpoError]) -> AsyncGenerator[AnyAnswer, None]:
        """One call with many answers. Closing the stream early forgets the rest of them."""
        ...


class StreamCaller(Caller):
    """`Caller` over a stream of bytes. `receive` must run as a task for as long as calls are made.

    Whoever runs it says `lose` when it ends: why an actor went away is known better there.
    """

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self._reader = reader
        self._writer = writer
        self._answers: dict[int, asyncio.Queue[Answer | None]] = {}
        self._number = 0
        self._lost: str | None = None

    async def receive(self) -> None:
        """Hand out answers until the actor goes away."""
        while (frame := await _read_frame(self._reader)) is not None:
            answer = _ANSWERS.decode(frame)
            if answer.number in self._answers:
                self._answers[answer.number].put_nowait(answer)

    def lose(self, reason: str) -> None:
        """The actor is gone: fail open calls and later ones."""
        self._lost = self._lost or reason
        for answers in self._answers.values():
            answers.put_nowait(None)

    async def stream(self, body: AnyCall, kind: type[ArpoError]) -> AsyncGenerator[AnyAnswer, None]:
        """As `Caller.stream`."""
        if self._lost is not None:
            raise kind(f"{self.name} is gone: {self._lost}")
        self._number += 1
        number = self._number
        # Not bounded: what an actor may answer is bounded by the call itself (max_new_tokens chunks).
        answers = self._answers[number] = asyncio.Queue()
        try:
            write_frame(self._writer, Call(number=number, body=body))
            await self._writer.drain()
            while True:
                answer = await answers.get()
                if answer is None:
                    raise kind(f"{self.name} is gone: {self._lost}")
                if isinstance(answer.body, Failed):
                    raise error_of(answer.body, name=self.name)
                yield answer.body
                if answer.is_last:
                    return
        except ConnectionError as error:
            raise kind(f"{self.name} is gone: {error}") from error
        finally:
            del self._answers[number]


def failure_of(error: ArpoError) -> Failed:
    """An error as it crosses a process."""
    return Failed(kind=type(error).__name__, message=str(error))


def error_of(failure: Failed, *, name: str) -> ArpoError:
    """The error again, with its own type where this side knows it."""
    kind = getattr(errors, failure.kind, ArpoError)
    is_known = isinstance(kind, type) and issubclass(kind, ArpoError)
    return (kind if is_known else ArpoError)(f"{name}: {failure.message}")


__all__ = ["Caller", "StreamCaller", "error_of", "failure_of", "read_call", "write_frame"]
