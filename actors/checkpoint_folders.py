"""CheckpointFolders: the checkpoints of a run on disk; what the newest events tell of stays, and all else goes."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from engine.events import Checkpointed

KEPT_CHECKPOINTS = 2


class CheckpointFolders:
    """Told of each checkpoint when it is whole.

    By the order of events and not by numbers of steps: behind a journal that was cut back there may be folders of steps
    that the run has not come to yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[str] = []

    def holds(self, path: str) -> bool:
        """Whether a checkpoint that an event tells of is there still."""
        return (self._folder / Path(path).name).is_dir()

    def know(self, checkpoints: Iterable[Checkpointed]) -> None:
        """Learn of those of earlier processes, in order."""
        for checkpoint in checkpoints:
            name = Path(checkpoint.path).name
            self._kept = [*(one for one in self._kept if one != name), name][-KEPT_CHECKPOINTS:]

    def keep(self, checkpoint: Checkpointed) -> None:
        """Keep this one and the one before it, and remove the others."""
        self.know([checkpoint])
        for old in self._folder.glob("step-*"):
            if old.name not in self._kept:
                shutil.rmtree(old)
