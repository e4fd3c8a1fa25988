"""HTTP/2 towards the origin: a connection that carries many exchanges at once.

Its reader and writer live in the nursery of whoever owns the connection (the pool), for it outlasts
the sessions that use it. An exchange that is given up resets its stream and costs the others
nothing. What the origin disowned (REFUSED_STREAM, or a GOAWAY below the stream) was never looked
at, so that any request may be repeated, a POST too (RFC 9113 section 8.7).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import attrs
import trio

from .._errors import ErrorType, ProxyError, RetryType
from .._info import ConnectionInfo
from .._messages import END, RequestEvent, RequestHeader, ResponseEvent, ResponseHeader, Trailers
from ..codec._h1 import MAX_INFORMATIONAL
from ..codec._h2 import H2Codec
from ..codec._h2_events import (
    CANCEL,
    HTTP_1_1_REQUIRED,
    NO_ERROR,
    REFUSED_STREAM,
    DataReceived,
    GoAwayReceived,
    HeadReceived,
    HeadRefused,
    TrailersReceived,
    error_name,
)
from ..codec._h2_library import LARGEST_ID
from ..transport._byte_stream import ByteStream
from ._abc import UpstreamConnection, UpstreamStream
from ._h2 import H2Base, H2Stream
from ._h2_write import H2Writer

_log = logging.getLogger("trioproxy")

#: Seconds for the answer to a PING (row H2-30).
PING_TIME = 5.0
#: Streams that may be opened before the origin has said how many it allows: one that allows fewer
#: may end the connection, and with it all that were sent.
FIRST_STREAMS = 1

_PING = b"are u ok"


@attrs.frozen(kw_only=True)
class H2ClientOptions:
    """Times (seconds, `math.inf` for none) and bounds of an upstream HTTP/2 connection.

    Attributes:
      max_streams: Exchanges at once, whatever more the origin allows.
      write_timeout: For the socket without progress.
      ping_interval: Between two PINGs.
    """

    max_streams: int = 1
    write_timeout: float = 60.0
    ping_interval: float = math.inf


class H2ClientConnection(H2Base, UpstreamConnection):
    """One HTTP/2 connection to an origin."""

    def __init__(
        self, transport: ByteStream, info: ConnectionInfo, codec: H2Codec, options: H2ClientOptions
    ) -> None:
        """Take over a connected transport.

        Args:
          transport: The bytes.
          info: Where they go.
          codec: The client's end of a connection.
          options: Times and bounds.
        """
        super().__init__(transport, info, codec, options.write_timeout)
        self.options = options
        self.dead = False
        self.served = 0
        self.idle_timeout = math.inf
        self.spoke_out_of_turn = False
        self.on_idle_end: Callable[[UpstreamConnection], None] = lambda _: None
        self.on_room: Callable[[UpstreamConnection], None] = lambda _: None
        #: Whether no more exchanges start, although those under way go on.
        self.retired = False
        self._busy = 0
        self._last_taken = LARGEST_ID
        self._ping_scope = trio.CancelScope()
        self._settings = trio.Event()
        self._opened = False

    def __repr__(self) -> str:
        state = "dead" if self.dead else f"{self._busy} exchanges"
        return f"<H2ClientConnection to {self.info.peer} {state}, {self.served} carried>"

    # -- what the pool asks ----------------------------------------------------------------------

    @property
    def shared(self) -> bool:
        """True: it carries many exchanges at once."""
        return True

    @property
    def room(self) -> int:
        """Exchanges that may start now."""
        if self.lost is not None or self.retired:
            return 0
        codec = self.codec
        allowed = codec.peer_max_streams if codec.settings_received else FIRST_STREAMS
        return max(0, min(self.options.max_streams, allowed) - self._busy)

    @property
    def settled(self) -> bool:
        """Whether the origin's SETTINGS have come."""
        return self.codec.settings_received

    @property
    def full(self) -> bool:
        """Whether the origin allows no stream more: it may have changed its mind since a lease."""
        codec = self.codec
        return codec.settings_received and len(self.streams) >= codec.peer_max_streams

    @property
    def busy(self) -> int:
        """Exchanges that it carries now."""
        return self._busy

    def start(self) -> H2UpstreamStream:
        """Start the next exchange."""
        self.clear_deadline("idle")
        stream = H2UpstreamStream(self)
        self._busy += 1
        self.served += 1
        return stream

    def arm_idle(self, seconds: float) -> None:
        """Let the connection end in so many seconds unless an exchange starts before."""
        self.set_deadline("idle", seconds)

    def usable(self) -> bool:
        """Tell, at checkout, whether an exchange may start."""
        return self.room > 0

    def close(self) -> None:
        """Close the connection, with a GOAWAY as far as it gets out at once."""
        if self.lost is None:
            self.codec.goaway(NO_ERROR, 0)
            self.lose(ErrorType.ConnectionClosed, "the connection is closed")
            if not self._opened:  # `run` will not come
                self.transport.close_now()

    def retire(self) -> None:
        """Take no more exchanges; those under way go on."""
        self.retired = True
        self.on_room(self)

    # -- running ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read and write until the connection ends."""
        self._opened = True
        try:
            async with trio.open_nursery() as nursery:
                if self.lost is None:
                    self.open()
                    nursery.start_soon(self.write_loop)
                    if self.options.ping_interval != math.inf:
                        nursery.start_soon(self._ping_loop)
                    await self.read_loop()
                    self._ping_scope.cancel()
        finally:
            self.lose(ErrorType.ConnectionClosed, "the connection is closed")
            self.transport.close_now()
            if not self._busy:
                self.on_idle_end(self)

    async def _ping_loop(self) -> None:
        with self._ping_scope:
            while True:
                await trio.sleep(self.options.ping_interval)
                self.codec.ping(_PING)
                self.ring_writer()
                if "ping" not in self._deadlines:
                    self.set_deadline("ping", PING_TIME)

    def on_ping(self, data: bytes) -> None:
        """Take the answer to a PING."""
        self.clear_deadline("ping")

    def on_deadline(self, name: str) -> None:
        """Act on a deadline that has passed."""
        if name == "idle":
            if not self._busy:
                self.codec.goaway(NO_ERROR, 0)
                self.lose(ErrorType.ConnectionClosed, "the connection was idle")
        elif name == "ping":
            self.codec.goaway(NO_ERROR, 0)
            self.lose(ErrorType.PingTimedout, f"a PING was not answered in {PING_TIME:g} s")
        else:
            super().on_deadline(name)

    def on_settings(self) -> None:
        """See what the origin allows."""
        self._settings.set()
        self.on_room(self)

    async def settings_received(self) -> None:
        """Wait for the origin's first SETTINGS, or the connection's end."""
        await self._settings.wait()

    def lose(self, etype: ErrorType, text: str, cause: BaseException | None = None) -> None:
        """Take note that the connection is over."""
        self.dead = True
        super().lose(etype, text, cause)
        self._settings.set()
        self._ping_scope.cancel()

    def on_failure(self, text: str) -> None:
        """Tell of an origin that broke the protocol."""
        _log.info("%s broke HTTP/2: %s", self.info.peer, text)

    def on_goaway(self, event: GoAwayReceived) -> None:
        """Take no new exchanges; those that the origin disowns end now (row H2-22)."""
        self._last_taken = min(self._last_taken, event.last_stream_id)
        self.retired = True
        if event.code:
            _log.info("%s says goodbye: %s", self.info.peer, error_name(event.code))
        for stream in list(self.streams.values()):
            if stream.stream_id > self._last_taken:
                assert isinstance(stream, H2UpstreamStream)
                stream.stop_sending()
                if event.code == HTTP_1_1_REQUIRED:
                    stream.downgraded()
                else:
                    why = f"its GOAWAY ({error_name(event.code)}) came before the request"
                    stream.disowned(why)
        self.on_room(self)

    # -- streams ---------------------------------------------------------------------------------

    def open_stream(self, stream: H2UpstreamStream, head: RequestHeader, extended: bool) -> None:
        """Give a stream its number."""
        codec = self.codec
        method = "CONNECT" if extended else head.method
        stream.stream_id = codec.open_stream(method, head if extended else None)
        self.streams[stream.stream_id] = stream
        if stream.stream_id >= LARGEST_ID - 2:
            self.retired = True

    def ended(self, stream: H2UpstreamStream) -> None:
        """Take note that an exchange is over."""
        self.streams.pop(stream.stream_id, None)
        self._busy -= 1

    def on_head(self, event: HeadReceived) -> None:
        """Take a response's head."""
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        assert isinstance(stream, H2UpstreamStream)
        head = event.head
        assert isinstance(head, ResponseHeader)
        if head.status == 101 or head.status >= 200:
            stream.responded = True
        else:
            stream.informational += 1
            if stream.informational > MAX_INFORMATIONAL:  # row U1-06
                stream.stop_sending()
                stream.fail(ErrorType.InvalidHTTPHeader, "too many informational responses")
                self.codec.reset(event.stream_id, CANCEL)
                self.ring_writer()
                return
        stream.events.append(head)
        if event.end:
            stream.complete = True
            stream.events.append(END)
        stream.bell.ring()

    def on_data(self, stream: H2Stream, event: DataReceived) -> None:
        """Take content of a response."""
        assert isinstance(stream, H2UpstreamStream)
        if event.end:
            stream.complete = True
        stream.deliver_data(event)
        if event.end and not event.data:
            stream.deliver(END)

    def on_trailers(self, stream: H2Stream, event: TrailersReceived) -> None:
        """Take a response's trailers and its end."""
        assert isinstance(stream, H2UpstreamStream)
        stream.complete = True
        stream.events.append(Trailers(event.headers))
        stream.deliver(END)

    def on_head_refused(self, event: HeadRefused) -> None:
        """Take a response that is larger than allowed."""
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            assert isinstance(stream, H2UpstreamStream)
            stream.stop_sending()
            stream.fail(ErrorType.InvalidHTTPHeader, str(event.refusal))
        self.codec.reset(event.stream_id, CANCEL)


class H2UpstreamStream(H2Stream, UpstreamStream):
    """One exchange on an `H2ClientConnection`."""

    connection: H2ClientConnection

    def __init__(self, connection: H2ClientConnection) -> None:
        super().__init__(connection, 0)
        self.info = connection.info
        self.reused = connection.served > 0
        self.read_timeout = math.inf
        self.write_timeout = math.inf
        self.body_bytes_received = 0
        self.write_pending_time = 0.0
        self.writer = H2Writer()
        #: 1xx heads that came before it.
        self.informational = 0
        #: Whether the response's final head has come, and its end.
        self.responded = False
        self.complete = False
        self._failure: ProxyError | None = None
        self._stopped: str | None = None
        self._released = False
        self._over = False
        self._tunnel = False
        # Seconds left of the wait for the response's head, None while it does not run.
        self._head_left: float | None = None
        self._inviting = False
        self._waiting: trio.CancelScope | None = None

    @property
    def anything_sent(self) -> bool:
        """Whether a byte of the request may have reached the wire."""
        return self.stream_id != 0

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1."""
        return self.connection.transport.fileno()

    # -- told by the connection ------------------------------------------------------------------

    def fail(self, etype: ErrorType, text: str, retry: RetryType | None = None) -> None:
        """End the exchange with an error of the origin's side."""
        if self._failure is None:
            error = ProxyError.explain(etype, text).into_up()
            if retry is not None:
                error.retry = retry
            self._failure = error
        self.bell.ring()

    def disowned(self, why: str) -> None:
        """End the exchange: the origin says that it never looked at the request."""
        if not self.complete:
            text = f"the origin did not take the request: {why}"
            retry = RetryType.Decided(True) if not self.responded else None
            self.fail(ErrorType.H2Error, text, retry)

    def downgraded(self) -> None:
        """End the exchange: the origin wants it over HTTP/1.1 (row H2-25)."""
        if not self.complete:
            retry = RetryType.Decided(True) if not self.responded else None
            self.fail(ErrorType.H2Downgrade, "the origin requires HTTP/1.1", retry)

    def on_reset(self, code: int) -> None:
        """See the origin reset the stream."""
        if self.complete:  # it wants no more of the request; its response stands (row H2-21)
            self._stopped = "the origin has answered and takes no more of the request"
        elif code == REFUSED_STREAM:
            self.disowned("it refused the stream")
        elif code == HTTP_1_1_REQUIRED:
            self.downgraded()
        else:
            self.fail(ErrorType.H2Error, f"the origin reset the stream ({error_name(code)})")

    def on_fault(self, text: str) -> None:
        """See the response turn out malformed."""
        if self.complete:
            self._stopped = text
        else:
            self.fail(ErrorType.InvalidH2, f"the response is malformed: {text}")

    def on_lost(self) -> None:
        """See the connection end."""
        if self.complete:
            self._stopped = "the connection to the origin is closed"
        elif self._failure is None:
            error = self.connection.lost_error().into_up()
            if not self.responded:
                error.retry = RetryType.ReusedOnly
            self._failure = error
        self.bell.ring()

    # -- sending ---------------------------------------------------------------------------------

    def check_sending(self) -> None:
        """Raise where nothing more can be sent."""
        if self._failure is not None:
            raise self._failure
        if self._stopped is not None:
            raise ProxyError.explain(ErrorType.WriteError, self._stopped).into_up()

    async def send(self, *events: RequestEvent) -> None:
        """Send events of the request; see `MessageStream.send`."""
        connection = self.connection
        if self._released:
            raise ProxyError.explain(ErrorType.ConnectionClosed, "the exchange is over").into_up()
        first = events[0]
        if not self.anything_sent:
            self._check_start()
            if _offers_websocket(first):
                await self._ask_for_connect()
        self.check_sending()
        if self.writer.tunnel and type(first) is not RequestHeader:
            items = self.writer.in_tunnel(events)
        else:
            scheme = b"https" if self.info.secure else b"http"
            extended = _offers_websocket(first)
            items = self.writer.request(events, scheme=scheme, extended=extended)
        if not items:
            if self.writer.finished or self.writer.tunnel:
                self._start_head_time(self.read_timeout)
            return
        if not self.anything_sent:
            assert type(first) is RequestHeader
            connection.open_stream(self, first, self.writer.tunnel)
            fields, data, end = items.pop(0)
            assert fields is not None
            assert not data
            connection.codec.send_head(self.stream_id, fields, end)
        started = trio.current_time()
        try:
            await self.push(items, self.write_timeout)
        except ProxyError as exc:
            exc.as_up()
            # An origin that neither reads nor answers in time: only what is here counts (F-12).
            stalled = exc.etype == ErrorType.WriteTimedout
            self._start_head_time(0.0 if stalled else self.read_timeout)
            raise
        finally:
            self.write_pending_time += trio.current_time() - started
        if self.writer.finished or (self.writer.tunnel and not self._tunnel):
            self._start_head_time(self.read_timeout)
        elif type(first) is RequestHeader:
            if len(events) == 1 and b"expect" in first.headers:
                self._start_head_time(self.read_timeout)
                self._inviting = True
        elif self._inviting:
            self._inviting = False
            self._head_left = None
            if self._waiting is not None:
                self._waiting.deadline = math.inf

    def _check_start(self) -> None:
        """Raise where the connection has ended, was told to, or is full, before anything was sent."""
        connection = self.connection
        if connection.lost is None and not connection.retired and not connection.full:
            return
        self.fail(
            ErrorType.ConnectionClosed,
            "the connection to the origin takes no more requests",
            RetryType.Decided(True),
        )
        assert self._failure is not None
        raise self._failure

    async def _ask_for_connect(self) -> None:
        """Find out whether the origin takes an extended CONNECT (RFC 8441 section 3).

        Raises:
          ProxyError: it does not.
        """
        connection = self.connection
        with trio.move_on_after(self.read_timeout):
            await connection.settings_received()
        self._check_start()  # once more, for that took a while
        if not connection.codec.peer_takes_connect:
            self.fail(
                ErrorType.H2Error,
                "the origin speaks HTTP/2 alone and offers no switch of protocols there",
            )

    # -- receiving -------------------------------------------------------------------------------

    def _start_head_time(self, seconds: float) -> None:
        """Let the time for the response's head run: the request is written, or given up."""
        if self.responded or self._over or (self._head_left is not None and not self._inviting):
            return
        self._inviting = False
        self._head_left = seconds
        if self._waiting is not None:
            self._waiting.deadline = trio.current_time() + seconds

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what has come of the response; see `MessageStream.receive_batch`."""
        while not self.events:
            if self._failure is not None:
                raise self._failure
            if self.connection.lost is not None:
                raise self.connection.lost_error().into_up()
            await self._wait_for_more()
        batch: list[ResponseEvent] = self.take()
        last = batch[-1]
        if last is END or getattr(last, "end", False):
            self._over = True
        for event in batch:
            if type(event) is not ResponseHeader:
                break
            if event.status == 101:
                self._tunnel = True
            elif event.status == 100 and self._inviting and not self.writer.finished:
                self._inviting = False
                self._head_left = None
        return batch

    async def _wait_for_more(self) -> None:
        """Wait for the mailbox's bell, within the time for the head or for more content."""
        if self._over:
            limit = math.inf
        elif self.responded:
            limit = self.read_timeout
        else:
            limit = math.inf if self._head_left is None else self._head_left
        started = trio.current_time()
        with trio.CancelScope(deadline=started + limit) as scope:
            self._waiting = scope
            try:
                await self.bell.wait()
            finally:
                self._waiting = None
                if not self.responded and self._head_left is not None:
                    waited = trio.current_time() - started
                    self._head_left = max(0.0, self._head_left - waited)
        if scope.cancelled_caught:
            what = "more of the response's content" if self.responded else "the response's head"
            # Who does not answer one request in time is asked no more (row F-08).
            self.connection.retire()
            self.fail(ErrorType.ReadTimedout, f"waiting for {what}")

    # -- ending ----------------------------------------------------------------------------------

    def release(self) -> None:
        """End the exchange; a stream that is not over is reset."""
        if self._released:
            return
        self._released = True
        connection = self.connection
        if self.outbox:
            self.stop_sending()
        self.events.clear()
        self.credit()
        if self.stream_id and connection.lost is None:
            connection.codec.reset(self.stream_id, CANCEL)
            if connection.codec.pending:
                connection.ring_writer()
        connection.ended(self)


def _offers_websocket(event: RequestEvent) -> bool:
    """Tell whether a request can go out as an extended CONNECT: HTTP/2 has no other offer."""
    if type(event) is not RequestHeader:
        return False
    offers = event.offers
    return offers is not None and b"websocket" in (
        each.strip(b" \t").lower() for each in offers.split(b",")
    )
