"""A coroutine run to its end by code that is not asynchronous: what is asked of the world before a run starts."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from code that is not asynchronous, whether or not a loop runs in this thread."""
    found: list[T] = []
    failed: list[Exception] = []

    def main() -> None:
        try:
            found.append(asyncio.run(work()))
        except Exception as error:  # raised again in the thread that asked
            failed.append(error)

    thread = threading.Thread(target=main, name="apart")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
