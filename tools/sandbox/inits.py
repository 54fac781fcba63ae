"""Surroundings made ahead: a small process that forks an `init` for each call, which enters its namespaces and waits.

    server ──► b"init" ──► nursery ──fork──► init (pid 1 of its call)
    server ◄── b"" + descriptors: the init itself, a socket to it ◄── init        or its last words, and no descriptor
    server ──► b"begin" ──► init          there is a program now, whose memory is to be watched
    server ◄── b"memory" ◄── init         it has killed the program
    server closes that socket, or ends: the init ends, and the kernel kills all that is left of the call

The nursery is forked before anything is imported: an init costs a fraction of what a fork of the warm server costs.
"""

import os
import select
import signal
import socket
from typing import NamedTuple, NoReturn

from . import limits, namespaces

_WATCH_MS = 50
"""Time between looks at the memory of a call; most calls end before the first."""
_MAX_WORDS = 4096
_SLACK_BYTES = 64 << 20
"""A single process that takes too much meets its own limit first, which it can be told of as a `MemoryError`."""


class Init(NamedTuple):
    """One that waits, with namespaces ready to be entered."""

    process: int
    """A descriptor of it: for `namespaces.join`, and readable when nothing of the call is left."""
    link: socket.socket


class Nursery:
    """The server's side: orders inits and takes those that are ready."""

    def __init__(self, *, disk_bytes: int, memory_bytes: int) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own_processes = namespaces.begin_server()
        if os.fork() == 0:
            self._connection.close()
            _serve(theirs, own_processes, disk_bytes=disk_bytes, memory_bytes=memory_bytes)
        os.close(own_processes)
        theirs.close()
        self.num_ordered = 0

    def fileno(self) -> int:
        """Readable when `take` does not wait."""
        return self._connection.fileno()

    def order(self) -> None:
        self._connection.send(b"init")
        self.num_ordered += 1

    def take(self) -> Init:
        """Wait for one that was ordered. Raises `OSError` where it failed, `ConnectionError` without a nursery."""
        words, descriptors, *_ = socket.recv_fds(self._connection, _MAX_WORDS, 2)
        if not words:
            raise ConnectionResetError("the nursery has ended")
        self.num_ordered -= 1
        if len(descriptors) != 2:
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError("too many open files" if words == b"+" else words.decode())
        return Init(descriptors[0], socket.socket(fileno=descriptors[1]))


def _serve(connection: socket.socket, own_processes: int, *, disk_bytes: int, memory_bytes: int) -> NoReturn:
    # Nobody asks how an init ended: the kernel reaps it. Theirs inherit that for orphans of their calls.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while connection.recv(_MAX_WORDS):
        try:
            namespaces.begin_call(own_processes)
            pid = os.fork()
        except OSError as error:
            connection.send(str(error).encode())
            continue
        if pid == 0:
            os.close(own_processes)
            _be_init(connection, disk_bytes=disk_bytes, memory_bytes=memory_bytes)
    os._exit(0)


def _be_init(connection: socket.socket, *, disk_bytes: int, memory_bytes: int) -> NoReturn:
    try:
        os.setsid()
        namespaces.enter_call(disk_bytes=disk_bytes)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(connection, [b"+"], [os.pidfd_open(os.getpid()), theirs.fileno()])
    except OSError as error:
        connection.send(str(error).encode())
        os._exit(1)
    os.dup2(ours.fileno(), 0)
    # A program that could reach these descriptors could speak for the server.
    os.closerange(1, 64)
    link = socket.socket(fileno=0)
    if link.recv(_MAX_WORDS):
        _watch(link, memory_bytes=memory_bytes)
    os._exit(0)


def _watch(link: socket.socket, *, memory_bytes: int) -> None:
    """Until the socket ends: kill everything that together takes too much."""
    memory_bytes += _SLACK_BYTES
    while not select.select([link], [], [], _WATCH_MS / 1000)[0]:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        if limits.private_bytes(pids, limit=memory_bytes) > memory_bytes:
            link.send(b"memory")
            os.kill(-1, signal.SIGKILL)
