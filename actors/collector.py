"""Python's garbage collector in a process that runs many paths: it looks for cycles rarely, as there are hardly any."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (20_000, 20, 20)
"""Of Python, 700 new objects begin a look, which ten thousand paths come to at every turn."""


@contextmanager
def rarely() -> Iterator[None]:
    """For the length of the block. What is there already is not looked at: imports never become garbage."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
