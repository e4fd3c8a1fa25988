"""How to treat the connection to a peer: timeouts, socket options, who connects, who is told."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Protocol

import attrs

from ._headers import Headers
from ._info import Digest

Text = str | bytes
HeaderPairs = tuple[tuple[bytes, bytes], ...]

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


def _hashable(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"{attribute.name}={value!r}: it must be hashable, for connections are told apart by "
            "it (attrs.frozen, or eq=False)"
        ) from None


@attrs.frozen(kw_only=True)
class PeerOptions:
    """How to treat a connection to a peer.

    For a timeout None means the server's default and `math.inf` means no limit; elsewhere None
    leaves things as the system has them.

    Attributes:
      connection_timeout: Seconds for connecting, and once more for what an HTTP CONNECT proxy
        takes to answer.
      total_connection_timeout: Seconds for all of it, the name's look-up included; None is no
        limit.
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
    """

    connection_timeout: float | None = attrs.field(default=None, validator=_seconds)
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
    #: What these options add to a peer's reuse key: None where nothing of them shapes a connection.
    _reuse_key: Hashable = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        of_sockets = self.tcp_options()
        if self.custom_l4 is not None and of_sockets:
            raise ValueError(
                f"{of_sockets[0]} is for the built-in sockets, and custom_l4 takes their place"
            )
        shaping = (
            self.bind_to,
            self.tcp_keepalive,
            self.tcp_recv_buf,
            self.dscp,
            self.tcp_fast_open,
            self.custom_l4,
            self.extra_proxy_headers,
            self.allow_h1_response_invalid_content_length,
        )
        plain = shaping == (None, None, None, None, False, None, (), False)
        object.__setattr__(self, "_reuse_key", None if plain else shaping)

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


#: What most peers have, made once.
DEFAULT = PeerOptions()
