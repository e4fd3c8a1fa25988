"""HTTP/1 heads by h11; no other module imports it.

A head is cut into its lines here, which is safe because folds, bare line ends and controls were
refused before, and h11 checks the event that is made of them: that costs a third of what its buffer
and its state machine for one whole connection do. What it would smooth over before the validator
sees it (a repeated Content-Length, a list of one) is looked for in the raw head first.
"""

from __future__ import annotations

import re

import h11

from .._headers import Field
from ..semantics._framing import MessageRefused, check_request_framing

_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):([^\r\n]*)", re.IGNORECASE)
_HOST = re.compile(rb"\r\nhost:", re.IGNORECASE)
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])\r\n"
)
_STATUS_LINE = re.compile(rb"HTTP/([0-9]\.[0-9]) ([0-9]{3})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")


def _fields(event: h11.Request | h11.Response | h11.InformationalResponse) -> list[Field]:
    # h11's own iteration over its fields costs three times as much.
    return [(raw.lower(), raw, value) for raw, value in event.headers.raw_items()]


def _lines(block: bytes, start: int) -> list[tuple[bytes, bytes]]:
    """Split the field lines; `ValueError` where one has no colon."""
    fields: list[tuple[bytes, bytes]] = []
    for line in block[start:-4].split(b"\r\n") if len(block) - start > 2 else ():
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError("a field line without a colon")
        fields.append((name, value.strip(b" \t")))
    return fields


def _framing(found: list[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    """Return the raw values of Content-Length and of Transfer-Encoding."""
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in found:
        (lengths if len(name) == 14 else codings).append(value.strip(b" \t"))
    return lengths, codings


def _why(block: bytes, version: bytes) -> str:
    """Return what h11 found wrong, in the words of the validator, which never got to see it."""
    hosts = len(_HOST.findall(block))
    if hosts > 1:
        return "more than one Host field"
    return "malformed request" if hosts or version != b"1.1" else "no Host field"


def parse_request_head(block: bytes) -> tuple[bytes, bytes, bytes, list[Field]]:
    """Return method, target, version and fields of one complete head, by h11.

    Raises:
      MessageRefused: 400, it is not one; 501, its transfer coding is not known.
    """
    found = _FRAMING.findall(block)
    if found:
        line = block[: block.index(b"\r\n")]
        check_request_framing(*_framing(found), old=line.endswith(b"HTTP/1.0"))
    match = _REQUEST_LINE.match(block)
    if match is None:
        raise MessageRefused(400, "malformed request")
    method, target, version = match.groups()
    try:
        event = h11.Request(
            method=method, target=target, headers=_lines(block, match.end()), http_version=version
        )
    except (h11.ProtocolError, ValueError):
        raise MessageRefused(400, _why(block, version)) from None
    return method, target, version, _fields(event)


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
    match = _STATUS_LINE.match(block)
    if match is None:
        raise MessageRefused(502, "the response is malformed")
    version, digits, reason = match.groups(b"")
    kind = h11.InformationalResponse if digits[:1] == b"1" else h11.Response
    try:
        event = kind(
            status_code=int(digits),
            headers=_lines(block, match.end()),
            http_version=version,
            reason=reason,
        )
    except (h11.ProtocolError, ValueError):
        raise MessageRefused(502, "the response is malformed") from None
    return event.status_code, reason, version, _fields(event)
