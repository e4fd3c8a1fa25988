"""What the codec of HTTP/2 tells of: the events of a connection and of its streams."""

from __future__ import annotations

from .._headers import Headers
from .._messages import RequestHeader, ResponseHeader
from ..semantics._framing import MessageRefused

# Error codes (RFC 9113 section 7).
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
SETTINGS_TIMEOUT = 0x4
STREAM_CLOSED = 0x5
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
CONNECT_ERROR = 0xA
ENHANCE_YOUR_CALM = 0xB
HTTP_1_1_REQUIRED = 0xD

_NAMES = {
    NO_ERROR: "NO_ERROR",
    PROTOCOL_ERROR: "PROTOCOL_ERROR",
    INTERNAL_ERROR: "INTERNAL_ERROR",
    FLOW_CONTROL_ERROR: "FLOW_CONTROL_ERROR",
    SETTINGS_TIMEOUT: "SETTINGS_TIMEOUT",
    STREAM_CLOSED: "STREAM_CLOSED",
    0x6: "FRAME_SIZE_ERROR",
    REFUSED_STREAM: "REFUSED_STREAM",
    CANCEL: "CANCEL",
    COMPRESSION_ERROR: "COMPRESSION_ERROR",
    CONNECT_ERROR: "CONNECT_ERROR",
    ENHANCE_YOUR_CALM: "ENHANCE_YOUR_CALM",
    0xC: "INADEQUATE_SECURITY",
    HTTP_1_1_REQUIRED: "HTTP_1_1_REQUIRED",
}


def error_name(code: int) -> str:
    """Return an error code as RFC 9113 section 7 names it."""
    return _NAMES.get(code, f"0x{code:x}")


class HeadReceived:
    """A message's head; ``end`` where nothing follows."""

    __slots__ = ("end", "head", "stream_id")

    def __init__(self, stream_id: int, head: RequestHeader | ResponseHeader, end: bool) -> None:
        self.stream_id = stream_id
        self.head = head
        self.end = end


class DataReceived:
    """Content: ``size`` is what it used of the windows, padding included."""

    __slots__ = ("data", "end", "size", "stream_id")

    def __init__(self, stream_id: int, data: bytes, size: int, end: bool) -> None:
        self.stream_id = stream_id
        self.data = data
        self.size = size
        self.end = end


class TrailersReceived:
    """The trailers, and with them the message's end."""

    __slots__ = ("headers", "stream_id")

    def __init__(self, stream_id: int, headers: Headers) -> None:
        self.stream_id = stream_id
        self.headers = headers


class StreamFailed:
    """A stream that was malformed, and that was reset here (rows H2-11 to H2-13, H2-26)."""

    __slots__ = ("code", "stream_id", "text")

    def __init__(self, stream_id: int, code: int, text: str) -> None:
        self.stream_id = stream_id
        self.code = code
        self.text = text


class HeadRefused:
    """A request that is to be answered without a session, or a response that is too large."""

    __slots__ = ("end", "refusal", "stream_id")

    def __init__(self, stream_id: int, refusal: MessageRefused, end: bool) -> None:
        self.stream_id = stream_id
        self.refusal = refusal
        self.end = end


class ResetReceived:
    """RST_STREAM of the peer."""

    __slots__ = ("code", "stream_id")

    def __init__(self, stream_id: int, code: int) -> None:
        self.stream_id = stream_id
        self.code = code


class GoAwayReceived:
    """The peer takes no more streams above ``last_stream_id``."""

    __slots__ = ("code", "debug", "last_stream_id")

    def __init__(self, last_stream_id: int, code: int, debug: bytes) -> None:
        self.last_stream_id = last_stream_id
        self.code = code
        self.debug = debug


class WindowOpened:
    """A stream (or, with 0, every stream) may send more than before."""

    __slots__ = ("stream_id",)

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id


class PriorityChanged:
    """PRIORITY_UPDATE (RFC 9218 section 7.1)."""

    __slots__ = ("stream_id", "value")

    def __init__(self, stream_id: int, value: bytes) -> None:
        self.stream_id = stream_id
        self.value = value


class PingAnswered:
    """The peer has answered a PING of ours."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class SettingsReceived:
    """The peer's SETTINGS are in force."""

    __slots__ = ()


Event = (
    HeadReceived
    | DataReceived
    | TrailersReceived
    | StreamFailed
    | HeadRefused
    | ResetReceived
    | GoAwayReceived
    | WindowOpened
    | PriorityChanged
    | PingAnswered
    | SettingsReceived
)


class ConnectionFailure:
    """Why the connection has to end: an error code, a sentence, and the limit that bit."""

    __slots__ = ("code", "limit", "text")

    def __init__(self, code: int, text: str, limit: str | None = None) -> None:
        self.code = code
        self.text = text
        self.limit = limit

    def __repr__(self) -> str:
        return f"<{error_name(self.code)}: {self.text}>"
