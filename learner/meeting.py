"""Where the ranks of one learner find each other: a store that listens where it was told to, and nowhere else."""

import socket
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist

from engine.errors import ConfigError

BACKLOG = 1024
"""Ranks that may connect at once."""


def meet(address: str, *, rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """The store of all ranks at `tcp://host:port`. Rank 0 listens on that host alone.

    torch's own `init_method` would have it listen on every interface, to whoever comes. Raises `ConfigError` for an
    address of another kind, or one that cannot be listened on.
    """
    parts = urlsplit(address)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port:
        raise ConfigError(f"ranks meet at tcp://host:port, got {address!r}")
    timeout = timedelta(seconds=timeout_s)
    if rank > 0:
        return dist.TCPStore(parts.hostname, parts.port, world_size, is_master=False, timeout=timeout)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(f"{address}: rank 0 cannot listen there: {error}") from None
    # The store owns the descriptor from here on.
    return dist.TCPStore(
        parts.hostname,
        parts.port,
        world_size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
