"""The watchdog on virtual time: silent while things happen, plain when they do not, and an end where nothing helps."""

import asyncio
import logging

import pytest

from engine.clock import run_virtual
from engine.errors import StalledError
from engine.watchdog import Watchdog


class Stuck:
    """A part that waits for something that nobody will bring, unless it is rescued."""

    def __init__(self) -> None:
        self.helped = asyncio.Event()
        self.texts: list[str] = []

    async def wait_for_help(self) -> None:
        await self.helped.wait()

    async def rescue(self) -> None:
        self.helped.set()


async def watched(stuck: Stuck, dog: Watchdog) -> None:
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(dog.watch(), name="watchdog")
        await asyncio.create_task(stuck.wait_for_help(), name="part-7")
        watching.cancel()


def test_who_waits_for_what_and_since_when_is_said_and_dumped_and_help_is_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> tuple[Stuck, float]:
        stuck = Stuck()
        dog = Watchdog(patience_s=80.0, limit_s=1000.0, dump=stuck.texts.append, rescue=stuck.rescue)
        await watched(stuck, dog)
        return stuck, asyncio.get_running_loop().time()

    with caplog.at_level(logging.WARNING):
        stuck, ended_s = run_virtual(main())
    assert ended_s == 80.0
    (text,) = stuck.texts
    assert text in caplog.messages
    lines = text.splitlines()
    assert lines[0] == "nothing has happened for 80 s; who waits for what:"
    (line,) = (line for line in lines if "part-7" in line)
    assert line.startswith("  part-7: for 70 s in Stuck.wait_for_help (test_watchdog.py:")
    # It had not begun at the first look.
    assert " > Event.wait (locks.py:" in line


def test_what_nothing_helps_ends_with_an_error_that_names_it() -> None:
    stuck = Stuck()
    with pytest.raises(ExceptionGroup) as caught:
        run_virtual(watched(stuck, Watchdog(patience_s=80.0, limit_s=200.0, dump=stuck.texts.append)))
    assert caught.group_contains(StalledError, match="nothing has happened for 200 s: .* waits in ")
    assert len(stuck.texts) == 2, "once when it was noticed, and once at the end"


def test_progress_keeps_it_quiet_and_lets_it_speak_again() -> None:
    async def main() -> list[str]:
        stuck = Stuck()
        dog = Watchdog(patience_s=80.0, limit_s=1000.0, dump=stuck.texts.append)
        watching = asyncio.create_task(dog.watch(), name="watchdog")
        for _ in range(20):
            await asyncio.sleep(60)
            dog.progress()
        assert stuck.texts == []
        for _ in range(2):
            await asyncio.sleep(200)
            dog.progress()
        watching.cancel()
        return stuck.texts

    assert len(run_virtual(main())) == 2


def test_many_that_wait_at_one_place_are_counted() -> None:
    async def main() -> str:
        texts: list[str] = []
        never = asyncio.Event()
        waiting = [asyncio.create_task(never.wait(), name=f"path-{number:03d}") for number in range(300)]
        watching = asyncio.create_task(Watchdog(patience_s=8.0, limit_s=99.0, dump=texts.append).watch())
        await asyncio.sleep(20)
        for task in (*waiting, watching):
            task.cancel()
        return texts[0]

    text = run_virtual(main())
    assert len(text.splitlines()) == 3
    assert "and 280 more: for 8 s in Event.wait" in text
