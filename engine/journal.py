"""The journal: every event of a run on disk, in the order in which it happened.

A folder of segments, one for each process that worked on the run; a segment is a sequence of records
`length (u32) | crc32 of the payload (u32) | payload (msgpack of one event)`, little endian. A record torn by a crash at
the end of a segment is dropped with a warning; damage anywhere else is a `JournalError`.
"""

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine import codec
from engine.errors import JournalError
from engine.events import AnyEvent

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<II")
_DECODER: codec.Decoder[AnyEvent] = codec.Decoder(AnyEvent)


class Journal:
    """Appends events to a fresh segment; one writer a run. Use as a context manager, or `close`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in segments(folder)), default=0) + 1
        # Unbuffered: after `append` an event survives this process, though not the machine; `sync` is for the latter.
        self._file = open(folder / f"{number:06d}.log", "xb", buffering=0)  # noqa: SIM115 - closed by `close`

    def append(self, event: AnyEvent) -> None:
        """Write one event. Raises `JournalError` when the disk refuses it."""
        record = record_of(event)
        try:
            written = self._file.write(record)
        except OSError as error:
            raise JournalError(f"{self._file.name}: {error}") from error
        if written != len(record):
            raise JournalError(f"{self._file.name}: wrote {written} of {len(record)} bytes")

    def sync(self) -> None:
        """Return when everything appended would survive a loss of power."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Make everything durable; `append` is an error afterwards."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def record_of(event: AnyEvent) -> bytes:
    """One event as it stands in a segment."""
    payload = codec.encode(event)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def segments(folder: Path) -> list[Path]:
    """The segments of a journal, oldest first."""
    return sorted(path for path in folder.glob("*.log") if path.stem.isdigit())


def read(folder: Path) -> Iterator[AnyEvent]:
    """All events of a journal, oldest first; nothing for a folder that is not there."""
    for path in segments(folder):
        yield from read_segment(path)


def read_segment(path: Path) -> Iterator[AnyEvent]:
    """The events of one file of records; raises `JournalError` as `read` does."""
    data = memoryview(path.read_bytes())
    position = 0
    while position < len(data):
        payload = _record(data, position)
        if payload is None:
            if _is_followed(data, position):
                raise JournalError(f"{path}: the record at byte {position} is damaged, and others follow it")
            lost = len(data) - position
            logger.warning("%s: torn by a crash at byte %d; %d bytes are dropped", path, position, lost)
            return
        try:
            yield _DECODER.decode(payload)
        except msgspec.DecodeError as error:
            raise JournalError(f"{path}: the record at byte {position} is not an event: {error}") from error
        position += _HEADER.size + len(payload)


def _record(data: memoryview, position: int) -> memoryview | None:
    """The payload of a whole and sound record, or None."""
    body = position + _HEADER.size
    if body > len(data):
        return None
    length, checksum = _HEADER.unpack_from(data, position)
    # No event is empty: a length of zero is a tail of zeros, which a lost power leaves in an unsynced file.
    if not length or body + length > len(data):
        return None
    payload = data[body : body + length]
    return payload if zlib.crc32(payload) == checksum else None


def _is_followed(data: memoryview, position: int) -> bool:
    """Whether a sound record comes anywhere behind: then it was no crash that ended the segment."""
    return any(_record(data, start) is not None for start in range(position + 1, len(data)))
