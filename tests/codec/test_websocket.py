"""WebSocket frames: the cases that test suites for RFC 6455 and RFC 7692 have, `websockets` the oracle.

The cases that name a number follow the groups of the Autobahn test suite, which needs Python 2.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import struct
import sys
import zlib
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, SERVER, Protocol, State

from tests._support.websocket import raw
from trioproxy.codec import _websocket
from trioproxy.codec._websocket import (
    Close,
    Control,
    Failure,
    MissingWsproto,
    WebSocketEnd,
    valid_code,
)
from trioproxy.semantics._websocket import Deflate
from trioproxy.websocket import BinaryMessage, TextMessage

MOST = 1 << 20


def end(*, client: bool = False, deflate: Deflate | None = None, most: int = MOST) -> WebSocketEnd:
    return WebSocketEnd(client=client, deflate=deflate, max_message_bytes=most)


def text(message: str) -> TextMessage:
    return TextMessage(message)


def fed(data: bytes, *cuts: int, **options: Any) -> tuple[list[Any], Failure | None]:
    """Feed bytes in pieces; return what came of them."""
    ours = end(**options)
    out: list[Any] = []
    for start, stop in itertools.pairwise([0, *cuts, len(data)]):
        out += ours.feed(data[start:stop])
    return out, ours.failure


# -- 1, 2, 5, 6: messages, control frames, fragments, UTF-8 ----------------------------------------

GOOD: list[tuple[str, bytes, list[Any]]] = [
    ("an empty text", raw(1), [text("")]),
    ("a text", raw(1, "Grüße €".encode()), [text("Grüße €")]),
    ("a binary message", raw(2, b"\0\xff"), [BinaryMessage(b"\0\xff")]),
    ("125 bytes", raw(2, b"x" * 125), [BinaryMessage(b"x" * 125)]),
    ("126 bytes", raw(2, b"x" * 126), [BinaryMessage(b"x" * 126)]),
    ("65535 bytes", raw(2, b"x" * 65535), [BinaryMessage(b"x" * 65535)]),
    ("65536 bytes", raw(2, b"x" * 65536), [BinaryMessage(b"x" * 65536)]),
    (
        "fragments",
        raw(1, b"ab", fin=False) + raw(0, b"c", fin=False) + raw(0, b"d"),
        [text("abcd")],
    ),
    ("empty fragments", raw(1, fin=False) + raw(0, fin=False) + raw(0), [text("")]),
    (
        "a character across fragments",
        raw(1, b"\xe2\x82", fin=False) + raw(0, b"\xac"),
        [text("\u20ac")],
    ),
    (
        "a ping between fragments",
        raw(1, b"a", fin=False) + raw(9, b"?") + raw(0, b"b"),
        [Control(True, b"?"), text("ab")],
    ),
    (
        "many controls between fragments",
        raw(2, b"a", fin=False) + raw(9, b"1") * 10 + raw(10, b"2") + raw(0, b"b"),
        [*[Control(True, b"1")] * 10, Control(False, b"2"), BinaryMessage(b"ab")],
    ),
    ("a ping of 125 bytes", raw(9, b"p" * 125), [Control(True, b"p" * 125)]),
    ("a pong nobody asked for", raw(10, b"p"), [Control(False, b"p")]),
    ("two messages", raw(1, b"a") + raw(2, b"b"), [text("a"), BinaryMessage(b"b")]),
    ("a close without a code", raw(8), [Close(None)]),
    ("a close with a reason", raw(8, b"\x0f\xa1bye"), [Close(4001, b"bye")]),
    ("a reason of 123 bytes", raw(8, b"\x03\xe8" + b"r" * 123), [Close(1000, b"r" * 123)]),
    ("frames behind a close", raw(8, b"\x03\xe8") + raw(1, b"a") + raw(3), [Close(1000)]),
]
BAD: list[tuple[str, bytes, int]] = [
    ("a ping of 126 bytes", raw(9, b"p" * 126), 1002),
    ("a ping in fragments", raw(9, b"p", fin=False), 1002),
    ("a close in fragments", raw(8, b"\x03\xe8", fin=False), 1002),
    *[
        (f"the opcode {opcode}", raw(opcode), 1002)
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    ],
    *[(f"the reserved bits {bits}", raw(1, b"a", bits=bits), 1002) for bits in range(1, 8)],
    *[(f"the bits {bits} on a ping", raw(9, b"a", bits=bits), 1002) for bits in range(1, 8)],
    ("a frame without a mask", raw(1, b"a", mask=None), 1002),
    ("a continuation of nothing", raw(0, b"a"), 1002),
    ("a message in a message", raw(1, b"a", fin=False) + raw(1, b"b"), 1002),
    ("a length that is not the shortest", b"\x82\xfe\0\x01\0\0\0\0a", 1002),
    ("a long length that is not the shortest", b"\x82\xff" + bytes(7) + b"\x01\0\0\0\0a", 1002),
    ("a length beyond 63 bits", b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0", 1002),
    ("a close of one byte", raw(8, b"\x03"), 1002),
    ("a reason that is no UTF-8", raw(8, b"\x03\xe8\xff"), 1007),
    ("no UTF-8", raw(1, b"\xff"), 1007),
    ("half a character", raw(1, b"\xe2\x82"), 1007),
    ("half a character at the end of fragments", raw(1, b"a", fin=False) + raw(0, b"\xe2"), 1007),
    ("an overlong slash", raw(1, b"\xc0\xaf"), 1007),
    ("a surrogate", raw(1, b"\xed\xa0\x80"), 1007),
    ("beyond Unicode", raw(1, b"\xf4\x90\x80\x80"), 1007),
    ("a wrong fragment before the last one", raw(1, b"\xce\xba\xff", fin=False), 1007),
    ("a message too large", raw(2, b"x" * 11), 1009),
    ("fragments too large", raw(2, b"x" * 6, fin=False) + raw(0, b"x" * 5), 1009),
    ("the head of a frame too large", raw(2, b"x" * 70000)[:14], 1009),
]


@pytest.mark.parametrize(("name", "data", "expected"), GOOD, ids=[case[0] for case in GOOD])
def test_what_is_right_is_read(name: str, data: bytes, expected: list[Any]) -> None:
    cuts = range(len(data)) if len(data) < 1000 else (1, 2, 3, 8, 9, 10, 14, 15, 1000)
    for cut in cuts:
        out, failure = fed(data, cut)
        assert failure is None
        assert out == expected
        assert [type(each) for each in out] == [type(each) for each in expected]
    assert fed(data[:2000], *range(1, min(2000, len(data))))[1] is None


@pytest.mark.parametrize(("name", "data", "code"), BAD, ids=[case[0] for case in BAD])
def test_what_is_wrong_is_refused_with_its_code(name: str, data: bytes, code: int) -> None:
    for cut in range(min(len(data), 100)):
        out, failure = fed(data, cut, most=10)
        assert failure is not None
        assert failure.code == code
        assert not [each for each in out if isinstance(each, bytes)]


def test_what_came_before_a_failure_is_good_and_nothing_is_read_behind_it() -> None:
    ours = end()
    assert ours.feed(raw(1, b"good") + raw(3) + raw(1, b"lost")) == [text("good")]
    assert ours.failure is not None
    assert ours.feed(raw(1, b"more")) == []


def test_a_flood_behind_a_close_is_not_held() -> None:
    ours = end()
    ours.feed(raw(8))
    for _ in range(100):
        assert ours.feed(bytes(65536)) == []
    assert len(ours._proto._frame_decoder.buffer) < 65536


def test_a_message_in_fragments_without_number_holds_no_more_than_its_bytes() -> None:
    ours = end(most=100)
    assert ours.feed(raw(2, fin=False) + raw(0, fin=False) * 10_000) == []
    assert len(ours._message) == 0
    assert ours.feed(raw(0, b"end")) == [BinaryMessage(b"end")]


def test_close_codes_are_those_that_may_be_sent() -> None:
    allowed = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
    for code in [*range(900, 5100), 0, 65535]:
        out, failure = fed(raw(8, struct.pack("!H", code)))
        assert valid_code(code) is (code in allowed)
        assert (out == [Close(code)]) is (code in allowed)
        assert (failure is None) is (code in allowed)


def test_a_frame_with_a_mask_is_not_for_a_client() -> None:
    out, failure = fed(raw(1, b"a"), client=True)
    assert not out
    assert failure is not None
    assert failure.code == 1002


# -- what we write, as `websockets` reads it -------------------------------------------------------


@functools.cache
def fields() -> list[Deflate]:
    """Return every mixture of parameters, with a few windows."""
    return [
        Deflate(client, server, *bits)
        for client, server in itertools.product((False, True), repeat=2)
        for bits in ((15, 15), (9, 12), (12, 9), (8, 8), (15, 8), (8, 15))
    ]


def other_end(*, client: bool, deflate: Deflate | None) -> Protocol:
    """Return the other end, ``client`` being what we are."""
    protocol = Protocol(SERVER if client else CLIENT, state=State.OPEN, max_size=None)
    if deflate is not None:
        server = (deflate.server_no_context_takeover, deflate.server_max_window_bits)
        own = (deflate.client_no_context_takeover, deflate.client_max_window_bits)
        remote, local = (own, server) if client else (server, own)
        bits = local[1] if local[1] > 8 else 9  # zlib makes no smaller one
        protocol.extensions = [PerMessageDeflate(remote[0], local[0], remote[1], bits)]
    return protocol


MESSAGES: list[TextMessage | BinaryMessage] = [
    text("hello"),
    text(""),
    BinaryMessage(b"hello" * 1000),
    BinaryMessage(b""),
    text("hello" * 20),
    BinaryMessage(bytes(range(256)) * 300),
    BinaryMessage(b"\0" * 200_000),
]


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("deflate", [None, *fields()], ids=str)
def test_messages_go_to_another_implementation(client: bool, deflate: Deflate | None) -> None:
    ours, theirs = end(client=client, deflate=deflate), other_end(client=client, deflate=deflate)
    for message in MESSAGES * 2:
        theirs.receive_data(ours.message(message))
        (frame,) = theirs.events_received()
        assert isinstance(frame, Frame)
        assert bytes(frame.data) == message
        assert frame.opcode is (Opcode.TEXT if isinstance(message, TextMessage) else Opcode.BINARY)
    theirs.receive_data(ours.control(Control(False, b"pong")))
    assert [bytes(frame.data) for frame in theirs.events_received()] == [b"pong"]  # type: ignore[union-attr]
    theirs.receive_data(ours.close(Close(4001, b"x" * 200)))
    (frame,) = theirs.events_received()
    assert isinstance(frame, Frame)
    assert frame.data == b"\x0f\xa1" + b"x" * 123
    assert theirs.parser_exc is None


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("deflate", [None, *fields()], ids=str)
def test_messages_come_from_another_implementation(client: bool, deflate: Deflate | None) -> None:
    ours, theirs = end(client=client, deflate=deflate), other_end(client=client, deflate=deflate)
    for message in MESSAGES * 2:
        send = theirs.send_text if isinstance(message, TextMessage) else theirs.send_binary
        send(bytes(message))
        (came,) = ours.feed(b"".join(theirs.data_to_send()))
        assert came == message
        assert type(came) is type(message)
        assert came.compressed is (deflate is not None)
    assert ours.failure is None


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_compressed_message_may_have_controls_between_its_fragments(cut: int) -> None:
    deflate = Deflate()
    ours, theirs = end(deflate=deflate), other_end(client=False, deflate=deflate)
    for payload in (b"hello hello hello", b"hello again"):
        theirs.send_text(payload[:4], fin=False)
        theirs.send_ping(b"between")
        theirs.send_continuation(payload[4:8], fin=False)
        theirs.send_pong(b"these")
        theirs.send_continuation(payload[8:], fin=True)
        data = b"".join(theirs.data_to_send())
        came = ours.feed(data[:cut]) + ours.feed(data[cut:])
        assert came == [Control(True, b"between"), Control(False, b"these"), text(payload.decode())]
    assert ours.failure is None


def test_a_message_that_came_uncompressed_or_is_told_so_leaves_uncompressed() -> None:
    ours = end(deflate=Deflate())
    (plain,) = ours.feed(raw(1, b"plain text"))
    assert isinstance(plain, TextMessage)
    assert not plain.compressed
    assert ours.message(plain) == b"\x81\x0aplain text"
    assert ours.message(text("plain text"))[0] == 0xC1
    assert end().message(text("plain text")) == b"\x81\x0aplain text"


def test_a_last_block_in_the_midst_is_read() -> None:
    hello = bytes([0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00])  # RFC 7692 section 7.2.3.4
    two_blocks = bytes([0xF2, 0x48, 0x05, 0, 0, 0, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00])
    for payload in (hello, two_blocks, hello):
        for cut in range(len(payload)):
            ours = end(deflate=Deflate())
            data = raw(1, payload, bits=4)
            assert ours.feed(data[:cut]) + ours.feed(data[cut:]) == [text("Hello")]
            assert ours.feed(data) == [text("Hello")]


def squeezed(data: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (made.compress(data) + made.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_what_decompresses_to_too_much_is_refused_before_it_is_held() -> None:
    bomb = raw(2, squeezed(bytes(64 << 20)), bits=4)
    assert len(bomb) < 70_000
    seen: list[int] = []

    ours = end(deflate=Deflate(), most=1000)
    decompressed = ours._deflate._decompressed

    def measured(data: bytes) -> Any:
        out = decompressed(data)
        seen.append(len(out) if isinstance(out, bytes) else 0)
        return out

    ours._deflate._decompressed = measured  # type: ignore[method-assign]
    for at in range(0, len(bomb), 100):
        assert ours.feed(bomb[at : at + 100]) == []
        if ours.failure is not None:
            break
    assert ours.failure is not None
    assert ours.failure.code == 1009
    assert sum(seen) <= 1000


@pytest.mark.parametrize("size", [999, 1000, 1001])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_the_limit_is_what_it_says(size: int, compress: bool, pieces: int) -> None:
    data = bytes(index * 7 % 251 for index in range(size))
    sent = squeezed(data) if compress else data
    length = -(-len(sent) // pieces)
    parts = [sent[at : at + length] for at in range(0, len(sent), length)]
    wire = b"".join(
        raw(0 if index else 2, part, fin=index + 1 == len(parts), bits=4 * (compress and not index))
        for index, part in enumerate(parts)
    )
    out, failure = fed(wire, deflate=Deflate(), most=1000)
    assert (out == [data]) is (size <= 1000)
    assert (failure is None) is (size <= 1000)


@pytest.mark.parametrize(
    "wire",
    [
        raw(1, b"\xff\xff\xff", bits=4),
        raw(1, b"a", fin=False, bits=4) + raw(0, b"b", bits=4),
        raw(9, b"", bits=4),
        raw(1, squeezed(b"\xff"), bits=4),
    ],
)
def test_what_is_wrongly_compressed_is_refused(wire: bytes) -> None:
    out, failure = fed(wire, deflate=Deflate())
    assert not out
    assert failure is not None
    assert failure.code in (1002, 1007)


# -- properties ------------------------------------------------------------------------------------


@attrs.frozen
class Sent:
    """A message in its fragments, with the controls between them."""

    message: TextMessage | BinaryMessage
    cuts: list[int]
    pings: list[bytes]


SENT = st.builds(
    Sent,
    st.one_of(st.text(max_size=40).map(TextMessage), st.binary(max_size=60).map(BinaryMessage)),
    st.lists(st.integers(0, 60), max_size=4),
    st.lists(st.binary(max_size=10), max_size=2),
)


@given(
    st.lists(SENT, min_size=1, max_size=6),
    st.sampled_from([None, *fields()]),
    st.booleans(),
    st.data(),
)
def test_any_messages_in_any_pieces_are_what_was_sent(
    script: list[Sent], deflate: Deflate | None, client: bool, data: st.DataObject
) -> None:
    ours, theirs = end(client=client, deflate=deflate), other_end(client=client, deflate=deflate)
    expected: list[Any] = []
    for sent in script:
        content = bytes(sent.message)
        cuts = sorted({min(cut, len(content)) for cut in sent.cuts})
        parts = [content[a:b] for a, b in itertools.pairwise([0, *cuts, len(content)])]
        first = theirs.send_text if isinstance(sent.message, TextMessage) else theirs.send_binary
        for index, part in enumerate(parts):
            (theirs.send_continuation if index else first)(part, index + 1 == len(parts))
            if index == 0 and len(parts) > 1:
                for ping in sent.pings:
                    theirs.send_ping(ping)
                    expected.append(Control(True, ping))
        expected.append(sent.message)
    wire = b"".join(theirs.data_to_send())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    came: list[Any] = []
    for a, b in itertools.pairwise([0, *cuts, len(wire)]):
        came += ours.feed(wire[a:b])
    assert ours.failure is None
    assert came == expected


@given(st.binary(max_size=200), st.booleans(), st.sampled_from([None, Deflate()]))
def test_any_bytes_are_read_or_refused(wire: bytes, client: bool, deflate: Deflate | None) -> None:
    """What `websockets` refuses we refuse, if only when the head of its frame is whole."""
    ours, theirs = end(client=client, deflate=deflate), other_end(client=not client, deflate=None)
    if deflate is not None:
        theirs.extensions = [PerMessageDeflate(False, False, 15, 15)]
    came = ours.feed(wire)
    theirs.receive_data(wire)
    assert ours.failure is None or ours.failure.code in (1002, 1007, 1009)
    if isinstance(theirs.parser_exc, ProtocolError) and Close not in map(type, came):
        ours.feed(bytes(14))
        assert ours.failure is not None


# -- the package that is not there -----------------------------------------------------------------


def test_without_wsproto_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _websocket._wsproto.cache_clear()
    monkeypatch.setitem(sys.modules, "wsproto.frame_protocol", None)
    with pytest.raises(MissingWsproto, match=r"pip install 'trioproxy\[websocket\]'"):
        _websocket.require_wsproto()
    monkeypatch.undo()
    importlib.import_module("wsproto.frame_protocol")
    _websocket.require_wsproto()
