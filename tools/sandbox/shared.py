"""Places of the degrees `filters` and `none`: a folder of the host's, and a process group."""

import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from . import landlock, libc, seccomp


class Folders:
    """Places without namespaces; `is_filtered` is the degree `filters`."""

    def __init__(self, *, is_filtered: bool, extra: Sequence[str]) -> None:
        self.name = "filters" if is_filtered else "none"
        self._extra = extra
        seccomp.prepare(has_namespaces=False)

    def fileno(self) -> int:
        return -1

    def receive(self) -> None:
        raise AssertionError("there always is one")

    def take(self, *, num_waiting: int) -> "Folder":
        return Folder(is_filtered=self.name == "filters", extra=self._extra)


class Folder:
    """The program leads a process group, which a filter keeps its children from leaving."""

    def __init__(self, *, is_filtered: bool, extra: Sequence[str]) -> None:
        self._is_filtered = is_filtered
        self._extra = extra
        self._path = tempfile.mkdtemp(prefix="python-")

    def fork(self) -> int:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                os._exit(1)  # it ended before the line above
        return pid

    def enter(self) -> str:
        return self._path

    def confine(self) -> None:
        if self._is_filtered:
            libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
            landlock.restrict(self._path, extra=self._extra)
            seccomp.filter_calls(has_namespaces=False)

    def kill(self, pid: int) -> None:
        with suppress(PermissionError):  # it became another user: who asked will not wait for ever
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(pid, signal.SIGKILL)  # it has no group of its own yet

    def end(self, pid: int) -> None:
        self.kill(pid)

    def leave(self) -> str:
        shutil.rmtree(self._path, ignore_errors=True)
        return ""
