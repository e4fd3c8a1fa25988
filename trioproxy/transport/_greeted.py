"""A byte stream of which something was read already."""

from __future__ import annotations

import trio

from ._byte_stream import SLICE, ByteStream
from ._watched import WatchedStream


class GreetedStream(WatchedStream):
    """Another stream, and the bytes that come before all that it receives."""

    __slots__ = ("_received",)

    def __init__(self, inner: ByteStream, received: bytes) -> None:
        """Take over a stream.

        Args:
          inner: The stream.
          received: What was read from it.
        """
        super().__init__(inner, _nobody)
        self._received = received

    def _take(self, most: int) -> bytes:
        data, self._received = self._received[:most], self._received[most:]
        return data

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        """Return what was read already, then wait for more; see `ByteStream.receive_some`."""
        if self._received:
            await trio.lowlevel.checkpoint()
            return self._take(max_bytes)
        return await super().receive_some(max_bytes)

    def receive_ready(self, max_bytes: int = SLICE) -> bytes | None:
        """Return what is there; see `ByteStream.receive_ready`."""
        return self._take(max_bytes) if self._received else super().receive_ready(max_bytes)


def _nobody() -> None:
    """Stand in for somebody who wants to hear of the end."""
