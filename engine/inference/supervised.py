"""SupervisedGenerator: a generator that comes back. What is lost is started again, and sees no request before it has
the weights that the others have.

    start ──> has the run's weights? ──> up ──lost──> closed ──rest──> start ──> ...
                                          │ requests, updates

| loop  | consumes | waits for                | produces    | unblocked by                                      |
|-------|----------|--------------------------|-------------|---------------------------------------------------|
| watch | losses   | a start, a loss, a rest  | a generator | the start's deadline; whoever meets a loss; close |
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Self

import msgspec

from engine.errors import ArpoError, GeneratorLostError
from engine.interfaces import Generator
from engine.types import Completion, GenerateRequest, GeneratorStatistics, UpdateMode, WeightRef

logger = logging.getLogger(__name__)

REST_S = 0.5
"""Before a lost generator is started again; doubled with each start that failed."""
COUNTERS = ("num_requests", "num_sampled_tokens", "num_prefilled_tokens", "num_cached_tokens", "num_evicted_tokens")

Start = Callable[[WeightRef | None], AbstractAsyncContextManager[Generator]]
"""Starts (or connects to) a generator for the length of the block, with these weights where there are some: from the
first request on it samples with them."""


class SupervisedGenerator:
    """`interfaces.Generator` around one that may be lost and started again.

    Use as `async with SupervisedGenerator("generator-0", start) as generator`. Entering raises what the first start
    raises. After `restart_limit` lives in a row that sampled nothing, or did not begin, the generator stays lost.
    """

    def __init__(self, name: str, start: Start, *, restart_limit: int = 5) -> None:
        self.name = name
        self.num_starts = 0
        self._start = start
        self._restart_limit = restart_limit
        self._generator: Generator | None = None
        self._ref: WeightRef | None = None
        """What every generator samples with; none while it is the model that it was started with."""
        self._loss = f"{name} has not started"
        self._num_vain = 0
        """Starts in a row after which nothing was sampled."""
        self._lost = asyncio.Event()
        self._updating = asyncio.Lock()
        self._earlier = GeneratorStatistics(version=0)
        """What lives that are over have done."""
        self._latest = self._earlier
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            generator = await stack.enter_async_context(self._start(None))
            self.num_starts += 1
            self._generator = generator
            watching = asyncio.create_task(self._watch(stack.pop_all()), name=f"watch {self.name}")
        self._stack.push_async_callback(_end, watching)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """As `Generator.generate`. Raises `GeneratorLostError` at once while it is not up."""
        generator = self._up()
        try:
            async with contextlib.aclosing(generator.generate(request)) as chunks:
                async for chunk in chunks:
                    self._num_vain = 0
                    yield chunk
        except GeneratorLostError as error:
            self._lose(generator, error)
            raise

    async def abort(self, request_id: str) -> None:
        if (generator := self._generator) is not None:
            try:
                await generator.abort(request_id)
            except GeneratorLostError as error:
                self._lose(generator, error)

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        """As `Generator.update_weights`. One that is lost will not answer before it has these weights either."""
        async with self._updating:
            self._ref = ref
            if (generator := self._generator) is not None:
                try:
                    await generator.update_weights(ref, mode=mode)
                except GeneratorLostError as error:
                    self._lose(generator, error)

    async def statistics(self) -> GeneratorStatistics:
        """Summed over all lives; as of the last answer while it is lost."""
        if (generator := self._generator) is not None:
            try:
                self._latest = _sum(self._earlier, await generator.statistics())
            except GeneratorLostError as error:
                self._lose(generator, error)
        return self._latest

    def _up(self) -> Generator:
        if self._generator is None:
            raise GeneratorLostError(self._loss)
        return self._generator

    def _lose(self, generator: Generator, error: ArpoError) -> None:
        """Called by whoever meets the loss; the first one counts."""
        if generator is self._generator:
            logger.warning("%s is lost: %s", self.name, error)
            self._generator = None
            self._loss = f"{self.name} is lost: {error}"
            self._earlier = msgspec.structs.replace(self._latest, num_running=0, num_waiting=0)
            self._latest = self._earlier
            self._lost.set()

    async def _watch(self, life: contextlib.AsyncExitStack) -> None:
        """Start the generator again whenever it is lost; `life` holds what the present start has opened."""
        while True:
            async with life:
                await self._lost.wait()
                self._lost.clear()
            if (again := await self._restart()) is None:
                return
            life = again

    async def _restart(self) -> contextlib.AsyncExitStack | None:
        """What the next start has opened; None where it is given up."""
        while self._num_vain < self._restart_limit:
            await asyncio.sleep(REST_S * 2**self._num_vain)
            self._num_vain += 1
            life = contextlib.AsyncExitStack()
            try:
                await self._begin(life)
            except ArpoError as error:
                await life.aclose()
                self._loss = f"{self.name} did not start again: {error}"
                logger.warning("%s (attempt %d of %d)", self._loss, self._num_vain, self._restart_limit)
            except BaseException:
                await life.aclose()
                raise
            else:
                return life
        logger.error("%s is given up: %s", self.name, self._loss)
        return None

    async def _begin(self, life: contextlib.AsyncExitStack) -> None:
        ref = self._ref
        generator = await life.enter_async_context(self._start(ref))
        async with self._updating:
            if self._ref is not None and self._ref is not ref:
                # Published while it started. It has no request yet, so the mode says nothing.
                await generator.update_weights(self._ref, mode="retract")
            self.num_starts += 1
            self._generator = generator
        logger.info("%s is up again, start %d", self.name, self.num_starts)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _sum(earlier: GeneratorStatistics, now: GeneratorStatistics) -> GeneratorStatistics:
    counters = {name: getattr(earlier, name) + getattr(now, name) for name in COUNTERS}
    return msgspec.structs.replace(now, **counters, busy_s=earlier.busy_s + now.busy_s)
