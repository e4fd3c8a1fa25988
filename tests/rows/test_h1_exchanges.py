"""Rows H1-19, H1-21, H1-22 and H1-27 to H1-30: what one exchange may do to the next, and to old clients."""

from __future__ import annotations

import logging

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests._support.raw import (
    CUTS,
    SOON,
    MemoryConnector,
    Origin,
    Pause,
    Recorder,
    Script,
    Step,
    answering,
    cut,
    hello,
    raw_exchange,
    read_messages,
)
from trioproxy import Headers, ProxyError, RequestHeader, ResponseHeader, ServerConf, Session
from trioproxy._info import ConnectionInfo
from trioproxy.server._http import HttpService
from trioproxy.server._serve import _Server
from trioproxy.streams._serve import ServerConnection
from trioproxy.transport._byte_stream import StreamAdapter
from trioproxy.upstream._pool import Pool

cuts = pytest.mark.parametrize("how", CUTS)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED_OK = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nok"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trioproxy")


def then_close(response: bytes) -> Script:
    async def script(origin: Origin) -> None:
        if await origin.request() is not None:
            await origin.send(response)

    return script


# -- H1-19: nominated fields -----------------------------------------------------------------------

NOMINATIONS = (
    b"Connection: X-Secret, x-two , keep-alive\r\nX-Secret: 1\r\nX-Two: 2\r\nKeep-Alive: timeout=9\r\n"
    b"Connection: x-three\r\nX-Three: 3\r\nX-Kept: 4\r\nProxy-Connection: close\r\n"
)


@cuts
async def test_h1_19_nominated_fields_are_stripped_both_ways(
    how: str, autojump_clock: MockClock
) -> None:
    request = GET.replace(b"\r\n\r\n", b"\r\n" + NOMINATIONS + b"\r\n")
    response = OK.replace(b"\r\n\r\n", b"\r\n" + NOMINATIONS + b"\r\n", 1)
    outcome = await raw_exchange(request, how, origin=answering(response))
    (got,) = outcome.requests
    assert [name for name, _ in got.fields] == [b"Host", b"X-Kept"]
    assert [name for name, _ in outcome.answer.fields] == [
        b"Content-Length",
        b"X-Kept",
        b"Date",
        b"Connection",
    ]
    assert outcome.answer.one(b"connection") == b"keep-alive"


@cuts
async def test_h1_19_what_may_not_be_nominated_stays(how: str, autojump_clock: MockClock) -> None:
    names = (
        b"Authorization Cookie Cache-Control Forwarded X-Forwarded-For X-Forwarded-Proto Via Date "
        b"Set-Cookie"
    ).split()
    fields = b"".join(b"%s: v\r\n" % name for name in names)
    nominations = (
        b"Connection: host, content-length, transfer-encoding, " + b", ".join(names).lower()
    )
    request = (
        b"POST / HTTP/1.1\r\nHost: a\r\n" + nominations + b"\r\nContent-Length: 5\r\n" + fields
    ) + b"\r\nhello"
    response = OK.replace(b"\r\n\r\n", b"\r\n" + nominations + b"\r\n" + fields + b"\r\n", 1)
    outcome = await raw_exchange(request + GET, how, origin=answering(response, OK))
    first, second = outcome.requests
    assert first.body == b"hello"
    assert second.start == b"GET / HTTP/1.1"
    assert first.all(b"content-length") == [b"5"]
    for message in (first, outcome.answers[0]):
        for name in names:
            assert message.all(name) == [b"v"], name
    assert outcome.answers[0].body == b"ok"


@cuts
async def test_h1_19_fields_that_filters_add_are_not_stripped(
    how: str, autojump_clock: MockClock
) -> None:
    class Adder(Recorder):
        async def upstream_request_filter(
            self, session: Session, upstream_request: RequestHeader, ctx: None
        ) -> None:
            upstream_request.headers.set("X-Identity", "true one")

        async def response_filter(
            self, session: Session, upstream_response: ResponseHeader, ctx: None
        ) -> None:
            upstream_response.headers.set("X-Identity", "true one")

    nomination = b"\r\nConnection: x-identity\r\nX-Identity: forged\r\n\r\n"
    outcome = await raw_exchange(
        GET.replace(b"\r\n\r\n", nomination),
        how,
        origin=answering(OK.replace(b"\r\n\r\n", nomination, 1)),
        proxy=Adder(),
    )
    for message in (outcome.requests[0], outcome.answer):
        assert message.all(b"x-identity") == [b"true one"]


# -- H1-21: pipelining -----------------------------------------------------------------------------


@cuts
async def test_h1_21_pipelined_requests_are_handled_in_order(
    how: str, autojump_clock: MockClock
) -> None:
    posts = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n%02d" % (n, n) for n in range(3)
    )
    chunked = (
        b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n03\r\n0\r\n\r\n"
    )
    outcome = await raw_exchange(posts + chunked + GET, how)
    assert [each.body for each in outcome.requests] == [b"00", b"01", b"02", b"03", b""]
    assert [each.body for each in outcome.answers] == [b"hello %d" % n for n in range(1, 6)]
    starts = [i for i, name in enumerate(outcome.calls) if name == "new_ctx"]
    ends = [i for i, name in enumerate(outcome.calls) if name == "logging"]
    assert all(end + 1 == start for end, start in zip(ends, starts[1:], strict=False))


BAD_SECOND = (
    (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
    (b"GARBAGE\r\n\r\n", 400),
    (b"\n\n", 400),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
)


@cuts
async def test_h1_21_a_malformed_second_request_never_disturbs_the_first(
    how: str, autojump_clock: MockClock
) -> None:
    async def slow(origin: Origin) -> None:
        assert await origin.request() is not None
        await origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        await trio.sleep(3)
        await origin.send(b"01234")
        await trio.sleep(3)
        await origin.send(b"56789")
        await origin.to_end()

    for bad, status in BAD_SECOND:
        outcome = await raw_exchange(GET + bad + SMUGGLED, how, origin=slow)
        first, second = outcome.answers
        assert (first.status, first.body, first.complete) == (200, b"0123456789", True), bad
        assert (second.status, second.one(b"connection")) == (status, b"close"), bad
        assert outcome.calls.count("new_ctx") == 1, bad
        assert outcome.proxy.errors == [None], bad
        assert len(outcome.requests) == 1, bad
        assert outcome.refused == 1, bad
        assert outcome.seconds == pytest.approx(6), bad
        assert outcome.after_end, bad


@cuts
async def test_h1_21_nothing_is_parsed_behind_a_request_that_closes(
    how: str, autojump_clock: MockClock
) -> None:
    for first in (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, CLOSE\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ):
        outcome = await raw_exchange(first + SMUGGLED, how)
        assert outcome.answer.status == 200
        assert outcome.answer.one(b"connection") == b"close"
        assert b"smuggled" not in outcome.origin
        assert outcome.seconds < SOON
        assert outcome.after_end


async def test_h1_21_waiting_requests_are_bounded(autojump_clock: MockClock) -> None:
    # The server may take two reads ahead, and no more while the first exchange is under way.
    released = trio.Event()
    taken = 0

    async def held(origin: Origin) -> None:
        await origin.request()
        await released.wait()
        await origin.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))

    request = GET + b"x" * 65536
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            conf = ServerConf()
            client, accepted = trio.testing.memory_stream_pair()
            pool = Pool(MemoryConnector(conf, nursery, held), nursery)
            service = HttpService(Recorder(), conf, pool)
            server = _Server(service, conf)
            info = ConnectionInfo(None, None)
            front = service.front(None, None)
            nursery.start_soon(
                server.connection, server.admit(StreamAdapter(accepted), info, front)
            )
            await client.send_all(request)
            for _ in range(8):
                await client.send_all(b"y" * 65536)
            await trio.testing.wait_all_tasks_blocked()
            connection = next(iter(server.connections))
            assert isinstance(connection, ServerConnection)
            taken = connection.buffered
            released.set()
            await client.aclose()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert 0 < taken <= 2 * 65536


# -- H1-22: the request's body is still unread -----------------------------------------------------


@attrs.define
class Answerer(Recorder):
    """Answers in `request_filter` without reading the body."""

    close_early: bool = True

    async def request_filter(self, session: Session, ctx: None) -> bool:
        await super().request_filter(session, ctx)
        session.set_close_on_response_before_downstream_finish(self.close_early)
        await session.write_response_header(ResponseHeader(200, {"Content-Length": "2"}))
        await session.write_response_body(b"no", True)
        return True


def upload(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_h1_22_a_body_that_is_here_already_is_dropped_and_the_connection_kept(
    framing: str, autojump_clock: MockClock
) -> None:
    body = SMUGGLED * 20
    if framing == "length":
        request = upload(len(body)) + body
    else:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        request = head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    outcome = await raw_exchange(request + GET, proxy=Answerer())
    assert [each.one(b"connection") for each in outcome.answers] == [b"keep-alive"] * 2
    assert outcome.proxy.targets == [b"/", b"/"]
    assert outcome.origins == []


async def test_h1_22_a_body_still_to_come_closes_and_says_so(autojump_clock: MockClock) -> None:
    body = SMUGGLED * 4
    for how in CUTS[1:]:
        steps: list[Step] = [upload(len(body)), *cut(body + SMUGGLED, how)]
        outcome = await raw_exchange(b"", steps, proxy=Answerer())
        assert outcome.answer.one(b"connection") == b"close"
        assert outcome.answer.complete
        assert outcome.proxy.targets == [b"/"]
        assert outcome.seconds < SOON
        assert outcome.after_end


async def test_h1_22_drained_and_kept_where_the_filter_asks(autojump_clock: MockClock) -> None:
    body = SMUGGLED * 4
    steps: list[Step] = [upload(len(body)), Pause(1), body + GET]
    outcome = await raw_exchange(b"", steps, proxy=Answerer(close_early=False))
    assert [each.one(b"connection") for each in outcome.answers] == [b"keep-alive"] * 2
    assert outcome.proxy.targets == [b"/", b"/"]


async def test_h1_22_draining_ends_at_256_kib_or_2_seconds(autojump_clock: MockClock) -> None:
    late: list[Step] = [upload(5), Pause(2.5), b"hello" + GET]
    outcome = await raw_exchange(b"", late, proxy=Answerer(close_early=False))
    assert outcome.answer.status == 200
    assert outcome.proxy.targets == [b"/"]
    assert 2 <= outcome.seconds <= 4
    block = b"x" * 65536
    for blocks, kept in ((4, True), (5, False)):
        steps: list[Step] = [upload(blocks * 65536), *[block] * blocks, GET]
        outcome = await raw_exchange(b"", steps, proxy=Answerer(close_early=False))
        assert (len(outcome.proxy.targets) == 2) is kept, blocks
        assert (len(outcome.answers) == 2) is kept, blocks
        # A declared length tells, before the head is written, that draining would be given up.
        said = b"keep-alive" if kept else b"close"
        assert outcome.answers[0].one(b"connection") == said, blocks
    chunk = b"10000\r\n" + block + b"\r\n"
    for blocks, kept in ((4, True), (5, False)):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        steps = [head, *[chunk] * blocks, b"0\r\n\r\n" + GET]
        outcome = await raw_exchange(b"", steps, proxy=Answerer(close_early=False))
        assert (len(outcome.proxy.targets) == 2) is kept, blocks


@cuts
async def test_h1_22_the_same_for_an_error_before_the_upstream(
    how: str, autojump_clock: MockClock
) -> None:
    class Refuser(Recorder):
        async def request_filter(self, session: Session, ctx: None) -> bool:
            await super().request_filter(session, ctx)
            raise ProxyError.status(403)

    steps: list[Step] = [upload(len(SMUGGLED)), *cut(SMUGGLED, how)]
    outcome = await raw_exchange(b"", steps, proxy=Refuser())
    assert outcome.answer.status == 403
    assert outcome.answer.one(b"connection") == b"close"
    assert outcome.proxy.targets == [b"/"]
    assert outcome.origins == []


async def test_h1_22_the_origin_answers_early(autojump_clock: MockClock) -> None:
    async def early(origin: Origin) -> None:
        await origin.head()
        await origin.send(OK)
        await origin.to_end()

    body = SMUGGLED * 3
    outcome = await raw_exchange(b"", [upload(len(body)), body, GET], origin=early)
    assert outcome.answer.status == 200
    assert outcome.answer.one(b"connection") == b"close"
    assert outcome.answer.complete
    assert outcome.proxy.targets == [b"/"]
    assert len(outcome.origins) == 1


# -- H1-27 to H1-29: what an old client, and a response without content, may get ---------------------


@cuts
async def test_h1_27_informational_responses_are_dropped_for_http_1_0(
    how: str, autojump_clock: MockClock
) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    origin = answering(hints + go_on + hints + OK)
    old = b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n"
    assert [a.status for a in (await raw_exchange(old, how, origin=origin)).answers] == [200]
    new = await raw_exchange(GET, how, origin=origin)
    assert [answer.status for answer in new.answers] == [103, 103, 200]


@cuts
async def test_h1_28_unknown_length_is_close_delimited_for_http_1_0(
    how: str, autojump_clock: MockClock
) -> None:
    for ask in (b"", b"Connection: keep-alive\r\n"):
        for origin in (answering(CHUNKED_OK), then_close(UNTIL_CLOSE)):
            request = b"GET / HTTP/1.0\r\n" + ask + b"\r\n"
            outcome = await raw_exchange(request + SMUGGLED, how, origin=origin)
            answer = outcome.answer
            assert answer.body == b"ok"
            assert answer.all(b"transfer-encoding") == []
            assert answer.all(b"content-length") == []
            assert answer.one(b"connection") == b"close"
            assert outcome.seconds < SOON
            assert b"smuggled" not in outcome.origin


@cuts
async def test_h1_28_http_1_0_is_kept_alive_only_when_asked_and_the_length_is_known(
    how: str, autojump_clock: MockClock
) -> None:
    asking = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    outcome = await raw_exchange(asking + asking, how, origin=hello)
    assert [each.one(b"connection") for each in outcome.answers] == [b"keep-alive"] * 2
    silent = b"GET / HTTP/1.0\r\nProxy-Connection: keep-alive\r\n\r\n"
    outcome = await raw_exchange(silent + silent, how, origin=hello)
    assert outcome.answer.one(b"connection") == b"close"


BODILESS = (
    (b"HEAD", b"200 OK\r\nContent-Length: 5\r\n\r\n", b"5"),
    (b"HEAD", b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    (b"GET", b"304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"5"),
    (b"GET", b"204 No Content\r\nContent-Length: 5\r\n\r\n", None),
    (b"GET", b"204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    (b"GET", b"103 Hints\r\nContent-Length: 5\r\nX: y\r\n\r\nHTTP/1.1 204 N\r\n\r\n", None),
    (b"GET", b"103 Hints\r\nTransfer-Encoding: gzip\r\n\r\nHTTP/1.1 204 N\r\n\r\n", None),
)


@cuts
async def test_h1_29_no_content_where_there_must_be_none(
    how: str, autojump_clock: MockClock
) -> None:
    for method, response, length in BODILESS:
        for body in (b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n"):
            for version in (b"1.1", b"1.0"):
                request = b"%s / HTTP/%s\r\nHost: a\r\n\r\n" % (method, version)
                origin = answering(b"HTTP/1.1 " + response + body)
                outcome = await raw_exchange(request, how, origin=origin)
                assert outcome.response.endswith(b"\r\n\r\n"), response
                answers = read_messages(outcome.response, to_heads=iter([method == b"HEAD"]))
                for answer in answers:
                    assert answer.body == b"", response
                    kept = method == b"HEAD" and b"chunked" in response and version == b"1.1"
                    assert answer.all(b"transfer-encoding") == [b"chunked"] * kept, response
                assert answers[-1].all(b"content-length") == ([length] if length else []), response
                if len(answers) > 1:
                    assert answers[0].all(b"content-length") == [], response


async def test_h1_29_content_that_a_filter_writes_there_is_not_sent(
    autojump_clock: MockClock,
) -> None:
    @attrs.define
    class Writer(Recorder):
        status: int = 200

        async def request_filter(self, session: Session, ctx: None) -> bool:
            await session.write_response_header(ResponseHeader(self.status))
            await session.write_response_body(b"hello", True)
            return True

    for method, status in ((b"HEAD", 200), (b"GET", 204), (b"GET", 304)):
        request = method + b" / HTTP/1.1\r\nHost: a\r\n\r\n"
        outcome = await raw_exchange(request, proxy=Writer(status=status))
        assert outcome.response.endswith(b"\r\n\r\n")
        assert b"hello" not in outcome.response


# -- H1-30: what a filter writes -------------------------------------------------------------------

BREAKS = ("a\r\nSet-Cookie: x=1", "a\nb", "a\rb", "a\0b", "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize("text", BREAKS)
def test_h1_30_line_ends_are_refused_at_the_call(text: str) -> None:
    headers = Headers()
    head = ResponseHeader(200)
    request = RequestHeader("GET", b"/")
    for value in (text, text.encode()):
        for write in (
            lambda v: headers.add("X", v),
            lambda v: headers.set("X", v),
            lambda v: headers.add(v, "x"),
            lambda v: headers.set(v, "x"),
            lambda v: Headers([("X", v)]),
            lambda v: Headers({v: "x"}),
            lambda v: setattr(head, "reason", v),
            lambda v: ResponseHeader(200, reason=v),
            lambda v: ResponseHeader(200, {"X": v}),
        ):
            with pytest.raises(ValueError, match="is not a"):
                write(value)
    for name in ("path", "query", "authority", "method"):
        with pytest.raises(ValueError, match="is not a"):
            setattr(request, name, text)
    with pytest.raises(ValueError, match="is not a"):
        request.target = b"/" + text.encode()
    with pytest.raises(ValueError, match="is not a"):
        RequestHeader("GET", "/" + text)
    assert len(headers) == 0
    assert head.reason is None
    assert request.target == b"/"


@pytest.mark.parametrize("where", ["value", "name", "reason", "trailer", "target"])
async def test_h1_30_never_reaches_a_wire(where: str, autojump_clock: MockClock) -> None:
    evil = "x\r\nEvil: 1"

    class Evil(Recorder):
        async def upstream_request_filter(
            self, session: Session, upstream_request: RequestHeader, ctx: None
        ) -> None:
            if where == "target":
                upstream_request.target = b"/" + evil.encode()

        async def response_filter(
            self, session: Session, upstream_response: ResponseHeader, ctx: None
        ) -> None:
            if where == "value":
                upstream_response.headers.set("X", evil)
            elif where == "name":
                upstream_response.headers.set(evil, "x")
            elif where == "reason":
                upstream_response.reason = evil.encode()

        async def response_trailer_filter(
            self, session: Session, upstream_trailers: Headers, ctx: None
        ) -> bytes | None:
            if where == "trailer":
                upstream_trailers.set("X", evil)
            return None

    outcome = await raw_exchange(GET, origin=answering(CHUNKED_OK), proxy=Evil())
    assert b"Evil" not in outcome.response
    assert b"Evil" not in outcome.origin
    if where == "trailer":  # told in the log; the trailers go on as they came
        assert outcome.answer.trailers == [(b"X-Sum", b"1")]
    else:
        assert outcome.answer.status == 500
