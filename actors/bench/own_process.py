"""A process of its own for an arm whose figure is one of its process: memory, CPU seconds, the cores it may use."""

import multiprocessing
import os
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from actors.bench.bench import Record


def in_own_process(work: Callable[..., Record], *, cores: Collection[int] | None = None, **arguments: Any) -> Record:
    """Run `work(**arguments)` in a new process and return what it found; what it raises is raised here.

    The process, and whatever it starts, may use `cores` alone; None is those of this process. A new one, because the
    largest memory of a process is that of its whole life.
    """
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_stay_on, initargs=(cores,)
    ) as pool:
        return pool.submit(work, **arguments).result()


def _stay_on(cores: Collection[int] | None) -> None:
    if cores is not None:
        os.sched_setaffinity(0, cores)
