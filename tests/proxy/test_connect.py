"""CONNECT among the other parts: modules, caches, names of certificates, proxies on the way, steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests._support.faulty import failing
from tests._support.matrix import H1, H1_TLS, H2_TLS, H2C, Leg, Pairing, certificate, open_matrix
from tests._support.recording import ORIGIN, Gateway, Recorder, Wire, open_gateway
from tests._support.steps import AtStep, run_with, some_steps, use_one_schedule
from tests._support.tunnels import TARGET, ask, connect, shout
from trioproxy import (
    BodyChunk,
    CachingProxy,
    ErrorSource,
    ErrorType,
    HttpPeer,
    ResponseHeader,
    ServerConf,
    Session,
    TlsSettings,
)
from trioproxy.cache import MemoryStorage, SharedCache
from trioproxy.modules import HttpModule, HttpModuleBuilder, HttpModules
from trioproxy.peers import Proxy
from trioproxy.transport._byte_stream import StreamAdapter

ALLOW = ServerConf(allow_connect=[TARGET])
CONNECT_ERROR = 0xA


@pytest.mark.parametrize("leg", [H1_TLS, H2_TLS], ids=str)
async def test_a_target_is_not_held_to_the_names_of_the_certificate(
    leg: Leg, autojump_clock: MockClock
) -> None:
    tls = TlsSettings(
        certificate("site.test"), sni={"origin.test": TlsSettings(certificate("origin.test"))}
    )
    conf = attrs.evolve(ALLOW, tls=tls)
    async with open_matrix(Recorder(), shout, Pairing(leg, H1), conf=conf) as gateway:
        # On a connection for site.test this name is misdirected, as any other request's.
        response = await gateway.exchange("GET", authority="origin.test")
        assert response.status == 421
        tunnel = await connect(gateway, early=b"x")
        assert tunnel.status == 200
        await tunnel.half_close()
        assert await tunnel.read(4) == b"XBYE"


async def test_a_tunnel_over_tls_to_its_peer_is_opened_inside(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_matrix(recorder, shout, Pairing(H2C, H1_TLS), conf=ALLOW) as gateway:
        tunnel = await connect(gateway, early=b"hello")
        assert await tunnel.read(5) == b"HELLO"
        await tunnel.half_close()
        assert await tunnel.read(3) == b"BYE"
        assert gateway.upstream.spoken == [None]  # what is spoken inside is not for us to say
    digest = recorder.the("connected_to_upstream").args["digest"]
    assert digest.tls is not None


# -- modules and caches ----------------------------------------------------------------------------


class Looker(HttpModule):
    """Writes down what it sees, and spoils what it can."""

    seen: list[object]

    async def request_header_filter(self, session: Session, request: object) -> bool:
        self.seen.append("request")
        return False

    async def request_body_filter(self, session: Session, body: BodyChunk, end: bool) -> None:
        self.seen.append(("request body", body.data, end))

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        self.seen.append((response.status, end_of_stream))
        response.headers.set("x-module", "1")

    async def response_body_filter(self, session: Session, body: BodyChunk, end: bool) -> None:
        self.seen.append(("response body", body.data, end))
        body.data = b"spoilt"

    def response_done_filter(self, session: Session) -> None:
        self.seen.append("done")


@attrs.frozen
class Looking(HttpModuleBuilder):
    seen: list[object]
    module_type = Looker

    def init(self) -> Looker:
        looker = Looker()
        looker.seen = self.seen
        return looker


@pytest.mark.parametrize("side", ["downstream", "upstream"])
@pytest.mark.parametrize("leg", [H1, H2C], ids=str)
async def test_modules_see_the_heads_of_a_tunnel_and_nothing_of_what_it_carries(
    side: str, leg: Leg, autojump_clock: MockClock
) -> None:
    seen: list[object] = []

    class Modular(Recorder):
        def init_downstream_modules(self, modules: HttpModules) -> None:
            if side == "downstream":
                modules.add_module(Looking(seen))

        def init_upstream_modules(self, modules: HttpModules) -> None:
            if side == "upstream":
                modules.add_module(Looking(seen))

        async def adjust_upstream_modules(
            self,
            session: Session,
            upstream_response: ResponseHeader,
            end_of_stream: bool,
            ctx: object,
        ) -> None:
            seen.append(("adjust", upstream_response.status, end_of_stream))

    async with open_matrix(Modular(), shout, Pairing(leg, H1), conf=ALLOW) as gateway:
        tunnel = await connect(gateway, early=b"hello")
        assert tunnel.status == 200
        assert ((b"x-module", b"1") in tunnel.fields) is (side == "downstream")
        assert await tunnel.read(5) == b"HELLO"
        await tunnel.half_close()
        assert await tunnel.read(3) == b"BYE"
        assert await tunnel.receive() == b""
        await gateway.sessions_ended()
    # Of the upstream's side they are not asked, as for a 101: the head comes from nobody there.
    if side == "downstream":
        assert seen == ["request", ("adjust", 200, False), (200, False), "done"]
    else:
        assert seen == [("adjust", 200, False), "done"]


async def test_a_cache_is_not_asked(autojump_clock: MockClock) -> None:
    @attrs.define(eq=False)
    class Cached(CachingProxy[None]):
        gateway: object = None

        def new_ctx(self) -> None:
            return None

        async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
            return peers[0]

        def request_cache_filter(self, session: Session, ctx: None) -> None:
            asked.append(session.req_header().method)
            super().request_cache_filter(session, ctx)

    asked: list[str] = []
    peers: list[HttpPeer] = []
    proxy = Cached(shared_cache=SharedCache(storage=MemoryStorage(1 << 20)))
    async with open_matrix(proxy, shout, Pairing(H1, H1), conf=ALLOW) as gateway:
        peers.append(gateway.peer())
        tunnel = await connect(gateway, early=b"hello")
        assert await tunnel.read(5) == b"HELLO"
        await tunnel.half_close()
        assert await tunnel.read(3) == b"BYE"
        await gateway.sessions_ended()
        assert gateway.running.statistics().cache == ()
    assert asked == []


# -- a proxy behind this one -----------------------------------------------------------------------


@pytest.mark.parametrize("greeting", [b"", b"220 ready\r\n"])
async def test_a_tunnel_leads_through_another_proxy(
    greeting: bytes, autojump_clock: MockClock
) -> None:
    asked: list[bytes] = []

    async def handler(exchange: object) -> None:
        wire = exchange.wire  # type: ignore[attr-defined]  # bytes
        asked.append((await wire.head()).start)
        await wire.send(b"HTTP/1.1 200 fine\r\nVia: p\r\n\r\n" + greeting)
        await shout(exchange)  # type: ignore[arg-type]  # the same

    def through(session: Session, _ctx: object) -> HttpPeer:
        way = Proxy("origin.test", 3128)
        return session.connect_peer(proxy=way, options=gateway.peer().options)

    recorder = Recorder(hooks={"upstream_peer": through})
    async with open_matrix(recorder, handler, Pairing(H2C, H1), conf=ALLOW) as gateway:
        tunnel = await connect(gateway, early=b"hello")
        expected = greeting + b"HELLO"
        assert await tunnel.read(len(expected)) == expected
        await tunnel.half_close()
        assert await tunnel.read(3) == b"BYE"
    assert asked == [b"CONNECT origin.test:443 HTTP/1.1"]
    digest = recorder.the("connected_to_upstream").args["digest"]
    assert digest.proxy_reply.headers.get("via") == "p"


async def test_a_refusal_of_that_proxy_is_a_502(autojump_clock: MockClock) -> None:
    async def handler(exchange: object) -> None:
        wire = exchange.wire  # type: ignore[attr-defined]  # bytes
        await wire.head()
        await wire.send(b"HTTP/1.1 407 no\r\nContent-Length: 0\r\n\r\n")
        exchange.close()  # type: ignore[attr-defined]  # the same

    def through(session: Session, _ctx: object) -> HttpPeer:
        way = Proxy("origin.test", 3128)
        return session.connect_peer(proxy=way, options=gateway.peer().options)

    recorder = Recorder(hooks={"upstream_peer": through})
    async with open_matrix(recorder, handler, Pairing(H1, H1), conf=ALLOW) as gateway:
        assert (await connect(gateway)).status == 502
        await gateway.sessions_ended()
    assert recorder.the("fail_to_connect").args["e"].etype == ErrorType.ConnectProxyFailure


# -- the pool --------------------------------------------------------------------------------------


async def test_a_tunnel_never_takes_a_pooled_connection_and_leaves_none(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        head = await wire.head()
        if head.start.startswith(b"GET"):
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        while await wire.more():
            pass

    get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with open_gateway(Recorder(), origin, conf=ALLOW) as gateway:
        assert (await gateway.exchange(get)).status == 200
        assert gateway.pool.statistics().idle == 1
        client = gateway.connect()
        await client.send(ask() + b"raw bytes\r\n\r\n")
        assert (await client.head()).status == 200
        statistics = gateway.pool.statistics()
        assert (statistics.idle, statistics.leased, statistics.connects) == (1, 1, 2)
        client.close()
        await gateway.ended()
        statistics = gateway.pool.statistics()
        assert (statistics.idle, statistics.leased, statistics.reuses) == (1, 0, 0)


# -- at every step ---------------------------------------------------------------------------------


@pytest.fixture
def _one_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_schedule(monkeypatch)


async def echo(wire: Wire) -> None:
    """Be an origin of bytes."""
    with contextlib.suppress(trio.BrokenResourceError):
        while wire.buffer or await wire.more():
            await wire.send(bytes(wire.buffer))
            wire.buffer.clear()
        await wire.half_close()


async def pause(*_args: object) -> None:
    await trio.sleep(0.01)


def play(
    step: int,
    deed: Callable[[Gateway, Wire], None],
    adapt: Callable[[Any], StreamAdapter] = StreamAdapter,
) -> tuple[int, Recorder, bytes]:
    """Open a tunnel, send through it, end it; do the deed before one of the steps of that."""
    bomb = AtStep(step)
    hooks = dict.fromkeys(("connected_to_upstream", "request_body_filter", "logging"), pause)
    recorder = Recorder(hooks=hooks)
    got = bytearray()

    async def main() -> None:
        async with open_gateway(recorder, {ORIGIN.name: echo}, conf=ALLOW, adapt=adapt) as gateway:
            client = gateway.connect()
            bomb.deed = lambda: deed(gateway, client)
            bomb.on = True
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await client.send(ask() + b"one")
                while b"\r\n\r\none" not in client.buffer and await client.more():
                    pass
                await client.send(b"two")
                await client.half_close()
                while await client.more():
                    pass
            got.extend(client.buffer)
            client.close()
            await gateway.ended()
            bomb.on = False

    run_with(bomb, main)
    return bomb.count, recorder, bytes(got)


@pytest.mark.usefixtures("_one_schedule")
@pytest.mark.parametrize("deed", ["nothing", "stop", "leave", "half-close"])
def test_a_tunnel_can_be_ended_at_each_of_its_steps(deed: str) -> None:
    """That nothing is left behind is checked by `open_gateway`, in every run."""
    deeds: dict[str, Callable[[Gateway, Wire], None]] = {
        "nothing": lambda _gateway, _client: None,
        "stop": lambda gateway, _client: gateway.stop(),
        "leave": lambda _gateway, client: client.close(),
        "half-close": lambda _gateway, client: client.stream.send_stream.close(),
    }
    steps, recorder, got = play(0, deeds["nothing"])
    assert got.endswith(b"\r\n\r\nonetwo")
    assert recorder.the("logging").args["e"] is None
    assert steps > 20
    ended_early = 0
    for step in [] if deed == "nothing" else some_steps(steps, 2):
        _, recorder, got = play(step, deeds[deed])
        body = got.partition(b"\r\n\r\n")[2]
        assert b"onetwo".startswith(body), (step, got)
        names = recorder.names()
        assert names.count("logging") == names.count("new_ctx"), (step, names)
        for call in recorder.of("logging"):
            error = call.args["e"]
            if error is not None:
                ended_early += 1
                wanted = {ErrorSource.INTERNAL if deed == "stop" else ErrorSource.DOWNSTREAM}
                assert error.esource in wanted, (step, error)
    # A half-close is none: what came before it is sent through the tunnel all the same.
    assert ended_early or deed in ("nothing", "half-close")


@pytest.mark.usefixtures("_one_schedule")
def test_a_tunnel_survives_a_failure_of_each_of_its_reads_and_writes() -> None:
    calls = [0]
    play(0, lambda _gateway, _client: None, failing(0, calls))
    assert calls[0] >= 6
    failed = 0
    for nth in range(1, calls[0] + 1):
        _, recorder, got = play(0, lambda _gateway, _client: None, failing(nth, [0]))
        assert b"onetwo".startswith(got.partition(b"\r\n\r\n")[2]), (nth, got)
        names = recorder.names()
        assert names.count("logging") == names.count("new_ctx"), (nth, names)
        failed += any(call.args["e"] is not None for call in recorder.of("logging"))
    assert failed >= 3
