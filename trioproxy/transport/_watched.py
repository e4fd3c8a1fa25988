"""A byte stream whose end somebody wants to hear of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .._info import TcpInfo
from ._byte_stream import SLICE, ByteStream


class WatchedStream(ByteStream):
    """Another stream, and a function that is called once when it is closed."""

    __slots__ = ("_inner", "_on_close")

    def __init__(self, inner: ByteStream, on_close: Callable[[], None]) -> None:
        """Take over a stream.

        Args:
          inner: The stream.
          on_close: Called behind its closing; it must not raise.
        """
        self._inner = inner
        self._on_close: Callable[[], None] | None = on_close

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        """Wait for bytes; see `ByteStream.receive_some`."""
        return await self._inner.receive_some(max_bytes)

    def receive_ready(self, max_bytes: int = SLICE) -> bytes | None:
        """Return what is there; see `ByteStream.receive_ready`."""
        return self._inner.receive_ready(max_bytes)

    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        """Send all parts; see `ByteStream.send_parts`."""
        await self._inner.send_parts(parts, timeout)

    def send_ready(self, data: bytes) -> int:
        """Send what can be sent; see `ByteStream.send_ready`."""
        return self._inner.send_ready(data)

    async def send_eof(self) -> None:
        """End the output."""
        await self._inner.send_eof()

    def close_now(self) -> None:
        """Close at once, and tell."""
        self._inner.close_now()
        self._tell()

    def abort(self) -> None:
        """Close at once by a reset, and tell."""
        self._inner.abort()
        self._tell()

    def _tell(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._inner.fileno()

    def tcp_info(self) -> TcpInfo | None:
        """Return what the kernel knows; see `ByteStream.tcp_info`."""
        return self._inner.tcp_info()
