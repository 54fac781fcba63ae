"""The router: trees stay where their prefix is, spread evenly, and move when their server fails."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import run_virtual
from engine.errors import ConfigError, GeneratorError
from engine.faults import FaultyGenerator
from engine.inference.router import Router
from engine.inference.scripted import Script, ScriptedGenerator
from engine.types import Completion, GenerateRequest, SamplingParams


def request(key: str, *, name: str = "r") -> GenerateRequest:
    return GenerateRequest(
        request_id=f"{key}/{name}",
        token_ids=np.array([1], np.int32),
        sampling=SamplingParams(max_new_tokens=4),
        affinity_key=key,
    )


class Farm:
    """Scripted servers behind a router; those in `broken` fail every request."""

    def __init__(self, count: int, *, token_s: float = 0.0) -> None:
        self.servers = [ScriptedGenerator(lambda r: Script(token_ids=[1, 2], token_s=token_s)) for _ in range(count)]
        self.broken: set[int] = set()
        wrapped = [
            FaultyGenerator(server, lambda r, number=number: "fail" if number in self.broken else "")
            for number, server in enumerate(self.servers)
        ]
        self.router = Router(wrapped)

    async def ask(self, key: str) -> list[Completion]:
        return [chunk async for chunk in self.router.generate(request(key))]

    def homes(self) -> dict[str, set[int]]:
        seen: dict[str, set[int]] = {}
        for number, server in enumerate(self.servers):
            for asked in server.requests:
                seen.setdefault(asked.affinity_key, set()).add(number)
        return seen


@given(keys=st.lists(st.sampled_from("abcdefgh"), max_size=40), count=st.integers(1, 4))
def test_all_requests_of_a_key_meet_one_server_and_keys_are_spread_evenly(keys: list[str], count: int) -> None:
    farm = Farm(count)

    async def main() -> None:
        for key in keys:
            await farm.ask(key)

    run_virtual(main())
    homes = farm.homes()
    assert set(homes) == set(keys)
    assert all(len(servers) == 1 for servers in homes.values())
    loads = Counter(server for servers in homes.values() for server in servers)
    assert max(loads.values(), default=0) - min((loads[n] for n in range(count)), default=0) <= 1


def test_a_forgotten_tree_makes_room_and_may_settle_anew() -> None:
    farm = Farm(2)

    async def main() -> None:
        for key in "abcd":
            await farm.ask(key)
        first = {key for key, servers in farm.homes().items() if servers == {0}}
        for key in first:
            farm.router.forget(key)
        farm.router.forget("never seen")
        for key in ("x", "y"):
            await farm.ask(key)

    run_virtual(main())
    assert farm.homes()["x"] == farm.homes()["y"] == {0}, "the emptier server takes the next trees"


def test_a_key_moves_to_another_server_after_a_failure_and_stays_there() -> None:
    farm = Farm(3)

    async def main() -> None:
        await farm.ask("a")
        (home,) = farm.homes()["a"]
        farm.broken.add(home)
        with pytest.raises(GeneratorError, match="scripted failure of a/r"):
            await farm.ask("a")
        await farm.ask("a")
        farm.broken.clear()
        await farm.ask("a")
        (other,) = farm.homes()["a"] - {home}
        assert [r.affinity_key for r in farm.servers[other].requests] == ["a", "a"]
        assert len(farm.servers[home].requests) == 1

    run_virtual(main())


def test_a_path_that_fails_late_does_not_move_its_tree_again() -> None:
    """By then the tree is being prefilled in its new home: a second move would throw that away."""
    is_broken = True

    def script(asked: GenerateRequest) -> Script:
        name = asked.request_id.split("/")[1]
        fails = is_broken and name in ("early", "late")
        return Script(token_ids=[1, 2], token_s=100.0 if name == "late" else 1.0, fails_after=1 if fails else None)

    servers = [ScriptedGenerator(script) for _ in range(3)]
    router = Router(servers)

    async def ask(key: str, name: str = "r") -> int:
        """Which server was asked."""
        before = [len(server.requests) for server in servers]
        async for _ in router.generate(msgspec.structs.replace(request(key, name=name), stream_interval=1)):
            pass
        return next(n for n, server in enumerate(servers) if len(server.requests) > before[n])

    async def main() -> None:
        nonlocal is_broken
        late = asyncio.create_task(ask("a", "late"))
        await asyncio.sleep(1.0)
        with pytest.raises(GeneratorError):
            await ask("a", "early")
        home = await ask("a")
        # Another server becomes the emptiest one.
        places = {key: await ask(key) for key in "bcdef"}
        for key, place in places.items():
            if place != home:
                router.forget(key)
        with pytest.raises(GeneratorError):
            await late
        is_broken = False
        assert await ask("a") == home

    run_virtual(main())


def test_a_single_server_keeps_its_trees_whatever_happens() -> None:
    farm = Farm(1)

    async def main() -> None:
        farm.broken.add(0)
        with pytest.raises(GeneratorError):
            await farm.ask("a")
        farm.broken.clear()
        assert (await farm.ask("a"))[-1].finish_reason == "stop"

    run_virtual(main())


def test_closing_a_stream_early_closes_the_servers() -> None:
    farm = Farm(1, token_s=1.0)
    closed: list[str] = []

    class Watched(ScriptedGenerator):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Completion, None]:
            try:
                async for chunk in farm.servers[0].generate(request):
                    yield chunk
            finally:
                closed.append(request.request_id)

    async def main() -> None:
        router = Router([Watched(lambda r: Script(token_ids=[1]))])
        stream = router.generate(request("a"))
        await anext(stream)
        await stream.aclose()

    run_virtual(main())
    assert closed == ["a/r"]


def test_a_router_needs_a_server() -> None:
    with pytest.raises(ConfigError, match="at least one generator"):
        Router([])


def test_who_waits_in_vain_and_asks_again_asks_another_one() -> None:
    """A server that hangs raises nothing: its requests are given up by those who wait for them."""
    farm = Farm(2, token_s=1000.0)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10.0):
                    await farm.ask("a")

    run_virtual(main())
    assert farm.homes() == {"a": {0, 1}}
