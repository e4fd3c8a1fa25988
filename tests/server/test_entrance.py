"""What a connection has to get past before TLS: the connection filter, and a proxy's PROXY header."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

import trioproxy
from tests._support.matrix import (
    H1,
    H1_TLS,
    H2_TLS,
    H2C,
    LEGS,
    Leg,
    Matrix,
    Pairing,
    open_matrix,
    stapled,
)
from tests.server._network import ask, get, serving
from trioproxy import Digest, HttpPeer, Listener, ProxyHttp, ResponseHeader, ServerConf, Session
from trioproxy.codec._proxy_protocol import SIGNATURE
from trioproxy.connections import (
    ConnectionFilter,
    ConnectionInfo,
    NetworkFilter,
    ProxyHeader,
    ProxyTls,
)
from trioproxy.testing import Link
from trioproxy.testing._network import Path as Way

#: Where the clients of the network in memory connect from, and to.
NETWORK, CLIENT, SERVER = "198.51.100.0/24", "198.51.100.1:50001", "192.0.2.1:80"
LINE = b"PROXY TCP4 203.0.113.7 203.0.113.9 40000 443\r\n"
ANNOUNCED = ("203.0.113.7:40000", "203.0.113.9:443")
IN: dict[str, Any] = {"proxy_protocol": "in", "trusted_proxies": (NETWORK,)}
HEAD = b"GET /path HTTP/1.1\r\nHost: site.test\r\n\r\n"


def binary(body: bytes, *, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


ADDRESSES = bytes([203, 0, 113, 7, 203, 0, 113, 9]) + struct.pack("!HH", 40000, 443)


@attrs.define(eq=False)
class Seen(ProxyHttp[None]):
    """Answers by itself, and keeps what a session tells of its connection."""

    digests: list[Digest] = attrs.field(factory=list)
    addresses: list[tuple[str | None, str | None]] = attrs.field(factory=list)
    trusted: list[bool] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise NotImplementedError

    async def request_filter(self, session: Session, ctx: None) -> bool:
        self.addresses.append((session.client_addr(), session.server_addr()))
        self.digests.append(session.digest())
        self.trusted.append(session.from_trusted_proxy())
        head = ResponseHeader(200, {"Content-Length": "2"})
        await session.write_response_header(head)
        await session.write_response_body(b"ok", True)
        return True


@asynccontextmanager
async def open_entrance(
    down: Leg = H1, hello: bytes = b"", link: Link | None = None, **conf: Any
) -> AsyncIterator[tuple[Seen, Matrix]]:
    """Serve `Seen` in memory; a client says hello before anything else."""
    seen = Seen()
    async with open_matrix(
        seen, {}, Pairing(down, H1), conf=ServerConf(**conf), link=link or Link()
    ) as gateway:
        gateway.hello = hello
        yield seen, gateway


async def refused(gateway: Matrix, data: bytes, *, half_close: bool = False) -> None:
    """Send bytes that are not understood, and wait until the connection was closed without a word."""
    stream = stapled(gateway.acceptor.connect(gateway.link))
    if data:
        await stream.send_all(data)
    if half_close:
        await stream.send_eof()
    try:
        assert await stream.receive_some() == b""
    except trio.BrokenResourceError:
        pass
    stream.send_stream.close()


def hit(gateway: Matrix) -> dict[str, int]:
    return dict(gateway.running.statistics().limits_hit)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log, but for the ports of clients."""
    return [
        f"{record.levelname} {re.sub(r':5[0-9]{4}', '', record.getMessage())}"
        for record in caplog.records
        if record.name == "trioproxy" and record.levelno >= logging.INFO
    ]


# -- what is announced is believed -----------------------------------------------------------------


@pytest.mark.parametrize("down", LEGS, ids=str)
@pytest.mark.parametrize("hello", [LINE, binary(ADDRESSES)], ids=["v1", "v2"])
async def test_a_trusted_proxy_says_who_the_client_is_before_tls_and_http(
    hello: bytes, down: Leg, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_entrance(down, hello, **IN) as (seen, gateway):
        assert (await gateway.exchange()).status == 200
    assert seen.addresses == [ANNOUNCED]
    (digest,) = seen.digests
    assert (digest.peer_addr, digest.local_addr) == ANNOUNCED
    assert (digest.connected_peer_addr, digest.connected_local_addr) == (CLIENT, SERVER)
    assert digest.proxy_header == ProxyHeader(
        version=1 if hello == LINE else 2, source=ANNOUNCED[0], destination=ANNOUNCED[1]
    )
    assert (digest.tls is not None) == down.tls
    assert seen.trusted == [False]  # what the announced client writes is its own word


async def test_an_announced_client_that_is_itself_a_trusted_proxy_is_believed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    conf = IN | {"trusted_proxies": (NETWORK, "203.0.113.0/24")}
    async with open_entrance(LEGS[0], LINE, **conf) as (seen, gateway):
        assert (await gateway.exchange()).status == 200
    assert seen.trusted == [True]


@pytest.mark.parametrize("down", LEGS, ids=str)
async def test_a_header_may_come_byte_by_byte(
    down: Leg, autojump_clock: trio.testing.MockClock
) -> None:
    link = Link(Way(pieces=(1,)))
    async with open_entrance(down, binary(ADDRESSES), link, **IN) as (seen, gateway):
        assert (await gateway.exchange()).status == 200
    assert seen.addresses == [ANNOUNCED]


async def test_every_request_of_a_connection_has_the_announced_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_entrance(H1, LINE, **IN) as (seen, gateway):
        client = await gateway.connect()
        assert [(await client.exchange()).status for _ in range(3)] == [200] * 3
        records = [record.client for record in gateway.records]
    assert seen.addresses == [ANNOUNCED] * 3
    assert records == [ANNOUNCED[0]] * 3


async def test_what_a_header_of_version_2_tells_can_be_had(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tls = struct.pack("!BI", 3, 0) + b"\x21\0\x07TLSv1.3\x22\0\x02me"
    values = b"\1\0\2h2" + b"\2\0\x01a" + b"\5\0\2id" + b"\x20\0" + bytes([len(tls)]) + tls
    async with open_entrance(H1, binary(ADDRESSES + values + b"\xea\0\1?"), **IN) as (
        seen,
        gateway,
    ):
        assert (await gateway.exchange()).status == 200
    header = seen.digests[0].proxy_header
    assert header is not None
    assert (header.alpn, header.authority, header.unique_id) == (b"h2", "a", b"id")
    assert header.tls == ProxyTls(client=3, verify=0, version="TLSv1.3", common_name="me")
    assert header.tls.verified
    assert header.others == ((0xEA, b"?"),)


@pytest.mark.parametrize(
    ("hello", "header"),
    [
        (b"PROXY UNKNOWN\r\n", ProxyHeader(version=1)),
        (b"PROXY UNKNOWN 1.1.1.1 2.2.2.2 1 2\r\n", ProxyHeader(version=1)),
        (binary(ADDRESSES, command=0x20), ProxyHeader(local=True)),
        (binary(b"", family=0), ProxyHeader()),
        (binary(bytes(216), family=0x31), ProxyHeader()),
    ],
)
async def test_a_proxy_that_announces_nobody_keeps_its_own_address(
    hello: bytes, header: ProxyHeader, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_entrance(H1, hello, **IN) as (seen, gateway):
        assert (await gateway.exchange()).status == 200
    assert seen.addresses == [(CLIENT, SERVER)]
    assert seen.digests[0].proxy_header == header
    assert seen.digests[0].connected_peer_addr == CLIENT


# -- a trusted proxy has to send one -----------------------------------------------------------------


@pytest.mark.parametrize("down", LEGS, ids=str)
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (HEAD, "it began with no PROXY header, but b'GET /path HTTP/1"),
        (b"\x16\x03\x01\x02", r"it began with no PROXY header, but b'\x16\x03\x01\x02'"),
        (b"PROXY TCP4 203.0.113.7 203.0.113.9 40000\r\n" + HEAD, "not two addresses"),
        (binary(ADDRESSES[:-1]) + HEAD, "too short for its addresses"),
        (SIGNATURE + b"\x21\x11\xff\xff", "65551 bytes, where 4096 are allowed"),
    ],
)
async def test_a_missing_or_malformed_header_closes_the_connection_with_one_line(
    data: bytes,
    why: str,
    down: Leg,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_entrance(down, **IN) as (seen, gateway):
        await refused(gateway, data)
        await gateway.ended()
        assert hit(gateway) == {"proxy_protocol": 1}
    assert seen.addresses == []
    (line,) = told(caplog)
    assert line.startswith("INFO closed a connection from 198.51.100.1: ")
    assert why in line


@pytest.mark.parametrize("sent", [b"", LINE[:-1], binary(ADDRESSES)[:-1]])
async def test_a_header_has_to_come_within_header_timeout(
    sent: bytes, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_entrance(header_timeout=7, **IN) as (_, gateway):
        started = trio.current_time()
        await refused(gateway, sent)
        assert trio.current_time() == started + 7
        assert hit(gateway) == {"proxy_protocol": 1}
    assert told(caplog) == [
        "INFO closed a connection from 198.51.100.1: no PROXY header came within 7 s"
    ]


async def test_the_head_of_a_request_has_its_own_time_after_the_header(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_entrance(header_timeout=7, **IN) as (seen, gateway):
        stream = (await gateway.stream())[0]
        await trio.sleep(6)
        await stream.send_all(LINE)
        await trio.sleep(6)
        await stream.send_all(HEAD)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        stream.send_stream.close()
    assert seen.addresses == [ANNOUNCED]


async def test_a_connection_that_ends_within_a_header_is_told_of(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_entrance(**IN) as (_, gateway):
        await refused(gateway, LINE[:20], half_close=True)
        assert hit(gateway) == {"proxy_protocol": 1}
    assert told(caplog) == [
        "INFO closed a connection from 198.51.100.1: it ended within a PROXY header"
    ]


@pytest.mark.parametrize("half_close", [True, False])
async def test_a_look_whether_somebody_is_there_is_no_fault(
    half_close: bool, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Load balancers that check by connecting alone would fill the log."""
    caplog.set_level(logging.INFO)
    async with open_entrance(**IN) as (_, gateway):
        if half_close:
            await refused(gateway, b"", half_close=True)
        else:
            (await gateway.stream())[0].send_stream.close()
        await gateway.ended()
        assert hit(gateway) == {}
    assert told(caplog) == []


async def test_a_stop_does_not_wait_for_a_header(autojump_clock: trio.testing.MockClock) -> None:
    async with open_entrance(header_timeout=100, **IN) as (_, gateway):
        stream = (await gateway.stream())[0]
        await stream.send_all(LINE[:9])
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await gateway.running.drain()
        assert trio.current_time() == started
        assert hit(gateway) == {}
        stream.send_stream.close()


# -- nobody else is believed -------------------------------------------------------------------------

ELSEWHERE: dict[str, Any] = {"proxy_protocol": "in", "trusted_proxies": ("198.51.101.0/24", "unix")}


@pytest.mark.parametrize("down", LEGS, ids=str)
async def test_a_client_that_is_no_trusted_proxy_needs_no_header(
    down: Leg, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_entrance(down, **ELSEWHERE) as (seen, gateway):
        assert (await gateway.exchange()).status == 200
    assert seen.addresses == [(CLIENT, SERVER)]
    assert seen.digests[0].proxy_header is None
    assert seen.trusted == [False]


@pytest.mark.parametrize("hello", [LINE, binary(ADDRESSES)], ids=["v1", "v2"])
@pytest.mark.parametrize("conf", [ELSEWHERE, {}, {"trusted_proxies": (NETWORK,)}], ids=str)
@pytest.mark.parametrize("down", [H1, H2C], ids=str)
async def test_a_header_of_anybody_else_is_a_malformed_request(
    down: Leg, conf: dict[str, Any], hello: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_entrance(down, **conf) as (seen, gateway):
        stream = (await gateway.stream())[0]
        await stream.send_all(hello + HEAD)
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 400 ")
        stream.send_stream.close()
        await gateway.ended()
        assert dict(gateway.running.statistics().refusals) == {400: 1}
    assert seen.addresses == []


@pytest.mark.parametrize("hello", [LINE, binary(ADDRESSES)], ids=["v1", "v2"])
async def test_a_header_of_anybody_else_is_no_tls(
    hello: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_entrance(H2_TLS, **ELSEWHERE) as (seen, gateway):
        await refused(gateway, hello + HEAD)
        await gateway.ended()
        assert hit(gateway) == {"tls_TLSHandshakeFailure": 1}
    assert seen.addresses == []


async def test_only_the_first_header_counts(autojump_clock: trio.testing.MockClock) -> None:
    """A client's own, sent through a proxy that puts its in front, is a part of its request."""
    async with open_entrance(**IN) as (seen, gateway):
        stream = (await gateway.stream())[0]
        await stream.send_all(LINE + b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + HEAD)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
        stream.send_stream.close()
    assert seen.addresses == []


# -- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["in", "both"])
def test_headers_are_not_read_where_nobody_is_trusted(mode: str) -> None:
    with pytest.raises(ValueError, match=r"proxy_protocol: trusted_proxies is empty") as told:
        ServerConf(proxy_protocol=mode)
    assert "trusted_proxies=('10.0.0.0/8',)" in str(told.value)


async def test_a_listener_cannot_read_headers_where_nobody_is_trusted() -> None:
    with trio.fail_after(10), pytest.raises(ValueError, match=r"trusted_proxies is empty"):
        await trioproxy.serve(Seen(), Listener("127.0.0.1:0", proxy_protocol="in"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ServerConf(proxy_protocol="on"), "proxy_protocol='on': one of off, in, out, both"),
        (lambda: ServerConf(trusted_proxies=("10.0.0.1/8",)), "10.0.0.0/8 is right"),
        (
            lambda: ServerConf(trusted_proxies="10.0.0.0/8"),
            r"trusted_proxies='10.0.0.0/8': .*several",
        ),
        (lambda: Listener("a:1", proxy_protocol="out"), "proxy_protocol='out': one of off, in"),
        (
            lambda: ServerConf(connection_filter=lambda info: True),  # type: ignore[arg-type]  # the mistake under test
            "connection_filter=.*: a ConnectionFilter is right",
        ),
    ],
)
def test_a_wrong_setting_says_what_is_right(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.socket
async def test_a_listener_decides_by_itself_whether_headers_are_read() -> None:
    seen = Seen()
    binds: list[Any] = [
        Listener("127.0.0.1:0", proxy_protocol="in"),
        Listener("127.0.0.1:0", proxy_protocol="off"),
        "127.0.0.1:0",
    ]
    with trio.fail_after(10):
        async with serving(seen, *binds, trusted_proxies=("127.0.0.0/8",)) as running:
            one, *others = running.urls
            assert (await ask(one, LINE + get())).status == 200
            for url in others:
                assert (await ask(url, LINE + get())).status == 400
                assert (await ask(url, get())).status == 200
    assert seen.addresses[0] == ANNOUNCED
    assert [client and client.partition(":")[0] for client, _ in seen.addresses[1:]] == [
        "127.0.0.1"
    ] * 2


@pytest.mark.socket
@pytest.mark.parametrize(
    ("trusted", "status"), [(("unix",), 200), (("0.0.0.0/0", "::/0"), 400)], ids=str
)
async def test_unix_sockets_are_trusted_by_a_word_of_their_own(
    trusted: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    seen = Seen()
    with trio.fail_after(10):
        async with serving(
            seen, f"unix:{tmp_path / 's'}", proxy_protocol="in", trusted_proxies=trusted
        ) as running:
            assert (await ask(running.urls[0], LINE + get())).status == status
    assert seen.addresses == ([ANNOUNCED] if status == 200 else [])
    assert seen.trusted == ([False] if status == 200 else [])


# -- the connection filter -----------------------------------------------------------------------------


@attrs.define(eq=False)
class Asked(ConnectionFilter):
    """Keeps what it was asked, and does something."""

    answer: Callable[[], Any]
    infos: list[ConnectionInfo] = attrs.field(factory=list)

    async def should_accept(self, info: ConnectionInfo) -> bool:
        self.infos.append(info)
        answer = self.answer()
        if isinstance(answer, float):
            await trio.sleep(answer)
            return True
        return bool(answer)


@pytest.mark.parametrize("down", LEGS, ids=str)
async def test_what_the_filter_accepts_is_served(
    down: Leg, autojump_clock: trio.testing.MockClock
) -> None:
    asked = Asked(lambda: True)
    async with open_entrance(down, connection_filter=asked) as (seen, gateway):
        client = await gateway.connect()
        assert [(await client.exchange()).status for _ in range(2)] == [200] * 2
        assert hit(gateway) == {}
    (info,) = asked.infos  # once a connection
    assert (info.peer, info.local, info.tls, info.secure) == (CLIENT, SERVER, None, False)
    assert len(seen.addresses) == 2


@pytest.mark.parametrize("down", [H1, H1_TLS, H2C], ids=str)
async def test_what_the_filter_drops_is_closed_at_once_before_a_byte_came(
    down: Leg, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_entrance(down, connection_filter=Asked(lambda: False)) as (_, gateway):
        started = trio.current_time()
        await refused(gateway, b"")
        assert trio.current_time() == started
        await gateway.ended()
        assert hit(gateway) == {"connection_filter": 1}
        assert gateway.running.statistics().connections_total == 1
    assert told(caplog) == []  # an attack does not fill the log


async def test_the_filter_sees_who_has_really_connected_before_any_header(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked = Asked(lambda: True)
    async with open_entrance(H1, LINE, connection_filter=asked, **IN) as (seen, gateway):
        assert (await gateway.exchange()).status == 200
    assert [(info.peer, info.proxy_header) for info in asked.infos] == [(CLIENT, None)]
    assert seen.addresses == [ANNOUNCED]


async def test_a_filter_may_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with open_entrance(connection_filter=Asked(lambda: 3.0)) as (_, gateway):
        started = trio.current_time()
        assert (await gateway.exchange()).status == 200
        assert trio.current_time() == started + 3


async def test_a_filter_that_waits_too_long_drops_the_connection(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_entrance(header_timeout=7, connection_filter=Asked(lambda: 8.0)) as (
        _,
        gateway,
    ):
        started = trio.current_time()
        await refused(gateway, b"")
        assert trio.current_time() == started + 7
        assert hit(gateway) == {"connection_filter": 1}
    assert told(caplog) == [
        "WARNING dropped a connection from 198.51.100.1: its filter took longer than 7 s"
    ]


async def test_a_filter_that_fails_drops_the_connection_and_is_told_of(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_entrance(connection_filter=Asked(lambda: 1 / 0)) as (_, gateway):
        await refused(gateway, b"")
        await gateway.ended()
        assert hit(gateway) == {"connection_filter": 1}
    assert told(caplog) == ["ERROR dropped a connection from 198.51.100.1: its filter failed"]
    assert "ZeroDivisionError" in caplog.text


async def test_a_slow_filter_holds_nobody_else_up(autojump_clock: trio.testing.MockClock) -> None:
    answers = iter([5.0, True])
    async with open_entrance(connection_filter=Asked(lambda: next(answers))) as (_, gateway):
        slow = (await gateway.stream())[0]
        started = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        assert (await gateway.exchange()).status == 200
        assert trio.current_time() == started
        slow.send_stream.close()


@pytest.mark.parametrize(
    ("chosen", "accepted"),
    [
        (NetworkFilter(), True),
        (NetworkFilter(allow=[NETWORK]), True),
        (NetworkFilter(allow=["10.0.0.0/8", "unix"]), False),
        (NetworkFilter(deny=[NETWORK]), False),
        (NetworkFilter(deny=["10.0.0.0/8"]), True),
        (NetworkFilter(allow=["0.0.0.0/0"], deny=["198.51.100.1"]), False),
        (NetworkFilter(allow=["0.0.0.0/0"], deny=["198.51.100.2"]), True),
    ],
    ids=str,
)
async def test_networks_are_allowed_or_denied(
    chosen: NetworkFilter, accepted: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_entrance(connection_filter=chosen) as (_, gateway):
        if accepted:
            assert (await gateway.exchange()).status == 200
        else:
            await refused(gateway, b"")
        assert hit(gateway) == ({} if accepted else {"connection_filter": 1})


def test_a_filter_of_networks_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match=r"'10.0.0.1/8' has bits behind its prefix"):
        NetworkFilter(allow=["10.0.0.1/8"])
    with pytest.raises(ValueError, match="several networks are right"):
        NetworkFilter(deny="10.0.0.0/8")
