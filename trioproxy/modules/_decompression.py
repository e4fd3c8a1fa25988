"""Decompression of requests, before any filter looks at the content."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs

from .._errors import ErrorType, ProxyError
from .._messages import ResponseHeader
from ..semantics._content_coding import content_codings, forget_content
from ._abc import HttpModule, HttpModuleBuilder
from ._codings import CODINGS, CodingError, Decoder, decoder, installed, load
from ._inflation import Inflation, InflationLimits, TooMuch

if TYPE_CHECKING:
    from .._messages import BodyChunk, RequestHeader
    from ..proxy._session import Session


def _codings(value: Any) -> tuple[str, ...]:
    if value is None:
        return installed()
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"algorithms={value!r}: names of codings are right")
    found = tuple(value)
    for coding in found:
        if coding not in CODINGS:
            raise ValueError(f"algorithms: {coding!r} is no coding: {', '.join(CODINGS)} are")
        load(coding)
    if not found:
        raise ValueError("algorithms=(): at least one coding is right")
    return found


def _limits(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, InflationLimits):
        raise ValueError(f"{attribute.name}={value!r}: InflationLimits are right")


class RequestDecompression(HttpModule):
    """Decodes one request's content: filters and the origin get it plain.

    A coding that is not among the builder's, or several of them on top of each other, are answered
    with 415 and an Accept-Encoding that says what would be right (RFC 9110 section 15.5.16); content
    that cannot be decoded, or is cut off, with 400; what becomes too much (row R-10) with 413.
    """

    def __init__(self, options: RequestDecompressionBuilder) -> None:
        self._options = options
        self._coding = ""
        self._decoder: Decoder | None = None
        self._inflation = Inflation(options.limits)

    def __repr__(self) -> str:
        return f"<RequestDecompression {self._coding or 'of nothing'}>"

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Make the head that of plain content, or refuse what cannot be decoded."""
        codings = content_codings(request.headers)
        if not codings or session.is_body_empty():
            return False
        coding = codings[0].decode("latin-1")
        if len(codings) > 1 or coding not in self._options.algorithms:
            fields = [
                ("Accept-Encoding", ", ".join(self._options.algorithms)),
                ("Content-Length", "0"),
                ("Cache-Control", "private, no-store"),
            ]
            await session.write_response_header(ResponseHeader(415, fields), end_of_stream=True)
            return True
        self._coding = coding
        self._decoder = decoder(coding)
        request.headers.remove(b"content-encoding")
        forget_content(request.headers)
        return False

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> bool:
        """Decode a piece."""
        if self._decoder is None:
            return False
        try:
            more, body.data = self._inflation.step(self._decoder, body.data, end_of_stream)
        except CodingError as exc:
            raise self._refusal(400, exc) from exc
        except TooMuch as exc:
            raise self._refusal(413, exc) from exc
        return more

    def _refusal(self, status: int, cause: Exception) -> ProxyError:
        return ProxyError.because(
            ErrorType.HTTPStatus(status), f"decoding a request in {self._coding}", cause
        ).into_down()

    def response_done_filter(self, session: Session) -> None:
        """Let go of the decoder."""
        self._decoder = None


@attrs.frozen
class RequestDecompressionBuilder(HttpModuleBuilder):
    """Adds decompression of requests to a proxy: ``modules.add_module(RequestDecompressionBuilder())``.

    Attributes:
      algorithms: The codings that are decoded; None takes zstd, br, gzip and deflate, as far as they
        are installed.
      limits: How much a request may become (row R-10).
    """

    algorithms: tuple[str, ...] = attrs.field(default=None, kw_only=True, converter=_codings)
    limits: InflationLimits = attrs.field(factory=InflationLimits, kw_only=True, validator=_limits)

    #: Before every module that may want to read the content.
    order = 1000
    module_type = RequestDecompression

    def init(self) -> RequestDecompression:
        """Return the decompression of a new request."""
        return RequestDecompression(self)
