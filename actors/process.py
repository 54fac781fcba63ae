"""ActorProcess: one actor in a process of its own, from its start to its end."""

import asyncio
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from actors.messages import AnyCall
from actors.wire import Caller, StreamCaller
from engine.errors import ArpoError, StalledError

TERMINATE_S = 5.0
"""How long a process that was asked to end may take before it is killed."""
LOG_TAIL_LINES = 12


@asynccontextmanager
async def actor_process(
    name: str, start: AnyCall, *, kind: type[ArpoError], log: Path, threads: int, start_timeout_s: float
) -> AsyncGenerator[Caller, None]:
    """Run an actor for the length of the block; `start` says what it is.

    Its output goes to `log`. A process that dies fails every open call with `kind` and the end of its log. Raises
    `StalledError` where it does not come up within `start_timeout_s`. The process never outlives the block.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        # Connected first: from the moment the process exists nothing is awaited until somebody minds it.
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            process = await _spawn(theirs, log=log, threads=threads)
        except BaseException:
            writer.close()
            raise
    caller = StreamCaller(name, reader, writer)
    receiving = asyncio.create_task(caller.receive(), name=f"receive {name}")
    watching = asyncio.create_task(_watch(process, caller, receiving, log), name=f"watch {name}")
    try:
        try:
            async with asyncio.timeout(start_timeout_s):
                await caller.call(start, kind)
        except TimeoutError:
            raise StalledError(f"{name} did not start within {start_timeout_s:g} s; see {log}") from None
        yield caller
    finally:
        writer.close()
        await end_process(process)
        caller.lose("it was ended")
        watching.cancel()
        receiving.cancel()
        await asyncio.gather(watching, receiving, return_exceptions=True)


async def _spawn(theirs: socket.socket, *, log: Path, threads: int) -> asyncio.subprocess.Process:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "actors.host",
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
            env=environment(threads),
            # A Ctrl-C at the terminal is for the controller, which ends its actors in order.
            start_new_session=True,
        )


async def _watch(
    process: asyncio.subprocess.Process, caller: StreamCaller, receiving: asyncio.Task[None], log: Path
) -> None:
    """Fail all calls when the connection ends; a process that dies closes it a moment before it has an exit code."""
    await asyncio.wait({receiving})
    reason = "its connection ended"
    if (error := receiving.exception()) is not None:
        reason = f"it sent what cannot be read: {error}"
    try:
        async with asyncio.timeout(TERMINATE_S):
            reason = f"exit code {await process.wait()}"
    except TimeoutError:
        pass  # it lives on without a connection; leaving the block ends it
    caller.lose("\n  ".join([f"{reason}; the end of {log}:", *tail(log)]))


def tail(log: Path) -> list[str]:
    """The last lines of a log."""
    with log.open(errors="replace") as lines:
        return [line.rstrip() for line in deque(lines, maxlen=LOG_TAIL_LINES)]


async def end_process(process: asyncio.subprocess.Process, *, patience_s: float = TERMINATE_S) -> None:
    """Wait for a process whose connection is closed, which ends a healthy one; help one that is not."""
    for help_it in (process.terminate, process.kill):
        try:
            async with asyncio.timeout(patience_s):
                await process.wait()
                return
        except TimeoutError:
            help_it()
    await process.wait()


def environment(threads: int) -> dict[str, str]:
    """Of a child: the parent's, with this checkout importable and one thread pool of the size asked for."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
