"""Places of the degree `namespaces`: each the namespaces of an init, which were made ahead."""

import os
import signal
from contextlib import suppress

from . import libc, namespaces, seccomp
from .inits import Init, Nursery

_NUM_AHEAD = 4
"""Inits that wait for calls which nobody has made yet."""


class Sandboxes:
    """Needs `namespaces.enter_server`, and a process that is pid 1 behind it and has imported little."""

    name = "namespaces"

    def __init__(self, *, disk_bytes: int, memory_bytes: int) -> None:
        self._nursery = Nursery(disk_bytes=disk_bytes, memory_bytes=memory_bytes)
        self._ready: list[Init] = []
        seccomp.prepare(has_namespaces=True)

    def fileno(self) -> int:
        return self._nursery.fileno()

    def receive(self) -> None:
        self._ready.append(self._nursery.take())

    def take(self, *, num_waiting: int) -> "Sandbox | None":
        while len(self._ready) + self._nursery.num_ordered < num_waiting + _NUM_AHEAD:
            self._nursery.order()
        return Sandbox(self._ready.pop(0)) if self._ready else None


class Sandbox:
    """The end of the init is the end of everything in it: the kernel sees to that."""

    def __init__(self, init: Init) -> None:
        self._init = init

    def fork(self) -> int:
        libc.join(self._init.process, libc.CLONE_NEWPID)
        pid = os.fork()
        if pid:
            with suppress(OSError):  # the init has been killed, and the program with it
                self._init.link.send(b"begin")
        return pid

    def enter(self) -> str:
        namespaces.join_call(self._init.process)
        return "/tmp"

    def confine(self) -> None:
        namespaces.enter_program()
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.filter_calls(has_namespaces=True)

    def kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init.process, signal.SIGKILL)

    def end(self, pid: int) -> int:
        self.kill(pid)
        return self._init.process

    def leave(self) -> str:
        try:
            self._init.link.setblocking(False)
            return self._init.link.recv(16).decode()
        except OSError:
            return ""  # it ended with `begin` unread, or said nothing
        finally:
            self._init.link.close()
            os.close(self._init.process)
