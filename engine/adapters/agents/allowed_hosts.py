"""Where Baton may connect to on a user's word: an allow-list of hosts, then a check of the resolved address.

A listed name is not enough, because whoever owns the name chooses its addresses. Addresses that lead back into the
machine or to a cloud's metadata service are open only when the list names the address itself, or names ``localhost``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["AllowedHosts", "is_guarded_address"]

_Address = IPv4Address | IPv6Address

_METADATA: Final = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",
        "fd00:ec2::254",  # Amazon over IPv6, a private address that is_link_local does not know
        "100.100.100.200",  # Alibaba, in the range for carriers' own use
        "168.63.129.16",  # Azure's host agent, a public address
        "192.0.0.192",  # Oracle, in the range for protocol assignments
    )
)
_THIS_NETWORK: Final = ip_network("0.0.0.0/8")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_NAME: Final = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
_ENTRY: Final = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class _Entry:
    host: str
    """A lower-case name without its final dot; ``.domain`` for ``*.domain``; empty for an address."""
    address: _Address | None
    port: int | None

    def names(self, host: str, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.address is not None:
            return self.address == _address_of(host)
        return host.endswith(self.host) if self.host.startswith(".") else host == self.host


class AllowedHosts:
    """The hosts that calls may go to.

    Args:
        entries: ``host``, ``host:port`` and ``*.domain`` (every name below the domain, not the domain itself); an IPv6
            address with a port in brackets. Without a port all ports are meant. Empty allows nothing.

    Raises:
        ConfigurationError: an entry has none of these forms.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries: Sequence[_Entry] = tuple(_parse(entry) for entry in entries)

    def allows(self, host: str, port: int) -> bool:
        """Whether the list names ``host`` (as in the URL, ASCII) at ``port``."""
        wanted = _canonical(host)
        return any(entry.names(wanted, port) for entry in self._entries)

    def allows_address(self, host: str, port: int, address: str) -> bool:
        """Whether a connection for ``host`` may go to ``address``, one of those that it resolved to."""
        if not self.allows(host, port):
            return False
        found = _address_of(address)
        if found is None:
            return False
        if not is_guarded_address(found):
            return True
        if found.is_loopback and _canonical(host) == "localhost":
            return True
        return any(entry.address == found and entry.port in (None, port) for entry in self._entries)


def is_guarded_address(address: _Address) -> bool:
    """Whether it is loopback, link-local, unspecified, multicast, broadcast or metadata, also wrapped in IPv6."""
    inner = _embedded(address)
    if inner is not None and is_guarded_address(inner):
        return True
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in _METADATA
        or (isinstance(address, IPv4Address) and (address in _THIS_NETWORK or int(address) == 2**32 - 1))
    )


def _embedded(address: _Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64 or int(address) < 2**32:
        return IPv4Address(int(address) & (2**32 - 1))
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def _parse(entry: str) -> _Entry:
    wanted = entry.strip().lower()
    bare = _address_of(wanted)
    if bare is not None:
        return _Entry("", bare, None)
    match = _ENTRY.fullmatch(wanted)
    port = int(match["port"]) if match and match["port"] else None
    if match and port != 0 and (port or 0) < 2**16:
        address = _address_of(match["six"] or match["name"])
        if address is not None:
            return _Entry("", address, port)
        name = (match["name"] or "").removesuffix(".")
        if _NAME.fullmatch(name):
            return _Entry(name.removeprefix("*"), None, port)
    raise ConfigurationError(
        f"The entry {entry!r:.100} of the setting `allowed_hosts` is none of host, host:port, *.domain"
        " (in ASCII, without scheme or path; an IPv6 address with a port as [::1]:8080)",
        {"setting": "allowed_hosts"},
    )


def _canonical(host: str) -> str:
    return host.lower().removesuffix(".").removeprefix("[").removesuffix("]")


def _address_of(text: str) -> _Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
