"""What the tests of the HTTP/2 rows share: a gateway, its client frame by frame, and a neighbour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from hyperframe.frame import DataFrame, Frame, RstStreamFrame

from tests._support.h2_wire import H2Wire, Head, request
from tests._support.matrix import (
    H1,
    H2C,
    OK,
    Exchange,
    Matrix,
    Origins,
    Outcome,
    Pairing,
    open_matrix,
)
from tests._support.recording import Recorder
from trioproxy import ServerConf
from trioproxy.testing._network import PLAIN, Link


@attrs.define(eq=False)
class Gateway:
    """A gateway with an HTTP/2 connection under test, and another one that must not suffer."""

    matrix: Matrix
    recorder: Recorder
    neighbour: Any
    _served_at: float = 0.0

    async def frames(self, *, start: bool = True) -> H2Wire:
        """Return a new connection for a script of frames; see `Matrix.frames`."""
        return await self.matrix.frames(start=start)

    async def neighbour_is_served(self) -> None:
        """Check that the connection that was there before everything else still works."""
        if trio.current_time() - self._served_at > 50:  # it may have ended by itself
            self.neighbour = await self.matrix.connect()
        self._served_at = trio.current_time()
        response = await self.neighbour.exchange(target="/neighbour")
        assert (response.status, response.body) == (200, b"hello")

    def latest(self) -> Any:
        """Return the server's end of the newest HTTP/2 connection that is still there."""
        connections: list[Any] = list(self.matrix.running._server.connections)
        return max(
            connections, key=lambda each: int(str(each.info.peer).rpartition(":")[2])
        )._connection

    def limits_hit(self) -> dict[str, int]:
        """Return the counters of limits that ended connections."""
        return dict(self.matrix.running.statistics().limits_hit)


async def never(exchange: Exchange) -> None:
    """Read the head of a request and keep it waiting; answer neighbours."""
    head = await exchange.head()
    if b"/neighbour" in head.start:
        await exchange.respond(200, [("content-length", "5")], b"hello")
    else:
        await exchange.gone()


@asynccontextmanager
async def h2_gateway(
    origins: Outcome | Origins = OK,
    *,
    down: Any = H2C,
    up: Any = H1,
    recorder: Recorder | None = None,
    conf: ServerConf | None = None,
    link: Link = PLAIN,
    check_windows: bool = True,
) -> AsyncIterator[Gateway]:
    """Run a gateway; at the end a neighbour of the connections under test is still served."""
    recorder = Recorder() if recorder is None else recorder
    async with open_matrix(
        recorder,
        origins,
        Pairing(down, up),
        conf=conf,
        link=link,
        check_windows=check_windows,
    ) as matrix:
        gateway = Gateway(matrix, recorder, await matrix.connect(), trio.current_time())
        await gateway.neighbour_is_served()
        recorder.calls.clear()
        yield gateway
        await gateway.neighbour_is_served()


async def get(wire: H2Wire, stream: int, path: str = "/path") -> None:
    """Send a whole GET request."""
    await wire.headers(stream, request("GET", path), end=True)


async def response(wire: H2Wire, stream: int) -> tuple[str | None, bytes]:
    """Read until the end of a response, or find it among what was read; status and content.

    Raises:
      AssertionError: the stream was reset before its end.
    """
    while True:
        status, body = None, b""
        for frame in wire.received:
            if frame.stream_id != stream:
                continue
            if isinstance(frame, Head) and not (frame.get(":status") or "1").startswith("1"):
                status = frame.get(":status")
            elif isinstance(frame, DataFrame):
                body += frame.data
            assert not isinstance(frame, RstStreamFrame), frame
            if "END_STREAM" in frame.flags:
                return status, body
        await wire.until(Frame, stream)


async def assert_serves(wire: H2Wire, stream: int) -> None:
    """Check that the connection under test itself still serves."""
    await get(wire, stream, "/neighbour")
    assert await response(wire, stream) == ("200", b"hello")


async def flood(wire: H2Wire, frames: Sequence[Frame], *, times: int = 1) -> None:
    """Send frames over and over until the other side ends the connection, or all are out."""
    for _ in range(times):
        try:
            await wire.send(*frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
