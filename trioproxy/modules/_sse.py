"""Server-sent events (HTML standard, section 9.2), filtered one by one while they stream.

What is complete goes on at once: an event at its blank line, a comment (which servers send to keep
the connection alive) at the end of its line. All that is held back is the event that is under way,
and it has a bound. Line ends may be CR, LF or CRLF, cut anywhere; what goes out has LF, so that the
same stream gives the same bytes however it was cut. A byte-order mark at the start is dropped.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import attrs

from .._errors import ErrorType, ProxyError
from .._messages import BodyChunk, RequestHeader, ResponseHeader
from ._abc import HttpModule, HttpModuleBuilder
from ._media import is_encoded

if TYPE_CHECKING:
    from ..proxy._session import Session

_LINE_END = re.compile(rb"\r\n|\r|\n")
_LINE_END_TEXT = re.compile(r"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"
_STREAM = re.compile(r"text/event-stream\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)


def _one_line(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or re.search(r"[\r\n]", value):
        raise ValueError(f"{attribute.name}={value!r}: text without a line end is right")


def _an_id(instance: object, attribute: attrs.Attribute[str | None], value: object) -> None:
    if value is None:
        return
    _one_line(instance, attribute, value)  # type: ignore[arg-type]
    if "\0" in value:  # type: ignore[operator]
        raise ValueError(f"{attribute.name}={value!r}: text without NUL is right")


def _a_time(_instance: object, attribute: attrs.Attribute[int | None], value: object) -> None:
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(
            f"{attribute.name}={value!r}: milliseconds, a whole number from 0 on, are right, or None"
        )


@attrs.frozen
class Event:
    """A server-sent event; ``attrs.evolve(event, data=...)`` makes a changed one.

    Attributes:
      data: The content; lines end with LF.
      event: The type of the event.
      id: What the client will tell as Last-Event-ID when it connects again; None where this event
        says nothing of it.
      retry: Milliseconds after which the client is to connect again; None where this event says
        nothing of it.
    """

    data: str = attrs.field(default="", validator=attrs.validators.instance_of(str))
    event: str = attrs.field(default="message", validator=_one_line)
    id: str | None = attrs.field(default=None, validator=_an_id)
    retry: int | None = attrs.field(default=None, validator=_a_time)

    def encode(self) -> bytes:
        """Return the event as it is written to a stream, in UTF-8."""
        lines = []
        if self.event not in ("message", ""):
            lines.append(f"event: {self.event}\n")
        if self.id is not None:
            lines.append(f"id: {self.id}\n")
        if self.retry is not None:
            lines.append(f"retry: {self.retry}\n")
        lines += [f"data: {line}\n" for line in _LINE_END_TEXT.split(self.data)]
        return "".join([*lines, "\n"]).encode()


#: A filter of events, ``def`` or ``async def``; what is awaited is the same as what is returned.
EventFilter = Callable[["Session", Event], Event | Iterable[Event] | Awaitable[Any] | None]


@attrs.frozen
class Parsed:
    """A complete event of a stream.

    Attributes:
      event: What it says.
      raw: Its lines as they came, each ended by LF, the blank one included.
    """

    event: Event
    raw: bytes


class EventParser:
    """Parses a stream of events, fed with any pieces of it."""

    __slots__ = ("_block", "_first", "_limit", "_line", "_skip_lf")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: The whole lines of the event that is under way, and the line that is. Bytes, as lists of
        #: many small pieces would take many times their size.
        self._block = bytearray()
        self._line = bytearray()
        #: Whether a CR ended the last line, so that an LF that follows belongs to it.
        self._skip_lf = False
        self._first = True

    def feed(self, data: bytes) -> list[Parsed | bytes]:
        """Return what is complete: events, and bytes that pass as they are (comments, blank lines).

        Raises:
          ValueError: an event, or a comment's line, is larger than the limit.
        """
        if self._skip_lf and data:
            self._skip_lf = False
            data = data.removeprefix(b"\n")
        if not data:
            return []
        self._skip_lf = data.endswith(b"\r")
        *lines, rest = _LINE_END.split(data)
        out: list[Parsed | bytes] = []
        for line in lines:
            if self._line:
                self._line += line
                self._take(bytes(self._line), out)
                self._line.clear()
            else:
                self._take(line, out)
        self._line += rest
        self._check(len(self._line))
        return out

    def _take(self, line: bytes, out: list[Parsed | bytes]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        self._check(len(line))
        if line.startswith(b":"):
            out.append(line + b"\n")
        elif line:
            self._block += line + b"\n"
        elif self._block:
            raw = bytes(self._block) + b"\n"
            self._block.clear()
            event = parse_event(raw.split(b"\n")[:-2])
            # Without data there is no event, but the client may be told an id or a time.
            out.append(raw if event is None else Parsed(event, raw))
        else:
            out.append(b"\n")

    def _check(self, size: int) -> None:
        if len(self._block) + size > self._limit:
            raise ValueError(f"an event has more than {self._limit} bytes")


def parse_event(lines: list[bytes]) -> Event | None:
    """Return the event of these lines, None where they have no data (HTML standard, 9.2.6)."""
    data: list[str] = []
    kind, last_id, retry = "", None, None
    for line in lines:
        name, _, rest = line.partition(b":")
        value = rest.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
        elif name == b"id" and "\0" not in value:
            last_id = value
        elif name == b"retry" and value.isascii() and value.isdigit() and len(value) <= 18:
            retry = int(value)
    return Event("\n".join(data), kind or "message", last_id, retry) if data else None


class EventStream(HttpModule):
    """One response's events on their way through the filter.

    Attributes:
      active: Whether the response is a stream of events.
      events: How many of them have come so far.
    """

    def __init__(self, settings: SseFilter) -> None:
        self.active = False
        self.events = 0
        self._settings = settings
        self._parser: EventParser | None = None
        self._apply: EventFilter | None = None

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Ask the origin not to encode a stream of events."""
        if self._settings.ask_identity and any(
            _STREAM.fullmatch(element.strip())
            for element in ",".join(request.headers.get_all("accept")).split(",")
        ):
            request.headers.set("accept-encoding", "identity")
        return False

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Take on a stream of events; any other response passes untouched.

        Raises:
          ProxyError: the stream is encoded, so that its events cannot be told apart (502).
        """
        headers = response.headers
        if response.status < 200:
            return
        self.active, self._parser = False, None  # this one may stand in for one that failed
        if not _STREAM.fullmatch(headers.get("content-type") or ""):
            return
        if is_encoded(headers):
            raise ProxyError.explain(
                ErrorType.InvalidHTTPHeader,
                "a stream of events with a Content-Encoding cannot be filtered",
            ).into_up()
        headers.remove("content-length")
        if end_of_stream:
            return
        self.active = True
        self._parser = EventParser(self._settings.max_event_bytes)
        factory = self._settings.factory
        self._apply = self._settings.apply if factory is None else factory(session)

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        """Let the filter see what events are complete; one that is cut by the end is dropped.

        Raises:
          ProxyError: an event is larger than the limit.
        """
        parser = self._parser
        if parser is None or not body.data:
            return
        try:
            parsed = parser.feed(body.data)
        except ValueError as exc:
            raise ProxyError.explain(
                ErrorType.ResponseTooLarge, f"{exc}, which is SseFilter's max_event_bytes"
            ).into_up() from exc
        body.data = b"".join(
            [
                each if isinstance(each, bytes) else await self._filtered(session, each)
                for each in parsed
            ]
        )

    async def _filtered(self, session: Session, parsed: Parsed) -> bytes:
        assert self._apply is not None
        self.events += 1
        found = self._apply(session, parsed.event)
        result = await found if inspect.isawaitable(found) else found
        if result is None:
            return b""
        out = b""
        for event in [result] if isinstance(result, Event) else result:
            if not isinstance(event, Event):
                raise TypeError(f"a filter of events returned {event!r}: an Event is right")
            # What the filter leaves alone keeps its lines, with fields that we do not know.
            out += parsed.raw if event is parsed.event else event.encode()
        return out

    def response_done_filter(self, session: Session) -> None:
        """Let go of what was held back."""
        self._parser = self._apply = None


def _a_filter(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{attribute.name}={value!r}: a function is right")


def _a_size(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{attribute.name}={value!r}: bytes, a whole number from 1 on, are right")


def _a_flag(_instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: True or False is right")


@attrs.frozen
class SseFilter(HttpModuleBuilder):
    """Filters the events of every ``text/event-stream`` response, one by one.

    The filter gets the session and an `Event`, and returns what is to go on: that event, another
    one, several in a list, or None. It may be ``def`` or ``async def``. No event waits for the next
    one. Comments, and blocks without data (which tell an id or a time alone), pass as they are. A
    filter that raises ends the response, as a callback does.

    Content-Length is removed. An encoded stream is refused with 502, never passed unfiltered.

    Attributes:
      apply: The filter.
      factory: Called with the session where a stream begins, returns the filter of that stream
        alone; in place of ``apply``, for filters that remember something.
      max_event_bytes: Size of an event, 65,536 by default; a larger one ends the response.
      ask_identity: Set ``Accept-Encoding: identity`` in requests that ask for a stream of events. No
        module then encodes the stream for the client either; with False the origin is asked as the
        client asked, which is yours to change in `upstream_request_filter`.
    """

    # `EventFilter`, spelt out for the reference.
    apply: Callable[[Session, Event], Event | Iterable[Event] | Awaitable[Any] | None] | None = (
        attrs.field(default=None, validator=_a_filter)
    )
    factory: (
        Callable[
            [Session], Callable[[Session, Event], Event | Iterable[Event] | Awaitable[Any] | None]
        ]
        | None
    ) = attrs.field(default=None, kw_only=True, validator=_a_filter)
    max_event_bytes: int = attrs.field(default=65536, kw_only=True, validator=_a_size)
    ask_identity: bool = attrs.field(default=True, kw_only=True, validator=_a_flag)

    order = 40
    module_type = EventStream

    def __attrs_post_init__(self) -> None:
        if (self.apply is None) is (self.factory is None):
            raise ValueError(
                f"apply={self.apply!r}, factory={self.factory!r}: one of the two is right"
            )

    def init(self) -> EventStream:
        """Return the instance of a new request."""
        return EventStream(self)
