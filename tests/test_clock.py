"""Virtual time: it moves only when nothing is ready, and a deadlock is an error that names who waits."""

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import given

from engine.clock import run_virtual
from engine.errors import StalledError


async def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_year_of_waiting_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 24 * 3600)
        return await now_s()

    assert run_virtual(main()) == 365 * 24 * 3600


def test_the_clock_starts_at_zero_and_stands_still_while_something_is_ready() -> None:
    async def main() -> tuple[float, float]:
        start_s = await now_s()
        for _ in range(1_000):
            await asyncio.sleep(0)
        return start_s, await now_s()

    assert run_virtual(main()) == (0.0, 0.0)


@given(delays_s=st.lists(st.integers(0, 1_000), min_size=1, max_size=20))
def test_timers_fire_in_order_each_at_its_time(delays_s: list[int]) -> None:
    fired: list[tuple[float, int]] = []

    async def wait(delay_s: int) -> None:
        await asyncio.sleep(delay_s)
        fired.append((await now_s(), delay_s))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for delay_s in delays_s:
                group.create_task(wait(delay_s))

    run_virtual(main())
    assert [moment_s for moment_s, _ in fired] == pytest.approx(sorted(delays_s))
    assert [delay_s for _, delay_s in fired] == sorted(delays_s)


def test_a_deadline_fires_at_its_virtual_moment() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return await now_s()

    assert run_virtual(main()) == 30.0


def test_a_deadlock_names_the_tasks_that_wait() -> None:
    async def main() -> None:
        queue = asyncio.Queue[int]()
        async with asyncio.TaskGroup() as group:
            group.create_task(queue.get(), name="reader")
            group.create_task(asyncio.Event().wait(), name="weights")
            group.create_task(asyncio.sleep(1), name="sleeper")

    with pytest.raises(StalledError, match=r"nothing can ever happen again; waiting: Task-\d+, reader, weights$"):
        run_virtual(main())


def test_tasks_are_cancelled_after_a_deadlock() -> None:
    closed: list[str] = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            closed.append("main")

    with pytest.raises(StalledError):
        run_virtual(main())
    assert closed == ["main"]


def test_an_error_of_the_program_passes_unchanged() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise KeyError("row")

    with pytest.raises(KeyError, match="row"):
        run_virtual(main())


def test_a_thread_may_wake_the_loop_while_a_timer_runs() -> None:
    async def main() -> int:
        answer = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon_threadsafe(answer.set_result, 42)
        async with asyncio.timeout(1_000):
            return await answer

    assert run_virtual(main()) == 42
