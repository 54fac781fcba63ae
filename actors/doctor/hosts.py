"""Hosts: which addresses are this machine, and whether somebody answers there."""

import socket
from urllib.parse import urlsplit

ANSWER_S = 3.0
"""How long somebody may take to answer the doctor."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_here(url: str) -> bool:
    """Whether an address is plainly one of this machine."""
    host = urlsplit(url).hostname or ""
    return host in (*LOOPBACK, socket.gethostname()) or host.startswith("127.")


def listens(address: str, *, timeout_s: float = ANSWER_S) -> bool:
    """Whether somebody accepts a connection at `host:port`."""
    parts = urlsplit(f"//{address.removeprefix('ray://')}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def num_free_ports(wanted: int) -> int:
    """How many ports of loopback can be had at once, up to `wanted`."""
    probes: list[socket.socket] = []
    try:
        for _ in range(wanted):
            probes.append(socket.socket())
            probes[-1].bind((LOOPBACK[1], 0))
    except OSError:
        return len(probes) - 1 if probes else 0
    finally:
        for probe in probes:
            probe.close()
    return wanted
