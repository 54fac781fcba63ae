"""The inside of an actor's process: answers calls for one generator or one rank of the learner.

Started as `python -m actors.host FD`, with one end of a socket pair as its only connection. It ends when the other end
closes, so no actor outlives the process that started it. The first call says what to be.

| loop    | consumes   | waits for              | produces | unblocked by                               |
|---------|------------|------------------------|----------|--------------------------------------------|
| serve   | calls      | the next frame         | tasks    | the parent, or its end                     |
| answer  | one call   | the generator or rank  | answers  | the work itself; the parent's end kills it |
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from actors.messages import (
    Abort,
    Answer,
    AnyAnswer,
    AnyCall,
    Call,
    Chunk,
    Done,
    ExportHf,
    Generate,
    GetStatistics,
    Load,
    Loaded,
    Publish,
    Published,
    Save,
    Score,
    Scored,
    StartGenerator,
    StartLearner,
    Statistics,
    Step,
    Stepped,
    UpdateWeights,
)
from actors.wire import failure_of, read_call, write_frame
from engine.errors import ArpoError, GeneratorError, LearnerError, boundary
from engine.interfaces import Generator

if TYPE_CHECKING:
    from learner.megatron import MegatronLearner

logger = logging.getLogger(__name__)

Send = Callable[[AnyAnswer, bool], Awaitable[None]]


class Host:
    """One actor's process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def serve(self) -> None:
        """Answer the first call by becoming what it says, and then all others, until the parent closes."""
        start = await read_call(self._reader)
        if start is None:
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                answer = await self._become(start.body, stack)
            except ArpoError as error:
                write_frame(self._writer, Answer(number=start.number, body=failure_of(error)))
                await self._writer.drain()
                return
            write_frame(self._writer, Answer(number=start.number, body=Done()))
            async with asyncio.TaskGroup() as answers:
                while (call := await read_call(self._reader)) is not None:
                    answers.create_task(self._answer(call, answer), name=f"call {call.number}")
                # The parent has gone: nobody reads what is still being computed, and a step may take minutes.
                logging.shutdown()
                os._exit(0)

    async def _answer(self, call: Call, answer: "Callable[[AnyCall, Send], Awaitable[None]]") -> None:
        async def send(body: AnyAnswer, is_last: bool) -> None:
            write_frame(self._writer, Answer(number=call.number, body=body, is_last=is_last))
            await self._writer.drain()

        try:
            await answer(call.body, send)
        except ArpoError as error:
            await send(failure_of(error), True)
        except ConnectionError:
            logger.info("call %d: the parent has gone", call.number)

    async def _become(
        self, body: AnyCall, stack: contextlib.AsyncExitStack
    ) -> "Callable[[AnyCall, Send], Awaitable[None]]":
        match body:
            case StartGenerator():
                from engine.inference.embedded import EmbeddedGenerator
                from engine.tokenizer import load_tokenizer

                generator = EmbeddedGenerator(
                    body.config, model_path=body.model_path, tokenizer=load_tokenizer(body.model_path)
                )
                with boundary(GeneratorError, "the generator did not start"):
                    await stack.enter_async_context(generator)
                return GeneratorAnswers(generator)
            case StartLearner():
                ranks = LearnerAnswers()
                await ranks.start(body)
                return ranks
            case _:
                raise ArpoError(f"{type(body).__name__} before the actor was started")


class GeneratorAnswers:
    """Calls for any `Generator`."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    async def __call__(self, body: AnyCall, send: Send) -> None:
        match body:
            case Generate():
                async with contextlib.aclosing(self._generator.generate(body.request)) as chunks:
                    async for chunk in chunks:
                        await send(Chunk(completion=chunk), chunk.finish_reason != "")
            case Abort():
                await self._generator.abort(body.request_id)
                await send(Done(), True)
            case UpdateWeights():
                await self._generator.update_weights(body.ref, mode=body.mode)
                await send(Done(), True)
            case GetStatistics():
                await send(Statistics(statistics=await self._generator.statistics()), True)
            case _:
                raise GeneratorError(f"a generator does not know {type(body).__name__}")


class LearnerAnswers:
    """Calls for one rank of the learner, in one thread, in the order in which they came."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner")
        self._learner: MegatronLearner | None = None

    async def start(self, start: StartLearner) -> None:
        """Load the model and join the other ranks."""

        def make() -> "MegatronLearner":
            from learner.megatron import MegatronLearner

            return MegatronLearner(
                start.config,
                model_path=start.model_path,
                weights_dir=start.weights_dir,
                rank=start.rank,
                world_size=start.world_size,
                init_method=start.init_method,
            )

        with boundary(LearnerError, f"rank {start.rank} did not start"):
            self._learner = await asyncio.get_running_loop().run_in_executor(self._thread, make)

    async def __call__(self, body: AnyCall, send: Send) -> None:
        with boundary(LearnerError, type(body).__name__):
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._carry_out, body)
        await send(answer, True)

    def _carry_out(self, body: AnyCall) -> AnyAnswer:
        learner = self._learner
        assert learner is not None, "start comes first"
        match body:
            case Step():
                return Stepped(report=learner.step(body.batch))
            case Publish():
                return Published(ref=learner.publish())
            case Save():
                learner.save(body.path)
                return Done()
            case Load():
                return Loaded(version=learner.load(body.path))
            case ExportHf():
                learner.export_hf(body.path)
                return Done()
            case Score():
                sequences = [np.frombuffer(ids, np.int32) for ids in body.token_ids]
                return Scored(logprobs=np.concatenate(learner.logprobs(sequences, temperature=body.temperature)))
            case _:
                raise LearnerError(f"a learner does not know {type(body).__name__}")


async def _main(descriptor: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    await Host(reader, writer).serve()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(_main(int(sys.argv[1])))
