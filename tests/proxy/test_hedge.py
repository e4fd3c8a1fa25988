"""A second attempt joins one that is not answered in time: the first answer wins, the other is gone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests._support.matrix import (
    H1,
    H2C,
    PAIRINGS,
    Exchange,
    Origins,
    Pairing,
    answers,
    keeps,
    open_matrix,
)
from tests._support.recording import ORIGIN, ORIGIN_2, Ctx, Message, Recorder
from trioproxy import BodyChunk, ErrorType, HttpPeer, ProxyError, ServerConf, Session

PEERS = (ORIGIN, ORIGIN_2)
pairings = pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
some_pairings = pytest.mark.parametrize(
    "pairing", [Pairing(H1, H1), Pairing(H2C, H2C), Pairing(H1, H2C)], ids=str
)
FAST = answers(fields=[("x-from", "second"), ("content-length", "5")])


async def never(exchange: Exchange) -> None:
    """Take a request, and say nothing until it is given up."""
    await exchange.message()
    await exchange.gone()


def after(seconds: float, name: str = "first") -> Any:
    async def handler(exchange: Exchange) -> None:
        await exchange.message()
        await trio.sleep(seconds)
        await exchange.respond(200, [("x-from", name), ("content-length", "5")], b"hello")

    return handler


def hedging(delay: float = 1.0, **hooks: Any) -> Recorder:
    """Return a proxy that hedges every request."""

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        session.hedge(delay)
        return False

    return Recorder(peers=PEERS, hooks={"request_filter": request_filter, **hooks})


ATTEMPT = [
    "upstream_peer",
    "connected_to_upstream",
    "upstream_request_filter",
    "request_body_filter(None, True)",
]
ANSWER = [
    "upstream_response_filter(200)",
    "response_filter(200)",
    "upstream_response_body_filter(b'hello', True)",
    "response_body_filter(b'hello', True)",
    "logging",
]
START = ["new_ctx", "early_request_filter", "request_filter", "proxy_upstream_filter"]


@pairings
async def test_the_second_wins_and_the_first_is_cancelled(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    proxy = hedging()
    async with open_matrix(proxy, {"origin.test": never, "second.test": FAST}, pairing) as gateway:
        started = trio.current_time()
        response = await gateway.exchange()
        assert (response.status, response.get("x-from"), response.body) == (200, "second", b"hello")
        assert trio.current_time() - started < 2
        await gateway.sessions_ended()
        statistics = gateway.running.statistics()
        assert (statistics.hedges, statistics.hedges_won, statistics.retries) == (1, 1, 0)
        assert statistics.errors == ()
        # The connection of the first is of no more use over HTTP/1; over HTTP/2 its stream was reset.
        pool = statistics.pool
        assert (pool.leased, pool.idle) == (0, 2 if pairing.up.h2 else 1)

    assert proxy.shown() == [*START, *ATTEMPT, *ATTEMPT, *ANSWER]
    assert gateway.records[0].upstream == proxy.peers[1].name
    peers = [call.args["peer"].host for call in proxy.of("connected_to_upstream")]
    assert peers == ["origin.test", "second.test"]


@some_pairings
async def test_the_first_may_still_win(pairing: Pairing, autojump_clock: MockClock) -> None:
    proxy = hedging()
    origins = {"origin.test": after(2), "second.test": never}
    async with open_matrix(proxy, origins, pairing) as gateway:
        response = await gateway.exchange()
        assert (response.get("x-from"), response.body) == ("first", b"hello")
        await gateway.sessions_ended()
        statistics = gateway.running.statistics()
        assert (statistics.hedges, statistics.hedges_won) == (1, 0)
    assert gateway.records[0].upstream == proxy.peers[0].name
    assert proxy.shown() == [*START, *ATTEMPT, *ATTEMPT, *ANSWER]


@some_pairings
async def test_who_answers_in_time_is_alone(pairing: Pairing, autojump_clock: MockClock) -> None:
    proxy = hedging()
    async with open_matrix(proxy, {"origin.test": after(0.5)}, pairing) as gateway:
        assert (await gateway.exchange()).body == b"hello"
        assert gateway.running.statistics().hedges == 0
        assert gateway.asked == ["origin.test"]
    assert proxy.shown() == [*START, *ATTEMPT, *ANSWER]


@some_pairings
@pytest.mark.parametrize("delay", [0, 1])
async def test_a_body_is_sent_whole_to_both(
    pairing: Pairing, delay: float, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []
    proxy = hedging(delay)
    origins = {"origin.test": keeps(asked, after(9)), "second.test": keeps(asked, after(3))}
    async with open_matrix(proxy, origins, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("PUT")
        await exchange.send_data(b"one ")
        await trio.sleep(0.1)
        await exchange.send_data(b"two", end=True)
        assert (await exchange.message()).body == b"hello"
        await gateway.sessions_ended()
        assert gateway.running.statistics().hedges_won == 1
    assert [each.body for each in asked] == [b"one two", b"one two"]
    pieces = proxy.pieces("request_body_filter")
    assert pieces == [(b"one two", True), (b"one two", True)]


@pytest.mark.parametrize(
    ("method", "size"), [("POST", 3), ("POST", 0), ("PUT", 65537), ("PATCH", 1)]
)
@some_pairings
async def test_what_cannot_be_sent_twice_is_sent_once(
    pairing: Pairing, method: str, size: int, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []
    proxy = hedging()
    async with open_matrix(proxy, {"origin.test": keeps(asked, after(9))}, pairing) as gateway:
        response = await gateway.exchange(method, body=bytes(size) or None)
        assert (response.status, response.body) == (200, b"hello")
        assert gateway.running.statistics().hedges == 0
    assert [len(each.body) for each in asked] == [size]


@some_pairings
async def test_a_filter_of_the_body_runs_for_each(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def number(session: Session, body: BodyChunk, _end: bool, ctx: Ctx) -> None:
        body.data = b"%d:%b" % (ctx.attempts, body.data or b"")

    async def no_length(_session: Session, head: Any, _ctx: Ctx) -> None:
        head.headers.remove("content-length")

    asked: list[Message] = []
    proxy = hedging(request_body_filter=number, upstream_request_filter=no_length)
    origins = {"origin.test": keeps(asked, after(9)), "second.test": keeps(asked, FAST)}
    async with open_matrix(proxy, origins, pairing) as gateway:
        assert (await gateway.exchange("PUT", body=b"x")).status == 200
        await gateway.sessions_ended()
    assert [each.body for each in asked] == [b"1:x", b"2:x"]


async def cut(exchange: Exchange) -> None:
    await exchange.message()
    await trio.sleep(2)
    exchange.close()


@some_pairings
async def test_one_that_fails_leaves_it_to_the_other(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    proxy = hedging()
    origins = {"origin.test": cut, "second.test": after(5, "second")}
    async with open_matrix(proxy, origins, pairing) as gateway:
        response = await gateway.exchange()
        assert (response.status, response.get("x-from")) == (200, "second")
        await gateway.sessions_ended()
        assert gateway.running.statistics().retries == 0
    failed = proxy.the("error_while_proxy")
    assert failed.args["peer"].name == "origin.test"
    assert proxy.the("logging").args["e"] is None
    assert "fail_to_proxy" not in proxy.names()


async def test_a_second_that_cannot_connect_leaves_it_to_the_first(
    autojump_clock: MockClock,
) -> None:
    proxy = hedging()
    origins: Origins = {"origin.test": after(5), "second.test": ErrorType.ConnectRefused}
    async with open_matrix(proxy, origins, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).get("x-from") == "first"
    assert proxy.the("fail_to_connect").args["peer"].name == "second.test"


async def test_a_second_without_a_peer_leaves_it_to_the_first(autojump_clock: MockClock) -> None:
    async def upstream_peer(session: Session, ctx: Ctx) -> HttpPeer:
        if ctx.attempts == 2:
            raise ValueError("no other peer")
        return proxy.peers[0]

    proxy = hedging(upstream_peer=upstream_peer)
    async with open_matrix(proxy, {"origin.test": after(5)}, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).get("x-from") == "first"


@some_pairings
async def test_where_both_fail_the_request_may_be_tried_again(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    def again(_peer: HttpPeer, session: Session, e: ProxyError, ctx: Ctx, _: bool) -> ProxyError:
        e.set_retry(True)
        if ctx.attempts == 2:
            session.hedge(None)
        return e

    proxy = hedging(error_while_proxy=again)
    origins: Origins = {"origin.test": cut, "second.test": [cut, FAST]}
    async with open_matrix(proxy, origins, pairing) as gateway:
        assert (await gateway.exchange("PUT", body=b"abc")).get("x-from") == "second"
        await gateway.sessions_ended()
        statistics = gateway.running.statistics()
        assert (statistics.hedges, statistics.retries) == (1, 1)
    assert len(proxy.of("error_while_proxy")) == 2
    assert len(proxy.of("upstream_peer")) == 3


async def test_a_failure_before_the_delay_is_that_of_the_attempt(autojump_clock: MockClock) -> None:
    proxy = hedging(10)
    async with open_matrix(proxy, {"origin.test": cut}, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).status == 502
        assert gateway.running.statistics().hedges == 0


async def test_attempts_that_join_count_among_all(autojump_clock: MockClock) -> None:
    proxy = hedging()
    conf = ServerConf(max_attempts=1)
    async with open_matrix(proxy, {"origin.test": after(5)}, Pairing(H1, H1), conf=conf) as gateway:
        assert (await gateway.exchange()).status == 200
        assert gateway.running.statistics().hedges == 0
    assert len(proxy.of("upstream_peer")) == 1


async def test_an_error_in_a_callback_of_one_attempt_names_that_callback(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def connected_to_upstream(*args: Any) -> None:
        await trio.sleep(2)
        if args[2].name == "origin.test":
            raise ValueError("ours")

    async def upstream_request_filter(*_args: Any) -> None:
        await trio.sleep(2)

    proxy = hedging(
        connected_to_upstream=connected_to_upstream,
        upstream_request_filter=upstream_request_filter,
    )
    origins = {"origin.test": FAST, "second.test": FAST}
    async with open_matrix(proxy, origins, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).get("x-from") == "second"
    assert "connected_to_upstream raised ValueError: ours" in caplog.text
    assert proxy.the("error_while_proxy").args["e"].etype == ErrorType.InternalError


@pytest.mark.parametrize("delay", [-1, math.inf, math.nan])
async def test_a_delay_that_is_none_is_refused(delay: float, autojump_clock: MockClock) -> None:
    proxy = hedging(delay)
    async with open_matrix(proxy, {"origin.test": FAST}, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).status == 500
    assert "seconds, 0 or more, are right" in str(proxy.the("logging").args["e"].cause)


@pairings
async def test_a_client_that_leaves_ends_both(pairing: Pairing, autojump_clock: MockClock) -> None:
    proxy = hedging()
    origins = {"origin.test": never, "second.test": never}
    async with open_matrix(proxy, origins, pairing) as gateway:
        client = await gateway.connect()
        await client.open(end=True)
        await trio.sleep(2)
        assert gateway.running.statistics().pool.leased == 2
        client.close()
        await gateway.sessions_ended()
        assert gateway.running.statistics().pool.leased == 0
    assert proxy.the("logging").args["e"].etype == ErrorType.ConnectionClosed


@some_pairings
async def test_what_a_cancelled_attempt_raises_is_no_error_of_the_other(
    pairing: Pairing, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def connected_to_upstream(
        _session: Session, _reused: bool, peer: HttpPeer, *_rest: object
    ) -> None:
        if peer.host == "second.test":
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_in_the_end)
            await trio.sleep_forever()

    async def fails_in_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("ours")

    proxy = hedging(connected_to_upstream=connected_to_upstream)
    async with open_matrix(proxy, {"origin.test": never, "second.test": FAST}, pairing) as gateway:
        assert (await gateway.exchange()).body == b"hello"
        await gateway.sessions_ended()
        assert gateway.running.statistics().pool.leased == 0
    assert proxy.the("logging").args["e"] is None
    assert "a callback of an attempt that has lost raised ValueError: ours" in caplog.text
