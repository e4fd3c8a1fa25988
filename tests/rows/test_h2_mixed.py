"""What rows of HTTP/1 ask of HTTP/2 as well, and what only many streams at once can show."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_rows import assert_serves, get, h2_gateway, response
from tests._support.h2_wire import (
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    NO_ERROR,
    H2Wire,
    Head,
    request,
)
from tests._support.matrix import (
    H1,
    H1_TLS,
    H2_TLS,
    H2C,
    PAIRINGS,
    Exchange,
    Frames,
    Pairing,
    answers,
    authority_of,
    keeps,
    open_matrix,
)
from tests._support.recording import Ctx, CutError, Message, Recorder
from trioproxy import RequestHeader, ResponseHeader, ServerConf, Session
from trioproxy.testing._network import Link, Path

LENGTH_5 = [("content-length", "5")]

# -- however the bytes come ------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(1,), (3, 1, 7), (9, 1)], ids=str)
@pytest.mark.parametrize(
    "pairing",
    [each for each in PAIRINGS if each.down in (H2C, H2_TLS) or each.up in (H2C, H2_TLS)],
    ids=str,
)
async def test_messages_are_the_same_however_their_bytes_are_cut(
    pairing: Pairing, pieces: tuple[int, ...], autojump_clock: MockClock
) -> None:
    got: list[Message] = []
    link = Link(Path(pieces=pieces), Path(pieces=pieces))
    origin = keeps(got, answers(201, body=b"b" * 70, trailers=[("x-sum", "1")]))
    async with open_matrix(
        Recorder(), origin, pairing, link=link, upstream_link=link, check_windows=False
    ) as gateway:
        client = await gateway.connect()
        for _ in range(2):
            message = await client.exchange(
                "POST", fields=[("x-long", "v" * 40)], body=b"a" * 50, trailers=[("x-up", "0")]
            )
            assert (message.status, message.body) == (201, b"b" * 70)
            assert message.trailers == [(b"x-sum", b"1")]
    assert [(each.body, each.trailers) for each in got] == [(b"a" * 50, [(b"x-up", b"0")])] * 2


# -- many at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairing",
    [Pairing(H2C, H2C), Pairing(H2_TLS, H2_TLS), Pairing(H2C, H1), Pairing(H1_TLS, H2C)],
    ids=str,
)
async def test_streams_at_once_never_mix_their_bytes(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    streams, size = 20, 24_000

    def body(number: int, kind: str) -> bytes:
        return f"<{kind} {number:03}>".encode() * (size // 8)

    async def origin(exchange: Exchange) -> None:
        message = await exchange.message()
        number = int(message.start.split(b" ")[1].strip(b"/"))
        assert message.body == body(number, "up")
        await exchange.respond(200, [("x-number", str(number))], body(number, "dn"))

    link = Link(Path(capacity=20_000), Path(capacity=20_000))
    async with open_matrix(Recorder(), origin, pairing, link=link, upstream_link=link) as gateway:
        shared = await gateway.connect() if pairing.down.h2 else None

        async def one(number: int) -> None:
            client = shared or await gateway.connect()
            exchange = await client.open("POST", f"/{number}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, exchange, body(number, "up"))
                message = await exchange.message()
            assert message.get("x-number") == str(number)
            assert message.body == body(number, "dn")

        async def send(exchange: Exchange, data: bytes) -> None:
            for at in range(0, len(data), 5000):
                await exchange.send_data(data[at : at + 5000])
            await exchange.send_data(b"", end=True)

        async with trio.open_nursery() as nursery:
            for number in range(streams):
                nursery.start_soon(one, number)
        assert gateway.running.statistics().sessions_total == streams


# -- what an origin allows -------------------------------------------------------------------------


async def test_an_origin_that_allows_no_stream_costs_a_request_its_time_and_no_more(
    autojump_clock: MockClock,
) -> None:
    async def closed(wire: H2Wire) -> None:
        await wire.start({MAX_CONCURRENT_STREAMS: 0})
        while True:
            head = await wire.until(HeadersFrame)
            await wire.send(RstStreamFrame(head.stream_id, 7))

    recorder = Recorder()
    async with open_matrix(
        recorder, Frames(closed), Pairing(H1, H2C), check_windows=False
    ) as gateway:
        for _ in range(2):
            response_ = await gateway.exchange()
            assert response_.status in (502, 503)
        assert len(gateway.asked) <= 33


async def test_an_origin_that_allows_fewer_streams_later_is_listened_to(
    autojump_clock: MockClock,
) -> None:
    most = 0

    async def shrinking(wire: H2Wire) -> None:
        nonlocal most
        await wire.start({MAX_CONCURRENT_STREAMS: 10})
        await wire.until(HeadersFrame)
        await wire.send(SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 1}))
        while len([each for each in wire.of(SettingsFrame) if "ACK" in each.flags]) < 2:
            await wire.until(SettingsFrame)
        # What was opened before it could know is served as well.
        live = [head.stream_id for head in wire.of(HeadersFrame)]
        while True:
            for stream in live:
                await wire.headers(stream, [(":status", "204")], end=True)
            live = [(await wire.until(HeadersFrame)).stream_id]
            with trio.move_on_after(0.5):
                live.append((await wire.until(HeadersFrame)).stream_id)
            most = max(most, len(live))

    async with open_matrix(
        Recorder(), Frames(shrinking), Pairing(H1, H2C), check_windows=False
    ) as gateway:
        assert (await gateway.exchange()).status == 204
        statuses: list[int] = []

        async def one() -> None:
            statuses.append((await gateway.exchange()).status)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(one)
        assert statuses == [204] * 6
    assert most == 1


async def test_an_origin_that_says_nothing_of_itself_is_left_within_the_read_timeout(
    autojump_clock: MockClock,
) -> None:
    async def mute(wire: H2Wire) -> None:
        wire.answers = False
        await wire.at_end()

    async with open_matrix(
        Recorder(), Frames(mute), Pairing(H1, H2C), check_windows=False
    ) as gateway:
        started = trio.current_time()
        assert (await gateway.exchange()).status == 502
        assert trio.current_time() - started < 62


# -- H1-23 -----------------------------------------------------------------------------------------

EXPECTS = [("expect", "100-continue"), ("content-length", "2")]


async def test_h1_23_a_filter_that_reads_the_content_has_it_asked_for(
    autojump_clock: MockClock,
) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.req_header().target != b"/neighbour":
            assert await session.read_request_body() == b"up"
        return False

    got: list[Message] = []
    recorder = Recorder(hooks={"request_filter": request_filter})
    async with h2_gateway(keeps(got), recorder=recorder) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=EXPECTS))
        assert (await wire.head(1)).get(":status") == "100"
        await wire.data(1, b"up", end=True)
        assert await response(wire, 1) == ("200", b"hello")
        heads = [frame.get(":status") for frame in wire.received if isinstance(frame, Head)]
        assert heads == ["100", "200"]
    assert b"up" in [each.body for each in got]


@pytest.mark.parametrize("up", [H1, H2C], ids=str)
async def test_h1_23_a_final_answer_before_the_content_is_whole(
    up: Any, autojump_clock: MockClock
) -> None:
    cut: list[bool] = []

    async def origin(exchange: Exchange) -> None:
        head = await exchange.head()
        if b"/neighbour" in head.start:
            await exchange.respond(200, LENGTH_5, b"hello")
            return
        await exchange.respond(417, LENGTH_5, b"never")
        try:
            await exchange.message()
        except CutError:
            cut.append(True)

    async with h2_gateway(origin, up=up) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=EXPECTS))
        assert await response(wire, 1) == ("417", b"never")
        assert (await wire.until(RstStreamFrame, 1)).error_code == NO_ERROR
        await assert_serves(wire, 3)
        await gateway.matrix.sessions_ended()
    # The request that was never whole did not become so.
    assert cut == [True]


async def test_h1_23_another_expectation_is_417(autojump_clock: MockClock) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST", fields=[("expect", "the unexpected")]))
        assert (await wire.head(1)).get(":status") == "417"
        await assert_serves(wire, 3)


# -- large heads, large windows, large numbers -----------------------------------------------------


async def test_a_large_head_leaves_in_several_frames(autojump_clock: MockClock) -> None:
    fields = [("content-length", "5"), *[(f"x-{number}", "v" * 4000) for number in range(15)]]

    async with h2_gateway(answers(200, fields)) as gateway:
        wire = await gateway.frames()
        await wire.send(SettingsFrame(0, settings={MAX_FRAME_SIZE: 1 << 20}))
        await get(wire, 1)
        head = await wire.head(1)
        assert head.continuations >= 3
        assert len([name for name, _ in head.fields if name.startswith(b"x-")]) == 15
        await assert_serves(wire, 3)


async def test_a_large_request_head_reaches_an_h2_origin(autojump_clock: MockClock) -> None:
    got: list[Message] = []
    async with open_matrix(Recorder(), keeps(got), Pairing(H1, H2C)) as gateway:
        fields = [(f"x-{number}", "v" * 4000) for number in range(14)]
        assert (await gateway.exchange(fields=fields)).status == 200
    assert len([name for name, _ in got[0].fields if name.startswith(b"x-")]) == 14


async def test_the_largest_windows_and_the_last_stream_number_are_no_trouble(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(answers(fields=[("content-length", "5")])) as gateway:
        wire = await gateway.frames()
        await wire.send(
            SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 2**31 - 1}),
            WindowUpdateFrame(0, window_increment=2**31 - 1 - 65535),
        )
        await assert_serves(wire, 1)
        await assert_serves(wire, 2**31 - 1)
        await wire.ping()
        await gateway.neighbour_is_served()


async def test_a_window_over_its_top_by_settings_ends_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(answers(fields=[("content-length", "5")])) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        await wire.send(
            WindowUpdateFrame(1, window_increment=2**31 - 1 - 65535),
            SettingsFrame(0, settings={INITIAL_WINDOW_SIZE: 65536}),
        )
        assert (await wire.goaway()).error_code == 3


# -- filters that say what HTTP/2 has no words for -------------------------------------------------

HOP_BY_HOP = [
    ("Connection", "close, X-Named"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "close"),
    ("Transfer-Encoding", "chunked"),
    ("Upgrade", "h2c"),
]


async def test_h2_15_what_a_filter_adds_of_a_connection_never_reaches_an_h2_client(
    autojump_clock: MockClock,
) -> None:
    async def response_filter(_session: Session, head: ResponseHeader, _ctx: Ctx) -> None:
        for name, value in HOP_BY_HOP:
            head.headers.add(name, value)
        head.headers.add("X-Mixed-Case", "Kept")

    recorder = Recorder(hooks={"response_filter": response_filter})
    async with open_matrix(recorder, answers(fields=LENGTH_5), Pairing(H2C, H1)) as gateway:
        # The client refuses what is about a connection, and names that are not in lower case.
        message = await gateway.exchange()
        assert (message.status, message.body) == (200, b"hello")
        assert message.get("x-mixed-case") == "Kept"


async def test_h2_15_what_a_filter_adds_of_a_connection_never_reaches_an_h2_origin(
    autojump_clock: MockClock,
) -> None:
    async def upstream_request_filter(_session: Session, head: RequestHeader, _ctx: Ctx) -> None:
        for name, value in [*HOP_BY_HOP, ("TE", "gzip")]:
            head.headers.add(name, value)
        head.headers.set("Host", "other.test:8080")

    got: list[Message] = []
    recorder = Recorder(hooks={"upstream_request_filter": upstream_request_filter})
    async with open_matrix(recorder, keeps(got), Pairing(H1, H2C)) as gateway:
        assert (await gateway.exchange()).status == 200
    assert authority_of(got[0]) == "other.test:8080"
    assert got[0].fields == []


@pytest.mark.parametrize("down", [H1, H2C], ids=str)
async def test_a_filter_that_takes_the_host_away_sends_no_authority_that_is_empty(
    down: Any, autojump_clock: MockClock
) -> None:
    async def upstream_request_filter(_session: Session, head: RequestHeader, _ctx: Ctx) -> None:
        head.headers.remove("Host")

    got: list[Message] = []
    recorder = Recorder(hooks={"upstream_request_filter": upstream_request_filter})
    async with open_matrix(recorder, keeps(got), Pairing(down, H2C)) as gateway:
        assert (await gateway.exchange()).status in (200, 500)
    assert [authority_of(each) for each in got] in ([None], ["origin.test"], [])


# -- U1-01 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["response", "data", "push reply", "window"])
async def test_u1_01_what_an_origin_sends_unasked_is_never_the_answer_to_a_later_request(
    what: str, autojump_clock: MockClock
) -> None:
    async def poisoner(wire: H2Wire) -> None:
        await wire.start()
        head = await wire.until(HeadersFrame)
        await wire.headers(head.stream_id, [(":status", "200"), ("content-length", "5")])
        await wire.data(head.stream_id, b"hello", end=True)
        await wait_all_tasks_blocked()
        if what == "response":
            await wire.headers(3, [(":status", "200"), ("content-length", "4")])
            await wire.data(3, b"evil", end=True)
        elif what == "data":
            await wire.data(1, b"evil", end=True)
        elif what == "push reply":
            await wire.headers(2, [(":status", "200")], end=True)
        else:
            await wire.credit(3, 100)
        await wire.at_end()

    async def good(wire: H2Wire) -> None:
        await wire.start()
        while True:
            head = await wire.until(HeadersFrame)
            await wire.headers(head.stream_id, [(":status", "200"), ("content-length", "4")])
            await wire.data(head.stream_id, b"good", end=True)

    async with open_matrix(
        Recorder(),
        {"origin.test": [Frames(poisoner), Frames(good)]},
        Pairing(H1, H2C),
        check_windows=False,
    ) as gateway:
        assert (await gateway.exchange()).body == b"hello"
        await trio.sleep(1)
        assert (await gateway.exchange()).body == b"good"
        assert gateway.asked == ["origin.test"] * 2


async def test_h2_16_content_that_was_under_way_when_we_cancelled_is_credited(
    autojump_clock: MockClock,
) -> None:
    windows: list[int] = []

    async def script(wire: H2Wire) -> None:
        await wire.start()
        for _ in range(80):
            head = await wire.until(HeadersFrame)
            stream = head.stream_id
            await wire.headers(stream, [(":status", "200")])
            await wire.data(stream, b"x")
            await wire.until(RstStreamFrame, stream)
            for size in (16384, 16384, 16384, 16000):  # it had left before the reset came
                await wire.data(stream, bytes(size))
        await wire.ping()
        window = wire.accounts.out.connection
        windows.extend((window.peak - window.size, window.peak))
        await wire.at_end()

    async with open_matrix(
        Recorder(), Frames(script), Pairing(H1, H2C), check_windows=False
    ) as gateway:
        for _ in range(80):
            client = await gateway.connect()
            exchange = await client.request()
            await exchange.at_least(1)
            await exchange.reset()
            await gateway.sessions_ended()
            await wait_all_tasks_blocked()
        assert gateway.asked == ["origin.test"]
    # 80 times 64 KiB, of which less than half a window is held back.
    held, whole = windows
    assert held <= whole // 2 < 80 * 65000


# -- T-04 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [H2C, H2_TLS], ids=str)
async def test_t_04_each_gap_in_a_response_has_its_time(up: Any, autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await trio.sleep(50)
        await exchange.send_head(200)
        for _ in range(3):
            await trio.sleep(50)
            await exchange.send_data(b"tick")
        await exchange.gone()

    recorder = Recorder()
    async with open_matrix(recorder, origin, Pairing(H1, up)) as gateway:
        started = trio.current_time()
        with pytest.raises(CutError) as cut:
            await gateway.exchange()
        assert 255 < trio.current_time() - started < 265
    assert cut.value.message is not None
    assert cut.value.message.body == b"tick" * 3
    assert recorder.shown()[-1] == "logging(ReadTimedout)"


async def test_f_12_an_origin_that_takes_no_content_is_left_after_the_write_timeout(
    autojump_clock: MockClock,
) -> None:
    async def origin(exchange: Exchange) -> None:
        exchange.hold()
        await exchange.gone()

    conf = ServerConf(write_timeout=20)
    recorder = Recorder()
    async with open_matrix(recorder, origin, Pairing(H2C, H2C), conf=conf) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")

        async def upload() -> None:
            try:
                await exchange.send_data(b"x" * 1_000_000, end=True)
            except CutError:
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            started = trio.current_time()
            assert (await exchange.message()).status == 502
            assert 18 < trio.current_time() - started < 25
        await gateway.sessions_ended()
    assert recorder.shown()[-1] == "logging(WriteTimedout)"


async def test_a_response_that_ends_by_an_empty_frame_is_whole(
    autojump_clock: MockClock,
) -> None:
    async def script(wire: H2Wire) -> None:
        await wire.start()
        while True:
            head = await wire.until(HeadersFrame)
            await wire.headers(head.stream_id, [(":status", "200"), ("content-length", "5")])
            await wire.data(head.stream_id, b"hello")
            await wait_all_tasks_blocked()
            await wire.data(head.stream_id, b"", end=True)

    for down in (H1, H2C):
        async with open_matrix(
            Recorder(), Frames(script), Pairing(down, H2C), check_windows=False
        ) as gateway:
            assert (await gateway.exchange()).body == b"hello"


async def test_content_in_answer_to_head_is_never_sent_on(autojump_clock: MockClock) -> None:
    async def script(wire: H2Wire) -> None:
        await wire.start()
        while True:
            head = await wire.until(HeadersFrame)
            await wire.headers(head.stream_id, [(":status", "200"), ("content-length", "5")])
            await wire.data(head.stream_id, b"hello", end=True)

    async with open_matrix(
        Recorder(), Frames(script), Pairing(H2C, H2C), check_windows=False
    ) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("HEAD"), end=True)
        frame = await wire.until(Frame, 1)
        while not isinstance(frame, RstStreamFrame) and "END_STREAM" not in frame.flags:
            assert not isinstance(frame, DataFrame) or not frame.data
            frame = await wire.until(Frame, 1)
        await wire.headers(3, request(), end=True)
        assert await response(wire, 3) == ("200", b"hello")
