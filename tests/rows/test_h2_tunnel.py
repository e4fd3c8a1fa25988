"""Rows H2-29 and T-05: WebSocket and its like over HTTP/2 (RFC 8441), on either side."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
import trio
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_wire import (
    CANCEL,
    ENABLE_CONNECT_PROTOCOL,
    MAX_CONCURRENT_STREAMS,
    AnyFields,
    H2Wire,
    request,
)
from tests._support.matrix import (
    H1,
    H2_TLS,
    H2C,
    OK,
    Exchange,
    Frames,
    H1Exchange,
    Handler,
    Pairing,
    open_matrix,
)
from tests._support.recording import Message, Recorder, Wire

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

CONNECT: AnyFields = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":scheme", "http"),
    (":authority", "site.test"),
    (":path", "/chat"),
    ("sec-websocket-version", "13"),
]
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: site.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY.encode() + b"\r\n\r\n"
)


def accept_of(key: str | None) -> bytes:
    assert key is not None
    return base64.b64encode(hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest())


def echo_h1(heads: list[Message], *, accept: bytes | None = None, status: int = 101) -> Handler:
    """Return an HTTP/1.1 origin that switches and sends everything back."""

    async def handler(exchange: Exchange) -> None:
        assert isinstance(exchange, H1Exchange)
        head = await exchange.head()
        heads.append(head)
        wire = exchange.wire
        if status != 101:
            await exchange.respond(status, [("content-length", "2")], b"no")
            return
        line = accept or accept_of(head.get("sec-websocket-key"))
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: " + line + b"\r\n\r\n"
        )
        while wire.buffer or await wire.more():
            data = bytes(wire.buffer)
            wire.buffer.clear()
            await wire.send(data.upper())
        await wire.send(b"BYE")

    return handler


def echo_h2(heads: list[dict[str, str]], *, status: str = "200", offers: bool = True) -> Frames:
    """Return an HTTP/2 origin that takes an extended CONNECT and sends everything back."""

    async def script(wire: H2Wire) -> None:
        settings = {MAX_CONCURRENT_STREAMS: 100}
        if offers:
            settings[ENABLE_CONNECT_PROTOCOL] = 1
        await wire.start(settings)
        while True:
            head = await wire.until(HeadersFrame)
            stream = head.stream_id
            fields = {name.decode(): value.decode() for name, value in head.fields}  # type: ignore[attr-defined]  # a Head
            heads.append(fields)
            if status != "200":
                await wire.headers(stream, [(":status", status)], end=True)
                continue
            await wire.headers(stream, [(":status", "200")])
            while True:
                frame = await wire.until(Frame, stream)
                if not isinstance(frame, DataFrame):
                    break
                if frame.data:
                    await wire.credit(0, len(frame.data))
                    await wire.credit(stream, len(frame.data))
                    await wire.data(stream, frame.data.upper())
                if "END_STREAM" in frame.flags:
                    await wire.data(stream, b"BYE", end=True)
                    break

    return Frames(script)


async def open_tunnel(wire: H2Wire, stream: int = 1, fields: AnyFields = CONNECT) -> None:
    """Open a tunnel as an HTTP/2 client."""
    await wire.headers(stream, fields)
    head = await wire.head(stream)
    assert head.get(":status") == "200", head.fields
    assert "END_STREAM" not in head.flags
    assert head.get("sec-websocket-accept") is None
    assert head.get("upgrade") is None


async def until_data(wire: H2Wire, stream: int, wanted: bytes) -> None:
    """Read until this content has come on a stream, since the last call."""
    got = b""
    while got != wanted:
        assert wanted.startswith(got), got
        got += (await wire.until(DataFrame, stream)).data


async def talk(wire: H2Wire, stream: int = 1) -> None:
    """Send and receive through a tunnel, and end it."""
    for text in (b"hello", b"x" * 10000):
        await wire.data(stream, text)
        await until_data(wire, stream, text.upper())
    await wire.data(stream, b"", end=True)
    await until_data(wire, stream, b"BYE")


async def talk_h1(wire: Wire) -> None:
    """Do the same as a client of HTTP/1.1."""
    await wire.send(UPGRADE)
    head = await wire.head()
    assert head.status == 101
    assert head.get("upgrade") == "websocket"
    assert head.get("sec-websocket-accept") == accept_of(KEY).decode()
    for text in (b"hello", b"x" * 10000):
        await wire.send(text)
        while len(wire.buffer) < len(text):
            assert await wire.more()
        assert bytes(wire.buffer) == text.upper()
        wire.buffer.clear()
    await wire.half_close()
    while await wire.more():
        pass
    assert bytes(wire.buffer) == b"BYE"


async def test_h2_29_a_websocket_over_http_2_reaches_an_origin_of_http_1(
    autojump_clock: MockClock,
) -> None:
    heads: list[Message] = []
    recorder = Recorder()
    async with open_matrix(recorder, echo_h1(heads), Pairing(H2C, H1)) as gateway:
        wire = await gateway.frames()
        await open_tunnel(wire)
        await talk(wire)
        await gateway.sessions_ended()
        await wire.ping()
        wire.assert_windows_whole(1 << 19)
    (head,) = heads
    assert head.start == b"GET /chat HTTP/1.1"
    assert head.get("upgrade") == "websocket"
    assert (head.get("connection") or "").lower() == "upgrade"
    assert head.get("content-length") is None
    assert head.get("transfer-encoding") is None
    assert recorder.the("logging").args["e"] is None


@pytest.mark.parametrize("up", [H2C, H2_TLS], ids=str)
async def test_h2_29_a_websocket_over_http_1_reaches_an_origin_of_http_2(
    up: Any, autojump_clock: MockClock
) -> None:
    heads: list[dict[str, str]] = []
    recorder = Recorder()
    async with open_matrix(
        recorder, echo_h2(heads), Pairing(H1, up), check_windows=False
    ) as gateway:
        client = await gateway.connect()
        assert client.wire is not None
        await talk_h1(client.wire)
        await gateway.sessions_ended()
    (head,) = heads
    assert head[":method"] == "CONNECT"
    assert head[":protocol"] == "websocket"
    assert head[":path"] == "/chat"
    assert head[":scheme"] == up.scheme
    assert not {"connection", "upgrade", "sec-websocket-key", "host"} & set(head)
    assert recorder.the("logging").args["e"] is None


async def test_h2_29_a_websocket_over_http_2_reaches_an_origin_of_http_2(
    autojump_clock: MockClock,
) -> None:
    heads: list[dict[str, str]] = []
    recorder = Recorder()
    async with open_matrix(recorder, echo_h2(heads), Pairing(H2C, H2C)) as gateway:
        wire = await gateway.frames()
        # Several at once, on one connection to the origin: it serves them in turn.
        await open_tunnel(wire, 1)
        await talk(wire, 1)
        await open_tunnel(wire, 3)
        await talk(wire, 3)
        await gateway.sessions_ended()
        assert gateway.asked == ["origin.test"]
    assert len(heads) == 2


async def test_h2_29_where_the_origin_may_be_asked_over_http_1_an_upgrade_is(
    autojump_clock: MockClock,
) -> None:
    heads: list[Message] = []
    recorder = Recorder()
    async with open_matrix(
        recorder, echo_h1(heads), Pairing(H2C, H2_TLS), alpn=["h2", "http/1.1"]
    ) as gateway:
        recorder.peers = (gateway.peer(http_version=(2, 1)),)
        wire = await gateway.frames()
        await open_tunnel(wire)
        await talk(wire)
        assert gateway.upstream.spoken == ["http/1.1"]
    assert len(heads) == 1


@pytest.mark.parametrize("status", [200, 403, 426])
async def test_h2_29_an_origin_that_does_not_switch_makes_no_tunnel(
    status: int, autojump_clock: MockClock
) -> None:
    async with open_matrix(Recorder(), echo_h1([], status=status), Pairing(H2C, H1)) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, CONNECT)
        # A 2xx would say that the tunnel is there.
        head = await wire.head(1)
        assert head.get(":status") == ("502" if status == 200 else str(status))
        await gateway.sessions_ended()


async def test_h2_29_an_origins_wrong_accept_makes_no_tunnel(autojump_clock: MockClock) -> None:
    async with open_matrix(
        Recorder(), echo_h1([], accept=b"bm90IHRoaXM="), Pairing(H2C, H1)
    ) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, CONNECT)
        assert (await wire.head(1)).get(":status") == "502"


async def test_h2_29_an_http_2_origin_that_offers_no_tunnels_gets_none(
    autojump_clock: MockClock,
) -> None:
    heads: list[dict[str, str]] = []
    async with open_matrix(
        Recorder(), echo_h2(heads, offers=False), Pairing(H1, H2C), check_windows=False
    ) as gateway:
        client = await gateway.connect()
        assert client.wire is not None
        await client.wire.send(UPGRADE)
        assert (await client.wire.message()).status == 502
    assert heads == []


@pytest.mark.parametrize("up", [H1, H2C], ids=str)
async def test_h2_20_a_reset_ends_a_tunnel_on_both_sides(
    up: Any, autojump_clock: MockClock
) -> None:
    heads: list[Any] = []
    origin = echo_h1(heads) if up is H1 else echo_h2(heads)
    recorder = Recorder()
    async with open_matrix(recorder, origin, Pairing(H2C, up), check_windows=False) as gateway:
        wire = await gateway.frames()
        await open_tunnel(wire)
        await wire.data(1, b"hello")
        await until_data(wire, 1, b"HELLO")
        await wire.send(RstStreamFrame(1, CANCEL))
        await wire.ping()
        await gateway.sessions_ended()
    assert recorder.shown()[-1] == "logging(ConnectionClosed)"


async def test_t_05_an_idle_tunnel_ends_after_its_time(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_matrix(recorder, echo_h1([]), Pairing(H2C, H1), check_windows=False) as gateway:
        wire = await gateway.frames()
        await open_tunnel(wire)
        for _ in range(3):
            await trio.sleep(250)
            await wire.data(1, b"tick")
            await until_data(wire, 1, b"TICK")
        started = trio.current_time()
        await wire.until(RstStreamFrame, 1)
        assert 295 < trio.current_time() - started < 305


async def test_t_03_a_tunnel_whose_reader_stopped_holds_little(
    autojump_clock: MockClock,
) -> None:
    sent = 0

    async def pours(exchange: Exchange) -> None:
        nonlocal sent
        assert isinstance(exchange, H1Exchange)
        head = await exchange.head()
        wire = exchange.wire
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: " + accept_of(head.get("sec-websocket-key")) + b"\r\n\r\n"
        )
        while True:
            await wire.send(b"x" * 10000)
            sent += 10000

    async with open_matrix(Recorder(), pours, Pairing(H2C, H1), check_windows=False) as gateway:
        wire = await gateway.frames()
        await open_tunnel(wire)
        await wait_all_tasks_blocked()
        await wire.ping()
        # The window, what the link holds and what we may.
        assert sent <= 65535 + 65536 + 262144
        before = sent
        await wire.credit(1, 200_000)
        await wire.credit(0, 200_000)
        while sent < before + 100_000:
            await wire.until(DataFrame, 1)
        await wire.send(RstStreamFrame(1, CANCEL))
        await wire.ping()
        await gateway.sessions_ended()


async def test_an_ordinary_request_beside_a_tunnel_is_served(
    autojump_clock: MockClock,
) -> None:
    async def origin(exchange: Exchange) -> None:
        head = await exchange.head()
        if head.get("upgrade") is None:
            await OK(exchange)
        else:
            await echo_h1([])(exchange)

    async with open_matrix(Recorder(), origin, Pairing(H2C, H1)) as gateway:
        wire = await gateway.frames()
        await open_tunnel(wire)
        await wire.headers(3, request(), end=True)
        assert (await wire.head(3)).get(":status") == "200"
        await talk(wire)
