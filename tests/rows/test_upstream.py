"""What an origin may do to us, and what becomes of it (rows U1-01 to U1-15)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests._support.faulty import RESET, Resetting
from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    CutError,
    Gateway,
    Message,
    Recorder,
    Wire,
    answers,
    chunked,
    cuts,
    in_pieces,
    open_gateway,
    post,
)
from tests.server._network import an_origin, connect, receive_until, serving
from trioproxy import (
    ErrorSource,
    ErrorType,
    HttpPeer,
    ProxyHttp,
    ServerConf,
    Session,
)

NEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"
STOLEN = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"


@attrs.define
class NoFilters(ProxyHttp[None]):
    """A proxy that overrides nothing it need not."""

    peer: HttpPeer = ORIGIN

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


async def pooled(gateway: Gateway) -> int:
    """Return how many connections wait in the pool when all is quiet."""
    await trio.testing.wait_all_tasks_blocked()
    return gateway.pool.statistics().idle


async def cut(gateway: Gateway, request: bytes = GET) -> Message:
    """Make an exchange whose response is cut, and return what came of it."""
    with pytest.raises(CutError) as caught:
        await gateway.exchange(request)
    message = caught.value.message
    assert message is not None
    return message


def the_error(proxy: Recorder) -> Any:
    return proxy.of("logging")[-1].args["e"]


# -- U1-01 to U1-03: bytes that nobody asked for -------------------------------------------------


@pytest.mark.parametrize("extra", [b"x", STOLEN, b"\r\n", STOLEN + STOLEN])
@pytest.mark.parametrize("when", ["idle", "with the response", "behind the response"])
async def test_u1_01_what_comes_unasked_is_never_the_answer_to_a_later_request(
    extra: bytes, when: str, autojump_clock: MockClock
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        if wire.number:
            await wire.send(NEXT)
            await wire.more()
            return
        if when == "with the response":
            await wire.send(OK + extra)
        else:
            await wire.send(OK)
            if when == "idle":
                await trio.sleep(10)
            await wire.send(extra)
        assert await wire.at_end()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(GET)
        assert (await client.message()).body == b"hello"
        await trio.sleep(20)
        assert gateway.pool.statistics().idle == 0
        await client.send(GET)
        assert (await client.message()).body == b"next"
    assert [call.args["reused"] for call in proxy.of("connected_to_upstream")] == [False, False]
    if when == "idle":
        assert gateway.pool.statistics().unexpected_bytes == 1


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_u1_02_a_response_before_the_request_is_not_its_answer(
    method: bytes, autojump_clock: MockClock
) -> None:
    """The connection came from the pool; what it says while a filter awaits closes it."""
    speak = trio.Event()

    async def origin(wire: Wire) -> None:
        await wire.message()
        if wire.number:
            await wire.send(NEXT)
            await wire.more()
            return
        await wire.send(OK)
        await speak.wait()
        await wire.send(STOLEN)
        assert await wire.at_end()

    async def wait(_session: Session, reused: bool, *_rest: object) -> None:
        if reused:
            speak.set()
            await trio.sleep(1)

    proxy = Recorder(hooks={"connected_to_upstream": wait})
    async with open_gateway(proxy, origin) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"
        request = GET if method == b"GET" else post(b"abc")
        assert (await gateway.exchange(request)).body == b"next"
    reused = [call.args["reused"] for call in proxy.of("connected_to_upstream")]
    assert reused == [False, True, False]


async def test_u1_02_a_new_connection_that_speaks_first_is_a_502(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.send(STOLEN)
        assert await wire.at_end()

    async def wait(*_args: object) -> None:
        await trio.sleep(1)

    proxy = Recorder(hooks={"connected_to_upstream": wait})
    async with open_gateway(proxy, origin) as gateway:
        assert (await gateway.exchange(GET)).status == 502
    assert the_error(proxy).esource is ErrorSource.UPSTREAM


@pytest.mark.parametrize(
    ("request_", "response", "status"),
    [
        (GET, OK + b"more", 200),
        (GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"a") + b"b", 200),
        (GET.replace(b"GET", b"HEAD"), OK, 200),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\nbody", 204),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nbody", 304),
        (GET, b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 204),
    ],
)
async def test_u1_03_bytes_behind_a_response_cost_the_connection_and_nothing_else(
    request_: bytes, response: bytes, status: int, autojump_clock: MockClock
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, answers(response)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(request_)
            bodiless = status == 304 or request_.startswith(b"HEAD")
            message = await client.message(bodiless=bodiless)
            assert message.status == status
            assert await pooled(gateway) == 0
    assert gateway.pool.statistics().connects == 2
    assert [call.args["e"] for call in proxy.of("logging")] == [None, None]


# -- U1-04, U1-05: a response before the request's end -------------------------------------------


async def test_u1_04_a_final_response_while_the_request_goes_up_is_delivered(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(OK)
        assert await wire.at_end()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        response = await client.message()
        assert (response.status, response.body) == (200, b"hello")
        assert response.get("connection") == "close"
        assert await pooled(gateway) == 0
    assert (None, True) not in proxy.pieces("request_body_filter")
    assert the_error(proxy) is None


async def test_u1_04_the_connection_is_kept_where_the_request_was_written_first(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        request = await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await wire.body(request)
        await wire.send(b"hello")
        await wire.more()

    async with open_gateway(Recorder(), origin) as gateway:
        client = gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        head = await client.head()
        await client.send(b"123456789")
        await client.body(head)
        assert head.body == b"hello"
        assert await pooled(gateway) == 1


TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!"


@pytest.mark.parametrize("size", [9, 30_000, 200_000])
@pytest.mark.parametrize("pause", [0.0, 1.0])
async def test_u1_05_a_response_is_delivered_although_writing_fails(
    size: int, pause: float, autojump_clock: MockClock
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        wire.stream.receive_stream.close()  # whoever writes on gets an error
        await trio.sleep(pause)
        await wire.send(TOO_LARGE)
        await trio.sleep(1)

    proxy = Recorder()
    async with open_gateway(proxy, origin, lockstep=True) as gateway:
        client = gateway.connect()
        responses: list[Message] = []

        async def upload() -> None:
            try:
                await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
                for start in range(0, size, 10_000):
                    await client.send(bytes(min(10_000, size - start)))
            except trio.BrokenResourceError:
                pass  # the gateway has closed: the response says why

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            responses.append(await client.message())
        assert (responses[0].status, responses[0].body) == (413, b"no!")
        assert await pooled(gateway) == 0
    assert the_error(proxy) is None


async def test_u1_05_also_where_the_request_left_in_one_write(autojump_clock: MockClock) -> None:
    """Nobody wants to see the body, so that no task carries it: the same rule holds."""

    async def origin(wire: Wire) -> None:
        await wire.stream.receive_some(10)
        wire.stream.receive_stream.close()
        await wire.send(TOO_LARGE)
        await trio.sleep(1)

    async with open_gateway(NoFilters(), origin, lockstep=True) as gateway:
        client = gateway.connect()
        await client.send(post(b"abc"))
        response = await client.message()
        assert (response.status, response.body) == (413, b"no!")


async def test_u1_05_without_a_response_the_write_is_what_failed(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()

    proxy = Recorder()
    async with open_gateway(proxy, origin, lockstep=True) as gateway:
        client = gateway.connect()
        await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        await trio.sleep(1)
        await client.send(b"123456789")
        assert (await client.message()).status == 502
    assert len(proxy.of("upstream_peer")) == 1


@pytest.mark.socket
async def test_u1_05_over_sockets_whose_origin_resets_behind_its_response() -> None:
    """It closes with most of the upload unread, so that its kernel sends a reset."""

    async def handler(stream: trio.SocketStream) -> None:
        await receive_until(stream, b"\r\n\r\n")
        await stream.send_all(TOO_LARGE)

    async def upload(stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(bytes(8 << 20))
        except trio.BrokenResourceError:
            pass  # the gateway reads on for a while only

    with trio.fail_after(20):
        async with (
            an_origin(handler) as url,
            serving(NoFilters(HttpPeer.parse(url))) as running,
            await connect(running.urls[0]) as stream,
            trio.open_nursery() as nursery,
        ):
            await stream.send_all(
                b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (8 << 20)
            )
            nursery.start_soon(upload, stream)
            response = await receive_until(stream, b"no!")
            assert response.startswith(b"HTTP/1.1 413 ")
            assert b"\r\nConnection: close\r\n" in response
            nursery.cancel_scope.cancel()


# -- U1-06, U1-07: informational responses -------------------------------------------------------

HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


async def test_u1_06_up_to_32_informational_responses_are_forwarded(
    autojump_clock: MockClock,
) -> None:
    async with open_gateway(Recorder(), answers(HINT * 32 + OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        statuses = [(await client.message()).status for _ in range(33)]
        assert statuses == [103] * 32 + [200]
        assert await pooled(gateway) == 1


async def test_u1_06_one_more_is_a_502(autojump_clock: MockClock) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, answers(HINT * 33 + OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 502
        assert await pooled(gateway) == 0
    assert the_error(proxy).root_etype() == ErrorType.InvalidHTTPHeader


async def test_u1_06_the_time_for_the_head_is_not_started_anew_by_them(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        for _ in range(32):
            await trio.sleep(4)
            await wire.send(HINT)

    proxy = Recorder()
    async with open_gateway(proxy, origin, conf=ServerConf(read_timeout=10.0)) as gateway:
        started = trio.current_time()
        assert (await gateway.exchange(GET)).status == 502
        assert trio.current_time() - started == pytest.approx(10)
    assert the_error(proxy).root_etype() == ErrorType.ReadTimedout
    assert "the response's head" in str(the_error(proxy))
    assert len(proxy.of("upstream_response_filter")) == 2


@pytest.mark.parametrize(("expects", "statuses"), [(True, [100, 200]), (False, [200])])
async def test_u1_06_a_100_goes_on_only_where_the_client_expects_it(
    expects: bool, statuses: list[int], autojump_clock: MockClock
) -> None:
    async with open_gateway(Recorder(), answers(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as gateway:
        client = gateway.connect()
        expect = b"Expect: 100-continue\r\n" if expects else b""
        await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\n%sContent-Length: 1\r\n\r\nx" % expect)
        assert [(await client.message()).status for _ in statuses] == statuses


async def test_u1_06_framing_fields_in_them_are_ignored_and_not_forwarded(
    autojump_clock: MockClock,
) -> None:
    odd = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with open_gateway(Recorder(), answers(odd + OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        first = await client.head()
        assert first.status == 103
        assert first.fields == []
        assert (await client.message()).body == b"hello"


async def test_u1_06_none_reaches_an_http_1_0_client(autojump_clock: MockClock) -> None:
    async with open_gateway(Recorder(), answers(HINT + OK)) as gateway:
        client = gateway.connect()
        await client.send(GET.replace(b"1.1", b"1.0"))
        assert (await client.message()).status == 200


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_u1_07_a_switch_that_nobody_offered_is_a_502(
    version: bytes, autojump_clock: MockClock
) -> None:
    switch = (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    async with open_gateway(Recorder(), in_pieces(switch, b"raw")) as gateway:
        client = gateway.connect()
        await client.send(GET.replace(b"1.1", version))
        assert (await client.message()).status == 502
        assert await client.at_end()
        assert await pooled(gateway) == 0


# -- U1-08 to U1-12: framing ---------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [b"Content-Length: 5\r\n", b"Content-Length: 3\r\n"])
async def test_u1_08_both_framings_chunked_wins_and_the_connection_is_not_reused(
    lengths: bytes, autojump_clock: MockClock
) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + lengths + b"Transfer-Encoding: chunked\r\n\r\n"
    async with open_gateway(Recorder(), answers(head + chunked(b"hello"))) as gateway:
        response = await gateway.exchange(GET)
        assert response.body == b"hello"
        assert response.get("content-length") is None
        assert response.get("transfer-encoding") == "chunked"
        assert await pooled(gateway) == 0


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 0x5",
        b"Content-Length: 5_0",
        b"Content-Length:",
        b"Content-Length: 9223372036854775808",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding:",
        b'Transfer-Encoding: "chunked"',
    ],
)
async def test_u1_09_framing_with_two_readings_or_none_is_a_502(
    fields: bytes, autojump_clock: MockClock
) -> None:
    origin = in_pieces(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\nhello")
    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        assert (await gateway.exchange(GET)).status == 502
        assert await pooled(gateway) == 0
    assert "upstream_response_filter" not in proxy.names()
    assert the_error(proxy).root_etype() == ErrorType.InvalidHTTPHeader
    assert the_error(proxy).esource is ErrorSource.UPSTREAM


@pytest.mark.parametrize(
    ("fields", "body", "kept"),
    [
        (b"Content-Length: 5", b"hello", 0),
        (b"Content-Length: 5\r\nConnection: keep-alive", b"hello", 1),
        (b"Transfer-Encoding: chunked\r\nConnection: keep-alive", chunked(b"hello"), 0),
    ],
)
async def test_u1_10_a_1_0_response_is_forwarded_as_1_1_and_pooled_only_when_it_says_so(
    fields: bytes, body: bytes, kept: int, autojump_clock: MockClock
) -> None:
    response = b"HTTP/1.0 200 OK\r\n" + fields + b"\r\n\r\n" + body
    async with open_gateway(Recorder(), answers(response)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        message = await client.message()
        assert message.start == b"HTTP/1.1 200 OK"
        assert message.body == b"hello"
        assert message.get("connection") == "keep-alive"
        assert await pooled(gateway) == kept


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_u1_11_a_body_until_close_ends_well_by_the_end_of_input(
    version: bytes, autojump_clock: MockClock
) -> None:
    origin = cuts(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo")
    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(GET.replace(b"1.1", version))
        message = await client.message()
        assert message.body == b"hello"
        assert message.get("transfer-encoding") == ("chunked" if version == b"1.1" else None)
        assert await pooled(gateway) == 0
    assert the_error(proxy) is None
    assert proxy.pieces("response_body_filter")[-1] == (None, True)


async def test_u1_11_a_body_until_close_that_is_reset_is_cut(autojump_clock: MockClock) -> None:
    origin = in_pieces(b"HTTP/1.1 200 OK\r\n\r\nhel", RESET)
    proxy = Recorder()
    async with open_gateway(proxy, origin, adapt=Resetting) as gateway:
        assert (await cut(gateway)).body == b"hel"
    assert the_error(proxy).root_etype() == ErrorType.ReadError
    assert (None, True) not in proxy.pieces("response_body_filter")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 9", b"hello"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n9\r\n"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\nA: b\r\n"),
    ],
)
async def test_u1_12_a_body_that_ends_early_is_never_a_clean_end(
    head: bytes, body: bytes, autojump_clock: MockClock
) -> None:
    origin = cuts(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n", body)
    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        assert (await cut(gateway)).body == b"hello"
        assert await pooled(gateway) == 0
    assert the_error(proxy).esource is ErrorSource.UPSTREAM
    assert all(not end for _, end in proxy.pieces("response_body_filter"))


# -- U1-13 to U1-15: heads -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x07\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x7f\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: empty\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n A: folded\r\nContent-Length: 0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 two OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
    ],
)
async def test_u1_13_a_malformed_head_is_a_502(response: bytes, autojump_clock: MockClock) -> None:
    conf = ServerConf(read_timeout=5.0)
    proxy = Recorder()
    async with open_gateway(proxy, in_pieces(response), conf=conf) as gateway:
        assert (await gateway.exchange(GET)).status == 502
        assert await pooled(gateway) == 0
    assert "upstream_response_filter" not in proxy.names()
    assert the_error(proxy).root_etype() in (ErrorType.InvalidHTTPHeader, ErrorType.ReadTimedout)


async def test_u1_13_a_fold_becomes_one_space_and_a_blank_before_the_colon_goes(
    autojump_clock: MockClock,
) -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nX-Folded: one\r\n\t  two\r\nX-Blank \t: three\r\n"
        b"Content-Length : 5\r\n\r\nhello"
    )
    async with open_gateway(Recorder(), answers(response)) as gateway:
        message = await gateway.exchange(GET)
        assert message.get("x-folded") == "one two"
        assert message.get("x-blank") == "three"
        assert message.body == b"hello"


@pytest.mark.parametrize("status", [299, 499, 600, 999])
async def test_u1_13_statuses_that_nobody_knows_pass(
    status: int, autojump_clock: MockClock
) -> None:
    response = b"HTTP/1.1 %d Odd\r\nContent-Length: 0\r\n\r\n" % status
    async with open_gateway(Recorder(), answers(response)) as gateway:
        assert (await gateway.exchange(GET)).start == b"HTTP/1.1 %d Odd" % status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"X-A: " + b"a" * (128 * 1024), 502),
        (b"X-A: " + b"a" * (120 * 1024), 200),
        (b"\r\n".join(b"X-%d: a" % number for number in range(256)), 502),
        (b"\r\n".join(b"X-%d: a" % number for number in range(255)), 200),
    ],
    ids=["too large", "just not", "too many", "just enough"],
)
async def test_u1_14_a_head_has_128_kib_and_256_fields(
    fields: bytes, status: int, autojump_clock: MockClock
) -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + fields + b"\r\n\r\n"
    async with open_gateway(Recorder(), answers(response)) as gateway:
        assert (await gateway.exchange(GET)).status == status


@pytest.mark.parametrize("forever", [b"a" * 8192, b"X-A: b\r\n" * 1024, b"HTTP/1.1 103 \r\n\r\n"])
async def test_u1_14_a_head_that_never_ends_is_refused_at_the_limit(
    forever: bytes, autojump_clock: MockClock
) -> None:
    sent = 0

    async def origin(wire: Wire) -> None:
        nonlocal sent
        await wire.message()
        if forever.startswith(b"X"):
            await wire.send(b"HTTP/1.1 200 OK\r\n")
        while sent < 4 << 20:
            await wire.send(forever)
            sent += len(forever)

    async with open_gateway(Recorder(), origin, lockstep=True) as gateway:
        started = trio.current_time()
        assert (await gateway.exchange(GET)).status == 502
        assert trio.current_time() == started
    assert sent <= (128 << 10) + 65536


async def test_u1_15_hop_by_hop_fields_go_no_further(autojump_clock: MockClock) -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
        b"Proxy-Connection: close\r\nTE: trailers\r\nUpgrade: h2c\r\nX-End: 2\r\n"
        b"Content-Length: 5\r\n\r\nhello"
    )
    async with open_gateway(Recorder(), answers(response)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        message = await client.message()
        assert message.get("connection") == "keep-alive"
        assert message.get("x-end") == "2"
        for name in ("keep-alive", "x-hop", "proxy-connection", "te", "upgrade"):
            assert message.get(name) is None, name
        # Its wish is honoured where it belongs: in the pool.
        assert await pooled(gateway) == 0
