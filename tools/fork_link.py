"""ForkLink: one process of `python_server.py`, from its start to its end, and the socket to it."""

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from typing import IO

import msgspec

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long a server may take for what takes a healthy one a millisecond."""
_MAX_REPORT_BYTES = 4096


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="run"):
    """Fork a process for a call. Produced by `ForkServer`, consumed by `python_server.py`."""

    call: int
    folder: str
    """Where it works; removed by the server only if this process has vanished."""


class KillRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="kill"):
    """Kill the process group of a call. Produced by `ForkServer`, consumed by `python_server.py`."""

    call: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a call. Produced by `python_server.py`, consumed by `ForkServer`."""

    call: int
    exit_code: int = 0
    """-N for signal N."""
    error: str = ""
    """Why there was never a process, where there was none."""


class ForkLink:
    """A running server, and the socket to it."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str]) -> None:
        """Raises `OSError` where it cannot be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as stack:
            stack.enter_context(ours)
            with theirs:
                # Its stderr is ours: what it says there is a fault of the interpreter, or of this project.
                process = subprocess.Popen(
                    command,
                    stdin=theirs,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env=dict(environment),
                    start_new_session=True,
                )
            stack.pop_all()
        ours.setblocking(False)
        self.is_lost = False
        self._socket = ours
        self._process = process
        self._end = weakref.finalize(self, _end, ours, process)
        self._calls: dict[int, asyncio.Future[Report | None]] = {}
        self._decoder = msgspec.json.Decoder(Report)
        self._lost = asyncio.Event()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours, self._receive)

    @property
    def fate(self) -> str:
        """What became of a server that is lost."""
        code = self._process.returncode
        return f"the server of its processes ended ({signal_name(-code) if code < 0 else f'exit code {code}'})"

    async def begin(self, request: RunRequest, *, files: Sequence[IO[bytes]]) -> "asyncio.Future[Report | None]":
        """Hand a call over; the future gets its report, or None where the server ends before.

        Raises `ConnectionError` where the server had ended, and so not seen the call.
        """
        await self._send(request, [file.fileno() for file in files])
        ended = self._calls[request.call] = self._loop.create_future()
        return ended

    async def kill(self, ended: "asyncio.Future[Report | None]", *, call: int) -> None:
        """Kill the process group of a call, and return when it is gone."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._send(KillRequest(call=call), [])
                await asyncio.wait([ended])
        except TimeoutError:
            logger.warning("python: the server of its processes does not answer, and is killed")
            self._process.kill()
            self.lose()
        except ConnectionError:
            self.lose()

    async def aclose(self) -> None:
        """Ask it to end, and kill it where it does not."""
        if self.is_lost:
            return
        self._socket.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._lost.wait()
        except TimeoutError:
            self._process.kill()
        finally:
            self.lose()

    def lose(self) -> None:
        """Let go of a server that has ended, or shall."""
        if self.is_lost:
            return
        self.is_lost = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._end()
        if self._loop.is_closed():
            return  # nobody waits any more
        self._lost.set()
        self._room.set()
        for ended in self._calls.values():
            ended.set_result(None)
        self._calls.clear()

    async def _send(self, message: RunRequest | KillRequest, descriptors: Sequence[int]) -> None:
        data = msgspec.json.encode(message)
        while True:
            if self.is_lost:
                raise ConnectionResetError
            try:
                socket.send_fds(self._socket, [data], descriptors)
                return
            except BlockingIOError:
                self._room.clear()
                self._loop.add_writer(self._socket, self._tell_of_room)
                await self._room.wait()

    def _tell_of_room(self) -> None:
        self._loop.remove_writer(self._socket)
        self._room.set()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_MAX_REPORT_BYTES)
            report = self._decoder.decode(data) if data else None
        except BlockingIOError:
            return
        except ConnectionError:
            report = None  # it ended before it had read all of ours
        except msgspec.DecodeError as error:
            logger.warning("python: the server of its processes said what cannot be read, and is killed: %s", error)
            self._process.kill()
            report = None
        if report is None:
            self.lose()
        else:
            self._calls.pop(report.call).set_result(report)


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; real-time signals have no name of their own.

    >>> signal_name(40)
    'signal 40'
    """
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _end(connection: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    """Close the socket, which ends a healthy server, and wait for its end."""
    connection.close()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
