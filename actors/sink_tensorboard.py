"""TensorBoard's files, by its own writer: the one place that imports it; it loads neither TensorFlow nor torch."""

import shutil
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

# Untyped, and not there for whoever checks types without it.
events: Any = import_module("tensorboard.compat.proto.event_pb2")
summaries: Any = import_module("tensorboard.compat.proto.summary_pb2")
writer: Any = import_module("tensorboard.summary.writer.event_file_writer")


class TensorBoardSink:
    """Scalars by step, in a folder that is written anew by each process: it never disagrees with the journal."""

    is_rewritten = True

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = writer.EventFileWriter(str(folder))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        values = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        summary = summaries.Summary(value=values)
        self._writer.add_event(events.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
