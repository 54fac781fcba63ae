"""Hosts: what tools of one host share, when they try again, and when a host is left alone; under virtual time."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from engine.clock import run_virtual
from engine.errors import ConfigError
from engine.types import ToolCall, ToolResult
from tools.breaker import MAX_PAUSE_S, Breaker
from tools.executor import Executor
from tools.faults import Behaviour, slow_tool, unsteady_tool
from tools.hosts import backoff_s
from tools.latency import Latency, LatencyRecorder
from tools.schema import Tool, UnavailableError, tool


def run(main: Callable[[Executor], Awaitable[Any]], *tools: Tool, **options: Any) -> Any:
    async def enter() -> Any:
        async with Executor(tools, rng=random.Random(0), **options) as executor:
            return await main(executor)

    return run_virtual(enter())


def ask(name: str = "unsteady", query: str = "q") -> ToolCall:
    return ToolCall(name=name, arguments={"query": query})


def one_after_another(*behaviours: Behaviour, count: int, pause_s: float = 0.0, **limits: Any) -> list[ToolResult]:
    async def main(executor: Executor) -> list[ToolResult]:
        results: list[ToolResult] = []
        for _ in range(count):
            results.append(await executor.call(ask()))
            await asyncio.sleep(pause_s)
        return results

    return run(main, unsteady_tool(behaviours, **limits), breaker_threshold=3, breaker_pause_s=10.0)


def statuses(results: Sequence[ToolResult]) -> list[str]:
    return [result.status for result in results]


# -- retries ----------------------------------------------------------------------------------------------------------


def test_what_is_idempotent_is_tried_again_when_its_host_does_not_answer() -> None:
    async def main(executor: Executor) -> None:
        result = await executor.call(ask())
        assert (result.status, result.text) == ("ok", "q")
        counts = executor.statistics().tools["unsteady"]
        assert (counts.num_calls, counts.num_ok, counts.num_retries) == (1, 1, 2)
        assert 0.0 < asyncio.get_running_loop().time() < 0.25 + 0.5

    run(main, unsteady_tool(["down", "down"], is_idempotent=True, max_retries=2))


def test_retries_end_and_the_last_failure_is_the_result() -> None:
    (result,) = one_after_another("down", "down", "down", count=1, is_pure=True, max_retries=1)
    assert (result.status, result.text, result.was_executed) == ("error", "connection refused", True)


def test_a_tool_that_fails_by_itself_is_not_tried_again() -> None:
    (result,) = one_after_another("raises", count=1, is_idempotent=True, max_retries=5)
    assert (result.status, result.text) == ("error", "unsteady: ValueError: a bad day")


def test_retries_end_with_the_deadline_of_the_call() -> None:
    results = one_after_another(*["down"] * 50, count=1, is_idempotent=True, max_retries=50, timeout_s=3.0)
    assert [(r.status, r.duration_s) for r in results] == [("timeout", 3.0)]


def test_retries_of_what_may_not_run_twice_are_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="tool unsteady: only what is declared idempotent may be tried again"):
        unsteady_tool([], max_retries=1)


def test_a_host_that_asks_for_a_pause_gets_it() -> None:
    asked = iter([UnavailableError("429", retry_after_s=4.0)])

    @tool(is_idempotent=True, max_retries=1)
    async def busy() -> str:
        """B."""
        if (error := next(asked, None)) is not None:
            raise error
        return "at last"

    result = run(lambda executor: executor.call(ToolCall(name="busy", arguments={})), busy)
    assert result.text == "at last"
    assert 4.0 <= result.duration_s <= 4.25


def test_waits_grow_within_a_bound_and_differ() -> None:
    rng = random.Random(1)
    waits = [[backoff_s(attempt, asked_s=0.0, rng=rng) for _ in range(50)] for attempt in range(8)]
    assert [max(w) <= bound for w, bound in zip(waits, (0.25, 0.5, 1, 2, 4, 8, 8, 8), strict=True)] == [True] * 8
    assert all(len(set(w)) == 50 for w in waits)


# -- the breaker ------------------------------------------------------------------------------------------------------


def test_a_host_that_fails_in_a_row_is_left_alone_and_then_probed() -> None:
    results = one_after_another(*["down"] * 4, count=9, pause_s=3.0)
    assert statuses(results) == ["error"] * 3 + ["refused"] * 3 + ["error"] + ["refused"] * 2
    assert results[3].text == "unsteady: unsteady does not answer, and is left alone for now. Go on without it."
    assert not results[3].was_executed


def test_a_probe_that_goes_well_opens_the_way_again() -> None:
    results = one_after_another(*["down"] * 3, count=6, pause_s=10.0)
    assert statuses(results) == ["error"] * 3 + ["ok"] * 3


def test_failures_with_successes_between_them_and_errors_of_the_tool_leave_a_host_in_use() -> None:
    mixed: list[Behaviour] = ["down", "down", "ok"] * 4
    assert "refused" not in statuses(one_after_another(*mixed, count=12))
    assert statuses(one_after_another(*["raises"] * 9, count=9)) == ["error"] * 9


def test_a_missed_deadline_counts_against_a_host_but_not_against_a_tool_without_one() -> None:
    hanging: list[Behaviour] = ["hangs"] * 5
    assert statuses(one_after_another(*hanging, count=5, timeout_s=1.0)) == ["timeout"] * 5
    assert (
        statuses(one_after_another(*hanging, count=5, timeout_s=1.0, host="far")) == ["timeout"] * 3 + ["refused"] * 2
    )


def test_what_queues_for_a_host_that_died_does_not_wait_for_it() -> None:
    async def main(executor: Executor) -> tuple[list[str], float]:
        results = await asyncio.gather(*(executor.call(ask()) for _ in range(20)))
        return statuses(results), asyncio.get_running_loop().time()

    dead = unsteady_tool(["down"] * 20, latency_s=1.0, max_concurrency=1)
    found, took_s = run(main, dead, breaker_threshold=3)
    assert (found, took_s) == (["error"] * 3 + ["refused"] * 17, 3.0)


def test_a_cancelled_probe_lets_another_call_probe() -> None:
    async def main(executor: Executor) -> list[str]:
        first = await executor.call(ask())
        await asyncio.sleep(10.0)
        probe = asyncio.create_task(executor.call(ask()))
        await asyncio.sleep(1.0)
        during = await executor.call(ask())
        probe.cancel()
        await asyncio.wait([probe])
        return statuses([first, during, await executor.call(ask())])

    dead_then_stuck = unsteady_tool(["down", "hangs"])
    assert run(main, dead_then_stuck, breaker_threshold=1, breaker_pause_s=10.0) == ["error", "refused", "ok"]


def test_pauses_double_up_to_a_bound_and_begin_anew_behind_a_success() -> None:
    breaker, now_s, pauses = Breaker(threshold=1, pause_s=60.0), 0.0, []
    breaker.failed(now_s=now_s)
    for _ in range(5):
        began_s = now_s
        while breaker.is_open(now_s=now_s):
            now_s += 1.0
        pauses.append(now_s - began_s)
        assert breaker.admit(now_s=now_s) == "probe"
        breaker.failed(now_s=now_s, is_probe=True)
    assert pauses == [60.0, 120.0, 240.0, MAX_PAUSE_S, MAX_PAUSE_S]
    breaker.succeeded()
    breaker.failed(now_s=0.0)
    assert not breaker.is_open(now_s=60.0)
    assert breaker.num_openings == 7


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_tools_of_one_host_share_its_permits_and_others_do_not_wait_for_them() -> None:
    def named(name: str, host: str) -> Tool:
        return slow_tool(latency_s=1.0, max_concurrency=2, name=name, host=host)

    async def main(executor: Executor) -> list[float]:
        async def ended(name: str) -> float:
            await executor.call(ask(name))
            return asyncio.get_running_loop().time()

        return await asyncio.gather(*(ended(name) for name in ("a", "b", "a", "b", "c")))

    tools = [named("a", "web"), named("b", "web"), named("c", "")]
    assert run(main, *tools) == [1.0, 1.0, 2.0, 2.0, 1.0]


def test_a_host_with_the_name_of_a_tool_is_another_host() -> None:
    lonely, shared = slow_tool(latency_s=1.0, max_concurrency=1), slow_tool(latency_s=1.0, name="b", host="slow")

    async def main(executor: Executor) -> float:
        await asyncio.gather(executor.call(ask("slow")), executor.call(ask("b")), executor.call(ask("b")))
        return asyncio.get_running_loop().time()

    assert run(main, lonely, shared) == 1.0
    assert [spec.name for spec in Executor([shared, lonely]).specs] == ["b", "slow"], "in the order they were given"


# -- latency ----------------------------------------------------------------------------------------------------------


def test_quantiles_are_right_to_a_fifth_and_extremes_are_kept() -> None:
    recorder = LatencyRecorder()
    for millisecond in range(1, 1001):
        recorder.add(millisecond / 1000)
    latency = recorder.snapshot()
    for share in (0.1, 0.5, 0.9, 0.99):
        assert share <= latency.quantile(share) <= share * 1.2
    assert Latency().quantile(0.5) == 0.0
    recorder.add(0.0)
    recorder.add(1e9)
    assert sum(recorder.snapshot().counts.values()) == 1002
    assert list(recorder.snapshot().counts) == sorted(recorder.snapshot().counts)
