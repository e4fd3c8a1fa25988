"""Where the other half of a stream leads."""

from __future__ import annotations

from typing import Any

import attrs

from .._options import DEFAULT, as_cert_key, check_cert_key
from .._peer import HttpPeer, PeerOptions, Proxy, host_and_port

_SCHEMES = {"tcp": "http", "tls": "https"}
_RIGHT = "tcp://host:port, tls://host:port, unix:PATH or tls+unix:PATH is"
# What only HTTP has a use for.
_OF_HTTP = (
    "read_timeout",
    "idle_timeout",
    "allow_h1_response_invalid_content_length",
    "http_version",
    "custom",
    "max_h2_streams",
    "h2_ping_interval",
    "h2_stream_window_size",
    "h2_connection_window_size",
)


def _protocols(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not all(
        isinstance(each, str) and each.isascii() and 0 < len(each) < 256 for each in value
    ):
        raise ValueError(
            f"{attribute.name}={value!r}: names of protocols for ALPN, the best first, are right"
        )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen
class StreamPeer:
    """One address to connect a stream to, by host and port or by the path of a unix socket.

    Attributes:
      host: A host name (resolved when connecting, all addresses tried) or an IP literal.
      port: The TCP port.
      path: The path of a unix socket, in place of host and port.
      proxy: The HTTP CONNECT proxy that leads there, None for a direct way.
      scheme: ``"tcp"`` to pass bytes as they are, or ``"tls"`` to open TLS over them.
      sni: The name that TLS asks for and that the certificate must have, as for an `HttpPeer`.
      client_cert_key: Our certificate where the peer wants one, as for an `HttpPeer`.
      alpn: The protocols that TLS offers, the best first; empty for none.
      options: Timeouts, socket options, TLS. Those that are for HTTP alone are refused.
      name: The peer as a log shows it.
      way: The same address as the peer that is connected to.
    """

    host: str | None = None
    port: int | None = None
    path: str | None = attrs.field(default=None, kw_only=True)
    proxy: Proxy | None = attrs.field(default=None, kw_only=True)
    scheme: str = attrs.field(default="tcp", kw_only=True)
    sni: str | None = attrs.field(default=None, kw_only=True)
    client_cert_key: Any = attrs.field(
        default=None, converter=as_cert_key, validator=check_cert_key, kw_only=True
    )
    alpn: tuple[str, ...] = attrs.field(
        default=(), converter=_as_tuple, validator=_protocols, kw_only=True
    )
    options: PeerOptions = attrs.field(default=DEFAULT, kw_only=True)
    name: str = attrs.field(init=False, repr=False, eq=False)
    way: HttpPeer = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.scheme not in _SCHEMES:
            raise ValueError(f"scheme={self.scheme!r}: 'tcp' or 'tls' is right")
        if self.alpn and self.scheme == "tcp":
            raise ValueError("alpn is for TLS: scheme='tls' is right, or leave it out")
        if isinstance(self.options, PeerOptions):
            for name in _OF_HTTP:
                if getattr(self.options, name) != getattr(DEFAULT, name):
                    raise ValueError(f"{name} is for HTTP, which a stream is not: leave it out")
        try:
            way = HttpPeer(
                self.host,
                self.port,
                path=self.path,
                proxy=self.proxy,
                scheme=_SCHEMES[self.scheme],
                sni=self.sni,
                client_cert_key=self.client_cert_key,
                options=self.options,
            )
        except ValueError as exc:
            raise ValueError(str(exc).replace("scheme='https'", "scheme='tls'")) from None
        object.__setattr__(self, "way", way)
        if self.host is None or self.port is None:
            where = f"unix:{self.path}"
        else:
            where = host_and_port(self.host, self.port)
        tls = "tls+" if self.path is not None else "tls://"
        name = where if self.scheme == "tcp" else f"{tls}{where}"
        if self.proxy is not None:
            name = f"{name} via {self.proxy}"
        object.__setattr__(self, "name", name)

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        sni: str | None = None,
        alpn: tuple[str, ...] = (),
        options: PeerOptions | None = None,
    ) -> StreamPeer:
        """Read ``tcp://host:port``, ``tls://host:port``, ``unix:PATH`` or ``tls+unix:PATH``.

        Raises:
          ValueError: it is none of these; the message says what is right.
        """
        scheme, host, port, path = "tcp", None, None, None
        for prefix, found in (("unix:", "tcp"), ("tls+unix:", "tls")):
            if url.startswith(prefix):
                scheme, path = found, url.removeprefix(prefix)
                if not path:
                    raise ValueError(f"{url!r} has no path: {prefix}PATH is right")
        if path is None:
            scheme, mark, rest = url.partition("://")
            if not mark or scheme not in _SCHEMES:
                raise ValueError(f"{url!r} is not the address of a stream: {_RIGHT}")
            try:
                # The mark is left out, as a stream has no port of its own.
                found_peer = HttpPeer.parse(rest)
            except ValueError:
                raise ValueError(f"{url!r} is not the address of a stream: {_RIGHT}") from None
            if found_peer.host is None or "://" in rest:
                raise ValueError(f"{url!r} is not the address of a stream: {_RIGHT}")
            host, port = found_peer.host, found_peer.port
        return cls(
            host,
            port,
            path=path,
            scheme=scheme,
            sni=sni,
            alpn=alpn,
            options=options or DEFAULT,
        )

    def __str__(self) -> str:
        return self.name
