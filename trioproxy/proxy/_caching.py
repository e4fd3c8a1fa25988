"""What the engine does with a cache: look up before the upstream, fill behind it, serve from storage.

The cache itself knows no session (`trioproxy.cache`); this is the one place that knows both. What
is stored is served by a `HitStream`, an `UpstreamStream` that reads storage. What comes from the
origin goes through a `TapStream` around the upstream stream: it runs the filters of the upstream's
side, stores what passes by, and cuts what the client asked for out of it. The pump sees a message
stream either way. Read `cache_stage` for what comes before the upstream, `TapStream._head` for what
becomes of a response.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import trio

from .._clock import http_date, wall_time
from .._errors import ErrorSource, ErrorType, ProxyError
from .._messages import (
    END,
    BodyChunk,
    Data,
    RequestEvent,
    ResponseEvent,
    ResponseFacts,
    ResponseHeader,
)
from ..cache._http_cache import HttpCache
from ..cache._lock import LockStatus
from ..cache._phase import CachePhase, CacheStateError, HitStatus, PurgeStatus
from ..cache._policy import Cacheable, NoCacheReason, merge_not_modified
from ..cache._storage import declared_size
from ..semantics._conditional import evaluate_conditions, not_modified, precondition_failed
from ..semantics._forwarding import strip_response
from ..semantics._range import (
    InvalidRange,
    MultiRange,
    NoRange,
    RangePlan,
    RangeSlicer,
    RangeType,
    SingleRange,
)
from ..streams._abc import UpstreamStream
from ._failure import as_proxy_error, canned_head
from ._over import OverStream
from ._pump import Exchange, check_delay, pump_response
from ._subrequest import renew

if TYPE_CHECKING:
    from .._config import ServerConf
    from .._info import ConnectionInfo
    from ..cache._meta import CacheMeta
    from ..cache._policy import RespCacheable
    from ..cache._storage import HitHandler
    from ._bound import Filters
    from ._session import Session

log = logging.getLogger("trioproxy")

#: Waits for another request that fills, before a request goes on without the cache (decision 28).
MAX_ROUNDS = 4
#: Bytes of a stored response that are sent before other tasks get their turn.
YIELD_EVERY = 131072
#: Bytes of a stored response that are sent at once, where there are so many.
WORTH_SENDING = 16384


class ServeStored(Exception):
    """Raised out of a `TapStream`: what is stored is to be served in place of what the origin said."""


def warn(what: str, exc: Exception) -> None:
    """Log what went wrong with the cache, which is no matter of the client's."""
    if isinstance(exc, ProxyError):  # it says all there is to say
        log.warning("%s: %s", what, exc)
    else:
        log.warning("%s: %s: %s", what, type(exc).__name__, exc, exc_info=exc)


def _too_large(exc: Exception) -> bool:
    return isinstance(exc, ProxyError) and exc.etype == ErrorType.ResponseTooLarge


# -- before the upstream -------------------------------------------------------------------------


async def cache_stage(session: Session, filters: Filters, ctx: Any, conf: ServerConf) -> bool:
    """Run the phases of the cache up to the look-up's end; True where the request was answered.

    Raises:
      Exception: what a callback raised that fails the request.
    """
    if filters.request_cache_filter is not None:
        session._phase = "request_cache_filter"
        try:
            filters.request_cache_filter(session, ctx)
        except Exception as exc:  # logged and ignored (Pingora)
            warn("request_cache_filter failed, the cache stays as it was", exc)
    cache = session._cache
    if cache is not None and cache.enabled() and _has_content(session):
        cache.disable(NoCacheReason.Custom("request with content"))  # row C-15
    if cache is not None and cache.phase() is CachePhase.Uninit:
        session._phase = "cache_key_callback"
        try:
            cache.set_cache_key(filters.cache_key_callback(session, ctx))
        except Exception as exc:  # without a key nothing can be cached
            warn("cache_key_callback failed, the request is not cached", exc)
            cache.disable(NoCacheReason.StorageError)
    if filters.is_purge is not None:
        session._phase = "is_purge"
        if filters.is_purge(session, ctx):
            await _purge(session, filters, ctx, conf)
            return True
    subrequest = session.subrequest_ctx
    permit = None if subrequest is None else subrequest.take_permit()
    if cache is None or not cache.enabled():
        if permit is not None:  # those who wait for this request wait in vain
            permit.release(LockStatus.TRANSIENT_ERROR)
        return False
    if permit is not None:
        cache.set_write_lock(permit)
    return await _look_up(session, filters, ctx, conf, cache)


def _has_content(session: Session) -> bool:
    return session.req_header().method in ("GET", "HEAD") and not session.is_body_empty()


async def _purge(session: Session, filters: Filters, ctx: Any, conf: ServerConf) -> None:
    """Delete what is stored under the key, and say how that went (trait 8.12)."""
    cache = session._cache
    status = PurgeStatus.NO_CACHE if cache is None else await cache.try_purge()
    head = canned_head(conf.server_name, status.code)
    if filters.purge_response_filter is not None:
        session._phase = "purge_response_filter"
        try:
            filters.purge_response_filter(session, ctx, status, head)
        except Exception as exc:
            as_proxy_error(exc, session)  # told
            head = canned_head(conf.server_name, 500)
    session._plain = True
    await session.write_response_header(head, end_of_stream=True)


async def _look_up(
    session: Session, filters: Filters, ctx: Any, conf: ServerConf, cache: HttpCache
) -> bool:
    """Look the key up, wait for others that fill, and serve what is there (trait 8.6)."""
    if not cache.cacheable_prediction():
        cache.bypass()
        return False
    waits = 0
    while True:
        try:
            found = await _find(session, filters, ctx, cache)
        except Exception as exc:
            if session._phase != "cache_lookup" or isinstance(exc, CacheStateError):
                raise
            warn("a look-up in the cache failed", exc)
            if cache.enabled():
                _miss(session, filters, ctx)
            return False
        if not cache.enabled():
            return False
        if found is not None:
            await _judge(session, filters, ctx, cache, *found)
            if not cache.enabled():
                return False
            if cache.phase() is CachePhase.Hit:
                await serve_stored(session, filters, ctx, conf, cache)
                return True
            if cache.phase() is CachePhase.Stale and cache.maybe_cache_meta() is not None:
                if _may_serve_while_updating(session, filters, ctx, cache):
                    cache.set_stale_updating()
                    await serve_stored(session, filters, ctx, conf, cache)
                    return True
                if not cache.is_cache_locked():
                    return False
        if not cache.is_cache_locked():
            _miss(session, filters, ctx)
            return False
        if waits == MAX_ROUNDS:
            cache.disable(NoCacheReason.CacheLockTimeout)
            return False
        waits += 1
        session._phase = "waiting for the cache lock"
        status = await cache.cache_lock_wait()
        if not status.retries():
            cache.disable(
                NoCacheReason.CacheLockGiveUp
                if status is LockStatus.GIVE_UP
                else NoCacheReason.CacheLockTimeout
            )
            return False


def _miss(session: Session, filters: Filters, ctx: Any) -> None:
    session._phase = "cache_miss"
    filters.cache_miss(session, ctx)


async def _find(
    session: Session, filters: Filters, ctx: Any, cache: HttpCache
) -> tuple[CacheMeta, HitHandler] | None:
    """Look up the right variant (trait 8.8)."""
    session._phase = "cache_lookup"
    found = await cache.cache_lookup()
    if found is None:
        return None
    meta, handler = found
    vary = filters.cache_vary_filter
    try:
        if cache.cache_key().variance is None and vary is not None:
            session._phase = "cache_vary_filter"
            variance = vary(meta, ctx, session.req_header())
            if variance is None or cache.cache_vary_lookup(variance, meta):
                return found
            handler.close_now()
            session._phase = "cache_lookup"
            found = await cache.cache_lookup()
            if found is None:
                return None
            meta, handler = found
        if meta.variance != cache.cache_key().variance and cache.cache_key().variance is not None:
            handler.close_now()
            cache.disable(NoCacheReason.InternalError)
            return None
    except BaseException:
        handler.close_now()
        raise
    return found


async def _judge(
    session: Session,
    filters: Filters,
    ctx: Any,
    cache: HttpCache,
    meta: CacheMeta,
    handler: HitHandler,
) -> None:
    """Let the hit filter have its say, and take what was found for what it is."""
    is_fresh = meta.is_fresh(wall_time())
    status = HitStatus.of(is_fresh)
    if filters.cache_hit_filter is not None:
        session._phase = "cache_hit_filter"
        try:
            forced = await filters.cache_hit_filter(session, meta, handler, is_fresh, ctx)
            status = HitStatus.of(is_fresh, forced)
        except Exception as exc:  # logged, and a miss (Pingora)
            warn("cache_hit_filter failed, what was found counts as a miss", exc)
            status = HitStatus.FAILED_HIT_FILTER
        except BaseException:
            handler.close_now()
            raise
    if cache.enabled():  # the filter may have switched it off
        cache.cache_found(meta, handler, status)


def _may_serve_while_updating(
    session: Session, filters: Filters, ctx: Any, cache: HttpCache
) -> bool:
    """Tell whether a stale response is served while somebody fetches it anew (trait 8.15)."""
    waits, writes = cache.is_cache_locked(), cache.is_cache_lock_writer()
    if not (waits or writes) or session.is_subrequest() or not cache.can_serve_stale_updating():
        return False
    session._phase = "should_serve_stale"
    if not filters.should_serve_stale(session, ctx, None):
        return False
    return waits or renew(session, cache)


def stored_validators(cache: HttpCache) -> ResponseHeader | None:
    """Return the stored head that the origin is asked to confirm, None where there is none."""
    return cache.cache_meta().header if cache.phase() is CachePhase.Stale else None


# -- serving -------------------------------------------------------------------------------------


def stored_head(cache: HttpCache) -> ResponseHeader:
    """Return a copy of the stored head as a client gets it, with its Age."""
    head = cache.cache_meta().served_header(wall_time())
    head.facts = None
    head.version = "HTTP/1.1"
    return head


def fit_to_request(
    session: Session, filters: Filters, ctx: Any, head: ResponseHeader, *, ranges: bool
) -> RangeType | None:
    """Apply the client's conditions and ranges to a whole response; None where no content follows.

    Args:
      session: The client's.
      filters: Its callbacks.
      ctx: Its context.
      head: Rewritten to a 304, 412, 206 or 416.
      ranges: Whether a part of the content can be had.
    """
    request = session.req_header()
    if evaluate_conditions(request, head) == 412:
        precondition_failed(head)
        return None
    session._phase = "cache_not_modified_filter"
    try:
        unchanged = bool(filters.cache_not_modified_filter(session, head, ctx))
    except Exception as exc:  # logged, the whole response is sent (Pingora)
        warn("cache_not_modified_filter failed, the whole response is sent", exc)
        unchanged = False
    if unchanged:
        not_modified(head)
        return None
    if not ranges or session.ignore_downstream_range or _recoded(session, head):
        return NoRange()
    session._phase = "range_header_filter"
    chosen: RangeType = filters.range_header_filter(session, head, ctx)
    return None if isinstance(chosen, InvalidRange) else chosen


def _recoded(session: Session, head: ResponseHeader) -> bool:
    """Tell whether the client may get other bytes than these, as we have encoded them for storing."""
    return session._upstream_compression is not None and b"content-encoding" in head.headers


async def serve_stored(
    session: Session, filters: Filters, ctx: Any, conf: ServerConf, cache: HttpCache
) -> None:
    """Answer with what is stored.

    An exception answers 500 where nothing was sent, and cuts the response otherwise; it is kept as
    the session's error and goes no further (Pingora).
    """
    try:
        handler = cache.hit_handler()
        head = stored_head(cache)
        request = session.req_header()
        # The origin need not have said how long it is: a part can be had all the same.
        measured = b"range" in request.headers and b"content-length" not in head.headers
        if measured and handler.size is not None and head.status == 200:
            head.headers.set(b"Content-Length", b"%d" % handler.size)
        chosen = fit_to_request(session, filters, ctx, head, ranges=handler.can_seek())
        if measured and isinstance(chosen, NoRange):
            head.headers.remove(b"content-length")  # a filter of the content is free as before
        if request.method == "HEAD" or head.status in (204, 304):
            chosen = None
        stream = HitStream(session.downstream_session.info, head, handler, chosen)
        exchange = Exchange(session, filters.of_client, ctx, stream, request, conf)
        await pump_response(exchange)
        await cache.finish_hit_handler()
    except Exception as exc:  # a hit fails by itself: it has no attempt, and no peer to blame
        error = as_proxy_error(exc, session)
        session.error = error
        if session.response_started():
            session.downstream_session.keepalive = None
        elif error.esource is not ErrorSource.DOWNSTREAM:
            try:
                await session.respond_error(500)
            except ProxyError:
                session.downstream_session.keepalive = None


class HitStream(UpstreamStream):
    """A stored response as an exchange with an origin would give it."""

    def __init__(
        self,
        info: ConnectionInfo,
        head: ResponseHeader,
        handler: HitHandler,
        chosen: RangeType | None,
    ) -> None:
        """Read what was found.

        Args:
          info: Of the client's connection: there is none to an origin.
          head: What the client gets.
          handler: Reads the content.
          chosen: Which part of it; None for none.
        """
        self.info = info
        self.reused = False
        self.read_timeout = self.write_timeout = 0.0
        self.body_bytes_received = 0
        self.write_pending_time = 0.0
        self._head: ResponseHeader | None = head
        self._handler = handler
        self._chosen = chosen
        head.facts = ResponseFacts(has_body=chosen is not None)
        plan = chosen.plan() if isinstance(chosen, (SingleRange, MultiRange)) else None
        self._pieces: Iterator[Any] | None = iter(plan.pieces) if plan is not None else None
        self._plan: RangePlan | None = plan
        self._left = handler.size
        self._ended = False
        #: Bytes read since the last checkpoint: neither a store in memory nor a socket need be one.
        self._unyielding = 0

    @property
    def anything_sent(self) -> bool:
        """False: no origin was asked."""
        return False

    def fileno(self) -> int:
        """Return -1: there is no socket."""
        return -1

    async def send(self, *events: RequestEvent) -> None:
        """Take no notice of the request: it was answered."""

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return the head with the first content, then piece by piece."""
        batch: list[ResponseEvent] = []
        head, self._head = self._head, None
        if head is not None:
            batch.append(head)
            if self._chosen is None:
                batch.append(END)
                self._ended = True
                return batch
            # The end of the session's nursery is a schedule point: another one here would be dear.
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._handler.size is None:
                return batch  # its content is still being written, and may take its time
        if self._ended:
            await trio.sleep_forever()
        if self._unyielding >= YIELD_EVERY:
            self._unyielding = 0
            await trio.lowlevel.checkpoint()
        if self._plan is None:
            await self._whole(batch)
        else:
            await self._parts(batch, self._plan)
        return batch

    async def _read(self) -> bytes | None:
        data = await self._handler.read_body()
        if data is not None:
            self._unyielding += len(data)
        return data

    async def _whole(self, batch: list[ResponseEvent]) -> None:
        data = await self._read()
        if data is None:
            batch.append(END)
            self._ended = True
            return
        if self._left is not None:  # then all of it is there, and nothing of it is waited for
            self._left -= len(data)
            if self._left and len(data) < WORTH_SENDING:
                data = await self._more(data, self._left)
        self._ended = self._left == 0
        batch.append(Data(data, self._ended))

    async def _more(self, data: bytes, left: int) -> bytes:
        """Return a piece with those behind it: origins write in small ones, each stored as it came."""
        pieces, size = [data], len(data)
        while left > 0 and size < WORTH_SENDING:
            piece = await self._read()
            if piece is None:
                break
            pieces.append(piece)
            size += len(piece)
            left -= len(piece)
        self._left = left
        return b"".join(pieces)

    async def _parts(self, batch: list[ResponseEvent], plan: RangePlan) -> None:
        data = await self._read() if self._left is None else None
        if data is not None:
            batch.append(Data(data))
            return
        assert self._pieces is not None
        piece = next(self._pieces, None)
        if piece is None:
            if plan.tail:
                batch.append(Data(plan.tail))
            batch.append(END)
            self._ended = True
            return
        if piece.before:
            batch.append(Data(piece.before))
        self._handler.seek(piece.start, piece.end)
        self._left = None
        data = await self._read()
        if data is not None:
            batch.append(Data(data))

    def release(self) -> None:
        """Let go of the entry."""
        self._handler.close_now()


# -- what comes from the origin ------------------------------------------------------------------


class TapStream(OverStream):
    """The origin's side of an exchange, with the cache looking on."""

    def __init__(
        self,
        inner: UpstreamStream,
        session: Session,
        filters: Filters,
        ctx: Any,
        cache: HttpCache,
        *,
        rewritten: bool,
    ) -> None:
        """Look on at an attempt.

        Args:
          inner: The stream to the origin.
          session: The client's.
          filters: Its callbacks; those of the upstream's side run here.
          ctx: Its context.
          cache: Its cache, enabled or bypassed, or disabled behind `fill_request`.
          rewritten: Whether the request was rewritten to fill the cache: then the client's
            conditions and ranges are applied here.
        """
        super().__init__(inner)
        self._session = session
        self._filters = filters
        self._ctx = ctx
        self._cache = cache
        self.rewritten = rewritten
        #: Whether a filter runs here that may change how long the content is.
        self.alters = (
            filters.upstream_response_filter is not None
            or filters.upstream_response_body_filter is not None
        )
        #: Whether the response is being stored.
        self.filling = False
        self._filled = False
        self._written = 0
        self._counting = False
        self._over = False
        self._head_only = session.req_header().method == "HEAD"
        self._client_done = False
        self._slicer: RangeSlicer | None = None
        self._pending: list[ResponseEvent] = []
        self._has_body = False
        self._chunk = BodyChunk()

    @property
    def outlives_client(self) -> bool:
        """Whether the transfer goes on without its client (trait 6.4)."""
        stores = self.filling or self._filled
        return stores and self._cache.storage_supports_streaming_partial_write()

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what goes to the client, when what it is made of was stored.

        Raises:
          ServeStored: what is stored is to be served instead.
        """
        out: list[ResponseEvent] = []
        while not out:
            if not self._pending:
                self._pending = list(await self._inner.receive_batch())
            while self._pending:
                if out and self._filters.upstream_response_body_filter is not None:
                    return out  # it may want to wait, and what is due is not to wait with it
                event = self._pending.pop(0)
                if type(event) is ResponseHeader:
                    await self._head(event, out)
                else:
                    await self._content(event, out)
        return out

    # -- the head --------------------------------------------------------------------------------

    async def _head(self, head: ResponseHeader, out: list[ResponseEvent]) -> None:
        session, filters, cache = self._session, self._filters, self._cache
        strip_response(head)
        final = head.status >= 200 or head.status == 101
        if final and head.status >= 500 and self._prefers_stale(head.status):
            cache.release_write_lock(NoCacheReason.UpstreamError)
            raise ServeStored
        confirmed = final and head.status == 304 and cache.phase() is CachePhase.Stale
        if filters.upstream_response_filter is not None:
            session._phase = "upstream_response_filter"
            try:
                await filters.upstream_response_filter(session, head, self._ctx)
            except Exception as exc:
                if not confirmed:
                    raise
                as_proxy_error(exc, session)  # told; what is stored is served this once
                cache.revalidate_uncacheable(cache.cache_meta().header, NoCacheReason.InternalError)
                raise ServeStored from exc
        if not final:
            out.append(head)
            return
        if confirmed:
            await self._revalidate(head)
            raise ServeStored
        # What comes behind a 101 has an end as well, which a filter is told.
        self._has_body = head.status == 101 or head.facts is None or head.facts.has_body
        if cache.bypassing():
            await self._reconsider(head)
        elif cache.enabled():
            await self._admit(head)
        if self.rewritten:
            self._fit(head)
        out.append(head)
        if self._client_done:
            out.append(END)

    def _prefers_stale(self, status: int) -> bool:
        """Tell whether what is stored is better than a 5xx (trait 8.15)."""
        if not self._cache.can_serve_stale_error():
            return False
        error = ProxyError.explain(
            ErrorType.HTTPStatus(status), f"the origin answered {status}"
        ).into_up()
        self._session._phase = "should_serve_stale"
        return bool(self._filters.should_serve_stale(self._session, self._ctx, error))

    def _fit(self, head: ResponseHeader) -> None:
        """Apply what the client asked for, and the origin was not told."""
        facts = head.facts
        has_body = facts.has_body if facts is not None else True
        chosen = fit_to_request(self._session, self._filters, self._ctx, head, ranges=has_body)
        if chosen is None or self._head_only:
            self._client_done = True  # its end follows at once, what is stored goes on
            head.facts = ResponseFacts(has_body=False)
        elif not isinstance(chosen, NoRange):
            self._slicer = RangeSlicer(chosen)
            head.facts = ResponseFacts()

    def _verdict(self, head: ResponseHeader) -> Cacheable | NoCacheReason:
        """Ask `response_cache_filter`; its failure means that nothing is stored."""
        self._session._phase = "response_cache_filter"
        try:
            verdict: RespCacheable = self._filters.response_cache_filter(
                self._session, head, self._ctx
            )
        except Exception as exc:
            warn("response_cache_filter failed, the response is not stored", exc)
            return NoCacheReason.StorageError
        if not isinstance(verdict, Cacheable):
            return verdict.reason
        if head.facts is not None and head.facts.poisoned:  # row C-16
            return NoCacheReason.OriginNotCache
        sent = self._session._sent
        if sent is not None and b"range" in sent.headers:  # row C-06
            return NoCacheReason.Deferred
        return verdict

    async def _admit(self, head: ResponseHeader) -> None:
        """Open the storage for a response, where it is to be stored."""
        cache = self._cache
        if head.status == 304:  # of nothing that we hold
            reason = NoCacheReason.Custom("304 on miss")
            cache.response_became_uncacheable(reason)
            cache.disable(reason)
            return
        verdict = self._verdict(head)
        if not isinstance(verdict, Cacheable):
            cache.response_became_uncacheable(verdict)
            cache.disable(verdict)
            return
        facts = head.facts
        length = facts.content_length if facts is not None else None
        most = cache.max_file_size_bytes()
        if most is not None and length is not None and length > most:
            self._session.ignore_downstream_range = True
            cache.response_became_uncacheable(NoCacheReason.ResponseTooLarge)
            cache.disable(NoCacheReason.ResponseTooLarge)
            return
        await self._open(verdict.meta)

    async def _open(self, meta: CacheMeta) -> None:
        cache = self._cache
        cache.set_cache_meta(meta)
        vary = self._filters.cache_vary_filter
        if vary is not None:
            self._session._phase = "cache_vary_filter"
            cache.update_variance(vary(meta, self._ctx, self._session.req_header()))
        # A client that is gone already is not to take others along, who read what is stored here.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await cache.set_miss_handler()
        except CacheStateError:
            raise
        except Exception as exc:
            if _too_large(exc):
                self._session.ignore_downstream_range = True
                cache.response_became_uncacheable(NoCacheReason.ResponseTooLarge)
                cache.disable(NoCacheReason.ResponseTooLarge)
            else:
                warn("the cache takes nothing in", exc)
                cache.disable(NoCacheReason.StorageError)
            return
        self.filling = True
        if self.outlives_client and not self._session.is_subrequest():
            self._session.downstream_session.unwatch()

    async def _reconsider(self, head: ResponseHeader) -> None:
        """Look at a response that was predicted not to be cacheable (trait 3, 8.14)."""
        cache, session = self._cache, self._session
        verdict = self._verdict(head)
        if not isinstance(verdict, Cacheable):
            if verdict == NoCacheReason.Deferred:
                cache.disable(verdict)
            return
        facts = head.facts
        length = facts.content_length if facts is not None else None
        most = cache.max_file_size_bytes()
        if most is not None and length is None:
            self._counting = True
            cache.disable(NoCacheReason.PredictedResponseTooLarge)
            return
        if most is not None and length is not None and length > most:
            cache.disable(NoCacheReason.ResponseTooLarge)
            return
        cache.response_became_cacheable()
        if session.req_header().method == "GET" and head.status == 200:
            _miss(session, self._filters, self._ctx)
            if cache.enabled():
                await self._open(verdict.meta)
        else:
            cache.disable(NoCacheReason.Deferred)

    async def _revalidate(self, head: ResponseHeader) -> None:
        """Take a 304 for what is stored (trait 8.9, decision 32)."""
        cache = self._cache
        merged = merge_not_modified(cache.cache_meta().header, head)
        if b"date" not in head.headers:  # the stored one would make it as old as before
            merged.headers.set(b"Date", http_date())
        self._session._not_modified = head
        self._session._phase = "response_cache_filter"
        try:
            verdict = self._filters.response_cache_filter(self._session, merged, self._ctx)
        except Exception as exc:
            warn("response_cache_filter failed, what is stored is not refreshed", exc)
            cache.revalidate_uncacheable(merged, NoCacheReason.InternalError)
            return
        if isinstance(verdict, Cacheable):
            await cache.revalidate_cache_meta(verdict.meta)
        else:
            cache.revalidate_uncacheable(merged, verdict.reason)

    # -- the content -----------------------------------------------------------------------------

    async def _content(self, event: ResponseEvent, out: list[ResponseEvent]) -> None:
        """Take what follows the head."""
        if type(event) is Data:
            self._inner.body_bytes_received += len(event.data)
            await self._piece(event.data, event.end, out)
            if event.end:
                await self._stored()
                self._end(out)
        elif self._over:  # behind the trailers
            self._finish(out, event)
        else:
            if self._has_body:
                await self._piece(b"", True, out)
            elif self.filling:  # a body filter sees no end where there is no body, a store does
                await self._store(b"", True)
            await self._stored()
            self._finish(out, event)

    async def _piece(self, data: bytes, last: bool, out: list[ResponseEvent]) -> None:
        """Filter a piece, store it and pass on what the client wants of it."""
        body_filter = self._filters.upstream_response_body_filter
        if body_filter is not None:
            session, chunk = self._session, self._chunk
            session._phase = "upstream_response_body_filter"
            chunk.data = data or None
            delay = body_filter(session, chunk, last, self._ctx)
            if self._filters.upstream_response_body_filter_is_async:
                delay = await delay
            data = chunk.data or b""
            if delay:
                check_delay(session, delay)
                await trio.sleep(delay)
        if self.filling:
            await self._store(data, last)
        elif self._counting:
            self._cache.track_body_bytes_for_max_file_size(len(data))
        if self._client_done or not data:
            return
        slicer = self._slicer
        if slicer is None:
            out.append(Data(data))
            return
        out.extend(Data(piece) for piece in slicer.feed(data, last) if piece)
        if slicer.done:
            self._end(out)

    def _end(self, out: list[ResponseEvent]) -> None:
        """End the client's copy, with its last piece where that has not left yet."""
        if self._client_done:
            return
        last = out[-1] if out else None
        if type(last) is Data and not last.end:
            out[-1] = Data(last.data, True)
        else:
            out.append(END)
        self._client_done = True

    def _finish(self, out: list[ResponseEvent], event: ResponseEvent) -> None:
        """Pass the end on, or the trailers, unless the client has got its end already."""
        if not self._client_done:
            out.append(event)
        self._client_done = self._client_done or event is END

    async def _store(self, data: bytes, last: bool) -> None:
        cache = self._cache
        if not cache.enabled():  # switched off by the other direction, or by a filter
            self.filling = False
            return
        try:
            self._written += len(data)
            self.filling = await cache.write_miss_body(data, last)
        except CacheStateError:
            raise
        except Exception as exc:
            self.filling = False
            if _too_large(exc):
                cache.response_became_uncacheable(NoCacheReason.ResponseTooLarge)
                cache.disable(NoCacheReason.ResponseTooLarge)
            else:
                warn("the cache stores no more of a response", exc)
                cache.disable(NoCacheReason.StorageError)

    async def _stored(self) -> None:
        """Make what was stored visible: the response came to its proper end."""
        self._over = True
        cache = self._cache
        if self._counting and not cache.exceeded_max_file_size():
            cache.response_became_cacheable()
        if self.filling:
            self.filling = False
            try:
                self._check_length(cache.cache_meta())
                await cache.finish_miss_handler()
                self._filled = True
            except CacheStateError:
                raise
            except Exception as exc:
                warn("the cache did not keep a response", exc)
                cache.disable(NoCacheReason.StorageError)

    def _check_length(self, meta: CacheMeta) -> None:
        """Refuse to keep what is longer or shorter than its own head says (decision 41)."""
        declared = declared_size(meta)
        if self._has_body and declared is not None and declared != self._written:
            raise ProxyError.explain(
                ErrorType.InternalError,
                f"{self._written} bytes were stored of a response whose Content-Length "
                f"is {declared}: a filter of the upstream's side that changes its length removes "
                "that in upstream_response_filter",
            ).into_in()

    async def finish_fill(self) -> None:
        """Take the rest of a response for the cache, when its client has all it wants.

        What goes wrong from here on is the cache's matter alone.
        """
        self._client_done = True
        try:
            while self.filling and not self._over:
                if not self._pending:
                    self._pending = list(await self._inner.receive_batch())
                while self._pending:
                    await self._content(self._pending.pop(0), [])
        except Exception as exc:  # of the origin, or of the filter of its content
            warn("the rest of a response did not come, nothing of it is kept", exc)
            self._cache.disable(NoCacheReason.UpstreamError)
