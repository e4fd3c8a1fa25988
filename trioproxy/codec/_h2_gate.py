"""What stands between the wire and the HTTP/2 library: bytes in, whole and counted frames out.

The library takes a frame of any size before it looks at it, counts nothing, and answers every fault
with the end of the connection. So each frame passes here first (RFC 9113 section 4): its length is
judged by its nine-byte head, what its type forbids is refused, and what costs us something is taken
from a budget, all of them in `H2Limits`. Frames that the library need not see stop here: GOAWAY,
the priorities of RFC 7540, PRIORITY_UPDATE and types that nobody knows. The rows named in comments
are those of the documentation's page on hostile input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

import attrs

from .._h2_limits import H2Limits
from ._buckets import TokenBucket

#: What a client sends first (RFC 9113 section 3.4).
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

PREFACE_TYPE: Final = -1
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9
PRIORITY_UPDATE: Final = 0x10

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

# Error codes (RFC 9113 section 7).
PROTOCOL_ERROR: Final = 0x1
FLOW_CONTROL_ERROR: Final = 0x3
FRAME_SIZE_ERROR: Final = 0x6
ENHANCE_YOUR_CALM: Final = 0xB

HEAD_BYTES: Final = 9
#: The payload of a frame as advertised, which is what RFC 9113 section 4.2 begins with (row H2-09).
MAX_FRAME_BYTES: Final = 16384

_KNOWN = frozenset(range(10)) | {PRIORITY_UPDATE}
_ON_STREAM = frozenset({DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION})
_ON_CONNECTION = frozenset({SETTINGS, PING, GOAWAY, PRIORITY_UPDATE})
_FIXED_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_LEAST_SIZES = {GOAWAY: 8, PRIORITY_UPDATE: 4}
# Setting: its least and greatest value, and the error of any other (RFC 9113 section 6.5.2, RFC 8441
# section 3, RFC 9218 section 2.1).
_SETTINGS = {
    0x2: (0, 1, PROTOCOL_ERROR),
    0x4: (0, 2**31 - 1, FLOW_CONTROL_ERROR),
    0x5: (16384, 2**24 - 1, PROTOCOL_ERROR),
    0x8: (0, 1, PROTOCOL_ERROR),
    0x9: (0, 1, PROTOCOL_ERROR),
}
_ENABLE_PUSH = 0x2
# Chunks of an incomplete frame that are kept apart before they are joined.
_MAX_PARTS = 64


@attrs.frozen
class GateFailure:
    """Why a connection has to end.

    Attributes:
      code: The error code for GOAWAY.
      text: A short sentence for people; it never holds bytes of the peer.
      limit: The field of `H2Limits` that was exceeded, or None.
    """

    code: int
    text: str
    limit: str | None = None


class Frame:
    """One whole frame that the peer sent."""

    __slots__ = (
        "flags",
        "goaway",
        "length",
        "priority_update",
        "raw",
        "stream_error",
        "stream_id",
        "type",
    )

    #: The type; `PREFACE_TYPE` for the client preface, which comes out like a frame.
    type: int
    #: The flags as received; but padding and priority are taken out of HEADERS, and their flags.
    flags: int
    #: The stream, without the reserved bit; 0 is the connection.
    stream_id: int
    #: The bytes of the payload as received.
    length: int
    #: What the library is to be fed, head included; empty where it must not see the frame.
    raw: bytes
    #: The (error code, text) that the stream is to be reset with. ``raw`` is fed all the same: the
    #: header compression is shared. The stream may be one that the library has not heard of.
    stream_error: tuple[int, str] | None
    #: A GOAWAY's (last stream, error code, debug data).
    goaway: tuple[int, int, bytes] | None
    #: A PRIORITY_UPDATE's (stream, value of the Priority field).
    priority_update: tuple[int, bytes] | None

    def __init__(self, kind: int, flags: int, stream_id: int, length: int, raw: bytes) -> None:
        self.type = kind
        self.flags = flags
        self.stream_id = stream_id
        self.length = length
        self.raw = raw
        self.stream_error = None
        self.goaway = None
        self.priority_update = None

    def __repr__(self) -> str:
        return (
            f"Frame(type={self.type:#x}, flags={self.flags:#x}, stream_id={self.stream_id}, "
            f"length={self.length})"
        )


class FrameGate:
    """Cuts a connection's bytes into frames, and keeps its budgets.

    It holds one incomplete frame at most. Whoever feeds it also watches the clock: for the first
    SETTINGS, and for a field block that stays open.

    Args:
      server: Whether the peer is a client.
      limits: The budgets.
      now: The time in seconds.
      preface: Whether the client preface is still to come (servers only). It comes out as the first
        frame, of `PREFACE_TYPE`; whoever took it off the wire before feeds it to the library too.

    Attributes:
      failure: Why the connection has to end, or None. Nothing comes out any more from then on.
      preface_done: Whether the client preface was seen.
      settings_seen: Whether the peer's first SETTINGS frame was seen.
      block_open: Whether a field block has begun and not ended.
    """

    __slots__ = (
        "_block_bytes",
        "_block_stream",
        "_continuations",
        "_control",
        "_empty_minute",
        "_empty_minute_from",
        "_empty_run",
        "_have",
        "_limits",
        "_need",
        "_now",
        "_parts",
        "_resets",
        "_server",
        "_window_credit",
        "failure",
        "preface_done",
        "settings_seen",
    )

    def __init__(
        self,
        *,
        server: bool,
        now: Callable[[], float],
        limits: H2Limits | None = None,
        preface: bool = True,
    ) -> None:
        self._limits = limits = limits or H2Limits()
        self._server = server
        self._now = now
        self.failure: GateFailure | None = None
        self.preface_done = not (server and preface)
        self.settings_seen = False
        # The bytes of an incomplete frame (or preface); its head was checked if they are nine.
        self._parts: list[bytes] = []
        self._have = 0
        self._need = HEAD_BYTES
        self._block_stream = 0
        self._block_bytes = 0
        self._continuations = 0
        at = now()
        self._resets = TokenBucket(limits.reset_burst, limits.reset_rate, at)
        self._control = TokenBucket(limits.control_burst, limits.control_rate, at)
        self._window_credit = 0
        self._empty_run = 0
        self._empty_minute = 0
        self._empty_minute_from = at

    @property
    def block_open(self) -> bool:
        """Whether a field block has begun and not ended."""
        return self._block_stream != 0

    def charge_reset(self) -> bool:
        """Take one from the budget of resets; False, with `failure` set, where it is empty.

        For each RST_STREAM that we send for a fault of the peer, and each frame on a stream that was
        reset already (H2-03). RST_STREAM frames received were charged here.
        """
        if self._resets.take(self._now()):
            return True
        self._calm("too many resets", "reset_burst")
        return False

    def credit_data(self, frames: int = 1) -> None:
        """Let the peer send more WINDOW_UPDATE frames, for DATA frames that we sent."""
        limits = self._limits
        credit = self._window_credit + frames * limits.window_credit
        self._window_credit = min(credit, limits.max_window_credit)

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that these bytes complete, in order.

        Where something is wrong, the frames before it are returned and `failure` is set.
        """
        frames: list[Frame] = []
        if self.failure is not None:
            return frames
        pos = 0
        size = len(data)
        if not self.preface_done:
            pos = self._take_preface(data, frames)
            if pos < 0:
                return frames
        while self._have and pos < size:  # twice at most: for the rest of a head, and of a payload
            raw, pos = self._complete(data, pos)
            if raw is None or not self._take(raw, 0, frames):
                return frames
        limit = MAX_FRAME_BYTES
        while pos < size:
            body = pos + HEAD_BYTES
            if body > size:
                self._keep(data, pos, HEAD_BYTES)
                return frames
            length = data[pos] << 16 | data[pos + 1] << 8 | data[pos + 2]
            end = body + length
            if (
                data[pos + 3] == DATA
                and length <= limit
                and end <= size
                and not data[pos + 4] & PADDED
                and length
                and self._block_stream == 0
                and self.settings_seen
            ):  # nearly all bytes of a busy connection
                stream_id = int.from_bytes(data[pos + 5 : body], "big") & 0x7FFFFFFF
                if stream_id:
                    self._empty_run = 0
                    raw = data if length + HEAD_BYTES == size else data[pos:end]
                    frames.append(Frame(DATA, data[pos + 4], stream_id, length, raw))
                    pos = end
                    continue
            if not self._take(data, pos, frames):
                return frames
            pos = end
        return frames

    def _take_preface(self, data: bytes, frames: list[Frame]) -> int:
        """Compare bytes with the preface as they come (H2-01); return how many there were, or -1."""
        have = self._have
        piece = data[: len(PREFACE) - have]
        if PREFACE[have : have + len(piece)] != piece:
            self._fail(PROTOCOL_ERROR, "not the client preface of HTTP/2")
            return -1
        self._have = have + len(piece)
        if self._have == len(PREFACE):
            self._have = 0
            self.preface_done = True
            frames.append(Frame(PREFACE_TYPE, 0, 0, 0, PREFACE))
        return len(piece)

    def _keep(self, data: bytes, pos: int, need: int) -> None:
        """Hold the beginning of a frame until the rest comes."""
        self._parts = [data[pos:]]
        self._have = len(data) - pos
        self._need = need

    def _complete(self, data: bytes, pos: int) -> tuple[bytes | None, int]:
        """Return what was awaited, a head or a whole frame, once it is there."""
        parts = self._parts
        take = self._need - self._have
        left = len(data) - pos
        if left < take:
            parts.append(data[pos:])
            self._have += left
            if len(parts) > _MAX_PARTS:
                self._parts = [b"".join(parts)]
            return None, pos + left
        raw = b"".join((*parts, memoryview(data)[pos : pos + take]))
        self._parts = []
        self._have = 0
        return raw, pos + take

    def _take(self, data: bytes, pos: int, frames: list[Frame]) -> bool:
        """Check the frame at a place, and pass it out if it is whole; False: there is no next one."""
        body = pos + HEAD_BYTES
        length = data[pos] << 16 | data[pos + 1] << 8 | data[pos + 2]
        kind = data[pos + 3]
        flags = data[pos + 4]
        stream_id = int.from_bytes(data[pos + 5 : body], "big") & 0x7FFFFFFF
        if not self._check_head(kind, flags, stream_id, length):
            return False
        end = body + length
        if end > len(data):
            self._keep(data, pos, HEAD_BYTES + length)
            # Only a whole piece of the wire ends the loop; a head that was pieced together does not.
            return pos == 0 and len(data) == HEAD_BYTES
        raw = data if pos == 0 and end == len(data) else data[pos:end]
        frame = Frame(kind, flags, stream_id, length, raw)
        keep = self._TAKERS.get(kind, FrameGate._take_unknown)(self, frame)
        if self.failure is not None:
            return False
        if keep:
            frames.append(frame)
        return True

    def _check_head(self, kind: int, flags: int, stream_id: int, length: int) -> bool:
        """Judge a frame by its first nine bytes, before the rest is waited for; nothing is charged."""
        if length > MAX_FRAME_BYTES:
            return self._fail(FRAME_SIZE_ERROR, "a frame over the advertised size")
        if not self.settings_seen and (kind != SETTINGS or flags & ACK):
            return self._fail(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block_stream and (kind != CONTINUATION or stream_id != self._block_stream):
            return self._fail(PROTOCOL_ERROR, "a frame in the middle of a field block")
        if kind not in _KNOWN:
            return True
        if stream_id == 0:
            if kind in _ON_STREAM:
                return self._fail(PROTOCOL_ERROR, "a frame on stream 0 that needs a stream")
        elif kind in _ON_CONNECTION:
            return self._fail(PROTOCOL_ERROR, "a frame on a stream that belongs on stream 0")
        if length != _FIXED_SIZES.get(kind, length) or length < _LEAST_SIZES.get(kind, 0):
            return self._fail(FRAME_SIZE_ERROR, "a frame whose size its type does not have")
        if kind == SETTINGS:
            if length % 6 or (flags & ACK and length):
                return self._fail(FRAME_SIZE_ERROR, "a SETTINGS frame of a wrong size")
            if length > 6 * self._limits.max_settings:
                return self._calm("too many settings in a frame", "max_settings")
        elif kind == PUSH_PROMISE:  # H2-27
            return self._fail(PROTOCOL_ERROR, "a push, which nobody allowed")
        elif kind == PRIORITY_UPDATE and not self._server:
            return self._fail(PROTOCOL_ERROR, "a PRIORITY_UPDATE frame from a server")
        elif kind == CONTINUATION:
            if not self._block_stream:
                return self._fail(PROTOCOL_ERROR, "a CONTINUATION frame outside of a field block")
            if self._continuations >= self._limits.max_continuations:
                return self._calm("too many CONTINUATION frames", "max_continuations")
            if self._block_bytes + length > self._limits.max_block_bytes:
                return self._calm("a field block that is too long", "max_block_bytes")
        return True

    def _take_data(self, frame: Frame) -> bool:
        content = frame.length
        if frame.flags & PADDED:
            content = self._unpadded(frame)
            if content < 0:
                return False
        if content == 0 and not frame.flags & END_STREAM:
            return self._count_empty()
        self._empty_run = 0
        return True

    def _take_headers(self, frame: Frame) -> bool:
        content = frame.length
        flags = frame.flags
        if flags & PADDED:
            content = self._unpadded(frame)
            if content < 0:
                return False
        if flags & HAS_PRIORITY:
            if frame.length < (6 if flags & PADDED else 5):
                return self._fail(FRAME_SIZE_ERROR, "a HEADERS frame too short for its priority")
            content -= 5
            if content < 0:
                return self._fail(PROTOCOL_ERROR, "padding that is longer than its frame")
        if flags & (PADDED | HAS_PRIORITY):
            self._strip(frame, content)
        if content > self._limits.max_block_bytes:
            return self._calm("a field block that is too long", "max_block_bytes")
        if flags & END_HEADERS:
            self._empty_run = 0
            return True
        self._block_stream = frame.stream_id
        self._block_bytes = content
        self._continuations = 0
        if content == 0:
            return self._count_empty()
        self._empty_run = 0
        return True

    def _strip(self, frame: Frame, content: int) -> None:
        """Leave of a HEADERS frame its piece of the block.

        The trees of RFC 7540 are not kept (H2-19), and the library refuses padding that is alone.
        """
        raw = frame.raw
        at = HEAD_BYTES + (1 if frame.flags & PADDED else 0)
        if frame.flags & HAS_PRIORITY:
            if _dependency(raw, at) == frame.stream_id:
                frame.stream_error = (PROTOCOL_ERROR, "a stream that depends on itself")
            at += 5
        frame.flags &= ~(PADDED | HAS_PRIORITY)
        head = content.to_bytes(3, "big") + bytes((HEADERS, frame.flags))
        frame.raw = b"".join((head, raw[5:HEAD_BYTES], raw[at : at + content]))

    def _take_continuation(self, frame: Frame) -> bool:
        self._continuations += 1
        self._block_bytes += frame.length
        if frame.flags & END_HEADERS:
            self._block_stream = 0
        return True

    def _take_priority(self, frame: Frame) -> bool:
        if not self._charge_control():
            return False
        if frame.length != 5:
            frame.stream_error = (FRAME_SIZE_ERROR, "a PRIORITY frame of a wrong size")
        elif _dependency(frame.raw, HEAD_BYTES) == frame.stream_id:
            frame.stream_error = (PROTOCOL_ERROR, "a stream that depends on itself")
        frame.raw = b""
        return frame.stream_error is not None

    def _take_rst_stream(self, frame: Frame) -> bool:
        if not self._server and frame.raw[HEAD_BYTES:] == bytes(4):
            # A server that has answered wants no more of the request (H2-21): no fault of its own.
            return self._charge_control()
        return self.charge_reset()

    def _take_settings(self, frame: Frame) -> bool:
        if not self._charge_control():
            return False
        raw = frame.raw
        for at in range(HEAD_BYTES, HEAD_BYTES + frame.length, 6):
            key = int.from_bytes(raw[at : at + 2], "big")
            if key in _SETTINGS:
                least, most, code = _SETTINGS[key]
                value = int.from_bytes(raw[at + 2 : at + 6], "big")
                if key == _ENABLE_PUSH and not self._server:
                    most = 0  # RFC 9113 section 6.5.2: from a server, 1 is an error as well
                if not least <= value <= most:
                    return self._fail(code, "a setting whose value is not allowed")
        self.settings_seen = True
        return True

    def _take_ping(self, frame: Frame) -> bool:
        return self._charge_control()

    def _take_goaway(self, frame: Frame) -> bool:
        raw = frame.raw
        last = int.from_bytes(raw[9:13], "big") & 0x7FFFFFFF
        frame.goaway = (last, int.from_bytes(raw[13:17], "big"), raw[17:])
        frame.raw = b""
        return self._charge_control()

    def _take_window_update(self, frame: Frame) -> bool:
        if self._window_credit:
            self._window_credit -= 1
        elif not self._charge_control():
            return False
        if not int.from_bytes(frame.raw[9:13], "big") & 0x7FFFFFFF:
            if frame.stream_id == 0:
                return self._fail(PROTOCOL_ERROR, "a window that is enlarged by nothing")
            frame.stream_error = (PROTOCOL_ERROR, "a window that is enlarged by nothing")
            frame.raw = b""
        elif frame.raw[9] & 0x80:  # a reserved bit, which the library would take for a number's
            raw = frame.raw
            frame.raw = b"".join((raw[:9], bytes((raw[9] & 0x7F,)), raw[10:]))
        return True

    def _take_priority_update(self, frame: Frame) -> bool:
        raw = frame.raw
        stream_id = int.from_bytes(raw[9:13], "big") & 0x7FFFFFFF
        if stream_id == 0:
            return self._fail(PROTOCOL_ERROR, "a PRIORITY_UPDATE frame for stream 0")
        frame.priority_update = (stream_id, raw[13:])
        frame.raw = b""
        return self._charge_control()

    def _take_unknown(self, frame: Frame) -> bool:
        self._charge_control()
        return False

    def _unpadded(self, frame: Frame) -> int:
        """Return the payload's bytes without padding; less than nothing, it failed."""
        if frame.length == 0:
            self._fail(FRAME_SIZE_ERROR, "a padded frame without a length of its padding")
            return -1
        content = frame.length - 1 - frame.raw[HEAD_BYTES]
        if content < 0:
            self._fail(PROTOCOL_ERROR, "padding that is longer than its frame")
        return content

    def _count_empty(self) -> bool:
        """Count a frame without content that ends nothing (H2-08)."""
        limits = self._limits
        now = self._now()
        if now - self._empty_minute_from >= 60:
            self._empty_minute_from = now
            self._empty_minute = 0
        self._empty_run += 1
        self._empty_minute += 1
        if self._empty_run >= limits.max_empty_run:
            return self._calm("too many empty frames in a row", "max_empty_run")
        if self._empty_minute >= limits.max_empty_minute:
            return self._calm("too many empty frames", "max_empty_minute")
        return True

    def _charge_control(self) -> bool:
        if self._control.take(self._now()):
            return True
        return self._calm("too many control frames", "control_burst")

    def _calm(self, text: str, limit: str) -> bool:
        return self._fail(ENHANCE_YOUR_CALM, text, limit)

    def _fail(self, code: int, text: str, limit: str | None = None) -> bool:
        if self.failure is None:
            self.failure = GateFailure(code, text, limit)
            self._parts = []
            self._have = 0
        return False

    _TAKERS: ClassVar[dict[int, Callable[[FrameGate, Frame], bool]]] = {
        DATA: _take_data,
        HEADERS: _take_headers,
        PRIORITY: _take_priority,
        RST_STREAM: _take_rst_stream,
        SETTINGS: _take_settings,
        PING: _take_ping,
        GOAWAY: _take_goaway,
        WINDOW_UPDATE: _take_window_update,
        CONTINUATION: _take_continuation,
        PRIORITY_UPDATE: _take_priority_update,
    }


def _dependency(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "big") & 0x7FFFFFFF
