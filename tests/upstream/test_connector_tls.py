"""TLS of the connector, with servers in memory: facts, timeouts, failures, tunnels, idle bytes."""

from __future__ import annotations

import contextlib
import math
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme

from tests._support.tls_wire import TlsWire, TruncatedError, server_context
from trioproxy import (
    Digest,
    ErrorSource,
    ErrorType,
    HttpPeer,
    PeerOptions,
    ProxyError,
    RequestHeader,
    ServerConf,
)
from trioproxy._info import ConnectionInfo
from trioproxy._messages import END
from trioproxy.peers import TlsInfo
from trioproxy.streams._abc import UpstreamConnection
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.upstream._connector import SocketConnector, speaks_http2

CA = trustme.CA()
CONTEXT = server_context(CA.issue_cert("site.test"), alpn=["http/1.1"])

Script = Callable[[Any], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@attrs.define(eq=False)
class Memory:
    """Connects to a scripted server of this process."""

    script: Script
    nursery: trio.Nursery
    ours: list[Any] = attrs.field(factory=list)

    async def connect(self, address: tuple[str, int] | str) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = trio.testing.memory_stream_pair()
        self.ours.append(ours)
        self.nursery.start_soon(self.script, theirs)
        return ours


async def silence(_stream: Any) -> None:
    await trio.sleep_forever()


def says(data: bytes) -> Script:
    """Return a server that says something, whatever it is told, and closes."""

    async def script(stream: Any) -> None:
        await stream.receive_some()
        await stream.send_all(data)
        await stream.aclose()

    return script


def shakes_hands(context: ssl.SSLContext = CONTEXT, delay: float = 0) -> Script:
    async def script(stream: Any) -> None:
        await trio.sleep(delay)
        wire = TlsWire.wrap(stream, context, server_side=True)
        try:
            await wire.handshake()
        except (ssl.SSLError, TruncatedError, trio.BrokenResourceError):
            wire.truncate()

    return script


def site(memory: Memory, host: str = "site.test", **options: Any) -> HttpPeer:
    options.setdefault("ca", CA)
    return HttpPeer(host, 443, scheme="https", options=PeerOptions(custom_l4=memory, **options))


async def attempt(
    script: Script, conf: ServerConf | None = None, **options: Any
) -> tuple[UpstreamConnection | ProxyError, Memory]:
    """Connect to a scripted server; return the connection or the error."""
    outcome: UpstreamConnection | ProxyError
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            memory = Memory(script, nursery)
            try:
                outcome = await SocketConnector(conf or ServerConf()).connect(
                    site(memory, **options)
                )
            except ProxyError as exc:
                outcome = exc
            nursery.cancel_scope.cancel()
    return outcome, memory


async def failed(outcome: object, memory: Memory, etype: ErrorType) -> str:
    """Return what an error of the origin says; its connection must be closed."""
    assert isinstance(outcome, ProxyError)
    assert outcome.etype == etype
    assert outcome.esource is ErrorSource.UPSTREAM
    assert outcome.will_retry() is False
    assert len(memory.ours) == 1
    await closed(memory)
    return str(outcome)


async def closed(memory: Memory) -> None:
    """Hold a connection to having been closed on our side."""
    with trio.fail_after(1), pytest.raises(trio.ClosedResourceError):
        await memory.ours[0].receive_some()


async def test_the_digest_tells_what_was_agreed_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    connection, memory = await attempt(shakes_hands(delay=0.5))
    assert isinstance(connection, H1ClientConnection)
    digest = Digest.of(connection.info)
    tls = digest.tls
    assert tls is not None
    assert (tls.version, tls.sni, tls.alpn) == ("TLSv1.3", "site.test", "http/1.1")
    assert tls.handshake_time == pytest.approx(0.5)
    assert digest.established == pytest.approx(0.5)
    assert connection.info.secure
    assert len(memory.ours) == 1


@pytest.mark.parametrize(
    ("version", "alpn", "expected"),
    [
        ((1, 1), None, False),
        ((2, 1), None, False),  # without TLS nothing is agreed on
        ((2, 2), None, True),  # prior knowledge
        ((1, 1), "http/1.1", False),
        ((2, 1), "http/1.1", False),
        ((2, 1), "", False),
        ((2, 1), "h2", True),
        ((2, 2), "h2", True),
    ],
)
async def test_the_version_is_what_was_agreed_on_or_known_before(
    version: tuple[int, int], alpn: str | None, expected: bool
) -> None:
    options = PeerOptions(http_version=version)
    if alpn is None:
        assert (
            speaks_http2(HttpPeer("a", 80, options=options), ConnectionInfo(None, "a")) is expected
        )
        return
    context = server_context(CA.issue_cert("site.test"), alpn=[alpn] if alpn else [])
    seen: list[TlsInfo] = []
    outcome, memory = await attempt(
        shakes_hands(context),
        http_version=version,
        upstream_tls_handshake_complete_hook=seen.append,
    )
    info = ConnectionInfo(None, "a", tls=seen[0])
    assert speaks_http2(site(memory, http_version=version), info) is expected
    if not expected:
        assert isinstance(outcome, H1ClientConnection)


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_the_peer", "of_the_server", "seconds"),
    [(None, 10.0, 10), (None, 4.0, 4), (3, 4.0, 3), (math.inf, 4.0, 999)],
)
async def test_t_04_a_handshake_that_stalls_times_out(
    autojump_clock: trio.testing.MockClock,
    of_the_peer: float | None,
    of_the_server: float,
    seconds: float,
) -> None:
    outcome, memory = await attempt(
        silence,
        ServerConf(upstream_tls_timeout=of_the_server),
        tls_handshake_timeout=of_the_peer,
        total_connection_timeout=999,
    )
    assert trio.current_time() == pytest.approx(seconds)
    if of_the_peer == math.inf:
        told = await failed(outcome, memory, ErrorType.ConnectTimedout)
        assert "connecting to https://site.test: no answer in 999 s" in told
    else:
        told = await failed(outcome, memory, ErrorType.TLSHandshakeTimedout)
        assert "TLS with https://site.test" in told
        assert f"within {seconds} s" in told


async def test_t_04_the_total_timeout_is_for_the_handshake_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outcome, memory = await attempt(silence, total_connection_timeout=2)
    told = await failed(outcome, memory, ErrorType.ConnectTimedout)
    assert "no answer in 2 s" in told
    assert trio.current_time() == pytest.approx(2)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 400 no\r\n\r\n", b"\x16\x03\x01\x00\x00", b"x"])
async def test_f_03_what_speaks_no_tls_is_a_failure(data: bytes) -> None:
    outcome, memory = await attempt(says(data))
    told = await failed(outcome, memory, ErrorType.TLSHandshakeFailure)
    assert "TLS with https://site.test" in told
    assert len(memory.ours) == 1


@pytest.mark.parametrize(
    ("certificate", "host", "why"),
    [
        (trustme.CA().issue_cert("site.test"), "site.test", "unable to get local issuer"),
        (CA.issue_cert("site.test"), "other.test", "Hostname mismatch"),
        (CA.issue_cert("site.test"), "127.0.0.1", "IP address mismatch"),
    ],
)
async def test_f_03_who_cannot_be_verified_is_refused_once_with_the_reason(
    certificate: trustme.LeafCert, host: str, why: str
) -> None:
    outcome, memory = await attempt(shakes_hands(server_context(certificate)), host=host)
    told = await failed(outcome, memory, ErrorType.InvalidCert)
    assert f"TLS with https://{host}" in told
    assert why in told
    assert len(memory.ours) == 1


async def test_who_agrees_to_no_http2_where_nothing_else_will_do_is_refused() -> None:
    outcome, memory = await attempt(
        shakes_hands(server_context(CA.issue_cert("site.test"))), http_version=(2, 2)
    )
    told = await failed(outcome, memory, ErrorType.H2Downgrade)
    assert "it agreed to no HTTP/2 by ALPN" in told


async def test_an_option_that_cannot_be_followed_is_our_error_and_closes_the_connection() -> None:
    outcome, memory = await attempt(silence, ca="/no/such/file")
    assert isinstance(outcome, ProxyError)
    assert outcome.etype == ErrorType.InternalError
    assert outcome.esource is ErrorSource.INTERNAL
    await closed(memory)


async def test_a_cancelled_handshake_closes_its_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        memory = Memory(silence, nursery)
        with trio.move_on_after(1) as scope:
            await SocketConnector(ServerConf()).connect(site(memory))
        assert scope.cancelled_caught
        await closed(memory)
        nursery.cancel_scope.cancel()


# -- who is told -----------------------------------------------------------------------------------


async def test_a_hook_sees_what_was_agreed_on() -> None:
    seen: list[TlsInfo] = []
    connection, _ = await attempt(shakes_hands(), upstream_tls_handshake_complete_hook=seen.append)
    assert isinstance(connection, H1ClientConnection)
    assert seen == [connection.info.tls]
    assert len(seen[0].peer_sha256 or "") == 64


def pins(_tls: TlsInfo) -> None:
    raise ProxyError.explain(ErrorType.InvalidCert, "not the key that we know")


def fails(_tls: TlsInfo) -> None:
    raise RuntimeError("a hook's mistake")


async def test_a_hook_may_refuse_a_connection() -> None:
    outcome, memory = await attempt(shakes_hands(), upstream_tls_handshake_complete_hook=pins)
    told = await failed(outcome, memory, ErrorType.InvalidCert)
    assert "not the key that we know" in told


async def test_a_hook_that_fails_is_our_error_and_told(caplog: pytest.LogCaptureFixture) -> None:
    outcome, memory = await attempt(shakes_hands(), upstream_tls_handshake_complete_hook=fails)
    assert isinstance(outcome, ProxyError)
    assert (outcome.etype, outcome.esource) == (ErrorType.InternalError, ErrorSource.INTERNAL)
    await closed(memory)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "upstream_tls_handshake_complete_hook of https://site.test failed" in record.message


@attrs.define(eq=False)
class Trace:
    told: list[Digest] = attrs.field(factory=list)

    def on_connected(self, digest: Digest) -> None:
        self.told.append(digest)

    def on_disconnected(self, digest: Digest) -> None:
        self.told.append(digest)


async def test_a_tracer_hears_of_tls_and_of_nothing_that_failed() -> None:
    trace = Trace()
    connection, _ = await attempt(shakes_hands(), tracer=trace)
    assert isinstance(connection, H1ClientConnection)
    assert [digest.tls for digest in trace.told] == [connection.info.tls]
    connection.close()
    assert len(trace.told) == 2
    await attempt(says(b"x"), tracer=trace)
    assert len(trace.told) == 2


# -- inside a tunnel -------------------------------------------------------------------------------


async def test_tls_runs_inside_the_tunnel_of_a_connect_proxy() -> None:
    asked = bytearray()

    async def script(stream: Any) -> None:
        while b"\r\n\r\n" not in asked:
            asked.extend(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 200 x\r\n\r\n")
        await shakes_hands()(stream)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            memory = Memory(script, nursery)
            peer = HttpPeer.new_proxy(
                "proxy.test:3128",
                "127.0.0.9",
                443,
                tls=True,
                sni="site.test",
                options=PeerOptions(custom_l4=memory, ca=CA),
            )
            connection = await SocketConnector(ServerConf()).connect(peer)
    assert asked.startswith(b"CONNECT 127.0.0.9:443 HTTP/1.1\r\n")
    assert connection.info.tls is not None
    assert connection.info.tls.sni == "site.test"
    assert connection.info.proxy_reply is not None
    assert connection.info.secure


async def test_a_refused_tunnel_is_not_asked_for_tls() -> None:
    heard = bytearray()

    async def script(stream: Any) -> None:
        heard.extend(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 403 x\r\n\r\n")
        while data := await stream.receive_some():
            heard.extend(data)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            memory = Memory(script, nursery)
            peer = HttpPeer.new_proxy(
                "p:1", "site.test", 443, tls=True, options=PeerOptions(custom_l4=memory, ca=CA)
            )
            with pytest.raises(ProxyError) as caught:
                await SocketConnector(ServerConf()).connect(peer)
    assert caught.value.etype == ErrorType.ConnectProxyFailure
    assert heard.endswith(b"\r\n\r\n")


# -- idle ------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Late:
    """A server that keeps its session tickets back, which OpenSSL has ready with the handshake."""

    behind: bytes
    wire: TlsWire | None = None
    ready: trio.Event = attrs.field(factory=trio.Event)
    go_on: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, stream: Any) -> None:
        wire = self.wire = TlsWire.wrap(stream, CONTEXT, server_side=True)
        while True:
            try:
                wire.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await wire.flush()
                wire.incoming.write(await stream.receive_some())
        assert wire.version == "TLSv1.3"
        assert wire.outgoing.pending
        self.ready.set()
        await self.go_on.wait()
        if self.behind:
            wire.tls.write(self.behind)
        await wire.flush()
        with contextlib.suppress(trio.BrokenResourceError):
            while await wire.receive_some():
                await wire.send_all(OK)


async def exchange(connection: UpstreamConnection) -> None:
    """Send a request and take the whole response."""
    stream = connection.start()
    await stream.send(RequestHeader("GET", "/", {"Host": "site.test"}), END)
    events: list[Any] = []
    while not events or not (events[-1] is END or getattr(events[-1], "end", False)):
        events += await stream.receive_batch()
    assert events[0].status == 200
    stream.release()


@pytest.mark.parametrize("behind", [b"", OK], ids=["tickets", "tickets and a response"])
async def test_u1_01_only_content_costs_an_idle_connection_that_is_read(behind: bytes) -> None:
    server = Late(behind)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            connection = await SocketConnector(ServerConf()).connect(site(Memory(server, nursery)))
            nursery.start_soon(connection.run)
            await server.ready.wait()
            server.go_on.set()
            await trio.testing.wait_all_tasks_blocked()
            assert connection.usable() is not bool(behind)
            assert connection.dead is connection.spoke_out_of_turn is bool(behind)
            if not behind:
                await exchange(connection)
                assert connection.usable()
            connection.close()
            nursery.cancel_scope.cancel()


@pytest.mark.socket
@pytest.mark.parametrize("behind", [b"", OK], ids=["tickets", "tickets and a response"])
async def test_u1_01_only_content_costs_an_idle_connection_that_is_taken(behind: bytes) -> None:
    server = Late(behind)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, server, [listener])
            port = listener.socket.getsockname()[1]
            options = PeerOptions(ca=CA)
            peer = HttpPeer("127.0.0.1", port, scheme="https", sni="site.test", options=options)
            connection = await SocketConnector(ServerConf()).connect(peer)
            await server.ready.wait()
            server.go_on.set()
            # Nobody reads: what is there is seen only when the connection is taken.
            assert isinstance(connection, H1ClientConnection)
            await trio.lowlevel.wait_readable(connection.transport.fileno())
            assert connection.usable() is not bool(behind)
            assert connection.spoke_out_of_turn is bool(behind)
            if not behind:
                nursery.start_soon(connection.run)
                await exchange(connection)
                assert connection.usable()
            connection.close()
            nursery.cancel_scope.cancel()
