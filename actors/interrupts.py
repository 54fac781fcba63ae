"""What a signal does to a command: the first one lets it end in order, the second one ends it at once."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from actors.cli import INTERRUPTED

T = TypeVar("T")


def interruptible(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end; SIGINT and SIGTERM cancel in order, a second one ends the process at once."""

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        signals = 0

        def interrupt() -> None:
            nonlocal signals
            signals += 1
            if signals > 1:
                os._exit(INTERRUPTED)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        return await main

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
