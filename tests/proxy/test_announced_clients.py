"""Connections to origins that announce the client by a PROXY header: what they say, and whose they are.

Origins read the header by the package ``proxy-protocol``, before TLS and HTTP.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from proxyprotocol.result import (
    ProxyResult,
    ProxyResultIPv4,
    ProxyResultIPv6,
    ProxyResultUnknown,
)
from proxyprotocol.tlv import ProxyProtocolTLV
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import (
    H1,
    H1_TLS,
    H2_TLS,
    H2C,
    LEGS,
    OK,
    PAIRINGS,
    SITE,
    Exchange,
    Handler,
    Leg,
    Matrix,
    Outcome,
    Pairing,
    authority,
    certificate,
    open_matrix,
    stapled,
)
from tests._support.recording import ORIGIN, Recorder
from tests._support.tls_wire import TlsWire, client_context
from trioproxy import CachingProxy, HttpPeer, PeerOptions, ServerConf, Session, TlsSettings
from trioproxy._info import ConnectionInfo, TlsInfo
from trioproxy._proxy_header import ProxyHeader, ProxyTls
from trioproxy.cache import MemoryStorage, SharedCache
from trioproxy.codec._proxy_protocol import SIGNATURE, encode_proxy_header

OUT = ServerConf(proxy_protocol="out")
#: The clients of the network in memory, the first to connect first.
CLIENTS = [f"198.51.100.1:{50001 + number}" for number in range(5)]
SERVER = "192.0.2.1:80"


PLAIN = Pairing(H1, H1)


@asynccontextmanager
async def announcing(
    pairing: Pairing = PLAIN,
    origin: Outcome | Sequence[Outcome] = OK,
    *,
    conf: ServerConf = OUT,
    headers: bool = True,
    **options: Any,
) -> AsyncIterator[Matrix]:
    """Run a gateway in front of an origin that wants a PROXY header."""
    peer = attrs.evolve(ORIGIN, options=PeerOptions(**options))
    recorder = Recorder([peer])
    async with open_matrix(
        recorder, {str(ORIGIN.host): origin}, pairing, conf=conf, headers=headers
    ) as gateway:
        yield gateway


def ends(result: ProxyResult) -> tuple[str, str]:
    """Return the addresses in a header."""
    assert isinstance(result, (ProxyResultIPv4, ProxyResultIPv6)), result
    (source, port), (destination, port_two) = result.source, result.dest
    shown = "[{}]:{}" if isinstance(result, ProxyResultIPv6) else "{}:{}"
    return shown.format(source, port), shown.format(destination, port_two)


def announced(gateway: Matrix) -> list[str]:
    """Return the clients that were announced, in the order of the connections."""
    assert all(ends(header)[1] == SERVER for header in gateway.headers)
    return [ends(header)[0] for header in gateway.headers]


def values(result: ProxyResult) -> ProxyProtocolTLV:
    """Return what a header tells beside the addresses."""
    assert isinstance(result, (ProxyResultIPv4, ProxyResultIPv6))
    return result.tlv


async def until(holds: Callable[[], bool]) -> None:
    """Return when something has come to be."""
    while not holds():
        await wait_all_tasks_blocked()
        await trio.sleep(0.01)


async def upstreams_closed(gateway: Matrix) -> bool:
    """Tell whether every connection to an origin is closed, without waiting for a timeout."""
    await gateway.ended()
    await wait_all_tasks_blocked()
    return gateway.running.statistics().pool.connections == 0


# -- what is announced -----------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_an_origin_is_told_the_client_before_tls_and_http(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async with announcing(pairing) as gateway:
        assert (await gateway.exchange()).status == 200
        assert announced(gateway) == CLIENTS[:1]
        tls = values(gateway.headers[0])
        assert tls.get(0x20) is None or tls.ssl.has_ssl
        assert (tls.get(0x20) is not None) == pairing.down.tls


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_a_connection_serves_the_client_connection_alone_that_it_announces(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async with announcing(pairing) as gateway:
        one, two = await gateway.connect(), await gateway.connect()
        for client in (one, two, one, two, two):
            assert (await client.exchange()).status == 200
        # Each has one of its own, which it uses again and again.
        assert announced(gateway) == CLIENTS[:2]
        numbers = gateway.running.statistics().pool
        assert (numbers.connects, numbers.reuses) == (2, 3)
        assert (await gateway.exchange()).status == 200
        assert announced(gateway) == CLIENTS[:3]


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_a_connection_ends_with_the_client_connection_that_it_announces(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    conf = attrs.evolve(OUT, upstream_idle_timeout=1e6)
    async with announcing(pairing, conf=conf) as gateway:
        one, two = await gateway.connect(), await gateway.connect()
        for client in (one, two):
            assert (await client.exchange()).status == 200
        one.close()
        await until(lambda: gateway.running.statistics().connections == 1)
        await wait_all_tasks_blocked()
        assert gateway.running.statistics().pool.connections == 1
        assert (await two.exchange()).status == 200  # its own is still there
        assert announced(gateway) == CLIENTS[:2]
        two.close()
        assert await upstreams_closed(gateway)


async def test_an_address_that_comes_again_is_another_connection(
    autojump_clock: MockClock,
) -> None:
    """What tells connections apart is the connection, not the address that it has for a while."""
    conf = ServerConf(
        proxy_protocol="both", trusted_proxies=("198.51.100.0/24",), upstream_idle_timeout=1e6
    )
    async with announcing(conf=conf) as gateway:
        gateway.hello = b"PROXY TCP4 203.0.113.7 203.0.113.9 40000 80\r\n"
        one, two = await gateway.connect(), await gateway.connect()
        assert [(await each.exchange()).status for each in (one, two, one)] == [200] * 3
        assert [ends(header) for header in gateway.headers] == [
            ("203.0.113.7:40000", "203.0.113.9:80")
        ] * 2
        assert gateway.running.statistics().pool.connects == 2


@pytest.mark.parametrize("up", [H1, H2C, H2_TLS], ids=str)
@pytest.mark.parametrize("down", [H2C, H2_TLS], ids=str)
async def test_requests_at_once_of_one_client_are_announced_by_each_connection_they_take(
    down: Leg, up: Leg, autojump_clock: MockClock
) -> None:
    waiting, let_go = 0, trio.Event()

    async def origin(exchange: Exchange) -> None:
        nonlocal waiting
        await exchange.message()
        waiting += 1
        await let_go.wait()
        await exchange.respond(200, [("content-length", "5")], b"hello")

    async with announcing(Pairing(down, up), origin) as gateway:
        clients = [await gateway.connect() for _ in range(2)]
        exchanges = [await client.request() for client in clients for _ in range(3)]
        await until(lambda: waiting == 6)
        let_go.set()
        assert [(await exchange.message()).status for exchange in exchanges] == [200] * 6
        # HTTP/2 carries all three of a client on one connection, HTTP/1 each on one of its own.
        each = 1 if up.h2 else 3
        assert sorted(announced(gateway)) == sorted(CLIENTS[:2] * each)
        for client in clients:
            client.close()
        assert await upstreams_closed(gateway)


async def test_version_1_is_a_line(autojump_clock: MockClock) -> None:
    async with announcing(Pairing(H2_TLS, H1_TLS), proxy_protocol=1, conf=ServerConf()) as gateway:
        assert (await gateway.exchange()).status == 200
        assert announced(gateway) == CLIENTS[:1]
        assert not values(gateway.headers[0])  # it has no place for more


async def test_a_peer_says_for_itself_whether_it_wants_a_header(autojump_clock: MockClock) -> None:
    async with announcing(proxy_protocol=2, conf=ServerConf()) as gateway:
        assert (await gateway.exchange()).status == 200
        assert announced(gateway) == CLIENTS[:1]
    # What an origin without PROXY headers would take for a malformed request.
    async with announcing(proxy_protocol=0, headers=False) as gateway:
        assert (await gateway.exchange()).status == 200


@pytest.mark.parametrize("conf", [ServerConf(), OUT], ids=["off", "out, but not for this peer"])
async def test_clients_share_connections_that_announce_nobody(
    conf: ServerConf, autojump_clock: MockClock
) -> None:
    options: dict[str, Any] = {"proxy_protocol": 0} if conf is OUT else {}
    async with announcing(PLAIN, conf=conf, headers=False, **options) as gateway:
        for _ in range(3):
            assert (await gateway.exchange()).status == 200
        numbers = gateway.running.statistics().pool
        assert (numbers.connects, numbers.reuses) == (1, 2)


async def test_the_clients_tls_is_told_in_version_2(autojump_clock: MockClock) -> None:
    async with announcing(Pairing(H2_TLS, H1)) as gateway:
        assert (await gateway.exchange()).status == 200
        told = values(gateway.headers[0])
        assert (told.get(1), told.authority) == (b"h2", SITE)
        assert (told.ssl.has_ssl, told.ssl.has_cert_conn, told.ssl.verified) == (True, False, False)
        assert told.ssl.version == "TLSv1.3"
        assert told.ssl.cipher == "TLS_AES_256_GCM_SHA384"
        assert told.ssl.cn is None


async def test_the_clients_certificate_is_told_in_version_2(autojump_clock: MockClock) -> None:
    settings = TlsSettings(certificate(SITE), client_ca=authority())
    conf = attrs.evolve(OUT, tls=settings)
    async with announcing(PLAIN, conf=conf) as gateway:
        context = client_context(authority(), alpn=["http/1.1"])
        authority().issue_cert("me", common_name="A, B+C").configure_cert(context)
        stream = stapled(gateway.acceptor.connect(gateway.link))
        tls = TlsWire.wrap(stream, context, server_name=SITE)
        await tls.handshake()
        await tls.stapled.send_all(b"GET / HTTP/1.1\r\nHost: site.test\r\n\r\n")
        assert (await tls.stapled.receive_some()).startswith(b"HTTP/1.1 200")
        told = values(gateway.headers[0]).ssl
        assert (told.has_cert_conn, told.has_cert_sess, told.verified) == (True, True, True)
        assert told.cn == "A, B+C"
        tls.stapled.send_stream.close()


def test_the_common_name_is_that_of_the_attribute_alone() -> None:
    def name(subject: str) -> str | None:
        tls = TlsInfo("TLSv1.3", "x", peer_subject=subject, peer_sha256="00")
        told = ConnectionInfo(None, None, tls=tls).announcement(2).header.tls
        assert told is not None
        return told.common_name

    assert name("O=Us,CN=me") == "me"
    assert name("CN=me,O=Us") == "me"
    assert name("O=a+CN=me\\, too") == "me, too"
    assert name("O=a\\,CN=forged,CN=me") == "me"
    assert name("O=a\\\\,CN=me") == "me"
    assert name("O=CN=forged") is None
    assert name("CN=a\\0ab") == "a\nb"
    assert name("") is None


@pytest.mark.parametrize("down", LEGS, ids=str)
async def test_what_a_proxy_before_us_has_told_is_handed_on(
    down: Leg, autojump_clock: MockClock
) -> None:
    conf = ServerConf(proxy_protocol="both", trusted_proxies=("198.51.100.1",))
    async with announcing(Pairing(down, H1), conf=conf) as gateway:
        gateway.hello = encode_proxy_header(
            ProxyHeader(
                source="[2001:db8::1]:1000",
                destination="[2001:db8::2]:443",
                alpn=b"h3",
                authority="their.example",
                unique_id=b"\1\2\3",
                tls=ProxyTls(version="TLSv1.2", cipher="theirs"),
                netns="blue",
                others=((0xEA, b"?"),),
            )
        )
        assert (await gateway.exchange()).status == 200
        (header,) = gateway.headers
        assert ends(header) == ("[2001:db8::1]:1000", "[2001:db8::2]:443")
        told = values(header)
        assert told.unique_id == b"\1\2\3"
        # Where we have TLS with the proxy ourselves, that is what we know of.
        ours = down.tls
        assert told.authority == (SITE if ours else "their.example")
        assert told.ssl.version == ("TLSv1.3" if ours else "TLSv1.2")
        assert told.get(1) == (down.alpn[0].encode() if ours else b"h3")
        assert told.netns is None  # a name on another machine, and values of its own
        assert told.get(0xEA) is None


async def test_a_client_that_has_no_address_is_announced_as_unknown(
    autojump_clock: MockClock,
) -> None:
    conf = ServerConf(proxy_protocol="both", trusted_proxies=("198.51.100.1",))
    async with announcing(conf=conf) as gateway:
        paths = b"/run/client".ljust(108, b"\0") + bytes(108)
        gateway.hello = SIGNATURE + struct.pack("!BBH", 0x21, 0x31, 216) + paths
        assert (await gateway.exchange()).status == 200
        assert "'/run/client'" in repr(gateway.headers[0])
    async with announcing(conf=conf, proxy_protocol=1) as gateway:
        gateway.hello = SIGNATURE + struct.pack("!BBH", 0x21, 0x31, 216) + paths
        assert (await gateway.exchange()).status == 200
        assert isinstance(gateway.headers[0], ProxyResultUnknown)


# -- requests that outlive the client -----------------------------------------------------------------


@attrs.define(eq=False)
class Caching(CachingProxy[None]):
    """Serves what is stale, and renews it in the background."""

    peer: HttpPeer = ORIGIN

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


async def test_what_is_renewed_for_a_client_that_left_announces_it_and_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    fields = [
        ("content-length", "5"),
        ("cache-control", "max-age=60, stale-while-revalidate=3600"),
        ("age", "61"),
    ]
    renewing = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        if len(gateway.headers) > 1:
            renewing.set()
            await trio.sleep(5)
        await exchange.respond(200, fields, b"hello")

    conf = attrs.evolve(OUT, upstream_idle_timeout=1e6)
    proxy = Caching(shared_cache=SharedCache(storage=MemoryStorage(1 << 20)))
    async with open_matrix(
        proxy, {str(ORIGIN.host): origin}, PLAIN, conf=conf, headers=True
    ) as gateway:
        proxy.peer = gateway.peer()
        first, second = await gateway.connect(), await gateway.connect()
        assert (await first.exchange()).status == 200
        assert (await second.exchange()).status == 200  # what is stored, though stale
        await renewing.wait()
        first.close()
        second.close()
        await gateway.ended()
        await wait_all_tasks_blocked()
        assert gateway.running.statistics().pool.connections == 1  # it is still renewed
        await until(lambda: gateway.running.statistics().pool.connections == 0)
        assert announced(gateway) == CLIENTS[:2]
        assert dict(gateway.running.statistics().cache)["stale-updating"] == 1


# -- failures ----------------------------------------------------------------------------------------


async def _dies(exchange: Exchange) -> None:
    await exchange.message()
    exchange.close()


@pytest.mark.parametrize("down", [H1, H2_TLS], ids=str)
async def test_a_retry_announces_the_client_as_well(down: Leg, autojump_clock: MockClock) -> None:
    origin: list[Handler] = [_once_then_dies(), OK]
    async with announcing(Pairing(down, H1), origin) as gateway:
        client = await gateway.connect()
        assert (await client.exchange()).status == 200
        assert (await client.exchange()).status == 200  # on a connection that turns out to be lost
        assert announced(gateway) == CLIENTS[:1] * 2
        assert gateway.running.statistics().retries == 1


def _once_then_dies() -> Handler:
    served = 0

    async def handler(exchange: Exchange) -> None:
        nonlocal served
        served += 1
        await (OK if served == 1 else _dies)(exchange)

    return handler


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_a_client_that_leaves_takes_its_connection_with_it(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    asked = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        asked.set()
        await exchange.gone()

    conf = attrs.evolve(OUT, upstream_idle_timeout=1e6)
    async with announcing(pairing, origin, conf=conf) as gateway:
        client = await gateway.connect()
        await client.request()
        await asked.wait()
        client.close()
        await gateway.ended()
        await wait_all_tasks_blocked()
        assert gateway.running.statistics().pool.leased == 0
        # HTTP/2 says goodbye before.
        await until(lambda: gateway.running.statistics().pool.connections == 0)
        assert trio.current_time() < 1000


async def test_an_origin_that_takes_no_header_fails_as_one_that_cannot_be_connected_to(
    autojump_clock: MockClock,
) -> None:
    peer = HttpPeer("origin.test", 80, options=PeerOptions(custom_l4=_Broken()))
    recorder = Recorder(hooks={"upstream_peer": lambda *_: peer})
    async with open_matrix(recorder, {}, PLAIN, conf=OUT) as gateway:
        assert (await gateway.exchange()).status == 502
        await gateway.sessions_ended()
        assert dict(gateway.running.statistics().errors) == {"Upstream WriteError": 1}
        assert gateway.running.statistics().pool.connections == 0
    error = recorder.the("fail_to_connect").args["e"]
    assert "the PROXY header to origin.test" in str(error)


class _Broken:
    async def connect(self, address: Any) -> Any:
        near, far = trio.testing.memory_stream_pair()
        far.send_stream.close()
        far.receive_stream.close()
        return near
