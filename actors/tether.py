"""A tether: runs a command in a process group of its own, which ends with whoever started it, also by `kill -9`.

    python tether.py FD COMMAND ...

FD is one end of a socket pair whose other end the parent holds. When that closes, or at SIGTERM, the whole group gets
SIGTERM, and SIGKILL after `GRACE_S`; when the command ends by itself, what is left of its group is killed. Exits with
the command's exit code, or as shells do with 128 + n where signal n ended it. For programs that start processes of
their own and do not watch their parent.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys

GRACE_S = 3.0
_PR_SET_PDEATHSIG = 1


def main(descriptor: int, command: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    libc = ctypes.CDLL(None)
    # Should the tether itself be killed, the command goes with it.
    child = subprocess.Popen(
        command, start_new_session=True, preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    try:
        ended = os.pidfd_open(child.pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        poll.poll()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
