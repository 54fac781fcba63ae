"""Checkpoints: when one is made, and which one a resumed run starts from, also where the newest is torn."""

import logging
from collections.abc import Callable

from engine.errors import DataError
from engine.events import Checkpointed
from engine.interfaces import Trainer
from engine.run_state import RunState
from engine.types import Version

logger = logging.getLogger(__name__)


class Checkpoints:
    """Of one run, from its state on."""

    def __init__(
        self,
        state: RunState,
        *,
        trainer: Trainer,
        every: int,
        path_of: Callable[[int], str],
        emit: Callable[[Checkpointed], None],
    ) -> None:
        """`path_of` gives the path of the checkpoint behind a step; equal for equal steps."""
        self._known = state.checkpoints
        self._trainer = trainer
        self._every = every
        self._path_of = path_of
        self._emit = emit
        self._num_saved = 0
        """The step of the newest that is whole."""
        self._torn: dict[int, Checkpointed] = {}

    async def load(self) -> int:
        """Give the learner the newest checkpoint that is whole; returns its step, 0 where it begins at the start.

        The batches since that step are in the run's state. Raises the learner's `DataError` where both of two are torn:
        what was trained before them is no longer at hand.
        """
        for checkpoint in reversed(self._known):
            try:
                await self._trainer.load(checkpoint.path)
            except DataError as error:
                self._torn[checkpoint.step] = checkpoint
                if len(self._torn) > 1:
                    raise
                logger.warning("%s; the journal has what was trained since the checkpoint before it", error)
            else:
                self._num_saved = checkpoint.step
                return checkpoint.step
        return 0

    async def mend(self, step: int) -> None:
        """Make the checkpoint behind a step again, when the learner is there again and had found it torn."""
        if step in self._torn:
            await self._save(step, version=self._torn.pop(step).version)
            self._num_saved = step

    async def save_if_due(self, step: int, *, version: Version, is_last: bool) -> None:
        """Make the checkpoint behind a step, unless it is there already."""
        if step > self._num_saved and (is_last or step % self._every == 0):
            await self._save(step, version=version)
            self._num_saved = step

    async def _save(self, step: int, *, version: Version) -> None:
        path = self._path_of(step)
        await self._trainer.save(path)
        self._emit(Checkpointed(step=step, version=version, path=path))
