"""ForkLink: one server of `tools.sandbox`, from its start to its end, and the socket to it."""

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Literal

import msgspec

from tools.python_isolation import Isolation

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long a server may take for what takes a healthy one a millisecond."""
_MAX_REPORT_BYTES = 4096


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="run"):
    """Fork a process for a call. Produced by `ForkServer`, consumed by `tools.sandbox.server`."""

    call: int


class KillRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="kill"):
    """Kill all processes of a call. Produced by `ForkServer`, consumed by `tools.sandbox.server`."""

    call: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ready"):
    """What a server has come to. Produced by `tools.sandbox.server` before any end, consumed by `ForkServer`."""

    isolation: Isolation
    missing: tuple[str, ...] = ()
    """Modules that should have been preloaded, and cannot be imported."""


class End(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="end"):
    """The end of a call. Produced by `tools.sandbox.server`, consumed by `ForkServer`."""

    call: int
    exit_code: int = 0
    """-N for signal N."""
    broke: Literal["", "memory"] = ""
    """The limit for whose sake it was killed, where that was not its caller's wish."""
    error: str = ""
    """Why there was never a process, where there was none."""


class ForkLink:
    """A running server, and the socket to it."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], on_ready: Callable[[Ready], str]
    ) -> None:
        """`on_ready` says why the server must not be used, or nothing. Raises `OSError` where it cannot be started."""
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
        self.is_retired = False
        self.num_begun = 0
        self._on_ready = on_ready
        self._refusal = ""
        self._socket = ours
        self._process = process
        self._end = weakref.finalize(self, _end, ours, process)
        self._calls: dict[int, asyncio.Future[End | None]] = {}
        self._decoder = msgspec.json.Decoder(Ready | End)
        self._lost = asyncio.Event()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours, self._receive)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def fate(self) -> str:
        """What became of a server that is lost."""
        if self._refusal:
            return self._refusal
        code = self._process.returncode
        return f"the server of its processes ended ({signal_name(-code) if code < 0 else f'exit code {code}'})"

    async def begin(self, request: RunRequest, *, files: Sequence[IO[bytes]]) -> "asyncio.Future[End | None]":
        """Hand a call over; the future gets its end, or None where the server ends before.

        Raises `ConnectionError` where the server had ended, and so not seen the call.
        """
        await self._send(request, [file.fileno() for file in files])
        self.num_begun += 1
        ended = self._calls[request.call] = self._loop.create_future()
        return ended

    async def kill(self, ended: "asyncio.Future[End | None]", *, call: int) -> None:
        """Kill all processes of a call, and return when they are gone."""
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

    def retire(self) -> None:
        """End behind the last of the calls that have begun; nobody begins another one."""
        self.is_retired = True
        if not self._calls:
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
        match report:
            case None:
                self.lose()
            case Ready():
                if refusal := self._on_ready(report):
                    self._refusal = refusal
                    self.lose()
            case End():
                self._calls.pop(report.call).set_result(report)
                if self.is_retired and not self._calls:
                    self.lose()


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
