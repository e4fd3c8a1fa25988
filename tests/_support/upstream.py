"""Connections to nowhere, for what only hands them out."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from trioproxy import ErrorType, ProxyError
from trioproxy._info import ConnectionInfo
from trioproxy._messages import RequestEvent, ResponseEvent
from trioproxy.streams._abc import UpstreamConnection, UpstreamStream


class FakeStream(UpstreamStream):
    """An exchange that only takes its place."""

    def __init__(self, connection: FakeConnection) -> None:
        self.connection = connection
        self.info = connection.info
        self.reused = connection.served > 0
        self.read_timeout = self.write_timeout = math.inf
        self.body_bytes_received = 0
        self.write_pending_time = 0.0
        self._released = False

    @property
    def anything_sent(self) -> bool:
        return False

    def fileno(self) -> int:
        return -1

    async def receive_batch(self) -> list[ResponseEvent]:
        raise NotImplementedError

    async def send(self, *events: RequestEvent) -> None:
        raise NotImplementedError

    def release(self) -> None:
        if not self._released:
            self._released = True
            self.connection.exchanges.remove(self)


def _nobody(_: UpstreamConnection) -> None:
    pass


class FakeConnection(UpstreamConnection):
    """A connection that tells of itself what a test wants; no bytes flow."""

    def __init__(self, limit: int | None = None, *, settled: bool = True) -> None:
        """Make one that carries so many exchanges at once; None for one after another."""
        self._settled = settled
        self.info = ConnectionInfo(None, "nowhere")
        self.dead = False
        self.served = 0
        self.idle_timeout = math.inf
        self.spoke_out_of_turn = False
        self.on_idle_end: Callable[[UpstreamConnection], None] = _nobody
        self.on_room: Callable[[UpstreamConnection], None] = _nobody
        self.limit = 1 if limit is None else limit
        self.exchanges: list[FakeStream] = []
        self.most = 0
        self.stale = False
        self.refuses = False
        self.failure: Exception | None = None
        self.armed: list[float] = []
        self._shared = limit is not None
        self._going = False
        self._wake: trio.Event | None = None

    @property
    def shared(self) -> bool:
        return self._shared

    @property
    def room(self) -> int:
        gone = self.dead or self._going
        limit = self.limit if self._settled else 1
        return 0 if gone else max(0, limit - len(self.exchanges))

    @property
    def settled(self) -> bool:
        return self._settled

    @property
    def busy(self) -> int:
        return len(self.exchanges)

    async def run(self) -> None:
        """Wait for the end."""
        try:
            if not self.dead:
                self._wake = trio.Event()
                await self._wake.wait()
            if self.failure is not None:
                raise self.failure
        finally:
            self.dead = True
            if not self.exchanges:
                self.on_idle_end(self)

    def start(self) -> FakeStream:
        assert len(self.exchanges) < (self.limit if self._settled else 1), "over its room"
        if self.dead or self.refuses:
            raise ProxyError.new_up(ErrorType.ConnectionClosed)
        stream = FakeStream(self)
        self.exchanges.append(stream)
        self.most = max(self.most, len(self.exchanges))
        self.served += 1
        return stream

    def arm_idle(self, seconds: float) -> None:
        self.armed.append(seconds)

    def usable(self) -> bool:
        return not self.dead and not self.stale and self.room > 0

    def close(self) -> None:
        self.dead = True
        if self._wake is not None:
            self._wake.set()

    def go_away(self) -> None:
        """Take no new exchanges."""
        self._going = True
        self.on_room(self)

    def allow(self, limit: int) -> None:
        """Carry more at once, or less; say so for the first time, perhaps."""
        self._settled = True
        self.limit = limit
        self.on_room(self)
