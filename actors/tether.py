"""A tether: runs a command in a process group of its own, which ends with whoever started it, also by `kill -9`.

    python tether.py FD COMMAND ...

FD is one end of a socket pair whose other end the parent holds. When that closes, or at SIGTERM, the whole group gets
SIGTERM, and SIGKILL after `GRACE_S`; when the command ends by itself, what is left of its group is killed. Exits with
the command's exit code, or as shells do with 128 + n where signal n ended it. For programs that start processes of
their own and do not watch their parent.

Two processes: whoever waits for a process may also kill it, as asyncio does when a start is cancelled. The front is
there to be waited for and killed; the keeper ends the group even then.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys

GRACE_S = 3.0
LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def main(descriptor: int, command: list[str]) -> int:
    front = os.getpid()
    if (keeper := os.fork()) == 0:
        os._exit(_keep(front, descriptor, command))
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(keeper, number))
    return _code(os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1]))


def _keep(front: int, descriptor: int, command: list[str]) -> int:
    # SIGTERM becomes readable here, at whatever moment it comes.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    _end_with(front, signal.SIGTERM)
    keeper = os.getpid()
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: _end_with(keeper, signal.SIGKILL))
    poll = select.poll()
    for end in (told, descriptor, os.pidfd_open(child.pid)):
        poll.register(end, select.POLLIN)
    poll.poll()
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return _code(child.wait())


def _end_with(parent: int, number: int) -> None:
    """Have the kernel send this process a signal when its parent ends, or has ended."""
    LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
