"""The frame gate alone: what each frame's head forbids, and what the budgets of a connection are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy._h2_limits import H2Limits
from trioproxy.codec._buckets import TokenBucket
from trioproxy.codec._h2_gate import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PREFACE_TYPE,
    PRIORITY,
    PRIORITY_UPDATE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    FrameGate,
    GateFailure,
)

UNKNOWN = 0x42
ALTSVC = 0xA


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def setting(key: int, value: int) -> bytes:
    return key.to_bytes(2, "big") + value.to_bytes(4, "big")


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


FIRST = frame(SETTINGS)
EMPTY_DATA = frame(DATA, stream=1)
OPEN_BLOCK = frame(HEADERS, b"abc", stream=1)


def opened(
    *, server: bool = True, limits: H2Limits | None = None, clock: Clock | None = None
) -> FrameGate:
    """Return a gate that has seen the preface and the first SETTINGS."""
    gate = FrameGate(server=server, now=clock or Clock(), limits=limits, preface=False)
    assert len(gate.feed(FIRST)) == 1
    return gate


def fails(gate: FrameGate, data: bytes) -> GateFailure:
    """Feed what must fail, and return the failure; nothing comes out behind it."""
    assert gate.feed(data) == []
    assert gate.failure is not None
    assert gate.feed(frame(PING, bytes(8))) == []
    return gate.failure


def raws(frames: list[Frame]) -> list[bytes]:
    return [each.raw for each in frames]


def test_the_numbers_are_those_of_rfc_9113() -> None:
    types = [DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY]
    assert [*types, WINDOW_UPDATE, CONTINUATION, PRIORITY_UPDATE] == [*range(10), 16]
    assert (END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY) == (1, 1, 4, 8, 32)
    errors = (PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, ENHANCE_YOUR_CALM)
    assert errors == (1, 3, 6, 11)


# -- H2-01: preface and first SETTINGS ----------------------------------------------------------


def test_h2_01_the_preface_comes_out_first_as_a_frame() -> None:
    gate = FrameGate(server=True, now=Clock())
    frames = gate.feed(PREFACE + FIRST)
    assert [each.type for each in frames] == [PREFACE_TYPE, SETTINGS]
    assert raws(frames) == [PREFACE, FIRST]
    assert gate.preface_done
    assert gate.settings_seen


def test_h2_01_a_preface_in_single_bytes_is_one() -> None:
    gate = FrameGate(server=True, now=Clock())
    frames = [each for byte in PREFACE for each in gate.feed(bytes((byte,)))]
    assert raws(frames) == [PREFACE]
    assert gate.failure is None


@pytest.mark.parametrize("good", range(len(PREFACE)))
def test_h2_01_the_first_wrong_byte_of_a_preface_fails(good: int) -> None:
    gate = FrameGate(server=True, now=Clock())
    assert gate.feed(PREFACE[:good]) == []
    assert fails(gate, bytes((PREFACE[good] ^ 1,))).code == PROTOCOL_ERROR
    assert not gate.preface_done


def test_h2_01_a_client_awaits_no_preface() -> None:
    gate = FrameGate(server=False, now=Clock())
    assert gate.preface_done
    assert raws(gate.feed(FIRST)) == [FIRST]


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize(
    "first",
    [
        frame(SETTINGS, flags=ACK),
        frame(PING, bytes(8)),
        frame(HEADERS, b"a", flags=END_HEADERS, stream=1),
        frame(DATA, b"a", stream=1),
        frame(UNKNOWN),
    ],
)
def test_h2_01_the_first_frame_is_settings(first: bytes, server: bool) -> None:
    gate = FrameGate(server=server, now=Clock(), preface=False)
    assert fails(gate, first[:9]).code == PROTOCOL_ERROR
    assert not gate.settings_seen


# -- frames as they come ------------------------------------------------------------------------


def test_frames_come_out_whole_and_in_order() -> None:
    sent = [
        frame(HEADERS, b"block", flags=END_HEADERS, stream=1),
        frame(DATA, b"x" * 16384, stream=1),
        frame(DATA, b"\x02abc\0\0", flags=PADDED, stream=1),
        frame(WINDOW_UPDATE, number(5), stream=1),
        frame(PING, b"12345678"),
        frame(RST_STREAM, number(8), stream=1),
        frame(DATA, flags=END_STREAM, stream=1),
    ]
    gate = opened()
    frames = gate.feed(b"".join(sent))
    assert raws(frames) == sent
    assert [(each.type, each.flags, each.stream_id, each.length) for each in frames] == [
        (each[3], each[4], each[8], len(each) - 9) for each in sent
    ]
    assert gate.failure is None
    assert "stream_id=1" in repr(frames[0])


def test_the_reserved_bit_of_a_stream_is_not_read() -> None:
    for kind in (DATA, HEADERS):
        (each,) = opened().feed(frame(kind, b"a", stream=1 << 31 | 0x01020307))
        assert each.stream_id == 0x01020307


def test_good_frames_before_a_bad_one_come_out() -> None:
    gate = opened()
    ping = frame(PING, bytes(8))
    assert raws(gate.feed(ping + frame(DATA, b"a") + ping)) == [ping]
    assert gate.failure == GateFailure(PROTOCOL_ERROR, "a frame on stream 0 that needs a stream")


def a_frame() -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda kind, payload, flags, stream: frame(kind, payload, flags=flags, stream=stream),
        st.integers(0, 17) | st.just(DATA) | st.just(HEADERS) | st.just(CONTINUATION),
        st.binary(max_size=12) | st.sampled_from([bytes(4), bytes(8), number(3), b"x" * 300]),
        st.sampled_from([0, END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY | END_HEADERS, 0xFF]),
        st.sampled_from([0, 1, 1, 3]),
    )


def summary(frames: list[Frame]) -> list[tuple[object, ...]]:
    return [tuple(getattr(each, name) for name in Frame.__slots__) for each in frames]


@given(st.lists(a_frame(), max_size=8), st.data(), st.booleans())
def test_frames_are_the_same_wherever_their_bytes_are_split(
    sent: list[bytes], data: st.DataObject, server: bool
) -> None:
    wire = (PREFACE if server else b"") + FIRST + b"".join(sent)
    whole = FrameGate(server=server, now=Clock())
    frames = whole.feed(wire)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    split = FrameGate(server=server, now=Clock())
    pieces: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        pieces += split.feed(wire[start:end])
    assert summary(pieces) == summary(frames)
    assert split.failure == whole.failure
    assert split.block_open == whole.block_open


@given(st.lists(st.binary(max_size=64), max_size=8), st.booleans())
def test_any_bytes_are_frames_or_a_failure(pieces: list[bytes], server: bool) -> None:
    gate = opened(server=server)
    for piece in pieces:
        for each in gate.feed(piece):
            assert each.raw == b"" or len(each.raw) >= 9
    assert gate.failure is None or gate.failure.text


def test_bytes_that_drip_in_are_joined() -> None:
    sent = frame(DATA, bytes(range(250)), stream=1)
    gate = opened()
    frames = [each for at in range(len(sent)) for each in gate.feed(sent[at : at + 1])]
    assert raws(frames) == [sent]
    assert len(gate._parts) == 0


# -- H2-09: sizes, seen in the head -------------------------------------------------------------


@pytest.mark.parametrize("kind", [DATA, HEADERS, SETTINGS, UNKNOWN, GOAWAY, PRIORITY])
def test_h2_09_a_frame_over_the_limit_is_refused_by_its_head(kind: int) -> None:
    head = (16385).to_bytes(3, "big") + bytes((kind, 0, 0, 0, 0, 1))
    gate = opened()
    assert gate.feed(head[:8]) == []
    assert gate.failure is None
    assert fails(gate, head[8:]).code == FRAME_SIZE_ERROR
    assert gate._have == 0


def test_h2_09_no_more_than_a_frame_is_held() -> None:
    gate = opened()
    whole = frame(DATA, bytes(16384), stream=1)
    assert gate.feed(whole[:-1]) == []
    assert gate._have == len(whole) - 1
    assert raws(gate.feed(whole[-1:])) == [whole]
    assert gate._have == 0


@pytest.mark.parametrize(
    "bad",
    [
        frame(PING, bytes(7)),
        frame(PING, bytes(9)),
        frame(RST_STREAM, bytes(3), stream=1),
        frame(RST_STREAM, bytes(5), stream=1),
        frame(WINDOW_UPDATE, bytes(3)),
        frame(WINDOW_UPDATE, bytes(5), stream=1),
        frame(SETTINGS, bytes(5)),
        frame(SETTINGS, bytes(6), flags=ACK),
        frame(GOAWAY, bytes(7)),
        frame(PRIORITY_UPDATE, bytes(3)),
    ],
)
def test_h2_09_a_size_that_a_type_does_not_have_is_refused_by_its_head(bad: bytes) -> None:
    assert fails(opened(), bad[:9]).code == FRAME_SIZE_ERROR


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (frame(DATA, flags=PADDED, stream=1), FRAME_SIZE_ERROR),
        (frame(DATA, b"\x01", flags=PADDED, stream=1), PROTOCOL_ERROR),
        (frame(DATA, b"\x04abc", flags=PADDED, stream=1), PROTOCOL_ERROR),
        (frame(HEADERS, flags=PADDED | END_HEADERS, stream=1), FRAME_SIZE_ERROR),
        (frame(HEADERS, b"\xffabc", flags=PADDED | END_HEADERS, stream=1), PROTOCOL_ERROR),
        (frame(HEADERS, bytes(4), flags=HAS_PRIORITY | END_HEADERS, stream=1), FRAME_SIZE_ERROR),
        (
            frame(HEADERS, b"\0" + bytes(4), flags=PADDED | HAS_PRIORITY, stream=1),
            FRAME_SIZE_ERROR,
        ),
        (frame(HEADERS, b"\x01" + bytes(5), flags=PADDED | HAS_PRIORITY, stream=1), PROTOCOL_ERROR),
    ],
)
def test_padding_and_priority_fit_their_frame(bad: bytes, code: int) -> None:
    assert fails(opened(), bad).code == code


# -- streams that a frame may not be on ---------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        frame(DATA, b"a"),
        frame(HEADERS, b"a"),
        frame(PRIORITY, bytes(5)),
        frame(RST_STREAM, bytes(4)),
        frame(CONTINUATION, b"a"),
        frame(SETTINGS, stream=1),
        frame(PING, bytes(8), stream=1),
        frame(GOAWAY, bytes(8), stream=1),
        frame(PRIORITY_UPDATE, number(1), stream=1),
    ],
)
def test_a_frame_on_a_stream_where_its_type_is_not_allowed_fails(bad: bytes) -> None:
    assert fails(opened(), bad[:9]).code == PROTOCOL_ERROR


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("stream", [0, 1])
def test_h2_27_a_push_ends_the_connection(server: bool, stream: int) -> None:
    gate = opened(server=server)
    assert fails(gate, frame(PUSH_PROMISE, number(2), stream=stream)[:9]).code == PROTOCOL_ERROR


# -- SETTINGS -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        (2, 2, PROTOCOL_ERROR),
        (4, 2**31, FLOW_CONTROL_ERROR),
        (5, 16383, PROTOCOL_ERROR),
        (5, 2**24, PROTOCOL_ERROR),
        (8, 2, PROTOCOL_ERROR),
        (9, 2, PROTOCOL_ERROR),
    ],
)
def test_a_setting_with_a_value_it_may_not_have_fails(key: int, value: int, code: int) -> None:
    gate = opened()
    bad = frame(SETTINGS, setting(3, 100) + setting(key, value))
    assert fails(gate, bad).code == code


def test_settings_with_allowed_values_pass() -> None:
    values = [(1, 0), (2, 1), (2, 0), (3, 0), (4, 2**31 - 1), (5, 16384), (5, 2**24 - 1), (6, 0)]
    values += [(8, 1), (9, 1), (0x4A4A, 2**32 - 1)]
    sent = frame(SETTINGS, b"".join(setting(*each) for each in values))
    assert raws(opened().feed(sent)) == [sent]


def test_h2_27_a_server_that_allows_pushes_fails() -> None:
    assert raws(opened(server=False).feed(frame(SETTINGS, setting(2, 0))))
    assert fails(opened(server=False), frame(SETTINGS, setting(2, 1))).code == PROTOCOL_ERROR


def test_h2_07_a_settings_frame_of_many_entries_is_refused_by_its_head() -> None:
    entries = setting(3, 1) * 32
    assert len(opened().feed(frame(SETTINGS, entries))) == 1
    failure = fails(opened(), frame(SETTINGS, entries + setting(3, 1))[:9])
    assert (failure.code, failure.limit) == (ENHANCE_YOUR_CALM, "max_settings")


# -- H2-04: field blocks ------------------------------------------------------------------------


def test_h2_04_a_block_is_open_until_its_end() -> None:
    gate = opened()
    more = frame(CONTINUATION, b"def", stream=1)
    last = frame(CONTINUATION, flags=END_HEADERS, stream=1)
    assert raws(gate.feed(OPEN_BLOCK)) == [OPEN_BLOCK]
    assert gate.block_open
    assert raws(gate.feed(more)) == [more]
    assert gate.block_open
    assert raws(gate.feed(last + EMPTY_DATA)) == [last, EMPTY_DATA]
    assert not gate.block_open


@pytest.mark.parametrize(
    "between",
    [
        frame(DATA, b"a", stream=1),
        frame(HEADERS, b"a", stream=1),
        frame(HEADERS, b"a", stream=3),
        frame(CONTINUATION, b"a", stream=3),
        frame(PING, bytes(8)),
        frame(SETTINGS),
        frame(WINDOW_UPDATE, number(1)),
        frame(PRIORITY, bytes(5), stream=1),
        frame(RST_STREAM, bytes(4), stream=1),
        frame(GOAWAY, bytes(8)),
        frame(UNKNOWN, stream=1),
    ],
)
def test_h2_04_nothing_comes_in_the_middle_of_a_block(between: bytes) -> None:
    gate = opened()
    gate.feed(OPEN_BLOCK)
    assert fails(gate, between[:9]).code == PROTOCOL_ERROR


def test_h2_04_a_continuation_outside_of_a_block_fails() -> None:
    gate = opened()
    gate.feed(frame(HEADERS, b"a", flags=END_HEADERS, stream=1))
    assert fails(gate, frame(CONTINUATION, b"a", stream=1)[:9]).code == PROTOCOL_ERROR


@pytest.mark.parametrize("content", [b"", b"a"])
def test_h2_04_continuations_are_counted_empty_ones_too(content: bytes) -> None:
    gate = opened()
    more = frame(CONTINUATION, content, stream=1)
    assert len(gate.feed(OPEN_BLOCK + more * 16)) == 17
    failure = fails(gate, more[:9])
    assert (failure.code, failure.limit) == (ENHANCE_YOUR_CALM, "max_continuations")


def test_h2_04_each_block_has_its_own_count() -> None:
    gate = opened()
    block = OPEN_BLOCK + frame(CONTINUATION, stream=1) * 15
    block += frame(CONTINUATION, flags=END_HEADERS, stream=1)
    assert len(gate.feed(block * 3)) == 3 * 17


def test_h2_04_the_bytes_of_a_block_are_bounded() -> None:
    gate = opened()
    full = frame(CONTINUATION, bytes(16384), stream=1)
    sent = frame(HEADERS, b"\xff" + bytes(16383), flags=PADDED, stream=1) + full * 7
    assert len(gate.feed(sent)) == 8  # 16,128 bytes of the first are its block
    assert len(gate.feed(frame(CONTINUATION, bytes(256), stream=1))) == 1
    failure = fails(gate, frame(CONTINUATION, b"a", stream=1)[:9])
    assert (failure.code, failure.limit) == (ENHANCE_YOUR_CALM, "max_block_bytes")


# -- H2-02, H2-03: resets -----------------------------------------------------------------------


def test_h2_02_resets_take_tokens_that_come_back_with_time() -> None:
    clock = Clock()
    gate = opened(clock=clock)
    reset = frame(RST_STREAM, number(8), stream=1)
    assert len(gate.feed(reset * 500)) == 500
    clock.now += 1
    assert len(gate.feed(reset * 33)) == 33
    failure = fails(gate, reset)
    assert (failure.code, failure.limit) == (ENHANCE_YOUR_CALM, "reset_burst")


def test_h2_03_resets_that_the_peer_provokes_come_from_the_same_bucket() -> None:
    gate = opened()
    assert len(gate.feed(frame(RST_STREAM, number(8), stream=1) * 400)) == 400
    assert all(gate.charge_reset() for _ in range(100))
    assert not gate.charge_reset()
    assert gate.failure is not None
    assert gate.failure.limit == "reset_burst"
    assert gate.feed(EMPTY_DATA) == []


def test_h2_21_a_server_that_wants_no_more_of_a_request_is_no_rapid_reset() -> None:
    gate = opened(server=False, limits=H2Limits(reset_burst=1, control_burst=20))
    enough = frame(RST_STREAM, number(0), stream=1)
    assert len(gate.feed(enough * 19)) == 19
    assert fails(gate, enough).limit == "control_burst"
    gate = opened(server=False, limits=H2Limits(reset_burst=1))
    assert len(gate.feed(enough + frame(RST_STREAM, number(7), stream=3))) == 2
    assert fails(gate, frame(RST_STREAM, number(7), stream=5)).limit == "reset_burst"
    assert fails(opened(limits=H2Limits(reset_burst=0)), enough).limit == "reset_burst"


def test_the_first_failure_stays() -> None:
    gate = opened(limits=H2Limits(reset_burst=0))
    first = fails(gate, frame(DATA))
    assert not gate.charge_reset()
    assert gate.failure is first


# -- H2-07: control frames ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flood", "comes_out"),
    [
        (frame(PING, bytes(8)), True),
        (frame(PING, bytes(8), flags=ACK), True),
        (frame(SETTINGS), True),
        (frame(SETTINGS, flags=ACK), True),
        (frame(WINDOW_UPDATE, number(1)), True),
        (frame(WINDOW_UPDATE, number(1), stream=1), True),
        (frame(GOAWAY, bytes(8)), True),
        (frame(PRIORITY_UPDATE, number(1) + b"u=1"), True),
        (frame(PRIORITY, bytes(5), stream=1), False),
        (frame(UNKNOWN, b"x"), False),
        (frame(UNKNOWN, b"x", stream=1), False),
        (frame(ALTSVC, bytes(2), stream=1), False),
    ],
)
def test_h2_07_control_frames_take_tokens_that_come_back_with_time(
    flood: bytes, comes_out: bool
) -> None:
    clock = Clock()
    gate = opened(clock=clock)  # its first SETTINGS took one
    assert len(gate.feed(flood * 999)) == (999 if comes_out else 0)
    assert gate.failure is None
    clock.now += 0.5
    assert len(gate.feed(flood * 50)) == (50 if comes_out else 0)
    assert gate.failure is None
    failure = fails(gate, flood)
    assert (failure.code, failure.limit) == (ENHANCE_YOUR_CALM, "control_burst")


def test_h2_07_data_that_we_sent_pays_for_window_updates_only() -> None:
    gate = opened(limits=H2Limits(control_burst=2, control_rate=0))
    update = frame(WINDOW_UPDATE, number(1), stream=1)
    gate.credit_data(3)
    assert len(gate.feed(update * 30)) == 30
    gate.credit_data()
    assert len(gate.feed(frame(PING, bytes(8)))) == 1  # the second token
    assert len(gate.feed(update * 10)) == 10
    assert fails(gate, update).limit == "control_burst"


def test_h2_07_the_credit_for_window_updates_is_bounded() -> None:
    limits = H2Limits(control_burst=1, control_rate=0, max_window_credit=25)
    gate = opened(limits=limits)
    gate.credit_data(1000)
    update = frame(WINDOW_UPDATE, number(1))
    assert len(gate.feed(update * 25)) == 25
    assert fails(gate, update).limit == "control_burst"


# -- H2-08: empty frames ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "empty",
    [
        EMPTY_DATA,
        frame(DATA, b"\x03abc", flags=PADDED, stream=1),
        frame(DATA, b"\0", flags=PADDED, stream=1),
    ],
)
def test_h2_08_ten_empty_frames_in_a_row_are_too_many(empty: bytes) -> None:
    gate = opened()
    assert len(gate.feed(empty * 9)) == 9
    failure = fails(gate, empty)
    assert (failure.code, failure.limit) == (ENHANCE_YOUR_CALM, "max_empty_run")


def test_h2_08_frames_of_other_types_do_not_end_a_run() -> None:
    gate = opened()
    gate.feed((EMPTY_DATA + frame(PING, bytes(8))) * 9)
    assert fails(gate, EMPTY_DATA).limit == "max_empty_run"


@pytest.mark.parametrize(
    "begin",
    [
        frame(HEADERS, stream=1),
        frame(HEADERS, b"\x02\0\0", flags=PADDED, stream=1),
        frame(HEADERS, bytes(4) + b"\x10", flags=HAS_PRIORITY, stream=1),
    ],
)
def test_h2_08_headers_without_a_block_count_as_empty(begin: bytes) -> None:
    gate = opened()
    block = begin + frame(CONTINUATION, b"a", flags=END_HEADERS, stream=1)
    assert len(gate.feed(block * 9)) == 18
    assert fails(gate, begin).limit == "max_empty_run"


@pytest.mark.parametrize(
    "full",
    [
        frame(DATA, b"a", stream=1),
        frame(DATA, b"\0a", flags=PADDED, stream=1),
        frame(DATA, flags=END_STREAM, stream=1),
        frame(HEADERS, b"a", flags=END_HEADERS, stream=1),
        frame(HEADERS, flags=END_HEADERS, stream=1),
    ],
)
def test_h2_08_a_hundred_empty_frames_in_a_minute_are_too_many(full: bytes) -> None:
    clock = Clock()
    gate = opened(clock=clock)
    for _ in range(11):
        assert len(gate.feed(EMPTY_DATA * 9 + full)) == 10
    clock.now += 59
    failure = fails(gate, EMPTY_DATA)
    assert (failure.code, failure.limit) == (ENHANCE_YOUR_CALM, "max_empty_minute")


def test_h2_08_a_new_minute_has_a_new_count() -> None:
    clock = Clock()
    gate = opened(clock=clock)
    some = EMPTY_DATA * 9 + frame(DATA, b"a", stream=1)
    for _ in range(3):
        assert len(gate.feed(some * 11)) == 110
        clock.now += 60
    assert gate.failure is None


# -- H2-19 and what else the library does not see -----------------------------------------------


@pytest.mark.parametrize("exclusive", [0, 1 << 31])
@pytest.mark.parametrize("padding", [None, 0, 3])
def test_h2_19_the_priority_of_a_block_is_taken_out(padding: int | None, exclusive: int) -> None:
    pad = b"" if padding is None else bytes((padding,))
    tail = bytes(padding or 0)
    flags = END_HEADERS | END_STREAM
    padded = HAS_PRIORITY | (0 if padding is None else PADDED)
    priority = number(exclusive | 3) + b"\xff"
    sent = frame(HEADERS, pad + priority + b"abc" + tail, flags=flags | padded, stream=5)
    (each,) = opened().feed(sent)
    assert each.raw == frame(HEADERS, b"abc", flags=flags, stream=5)
    assert (each.flags, each.length, each.stream_error) == (flags, len(sent) - 9, None)


def test_the_padding_of_a_block_is_taken_out() -> None:
    flags = END_HEADERS | PADDED
    (each,) = opened().feed(frame(HEADERS, b"\x02abc\0\0", flags=flags, stream=5))
    assert each.raw == frame(HEADERS, b"abc", flags=END_HEADERS, stream=5)
    (each,) = opened().feed(frame(HEADERS, b"\x02\0\0", flags=flags, stream=5))
    assert each.raw == frame(HEADERS, flags=END_HEADERS, stream=5)


def test_the_reserved_bit_of_an_increment_is_not_passed_on() -> None:
    (each,) = opened().feed(frame(WINDOW_UPDATE, number(1 << 31 | 0x01020304), stream=3))
    assert each.raw == frame(WINDOW_UPDATE, number(0x01020304), stream=3)


def test_h2_03_a_block_that_depends_on_itself_is_a_stream_error_and_is_decoded() -> None:
    flags = HAS_PRIORITY | END_HEADERS
    (each,) = opened().feed(frame(HEADERS, number(1 << 31 | 5) + b"\0abc", flags=flags, stream=5))
    assert each.stream_error == (PROTOCOL_ERROR, "a stream that depends on itself")
    assert each.raw == frame(HEADERS, b"abc", flags=END_HEADERS, stream=5)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (number(5) + b"\x10", PROTOCOL_ERROR),
        (number(1 << 31 | 5) + b"\x10", PROTOCOL_ERROR),
        (b"", FRAME_SIZE_ERROR),
        (bytes(4), FRAME_SIZE_ERROR),
        (bytes(6), FRAME_SIZE_ERROR),
    ],
)
def test_h2_03_a_wrong_priority_frame_is_a_stream_error(payload: bytes, code: int) -> None:
    gate = opened()
    (each,) = gate.feed(frame(PRIORITY, payload, stream=5))
    assert each.stream_error is not None
    assert (each.stream_error[0], each.stream_id, each.raw) == (code, 5, b"")
    assert gate.failure is None


@pytest.mark.parametrize("increment", [0, 1 << 31])
def test_h2_03_a_window_enlarged_by_nothing_is_an_error(increment: int) -> None:
    (each,) = opened().feed(frame(WINDOW_UPDATE, number(increment), stream=3))
    assert each.stream_error == (PROTOCOL_ERROR, "a window that is enlarged by nothing")
    assert each.raw == b""
    assert fails(opened(), frame(WINDOW_UPDATE, number(increment))).code == PROTOCOL_ERROR


@pytest.mark.parametrize("debug", [b"", b"why"])
def test_h2_22_a_goaway_is_read_here(debug: bytes) -> None:
    (each,) = opened(server=False).feed(
        frame(GOAWAY, number(1 << 31 | 0x01020307) + number(0x0B0C0D0E) + debug)
    )
    assert each.goaway == (0x01020307, 0x0B0C0D0E, debug)
    assert each.raw == b""


def test_h2_19_a_priority_update_is_read_here() -> None:
    (each,) = opened().feed(frame(PRIORITY_UPDATE, number(1 << 31 | 0x01020305) + b"u=1, i"))
    assert each.priority_update == (0x01020305, b"u=1, i")
    assert each.raw == b""


def test_h2_19_a_priority_update_for_no_stream_fails() -> None:
    assert fails(opened(), frame(PRIORITY_UPDATE, number(0) + b"u=1")).code == PROTOCOL_ERROR


def test_h2_19_a_priority_update_from_a_server_fails() -> None:
    gate = opened(server=False)
    assert fails(gate, frame(PRIORITY_UPDATE, number(1))[:9]).code == PROTOCOL_ERROR


# -- the bucket ---------------------------------------------------------------------------------


def test_a_bucket_refills_up_to_its_burst() -> None:
    bucket = TokenBucket(2, 1, now=0.0)
    assert bucket.take(0.0, 2)
    assert not bucket.take(0.5)
    assert bucket.take(1.0)
    assert not bucket.take(1.0)
    assert bucket.take(1000.0, 2)
    assert not bucket.take(1000.0)


def test_a_clock_that_goes_back_gives_no_tokens() -> None:
    bucket = TokenBucket(1, 1, now=10.0)
    assert bucket.take(10.0)
    assert not bucket.take(0.0)
    assert not bucket.take(10.5)
    assert bucket.take(11.0)
