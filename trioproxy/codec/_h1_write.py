"""Write HTTP/1.1 messages (RFC 9112) from values: heads, chunks and their framing. No I/O.

Nothing that was read is copied to the wire: the framing fields and ``Connection`` are made anew
from what this side knows, and whatever a filter left of them in the head is passed over. Names and
values need no check here: `Headers`, `RequestHeader` and `ResponseHeader` refused line ends when
they were set (row H1-30).
"""

from __future__ import annotations

import enum
from http import HTTPStatus

from .._headers import Headers
from .._messages import RequestHeader, ResponseHeader

CRLF = b"\r\n"
LAST_CHUNK = b"0\r\n\r\n"

# What this side decides by itself: never copied from the values (RFC 9110 section 7.6.1).
_MADE_HERE = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    }
)

_MADE_HERE_TOO = _MADE_HERE | {b"content-length"}

_PHRASES: dict[int, bytes] = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_STATUS_LINES: dict[int, bytes] = {
    code: b"HTTP/1.1 %d %s\r\n" % (code, phrase) for code, phrase in _PHRASES.items()
}


class Framing(enum.Enum):
    """How the content of a message being written is delimited (RFC 9112 section 6)."""

    NONE = "no content"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    CLOSE = "until close"
    TUNNEL = "behind a switch of protocols, or a granted CONNECT"


def _fields(headers: Headers, drop: frozenset[bytes]) -> list[bytes]:
    parts: list[bytes] = []
    for name, wire, value in headers.fields:
        if name not in drop:
            parts += (wire, b": ", value, CRLF)
    return parts


def reason_phrase(status: int) -> bytes:
    """Return the standard reason phrase of a status, or nothing."""
    return _PHRASES.get(status, b"")


def declared_length(headers: Headers) -> int | None:
    """Return the Content-Length that a head declares.

    Raises:
      ValueError: the field is not one plain decimal number.
    """
    text: bytes | None = None
    for name, _, value in headers.fields:
        if name == b"content-length":
            if text is not None:
                raise ValueError("Content-Length is set twice")
            text = value
    if text is None:
        return None
    if not text.isdigit():
        raise ValueError(f"Content-Length is not a number: {text[:32]!r}")
    return int(text)


def encode_request_head(head: RequestHeader, framing: Framing) -> bytes:
    """Write a request head.

    Args:
      head: The request; its target is written as it stands.
      framing: `Framing.CHUNKED` adds Transfer-Encoding and drops Content-Length; with
        `Framing.LENGTH` and `Framing.NONE` the head's own Content-Length goes out.
    """
    chunked = framing is Framing.CHUNKED
    parts = [head.method.encode("ascii"), b" ", head.target, b" HTTP/1.1\r\n"]
    parts += _fields(head.headers, _MADE_HERE_TOO if chunked else _MADE_HERE)
    offers = head.offers
    if offers is not None:
        parts.append(b"Connection: upgrade\r\nUpgrade: %s\r\n" % offers)
    parts.append(b"Transfer-Encoding: chunked\r\n\r\n" if chunked else CRLF)
    return b"".join(parts)


def encode_response_head(
    head: ResponseHeader,
    framing: Framing,
    *,
    date: bytes | None,
    connection: bytes | None,
    coding: bool = False,
) -> bytes:
    """Write a response head.

    Args:
      head: The response.
      framing: As in `encode_request_head`; `Framing.CLOSE` drops Content-Length as well, and so
        does `Framing.TUNNEL`, with which a 101 says what it switches to.
      date: The Date to add where the head has none (RFC 9110 section 6.6.1), or None.
      connection: The value of Connection, or None for no such field (1xx).
      coding: Say that the content is chunked, which an answer to HEAD may although it has none.
    """
    status = head.status
    reason = head.reason
    line = _STATUS_LINES.get(status) if reason is None else None
    if line is None:
        line = b"HTTP/1.1 %d %s\r\n" % (status, reason if reason is not None else b"")
    drop = _MADE_HERE
    if (
        framing is Framing.CHUNKED
        or framing is Framing.CLOSE
        or framing is Framing.TUNNEL
        or status < 200
        or status == 204
    ):
        drop = _MADE_HERE_TOO
    parts = [line, *_fields(head.headers, drop)]
    if date is not None and b"date" not in [field[0] for field in head.headers.fields]:
        parts.append(b"Date: %s\r\n" % date)
    if coding or framing is Framing.CHUNKED:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if status == 101:
        parts.append(
            b"Connection: upgrade\r\nUpgrade: %s\r\n" % head.headers.get_bytes(b"upgrade", b"")
        )
    elif connection is not None:
        parts.append(b"Connection: %s\r\n" % connection)
    parts.append(CRLF)
    return b"".join(parts)


def encode_trailers(trailers: Headers) -> bytes:
    """Write the last chunk with its trailer section (RFC 9112 section 7.1.2)."""
    return b"".join((b"0\r\n", *_fields(trailers, _MADE_HERE_TOO), CRLF))
