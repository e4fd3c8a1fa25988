"""Looking at a stream's first bytes before there is an upstream: all of them still go on."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.streams import (
    UPSTREAM,
    UPSTREAM_2,
    Ctx,
    Recorder,
    is_cut,
    open_streams,
    receive,
    receive_all,
    send,
    send_and_end,
)
from trioproxy import ErrorSource, ErrorType, ProxyError
from trioproxy.stream import ClientHello, StreamPeer, StreamSession
from trioproxy.testing._network import Link, Path


def hello_of(name: str | None, *alpn: str) -> bytes:
    """Return the ClientHello that OpenSSL makes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = hello_of("two.example", "h2", "imap")


class Sniffer(Recorder):
    """Chooses a peer by what `look` finds out, and keeps that."""

    def __init__(self, look: Any) -> None:
        super().__init__((UPSTREAM, UPSTREAM_2))
        self.found: list[Any] = []

        async def upstream_peer(session: StreamSession, _ctx: Ctx) -> StreamPeer:
            self.found.append(await look(session))
            return UPSTREAM

        self.hooks["upstream_peer"] = upstream_peer


# -- peek ------------------------------------------------------------------------------------------


async def test_peek_returns_what_is_there_and_consumes_nothing(autojump_clock: MockClock) -> None:
    async def look(session: StreamSession) -> list[bytes]:
        return [await session.peek(), await session.peek(3), await session.peek(100)]

    proxy = Sniffer(look)
    async with open_streams(proxy) as streams:
        client = streams.connect()
        await send(client, b"SSH-2.0-me\r\n")
        assert await receive(await streams.upstream(), 12) == b"SSH-2.0-me\r\n"
    assert proxy.found == [[b"SSH-2.0-me\r\n", b"SSH", b"SSH-2.0-me\r\n"]]


async def test_peek_waits_for_as_many_bytes_as_it_is_asked_for(autojump_clock: MockClock) -> None:
    async def look(session: StreamSession) -> bytes:
        return await session.peek(8, at_least=5)

    proxy = Sniffer(look)
    async with open_streams(proxy) as streams:
        client = streams.connect()
        for piece in (b"ab", b"cd", b"efghij"):
            assert proxy.found == []
            await send(client, piece)
            await trio.sleep(1)
        assert proxy.found == [b"abcdefgh"]
        assert await receive(await streams.upstream(), 10) == b"abcdefghij"


async def test_peek_returns_less_where_the_output_has_ended(autojump_clock: MockClock) -> None:
    async def look(session: StreamSession) -> bytes:
        return await session.peek(8, at_least=8)

    proxy = Sniffer(look)
    async with open_streams(proxy) as streams:
        client = streams.connect()
        await send_and_end(client, b"abc")
        assert await receive_all(await streams.upstream()) == b"abc"
    assert proxy.found == [b"abc"]


@pytest.mark.parametrize(("timeout", "expected"), [(None, 15), (3.0, 3)])
async def test_peek_does_not_wait_for_ever(
    timeout: float | None, expected: float, autojump_clock: MockClock
) -> None:
    async def look(session: StreamSession) -> bytes:
        return await session.peek(timeout=timeout)

    proxy = Sniffer(look)
    async with open_streams(proxy) as streams:
        assert await is_cut(streams.connect())
        assert trio.current_time() == expected
        await streams.ended()
    error = proxy.the("logging").args["e"]
    assert (error.etype, error.esource) == (ErrorType.ReadTimedout, ErrorSource.DOWNSTREAM)
    assert f"1 bytes of the client did not come within {expected} s" in str(error)


async def test_a_silent_client_may_be_taken_for_one_that_listens(
    autojump_clock: MockClock,
) -> None:
    async def look(session: StreamSession) -> bytes:
        try:
            return await session.peek(timeout=0.2)
        except ProxyError:
            return b""

    proxy = Sniffer(look)
    async with open_streams(proxy) as streams:
        client = streams.connect()
        upstream = await streams.upstream()
        await send(upstream, b"220 ready")
        assert await receive(client, 9) == b"220 ready"
    assert proxy.found == [b""]


@pytest.mark.parametrize(("limit", "at_least"), [(65537, 1), (4, 5), (-1, -1), (1, -1)])
async def test_numbers_that_cannot_be_are_refused(
    limit: int, at_least: int, autojump_clock: MockClock
) -> None:
    async def look(session: StreamSession) -> bytes:
        with pytest.raises(ValueError, match=rf"^at_least={at_least}, limit={limit}: 0 <= "):
            await session.peek(limit, at_least=at_least)
        return b"refused"

    proxy = Sniffer(look)
    async with open_streams(proxy) as streams:
        await streams.joined()
    assert proxy.found == [b"refused"]


async def test_peeking_at_the_most_there_may_be(autojump_clock: MockClock) -> None:
    async def look(session: StreamSession) -> int:
        return len(await session.peek(65536, at_least=65536))

    proxy = Sniffer(look)
    async with open_streams(proxy) as streams:
        client = streams.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, client, b"x" * 300_000)
            assert len(await receive_all(await streams.upstream())) == 300_000
    assert proxy.found == [65536]


async def test_once_bytes_flow_there_is_nothing_to_peek_at(autojump_clock: MockClock) -> None:
    told: list[str] = []

    async def data_filter(session: StreamSession, *_args: object) -> None:
        for look in (session.peek, session.client_hello):
            with pytest.raises(RuntimeError, match="nothing can be read ahead any more") as caught:
                await look()
            told.append(str(caught.value))

    recorder = Recorder(hooks={"downstream_data_filter": data_filter})
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await send(client, b"x")
        assert await receive(upstream, 1) == b"x"
        recorder.hooks.clear()
    assert len(told) == 2


async def test_it_can_be_looked_at_until_connected_to_upstream_has_returned(
    autojump_clock: MockClock,
) -> None:
    seen: list[bytes] = []

    async def connected(session: StreamSession, *_args: object) -> None:
        seen.append(await session.peek(at_least=4))

    recorder = Recorder(hooks={"connected_to_upstream": connected})
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await send(client, b"late")
        assert await receive(upstream, 4) == b"late"
    assert seen == [b"late"]


# -- a ClientHello ---------------------------------------------------------------------------------


async def the_hello(session: StreamSession) -> ClientHello | None:
    return await session.client_hello()


@pytest.mark.parametrize("size", [1, 7, 100, len(HELLO) - 1, 65536])
async def test_a_client_hello_is_read_however_it_is_cut(
    size: int, autojump_clock: MockClock
) -> None:
    proxy = Sniffer(the_hello)
    async with open_streams(proxy) as streams:
        client = streams.connect(Link(Path(pieces=(size,))))
        await send(client, HELLO + b"and more")
        upstream = await streams.upstream()
        assert await receive(upstream, len(HELLO) + 8) == HELLO + b"and more"
    (hello,) = proxy.found
    assert hello.server_name == "two.example"
    assert hello.alpn == (b"h2", b"imap")
    assert 0x0304 in hello.versions


async def test_a_client_hello_is_read_at_every_split(autojump_clock: MockClock) -> None:
    proxy = Sniffer(the_hello)
    async with open_streams(proxy) as streams:
        for at in range(1, len(HELLO)):
            client = streams.connect()
            await send(client, HELLO[:at])
            await wait_all_tasks_blocked()
            assert len(streams.opener.ends) == at - 1
            await send(client, HELLO[at:])
            upstream = await streams.upstream(at - 1)
            assert await receive(upstream, len(HELLO)) == HELLO
            client.close_now()
            upstream.close_now()
    assert [hello.server_name for hello in proxy.found] == ["two.example"] * (len(HELLO) - 1)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"S",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\xff\xff",
        HELLO[:43] + b"\xff" * (len(HELLO) - 43),
    ],
    ids=["HTTP", "one byte", "a ServerHello", "a huge record", "garbage"],
)
async def test_what_is_no_client_hello_is_none_and_goes_on(
    data: bytes, autojump_clock: MockClock
) -> None:
    proxy = Sniffer(the_hello)
    async with open_streams(proxy) as streams:
        await send(streams.connect(), data)
        assert await receive(await streams.upstream(), len(data)) == data
    assert proxy.found == [None]


@pytest.mark.parametrize("size", [0, 1, 5, len(HELLO) - 1])
async def test_a_client_hello_that_is_cut_short_is_none(
    size: int, autojump_clock: MockClock
) -> None:
    proxy = Sniffer(the_hello)
    async with open_streams(proxy) as streams:
        await send_and_end(streams.connect(), HELLO[:size])
        assert await receive_all(await streams.upstream()) == HELLO[:size]
    assert proxy.found == [None]


async def test_a_client_hello_of_more_than_64_kib_is_none(autojump_clock: MockClock) -> None:
    size = 70000
    message = b"\x01" + size.to_bytes(3) + bytes(size)
    records = b"".join(
        b"\x16\x03\x01" + len(part).to_bytes(2) + part
        for part in (message[at : at + 16000] for at in range(0, len(message), 16000))
    )
    proxy = Sniffer(the_hello)
    async with open_streams(proxy) as streams:
        client = streams.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, client, records)
            assert await receive_all(await streams.upstream()) == records
    assert proxy.found == [None]


@pytest.mark.parametrize("size", [0, len(HELLO) - 1])
async def test_a_client_hello_does_not_take_for_ever(size: int, autojump_clock: MockClock) -> None:
    proxy = Sniffer(the_hello)
    async with open_streams(proxy) as streams:
        client = streams.connect()
        await send(client, HELLO[:size])
        assert await is_cut(client)
        assert trio.current_time() == 15
        await streams.ended()
    error = proxy.the("logging").args["e"]
    assert error.etype == ErrorType.ReadTimedout
    assert "a ClientHello did not come within 15 s" in str(error)


async def test_it_is_read_once_for_all_attempts(autojump_clock: MockClock) -> None:
    found: list[ClientHello | None] = []

    async def upstream_peer(session: StreamSession, _ctx: Ctx) -> StreamPeer:
        found.append(await session.client_hello())
        return (UPSTREAM, UPSTREAM_2)[len(found) - 1]

    def again(_session: StreamSession, _peer: StreamPeer, _ctx: Ctx, e: ProxyError) -> ProxyError:
        e.set_retry(True)
        return e

    hooks: dict[str, Callable[..., Any]] = {
        "upstream_peer": upstream_peer,
        "fail_to_connect": again,
    }
    outcomes = {UPSTREAM.name: ErrorType.ConnectRefused}
    async with open_streams(Recorder(hooks=hooks), outcomes) as streams:
        await send(streams.connect(), HELLO)
        await streams.upstream()
    assert found[0] is found[1]
    assert found[0] is not None
