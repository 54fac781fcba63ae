"""ForkServer: one warm interpreter per event loop, which is forked for each call instead of started anew.

    run ──► {"type": "run", "call": 7, ...} + stdin, stdout, stderr ──► python_server.py ──► fork ──► the process
    run ◄── {"call": 7, "exit_code": 0} ◄────────────────────────────── python_server.py ◄── its end

| who    | waits for                      | unblocked by                                                              |
|--------|--------------------------------|---------------------------------------------------------------------------|
| run    | room in the socket             | the server, which reads; its end                                          |
| run    | the report of its call         | the end of the process; the end of the server; cancellation               |
| run    | the report, when cancelled     | SIGKILL for the process; after `PATIENCE_S`, SIGKILL for the server       |
| aclose | the end of the server          | the end of its socket; after `PATIENCE_S`, SIGKILL                        |

The server is the parent of all processes, so it alone signals and reaps them: no number of a process is ever used
when it may belong to another one. A server that ended is noticed by the end of its socket: the calls it had begun
fail, and the next one starts a new server.
"""

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from engine.errors import ToolError
from tools.fork_link import ForkLink, Report, RunRequest

_PROGRAM = Path(__file__).with_name("python_server.py")


class ForkServer:
    """Runs programs in processes forked from `interpreter`, under `limits` (names of `resource` to values).

    A server starts with the first call, in each event loop one, and ends with `aclose`, with this object, or when this
    process ends in whatever way; what runs by then is killed.
    """

    def __init__(self, *, interpreter: str, limits: Mapping[str, int], environment: Mapping[str, str]) -> None:
        """`environment` is all that programs see, beside HOME and TMPDIR, which are the folder of the call."""
        self._command = (interpreter, "-I", str(_PROGRAM), json.dumps(dict(limits)))
        self._environment = dict(environment)
        self._links: dict[asyncio.AbstractEventLoop, ForkLink] = {}
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"ForkServer({self._command[0]}, servers={len(self._links)})"

    async def run(self, folder: str, *, files: Sequence[IO[bytes]]) -> int:
        """Run the program in `files[0]`, with stdout and stderr the other two, in `folder`; returns its exit code.

        -N stands for signal N. Its process group is gone by then, also after cancellation. Closes `files` as soon as
        the process has its own. Raises `ToolError` where it cannot be started, or the server ends before it does.
        """
        request = RunRequest(call=next(self._numbers), folder=folder)
        try:
            link, ended = await self._begin(request, files=files)
        finally:
            for file in files:
                file.close()
        try:
            await asyncio.wait([ended])
        finally:
            if not ended.done():
                await link.kill(ended, call=request.call)
        report = ended.result()
        if report is None:
            raise ToolError(f"python: {link.fate}")
        if report.error:
            raise ToolError(f"python: cannot start a process: {report.error}")
        return report.exit_code

    async def aclose(self) -> None:
        """End the server of the running loop; a later call starts a new one."""
        if (link := self._links.pop(asyncio.get_running_loop(), None)) is not None:
            await link.aclose()

    async def _begin(
        self, request: RunRequest, *, files: Sequence[IO[bytes]]
    ) -> tuple[ForkLink, asyncio.Future[Report | None]]:
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
        if link is None or link.is_lost:
            for old in [old for old in self._links if old.is_closed()]:
                self._links.pop(old).lose()
            try:
                link = self._links[loop] = ForkLink(self._command, environment=self._environment)
            except OSError as error:
                raise ToolError(f"python: cannot start {self._command[0]}: {error}") from None
        return link
