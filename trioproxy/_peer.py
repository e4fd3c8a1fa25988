"""Where and how to connect: the peer of one attempt (Pingora's ``HttpPeer``)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Hashable, Iterable, Mapping

import attrs

from ._messages import ResponseHeader
from ._options import DEFAULT, HeaderPairs, Text, proxy_headers
from ._options import PeerOptions as PeerOptions

# What a Host field may hold; an international name comes as punycode.
_HOST_NAME = re.compile(r"[A-Za-z0-9\-._~!$&'()*+;=%]+")

_DIGITS = re.compile(r"[0-9]{1,9}")


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


def _check_address(host: object, port: object, path: object, what: str) -> None:
    """Refuse what is neither a host and a port nor the path of a unix socket."""
    if path is None:
        if not _valid_host(host):
            raise ValueError(
                f"host={host!r}: a host name (ASCII) or an IP address without brackets is right"
            )
        if type(port) is not int or not 0 < port < 65536:
            raise ValueError(f"port={port!r}: 1 to 65535 is right")
    elif host is not None or port is not None:
        raise ValueError(f"a {what} has host and port, or the path of a unix socket, not both")
    elif not path or not isinstance(path, str):
        raise ValueError(f"path={path!r}: the path of a unix socket is right")


def _split(url: str) -> tuple[str | None, int | None, str | None]:
    """Return host, port and path of ``http://host[:port]``, ``host:port``, ``http+unix:PATH``."""
    if url.startswith("http+unix:"):
        path = url.removeprefix("http+unix:")
        if not path:
            raise ValueError(f"{url!r} has no path: http+unix:PATH is right")
        return None, None, path
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "http", url
    if scheme == "https":
        raise ValueError(f"{url!r}: https origins need TLS, which this version does not have yet")
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
    return host, port, None


def host_and_port(host: str, port: int) -> str:
    """Return an address as text, or as a CONNECT request has it: the port always, IPv6 bracketed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@attrs.frozen
class Proxy:
    """An HTTP CONNECT proxy on the way to a peer, by host and port or by a unix socket's path.

    Attributes:
      host: A host name or an IP literal.
      port: The TCP port.
      path: The path of a unix socket, in place of host and port.
      headers: Fields for the CONNECT request, in a mapping or as pairs: Proxy-Authorization, say.
    """

    host: str | None = None
    port: int | None = None
    path: str | None = attrs.field(default=None, kw_only=True)
    headers: HeaderPairs = attrs.field(
        default=(), converter=proxy_headers, kw_only=True, repr=False
    )

    def __attrs_post_init__(self) -> None:
        _check_address(self.host, self.port, self.path, "proxy")

    @classmethod
    def parse(
        cls, url: str, *, headers: Mapping[str, Text] | Iterable[tuple[Text, Text]] = ()
    ) -> Proxy:
        """Read ``http://host[:port]``, ``host:port`` or ``http+unix:PATH``.

        Raises:
          ValueError: it is none of these; the message says what is right.
        """
        host, port, path = _split(url)
        return cls(host, port, path=path, headers=headers)

    def __str__(self) -> str:
        if self.host is None or self.port is None:
            return f"unix:{self.path}"
        return host_and_port(self.host, self.port)


class ConnectProxyError(Exception):
    """What an HTTP CONNECT proxy did wrong: the cause of every ``ConnectProxyFailure``.

    Attributes:
      response: The head of its answer, such as a 407; None where it gave none that can be read.
    """

    def __init__(self, text: str, response: ResponseHeader | None = None) -> None:
        super().__init__(text)
        self.response = response


@attrs.frozen
class HttpPeer:
    """One address to connect to, by host and port or by the path of a unix socket.

    Attributes:
      host: A host name (resolved when connecting, all addresses tried) or an IP literal.
      port: The TCP port.
      path: The path of a unix socket, in place of host and port.
      proxy: The HTTP CONNECT proxy that leads there, None for a direct way.
      scheme: ``"http"``.
      group_key: Connections are reused only among peers with the same number.
      options: Timeouts, socket options and the like.
      reuse_key: What two peers must share for one to use the other's idle connection.
      name: The peer as a log shows it.
    """

    host: str | None = None
    port: int | None = None
    path: str | None = attrs.field(default=None, kw_only=True)
    proxy: Proxy | None = attrs.field(default=None, kw_only=True)
    scheme: str = attrs.field(default="http", kw_only=True)
    group_key: int = attrs.field(default=0, kw_only=True)
    options: PeerOptions = attrs.field(default=DEFAULT, kw_only=True)
    reuse_key: Hashable = attrs.field(init=False, repr=False, eq=False)
    name: str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.scheme == "https":
            raise ValueError("https origins need TLS, which this version does not have yet")
        if self.scheme != "http":
            raise ValueError(f"scheme={self.scheme!r}: 'http' is right")
        _check_address(self.host, self.port, self.path, "peer")
        key: tuple[Hashable, ...] = (
            self.host,
            self.port,
            self.path,
            self.scheme,
            self.group_key,
        )
        name = f"unix:{self.path}" if self.path else self.authority
        options = self.options
        if self.proxy is not None or options is not DEFAULT:
            self._check_way()
            if self.proxy is not None or options.reuse_key is not None:
                key = (*key, self.proxy, options.reuse_key)
            if self.proxy is not None:
                name = f"{name} via {self.proxy}"
        object.__setattr__(self, "reuse_key", key)
        object.__setattr__(self, "name", name)

    def _check_way(self) -> None:
        """Refuse options that the way to the peer cannot have."""
        proxy, options = self.proxy, self.options
        if not isinstance(options, PeerOptions):
            raise ValueError(f"options={options!r}: a PeerOptions is right")
        if proxy is None:
            if options.extra_proxy_headers:
                raise ValueError("extra_proxy_headers are for a peer that has a proxy")
        elif not isinstance(proxy, Proxy):
            raise ValueError(f"proxy={proxy!r}: a Proxy is right")
        elif self.path is not None:
            raise ValueError("a CONNECT proxy leads to a host and a port, not to a unix socket")
        next_hop = self if proxy is None else proxy
        if next_hop.path is not None and (names := options.tcp_options()):
            raise ValueError(f"{names[0]} is for TCP, and unix:{next_hop.path} is none")

    @classmethod
    def parse(cls, url: str, *, group_key: int = 0, options: PeerOptions | None = None) -> HttpPeer:
        """Read ``http://host[:port]``, ``host:port`` or ``http+unix:PATH``.

        Raises:
          ValueError: it is none of these; the message says what is right.
        """
        host, port, path = _split(url)
        return cls(host, port, path=path, group_key=group_key, options=options or DEFAULT)

    @classmethod
    def new_uds(
        cls, path: str, *, group_key: int = 0, options: PeerOptions | None = None
    ) -> HttpPeer:
        """Return the peer behind a unix socket."""
        return cls(path=path, group_key=group_key, options=options or DEFAULT)

    @classmethod
    def new_proxy(
        cls,
        next_hop: str | Proxy,
        host: str,
        port: int,
        *,
        headers: Mapping[str, Text] | Iterable[tuple[Text, Text]] = (),
        group_key: int = 0,
        options: PeerOptions | None = None,
    ) -> HttpPeer:
        """Return a peer behind an HTTP CONNECT proxy.

        Args:
          next_hop: The proxy: ``host:port``, ``http://host[:port]``, ``http+unix:PATH``, or a
            `Proxy`.
          host: The peer's name or address. The proxy looks a name up, we do not.
          port: The peer's port.
          headers: Fields for the CONNECT request, where ``next_hop`` is text.
          group_key: As for any peer.
          options: As for any peer; what they say of sockets is for the one to the proxy.

        Raises:
          ValueError: one of them is wrong; the message says what is right.
        """
        proxy = Proxy.parse(next_hop, headers=headers) if isinstance(next_hop, str) else next_hop
        return cls(host, port, proxy=proxy, group_key=group_key, options=options or DEFAULT)

    @property
    def authority(self) -> str:
        """The peer as a Host field would name it; a unix socket is ``localhost``."""
        if self.host is None:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"

    def __str__(self) -> str:
        return self.name
