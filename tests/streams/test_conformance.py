"""Every message stream holds the contract of `MessageStream`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trioproxy._info import ConnectionInfo
from trioproxy.codec._h1 import HeadLimits, RequestReader, ResponseReader
from trioproxy.streams._abc import DownstreamStream, UpstreamStream
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.streams._h1_server import H1ServerConnection, H1ServerOptions
from trioproxy.testing import MemoryDownstream, check_message_stream, memory_exchange
from trioproxy.transport._byte_stream import StreamAdapter

Accept = Callable[[], Awaitable[DownstreamStream]]
Exchanges = Callable[[], Awaitable[tuple[UpstreamStream, Accept]]]

INFO = ConnectionInfo("127.0.0.1:80", "127.0.0.1:5000")


@asynccontextmanager
async def memory() -> AsyncIterator[Exchanges]:
    async def exchange() -> tuple[UpstreamStream, Accept]:
        up, down = memory_exchange(INFO)

        async def accept() -> MemoryDownstream:
            return down

        return up, accept

    yield exchange


@asynccontextmanager
async def http1() -> AsyncIterator[Exchanges]:
    """An HTTP/1 client and server over a transport that holds nothing back."""
    near, far = trio.testing.lockstep_stream_pair()
    client = H1ClientConnection(StreamAdapter(near), INFO, ResponseReader(HeadLimits()))
    server = H1ServerConnection(
        StreamAdapter(far), INFO, RequestReader(HeadLimits()), H1ServerOptions()
    )
    handed, handing = trio.open_memory_channel[DownstreamStream](0)

    async def handler(stream: DownstreamStream) -> None:
        ended = trio.Event()
        close = stream.aclose

        async def aclose() -> None:
            await close()
            ended.set()

        stream.aclose = aclose  # type: ignore[method-assign]
        await handed.send(stream)
        await ended.wait()

    async def exchange() -> tuple[UpstreamStream, Accept]:
        return client.start(), handing.receive

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        nursery.start_soon(server.run, handler)
        yield exchange
        client.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("connection", [memory, http1])
async def test_contract(connection: Callable[[], object], autojump_clock: object) -> None:
    await check_message_stream(connection)  # type: ignore[arg-type]
