"""Peers with options behind a whole server, over the loopback."""

from __future__ import annotations

import errno
import os
from typing import Any

import attrs
import pytest
import trio

import trioproxy
from examples._connect_server import serve as serve_connect
from examples._origin import serve as serve_origin
from tests.server._network import ask, get, serving
from trioproxy import Digest, ErrorType, HttpPeer, PeerOptions, ProxyError, Session
from trioproxy.peers import ConnectProxyError, Proxy
from trioproxy.transport import _sockets

pytestmark = pytest.mark.socket

CREDENTIALS = {"Proxy-Authorization": "Basic ZGVtbzpkZW1v"}


@attrs.define
class Forward(trioproxy.ProxyHttp[None]):
    """Sends every request to the next peer in turn, and keeps what it is told."""

    peers: list[HttpPeer]
    reused: list[bool] = attrs.field(factory=list)
    digests: list[Digest | None] = attrs.field(factory=list)
    errors: list[ProxyError] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peers[(len(self.digests) + len(self.errors)) % len(self.peers)]

    async def connected_to_upstream(
        self,
        session: Session,
        reused: bool,
        peer: HttpPeer,
        fd: int,
        digest: Digest | None,
        ctx: None,
    ) -> None:
        self.reused.append(reused)
        self.digests.append(digest)

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: None, e: ProxyError
    ) -> ProxyError:
        self.errors.append(e)
        return e


@attrs.frozen
class Table:
    """Looks names up in a table."""

    names: tuple[tuple[str, str], ...]

    async def connect(self, address: tuple[str, int] | str) -> trio.SocketStream:
        assert isinstance(address, tuple)
        return await trio.open_tcp_stream(dict(self.names)[address[0]], address[1])


@attrs.define(eq=False)
class Trace:
    told: list[str] = attrs.field(factory=list)

    def on_connected(self, digest: Digest) -> None:
        self.told.append("connected")

    def on_disconnected(self, digest: Digest) -> None:
        self.told.append("disconnected")


async def test_a_custom_connection_is_kept_and_used_again() -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            origin = HttpPeer.parse(await nursery.start(serve_origin, "127.0.0.1:0"))
            trace = Trace()
            # Made anew for each request: equal connectors share their connections.
            peers = [
                HttpPeer(
                    "origin.test",
                    origin.port,
                    options=PeerOptions(
                        custom_l4=Table((("origin.test", "127.0.0.1"),)), tracer=trace
                    ),
                )
                for _ in range(2)
            ]
            proxy = Forward(peers)
            async with serving(proxy) as running:
                for _ in range(3):
                    assert (await ask(running.urls[0])).status == 200
                assert trace.told == ["connected"]
            assert trace.told == ["connected", "disconnected"]
            nursery.cancel_scope.cancel()
    assert proxy.reused == [False, True, True]


async def test_a_tunnel_is_used_again_by_those_who_asked_for_the_same() -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            origin = HttpPeer.parse(await nursery.start(serve_origin, "127.0.0.1:0"))
            url = await nursery.start(serve_connect, "127.0.0.1:0")
            one = attrs.evolve(origin, proxy=Proxy.parse(url, headers=CREDENTIALS))
            two = attrs.evolve(one, options=PeerOptions(extra_proxy_headers={"X-Tenant": "2"}))
            proxy = Forward([one, two, origin])
            async with serving(proxy) as running:
                for _ in range(6):
                    assert (await ask(running.urls[0])).body.startswith(b"GET /\n")
            nursery.cancel_scope.cancel()
    assert proxy.reused == [False] * 3 + [True] * 3
    replies = [digest.proxy_reply for digest in proxy.digests if digest is not None]
    assert [reply.status if reply else None for reply in replies] == [200, 200, None] * 2


async def test_a_proxys_refusal_is_a_502_whose_cause_tells_why() -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve_connect, "127.0.0.1:0")
            proxy = Forward([HttpPeer.new_proxy(url, "origin.test", 80)])
            async with serving(proxy) as running:
                assert (await ask(running.urls[0])).status == 502
            nursery.cancel_scope.cancel()
    (error,) = proxy.errors
    assert error.etype == ErrorType.ConnectProxyFailure
    assert isinstance(error.cause, ConnectProxyError)
    assert error.cause.response is not None
    assert error.cause.response.headers.get("proxy-authenticate") == "Basic"


async def test_r_06_a_client_gets_503_where_descriptors_have_run_out_and_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lack = True

    async def open_towards(*args: Any) -> Any:
        if lack:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await _sockets.open_towards(*args)

    monkeypatch.setattr("trioproxy.transport._connect.open_towards", open_towards)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            proxy = Forward([HttpPeer.parse(await nursery.start(serve_origin, "127.0.0.1:0"))])
            async with serving(proxy) as running:
                assert (await ask(running.urls[0], get())).status == 503
                lack = False
                assert (await ask(running.urls[0], get())).status == 200
            nursery.cancel_scope.cancel()
    (error,) = proxy.errors
    assert error.etype == ErrorType.HTTPStatus(503)
