"""Where the ranks of one learner find each other: a file, or a store that listens where told and nowhere else."""

import socket
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist

from engine.errors import ConfigError

BACKLOG = 1024
"""Ranks that may connect at once."""


def meet(address: str, *, rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """The store of all ranks: at `tcp://host:port`, where rank 0 listens on that host alone, or in `file:///path`.

    A file, new for each meeting, does for ranks that share a file system, and needs no port. torch's own `init_method`
    would have rank 0 listen on every interface, to whoever comes. Raises `ConfigError` for an address of another kind,
    or one that cannot be listened on.
    """
    parts = urlsplit(address)
    timeout = timedelta(seconds=timeout_s)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        store = dist.FileStore(parts.path, world_size)
        store.set_timeout(timeout)
        return store
    if parts.scheme != "tcp" or not parts.hostname or not parts.port:
        raise ConfigError(f"ranks meet at tcp://host:port or in file:///path, got {address!r}")
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
