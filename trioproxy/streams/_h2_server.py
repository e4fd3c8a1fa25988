"""HTTP/2 towards the client: a connection with its exchanges, each a task of its own.

A stream takes a *place* until the task of its exchange has ended, whatever the client did to it
before: the limit on streams counts places, so that opening and resetting streams gains nobody
anything (row H2-02). Only one that both sides have ended properly gives its place back at once, for
its client may open the next one as soon as it has read that end. An exchange that ends before its response is whole resets its stream; one whose client
has not ended its request resets it with NO_ERROR, behind the whole response (RFC 9113 section 8.1).
"""

from __future__ import annotations

import logging
import math

import attrs
import trio

from .._clock import http_date
from .._errors import ErrorSource, ErrorType, ProxyError
from .._info import ConnectionInfo
from .._messages import (
    END,
    Data,
    RequestEvent,
    RequestHeader,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from ..codec._h2 import H2Codec
from ..codec._h2_events import (
    CANCEL,
    CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
    INTERNAL_ERROR,
    NO_ERROR,
    REFUSED_STREAM,
    DataReceived,
    HeadReceived,
    HeadRefused,
    PriorityChanged,
    TrailersReceived,
    error_name,
)
from ..codec._h2_library import LARGEST_ID
from ..semantics._framing import MessageRefused
from ..semantics._h2 import websocket_accept
from ..semantics._priority import parse_priority
from ..transport._byte_stream import ByteStream
from ._abc import DownstreamStream
from ._h2 import HIGH_WATER, H2Base, H2Stream
from ._h2_write import H2Writer
from ._mailbox import Allowance
from ._server import Handler, OnLimit, OnRefused, ServerOptions, settle

_log = logging.getLogger("trioproxy")

#: Seconds between the two GOAWAYs of a graceful end, where no PING comes back before (row H2-23).
FAREWELL_TIME = 1.0
#: Priorities kept for streams that have not come yet.
EARLY_PRIORITIES = 64

_FAREWELL = b"goodbye!"


@attrs.frozen(kw_only=True)
class H2ServerOptions(ServerOptions):
    """Times and bounds of a downstream HTTP/2 connection."""

    max_streams: int = 100
    request_limit: int = 100000
    max_body_bytes: int | None = None


class H2ServerConnection(H2Base):
    """One accepted HTTP/2 connection."""

    def __init__(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        codec: H2Codec,
        options: H2ServerOptions,
        on_refused: OnRefused = lambda _info, _status, _text: None,
        on_limit: OnLimit = lambda _name: None,
        received: bytes = b"",
    ) -> None:
        """Take over an accepted transport.

        Args:
          transport: The bytes.
          info: Who is there.
          codec: The server's end of a connection.
          options: Times and bounds.
          on_refused: Called for each request that is refused before a session exists.
          on_limit: Called with the name of a limit that ends the connection.
          received: Bytes that were read already.
        """
        super().__init__(transport, info, codec, options.write_timeout)
        self.options = options
        self.draining = False
        self._on_refused = on_refused
        self._on_limit = on_limit
        self._received = received
        self._nursery: trio.Nursery | None = None
        self._handler: Handler | None = None
        self._live = 0
        self._places = 0
        self._served = 0
        self._refused = 0
        self._last_taken = LARGEST_ID
        self._said_goodbye = False
        self._early: dict[int, bytes] = {}

    async def run(self, handler: Handler) -> None:
        """Serve exchanges until the connection ends; the transport is closed when this returns."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._handler = handler
                self.open()
                self.set_deadline("idle", self.options.idle_timeout)
                if self.draining:
                    self._say_goodbye()
                nursery.start_soon(self.write_loop)
                if self._received:
                    self.feed(self._received)
                    self._received = b""
                await self.read_loop()
        finally:
            self.transport.close_now()

    def drain(self) -> None:
        """Take no more streams; end when the last exchange has (row H2-23)."""
        self.draining = True
        if self._nursery is not None:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self._said_goodbye or self.lost is not None:
            return
        self._said_goodbye = True
        if not self._live:
            self.fail(NO_ERROR, "the server stops")
            return
        # What the client has sent by now is still taken: it cannot know better yet.
        self.codec.goaway(NO_ERROR, LARGEST_ID)
        self.codec.ping(_FAREWELL)
        self.set_deadline("farewell", FAREWELL_TIME)
        self.ring_writer()

    def _farewell(self) -> None:
        if self._last_taken == LARGEST_ID and self.lost is None:
            self.clear_deadline("farewell")
            self._last_taken = self.codec.last_stream_id
            self.codec.goaway(NO_ERROR, self._last_taken)
            self.ring_writer()
            if not self._live:
                self.fail(NO_ERROR, "the server stops")

    def on_ping(self, data: bytes) -> None:
        """Take the answer to the PING behind the first GOAWAY."""
        if data == _FAREWELL and self._said_goodbye:
            self._farewell()

    def on_deadline(self, name: str) -> None:
        """Act on a deadline that has passed."""
        if name == "idle":
            self._on_limit("idle_timeout")
            self.fail(NO_ERROR, "idle")
        elif name == "farewell":
            self._farewell()
        else:
            super().on_deadline(name)

    def on_limit(self, name: str) -> None:
        """Count the limit that ended the connection."""
        self._on_limit(name)

    def on_failure(self, text: str) -> None:
        """Tell of a client that broke the protocol."""
        _log.debug("%s broke HTTP/2: %s", self.info.peer, text)

    # -- streams ---------------------------------------------------------------------------------

    def on_head(self, event: HeadReceived) -> None:
        """Start an exchange, or refuse it."""
        stream_id = event.stream_id
        if not self._may_start(stream_id):
            return
        head = event.head
        assert isinstance(head, RequestHeader)
        limit = self.options.max_body_bytes
        length = head.facts.content_length if head.facts is not None else None
        if limit is not None and length is not None and length > limit:
            refusal = MessageRefused(413, "the request's content is too large")
            self._answer(stream_id, refusal)
            return
        stream = H2DownstreamStream(self, stream_id, head, event.end)
        self.streams[stream_id] = stream
        self._served += 1
        if not self._live:
            self.clear_deadline("idle")
        self._live += 1
        self._places += 1
        value = self._early.pop(stream_id, None)
        if value is None and b"priority" in head.headers:
            value = b", ".join(each for name, _, each in head.headers.fields if name == b"priority")
        if value is not None:
            stream.urgency, stream.incremental = parse_priority(value)
        assert self._nursery is not None
        self._nursery.start_soon(self._exchange, stream)
        if self._served >= self.options.request_limit:
            self._say_goodbye()

    def _may_start(self, stream_id: int) -> bool:
        """Tell whether one more stream may become live; reset it otherwise."""
        if stream_id > self._last_taken:
            self.codec.reset(stream_id, REFUSED_STREAM)
            return False
        if self._places < self.options.max_streams:
            return True
        self.codec.reset(stream_id, REFUSED_STREAM)
        self._on_limit("h2_max_streams")
        self._refused += 1
        if self._refused >= self.codec.options.limits.max_refused * self.options.max_streams:
            self.fail(ENHANCE_YOUR_CALM, "too many streams", "max_refused")
        return False

    async def _exchange(self, stream: H2DownstreamStream) -> None:
        assert self._handler is not None
        try:
            await self._handler(stream)
        except Exception:  # a bug costs its own stream (row S-10)
            _log.exception("an exchange with %s ended by an internal error", self.info.peer)
            stream.blame = ErrorSource.INTERNAL
        finally:
            stream.leave()
            self.streams.pop(stream.stream_id, None)
            self._live -= 1
            self.give_place_back(stream)
            if self._places < self.options.max_streams // 2:
                self._refused = 0
            if not self._live:
                if self._said_goodbye and self._last_taken != LARGEST_ID:
                    self.fail(NO_ERROR, "the server stops")
                else:
                    self.set_deadline("idle", self.options.idle_timeout)

    def give_place_back(self, stream: H2DownstreamStream) -> None:
        """Let another stream start in place of one; does nothing the second time."""
        if stream.has_place:
            stream.has_place = False
            self._places -= 1

    def on_trailers(self, stream: H2Stream, event: TrailersReceived) -> None:
        """Take a request's trailers and its end."""
        assert isinstance(stream, H2DownstreamStream)
        stream.set_complete()
        stream.events.append(Trailers(event.headers))
        stream.deliver(END)

    def on_data(self, stream: H2Stream, event: DataReceived) -> None:
        """Take content of a request."""
        assert isinstance(stream, H2DownstreamStream)
        limit = self.options.max_body_bytes
        if limit is not None and not stream.for_tunnel:
            stream.received += len(event.data)
            if stream.received > limit:
                self.credit(event.stream_id, event.size)
                stream.refusal = MessageRefused(413, "the request's content is too large")
                stream.bell.ring()
                return
        if event.end:
            stream.set_complete()
        stream.deliver_data(event)
        if event.end and not event.data:
            stream.deliver(END)

    def on_head_refused(self, event: HeadRefused) -> None:
        """Answer a request that no session will see; trailers that are too large end their request."""
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            assert isinstance(stream, H2DownstreamStream)
            stream.refusal = event.refusal
            stream.bell.ring()
        elif self._may_start(event.stream_id):
            self._answer(event.stream_id, event.refusal)

    def _answer(self, stream_id: int, refusal: MessageRefused) -> None:
        """Answer with a status and a short text, as far as somebody reads it."""
        codec = self.codec
        self._on_refused(self.info, refusal.status, str(refusal))
        body = (refusal.text + "\n").encode("latin-1", "replace")
        if codec.pending < HIGH_WATER and codec.window(stream_id) >= len(body):
            fields = [
                (b":status", b"%d" % refusal.status),
                (b"server", self.options.server_name),
                (b"date", http_date()),
                (b"content-type", b"text/plain"),
                (b"content-length", b"%d" % len(body)),
                (b"cache-control", b"private, no-store"),
            ]
            codec.send_head(stream_id, fields, False)
            codec.send_data(stream_id, body, True)
            codec.reset(stream_id, NO_ERROR)
        else:
            codec.reset(stream_id, REFUSED_STREAM)
        self.ring_writer()

    def on_priority(self, event: PriorityChanged) -> None:
        """Take a PRIORITY_UPDATE, also for a stream that is still to come."""
        stream = self.streams.get(event.stream_id)
        if stream is None:
            if event.stream_id > self.codec.last_stream_id and len(self._early) < EARLY_PRIORITIES:
                self._early[event.stream_id] = event.value
            return
        waits = bool(stream.outbox)
        self.turns.remove(stream)
        stream.urgency, stream.incremental = parse_priority(event.value)
        if waits:
            self.turns.add(stream)


class H2DownstreamStream(H2Stream, DownstreamStream):
    """One exchange on an `H2ServerConnection`."""

    connection: H2ServerConnection

    def __init__(
        self, connection: H2ServerConnection, stream_id: int, head: RequestHeader, end: bool
    ) -> None:
        super().__init__(connection, stream_id)
        options = connection.options
        self.info = connection.info
        settle(self, options)
        self.reuses_remaining = None
        self.writer = H2Writer()
        #: Whether the request's end has come.
        self.complete = end
        #: Whether it counts against the limit on streams.
        self.has_place = True
        #: Content received; counted where there is a limit.
        self.received = 0
        self.refusal: MessageRefused | None = None
        self.tunnel = False
        self._head = head
        self._gone: str | None = None
        self._scope: trio.CancelScope | None = None
        self._allowance = Allowance(options.min_receive_rate)
        self._over = False
        self._left = False
        facts = head.facts
        self._awaits_continue = facts is not None and facts.expect_continue and not end
        self._connect = facts is not None and facts.connect is not None
        self._head_alone = self._connect or (facts is not None and facts.extended_connect)
        #: Whether all content is that of a tunnel, which is open or wanted.
        self.for_tunnel = self._head_alone
        self.events.append(head)
        if end:
            self.events.append(END)

    @property
    def request_complete(self) -> bool:
        """Whether the request's end has come."""
        return self.complete

    @property
    def departure(self) -> ProxyError | None:
        """Why the client counts as gone, or None."""
        connection = self.connection
        if self._gone is not None:
            return ProxyError.explain(ErrorType.ConnectionClosed, self._gone).into_down()
        if connection.lost is not None:
            error = connection.lost_error()
            cause = error if error.etype == ErrorType.H2Error else error.cause
            text = f"the client's connection ended: {error.context}"
            if cause is None:
                return ProxyError.explain(ErrorType.ConnectionClosed, text).into_down()
            return ProxyError.because(ErrorType.ConnectionClosed, text, cause).into_down()
        return None

    def set_complete(self) -> None:
        """Take note of the request's end."""
        self.complete = True
        if self.end_sent:
            self.connection.give_place_back(self)

    def on_end_sent(self) -> None:
        """Give the stream's place back, if the client has ended it as well."""
        if self.complete:
            self.connection.give_place_back(self)

    def watch(self, scope: trio.CancelScope, *, half_close: bool = True) -> None:
        """Cancel the scope when the client leaves; see `DownstreamStream.watch`."""
        self._scope = scope
        if self._gone is not None or self.connection.lost is not None:
            self._party_left()

    def unwatch(self) -> None:
        """Forget the scope."""
        self._scope = None

    def _party_left(self) -> None:
        if self.writer.finished and not self.outbox:
            return  # the response is out whole: who leaves now has got what it asked for
        if self._scope is not None:
            self._scope.cancel()

    def on_reset(self, code: int) -> None:
        """See the client reset the stream (row H2-20)."""
        self._gone = f"the client reset the stream ({error_name(code)})"
        self.bell.ring()
        self._party_left()

    def on_fault(self, text: str) -> None:
        """See the request turn out malformed: as if the client had given it up."""
        self._gone = f"the request is malformed: {text}"
        self.bell.ring()
        self._party_left()

    def on_lost(self) -> None:
        """See the connection end."""
        self.bell.ring()
        self._party_left()

    async def receive_batch(self) -> list[RequestEvent]:
        """Return what has come of the request; see `MessageStream.receive_batch`."""
        if self._left:
            raise _exchange_over()
        while not self.events:
            self._check_receiving()
            allowance = self._allowance
            limit = math.inf
            if not self._over and not self._awaits_continue:
                limit = min(self.read_timeout, allowance.seconds)
            started = trio.current_time()
            if not await self.wait(limit):
                text = "more of the request's content"
                if limit < self.read_timeout:
                    text = f"content at {allowance.rate:g} bytes a second"
                cause = ProxyError.explain(ErrorType.ReadTimedout, text)
                raise ProxyError.because(
                    ErrorType.HTTPStatus(408), "the request's content took too long", cause
                ).into_down()
            if limit != math.inf:
                allowance.waited(trio.current_time() - started)
        if self._head_alone:  # what follows it is the tunnel's, if there will be one
            self._head_alone = False
            return [self.events.pop(0)]
        batch = self.take()
        if self._awaits_continue and type(batch[0]) is not RequestHeader:
            self._awaits_continue = False
        if self._allowance.rate:
            size = sum(len(event.data) for event in batch if type(event) is Data)
            self._allowance.received(size, self.read_timeout)
        last = batch[-1]
        if last is END or getattr(last, "end", False):
            self._over = True
        return batch

    def _check_receiving(self) -> None:
        refusal = self.refusal
        if refusal is not None:
            raise ProxyError.because(
                ErrorType.HTTPStatus(refusal.status), str(refusal), refusal
            ).into_down()
        departure = self.departure
        if departure is not None:
            raise departure

    def check_sending(self) -> None:
        """Raise where the client is gone."""
        departure = self.departure
        if departure is not None:
            raise departure

    async def send(self, *events: ResponseEvent) -> None:
        """Send events of the response; see `MessageStream.send`."""
        if self._left:
            raise _exchange_over()
        self.check_sending()
        facts = self._head.facts
        for event in events:
            if type(event) is ResponseHeader and event.status >= 200:
                if facts is not None and facts.extended_connect and event.status < 300:
                    # A 2xx would tell the client that the tunnel is there (RFC 8441 section 5).
                    raise ProxyError.explain(
                        ErrorType.HTTPStatus(502),
                        "the origin answered without switching to the protocol that was asked for",
                    ).into_up()
            elif type(event) is ResponseHeader and event.status == 101:
                self._check_accept(event)
        items = self.writer.response(
            events, head_only=self._head.method == "HEAD", connect=self._connect
        )
        if items:
            try:
                await self.push(items, self.write_timeout, self.min_send_rate)
            except ProxyError as exc:
                exc.as_down()
                raise
        if self._awaits_continue and type(events[0]) is ResponseHeader and events[0].status == 100:
            self._awaits_continue = False
            self.bell.ring()
        if self.writer.tunnel and not self.tunnel:
            self.tunnel = True
            self._allowance = Allowance(0.0)

    def _check_accept(self, head: ResponseHeader) -> None:
        """Hold an origin's 101 to the key that was made up for it (RFC 6455 section 4.1)."""
        key = self._head.headers.get_bytes(b"sec-websocket-key")
        accept = head.headers.get_bytes(b"sec-websocket-accept")
        if key is not None and (accept is None or accept.strip() != websocket_accept(key)):
            raise ProxyError.explain(
                ErrorType.HTTPStatus(502), "the origin's Sec-WebSocket-Accept is wrong"
            ).into_up()

    async def aclose(self) -> None:
        """Leave the exchange: a response that is not whole is reset."""
        self.leave()

    def leave(self) -> None:
        """Leave the exchange, without a checkpoint; does nothing the second time."""
        if self._left:
            return
        self._left = True
        self._scope = None
        connection = self.connection
        self.stop_sending_and_credit()
        if connection.lost is None:
            if self.writer.finished:
                code = NO_ERROR
            elif self.blame is ErrorSource.INTERNAL:
                code = INTERNAL_ERROR
            elif self.blame is ErrorSource.UPSTREAM and self._connect:
                code = CONNECT_ERROR  # RFC 9113 section 8.5
            else:
                code = CANCEL
            connection.codec.reset(self.stream_id, code)
            if connection.codec.pending:
                connection.ring_writer()

    def stop_sending_and_credit(self) -> None:
        """Drop what is in the mailbox and the outbox."""
        if self.outbox:
            self.writer.finished = False  # its end was never encoded
            self.stop_sending()
        self.events.clear()
        self.credit()


def _exchange_over() -> ProxyError:
    """Return what a task gets that a filter has left behind."""
    return ProxyError.explain(ErrorType.ConnectionClosed, "the exchange is over").into_down()
