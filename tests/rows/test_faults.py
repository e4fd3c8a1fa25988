"""Faults on the way to an origin: which are repeated, and what the client gets (rows F-01 to F-15)."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

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
    ORIGIN_2,
    Ctx,
    CutError,
    Gateway,
    Message,
    Origin,
    Origins,
    Recorder,
    Wire,
    answers,
    chunked,
    cuts,
    keeps,
    open_gateway,
    post,
)
from tests.server._network import an_origin, ask, receive_until, serving
from trioproxy import (
    ErrorSource,
    ErrorType,
    HttpPeer,
    ProxyError,
    ProxyHttp,
    RequestHeader,
    RetryType,
    ServerConf,
    Session,
)
from trioproxy.server._reverse import Reverse

PUT = post(b"body").replace(b"POST", b"PUT")
HEAD_ONLY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


def the_error(proxy: Recorder) -> Any:
    return proxy.of("logging")[-1].args["e"]


def insists(_peer: HttpPeer, _session: Session, e: ProxyError, _ctx: Ctx, _r: bool) -> ProxyError:
    """Mark every failure of an attempt to be repeated."""
    e.set_retry(True)
    return e


async def pooled(gateway: Gateway) -> int:
    await trio.testing.wait_all_tasks_blocked()
    return gateway.pool.statistics().idle


async def hang(wire: Wire) -> None:
    """Read whatever comes and never answer."""
    while await wire.more():
        pass


def fails_when_reused(what: bytes | Literal["close"], *, after: int = 1) -> Origin:
    """Return an origin whose first connection answers, then fails when it is used again.

    Args:
      what: What it sends before it closes, if anything.
      after: How many of its connections are like that.
    """

    async def serve(wire: Wire) -> None:
        while True:
            try:
                await wire.message()
            except CutError:
                return
            await wire.send(OK)
            if wire.number < after:
                break
        if wire.number < after:
            await wire.head()
            if isinstance(what, bytes):
                await wire.send(what)
                await trio.testing.wait_all_tasks_blocked()

    return serve


# -- connecting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "etype",
    [
        ErrorType.ConnectRefused,
        ErrorType.ConnectNoRoute,
        ErrorType.ConnectTimedout,
        ErrorType.ConnectError,
    ],
)
async def test_f_01_a_connect_error_is_a_502_and_is_not_repeated(
    etype: ErrorType, autojump_clock: MockClock
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, etype) as gateway:
        assert (await gateway.exchange(GET)).status == 502
    assert gateway.connector.asked == [ORIGIN.name]
    assert the_error(proxy).root_etype() == etype
    assert the_error(proxy).esource is ErrorSource.UPSTREAM


@pytest.mark.parametrize("request_", [GET, post(b"body")])
async def test_f_01_fail_to_connect_has_it_repeated_whatever_the_method(
    request_: bytes, autojump_clock: MockClock
) -> None:
    def again(_session: Session, _peer: HttpPeer, ctx: Ctx, e: ProxyError) -> ProxyError:
        e.set_retry(ctx.attempts < 2)
        return e

    got: list[Message] = []
    proxy = Recorder(peers=[ORIGIN, ORIGIN_2], hooks={"fail_to_connect": again})
    origins: Origins = {ORIGIN.name: ErrorType.ConnectRefused, ORIGIN_2.name: keeps(got)}
    async with open_gateway(proxy, origins) as gateway:
        assert (await gateway.exchange(request_)).status == 200
    assert len(got) == 1
    assert got[0].body == (b"body" if request_ != GET else b"")


@pytest.mark.parametrize(
    ("second", "status"),
    [(answers(OK), 200), (ErrorType.ConnectRefused, 502), (ErrorType.ConnectTimedout, 504)],
)
async def test_f_01_reverse_goes_on_to_its_next_origin(
    second: Origin | ErrorType, status: int, autojump_clock: MockClock
) -> None:
    origins = {ORIGIN.name: ErrorType.ConnectRefused, ORIGIN_2.name: second}
    async with open_gateway(Reverse([ORIGIN, ORIGIN_2]), origins) as gateway:
        assert (await gateway.exchange(post(b"body"))).status == status
    assert gateway.connector.asked == [ORIGIN.name, ORIGIN_2.name]


@pytest.mark.socket
async def test_f_02_every_address_that_failed_is_in_the_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as one, socket.socket() as two:  # bound, but nobody listens
        ports = []
        for sock in (one, two):
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", p)) for p in ports]
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
            asked = host.decode() if isinstance(host, bytes) else host
            return found if asked == "two.example" else real(host, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        with trio.fail_after(10):
            async with serving(Reverse([HttpPeer("two.example", 80)])) as running:
                assert (await ask(running.urls[0])).status == 502
    (line,) = [r.getMessage() for r in caplog.records if "Fail to proxy" in r.getMessage()]
    for port in ports:
        assert f"127.0.0.1:{port}: Connection refused" in line


# -- before a byte of the response ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("request_", "repeated"),
    [
        (GET, True),
        (PUT, True),
        (GET.replace(b"GET", b"DELETE"), True),
        (post(b"body"), False),
        (post(b"bo", b"dy", framing="chunked"), False),
        (GET.replace(b"GET", b"PATCH"), False),
    ],
)
async def test_f_04_a_reused_connection_that_broke_is_replaced_for_idempotent_methods(
    request_: bytes, repeated: bool, how: str, autojump_clock: MockClock
) -> None:
    proxy = Recorder()
    origin = fails_when_reused("close" if how == "close" else RESET)
    async with open_gateway(proxy, origin, adapt=Resetting) as gateway:
        await gateway.exchange(GET)
        assert (await gateway.exchange(request_)).status == (200 if repeated else 502)
        assert gateway.pool.statistics().connects == (2 if repeated else 1)
    reused = [call.args["reused"] for call in proxy.of("connected_to_upstream")]
    assert reused == ([False, True, False] if repeated else [False, True])


@pytest.mark.parametrize("request_", [GET, PUT])
async def test_f_04_also_where_the_write_is_what_failed(
    request_: bytes, autojump_clock: MockClock
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)
        if wire.number == 0:
            wire.stream.receive_stream.close()  # its end is not seen, but writing to it fails
            await trio.sleep(10)
            return
        await wire.more()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        await gateway.exchange(GET)
        assert (await gateway.exchange(request_)).status == 200
    assert proxy.the("error_while_proxy").args["e"].etype == ErrorType.WriteError
    assert proxy.the("error_while_proxy").args["client_reused"] is True


@pytest.mark.socket
@pytest.mark.parametrize("how", ["closed when idle", "reset when idle", "closed", "reset"])
async def test_f_04_over_sockets(how: str) -> None:
    served = 0
    gone = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal served
        number = served
        served += 1
        await receive_until(stream, b"\r\n\r\n")
        await stream.send_all(OK)
        if number == 0:
            if "idle" not in how:
                await receive_until(stream, b"\r\n\r\n")
            if "reset" in how:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
            gone.set()
        else:
            await stream.receive_some()

    with trio.fail_after(20):
        async with (
            an_origin(handler) as url,
            serving(Reverse([HttpPeer.parse(url)])) as running,
        ):
            assert (await ask(running.urls[0])).status == 200
            if "idle" in how:
                await gone.wait()
            assert (await ask(running.urls[0])).status == 200
            assert running.statistics().retries <= 1
    assert served == 2


async def test_f_04_it_is_repeated_once_and_on_a_new_connection(autojump_clock: MockClock) -> None:
    """Other idle connections may be as stale as the first: none of them is tried."""
    stale = trio.Event()

    async def origin(wire: Wire) -> None:
        await wire.message()
        if wire.number < 3:
            await trio.sleep(1)  # so that the first three are in use at once
            await wire.send(OK)
            await wire.more()
        else:
            stale.set()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(gateway.exchange, GET)
        assert await pooled(gateway) == 3
        assert (await gateway.exchange(GET)).status == 502
        assert stale.is_set()
        assert gateway.pool.statistics().connects == 4
    assert len(proxy.of("error_while_proxy")) == 2
    assert [each.args["client_reused"] for each in proxy.of("error_while_proxy")] == [True, False]


async def test_f_04_a_timeout_says_nothing_about_the_connection(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)
        await hang(wire)

    proxy = Recorder()
    async with open_gateway(proxy, origin, conf=ServerConf(read_timeout=5.0)) as gateway:
        await gateway.exchange(GET)
        assert (await gateway.exchange(GET)).status == 502
    assert proxy.the("error_while_proxy").args["retry"] == RetryType.Decided(False)


@pytest.mark.parametrize("fault", [b"", RESET])
async def test_f_05_a_new_connection_that_ends_without_a_response_is_a_502(
    fault: bytes, autojump_clock: MockClock
) -> None:
    proxy = Recorder()
    origin = cuts(*([fault] if fault else []))
    async with open_gateway(proxy, origin, adapt=Resetting) as gateway:
        assert (await gateway.exchange(GET)).status == 502
    assert gateway.pool.statistics().connects == 1
    assert proxy.the("error_while_proxy").args["client_reused"] is False


async def test_f_05_unless_error_while_proxy_has_it_repeated(autojump_clock: MockClock) -> None:
    proxy = Recorder(hooks={"error_while_proxy": insists})
    async with open_gateway(proxy, {ORIGIN.name: [cuts(), answers(OK)]}) as gateway:
        assert (await gateway.exchange(post(b"body"))).status == 200


@pytest.mark.parametrize("fault", ["close", "reset"])
@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 200 OK\r\nA: b\r\n", b"HTTP/1.1 103 \r\n\r\n"])
async def test_f_06_once_a_head_has_begun_nothing_is_repeated(
    start: bytes, fault: str, autojump_clock: MockClock
) -> None:
    """The connection was a reused one, which makes no difference any more."""

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)
        await wire.message()
        await wire.send(start)
        await trio.testing.wait_all_tasks_blocked()
        if fault == "reset":
            await wire.send(RESET)
            await trio.testing.wait_all_tasks_blocked()

    proxy = Recorder()
    async with open_gateway(proxy, origin, adapt=Resetting) as gateway:
        await gateway.exchange(GET)
        assert (await gateway.exchange(GET)).status == 502
        assert gateway.pool.statistics().connects == 1
    assert proxy.the("error_while_proxy").args["retry"] == RetryType.Decided(False)


# -- in the middle of a response -----------------------------------------------------------------


@pytest.mark.parametrize("fault", ["close", "reset"])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 9", b"hello"),
        (b"Transfer-Encoding: chunked", chunked(b"hello")[:-5]),
    ],
)
async def test_f_07_a_response_that_breaks_off_is_cut_and_never_repeated(
    head: bytes, body: bytes, fault: str, autojump_clock: MockClock
) -> None:
    pieces = [b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n", body]
    proxy = Recorder(hooks={"error_while_proxy": insists})
    origin = cuts(*pieces, *([RESET] if fault == "reset" else []))
    async with open_gateway(
        proxy, {ORIGIN.name: [origin, answers(OK)]}, adapt=Resetting
    ) as gateway:
        with pytest.raises(CutError) as caught:
            await gateway.exchange(GET)
        assert caught.value.message is not None
        assert caught.value.message.body == b"hello"
        assert gateway.pool.statistics().connects == 1
        assert await pooled(gateway) == 0
    assert the_error(proxy).esource is ErrorSource.UPSTREAM


@pytest.mark.parametrize(("kind", "status"), [("trait", 502), ("reverse", 504)])
@pytest.mark.parametrize("reused", [False, True])
async def test_f_08_an_origin_that_does_not_answer_in_time(
    kind: str, status: int, reused: bool, autojump_clock: MockClock
) -> None:
    asked = 0

    async def origin(wire: Wire) -> None:
        nonlocal asked
        if reused:
            await wire.message()
            await wire.send(OK)
        await wire.message()
        asked += 1
        assert await wire.at_end()  # closed, not pooled

    proxy: ProxyHttp[Any] = Recorder() if kind == "trait" else Reverse([ORIGIN])
    async with open_gateway(proxy, origin) as gateway:
        if reused:
            await gateway.exchange(GET)
        started = trio.current_time()
        assert (await gateway.exchange(GET)).status == status
        assert trio.current_time() - started == pytest.approx(60)
        assert await pooled(gateway) == 0
    assert asked == 1


@pytest.mark.parametrize("reused", [False, True])
async def test_f_09_a_malformed_response_is_not_asked_for_again(
    reused: bool, autojump_clock: MockClock
) -> None:
    bad = b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"
    proxy = Recorder()
    async with open_gateway(proxy, answers(*([OK] if reused else []), bad)) as gateway:
        if reused:
            await gateway.exchange(GET)
        assert (await gateway.exchange(GET)).status == 502
        assert gateway.pool.statistics().connects == 1
        assert await pooled(gateway) == 0
    assert proxy.the("error_while_proxy").args["retry"] == RetryType.Decided(False)


async def test_f_10_an_origin_that_half_closes_behind_its_response(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)
        await wire.half_close()
        assert await wire.at_end()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.message()).body == b"hello"
            assert await pooled(gateway) == 0
    assert the_error(proxy) is None


@pytest.mark.parametrize(("start", "outcome"), [(b"", 502), (b"HTT", 502), (HEAD_ONLY, "cut")])
async def test_f_11_an_origin_that_half_closes_before_its_response_is_whole(
    start: bytes, outcome: int | str, autojump_clock: MockClock
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        if start:
            await wire.send(start)
        await wire.half_close()
        assert await wire.at_end()

    async with open_gateway(Recorder(), origin) as gateway:
        got: int | str
        try:
            got = (await gateway.exchange(GET)).status
        except CutError:
            got = "cut"
        assert got == outcome
        assert gateway.pool.statistics().connects == 1
        assert await pooled(gateway) == 0


# -- an upload that is not taken -----------------------------------------------------------------

LARGE = post(bytes(200_000)).replace(b"POST", b"PUT")


@pytest.mark.parametrize(("kind", "status"), [("trait", 502), ("reverse", 504)])
async def test_f_12_an_origin_that_never_reads_the_upload(
    kind: str, status: int, autojump_clock: MockClock
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        await trio.sleep(200)

    proxy: ProxyHttp[Any] = Recorder() if kind == "trait" else Reverse([ORIGIN])
    async with open_gateway(proxy, origin, lockstep=True) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_closed, client, LARGE)
            started = trio.current_time()
            assert (await client.message()).status == status
            assert trio.current_time() - started == pytest.approx(60)
            nursery.cancel_scope.cancel()
    if isinstance(proxy, Recorder):
        assert the_error(proxy).root_etype() == ErrorType.WriteTimedout
        assert len(proxy.of("upstream_peer")) == 1


async def send_until_closed(client: Wire, data: bytes) -> None:
    try:
        for start in range(0, len(data), 8192):
            await client.send(data[start : start + 8192])
    except trio.BrokenResourceError:
        pass


async def test_f_12_its_response_is_delivered_where_there_is_one(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        await trio.sleep(59)
        await wire.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\n")
        await trio.sleep(30)
        await wire.send(b"too large")
        await trio.sleep(200)

    proxy = Recorder()
    async with open_gateway(proxy, origin, lockstep=True) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_closed, client, LARGE)
            response = await client.message()
            assert (response.status, response.body) == (413, b"too large")
            nursery.cancel_scope.cancel()
    assert the_error(proxy) is None


# -- all attempts of a request -------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 16])
async def test_f_13_the_last_error_stands_when_every_attempt_failed(
    most: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Recorder(hooks={"error_while_proxy": insists})
    outcomes: Sequence[Origin] = [*[cuts()] * (most - 1), cuts(b"HTTP/9.9 no\r\n\r\n")]
    conf = ServerConf(max_attempts=most)
    async with open_gateway(proxy, {ORIGIN.name: outcomes}, conf=conf) as gateway:
        assert (await gateway.exchange(GET)).status == 502
        assert gateway.services.retries == most - 1
    assert len(proxy.of("upstream_peer")) == most
    assert the_error(proxy).root_etype() == ErrorType.InvalidHTTPHeader
    assert len(proxy.of("logging")) == 1
    assert len(gateway.records) == 1
    assert len([r for r in caplog.records if "Fail to proxy" in r.getMessage()]) == 1


@pytest.mark.parametrize(("size", "status"), [(65_536, 200), (65_537, 502)])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_f_14_a_body_that_outgrew_the_replay_buffer_is_not_repeated(
    size: int, status: int, framing: Literal["length", "chunked"], autojump_clock: MockClock
) -> None:
    got: list[Message] = []
    body = random.Random(size).randbytes(size)
    request = post(body, framing=framing)
    proxy = Recorder(hooks={"error_while_proxy": insists})
    async with open_gateway(proxy, {ORIGIN.name: [cuts(), keeps(got)]}) as gateway:
        assert (await gateway.exchange(request)).status == status
        assert await pooled(gateway) == (status == 200)
    assert [message.body for message in got] == ([body] if status == 200 else [])
    if status == 502:
        assert the_error(proxy).root_etype() == ErrorType.ConnectionClosed


async def test_f_14_what_a_filter_looked_at_beforehand_counts_as_read_only_when_it_is_read(
    autojump_clock: MockClock,
) -> None:
    got: list[Message] = []
    body = bytes(range(256)) * 200

    async def look(session: Session, _ctx: Ctx) -> None:
        assert (await session.peek_request_body(100)).data == body[:100]

    proxy = Recorder(hooks={"request_filter": look, "error_while_proxy": insists})
    async with open_gateway(proxy, {ORIGIN.name: [cuts(), cuts(), keeps(got)]}) as gateway:
        assert (await gateway.exchange(post(body))).status == 200
    assert [message.body for message in got] == [body]


async def test_f_14_trailers_are_sent_again_too(autojump_clock: MockClock) -> None:
    got: list[Message] = []
    request = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(
        b"one", b"two", trailers=b"X-Sum: 6\r\n"
    )
    proxy = Recorder(hooks={"error_while_proxy": insists})
    async with open_gateway(proxy, {ORIGIN.name: [cuts(), keeps(got)]}) as gateway:
        assert (await gateway.exchange(request)).status == 200
    assert got[0].body == b"onetwo"
    assert got[0].trailers == [(b"x-sum", b"6")]


async def test_f_15_each_attempt_starts_from_the_clients_request(autojump_clock: MockClock) -> None:
    async def rewrite(_session: Session, head: RequestHeader, ctx: Ctx) -> None:
        head.headers.add("X-Attempt", str(ctx.attempts))
        head.headers.remove("X-Client")
        if ctx.attempts == 1:
            head.method = "DELETE"
            head.target = b"/elsewhere"
            head.headers.set("X-Left-Over", "1")

    def both(request: bytes) -> bytes:
        return request.replace(b"Host: site.test", b"Host: site.test\r\nX-Client: 1\r\nX-Two: a")

    first: list[Message] = []
    second: list[Message] = []

    async def breaks(wire: Wire) -> None:
        first.append(await wire.message())

    proxy = Recorder(hooks={"upstream_request_filter": rewrite, "error_while_proxy": insists})
    async with open_gateway(proxy, {ORIGIN.name: [breaks, breaks, keeps(second)]}) as gateway:
        assert (await gateway.exchange(both(PUT))).status == 200
    assert [message.start for message in first] == [
        b"DELETE /elsewhere HTTP/1.1",
        b"PUT /path HTTP/1.1",
    ]
    assert second[0].start == b"PUT /path HTTP/1.1"
    assert second[0].body == b"body"
    assert second[0].get("x-attempt") == "3"
    assert second[0].get("x-client") is None
    assert second[0].get("x-two") == "a"
    assert second[0].get("x-left-over") is None
    # What the filters of later phases see of the client's request is what the client sent.
    head = proxy.the("logging").args["session"].req_header()
    assert (head.method, head.headers.get("x-client")) == ("PUT", "1")


# -- a thousand exchanges over connections that die ----------------------------------------------


@attrs.define
class DyingOrigin:
    """Answers with the number of the request, and kills its idle connections at random.

    A connection that has served at least once may close after any time, in the very moment of the
    next request or when it has read that request; a new one always answers.
    """

    random: random.Random
    received: Counter[bytes] = attrs.field(factory=Counter)
    killed: Counter[str] = attrs.field(factory=Counter)

    async def serve(self, wire: Wire) -> None:
        async with trio.open_nursery() as nursery:
            served = 0
            while True:
                idle = trio.CancelScope()
                if served and self.random.random() < 0.3:
                    nursery.start_soon(self._kill_idle, wire, idle)
                try:
                    head = await wire.head()
                    idle.cancel()
                    if served and self.random.random() < 0.1:
                        self.killed["with a request's head"] += 1
                        break
                    await wire.body(head)
                except (CutError, trio.ClosedResourceError):
                    break
                self.received[head.start] += 1
                if served and self.random.random() < 0.1:
                    self.killed["with a request"] += 1
                    break
                number = head.start.split(b" ")[1]
                await wire.send(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(number), number)
                )
                served += 1
            nursery.cancel_scope.cancel()

    async def _kill_idle(self, wire: Wire, idle: trio.CancelScope) -> None:
        with idle:
            await trio.sleep(self.random.choice([0, 0.125, 0.25, 0.5, 1, 2]))
            self.killed["idle"] += 1
            wire.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_f_04_a_post_is_sent_once_and_a_get_succeeds_while_idle_connections_die(
    seed: int, autojump_clock: MockClock
) -> None:
    chance = random.Random(seed)
    origin = DyingOrigin(random.Random(seed + 1000))
    statuses: Counter[tuple[bytes, int]] = Counter()

    async def ask(gateway: Gateway, client_number: int) -> None:
        client = gateway.connect()
        for count in range(125):
            # Moments that coincide with those of the kills are what it is about.
            await trio.sleep(chance.choice([0, 0, 0.125, 0.25, 0.5, 1]))
            method = chance.choice([b"GET", b"GET", b"POST", b"PUT"])
            number = b"/%d/%d" % (client_number, count)
            body = b"" if method == b"GET" else bytes(chance.choice([0, 10, 10_000]))
            length = b"" if method == b"GET" else b"Content-Length: %d\r\n" % len(body)
            request = b"%s %s HTTP/1.1\r\nHost: a\r\n%s\r\n" % (method, number, length)
            await client.send(request + body)
            response = await client.message()
            statuses[method, response.status] += 1
            if response.status == 200:
                assert response.body == number
            if response.get("connection") == "close":
                client.close()
                client = gateway.connect()

    class Plain(ProxyHttp[None]):
        def new_ctx(self) -> None:
            return None

        async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
            return ORIGIN

    async with open_gateway(Plain(), origin.serve) as gateway, trio.open_nursery() as nursery:
        for client_number in range(8):
            nursery.start_soon(ask, gateway, client_number)
    assert sum(statuses.values()) == 1000
    assert statuses[b"GET", 502] == statuses[b"PUT", 502] == 0
    posts = [count for start, count in origin.received.items() if start.startswith(b"POST")]
    assert max(posts) == 1
    # It did happen: kills of each kind, requests that were repeated, and posts that were not.
    assert (
        min(origin.killed[how] for how in ("idle", "with a request", "with a request's head")) > 9
    )
    assert gateway.services.retries > 20
    assert 0 < statuses[b"POST", 502] < statuses[b"POST", 200]
