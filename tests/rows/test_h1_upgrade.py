"""Upgrades: nothing is tunnelled on the strength of the request alone, then bytes flow both ways."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests._support.recording import Message, Recorder, Wire, open_gateway
from trioproxy import BodyChunk, ErrorType, ServerConf, Session
from trioproxy.testing import MemoryDownstream

ASK = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


async def echo(wire: Wire) -> None:
    """Switch protocols, then send back what comes, and half-close behind the other side."""
    await wire.head()
    await wire.send(SWITCH)
    while wire.buffer or await wire.more():
        await wire.send(bytes(wire.buffer))
        wire.buffer.clear()
    await wire.half_close()


async def read(wire: Wire, count: int) -> bytes:
    while len(wire.buffer) < count:
        assert await wire.more(), "the tunnel ended early"
    data = bytes(wire.buffer[:count])
    del wire.buffer[:count]
    return data


async def test_bytes_flow_both_ways_behind_a_101_and_a_half_close_is_passed_on(
    autojump_clock: object,
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, echo) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        head = await client.head()
        assert head.status == 101
        assert head.get("upgrade") == "websocket"
        assert head.get("connection") == "upgrade"
        assert head.get("transfer-encoding") is None
        await client.send(b"one")
        assert await read(client, 3) == b"one"
        await client.half_close()
        assert await client.at_end()
        await gateway.ended()
    assert proxy.pieces("request_body_filter") == [(b"one", False), (None, True)]
    assert proxy.pieces("upstream_response_body_filter") == [(b"one", False), (None, True)]
    assert proxy.pieces("response_body_filter") == [(b"one", False), (None, True)]
    assert proxy.the("logging").args["e"] is None
    assert gateway.pool.statistics().idle == 0


async def test_body_filters_rewrite_what_a_tunnel_carries(autojump_clock: object) -> None:
    def shout(_session: Session, body: BodyChunk, _end: bool, _ctx: object) -> None:
        body.data = body.data and body.data.upper()

    proxy = Recorder(hooks={"request_body_filter": shout})
    async with open_gateway(proxy, echo) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        await client.head()
        await client.send(b"quiet")
        assert await read(client, 5) == b"QUIET"


async def test_h1_24_bytes_behind_the_request_wait_for_the_101(autojump_clock: object) -> None:
    seen: list[bytes] = []
    switched = trio.Event()

    async def origin(wire: Wire) -> None:
        await wire.head()
        await trio.testing.wait_all_tasks_blocked()
        seen.append(bytes(wire.buffer))
        await wire.send(SWITCH)
        switched.set()
        seen.append(await read(wire, 5))

    async with open_gateway(Recorder(), origin) as gateway:
        client = gateway.connect()
        await client.send(ASK + b"early")
        await client.head()
        await switched.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [b"", b"early"]


async def test_h1_24_without_a_101_they_are_the_next_request(autojump_clock: object) -> None:
    async def origin(wire: Wire) -> None:
        while True:
            request = await wire.message()
            path = request.start.split(b" ")[1]
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))
            if path == b"/next":
                return

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(ASK + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.message()).body == b"/chat"
        assert (await client.message()).body == b"/next"
    assert len(proxy.of("request_filter")) == 2
    # The end of a body that there is none of is told once for each request.
    assert proxy.pieces("request_body_filter") == [(None, True), (None, True)]


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        (b"Connection: upgrade\r\nUpgrade: websocket\r\n", "websocket"),
        (b"Connection: Keep-Alive, Upgrade\r\nUpgrade: a/1, b\r\n", "a/1, b"),
        (b"Upgrade: websocket\r\n", None),
        (b"Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n", None),
        (b"Connection: upgrade\r\nUpgrade: H2C, websocket, TLS/1.0, HTTP/2.0\r\n", "websocket"),
        (b"Connection: upgrade\r\nUpgrade: not a token\r\n", None),
    ],
)
async def test_h1_25_only_offers_that_have_effect_and_lead_to_no_second_way_in(
    fields: bytes, passed: str | None, autojump_clock: object
) -> None:
    got: list[Message] = []

    async def origin(wire: Wire) -> None:
        got.append(await wire.head())
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with open_gateway(Recorder(), origin) as gateway:
        await gateway.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    assert got[0].get("upgrade") == passed
    assert got[0].get("connection") == (None if passed is None else "upgrade")
    assert got[0].get("http2-settings") is None


async def test_h1_25_an_old_client_has_no_offer(autojump_clock: object) -> None:
    async with open_gateway(Recorder(), echo) as gateway:
        response = await gateway.exchange(ASK.replace(b"1.1", b"1.0"))
        assert response.status == 502


@pytest.mark.parametrize("token", [b"h2c", b"other", b"", b"websocket, other"])
async def test_u1_07_a_switch_to_what_was_not_offered_is_refused(
    token: bytes, autojump_clock: object
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(SWITCH.replace(b"websocket", token))
        assert await wire.at_end()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        response = await client.message()
        assert response.status == 502
        assert response.get("connection") == "close"
        assert await client.at_end()


async def test_u1_07_the_token_is_compared_without_case(autojump_clock: object) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(SWITCH.replace(b"websocket", b"WebSocket"))

    async with open_gateway(Recorder(), origin) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        assert (await client.head()).status == 101


async def test_t_05_an_idle_tunnel_ends_and_one_that_moves_does_not(
    autojump_clock: object,
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, echo, conf=ServerConf(tunnel_idle_timeout=300.0)) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        await client.head()
        for _ in range(5):
            await trio.sleep(290)
            await client.send(b"x")
            assert await read(client, 1) == b"x"
        moved = trio.current_time()
        assert await client.at_end()
        await gateway.ended()
        assert 300 <= trio.current_time() - moved < 303
    assert proxy.the("logging").args["e"].root_etype() == ErrorType.ReadTimedout


@pytest.mark.parametrize("side", ["client", "origin"])
async def test_t_05_a_half_closed_side_lets_the_other_go_on_for_a_while(
    side: str, autojump_clock: object
) -> None:
    ended: list[float] = []

    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(SWITCH)
        if side == "origin":
            await wire.half_close()
        while await wire.more():
            pass
        ended.append(trio.current_time())
        await trio.sleep_forever()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        await client.head()
        started = trio.current_time()
        if side == "client":
            await client.half_close()
            assert await client.at_end()
        await gateway.ended()
        assert 60 <= trio.current_time() - started < 63
        assert proxy.the("logging").args["e"].root_etype() == ErrorType.ReadTimedout
        await trio.testing.wait_all_tasks_blocked()
        gateway.nursery.cancel_scope.cancel()


@pytest.mark.parametrize("side", ["client", "origin"])
async def test_a_side_that_breaks_ends_the_tunnel_at_once(
    side: str, autojump_clock: object
) -> None:
    origins: list[Wire] = []
    leave = trio.Event()

    async def origin(wire: Wire) -> None:
        origins.append(wire)
        await wire.head()
        await wire.send(SWITCH)
        await leave.wait()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        await client.head()
        started = trio.current_time()
        if side == "client":
            client.close()
            await origins[0].send(b"into the void")
        else:
            leave.set()
            await trio.testing.wait_all_tasks_blocked()
            await client.send(b"into the void")
        await gateway.ended()
        leave.set()
        assert trio.current_time() - started < 3
    assert len(proxy.of("logging")) == 1


async def test_a_slow_reader_stops_the_writer_of_a_tunnel(autojump_clock: object) -> None:
    sent = 0

    async def origin(wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        await wire.send(SWITCH)
        while sent < 8 << 20:
            await wire.send(bytes(16384))
            sent += 16384

    async with open_gateway(Recorder(), origin, lockstep=True) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        await client.head()
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 256 << 10


def test_an_exchange_in_memory_becomes_a_tunnel_as_well() -> None:
    from trioproxy import RequestHeader, ResponseHeader
    from trioproxy._messages import END, Data
    from trioproxy.testing import memory_exchange

    async def main() -> None:
        up, down = memory_exchange()
        assert isinstance(down, MemoryDownstream)
        await up.send(RequestHeader("GET", b"/", {"Host": "a", "Upgrade": "x"}), END)
        await down.receive_batch()
        await down.send(ResponseHeader(101, {"Upgrade": "x"}))
        await up.receive_batch()
        await up.send(Data(b"there"), END)
        await down.send(Data(b"back"), END)
        assert await down.receive_batch() == [Data(b"there"), END]
        assert await up.receive_batch() == [Data(b"back"), END]

    trio.run(main)
