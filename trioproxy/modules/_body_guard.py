"""A guard over bodies: how large they may be, of which types, and whether there has to be one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import attrs

from .._errors import ErrorType, ProxyError
from .._messages import BodyChunk, RequestHeader, ResponseHeader
from ..semantics._framing import TOKEN
from ._abc import HttpModule, HttpModuleBuilder
from ._media import is_media_range, media_type, ranges_of

if TYPE_CHECKING:
    from ..proxy._session import Session


class GuardedBodies(HttpModule):
    """One request's guard: its limits may be changed for the request.

    Attributes:
      max_response_bytes: Size of the response's content, None for no limit; whoever changes it does
        so before the response's head has come.
    """

    def __init__(self, settings: BodyGuard) -> None:
        self._settings = settings
        self._limit: int | None = None
        self._limited = False
        self._received = 0
        self._kind: str | None = None
        self._needs_body = self._forbids_body = False
        self.max_response_bytes = settings.max_response_bytes
        self._sent = 0

    @property
    def max_request_bytes(self) -> int | None:
        """The size that the request's content may have, None for no limit."""
        return self._limit

    def limit_request(self, session: Session, max_bytes: int | None) -> None:
        """Set what this request's content may have, over all that the builder says.

        When: up to `upstream_request_filter`.

        Args:
          session: The request's.
          max_bytes: Bytes; None for no limit.

        Raises:
          ProxyError: what the request declares is more than that (413).
          ValueError: it is no size.
        """
        if max_bytes is not None:
            _check_size("max_bytes", max_bytes)
        self._limit, self._limited = max_bytes, True
        self._check_declared(session.req_header())

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Check what the head tells.

        Raises:
          ProxyError: the content is too large (413), of a wrong type (415), missing or unwanted (400).
        """
        settings = self._settings
        method = request.method
        self._kind = media_type(request.headers)
        if not self._limited:
            self._limit = settings.limit_of(self._kind)
        self._needs_body = method in settings.require_body
        self._forbids_body = method in settings.refuse_body
        if session.is_body_empty():
            if self._needs_body:
                raise _missing(method)
            return False
        # HTTP/2 can announce content without a length that then is empty: what only content would
        # make wrong waits for its first byte.
        if request.headers.get_bytes(b"content-length") is not None:
            self._check_content(method)
        elif self._kind is not None or b"content-type" in request.headers:
            self._check_type()
        self._check_declared(request)
        return False

    def _check_declared(self, request: RequestHeader) -> None:
        declared = request.headers.get_bytes(b"content-length")
        if self._limit is not None and declared is not None and int(declared) > self._limit:
            raise self._too_large()

    def _check_content(self, method: str) -> None:
        if self._forbids_body:
            raise ProxyError.status(400, f"BodyGuard: {method} with content")
        self._check_type()

    def _check_type(self) -> None:
        allowed = self._settings.content_types
        if allowed is None:
            return
        if self._kind is None:
            raise ProxyError.status(415, "BodyGuard: content without one Content-Type")
        if not any(each in allowed for each in ranges_of(self._kind)):
            raise ProxyError.status(415, "BodyGuard: content of a type that is not allowed")

    def _too_large(self) -> ProxyError:
        return ProxyError.status(413, f"BodyGuard: a request of more than {self._limit} bytes")

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        """Count the content.

        Raises:
          ProxyError: it is too large (413), or what `request_header_filter` refuses.
        """
        if body.data:
            if not self._received:
                self._check_content(session.req_header().method)
            self._received += len(body.data)
            if self._limit is not None and self._received > self._limit:
                raise self._too_large()
        if end_of_stream and self._needs_body and not self._received:
            raise _missing(session.req_header().method)

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Check the length that a response declares.

        Raises:
          ProxyError: it is too large (502).
        """
        limit = self.max_response_bytes
        if response.status >= 200:
            self._sent = 0  # this one may stand in for one that failed
        if limit is None or end_of_stream or response.status < 200:
            return
        declared = response.headers.get_bytes(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise _response_too_large(limit)

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        """Count the response's content.

        Raises:
          ProxyError: it is too large; the client sees that it was cut.
        """
        if self.max_response_bytes is not None and body.data:
            self._sent += len(body.data)
            if self._sent > self.max_response_bytes:
                raise _response_too_large(self.max_response_bytes)


def _missing(method: str) -> ProxyError:
    return ProxyError.status(400, f"BodyGuard: {method} without content")


def _response_too_large(limit: int) -> ProxyError:
    return ProxyError.explain(
        ErrorType.ResponseTooLarge, f"BodyGuard: a response of more than {limit} bytes"
    ).into_up()


def _check_size(name: str, value: object) -> None:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name}={value!r}: bytes, a whole number from 0 on, are right")


def _a_size(_instance: object, attribute: attrs.Attribute[int | None], value: object) -> None:
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(
            f"{attribute.name}={value!r}: bytes, a whole number from 0 on, are right, or None"
        )


def _range(name: str, given: object) -> str:
    if not isinstance(given, str) or not is_media_range(given.lower()):
        raise ValueError(
            f"{name}: {given!r} is no media type: type/subtype, type/* or */* is right"
        )
    return given.lower()


def _ranges(given: Collection[str] | None) -> frozenset[str] | None:
    if given is None:
        return None
    if isinstance(given, str):
        raise ValueError(f"content_types={given!r}: a list of media types is right")
    return frozenset(_range("content_types", each) for each in given)


def _sizes(given: Mapping[str, int | None]) -> dict[str, int | None]:
    sizes: dict[str, int | None] = {}
    for kind, size in given.items():
        if size is not None:
            _check_size(f"max_bytes_by_type[{kind!r}]", size)
        sizes[_range("max_bytes_by_type", kind)] = size
    return sizes


def _methods(given: Collection[str]) -> frozenset[str]:
    if isinstance(given, str):
        raise ValueError(f"{given!r}: a list of methods is right")
    for method in given:
        if not TOKEN.fullmatch(method.encode("latin-1", "replace")):
            raise ValueError(f"{method!r} is not a method: a token (RFC 9110 section 9.1) is")
    return frozenset(given)


@attrs.frozen(kw_only=True)
class BodyGuard(HttpModuleBuilder):
    """Refuses requests by their content before an origin is asked, and bounds both directions.

    What the head tells is refused before any contact with the origin. Content without a declared
    length is counted as it streams, as it comes from the client (encoded, if it is): one byte too
    many ends the request with 413, or, where the response has begun, cuts both sides. Bodies of an
    upgraded connection are not counted.

    Attributes:
      max_request_bytes: Size of a request's content; None for no limit.
      max_bytes_by_type: Sizes by media type, which win over ``max_request_bytes``; the closest of
        ``type/subtype``, ``type/*`` and ``*/*`` counts, and None is no limit.
      content_types: The media types (and ranges) that content may have, else 415, also where it has
        no Content-Type; None allows all.
      require_body: Methods that need content, else 400.
      refuse_body: Methods that may have none, else 400.
      max_response_bytes: Size of a response's content, as it comes from the origin; what declares
        more is answered 502, what turns out to be more is cut. None for no limit.
    """

    max_request_bytes: int | None = attrs.field(default=None, validator=_a_size)
    max_bytes_by_type: Mapping[str, int | None] = attrs.field(factory=dict, converter=_sizes)
    content_types: Collection[str] | None = attrs.field(default=None, converter=_ranges)
    require_body: Collection[str] = attrs.field(default=(), converter=_methods)
    refuse_body: Collection[str] = attrs.field(default=(), converter=_methods)
    max_response_bytes: int | None = attrs.field(default=None, validator=_a_size)

    order = 100
    module_type = GuardedBodies

    def __attrs_post_init__(self) -> None:
        both = set(self.require_body) & set(self.refuse_body)
        if both:
            raise ValueError(
                f"require_body and refuse_body both have {min(both)!r}: one of the two is right"
            )

    def limit_of(self, kind: str | None) -> int | None:
        """Return the size that content of a media type may have."""
        for each in ranges_of(kind) if kind is not None else ("*/*",):
            if each in self.max_bytes_by_type:
                return self.max_bytes_by_type[each]
        return self.max_request_bytes

    def init(self) -> GuardedBodies:
        """Return the guard of a new request."""
        return GuardedBodies(self)
