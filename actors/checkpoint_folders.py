"""CheckpointFolders: the checkpoints of a run on disk; what the newest events tell of stays, and all else goes."""

import shutil
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

    def add(self, event: Checkpointed) -> None:
        """Keep this one and the one before it."""
        name = Path(event.path).name
        self._kept = [*(one for one in self._kept if one != name), name][-KEPT_CHECKPOINTS:]

    def prune(self) -> None:
        """Remove the others."""
        for old in self._folder.glob("step-*"):
            if old.name not in self._kept:
                shutil.rmtree(old)
