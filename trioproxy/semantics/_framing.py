"""The one validator over a message head that every codec shares: framing, routing, refusals.

A head is read once, strictly, into values (RFC 9112 sections 2 to 6); what has two readings is
refused. The rows named in comments are those of the documentation's page on hostile input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address

import attrs

from .._connect_target import ConnectRule, ConnectTarget, plain_host
from .._headers import Field, Headers
from .._messages import RequestFacts, RequestHeader, ResponseFacts, ResponseHeader

MAX_LENGTH = 2**63 - 1
MAX_METHOD = 32

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PROTOCOL = re.compile(TOKEN.pattern + rb"(?:/" + TOKEN.pattern + rb")?")
_DIGITS = re.compile(rb"[0-9]{1,20}")  # as many as every parser takes
_VERSION = re.compile(rb"[0-9]\.[0-9]")
# A transfer coding with parameters that are tokens (RFC 9112 section 7); nothing quoted.
_CODING = re.compile(
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb"(?:[ \t]*;[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+[ \t]*=[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*"
)
BAD_TARGET = re.compile(rb"[^\x21\x22\x24-\x5b\x5d-\x7e]")  # controls, space, #, \, >= 0x7f
_ABSOLUTE = re.compile(rb"(https?)://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+)(?::([0-9]{0,8}))?"
)

# Fields that Connection may not take away (row H1-19).
_PROTECTED = frozenset(
    b"host content-length transfer-encoding authorization cookie cache-control forwarded via date "
    b"set-cookie".split()
)
# What becomes framing or identity once "_" is read as "-" (row H1-18).
_DANGEROUS = frozenset(
    b"host content-length transfer-encoding connection te trailer upgrade expect forwarded "
    b"keep-alive proxy-connection x-real-ip via".split()
)
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te transfer-encoding upgrade http2-settings".split()
)


class MessageRefused(Exception):
    """A message that this side does not take.

    Attributes:
      status: What to answer (502 where it was a response).
      text: A short sentence for people; of the message it holds nothing but a checked target.
      silent: Whether to close without an answer, which nobody would understand.
    """

    def __init__(self, status: int, text: str, *, silent: bool = False) -> None:
        super().__init__(text)
        self.silent = silent
        self.status = status
        self.text = text


@attrs.frozen
class HeadLimits:
    """Bounds on a message head.

    Attributes:
      max_bytes: Its size.
      max_fields: Its fields.
      max_target_bytes: The size of a request target.
      refuse_underscores: Refuse every field name with an underscore.
      allow_trace: Take TRACE requests.
      allow_connect: The targets of CONNECT requests that are taken; none refuses the method.
      allow_invalid_length: Let a response with a repeated or malformed Content-Length end with its
        connection: its reader leaves the field out.
    """

    max_bytes: int = 65536
    max_fields: int = 128
    max_target_bytes: int = 16384
    refuse_underscores: bool = False
    allow_trace: bool = False
    allow_connect: tuple[ConnectRule, ...] = ()
    allow_invalid_length: bool = False


def _bad(text: str) -> MessageRefused:
    return MessageRefused(400, text)


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(b" \t").lower() for token in value.split(b",")]


def parse_length(value: bytes) -> int | None:
    """Return a Content-Length's number, or None where it is not exactly one (row H1-02)."""
    if not _DIGITS.fullmatch(value):
        return None
    number = int(value)
    return number if number <= MAX_LENGTH else None


def usable_offers(value: bytes) -> tuple[bytes, ...]:
    """Return the protocols of an Upgrade field that may be passed on (row H1-25).

    Left out are HTTP/2 in clear text, which would be a second way into the origin that nobody looks
    at (RFC 9113 section 3.1), and TLS.
    """
    offers = [offer.strip(b" \t") for offer in value.split(b",")]
    return tuple(
        offer
        for offer in offers
        if _PROTOCOL.fullmatch(offer)
        and offer.lower() not in (b"h2c", b"h2")
        and not offer.lower().startswith((b"http/", b"tls/"))
    )


def valid_host(host: bytes) -> bool:
    """Tell whether a value is ``uri-host [":" port]`` (row H1-17)."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    if host[:1] == b"[":
        try:
            IPv6Address(host[1 : host.index(b"]")].decode("ascii"))
        except ValueError:
            return False
    port = match[1]
    return not port or int(port) <= 65535


def nominated_by(tokens: list[bytes]) -> tuple[bytes, ...]:
    """Return the fields that Connection's members take away (row H1-19)."""
    return tuple(
        token
        for token in tokens
        if token
        and token not in _PROTECTED
        and token not in HOP_BY_HOP
        and token != b"close"
        and not token.startswith(b"x-forwarded-")
    )


def check_underscore(name: bytes, limits: HeadLimits) -> None:
    hyphened = name.replace(b"_", b"-")
    if (
        limits.refuse_underscores
        or hyphened in _DANGEROUS
        or hyphened.startswith((b"x-forwarded", b"content-length", b"transfer-encoding"))
        or hyphened.strip(b"-") in _DANGEROUS
    ):
        raise _bad("a field name with an underscore reads like another field")


def check_request(
    method: bytes,
    target: bytes,
    version: bytes,
    fields: list[Field],
    limits: HeadLimits,
    *,
    scheme: str = "http",
) -> RequestHeader:
    """Turn a request line and its fields into a head, or refuse it.

    Args:
      method: As received.
      target: As received.
      version: The digits, ``b"1.1"``.
      fields: (lower-case name, name as received, value) triples; the list is taken over.
      limits: Bounds.
      scheme: Whether the connection is TLS; what the message says of it is never trusted.

    Raises:
      MessageRefused: with the status to answer.
    """
    if version != b"1.1" and version != b"1.0":
        if _VERSION.fullmatch(version):
            raise MessageRefused(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
        raise _bad("malformed HTTP version")
    if len(target) > limits.max_target_bytes:
        raise MessageRefused(414, "the request target is too long")
    if len(method) > MAX_METHOD or not TOKEN.fullmatch(method):
        raise _bad("malformed method")
    if len(fields) > limits.max_fields:
        raise MessageRefused(431, "too many header fields")
    old = version == b"1.0"
    facts = RequestFacts()
    host: bytes | None = None
    lengths: list[bytes] | None = None
    codings: list[bytes] | None = None
    connection: list[bytes] | None = None
    hop = False
    for name, _, value in fields:
        if name in _INTERESTING:
            if name == b"host":
                if host is not None:
                    raise _bad("more than one Host field")
                host = value
            elif name == b"content-length":
                lengths = [*(lengths or ()), value]
            elif name == b"connection":
                hop = True
                connection = (connection or []) + _tokens(value)
            elif name == b"transfer-encoding":
                hop = True
                codings = [*(codings or ()), value]
            elif name == b"expect":
                if not old:
                    if value.lower() != b"100-continue":
                        raise MessageRefused(417, "this expectation cannot be met")
                    facts.expect_continue = True
            elif name == b"te":
                hop = True
                facts.te_trailers = facts.te_trailers or b"trailers" in _tokens(value)
            else:
                hop = True
                if name == b"upgrade":
                    facts.offers += usable_offers(value)
        elif b"_" in name:
            check_underscore(name, limits)
    if lengths is not None or codings is not None:
        number = check_request_framing(lengths or (), codings or (), old=old)
        facts.chunked = number is None
        facts.content_length = number
        if number is not None and lengths and len(lengths[0]) > 1 and lengths[0][0] == 48:
            fields = [  # 0005 goes on as 5
                (name, raw, b"%d" % number) if name == b"content-length" else (name, raw, value)
                for name, raw, value in fields
            ]
    if connection is not None:
        facts.close = b"close" in connection
        facts.keep_alive = b"keep-alive" in connection
        facts.nominated = nominated_by(connection)
    if facts.offers and (old or connection is None or b"upgrade" not in connection):
        facts.offers = ()
    facts.hop_by_hop = hop
    if method == b"CONNECT":
        if not limits.allow_connect:
            raise MessageRefused(405, "CONNECT is not offered here")  # H1-26
        if lengths is not None or codings is not None:
            raise _bad("a CONNECT request with content")
    if method == b"TRACE" and not limits.allow_trace:
        raise MessageRefused(405, "TRACE is not offered here")
    if host is None:
        if not old:
            raise _bad("no Host field")
    elif not valid_host(host):
        raise _bad("malformed Host")
    if method == b"CONNECT":
        target, fields = take_connect(target, host, fields, facts, limits)
    else:
        target, fields = _check_target(method, target, fields)
    return RequestHeader.trusted(
        method.decode("ascii"),
        target,
        "HTTP/1.0" if old else "HTTP/1.1",
        Headers.trusted(fields),
        scheme,
        facts,
    )


_INTERESTING = HOP_BY_HOP | {b"host", b"content-length", b"expect"}


def check_request_framing(
    lengths: Sequence[bytes], codings: Sequence[bytes], *, old: bool
) -> int | None:
    """Decide how a request's content is delimited, where a framing field is there (H1-01 to H1-04).

    Args:
      lengths: The values of every Content-Length field.
      codings: The values of every Transfer-Encoding field.
      old: Whether the request is HTTP/1.0.

    Returns:
      The declared length, or None where the content is chunked.

    Raises:
      MessageRefused: it has two readings, or none.
    """
    if codings:
        if lengths:
            raise _bad("Content-Length and Transfer-Encoding together")
        _check_codings(codings, old=old)
        return None
    if len(lengths) > 1:
        raise _bad("more than one Content-Length")
    number = parse_length(lengths[0])
    if number is None:
        raise _bad("malformed Content-Length")
    return number


def _check_codings(codings: Sequence[bytes], *, old: bool) -> None:
    """Refuse every Transfer-Encoding but ``chunked`` (rows H1-03, H1-04)."""
    if old:
        raise _bad("Transfer-Encoding in an HTTP/1.0 request")
    if len(codings) == 1 and codings[0].lower() == b"chunked":
        return
    tokens = _tokens(b",".join(codings))
    if (
        tokens[-1] == b"chunked"
        and tokens.count(b"chunked") == 1
        and all(_CODING.fullmatch(token) for token in tokens)
    ):
        raise MessageRefused(501, "this transfer coding is not implemented")
    raise _bad("malformed Transfer-Encoding")


def _check_target(method: bytes, target: bytes, fields: list[Field]) -> tuple[bytes, list[Field]]:
    """Return origin-form, and the fields with the Host that goes with it (rows H1-15, H1-16)."""
    if BAD_TARGET.search(target):
        raise _bad("malformed request target")
    if target[:1] == b"/":
        return target, fields
    if target == b"*":
        if method != b"OPTIONS":
            raise _bad("malformed request target")
        return target, fields
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise _bad("malformed request target")
    authority, rest = match[2], match[3]
    if not valid_host(authority):
        raise _bad("malformed authority in the request target")
    if not rest:
        rest = b"*" if method == b"OPTIONS" else b"/"
    elif rest[:1] == b"?":
        rest = b"/" + rest
    fields = [(b"host", b"Host", authority)] + [field for field in fields if field[0] != b"host"]
    return rest, fields


def take_connect(
    target: bytes,
    host: bytes | None,
    fields: list[Field],
    facts: RequestFacts,
    limits: HeadLimits,
) -> tuple[bytes, list[Field]]:
    """Take a CONNECT request: see where it wants to go, and whether it may (row H1-26).

    It has no content, so that nothing invites any, and it switches to nothing but a tunnel.

    Args:
      target: Its target, ``host:port``.
      host: Its Host, which says the same; it may leave the port out (RFC 9112 section 3.2.3).
      fields: Its fields.
      facts: What was found; gets the target.
      limits: What is allowed.

    Returns:
      The target in its one spelling, and the fields with the Host that goes with it.

    Raises:
      MessageRefused: 400, it is malformed or has two readings; 403, it is not allowed.
    """
    try:
        wanted = ConnectTarget.parse(target.decode("latin-1"))
    except ValueError as exc:
        raise _bad(f"malformed target of CONNECT: {exc}") from None
    if host is not None and not _names(host.decode("latin-1"), wanted):
        raise _bad("the target of CONNECT and Host differ")
    if not any(rule.allows(wanted) for rule in limits.allow_connect):
        raise MessageRefused(403, f"CONNECT to {wanted} is not allowed here")
    facts.connect = wanted
    facts.expect_continue = facts.chunked = False
    facts.offers = ()
    target = str(wanted).encode("ascii")
    return target, [
        (b"host", b"Host", target),
        *(field for field in fields if field[0] not in _NOT_IN_CONNECT),
    ]


def _names(host: str, wanted: ConnectTarget) -> bool:
    """Tell whether a Host is that of a target, with its port or without one."""
    try:
        return plain_host(host) == wanted.host
    except ValueError:
        pass
    try:
        return ConnectTarget.parse(host) == wanted
    except ValueError:
        return False


_NOT_IN_CONNECT = frozenset({b"host", b"expect", b"upgrade"})


def check_response(
    status: int,
    reason: bytes | None,
    version: bytes,
    fields: list[Field],
    limits: HeadLimits,
    request_method: str,
) -> ResponseHeader:
    """Turn a status line and its fields into a head, or refuse it with 502.

    Args:
      status: The status code.
      reason: The reason phrase.
      version: The digits, ``b"1.1"``.
      fields: (lower-case name, name as received, value) triples; the list is taken over.
      limits: Bounds.
      request_method: What the request was: HEAD has no content in its response.

    Raises:
      MessageRefused: the response cannot be trusted.
    """
    if len(fields) > limits.max_fields:
        raise MessageRefused(502, "the response has too many header fields")
    if not 100 <= status <= 999:
        raise MessageRefused(502, "the response has no valid status")
    old = version == b"1.0"
    if not old and version != b"1.1":
        raise MessageRefused(502, "the response has an unknown HTTP version")
    facts = ResponseFacts()
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: list[bytes] | None = None
    hop = False
    for name, _, value in fields:
        if name in _INTERESTING:
            if name == b"content-length":
                lengths.append(value)
            elif name == b"connection":
                hop = True
                connection = (connection or []) + _tokens(value)
            elif name == b"transfer-encoding":
                hop = True
                codings.append(value)
            elif name != b"host" and name != b"expect":
                hop = True
    if connection is not None:
        facts.close = b"close" in connection
        facts.keep_alive = b"keep-alive" in connection
        facts.nominated = nominated_by(connection)
    facts.hop_by_hop = hop
    if status < 200:
        facts.has_body = False  # framing fields in a 1xx mean nothing (U1-06)
        if lengths:
            fields = [field for field in fields if field[0] != b"content-length"]
        return _response(status, reason, old, fields, facts)
    if codings:
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise MessageRefused(502, "the response has an unknown Transfer-Encoding")
        facts.chunked = True
        if lengths or old:  # U1-08, U1-10
            facts.poisoned = True
            fields = [field for field in fields if field[0] != b"content-length"]
    elif lengths:
        if len(lengths) > 1 or (number := parse_length(lengths[0])) is None:
            raise MessageRefused(502, "the response has a malformed Content-Length")
        facts.content_length = number
        text = lengths[0]
        if len(text) > 1 and text[0] == 48:
            fields = [
                (name, raw, b"%d" % number) if name == b"content-length" else (name, raw, value)
                for name, raw, value in fields
            ]
    if request_method == "HEAD" or status == 204 or status == 304:
        facts.has_body = False
    elif facts.chunked:
        pass
    elif facts.content_length is not None:
        facts.has_body = facts.content_length > 0
    else:
        facts.until_close = True
    return _response(status, reason, old, fields, facts)


def _response(
    status: int, reason: bytes | None, old: bool, fields: list[Field], facts: ResponseFacts
) -> ResponseHeader:
    return ResponseHeader.trusted(
        status, reason, "HTTP/1.0" if old else "HTTP/1.1", Headers.trusted(fields), facts
    )
