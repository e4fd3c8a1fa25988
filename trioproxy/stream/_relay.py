"""One direction of a stream: read, filter, send, until the end, which is passed on.

Backpressure is the sending itself: nothing is read before the other side has taken what was read
before. So a direction holds one piece of at most 65,536 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import trio

from .._errors import ErrorSource, ErrorType, ProxyError
from .._messages import BodyChunk
from .._util import TunnelLimits
from ..transport._byte_stream import SLICE, ByteStream


@attrs.define(eq=False)
class Direction:
    """Where bytes come from, what is done to them, and where they go.

    Attributes:
      source: The one that is read.
      source_side: On whose side its errors are.
      sink: The one that is written.
      sink_side: On whose side its errors are.
      limits: How long may be waited for bytes; both directions share them.
      write_timeout: Seconds that a write may be without progress.
      filter: Called with the chunk and whether the output has ended; None for no filter.
      filter_is_async: Whether what it returns is to be awaited.
      filter_name: Its name.
      on_read: Told of how many bytes were read.
      on_sent: Told of how many bytes were sent.
    """

    source: ByteStream
    source_side: ErrorSource
    sink: ByteStream
    sink_side: ErrorSource
    limits: TunnelLimits
    write_timeout: float
    filter: Callable[[BodyChunk, bool], Any] | None
    filter_is_async: bool
    filter_name: str
    on_read: Callable[[int], None]
    on_sent: Callable[[int], None]
    _chunk: BodyChunk = attrs.field(init=False, factory=BodyChunk)

    async def run(self, first: bytes = b"", *, ended: bool = False) -> None:
        """Pass everything on until the source has ended its output, then that.

        Args:
          first: What was read of the source already.
          ended: Whether that was all.

        Raises:
          ProxyError: a side broke, or was idle for too long.
          Exception: what the filter raised.
        """
        if first:
            await self._pass(first)
        full = False
        while not ended:
            data = await self._receive(full)
            full = len(data) == SLICE
            ended = not data
            if data:
                self.on_read(len(data))
                await self._pass(data)
        if self.filter is not None:
            await self._send(await self._filtered(self.filter, None, True))
        try:
            await self.sink.send_eof()
        except ProxyError as exc:
            raise _of(exc, self.sink_side) from exc.cause
        self.limits.half_closed()

    async def _receive(self, at_hand: bool) -> bytes:
        """Wait for bytes; where more is likely to be at hand, ask for it first."""
        try:
            if at_hand:
                await trio.lowlevel.checkpoint()
                data = self.source.receive_ready()
                if data is not None:
                    self.limits.moved()
                    return data
            return await self.limits.wait(self.source.receive_some)
        except ProxyError as exc:
            # That nothing moves any more is told of the upstream, as with HTTP's tunnels.
            idle = exc.etype == ErrorType.ReadTimedout
            raise _of(exc, ErrorSource.UPSTREAM if idle else self.source_side) from exc.cause

    async def _pass(self, data: bytes | None) -> None:
        if self.filter is not None:
            data = await self._filtered(self.filter, data, False)
        await self._send(data)

    async def _filtered(
        self, body_filter: Callable[[BodyChunk, bool], Any], data: bytes | None, last: bool
    ) -> bytes | None:
        chunk = self._chunk
        chunk.data = data
        delay = body_filter(chunk, last)
        if self.filter_is_async:
            delay = await delay
        if delay:
            if not isinstance(delay, (int, float)) or not 0 <= delay < math.inf:
                raise ValueError(
                    f"{self.filter_name} returned {delay!r}: seconds, 0 or more, are right"
                )
            await trio.sleep(delay)
        return chunk.data

    async def _send(self, data: bytes | None) -> None:
        if not data:
            return
        try:
            await self.sink.send_parts([data], self.write_timeout)
        except ProxyError as exc:
            raise _of(exc, self.sink_side) from exc.cause
        self.on_sent(len(data))


def _of(error: ProxyError, side: ErrorSource) -> ProxyError:
    """Say on whose side an error arose, unless that is known."""
    if error.esource is ErrorSource.UNSET:
        error.esource = side
    return error
