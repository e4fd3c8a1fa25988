"""What both ends of an HTTP/2 connection share: its reader, its writer, and the turns of its streams.

**Theory of operation.** Two tasks touch the socket. The *reader* feeds the codec and drops what
comes into the mailbox of its stream; it never waits for a stream, as the flow-control window bounds
every mailbox already, and credit goes back to the peer when the consumer takes the content. The
*writer* is the only one that sends, so that a session which is cancelled cannot leave half a frame
behind.

`H2Stream.send` encodes at once where the windows have room, nobody waits before it and little is
waiting to be written; else the stream waits its turn in the `Turns`, by urgency (RFC 9218), and the
writer encodes a frame of it at a time. No stream has more than what one `send` gave it waiting.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from typing import Any

import trio

from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from .._messages import Data
from .._util import Bell
from ..codec._h2 import H2Codec
from ..codec._h2_events import (
    ENHANCE_YOUR_CALM,
    NO_ERROR,
    PROTOCOL_ERROR,
    SETTINGS_TIMEOUT,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadReceived,
    HeadRefused,
    PingAnswered,
    PriorityChanged,
    ResetReceived,
    SettingsReceived,
    StreamFailed,
    TrailersReceived,
    WindowOpened,
)
from ..codec._h2_library import MAX_FRAME
from ..transport._byte_stream import ByteStream
from ._mailbox import ReadTimer

READ_SIZE = 65536
#: Frames that are gone through before others get their turn: a read may hold thousands, of which
#: each can cost a millisecond.
FRAMES_AT_ONCE = 32
#: The same behind streams that were reset or refused, which cost the most and which no busy peer has
#: many of.
FRAMES_IN_TROUBLE = 8
#: Output that may wait to be written before streams have to wait their turn.
HIGH_WATER = 65536
#: Output at which the connection of a peer that does not read it ends. What our streams want to say
#: waits at `HIGH_WATER`; refusals do not.
MOST_UNSENT = 4 * HIGH_WATER
#: Seconds for a last GOAWAY to get out before the connection is closed.
GOODBYE_TIME = 1.0
#: Bytes read and dropped behind a GOAWAY, or a reset would destroy it.
GOODBYE_BYTES = 262144
#: Pieces of content below this are joined to the one before them: a mailbox of single bytes would
#: be far larger than the window that bounds it.
SMALL_PIECE = 1024
JOINED_PIECE = 8192
#: Each so manieth turn goes to the least urgent stream, so that none starves (row H2-19).
FAIR_TURN = 8

_TROUBLE = frozenset({ResetReceived, StreamFailed, HeadRefused})

#: A head or trailers with the flag that they end the stream, or content with the same.
Item = tuple[list[tuple[bytes, bytes]] | None, memoryview | bytes, bool]


class Turns:
    """The streams that have something to send and may, by urgency."""

    __slots__ = ("_count", "_queues", "_turn")

    def __init__(self) -> None:
        self._queues: list[OrderedDict[H2Stream, None]] = [OrderedDict() for _ in range(8)]
        self._count = 0
        self._turn = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, stream: H2Stream) -> None:
        """Let a stream wait for its turn, behind those as urgent as it is."""
        queue = self._queues[stream.urgency]
        if stream not in queue:
            queue[stream] = None
            self._count += 1

    def remove(self, stream: H2Stream) -> None:
        """Take a stream out; does nothing where it does not wait."""
        for queue in self._queues:
            if stream in queue:
                del queue[stream]
                self._count -= 1

    def next(self) -> H2Stream:
        """Return the stream whose turn it is; one that shares its turns goes to the end."""
        self._turn += 1
        fair = self._turn % FAIR_TURN == 0
        queues = reversed(self._queues) if fair else iter(self._queues)
        for queue in queues:
            if queue:
                stream = next(iter(queue))
                if stream.incremental or fair:
                    queue.move_to_end(stream)
                return stream
        raise LookupError("nobody waits")

    def before(self, urgency: int) -> bool:
        """Tell whether somebody waits who is at least as urgent."""
        return any(self._queues[: urgency + 1])


class H2Stream(ABC):
    """What the connection sees of one of its streams; the exchange's own side is in the subclasses."""

    def __init__(self, connection: H2Base, stream_id: int) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.urgency = 3
        self.incremental = False
        self.events: list[Any] = []
        self.bell = Bell()
        #: Flow-controlled bytes in the mailbox, for which the peer has no credit back yet.
        self.uncredited = 0
        self.outbox: deque[Item] = deque()
        self.sent_bytes = 0
        #: Whether the end of what is sent here was encoded.
        self.end_sent = False
        #: Rung when everything of a `send` was encoded, or never will be.
        self.drained = Bell()

    # -- receiving -------------------------------------------------------------------------------

    def deliver(self, event: Any) -> None:
        """Put an event into the mailbox."""
        self.events.append(event)
        self.bell.ring()

    def deliver_data(self, event: DataReceived) -> None:
        """Put content into the mailbox."""
        self.uncredited += event.size
        data = event.data
        if data:
            events = self.events
            last = events[-1] if events else None
            if (
                len(data) < SMALL_PIECE
                and type(last) is Data
                and len(last.data) < JOINED_PIECE
                and not last.end
            ):
                events[-1] = Data(last.data + data, event.end)
            else:
                events.append(Data(data, event.end))
            self.bell.ring()
        elif not event.end and self.uncredited:
            self.credit()  # padding alone: nobody will ever take it

    def take(self) -> list[Any]:
        """Return what is in the mailbox, and give the peer its credit back."""
        batch, self.events = self.events, []
        self.credit()
        return batch

    def credit(self) -> None:
        """Give the peer credit for all that is, or was, in the mailbox."""
        size = self.uncredited
        if size:
            self.uncredited = 0
            self.connection.credit(self.stream_id, size)

    async def wait(self, seconds: float) -> bool:
        """Wait for the mailbox's bell; False where the time is over."""
        if seconds == math.inf:
            await self.bell.wait()
            return True
        with trio.move_on_after(seconds) as scope:
            await self.bell.wait()
        return not scope.cancelled_caught

    # -- sending ---------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Encode up to one frame of content, and what needs no window; False where none has room."""
        outbox = self.outbox
        codec = self.connection.codec
        while outbox:
            fields, data, end = outbox[0]
            if fields is not None:
                outbox.popleft()
                codec.send_head(self.stream_id, fields, end)
                if end:
                    self.end_sent = True
                    self.on_end_sent()
                continue
            size = len(data)
            if size:
                window = codec.window(self.stream_id)
                if window <= 0:
                    return False
                part = min(window, MAX_FRAME, size)
                if part < size:
                    view = memoryview(data)
                    outbox[0] = (None, view[part:], end)
                    codec.send_data(self.stream_id, view[:part], False)
                    self.sent_bytes += part
                    return True
            outbox.popleft()
            codec.send_data(self.stream_id, data, end)
            self.sent_bytes += size
            if end:
                self.end_sent = True
                self.on_end_sent()
            if size:
                return True
        return True

    async def push(self, items: list[Item], timeout: float, rate: float = 0.0) -> None:
        """Send items; return when the connection has taken all of them.

        Raises:
          ProxyError: WriteTimedout, nothing of it moved for ``timeout`` seconds, or it takes longer
            than ``rate`` bytes a second allow.
        """
        connection = self.connection
        codec = connection.codec
        outbox = self.outbox
        outbox.extend(items)
        if not connection.turns.before(self.urgency):
            while outbox and codec.pending < HIGH_WATER:
                if not self.advance():
                    break
        connection.ring_writer()
        if outbox:
            fields, data, _ = outbox[0]
            if fields is not None or not data or codec.window(self.stream_id) > 0:
                connection.turns.add(self)
            await self._until_drained(timeout, rate)

    async def _until_drained(self, timeout: float, rate: float) -> None:
        started = trio.current_time()
        if rate:
            size = sum(len(item[1]) for item in self.outbox)
            timeout = max(size, rate) / rate
        while self.outbox:
            before = self.sent_bytes
            with trio.move_on_after(timeout) as scope:
                await self.drained.wait()
            if self.end_sent:
                return  # whole: who leaves between the last frame and this moment has got it all
            if not scope.cancelled_caught:
                self.check_sending()
                continue
            if rate:
                raise ProxyError.explain(
                    ErrorType.WriteTimedout, f"it takes less than {rate:g} bytes a second"
                )
            if self.sent_bytes == before:
                waited = trio.current_time() - started
                raise ProxyError.explain(
                    ErrorType.WriteTimedout,
                    f"no progress in writing for {min(waited, timeout):g} s",
                )

    def check_sending(self) -> None:
        """Raise where nothing more can be sent."""

    def stop_sending(self) -> None:
        """Forget what was not encoded, and wake who waits for it."""
        self.outbox.clear()
        self.connection.turns.remove(self)
        self.drained.ring()

    # -- told by the connection ------------------------------------------------------------------

    def on_end_sent(self) -> None:
        """See the end of what is sent here encoded."""

    @abstractmethod
    def on_reset(self, code: int) -> None:
        """See the peer's RST_STREAM."""

    @abstractmethod
    def on_fault(self, text: str) -> None:
        """See that the stream was reset here for a fault of the peer."""

    @abstractmethod
    def on_lost(self) -> None:
        """See the connection end."""


class H2Base(ABC):
    """One end of a connection, with its reader and its writer."""

    def __init__(
        self, transport: ByteStream, info: ConnectionInfo, codec: H2Codec, write_timeout: float
    ) -> None:
        self.transport = transport
        self.info = info
        self.codec = codec
        self.streams: dict[int, H2Stream] = {}
        self.turns = Turns()
        self.write_timeout = write_timeout
        #: Why the connection is over: a kind, a sentence and a cause, None while it is not.
        self.lost: tuple[ErrorType, str, BaseException | None] | None = None
        self._timer = ReadTimer()
        self._turn = FRAMES_AT_ONCE
        self._deadlines: dict[str, float] = {}
        self._write_bell = Bell()
        self._closing = False
        self._mute = False
        self._write_scope = trio.CancelScope()
        codec.start()  # before anybody can send

    @property
    def buffered(self) -> int:
        """Bytes received that nobody has taken, and bytes to send that the peer has not."""
        held = self.codec.pending
        for stream in self.streams.values():
            held += stream.uncredited + sum(len(item[1]) for item in stream.outbox)
        return held

    # -- deadlines -------------------------------------------------------------------------------

    def set_deadline(self, name: str, seconds: float) -> None:
        """Have `on_deadline` called in so many seconds, unless `clear_deadline` comes before."""
        if seconds == math.inf:
            self.clear_deadline(name)
            return
        self._deadlines[name] = trio.current_time() + seconds
        self._timer.at(min(self._deadlines.values()), name)

    def clear_deadline(self, name: str) -> None:
        """Forget a deadline."""
        if self._deadlines.pop(name, None) is not None:
            self._timer.limit = min(self._deadlines.values(), default=math.inf)

    def _pass_deadlines(self) -> None:
        now = trio.current_time()
        for name in [name for name, moment in self._deadlines.items() if moment <= now]:
            del self._deadlines[name]
            self.on_deadline(name)
        self._timer.limit = min(self._deadlines.values(), default=math.inf)

    def on_deadline(self, name: str) -> None:
        """Act on a deadline that has passed."""
        if name == "settings":
            self.fail(PROTOCOL_ERROR, "no SETTINGS came", "settings_timeout")
        elif name == "ack":
            self.fail(SETTINGS_TIMEOUT, "our SETTINGS were not acknowledged", "settings_timeout")
        elif name == "block":
            self.fail(ENHANCE_YOUR_CALM, "a header block took too long", "block_timeout")

    # -- the reader ------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the time for the peer's preface."""
        seconds = self.codec.options.limits.settings_timeout
        self.set_deadline("settings", seconds)
        self.set_deadline("ack", seconds)

    async def read_loop(self) -> None:
        """Read until the connection is over."""
        while self.lost is None:
            with self._timer.scope():
                await self._read()
                return
            # Only a deadline leads here; a moved one starts the next round.
            if self._timer.expired():
                self._pass_deadlines()
                self.ring_writer()

    async def _read(self) -> None:
        while self.lost is None:
            if self.codec.more:
                await trio.lowlevel.checkpoint()
                self.feed(b"")
                continue
            try:
                data = await self.transport.receive_some(READ_SIZE)
            except trio.ClosedResourceError:
                self.lose(ErrorType.ConnectionClosed, "the connection is closed")
                return
            except ProxyError as exc:
                self._mute = True
                self.lose(ErrorType.ReadError, "reading", exc)
                return
            if not data:
                self.lose(ErrorType.ConnectionClosed, "the connection was closed")
                return
            self.feed(data)

    def feed(self, data: bytes) -> None:
        """Give bytes to the codec, and act on what they mean."""
        codec = self.codec
        trouble = False
        for event in codec.feed(data, self._turn):
            trouble = trouble or type(event) in _TROUBLE
            self._act(event)
        self._turn = FRAMES_IN_TROUBLE if trouble else FRAMES_AT_ONCE
        if codec.pending > MOST_UNSENT:  # row H2-07
            self.fail(ENHANCE_YOUR_CALM, "answers are not read", "max_unsent_bytes")
            return
        failure = codec.failure
        if failure is not None:
            if failure.limit is not None:
                self.on_limit(f"h2_{failure.limit}")
            self.on_failure(failure.text)
            self.lose(ErrorType.H2Error, failure.text)
            return
        deadlines = self._deadlines
        if codec.gate.block_open:
            if "block" not in deadlines:
                self.set_deadline("block", codec.options.limits.block_timeout)
        elif deadlines:
            if "block" in deadlines:
                self.clear_deadline("block")
            if "settings" in deadlines and codec.settings_received:
                self.clear_deadline("settings")
            if "ack" in deadlines and codec.settings_acked:
                self.clear_deadline("ack")
        if codec.pending or self.turns:
            self.ring_writer()

    def _act(self, event: Event) -> None:
        kind = type(event)
        if kind is DataReceived:
            stream = self.streams.get(event.stream_id)  # type: ignore[union-attr]
            if stream is None:
                self.credit(event.stream_id, event.size)  # type: ignore[union-attr]
            else:
                self.on_data(stream, event)  # type: ignore[arg-type]
        elif kind is HeadReceived:
            self.on_head(event)  # type: ignore[arg-type]
        elif kind is WindowOpened:
            self._window_opened(event.stream_id)  # type: ignore[union-attr]
        elif kind is TrailersReceived:
            stream = self.streams.get(event.stream_id)  # type: ignore[union-attr]
            if stream is not None:
                self.on_trailers(stream, event)  # type: ignore[arg-type]
        elif kind is ResetReceived:
            stream = self.streams.get(event.stream_id)  # type: ignore[union-attr]
            if stream is not None:
                stream.stop_sending()
                stream.on_reset(event.code)  # type: ignore[union-attr]
        elif kind is StreamFailed:
            stream = self.streams.get(event.stream_id)  # type: ignore[union-attr]
            if stream is not None:
                stream.stop_sending()
                stream.on_fault(event.text)  # type: ignore[union-attr]
        elif kind is HeadRefused:
            self.on_head_refused(event)  # type: ignore[arg-type]
        elif kind is GoAwayReceived:
            self.on_goaway(event)  # type: ignore[arg-type]
        elif kind is PriorityChanged:
            self.on_priority(event)  # type: ignore[arg-type]
        elif kind is PingAnswered:
            self.on_ping(event.data)  # type: ignore[union-attr]
        else:
            assert kind is SettingsReceived
            self.on_settings()

    def _window_opened(self, stream_id: int) -> None:
        if stream_id:
            stream = self.streams.get(stream_id)
            if stream is not None and stream.outbox:
                self.turns.add(stream)
            return
        for stream in self.streams.values():
            if stream.outbox and self.codec.stream_window(stream.stream_id) > 0:
                self.turns.add(stream)

    def on_data(self, stream: H2Stream, event: DataReceived) -> None:
        """Take content."""
        stream.deliver_data(event)

    @abstractmethod
    def on_trailers(self, stream: H2Stream, event: TrailersReceived) -> None:
        """Take trailers."""

    @abstractmethod
    def on_head(self, event: HeadReceived) -> None:
        """Take a head."""

    @abstractmethod
    def on_head_refused(self, event: HeadRefused) -> None:
        """Take a head that is not to be believed."""

    def on_goaway(self, event: GoAwayReceived) -> None:
        """Take the peer's GOAWAY."""

    def on_priority(self, event: PriorityChanged) -> None:
        """Take a change of priority."""

    def on_ping(self, data: bytes) -> None:
        """Take the answer to a PING."""

    def on_settings(self) -> None:
        """See new settings of the peer."""

    def on_limit(self, name: str) -> None:
        """See a limit end the connection."""

    def on_failure(self, text: str) -> None:
        """See the peer break the protocol."""

    # -- the writer ------------------------------------------------------------------------------

    def ring_writer(self) -> None:
        """Have the writer look for what is to be sent."""
        self._write_bell.ring()

    def credit(self, stream_id: int, size: int) -> None:
        """Give the peer room back."""
        if self.lost is None:
            codec = self.codec
            codec.credit(stream_id, size)
            if codec.pending:
                self._write_bell.ring()

    async def write_loop(self) -> None:
        """Write until the connection is over; then say goodbye and close it."""
        try:
            with self._write_scope:
                await self._write()
                await self._goodbye()
        except trio.ClosedResourceError:
            self.lose(ErrorType.ConnectionClosed, "the connection is closed")
        except ProxyError as exc:
            self.lose(ErrorType.WriteError, "writing", exc)
        finally:
            self.transport.close_now()  # the reader ends with it

    async def _write(self) -> None:
        codec = self.codec
        while True:
            if self.turns and self.lost is None:
                self._give_turns()
            data = codec.take_output()
            if data:
                await self.transport.send_parts([data], self.write_timeout)
            elif self._closing:
                return
            else:
                await self._write_bell.wait()

    def _give_turns(self) -> None:
        """Encode a frame of one stream after another while there is room for output."""
        turns, codec = self.turns, self.codec
        while turns and codec.pending < HIGH_WATER:
            stream = turns.next()
            if not stream.advance():
                turns.remove(stream)  # back when its window opens
            elif not stream.outbox:
                turns.remove(stream)
                stream.drained.ring()

    async def _goodbye(self) -> None:
        """End the output, and drop what still comes: a reset would destroy a last GOAWAY."""
        if self._mute:
            return
        dropped = 0
        try:
            await self.transport.send_eof()
            while dropped < GOODBYE_BYTES:
                data = await self.transport.receive_some(READ_SIZE)
                if not data:
                    return
                dropped += len(data)
        except (ProxyError, trio.BusyResourceError):
            return

    # -- ending ----------------------------------------------------------------------------------

    def fail(self, code: int, text: str, limit: str | None = None) -> None:
        """End the connection with a GOAWAY."""
        if self.lost is not None:
            return
        self.codec.fail(code, text, limit)
        if limit is not None:
            self.on_limit(f"h2_{limit}")
        self.lose(ErrorType.H2Error if code != NO_ERROR else ErrorType.ConnectionClosed, text)

    def lose(self, etype: ErrorType, text: str, cause: BaseException | None = None) -> None:
        """Take note that the connection is over, and tell every stream; the first reason counts."""
        if self.lost is not None:
            return
        self.lost = (etype, text, cause)
        self._closing = True
        self._write_scope.deadline = trio.current_time() + GOODBYE_TIME
        for stream in list(self.streams.values()):
            stream.stop_sending()
            stream.on_lost()
        self.ring_writer()

    def lost_error(self) -> ProxyError:
        """Return the reason as an error of its own: tasks must not share one."""
        assert self.lost is not None
        etype, text, cause = self.lost
        if cause is None:
            return ProxyError.explain(etype, text)
        return ProxyError.because(etype, text, cause)
