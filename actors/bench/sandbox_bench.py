"""`arpo bench sandbox`: calls a second of the `python` tool, isolated, against a `python -c` for each call.

| figure                   | what it is                                                                              |
|--------------------------|-----------------------------------------------------------------------------------------|
| `speedup_vs_subprocess`  | calls a second of 64 callers whose code imports sympy and solves a quadratic equation,  |
|                          | by those of subprocesses that do the same: as the released code runs Python             |
| `calls_per_s`            | of the tool                                                                             |
| `subprocess_calls_per_s` | of subprocesses                                                                         |
| `p50_ms`                 | median of one trivial call, with as many callers as cores                               |
| `is_isolated`            | 1 where the calls had namespaces of their own; 0 where this machine gives none          |

Each equation is another one, and none is among those by which the tool warms up.
"""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from actors.bench.bench import Bench, Record, Records, median_of, median_ratio
from engine.types import ToolCall
from tools.executor import Executor
from tools.python import python_tool
from tools.python_config import PythonConfig
from tools.python_isolation import examine_isolation

NUM_CALLERS = 64
_LIMIT_S = 300.0
"""Of one call, which may queue behind 63 others on a slow machine."""

Call = Callable[[str], Awaitable[str]]
"""Code to what it prints."""
Runner = Callable[[Callable[[Call], Awaitable[Record]]], Awaitable[Record]]
"""Opens what runs calls, and has them measured."""


def benches(folder: Path, *, is_quick: bool) -> Sequence[Bench]:
    """The tool and subprocesses on the same code, and the tool alone on a trivial one."""
    num_calls = NUM_CALLERS * (4 if is_quick else 8)
    cores = len(os.sched_getaffinity(0))
    return (
        Bench(
            name="sandbox",
            arms={
                "tool": lambda seed: measured(
                    by_tool, equation, num_callers=NUM_CALLERS, num_calls=num_calls, seed=seed
                ),
                # One round: it takes a hundred times as long.
                "subprocess": lambda seed: measured(
                    by_subprocess, equation, num_callers=NUM_CALLERS, num_calls=NUM_CALLERS, seed=seed
                ),
                "trivial": lambda seed: measured(by_tool, trivial, num_callers=cores, num_calls=100 * cores, seed=seed),
            },
            repetitions=1 if is_quick else 5,
            figures=partial(_figures, is_isolated=examine_isolation(PythonConfig()).is_full),
        ),
    )


def equation(number: int) -> tuple[str, str]:
    """Code that solves a quadratic equation of its own, and what it prints."""
    low, high = number % 97 + 1, number % 97 + 2 + number // 97
    code = f"import sympy\nx = sympy.symbols('x')\nprint(sympy.solve(x**2 - {low + high}*x + {low * high}, x))"
    return code, f"[{low}, {high}]"


def trivial(number: int) -> tuple[str, str]:
    """Code that adds, and what it prints."""
    return f"print({number} + 1)", str(number + 1)


def measured(
    run: Runner,
    problem: Callable[[int], tuple[str, str]],
    *,
    num_callers: int,
    num_calls: int,
    seed: int,
) -> Record:
    """Have so many callers make so many calls, each of another problem, and check every answer.

    Raises an `ExceptionGroup` of `RuntimeError` where one is wrong.
    """
    numbers = iter(range(seed * num_calls, (seed + 1) * num_calls))

    async def measure(call: Call) -> Record:
        seconds: list[float] = []

        async def caller() -> None:
            for number in numbers:
                code, expected = problem(number)
                began_at = time.perf_counter()
                found = await call(code)
                seconds.append(time.perf_counter() - began_at)
                if found != expected:
                    raise RuntimeError(f"{code!r} gave {found!r}")

        began_at = time.perf_counter()
        async with asyncio.TaskGroup() as callers:
            for _ in range(num_callers):
                callers.create_task(caller())
        wall_s = time.perf_counter() - began_at
        p95 = quantiles(seconds, n=20)[-1]
        return {"calls_per_s": num_calls / wall_s, "p50_ms": median(seconds) * 1e3, "p95_ms": p95 * 1e3}

    async def main() -> Record:
        return await run(measure)

    return asyncio.run(main())


async def by_tool(measure: Callable[[Call], Awaitable[Record]]) -> Record:
    """The `python` tool behind its executor, warm."""
    config = PythonConfig(max_concurrency=NUM_CALLERS, timeout_s=_LIMIT_S)
    async with Executor([python_tool(config)]) as executor:

        async def call(code: str) -> str:
            return (await executor.call(ToolCall(name="python", arguments={"code": code}))).text

        await call("1")  # starts the server, once in a run
        return await measure(call)


async def by_subprocess(measure: Callable[[Call], Awaitable[Record]]) -> Record:
    """A new interpreter for each call, as in the released code."""

    async def call(code: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_LIMIT_S):
                stdout, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return stdout.decode().strip()

    return await measure(call)


def _figures(records: Records, *, is_isolated: bool) -> dict[str, float]:
    return {
        "speedup_vs_subprocess": median_ratio(records, "tool", "subprocess", of="calls_per_s"),
        "calls_per_s": median_of(records, "tool", "calls_per_s"),
        "subprocess_calls_per_s": median_of(records, "subprocess", "calls_per_s"),
        "p50_ms": median_of(records, "trivial", "p50_ms"),
        "is_isolated": float(is_isolated),
    }
