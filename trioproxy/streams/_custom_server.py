"""A protocol of the user's towards the client: a connection with its standing reader, its exchanges.

**Theory of operation.** As over HTTP/1 (`_h1_server`): one reader per connection decodes into the
inbox of the exchange, within a bound, and notices a client that leaves. Exchanges run one after
another. What was decoded behind the end of a request is the next one's, and stops the reader;
messages may come until the response has ended, and what comes of them later is dropped.
"""

from __future__ import annotations

import math
from collections import deque

import attrs
import trio

from .._custom import Codec, CodecEvent, Message, MessageChannel, ProtocolError
from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from .._messages import END, Data, RequestEvent, RequestHeader, ResponseEvent
from .._util import Bell
from ..semantics._custom import custom_facts
from ..transport._byte_stream import ByteStream
from ._abc import DownstreamStream
from ._custom import READ_SIZE, Inbox, Outlet, ends, without_informational
from ._mailbox import Allowance
from ._memory import Order
from ._server import Handler, OnLimit, OnRefused, ServerOptions, settle


@attrs.frozen(kw_only=True)
class CustomServerOptions(ServerOptions):
    """Times and bounds of a connection that speaks a protocol of the user's."""

    header_timeout: float = 15.0
    drain_bytes: int = 262144
    request_limit: int | None = None
    max_body_bytes: int | None = None
    allow_trace: bool = False


class CustomServerConnection:
    """One accepted connection that speaks a protocol of the user's."""

    def __init__(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        codec: Codec,
        options: CustomServerOptions,
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
        limit = options.request_limit
        self.reuses_remaining = None if limit is None else limit - 1
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
                idle = self.options.header_timeout
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
                    left = exchange.reuses_remaining
                    self.reuses_remaining = None if left is None else left - 1
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
        try:
            self._begin()
        except (ProtocolError, ValueError) as exc:
            self._on_refused(self.info, 400, str(exc))
            return False
        return True

    def _begin(self) -> None:
        """Move what came of the next request into the inbox, its head first.

        Raises:
          ProtocolError: it does not begin with a head, or goes on wrongly.
          ValueError: its head means nothing, or more than one thing.
        """
        head = self._later[0]
        if type(head) is not RequestHeader:
            raise ProtocolError("a request does not begin with its head")
        while self._later and (not self.inbox.ended or type(self._later[0]) is Message):
            self.inbox.put(self._later.popleft())
        head.facts = custom_facts(
            head, ends=self.inbox.events[1:2] == [END], allow_trace=self.options.allow_trace
        )
        self.inbox.room.ring()

    async def _settle(self, exchange: CustomDownstreamStream) -> bool:
        """Bring the connection into the state for its next request; False where it must close."""
        if not exchange.finished or self.outlet.torn or exchange.keepalive is None:
            return False
        if exchange.reuses_remaining is not None and exchange.reuses_remaining <= 0:
            return False
        if exchange.early and exchange.close_on_early_response:
            return False
        if not await self._drop_rest(exchange.drain_timeout):
            return False
        self.inbox.take()
        self.inbox.drop_messages()
        self.inbox.next_message()
        return self.broken is None

    async def _drop_rest(self, timeout: float) -> bool:
        """Read the unread rest of a request within the bounds of row H1-22."""
        dropped = 0
        inbox = self.inbox
        with trio.move_on_after(timeout):
            while True:
                dropped += inbox.queued
                inbox.take()
                inbox.drop_messages()
                if dropped > self.options.drain_bytes:
                    self._on_limit("drain_bytes")
                    return False
                if inbox.ended:
                    return True
                if self.eof or self.broken is not None:
                    return False
                await inbox.bell.wait()
        self._on_limit("drain_timeout")
        return False

    async def _linger(self) -> None:
        """Half-close and drop what still comes, or a reset would destroy what was sent (H1-31)."""
        exchange = self._exchange
        if exchange is None or not exchange.finished:
            return
        if self.eof or self.broken is not None or self.outlet.torn:
            return
        try:
            await self.transport.send_eof()
            dropped = 0
            while dropped <= self.options.drain_bytes:
                data = await self.transport.receive_some(READ_SIZE)
                if not data:
                    break
                dropped += len(data)
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
        settle(self, options)
        # The client cannot be told that its connection closes.
        self.close_on_early_response = False
        self.reuses_remaining = connection.reuses_remaining
        #: Whether the response has ended.
        self.finished = False
        #: Whether it began before the request's end.
        self.early = False
        #: Seconds that we may still wait before the content counts as too slow, and its size.
        self._allowance = Allowance(options.min_receive_rate)
        self._size = 0
        self._order = Order()
        self._half_close = True
        self._scope: trio.CancelScope | None = None
        self._over = False
        self._closed = False

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
            await self._wait()
        before = self._size
        batch = self._within_limit(inbox.take())
        self._allowance.received(self._size - before, self.read_timeout)
        self._over = self._over or ends(batch[-1])
        return batch

    def _within_limit(self, events: list[RequestEvent]) -> list[RequestEvent]:
        """Return the events before the one with which the content is too long.

        Raises:
          ProxyError: that was the first one.
        """
        most = self._connection.options.max_body_bytes
        for index, event in enumerate(events):
            if type(event) is not Data:
                continue
            self._size += len(event.data)
            if most is None or self._size <= most:
                continue
            if not index:
                raise ProxyError.explain(
                    ErrorType.HTTPStatus(413), f"the request's content is longer than {most} bytes"
                ).into_down()
            self._size -= len(event.data)
            self._connection.inbox.put_back(events[index:])
            return events[:index]
        return events

    async def _wait(self) -> None:
        """Wait for more of the request, within its times."""
        inbox, allowance = self._connection.inbox, self._allowance
        if self._over:
            await inbox.bell.wait()
            return
        started = trio.current_time()
        in_time = False
        # By a rate only content counts, else whatever moves.
        with trio.move_on_after(allowance.seconds):
            in_time = await inbox.wait(self.read_timeout)
        if allowance.rate:
            allowance.waited(trio.current_time() - started)
        if not in_time:
            raise ProxyError.explain(
                ErrorType.HTTPStatus(408), "the request's content took too long"
            ).into_down()

    async def send(self, *events: ResponseEvent) -> None:
        """Send events of the response; see `MessageStream.send`. Informational heads are not sent."""
        if self._closed:
            raise _exchange_over()
        told = without_informational(events)
        if told and not self._order.head:
            self.early = not self.request_complete
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
            self._connection.inbox.active = trio.current_time()

    async def aclose(self) -> None:
        """Leave the exchange; the connection settles or closes by itself."""
        self._scope = None
        self._closed = True


def _exchange_over() -> ProxyError:
    return ProxyError.explain(ErrorType.ConnectionClosed, "the exchange is over").into_down()
