"""Bytes of a WebSocket to messages and back (RFC 6455), for one end of it.

wsproto reads and writes the frames; the compression is ours, for a message that decompresses to
more than it may is noticed while it is decompressed, and a control frame in the midst of a
compressed message changes nothing about that.
"""

from __future__ import annotations

import functools
import importlib
import struct
import zlib
from typing import Any

import attrs

from .._websocket import BinaryMessage, TextMessage
from ..semantics._websocket import Deflate

PROTOCOL_ERROR, BAD_DATA, TOO_BIG = 1002, 1007, 1009
#: What stands behind a compressed message, and is not sent (RFC 7692 section 7.2.1).
_TAIL = b"\x00\x00\xff\xff"
# Half the memory of zlib's own choice, for a ratio that is hardly worse.
_MEMORY_LEVEL = 5


class MissingWsproto(RuntimeError):
    """The package that reads frames is not installed."""


@functools.cache
def _wsproto() -> tuple[Any, Any]:
    """Return wsproto's module of frames, and its protocol class with our reading of Close.

    Raises:
      MissingWsproto: the text holds the line that installs it.
    """
    try:
        frames: Any = importlib.import_module("wsproto.frame_protocol")
    except ImportError as exc:
        raise MissingWsproto(
            "filtering WebSocket messages needs wsproto: "
            "python -m pip install 'trioproxy[websocket]'"
        ) from exc

    class Frames(frames.FrameProtocol):  # type: ignore[misc,no-any-unimported]  # known at run time
        def _process_close(self, frame: Any) -> Any:
            # wsproto refuses codes that were registered since; ours is checked where it is read.
            return frame

    return frames, Frames


def require_wsproto() -> None:
    """Find out now whether frames can be read.

    Raises:
      MissingWsproto: they cannot.
    """
    _wsproto()


@attrs.frozen
class Control:
    """A ping or a pong.

    Attributes:
      ping: Which of them.
      payload: At most 125 bytes.
    """

    ping: bool
    payload: bytes


@attrs.frozen
class Close:
    """The last frame of one side.

    Attributes:
      code: Its code, None where it gave none.
      reason: Its reason, UTF-8.
    """

    code: int | None
    reason: bytes = b""


@attrs.frozen
class Failure:
    """Why the other side's bytes are no WebSocket any more.

    Attributes:
      code: What to tell it in a Close.
      text: In words.
    """

    code: int
    text: str


Incoming = TextMessage | BinaryMessage | Control | Close


class _Deflate:
    """The part of a frame that compression has to do with: wsproto asks it as an extension."""

    def __init__(self, frames: Any, deflate: Deflate | None, client: bool, most: int) -> None:
        self._frames = frames
        self._most = most
        self._agreed = deflate is not None
        deflate = deflate or Deflate()
        theirs, ours = "server", "client"
        if not client:
            theirs, ours = ours, theirs
        self._forget_in = getattr(deflate, f"{theirs}_no_context_takeover")
        self._forget_out = getattr(deflate, f"{ours}_no_context_takeover")
        self._bits_out = getattr(deflate, f"{ours}_max_window_bits")
        self._decompressor: Any = None
        self._compressor: Any = None
        self._control = False
        self._size = 0
        #: Whether the message that comes now is compressed.
        self.compressed = False
        #: Whether the next one that goes is to be.
        self.compress = False

    def enabled(self) -> bool:
        return True

    def frame_inbound_header(self, _proto: Any, opcode: Any, rsv: Any, length: int) -> Any:
        # Called again for the same header where that came in pieces.
        bits, opcodes = self._frames.RsvBits, self._frames.Opcode
        self._control = opcode.iscontrol()
        if self._control:
            return bits(False, False, False)
        starts = opcode is not opcodes.CONTINUATION
        if starts:
            self.compressed = rsv.rsv1
            self._size = 0
        if not self.compressed and self._size + length > self._most:
            return self._frames.CloseReason.MESSAGE_TOO_BIG
        return bits(self._agreed and starts, False, False)

    def frame_inbound_payload_data(self, _proto: Any, data: bytes) -> Any:
        if self._control:
            return data
        if self.compressed:
            return self._decompressed(data)
        self._size += len(data)
        return data

    def frame_inbound_complete(self, _proto: Any, fin: bool) -> Any:
        if self._control or not fin or not self.compressed:
            return None
        rest = self._decompressed(_TAIL)
        if self._forget_in:
            self._decompressor = None
        return rest

    def _decompressed(self, data: bytes) -> Any:
        out = bytearray()
        while data:
            if self._decompressor is None:
                self._decompressor = zlib.decompressobj(-15)  # reads what any window has made
            try:
                out += self._decompressor.decompress(data, self._most - self._size - len(out) + 1)
            except zlib.error:
                return self._frames.CloseReason.INVALID_FRAME_PAYLOAD_DATA
            if self._size + len(out) > self._most:
                return self._frames.CloseReason.MESSAGE_TOO_BIG
            data = b""
            if self._decompressor.eof:  # a last block in the midst is allowed (section 7.2.3.4)
                data = self._decompressor.unused_data
                self._decompressor = None
        self._size += len(out)
        return bytes(out)

    def frame_outbound(self, _proto: Any, opcode: Any, rsv: Any, data: bytes, _fin: bool) -> Any:
        # zlib makes no window of 256 bytes; and of nothing, nothing is the shortest.
        if opcode.iscontrol() or not (self.compress and self._agreed and data):
            return rsv, data
        if self._bits_out < 9:
            return rsv, data
        if self._compressor is None:
            self._compressor = zlib.compressobj(
                zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -self._bits_out, _MEMORY_LEVEL
            )
        out = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if self._forget_out:
            self._compressor = None
        return self._frames.RsvBits(True, rsv.rsv2, rsv.rsv3), out[: -len(_TAIL)]


class WebSocketEnd:
    """Our end of a WebSocket: what the other end sends is read, what it is sent is written."""

    def __init__(self, *, client: bool, deflate: Deflate | None, max_message_bytes: int) -> None:
        """Begin behind the handshake.

        Args:
          client: Whether we are the client of this WebSocket, so that our frames are masked.
          deflate: What was agreed on, None for no compression.
          max_message_bytes: How large a message may be.

        Raises:
          MissingWsproto: frames cannot be read.
        """
        frames, protocol = _wsproto()
        self._frames = frames
        self._deflate = _Deflate(frames, deflate, client, max_message_bytes)
        self._proto = protocol(client, [self._deflate])
        self._message = bytearray()
        self._closed = False
        #: Why no more can be read; what was read before is good.
        self.failure: Failure | None = None

    def feed(self, data: bytes) -> list[Incoming]:
        """Take bytes, and return what is whole now; look at `failure` behind it.

        What comes behind a Close is ignored.
        """
        out: list[Incoming] = []
        if self.failure is not None or self._closed:
            return out
        self._proto.receive_bytes(data)
        try:
            for frame in self._proto.received_frames():
                self._take(frame, out)
        except self._frames.ParseFailed as exc:
            self.failure = Failure(int(exc.code), str(exc))
        return out

    def _take(self, frame: Any, out: list[Incoming]) -> None:
        opcodes = self._frames.Opcode
        opcode, payload = frame.opcode, frame.payload
        if opcode is opcodes.TEXT or opcode is opcodes.BINARY:
            text = opcode is opcodes.TEXT
            self._message += payload.encode() if text else payload
            if frame.message_finished:
                kind = TextMessage if text else BinaryMessage
                out.append(kind.made(self._message, self._deflate.compressed))  # type: ignore[arg-type]  # of that kind
                self._message = bytearray()
        elif opcode is opcodes.CLOSE:
            out.append(self._closing(bytes(payload)))
        else:
            out.append(Control(opcode is opcodes.PING, bytes(payload)))

    def _closing(self, payload: bytes) -> Close:
        self._closed = True
        if not payload:
            return Close(None)
        failed = self._frames.ParseFailed
        code = struct.unpack("!H", payload[:2])[0] if len(payload) > 1 else 0
        if not valid_code(code):
            raise failed(f"a Close with the code {code}")
        try:
            payload[2:].decode()
        except UnicodeDecodeError as exc:
            raise failed(
                "a Close whose reason is no UTF-8",
                self._frames.CloseReason.INVALID_FRAME_PAYLOAD_DATA,
            ) from exc
        return Close(code, payload[2:])

    def message(self, message: TextMessage | BinaryMessage) -> bytes:
        """Return a message as one frame."""
        self._deflate.compress = message.compressed
        content = message.decode() if isinstance(message, TextMessage) else message
        return bytes(self._proto.send_data(content, True))

    def control(self, control: Control) -> bytes:
        """Return a ping or a pong."""
        write = self._proto.ping if control.ping else self._proto.pong
        return bytes(write(control.payload))

    def close(self, close: Close) -> bytes:
        """Return a Close; a reason that is too long is cut."""
        reason = close.reason.decode(errors="replace") if close.code is not None else None
        return bytes(self._proto.close(close.code, reason))


def valid_code(code: int) -> bool:
    """Tell whether a Close may carry a code (RFC 6455 section 7.4, and those registered since)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
