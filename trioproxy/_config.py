"""The settings of a server, checked once, where they are made."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from ._connect_target import ConnectRule, connect_rules
from ._connection_filter import ConnectionFilter
from ._custom import Protocol, check_protocol
from ._h2_limits import H2Limits
from ._networks import Network, Networks
from ._tls_settings import TlsSettings


def _seconds(_instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(
            f"{attribute.name}={value!r}: seconds above 0 are right; math.inf means no limit"
        )


def _not_negative(_instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{attribute.name}={value!r}: seconds, 0 or more, are right")


def _rate(_instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(
            f"{attribute.name}={value!r}: bytes a second are right, or 0 for no such rule"
        )


def _count(minimum: int) -> Callable[[Any, attrs.Attribute[int], int], None]:
    def check(_instance: Any, attribute: attrs.Attribute[int], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(
                f"{attribute.name}={value!r}: a whole number, {minimum} or more, is right"
            )

    return check


def _optional_count(
    _instance: object, attribute: attrs.Attribute[int | None], value: object
) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(
            f"{attribute.name}={value!r}: a whole number, 0 or more, is right, or None for no limit"
        )


def _optional_positive(
    _instance: object, attribute: attrs.Attribute[int | None], value: object
) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(
            f"{attribute.name}={value!r}: a whole number, 1 or more, is right, or None for no limit"
        )


def _one_of(*choices: str) -> Callable[[Any, attrs.Attribute[str], str], None]:
    def check(_instance: Any, attribute: attrs.Attribute[str], value: object) -> None:
        if value not in choices:
            raise ValueError(f"{attribute.name}={value!r}: one of {', '.join(choices)} is right")

    return check


def _level(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or value.upper() not in logging.getLevelNamesMapping():
        raise ValueError(
            f"{attribute.name}={value!r}: one of debug, info, warning, error, critical is right"
        )


def _token(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{attribute.name}={value!r}: a word of visible ASCII is right")


def _flag(_instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: True or False is right")


def _tls(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, TlsSettings):
        raise ValueError(f"{attribute.name}={value!r}: a TlsSettings is right, or None")


def _h2_limits(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, H2Limits):
        raise ValueError(f"{attribute.name}={value!r}: an H2Limits is right")


def _window(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    # Below the size that holds before any SETTINGS, a client could have sent more already.
    if type(value) is not int or not 65535 <= value < 1 << 31:
        raise ValueError(f"{attribute.name}={value!r}: 65535 to {(1 << 31) - 1} bytes are right")


def _networks(value: Iterable[str | Network]) -> Networks:
    try:
        return Networks.parse(value)
    except ValueError as exc:
        raise ValueError(f"trusted_proxies={value!r}: {exc}") from None


def _filter(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, ConnectionFilter):
        raise ValueError(
            f"{attribute.name}={value!r}: a ConnectionFilter is right, or None for everybody"
        )


def check_trust(reads: bool, trusted: Networks) -> None:
    """Refuse to read PROXY headers where nobody is there to be believed."""
    if reads and not trusted:
        raise ValueError(
            "proxy_protocol: trusted_proxies is empty, so that nobody's PROXY header would be "
            "believed; name who sends them, such as trusted_proxies=('10.0.0.0/8',)"
        )


def _protocols(value: Any) -> Any:
    return (value,) if isinstance(value, Protocol) else tuple(value)


def _custom(_instance: object, attribute: attrs.Attribute[Any], value: tuple[Any, ...]) -> None:
    for each in value:
        check_protocol(each, attribute.name)
    if len({each.alpn for each in value}) != len(value):
        raise ValueError(f"{attribute.name}: two protocols have the same alpn")


def check_versions(http: str, h2c: bool) -> None:
    """Refuse versions of HTTP that exclude each other."""
    if h2c and http == "off":
        raise ValueError("h2c=True: it is HTTP/2, which http='off' keeps out; 'auto' is right")
    if h2c and http == "1":
        raise ValueError("h2c=True: it is HTTP/2, which http='1' keeps out; 'auto' is right")


@attrs.frozen(kw_only=True)
class ServerConf:
    """Timeouts (seconds, `math.inf` for none), limits (bytes, counts) and habits of a server.

    Attributes:
      connect_timeout: For connecting to an origin.
      upstream_tls_timeout: For the TLS handshake with an origin.
      read_timeout: For an origin's response head, and for each gap in its content.
      write_timeout: For a write without progress, to either side.
      idle_timeout: How long a client's kept-alive connection may be idle.
      header_timeout: For a whole request head, from its first byte.
      body_timeout: For each gap in a request's content.
      min_receive_rate: Bytes a second in which a request's content must come; 0 for no such rule.
      request_timeout: For a whole request, from its head to its response's end; tunnels excepted.
      upstream_idle_timeout: How long an upstream connection may be idle.
      drain_timeout: For dropping the unread rest of a request, and for a lingering close.
      tunnel_idle_timeout: How long a tunnel may be idle in both directions together.
      tunnel_half_close_timeout: How long a tunnel goes on when one side has ended its output.
      drain_bytes: How much of it is dropped at most.
      logging_timeout: For the ``logging`` callback.
      dns_timeout: For looking up a host name.
      max_header_bytes: Size of a request head.
      max_header_fields: Fields of a request head.
      max_target_bytes: Size of a request target.
      max_body_bytes: Size of a request's content; None for no limit.
      max_response_header_bytes: Size of a response head.
      max_response_header_fields: Fields of a response head.
      max_attempts: Attempts in all for one request, at least 1.
      keepalive_request_limit: Requests that one client connection may carry; None for no limit.
      max_connections: Client connections at once, at least 1; None takes 10,000, or 40 % of the
        files that the process may have open where that is less.
      max_sessions: Requests in flight at once.
      pool_size_per_peer: Idle upstream connections kept of one peer.
      max_connections_per_peer: Upstream connections to one peer at once; who wants one more waits
        its turn. None for no limit.
      pool_wait_timeout: How long it may wait.
      pool_size: Idle upstream connections kept.
      max_background_requests: Requests at once that nobody waits for: mirrors, subrequests in the
        background, renewals of what is stored in a cache.
      background_timeout: How long such a request may take.
      grace: How long a graceful stop waits.
      http1_codec: ``"auto"`` or ``"h11"``.
      tls: What is served over TLS, and how; None serves clear text.
      http: The versions offered to clients: ``"1"``, ``"2"`` or ``"auto"``. Over TLS ALPN decides;
        in clear text ``"2"`` means prior knowledge only, and ``"auto"`` is HTTP/1 (see ``h2c``).
      h2c: Take HTTP/2 with prior knowledge beside HTTP/1 in clear text.
      h2_max_streams: Streams that a client may have open on an HTTP/2 connection.
      h2_request_limit: Streams that such a connection may carry in all.
      h2_stream_window: Bytes that a client may send on a stream before they are taken.
      h2_connection_window: Bytes that it may send on all streams of a connection together.
      h2_limits: The budgets of every HTTP/2 connection, an `H2Limits`.
      proxy_protocol: Who sends PROXY headers: ``"in"`` for those before us (every connection from
        one of ``trusted_proxies`` must begin with a header, which is believed), ``"out"`` for us (a
        header of version 2 to each peer whose options do not say otherwise), ``"both"`` or
        ``"off"``.
      trusted_proxies: The networks of those whose PROXY headers and forwarding fields are believed:
        CIDR texts, network objects of ``ipaddress``, or ``"unix"`` for all unix sockets.
      connection_filter: A `ConnectionFilter` that accepts or drops connections before TLS; None
        accepts everybody.
      access_log: ``"off"``, ``"common"`` or ``"json"``.
      log_level: For the log that `run` sets up.
      server_name: The Server field of the answers made here.
      refuse_underscores: Refuse every field name with an underscore, not only the dangerous ones.
      allow_trace: Pass TRACE requests on.
      allow_connect: The targets that CONNECT requests may have: texts ``HOST:PORT``, each part
        perhaps ``*``, HOST perhaps ``*.example.com``, or `ConnectRule` objects. Without one the
        method is refused.
    """

    connect_timeout: float = attrs.field(default=5.0, validator=_seconds)
    upstream_tls_timeout: float = attrs.field(default=10.0, validator=_seconds)
    read_timeout: float = attrs.field(default=60.0, validator=_seconds)
    write_timeout: float = attrs.field(default=60.0, validator=_seconds)
    idle_timeout: float = attrs.field(default=60.0, validator=_seconds)
    header_timeout: float = attrs.field(default=15.0, validator=_seconds)
    body_timeout: float = attrs.field(default=60.0, validator=_seconds)
    min_receive_rate: float = attrs.field(default=0.0, validator=_rate)
    request_timeout: float = attrs.field(default=math.inf, validator=_seconds)
    upstream_idle_timeout: float = attrs.field(default=55.0, validator=_seconds)
    drain_timeout: float = attrs.field(default=2.0, validator=_seconds)
    tunnel_idle_timeout: float = attrs.field(default=300.0, validator=_seconds)
    tunnel_half_close_timeout: float = attrs.field(default=60.0, validator=_seconds)
    drain_bytes: int = attrs.field(default=262144, validator=_count(0))
    logging_timeout: float = attrs.field(default=1.0, validator=_seconds)
    dns_timeout: float = attrs.field(default=5.0, validator=_seconds)
    max_header_bytes: int = attrs.field(default=65536, validator=_count(64))
    max_header_fields: int = attrs.field(default=128, validator=_count(1))
    max_target_bytes: int = attrs.field(default=16384, validator=_count(1))
    max_body_bytes: int | None = attrs.field(default=None, validator=_optional_count)
    max_response_header_bytes: int = attrs.field(default=131072, validator=_count(64))
    max_response_header_fields: int = attrs.field(default=256, validator=_count(1))
    max_attempts: int = attrs.field(default=16, validator=_count(1))
    keepalive_request_limit: int | None = attrs.field(default=None, validator=_optional_positive)
    max_connections: int | None = attrs.field(default=None, validator=_optional_positive)
    max_sessions: int = attrs.field(default=10000, validator=_count(1))
    pool_size_per_peer: int = attrs.field(default=128, validator=_count(0))
    max_connections_per_peer: int | None = attrs.field(default=None, validator=_optional_positive)
    pool_wait_timeout: float = attrs.field(default=5.0, validator=_seconds)
    pool_size: int = attrs.field(default=128, validator=_count(0))
    max_background_requests: int = attrs.field(default=100, validator=_count(0))
    background_timeout: float = attrs.field(default=60.0, validator=_seconds)
    grace: float = attrs.field(default=30.0, validator=_not_negative)
    tls: TlsSettings | None = attrs.field(default=None, validator=_tls)
    http: str = attrs.field(default="auto", validator=_one_of("auto", "1", "2"))
    h2c: bool = attrs.field(default=False, validator=_flag)
    h2_max_streams: int = attrs.field(default=100, validator=_count(1))
    h2_request_limit: int = attrs.field(default=100_000, validator=_count(1))
    h2_stream_window: int = attrs.field(default=65535, validator=_window)
    h2_connection_window: int = attrs.field(default=1 << 20, validator=_window)
    h2_limits: H2Limits = attrs.field(default=H2Limits(), validator=_h2_limits)
    http1_codec: str = attrs.field(default="auto", validator=_one_of("auto", "h11"))
    proxy_protocol: str = attrs.field(default="off", validator=_one_of("off", "in", "out", "both"))
    trusted_proxies: Networks = attrs.field(default=Networks(), converter=_networks)
    connection_filter: ConnectionFilter | None = attrs.field(default=None, validator=_filter)
    access_log: str = attrs.field(default="off", validator=_one_of("off", "common", "json"))
    log_level: str = attrs.field(default="info", validator=_level)
    server_name: str = attrs.field(default="trioproxy", validator=_token)
    refuse_underscores: bool = attrs.field(default=False, validator=_flag)
    allow_trace: bool = attrs.field(default=False, validator=_flag)
    allow_connect: tuple[ConnectRule, ...] = attrs.field(default=(), converter=connect_rules)

    def __attrs_post_init__(self) -> None:
        check_versions(self.http, self.h2c)
        check_trust(reads_headers(self), self.trusted_proxies)


def reads_headers(conf: ServerConf, listener: Listener | None = None) -> bool:
    """Tell whether PROXY headers are read, on a listener or where that does not say."""
    if listener is not None and listener.proxy_protocol is not None:
        return listener.proxy_protocol == "in"
    return conf.proxy_protocol in ("in", "both")


def announced_version(conf: ServerConf) -> int:
    """Return the version of the PROXY headers sent to peers that do not say, 0 for none."""
    return 2 if conf.proxy_protocol in ("out", "both") else 0


@attrs.frozen
class Listener:
    """One place to listen on.

    Attributes:
      address: As it was given.
      tls: What is served over TLS there; None takes ``ServerConf.tls``.
      http: The versions offered there, as ``ServerConf.http``, or ``"off"`` for none; None takes
        that of the server.
      h2c: As ``ServerConf.h2c``; None takes that.
      proxy_protocol: Whether PROXY headers are read there, ``"in"`` or ``"off"``; None takes what
        ``ServerConf.proxy_protocol`` says of that.
      custom: Protocols of your own that are spoken there, a `trioproxy.custom.Protocol` or several.
        Over TLS the client chooses by ALPN; with ``http="off"`` they are all that is spoken, and in
        clear text there is one of them then.
      host: The host name or IP address, None for a unix socket.
      port: The TCP port, 0 to have one picked.
      path: The path of a unix socket, or None.
    """

    address: str
    tls: TlsSettings | None = attrs.field(default=None, kw_only=True, validator=_tls)
    http: str | None = attrs.field(
        default=None,
        kw_only=True,
        validator=attrs.validators.optional(_one_of("auto", "1", "2", "off")),
    )
    h2c: bool | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(_flag)
    )
    proxy_protocol: str | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(_one_of("off", "in"))
    )
    custom: tuple[Protocol, ...] = attrs.field(
        default=(), kw_only=True, converter=_protocols, validator=_custom
    )
    host: str | None = attrs.field(init=False, default=None)
    port: int = attrs.field(init=False, default=0)
    path: str | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        if self.http == "off" and not self.custom:
            raise ValueError("http='off': nothing is spoken without custom")
        address = self.address
        wrong = ValueError(
            f"{address!r} is not a bind address: host:port, [v6]:port or unix:PATH is right"
        )
        if not isinstance(address, str):
            raise wrong
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            if not path:
                raise wrong
            object.__setattr__(self, "path", path)
            return
        host, _, digits = address.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        if not host or bracketed != (":" in host) or re.search(r"[\s/@\0]", host):
            raise wrong
        if not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > 65535:
            raise wrong
        object.__setattr__(self, "host", host)
        object.__setattr__(self, "port", int(digits))

    @classmethod
    def parse(cls, address: str) -> Listener:
        """Read ``host:port``, ``[v6]:port`` or ``unix:PATH``.

        Raises:
          ValueError: it is none of these.
        """
        return cls(address)
