"""SglangGenerator and requests in two parts, and aborts at every place: one stream to the caller, whatever happens."""

import asyncio
from contextlib import aclosing
from typing import Literal

import msgspec
import numpy as np
import pytest

from engine.errors import GeneratorLostError
from engine.inference.sglang import SglangGenerator
from engine.inference.sglang_config import SglangConfig
from engine.types import Completion, UpdateMode, WeightRef
from tests.fake_sglang import FakeSglang, sampled, write_model
from tests.test_sglang_client import ask, collect, connected, other_tasks, tokens_of, versions_of

pytestmark = pytest.mark.timeout(60)

REF = WeightRef(version=3, path="/weights/3")
Place = Literal["first", "between", "second"]
"""Where a request of 2 + 6 tokens stands: in its first part, behind it, in its second part."""
PROMPT = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


class Midway:
    """A request of 2 + 6 tokens that stands at a place and goes no further until it is told to."""

    def __init__(self, server: FakeSglang, generator: SglangGenerator) -> None:
        self.server = server
        self._stream = generator.generate(ask(num_new=8, interval=1, fork_after=2))
        self._chunks: list[Completion] = []
        self._rest: asyncio.Task[None] | None = None

    async def stand(self, place: Place) -> None:
        num_tokens = 1 if place == "first" else 2
        self.server.change(limit=num_tokens)
        while len(tokens_of(self._chunks)) < num_tokens:
            self._chunks.append(await anext(self._stream))
        if place == "second":
            self._begin()
            await self.server.until(lambda: len(self.server.bodies("/generate")) == 2)
            await self.server.until(lambda: [len(one.versions) for one in self.server.running.values()] == [2])

    async def finish(self) -> list[Completion]:
        """All chunks of the request."""
        self.server.change(limit=None)
        await self._begin()
        return self._chunks

    def _begin(self) -> asyncio.Task[None]:
        self._rest = self._rest or asyncio.create_task(self._read())
        return self._rest

    async def _read(self) -> None:
        async with aclosing(self._stream):
            self._chunks += [chunk async for chunk in self._stream]


# -- two parts ------------------------------------------------------------------------------------------------------


def test_a_request_that_may_be_forked_is_two_to_the_server_and_one_to_the_caller(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            request = ask(num_new=7, interval=2, fork_after=3, seed=5, stop=("x",), temperature=0.5)
            chunks = await collect(generator, request)
            first, second = server.bodies("/generate")
            assert first["input_ids"] == PROMPT
            assert second["input_ids"] == [*PROMPT, *map(sampled, range(3))]
            assert first["sampling_params"].pop("max_new_tokens") == 3
            assert second["sampling_params"].pop("max_new_tokens") == 4
            assert first["sampling_params"] == second["sampling_params"]
            assert first["extra_key"] == second["extra_key"]
            assert not first["rid"].startswith(second["rid"])
            assert not second["rid"].startswith(first["rid"])
            assert [chunk.token_ids.size for chunk in chunks] == [3, 3, 1]
            assert [chunk.finish_reason for chunk in chunks] == ["", "", "length"]
            assert tokens_of(chunks) == [*map(sampled, range(3)), *map(sampled, range(4))]
            # The second part computes its last token, as every next token does, and reads all else.
            assert [chunk.num_prefilled_tokens for chunk in chunks] == [4, 0, 0]
            assert [chunk.num_cached_tokens for chunk in chunks] == [0] * 3
            assert (await generator.statistics()).num_requests == 1
            assert "/abort_request" not in server.paths()

    asyncio.run(main())


@pytest.mark.parametrize("is_incremental", [True, False])
def test_a_fork_reads_the_probe_while_its_parent_runs(model: str, is_incremental: bool) -> None:
    async def main() -> None:
        async with connected(model, FakeSglang(is_incremental=is_incremental)) as (server, generator):
            parent = Midway(server, generator)
            await parent.stand("second")
            server.change(limit=3)
            branch = (*PROMPT, sampled(0), sampled(1))
            (chunk,) = await collect(generator, ask("branch", prompt=branch, num_new=1))
            assert chunk.num_cached_tokens == len(branch) - 1
            assert len(await parent.finish()) == 8

    asyncio.run(main())


@pytest.mark.parametrize("fork_after", [0, 6, 7])
def test_there_is_one_part_where_no_fork_can_begin_before_the_end(model: str, fork_after: int) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            chunks = await collect(generator, ask(num_new=6, fork_after=fork_after))
            assert [body["sampling_params"]["max_new_tokens"] for body in server.bodies("/generate")] == [6]
            assert chunks[-1].finish_reason == "length"

    asyncio.run(main())


def test_a_request_that_stops_in_its_first_part_has_no_second_one(model: str) -> None:
    async def main(end: int) -> None:
        async with connected(model) as (server, generator):
            chunks = await collect(generator, ask(num_new=8, fork_after=3, stop_token_ids=(sampled(end),)))
            assert len(server.bodies("/generate")) == 1
            assert tokens_of(chunks) == [sampled(n) for n in range(end + 1)]
            assert [chunk.finish_reason for chunk in chunks] == ["", "stop"][-len(chunks) :]

    for end in (0, 1, 2):
        asyncio.run(main(end))


# -- updates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "num_old"), [("first", 1), ("between", 2), ("second", 4)], ids=["first", "between", "second"]
)
@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_an_update_at_any_place_keeps_the_promise_of_its_mode(
    model: str, mode: UpdateMode, place: Place, num_old: int
) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            request = Midway(server, generator)
            await request.stand(place)
            await generator.update_weights(REF, mode=mode)
            chunks = await request.finish()
            assert versions_of(chunks) == [0] * num_old + [3] * (8 - num_old)
            is_mixed = [chunk.is_mixed for chunk in chunks for _ in chunk.token_ids]
            assert is_mixed == [False] * num_old + [mode == "in_place"] * (8 - num_old)
            # In place a later part goes on from an earlier one's KV, under the key that they have.
            assert {body["extra_key"] for body in server.bodies("/generate")} == {"v0"}
            prefilled = [chunk.num_prefilled_tokens for chunk in chunks]
            assert sum(prefilled) == 4 + (5 if (mode, place) == ("retract", "between") else 0)
            assert set(versions_of(await collect(generator, ask("later")))) == {3}

    asyncio.run(main())


@pytest.mark.parametrize("place", ["first", "between", "second"])
def test_a_drain_waits_for_both_parts(model: str, place: Place) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            request = Midway(server, generator)
            await request.stand(place)
            updating = asyncio.create_task(generator.update_weights(REF, mode="drain"))
            await other_tasks()
            later = asyncio.create_task(collect(generator, ask("later")))
            assert versions_of(await request.finish()) == [0] * 8
            await updating
            assert set(versions_of(await later)) == {3}
            order = [path for path in server.paths() if path in ("/generate", "/update_weights_from_disk")]
            assert order == ["/generate", "/generate", "/update_weights_from_disk", "/generate"]

    asyncio.run(main())


@pytest.mark.parametrize("fork_after", [0, 2])
def test_a_drain_waits_for_what_is_on_its_way(model: str, fork_after: int) -> None:
    """The server would let it in behind the update that waits, or between two parts of it."""

    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(holding={"/generate"})
            running = asyncio.create_task(collect(generator, ask(num_new=8, fork_after=fork_after)))
            await server.until_called("/generate")
            updating = asyncio.create_task(generator.update_weights(REF, mode="drain"))
            await other_tasks()
            assert "/update_weights_from_disk" not in server.paths()
            server.change(holding=set())
            assert versions_of(await running) == [0] * 8
            await updating

    asyncio.run(main())


def test_a_drain_of_a_request_that_nobody_reads_on_fails_in_its_time(model: str) -> None:
    async def main() -> None:
        async with connected(model, update_timeout_s=0.1) as (server, generator):
            request = Midway(server, generator)
            await request.stand("between")
            with pytest.raises(GeneratorLostError, match=r"a request that is drained has not gone on within 0\.1 s$"):
                await generator.update_weights(REF, mode="drain")
            assert versions_of(await request.finish()) == [0] * 8

    asyncio.run(main())


# -- aborts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "num_tokens"), [("first", 1), ("between", 2), ("second", 4)])
def test_an_abort_at_any_place_ends_the_stream(model: str, place: Place, num_tokens: int) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            request = Midway(server, generator)
            await request.stand(place)
            await generator.abort("r")
            chunks = await request.finish()
            assert len(tokens_of(chunks)) == num_tokens
            assert [chunk.finish_reason for chunk in chunks] == [""] * num_tokens + ["aborted"]
            assert (await generator.statistics()).num_running == 0
            assert (await collect(generator, ask("r")))[-1].finish_reason == "length"

    asyncio.run(main())


@pytest.mark.parametrize("fork_after", [0, 2])
def test_a_request_that_waits_for_an_update_can_be_aborted(model: str, fork_after: int) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(holding={"/update_weights_from_disk"})
            updating = asyncio.create_task(generator.update_weights(REF, mode="retract"))
            await server.until_called("/update_weights_from_disk")
            waiting = asyncio.create_task(collect(generator, ask(fork_after=fork_after)))
            await other_tasks()
            assert (await generator.statistics()).num_waiting == 1
            await generator.abort("r")
            (chunk,) = await waiting
            assert (chunk.token_ids.size, chunk.finish_reason) == (0, "aborted")
            server.change(holding=set())
            await updating
            assert "/generate" not in server.paths(), "the server never hears of it"
            assert (await generator.statistics()).num_requests == 0

    asyncio.run(main())


def test_a_request_that_the_server_has_not_taken_yet_can_be_aborted(model: str) -> None:
    """An abort may overtake its request; the server then knows nobody of that name, and says nothing."""

    async def main() -> None:
        async with connected(model) as (server, generator):
            server.change(holding={"/generate"}, limit=2)
            running = asyncio.create_task(collect(generator, ask()))
            await server.until_called("/generate")
            await generator.abort("r")
            server.change(holding=set())
            chunks = await running
            assert chunks[-1].finish_reason == "aborted"
            assert len(tokens_of(chunks)) <= 2

    asyncio.run(main())


def test_the_first_part_of_a_server_without_a_cache_key_is_read_by_the_second(model: str) -> None:
    async def main() -> None:
        async with connected(model, config=SglangConfig(salt_by_version=False)) as (_, generator):
            chunks = await collect(generator, ask(num_new=6, fork_after=3))
            assert np.array([chunk.num_prefilled_tokens for chunk in chunks]).sum() == 4

    asyncio.run(main())


def test_a_scope_is_a_part_of_the_key_that_both_parts_read_under(model: str) -> None:
    async def main() -> None:
        async with connected(model) as (server, generator):
            await collect(generator, msgspec.structs.replace(ask(num_new=8, fork_after=2), cache_scope="tenant"))
            assert [body["extra_key"] for body in server.bodies("/generate")] == ["v0/tenant", "v0/tenant"]

    asyncio.run(main())
