"""Rows H2-11 to H2-15, H2-29 and R-01: what a message must be, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_rows import assert_serves, get, h2_gateway, response
from tests._support.h2_wire import (
    ENABLE_CONNECT_PROTOCOL,
    PROTOCOL_ERROR,
    AnyFields,
    H2Message,
    request,
)
from tests._support.matrix import (
    H1,
    H1_TLS,
    H2_TLS,
    H2C,
    OK,
    Exchange,
    Pairing,
    answers,
    essence,
    keeps,
    open_matrix,
)
from tests._support.recording import Ctx, CutError, Message, Recorder
from trioproxy import ErrorType, ResponseHeader, ServerConf, Session

P = request()  # :method, :scheme, :authority, :path


def without(name: str) -> AnyFields:
    """Return a request's pseudo-fields but for one."""
    return [field for field in P if field[0] != name.encode()]


def instead(name: str, value: str | bytes) -> AnyFields:
    """Return a request's pseudo-fields with another value for one."""
    value = value.encode("latin-1") if isinstance(value, str) else value
    return [(key, value if key == name.encode() else old) for key, old in P]


MALFORMED: dict[str, AnyFields] = {
    # H2-11
    "upper case": [*P, ("X-Upper", "1")],
    "no token": [*P, ("fo(o", "1")],
    "blank in a name": [*P, ("a b", "1")],
    "empty name": [*P, ("", "1")],
    "name with a colon": [*P, ("a:b", "1")],
    "byte over 0x7f in a name": [*P, (b"n\xff", "1")],
    "NUL": [*P, ("x", "a\0b")],
    "CR": [*P, ("x", "a\rb")],
    "LF": [*P, ("x", "a\nX-Injected: 1")],
    "another control": [*P, ("x", "a\x01b")],
    "DEL": [*P, ("x", "a\x7fb")],
    "blank before": [*P, ("x", " a")],
    "blank behind": [*P, ("x", "a ")],
    "tab behind": [*P, ("x", "a\t")],
    "unknown pseudo-field": [*P, (":x", "1")],
    "a response's pseudo-field": [*P, (":status", "200")],
    "doubled": [*P, (":path", "/other")],
    "late": [*P[:3], ("x", "1"), *P[3:]],
    "no method": without(":method"),
    "no path": without(":path"),
    "no scheme": without(":scheme"),
    "connection": [*P, ("connection", "close")],
    "keep-alive": [*P, ("keep-alive", "1")],
    "proxy-connection": [*P, ("proxy-connection", "close")],
    "transfer-encoding": [*P, ("transfer-encoding", "chunked")],
    "upgrade": [*P, ("upgrade", "websocket")],
    "te": [*P, ("te", "gzip")],
    "te with more": [*P, ("te", "trailers, gzip")],
    # H2-12
    "method with a blank": instead(":method", "GET /admin HTTP/1.1"),
    "empty method": instead(":method", ""),
    "method with CR LF": instead(":method", "GET\r\n"),
    "scheme": instead(":scheme", "ftp"),
    "empty scheme": instead(":scheme", ""),
    "scheme with a target": instead(":scheme", "http://evil/"),
    "empty path": instead(":path", ""),
    "relative path": instead(":path", "path"),
    "absolute path": instead(":path", "http://evil/"),
    "star": instead(":path", "*"),
    "path with a blank": instead(":path", "/a HTTP/1.1"),
    "path with CR LF": instead(":path", "/a\r\nX: y"),
    "path with a fragment": instead(":path", "/a#b"),
    "path with a byte over 0x7f": instead(":path", b"/\xc3\xa4"),
    "path with a backslash": instead(":path", "/a\\b"),
    "no authority": without(":authority"),
    "empty authority": instead(":authority", ""),
    "authority with userinfo": instead(":authority", "user@site.test"),
    "authority with a blank": instead(":authority", "site test"),
    "authority with a path": instead(":authority", "site.test/evil"),
    "authority with two hosts": instead(":authority", "site.test,evil"),
    "authority with a bad port": instead(":authority", "site.test:99999"),
    "another host": [*P, ("host", "evil.test")],
    "two hosts": [*P, ("host", "site.test"), ("host", "site.test")],
    # H2-13
    "length of nothing": [*P, ("content-length", "5")],
    "two lengths": [*P, ("content-length", "0"), ("content-length", "0")],
    "length list": [*P, ("content-length", "0, 0")],
    "signed length": [*P, ("content-length", "+0")],
    "no number": [*P, ("content-length", "x")],
    "empty length": [*P, ("content-length", "")],
    # H2-29
    ":protocol without CONNECT": [*P, (":protocol", "websocket")],
    "CONNECT with a target": instead(":method", "CONNECT"),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_h2_11_h2_12_h2_13_a_malformed_request_is_reset_and_its_siblings_are_served(
    case: str, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        # All in one write: what came with it in the same read is served.
        async with wire.one_write():
            await get(wire, 1, "/before")
            await wire.headers(3, MALFORMED[case], end=True)
            await get(wire, 5, "/after")
        assert await response(wire, 1) == ("200", b"hello")
        assert await response(wire, 5) == ("200", b"hello")
        await wire.ping()
        assert wire.resets() == {3: PROTOCOL_ERROR}
        assert [frame.stream_id for frame in wire.of(HeadersFrame, 3)] == []
        targets = [
            call.args["session"].req_header().target
            for call in gateway.recorder.of("early_request_filter")
        ]
        assert sorted(targets) == [b"/after", b"/before"]
        assert gateway.matrix.asked == ["origin.test"] * len(gateway.matrix.asked)


@pytest.mark.parametrize(
    "fields",
    [
        [("X-Upper", "1")],
        [("x", "a\nb")],
        [(":path", "/")],
        [("connection", "close")],
        [("transfer-encoding", "chunked")],
    ],
    ids=["upper case", "LF", "pseudo-field", "connection", "transfer-encoding"],
)
async def test_h2_11_trailers_are_held_to_the_same_rules(
    fields: AnyFields, autojump_clock: MockClock
) -> None:
    whole: list[Message] = []
    cut: list[Message | None] = []

    async def origin(exchange: Exchange) -> None:
        try:
            message = await exchange.message()
        except CutError as exc:
            cut.append(exc.message)
            return
        whole.append(message)
        await exchange.respond(200, [("content-length", "5")], b"hello")

    async with h2_gateway(origin) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        await wire.data(1, b"up")
        await wait_all_tasks_blocked()
        whole.clear()
        await wire.headers(1, fields, end=True)
        assert (await wire.until(RstStreamFrame, 1)).error_code == PROTOCOL_ERROR
        await gateway.matrix.sessions_ended()
        await wait_all_tasks_blocked()
        # The origin has seen a request that was cut, never a whole one.
        assert whole == []
        assert len(cut) == 1
        await assert_serves(wire, 3)


async def test_h2_12_the_scheme_is_never_trusted(autojump_clock: MockClock) -> None:
    schemes: list[str] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        schemes.append(session.req_header().scheme or "")
        return False

    for leg in (H2C, H2_TLS):
        recorder = Recorder(hooks={"request_filter": request_filter})
        async with open_matrix(recorder, OK, Pairing(leg, H1)) as gateway:
            wire = await gateway.frames()
            for stream, scheme in ((1, "http"), (3, "https"), (5, "HTTPS")):
                await wire.headers(stream, request(scheme=scheme), end=True)
                assert await response(wire, stream) == ("200", b"hello")
        assert schemes == [leg.scheme] * 3
        schemes.clear()


@pytest.mark.parametrize(
    ("authority", "host"),
    [("SITE.test", "site.TEST"), ("site.test", "site.test"), (None, "site.test")],
)
async def test_h2_12_a_host_that_says_the_same_passes(
    authority: str | None, host: str, autojump_clock: MockClock
) -> None:
    got: list[Message] = []
    async with h2_gateway(keeps(got)) as gateway:
        got.clear()
        wire = await gateway.frames()
        await wire.headers(1, request(fields=[("host", host)], authority=authority), end=True)
        assert await response(wire, 1) == ("200", b"hello")
    # What the client called it goes on, once and first.
    assert [name for name, _ in got[0].fields].count(b"host") == 1
    assert got[0].fields[0] == (b"host", (authority or host).encode())


async def test_h2_12_star_goes_with_options(autojump_clock: MockClock) -> None:
    got: list[Message] = []
    async with h2_gateway(keeps(got)) as gateway:
        got.clear()
        wire = await gateway.frames()
        await wire.headers(1, request("OPTIONS", "*"), end=True)
        assert await response(wire, 1) == ("200", b"hello")
    assert got[0].start == b"OPTIONS * HTTP/1.1"


# -- H2-13 ---------------------------------------------------------------------------------------

Script = list[Frame]


def data(*pieces: bytes, end: bool = True) -> Script:
    frames: list[Frame] = [DataFrame(1, piece) for piece in pieces]
    if end:
        frames[-1].flags.add("END_STREAM")
    return frames


@pytest.mark.parametrize(
    "frames",
    [data(b"abcd"), data(b"abc", b"def"), data(b"abcdef", end=False), data(b"ab", b"")],
    ids=["fewer", "more", "more and not the end", "fewer, an empty end"],
)
@pytest.mark.parametrize("up", [H1, H2C], ids=str)
async def test_h2_13_content_of_another_length_than_declared_never_makes_a_whole_request(
    frames: Script, up: Any, autojump_clock: MockClock
) -> None:
    outcomes: list[str] = []

    async def origin(exchange: Exchange) -> None:
        head = await exchange.head()
        try:
            await exchange.message()
        except CutError:
            outcomes.append("cut")
            return
        if b"/neighbour" not in head.start:
            outcomes.append("whole")
        await exchange.respond(200, [("content-length", "5")], b"hello")

    async with h2_gateway(origin, up=up) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=[("content-length", "5")]))
        await wait_all_tasks_blocked()
        await wire.send(*frames)
        assert (await wire.until(RstStreamFrame, 1)).error_code == PROTOCOL_ERROR
        await gateway.matrix.sessions_ended()
        await wait_all_tasks_blocked()
        assert outcomes in (["cut"], [])
        # The connection whose request was cut takes no other.
        await assert_serves(wire, 3)


async def test_h2_13_trailers_that_end_too_short_a_message_are_such_a_case(
    autojump_clock: MockClock,
) -> None:
    whole: list[Message] = []
    async with h2_gateway(keeps(whole)) as gateway:
        whole.clear()
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=[("content-length", "5")]))
        await wire.data(1, b"abc")
        await wire.headers(1, [("x-sum", "1")], end=True)
        assert (await wire.until(RstStreamFrame, 1)).error_code == PROTOCOL_ERROR
        await gateway.matrix.sessions_ended()
        assert whole == []


@pytest.mark.parametrize("length", ["5", "0005"])
async def test_h2_13_a_length_that_is_right_goes_on_as_a_number(
    length: str, autojump_clock: MockClock
) -> None:
    got: list[Message] = []
    async with h2_gateway(keeps(got)) as gateway:
        got.clear()
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=[("content-length", length)]))
        await wire.data(1, b"abc")
        await wire.data(1, b"de", end=True, padding=7)
        assert await response(wire, 1) == ("200", b"hello")
    assert got[0].get("content-length") == "5"
    assert got[0].body == b"abcde"


@pytest.mark.parametrize("down", [H1, H2C], ids=str)
@pytest.mark.parametrize(
    ("length", "pieces"),
    [("5", [b"hel"]), ("5", [b"hel", b"lo!"]), ("5", [])],
    ids=["fewer", "more", "none"],
)
async def test_h2_13_a_response_of_another_length_is_cut_downstream(
    length: str, pieces: list[bytes], down: Any, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [("content-length", length)], end=not pieces)
        for number, piece in enumerate(pieces):
            await wait_all_tasks_blocked()
            await exchange.send_data(piece, end=number == len(pieces) - 1)
        await exchange.gone()

    recorder = Recorder()
    async with open_matrix(recorder, origin, Pairing(down, H2C)) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        if pieces:
            with pytest.raises(CutError):
                await exchange.message()
        else:
            assert (await exchange.message()).status == 502
        await gateway.sessions_ended()
    error = recorder.the("logging").args["e"]
    assert error.esource.name == "UPSTREAM"


# -- H2-14, H2-15 --------------------------------------------------------------------------------


async def test_h2_14_what_an_h1_origin_gets_of_an_h2_request(autojump_clock: MockClock) -> None:
    got: list[Message] = []
    async with h2_gateway(keeps(got)) as gateway:
        got.clear()
        wire = await gateway.frames()
        fields = [
            ("cookie", "a=1"),
            ("x-one", "1"),
            ("cookie", "b=2"),
            ("te", "trailers"),
            ("cookie", "c=3"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ]
        await wire.headers(1, request("POST", "/a?b", fields, authority="site.test:8080"))
        await wire.data(1, b"up")
        await wire.headers(1, [("x-sum", "1"), ("content-length", "9"), ("host", "evil")], end=True)
        assert await response(wire, 1) == ("200", b"hello")
    (message,) = [each for each in got if each.start.startswith(b"POST")]
    assert message.start == b"POST /a?b HTTP/1.1"
    assert message.fields[0] == (b"host", b"site.test:8080")
    assert sorted(message.fields[1:]) == [
        (b"cookie", b"a=1; b=2; c=3"),
        (b"transfer-encoding", b"chunked"),
        (b"x-one", b"1"),
    ]
    assert message.body == b"up"
    # Fields that frame or route are dropped from trailers (row H1-20).
    assert message.trailers == [(b"x-sum", b"1")]


async def test_h2_15_what_an_h2_origin_gets_of_an_h1_request(autojump_clock: MockClock) -> None:
    got: list[Message] = []
    recorder = Recorder()
    async with open_matrix(recorder, keeps(got), Pairing(H1, H2C)) as gateway:
        client = await gateway.connect()
        assert client.wire is not None
        await client.wire.send(
            b"POST http://other.test:8080/a?b HTTP/1.1\r\nHost: site.test\r\n"
            b"Connection: keep-alive, X-Private, TE\r\nKeep-Alive: 5\r\nX-Private: 1\r\n"
            b"Proxy-Connection: keep-alive\r\nTE: trailers, gzip\r\nX-UPPER: Yes\r\n"
            b"Cookie: a=1; b=2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nup\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        assert (await client.wire.message()).status == 200
    (message,) = got
    assert isinstance(message, H2Message)
    assert message.pseudo == {
        ":method": "POST",
        ":scheme": "http",
        ":authority": "other.test:8080",
        ":path": "/a?b",
    }
    assert sorted(message.fields) == [
        (b"cookie", b"a=1; b=2"),
        (b"te", b"trailers"),
        (b"x-upper", b"Yes"),
    ]
    assert (message.body, message.trailers) == (b"up", [(b"x-sum", b"1")])


@pytest.mark.parametrize("up", [H2C, H2_TLS], ids=str)
async def test_h2_15_the_scheme_is_the_connections(up: Any, autojump_clock: MockClock) -> None:
    got: list[Message] = []
    recorder = Recorder()
    async with open_matrix(recorder, keeps(got), Pairing(H1, up)) as gateway:
        await gateway.exchange()
    (message,) = got
    assert isinstance(message, H2Message)
    assert message.pseudo[":scheme"] == up.scheme


@pytest.mark.parametrize("down", [H1, H1_TLS, H2C, H2_TLS], ids=str)
async def test_h2_15_hop_by_hop_fields_of_a_response_go_nowhere(
    down: Any, autojump_clock: MockClock
) -> None:
    origin = answers(
        200,
        [
            ("content-length", "5"),
            ("connection", "x-private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("x-kept", "1"),
        ],
    )
    recorder = Recorder()
    async with open_matrix(recorder, origin, Pairing(down, H1)) as gateway:
        message = await gateway.exchange()
    # The client's own strict reading has refused connection-specific fields already.
    assert essence(message) == (
        200,
        [(b"content-length", b"5"), (b"x-kept", b"1")],
        b"hello",
        [],
    )


@pytest.mark.parametrize(
    ("name", "value"), [("x", "a\r\nb"), ("x", "a\0b"), ("a b", "1"), ("x\n", "1")]
)
async def test_h2_15_h1_30_a_filter_cannot_write_what_is_no_field(
    name: str, value: str, autojump_clock: MockClock
) -> None:
    raised: list[Exception] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().target == b"/neighbour":
            return False
        try:
            head = ResponseHeader(200)
            head.headers.add(name, value)
            await session.write_response_header(head)
        except Exception as exc:
            raised.append(exc)
            raise
        return True

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with h2_gateway(recorder=recorder) as gateway:
        wire = await gateway.frames()
        await get(wire, 1)
        assert (await response(wire, 1))[0] == "500"
    assert len(raised) == 1


# -- H2-29 ---------------------------------------------------------------------------------------


async def test_h2_29_extended_connect_is_offered_and_an_unknown_protocol_is_501(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        assert wire.settings[ENABLE_CONNECT_PROTOCOL] == 1
        await wire.headers(1, [*instead(":method", "CONNECT"), (":protocol", "connect-udp")])
        assert (await wire.head(1)).get(":status") == "501"
        assert gateway.recorder.calls == []
        await assert_serves(wire, 3)


async def test_h2_29_plain_connect_is_405(autojump_clock: MockClock) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.headers(1, [(":method", "CONNECT"), (":authority", "origin.test:443")])
        assert (await wire.head(1)).get(":status") == "405"
        assert gateway.recorder.calls == []
        await assert_serves(wire, 3)


async def test_h2_29_trace_is_405(autojump_clock: MockClock) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("TRACE"), end=True)
        assert (await response(wire, 1))[0] == "405"
        await assert_serves(wire, 3)


# -- R-05 ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "target", "status"),
    [
        ([("x-long", "y" * 70000)], "/", "431"),
        ([(f"x-{number}", "1") for number in range(130)], "/", "431"),
        ([], "/" + "a" * 16385, "414"),
    ],
    ids=["R-01 bytes", "R-01 fields", "R-02 target"],
)
async def test_r_01_r_02_a_head_over_a_limit_is_answered_on_its_stream(
    fields: AnyFields, target: str, status: str, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request(path=target, fields=fields), end=True)
        head = await wire.head(1)
        assert head.get(":status") == status
        assert gateway.recorder.calls == []
        await assert_serves(wire, 3)


@pytest.mark.parametrize("declared", [True, False])
async def test_r_03_content_over_the_limit_is_413_on_its_stream(
    declared: bool, autojump_clock: MockClock
) -> None:
    conf = ServerConf(max_body_bytes=1000)
    whole: list[Message] = []
    async with h2_gateway(keeps(whole), conf=conf) as gateway:
        whole.clear()
        asked = len(gateway.matrix.asked)
        wire = await gateway.frames()
        fields = [("content-length", "1001")] if declared else []
        await wire.headers(1, request("POST", fields=fields))
        if declared:
            assert (await wire.head(1)).get(":status") == "413"
            assert len(gateway.matrix.asked) == asked
        else:
            await wire.data(1, bytes(600))
            await wire.data(1, bytes(600), end=True)
            assert (await wire.head(1)).get(":status") == "413"
        await gateway.matrix.sessions_ended()
        assert whole == []
        await assert_serves(wire, 3)


async def test_r_05_more_sessions_than_allowed_get_503_on_their_streams(
    autojump_clock: MockClock,
) -> None:
    go_on = trio.Event()

    async def origin(exchange: Exchange) -> None:
        head = await exchange.message()
        if b"/neighbour" not in head.start:
            await go_on.wait()
        await exchange.respond(200, [("content-length", "5")], b"hello")

    async with h2_gateway(origin, conf=ServerConf(max_sessions=2)) as gateway:
        wire = await gateway.frames()
        for stream in (1, 3):
            await get(wire, stream)
        await wire.ping()
        await get(wire, 5)
        head = await wire.head(5)
        assert (head.get(":status"), head.get("retry-after")) == ("503", "1")
        go_on.set()
        for stream in (1, 3):
            assert await response(wire, stream) == ("200", b"hello")
        await assert_serves(wire, 7)


async def test_a_session_ends_by_the_error_that_its_malformed_request_made(
    autojump_clock: MockClock,
) -> None:
    async def origin(exchange: Exchange) -> None:
        if b"/neighbour" in (await exchange.head()).start:
            await exchange.respond(200, [("content-length", "5")], b"hello")
        else:
            await exchange.gone()

    async with h2_gateway(origin) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=[("content-length", "2")]))
        await wire.data(1, b"x")
        await wait_all_tasks_blocked()
        await wire.data(1, b"too much")
        await wire.until(RstStreamFrame, 1)
        await gateway.matrix.sessions_ended()
        error = gateway.recorder.the("logging").args["e"]
        assert error.etype == ErrorType.ConnectionClosed
        assert error.esource.name == "DOWNSTREAM"
