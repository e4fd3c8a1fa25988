"""What changes in a message because it is forwarded: RFC 9110 section 7.6, and the fields of proxies."""

from __future__ import annotations

import functools

from .._headers import Field, Headers
from .._messages import RequestFacts, RequestHeader, ResponseFacts, ResponseHeader
from ._framing import HOP_BY_HOP, nominated_by

# Trailer fields that mean framing, routing, authentication, caching or content (row H1-20).
_NOT_IN_TRAILERS = frozenset(
    b"content-length transfer-encoding host connection te trailer authorization cookie set-cookie "
    b"cache-control content-type content-encoding content-range keep-alive proxy-connection upgrade "
    b"proxy-authorization proxy-authenticate www-authenticate expect max-forwards pragma range "
    b"if-match if-none-match if-modified-since if-unmodified-since if-range age expires date "
    b"location retry-after vary warning forwarded via http2-settings x-real-ip "
    b"cdn-cache-control".split()
)
_X_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})


def _end_to_end(fields: list[Field], facts: RequestFacts | ResponseFacts | None) -> list[Field]:
    if facts is not None:
        nominated = facts.nominated
    else:  # a head made by hand: nobody has looked at its Connection yet
        values = [value for name, _, value in fields if name == b"connection"]
        tokens = [token.strip(b" \t").lower() for value in values for token in value.split(b",")]
        nominated = nominated_by(tokens)
    drop = HOP_BY_HOP.union(nominated)
    return [field for field in fields if field[0] not in drop]


def to_upstream(request: RequestHeader) -> RequestHeader:
    """Return the request that an attempt sends: a fresh copy without hop-by-hop fields.

    Removed are Connection, the fields it nominates, Keep-Alive, Proxy-Connection, TE,
    Transfer-Encoding, Upgrade and HTTP2-Settings (RFC 9110 section 7.6.1). Proxy-Authorization and
    Trailer go on. An offer to switch protocols that has effect stays as the field Upgrade: whoever
    writes the request says what goes with it. A head without any of them costs one list copy.
    """
    facts = request.facts
    copy = request.copy()
    if facts is None or facts.hop_by_hop:
        copy.headers.fields = _end_to_end(copy.headers.fields, facts)
        if facts is not None and facts.offers:
            copy.headers.fields.append((b"upgrade", b"Upgrade", b", ".join(facts.offers)))
    return copy


def strip_response(response: ResponseHeader) -> None:
    """Remove the hop-by-hop fields of a response, in place; a 101 keeps its Upgrade."""
    facts = response.facts
    if response.status == 101:
        upgrade = [field for field in response.headers.fields if field[0] == b"upgrade"]
        response.headers.fields = _end_to_end(response.headers.fields, facts) + upgrade
        return
    if facts is None or facts.hop_by_hop:
        response.headers.fields = _end_to_end(response.headers.fields, facts)


def filter_trailers(trailers: Headers) -> Headers:
    """Return the trailers that may be forwarded (RFC 9110 section 6.5.1)."""
    return Headers.trusted([field for field in trailers.fields if _may_trail(field[0])])


def _may_trail(name: bytes) -> bool:
    name = name.replace(b"_", b"-")  # as some receivers read it (row H1-18)
    return name not in _NOT_IN_TRAILERS and not name.startswith(b"x-forwarded-")


def set_forwarded(
    headers: Headers,
    *,
    client: str | None,
    proto: str,
    host: str,
    trusted: bool = False,
) -> None:
    """Set X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host.

    Args:
      headers: The request's fields.
      client: The client's address as text, with or without a port.
      proto: ``http`` or ``https``.
      host: What the client asked for.
      trusted: Whether what is already there is believed: then the client is appended, and the
        other two stay. Otherwise all three are set anew.
    """
    address = host_of(client)
    if trusted:
        before = headers.get_all("x-forwarded-for")
        headers.set("X-Forwarded-For", ", ".join([*before, address]))
        if b"x-forwarded-proto" not in headers:
            headers.set("X-Forwarded-Proto", proto)
        if b"x-forwarded-host" not in headers and host:
            headers.set("X-Forwarded-Host", host)
        return
    # One pass in place of three look-ups, and fields that are made and checked once.
    fields = [field for field in headers.fields if field[0] not in _X_FORWARDED]
    fields.append(_made("X-Forwarded-For", address))
    fields.append(_made("X-Forwarded-Proto", proto))
    headers.fields = fields
    if host:
        headers.add("X-Forwarded-Host", host)


def append_forwarded(headers: Headers, *, client: str | None, proto: str, host: str) -> None:
    """Append an element to Forwarded (RFC 7239 section 4)."""
    address = host_of(client)
    node = f'"[{address}]"' if ":" in address else address
    element = f"for={node};proto={proto}"
    if host:
        quoted = host.replace("\\", "\\\\").replace('"', '\\"')
        element += f';host="{quoted}"'
    before = headers.get_all("forwarded")
    headers.set("Forwarded", ", ".join([*before, element]))


def append_via(headers: Headers, version: str, pseudonym: str) -> None:
    """Append this proxy to Via (RFC 9110 section 7.6.3)."""
    made = _made_via(version, pseudonym)
    fields = headers.fields
    for field in fields:
        if field[0] == b"via":
            before = ", ".join(headers.get_all("via"))
            headers.set("Via", f"{before}, {made[2].decode('latin-1')}")
            return
    fields.append(made)


@functools.lru_cache(maxsize=1024)
def _made(name: str, value: str) -> Field:
    """Return a checked field; not for values that a client chooses, which may be large."""
    return Headers([(name, value)]).fields[0]


@functools.lru_cache(maxsize=16)
def _made_via(version: str, pseudonym: str) -> Field:
    return Headers([("Via", f"{version.removeprefix('HTTP/')} {pseudonym}")]).fields[0]


@functools.lru_cache(maxsize=1024)
def host_of(address: str | None) -> str:
    """Return an address without its port; ``unknown`` for an unnamed or unix socket."""
    if not address or address.startswith("unix:"):
        return "unknown"
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address
