"""The `websockets` client and server through ``trioproxy reverse``, over real sockets."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import websockets.sync.client
import websockets.sync.server
from websockets.exceptions import ConnectionClosed

from tests.server._network import serving
from trioproxy import HttpPeer
from trioproxy.server._reverse import Reverse

pytestmark = [pytest.mark.socket, pytest.mark.interop]

Connection = websockets.sync.server.ServerConnection


class Echo:
    """Sends every message back, and keeps how connections ended."""

    def __init__(self) -> None:
        self.closed: list[tuple[int | None, str | None]] = []
        self.open: list[Connection] = []
        self.ended = threading.Event()

    def __call__(self, connection: Connection) -> None:
        self.open.append(connection)
        try:
            for message in connection:
                if message == "close":
                    connection.close(4002, "as you wish")
                elif message == "fragments":
                    connection.send(["frag", "men", "ts"])
                else:
                    connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            self.closed.append((connection.close_code, connection.close_reason))
            self.ended.set()


@asynccontextmanager
async def proxied(echo: Echo) -> AsyncIterator[str]:
    """Run the server behind a proxy; gives the proxy's URL."""
    server = websockets.sync.server.serve(echo, "127.0.0.1", 0, max_size=None)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        port = server.socket.getsockname()[1]
        with trio.fail_after(30):
            async with serving(Reverse([HttpPeer("127.0.0.1", port)])) as running:
                yield running.urls[0].replace("http://", "ws://")
    finally:
        server.shutdown()
        thread.join()


def connect(url: str) -> websockets.sync.client.ClientConnection:
    return websockets.sync.client.connect(url, max_size=None, proxy=None)


async def test_messages_of_all_sizes_fragments_and_compression_come_back() -> None:
    def talk(url: str) -> None:
        with connect(url) as client:
            assert client.response is not None
            assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
            for size in (1, 125, 126, 65536, 8 << 20):
                message = os.urandom(size)
                client.send(message)
                assert client.recv() == message
            client.send("fragments")
            assert client.recv() == "fragments"

    async with proxied(Echo()) as url:
        await trio.to_thread.run_sync(talk, url)


async def test_close_codes_go_both_ways() -> None:
    def talk(url: str) -> tuple[int | None, str | None]:
        with connect(url) as client:
            client.close(4001, "bye")
        with connect(url) as client:
            client.send("close")
            with pytest.raises(ConnectionClosed):
                client.recv()
            return client.close_code, client.close_reason

    echo = Echo()
    async with proxied(echo) as url:
        assert await trio.to_thread.run_sync(talk, url) == (4002, "as you wish")
    assert echo.closed == [(4001, "bye"), (4002, "as you wish")]


#: The start of a masked and of an unmasked binary message of 65,535 bytes.
BEGUN_BY_CLIENT = b"\x82\xfe\xff\xff" + bytes(4) + bytes(1000)
BEGUN_BY_SERVER = b"\x82\x7e\xff\xff" + bytes(1000)


async def test_a_side_that_is_killed_in_the_middle_of_a_message_is_noticed_by_the_other_soon() -> (
    None
):
    def talk(url: str, echo: Echo) -> None:
        with connect(url) as client:
            client.send("hello")
            assert client.recv() == "hello"
            client.socket.sendall(BEGUN_BY_CLIENT)
            client.socket.shutdown(socket.SHUT_RDWR)
            assert echo.ended.wait(2), "the origin did not notice that the client was gone"
        with connect(url) as client:
            client.send("hello")
            assert client.recv() == "hello"
            echo.open[-1].socket.sendall(BEGUN_BY_SERVER)
            echo.open[-1].socket.shutdown(socket.SHUT_RDWR)
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=2)

    echo = Echo()
    async with proxied(echo) as url:
        await trio.to_thread.run_sync(talk, url, echo)
