"""Conditional requests answered from a response that we hold (RFC 9110 section 13, RFC 9111 4.3)."""

from __future__ import annotations

import re
from typing import Literal

from .._headers import Headers
from .._messages import RequestHeader, ResponseHeader
from ._dates import parse_date

# An entity tag, or whatever else stands between two commas: some clients leave the quotes out.
_TAG = re.compile(rb'(?:W/)?"[^"]*"|[^ \t,][^,]*')

#: What a request must not carry upstream when its response is to fill the cache (row C-06).
CONDITIONS = frozenset(
    b"if-match if-none-match if-modified-since if-unmodified-since if-range range".split()
)
# What describes content that is not sent.
_OF_CONTENT = frozenset(
    b"content-length content-type content-encoding content-range content-digest content-md5 "
    b"transfer-encoding accept-ranges".split()
)


def weak_match(one: bytes, other: bytes) -> bool:
    """Compare two entity tags weakly (RFC 9110 section 8.8.3.2)."""
    return one.removeprefix(b"W/") == other.removeprefix(b"W/")


def strong_match(one: bytes, other: bytes) -> bool:
    """Compare two entity tags strongly: a weak one equals none (RFC 9110 section 8.8.3.2)."""
    return one == other and not one.startswith(b"W/")


def entity_tags(value: bytes) -> list[bytes]:
    """Return the tags of a list as they stand there, ``W/`` and quotes included.

    A comma inside quotes belongs to its tag. What has no quotes is taken up to the next comma, as
    servers that send such an ETag expect it back.
    """
    return [match[0].rstrip(b" \t") for match in _TAG.finditer(value)]


def _joined(headers: Headers, name: bytes) -> bytes | None:
    values = [value for key, _, value in headers.fields if key == name]
    return b", ".join(values) if values else None


def _date(headers: Headers, name: bytes) -> float | None:
    """Return a field's date; None where it is missing, repeated (a list is no date) or broken."""
    value = _joined(headers, name)
    return None if value is None else parse_date(value)


def _listed(value: bytes, etag: bytes | None, *, weak: bool) -> bool:
    """Tell whether a list, or ``*``, takes in the representation that exists."""
    if value == b"*":
        return True
    if not etag:
        return False
    match = weak_match if weak else strong_match
    return any(match(tag, etag) for tag in entity_tags(value))


def _changed_by(headers: Headers, received: float | None) -> float | None:
    """Return when a representation was changed at the latest (RFC 9111 section 4.3.2)."""
    if b"last-modified" in headers:
        return _date(headers, b"last-modified")
    date = _date(headers, b"date")
    return received if date is None else date


def evaluate_conditions(
    request: RequestHeader, response: ResponseHeader, *, received: float | None = None
) -> Literal[304, 412] | None:
    """Tell what the conditions of a request make of the response that it would get.

    In the order of RFC 9110 section 13.2.2: If-Match (strong), else If-Unmodified-Since; then
    If-None-Match (weak), else If-Modified-Since. A date that is broken or repeated is ignored. Only
    a response of status 200 to GET or HEAD is looked at; If-Range is for `range_header`.

    Args:
      request: The request of the client.
      response: The stored or fetched response, unchanged.
      received: When it came, in seconds since the epoch, for a response that has neither
        Last-Modified nor Date.

    Returns:
      304 (see `not_modified`), 412 (see `precondition_failed`), or None to send the response.
    """
    if response.status != 200 or request.method not in ("GET", "HEAD"):
        return None
    asked, held = request.headers, response.headers
    for field in asked.fields:
        if field[0].startswith(b"if-"):
            break
    else:  # most requests have none, and this is on the way of every hit
        return None
    etag = held.get_bytes(b"etag")
    tags = _joined(asked, b"if-match")
    if tags is not None:
        if not _listed(tags, etag, weak=False):
            return 412
    else:
        since = _date(asked, b"if-unmodified-since")
        if since is not None:
            changed = _date(held, b"last-modified")
            if changed is not None and changed > since:
                return 412
    tags = _joined(asked, b"if-none-match")
    if tags is not None:
        return 304 if _listed(tags, etag, weak=True) else None
    since = _date(asked, b"if-modified-since")
    if since is not None:
        changed = _changed_by(held, received)
        if changed is not None and changed <= since:
            return 304
    return None


def not_modified(response: ResponseHeader) -> None:
    """Make a response a 304, in place: the fields that describe its content go.

    Pingora's ``to_304``; RFC 9110 section 15.4.5. No body may follow.
    """
    headers = response.headers
    headers.fields = [field for field in headers.fields if field[0] not in _OF_CONTENT]
    response.status = 304
    response.reason = None
    response.facts = None


def refuse(response: ResponseHeader, status: int) -> None:
    """Make a response an empty one of another status, in place, that no cache keeps.

    The freshness was that of the representation: kept, it would let a cache on the way answer
    others with this refusal.
    """
    headers = response.headers
    headers.fields = [
        field
        for field in headers.fields
        if field[0] not in _OF_CONTENT
        and field[0] != b"expires"
        and not field[0].endswith(b"cache-control")
    ]
    headers.set(b"Content-Length", b"0")
    headers.set(b"Cache-Control", b"no-store")
    response.status = status
    response.reason = None
    response.facts = None


def precondition_failed(response: ResponseHeader) -> None:
    """Make a response a 412 without content, in place; no cache keeps it."""
    refuse(response, 412)


def fill_request(request: RequestHeader, stored: ResponseHeader | None = None) -> None:
    """Make a request one whose response can fill the cache, or refresh what is there, in place.

    HEAD becomes GET, and the client's conditions and ranges go (row C-06). Where a stored response
    is given its Last-Modified and ETag become If-Modified-Since and If-None-Match (RFC 9111 section
    4.3.1).
    """
    if request.method == "HEAD":
        request.method = "GET"
    headers = request.headers
    headers.fields = [field for field in headers.fields if field[0] not in CONDITIONS]
    if stored is None:
        return
    for validator, condition in (
        (b"last-modified", b"If-Modified-Since"),
        (b"etag", b"If-None-Match"),
    ):
        value = stored.headers.get_bytes(validator)
        if value:
            headers.add(condition, value)
