"""Where a CONNECT request wants to go, and the list of where it may."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

import attrs

_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
# What resolvers take for an address: a last part that is a number, in whatever base.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_V6 = re.compile(r"[0-9a-f:.]+")


@attrs.frozen
class ConnectTarget:
    """What a CONNECT request names, in the one spelling that everything here compares.

    Attributes:
      host: A name in lower case without a dot at its end, or an IP address as `ipaddress` writes it,
        without brackets.
      port: The TCP port.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ConnectTarget:
        """Read ``host:port`` (RFC 9112 section 3.2.3), and nothing with a second reading.

        Case and one dot at the end of a name are evened out. Not taken: user information, percent
        escapes, zones, an IPv4 address that is not four plain decimal numbers, one in IPv6's
        clothes, a port with zeros before it.

        Raises:
          ValueError: it is something else; the message says what is right.
        """
        host, _, port = text.rpartition(":")
        return cls(plain_host(host), _port(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def plain_host(text: str) -> str:
    """Return a host, IPv6 in brackets, as `ConnectTarget` has it.

    Raises:
      ValueError: it has another form.
    """
    host = text.lower()
    if host.startswith("["):
        inner = host[1:-1]
        if not host.endswith("]") or not _V6.fullmatch(inner):
            raise ValueError("the IPv6 address is malformed")
        try:
            address = IPv6Address(inner)
        except AddressValueError:
            raise ValueError("the IPv6 address is malformed") from None
        if address.ipv4_mapped is not None:
            raise ValueError("an IPv4 address is written as one")
        return str(address)
    host = host.removesuffix(".")
    if not _NAME.fullmatch(host):
        raise ValueError("the host is neither a name nor an IP address")
    if _NUMERIC.fullmatch(host):
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise ValueError("the IPv4 address is not four plain decimal numbers") from None
    return host


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ValueError("the port is not a number from 1 to 65535")
    return int(text)


@attrs.frozen
class ConnectRule:
    """Targets of CONNECT requests that are allowed.

    A rule compares what a request says, before any look-up: what a name resolves to is not looked at.

    Attributes:
      host: A name in lower case without a dot at its end, or an IP address without brackets. ``*.``
        before a name stands for every name below it, ``*`` for every host.
      port: The port, None for every one.
    """

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> ConnectRule:
        """Read ``HOST:PORT``, each of them perhaps ``*``, HOST perhaps ``*.example.com``.

        Raises:
          ValueError: it is something else; the message says what is right.
        """
        try:
            host, colon, digits = text.rpartition(":")
            if not colon:
                raise ValueError("it has no port")
            port = None if digits == "*" else _port(digits)
            if host == "*":
                return cls(host, port)
            if not host.startswith("*."):
                return cls(plain_host(host), port)
            below = plain_host(host[2:])
            if _NUMERIC.fullmatch(below) or ":" in below:
                raise ValueError("no address lies below another one")
            return cls(f"*.{below}", port)
        except (ValueError, AttributeError) as exc:
            why = exc if isinstance(exc, ValueError) else "it is no text"
            raise ValueError(
                f"{text!r} allows nothing ({why}): HOST:PORT is right, such as example.com:443, "
                "*.example.com:443, 10.0.0.1:* or [::1]:443"
            ) from None

    def allows(self, target: ConnectTarget) -> bool:
        """Tell whether the rule is one for this target."""
        if self.port is not None and self.port != target.port:
            return False
        host = self.host
        if host[0] != "*":
            return host == target.host
        return host == "*" or target.host.endswith(host[1:])

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{'*' if self.port is None else self.port}"


def connect_rules(rules: Iterable[Any]) -> tuple[ConnectRule, ...]:
    """Return rules, of which some may still be text.

    Raises:
      ValueError: one of them is no rule.
    """
    if isinstance(rules, (str, bytes)) or not isinstance(rules, Iterable):
        raise ValueError(f"allow_connect={rules!r}: a list of HOST:PORT is right")
    try:
        return tuple(
            each if isinstance(each, ConnectRule) else ConnectRule.parse(each) for each in rules
        )
    except ValueError as exc:
        raise ValueError(f"allow_connect: {exc}") from None
