from __future__ import annotations

import contextlib
import gzip
import json
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from websockets.trio.client import connect as connect_websocket

import trioproxy
from examples import __main__ as runner
from examples import (
    body_guard,
    caching_gateway,
    custom_protocol,
    forward_proxy,
    grpc_router,
    grpc_web_page,
    h2_to_h1,
    image_origin,
    mirror,
    mtls,
    per_user_key,
    proxy_protocol,
    purge,
    stale_on_error,
    tls_gateway,
)
from examples._auth_service import serve as serve_auth
from examples._cache_origin import IMAGE
from examples._cache_origin import serve as serve_cacheable
from examples._certificates import make
from examples._chat import serve as serve_chat
from examples._chat import talk_over_tls
from examples._connect_server import serve as serve_connect
from examples._gateway import Broken
from examples._grpc_origin import serve as serve_grpc
from examples._origin import serve as serve_origin
from examples._tls_origin import serve as serve_tls
from examples.add_header import AddHeader
from examples.answer_early import AnswerEarly
from examples.api_keys import KEYS, ApiKeys
from examples.basic_auth import Den
from examples.bearer_jwt import Tokens, a_token
from examples.composition import gateway as composed
from examples.compress import Compress
from examples.connect_proxy import Egress, through
from examples.context_access_log import AccessLog
from examples.cors import Shared
from examples.failover import Failover
from examples.fan_out import FanOut
from examples.forward_auth import AskFirst
from examples.hedge import Hedging
from examples.inside_trio_app import Forward
from examples.mirror import Mirroring
from examples.part_of_a_site import Shop
from examples.request_ids import RequestIds
from examples.retry_backoff import Patient
from examples.rewrite_body import NumberLines
from examples.security_headers import Careful
from examples.server_sent_events import NumberEvents
from examples.slow_client_guard import CONF, MOST, Guard
from examples.sni_router import SniRouter
from examples.sse_filter import FilterEvents
from examples.subrequest import AskBefore
from examples.tcp_proxy import StrikeOut
from examples.trusted_proxies import TrustedProxies
from examples.websocket_filter import Polite
from examples.websocket_gateway import WebSockets
from tests._support.grpc_web import BINARY, TEXT, asked, decoded
from tests._support.h2_wire import H2Message, H2Peer, H2Wire
from tests._support.recording import Wire
from tests._support.tls_wire import TlsWire
from tests.server._network import (
    Program,
    Reply,
    an_origin,
    answering,
    ask,
    connect,
    get,
    receive_all,
    receive_until,
    serving,
)
from trioproxy import BodyChunk, HttpPeer, TlsSettings
from trioproxy.connections import ConnectionInfo
from trioproxy.stream import StreamPeer
from trioproxy.subrequests import Mirrored

pytestmark = pytest.mark.socket

NAMES = [
    "add_header",
    "answer_early",
    "api_keys",
    "basic_auth",
    "bearer_jwt",
    "body_guard",
    "caching_gateway",
    "composition",
    "compress",
    "connect_proxy",
    "context_access_log",
    "cors",
    "custom_protocol",
    "failover",
    "fan_out",
    "forward_auth",
    "forward_proxy",
    "grpc_router",
    "grpc_web_page",
    "h2_to_h1",
    "hedge",
    "image_origin",
    "inside_trio_app",
    "mirror",
    "mtls",
    "part_of_a_site",
    "per_user_key",
    "proxy_protocol",
    "purge",
    "request_ids",
    "retry_backoff",
    "rewrite_body",
    "security_headers",
    "server_sent_events",
    "slow_client_guard",
    "sni_router",
    "sse_filter",
    "stale_on_error",
    "subrequest",
    "tcp_proxy",
    "tls_gateway",
    "trusted_proxies",
    "websocket_filter",
    "websocket_gateway",
]


@asynccontextmanager
async def the_origin() -> AsyncIterator[HttpPeer]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            yield HttpPeer.parse(await nursery.start(serve_origin, "127.0.0.1:0"))
            nursery.cancel_scope.cancel()


# -- the origin ------------------------------------------------------------------------------------


async def test_the_origin_answers_with_what_it_was_asked() -> None:
    async with the_origin() as peer:
        request = (
            b"POST /a?b HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nContent-Length: 3\r\n"
            b"Connection: close\r\n\r\nabc"
        )
        reply = await ask(f"http://{peer}", request)
        assert reply.status == 200
        assert reply.body.startswith(b"POST /a?b\nHost: x\nX-One: 1\n")
        assert reply.body.endswith(b"\n\nabc")


async def test_the_origin_answers_head_without_a_body() -> None:
    async with the_origin() as peer:
        reply = await ask(f"http://{peer}", get("/a", method="HEAD"))
        assert reply.status == 200
        assert int(reply.fields["content-length"]) > 0
        assert reply.body == b""


async def test_the_origin_lets_a_waiting_client_send_its_body() -> None:
    async with the_origin() as peer, await connect(f"http://{peer}") as stream:
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        await stream.send_all(head)
        assert (await receive_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"abc")
        assert (await receive_until(stream, b"abc")).startswith(b"HTTP/1.1 200 ")


# -- each example does what its docstring says -----------------------------------------------------


async def test_add_header_adds_to_the_request_and_to_the_reply() -> None:
    async with the_origin() as peer, serving(AddHeader(peer)) as running:
        reply = await ask(running.urls[0], get("/hello", "X-Gateway: forged"))
        assert reply.status == 200
        assert reply.fields["x-served-by"] == "gateway"
        assert "server" not in reply.fields
        assert reply.body.startswith(b"GET /hello\n")
        assert reply.body.count(b"x-gateway: add_header\n") == 1
        assert b"forged" not in reply.body


async def test_answer_early_answers_by_itself() -> None:
    nobody = HttpPeer("127.0.0.1", 1)
    with trio.fail_after(20):
        async with serving(AnswerEarly(nobody)) as running:
            reply = await ask(running.urls[0], get("/healthz"))
            assert (reply.status, reply.body) == (200, b"fine\n")


async def test_answer_early_refuses_what_is_private() -> None:
    async with the_origin() as peer, serving(AnswerEarly(peer)) as running:
        url = running.urls[0]
        assert (await ask(url, get("/private"))).status == 403
        assert (await ask(url, get("/private", "Authorization: Basic eDp5"))).status == 200
        assert (await ask(url, get("/public"))).body.startswith(b"GET /public\n")


async def test_compress_compresses_what_is_asked_for_and_decodes_requests() -> None:
    async with the_origin() as peer, serving(Compress(peer)) as running:
        url = running.urls[0]
        reply = await ask(url, get("/hello", "Accept-Encoding: gzip, br", version="1.0"))
        assert reply.fields["content-encoding"] == "gzip"
        assert reply.fields["vary"] == "Accept-Encoding"
        assert gzip.decompress(reply.body).startswith(b"GET /hello\n")
        assert (await ask(url, get("/hello"))).body.startswith(b"GET /hello\n")
        reply = await ask(url, get("/events", "Accept-Encoding: gzip", version="1.0"))
        assert gzip.decompress(reply.body) == b"data: one\n\ndata: two\n\ndata: three\n\n"
        body = gzip.compress(b"what is sent")
        fields = ("Content-Encoding: gzip", f"Content-Length: {len(body)}")
        reply = await ask(url, get("/", *fields, method="POST") + body)
        assert reply.body.endswith(b"\n\nwhat is sent")
        assert b"content-encoding" not in reply.body.lower()


async def test_composition_checks_the_private_path_and_marks_all_responses() -> None:
    async with the_origin() as peer, serving(composed(peer.name, peer.name)) as running:
        url = running.urls[0]
        assert (await ask(url, get("/private"))).status == 403
        allowed = await ask(url, get("/private", "x-key: sesame"))
        assert (allowed.status, allowed.fields["x-gateway"]) == (200, "composed")
        public = await ask(url, get("/public"))
        assert (public.status, public.fields["x-gateway"]) == (200, "composed")


async def test_rewrite_body_numbers_the_lines_while_they_come() -> None:
    second = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        await receive_until(stream, b"\r\n\r\n")
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\none\ntw"
        )
        await second.wait()
        await stream.send_all(b"o\n\nthree")

    with trio.fail_after(20):
        async with (
            an_origin(handler) as url,
            serving(NumberLines(HttpPeer.parse(url))) as running,
            await connect(running.urls[0]) as stream,
        ):
            await stream.send_all(get())
            received = await receive_until(stream, b"1: one\n")
            assert b"two" not in received
            second.set()
            received += await receive_until(stream, b"0\r\n\r\n")
            body = received.partition(b"\r\n\r\n")[2]
            lines = [line for line in body.splitlines() if b" " in line]
            assert lines == [b"1: one", b"2: two", b"3: ", b"4: three", b"(4 lines)"]


async def test_rewrite_body_leaves_other_types_alone() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 4\r\n\r\na\nb\n"
    with trio.fail_after(20):
        async with (
            an_origin(answering(response)) as url,
            serving(NumberLines(HttpPeer.parse(url))) as running,
        ):
            reply = await ask(running.urls[0])
            assert (reply.fields["content-length"], reply.body) == ("4", b"a\nb\n")


async def test_failover_goes_on_to_the_second_origin() -> None:
    async with the_origin() as peer:
        with runner.nobody() as dead:
            async with serving(Failover([HttpPeer.parse(dead), peer])) as running:
                reply = await ask(
                    running.urls[0],
                    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
                )
                assert (reply.status, reply.fields["x-attempts"]) == (200, "2")
                assert reply.body.endswith(b"\n\nabc")


async def test_failover_gives_up_when_both_are_down() -> None:
    with trio.fail_after(20), runner.nobody() as one, runner.nobody() as two:
        peers = [HttpPeer.parse(one), HttpPeer.parse(two)]
        async with serving(Failover(peers)) as running:
            assert (await ask(running.urls[0])).status == 502
            assert running.statistics().retries == 1


async def test_fan_out_merges_what_the_parts_have_answered() -> None:
    async with the_origin() as peer, serving(FanOut(peer)) as running:
        (url,) = running.urls
        reply = await ask(url, get("/all?one,count"))
        assert (reply.status, reply.fields["content-type"]) == (200, "application/json")
        parts = json.loads(reply.body)
        assert list(parts) == ["one", "count"]
        assert parts["one"].startswith("GET /one\n")
        assert parts["count"] == "one\ntwo\nthree\nfour\nfive\n"
        assert (await ask(url, get("/other"))).body.startswith(b"GET /other\n")
        assert (await ask(url, get("/all?../x"))).status == 400


async def test_fan_out_does_without_a_part_that_fails() -> None:
    with trio.fail_after(20), runner.nobody() as dead:
        async with serving(FanOut(HttpPeer.parse(dead))) as running:
            reply = await ask(running.urls[0], get("/all?one,two"))
            assert json.loads(reply.body) == {"one": None, "two": None}


async def test_hedge_takes_the_answer_of_who_is_faster() -> None:
    left = trio.Event()

    async def never(stream: trio.SocketStream) -> None:
        async for _ in stream:
            pass
        left.set()

    async with (
        the_origin() as peer,
        an_origin(never) as slow,
        serving(Hedging([HttpPeer.parse(slow), peer])) as running,
    ):
        reply = await ask(running.urls[0], get("/a"))
        assert (reply.status, reply.fields["x-attempts"]) == (200, "2")
        assert reply.body.startswith(b"GET /a\n")
        await left.wait()
        statistics = running.statistics()
        assert (statistics.hedges, statistics.hedges_won, statistics.pool.leased) == (1, 1, 0)


async def test_mirror_compares_what_both_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = trio.Event()
    compare = mirror.compare

    def compare_and_tell(mirrored: Mirrored) -> None:
        compare(mirrored)
        told.set()

    monkeypatch.setattr(mirror, "compare", compare_and_tell)
    refuses = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    async with (
        the_origin() as peer,
        an_origin(refuses) as shadow,
        serving(Mirroring(peer, HttpPeer.parse(shadow))) as running,
    ):
        assert (await ask(running.urls[0], get("/a"))).status == 200
        await told.wait()
    assert "GET '/a': 200, mirror 404: DIFFERENT\n" in capsys.readouterr().out


@pytest.mark.parametrize("allowed", [True, False])
async def test_subrequest_asks_before_the_origin_is_asked(allowed: bool) -> None:
    status = b"204 No Content" if allowed else b"401 Unauthorized"
    says = b"HTTP/1.1 %b\r\nServer: guard\r\nWWW-Authenticate: Basic\r\n" % status
    length = b"" if allowed else b"Content-Length: 0\r\n"
    async with (
        the_origin() as peer,
        an_origin(answering(says + length + b"\r\n")) as authority,
        serving(AskBefore(peer, HttpPeer.parse(authority))) as running,
    ):
        request = (
            b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
        )
        reply = await ask(running.urls[0], request)
        if allowed:
            assert reply.status == 200
            assert b"x-checked-by: guard\n" in reply.body
            assert reply.body.endswith(b"\n\nabc")
        else:
            assert (reply.status, reply.fields["www-authenticate"]) == (401, "Basic")


async def test_context_access_log_numbers_requests_and_prints_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with the_origin() as peer, serving(AccessLog(peer)) as running:
        first = await ask(running.urls[0], get("/one"))
        second = await ask(running.urls[0], get("/two"))
        number = int(first.fields["x-request-id"])
        assert second.fields["x-request-id"] == str(number + 1)
        assert f"x-request-id: {number}\n".encode() in first.body
        await running.drain()
    lines = capsys.readouterr().out.splitlines()
    assert f"GET /one -> 200, {len(first.body)} bytes, " in lines[0]
    assert lines[0].startswith(f"#{number} 127.0.0.1:")
    assert lines[0].endswith(" ms, new connection")
    assert lines[1].startswith(f"#{number + 1} ")
    assert lines[1].endswith(" ms, reused connection")


@pytest.mark.parametrize(("credentials", "status"), [("Basic ZGVtbzpkZW1v", 200), ("", 407)])
async def test_connect_proxy_shows_what_the_proxy_answered(
    credentials: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with the_origin() as peer, trio.open_nursery() as nursery:
        proxy = await nursery.start(serve_connect, "127.0.0.1:0")
        egress = Egress(through(f"http://{peer}", proxy, credentials))
        async with serving(egress) as running:
            reply = await ask(running.urls[0], get("/a"))
            if status == 200:
                assert (reply.status, reply.fields["x-tunnel"]) == (200, "200")
                assert reply.body.startswith(b"GET /a\n")
            else:
                assert reply.status == 502
                assert f"{egress.peer}: the proxy answered 407" in capsys.readouterr().err
        nursery.cancel_scope.cancel()


async def test_trusted_proxies_are_believed(capsys: pytest.CaptureFixture[str]) -> None:
    async with the_origin() as peer, serving(TrustedProxies(peer)) as running:
        told = "X-Forwarded-For: 6.6.6.6, 203.0.113.9"
        reply = await ask(running.urls[0], get("/hello", told))
        assert b"X-Forwarded-For: 203.0.113.9, 127.0.0.1\n" in reply.body
        assert b"\nVia: 1.1 gateway\n" in reply.body
        assert b"Forwarded: for=203.0.113.9, for=127.0.0.1;proto=http;host=" in reply.body
        await running.drain()
    assert capsys.readouterr().out.startswith("203.0.113.9 asked for http://")


async def test_request_ids_are_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    async with the_origin() as peer, serving(RequestIds(peer)) as running:
        reply = await ask(running.urls[0], get("/hello", "X-Request-Id: forged"))
        identifier = reply.fields["x-request-id"]
        assert f"\nX-Request-Id: {identifier}\n".encode() in reply.body
        assert b"forged" not in reply.body
        await running.drain()
    assert capsys.readouterr().out.startswith(f"{identifier} GET /hello, Host: ")


async def test_security_headers_are_added() -> None:
    async with the_origin() as peer, serving(Careful(peer)) as running:
        reply = await ask(running.urls[0], get("/hello"))
        assert reply.fields["x-frame-options"] == "DENY"
        assert reply.fields["content-security-policy"] == "default-src 'self'"
        assert "strict-transport-security" not in reply.fields  # that takes TLS
        assert "server" not in reply.fields


async def test_cors_lets_pages_of_some_sites_read() -> None:
    async with the_origin() as peer, serving(Shared(peer)) as running:
        url, field = running.urls[0], "access-control-allow-origin"
        reply = await ask(url, get("/hello", "Origin: https://www.app.example"))
        assert reply.fields[field] == "https://www.app.example"
        assert field not in (await ask(url, get("/hello", "Origin: https://x.example"))).fields
        asks = ("Origin: https://app.example", "Access-Control-Request-Method: PUT")
        reply = await ask(url, get("/hello", *asks, method="OPTIONS"))
        assert (reply.status, reply.body) == (204, b"")
        assert reply.fields["access-control-allow-methods"] == "GET, POST, PUT"


async def test_api_keys_let_their_owners_on() -> None:
    async with the_origin() as peer, serving(ApiKeys(peer)) as running:
        url = running.urls[0]
        reply = await ask(url, get("/hello", f"X-Api-Key: {KEYS['bob']}", "X-Client: ann"))
        assert b"\nX-Client: bob\n" in reply.body
        assert b"key" not in reply.body.lower()
        assert (await ask(url, get("/hello"))).status == 401
        assert (await ask(url, get("/healthz"))).status == 200


async def test_basic_auth_lets_users_on() -> None:
    async with the_origin() as peer, serving(Den(peer)) as running:
        url = running.urls[0]
        reply = await ask(url, get("/hello", "Authorization: Basic YW5uOnNlc2FtZQ=="))
        assert b"\nX-User: ann\n" in reply.body
        assert b"Basic" not in reply.body
        reply = await ask(url, get("/hello", "Authorization: Basic YW5uOndyb25n"))
        assert reply.status == 401
        assert reply.fields["www-authenticate"].startswith('Basic realm="the den"')


async def test_bearer_jwt_lets_good_tokens_on() -> None:
    key: dict[str, str | list[str]] = {
        "kty": "oct",
        "k": "c2VjcmV0IG9mIGF0IGxlYXN0IDMyIGJ5dGVzLCBpdCBpcyE",
    }
    async with the_origin() as peer, serving(Tokens(peer, key)) as running:
        url = running.urls[0]
        good, bad = a_token(key, sub="ann"), a_token(key, sub="ann", aud="another")
        reply = await ask(url, get("/hello", f"Authorization: Bearer {good}"))
        assert b"\nX-User: ann\n" in reply.body
        assert (await ask(url, get("/hello", f"Authorization: Bearer {bad}"))).status == 401
        assert (await ask(url, get("/hello"))).status == 401


async def test_forward_auth_asks_first() -> None:
    async with the_origin() as peer, trio.open_nursery() as nursery:
        service = HttpPeer.parse(await nursery.start(serve_auth, "127.0.0.1:0"))
        async with serving(AskFirst(peer, service)) as running:
            url = running.urls[0]
            reply = await ask(url, get("/hello", "Cookie: session=of-ann", "X-User: root"))
            assert b"\nx-user: ann\n" in reply.body
            assert b"root" not in reply.body
            reply = await ask(url, get("/hello"))
            assert reply.status == 302
            assert reply.fields["location"] == "https://login.example/?to=/hello"
        nursery.cancel_scope.cancel()


async def test_part_of_a_site_is_below_its_path() -> None:
    response = (
        b"HTTP/1.1 302 Found\r\nLocation: %s/done\r\nSet-Cookie: a=b; Path=/\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    url = ""

    async def handler(stream: trio.SocketStream) -> None:
        assert (await receive_until(stream, b"\r\n\r\n")).startswith(b"GET /cart HTTP/1.1\r\n")
        await stream.send_all(response % url.encode())

    with trio.fail_after(20):
        async with an_origin(handler) as url, serving(Shop(url)) as running:
            reply = await ask(running.urls[0], get("/shop/cart"))
            assert reply.fields["location"] == "/shop/done"
            assert reply.fields["set-cookie"] == "a=b; Path=/shop; HttpOnly; SameSite=Lax"
            assert (await ask(running.urls[0], get("/cart"))).status == 404


async def tunnelled(url: str, target: str) -> Reply:
    """Ask for a tunnel; where it is there, send a request through it."""
    async with await connect(url) as stream:
        await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        if not head.startswith(b"HTTP/1.1 200 "):
            return Reply(head)
        await stream.send_all(get("/a"))
        return Reply(await receive_all(stream))


async def test_forward_proxy_makes_tunnels_to_what_is_allowed_and_tells_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with the_origin() as peer:
        allowed = forward_proxy.conf(str(peer))
        conf = {"allow_connect": allowed.allow_connect, "h2c": allowed.h2c}
        async with serving(forward_proxy.ForwardProxy(), **conf) as running:
            (url,) = running.urls
            reply = await tunnelled(url, str(peer))
            assert reply.body.startswith(b"GET /a\n")
            assert (await tunnelled(url, "127.0.0.2:80")).status == 403
            assert (await ask(url)).status == 405
            await running.drain()
    (line,) = capsys.readouterr().out.splitlines()
    size = len(reply.raw)
    assert f" -> {peer}: {len(get('/a'))} bytes there, {size} bytes back" in line


async def test_forward_proxy_runs_by_name_until_a_signal() -> None:
    with trio.fail_after(30):
        async with Program.start("examples", "forward_proxy") as program:
            target = await program.until(r"(127\.0\.0\.1:\d+)/hello", out=True)
            url = await program.until(r"listening on (\S+)\n")
            assert (await tunnelled(url, target)).body.startswith(b"GET /a\n")
            await program.until(r"bytes back", out=True)
            assert await program.ends(signal.SIGINT) == 0
            assert f"--proxy {url} http://{target}/hello" in program.out
            assert "Traceback" not in program.err


async def test_inside_trio_app_forwards() -> None:
    async with the_origin() as peer, serving(Forward(peer)) as running:
        assert (await ask(running.urls[0], get("/a"))).body.startswith(b"GET /a\n")


async def test_retry_backoff_asks_again_until_the_origin_is_not_busy() -> None:
    asked = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal asked
        await receive_until(stream, b"\r\n\r\n")
        asked += 1
        status = b"200 OK" if asked == 3 else b"503 Service Unavailable"
        await stream.send_all(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    with trio.fail_after(20):
        async with (
            an_origin(handler) as url,
            serving(Patient(HttpPeer.parse(url))) as running,
        ):
            reply = await ask(running.urls[0])
            assert (reply.status, reply.fields["x-attempts"]) == (200, "3")


async def test_retry_backoff_gives_up_in_the_end() -> None:
    response = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with trio.fail_after(20):
        async with (
            an_origin(answering(response)) as url,
            serving(Patient(HttpPeer.parse(url))) as running,
        ):
            reply = await ask(running.urls[0])
            assert (reply.status, reply.fields["x-attempts"]) == (503, "4")


# -- TLS and HTTP/2 --------------------------------------------------------------------------------


@asynccontextmanager
async def over_tls(
    url: str, directory: Path, name: str | None, *alpn: str, own: str | None = None
) -> AsyncIterator[TlsWire]:
    """Open TLS with an example, which must have a certificate of this directory's authority."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    context.set_alpn_protocols(list(alpn) or ["http/1.1"])
    if own is not None:
        context.load_cert_chain(directory / f"{own}.pem")
    async with await connect(url.replace("https:", "http:")) as sock:
        tls = TlsWire.wrap(trio.StapledStream(sock, sock), context, server_name=name)
        await tls.handshake()
        yield tls


@asynccontextmanager
async def over_h2(url: str) -> AsyncIterator[H2Peer]:
    """Speak HTTP/2 in clear text with an example."""
    async with await connect(url) as sock, trio.open_nursery() as nursery:
        peer = H2Peer(H2Wire(trio.StapledStream(sock, sock), client=True))
        nursery.start_soon(peer.run)
        yield peer
        nursery.cancel_scope.cancel()


async def got(tls: TlsWire, target: str, *fields: str) -> bytes:
    """Send a GET over HTTP/1.1 that ends its connection, and return the answer."""
    await tls.send_all(get(target, *fields))
    data = bytearray()
    while piece := await tls.receive_some():
        data += piece
    return bytes(data)


async def test_tls_gateway_has_a_certificate_for_each_name_and_reads_them_again(
    tmp_path: Path,
) -> None:
    make(tmp_path, "one.test", "two.test")
    served = tls_gateway.settings(tmp_path)
    async with (
        the_origin() as peer,
        serving(tls_gateway.TlsGateway(peer), tls=served) as running,
    ):
        (url,) = running.urls
        for name in ("one.test", "two.test"):
            async with over_tls(url, tmp_path, name) as tls:
                reply = await got(tls, "/hello", f"Host: {name}")
                assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
                assert f"\r\nx-tls: {name} TLSv1.3\r\n".encode() in reply
        async with over_tls(url, tmp_path, "one.test") as tls:
            assert (await got(tls, "/", "Host: two.test")).startswith(b"HTTP/1.1 421 ")
        make(tmp_path, "one.test", "two.test")
        with pytest.raises(ssl.SSLCertVerificationError):
            async with over_tls(url, tmp_path, "two.test"):
                pass
        assert running.reload()
        async with over_tls(url, tmp_path, "two.test") as tls:
            assert b"\r\nx-tls: two.test " in await got(tls, "/", "Host: two.test")


async def test_mtls_tells_the_origin_who_the_client_is(tmp_path: Path) -> None:
    make(tmp_path, "localhost", "me@example.test")
    async with (
        the_origin() as peer,
        serving(mtls.Mtls(peer), **attrs.asdict(mtls.conf(tmp_path), recurse=False)) as running,
    ):
        (url,) = running.urls
        forged = "X-Client-Subject: CN=root"
        async with over_tls(url, tmp_path, "localhost", own="me@example.test") as tls:
            reply = await got(tls, "/", forged, "Host: localhost")
            assert b"\nx-client-subject: O=Examples,OU=trioproxy,CN=me@example.test\n" in reply
            assert reply.lower().count(b"x-client-subject") == 1
        async with over_tls(url, tmp_path, "localhost", own="me@example.test") as tls:
            reply = await got(tls, "/", forged.replace("-", "_"), "Host: localhost")
            assert reply.startswith(b"HTTP/1.1 400 ")
        async with over_tls(url, tmp_path, "localhost") as tls:  # TLS 1.3 tells a moment later
            with pytest.raises((ssl.SSLError, trio.BrokenResourceError)):
                await got(tls, "/", "Host: localhost")


async def test_mtls_refuses_who_came_without_a_certificate(tmp_path: Path) -> None:
    async with the_origin() as peer, serving(mtls.Mtls(peer)) as running:
        assert (await ask(running.urls[0])).status == 403


async def test_h2_to_h1_carries_many_requests_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    async with (
        the_origin() as peer,
        serving(h2_to_h1.Versions(peer), h2c=h2_to_h1.CONF.h2c) as running,
        over_h2(running.urls[0]) as client,
    ):
        numbers = [await client.request("GET", f"/{n}", authority="site.test") for n in range(20)]
        for n, number in enumerate(numbers):
            message = await client.response(number)
            assert message.get("x-versions") == "HTTP/2 from the client, HTTP/1.1 to the origin"
            assert message.body.startswith(b"GET /%d\nHost: site.test\n" % n)
        first = await ask(running.urls[0])
        assert first.fields["x-versions"].startswith("HTTP/1.1 from the client")


@asynccontextmanager
async def routing() -> AsyncIterator[H2Peer]:
    """Run the router before two origins, and a client before it."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            urls = [await nursery.start(serve_grpc, "127.0.0.1:0") for _ in range(2)]
            async with (
                serving(
                    grpc_router.router(*urls), **attrs.asdict(grpc_router.CONF, recurse=False)
                ) as running,
                over_h2(running.urls[0]) as client,
            ):
                yield client
            nursery.cancel_scope.cancel()


async def call(client: H2Peer, method: str, *messages: bytes) -> H2Message:
    """Call a method with messages of bytes."""
    body = b"".join(b"\0" + len(each).to_bytes(4, "big") + each for each in messages)
    fields = [("content-type", "application/grpc"), ("te", "trailers")]
    return await client.response(await client.request("POST", f"/{method}", fields, body=body))


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("demo.Echo/Say", "demo.Echo"),
        ("demo.Echo/Shout", "demo.Echo/Shout"),
        ("demo.Other/Say", "demo.Other"),
    ],
)
async def test_grpc_router_routes_by_service_and_method(method: str, route: str) -> None:
    async with routing() as client:
        message = await call(client, method, b"hello", b"again")
        assert (message.status, message.get("x-routed-by")) == (200, route)
        assert message.body == b"\0\0\0\0\5hello\0\0\0\0\5again"
        assert (b"grpc-status", b"0") in (message.trailers or [])


async def test_grpc_router_says_that_nobody_has_a_service() -> None:
    async with routing() as client:
        message = await call(client, "demo.Nobody/Say", b"hello")
        assert (message.status, message.get("grpc-status"), message.body) == (200, "12", b"")


async def test_grpc_router_uses_the_origin_of_the_route() -> None:
    with trio.fail_after(20), runner.nobody() as dead:
        async with trio.open_nursery() as nursery:
            alive = await nursery.start(serve_grpc, "127.0.0.1:0")
            async with (
                serving(grpc_router.router(dead, alive), h2c=True) as running,
                over_h2(running.urls[0]) as client,
            ):
                assert (await call(client, "demo.Echo/Say")).status == 502
                assert (await call(client, "demo.Echo/Shout")).status == 200
            nursery.cancel_scope.cancel()


# -- the cache -------------------------------------------------------------------------------------


@asynccontextmanager
async def a_cacheable_origin() -> AsyncIterator[HttpPeer]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            yield HttpPeer.parse(await nursery.start(serve_cacheable, "127.0.0.1:0"))
            nursery.cancel_scope.cancel()


def from_cache(reply: Reply) -> bool:
    return ";hit" in reply.fields.get("cache-status", "")


async def test_caching_gateway_asks_the_origin_once(capsys: pytest.CaptureFixture[str]) -> None:
    async with (
        a_cacheable_origin() as peer,
        serving(caching_gateway.gateway(peer)) as running,
    ):
        first = await ask(running.urls[0], get("/page?max-age=60"))
        again = await ask(running.urls[0], get("/page?max-age=60"))
        other = await ask(running.urls[0], get("/page?no-store"))
        assert first.fields["cache-status"] == "trioproxy;fwd=uri-miss;stored"
        assert from_cache(again)
        assert "age" in again.fields
        assert first.body == again.body
        assert other.body.startswith(b"/page: answer 2\n")
        await running.drain()
    shown = capsys.readouterr().out
    assert shown == "/page: miss\n/page: hit\n/page: disabled (OriginNotCache)\n"


async def test_per_user_key_keeps_users_and_languages_apart() -> None:
    async with a_cacheable_origin() as peer, serving(per_user_key.gateway(peer)) as running:
        target = "/inbox?max-age=60"
        requests = [
            (
                name,
                language,
                get(target, f"Cookie: session={cookie}", f"Accept-Language: {language}"),
            )
            for cookie, name in (("a1", "alice"), ("b2", "bob"))
            for language in ("de", "en")
        ]
        for again in (False, True):
            for name, language, request in requests:
                reply = await ask(running.urls[0], request)
                assert f"\nuser: {name}\nlanguage: {language}\n".encode() in reply.body
                assert from_cache(reply) == again
        forged = get(target, "X-User: alice")
        assert (await ask(running.urls[0], forged)).status == 401


async def test_c_14_a_purge_that_nobody_takes_goes_to_the_origin() -> None:
    async with (
        a_cacheable_origin() as peer,
        serving(caching_gateway.gateway(peer)) as running,
    ):
        url, target = running.urls[0], "/page?max-age=60,must-revalidate"
        first = await ask(url, get(target))
        passed_on = await ask(url, get(target, method="PURGE"))
        assert passed_on.body.startswith(b"/page: answer 2\n")
        assert "cache-status" not in passed_on.fields
        again = await ask(url, get(target))
        # It was no safe method, so that what was stored has gone (RFC 9111 section 4.4).
        assert first.body.startswith(b"/page: answer 1\n")
        assert again.body.startswith(b"/page: answer 3\n")


async def test_c_14_purge_wants_the_token_and_forgets_one_or_all_of_a_tag() -> None:
    async with a_cacheable_origin() as peer, serving(purge.gateway(peer, "secret")) as running:
        url = running.urls[0]
        one, two = "/news/1?max-age=60", "/news/2?max-age=60"
        token = "Authorization: Bearer secret"

        async def stored() -> list[bool]:
            return [from_cache(await ask(url, get(target))) for target in (one, two)]

        assert await stored() == [False, False]
        for given in ("X: y", "Authorization: Bearer wrong"):
            assert (await ask(url, get(one, given, method="PURGE"))).status == 403
        assert await stored() == [True, True]
        assert (await ask(url, get(one, token, method="PURGE"))).status == 200
        assert (await ask(url, get(one, token, method="PURGE"))).status == 404
        assert await stored() == [False, True]
        tagged = await ask(url, get("/", token, "Cache-Tag: News", method="PURGE"))
        assert tagged.body == b"2 gone\n"
        assert await stored() == [False, False]


async def test_stale_on_error_serves_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    async with a_cacheable_origin() as peer, serving(stale_on_error.gateway(peer)) as running:
        url = running.urls[0]
        lax, strict = get("/page?max-age=0"), get("/page?max-age=0,must-revalidate")
        assert (await ask(url, lax)).body.startswith(b"/page: answer 1\n")
        assert (await ask(url, strict)).body.startswith(b"/page: answer 2\n")
        assert "x-stale" not in (await ask(url, lax)).fields  # the origin says 304
        assert (await ask(url, get("/break", method="POST"))).status == 200
        stale = await ask(url, lax)
        assert stale.body.startswith(b"/page: answer 1\n")
        assert stale.fields["x-stale"] == "the origin cannot be asked"
        assert (await ask(url, strict)).status == 502
        assert (await ask(url, get("/mend", method="POST"))).status == 200
        assert "x-stale" not in (await ask(url, lax)).fields
    assert "/page: stale, as Upstream" in capsys.readouterr().out


async def test_image_origin_cuts_ranges_out_of_what_is_stored(tmp_path: Path) -> None:
    async with a_cacheable_origin() as peer:
        images = image_origin.gateway(peer, str(tmp_path))
        async with serving(images) as running:
            target, part = "/photo.png?max-age=60", "Range: bytes=1000-1999"
            first = await ask(running.urls[0], get(target, part))
            again = await ask(running.urls[0], get(target, part))
            for reply in (first, again):
                assert (reply.status, reply.body) == (206, IMAGE[1000:2000])
                assert reply.fields["content-range"] == "bytes 1000-1999/100000"
            assert [from_cache(first), from_cache(again)] == [False, True]
            assert (await ask(running.urls[0], get(target))).body == IMAGE
            text = [await ask(running.urls[0], get("/page?max-age=60")) for _ in range(2)]
            assert text[0].body != text[1].body
        assert images.shared_cache is not None
        await images.shared_cache.storage.aclose()


def test_certificates_are_made_by_hand_as_well(tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    program = Path(runner.__file__).with_name("_certificates.py")
    subprocess.run([sys.executable, program, directory, "localhost", "one.test"], check=True)
    assert sorted(path.name for path in directory.iterdir()) == [
        "ca.pem", "localhost.pem", "one.test.pem",
    ]  # fmt: skip
    assert directory.stat().st_mode & 0o077 == 0


# -- the demo --------------------------------------------------------------------------------------


async def test_the_demo_shows_every_step_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(20):
        assert await runner.demo(once=True) == 0
    shown = capsys.readouterr().out
    assert "WRONG" not in shown
    assert f"All {len(runner.STEPS)} replies came back right." in shown
    for step in runner.STEPS:
        assert step.title in shown
        for line in step.lines:
            assert line in shown
    assert "logging: GET '/healthz' 200, without the origin" in shown


async def test_the_demo_notices_a_gateway_that_is_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with trio.fail_after(20):
        assert await runner.demo(once=True, gateway=Broken) == 1
    shown = capsys.readouterr().out
    assert "WRONG: the line 'x-served-by: gateway' is missing (response_filter)" in shown
    assert "WRONG: the field 'server' is still there" in shown
    assert "4 of 6 replies did not come back right." in shown


async def test_the_demo_notices_a_second_address_without_http2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "examples.__main__.TlsSettings", lambda path: TlsSettings(path, alpn=("http/1.1",))
    )
    with trio.fail_after(20):
        assert await runner.demo(once=True) == 1
    assert "WRONG: NoHttp2: ALPN agreed on http/1.1" in capsys.readouterr().out


def test_without_trustme_the_demo_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    monkeypatch.delitem(sys.modules, "examples._certificates", raising=False)
    with pytest.raises(SystemExit) as caught:
        runner.main(["--once"])
    assert caught.value.code == 1
    assert "pip install 'trioproxy[selfsigned]'" in capsys.readouterr().out


def test_the_environment_can_break_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIOPROXY_DEMO_BREAK", "1")
    assert runner.main(["--once"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_demo_stays_up_until_a_signal(number: signal.Signals) -> None:
    with trio.fail_after(30):
        async with Program.start("examples") as program:
            url = await program.until(r"Ask the gateway (\S+) from another", out=True)
            await program.until("as requests come:\n", out=True)
            assert (await ask(url, get("/healthz"))).body == b"fine\n"
            await program.until(r"GET '/healthz' 200, without the origin\n$", out=True)
            assert await program.ends(number) == 0
            assert program.out.endswith("Stopped.\n")
            assert program.err == ""


async def test_the_demo_ends_clean_on_a_signal_in_the_middle() -> None:
    with trio.fail_after(30):
        async with Program.start("examples", "--once") as program:
            await program.until("An origin runs", out=True)
            assert await program.ends(signal.SIGINT) == 0
            assert program.err == ""


# -- examples by name ------------------------------------------------------------------------------


def test_the_list_has_a_line_for_every_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.rstrip().endswith(".") and len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope"], f"there is no example 'nope': one of {', '.join(NAMES)} is right"),
        (["_origin"], "there is no example '_origin': one of"),
        (["add_header", "--once"], "--once is for the demo"),
        (["add_header", "failover"], "unrecognized arguments: failover"),
        (["--twice"], "--twice"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        runner.main(arguments)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert expected in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "expected_field", "expected_output"),
    [
        ("body_guard", "Server: origin", "$ curl -i http://127.0.0.1:"),
        ("caching_gateway", "Cache-Tag: hello", "/hello: disabled (OriginNotCache)\n"),
        ("connect_proxy", "x-tunnel: 200", "$ curl -i http://127.0.0.1:"),
        ("context_access_log", "x-request-id: 1", "GET /hello -> 200"),
        ("cors", "Vary: Origin", "-H 'Origin: https://www.app.example'"),
        ("failover", "x-attempts: 2", "$ curl -i http://127.0.0.1:"),
        ("hedge", "x-attempts: 1", "$ curl -i http://127.0.0.1:"),
        ("mirror", "Server: origin", "$ curl -i -d 'the same for both' http://127.0.0.1:"),
        ("subrequest", "Server: origin", "$ curl -i http://127.0.0.1:"),
        ("h2_to_h1", "x-versions: HTTP/1.1 from the client, HTTP/1.1 to the origin", "$ curl -i "),
        ("inside_trio_app", "Server: origin", "the program goes on without it\n"),
        ("sse_filter", "Server: origin", "$ curl -N http://127.0.0.1:"),
    ],
)
async def test_an_example_by_name_runs_with_its_own_origin_until_a_signal(
    name: str, expected_field: str, expected_output: str
) -> None:
    with trio.fail_after(30):
        async with Program.start("examples", name) as program:
            url = await program.until(r"listening on (\S+)\n")
            reply = await ask(url, get("/hello"))
            assert reply.status == 200
            assert f"\r\n{expected_field}\r\n".encode() in reply.raw
            assert await program.ends(signal.SIGINT) == 0
            assert expected_output in program.out
            assert "Traceback" not in program.err


@pytest.mark.parametrize(
    ("name", "scheme", "shown"),
    [
        ("custom_protocol", "https", r"talk 127.0.0.1:\d+ /\S+/ca.pem \"hello, room 7\""),
        ("grpc_router", "http", r"'te: trailers' http://127.0.0.1:\d+/demo.Echo/Say"),
        ("grpc_web_page", "http", r"grpc-web' http://127.0.0.1:\d+/demo.Echo/Say"),
        ("image_origin", "http", r"-r 1000-1999 'http://127.0.0.1:\d+/photo.png"),
        ("proxy_protocol", "http", r"curl -i --haproxy-protocol http://127.0.0.1:\d+/hello"),
        ("mtls", "https", r"curl -i --cacert /\S+/ca.pem --cert /\S+.pem https://127.0.0.1:\d+/"),
        ("sni_router", "tcp", r"curl -k --connect-to ::127.0.0.1:\d+ https://two.test/hello\n"),
        ("tcp_proxy", "tcp", r"curl -i http://127.0.0.1:\d+/hunter2\n"),
        ("tls_gateway", "https", r"--cacert /\S+/ca.pem --connect-to ::127.0.0.1:\d+ https://two"),
    ],
)
async def test_an_example_that_is_not_for_plain_http1_starts_and_says_what_to_try(
    name: str, scheme: str, shown: str
) -> None:
    with trio.fail_after(30):
        async with Program.start("examples", name) as program:
            assert (await program.until(r"listening on (\S+)\n")).startswith(f"{scheme}://")
            assert await program.ends(signal.SIGINT) == 0
            assert re.search(shown, program.out), program.out
            assert "Traceback" not in program.err


async def test_server_sent_events_are_numbered_one_by_one() -> None:
    async with (
        the_origin() as peer,
        serving(NumberEvents(peer)) as running,
        await connect(running.urls[0]) as stream,
    ):
        await stream.send_all(get("/events"))
        shown = await receive_until(stream, b"id: 1\ndata: one\n\n")
        assert b"three" not in shown  # it came while the rest was still to come
        shown += await receive_until(stream, b"id: 3\ndata: three\n\n")
        assert [shown.count(b"id: %d\n" % number) for number in (1, 2, 3)] == [1, 1, 1]


async def test_sse_filter_keeps_some_back_and_numbers_the_rest() -> None:
    async with (
        the_origin() as peer,
        serving(FilterEvents(peer)) as running,
        await connect(running.urls[0]) as stream,
    ):
        await stream.send_all(get("/events"))
        shown = await receive_until(stream, b"id: 1\ndata: one\n\n")
        shown += await receive_until(stream, b"id: 2\ndata: three\n\n")
        assert b"two" not in shown


@pytest.mark.parametrize(
    ("target", "kind", "size", "status"),
    [
        ("/", "application/json", 65536, 200),
        ("/", "application/json", 65537, 413),
        ("/", "image/png", 65537, 200),
        ("/import", "application/json", 65537, 200),
        ("/", "text/plain", 1, 415),
        ("/", "application/json", 0, 400),
    ],
)
async def test_body_guard_takes_json_and_images_up_to_a_size(
    target: str, kind: str, size: int, status: int
) -> None:
    async with the_origin() as peer, serving(body_guard.Guarded(peer)) as running:
        fields = (f"Content-Type: {kind}", f"Content-Length: {size}")
        request = get(target, *fields, method="POST") + bytes(size)
        assert (await ask(running.urls[0], request)).status == status


@pytest.mark.parametrize("kind", [BINARY, TEXT])
async def test_grpc_web_page_lets_the_page_call_the_origin(kind: str) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            page = grpc_web_page.gateway(await nursery.start(serve_grpc, "127.0.0.1:0"))
            async with serving(page) as running:
                shown = await ask(running.urls[0], get("/"))
                assert shown.body == grpc_web_page.PAGE
                content = asked(kind, b"hello")
                fields = (f"Content-Type: {kind}", f"Content-Length: {len(content)}")
                request = get("/demo.Echo/Say", *fields, method="POST") + content
                async with await connect(running.urls[0]) as stream:
                    await stream.send_all(request)
                    response = await Wire(trio.StapledStream(stream, stream)).message()
                assert decoded(response) == ([b"hello"], {"grpc-status": "0"})
            nursery.cancel_scope.cancel()


async def test_behind_a_balancer_the_client_is_who_the_header_says_and_nobody_else_gets_in() -> (
    None
):
    conf = attrs.asdict(proxy_protocol.CONF, recurse=False)
    line = b"PROXY TCP4 203.0.113.7 203.0.113.9 40000 80\r\n"
    async with (
        the_origin() as peer,
        serving(proxy_protocol.BehindBalancer(peer), **conf) as running,
    ):
        (url,) = running.urls
        reply = await ask(url, line + get("/", "X-Forwarded-For: 10.0.0.1"))
        assert reply.fields["x-client"] == "203.0.113.7:40000"
        assert reply.fields["x-load-balancer"].startswith("127.0.0.1:")
        assert b"\nX-Forwarded-For: 203.0.113.7\n" in reply.body
        assert (await ask(url, get("/"))).raw == b""
    stranger = ConnectionInfo(None, "198.51.100.1:1")
    chosen = proxy_protocol.CONF.connection_filter
    assert chosen is not None
    assert not await chosen.should_accept(stranger)


async def test_the_guard_takes_whole_requests_of_a_bounded_size() -> None:
    async with (
        the_origin() as peer,
        serving(Guard(peer), **attrs.asdict(CONF, recurse=False)) as running,
    ):
        (url,) = running.urls
        for size, status in ((5, 200), (MOST, 200), (MOST + 1, 413)):
            head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            assert (await ask(url, head % size + bytes(size))).status == status


async def test_a_custom_protocol_is_filtered_message_by_message(tmp_path: Path) -> None:
    make(tmp_path, "localhost")
    listener = custom_protocol.listener("127.0.0.1:0", tmp_path)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            peer = custom_protocol.peer(await nursery.start(serve_chat, "127.0.0.1:0"))
            running = await nursery.start(trioproxy.serve, custom_protocol.Chat(peer), listener)
            address = running.urls[0].removeprefix("https://")
            heard = await talk_over_tls(
                address, str(tmp_path / "ca.pem"), b"hello, room 7", b"secret plans"
            )
            nursery.cancel_scope.cancel()
    assert heard == [
        b"the gateway says: welcome",
        b"HELLO, ROOM 7",
        b"GOODBYE",
        b"closed with 200",
    ]


async def test_the_websocket_filter_replaces_drops_and_tells_everybody() -> None:
    async with (
        the_origin() as peer,
        serving(Polite(peer)) as running,
        connect_websocket(running.urls[0].replace("http", "ws", 1)) as one,
        connect_websocket(running.urls[0].replace("http", "ws", 1)) as two,
    ):
        assert [await one.recv(), await one.recv(), await two.recv()] == [
            "1 here",
            "2 here",
            "2 here",
        ]
        await one.send("/quit")
        await one.send("hello darn world")
        assert await one.recv() == "hello d*** world"
        await two.aclose()
        assert await one.recv() == "1 here"


async def test_the_websocket_gateway_counts_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    async with the_origin() as peer, serving(WebSockets(peer)) as running:
        fields = ("Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
        opening = get("/private/chat", *fields).replace(b"close", b"upgrade")
        assert (await ask(running.urls[0], opening)).status == 403
        async with await connect(running.urls[0]) as stream:
            await stream.send_all(opening.replace(b"/private", b""))
            await receive_until(stream, b"\r\n\r\n")
            await stream.send_all(b"\x81\x85\0\0\0\0hello")
            assert await receive_until(stream, b"hello") == b"\x81\x05hello"
            await stream.send_all(b"\x88\x80\0\0\0\0")
            assert await receive_until(stream, b"\x88\0")
    assert "/chat: 17 bytes to the origin, 9 bytes back" in capsys.readouterr().out


# -- below HTTP ------------------------------------------------------------------------------------


async def test_the_sni_router_passes_tls_on_by_the_name_it_asks_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            urls = {
                name: await nursery.start(serve_tls, "127.0.0.1:0", name)
                for name in ("one.test", "two.test")
            }
            peers = {
                name: StreamPeer.parse(url.replace("http:", "tcp:")) for name, url in urls.items()
            }
            async with serving(SniRouter(peers)) as running:
                where = running.urls[0].replace("tcp:", "http:")
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                for name in ("two.test", "one.test", "two.test"):
                    stream = trio.SSLStream(
                        await connect(where), context, server_hostname=name, https_compatible=True
                    )
                    await stream.send_all(get("/hello"))
                    reply = await receive_until(stream, b"/hello\n")
                    assert reply.endswith(f"{name} got GET /hello\n".encode())
                    await stream.aclose()
                stranger = trio.SSLStream(
                    await connect(where), context, server_hostname="three.test"
                )
                with pytest.raises(trio.BrokenResourceError):
                    await stranger.do_handshake()
                await trio.aclose_forcefully(stranger)
                async with await connect(where) as plain:
                    await plain.send_all(get())
                    with contextlib.suppress(trio.BrokenResourceError):
                        assert await plain.receive_some() == b""
                await running.drain()
            nursery.cancel_scope.cancel()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert sum(line.endswith(" 0 back") for line in lines) == 2


async def test_the_tcp_proxy_strikes_the_secret_out_of_the_reply() -> None:
    async with the_origin() as peer:
        proxy = StrikeOut(StreamPeer.parse(f"tcp://{peer}"))
        async with serving(proxy) as running:
            where = running.urls[0].replace("tcp:", "http:")
            reply = await ask(where, get("/hunter2"))
            assert reply.status == 200
            assert reply.body.startswith(b"GET /*******\n")
            assert b"hunter2" not in reply.raw


@pytest.mark.parametrize("size", range(1, 9))
def test_the_secret_is_struck_out_however_it_is_cut(size: int) -> None:
    text = b"hunter2 h hunter hunthunter2hunter2"
    proxy = StrikeOut(StreamPeer("127.0.0.1", 1))
    ctx, chunk, out = proxy.new_ctx(), BodyChunk(), b""
    session: Any = None
    for start in range(0, len(text), size):
        chunk.data = text[start : start + size]
        proxy.upstream_data_filter(session, chunk, False, ctx)
        assert len(ctx.data) < len(b"hunter2")
        out += chunk.data or b""
    last = BodyChunk()
    proxy.upstream_data_filter(session, last, True, ctx)
    assert out + (last.data or b"") == text.replace(b"hunter2", b"*******")
