"""Each of the twenty callbacks: when it runs, with what, how often, and what its exception does."""

from __future__ import annotations

import logging
import math

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    ORIGIN_2,
    Ctx,
    CutError,
    Message,
    Origin,
    Origins,
    Recorder,
    Wire,
    answers,
    chunked,
    cuts,
    in_pieces,
    keeps,
    open_gateway,
    post,
    raises,
    returns,
)
from trioproxy import (
    BodyChunk,
    ErrorSource,
    ErrorType,
    FailToProxy,
    Headers,
    HttpPeer,
    PeerOptions,
    ProxyError,
    ProxyHttp,
    RequestHeader,
    ResponseHeader,
    RetryType,
    ServerConf,
    Session,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WITH_TRAILERS = CHUNKED + chunked(b"hello", trailers=b"X-Sum: 1\r\n")
HELLO = answers(OK)
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

#: The callbacks whose exception goes the way of an error, with a request that makes them run.
MAY_FAIL = [
    "early_request_filter",
    "request_filter",
    "proxy_upstream_filter",
    "upstream_peer",
    "connected_to_upstream",
    "upstream_request_filter",
    "request_body_filter",
    "upstream_response_filter",
    "response_filter",
    "upstream_response_body_filter",
    "response_body_filter",
    "upstream_response_trailer_filter",
]


class OurMistakeError(Exception):
    """What a careless callback raises."""


def tracebacks(caplog: pytest.LogCaptureFixture, kind: type[Exception]) -> int:
    """Count the log records that carry the traceback of such an exception."""
    return sum(1 for record in caplog.records if record.exc_info and record.exc_info[0] is kind)


@attrs.define
class Bare(ProxyHttp[None]):
    """Overrides what must be overridden."""

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return ORIGIN


async def run(recorder: Recorder, origin: Origin = HELLO, request: bytes = GET) -> Message:
    """Send one request, and return its response."""
    async with open_gateway(recorder, {ORIGIN.name: origin, ORIGIN_2.name: origin}) as gateway:
        return await gateway.exchange(request)


# -- what is common to all ------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAY_FAIL)
async def test_any_other_exception_becomes_an_internal_error_and_is_logged_once(
    name: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    mistake = OurMistakeError("oops")
    recorder = Recorder(hooks={name: raises(mistake)})

    async with open_gateway(recorder, answers(WITH_TRAILERS)) as gateway:
        client = gateway.connect()
        await client.send(post(b"up"))
        assert (await client.message()).status == 500
        assert await client.at_end()

    error = recorder.the("logging").args["e"]
    assert error.etype == ErrorType.InternalError
    assert error.esource is ErrorSource.INTERNAL
    assert error.root_cause() is mistake
    assert recorder.names()[-1] == "logging"
    assert len(recorder.of("fail_to_proxy")) == 1
    assert tracebacks(caplog, OurMistakeError) == 1


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("fail_to_connect", ErrorType.ConnectRefused),
        ("response_trailer_filter", answers(WITH_TRAILERS)),
        ("error_while_proxy", cuts()),
        ("fail_to_proxy", cuts()),
        ("suppress_error_log", cuts()),
        ("request_summary", cuts()),
        ("logging", HELLO),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_proxy_error_of_a_callback_that_may_not_fail_is_logged_too(
    name: str,
    origin: Origin | ErrorType,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder(hooks={name: raises(ProxyError.status(418, "a slip"))})
    async with open_gateway(recorder, origin) as gateway:
        await gateway.exchange(GET)

    assert tracebacks(caplog, ProxyError) == 1
    (line,) = [each for each in caplog.messages if "a slip" in each]
    assert line.startswith(f"{name} raised ProxyError: ")


async def test_a_client_that_leaves_while_it_is_answered_is_no_mistake_of_fail_to_proxy(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gone = ProxyError.new_down(ErrorType.WriteError)
    recorder = Recorder(hooks={"fail_to_proxy": raises(gone)})
    async with open_gateway(recorder, cuts()) as gateway:
        await gateway.exchange(GET)

    assert len(recorder.of("fail_to_proxy")) == 1
    assert tracebacks(caplog, ProxyError) == 0


@pytest.mark.parametrize("name", MAY_FAIL[:-3])
async def test_a_status_raised_anywhere_before_the_response_is_the_answer(
    name: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(hooks={name: raises(ProxyError.status(451))})

    response = await run(recorder)

    assert response.status == 451
    assert response.get("cache-control") == "private, no-store"
    assert response.get("connection") == "close"
    assert recorder.the("logging").args["e"].etype == ErrorType.HTTPStatus(451)
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_exception_group_of_a_filters_own_nursery_is_its_mistake(
    autojump_clock: MockClock,
) -> None:
    mistake = OurMistakeError("oops")

    async def request_filter(_session: Session, _ctx: Ctx) -> bool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raiser)
            await trio.sleep_forever()

    async def raiser() -> None:
        raise mistake

    recorder = Recorder(hooks={"request_filter": request_filter})
    assert (await run(recorder)).status == 500
    assert recorder.the("logging").args["e"].root_cause() is mistake


async def test_a_proxy_error_in_a_group_keeps_its_status(autojump_clock: MockClock) -> None:
    async def request_filter(_session: Session, _ctx: Ctx) -> bool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raiser)
            await trio.sleep_forever()

    async def raiser() -> None:
        raise ProxyError.status(403)

    assert (await run(Recorder(hooks={"request_filter": request_filter}))).status == 403


async def test_an_exception_ends_its_own_session_only(autojump_clock: MockClock) -> None:
    async def response_filter(session: Session, _head: ResponseHeader, _ctx: Ctx) -> None:
        if session.req_header().path == "/bad":
            raise OurMistakeError
        await trio.sleep(1)

    recorder = Recorder(hooks={"response_filter": response_filter})
    statuses: dict[int, list[int]] = {200: [], 500: []}

    async with open_gateway(recorder, answers(OK)) as gateway:

        async def one(request: bytes, expected: int) -> None:
            statuses[expected].append((await gateway.exchange(request)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one, GET, 200)
                nursery.start_soon(one, GET.replace(b"/path", b"/bad"), 500)

    assert statuses == {200: [200] * 3, 500: [500] * 3}
    assert len(recorder.of("logging")) == 6


async def test_a_class_that_overrides_nothing_passes_everything_on(
    autojump_clock: MockClock,
) -> None:
    got: list[Message] = []
    async with open_gateway(Bare(), keeps(got, WITH_TRAILERS)) as gateway:
        response = await gateway.exchange(post(b"up"))

    assert response.body == b"hello"
    assert response.trailers == [(b"x-sum", b"1")]
    assert got[0].body == b"up"


# -- new_ctx -------------------------------------------------------------------------------------


async def test_new_ctx_runs_first_and_once_for_each_request_of_a_connection(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(3):
            await client.send(GET)
            await client.message()

    made = recorder.of("new_ctx")
    assert [call.ctx.number for call in made] == [0, 1, 2]
    for each in made:
        names = [call.name for call in recorder.calls if call.ctx is each.ctx]
        assert (names[0], names[-1]) == ("new_ctx", "logging")


async def test_an_exception_of_new_ctx_answers_500_and_nothing_else_runs(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(hooks={"new_ctx": raises(OurMistakeError("oops"))})

    response = await run(recorder)

    assert response.status == 500
    assert response.get("connection") == "close"
    assert recorder.names() == ["new_ctx"]
    assert tracebacks(caplog, OurMistakeError) == 1


# -- early_request_filter ------------------------------------------------------------------------


async def test_early_request_filter_is_the_first_filter_and_edits_are_seen_by_the_next(
    autojump_clock: MockClock,
) -> None:
    async def early_request_filter(session: Session, _ctx: Ctx) -> None:
        session.req_header().headers.set("X-Early", "1")

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        assert session.get_header("x-early") == "1"
        return False

    got: list[Message] = []
    recorder = Recorder(
        hooks={"early_request_filter": early_request_filter, "request_filter": request_filter}
    )
    response = await run(recorder, keeps(got))

    assert response.status == 200
    assert got[0].get("x-early") == "1"
    assert recorder.names()[:3] == ["new_ctx", "early_request_filter", "request_filter"]


# -- request_filter ------------------------------------------------------------------------------


async def test_request_filter_answers_and_the_connection_is_kept(
    autojump_clock: MockClock,
) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        head = ResponseHeader(200, [("Content-Length", "3")])
        await session.write_response_header(head)
        await session.write_response_body(b"own", True)
        return True

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.message()).body == b"own"
        assert gateway.connector.asked == []

    assert [call.args["e"] for call in recorder.of("logging")] == [None, None]


async def test_true_without_an_answer_is_a_mistake_answered_500_and_closed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(hooks={"request_filter": returns(True)})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        response = await client.message()
        assert await client.at_end()

    assert response.status == 500
    assert response.get("connection") == "close"
    assert any("request_filter" in each.message for each in caplog.records)
    assert len(recorder.of("logging")) == 1


async def test_request_filter_rewrites_the_request_for_every_later_step(
    autojump_clock: MockClock,
) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        head = session.req_header()
        head.path = "/other"
        head.query = "a=1"
        head.headers.set("Host", "other.test")
        return False

    got: list[Message] = []
    recorder = Recorder(hooks={"request_filter": request_filter})
    await run(recorder, keeps(got))

    assert got[0].start == b"GET /other?a=1 HTTP/1.1"
    assert got[0].get("host") == "other.test"
    assert recorder.the("upstream_request_filter").args["head"].path == "/other"


# -- proxy_upstream_filter -----------------------------------------------------------------------


async def test_proxy_upstream_filter_declines_with_an_empty_502_and_the_connection_is_kept(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder(hooks={"proxy_upstream_filter": returns(False)})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(GET)
            response = await client.message()
            assert response.status == 502
            assert response.body == b""
            assert response.get("content-length") == "0"
            assert response.get("cache-control") == "private, no-store"
            assert response.get("server") is not None
        assert gateway.connector.asked == []

    assert [call.args["e"] for call in recorder.of("logging")] == [None, None]


async def test_proxy_upstream_filter_runs_before_the_first_attempt_only(
    autojump_clock: MockClock,
) -> None:
    def fail_to_connect(_s: Session, _p: HttpPeer, _c: Ctx, e: ProxyError) -> ProxyError:
        e.set_retry(True)
        return e

    recorder = Recorder(hooks={"fail_to_connect": fail_to_connect})
    origins: Origins = {
        ORIGIN.name: [ErrorType.ConnectRefused, ErrorType.ConnectRefused, answers(OK)]
    }
    async with open_gateway(recorder, origins) as gateway:
        assert (await gateway.exchange(GET)).status == 200

    assert len(recorder.of("proxy_upstream_filter")) == 1
    assert len(recorder.of("upstream_peer")) == 3


# -- upstream_peer -------------------------------------------------------------------------------


async def test_upstream_peer_is_asked_again_for_each_attempt_up_to_the_limit(
    autojump_clock: MockClock,
) -> None:
    def fail_to_connect(_s: Session, _p: HttpPeer, _c: Ctx, e: ProxyError) -> ProxyError:
        e.set_retry(True)
        return e

    recorder = Recorder(hooks={"fail_to_connect": fail_to_connect})
    async with open_gateway(recorder, ErrorType.ConnectRefused) as gateway:
        assert (await gateway.exchange(GET)).status == 502

    assert len(recorder.of("upstream_peer")) == 16
    assert len(recorder.of("fail_to_connect")) == 16
    assert len(recorder.of("fail_to_proxy")) == 1


async def test_max_attempts_is_all_attempts_and_not_the_extra_ones(
    autojump_clock: MockClock,
) -> None:
    error = ProxyError.status(503)
    error.set_retry(True)
    recorder = Recorder(hooks={"upstream_peer": raises(error)})
    async with open_gateway(recorder, answers(OK), conf=ServerConf(max_attempts=2)) as gateway:
        assert (await gateway.exchange(GET)).status == 503

    assert len(recorder.of("upstream_peer")) == 2
    assert not recorder.of("fail_to_connect")
    assert not recorder.of("error_while_proxy")


async def test_upstream_peer_that_returns_no_peer_is_the_users_mistake(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(hooks={"upstream_peer": returns("http://origin.test")})

    assert (await run(recorder)).status == 500
    error = recorder.the("logging").args["e"]
    assert error.etype == ErrorType.InternalError
    assert error.esource is ErrorSource.INTERNAL


# -- fail_to_connect -----------------------------------------------------------------------------


async def test_fail_to_connect_sees_the_peer_and_an_upstream_error_that_is_not_retried(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, ErrorType.ConnectTimedout) as gateway:
        assert (await gateway.exchange(GET)).status == 502

    args = recorder.the("fail_to_connect").args
    assert args["peer"] == ORIGIN
    assert args["e"].etype == ErrorType.ConnectTimedout
    assert args["e"].esource is ErrorSource.UPSTREAM
    assert args["e"].retry == RetryType.Decided(False)


async def test_fail_to_connect_decides_which_error_goes_on_but_not_its_source(
    autojump_clock: MockClock,
) -> None:
    def fail_to_connect(_s: Session, _p: HttpPeer, _c: Ctx, e: ProxyError) -> ProxyError:
        return ProxyError.because(ErrorType.Custom("Mine"), "no way", e).into_in()

    recorder = Recorder(hooks={"fail_to_connect": fail_to_connect})
    async with open_gateway(recorder, ErrorType.ConnectRefused) as gateway:
        assert (await gateway.exchange(GET)).status == 502

    error = recorder.the("logging").args["e"]
    assert error.etype == ErrorType.Custom("Mine")
    assert error.esource is ErrorSource.UPSTREAM


async def test_a_post_may_be_retried_after_a_connect_failure(autojump_clock: MockClock) -> None:
    def fail_to_connect(_s: Session, _p: HttpPeer, _c: Ctx, e: ProxyError) -> ProxyError:
        e.set_retry(True)
        return e

    got: list[Message] = []
    recorder = Recorder(peers=(ORIGIN, ORIGIN_2), hooks={"fail_to_connect": fail_to_connect})
    origins: Origins = {ORIGIN.name: ErrorType.ConnectRefused, ORIGIN_2.name: keeps(got)}
    async with open_gateway(recorder, origins) as gateway:
        assert (await gateway.exchange(post(b"x" * 100))).status == 200

    assert got[0].body == b"x" * 100


async def test_an_exception_of_fail_to_connect_leaves_the_error_as_it_was(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(hooks={"fail_to_connect": raises(OurMistakeError())})
    async with open_gateway(recorder, ErrorType.ConnectRefused) as gateway:
        assert (await gateway.exchange(GET)).status == 502

    assert recorder.the("logging").args["e"].etype == ErrorType.ConnectRefused
    assert len(recorder.of("upstream_peer")) == 1
    assert tracebacks(caplog, OurMistakeError) == 1


async def test_an_open_mark_left_by_fail_to_connect_is_not_retried(
    autojump_clock: MockClock,
) -> None:
    def fail_to_connect(_s: Session, _p: HttpPeer, _c: Ctx, e: ProxyError) -> ProxyError:
        e.retry = RetryType.ReusedOnly
        return e

    recorder = Recorder(hooks={"fail_to_connect": fail_to_connect})
    async with open_gateway(recorder, ErrorType.ConnectRefused) as gateway:
        assert (await gateway.exchange(GET)).status == 502

    assert len(recorder.of("upstream_peer")) == 1
    assert recorder.the("logging").args["e"].retry == RetryType.Decided(False)


# -- connected_to_upstream -----------------------------------------------------------------------


async def test_connected_to_upstream_tells_new_from_pooled_connections(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, answers(OK)) as gateway:
        for _ in range(2):
            await gateway.exchange(GET)

    first, second = recorder.of("connected_to_upstream")
    assert (first.args["reused"], second.args["reused"]) == (False, True)
    for call in (first, second):
        assert call.args["peer"] is ORIGIN
        assert call.args["fd"] == -1
        assert call.args["digest"].peer_addr == "192.0.2.20:80"
        assert call.args["digest"].local_addr == "192.0.2.10:40000"


@pytest.mark.parametrize("name", ["connected_to_upstream", "upstream_request_filter"])
async def test_an_exception_before_the_request_sends_nothing_and_costs_the_connection(
    name: str, autojump_clock: MockClock
) -> None:
    received: list[bytes] = []

    async def origin(wire: Wire) -> None:
        while await wire.more():
            pass
        received.append(bytes(wire.buffer))

    recorder = Recorder(hooks={name: raises(ProxyError.status(403))})
    async with open_gateway(recorder, origin) as gateway:
        assert (await gateway.exchange(GET)).status == 403
        assert gateway.pool.statistics().idle == 0

    assert received == [b""]
    assert len(recorder.of("error_while_proxy")) == 1


# -- upstream_request_filter ---------------------------------------------------------------------


async def test_upstream_request_filter_edits_a_copy_of_each_attempt_without_hop_by_hop_fields(
    autojump_clock: MockClock,
) -> None:
    seen: list[list[tuple[str, str]]] = []

    async def upstream_request_filter(session: Session, head: RequestHeader, ctx: Ctx) -> None:
        seen.append(head.headers.items())
        head.headers.set("X-Attempt", str(ctx.attempts))
        head.path = "/upstream"
        assert session.get_header("x-attempt") is None
        assert session.req_header().path == "/path"

    def error_while_proxy(
        _peer: HttpPeer, _session: Session, e: ProxyError, ctx: Ctx, _reused: bool
    ) -> ProxyError:
        e.set_retry(ctx.attempts == 1)
        return e

    got: list[Message] = []
    recorder = Recorder(
        hooks={
            "upstream_request_filter": upstream_request_filter,
            "error_while_proxy": error_while_proxy,
        }
    )
    request = (
        GET[:-2] + b"Connection: X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nX-Kept: 1\r\n\r\n"
    )
    async with open_gateway(recorder, {ORIGIN.name: [cuts(), keeps(got)]}) as gateway:
        await gateway.exchange(request)

    assert seen == [[("Host", "site.test"), ("X-Kept", "1")]] * 2
    assert got[0].start == b"GET /upstream HTTP/1.1"
    assert got[0].get("x-attempt") == "2"
    assert got[0].get("x-secret") is None


# -- request_body_filter -------------------------------------------------------------------------


async def test_request_body_filter_rewrites_what_goes_to_the_origin(
    autojump_clock: MockClock,
) -> None:
    async def request_body_filter(
        _session: Session, body: BodyChunk, end_of_stream: bool, _ctx: Ctx
    ) -> None:
        body.data = (body.data or b"").upper() + (b"!" if end_of_stream else b"")

    got: list[Message] = []
    recorder = Recorder(hooks={"request_body_filter": request_body_filter})
    await run(recorder, keeps(got), post(b"ab", b"cd", framing="chunked"))

    assert got[0].body == b"ABCD!"


async def test_an_exception_of_request_body_filter_in_mid_upload_fails_the_attempt(
    autojump_clock: MockClock,
) -> None:
    async def request_body_filter(
        _session: Session, body: BodyChunk, _end: bool, _ctx: Ctx
    ) -> None:
        if body.data == b"bad":
            raise ProxyError.status(422)

    cut: list[Message | None] = []

    async def origin(wire: Wire) -> None:
        try:
            await wire.message()
        except CutError as exc:
            cut.append(exc.message)

    recorder = Recorder(hooks={"request_body_filter": request_body_filter})
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        for piece in (b"abc", b"bad"):
            await trio.testing.wait_all_tasks_blocked()
            await client.send(piece)
        assert (await client.message()).status == 422
        # The body was not read to its end, so the connection cannot go on.
        client.close()

    assert [name for name in recorder.names() if name.endswith("proxy")] == [
        "error_while_proxy",
        "fail_to_proxy",
    ]
    (message,) = cut
    assert message is not None
    assert message.body == b"abc"


# -- upstream_response_filter and response_filter ------------------------------------------------


async def test_both_head_filters_see_each_head_and_their_edits_reach_the_client(
    autojump_clock: MockClock,
) -> None:
    async def upstream_response_filter(_session: Session, head: ResponseHeader, _ctx: Ctx) -> None:
        head.headers.set("X-From-Upstream", str(head.status))

    async def response_filter(_session: Session, head: ResponseHeader, _ctx: Ctx) -> None:
        assert head.headers.get("x-from-upstream") == str(head.status)
        head.headers.remove("X-From-Upstream")
        head.headers.set("X-Response", str(head.status))
        if head.status == 200:
            head.status = 203

    recorder = Recorder(
        hooks={
            "upstream_response_filter": upstream_response_filter,
            "response_filter": response_filter,
        }
    )
    async with open_gateway(recorder, answers(EARLY_HINTS + OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        early = await client.message()
        final = await client.message()

    assert (early.status, early.get("x-response"), early.get("link")) == (103, "103", "</a>")
    assert (final.status, final.get("x-response"), final.body) == (203, "200", b"hello")
    assert final.get("x-from-upstream") is None
    heads = ("upstream_response_filter", "response_filter")
    assert [call.shown for call in recorder.calls if call.name in heads] == [
        "upstream_response_filter(103)",
        "response_filter(103)",
        "upstream_response_filter(200)",
        "response_filter(200)",
    ]


@pytest.mark.parametrize("name", ["upstream_response_filter", "response_filter"])
async def test_an_exception_on_an_informational_head_fails_the_attempt(
    name: str, autojump_clock: MockClock
) -> None:
    recorder = Recorder(hooks={name: raises(ProxyError.status(418))})

    assert (await run(recorder, answers(EARLY_HINTS + OK))).status == 418
    assert len(recorder.of(name)) == 1


# -- the response's body filters (more of them in test_bodies.py) --------------------------------


async def test_the_upstream_body_filter_runs_before_the_response_body_filter_on_each_piece(
    autojump_clock: MockClock,
) -> None:
    def upstream(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        if body.data:
            body.data = body.data + b"1"

    async def downstream(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        if body.data:
            body.data = body.data + b"2"

    recorder = Recorder(
        hooks={"upstream_response_body_filter": upstream, "response_body_filter": downstream}
    )
    response = await run(recorder, in_pieces(CHUNKED, b"1\r\na\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"))

    assert response.body == b"a12b12"
    assert recorder.pieces("upstream_response_body_filter") == [
        (b"a", False),
        (b"b", False),
        (None, True),
    ]
    assert recorder.pieces("response_body_filter") == [
        (b"a1", False),
        (b"b1", False),
        (None, True),
    ]


@pytest.mark.parametrize("name", ["upstream_response_body_filter", "response_body_filter"])
async def test_an_exception_in_mid_body_cuts_the_response(
    name: str, autojump_clock: MockClock
) -> None:
    def hook(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        if body.data == b"two":
            raise ProxyError.status(500)

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(CHUNKED + b"3\r\none\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await wire.send(b"3\r\ntwo\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await wire.send(b"0\r\n\r\n")

    recorder = Recorder(hooks={name: hook})
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(GET)
        with pytest.raises(CutError) as cut:
            await client.message()

    message = cut.value.message
    assert message is not None
    assert message.body == b"one"
    assert not any(end for _, end in recorder.pieces("response_body_filter"))
    assert recorder.names()[-5:] == [
        "error_while_proxy",
        "fail_to_proxy",
        "suppress_error_log",
        "request_summary",
        "logging",
    ]


# -- trailers ------------------------------------------------------------------------------------


async def test_both_trailer_filters_edit_in_place_after_the_end_of_the_body(
    autojump_clock: MockClock,
) -> None:
    def upstream(_session: Session, trailers: Headers, _ctx: Ctx) -> None:
        trailers.set("X-Sum", "2")

    async def downstream(_session: Session, trailers: Headers, _ctx: Ctx) -> None:
        assert trailers.get("x-sum") == "2"
        trailers.add("X-More", "3")

    recorder = Recorder(
        hooks={"upstream_response_trailer_filter": upstream, "response_trailer_filter": downstream}
    )
    response = await run(recorder, answers(WITH_TRAILERS))

    assert response.trailers == [(b"x-sum", b"2"), (b"x-more", b"3")]
    assert recorder.the("upstream_response_trailer_filter").args["trailers"].get("x-sum") == "1"
    names = recorder.names()
    assert names.index("response_body_filter") < names.index("upstream_response_trailer_filter")
    assert recorder.pieces("response_body_filter")[-1] == (None, True)


async def test_trailer_filters_do_not_run_without_trailers(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    await run(recorder, answers(CHUNKED + chunked(b"hello")))

    assert not recorder.of("upstream_response_trailer_filter")
    assert not recorder.of("response_trailer_filter")


async def test_bytes_of_response_trailer_filter_replace_the_trailers(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder(hooks={"response_trailer_filter": returns(b" and the sum")})

    response = await run(recorder, answers(WITH_TRAILERS))

    assert response.body == b"hello and the sum"
    assert response.trailers == []
    # They are no piece for the body filters.
    assert recorder.pieces("response_body_filter") == [(b"hello", False), (None, True)]


async def test_an_exception_of_response_trailer_filter_passes_the_trailers_unfiltered(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def response_trailer_filter(_session: Session, trailers: Headers, _ctx: Ctx) -> None:
        trailers.set("X-Sum", "broken")
        raise OurMistakeError

    recorder = Recorder(hooks={"response_trailer_filter": response_trailer_filter})
    async with open_gateway(recorder, answers(WITH_TRAILERS)) as gateway:
        client = gateway.connect()
        for _ in range(2):  # and the connection stays
            await client.send(GET)
            assert (await client.message()).trailers == [(b"x-sum", b"1")]

    assert [call.args["e"] for call in recorder.of("logging")] == [None, None]
    assert not recorder.of("error_while_proxy")
    assert tracebacks(caplog, OurMistakeError) == 2


# -- error_while_proxy ---------------------------------------------------------------------------


async def test_error_while_proxy_sees_the_error_and_adds_the_peer_to_it(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    assert (await run(recorder, cuts())).status == 502

    args = recorder.the("error_while_proxy").args
    assert args["peer"] is ORIGIN
    assert args["client_reused"] is False
    assert args["e"].etype == ErrorType.ConnectionClosed
    assert args["e"].esource is ErrorSource.UPSTREAM
    error = recorder.the("logging").args["e"]
    assert error.cause is args["e"]
    assert error.context == f"Peer: {ORIGIN}"


def served_then_gone(*, after_request: bool) -> Origin:
    """Return an origin whose first connection dies under its second request."""

    async def origin(wire: Wire) -> None:
        while True:
            try:
                await wire.message()
            except CutError:
                return
            await wire.send(OK)
            if wire.number == 0:
                if after_request:
                    await wire.head()
                return

    return origin


@pytest.mark.parametrize(
    ("request_", "status", "attempts"),
    [
        (GET, 200, 3),
        (GET.replace(b"GET", b"PUT"), 200, 3),
        (GET.replace(b"GET", b"POST"), 502, 2),
        (post(b"body"), 502, 2),
        (GET.replace(b"GET", b"UNHEARD-OF"), 502, 2),
    ],
)
async def test_a_stale_pooled_connection_is_retried_for_idempotent_methods_alone(
    request_: bytes, status: int, attempts: int, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, served_then_gone(after_request=True)) as gateway:
        await gateway.exchange(GET)
        assert (await gateway.exchange(request_)).status == status

    assert len(recorder.of("upstream_peer")) == attempts
    seen = recorder.the("error_while_proxy").args
    assert seen["client_reused"] is True
    assert seen["retry"] == (RetryType.ReusedOnly if status == 200 else RetryType.Decided(False))


async def test_a_post_is_retried_where_its_pooled_connection_died_before_a_byte_was_sent(
    autojump_clock: MockClock,
) -> None:
    die = trio.Event()

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)
        if wire.number == 0:
            await die.wait()
        else:
            await wire.more()

    async def connected_to_upstream(_session: Session, reused: bool, *_args: object) -> None:
        if reused:
            die.set()
            await trio.sleep(1)

    recorder = Recorder(hooks={"connected_to_upstream": connected_to_upstream})
    async with open_gateway(recorder, origin) as gateway:
        await gateway.exchange(GET)
        assert (await gateway.exchange(post(b"body"))).status == 200

    assert recorder.the("error_while_proxy").args["retry"] == RetryType.ReusedOnly


async def test_error_while_proxy_may_have_a_post_repeated(autojump_clock: MockClock) -> None:
    def error_while_proxy(
        _peer: HttpPeer, _session: Session, e: ProxyError, _ctx: Ctx, reused: bool
    ) -> ProxyError:
        e.set_retry(reused)
        return e

    recorder = Recorder(hooks={"error_while_proxy": error_while_proxy})
    async with open_gateway(recorder, served_then_gone(after_request=True)) as gateway:
        await gateway.exchange(GET)
        assert (await gateway.exchange(post(b"body"))).status == 200

    # What was read before is repeated as one piece.
    assert recorder.pieces("request_body_filter")[1:] == [(b"body", True)] * 2


async def test_nothing_is_retried_once_the_response_head_is_out(
    autojump_clock: MockClock,
) -> None:
    def error_while_proxy(
        _peer: HttpPeer, _session: Session, e: ProxyError, _ctx: Ctx, _reused: bool
    ) -> ProxyError:
        e.set_retry(True)
        return e

    recorder = Recorder(hooks={"error_while_proxy": error_while_proxy})
    async with open_gateway(recorder, {ORIGIN.name: [cuts(OK[:-2]), answers(OK)]}) as gateway:
        with pytest.raises(CutError):
            await gateway.exchange(GET)

    assert len(recorder.of("upstream_peer")) == 1


async def test_an_informational_head_does_not_stop_a_retry(autojump_clock: MockClock) -> None:
    def error_while_proxy(
        _peer: HttpPeer, _session: Session, e: ProxyError, _ctx: Ctx, _reused: bool
    ) -> ProxyError:
        e.set_retry(True)
        return e

    recorder = Recorder(hooks={"error_while_proxy": error_while_proxy})
    async with open_gateway(recorder, {ORIGIN.name: [cuts(EARLY_HINTS), answers(OK)]}) as gateway:
        assert (await gateway.exchange(GET)).status == 200


@pytest.mark.parametrize(("size", "status"), [(65536, 200), (65537, 502)])
async def test_a_body_beyond_the_replay_buffer_is_not_retried(
    size: int, status: int, autojump_clock: MockClock
) -> None:
    def error_while_proxy(
        _peer: HttpPeer, _session: Session, e: ProxyError, _ctx: Ctx, _reused: bool
    ) -> ProxyError:
        e.set_retry(True)
        return e

    got: list[Message] = []
    recorder = Recorder(hooks={"error_while_proxy": error_while_proxy})
    async with open_gateway(recorder, {ORIGIN.name: [cuts(), keeps(got)]}) as gateway:
        assert (await gateway.exchange(post(b"x" * size))).status == status

    assert [len(each.body) for each in got] == ([size] if status == 200 else [])


async def test_an_exception_of_error_while_proxy_leaves_the_error_and_settles_its_mark(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(hooks={"error_while_proxy": raises(OurMistakeError())})
    async with open_gateway(recorder, cuts()) as gateway:
        assert (await gateway.exchange(GET)).status == 502

    error = recorder.the("logging").args["e"]
    assert error is recorder.the("error_while_proxy").args["e"]
    assert error.retry == RetryType.Decided(False)
    assert tracebacks(caplog, OurMistakeError) == 1


async def test_an_upstream_that_stays_silent_is_a_502_after_the_peers_read_timeout(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.more()

    peer = HttpPeer("origin.test", 80, options=PeerOptions(read_timeout=7))
    recorder = Recorder(peers=(peer,))
    async with open_gateway(recorder, origin) as gateway:
        started = trio.current_time()
        assert (await gateway.exchange(GET)).status == 502
        assert trio.current_time() - started == pytest.approx(7, abs=0.1)

    assert recorder.the("error_while_proxy").args["e"].etype == ErrorType.ReadTimedout
    assert recorder.the("error_while_proxy").args["e"].esource is ErrorSource.UPSTREAM


# -- fail_to_proxy -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("etype", "source", "status"),
    [
        (ErrorType.HTTPStatus(429), ErrorSource.UNSET, 429),
        (ErrorType.HTTPStatus(403), ErrorSource.UPSTREAM, 403),
        (ErrorType.InternalError, ErrorSource.UNSET, 500),
        (ErrorType.Custom("X"), ErrorSource.INTERNAL, 500),
        (ErrorType.ReadTimedout, ErrorSource.UPSTREAM, 502),
        (ErrorType.ConnectionClosed, ErrorSource.UPSTREAM, 502),
        (ErrorType.InvalidHTTPHeader, ErrorSource.DOWNSTREAM, 400),
        (ErrorType.ReadTimedout, ErrorSource.DOWNSTREAM, 400),
    ],
)
async def test_the_default_answer_follows_from_the_errors_type_and_source(
    etype: ErrorType, source: ErrorSource, status: int, autojump_clock: MockClock
) -> None:
    recorder = Recorder(hooks={"request_filter": raises(ProxyError(etype, source))})

    response = await run(recorder)

    assert response.status == status
    assert response.get("content-length") == "0"
    assert response.get("cache-control") == "private, no-store"
    assert response.get("connection") == "close"


@pytest.mark.parametrize(
    "etype", [ErrorType.WriteError, ErrorType.ReadError, ErrorType.ConnectionClosed]
)
async def test_nothing_is_written_for_a_client_that_is_gone(
    etype: ErrorType, autojump_clock: MockClock
) -> None:
    recorder = Recorder(hooks={"request_filter": raises(ProxyError.new_down(etype))})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        assert await client.at_end()

    assert [record.status for record in gateway.records] == [0]


async def test_fail_to_proxy_writes_an_answer_of_its_own(autojump_clock: MockClock) -> None:
    async def fail_to_proxy(session: Session, e: ProxyError, _ctx: Ctx) -> FailToProxy:
        await session.respond_error_with_body(503, b"come back later")
        return FailToProxy(503)

    recorder = Recorder(hooks={"fail_to_proxy": fail_to_proxy})
    async with open_gateway(recorder, ErrorType.ConnectRefused) as gateway:
        response = await gateway.exchange(GET)

    assert (response.status, response.body) == (503, b"come back later")
    assert recorder.the("fail_to_proxy").args["e"] is recorder.the("logging").args["e"]


@pytest.mark.parametrize(
    ("phase", "reuse", "kept"),
    [
        ("request_filter", True, True),
        ("request_filter", False, False),
        ("upstream_request_filter", True, False),
    ],
)
async def test_the_connection_is_kept_after_an_error_before_the_peer_if_fail_to_proxy_says_so(
    phase: str, reuse: bool, kept: bool, autojump_clock: MockClock
) -> None:
    async def fail_to_proxy(session: Session, e: ProxyError, _ctx: Ctx) -> FailToProxy:
        await session.write_response_header(ResponseHeader(403, [("Content-Length", "0")]), True)
        return FailToProxy(403, can_reuse_downstream=reuse)

    recorder = Recorder(
        hooks={phase: raises(ProxyError.status(403)), "fail_to_proxy": fail_to_proxy}
    )
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        assert (await client.message()).status == 403
        if kept:
            await client.send(GET)
            assert (await client.message()).status == 403
        else:
            assert await client.at_end()


async def test_an_exception_of_fail_to_proxy_is_answered_with_a_plain_500_and_no_reuse(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(
        hooks={
            "request_filter": raises(ProxyError.status(403)),
            "fail_to_proxy": raises(OurMistakeError()),
        }
    )
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        assert (await client.message()).status == 500
        assert await client.at_end()

    assert recorder.the("logging").args["e"].etype == ErrorType.HTTPStatus(403)
    assert tracebacks(caplog, OurMistakeError) == 1


@pytest.mark.parametrize("phase", ["request_filter", "upstream_request_filter"])
async def test_a_fail_to_proxy_that_returns_nothing_is_such_a_mistake_too(
    phase: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_to_proxy(*_args: object) -> None:
        pass

    recorder = Recorder(
        hooks={phase: raises(ProxyError.status(403)), "fail_to_proxy": fail_to_proxy}
    )
    async with open_gateway(recorder, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500

    assert len(recorder.of("fail_to_proxy")) == 1
    assert recorder.the("logging").args["e"].root_etype() == ErrorType.HTTPStatus(403)
    assert tracebacks(caplog, TypeError) == 1


async def test_an_answer_that_fail_to_proxy_leaves_open_is_ended(
    autojump_clock: MockClock,
) -> None:
    async def fail_to_proxy(session: Session, _e: ProxyError, _ctx: Ctx) -> FailToProxy:
        await session.write_response_header(ResponseHeader(403))
        await session.write_response_body(b"no", False)
        return FailToProxy(403)

    for phase in ("request_filter", "upstream_request_filter"):
        recorder = Recorder(
            hooks={phase: raises(ProxyError.status(403)), "fail_to_proxy": fail_to_proxy}
        )
        response = await run(recorder)
        assert (response.status, response.body) == (403, b"no")


async def test_an_answer_that_was_cut_by_an_error_stays_cut(autojump_clock: MockClock) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        await session.write_response_header(ResponseHeader(200))
        await session.write_response_body(b"one", False)
        raise OurMistakeError

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_gateway(recorder, answers(OK)) as gateway:
        with pytest.raises(CutError):
            await gateway.exchange(GET)

    assert len(recorder.of("fail_to_proxy")) == 1


# -- suppress_error_log and request_summary ------------------------------------------------------


def fail_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.ERROR and not record.exc_info
    ]


async def test_a_final_error_has_one_line_with_the_summary(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(hooks={"request_filter": raises(ProxyError.status(403, "not you"))})
    await run(recorder)

    (line,) = fail_lines(caplog)
    assert "not you" in line
    assert "403" in line
    assert "GET /path, Host: site.test" in line


async def test_suppress_error_log_keeps_the_line_away(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    error = ProxyError.status(403)
    recorder = Recorder(
        hooks={"request_filter": raises(error), "suppress_error_log": returns(True)}
    )
    await run(recorder)

    assert fail_lines(caplog) == []
    assert recorder.the("suppress_error_log").args["e"] is error


async def test_an_exception_of_suppress_error_log_does_not_suppress(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(
        hooks={
            "request_filter": raises(ProxyError.status(403)),
            "suppress_error_log": raises(OurMistakeError()),
        }
    )
    assert (await run(recorder)).status == 403

    assert len(fail_lines(caplog)) == 1
    assert len(recorder.of("logging")) == 1


async def test_a_retried_error_is_a_warning_that_is_not_suppressed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_to_connect(_s: Session, _p: HttpPeer, _c: Ctx, e: ProxyError) -> ProxyError:
        e.set_retry(True)
        return e

    recorder = Recorder(
        hooks={
            "fail_to_connect": fail_to_connect,
            "suppress_error_log": returns(True),
            "request_summary": returns("request number 7"),
        }
    )
    origins: Origins = {ORIGIN.name: [ErrorType.ConnectRefused, answers(OK)]}
    async with open_gateway(recorder, origins) as gateway:
        await gateway.exchange(GET)

    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "request number 7" in warnings[0]
    assert "ConnectRefused" in warnings[0]
    assert not recorder.of("suppress_error_log")


async def test_an_exception_of_request_summary_falls_back_to_the_built_in_text(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(
        hooks={
            "request_filter": raises(ProxyError.status(403)),
            "request_summary": raises(OurMistakeError()),
        }
    )
    assert (await run(recorder)).status == 403

    (line,) = fail_lines(caplog)
    assert "GET /path, Host: site.test" in line
    assert tracebacks(caplog, OurMistakeError) == 1


# -- logging -------------------------------------------------------------------------------------


async def test_logging_is_last_and_knows_what_was_sent(autojump_clock: MockClock) -> None:
    seen: list[tuple[int, int, int, int]] = []

    async def log(session: Session, e: ProxyError | None, _ctx: Ctx) -> None:
        head = session.response_written()
        assert head is not None
        seen.append(
            (
                head.status,
                session.body_bytes_sent(),
                session.body_bytes_read(),
                session.upstream_body_bytes_received(),
            )
        )

    recorder = Recorder(hooks={"logging": log})
    await run(recorder, request=post(b"four"))

    assert seen == [(200, 5, 4, 5)]
    assert recorder.names()[-1] == "logging"
    assert recorder.the("logging").args["e"] is None


async def test_an_exception_of_logging_is_logged_and_otherwise_ignored(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(hooks={"logging": raises(OurMistakeError())})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.message()).body == b"hello"

    assert tracebacks(caplog, OurMistakeError) == 2


async def test_logging_is_cut_off_at_its_deadline_and_the_connection_goes_on(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def log(_session: Session, _e: ProxyError | None, _ctx: Ctx) -> None:
        await trio.sleep(math.inf)

    recorder = Recorder(hooks={"logging": log})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        started = trio.current_time()
        for _ in range(2):
            await client.send(GET)
            await client.message()
        assert trio.current_time() - started == pytest.approx(1, abs=0.1)

    cut = [line for line in caplog.messages if line.startswith("logging was cut off")]
    assert len(cut) == 2
    assert "logging_timeout (1 s): GET /path" in cut[0]


@pytest.mark.parametrize("leave", ["client", "server"])
async def test_logging_runs_to_its_end_when_the_session_is_cancelled(
    leave: str, autojump_clock: MockClock
) -> None:
    ended: list[ErrorType] = []

    async def log(_session: Session, e: ProxyError | None, _ctx: Ctx) -> None:
        await trio.sleep(0.5)
        assert e is not None
        ended.append(e.etype)

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.more()

    recorder = Recorder(hooks={"logging": log})
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        if leave == "client":
            client.close()
        else:
            gateway.stop()
        await gateway.ended()

    assert ended == [
        ErrorType.ConnectionClosed if leave == "client" else ErrorType.Custom("Cancelled")
    ]


async def test_a_pending_filter_sees_cancelled_when_the_client_leaves(
    autojump_clock: MockClock,
) -> None:
    seen: list[str] = []

    async def request_filter(_session: Session, _ctx: Ctx) -> bool:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.append("cancelled")
            raise

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        await gateway.ended()
        assert [record.status for record in gateway.records] == [0]

    assert seen == ["cancelled"]
    error = recorder.the("logging").args["e"]
    assert (error.etype, error.esource) == (ErrorType.ConnectionClosed, ErrorSource.DOWNSTREAM)


async def test_both_sides_of_the_departure_are_told_in_order_with_the_same_error(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.more()

    recorder = Recorder()
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        await gateway.ended()

    seen = recorder.the("error_while_proxy").args
    assert seen["e"].etype == ErrorType.ConnectionClosed
    assert seen["e"].esource is ErrorSource.DOWNSTREAM
    assert seen["client_reused"] is False
    assert recorder.the("fail_to_proxy").args["e"] is recorder.the("logging").args["e"]
