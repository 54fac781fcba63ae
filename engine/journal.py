"""The journal: every event of a run on disk, in the order in which it happened.

    journal/  000004.log  000004.snapshot  000005.log ...        archive/  000001.log ...

A folder of segments (see `records`). A new one begins with each process that works on the run and behind each
checkpoint, where a snapshot may say what all before it came to; segments that no resumed run will ask for are archived.
A record torn by a crash at the end of a segment is dropped with a warning, and so is one that is there twice; other
damage is a `JournalError`, behind which `recovery` cuts.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from engine import codec
from engine.config import Section
from engine.errors import JournalError
from engine.events import AnyEvent
from engine.records import Damage, Record, pack, scan

logger = logging.getLogger(__name__)

ARCHIVE = "archive"
_DECODER: codec.Decoder[AnyEvent] = codec.Decoder(AnyEvent)


class JournalConfig(Section, frozen=True):
    """What is kept of a run's events, and when it is safe from a loss of power."""

    retain: Literal["archive", "checkpoint"] = "archive"
    """What becomes of segments behind the older kept checkpoint: `archive` moves them to `journal/archive`, where
    replays and reports find them; `checkpoint` deletes them, and a replay begins at that checkpoint."""
    fsync: Literal["checkpoint", "step", "event"] = "step"
    """When events are forced to the disk. An end of the process loses none of them in any case; a loss of power loses
    those since the last checkpoint, since the last step, or none."""


class Journal:
    """Appends events to a fresh segment; one writer a run. Use as a context manager, or `close`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        known = [*segments(folder / ARCHIVE), *segments(folder)]
        self._number = max((number_of(path) for path in known), default=0)
        self._next = _next_record(known)
        self._is_broken = False
        self.busy_s = 0.0
        """Spent in writing, so far."""
        self._open()

    def append(self, event: AnyEvent) -> None:
        """Write one event. Raises `JournalError` when the disk refuses it, then and ever after."""
        started = time.perf_counter()
        if self._is_broken:
            raise JournalError(f"{self._file.name}: an earlier event was refused")
        record = pack(self._next, codec.encode(event))
        try:
            written = self._file.write(record)
        except OSError as error:
            raise self._broken(str(error)) from error
        if written != len(record):
            raise self._broken(f"wrote {written} of {len(record)} bytes; is the disk full?")
        self._next += 1
        self._size += written
        self.busy_s += time.perf_counter() - started

    def sync(self) -> None:
        """Return when everything appended would survive a loss of power."""
        started = time.perf_counter()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._broken(str(error)) from error
        self.busy_s += time.perf_counter() - started

    def roll(self) -> Path:
        """End this segment and begin the next one; returns where a snapshot of all before it belongs."""
        self.close()
        self._open()
        return snapshot_of(self._path)

    def close(self) -> None:
        """Make everything durable; `append` is an error afterwards."""
        if not self._file.closed:
            try:
                if not self._is_broken:
                    self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._number += 1
        self._path = self._folder / f"{self._number:06d}.log"
        # Unbuffered: after `append` an event survives this process, though not the machine; `sync` is for the latter.
        self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._size = 0
        sync_folder(self._folder)

    def _broken(self, why: str) -> JournalError:
        """Nothing may follow a torn record: take it back, which needs no room, and write no more."""
        self._is_broken = True
        self._file.truncate(self._size)
        return JournalError(f"{self._file.name}: {why}")


def segments(folder: Path) -> list[Path]:
    """The segments in a folder, oldest first."""
    return sorted((path for path in folder.glob("*.log") if path.stem.isdigit()), key=number_of)


def number_of(segment: Path) -> int:
    return int(segment.stem)


def is_whole(folder: Path) -> bool:
    """Whether the journal goes back to the first event; so does an empty one."""
    everything = [*segments(folder / ARCHIVE), *segments(folder)]
    return not everything or number_of(everything[0]) == 1


def snapshot_of(segment: Path) -> Path:
    """Where the snapshot of all before this segment is, if there is one."""
    return segment.with_suffix(".snapshot")


def read(folder: Path, *, start: int = 0) -> Iterator[AnyEvent]:
    """The events of a journal, oldest first, archived ones included; nothing for a folder that is not there.

    `start` is the number of the segment to begin at. Raises `JournalError` where something is missing or damaged.
    """
    following: int | None = None
    for path in [*segments(folder / ARCHIVE), *segments(folder)]:
        if number_of(path) >= start:
            for record in sound(path, following):
                following = record.number + 1
                try:
                    yield _DECODER.decode(record.payload)
                except msgspec.DecodeError as error:
                    raise JournalError(f"{path}: the record at byte {record.start} is not an event: {error}") from error


def sound(path: Path, following: int | None) -> Iterator[Record]:
    """The records of a segment, each once, from number `following` on (None: any); a torn end is dropped."""
    num_repeated = 0
    for item in scan(path):
        if isinstance(item, Damage):
            if item.is_followed:
                raise JournalError(f"{path}: the record at byte {item.start} is damaged, and others follow it")
            logger.warning("%s: torn by a crash at byte %d; %d bytes are dropped", path, item.start, item.size)
        elif following is not None and item.number < following:
            num_repeated += 1
        elif following is not None and item.number > following:
            lost = item.number - following
            raise JournalError(f"{path}: {lost} events are missing before the record at byte {item.start}")
        else:
            following = item.number + 1
            yield item
    if num_repeated:
        logger.warning("%s: %d events are there twice; the second ones are dropped", path, num_repeated)


def unnumbered(events: Iterable[AnyEvent]) -> bytes:
    """Events in the form of a journal, for a file that is no segment of one: nothing is known of what came before."""
    return b"".join(pack(0, codec.encode(event)) for event in events)


def read_unnumbered(path: Path) -> Iterator[AnyEvent]:
    """The events of such a file. Raises `JournalError` where it is damaged; a torn end is dropped."""
    for item in scan(path):
        if isinstance(item, Record):
            yield _DECODER.decode(item.payload)
        elif item.is_followed:
            raise JournalError(f"{path}: the record at byte {item.start} is damaged, and others follow it")


def retire(folder: Path, *, before: int, retain: Literal["archive", "checkpoint"]) -> None:
    """Archive or delete the segments with numbers below `before`, and their snapshots."""
    for path in segments(folder):
        if number_of(path) < before:
            snapshot_of(path).unlink(missing_ok=True)
            if retain == "archive":
                (folder / ARCHIVE).mkdir(exist_ok=True)
                shutil.move(path, folder / ARCHIVE / path.name)
            else:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _next_record(known: list[Path]) -> int:
    """The number behind the last one in a journal."""
    for path in reversed(known):
        if numbers := [item.number for item in scan(path) if isinstance(item, Record)]:
            return max(numbers) + 1
    return 0
