"""Scripted CONNECT proxies in memory, total timeouts and tracers."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trioproxy import Digest, ErrorSource, ErrorType, HttpPeer, PeerOptions, ProxyError, ServerConf
from trioproxy.peers import ConnectProxyError, Proxy
from trioproxy.streams._abc import UpstreamConnection
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.transport._byte_stream import SocketStream, StreamAdapter
from trioproxy.transport._watched import WatchedStream
from trioproxy.upstream._connector import SocketConnector

Script = Callable[["Memory", trio.abc.Stream], Awaitable[None]]


@attrs.define(eq=False)
class Memory:
    """Connects to a scripted proxy of this process."""

    script: Script
    nursery: trio.Nursery
    delay: float = 0
    asked: list[object] = attrs.field(factory=list)
    ours: list[Any] = attrs.field(factory=list)
    request: bytes = b""

    async def connect(self, address: tuple[str, int] | str) -> trio.abc.Stream:
        self.asked.append(address)
        await trio.sleep(self.delay)
        ours, theirs = trio.testing.memory_stream_pair()
        self.ours.append(ours)
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.abc.Stream) -> None:
        while b"\r\n\r\n" not in self.request:
            self.request += await stream.receive_some()
        await self.script(self, stream)


def says(*pieces: bytes, end: bool = False) -> Script:
    async def script(_memory: Memory, stream: trio.abc.Stream) -> None:
        for piece in pieces:
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(piece)
        if end:
            await stream.aclose()

    return script


async def _through(
    script: Script,
    *,
    delay: float = 0,
    conf: ServerConf | None = None,
    headers: Any = (),
    host: str = "origin.example",
    **options: Any,
) -> tuple[UpstreamConnection | ProxyError, Memory]:
    """Connect through a scripted proxy; return the connection or the error."""
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            memory = Memory(script, nursery, delay)
            peer = HttpPeer.new_proxy(
                "proxy.example:3128",
                host,
                80,
                headers=headers,
                options=PeerOptions(custom_l4=memory, **options),
            )
            outcome: UpstreamConnection | ProxyError
            try:
                outcome = await SocketConnector(conf or ServerConf()).connect(peer)
            except ProxyError as exc:
                outcome = exc
            nursery.cancel_scope.cancel()
    return outcome, memory


GRANTED = b"HTTP/1.1 200 Connection established\r\nVia: p\r\n\r\n"


async def test_a_tunnel_is_asked_for_and_the_digest_has_the_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(_memory: Memory, stream: trio.abc.Stream) -> None:
        await trio.sleep(0.75)
        await stream.send_all(GRANTED)

    connection, memory = await _through(
        script,
        delay=0.25,
        headers={"Proxy-Authorization": "Basic eDp5"},
        extra_proxy_headers=[("X-Tenant", b"7")],
    )
    assert memory.asked == [("proxy.example", 3128)]
    assert memory.request == (
        b"CONNECT origin.example:80 HTTP/1.1\r\nHost: origin.example:80\r\n"
        b"Proxy-Authorization: Basic eDp5\r\nX-Tenant: 7\r\n\r\n"
    )
    assert isinstance(connection, H1ClientConnection)
    assert isinstance(connection.transport, StreamAdapter)
    digest = Digest.of(connection.info)
    assert digest.proxy_reply is not None
    assert (digest.proxy_reply.status, digest.proxy_reply.headers.get("via")) == (200, "p")
    assert digest.connect_time == pytest.approx(0.25)
    assert digest.proxy_time == pytest.approx(0.75)
    assert digest.established == pytest.approx(1)
    assert digest.peer_addr == "proxy.example:3128"
    assert digest.tcp_info() is None


async def test_an_ipv6_origin_is_bracketed() -> None:
    _, memory = await _through(says(GRANTED), host="2001:db8::1")
    assert memory.request.startswith(
        b"CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n"
    )


async def test_an_answer_in_pieces_behind_informational_ones_is_read() -> None:
    connection, _ = await _through(says(b"HTTP/1.1 102 x\r\n\r\n", GRANTED[:20], GRANTED[20:]))
    assert isinstance(connection, H1ClientConnection)


@pytest.mark.parametrize(
    ("script", "status", "why"),
    [
        (says(b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n"), 407, "it answered 407"),
        (says(b"HTTP/1.1 302 x\r\nLocation: /\r\n\r\n"), 302, "it answered 302"),
        (says(GRANTED + b"HTTP/1.1 200 OK\r\n"), 200, "bytes behind"),
        (says(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n"), 200, "Transfer-Encoding"),
        (says(b"HTTP/1.1 200 x\r\nVia", end=True), None, "it closed the connection"),
        (says(b"SSH-2.0-x\r\n\r\n"), None, "malformed"),
        (says(b"HTTP/1.1 200 " + b"x" * 2000), None, "too large"),
    ],
)
async def test_what_grants_no_tunnel_is_a_failure_whose_cause_has_the_answer(
    script: Script, status: int | None, why: str
) -> None:
    error, memory = await _through(script, conf=ServerConf(max_response_header_bytes=1000))
    assert isinstance(error, ProxyError)
    assert error.etype == ErrorType.ConnectProxyFailure
    assert error.esource is ErrorSource.UPSTREAM
    assert error.will_retry() is False
    assert error.context == "asking proxy.example:3128 for a tunnel to origin.example:80"
    cause = error.cause
    assert isinstance(cause, ConnectProxyError)
    assert why in str(cause)
    assert (cause.response.status if cause.response else None) == status
    with pytest.raises(trio.ClosedResourceError):
        await memory.ours[0].receive_some()


async def test_a_proxy_that_breaks_while_asked_is_a_failure() -> None:
    async def reset(_self: object, _max_bytes: int = 0) -> bytes:
        raise ProxyError.explain(ErrorType.ReadError, "reset by peer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StreamAdapter, "receive_some", reset)
        error, _ = await _through(says())
    assert isinstance(error, ProxyError)
    assert error.etype == ErrorType.ConnectProxyFailure
    assert isinstance(error.cause, ConnectProxyError)
    assert "reset by peer" in str(error)


async def test_the_connect_timeout_holds_for_the_negotiation_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    error, memory = await _through(says(b"HTTP/1.1 200 "), delay=3, connection_timeout=4)
    assert isinstance(error, ProxyError)
    assert error.etype == ErrorType.ConnectTimedout
    assert error.context == (
        "asking proxy.example:3128 for a tunnel to origin.example:80: no answer in 4 s"
    )
    assert trio.current_time() == pytest.approx(7)
    with pytest.raises(trio.ClosedResourceError):
        await memory.ours[0].receive_some()


@pytest.mark.parametrize(("delay", "connections"), [(2, 1), (9, 0)])
async def test_the_total_timeout_is_for_everything_together(
    autojump_clock: trio.testing.MockClock, delay: float, connections: int
) -> None:
    error, memory = await _through(
        says(), delay=delay, connection_timeout=8, total_connection_timeout=5
    )
    assert isinstance(error, ProxyError)
    assert error.etype == ErrorType.ConnectTimedout
    assert error.esource is ErrorSource.UPSTREAM
    assert error.context == (
        "connecting to origin.example via proxy.example:3128: no answer in 5 s"
    )
    assert trio.current_time() == pytest.approx(5)
    assert len(memory.ours) == connections
    for stream in memory.ours:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()


async def test_the_total_timeout_does_not_cut_what_is_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    connection, _ = await _through(says(GRANTED), delay=2, total_connection_timeout=5)
    assert isinstance(connection, H1ClientConnection)


async def test_a_cancelled_negotiation_closes_its_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        memory = Memory(says(), nursery)
        peer = HttpPeer.new_proxy(
            "proxy.example:3128", "a", 80, options=PeerOptions(custom_l4=memory)
        )
        with trio.move_on_after(1) as scope:
            await SocketConnector(ServerConf()).connect(peer)
        assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await memory.ours[0].receive_some()
        nursery.cancel_scope.cancel()


@pytest.mark.socket
@pytest.mark.parametrize("unix", [True, False])
async def test_a_proxy_over_tcp_or_a_unix_socket_leads_on(tmp_path: Path, unix: bool) -> None:
    family = socket.AF_UNIX if unix else socket.AF_INET
    with socket.socket(family) as server:
        path = str(tmp_path / "proxy")
        server.bind(path if unix else ("127.0.0.1", 0))
        server.listen()
        if unix:
            next_hop = Proxy.parse(f"http+unix:{path}")
        else:
            next_hop = Proxy.parse("http://127.0.0.1:{1}".format(*server.getsockname()))
        peer = HttpPeer.new_proxy(next_hop, "origin.example", 80)

        def serve() -> socket.socket:
            sock, _ = server.accept()
            assert sock.recv(1000).startswith(b"CONNECT origin.example:80 HTTP/1.1\r\n")
            sock.sendall(GRANTED)
            return sock

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                accepted: list[socket.socket] = []

                async def accept() -> None:
                    accepted.append(await trio.to_thread.run_sync(serve))

                nursery.start_soon(accept)
                connection = await SocketConnector(ServerConf()).connect(peer)
            assert isinstance(connection, H1ClientConnection)
            await connection.transport.send_parts([b"through"], 1)
        assert isinstance(connection.transport, SocketStream)
        assert accepted[0].recv(7) == b"through"
        assert connection.info.peer == str(next_hop)
        accepted[0].close()
        connection.close()


# -- tracers ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Trace:
    """Keeps what it was told, and fails where it should."""

    fails: bool = False
    told: list[tuple[str, Digest]] = attrs.field(factory=list)

    def on_connected(self, digest: Digest) -> None:
        self.told.append(("connected", digest))
        if self.fails:
            raise RuntimeError("a tracer's mistake")

    def on_disconnected(self, digest: Digest) -> None:
        self.told.append(("disconnected", digest))
        if self.fails:
            raise RuntimeError("a tracer's mistake")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_tracer_hears_of_a_connection_twice(
    caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    trace = Trace(fails)
    connection, _ = await _through(says(GRANTED), tracer=trace)
    assert isinstance(connection, H1ClientConnection)
    digest = Digest.of(connection.info)
    assert trace.told == [("connected", digest)]
    assert digest.proxy_reply is not None
    connection.close()
    connection.close()
    assert trace.told == [("connected", digest), ("disconnected", digest)]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["a tracer of proxy.example:3128 failed"] * (2 if fails else 0)


async def test_a_tracer_hears_nothing_of_what_was_never_connected() -> None:
    trace = Trace()
    error, _ = await _through(says(b"HTTP/1.1 407 x\r\n\r\n"), tracer=trace)
    assert isinstance(error, ProxyError)
    assert trace.told == []


@pytest.mark.socket
async def test_a_traced_socket_is_a_socket_still() -> None:
    trace = Trace()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        peer = HttpPeer(*server.getsockname(), options=PeerOptions(tracer=trace))
        with trio.fail_after(10):
            connection = await SocketConnector(ServerConf()).connect(peer)
            accepted, _ = server.accept()
            assert isinstance(connection, H1ClientConnection)
            stream = connection.transport
            assert isinstance(stream, WatchedStream)
            assert stream.fileno() > 0
            assert stream.receive_ready() is None
            await stream.send_parts([b"a", b"b"], 1)
            await stream.send_eof()
            assert (accepted.recv(9), accepted.recv(9)) == (b"ab", b"")
            accepted.sendall(b"c")
            assert await stream.receive_some(9) == b"c"
            digest = trace.told[0][1]
            assert (digest.tcp_info() is None) == (stream.tcp_info() is None)
            accepted.close()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)  # sees the end, and closes
        assert [what for what, _ in trace.told] == ["connected", "disconnected"]
        assert stream.fileno() == -1


async def test_a_bad_length_is_taken_where_the_peer_allows_it() -> None:
    for allowed in (False, True):
        connection, _ = await _through(
            says(GRANTED), allow_h1_response_invalid_content_length=allowed
        )
        assert isinstance(connection, H1ClientConnection)
        connection.reader.expect("GET")
        connection.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        assert (connection.failure is None) == allowed
        connection.close()


# -- bytes in place of HTTP ------------------------------------------------------------------------


async def test_who_is_spoken_no_http_with_may_speak_before_we_do() -> None:
    async def script(_memory: Memory, stream: trio.abc.Stream) -> None:
        await stream.send_all(GRANTED + b"220 ready")
        assert await stream.receive_some() == b"hello"
        await stream.send_all(b"250 fine")

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            memory = Memory(script, nursery)
            peer = HttpPeer.new_proxy(
                "proxy.example:3128", "origin.example", 25, options=PeerOptions(custom_l4=memory)
            )
            connector = SocketConnector(ServerConf())
            transport, info = await connector.open(peer, ())
            assert info.proxy_reply is not None
            assert transport.receive_ready(3) == b"220"
            assert await transport.receive_some(3) == b" re"
            assert await transport.receive_some() == b"ady"
            assert transport.receive_ready() is None
            await transport.send_parts([b"hello"], 1)
            assert await transport.receive_some() == b"250 fine"
            transport.close_now()


async def test_who_is_spoken_http_or_tls_with_may_not() -> None:
    for peer in (
        HttpPeer.new_proxy("proxy.example:3128", "origin.example", 80),
        HttpPeer.new_proxy("proxy.example:3128", "origin.example", 443, tls=True).raw(),
    ):
        async with trio.open_nursery() as nursery:
            memory = Memory(says(GRANTED + b"220 ready"), nursery)
            there = attrs.evolve(peer, options=PeerOptions(custom_l4=memory))
            if peer.carries_bytes:
                there = there.raw()
            with pytest.raises(ProxyError) as caught:
                await SocketConnector(ServerConf()).connect(there)
            assert caught.value.etype == ErrorType.ConnectProxyFailure
            nursery.cancel_scope.cancel()
