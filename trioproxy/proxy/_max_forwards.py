"""Max-Forwards: how far OPTIONS and TRACE may go (RFC 9110 section 7.6.2, row H1-34)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._messages import RequestHeader, ResponseHeader

if TYPE_CHECKING:
    from ._session import Session

METHODS = frozenset({"OPTIONS", "TRACE"})
# What a TRACE must not show to whoever made it (RFC 9110 section 9.3.8).
_SENSITIVE = (b"authorization", b"cookie", b"proxy-authorization")


def forwards_left(request: RequestHeader) -> int | None:
    """Return the number in Max-Forwards, None where there is none or it is no number."""
    text = request.headers.get_bytes(b"max-forwards")
    return int(text) if text is not None and text.isdigit() and len(text) < 10 else None


def count_down(request: RequestHeader) -> None:
    """Lower the number in a request that goes on."""
    left = forwards_left(request)
    if left:
        request.headers.set(b"Max-Forwards", b"%d" % (left - 1))


async def answer_as_last(session: Session) -> None:
    """Answer a request that may go no further: an empty 200, or the request itself for TRACE."""
    request = session.req_header()
    if request.method != "TRACE":
        await session.write_response_header(ResponseHeader(200, {"Content-Length": "0"}), True)
        return
    lines = [b"TRACE %s HTTP/1.1" % request.target]
    lines += [
        b"%s: %s" % (raw, value)
        for name, raw, value in request.headers.fields
        if name not in _SENSITIVE
    ]
    body = b"\r\n".join([*lines, b"", b""])
    fields = {"Content-Type": "message/http", "Content-Length": str(len(body))}
    await session.write_response_header(ResponseHeader(200, fields), False)
    await session.write_response_body(body, True)
