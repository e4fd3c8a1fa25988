"""From accepted bytes to exchanges: who may in, TLS, the version of HTTP, then its connection.

With TLS the version is what ALPN agreed on. In clear text it is HTTP/1, or HTTP/2 where its preface
comes first and the listener takes that (RFC 9113 section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import trio

from .._errors import ProxyError
from .._info import ConnectionInfo
from ..codec._h2_gate import PREFACE
from ..transport._byte_stream import ByteStream
from ..transport._greeted import GreetedStream
from ..transport._tls_server import TlsAcceptor
from ._custom_server import CustomServerConnection
from ._entrance import Entrance
from ._h1_server import H1ServerConnection
from ._h2_server import H2ServerConnection
from ._server import Handler, OnLimit

OpenH1 = Callable[[ByteStream, ConnectionInfo, bytes], H1ServerConnection]
OpenH2 = Callable[[ByteStream, ConnectionInfo, bytes], H2ServerConnection]
OpenCustom = Callable[[ByteStream, ConnectionInfo], CustomServerConnection]
Connection = H1ServerConnection | H2ServerConnection | CustomServerConnection


@attrs.frozen(eq=False)
class Front:
    """What is spoken on a listener.

    Attributes:
      open_h1: Makes an HTTP/1 connection of a transport, what is known of it, and what was read of
        it already.
      open_h2: The same for HTTP/2.
      tls: Opens TLS; None for clear text.
      http1: Whether HTTP/1 is spoken.
      http2: Whether HTTP/2 is, in clear text by prior knowledge.
      first_timeout: Seconds for the first bytes of a connection in clear text, where they decide.
      entrance: What a connection has to get past first; None where there is nothing.
      custom: The protocols of the user's, by the name that ALPN agrees on.
      only: The one that is spoken where nothing was agreed on; None where that is HTTP.
    """

    open_h1: OpenH1
    open_h2: OpenH2
    tls: TlsAcceptor | None = None
    http1: bool = True
    http2: bool = False
    first_timeout: float = 15.0
    entrance: Entrance | None = None
    custom: Mapping[str, OpenCustom] = attrs.field(factory=dict)
    only: OpenCustom | None = None


class ServerConnection:
    """One accepted connection, whatever it will turn out to speak."""

    def __init__(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        front: Front,
        on_limit: OnLimit = lambda _name: None,
    ) -> None:
        """Take over an accepted transport.

        Args:
          transport: The bytes.
          info: Who is there.
          front: What the listener speaks.
          on_limit: Called with the name of a limit that ends the connection before its first
            request.
        """
        self.transport = transport
        self.info = info
        self._front = front
        self._on_limit = on_limit
        self._draining = False
        self._opening: trio.CancelScope | None = None
        self._connection: Connection | None = None

    @property
    def buffered(self) -> int:
        """Bytes of messages that are held for this connection."""
        return 0 if self._connection is None else self._connection.buffered

    async def run(self, handler: Handler) -> None:
        """Serve exchanges until the connection ends; the transport is closed when this returns."""
        front = self._front
        connection: Connection | None
        try:
            if front.tls is not None or front.entrance is not None:
                connection = await self._open()
            elif front.only is not None:
                connection = front.only(self.transport, self.info)
            elif not front.http2:
                connection = front.open_h1(self.transport, self.info, b"")
            else:
                connection = await self._open()
            if connection is None:
                self.transport.close_now()
                return
            self._connection = connection
            if self._draining:
                connection.drain()
            await connection.run(handler)
        finally:
            self.info.life.end()

    def drain(self) -> None:
        """Close now if no request is under way, else when what is under way has ended."""
        self._draining = True
        if self._connection is not None:
            self._connection.drain()
        elif self._opening is not None:
            self._opening.cancel()

    async def _open(self) -> Connection | None:
        """Find out what is spoken; None where the connection ended before, or has to."""
        connection = None
        if not self._draining:
            try:
                with trio.CancelScope() as self._opening:
                    connection = await self._negotiate()
            except BaseException:
                self.transport.close_now()
                raise
            finally:
                self._opening = None
        return connection

    async def _negotiate(self) -> Connection | None:
        front = self._front
        received = b""
        if front.entrance is not None:
            admitted = await front.entrance.admit(self.transport, self.info, self._on_limit)
            if admitted is None:
                return None
            self.info, received = admitted
        if front.tls is not None:
            try:
                stream, self.info = await front.tls.accept(self.transport, self.info, received)
            except ProxyError as exc:
                self._on_limit(f"tls_{exc.etype}")
                return None
            self.transport = stream
            custom = front.only if stream.alpn is None else front.custom.get(stream.alpn)
            if custom is not None:
                return custom(stream, self.info)
            if stream.alpn == "h2":
                return front.open_h2(stream, self.info, b"")
            return front.open_h1(stream, self.info, b"")
        if front.only is not None:
            if received:
                self.transport = GreetedStream(self.transport, received)
            return front.only(self.transport, self.info)
        if not front.http2:
            return front.open_h1(self.transport, self.info, received)
        if front.http1:
            received = await self._first_bytes(received)
            if not received:
                return None
        if received.startswith(PREFACE[: len(received)]) or not front.http1:
            return front.open_h2(self.transport, self.info, received)
        return front.open_h1(self.transport, self.info, received)

    async def _first_bytes(self, received: bytes) -> bytes:
        """Return enough bytes to tell the preface of HTTP/2 from a request; none at the end."""
        with trio.move_on_after(self._front.first_timeout) as scope:
            while received == PREFACE[: len(received)] and len(received) < len(PREFACE):
                try:
                    data = await self.transport.receive_some()
                except ProxyError:
                    return b""
                if not data:
                    return b""
                received += data
        if scope.cancelled_caught:  # what it was to be, nobody knows
            self._on_limit("header_timeout")
            return b""
        return received
