"""An HTTP/2 peer made of hyperframe and hpack alone, so that no bug of h2 or of ours hides in it.

Two levels over one byte stream, both as client and as server:

**Frames**, for hostile scripts::

    wire = H2Wire(stream, client=True)
    await wire.start()                                # preface and SETTINGS
    await wire.headers(1, request("GET", "/"), end=True)
    await wire.send(PingFrame(0, b"12345678"))        # any frames, any order
    await wire.send_raw(b"...")                       # any bytes
    head = await wire.until(HeadersFrame, 1)          # `Head`, its CONTINUATIONs joined, decoded
    gone = await wire.until(GoAwayFrame)
    await wire.at_end()

`until` reads and keeps every frame on its way (`received`); it raises `EOFError` where the
connection ends first. SETTINGS and PING are acknowledged unless `answers` is False.

**Messages**, for several exchanges at once, with `H2Peer.run` as a task of the test::

    peer = H2Peer(H2Wire(stream, client=True))
    nursery.start_soon(peer.run)
    stream_id = await peer.request("POST", "/path", [("x", "1")], body=b"up", trailers=[("t", "1")])
    message = await peer.response(stream_id)          # H2Message, or CutError where it was reset

    origin = H2Peer(H2Wire(stream, client=False), handler)
    nursery.start_soon(origin.run)                    # handler(stream) is a task per request

    async def handler(stream: H2Stream) -> None:
        request = await stream.message()
        await stream.respond(200, [("content-type", "text/plain")], b"hello")

`H2Stream` also has the parts: `head`, `at_least`, `send_head`, `send_data` (keeps to the windows),
`send_trailers`, `reset`. ``peer.crediting = False`` makes a reader that takes frames and gives no
credit, ``peer.stop_reading()`` one that takes nothing at all.

Every frame that passes is counted by `Accounts`, independent of any library: data beyond a window,
a window beyond 2**31-1 or an increment of 0 raises AssertionError in the reader, and
`assert_windows_whole` tells whether every byte came back as credit. What the other side sends is
checked strictly (order of pseudo-fields, names, lengths): a test fails by an AssertionError of the
peer's task.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import attrs
import hpack
import trio
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests._support.recording import CutError, Message

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
SETTINGS_TIMEOUT = 0x4
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB
HTTP_1_1_REQUIRED = 0xD

HEADER_TABLE_SIZE = 0x1
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6
ENABLE_CONNECT_PROTOCOL = 0x8

DEFAULT_WINDOW = 65535
MOST_WINDOW = 2**31 - 1

Fields = list[tuple[bytes, bytes]]
AnyFields = Iterable[tuple[str | bytes, str | bytes]]
FrameT = TypeVar("FrameT", bound=Frame)

_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_CONNECTION_FIELDS = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
}


def _bytes(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text


def as_fields(fields: AnyFields) -> Fields:
    """Return fields as pairs of bytes."""
    return [(_bytes(name), _bytes(value)) for name, value in fields]


def request(
    method: str | bytes = "GET",
    path: str | bytes = "/path",
    fields: AnyFields = (),
    *,
    authority: str | bytes | None = "site.test",
    scheme: str | bytes = "http",
) -> Fields:
    """Return the fields of a request's head."""
    pseudo: Fields = [(b":method", _bytes(method)), (b":scheme", _bytes(scheme))]
    if authority is not None:
        pseudo.append((b":authority", _bytes(authority)))
    pseudo.append((b":path", _bytes(path)))
    return pseudo + as_fields(fields)


def extension(kind: int, stream: int = 0, body: bytes = b"", flags: int = 0) -> ExtensionFrame:
    """Return a frame of a type that hyperframe does not know."""
    frame = ExtensionFrame(kind, stream, flags, body)
    frame.body_len = len(body)
    return frame


class Head(HeadersFrame):
    """A received HEADERS frame with its CONTINUATIONs and what they mean."""

    fields: Fields
    #: How many CONTINUATION frames followed.
    continuations: int = 0

    def get(self, name: str) -> str | None:
        """Return the only value of a field, None where it is absent."""
        values = [value for key, value in self.fields if key == name.encode()]
        assert len(values) < 2, (name, values)
        return values[0].decode("latin-1") if values else None


# -- accounts --------------------------------------------------------------------------------------


@attrs.define
class Window:
    """One flow-control window, as both sides must see it."""

    size: int = DEFAULT_WINDOW
    #: The largest it ever was.
    peak: int = attrs.field(init=False)
    #: Bytes that went through it.
    taken: int = 0

    def __attrs_post_init__(self) -> None:
        self.peak = self.size

    def take(self, count: int) -> None:
        """Let bytes through."""
        self.size -= count
        self.taken += count

    def give(self, count: int) -> None:
        """Add credit."""
        assert count > 0, "an increment of 0"
        self.size += count
        assert self.size <= MOST_WINDOW, f"a window of {self.size}"
        self.peak = max(self.peak, self.size)

    def shift(self, count: int) -> None:
        """Follow a change of INITIAL_WINDOW_SIZE."""
        self.size += count
        self.peak += count
        assert self.size <= MOST_WINDOW, f"a window of {self.size}"


@attrs.define
class Windows:
    """The windows of one direction: the connection's and those of its streams."""

    initial: int = DEFAULT_WINDOW
    connection: Window = attrs.field(factory=Window)
    streams: dict[int, Window] = attrs.field(factory=dict)

    def stream(self, number: int) -> Window:
        """Return the window of a stream."""
        return self.streams.setdefault(number, Window(self.initial))

    def take(self, number: int, count: int) -> None:
        """Let the bytes of a DATA frame through."""
        self.connection.take(count)
        self.stream(number).take(count)

    def give(self, number: int, count: int) -> None:
        """Follow a WINDOW_UPDATE."""
        (self.stream(number) if number else self.connection).give(count)

    def set_initial(self, size: int) -> None:
        """Follow a SETTINGS_INITIAL_WINDOW_SIZE."""
        for window in self.streams.values():
            window.shift(size - self.initial)
        self.initial = size


@attrs.define
class Accounts:
    """What both directions' windows must be, from the frames that passed."""

    #: For data that we send.
    out: Windows = attrs.field(factory=Windows)
    #: For data that we receive.
    back: Windows = attrs.field(factory=Windows)
    #: Values of our SETTINGS frames that were not acknowledged yet.
    unacknowledged: list[dict[int, int]] = attrs.field(factory=list)

    def sent(self, frame: Frame) -> None:
        """Count a frame that we send; what we send may well be wrong."""
        if isinstance(frame, DataFrame):
            self.out.take(frame.stream_id, frame.flow_controlled_length)
        elif isinstance(frame, WindowUpdateFrame) and frame.window_increment:
            window = self.back.stream(frame.stream_id) if frame.stream_id else self.back.connection
            window.size += frame.window_increment
            window.peak = max(window.peak, window.size)
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.unacknowledged.append(dict(frame.settings))

    def received(self, frame: Frame) -> None:
        """Count a frame of the other side, which must be right."""
        if isinstance(frame, DataFrame):
            self.back.take(frame.stream_id, frame.flow_controlled_length)
            assert self.back.connection.size >= 0, "data beyond the connection's window"
            assert self.back.stream(frame.stream_id).size >= 0, (
                f"data beyond the window of stream {frame.stream_id}"
            )
        elif isinstance(frame, WindowUpdateFrame):
            self.out.give(frame.stream_id, frame.window_increment)
        elif isinstance(frame, SettingsFrame):
            if "ACK" in frame.flags:
                assert self.unacknowledged, "an acknowledgement of nothing"
                values = self.unacknowledged.pop(0)
                if INITIAL_WINDOW_SIZE in values:
                    self.back.set_initial(values[INITIAL_WINDOW_SIZE])
            elif INITIAL_WINDOW_SIZE in frame.settings:
                self.out.set_initial(frame.settings[INITIAL_WINDOW_SIZE])

    def assert_windows_whole(self, slack: int = 0, *, ours: bool = True) -> None:
        """Check that every byte of both directions came back as credit of the connection.

        Args:
          slack: Bytes that the other side may hold back, to save on small updates.
          ours: Whether what we received must have been credited too.
        """
        out, back = self.out.connection, self.back.connection
        assert out.size >= out.peak - slack, f"{out.peak - out.size} of {out.taken} not credited"
        if ours:
            assert back.size == back.peak, f"we hold {back.peak - back.size} of {back.taken}"


# -- frames ----------------------------------------------------------------------------------------


@attrs.define(eq=False)
class H2Wire:
    """One end of a byte stream that carries HTTP/2 frames."""

    stream: trio.StapledStream[Any, Any]
    client: bool = True
    #: How many connections to this origin were made before.
    number: int = 0
    #: Whether SETTINGS and PING are acknowledged as they are read.
    answers: bool = True
    accounts: Accounts = attrs.field(factory=Accounts)
    encoder: hpack.Encoder = attrs.field(factory=hpack.Encoder)
    decoder: hpack.Decoder = attrs.field(factory=hpack.Decoder)
    #: Every frame that was read, in order.
    received: list[Frame] = attrs.field(factory=list)
    #: The settings of the other side.
    settings: dict[int, int] = attrs.field(factory=dict)
    buffer: bytearray = attrs.field(factory=bytearray)
    #: Bytes of frame payload that fit into one frame of ours.
    max_frame_size: int = 16384
    _sending: trio.Lock = attrs.field(factory=trio.Lock)
    _preface_read: bool = False
    _corks: int = 0
    _held: bytearray = attrs.field(factory=bytearray)

    # -- sending

    async def start(self, settings: dict[int, int] | None = None) -> None:
        """Send the preface, if we are the client, and our SETTINGS."""
        if settings is None:
            settings = {ENABLE_PUSH: 0} if self.client else {MAX_CONCURRENT_STREAMS: 100}
        if self.client:
            await self.send_raw(PREFACE)
        await self.send(SettingsFrame(0, settings=settings))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes that no account sees."""
        async with self._sending:
            await self.stream.send_all(data)

    async def send(self, *frames: Frame) -> None:
        """Send frames in one write."""
        async with self._sending:
            await self._send(frames)

    async def _send(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self.accounts.sent(frame)
        self._held += b"".join(frame.serialize() for frame in frames)
        await self._flush()

    async def _flush(self) -> None:
        if not self._corks and self._held:
            held, self._held = self._held, bytearray()
            await self.stream.send_all(held)

    @asynccontextmanager
    async def one_write(self) -> AsyncIterator[None]:
        """Let all frames that are sent in this block leave in one write."""
        self._corks += 1
        try:
            yield
        finally:
            self._corks -= 1
        async with self._sending:
            await self._flush()

    def head_frames(
        self, stream: int, fields: AnyFields, *, end: bool = False, size: int | None = None
    ) -> list[Frame]:
        """Encode a header block into HEADERS and CONTINUATIONs, which are to be sent next.

        Args:
          stream: The stream's number.
          fields: Pseudo-fields and fields as they are to be, however wrong.
          end: Whether the stream ends with it.
          size: Bytes in each frame; None for as many as may be.
        """
        block = self.encoder.encode(as_fields(fields))
        most = self.max_frame_size if size is None else size
        parts = [block[at : at + most] for at in range(0, len(block), most)] or [b""]
        frames: list[Frame] = [HeadersFrame(stream, parts[0])]
        frames += [ContinuationFrame(stream, part) for part in parts[1:]]
        if end:
            frames[0].flags.add("END_STREAM")
        frames[-1].flags.add("END_HEADERS")
        return frames

    async def headers(
        self, stream: int, fields: AnyFields, *, end: bool = False, size: int | None = None
    ) -> None:
        """Send a header block; see `head_frames`."""
        async with self._sending:
            await self._send(self.head_frames(stream, fields, end=end, size=size))

    async def data(self, stream: int, data: bytes, *, end: bool = False, padding: int = 0) -> None:
        """Send one DATA frame, whatever the windows say."""
        frame = DataFrame(stream, data, pad_length=padding)
        if padding:
            frame.flags.add("PADDED")
        if end:
            frame.flags.add("END_STREAM")
        await self.send(frame)

    async def data_within_windows(
        self, stream: int, data: bytes | memoryview, *, end: bool = False, padding: int = 0
    ) -> int | None:
        """Send a DATA frame with what the windows allow.

        Returns how many bytes that was; None where nothing could be sent. ``end`` counts only for
        the last byte.
        """
        async with self._sending:  # the windows are looked at when it is our turn
            out = self.accounts.out
            room = min(out.connection.size, out.stream(stream).size, self.max_frame_size)
            overhead = padding + 1 if padding else 0
            piece = bytes(data[: max(room - overhead, 0)])
            if len(data) and not piece:
                return None
            frame = DataFrame(stream, piece, pad_length=padding)
            if padding:
                frame.flags.add("PADDED")
            if end and len(piece) == len(data):
                frame.flags.add("END_STREAM")
            await self._send([frame])
            return len(piece)

    async def credit(self, stream: int, count: int) -> None:
        """Send a WINDOW_UPDATE."""
        await self.send(WindowUpdateFrame(stream, window_increment=count))

    async def half_close(self) -> None:
        """End our output."""
        await self.stream.send_eof()

    def close(self) -> None:
        """Close both directions at once."""
        self.stream.send_stream.close()
        self.stream.receive_stream.close()

    # -- receiving

    async def more(self) -> bool:
        """Read once; False at the end of input, also where it is a reset."""
        try:
            data = await self.stream.receive_some(65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        self.buffer += data
        return bool(data)

    async def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not await self.more():
                raise EOFError([*self.received[-5:], bytes(self.buffer)])
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    async def _raw_frame(self) -> Frame:
        # Looked at before it is taken: a cancelled read loses nothing.
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            if not await self.more():
                raise EOFError([*self.received[-5:], bytes(self.buffer)])
        frame, length = Frame.parse_frame_header(memoryview(bytes(self.buffer[:9])))
        assert length <= 16384, f"a frame of {length} bytes"
        frame.parse_body(memoryview(bytes(self.buffer[9 : 9 + length])))
        frame.body_len = length
        del self.buffer[: 9 + length]
        return frame

    async def frame(self) -> Frame:
        """Read the next frame; a header block is one frame, a `Head`.

        Raises:
          EOFError: the connection ended; its argument tells what came last.
          AssertionError: the other side broke the protocol.
        """
        if not self.client and not self._preface_read:
            assert await self._take(len(PREFACE)) == PREFACE
            self._preface_read = True
        frame = await self._raw_frame()
        if not self.received:
            assert isinstance(frame, SettingsFrame), frame
            assert "ACK" not in frame.flags, frame
        assert not isinstance(frame, ContinuationFrame), frame
        if isinstance(frame, HeadersFrame):
            frame = await self._head(frame)
        self.received.append(frame)
        self.accounts.received(frame)
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self._apply(frame)
        return frame

    async def _head(self, first: HeadersFrame) -> Head:
        head = Head(first.stream_id, first.data)
        head.flags = first.flags
        while "END_HEADERS" not in head.flags:
            frame = await self._raw_frame()
            assert isinstance(frame, ContinuationFrame), frame
            assert frame.stream_id == head.stream_id, frame
            head.data += frame.data
            head.continuations += 1
            if "END_HEADERS" in frame.flags:
                head.flags.add("END_HEADERS")
        head.fields = [
            (bytes(name), bytes(value)) for name, value in self.decoder.decode(head.data, raw=True)
        ]
        return head

    def _apply(self, frame: SettingsFrame) -> None:
        self.settings.update(frame.settings)
        if HEADER_TABLE_SIZE in frame.settings:
            self.encoder.header_table_size = min(4096, frame.settings[HEADER_TABLE_SIZE])

    def reply_to(self, frame: Frame) -> Frame | None:
        """Return the acknowledgement that a frame asks for."""
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            return SettingsFrame(0, flags=["ACK"])
        if isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            return PingFrame(0, frame.opaque_data, flags=["ACK"])
        return None

    async def until(
        self,
        kind: type[FrameT],
        stream: int | None = None,
        where: Callable[[FrameT], bool] = lambda _frame: True,
    ) -> FrameT:
        """Read until a frame of this kind comes; HEADERS come as `Head`.

        Raises:
          EOFError: the connection ended before.
        """
        while True:
            frame = await self.frame()
            reply = self.reply_to(frame) if self.answers else None
            if reply is not None:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self.send(reply)
            if isinstance(frame, kind) and stream in (None, frame.stream_id) and where(frame):
                return frame

    async def head(self, stream: int) -> Head:
        """Read until the next header block of a stream."""
        return cast("Head", await self.until(HeadersFrame, stream))

    async def ping(self, data: bytes = b"roundtrp") -> None:
        """Send a PING and read until its answer: all that we sent before has then been handled."""
        await self.send(PingFrame(0, data))
        await self.until(
            PingFrame, 0, lambda frame: "ACK" in frame.flags and frame.opaque_data == data
        )

    async def goaway(self) -> GoAwayFrame:
        """Read until the last GOAWAY and the end of the connection, which must follow it."""
        frame = await self.until(GoAwayFrame)
        with contextlib.suppress(EOFError):
            while True:
                frame = await self.until(GoAwayFrame)
        return frame

    async def at_end(self) -> None:
        """Read everything until the connection ends."""
        with contextlib.suppress(EOFError):
            while True:
                await self.until(Frame)

    def of(self, kind: type[FrameT], stream: int | None = None) -> list[FrameT]:
        """Return the frames of a kind that were read so far."""
        return [
            frame
            for frame in self.received
            if isinstance(frame, kind) and stream in (None, frame.stream_id)
        ]

    def resets(self) -> dict[int, int]:
        """Return the codes of the streams that the other side reset so far."""
        return {frame.stream_id: frame.error_code for frame in self.of(RstStreamFrame)}

    def assert_windows_whole(self, slack: int = 0, *, ours: bool = False) -> None:
        """See `Accounts.assert_windows_whole`; a script gives credit as it likes."""
        self.accounts.assert_windows_whole(slack, ours=ours)


# -- messages --------------------------------------------------------------------------------------


@attrs.define
class H2Message(Message):
    """A message that came over HTTP/2; `start` is what HTTP/1 would have, ``fields`` are without
    the pseudo-fields."""

    pseudo: dict[str, str] = attrs.field(factory=dict)
    #: The 1xx heads before it.
    informational: list[H2Message] = attrs.field(factory=list)


class ResetError(CutError):
    """The stream was reset; ``code`` says why, None where the connection ended."""

    def __init__(self, message: Message | None, code: int | None) -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return f"reset with {self.code}: {self.message}"


def _read_head(fields: Fields) -> H2Message:
    pseudo: dict[str, str] = {}
    rest: Fields = []
    for name, value in fields:
        assert _NAME.fullmatch(name), name
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]$", value), (name, value)
        if name.startswith(b":"):
            assert not rest, f"{name!r} is late"
            assert name.decode() not in pseudo, f"two {name!r}"
            pseudo[name.decode()] = value.decode("latin-1")
        else:
            assert name not in _CONNECTION_FIELDS, name
            assert name != b"te" or value == b"trailers", value
            rest.append((name, value))
    if ":status" in pseudo:
        assert set(pseudo) == {":status"}, pseudo
        assert re.fullmatch("[1-9][0-9][0-9]", pseudo[":status"]), pseudo
        start = b"HTTP/2 " + pseudo[":status"].encode()
    elif pseudo:
        wanted = {":method", ":scheme", ":path"}
        if pseudo[":method"] == "CONNECT" and ":protocol" not in pseudo:
            wanted = {":method", ":authority"}
        assert wanted <= set(pseudo) <= wanted | {":authority", ":protocol"}, pseudo
        start = (
            f"{pseudo[':method']} {pseudo.get(':path', pseudo.get(':authority'))} HTTP/2".encode(
                "latin-1"
            )
        )
    else:
        start = b""
    return H2Message(start, rest, pseudo=pseudo)


@attrs.define(eq=False)
class H2Stream:
    """One exchange, as one of its parties sees it."""

    peer: H2Peer
    number: int
    #: Whether data of this stream gives credit back, for the stream.
    crediting: bool = True
    informational: list[H2Message] = attrs.field(factory=list)
    #: What came so far, None before the (final) head.
    incoming: H2Message | None = None
    ended: bool = False
    code: int | None = None
    #: Whether the stream or the connection ended without the message's end.
    lost: bool = False
    #: The head of what we sent had no body by its meaning (HEAD, 204, 304).
    to_head: bool = False
    _uncredited: int = 0
    _lot: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    # -- receiving

    def _wake(self) -> None:
        self._lot.unpark_all()

    async def _until(self, ready: Callable[[], bool]) -> H2Message:
        while not ready():
            if self.lost:
                raise ResetError(self.incoming, self.code)
            await self._lot.park()
        assert self.incoming is not None
        return self.incoming

    async def head(self) -> H2Message:
        """Wait for the (final) head; its body grows as it comes."""
        return await self._until(lambda: self.incoming is not None)

    async def informational_head(self, index: int = 0) -> H2Message:
        """Wait for a 1xx head."""
        while len(self.informational) <= index:
            if self.lost or self.incoming is not None:
                raise ResetError(self.incoming, self.code)
            await self._lot.park()
        return self.informational[index]

    async def at_least(self, count: int) -> H2Message:
        """Wait until so many bytes of the body have come."""
        return await self._until(
            lambda: self.incoming is not None and len(self.incoming.body) >= count
        )

    async def message(self) -> H2Message:
        """Wait for the whole message.

        Raises:
          ResetError: it was cut; ``message`` has what came.
        """
        return await self._until(lambda: self.ended)

    async def gone(self) -> int | None:
        """Wait until the other side gives the exchange up; return the code."""
        while not self.lost:
            await self._lot.park()
        return self.code

    def _on_head(self, head: Head) -> None:
        assert not self.ended, f"HEADERS behind the end of stream {self.number}"
        message = _read_head(head.fields)
        end = "END_STREAM" in head.flags
        if self.incoming is not None:
            assert not message.pseudo, "pseudo-fields in trailers"
            assert end, "trailers that do not end the stream"
            self.incoming.trailers = message.fields
        elif message.start.startswith(b"HTTP/2 1"):
            assert not end, "the stream ends with an informational head"
            self.informational.append(message)
        else:
            message.informational = self.informational
            self.incoming = message
        if end:
            self._on_end()
        self._wake()

    def _on_data(self, frame: DataFrame) -> None:
        assert self.incoming is not None, "data before a head"
        assert not self.ended, f"DATA behind the end of stream {self.number}"
        self.incoming.body += frame.data
        if "END_STREAM" in frame.flags:
            self._on_end()
        self._wake()

    def _on_end(self) -> None:
        assert self.incoming is not None
        self.ended = True
        length = self.incoming.get("content-length")
        response = ":status" in self.incoming.pseudo
        bodiless = self.to_head or (response and self.incoming.status in (204, 304))
        if bodiless:
            assert self.incoming.body == b"", self.incoming
        elif length is not None:
            assert int(length) == len(self.incoming.body), (length, len(self.incoming.body))

    # -- sending

    async def send_head(self, status: int, fields: AnyFields = (), *, end: bool = False) -> None:
        """Send a response's head, or an informational one."""
        await self.peer.wire.headers(
            self.number, [(":status", str(status)), *as_fields(fields)], end=end
        )

    async def send_data(self, data: bytes, *, end: bool = False, padding: int = 0) -> None:
        """Send data as the windows allow.

        Raises:
          ResetError: the other side gave up before all was sent.
        """
        view = memoryview(data)
        while not self.lost:
            sent = await self.peer.wire.data_within_windows(
                self.number, view, end=end, padding=padding
            )
            if sent is None:
                await self.peer.room.park()
                continue
            view = view[sent:]
            if not view:
                return
        raise ResetError(self.incoming, self.code)

    async def send_trailers(self, fields: AnyFields) -> None:
        """Send trailers, which end the message."""
        await self.peer.wire.headers(self.number, fields, end=True)

    async def respond(
        self,
        status: int = 200,
        fields: AnyFields = (),
        body: bytes = b"",
        trailers: AnyFields | None = None,
    ) -> None:
        """Send a whole response, a small one in one write."""
        plain = trailers is None
        async with self.peer.wire.one_write() if len(body) < 1024 else contextlib.nullcontext():
            await self.send_head(status, fields, end=plain and not body)
            if body:
                await self.send_data(body, end=plain)
            if trailers is not None:
                await self.send_trailers(trailers)

    async def reset(self, code: int = CANCEL) -> None:
        """Reset the stream."""
        await self.peer.wire.send(RstStreamFrame(self.number, code))


Handler = Callable[[H2Stream], Awaitable[None]]


@attrs.define(eq=False)
class H2Peer:
    """Exchanges over a wire whose frames one task reads, `run`."""

    wire: H2Wire
    #: What a server does with each request.
    handler: Handler | None = None
    #: Our SETTINGS, None for the usual ones.
    initial: dict[int, int] | None = None
    #: Whether received data gives credit back for the connection and its stream.
    crediting: bool = True
    streams: dict[int, H2Stream] = attrs.field(factory=dict)
    #: GOAWAY frames that came.
    goaways: list[GoAwayFrame] = attrs.field(factory=list)
    ended: trio.Event = attrs.field(factory=trio.Event)
    #: Where senders wait for credit.
    room: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _started: bool = False
    _starting: trio.Lock = attrs.field(factory=trio.Lock)
    _next: int = 1
    _reading: trio.Event = attrs.field(factory=trio.Event)
    _uncredited: int = 0
    _replies: list[Frame] = attrs.field(factory=list)
    _to_reply: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._reading.set()

    # -- the task

    async def run(self) -> None:
        """Read frames until the connection ends."""
        await self.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reply)
                with contextlib.suppress(EOFError):
                    while True:
                        await self._reading.wait()
                        await self._on_frame(await self.wire.frame(), nursery)
                nursery.cancel_scope.cancel()
        finally:
            self.ended.set()
            for stream in self.streams.values():
                stream.lost = stream.lost or not stream.ended
                stream._wake()
            self.room.unpark_all()

    async def start(self) -> None:
        """Send the preface and SETTINGS, if that was not done."""
        async with self._starting:
            if not self._started:
                self._started = True
                with contextlib.suppress(trio.BrokenResourceError):
                    await self.wire.start(self.initial)

    def stop_reading(self) -> None:
        """Take nothing from the byte stream any more, what is under way excepted."""
        self._reading = trio.Event()

    def go_on(self) -> None:
        """Read again."""
        self._reading.set()

    async def _on_frame(self, frame: Frame, nursery: trio.Nursery) -> None:
        reply = self.wire.reply_to(frame) if self.wire.answers else None
        if reply is not None:
            self._send_soon(reply)
        stream = self.streams.get(frame.stream_id)
        if isinstance(frame, Head):
            if stream is None:
                stream = self._opened(frame.stream_id, nursery)
            stream._on_head(frame)
        elif isinstance(frame, DataFrame):
            assert stream is not None, frame
            stream._on_data(frame)
            self._credit(stream, frame.flow_controlled_length)
        elif isinstance(frame, RstStreamFrame):
            assert stream is not None, frame
            stream.code = frame.error_code
            stream.lost = True
            stream._wake()
            self.room.unpark_all()
        elif isinstance(frame, GoAwayFrame):
            self.goaways.append(frame)
            for number, each in self.streams.items():
                if self.wire.client and number > frame.last_stream_id:
                    each.code, each.lost = REFUSED_STREAM, True
                    each._wake()
        elif isinstance(frame, (WindowUpdateFrame, SettingsFrame)):
            self.room.unpark_all()

    def _opened(self, number: int, nursery: trio.Nursery) -> H2Stream:
        assert not self.wire.client, f"the server opened stream {number}"
        assert number % 2 == 1, number
        assert not self.streams or number > max(self.streams), number
        stream = self.streams[number] = H2Stream(self, number)
        if self.handler is not None:
            nursery.start_soon(self._handle, self.handler, stream)
        return stream

    async def _handle(self, handler: Handler, stream: H2Stream) -> None:
        with contextlib.suppress(CutError, trio.BrokenResourceError, trio.ClosedResourceError):
            await handler(stream)

    # Answers leave from a task of their own: a reader that waits for room to write would keep the
    # other side from ever making that room.
    def _send_soon(self, frame: Frame) -> None:
        self._replies.append(frame)
        self._to_reply.set()

    async def _reply(self) -> None:
        while True:
            await self._to_reply.wait()
            self._to_reply = trio.Event()
            replies, self._replies = self._replies, []
            try:
                await self.wire.send(*replies)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the reader tells of the end

    def _credit(self, stream: H2Stream, count: int) -> None:
        self._uncredited += count
        stream._uncredited += count
        if self.crediting and count:
            self._send_soon(WindowUpdateFrame(0, window_increment=self._uncredited))
            self._uncredited = 0
            self.credit(stream)

    def credit(self, stream: H2Stream) -> None:
        """Give back what a stream has received, once its `crediting` allows it."""
        if stream.crediting and stream._uncredited and not stream.ended and not stream.lost:
            self._send_soon(WindowUpdateFrame(stream.number, window_increment=stream._uncredited))
            stream._uncredited = 0

    def credit_all(self) -> None:
        """Credit again, and give back all that was held."""
        self.crediting = True
        if self._uncredited:
            self._send_soon(WindowUpdateFrame(0, window_increment=self._uncredited))
            self._uncredited = 0
        for stream in self.streams.values():
            stream.crediting = True
            self.credit(stream)

    # -- the client's side

    async def open(
        self,
        method: str = "GET",
        path: str = "/path",
        fields: AnyFields = (),
        *,
        end: bool = False,
        authority: str | None = "site.test",
        scheme: str = "http",
        pseudo: AnyFields = (),
    ) -> H2Stream:
        """Send a request's head on a new stream."""
        await self.start()
        number, self._next = self._next, self._next + 2
        stream = self.streams[number] = H2Stream(self, number, to_head=method == "HEAD")
        stream.lost = self.ended.is_set()
        head = request(method, path, (), authority=authority, scheme=scheme)
        await self.wire.headers(number, [*head, *as_fields(pseudo), *as_fields(fields)], end=end)
        return stream

    async def request(
        self,
        method: str = "GET",
        path: str = "/path",
        fields: AnyFields = (),
        *,
        body: bytes = b"",
        trailers: AnyFields | None = None,
        end: bool = True,
        authority: str | None = "site.test",
        scheme: str = "http",
    ) -> int:
        """Send a request and return the number of its stream.

        Args:
          method: The method.
          path: The target.
          fields: Its fields, without pseudo-fields.
          body: Its body, sent as the windows allow.
          trailers: Its trailers, None for none.
          end: Whether it ends then.
          authority: The authority.
          scheme: The scheme.
        """
        plain = trailers is None
        stream = await self.open(
            method,
            path,
            fields,
            end=end and plain and not body,
            authority=authority,
            scheme=scheme,
        )
        if body:
            await stream.send_data(body, end=end and plain)
        if trailers is not None:
            await stream.send_trailers(trailers)
        return stream.number

    async def response(self, number: int) -> H2Message:
        """Wait for the whole final response on a stream.

        Raises:
          ResetError: it was cut.
        """
        return await self.streams[number].message()

    async def exchange(self, *args: Any, **kwargs: Any) -> H2Message:
        """Send a request (see `request`) and wait for its response."""
        return await self.response(await self.request(*args, **kwargs))

    # -- both

    async def goaway(self, last_stream: int, code: int = NO_ERROR) -> None:
        """Send a GOAWAY."""
        await self.wire.send(GoAwayFrame(0, last_stream, code))

    def close(self) -> None:
        """Close the connection at once."""
        self.wire.close()

    def assert_windows_whole(self, slack: int = 0) -> None:
        """See `Accounts.assert_windows_whole`."""
        self.wire.assert_windows_whole(slack, ours=True)
