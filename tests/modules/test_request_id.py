"""One identifier per request, for the origin, for the client and for logs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from trio.testing import MockClock

from tests._support.matrix import Pairing
from tests.modules._world import PLAIN, open_modules, some_pairings
from trioproxy import ResponseHeader, Session
from trioproxy.modules import RequestId, RequestIdModule

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ids(into: list[str]) -> dict[str, Any]:
    async def logging(session: Session, _error: object, _ctx: object) -> None:
        module = session.downstream_modules_ctx.get(RequestIdModule)
        assert module is not None
        into.append(module.value)

    return {"logging": logging}


@some_pairings
async def test_origin_client_and_log_have_the_same_new_identifier(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    logged: list[str] = []
    fields = [("x-request-id", "the client's"), ("traceparent", TRACE), ("tracestate", "a=b")]
    answered = [("x-request-id", "the origin's")]
    async with open_modules(pairing, RequestId(), fields=answered, hooks=ids(logged)) as world:
        first = (await world.exchange(fields=fields)).get("x-request-id")
        second = (await world.exchange(fields=fields)).get("x-request-id")
    assert first != second
    assert [request.get("x-request-id") for request in world.asked] == [first, second] == logged
    assert uuid.UUID(first).version == 7
    assert world.last().get("traceparent") == TRACE
    assert world.last().get("tracestate") == "a=b"


@pytest.mark.parametrize(
    ("values", "taken"),
    [
        (["abc-123"], True),
        (["a" * 128], True),
        (["a" * 129], False),
        (["a b"], False),
        (["a\tb"], False),
        (["a;b"], False),
        (['a"b'], False),
        (["a\x1b[31m"], False),
        (["\xe9"], False),
        (["%0d%0aset-cookie:a"], False),
        ([""], False),
        (["one", "two"], False),
    ],
)
async def test_a_trusted_proxy_s_identifier_is_taken_where_it_is_good(
    values: list[str], taken: bool, autojump_clock: MockClock
) -> None:
    fields = [(b"X-Request-ID", value.encode("latin-1")) for value in values]
    async with open_modules(PLAIN, RequestId(trusted=["203.0.113.0/24"])) as world:
        answer = await world.exchange(fields=fields)
    if answer.status == 400:  # the codec refuses some of these already
        assert not taken
        return
    assert (answer.get("x-request-id") == values[0]) is taken
    assert world.last().get("x-request-id") == answer.get("x-request-id")


async def test_connection_cannot_take_it_away(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, RequestId()) as world:
        answer = await world.exchange(fields=[("connection", "X-Request-Id")])
    assert world.last().get("x-request-id") == answer.get("x-request-id")


async def test_an_answer_of_a_callback_has_it_as_well(autojump_clock: MockClock) -> None:
    async def request_filter(session: Session, _ctx: object) -> bool:
        await session.write_response_header(ResponseHeader(100))
        head = ResponseHeader(204)
        await session.write_response_header(head, end_of_stream=True)
        return True

    module = RequestId(field="Request-Id", make=lambda: "made-1")
    async with open_modules(PLAIN, module, hooks={"request_filter": request_filter}) as world:
        client = await world.gateway.connect()
        exchange = await client.request()
        assert (await exchange.message()).get("request-id") == "made-1"
        (before,) = await exchange.informational()
        assert before.get("request-id") is None


async def test_the_client_is_not_told_where_that_is_off(autojump_clock: MockClock) -> None:
    async with open_modules(PLAIN, RequestId(response=False)) as world:
        assert (await world.exchange()).get("x-request-id") is None
    assert world.last().get("x-request-id")


async def test_what_make_returns_is_checked(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_modules(PLAIN, RequestId(make=lambda: "a\r\nb: c")) as world:
        assert (await world.exchange()).status == 500
    assert "make returned" in caplog.text
    assert not world.asked


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"field": "a b"}, "field='a b'"),
        ({"make": "uuid"}, "make='uuid'"),
        ({"max_length": 0}, "max_length=0"),
        ({"trusted": ["x"]}, "'x' is no network"),
        ({"response": "yes"}, "response='yes'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RequestId(**options)
