"""What a request with the cache on holds, and what is to be given back when it leaves."""

from __future__ import annotations

import logging

import attrs

from ._eviction import EvictionManager
from ._key import CacheKey, CompactKey
from ._lock import CacheLock, LockStatus, WaitHandle, WritePermit
from ._meta import CacheMeta
from ._phase import HitStatus
from ._policy import NoCacheReason
from ._storage import Appended, Created, HitHandler, MissHandler, PurgeType, Storage

_log = logging.getLogger("trioproxy")


@attrs.define(eq=False)
class Held:
    """What only a request with the cache on has; it goes when the cache is disabled."""

    storage: Storage
    eviction: EvictionManager | None
    cache_lock: CacheLock | None
    wait_timeout: float
    meta: CacheMeta | None = None
    #: The moment before which a variant is not valid: its primary was stored then.
    valid_after: float | None = None
    lock: WritePermit | WaitHandle | None = None
    #: What a lookup found, while the filter looks at it.
    found: HitHandler | None = None
    reader: HitHandler | None = None
    writer: MissHandler | None = None
    hit_status: HitStatus | None = None

    @property
    def permit(self) -> WritePermit | None:
        """The write permit, if the request has one."""
        return self.lock if isinstance(self.lock, WritePermit) else None

    def release(self, status: LockStatus) -> None:
        """Release the write permit, if the request has one."""
        permit = self.permit
        if permit is not None:
            self.lock = None
            permit.release(status)

    def release_for(self, reason: NoCacheReason) -> None:
        """Release the write permit, if the request has one, with the status of the reason."""
        permit = self.permit
        if permit is not None:
            self.lock = None
            permit.release_for(reason)

    def take_lock(self, key: CacheKey, *, stale: bool) -> None:
        """Take the cache lock or a place behind it, unless the request is the key's writer."""
        permit = self.permit
        if permit is not None:
            if permit.held and permit.name == key.combined_hash:
                return
            # A permit for another slot of the key does not help those who wait for this one.
            self.release(LockStatus.TRANSIENT_ERROR)
        if self.cache_lock is not None:
            self.lock = self.cache_lock.lock(key, stale_writer=stale)

    def set_reader(self, reader: HitHandler | None) -> None:
        """Take another reader, or none; what was there before is closed."""
        old, self.reader = self.reader, reader
        found, self.found = self.found, None
        for each in (old, found):
            if each is not None and each is not reader:
                each.close_now()

    def clear(self) -> None:
        """Give back everything but the lock."""
        writer, self.writer = self.writer, None
        try:
            if writer is not None:
                writer.abandon()
        finally:
            self.set_reader(None)


def admit(
    eviction: EvictionManager, key: CompactKey, meta: CacheMeta, result: Created | Appended
) -> list[CompactKey]:
    """Tell the manager of what was stored; return what has to go for it."""
    if isinstance(result, Created):
        return eviction.admit(key, result.size, meta.fresh_until)
    return eviction.increment_weight(key, result.size)


async def purge(storage: Storage, eviction: EvictionManager | None, key: CompactKey) -> bool:
    """Delete an entry, tell the manager, and return whether there was one."""
    purged = await storage.purge(key, PurgeType.INVALIDATION)
    if purged and eviction is not None:
        eviction.remove(key)
    return purged


async def purge_quietly(
    storage: Storage, eviction: EvictionManager | None, key: CompactKey, context: str
) -> None:
    """Delete an entry in the background, where nobody hears of a failure."""
    try:
        await purge(storage, eviction, key)
    except Exception:
        _log.warning("a purge in the background failed: %s", context, exc_info=True)


async def evict(storage: Storage, keys: list[CompactKey]) -> None:
    """Delete what had to go; what cannot be deleted is logged."""
    for key in keys:
        try:
            await storage.purge(key, PurgeType.EVICTION)
        except Exception:
            _log.warning("an evicted entry could not be purged", exc_info=True)
