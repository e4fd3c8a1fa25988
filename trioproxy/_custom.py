"""A protocol of your own in place of HTTP: what it is called, and how its bytes are read and written.

A `Protocol` makes a `Codec` for each connection, and the rest is done here: connections, pooling,
timeouts, backpressure, clients that leave. Its exchanges are those of HTTP, a request and a response
with head, content and trailers, one after another on a connection; beside their content *messages*
may run both ways, from the request's head until the response's end (Pingora's custom protocols).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import attrs

from ._messages import Data, End, RequestHeader, ResponseHeader, Trailers


class ProtocolError(Exception):
    """What came is no message of the protocol: a codec raises it, and the connection ends."""


@attrs.frozen
class Message:
    """A message beside the content of a request or a response.

    Attributes:
      data: Its bytes; it may be empty.
    """

    data: bytes


CodecEvent = RequestHeader | ResponseHeader | Data | Trailers | End | Message


class Codec(ABC):
    """Bytes to events and back, for one connection: no input or output of its own."""

    @abstractmethod
    def feed(self, data: bytes) -> list[CodecEvent]:
        """Take bytes as they came, and return the events that are whole now.

        A request without content gives its head and its `END` from one call. A piece of content
        may be given before all of it is here; what a codec has to hold until it is whole, a head
        or a message, needs a bound.

        Raises:
          ProtocolError: the bytes are not of this protocol, or a bound was passed.
        """

    @abstractmethod
    def encode(self, event: CodecEvent) -> bytes:
        """Return what to send for an event.

        Events come in the order of an exchange: head, `Data`, perhaps `Trailers`, an end (`END`, or
        a `Data` whose ``end`` is True); a `Message` at any time.
        """


class Protocol(ABC):
    """A protocol that a listener or a peer may speak; equal ones share upstream connections."""

    #: What it is called in ALPN, such as ``"lp/1"``.
    alpn: str

    @abstractmethod
    def server(self) -> Codec:
        """Return the codec for a client's connection: it reads requests and writes responses."""

    @abstractmethod
    def client(self) -> Codec:
        """Return the codec for a connection to an origin: it writes requests, reads responses."""


class MessageChannel(ABC):
    """The messages of one side of an exchange."""

    @abstractmethod
    async def receive_message(self) -> bytes | None:
        """Return the next message, None when no more will come.

        Raises:
          ProxyError: the other party left or broke the protocol.
          trio.Cancelled: nothing is lost.
        """

    @abstractmethod
    async def send_message(self, message: bytes) -> None:
        """Send a message; once the response has ended it is dropped.

        Raises:
          ProxyError: the other party left.
          trio.Cancelled: the exchange can only be aborted.
        """


def check_protocol(value: object, what: str) -> None:
    """Refuse what is no protocol.

    Raises:
      ValueError: it says what is right.
    """
    if not isinstance(value, Protocol):
        raise ValueError(f"{what}={value!r}: a trioproxy.custom.Protocol is right")
    name: object = getattr(value, "alpn", None)
    if not isinstance(name, str) or not name.isascii() or not 0 < len(name) < 256:
        raise ValueError(f"{what}: alpn={name!r}: 1 to 255 ASCII characters are right")
    if name in ("h2", "http/1.1", "http/1.0"):
        raise ValueError(f"{what}: alpn={name!r} is HTTP: a name of its own is right")
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"{what}={value!r}: it must be hashable (attrs.frozen, or eq=False)"
        ) from None
