"""Expect: 100-continue, the lingering close, and a request that goes in a circle."""

from __future__ import annotations

import socket
import struct

import attrs
import pytest
import trio
import trio.testing

import trioproxy
from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    Message,
    Recorder,
    Wire,
    answers,
    keeps,
    open_gateway,
)
from tests.server._network import connect, receive_all, serving
from trioproxy import HttpPeer, ProxyError, ResponseHeader, Session
from trioproxy.server._reverse import Reverse

EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_h1_23_the_expectation_goes_on_and_the_origins_invitation_comes_back(
    autojump_clock: object,
) -> None:
    got: list[bytes] = []

    async def origin(wire: Wire) -> None:
        head = await wire.head()
        got.append(head.start)
        await wire.send(CONTINUE)
        await wire.body(head)
        got.append(bytes(head.body))
        await wire.send(OK)
        await wire.more()

    async with open_gateway(Recorder(), origin) as gateway:
        client = gateway.connect()
        await client.send(EXPECT)
        assert (await client.message()).status == 100
        await client.send(b"hello")
        response = await client.message()
        assert response.status == 200
        assert response.get("connection") == "keep-alive"
    assert got == [b"POST / HTTP/1.1", b"hello"]


async def test_h1_23_a_body_that_does_not_wait_is_passed_on(autojump_clock: object) -> None:
    got: list[Message] = []
    async with open_gateway(Recorder(), keeps(got)) as gateway:
        assert (await gateway.exchange(EXPECT + b"hello")).status == 200
    assert got[0].body == b"hello"


async def test_h1_23_a_filter_that_reads_the_body_invites_it_once(autojump_clock: object) -> None:
    async def read(session: Session, _ctx: object) -> bool:
        assert (await session.peek_request_body(3)).data == b"hel"
        assert await session.read_request_body() == b"hello"
        return False

    proxy = Recorder(hooks={"request_filter": read})

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(CONTINUE + OK)
        await wire.more()

    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(EXPECT)
        assert (await client.message()).status == 100
        await client.send(b"hello")
        # The origin's own invitation comes too late to be one.
        assert (await client.message()).status == 200


async def test_h1_23_a_final_status_before_the_body_closes_both_connections(
    autojump_clock: object,
) -> None:
    closed = trio.Event()

    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        assert await wire.at_end()
        closed.set()

    async with open_gateway(Recorder(), origin) as gateway:
        client = gateway.connect()
        await client.send(EXPECT)
        response = await client.message()
        assert response.status == 413
        assert response.get("connection") == "close"
        assert await client.at_end()
        await closed.wait()
        assert gateway.pool.statistics().idle == 0


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET.replace(b"\r\n\r\n", b"\r\nExpect: the-unexpected\r\n\r\n"), 417),
        (EXPECT.replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello", 200),
    ],
)
async def test_h1_23_other_expectations_are_417_and_old_clients_have_none(
    request_bytes: bytes, status: int, autojump_clock: object
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(request_bytes)
        assert (await client.message()).status == status
        assert await client.at_end()
    assert bool(proxy.calls) is (status == 200)


@attrs.define(eq=False)
class AnswersAtOnce(trioproxy.ProxyHttp[None]):
    """Answers without a look at the body."""

    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        await session.write_response_header(ResponseHeader(413, {"Content-Length": "3"}))
        await session.write_response_body(b"no\n", True)
        return True

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise ProxyError.status(500)


@pytest.mark.socket
async def test_h1_31_an_answer_survives_the_bytes_that_nobody_reads() -> None:
    with trio.fail_after(20):
        async with serving(AnswersAtOnce()) as running:
            for _ in range(20):
                async with await connect(running.urls[0]) as client:
                    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n"
                    await client.send_all(head + bytes(200_000))
                    # A close with unread bytes would be a reset, which destroys the answer.
                    received = await receive_all(client)
                    assert received.startswith(b"HTTP/1.1 413 ")
                    assert received.endswith(b"\r\n\r\nno\n")


@pytest.mark.socket
async def test_h1_33_a_real_reset_ends_the_session_with_pipelined_bytes_unread() -> None:
    left = trio.Event()
    reached = trio.Event()

    @attrs.define(eq=False)
    class Hangs(AnswersAtOnce):
        async def request_filter(self, session: Session, ctx: None) -> bool:
            reached.set()
            await trio.Event().wait()
            return True

        async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
            left.set()

    with trio.fail_after(10):
        async with serving(Hangs()) as running:
            client = await connect(running.urls[0])
            await client.send_all(GET * 3)
            await reached.wait()
            linger = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.socket.close()
            await left.wait()


@pytest.mark.parametrize(("rounds", "status"), [(7, 200), (8, 508)])
async def test_f_16_a_request_that_goes_in_a_circle_is_508(
    rounds: int, status: int, autojump_clock: object
) -> None:
    via = ", ".join(["1.1 trioproxy", "1.1 other"] * rounds).encode()
    async with open_gateway(Reverse([ORIGIN]), answers(OK)) as gateway:
        response = await gateway.exchange(GET[:-2] + b"Via: " + via + b"\r\n\r\n")
        assert response.status == status
        assert gateway.pool.statistics().connects == (status == 200)
