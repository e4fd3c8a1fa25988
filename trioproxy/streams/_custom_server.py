"""A protocol of the user's towards the client: a connection with its standing reader, its exchanges.

**Theory of operation.** As over HTTP/1 (`_h1_server`): one reader per connection decodes into the
inbox of the exchange, within a bound, and notices a client that leaves. Exchanges run one after
another. What was decoded behind the end of a request is the next one's, and stops the reader;
messages may come until the response has ended, and what comes of them later is dropped.
"""

from __future__ import annotations

import math
from collections import deque

import trio

from .._custom import Codec, CodecEvent, Message, MessageChannel, ProtocolError
from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from .._messages import END, RequestEvent, RequestFacts, RequestHeader, ResponseEvent
from .._util import Bell
from ..transport._byte_stream import ByteStream
from ._abc import DownstreamStream
from ._custom import READ_SIZE, Inbox, Outlet, ends, without_informational
from ._memory import Order
from ._server import Handler, OnLimit, OnRefused, ServerOptions


class CustomServerConnection:
    """One accepted connection that speaks a protocol of the user's."""

    def __init__(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        codec: Codec,
        options: ServerOptions,
        on_refused: OnRefused = lambda _info, _status, _text: None,
        on_limit: OnLimit = lambda _name: None,
    ) -> None:
        """Take over an accepted transport.

        Args:
          transport: The bytes.
          info: Who is there.
          codec: The protocol.
          options: Times and bounds.
          on_refused: Called where what comes between two exchanges is not of the protocol.
          on_limit: Called with the name of a limit that ends the connection between two requests.
        """
        self.transport = transport
        self.info = info
        self.codec = codec
        self.options = options
        self.outlet = Outlet(transport, codec)
        self.inbox = Inbox()
        self.broken: ProxyError | None = None
        self.eof = False
        self._draining = False
        self._on_refused = on_refused
        self._on_limit = on_limit
        #: Decoded of requests to come.
        self._later: deque[CodecEvent] = deque()
        self._arrived = Bell()
        self._exchange: CustomDownstreamStream | None = None

    @property
    def buffered(self) -> int:
        """Bytes of messages that nobody has taken."""
        return self.inbox.queued

    async def run(self, handler: Handler) -> None:
        """Serve exchanges until the connection ends; the transport is closed when this returns."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                idle = self.options.idle_timeout
                kept: tuple[object, object] | None = None
                while await self._next_head(idle):
                    exchange = self._exchange = CustomDownstreamStream(self, kept)
                    await handler(exchange)
                    kept = exchange.kept
                    if not await self._settle(exchange):
                        break
                    self._exchange = None
                    assert exchange.keepalive is not None
                    idle = exchange.keepalive
                nursery.cancel_scope.cancel()
            with trio.move_on_after(self.options.drain_timeout):
                await self._linger()
        finally:
            self.transport.close_now()

    def drain(self) -> None:
        """Close now if no request is under way, else when its exchange has ended."""
        self._draining = True
        self._arrived.ring()

    @property
    def draining(self) -> bool:
        """Whether no further exchange is to start."""
        return self._draining

    async def _read(self) -> None:
        while True:
            while self.inbox.full or self._later:
                await self.inbox.room.wait()
            try:
                data = await self.transport.receive_some(READ_SIZE)
                if not data:
                    self.eof = True
                else:
                    for event in self.codec.feed(data):
                        self._sort(event)
            except trio.ClosedResourceError:
                return
            except ProtocolError as exc:
                self.broken = ProxyError.because(
                    ErrorType.InvalidHTTPHeader, f"the client broke its protocol: {exc}", exc
                ).into_down()
            except ProxyError as exc:
                self.broken = ProxyError.because(
                    ErrorType.ConnectionClosed, "the client's connection broke", exc
                ).into_down()
            self._arrived.ring()
            if self.eof or self.broken is not None:
                self.inbox.ring()
                if self._exchange is not None:
                    self._exchange.party_left()
                return

    def _sort(self, event: CodecEvent) -> None:
        """Give an event to the request that it belongs to."""
        exchange = self._exchange
        if self._later:
            self._later.append(event)
        elif type(event) is Message:
            if exchange is not None and not exchange.finished:  # else of one that has ended
                self.inbox.put(event)
        elif exchange is None or self.inbox.ended:
            self._later.append(event)
        else:
            self.inbox.put(event)

    def fill(self) -> None:
        """Move what came of the current request into its inbox."""
        while self._later and (not self.inbox.ended or type(self._later[0]) is Message):
            self.inbox.put(self._later.popleft())
        self.inbox.room.ring()

    @property
    def departure(self) -> ProxyError | None:
        """Why the client counts as gone for the current exchange, or None."""
        if self.broken is not None:
            return self.broken
        exchange = self._exchange
        if not self.eof:
            return None
        if not self.inbox.ended:
            text = "the client closed the connection in the middle of its request"
        elif exchange is not None and exchange.abort_on_close and not self._later:
            text = "the client closed the connection before its response"
        else:
            return None
        return ProxyError.explain(ErrorType.ConnectionClosed, text).into_down()

    async def _next_head(self, idle: float) -> bool:
        """Wait for the next request; False where the connection is to close."""
        with trio.move_on_after(idle) as scope:
            while not self._later:
                if self.eof or self._draining:
                    return False
                if self.broken is not None:
                    if self.broken.etype == ErrorType.InvalidHTTPHeader:
                        self._on_refused(self.info, 400, str(self.broken))
                    return False
                await self._arrived.wait()
        if scope.cancelled_caught:
            self._on_limit("idle_timeout")
            return False
        first = self._later[0]
        if type(first) is not RequestHeader:
            self._on_refused(self.info, 400, "a request does not begin with its head")
            return False
        return True

    async def _settle(self, exchange: CustomDownstreamStream) -> bool:
        """Bring the connection into the state for its next request; False where it must close."""
        if not exchange.finished or self.outlet.torn or exchange.keepalive is None:
            return False
        if exchange.reuses_remaining is not None and exchange.reuses_remaining <= 0:
            return False
        with trio.move_on_after(exchange.drain_timeout):
            while not self.inbox.ended:
                self.inbox.take()
                self.inbox.drop_messages()
                if self.eof or self.broken is not None:
                    return False
                await self.inbox.bell.wait()
        if not self.inbox.ended:
            self._on_limit("drain_timeout")
            return False
        self.inbox.take()
        self.inbox.drop_messages()
        self.inbox.ended = False
        return self.broken is None

    async def _linger(self) -> None:
        """Half-close and drop what still comes, or a reset would destroy what was sent (H1-31)."""
        exchange = self._exchange
        if exchange is None or not exchange.finished:
            return
        if self.eof or self.broken is not None or self.outlet.torn:
            return
        try:
            await self.transport.send_eof()
            while await self.transport.receive_some(READ_SIZE):
                pass
        except (ProxyError, trio.BrokenResourceError, trio.ClosedResourceError):
            return


class CustomDownstreamStream(DownstreamStream, MessageChannel):
    """One exchange on a `CustomServerConnection`."""

    sequential = True

    def __init__(
        self, connection: CustomServerConnection, kept: tuple[object, object] | None = None
    ) -> None:
        options = connection.options
        self._connection = connection
        self.kept = kept
        self.messages = self
        self.info = connection.info
        self.keepalive = options.idle_timeout
        self.blame = None
        self.abort_on_close = True
        self.close_on_early_response = True
        self.drain_timeout = options.drain_timeout
        self.reuses_remaining = None
        self.min_send_rate = options.min_send_rate
        self.read_timeout = options.body_timeout
        self.write_timeout = options.write_timeout
        #: Whether the response has ended.
        self.finished = False
        self._order = Order()
        self._half_close = True
        self._scope: trio.CancelScope | None = None
        self._over = False
        self._closed = False
        connection.fill()
        head = connection.inbox.events[0]
        if head.facts is None:
            # Without the end beside the head there is content, however little it turns out to be.
            head.facts = RequestFacts(chunked=connection.inbox.events[1:2] != [END])

    @property
    def request_complete(self) -> bool:
        """Whether the request's end has been decoded."""
        return self._connection.inbox.ended

    @property
    def departure(self) -> ProxyError | None:
        """Why the client counts as gone, or None."""
        return self._connection.departure

    def watch(self, scope: trio.CancelScope, *, half_close: bool = True) -> None:
        """Cancel the scope when the client leaves; see `DownstreamStream.watch`."""
        self._scope = scope
        self._half_close = half_close
        self.party_left()

    def unwatch(self) -> None:
        """Forget the scope."""
        self._scope = None

    def party_left(self) -> None:
        """Cancel the session, where the client counts as gone."""
        connection = self._connection
        if self.finished or self._scope is None:
            return
        if not self._half_close and connection.broken is None and self.request_complete:
            return  # looked at again when a filter has had its say
        if self.departure is not None:
            self._scope.cancel()

    async def receive_batch(self) -> list[RequestEvent]:
        """Return what is decoded of the request; see `MessageStream.receive_batch`."""
        inbox = self._connection.inbox
        if self._closed:
            raise _exchange_over()
        while not inbox.events:
            departure = self.departure
            if departure is not None:
                raise departure
            with trio.move_on_after(math.inf if self._over else self.read_timeout) as scope:
                await inbox.bell.wait()
            if scope.cancelled_caught:
                raise ProxyError.explain(
                    ErrorType.HTTPStatus(408), "the request's content took too long"
                ).into_down()
        batch: list[RequestEvent] = inbox.take()
        self._over = self._over or ends(batch[-1])
        return batch

    async def send(self, *events: ResponseEvent) -> None:
        """Send events of the response; see `MessageStream.send`. Informational heads are not sent."""
        if self._closed:
            raise _exchange_over()
        told = without_informational(events)
        for event in told:
            self._order.take(event)
        await self._send(told)
        if self._order.ended:
            self.finished = True
            self._connection.inbox.drop_messages()
            self._connection.inbox.message_bell.ring()

    async def _send(self, events: list[CodecEvent]) -> None:
        timeout = self.write_timeout
        rate = self.min_send_rate
        try:
            if not rate:
                await self._connection.outlet.send(events, timeout)
                return
            size = sum(len(getattr(event, "data", b"")) for event in events)
            with trio.move_on_after(max(size, rate) / rate) as scope:
                await self._connection.outlet.send(events, math.inf)
        except ProxyError as exc:
            exc.as_down()
            raise
        if scope.cancelled_caught:
            raise ProxyError.explain(
                ErrorType.WriteTimedout, f"the client takes less than {rate:g} bytes a second"
            ).into_down()

    async def receive_message(self) -> bytes | None:
        """Return the client's next message; see `MessageChannel.receive_message`."""
        inbox = self._connection.inbox
        while not inbox.messages:
            if self.finished or self._closed:
                return None
            departure = self.departure
            if departure is not None:
                raise departure
            await inbox.message_bell.wait()
        return inbox.take_message()

    async def send_message(self, message: bytes) -> None:
        """Send a message to the client; see `MessageChannel.send_message`."""
        if not (self.finished or self._closed or self._order.ended):
            await self._send([Message(message)])

    async def aclose(self) -> None:
        """Leave the exchange; the connection settles or closes by itself."""
        self._scope = None
        self._closed = True


def _exchange_over() -> ProxyError:
    return ProxyError.explain(ErrorType.ConnectionClosed, "the exchange is over").into_down()
