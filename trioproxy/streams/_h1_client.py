"""HTTP/1.1 towards the origin: a connection with its standing reader, and its exchanges.

**Theory of operation.** The connection's reader task lives as long as the connection, in the
nursery of whoever owns the connection (the pool). Between exchanges it is what watches the idle
connection: any byte, EOF or error there ends it (rows U1-01, U1-02). During an exchange it feeds
the codec and rings the consumer. While a body is under way it *steps aside*: the consumer then
reads the transport itself, without a task switch per read, and lets the reader resume at the
message's end. The reader's waits are limited by one deadline that the consumer moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from .._errors import ErrorSource, ErrorType, ProxyError, RetryType
from .._info import ConnectionInfo
from .._messages import END, RequestEvent, RequestHeader, ResponseEvent, ResponseHeader
from .._util import Bell
from ..codec._h1 import IncompleteMessage, ResponseReader
from ..semantics._framing import MessageRefused, usable_offers
from ..transport._byte_stream import ByteStream
from ._abc import UpstreamConnection, UpstreamStream
from ._h1_write import MessageWriter
from ._mailbox import ReadTimer

READ_SIZE = 65536


class H1ClientConnection(UpstreamConnection):
    """One HTTP/1.1 connection to an origin, good for one exchange after another."""

    __slots__ = (
        "_exchange",
        "_half_closed",
        "_resume",
        "_stepped_aside",
        "bell",
        "dead",
        "events",
        "failure",
        "idle_timeout",
        "info",
        "on_idle_end",
        "on_room",
        "reader",
        "served",
        "spoke_out_of_turn",
        "timer",
        "transport",
    )

    def __init__(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        reader: ResponseReader,
    ) -> None:
        """Take over a connected transport.

        Args:
          transport: The bytes.
          info: Where they go.
          reader: The response side of a codec.
        """
        self.transport = transport
        self.info = info
        self.reader = reader
        self.events: list[ResponseEvent] = []
        self.bell = Bell()
        self.timer = ReadTimer()
        self.failure: ProxyError | None = None
        self.dead = False
        #: Whether the origin sent something although nothing was asked (row U1-01).
        self.spoke_out_of_turn = False
        self.served = 0
        #: Seconds that the connection may be idle; its owner sets and keeps it.
        self.idle_timeout = math.inf
        #: Called when the connection ends while no exchange holds it.
        self.on_idle_end: Callable[[UpstreamConnection], None] = _nobody
        #: Never called: its room grows by releases alone.
        self.on_room: Callable[[UpstreamConnection], None] = _nobody
        self._exchange: H1UpstreamStream | None = None
        self._resume = Bell()
        self._half_closed = False
        self._stepped_aside = False

    def __repr__(self) -> str:
        state = "dead" if self.dead else "busy" if self._exchange is not None else "idle"
        return f"<H1ClientConnection to {self.info.peer} {state}, {self.served} exchanges>"

    async def run(self) -> None:
        """Read until the connection ends; whoever owns the connection runs this as a task."""
        try:
            while not self.dead:
                with self.timer.scope() as scope:
                    await self._read()
                if not scope.cancelled_caught or self.dead:
                    break
                if self.timer.expired():
                    error = ProxyError.explain(ErrorType.ReadTimedout, self.timer.what)
                    self._fail(error.into_up())
                    break
        finally:
            self._end()

    async def _read(self) -> None:
        while not self.dead:
            if self._stepped_aside or self._half_closed or self.reader.leftover:
                # The consumer reads, or nobody does: bytes behind a response are never taken in
                # without bound, they only cost the connection (row U1-03).
                await self._resume.wait()
                continue
            try:
                data = await self.transport.receive_some(READ_SIZE)
            except trio.ClosedResourceError:
                return
            except ProxyError as exc:
                self._lost(exc)
                return
            exchange = self._exchange
            if exchange is None or not data or not exchange.anything_sent:
                self._at_end(data)
                return
            self.feed(data)
            self.bell.ring()
            if self.failure is not None:
                return

    def feed(self, data: bytes) -> None:
        """Give bytes to the codec; its verdict is left in `events` and `failure`."""
        reader = self.reader
        reader.feed(data)
        try:
            self.events += reader.events()
            self._stepped_aside = reader.in_body and not reader.done
            if reader.refused is not None:
                raise reader.refused
        except MessageRefused as exc:
            self._fail(ProxyError.because(ErrorType.InvalidHTTPHeader, str(exc), exc).into_up())

    def _at_end(self, data: bytes) -> None:
        """Take the end of input; bytes between exchanges end the connection just as well."""
        if self._exchange is None or data:
            self.spoke_out_of_turn = bool(data)
            self.dead = True
            return
        self._stepped_aside = False
        if self.reader.in_tunnel:  # its other direction goes on
            self.events += self.reader.eof()
            self._half_closed = True
            self.bell.ring()
            return
        try:
            self.events += self.reader.eof()
        except IncompleteMessage as exc:
            error = ProxyError.because(
                ErrorType.ConnectionClosed, f"the origin closed the connection: {exc}", exc
            ).into_up()
            if self.silent:
                error.retry = RetryType.ReusedOnly
            self._fail(error)
        self.dead = True
        self.bell.ring()

    @property
    def silent(self) -> bool:
        """Whether no byte of a response has come: what fails now may just have been stale (F-04)."""
        return not self.reader.in_body and not self.reader.waiting_head_started

    def _lost(self, error: ProxyError) -> None:
        if self.silent:
            error.retry = RetryType.ReusedOnly
        self._fail(error.into_up())

    def _fail(self, error: ProxyError) -> None:
        if self.failure is None:
            self.failure = error
        self.dead = True
        self._stepped_aside = False
        self.bell.ring()

    def _end(self) -> None:
        self.dead = True
        self.transport.close_now()
        if self._exchange is None:
            self.on_idle_end(self)
        else:
            self.bell.ring()

    async def pull(self, timeout: float) -> None:
        """Read once in the consumer's task, while the reader has stepped aside."""
        transport = self.transport
        try:
            # A checkpoint before the read, never behind it: what was read is never lost.
            await trio.lowlevel.checkpoint()
            data = transport.receive_ready(READ_SIZE)
            if data is None:
                with trio.move_on_after(timeout) as scope:
                    data = await transport.receive_some(READ_SIZE)
                if scope.cancelled_caught or data is None:
                    error = ProxyError.explain(
                        ErrorType.ReadTimedout, "waiting for more of the response's content"
                    )
                    self._fail(error.into_up())
                    return
        except trio.ClosedResourceError as exc:
            self._fail(ProxyError.because(ErrorType.ConnectionClosed, "closed", exc).into_up())
            return
        except ProxyError as exc:
            self._lost(exc)
            return
        if data:
            self.feed(data)
        else:
            self._at_end(data)
        if not self._stepped_aside:
            self._resume.ring()

    @property
    def stepped_aside(self) -> bool:
        """Whether the consumer is the one that reads now."""
        return self._stepped_aside

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

    def start(self) -> H1UpstreamStream:
        """Start the next exchange."""
        self.timer.disarm()
        exchange = self._exchange = H1UpstreamStream(self)
        self.served += 1
        return exchange

    def release(self) -> None:
        """End the exchange: back to idle where both messages are whole, else closed."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        self.timer.disarm()
        reader = self.reader
        if (
            self.dead
            or not exchange.writer.finished
            or not reader.done
            or not reader.keep_alive
            or reader.leftover
            or self.events  # decoded, never taken: the next exchange must not find them
            or exchange.aborted
        ):
            self.close()

    def arm_idle(self, seconds: float) -> None:
        """Let the connection end in so many seconds unless an exchange starts before."""
        self.timer.arm(seconds, "idle")

    def usable(self) -> bool:
        """Tell, at checkout, whether an idle connection is still silent and open (U1-01)."""
        if self.dead:
            return False
        try:
            data = self.transport.receive_ready(1)
            self.spoke_out_of_turn = bool(data)
            return data is None
        except (ProxyError, trio.ClosedResourceError):
            return False

    def close(self) -> None:
        """Close the connection at once; its reader ends by itself."""
        self.dead = True
        self._stepped_aside = False
        self.transport.close_now()
        self._resume.ring()


class H1UpstreamStream(UpstreamStream):
    """One exchange on an `H1ClientConnection`."""

    __slots__ = (
        "_connection",
        "_head_left",
        "_inviting",
        "_over",
        "_sent",
        "_waiting_since",
        "aborted",
        "body_bytes_received",
        "info",
        "read_timeout",
        "reused",
        "write_pending_time",
        "write_timeout",
        "writer",
    )

    def __init__(self, connection: H1ClientConnection) -> None:
        self._connection = connection
        self.info = connection.info
        self.reused = connection.served > 0
        self.read_timeout = math.inf
        self.write_timeout = math.inf
        self.body_bytes_received = 0
        self.write_pending_time = 0.0
        self.writer = MessageWriter()
        self.aborted = False
        self._sent = False
        self._over = False
        # Seconds left of the wait for the response's head, None while it does not run: before the
        # request is written, the origin owes nothing.
        self._head_left: float | None = None
        # Whether it is for the origin to say 100 Continue: then it owes that.
        self._inviting = False
        self._waiting_since: float | None = None

    @property
    def anything_sent(self) -> bool:
        """Whether a byte of the request may have reached the wire."""
        return self._sent

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1."""
        return self._connection.transport.fileno()

    async def send(self, *events: RequestEvent) -> None:
        """Send events of the request; see `MessageStream.send`."""
        connection = self._connection
        if connection.dead and not self._sent:
            raise connection.failure or _gone()
        first = events[0]
        if type(first) is RequestHeader:
            offers = first.offers
            connection.reader.expect(first.method, usable_offers(offers) if offers else ())
        parts = self.writer.request(events)
        if not parts and not self.writer.half_closed:
            if self.writer.finished:
                self._start_head_time(self.read_timeout)
            return
        self._sent = True
        # True until the write is known to be whole: a cancelled write is never trusted (S-04).
        self.aborted = True
        started = trio.current_time()
        try:
            await connection.transport.send_parts(parts, self.write_timeout)
            if self.writer.half_closed:
                await connection.transport.send_eof()
        except trio.ClosedResourceError as exc:
            self._start_head_time(self.read_timeout)
            raise connection.failure or _gone() from exc
        except ProxyError as exc:
            exc.as_up()
            # An origin that neither reads nor answers in time: only what is here by now counts (F-12).
            stalled = exc.etype == ErrorType.WriteTimedout
            self._start_head_time(0.0 if stalled else self.read_timeout)
            raise
        finally:
            self.write_pending_time += trio.current_time() - started
        self.aborted = False
        if self.writer.finished:
            self._start_head_time(self.read_timeout)
        elif type(first) is RequestHeader:
            if len(events) == 1 and b"expect" in first.headers:
                self._start_head_time(self.read_timeout)
                self._inviting = True
        elif self._inviting:
            self._invited()

    def _invited(self) -> None:
        """Stop the time for the head again: the rest of the request is what is waited for now."""
        self._inviting = False
        self._head_left = None
        if self._waiting_since is not None:
            self._arm()

    def _start_head_time(self, seconds: float) -> None:
        """Let the time for the response's head run: the request is written, or given up."""
        if self._over or (self._head_left is not None and not self._inviting):
            return
        self._inviting = False
        self._head_left = seconds
        if self._waiting_since is not None:
            self._arm()

    def _arm(self) -> None:
        """Limit the wait that begins, or goes on, by what is left of the head's time.

        It is used up by waiting alone: neither a 1xx in between nor a filter of ours that takes its
        time starts it anew or lets it run (rows U1-06, T-03).
        """
        now = self._waiting_since = trio.current_time()
        if self._over or self._head_left is None:
            self._connection.timer.disarm()
        else:
            self._connection.timer.at(now + self._head_left, "waiting for the response's head")

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what is decoded of the response; see `MessageStream.receive_batch`."""
        connection = self._connection
        while not connection.events:
            if connection.failure is not None:
                raise connection.failure
            if connection.dead:
                raise _gone()
            if connection.stepped_aside:
                await connection.pull(self.read_timeout)
                continue
            self._arm()
            try:
                await connection.bell.wait()
            finally:
                connection.timer.disarm()
                self._waited()
        batch, connection.events = connection.events, []
        last = batch[-1]
        if last is END or getattr(last, "end", False):
            self._over = True
        for event in batch:
            if type(event) is not ResponseHeader:
                break
            if event.status == 101:
                self.writer.start_tunnel()
            elif event.status == 100 and self._inviting and not self.writer.finished:
                self._invited()
        return batch

    def _waited(self) -> None:
        """Take the wait that ends off the time for the response's head."""
        if self._head_left is not None and self._waiting_since is not None:
            waited = trio.current_time() - self._waiting_since
            self._head_left = max(0.0, self._head_left - waited)
        self._waiting_since = None

    def release(self) -> None:
        """End the exchange: back to idle where both messages are whole, else closed."""
        connection = self._connection
        if connection._exchange is self:  # noqa: SLF001  # its own connection
            connection.release()


def _nobody(_: UpstreamConnection) -> None:
    """Stand in for an owner that does not care."""


def _gone() -> ProxyError:
    error = ProxyError.explain(ErrorType.ConnectionClosed, "the connection to the origin is closed")
    error.esource = ErrorSource.UPSTREAM
    error.retry = RetryType.ReusedOnly
    return error
