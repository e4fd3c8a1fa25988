"""Every message stream holds the contract of `MessageStream`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from examples._chat import LengthPrefixed
from trioproxy._info import ConnectionInfo
from trioproxy.codec._h1 import HeadLimits, RequestReader, ResponseReader
from trioproxy.codec._h2 import H2Codec, H2Options
from trioproxy.streams._abc import DownstreamStream, UpstreamStream
from trioproxy.streams._custom_client import CustomClientConnection
from trioproxy.streams._custom_server import CustomServerConnection, CustomServerOptions
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.streams._h1_server import H1ServerConnection, H1ServerOptions
from trioproxy.streams._h2_client import H2ClientConnection, H2ClientOptions
from trioproxy.streams._h2_server import H2ServerConnection, H2ServerOptions
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
    async with _running(client, server) as exchange:
        yield exchange


@asynccontextmanager
async def http2() -> AsyncIterator[Exchanges]:
    """An HTTP/2 client and server, likewise."""
    near, far = trio.testing.lockstep_stream_pair()
    client = H2ClientConnection(
        StreamAdapter(near), INFO, _codec(server=False), H2ClientOptions(max_streams=100)
    )
    server = H2ServerConnection(StreamAdapter(far), INFO, _codec(server=True), H2ServerOptions())
    async with _running(client, server) as exchange:
        yield exchange


@asynccontextmanager
async def custom() -> AsyncIterator[Exchanges]:
    """A protocol of the user's, likewise."""
    near, far = trio.testing.lockstep_stream_pair()
    protocol = LengthPrefixed()
    client = CustomClientConnection(StreamAdapter(near), INFO, protocol.client())
    server = CustomServerConnection(
        StreamAdapter(far), INFO, protocol.server(), CustomServerOptions()
    )
    async with _running(client, server) as exchange:
        yield exchange


def _codec(*, server: bool) -> H2Codec:
    return H2Codec(server=server, options=H2Options(), now=trio.current_time)


@asynccontextmanager
async def _running(
    client: H1ClientConnection | H2ClientConnection | CustomClientConnection,
    server: H1ServerConnection | H2ServerConnection | CustomServerConnection,
) -> AsyncIterator[Exchanges]:
    """Run both ends of a connection."""
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


@pytest.mark.parametrize("connection", [memory, http1, http2, custom])
async def test_contract(connection: Callable[[], object], autojump_clock: object) -> None:
    await check_message_stream(connection)  # type: ignore[arg-type]
