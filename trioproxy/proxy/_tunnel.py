"""Behind a 101: bytes both ways, through the body filters, until both sides have ended.

Towards the origin: downstream -> `request_body_filter` -> upstream. Towards the client: upstream ->
`upstream_response_body_filter` -> `response_body_filter` -> downstream. ``end_of_stream`` is True
when that side half-closes.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import trio

from .._errors import ErrorType, ProxyError
from .._messages import END, BodyChunk, Data, RequestEvent, ResponseEvent
from ..streams._abc import MessageStream
from ._failure import as_proxy_error
from ._pump import Exchange, filter_chunk, put


@attrs.define(eq=False)
class Tunnel:
    """What the two directions share: when something last moved, and who has ended.

    Attributes:
      exchange: The attempt that became a tunnel.
      idle_at: When the tunnel counts as idle, unless something moves before.
      closes_at: When the side that has not ended is cut, once the other one has.
      waits: The scopes of the directions that wait now.
      upload_scope: Around the direction towards the origin.
      download_scope: Around the direction towards the client.
      upload_ended: Set when the direction towards the origin has ended.
      upload_error: Why it failed.
    """

    exchange: Exchange
    idle_at: float
    closes_at: float = math.inf
    waits: set[trio.CancelScope] = attrs.field(factory=set)
    upload_scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    download_scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    upload_ended: trio.Event = attrs.field(factory=trio.Event)
    upload_error: ProxyError | None = None

    async def receive(self, stream: MessageStream[Any, Any]) -> list[Any]:
        """Return what comes next from one side.

        Raises:
          ProxyError: ReadTimedout, nothing moved in either direction for too long, or the other side
            ended too long ago.
        """
        while True:
            with trio.move_on_at(min(self.idle_at, self.closes_at)) as scope:
                self.waits.add(scope)
                try:
                    batch: list[Any] = await stream.receive_batch()
                finally:
                    self.waits.discard(scope)
                self.idle_at = trio.current_time() + self.exchange.conf.tunnel_idle_timeout
                return batch
            now = trio.current_time()
            if now >= self.closes_at:
                seconds = self.exchange.conf.tunnel_half_close_timeout
                raise ProxyError.explain(
                    ErrorType.ReadTimedout,
                    f"one side of the tunnel had ended, the other went on for {seconds:g} s",
                ).into_up()
            if now >= self.idle_at:
                seconds = self.exchange.conf.tunnel_idle_timeout
                raise ProxyError.explain(
                    ErrorType.ReadTimedout, f"nothing moved in the tunnel for {seconds:g} s"
                ).into_up()

    def half_closed(self) -> None:
        """Let the other direction go on for a while."""
        seconds = self.exchange.conf.tunnel_half_close_timeout
        self.closes_at = min(self.closes_at, trio.current_time() + seconds)
        for scope in self.waits:
            scope.deadline = min(scope.deadline, self.closes_at)


async def run_tunnel(exchange: Exchange, nursery: trio.Nursery, first: list[ResponseEvent]) -> None:
    """Carry bytes both ways until both sides have ended, or one is cut.

    Args:
      exchange: The attempt whose origin switched protocols.
      nursery: The session's.
      first: What came from the origin right behind its 101.

    Raises:
      ProxyError: a side broke, or nothing moved for too long.
      Exception: what a filter raised.
    """
    idle = exchange.conf.tunnel_idle_timeout
    tunnel = Tunnel(exchange, trio.current_time() + idle)
    exchange.session.downstream_session.read_timeout = math.inf
    exchange.upstream.read_timeout = math.inf
    nursery.start_soon(_upload, tunnel)
    failure: Exception | None = None
    with tunnel.download_scope:
        try:
            await _towards_client(tunnel, first)
            await tunnel.upload_ended.wait()
        except Exception as exc:  # raised again below, when the other direction has ended
            failure = exc
    tunnel.upload_scope.cancel()
    await tunnel.upload_ended.wait()
    if tunnel.upload_error is not None:
        raise tunnel.upload_error
    if failure is not None:
        raise failure


async def _upload(tunnel: Tunnel) -> None:
    """Run the direction towards the origin as a task: its failure is told, never raised."""
    try:
        with tunnel.upload_scope:
            await _towards_origin(tunnel)
    except Exception as exc:  # the tunnel fails with it, in the task that owns the attempt
        session = tunnel.exchange.session
        tunnel.upload_error = as_proxy_error(exc, session, "request_body_filter")
        tunnel.download_scope.cancel()
    finally:
        tunnel.upload_ended.set()


async def _towards_origin(tunnel: Tunnel) -> None:
    exchange = tunnel.exchange
    session, body_filter = exchange.session, exchange.filters.request_body_filter
    downstream = session.downstream_session
    chunk = BodyChunk()
    while True:
        batch: list[RequestEvent] = await tunnel.receive(downstream)
        for event in batch:
            data = event.data if type(event) is Data else None
            last = type(event) is not Data or event.end
            session._body.bytes_read += len(data or b"")
            if body_filter is not None:
                put(chunk, data)
                await body_filter(session, chunk, last, exchange.ctx)
                data = chunk.data
            if data:
                await exchange.upstream.send(Data(data))
            if last:
                await exchange.upstream.send(END)
                tunnel.half_closed()
                return


async def _towards_client(tunnel: Tunnel, batch: list[ResponseEvent]) -> None:
    exchange = tunnel.exchange
    session, filters = exchange.session, exchange.filters
    filtered = (
        filters.upstream_response_body_filter is not None
        or filters.response_body_filter is not None
    )
    chunk = BodyChunk()
    while True:
        out: list[ResponseEvent] = []
        for event in batch:
            data = event.data if type(event) is Data else None
            last = type(event) is not Data or event.end
            exchange.upstream.body_bytes_received += len(data or b"")
            if filtered:
                put(chunk, data)
                out = await filter_chunk(exchange, chunk, last, out)
                data = chunk.data
            if data:
                out.append(Data(data))
            if last:
                await session._send_events(*out, END)
                tunnel.half_closed()
                return
        if out:
            await session._send_events(*out)
        batch = await tunnel.receive(exchange.upstream)
