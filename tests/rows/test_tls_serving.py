"""Rows of TLS that a whole server keeps: TLS-01, TLS-02, TLS-04, TLS-07, over a network in memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from trio.testing import MockClock

import trioproxy
from tests._support.h2_wire import PROTOCOL_ERROR, H2Peer, H2Wire
from tests._support.matrix import stapled
from tests._support.tls_wire import TlsWire
from trioproxy import Digest, HttpPeer, ResponseHeader, ServerConf, Session, TlsSettings
from trioproxy.testing._network import PLAIN, MemoryAcceptor, Network

CA = trustme.CA()
OPEN, GUARDED = CA.issue_cert("open.test", "other.test"), CA.issue_cert("guarded.test")
FRIEND = CA.issue_cert("friend@site.test", common_name="friend")
SETTINGS = TlsSettings(OPEN, sni={"guarded.test": TlsSettings(GUARDED, client_ca=CA)})
H1, H2 = ["http/1.1"], ["h2"]


@attrs.define(eq=False)
class Local(trioproxy.ProxyHttp[None]):
    """Answers by itself, and notes who asked."""

    asked: list[str] = attrs.field(factory=list)
    digests: list[Digest] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        self.asked.append(session.req_header().authority)
        digest = session.digest()
        assert digest is not None
        self.digests.append(digest)
        head = ResponseHeader(200, {"content-length": "5"})
        await session.write_response_header(head, end_of_stream=False)
        await session.write_response_body(b"hello", end_of_stream=True)
        return True

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise AssertionError("not reached")


@attrs.frozen
class Serving:
    proxy: Local
    running: trioproxy.Running
    acceptor: MemoryAcceptor

    def plain(self) -> trio.StapledStream[Any, Any]:
        """Return a connection without TLS."""
        return stapled(self.acceptor.connect(PLAIN))

    async def connect(
        self,
        name: str | None,
        alpn: list[str],
        certificate: trustme.LeafCert | None = None,
    ) -> TlsWire:
        """Return a connection behind its TLS handshake."""
        tls = TlsWire.client(self.plain(), name, CA, alpn=alpn, certificate=certificate)
        await tls.handshake()
        return tls


@asynccontextmanager
async def serving(settings: TlsSettings = SETTINGS, **conf: Any) -> AsyncIterator[Serving]:
    proxy = Local()
    acceptor = MemoryAcceptor(Network())
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[trioproxy.Running]) -> None:
                options = ServerConf(tls=settings, **conf)
                await trioproxy.serve(proxy, acceptor, conf=options, task_status=task_status)

            yield Serving(proxy, await nursery.start(serve), acceptor)
            nursery.cancel_scope.cancel()


async def ask(tls: TlsWire, authority: str) -> bytes:
    """Send a request over HTTP/1.1 and return the response's head and what came of its content."""
    await tls.send_all(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % authority.encode())
    data = bytearray()
    while b"\n\r\n" not in data or data.endswith(b"\n\r\n"):
        piece = await tls.receive_some()
        assert piece, bytes(data)
        data += piece
    return bytes(data)


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


async def test_a_session_is_told_of_tls(autojump_clock: MockClock) -> None:
    async with serving() as server:
        tls = await server.connect("guarded.test", H1, FRIEND)
        assert status(await ask(tls, "guarded.test")) == 200
        (digest,) = server.proxy.digests
        assert digest.tls is not None
        assert (digest.tls.version, digest.tls.sni) == ("TLSv1.3", "guarded.test")
        assert digest.tls.alpn == "http/1.1"
        assert "CN=friend" in (digest.tls.peer_subject or "")
        tls.close()


# -- TLS-01 --------------------------------------------------------------------------------------


async def test_tls_01_plain_http_on_a_tls_port_costs_nothing_else(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trioproxy")
    async with serving() as server:
        stream = server.plain()
        started = trio.current_time()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await stream.receive_some(100) == b""
        assert trio.current_time() == started
        tls = await server.connect("open.test", H1)
        assert status(await ask(tls, "open.test")) == 200
        tls.close()
        assert server.running.statistics().limits_hit == (("tls_TLSHandshakeFailure", 1),)
    (line,) = [each for each in caplog.records if "TLS" in each.getMessage()]
    assert line.levelno == logging.DEBUG
    assert line.exc_info is None


async def test_tls_01_a_client_that_says_nothing_is_closed_in_time(
    autojump_clock: MockClock,
) -> None:
    async with serving() as server:
        stream = server.plain()
        started = trio.current_time()
        assert await stream.receive_some(100) == b""
        assert trio.current_time() - started == pytest.approx(10)
        assert server.running.statistics().limits_hit == (("tls_TLSHandshakeTimedout", 1),)


async def test_tls_01_a_graceful_stop_does_not_wait_for_a_handshake(
    autojump_clock: MockClock,
) -> None:
    async with serving() as server:
        stream = server.plain()
        await stream.send_all(b"\x16\x03\x01")
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await server.running.drain()
        assert trio.current_time() - started < 1
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some(100) == b""


# -- TLS-02 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["open.test", None])
async def test_tls_02_another_entry_s_authority_is_misdirected_over_http_1(
    name: str | None, autojump_clock: MockClock
) -> None:
    async with serving() as server:
        tls = await server.connect(name, H1)
        assert status(await ask(tls, "guarded.test")) == 421
        # The connection goes on, for what it may carry.
        assert status(await ask(tls, "open.test")) == 200
        assert status(await ask(tls, "unknown.test")) == 200
        assert status(await ask(tls, "GUARDED.test:443")) == 421
        tls.close()
        assert server.proxy.asked == ["open.test", "unknown.test"]


async def test_tls_02_another_entry_s_authority_is_misdirected_over_http_2(
    autojump_clock: MockClock,
) -> None:
    async with serving() as server:
        tls = await server.connect("open.test", H2)
        peer = H2Peer(H2Wire(tls.stapled))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            for authority, expected in [
                ("guarded.test", 421),
                ("open.test", 200),
                ("guarded.test:443", 421),
                ("unknown.test", 200),
            ]:
                answer = await peer.exchange(authority=authority, scheme="https")
                assert answer.status == expected
            assert not peer.goaways
            peer.close()
        assert server.proxy.asked == ["open.test", "unknown.test"]


async def test_tls_02_who_came_in_by_a_certificate_may_not_ask_for_other_names(
    autojump_clock: MockClock,
) -> None:
    async with serving() as server:
        tls = await server.connect("guarded.test", H1, FRIEND)
        assert status(await ask(tls, "open.test")) == 421
        assert status(await ask(tls, "guarded.test")) == 200
        tls.close()


async def test_tls_02_without_other_entries_every_authority_is_served(
    autojump_clock: MockClock,
) -> None:
    async with serving(TlsSettings(OPEN)) as server:
        tls = await server.connect("open.test", H1)
        assert status(await ask(tls, "guarded.test")) == 200
        tls.close()


# -- TLS-04 --------------------------------------------------------------------------------------


async def test_tls_04_http_1_behind_an_agreement_on_http_2_ends_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with serving() as server:
        tls = await server.connect("open.test", H2)
        assert tls.alpn == "h2"
        wire = H2Wire(tls.stapled)
        await wire.send_raw(b"GET / HTTP/1.1\r\nHost: open.test\r\n\r\n")
        assert (await wire.goaway()).error_code == PROTOCOL_ERROR
        await wire.at_end()
        assert server.proxy.asked == []
        tls.close()


@pytest.mark.parametrize(
    ("http", "offered", "agreed"),
    [
        ("1", ["h2", "http/1.1"], "http/1.1"),
        ("auto", ["h2", "http/1.1"], "h2"),
        ("2", ["h2", "http/1.1"], "h2"),
        ("1", ["h2"], None),
        ("auto", [], None),
    ],
)
async def test_tls_04_the_listener_s_versions_narrow_what_is_offered(
    http: str, offered: list[str], agreed: str | None, autojump_clock: MockClock
) -> None:
    async with serving(http=http) as server:
        tls = await server.connect("open.test", offered)
        assert tls.alpn == agreed
        if agreed != "h2":
            assert status(await ask(tls, "open.test")) == 200
        tls.close()


# -- TLS-07 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpn", [H1, H2], ids=["h1", "h2"])
async def test_tls_07_a_connection_that_the_server_ends_ends_with_close_notify(
    alpn: list[str], autojump_clock: MockClock
) -> None:
    async with serving() as server:
        tls = await server.connect("open.test", alpn)
        if alpn == H1:
            assert status(await ask(tls, "open.test")) == 200
        else:
            await H2Wire(tls.stapled).start()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.running.drain)
            while await tls.receive_some():  # a cut would be an error
                pass
            tls.close()


# -- reload --------------------------------------------------------------------------------------


async def test_a_reload_keeps_the_connections_there_are(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def write(leaf: trustme.LeafCert) -> None:
        leaf.cert_chain_pems[0].write_to_path(str(certificate))
        leaf.private_key_pem.write_to_path(str(key))

    write(OPEN)
    async with serving(TlsSettings(certificate, key)) as server:
        before = await server.connect("open.test", H1)
        assert status(await ask(before, "open.test")) == 200
        write(GUARDED)
        assert server.running.reload()
        after = await server.connect("guarded.test", H1)
        assert status(await ask(after, "guarded.test")) == 200
        assert status(await ask(before, "open.test")) == 200
        before.close()
        after.close()
