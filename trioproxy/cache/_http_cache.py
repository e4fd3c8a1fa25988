"""The state of one request towards the cache: what ``session.cache`` is.

A request goes through phases, one event at a time; `_phase.TRANSITIONS` has every pair allowed.
Any other pair is a mistake of the program and raises `CacheStateError`, so that a filter that calls
at the wrong moment is found by its first request. Nothing here knows a session or decides anything:
the policy decides, the engine calls, this keeps the books. It holds what has to be given back (the
write permit, the reader, the writer) and gives it back on every way out: `HttpCache.disable` and
`HttpCache.close` are synchronous and may be called at any time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

import attrs
import trio

from .._clock import wall_time
from .._messages import ResponseHeader
from ._eviction import EvictionManager
from ._held import Held, admit, evict, purge, purge_quietly
from ._key import CacheKey
from ._lock import CacheLock, LockStatus, WaitHandle, WritePermit
from ._meta import CacheMeta
from ._phase import (
    NEVER_ENABLED,
    TRANSITIONS,
    UPSTREAM_USED,
    CachePhase,
    CacheStateError,
    HitStatus,
    PurgeStatus,
)
from ._policy import NoCacheReason, merge_not_modified
from ._predictor import Predictor
from ._storage import HitHandler, MissHandler, Storage

_log = logging.getLogger("trioproxy")

# How often one look-up looks, where others fill the key meanwhile.
_LOOKS = 3

#: Starts a function in the background, in a nursery that outlives the request.
Spawn = Callable[[Callable[[], Awaitable[None]]], None]


class TraceSpan(Protocol):
    """What `HttpCache.enable_tracing` writes to: OpenTelemetry's ``Span`` is one."""

    def add_event(self, name: str, attributes: Mapping[str, str] | None = None) -> None:
        """Take something that happened at this moment."""

    def set_attribute(self, key: str, value: str | float) -> None:
        """Take a fact, in place of what the key had before."""


@attrs.frozen
class CacheOptionOverrides:
    """What one request wants otherwise (Pingora's ``CacheOptionOverrides``).

    Attributes:
      wait_timeout: Seconds that this request may wait for a cache lock, all waits together.
    """

    wait_timeout: float | None = None


class HttpCache:
    """One request's dealings with the cache (Pingora's ``HttpCache``): ``session.cache``.

    A cache that was never enabled holds nothing but its phase. Whatever the phase does not allow
    raises `CacheStateError`.
    """

    __slots__ = (
        "_body_bytes",
        "_inner",
        "_key",
        "_lock_duration",
        "_lookup_duration",
        "_max_file_size",
        "_phase",
        "_predictor",
        "_preset_lock",
        "_span",
        "_spawn",
    )

    def __init__(self, spawn: Spawn | None = None) -> None:
        """Make a cache that is not enabled.

        Args:
          spawn: Starts purges that need not be waited for. Without it, evicted entries are purged
            before `finish_miss_handler` returns, and `spawn_async_purge` is not possible.
        """
        self._spawn = spawn
        self._phase = NEVER_ENABLED
        self._inner: Held | None = None
        # These are still wanted when the cache was disabled: for the predictor, and for the log.
        self._key: CacheKey | None = None
        self._predictor: Predictor | None = None
        self._max_file_size: int | None = None
        self._body_bytes = 0
        self._lock_duration: float | None = None
        self._lookup_duration: float | None = None
        self._preset_lock: tuple[CacheLock | None, CacheOptionOverrides | None] | None = None
        self._span: TraceSpan | None = None

    def __repr__(self) -> str:
        return f"<HttpCache {self._phase}>"

    # -- setting up ------------------------------------------------------------------------------

    def enable(
        self,
        storage: Storage,
        eviction: EvictionManager | None = None,
        predictor: Predictor | None = None,
        cache_lock: CacheLock | None = None,
        option_overrides: CacheOptionOverrides | None = None,
    ) -> None:
        """Switch the cache on for this request; `request_cache_filter` is the place to do so.

        Args:
          storage: Where responses are kept.
          eviction: Decides what the storage drops, where the storage does not do so by itself.
          predictor: Remembers what is not cacheable.
          cache_lock: Lets one request at a time fetch what many want.
          option_overrides: What this request wants otherwise.

        Raises:
          CacheStateError: the cache is on already.
        """
        self._check("enable")
        if cache_lock is None and self._preset_lock is not None:
            cache_lock, preset = self._preset_lock
            option_overrides = preset if option_overrides is None else option_overrides
        if eviction is not None and getattr(storage, "eviction", None) is eviction:
            eviction = None  # The storage tells it of everything by itself.
        self._enter(CachePhase.Uninit)
        self._key = None
        self._max_file_size = None
        self._body_bytes = 0
        self._predictor = predictor
        self._inner = Held(storage, eviction, cache_lock, _wait_timeout(option_overrides))

    def set_cache_lock(
        self, cache_lock: CacheLock | None, option_overrides: CacheOptionOverrides | None = None
    ) -> None:
        """Set another cache lock, or none, before this request holds one or waits.

        With the cache off, the lock is kept for `enable`.

        Raises:
          CacheStateError: a lock is held.
        """
        self._check("set_cache_lock")
        inner = self._inner
        if inner is None:
            self._preset_lock = cache_lock, option_overrides
            return
        if inner.lock is not None:
            raise CacheStateError(f"set_cache_lock while a lock is held, in phase {self._phase}")
        inner.cache_lock = cache_lock
        inner.wait_timeout = _wait_timeout(option_overrides)

    def set_max_file_size_bytes(self, limit: int) -> None:
        """Set how many bytes of body are stored at most; the head does not count.

        Raises:
          CacheStateError: the cache is off.
          ValueError: the limit is negative.
        """
        self._check("set_max_file_size_bytes")
        if limit < 0:
            raise ValueError(f"a file of {limit} bytes cannot be")
        self._max_file_size = limit

    def set_cache_key(self, key: CacheKey) -> None:
        """Set the key, or another one before the lookup."""
        self._check("set_cache_key")
        self._key = key
        self._enter(CachePhase.CacheKey)

    def enable_tracing(self, span: TraceSpan) -> None:
        """Tell a span what becomes of the request (Pingora's ``enable_tracing``), in any phase.

        Each phase from here on is an event ``cache.phase`` with the attributes ``phase``, its text,
        and ``reason`` where it has one. The attributes ``cache.lookup_duration`` and
        ``cache.lock_duration`` (seconds, all look-ups and all waits together) and
        ``cache.hit_status`` (`HitStatus`) are set as they come to be known. The span belongs to
        the caller, who ends it. One that fails is logged and told nothing more.

        Args:
          span: OpenTelemetry's ``Span``, or what has its ``add_event`` and ``set_attribute``.
        """
        self._span = span

    # -- looking ---------------------------------------------------------------------------------

    def phase(self) -> CachePhase:
        """Return the phase."""
        return self._phase

    def enabled(self) -> bool:
        """Return whether the cache is on and not bypassed."""
        return self._phase.name not in ("Disabled", "Bypass")

    def bypassing(self) -> bool:
        """Return whether the lookup was skipped, the response still being looked at."""
        return self._phase is CachePhase.Bypass

    def upstream_used(self) -> bool:
        """Return whether the origin had a say in the response."""
        return self._phase.name in UPSTREAM_USED

    def cache_key(self) -> CacheKey:
        """Return the key; it stays known when the cache is disabled later.

        Raises:
          CacheStateError: there is none.
        """
        if self._key is None:
            raise self._wrong("cache_key")
        return self._key

    def maybe_cache_key(self) -> CacheKey | None:
        """Return the key, or None where there is none."""
        return self._key

    def cache_meta(self) -> CacheMeta:
        """Return the metadata of the response that was found or is being stored.

        Raises:
          CacheStateError: there is none.
        """
        self._check("cache_meta")
        return self._meta("cache_meta")

    def maybe_cache_meta(self) -> CacheMeta | None:
        """Return the metadata, or None where there is none."""
        return None if self._inner is None else self._inner.meta

    def hit_status(self) -> HitStatus | None:
        """Return what the last lookup that found something counted as, or None."""
        return None if self._inner is None else self._inner.hit_status

    def lock_duration(self) -> float | None:
        """Return the seconds spent waiting for the cache lock, None without a wait."""
        return self._lock_duration

    def lookup_duration(self) -> float | None:
        """Return the seconds spent in lookups, None without one."""
        return self._lookup_duration

    def max_file_size_bytes(self) -> int | None:
        """Return how many bytes of body are stored at most, None without a limit."""
        return self._max_file_size

    def exceeded_max_file_size(self) -> bool:
        """Return whether the body was found to be longer than that."""
        return self._max_file_size is not None and self._body_bytes > self._max_file_size

    def storage_type_is(self, kind: type[Storage]) -> bool:
        """Return whether the cache is on with a storage of this class."""
        return self._inner is not None and isinstance(self._inner.storage, kind)

    def storage_supports_streaming_partial_write(self) -> bool:
        """Return whether the cache is on with a storage that can be read while written."""
        return self._inner is not None and self._inner.storage.supports_streaming_partial_write

    def can_serve_stale_error(self) -> bool:
        """Return whether a stale response is held that may be served in place of an error."""
        meta = self._stale_meta()
        return meta is not None and meta.may_serve_stale_if_error(wall_time())

    def can_serve_stale_updating(self) -> bool:
        """Return whether a stale response is held that may be served while it is fetched anew."""
        meta = self._stale_meta()
        return meta is not None and meta.may_serve_stale_while_revalidating(wall_time())

    # -- leaving ---------------------------------------------------------------------------------

    def disable(self, reason: NoCacheReason) -> None:
        """Switch the cache off for this request, in any phase; what is held is given back.

        A write lock is released with the status that `CacheLock.status_for` has for the reason.
        A cache that was never enabled stays so; one that is off takes the new reason.

        Raises:
          CacheStateError: the reason is ``NeverEnabled``.
        """
        if reason == NoCacheReason.NeverEnabled:
            raise CacheStateError(f"disable(NeverEnabled) in phase {self._phase}")
        if self._phase == NEVER_ENABLED:
            return
        self._enter(CachePhase.Disabled(reason))
        inner, self._inner = self._inner, None
        if inner is not None:
            try:
                inner.clear()
            finally:
                inner.release_for(reason)

    def bypass(self) -> None:
        """Skip the lookup: the response is likely not cacheable."""
        self._check("bypass")
        self._enter(CachePhase.Bypass)

    def close(self) -> None:
        """Give back whatever is held, at the end of the request; phase and metadata stay.

        A write permit that is still held is dropped, so that those who wait take over. To be
        called in any phase and any number of times.
        """
        inner = self._inner
        if inner is not None:
            try:
                inner.clear()
            finally:
                lock, inner.lock = inner.lock, None
                if isinstance(lock, WritePermit):
                    lock.drop()

    # -- prediction ------------------------------------------------------------------------------

    def cacheable_prediction(self) -> bool:
        """Return whether the response is likely cacheable; without a predictor it always is.

        Raises:
          CacheStateError: there is no key.
        """
        key = self.cache_key()
        return self._predictor is None or self._predictor.cacheable_prediction(key)

    def response_became_cacheable(self) -> None:
        """Tell the predictor that the response is cacheable.

        Raises:
          CacheStateError: there is no key.
        """
        key = self.cache_key()
        if self._predictor is not None:
            self._predictor.mark_cacheable(key)

    def response_became_uncacheable(self, reason: NoCacheReason) -> None:
        """Tell the predictor that the response is not cacheable, so that the next one is bypassed.

        Raises:
          CacheStateError: there is no key.
        """
        key = self.cache_key()
        if self._predictor is not None:
            self._predictor.mark_uncacheable(key, reason)

    # -- the lookup ------------------------------------------------------------------------------

    async def cache_lookup(self) -> tuple[CacheMeta, HitHandler] | None:
        """Look the key up; where nothing valid is there, take the cache lock or a place behind it.

        The handler goes on to `cache_found`; if it does not get there, whatever is called next
        instead closes it.

        Raises:
          ProxyError: the storage failed. No lock was taken.
        """
        self._check("cache_lookup")
        inner, key = self._on, self.cache_key()
        if inner.found is not None:
            inner.found.close_now()
            inner.found = None
        lock = inner.cache_lock
        for left in reversed(range(_LOOKS)):
            written = 0 if lock is None else lock.written(key)
            found = await self._look(inner, key)
            if self._inner is not inner:
                return None
            # A writer was done while this request looked: what it has stored may be there now.
            again = left > 0 and lock is not None and lock.written(key) != written
            if found is not None:
                meta, handler = found
                if not again or meta.is_fresh(wall_time()):
                    inner.found = handler
                    return found
                handler.close_now()
            elif not again:
                break
        inner.take_lock(key, stale=False)
        return None

    async def _look(self, inner: Held, key: CacheKey) -> tuple[CacheMeta, HitHandler] | None:
        """Look the key up once; return what is valid of what is there."""
        begun = trio.current_time()
        try:
            found = await inner.storage.lookup(key)
        finally:
            self._lookup_duration = (self._lookup_duration or 0.0) + trio.current_time() - begun
            self._tell("cache.lookup_duration", self._lookup_duration)
        if found is not None:
            meta, handler = found
            if self._inner is inner and (
                inner.valid_after is None or meta.created >= inner.valid_after
            ):
                return found
            # Disabled meanwhile, by the request's other direction; or its primary was purged or
            # replaced since, and it speaks of another resource's state.
            handler.close_now()
        return None

    def is_wrong_variant(self, meta: CacheMeta) -> bool:
        """Return whether an entry from a variant's own slot says that it is another variant.

        Nothing good explains that: the cache is to be disabled (InternalError).
        """
        key = self.cache_key()
        return key.variance is not None and meta.variance != key.variance

    def cache_vary_lookup(self, variance: bytes, meta: CacheMeta) -> bool:
        """Set the variance that the request asks for, by the entry found in the primary slot.

        Returns:
          Whether the entry is the right variant. If not, the key has the variance now, so that the
          next lookup goes to the variant's own slot, where it finds nothing older than ``meta``.
        """
        self._check("cache_vary_lookup")
        key = self.cache_key()
        self._on.valid_after = meta.created
        matches = meta.variance == variance
        if not (matches and key.variance is None):
            self._key = key.with_variance(variance)
        return matches

    def cache_found(self, meta: CacheMeta, hit_handler: HitHandler, hit_status: HitStatus) -> None:
        """Take what the lookup found, for what the status says it is.

        Anything but a fresh response takes the cache lock or a place behind it, unless the request
        has a permit already. A fresh one ends a permit, as there is nothing left to fetch.
        """
        self._check("cache_found")
        inner, key = self._on, self.cache_key()
        inner.hit_status = hit_status
        self._tell("cache.hit_status", hit_status.value)
        if hit_status.is_treated_as_miss():
            inner.set_reader(hit_handler)
            inner.set_reader(None)
            inner.meta = None
            inner.take_lock(key, stale=False)
            return
        inner.set_reader(hit_handler)
        if hit_status is HitStatus.FORCE_EXPIRED:
            # The storage's own object may be everybody's.
            meta = attrs.evolve(meta)
            meta.disable_serve_stale()
        inner.meta = meta
        if hit_status.is_fresh():
            self._enter(CachePhase.Hit)
            inner.release(LockStatus.DONE)
            inner.lock = None
        else:
            self._enter(CachePhase.Stale)
            inner.take_lock(key, stale=True)
        if inner.eviction is not None and hit_handler.should_count_access:
            inner.eviction.access(key.compact())

    def cache_miss(self) -> None:
        """Mark the request as one that fills the cache."""
        self._check("cache_miss")
        inner = self._on
        inner.set_reader(None)
        inner.meta = None
        self._enter(CachePhase.Miss)

    # -- the lock --------------------------------------------------------------------------------

    def is_cache_locked(self) -> bool:
        """Return whether the request has to wait for another one."""
        return self._inner is not None and isinstance(self._inner.lock, WaitHandle)

    def is_cache_lock_writer(self) -> bool:
        """Return whether the request is the one that fetches."""
        return self._inner is not None and self._inner.permit is not None

    async def cache_lock_wait(self) -> LockStatus:
        """Wait for the writer, for no longer than what is left of this request's waiting time.

        The next lookup begins at the primary slot again, as the writer may have moved there.

        Raises:
          CacheStateError: there is nobody to wait for.
        """
        self._check("cache_lock_wait")
        inner = self._on
        handle = inner.lock
        if not isinstance(handle, WaitHandle):
            raise CacheStateError(f"cache_lock_wait without a lock, in phase {self._phase}")
        inner.lock = None
        waited = self._lock_duration or 0.0
        begun = trio.current_time()
        try:
            return await handle.wait(inner.wait_timeout - waited)
        finally:
            self._lock_duration = waited + trio.current_time() - begun
            self._tell("cache.lock_duration", self._lock_duration)
            if self._key is not None and self._key.variance is not None:
                self._key = self._key.with_variance(None)
            inner.valid_after = None

    def take_write_lock(self) -> WritePermit:
        """Take the permit away from this request, to hand it to another one.

        Raises:
          CacheStateError: it has none.
        """
        permit = None if self._inner is None else self._inner.permit
        if permit is None:
            raise self._wrong("take_write_lock")
        self._on.lock = None
        return permit

    def set_write_lock(self, permit: WritePermit) -> None:
        """Give this request a permit that another one had.

        Raises:
          CacheStateError: the cache is off, or the request has a permit already.
        """
        self._check("set_write_lock")
        inner = self._on
        if inner.permit is not None:
            raise CacheStateError(f"set_write_lock with one held, in phase {self._phase}")
        inner.lock = permit

    def release_write_lock(self, reason: NoCacheReason) -> None:
        """Release the permit, if the request has one, with the status that the reason has."""
        if self._inner is not None:
            self._inner.release_for(reason)

    # -- filling ---------------------------------------------------------------------------------

    def set_cache_meta(self, meta: CacheMeta) -> None:
        """Set the metadata of the response to be stored; a stale one that was held is closed."""
        self._check("set_cache_meta")
        inner = self._on
        inner.meta = meta
        self._body_bytes = 0
        if self._phase is CachePhase.Stale:
            inner.set_reader(None)
            self._enter(CachePhase.Expired)

    def update_variance(self, variance: bytes | None) -> None:
        """Set the variance of the response to be stored.

        If it is not the one that was looked up in a variant's own slot, the response takes the
        primary slot, by which all other variants become invalid; the lock, which was for the other
        slot, is released.

        Raises:
          CacheStateError: there is no metadata.
        """
        self._check("update_variance")
        inner, key = self._on, self.cache_key()
        inner.meta = attrs.evolve(self._meta("update_variance"), variance=variance)
        if key.variance is not None and key.variance != variance:
            inner.release(LockStatus.DONE)
            self._key = key.with_variance(None)

    async def set_miss_handler(self, *, read_back: bool = False) -> None:
        """Open the storage for the response, whose metadata must be set.

        Where the storage can be read while it is written, the write lock is released here already.

        Args:
          read_back: Open a reader of the entry too, where the storage can: `miss_body_reader`.

        Raises:
          CacheStateError: it is open already.
          ProxyError: the storage failed.
        """
        self._check("set_miss_handler")
        inner, key = self._on, self.cache_key()
        if inner.writer is not None:
            raise CacheStateError(f"set_miss_handler a second time, in phase {self._phase}")
        writer = await inner.storage.get_miss_handler(key, self._meta("set_miss_handler"))
        if self._inner is not inner:
            # Disabled meanwhile, by the request's other direction.
            writer.abandon()
            return
        inner.writer = writer
        if inner.storage.supports_streaming_partial_write:
            inner.release(LockStatus.DONE)
            tag = writer.streaming_write_tag()
            if read_back and tag is not None:
                found = await inner.storage.lookup_streaming_write(key, tag)
                if found is not None:
                    self._read_back(inner, found[1])

    def _read_back(self, inner: Held, reader: HitHandler) -> None:
        if self._inner is inner:
            inner.set_reader(reader)
        else:
            reader.close_now()

    def miss_handler(self) -> MissHandler | None:
        """Return the storage's writer, None where it is not open or finished."""
        self._check("miss_handler")
        return self._on.writer

    def miss_body_reader(self) -> HitHandler | None:
        """Return the reader of what is being written, where one was opened."""
        self._check("miss_body_reader")
        return self._on.reader

    def track_body_bytes_for_max_file_size(self, count: int) -> bool:
        """Count bytes of the body, in any phase; return whether it still fits."""
        self._body_bytes += count
        return not self.exceeded_max_file_size()

    async def write_miss_body(self, data: bytes, end: bool) -> bool:
        """Count a piece of the body and store it.

        A body that is too long marks the key as not cacheable and disables the cache; what was
        stored of it goes (decision 10, row C-09).

        Returns:
          Whether it is still being stored.

        Raises:
          CacheStateError: the storage is not open.
          ProxyError: the storage failed.
        """
        self._check("write_miss_body")
        writer = self._on.writer
        if writer is None:
            raise CacheStateError(f"write_miss_body without a writer, in phase {self._phase}")
        if not self.track_body_bytes_for_max_file_size(len(data)):
            self.response_became_uncacheable(NoCacheReason.ResponseTooLarge)
            self.disable(NoCacheReason.ResponseTooLarge)
            return False
        await writer.write_body(data, end)
        return self._inner is not None

    async def finish_miss_handler(self) -> None:
        """Make what was stored visible and release the write lock; nothing the second time.

        What has to go to make room is purged in the background.

        Raises:
          ProxyError: the storage failed; nothing became visible, and the lock is still held.
        """
        self._check("finish_miss_handler")
        inner, key = self._on, self.cache_key()
        writer = inner.writer
        if writer is None:
            return
        # It stays in its place until it is finished, so that a cancellation finds it there.
        result = await writer.finish()
        inner.writer = None
        inner.release(LockStatus.DONE)
        if inner.eviction is not None and inner.meta is not None:
            evicted = admit(inner.eviction, key.compact(), inner.meta, result)
            if evicted:
                await self._background(partial(evict, inner.storage, evicted))

    # -- revalidation ----------------------------------------------------------------------------

    def revalidate_merge_header(self, not_modified: ResponseHeader) -> ResponseHeader:
        """Return the stale response's head as its 304 makes it, for `response_cache_filter`."""
        self._check("revalidate_merge_header")
        return merge_not_modified(self._meta("revalidate_merge_header").header, not_modified)

    async def revalidate_cache_meta(self, meta: CacheMeta) -> bool:
        """Refresh the stale response with the metadata that its 304 gave it.

        The time it was created and its variance stay, extensions are merged. The lock is released
        when the storage has it, also where the storage failed: that is logged only.

        Returns:
          Whether the storage has taken it.
        """
        self._check("revalidate_cache_meta")
        inner, key, old = self._on, self.cache_key(), self._meta("revalidate_cache_meta")
        inner.meta = attrs.evolve(
            meta,
            created=old.created,
            variance=old.variance,
            extensions={**old.extensions, **meta.extensions},
        )
        try:
            taken = await inner.storage.update_meta(key, inner.meta)
        except Exception:
            _log.warning("a revalidated response could not be updated", exc_info=True)
            taken = False
        if self._inner is inner:
            self._enter(CachePhase.Revalidated)
            inner.release(LockStatus.DONE)
        return taken

    def revalidate_uncacheable(self, header: ResponseHeader, reason: NoCacheReason) -> None:
        """Serve the stale response this once, with this head, without refreshing it."""
        self._check("revalidate_uncacheable")
        inner = self._on
        inner.meta = attrs.evolve(self._meta("revalidate_uncacheable"), header=header)
        self._enter(CachePhase.RevalidatedNoCache(reason))
        inner.release_for(reason)

    def set_stale_updating(self) -> None:
        """Serve the stale response, as another request fetches it anew."""
        self._check("set_stale_updating")
        self._meta("set_stale_updating")
        self._enter(CachePhase.StaleUpdating)

    # -- serving ---------------------------------------------------------------------------------

    def hit_handler(self) -> HitHandler:
        """Return the reader of the response that was found.

        Raises:
          CacheStateError: it is finished.
        """
        self._check("hit_handler")
        reader = self._on.reader
        if reader is None:
            raise self._wrong("hit_handler")
        return reader

    async def finish_hit_handler(self) -> None:
        """Close the reader in an orderly way; nothing the second time."""
        self._check("finish_hit_handler")
        inner = self._on
        reader = inner.reader
        if reader is not None:
            try:
                await reader.finish()
            finally:
                if inner.reader is reader:
                    inner.set_reader(None)

    # -- purging ---------------------------------------------------------------------------------

    async def purge(self) -> bool:
        """Delete the entry of the key and return whether there was one.

        Without a variance in the key that is the primary slot, and with it go all variants.

        Raises:
          ProxyError: the storage failed.
        """
        self._check("purge")
        inner = self._on
        return await purge(inner.storage, inner.eviction, self.cache_key().compact())

    async def try_purge(self) -> PurgeStatus:
        """Purge, and return how it went where the cache is off or the storage fails too."""
        if not self.enabled():
            return PurgeStatus.NO_CACHE
        try:
            return PurgeStatus.FOUND if await self.purge() else PurgeStatus.NOT_FOUND
        except CacheStateError:
            raise
        except Exception:
            _log.warning("a purge failed", exc_info=True)
            return PurgeStatus.ERROR

    def spawn_async_purge(self, context: str) -> None:
        """Delete the entry of the key in the background; a failure is logged with ``context``.

        Raises:
          CacheStateError: nothing runs in the background here.
        """
        self._check("spawn_async_purge")
        if self._spawn is None:
            raise CacheStateError("spawn_async_purge has no nursery to run in")
        inner, key = self._on, self.cache_key().compact()
        self._spawn(partial(purge_quietly, inner.storage, inner.eviction, key, context))

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _on(self) -> Held:
        """What is there in every phase but `Disabled`."""
        assert self._inner is not None
        return self._inner

    def _enter(self, phase: CachePhase) -> None:
        self._phase = phase
        span = self._span
        if span is not None:
            told = {"phase": phase.text}
            if phase.reason is not None:
                told["reason"] = str(phase.reason)
            try:
                span.add_event("cache.phase", told)
            except Exception:
                self._stop_tracing()

    def _tell(self, key: str, value: str | float) -> None:
        span = self._span
        if span is not None:
            try:
                span.set_attribute(key, value)
            except Exception:
                self._stop_tracing()

    def _stop_tracing(self) -> None:
        """Go on without the span: a request does not fail for what only watches it."""
        self._span = None
        _log.warning("a span given to enable_tracing failed; it is told no more", exc_info=True)

    def _check(self, event: str) -> None:
        if self._phase.name not in TRANSITIONS[event]:
            raise self._wrong(event)

    def _wrong(self, event: str) -> CacheStateError:
        return CacheStateError(f"{event} is not allowed in phase {self._phase}")

    def _meta(self, event: str) -> CacheMeta:
        """Return the metadata; there may be none while it is a miss, or where one was forced."""
        meta = self._on.meta
        if meta is None:
            raise CacheStateError(f"{event} without metadata, in phase {self._phase}")
        return meta

    def _stale_meta(self) -> CacheMeta | None:
        if self._inner is None or self._phase.name not in ("Stale", "StaleUpdating"):
            return None
        return self._inner.meta

    async def _background(self, job: Callable[[], Awaitable[None]]) -> None:
        if self._spawn is not None:
            self._spawn(job)
        else:
            await job()


def _wait_timeout(overrides: CacheOptionOverrides | None) -> float:
    timeout = None if overrides is None else overrides.wait_timeout
    return math.inf if timeout is None else timeout
