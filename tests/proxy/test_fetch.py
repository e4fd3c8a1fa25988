"""What a callback asks an origin on the side: `Session.fetch`."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import (
    H1,
    H2C,
    LEGS,
    Exchange,
    Handler,
    Matrix,
    Pairing,
    answers,
    authority_of,
    open_matrix,
)
from tests._support.recording import ORIGIN, Message, Recorder
from trioproxy import ErrorSource, ErrorType, HttpPeer, ProxyError, RequestHeader, Session

SIDE = "side.test"
PAIRINGS = [Pairing(H1, leg) for leg in LEGS]
GET = RequestHeader("GET", "/side?x=1", [("x-a", "1"), ("connection", "x-b"), ("x-b", "2")])


def asking(*requests: Any, **options: Any) -> tuple[Recorder, list[Any], list[Matrix]]:
    """Return a proxy that asks for each of these on the side, what came of it, and a place for its gateway."""
    results: list[Any] = []
    gateway: list[Matrix] = []

    async def request_filter(session: Session, _ctx: object) -> bool:
        for request, content in requests:
            peer = gateway[0].peer(HttpPeer(SIDE, 80))
            try:
                results.append(await session.fetch(peer, request, content, **options))
            except ProxyError as exc:
                results.append(exc)
        return False

    return Recorder(hooks={"request_filter": request_filter}), results, gateway


async def run(
    pairing: Pairing, side: Handler | ErrorType, *requests: Any, **options: Any
) -> tuple[list[Any], Matrix]:
    """Return what came of asking for each of these, within one request of a client."""
    proxy, results, place = asking(*requests, **options)
    origins = {str(ORIGIN.host): answers(), SIDE: side}
    async with open_matrix(proxy, origins, pairing) as gateway:
        place.append(gateway)
        assert (await gateway.exchange()).status == 200
    return results, gateway


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_an_answer_comes_back_whole(pairing: Pairing, autojump_clock: MockClock) -> None:
    asked: list[Message] = []

    async def side(exchange: Exchange) -> None:
        asked.append(await exchange.message())
        await exchange.send_head(103, [("link", "</a>")])
        await exchange.respond(203, [("x-c", "3")], b"z" * 60000, trailers=[("x-t", "1")])

    results, gateway = await run(pairing, side, (GET, b""), (GET, b""))
    for fetched in results:
        assert (fetched.head.status, fetched.head.headers.get("x-c")) == (203, "3")
        assert fetched.body == b"z" * 60000
    first = asked[0]
    assert first.get("x-a") == "1"
    assert first.get("x-b") is None
    assert (authority_of(first) or "").partition(":")[0] == SIDE
    assert first.body == b""
    assert gateway.asked.count(SIDE) == 1  # the second goes over the same connection


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_content_goes_along(pairing: Pairing, autojump_clock: MockClock) -> None:
    asked: list[Message] = []

    async def side(exchange: Exchange) -> None:
        asked.append(await exchange.message())
        await exchange.respond(204)

    head = RequestHeader("POST", "/", [("host", "named.test"), ("content-length", "99")])
    (fetched,), _ = await run(pairing, side, (head, b"x" * 30000))
    assert (fetched.head.status, fetched.body) == (204, b"")
    (request,) = asked
    assert request.body == b"x" * 30000
    assert request.get("content-length") == "30000"
    assert authority_of(request) == "named.test"


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_more_than_allowed_is_an_error(pairing: Pairing, autojump_clock: MockClock) -> None:
    (error,), _ = await run(pairing, answers(body=b"x" * 101), (GET, b""), max_bytes=100)
    assert error.root_etype() == ErrorType.Custom("TooLarge")
    assert error.esource is ErrorSource.UPSTREAM
    (fetched,), _ = await run(pairing, answers(body=b"x" * 100), (GET, b""), max_bytes=100)
    assert fetched.body == b"x" * 100


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_an_answer_that_takes_too_long_is_an_error(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def side(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [])
        await exchange.send_data(b"a")
        await exchange.gone()

    (error,), _ = await run(pairing, side, (GET, b""), timeout=2)
    assert error.root_etype() == ErrorType.ReadTimedout
    assert "side.test" in str(error)
    assert "no whole answer in 2 s" in str(error)


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_a_cut_answer_is_an_error(pairing: Pairing, autojump_clock: MockClock) -> None:
    async def side(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [("content-length", "5")])
        await exchange.send_data(b"abc")
        exchange.close()

    (error,), gateway = await run(pairing, side, (GET, b""))
    assert error.esource is ErrorSource.UPSTREAM
    assert gateway.asked.count(SIDE) == 1  # a new connection that fails is not replaced


async def test_a_peer_that_is_not_there_is_an_error(autojump_clock: MockClock) -> None:
    (error,), _ = await run(PAIRINGS[0], ErrorType.ConnectRefused, (GET, b""))
    assert error.root_etype() == ErrorType.ConnectRefused
    assert error.esource is ErrorSource.UPSTREAM


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_only_a_safe_request_is_sent_again_on_a_new_connection(
    method: str, autojump_clock: MockClock
) -> None:
    async def side(exchange: Exchange) -> None:
        await exchange.message()
        if (exchange.connection, exchange.index) == (0, 1):
            exchange.close()
        else:
            await exchange.respond(200)

    again = RequestHeader(method, "/")
    results, gateway = await run(PAIRINGS[0], side, (GET, b""), (again, b""))
    if method == "GET":
        assert results[1].head.status == 200
        assert gateway.asked.count(SIDE) == 2
    else:
        assert results[1].esource is ErrorSource.UPSTREAM
        assert gateway.asked.count(SIDE) == 1


@pytest.mark.parametrize("leg", [H1, H2C], ids=str)
async def test_it_ends_with_its_request(leg: Any, autojump_clock: MockClock) -> None:
    gone = trio.Event()

    async def side(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.gone()
        gone.set()

    proxy, results, place = asking((GET, b""))
    origins = {str(ORIGIN.host): answers(), SIDE: side}
    async with open_matrix(proxy, origins, Pairing(H1, leg)) as gateway:
        place.append(gateway)
        client = await gateway.connect()
        await client.request()
        await wait_all_tasks_blocked()
        client.close()
        await gone.wait()
    assert results == []
