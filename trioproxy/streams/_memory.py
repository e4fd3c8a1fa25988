"""An exchange in memory: what one side sends, the other receives, with no bytes in between.

For requests that the program makes of itself, and for tests. Both directions are bounded: `send`
returns once less than `CAPACITY` bytes of content wait for the other side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import trio

from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from .._messages import (
    Data,
    End,
    RequestEvent,
    RequestHeader,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from .._util import Bell
from ._abc import DownstreamStream, UpstreamStream

#: Bytes of content that may wait in one direction before `send` waits as well.
CAPACITY = 65536

EventT = TypeVar("EventT", RequestEvent, ResponseEvent)


def _misuse(text: str) -> ProxyError:
    return ProxyError.explain(ErrorType.InternalError, text).into_in()


class Order:
    """Holds the events of one message to their order (rule 1 of the contract)."""

    __slots__ = ("body", "ended", "head", "trailers")

    def __init__(self) -> None:
        self.head = self.body = self.trailers = self.ended = False

    def take(self, event: RequestHeader | ResponseHeader | Data | Trailers | End) -> None:
        if self.ended:
            raise _misuse("an event was sent behind the end of a message")
        if isinstance(event, (RequestHeader, ResponseHeader)):
            if self.head:
                raise _misuse("a second head was sent")
            self.head = isinstance(event, RequestHeader) or event.status >= 200
            return
        if not self.head:
            raise _misuse("an event was sent before the head of its message")
        if isinstance(event, Data):
            if self.trailers or not event.data:
                raise _misuse("content must not be empty, nor follow the trailers")
            self.ended = event.end
        elif isinstance(event, Trailers):
            if self.trailers:
                raise _misuse("trailers were sent twice")
            self.trailers = True
        else:
            self.ended = True


class _Direction(Generic[EventT]):
    """One direction: a bounded queue of events with a bell at either end."""

    __slots__ = ("events", "filled", "order", "queued", "room", "torn")

    def __init__(self) -> None:
        self.events: list[EventT] = []
        self.queued = 0
        self.order = Order()
        #: Whether a send was cut: what followed is lost.
        self.torn = False
        self.filled = Bell()
        self.room = Bell()

    def switch(self) -> None:
        """Go on behind what opens a tunnel: content, then a half-close."""
        self.order = Order()
        self.order.head = True

    def put(self, events: Sequence[EventT]) -> None:
        for event in events:
            self.order.take(event)
            if isinstance(event, Data):
                self.queued += len(event.data)
            self.events.append(event)
        self.filled.ring()

    def tear(self) -> None:
        """Lose what waits: a send was cut, and how much of it counts as sent is unknown."""
        self.torn = True
        self.events.clear()
        self.filled.ring()

    def take(self) -> list[EventT]:
        batch, self.events = self.events, []
        self.queued = 0
        self.room.ring()
        return batch


class _Exchange:
    """What both ends share."""

    __slots__ = ("downstream_left", "head", "request", "response", "upstream_left")

    def __init__(self) -> None:
        self.request: _Direction[RequestEvent] = _Direction()
        self.response: _Direction[ResponseEvent] = _Direction()
        #: The head of the request, once it was sent.
        self.head: RequestHeader | None = None
        #: The end that receives requests has left.
        self.downstream_left = False
        #: The end that sends requests has left.
        self.upstream_left = False

    def ring(self) -> None:
        for bell in (
            self.request.filled,
            self.request.room,
            self.response.filled,
            self.response.room,
        ):
            bell.ring()


def _closed(text: str) -> ProxyError:
    return ProxyError.explain(ErrorType.ConnectionClosed, text)


async def _timed(bell: Bell, seconds: float, etype: ErrorType, what: str) -> None:
    with trio.move_on_after(seconds) as scope:
        await bell.wait()
    if scope.cancelled_caught:
        raise ProxyError.explain(etype, f"{what}: nothing in {seconds:g} s")


class MemoryDownstream(DownstreamStream):
    """The end that receives the request: what an engine is given."""

    __slots__ = (
        "_exchange",
        "_scope",
        "abort_on_close",
        "close_on_early_response",
        "drain_timeout",
        "info",
        "keepalive",
        "min_send_rate",
        "read_timeout",
        "reuses_remaining",
        "write_timeout",
    )

    def __init__(self, exchange: _Exchange, info: ConnectionInfo) -> None:
        self._exchange = exchange
        self._scope: trio.CancelScope | None = None
        self.info = info
        self.keepalive = None
        self.abort_on_close = True
        self.close_on_early_response = True
        self.drain_timeout = 2.0
        self.reuses_remaining = 0
        self.min_send_rate = 0.0
        self.read_timeout = math.inf
        self.write_timeout = math.inf

    @property
    def request_complete(self) -> bool:
        """Whether the request's end was sent."""
        return self._exchange.request.order.ended

    @property
    def departure(self) -> ProxyError | None:
        """Why the other end counts as gone, or None."""
        if self._exchange.upstream_left or self._exchange.request.torn:
            return _closed("the other end of the exchange was closed").into_down()
        return None

    def watch(self, scope: trio.CancelScope, *, half_close: bool = True) -> None:
        """Cancel the scope when the other end leaves; nothing in memory is half-closed."""
        self._scope = scope
        self.party_left()

    def unwatch(self) -> None:
        """Forget the scope."""
        self._scope = None

    def party_left(self) -> None:
        """Cancel the session, where the other end is gone and has not got its whole response."""
        if self._exchange.response.order.ended:
            return
        if self._scope is not None and self.departure is not None:
            self._scope.cancel()

    async def receive_batch(self) -> list[RequestEvent]:
        """Return the events of the request that wait; see `MessageStream.receive_batch`."""
        direction = self._exchange.request
        while not direction.events:
            departure = self.departure
            if departure is not None:
                raise departure
            await _timed(
                direction.filled, self.read_timeout, ErrorType.ReadTimedout, "more of the request"
            )
        return direction.take()

    async def send(self, *events: ResponseEvent) -> None:
        """Send events of the response; see `MessageStream.send`."""
        direction = self._exchange.response
        departure = self.departure
        if departure is not None or direction.torn:
            raise departure or _closed("an earlier send was cut").into_down()
        for event in events:
            direction.put([event])
            head = self._exchange.head
            if (
                isinstance(event, ResponseHeader)
                and head is not None
                and head.switched_by(event.status)
            ):
                direction.switch()
                self._exchange.request.switch()
        try:
            while direction.queued >= CAPACITY:
                await _timed(
                    direction.room,
                    self.write_timeout,
                    ErrorType.WriteTimedout,
                    "sending the response",
                )
                departure = self.departure
                if departure is not None and direction.queued >= CAPACITY:
                    raise departure
        except BaseException:
            # How much of it counts as sent is unknown: the exchange can only be aborted.
            direction.tear()
            raise

    async def aclose(self) -> None:
        """Leave the exchange; the other end sees a response that has not ended as cut."""
        self._scope = None
        self._exchange.downstream_left = True
        self._exchange.ring()


class MemoryUpstream(UpstreamStream):
    """The end that sends the request."""

    __slots__ = (
        "_downstream",
        "_exchange",
        "_sent",
        "body_bytes_received",
        "info",
        "read_timeout",
        "reused",
        "write_pending_time",
        "write_timeout",
    )

    def __init__(
        self, exchange: _Exchange, info: ConnectionInfo, downstream: MemoryDownstream
    ) -> None:
        self._exchange = exchange
        self._downstream = downstream
        self._sent = False
        self.info = info
        self.reused = False
        self.read_timeout = math.inf
        self.write_timeout = math.inf
        self.body_bytes_received = 0
        self.write_pending_time = 0.0

    @property
    def anything_sent(self) -> bool:
        """Whether any event of the request was sent."""
        return self._sent

    def fileno(self) -> int:
        """Return -1: there is no socket."""
        return -1

    def _departure(self) -> ProxyError | None:
        if self._exchange.downstream_left or self._exchange.response.torn:
            return _closed("the other end of the exchange was closed").into_up()
        return None

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return the events of the response that wait; see `MessageStream.receive_batch`."""
        direction = self._exchange.response
        while not direction.events:
            departure = self._departure()
            if departure is not None:
                raise departure
            await _timed(
                direction.filled, self.read_timeout, ErrorType.ReadTimedout, "more of the response"
            )
        return direction.take()

    async def send(self, *events: RequestEvent) -> None:
        """Send events of the request; see `MessageStream.send`."""
        direction = self._exchange.request
        departure = self._departure()
        if departure is not None or direction.torn:
            raise departure or _closed("an earlier send was cut").into_up()
        self._sent = True
        if isinstance(events[0], RequestHeader):
            self._exchange.head = events[0]
        direction.put(events)
        try:
            while direction.queued >= CAPACITY:
                started = trio.current_time()
                await _timed(
                    direction.room,
                    self.write_timeout,
                    ErrorType.WriteTimedout,
                    "sending the request",
                )
                self.write_pending_time += trio.current_time() - started
                departure = self._departure()
                if departure is not None and direction.queued >= CAPACITY:
                    raise departure
        except BaseException:
            # How much of it counts as sent is unknown: the exchange can only be aborted.
            direction.tear()
            self._downstream.party_left()
            raise

    def release(self) -> None:
        """Leave the exchange; unless both messages ended, the other end is told at once."""
        exchange = self._exchange
        if not exchange.upstream_left:
            exchange.upstream_left = True
            exchange.ring()
            self._downstream.party_left()


def memory_exchange(info: ConnectionInfo | None = None) -> tuple[MemoryUpstream, MemoryDownstream]:
    """Return the two ends of one exchange: the one that asks and the one that answers.

    Args:
      info: What the answering end is told of the connection.
    """
    exchange = _Exchange()
    info = ConnectionInfo(None, None, trio.current_time()) if info is None else info
    downstream = MemoryDownstream(exchange, info)
    return MemoryUpstream(exchange, info, downstream), downstream
