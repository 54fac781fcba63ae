"""A rollout actor: grows trees for a controller in another process, and tells it what happens as it happens.

    Grow ──> TreeRollout ──events──> Grown, Grown, ... ──> the controller's tree, journal, buffer

It keeps nothing that the controller does not know: a tree whose actor dies is grown on by another one from its events.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self

from actors.messages import AnyAnswer, AnyCall, Grow, Grown, StartRollouts
from actors.remote import RemoteGenerator, RemoteTools
from actors.wire import Caller
from engine.cohorts import Cohorts
from engine.errors import ArpoError
from engine.events import AnyTreeEvent
from engine.inference.router import Router
from engine.inference.shape import read_shape
from engine.interfaces import ToolHost
from engine.renderer import make_renderer
from engine.rollout import TreeRollout
from engine.tokenizer import load_tokenizer
from engine.tree import TreeBuilder
from tools.config import build_executor

BATCH_S = 0.01
"""Events of this long go out together: the controller journals them one by one anyway."""


class RolloutAnswers:
    """Calls for a rollout actor. `async with RolloutAnswers(start, connect)`."""

    def __init__(self, start: StartRollouts, connect: Callable[[str], Caller]) -> None:
        self._router = Router([RemoteGenerator(connect(name)) for name in start.generators])
        self._executor = build_executor(start.tools)
        self._workers = [connect(name) for name in start.tool_workers]
        tokenizer = load_tokenizer(start.model_path)
        self._renderer = make_renderer(start.renderer, tokenizer=tokenizer, specs=self._executor.specs)
        self._vocab_size = read_shape(start.model_path).vocab_size
        self._cohorts: dict[str, Cohorts] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._tools: ToolHost = await stack.enter_async_context(self._executor)
            if self._workers:
                self._tools = RemoteTools(self._workers, specs=self._executor.specs)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def __call__(self, body: AnyCall, send: Callable[[AnyAnswer, bool], Awaitable[None]]) -> None:
        if not isinstance(body, Grow):
            raise ArpoError(f"a rollout actor does not know {type(body).__name__}")
        events: list[AnyTreeEvent] = []
        growing = asyncio.create_task(self._grow(body, events.append), name=f"grow {body.prompt.prompt_id}")
        try:
            while not growing.done():
                await asyncio.wait({growing}, timeout=BATCH_S)
                if events and not growing.done():
                    batch = tuple(events)
                    events.clear()
                    await send(Grown(events=batch), False)
            growing.result()
        finally:
            growing.cancel()
        await send(Grown(events=tuple(events)), True)

    async def _grow(self, body: Grow, emit: Callable[[AnyTreeEvent], None]) -> None:
        tree = TreeBuilder(body.prompt)
        for event in body.events:
            tree.apply(event)
        if body.scope not in self._cohorts:
            # Only trees whose order of grants is shared in logical time wait for the others of their cohort, and those
            # are not distributed.
            self._cohorts[body.scope] = Cohorts(body.config, size=1, is_logical=body.is_logical)
        cohorts = self._cohorts[body.scope]
        cohorts.note(body.cohort, body.use)
        rollout = TreeRollout(
            tree,
            config=body.config,
            seed=body.seed,
            cohort=cohorts[body.cohort],
            generator=self._router,
            tools=self._tools,
            renderer=self._renderer,
            vocab_size=self._vocab_size,
            emit=emit,
        )
        try:
            await rollout.run()
        finally:
            self._router.forget(body.prompt.prompt_id)
