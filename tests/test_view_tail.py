"""A journal followed while it is written: the same events as it has when it is whole, each once, and where they lie."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.view.tail import JournalTail, RewrittenError
from engine import codec, journal
from engine.errors import JournalError
from engine.events import AnyEvent, RunStarted
from engine.journal import ARCHIVE, Journal
from engine.records import pack


def started(number: int) -> AnyEvent:
    return RunStarted(run="r" * (number % 7), config_digest="", resumed=number)


def records(first: int, count: int) -> bytes:
    return b"".join(pack(number, codec.encode(started(number))) for number in range(first, first + count))


def numbers(tail: JournalTail) -> list[int]:
    return [event.resumed for _, event in tail.events() if isinstance(event, RunStarted)]


def written(folder: Path, *, first: int = 0, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "000001.log"
    path.write_bytes(records(first, count))
    return path


@given(cuts=st.lists(st.integers(0, 600), max_size=6), sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_followed_through_any_cuts_it_has_every_event_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("run") / "journal"
    folder.mkdir()
    tail, seen, first = JournalTail(folder), [], 0
    for segment, size in enumerate(sizes, start=1):
        data = records(first, size)
        for cut in [*sorted(cuts), len(data)]:
            (folder / f"{segment:06d}.log").open("wb").close() if cut < 0 else None
            with (folder / f"{segment:06d}.log").open("ab") as file:
                file.write(data[file.tell() : cut])
            seen += numbers(tail)
        first += size
    assert seen == list(range(first))
    assert [e.resumed for e in journal.read(folder) if isinstance(e, RunStarted)] == seen


def test_a_record_is_waited_for_until_its_end_is_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    tail = JournalTail(tmp_path)
    assert numbers(tail) == [0, 1]
    with path.open("ab") as file:
        file.write(whole[-1:])
    assert numbers(tail) == [2]


def test_a_torn_end_is_passed_over_when_the_next_segment_is_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "000002.log").write_bytes(records(2, 2))
    assert numbers(JournalTail(tmp_path)) == [0, 1, 2, 3]


def test_damage_in_the_middle_and_lost_events_are_errors(tmp_path: Path) -> None:
    path = written(tmp_path / "a")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match="damaged"):
        numbers(JournalTail(tmp_path / "a"))
    written(tmp_path / "b")
    (tmp_path / "b" / "000002.log").write_bytes(records(5, 1))
    with pytest.raises(JournalError, match="2 events are missing"):
        numbers(JournalTail(tmp_path / "b"))


def test_events_written_twice_are_read_once(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "000002.log").write_bytes(records(2, 3))
    assert numbers(JournalTail(tmp_path)) == [0, 1, 2, 3, 4]


def test_a_segment_is_followed_into_the_archive_and_read_there_again(tmp_path: Path) -> None:
    path = written(tmp_path)
    tail = JournalTail(tmp_path)
    places = [place for place, _ in tail.events()]
    (tmp_path / ARCHIVE).mkdir()
    shutil.move(path, tmp_path / ARCHIVE / path.name)
    (tmp_path / "000002.log").write_bytes(records(3, 2))
    assert numbers(tail) == [3, 4]
    again = tail.read(places)
    assert [event.resumed for event in again if isinstance(event, RunStarted)] == [0, 1, 2]


def test_a_run_that_was_begun_anew_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    tail = JournalTail(tmp_path)
    assert len(numbers(tail)) == 3
    path.unlink()
    with Journal(tmp_path) as again:
        again.append(started(0))
    with pytest.raises(RewrittenError):
        numbers(tail)


def test_a_reader_that_stops_goes_on_behind_the_last_event_it_took(tmp_path: Path) -> None:
    written(tmp_path)
    tail = JournalTail(tmp_path)
    first = next(iter(tail.events()))[1]
    assert isinstance(first, RunStarted)
    assert [first.resumed, *numbers(tail)] == [0, 1, 2]
