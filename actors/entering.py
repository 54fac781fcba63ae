"""Entering many contexts side by side: what starts together fails together."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

from engine.errors import cause

T = TypeVar("T")


async def enter_all(contexts: Sequence[tuple[str, AbstractAsyncContextManager[T]]], stack: AsyncExitStack) -> list[T]:
    """Enter all of these named contexts at once, and leave them with `stack`; what they gave, in their order.

    The first one that fails cancels the others, which might wait for it until their deadline (ranks of one learner
    wait for each other before any of them answers), and its error is raised.
    """

    async def enter(context: AbstractAsyncContextManager[T]) -> T:
        value = await context.__aenter__()
        stack.push_async_exit(context)
        return value

    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for name, context in contexts:
                tasks.append(group.create_task(enter(context), name=f"start {name}"))
    except BaseExceptionGroup as errors:
        raise cause(errors) from errors
    return [task.result() for task in tasks]
