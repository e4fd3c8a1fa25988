"""Transports in memory on which what the other party sends may stand for a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


class Faulty(StreamAdapter):
    """A transport that breaks at the n-th call of any of a run's transports."""

    __slots__ = ("_broken", "_calls", "_nth")

    def __init__(self, stream: Any, calls: list[int], nth: int) -> None:
        super().__init__(stream)
        self._calls = calls
        self._nth = nth
        self._broken = False

    def _count(self, etype: ErrorType) -> None:
        self._calls[0] += 1
        if self._calls[0] == self._nth:
            self._broken = True
        if self._broken:
            raise ProxyError.explain(etype, "reset by the test")

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        data = await super().receive_some(max_bytes)
        self._count(ErrorType.ReadError)
        return data

    async def send_parts(self, parts: Any, timeout: float) -> None:
        self._count(ErrorType.WriteError)
        await super().send_parts(parts, timeout)


def failing(nth: int, calls: list[int]) -> Callable[[Any], StreamAdapter]:
    """Return what makes a run's transports, of which the n-th call fails."""
    return lambda stream: Faulty(stream, calls, nth)
