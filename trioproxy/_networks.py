"""Sets of IP networks, asked with addresses as the rest of the package writes them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeAlias

import attrs

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
#: IP version and address as a number; None where there is no IP address.
_Number: TypeAlias = tuple[int, int] | None

#: Stands for every unix socket in a list of networks.
UNIX = "unix"
_BITS = {4: 32, 6: 128}
_MAPPED = 0xFFFF  # the 96 bits before the IPv4 address (RFC 4291 section 2.5.5.2)


@attrs.frozen
class Networks:
    """IP networks, and perhaps all unix sockets; ``in`` tells whether an address belongs to one.

    An address is text as in `client_addr`: ``10.1.2.3:80``, ``[::1]:80``, ``unix:PATH`` or None for
    an unnamed unix socket; without a port will do. An IPv4 address that is mapped into IPv6
    (``::ffff:10.1.2.3``) is that IPv4 address, and a zone (``%eth0``) does not count. What is no
    address belongs to none. It takes as long for a thousand networks as for one.

    Attributes:
      entries: The networks as text, each once, in the order given.
    """

    entries: tuple[str, ...] = ()
    _unix: bool = attrs.field(default=False, repr=False, eq=False)
    #: By IP version: how many bits to drop of an address, and what then has to be left.
    _prefixes: dict[int, tuple[tuple[int, frozenset[int]], ...]] = attrs.field(
        factory=dict, repr=False, eq=False
    )

    @classmethod
    def parse(cls, entries: Iterable[str | Network]) -> Networks:
        """Read networks.

        Args:
          entries: Each in CIDR notation (``10.0.0.0/8``, ``2001:db8::/32``), an address by itself
            (``192.0.2.1``), a network of `ipaddress`, or ``unix`` for every unix socket.

        Raises:
          ValueError: one of them is none of these; the message names it and says what is right.
        """
        if isinstance(entries, Networks):
            return entries
        if isinstance(entries, (str, bytes)):
            raise ValueError(f"{entries!r}: several networks are right, such as ({entries!r},)")
        texts: dict[str, None] = {}
        found: dict[tuple[int, int], set[int]] = {}
        for entry in entries:
            if entry == UNIX:
                texts[UNIX] = None
                continue
            network = _network(entry)
            texts[str(network)] = None
            drop = _BITS[network.version] - network.prefixlen
            numbers = found.setdefault((network.version, drop), set())
            numbers.add(int(network.network_address) >> drop)
        prefixes: dict[int, tuple[tuple[int, frozenset[int]], ...]] = {}
        for (version, drop), numbers in sorted(found.items()):
            prefixes[version] = (*prefixes.get(version, ()), (drop, frozenset(numbers)))
        return cls(tuple(texts), UNIX in texts, prefixes)

    def __contains__(self, address: object) -> bool:
        if address is None or (isinstance(address, str) and address.startswith("unix:")):
            return self._unix
        if not self._prefixes or not isinstance(address, str):
            return False
        found = _number(address)
        if found is None:
            return False
        version, number = found
        return any(number >> drop in known for drop, known in self._prefixes.get(version, ()))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __str__(self) -> str:
        return ", ".join(self.entries)


def _network(entry: object) -> Network:
    if isinstance(entry, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        network: Network = entry
    else:
        if not isinstance(entry, str):
            raise ValueError(f"{entry!r} is no network: text such as '10.0.0.0/8' is right")
        try:
            loose = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            raise ValueError(
                f"{entry!r} is no network: CIDR is right, such as 10.0.0.0/8, 2001:db8::/32 or an "
                "address by itself, and 'unix' for unix sockets"
            ) from None
        if int(loose.network_address) != int(ipaddress.ip_interface(entry).ip):
            raise ValueError(f"{entry!r} has bits behind its prefix: {loose} is right")
        network = loose
    address = network.network_address
    if network.version == 6 and network.prefixlen >= 96 and int(address) >> 32 == _MAPPED:
        return ipaddress.IPv4Network((int(address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address of an address as text, with or without a port; None where it has none.

    A zone is dropped. An IPv4 address that is mapped into IPv6 stays as it is.
    """
    if text.startswith("["):
        text, closing, _ = text[1:].partition("]")
        if not closing or ":" not in text:
            return None
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def _number(text: str) -> _Number:
    address = address_of(text)
    if address is None:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        return 4, int(address.ipv4_mapped)
    return address.version, int(address)
