"""A subrequest is the same whatever its client and its origin speak."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from tests._support.matrix import H1, OK, PAIRINGS, Exchange, Pairing, essence, keeps, open_matrix
from tests._support.recording import Ctx, Message, Recorder
from tests._support.spawning import Spawning, spawner_of
from trioproxy import Chain, ErrorType, HttpPeer, ProxyError, ProxyHttp, Session

pairings = pytest.mark.parametrize("pairing", PAIRINGS, ids=str)


async def pipes(session: Session, _ctx: Ctx) -> bool:
    """Answer with a subrequest that has the client's body."""
    if session.is_subrequest():
        assert not session.is_http2()
        return False
    spawner = spawner_of(session)
    await spawner.pipe(body=spawner.share_body())
    return True


@pairings
async def test_a_message_is_piped_whole(pairing: Pairing, autojump_clock: MockClock) -> None:
    asked: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        await exchange.send_head(103, [("link", "</a>")])
        await exchange.send_head(200, [("x-a", "1")])
        await exchange.send_data(b"one ")
        await trio.sleep(0.1)
        await exchange.send_data(b"two")
        await exchange.send_trailers([("x-sum", "2")])

    proxy = Spawning(hooks={"request_filter": pipes})
    async with open_matrix(proxy, keeps(asked, origin), pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST", fields=[("x-b", "2"), ("te", "trailers")])
        await exchange.send_data(b"the ")
        await trio.sleep(0.1)
        await exchange.send_data(b"body", end=True)
        (hints,) = await exchange.informational()
        assert hints.status == 103
        response = await exchange.message()
        assert essence(response) == (
            200,
            [(b"x-a", b"1")],
            b"one two",
            [(b"x-sum", b"2")],
        )
        await gateway.sessions_ended()
        statistics = gateway.running.statistics()
        assert (statistics.subrequests, statistics.subrequests_total) == (0, 1)
        assert statistics.errors == ()

    (message,) = asked
    assert message.body == b"the body"
    assert message.get("x-b") == "2"


@pairings
async def test_a_client_that_leaves_ends_it(pairing: Pairing, autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.gone()

    proxy = Spawning(hooks={"request_filter": pipes})
    async with open_matrix(proxy, origin, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        await exchange.send_data(b"half of it")
        await trio.sleep(1)
        assert gateway.running.statistics().subrequests == 1
        client.close()
        await gateway.sessions_ended()
        assert gateway.running.statistics().subrequests == 0
    ends = {
        call.args["session"].is_subrequest(): call.args["e"].etype for call in proxy.of("logging")
    }
    assert ends[False] == ErrorType.ConnectionClosed
    assert ends[True] in (ErrorType.ConnectionClosed, ErrorType.Custom("Cancelled"))


@pairings
async def test_what_is_refused_before_its_body_was_read_is_piped(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.at_least(1)
        await exchange.respond(413, [("content-length", "8")], b"too much")

    proxy = Spawning(hooks={"request_filter": pipes})
    async with open_matrix(proxy, origin, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        await exchange.send_data(bytes(10_000))
        response = await exchange.message()
        assert (response.status, response.body) == (413, b"too much")
        await gateway.sessions_ended()


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_one_that_was_answered_whole_before_its_body_was_read_has_not_failed(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.respond(403, [("content-length", "2")], b"no")
        await exchange.gone()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(10_000)

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        async with spawner_of(session).open(body=endless()) as subrequest:
            assert (await subrequest.response_header()).status == 403
            assert await subrequest.read() == b"no"
        assert subrequest.error is None
        raise ProxyError.status(401)

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_matrix(proxy, refuse, pairing) as gateway:
        for _ in range(5):
            assert (await gateway.exchange()).status == 401
    assert [call.args["e"] is None for call in proxy.of("logging")] == [True, False] * 5


@pytest.mark.parametrize("allows", [True, False])
async def test_one_member_of_a_chain_may_allow_them_for_all(
    allows: bool, autojump_clock: MockClock
) -> None:
    seen: list[bool] = []

    class Allowing(ProxyHttp[None]):
        def new_ctx(self) -> None:
            return None

        def allow_spawning_subrequest(self, session: Session, ctx: None) -> bool:
            return allows and not session.is_subrequest()

        async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
            raise NotImplementedError

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        seen.append(session.subrequest_spawner is not None)
        if session.subrequest_spawner is not None:
            await session.subrequest_spawner.pipe()
            return True
        return False

    async def upstream_peer(_session: Session, _ctx: Ctx) -> HttpPeer:
        return gateway.peer()

    hooks = {"request_filter": request_filter, "upstream_peer": upstream_peer}
    chain = Chain(Allowing(), Recorder(hooks=hooks))
    async with open_matrix(chain, OK, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).body == b"hello"
    assert seen == ([True, False] if allows else [False])
