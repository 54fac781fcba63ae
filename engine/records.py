"""Records: the bytes of a journal, and what is wrong with them.

A segment is a sequence of records `length (u32) | crc32 of the rest (u32) | number (u64) | payload`, little endian. The
numbers go on over all segments, so that what was lost, or written twice, is seen.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<IIQ")
_NUMBER = struct.Struct("<Q")
HEADER_SIZE = _HEADER.size


@dataclass(frozen=True, slots=True)
class Record:
    """A whole and sound record."""

    start: int
    end: int
    number: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record, from `start` to the end of the segment; a segment has at most one of these, last."""

    start: int
    size: int
    is_followed: bool
    """A sound record comes behind: no crash in the middle of a write explains it."""


def pack(number: int, payload: bytes) -> bytes:
    """One record."""
    checksum = zlib.crc32(payload, zlib.crc32(_NUMBER.pack(number)))
    return _HEADER.pack(len(payload), checksum, number) + payload


def scan(path: Path) -> Iterator[Record | Damage]:
    """What a segment consists of, in order."""
    data = memoryview(path.read_bytes())
    position = 0
    while position < len(data):
        record = record_at(data, position)
        if record is None:
            yield Damage(position, len(data) - position, _is_followed(data, position))
            return
        yield record
        position = record.end


def record_at(data: memoryview, start: int) -> Record | None:
    """The record that begins there; None where there is none, or not the whole of it."""
    body = start + _HEADER.size
    if body > len(data):
        return None
    length, checksum, number = _HEADER.unpack_from(data, start)
    # No event is empty: a length of zero is a tail of zeros, which a lost power leaves in an unsynced file.
    if not length or body + length > len(data):
        return None
    payload = data[body : body + length]
    if zlib.crc32(payload, zlib.crc32(_NUMBER.pack(number))) != checksum:
        return None
    return Record(start, body + length, number, payload)


def _is_followed(data: memoryview, position: int) -> bool:
    return any(record_at(data, start) is not None for start in range(position + 1, len(data)))
