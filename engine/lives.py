"""Lives: something that may be lost is started again, and again, until too many lives in a row were in vain.

    start ──> begin ──> current ──lost──> closed ──rest──> start ──> ...

| loop  | consumes | waits for               | produces    | unblocked by                                      |
|-------|----------|-------------------------|-------------|---------------------------------------------------|
| watch | losses   | a start, a loss, a rest | a `current` | the start's deadline; whoever meets a loss; close |
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, Self, TypeVar

from engine.errors import ActorLostError, ArpoError, boundary

logger = logging.getLogger(__name__)

REST_S = 0.5
"""Before a lost one is started again; doubled with each life in vain."""
LONGEST_REST_S = 32.0

T = TypeVar("T")


class Lives(Generic[T]):
    """`async with Lives("worker-0", start, ...) as lives`: entering raises what the first start raises.

    `current` is None from a loss to the next life. Whoever meets a loss says `lose`; whoever is served says `serve`,
    without which `limit` lives in a row end all: it then stays lost.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], AbstractAsyncContextManager[T]],
        *,
        limit: int,
        begin: Callable[[T], Awaitable[None]] | None = None,
    ) -> None:
        """`begin` gets each new life before anybody else sees it; an error there is a failed start."""
        self.name = name
        self.current: T | None = None
        self.loss = f"{name} has not started"
        """Why there is none."""
        self.num_starts = 0
        self._start = start
        self._begin = begin
        self._limit = limit
        self._num_vain = 0
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._open(await self._next(stack))
            watching = asyncio.create_task(self._watch(stack.pop_all()), name=f"watch {self.name}")
        self._stack.push_async_callback(_end, watching)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def until_up(self) -> None:
        """Wait for the next life, where there is none."""
        await self._up.wait()

    def serve(self) -> None:
        """The present life is of use."""
        self._num_vain = 0

    def lose(self, life: T, error: ArpoError) -> bool:
        """Say that `life` is gone; True for the first to say so."""
        if life is not self.current:
            return False
        logger.warning("%s is lost: %s", self.name, error)
        self.current = None
        self.loss = f"{self.name} is lost: {error}"
        self._up.clear()
        self._lost.set()
        return True

    async def _next(self, stack: contextlib.AsyncExitStack) -> T:
        life = await stack.enter_async_context(self._start())
        if self._begin is not None:
            await self._begin(life)
        return life

    def _open(self, life: T) -> None:
        self.num_starts += 1
        self.current = life
        self._up.set()

    async def _watch(self, stack: contextlib.AsyncExitStack) -> None:
        """`stack` holds what the present start has opened."""
        while True:
            async with stack:
                await self._lost.wait()
                self._lost.clear()
            if (again := await self._restart()) is None:
                return
            stack = again

    async def _restart(self) -> contextlib.AsyncExitStack | None:
        """What the next start has opened; None where it is given up."""
        while self._num_vain < self._limit:
            await asyncio.sleep(min(REST_S * 2 ** min(self._num_vain, 10), LONGEST_REST_S))
            self._num_vain += 1
            stack = contextlib.AsyncExitStack()
            try:
                # A machine that is out of memory fails at anything, and will not for ever.
                with boundary(ActorLostError, self.name):
                    life = await self._next(stack)
            except ArpoError as error:
                await stack.aclose()
                self.loss = f"{self.name} did not start again: {error}"
                logger.warning("%s (attempt %d of %d)", self.loss, self._num_vain, self._limit)
            except BaseException:
                await stack.aclose()
                raise
            else:
                self._open(life)
                logger.info("%s is up again, start %d", self.name, self.num_starts)
                return stack
        logger.error("%s is given up: %s", self.name, self.loss)
        return None


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
