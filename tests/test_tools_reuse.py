"""Results used twice: equal calls that overlap, and equal calls later, in memory and in a file."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from engine.clock import run_virtual
from engine.errors import ConfigError
from engine.types import ToolCall, ToolResult
from tools.call_cache import CallCache, ImportedCache, MemoryCache, TieredCache, call_key
from tools.call_cache_sqlite import SqliteCache
from tools.executor import Executor
from tools.faults import Behaviour, unsteady_tool
from tools.schema import Tool, tool


class Counting:
    """A tool and how often it ran."""

    def __init__(self, *behaviours: Behaviour, latency_s: float = 1.0, **limits: Any) -> None:
        self.num_runs = 0
        inner = unsteady_tool(behaviours, latency_s=latency_s)

        @tool(name="look_up", **limits)
        async def look_up(query: str, top_k: int = 3) -> str:
            """L."""
            self.num_runs += 1
            return await inner.call({"query": f"{query} {self.num_runs}"})

        self.tool: Tool = look_up


def ask(query: str = "q", **arguments: Any) -> ToolCall:
    return ToolCall(name="look_up", arguments={"query": query, **arguments})


def facts(results: Sequence[ToolResult]) -> list[tuple[str, str]]:
    return [(result.text, result.outcome) for result in results]


def test_equal_calls_that_overlap_cause_one_execution() -> None:
    counting = Counting(is_pure=True)

    async def main() -> None:
        async with Executor([counting.tool]) as executor:
            results = await asyncio.gather(
                executor.call(ask()), executor.call(ask(top_k="3")), executor.call(ask("r")), executor.call(ask())
            )
            assert facts(results) == [("q 1", "executed"), ("q 1", "shared"), ("r 2", "executed"), ("q 1", "shared")]
            assert [r.duration_s for r in results] == [1.0, 0.0, 1.0, 0.0]
            counts = executor.statistics().tools["look_up"]
            assert (counts.num_calls, counts.num_ok, counts.num_shared) == (4, 2, 2)
            assert (await executor.call(ask())).was_executed, "without a cache nothing outlives its flight"

    run_virtual(main())


def test_without_reuse_every_call_runs_also_where_there_is_a_cache() -> None:
    counting = Counting(is_pure=True)

    async def main() -> None:
        async with Executor([counting.tool], cache=MemoryCache(max_bytes=1000), reuses=False) as executor:
            pair = await asyncio.gather(executor.call(ask()), executor.call(ask()))
            results = [*pair, await executor.call(ask())]
            assert facts(results) == [("q 1", "executed"), ("q 2", "executed"), ("q 3", "executed")]

    run_virtual(main())


def test_a_shared_failure_is_shared_and_not_remembered() -> None:
    counting = Counting("raises", is_pure=True)

    async def main() -> None:
        async with Executor([counting.tool], cache=MemoryCache(max_bytes=1000)) as executor:
            pair = await asyncio.gather(executor.call(ask()), executor.call(ask()))
            assert [(r.status, r.outcome) for r in pair] == [("error", "executed"), ("error", "shared")]
            assert facts([await executor.call(ask()), await executor.call(ask())]) == [
                ("q 2", "executed"),
                ("q 2", "cached"),
            ]

    run_virtual(main())


def test_when_the_first_is_cancelled_the_next_one_runs_it_again() -> None:
    counting = Counting(is_pure=True)

    async def main() -> None:
        async with Executor([counting.tool]) as executor:
            calls = [asyncio.create_task(executor.call(ask())) for _ in range(3)]
            await asyncio.sleep(0.5)
            calls[0].cancel()
            results = [await call for call in calls[1:]]
            assert facts(results) == [("q 2", "executed"), ("q 2", "shared")]
            assert asyncio.get_running_loop().time() == 1.5

    run_virtual(main())


def test_a_cancelled_follower_disturbs_nobody() -> None:
    counting = Counting(is_pure=True)

    async def main() -> None:
        async with Executor([counting.tool]) as executor:
            calls = [asyncio.create_task(executor.call(ask())) for _ in range(3)]
            await asyncio.sleep(0.5)
            calls[1].cancel()
            assert facts([await calls[0], await calls[2]]) == [("q 1", "executed"), ("q 1", "shared")]

    run_virtual(main())


def test_an_undeclared_tool_is_executed_each_time() -> None:
    counting = Counting()

    async def main() -> None:
        async with Executor([counting.tool], cache=MemoryCache(max_bytes=1000)) as executor:
            await asyncio.gather(executor.call(ask()), executor.call(ask()))
            await executor.call(ask())

    run_virtual(main())
    assert counting.num_runs == 3


def test_what_the_engine_calls_itself_is_not_kept() -> None:
    counting = Counting(is_pure=True, visible=False)

    async def main() -> None:
        async with Executor([counting.tool], cache=MemoryCache(max_bytes=1000)) as executor:
            await executor.call(ask())
            await executor.call(ask())

    run_virtual(main())
    assert counting.num_runs == 2


def test_where_history_matters_equal_calls_behind_equal_calls_are_one() -> None:
    counting = Counting(depends_on_history=True)
    one, other = ask("a"), ask("b")

    async def main() -> None:
        async with Executor([counting.tool], cache=MemoryCache(max_bytes=1000)) as executor:
            for history in ([one], [other], [one, other], [other, one], [one]):
                await executor.call(ask(), history=history)

    run_virtual(main())
    assert counting.num_runs == 4


def test_keys_tell_tools_versions_arguments_and_histories_apart() -> None:
    pure = Counting(is_pure=True).tool
    past = Counting(depends_on_history=True).tool
    newer = Counting(is_pure=True, version="2").tool
    history = [ask("a")]
    keys = [
        call_key(pure, {"a": 1, "b": 2}),
        call_key(newer, {"a": 1, "b": 2}),
        call_key(pure, {"a": 1, "b": "2"}),
        call_key(past, {"a": 1, "b": 2}, history=history),
    ]
    assert len(set(keys)) == 4
    assert None not in keys
    assert call_key(pure, {"b": 2, "a": 1}, history=history) == keys[0]
    torn = ToolCall(name="", arguments={}, malformed="torn")
    assert call_key(past, {"a": 1, "b": 2}, history=[torn, *history]) == keys[3], "what never ran changed nothing"
    assert call_key(Counting().tool, {}) is None
    assert call_key(pure, {"a": "half a character: \ud800"}) is None
    assert call_key(pure, {"a": object()}) is None


# -- caches -----------------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=6)


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | TEXTS), max_size=40), st.integers(0, 20))
def test_memory_holds_what_was_used_last_and_never_more_than_its_bound(
    steps: list[tuple[int, str | None]], max_bytes: int
) -> None:
    cache, model = MemoryCache(max_bytes=max_bytes), dict[bytes, str]()
    for number, text in steps:
        key = bytes([number])
        if text is None:
            assert cache.look(key) == model.get(key)
            if key in model:
                model[key] = model.pop(key)
        else:
            cache.keep(key, text)
            model.pop(key, None)
            if len(text.encode("utf-8", "replace")) <= max_bytes:  # one that can never fit drives nothing out
                model[key] = text
            while sum(len(t.encode("utf-8", "replace")) for t in model.values()) > max_bytes:
                model.pop(next(iter(model)))
    found = {bytes([number]): cache.look(bytes([number])) for number in range(6)}
    assert {key: text for key, text in found.items() if text is not None} == model


def test_tiers_teach_the_nearer_what_the_farther_know() -> None:
    async def main() -> None:
        near, far = MemoryCache(max_bytes=100), MemoryCache(max_bytes=100)
        written = ImportedCache({b"w": "written"})
        cache = TieredCache([near, far, written])
        far.keep(b"f", "far")
        assert await cache.get(b"f") == near.look(b"f") == "far"
        assert await cache.get(b"w") == near.look(b"w") == far.look(b"w") == "written"
        assert await cache.get(b"x") is None
        await cache.put(b"n", "new")
        assert near.look(b"n") == far.look(b"n") == "new"
        assert await written.get(b"n") is None

    run_virtual(main())


async def used(cache: CallCache, count: int, *, size: int) -> list[int]:
    """Put `count` texts, and tell which of them are still there."""
    for number in range(count):
        await cache.put(bytes([number]), "x" * size)
    return [number for number in range(count) if await cache.get(bytes([number])) is not None]


def test_a_file_outlives_its_process_and_is_shared_with_others(tmp_path: Path) -> None:
    async def main() -> None:
        one, other = (SqliteCache(tmp_path / "calls.db", max_bytes=1000) for _ in range(2))
        await one.put(b"k", "text \ud800 of a torn character")
        assert await other.get(b"k") == "text ? of a torn character"
        await one.put(b"k", "newer")
        assert await other.get(b"k") == "newer"
        await one.aclose()
        await other.aclose()
        third = SqliteCache(tmp_path / "calls.db", max_bytes=1000)
        assert await third.get(b"k") == "newer"
        assert await third.get(b"l") is None
        await third.aclose()

    asyncio.run(main())


def test_a_file_stays_within_its_bound_and_forgets_the_oldest(tmp_path: Path) -> None:
    async def main() -> None:
        cache = SqliteCache(tmp_path / "calls.db", max_bytes=1000)
        kept = await used(cache, 40, size=100)
        assert kept == list(range(40 - len(kept), 40))
        assert 8 <= len(kept) <= 10
        await cache.put(b"large", "x" * 1001)
        assert await cache.get(b"large") is None
        await cache.aclose()

    asyncio.run(main())


def test_a_file_that_is_no_cache_is_one_line_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database " * 100)
    for path, reason in ((tmp_path / "notes.txt", "file is not a database"), (tmp_path / "no" / "c.db", "unable to")):
        with pytest.raises(ConfigError, match=reason) as error:
            SqliteCache(path, max_bytes=1000)
        assert str(error.value).startswith(f"cache {path}: ")


def test_a_file_that_breaks_while_it_is_used_costs_executions_and_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Counting(latency_s=0.0, is_pure=True)

    async def main() -> None:
        async with Executor([counting.tool], cache=SqliteCache(tmp_path / "c.db", max_bytes=1000)) as executor:
            with sqlite3.connect(tmp_path / "c.db") as connection:
                connection.execute("DROP TABLE results")
            connection.close()
            assert facts([await executor.call(ask()), await executor.call(ask())]) == [
                ("q 1", "executed"),
                ("q 2", "executed"),
            ]

    asyncio.run(main())
    assert len(caplog.messages) == 1
    assert "no such table: results; calls are executed as if nothing were cached" in caplog.messages[0]
