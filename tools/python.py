"""The `python` tool: each call is a process of its own, forked from a warm interpreter, in a folder, under limits.

Covered: a call cannot outlive its deadline or its caller (its whole process group is killed, also after a good end),
cannot use more CPU time, address space, open files or file size than configured, cannot flood this process with
output, sees neither this process's environment variables nor anything of an earlier call, and leaves no file of its
temporary folder behind.

Not covered: it is no sandbox. The code runs as the user of this process and reads, writes and connects to whatever
that user may; a child that calls `setsid` leaves the group; the limit on processes counts all processes of the user,
and does not bind root at all. A program that kills the server it was forked from fails the calls beside it, and what
these have started goes on. Run untrusted policies in a container, or on a machine with nothing to lose.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from typing import IO, Annotated

from msgspec import Meta

from engine.config import Positive, PositiveFloat, Section
from engine.errors import ToolError
from tools.fork_link import signal_name
from tools.fork_server import ForkServer
from tools.schema import Tool, tool

logger = logging.getLogger(__name__)

# One thread for numerical libraries: a pool a call would spend the address space on stacks.
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **_THREADS}
_DRAIN_S = 1.0
"""How long the pipes may stay open behind the end of the process group: only one that left the group holds them."""


class PythonConfig(Section, frozen=True):
    """Limits of the `python` tool."""

    timeout_s: PositiveFloat = 30.0
    """Wall clock of one call."""
    cpu_s: Positive = 20
    """CPU time of one process."""
    memory_mib: Annotated[int, Meta(ge=64)] = 1024
    """Address space of one process."""
    max_file_mib: Positive = 16
    """Size of a file it may write."""
    max_open_files: Annotated[int, Meta(ge=16)] = 64
    max_processes: Positive = 256
    """Processes and threads of the user, as the kernel counts them; does not bind root."""
    max_output_kib: Positive = 64
    """Output that is kept: the first of stdout, the last of stderr; what is beyond is read and thrown away."""
    max_concurrency: Positive = 8
    interpreter: str = ""
    """Path of the interpreter; empty is the one that runs this process."""


def python_tool(config: PythonConfig) -> Tool:
    """The tool `python(code)`: stdout, to which the value of a last expression is echoed as by `print`, unless None.

    `total = 6 * 7` and, below it, `total` give `42`. A program that prints nothing gives `(no output)`. An
    exception, an exit code or a signal gives status `error` with the last line of stderr, such as
    `ZeroDivisionError: division by zero`.
    """

    server = python_server(config)

    # Not pure: a program may ask for the time or for chance.
    @tool(timeout_s=config.timeout_s, max_concurrency=config.max_concurrency, aclose=server.aclose)
    async def python(code: str) -> str:
        """Run Python code in a fresh interpreter. Returns what it prints and the value of its last expression."""
        return await run_python(code, server=server, config=config)

    return python


def python_server(config: PythonConfig) -> ForkServer:
    """Where the processes of the tool come from; whoever makes it closes it."""
    return ForkServer(
        interpreter=config.interpreter or sys.executable, limits=_limits(config), environment=_ENVIRONMENT
    )


async def run_python(code: str, *, server: ForkServer, config: PythonConfig) -> str:
    """Run `code`; returns its output, raises `ToolError` with one line when it fails.

    It has no deadline of its own: cancellation kills the process group, and returns when the process is gone.
    """
    folder = tempfile.mkdtemp(prefix="python-")
    try:
        return await _run_in(folder, code, server=server, config=config)
    finally:
        # In a thread, because a program may leave more files behind than the loop has time for.
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _run_in(folder: str, code: str, *, server: ForkServer, config: PythonConfig) -> str:
    max_bytes = config.max_output_kib * 1024
    async with contextlib.AsyncExitStack() as pipes:
        source = pipes.enter_context(os.fdopen(os.memfd_create("program"), "w+b", buffering=0))
        source.write(code.encode("utf-8", "replace"))
        source.seek(0)
        stdout, stdout_file = await _open_capture(pipes, max_bytes=max_bytes, keep_tail=False)
        stderr, stderr_file = await _open_capture(pipes, max_bytes=max_bytes, keep_tail=True)
        exit_code = await server.run(folder, files=(source, stdout_file, stderr_file))
        try:
            async with asyncio.timeout(_DRAIN_S):
                await stdout.ended.wait()
                await stderr.ended.wait()
        except TimeoutError:
            logger.warning("python: a process has left the group of its call, and goes on")
    return _verdict(exit_code, stdout=stdout, stderr=stderr, config=config)


def _verdict(exit_code: int, *, stdout: "_Capture", stderr: "_Capture", config: PythonConfig) -> str:
    if exit_code == 0:
        text = stdout.text or "(no output)"
        return f"{text}\n[cut: {stdout.num_dropped} bytes of output left out]" if stdout.num_dropped else text
    if exit_code == -signal.SIGXCPU:
        raise ToolError(f"killed: more than {config.cpu_s} s of CPU time")
    if exit_code < 0:
        raise ToolError(f"killed by {signal_name(-exit_code)}")
    raise ToolError(stderr.text.splitlines()[-1] if stderr.text else f"exit code {exit_code}")


def _limits(config: PythonConfig) -> dict[str, int]:
    return {
        "RLIMIT_CPU": config.cpu_s,
        "RLIMIT_AS": config.memory_mib << 20,
        "RLIMIT_FSIZE": config.max_file_mib << 20,
        "RLIMIT_NOFILE": config.max_open_files,
        "RLIMIT_NPROC": config.max_processes,
        "RLIMIT_CORE": 0,
    }


class _Capture(asyncio.Protocol):
    """One pipe: always read, so the writer never blocks, but only `max_bytes` are kept."""

    def __init__(self, *, max_bytes: int, keep_tail: bool) -> None:
        self.num_dropped = 0
        self.ended = asyncio.Event()
        self._kept = bytearray()
        self._max_bytes = max_bytes
        self._keep_tail = keep_tail

    @property
    def text(self) -> str:
        return self._kept.decode("utf-8", "replace").strip()

    def data_received(self, data: bytes) -> None:
        self._kept += data
        surplus = len(self._kept) - self._max_bytes
        if surplus > 0:
            self.num_dropped += surplus
            if self._keep_tail:
                del self._kept[:surplus]
            else:
                del self._kept[self._max_bytes :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


async def _open_capture(
    pipes: contextlib.AsyncExitStack, *, max_bytes: int, keep_tail: bool
) -> tuple[_Capture, IO[bytes]]:
    """A pipe: what is written into the file arrives in the capture. Both ends close with `pipes`, if not before."""
    read_fd, write_fd = os.pipe()
    reading = pipes.enter_context(os.fdopen(read_fd, "rb", buffering=0))
    writing = pipes.enter_context(os.fdopen(write_fd, "wb", buffering=0))
    transport, capture = await asyncio.get_running_loop().connect_read_pipe(
        lambda: _Capture(max_bytes=max_bytes, keep_tail=keep_tail), reading
    )
    pipes.callback(transport.close)
    return capture, writing
