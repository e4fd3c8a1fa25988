"""What `Session` tells a filter of the request, and what a filter writes with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.recording import (
    GET,
    OK,
    Ctx,
    CutError,
    Message,
    Recorder,
    Wire,
    answers,
    keeps,
    open_gateway,
    post,
)
from trioproxy import ErrorType, Headers, ProxyError, RequestHeader, ResponseHeader, Session

Act = Callable[[Session], Awaitable[None]]


def doing(act: Act, *, answered: bool = False) -> Recorder:
    """Return a recorder whose `request_filter` does something with the session."""

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        await act(session)
        return answered

    return Recorder(hooks={"request_filter": request_filter})


async def answered_by(act: Act, request: bytes = GET) -> Message:
    """Return the response that a filter writes."""
    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        return await gateway.exchange(request)


async def look(act: Callable[[Session], None], request: bytes = GET) -> None:
    """Look at a session in `request_filter`, and let the exchange go on."""

    async def filter_(session: Session) -> None:
        act(session)

    recorder = doing(filter_)
    async with open_gateway(recorder, answers(OK)) as gateway:
        assert (await gateway.exchange(request)).status == 200


# -- what cannot be meant is refused at the call ---------------------------------------------------


@pytest.mark.parametrize(
    ("act", "kind", "text"),
    [
        (lambda s: s.write_response_header(200), TypeError, "200 is not a response head"),
        (lambda s: s.respond_error(103), ValueError, "status 103 does not end a request"),
        (
            lambda s: s.write_response_body(b"x", True),
            ProxyError,
            "content was sent before the head of its message",
        ),
    ],
    ids=["no head", "an informational answer", "content without a head"],
)
async def test_a_wrong_answer_is_refused_and_named(
    act: Act, kind: type[Exception], text: str, autojump_clock: MockClock
) -> None:
    async def wrong(session: Session) -> None:
        with pytest.raises(kind, match=text):
            await act(session)

    async with open_gateway(doing(wrong), answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 200


async def test_content_behind_the_end_is_refused_and_named(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200))
        await session.write_response_body(b"whole", True)
        with pytest.raises(ProxyError, match="content was sent behind the end of its message"):
            await session.write_response_body(b"more", True)

    assert (await answered_by(act)).body == b"whole"


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
@pytest.mark.parametrize(
    "knob", ["set_keepalive", "set_read_timeout", "set_write_timeout", "set_total_drain_timeout"]
)
async def test_a_time_that_cannot_be_is_refused(
    knob: str, seconds: float, autojump_clock: MockClock
) -> None:
    def act(session: Session) -> None:
        with pytest.raises(ValueError, match="0 or more are right, or None"):
            getattr(session, knob)(seconds)

    await look(act)


# -- reading the request -------------------------------------------------------------------------


async def test_the_request_head_is_seen_as_it_was_sent(autojump_clock: MockClock) -> None:
    def act(session: Session) -> None:
        head = session.req_header()
        assert (head.method, head.target, head.path) == ("GET", b"/a/../b%20?q=1&r", "/a/../b%20")
        assert head.query == "q=1&r"
        assert head.version == "HTTP/1.1"
        assert head.authority == "site.test"
        assert head.headers.raw == [
            (b"hOsT", b"site.test"),
            (b"X-Two", b"1"),
            (b"x-two", b"\xe9"),
        ]
        assert session.get_header("X-TWO") == "1"
        assert session.get_header(b"x-two") == "1"
        assert head.headers.get_all("x-two") == ["1", "\xe9"]
        assert session.get_header("absent") is None
        assert session.get_header_bytes("x-two") == b"1"
        assert session.get_header_bytes("absent") == b""

    await look(
        act,
        b"GET /a/../b%20?q=1&r HTTP/1.1\r\nhOsT: site.test\r\nX-Two: 1\r\nx-two: \xe9\r\n\r\n",
    )


async def test_the_facts_of_an_ordinary_request(autojump_clock: MockClock) -> None:
    def act(session: Session) -> None:
        assert session.client_addr() == "198.51.100.1:50000"
        assert session.server_addr() == "192.0.2.1:80"
        assert session.request_summary() == "GET /path, Host: site.test"
        assert session.to_h1_raw() == GET
        assert session.as_downstream() is session.downstream_session
        assert not session.is_http2()
        assert not session.is_subrequest()
        assert not session.is_custom()
        assert not session.was_upgraded()
        assert not session.is_upgrade_req()
        assert not session.is_process_shutting_down()
        assert session.response_written() is None
        assert session.body_bytes_sent() == 0
        assert session.upstream_body_bytes_received() == 0

    await look(act)


async def test_the_raw_head_has_the_edits_and_the_framing_that_was_declared(
    autojump_clock: MockClock,
) -> None:
    def act(session: Session) -> None:
        session.req_header().headers.set("X-New", "1")
        assert session.to_h1_raw().endswith(b"Content-Length: 2\r\nX-New: 1\r\n\r\n")

    await look(act, post(b"up"))


@pytest.mark.parametrize(
    ("method", "version", "fields", "expected"),
    [
        ("GET", "1.1", "Upgrade: websocket\r\nConnection: upgrade\r\n", True),
        ("POST", "1.1", "Upgrade: websocket\r\n", True),
        ("GET", "1.0", "Upgrade: websocket\r\nConnection: upgrade\r\n", False),
        ("GET", "1.1", "Connection: upgrade\r\n", False),
    ],
)
async def test_an_upgrade_request_is_http_1_1_with_an_upgrade_field(
    method: str, version: str, fields: str, expected: bool, autojump_clock: MockClock
) -> None:
    def act(session: Session) -> None:
        assert session.is_upgrade_req() is expected

    await look(act, f"{method} / HTTP/{version}\r\nHost: a\r\n{fields}\r\n".encode())


@pytest.mark.parametrize(
    ("request_", "empty"),
    [
        (GET, True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", True),
        (post(b"up"), False),
        (post(b"up", framing="chunked"), False),
    ],
)
async def test_a_body_is_empty_or_to_be_read(
    request_: bytes, empty: bool, autojump_clock: MockClock
) -> None:
    async def act(session: Session) -> None:
        assert session.is_body_empty() is empty
        assert session.is_body_done() is empty
        assert session.body_bytes_read() == 0
        assert await session.read_request_body() == (None if empty else b"up")
        assert await session.read_request_body() is None
        assert await session.read_request_body() is None
        assert session.is_body_done()
        assert session.body_bytes_read() == (0 if empty else 2)

    async with open_gateway(doing(act), answers(OK)) as gateway:
        assert (await gateway.exchange(request_)).status == 200


async def test_the_body_is_read_as_it_comes(autojump_clock: MockClock) -> None:
    read: list[bytes | None] = []

    async def act(session: Session) -> None:
        while True:
            read.append(await session.read_request_body())
            if read[-1] is None:
                return

    async with open_gateway(doing(act), answers(OK)) as gateway:
        client = gateway.connect()
        for piece in (post(b"abcdef")[:-6], b"abc", b"def"):
            await client.send(piece)
            await wait_all_tasks_blocked()
        await client.message()

    assert read == [b"abc", b"def", None]


async def test_reading_the_body_sends_the_100_that_the_client_waits_for(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        assert await session.read_request_body() == b"up"

    async with open_gateway(doing(act), answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await client.message()).status == 100
        await client.send(b"up")
        assert (await client.message()).status == 200


async def test_draining_drops_the_body(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        await session.drain_request_body()
        assert session.is_body_done()
        assert session.body_bytes_read() == 100
        await session.write_response_header(ResponseHeader(204), end_of_stream=True)

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(post(b"x" * 100)[:-50])
            await wait_all_tasks_blocked()
            await client.send(b"x" * 50)
            response = await client.message()
            assert response.status == 204
            assert response.get("connection") == "keep-alive"


async def test_draining_gives_up_at_the_total_drain_timeout(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        session.set_total_drain_timeout(3)
        await session.drain_request_body()

    recorder = doing(act)
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        started = trio.current_time()
        await client.send(post(b"x" * 100)[:-50])
        assert (await client.message()).status == 400
        assert trio.current_time() - started == pytest.approx(3, abs=0.1)

    assert recorder.the("logging").args["e"].etype == ErrorType.ReadTimedout


async def test_a_client_that_stalls_in_its_body_gets_408_when_a_filter_reads(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        session.set_read_timeout(4)
        await session.read_request_body()
        await session.read_request_body()

    async with open_gateway(doing(act), answers(OK)) as gateway:
        client = gateway.connect()
        started = trio.current_time()
        await client.send(post(b"x" * 100)[:-50])
        assert (await client.message()).status == 408
        assert trio.current_time() - started == pytest.approx(4, abs=0.1)


async def test_a_body_that_breaks_off_syntactically_gets_400_when_a_filter_reads(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        while await session.read_request_body() is not None:
            pass

    async with open_gateway(doing(act), answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(post(framing="chunked")[:-5] + b"2\r\nup\r\nxyz\r\n")
        assert (await client.message()).status == 400
        assert await client.at_end()


# -- the upstream --------------------------------------------------------------------------------


async def test_the_bytes_received_are_those_of_the_last_attempt(autojump_clock: MockClock) -> None:
    received: list[int] = []

    async def log(session: Session, _e: ProxyError | None, _ctx: Ctx) -> None:
        received.append(session.upstream_body_bytes_received())
        assert session.upstream_write_pending_time() == 0.0

    recorder = Recorder(hooks={"logging": log})
    async with open_gateway(recorder, answers(OK)) as gateway:
        await gateway.exchange(GET)

    assert received == [5]


async def test_the_time_that_an_origin_lets_us_wait_with_writing_is_counted(
    autojump_clock: MockClock,
) -> None:
    waited: list[float] = []

    async def log(session: Session, _e: ProxyError | None, _ctx: Ctx) -> None:
        waited.append(session.upstream_write_pending_time())

    async def origin(wire: Wire) -> None:
        await trio.sleep(5)
        await wire.message()
        await wire.send(OK)
        await wire.more()

    recorder = Recorder(hooks={"logging": log})
    async with open_gateway(recorder, origin, lockstep=True) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, post(b"x"))
            assert (await client.message()).status == 200

    assert waited == [pytest.approx(5, abs=0.1)]


# -- writing a response --------------------------------------------------------------------------


async def test_a_head_may_be_all_of_a_response(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        head = ResponseHeader(404, [("X-Own", "1")], reason="Nowhere")
        await session.write_response_header(head, end_of_stream=True)
        written = session.response_written()
        assert written is not None
        assert written.status == 404

    response = await answered_by(act)
    assert response.start == b"HTTP/1.1 404 Nowhere"
    assert response.get("x-own") == "1"
    assert response.get("content-length") == "0"
    assert response.get("connection") == "keep-alive"
    assert response.get("date") is not None


async def test_informational_heads_may_be_repeated_before_the_final_one(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        for number in (1, 2):
            early = ResponseHeader(103, [("Link", f"</{number}>")])
            await session.write_response_header(early)
        await session.write_response_header(ResponseHeader(204), end_of_stream=True)

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        heads = [await client.message() for _ in range(3)]

    assert [head.status for head in heads] == [103, 103, 204]
    assert [head.get("link") for head in heads] == ["</1>", "</2>", None]


async def test_a_second_final_head_is_ignored_with_a_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200, [("Content-Length", "2")]))
        await session.write_response_header(ResponseHeader(500, [("Content-Length", "9")]))
        await session.write_response_body(b"ok", True)
        written = session.response_written()
        assert written is not None
        assert written.status == 200

    response = await answered_by(act)
    assert (response.status, response.body) == (200, b"ok")
    assert any(record.levelname == "WARNING" for record in caplog.records)


async def test_a_head_given_by_reference_may_be_edited_afterwards(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        head = ResponseHeader(200, [("Content-Length", "0"), ("X-Own", "1")])
        await session.write_response_header_ref(head, end_of_stream=True)
        head.headers.set("X-Own", "2")
        written = session.response_written()
        assert written is not None
        assert written.headers.get("x-own") == "1"
        assert head.headers.items() == [("Content-Length", "0"), ("X-Own", "2")]

    assert (await answered_by(act)).get("x-own") == "1"


async def test_nothing_without_an_end_writes_nothing(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200))
        for nothing in (None, b""):
            await session.write_response_body(nothing, False)
        await session.write_response_body(b"one", False)
        for nothing in (None, b""):
            await session.write_response_body(nothing, False)
        await session.write_response_body(b"two", True)
        assert session.body_bytes_sent() == 6

    response = await answered_by(act)
    assert response.body == b"onetwo"
    assert response.get("transfer-encoding") == "chunked"


@pytest.mark.parametrize("nothing", [None, b""])
async def test_an_end_without_data_ends_the_response_once(
    nothing: bytes | None, autojump_clock: MockClock
) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200))
        await session.write_response_body(b"one", False)
        for _ in range(2):
            await session.write_response_body(nothing, True)
        await session.finish_body()
        await session.finish()

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.message()).body == b"one"


async def test_a_response_that_is_left_open_is_ended_by_the_engine(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200))
        await session.write_response_body(b"one", False)

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.message()).body == b"one"


async def test_a_response_that_is_shorter_than_declared_is_cut(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200, [("Content-Length", "5")]))
        await session.write_response_body(b"one", False)

    recorder = doing(act, answered=True)
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        with pytest.raises(CutError):
            await client.message()

    assert len(recorder.of("logging")) == 1


async def test_a_response_that_is_longer_than_declared_is_refused_at_the_call(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200, [("Content-Length", "2")]))
        with pytest.raises(ProxyError) as caught:
            await session.write_response_body(b"three", True)
        assert caught.value.etype == ErrorType.InternalError
        raise caught.value

    async with open_gateway(doing(act), answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        with pytest.raises(CutError) as cut:
            await client.message()

    message = cut.value.message
    assert message is not None
    assert message.body == b""


async def test_a_body_without_a_head_is_refused_at_the_call(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        with pytest.raises(ProxyError) as caught:
            await session.write_response_body(b"lost", False)
        assert caught.value.etype == ErrorType.InternalError
        await session.respond_error(418)

    assert (await answered_by(act)).status == 418


async def test_trailers_end_a_chunked_response(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200))
        await session.write_response_body(b"one", False)
        await session.write_response_trailers(Headers({"X-Sum": "1"}))

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(GET)
            response = await client.message()
            assert (response.body, response.trailers) == (b"one", [(b"x-sum", b"1")])


@pytest.mark.parametrize("bad", ["a\r\nb", "a\nb", "a\0b"])
async def test_what_would_break_the_head_is_refused_where_it_is_set(
    bad: str, autojump_clock: MockClock
) -> None:
    async def act(session: Session) -> None:
        head = ResponseHeader(200)
        with pytest.raises(ValueError, match="is not a"):
            head.headers.set("X-Own", bad)
        with pytest.raises(ValueError, match="is not a"):
            head.reason = bad
        await session.write_response_header(head, end_of_stream=True)

    assert (await answered_by(act)).get("x-own") is None


async def test_a_date_of_the_filters_own_stays(autojump_clock: MockClock) -> None:
    date = "Mon, 01 Jan 2001 00:00:00 GMT"

    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(204, [("Date", date)]), True)

    assert (await answered_by(act)).get("date") == date


async def test_an_origins_date_is_kept_and_a_missing_one_added(autojump_clock: MockClock) -> None:
    date = b"Mon, 01 Jan 2001 00:00:00 GMT"
    dated = OK.replace(b"\r\n\r\n", b"\r\nDate: " + date + b"\r\n\r\n")
    async with open_gateway(Recorder(), answers(dated, OK)) as gateway:
        assert (await gateway.exchange(GET)).get("date") == date.decode()
        assert (await gateway.exchange(GET)).get("date") not in (None, date.decode())


async def test_connection_is_ours_to_say(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        head = ResponseHeader(204, [("Connection", "close, X-Own"), ("X-Own", "1")])
        await session.write_response_header(head, True)

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.message()).get("connection") == "keep-alive"


# -- canned answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "act"),
    [
        (b"", lambda session: session.respond_error(429)),
        (b"slow down", lambda session: session.respond_error_with_body(429, b"slow down")),
    ],
)
async def test_a_canned_answer_closes_the_connection_and_is_not_to_be_stored(
    body: bytes, act: Act, autojump_clock: MockClock
) -> None:
    recorder = doing(act, answered=True)
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        response = await client.message()
        assert await client.at_end()

    assert (response.status, response.body) == (429, body)
    assert response.get("content-length") == str(len(body))
    assert response.get("cache-control") == "private, no-store"
    assert response.get("server") == "trioproxy"
    assert response.get("connection") == "close"
    assert response.get("date") is not None
    assert not recorder.of("response_filter")


async def test_an_error_response_may_have_a_head_of_its_own(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        head = ResponseHeader(503, [("Retry-After", "7"), ("Content-Length", "5")])
        await session.write_error_response(head, b"later")

    response = await answered_by(act)
    assert (response.status, response.body) == (503, b"later")
    assert response.get("retry-after") == "7"
    assert response.get("connection") == "close"


async def test_canned_answers_do_nothing_where_a_final_head_is_out(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200, [("Content-Length", "2")]))
        await session.respond_error(500)
        await session.respond_error_with_body(500, b"no")
        await session.write_error_response(ResponseHeader(500), b"no")
        await session.write_response_body(b"ok", True)

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):  # and they do not turn keep-alive off either
            await client.send(GET)
            response = await client.message()
            assert (response.status, response.body) == (200, b"ok")


async def test_a_canned_answer_may_follow_an_informational_head(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(103))
        await session.respond_error(403)

    assert (await answered_by(act)).status == 403


async def test_the_answer_to_head_has_no_body(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        await session.respond_error_with_body(403, b"not you")

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET.replace(b"GET", b"HEAD"))
        assert (await client.head()).get("content-length") == "7"
        assert await client.at_end()


async def test_100_continue_is_sent_once_and_only_before_anything_else(
    autojump_clock: MockClock,
) -> None:
    async def act(session: Session) -> None:
        for _ in range(2):
            await session.write_continue_response()
        await session.write_response_header(ResponseHeader(200, [("Content-Length", "2")]))
        await session.write_continue_response()
        await session.write_response_body(b"ok", True)

    async with open_gateway(doing(act, answered=True), answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        assert (await client.message()).status == 100
        final = await client.message()
        assert (final.status, final.body) == (200, b"ok")


async def test_shutdown_cuts_the_response(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        await session.write_response_header(ResponseHeader(200))
        await session.write_response_body(b"one", False)
        await session.shutdown()
        raise ProxyError.explain(ErrorType.Custom("Enough"), "given up")

    recorder = doing(act)
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        with pytest.raises(CutError) as cut:
            await client.message()

    message = cut.value.message
    assert message is not None
    assert message.body == b"one"
    assert recorder.the("logging").args["e"].etype == ErrorType.Custom("Enough")


async def test_response_written_is_the_last_head_that_went_out(autojump_clock: MockClock) -> None:
    statuses: list[int | None] = []

    def note(session: Session) -> None:
        head = session.response_written()
        statuses.append(None if head is None else head.status)

    async def response_filter(session: Session, _head: ResponseHeader, _ctx: Ctx) -> None:
        note(session)

    async def log(session: Session, _e: ProxyError | None, _ctx: Ctx) -> None:
        note(session)
        assert session.body_bytes_sent() == 5

    recorder = Recorder(hooks={"response_filter": response_filter, "logging": log})

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await wait_all_tasks_blocked()
        await wire.send(OK)
        await wire.more()

    async with open_gateway(recorder, origin) as gateway:
        await gateway.exchange(GET)

    assert statuses == [None, 103, 200]


async def test_what_a_filter_reads_of_the_body_is_the_raw_body(autojump_clock: MockClock) -> None:
    async def act(session: Session) -> None:
        assert await session.read_request_body() == b"up"

    recorder = doing(act)
    got: list[Message] = []
    async with open_gateway(recorder, keeps(got)) as gateway:
        await gateway.exchange(post(b"up"))

    assert recorder.pieces("request_body_filter") == [(b"up", True)]
    assert got[0].body == b"up"


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_trait_tells_the_origin_who_asks(trusted: bool, autojump_clock: object) -> None:
    async def tell(session: Session, request: RequestHeader, _ctx: object) -> None:
        session.set_forwarding_fields(request, trusted=trusted, via="me", forwarded=True)

    got: list[Message] = []
    proxy = Recorder(hooks={"upstream_request_filter": tell})
    request = (
        GET[:-2] + b"X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nVia: 1.0 you\r\n\r\n"
    )
    async with open_gateway(proxy, keeps(got)) as gateway:
        await gateway.exchange(request)
    (sent,) = got
    before = "1.2.3.4, " if trusted else ""
    assert sent.get("x-forwarded-for") == f"{before}198.51.100.1"
    assert sent.get("x-forwarded-proto") == "http"
    assert sent.get("x-forwarded-host") == "site.test"
    before = "for=1.2.3.4, " if trusted else ""
    assert sent.get("forwarded") == f'{before}for=198.51.100.1;proto=http;host="site.test"'
    assert sent.get("via") == "1.0 you, 1.1 me"


async def test_an_old_client_without_host_becomes_a_request_with_one(
    autojump_clock: object,
) -> None:
    got: list[Message] = []
    async with open_gateway(Recorder(), keeps(got)) as gateway:
        await gateway.exchange(b"GET / HTTP/1.0\r\n\r\n")
    assert got[0].get("host") == "origin.test"
