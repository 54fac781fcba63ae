"""Addresses a page may be fetched from: public ones, and those that somebody allowed; asked of what is connected to."""

import ipaddress
from collections.abc import Sequence

from engine.errors import ConfigError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


class ForbiddenAddressError(OSError):
    """A connection was about to go where it may not."""


class AddressRule:
    """Public addresses, and the networks in `allowed` such as `10.1.0.0/16`.

    >>> rule = AddressRule(allowed=["10.1.0.0/16"])
    >>> [rule.permits(a) for a in ("93.184.216.34", "10.1.2.3", "10.2.0.1", "127.0.0.1", "::ffff:169.254.169.254")]
    [True, True, False, False, False]
    """

    def __init__(self, *, allowed: Sequence[str] = ()) -> None:
        """Raises `ConfigError` for what is no network."""
        try:
            self._allowed: list[_Network] = [ipaddress.ip_network(network) for network in allowed]
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def permits(self, address: str) -> bool:
        """Whether a socket may connect to an IP address, as text. What is no address is not permitted."""
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        meant = _meant(parsed)
        return all(self._permits(one) for one in meant) or any(parsed in network for network in self._allowed)

    def check(self, address: str) -> None:
        """Raises `ForbiddenAddressError` where the address is not permitted."""
        if not self.permits(address):
            raise ForbiddenAddressError(f"{address} is not a public address")

    def _permits(self, address: _Address) -> bool:
        if any(address in network for network in self._allowed):
            return True
        return address.is_global and not address.is_multicast and not address.is_reserved


def _meant(address: _Address) -> list[_Address]:
    """The address, or the ones that are reached through it: IPv4 inside IPv6 in any of its forms."""
    if not isinstance(address, ipaddress.IPv6Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    if any(address in network for network in _NAT64):
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]
