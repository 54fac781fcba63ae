"""Programs on a server with SandboxFusion's interface: a small one of the tests' own, which runs them or misbehaves."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from engine.types import ToolCall, ToolResult
from tools.executor import Executor
from tools.python import python_tool
from tools.python_config import PythonConfig

Handler = Callable[[web.Request], Awaitable[web.Response]]
SEEN: list[dict[str, Any]] = []


async def run_code(request: web.Request) -> web.Response:
    """What SandboxFusion answers to a program that ends."""
    asked = await request.json()
    SEEN.append(asked)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-c", asked["code"]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
    result = {
        "status": "Finished",
        "execution_time": 0.1,
        "return_code": process.returncode,
        "stdout": stdout.decode(),
        "stderr": stderr.decode(),
    }
    status = "Success" if process.returncode == 0 else "Failed"
    return web.json_response({"status": status, "message": "", "compile_result": None, "run_result": result})


def answering(body: Any, status: int = 200) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    return handler


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/run_code", handler)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/"
    finally:
        await runner.cleanup()


def run(code: str, handler: Handler = run_code, **keys: Any) -> ToolResult:
    async def main() -> ToolResult:
        async with (
            serving(handler) as url,
            Executor([python_tool(PythonConfig(url=url, **keys))], max_result_chars=1_000_000) as executor,
        ):
            return await executor.call(ToolCall(name="python", arguments={"code": code}))

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("total = 6 * 7\ntotal", "ok", "42"),
        ("print(1)\n'two'", "ok", "1\ntwo"),
        ("  x = 'it''s'\n  print(x)", "ok", "its"),
        ("x = 1", "ok", "(no output)"),
        ("1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)", "error", "exit code 3"),
    ],
)
def test_a_program_runs_there_and_its_last_expression_is_echoed(code: str, status: str, text: str) -> None:
    result = run(code)
    assert (result.status, result.text) == (status, text)


def test_the_server_is_told_the_limits_and_long_output_is_cut() -> None:
    result = run("print('x' * 5000)", timeout_s=7.5, memory_mib=300, max_output_kib=1)
    assert result.text == "x" * 1024 + f"\n[cut: {5000 - 1024} bytes of output left out]"
    asked = {name: value for name, value in SEEN[-1].items() if name != "code"}
    assert asked == {"language": "python", "run_timeout": 7.5, "memory_limit_MB": 300}


LATE = {"status": "Failed", "run_result": {"status": "TimeLimitExceeded", "return_code": None, "stdout": None}}


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (answering(LATE), "killed: more than 30 s"),
        (answering({"status": "SandboxError", "message": "no pod"}), "run_code: no pod"),
        (answering({"detail": "overloaded"}, status=503), 'answers 503: {"detail": "overloaded"}'),
        (answering(["what"]), "does not speak SandboxFusion's interface: Expected `object`, got `array`"),
    ],
)
def test_what_the_server_fails_with_is_one_line(handler: Handler, text: str) -> None:
    result = run("1", handler)
    assert result.status == "error"
    assert text in result.text


def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    async def handler(request: web.Request) -> web.Response:
        # Until the client has gone, and a handler that is left behind is cancelled.
        await asyncio.Event().wait()
        raise AssertionError

    assert run("1", handler, timeout_s=0.2).status == "timeout"


def test_a_server_that_is_not_there_is_an_error() -> None:
    async def main() -> ToolResult:
        async with serving(run_code) as url:
            pass
        async with Executor([python_tool(PythonConfig(url=url))]) as executor:
            return await executor.call(ToolCall(name="python", arguments={"code": "1"}))

    result = asyncio.run(main())
    assert result.status == "error"
    assert "cannot be reached" in result.text
