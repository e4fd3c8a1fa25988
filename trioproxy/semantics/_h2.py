"""HTTP/2 field lists to message heads and back (RFC 9113 section 8), with the verdicts of HTTP/1.

What section 8.1.1 calls malformed is `MalformedMessage`: the stream is reset, and nobody is told.
What is well formed and yet not taken is `MessageRefused`, as over HTTP/1: it has a status to answer.
A head that was read here looks like one of HTTP/1: Host first, cookies in one field, an extended
CONNECT as a request that offers to switch protocols.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Final

from .._headers import Field, Headers
from .._messages import RequestFacts, RequestHeader, ResponseFacts, ResponseHeader
from ._framing import (
    BAD_TARGET,
    HOP_BY_HOP,
    MAX_METHOD,
    TOKEN,
    HeadLimits,
    MessageRefused,
    check_underscore,
    parse_length,
    take_connect,
    valid_host,
)

#: A name and a value as HTTP/2 has them.
Pair = tuple[bytes, bytes]

MAX_TRAILER_BYTES = 8192
MAX_TRAILER_FIELDS = 32
#: What each field costs beyond its name and value (RFC 9113 section 6.5.2).
FIELD_OVERHEAD = 32

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_STATUS = re.compile(rb"[1-9][0-9][0-9]")
_PORT = re.compile(rb":[0-9]+\Z")
# All but the controls that no value may have; removing them in one go is faster than a pattern.
_FINE = bytes(set(range(256)) - set(range(32)) - {0x7F} | {0x09})
_FORBIDDEN = frozenset(b"connection keep-alive proxy-connection transfer-encoding upgrade".split())
_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority", b":protocol"})
# Names that need no look at their bytes, nor at what they mean: nearly all that come.
_PLAIN: Final = frozenset(
    b"accept accept-charset accept-encoding accept-language accept-ranges access-control-allow-origin "
    b"access-control-allow-credentials access-control-allow-headers access-control-allow-methods "
    b"access-control-expose-headers access-control-max-age access-control-request-headers "
    b"access-control-request-method age allow alt-svc authorization cache-control "
    b"content-disposition content-encoding content-language content-location content-range "
    b"content-security-policy content-type date dnt etag expires forwarded from grpc-accept-encoding "
    b"grpc-encoding grpc-message grpc-status grpc-timeout if-match if-modified-since if-none-match "
    b"if-range if-unmodified-since last-modified link location origin pragma priority "
    b"proxy-authenticate proxy-authorization range referer referrer-policy retry-after "
    b"sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site "
    b"sec-fetch-user sec-websocket-extensions sec-websocket-key sec-websocket-protocol "
    b"sec-websocket-version server server-timing set-cookie strict-transport-security "
    b"timing-allow-origin traceparent tracestate trailer upgrade-insecure-requests user-agent vary "
    b"via warning www-authenticate x-content-type-options x-forwarded-for x-forwarded-host "
    b"x-forwarded-proto x-frame-options x-powered-by x-request-id x-requested-with "
    b"x-xss-protection".split()
)
_INTERESTING = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"cookie"}
# What never becomes a field of HTTP/2: Host is :authority there.
_NOT_IN_REQUEST = HOP_BY_HOP | {b"host"}
_NOT_IN_UPGRADE = _NOT_IN_REQUEST | {b"sec-websocket-key", b"content-length"}
_NOT_IN_SWITCH = HOP_BY_HOP | {b"sec-websocket-accept", b"content-length"}
_NOT_IN_TRAILERS = HOP_BY_HOP | {b"host", b"content-length"}
_STATUSES = {code: b"%d" % code for code in range(100, 1000)}
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class MalformedMessage(Exception):
    """A message that RFC 9113 section 8.1.1 calls malformed: its stream is reset.

    Attributes:
      text: A short sentence for people; it never holds bytes of the message.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def _check_values(fields: Sequence[Pair]) -> int:
    """Refuse controls and outer blanks in values, all at once; return the size of the list."""
    if not fields:
        return 0
    names, values = zip(*fields, strict=False)  # pairs: as fast as can be
    text = b"".join(values)
    if text.translate(None, _FINE):
        raise MalformedMessage("a control character in a field value")
    if len(b"".join(map(bytes.strip, values))) != len(text):
        raise MalformedMessage("blanks around a field value")
    return FIELD_OVERHEAD * len(fields) + len(text) + len(b"".join(names))


def _check_name(name: bytes) -> None:
    if not _NAME.fullmatch(name):
        if name[:1] == b":":
            raise MalformedMessage("a pseudo-field that is unknown, or not in its place")
        raise MalformedMessage("a field name that is not a token in lower case")
    if name in _FORBIDDEN:
        raise MalformedMessage("a field that is about a connection")


def _take_pseudo(fields: Sequence[Pair], known: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return the pseudo-fields, which come first, each once."""
    pseudo: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] != b":":
            break
        if name not in known:
            raise MalformedMessage("an unknown pseudo-field")
        if name in pseudo:
            raise MalformedMessage("a pseudo-field that comes twice")
        pseudo[name] = value
    return pseudo


def check_h2_request(
    fields: Sequence[Pair],
    *,
    end_stream: bool,
    limits: HeadLimits,
    scheme: str,
    connect_protocol: bool = False,
) -> RequestHeader:
    """Turn a request's field list into a head, or refuse it (rows H2-11 to H2-14, H2-29).

    Args:
      fields: As decoded.
      end_stream: Whether nothing follows.
      limits: Bounds.
      scheme: Whether the connection is TLS; what the message says of it is never trusted.
      connect_protocol: Whether extended CONNECT was advertised (RFC 8441).

    Returns:
      The head. Without a declared length and with content to come, it counts as chunked.

    Raises:
      MalformedMessage: the stream is to be reset.
      MessageRefused: with the status to answer.
    """
    size = _check_values(fields)
    pseudo = _take_pseudo(fields, _REQUEST_PSEUDO)
    facts = RequestFacts()
    host: bytes | None = None
    length: bytes | None = None
    length_at = 0
    crumbs: list[bytes] | None = None
    cookie_at = 0
    out: list[Field] = [(b"host", b"Host", b"")]  # its value is known below
    refusal: MessageRefused | None = None
    for name, value in fields[len(pseudo) :]:
        if name not in _PLAIN:
            if name in _INTERESTING:
                if name == b"cookie":
                    if crumbs is not None:
                        crumbs.append(value)
                        continue
                    crumbs = [value]
                    cookie_at = len(out)
                elif name == b"host":
                    if host is not None:
                        raise MalformedMessage("more than one Host field")
                    host = value
                    continue
                elif name == b"content-length":
                    if length is not None:
                        raise MalformedMessage("more than one Content-Length")
                    length = value
                    length_at = len(out)
                elif name == b"te":
                    if value.lower() != b"trailers":
                        raise MalformedMessage("a TE field that says more than trailers")
                    facts.te_trailers = facts.hop_by_hop = True
                elif name == b"expect":
                    if value.lower() == b"100-continue":
                        facts.expect_continue = True
                    else:
                        refusal = MessageRefused(417, "this expectation cannot be met")
                elif name == b"http2-settings":
                    facts.hop_by_hop = True
                else:
                    raise MalformedMessage("a field that is about a connection")
            else:
                _check_name(name)
                if b"_" in name:
                    try:
                        check_underscore(name, limits)
                    except MessageRefused as exc:
                        refusal = exc
        out.append((name, name, value))
    if crumbs is not None and len(crumbs) > 1:
        out[cookie_at] = (b"cookie", b"cookie", b"; ".join(crumbs))
    if length is not None:
        number = _length(length)
        if number and end_stream:
            raise MalformedMessage("a Content-Length, and no content")
        facts.content_length = number
        out[length_at] = (b"content-length", b"content-length", b"%d" % number)
    elif not end_stream:
        facts.chunked = True
    method = pseudo.get(b":method")
    if method is None or not TOKEN.fullmatch(method) or len(method) > MAX_METHOD:
        raise MalformedMessage("no :method that is one")
    authority = _authority(pseudo, host)
    out[0] = (b"host", b"Host", authority)
    protocol = pseudo.get(b":protocol")
    if method == b"CONNECT" and protocol is None:
        if b":scheme" in pseudo or b":path" in pseudo:
            raise MalformedMessage("a CONNECT request with a target")
        if not limits.allow_connect:
            raise MessageRefused(405, "CONNECT is not offered here")
        if length is not None:
            raise MalformedMessage("a CONNECT request with a Content-Length")
        if not _PORT.search(pseudo.get(b":authority", b"")):
            raise MalformedMessage("a CONNECT request without a port")
        target, out = take_connect(authority, None, out, facts, limits)
    else:
        target = _path(pseudo, method)
    if protocol is not None:
        method = _switch(method, protocol, out, facts, connect_protocol)
    if len(target) > limits.max_target_bytes:
        raise MessageRefused(414, "the request target is too long")
    if len(out) > limits.max_fields or size > limits.max_bytes:
        raise MessageRefused(431, "too many header fields")
    if refusal is not None:
        raise refusal
    if method == b"TRACE" and not limits.allow_trace:
        raise MessageRefused(405, "TRACE is not offered here")
    return RequestHeader.trusted(
        method.decode("ascii"), target, "HTTP/2", Headers.trusted(out), scheme, facts
    )


def _path(pseudo: dict[bytes, bytes], method: bytes) -> bytes:
    """Return the target of a request that is no plain CONNECT."""
    if pseudo.get(b":scheme", b"").lower() not in (b"http", b"https"):
        raise MalformedMessage("no :scheme that is http or https")
    target = pseudo.get(b":path", b"")
    if (
        not target
        or BAD_TARGET.search(target)
        or (target[:1] != b"/" and (target != b"*" or method != b"OPTIONS"))
    ):
        raise MalformedMessage("no :path that is one")
    return target


def _length(value: bytes) -> int:
    number = parse_length(value)
    if number is None:
        raise MalformedMessage("a malformed Content-Length")
    return number


def _authority(pseudo: dict[bytes, bytes], host: bytes | None) -> bytes:
    """Return what a request is for: :authority, or Host where it has none."""
    authority = pseudo.get(b":authority")
    if authority is None:
        authority = host
    elif host is not None and host.lower() != authority.lower():
        raise MalformedMessage(":authority and Host differ")
    if authority is None or not valid_host(authority):
        raise MalformedMessage("no :authority that is one")
    return authority


def _switch(
    method: bytes, protocol: bytes, out: list[Field], facts: RequestFacts, connect_protocol: bool
) -> bytes:
    """Make an extended CONNECT look like an upgrade of HTTP/1.1 (row H2-29); return the method."""
    if method != b"CONNECT" or not connect_protocol or not TOKEN.fullmatch(protocol):
        raise MalformedMessage("a :protocol that was not allowed")
    if facts.content_length is not None:
        raise MalformedMessage("a CONNECT request with a Content-Length")
    if protocol.lower() != b"websocket":
        raise MessageRefused(501, "this protocol is not known here")
    if not any(name == b"sec-websocket-key" for name, _, _ in out):
        key = base64.b64encode(secrets.token_bytes(16))
        out.append((b"sec-websocket-key", b"Sec-WebSocket-Key", key))
    out.append((b"upgrade", b"Upgrade", b"websocket"))
    out.append((b"connection", b"Connection", b"upgrade"))
    facts.chunked = False  # what follows is the tunnel's
    facts.hop_by_hop = True
    facts.offers = (b"websocket",)
    facts.extended_connect = True
    return b"GET"


def websocket_accept(key: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept that answers a key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


def check_h2_response(
    fields: Sequence[Pair],
    *,
    end_stream: bool,
    limits: HeadLimits,
    request_method: str,
    extended: RequestHeader | None = None,
) -> ResponseHeader:
    """Turn a response's field list into a head, or refuse it (row H2-26).

    Args:
      fields: As decoded.
      end_stream: Whether nothing follows.
      limits: Bounds.
      request_method: What the request was: HEAD has no content in its response.
      extended: The request, where it went out as an extended CONNECT: what accepts it becomes a 101.

    Raises:
      MalformedMessage: the stream is to be reset.
      MessageRefused: with 502.
    """
    if _check_values(fields) > limits.max_bytes or len(fields) > limits.max_fields + 1:
        raise MessageRefused(502, "the response has too many header fields")
    if not fields or fields[0][0] != b":status" or not _STATUS.fullmatch(fields[0][1]):
        raise MalformedMessage("no :status that is one")
    status = int(fields[0][1])
    if status == 101:
        raise MalformedMessage("a 101, which HTTP/2 does not have")
    if status < 200 and end_stream:
        raise MalformedMessage("an informational response that ends its stream")
    facts = ResponseFacts()
    lengths: list[bytes] = []
    out: list[Field] = []
    for name, value in fields[1:]:
        if name not in _PLAIN:
            if name == b"content-length":
                lengths.append(value)
                if len(lengths) > 1 or status < 200:  # U1-06
                    continue
            else:
                _check_name(name)
                if name in HOP_BY_HOP:
                    facts.hop_by_hop = True
        out.append((name, name, value))
    if status < 200:
        facts.has_body = False
        return _response(status, out, facts)
    if extended is not None and status < 300:
        _accept(extended, out, facts)
        return _response(101, out, facts)
    bodiless = request_method == "HEAD" or status == 204 or status == 304
    if lengths:
        number = _response_length(lengths, limits, out)
        if number and end_stream and not bodiless:
            raise MalformedMessage("a Content-Length, and no content")
        facts.content_length = number
    if bodiless or end_stream or facts.content_length == 0:
        facts.has_body = False
    elif facts.content_length is None:
        facts.chunked = True
    return _response(status, out, facts)


def _response(status: int, fields: list[Field], facts: ResponseFacts) -> ResponseHeader:
    return ResponseHeader.trusted(status, None, "HTTP/2", Headers.trusted(fields), facts)


def _response_length(lengths: list[bytes], limits: HeadLimits, out: list[Field]) -> int | None:
    """Return the declared length, None where it is to be passed over; ``out`` is put right."""
    number = parse_length(lengths[0]) if len(lengths) == 1 else None
    if number is None and not limits.allow_invalid_length:
        raise MalformedMessage("a malformed Content-Length")
    at = next(index for index, field in enumerate(out) if field[0] == b"content-length")
    if number is None:
        del out[at]
    else:
        out[at] = (b"content-length", b"content-length", b"%d" % number)
    return number


def _accept(request: RequestHeader, out: list[Field], facts: ResponseFacts) -> None:
    """Make what accepted an extended CONNECT look like a switch of protocols."""
    out[:] = [field for field in out if field[0] not in _NOT_IN_SWITCH]
    out.append((b"upgrade", b"Upgrade", b"websocket"))
    key = request.headers.get_bytes(b"sec-websocket-key")
    if key is not None:
        out.append((b"sec-websocket-accept", b"Sec-WebSocket-Accept", websocket_accept(key)))
    facts.has_body = False
    facts.hop_by_hop = True


def check_h2_trailers(fields: Sequence[Pair]) -> Headers:
    """Turn the field list of trailers into fields.

    Raises:
      MalformedMessage: the stream is to be reset.
      MessageRefused: there are too many.
    """
    _check_values(fields)
    out: list[Field] = []
    size = 0
    for name, value in fields:
        if name not in _PLAIN:
            _check_name(name)
        size += len(name) + len(value) + 4  # as HTTP/1 writes it
        out.append((name, name, value))
    if len(out) > MAX_TRAILER_FIELDS or size > MAX_TRAILER_BYTES:
        raise MessageRefused(400, "the trailer section is too large")
    return Headers.trusted(out)


def request_fields(
    head: RequestHeader, *, scheme: bytes, extended: bool = False, length: bool = True
) -> list[Pair]:
    """Return the field list of a request (row H2-15).

    Args:
      head: The request, from which the fields that its Connection nominates were removed.
      scheme: ``b"http"`` or ``b"https"``.
      extended: Write an offer to switch to WebSocket as an extended CONNECT.
      length: Let the head's Content-Length go out.
    """
    out: list[Pair] = [(b":method", b"CONNECT" if extended else head.method.encode("ascii"))]
    if extended:
        out.append((b":protocol", b"websocket"))
    out.append((b":scheme", scheme))
    authority = head.headers.get_bytes(b"host")
    if authority:
        out.append((b":authority", authority))
    out.append((b":path", head.target))
    drop = _NOT_IN_UPGRADE if extended else _NOT_IN_REQUEST
    _add(out, head.headers, drop, length=length)
    facts = head.facts
    if facts is not None and facts.te_trailers:
        out.append((b"te", b"trailers"))
    return out


def response_fields(head: ResponseHeader, *, date: bytes | None, length: bool = True) -> list[Pair]:
    """Return the field list of a response; a 101 is written as the 200 that RFC 8441 has for it.

    Args:
      head: The response.
      date: The Date to add where a final response has none (RFC 9110 section 6.6.1), or None.
      length: Let the head's Content-Length go out; it never does in a 1xx and a 204.
    """
    status = head.status
    if status == 101:
        out: list[Pair] = [(b":status", b"200")]
        _add(out, head.headers, _NOT_IN_SWITCH, length=False)
    else:
        out = [(b":status", _STATUSES[status])]
        _add(out, head.headers, HOP_BY_HOP, length=length and status >= 200 and status != 204)
        if status < 200:
            return out
    if date is not None:
        for name, _, _ in head.headers.fields:
            if name == b"date":
                break
        else:
            out.append((b"date", date))
    return out


def trailer_fields(trailers: Headers) -> list[Pair]:
    """Return the field list of trailers."""
    out: list[Pair] = []
    _add(out, trailers, _NOT_IN_TRAILERS, length=False)
    return out


def _add(out: list[Pair], headers: Headers, drop: frozenset[bytes], *, length: bool) -> None:
    # HTTP/2 forbids blanks around a value (RFC 9113 section 8.2.1), and h2 would let them through.
    for name, _, value in headers.fields:
        if name not in drop and (length or name != b"content-length"):
            out.append((name, value.strip(b" \t")))
