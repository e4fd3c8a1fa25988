"""HTTP/1 heads by h11; no other module imports it.

h11 gets exactly one complete head through a connection of its own, and nothing else. What it would
smooth over before the validator sees it (a repeated Content-Length, a list of one) is looked for in
the raw head first; folds, bare line ends and controls were refused before.
"""

from __future__ import annotations

import re

import h11

from .._headers import Field
from ..semantics._framing import MessageRefused, check_request_framing

# What h11 is told was asked, so that it takes informational responses and a 101 as well.
_ASKED = h11.Request(
    method="GET",
    target="/",
    headers=[("Host", "x"), ("Connection", "upgrade"), ("Upgrade", "any")],
)
_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):([^\r\n]*)", re.IGNORECASE)


def _fields(event: h11.Request | h11.Response | h11.InformationalResponse) -> list[Field]:
    headers = event.headers
    return [
        (name, raw, value)
        for (name, value), (raw, _) in zip(headers, headers.raw_items(), strict=True)
    ]


def _framing(found: list[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    """Return the raw values of Content-Length and of Transfer-Encoding."""
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in found:
        (lengths if len(name) == 14 else codings).append(value.strip(b" \t"))
    return lengths, codings


def parse_request_head(block: bytes) -> tuple[bytes, bytes, bytes, list[Field]]:
    """Return method, target, version and fields of one complete head, by h11.

    Raises:
      MessageRefused: 400, it is not one; 501, its transfer coding is not known.
    """
    found = _FRAMING.findall(block)
    if found:
        line = block[: block.index(b"\r\n")]
        check_request_framing(*_framing(found), old=line.endswith(b"HTTP/1.0"))
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(block) + 1)
    try:
        connection.receive_data(block)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        raise MessageRefused(400, "malformed request") from None
    if type(event) is not h11.Request:
        raise MessageRefused(400, "malformed request")
    return event.method, event.target, event.http_version, _fields(event)


def parse_response_head(block: bytes) -> tuple[int, bytes, bytes, list[Field]]:
    """Return status, reason, version and fields of one complete head, by h11.

    Raises:
      MessageRefused: 502, it is not one.
    """
    found = _FRAMING.findall(block)
    if found:
        if block[9:10] == b"1":  # framing fields in a 1xx mean nothing, whatever they say (U1-06)
            block = _FRAMING.sub(b"", block)
        else:
            lengths, _ = _framing(found)
            if len(lengths) > 1 or (lengths and b"," in lengths[0]):
                raise MessageRefused(502, "the response has a malformed Content-Length")
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(block) + 1)
    try:
        if block[9:10] == b"1":  # h11 takes a 1xx only as the answer to a request
            connection.send(_ASKED)
        connection.receive_data(block)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        raise MessageRefused(502, "the response is malformed") from None
    if type(event) is not h11.Response and type(event) is not h11.InformationalResponse:
        raise MessageRefused(502, "the response is malformed")
    return event.status_code, event.reason, event.http_version, _fields(event)
