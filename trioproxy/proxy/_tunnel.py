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

from .._errors import ErrorSource, ProxyError
from .._messages import END, BodyChunk, Data, RequestEvent, ResponseEvent
from .._util import TunnelLimits
from ..streams._abc import MessageStream
from ._failure import as_proxy_error
from ._pump import Exchange, filter_chunk, put


@attrs.define(eq=False)
class Tunnel:
    """What the two directions share: how long they may wait, and who has ended.

    Attributes:
      exchange: The attempt that became a tunnel.
      limits: How long they may wait.
      upload_scope: Around the direction towards the origin.
      download_scope: Around the direction towards the client.
      upload_ended: Set when the direction towards the origin has ended.
      upload_error: Why it failed.
    """

    exchange: Exchange
    limits: TunnelLimits
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
        try:
            return await self.limits.wait(stream.receive_batch)
        except ProxyError as exc:
            if exc.esource is ErrorSource.UNSET:
                exc.as_up()
            raise


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
    conf = exchange.conf
    limits = TunnelLimits(conf.tunnel_idle_timeout, conf.tunnel_half_close_timeout)
    tunnel = Tunnel(exchange, limits)
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
                tunnel.limits.half_closed()
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
                tunnel.limits.half_closed()
                return
        if out:
            await session._send_events(*out)
        batch = await tunnel.receive(exchange.upstream)
