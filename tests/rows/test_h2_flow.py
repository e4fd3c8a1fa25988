"""Rows H2-16 to H2-19 and R-07: flow control as an independent accountant sees it, and priorities."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_rows import Gateway, assert_serves, get, h2_gateway, never, response
from tests._support.h2_wire import (
    CANCEL,
    DEFAULT_WINDOW,
    FLOW_CONTROL_ERROR,
    INITIAL_WINDOW_SIZE,
    H2Wire,
    extension,
    request,
)
from tests._support.matrix import H1, H2C, Exchange, Pairing, open_matrix
from tests._support.recording import Ctx, CutError, Recorder
from trioproxy import ResponseHeader, Session
from trioproxy.testing._network import Link, Path

CONNECTION_WINDOW = 1 << 20
BIG = 400_000


async def big(exchange: Exchange) -> None:
    """Answer with much content, neighbours with little."""
    head = await exchange.message()
    if b"/neighbour" in head.start:
        await exchange.respond(200, [("content-length", "5")], b"hello")
    else:
        await exchange.respond(200, [("content-length", str(BIG))], b"x" * BIG)


def taken(wire: H2Wire, stream: int) -> int:
    """Return how much content of a stream has been read."""
    return sum(len(frame.data) for frame in wire.of(DataFrame, stream))


async def all_that_comes(wire: H2Wire) -> None:
    """Read what is there, until nothing more comes of itself."""
    for _ in range(3):
        await wait_all_tasks_blocked()
        await wire.ping()


# -- H2-16: receiving ----------------------------------------------------------------------------


async def test_h2_16_windows_are_64_kib_a_stream_and_1_mib_a_connection(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await wire.ping()
        assert INITIAL_WINDOW_SIZE not in wire.settings
        assert wire.accounts.out.connection.size == CONNECTION_WINDOW


async def test_h2_16_no_credit_comes_before_content_is_taken(autojump_clock: MockClock) -> None:
    async def stuck(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().target != b"/neighbour":
            await trio.sleep_forever()
        return False

    recorder = Recorder(hooks={"request_filter": stuck})
    async with h2_gateway(recorder=recorder) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        for _ in range(4):
            await wire.data(1, bytes(16383))
        await all_that_comes(wire)
        assert wire.accounts.out.connection.size == CONNECTION_WINDOW - 4 * 16383
        assert wire.accounts.out.stream(1).size == 3
        assert gateway.latest().buffered <= 65536 + 1000
        await wire.send(RstStreamFrame(1, CANCEL))
        await assert_serves(wire, 3)


@pytest.mark.parametrize("padding", [0, 255])
async def test_h2_16_a_stream_beyond_its_window_is_a_flow_control_error(
    padding: int, autojump_clock: MockClock
) -> None:
    async def stuck(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().target != b"/neighbour":
            await trio.sleep_forever()
        return False

    recorder = Recorder(hooks={"request_filter": stuck})
    async with h2_gateway(recorder=recorder) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        for _ in range(4):
            await wire.data(1, bytes(16000 - padding - 1 if padding else 16000), padding=padding)
        await wire.data(1, bytes(1535))
        await wire.ping()
        await wire.data(1, b"x")
        frame = await wire.until(
            Frame, None, lambda frame: isinstance(frame, (GoAwayFrame, RstStreamFrame))
        )
        assert isinstance(frame, (GoAwayFrame, RstStreamFrame))
        assert frame.error_code == FLOW_CONTROL_ERROR


async def test_h2_16_a_connection_beyond_its_window_is_one_too(
    autojump_clock: MockClock,
) -> None:
    async def stuck(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().target != b"/neighbour":
            await trio.sleep_forever()
        return False

    recorder = Recorder(hooks={"request_filter": stuck})
    async with h2_gateway(recorder=recorder, check_windows=False) as gateway:
        wire = await gateway.frames()
        left = CONNECTION_WINDOW
        stream = 1
        while left:
            await wire.headers(stream, request("POST"))
            for size in (16384, 16384, 16384, 16383):
                await wire.data(stream, bytes(min(size, left)))
                left -= min(size, left)
                if not left:
                    break
            stream += 2
        await wire.ping()
        assert gateway.latest().buffered <= CONNECTION_WINDOW + 65536
        await wire.headers(stream, request("POST"))
        await wire.data(stream, b"x")
        assert (await wire.goaway()).error_code == FLOW_CONTROL_ERROR
        await gateway.matrix.sessions_ended()


@pytest.mark.parametrize(("padding", "up"), [(0, H1), (200, H2C)], ids=str)
async def test_h2_16_credit_comes_back_for_all_of_a_frame_with_its_padding(
    padding: int, up: Any, autojump_clock: MockClock
) -> None:
    async with h2_gateway(up=up) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        sent = 0
        while sent < 3 * CONNECTION_WINDOW:
            piece = await wire.data_within_windows(1, bytes(4000), padding=padding)
            if piece is None:
                await wire.until(Frame)  # a WINDOW_UPDATE
            else:
                sent += piece
        await wire.data(1, b"", end=True)
        assert await response(wire, 1) == ("200", b"hello")
        await wire.ping()
        # What is held back at the end is less than half a window, however much went through.
        wire.assert_windows_whole(CONNECTION_WINDOW // 2)
        assert wire.accounts.out.connection.taken >= 3 * CONNECTION_WINDOW


async def test_h2_16_padding_alone_gives_credit_too(autojump_clock: MockClock) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        for _ in range(6):
            for number in range(60):
                await wire.data(1, b"x" if number % 5 == 0 else b"", padding=254)
            await trio.sleep(40)
            await wire.ping()
        # 360 times 255 bytes are more than the stream's window.
        assert wire.accounts.out.stream(1).size > 0


@pytest.mark.parametrize("how", ["reset by the client", "refused", "malformed", "answered"])
async def test_h2_16_what_nobody_will_read_is_credited_to_the_connection(
    how: str, autojump_clock: MockClock
) -> None:
    async def filter_(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().target == b"/neighbour":
            return False
        if how == "answered":
            await session.respond_error(403)
        else:
            await trio.sleep_forever()
        return True

    recorder = Recorder(hooks={"request_filter": filter_})
    async with h2_gateway(recorder=recorder) as gateway:
        wire = await gateway.frames()
        for number in range(60):  # 60 times 64 KiB: far more than the connection's window
            stream = 2 * number + 1
            fields = [("x-many", "1")] * 130 if how == "refused" else []
            fields += [("content-length", "100000")] if how == "malformed" else []
            await wire.headers(stream, request("POST", fields=fields))
            for size in (16384, 16384, 16384, 16383):
                await wire.data(stream, bytes(size))
            if how == "reset by the client":
                await wire.send(RstStreamFrame(stream, CANCEL))
            elif how == "malformed":
                await wire.headers(stream, [("x-end", "1")], end=True)
            await wire.ping()
        await gateway.matrix.sessions_ended()
        await wire.ping()
        wire.assert_windows_whole(CONNECTION_WINDOW // 2)
        await assert_serves(wire, 901)


async def test_h2_16_an_upstream_response_that_nobody_reads_is_credited_too(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_matrix(recorder, big, Pairing(H1, H2C)) as gateway:
        for _ in range(30):
            client = await gateway.connect()
            exchange = await client.request()
            await exchange.at_least(1)
            await exchange.reset()
            await gateway.sessions_ended()
        assert (await gateway.exchange(target="/neighbour")).body == b"hello"
        # All over one connection, whose window would have run out long ago.
        assert gateway.asked == ["origin.test"]
        (peer,) = gateway.upstream.peers
        peer.assert_windows_whole(peer.wire.accounts.out.connection.peak // 2)


# -- H2-17: sending ------------------------------------------------------------------------------


async def blocked(gateway: Gateway, window: int = 0) -> H2Wire:
    """Return a connection on which stream 1 waits for room to send content."""
    wire = await gateway.frames()
    await wire.send(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: window}))
    await wire.until(SettingsFrame, where=lambda frame: "ACK" in frame.flags)
    await get(wire, 1, "/big")
    await wire.head(1)
    await all_that_comes(wire)
    assert taken(wire, 1) == window
    return wire


async def test_h2_17_a_blocked_sender_wakes_on_credit_for_its_stream(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(big, check_windows=False) as gateway:
        wire = await blocked(gateway)
        for count in (1, 100, 20000):
            before = taken(wire, 1)
            await wire.credit(1, count)
            await all_that_comes(wire)
            assert taken(wire, 1) == before + count


async def test_h2_17_a_blocked_sender_wakes_on_credit_for_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(big, check_windows=False) as gateway:
        wire = await gateway.frames()
        await wire.credit(0, 1)
        await get(wire, 1, "/big")
        await wire.credit(1, BIG)
        await all_that_comes(wire)
        assert taken(wire, 1) == DEFAULT_WINDOW + 1
        await wire.credit(0, 5000)
        await all_that_comes(wire)
        assert taken(wire, 1) == DEFAULT_WINDOW + 5001
        await wire.credit(0, BIG)
        while taken(wire, 1) < BIG:
            await wire.until(DataFrame, 1)
        await assert_serves(wire, 3)


async def test_h2_17_a_blocked_sender_wakes_on_a_larger_initial_window(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(big, check_windows=False) as gateway:
        wire = await blocked(gateway)
        await wire.send(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 30000}))
        await all_that_comes(wire)
        assert taken(wire, 1) == 30000


async def test_h2_17_windows_may_be_negative(autojump_clock: MockClock) -> None:
    async with h2_gateway(big, check_windows=False) as gateway:
        wire = await blocked(gateway, 30000)
        await wire.send(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 10000}))
        await all_that_comes(wire)
        assert wire.accounts.back.stream(1).size == -20000
        await wire.credit(1, 20000)
        await all_that_comes(wire)
        assert taken(wire, 1) == 30000  # the window is 0 now
        await wire.credit(1, 7)
        await all_that_comes(wire)
        assert taken(wire, 1) == 30007


async def test_h2_17_a_blocked_sender_wakes_on_a_reset_and_on_the_connections_end(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(big) as gateway:
        wire = await blocked(gateway)
        await wire.send(RstStreamFrame(1, CANCEL))
        await wire.ping()
        await gateway.matrix.sessions_ended()
        await get(wire, 3, "/big")
        await wire.head(3)
        await wait_all_tasks_blocked()
        wire.close()
        await gateway.matrix.sessions_ended()
        assert [call.args["e"] is not None for call in gateway.recorder.of("logging")] == [
            True,
            True,
        ]


async def test_h2_17_one_blocked_stream_holds_little_and_blocks_no_other(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(big, check_windows=False) as gateway:
        wire = await blocked(gateway)
        assert gateway.latest().buffered <= 65536 + 1000
        await wire.send(SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 1000}))
        for stream in range(3, 43, 2):
            await assert_serves(wire, stream)
        assert taken(wire, 1) == 1000


async def test_r_07_stalled_streams_hold_64_kib_each_at_most(autojump_clock: MockClock) -> None:
    async with h2_gateway(big, check_windows=False) as gateway:
        wire = await blocked(gateway)
        for stream in range(3, 81, 2):
            await get(wire, stream, "/big")
        await all_that_comes(wire)
        connection = gateway.latest()
        assert len(connection.streams) == 40
        assert connection.buffered <= 40 * (65536 + 1000)
        await assert_serves_with_credit(wire, 81)
        await wire.send(*[RstStreamFrame(stream, CANCEL) for stream in range(1, 81, 2)])
        await wire.ping()
        await gateway.matrix.sessions_ended()
        assert connection.buffered == 0


async def assert_serves_with_credit(wire: H2Wire, stream: int) -> None:
    """Check that a small response comes where the stream gets room for it."""
    await get(wire, stream, "/neighbour")
    await wire.credit(stream, 100)
    assert await response(wire, stream) == ("200", b"hello")


async def test_h2_17_towards_an_origin_a_changed_window_and_credit_wake_the_upload(
    autojump_clock: MockClock,
) -> None:
    steps: list[int] = []

    async def origin(exchange: Exchange) -> None:
        exchange.hold()
        message = await exchange.at_least(DEFAULT_WINDOW)
        await wait_all_tasks_blocked()
        steps.append(len(message.body))
        exchange.go_on()
        await exchange.message()
        steps.append(len(message.body))
        await exchange.respond(200, [("content-length", "5")], b"hello")

    async with open_matrix(Recorder(), origin, Pairing(H2C, H2C)) as gateway:
        client = await gateway.connect()
        response_ = await client.exchange("POST", body=b"x" * BIG)
        assert response_.status == 200
    assert steps[0] <= DEFAULT_WINDOW + 65536  # what came before the origin held
    assert steps[1] == BIG


# -- H2-18 ---------------------------------------------------------------------------------------


async def test_h2_18_a_zero_window_stall_ends_within_the_write_timeout(
    autojump_clock: MockClock,
) -> None:
    gone = trio.Event()

    async def origin(exchange: Exchange) -> None:
        try:
            await big(exchange)
        except CutError:
            gone.set()

    async with h2_gateway(origin, check_windows=False) as gateway:
        wire = await blocked(gateway)
        started = trio.current_time()
        frame = await wire.until(RstStreamFrame, 1)
        assert frame.error_code == CANCEL
        assert 55 < trio.current_time() - started < 65
        await gone.wait()
        await assert_serves_with_credit(wire, 3)
        error = gateway.recorder.of("logging")[0].args["e"]
        assert str(error.etype) == "WriteTimedout"


async def test_h2_18_windows_of_one_byte_are_left_to_min_send_rate(
    autojump_clock: MockClock,
) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        session.set_min_send_rate(1000)
        return False

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with h2_gateway(big, recorder=recorder, check_windows=False) as gateway:
        wire = await blocked(gateway)
        ended = False
        for _ in range(200):
            await wire.credit(1, 1)
            await trio.sleep(1)
            await wire.ping()
            if wire.resets():
                ended = True
                break
        assert ended
        assert wire.resets() == {1: CANCEL}
        assert gateway.recorder.shown()[-1] == "logging(WriteTimedout)"


async def test_h2_18_a_socket_that_takes_nothing_is_closed_within_the_write_timeout(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(big, link=Link(back=Path(capacity=3000))) as gateway:
        wire = await gateway.frames()
        started = trio.current_time()
        for stream in (1, 3, 5):
            await get(wire, stream, "/big")
        await gateway.matrix.sessions_ended()
        server = gateway.matrix.running._server
        while len(server.connections) > 1:
            await server.ended.park()
        assert 55 < trio.current_time() - started < 70
        assert len(gateway.recorder.of("logging")) == 3


# -- H2-19 ---------------------------------------------------------------------------------------


async def answer_big(session: Session, _ctx: Ctx) -> bool:
    """Answer with all of the content in one write, so that a stream always has more to send."""
    if session.req_header().target == b"/neighbour":
        return False
    await session.write_response_header(ResponseHeader(200))
    await session.write_response_body(b"x" * BIG, True)
    return True


def ready() -> Recorder:
    """Return a proxy object that answers so."""
    return Recorder(hooks={"request_filter": answer_big})


async def order(
    gateway: Gateway, priorities: list[str | None], *, update: bool = False
) -> list[int]:
    """Return the streams of the first DATA frames, when all may send at the same moment."""
    wire = await gateway.frames()
    stream = 1
    await get(wire, stream, "/big")  # takes the connection's whole window
    await wire.head(stream)
    await all_that_comes(wire)
    assert wire.accounts.back.connection.size == 0
    for priority in priorities:
        stream += 2
        fields = [] if priority is None or update else [("priority", priority)]
        if update and priority is not None:
            body = stream.to_bytes(4, "big") + priority.encode()
            await wire.send(extension(0x10, 0, body))
        await wire.headers(stream, request(path="/big", fields=fields), end=True)
    await all_that_comes(wire)
    assert len(wire.of(HeadersFrame)) == len(priorities) + 1
    seen = len(wire.of(DataFrame))
    await wire.credit(0, 40 * 16384)
    await all_that_comes(wire)
    await wire.send(*[RstStreamFrame(number, CANCEL) for number in range(1, stream + 1, 2)])
    await wire.ping()
    await gateway.matrix.sessions_ended()
    return [frame.stream_id for frame in wire.of(DataFrame)[seen:]]


@pytest.mark.parametrize("update", [False, True], ids=["field", "PRIORITY_UPDATE"])
async def test_h2_19_urgent_streams_go_first_and_none_starves(
    update: bool, autojump_clock: MockClock
) -> None:
    async with h2_gateway(recorder=ready(), check_windows=False) as gateway:
        streams = await order(gateway, ["u=7", "u=0"], update=update)
    # Stream 5 is the urgent one; its window is 64 KiB.
    first = streams[:4]
    assert first.count(5) >= 3
    # The background one came along.
    assert streams.count(3) >= 1


async def test_h2_19_streams_of_one_urgency_that_are_incremental_share(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(recorder=ready(), check_windows=False) as gateway:
        streams = await order(gateway, ["u=3, i", "u=3, i"])
    shared = [stream for stream in streams if stream != 1][:6]
    assert shared.count(3) == 3
    assert shared.count(5) == 3


async def test_h2_19_others_come_one_after_the_other(autojump_clock: MockClock) -> None:
    async with h2_gateway(recorder=ready(), check_windows=False) as gateway:
        streams = await order(gateway, [None, None])
    waiting = [stream for stream in streams if stream != 1]
    assert waiting[:3] == [3, 3, 3]
    assert set(waiting) == {3, 5}
