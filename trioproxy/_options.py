"""How to treat the connection to a peer: timeouts, sockets, TLS, HTTP versions, who is told."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Protocol

import attrs

from ._custom import Protocol as CustomProtocol
from ._custom import check_protocol
from ._headers import Headers
from ._info import Digest, TlsInfo

Text = str | bytes
HeaderPairs = tuple[tuple[bytes, bytes], ...]

#: The HTTP versions that a peer may speak, as (highest, lowest).
_VERSIONS = ((1, 1), (2, 1), (2, 2))
_ALPN = {(1, 1): ("http/1.1",), (2, 1): ("h2", "http/1.1"), (2, 2): ("h2",)}
_TLS_VERSIONS = ("1.2", "1.3")
_MAX_WINDOW = (1 << 31) - 1

# What the framing of a CONNECT request is made of; the engine writes it.
_RESERVED = frozenset({b"host", b"content-length", b"transfer-encoding"})


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


def _whole(low: int, high: int, what: str) -> Any:
    """Return a validator for a whole number, or None."""

    def check(_instance: object, attribute: attrs.Attribute[int | None], value: object) -> None:
        if value is not None and not (type(value) is int and low <= value <= high):
            raise ValueError(
                f"{attribute.name}={value!r}: {what}, {low} to {high}, or None is right"
            )

    return check


def _flag(_instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name}={value!r}: True or False is right")


def proxy_headers(
    headers: Mapping[str, Text] | Iterable[tuple[Text, Text]],
) -> HeaderPairs:
    """Return the fields of a CONNECT request as pairs of bytes.

    Raises:
      ValueError: one is no field, or belongs to the request's framing.
    """
    checked = Headers()
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        checked.add(name, value)
    for low, raw, _ in checked.fields:
        if low in _RESERVED:
            raise ValueError(f"{raw.decode()!r} is written by the engine: leave it out")
    return tuple((raw, value) for _, raw, value in checked.fields)


@attrs.frozen
class BindTo:
    """The local address that connections to a peer come from.

    Attributes:
      ip: A local IP address; only the peer's addresses of its family are tried.
      ports: The first and the last port that may be used, None for any.
      fallback: Whether any port will do where all of ``ports`` are taken.
    """

    ip: str
    ports: tuple[int, int] | None = None
    fallback: bool = attrs.field(default=False, validator=_flag)

    def __attrs_post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.ip)
        except ValueError:
            raise ValueError(f"bind_to={self.ip!r}: a local IP address is right") from None
        ports: object = self.ports
        if ports is None:
            return
        if (
            not isinstance(ports, tuple)
            or [type(port) for port in ports] != [int, int]
            or not 0 < ports[0] <= ports[1] < 65536
        ):
            raise ValueError(
                f"bind_to: ports={ports!r}: the first and the last port are right, 1 to 65535"
            )

    @property
    def version(self) -> int:
        """The IP version, 4 or 6."""
        return ipaddress.ip_address(self.ip).version


@attrs.frozen
class TcpKeepalive:
    """TCP keep-alive: when the kernel asks whether the other end is still there.

    Attributes:
      idle: Whole seconds without traffic until the first probe.
      interval: Whole seconds between two probes.
      count: Probes without an answer until the connection is given up.
      user_timeout: Seconds that sent data may be without an acknowledgement, None for the
        system's default.
    """

    idle: int = attrs.field(default=60, validator=_whole(1, 32767, "whole seconds"))
    interval: int = attrs.field(default=10, validator=_whole(1, 32767, "whole seconds"))
    count: int = attrs.field(default=5, validator=_whole(1, 127, "a number of probes"))
    user_timeout: float | None = attrs.field(default=None, validator=_seconds)

    def __attrs_post_init__(self) -> None:
        for name in ("idle", "interval", "count"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}=None: a whole number is right")
        if self.user_timeout is not None and self.user_timeout > 1 << 21:
            raise ValueError(f"user_timeout={self.user_timeout!r}: at most {1 << 21} is right")


class L4Connect(Protocol):
    """Connects in place of the built-in sockets (Pingora's ``L4Connect``)."""

    async def connect(self, address: tuple[str, int] | str) -> Any:
        """Return a connected `trio.abc.Stream`.

        `OSError` and `trio.BrokenResourceError` count as the origin's failure; a `ProxyError` goes
        on as it is.

        Args:
          address: Host, as the peer has it, and port; or the path of a unix socket.
        """


class Tracer(Protocol):
    """Is told of a peer's connections (Pingora's ``Tracing``). It may not fail."""

    def on_connected(self, digest: Digest) -> None:
        """See a new connection, ready for its first request."""

    def on_disconnected(self, digest: Digest) -> None:
        """See the same connection closed, by either side and for whatever reason."""


def _bind_to(value: BindTo | str | None) -> BindTo | None:
    return BindTo(value) if isinstance(value, str) else value


def _kind(kind: type) -> Any:
    """Return a validator for a value of a kind, or None."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{attribute.name}={value!r}: a {kind.__name__} or None is right")

    return check


def _methods(*names: str) -> Any:
    """Return a validator for an object with some methods, or None."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None:
            return
        for name in names:
            if not callable(getattr(value, name, None)):
                raise ValueError(f"{attribute.name}={value!r}: it has no method {name}()")

    return check


def _callable(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{attribute.name}={value!r}: a function or None is right")


def _hashable(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"{attribute.name}={value!r}: it must be hashable, for connections are told apart by "
            "it (attrs.frozen, or eq=False)"
        ) from None


def file_name(value: object) -> object:
    """Return a path object as text, anything else as it is."""
    as_path = getattr(value, "__fspath__", None)
    return value if as_path is None else as_path()


def _path(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{attribute.name}={value!r}: the path of a PEM file is right")


@attrs.frozen
class CertKey:
    """Our certificate for peers that want one (Pingora's ``CertKey``), in PEM files.

    Attributes:
      chain: The path of the certificate, with the intermediate ones behind it.
      key: The path of its private key; None where the key is in the same file.
      password: What the key is encrypted with.
    """

    chain: str = attrs.field(converter=file_name, validator=_path)
    key: str | None = attrs.field(
        default=None, converter=file_name, validator=attrs.validators.optional(_path)
    )
    password: str | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.password is not None and not isinstance(self.password, str):
            raise ValueError("password: text is right")


def as_cert_key(value: Any) -> Any:
    """Return a chain and a key as a `CertKey`, anything else as it is."""
    return CertKey(*value) if isinstance(value, tuple) and len(value) == 2 else value


def check_cert_key(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is no certificate for us: a `CertKey`, or what configures a context by itself."""
    if value is None or isinstance(value, CertKey):
        return
    if not callable(getattr(value, "configure_cert", None)):
        raise ValueError(
            f"{attribute.name}={value!r}: a CertKey, or an object with configure_cert(context), "
            "is right"
        )
    _hashable(instance, attribute, value)


def _anchors(value: Any) -> Any:
    """Return trust anchors as a tuple of them, None where there are none of our own."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        return tuple(file_name(each) for each in value)
    return (file_name(value),)


def _check_anchors(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    right = "a path, PEM as text, DER or PEM as bytes, or an object with configure_trust(context)"
    if not value:
        raise ValueError(f"{attribute.name}={value!r}: {right} is right, or several of them")
    for each in value:
        if not (isinstance(each, (str, bytes)) and each) and not callable(
            getattr(each, "configure_trust", None)
        ):
            raise ValueError(f"{attribute.name}={each!r}: {right} is right, or several of them")
        _hashable(instance, attribute, each)


def _version_pair(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in _VERSIONS or [type(each) for each in value] != [int, int]:
        raise ValueError(
            f"{attribute.name}={value!r}: the highest and the lowest version are right: (1, 1), "
            "(2, 1) or (2, 2)"
        )


def _protocol(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_protocol(value, attribute.name)


def _tls_version(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if value not in _TLS_VERSIONS:
        raise ValueError(
            f"{attribute.name}={value!r}: one of {', '.join(map(repr, _TLS_VERSIONS))} is right"
        )


def _words(_instance: object, attribute: attrs.Attribute[str | None], value: object) -> None:
    if value is not None and not (isinstance(value, str) and value and value.isascii()):
        raise ValueError(
            f"{attribute.name}={value!r}: a list of OpenSSL cipher names with colons, or None, "
            "is right"
        )


def server_name(value: object, what: str) -> str:
    """Return a name that a certificate can have: a host name or an IP address.

    Args:
      value: The name; a dot at its end is dropped, and so is the zone of an IPv6 address.
      what: How an error shall call it.

    Raises:
      ValueError: it is none.
    """
    if isinstance(value, str):
        name = value.partition("%")[0] if ":" in value else value.removesuffix(".")
        if len(name) < 254 and _DNS_NAME.fullmatch(name):
            return name  # an IPv4 address, too
        try:
            ipaddress.IPv6Address(name)
        except ValueError:
            pass
        else:
            return name
    raise ValueError(f"{what}={value!r}: a host name (ASCII) or an IP address is right")


def _other_name(value: Any) -> Any:
    return server_name(value, "alternative_cn") if value is not None else None


# A label may have underscores: no host's name does, but many a certificate's.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


# What shapes a connection, beside what only TLS has.
_SHAPING = (
    "bind_to",
    "tcp_keepalive",
    "tcp_recv_buf",
    "dscp",
    "tcp_fast_open",
    "custom_l4",
    "extra_proxy_headers",
    "allow_h1_response_invalid_content_length",
    "http_version",
    "proxy_protocol",
    "custom",
    "max_h2_streams",
    "h2_ping_interval",
    "h2_stream_window_size",
    "h2_connection_window_size",
)
_OF_TLS = (
    "verify_cert",
    "verify_hostname",
    "alternative_cn",
    "ca",
    "client_cert_key",
    "min_tls_version",
    "ciphers",
    "upstream_tls_handshake_complete_hook",
)


@attrs.frozen(kw_only=True)
class PeerOptions:
    """How to treat a connection to a peer.

    For a timeout None means the server's default and `math.inf` means no limit; elsewhere None
    leaves things as the system has them.

    Attributes:
      connection_timeout: Seconds for connecting, and once more for what an HTTP CONNECT proxy
        takes to answer.
      tls_handshake_timeout: Seconds for the TLS handshake.
      total_connection_timeout: Seconds for all of it, the name's look-up and the handshake
        included; None is no limit.
      read_timeout: Seconds for each wait for the response's head or more of its content.
      write_timeout: Seconds that a write may be without progress.
      idle_timeout: Seconds that a connection may wait in the pool; 0 disables pooling.
      bind_to: The local address, a `BindTo` or an IP address as text.
      tcp_keepalive: A `TcpKeepalive`.
      tcp_recv_buf: The size of the socket's receive buffer in bytes.
      dscp: The differentiated services code point, 0 to 63.
      tcp_fast_open: Whether to send the first request with the SYN where the system can.
      custom_l4: An `L4Connect` that connects in place of the built-in sockets.
      extra_proxy_headers: Fields added to the CONNECT request, in a mapping or as pairs.
      tracer: A `Tracer` that is told of new and of closed connections.
      allow_h1_response_invalid_content_length: Whether a response with a repeated or malformed
        Content-Length ends with its connection, in place of being refused.
      proxy_protocol: The version of the PROXY header that each new connection to the peer begins
        with, to announce the client that it is for: 1, 2, or 0 for none. Such a connection serves
        that client's connection alone. None takes what ``ServerConf.proxy_protocol`` says.
      verify_cert: Whether a peer's certificate is verified. Where it is not, neither is its name,
        and anybody may be at the other end.
      verify_hostname: Whether it must be for the peer's name (its ``sni``).
      alternative_cn: One more name that it may be for, a host name or an IP address.
      ca: Whom to trust in place of the system's authorities: the path of a PEM file or of a
        directory, PEM as text or bytes, an object with ``configure_trust(context)`` such as a
        trustme CA, or several of these.
      client_cert_key: Our certificate where the peer wants one: a `CertKey`, chain and key as two
        paths, or an object with ``configure_cert(context)`` such as a trustme certificate.
      min_tls_version: The lowest TLS version, ``"1.2"`` or ``"1.3"``.
      ciphers: OpenSSL's names of the TLS 1.2 cipher suites, with colons; None for the defaults.
      http_version: The highest and the lowest HTTP version: (1, 1), (2, 1) for HTTP/2 where the
        peer agrees to it by ALPN, (2, 2) for HTTP/2 alone. Without TLS (2, 2) is HTTP/2 by prior
        knowledge, and (2, 1) is HTTP/1.1.
      custom: A `trioproxy.custom.Protocol` that is spoken with the peer in place of HTTP; over TLS
        it is what ALPN has to agree on.
      max_h2_streams: Requests at once on one HTTP/2 connection; the peer may want fewer.
      h2_ping_interval: Seconds between the pings on an HTTP/2 connection; None sends none.
      h2_stream_window_size: Bytes of one HTTP/2 response that may be under way unread.
      h2_connection_window_size: The same for all responses on a connection together.
      upstream_tls_handshake_complete_hook: Called with the `TlsInfo` of each new connection;
        a `ProxyError` that it raises refuses the connection.
    """

    connection_timeout: float | None = attrs.field(default=None, validator=_seconds)
    tls_handshake_timeout: float | None = attrs.field(default=None, validator=_seconds)
    total_connection_timeout: float | None = attrs.field(default=None, validator=_seconds)
    read_timeout: float | None = attrs.field(default=None, validator=_seconds)
    write_timeout: float | None = attrs.field(default=None, validator=_seconds)
    idle_timeout: float | None = attrs.field(default=None, validator=_idle_seconds)
    bind_to: BindTo | None = attrs.field(default=None, converter=_bind_to, validator=_kind(BindTo))
    tcp_keepalive: TcpKeepalive | None = attrs.field(default=None, validator=_kind(TcpKeepalive))
    tcp_recv_buf: int | None = attrs.field(
        default=None, validator=_whole(1, (1 << 30) - 1, "a number of bytes")
    )
    dscp: int | None = attrs.field(default=None, validator=_whole(0, 63, "a code point"))
    tcp_fast_open: bool = attrs.field(default=False, validator=_flag)
    custom_l4: L4Connect | None = attrs.field(
        default=None, validator=[_methods("connect"), _hashable]
    )
    extra_proxy_headers: HeaderPairs = attrs.field(default=(), converter=proxy_headers)
    tracer: Tracer | None = attrs.field(
        default=None, validator=_methods("on_connected", "on_disconnected")
    )
    allow_h1_response_invalid_content_length: bool = attrs.field(default=False, validator=_flag)
    proxy_protocol: int | None = attrs.field(
        default=None, validator=_whole(0, 2, "the version of a PROXY header")
    )
    verify_cert: bool = attrs.field(default=True, validator=_flag)
    verify_hostname: bool = attrs.field(default=True, validator=_flag)
    alternative_cn: str | None = attrs.field(default=None, converter=_other_name)
    ca: Any = attrs.field(default=None, converter=_anchors, validator=_check_anchors, repr=False)
    client_cert_key: Any = attrs.field(
        default=None, converter=as_cert_key, validator=check_cert_key
    )
    min_tls_version: str = attrs.field(default="1.2", validator=_tls_version)
    ciphers: str | None = attrs.field(default=None, validator=_words)
    http_version: tuple[int, int] = attrs.field(default=(1, 1), validator=_version_pair)
    custom: CustomProtocol | None = attrs.field(default=None, validator=_protocol)
    max_h2_streams: int = attrs.field(default=1, validator=_whole(1, _MAX_WINDOW, "a number"))
    h2_ping_interval: float | None = attrs.field(default=None, validator=_seconds)
    h2_stream_window_size: int | None = attrs.field(
        default=None, validator=_whole(1, _MAX_WINDOW, "a number of bytes")
    )
    h2_connection_window_size: int | None = attrs.field(
        default=None, validator=_whole(65535, _MAX_WINDOW, "a number of bytes")
    )
    upstream_tls_handshake_complete_hook: Callable[[TlsInfo], None] | None = attrs.field(
        default=None, validator=[_callable, _hashable]
    )
    #: What these options add to a peer's reuse key: None where nothing of them shapes a connection.
    _reuse_key: Hashable = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        of_sockets = self.tcp_options()
        if self.custom_l4 is not None and of_sockets:
            raise ValueError(
                f"{of_sockets[0]} is for the built-in sockets, and custom_l4 takes their place"
            )
        if self.max_h2_streams is None:
            raise ValueError("max_h2_streams=None: a number, 1 or more, is right")
        if self.custom is not None and self.http_version != (1, 1):
            raise ValueError(
                f"http_version={self.http_version!r}: custom takes the place of HTTP; leave one of "
                "them out"
            )
        self._check_verification()
        shaping = tuple([getattr(self, name) for name in (*_SHAPING, *_OF_TLS)])
        object.__setattr__(self, "_reuse_key", None if shaping == _PLAIN else shaping)

    def _check_verification(self) -> None:
        """Refuse what says whom to trust where nobody is verified."""
        if not self.verify_cert and self.ca is not None:
            raise ValueError("ca: verify_cert=False trusts everybody; leave one of them out")
        if self.alternative_cn is not None and not (self.verify_cert and self.verify_hostname):
            off = "verify_hostname" if self.verify_cert else "verify_cert"
            raise ValueError(
                f"alternative_cn={self.alternative_cn!r}: {off}=False accepts every name; leave "
                "one of them out"
            )

    @property
    def reuse_key(self) -> Hashable:
        """What two peers' options must share for one to use the other's idle connection."""
        return self._reuse_key

    def tcp_options(self) -> list[str]:
        """Return the names of those options that are set and that only a TCP socket can have."""
        found = [
            name
            for name in ("bind_to", "tcp_keepalive", "tcp_recv_buf", "dscp")
            if getattr(self, name) is not None
        ]
        return [*found, "tcp_fast_open"] if self.tcp_fast_open else found

    def tls_options(self) -> list[str]:
        """Return the names of those options that are set and that only TLS can have."""
        if self._reuse_key is None:
            return []
        plain = dict(zip((*_SHAPING, *_OF_TLS), _PLAIN, strict=True))
        return [name for name in _OF_TLS if getattr(self, name) != plain[name]]

    @property
    def alpn(self) -> tuple[str, ...]:
        """What a TLS handshake offers by ALPN, the best first."""
        return _ALPN[self.http_version] if self.custom is None else (self.custom.alpn,)

    def with_http_version(self, highest: int, lowest: int) -> PeerOptions:
        """Return a copy for other HTTP versions.

        Args:
          highest: Pingora's ``max``, 1 or 2.
          lowest: Pingora's ``min``.

        Raises:
          ValueError: there is no such pair; see ``http_version``.
        """
        return attrs.evolve(self, http_version=(highest, lowest))

    #: Pingora's name of it. It changes nothing: use what it returns.
    set_http_version = with_http_version


# The defaults of all that shapes a connection.
_PLAIN: tuple[object, ...] = tuple(
    getattr(attrs.fields(PeerOptions), name).default for name in (*_SHAPING, *_OF_TLS)
)
#: What most peers have, made once.
DEFAULT = PeerOptions()
