"""Transports in memory on which what the other party sends may stand for a fault."""

from __future__ import annotations

from trioproxy import ErrorType, ProxyError
from trioproxy.transport._byte_stream import StreamAdapter

#: What the other party sends, as a piece of its own, where it resets the connection.
RESET = b"RESET"


class Resetting(StreamAdapter):
    """A transport that breaks where `RESET` is received."""

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        data = await super().receive_some(max_bytes)
        if data == RESET:
            self.close_now()
            raise ProxyError.explain(ErrorType.ReadError, "reset by peer")
        return data
