"""What may become of the end of a journal: torn, damaged, doubled, missing, refused by a full disk, or let go of."""

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from engine import codec, journal
from engine.errors import JournalError
from engine.events import AnyEvent, Evaluated
from engine.journal import Journal
from engine.records import Record, scan
from engine.recovery import recover


def event(number: int) -> Evaluated:
    return Evaluated(step=number, version=number, metrics={"success": number / 7})


def write(folder: Path, start: int, end: int) -> Path:
    with Journal(folder) as file:
        for number in range(start, end):
            file.append(event(number))
    return journal.segments(folder)[-1]


def steps(folder: Path) -> list[int]:
    return [found.step for found in journal.read(folder) if isinstance(found, Evaluated)]


def records(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[item.start : item.end] for item in scan(path) if isinstance(item, Record)]


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tail_that_is_there_twice_is_read_once(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    path = write(folder, 0, 6)
    num_again = data.draw(st.integers(1, 6))
    with path.open("ab") as file:
        file.write(b"".join(records(path)[-num_again:]))
    write(folder, 6, 8)
    assert recover(folder) == 0
    assert steps(folder) == list(range(8))


def test_a_doubled_tail_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, 0, 3)
    path.write_bytes(path.read_bytes() + records(path)[-1])
    with caplog.at_level(logging.WARNING):
        assert steps(tmp_path) == [0, 1, 2]
    assert caplog.messages == [f"{path}: 1 events are there twice; the second ones are dropped"]


@pytest.mark.parametrize("which", [0, 1])
def test_events_that_are_missing_are_an_error_not_an_end(tmp_path: Path, which: int) -> None:
    first, second = write(tmp_path, 0, 4), write(tmp_path, 4, 8)
    path = (first, second)[which]
    # The end of the first segment, or the beginning of the second: each a clean cut that no checksum sees.
    path.write_bytes(b"".join(records(path)[:2] if which == 0 else records(path)[2:]))
    with pytest.raises(JournalError, match=r"000002.log: 2 events are missing before the record at byte 0"):
        steps(tmp_path)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_journal_goes_back_to_the_last_good_event_and_on_from_there(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever bit flips, what is read afterwards is a beginning of what was written, and nothing is thrown away."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    paths = [write(folder, 0, 4), write(folder, 4, 7), write(folder, 7, 9)]
    place = data.draw(st.integers(0, 2))
    content = bytearray(paths[place].read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    paths[place].write_bytes(content)
    size = sum(path.stat().st_size for path in folder.iterdir())
    recover(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) == size
    good = steps(folder)
    assert good == list(range(len(good)))
    assert len(good) >= (0, 4, 7)[place]
    write(folder, len(good), len(good) + 2)
    assert recover(folder) == 0
    assert steps(folder) == list(range(len(good) + 2))


def test_going_back_is_said_plainly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, 0, 4)
    start = len(records(path)[0])
    content = bytearray(path.read_bytes())
    content[start + 20] ^= 1
    path.write_bytes(content)
    lost = len(content) - start
    with caplog.at_level(logging.WARNING):
        assert recover(tmp_path) == lost
    assert caplog.messages == [
        f"{path}: the record at byte {start} is damaged; the run goes back to the event before it, "
        f"and the {lost} bytes from there on are set aside as 000001.damaged-N"
    ]


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """What a full disk does to a file: the kernel takes a part of a write, or nothing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("spare", [0, 1, 20])
def test_a_full_disk_ends_the_run_and_leaves_whole_events(tmp_path: Path, spare: int) -> None:
    with Journal(tmp_path) as file:
        file.append(event(0))
        size = journal.segments(tmp_path)[0].stat().st_size
        with (
            files_of_at_most(size + spare),
            pytest.raises(JournalError, match=r"000001.log: .*(too large|wrote \d+ of \d+ bytes; is the disk full)"),
        ):
            file.append(event(1))
        with pytest.raises(JournalError, match="an earlier event was refused"):
            file.append(event(1))
    assert journal.segments(tmp_path)[0].stat().st_size == size
    write(tmp_path, 1, 3)
    assert steps(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("retain", ["archive", "checkpoint"])
def test_segments_that_nobody_resumes_from_are_archived_or_deleted(tmp_path: Path, retain: str) -> None:
    for number in range(4):
        write(tmp_path, 2 * number, 2 * number + 2)
    journal.snapshot_of(tmp_path / "000002.log").write_bytes(b"old")
    assert journal.is_whole(tmp_path)
    journal.retire(tmp_path, before=3, retain=retain)
    assert [path.name for path in sorted(tmp_path.glob("0*"))] == ["000003.log", "000004.log"]
    assert steps(tmp_path) == list(range(0 if retain == "archive" else 4, 8))
    assert [found.step for found in journal.read(tmp_path, start=4) if isinstance(found, Evaluated)] == [6, 7]
    assert journal.is_whole(tmp_path) == (retain == "archive")
    write(tmp_path, 8, 9)
    assert steps(tmp_path)[-1] == 8, "numbers go on where all live segments are known"
    assert journal.segments(tmp_path)[-1].name == "000005.log"


def test_a_journal_rolls_over_without_a_gap_and_counts_its_time(tmp_path: Path) -> None:
    events: list[AnyEvent] = [event(number) for number in range(4)]
    with Journal(tmp_path) as file:
        for one in events[:2]:
            file.append(one)
        assert file.roll() == tmp_path / "000002.snapshot"
        for one in events[2:]:
            file.append(one)
        assert file.busy_s > 0
    assert [codec.encode(one) for one in journal.read(tmp_path)] == [codec.encode(one) for one in events]
