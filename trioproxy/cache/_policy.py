"""What may be stored, what may be reused, and what a change makes worthless (RFC 9111).

Pure functions over heads and moments: nothing here waits, stores or reads a clock.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import ClassVar
from urllib.parse import urljoin, urlsplit

import attrs

from .._headers import Field, Headers
from .._messages import RequestHeader, ResponseHeader
from ..semantics._cache_control import MAX_SECONDS, CacheControl
from ..semantics._dates import format_http_date, parse_date
from ..semantics._forwarding import strip_response
from ._key import VarianceBuilder, normal_authority
from ._meta import CacheMeta

#: The statuses that RFC 9110 section 15.1 calls heuristically cacheable; 206 is never stored.
HEURISTIC = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
# What an origin that cannot be reached looks like from behind a gateway, and what an origin that
# said stale-if-error may have answered besides (RFC 5861 section 4).
_UNREACHABLE = frozenset({502, 503, 504})
_ERRORS = frozenset({500, 502, 503, 504})
_UNDERSTOOD = frozenset(map(int, HTTPStatus))
# Methods that change nothing, of the IANA registry; of any other it is not known.
_SAFE = {"GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"}
_CONDITIONS = {b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"}
_OF_A_BODY = {b"content-length", b"content-type", b"content-encoding", b"transfer-encoding"}

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_AGE = re.compile(rb"[0-9]+")
_TARGET = re.compile(r"[\x21\x22\x24-\x5b\x5d-\x7e]+")
_QVALUE = re.compile(rb"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
# Fields of a 304 that describe its own framing, or the stored content (decision 32).
_KEPT_ON_304 = frozenset(
    b"content-length content-encoding content-range content-type transfer-encoding".split()
)
# Lists whose members have weights: neither their order nor their case tells anything.
_WEIGHTED = frozenset(b"accept accept-charset accept-encoding accept-language".split())
# Secrets are compared byte for byte.
_EXACT = frozenset(b"authorization cookie".split())
_LANGUAGE = "accept-language"


@attrs.frozen
class NoCacheReason:
    """Why the cache is not used (Pingora's ``NoCacheReason``): compare with ``==``.

    Attributes:
      name: The reason; your own text where ``custom`` is set.
      custom: Whether it was made by `Custom`.
    """

    name: str
    custom: bool = attrs.field(default=False, kw_only=True, repr=False)

    NeverEnabled: ClassVar[NoCacheReason]
    OriginNotCache: ClassVar[NoCacheReason]
    ResponseTooLarge: ClassVar[NoCacheReason]
    PredictedResponseTooLarge: ClassVar[NoCacheReason]
    StorageError: ClassVar[NoCacheReason]
    InternalError: ClassVar[NoCacheReason]
    Deferred: ClassVar[NoCacheReason]
    DeclinedToUpstream: ClassVar[NoCacheReason]
    UpstreamError: ClassVar[NoCacheReason]
    CacheLockGiveUp: ClassVar[NoCacheReason]
    CacheLockTimeout: ClassVar[NoCacheReason]

    @staticmethod
    def Custom(text: str) -> NoCacheReason:
        """Return a reason of your own."""
        return NoCacheReason(text, custom=True)

    def __str__(self) -> str:
        return self.name


for _name in NoCacheReason.__annotations__:
    if _name not in ("name", "custom"):
        setattr(NoCacheReason, _name, NoCacheReason(_name))


@attrs.frozen
class Cacheable:
    """A response that may be stored.

    Attributes:
      meta: What to keep of it.
    """

    meta: CacheMeta


@attrs.frozen
class Uncacheable:
    """A response that may not be stored.

    Attributes:
      reason: Why.
    """

    reason: NoCacheReason


RespCacheable = Cacheable | Uncacheable

_NOT_STORED = Uncacheable(NoCacheReason.OriginNotCache)
_NOT_THIS_TIME = Uncacheable(NoCacheReason.Deferred)
_MISMATCH = Uncacheable(NoCacheReason.UpstreamError)


@attrs.frozen
class CacheMetaDefaults:
    """What holds where a response does not say (Pingora's ``CacheMetaDefaults``).

    Attributes:
      fresh: Gives the seconds that a response of a status is fresh; None stores nothing.
      stale_while_revalidate: In seconds.
      stale_if_error: In seconds.
    """

    fresh: Callable[[int], float | None] = lambda status: None
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0

    def fresh_seconds(self, status: int) -> float | None:
        """Return how long a status is fresh; a 304 is as good as the 200 that it stands for."""
        return self.fresh(200 if status == 304 else status)


class Verdict(enum.Enum):
    """What to do with a stored response for a request."""

    #: Serve it.
    FRESH = "fresh"
    #: Serve it though it is stale, since the client allows that (max-stale).
    STALE_ALLOWED = "stale allowed"
    #: Serve it, and validate it meanwhile (stale-while-revalidate).
    REVALIDATE_BEHIND = "stale while revalidate"
    #: Validate it first, as it is stale, or not fresh enough for this client.
    EXPIRED = "expired"
    #: The client does not take it unvalidated, fresh or not (no-cache).
    REFUSED = "refused"
    #: Answer 504, as the client takes only what is stored, and nothing fits (only-if-cached).
    ONLY_IF_CACHED = "only if cached"
    #: Nothing is stored, or what is stored is none of this request's business.
    MISS = "miss"


def request_cacheable(request: RequestHeader) -> bool:
    """Tell whether a request can be answered from the cache: GET or HEAD, and no body (row C-15)."""
    if request.method not in ("GET", "HEAD"):
        return False
    facts = request.facts
    return facts is None or not (facts.has_body or facts.offers)


def resp_cacheable(
    cache_control: CacheControl | None,
    resp: ResponseHeader,
    authorization_present: bool,
    defaults: CacheMetaDefaults,
    *,
    now: float,
) -> RespCacheable:
    """Tell whether a response may be stored, and for how long (Pingora's ``resp_cacheable``).

    What the response says comes first, the defaults where it says nothing. Age and Date count as in
    RFC 9111 section 4.2.3, and what is broken counts as expired (decision 35).

    Args:
      cache_control: What its Cache-Control says, None where it has none.
      resp: The response.
      authorization_present: Whether the request had an Authorization field.
      defaults: What holds where it does not say.
      now: The wall clock.
    """
    cc = cache_control or _NOTHING
    if not _may_store(cc, resp, authorization_present) or cc.no_store:
        return _NOT_STORED
    lifetime = _explicit_lifetime(cc, resp.headers, now)
    if lifetime is None:
        lifetime = defaults.fresh_seconds(resp.status)
        if lifetime is None:
            return _NOT_STORED
    behind, error = _windows(cc, defaults.stale_while_revalidate, defaults.stale_if_error)
    return Cacheable(_meta(resp, cc, lifetime, behind, error, request_time=now, response_time=now))


def initial_age(response: ResponseHeader, *, request_time: float, response_time: float) -> float:
    """Return how old a response was when it came (RFC 9111 section 4.2.3).

    The first member of the first Age counts, and none where that is no number (section 5.1).
    """
    said = 0
    value = response.headers.get_bytes(b"age")
    if value is not None:
        first = value.partition(b",")[0].rstrip(b" \t")
        if _AGE.fullmatch(first):
            digits = first.lstrip(b"0")
            said = MAX_SECONDS if len(digits) > 10 else min(int(digits or b"0"), MAX_SECONDS)
    date = _date(response.headers, b"date", response_time)
    # Dates have whole seconds: a fraction that the origin could not say is no age.
    apparent = 0 if date is None else max(0, int(response_time) - date)
    return float(max(apparent, said + max(0.0, response_time - request_time)))


def vary_fields(headers: Headers) -> tuple[bytes, ...] | None:
    """Return the lower-case names in Vary, sorted; None where nothing matches it (``*``)."""
    values = [value for name, _, value in headers.fields if name == b"vary"]
    if not values:
        return ()
    value = b",".join(values)
    return _vary_names(value) if len(value) <= 512 else _read_vary(value)


def _read_vary(value: bytes) -> tuple[bytes, ...] | None:
    names = {name for part in value.split(b",") if (name := part.strip(b" \t").lower())}
    if b"*" in names or not all(_TOKEN.fullmatch(name) for name in names):
        return None
    return tuple(sorted(names))


_vary_names = functools.lru_cache(maxsize=512)(_read_vary)


def merge_not_modified(stored: ResponseHeader, not_modified: ResponseHeader) -> ResponseHeader:
    """Return a stored head as a 304 freshens it (RFC 9111 section 3.2, decision 32).

    Every field of the 304 replaces the stored lines of its name, except those that describe content
    or framing: Content-Length, Content-Encoding, Content-Range, Content-Type and hop-by-hop fields.
    """
    fresh = not_modified.copy()
    strip_response(fresh)
    news = [field for field in fresh.headers.fields if field[0] not in _KEPT_ON_304]
    names = {field[0] for field in news}
    names.add(b"age")  # it is counted anew, from the answer that came last
    merged = stored.copy()
    kept = [field for field in merged.headers.fields if field[0] not in names]
    merged.headers = Headers.trusted(kept + news)
    merged.facts = None
    return merged


_NOTHING = CacheControl()
_NO_FIELDS = Headers()
_NOTHING_INSTEAD: Mapping[bytes, bytes] = {}


def _date(headers: Headers, name: bytes, now: float) -> int | None:
    """Return a field's date; None where it is missing, broken, or there with two values."""
    values = {value for key, _, value in headers.fields if key == name}
    return parse_date(values.pop(), now=now) if len(values) == 1 else None


def _may_store(cc: CacheControl, resp: ResponseHeader, authorization_present: bool) -> bool:
    """Tell whether a response may be stored at all, no-store and freshness left aside."""
    if resp.status < 200 or resp.status == 206:  # row C-06
        return False
    if resp.facts is not None and resp.facts.poisoned:  # row C-16
        return False
    if cc.private or vary_fields(resp.headers) is None:
        return False
    # RFC 9111 section 3.5
    return not authorization_present or (
        cc.public or cc.must_revalidate or "s-maxage" in cc.directives
    )


def _explicit_lifetime(cc: CacheControl, headers: Headers, now: float) -> float | None:
    """Return the freshness lifetime that a response says (section 4.2.1), None where it does not."""
    if cc.no_cache:
        return 0
    lifetime = cc.s_maxage
    if lifetime is None:
        lifetime = cc.max_age
    if lifetime is not None:
        return lifetime
    return _expires_lifetime(headers, now)


def _expires_lifetime(headers: Headers, now: float) -> float | None:
    if b"expires" not in headers:
        return None
    expires = _date(headers, b"expires", now)
    if expires is None:  # broken, or two of them: expired (section 5.3)
        return 0
    date = _date(headers, b"date", now)
    return max(0, expires - (int(now) if date is None else date))


def _windows(cc: CacheControl, behind: float, error: float) -> tuple[float, float]:
    if cc.forbids_stale:
        return 0.0, 0.0
    while_revalidate, if_error = cc.stale_while_revalidate, cc.stale_if_error
    return (
        float(behind if while_revalidate is None else while_revalidate),
        float(error if if_error is None else if_error),
    )


def _meta(
    response: ResponseHeader,
    cc: CacheControl,
    lifetime: float,
    behind: float,
    error: float,
    *,
    request_time: float,
    response_time: float,
) -> CacheMeta:
    age = initial_age(response, request_time=request_time, response_time=response_time)
    return CacheMeta(
        header=_stored_header(response, cc, response_time),
        created=response_time,
        updated=response_time,
        # Before now where it came stale: what may be served stale is so from that moment on.
        fresh_until=max(0.0, response_time + lifetime - age),
        stale_while_revalidate=behind,
        stale_if_error=error,
        initial_age=age,
    )


def _stored_header(response: ResponseHeader, cc: CacheControl, now: float) -> ResponseHeader:
    """Return the part of a head that is stored (RFC 9111 section 3.1; row C-13)."""
    stored = response.copy()
    strip_response(stored)
    stored.facts = None  # they were about the message that came
    stored.version = "HTTP/1.1"
    listed = cc.private_fields | cc.no_cache_fields
    fields: list[Field] = [
        field for field in stored.headers.fields if _is_stored(field[0]) and field[0] not in listed
    ]
    stored.headers = Headers.trusted(fields)
    if b"date" not in stored.headers:  # RFC 9110 section 6.6.1
        stored.headers.add("Date", format_http_date(now))
    return stored


def _is_stored(name: bytes) -> bool:
    return name not in (b"age", b"trailer") and not name.startswith(b"proxy-")


@attrs.frozen(kw_only=True)
class SharedPolicy:
    """All that RFC 9111 lets a shared cache do, as pure functions (decisions 20 to 22, 32 to 37).

    Attributes:
      targets: Names of the fields that stand before Cache-Control, the most specific first
        (RFC 9213).
      honour_request: Whether a request's Cache-Control counts (section 5.2.1).
      store_set_cookie: Whether a response with Set-Cookie is stored where it says how long it is
        fresh (section 7.3).
      stale_on_error: For how many seconds a stale response is served where the origin cannot be
        reached, and the response does not say itself; 0 never.
      heuristic_fraction: Which part of the time since Last-Modified a response counts as fresh that
        does not say (section 4.2.2); 0 never.
      heuristic_limit: The most seconds that this may give.
      select_language: Whether a stored response in the one language that a client likes best is
        served though its Accept-Language is another than the one that it was stored for. This is
        more than the normalising that section 4.1 allows.
    """

    targets: tuple[str, ...] = ("CDN-Cache-Control",)
    honour_request: bool = True
    store_set_cookie: bool = False
    stale_on_error: float = 86400.0
    heuristic_fraction: float = 0.1
    heuristic_limit: float = 86400.0
    select_language: bool = False

    def store(
        self,
        request: RequestHeader,
        response: ResponseHeader,
        *,
        request_time: float,
        response_time: float,
        sent: RequestHeader | None = None,
    ) -> RespCacheable:
        """Tell whether a response may be stored, and what to keep of it (section 3).

        What may be stored but would have to be fetched anew each time is not.

        Args:
          request: What the client asked for.
          response: The final response; its facts say how it was framed.
          request_time: When the request was sent, by the wall clock.
          response_time: When the response came.
          sent: The request as it went upstream, where that is not the client's: a condition or a
            range in it keeps what it brought about out of the cache (rows C-06, C-10).

        Returns:
          `Cacheable` with the meta to keep, variance included. `Uncacheable` for the reason
          ``Deferred`` where it is the request that forbids to store its response, and for
          ``OriginNotCache`` where it is the response.
        """
        if response.status == 304:
            return _NOT_STORED
        # What only this request brought about says nothing of the next one for the same key.
        if _partial(sent or request, response):
            return _NOT_THIS_TIME
        if self._may_not_answer(request, response, response_time):
            return _NOT_THIS_TIME
        if self.honour_request and _refuses_storing(request):
            return _NOT_THIS_TIME
        found = self._evaluate(
            request, response, request_time=request_time, response_time=response_time
        )
        if isinstance(found, Cacheable):
            found.meta.variance = self.variance(found.meta, request)
            self._remember_language(found.meta, request)
        return found

    def update(
        self,
        request: RequestHeader,
        meta: CacheMeta,
        not_modified: ResponseHeader,
        *,
        request_time: float,
        response_time: float,
    ) -> RespCacheable:
        """Freshen a stored response by the 304 that validated it (section 4.3.4, row C-10).

        Args:
          request: What the client asked for.
          meta: What is stored; it stays as it is.
          not_modified: The 304.
          request_time: When its request was sent.
          response_time: When it came.

        Returns:
          The meta to keep from now on, with the merged head; created, variance and extensions are
          those of before. `Uncacheable` where the response may be served this once and the stored
          one must not be freshened: it forbids so now, or its validators are another response's.
        """
        if not _same_validators(meta.header.headers, not_modified.headers):
            return _MISMATCH
        if self.honour_request and _refuses_storing(request):
            return _NOT_THIS_TIME
        merged = merge_not_modified(meta.header, not_modified)
        if b"date" not in not_modified.headers:
            merged.headers.set("Date", format_http_date(response_time))
        found = self._evaluate(
            request, merged, request_time=request_time, response_time=response_time
        )
        if isinstance(found, Cacheable):
            found.meta.created = meta.created
            found.meta.variance = meta.variance
            found.meta.extensions = dict(meta.extensions)
        return found

    def reuse(self, request: RequestHeader, meta: CacheMeta | None, *, now: float) -> Verdict:
        """Tell what to do for a request with what is stored (section 4).

        Args:
          request: What the client asks for.
          meta: The stored response of the right variant, or None.
          now: The wall clock.
        """
        if not request_cacheable(request):
            return Verdict.MISS
        cc = CacheControl.of(request.headers) if self.honour_request else None
        if cc is None or not cc.directives:
            return Verdict.MISS if meta is None else _by_age(meta, now)
        verdict = Verdict.MISS if meta is None else self._by_request(cc, meta, now)
        if cc.only_if_cached and verdict in (Verdict.MISS, Verdict.EXPIRED, Verdict.REFUSED):
            return Verdict.ONLY_IF_CACHED  # section 5.2.1.7
        return verdict

    def serve_stale_on_error(self, meta: CacheMeta, now: float, status: int | None = None) -> bool:
        """Tell whether a stale response may be served since its validation failed (section 4.2.4).

        Args:
          meta: The stored response.
          now: The wall clock.
          status: What the origin answered instead of validating; None where it could not be
            reached. 502, 503 and 504 count as not reached (section 4.3.3), 500 only for a response
            that has stale-if-error; anything else is the answer.
        """
        if not meta.may_serve_stale_if_error(now):
            return False
        if status is None or status in _UNREACHABLE:
            return True
        cc = self.directives(meta.header)
        return status in _ERRORS and "stale-if-error" in cc.directives

    def variance(self, meta: CacheMeta, request: RequestHeader) -> bytes | None:
        """Return which variant of a stored response a request asks for (section 4.1, row C-07).

        The variant of the stored response itself means that it fits. Fields are compared after
        normalising: lines joined, blanks around commas dropped, and the members of Accept and its
        kin in the order of their weights.
        """
        names = vary_fields(meta.header.headers)
        if not names:  # "*" is never stored
            return None
        variance = _variance(names, request.headers)
        if self.select_language and variance != meta.variance:
            stored = meta.extensions.get(_LANGUAGE)
            if stored is not None and _likes_best(request.headers, meta.header.headers):
                same = _variance(names, request.headers, {_LANGUAGE.encode(): stored})
                if same == meta.variance:
                    return same
        return variance

    def invalidates(self, request: RequestHeader, response: ResponseHeader) -> list[RequestHeader]:
        """Return what a response makes worthless, as the GET requests that would find it.

        That is the target of any method not known to be safe, where the answer is no error, and
        what Location and Content-Location name, within the same origin (section 4.4, row C-11).
        """
        if request.method in _SAFE or request.method == "CONNECT":
            return []
        if not 200 <= response.status < 400 or request.target == b"*":
            return []
        targets = [request.target]
        for name in ("location", "content-location"):
            for value in response.headers.get_all(name):
                target = _own_target(request, value)
                if target is not None and target not in targets:
                    targets.append(target)
        return [_get(request, target) for target in targets]

    def stored_as(self, request: RequestHeader) -> RequestHeader:
        """Return the request that a response is stored for: GET, where it was a POST."""
        if request.method in ("GET", "HEAD"):
            return request
        return _get(request, request.target)

    def directives(self, response: ResponseHeader) -> CacheControl:
        """Return what counts as a response's Cache-Control: the targeted one where it is valid."""
        targeted = CacheControl.targeted(response.headers, self.targets)
        return targeted or CacheControl.of(response.headers) or _NOTHING

    def _says(self, headers: Headers, now: float) -> tuple[CacheControl, float | None]:
        """Return a response's directives, and the freshness lifetime that it says."""
        targeted = CacheControl.targeted(headers, self.targets)
        if targeted is not None:  # then Expires counts as little as Cache-Control (RFC 9213)
            return targeted, _explicit_lifetime(targeted, _NO_FIELDS, now)
        cc = CacheControl.of(headers) or _NOTHING
        return cc, _explicit_lifetime(cc, headers, now)

    def _by_request(self, cc: CacheControl, meta: CacheMeta, now: float) -> Verdict:
        """Apply a request's directives (section 5.2.1)."""
        if cc.no_cache:
            return Verdict.REFUSED
        left = meta.fresh_until - now
        max_age, min_fresh, max_stale = cc.max_age, cc.min_fresh, cc.max_stale
        # 0 asks for a validation, whatever the resolution of clocks.
        if max_age is not None and (not max_age or meta.age(now) > max_age):
            return Verdict.EXPIRED
        if min_fresh is not None and left < min_fresh:  # 0 asks for what is not stale
            return Verdict.EXPIRED
        verdict = _by_age(meta, now)
        if verdict is Verdict.REVALIDATE_BEHIND and max_age is not None and max_stale is None:
            return Verdict.EXPIRED  # section 5.2.1.1
        if verdict is Verdict.EXPIRED and max_stale and -left <= max_stale:
            forbidden = self.directives(meta.header).forbids_stale
            return Verdict.EXPIRED if forbidden else Verdict.STALE_ALLOWED
        return verdict

    def _may_not_answer(self, request: RequestHeader, response: ResponseHeader, now: float) -> bool:
        """Tell whether a response to this method cannot answer a later GET."""
        if request_cacheable(request):
            return False
        if request.method != "POST" or response.status != 200:
            return True
        # RFC 9110 section 9.3.3: it says its freshness, and that it is the target's own state.
        if not self._says(response.headers, now)[1]:
            return True
        locations = response.headers.get_all("content-location")
        return len(locations) != 1 or _own_target(request, locations[0]) != request.target

    def _evaluate(
        self,
        request: RequestHeader,
        response: ResponseHeader,
        *,
        request_time: float,
        response_time: float,
    ) -> RespCacheable:
        cc, lifetime = self._says(response.headers, response_time)
        if not _may_store(cc, response, b"authorization" in request.headers):
            return _NOT_STORED
        if cc.must_understand:  # section 5.2.2.3: it stands for no-store where we do understand
            if response.status not in _UNDERSTOOD:
                return _NOT_STORED
        elif cc.no_store:
            return _NOT_STORED
        explicit = lifetime is not None
        if lifetime is None:
            lifetime = self._heuristic_lifetime(cc, response, response_time)
            if lifetime < 1:
                return _NOT_STORED
        behind, error = _windows(cc, 0.0, self.stale_on_error)
        meta = _meta(
            response,
            cc,
            lifetime,
            behind,
            error,
            request_time=request_time,
            response_time=response_time,
        )
        kept = meta.header.headers
        if b"set-cookie" in kept and not (explicit and self.store_set_cookie):  # row C-04
            return _NOT_STORED
        if meta.born_stale and not behind and b"etag" not in kept and b"last-modified" not in kept:
            return _NOT_STORED
        return Cacheable(meta)

    def _heuristic_lifetime(self, cc: CacheControl, response: ResponseHeader, now: float) -> float:
        """Return the lifetime of a response that does not say (section 4.2.2), 0 for none."""
        if response.status not in HEURISTIC and not cc.public:
            return 0.0
        modified = _date(response.headers, b"last-modified", now)
        if modified is None:
            return 0.0
        date = _date(response.headers, b"date", now)
        since = (int(now) if date is None else date) - modified
        return min(max(0.0, since * self.heuristic_fraction), self.heuristic_limit)

    def _remember_language(self, meta: CacheMeta, request: RequestHeader) -> None:
        names = vary_fields(meta.header.headers)
        if self.select_language and names and _LANGUAGE.encode() in names:
            value = _joined(_LANGUAGE.encode(), request.headers)
            if value is not None:
                meta.extensions[_LANGUAGE] = value


def _partial(sent: RequestHeader, response: ResponseHeader) -> bool:
    """Tell whether a response is only what a range, a condition or HEAD left of the whole."""
    names = {field[0] for field in sent.headers.fields}
    if sent.method == "HEAD" or b"range" in names:
        return True
    return response.status == 412 and not names.isdisjoint(_CONDITIONS)


def _refuses_storing(request: RequestHeader) -> bool:
    cc = CacheControl.of(request.headers)
    return cc is not None and cc.no_store


def _by_age(meta: CacheMeta, now: float) -> Verdict:
    if meta.is_fresh(now):
        return Verdict.FRESH
    if meta.may_serve_stale_while_revalidating(now):
        return Verdict.REVALIDATE_BEHIND
    return Verdict.EXPIRED


def _same_validators(stored: Headers, news: Headers) -> bool:
    """Tell whether a 304 speaks of the stored response (RFC 9111 section 4.3.4).

    The tags are compared weakly; the dates decide where one of the two has no tag.
    """
    old, new = stored.get_bytes(b"etag"), news.get_bytes(b"etag")
    if old is not None and new is not None:
        return old.removeprefix(b"W/") == new.removeprefix(b"W/")
    old, new = stored.get_bytes(b"last-modified"), news.get_bytes(b"last-modified")
    return old is None or new is None or old == new


def _get(request: RequestHeader, target: bytes) -> RequestHeader:
    """Return the GET request for a target of the same origin."""
    fields = [field for field in request.headers.fields if field[0] not in _OF_A_BODY]
    return RequestHeader.trusted(
        "GET", target, request.version, Headers.trusted(fields), request.scheme, None
    )


def _own_target(request: RequestHeader, reference: str) -> bytes | None:
    """Return the target that a URI reference names, None where it is of another origin."""
    base = f"{request.scheme}://{request.authority}{request.target.decode('latin-1')}"
    try:
        scheme, authority, path, query, _ = urlsplit(urljoin(base, reference))
    except ValueError:
        return None
    own = normal_authority(request.scheme, request.authority)
    if scheme != request.scheme or normal_authority(scheme, authority) != own:
        return None
    target = (path or "/") + (f"?{query}" if query else "")
    return target.encode("ascii") if _TARGET.fullmatch(target) else None


def _variance(
    names: tuple[bytes, ...], headers: Headers, instead: Mapping[bytes, bytes] = _NOTHING_INSTEAD
) -> bytes | None:
    values = [instead.get(name) or _joined(name, headers) for name in names]
    size = sum([len(value) for value in values if value is not None])
    digest = _cached_digest if size <= 512 else _digest
    return digest(names, tuple(values))


def _digest(names: tuple[bytes, ...], values: tuple[bytes | None, ...]) -> bytes | None:
    builder = VarianceBuilder()
    for name, value in zip(names, values, strict=True):
        builder.add(name, None if value is None else _normal(name, value))
    return builder.finalize()


_cached_digest = functools.lru_cache(maxsize=1024)(_digest)


def _joined(name: bytes, headers: Headers) -> bytes | None:
    """Return the lines of a field as one, None where it is absent."""
    values = [value for key, _, value in headers.fields if key == name]
    return b",".join(values) if values else None


def _normal(name: bytes, value: bytes) -> bytes:
    """Return a request's field as it is compared (section 4.1)."""
    if name in _EXACT or b'"' in value:
        return value
    if name in _WEIGHTED:
        weighted = _by_weight(value)
        if weighted is not None:
            return b",".join([b"%b;q=%d" % (member, weight) for weight, member in weighted])
    return b",".join([part.strip(b" \t") for part in value.split(b",")])


def _by_weight(value: bytes) -> list[tuple[int, bytes]] | None:
    """Return the members of a list with their weights in thousandths, the best first."""
    members: set[tuple[int, bytes]] = set()
    for part in value.split(b","):
        first, *parameters = [each.strip(b" \t") for each in part.split(b";")]
        if not first:
            continue
        weight = b"1"
        if parameters and parameters[-1][:2].lower() == b"q=":
            weight = parameters.pop()[2:]
        if not _QVALUE.fullmatch(weight):
            return None
        members.add((round(float(weight) * 1000), b";".join([first.lower(), *parameters])))
    return sorted(members, key=lambda member: (-member[0], member[1]))


def _likes_best(request: Headers, stored: Headers) -> bool:
    """Tell whether the one language of a response is the one that a client likes best."""
    languages = stored.get_all(b"content-language")
    wanted = _by_weight(_joined(_LANGUAGE.encode(), request) or b"")
    if not wanted or len(languages) != 1 or wanted[0][0] == 0:
        return False
    best = [member for weight, member in wanted if weight == wanted[0][0]]
    return best == [languages[0].strip().lower().encode("latin-1")]
