"""CONNECT over real sockets: what a reset is, who is asked by ``reverse``, and how it stops."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.server._network import (
    Handler,
    Program,
    an_origin,
    answering,
    ask,
    connect,
    get,
    receive_all,
    receive_until,
    serving,
)
from trioproxy import HttpPeer
from trioproxy.server._reverse import Reverse

pytestmark = pytest.mark.socket

NO_LINGER = struct.pack("ii", 1, 0)


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


@asynccontextmanager
async def tunnel(handler: Handler) -> AsyncIterator[trio.SocketStream]:
    """Open a tunnel to an origin of bytes through ``reverse``."""
    with trio.fail_after(20):
        async with an_origin(handler) as url:
            target = url.removeprefix("http://")
            proxy = Reverse([HttpPeer.parse("http://127.0.0.1:1")])
            async with (
                serving(proxy, allow_connect=["127.0.0.1:*"]) as running,
                await connect(running.urls[0]) as stream,
            ):
                asked = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
                await stream.send_all(asked.encode())
                head = b""
                while not head.endswith(b"\r\n\r\n"):  # what is behind it is the tunnel's
                    head += await stream.receive_some(1)
                assert head.startswith(b"HTTP/1.1 200 Connection established\r\n")
                assert head.count(b"\r\n") == 3  # Date, and nothing that tells of content
                yield stream


async def test_a_tunnel_carries_much_both_ways_and_ends() -> None:
    blob = bytes(range(256)) * 8192
    async with tunnel(echo) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(blob)
            await stream.send_eof()

        nursery.start_soon(send)
        assert await receive_all(stream) == blob


async def test_an_end_of_the_origin_is_an_end_and_a_reset_is_a_reset() -> None:
    async def ends(stream: trio.SocketStream) -> None:
        await stream.send_all(b"all of it")
        await stream.send_eof()
        await receive_all(stream)

    async def resets(stream: trio.SocketStream) -> None:
        await stream.send_all(b"half of")
        await stream.receive_some(1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

    async with tunnel(ends) as stream:
        assert await receive_all(stream) == b"all of it"
    async with tunnel(resets) as stream:
        assert await stream.receive_some() == b"half of"
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_reset_of_the_client_is_one_for_the_origin() -> None:
    seen: list[str] = []
    done = trio.Event()

    async def origin(stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(b"hello")
            await receive_all(stream)
            seen.append("end")
        except trio.BrokenResourceError:
            seen.append("reset")
        finally:
            done.set()

    async with tunnel(origin) as stream:
        assert await stream.receive_some() == b"hello"
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        await stream.aclose()
        await done.wait()
    assert seen == ["reset"]


async def test_reverse_sends_connect_to_its_target_and_all_else_to_its_origins() -> None:
    with trio.fail_after(20):
        async with (
            an_origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nweb")) as web,
            an_origin(echo) as there,
        ):
            proxy = Reverse([HttpPeer.parse(web)], rewrite_host=True)
            target = there.removeprefix("http://")
            async with serving(proxy, allow_connect=[target]) as running:
                (url,) = running.urls
                for _ in range(2):
                    assert (await ask(url, get("/"))).body == b"web"
                    async with await connect(url) as stream:
                        head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
                        await stream.send_all(head.encode() + b"hello")
                        reply = await receive_until(stream, b"\r\n\r\nhello")
                        assert reply.startswith(b"HTTP/1.1 200 ")
                        await stream.send_eof()
                        assert await receive_all(stream) == b""
                elsewhere = web.removeprefix("http://")
                refused = f"CONNECT {elsewhere} HTTP/1.1\r\nHost: {elsewhere}\r\n\r\n"
                answer = await ask(url, refused.encode())
                assert answer.status == 403
                assert answer.fields["connection"] == "close"
                assert running.statistics().refusals == ((403, 1),)
                assert running.statistics().pool.leased == 0


async def test_reverse_answers_502_where_the_target_cannot_be_connected_to() -> None:
    from examples.__main__ import nobody

    with trio.fail_after(20), nobody() as dead:
        target = dead.removeprefix("http://")
        # There are origins that could be asked in its place, and must not be.
        async with an_origin(echo) as url:
            proxy = Reverse([HttpPeer.parse(url)] * 3)
            async with serving(proxy, allow_connect=["*:*"]) as running:
                asked = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
                reply = await ask(running.urls[0], asked.encode())
                assert reply.status == 502
                assert running.statistics().retries == 0


async def test_a_stop_waits_for_a_tunnel_until_grace_is_over(tmp_path: object) -> None:
    with trio.fail_after(30):
        async with an_origin(echo) as url:
            target = url.removeprefix("http://")
            options = ("--allow-connect", target, "--grace", "1", "--bind", "127.0.0.1:0")
            async with Program.start("trioproxy", "reverse", url, *options) as program:
                address = await program.until(r"listening on (http://\S+)")
                async with await connect(address) as stream:
                    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
                    await stream.send_all(head.encode() + b"hello")
                    await receive_until(stream, b"hello")
                    program.process.terminate()
                    # It listens no more, and the tunnel is still there.
                    with contextlib.suppress(OSError):
                        while True:
                            async with await connect(address):
                                await trio.sleep(0.01)
                    await stream.send_all(b"still here")
                    assert await receive_until(stream, b"still here") == b"still here"
                    with contextlib.suppress(trio.BrokenResourceError):
                        assert await stream.receive_some() == b""
                assert await program.ends() == 0
                assert "1 connections were still busy after grace" in program.err
