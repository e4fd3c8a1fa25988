"""Rows H2-23 and S-07 over HTTP/2, T-06, S-01 and S-03: how connections and sessions end."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hyperframe.frame import GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_rows import get, response
from tests._support.h2_wire import (
    CANCEL,
    INTERNAL_ERROR,
    NO_ERROR,
    H2Wire,
    Head,
    request,
)
from tests._support.matrix import (
    H1,
    H2_TLS,
    H2C,
    Exchange,
    Matrix,
    Pairing,
    open_matrix,
)
from tests._support.recording import Ctx, Recorder
from trioproxy import BodyChunk, ServerConf, Session

FIRST = 2**31 - 1


class Slow:
    """An origin whose answers wait."""

    def __init__(self) -> None:
        self.go_on = trio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        head = await exchange.message()
        if not head.start.startswith(b"GET /quick"):
            await self.go_on.wait()
        await exchange.respond(200, [("content-length", "5")], b"hello")


async def drained(gateway: Matrix, nursery: trio.Nursery, grace: float | None = None) -> trio.Event:
    """Start a graceful stop; return what is set at its end."""
    done = trio.Event()

    async def drain() -> None:
        await gateway.running.drain(grace)
        done.set()

    nursery.start_soon(drain)
    await wait_all_tasks_blocked()
    return done


@pytest.mark.parametrize("down", [H2C, H2_TLS], ids=str)
async def test_h2_23_s_07_an_idle_connection_is_told_and_closed_at_once(
    down: Any, autojump_clock: MockClock
) -> None:
    async with open_matrix(Recorder(), Slow(), Pairing(down, H1)) as gateway:
        wire = await gateway.frames()
        await get(wire, 1, "/quick")
        assert await response(wire, 1) == ("200", b"hello")
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            done = await drained(gateway, nursery)
            gone = await wire.goaway()
            assert (gone.error_code, gone.last_stream_id) == (NO_ERROR, 1)
            await wire.half_close()
            await done.wait()
            assert trio.current_time() - started < 2


@pytest.mark.parametrize("answers_ping", [True, False])
async def test_h2_23_a_busy_connection_is_told_twice_and_ends_with_its_last_stream(
    answers_ping: bool, autojump_clock: MockClock
) -> None:
    origin = Slow()
    async with open_matrix(Recorder(), origin, Pairing(H2C, H1)) as gateway:
        wire = await gateway.frames()
        wire.answers = False
        await get(wire, 1)
        await wire.ping()
        async with trio.open_nursery() as nursery:
            started = trio.current_time()
            done = await drained(gateway, nursery)
            first = await wire.until(GoAwayFrame)
            assert (first.error_code, first.last_stream_id) == (NO_ERROR, FIRST)
            ping = await wire.until(PingFrame)
            # What was under way before the client could know is still taken.
            await get(wire, 3)
            if answers_ping:
                await wire.send(PingFrame(0, ping.opaque_data, flags=["ACK"]))
            second = await wire.until(GoAwayFrame)
            assert (second.error_code, second.last_stream_id) == (NO_ERROR, 3)
            assert (trio.current_time() - started < 0.5) == answers_ping
            assert trio.current_time() - started < 1.5
            # What comes later is not.
            await get(wire, 5)
            await wait_all_tasks_blocked()
            assert gateway.running.statistics().sessions == 2
            assert not done.is_set()
            origin.go_on.set()
            assert await response(wire, 1) == ("200", b"hello")
            assert await response(wire, 3) == ("200", b"hello")
            await wire.at_end()
            await wire.half_close()
            await done.wait()
        assert wire.of(GoAwayFrame)[-1].last_stream_id == 3


async def test_s_07_what_is_not_done_at_the_end_of_grace_is_cut(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_matrix(recorder, Slow(), Pairing(H2C, H2C)) as gateway:
        wire = await gateway.frames()
        await get(wire, 1)
        await wire.ping()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            done = await drained(gateway, nursery, 7)
            await wire.at_end()
            await done.wait()
        assert 6 < trio.current_time() - started < 10
    assert recorder.shown()[-1] == "logging(Cancelled)"


async def test_s_07_a_stream_of_events_may_go_on_until_grace(autojump_clock: MockClock) -> None:
    async def ticks(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [("content-type", "text/event-stream")])
        for _ in range(5):
            await exchange.send_data(b"tick")
            await trio.sleep(1)
        await exchange.send_data(b"", end=True)

    async with open_matrix(Recorder(), ticks, Pairing(H2C, H2C)) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        await exchange.at_least(4)
        async with trio.open_nursery() as nursery:
            done = await drained(gateway, nursery, 20)
            assert (await exchange.message()).body == b"tick" * 5
            await done.wait()


# -- T-06 ----------------------------------------------------------------------------------------


async def test_t_06_an_idle_connection_is_closed_after_its_time(
    autojump_clock: MockClock,
) -> None:
    async with open_matrix(Recorder(), Slow(), Pairing(H2C, H1)) as gateway:
        wire = await gateway.frames()
        await trio.sleep(30)
        await get(wire, 1, "/quick")
        assert await response(wire, 1) == ("200", b"hello")
        started = trio.current_time()
        # A PING is no request.
        await trio.sleep(40)
        await wire.ping()
        gone = await wire.goaway()
        assert (gone.error_code, gone.last_stream_id) == (NO_ERROR, 1)
        assert 59 < trio.current_time() - started < 62


async def test_t_06_a_connection_with_a_session_is_not_idle(autojump_clock: MockClock) -> None:
    origin = Slow()
    conf = ServerConf(read_timeout=500)
    async with open_matrix(Recorder(), origin, Pairing(H2C, H1), conf=conf) as gateway:
        wire = await gateway.frames()
        await get(wire, 1)
        await trio.sleep(200)
        origin.go_on.set()
        assert await response(wire, 1) == ("200", b"hello")


async def test_t_06_an_upstream_connection_is_closed_after_its_time(
    autojump_clock: MockClock,
) -> None:
    async with open_matrix(Recorder(), Slow(), Pairing(H1, H2C)) as gateway:
        assert (await gateway.exchange(target="/quick")).status == 200
        (peer,) = gateway.upstream.peers
        started = trio.current_time()
        await peer.ended.wait()
        assert 50 < trio.current_time() - started < 58
        (gone,) = peer.goaways
        assert gone.error_code == NO_ERROR


async def test_a_limit_on_requests_ends_a_connection_gracefully(
    autojump_clock: MockClock,
) -> None:
    conf = ServerConf(keepalive_request_limit=3)
    async with open_matrix(Recorder(), Slow(), Pairing(H2C, H1), conf=conf) as gateway:
        wire = await gateway.frames()
        for stream in (1, 3, 5):
            await get(wire, stream, "/quick")
            assert await response(wire, stream) == ("200", b"hello")
        gone = await wire.goaway()
        assert (gone.error_code, gone.last_stream_id) == (NO_ERROR, 5)


# -- S-01, S-03 ----------------------------------------------------------------------------------


async def test_s_01_a_callback_that_raises_costs_its_stream_alone(
    autojump_clock: MockClock,
) -> None:
    async def fail(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().target == b"/bad":
            raise ZeroDivisionError
        return False

    async with open_matrix(
        Recorder(hooks={"request_filter": fail}), Slow(), Pairing(H2C, H1)
    ) as gateway:
        wire = await gateway.frames()
        async with wire.one_write():
            await get(wire, 1, "/quick")
            await get(wire, 3, "/bad")
            await get(wire, 5, "/quick")
        assert [(await response(wire, stream))[0] for stream in (1, 3, 5)] == ["200", "500", "200"]


async def test_s_01_one_that_raises_in_a_body_resets_its_stream_alone(
    autojump_clock: MockClock,
) -> None:
    def fail(_session: Session, _body: BodyChunk, end: bool, ctx: Ctx) -> None:
        if end and ctx.number == 0:
            raise ZeroDivisionError

    async def in_two(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200)
        await exchange.send_data(b"hel")
        await wait_all_tasks_blocked()
        await exchange.send_data(b"lo", end=True)

    recorder = Recorder(hooks={"upstream_response_body_filter": fail})
    async with open_matrix(recorder, in_two, Pairing(H2C, H1)) as gateway:
        wire = await gateway.frames()
        await get(wire, 1)
        await get(wire, 3)
        frame = await wire.until(RstStreamFrame)
        assert (frame.stream_id, frame.error_code) == (1, INTERNAL_ERROR)
        assert await response(wire, 3) == ("200", b"hello")


async def test_an_origin_that_dies_mid_content_resets_the_stream_without_its_end(
    autojump_clock: MockClock,
) -> None:
    async def dies(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200)
        await exchange.send_data(b"hel")
        await wait_all_tasks_blocked()
        exchange.close()

    async with open_matrix(Recorder(), dies, Pairing(H2C, H1)) as gateway:
        wire = await gateway.frames()
        await get(wire, 1)
        frame = await wire.until(RstStreamFrame)
        assert (frame.stream_id, frame.error_code) == (1, CANCEL)
        assert not any("END_STREAM" in each.flags for each in wire.received)


async def test_h1_22_an_answer_before_the_uploads_end_is_whole_and_then_reset_without_error(
    autojump_clock: MockClock,
) -> None:
    async def refuse(session: Session, _ctx: Ctx) -> bool:
        await session.respond_error(403)
        return True

    async with open_matrix(
        Recorder(hooks={"request_filter": refuse}), Slow(), Pairing(H2C, H1)
    ) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=[("content-length", "100")]))
        assert (await response(wire, 1))[0] == "403"
        frame = await wire.until(RstStreamFrame, 1)
        assert frame.error_code == NO_ERROR
        # What was under way of the upload does no harm.
        await wire.data(1, bytes(50))
        await wire.data(1, bytes(50), end=True)
        await wire.ping()
        wire.assert_windows_whole(1 << 19)


async def test_t_02_an_upload_that_stalls_is_408_on_its_stream(
    autojump_clock: MockClock,
) -> None:
    async with open_matrix(Recorder(), Slow(), Pairing(H2C, H1)) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=[("content-length", "100")]))
        await wire.data(1, bytes(50))
        started = trio.current_time()
        assert (await response(wire, 1))[0] == "408"
        assert 59 < trio.current_time() - started < 62
        await get(wire, 3, "/quick")
        assert await response(wire, 3) == ("200", b"hello")


async def test_t_02_an_upload_that_dribbles_is_408_by_min_receive_rate(
    autojump_clock: MockClock,
) -> None:
    conf = ServerConf(min_receive_rate=1000)
    async with open_matrix(Recorder(), Slow(), Pairing(H2C, H1), conf=conf) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=[("content-length", "100000")]))
        started = trio.current_time()
        while not wire.of(HeadersFrame, 1):
            await wire.data(1, b"x")
            await trio.sleep(1)
            await wire.ping()
        assert wire.of(Head, 1)[0].get(":status") == "408"
        assert trio.current_time() - started < 70
        await get(wire, 3, "/quick")
        assert await response(wire, 3) == ("200", b"hello")


async def test_t_08_a_session_has_its_deadline_where_one_is_set(
    autojump_clock: MockClock,
) -> None:
    conf = ServerConf(request_timeout=5)
    statuses: list[int] = []
    for pairing in (Pairing(H1, H1), Pairing(H2C, H1), Pairing(H1, H2C), Pairing(H2C, H2C)):
        async with open_matrix(Recorder(), Slow(), pairing, conf=conf) as gateway:
            started = trio.current_time()
            statuses.append((await gateway.exchange()).status)
            assert 4 < trio.current_time() - started < 7
    assert len(set(statuses)) == 1
    assert statuses[0] >= 500


async def test_tls_04_h1_bytes_on_an_h2_connection_are_a_protocol_error(
    autojump_clock: MockClock,
) -> None:
    async with open_matrix(Recorder(), Slow(), Pairing(H2_TLS, H1)) as gateway:
        stream, _ = await gateway.stream()
        wire = H2Wire(stream)
        gateway.wires.append(wire)
        await wire.send_raw(b"GET / HTTP/1.1\r\nHost: site.test\r\n\r\n")
        frame = await wire.until(SettingsFrame)
        assert frame.settings
        assert (await wire.goaway()).error_code == 1


@pytest.mark.parametrize(
    "sent",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PRI / HTTP/2.0\r\n\r\n"],
    ids=["preface", "another"],
)
async def test_h1_35_a_preface_on_an_h1_listener_is_505(
    sent: bytes, autojump_clock: MockClock
) -> None:
    async with open_matrix(Recorder(), Slow(), Pairing(H1, H1)) as gateway:
        client = await gateway.connect()
        assert client.wire is not None
        await client.wire.send(sent)
        assert (await client.wire.message()).status in (400, 505)
