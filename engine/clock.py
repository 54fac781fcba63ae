"""Time is the event loop's: production runs on asyncio's, tests and simulations on a virtual one.

All code of this project asks `asyncio.get_running_loop().time()` and waits through asyncio, so putting it under a
virtual clock changes no line of it. `VirtualLoop` never waits: when nothing is ready it moves its clock to the next
timer. When there is no timer either, nothing can ever happen again, and it raises `StalledError` with the names of
the tasks that wait: a deadlock is a failing test, not a hanging one.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.errors import StalledError

T = TypeVar("T")


class _SkippingSelector(selectors.DefaultSelector):
    """Instead of sleeping until the next timer, tells the loop how far to move its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.is_stalled = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            self.is_stalled = True
            raise StalledError("nothing can ever happen again")
        self.now_s += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, starting at 0 seconds. Not for code that waits for processes or sockets."""

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)
        # asyncio fires timers before now + resolution; its 1e-9 s is rounded away after 97 days, this after 272 years.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._skipping.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a virtual clock, as `asyncio.run` does on the real one.

    Raises `StalledError`, naming the waiting tasks, when every task waits for something that no timer will bring.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        try:
            return runner.run(main)
        except StalledError as error:
            waiting = sorted(task.get_name() for task in asyncio.all_tasks(runner.get_loop()))
            raise StalledError(f"{error}; waiting: {', '.join(waiting) or 'no task'}") from None
