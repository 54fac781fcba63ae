"""The turnstile: the most urgent first, ties by arrival, and no place is lost to whoever is cancelled."""

import asyncio
import heapq
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given

from engine.clock import run_virtual
from engine.turnstile import Precedence, Turnstile

Visit = tuple[int, int, int, int | None]
"""When somebody comes, with what precedence, how long they stay, and when they are cancelled; whole seconds."""
VISITS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 4), st.none() | st.integers(0, 9)), max_size=30
)


@dataclass
class Served:
    """What became of visits: who passed, in order, and how many were inside at once."""

    passed: list[int]
    max_inside: int
    turnstile: Turnstile


def serve(visits: list[Visit], *, num_places: int) -> Served:
    """Nothing happens at the same time as anything else, unless it is the consequence of it."""

    async def main() -> Served:
        turnstile = Turnstile(num_places)
        served = Served([], 0, turnstile)
        num_inside = 0

        async def visit(number: int, precedence: int, stays_s: int) -> None:
            nonlocal num_inside
            async with turnstile.place((0.0, float(precedence))):
                num_inside += 1
                served.passed.append(number)
                served.max_inside = max(served.max_inside, num_inside)
                try:
                    await asyncio.sleep(stays_s)
                finally:
                    num_inside -= 1

        async def come(number: int, visit_: Visit) -> None:
            comes_s, precedence, stays_s, cancelled_s = visit_
            await asyncio.sleep(comes_s + number / 1000)
            going = asyncio.create_task(visit(number, precedence, stays_s))
            if cancelled_s is not None:
                await asyncio.sleep(cancelled_s + 0.5)
                going.cancel()
            await asyncio.wait({going})

        async with asyncio.TaskGroup() as tasks:
            for number, one in enumerate(visits):
                tasks.create_task(come(number, one))
        return served

    return run_virtual(main())


def expected(visits: list[Visit], *, num_places: int) -> list[int]:
    """The order in which visits pass, by a simulation that looks for the best waiter each time."""
    comes, ends, gives_up = 2, 1, 0
    agenda = [(comes_s + number / 1000, comes, number) for number, (comes_s, *_) in enumerate(visits)]
    heapq.heapify(agenda)
    free, line, inside, passed = num_places, list[int](), set[int](), list[int]()
    while agenda:
        now, what, number = heapq.heappop(agenda)
        comes_s, _, _, cancelled_s = visits[number]
        if what == comes:
            line.append(number)
            if cancelled_s is not None:
                heapq.heappush(agenda, (comes_s + number / 1000 + cancelled_s + 0.5, gives_up, number))
        elif number in inside:
            inside.remove(number)
            free += 1
        elif number in line:
            line.remove(number)
        while free and line:
            best = min(line, key=lambda one: (visits[one][1], visits[one][0] + one / 1000))
            line.remove(best)
            inside.add(best)
            passed.append(best)
            free -= 1
            heapq.heappush(agenda, (now + visits[best][2], ends, best))
    return passed


@given(visits=VISITS, num_places=st.integers(1, 4))
def test_visits_pass_by_precedence_and_then_by_arrival_whoever_is_cancelled(
    visits: list[Visit], num_places: int
) -> None:
    served = serve(visits, num_places=num_places)
    assert served.passed == expected(visits, num_places=num_places)
    assert served.max_inside <= num_places
    assert (served.turnstile.num_free, served.turnstile.num_waiting) == (num_places, 0)


async def hold(turnstile: Turnstile, until: asyncio.Event) -> None:
    async with turnstile.place():
        await until.wait()


async def note(turnstile: Turnstile, name: str, names: list[str], precedence: Precedence = ()) -> None:
    async with turnstile.place(precedence):
        names.append(name)


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_waiter_that_is_cancelled_when_its_place_was_given_to_it_gives_it_on() -> None:
    async def main() -> tuple[list[str], int]:
        turnstile, names = Turnstile(1), list[str]()
        async with turnstile.place():
            first = asyncio.create_task(note(turnstile, "first", names))
            second = asyncio.create_task(note(turnstile, "second", names))
            await settle()
        first.cancel()  # the place is its own, and it has not run since
        await asyncio.wait({first, second})
        return names, turnstile.num_free

    assert run_virtual(main()) == (["second"], 1)


def test_whoever_comes_between_a_place_given_and_taken_waits() -> None:
    async def main() -> list[str]:
        turnstile, names = Turnstile(1), list[str]()
        async with turnstile.place():
            waiting = asyncio.create_task(note(turnstile, "waited", names, (1.0,)))
            await settle()
        await note(turnstile, "came", names)
        await waiting
        return names

    assert run_virtual(main()) == ["waited", "came"]


def test_the_empty_precedence_goes_before_all_others() -> None:
    async def main() -> list[str]:
        turnstile, names, until = Turnstile(1), list[str](), asyncio.Event()
        holding = asyncio.create_task(hold(turnstile, until))
        await settle()
        others = [
            asyncio.create_task(note(turnstile, name, names, precedence))
            for name, precedence in (("late", (1.0, -9.0)), ("early", (0.0, -1.0)), ("long", (0.0, -2.0)), ("any", ()))
        ]
        await settle()
        until.set()
        await asyncio.wait({holding, *others})
        return names

    assert run_virtual(main()) == ["any", "long", "early", "late"]


def test_those_who_gave_up_are_never_most_of_the_line() -> None:
    async def main() -> tuple[int, int]:
        turnstile, until = Turnstile(1), asyncio.Event()
        holding = asyncio.create_task(hold(turnstile, until))
        await settle()
        names: list[str] = []
        waiting = [asyncio.create_task(note(turnstile, "x", names)) for _ in range(100)]
        await settle()
        for one in waiting[:99]:
            one.cancel()
        await settle()
        length = len(turnstile._line)
        until.set()
        await asyncio.wait({holding, *waiting})
        return length, len(names)

    assert run_virtual(main()) == (2, 1)


def test_a_turnstile_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="num_places=0"):
        Turnstile(0)
