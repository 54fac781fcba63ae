"""Flights: who may go, and who is told what."""

import asyncio

import pytest

from engine.clock import run_virtual
from engine.errors import GeneratorError
from engine.inference.sglang_flights import Flight, Flights


async def flying(flights: Flights, name: str = "r", *, has_more: bool = False) -> Flight:
    """A request whose first part is at the server."""
    flight = flights.begin(name)
    await flights.enter(flight)
    flights.send(flight, has_more=has_more)
    return flight


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


def test_a_part_that_is_cut_short_is_not_the_last_one_until_another_has_been_heard_of() -> None:
    async def main() -> None:
        flights = Flights()
        flight = await flying(flights)
        flights.hear(flight, has_more=False)
        flights.cut(flight)
        flights.hear(flight, has_more=False)  # what comes until it has ended
        waiting = asyncio.create_task(flights.until_whole())
        await asyncio.sleep(1.0)
        assert not waiting.done()
        flights.send(flight, has_more=False)
        await asyncio.sleep(1.0)
        assert not waiting.done(), "the rest may be on its way"
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
