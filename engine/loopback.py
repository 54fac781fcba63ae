"""What means this machine alone: what may be served there without a key, and to whom.

A page of any site can have a name of its own resolve to a loopback address, and would then read what a server there
says without a key. Its requests name that site as their host, so a server without keys answers to its own names alone.
"""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_loopback(authority: str) -> bool:
    """The same of the host of a request, with its port or without.

    >>> names_loopback("[::1]:8000"), names_loopback("localhost"), names_loopback("rebound.example:8000")
    (True, True, False)
    """
    has_port = ":" in authority and not authority.endswith("]")
    name = authority.rpartition(":")[0] if has_port else authority
    return is_loopback(name.strip("[]"))
