"""The chunked coding (RFC 9112 section 7.1), read strictly: rows H1-06 to H1-09 and H1-20.

Our own parser, as the rules above need the raw line of every chunk before anybody else sees it, and
as every HTTP/1 parser can then be fed heads alone. The tests hold it against h11's.
"""

from __future__ import annotations

import re

from .._headers import Field, Headers
from .._messages import END, Data, End, Trailers
from ..semantics._framing import MessageRefused

#: One chunk-size line, or one trailer line.
MAX_LINE = 4096
#: Framing bytes (sizes, extensions, line ends) over one body that carry no content.
MAX_OVERHEAD = 16384
MAX_TRAILER_BYTES = 8192
MAX_TRAILER_FIELDS = 32

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_SIZE = re.compile(
    # No blank before a semicolon (row H1-06), though RFC 9112 section 7.1.1 lets one through.
    rb"([0-9A-Fa-f]+)(?:;[ \t]*"
    + _TOKEN
    + rb"(?:[ \t]*=[ \t]*(?:"
    + _TOKEN
    + rb"|"
    + _QUOTED
    + rb"))?)*"
)
# Chunks of fewer than 16 bytes, which are almost nothing but framing: a flood of them, taken line by
# line, would keep everybody else waiting.
_SMALL = re.compile(
    rb"|".join(rb"(?:%x|%X)\r\n.{%d}\r\n" % (size, size, size) for size in range(1, 16)), re.DOTALL
)
_SMALL_RUN = re.compile(rb"(?:" + _SMALL.pattern + rb")++", re.DOTALL)
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t \x21-\x7e\x80-\xff]*)")


class ChunkedDecoder:
    """Takes chunked bytes out of a buffer and gives events."""

    __slots__ = (
        "_fields",
        "_left",
        "_nominated",
        "_overhead",
        "_pieces",
        "_state",
        "_status",
        "_trailer_bytes",
        "done",
        "refused",
    )

    def __init__(self, status: int = 400, nominated: tuple[bytes, ...] = ()) -> None:
        """Start before the first chunk.

        Args:
          status: What a refusal carries: 400 for a request, 502 for a response.
          nominated: Lower-case names of fields that Connection takes away, out of the trailers too
            (RFC 9110 section 7.6.1).
        """
        self._status = status
        self._nominated = nominated
        self._state = "size"
        self._left = 0
        self._overhead = 0
        self._fields: list[Field] = []
        self._trailer_bytes = 0
        # Content found by the call that runs: many small chunks make one event, or each byte of
        # them would cost an object in the session's queue (row R-07).
        self._pieces: list[bytes] = []
        self.done = False
        #: The mistake behind the events of the last call, which the next call raises.
        self.refused: MessageRefused | None = None

    def _refuse(self, text: str) -> MessageRefused:
        return MessageRefused(self._status, text)

    def _line(self, buffer: bytearray) -> bytes | None:
        """Take one line that ends in exactly CRLF, or None where it is not whole yet."""
        end = buffer.find(b"\n", 0, MAX_LINE + 2)
        if end < 0:
            if len(buffer) > MAX_LINE + 1:
                raise self._refuse("a line of the chunked body is too long")
            bare = buffer.find(b"\r")
            if 0 <= bare < len(buffer) - 1:
                raise self._refuse("a bare CR in the chunked body")
            return None
        if end == 0 or buffer[end - 1] != 13:
            raise self._refuse("a bare LF in the chunked body")
        line = bytes(buffer[: end - 1])
        del buffer[: end + 1]
        return line

    def decode(self, buffer: bytearray) -> list[Data | Trailers | End]:
        """Take what can be decoded out of the buffer, up to the message's end.

        Raises:
          MessageRefused: the coding is broken. Where good content comes before the mistake, that is
            returned, the refusal is left in `refused`, and the next call raises it.
        """
        if self.refused is not None:
            raise self.refused
        events: list[Data | Trailers | End] = []
        pieces = self._pieces = []
        try:
            while self._step(buffer, events):
                pass
        except MessageRefused as exc:
            self.refused = exc
            if not pieces:
                raise
        if pieces:
            events.insert(0, Data(pieces[0] if len(pieces) == 1 else b"".join(pieces)))
        return events

    def _step(self, buffer: bytearray, events: list[Data | Trailers | End]) -> bool:
        state = self._state
        if state == "data":
            size = len(buffer)
            if not size:
                return False
            if size <= self._left:
                self._pieces.append(bytes(buffer))
                buffer.clear()
                self._left -= size
            else:
                self._pieces.append(bytes(memoryview(buffer)[: self._left]))
                del buffer[: self._left]
                self._left = 0
            if not self._left:
                self._state = "data end"
            return bool(buffer)
        if state == "data end":
            if (buffer and buffer[0] != 13) or (len(buffer) > 1 and buffer[1] != 10):
                raise self._refuse("chunk data does not end where its size says")
            if len(buffer) < 2:
                return False
            del buffer[:2]
            self._state = "size"
            return True
        if state == "size":
            self._take_small(buffer)
            self._peek_size(buffer)
            line = self._line(buffer)
            if line is None:
                return False
            self._start_chunk(line)
            return True
        return self._trailer(buffer, events)

    def _take_small(self, buffer: bytearray) -> None:
        """Take the small chunks that the buffer begins with, as far as they are whole and right."""
        run = _SMALL_RUN.match(buffer)
        if run is not None:
            taken = run[0]
            self._pieces += [taken[at.start() + 3 : at.end() - 2] for at in _SMALL.finditer(taken)]
            del buffer[: len(taken)]

    def _peek_size(self, buffer: bytearray) -> None:
        """Refuse a line that cannot become a size before it is whole."""
        if buffer and buffer[0] not in b"0123456789abcdefABCDEF":
            raise self._refuse("malformed chunk size")

    def _start_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise self._refuse("malformed chunk size or extension")
        digits = match[1].lstrip(b"0")
        if len(digits) > 16 or (size := int(digits or b"0", 16)) > 2**63 - 1:
            raise self._refuse("a chunk is too large")
        self._overhead += len(line) - len(digits)
        if self._overhead > MAX_OVERHEAD:
            raise self._refuse("too many framing bytes in the chunked body")
        self._left = size
        self._state = "data" if size else "trailers"

    def _trailer(self, buffer: bytearray, events: list[Data | Trailers | End]) -> bool:
        before = len(buffer)
        line = self._line(buffer)
        if line is None:
            if self._trailer_bytes + before > MAX_TRAILER_BYTES:
                raise self._refuse("the trailer section is too large")
            return False
        self._trailer_bytes += before - len(buffer)
        if not line:
            fields = self._fields
            if fields and self._nominated:
                nominated = frozenset(self._nominated)
                fields = [field for field in fields if field[0] not in nominated]
            if fields:
                events.append(Trailers(Headers.trusted(fields)))
            events.append(END)
            self.done = True
            return False
        match = _FIELD.fullmatch(line)
        if match is None:
            raise self._refuse("malformed trailer field")
        name = match[1]
        self._fields.append((name.lower(), name, match[2].strip(b" \t")))
        if len(self._fields) > MAX_TRAILER_FIELDS or self._trailer_bytes > MAX_TRAILER_BYTES:
            raise self._refuse("the trailer section is too large")
        return True
