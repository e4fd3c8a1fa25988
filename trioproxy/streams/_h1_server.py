"""HTTP/1.1 towards the client: a connection with its standing reader, and its exchanges.

**Theory of operation.** One reader task per connection receives, feeds the codec and rings the
consumer, as long as no more than `READ_AHEAD` bytes wait. It goes on reading while a session works
on its response, so that a client that leaves is noticed at once: the cause is kept and the scope
that the session gave to `watch` is cancelled. Bytes of a pipelined request stay undecoded in the
codec until the exchange before it has ended (row H1-21). The exchanges of a connection run one
after another in the task that calls `H1ServerConnection.run`.
"""

from __future__ import annotations

import math

import attrs
import trio

from .._clock import http_date
from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from .._messages import (
    END,
    Data,
    RequestEvent,
    RequestHeader,
    ResponseEvent,
    ResponseHeader,
)
from .._util import Bell
from ..codec._h1 import RequestReader
from ..codec._h1_write import Framing, reason_phrase
from ..semantics._framing import MessageRefused
from ..transport._byte_stream import ByteStream
from ._abc import DownstreamStream
from ._h1_write import MessageWriter
from ._mailbox import Allowance, ReadTimer
from ._server import Handler, OnLimit, OnRefused, ServerOptions, settle

READ_SIZE = 65536
#: Decoded bytes that may wait for the session before the reader stops reading.
READ_AHEAD = 32768


@attrs.frozen(kw_only=True)
class H1ServerOptions(ServerOptions):
    """Times and bounds of a downstream HTTP/1 connection."""

    header_timeout: float = 15.0
    drain_bytes: int = 262144
    request_limit: int | None = None


class H1ServerConnection:
    """One accepted HTTP/1 connection."""

    def __init__(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        reader: RequestReader,
        options: H1ServerOptions,
        on_refused: OnRefused = lambda _info, _status, _text: None,
        on_limit: OnLimit = lambda _name: None,
        received: bytes = b"",
    ) -> None:
        """Take over an accepted transport.

        Args:
          transport: The bytes.
          info: Who is there.
          reader: The request side of a codec.
          options: Times and bounds.
          on_refused: Called for each request that is refused before a session exists.
          on_limit: Called with the name of a limit that ends the connection between two requests.
          received: Bytes that were read already.
        """
        self.transport = transport
        self.info = info
        self.reader = reader
        self.options = options
        self.events: list[RequestEvent] = []
        self.queued = 0
        self.bell = Bell()
        self.timer = ReadTimer()
        self.refusal: MessageRefused | None = None
        self.timed_out: str | None = None
        self.broken: ProxyError | None = None
        self.eof = False
        self.draining = False
        limit = options.request_limit
        self.reuses_remaining = None if limit is None else limit - 1
        self._on_refused = on_refused
        self._on_limit = on_limit
        self._room = Bell()
        self._exchange: H1DownstreamStream | None = None
        self._head_started: float | None = None
        if received:
            reader.feed(received)

    @property
    def buffered(self) -> int:
        """Bytes received that nobody has taken."""
        return self.queued + self.reader.leftover

    async def run(self, handler: Handler) -> None:
        """Serve exchanges until the connection ends; the transport is closed when this returns."""
        linger = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_loop)
                idle_timeout = self.options.header_timeout
                kept: tuple[object, object] | None = None
                while await self._next_head(idle_timeout):
                    exchange = self._exchange = H1DownstreamStream(self, kept)
                    await handler(exchange)
                    kept = exchange.kept
                    self._exchange = None
                    if not await self._settle(exchange):
                        linger = exchange.writer.finished
                        if exchange.tunnel_cut:  # the client is to know it from an end
                            self.transport.abort()
                        break
                    assert exchange.keepalive is not None
                    idle_timeout = exchange.keepalive
                    left = exchange.reuses_remaining
                    self.reuses_remaining = None if left is None else left - 1
                else:
                    # Only between exchanges: behind a response that was cut, an answer would be
                    # read as its content.
                    if self.refusal is not None:
                        linger = await self._refuse(self.refusal)
                nursery.cancel_scope.cancel()
            if linger and not self.eof and self.broken is None:
                await self._linger()
        finally:
            self.transport.close_now()

    def drain(self) -> None:
        """Close now if no request is under way, else when its exchange has ended (row S-07)."""
        self.draining = True
        if self._exchange is None and self._head_started is None:
            self.bell.ring()

    # -- the reader ------------------------------------------------------------------------------

    async def _read_loop(self) -> None:
        while True:
            with self.timer.scope():
                await self._read()
                return
            # Only a deadline of the timer leads here; a moved one starts the next round.
            if self.timer.expired():
                self.timed_out = self.timer.what
                self.timer.disarm()
                self.bell.ring()
                return

    async def _read(self) -> None:
        reader = self.reader
        while True:
            while self.queued >= READ_AHEAD or reader.leftover >= READ_SIZE:
                await self._room.wait()
            try:
                # One read buffer of a pipelined request waits at the most (row H1-21).
                data = await self.transport.receive_some(READ_SIZE - reader.leftover)
            except trio.ClosedResourceError:
                return
            except ProxyError as exc:
                self.broken = ProxyError.because(
                    ErrorType.ConnectionClosed, "the client's connection broke", exc
                ).into_down()
                self._left()
                return
            if not data:
                self.eof = True
                if reader.in_tunnel:
                    self.events.append(END)
                self._left()
                return
            # The rest of a body that is being dropped starts no head.
            if self._exchange is None and self._head_started is None and not reader.in_body:
                self._head_started = trio.current_time()
                self.timer.at(self._head_started + self.options.header_timeout, "a request's head")
            reader.feed(data)
            self.decode()
            if self.refusal is not None:
                self.bell.ring()
                return

    def decode(self) -> None:
        """Decode what can be decoded of the current message, and ring."""
        reader = self.reader
        if reader.done:
            return
        try:
            batch = reader.events()
        except MessageRefused as exc:
            self.refusal = exc
            return
        if batch:
            for event in batch:
                if type(event) is Data:
                    self.queued += len(event.data)
            self.events += batch
            self.bell.ring()
        if reader.refused is not None:  # behind the good events that were just queued
            self.refusal = reader.refused

    def start_tunnel(self) -> None:
        """Go on in the tunnel that was opened: what the client sends is raw (rows H1-24, H1-26)."""
        self.reader.start_tunnel()
        self.decode()
        if self.eof:
            self.events.append(END)
        self._room.ring()
        self.bell.ring()

    def take(self) -> list[RequestEvent]:
        """Hand the decoded events over; the reader may go on."""
        batch, self.events = self.events, []
        if self.queued:
            self.queued = 0
            self._room.ring()
        return batch

    def _left(self) -> None:
        self.bell.ring()
        exchange = self._exchange
        if exchange is not None:
            exchange.party_left()

    @property
    def departure(self) -> ProxyError | None:
        """Why the client counts as gone for the current exchange, or None."""
        if self.broken is not None:
            return self.broken
        if not self.eof:
            return None
        exchange = self._exchange
        reader = self.reader
        if reader.in_tunnel:  # a half-close: its other direction goes on
            return None
        if not reader.done:
            text = "the client closed the connection in the middle of its request"
        elif reader.leftover == 0 and exchange is not None and exchange.abort_on_close:
            text = "the client closed the connection before its response"
        else:
            return None
        error = ProxyError.explain(ErrorType.ConnectionClosed, text)
        return error.into_down()

    # -- between exchanges -----------------------------------------------------------------------

    async def _next_head(self, idle_timeout: float) -> bool:
        """Wait for the next request's head; False where the connection should close."""
        options = self.options
        self.decode()  # a pipelined request may lie in the codec
        while not self.events:
            if self.refusal is not None or self.broken is not None or self.eof:
                return False
            if self.timed_out is not None:
                if self._head_started is not None:
                    self.refusal = MessageRefused(408, "the request's head took too long")
                else:
                    self._on_limit("idle_timeout")
                return False
            if self._head_started is not None or self.reader.started:
                if self._head_started is None:
                    self._head_started = trio.current_time()
                self.timer.at(self._head_started + options.header_timeout, "a request's head")
            elif self.draining:
                return False
            else:
                self.timer.arm(idle_timeout, "the next request")
            await self.bell.wait()
        self.timer.disarm()
        self._head_started = None
        return True

    async def _settle(self, exchange: H1DownstreamStream) -> bool:
        """Bring the connection into the state for its next request; False where it must close."""
        if not exchange.writer.finished or exchange.broken:
            return False
        if exchange.told_close or exchange.keepalive is None:
            return False
        if not self.reader.done and not await self._drain(exchange.drain_timeout):
            return False
        if self.refusal is not None or self.broken is not None:
            return False
        self.take()
        self.reader.next_message()
        self._room.ring()
        return True

    async def _drain(self, timeout: float) -> bool:
        """Read the unread rest of a request within the bounds of row H1-22."""
        dropped = 0
        with trio.move_on_after(timeout):
            while True:
                dropped += self.queued
                self.take()
                if dropped > self.options.drain_bytes:
                    self._on_limit("drain_bytes")
                    return False
                if self.reader.done:
                    return True
                if self.refusal or self.eof or self.broken:
                    return False
                await self.bell.wait()
        self._on_limit("drain_timeout")
        return False

    async def _refuse(self, refusal: MessageRefused) -> bool:
        """Answer a request that no session will see; True when the answer went out."""
        self._on_refused(self.info, refusal.status, str(refusal))
        if refusal.silent:
            return False
        body = (str(refusal.text) + "\n").encode("latin-1", "replace")
        head = (
            b"HTTP/1.1 %d %s\r\nServer: %s\r\nDate: %s\r\nContent-Type: text/plain\r\n"
            b"Content-Length: %d\r\nCache-Control: private, no-store\r\nConnection: close\r\n\r\n"
        ) % (
            refusal.status,
            reason_phrase(refusal.status),
            self.options.server_name,
            http_date(),
            len(body),
        )
        try:
            await self.transport.send_parts([head, body], self.options.drain_timeout)
        except (ProxyError, trio.ClosedResourceError):
            return False
        return True

    async def _linger(self) -> None:
        """Half-close and drop what still comes, or a reset would destroy the answer (H1-31)."""
        dropped = 0
        with trio.move_on_after(self.options.drain_timeout):
            try:
                await self.transport.send_eof()
                while dropped <= self.options.drain_bytes:
                    data = await self.transport.receive_some(READ_SIZE)
                    if not data:
                        break
                    dropped += len(data)
            except (ProxyError, trio.BrokenResourceError, trio.ClosedResourceError):
                return


class H1DownstreamStream(DownstreamStream):
    """One exchange on an `H1ServerConnection`."""

    __slots__ = (
        "_allowance",
        "_awaits_continue",
        "_closed",
        "_connect",
        "_connection",
        "_half_close",
        "_head_only",
        "_old_client",
        "_over",
        "_scope",
        "_tunnel",
        "abort_on_close",
        "blame",
        "broken",
        "close_on_early_response",
        "drain_timeout",
        "info",
        "keepalive",
        "kept",
        "min_send_rate",
        "read_timeout",
        "reuses_remaining",
        "told_close",
        "write_timeout",
        "writer",
    )

    sequential = True

    def __init__(
        self, connection: H1ServerConnection, kept: tuple[object, object] | None = None
    ) -> None:
        options = connection.options
        self._connection = connection
        self.kept = kept
        self.info = connection.info
        settle(self, options)
        self.reuses_remaining = connection.reuses_remaining
        self.writer = MessageWriter()
        self.told_close = False
        self.broken = False
        self._half_close = True
        self._scope: trio.CancelScope | None = None
        # Seconds that we may still wait before the content counts as too slow.
        self._allowance = Allowance(options.min_receive_rate)
        self._over = False
        self._closed = False
        self._tunnel = False
        head = connection.events[0]
        facts = getattr(head, "facts", None)
        # While it is not for the client to go on, its time does not run (row H1-23).
        self._awaits_continue = (
            facts is not None and facts.expect_continue and len(connection.events) == 1
        )
        self._head_only = getattr(head, "method", "") == "HEAD"
        self._connect = facts is not None and facts.connect is not None
        self._old_client = getattr(head, "version", "") == "HTTP/1.0"
        if facts is not None and (facts.close or (self._old_client and not facts.keep_alive)):
            self.keepalive = None
            self.told_close = True
        if self._connect:  # what follows it is a tunnel's, or nothing's (row H1-26)
            self.keepalive = None

    @property
    def tunnel_cut(self) -> bool:
        """Whether the exchange is a CONNECT tunnel that did not end as its origin has ended it."""
        return self._connect and self._tunnel and not self.writer.finished

    @property
    def request_complete(self) -> bool:
        """Whether the request's end has been decoded."""
        return self._connection.reader.done

    @property
    def departure(self) -> ProxyError | None:
        """Why the client counts as gone, or None."""
        return self._connection.departure

    def watch(self, scope: trio.CancelScope, *, half_close: bool = True) -> None:
        """Cancel the scope when the client leaves; see `DownstreamStream.watch`."""
        self._scope = scope
        self._half_close = half_close
        connection = self._connection
        if connection.broken is not None or connection.eof:
            self.party_left()

    def unwatch(self) -> None:
        """Forget the scope."""
        self._scope = None

    def party_left(self) -> None:
        """Cancel the session, where the client counts as gone."""
        if self.writer.all_out and not self.broken:
            return  # the response is out whole: who leaves now has got what it asked for
        connection = self._connection
        if not self._half_close and connection.broken is None and connection.reader.done:
            return  # looked at again when a filter has had its say
        if self._scope is not None and self.departure is not None:
            self._scope.cancel()

    async def receive_batch(self) -> list[RequestEvent]:
        """Return what is decoded of the request; see `MessageStream.receive_batch`."""
        connection = self._connection
        allowance = self._allowance
        if self._closed:
            raise _exchange_over()
        while not connection.events:
            refusal = connection.refusal
            if refusal is not None:
                raise ProxyError.because(
                    ErrorType.HTTPStatus(refusal.status), str(refusal), refusal
                ).into_down()
            departure = connection.departure
            if departure is not None:
                raise departure
            if connection.timed_out is not None:
                cause = ProxyError.explain(ErrorType.ReadTimedout, connection.timed_out)
                raise ProxyError.because(
                    ErrorType.HTTPStatus(408), "the request's content took too long", cause
                ).into_down()
            timed = not self._over and not self._awaits_continue
            if timed:
                if allowance.seconds < self.read_timeout:
                    text = f"content at {allowance.rate:g} bytes a second"
                    connection.timer.arm(allowance.seconds, text)
                else:
                    connection.timer.arm(self.read_timeout, "more of the request's content")
            started = trio.current_time() if allowance.rate else 0.0
            try:
                await connection.bell.wait()
            finally:
                connection.timer.disarm()
                if timed and allowance.rate:
                    allowance.waited(trio.current_time() - started)
        batch = connection.take()
        if self._awaits_continue and type(batch[0]) is not RequestHeader:
            self._awaits_continue = False
        if allowance.rate:
            size = sum(len(event.data) for event in batch if type(event) is Data)
            allowance.received(size, self.read_timeout)
        last = batch[-1]
        if last is END or getattr(last, "end", False):
            self._over = True
        return batch

    async def send(self, *events: ResponseEvent) -> None:
        """Send events of the response; see `MessageStream.send`."""
        connection = self._connection
        if self._closed:
            raise _exchange_over()
        for event in events:
            if type(event) is not ResponseHeader:
                break
            if event.status >= 200:
                self._decide_close()
            elif event.status == 101:
                self.keepalive = None
                self.told_close = True
        parts = self.writer.response(
            events,
            bodiless=self._head_only,
            old_client=self._old_client,
            connection=b"close" if self.told_close else b"keep-alive",
            connect=self._connect,
        )
        if self._old_client and self.writer.framing is not None and self.writer.closes:
            self.told_close = True
        writer = self.writer
        if not parts and not writer.half_closed:
            return
        self.broken = True  # until the write is whole (row S-04)
        try:
            if self.min_send_rate:
                await self._send_at_rate(parts)
            else:
                await connection.transport.send_parts(parts, self.write_timeout)
            if writer.half_closed:
                await connection.transport.send_eof()
        except trio.ClosedResourceError as exc:
            raise ProxyError.because(ErrorType.ConnectionClosed, "closed", exc).into_down() from exc
        except ProxyError as exc:
            exc.as_down()
            raise
        self.broken = False
        if self._awaits_continue and type(events[0]) is ResponseHeader and events[0].status == 100:
            self._awaits_continue = False
            connection.bell.ring()  # who waits for the content does so within its time from now on
        if (
            writer.framing is Framing.TUNNEL
            and not connection.reader.in_tunnel
            and not self._tunnel
        ):
            self._tunnel = True
            self._over = False
            self._allowance = Allowance()
            connection.start_tunnel()

    async def _send_at_rate(self, parts: list[bytes]) -> None:
        """Send within the time that the bytes take at the lowest rate allowed."""
        rate = self.min_send_rate
        seconds = max(sum(map(len, parts)), rate) / rate
        with trio.move_on_after(seconds) as scope:
            await self._connection.transport.send_parts(parts, math.inf)
        if scope.cancelled_caught:
            raise ProxyError.explain(
                ErrorType.WriteTimedout, f"the client takes less than {rate:g} bytes a second"
            )

    def _decide_close(self) -> None:
        """Decide, before the head goes out, whether the connection survives (row H1-22)."""
        connection = self._connection
        if (
            self.keepalive is None
            or (self.reuses_remaining is not None and self.reuses_remaining <= 0)
            or connection.draining
            or (connection.eof and not connection.reader.leftover)
            or connection.refusal is not None
            or (self.close_on_early_response and not connection.reader.done)
            or connection.reader.length_left > connection.options.drain_bytes
        ):
            self.told_close = True

    async def aclose(self) -> None:
        """Leave the exchange; the connection settles or closes by itself."""
        self._scope = None
        self._closed = True


def _exchange_over() -> ProxyError:
    """Return what a task gets that a filter has left behind: the next exchange is not its own."""
    return ProxyError.explain(ErrorType.ConnectionClosed, "the exchange is over").into_down()
