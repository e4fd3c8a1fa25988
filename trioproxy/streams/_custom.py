"""What both sides of a protocol of the user's share: what was decoded, and the one way out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from .._custom import Codec, CodecEvent, Message, ProtocolError
from .._errors import ErrorType, ProxyError
from .._messages import END, Data, ResponseHeader, Trailers
from .._util import Bell
from ..transport._byte_stream import ByteStream
from ._memory import Order

READ_SIZE = 65536
#: Decoded bytes that may wait, of content and messages together, before the reader stops reading.
READ_AHEAD = 32768
#: What a message counts for at least, so that empty ones cannot be without number.
MESSAGE_COST = 256
#: Pieces of content that wait are joined up to this size, so that small ones are not without number.
JOINED = 1024


def ends(event: object) -> bool:
    """Tell whether an event is the end of a request or a response."""
    return event is END or (isinstance(event, Data) and event.end)


@attrs.define(eq=False)
class Inbox:
    """What was decoded of one request or response and nobody has taken yet.

    Attributes:
      events: Its events.
      messages: The messages beside it.
      queued: What both count for.
      ended: Whether its end was decoded.
      bell: Rung for events, and when the connection's fate changes.
      message_bell: The same for messages.
      room: Rung when something was taken.
      active: When anything last moved, messages included; in Trio's time.
    """

    events: list[Any] = attrs.field(factory=list)
    messages: deque[bytes] = attrs.field(factory=deque)
    queued: int = 0
    ended: bool = False
    bell: Bell = attrs.field(factory=Bell)
    message_bell: Bell = attrs.field(factory=Bell)
    room: Bell = attrs.field(factory=Bell)
    active: float = attrs.field(factory=trio.current_time)
    _order: Order = attrs.field(factory=Order)
    _trailers: list[Trailers] = attrs.field(factory=list)

    @property
    def full(self) -> bool:
        """Whether no more is to be read for now."""
        return self.queued >= READ_AHEAD

    def put(self, event: CodecEvent) -> None:
        """Add what was decoded.

        Raises:
          ProtocolError: it is not what may come next.
        """
        self.active = trio.current_time()
        if isinstance(event, Message):
            self.messages.append(event.data)
            self.queued += max(len(event.data), MESSAGE_COST)
            self.message_bell.ring()
            return
        if type(event) is Data and not event.data:
            if not event.end:
                return
            event = END
        try:
            self._order.take(event)
        except ProxyError as exc:
            raise ProtocolError(exc.context or "out of order") from exc
        if type(event) is Trailers:  # told with the end alone, as nothing may come between
            self._trailers.append(event)
            return
        self.events += self._trailers
        self._trailers.clear()
        if type(event) is Data:
            self.queued += len(event.data)
            before = self.events[-1] if self.events else None
            if type(before) is Data and len(before.data) + len(event.data) <= JOINED:
                self.events[-1] = Data(before.data + event.data, event.end)
            else:
                self.events.append(event)
        else:
            self.events.append(event)
        self.bell.ring()
        if ends(event):
            self.ended = True
            self.message_bell.ring()  # perhaps no more will come

    def next_message(self) -> None:
        """Begin anew, with the next request."""
        self.ended = False
        self._order = Order()

    async def wait(self, seconds: float) -> bool:
        """Wait for the next event; False where nothing has moved for so many seconds."""
        started = trio.current_time()
        while True:
            with trio.move_on_at(max(started, self.active) + seconds) as scope:
                await self.bell.wait()
            if not scope.cancelled_caught:
                return True
            if trio.current_time() >= self.active + seconds:
                return False

    def ring(self) -> None:
        """Wake whoever waits for anything."""
        self.bell.ring()
        self.message_bell.ring()

    def take(self) -> list[Any]:
        """Hand the events over."""
        batch, self.events = self.events, []
        self._taken(sum(len(event.data) for event in batch if type(event) is Data))
        return batch

    def put_back(self, events: list[Any]) -> None:
        """Take events back that were handed over, for the next time."""
        self.events[:0] = events
        self.queued += sum(len(event.data) for event in events if type(event) is Data)

    def take_message(self) -> bytes:
        """Hand the next message over."""
        message = self.messages.popleft()
        self._taken(max(len(message), MESSAGE_COST))
        return message

    def drop_messages(self) -> None:
        """Forget the messages that nobody will take."""
        while self.messages:
            self.take_message()

    def _taken(self, size: int) -> None:
        if size:
            self.queued -= size
            self.room.ring()


@attrs.define(eq=False)
class Outlet:
    """The one way out of a connection, for whom several tasks send.

    Attributes:
      transport: The bytes.
      codec: Writes them.
      torn: Whether a write was cut, so that nothing can follow it.
    """

    transport: ByteStream
    codec: Codec
    torn: bool = False
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def send(self, events: Sequence[CodecEvent], timeout: float) -> None:
        """Send events in one write, behind what others send.

        Raises:
          ProxyError: of unset source.
        """
        async with self._lock:
            if self.torn:
                raise ProxyError.explain(ErrorType.ConnectionClosed, "an earlier write was cut")
            parts = [part for part in map(self.codec.encode, events) if part]
            if not parts:
                return
            self.torn = True  # until the write is whole
            try:
                await self.transport.send_parts(parts, timeout)
            except trio.ClosedResourceError as exc:
                raise ProxyError.because(ErrorType.ConnectionClosed, "closed", exc) from exc
            self.torn = False


def without_informational(events: Sequence[Any]) -> list[Any]:
    """Return the events without the heads that only HTTP has a meaning for."""
    return [event for event in events if not is_informational(event)]


def is_informational(event: object) -> bool:
    """Tell whether an event is a head of the 1xx kind."""
    return type(event) is ResponseHeader and event.status < 200
