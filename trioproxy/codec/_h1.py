"""HTTP/1 as bytes in, events out: heads by a codec, bodies by hand, strictness in front of both.

A reader is fed raw bytes and gives the events of one message at a time. The raw head is searched for
what parsers let pass (bare line ends, controls, folds) before the codec sees it; the codec then gets
exactly one complete head, and nothing else (see `H1Codec`).
"""

from __future__ import annotations

import re

from .._messages import END, Data, RequestEvent, ResponseEvent, ResponseHeader
from ..semantics._framing import (
    MAX_METHOD,
    MessageRefused,
    check_request,
    check_response,
    parse_length,
)
from ..semantics._framing import HeadLimits as HeadLimits
from ._chunked import ChunkedDecoder
from ._h1_codec import H11, H1Codec

#: Informational responses to one request (row U1-06).
MAX_INFORMATIONAL = 32

# All but the controls that no head may have; CR and LF are counted instead.
_FINE = bytes(set(range(256)) - set(range(32)) - {0x7F} | set(b"\t\r\n"))
# Bare LF, bare CR, controls other than HTAB; slow, so that only incomplete heads meet it.
_BAD_PARTIAL = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BLANK_BEFORE_COLON = re.compile(rb"(\r\n[^:\r\n \t]+)[ \t]+:")
_LENGTH = re.compile(rb"\r\ncontent-length:([^\r\n]*)", re.IGNORECASE)
_REQUEST_LINE = re.compile(rb"([^ ]+) ([^ ]+) HTTP/([0-9])\.([0-9])")


class IncompleteMessage(Exception):
    """The other party ended its side in the middle of a message."""


def _unfold(block: bytes) -> bytes:
    """Turn every obs-fold of a response head into one space (row U1-13), in linear time."""
    status_line, *lines = block.split(b"\r\n")
    if lines[0][:1] in (b" ", b"\t"):
        raise MessageRefused(502, "a fold behind the status line")
    parts = [status_line]
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            parts.append(b" ")
            parts.append(line.strip(b" \t"))
        else:
            parts.append(b"\r\n")
            parts.append(line.rstrip(b" \t"))
    return b"".join(parts)


def _clean(block: bytes) -> bool:
    """Tell whether a head has no bare line end and no control; 10 times as fast as a pattern."""
    lines = block.count(b"\r\n")
    return (
        block.count(b"\n") == lines
        and block.count(b"\r") == lines
        and not block.translate(None, _FINE)
    )


def _bad_length(block: bytes) -> bool:
    """Tell whether a head has a Content-Length that says nothing."""
    found = _LENGTH.findall(block)
    return len(found) > 1 or (len(found) == 1 and parse_length(found[0].strip(b" \t")) is None)


class _Reader:
    """The part that both directions share: the buffer, the end of a head, counted bodies."""

    __slots__ = (
        "_chunked",
        "_codec",
        "_limits",
        "_scanned",
        "_state",
        "buffer",
        "length_left",
        "refused",
    )

    def __init__(self, limits: HeadLimits, codec: H1Codec) -> None:
        self._limits = limits
        self._codec = codec
        self.buffer = bytearray()
        self._scanned = 0
        self._state = "head"
        self.length_left = 0
        self._chunked: ChunkedDecoder | None = None
        #: Why nothing more is decoded of the current message, where good events came before the
        #: mistake: `events` returned those, and raises this if it is called again.
        self.refused: MessageRefused | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes that were received; `events` decodes them."""
        self.buffer += data

    @property
    def done(self) -> bool:
        """Whether the current message is complete."""
        return self._state == "done"

    @property
    def in_body(self) -> bool:
        """Whether the head is complete and content is still to come."""
        return self._state in ("length", "chunked", "close", "tunnel")

    @property
    def in_tunnel(self) -> bool:
        """Whether the connection has switched protocols: all bytes are content from then on."""
        return self._state == "tunnel"

    @property
    def leftover(self) -> int:
        """Bytes held that lie behind the current message's end."""
        return len(self.buffer) if self._state == "done" else 0

    def _take_head(self, status: int) -> bytes | None:
        """Take one whole head off the buffer, or None; what is bad is refused at once."""
        buffer = self.buffer
        start = max(0, self._scanned - 3)
        end = buffer.find(b"\r\n\r\n", start)
        limit = self._limits.max_bytes
        if end < 0:
            match = _BAD_PARTIAL.search(buffer, start)
            if match is not None:
                raise MessageRefused(status, "a bare line end or a control in the head")
            if len(buffer) > limit:
                raise MessageRefused(431 if status == 400 else 502, "the head is too large")
            self._scanned = len(buffer)
            return None
        if end + 4 > limit:
            raise MessageRefused(431 if status == 400 else 502, "the head is too large")
        block = bytes(buffer[: end + 4])
        if not _clean(block) or (status == 400 and (b"\r\n " in block or b"\r\n\t" in block)):
            raise MessageRefused(status, "a bare line end, a fold or a control in the head")
        del buffer[: end + 4]
        self._scanned = 0
        return block

    def _take_length(self) -> Data | None:
        """Take content that is counted by its Content-Length, without a copy where possible."""
        buffer = self.buffer
        size = len(buffer)
        if not size:
            return None
        left = self.length_left
        if size <= left:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:left])
            del buffer[:left]
        self.length_left = left = left - len(data)
        if not left:
            self._state = "done"
        return Data(data, not left)


class RequestReader(_Reader):
    """The server's side: one request after the other."""

    __slots__ = ("_blank_lines", "_body_bytes", "_direct", "_line_seen", "_max_body", "_scheme")

    def __init__(
        self,
        limits: HeadLimits,
        scheme: str = "http",
        max_body_bytes: int | None = None,
        codec: H1Codec = H11,
    ) -> None:
        """Start before the first request.

        Args:
          limits: Bounds on heads.
          scheme: ``"https"`` where the connection is TLS.
          max_body_bytes: Bound on content (row R-03), or None.
          codec: Parses the heads.
        """
        super().__init__(limits, codec)
        self._scheme = scheme
        self._max_body = max_body_bytes
        self._body_bytes = 0
        self._blank_lines = 0
        self._line_seen = False
        self._direct: Data | None = None

    @property
    def started(self) -> bool:
        """Whether any byte of the current head was seen."""
        return self._state == "head" and bool(self.buffer or self._blank_lines)

    def feed(self, data: bytes) -> None:
        """Take bytes; content of a counted body is passed on as the object it came in."""
        if self._direct is not None:  # two feeds without events(): join them again
            self.buffer += self._direct.data
            self.length_left += len(self._direct.data)
            self._state = "length"
            self._direct = None
        elif self._state == "length" and not self.buffer and len(data) <= self.length_left:
            self.length_left -= len(data)
            if not self.length_left:
                self._state = "last"
            self._direct = Data(data, not self.length_left)
            return
        self.buffer += data

    def events(self) -> list[RequestEvent]:
        """Return everything decodable of the current message, in order.

        Raises:
          MessageRefused: the request is refused. What came before the mistake is lost where the
            head is among it, as nobody has seen anything of the request then; else it was returned
            by the call before, which left the refusal in `refused`.
        """
        if self._direct is not None:
            event, self._direct = self._direct, None
            if self._state == "last":
                self._state = "done"
            self._count(event)
            return [event]
        state = self._state
        if state == "head":
            return self._head()
        if state == "length":
            data = self._take_length()
            if data is None:
                return []
            self._count(data)
            return [data]
        if state == "chunked":
            return self._chunks()
        if state == "tunnel" and self.buffer:
            return [Data(self.take_leftover())]
        return []

    def start_tunnel(self) -> None:
        """Open the tunnel: a 101 was sent, or a 2xx to CONNECT; what is behind the head is raw.

        Bytes held back until now come out as content (rows H1-24, H1-26).
        """
        self._state = "tunnel"
        self._chunked = None

    def _count(self, data: Data) -> None:
        self._body_bytes += len(data.data)
        if self._max_body is not None and self._body_bytes > self._max_body:
            raise MessageRefused(413, "the request's content is too large")

    def _chunks(self) -> list[RequestEvent]:
        decoder = self._chunked
        assert decoder is not None
        events: list[RequestEvent] = list(decoder.decode(self.buffer))
        for event in events:
            if type(event) is Data:
                self._count(event)
        self.refused = decoder.refused
        if decoder.done:
            self._state = "done"
        return events

    def _head(self) -> list[RequestEvent]:
        buffer = self.buffer
        while buffer[:1] == b"\r" or buffer[:1] == b"\n":
            if buffer[0] == 10 or (len(buffer) > 1 and buffer[1] != 10):
                raise MessageRefused(400, "a bare line end before the request line")
            if len(buffer) < 2:
                return []
            self._blank_lines += 1
            if self._blank_lines > 2:
                raise MessageRefused(400, "empty lines before the request line")
            del buffer[:2]
            self._scanned = 0
        if not buffer:
            return []
        if not self._line_seen:
            self._check_line()
        block = self._take_head(400)
        if block is None:
            return []
        if block.count(b"\r\n") - 2 > self._limits.max_fields:
            raise MessageRefused(431, "too many header fields")
        method, target, version, fields = self._codec.parse_request_head(block)
        head = check_request(method, target, version, fields, self._limits, scheme=self._scheme)
        facts = head.facts
        assert facts is not None
        if facts.chunked:
            self._state = "chunked"
            self._chunked = ChunkedDecoder(400, facts.nominated)
            events = [head, *self._chunks()]
            if self.refused is not None:
                raise self.refused
            return events
        if facts.content_length:
            if self._max_body is not None and facts.content_length > self._max_body:
                raise MessageRefused(413, "the request's content is too large")
            self.length_left = facts.content_length
            self._state = "length"
            data = self._take_length()
            return [head] if data is None else [head, data]
        self._state = "done"
        return [head, END]

    def _check_line(self) -> None:
        """Look at the request line as soon as it is whole, or can no longer become one.

        That is before the rest of the head came (rows H1-13, H1-14, H1-35, R-02), so that the
        verdict is the same however the head was cut into reads.
        """
        buffer = self.buffer
        limit = self._limits.max_target_bytes
        if not self._scanned:
            if buffer[0] == 0x16:
                raise MessageRefused(400, "a TLS handshake on a cleartext port", silent=True)
            if buffer[0] in b" \t":
                raise MessageRefused(400, "malformed request line")
        end = buffer.find(b"\r\n", max(0, self._scanned - 1))
        if end < 0:
            if len(buffer) > limit + MAX_METHOD + len(" HTTP/1.1\r\n") + 1:
                raise self._bad_line(bytes(buffer))
            return
        match = _REQUEST_LINE.fullmatch(buffer, 0, end)
        if match is None or end > limit + MAX_METHOD + 10:
            raise self._bad_line(bytes(buffer[:end]))
        start, stop = match.span(2)
        if stop - start > limit:
            raise MessageRefused(414, "the request target is too long")
        if match[3] != b"1" or match[4] not in b"01":
            raise MessageRefused(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
        self._line_seen = True

    def _bad_line(self, line: bytes) -> MessageRefused:
        method, _, rest = line.partition(b" ")
        target = rest.partition(b" ")[0]
        if len(method) <= MAX_METHOD and len(target) > self._limits.max_target_bytes:
            return MessageRefused(414, "the request target is too long")
        return MessageRefused(400, "malformed request line")

    def next_message(self) -> None:
        """Go on to the next request; the current one must be done."""
        if self._state != "done":
            raise RuntimeError("the current request is not complete")
        self._state = "head"
        self._scanned = 0
        self._line_seen = False
        self._blank_lines = 0
        self._body_bytes = 0
        self._chunked = None

    def take_leftover(self) -> bytes:
        """Take the bytes that lie behind the current message."""
        data = bytes(self.buffer)
        self.buffer.clear()
        return data


class ResponseReader(_Reader):
    """The client's side: the response to one request after the other."""

    __slots__ = ("_direct", "_informational", "_method", "_offers", "keep_alive")

    def __init__(self, limits: HeadLimits, codec: H1Codec = H11) -> None:
        """Start idle: bytes that come before `expect` are never parsed.

        Args:
          limits: Bounds on heads.
          codec: Parses the heads.
        """
        super().__init__(limits, codec)
        self._state = "done"
        self._method = "GET"
        self._offers: tuple[bytes, ...] = ()
        self._informational = 0
        self._direct: Data | None = None
        #: Whether the response allows another exchange on its connection.
        self.keep_alive = True

    def expect(self, method: str, offers: tuple[bytes, ...] = ()) -> None:
        """Start the response to a request.

        Args:
          method: The request's method.
          offers: The protocols that it offered to switch to.
        """
        if self._state != "done":
            raise RuntimeError("the current response is not complete")
        self._method = method
        self._offers = offers
        self._state = "head"
        self._scanned = 0
        self._informational = 0
        self._chunked = None
        self.keep_alive = True

    @property
    def waiting_head_started(self) -> bool:
        """Whether any byte of the response was seen while its head is not complete."""
        return self._state == "head" and bool(self.buffer or self._informational)

    def feed(self, data: bytes) -> None:
        """Take bytes; content is passed on as the object it came in where that is possible."""
        state = self._state
        if self._direct is None and not self.buffer:
            if state == "length" and len(data) <= self.length_left:
                self.length_left -= len(data)
                if not self.length_left:
                    self._state = "last"
                self._direct = Data(data, not self.length_left)
                return
            if state in ("close", "tunnel"):
                self._direct = Data(data)
                return
        elif self._direct is not None:  # two feeds without events(): join them again
            self.buffer += self._direct.data
            if state in ("length", "last"):
                self.length_left += len(self._direct.data)
                self._state = "length"
            self._direct = None
        self.buffer += data

    def events(self) -> list[ResponseEvent]:
        """Return everything decodable of the current response, in order.

        Raises:
          MessageRefused: 502, the response cannot be trusted. What came before the mistake was
            returned by the call before, which left the refusal in `refused`.
        """
        if self._direct is not None:
            direct, self._direct = self._direct, None
            if self._state == "last":
                self._state = "done"
            return [direct]
        events: list[ResponseEvent] = []
        while self._state == "head":
            head = self._head()
            if head is None:
                return events
            events.append(head)
        state = self._state
        if state == "length":
            data = self._take_length()
            if data is not None:
                events.append(data)
        elif state == "chunked":
            decoder = self._chunked
            assert decoder is not None
            try:
                events += decoder.decode(self.buffer)
                self.refused = decoder.refused
            except MessageRefused as exc:
                if not events:
                    raise
                self.refused = exc
            if decoder.done:
                self._state = "done"
        elif state in ("close", "tunnel") and self.buffer:
            events.append(Data(bytes(self.buffer)))
            self.buffer.clear()
        elif state == "done" and events:
            events.append(END)
        return events

    def _head(self) -> ResponseHeader | None:
        if self.buffer and self.buffer[0] in b"\r\n":
            raise MessageRefused(502, "an empty line before the status line")
        block = self._take_head(502)
        if block is None:
            return None
        if b" :" in block or b"\t:" in block:
            block = _BLANK_BEFORE_COLON.sub(rb"\1:", block)
        if b"\r\n " in block or b"\r\n\t" in block:
            block = _unfold(block)
        if block.count(b"\r\n") - 2 > self._limits.max_fields:
            raise MessageRefused(502, "the response has too many header fields")
        without_length = self._limits.allow_invalid_length and _bad_length(block)
        if without_length:
            block = _LENGTH.sub(b"", block)
        status, reason, version, fields = self._codec.parse_response_head(block)
        head = check_response(status, reason, version, fields, self._limits, self._method)
        facts = head.facts
        assert facts is not None
        if without_length:
            facts.poisoned = True
        if status < 200:
            if status == 101:
                self._switch(head)
                return head
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise MessageRefused(502, "too many informational responses")
            return head
        self.keep_alive = not (
            facts.close
            or facts.poisoned
            or facts.until_close
            or (version == b"1.0" and not facts.keep_alive)
        )
        if not facts.has_body:
            self._state = "done"
        elif facts.chunked:
            self._state = "chunked"
            self._chunked = ChunkedDecoder(502, facts.nominated)
        elif facts.content_length is not None:
            self._state = "length"
            self.length_left = facts.content_length
        else:
            self._state = "close"
        return head

    def _switch(self, head: ResponseHeader) -> None:
        """Switch protocols, where the client offered to (row U1-07)."""
        offers = [offer.lower() for offer in self._offers]
        chosen = [
            each.strip().lower().encode("latin-1")
            for value in head.headers.get_all(b"upgrade")
            for each in value.split(",")
        ]
        if not chosen or not all(each in offers for each in chosen):
            raise MessageRefused(502, "the origin switches to a protocol that was not offered")
        self._state = "tunnel"
        self.keep_alive = False

    def eof(self) -> list[ResponseEvent]:
        """Take the end of input: a body that ends with the connection is whole.

        Raises:
          IncompleteMessage: the response was cut.
        """
        if self._state in ("close", "tunnel"):
            self._state = "done"
            return [END]
        if self._state == "done":
            return []
        raise IncompleteMessage(
            "in the middle of a response's content" if self.in_body else "before a whole response"
        )
