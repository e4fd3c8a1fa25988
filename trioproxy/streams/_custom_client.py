"""A protocol of the user's towards the origin: a connection with its standing reader, its exchanges.

**Theory of operation.** As over HTTP/1 (`_h1_client`): the reader lives as long as the connection.
Between exchanges it watches an idle one, on which any byte is the end; during one it decodes into
the exchange's inbox, within a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from .._custom import Codec, Message, MessageChannel, ProtocolError
from .._errors import ErrorType, ProxyError, RetryType
from .._info import ConnectionInfo
from .._messages import RequestEvent, RequestHeader, ResponseEvent
from ..transport._byte_stream import ByteStream
from ._abc import UpstreamConnection, UpstreamStream
from ._custom import READ_SIZE, Inbox, Outlet, ends, is_informational
from ._mailbox import ReadTimer
from ._memory import Order


class CustomClientConnection(UpstreamConnection):
    """One connection to an origin, good for one exchange after another."""

    def __init__(self, transport: ByteStream, info: ConnectionInfo, codec: Codec) -> None:
        """Take over a connected transport.

        Args:
          transport: The bytes.
          info: Where they go.
          codec: The protocol.
        """
        self.transport = transport
        self.info = info
        self.codec = codec
        self.outlet = Outlet(transport, codec)
        self.inbox = Inbox()
        self.failure: ProxyError | None = None
        self.dead = False
        self.spoke_out_of_turn = False
        self.served = 0
        self.idle_timeout = math.inf
        self.on_idle_end: Callable[[UpstreamConnection], None] = _nobody
        self.on_room: Callable[[UpstreamConnection], None] = _nobody
        self._timer = ReadTimer()
        self._exchange: CustomUpstreamStream | None = None
        #: Whether the origin sent what belongs to no response.
        self._surplus = False

    @property
    def shared(self) -> bool:
        """False: one exchange at a time."""
        return False

    @property
    def room(self) -> int:
        """1 between exchanges, else 0."""
        return 1 if self._exchange is None and not self.dead else 0

    @property
    def busy(self) -> int:
        """1 during an exchange, else 0."""
        return 0 if self._exchange is None else 1

    async def run(self) -> None:
        """Read until the connection ends; whoever owns the connection runs this as a task."""
        try:
            while not self.dead:
                with self._timer.scope() as scope:
                    await self._read()
                if not scope.cancelled_caught or self._timer.expired():
                    break
        finally:
            self.dead = True
            self.transport.close_now()
            if self._exchange is None:
                self.on_idle_end(self)
            else:
                self.inbox.ring()

    async def _read(self) -> None:
        while not self.dead:
            while self.inbox.full and not self.dead:
                await self.inbox.room.wait()
            try:
                data = await self.transport.receive_some(READ_SIZE)
            except trio.ClosedResourceError:
                return
            except ProxyError as exc:
                self._fail(exc.into_up())
                return
            exchange = self._exchange
            if exchange is None or (data and not exchange.anything_sent):
                self.spoke_out_of_turn = bool(data)
                return
            if not data:
                error = ProxyError.explain(
                    ErrorType.ConnectionClosed, "the origin closed the connection"
                )
                self._fail(error.into_up())
                return
            try:
                for event in self.codec.feed(data):
                    if type(event) is RequestHeader or is_informational(event):
                        raise ProtocolError("what came is no head of a response")
                    if self.inbox.ended:
                        self._surplus = True
                    else:
                        self.inbox.put(event)
            except ProtocolError as exc:
                error = ProxyError.because(
                    ErrorType.InvalidHTTPHeader, f"the origin broke its protocol: {exc}", exc
                )
                self._fail(error.into_up())
                return

    def _fail(self, error: ProxyError) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.heard and not self.inbox.events:
            error.retry = RetryType.ReusedOnly  # it may just have been stale (F-04)
        self.failure = error
        self.dead = True
        self.inbox.ring()

    def start(self) -> CustomUpstreamStream:
        """Start the next exchange."""
        self._timer.disarm()
        self.inbox = Inbox()
        exchange = self._exchange = CustomUpstreamStream(self)
        self.served += 1
        return exchange

    def release(self, exchange: CustomUpstreamStream) -> None:
        """End an exchange: back to idle where both messages are whole, else closed."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        inbox = self.inbox
        whole = exchange.finished and inbox.ended and not inbox.events and not inbox.messages
        if self.dead or not whole or self.outlet.torn or self._surplus:
            self.close()

    def arm_idle(self, seconds: float) -> None:
        """Let the connection end in so many seconds unless an exchange starts before."""
        self._timer.arm(seconds, "idle")

    def usable(self) -> bool:
        """Tell, at checkout, whether an idle connection is still silent and open (U1-01)."""
        if self.dead:
            return False
        try:
            data = self.transport.receive_ready(1)
        except (ProxyError, trio.ClosedResourceError):
            return False
        self.spoke_out_of_turn = bool(data)
        return data is None

    def close(self) -> None:
        """Close the connection at once; its reader ends by itself."""
        self.dead = True
        self.transport.close_now()
        self.inbox.room.ring()


class CustomUpstreamStream(UpstreamStream, MessageChannel):
    """One exchange on a `CustomClientConnection`."""

    def __init__(self, connection: CustomClientConnection) -> None:
        self._connection = connection
        self.messages = self
        self.info = connection.info
        self.reused = connection.served > 0
        self.read_timeout = math.inf
        self.write_timeout = math.inf
        self.body_bytes_received = 0
        self.write_pending_time = 0.0
        #: Whether the request has ended.
        self.finished = False
        #: Whether anything of the response has come.
        self.heard = False
        self._inbox = connection.inbox
        self._order = Order()
        self._sent = False
        self._over = False

    @property
    def anything_sent(self) -> bool:
        """Whether a byte of the request may have reached the wire."""
        return self._sent

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1."""
        return self._connection.transport.fileno()

    async def send(self, *events: RequestEvent) -> None:
        """Send events of the request; see `MessageStream.send`."""
        for event in events:
            self._order.take(event)
        await self._send(list(events))
        self.finished = self._order.ended
        if self.finished:
            self._inbox.bell.ring()  # from now on the origin owes a response

    async def _send(self, events: list[RequestEvent | Message]) -> None:
        connection = self._connection
        if connection.dead:
            raise connection.failure or _gone()
        self._sent = True
        started = trio.current_time()
        try:
            await connection.outlet.send(events, self.write_timeout)
        except ProxyError as exc:
            exc.as_up()
            raise
        finally:
            self.write_pending_time += trio.current_time() - started

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what is decoded of the response; see `MessageStream.receive_batch`."""
        inbox = self._inbox
        while not inbox.events:
            self._check()
            timed = self.finished and not self._over
            if not await inbox.wait(self.read_timeout if timed else math.inf):
                raise ProxyError.explain(
                    ErrorType.ReadTimedout, "waiting for more of the response"
                ).into_up()
        self.heard = True
        batch: list[ResponseEvent] = inbox.take()
        self._over = self._over or ends(batch[-1])
        return batch

    def _check(self) -> None:
        connection = self._connection
        if connection.failure is not None:
            raise connection.failure
        if connection.dead:
            raise _gone()

    async def receive_message(self) -> bytes | None:
        """Return the origin's next message; see `MessageChannel.receive_message`."""
        inbox = self._inbox
        while not inbox.messages:
            if inbox.ended:
                return None
            self._check()
            await inbox.message_bell.wait()
        self.heard = True
        return inbox.take_message()

    async def send_message(self, message: bytes) -> None:
        """Send a message to the origin; see `MessageChannel.send_message`."""
        if not self._inbox.ended:
            await self._send([Message(message)])
            self._inbox.active = trio.current_time()

    def release(self) -> None:
        """End the exchange: back to idle where both messages are whole, else closed."""
        self._connection.release(self)


def _nobody(_: UpstreamConnection) -> None:
    """Stand in for an owner that does not care."""


def _gone() -> ProxyError:
    error = ProxyError.explain(ErrorType.ConnectionClosed, "the connection to the origin is closed")
    error.as_up()
    error.retry = RetryType.ReusedOnly
    return error
