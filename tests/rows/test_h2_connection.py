"""Rows H2-01, H2-04 to H2-09 and R-08: what ends a connection, and what must not."""

from __future__ import annotations

import pytest
import trio
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from trio.testing import MockClock

from tests._support.h2_rows import assert_serves, flood, get, h2_gateway, never, response
from tests._support.h2_wire import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    HEADER_TABLE_SIZE,
    PREFACE,
    PROTOCOL_ERROR,
    SETTINGS_TIMEOUT,
    H2Wire,
    extension,
    request,
)
from tests._support.matrix import H2_TLS, Exchange, answers
from tests._support.recording import Wire
from trioproxy.testing._network import Link, Path

SETTINGS = SettingsFrame(0).serialize()


async def goaway_code(wire: H2Wire) -> int:
    """Return the code of the GOAWAY behind which the connection ends."""
    return int((await wire.goaway()).error_code)


# -- H2-01 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        PREFACE[:-6] + b"XX\r\n\r\n" + SETTINGS,
        b"\0" * 64,
        b"\x16\x03\x01\x02\0" * 8,
    ],
    ids=["HTTP/1", "altered", "zeros", "ClientHello"],
)
async def test_h2_01_what_is_not_the_preface_ends_the_connection(
    data: bytes, autojump_clock: MockClock
) -> None:
    async with h2_gateway(down=H2_TLS) as gateway:
        wire = await gateway.frames(start=False)
        await wire.send_raw(data)
        assert await goaway_code(wire) == PROTOCOL_ERROR
        assert gateway.recorder.calls == []


@pytest.mark.parametrize("size", [0, 5, 23, 24, 30])
async def test_h2_01_a_preface_that_stops_is_closed_within_ten_seconds(
    size: int, autojump_clock: MockClock
) -> None:
    async with h2_gateway(down=H2_TLS) as gateway:
        wire = await gateway.frames(start=False)
        wire.answers = False
        started = trio.current_time()
        await wire.send_raw((PREFACE + SETTINGS)[:size])
        await wire.at_end()
        assert 9 < trio.current_time() - started < 13


@pytest.mark.parametrize(
    "frame",
    [
        PingFrame(0, b"12345678"),
        WindowUpdateFrame(0, window_increment=1),
        SettingsFrame(0, flags=["ACK"]),
        HeadersFrame(1, b"\x82\x84\x86", flags=["END_HEADERS", "END_STREAM"]),
        extension(0xFA, 0, b"?"),
    ],
    ids=lambda frame: type(frame).__name__,
)
async def test_h2_01_settings_come_first(frame: Frame, autojump_clock: MockClock) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames(start=False)
        await wire.send_raw(PREFACE)
        await wire.send(frame)
        assert await goaway_code(wire) == PROTOCOL_ERROR


async def test_h2_01_settings_that_are_never_acknowledged_end_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames(start=False)
        wire.answers = False
        started = trio.current_time()
        await wire.start()
        await assert_serves(wire, 1)
        assert await goaway_code(wire) == SETTINGS_TIMEOUT
        assert 9 < trio.current_time() - started < 13


# -- H2-04 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100])
async def test_h2_04_a_continuation_flood_is_calmed(size: int, autojump_clock: MockClock) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.send(HeadersFrame(1, b"\x82"))
        await flood(wire, [ContinuationFrame(1, b"\0" * size)], times=17)
        assert await goaway_code(wire) == ENHANCE_YOUR_CALM
        assert gateway.recorder.calls == []


async def test_h2_04_a_block_of_more_than_128_kib_is_calmed(autojump_clock: MockClock) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.send(HeadersFrame(1, bytes(16384)))
        await flood(wire, [ContinuationFrame(1, bytes(16384))], times=8)
        assert await goaway_code(wire) == ENHANCE_YOUR_CALM


async def test_h2_04_a_block_that_never_ends_is_closed_within_fifteen_seconds(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        started = trio.current_time()
        await wire.send(HeadersFrame(1, b"\x82"))
        for _ in range(3):
            await trio.sleep(4)
            await wire.send(ContinuationFrame(1, b"\x84"))
        await wire.at_end()
        assert 14 < trio.current_time() - started < 18


async def test_h2_04_a_block_in_sixteen_pieces_is_served(autojump_clock: MockClock) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        head = wire.head_frames(1, request(fields=[("x-a", "b" * 90)]), end=True, size=8)
        assert 10 < len(head) <= 17
        await wire.send(*head)
        assert await response(wire, 1) == ("200", b"hello")


@pytest.mark.parametrize(
    "between",
    [
        DataFrame(1, b"x"),
        PingFrame(0, b"12345678"),
        HeadersFrame(3, b"\x82", flags=["END_HEADERS"]),
        ContinuationFrame(3, b"\x82", flags=["END_HEADERS"]),
        extension(0xFA, 0, b"?"),
    ],
    ids=lambda frame: type(frame).__name__,
)
async def test_h2_04_nothing_comes_between_the_pieces_of_a_block(
    between: Frame, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.send(HeadersFrame(1, b"\x82"), between)
        assert await goaway_code(wire) == PROTOCOL_ERROR


# -- H2-05, H2-06 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        [("x-a", "b" * 70000)],
        [("x-a", "b" * 1000)] * 64,
        [(f"x-{number}", "") for number in range(129)],
    ],
    ids=["one large", "many", "too many"],
)
async def test_h2_05_a_list_that_is_too_large_gets_431_and_its_neighbours_are_served(
    fields: list[tuple[str, str]], autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request(fields=fields), end=True)
        # What it put into the table counts, although nobody wanted it.
        await wire.headers(
            3, request(fields=[fields[0]] if len(fields[0][1]) < 5000 else []), end=True
        )
        assert (await response(wire, 1))[0] == "431"
        assert await response(wire, 3) == ("200", b"hello")
        assert len(gateway.recorder.of("new_ctx")) == 1


async def test_h2_05_a_bomb_of_references_is_calmed(autojump_clock: MockClock) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        block = wire.encoder.encode([*request(), (b"x-bomb", b"b" * 3900)])
        await wire.send(HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"]))
        assert await response(wire, 1) == ("200", b"hello")
        reference = wire.encoder.encode([(b"x-bomb", b"b" * 3900)])
        assert len(reference) == 1
        head = wire.encoder.encode(request())
        await wire.send(HeadersFrame(3, head + reference * 15000, flags=["END_HEADERS"]))
        assert await goaway_code(wire) == ENHANCE_YOUR_CALM


@pytest.mark.parametrize("block", [b"\xff\xff\xff\xff\xff", b"\x00\xff", b"\xbf\x82"])
async def test_h2_05_what_cannot_be_decoded_ends_the_connection(
    block: bytes, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.send(HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"]))
        assert await goaway_code(wire) == COMPRESSION_ERROR


async def test_h2_06_a_table_of_4_gib_is_not_ours_to_fill(autojump_clock: MockClock) -> None:
    count = 0

    async def origin(exchange: Exchange) -> None:
        nonlocal count
        await exchange.message()
        count += 1
        fields = [("content-length", "5"), (f"x-{count}", f"{count}" * 300)]
        await exchange.respond(200, fields, b"hello")

    async with h2_gateway(origin) as gateway:
        wire = await gateway.frames(start=False)
        # The decoder refuses a table that is larger than it allows.
        wire.decoder.max_allowed_table_size = 4096
        await wire.start({HEADER_TABLE_SIZE: 2**32 - 1})
        for stream in range(1, 81, 2):
            await get(wire, stream)
            assert await response(wire, stream) == ("200", b"hello")
        assert wire.decoder.header_table.maxsize <= 4096


async def test_h2_06_a_smaller_table_is_kept_to_and_a_larger_one_again(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(answers(fields=[("content-length", "5"), ("x-a", "b" * 50)])) as gateway:
        wire = await gateway.frames()
        stream = 1
        for size in (0, 100, 4096, 0):
            await wire.send(SettingsFrame(0, settings={HEADER_TABLE_SIZE: size}))
            await wire.until(SettingsFrame, where=lambda frame: "ACK" in frame.flags)
            # From its acknowledgement on the other side must not use more.
            wire.decoder.max_allowed_table_size = size
            for _ in range(3):
                await assert_serves(wire, stream)
                stream += 2
            assert wire.decoder.header_table_size <= size


# -- H2-07 ---------------------------------------------------------------------------------------

CONTROL: dict[str, list[Frame]] = {
    "ping": [PingFrame(0, b"12345678")],
    "settings": [SettingsFrame(0, settings={0x4: 65535})],
    "empty settings": [SettingsFrame(0)],
    "priority": [PriorityFrame(1, depends_on=0, stream_weight=1)],
    "priority_update": [extension(0x10, 0, b"\0\0\0\1u=1")],
    "unknown": [extension(0xFA, 0, b"?")],
    "unknown on a stream": [extension(0xFB, 7)],
    "window_update": [WindowUpdateFrame(0, window_increment=1)],
    "goaway": [GoAwayFrame(0, last_stream_id=0)],
    "mixed": [
        PingFrame(0, b"12345678"),
        SettingsFrame(0),
        extension(0xFA),
        WindowUpdateFrame(0, window_increment=1),
    ],
}


@pytest.mark.parametrize("kind", CONTROL)
async def test_h2_07_a_flood_of_control_frames_is_calmed(
    kind: str, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        wire.answers = False
        frames = CONTROL[kind]
        await flood(wire, frames * (1200 // len(frames) // 10), times=10)
        await gateway.neighbour_is_served()
        assert await goaway_code(wire) == ENHANCE_YOUR_CALM
        # Every answer to what came before was small, and no more came than was asked for.
        assert len(wire.received) <= 1100
        assert gateway.limits_hit()["h2_control_burst"] == 1


@pytest.mark.parametrize("kind", CONTROL)
async def test_h2_07_the_same_frames_at_leisure_are_taken(
    kind: str, autojump_clock: MockClock
) -> None:
    if kind == "goaway":
        return
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        frames = CONTROL[kind]
        for _ in range(20):
            await wire.send(*frames * (80 // len(frames)))
            await trio.sleep(1)
        await wire.ping()
        await assert_serves(wire, 1)


async def test_h2_07_data_that_we_send_pays_for_its_window_updates(
    autojump_clock: MockClock,
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        if (await exchange.head()).start.startswith(b"GET /big"):
            await exchange.respond(200, [("content-length", "400000")], b"x" * 400000)
        else:
            await exchange.respond(200, [("content-length", "5")], b"hello")

    async with h2_gateway(origin) as gateway:
        wire = await gateway.frames()
        await get(wire, 1, "/big")
        left = 400000
        while left:
            frame = await wire.until(DataFrame, 1)
            left -= len(frame.data)
            if frame.data and left:
                # Ten updates for each frame, as odd as that is.
                part = len(frame.data) // 5
                for at in range(5):
                    more = len(frame.data) - 4 * part if at == 4 else part
                    for stream in (0, 1):
                        if more:
                            await wire.credit(stream, more)
        await assert_serves(wire, 3)


async def test_h2_07_a_settings_frame_of_more_than_32_entries_is_calmed(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        wire.answers = False
        await wire.send(SettingsFrame(0, settings=dict.fromkeys(range(100, 132), 1)))
        await wire.ping()
        await wire.send(SettingsFrame(0, settings=dict.fromkeys(range(100, 133), 1)))
        assert await goaway_code(wire) == ENHANCE_YOUR_CALM


async def test_h2_07_answers_that_nobody_reads_end_the_connection(
    autojump_clock: MockClock,
) -> None:
    # The link towards the client holds next to nothing, so our answers pile up here.
    async with h2_gateway(link=Link(back=Path(capacity=400))) as gateway:
        wire = await gateway.frames()
        wire.answers = False
        connection = gateway.latest()
        for _ in range(40):
            await flood(wire, [PingFrame(0, b"12345678")] * 90)
            await trio.sleep(1)
            assert connection.codec.pending <= 2 * 65536
        await wire.at_end()
        assert gateway.latest() is not connection
        assert gateway.limits_hit()["h2_max_unsent_frames"] == 1


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [(0x2, 2, PROTOCOL_ERROR), (0x4, 2**31, 3), (0x5, 16383, PROTOCOL_ERROR), (0x5, 2**24, 1)],
)
async def test_h2_07_a_setting_that_is_not_allowed_ends_the_connection(
    setting: int, value: int, code: int, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        body = setting.to_bytes(2, "big") + value.to_bytes(4, "big")
        await wire.send_raw(b"\0\0\6\4\0\0\0\0\0" + body)
        assert await goaway_code(wire) == code


# -- H2-08, H2-09 --------------------------------------------------------------------------------


async def test_h2_08_ten_empty_frames_in_a_row_are_calmed(autojump_clock: MockClock) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        await wire.send(*[DataFrame(1)] * 9)
        await wire.ping()
        await wire.send(DataFrame(1, b"x"), *[DataFrame(1)] * 10)
        assert await goaway_code(wire) == ENHANCE_YOUR_CALM


async def test_h2_08_padding_does_not_fill_a_frame(autojump_clock: MockClock) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        await flood(wire, [DataFrame(1, pad_length=10, flags=["PADDED"])] * 10)
        assert await goaway_code(wire) == ENHANCE_YOUR_CALM


async def test_h2_08_a_hundred_empty_frames_in_a_minute_are_calmed(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        await wire.headers(1, request("POST"))
        await flood(wire, [DataFrame(1), DataFrame(1), DataFrame(1, b"x")], times=60)
        assert await goaway_code(wire) == ENHANCE_YOUR_CALM
        assert len(gateway.recorder.of("logging")) == 1


async def test_h2_08_the_empty_frame_that_ends_a_message_is_none_of_them(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        for stream in range(1, 241, 2):
            await wire.headers(stream, request("POST"))
            await wire.send(DataFrame(stream, flags=["END_STREAM"]))
            assert await response(wire, stream) == ("200", b"hello")


@pytest.mark.parametrize("kind", [0, 1, 9, 0xFA])
async def test_h2_09_a_frame_that_is_too_long_is_refused_by_its_head(
    kind: int, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        # Only the nine bytes: nothing of the payload ever comes.
        await wire.send_raw((16385).to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]))
        assert await goaway_code(wire) == FRAME_SIZE_ERROR


@pytest.mark.parametrize(
    ("kind", "size", "stream"),
    [(3, 3, 1), (4, 5, 0), (6, 7, 0), (6, 9, 0), (7, 7, 0), (8, 3, 0)],
)
async def test_h2_09_a_frame_of_a_size_that_its_type_does_not_have_ends_the_connection(
    kind: int, size: int, stream: int, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        await wire.send_raw(
            size.to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, stream]) + bytes(size)
        )
        assert await goaway_code(wire) == FRAME_SIZE_ERROR


# -- R-08 ----------------------------------------------------------------------------------------


async def test_r_08_a_connection_that_lives_long_keeps_little_of_its_past(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        connection = gateway.latest()
        for stream in range(1, 2300, 2):
            await get(wire, stream)
            if stream % 10 == 1:
                await wire.send(RstStreamFrame(stream, 8))
                await trio.sleep(0.1)
            else:
                await wire.until(DataFrame, stream)
        codec = connection.codec
        assert len(codec._closed) <= 1024
        assert len(codec._h2._closed_streams) <= 1024
        assert len(codec._h2.streams) <= 1
        assert connection.streams == {}


# -- two versions on one clear-text listener -----------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    "start", [b"POST / HTTP/1.1", b"GET / HTTP/1.1", b"PRIX / HTTP/1.1", b"PR / HTTP/1.1"]
)
async def test_h2_01_a_listener_for_both_tells_them_apart_however_the_bytes_come(
    start: bytes, size: int, autojump_clock: MockClock
) -> None:
    async with h2_gateway(link=Link(out=Path(pieces=(size,)))) as gateway:
        stream, _ = await gateway.matrix.stream()
        client = Wire(stream)
        await client.send(start + b"\r\nHost: site.test\r\nContent-Length: 0\r\n\r\n")
        response_ = await client.message()
        assert (response_.status, response_.body) == (200, b"hello")
        client.close()
        wire = await gateway.frames()
        await assert_serves(wire, 1)


@pytest.mark.parametrize("sent", [b"P", b"PRI * HTTP/2.0\r\n", b"GET"])
async def test_h2_01_t_01_a_beginning_that_could_be_either_has_its_time(
    sent: bytes, autojump_clock: MockClock
) -> None:
    async with h2_gateway() as gateway:
        stream, _ = await gateway.matrix.stream()
        client = Wire(stream)
        started = trio.current_time()
        await client.send(sent)
        while await client.more():
            pass
        client.close()
        assert 14 < trio.current_time() - started < 18


async def test_h1_35_an_almost_preface_is_a_request_of_http_1_that_is_refused(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway() as gateway:
        stream, _ = await gateway.matrix.stream()
        client = Wire(stream)
        await client.send(PREFACE[:-6] + b"XX\r\n\r\n")
        assert (await client.message()).status == 505
        client.close()
        assert gateway.recorder.calls == []
