"""Origins over TLS behind a whole server, over the loopback; their TLS is `trio.SSLStream`."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trustme

import trioproxy
from tests._support.tls_wire import server_context
from tests.server._network import (
    an_origin,
    answering,
    ask,
    get,
    receive_all,
    receive_until,
    serving,
)
from tests.upstream.test_connector_serving import Forward
from trioproxy import HttpPeer, PeerOptions
from trioproxy.server._reverse import Reverse

pytestmark = pytest.mark.socket

CA = trustme.CA()
SITE = CA.issue_cert("site.test")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

TlsHandler = Callable[[trio.SSLStream[trio.SocketStream]], Awaitable[None]]


@asynccontextmanager
async def a_tls_origin(
    handler: TlsHandler,
    certificate: trustme.LeafCert = SITE,
    *,
    clients: trustme.CA | None = None,
    accepted: list[object] | None = None,
) -> AsyncIterator[int]:
    """Serve connections over TLS by a function; gives the port."""
    context = server_context(certificate, clients=clients)

    async def shake_hands(stream: trio.SocketStream) -> None:
        if accepted is not None:
            accepted.append(stream)
        tls = trio.SSLStream(stream, context, server_side=True)
        await tls.do_handshake()
        await handler(tls)

    async with an_origin(shake_hands) as url:
        yield HttpPeer.parse(url).port or 0


async def answers(tls: trio.SSLStream[trio.SocketStream]) -> None:
    """Answer one request after the other."""
    while await tls.receive_some():
        await tls.send_all(OK)


def site(port: int, sni: str = "site.test", **options: Any) -> HttpPeer:
    if options.get("verify_cert", True):
        options.setdefault("ca", CA)
    return HttpPeer("127.0.0.1", port, scheme="https", sni=sni, options=PeerOptions(**options))


async def test_requests_go_over_one_connection_and_the_digest_tells_of_tls() -> None:
    with trio.fail_after(20):
        async with a_tls_origin(answers) as port:
            proxy = Forward([site(port)])
            async with serving(proxy) as running:
                for _ in range(3):
                    reply = await ask(running.urls[0])
                    assert (reply.status, reply.body) == (200, b"ok")
    assert proxy.reused == [False, True, True]
    told = {digest.tls for digest in proxy.digests if digest is not None}
    assert [(tls.version, tls.sni) for tls in told if tls is not None] == [("TLSv1.3", "site.test")]


# -- who is not trusted ----------------------------------------------------------------------------

PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize("proxy", [Forward, Reverse])
@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (trustme.CA().issue_cert("site.test"), "unable to get local issuer certificate"),
        (CA.issue_cert("other.test"), "certificate is not valid for 'site.test'"),
        (
            CA.issue_cert("site.test", not_before=PAST, not_after=PAST + dt.timedelta(days=9)),
            "certificate has expired",
        ),
    ],
    ids=["issuer", "name", "expired"],
)
async def test_f_03_who_cannot_be_verified_is_a_502_whose_cause_is_in_the_log_only(
    proxy: Callable[[list[HttpPeer]], trioproxy.ProxyHttp[Any]],
    certificate: trustme.LeafCert,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[bytes] = []
    accepted: list[object] = []

    async def handler(tls: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            heard.append(bytes(await tls.receive_some()))

    with trio.fail_after(20):
        async with (
            a_tls_origin(handler, certificate, accepted=accepted) as port,
            serving(
                # The second one would do, and is not asked: who it is matters.
                proxy([site(port), site(port, verify_cert=False)])
            ) as running,
        ):
            reply = await ask(running.urls[0], get("/private"))
    assert reply.status == 502
    for told in (b"certificate", b"site.test", b"TLS", str(port).encode()):
        assert told not in reply.raw
    assert why in caplog.text
    assert not any(heard)
    assert len(accepted) == 1


async def test_f_03_an_origin_without_tls_gets_no_request_in_cleartext() -> None:
    heard: list[bytes] = []

    async def plain(stream: trio.SocketStream) -> None:
        heard.append(await stream.receive_some())
        await stream.send_all(OK)

    with trio.fail_after(20):
        async with an_origin(plain) as url:
            port = HttpPeer.parse(url).port or 0
            async with serving(Forward([site(port, verify_cert=False)])) as running:
                assert (await ask(running.urls[0], get("/private"))).status == 502
    (hello,) = heard
    assert hello.startswith(b"\x16\x03")  # a ClientHello, and nothing behind it
    assert b"private" not in hello


@pytest.mark.parametrize(("proxy", "status"), [(Forward, 502), (Reverse, 504)])
async def test_t_04_a_handshake_that_stalls_is_answered(
    proxy: Callable[[list[HttpPeer]], trioproxy.ProxyHttp[Any]], status: int
) -> None:
    async def stall(stream: trio.SocketStream) -> None:
        await receive_all(stream)

    with trio.fail_after(20):
        async with an_origin(stall) as url:
            peer = site(HttpPeer.parse(url).port or 0, tls_handshake_timeout=0.05)
            async with serving(proxy([peer])) as running:
                assert (await ask(running.urls[0])).status == status


async def test_an_origin_that_wants_a_certificate_gets_ours() -> None:
    ours = CA.issue_cert("proxy@site.test")
    with trio.fail_after(20):
        async with a_tls_origin(answers, clients=CA) as port:
            proxy = Forward([site(port, client_cert_key=ours), site(port)])
            async with serving(proxy) as running:
                assert (await ask(running.urls[0])).status == 200
                # The connection of who has one is not for who has none.
                assert (await ask(running.urls[0])).status == 502
                assert (await ask(running.urls[0])).status == 200


async def test_peers_with_other_tls_options_do_not_share_a_connection() -> None:
    with trio.fail_after(20):
        async with a_tls_origin(answers, CA.issue_cert("site.test", "other.test")) as port:
            peers = [
                site(port),
                site(port, "other.test"),
                site(port, alternative_cn="x.test"),
                site(port, verify_hostname=False),
                site(port, verify_cert=False),
                site(port, min_tls_version="1.3"),
            ]
            proxy = Forward(peers)
            async with serving(proxy) as running:
                for _ in range(2 * len(peers)):
                    assert (await ask(running.urls[0])).status == 200
    assert proxy.reused == [False] * len(peers) + [True] * len(peers)


# -- the end of TLS --------------------------------------------------------------------------------


@pytest.mark.parametrize("notified", [True, False], ids=["close_notify", "cut"])
async def test_u1_11_only_a_close_notify_ends_a_close_delimited_response(notified: bool) -> None:
    async def handler(tls: trio.SSLStream[trio.SocketStream]) -> None:
        await tls.receive_some()
        await tls.send_all(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if notified:
            await tls.aclose()
        else:
            await tls.transport_stream.send_eof()
            await receive_all(tls.transport_stream)

    with trio.fail_after(20):
        async with a_tls_origin(handler) as port, serving(Forward([site(port)])) as running:
            reply = await ask(running.urls[0])
    assert reply.status == 200
    assert reply.fields["transfer-encoding"] == "chunked"
    assert reply.body.startswith(b"5\r\nhello\r\n")
    assert reply.body.endswith(b"\r\n0\r\n\r\n") is notified


async def test_a_cut_behind_a_whole_message_is_none() -> None:
    async def handler(tls: trio.SSLStream[trio.SocketStream]) -> None:
        await tls.receive_some()
        await tls.send_all(OK)
        await tls.transport_stream.send_eof()
        await receive_all(tls.transport_stream)

    with trio.fail_after(20):
        async with a_tls_origin(handler) as port:
            proxy = Forward([site(port)])
            async with serving(proxy) as running:
                for _ in range(2):
                    reply = await ask(running.urls[0])
                    assert (reply.status, reply.body) == (200, b"ok")
    assert proxy.errors == []


async def test_tls_runs_through_a_connect_proxy() -> None:
    async def connect_proxy(stream: trio.SocketStream) -> None:
        head = await receive_until(stream, b"\r\n\r\n")
        port = int(head.split()[1].rpartition(b":")[2])
        await stream.send_all(b"HTTP/1.1 200 x\r\n\r\n")
        async with await trio.open_tcp_stream("127.0.0.1", port) as onward:

            async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                async for data in source:
                    await sink.send_all(data)
                nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy, stream, onward)
                nursery.start_soon(copy, onward, stream)

    with trio.fail_after(20):
        async with a_tls_origin(answers) as port, an_origin(connect_proxy) as url:
            peer = HttpPeer.new_proxy(
                url, "127.0.0.1", port, tls=True, sni="site.test", options=PeerOptions(ca=CA)
            )
            proxy = Forward([peer])
            async with serving(proxy) as running:
                for _ in range(2):
                    assert (await ask(running.urls[0])).body == b"ok"
    assert proxy.reused == [False, True]


async def test_reverse_speaks_tls_with_https_origins() -> None:
    with trio.fail_after(20):
        async with (
            a_tls_origin(answers) as port,
            an_origin(answering(OK)) as url,
            serving(Reverse([site(port), HttpPeer.parse(url)])) as running,
        ):
            for _ in range(3):
                assert (await ask(running.urls[0])).body == b"ok"
