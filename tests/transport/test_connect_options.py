"""Options of a peer on real sockets: ``getsockopt`` tells whether they were set."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trioproxy import ErrorSource, ErrorType, PeerOptions, ProxyError
from trioproxy._info import ConnectionInfo
from trioproxy.peers import BindTo, TcpKeepalive
from trioproxy.transport import _connect, _sockets
from trioproxy.transport._byte_stream import ByteStream, SocketStream, StreamAdapter
from trioproxy.transport._connect import Address, connect

pytestmark = pytest.mark.socket
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux has all of them")


async def _connect_to(
    host: str | None, port: int | None, *, path: str | None = None, **options: Any
) -> tuple[ByteStream, ConnectionInfo]:
    with trio.fail_after(10):
        return await connect(
            host,
            port,
            path=path,
            connect_timeout=5,
            dns_timeout=5,
            limiter=trio.CapacityLimiter(1),
            options=PeerOptions(**options),
        )


@asynccontextmanager
async def _connected(
    origin: socket.socket, **options: Any
) -> AsyncIterator[tuple[socket.socket, ConnectionInfo]]:
    stream, info = await _connect_to(*origin.getsockname()[:2], **options)
    assert isinstance(stream, SocketStream)
    try:
        yield stream._sock, info
    finally:
        stream.close_now()


@pytest.fixture
def origin() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


@pytest.fixture
def origin6() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        sock.listen()
        yield sock


@linux
async def test_keep_alive_is_set_with_all_its_times(origin: socket.socket) -> None:
    keep = TcpKeepalive(idle=31, interval=7, count=4, user_timeout=12.5)
    async with _connected(origin, tcp_keepalive=keep) as (sock, _):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        tcp = socket.IPPROTO_TCP
        assert sock.getsockopt(tcp, socket.TCP_KEEPIDLE) == 31
        assert sock.getsockopt(tcp, socket.TCP_KEEPINTVL) == 7
        assert sock.getsockopt(tcp, socket.TCP_KEEPCNT) == 4
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 12500


@linux
async def test_without_options_nothing_is_set(origin: socket.socket) -> None:
    async with _connected(origin) as (sock, _):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, _sockets._LINUX["TCP_FASTOPEN_CONNECT"]) == 0
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0


async def test_the_receive_buffer_has_its_size(origin: socket.socket) -> None:
    async with _connected(origin, tcp_recv_buf=50_000) as (sock, _):
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size in (50_000, 100_000)  # Linux doubles it


async def test_dscp_marks_ipv4(origin: socket.socket) -> None:
    async with _connected(origin, dscp=10) as (sock, _):
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 10 << 2


async def test_dscp_marks_ipv6(origin6: socket.socket) -> None:
    async with _connected(origin6, dscp=46) as (sock, _):
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 46 << 2


@linux
async def test_fast_open_is_set_and_the_connection_works(origin: socket.socket) -> None:
    port = origin.getsockname()[1]
    stream, info = await _connect_to("127.0.0.1", port, tcp_fast_open=True)
    assert isinstance(stream, SocketStream)
    number = _sockets._LINUX["TCP_FASTOPEN_CONNECT"]
    assert stream._sock.getsockopt(socket.IPPROTO_TCP, number) == 1
    assert info.peer == f"127.0.0.1:{port}"
    await stream.send_parts([b"abc"], 5)
    accepted, _ = origin.accept()
    assert accepted.recv(3) == b"abc"
    accepted.close()
    stream.close_now()


def test_with_a_syn_that_has_not_left_the_peer_is_what_was_asked_for() -> None:
    with socket.socket() as sock:  # not connected: it has no peer
        options = PeerOptions(tcp_fast_open=True)
        one: list[Address] = [(socket.AF_INET, ("192.0.2.1", 80))]
        assert _connect._peer_text(sock, one, "a.example:80", options) == "192.0.2.1:80"
        assert _connect._peer_text(sock, one * 2, "a.example:80", options) == "a.example:80"
        with pytest.raises(OSError, match="not connected"):
            _connect._peer_text(sock, one, "a.example:80", None)


# -- what cannot be had ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "options", "named"),
    [
        (["TCP_FASTOPEN_CONNECT"], {"tcp_fast_open": True}, "tcp_fast_open"),
        (["IP_TOS"], {"dscp": 1}, "dscp"),
        (["TCP_KEEPIDLE", "TCP_KEEPALIVE"], {"tcp_keepalive": TcpKeepalive()}, "tcp_keepalive"),
        (
            ["TCP_USER_TIMEOUT"],
            {"tcp_keepalive": TcpKeepalive(user_timeout=1)},
            "tcp_keepalive.user_timeout",
        ),
    ],
)
async def test_an_option_that_the_platform_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch,
    origin: socket.socket,
    missing: list[str],
    options: dict[str, Any],
    named: str,
) -> None:
    monkeypatch.setattr(_sockets, "_LINUX", {})
    for name in missing:
        monkeypatch.delattr(socket, name, raising=False)
    with pytest.raises(ProxyError) as caught:
        await _connect_to("127.0.0.1", origin.getsockname()[1], **options)
    assert caught.value.etype == ErrorType.SocketError
    assert f"{named}: this platform has no {missing[0]}" in str(caught.value)


@linux
async def test_an_option_that_the_system_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch, origin: socket.socket
) -> None:
    monkeypatch.setattr(socket, "IP_TOS", 9999)
    with pytest.raises(ProxyError) as caught:
        await _connect_to("127.0.0.1", origin.getsockname()[1], dscp=1)
    assert caught.value.etype == ErrorType.SocketError
    assert "dscp: Protocol not available" in str(caught.value)


# -- the local address -----------------------------------------------------------------------------


@linux
async def test_bind_to_decides_the_local_address(origin: socket.socket) -> None:
    async with _connected(origin, bind_to="127.0.0.2") as (_, info):
        accepted, address = origin.accept()
        assert address[0] == "127.0.0.2"
        assert info.local == f"127.0.0.2:{address[1]}"
        accepted.close()


async def test_bind_to_an_ipv6_address(origin6: socket.socket) -> None:
    async with _connected(origin6, bind_to="::1") as (_, info):
        assert info.local is not None
        assert info.local.startswith("[::1]:")


async def test_an_address_that_is_not_ours_is_a_bind_error(origin: socket.socket) -> None:
    with pytest.raises(ProxyError) as caught:
        await _connect_to(
            "127.0.0.1", origin.getsockname()[1], bind_to=BindTo("192.0.2.1", (40000, 40009))
        )
    assert caught.value.etype == ErrorType.BindError
    assert caught.value.esource is ErrorSource.UPSTREAM
    assert "bind_to 192.0.2.1: Cannot assign requested address" in str(caught.value)


async def test_an_origin_without_an_address_of_the_family_has_no_route() -> None:
    with pytest.raises(ProxyError) as caught:
        await _connect_to("127.0.0.1", 9, bind_to="::1")
    assert caught.value.etype == ErrorType.ConnectNoRoute
    assert caught.value.context == (
        "connecting to 127.0.0.1:9: it has no IPv6 address, and bind_to is ::1"
    )


def _free_ports(count: int) -> tuple[int, int]:
    """Return a range of ports that nobody has, below those that the system gives out by itself."""
    for _ in range(100):
        start = random.randrange(20_000, 30_000)
        try:
            for port in range(start, start + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return start, start + count - 1
    pytest.skip("no ports in a row are free")


@linux
async def test_a_range_of_ports_is_used_up_and_then_an_error(origin: socket.socket) -> None:
    first, last = _free_ports(3)
    bind_to = BindTo("127.0.0.1", (first, last))
    where = origin.getsockname()
    streams = []
    seen = set()
    for _ in range(3):
        stream, info = await _connect_to(*where, bind_to=bind_to)
        streams.append(stream)
        seen.add(info.local)
    assert seen == {f"127.0.0.1:{port}" for port in range(first, last + 1)}
    with pytest.raises(ProxyError) as caught:
        await _connect_to(*where, bind_to=bind_to)
    assert caught.value.etype == ErrorType.BindError
    assert f"bind_to 127.0.0.1: ports {first} to {last}: all are taken" in str(caught.value)
    stream, info = await _connect_to(*where, bind_to=BindTo("127.0.0.1", (first, last), True))
    assert info.local not in seen
    for each in [*streams, stream]:
        each.close_now()


@linux
async def test_a_port_that_is_listened_on_is_passed_over(origin: socket.socket) -> None:
    first, last = _free_ports(2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        for _ in range(3):  # whichever the range starts with
            bind_to = BindTo("127.0.0.1", (first, last), fallback=False)
            async with _connected(origin, bind_to=bind_to) as (sock, info):
                assert info.local == f"127.0.0.1:{last}"
                # Closed by a reset, the port is free for the next round.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@linux
async def test_one_port_leads_to_several_origins(origin: socket.socket) -> None:
    port, _ = _free_ports(1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        bind_to = BindTo("127.0.0.1", (port, port))
        async with (
            _connected(origin, bind_to=bind_to) as (_, one),
            _connected(other, bind_to=bind_to) as (_, two),
        ):
            assert one.local == two.local == f"127.0.0.1:{port}"


async def test_a_long_range_lets_other_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_args: object) -> int:
        return errno.EADDRNOTAVAIL

    monkeypatch.setattr(_sockets, "_start", taken)
    monkeypatch.setattr(_sockets, "_bind", taken)
    steps = 0

    async def count() -> None:
        nonlocal steps
        while True:
            steps += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        with pytest.raises(_sockets.BindFailed):
            await _sockets.open_towards(
                socket.AF_INET,
                ("127.0.0.1", 9),
                PeerOptions(bind_to=BindTo("127.0.0.1", (1000, 1319))),
            )
        nursery.cancel_scope.cancel()
    assert steps >= 9


# -- a connector of one's own ----------------------------------------------------------------------


@attrs.define(eq=False)
class Scripted:
    """Gives what it is told to give, and keeps what it was asked for."""

    outcome: Any
    asked: list[object] = attrs.field(factory=list)

    async def connect(self, address: tuple[str, int] | str) -> Any:
        self.asked.append(address)
        await trio.lowlevel.checkpoint()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        if self.outcome == "never":
            await trio.sleep_forever()
        return self.outcome


async def test_a_connector_gets_the_address_and_its_stream_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)  # its name is its own matter
    ours, theirs = trio.testing.memory_stream_pair()
    l4 = Scripted(ours)
    stream, info = await _connect_to("a.example", 80, custom_l4=l4)
    assert isinstance(stream, StreamAdapter)
    await stream.send_parts([b"abc"], 1)
    assert await theirs.receive_some(3) == b"abc"
    assert (info.peer, info.local) == ("a.example:80", None)
    await _connect_to(None, None, path="/run/x", custom_l4=l4)
    await _connect_to("::1", 80, custom_l4=l4)
    assert l4.asked == [("a.example", 80), "/run/x", ("::1", 80)]


@pytest.mark.parametrize(
    ("outcome", "etype"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), ErrorType.ConnectRefused),
        (trio.BrokenResourceError("gone"), ErrorType.ConnectError),
        (ProxyError.new(ErrorType.Custom("Mine")), ErrorType.Custom("Mine")),
    ],
)
async def test_a_connectors_failure_is_the_origins(
    caplog: pytest.LogCaptureFixture, outcome: Exception, etype: ErrorType
) -> None:
    with pytest.raises(ProxyError) as caught:
        await _connect_to("a.example", 80, custom_l4=Scripted(outcome))
    assert caught.value.etype == etype
    assert caught.value.esource is ErrorSource.UPSTREAM
    assert outcome in (caught.value, caught.value.cause)
    assert not caplog.records


@pytest.mark.parametrize("outcome", [KeyError("x"), "no stream"])
async def test_a_connectors_mistake_is_told_and_costs_the_attempt(
    caplog: pytest.LogCaptureFixture, outcome: object
) -> None:
    with pytest.raises(ProxyError) as caught:
        await _connect_to("a.example", 80, custom_l4=Scripted(outcome))
    assert caught.value.etype == ErrorType.ConnectError
    (record,) = caplog.records
    assert record.getMessage() == "custom_l4 connecting to a.example:80 failed"
    assert record.exc_info is not None


async def test_a_connector_has_the_connect_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(ProxyError) as caught:
        await _connect_to("a.example", 80, custom_l4=Scripted("never"))
    assert caught.value.etype == ErrorType.ConnectTimedout
    assert trio.current_time() == pytest.approx(5)


# -- descriptors run out ---------------------------------------------------------------------------


def _is_503(error: ProxyError, code: int) -> None:
    assert error.etype == ErrorType.HTTPStatus(503)
    assert error.esource is ErrorSource.UPSTREAM
    assert error.will_retry() is False
    inner = error.cause
    assert isinstance(inner, ProxyError)
    assert inner.etype == ErrorType.ConnectError
    assert inner.esource is ErrorSource.INTERNAL
    assert isinstance(inner.cause, OSError)
    assert inner.cause.errno == code


@linux
async def test_r_06_without_a_descriptor_left_connecting_is_a_503(origin: socket.socket) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    # The lowest free number is the limit: what is open stays open, and nothing can be added.
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        with pytest.raises(ProxyError) as caught:
            await _connect_to("127.0.0.1", origin.getsockname()[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    _is_503(caught.value, errno.EMFILE)
    assert "Too many open files" in str(caught.value)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_r_06_one_lack_among_several_causes_is_the_one_that_counts(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    codes = [errno.ECONNREFUSED, code, errno.ECONNREFUSED]

    async def open_towards(*_args: object) -> tuple[socket.socket, int]:
        await trio.lowlevel.checkpoint()
        number = codes.pop(0)
        raise OSError(number, os.strerror(number))

    def getaddrinfo(*_args: object, **_kwargs: object) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", (f"192.0.2.{last}", 80)) for last in range(3)]

    monkeypatch.setattr(_connect, "open_towards", open_towards)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ProxyError) as caught:
        await _connect_to("three.example", 80)
    _is_503(caught.value, code)


# -- what the kernel tells -------------------------------------------------------------------------


@linux
async def test_tcp_info_is_read_when_it_is_asked_for(origin: socket.socket) -> None:
    stream, info = await _connect_to("127.0.0.1", origin.getsockname()[1])
    accepted, _ = origin.accept()
    assert info.read_tcp_info is not None
    told = info.read_tcp_info()
    assert told is not None
    assert told.state == 1
    assert 0 < told.rtt < 5
    assert told.snd_mss > 500
    assert told.snd_cwnd > 0
    assert (told.unacked, told.lost, told.retransmits) == (0, 0, 0)
    accepted.shutdown(socket.SHUT_WR)
    assert await stream.receive_some() == b""
    told = info.read_tcp_info()
    assert told is not None
    assert told.state == 8  # CLOSE_WAIT
    stream.close_now()
    assert info.read_tcp_info() is None
    accepted.close()


# The numbers of struct tcp_info behind its eight bytes, as linux/tcp.h has them.
KERNEL = re.findall(
    r"\w+",
    """rto ato snd_mss rcv_mss unacked sacked lost retrans fackets
    last_data_sent last_ack_sent last_data_recv last_ack_recv
    pmtu rcv_ssthresh rtt rttvar snd_ssthresh snd_cwnd advmss reordering
    rcv_rtt rcv_space total_retrans""",
)


@linux
def test_each_number_of_tcp_info_is_the_one_that_its_name_says(origin: socket.socket) -> None:
    raw = bytes([7, *range(100, 107)])
    raw += b"".join(number.to_bytes(4, sys.byteorder) for number in range(len(KERNEL)))

    class Kernel:
        def getsockopt(self, _level: int, _option: int, size: int) -> bytes:
            return raw[:size]

    stream = SocketStream(origin)
    stream._sock = Kernel()  # type: ignore[assignment]  # all that is asked of it here
    told = stream.tcp_info()
    assert told is not None
    assert told.state == 7
    assert told.rtt == pytest.approx(KERNEL.index("rtt") / 1e6)
    assert told.rtt_var == pytest.approx(KERNEL.index("rttvar") / 1e6)
    assert told.retransmits == KERNEL.index("total_retrans")
    for name in ("snd_mss", "snd_cwnd", "unacked", "lost"):
        assert getattr(told, name) == KERNEL.index(name)


async def test_a_unix_socket_has_no_tcp_info(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        stream, info = await _connect_to(None, None, path=path)
        assert info.read_tcp_info is not None
        assert info.read_tcp_info() is None
        stream.close_now()


async def test_the_times_of_the_look_up_and_of_connecting_are_told(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(what: Callable[..., Any], seconds: float, *args: Any) -> Any:
        await trio.sleep(seconds)
        return await what(*args)

    resolve, first = _connect._resolve, _connect._first
    monkeypatch.setattr(_connect, "_resolve", lambda *args: slow(resolve, 2, *args))
    monkeypatch.setattr(_connect, "_first", lambda *args: slow(first, 3, *args))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        stream, info = await _connect_to("127.0.0.1", sock.getsockname()[1])
    # The clock jumps while the kernel connects, by as much as the stagger at most.
    assert info.lookup_time == pytest.approx(2)
    assert info.connect_time == pytest.approx(3, abs=0.3)
    assert info.established == pytest.approx(5, abs=0.3)
    stream.close_now()
