"""An actor's process on Ray, and its calling side.

Every frame is the msgpack that processes speak, so what crosses a node is decoded by its type. Large ones are arrays of
bytes: they lie in the object store and are read there without a copy.

    controller ──RayCaller──> HostActor ──answer(body, send)──> generator | rank | rollouts | tools
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from actors.hosting import Answers, become
from actors.messages import Answer, AnyAnswer, AnyCall, AnyStart, Call, Done, Failed
from actors.wire import Caller, error_of, failure_of
from engine import codec
from engine.errors import ActorLostError, ArpoError, boundary

NAMESPACE = "arpo"
LARGE = 2**18
"""Bytes from which a frame is an array in the object store."""
NOT_STARTED = "NotStarted"
"""Kind of a failure that is no error of the tree."""
_CALLS: codec.Decoder[Call] = codec.Decoder(Call)
_ANSWERS: codec.Decoder[Answer] = codec.Decoder(Answer)


class HostActor:
    """One actor's process: what `actors.host` is on one machine."""

    def __init__(self, cwd: str | None) -> None:
        """`cwd` is the controller's, which relative paths begin at; a job's actors have a working directory already."""
        if cwd is not None:
            os.chdir(cwd)
        self._stack = AsyncExitStack()
        self._answers: Answers | None = None

    async def answer(self, frame: Any) -> AsyncGenerator[Any, None]:
        """Answer one call; the first one says what to be."""
        body = _CALLS.decode(_bytes_of(frame)).body
        if self._answers is None:
            if not isinstance(body, AnyStart):
                # Found by its name before whoever started it has said what to be.
                yield _frame(Answer(number=0, body=Failed(kind=NOT_STARTED, message="it is being started")))
                return
            try:
                self._answers = await become(body, self._stack, connect=RayCaller)
            except ArpoError as error:
                yield _frame(Answer(number=0, body=failure_of(error)))
                return
            yield _frame(Answer(number=0, body=Done()))
            return
        answers: asyncio.Queue[Answer] = asyncio.Queue()

        async def send(answer: AnyAnswer, is_last: bool) -> None:
            answers.put_nowait(Answer(number=0, body=answer, is_last=is_last))

        working = asyncio.create_task(self._work(self._answers, body, send), name=type(body).__name__)
        try:
            is_last = False
            while not is_last:
                answer = await answers.get()
                is_last = answer.is_last
                yield _frame(answer)
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working

    async def _work(self, answers: Answers, body: AnyCall, send: Any) -> None:
        try:
            with boundary(ActorLostError, type(body).__name__):
                await answers(body, send)
        except ArpoError as error:
            await send(failure_of(error), True)


class GeneratorActor(HostActor):
    """Roles have names of their own, for whoever looks at a dashboard or a list of processes."""


class LearnerActor(HostActor):
    """A rank of a learner."""


class RolloutActor(HostActor):
    """Grows trees."""


class ToolsActor(HostActor):
    """Runs tools."""


class RayCaller(Caller):
    """`Caller` of a named actor; found again by its name where it was started anew."""

    def __init__(self, name: str, handle: Any = None) -> None:
        self.name = name
        self._handle = handle

    async def stream(self, body: AnyCall, kind: type[ArpoError]) -> AsyncGenerator[AnyAnswer, None]:
        """As `Caller.stream`."""
        with self._losing(kind):
            if self._handle is None:
                self._handle = await self._found(kind)
            frame = _frame(Call(number=0, body=body))
            async for reference in self._handle.answer.options(num_returns="streaming").remote(frame):
                answer = _ANSWERS.decode(_bytes_of(await reference))
                if isinstance(answer.body, Failed) and answer.body.kind == NOT_STARTED:
                    raise kind(f"{self.name}: {answer.body.message}")
                if isinstance(answer.body, Failed):
                    raise error_of(answer.body, name=self.name)
                yield answer.body
                if answer.is_last:
                    return

    async def _found(self, kind: type[ArpoError]) -> Any:
        try:
            return await asyncio.to_thread(ray.get_actor, self.name, NAMESPACE)
        except ValueError:
            raise kind(f"{self.name}: there is no such actor now") from None

    @contextlib.contextmanager
    def _losing(self, kind: type[ArpoError]) -> Generator[None, None, None]:
        try:
            yield
        except RayError as error:
            self._handle = None
            raise kind(f"{self.name} is gone: {' '.join(str(error).split())[:300]}") from error


def _frame(value: Call | Answer) -> Any:
    payload = codec.encode(value)
    return np.frombuffer(payload, np.uint8) if len(payload) >= LARGE else payload


def _bytes_of(frame: Any) -> bytes | memoryview:
    return frame if isinstance(frame, bytes) else memoryview(frame)
