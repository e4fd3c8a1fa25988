"""What the proxy cannot send leaves the exchange as it was, so that an error can still be told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio

from tests._support.recording import (
    GET,
    OK,
    Recorder,
    Wire,
    answers,
    open_gateway,
    post,
    returns,
)
from trioproxy import RequestHeader, ResponseHeader, Session


@pytest.mark.parametrize("length", ["abc", "5"])
async def test_a_filters_own_head_that_fits_no_message_is_answered_500(
    length: str, autojump_clock: object
) -> None:
    async def answer(session: Session, _ctx: object) -> bool:
        await session.write_response_header(ResponseHeader(200, {"Content-Length": length}), True)
        return True

    proxy = Recorder(hooks={"request_filter": answer})
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500
    assert proxy.the("logging").args["e"] is not None


async def test_a_request_that_fits_no_message_is_answered_500(autojump_clock: object) -> None:
    async def lie(_session: Session, request: RequestHeader, _ctx: object) -> None:
        request.headers.set("Content-Length", "many")

    proxy = Recorder(hooks={"upstream_request_filter": lie})
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, "soon"])
@pytest.mark.parametrize("name", ["upstream_response_body_filter", "response_body_filter"])
async def test_a_delay_that_is_none_is_answered_500(
    name: str, delay: Any, autojump_clock: object
) -> None:
    proxy = Recorder(hooks={name: returns(delay)})
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500
    assert name in str(proxy.the("logging").args["e"].root_cause())


async def test_a_slow_request_body_filter_does_not_hold_the_head_back(
    autojump_clock: object,
) -> None:
    arrived: list[float] = []

    async def slow(*_args: object) -> None:
        await trio.sleep(10)

    async def origin(wire: Wire) -> None:
        head = await wire.head()
        arrived.append(trio.current_time())
        await wire.body(head)
        await wire.send(OK)
        await wire.more()

    proxy = Recorder(hooks={"request_body_filter": slow})
    async with open_gateway(proxy, origin) as gateway:
        started = trio.current_time()
        await gateway.exchange(post(b"x"))
    assert arrived == [started]
