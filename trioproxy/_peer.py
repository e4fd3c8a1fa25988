"""Where and how to connect: the peer of one attempt (Pingora's ``HttpPeer``)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Hashable

import attrs

# What a Host field may hold; an international name comes as punycode.
_HOST_NAME = re.compile(r"[A-Za-z0-9\-._~!$&'()*+;=%]+")

_DIGITS = re.compile(r"[0-9]{1,9}")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seconds(_instance: object, attribute: attrs.Attribute[float | None], value: object) -> None:
    if value is not None and not (_number(value) and value > 0):  # type: ignore[operator]  # a number
        raise ValueError(
            f"{attribute.name}={value!r}: seconds above 0 are right; None takes the server's "
            "default and math.inf means no limit"
        )


def _idle_seconds(
    _instance: object, attribute: attrs.Attribute[float | None], value: object
) -> None:
    if value is not None and not (_number(value) and value >= 0):  # type: ignore[operator]  # a number
        raise ValueError(
            f"{attribute.name}={value!r}: seconds are right, 0 to disable pooling; None takes the "
            "server's default and math.inf means no limit"
        )


def _valid_host(host: object) -> bool:
    if not isinstance(host, str):
        return False
    if ":" not in host:
        return _HOST_NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return re.fullmatch(r"[!-~]+", host) is not None  # a zone may be anything as ipaddress sees it


@attrs.frozen(kw_only=True)
class PeerOptions:
    """How to treat a connection to a peer.

    None means the server's default, `math.inf` means no limit.

    Attributes:
      connection_timeout: Seconds for connecting.
      read_timeout: Seconds for each wait for the response's head or more of its content.
      write_timeout: Seconds that a write may be without progress.
      idle_timeout: Seconds that a connection may wait in the pool; 0 disables pooling.
    """

    connection_timeout: float | None = attrs.field(default=None, validator=_seconds)
    read_timeout: float | None = attrs.field(default=None, validator=_seconds)
    write_timeout: float | None = attrs.field(default=None, validator=_seconds)
    idle_timeout: float | None = attrs.field(default=None, validator=_idle_seconds)


@attrs.frozen
class HttpPeer:
    """One address to connect to, by host and port or by the path of a unix socket.

    Attributes:
      host: A host name (resolved when connecting, all addresses tried) or an IP literal.
      port: The TCP port.
      path: The path of a unix socket, in place of host and port.
      scheme: ``"http"``.
      group_key: Connections are reused only among peers with the same number.
      options: Timeouts.
      reuse_key: What two peers must share for one to use the other's idle connection.
      name: The peer as a log shows it.
    """

    host: str | None = None
    port: int | None = None
    path: str | None = attrs.field(default=None, kw_only=True)
    scheme: str = attrs.field(default="http", kw_only=True)
    group_key: int = attrs.field(default=0, kw_only=True)
    options: PeerOptions = attrs.field(factory=PeerOptions, kw_only=True)
    reuse_key: Hashable = attrs.field(init=False, repr=False, eq=False)
    name: str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.scheme == "https":
            raise ValueError("https origins need TLS, which this version does not have yet")
        if self.scheme != "http":
            raise ValueError(f"scheme={self.scheme!r}: 'http' is right")
        if self.path is None:
            if not _valid_host(self.host):
                raise ValueError(
                    f"host={self.host!r}: a host name (ASCII) or an IP address without brackets is "
                    "right"
                )
            if type(self.port) is not int or not 0 < self.port < 65536:
                raise ValueError(f"port={self.port!r}: 1 to 65535 is right")
        elif self.host is not None or self.port is not None:
            raise ValueError("a peer has host and port, or the path of a unix socket, not both")
        elif not self.path or not isinstance(self.path, str):
            raise ValueError(f"path={self.path!r}: the path of a unix socket is right")
        object.__setattr__(
            self,
            "reuse_key",
            (self.host, self.port, self.path, self.scheme, self.group_key),
        )
        object.__setattr__(self, "name", f"unix:{self.path}" if self.path else self.authority)

    @classmethod
    def parse(cls, url: str, *, group_key: int = 0, options: PeerOptions | None = None) -> HttpPeer:
        """Read ``http://host[:port]``, ``host:port`` or ``http+unix:PATH``.

        Raises:
          ValueError: it is none of these; the message says what is right.
        """
        options = PeerOptions() if options is None else options
        if url.startswith("http+unix:"):
            path = url.removeprefix("http+unix:")
            if not path:
                raise ValueError(f"{url!r} has no path: http+unix:PATH is right")
            return cls(path=path, group_key=group_key, options=options)
        scheme, mark, rest = url.partition("://")
        if not mark:
            scheme, rest = "http", url
        if scheme == "https":
            raise ValueError(
                f"{url!r}: https origins need TLS, which this version does not have yet"
            )
        rest = rest.removesuffix("/")
        if scheme != "http" or not rest or any(c in rest for c in "/?#@ "):
            raise ValueError(f"{url!r} is not an origin: http://host[:port] or http+unix:PATH is")
        host, port = rest, 80 if mark else None
        if rest.startswith("["):
            host, closing, tail = rest[1:].partition("]")
            if not closing or ":" not in host or (tail and not tail.startswith(":")):
                raise ValueError(f"{url!r} is not an origin: http://[v6]:port is right")
            digits = tail[1:]
        else:
            host, _, digits = rest.partition(":")
        if digits:
            if not _DIGITS.fullmatch(digits) or not 0 < int(digits) < 65536:
                raise ValueError(f"{url!r} has no such port: 1 to 65535 is right")
            port = int(digits)
        elif port is None:
            raise ValueError(f"{url!r} has no port: host:port or http://host[:port] is right")
        return cls(host, port, group_key=group_key, options=options)

    @classmethod
    def new_uds(
        cls, path: str, *, group_key: int = 0, options: PeerOptions | None = None
    ) -> HttpPeer:
        """Return the peer behind a unix socket."""
        options = PeerOptions() if options is None else options
        return cls(path=path, group_key=group_key, options=options)

    @property
    def authority(self) -> str:
        """The peer as a Host field would name it; a unix socket is ``localhost``."""
        if self.host is None:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"

    def __str__(self) -> str:
        return self.name
