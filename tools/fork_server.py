"""ForkServer: one warm interpreter per event loop, which is forked for each call instead of started anew.

    run ──► {"type": "run", "call": 7} + stdin, stdout, stderr ──► tools.sandbox ──► fork ──► the program
    run ◄── {"type": "end", "call": 7, "exit_code": 0} ◄────────── tools.sandbox ◄── its end

| who    | waits for                      | unblocked by                                                              |
|--------|--------------------------------|---------------------------------------------------------------------------|
| run    | room in the socket             | the server, which reads; its end                                          |
| run    | the end of its call            | the end of the program; `stop`; the end of the server; cancellation       |
| run    | that end, when stopped         | SIGKILL for its processes; after `PATIENCE_S`, SIGKILL for the server     |
| aclose | the end of the server          | the end of its socket; after `PATIENCE_S`, SIGKILL                        |

The server is the ancestor of all processes, so it alone signals and reaps them: no number of a process is ever used
when it may belong to another one. A server that ended is noticed by the end of its socket: the calls it had begun
fail, and the next one starts a new server. One that has served `recycle_calls`, or that could not fork, gets no more
calls and ends behind its last one.
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import IO

import msgspec

from engine.errors import ToolError
from tools.fork_link import End, ForkLink, Ready, RunRequest
from tools.python_config import PythonConfig
from tools.python_isolation import sandbox_command

logger = logging.getLogger(__name__)

# One thread for numerical libraries: a pool a call would spend the address space on stacks, and cannot be forked. One
# arena for all threads: each reserves as much address space as half of the libraries.
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **_THREADS}
"""All that programs see, beside HOME and TMPDIR, which are the folder of the call."""


class ForkServer:
    """Runs programs in processes forked from a warm interpreter, isolated and limited as `PythonConfig` says.

    A server starts with the first call, in each event loop one, and ends with `aclose`, with this object, or when this
    process ends in whatever way; what runs by then is killed.
    """

    def __init__(self, config: PythonConfig) -> None:
        self._config = config
        self._command = sandbox_command(config, "server", _settings(config))
        self._links: dict[asyncio.AbstractEventLoop, ForkLink] = {}
        self._numbers = itertools.count()
        self._herald = _Herald(config)

    def __repr__(self) -> str:
        return f"ForkServer({self._command[0]}, servers={len(self._links)})"

    @property
    def pid(self) -> int:
        """Of the process whose end is that of the running loop's server; there is one behind a call."""
        return self._links[asyncio.get_running_loop()].pid

    async def run(self, *, files: Sequence[IO[bytes]], stop: "asyncio.Future[None] | None" = None) -> End:
        """Run the program in `files[0]`, with stdout and stderr the other two; returns how it ended.

        All its processes are gone by then, also after cancellation; `stop` kills them when it is done. Closes `files`
        as soon as the process has its own. Raises `ToolError` where it cannot be started, or the server ends before.
        """
        number = next(self._numbers)
        try:
            link, ended = await self._begin(RunRequest(call=number), files=files)
        finally:
            for file in files:
                file.close()
        try:
            await asyncio.wait([ended] if stop is None else [ended, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not ended.done():
                await link.kill(ended, call=number)
        end = ended.result()
        if end is None:
            raise ToolError(f"python: {link.fate}")
        if end.error:
            link.retire()
            raise ToolError(f"python: cannot start a process: {end.error}")
        return end

    async def aclose(self) -> None:
        """End the server of the running loop; a later call starts a new one."""
        if (link := self._links.pop(asyncio.get_running_loop(), None)) is not None:
            await link.aclose()

    async def _begin(
        self, request: RunRequest, *, files: Sequence[IO[bytes]]
    ) -> tuple[ForkLink, "asyncio.Future[End | None]"]:
        for _ in range(2):
            link = self._link()
            try:
                return link, await link.begin(request, files=files)
            except ConnectionError:
                # It ended while it was idle, so it has certainly not begun this call: a new one may have it.
                link.lose()
            except OSError as error:
                raise ToolError(f"python: cannot hand over the call: {error}") from None
        raise ToolError(f"python: {link.fate}")

    def _link(self) -> ForkLink:
        """The server of the running loop. Starting one blocks for a millisecond, and cannot be cancelled halfway."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is not None and link.num_begun >= self._config.recycle_calls:
            link.retire()
        if link is None or link.is_lost or link.is_retired:
            for old in [old for old in self._links if old.is_closed()]:
                self._links.pop(old).lose()
            try:
                link = self._links[loop] = ForkLink(self._command, environment=_ENVIRONMENT, on_ready=self._herald)
            except OSError as error:
                raise ToolError(f"python: cannot start {self._command[0]}: {error}") from None
        return link


class _Herald:
    """Says once what the servers of a tool are like; knows none of them, so that they end with the last reference."""

    def __init__(self, config: PythonConfig) -> None:
        self._is_required = config.require_isolation
        self._has_said = False

    def __call__(self, ready: Ready) -> str:
        """Why the server must not be used, if it must not."""
        if not self._has_said:
            self._has_said = True
            if ready.missing:
                logger.warning("python: cannot preload %s", ", ".join(ready.missing))
            if not ready.isolation.is_full:
                logger.warning("python: %s", ready.isolation)
        return str(ready.isolation) if self._is_required and not ready.isolation.is_full else ""


def _settings(config: PythonConfig) -> str:
    limits = {
        "RLIMIT_CPU": config.cpu_s,
        "RLIMIT_FSIZE": config.max_file_mib << 20,
        "RLIMIT_NOFILE": config.max_open_files,
        "RLIMIT_NPROC": config.max_processes,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    settings = {
        "isolation": config.isolation,
        "limits": limits,
        "memory_bytes": config.memory_mib << 20,
        "disk_bytes": config.disk_mib << 20,
        "preload": config.preload,
        "readable": config.readable,
    }
    return msgspec.json.encode(settings).decode()
