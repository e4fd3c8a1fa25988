from __future__ import annotations

import errno
import gc
import logging
import os
import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import trio
import trio.testing

import trioproxy
from tests.server._network import ask, connect, get, receive_all, receive_until, serving
from trioproxy import Digest, ErrorType, HttpPeer, ProxyError, ResponseHeader, Session, _counts
from trioproxy.proxy._engine import Engine
from trioproxy.server import _serve
from trioproxy.streams._abc import DownstreamStream
from trioproxy.transport._listen import ListenSocket

pytestmark = pytest.mark.socket


@attrs.define(eq=False)
class Local(trioproxy.ProxyHttp[None]):
    """Answers by itself: ``/slow`` when it is let go, everything else at once."""

    reached: trio.Event = attrs.field(factory=trio.Event)
    go: trio.Event = attrs.field(factory=trio.Event)
    cancelled: bool = False
    logged: list[str] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        if session.req_header().path == "/slow":
            self.reached.set()
            try:
                await self.go.wait()
            except trio.Cancelled:
                self.cancelled = True
                raise
        head = ResponseHeader(200, {"content-length": "5"})
        await session.write_response_header(head, end_of_stream=False)
        await session.write_response_body(b"hello", end_of_stream=True)
        return True

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise AssertionError("not reached")

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        self.logged.append("" if e is None else str(e.etype))


SLOW = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
QUICK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


# -- where it listens ------------------------------------------------------------------------------


async def test_every_bind_serves_and_urls_lists_them_with_real_ports(tmp_path: Path) -> None:
    path = tmp_path / "s"
    binds = ("127.0.0.1:0", "127.0.0.1:0", f"unix:{path}")
    with trio.fail_after(10):
        async with serving(Local(), *binds) as running:
            assert len(set(running.urls)) == 3
            assert running.urls[2] == f"http+unix:{path}"
            for url in running.urls:
                assert not url.endswith(":0")
                assert (await ask(url)).body == b"hello"
            assert repr(running) == f"<Running on {', '.join(running.urls)}>"
            assert running.statistics().connections_total == 3


async def test_a_name_with_two_addresses_gets_one_port() -> None:
    with trio.fail_after(10):
        async with serving(Local(), "localhost:0") as running:
            assert len({url.rpartition(":")[2] for url in running.urls}) == 1
            for url in running.urls:
                assert (await ask(url)).status == 200


async def test_a_socket_file_goes_with_the_server_and_a_stale_one_is_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    with trio.fail_after(10):
        async with serving(Local(), f"unix:{path}") as running:
            assert (await ask(running.urls[0])).status == 200
        assert not path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ProxyError) as caught:
        await trioproxy.serve(Local(), f"unix:{path}")
    assert caught.value.etype == ErrorType.BindError
    assert path.read_text() == "data"


async def test_a_bind_that_fails_names_address_and_reason_and_closes_the_others() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ProxyError) as caught:
            await trioproxy.serve(Local(), free, address)
    assert caught.value.etype == ErrorType.BindError
    assert caught.value.context == f"cannot bind {address}: {os.strerror(errno.EADDRINUSE)}"
    with pytest.raises(OSError, match=r"connect"):
        await connect(f"http://{free}")


async def test_a_name_that_nobody_knows_is_a_bind_error() -> None:
    with trio.fail_after(20), pytest.raises(ProxyError) as caught:
        await trioproxy.serve(Local(), "no-such-name.invalid:0")
    assert caught.value.etype == ErrorType.BindError
    assert str(caught.value.context).startswith("cannot bind no-such-name.invalid:0: ")


async def test_wrong_arguments_are_told_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="'8080' is not a bind address: host:port"):
        await trioproxy.serve(Local(), "127.0.0.1:0", "8080")
    with pytest.raises(TypeError, match="takes a ProxyHttp or a ProxyStream object, not ABCMeta"):
        await trioproxy.serve(Local, "127.0.0.1:0")  # type: ignore[arg-type]  # the point of it


# -- limits ----------------------------------------------------------------------------------------


async def test_r_03_a_body_that_is_declared_too_long_is_413_before_any_callback() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy, max_body_bytes=10) as running:
            head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n"
            reply = await ask(running.urls[0], head)
            assert (reply.status, reply.fields["connection"]) == (413, "close")
            assert running.statistics().refused == 1
            assert running.statistics().sessions_total == 0
    assert proxy.logged == []


async def test_a_connection_beyond_the_limit_waits_for_room() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy, max_connections=1) as running:
            url = running.urls[0]
            async with await connect(url) as first, await connect(url) as second:
                await first.send_all(SLOW)
                await proxy.reached.wait()
                await second.send_all(get())
                await trio.testing.wait_all_tasks_blocked()
                assert running.statistics().connections == 1
                proxy.go.set()
                assert b"hello" in await receive_until(first, b"hello")
                await first.aclose()
                assert (await receive_all(second)).endswith(b"hello")


async def test_room_for_a_connection_wakes_every_listener() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy, "127.0.0.1:0", "127.0.0.1:0", max_connections=1) as running:
            one, two = running.urls
            async with (
                await connect(one) as first,
                await connect(one) as second,
                await connect(two) as third,
            ):
                await first.send_all(SLOW)
                await proxy.reached.wait()
                await second.send_all(get())
                await third.send_all(get())
                await trio.testing.wait_all_tasks_blocked()
                proxy.go.set()
                await receive_until(first, b"hello")
                await first.aclose()
                for stream in (second, third):
                    assert b"hello" in await receive_until(stream, b"hello")
                    await stream.aclose()


async def test_r_06_accepting_backs_off_and_goes_on_when_descriptors_ran_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = ListenSocket.accept
    failures = 3

    async def out_of_descriptors(self: ListenSocket) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await accept(self)

    monkeypatch.setattr(ListenSocket, "accept", out_of_descriptors)
    monkeypatch.setattr(_serve, "ACCEPT_BACKOFF", 0.001)
    with trio.fail_after(10):
        async with serving(Local()) as running:
            assert (await ask(running.urls[0])).status == 200
            assert running.statistics().accept_errors == 3
    told = [record.getMessage() for record in caplog.records if "cannot accept" in record.message]
    assert len(told) == 1  # once a minute
    assert os.strerror(errno.EMFILE) in told[0]


# -- the graceful stop -----------------------------------------------------------------------------


async def test_s_07_drain_lets_a_request_end_and_closes_idle_connections_at_once() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy, grace=5) as running, trio.open_nursery() as nursery:
            url = running.urls[0]
            async with await connect(url) as busy, await connect(url) as idle:
                await idle.send_all(QUICK)
                await receive_until(idle, b"hello")
                await busy.send_all(SLOW)
                await proxy.reached.wait()
                drained = trio.Event()

                async def drain() -> None:
                    await running.drain()
                    drained.set()

                nursery.start_soon(drain)
                assert await receive_all(idle) == b""
                with pytest.raises(OSError, match=r"connect"):
                    await connect(url)
                assert not drained.is_set()
                proxy.go.set()
                reply = await receive_all(busy)
                assert b"connection: close\r\n" in reply.lower()
                assert reply.endswith(b"hello")
                await busy.aclose()
                await drained.wait()
            assert running.statistics().connections == 0
            assert running.statistics().sessions == 0
    assert proxy.logged == ["", ""]


async def test_serve_returns_when_it_is_drained() -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(trioproxy.serve, Local(), "127.0.0.1:0")
            async with await connect(running.urls[0]) as idle:
                await running.drain()
                assert await receive_all(idle) == b""


async def test_what_is_busy_after_grace_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy) as running, await connect(running.urls[0]) as busy:
            await busy.send_all(SLOW)
            await proxy.reached.wait()
            await running.drain(0.01)
            assert await receive_all(busy) == b""
    assert proxy.cancelled
    assert proxy.logged == ["Cancelled"]
    assert "1 connections were still busy after grace" in caplog.text


async def test_drain_returns_when_the_last_session_has_ended_after_grace_too() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy) as running, await connect(running.urls[0]) as busy:
            await busy.send_all(SLOW)
            await proxy.reached.wait()
            await running.drain(0)
            assert proxy.logged == ["Cancelled"]
            assert running.statistics().sessions == 0


async def test_a_second_drain_may_run_beside_the_first() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with serving(proxy) as running, await connect(running.urls[0]) as busy:
            await busy.send_all(SLOW)
            await proxy.reached.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.drain)
                nursery.start_soon(running.drain)
                await trio.testing.wait_all_tasks_blocked()
                proxy.go.set()
                assert (await receive_all(busy)).endswith(b"hello")
                await busy.aclose()


# -- the hard stop ---------------------------------------------------------------------------------


async def test_cancelling_is_a_hard_stop() -> None:
    proxy = Local()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(trioproxy.serve, proxy, "127.0.0.1:0")
            async with await connect(running.urls[0]) as busy:
                await busy.send_all(SLOW)
                await proxy.reached.wait()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await proxy_ended(proxy)
    assert proxy.cancelled
    assert proxy.logged == ["Cancelled"]


async def proxy_ended(proxy: Local) -> None:
    """Let the cancelled tasks run."""
    while not proxy.logged:
        await trio.lowlevel.checkpoint()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
@pytest.mark.parametrize("graceful", [False, True])
async def test_s_06_nothing_is_left_behind(graceful: bool, tmp_path: Path) -> None:
    proxy = Local()

    async def once() -> None:
        path = tmp_path / "s"
        async with serving(proxy, "127.0.0.1:0", f"unix:{path}") as running:
            streams = [await connect(url) for url in running.urls]
            for stream in streams:
                await stream.send_all(QUICK)
                await receive_until(stream, b"hello")
            if graceful:
                await running.drain()
        for stream in streams:
            await stream.aclose()
        assert not path.exists()

    with trio.fail_after(10):
        await once()  # whatever is made once and kept: thread pools, caches
        gc.collect()
        before = sorted(os.listdir("/proc/self/fd"))
        tasks = trio.lowlevel.current_statistics().tasks_living
        await once()
        gc.collect()
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_an_internal_error_of_one_connection_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handle = Engine.handle
    broken = True

    async def fails_once(self: Engine, stream: DownstreamStream) -> None:
        nonlocal broken
        if broken:
            broken = False
            raise RuntimeError("a fault of our own")
        await handle(self, stream)

    monkeypatch.setattr(Engine, "handle", fails_once)
    with trio.fail_after(10):
        async with serving(Local()) as running:
            async with await connect(running.urls[0]) as stream:
                await stream.send_all(get())
                assert await receive_all(stream) == b""
            assert (await ask(running.urls[0])).status == 200
    told = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(told) == 1
    assert "ended by an internal error" in told[0].getMessage()


async def test_s_08_a_listener_that_fails_for_another_reason_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = ListenSocket.accept
    failures = 2

    async def fail_at_first(self: ListenSocket) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise ZeroDivisionError
        return await accept(self)

    monkeypatch.setattr(ListenSocket, "accept", fail_at_first)
    monkeypatch.setattr(_serve, "ACCEPT_BACKOFF", 0.001)
    with trio.fail_after(5):
        async with serving(Local()) as running:
            assert (await ask(running.urls[0])).status == 200
    messages = [record.getMessage() for record in caplog.records]
    assert sum("it is tried again" in message for message in messages) == 2


async def test_a_session_tells_the_facts_of_the_clients_connection() -> None:
    seen: list[Digest] = []

    @attrs.define(eq=False)
    class Looks(Local):
        async def request_filter(self, session: Session, ctx: None) -> bool:
            seen.append(session.digest())
            info = seen[-1].tcp_info()
            assert info is None or info.state == 1
            return await super().request_filter(session, ctx)

    with trio.fail_after(5):
        async with serving(Looks()) as running, await connect(running.urls[0]) as client:
            host, port = client.socket.getsockname()
            await client.send_all(get())
            await receive_all(client)
            assert seen[0].peer_addr == f"{host}:{port}"
            assert seen[0].local_addr == running.urls[0].removeprefix("http://")
            assert seen[0].established <= trio.current_time()


async def test_every_limit_that_bites_is_counted() -> None:
    @attrs.define(eq=False)
    class Fails(Local):
        async def request_filter(self, session: Session, ctx: None) -> bool:
            if session.req_header().path == "/fail":
                raise ProxyError.status(403)
            return await super().request_filter(session, ctx)

    with trio.fail_after(5):
        async with serving(Fails(), idle_timeout=0.02, drain_bytes=10) as running:
            (url,) = running.urls
            assert (await ask(url, get("/fail"))).status == 403
            assert (await ask(url, b"nonsense\r\n\r\n")).status == 400
            async with await connect(url) as idle:
                await idle.send_all(QUICK)
                assert b"hello" in await receive_all(idle)  # until the server closes
            statistics = running.statistics()
            assert statistics.errors == (("Unset HTTPStatus (code: 403)", 1),)
            assert statistics.refusals == ((400, 1),)
            assert statistics.limits_hit == (("idle_timeout", 1),)


def test_kinds_of_errors_are_counted_apart_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_counts, "MAX_ERROR_KINDS", 2)
    errors: Counter[str] = Counter()
    services = SimpleNamespace(errors=errors)
    for name in ("a", "b", "c", "a", "d"):
        error = ProxyError.new_up(ErrorType.Custom(name))
        _counts.SessionCounts.count_error(services, error)  # type: ignore[arg-type]
    assert errors == {"Upstream a": 2, "Upstream b": 1, "other": 2}
