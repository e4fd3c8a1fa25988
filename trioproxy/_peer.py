"""Where and how to connect: the peer of one attempt (Pingora's ``HttpPeer``)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import attrs

from ._info import Announcement, ConnectionInfo
from ._messages import ResponseHeader
from ._options import (
    DEFAULT,
    HeaderPairs,
    Text,
    as_cert_key,
    check_cert_key,
    proxy_headers,
    server_name,
)
from ._options import PeerOptions as PeerOptions

# What a Host field may hold; an international name comes as punycode.
_HOST_NAME = re.compile(r"[A-Za-z0-9\-._~!$&'()*+;=%]+")

_PORTS = {"http": 80, "https": 443}

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


def _split(url: str) -> tuple[str, str | None, int | None, str | None]:
    """Return scheme, host, port and path of a URL: see `HttpPeer.parse`."""
    if url.startswith("http+unix:"):
        path = url.removeprefix("http+unix:")
        if not path:
            raise ValueError(f"{url!r} has no path: http+unix:PATH is right")
        return "http", None, None, path
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "http", url
    rest = rest.removesuffix("/")
    if scheme not in _PORTS or not rest or any(c in rest for c in "/?#@ "):
        raise ValueError(
            f"{url!r} is not an origin: http://host[:port], https://host[:port] or http+unix:PATH is"
        )
    host, port = rest, _PORTS[scheme] if mark else None
    if rest.startswith("["):
        host, closing, tail = rest[1:].partition("]")
        if not closing or ":" not in host or (tail and not tail.startswith(":")):
            raise ValueError(f"{url!r} is not an origin: {scheme}://[v6]:port is right")
        digits = tail[1:]
    else:
        host, _, digits = rest.partition(":")
    if digits:
        if not _DIGITS.fullmatch(digits) or not 0 < int(digits) < 65536:
            raise ValueError(f"{url!r} has no such port: 1 to 65535 is right")
        port = int(digits)
    elif port is None:
        raise ValueError(f"{url!r} has no port: host:port or http://host[:port] is right")
    return scheme, host, port, None


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
        scheme, host, port, path = _split(url)
        if scheme != "http":
            raise ValueError(f"{url!r}: a proxy is asked without TLS; http://host[:port] is right")
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
      scheme: ``"http"``, or ``"https"`` for TLS.
      sni: The name that TLS asks for and that the certificate must have: a host name, or an IP
        address, which is verified and not sent. None takes the host. ``""`` sends none, and needs
        ``verify_cert=False``.
      client_cert_key: Our certificate where the peer wants one, as in its options.
      group_key: Connections are reused only among peers with the same number.
      options: Timeouts, socket options, TLS and HTTP versions.
      announce: What connections to it announce by a PROXY header, and so whose they are; the engine
        sets it where they shall.
      shared_key: What two peers must share for what is learned of one to hold for the other.
      reuse_key: What two peers must share for one to use the other's idle connection.
      name: The peer as a log shows it.
      carries_bytes: Whether a connection to it carries bytes and no HTTP, as a tunnel's does.
    """

    host: str | None = None
    port: int | None = None
    path: str | None = attrs.field(default=None, kw_only=True)
    proxy: Proxy | None = attrs.field(default=None, kw_only=True)
    scheme: str = attrs.field(default="http", kw_only=True)
    sni: str | None = attrs.field(default=None, kw_only=True)
    client_cert_key: Any = attrs.field(
        default=None, converter=as_cert_key, validator=check_cert_key, kw_only=True
    )
    group_key: int = attrs.field(default=0, kw_only=True)
    options: PeerOptions = attrs.field(default=DEFAULT, kw_only=True)
    announce: Announcement | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.instance_of(Announcement)),
        kw_only=True,
        repr=False,
        eq=False,
    )
    shared_key: Hashable = attrs.field(init=False, repr=False, eq=False)
    reuse_key: Hashable = attrs.field(init=False, repr=False, eq=False)
    name: str = attrs.field(init=False, repr=False, eq=False)
    _server_name: str | None = attrs.field(init=False, default=None, repr=False, eq=False)
    _http1: HttpPeer | None = attrs.field(init=False, default=None, repr=False, eq=False)
    carries_bytes: bool = attrs.field(init=False, default=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.scheme not in _PORTS:
            raise ValueError(f"scheme={self.scheme!r}: 'http' or 'https' is right")
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
        if self.scheme == "https":
            self._check_tls()
            key = (*key, self._server_name, self.client_cert_key)
            name = f"{name} over TLS" if self.path else f"https://{name}"
        else:
            self._check_no_tls()
        if self.proxy is not None:
            name = f"{name} via {self.proxy}"
        object.__setattr__(self, "shared_key", key)
        if self.announce is not None:
            key = (*key, self.announce)
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

    def _check_tls(self) -> None:
        """Find the name that the certificate must have; refuse to verify without one."""
        if self.client_cert_key is not None and self.options.client_cert_key is not None:
            raise ValueError("client_cert_key: the peer has one and its options, too; one is right")
        name: str | None = None
        if self.sni:
            name = server_name(self.sni, "sni")
        elif self.sni is None and self.host is not None:
            try:
                name = server_name(self.host, "host")
            except ValueError:
                raise ValueError(
                    f"host={self.host!r} is no name that a certificate can have: give one as sni"
                ) from None
        elif self.sni is not None and self.sni != "":
            raise ValueError(f"sni={self.sni!r}: a host name or an IP address is right")
        elif self.options.verify_cert:
            # Pingora verifies nothing then, whatever the options say.
            raise ValueError(
                f"sni={self.sni!r}: without a name no certificate can be verified; give the name "
                "that it is for, or verify_cert=False"
            )
        object.__setattr__(self, "_server_name", name)

    def _check_no_tls(self) -> None:
        """Refuse what only TLS can have."""
        names = self.options.tls_options()
        if self.sni is not None:
            names = ["sni"]
        elif self.client_cert_key is not None:
            names = ["client_cert_key"]
        if names:
            raise ValueError(f"{names[0]} is for TLS: scheme='https' is right, or leave it out")

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        sni: str | None = None,
        group_key: int = 0,
        options: PeerOptions | None = None,
    ) -> HttpPeer:
        """Read ``http://host[:port]``, ``https://host[:port]``, ``host:port`` or ``http+unix:PATH``.

        Raises:
          ValueError: it is none of these; the message says what is right.
        """
        scheme, host, port, path = _split(url)
        return cls(
            host,
            port,
            path=path,
            scheme=scheme,
            sni=sni,
            group_key=group_key,
            options=options or DEFAULT,
        )

    @classmethod
    def new_uds(
        cls,
        path: str,
        *,
        tls: bool = False,
        sni: str | None = None,
        group_key: int = 0,
        options: PeerOptions | None = None,
    ) -> HttpPeer:
        """Return the peer behind a unix socket; with TLS it needs an ``sni``."""
        return cls(
            path=path,
            scheme="https" if tls else "http",
            sni=sni,
            group_key=group_key,
            options=options or DEFAULT,
        )

    @classmethod
    def new_proxy(
        cls,
        next_hop: str | Proxy,
        host: str,
        port: int,
        *,
        tls: bool = False,
        sni: str | None = None,
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
          tls: Whether to speak TLS with the peer, inside the tunnel.
          sni: As for any peer.
          headers: Fields for the CONNECT request, where ``next_hop`` is text.
          group_key: As for any peer.
          options: As for any peer; what they say of sockets is for the one to the proxy.

        Raises:
          ValueError: one of them is wrong; the message says what is right.
        """
        proxy = Proxy.parse(next_hop, headers=headers) if isinstance(next_hop, str) else next_hop
        return cls(
            host,
            port,
            proxy=proxy,
            scheme="https" if tls else "http",
            sni=sni,
            group_key=group_key,
            options=options or DEFAULT,
        )

    @classmethod
    def new_mtls(
        cls,
        host: str,
        port: int,
        sni: str | None,
        client_cert_key: Any,
        *,
        group_key: int = 0,
        options: PeerOptions | None = None,
    ) -> HttpPeer:
        """Return a peer that wants a certificate from us.

        Args:
          host: The peer's name or address.
          port: The peer's port.
          sni: The name of its certificate; None takes the host.
          client_cert_key: Our certificate: a `CertKey`, chain and key as two paths, or an object
            with ``configure_cert(context)``.
          group_key: As for any peer.
          options: As for any peer.
        """
        return cls(
            host,
            port,
            scheme="https",
            sni=sni,
            client_cert_key=client_cert_key,
            group_key=group_key,
            options=options or DEFAULT,
        )

    @property
    def authority(self) -> str:
        """The peer as a Host field would name it; a unix socket is its ``sni`` or ``localhost``."""
        if self.host is None:
            return self.sni or "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def server_name(self) -> str | None:
        """What the certificate must be for; None without TLS, or where no name is verified."""
        return self._server_name

    @property
    def http_version(self) -> tuple[int, int]:
        """The highest and the lowest HTTP version that a connection to the peer can have."""
        # Without TLS nothing is agreed on: HTTP/2 is spoken only where nothing else is.
        pair = self.options.http_version
        return (1, 1) if pair == (2, 1) and self.scheme == "http" else pair

    def http1(self) -> HttpPeer | None:
        """Return the same peer limited to HTTP/1.1; None where it speaks HTTP/2 alone.

        It is made once, and is this very peer where that speaks nothing else.
        """
        highest, lowest = self.http_version
        if lowest == 2:
            return None
        if highest == 1:
            return self
        if self._http1 is None:
            limited = attrs.evolve(self, options=self.options.with_http_version(1, 1))
            object.__setattr__(self, "_http1", limited)
        return self._http1

    def raw(self) -> HttpPeer:
        """Return the same peer for a tunnel: a connection to it carries bytes and is never reused."""
        options = self.options
        if options.http_version != (1, 1):  # no HTTP/2 is to be agreed on for the two ends of it
            options = options.with_http_version(1, 1)
        if self.announce is None:  # nor by what the server says of its origins
            options = attrs.evolve(options, proxy_protocol=0)
        peer = attrs.evolve(self, options=options)
        object.__setattr__(peer, "carries_bytes", True)
        object.__setattr__(peer, "reuse_key", ("tunnel", peer.reuse_key))
        return peer

    def announcing(self, client: ConnectionInfo, version: int) -> HttpPeer:
        """Return the same peer for connections that announce a client, and serve it alone.

        Args:
          client: The client's connection.
          version: That of the PROXY protocol, 1 or 2.
        """
        return attrs.evolve(self, announce=client.announcement(version))

    def __str__(self) -> str:
        return self.name
