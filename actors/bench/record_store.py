"""RecordStore: what runs of a bench came to, one file a run, so that an interrupted bench goes on.

<folder>/<arm>-<key>/seed<n>.json: the key stands for everything but the seed that a record depends on.
"""

from pathlib import Path

import msgspec

from actors.run_dir import write_whole
from engine.errors import DataError


class RecordStore:
    """Records by arm, key and seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, arm: str, *, key: str, seed: int) -> dict[str, float] | None:
        """None for a run that did not come to its end. Raises `DataError` for a file that holds no record."""
        path = self._path(arm, key=key, seed=seed)
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, float])
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise DataError(f"{path}: no record of a bench: {error}") from None

    def put(self, arm: str, *, key: str, seed: int, record: dict[str, float]) -> None:
        """Keep a record, whole or not at all."""
        path = self._path(arm, key=key, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(record), indent=1))

    def _path(self, arm: str, *, key: str, seed: int) -> Path:
        return self.folder / f"{arm}-{key}" / f"seed{seed}.json"
