"""Every wait has its limit: rows T-01 to T-08, and the knobs of a session."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

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
    keeps,
    open_gateway,
)
from trioproxy import (
    BodyChunk,
    ErrorSource,
    ErrorType,
    HttpPeer,
    PeerOptions,
    ProxyError,
    ProxyHttp,
    RequestHeader,
    ResponseHeader,
    ServerConf,
    Session,
)
from trioproxy.server._reverse import Reverse

POST_9 = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class Watch:
    """Seconds of the virtual clock since it was started."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._started = trio.current_time()

    @property
    def seconds(self) -> float:
        return trio.current_time() - self._started


def about(seconds: float) -> Any:
    """Compare with a time to the millisecond."""
    return pytest.approx(seconds, abs=0.001)


def the_error(proxy: Recorder) -> Any:
    return proxy.of("logging")[-1].args["e"]


async def until_closed(wire: Wire) -> None:
    """Read until the other party has closed."""
    try:
        while await wire.more():
            pass
    except trio.BrokenResourceError:
        pass


async def dribble(wire: Wire, data: bytes, every: float, size: int = 1) -> None:
    """Send some bytes now and then, as long as the other party takes them."""
    try:
        for start in range(0, len(data), size):
            await wire.send(data[start : start + size])
            await trio.sleep(every)
    except trio.BrokenResourceError:
        pass


def with_knob(knob: Callable[[Session], object]) -> dict[str, Callable[..., Any]]:
    """Return the hooks that turn a knob of each session."""

    def turn(session: Session, _ctx: object) -> None:
        knob(session)

    return {"early_request_filter": turn}


# -- T-01: heads ---------------------------------------------------------------------------------


async def test_t_01_the_limit_is_for_the_whole_head_from_its_first_byte(
    autojump_clock: MockClock,
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, answers(OK)) as gateway:
        client = gateway.connect()
        await trio.sleep(10)
        watch = Watch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble, client, GET * 5, 1)
            assert (await client.message()).status == 408
            assert watch.seconds == about(15)
            await until_closed(client)
            nursery.cancel_scope.cancel()
    assert proxy.names() == []
    assert gateway.refused == [408]


async def test_t_01_a_blank_line_before_the_head_starts_it(autojump_clock: MockClock) -> None:
    async with open_gateway(Recorder(), answers(OK)) as gateway:
        client = gateway.connect()
        watch = Watch()
        await client.send(b"\r\n")
        await trio.sleep(14)
        await client.send(GET[:10])
        assert (await client.message()).status == 408
        assert watch.seconds == about(15)


async def test_t_01_a_client_that_says_nothing_is_closed_in_silence(
    autojump_clock: MockClock,
) -> None:
    async with open_gateway(Recorder(), answers(OK)) as gateway:
        client = gateway.connect()
        watch = Watch()
        assert await client.at_end()
        assert watch.seconds == about(15)
    assert gateway.refused == []


async def test_t_01_between_requests_the_idle_time_runs_until_the_first_byte(
    autojump_clock: MockClock,
) -> None:
    async with open_gateway(Recorder(), answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await client.message()
        await trio.sleep(59)
        watch = Watch()
        await client.send(GET[:5])
        assert (await client.message()).status == 408
        assert watch.seconds == about(15)


async def test_t_01_a_pipelined_head_has_its_time_from_the_end_of_the_exchange_before(
    autojump_clock: MockClock,
) -> None:
    async def slow(wire: Wire) -> None:
        await wire.message()
        await trio.sleep(30)
        await wire.send(OK)
        await wire.more()

    async with open_gateway(Recorder(), slow) as gateway:
        client = gateway.connect()
        watch = Watch()
        await client.send(GET + GET[:10])
        assert (await client.message()).status == 200
        assert watch.seconds == about(30)
        assert (await client.message()).status == 408
        assert watch.seconds == about(45)


# -- T-02: uploads -------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [POST_9 + b"123", CHUNKED + b"3\r\n123\r\n"])
async def test_t_02_a_gap_in_a_body_is_a_408(request_: bytes, autojump_clock: MockClock) -> None:
    proxy = Recorder()
    got: list[Message] = []
    async with open_gateway(proxy, keeps(got)) as gateway:
        client = gateway.connect()
        watch = Watch()
        await client.send(request_)
        response = await client.message()
        assert (response.status, response.get("connection")) == (408, "close")
        assert watch.seconds == about(60)
        await until_closed(client)
    assert got == []
    assert the_error(proxy).root_etype() == ErrorType.ReadTimedout
    assert the_error(proxy).esource is ErrorSource.DOWNSTREAM


async def test_t_02_the_gap_starts_anew_with_what_comes(autojump_clock: MockClock) -> None:
    got: list[Message] = []
    async with open_gateway(Recorder(), keeps(got)) as gateway:
        client = gateway.connect()
        watch = Watch()
        await client.send(POST_9)
        for number in range(9):
            await trio.sleep(50)
            await client.send(b"%d" % number)
        assert (await client.message()).status == 200
        assert watch.seconds == about(450)
    assert got[0].body == b"012345678"


async def test_t_02_what_is_no_content_is_no_progress(autojump_clock: MockClock) -> None:
    """A chunk's size line that never ends has the time of one gap."""
    async with open_gateway(Recorder(), answers(OK)) as gateway:
        client = gateway.connect()
        watch = Watch()
        async with trio.open_nursery() as nursery:
            await client.send(CHUNKED)
            nursery.start_soon(dribble, client, b"3;" + b"x" * 100, 10)
            assert (await client.message()).status == 408
            assert watch.seconds == about(60)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("size", "every", "cut_after"),
    [
        (100, 1.0, None),
        (99, 1.0, None),  # the upload ends before its arrears are 5 seconds
        (50, 1.0, 10.0),
        (1, 1.0, 5.0),
        (1, 0.01, None),
        (2000, 20.0, None),
        (500, 20.0, 10.0),
    ],
)
async def test_t_02_a_lowest_rate_is_a_408_for_who_stays_behind_it(
    size: int, every: float, cut_after: float | None, autojump_clock: MockClock
) -> None:
    conf = ServerConf(min_receive_rate=100)
    got: list[Message] = []
    proxy = Recorder()
    async with open_gateway(proxy, keeps(got), conf=conf) as gateway:
        client = gateway.connect()
        watch = Watch()
        await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble, client, bytes(3000), every, size)
            response = await client.message()
            took = watch.seconds
            nursery.cancel_scope.cancel()
    if cut_after is None:
        assert response.status == 200
        assert len(got[0].body) == 3000
    else:
        assert response.status == 408
        assert "100 bytes a second" in str(the_error(proxy))
        assert took == pytest.approx(cut_after, abs=every)


async def test_t_02_time_in_which_we_do_not_read_costs_no_rate(autojump_clock: MockClock) -> None:
    async def slowly(_s: Session, _body: BodyChunk, _end: bool, _ctx: object) -> None:
        await trio.sleep(30)

    conf = ServerConf(min_receive_rate=1000)
    proxy = Recorder(hooks={"request_body_filter": slowly})
    async with open_gateway(proxy, answers(OK), conf=conf) as gateway:
        client = gateway.connect()
        await client.send(POST_9)
        for data in (b"123", b"456", b"789"):
            await client.send(data)
            await trio.sleep(1)
        assert (await client.message()).status == 200


async def test_t_02_what_was_sent_fast_saves_up_for_one_gap_and_no_more(
    autojump_clock: MockClock,
) -> None:
    conf = ServerConf(min_receive_rate=1, body_timeout=20.0)
    async with open_gateway(Recorder(), answers(OK), conf=conf) as gateway:
        client = gateway.connect()
        await client.send(
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n" + bytes(1000)
        )
        watch = Watch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble, client, bytes(2000), 10)
            assert (await client.message()).status == 408
            assert 20 < watch.seconds < 30
            nursery.cancel_scope.cancel()


# -- T-03: downloads -----------------------------------------------------------------------------


def streaming(size: int, sent: list[int]) -> Callable[[Wire], Awaitable[None]]:
    """Return an origin with a large response, which counts what was taken of it."""

    async def serve(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for start in range(0, size, 4096):
            await wire.send(bytes(min(4096, size - start)))
            sent.append(start + 4096)

    return serve


async def test_t_03_a_client_that_does_not_read_is_cut_after_60_seconds(
    autojump_clock: MockClock,
) -> None:
    sent: list[int] = []
    proxy = Recorder()
    async with open_gateway(proxy, streaming(1 << 20, sent), lockstep=True) as gateway:
        client = gateway.connect()
        watch = Watch()
        await client.send(GET)
        await client.head()
        await gateway.ended()
        assert watch.seconds == about(60)
    assert sent[-1] < 256 << 10  # the origin was stopped meanwhile
    assert the_error(proxy).root_etype() == ErrorType.WriteTimedout
    assert the_error(proxy).esource is ErrorSource.DOWNSTREAM


async def test_t_03_the_origins_time_does_not_run_while_we_are_the_ones_not_reading(
    autojump_clock: MockClock,
) -> None:
    sent: list[int] = []
    conf = ServerConf(read_timeout=2.0, write_timeout=60.0)
    async with open_gateway(
        Recorder(), streaming(65536, sent), conf=conf, lockstep=True
    ) as gateway:
        client = gateway.connect()
        await client.send(GET)
        message = await client.head()
        while len(message.body) < 65536:
            await trio.sleep(30)
            await client.more()
            message.body += bytes(client.buffer)
            client.buffer.clear()
        await trio.testing.wait_all_tasks_blocked()
        assert gateway.records[0].error is None


async def test_t_03_nor_does_it_while_a_filter_looks_at_an_informational_response(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await trio.sleep(6)
        await wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await trio.sleep(12)
        await wire.send(OK)
        await wire.more()

    async def slowly(_session: Session, head: ResponseHeader, _ctx: object) -> None:
        if head.status == 103:
            await trio.sleep(10)

    proxy = Recorder(hooks={"response_filter": slowly})
    async with open_gateway(proxy, origin, conf=ServerConf(read_timeout=9.0)) as gateway:
        assert (await gateway.exchange(GET)).status == 200


# -- T-04: origins -------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
async def test_t_04_the_response_head(own: bool, autojump_clock: MockClock) -> None:
    """By the server's default, and by the peer's own time."""

    async def origin(wire: Wire) -> None:
        await wire.message()
        await dribble(wire, b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100, 1)

    peer = HttpPeer("origin.test", 80, options=PeerOptions(read_timeout=7.0 if own else None))
    proxy = Recorder(peers=[peer])
    async with open_gateway(proxy, origin) as gateway:
        watch = Watch()
        assert (await gateway.exchange(GET)).status == 502
        assert watch.seconds == about(7 if own else 60)
    assert the_error(proxy).root_etype() == ErrorType.ReadTimedout
    assert "waiting for the response's head" in str(the_error(proxy))


async def test_t_04_it_begins_when_the_request_was_written(autojump_clock: MockClock) -> None:
    """An upload may take longer than the origin may; who stalls in it is the client."""

    async def origin(wire: Wire) -> None:
        await wire.message()
        await trio.sleep(8)
        await wire.send(OK)
        await wire.more()

    async with open_gateway(Recorder(), origin, conf=ServerConf(read_timeout=9.0)) as gateway:
        client = gateway.connect()
        await client.send(POST_9)
        for number in range(9):
            await trio.sleep(5)
            await client.send(b"%d" % number)
        assert (await client.message()).status == 200


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_t_04_it_begins_whatever_ended_the_request(
    framing: str, filtered: bool, autojump_clock: MockClock
) -> None:
    async def silent(wire: Wire) -> None:
        await wire.message()
        await until_closed(wire)

    proxy: ProxyHttp[Any] = Bare()
    if filtered:  # the last piece has no data of its own

        async def last(_session: Session, body: BodyChunk, end: bool, _ctx: object) -> None:
            body.data = b"" if end and not body.data else body.data

        proxy = Recorder(hooks={"request_body_filter": last})
    async with open_gateway(proxy, silent) as gateway:
        client = gateway.connect()
        await client.send(POST_9 if framing == "length" else CHUNKED)
        await trio.sleep(20)
        await client.send(b"123456789" if framing == "length" else b"9\r\n123456789\r\n")
        if framing == "chunked":
            await trio.sleep(20)
            await client.send(b"0\r\nX-Trailer: 1\r\n\r\n" if filtered else b"0\r\n\r\n")
        watch = Watch()
        assert (await client.message()).status == 502
        assert watch.seconds == about(60)


EXPECT = POST_9.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")


async def test_t_04_who_stalls_before_a_100_is_the_origin(autojump_clock: MockClock) -> None:
    async def silent(wire: Wire) -> None:
        await wire.head()
        await until_closed(wire)

    proxy = Recorder()
    async with open_gateway(proxy, silent) as gateway:
        watch = Watch()
        assert (await gateway.exchange(EXPECT)).status == 502
        assert watch.seconds == about(60)
    assert "waiting for the response's head" in str(the_error(proxy))


async def test_t_04_who_stalls_behind_a_100_is_the_client(autojump_clock: MockClock) -> None:
    async def inviting(wire: Wire) -> None:
        await wire.head()
        await trio.sleep(40)
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await until_closed(wire)

    proxy = Recorder()
    async with open_gateway(proxy, inviting) as gateway:
        client = gateway.connect()
        await client.send(EXPECT)
        assert (await client.message()).status == 100
        watch = Watch()
        await trio.sleep(50)
        await client.send(b"1")
        assert (await client.message()).status == 408
        assert watch.seconds == about(110)


async def test_t_04_a_body_that_comes_without_a_100_is_the_origins_turn_when_it_ends(
    autojump_clock: MockClock,
) -> None:
    async def slow(wire: Wire) -> None:
        await wire.message()
        await trio.sleep(50)
        await wire.send(OK)
        await wire.more()

    async with open_gateway(Recorder(), slow) as gateway:
        client = gateway.connect()
        await client.send(EXPECT)
        for number in range(9):
            await trio.sleep(50)
            await client.send(b"%d" % number)
        assert (await client.message()).status == 200


async def test_t_04_an_expectation_that_a_filter_takes_away_is_answered_by_us(
    autojump_clock: MockClock,
) -> None:
    async def remove(_session: Session, head: RequestHeader, _ctx: object) -> None:
        head.headers.remove("Expect")

    got: list[Message] = []
    proxy = Recorder(hooks={"upstream_request_filter": remove})
    async with open_gateway(proxy, keeps(got)) as gateway:
        client = gateway.connect()
        await client.send(EXPECT)
        assert (await client.message()).status == 100
        await client.send(b"123456789")
        assert (await client.message()).status == 200
    assert got[0].body == b"123456789"


async def test_t_04_each_gap_in_the_content(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        for _ in range(4):
            await trio.sleep(50)
            await wire.send(b"x")
        await wire.more()

    proxy = Recorder()
    async with open_gateway(proxy, origin) as gateway:
        watch = Watch()
        with pytest.raises(CutError) as caught:
            await gateway.exchange(GET)
        assert watch.seconds == about(260)
        assert caught.value.message is not None
        assert caught.value.message.body == b"xxxx"
    assert "more of the response's content" in str(the_error(proxy))


async def test_t_04_the_total_is_off(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")
        await dribble(wire, bytes(50), 59)
        await wire.more()

    async with open_gateway(Recorder(), origin) as gateway:
        watch = Watch()
        assert (await gateway.exchange(GET)).body == bytes(50)
        assert watch.seconds > 2800


def test_t_04_connecting_has_5_seconds_and_a_look_up_as_many() -> None:
    """What happens when they are over is shown with the connector."""
    conf = ServerConf()
    assert (conf.connect_timeout, conf.dns_timeout) == (5, 5)
    assert (conf.read_timeout, conf.request_timeout) == (60, math.inf)


# -- T-06, T-07: idle connections, draining ------------------------------------------------------


async def test_t_06_an_idle_client_is_closed_after_60_seconds(autojump_clock: MockClock) -> None:
    async with open_gateway(Recorder(), answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(3):
            await trio.sleep(14)
            await client.send(GET)
            await client.message()
        watch = Watch()
        assert await client.at_end()
        assert watch.seconds == about(60)


async def test_t_06_an_idle_connection_to_an_origin_is_closed_after_55(
    autojump_clock: MockClock,
) -> None:
    closed = trio.Event()

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)
        watch = Watch()
        assert await wire.at_end()
        assert watch.seconds == about(55)
        closed.set()

    async with open_gateway(Recorder(), origin) as gateway:
        await gateway.exchange(GET)
        await closed.wait()
        assert gateway.pool.statistics().closed_idle == 1


async def refuse(session: Session, _ctx: object) -> bool:
    """Answer without reading the body, and ask for the connection to be kept."""
    session.set_close_on_response_before_downstream_finish(False)
    await session.write_response_header(ResponseHeader(403, {"Content-Length": "0"}), True)
    return True


async def test_t_07_draining_takes_2_seconds_however_many_bytes_come(
    autojump_clock: MockClock,
) -> None:
    proxy = Recorder(hooks={"request_filter": refuse})
    async with open_gateway(proxy, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 90\r\n\r\n")
        watch = Watch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble, client, bytes(90), 0.25)
            assert (await client.message()).status == 403
            assert watch.seconds < 0.1
            # Drained for 2 seconds; then closed with a lingering read of 2 more.
            await until_closed(client)
            assert 2 <= watch.seconds <= 4.3
            await gateway.ended()
            assert watch.seconds <= 4.3
            nursery.cancel_scope.cancel()


async def test_t_07_a_lingering_close_takes_2_seconds_however_many_bytes_come(
    autojump_clock: MockClock,
) -> None:
    async with open_gateway(Recorder(), answers(OK)) as gateway:
        client = gateway.connect()
        watch = Watch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble, client, b"no request\r\n\r\n" + bytes(90), 0.25, 20)
            assert (await client.message()).status == 400
            await gateway.ended()
            assert watch.seconds == about(2)
            nursery.cancel_scope.cancel()


# -- T-08: filters, and the whole request --------------------------------------------------------


async def test_t_08_a_filter_has_no_deadline_and_holds_its_own_session_only(
    autojump_clock: MockClock,
) -> None:
    async def wait(session: Session, _ctx: object) -> bool:
        if session.req_header().path == "/slow":
            await trio.sleep(3000)
        return False

    proxy = Recorder(hooks={"request_filter": wait})
    async with open_gateway(proxy, answers(OK)) as gateway:
        slow = gateway.connect()
        watch = Watch()
        await slow.send(GET.replace(b"/path", b"/slow"))
        assert (await gateway.exchange(GET)).status == 200
        assert watch.seconds < 1
        assert (await slow.message()).status == 200
        assert watch.seconds == about(3000)


WHOLE = ServerConf(request_timeout=30.0)


async def sleeps(*_args: object) -> Any:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    "name", ["early_request_filter", "request_filter", "proxy_upstream_filter", "upstream_peer"]
)
async def test_t_08_the_deadline_of_a_request_ends_its_filters(
    name: str, autojump_clock: MockClock
) -> None:
    proxy = Recorder(hooks={name: sleeps})
    async with open_gateway(proxy, answers(OK), conf=WHOLE) as gateway:
        client = gateway.connect()
        await trio.sleep(10)
        watch = Watch()
        await client.send(GET)
        response = await client.message()
        assert (response.status, response.get("connection")) == (504, "close")
        assert watch.seconds == about(30)
        await until_closed(client)
    error = the_error(proxy)
    assert error.etype == ErrorType.HTTPStatus(504)
    assert error.root_etype() == ErrorType.ReadTimedout
    assert "longer than request_timeout (30 s)" in str(error)
    assert name in str(error)
    assert proxy.names()[-5:] == [
        name,
        "fail_to_proxy",
        "suppress_error_log",
        "request_summary",
        "logging",
    ]


async def test_t_08_the_deadline_ends_an_attempt_and_lets_the_origin_go(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        assert await wire.at_end()

    proxy = Recorder()
    async with open_gateway(proxy, origin, conf=WHOLE) as gateway:
        assert (await gateway.exchange(GET)).status == 504
        assert gateway.pool.statistics().connects == 1
        assert gateway.pool.statistics().leased == 0
    assert len(proxy.of("error_while_proxy")) == 1
    assert the_error(proxy).etype == ErrorType.HTTPStatus(504)
    assert [r.getMessage() for r in caplog.records if "status: 504" in r.getMessage()]


async def test_t_08_a_fail_to_proxy_that_never_returns_is_ended_as_well(
    autojump_clock: MockClock,
) -> None:
    async def refused(_session: Session, _ctx: object) -> bool:
        raise ProxyError.status(403)

    proxy = Recorder(hooks={"request_filter": refused, "fail_to_proxy": sleeps})
    async with open_gateway(proxy, answers(OK), conf=WHOLE) as gateway:
        watch = Watch()
        assert (await gateway.exchange(GET)).status == 504
        assert watch.seconds == about(30)
    assert len(proxy.of("fail_to_proxy")) == 1
    assert len(proxy.of("logging")) == 1


async def test_t_08_a_client_may_leave_while_its_504_is_made(autojump_clock: MockClock) -> None:
    proxy = Recorder(hooks={"request_filter": sleeps, "fail_to_proxy": sleeps})
    async with open_gateway(proxy, answers(OK), conf=WHOLE) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.sleep(100)
        client.close()
        await gateway.ended()
    assert the_error(proxy).etype == ErrorType.HTTPStatus(504)


async def test_t_08_the_deadline_counts_all_attempts(autojump_clock: MockClock) -> None:
    async def dies(wire: Wire) -> None:
        await wire.message()
        await trio.sleep(8)

    def again(_p: object, _s: object, e: Any, _c: object, _r: object) -> Any:
        e.set_retry(True)
        return e

    proxy = Recorder(hooks={"error_while_proxy": again})
    async with open_gateway(proxy, dies, conf=WHOLE) as gateway:
        watch = Watch()
        assert (await gateway.exchange(GET)).status == 504
        assert watch.seconds == about(30)
    assert len(proxy.of("upstream_peer")) == 4


@pytest.mark.parametrize("length", [b"Content-Length: 999", b"Transfer-Encoding: chunked"])
async def test_t_08_what_is_on_its_way_at_the_deadline_is_cut(
    length: bytes, autojump_clock: MockClock
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n")
        await dribble(wire, b"1\r\nx\r\n" * 99, 1, 6)

    proxy = Recorder()
    async with open_gateway(proxy, origin, conf=WHOLE) as gateway:
        watch = Watch()
        with pytest.raises(CutError):
            await gateway.exchange(GET)
        assert watch.seconds == about(30)
    assert (None, True) not in proxy.pieces("response_body_filter")
    assert len(proxy.of("logging")) == 1
    assert gateway.records[0].status == 200


async def test_t_08_an_upload_too_ends_at_the_deadline(autojump_clock: MockClock) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, answers(OK), conf=WHOLE) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
            nursery.start_soon(dribble, client, bytes(99), 1)
            assert (await client.message()).status == 504
            nursery.cancel_scope.cancel()
    assert (None, True) not in proxy.pieces("request_body_filter")


async def test_t_08_a_request_in_time_notices_nothing_of_it(autojump_clock: MockClock) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, answers(OK), conf=WHOLE) as gateway:
        client = gateway.connect()
        for _ in range(4):
            await client.send(GET)
            assert (await client.message()).body == b"hello"
            await trio.sleep(20)
    assert [call.args["e"] for call in proxy.of("logging")] == [None] * 4


async def test_t_08_a_client_that_leaves_before_the_deadline_is_that(
    autojump_clock: MockClock,
) -> None:
    proxy = Recorder(hooks={"request_filter": sleeps})
    async with open_gateway(proxy, answers(OK), conf=WHOLE) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.sleep(1)
        client.close()
        await gateway.ended()
    assert the_error(proxy).etype == ErrorType.ConnectionClosed
    assert the_error(proxy).esource is ErrorSource.DOWNSTREAM


async def test_t_08_a_tunnel_outlives_the_deadline(autojump_clock: MockClock) -> None:
    async def echo(wire: Wire) -> None:
        await wire.head()
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
        )
        while await wire.more():
            await wire.send(bytes(wire.buffer))
            wire.buffer.clear()

    async with open_gateway(Recorder(), echo, conf=WHOLE) as gateway:
        client = gateway.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        await client.head()
        await trio.sleep(200)
        await client.send(b"still here")
        await client.more()
        assert client.buffer == b"still here"


async def test_t_08_reverse_answers_the_deadline_with_504_too(autojump_clock: MockClock) -> None:
    async def silent(wire: Wire) -> None:
        await wire.message()
        await wire.more()

    async with open_gateway(Reverse([ORIGIN]), silent, conf=WHOLE) as gateway:
        assert (await gateway.exchange(GET)).status == 504


# -- the knobs of a session ----------------------------------------------------------------------


@asynccontextmanager
async def turned(
    knob: Callable[[Session], object], origin: Any = None, **kwargs: Any
) -> AsyncIterator[tuple[Gateway, Wire, Recorder]]:
    """Run a gateway whose sessions have a knob turned, with one client."""
    proxy = Recorder(hooks=with_knob(knob))
    async with open_gateway(proxy, answers(OK) if origin is None else origin, **kwargs) as gateway:
        yield gateway, gateway.connect(), proxy


@pytest.mark.parametrize(
    ("seconds", "kept_for"), [(None, None), (3, 3.0), (500.0, 500.0), (0, 2000.0)]
)
async def test_set_keepalive(
    seconds: float | None, kept_for: float | None, autojump_clock: MockClock
) -> None:
    async with turned(lambda s: s.set_keepalive(seconds)) as (_, client, _p):
        await client.send(GET)
        response = await client.message()
        assert response.get("connection") == ("close" if seconds is None else "keep-alive")
        watch = Watch()
        with trio.move_on_after(2000) as scope:
            assert await client.at_end()
        if kept_for is None:
            assert watch.seconds < 3
        else:
            assert watch.seconds == about(kept_for)
        assert scope.cancelled_caught == (seconds == 0)


async def test_set_keepalive_does_not_overrule_a_client_that_closes(
    autojump_clock: MockClock,
) -> None:
    async with turned(lambda s: s.set_keepalive(60)) as (_, client, _p):
        await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await client.message()).get("connection") == "close"
        assert await client.at_end()


@pytest.mark.parametrize("left", [0, 2])
async def test_set_keepalive_reuses_remaining(left: int, autojump_clock: MockClock) -> None:
    def knob(session: Session) -> None:
        if session.req_header().path == "/first":
            session.set_keepalive_reuses_remaining(left)

    async with turned(knob) as (_, client, _p):
        said = []
        for number in range(left + 1):
            await client.send(GET.replace(b"/path", b"/first") if not number else GET)
            said.append((await client.message()).get("connection"))
        assert said == ["keep-alive"] * left + ["close"]
        assert await client.at_end()


@pytest.mark.parametrize("seconds", [5, 120.0, None])
async def test_set_read_timeout(seconds: float | None, autojump_clock: MockClock) -> None:
    async with turned(lambda s: s.set_read_timeout(seconds)) as (_, client, _p):
        await client.send(POST_9)
        watch = Watch()
        if seconds is None:
            await trio.sleep(3000)
            await client.send(b"123456789")
            assert (await client.message()).status == 200
        else:
            assert (await client.message()).status == 408
            assert watch.seconds == about(seconds)


@pytest.mark.parametrize("seconds", [5, 120.0, None])
async def test_set_write_timeout(seconds: float | None, autojump_clock: MockClock) -> None:
    origin = streaming(1 << 20, [])
    async with turned(lambda s: s.set_write_timeout(seconds), origin, lockstep=True) as (
        gateway,
        client,
        _p,
    ):
        await client.send(GET)
        head = await client.head()
        watch = Watch()
        if seconds is None:
            await trio.sleep(3000)
            await client.body(head)
            assert len(head.body) == 1 << 20
        else:
            await gateway.ended()
            assert watch.seconds == about(seconds)


@pytest.mark.parametrize(
    ("rate", "size", "allowed"),
    [
        (1000.0, 10_000, 10.0),  # the time that this many bytes take
        (1000.0, 10, 1.0),  # never less than a second
        (10.0, 4_096, 409.6),  # it wins over the write timeout of 60 s
        (0.0, 10_000, 60.0),  # off
        (None, 10_000, 60.0),
    ],
)
async def test_set_min_send_rate(
    rate: float | None, size: int, allowed: float, autojump_clock: MockClock
) -> None:
    async def answer(session: Session, _ctx: object) -> bool:
        session.set_min_send_rate(rate)
        await session.write_response_header(ResponseHeader(200, {"Content-Length": str(size)}))
        watch = Watch()
        with pytest.raises(Exception, match="WriteTimedout"):
            await session.write_response_body(bytes(size), True)
        assert watch.seconds == about(allowed)
        return True

    proxy = Recorder(hooks={"request_filter": answer})
    async with open_gateway(proxy, answers(OK), lockstep=True) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await client.head()
        await gateway.ended()
    assert the_error(proxy) is None or the_error(proxy).esource is not ErrorSource.UPSTREAM


async def test_set_min_send_rate_lets_a_client_go_that_is_fast_enough(
    autojump_clock: MockClock,
) -> None:
    origin = streaming(65536, [])
    async with turned(lambda s: s.set_min_send_rate(1000), origin, lockstep=True) as (
        _,
        client,
        proxy,
    ):
        await client.send(GET)
        message = await client.head()
        while len(message.body) < 65536:  # some 1,300 bytes a second
            await trio.sleep(3)
            await client.more()
            message.body += bytes(client.buffer)
            client.buffer.clear()
        await trio.testing.wait_all_tasks_blocked()
    assert the_error(proxy) is None


@pytest.mark.parametrize("seconds", [0.5, 30])
async def test_set_total_drain_timeout(seconds: float, autojump_clock: MockClock) -> None:
    def knob(session: Session) -> None:
        session.set_total_drain_timeout(seconds)

    proxy = Recorder(hooks={**with_knob(knob), "request_filter": refuse})
    async with open_gateway(proxy, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(POST_9)
        assert (await client.message()).status == 403
        watch = Watch()
        assert await client.at_end()
        assert watch.seconds == about(seconds)


@pytest.mark.parametrize("ignore", [True, False])
async def test_set_ignore_info_resp(ignore: bool, autojump_clock: MockClock) -> None:
    info = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    origin = answers(info + OK)
    async with turned(lambda s: s.set_ignore_info_resp(ignore), origin) as (_, client, _p):
        await client.send(
            b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
        )
        statuses = [(await client.message()).status]
        while statuses[-1] < 200:
            statuses.append((await client.message()).status)
        # The 100 goes on all the same: the client has asked for it.
        assert statuses == ([100, 200] if ignore else [103, 100, 200])


@pytest.mark.parametrize("close", [True, False])
async def test_set_close_on_response_before_downstream_finish(
    close: bool, autojump_clock: MockClock
) -> None:
    async def answer(session: Session, _ctx: object) -> bool:
        session.set_close_on_response_before_downstream_finish(close)
        await session.write_response_header(ResponseHeader(403, {"Content-Length": "0"}), True)
        return True

    proxy = Recorder(hooks={"request_filter": answer})
    async with open_gateway(proxy, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(POST_9)
        response = await client.message()
        assert response.get("connection") == ("close" if close else "keep-alive")
        await client.send(b"123456789")
        if not close:
            await client.send(GET)
            assert (await client.message()).status == 403
        else:
            assert await client.at_end()


@pytest.mark.parametrize("abort", [True, False])
async def test_set_abort_on_close(abort: bool, autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.message()
        await trio.sleep(10)
        try:
            await wire.send(OK)
        except trio.BrokenResourceError:
            assert abort

    async with turned(lambda s: s.set_abort_on_close(abort), origin) as (gateway, client, proxy):
        await client.send(GET)
        await trio.sleep(1)
        watch = Watch()
        await client.half_close()
        if abort:
            assert await client.at_end()
            assert watch.seconds < 1
            await gateway.ended()
            assert the_error(proxy).etype == ErrorType.ConnectionClosed
        else:
            assert (await client.message()).body == b"hello"
            assert watch.seconds == about(9)
            assert await client.at_end()
            await gateway.ended()
            assert the_error(proxy) is None


@pytest.mark.parametrize("knob", ["set_min_send_rate", "set_keepalive_reuses_remaining"])
async def test_a_knob_refuses_what_makes_no_sense(knob: str, autojump_clock: MockClock) -> None:
    def turn(session: Session) -> None:
        with pytest.raises(ValueError, match="0 or more"):
            getattr(session, knob)(-1)

    async with turned(turn) as (_, client, _p):
        await client.send(GET)
        assert (await client.message()).status == 200


class Bare(ProxyHttp[None]):
    """Overrides nothing it need not: the way without filters has the same times."""

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return ORIGIN


async def test_the_deadline_of_a_request_without_filters(autojump_clock: MockClock) -> None:
    async def silent(wire: Wire) -> None:
        await wire.message()
        await wire.more()

    async with open_gateway(Bare(), silent, conf=WHOLE) as gateway:
        watch = Watch()
        assert (await gateway.exchange(GET)).status == 504
        assert watch.seconds == about(30)
