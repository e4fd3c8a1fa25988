"""Streams over real sockets: TCP, TLS that ends here, there or elsewhere, and unix sockets."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme

import trioproxy
from trioproxy import Digest, ErrorType, Listener, PeerOptions, ProxyError, TlsSettings
from trioproxy.stream import ProxyStream, StreamPeer, StreamSession

pytestmark = pytest.mark.socket

AUTHORITY = trustme.CA()
ONE = AUTHORITY.issue_cert("one.test")
TWO = AUTHORITY.issue_cert("two.test")

Handler = Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]


@attrs.define(eq=False)
class Forward(ProxyStream[None]):
    """Leads to one peer, and keeps how streams have ended."""

    peer: StreamPeer
    ended: list[tuple[StreamSession, ProxyError | None]] = attrs.field(factory=list)
    connected: int = 0
    _news: trio.Event = attrs.field(factory=trio.Event)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: StreamSession, ctx: None) -> StreamPeer:
        return self.peer

    async def connected_to_upstream(
        self, session: StreamSession, peer: StreamPeer, digest: Digest, ctx: None
    ) -> None:
        self.connected += 1
        self._news.set()

    async def has_connected(self, times: int) -> None:
        """Wait until so many connections to upstreams were made."""
        while self.connected < times:
            await self._news.wait()
            self._news = trio.Event()

    async def logging(self, session: StreamSession, e: ProxyError | None, ctx: None) -> None:
        self.ended.append((session, e))


@attrs.define(eq=False)
class BySni(Forward):
    """Leads to a peer by the server name that a TLS client asks for."""

    names: dict[str, StreamPeer] = attrs.field(factory=dict)

    async def upstream_peer(self, session: StreamSession, ctx: None) -> StreamPeer:
        hello = await session.client_hello()
        if hello is None or hello.server_name not in self.names:
            raise ProxyError.status(403, "nobody of that name is here")
        return self.names[hello.server_name]


@asynccontextmanager
async def serving(
    proxy: ProxyStream[Any], *binds: str | Listener, **conf: Any
) -> AsyncIterator[trioproxy.Running]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(
                lambda task_status: trioproxy.serve(
                    proxy,
                    *(binds or ("127.0.0.1:0",)),
                    conf=trioproxy.ServerConf(**conf),
                    task_status=task_status,
                )
            )
            yield running
            statistics = running.statistics()
            nursery.cancel_scope.cancel()
    assert statistics.sessions == statistics.connections


@asynccontextmanager
async def an_upstream(
    handler: Handler, context: ssl.SSLContext | None = None, path: str | None = None
) -> AsyncIterator[str]:
    """Serve connections by a function; gives the address as a stream peer has it."""

    async def connection(plain: trio.SocketStream) -> None:
        stream: Any = plain
        if context is not None:
            stream = trio.SSLStream(plain, context, server_side=True, https_compatible=False)
        try:
            await handler(stream)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(plain)

    async with trio.open_nursery() as nursery:
        if path is None:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            where = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        else:
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(path)
            sock.listen(5)
            listeners = [trio.SocketListener(sock)]
            where = path
        nursery.start_soon(trio.serve_listeners, connection, listeners)
        yield where
        nursery.cancel_scope.cancel()


def server_context(certificate: trustme.LeafCert, *alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def client_context(*alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def connect(url: str) -> trio.SocketStream:
    """Connect to a listener by its URL, whatever is spoken there."""
    if url.startswith(("unix:", "tls+unix:")):
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.connect(url.partition("unix:")[2])
        return trio.SocketStream(sock)
    host, _, port = url.partition("://")[2].rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    while piece := await stream.receive_some():
        data += piece
    return data


async def shout(stream: trio.abc.HalfCloseableStream) -> None:
    """Read all, answer with it in upper case, end."""
    data = await receive_all(stream)
    await stream.send_all(data.upper())
    await stream.send_eof()


async def greet(stream: Any) -> None:
    """Answer the first bytes, with who is here."""
    data = await stream.receive_some()
    await stream.send_all(b"welcome, " + bytes(data))
    await receive_all(stream)


# -- TCP and unix sockets --------------------------------------------------------------------------


@pytest.mark.parametrize("front", ["tcp", "unix"])
@pytest.mark.parametrize("back", ["tcp", "unix"])
async def test_bytes_pass_with_their_ends_over_every_pair_of_sockets(
    front: str, back: str, tmp_path: Path
) -> None:
    data = os.urandom(300_000)

    async def echo(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(await receive_all(stream))
        await stream.send_eof()
        await receive_all(stream)

    path = str(tmp_path / "back.sock") if back == "unix" else None
    bind = f"unix:{tmp_path / 'front.sock'}" if front == "unix" else "127.0.0.1:0"
    async with an_upstream(echo, path=path) as where:
        proxy = Forward(StreamPeer.parse(f"{'unix:' if path else 'tcp://'}{where}"))
        async with serving(proxy, bind) as running:
            assert running.urls[0].startswith("unix:" if front == "unix" else "tcp://127.0.0.1:")
            stream = await connect(running.urls[0])
            await stream.send_all(data)
            await stream.send_eof()
            assert await receive_all(stream) == data
            await stream.aclose()
            await running.drain()
    ((session, error),) = proxy.ended
    assert error is None
    assert session.bytes_from_client() == session.bytes_to_client() == len(data)


async def test_an_upstream_that_resets_resets_the_client() -> None:
    async def reset(stream: Any) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with an_upstream(reset) as where:
        proxy = Forward(StreamPeer.parse(f"tcp://{where}"))
        async with serving(proxy) as running:
            stream = await connect(running.urls[0])
            await stream.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.ECONNRESET
            await stream.aclose()


async def test_a_client_that_resets_resets_the_upstream() -> None:
    broken = trio.Event()

    async def wait(stream: Any) -> None:
        try:
            await receive_all(stream)
        except trio.BrokenResourceError:
            broken.set()

    async with an_upstream(wait) as where:
        proxy = Forward(StreamPeer.parse(f"tcp://{where}"))
        async with serving(proxy) as running:
            stream = await connect(running.urls[0])
            await stream.send_all(b"x")
            await proxy.has_connected(1)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
            await broken.wait()


async def test_nobody_at_the_address_is_a_reset() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = Forward(StreamPeer("127.0.0.1", taken.getsockname()[1]))
        async with serving(proxy) as running:
            stream = await connect(running.urls[0])
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await stream.aclose()
            assert running.statistics().errors == (("Upstream ConnectRefused", 1),)


# -- TLS -------------------------------------------------------------------------------------------


async def test_tls_passes_through_by_server_name_and_ends_at_the_upstream() -> None:
    async def answer(stream: Any) -> None:
        data = await stream.receive_some()
        subject = stream.context is first
        await stream.send_all((b"one: " if subject else b"two: ") + bytes(data))
        await stream.aclose()

    first, second = server_context(ONE, "h2"), server_context(TWO, "imap")
    async with an_upstream(answer, first) as one, an_upstream(answer, second) as two:
        names = {
            "one.test": StreamPeer.parse(f"tcp://{one}"),
            "two.test": StreamPeer.parse(f"tcp://{two}"),
        }
        proxy = BySni(names["one.test"], names=names)
        async with serving(proxy) as running:
            for name, alpn in (("one.test", "h2"), ("two.test", "imap"), ("one.test", "h2")):
                plain = await connect(running.urls[0])
                # The certificate is verified by the client itself: only the upstream has the key.
                stream = trio.SSLStream(plain, client_context(alpn), server_hostname=name)
                await stream.send_all(b"hello")
                assert await receive_all(stream) == name[:3].encode() + b": hello"
                assert stream.selected_alpn_protocol() == alpn
                await stream.aclose()
            plain = await connect(running.urls[0])
            stream = trio.SSLStream(plain, client_context(), server_hostname="three.test")
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()
            await plain.aclose()
    refused = [error for _, error in proxy.ended if error is not None]
    assert [error.etype for error in refused] == [ErrorType.HTTPStatus(403)]


async def test_a_client_hello_split_at_every_byte_is_routed() -> None:
    context = client_context("h2")
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="two.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()

    async def take(stream: Any) -> None:
        got = b""
        while len(got) < len(hello):
            got += await stream.receive_some()
        await stream.send_all(b"whole" if got == hello else b"other")

    async with an_upstream(take) as where:
        peer = StreamPeer.parse(f"tcp://{where}")
        async with serving(BySni(peer, names={"two.test": peer})) as running:

            async def split(at: int) -> None:
                stream = await connect(running.urls[0])
                await stream.send_all(hello[:at])
                await trio.testing.wait_all_tasks_blocked(0.001)
                await stream.send_all(hello[at:])
                assert await stream.receive_some() == b"whole", at
                await stream.aclose()

            for start in range(1, len(hello), 50):
                async with trio.open_nursery() as nursery:
                    for at in range(start, min(start + 50, len(hello))):
                        nursery.start_soon(split, at)


@pytest.mark.parametrize("unix", [False, True])
async def test_tls_ends_here_and_opens_anew_towards_the_upstream(
    unix: bool, tmp_path: Path
) -> None:
    path = str(tmp_path / "back.sock") if unix else None
    async with an_upstream(greet, server_context(ONE, "imap"), path) as where:
        url = f"tls+unix:{where}" if unix else f"tls://{where}"
        options = PeerOptions(ca=AUTHORITY)
        peer = StreamPeer.parse(url, sni="one.test", alpn=("imap",), options=options)
        proxy = Forward(peer)
        async with serving(proxy, tls=TlsSettings(TWO)) as running:
            assert running.urls[0].startswith("tls://127.0.0.1:")
            plain = await connect(running.urls[0])
            stream = trio.SSLStream(plain, client_context("h2"), server_hostname="two.test")
            await stream.send_all(b"me")
            assert await stream.receive_some() == b"welcome, me"
            # No protocol is agreed on that is not known to be spoken behind.
            assert stream.selected_alpn_protocol() is None
            await stream.aclose()
            await running.drain()
    ((session, _),) = proxy.ended
    tls = session.digest().tls
    assert tls is not None
    assert tls.sni == "two.test"


async def test_the_half_close_of_tls_is_passed_on_both_ways() -> None:
    """One side half-closes by close_notify; that is a FIN for a side without TLS."""
    async with an_upstream(shout) as where:
        proxy = Forward(StreamPeer.parse(f"tcp://{where}"))
        async with serving(proxy, tls=TlsSettings(TWO)) as running:
            plain = await connect(running.urls[0])
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = client_context().wrap_bio(incoming, outgoing, server_hostname="two.test")
            handshaken, answer, closed = False, b"", False
            while not closed:
                try:
                    if not handshaken:
                        client.do_handshake()
                        handshaken = True
                        client.write(b"quiet")
                        with pytest.raises(ssl.SSLWantReadError):
                            client.unwrap()
                    answer += (piece := client.read(1000))
                    closed = not piece
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        await plain.send_all(outgoing.read())
                    data = await plain.receive_some()
                    incoming.write(data) if data else incoming.write_eof()
                except ssl.SSLZeroReturnError:
                    closed = True
            assert answer == b"QUIET"
            await plain.aclose()
            await running.drain()
    assert [error for _, error in proxy.ended] == [None]


async def test_tls_that_is_cut_without_close_notify_is_a_cut_upstream() -> None:
    """A cut must not look like an end (row TLS-06)."""
    broken = trio.Event()

    async def wait(stream: Any) -> None:
        try:
            await receive_all(stream)
        except trio.BrokenResourceError:
            broken.set()

    async with an_upstream(wait) as where:
        proxy = Forward(StreamPeer.parse(f"tcp://{where}"))
        async with serving(proxy, tls=TlsSettings(TWO)) as running:
            plain = await connect(running.urls[0])
            stream = trio.SSLStream(plain, client_context(), server_hostname="two.test")
            await stream.send_all(b"half of")
            await proxy.has_connected(1)
            await plain.send_eof()
            await broken.wait()
            await plain.aclose()
            await running.drain()
    ((_, error),) = proxy.ended
    assert error is not None
    assert "without TLS's close_notify" in str(error)


async def test_a_peer_that_is_not_who_it_should_be_gets_nothing() -> None:
    async with an_upstream(greet, server_context(TWO)) as where:
        peer = StreamPeer.parse(f"tls://{where}", sni="one.test", options=PeerOptions(ca=AUTHORITY))
        async with serving(Forward(peer)) as running:
            stream = await connect(running.urls[0])
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await stream.aclose()
            assert running.statistics().errors == (("Upstream InvalidCert", 1),)


async def test_a_handshake_that_fails_is_counted_and_starts_no_session() -> None:
    proxy = Forward(StreamPeer("127.0.0.1", 1))
    async with serving(proxy, tls=TlsSettings(TWO)) as running:
        stream = await connect(running.urls[0])
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            assert await receive_all(stream) == b""
        await stream.aclose()
        assert running.statistics().limits_hit == (("tls_TLSHandshakeFailure", 1),)
    assert proxy.ended == []


async def test_a_stop_ends_a_handshake_at_once() -> None:
    async with serving(Forward(StreamPeer("127.0.0.1", 1)), tls=TlsSettings(TWO)) as running:
        stream = await connect(running.urls[0])
        while not running.statistics().connections:
            await trio.lowlevel.checkpoint()  # nobody is told of a connection that is silent
        await running.drain(1000)
        assert await stream.receive_some() == b""
        await stream.aclose()


async def test_certificates_are_read_again() -> None:
    async with serving(Forward(StreamPeer("127.0.0.1", 1)), tls=TlsSettings(TWO)) as running:
        assert running.reload()


# -- listeners -------------------------------------------------------------------------------------


async def test_each_listener_has_the_tls_that_it_says(tmp_path: Path) -> None:
    path = tmp_path / "front.sock"
    async with an_upstream(greet) as where:
        proxy = Forward(StreamPeer.parse(f"tcp://{where}"))
        binds = ("127.0.0.1:0", Listener(f"unix:{path}", tls=TlsSettings(TWO)))
        async with serving(proxy, *binds) as running:
            assert running.urls[0].startswith("tcp://")
            assert running.urls[1] == f"tls+unix:{path}"
            plain = await connect(running.urls[1])
            stream = trio.SSLStream(plain, client_context(), server_hostname="two.test")
            await stream.send_all(b"you")
            assert await stream.receive_some() == b"welcome, you"
            await stream.aclose()
        assert not path.exists()


@pytest.mark.parametrize(("field", "value"), [("http", "1"), ("h2c", True), ("h2c", False)])
async def test_a_listener_that_speaks_of_http_is_refused(field: str, value: Any) -> None:
    listener = Listener("127.0.0.1:0", **{field: value})
    with pytest.raises(ValueError, match=rf"^{field}={value!r} is for a ProxyHttp, and 127"):
        await trioproxy.serve(Forward(StreamPeer("127.0.0.1", 1)), listener)


async def test_a_connector_of_http_alone_is_refused() -> None:
    from trioproxy.upstream._connector import Connector

    class OnlyHttp(Connector):
        async def connect(self, peer: Any) -> Any:
            raise AssertionError

    with pytest.raises(BaseExceptionGroup) as caught:
        await trioproxy.serve(
            Forward(StreamPeer("127.0.0.1", 1)), "127.0.0.1:0", connector=OnlyHttp()
        )
    assert caught.group_contains(TypeError, match=r"it has no method open\(\)")


# -- what is left ----------------------------------------------------------------------------------


async def test_s_06_nothing_is_left_when_serve_has_returned() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    gc.collect()
    before = descriptors()

    async def hold(stream: Any) -> None:
        await receive_all(stream)

    async with an_upstream(hold) as where:
        proxy = Forward(StreamPeer.parse(f"tcp://{where}"))
        async with serving(proxy) as running:
            streams = [await connect(running.urls[0]) for _ in range(10)]
            for stream in streams:
                await stream.send_all(b"x")
            await proxy.has_connected(10)
        for stream in streams:
            await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    assert descriptors() == before
