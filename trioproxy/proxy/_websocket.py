"""A WebSocket whose messages are filtered: in place of the tunnel's bytes, whole messages both ways.

Client and origin have their own compression, their own masks and their own fragments; what they
agreed on by the handshake is what either gets. Each message is put together, goes through its
filter (`_relay`) and leaves as one frame. Pings and pongs go on as they come, and so does a Close,
in their places among the messages; nobody but the two ends answers one. Whoever breaks the protocol
is told why, the other end that this is over, and both are cut.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._errors import ErrorSource, ErrorType, ProxyError
from .._messages import END, Data, RequestHeader, ResponseEvent, ResponseHeader
from .._util import TunnelLimits
from .._websocket import BinaryMessage, TextMessage, WebSocketOptions
from ..codec._websocket import Close, Control, WebSocketEnd, require_wsproto
from ..semantics._websocket import Deflate, deflate_agreed, deflate_offers
from ..streams._abc import MessageStream, UpstreamStream
from ._over import CountedStream
from ._relay import FROM_DOWNSTREAM, FROM_UPSTREAM, INJECTED, Relay
from ._tunnel import Tunnel, run_tunnel

if TYPE_CHECKING:
    from ._pump import Exchange

_EXTENSIONS = b"sec-websocket-extensions"
#: What the other end is told where one has failed, or we have.
_GOING_AWAY, _INTERNAL_ERROR = 1001, 1011
#: Bytes that are read without a pause: a frame may take two of them, and much more time than those.
_AT_ONCE = 4096


class MessageFilter:
    """What `Session.filter_websocket_messages` lays over the tunnels of a session."""

    def __init__(self, options: WebSocketOptions) -> None:
        require_wsproto()
        self._options = options
        self._answer: _AnswerStream | None = None

    def over(self, upstream: UpstreamStream, request: RequestHeader) -> UpstreamStream:
        """Look on at a handshake: offer what we can carry out, and see what the origin takes of it.

        Args:
          upstream: The origin's side of an attempt.
          request: The request as it will be sent, which is rewritten.
        """
        self._answer = None
        offers = request.offers
        if offers is None or b"websocket" not in _tokens(offers):
            return upstream
        kept = None
        if self._options.compression:
            kept = deflate_offers(request.headers.get_all(_EXTENSIONS))
        if kept is None:
            request.headers.remove(_EXTENSIONS)
        else:
            request.headers.set(_EXTENSIONS, kept)
        self._answer = _AnswerStream(upstream, offered=kept is not None)
        return self._answer

    async def run(
        self, exchange: Exchange, nursery: trio.Nursery, first: list[ResponseEvent]
    ) -> None:
        """Carry messages both ways until both sides have ended, or one is cut; see `run_tunnel`."""
        answer = self._answer
        if answer is None or not answer.websocket:
            await run_tunnel(exchange, nursery, first)
            return
        written = exchange.session.response_written()
        assert written is not None
        try:
            deflate = deflate_agreed(written.headers.get_all(_EXTENSIONS))
        except ValueError as exc:
            raise ProxyError.because(
                ErrorType.InternalError, f"what a filter left of the 101: {exc}", exc
            ).into_in() from exc
        await _WebSocket(exchange, self._options, deflate, answer.deflate).run(first)


class _AnswerStream(CountedStream):
    """The origin's side of an attempt, whose answer to the handshake is kept."""

    def __init__(self, inner: UpstreamStream, *, offered: bool) -> None:
        super().__init__(inner)
        self._offered = offered
        self.websocket = False
        self.deflate: Deflate | None = None

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what came of the response.

        Raises:
          ProxyError: it agrees to what was not offered.
        """
        batch = await self._inner.receive_batch()
        for event in batch:
            if type(event) is ResponseHeader and event.status == 101:
                self._see(event)
        return batch

    def _see(self, head: ResponseHeader) -> None:
        self.websocket = b"websocket" in _tokens(head.headers.get_bytes(b"upgrade") or b"")
        if not self.websocket:
            return
        try:
            self.deflate = deflate_agreed(head.headers.get_all(_EXTENSIONS))
            if self.deflate is not None and not self._offered:
                raise ValueError("Sec-WebSocket-Extensions: nothing was offered")
        except ValueError as exc:
            raise ProxyError.because(ErrorType.InvalidHTTPHeader, str(exc), exc).into_up() from exc


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(b" \t").lower() for token in value.split(b",")]


@attrs.define(eq=False)
class _Leg:
    """One end: what comes from it is read, and what goes to it written, one thing at a time.

    Attributes:
      stream: The exchange's stream of that side.
      end: Reads and writes its frames.
      transmit: Sends events to it.
      source: Whose side it is.
      closed: Whether it was sent a Close: nothing may follow.
      ended: Whether it was sent an end.
      torn: Whether a write was cut: nothing can follow.
      lock: Held while something is sent.
    """

    stream: MessageStream[Any, Any]
    end: WebSocketEnd
    transmit: Callable[..., Awaitable[None]]
    source: ErrorSource
    closed: bool = False
    ended: bool = False
    torn: bool = False
    lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def _send(self, write: Callable[[Any], bytes], what: Any) -> None:
        async with self.lock:
            if self.closed or self.torn:
                return
            data = write(what)
            self.torn = True
            await self.transmit(Data(data))
            self.torn = False

    async def send(self, message: TextMessage | BinaryMessage) -> None:
        """Send a message."""
        await self._send(self.end.message, message)

    async def control(self, control: Control) -> None:
        """Send a ping or a pong."""
        await self._send(self.end.control, control)

    async def close(self, close: Close) -> None:
        """Send a Close."""
        await self._send(self.end.close, close)
        self.closed = True

    async def half_close(self) -> None:
        """End what it is sent."""
        async with self.lock:
            if not (self.ended or self.torn):
                self.ended = True
                await self.transmit(END)

    async def goodbye(self, close: Close) -> None:
        """Say why this is over, as far as that can still be said."""
        try:
            await self.close(close)
            await self.half_close()
        except ProxyError:
            pass  # it has gone before us


class _WebSocket:
    """A WebSocket between a client and an origin."""

    def __init__(
        self,
        exchange: Exchange,
        options: WebSocketOptions,
        of_client: Deflate | None,
        of_origin: Deflate | None,
    ) -> None:
        session = exchange.session
        most = options.max_message_bytes
        self._exchange = exchange
        self._client = _Leg(
            session.downstream_session,
            WebSocketEnd(client=False, deflate=of_client, max_message_bytes=most),
            session._send_events,
            ErrorSource.DOWNSTREAM,
        )
        self._origin = _Leg(
            exchange.upstream,
            WebSocketEnd(client=True, deflate=of_origin, max_message_bytes=most),
            exchange.upstream.send,
            ErrorSource.UPSTREAM,
        )
        conf = exchange.conf
        limits = TunnelLimits(conf.tunnel_idle_timeout, conf.tunnel_half_close_timeout)
        self._limits = limits
        self._tunnel = Tunnel(exchange, limits)

        async def to_origin(message: Any) -> None:
            await self._origin.send(message)
            limits.moved()  # what was put in from the side counts as well

        async def to_client(message: Any) -> None:
            await self._client.send(message)
            limits.moved()

        self._relay = Relay(exchange, to_origin, to_client, as_message)
        #: Who broke the protocol, and how.
        self._culprit: tuple[_Leg, Close] | None = None
        self._over = trio.Event()

    async def run(self, first: list[ResponseEvent]) -> None:
        """Carry messages until both sides have ended.

        Raises:
          ProxyError: a side broke, or its protocol; a callback failed; or nothing moved too long.
        """
        farewells = self._exchange.session._services.farewells
        farewells.add(self.part)
        try:
            await self._run(first)
        finally:
            farewells.discard(self.part)
            self._over.set()

    async def part(self) -> None:
        """Tell both ends that the server goes away, and wait until they have gone."""
        await self._say({leg: Close(_GOING_AWAY) for leg in (self._client, self._origin)})
        await self._over.wait()

    async def _run(self, first: list[ResponseEvent]) -> None:
        relay = self._relay
        self._client.stream.read_timeout = self._origin.stream.read_timeout = math.inf
        async with trio.open_nursery() as nursery:
            relay.scope = nursery.cancel_scope
            try:
                await relay.open(nursery)
                async with trio.open_nursery() as directions:
                    directions.start_soon(self._guarded, self._towards_origin, FROM_DOWNSTREAM)
                    directions.start_soon(self._guarded, self._towards_client, FROM_UPSTREAM, first)
            except Exception as exc:  # raised again below, behind a goodbye
                relay.callback_failed = True
                relay.fail(exc, INJECTED)
            nursery.cancel_scope.cancel()
        if relay.error is not None:
            await self._say_goodbye()
            raise relay.error

    async def _guarded(
        self, carry: Callable[..., Awaitable[None]], phase: str, *arguments: Any
    ) -> None:
        """Run a direction as a task: its failure is told, never raised."""
        try:
            await carry(*arguments)
        except Exception as exc:  # the WebSocket fails with it, in the task that owns the attempt
            self._relay.fail(exc, phase)

    async def _towards_origin(self) -> None:
        body = self._exchange.session._body
        while True:
            for event in await self._tunnel.receive(self._client.stream):
                data = event.data if type(event) is Data else b""
                body.bytes_read += len(data)
                await self._take(data, self._client, self._origin, self._relay.from_downstream)
                if type(event) is not Data or event.end:
                    await self._origin.half_close()
                    self._limits.half_closed()
                    return

    async def _towards_client(self, batch: list[ResponseEvent]) -> None:
        while True:
            for event in batch:
                data = event.data if type(event) is Data else b""
                self._exchange.upstream.body_bytes_received += len(data)
                await self._take(data, self._origin, self._client, self._relay.from_upstream)
                if type(event) is not Data or event.end:
                    await self._client.half_close()
                    self._limits.half_closed()
                    return
            batch = await self._tunnel.receive(self._origin.stream)

    async def _take(
        self, data: bytes, source: _Leg, target: _Leg, pass_on: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Carry what bytes of one end are to the other.

        Raises:
          ProxyError: they are no WebSocket's.
        """
        for at in range(0, len(data), _AT_ONCE):
            if at:
                await trio.lowlevel.checkpoint()
            for each in source.end.feed(data[at : at + _AT_ONCE]):
                if isinstance(each, Close):
                    await target.close(each)
                elif isinstance(each, Control):
                    await target.control(each)
                else:
                    await pass_on(each)
            if source.end.failure is not None:
                break
        failure = source.end.failure
        if failure is not None:
            self._culprit = (source, Close(failure.code, failure.text.encode()))
            error = ProxyError.explain(
                ErrorType.Custom("WebSocketError"), f"{failure.text} (code {failure.code})"
            )
            error.esource = source.source
            raise error

    async def _say_goodbye(self) -> None:
        """Tell both ends, within a bound, that this is over, unless one of them is simply gone."""
        closes = {self._client: Close(_INTERNAL_ERROR), self._origin: Close(_GOING_AWAY)}
        if self._culprit is not None:
            leg, close = self._culprit
            closes[leg] = close
        elif not self._relay.callback_failed:
            return
        with trio.move_on_after(self._exchange.conf.drain_timeout):
            await self._say(closes)

    async def _say(self, closes: dict[_Leg, Close]) -> None:
        async with trio.open_nursery() as nursery:
            for leg, close in closes.items():
                nursery.start_soon(leg.goodbye, close)


def as_message(result: Any, original: bytes | None, who: str) -> TextMessage | BinaryMessage:
    """Return what a callback gave as a message: its own kind, or that of the one it was given.

    Raises:
      TypeError: it is none.
      ValueError: it is text and no UTF-8.
    """
    compressed = getattr(original, "compressed", True)
    if isinstance(result, (TextMessage, BinaryMessage)):
        message = result
    elif isinstance(result, str):
        message = TextMessage(result)
        message.compressed = compressed
    elif isinstance(result, (bytes, bytearray, memoryview)):
        kind = TextMessage if isinstance(original, TextMessage) else BinaryMessage
        message = kind(bytes(result))
        message.compressed = compressed
    else:
        raise TypeError(f"{who} gave {result!r}: bytes are right, or text")
    if message is not original and isinstance(message, TextMessage):
        try:
            message.decode()
        except UnicodeDecodeError as exc:
            raise ValueError(
                f"{who} made a text message that is no UTF-8: a BinaryMessage is right"
            ) from exc
    return message
