"""Load on the executor: thousands of calls at once to an HTTP endpoint in a process of its own on this machine."""

import asyncio
import dataclasses
import multiprocessing
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from actors.bench.bench import Record
from actors.collector import rarely
from engine.errors import ToolError
from engine.types import ToolCall
from tools.call_cache import CallCache, MemoryCache, TieredCache
from tools.call_cache_sqlite import SqliteCache
from tools.endpoint import EndpointConfig, endpoint_tool
from tools.executor import Executor
from tools.local_site import LocalSite, Page
from tools.schema import Tool

RATE = 500.0
"""Executions a second that the endpoint allows."""
_PERMITS = 64
_TICK_S = 0.005
_START_S = 60.0
_NAME = "echo"


def limited(num_calls: int) -> Record:
    """All calls at once, all different, at `RATE`: how evenly they go out, and how free the loop is meanwhile."""
    begun: list[float] = []

    async def main(url: str) -> tuple[list[float], float]:
        tool = _watched(_endpoint(url, calls_per_s=RATE), lambda: begun.append(asyncio.get_running_loop().time()))
        async with Executor([tool]) as executor:
            await executor.call(_call(-1))  # opens the client, which loads a library
            begun.clear()
            async with _lags() as lags:
                started_s = await _call_all(executor, range(num_calls))
        return lags, started_s

    with rarely():
        lags, started_s = _beside_a_site(main)
    lags_ms = np.array(lags) * 1e3
    # From when all of them are under way: making ten thousand calls is a second's work, in which nothing else is done.
    under_way = [began_s for began_s in begun if began_s >= started_s]
    return {
        "calls_per_s": (len(under_way) - 1) / (under_way[-1] - under_way[0]),
        "wall_s": begun[-1] - begun[0],
        "lag_p50_ms": float(np.quantile(lags_ms, 0.5)),
        "lag_p99_ms": float(np.quantile(lags_ms, 0.99)),
        "lag_max_ms": float(lags_ms.max()),
    }


def shared(num_calls: int, *, num_distinct: int) -> Record:
    """All calls at once, of which few are different: what overlaps is executed once."""
    begun: list[None] = []

    async def main(url: str) -> None:
        tool = _watched(_endpoint(url, is_pure=True), lambda: begun.append(None))
        async with Executor([tool]) as executor:
            await _call_all(executor, (number % num_distinct for number in range(num_calls)))

    _beside_a_site(main)
    return {"calls_per_execution": num_calls / len(begun)}


def reused(num_calls: int, *, file: Path) -> Record:
    """One call after the other, each of them cached: half of them read from the file, then all from memory."""

    async def main(url: str) -> float:
        loop = asyncio.get_running_loop()

        def cache() -> CallCache:
            return TieredCache([MemoryCache(max_bytes=1 << 26), SqliteCache(file, max_bytes=1 << 28)])

        half = range(num_calls // 2)
        async with Executor([_endpoint(url, is_pure=True)], cache=cache()) as executor:
            await _call_all(executor, half)
        async with Executor([_endpoint(url, is_pure=True)], cache=cache()) as executor:
            began_s = loop.time()
            for number in (*half, *half):
                assert (await executor.call(_call(number))).is_cached
            return loop.time() - began_s

    return {"calls_per_s": num_calls // 2 * 2 / _beside_a_site(main)}


def _endpoint(url: str, **limits: Any) -> Tool:
    parameters = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
    config = EndpointConfig(
        name=_NAME, description="Echo.", url=url, parameters=parameters, max_concurrency=_PERMITS, **limits
    )
    return endpoint_tool(config)


def _watched(tool: Tool, on_begin: Callable[[], None]) -> Tool:
    async def run(arguments: dict[str, Any]) -> str:
        on_begin()
        return await tool.run(arguments)

    return dataclasses.replace(tool, run=run)


def _call(number: int) -> ToolCall:
    return ToolCall(name=_NAME, arguments={"number": number})


async def _call_all(executor: Executor, numbers: Iterable[int]) -> float:
    """Make all calls at once; returns when, on the loop's clock, the last of them had reached its queue."""
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(executor.call(_call(number))) for number in numbers]
        await asyncio.sleep(0)  # behind the first step of each
        started_s = asyncio.get_running_loop().time()
    failed = [call.result().text for call in calls if call.result().status != "ok"]
    if failed:
        raise ToolError(f"{len(failed)} of {len(calls)} calls failed, such as: {failed[0]}")
    return started_s


@asynccontextmanager
async def _lags() -> AsyncGenerator[list[float]]:
    """How late a timer of 5 ms is, again and again, in seconds."""
    lags: list[float] = []
    loop = asyncio.get_running_loop()

    async def tick() -> None:
        while True:
            due_s = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            lags.append(max(loop.time() - due_s, 0.0))

    ticking = asyncio.create_task(tick(), name="lag")
    try:
        yield lags
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])


def _beside_a_site(main: Callable[[str], Any]) -> Any:
    """Run `main(url)` on a loop of its own, while the endpoint runs in another process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(_START_S):
            raise ToolError(f"the endpoint did not start within {_START_S:g} s")
        return asyncio.run(main(here.recv()))
    finally:
        here.close()  # which ends the other process
        process.join()


def _serve(pipe: Connection) -> None:
    async def main() -> None:
        closed = asyncio.Event()
        async with LocalSite(lambda visit: Page(content=visit.json())) as site:
            pipe.send(site.url)
            asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
            await closed.wait()

    asyncio.run(main())
