"""The `python` tool: each call is a process of its own, forked from a warm interpreter, isolated, under limits.

Covered, with namespaces (the default where the kernel gives them to this user): a program has no network, sees no
process but its own, no file but the interpreter, its libraries and an empty `/tmp`, no environment variable and no
descriptor of this process, and nothing of an earlier call or of one beside it. It cannot use more CPU time, memory,
disk, processes, open files or output than configured, and nothing of it goes on behind its deadline, its end or its
caller. It is an ordinary user without capabilities, behind a filter of system calls. See `tools.sandbox`.

Not covered: faults of the kernel itself, what caches and timing tell, and bytes of the interpreter's environment, which
programs may read: keep no secret in site-packages. Without namespaces the strictest thing that works is done instead,
and said once; `require_isolation` refuses that.
"""

import asyncio
import contextlib
import logging
import os
import signal

from engine.errors import ConfigError, ToolError
from tools.capture import Capture, Flood, open_capture
from tools.fork_link import End, signal_name
from tools.fork_server import ForkServer
from tools.python_config import PythonConfig
from tools.python_isolation import examine_isolation
from tools.schema import Tool, tool

logger = logging.getLogger(__name__)

_DRAIN_S = 1.0
"""How long the pipes may stay open behind the end of a call: only a process that got away holds them."""


def python_tool(config: PythonConfig) -> Tool:
    """The tool `python(code)`: stdout, to which the value of a last expression is echoed as by `print`, unless None.

    `total = 6 * 7` and, below it, `total` give `42`. A program that prints nothing gives `(no output)`. An
    exception, an exit code or a signal gives status `error` with the last line of stderr, such as
    `ZeroDivisionError: division by zero`. Raises `ConfigError` where isolation is required and cannot be had.
    """
    if config.url:
        from tools.python_remote import remote_python_tool  # the door of aiohttp

        return remote_python_tool(config)
    _check(config)
    server = ForkServer(config)

    # Not pure: a program may ask for the time or for chance.
    @tool(timeout_s=config.timeout_s, max_concurrency=config.max_concurrency, aclose=server.aclose)
    async def python(code: str) -> str:
        """Run Python code in a fresh interpreter. Returns what it prints and the value of its last expression."""
        return await run_python(code, server=server, config=config)

    return python


def _check(config: PythonConfig) -> None:
    for path in config.readable:
        if not os.path.exists(path):
            raise ConfigError(f"no such file or folder: {path!r} - at $.tools.python.readable")
    if config.require_isolation:
        try:
            found = examine_isolation(config)
        except ToolError as error:
            raise ConfigError(f"{error} - at $.tools.python.interpreter") from None
        if not found.is_full:
            raise ConfigError(f"{found} - at $.tools.python.require_isolation")


async def run_python(code: str, *, server: ForkServer, config: PythonConfig) -> str:
    """Run `code`; returns its output, raises `ToolError` with one line when it fails.

    It has no deadline of its own: cancellation kills all its processes, and returns when they are gone.
    """
    max_bytes = config.max_output_kib * 1024
    flood = Flood(max_bytes=config.max_written_mib << 20)
    async with contextlib.AsyncExitStack() as pipes:
        source = pipes.enter_context(os.fdopen(os.memfd_create("program"), "w+b", buffering=0))
        source.write(code.encode("utf-8", "replace"))
        source.seek(0)
        stdout, stdout_file = await open_capture(pipes, max_bytes=max_bytes, keep_tail=False, flood=flood)
        stderr, stderr_file = await open_capture(pipes, max_bytes=max_bytes, keep_tail=True, flood=flood)
        end = await server.run(files=(source, stdout_file, stderr_file), stop=flood.reached)
        try:
            async with asyncio.timeout(_DRAIN_S):
                await stdout.ended.wait()
                await stderr.ended.wait()
        except TimeoutError:
            logger.warning("python: a process has got away from its call, and goes on")
    if flood.reached.done():
        raise ToolError(f"killed: more than {config.max_written_mib} MiB of output")
    return _verdict(end, stdout=stdout, stderr=stderr, config=config)


def _verdict(end: End, *, stdout: Capture, stderr: Capture, config: PythonConfig) -> str:
    if end.broke == "memory":
        raise ToolError(f"killed: more than {config.memory_mib} MiB of memory")
    if end.exit_code == 0:
        text = stdout.text or "(no output)"
        return f"{text}\n[cut: {stdout.num_dropped} bytes of output left out]" if stdout.num_dropped else text
    if end.exit_code == -signal.SIGXCPU:
        raise ToolError(f"killed: more than {config.cpu_s} s of CPU time")
    if end.exit_code < 0:
        raise ToolError(f"killed by {signal_name(-end.exit_code)}")
    raise ToolError(stderr.text.splitlines()[-1] if stderr.text else f"exit code {end.exit_code}")
