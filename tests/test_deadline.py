"""Patience: one deadline for many waits in a row."""

import asyncio

import pytest

from engine.clock import run_virtual
from engine.deadline import Patience


def test_waits_that_are_short_enough_may_be_many() -> None:
    async def main() -> float:
        async with Patience(2.0) as patience:
            for _ in range(10):
                await asyncio.sleep(1.9)
                patience.renew()
        await asyncio.sleep(5.0)  # no timer of it is left to cancel anybody
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(24.0)


@pytest.mark.parametrize("waits", [(), (0.5,), (1.9, 0.1), (1.0, 1.0, 1.0)])
def test_one_that_is_too_long_ends_so_many_seconds_behind_the_last_renewal(waits: tuple[float, ...]) -> None:
    async def wait() -> None:
        async with Patience(2.0) as patience:
            for seconds in waits:
                await asyncio.sleep(seconds)
                patience.renew()
            await asyncio.sleep(100.0)

    async def main() -> float:
        with pytest.raises(TimeoutError):
            await wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(sum(waits) + 2.0)


def test_a_cancellation_from_outside_stays_one() -> None:
    async def wait() -> None:
        async with Patience(2.0):
            await asyncio.sleep(100.0)

    async def main() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())
