"""A stream towards the origin with something laid over it: what both kinds of that share."""

from __future__ import annotations

from .._messages import RequestEvent
from ..streams._abc import UpstreamStream


class OverStream(UpstreamStream):
    """An upstream stream around another one; whoever derives from it says what is received."""

    def __init__(self, inner: UpstreamStream) -> None:
        self._inner = inner
        self.info = inner.info
        self.reused = inner.reused
        self.messages = inner.messages
        self.body_bytes_received = 0
        self.write_pending_time = 0.0

    @property
    def anything_sent(self) -> bool:
        """Whether a byte of the request may have reached the wire."""
        return self._inner.anything_sent

    @property
    def read_timeout(self) -> float:
        """Seconds before a parked `receive_batch` gives up."""
        return self._inner.read_timeout

    @read_timeout.setter
    def read_timeout(self, seconds: float) -> None:
        self._inner.read_timeout = seconds

    @property
    def write_timeout(self) -> float:
        """Seconds without progress before a parked `send` gives up."""
        return self._inner.write_timeout

    @write_timeout.setter
    def write_timeout(self, seconds: float) -> None:
        self._inner.write_timeout = seconds

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1."""
        return self._inner.fileno()

    async def send(self, *events: RequestEvent) -> None:
        """Send events of the request to the origin."""
        await self._inner.send(*events)

    def release(self) -> None:
        """Leave the exchange with the origin."""
        self._inner.release()


class CountedStream(OverStream):
    """One that changes no content: what is counted is counted by the stream around which it is."""

    @property
    def body_bytes_received(self) -> int:
        """Payload bytes of the response received so far."""
        return self._inner.body_bytes_received

    @body_bytes_received.setter
    def body_bytes_received(self, count: int) -> None:
        self._inner.body_bytes_received = count
