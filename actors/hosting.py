"""What an actor is, wherever it lives: the first call says it, and what it has become answers all others."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from actors import messages
from actors.generators import generator_of
from actors.rollout_host import RolloutAnswers
from actors.wire import Caller
from engine.errors import ArpoError, GeneratorError, GeneratorLostError, LearnerError, boundary
from engine.interfaces import Generator, ToolHost
from tools.config import build_executor

if TYPE_CHECKING:
    from learner.megatron import MegatronLearner

Send = Callable[[messages.AnyAnswer, bool], Awaitable[None]]
"""One answer, and whether it is the last one of its call."""
Answers = Callable[[messages.AnyCall, Send], Awaitable[None]]
Connect = Callable[[str], Caller]
"""The calling side of another actor, by its name."""


async def become(
    start: messages.AnyCall, stack: contextlib.AsyncExitStack, *, connect: Connect | None = None
) -> Answers:
    """Be what `start` says until `stack` is closed. Rollout actors need to `connect` to others."""
    match start:
        case messages.StartGenerator():
            with boundary(GeneratorError, "the generator did not start"):
                generator = await stack.enter_async_context(generator_of(start))
            return GeneratorAnswers(generator)
        case messages.StartLearner():
            ranks = LearnerAnswers()
            await ranks.start(start)
            return ranks
        case messages.StartTools():
            return ToolAnswers(await stack.enter_async_context(build_executor(start.config)))
        case messages.StartRollouts() if connect is not None:
            return await stack.enter_async_context(RolloutAnswers(start, connect))
        case _:
            raise ArpoError(f"an actor cannot become {type(start).__name__} here")


class ToolAnswers:
    """Calls for a `ToolHost`."""

    def __init__(self, tools: ToolHost) -> None:
        self._tools = tools

    async def __call__(self, body: messages.AnyCall, send: Send) -> None:
        if not isinstance(body, messages.CallTool):
            raise ArpoError(f"a tool worker does not know {type(body).__name__}")
        result = await self._tools.call(body.call, history=body.history, precedence=body.precedence)
        await send(messages.ToolCalled(result=result), True)


class GeneratorAnswers:
    """Calls for any `Generator`; it is asked for tokens once it has been opened."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._is_open = False

    async def __call__(self, body: messages.AnyCall, send: Send) -> None:
        match body:
            case messages.Generate() if not self._is_open:
                raise GeneratorLostError("it has not the weights of the run yet")
            case messages.Open():
                self._is_open = True
                await send(messages.Done(), True)
            case messages.Generate():
                async with contextlib.aclosing(self._generator.generate(body.request)) as chunks:
                    async for chunk in chunks:
                        await send(messages.Chunk(completion=chunk), chunk.finish_reason != "")
            case messages.Abort():
                await self._generator.abort(body.request_id)
                await send(messages.Done(), True)
            case messages.UpdateWeights():
                await self._generator.update_weights(body.ref, mode=body.mode)
                await send(messages.Done(), True)
            case messages.GetStatistics():
                await send(messages.Statistics(statistics=await self._generator.statistics()), True)
            case _:
                raise GeneratorError(f"a generator does not know {type(body).__name__}")


class LearnerAnswers:
    """Calls for one rank of the learner, in one thread, in the order in which they came."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner")
        self._learner: MegatronLearner | None = None

    async def start(self, start: messages.StartLearner) -> None:
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

    async def __call__(self, body: messages.AnyCall, send: Send) -> None:
        with boundary(LearnerError, type(body).__name__):
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._carry_out, body)
        await send(answer, True)

    def _carry_out(self, body: messages.AnyCall) -> messages.AnyAnswer:
        learner = self._learner
        assert learner is not None, "start comes first"
        match body:
            case messages.Step():
                return messages.Stepped(report=learner.step(body.batch))
            case messages.Publish():
                return messages.Published(ref=learner.publish())
            case messages.Save():
                learner.save(body.path)
                return messages.Done()
            case messages.Load():
                return messages.Loaded(version=learner.load(body.path))
            case messages.ExportHf():
                learner.export_hf(body.path)
                return messages.Done()
            case messages.Score():
                sequences = [np.frombuffer(ids, np.int32) for ids in body.token_ids]
                logprobs = learner.logprobs(sequences, temperature=body.temperature)
                return messages.Scored(logprobs=np.concatenate(logprobs))
            case _:
                raise LearnerError(f"a learner does not know {type(body).__name__}")
