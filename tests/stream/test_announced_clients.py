"""What streams have of the way in and of PROXY headers: the same rules as for HTTP."""

from __future__ import annotations

import ssl
from typing import Any

import attrs
import pytest
import trio
import trustme
from proxyprotocol.result import ProxyResultIPv4
from trio.testing import MockClock

import trioproxy
from tests._support.matrix import read_proxy_header
from tests._support.streams import UPSTREAM, Ctx, Recorder, open_streams, receive, send
from trioproxy import Listener, PeerOptions, ServerConf, TlsSettings
from trioproxy.connections import NetworkFilter
from trioproxy.stream import ProxyStream, StreamPeer, StreamSession
from trioproxy.testing import Link
from trioproxy.testing._network import Path as Way

LINE = b"PROXY TCP4 203.0.113.7 203.0.113.9 40000 443\r\n"
CLIENT, SERVER = "203.0.113.7:40000", "203.0.113.9:443"
IN: dict[str, Any] = {"proxy_protocol": "in", "trusted_proxies": ("198.51.100.0/24",)}


def peer(**options: Any) -> StreamPeer:
    return attrs.evolve(UPSTREAM, options=PeerOptions(**options))


@pytest.mark.parametrize("size", [1, 7, 65536])
async def test_a_trusted_proxy_says_whose_stream_it_is(
    size: int, autojump_clock: MockClock
) -> None:
    """The bytes behind the header are the stream's first ones, in the same write or another."""

    async def look(session: StreamSession, _ctx: Ctx) -> bool:
        assert await session.peek(9, at_least=9) == b"hello, yo"
        return True

    recorder = Recorder(hooks={"accept_filter": look})
    async with open_streams(recorder, conf=ServerConf(**IN)) as streams:
        client = streams.connect(Link(Way(pieces=(size,))))
        await send(client, LINE + b"hello, you")
        upstream = await streams.upstream()
        assert await receive(upstream, 10) == b"hello, you"
        session = recorder.of("accept_filter")[0].args["session"]
        assert (session.client_addr(), session.server_addr()) == (CLIENT, SERVER)
        assert session.digest().connected_peer_addr == "198.51.100.1:50001"
        assert session.bytes_from_client() == 10


@pytest.mark.parametrize("data", [b"hello", LINE.replace(b"TCP4", b"TCP5")])
async def test_a_trusted_proxy_without_a_header_gets_no_stream(
    data: bytes, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_streams(recorder, conf=ServerConf(**IN)) as streams:
        client = streams.connect()
        await send(client, data)
        await streams.ended()
        assert dict(streams.running.statistics().limits_hit) == {"proxy_protocol": 1}
    assert recorder.calls == []


async def test_a_header_of_anybody_else_is_a_part_of_the_stream(autojump_clock: MockClock) -> None:
    conf = ServerConf(proxy_protocol="in", trusted_proxies=("unix",))
    async with open_streams(Recorder(), conf=conf) as streams:
        client = streams.connect()
        await send(client, LINE)
        assert await receive(await streams.upstream(), len(LINE)) == LINE


async def test_what_the_filter_drops_gets_no_stream(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    conf = ServerConf(connection_filter=NetworkFilter(deny=["198.51.100.1"]))
    async with open_streams(recorder, conf=conf) as streams:
        client = streams.connect()
        assert await client.receive_some() == b""
        assert dict(streams.running.statistics().limits_hit) == {"connection_filter": 1}
    assert recorder.calls == []


@pytest.mark.parametrize(
    ("conf", "options", "version"),
    [
        (ServerConf(proxy_protocol="out"), {}, 2),
        (ServerConf(proxy_protocol="out"), {"proxy_protocol": 1}, 1),
        (ServerConf(proxy_protocol="out"), {"proxy_protocol": 0}, None),
        (ServerConf(), {"proxy_protocol": 2}, 2),
        (ServerConf(), {}, None),
        (ServerConf(**(IN | {"proxy_protocol": "both"})), {}, 2),
    ],
)
async def test_the_connection_to_the_upstream_is_made_for_the_client(
    conf: ServerConf,
    options: dict[str, Any],
    version: int | None,
    autojump_clock: MockClock,
) -> None:
    both = conf.proxy_protocol == "both"
    async with open_streams(Recorder((peer(**options),)), conf=conf) as streams:
        client = streams.connect()
        if both:
            await send(client, LINE)
        await streams.upstream()
        ((asked, _),) = streams.opener.asked
        if version is None:
            assert asked.announce is None
        else:
            assert asked.announce is not None
            header = asked.announce.header
            assert header.version == version
            expected = (CLIENT, SERVER) if both else ("198.51.100.1:50001", "192.0.2.1:80")
            assert (header.source, header.destination) == expected


@attrs.define(eq=False)
class To(ProxyStream[None]):
    peer: StreamPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: StreamSession, ctx: None) -> StreamPeer:
        return self.peer


@pytest.mark.socket
async def test_a_header_comes_before_tls_on_both_sides() -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("one.test")
    upstream_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(upstream_context)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_context)
    headers: list[Any] = []

    async def upstream(plain: trio.SocketStream) -> None:
        headers.append(await read_proxy_header(plain))
        stream = trio.SSLStream(plain, upstream_context, server_side=True)
        await stream.send_all(bytes(await stream.receive_some()).upper())
        await trio.aclose_forcefully(plain)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, upstream, [listener])
            port = listener.socket.getsockname()[1]
            options = PeerOptions(ca=authority)
            way = StreamPeer("127.0.0.1", port, scheme="tls", sni="one.test", options=options)
            conf = ServerConf(proxy_protocol="both", trusted_proxies=("127.0.0.1",))
            bind = Listener("127.0.0.1:0", tls=TlsSettings(leaf))
            running = await nursery.start(
                lambda task_status: trioproxy.serve(
                    To(way), bind, conf=conf, task_status=task_status
                )
            )
            host, _, number = running.urls[0].partition("://")[2].rpartition(":")
            plain = await trio.open_tcp_stream(host, int(number))
            await plain.send_all(LINE)
            stream = trio.SSLStream(plain, client_context, server_hostname="one.test")
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"HELLO"
            await trio.aclose_forcefully(plain)
            nursery.cancel_scope.cancel()
    (header,) = headers
    assert isinstance(header, ProxyResultIPv4)
    assert f"{header.source[0]}:{header.source[1]}" == CLIENT
    assert header.tlv.authority == "one.test"
    assert header.tlv.ssl.version == "TLSv1.3"
