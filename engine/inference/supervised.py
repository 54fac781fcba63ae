"""SupervisedGenerator: a generator that comes back. What is lost is started again, and sees no request before it has
the weights that the others have.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Self

import msgspec

from engine.deadline import within
from engine.errors import ArpoError, GeneratorLostError, StalledError
from engine.interfaces import Gated, Generator
from engine.lives import Lives
from engine.reports import GeneratorStatistics
from engine.types import Completion, GenerateRequest, UpdateMode, WeightRef

COUNTERS = ("num_requests", "num_sampled_tokens", "num_prefilled_tokens", "num_cached_tokens", "num_evicted_tokens")

LOOK_S = 1.0
"""Between two questions of a watch."""
BEGIN_S = 1800.0
"""How long a new life may take until it has the weights of the run. Publishing waits for it meanwhile."""

Start = Callable[[], AbstractAsyncContextManager[Generator]]
"""Starts (or connects to) a generator for the length of the block, with whatever weights it begins with."""


class SupervisedGenerator:
    """`interfaces.Generator` around one that may be lost and started again.

    Use as `async with SupervisedGenerator("generator-0", start) as generator`. Entering raises what the first start
    raises. After `restart_limit` lives in a row that sampled nothing, or did not begin, the generator stays lost.
    """

    def __init__(self, name: str, start: Start, *, restart_limit: int = 5) -> None:
        self.name = name
        self._lives = Lives[Generator](name, start, limit=restart_limit, begin=self._begin)
        self._ref: WeightRef | None = None
        """What every generator samples with; none while it is the model that it was started with."""
        self._updating = asyncio.Lock()
        self._earlier = GeneratorStatistics(version=0)
        """What lives that are over have done."""
        self._latest = self._earlier

    async def __aenter__(self) -> Self:
        await self._lives.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._lives.__aexit__(*error)

    @property
    def num_starts(self) -> int:
        return self._lives.num_starts

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
        """As `Generator.generate`. Raises `GeneratorLostError` at once while it is not up."""
        if (generator := self._lives.current) is None:
            raise GeneratorLostError(self._lives.loss)
        try:
            async with contextlib.aclosing(generator.generate(request)) as chunks:
                async for chunk in chunks:
                    self._lives.serve()
                    yield chunk
        except GeneratorLostError as error:
            self._lose(generator, error)
            raise

    async def abort(self, request_id: str) -> None:
        if (generator := self._lives.current) is not None:
            try:
                await generator.abort(request_id)
            except GeneratorLostError as error:
                self._lose(generator, error)

    async def update_weights(self, ref: WeightRef, *, mode: UpdateMode) -> None:
        """As `Generator.update_weights`. One that is lost will not answer before it has these weights either."""
        async with self._updating:
            self._ref = ref
            if (generator := self._lives.current) is not None:
                try:
                    await generator.update_weights(ref, mode=mode)
                except GeneratorLostError as error:
                    self._lose(generator, error)

    async def statistics(self) -> GeneratorStatistics:
        """Summed over all lives; as of the last answer while it is lost."""
        if (generator := self._lives.current) is not None:
            try:
                self._latest = _sum(self._earlier, await generator.statistics())
            except GeneratorLostError as error:
                self._lose(generator, error)
        return self._latest

    async def probe(self, seconds: float) -> None:
        """Start it again where it does not answer within so many seconds."""
        generator = self._lives.current
        try:
            await within(seconds, self.statistics(), name=f"an answer of {self.name}")
        except StalledError as error:
            if generator is not None:
                self._lose(generator, error)

    async def watch(self) -> None:
        """Ask after it for ever. Those who know it without this supervisor meet its losses, and are served by it, and
        say neither: without this nobody starts it again while they wait for it."""
        while True:
            await asyncio.sleep(LOOK_S)
            before = self._latest.num_sampled_tokens
            if (await self.statistics()).num_sampled_tokens > before:
                self._lives.serve()

    async def _begin(self, generator: Generator) -> None:
        """Publishing waits meanwhile, so these are the latest weights, and they are still there: nothing comes between
        the end of this and the beginning of the life."""
        async with self._updating:
            if self._ref is not None:
                # It has no request yet, so the mode says nothing.
                update = generator.update_weights(self._ref, mode="retract")
                await within(BEGIN_S, update, name=f"the weights of {self.name}")
            if isinstance(generator, Gated):
                await generator.open()

    def _lose(self, generator: Generator, error: ArpoError) -> None:
        if self._lives.lose(generator, error):
            self._earlier = msgspec.structs.replace(self._latest, num_running=0, num_waiting=0)
            self._latest = self._earlier


@contextlib.asynccontextmanager
async def watched(generators: Sequence[SupervisedGenerator]) -> AsyncGenerator[None, None]:
    """Watch generators for the length of the block, each by itself: one may take long to answer."""
    watches = [asyncio.create_task(one.watch(), name=f"watch over {one.name}") for one in generators]
    try:
        yield
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


def _sum(earlier: GeneratorStatistics, now: GeneratorStatistics) -> GeneratorStatistics:
    counters = {name: getattr(earlier, name) + getattr(now, name) for name in COUNTERS}
    return msgspec.structs.replace(now, **counters, busy_s=earlier.busy_s + now.busy_s)
