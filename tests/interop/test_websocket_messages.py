"""WebSocket messages filtered between the `websockets` client and server, over real sockets.

The client speaks HTTP/1.1, or HTTP/2 (RFC 8441) by the h2 library; the server is on Trio.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.trio.client import connect
from websockets.trio.server import ServerConnection, serve

import trioproxy
from tests.interop.test_websockets_h2 import Http2Client, WebSocket
from tests.server._network import serving
from trioproxy import HttpPeer, Session
from trioproxy.websocket import TextMessage, WebSocketOptions

pytestmark = [pytest.mark.socket, pytest.mark.interop]

LIMIT = 1 << 18


@attrs.define
class Shouting(trioproxy.ProxyHttp[None]):
    """Makes the client's text louder, and tells the client how long the origin's messages are."""

    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def request_filter(self, session: Session, ctx: None) -> bool:
        session.filter_websocket_messages(WebSocketOptions(max_message_bytes=LIMIT))
        return False

    async def downstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: None, final_hop: bool
    ) -> bytes | None:
        if isinstance(custom_message, TextMessage):
            return TextMessage(custom_message.text.upper())
        return custom_message


@attrs.define
class Echo:
    """Sends every message back, and keeps how connections ended."""

    closed: list[tuple[int | None, str | None]] = attrs.field(factory=list)
    extensions: list[str] = attrs.field(factory=list)

    async def __call__(self, connection: ServerConnection) -> None:
        self.extensions += [type(each).__name__ for each in connection.protocol.extensions]
        try:
            async for message in connection:
                if message == "CLOSE":
                    await connection.aclose(4002, "as you wish")
                elif message == "FRAGMENTS":
                    await connection.send(["frag", "", "men", "ts"])
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            self.closed.append((connection.close_code, connection.close_reason))


@asynccontextmanager
async def proxied(echo: Echo, **conf: object) -> AsyncIterator[str]:
    """Run the server behind the proxy; gives the proxy's authority."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(lambda task_status: serve(echo, 0, host="127.0.0.1", max_size=None, task_status=task_status))  # fmt: skip
            port = server.listeners[0].socket.getsockname()[1]
            async with serving(Shouting(HttpPeer("127.0.0.1", port)), **conf) as running:
                yield running.urls[0].removeprefix("http://")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "deflate",
    [
        None,
        ClientPerMessageDeflateFactory(),
        ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=9),
        ClientPerMessageDeflateFactory(
            server_no_context_takeover=True, client_no_context_takeover=True
        ),
    ],
    ids=["plain", "deflate", "small windows", "no takeover"],
)
async def test_messages_of_all_kinds_and_sizes(
    deflate: ClientPerMessageDeflateFactory | None,
) -> None:
    echo = Echo()
    extensions = None if deflate is None else [deflate]
    async with (
        proxied(echo) as authority,
        connect(
            f"ws://{authority}/", extensions=extensions, compression=None, max_size=None
        ) as client,
    ):
        for message in ("hello", "", "Grüße €", "x" * 70_000):
            await client.send(message)
            assert await client.recv() == message.upper()
        for data in (b"", os.urandom(125), os.urandom(70_000), bytes(LIMIT)):
            await client.send(data)
            assert await client.recv() == data
        await client.send(["in ", "frag", "ments"])
        assert await client.recv() == "IN FRAGMENTS"
        await client.send("fragments")
        assert await client.recv() == "fragments"
        latency = await client.ping()
        with trio.fail_after(5):
            await latency.wait()
        await client.aclose(4001, "bye")
        assert (client.close_code, client.close_reason) == (4001, "bye")
    assert echo.closed == [(4001, "bye")]
    assert echo.extensions == ([] if deflate is None else ["PerMessageDeflate"])


async def test_a_server_closes_with_its_own_code() -> None:
    echo = Echo()
    async with proxied(echo) as authority, connect(f"ws://{authority}/") as client:
        await client.send("close")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (4002, "as you wish")


async def test_a_message_too_large_is_refused_with_1009() -> None:
    echo = Echo()
    async with proxied(echo) as authority, connect(f"ws://{authority}/") as client:
        await client.send(bytes(LIMIT + 1))  # of which little is sent
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1009
    assert [code for code, _ in echo.closed] == [1001]


async def test_many_websockets_at_once() -> None:
    echo = Echo()

    async def talk(url: str, number: int) -> None:
        async with connect(url) as client:
            for turn in range(20):
                await client.send(f"message {number} {turn}")
                assert await client.recv() == f"MESSAGE {number} {turn}"

    async with proxied(echo) as authority, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(talk, f"ws://{authority}/", number)
    assert echo.closed == [(1000, "")] * 20


async def test_the_same_over_http_2() -> None:
    echo = Echo()

    def talk(authority: str) -> None:
        host, _, port = authority.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as sock:
            client = Http2Client(sock)
            one, two = WebSocket.open(client, "/one"), WebSocket.open(client, "/two")
            assert (one.status, two.status) == ("200", "200")
            for size in (1, 125, 126, 65536):
                message = os.urandom(size)
                one.send(message)
                two.frames.send_text(b"text" * size)
                two.put()
                assert one.receive() == (Opcode.BINARY, message)
                assert two.receive() == (Opcode.TEXT, b"TEXT" * size)
            one.send(bytes(LIMIT // 2))
            assert one.receive() == (Opcode.BINARY, bytes(LIMIT // 2))
            one.frames.send_close(4001, "bye")
            one.put()
            assert one.receive() == (Opcode.CLOSE, b"\x0f\xa1bye")
            one.end()
            two.frames.send_text(b"\xff")
            two.put()
            kind, data = two.receive()
            assert (kind, data[:2]) == (Opcode.CLOSE, b"\x03\xef")
            assert client.reset.keys() <= {two.stream}

    async with proxied(echo, h2c=True) as authority:
        await trio.to_thread.run_sync(talk, authority)
    assert echo.closed == [(4001, "bye"), (1001, "")]
