"""Ports of this machine that nobody listens on."""

import socket
from collections.abc import Generator
from contextlib import contextmanager

LOOPBACK = "127.0.0.1"


def free_port(address: str = LOOPBACK) -> int:
    """Free when asked for; whoever binds it first has it."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


@contextmanager
def reserved_port(address: str = LOOPBACK) -> Generator[int, None, None]:
    """A port that is given to nobody else for the length of the block, while a server that takes long to start does.

    The server must set SO_REUSEADDR, as asyncio's and uvicorn's do: with it a port can be listened on that is bound and
    not listened on, and the kernel chooses such a port for nobody who asks for any.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind((address, 0))
        yield reservation.getsockname()[1]
