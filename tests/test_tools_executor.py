"""The executor: deadlines, permits, cancellation and failures as results, under virtual time."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from engine.clock import run_virtual
from engine.errors import ConfigError, GeneratorError, ToolError
from engine.types import ToolCall, ToolResult
from tools.executor import Executor, ToolStatistics, cut
from tools.faults import ScriptedTools, flooding_tool, hanging_tool, raising_tool, slow_tool
from tools.latency import Latency
from tools.schema import Tool, tool


def ask(name: str = "slow", **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments or {"query": "q"})


def with_executor(main: Callable[[Executor], Awaitable[Any]], *tools: Tool, **options: Any) -> Any:
    async def run() -> Any:
        async with Executor(tools, **options) as executor:
            return await main(executor)

    return run_virtual(run())


def one_call(target: Tool, call: ToolCall | None = None, **options: Any) -> ToolResult:
    return with_executor(
        lambda executor: executor.call(call or ToolCall(name=target.name, arguments={})), target, **options
    )


def test_a_good_call_comes_back_with_text_and_duration() -> None:
    assert one_call(slow_tool(latency_s=2.0), ask()) == ToolResult(name="slow", text="q", duration_s=2.0)


def test_a_call_past_its_deadline_is_a_timeout() -> None:
    result = one_call(hanging_tool(timeout_s=3.0))
    assert (result.status, result.duration_s) == ("timeout", 3.0)
    assert result.text == "hanging: no result after 3 s."


def test_a_timeout_error_of_the_tool_itself_is_an_error() -> None:
    result = one_call(raising_tool(TimeoutError("the socket")))
    assert (result.status, result.text) == ("error", "raising: TimeoutError: the socket")


def test_an_exception_is_a_result_of_one_line() -> None:
    assert one_call(raising_tool(KeyError("k"))).text == "raising: KeyError: 'k'"
    assert one_call(raising_tool(ValueError("first\nsecond"))).text == "raising: ValueError: first"
    result = one_call(raising_tool(ToolError("NameError: name 'x' is not defined")))
    assert (result.status, result.text) == ("error", "NameError: name 'x' is not defined")
    assert one_call(raising_tool(ToolError(""))).text == "failed without a message"


def test_what_an_engine_says_to_a_tool_that_asks_it_is_a_result_too() -> None:
    result = one_call(raising_tool(GeneratorError("nobody samples")))
    assert (result.status, result.text) == ("error", "raising: nobody samples")


def test_a_tool_that_cancels_itself_has_failed_and_nobody_else() -> None:
    result = one_call(raising_tool(asyncio.CancelledError()))
    assert (result.status, result.text) == ("error", "raising: it cancelled itself")


def test_an_unknown_tool_is_malformed_and_names_the_visible_ones() -> None:
    @tool(visible=False)
    async def secret() -> str:
        """S."""
        return ""

    async def main(executor: Executor) -> tuple[ToolResult, int]:
        return await executor.call(ask("serach")), executor.statistics().num_unknown

    result, num_unknown = with_executor(main, slow_tool(latency_s=0.0), secret, hanging_tool())
    assert (result.status, num_unknown) == ("malformed", 1)
    assert result.text == "No tool 'serach'. Tools: slow, hanging."


def test_a_call_the_renderer_could_not_read_is_not_executed() -> None:
    async def main(executor: Executor) -> None:
        call = ToolCall(name="slow", arguments={"query": "q"}, malformed="Close the tag.")
        assert await executor.call(call) == ToolResult(name="slow", text="Close the tag.", status="malformed")
        assert executor.statistics().num_malformed == 1
        assert executor.statistics().tools["slow"].num_calls == 0

    with_executor(main, slow_tool(latency_s=9.0))


def test_wrong_arguments_are_malformed() -> None:
    result = one_call(slow_tool(latency_s=9.0), ask(question="q"))
    assert (result.status, result.duration_s, result.was_executed) == ("malformed", 0.0, False)
    assert "Arguments: query." in result.text


def test_a_long_result_is_cut_and_says_so() -> None:
    result = one_call(flooding_tool(num_chars=1000), max_result_chars=10)
    assert result.text == "x" * 10 + "\n[cut: 990 of 1000 characters left out]"
    assert one_call(flooding_tool(num_chars=10), max_result_chars=10).text == "x" * 10
    assert cut("abc", max_chars=2) == "ab\n[cut: 1 of 3 characters left out]"


def test_only_visible_tools_are_cut_and_shown() -> None:
    @tool(visible=False)
    async def score() -> str:
        """S."""
        return "x" * 100

    assert [spec.name for spec in Executor([slow_tool(latency_s=0.0), score]).specs] == ["slow"]
    assert len(one_call(score, max_result_chars=10).text) == 100


def test_as_many_run_at_once_as_there_are_permits() -> None:
    async def main(executor: Executor) -> tuple[list[float], int, int]:
        loop = asyncio.get_running_loop()

        async def timed() -> float:
            await executor.call(ask())
            return loop.time()

        tasks = [asyncio.create_task(timed()) for _ in range(5)]
        await asyncio.sleep(0.5)
        counts = executor.statistics().tools["slow"]
        return await asyncio.gather(*tasks), counts.num_running, counts.num_waiting

    ended, num_running, num_waiting = with_executor(main, slow_tool(latency_s=1.0, max_concurrency=2))
    assert ended == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert (num_running, num_waiting) == (2, 3)


def test_waiting_for_a_permit_does_not_count_against_the_deadline() -> None:
    async def main(executor: Executor) -> list[ToolResult]:
        return await asyncio.gather(*(executor.call(ask()) for _ in range(4)))

    results = with_executor(main, slow_tool(latency_s=1.0, timeout_s=1.5, max_concurrency=1))
    assert [(r.status, r.duration_s) for r in results] == [("ok", 1.0)] * 4


def test_one_busy_tool_does_not_hold_up_another() -> None:
    async def main(executor: Executor) -> float:
        busy = asyncio.create_task(executor.call(ToolCall(name="hanging", arguments={})))
        await asyncio.sleep(0)
        await executor.call(ask())
        at = asyncio.get_running_loop().time()
        await busy
        return at

    assert with_executor(main, hanging_tool(timeout_s=9.0), slow_tool(latency_s=1.0)) == 1.0


@pytest.mark.parametrize("cancel_at_s", [0.5, 1.5])
def test_a_cancelled_call_gives_its_permit_back_whether_it_waits_or_runs(cancel_at_s: float) -> None:
    async def main(executor: Executor) -> tuple[float, ToolStatistics]:
        calls = [asyncio.create_task(executor.call(ask())) for _ in range(2)]
        await asyncio.sleep(cancel_at_s)
        calls[1].cancel()
        await asyncio.wait(calls)
        assert calls[1].cancelled()
        began_s = asyncio.get_running_loop().time()
        await executor.call(ask())
        return asyncio.get_running_loop().time() - began_s, executor.statistics().tools["slow"]

    took_s, counts = with_executor(main, slow_tool(latency_s=1.0, max_concurrency=1))
    assert took_s == 1.0
    assert (counts.num_calls, counts.num_ok, counts.num_cancelled) == (3, 2, 1)
    assert (counts.num_running, counts.num_waiting) == (0, 0)


def test_a_call_cancelled_as_it_gets_its_permit_passes_it_on() -> None:
    async def main(executor: Executor) -> ToolResult:
        calls = [asyncio.create_task(executor.call(ask())) for _ in range(3)]
        await asyncio.wait(calls[:1])
        # The permit has been handed to the second call, which has not yet run.
        calls[1].cancel()
        return await calls[2]

    assert with_executor(main, slow_tool(latency_s=1.0, max_concurrency=1)).status == "ok"


def test_cancelling_the_caller_cancels_the_tool() -> None:
    ended: list[str] = []

    @tool
    async def careful() -> str:
        """C."""
        try:
            await asyncio.sleep(10.0)
        finally:
            ended.append("cleaned up")
        return ""

    async def main(executor: Executor) -> None:
        call = asyncio.create_task(executor.call(ToolCall(name="careful", arguments={})))
        await asyncio.sleep(1.0)
        call.cancel()
        await asyncio.wait([call])

    with_executor(main, careful)
    assert ended == ["cleaned up"]


def test_leaving_waits_for_what_runs_and_refuses_what_queues() -> None:
    async def main() -> tuple[list[str], str, float]:
        async with Executor([slow_tool(latency_s=1.0, max_concurrency=1)]) as executor:
            calls = [asyncio.create_task(executor.call(ask())) for _ in range(3)]
            await asyncio.sleep(0.5)
        at = asyncio.get_running_loop().time()
        late = await executor.call(ask())
        return [(await call).status for call in calls], late.status, at

    assert run_virtual(main()) == (["ok", "refused", "refused"], "refused", 1.0)


def test_leaving_closes_the_tools_when_their_calls_have_ended() -> None:
    async def main() -> tuple[list[str], float]:
        closed: list[str] = []

        def owning(name: str) -> Tool:
            async def aclose() -> None:
                closed.append(f"{name} at {asyncio.get_running_loop().time()}")

            return dataclasses.replace(slow_tool(latency_s=1.0), aclose=aclose)

        async with Executor([owning("slow"), hanging_tool()]) as executor:
            call = asyncio.create_task(executor.call(ask()))
            await asyncio.sleep(0.5)
        await call
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(3.0):
            with contextlib.suppress(asyncio.CancelledError):
                async with Executor([owning("cancelled"), hanging_tool()]) as executor:
                    hanging = tasks.create_task(executor.call(ToolCall(name="hanging", arguments={})))
                    await asyncio.sleep(0.5)
            hanging.cancel()
        return closed, asyncio.get_running_loop().time()

    assert run_virtual(main()) == (["slow at 1.0", "cancelled at 4.0"], 4.0)


def test_what_is_refused_at_the_end_does_not_wait_for_its_turn_in_the_rate() -> None:
    async def main() -> tuple[list[str], float]:
        async with Executor([slow_tool(latency_s=1.0, max_concurrency=1, calls_per_s=0.01)]) as executor:
            calls = [asyncio.create_task(executor.call(ask())) for _ in range(3)]
            await asyncio.sleep(0.5)
        return [(await call).status for call in calls], asyncio.get_running_loop().time()

    assert run_virtual(main()) == (["ok", "refused", "refused"], 1.0)


def test_counters_tell_what_became_of_every_call() -> None:
    async def main(executor: Executor) -> ToolStatistics:
        await asyncio.gather(executor.call(ask()), executor.call(ask()), executor.call(ask(wrong=1)))
        return executor.statistics().tools["slow"]

    counts = with_executor(main, slow_tool(latency_s=2.0, max_concurrency=1), max_result_chars=0)
    assert counts.latency.quantile(0.5) == pytest.approx(2.0, rel=0.2)
    # The malformed one did not queue.
    assert msgspec.structs.replace(counts, latency=Latency()) == ToolStatistics(
        num_calls=3, num_ok=2, num_malformed=1, num_cut=3, queued_s=2.0, busy_s=4.0, slowest_s=2.0
    )


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two tools are called 'hanging'"):
        Executor([hanging_tool(), hanging_tool()])


def test_a_rate_makes_calls_wait_that_permits_would_let_through() -> None:
    async def main(executor: Executor) -> tuple[float, list[str]]:
        results = await asyncio.gather(*(executor.call(ask()) for _ in range(4)))
        return asyncio.get_running_loop().time(), [result.status for result in results]

    # 20 calls a second are at most 3 in 0.1 s. The throttler measures wall time, but it waits on the loop's clock.
    limited_s, statuses = with_executor(main, slow_tool(latency_s=0.0, calls_per_s=20.0))
    assert limited_s > 0.0
    assert statuses == ["ok"] * 4
    assert with_executor(main, slow_tool(latency_s=0.0))[0] == 0.0


def test_scripted_tools_answer_in_turn_with_latency_and_keep_count() -> None:
    async def main() -> None:
        tools = ScriptedTools(
            {
                "search": ["one", ToolResult(name="search", text="no", status="error")],
                "python": lambda call: call.arguments["code"] * 2,
                "reward": "{}",
            },
            latency_s=lambda call: 2.0 if call.name == "search" else 1.0,
        )
        assert [spec.name for spec in tools.specs] == ["search", "python"]
        assert tools.specs[1].parameters["required"] == ["code"]
        first, second = await asyncio.gather(tools.call(ask("search")), tools.call(ask("search")))
        assert (first.text, second.status) == ("one", "error")
        assert (await tools.call(ask("search"))).text == "no"
        assert (await tools.call(ask("python", code="ab"))).text == "abab"
        assert (await tools.call(ask("browse"))).status == "malformed"
        assert asyncio.get_running_loop().time() == 5.0
        assert (tools.max_running, tools.num_running, len(tools.calls)) == (2, 0, 5)

    run_virtual(main())


def test_a_plain_function_that_never_returns_does_not_keep_the_program_from_ending() -> None:
    released = threading.Event()

    @tool(timeout_s=0.05)
    def stuck() -> str:
        """Waits for ever."""
        released.wait()
        return "late"

    async def main() -> ToolResult:
        async with Executor([stuck]) as executor:
            return await executor.call(ToolCall(name="stuck", arguments={}))

    assert asyncio.run(main()).status == "timeout"
    released.set()
