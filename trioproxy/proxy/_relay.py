"""Messages beside the content: from either side through its filter to the other, and from the side.

From the client: `downstream_custom_message_proxy_filter`, then the origin. From the origin:
`upstream_custom_message_proxy_filter`, then the client. What `custom_forwarding` was given channels
for goes out unfiltered. A side that has no messages takes none: what would go there is dropped, and
the filter is told so.

`run_with_messages` lays this beside an attempt whose client or origin has messages. The origin's
response ends for the client when the messages that came before its end have gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from .._errors import ProxyError
from .._messages import END, Data, RequestEvent, ResponseEvent
from ..streams._abc import UpstreamStream
from ._body import RETRY_BUFFER
from ._failure import as_proxy_error
from ._over import CountedStream
from ._pump import Exchange, run_exchange

#: Messages that wait in a channel of `custom_forwarding` before a sender does (Pingora's queue).
QUEUE = 128
#: What a message counts for in the replay buffer, beside its bytes.
MESSAGE_COST = 64

#: Takes what a callback gave, the message that it was given if there was one, and its name.
Check = Callable[[Any, bytes | None, str], Any]
Send = Callable[[Any], Awaitable[None]]
SendChannel = trio.MemorySendChannel[bytes]
ReceiveChannel = trio.MemoryReceiveChannel[bytes]


@attrs.define(eq=False)
class Relay:
    """Where the messages of one attempt go.

    Attributes:
      exchange: The attempt.
      to_upstream: Sends to the origin; None where that has no messages.
      to_downstream: Sends to the client; None where that has none.
      check: Makes of what a callback gave what is sent.
      scope: Ends all that belongs to the relay, once something has failed.
      error: What failed first.
      callback_failed: Whether that was a callback, and no connection.
    """

    exchange: Exchange
    to_upstream: Send | None
    to_downstream: Send | None
    check: Check
    scope: trio.CancelScope | None = None
    error: Exception | None = None
    callback_failed: bool = False

    def fail(self, exc: Exception, phase: str) -> None:
        """Keep why the attempt fails, and end what belongs to it."""
        if self.error is None:
            self.error = as_proxy_error(exc, self.exchange.session, phase)
        if self.scope is not None:
            self.scope.cancel()

    async def from_downstream(self, message: bytes) -> None:
        """Pass a message of the client on."""
        callback = self.exchange.filters.downstream_custom_message_proxy_filter
        await self._pass_on(message, callback, self.to_upstream, FROM_DOWNSTREAM)

    async def from_upstream(self, message: bytes) -> None:
        """Pass a message of the origin on."""
        callback = self.exchange.filters.upstream_custom_message_proxy_filter
        await self._pass_on(message, callback, self.to_downstream, FROM_UPSTREAM)

    async def _pass_on(self, message: bytes, callback: Any, to: Send | None, name: str) -> None:
        result: Any = message
        try:
            if callback is not None:
                exchange = self.exchange
                result = await callback(exchange.session, message, exchange.ctx, to is None)
            if result is None or to is None:
                return
            result = self.check(result, message, name)
        except Exception:
            self.callback_failed = True
            raise
        await to(result)

    async def open(self, nursery: trio.Nursery) -> None:
        """Call `custom_forwarding`, and carry what is put into its channels.

        Raises:
          Exception: what the callback raised.
        """
        exchange = self.exchange
        callback = exchange.filters.custom_forwarding
        if callback is None:
            return
        down_in, down_out = trio.open_memory_channel[bytes](QUEUE)
        up_in: SendChannel | None = None
        up_out: ReceiveChannel | None = None
        if self.to_upstream is not None:
            up_in, up_out = trio.open_memory_channel[bytes](QUEUE)
        exchange.session._phase = "custom_forwarding"
        try:
            await callback(exchange.session, exchange.ctx, up_in, down_in)
        except BaseException:
            for channel in (down_in, down_out, up_in, up_out):
                if channel is not None:
                    channel.close()
            raise
        nursery.start_soon(self._inject, down_in, down_out, self.to_downstream)
        if up_in is not None and up_out is not None:
            nursery.start_soon(self._inject, up_in, up_out, self.to_upstream)

    async def _inject(self, channel: SendChannel, waiting: ReceiveChannel, to: Send | None) -> None:
        """Send what is put into a channel, until that is closed or the attempt is over."""
        try:
            # Holding both ends: one that a callback forgets is neither a warning nor an end.
            with channel, waiting:
                async for message in waiting:
                    if to is None:
                        continue
                    try:
                        checked = self.check(message, None, INJECTED)
                    except Exception:
                        self.callback_failed = True
                        raise
                    await to(checked)
        except Exception as exc:  # the attempt fails with it, in the task that owns it
            self.fail(exc, INJECTED)


FROM_DOWNSTREAM = "downstream_custom_message_proxy_filter"
FROM_UPSTREAM = "upstream_custom_message_proxy_filter"
INJECTED = "custom_forwarding"


def as_bytes(result: Any, _original: bytes | None, who: str) -> bytes:
    """Return what a callback gave as the message that is sent.

    Raises:
      TypeError: it is none.
    """
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result)
    raise TypeError(f"{who} gave {result!r}: bytes are right")


class RelayedStream(CountedStream):
    """The origin's side of an attempt that has messages beside it."""

    def __init__(self, inner: UpstreamStream, opened: trio.Event, drained: trio.Event) -> None:
        super().__init__(inner)
        self._opened = opened
        self._drained = drained

    async def send(self, *events: RequestEvent) -> None:
        """Send events of the request; behind its head messages may go."""
        await self._inner.send(*events)
        self._opened.set()

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what came of the response, its end only behind the messages before it."""
        batch = await self._inner.receive_batch()
        last = batch[-1]
        if last is END or (type(last) is Data and last.end):
            await self._drained.wait()
        return batch


async def run_with_messages(exchange: Exchange) -> list[ResponseEvent] | None:
    """Carry one attempt as `run_exchange` does, and its messages beside it.

    Raises:
      ProxyError: the attempt failed, or a message could not be carried.
      Exception: what a filter raised.
    """
    downstream = exchange.session.downstream_session.messages
    upstream = exchange.upstream.messages
    body, kept = exchange.session._body, exchange.session._kept_messages
    opened, drained = trio.Event(), trio.Event()
    if exchange.asked:
        opened.set()
    exchange.upstream = RelayedStream(exchange.upstream, opened, drained)

    takes = True

    async def send_up(message: bytes) -> None:
        nonlocal takes
        assert upstream is not None
        await opened.wait()
        if not takes:
            return
        try:
            await upstream.send_message(message)
        except ProxyError:
            # Its response may still come, or be here already (row U1-05): the pump knows.
            takes = False

    relay = Relay(
        exchange,
        None if upstream is None else send_up,
        None if downstream is None else downstream.send_message,
        as_bytes,
    )

    async def from_downstream() -> None:
        assert downstream is not None
        try:
            size = sum(map(len, kept)) + MESSAGE_COST * len(kept)
            for message in list(kept):  # what an attempt before has taken already
                await relay.from_downstream(message)
            while (taken := await downstream.receive_message()) is not None:
                if not body.truncated:
                    kept.append(taken)
                    size += len(taken) + MESSAGE_COST
                    if size > RETRY_BUFFER:
                        # It cannot be had a second time, so that the request cannot be made again.
                        body.truncated = True
                        kept.clear()
                await relay.from_downstream(taken)
        except Exception as exc:  # the attempt fails with it, in the task that owns it
            relay.fail(exc, FROM_DOWNSTREAM)

    async def from_upstream() -> None:
        assert upstream is not None
        try:
            while True:
                try:
                    message = await upstream.receive_message()
                except ProxyError:
                    break  # the response cannot end properly: who waits for that is told the same
                if message is None:
                    break
                await relay.from_upstream(message)
        except Exception as exc:  # as above
            relay.fail(exc, FROM_UPSTREAM)
        drained.set()

    failure: Exception | None = None
    first: list[ResponseEvent] | None = None
    async with trio.open_nursery() as nursery:
        relay.scope = nursery.cancel_scope
        try:
            await relay.open(nursery)
            if downstream is not None:
                nursery.start_soon(from_downstream)
            if upstream is not None:
                nursery.start_soon(from_upstream)
            else:
                drained.set()
            first = await run_exchange(exchange, nursery)
        except Exception as exc:  # raised again below, when what runs beside it has ended
            failure = exc
        nursery.cancel_scope.cancel()
    if relay.error is not None:
        raise relay.error
    if failure is not None:
        raise failure
    return first
