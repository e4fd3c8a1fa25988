"""The one interface that every carrier of HTTP messages presents to the engine.

A `MessageStream` is one request/response exchange, whatever carries it. Bytes flow in a
`ByteStream`; messages flow in a `MessageStream`. A `DownstreamStream` receives a request and sends
its response; an `UpstreamStream` is the mirror. The contract, which
`trioproxy.testing.check_message_stream` asserts for every implementation:

1. **Order.** A message is its head, any number of `Data`, perhaps `Trailers`, and an end. The end
   is told exactly once: by `END`, or by the last `Data`, whose ``end`` is then True. `Trailers`
   are always followed by `END`. `Data` is never empty. Informational heads (1xx) may come before
   the final response head.
2. **After the end** `receive_batch` blocks until the other party leaves, and then raises. A party
   that leaves is noticed by the connection's reader task, which cancels the scope given to
   `DownstreamStream.watch`; no session needs a watcher of its own.
3. **Backpressure.** `send` returns when the transport (or the window) took the events. Several
   events in one call leave in one write. `receive_batch` gives all that is already decoded.
4. **Cancellation.** A cancelled `receive_batch` loses nothing. A cancelled `send` costs the
   exchange: the connection is never reused after it, for how much was sent is unknown.
5. **Leaving** ``async with stream`` after both ends releases the connection; leaving earlier aborts
   the exchange: the other party sees that the message was cut.

An `UpstreamConnection` is what carries the exchanges with an origin, one after another or many at
once; the pool holds them without knowing which protocol they speak.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

import trio

from .._custom import MessageChannel
from .._errors import ErrorSource, ProxyError
from .._info import ConnectionInfo
from .._messages import RequestEvent, ResponseEvent

SendT = TypeVar("SendT", contravariant=True)
ReceiveT = TypeVar("ReceiveT", covariant=True)


class MessageStream(ABC, Generic[SendT, ReceiveT]):
    """One exchange of a request and its response; see the module's contract."""

    #: Addresses and times of the connection that carries the exchange.
    info: ConnectionInfo
    #: Seconds without progress before a parked `send` gives up; `math.inf` for never.
    write_timeout: float
    #: Seconds before a parked `receive_batch` gives up; `math.inf` for never.
    read_timeout: float
    #: The messages that run beside the content; None where the protocol has none.
    messages: MessageChannel | None = None

    @abstractmethod
    async def receive_batch(self) -> list[ReceiveT]:
        """Return all events that are already decoded, at least one; park where there is none.

        Raises:
          ProxyError: the other party left, broke the protocol, or `read_timeout` passed.
          trio.Cancelled: nothing is lost.
        """

    @abstractmethod
    async def send(self, *events: SendT) -> None:
        """Send events, in one write where that is possible.

        Raises:
          ProxyError: the other party left, the events do not form a message, or `write_timeout`
            passed without progress.
          trio.Cancelled: the exchange can only be aborted.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End the exchange: release its connection where both messages ended, else abort it."""

    async def __aenter__(self) -> MessageStream[SendT, ReceiveT]:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class DownstreamStream(MessageStream[ResponseEvent, RequestEvent]):
    """The client's side of an exchange: a request is received, its response is sent."""

    #: Keep-alive of the connection behind this exchange: None closes it, else the seconds it may
    #: be idle (`math.inf` for no limit). Means nothing where streams share a connection.
    keepalive: float | None
    #: Whether the client's half-close after its request counts as leaving.
    abort_on_close: bool
    #: Whether a response that starts before the request's end closes the connection.
    close_on_early_response: bool
    #: Seconds within which an unread rest of the request is dropped.
    drain_timeout: float
    #: Requests that the connection may carry after this one; None for no limit.
    reuses_remaining: int | None
    #: Bytes a second that the client must take at least; 0 for no such rule. It takes the place of
    #: `write_timeout`: a write then has one second, or as long as its bytes take at this rate.
    min_send_rate: float
    #: On whose side an exchange that is left before its end has failed, where its carrier can tell
    #: the client; None for the client's own departure and the like.
    blame: ErrorSource | None
    #: What the exchange before this one on the same connection has left, and, once it is set, what
    #: this one leaves: whose it is, and the value; None for nothing.
    kept: tuple[object, object] | None = None
    #: Whether exchanges follow one another on the connection, so that one may leave something.
    sequential: bool = False

    @property
    @abstractmethod
    def request_complete(self) -> bool:
        """Whether the request's end has been decoded, even if it was not taken yet."""

    @property
    @abstractmethod
    def departure(self) -> ProxyError | None:
        """Why the client counts as gone (source downstream), or None while it is there."""

    @abstractmethod
    def watch(self, scope: trio.CancelScope, *, half_close: bool = True) -> None:
        """Have the scope cancelled as soon as the client is gone (at once if it already is).

        Args:
          scope: What to cancel; it takes the place of an earlier one.
          half_close: Whether a half-close that was seen before counts already. A filter that may
            still clear `abort_on_close` is to run first, and this to be called again behind it.
        """

    @abstractmethod
    def unwatch(self) -> None:
        """Forget the scope given to `watch`."""


class UpstreamStream(MessageStream[RequestEvent, ResponseEvent]):
    """The origin's side of an exchange: a request is sent, its response is received."""

    #: Whether the connection had carried an exchange before this one.
    reused: bool
    #: Payload bytes of the response received so far.
    body_bytes_received: int
    #: Seconds that `send` was parked, waiting for the origin to read.
    write_pending_time: float

    @property
    @abstractmethod
    def anything_sent(self) -> bool:
        """Whether a byte of this exchange's request may have reached the wire."""

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor of the connection's socket, or -1 where there is none."""

    @abstractmethod
    def release(self) -> None:
        """End the exchange as `aclose` does, without a checkpoint; nothing the second time."""

    async def aclose(self) -> None:
        """End the exchange: release its connection where both messages ended, else abort it."""
        self.release()


class UpstreamConnection(ABC):
    """A connection to an origin, as the pool holds it; what it speaks is its own matter.

    Whoever owns it runs `run` as a task, sets `idle_timeout`, `on_idle_end` and `on_room`, and
    asks `room` before each `start`. An exchange ends by `UpstreamStream.release`; what `room` and
    `busy` tell behind that call holds for the next decision of the pool.
    """

    #: Addresses and times.
    info: ConnectionInfo
    #: Whether it has ended, for whatever reason; it never comes back.
    dead: bool
    #: Exchanges that were started so far.
    served: int
    #: Seconds that the connection may be idle; its owner sets and keeps it.
    idle_timeout: float
    #: Whether the origin sent something although nothing was asked (row U1-01).
    spoke_out_of_turn: bool
    #: Called when the connection ended while it carried no exchange.
    on_idle_end: Callable[[UpstreamConnection], None]
    #: Called when `room` changed other than by a start or a release: the origin allows more or less,
    #: or said goodbye. It may also be called during a release, and when nothing changed.
    on_room: Callable[[UpstreamConnection], None]

    @property
    @abstractmethod
    def shared(self) -> bool:
        """Whether it carries many exchanges at once; the same for the life of the connection."""

    @property
    @abstractmethod
    def room(self) -> int:
        """Exchanges that may start now; 0 when it is dead or was told to go away.

        Where this is 0 while nothing is carried, the connection is of no more use: the pool closes
        it.
        """

    @property
    def settled(self) -> bool:
        """Whether the origin has said how many exchanges it allows; `on_room` tells when it does.

        Until then `room` is to be that of a single exchange: an origin that gets more than it
        allows may well end the connection. Those who wait for room do so until then.
        """
        return True

    @property
    @abstractmethod
    def busy(self) -> int:
        """Exchanges that it carries now."""

    @abstractmethod
    async def run(self) -> None:
        """Serve the connection until it ends: its reader, its writer."""

    @abstractmethod
    def start(self) -> UpstreamStream:
        """Start the next exchange; an idle time that runs ends with that.

        Raises:
          ProxyError: it cannot carry one any more.
        """

    @abstractmethod
    def arm_idle(self, seconds: float) -> None:
        """Let the connection end in so many seconds unless an exchange starts before."""

    @abstractmethod
    def usable(self) -> bool:
        """Tell, at checkout, whether an exchange may start: the last look at an idle connection."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection at once, whatever it carries; its task ends by itself."""
