"""Rows H1-26, H2-29 and T-05: CONNECT, off unless a list allows its target, and its tunnel.

A tunnel is tried from every kind of client; what it leads to speaks no HTTP.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from hyperframe.frame import RstStreamFrame
from trio.testing import MockClock

from tests._support.matrix import (
    H1,
    H2C,
    LEGS,
    OK,
    Exchange,
    Leg,
    Outcome,
    Pairing,
    open_matrix,
)
from tests._support.raw import CUTS, assert_refused, raw_exchange
from tests._support.recording import (
    ORIGIN,
    ORIGIN_2,
    Recorder,
    Wire,
    open_gateway,
    raises,
    returns,
)
from tests._support.tunnels import (
    TARGET,
    H1Tunnel,
    H2Tunnel,
    ask,
    connect,
    connect_h2,
    shout,
    wire_of,
)
from trioproxy import (
    BodyChunk,
    ErrorType,
    HttpPeer,
    ProxyError,
    ResponseHeader,
    ServerConf,
    Session,
)

ALLOW = ServerConf(allow_connect=[TARGET])
CONNECT_ERROR = 0xA
PROTOCOL_ERROR = 0x1
NO_ERROR = 0x0

legs = pytest.mark.parametrize("leg", LEGS, ids=str)
clear_legs = pytest.mark.parametrize("leg", [H1, H2C], ids=str)


def to_bytes(leg: Leg) -> Pairing:
    """Return the pairing of a client and an origin that gets bytes as they are."""
    return Pairing(leg, H1)


# -- the gate --------------------------------------------------------------------------------------

# A second request that must never come to life out of the bytes behind a refused one.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"
EXAMPLES = ServerConf(
    allow_connect=["a.test:443", "*.b.test:*", "10.0.0.1:443", "[2001:db8::1]:443", "*:8443"]
)


def request(start: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([start, *lines, b"", b""])


REFUSED = {
    # Body fields
    "a length": (b"a.test:443", [b"Content-Length: 5"], 400),
    "a length of nothing": (b"a.test:443", [b"Content-Length: 0"], 400),
    "chunks": (b"a.test:443", [b"Transfer-Encoding: chunked"], 400),
    # No host and port
    "no port": (b"a.test", [], 400),
    "an empty port": (b"a.test:", [], 400),
    "port 0": (b"a.test:0", [], 400),
    "a port that is too high": (b"a.test:65536", [], 400),
    "a port with a zero before it": (b"a.test:0443", [], 400),
    "a port with a sign": (b"a.test:+443", [], 400),
    "no host": (b":443", [], 400),
    "a path": (b"/", [], 400),
    "a star": (b"*", [], 400),
    "a URL": (b"http://a.test:443/", [], 400),
    "a path behind it": (b"a.test:443/", [], 400),
    # A second reading of it
    "user information": (b"user@a.test:443", [], 400),
    "user information that looks like a target": (b"a.test:443@evil.test:443", [], 400),
    "percent escapes": (b"%61.test:443", [], 400),
    "two dots": (b"a..test:443", [], 400),
    "a dot before it": (b".a.test:443", [], 400),
    "two dots behind it": (b"a.test..:443", [], 400),
    "a list": (b"a.test:443,evil.test:443", [], 400),
    "IPv6 without brackets": (b"2001:db8::1:443", [], 400),
    "a zone": (b"[fe80::1%25eth0]:8443", [], 400),
    "brackets that stay open": (b"[2001:db8::1:443", [], 400),
    "IPv4 as IPv6": (b"[::ffff:10.0.0.1]:8443", [], 400),
    "IPv4 as one number": (b"167772161:8443", [], 400),
    "IPv4 in hexadecimal": (b"0x0a.0.0.1:8443", [], 400),
    "IPv4 in octal": (b"012.0.0.1:8443", [], 400),
    "IPv4 with three parts": (b"10.0.1:8443", [], 400),
    "a name that ends in a number": (b"a.test.1:8443", [], 400),
    # Not in the list
    "another name": (b"evil.test:443", [], 403),
    "another port": (b"a.test:80", [], 403),
    "what only ends like it": (b"evilb.test:443", [], 403),
    "the name above": (b"b.test:443", [], 403),
    "another address": (b"10.0.0.2:443", [], 403),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", REFUSED)
async def test_h1_26_a_target_that_is_not_one_or_not_allowed_is_refused_before_any_callback(
    name: str, cut: str, autojump_clock: MockClock
) -> None:
    target, lines, status = REFUSED[name]
    asked = request(b"CONNECT " + target + b" HTTP/1.1", b"Host: " + target, *lines)
    for behind in (b"", SMUGGLED, b"\x16\x03\x01\x02\x00\x01" + SMUGGLED):
        outcome = await raw_exchange(asked + behind, cut, conf=EXAMPLES)
        assert_refused(outcome, status, asked)


@pytest.mark.parametrize("cut", CUTS)
async def test_h1_26_the_target_must_match_host(cut: str, autojump_clock: MockClock) -> None:
    start = b"CONNECT a.test:443 HTTP/1.1"
    for host in (b"b.test:443", b"a.test:80", b"b.a.test", b"a.test:", b"", b"10.0.0.1:443"):
        outcome = await raw_exchange(
            request(start, b"Host: " + host) + SMUGGLED, cut, conf=EXAMPLES
        )
        assert_refused(outcome, 400, host)
    for lines in ([], [b"Host: a.test:443", b"Host: a.test:443"]):
        outcome = await raw_exchange(request(start, *lines) + SMUGGLED, cut, conf=EXAMPLES)
        assert_refused(outcome, 400, b"".join(lines))


TAKEN = {
    "as it is": ("a.test:443", "a.test:443", "a.test:443"),
    "Host without the port": ("a.test:443", "a.test", "a.test:443"),
    "case": ("A.Test:443", "a.tesT:443", "a.test:443"),
    "a dot behind it": ("a.test.:443", "a.test", "a.test:443"),
    "a name below": ("x.y.b.test:25", "x.y.b.test:25", "x.y.b.test:25"),
    "IPv4": ("10.0.0.1:443", "10.0.0.1:443", "10.0.0.1:443"),
    "IPv6": ("[2001:DB8:0::1]:443", "[2001:db8::1]", "[2001:db8::1]:443"),
    "any host": ("any.where:8443", "any.where:8443", "any.where:8443"),
}


async def unspoken(wire: Wire) -> None:
    """Be an origin of bytes that says what it got at the end."""
    while await wire.more():
        pass
    await wire.send(b"got " + bytes(wire.buffer))


@pytest.mark.parametrize("name", TAKEN)
async def test_h1_26_a_target_is_shown_in_its_one_spelling(
    name: str, autojump_clock: MockClock
) -> None:
    target, host, shown = TAKEN[name]
    recorder = Recorder(hooks={"upstream_peer": lambda session, _: session.connect_peer()})
    async with open_gateway(recorder, {shown: unspoken}, conf=EXAMPLES) as gateway:
        client = gateway.connect()
        await client.send(request(f"CONNECT {target} HTTP/1.1".encode(), b"Host: " + host.encode()))
        assert (await client.head()).status == 200
        await client.half_close()
        while await client.more():
            pass
        assert client.buffer == b"got "
    session: Session = recorder.the("logging").args["session"]
    head = session.req_header()
    assert head.method == "CONNECT"
    assert head.target == shown.encode()
    assert head.authority == shown
    assert session.is_connect_req()
    assert session.was_upgraded()
    assert gateway.connector.asked == [shown]


async def test_h1_26_a_client_of_http_1_0_needs_no_host(autojump_clock: MockClock) -> None:
    async with open_gateway(Recorder(), unspoken, conf=EXAMPLES) as gateway:
        client = gateway.connect()
        await client.send(b"CONNECT a.test:443 HTTP/1.0\r\n\r\nhello")
        assert (await client.head()).status == 200
        await client.half_close()
        while await client.more():
            pass
        assert client.buffer == b"got hello"


@pytest.mark.parametrize("split", range(1, len(ask() + b"early")))
async def test_h1_26_a_request_cut_anywhere_opens_the_same_tunnel(
    split: int, autojump_clock: MockClock
) -> None:
    data = ask() + b"early"
    async with open_gateway(Recorder(), unspoken, conf=ALLOW) as gateway:
        client = gateway.connect()
        await client.send(data[:split])
        await trio.testing.wait_all_tasks_blocked()
        await client.send(data[split:])
        head = await client.head()
        assert head.status == 200
        await client.half_close()
        while await client.more():
            pass
        assert client.buffer == b"got early"


async def test_h1_26_expect_and_upgrade_mean_nothing_to_it(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, unspoken, conf=ALLOW) as gateway:
        client = gateway.connect()
        extra = (b"Expect: 100-continue", b"Connection: upgrade", b"Upgrade: websocket")
        await client.send(ask(TARGET, *extra))
        assert (await client.head()).status == 200
        await client.half_close()
        while await client.more():
            pass
    session = recorder.the("logging").args["session"]
    assert not session.is_upgrade_req()


H2_REFUSED: dict[str, tuple[list[tuple[str, str]], str | int]] = {
    "no authority": ([(":method", "CONNECT")], PROTOCOL_ERROR),
    "Host in its place": ([(":method", "CONNECT"), ("host", TARGET)], PROTOCOL_ERROR),
    "a path": (
        [(":method", "CONNECT"), (":authority", TARGET), (":path", "/")],
        PROTOCOL_ERROR,
    ),
    "a scheme": (
        [(":method", "CONNECT"), (":authority", TARGET), (":scheme", "http")],
        PROTOCOL_ERROR,
    ),
    "no port": ([(":method", "CONNECT"), (":authority", "origin.test")], PROTOCOL_ERROR),
    "a length": (
        [(":method", "CONNECT"), (":authority", TARGET), ("content-length", "5")],
        PROTOCOL_ERROR,
    ),
    "another Host": (
        [(":method", "CONNECT"), (":authority", TARGET), ("host", "evil.test:443")],
        PROTOCOL_ERROR,
    ),
    "user information": (
        [(":method", "CONNECT"), (":authority", "u@" + TARGET)],
        PROTOCOL_ERROR,
    ),
    "IPv4 as one number": ([(":method", "CONNECT"), (":authority", "167772161:443")], "400"),
    "another target": ([(":method", "CONNECT"), (":authority", "evil.test:443")], "403"),
}


@pytest.mark.parametrize("name", H2_REFUSED)
async def test_h2_29_a_connect_that_is_not_one_or_not_allowed_costs_its_stream(
    name: str, autojump_clock: MockClock
) -> None:
    fields, verdict = H2_REFUSED[name]
    recorder = Recorder()
    async with open_matrix(recorder, shout, to_bytes(H2C), conf=ALLOW) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, fields)
        if isinstance(verdict, int):
            reset = await wire.until(RstStreamFrame, 1)
            assert reset.error_code == verdict
        else:
            assert (await wire.head(1)).get(":status") == verdict
            assert (await wire.until(RstStreamFrame, 1)).error_code == NO_ERROR
        assert recorder.calls == []
        tunnel = await connect_h2(wire, 3)
        await tunnel.send(b"others go on")
        assert await tunnel.read(12) == b"OTHERS GO ON"
        await tunnel.leave()
        await gateway.sessions_ended()


async def test_h2_29_a_header_block_in_a_tunnel_breaks_the_protocol(
    autojump_clock: MockClock,
) -> None:
    async with open_matrix(
        Recorder(), shout, to_bytes(H2C), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway)
        assert isinstance(tunnel, H2Tunnel)
        await tunnel.wire.headers(1, [("x-sum", "1")], end=True)
        assert await tunnel.receive() == PROTOCOL_ERROR
        await gateway.sessions_ended()


@pytest.mark.parametrize("limit", [0, 4])
async def test_a_limit_on_bodies_is_none_on_what_comes_early_into_a_tunnel(
    limit: int, autojump_clock: MockClock
) -> None:
    for leg in (H1, H2C):
        conf = ServerConf(allow_connect=[TARGET], max_body_bytes=limit)
        async with open_matrix(Recorder(), shout, to_bytes(leg), conf=conf) as gateway:
            tunnel = await connect(gateway, early=b"hello")
            assert tunnel.status == 200
            assert await tunnel.read(5) == b"HELLO"
            await tunnel.half_close()
            assert await tunnel.read(3) == b"BYE"


# -- the tunnel ------------------------------------------------------------------------------------


@legs
async def test_h1_26_bytes_flow_both_ways_and_the_callbacks_run_as_for_a_101(
    leg: Leg, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_matrix(recorder, shout, to_bytes(leg), conf=ALLOW) as gateway:
        tunnel = await connect(gateway)
        assert tunnel.status == 200
        names = {name for name, _ in tunnel.fields}
        assert not names & {b"content-length", b"transfer-encoding", b"connection", b"upgrade"}
        await tunnel.send(b"hello")
        assert await tunnel.read(5) == b"HELLO"
        await tunnel.half_close()
        assert await tunnel.read(3) == b"BYE"
        assert await tunnel.receive() == b""
        await gateway.sessions_ended()
        assert gateway.asked == ["origin.test"]
        (record,) = gateway.records
    assert recorder.shown() == [
        "new_ctx",
        "early_request_filter",
        "request_filter",
        "proxy_upstream_filter",
        "upstream_peer",
        "connected_to_upstream",
        "upstream_request_filter",
        "upstream_response_filter(200)",
        "response_filter(200)",
        "request_body_filter(b'hello', False)",
        "upstream_response_body_filter(b'HELLO', False)",
        "response_body_filter(b'HELLO', False)",
        "request_body_filter(None, True)",
        "upstream_response_body_filter(b'BYE', False)",
        "response_body_filter(b'BYE', False)",
        "upstream_response_body_filter(None, True)",
        "response_body_filter(None, True)",
        "logging",
    ]
    session = recorder.the("logging").args["session"]
    assert (session.body_bytes_read(), session.body_bytes_sent()) == (5, 8)
    assert session.upstream_body_bytes_received() == 8
    assert recorder.the("connected_to_upstream").args["reused"] is False
    assert (record.method, record.target, record.status) == ("CONNECT", TARGET.encode(), 200)


@clear_legs
async def test_h1_26_a_granted_tunnel_has_no_length_whatever_a_filter_says(
    leg: Leg, autojump_clock: MockClock
) -> None:
    def add(_session: Session, head: ResponseHeader, _ctx: object) -> None:
        head.headers.set("Content-Length", "5")
        head.headers.set("Transfer-Encoding", "chunked")
        head.headers.set("X-Tunnel", "yes")

    recorder = Recorder(hooks={"response_filter": add})
    async with open_matrix(recorder, shout, to_bytes(leg), conf=ALLOW) as gateway:
        tunnel = await connect(gateway, early=b"hello, hello")
        assert {name for name, _ in tunnel.fields} == {b"date", b"x-tunnel"}
        assert await tunnel.read(12) == b"HELLO, HELLO"
        await tunnel.half_close()
        assert await tunnel.read(3) == b"BYE"


@legs
async def test_h1_26_what_came_before_the_200_is_the_tunnels(
    leg: Leg, autojump_clock: MockClock
) -> None:
    seen: list[bytes] = []

    async def hold(*_args: object) -> None:
        await trio.sleep(1)
        seen.append(b"held")

    async def origin(exchange: Exchange) -> None:
        seen.append(bytes(wire_of(exchange).buffer))
        await shout(exchange)

    recorder = Recorder(hooks={"connected_to_upstream": hold})
    async with open_matrix(recorder, origin, to_bytes(leg), conf=ALLOW) as gateway:
        tunnel = await connect(gateway, early=b"GET / HTTP/1.1\r\n\r\n")
        assert await tunnel.read(18) == b"GET / HTTP/1.1\r\n\r\n"
        await tunnel.half_close()
        assert await tunnel.read(3) == b"BYE"
    assert seen == [b"held", b"GET / HTTP/1.1\r\n\r\n"]
    assert len(recorder.of("request_filter")) == 1


@clear_legs
async def test_h1_26_filters_rewrite_what_a_tunnel_carries(
    leg: Leg, autojump_clock: MockClock
) -> None:
    def shorten(_session: Session, body: BodyChunk, end: bool, _ctx: object) -> None:
        body.data = b"(end)" if end else body.data and body.data[:2]

    recorder = Recorder(
        hooks={"request_body_filter": shorten, "response_body_filter": shorten},
    )
    async with open_matrix(recorder, shout, to_bytes(leg), conf=ALLOW) as gateway:
        tunnel = await connect(gateway)
        await tunnel.send(b"hello")
        assert await tunnel.read(2) == b"HE"
        await tunnel.half_close()
        assert await tunnel.read(9) == b"(EBY(end)"
        assert await tunnel.receive() == b""


REFUSALS: dict[str, tuple[dict[str, Any], int]] = {
    "request_filter": ({"request_filter": raises(ProxyError.status(407))}, 407),
    "an answer": ({"request_filter": None}, 404),
    "proxy_upstream_filter": ({"proxy_upstream_filter": returns(False)}, 502),
    "upstream_peer": ({"upstream_peer": raises(ProxyError.status(403))}, 403),
    "connected_to_upstream": ({"connected_to_upstream": raises(ProxyError.status(403))}, 403),
    "response_filter": ({"response_filter": raises(ProxyError.status(403))}, 403),
}


async def answer_404(session: Session, _ctx: object) -> bool:
    session.set_keepalive(60)
    await session.write_response_header(ResponseHeader(404, {"Content-Length": "2"}))
    await session.write_response_body(b"no", True)
    return True


@pytest.mark.parametrize("name", REFUSALS)
@clear_legs
async def test_h1_26_what_follows_a_refusal_is_neither_a_tunnel_nor_a_request(
    name: str, leg: Leg, autojump_clock: MockClock
) -> None:
    hooks, status = REFUSALS[name]
    hooks = {each: answer_404 if hook is None else hook for each, hook in hooks.items()}
    recorder = Recorder(hooks=hooks)
    got: list[bytes] = []

    async def origin(exchange: Exchange) -> None:
        wire = wire_of(exchange)
        with contextlib.suppress(trio.BrokenResourceError):
            while await wire.more():
                pass
        got.append(bytes(wire.buffer))
        exchange.close()

    async with open_matrix(
        recorder, origin, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway, early=SMUGGLED)
        assert tunnel.status == status
        await gateway.sessions_ended()
        if isinstance(tunnel, H1Tunnel):
            assert (b"connection", b"close") in tunnel.fields
            await gateway.ended()
        else:
            assert isinstance(tunnel, H2Tunnel)
            await tunnel.wire.ping()  # the connection goes on
    assert len(recorder.of("new_ctx")) == 1
    assert b"".join(got) == b""


@clear_legs
async def test_h1_26_no_filter_turns_a_granted_tunnel_into_a_refusal_in_passing(
    leg: Leg, autojump_clock: MockClock
) -> None:
    def refuse(_session: Session, head: ResponseHeader, _ctx: object) -> None:
        head.status = 403

    recorder = Recorder(hooks={"response_filter": refuse})
    async with open_matrix(
        recorder, shout, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway, early=b"hello")
        assert tunnel.status == 500
        await gateway.sessions_ended()
    assert recorder.the("logging").args["e"].root_etype() == ErrorType.InternalError


@clear_legs
@pytest.mark.parametrize(
    ("etype", "retried"), [(ErrorType.ConnectRefused, True), (ErrorType.ConnectTimedout, False)]
)
async def test_a_tunnel_whose_connect_fails_may_fail_over_and_is_502_else(
    leg: Leg, etype: ErrorType, retried: bool, autojump_clock: MockClock
) -> None:
    def retry(_s: Session, _p: HttpPeer, _c: object, e: ProxyError) -> ProxyError:
        e.set_retry(retried)
        return e

    recorder = Recorder(peers=(ORIGIN, ORIGIN_2), hooks={"fail_to_connect": retry})
    origins: dict[str, Outcome] = {"origin.test": etype, "second.test": shout}
    async with open_matrix(
        recorder, origins, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway, early=b"hello")
        if retried:
            assert await tunnel.read(5) == b"HELLO"
            await tunnel.half_close()
            assert await tunnel.read(3) == b"BYE"
        else:
            assert tunnel.status == 502
        await gateway.sessions_ended()
    assert len(recorder.of("fail_to_connect")) == 1


async def test_several_tunnels_and_requests_share_a_connection_of_http_2(
    autojump_clock: MockClock,
) -> None:
    def peer(session: Session, _ctx: object) -> HttpPeer:
        name = "tunnels" if session.is_connect_req() else "web"
        return gateway.peer(name)

    recorder = Recorder(hooks={"upstream_peer": peer})
    async with open_matrix(
        recorder, {"tunnels": shout, "web": OK}, to_bytes(H2C), conf=ALLOW, check_windows=False
    ) as gateway:
        wire = await gateway.frames()
        one = await connect_h2(wire, 1)
        two = await connect_h2(wire, 3)
        await one.send(b"one")
        assert await one.read(3) == b"ONE"
        await wire.headers(
            5,
            [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
            end=True,
        )
        assert (await wire.head(5)).get(":status") == "200"
        await two.send(b"two")
        assert await two.read(3) == b"TWO"
        await one.leave()
        await two.half_close()
        assert await two.read(3) == b"BYE"
        await wire.ping()
        await gateway.sessions_ended()
    assert gateway.asked == ["tunnels", "tunnels", "web"]  # a tunnel's connection is its own


async def test_an_origin_that_speaks_first_is_heard(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.send(b"220 ready\r\n")
        await wire.half_close()
        while await wire.more():
            pass
        await trio.lowlevel.checkpoint()

    async with open_gateway(Recorder(), origin, conf=ALLOW) as gateway:
        client = gateway.connect()
        await client.send(ask())
        assert (await client.head()).status == 200
        while await client.more():
            pass
        assert client.buffer == b"220 ready\r\n"
        await client.send(b"still open this way")
        await client.half_close()


# -- how it ends -----------------------------------------------------------------------------------


@clear_legs
async def test_t_05_an_idle_connect_tunnel_ends_and_one_that_moves_does_not(
    leg: Leg, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_matrix(
        recorder, shout, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway)
        for _ in range(5):
            await trio.sleep(290)
            await tunnel.send(b"tick")
            assert await tunnel.read(4) == b"TICK"
        moved = trio.current_time()
        assert await tunnel.receive() in (None, CONNECT_ERROR)
        assert 300 <= trio.current_time() - moved < 303
        await gateway.sessions_ended()
    assert recorder.the("logging").args["e"].root_etype() == ErrorType.ReadTimedout


@clear_legs
@pytest.mark.parametrize("side", ["client", "origin"])
async def test_t_05_a_half_closed_side_of_a_connect_tunnel_lets_the_other_go_on_for_a_while(
    leg: Leg, side: str, autojump_clock: MockClock
) -> None:
    heard: list[float] = []

    async def origin(exchange: Exchange) -> None:
        wire = wire_of(exchange)
        await wire.send(b"x")
        if side == "origin":
            await wire.half_close()
        with contextlib.suppress(trio.BrokenResourceError):
            while await wire.more():
                heard.append(trio.current_time())
        with contextlib.suppress(trio.BrokenResourceError):
            while side == "client":  # it goes on and on
                await trio.sleep(10)
                await wire.send(b"x")
        exchange.close()

    recorder = Recorder()
    async with open_matrix(
        recorder, origin, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway, early=b"x")
        assert await tunnel.read(1) == b"x"
        started = trio.current_time()
        if side == "client":
            await tunnel.half_close()
            while await tunnel.receive() == b"x":
                pass
        else:
            assert await tunnel.receive() == b""
            with contextlib.suppress(trio.BrokenResourceError):
                while gateway.running.statistics().sessions:
                    await tunnel.send(b"x")
                    await trio.sleep(10)
        await gateway.sessions_ended()
        assert 60 <= trio.current_time() - started < 73
    assert recorder.the("logging").args["e"].root_etype() == ErrorType.ReadTimedout
    if side == "origin":
        assert heard[-1] - started > 45


@legs
async def test_a_reset_of_the_origin_is_one_for_the_client(
    leg: Leg, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        wire = wire_of(exchange)
        await wire.send(b"half of")
        await trio.sleep(1)
        wire.stream.send_stream.end.reset()
        exchange.close()

    recorder = Recorder()
    async with open_matrix(
        recorder, origin, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway, early=b"x")
        assert await tunnel.read(7) == b"half of"
        assert await tunnel.receive() == (CONNECT_ERROR if leg.h2 else None)
        await gateway.sessions_ended()
    error = recorder.the("logging").args["e"]
    assert error.esource.value == "Upstream"
    assert recorder.names().count("error_while_proxy") == 1


@clear_legs
async def test_a_client_that_resets_its_tunnel_resets_the_origins_connection(
    leg: Leg, autojump_clock: MockClock
) -> None:
    ends: list[str] = []

    async def origin(exchange: Exchange) -> None:
        wire = wire_of(exchange)
        try:
            while await wire.more():
                pass
        except trio.BrokenResourceError:
            ends.append("reset")
        else:
            ends.append("end")
        exchange.close()

    recorder = Recorder()
    async with open_matrix(
        recorder, origin, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway, early=b"x")
        if isinstance(tunnel, H1Tunnel):
            tunnel.wire.stream.send_stream.end.reset()
        await tunnel.leave()
        await gateway.sessions_ended()
    assert ends == ["reset"]
    assert recorder.the("logging").args["e"].esource.value == "Downstream"


@clear_legs
async def test_a_filter_that_fails_cuts_the_tunnel_on_both_sides(
    leg: Leg, autojump_clock: MockClock
) -> None:
    recorder = Recorder(hooks={"request_body_filter": raises(RuntimeError("no"))})
    async with open_matrix(
        recorder, shout, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway)
        await tunnel.send(b"hello")
        assert await tunnel.receive() == (0x2 if leg.h2 else None)
        await gateway.sessions_ended()
    assert recorder.the("logging").args["e"].esource.value == "Internal"


@clear_legs
async def test_s_07_a_tunnel_outlives_a_drain_until_grace_is_over(
    leg: Leg, autojump_clock: MockClock
) -> None:
    async with open_matrix(
        Recorder(), shout, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.running.drain, 20)
            await trio.sleep(19)
            await tunnel.send(b"still here")
            assert await tunnel.read(10) == b"STILL HERE"
            with contextlib.suppress(EOFError):
                assert await tunnel.receive() in (b"", None)
        assert 20 <= trio.current_time() - started < 23


async def test_s_07_one_that_ends_before_ends_the_drain(autojump_clock: MockClock) -> None:
    async with open_matrix(Recorder(), shout, to_bytes(H1), conf=ALLOW) as gateway:
        tunnel = await connect(gateway, early=b"hello")
        assert await tunnel.read(5) == b"HELLO"
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.running.drain, 1000)
            await trio.sleep(10)
            await tunnel.half_close()
            assert await tunnel.read(3) == b"BYE"
        assert trio.current_time() - started < 20


@clear_legs
@pytest.mark.parametrize("way", ["up", "down"])
async def test_r_07_a_tunnel_whose_reader_has_stopped_holds_little(
    leg: Leg, way: str, autojump_clock: MockClock
) -> None:
    poured = 0

    async def pour(wire: Any) -> None:
        nonlocal poured
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await wire.send(bytes(10000))
                poured += 10000

    async def origin(exchange: Exchange) -> None:
        wire = wire_of(exchange)
        if way == "down":
            await pour(wire)
        else:
            await trio.sleep_forever()

    async with open_matrix(
        Recorder(), origin, to_bytes(leg), conf=ALLOW, check_windows=False
    ) as gateway:
        tunnel = await connect(gateway, early=b"x")
        async with trio.open_nursery() as nursery:
            if way == "up" and not leg.h2:
                nursery.start_soon(pour, tunnel)
            elif way == "up":
                assert isinstance(tunnel, H2Tunnel)
                wire = tunnel.wire
                while await wire.data_within_windows(1, bytes(10000)):
                    poured += 10000
                    await wire.ping()
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(1)
            # What we may hold, and what both links do.
            assert 60000 < poured <= 262144 + 2 * 65536
            connections: list[Any] = list(gateway.running._server.connections)
            (connection,) = connections
            assert connection.buffered <= 262144
            nursery.cancel_scope.cancel()
        await tunnel.leave()
        gateway.upstream.nursery.cancel_scope.cancel()


def test_the_rules_are_checked_when_the_settings_are_made() -> None:
    for wrong in ("a.test:443", b"a.test:443", 5, ["a.test"], [None], [5]):
        with pytest.raises(ValueError, match="allow_connect"):
            ServerConf(allow_connect=wrong)  # type: ignore[arg-type]  # what is refused
    assert [str(rule) for rule in EXAMPLES.allow_connect] == [
        "a.test:443",
        "*.b.test:*",
        "10.0.0.1:443",
        "[2001:db8::1]:443",
        "*:8443",
    ]
    assert ServerConf(allow_connect=EXAMPLES.allow_connect) == EXAMPLES


async def test_a_request_that_is_no_connect_has_no_such_peer(autojump_clock: MockClock) -> None:
    recorder = Recorder(hooks={"upstream_peer": lambda session, _: session.connect_peer()})
    async with open_gateway(recorder, unspoken) as gateway:
        response = await gateway.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert response.status == 500
    assert "GET has no such target" in str(recorder.the("logging").args["e"])
