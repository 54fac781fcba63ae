"""Whether this machine isolates programs: by trying it, in a process that is thrown away.

`main` prints one line of JSON: {"isolation": "namespaces", "reason": ""}, or the degree that is left and why.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import IO

from . import landlock, namespaces
from .sandboxes import Sandboxes

_PATIENCE_S = 10


def main() -> None:
    reason = why_not(json.loads(sys.argv.pop()))
    answer = {"isolation": "filters" if reason else "namespaces", "reason": reason, "landlock": landlock.version()}
    sys.stdout.write(json.dumps(answer) + "\n")


def why_not(extra: Sequence[str]) -> str:
    """Why a program cannot have namespaces of its own here; empty where it can."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as said, os.fdopen(writing, "wb", buffering=0) as saying:
        trial = _Trial(extra, saying)
        has_succeeded = trial.run(trial.enter_server)
        saying.close()
        return "" if has_succeeded else said.read().decode() or "the trial ended without a word"


class _Trial:
    """All that a call enters, each step in the process in which a call takes it."""

    def __init__(self, extra: Sequence[str], saying: IO[bytes]) -> None:
        self._extra = extra
        self._saying = saying

    def run(self, step: Callable[[], bool], *, fork: Callable[[], int] = os.fork) -> bool:
        """Whether a step succeeds in a fork; the first that fails says why."""
        pid = fork()
        if pid:
            return os.waitpid(pid, 0)[1] == 0
        signal.alarm(_PATIENCE_S)
        has_succeeded = False
        try:
            has_succeeded = step()
        except OSError as error:
            self._saying.write(str(error).encode())
        finally:
            os._exit(not has_succeeded)

    def enter_server(self) -> bool:
        namespaces.enter_server(self._extra)
        return self.run(self._begin_server)

    def _begin_server(self) -> bool:
        sandboxes = Sandboxes(disk_bytes=1 << 20, memory_bytes=1 << 30)
        while (sandbox := sandboxes.take(num_waiting=1)) is None:
            sandboxes.receive()

        def confine() -> bool:
            sandbox.enter()
            sandbox.confine()
            return True

        return self.run(confine, fork=sandbox.fork)
