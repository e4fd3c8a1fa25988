"""A client's and an origin's reading of HTTP/2, small and strict, that shares no code with ours.

Frames and compressed fields alone come from hyperframe and hpack. What a proxy may not do raises
`MalformedError`; what is wrong with a window raises `AccountError`. The accounts follow both
directions' windows from the frames that pass, and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress

import attrs
import hpack
import trio
from hyperframe.exceptions import HyperframeError
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

from .._errors import ProxyError
from ._accounts import AccountError, Windows
from ._reference import MalformedError, Message
from ._scenario import Http2
from ._secure import AnyEnd, SecureEnd

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MOST_FRAME = 16384
#: Bytes that wait for the link before content has to wait.
HELD = 65536

_MAX_STREAMS = 0x3
_CONNECT = 0x8
_INITIAL_WINDOW = 0x4
_MARK = b"seen it?"

_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_OF_CONNECTION = (
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
)

Fields = list[tuple[bytes, bytes]]


# -- streams -------------------------------------------------------------------------------------


class Stream:
    """One exchange as its party sees it."""

    def __init__(self, number: int, method: bytes = b"") -> None:
        self.number = number
        #: The request's.
        self.method = method
        self.head: Message | None = None
        self.interim: list[int] = []
        #: Frames received for it.
        self.frames = 0
        self.sent_end = False
        #: The other side's end came, and no reset before it.
        self.complete = False
        #: The codes of resets, by us and by the other side.
        self.reset_here: int | None = None
        self.reset_there: int | None = None
        #: We said in a GOAWAY that we do not take it.
        self.disowned = False
        self.uncredited = 0
        self.lot = trio.lowlevel.ParkingLot()

    @property
    def broken(self) -> bool:
        """Whether it ended before its time."""
        return self.reset_here is not None or self.reset_there is not None or self.disowned

    @property
    def over(self) -> bool:
        """Whether nothing more happens on it."""
        return self.broken or (self.sent_end and self.complete)

    @property
    def started(self) -> Message:
        """The head, once it has come."""
        assert self.head is not None
        return self.head


class H2Peer:
    """One end of a connection."""

    def __init__(
        self,
        end: AnyEnd,
        plan: Http2,
        *,
        client: bool,
        found: Callable[[str], None],
        on_stream: Callable[[Stream], None] = lambda _: None,
    ) -> None:
        """Take over an end.

        Args:
          end: The end.
          plan: How this party behaves.
          client: Which one it is.
          found: Called with what the proxy did wrong.
          on_stream: Called with each stream that the other side opens.
        """
        self.end = end
        self.plan = plan
        self.client = client
        self.streams: dict[int, Stream] = {}
        #: For what we send, and for what we receive.
        self.out = Windows()
        self.back = Windows()
        self.dead = False
        self.reset = False
        #: Whether the other side's SETTINGS have come.
        self.settled = False
        self.most_streams = 2**31
        self.takes_connect = False
        #: The GOAWAYs of both sides: the last stream that is taken.
        self.goaway_here: int | None = None
        self.goaway_there: int | None = None
        self.goaway_seen = False
        #: Woken whenever anything changes.
        self.lot = trio.lowlevel.ParkingLot()
        self._found = found
        self._on_stream = on_stream
        self._buffer = bytearray()
        self._held = bytearray()
        self._bell = trio.Event()
        self._closing = False
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._block: HeadersFrame | None = None
        self._unacknowledged: list[dict[int, int]] = []
        self._pings: list[bytes] = []
        self._frames = 0
        self._changes = list(plan.changes)
        self._uncredited = 0
        self._credit_from = -math.inf
        self._most_here = 2**31
        self._next = 1
        self._highest = 0
        self._open()

    def _open(self) -> None:
        """Put the preface in front of everything."""
        plan = self.plan
        self._credit_from = trio.current_time() + plan.stall
        settings = {_INITIAL_WINDOW: plan.window} if plan.window != 65535 else {}
        if self.client:
            self._held += PREFACE
            settings[0x2] = 0
        elif plan.streams is not None:
            settings[_MAX_STREAMS] = plan.streams
        if plan.connect and not self.client:
            settings[_CONNECT] = 1
        self._settings(settings)
        if plan.more:
            self.send(WindowUpdateFrame(0, window_increment=plan.more))

    # -- running ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read and write until the connection ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                if 0 < self.plan.stall < math.inf:
                    nursery.start_soon(self._credit_late)
                try:
                    await self._read()
                except AccountError as exc:
                    self._found(f"10: {exc}")
                except MalformedError as exc:
                    self._found(f"{2 if self.client else 5}: {exc}")
                except (ProxyError, trio.ClosedResourceError):
                    self.reset = True
                self.die()
                nursery.cancel_scope.cancel()
        finally:
            self.die()

    def calm(self) -> None:
        """Behave well from now on."""
        self.plan = attrs.evolve(
            self.plan, stall=0.0, deaf=False, rude=False, changes=(), goaway=None
        )
        self._changes = []
        self._credit_from = -math.inf
        for stream in self.streams.values():
            self._credit(stream)

    def die(self) -> None:
        """Take note that the connection is over."""
        self.dead = True
        self.wake()

    def wake(self) -> None:
        """Wake everybody."""
        self.lot.unpark_all()
        for stream in self.streams.values():
            stream.lot.unpark_all()

    async def close(self, seconds: float = 5.0) -> None:
        """Let what is held go out."""
        self._closing = True
        self._bell.set()
        with trio.move_on_after(seconds):
            while self._held and not self.dead:
                await self.lot.park()

    async def hush(self, seconds: float = 400.0) -> None:
        """Say with TLS's words that nothing more comes, and wait until the other side goes."""
        await self.close()
        if isinstance(self.end, SecureEnd) and not self.dead:
            with suppress(trio.ClosedResourceError), trio.move_on_after(seconds):
                await self.end.send_eof(fin=False)
                while not self.dead:
                    await self.lot.park()

    async def _write(self) -> None:
        try:
            while True:
                if self._held:
                    data, self._held = bytes(self._held), bytearray()
                    await self.end.send_parts([data], 1000.0)
                    self.wake()
                else:
                    self._bell = trio.Event()
                    await self._bell.wait()
        except (ProxyError, trio.ClosedResourceError):
            self._held.clear()
            # What is here already is still read.

    async def _credit_late(self) -> None:
        await trio.sleep_until(self._credit_from)
        for stream in self.streams.values():
            self._credit(stream)

    # -- sending ---------------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        """Send a frame, right or wrong."""
        if isinstance(frame, DataFrame):
            self.out.take(frame.stream_id, frame.flow_controlled_length)
        elif isinstance(frame, WindowUpdateFrame):
            self.back.give(frame.stream_id, frame.window_increment)
        self._held += frame.serialize()
        self._bell.set()

    def _settings(self, values: dict[int, int]) -> None:
        self._unacknowledged.append(values)
        self.send(SettingsFrame(0, settings=values))

    def head(self, stream: Stream, fields: Fields, *, end: bool = False) -> None:
        """Send a head or trailers."""
        block = self._encoder.encode(fields)
        frame = HeadersFrame(stream.number, data=block, flags=["END_HEADERS"])
        if end:
            frame.flags.add("END_STREAM")
            stream.sent_end = True
        self.send(frame)
        self.lot.unpark_all()

    def open(self, fields: Fields, *, end: bool) -> Stream:
        """Ask for something on a new stream."""
        stream = Stream(self._next, dict(fields)[b":method"])
        self._next += 2
        self.streams[stream.number] = stream
        self.head(stream, fields, end=end)
        return stream

    async def data(self, stream: Stream, data: bytes, *, end: bool) -> bool:
        """Send content as the windows allow; False where it cannot be."""
        plan = self.plan
        at = 0
        while at < len(data) or (end and not stream.sent_end):
            room = self.out.room(stream.number)
            left = len(data) - at
            if stream.broken or self.dead:
                return False
            if (left and room <= 0) or len(self._held) > HELD:
                await self._change(stream)
                continue
            pad = plan.pad if plan.pad and room > plan.pad + 1 else 0
            around = pad + 1 if pad else 0
            size = min(left, room - around, plan.piece, MOST_FRAME - around)
            frame = DataFrame(stream.number, data=data[at : at + size])
            if pad:
                frame.flags.add("PADDED")
                frame.pad_length = pad
            at += size
            if end and at == len(data):
                frame.flags.add("END_STREAM")
                stream.sent_end = True
            self.send(frame)
            await trio.lowlevel.checkpoint()
        self.lot.unpark_all()
        return True

    async def _change(self, stream: Stream) -> None:
        await stream.lot.park()

    def reset_stream(self, stream: Stream, code: int) -> None:
        """Reset a stream, unless it is over."""
        if not stream.over and not self.dead:
            stream.reset_here = code
            self.send(RstStreamFrame(stream.number, error_code=code))
            stream.lot.unpark_all()
            self.lot.unpark_all()

    def goaway(self, code: int = 0, last: int | None = None) -> None:
        """Take no more streams than up to a number, and find out when the other side knows."""
        if last is None:
            last = self._highest
        if self.goaway_here is not None:
            last = min(last, self.goaway_here)
        self.goaway_here = last
        self.send(GoAwayFrame(0, last_stream_id=last, error_code=code))
        if not self.client:
            self._pings.append(_MARK)
            self.send(PingFrame(0, opaque_data=_MARK))
        for number, stream in self.streams.items():
            if not self.client and number > last and not stream.over:
                stream.disowned = True
                stream.lot.unpark_all()
        self.lot.unpark_all()

    def odd(self) -> None:
        """Send what the other side has to take without a word."""
        self.send(ExtensionFrame(0xBE, 0, 0, b""))
        self._pings.append(b"anybody?")
        self.send(PingFrame(0, opaque_data=b"anybody?"))

    async def ping(self) -> bool:
        """Wait until the other side has read all that was sent; False where it is gone."""
        data = b"%08d" % len(self._pings)
        self._pings.append(data)
        self.send(PingFrame(0, opaque_data=data))
        while data in self._pings and not self.dead:
            await self.lot.park()
        return not self.dead

    @property
    def open_streams(self) -> int:
        """How many streams are not over."""
        return sum(not stream.over for stream in self.streams.values())

    # -- receiving -------------------------------------------------------------------------------

    async def _more(self) -> bool:
        data = await self.end.receive_some()
        self._buffer += data
        return bool(data)

    async def _read(self) -> None:
        if not self.client:
            while len(self._buffer) < len(PREFACE):
                if not await self._more():
                    return
            if bytes(self._buffer[: len(PREFACE)]) != PREFACE:
                raise MalformedError(f"no preface: {bytes(self._buffer[:60])!r}")
            del self._buffer[: len(PREFACE)]
        while (frame := await self._frame()) is not None:
            self._take(frame)
            self._moment()

    async def _frame(self) -> Frame | None:
        while len(self._buffer) < 9:
            if not await self._more():
                return None
        try:
            frame, length = Frame.parse_frame_header(memoryview(bytes(self._buffer[:9])))
            if length > MOST_FRAME:
                raise MalformedError(f"a frame of {length} bytes")
            while len(self._buffer) < 9 + length:
                if not await self._more():
                    return None
            frame.parse_body(memoryview(bytes(self._buffer[9 : 9 + length])))
        except (HyperframeError, ValueError) as exc:
            raise MalformedError(f"no frame: {exc!r}") from exc
        del self._buffer[: 9 + length]
        return frame

    def _moment(self) -> None:
        """Do what the plan says of this moment."""
        self._frames += 1
        while self._changes and self._changes[0].frames <= self._frames:
            change = self._changes.pop(0)
            values: dict[int, int] = {}
            if change.window is not None:
                values[_INITIAL_WINDOW] = change.window
            if change.streams is not None and not self.client:
                values[_MAX_STREAMS] = change.streams
            self._settings(values)
        goaway = self.plan.goaway
        if goaway is not None and self.goaway_here is None and goaway.frames <= self._frames:
            self.goaway(goaway.code, goaway.last)
        self.wake()

    def _take(self, frame: Frame) -> None:
        if not self.settled and (type(frame) is not SettingsFrame or "ACK" in frame.flags):
            raise MalformedError(f"{frame!r} before SETTINGS")
        if self._block is not None and type(frame) is not ContinuationFrame:
            raise MalformedError(f"{frame!r} within a header block")
        if type(frame) is DataFrame:
            self._data(frame)
        elif type(frame) is HeadersFrame:
            if "END_HEADERS" in frame.flags:
                self._fields(frame)
            else:
                self._block = frame
        elif type(frame) is ContinuationFrame:
            if self._block is None or self._block.stream_id != frame.stream_id:
                raise MalformedError("a CONTINUATION of nothing")
            self._block.data += frame.data
            if "END_HEADERS" in frame.flags:
                block, self._block = self._block, None
                self._fields(block)
        elif type(frame) is RstStreamFrame:
            self._reset(frame)
        elif type(frame) is WindowUpdateFrame:
            if frame.stream_id:
                self._known(frame)
            self.out.give(frame.stream_id, frame.window_increment)
        elif type(frame) is SettingsFrame:
            self._take_settings(frame)
        elif type(frame) is PingFrame:
            self._take_ping(frame)
        elif type(frame) is GoAwayFrame:
            before = self.goaway_there
            if before is not None and frame.last_stream_id > before:
                raise MalformedError("the last stream of a GOAWAY has grown")
            self.goaway_there = frame.last_stream_id
            # SETTINGS may be late; and who sends byte by byte what nobody takes is too much.
            calm = frame.error_code == 11 and self.plan.piece == 1
            if frame.error_code and not calm and b"SETTINGS" not in frame.additional_data:
                raise MalformedError(
                    f"a GOAWAY with {frame.error_code} for no reason: {frame.additional_data!r}"
                )
        else:
            raise MalformedError(f"{frame!r}, which nobody expects")

    def _known(self, frame: Frame) -> Stream:
        """Return the stream of a frame that may not open one."""
        stream = self.streams.get(frame.stream_id)
        if stream is None:
            raise MalformedError(f"{frame!r} for an idle stream")
        if stream.reset_there is not None:
            raise MalformedError(f"{frame!r} behind RST_STREAM")
        return stream

    def _take_settings(self, frame: SettingsFrame) -> None:
        if "ACK" in frame.flags:
            if not self._unacknowledged:
                raise MalformedError("an acknowledgement of nothing")
            mine = self._unacknowledged.pop(0)
            if _INITIAL_WINDOW in mine:
                self.back.set_initial(mine[_INITIAL_WINDOW])
            self._most_here = mine.get(_MAX_STREAMS, self._most_here)
            return
        self.settled = True
        settings = frame.settings
        if settings.get(0x2, 0) != 0:
            raise MalformedError("it wants to be pushed to, or offers it")
        if _INITIAL_WINDOW in settings:
            self.out.set_initial(settings[_INITIAL_WINDOW])
        self.most_streams = settings.get(_MAX_STREAMS, self.most_streams)
        self.takes_connect = bool(settings.get(_CONNECT, self.takes_connect))
        if not self.plan.rude:
            self.send(SettingsFrame(0, flags=["ACK"]))

    def _take_ping(self, frame: PingFrame) -> None:
        if "ACK" not in frame.flags:
            if not self.plan.deaf:
                self.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))
            return
        if not self._pings or frame.opaque_data != self._pings[0]:
            raise MalformedError("the answer to no PING")
        if self._pings.pop(0) == _MARK:
            self.goaway_seen = True

    def _reset(self, frame: RstStreamFrame) -> None:
        stream = self._known(frame)
        stream.frames += 1
        stream.reset_there = frame.error_code

    def _data(self, frame: DataFrame) -> None:
        stream = self._known(frame)
        size = frame.flow_controlled_length
        self.back.take(stream.number, size)
        if self.back.connection < 0:
            raise AccountError("content beyond the connection's window")
        if self.back.stream(stream.number) < 0 and size:
            raise AccountError("content beyond a stream's window")
        if stream.complete:
            raise MalformedError(f"{frame!r} behind the end")
        self._uncredited += size
        stream.frames += 1
        if stream.broken:  # on its way when we reset it
            stream.complete = "END_STREAM" in frame.flags
            self._credit(stream)
            return
        if stream.head is None:
            raise MalformedError(f"{frame!r} before a head")
        stream.uncredited += size
        stream.head.body += frame.data
        if "END_STREAM" in frame.flags:
            self._ended(stream)
        self._credit(stream)

    def _credit(self, stream: Stream) -> None:
        stalls = self.plan.stalls if trio.current_time() < self._credit_from else ""
        if self._uncredited and stalls not in ("all", "connection"):
            self.send(WindowUpdateFrame(0, window_increment=self._uncredited))
            self._uncredited = 0
        if stalls in ("all", "stream"):
            return
        if stream.uncredited and not stream.complete and not stream.broken:
            self.send(WindowUpdateFrame(stream.number, window_increment=stream.uncredited))
            stream.uncredited = 0

    def _ended(self, stream: Stream) -> None:
        stream.complete = True
        head = stream.started
        length = head.get(b"content-length")
        if length is not None and not re.fullmatch(rb"0|[1-9][0-9]*", length):
            raise MalformedError(f"a bad length: {length!r}")
        bodiless = self.client and (stream.method == b"HEAD" or head.status in (204, 304))
        if bodiless and head.body:
            raise MalformedError("content where there is none")
        if length is not None and not bodiless and int(length) != len(head.body):
            raise MalformedError(f"{len(head.body)} bytes, {int(length)} were declared")
        head.complete = True

    def _fields(self, frame: HeadersFrame) -> None:
        try:
            fields = [
                (bytes(name), bytes(value))
                for name, value in self._decoder.decode(bytes(frame.data), raw=True)
            ]
        except hpack.HPACKError as exc:
            raise MalformedError(f"a header block: {exc!r}") from exc
        number, end = frame.stream_id, "END_STREAM" in frame.flags
        stream = self.streams.get(number)
        if stream is None:
            if self.client:
                raise MalformedError(f"{frame!r} for an idle stream")
            self._opened(number, fields, end=end)
            return
        self._known(frame)
        stream.frames += 1
        if stream.complete:
            raise MalformedError(f"{frame!r} behind the end")
        if stream.broken:
            stream.complete = end
            return
        if stream.head is not None:
            if not end:
                raise MalformedError("trailers without the end")
            _check(fields, ())
            stream.head.trailers = fields
            self._ended(stream)
            return
        pseudo = _check(fields, (b":status",))
        status = pseudo.get(b":status", b"")
        if not re.fullmatch(rb"[1-5][0-9][0-9]", status) or status == b"101":
            raise MalformedError(f"a status {status!r}")
        if status < b"200":
            if end:
                raise MalformedError("an interim response with an end")
            stream.interim.append(int(status))
            return
        stream.head = Message(b"HTTP/2.0 %s " % status, _plain(fields))
        if end:
            self._ended(stream)

    def _opened(self, number: int, fields: Fields, *, end: bool) -> None:
        if number % 2 != 1 or number <= self._highest:
            raise MalformedError(f"stream {number} was opened behind {self._highest}")
        self._highest = number
        pseudo = _check(fields, (b":method", b":scheme", b":authority", b":path", b":protocol"))
        if not {b":method", b":scheme", b":authority", b":path"} <= set(pseudo):
            raise MalformedError(f"a request without all pseudo-fields: {fields}")
        path, protocol = pseudo[b":path"], pseudo.get(b":protocol")
        if (protocol is not None) is not (pseudo[b":method"] == b"CONNECT") or (
            protocol is not None and (protocol != b"websocket" or not self.plan.connect)
        ):
            raise MalformedError(f"a CONNECT that nobody takes: {fields}")
        if not re.fullmatch(rb"/[!-~]*", path) or not re.fullmatch(rb"[A-Z]+", pseudo[b":method"]):
            raise MalformedError(f"a bad request: {fields}")
        if self.goaway_seen:
            raise MalformedError(f"stream {number} was opened behind our GOAWAY")
        if self.open_streams >= self._most_here:
            raise MalformedError(f"more than {self._most_here} streams were opened")
        stream = Stream(number, pseudo[b":method"])
        stream.frames = 1
        stream.head = Message(
            b"%s %s HTTP/2.0" % (pseudo[b":method"], path),
            _plain(fields),
        )
        self.streams[number] = stream
        if self.goaway_here is not None and number > self.goaway_here:
            stream.disowned = True
        if end:
            self._ended(stream)
        self._on_stream(stream)


def _check(fields: Fields, allowed: tuple[bytes, ...]) -> dict[bytes, bytes]:
    """Check a field list, and return its pseudo-fields."""
    pseudo: dict[bytes, bytes] = {}
    behind = False
    for name, value in fields:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise MalformedError(f"a bad field: {name!r}: {value!r}")
        if name.startswith(b":"):
            if behind or name not in allowed or name in pseudo:
                raise MalformedError(f"a misplaced {name!r}")
            pseudo[name] = value
            continue
        behind = True
        if name in _OF_CONNECTION or (name == b"te" and value != b"trailers"):
            raise MalformedError(f"a field of the connection: {name!r}")
    return pseudo


def _plain(fields: Fields) -> Fields:
    return [each for each in fields if not each[0].startswith(b":")]
