"""JournalTail: the events of a journal that somebody else is writing, and where each of them lies."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine import codec
from engine.errors import JournalError
from engine.events import AnyEvent
from engine.journal import ARCHIVE, number_of, segments
from engine.records import record_at

READ_BYTES = 2**22
"""Of a segment at one time; a record that is larger is read whole."""
_DECODER: codec.Decoder[AnyEvent] = codec.Decoder(AnyEvent)


class Place(NamedTuple):
    """Where an event lies."""

    segment: int
    start: int
    size: int


class RewrittenError(JournalError):
    """What was read is not there any more: the run was begun anew, or its journal was cut or pruned behind us."""


class JournalTail:
    """`events` yields what has been written since it was last asked, and keeps its place.

    A record whose end is not there yet is waited for while its segment is the newest; in an older one it was torn by a
    crash and is passed over, as `engine.journal` does. Reads only; the writer notices nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment: int | None = None
        self._inode = 0
        self._position = 0
        self._following: int | None = None
        self.num_read_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Of all segments that are there now."""
        return sum(path.stat().st_size for path in self._files().values() if path.exists())

    @property
    def first_segment(self) -> int:
        """Number of the oldest segment; 0 without any. Above 1 the beginning was deleted."""
        return min(self._files(), default=0)

    def events(self) -> Iterator[tuple[Place, AnyEvent]]:
        """What is new. Raises `RewrittenError` where a reader has to begin anew, `JournalError` for damage."""
        while files := self._files():
            if self._segment is None:
                self._enter(min(files), files)
            yield from self._rest()
            later = [number for number in self._files() if number > (self._segment or 0)]
            if not later:
                return
            # It was written to its end before the next one was begun, but perhaps not yet when it was read.
            yield from self._rest()
            self._enter(min(later), self._files())
        if self._segment is not None:
            raise RewrittenError(f"{self._folder}: there are no segments any more")

    def read(self, places: Iterable[Place]) -> list[AnyEvent]:
        """Some events again. Raises `RewrittenError` where one is not there any more."""
        found: list[AnyEvent] = []
        with contextlib.ExitStack() as stack:
            files: dict[int, BufferedReader] = {}
            for place in places:
                if place.segment not in files:
                    files[place.segment] = stack.enter_context(self._opened(place.segment)[1])
                file = files[place.segment]
                file.seek(place.start)
                record = record_at(memoryview(file.read(place.size)), 0)
                if record is None:
                    raise RewrittenError(f"{file.name}: no event at byte {place.start} any more")
                found.append(_DECODER.decode(record.payload))
        return found

    def _files(self) -> dict[int, Path]:
        # In this order: segments move to the archive, so one that moves meanwhile is seen twice, and never not at all.
        return {number_of(path): path for path in [*segments(self._folder), *segments(self._folder / ARCHIVE)]}

    def _opened(self, number: int) -> tuple[Path, BufferedReader]:
        """A segment, which may be moved to the archive between looking and opening."""
        for _ in range(2):
            path = self._files().get(number)
            if path is not None:
                with contextlib.suppress(FileNotFoundError):
                    return path, path.open("rb")
        raise RewrittenError(f"{self._folder}: segment {number} is gone")

    def _enter(self, number: int, files: dict[int, Path]) -> None:
        self._segment, self._inode, self._position = number, files[number].stat().st_ino, 0

    def _rest(self) -> Iterator[tuple[Place, AnyEvent]]:
        """The whole records of the present segment, from our place on."""
        path, file = self._opened(self._segment or 0)
        with file:
            size = file.seek(0, 2)
            if size < self._position or os.fstat(file.fileno()).st_ino != self._inode:
                raise RewrittenError(f"{path}: written anew")
            wanted = READ_BYTES
            while self._position < size:
                file.seek(self._position)
                data = memoryview(file.read(wanted))
                position = 0
                while (record := record_at(data, position)) is not None:
                    position = record.end
                    yield from self._event(path, record.number, record.payload, record.start, record.end)
                if not position and self._position + len(data) >= size:
                    return self._check_end(path, data)
                # A record longer than what was read begins here.
                wanted = READ_BYTES if position else 2 * wanted
        return None

    def _event(
        self, path: Path, number: int, payload: memoryview, start: int, end: int
    ) -> Iterator[tuple[Place, AnyEvent]]:
        assert self._segment is not None
        place = Place(self._segment, self._position, end - start)
        self._position += end - start
        self.num_read_bytes += end - start
        if self._following is not None and number < self._following:
            return  # written twice by a process that was not sure of the first time
        if self._following is not None and number > self._following:
            lost = number - self._following
            raise JournalError(f"{path}: {lost} events are missing before the record at byte {place.start}")
        self._following = number + 1
        try:
            yield place, _DECODER.decode(payload)
        except msgspec.DecodeError as error:
            raise JournalError(f"{path}: the record at byte {place.start} is not an event: {error}") from error

    def _check_end(self, path: Path, data: memoryview) -> None:
        """Bytes at the end that are no record: torn, or about to be one; damaged where a sound record follows."""
        if any(record_at(data, start) is not None for start in range(1, len(data))):
            raise JournalError(f"{path}: the record at byte {self._position} is damaged, and others follow it")
