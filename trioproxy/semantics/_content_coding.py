"""Content codings: what a client takes, which one it gets, and what becomes of the head then.

RFC 9110 sections 8.4 and 12.5.3.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

import attrs

from .._headers import Headers
from ._cache_control import CacheControl

#: What is left as it is.
IDENTITY = b"identity"

# A coding and its weight; blanks around both, as lists and weights have them.
_MEMBER = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)"
    rb"(?:[ \t]*;[ \t]*[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
)
# RFC 9110 section 8.4.1: recipients treat these as the ones without "x-".
_ALIASES = {b"x-gzip": b"gzip", b"x-compress": b"compress"}
# Of the content as it was coded before (RFC 9530, RFC 3230, RFC 1864), none of which it is then.
_DIGESTS = frozenset((b"content-digest", b"repr-digest", b"digest", b"content-md5"))
# With them what a client could ask a part of: the coded content is made anew for each response.
_OF_CONTENT = _DIGESTS | {b"content-length", b"accept-ranges"}
# A longer field is read each time: the few that browsers send are short.
_REMEMBERED = 256


@attrs.frozen
class AcceptEncoding:
    """What a client says of codings.

    Attributes:
      weights: By the codings in lower case, ``*`` among them, each from 0 to 1000; what a client
        says twice counts with the lower weight, and a member that cannot be read counts as absent.
    """

    weights: Mapping[bytes, int]

    def weight(self, coding: bytes) -> int:
        """Return how much a coding is wanted, from 0 (not at all) to 1000."""
        weights = self.weights
        found = weights.get(coding)
        return weights.get(b"*", 0) if found is None else found

    def choose(self, codings: Iterable[bytes]) -> bytes | None:
        """Return the coding that is wanted most, the first of equals; None where none is wanted.

        None too where the client says that it wants the content as it is more than any of them. What
        it says of ``identity`` is passed over otherwise: where nothing that we can make is wanted,
        the content as it is is better than none (RFC 9110 section 12.5.3 leaves that open).
        """
        best, most = None, 0
        for coding in codings:
            weight = self.weight(coding)
            if weight > most:
                best, most = coding, weight
        return None if self.weights.get(IDENTITY, 0) > most else best


def accept_encoding(headers: Headers) -> AcceptEncoding | None:
    """Return what a request says of codings, None where it says nothing."""
    values = [value for name, _, value in headers.fields if name == b"accept-encoding"]
    if not values:
        return None
    value = values[0] if len(values) == 1 else b",".join(values)
    return _remembered(value) if len(value) <= _REMEMBERED else parse_accept_encoding(value)


def parse_accept_encoding(value: bytes) -> AcceptEncoding:
    """Read the value of an Accept-Encoding."""
    weights: dict[bytes, int] = {}
    for part in value.split(b","):
        match = _MEMBER.fullmatch(part.strip(b" \t"))
        if match is None:
            continue
        coding = match[1].lower()
        coding = _ALIASES.get(coding, coding)
        weight = 1000 if match[2] is None else round(float(match[2]) * 1000)
        weights[coding] = min(weight, weights.get(coding, 1000))
    return AcceptEncoding(weights)


_remembered = functools.lru_cache(maxsize=64)(parse_accept_encoding)


def content_codings(headers: Headers) -> tuple[bytes, ...]:
    """Return the codings of a message's content in the order in which they were applied.

    In lower case, without ``identity`` and the empty members that a list may have.
    """
    found = []
    for name, _, value in headers.fields:
        if name == b"content-encoding":
            for part in value.split(b","):
                coding = part.strip(b" \t").lower()
                if coding and coding != IDENTITY:
                    found.append(_ALIASES.get(coding, coding))
    return tuple(found)


def recode(headers: Headers, coding: bytes | None) -> None:
    """Make the head of a response that of the same content in another coding, or in none.

    Its length and its digests are gone, parts of it cannot be had, and its entity tag is a weak one:
    the bytes differ (RFC 9110 section 8.8.3).
    """
    forget_content(headers)
    if coding is None:
        headers.remove(b"content-encoding")
    else:
        headers.set(b"Content-Encoding", coding)
    tag = headers.get_bytes(b"etag")
    if tag is not None and not tag.startswith(b"W/"):
        headers.set(b"ETag", b"W/" + tag)


def forget_content(headers: Headers) -> None:
    """Drop the fields that hold for the very bytes of a content which is going to be changed."""
    headers.fields = [field for field in headers.fields if field[0] not in _OF_CONTENT]


def forget_digests(trailers: Headers) -> None:
    """Drop from trailers what holds for the very bytes of a content that was changed."""
    trailers.fields = [field for field in trailers.fields if field[0] not in _DIGESTS]


def vary_by_encoding(headers: Headers) -> None:
    """Say that the response depends on Accept-Encoding, in one field with what is said already."""
    values = [value for name, _, value in headers.fields if name == b"vary"]
    names = {name.strip(b" \t").lower() for value in values for name in value.split(b",")}
    if b"*" in names or b"accept-encoding" in names:
        return
    values = [value for value in values if value.strip(b" \t,")]
    headers.set(b"Vary", b", ".join([*values, b"Accept-Encoding"]))


def forbids_transforming(headers: Headers) -> bool:
    """Tell whether Cache-Control says no-transform (RFC 9111 section 5.2.2.6)."""
    control = CacheControl.of(headers)
    return control is not None and "no-transform" in control.directives
