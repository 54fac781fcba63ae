"""The server: it imports, then forks, kills and reaps one program per call, and never runs one itself.

Started with SETTINGS, a JSON object, and its end of a SOCK_SEQPACKET pair as stdin.

    ◄── {"type": "ready", "isolation": {"isolation": "namespaces", "reason": ""}, "missing": []}      once
    ──► {"type": "run", "call": 7}     with descriptors: stdin (the program), stdout, stderr
    ──► {"type": "kill", "call": 7}
    ◄── {"type": "end", "call": 7, "exit_code": 0, "broke": ""}       -N for signal N; all its processes are gone
    ◄── {"type": "end", "call": 7, "error": "..."}                    it could not be started

    run ──► waiting ──► a place is there: fork ──► program ends: reap, kill what it left ──► all is gone: end

A number of a process is never used after it was reaped. At the end of its socket the server kills what runs, and ends;
where it is killed itself, the kernel kills what it had forked.
"""

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from . import landlock, libc, namespaces, probe, visible, warm
from .isolation import Place, Places
from .program import Bounds, become
from .sandboxes import Sandboxes
from .shared import Folders

MAX_MESSAGE_BYTES = 65_536
NUM_FILES = 3


def main() -> None:
    settings = json.loads(sys.argv.pop())
    places, reason = _places(settings)
    missing = warm.warm_up(settings["preload"])
    bounds = Bounds(settings["limits"], settings["memory_bytes"])
    server = _Server(socket.socket(fileno=sys.stdin.fileno()), places, bounds)
    found = {"isolation": places.name, "reason": reason, "landlock": landlock.version()}
    with suppress(ConnectionError):
        server.tell(type="ready", isolation=found, missing=missing)
        server.serve()
    server.end()


def _places(settings: dict[str, Any]) -> tuple[Places, str]:
    """Where programs run, and why they do not in namespaces. With these, this returns in another process."""
    extra = settings["readable"]
    if settings["isolation"] == "none":
        return Folders(is_filtered=False, extra=extra), "isolation is 'none'"
    visible.trim(extra)
    reason = probe.why_not(extra) if settings["isolation"] == "auto" else "isolation is 'filters'"
    if reason:
        return Folders(is_filtered=True, extra=extra), reason
    namespaces.enter_server(extra)
    pid = os.fork()
    if pid:
        _stay_outside(pid)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    return Sandboxes(disk_bytes=settings["disk_bytes"], memory_bytes=settings["memory_bytes"]), ""


def _stay_outside(pid: int) -> None:
    """Be what the parent waits for, until the server ends; end as it does."""
    # The end of the server is the end of its socket, so nobody else may hold it.
    os.close(sys.stdin.fileno())
    _, status = os.waitpid(pid, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    if exit_code < 0:
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code)


class _Call:
    """A call from its request to its end."""

    def __init__(self, number: int, files: list[int]) -> None:
        self.number = number
        self.files = files
        """Open while it waits."""
        self.place: Place | None = None
        self.pid = 0
        """Its process, while that is not reaped."""
        self.told = -1
        """Where it says what failed before it began."""
        self.exit_code = 0


class _Server:
    def __init__(self, control: socket.socket, places: Places, bounds: Bounds) -> None:
        self._control = control
        self._places = places
        self._bounds = bounds
        self._waiting: list[_Call] = []
        self._running: list[_Call] = []
        self._ready = select.poll()
        self._acts: dict[int, Callable[[], object]] = {}
        self._watch(control.fileno(), self._obey)
        if places.fileno() >= 0:
            self._watch(places.fileno(), self._receive)
            self._fill()

    def serve(self) -> None:
        """Serve until the socket ends, which is a `ConnectionError`."""
        while True:
            for descriptor, _ in self._ready.poll():
                self._acts[descriptor]()

    def end(self) -> None:
        """Kill what runs, and wait until it is gone."""
        for call in self._running:
            if call.place and call.pid:
                call.place.kill(call.pid)
        for call in self._running:
            if call.place and call.pid:
                os.waitpid(call.pid, 0)
            if call.place:
                call.place.leave()

    def tell(self, **report: Any) -> None:
        self._control.send(json.dumps(report).encode())

    def _watch(self, descriptor: int, act: Callable[[], object]) -> None:
        self._acts[descriptor] = act
        self._ready.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> None:
        self._ready.unregister(descriptor)
        del self._acts[descriptor]

    def _obey(self) -> None:
        data, files, *_ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, NUM_FILES)
        if not data:
            raise ConnectionResetError
        request = json.loads(data)
        if request["type"] == "run":
            self._waiting.append(_Call(request["call"], files))
            self._fill()
        else:
            self._kill(request["call"])

    def _receive(self) -> None:
        try:
            self._places.receive()
        except ConnectionError:
            raise
        except OSError as error:
            if self._waiting:
                self._refuse(self._waiting.pop(0), str(error))
        self._fill()

    def _fill(self) -> None:
        """Begin calls that wait, as long as there are places."""
        while True:
            try:
                place = self._places.take(num_waiting=len(self._waiting)) if self._waiting else None
            except OSError as error:
                self._refuse(self._waiting.pop(0), str(error))
                continue
            if place is None:
                return
            self._begin(self._waiting.pop(0), place)

    def _begin(self, call: _Call, place: Place) -> None:
        if len(call.files) != NUM_FILES:
            place.leave()
            return self._refuse(call, "too many open files")
        descriptors: list[int] = []
        try:
            descriptors += os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            call.told, telling = descriptors
            call.pid = place.fork()
            if call.pid == 0:
                become(place, self._bounds, files=call.files, told=telling)
            os.close(descriptors.pop())
            process = os.pidfd_open(call.pid)
        except OSError as error:
            if call.pid:
                place.kill(call.pid)
                os.waitpid(call.pid, 0)
            for descriptor in descriptors:
                os.close(descriptor)
            place.leave()
            return self._refuse(call, str(error))
        self._let_go(call.files)
        call.place = place
        self._running.append(call)
        return self._watch(process, lambda: self._reap(call, place, process))

    def _reap(self, call: _Call, place: Place, process: int) -> None:
        self._forget(process)
        os.close(process)
        rest = place.end(call.pid)
        _, status = os.waitpid(call.pid, 0)
        call.pid, call.exit_code = 0, os.waitstatus_to_exitcode(status)
        if rest is None:
            self._finish(call, place)
        else:
            self._watch(rest, lambda: (self._forget(rest), self._finish(call, place)))

    def _finish(self, call: _Call, place: Place) -> None:
        broke = place.leave()
        error = ""
        with suppress(BlockingIOError):
            error = os.read(call.told, MAX_MESSAGE_BYTES).decode()
        os.close(call.told)
        self._running.remove(call)
        if error:
            self._refuse(call, error)
        else:
            self.tell(type="end", call=call.number, exit_code=call.exit_code, broke=broke)

    def _kill(self, number: int) -> None:
        """The request may have crossed the report: then nothing has this number."""
        for call in self._running:
            if call.number == number and call.place and call.pid:
                call.place.kill(call.pid)
        for call in [call for call in self._waiting if call.number == number]:
            self._waiting.remove(call)
            self._let_go(call.files)
            self.tell(type="end", call=number, exit_code=-signal.SIGKILL)

    def _refuse(self, call: _Call, error: str) -> None:
        self._let_go(call.files)
        self.tell(type="end", call=call.number, error=error)

    def _let_go(self, files: list[int]) -> None:
        while files:
            os.close(files.pop())
