"""Rows H2-02, H2-03, H2-10 and H2-20: streams that are reset, provoked, or too many."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PriorityFrame,
    RstStreamFrame,
    WindowUpdateFrame,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_rows import assert_serves, flood, get, h2_gateway, never, response
from tests._support.h2_wire import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    INITIAL_WINDOW_SIZE,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    H2Wire,
    request,
)
from tests._support.matrix import Exchange
from tests._support.recording import Ctx, Recorder
from trioproxy import ErrorSource, ErrorType, ProxyError, ServerConf, Session

LOGGED = "logging(ConnectionClosed)"


def opened_and_reset(wire: H2Wire, stream: int) -> list[Frame]:
    """Return the frames that open a stream and reset it at once."""
    return [*wire.head_frames(stream, request(), end=True), RstStreamFrame(stream, CANCEL)]


# -- H2-02 ---------------------------------------------------------------------------------------


async def test_h2_02_a_rapid_reset_is_calmed_when_its_budget_is_empty(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(never) as gateway:
        connections = len(gateway.matrix.asked)
        wire = await gateway.frames()
        await wire.send(*[frame for n in range(499) for frame in opened_and_reset(wire, 2 * n + 1)])
        await wire.ping()
        await gateway.neighbour_is_served()
        await wire.send(
            *[frame for n in range(499, 600) for frame in opened_and_reset(wire, 2 * n + 1)]
        )
        gone = await wire.goaway()
        assert gone.error_code == ENHANCE_YOUR_CALM
        assert gone.last_stream_id <= 1003
        await gateway.matrix.sessions_ended()
        # Nobody was asked for a stream that was reset already; a read may end between the two.
        assert len(gateway.matrix.asked) <= connections + 2
        assert gateway.limits_hit()["h2_reset_burst"] == 1


async def test_h2_02_the_budget_comes_back_with_time(autojump_clock: MockClock) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        stream = 1
        for _ in range(3):
            burst: list[Frame] = []
            for _ in range(320):
                burst += opened_and_reset(wire, stream)
                stream += 2
            await wire.send(*burst)
            await trio.sleep(10)
        await assert_serves(wire, stream)


async def test_h2_02_a_stream_counts_until_its_session_has_ended(
    autojump_clock: MockClock,
) -> None:
    async def slow(_session: Session, _ctx: Ctx) -> bool:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return False

    recorder = Recorder()
    async with h2_gateway(never, recorder=recorder) as gateway:
        recorder.hooks["request_filter"] = slow
        wire = await gateway.frames()
        for number in range(120):
            await wire.send(*opened_and_reset(wire, 2 * number + 1))
        await wire.ping()
        # At no time were there more than 100 sessions, however fast their streams went.
        assert gateway.matrix.running.statistics().sessions == 100
        assert len(recorder.of("new_ctx")) == 100
        await trio.sleep(6)
        recorder.hooks.clear()
        await assert_serves(wire, 301)


# -- H2-03 ---------------------------------------------------------------------------------------


async def too_much_credit(wire: H2Wire, stream: int) -> None:
    await wire.send(WindowUpdateFrame(stream, window_increment=2**31 - 1))


async def zero_credit(wire: H2Wire, stream: int) -> None:
    await wire.send_raw(b"\0\0\4\x08\0" + stream.to_bytes(4, "big") + bytes(4))


async def data_after_the_end(wire: H2Wire, stream: int) -> None:
    await wire.send(DataFrame(stream, b"x"))


async def headers_after_the_end(wire: H2Wire, stream: int) -> None:
    await wire.headers(stream, [("x-late", "1")], end=True)


async def depends_on_itself(wire: H2Wire, stream: int) -> None:
    await wire.send(PriorityFrame(stream, depends_on=stream))


Fault = Callable[[H2Wire, int], Awaitable[None]]
FAULTS: dict[Fault, int] = {
    too_much_credit: FLOW_CONTROL_ERROR,
    zero_credit: PROTOCOL_ERROR,
    data_after_the_end: STREAM_CLOSED,
    headers_after_the_end: STREAM_CLOSED,
    depends_on_itself: PROTOCOL_ERROR,
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_h2_03_a_stream_error_ends_one_session_and_nothing_else(
    fault: Fault, autojump_clock: MockClock
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await get(wire, 1)
        await get(wire, 3)
        await wait_all_tasks_blocked()
        await fault(wire, 1)
        assert (await wire.until(RstStreamFrame)).error_code == FAULTS[fault]
        await assert_serves(wire, 5)
        assert wire.resets() == {1: FAULTS[fault]}
        assert gateway.matrix.running.statistics().sessions == 1
        error = gateway.recorder.of("logging")[0].args["e"]
        assert (error.etype, error.esource) == (
            ErrorType.ConnectionClosed,
            ErrorSource.DOWNSTREAM,
        )


async def provoke(wire: H2Wire, times: int) -> None:
    """Open streams and provoke an error on each, until the connection ends."""
    faults = list(FAULTS)
    with contextlib.suppress(EOFError, trio.BrokenResourceError):
        for number in range(times):
            stream = 2 * number + 1
            await get(wire, stream)
            await faults[number % len(faults)](wire, stream)
            if number % 50 == 49:
                await wire.ping()
        raise AssertionError("all went through")


async def test_h2_03_resets_that_are_provoked_are_paid_from_the_same_budget(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await provoke(wire, 700)
        (gone,) = wire.of(GoAwayFrame)
        assert gone.error_code == ENHANCE_YOUR_CALM
        assert len(wire.resets()) <= 501
        await gateway.matrix.sessions_ended()


@pytest.mark.parametrize(
    "frame",
    [DataFrame(1, b"x"), WindowUpdateFrame(1, window_increment=1), RstStreamFrame(1, CANCEL)],
    ids=lambda frame: type(frame).__name__,
)
async def test_h2_03_frames_on_a_stream_that_was_reset_are_paid_for_too(
    frame: Frame, autojump_clock: MockClock
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await wire.send(*opened_and_reset(wire, 1))
        await wire.send(*[frame] * 490)
        await wire.ping()
        # Content is answered, so that who sends it learns that there is nobody.
        assert wire.resets() == ({1: STREAM_CLOSED} if isinstance(frame, DataFrame) else {})
        await wire.send(*[frame] * 20)
        assert (await wire.goaway()).error_code == ENHANCE_YOUR_CALM


async def test_h2_03_what_was_under_way_to_a_stream_that_was_given_up_is_free(
    autojump_clock: MockClock,
) -> None:
    def refuse(session: Session, ctx: Ctx) -> None:
        if session.req_header().method == "POST":
            raise ProxyError.status(413)

    recorder = Recorder(hooks={"request_filter": refuse})
    async with h2_gateway(recorder=recorder) as gateway:
        wire = await gateway.frames()
        for stream in range(1, 21, 2):
            await wire.headers(stream, request("POST"))
            assert (await response(wire, stream))[0] == "413"
            assert (await wire.until(RstStreamFrame)).error_code == NO_ERROR
            await wire.send(*[DataFrame(stream, bytes(500))] * 131)
            await wire.send(WindowUpdateFrame(stream, window_increment=1))
        await wire.ping()
        await assert_serves(wire, 21)
        await flood(wire, [DataFrame(19, bytes(500))] * 100, times=8)
        assert (await wire.goaway()).error_code == ENHANCE_YOUR_CALM


async def test_h2_03_a_header_block_on_a_stream_that_was_reset_still_counts_for_the_table(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        await wire.send(RstStreamFrame(1, CANCEL))
        await wire.headers(1, [("x-trailer", "that fills the table")], end=True)
        await wire.headers(
            3, request("GET", "/neighbour", [("x-trailer", "that fills the table")]), end=True
        )
        assert await response(wire, 3) == ("200", b"hello")


@pytest.mark.parametrize("kind", ["DATA", "HEADERS", "WINDOW_UPDATE", "RST_STREAM"])
async def test_h2_03_a_frame_for_a_stream_that_never_was_ends_the_connection(
    kind: str, autojump_clock: MockClock
) -> None:
    frames: dict[str, Frame] = {
        "DATA": DataFrame(9, b"x"),
        "HEADERS": HeadersFrame(2, b"\x82\x84\x86", flags=["END_HEADERS"]),
        "WINDOW_UPDATE": WindowUpdateFrame(9, window_increment=1),
        "RST_STREAM": RstStreamFrame(9, CANCEL),
    }
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.send(frames[kind])
        assert (await wire.goaway()).error_code == PROTOCOL_ERROR


@pytest.mark.parametrize("stream", [1, 3])
async def test_h2_03_a_stream_below_an_earlier_one_ends_the_connection(
    stream: int, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await get(wire, 3)
        await response(wire, 3)
        await get(wire, stream)
        gone = await wire.goaway()
        assert gone.error_code in (PROTOCOL_ERROR, STREAM_CLOSED)
        assert len(gateway.recorder.of("new_ctx")) == 1


# -- H2-10 ---------------------------------------------------------------------------------------


async def test_h2_10_one_stream_more_than_advertised_is_refused(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        assert wire.settings[3] == 100
        for number in range(101):
            # A field that the table keeps, so that a block that was skipped would be noticed.
            await wire.headers(2 * number + 1, request(fields=[(f"x-{number}", "1")]), end=True)
        assert (await wire.until(RstStreamFrame)).error_code == REFUSED_STREAM
        assert wire.resets() == {201: REFUSED_STREAM}
        await wire.send(RstStreamFrame(1, CANCEL))
        await wire.ping()
        await wire.headers(
            203, request(path="/neighbour", fields=[("x-100", "1"), ("x-99", "1")]), end=True
        )
        assert await response(wire, 203) == ("200", b"hello")
        assert gateway.matrix.running.statistics().sessions == 99


async def test_h2_10_a_stream_that_both_sides_ended_makes_room_at_once(
    autojump_clock: MockClock,
) -> None:
    async def slow(session: Session, e: Exception | None, ctx: Ctx) -> None:
        await trio.sleep(0.9)

    recorder = Recorder(hooks={"logging": slow})
    async with h2_gateway(recorder=recorder, conf=ServerConf(h2_max_streams=1)) as gateway:
        wire = await gateway.frames()
        for stream in (1, 3):
            await get(wire, stream)
            assert await response(wire, stream) == ("200", b"hello")
        await wire.headers(5, request("POST"), end=False)
        await wire.send(DataFrame(5, b"content", flags=["END_STREAM"]))
        assert await response(wire, 5) == ("200", b"hello")
        await get(wire, 7)
        assert await response(wire, 7) == ("200", b"hello")
        assert wire.resets() == {}
        assert len(recorder.of("logging")) == 4


async def test_h2_10_ten_times_as_many_are_calmed(autojump_clock: MockClock) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        for number in range(1200):
            try:
                await get(wire, 2 * number + 1)
            except trio.BrokenResourceError:
                break
        gone = await wire.goaway()
        assert gone.error_code == ENHANCE_YOUR_CALM
        assert 900 < len(wire.resets()) <= 1001
        assert len(gateway.recorder.of("new_ctx")) == 100
        await gateway.matrix.sessions_ended()


# -- H2-20 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [NO_ERROR, PROTOCOL_ERROR, CANCEL, ENHANCE_YOUR_CALM, 0xFFFFFF])
async def test_h2_20_a_reset_of_any_code_cancels_exactly_its_session(
    code: int, autojump_clock: MockClock
) -> None:
    gone: list[bytes] = []

    async def origin(exchange: Exchange) -> None:
        head = await exchange.head()
        await never(exchange)
        if b"/neighbour" not in head.start:
            gone.append(head.start)

    async with h2_gateway(origin) as gateway:
        wire = await gateway.frames()
        for stream in (1, 3, 5):
            await get(wire, stream, f"/{stream}")
        await wait_all_tasks_blocked()
        await wire.send(RstStreamFrame(3, code))
        await wire.ping()
        await wait_all_tasks_blocked()
        assert gone == [b"GET /3 HTTP/1.1"]
        assert gateway.matrix.running.statistics().sessions == 2
        (record,) = [each for each in gateway.matrix.records if each.target == b"/3"]
        assert (record.status, record.body_bytes_sent) == (0, 0)
        await assert_serves(wire, 7)
        assert wire.resets() == {}


@pytest.mark.parametrize("whole", [True, False])
async def test_h2_20_a_client_that_leaves_with_the_whole_response_has_not_left_early(
    whole: bool, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames(start=False)
        await wire.start({INITIAL_WINDOW_SIZE: 2})
        await get(wire, 1)
        await wire.until(DataFrame, 1)
        await wait_all_tasks_blocked()
        server = gateway.latest()
        # The last frame goes out, and the client is gone, before the exchange's task runs again.
        server.feed(WindowUpdateFrame(1, window_increment=3 if whole else 2).serialize())
        server._give_turns()
        server.lose(ErrorType.ConnectionClosed, "the connection was closed")
        await wait_all_tasks_blocked()
        logged = gateway.recorder.of("logging")
        assert [call.shown for call in logged] == ["logging" if whole else LOGGED]


@pytest.mark.parametrize("when", ["filter", "upload", "download"])
async def test_h2_20_it_does_so_whatever_the_session_is_doing(
    when: str, autojump_clock: MockClock
) -> None:
    async def forever(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().target != b"/neighbour":
            await trio.sleep_forever()
        return False

    async def origin(exchange: Exchange) -> None:
        head = await exchange.head()
        if b"/neighbour" in head.start:
            await exchange.respond(200, [("content-length", "5")], b"hello")
        elif when == "download":
            await exchange.send_head(200)
            while True:
                await exchange.send_data(b"x" * 10000)
        else:
            await exchange.gone()

    recorder = Recorder(hooks={"request_filter": forever} if when == "filter" else {})
    async with h2_gateway(origin, recorder=recorder, check_windows=False) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"), end=when == "download")
        if when == "upload":
            await wire.send(DataFrame(1, b"x" * 16384), DataFrame(1, b"x" * 16384))
        elif when == "download":
            await wire.until(DataFrame, 1)
        await wait_all_tasks_blocked()
        await wire.send(RstStreamFrame(1, CANCEL))
        await wire.ping()
        await gateway.matrix.sessions_ended()
        assert recorder.shown()[-1] == LOGGED
        if when == "upload":
            wire.assert_windows_whole(wire.accounts.out.connection.peak // 2)
