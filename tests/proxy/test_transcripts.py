"""Whole transcripts of callbacks, row by row of the phase table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    Origins,
    Outcome,
    Recorder,
    Wire,
    answers,
    chunked,
    cuts,
    open_gateway,
    post,
    raises,
    returns,
)
from trioproxy import ErrorType, ProxyError, ResponseHeader, Session

Hooks = dict[str, Callable[..., Any]]

USUAL = answers(OK)

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


@attrs.frozen
class Row:
    """One row: what happens, and the callbacks that it makes run."""

    name: str
    expected: list[str]
    #: The status that the client sees; 0 for a response that was cut.
    status: int
    hooks: Callable[[], Hooks] = dict
    origins: Outcome | Origins = USUAL
    request: bytes = GET
    #: Whether two peers are tried in turn.
    two_peers: bool = False


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


def retry_connect(_session: Session, _peer: object, _ctx: Ctx, e: ProxyError) -> ProxyError:
    e.set_retry(True)
    return e


def retry_once(
    _peer: object, _session: Session, e: ProxyError, ctx: Ctx, _reused: bool
) -> ProxyError:
    e.set_retry(ctx.attempts < 2)
    return e


def first_peer_raises(error: Callable[[], ProxyError]) -> Callable[..., Any]:
    async def upstream_peer(_session: Session, ctx: Ctx) -> object:
        if ctx.attempts == 1:
            raise error()
        return ORIGIN

    return upstream_peer


def error_in(phase: str, error: Callable[[], ProxyError] = teapot) -> Callable[[], Hooks]:
    return lambda: {phase: raises(error())}


ERROR_AFTER_CONNECT = {
    "connected_to_upstream": ["upstream_peer", "connected_to_upstream"],
    "upstream_request_filter": CONNECTED,
    "request_body_filter": [*CONNECTED, *NO_BODY],
    "upstream_response_filter": [*CONNECTED, *NO_BODY, OK_HEADS[0]],
    "response_filter": [*CONNECTED, *NO_BODY, *OK_HEADS],
}

ROWS = [
    Row(
        "no cache, a request without a body",
        [*TO_ORIGIN, *CONNECTED, *NO_BODY, *HELLO, "logging"],
        200,
    ),
    Row(
        "no cache, a request with a length",
        [
            *TO_ORIGIN,
            *CONNECTED,
            "request_body_filter(b'up', True)",
            *HELLO,
            "logging",
        ],
        200,
        request=post(b"up"),
    ),
    Row(
        "no cache, a response with neither length nor body",
        [
            *TO_ORIGIN,
            *CONNECTED,
            *NO_BODY,
            "upstream_response_filter(204)",
            "response_filter(204)",
            "logging",
        ],
        204,
        origins=answers(b"HTTP/1.1 204 No Content\r\n\r\n"),
    ),
    Row(
        "no cache, informational heads before the final one",
        [
            *TO_ORIGIN,
            *CONNECTED,
            *NO_BODY,
            *["upstream_response_filter(103)", "response_filter(103)"] * 2,
            *HELLO,
            "logging",
        ],
        200,
        origins=answers(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + OK),
    ),
    Row(
        "no cache, trailers",
        [
            *TO_ORIGIN,
            *CONNECTED,
            *NO_BODY,
            *OK_HEADS,
            "upstream_response_body_filter(b'hello', False)",
            "response_body_filter(b'hello', False)",
            "upstream_response_body_filter(None, True)",
            "response_body_filter(None, True)",
            "upstream_response_trailer_filter",
            "response_trailer_filter",
            "logging",
        ],
        200,
        origins=answers(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked(b"hello", trailers=b"X-Sum: 1\r\n")
        ),
    ),
    Row(
        "answered in request_filter",
        [*PREFIX, "logging"],
        200,
        lambda: {"request_filter": answer},
    ),
    Row(
        "error in early_request_filter",
        [*PREFIX[:2], *FAILED, "logging(HTTPStatus (code: 418))"],
        418,
        error_in("early_request_filter"),
    ),
    Row(
        "error in request_filter",
        [*PREFIX, *FAILED, "logging(HTTPStatus (code: 418))"],
        418,
        error_in("request_filter"),
    ),
    Row(
        "error in proxy_upstream_filter",
        [*TO_ORIGIN, *FAILED, "logging(HTTPStatus (code: 418))"],
        418,
        error_in("proxy_upstream_filter"),
    ),
    Row(
        "the log line of an error is suppressed",
        [
            *PREFIX,
            "fail_to_proxy",
            "suppress_error_log",
            "logging(HTTPStatus (code: 418))",
        ],
        418,
        lambda: {"request_filter": raises(teapot()), "suppress_error_log": returns(True)},
    ),
    Row(
        "proxy_upstream_filter declines",
        [*TO_ORIGIN, "logging"],
        502,
        lambda: {"proxy_upstream_filter": returns(False)},
    ),
    Row(
        "proxy_upstream_filter answers and declines",
        [*TO_ORIGIN, "logging"],
        200,
        lambda: {"proxy_upstream_filter": answer_and_decline},
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
        200,
        lambda: {"fail_to_connect": retry_connect},
        {ORIGIN.name: ErrorType.ConnectRefused, ORIGIN_2.name: answers(OK)},
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
        [*TO_ORIGIN, "upstream_peer", *FAILED, "logging(HTTPStatus (code: 418))"],
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
        200,
        lambda: {"upstream_peer": first_peer_raises(again)},
    ),
    *(
        Row(
            f"error in {phase}",
            [
                *TO_ORIGIN,
                *before,
                "error_while_proxy",
                *FAILED,
                "logging(HTTPStatus (code: 418))",
            ],
            418,
            error_in(phase),
        )
        for phase, before in ERROR_AFTER_CONNECT.items()
    ),
    *(
        Row(
            f"error in {phase} before anything was sent to the client",
            [
                *TO_ORIGIN,
                *CONNECTED,
                *NO_BODY,
                *HELLO[: 3 + index],
                "error_while_proxy",
                *FAILED,
                "logging(HTTPStatus (code: 418))",
            ],
            418,
            error_in(phase),
        )
        for index, phase in enumerate(("upstream_response_body_filter", "response_body_filter"))
    ),
    Row(
        "error after connect, retried",
        [
            *TO_ORIGIN,
            *CONNECTED,
            *NO_BODY,
            "error_while_proxy",
            "request_summary",
            *CONNECTED,
            *NO_BODY,
            *HELLO,
            "logging",
        ],
        200,
        lambda: {"error_while_proxy": retry_once},
        {ORIGIN.name: [cuts(), answers(OK)]},
    ),
    Row(
        "error after connect, final",
        [
            *TO_ORIGIN,
            *CONNECTED,
            *NO_BODY,
            "error_while_proxy",
            *FAILED,
            "logging(ConnectionClosed)",
        ],
        502,
        origins=cuts(),
    ),
    Row(
        "error mid response body",
        [
            *TO_ORIGIN,
            *CONNECTED,
            *NO_BODY,
            *OK_HEADS,
            "upstream_response_body_filter(b'hel', False)",
            "response_body_filter(b'hel', False)",
            "error_while_proxy",
            *FAILED,
            "logging(ConnectionClosed)",
        ],
        0,
        origins=cuts(OK[:-2]),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_callbacks_run_as_the_phase_table_says(row: Row, autojump_clock: MockClock) -> None:
    recorder = Recorder(hooks=row.hooks(), peers=(ORIGIN, ORIGIN_2) if row.two_peers else (ORIGIN,))

    async with open_gateway(recorder, row.origins) as gateway:
        try:
            status = (await gateway.exchange(row.request)).status
        except CutError:
            status = 0

    assert recorder.shown() == row.expected
    assert status == row.status
    assert len({id(call.ctx) for call in recorder.calls}) == 1


async def test_a_request_that_is_refused_for_its_syntax_reaches_no_callback(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, answers(OK)) as gateway:
        response = await gateway.exchange(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")

    assert response.status == 400
    assert recorder.shown() == []


async def test_connect_is_refused_without_any_callback(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, answers(OK)) as gateway:
        response = await gateway.exchange(b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n")

    assert response.status == 405
    assert recorder.shown() == []


async def test_a_connection_without_a_request_reaches_no_callback(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.half_close()
        assert await client.at_end()

    assert recorder.shown() == []


async def _never(wire: Wire) -> None:
    await wire.message()
    await trio.sleep_forever()


async def test_a_client_that_leaves_is_told_to_the_three_callbacks_of_the_end(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, _never) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        await gateway.ended()

    ending = [name for name in recorder.shown() if name not in FAILED[1:]]
    assert ending == [
        *TO_ORIGIN,
        *CONNECTED,
        *NO_BODY,
        "error_while_proxy",
        "fail_to_proxy",
        "logging(ConnectionClosed)",
    ]


async def test_a_client_that_leaves_before_a_connection_is_held_skips_error_while_proxy(
    autojump_clock: MockClock,
) -> None:
    async def forever(_session: Session, _ctx: Ctx) -> bool:
        await trio.sleep_forever()
        raise AssertionError

    recorder = Recorder(hooks={"request_filter": forever})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        await gateway.ended()

    ending = [name for name in recorder.shown() if name not in FAILED[1:]]
    assert ending == [*PREFIX, "fail_to_proxy", "logging(ConnectionClosed)"]


async def test_a_session_that_is_cancelled_from_outside_gets_logging_alone(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, _never) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        gateway.stop()
        await gateway.ended()
        with pytest.raises(CutError):
            await client.message()

    assert recorder.shown() == [*TO_ORIGIN, *CONNECTED, *NO_BODY, "logging(Cancelled)"]
    assert recorder.the("logging").args["e"].esource.name == "INTERNAL"
