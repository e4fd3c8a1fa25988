"""Byte ranges (RFC 9110 section 14): which a request gets, the head that says so, and the body."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

import attrs

from .._messages import RequestHeader, ResponseHeader
from ._conditional import refuse, strong_match
from ._dates import parse_date

#: A Range field with this many parts, or more, is ignored.
MAX_RANGES = 200

_PART = re.compile(rb"[ \t]*([0-9]*)-([0-9]*)[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=?]{1,70}")  # RFC 2046 section 5.1.1, no blanks
_FAR = 10**19  # behind the end of any body


@attrs.frozen
class Piece:
    """A slice of a body, and what stands before it in the answer.

    Attributes:
      before: Framing to send first.
      start: The first byte of the slice.
      end: The byte behind its last one.
    """

    before: bytes
    start: int
    end: int


@attrs.frozen
class RangePlan:
    """What an answer consists of: the pieces in order, then the tail.

    Attributes:
      pieces: Ascending slices of the body, none of them empty.
      tail: Framing behind the last piece.
    """

    pieces: tuple[Piece, ...] = ()
    tail: bytes = b""

    @property
    def length(self) -> int:
        """How many bytes the answer has in all."""
        return len(self.tail) + sum(
            len(piece.before) + piece.end - piece.start for piece in self.pieces
        )


@attrs.frozen
class NoRange:
    """The whole body is sent."""


@attrs.frozen
class SingleRange:
    """One slice of the body is sent, with status 206.

    Attributes:
      start: The first byte.
      end: The byte behind the last one.
    """

    start: int
    end: int

    def __attrs_post_init__(self) -> None:
        _check([(self.start, self.end)], None)

    def plan(self) -> RangePlan:
        """Return the one piece."""
        return RangePlan((Piece(b"", self.start, self.end),))


@attrs.frozen
class MultiRange:
    """Several slices of the body are sent as multipart/byteranges, with status 206.

    Attributes:
      parts: The slices, each the first byte and the one behind the last; ascending.
      total: The size of the whole body.
      boundary: What separates the parts.
      content_type: That of the whole body, which each part repeats.
    """

    parts: tuple[tuple[int, int], ...]
    total: int
    boundary: bytes
    content_type: bytes = b"application/octet-stream"

    def __attrs_post_init__(self) -> None:
        _check(self.parts, self.total)
        if not _BOUNDARY.fullmatch(self.boundary):
            raise ValueError(f"{self.boundary!r} is not a boundary (RFC 2046 section 5.1.1)")

    def plan(self) -> RangePlan:
        """Return the pieces with the framing of the parts (RFC 9110 section 14.6)."""
        return RangePlan(tuple(self._pieces()), b"\r\n--%b--\r\n" % self.boundary)

    def _pieces(self) -> Iterator[Piece]:
        common = b"\r\n--%b\r\nContent-Type: %b\r\nContent-Range: " % (
            self.boundary,
            self.content_type,
        )
        for start, end in self.parts:
            yield Piece(
                b"%bbytes %d-%d/%d\r\n\r\n" % (common, start, end - 1, self.total), start, end
            )


@attrs.frozen
class InvalidRange:
    """Nothing of the body is asked for that exists: status 416, no body."""


#: What comes of the Range of a request; Pingora's ``RangeType``.
RangeType = NoRange | SingleRange | MultiRange | InvalidRange


def _check(parts: list[tuple[int, int]] | tuple[tuple[int, int], ...], total: int | None) -> None:
    """Refuse what a filter made up: slices that are empty, do not ascend or leave the body."""
    behind = 0
    for start, end in parts:
        if start < behind or end <= start:
            raise ValueError(
                f"{parts!r} are no ranges: each starts behind the one before, and ends"
            )
        behind = end
    if not parts or (total is not None and behind > total):
        raise ValueError(f"{parts!r} are no ranges of a body of {total} bytes")


def _number(digits: bytes) -> int:
    """Read digits of any number; what no body reaches is cut down."""
    digits = digits.lstrip(b"0")
    return _FAR if len(digits) > 19 else int(digits or b"0")


def _slice(first: bytes, last: bytes, total: int) -> tuple[int, int] | None:
    """Return the slice that one part means, or None where there is none."""
    if first:
        start = _number(first)
        end = min(_number(last) + 1, total) if last else total
    else:
        start = max(total - _number(last), 0) if last else total
        end = total
    return (start, end) if start < end else None


def parse_range(
    value: bytes, total: int, *, max_ranges: int = MAX_RANGES
) -> list[tuple[int, int]] | None:
    """Return the slices that a Range field asks for, ascending; none: 416.

    What does not exist is left out. Returned is None, which is to send the whole body, for another
    unit than bytes, what cannot be read, slices that overlap or do not ascend, and ``max_ranges``
    parts or more.

    Args:
      value: The field.
      total: The size of the body.
      max_ranges: How many parts are too many.
    """
    unit, equals, text = value.partition(b"=")
    if unit.lower() != b"bytes" or not equals:
        return None
    if not text.strip(b" \t"):
        return []
    if text.count(b",") + 1 >= max_ranges:
        return None
    slices: list[tuple[int, int]] = []
    behind = 0
    for part in text.split(b","):
        match = _PART.fullmatch(part)
        if match is None:
            return None
        first, last = match.groups()
        if not total and not first and last.strip(b"0"):
            return None  # the last bytes of nothing: that can be sent, a Content-Range cannot
        found = _slice(first, last, total)
        if found is None:
            continue
        if found[0] < behind:
            return None
        behind = found[1]
        slices.append(found)
    return slices


def _length(response: ResponseHeader) -> int | None:
    fields = response.headers.fields
    values = [value for name, _, value in fields if name == b"content-length"]
    if (
        len(values) != 1
        or not _LENGTH.fullmatch(values[0])
        or b"transfer-encoding" in response.headers
    ):
        return None
    return int(values[0])


def _if_range(request: RequestHeader, response: ResponseHeader) -> bool:
    """Tell whether the client's part belongs to this representation (RFC 9110 section 13.1.5)."""
    values = [value for name, _, value in request.headers.fields if name == b"if-range"]
    if not values:
        return True
    (value, *more) = values
    held = response.headers
    if b'"' in value:
        return not more and strong_match(value, held.get_bytes(b"etag") or b"")
    modified = held.get_bytes(b"last-modified")
    if more or value != modified:
        return False
    # A change in the second in which the response was made does not show in the date: such a date
    # is no strong validator (RFC 9110 section 8.8.2.2).
    changed, made = parse_date(value), parse_date(held.get_bytes(b"date") or b"")
    return changed is not None and (made is None or changed < made)


def range_header(
    request: RequestHeader,
    response: ResponseHeader,
    *,
    max_ranges: int = MAX_RANGES,
    boundary: bytes | None = None,
) -> RangeType:
    """Apply the Range of a request to a response: rewrites the head, tells what to send.

    Pingora's default ``range_header_filter``; conditions are evaluated first
    (`evaluate_conditions`). Only a response of status 200 with a Content-Length, to GET or HEAD, is
    looked at. If-Range holds by a strong entity tag, or by the very text of a Last-Modified that is
    older than the response; else the whole body is sent.

    Args:
      request: The request of the client.
      response: The response that has the whole body; becomes a 206 or a 416, or gets Accept-Ranges.
      max_ranges: How many parts of a Range are too many.
      boundary: That of a multipart answer; None makes one at random.

    Returns:
      What to give to a `RangeSlicer`.
    """
    if response.status != 200 or request.method not in ("GET", "HEAD"):
        return NoRange()
    total = _length(response)
    if total is None:
        return NoRange()
    headers = response.headers
    slices = None
    values = [value for name, _, value in request.headers.fields if name == b"range"]
    # Of HEAD nothing is known to be a part (RFC 9110 section 14.2).
    if request.method == "GET" and len(values) == 1 and _if_range(request, response):
        slices = parse_range(values[0], total, max_ranges=max_ranges)
    if slices is None:
        headers.set(b"Accept-Ranges", b"bytes")
        return NoRange()
    if not slices:
        refuse(response, 416)
        headers.set(b"Content-Range", b"bytes */%d" % total)
        return InvalidRange()
    for name in (b"accept-ranges", b"content-range", b"content-digest", b"content-md5"):
        headers.remove(name)  # the last two are of the whole body
    response.status = 206
    response.reason = None
    response.facts = None
    if len(slices) == 1:
        ((start, end),) = slices
        headers.set(b"Content-Length", b"%d" % (end - start))
        headers.set(b"Content-Range", b"bytes %d-%d/%d" % (start, end - 1, total))
        return SingleRange(start, end)
    multi = MultiRange(
        tuple(slices),
        total,
        secrets.token_hex(8).encode("ascii") if boundary is None else boundary,
        headers.get_bytes(b"content-type") or b"application/octet-stream",
    )
    headers.set(b"Content-Type", b"multipart/byteranges; boundary=" + multi.boundary)
    headers.set(b"Content-Length", b"%d" % multi.plan().length)
    return multi


class RangeSlicer:
    """Cuts the asked slices out of a body that passes by in pieces of any size.

    What lies within a slice is passed on as it came; only at the edges bytes are copied.

    Attributes:
      done: Whether all is out: nothing more of the body is needed. For a whole body it is the end;
        where a body ends before that it was shorter than its head said.
    """

    __slots__ = ("_at", "_begun", "_next", "_plan", "done")

    def __init__(self, range_type: RangeType) -> None:
        self._at = 0  # how much of the body went by
        self._begun = False  # whether the framing of the next piece is out
        self._next = 0
        if isinstance(range_type, (SingleRange, MultiRange)):
            self._plan: RangePlan | None = range_type.plan()
        else:
            self._plan = None
        self.done = isinstance(range_type, InvalidRange)

    def feed(self, data: bytes, end: bool = False) -> list[bytes]:
        """Take the next bytes of the body; return what is to be sent of them, with its framing.

        Args:
          data: The bytes; may be empty.
          end: Whether the body ends with them.
        """
        if self.done:
            return []
        plan = self._plan
        if plan is None:
            self.done = end
            return [data] if data else []
        if not data:
            return []
        at = self._at
        self._at = behind = at + len(data)
        out: list[bytes] = []
        pieces = plan.pieces
        while self._next < len(pieces):
            piece = pieces[self._next]
            if piece.start >= behind:
                return out
            if not self._begun:
                self._begun = True
                if piece.before:
                    out.append(piece.before)
            out.append(data[max(piece.start - at, 0) : piece.end - at])
            if piece.end > behind:
                return out
            self._begun = False
            self._next += 1
        self.done = True
        if plan.tail:
            out.append(plan.tail)
        return out
