"""The inside of the fork server: it forks, kills and reaps one process per call, and never runs a program itself.

Started as `python -I python_server.py LIMITS`, with LIMITS a JSON object of `resource` names and values, and its end
of a SOCK_SEQPACKET pair as stdin. It knows nothing of this project, so any interpreter can run it.

    ──► {"type": "run", "call": 7, "folder": "/tmp/x"}    with descriptors: stdin (the program), stdout, stderr
    ──► {"type": "kill", "call": 7}
    ◄── {"call": 7, "exit_code": 0}                       -N for signal N; its whole process group is gone
    ◄── {"call": 7, "error": "..."}                       it could not be started

A number of a process is never used after it was reaped: a group is killed while its first process is unreaped, which
keeps the number taken. At the end of its socket the server kills what runs, removes the folders, and ends. Where it
is killed itself, the kernel kills the first process of each call.
"""

import ast
import atexit
import ctypes
import gc
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import textwrap
from contextlib import suppress
from typing import Any, NamedTuple

PRELOADED = ("collections", "datetime", "decimal", "fractions", "functools", "itertools", "math", "random", "re")
"""What programs import most: imported once here, it costs a call nothing. `random` seeds itself anew after a fork."""
MAX_MESSAGE_BYTES = 65_536
NUM_FILES = 3
PR_SET_PDEATHSIG = 1

_prctl = ctypes.CDLL(None).prctl


def main() -> None:
    limits = json.loads(sys.argv.pop())
    for name in PRELOADED:
        __import__(name)
    gc.collect()
    # What is here already is never traversed again, and stays in pages that all processes share.
    gc.freeze()
    folder = _Server(socket.socket(fileno=sys.stdin.fileno())).serve()
    status = 0
    if folder is not None:
        os.chdir(folder)
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
        source = textwrap.dedent(sys.stdin.read()).strip()
        _bind_limits(limits)
        status = _run_to_the_end(source)
    # The interpreter's own way out takes some 5 ms to free what ends with the process anyway.
    os._exit(status)


class _Call(NamedTuple):
    """A process that is not reaped yet."""

    number: int
    pid: int
    folder: str


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._running: dict[int, _Call] = {}  # by a descriptor that is readable when the process has ended
        self._ready = select.poll()
        self._ready.register(control, select.POLLIN)

    def serve(self) -> str | None:
        """Serve until the socket ends, then return None; in each forked process, return the folder of its call."""
        with suppress(ConnectionError):
            while True:
                for descriptor, _ in self._ready.poll():
                    if descriptor in self._running:
                        self._report(descriptor)
                    elif (folder := self._obey()) is not None:
                        return folder
        for call in self._running.values():
            _kill(call.pid)
        for call in self._running.values():
            os.waitpid(call.pid, 0)
            shutil.rmtree(call.folder, ignore_errors=True)
        return None

    def _report(self, descriptor: int) -> None:
        self._ready.unregister(descriptor)
        os.close(descriptor)
        call = self._running.pop(descriptor)
        self._tell(call=call.number, exit_code=_reap(call.pid))

    def _obey(self) -> str | None:
        """Read a request and do it; returns the folder in a process that was forked."""
        data, files, *_ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, NUM_FILES)
        try:
            if not data:
                raise ConnectionResetError
            request = json.loads(data)
            if request["type"] == "run":
                return self._fork(request["call"], folder=request["folder"], files=files)
            # The request may have crossed the report: then nothing has this number.
            for call in self._running.values():
                if call.number == request["call"]:
                    _kill(call.pid)
            return None
        finally:
            for file in files:
                os.close(file)

    def _fork(self, number: int, *, folder: str, files: list[int]) -> str | None:
        if len(files) != NUM_FILES:
            return self._tell(call=number, error="too many open files")
        try:
            pid = os.fork()
        except OSError as error:
            return self._tell(call=number, error=str(error))
        if pid == 0:
            self._leave(files)
            return folder
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            _reap(pid)
            return self._tell(call=number, error=str(error))
        self._running[descriptor] = _Call(number, pid, folder)
        self._ready.register(descriptor, select.POLLIN)
        return None

    def _leave(self, files: list[int]) -> None:
        """In the forked process: nothing of the server stays open, and a session of its own begins."""
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:
            os._exit(1)  # the server ended before the line above
        os.setsid()
        # The server's end of the socket is descriptor 0: the program's stdin takes its place.
        self._control.detach()
        for target, file in enumerate(files):
            os.dup2(file, target)
        for descriptor in self._running:
            os.close(descriptor)

    def _tell(self, **report: Any) -> None:
        self._control.send(json.dumps(report).encode())


def _kill(pid: int) -> None:
    """Kill the process group of an unreaped process; alone, while it has no group of its own yet."""
    with suppress(PermissionError):  # it became another user: who asked will not wait for ever
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)


def _reap(pid: int) -> int:
    _kill(pid)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _bind_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, name)
        _, ceiling = resource.getrlimit(kind)
        soft = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        # The soft limit on CPU time is a signal that names itself, and can be caught; the hard one cannot.
        is_room = ceiling == resource.RLIM_INFINITY or soft < ceiling
        hard = soft + 1 if name == "RLIMIT_CPU" and is_room else soft
        resource.setrlimit(kind, (soft, hard))


def _run_to_the_end(source: str) -> int:
    """Run a program and all that an interpreter does behind it: threads, exit functions, finalizers, full buffers."""
    status = 0
    try:
        _run(source)
    except SystemExit as end:
        if isinstance(end.code, int):
            status = end.code & 0xFF
        elif end.code is not None:
            sys.stderr.write(f"{end.code}\n")
            status = 1
    except BaseException:  # whatever a program raises is told as the interpreter tells it
        sys.excepthook(*sys.exc_info())
        status = 1
    if (threading := sys.modules.get("threading")) is not None:
        threading._shutdown()  # joins those that are no daemons; there is no public name
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
    return status


def _run(source: str) -> None:
    """Run it in a namespace of its own, and echo the value of a last expression unless it is None."""
    tree = ast.parse(source, "<python>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    names = {"__name__": "__main__"}
    exec(compile(tree, "<python>", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "<python>", "eval"), names)
        if value is not None:
            sys.stdout.write(f"{value}\n")


if __name__ == "__main__":
    main()
