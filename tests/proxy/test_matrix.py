"""One scenario, sixteen pairings of protocols: the callbacks and the messages are the same in all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import (
    H1,
    H1_TLS,
    H2_TLS,
    LEGS,
    OK,
    PAIRINGS,
    Exchange,
    H1Exchange,
    Handler,
    Leg,
    Matrix,
    Origins,
    Outcome,
    Pairing,
    answers,
    authority_of,
    essence,
    keeps,
    open_matrix,
)
from tests._support.recording import (
    ORIGIN,
    ORIGIN_2,
    Ctx,
    CutError,
    Message,
    Recorder,
    raises,
    returns,
)
from trioproxy import (
    BodyChunk,
    ErrorSource,
    ErrorType,
    Headers,
    HttpPeer,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    Session,
)

Hooks = dict[str, Callable[..., Any]]
pairings = pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
#: For what moves much: every leg on either side, each version against each.
some_pairings = pytest.mark.parametrize(
    "pairing",
    [each for each in PAIRINGS if not (each.down.tls or each.up.tls)]
    + [Pairing(H1_TLS, H2_TLS), Pairing(H2_TLS, H1_TLS)],
    ids=str,
)

PREFIX = ["new_ctx", "early_request_filter", "request_filter"]
TO_ORIGIN = [*PREFIX, "proxy_upstream_filter"]
CONNECTED = ["upstream_peer", "connected_to_upstream", "upstream_request_filter"]
NO_BODY = ["request_body_filter(None, True)"]
OK_HEADS = ["upstream_response_filter(200)", "response_filter(200)"]
HELLO = [
    *OK_HEADS,
    "upstream_response_body_filter(b'hello', True)",
    "response_body_filter(b'hello', True)",
]
FAILED = ["fail_to_proxy", "suppress_error_log", "request_summary"]
LENGTH_5 = [("content-length", "5")]


def host(peer: HttpPeer) -> str:
    """Return a peer's host."""
    assert peer.host is not None
    return peer.host


def cuts(*pieces: bytes) -> Handler:
    """Return a handler that reads a request, sends an incomplete response, and breaks off."""

    async def handler(exchange: Exchange) -> None:
        await exchange.message()
        if pieces:
            await exchange.send_head(200, LENGTH_5)
        for piece in pieces:
            await exchange.send_data(piece)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()  # closing with something unread would be a reset
        exchange.close()

    return handler


async def hints(exchange: Exchange) -> None:
    """Answer with two informational heads before the final one."""
    await exchange.message()
    for _ in range(2):
        await exchange.send_head(103, [("link", "</a>")])
    await exchange.respond(200, LENGTH_5, b"hello")


async def never(exchange: Exchange) -> None:
    """Read a request, and wait for its client to go."""
    await exchange.message()
    await exchange.gone()


# -- transcripts ---------------------------------------------------------------------------------


def teapot() -> ProxyError:
    return ProxyError.status(418)


def again() -> ProxyError:
    error = ProxyError.explain(ErrorType.Custom("Busy"), "try the next one")
    error.set_retry(True)
    return error


async def answer(session: Session, _ctx: Ctx) -> bool:
    await session.write_response_header(ResponseHeader(200, [("Content-Length", "2")]))
    await session.write_response_body(b"hi", True)
    return True


async def answer_and_decline(session: Session, ctx: Ctx) -> bool:
    await answer(session, ctx)
    return False


async def answer_streamed(session: Session, _ctx: Ctx) -> bool:
    await session.write_response_header(ResponseHeader(200, [("X-Own", "1")]))
    for piece in (b"one ", b"two ", b"three"):
        await session.write_response_body(piece, False)
    await session.write_response_body(None, True)
    return True


def retry_connect(_session: Session, _peer: object, _ctx: Ctx, e: ProxyError) -> ProxyError:
    e.set_retry(True)
    return e


def retry_once(
    _peer: object, _session: Session, e: ProxyError, ctx: Ctx, _reused: bool
) -> ProxyError:
    e.set_retry(ctx.attempts < 2)
    return e


def first_peer_raises(recorder: Recorder) -> Hooks:
    async def upstream_peer(_session: Session, ctx: Ctx) -> object:
        if ctx.attempts == 1:
            raise again()
        return recorder.peers[0]

    return {"upstream_peer": upstream_peer}


def error_in(phase: str) -> Callable[[Recorder], Hooks]:
    return lambda _recorder: {phase: raises(teapot())}


def hooks(**named: Callable[..., Any]) -> Callable[[Recorder], Hooks]:
    return lambda _recorder: named


@attrs.frozen
class Row:
    """What happens, the callbacks that it makes run, and what the client sees."""

    name: str
    expected: list[str]
    #: 0 for a response that was cut.
    status: int = 200
    hooks: Callable[[Recorder], Hooks] = lambda _recorder: {}
    origins: Outcome | Origins = OK
    #: What is sent, as `Client.request` takes it.
    request: dict[str, Any] = attrs.field(factory=dict)
    body: bytes = b"hello"
    trailers: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    two_peers: bool = False


ERROR_AFTER_CONNECT = {
    "connected_to_upstream": ["upstream_peer", "connected_to_upstream"],
    "upstream_request_filter": CONNECTED,
    "request_body_filter": [*CONNECTED, *NO_BODY],
    "upstream_response_filter": [*CONNECTED, *NO_BODY, OK_HEADS[0]],
    "response_filter": [*CONNECTED, *NO_BODY, *OK_HEADS],
    "upstream_response_body_filter": [*CONNECTED, *NO_BODY, *HELLO[:3]],
    "response_body_filter": [*CONNECTED, *NO_BODY, *HELLO],
}
TEAPOT = "logging(HTTPStatus (code: 418))"
PLAIN = [*TO_ORIGIN, *CONNECTED, *NO_BODY]

ROWS = [
    Row("a request without a body", [*PLAIN, *HELLO, "logging"]),
    Row(
        "a request with a length",
        [*TO_ORIGIN, *CONNECTED, "request_body_filter(b'up', True)", *HELLO, "logging"],
        request={"method": "POST", "fields": [("content-length", "2")], "body": b"up"},
    ),
    Row(
        "a request with trailers",
        [
            *TO_ORIGIN,
            *CONNECTED,
            "request_body_filter(b'up', False)",
            "request_body_filter(None, True)",
            *HELLO,
            "logging",
        ],
        request={"method": "POST", "body": b"up", "trailers": [("x-sum", "1")]},
    ),
    *(
        Row(
            f"a {status}",
            [
                *PLAIN,
                f"upstream_response_filter({status})",
                f"response_filter({status})",
                "logging",
            ],
            status,
            origins=answers(status, fields, b""),
            body=b"",
        )
        for status, fields in ((204, []), (304, [("etag", '"x"')]))
    ),
    Row(
        "HEAD",
        [*PLAIN, *OK_HEADS, "logging"],
        origins=answers(200, LENGTH_5, b""),
        request={"method": "HEAD"},
        body=b"",
    ),
    Row(
        "an empty body",
        [*PLAIN, *OK_HEADS, "logging"],
        origins=answers(200, [("content-length", "0")], b""),
        body=b"",
    ),
    Row(
        "informational heads before the final one",
        [
            *PLAIN,
            *["upstream_response_filter(103)", "response_filter(103)"] * 2,
            *HELLO,
            "logging",
        ],
        origins=hints,
    ),
    Row(
        "trailers",
        [
            *PLAIN,
            *OK_HEADS,
            "upstream_response_body_filter(b'hello', False)",
            "response_body_filter(b'hello', False)",
            "upstream_response_body_filter(None, True)",
            "response_body_filter(None, True)",
            "upstream_response_trailer_filter",
            "response_trailer_filter",
            "logging",
        ],
        origins=answers(trailers=[("x-sum", "1")]),
        trailers=[(b"x-sum", b"1")],
    ),
    Row(
        "a 404 of the origin",
        [
            *PLAIN,
            "upstream_response_filter(404)",
            "response_filter(404)",
            *HELLO[2:],
            "logging",
        ],
        404,
        origins=answers(404, LENGTH_5),
    ),
    Row(
        "answered in request_filter",
        [*PREFIX, "logging"],
        hooks=hooks(request_filter=answer),
        body=b"hi",
    ),
    Row(
        "answered in request_filter, piece by piece",
        [*PREFIX, "logging"],
        hooks=hooks(request_filter=answer_streamed),
        body=b"one two three",
    ),
    *(
        Row(f"error in {phase}", [*TO_ORIGIN[:upto], *FAILED, TEAPOT], 418, error_in(phase))
        for phase, upto in (
            ("early_request_filter", 2),
            ("request_filter", 3),
            ("proxy_upstream_filter", 4),
        )
    ),
    Row(
        "the log line of an error is suppressed",
        [*PREFIX, "fail_to_proxy", "suppress_error_log", TEAPOT],
        418,
        hooks(request_filter=raises(teapot()), suppress_error_log=returns(True)),
    ),
    Row(
        "proxy_upstream_filter declines",
        [*TO_ORIGIN, "logging"],
        502,
        hooks(proxy_upstream_filter=returns(False)),
    ),
    Row(
        "proxy_upstream_filter answers and declines",
        [*TO_ORIGIN, "logging"],
        hooks=hooks(proxy_upstream_filter=answer_and_decline),
        body=b"hi",
    ),
    Row(
        "connect failure, retried",
        [
            *TO_ORIGIN,
            "upstream_peer",
            "fail_to_connect",
            "request_summary",
            *CONNECTED,
            *NO_BODY,
            *HELLO,
            "logging",
        ],
        hooks=hooks(fail_to_connect=retry_connect),
        origins={host(ORIGIN): ErrorType.ConnectRefused, host(ORIGIN_2): OK},
        two_peers=True,
    ),
    Row(
        "connect failure, final",
        [*TO_ORIGIN, "upstream_peer", "fail_to_connect", *FAILED, "logging(ConnectRefused)"],
        502,
        origins=ErrorType.ConnectRefused,
    ),
    Row(
        "upstream_peer raises",
        [*TO_ORIGIN, "upstream_peer", *FAILED, TEAPOT],
        418,
        error_in("upstream_peer"),
    ),
    Row(
        "upstream_peer raises what is to be retried",
        [
            *TO_ORIGIN,
            "upstream_peer",
            "request_summary",
            *CONNECTED,
            *NO_BODY,
            *HELLO,
            "logging",
        ],
        hooks=first_peer_raises,
    ),
    *(
        Row(
            f"error in {phase}",
            [*TO_ORIGIN, *before, "error_while_proxy", *FAILED, TEAPOT],
            418,
            error_in(phase),
        )
        for phase, before in ERROR_AFTER_CONNECT.items()
    ),
    Row(
        "error after connect, retried",
        [
            *PLAIN,
            "error_while_proxy",
            "request_summary",
            *CONNECTED,
            *NO_BODY,
            *HELLO,
            "logging",
        ],
        hooks=hooks(error_while_proxy=retry_once),
        origins={host(ORIGIN): [cuts(), OK]},
    ),
    Row(
        "error after connect, final",
        [*PLAIN, "error_while_proxy", *FAILED, "logging(ConnectionClosed)"],
        502,
        origins=cuts(),
    ),
    Row(
        "error mid response body",
        [
            *PLAIN,
            *OK_HEADS,
            "upstream_response_body_filter(b'hel', False)",
            "response_body_filter(b'hel', False)",
            "error_while_proxy",
            *FAILED,
            "logging(ConnectionClosed)",
        ],
        0,
        origins=cuts(b"hel"),
    ),
]


#: What is tried over TLS too, which carries bytes and knows no messages.
OVER_TLS = {
    "a request with trailers",
    "HEAD",
    "informational heads before the final one",
    "trailers",
    "answered in request_filter, piece by piece",
    "connect failure, retried",
    "error after connect, retried",
    "error mid response body",
}


@pytest.mark.parametrize(
    ("row", "pairing"),
    [
        pytest.param(row, pairing, id=f"{row.name}, {pairing}")
        for row in ROWS
        for pairing in PAIRINGS
        if row.name in OVER_TLS or not (pairing.down.tls or pairing.up.tls)
    ],
)
async def test_callbacks_run_alike_whatever_is_spoken(
    row: Row, pairing: Pairing, autojump_clock: MockClock
) -> None:
    assert {each.name for each in ROWS} >= OVER_TLS
    recorder = Recorder(peers=(ORIGIN, ORIGIN_2) if row.two_peers else (ORIGIN,))
    recorder.hooks = row.hooks(recorder)

    async with open_matrix(recorder, row.origins, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.request(**row.request)
        if row.status:
            response = await exchange.message()
            assert response.status == row.status
            if row.status < 400:
                assert (response.body, response.trailers) == (row.body, row.trailers)
        else:
            with pytest.raises(CutError) as cut:
                await exchange.message()
            assert cut.value.message is not None
            assert len(cut.value.message.body) < 5

    assert recorder.shown() == row.expected
    assert len({id(call.ctx) for call in recorder.calls}) == 1


# -- messages ------------------------------------------------------------------------------------


@pairings
async def test_a_request_and_its_response_arrive_as_they_were_sent(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    got: list[Message] = []
    fields = [("x-one", "1"), ("cookie", "a=b; c=d"), ("x-bytes", b"\xff\xfe"), ("x-empty", "")]
    origin = answers(
        206, [("content-length", "5"), ("set-cookie", "a=1"), ("set-cookie", "b=2")], b"hello"
    )
    recorder = Recorder()
    async with open_matrix(recorder, keeps(got, origin), pairing) as gateway:
        client = await gateway.connect()
        for target in ("/", "/a/../b%2f?x=%00&y", "/" + "long" * 1000):
            response = await client.exchange(
                "PURGE", target, [*fields, ("content-length", "2")], body=b"up"
            )
            assert essence(response) == (
                206,
                sorted(
                    [
                        (b"content-length", b"5"),
                        (b"set-cookie", b"a=1"),
                        (b"set-cookie", b"b=2"),
                    ]
                ),
                b"hello",
                [],
            )
            request = got.pop()
            sent = [(name.encode(), value) for name, value in fields[:0]]
            sent += [
                (b"x-one", b"1"),
                (b"cookie", b"a=b; c=d"),
                (b"x-bytes", b"\xff\xfe"),
                (b"x-empty", b""),
                (b"content-length", b"2"),
            ]
            assert essence(request) == (b"PURGE " + target.encode(), sorted(sent), b"up", [])
            assert authority_of(request) == "site.test"
        # All over one connection on either side.
        assert gateway.asked == ["origin.test"]


@pairings
async def test_trailers_go_both_ways(pairing: Pairing, autojump_clock: MockClock) -> None:
    got: list[Message] = []

    async def response_trailer_filter(_session: Session, trailers: Headers, _ctx: Ctx) -> None:
        trailers.add("X-Added", "2")

    recorder = Recorder(hooks={"response_trailer_filter": response_trailer_filter})
    origin = keeps(got, answers(trailers=[("x-sum", "1")]))
    async with open_matrix(recorder, origin, pairing) as gateway:
        response = await gateway.exchange("POST", body=b"up", trailers=[("x-up", "0")])

    assert got[0].trailers == [(b"x-up", b"0")]
    assert (response.body, response.status) == (b"hello", 200)
    assert [(name.lower(), value) for name, value in response.trailers] == [
        (b"x-sum", b"1"),
        (b"x-added", b"2"),
    ]


@pairings
async def test_informational_heads_reach_the_client(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send_head(100)
        await exchange.send_head(103, [("link", "</a>")])
        await exchange.message()
        await exchange.respond(200, LENGTH_5, b"hello")

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open(
            "POST", fields=[("expect", "100-continue"), ("content-length", "2")]
        )
        heads = await exchange.informational(2)
        await exchange.send_data(b"up", end=True)
        response = await exchange.message()

    assert [head.status for head in heads] == [100, 103]
    assert heads[1].get("link") == "</a>"
    assert response.status == 200


@pairings
async def test_head_204_and_304_leave_the_connection_in_step(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        request = await exchange.message()
        if request.start.startswith(b"HEAD "):
            await exchange.respond(200, LENGTH_5)
        else:
            status = int(request.start.split(b" ")[1].strip(b"/"))
            fields = [("content-length", "9")] if status == 304 else []
            await exchange.respond(status, fields, b"hello" if status == 200 else b"")

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        for _ in range(2):
            head = await client.exchange("HEAD")
            assert (head.status, head.get("content-length"), head.body) == (200, "5", b"")
            assert (await client.exchange(target="/204")).get("content-length") is None
            assert (await client.exchange(target="/304")).body == b""
            assert (await client.exchange(target="/200")).body == b"hello"
        assert gateway.asked == ["origin.test"]

    assert [call.args["e"] for call in recorder.of("logging")] == [None] * 8


@pairings
async def test_filters_and_log_are_told_what_is_spoken(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[tuple[bool, str, str, str | None, bool]] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        head = session.req_header()
        tls = session.digest().tls
        alpn = None if tls is None else tls.alpn
        seen.append((session.is_http2(), head.version, head.scheme or "", alpn, tls is not None))
        return False

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_matrix(recorder, OK, pairing) as gateway:
        assert (await gateway.exchange()).status == 200
        await gateway.sessions_ended()

    down, up = pairing.down, pairing.up
    version = "HTTP/2" if down.h2 else "HTTP/1.1"
    alpn = down.alpn[0] if down.tls else None
    assert seen == [(down.h2, version, down.scheme, alpn, down.tls)]
    (record,) = gateway.records
    assert record.version == version
    digest = recorder.the("connected_to_upstream").args["digest"]
    assert (digest.tls is not None) == up.tls
    if up.tls:
        assert digest.tls.alpn == up.alpn[0]
    response = recorder.the("upstream_response_filter").args["head"]
    assert response.version == ("HTTP/2" if up.h2 else "HTTP/1.1")


# -- bodies --------------------------------------------------------------------------------------

BLOCK = b"x" * 16384
MANY = 48
#: What one session may hold in all (row R-07), beside what the links in memory hold.
BOUND = 262144


async def _until_still(gateway: Matrix, sent: Callable[[], int]) -> int:
    """Return what was sent when no more can be."""
    before = -1
    while sent() != before:
        before = sent()
        await trio.sleep(1)
    return before


def _held(gateway: Matrix) -> int:
    """Return what is under way in memory outside the gateway: in the links."""
    return sum(end.outgoing.size + end.incoming.size for end in gateway.network.ends)


@some_pairings
async def test_a_client_that_does_not_read_stops_the_origin(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    sent = 0

    async def origin(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.message()
        await exchange.send_head(200)
        for number in range(MANY):
            await exchange.send_data(BLOCK, end=number == MANY - 1)
            sent += len(BLOCK)

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        exchange.hold()
        head = await exchange.head()
        still = await _until_still(gateway, lambda: sent)
        assert still - len(head.body) - _held(gateway) <= BOUND
        assert still < MANY * len(BLOCK)
        exchange.go_on()
        response = await exchange.message()

    assert response.body == BLOCK * MANY


@some_pairings
async def test_an_origin_that_does_not_read_stops_the_client(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    sent = 0
    read_on = trio.Event()
    got: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        exchange.hold()
        await exchange.head()
        await read_on.wait()
        exchange.go_on()
        got.append(await exchange.message())
        await exchange.respond(200, LENGTH_5, b"hello")

    async def upload(exchange: Exchange) -> None:
        nonlocal sent
        for number in range(MANY):
            await exchange.send_data(BLOCK, end=number == MANY - 1)
            sent += len(BLOCK)

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload, exchange)
            still = await _until_still(gateway, lambda: sent)
            # A held HTTP/2 stream has taken its window of 65,535 bytes.
            assert still - _held(gateway) - 65536 <= BOUND
            assert still < MANY * len(BLOCK)
            read_on.set()
        assert (await exchange.message()).status == 200

    assert got[0].body == BLOCK * MANY


@some_pairings
async def test_r_07_a_session_with_both_peers_stalled_holds_little(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    sent = [0]
    asked: list[Exchange] = []

    async def pour(exchange: Exchange) -> None:
        with contextlib.suppress(CutError):  # nobody will read all of it
            for _ in range(MANY):
                await exchange.send_data(BLOCK)
                sent[0] += len(BLOCK)

    async def origin(exchange: Exchange) -> None:
        exchange.hold()
        asked.append(exchange)
        await exchange.head()
        await exchange.send_head(200)
        await pour(exchange)

    async with open_matrix(Recorder(), origin, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        exchange.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, exchange)
            received = await exchange.head()
            await _until_still(gateway, lambda: sent[0])
            arrived = await asked[0].head()
            under_way = sent[0] - len(arrived.body) - len(received.body)
            assert under_way - _held(gateway) <= BOUND
            assert sent[0] < MANY * len(BLOCK)
            client.close()
        await gateway.sessions_ended()


@pairings
async def test_filters_may_change_the_length_of_both_bodies(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    got: list[Message] = []

    async def reframe_up(_session: Session, head: RequestHeader, _ctx: Ctx) -> None:
        head.headers.remove("Content-Length")

    async def reframe_down(_session: Session, head: ResponseHeader, _ctx: Ctx) -> None:
        head.headers.remove("Content-Length")

    def double(_session: Session, body: BodyChunk, end: bool, _ctx: Ctx) -> None:
        body.data = (body.data or b"") * 2 + (b"." if end else b"")

    async def shorten(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        body.data = body.data[:1] if body.data else None

    recorder = Recorder(
        hooks={
            "upstream_request_filter": reframe_up,
            "response_filter": reframe_down,
            "request_body_filter": shorten,
            "upstream_response_body_filter": double,
        }
    )
    async with open_matrix(recorder, keeps(got), pairing) as gateway:
        response = await gateway.exchange("POST", fields=[("content-length", "4")], body=b"abcd")

    assert got[0].body == b"a"
    assert got[0].get("content-length") is None
    assert response.body == b"hellohello."
    assert response.get("content-length") is None


@pairings
async def test_another_length_than_declared_is_never_sent_as_if_whole(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    whole: list[Message] = []

    async def lengthen(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        body.data = body.data and body.data + b"x"

    recorder = Recorder(hooks={"request_body_filter": lengthen})
    async with open_matrix(recorder, keeps(whole), pairing) as gateway:
        response = await gateway.exchange("POST", fields=[("content-length", "2")], body=b"up")
        assert response.status == 500

    assert whole == []
    error = recorder.the("logging").args["e"]
    assert error.root_etype() == ErrorType.InternalError
    assert error.esource is ErrorSource.INTERNAL


@pairings
async def test_a_peeked_body_still_reaches_the_origin(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    got: list[Message] = []
    peeked: list[tuple[bytes, bool]] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        for limit in (4, 100):
            seen = await session.peek_request_body(limit)
            peeked.append((seen.data, seen.complete))
        return False

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_matrix(recorder, keeps(got), pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        await exchange.send_data(b"one")
        await wait_all_tasks_blocked()
        await exchange.send_data(b"two", end=True)
        assert (await exchange.message()).status == 200

    assert peeked == [(b"onet", False), (b"onetwo", True)]
    assert got[0].body == b"onetwo"
    pieces = recorder.pieces("request_body_filter")
    assert b"".join(data or b"" for data, _ in pieces) == b"onetwo"
    assert [end for _, end in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("cut", [False, True], ids=["ended", "cut"])
@pytest.mark.parametrize("up", [H1, H1_TLS], ids=str)
@pytest.mark.parametrize("down", LEGS, ids=str)
async def test_u1_11_content_until_close_is_whole_only_if_the_connection_ended_well(
    down: Leg, up: Leg, cut: bool, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        assert isinstance(exchange, H1Exchange)
        await exchange.message()
        wire = exchange.wire
        await wire.send(b"HTTP/1.1 200 OK\r\nX-Kept: 1\r\n\r\nhello")
        await wait_all_tasks_blocked()
        if not cut:
            await wire.half_close()
        elif up.tls:
            wire.stream.send_stream.wire.truncate()  # a FIN, which only TLS can tell from an end
        else:
            wire.stream.send_stream.end.reset()

    recorder = Recorder()
    async with open_matrix(recorder, origin, Pairing(down, up)) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        if cut:
            with pytest.raises(CutError) as caught:
                await exchange.message()
            assert caught.value.message is not None
            assert caught.value.message.body == b"hello"
        else:
            response = await exchange.message()
            assert essence(response) == (200, [(b"x-kept", b"1")], b"hello", [])
        await gateway.sessions_ended()
    error = recorder.the("logging").args["e"]
    assert (error is not None) == cut
    if cut:
        assert error.esource is ErrorSource.UPSTREAM


# -- retries -------------------------------------------------------------------------------------


@pairings
async def test_a_retry_sends_the_whole_body_again(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    got: list[Message] = []
    recorder = Recorder(hooks={"error_while_proxy": retry_once})
    origins: Origins = {host(ORIGIN): [cuts(), keeps(got)]}
    async with open_matrix(recorder, origins, pairing) as gateway:
        response = await gateway.exchange("POST", fields=[("content-length", "6")], body=b"abcdef")

    assert response.status == 200
    assert got[0].body == b"abcdef"
    assert recorder.pieces("request_body_filter") == [(b"abcdef", True)] * 2


@pairings
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_reused_connection_that_dies_costs_only_what_may_not_be_repeated(
    method: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def once(exchange: Exchange) -> None:
        await exchange.message()
        if exchange.index:
            exchange.close()
        else:
            await exchange.respond(200, LENGTH_5, b"hello")

    recorder = Recorder()
    async with open_matrix(recorder, {host(ORIGIN): [once, OK]}, pairing) as gateway:
        assert (await gateway.exchange()).status == 200
        response = await gateway.exchange(method)
        assert gateway.asked == ["origin.test"] * (2 if method == "GET" else 1)

    assert response.status == (200 if method == "GET" else 502)


# -- endings -------------------------------------------------------------------------------------


@pairings
async def test_a_client_that_leaves_ends_the_exchange_on_both_sides(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    gone = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await never(exchange)
        gone.set()

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        await wait_all_tasks_blocked()
        await exchange.reset()
        await gone.wait()
        await gateway.sessions_ended()

    ending = [name for name in recorder.shown() if name not in FAILED[1:]]
    assert ending == [*PLAIN, "error_while_proxy", "fail_to_proxy", "logging(ConnectionClosed)"]
    assert recorder.the("logging").args["e"].esource is ErrorSource.DOWNSTREAM
    assert gateway.records[0].status == 0


@pairings
async def test_a_connection_that_the_client_closes_ends_the_exchange_on_both_sides(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    gone = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200)
        await exchange.send_data(b"hel")
        await exchange.gone()
        gone.set()

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        await exchange.at_least(3)
        client.close()
        await gone.wait()
        await gateway.ended()

    assert recorder.shown()[-1] == "logging(ConnectionClosed)"
    assert recorder.the("logging").args["e"].esource is ErrorSource.DOWNSTREAM


@pairings
async def test_a_client_that_leaves_in_its_upload_never_makes_a_whole_request(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    cut: list[Message | None] = []

    async def origin(exchange: Exchange) -> None:
        with pytest.raises(CutError) as caught:
            await exchange.message()
        cut.append(caught.value.message)

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST", fields=[("content-length", "6")])
        await exchange.send_data(b"abc")
        await wait_all_tasks_blocked()
        await exchange.reset()
        await gateway.sessions_ended()
        await wait_all_tasks_blocked()

    (message,) = cut
    assert message is not None
    assert message.body == b"abc"
    assert not any(end for _, end in recorder.pieces("request_body_filter"))
    assert recorder.shown()[-1] == "logging(ConnectionClosed)"


@pairings
async def test_an_early_response_ends_the_upload(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.respond(413, [("content-length", "3")], b"big")
        await exchange.gone()

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST", fields=[("content-length", "100")])
        await exchange.send_data(b"x" * 50)
        response = await exchange.message()
        await gateway.sessions_ended()

    assert (response.status, response.body) == (413, b"big")
    assert not any(end for _, end in recorder.pieces("request_body_filter"))
    assert recorder.pieces("response_body_filter")[-1][1] is True
    assert recorder.the("logging").args["e"] is None


@pairings
async def test_a_filter_answers_before_the_upload_ended(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        await session.respond_error(403)
        return True

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_matrix(recorder, OK, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST", fields=[("content-length", "100")])
        await exchange.send_data(b"x" * 50)
        assert (await exchange.message()).status == 403
        await gateway.sessions_ended()
        assert gateway.asked == []

    assert recorder.shown() == [*PREFIX, "logging"]


@pairings
async def test_an_origin_that_is_silent_is_left_after_its_timeout(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    gone = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await never(exchange)
        gone.set()

    recorder = Recorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        started = trio.current_time()
        response = await gateway.exchange()
        assert trio.current_time() - started == pytest.approx(60, abs=1)
        await gone.wait()

    assert response.status == 502
    assert recorder.shown()[-1] == "logging(ReadTimedout)"


@pairings
async def test_a_filter_that_raises_in_a_body_never_ends_the_response_properly(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200)
        await exchange.send_data(b"good")
        await wait_all_tasks_blocked()
        await exchange.send_data(b"evil")
        await exchange.gone()

    def fail(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        if body.data == b"evil":
            raise ZeroDivisionError

    recorder = Recorder(hooks={"upstream_response_body_filter": fail})
    async with open_matrix(recorder, origin, pairing) as gateway:
        with pytest.raises(CutError) as cut:
            await gateway.exchange()
        await gateway.sessions_ended()

    assert cut.value.message is not None
    assert cut.value.message.body == b"good"
    assert recorder.shown()[-1] == "logging(InternalError)"
