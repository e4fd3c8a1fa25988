from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

from examples.__main__ import nobody
from tests.server._network import (
    Handler,
    Reply,
    an_origin,
    answering,
    ask,
    connect,
    get,
    mirror,
    receive_all,
    receive_until,
    serving,
)
from trioproxy import ErrorSource, ErrorType, HttpPeer, ProxyError
from trioproxy.server._reverse import Reverse, failure_status

pytestmark = pytest.mark.socket


async def through(
    handler: Handler, request: bytes, *, rewrite_host: bool = False, **conf: Any
) -> Reply:
    """Send a request through ``reverse`` to an origin."""
    with trio.fail_after(10):
        async with an_origin(handler) as url:
            proxy = Reverse([HttpPeer.parse(url)], rewrite_host=rewrite_host)
            async with serving(proxy, **conf) as running:
                return await ask(running.urls[0], request)


async def asked(request: bytes, *, rewrite_host: bool = False, **conf: Any) -> list[str]:
    """Return the lines of the head that the origin got, in lower case."""
    reply = await through(mirror, request, rewrite_host=rewrite_host, **conf)
    assert reply.status == 200
    return reply.body.decode("latin-1").lower().strip().split("\r\n")


# -- towards the origin ----------------------------------------------------------------------------


async def test_the_forwarding_fields_are_set_anew() -> None:
    lines = await asked(
        get(
            "/",
            "X-Forwarded-For: 10.0.0.1",
            "x-forwarded-for: 10.0.0.2",
            "X-FORWARDED-PROTO: https",
            "X-Forwarded-Host: forged.test",
        )
    )
    forwarded = sorted(line for line in lines if line.startswith("x-forwarded-"))
    assert forwarded == [
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: site.test",
        "x-forwarded-proto: http",
    ]


FORWARDED = get(
    "/", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: ::1", "X-Forwarded-Proto: https"
)


@pytest.mark.parametrize(
    ("before", "conf", "expected"),
    [
        (b"", {"trusted_proxies": ("127.0.0.0/8",)}, ("10.0.0.1, ::1, 127.0.0.1", "https")),
        (b"", {"trusted_proxies": ("10.0.0.0/8", "unix")}, ("127.0.0.1", "http")),
        (
            # Whom the header announces has written these fields, and is not trusted.
            b"PROXY TCP4 203.0.113.7 203.0.113.9 40000 80\r\n",
            {"trusted_proxies": ("127.0.0.1",), "proxy_protocol": "in"},
            ("203.0.113.7", "http"),
        ),
        (
            b"PROXY TCP4 203.0.113.7 203.0.113.9 40000 80\r\n",
            {"trusted_proxies": ("127.0.0.1", "203.0.113.7"), "proxy_protocol": "in"},
            ("10.0.0.1, ::1, 203.0.113.7", "https"),
        ),
    ],
)
async def test_forwarding_fields_are_appended_to_where_a_trusted_proxy_has_sent_them(
    before: bytes, conf: dict[str, Any], expected: tuple[str, str]
) -> None:
    lines = await asked(before + FORWARDED, **conf)
    forwarded = sorted(line for line in lines if line.startswith("x-forwarded-"))
    assert forwarded == [
        f"x-forwarded-for: {expected[0]}",
        "x-forwarded-host: site.test",
        f"x-forwarded-proto: {expected[1]}",
    ]


async def test_a_nominated_forwarding_field_still_goes_on() -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Forwarded-For, Via\r\n\r\n"
    lines = await asked(request)
    assert "x-forwarded-for: 127.0.0.1" in lines
    assert "via: 1.1 trioproxy" in lines


@pytest.mark.parametrize(
    ("version", "before", "expected"),
    [
        ("1.1", (), "via: 1.1 trioproxy"),
        ("1.0", (), "via: 1.0 trioproxy"),
        ("1.1", ("Via: 1.0 a", "via: 2 b"), "via: 1.0 a, 2 b, 1.1 trioproxy"),
    ],
)
async def test_via_is_appended(version: str, before: tuple[str, ...], expected: str) -> None:
    lines = await asked(get("/", *before, version=version))
    assert [line for line in lines if line.startswith("via:")] == [expected]


async def test_hop_by_hop_fields_do_not_reach_the_origin() -> None:
    request = (
        b"GET /a?b HTTP/1.1\r\nHost: site.test\r\nConnection: close, X-Mine, keep-alive\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: trailers, gzip\r\nX-Mine: 1\r\n"
        b"Upgrade: websocket\r\nX-Other: 2\r\n\r\n"
    )
    lines = await asked(request)
    assert lines[0] == "get /a?b http/1.1"
    names = {line.partition(":")[0] for line in lines[1:]}
    assert names - {"connection"} == {
        "host", "x-other", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via",
    }  # fmt: skip
    assert not any("x-mine" in line or "upgrade" in line for line in lines)


async def test_host_is_kept_as_the_client_sent_it() -> None:
    assert "host: site.test:81" in await asked(get("/", "Host: site.test:81"))


async def test_rewrite_host_sends_the_origins_own() -> None:
    lines = await asked(get("/"), rewrite_host=True)
    (host,) = [line for line in lines if line.startswith("host:")]
    assert host.startswith("host: 127.0.0.1:")
    assert "x-forwarded-host: site.test" in lines


async def test_a_client_without_host_makes_a_request_that_an_origin_can_take() -> None:
    lines = await asked(b"GET / HTTP/1.0\r\n\r\n")
    (host,) = [line for line in lines if line.startswith("host:")]
    assert host.startswith("host: 127.0.0.1:")
    assert not any(line.startswith("x-forwarded-host:") for line in lines)


# -- towards the client ----------------------------------------------------------------------------


async def test_hop_by_hop_fields_do_not_reach_the_client() -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Mine, close\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Connection: x\r\nUpgrade: h2c\r\nX-Other: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Content-Length: 2\r\n\r\nok"
    )
    reply = await through(answering(response), get())
    assert reply.body == b"ok"
    names = set(reply.fields)
    assert names == {"connection", "x-other", "set-cookie", "content-length", "date"}
    assert reply.fields["connection"] == "close"
    assert reply.raw.lower().count(b"set-cookie:") == 2


# -- several origins -------------------------------------------------------------------------------


async def test_origins_are_used_in_turn() -> None:
    with trio.fail_after(10):
        async with (
            an_origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")) as one,
            an_origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb")) as two,
            serving(Reverse([HttpPeer.parse(one), HttpPeer.parse(two)])) as running,
        ):
            bodies = [(await ask(running.urls[0])).body for _ in range(5)]
    assert bodies == [b"a", b"b", b"a", b"b", b"a"]


async def test_one_that_cannot_be_connected_to_is_passed_over_with_the_body_of_a_post() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        data = b""
        while not data.endswith(b"payload"):
            data += await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npayload")

    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nConnection: close\r\n\r\npayload"
    with trio.fail_after(10), nobody() as dead, nobody() as dead_too:
        async with an_origin(echo) as alive:
            peers = [HttpPeer.parse(url) for url in (dead, dead_too, alive)]
            async with serving(Reverse(peers)) as running:
                replies = [await ask(running.urls[0], post) for _ in range(3)]
                assert running.statistics().retries == 2 + 1 + 0
    assert [(reply.status, reply.body) for reply in replies] == [(200, b"payload")] * 3


async def test_each_origin_is_tried_once_and_then_it_is_502() -> None:
    with trio.fail_after(10), nobody() as one, nobody() as two:
        async with serving(Reverse([HttpPeer.parse(one), HttpPeer.parse(two)])) as running:
            reply = await ask(running.urls[0])
            assert running.statistics().retries == 1
    assert reply.status == 502


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (b"", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Le", 502),
        (b"garbage secret-of-the-origin\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 502),
    ],
)
async def test_a_bad_answer_is_502_and_tells_nothing_of_the_origin(
    response: bytes, status: int
) -> None:
    reply = await through(answering(response), get())
    assert reply.status == status
    tells_the_hop_alone(reply)


def tells_the_hop_alone(reply: Reply) -> None:
    assert reply.body.startswith(b"%d " % reply.status)
    assert reply.body.endswith(b"\n")
    assert reply.body.count(b"\n") == 1
    assert b"behind" in reply.body
    assert reply.fields["content-type"].startswith("text/plain")
    assert reply.fields["content-length"] == str(len(reply.body))
    for secret in (b"127.0.0.1", b"secret", b"refused", b"Errno", b"Error"):
        assert secret not in reply.raw


async def test_an_origin_that_cannot_be_connected_to_is_502_and_stays_unnamed() -> None:
    with trio.fail_after(10), nobody() as dead:
        async with serving(Reverse([HttpPeer.parse(dead)])) as running:
            reply = await ask(running.urls[0])
    assert reply.status == 502
    tells_the_hop_alone(reply)
    assert dead.rpartition(":")[2].encode() not in reply.raw


async def test_an_origin_that_is_too_slow_is_504() -> None:
    with trio.fail_after(10):
        async with (
            an_origin(silent) as url,
            serving(Reverse([HttpPeer.parse(url)]), read_timeout=0.05) as running,
        ):
            reply = await ask(running.urls[0])
    assert reply.status == 504
    tells_the_hop_alone(reply)


async def silent(stream: trio.SocketStream) -> None:
    await receive_all(stream)


async def test_more_sessions_than_allowed_are_503() -> None:
    reached = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        reached.set()
        await silent(stream)

    with trio.fail_after(10):
        async with (
            an_origin(handler) as url,
            serving(Reverse([HttpPeer.parse(url)]), max_sessions=1) as running,
            await connect(running.urls[0]) as first,
        ):
            await first.send_all(get())
            await reached.wait()
            reply = await ask(running.urls[0])
            assert reply.status == 503
            assert reply.fields["retry-after"] == "1"


async def test_a_failure_of_the_response_in_the_middle_is_never_a_whole_one() -> None:
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    reply = await through(answering(response), get())
    assert reply.status == 200
    assert b"abc" in reply.body
    assert not reply.body.endswith(b"0\r\n\r\n")


def up(etype: ErrorType) -> ProxyError:
    return ProxyError(etype, ErrorSource.UPSTREAM)


def down(etype: ErrorType) -> ProxyError:
    return ProxyError(etype, ErrorSource.DOWNSTREAM)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (up(ErrorType.ConnectTimedout), 504),
        (up(ErrorType.ReadTimedout), 504),
        (up(ErrorType.WriteTimedout), 504),
        (
            ProxyError.because(ErrorType.ConnectError, "x", up(ErrorType.ReadTimedout)).into_up(),
            504,
        ),
        (up(ErrorType.ConnectRefused), 502),
        (up(ErrorType.ConnectionClosed), 502),
        (up(ErrorType.InvalidHTTPHeader), 502),
        (down(ErrorType.ConnectionClosed), 0),
        (down(ErrorType.ReadError), 0),
        (down(ErrorType.WriteError), 0),
        (down(ErrorType.InvalidHTTPHeader), 400),
        (ProxyError.status(413), 413),
        (down(ErrorType.HTTPStatus(408)), 408),
        (ProxyError.new_in(ErrorType.InternalError), 500),
        (ProxyError.new(ErrorType.InternalError), 500),
    ],
)
def test_the_status_of_an_error(error: ProxyError, status: int) -> None:
    assert failure_status(error) == status


def test_a_turn_is_a_requests_own() -> None:
    proxy = Reverse([HttpPeer("a", 1), HttpPeer("b", 2)])
    first, second, third = proxy.new_ctx(), proxy.new_ctx(), proxy.new_ctx()
    assert [ctx.index for ctx in (first, second, third)] == [0, 1, 0]
    assert all(attrs.astuple(ctx)[1] == 2 for ctx in (first, second, third))


@pytest.mark.parametrize("mode", ["out", "off"])
async def test_what_a_connect_names_gets_no_header_whatever_the_origins_get(mode: str) -> None:
    async def target(stream: trio.SocketStream) -> None:
        await stream.send_all(b"got " + await receive_until(stream, b"."))

    with trio.fail_after(10):
        async with an_origin(target) as url:
            proxy = Reverse([HttpPeer.parse(url)])
            conf: dict[str, Any] = {"proxy_protocol": mode, "allow_connect": ("127.0.0.1:*",)}
            async with (
                serving(proxy, **conf) as running,
                await connect(running.urls[0]) as stream,
            ):
                authority = url.removeprefix("http://").encode()
                await stream.send_all(
                    b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % ((authority,) * 2)
                )
                assert (await receive_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                await stream.send_all(b"hello.")
                assert await receive_until(stream, b".") == b"got hello."
