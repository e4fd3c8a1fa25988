"""The trait with the cache's callbacks done: correct caching for whoever does not want to write them."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import attrs
import trio

from .._clock import wall_time
from .._errors import ErrorSource, ProxyError
from .._messages import RequestHeader, ResponseHeader
from ..cache._http_cache import CacheOptionOverrides, HttpCache
from ..cache._key import CacheKey, default_cache_key
from ..cache._meta import CacheMeta
from ..cache._phase import CachePhase, ForcedFreshness, HitStatus
from ..cache._policy import RespCacheable, Verdict
from ..cache._shared import SharedCache
from ..cache._storage import HitHandler, PurgeType
from ..semantics._cache_control import CacheControl
from ..semantics._cache_status import cache_status
from ._filters import ProxyHttp
from ._session import Session

CtxT = TypeVar("CtxT")

NOTHING_FITS = "only-if-cached, and nothing fits"

_NOTHING = CacheControl()


@attrs.define(slots=False, kw_only=True)
class CachingProxy(ProxyHttp[CtxT]):
    """A trait whose cache callbacks do all that RFC 9111 lets a shared cache do.

    Subclass it in place of `ProxyHttp` and give it a `trioproxy.cache.SharedCache`. It overrides
    `request_cache_filter`, `cache_key_callback`, `cache_hit_filter`, `ProxyHttp.cache_miss`,
    `response_cache_filter`, `cache_vary_filter`, `should_serve_stale`, `suppress_error_log`,
    `upstream_response_filter` (for what an unsafe method makes worthless) and `response_filter`
    (for Cache-Status, RFC 9211): where you override one of them too, call ``super()``.

    Attributes:
      shared_cache: The cache; None caches nothing.
    """

    shared_cache: SharedCache | None = None

    def request_cache_filter(self, session: Session, ctx: CtxT) -> None:
        """Switch the cache on for GET and HEAD, and for what a POST may leave for them."""
        shared = self.shared_cache
        request = session.req_header()
        if shared is None or request.method not in ("GET", "HEAD", "POST"):
            return
        if session.is_upgrade_req():
            return
        if request.method != "POST" and not session.is_body_empty():
            return  # row C-15
        asked = self._asks(request)
        # A POST leaves something at most, and who wants only what is stored fetches nothing: they
        # are looked up whatever was predicted. Neither has others wait for it or waits itself, nor
        # does who lets nothing be stored.
        alone = request.method == "POST" or asked.only_if_cached
        session.cache.enable(
            shared.storage,
            predictor=None if alone else shared.predictor,
            cache_lock=None if alone or asked.no_store else shared.lock,
            option_overrides=CacheOptionOverrides(wait_timeout=shared.wait_timeout),
        )
        if shared.max_file_size is not None:
            session.cache.set_max_file_size_bytes(shared.max_file_size)

    def cache_key_callback(self, session: Session, ctx: CtxT) -> CacheKey:
        """Return the default key; what a POST leaves is found by a GET."""
        assert self.shared_cache is not None
        return default_cache_key(self.shared_cache.policy.stored_as(session.req_header()))

    async def cache_hit_filter(
        self,
        session: Session,
        meta: CacheMeta,
        hit_handler: HitHandler,
        is_fresh: bool,
        ctx: CtxT,
    ) -> ForcedFreshness | None:
        """Hold what was found to what the client asks for (RFC 9111 section 5.2.1)."""
        assert self.shared_cache is not None
        now = wall_time()
        request = session.req_header()
        verdict = self.shared_cache.policy.reuse(request, meta, now=now)
        if verdict in (Verdict.FRESH, Verdict.STALE_ALLOWED) or _asked_since(session, meta, now):
            return None if is_fresh else ForcedFreshness.FORCE_FRESH
        if verdict is Verdict.REVALIDATE_BEHIND and self._asks(request).only_if_cached:
            return ForcedFreshness.FORCE_FRESH  # and nothing is fetched behind it
        if verdict in (Verdict.MISS, Verdict.ONLY_IF_CACHED):
            return ForcedFreshness.FORCE_MISS
        if verdict is Verdict.REFUSED or is_fresh:
            return ForcedFreshness.FORCE_EXPIRED
        if verdict is Verdict.EXPIRED and meta.may_serve_stale_while_revalidating(now):
            return ForcedFreshness.FORCE_EXPIRED  # others may have it stale, this client may not
        return None

    def cache_miss(self, session: Session, ctx: CtxT) -> None:
        """Go on to the origin, unless the client wants only what is stored: 504."""
        if self._asks(session.req_header()).only_if_cached:
            raise ProxyError.status(504, NOTHING_FITS)
        session.cache.cache_miss()

    def _asks(self, request: RequestHeader) -> CacheControl:
        """Return what a client says of caching, nothing where that is ignored."""
        assert self.shared_cache is not None
        asked = None
        if self.shared_cache.policy.honour_request:
            asked = CacheControl.of(request.headers)
        return asked or _NOTHING

    def response_cache_filter(
        self, session: Session, resp: ResponseHeader, ctx: CtxT
    ) -> RespCacheable:
        """Decide by the policy whether a response is stored, or what is stored freshened."""
        assert self.shared_cache is not None
        policy = self.shared_cache.policy
        request, now = session.req_header(), wall_time()
        asked_at = session._asked_at
        confirmed = session._not_modified
        if confirmed is not None:
            return policy.update(
                request,
                session.cache.cache_meta(),
                confirmed,
                request_time=asked_at,
                response_time=now,
            )
        return policy.store(
            request, resp, request_time=asked_at, response_time=now, sent=session._sent
        )

    def cache_vary_filter(self, meta: CacheMeta, ctx: CtxT, req: RequestHeader) -> bytes | None:
        """Return the variant that a request asks for, by the fields that Vary names."""
        assert self.shared_cache is not None
        return self.shared_cache.policy.variance(meta, req)

    def should_serve_stale(self, session: Session, ctx: CtxT, error: ProxyError | None) -> bool:
        """Serve stale while it is renewed, and where the origin cannot be reached."""
        if error is None:
            return True
        shared = self.shared_cache
        meta = session.cache.maybe_cache_meta()
        if error.esource is not ErrorSource.UPSTREAM or shared is None or meta is None:
            return False
        status = error.etype.code if error.etype.name == "HTTPStatus" else None
        return shared.policy.serve_stale_on_error(meta, wall_time(), status)

    def suppress_error_log(self, session: Session, ctx: CtxT, error: ProxyError) -> bool:
        """Keep out of the log that a client wanted only what is stored: it got what it asked for."""
        return error.context == NOTHING_FITS

    async def upstream_response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: CtxT
    ) -> None:
        """Drop from the cache what an unsafe method has made worthless (RFC 9111 section 4.4)."""
        shared = self.shared_cache
        if shared is None or upstream_response.status < 200:
            return
        request = session.req_header()
        if request.method in ("GET", "HEAD"):
            return
        targets = shared.policy.invalidates(request, upstream_response)
        if not targets:
            return
        keys = [default_cache_key(target) for target in targets]
        try:  # what is stored under a key of the user's own is this request's matter alone
            keys.append(self.cache_key_callback(session, ctx))
        except Exception as exc:
            session._services.log.warning(
                "cache_key_callback failed, so that nothing is dropped: %s", exc
            )
        for key in dict.fromkeys(keys):
            try:
                await shared.storage.purge(key.compact(), PurgeType.INVALIDATION)
            except Exception as exc:  # of the storage, which may be anybody's
                session._services.log.warning("a stored response was not invalidated: %s", exc)
            if shared.predictor is not None:
                shared.predictor.mark_cacheable(key)

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: CtxT
    ) -> None:
        """Say what the cache was to the response, in Cache-Status."""
        shared = self.shared_cache
        if shared is None or shared.name is None or upstream_response.status < 200:
            return
        member = describe(shared.name, session._cache, session.req_header().method)
        if member is not None:
            upstream_response.headers.add(b"Cache-Status", member)


def _asked_since(session: Session, meta: CacheMeta, now: float) -> bool:
    """Tell whether a response was asked for since this request came, by one that it waited for.

    Then it is as new as if it had been fetched for this request (RFC 9111 section 4): where many
    clients come at one time for what has to be validated for each, they need not go to the origin
    one after the other.
    """
    if session.cache.lock_duration() is None:
        return False
    came = now - (trio.current_time() - session._started)
    return meta.updated - meta.initial_age >= came


_FORWARDED = {"miss": "miss", "expired": "stale", "revalidated": "stale", "bypass": "bypass"}


def describe(name: str, cache: HttpCache | None, method: str = "GET") -> bytes | None:
    """Return the member of Cache-Status for what the cache was to a request, None for nothing."""
    if cache is None:
        return None
    phase = cache.phase()
    collapsed = cache.lock_duration() is not None
    meta = cache.maybe_cache_meta()
    ttl = None if meta is None else math.floor(meta.fresh_until - wall_time())
    if phase is CachePhase.Hit:
        forced = cache.hit_status() is HitStatus.FORCE_FRESH
        return cache_status(
            name, hit=True, ttl=ttl, collapsed=False, detail="forced" if forced else None
        )
    if phase in (CachePhase.Stale, CachePhase.StaleUpdating):
        return cache_status(name, hit=True, ttl=ttl, detail=phase.text)
    forward: Any = _FORWARDED.get(phase.text.partition("-")[0])
    if forward is None:
        if cache.maybe_cache_key() is None:
            return None
        why: Any = "uri-miss" if method in ("GET", "HEAD") else "method"
        return cache_status(name, fwd=why, collapsed=collapsed, detail=str(phase.reason))
    stored = phase in (CachePhase.Miss, CachePhase.Expired)
    if forward == "miss":
        forward = "uri-miss" if method in ("GET", "HEAD") else "method"
    return cache_status(name, fwd=forward, stored=stored, collapsed=collapsed)
