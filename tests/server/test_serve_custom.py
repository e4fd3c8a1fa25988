"""Protocols of one's own on listeners and towards origins, over sockets and TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trustme

import trioproxy
from examples._chat import LengthPrefixed, Party, echo
from trioproxy import (
    HttpPeer,
    Listener,
    PeerOptions,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    Session,
    TlsSettings,
)
from trioproxy.custom import END, Message

pytestmark = pytest.mark.socket

PROTOCOL = LengthPrefixed()
AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("localhost", "127.0.0.1")
ROOM = RequestHeader("JOIN", "/room", [("Host", "localhost")])


@attrs.define
class Forward(trioproxy.ProxyHttp[None]):
    peer: HttpPeer
    error: ProxyError | None = None

    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        if session.is_custom():
            return False
        await session.respond_error_with_body(200, b"over HTTP")
        return True

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        self.error = e


def server_context(*alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def an_origin(nursery: trio.Nursery, context: ssl.SSLContext | None = None) -> int:
    """Run an origin; return its port."""
    if context is None:
        plain = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, plain)
        return int(plain[0].socket.getsockname()[1])
    secure = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, echo, secure)
    listener: trio.SocketListener = secure[0].transport_listener  # type: ignore[assignment]  # it is
    return int(listener.socket.getsockname()[1])


@asynccontextmanager
async def serving(peer: HttpPeer | None = None, **listener: Any) -> AsyncIterator[Any]:
    """Run a gateway on a listener, before an origin of the protocol where no peer is given."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            if peer is None:
                options = PeerOptions(custom=PROTOCOL)
                peer = HttpPeer("127.0.0.1", await an_origin(nursery), options=options)
            bind = Listener("127.0.0.1:0", **listener)
            proxy = Forward(peer)
            running = await nursery.start(trioproxy.serve, proxy, bind)
            yield running, proxy
            nursery.cancel_scope.cancel()


def port_of(running: trioproxy.Running) -> int:
    return int(running.urls[0].rpartition(":")[2])


async def over_tls(port: int, *alpn: str) -> Any:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    stream = await trio.open_ssl_over_tcp_stream(
        "localhost", port, ssl_context=context, https_compatible=True
    )
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def chat(stream: trio.abc.Stream) -> None:
    """Have two exchanges on a connection."""
    party = Party(stream, PROTOCOL.client())
    for _ in range(2):
        await party.send(ROOM, END, Message(b"hello"), Message(b"goodbye"))
        events = []
        while END not in events:
            events.append(await party.receive())
        assert [each.data for each in events if isinstance(each, Message)] == [
            b"hello",
            b"goodbye",
        ]


async def browse(stream: trio.abc.Stream) -> None:
    """Have one over HTTP/1.1."""
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    received = b""
    async for data in stream:
        received += data
    assert received.endswith(b"over HTTP")


async def test_alpn_chooses_between_http_and_a_protocol_of_one_s_own() -> None:
    async with serving(tls=TlsSettings(CERTIFICATE), custom=PROTOCOL) as (running, _):
        port = port_of(running)
        for offered in (("lp/1",), ("http/1.1", "lp/1"), ("h2", "lp/1")):
            async with await over_tls(port, *offered) as stream:
                assert stream.selected_alpn_protocol() == "lp/1"
                await chat(stream)
        for http in (("http/1.1",), ()):
            async with await over_tls(port, *http) as stream:
                await browse(stream)
        assert running.statistics().sessions_total == 8


async def test_a_listener_may_speak_nothing_else() -> None:
    tls = TlsSettings(CERTIFICATE)
    async with serving(tls=tls, custom=[PROTOCOL], http="off") as (running, _):
        port = port_of(running)
        for offered in (("lp/1",), ()):
            async with await over_tls(port, *offered) as stream:
                await chat(stream)
        with pytest.raises(trio.BrokenResourceError):
            await over_tls(port, "http/1.1")
    async with (
        serving(custom=PROTOCOL, http="off") as (running, _),
        await trio.open_tcp_stream("127.0.0.1", port_of(running)) as stream,
    ):
        await chat(stream)


@pytest.mark.parametrize("secure", [False, True])
async def test_a_proxy_header_may_come_before_it(secure: bool) -> None:
    header = b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 443\r\n"
    tls = TlsSettings(CERTIFICATE) if secure else None
    conf = trioproxy.ServerConf(proxy_protocol="in", trusted_proxies=("127.0.0.0/8",))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            options = PeerOptions(custom=PROTOCOL)
            proxy = Forward(HttpPeer("127.0.0.1", await an_origin(nursery), options=options))
            bind = Listener("127.0.0.1:0", tls=tls, custom=PROTOCOL, http="off")
            running = await nursery.start(
                lambda task_status: trioproxy.serve(proxy, bind, conf=conf, task_status=task_status)
            )
            plain = await trio.open_tcp_stream("127.0.0.1", port_of(running))
            codec = PROTOCOL.client()
            first = b"" if secure else codec.encode(ROOM) + codec.encode(END)
            await plain.send_all(header + first)
            if secure:
                context = ssl.create_default_context()
                AUTHORITY.configure_trust(context)
                stream: Any = trio.SSLStream(
                    plain, context, server_hostname="localhost", https_compatible=True
                )
                await chat(stream)
            else:
                party = Party(plain, codec)
                await party.send(Message(b"goodbye"))
                while await party.receive() is not END:
                    pass
            await plain.aclose()
            assert running.statistics().sessions_total == (2 if secure else 1)
            nursery.cancel_scope.cancel()


async def test_an_origin_is_asked_by_alpn() -> None:
    async with trio.open_nursery() as nursery:
        port = await an_origin(nursery, server_context("lp/1"))
        peer = HttpPeer(
            "localhost",
            port,
            scheme="https",
            options=PeerOptions(custom=PROTOCOL, ca=AUTHORITY),
        )
        async with serving(peer, custom=PROTOCOL, http="off") as (running, _):
            async with await trio.open_tcp_stream("127.0.0.1", port_of(running)) as stream:
                await chat(stream)
            assert running.statistics().pool.reuses == 1
        nursery.cancel_scope.cancel()


async def test_an_origin_that_does_not_agree_by_alpn_is_no_origin() -> None:
    async with trio.open_nursery() as nursery:
        port = await an_origin(nursery, server_context("http/1.1"))
        options = PeerOptions(custom=PROTOCOL, ca=AUTHORITY)
        peer = HttpPeer("localhost", port, scheme="https", options=options)
        async with (
            serving(peer, custom=PROTOCOL, http="off") as (running, proxy),
            await trio.open_tcp_stream("127.0.0.1", port_of(running)) as stream,
        ):
            party = Party(stream, PROTOCOL.client())
            await party.send(ROOM, END)
            head = await party.receive()
            assert isinstance(head, ResponseHeader)
            assert head.status == 502
        assert "it agreed to no lp/1 by ALPN" in str(proxy.error)
        nursery.cancel_scope.cancel()


async def test_a_drain_lets_an_exchange_end_and_closes_who_is_idle() -> None:
    async with serving(custom=PROTOCOL, http="off") as (running, _):
        port = port_of(running)
        idle = await trio.open_tcp_stream("127.0.0.1", port)
        busy = await trio.open_tcp_stream("127.0.0.1", port)
        async with idle, busy:
            party = Party(busy, PROTOCOL.client())
            await party.send(ROOM, END)
            assert isinstance(await party.receive(), ResponseHeader)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.drain)
                assert await idle.receive_some() == b""
                await party.send(Message(b"goodbye"))
                assert await party.receive() == Message(b"goodbye")
                assert await party.receive() is END
                assert await busy.receive_some() == b""


# -- what is refused when it is made ---------------------------------------------------------------


@attrs.frozen
class Named(LengthPrefixed):
    alpn: str = "other/1"


class Unhashable(LengthPrefixed):
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"custom": "lp/1"}, "a trioproxy.custom.Protocol is right"),
        ({"custom": [PROTOCOL, LengthPrefixed()]}, "two protocols have the same alpn"),
        ({"custom": Named("h2")}, "is HTTP: a name of its own is right"),
        ({"custom": Named("")}, "1 to 255 ASCII characters are right"),
        ({"custom": Unhashable()}, "it must be hashable"),
        ({"http": "off"}, "nothing is spoken without custom"),
    ],
)
def test_a_listener_refuses_what_cannot_be_spoken(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Listener("127.0.0.1:0", **options)


@pytest.mark.parametrize(
    "listener",
    [
        Listener("127.0.0.1:0", custom=PROTOCOL),
        Listener("127.0.0.1:0", custom=[PROTOCOL, Named()], http="off"),
        Listener("127.0.0.1:0", custom=PROTOCOL, http="off", h2c=True),
    ],
)
async def test_without_tls_nothing_chooses(listener: Listener) -> None:
    with pytest.raises(ValueError, match=r"(is|are) right"):
        await trioproxy.serve(Forward(HttpPeer("127.0.0.1", 1)), listener)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"custom": "lp/1"}, "a trioproxy.custom.Protocol is right"),
        ({"custom": PROTOCOL, "http_version": (2, 2)}, "custom takes the place of HTTP"),
    ],
)
def test_a_peer_refuses_what_cannot_be_spoken(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PeerOptions(**options)


def test_peers_of_different_protocols_share_no_connection() -> None:
    keys = {
        HttpPeer("a", 1, options=options).reuse_key
        for options in (
            PeerOptions(),
            PeerOptions(custom=PROTOCOL),
            PeerOptions(custom=LengthPrefixed()),
            PeerOptions(custom=Named()),
        )
    }
    assert len(keys) == 3
