"""Rows on what a whole server holds: connections, sessions, memory; and a stop under load."""

from __future__ import annotations

import signal

import attrs
import pytest
import trio
import trio.testing

import trioproxy
from tests._support.recording import Wire, open_gateway
from tests.server._network import Program, an_origin, ask, connect, get, receive_all, serving
from tests.server.test_serve import QUICK, SLOW, Local
from trioproxy import HttpPeer, Session
from trioproxy.server._descriptors import MOST, default_max_connections

pytestmark = pytest.mark.socket

MIB = 1 << 20


@attrs.define(eq=False)
class Through(trioproxy.ProxyHttp[None]):
    """Forwards to one origin, and keeps its sessions."""

    origin: str
    sessions: list[Session] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        self.sessions.append(session)
        return HttpPeer.parse(self.origin)


async def test_r_04_accepting_pauses_at_the_limit_and_the_pause_is_counted() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy, max_connections=1) as running:
            (url,) = running.urls
            async with await connect(url) as first:
                await first.send_all(SLOW)
                await proxy.reached.wait()
                async with await connect(url) as second:
                    await second.send_all(get())
                    while not running.statistics().connection_limit_hits:
                        await trio.testing.wait_all_tasks_blocked()
                    assert running.statistics().connections == 1
                    proxy.go.set()
                    await first.send_eof()
                    assert b"hello" in await receive_all(second)


def test_r_04_the_default_leaves_descriptors_for_the_other_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resource = pytest.importorskip("resource")
    for soft, most in ((1024, 409), (1 << 20, MOST), (resource.RLIM_INFINITY, MOST), (1, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _what, soft=soft: (soft, soft))
        assert default_max_connections() == most


async def test_r_05_sessions_beyond_the_limit_get_503_and_are_counted() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy, max_sessions=1) as running:
            (url,) = running.urls
            async with await connect(url) as first:
                await first.send_all(SLOW)
                await proxy.reached.wait()
                reply = await ask(url, QUICK)
                assert reply.status == 503
                assert reply.fields["retry-after"] == "1"
                assert reply.fields["connection"] == "close"
                assert running.statistics().sessions_shed == 1
                proxy.go.set()
                await first.send_eof()
                assert b"200 OK" in await receive_all(first)
            assert (await ask(url)).status == 200
    assert proxy.logged.count("") == 2  # the one that was shed reached no callback


@pytest.mark.parametrize("kind", ["download", "upload", "tunnel"])
async def test_r_07_a_session_whose_reader_stopped_holds_little(
    kind: str, autojump_clock: object
) -> None:
    """A lockstep stream holds nothing: what was sent and not received is what the proxy holds."""
    size, sent, received = 256 * MIB, 0, 0

    async def flood(wire: Wire) -> None:
        nonlocal sent
        while sent < size:
            await wire.send(bytes(65536))
            sent += 65536

    async def origin(wire: Wire) -> None:
        await wire.head()
        if kind == "tunnel":
            await wire.send(b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        elif kind == "download":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        if kind != "upload":
            await flood(wire)
        await trio.sleep_forever()

    # A trait without filters: what `Recorder` writes down would count as ours.
    async with open_gateway(Through("http://origin.test"), origin, lockstep=True) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            if kind == "upload":
                await client.send(
                    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
                )
                nursery.start_soon(flood, client)
            else:
                fields = b"Connection: upgrade\r\nUpgrade: x\r\n" if kind == "tunnel" else b""
                await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
                assert (await client.head()).status in (101, 200)
                received = len(client.buffer)
            await trio.testing.wait_all_tasks_blocked()
            # One more block may be on its way into the proxy: it is not in `sent` yet.
            assert 0 < sent + 65536 - received <= 256 << 10
            nursery.cancel_scope.cancel()
        client.close()
        await gateway.ended()
        gateway.nursery.cancel_scope.cancel()


async def knock(url: str) -> None:
    """Connect until nobody listens any more."""
    while True:
        await (await connect(url)).aclose()


async def test_s_07_downloads_in_flight_end_whole_when_the_program_is_told_to_stop() -> None:
    count, size = 100, 300_000
    block = bytes(size)
    started = 0
    all_started, go = trio.Event(), trio.Event()

    async def origin(stream: trio.SocketStream) -> None:
        nonlocal started
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nx" % (size + 1))
        started += 1
        if started == count:
            all_started.set()
        await go.wait()
        await stream.send_all(block)

    whole = 0

    async def download(url: str) -> None:
        nonlocal whole
        async with await connect(url) as stream:
            await stream.send_all(QUICK)
            received = await receive_all(stream)
            whole += len(received.partition(b"\r\n\r\n")[2]) == size + 1

    with trio.fail_after(30):
        async with (
            an_origin(origin) as url,
            Program.start("trioproxy", "reverse", url, "--bind", "127.0.0.1:0") as program,
        ):
            await program.until("listening on .*\n")
            bind = program.err.splitlines()[0].removeprefix("listening on ")
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(download, bind)
                await all_started.wait()
                program.process.send_signal(signal.SIGTERM)
                await program.until("stopping")
                with pytest.raises(OSError, match="all attempts to connect"):
                    await knock(bind)
                go.set()
            assert whole == count
            assert await program.ends() == 0
