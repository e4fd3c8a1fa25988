"""Compression of responses, on the client's side and before the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._errors import ErrorType, ProxyError
from ..semantics._cache_control import CacheControl
from ..semantics._conditional import entity_tags
from ..semantics._content_coding import (
    AcceptEncoding,
    accept_encoding,
    content_codings,
    forbids_transforming,
    forget_digests,
    recode,
    vary_by_encoding,
)
from ._abc import HttpModule, HttpModuleBuilder
from ._codings import (
    CODINGS,
    CodingError,
    Decoder,
    Encoder,
    available,
    decoder,
    encoder,
    installed,
    load,
)
from ._inflation import Inflation, InflationLimits, TooMuch

if TYPE_CHECKING:
    from .._headers import Headers
    from .._messages import BodyChunk, ResponseHeader
    from ..proxy._session import Session

#: What is worth it: ``text/*`` is every kind of text, ``*+json`` every kind with that suffix.
CONTENT_TYPES = (
    "text/*",
    "*+json",
    "*+xml",
    "*+text",
    "application/json",
    "application/javascript",
    "application/x-javascript",
    "application/xml",
    "application/wasm",
    "application/x-ndjson",
    "application/yaml",
    "application/toml",
    "application/sql",
    "application/rtf",
    "application/vnd.ms-fontobject",
    "application/x-font-ttf",
    "font/ttf",
    "font/otf",
    "font/collection",
    "image/bmp",
    "image/x-icon",
    "image/vnd.microsoft.icon",
)

# What every client takes is what is stored for all of them.
_STORED_FIRST = "gzip"
_NO_CONTENT = (204, 205)


def _level(name: str, value: object, top: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= top:
        raise ValueError(f"{name}={value!r}: 0 (off) to {top} is right")
    return value


def _known(name: str, coding: object) -> str:
    if not isinstance(coding, str) or coding not in CODINGS:
        raise ValueError(f"{name}: {coding!r} is no coding: {', '.join(CODINGS)} are")
    load(coding)
    return coding


def _algorithms(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"algorithms={value!r}: names of codings, best first, are right")
    found = tuple(_known("algorithms", coding) for coding in value)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"algorithms={found!r}: one or more codings, each of them once, are right")
    return found


def _types(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"content_types={value!r}: a list of media types is right")
    found = []
    for each in value:
        if not isinstance(each, str) or not (
            each.count("/") == 1 or (each.startswith("*+") and len(each) > 2)
        ):
            raise ValueError(
                f"content_types: {each!r} is no media type: 'text/html', 'text/*' or '*+json' is "
                "right"
            )
        found.append(each.lower())
    return tuple(found)


def _size(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{attribute.name}={value!r}: 0 or more bytes are right")


def _flag(_instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: True or False is right")


def _limits(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, InflationLimits):
        raise ValueError(f"{attribute.name}={value!r}: InflationLimits are right")


def _levels(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"algorithm_levels={value!r}: a mapping of codings to levels is right")
    return {
        _known("algorithm_levels", coding): _level(
            f"algorithm_levels: {coding}", level, CODINGS[coding].top
        )
        for coding, level in value.items()
    }


class ResponseCompression(HttpModule):
    """One request's compression (Pingora's ``ResponseCompressionCtx``).

    `adjust_level`, `adjust_algorithm_level` and `adjust_decompression` hold for the next response
    head that comes by: call them before.

    A response is compressed where its type is worth it, it has no coding yet, and the client wants
    one that there is a level for. It is left alone where Cache-Control says no-transform (in the
    response or in the request), and where it is a part, an answer to CONNECT or without content.
    """

    def __init__(
        self,
        options: ResponseCompressionBuilder,
        downstream: ResponseCompression | None = None,
        *,
        upstream: bool = False,
    ) -> None:
        """Make the compression of one request.

        Args:
          options: What holds unless it is adjusted.
          downstream: Of the upstream's side: the instance that decodes what was stored for clients
            that do not take it.
          upstream: Whether it acts on the upstream's side.
        """
        self.options = options
        self._downstream = downstream
        self._upstream = upstream
        self._levels = dict.fromkeys(
            options.algorithms or installed(), 0 if upstream else options.level
        )
        if not upstream:
            self._levels |= options.algorithm_levels
        self._decompresses = options.decompress and not upstream
        self._always = False
        #: Whether what the cache holds was perhaps encoded for all clients alike.
        self.restores = False
        # Of the response under way.
        self._source: str | None = None
        self._target: str | None = None
        self._decoder: Decoder | None = None
        self._encoder: Encoder | None = None
        self._inflation: Inflation | None = None
        self._unflushed = False

    def __repr__(self) -> str:
        levels = ", ".join(f"{coding} {level}" for coding, level in self._levels.items() if level)
        return f"<ResponseCompression {levels or 'off'}>"

    # -- what a filter sets ----------------------------------------------------------------------

    def adjust_level(self, level: int) -> None:
        """Set the level of every algorithm; 0 switches compression off.

        Args:
          level: From 1, fastest, to 9, smallest.
        """
        _level("level", level, 9)
        for coding in self._levels:
            self._levels[coding] = level
        self._adjusted()

    def adjust_algorithm_level(self, algorithm: str, level: int) -> None:
        """Set the level of one algorithm; 0 switches it off.

        Args:
          algorithm: ``"gzip"``, ``"deflate"``, ``"br"`` or ``"zstd"``.
          level: From 1 to 9 for gzip and deflate, to 11 for br, to 19 for zstd. br from 9 on, zstd
            from 13 on, and gzip and deflate at 9 take so long that a thread does the work; br at 9
            has 32 MB of memory for it.

        Raises:
          ValueError: there is no such algorithm or level, or its package is not installed.
        """
        coding = _known("algorithm", algorithm)
        self._levels[coding] = _level(f"level of {coding}", level, CODINGS[coding].top)
        self._adjusted()

    def adjust_decompression(self, enable: bool, *, always: bool = False) -> None:
        """Choose whether content in a coding that the client does not take is decoded for it.

        Args:
          enable: Whether it is.
          always: Whether it is even where the client takes the coding: for filters that want to
            read the content. On the upstream's side those are all of the trait.
        """
        self._decompresses = enable
        self._always = enable and always
        self._adjusted()

    def _adjusted(self) -> None:
        if self._downstream is not None and any(self._levels.values()):
            self._downstream.restores = True

    # -- the head --------------------------------------------------------------------------------

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Decide what becomes of the content, and make the head fit it."""
        if response.status < 200:
            return
        self._source = self._target = self._decoder = self._encoder = None
        self._unflushed = False
        compresses = any(self._levels.values())
        if not (compresses or self._decompresses or self.restores):
            return
        if response.status == 304:
            self._unmodified(session, response.headers)
            return
        request, headers = session.req_header(), response.headers
        if (
            response.status in _NO_CONTENT
            or response.status == 206
            or b"content-range" in headers
            or request.method == "CONNECT"
            or (end_of_stream and request.method != "HEAD")
            or forbids_transforming(headers)
        ):
            return
        codings = [coding.decode("latin-1") for coding in content_codings(headers)]
        if len(codings) > 1 or (codings and not available(codings[0])):
            return
        source = codings[0] if codings else None
        accept = accept_encoding(request.headers)
        stores = self._stores(session, headers)
        target = None
        worth = compresses and self._worth(headers, coded=source is not None)
        if worth and (stores or not forbids_transforming(request.headers)):
            target = self._choose(accept, stores=stores)
        if source is None:
            if worth and not stores:
                vary_by_encoding(headers)
            if target is None:
                return
        else:
            taken = accept is not None and accept.weight(source.encode("ascii")) > 0
            fits = self._decompresses or self.restores
            if (fits and not self._always) or (self._always and worth and not stores):
                vary_by_encoding(headers)
            if not (self._always or (fits and not taken)) or target == source:
                return
        self._source, self._target = source, target
        recode(headers, None if target is None else target.encode("ascii"))
        if response.facts is not None:
            # Nobody knows how long it is, and it is framed as what comes like that.
            response.facts = attrs.evolve(
                response.facts, content_length=None, chunked=True, until_close=False
            )

    def _stores(self, session: Session, headers: Headers) -> bool:
        """Tell whether the cache may keep the response: then it is encoded for all clients alike."""
        if self._downstream is None or not session.cache.enabled():
            return False
        control = CacheControl.of(headers)
        return control is None or not control.directives.keys() & {"no-store", "private"}

    def _worth(self, headers: Headers, *, coded: bool) -> bool:
        """Tell whether content of this type and length is to be compressed."""
        length = headers.get_bytes(b"content-length")
        known = not coded and length is not None and length.isdigit()
        if known and int(length or b"") < self.options.min_size:
            return False
        value = headers.get_bytes(b"content-type")
        if value is None:
            return False
        kind = value.partition(b";")[0].strip(b" \t").lower().decode("latin-1")
        return self.options.compresses(kind)

    def _choose(self, accept: AcceptEncoding | None, *, stores: bool) -> str | None:
        """Return the coding that the client gets, None for none."""
        on = [coding for coding, level in self._levels.items() if level]
        if stores:
            return _STORED_FIRST if _STORED_FIRST in on else on[0]
        if accept is None:
            return None
        chosen = accept.choose([coding.encode("ascii") for coding in on])
        return None if chosen is None else chosen.decode("ascii")

    def _unmodified(self, session: Session, headers: Headers) -> None:
        """Give a 304 the entity tag of the response that it is about (RFC 9110 section 15.4.5)."""
        if b"vary" in headers:
            vary_by_encoding(headers)
        tag = headers.get_bytes(b"etag")
        if tag is None or tag.startswith(b"W/"):
            return
        held: list[bytes] = []
        meta = session.cache.maybe_cache_meta() if self._upstream else None
        if meta is not None:
            held = [meta.header.headers.get_bytes(b"etag") or b""]
        else:
            for value in session.req_header().headers.get_all(b"if-none-match"):
                held += entity_tags(value.encode("latin-1"))
        if b"W/" + tag in held and tag not in held:
            headers.set(b"ETag", b"W/" + tag)

    # -- the content -----------------------------------------------------------------------------

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> bool:
        """Decode and encode a piece."""
        if self._source is None and self._target is None:
            return False
        more = False
        if self._source is not None:
            more = self._decode(self._source, body, end_of_stream)
        if self._target is not None:
            await self._encode(self._target, body, end_of_stream and not more)
        return more

    def _decode(self, coding: str, body: BodyChunk, end_of_stream: bool) -> bool:
        """Decode a piece, or the next part of what it becomes; tell whether there is more of it."""
        if self._decoder is None:
            self._decoder = decoder(coding)
            self._inflation = Inflation(self.options.limits)
        assert self._inflation is not None
        try:
            more, body.data = self._inflation.step(self._decoder, body.data, end_of_stream)
        except (CodingError, TooMuch) as exc:
            raise ProxyError.because(
                ErrorType.CompressionError, f"decoding a response in {coding}", exc
            ).into_up() from exc
        return more

    async def _encode(self, coding: str, body: BodyChunk, last: bool) -> None:
        if self._encoder is None:
            self._encoder = encoder(coding, self._levels[coding])
        data = body.data
        if not data and not last:
            return
        self._unflushed = not last
        if self._slow(coding):
            body.data = await trio.to_thread.run_sync(_work, self._encoder, data, last)
        else:
            body.data = _work(self._encoder, data, last)

    def _slow(self, coding: str) -> bool:
        return self._levels[coding] >= CODINGS[coding].slow

    async def response_flush_filter(self, session: Session, body: BodyChunk) -> None:
        """Let everything that came be decodable: it may be long until more comes."""
        if self._encoder is None or not self._unflushed:
            return
        assert self._target is not None
        self._unflushed = False
        if self._slow(self._target):
            body.data = await trio.to_thread.run_sync(self._encoder.flush)
        else:
            body.data = self._encoder.flush()

    async def response_trailer_filter(self, session: Session, trailers: Headers) -> None:
        """Drop digests of the content as it came."""
        if self._source is not None or self._target is not None:
            forget_digests(trailers)

    def response_done_filter(self, session: Session) -> None:
        """Let go of the coders."""
        self._source = self._target = self._decoder = self._encoder = None


def _work(encoder: Encoder, data: bytes | None, last: bool) -> bytes:
    encoded = encoder.encode(data) if data else b""
    return encoded + encoder.finish() if last else encoded


@attrs.frozen
class ResponseCompressionBuilder(HttpModuleBuilder):
    """Adds compression to a proxy (Pingora's ``ResponseCompressionBuilder``).

    The trait's own `init_downstream_modules` adds it at level 0, so that a filter can switch it on:
    ``session.downstream_modules_ctx.get(ResponseCompression).adjust_level(6)``.

    Attributes:
      level: From 1, fastest, to 9, smallest; 0 is off.
      algorithms: The codings that may be used, and which one of those that a client wants as much as
        each other: the first. None stands for zstd, br, gzip and deflate, as far as they are installed.
      algorithm_levels: Levels of single algorithms, which have ranges of their own
        (`ResponseCompression.adjust_algorithm_level`).
      decompress: Whether content in a coding that the client does not take is decoded for it.
      content_types: What is compressed: ``"text/html"``, ``"text/*"`` or ``"*+json"``.
      min_size: Bytes of content that are too few to compress, where the length is known.
      limits: How much a response may become when it is decoded (row R-10).
      on_demand: Whether it is off unless a filter asks for it: no level is given, nor ``decompress``.
    """

    level: int = attrs.field(default=0)
    algorithms: tuple[str, ...] | None = attrs.field(
        default=None, kw_only=True, converter=_algorithms
    )
    algorithm_levels: Mapping[str, int] = attrs.field(
        factory=dict, kw_only=True, converter=_levels, hash=False
    )
    decompress: bool = attrs.field(default=False, kw_only=True, validator=_flag)
    content_types: tuple[str, ...] = attrs.field(
        default=CONTENT_TYPES, kw_only=True, converter=_types
    )
    min_size: int = attrs.field(default=20, kw_only=True, validator=_size)
    limits: InflationLimits = attrs.field(factory=InflationLimits, kw_only=True, validator=_limits)

    on_demand: bool = attrs.field(init=False, repr=False)

    #: Behind every module that may change the content.
    order = -1000
    module_type = ResponseCompression

    def __attrs_post_init__(self) -> None:
        _level("level", self.level, 9)
        works = self.level or any(self.algorithm_levels.values()) or self.decompress
        object.__setattr__(self, "on_demand", not works)
        for coding in self.algorithm_levels:
            if self.algorithms is not None and coding not in self.algorithms:
                raise ValueError(
                    f"algorithm_levels: {coding} is not in algorithms={self.algorithms!r}"
                )

    def compresses(self, kind: str) -> bool:
        """Tell whether content of a type, in lower case and without parameters, is compressed."""
        if kind.startswith("application/grpc"):  # messages, each of which may have a coding
            return False
        main, _, sub = kind.partition("/")
        suffix = sub.rpartition("+")[2]
        types = self.content_types
        return kind in types or f"{main}/*" in types or ("+" in sub and f"*+{suffix}" in types)

    def init(self) -> ResponseCompression:
        """Return the compression of a new request."""
        return ResponseCompression(self)


def upstream_compression(session: Session) -> ResponseCompression:
    """Return the compression of a request that acts before the filters and the cache: off."""
    downstream = session.downstream_modules_ctx.get(ResponseCompression)
    options = ResponseCompressionBuilder() if downstream is None else downstream.options
    return ResponseCompression(options, downstream, upstream=True)
