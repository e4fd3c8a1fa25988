"""HTTP/2 frames to message events and back, over the h2 library: one connection, no I/O.

Bytes go through the frame gate first (`FrameGate`), which hands on whole frames; this adapter gives
them to h2 one by one, so that the events of good frames are never lost to a bad one behind them.
What h2 would make a connection error although RFC 9113 section 8.1.1 calls it a stream error is
judged here; `_h2_library` sees to it that it gets here.

GOAWAY never reaches h2, which would forget the streams that go on: it is written and read here.
Frames for streams that are closed are dropped here as well, after their compressed fields and their
share of the connection's window were taken into account.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import attrs
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
import h2.utilities
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hyperframe.frame import GoAwayFrame, RstStreamFrame, SettingsFrame

from .._h2_limits import H2Limits
from .._messages import RequestHeader
from ..semantics._framing import HeadLimits, MessageRefused
from ..semantics._h2 import (
    MalformedMessage,
    check_h2_request,
    check_h2_response,
    check_h2_trailers,
)
from ._h2_events import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    ConnectionFailure,
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
from ._h2_gate import HEAD_BYTES, PREFACE, Frame, FrameGate
from ._h2_library import LARGEST_ID, REMEMBERED, Library

#: What is said of SETTINGS_MAX_HEADER_LIST_SIZE.
LIST_SOFT_STOP = 65536
#: The size of every flow-control window before anything was said of it (RFC 9113 section 6.9.2).
DEFAULT_WINDOW = 65535

_HEADERS = 0x1
_DATA = 0x0
_RST_STREAM = 0x3
_WINDOW_UPDATE = 0x8
_CONTINUATION = 0x9
_END_HEADERS = 0x4


@attrs.frozen
class H2Options:
    """What one end of a connection offers.

    Attributes:
      stream_window: Bytes that the peer may send on a stream before we take them.
      connection_window: Bytes that it may send on all streams together.
      max_streams: Streams that a client may have open; a server's matter alone.
      connect_protocol: Whether extended CONNECT is offered (RFC 8441).
      head_limits: Bounds on what the peer's heads may be.
      limits: The connection's budgets.
      scheme: What the requests of this connection count as: ``http`` or ``https``.
    """

    stream_window: int = DEFAULT_WINDOW
    connection_window: int = 1 << 20
    max_streams: int = 100
    connect_protocol: bool = True
    head_limits: HeadLimits = attrs.field(factory=HeadLimits)
    limits: H2Limits = attrs.field(factory=H2Limits)
    scheme: str = "http"


class _How(enum.Enum):
    """How a stream ended."""

    ENDED = "by END_STREAM of both sides"
    GIVEN_UP = "by a reset of ours, for reasons of ours"
    RESET = "by a reset of ours, for a fault of the peer"
    RESET_BY_PEER = "by a reset of the peer's"


class _Live:
    """What the adapter knows of a stream that is not over."""

    __slots__ = (
        "extended",
        "got_head",
        "left",
        "local_end",
        "method",
        "remote_end",
        "stream",
        "tunnel",
    )

    def __init__(self, stream: Any, method: str, extended: RequestHeader | None = None) -> None:
        self.stream = stream
        self.method = method
        #: The request that went out as an extended CONNECT.
        self.extended = extended
        self.got_head = False
        #: Whether a request of the peer's wants a tunnel: no header block may follow.
        self.tunnel = False
        #: Content that its declared length still promises, None without one.
        self.left: int | None = None
        self.local_end = False
        self.remote_end = False


class H2Codec:
    """One end of an HTTP/2 connection (RFC 9113).

    Attributes:
      failure: Why the connection has to end, once it has; the GOAWAY is in the output then.
      settings_received: Whether the peer's first SETTINGS have come.
      settings_acked: Whether the peer has acknowledged ours.
      control_unsent: Control frames made for the peer that `take_output` has not given out.
    """

    def __init__(self, *, server: bool, options: H2Options, now: Callable[[], float]) -> None:
        """Make one end.

        Args:
          server: Which one.
          options: What it offers.
          now: Trio's clock.
        """
        self.server = server
        self.options = options
        self.gate = FrameGate(server=server, limits=options.limits, now=now)
        self.failure: ConnectionFailure | None = None
        self.settings_received = False
        self.settings_acked = False
        self.control_unsent = 0
        self.control_bytes = 0
        self._h2 = Library(
            server=server,
            stream_window=options.stream_window,
            max_list_bytes=options.limits.max_list_bytes,
        )
        self._last_told = LARGEST_ID
        self._live: dict[int, _Live] = {}
        # Streams that are over, the latest ones, and how they ended.
        self._closed: OrderedDict[int, _How] = OrderedDict()
        # What may still be under way on streams that were given up.
        self._late: dict[int, int] = {}
        self._block: list[Frame] = []
        # Frames that came and wait to be gone through.
        self._frames: deque[Frame] = deque()
        self._data_frames = 0

    # -- starting and ending ---------------------------------------------------------------------

    def start(self) -> None:
        """Put our preface into the output."""
        connection = self._h2
        options = self.options
        codes = h2.settings.SettingCodes
        settings: dict[Any, int] = {codes.MAX_HEADER_LIST_SIZE: LIST_SOFT_STOP}
        if options.stream_window != DEFAULT_WINDOW:
            settings[codes.INITIAL_WINDOW_SIZE] = options.stream_window
        if self.server:
            settings[codes.MAX_CONCURRENT_STREAMS] = options.max_streams
            if options.connect_protocol:
                settings[codes.ENABLE_CONNECT_PROTOCOL] = 1
        else:
            settings[codes.ENABLE_PUSH] = 0
        first = SettingsFrame(0, settings=settings).serialize()
        connection.write(first if self.server else PREFACE + first)
        if options.connection_window > DEFAULT_WINDOW:
            connection.increment_flow_control_window(options.connection_window - DEFAULT_WINDOW)

    def goaway(self, code: int, last_stream_id: int, text: str = "") -> None:
        """Tell the peer that nothing above a stream is taken (RFC 9113 section 6.8)."""
        # What was disowned once stays so: the peer may have sent it elsewhere meanwhile.
        self._last_told = min(self._last_told, last_stream_id)
        frame = GoAwayFrame(
            0,
            last_stream_id=self._last_told,
            error_code=code,
            additional_data=text.encode("ascii", "replace")[:128],
        )
        self._h2.write(frame.serialize())

    def fail(self, code: int, text: str, limit: str | None = None) -> None:
        """End the connection: what is in the output goes out, and a GOAWAY behind it."""
        if self.failure is None:
            self.failure = ConnectionFailure(code, text, limit)
            self.goaway(code, self._h2.highest_inbound_stream_id, text)

    @property
    def last_stream_id(self) -> int:
        """The highest stream that the peer has opened."""
        return self._h2.highest_inbound_stream_id

    def ping(self, data: bytes) -> None:
        """Send a PING with these eight bytes."""
        self._h2.ping(data)

    # -- receiving -------------------------------------------------------------------------------

    @property
    def more(self) -> bool:
        """Whether `feed` has left frames for its next call."""
        return bool(self._frames)

    def feed(self, data: bytes, most: int = LARGEST_ID) -> list[Event]:
        """Take bytes, and return what they mean; what is wrong with them is left in `failure`.

        Args:
          data: What came; may be empty, to go on with what was left.
          most: How many frames to go through now; `more` tells whether any are left.
        """
        if self.failure is not None:
            return []
        events: list[Event] = []
        gate = self.gate
        library = self._h2
        frames = self._frames
        frames.extend(gate.feed(data))
        for _ in range(min(most, len(frames))):
            frame = frames.popleft()
            before = library.unsent
            self._receive(frame, events)
            made = library.unsent - before
            if made:
                self.control_unsent += 1
                self.control_bytes += made
            if self._failed():
                frames.clear()
                return events
        failure = gate.failure
        if failure is not None and not frames:
            self.fail(failure.code, failure.text, failure.limit)
        else:
            self._check_unsent()
        return events

    def _check_unsent(self) -> None:
        """End the connection of a peer that provokes answers and reads none (row H2-07)."""
        limits = self.options.limits
        if self.control_unsent > limits.max_unsent_frames:
            self.fail(ENHANCE_YOUR_CALM, "answers are not read", "max_unsent_frames")
        elif self.control_bytes > limits.max_unsent_bytes:
            self.fail(ENHANCE_YOUR_CALM, "answers are not read", "max_unsent_bytes")

    def _failed(self) -> bool:
        return self.failure is not None

    def _receive(self, frame: Frame, events: list[Event]) -> None:
        kind = frame.type
        if kind == _DATA:
            self._receive_data(frame, events)
        elif kind in (_HEADERS, _CONTINUATION):
            self._block.append(frame)
            if frame.flags & _END_HEADERS:
                block, self._block = self._block, []
                self._receive_block(block, events)
        elif frame.goaway is not None:
            events.append(GoAwayReceived(*frame.goaway))
        elif frame.priority_update is not None:
            events.append(PriorityChanged(*frame.priority_update))
        elif frame.stream_error is not None:
            code, text = frame.stream_error
            self._stream_fault(frame.stream_id, code, text, events)
        elif kind == _RST_STREAM:
            self._receive_reset(frame, events)
        elif kind == _WINDOW_UPDATE and frame.stream_id:
            if frame.stream_id in self._live:
                for event in self._to_h2(frame):
                    if type(event) is h2.events.StreamReset:
                        # The window went over its top: h2 has reset the stream.
                        self._was_reset(frame.stream_id, FLOW_CONTROL_ERROR, events)
                    else:
                        events.append(WindowOpened(frame.stream_id))
            else:
                self._check_known(frame)
        else:
            self._receive_control(frame, events)

    def _receive_control(self, frame: Frame, events: list[Event]) -> None:
        for event in self._to_h2(frame):
            kind = type(event)
            if kind is h2.events.WindowUpdated:
                events.append(WindowOpened(0))
            elif kind is h2.events.RemoteSettingsChanged:
                self.settings_received = True
                events.append(SettingsReceived())
                events.append(WindowOpened(0))
            elif kind is h2.events.SettingsAcknowledged:
                self.settings_acked = True
            elif kind is h2.events.PingAckReceived:
                events.append(PingAnswered(event.ping_data))

    def _to_h2(self, frame: Frame) -> list[Any]:
        try:
            return self._h2.receive_data(frame.raw)
        except h2.exceptions.ProtocolError as exc:
            self._fatal(exc)
            return []

    def _fatal(self, exc: Exception) -> None:
        code = int(getattr(exc, "error_code", PROTOCOL_ERROR))
        if isinstance(exc.__cause__, OversizedHeaderListError):
            self.fail(ENHANCE_YOUR_CALM, "the header list is too large", "max_list_bytes")
        elif isinstance(exc.__cause__, HPACKError):
            self.fail(COMPRESSION_ERROR, "the header block cannot be decoded")
        else:
            self.fail(code, str(exc) or type(exc).__name__)

    def _receive_data(self, frame: Frame, events: list[Event]) -> None:
        stream_id = frame.stream_id
        live = self._live.get(stream_id)
        if live is None:
            if self._check_known(frame, data=True):
                self._drop_data(frame)
            return
        if live.remote_end:
            self._drop_data(frame)
            self._stream_fault(stream_id, STREAM_CLOSED, "content behind the message's end", events)
            return
        if not live.got_head:
            self._drop_data(frame)
            self._stream_fault(stream_id, PROTOCOL_ERROR, "content before a head", events)
            return
        for event in self._to_h2(frame):
            if type(event) is not h2.events.DataReceived:
                continue
            data = event.data
            size = event.flow_controlled_length
            end = event.stream_ended is not None
            if live.left is not None:
                live.left -= len(data)
                if live.left < 0 or (end and live.left):
                    self.credit(stream_id, size)
                    self._stream_fault(
                        stream_id, PROTOCOL_ERROR, "the content does not fit its length", events
                    )
                    return
            if end:
                self._remote_ended(stream_id, live)
            events.append(DataReceived(stream_id, data, size, end))

    def _drop_data(self, frame: Frame) -> None:
        try:
            self._h2.drop_data(frame.length)
        except h2.exceptions.FlowControlError as exc:
            self._fatal(exc)

    def _receive_block(self, block: list[Frame], events: list[Event]) -> None:
        """Take a whole header block: a head, trailers, or what has to be decoded all the same."""
        first = block[0]
        stream_id = first.stream_id
        live = self._live.get(stream_id)
        if live is None and (stream_id <= self._highest() or not self.server):
            if self._check_known(first, data=True):
                self._decode_only(block)
            return
        if live is not None and live.remote_end:
            if self._decode_only(block):
                self._stream_fault(
                    stream_id, STREAM_CLOSED, "a header block behind the message's end", events
                )
            return
        found: list[Any] = []
        for frame in block:
            found += self._to_h2(frame)
        if self.failure is not None:
            return
        for event in found:
            self._receive_fields(stream_id, event, first, events)

    def _highest(self) -> int:
        connection = self._h2
        if self.server:
            return connection.highest_inbound_stream_id
        return connection.highest_outbound_stream_id

    def _receive_fields(
        self, stream_id: int, event: Any, first: Frame, events: list[Event]
    ) -> None:
        kind = type(event)
        live = self._live.get(stream_id)
        if live is None:
            live = self._live[stream_id] = _Live(self._h2.streams[stream_id], "")
        end = getattr(event, "stream_ended", None) is not None
        try:
            if first.stream_error is not None:
                raise MalformedMessage(first.stream_error[1])
            if kind is h2.events.RequestReceived:
                head = check_h2_request(
                    event.headers,
                    end_stream=end,
                    limits=self.options.head_limits,
                    scheme=self.options.scheme,
                    connect_protocol=self.options.connect_protocol,
                )
                assert head.facts is not None
                live.got_head = True
                live.left = head.facts.content_length
                live.tunnel = head.facts.connect is not None or head.facts.extended_connect
                events.append(HeadReceived(stream_id, head, end))
            elif kind is h2.events.TrailersReceived:
                if live.tunnel:  # RFC 9113 section 8.5
                    raise MalformedMessage("a header block in a tunnel")
                if not end:
                    raise MalformedMessage("a second header block does not end the stream")
                if live.left:
                    raise MalformedMessage("the content does not fit its length")
                events.append(TrailersReceived(stream_id, check_h2_trailers(event.headers)))
            else:
                response = check_h2_response(
                    event.headers,
                    end_stream=end,
                    limits=self.options.head_limits,
                    request_method=live.method,
                    extended=live.extended,
                )
                if response.status == 101:
                    live.got_head = True
                elif response.status >= 200:
                    assert response.facts is not None
                    live.got_head = True
                    if response.facts.has_body:
                        live.left = response.facts.content_length
                    elif not end:
                        live.left = 0  # an answer to HEAD, a 204 or a 304 has no content
                events.append(HeadReceived(stream_id, response, end))
        except MalformedMessage as exc:
            self._stream_fault(stream_id, PROTOCOL_ERROR, str(exc), events)
            return
        except MessageRefused as exc:
            live.got_head = True
            events.append(HeadRefused(stream_id, exc, end))
        if end:
            self._remote_ended(stream_id, live)

    def _decode_only(self, block: list[Frame]) -> bool:
        """Decode a block that nobody wants: the table is shared by all streams."""
        try:
            self._h2.decoder.decode(b"".join([frame.raw[9:] for frame in block]), raw=True)
        except OversizedHeaderListError:
            self.fail(ENHANCE_YOUR_CALM, "the header list is too large", "max_list_bytes")
            return False
        except (HPACKError, IndexError):
            self.fail(COMPRESSION_ERROR, "the header block cannot be decoded")
            return False
        return True

    def _receive_reset(self, frame: Frame, events: list[Event]) -> None:
        stream_id = frame.stream_id
        if stream_id not in self._live:
            self._check_known(frame, paid=True)  # the gate took its token
            return
        self._to_h2(frame)
        if self.failure is None:
            self._gone(stream_id, _How.RESET_BY_PEER)
            events.append(ResetReceived(stream_id, int.from_bytes(frame.raw[9:13], "big")))

    def _check_known(self, frame: Frame, *, data: bool = False, paid: bool = False) -> bool:
        """Judge a frame for a stream that is not live; True where it is to be dropped (row H2-03).

        A frame for a stream that never was is a connection error (RFC 9113 section 5.1), and so is
        content or a header block behind the end of a stream that ended properly. What was under way
        when we gave a stream up is nobody's fault: twice the stream's window of it is free.
        """
        stream_id = frame.stream_id
        inbound = (stream_id % 2 == 1) is self.server
        highest = (
            self._h2.highest_inbound_stream_id if inbound else self._h2.highest_outbound_stream_id
        )
        if stream_id > highest:
            self.fail(PROTOCOL_ERROR, "a frame for an idle stream")
            return False
        how = self._closed.get(stream_id)
        if how is None:
            oldest = next(iter(self._closed), 0)
            if data and (len(self._closed) < REMEMBERED or stream_id > oldest):
                # Skipped when a higher one was opened, which closed it (RFC 9113 section 5.1.1).
                self.fail(PROTOCOL_ERROR, "a stream was opened below an earlier one")
                return False
            how = _How.RESET
        if how is _How.GIVEN_UP:
            if data:
                self._late[stream_id] -= HEAD_BYTES + frame.length
            paid = self._late[stream_id] >= 0
        if how is not _How.ENDED:
            if not paid:
                self._charge()
            if data and how is _How.RESET_BY_PEER and self.failure is None:
                # It knows that there is nobody any more (RFC 9113 section 5.1, closed).
                reset = RstStreamFrame(stream_id, error_code=STREAM_CLOSED)
                self._h2.write(reset.serialize())
        elif data:
            self.fail(STREAM_CLOSED, "a frame behind the end of a stream")
        return self.failure is None

    def _charge(self) -> None:
        """Take a token for a reset that the peer provoked (row H2-03)."""
        if not self.gate.charge_reset():
            failure = self.gate.failure
            assert failure is not None
            self.fail(failure.code, failure.text, failure.limit)

    def _stream_fault(self, stream_id: int, code: int, text: str, events: list[Event]) -> None:
        """Reset a stream for the peer's fault."""
        if stream_id not in self._live:
            self._check_known(Frame(_WINDOW_UPDATE, 0, stream_id, 0, b""))
            return
        self.reset(stream_id, code, fault=True)
        self._charge()
        events.append(StreamFailed(stream_id, code, text))

    def _was_reset(self, stream_id: int, code: int, events: list[Event]) -> None:
        self._gone(stream_id, _How.RESET)
        self._charge()
        events.append(StreamFailed(stream_id, code, "the window went over its top"))

    def _remote_ended(self, stream_id: int, live: _Live) -> None:
        live.remote_end = True
        if live.local_end:
            self._gone(stream_id, _How.ENDED)

    def _gone(self, stream_id: int, how: _How) -> None:
        """Forget a stream, but for how it ended."""
        self._live.pop(stream_id, None)
        closed = self._closed
        closed[stream_id] = how
        if how is _How.GIVEN_UP:
            self._late[stream_id] = 2 * self.options.stream_window
        if len(closed) > REMEMBERED:
            forgotten, _ = closed.popitem(last=False)
            self._late.pop(forgotten, None)
        self._h2.forget(stream_id)

    # -- sending ---------------------------------------------------------------------------------

    def open_stream(self, method: str, extended: RequestHeader | None = None) -> int:
        """Return the number of a new stream; its head is to be sent at once.

        Args:
          method: The request's.
          extended: The request, where it goes out as an extended CONNECT.
        """
        stream_id: int = self._h2.get_next_available_stream_id()
        self._live[stream_id] = _Live(None, method, extended)
        return stream_id

    def send_head(self, stream_id: int, fields: list[tuple[bytes, bytes]], end: bool) -> None:
        """Send a head or trailers."""
        self._h2.send_headers(stream_id, fields, end_stream=end)
        live = self._live[stream_id]
        if live.stream is None:
            live.stream = self._h2.streams[stream_id]
        if end:
            self._local_ended(stream_id, live)

    def send_data(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        """Send content: no more than `window` has room for, and than `MAX_FRAME`."""
        self._h2.send_data(stream_id, data, end_stream=end)
        self._data_frames += 1
        if end:
            self._local_ended(stream_id, self._live[stream_id])

    def _local_ended(self, stream_id: int, live: _Live) -> None:
        live.local_end = True
        if live.remote_end:
            self._gone(stream_id, _How.ENDED)

    def window(self, stream_id: int) -> int:
        """Return how much content may be sent on a stream now; 0 or less for none."""
        live = self._live.get(stream_id)
        if live is None:
            return 0
        ours: int = self._h2.outbound_flow_control_window
        streams: int = live.stream.outbound_flow_control_window
        return min(ours, streams)

    def stream_window(self, stream_id: int) -> int:
        """Return what the stream's own window has room for."""
        live = self._live.get(stream_id)
        return 0 if live is None else live.stream.outbound_flow_control_window

    @property
    def connection_window(self) -> int:
        """How much content may be sent on all streams together now."""
        window: int = self._h2.outbound_flow_control_window
        return window

    @property
    def peer_max_streams(self) -> int:
        """How many streams the peer lets us have open."""
        value: int = self._h2.remote_settings.max_concurrent_streams
        return value

    @property
    def peer_takes_connect(self) -> bool:
        """Whether the peer offers extended CONNECT (RFC 8441 section 3)."""
        return bool(self._h2.remote_settings.enable_connect_protocol)

    def credit(self, stream_id: int, size: int) -> None:
        """Give the peer back the room of content that was consumed, or that nobody wants."""
        if size:
            self._h2.acknowledge_received_data(size, stream_id)

    def reset(self, stream_id: int, code: int, *, fault: bool = False) -> None:
        """Reset a stream, maybe for a fault of the peer; does nothing where it is over."""
        if stream_id in self._live:
            live = self._live[stream_id]
            if live.stream is not None and not live.stream.closed:
                # Where a malformed head ended the stream it is closed for h2, and for the peer.
                self._h2.reset_stream(stream_id, code)
            self._gone(stream_id, _How.RESET if fault else _How.GIVEN_UP)

    # -- output ----------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Bytes of output that were not taken."""
        return self._h2.unsent

    def take_output(self) -> bytes:
        """Return the output, and count it as sent."""
        data: bytes = self._h2.data_to_send()
        self.control_unsent = self.control_bytes = 0
        if self._data_frames:
            self.gate.credit_data(self._data_frames)
            self._data_frames = 0
        return data
