"""Traffic mirrored to a second peer: what it gets, and that the client never feels it (row S-09)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import (
    H1,
    H2C,
    PAIRINGS,
    Exchange,
    Handler,
    Leg,
    Matrix,
    Origins,
    Pairing,
    answers,
    keeps,
    open_matrix,
)
from tests._support.recording import ORIGIN, Ctx, CutError, Message, Recorder
from tests._support.tunnels import TARGET, connect, shout
from trioproxy import (
    BodyChunk,
    ErrorType,
    HttpPeer,
    ProxyError,
    RequestHeader,
    ServerConf,
    Session,
)
from trioproxy.modules import HttpModule, HttpModuleBuilder, HttpModules
from trioproxy.subrequests import Mirror, Mirrored, MirrorModule
from trioproxy.subrequests._mirror import _Tee

SHADOW = "shadow.test"
OK = answers(fields=[("content-length", "5")])
pairings = pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
some_pairings = pytest.mark.parametrize(
    "pairing", [Pairing(H1, H1), Pairing(H2C, H2C), Pairing(H1, H2C)], ids=str
)


@attrs.define(eq=False, slots=False)
class Shadowed(Recorder):
    """A proxy with a mirror, whose peer is made to fit the pairing when the first request comes."""

    options: dict[str, Any] = attrs.field(factory=dict)
    more: tuple[HttpModuleBuilder, ...] = ()

    def init_downstream_modules(self, modules: HttpModules) -> None:
        for each in self.more:
            modules.add_module(each)
        # The peers of a recorder are made to fit by the harness, before the object is served.
        modules.add_module(Mirror(self.peers[1], **self.options))


def shadowed(**options: Any) -> Shadowed:
    return Shadowed(peers=(ORIGIN, HttpPeer(SHADOW, 80)), options=options)


async def dropped(gateway: Matrix) -> int:
    await wait_all_tasks_blocked()
    return gateway.running.statistics().mirrors_dropped


@pairings
async def test_s_09_a_mirror_gets_a_copy_and_the_client_never_waits_for_it(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []
    ended: list[float] = []

    async def slow(exchange: Exchange) -> None:
        asked.append(await exchange.message())
        await trio.sleep(30)
        await exchange.respond(500, [], b"nobody sees this")
        ended.append(trio.current_time())

    proxy = shadowed()
    async with open_matrix(proxy, {"origin.test": OK, SHADOW: slow}, pairing) as gateway:
        started = trio.current_time()
        response = await gateway.exchange("POST", body=b"the body", fields=[("x-a", "1")])
        assert (response.status, response.body) == (200, b"hello")
        assert trio.current_time() - started < 1
        statistics = gateway.running.statistics()
        assert (statistics.subrequests, statistics.subrequests_total) == (1, 1)
        await gateway.sessions_ended()
        assert gateway.running.statistics().mirrors_dropped == 0
        assert ended[0] - started >= 30

    assert len(asked) == 1
    assert asked[0].body == b"the body"
    assert asked[0].get("x-a") == "1"
    assert asked[0].start.startswith(b"POST /path")
    # None of the proxy's own callbacks ran for it.
    assert len(proxy.of("new_ctx")) == len(proxy.of("logging")) == 1


async def never_reads(exchange: Exchange) -> None:
    """Take a head, and nothing of the body."""
    await exchange.head()
    exchange.hold()
    await trio.sleep(3000)


@some_pairings
async def test_s_09_a_mirror_that_falls_behind_is_dropped_and_counted(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []
    proxy = shadowed()
    origins: Origins = {"origin.test": keeps(asked, OK), SHADOW: never_reads}
    async with open_matrix(proxy, origins, pairing, check_windows=False) as gateway:
        body = bytes(2_000_000)
        assert (await gateway.exchange("POST", body=body)).body == b"hello"
        assert await dropped(gateway) == 1
        await gateway.sessions_ended()
        statistics = gateway.running.statistics()
        assert (statistics.subrequests, statistics.pool.leased) == (0, 0)
    assert len(asked[0].body) == len(body)


@some_pairings
async def test_a_body_within_the_bound_waits_for_a_slow_mirror(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []

    async def slow(exchange: Exchange) -> None:
        exchange.hold()
        await exchange.head()
        await trio.sleep(20)
        exchange.go_on()
        asked.append(await exchange.message())
        await exchange.respond(200, [], b"")

    proxy = shadowed()
    origins: Origins = {"origin.test": OK, SHADOW: slow}
    async with open_matrix(proxy, origins, pairing) as gateway:
        started = trio.current_time()
        body = bytes(i % 251 for i in range(200_000))
        assert (await gateway.exchange("POST", body=body)).body == b"hello"
        assert trio.current_time() - started < 1
        await gateway.sessions_ended()
        assert await dropped(gateway) == 0
    assert asked[0].body == body


async def cut(exchange: Exchange) -> None:
    await exchange.head()
    exchange.close()


async def half(exchange: Exchange) -> None:
    await exchange.message()
    await exchange.send_head(200, [("content-length", "10")])
    await exchange.send_data(b"half")
    exchange.close()


@pytest.mark.parametrize("outcome", [cut, half, ErrorType.ConnectRefused, ErrorType.InvalidCert])
@some_pairings
async def test_s_09_a_mirror_that_fails_is_a_warning_in_the_log(
    outcome: Handler | ErrorType,
    pairing: Pairing,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy = shadowed()
    async with open_matrix(proxy, {"origin.test": OK, SHADOW: outcome}, pairing) as gateway:
        assert (await gateway.exchange("POST", body=b"x")).body == b"hello"
        await gateway.sessions_ended()
    assert proxy.the("logging").args["e"] is None
    assert "a mirrored request failed" in caplog.text
    assert "Fail to proxy" not in caplog.text


@some_pairings
async def test_s_09_a_mirror_that_hangs_ends_in_time(
    pairing: Pairing, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.gone()

    proxy = shadowed()
    conf = ServerConf(background_timeout=7)
    origins: Origins = {"origin.test": OK, SHADOW: never}
    async with open_matrix(proxy, origins, pairing, conf=conf) as gateway:
        assert (await gateway.exchange()).body == b"hello"
        started = trio.current_time()
        await gateway.sessions_ended()
        assert trio.current_time() - started == pytest.approx(7, abs=0.2)
    assert "longer than background_timeout (7 s)" in caplog.text


async def test_s_09_mirrors_beyond_the_number_that_may_run_are_dropped(
    autojump_clock: MockClock,
) -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.gone()

    proxy = shadowed()
    conf = ServerConf(max_background_requests=2)
    origins: Origins = {"origin.test": OK, SHADOW: never}
    async with open_matrix(proxy, origins, Pairing(H1, H1), conf=conf) as gateway:
        for _ in range(5):
            assert (await gateway.exchange("POST", body=b"x")).body == b"hello"
        assert await dropped(gateway) == 3
        assert gateway.running.statistics().subrequests == 2
        await gateway.sessions_ended()


@pytest.mark.parametrize("whole", [True, False])
@some_pairings
async def test_s_09_a_client_that_leaves_ends_the_mirror_unless_it_has_seen_all(
    whole: bool, pairing: Pairing, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []
    gone: list[bool] = []

    async def slow(exchange: Exchange) -> None:
        try:
            asked.append(await exchange.message())
        except CutError:
            gone.append(True)
            return
        await trio.sleep(5)
        await exchange.respond(200, [], b"")

    async def never(exchange: Exchange) -> None:
        try:
            await exchange.message()
        except CutError:
            return
        await exchange.gone()

    proxy = shadowed()
    origins: Origins = {"origin.test": never, SHADOW: slow}
    async with open_matrix(proxy, origins, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        await exchange.send_data(b"one", end=whole)
        await trio.sleep(1)
        client.close()
        await gateway.sessions_ended()
        assert await dropped(gateway) == 0
    assert proxy.the("logging").args["e"].etype == ErrorType.ConnectionClosed
    assert [each.body for each in asked] == ([b"one"] if whole else [])
    assert gone == ([] if whole else [True])


@pytest.mark.parametrize("how", ["stop", "drain"])
async def test_s_09_a_mirror_ends_with_the_server(how: str, autojump_clock: MockClock) -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.gone()

    proxy = shadowed()
    origins: Origins = {"origin.test": OK, SHADOW: never}
    async with open_matrix(proxy, origins, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).body == b"hello"
        services = gateway.running._server.service.services  # type: ignore[attr-defined]  # that of HTTP
        assert services.background == 1
        started = trio.current_time()
        if how == "drain":
            # A client's request is waited for, what nobody waits for is not.
            for client in gateway.clients:
                client.close()
            await gateway.running.drain()
        else:
            gateway.running._server.serving.cancel()
        await wait_all_tasks_blocked()
        assert services.background == services.subrequests == services.sessions == 0
        assert trio.current_time() - started < 1.5
        assert gateway.running.statistics().pool.leased == 0


# -- what is mirrored ----------------------------------------------------------------------------


@pytest.mark.parametrize(("sample", "expected"), [(0.0, 0), (1.0, 40), (0.5, None)])
async def test_a_sample_is_mirrored(
    sample: float, expected: int | None, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []
    proxy = shadowed(sample=sample)
    origins: Origins = {"origin.test": OK, SHADOW: keeps(asked, OK)}
    async with open_matrix(proxy, origins, Pairing(H1, H1)) as gateway:
        client = await gateway.connect()
        for _ in range(40):
            assert (await client.exchange()).status == 200
        await gateway.sessions_ended()
    assert 0 < len(asked) < 40 if expected is None else len(asked) == expected


@attrs.frozen(eq=False)
class Doubling(HttpModuleBuilder):
    """Makes more of a body."""

    order: int

    class Instance(HttpModule):
        async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
            request.headers.remove("content-length")
            return False

        async def request_body_filter(
            self, session: Session, body: BodyChunk, end_of_stream: bool
        ) -> None:
            body.data = (body.data or b"") * 2

    module_type = Instance

    def init(self) -> HttpModule:
        return self.Instance()


@pytest.mark.parametrize(("order", "body"), [(1, b"abab"), (-1, b"ab")])
@some_pairings
async def test_it_sees_what_earlier_modules_made(
    order: int, body: bytes, pairing: Pairing, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []
    proxy = shadowed()
    proxy.more = (Doubling(order),)
    origins: Origins = {"origin.test": OK, SHADOW: keeps(asked, OK)}
    async with open_matrix(proxy, origins, pairing) as gateway:
        assert (await gateway.exchange("POST", body=b"ab")).status == 200
        await gateway.sessions_ended()
    assert [each.body for each in asked] == [body]


@pytest.mark.parametrize("leg", [H1, H2C], ids=str)
async def test_a_tunnel_is_not_mirrored(leg: Leg, autojump_clock: MockClock) -> None:
    proxy = shadowed()
    origins: Origins = {"origin.test": shout, SHADOW: OK}
    conf = ServerConf(allow_connect=[TARGET])
    async with open_matrix(proxy, origins, Pairing(leg, H1), conf=conf) as gateway:
        tunnel = await connect(gateway, early=b"hello")
        assert await tunnel.read(5) == b"HELLO"
        await tunnel.half_close()
        assert await tunnel.read(3) == b"BYE"
        await gateway.sessions_ended()
        assert gateway.running.statistics().subrequests_total == 0
        assert SHADOW not in gateway.asked


@some_pairings
async def test_a_callback_starts_it_where_it_is_told_to(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    started: list[bool] = []
    asked: list[Message] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().path == "/refused":
            raise ProxyError.status(403)
        return False

    async def proxy_upstream_filter(session: Session, _ctx: Ctx) -> bool:
        module = session.downstream_modules_ctx.get(MirrorModule)
        assert module is not None
        started.extend([module.start(session), module.start(session)])
        return True

    proxy = shadowed(at_once=False)
    proxy.hooks = {
        "request_filter": request_filter,
        "proxy_upstream_filter": proxy_upstream_filter,
    }
    origins: Origins = {"origin.test": OK, SHADOW: keeps(asked, OK)}
    async with open_matrix(proxy, origins, pairing) as gateway:
        assert (await gateway.exchange(target="/refused")).status == 403
        assert (await gateway.exchange("PUT", body=b"abc")).status == 200
        await gateway.sessions_ended()
    assert started == [True, False]
    assert [each.body for each in asked] == [b"abc"]


async def test_one_whose_body_has_passed_by_is_not_started(autojump_clock: MockClock) -> None:
    started: list[bool] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        await session.peek_request_body(10)
        module = session.downstream_modules_ctx.get(MirrorModule)
        assert module is not None
        started.append(module.start(session))
        return False

    proxy = shadowed(at_once=False)
    proxy.hooks = {"request_filter": request_filter}
    async with open_matrix(proxy, {"origin.test": OK}, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange("PUT", body=b"abc")).status == 200
    assert started == [False]


def host_of_the_shadow(request: RequestHeader) -> None:
    request.authority = SHADOW


def mistake(_request: RequestHeader) -> None:
    raise ValueError("ours")


@pytest.mark.parametrize("rewrite", [host_of_the_shadow, mistake])
async def test_its_head_is_edited_and_a_mistake_there_costs_the_mirror_alone(
    rewrite: Callable[[RequestHeader], None],
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[Message] = []
    proxy = shadowed(rewrite=rewrite)
    origins: Origins = {"origin.test": OK, SHADOW: keeps(asked, OK)}
    async with open_matrix(proxy, origins, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).status == 200
        await gateway.sessions_ended()
    if rewrite is mistake:
        assert asked == []
        assert "Mirror.rewrite failed" in caplog.text
    else:
        assert [each.get("host") for each in asked] == [SHADOW]


@some_pairings
async def test_what_came_of_it_can_be_compared(pairing: Pairing, autojump_clock: MockClock) -> None:
    told: list[Mirrored] = []
    proxy = shadowed(on_mirrored=told.append)

    async def slow(exchange: Exchange) -> None:
        await exchange.message()
        await trio.sleep(3)
        await exchange.respond(200, [("content-length", "5")], b"hello")

    origins: Origins = {
        "origin.test": slow,
        SHADOW: [answers(500, [("x-from", SHADOW)], b"no"), cut],
    }
    async with open_matrix(proxy, origins, pairing) as gateway:
        assert (await gateway.exchange("PUT", body=b"abc")).status == 200
        await gateway.sessions_ended()
        (first,) = told
        assert first.answer is not None
        assert first.response is not None
        assert (first.answer.status, first.response.status, first.body_bytes) == (200, 500, 2)
        assert first.response.headers.get("x-from") == SHADOW
        assert first.request.method == "PUT"
        assert first.error is None
        assert first.duration < 1


async def test_one_that_failed_is_told_as_such(autojump_clock: MockClock) -> None:
    told: list[Mirrored] = []
    proxy = shadowed(on_mirrored=told.append)
    origins: Origins = {"origin.test": OK, SHADOW: ErrorType.ConnectRefused}
    async with open_matrix(proxy, origins, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).status == 200
        await gateway.sessions_ended()
    assert told[0].response is None
    assert told[0].error is not None
    assert told[0].error.etype == ErrorType.ConnectRefused


async def test_an_error_of_ours_is_what_the_client_got_as_well(autojump_clock: MockClock) -> None:
    told: list[Mirrored] = []
    proxy = shadowed(on_mirrored=told.append)
    origins: Origins = {"origin.test": ErrorType.ConnectRefused, SHADOW: OK}
    async with open_matrix(proxy, origins, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange()).status == 502
        await gateway.sessions_ended()
    assert told[0].answer is not None
    assert told[0].answer.status == 502
    assert told[0].response is not None
    assert told[0].response.status == 200


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sample": 1.5}, "sample=1.5: a share between 0 and 1 is right"),
        ({"sample": "all"}, "sample='all': a share between 0 and 1 is right"),
        ({"max_behind": 0}, "max_behind=0: a number of bytes, 1 or more, is right"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Mirror("http://127.0.0.1:1", **options)
    assert Mirror("http://127.0.0.1:1").peer.port == 1


async def test_r_07_what_waits_for_a_mirror_is_bounded_and_let_go_of(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tees: list[_Tee] = []
    held: list[int] = []
    put = _Tee.put

    def watched(self: _Tee, data: bytes) -> bool:
        if self not in tees:
            tees.append(self)
        taken = put(self, data)
        held.append(sum(len(piece) for piece in self._pieces))
        return taken

    monkeypatch.setattr(_Tee, "put", watched)
    proxy = shadowed()
    origins: Origins = {"origin.test": OK, SHADOW: never_reads}
    async with open_matrix(proxy, origins, Pairing(H1, H1)) as gateway:
        assert (await gateway.exchange("POST", body=bytes(1_000_000))).body == b"hello"
        assert await dropped(gateway) == 1
    assert 131072 < max(held) <= 262144
    assert len(tees) == 1
    assert not tees[0]._pieces


async def test_r_07_tiny_pieces_that_wait_for_a_mirror_take_little_more_than_their_own_size() -> (
    None
):
    tee = _Tee(65536)
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        for number in range(32768):
            assert tee.put(b"%02d" % (number % 100))
        taken = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    assert not tee.put(b"x")
    tee.end()
    assert taken < 2 * 65536
    assert b"".join([piece async for piece in tee]) == bytes(
        byte for number in range(32768) for byte in b"%02d" % (number % 100)
    )
