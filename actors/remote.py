"""The engine's seams, spoken over a wire: a generator, and a learner of one or many ranks, in other processes."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from actors import messages
from actors.wire import Caller
from engine.errors import ActorLostError, GeneratorError, GeneratorLostError, LearnerError
from engine.reports import GeneratorStatistics, StepReport
from engine.turnstile import FIRST_COME, Precedence
from engine.types import (
    Batch,
    Completion,
    Float32,
    GenerateRequest,
    Int32,
    ToolCall,
    ToolResult,
    ToolSpec,
    UpdateMode,
    Version,
    WeightRef,
)

ABORT_S = 5.0
"""How long a generator may take to hear that nobody reads a request any more."""


class RemoteGenerator:
    """`interfaces.Generator` in another process; a dead process is a `GeneratorLostError`."""

    def __init__(self, caller: Caller, *, abort_s: float = ABORT_S) -> None:
        self._caller = caller
        self._abort_s = abort_s

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        is_ended = False
        try:
            async with contextlib.aclosing(
                self._caller.stream(messages.Generate(request=request), GeneratorLostError)
            ) as answers:
                async for answer in answers:
                    assert isinstance(answer, messages.Chunk)
                    is_ended = answer.completion.finish_reason != ""
                    yield answer.completion
        except GeneratorError:
            is_ended = True
            raise
        finally:
            if not is_ended:
                # Shielded: a cancelled path must still free the server's slot. One that is silent is not waited for.
                with contextlib.suppress(GeneratorError, TimeoutError):
                    async with asyncio.timeout(self._abort_s):
                        await asyncio.shield(self.abort(request.request_id))

    async def abort(self, request_id: str) -> None:
        await self._caller.call(messages.Abort(request_id=request_id), GeneratorLostError)

    async def open(self) -> None:
        """Let others than the supervisor ask it."""
        await self._caller.call(messages.Open(), GeneratorLostError)

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        await self._caller.call(messages.UpdateWeights(ref=ref, mode=mode), GeneratorLostError)

    async def statistics(self) -> GeneratorStatistics:
        answer = await self._caller.call(messages.GetStatistics(), GeneratorLostError)
        assert isinstance(answer, messages.Statistics)
        return answer.statistics


class RemoteTools:
    """`interfaces.ToolHost` on tool workers; a call goes to the one with the fewest."""

    def __init__(self, workers: Sequence[Caller], *, specs: Sequence[ToolSpec]) -> None:
        self._workers = workers
        self._num_calls = [0] * len(workers)
        self.specs = specs

    async def call(
        self, call: ToolCall, *, history: Sequence[ToolCall] = (), precedence: Precedence = FIRST_COME
    ) -> ToolResult:
        """As `ToolHost.call`. A worker that is lost is a failed call: nobody knows whether the tool had run."""
        number = min(range(len(self._workers)), key=lambda n: (self._num_calls[n], n))
        self._num_calls[number] += 1
        try:
            body = messages.CallTool(call=call, history=tuple(history), precedence=precedence)
            answer = await self._workers[number].call(body, ActorLostError)
            assert isinstance(answer, messages.ToolCalled)
            return answer.result
        except ActorLostError as error:
            return ToolResult(name=call.name, text=f"the tool worker was lost: {error}", status="error")
        finally:
            self._num_calls[number] -= 1


class RemoteTrainer:
    """`interfaces.Trainer` over all ranks: every call goes to each of them, and rank 0 speaks for all."""

    def __init__(self, ranks: Sequence[Caller]) -> None:
        self._ranks = ranks

    async def step(self, batch: Batch) -> StepReport:
        answer = await self._call(messages.Step(batch=batch))
        assert isinstance(answer, messages.Stepped)
        return answer.report

    async def publish(self) -> WeightRef:
        answer = await self._call(messages.Publish())
        assert isinstance(answer, messages.Published)
        return answer.ref

    async def save(self, path: str) -> None:
        await self._call(messages.Save(path=path))

    async def load(self, path: str) -> Version:
        answer = await self._call(messages.Load(path=path))
        assert isinstance(answer, messages.Loaded)
        return answer.version

    async def export_hf(self, path: str) -> None:
        """Write the present weights as a Hugging Face folder, tokenizer included."""
        await self._call(messages.ExportHf(path=path))

    async def logprobs(self, sequences: Sequence[Int32], *, temperature: float = 1.0) -> list[Float32]:
        """Log-probability of each token given those before it, under the present weights; 0 for each first token."""
        token_ids = tuple(np.ascontiguousarray(ids, np.int32).tobytes() for ids in sequences)
        answer = await self._call(messages.Score(token_ids=token_ids, temperature=temperature))
        assert isinstance(answer, messages.Scored)
        return np.split(answer.logprobs, np.cumsum([len(ids) for ids in sequences])[:-1])

    async def _call(self, body: messages.AnyCall) -> messages.AnyAnswer:
        """The same call to all ranks; the first rank that fails fails the call (the others wait in a collective)."""
        calls = [asyncio.ensure_future(rank.call(body, LearnerError)) for rank in self._ranks]
        try:
            await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            for call in calls:
                if call.done():
                    call.result()
            return (await asyncio.gather(*calls))[0]
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
