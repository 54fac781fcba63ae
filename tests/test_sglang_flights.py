"""Flights: who may go, who is told what, and when it is quiet."""

import asyncio
from collections.abc import Sequence

import pytest

from engine.clock import run_virtual
from engine.errors import GeneratorError
from engine.inference.sglang_flights import LONGEST_QUIET_S, QUIET_S, Flight, Flights


async def flying(flights: Flights, name: str = "r", *, has_more: bool = False) -> Flight:
    """A request whose first part is at the server."""
    flight = flights.begin(name)
    await flights.enter(flight)
    flights.send(flight, has_more=has_more)
    return flight


def quiet_after(tokens_at: Sequence[float]) -> float:
    """Seconds until it is quiet, where a request hears its tokens at these times."""

    async def main() -> float:
        flights = Flights()
        flight = await flying(flights)

        async def hear() -> None:
            for at in tokens_at:
                await asyncio.sleep(at - asyncio.get_running_loop().time())
                flights.hear(flight, has_more=False)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hear(), name="hear")
            await asyncio.sleep(0)
            begin = asyncio.get_running_loop().time()
            await flights.until_quiet()
            return asyncio.get_running_loop().time() - begin

    return run_virtual(main())


def test_it_is_quiet_when_nothing_has_been_heard_for_a_while() -> None:
    assert quiet_after([0.0]) == pytest.approx(QUIET_S)
    assert quiet_after([0.0, 0.03, 0.07]) == pytest.approx(0.07 + QUIET_S)
    # What is heard later than that was not on its way when the silence began.
    assert quiet_after([0.0, 0.03, 0.03 + 2 * QUIET_S]) == pytest.approx(0.03 + QUIET_S)


def test_one_who_never_falls_silent_is_waited_for_no_longer_than_that() -> None:
    assert quiet_after([n * QUIET_S / 2 for n in range(200)]) == pytest.approx(LONGEST_QUIET_S)


def test_it_is_quiet_at_once_where_nobody_runs() -> None:
    async def main() -> float:
        flights = Flights()
        flight = await flying(flights)
        flights.hear(flight, has_more=False)
        flights.end(flight)
        begin = asyncio.get_running_loop().time()
        await flights.until_quiet()
        return asyncio.get_running_loop().time() - begin

    assert run_virtual(main()) == 0.0


def test_seconds_at_the_gate_and_between_requests_are_not_busy() -> None:
    async def main() -> float:
        flights = Flights()
        for waits_s, runs_s in ((1.0, 2.0), (4.0, 8.0)):
            flights.turn("shut")
            flight = flights.begin("r")
            entering = asyncio.create_task(flights.enter(flight))
            await asyncio.sleep(waits_s)
            assert (flights.num_running, flights.num_waiting) == (0, 1)
            flights.turn("open")
            await entering
            await asyncio.sleep(runs_s)
            flights.end(flight)
            await asyncio.sleep(16.0)
        return flights.busy_s

    assert run_virtual(main()) == 10.0


def test_a_gate_that_shuts_again_at_once_lets_nobody_through() -> None:
    async def main() -> None:
        flights = Flights()
        flights.turn("shut")
        entering = asyncio.create_task(flights.enter(flights.begin("r")))
        await asyncio.sleep(0)
        flights.turn("open")
        flights.turn("shut")
        await asyncio.sleep(1.0)
        assert not entering.done()
        flights.turn("open")
        await entering

    run_virtual(main())


def test_all_is_whole_when_the_server_has_said_something_of_every_last_part() -> None:
    async def main() -> None:
        flights = Flights()
        flight, other = await flying(flights, has_more=True), await flying(flights, "other", has_more=True)
        flights.turn("draining")
        waiting = asyncio.create_task(flights.until_whole())
        flights.hear(flight, has_more=True)
        await flights.go_on(flight)
        flights.send(flight, has_more=False)
        flights.end(other)  # one that stopped in its first part
        await asyncio.sleep(1.0)
        assert not waiting.done(), "the second part may be on its way"
        flights.hear(flight, has_more=False)
        await waiting

    run_virtual(main())


def test_a_name_may_be_used_again_when_its_request_has_ended_and_not_before() -> None:
    async def main() -> None:
        flights = Flights()
        flight = await flying(flights)
        with pytest.raises(GeneratorError, match=r"^request r: a request of this id is in flight$"):
            flights.begin("r")
        flights.end(flight)
        flights.begin("r")

    run_virtual(main())
