"""A folder that all ranks fill together, and that appears whole or not at all; an error of one rank is one of all."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.errors import LearnerError
from learner.parallel import Parallel
from learner.storage.hf_folder import begin, commit, discard, staging

T = TypeVar("T")


def write_together(
    target: str | Path,
    parallel: Parallel,
    *,
    fill: Callable[[Path], T],
    finish: Callable[[Path, list[T]], None],
    is_durable: bool = True,
) -> None:
    """All ranks call it: each fills the folder, then rank 0 finishes it with what all have returned.

    `target` is replaced by a rename, when every file is on disk, or is written where nobody needs it after a power cut
    (not `is_durable`). Raises `LearnerError` on all ranks where one of them
    cannot write, and leaves `target` as it was.
    """

    def complete(results: list[T]) -> None:
        finish(staging(target), results)
        commit(target, is_durable=is_durable)

    try:
        _on_rank_0(parallel, lambda: begin(target))
        results = parallel.together(lambda: fill(staging(target)), kind=LearnerError)
        _on_rank_0(parallel, lambda: complete(results))
    finally:
        if parallel.rank == 0:
            discard(target)


def _on_rank_0(parallel: Parallel, work: Callable[[], None]) -> None:
    def own() -> None:
        if parallel.rank == 0:
            work()

    parallel.together(own, kind=LearnerError)
