"""The phases of a request towards the cache: what is allowed when, and that all is given back."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trioproxy import ResponseHeader
from trioproxy._clock import stopped_clock
from trioproxy._errors import ErrorType, ProxyError
from trioproxy.cache._eviction import LruEviction
from trioproxy.cache._http_cache import CacheOptionOverrides, HttpCache
from trioproxy.cache._key import CacheKey, CompactKey
from trioproxy.cache._lock import CacheLock, LockStatus, WaitHandle, WritePermit
from trioproxy.cache._memory import MemoryStorage
from trioproxy.cache._meta import CacheMeta
from trioproxy.cache._phase import (
    NEVER_ENABLED,
    TRANSITIONS,
    CachePhase,
    CacheStateError,
    ForcedFreshness,
    HitStatus,
    PurgeStatus,
)
from trioproxy.cache._policy import NoCacheReason
from trioproxy.cache._predictor import Predictor
from trioproxy.cache._storage import (
    Appended,
    Created,
    HitHandler,
    MissHandler,
    PurgeType,
    Storage,
    StorageStatistics,
)

KEY = CacheKey(b"", b"/a")
OTHER = CacheKey(b"", b"/b")
V, W = b"v" * 16, b"w" * 16
REASON = NoCacheReason.Custom("mine")


def make_meta(
    created: float = 100.0,
    *,
    variance: bytes | None = None,
    extensions: dict[str, bytes] | None = None,
    header: ResponseHeader | None = None,
) -> CacheMeta:
    return CacheMeta(
        header=header if header is not None else ResponseHeader(200),
        created=created,
        updated=created,
        fresh_until=created + 60,
        stale_while_revalidate=10,
        stale_if_error=100,
        variance=variance,
        extensions=extensions if extensions is not None else {},
    )


class FakeHit(HitHandler):
    def __init__(self, storage: FakeStorage) -> None:
        self.storage = storage
        self.closed = False
        storage.hits.append(self)

    @property
    def size(self) -> int | None:
        return 0

    async def read_body(self) -> bytes | None:
        await self.storage.step()
        return None

    async def finish(self) -> None:
        await self.storage.step()
        self.close_now()

    def close_now(self) -> None:
        self.closed = True


class FakeMiss(MissHandler):
    def __init__(self, storage: FakeStorage, key: CacheKey) -> None:
        self.storage = storage
        self.key = key
        self.body = b""
        self.finished = self.abandoned = False
        storage.writers.append(self)

    async def write_body(self, data: bytes, end: bool) -> None:
        await self.storage.step()
        self.body += data

    async def finish(self) -> Created | Appended:
        await self.storage.step()
        self.finished = True
        return self.storage.finish_result or Created(len(self.body))

    def abandon(self) -> None:
        self.abandoned = not self.finished

    def streaming_write_tag(self) -> bytes | None:
        return b"tag"


class FakeStorage(Storage):
    """Says what it is told to, and remembers what it gave away."""

    def __init__(self) -> None:
        self.entries: dict[CacheKey, CacheMeta] = {}
        self.hits: list[FakeHit] = []
        self.writers: list[FakeMiss] = []
        self.purged: list[tuple[CompactKey, PurgeType]] = []
        self.updated: list[CacheMeta] = []
        self.fails = False
        self.finish_result: Created | Appended | None = None
        #: At which step the scope is cancelled.
        self.scope: trio.CancelScope | None = None
        self.cancel_at = -1
        self.steps = 0
        #: What every step waits for.
        self.gate: trio.Event | None = None

    async def step(self) -> None:
        if self.steps == self.cancel_at and self.scope is not None:
            self.scope.cancel()
        self.steps += 1
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise ProxyError.new_in(ErrorType.FileReadError)

    async def lookup(self, key: CacheKey) -> tuple[CacheMeta, HitHandler] | None:
        await self.step()
        meta = self.entries.get(key)
        return None if meta is None else (meta, FakeHit(self))

    async def lookup_streaming_write(
        self, key: CacheKey, tag: bytes
    ) -> tuple[CacheMeta, HitHandler] | None:
        await self.step()
        assert tag == b"tag"
        return make_meta(), FakeHit(self)

    async def get_miss_handler(self, key: CacheKey, meta: CacheMeta) -> MissHandler:
        await self.step()
        return FakeMiss(self, key)

    async def purge(self, key: CompactKey, kind: PurgeType) -> bool:
        await self.step()
        self.purged.append((key, kind))
        return any(each.compact() == key for each in self.entries)

    async def purge_tag(self, tag: str) -> int:
        raise NotImplementedError

    async def update_meta(self, key: CacheKey, meta: CacheMeta) -> bool:
        await self.step()
        self.updated.append(meta)
        return True

    def statistics(self) -> StorageStatistics:
        return StorageStatistics()

    def all_given_back(self) -> bool:
        return all(each.closed for each in self.hits) and all(
            each.finished or each.abandoned for each in self.writers
        )


class StreamingStorage(FakeStorage):
    supports_streaming_partial_write = True


def storage_of(cache: HttpCache) -> FakeStorage:
    inner = cache._inner
    assert inner is not None
    assert isinstance(inner.storage, FakeStorage)
    return inner.storage


def enabled(
    storage: Storage | None = None,
    *,
    eviction: LruEviction | None = None,
    predictor: Predictor | None = None,
    lock: CacheLock | None = None,
    wait_timeout: float | None = None,
) -> HttpCache:
    """A cache in phase ``key``."""
    cache = HttpCache()
    cache.enable(
        storage if storage is not None else FakeStorage(),
        eviction,
        predictor,
        lock,
        CacheOptionOverrides(wait_timeout=wait_timeout),
    )
    cache.set_cache_key(KEY)
    return cache


async def found(cache: HttpCache, status: HitStatus, meta: CacheMeta | None = None) -> HttpCache:
    """Let the lookup find something."""
    storage = storage_of(cache)
    storage.entries[cache.cache_key()] = meta if meta is not None else make_meta()
    result = await cache.cache_lookup()
    assert result is not None
    cache.cache_found(*result, status)
    return cache


# -- every event in every phase ------------------------------------------------------------------


async def never_enabled() -> HttpCache:
    return HttpCache()


async def disabled() -> HttpCache:
    cache = enabled()
    cache.disable(REASON)
    return cache


async def uninitialized() -> HttpCache:
    cache = HttpCache()
    cache.enable(FakeStorage())
    return cache


async def key() -> HttpCache:
    return enabled()


async def bypass() -> HttpCache:
    cache = enabled()
    cache.bypass()
    return cache


async def miss() -> HttpCache:
    cache = enabled()
    assert await cache.cache_lookup() is None
    cache.cache_miss()
    cache.set_cache_meta(make_meta())
    return cache


async def hit() -> HttpCache:
    return await found(enabled(), HitStatus.FRESH)


async def stale() -> HttpCache:
    return await found(enabled(), HitStatus.EXPIRED)


async def stale_updating() -> HttpCache:
    cache = await stale()
    cache.set_stale_updating()
    return cache


async def expired() -> HttpCache:
    cache = await stale()
    cache.set_cache_meta(make_meta())
    return cache


async def revalidated() -> HttpCache:
    cache = await stale()
    assert await cache.revalidate_cache_meta(make_meta())
    return cache


async def revalidated_nocache() -> HttpCache:
    cache = await stale()
    cache.revalidate_uncacheable(ResponseHeader(200), REASON)
    return cache


PHASES: dict[str, tuple[Callable[[], Awaitable[HttpCache]], CachePhase]] = {
    "never": (never_enabled, CachePhase.Disabled(NoCacheReason.NeverEnabled)),
    "disabled": (disabled, CachePhase.Disabled(REASON)),
    "uninitialized": (uninitialized, CachePhase.Uninit),
    "key": (key, CachePhase.CacheKey),
    "bypass": (bypass, CachePhase.Bypass),
    "miss": (miss, CachePhase.Miss),
    "hit": (hit, CachePhase.Hit),
    "stale": (stale, CachePhase.Stale),
    "stale-updating": (stale_updating, CachePhase.StaleUpdating),
    "expired": (expired, CachePhase.Expired),
    "revalidated": (revalidated, CachePhase.Revalidated),
    "revalidated-nocache": (revalidated_nocache, CachePhase.RevalidatedNoCache(REASON)),
}


def a_permit() -> WritePermit:
    permit = CacheLock(math.inf).lock(KEY)
    assert isinstance(permit, WritePermit)
    return permit


def found_as(status: HitStatus) -> Callable[[HttpCache], object]:
    def call(cache: HttpCache) -> None:
        handler = FakeHit(FakeStorage())
        cache.cache_found(make_meta(), handler, status)
        assert handler.closed == status.is_treated_as_miss()

    return call


async def wait_for_the_lock(cache: HttpCache) -> None:
    inner = cache._inner
    if inner is not None:
        lock = CacheLock(math.inf)
        permit = lock.lock(KEY)
        handle = lock.lock(KEY)
        assert isinstance(permit, WritePermit)
        assert isinstance(handle, WaitHandle)
        inner.lock = handle
        permit.drop()
    assert await cache.cache_lock_wait() is LockStatus.DANGLING


async def write(cache: HttpCache) -> None:
    if cache.phase().name in ("Miss", "Expired"):
        await cache.set_miss_handler()
    await cache.write_miss_body(b"x", False)


async def finish_twice(cache: HttpCache) -> None:
    if cache.phase().name in ("Miss", "Expired"):
        await cache.set_miss_handler()
    await cache.finish_miss_handler()
    await cache.finish_miss_handler()


async def finish_hit_twice(cache: HttpCache) -> None:
    await cache.finish_hit_handler()
    await cache.finish_hit_handler()


def spawn_purge(cache: HttpCache) -> None:
    spawned: list[object] = []
    cache._spawn = spawned.append
    cache.spawn_async_purge("test")
    assert len(spawned) == 1


HELD = ["hit", "stale", "stale-updating", "revalidated", "revalidated-nocache"]
ON = ["uninitialized", "key", "bypass", "miss", "expired", *HELD]

#: Of each event: its name in `TRANSITIONS`, the call, and where it leads from which phase.
EVENTS: dict[str, tuple[str, Callable[[HttpCache], object], dict[str, str]]] = {
    "enable": (
        "enable",
        lambda cache: cache.enable(FakeStorage()),
        {"never": "uninitialized", "disabled": "uninitialized"},
    ),
    "set_cache_key": (
        "set_cache_key",
        lambda cache: cache.set_cache_key(KEY),
        {"uninitialized": "key", "key": "key"},
    ),
    "bypass": ("bypass", lambda cache: cache.bypass(), {"key": "bypass"}),
    "cache_lookup": (
        "cache_lookup",
        lambda cache: cache.cache_lookup(),
        {"key": "key", "stale": "stale"},
    ),
    "cache_vary_lookup": (
        "cache_vary_lookup",
        lambda cache: cache.cache_vary_lookup(V, make_meta()),
        {"key": "key", "stale": "stale"},
    ),
    "cache_found fresh": (
        "cache_found",
        found_as(HitStatus.FRESH),
        {"key": "hit", "stale": "hit"},
    ),
    "cache_found forced fresh": (
        "cache_found",
        found_as(HitStatus.FORCE_FRESH),
        {"key": "hit", "stale": "hit"},
    ),
    "cache_found expired": (
        "cache_found",
        found_as(HitStatus.EXPIRED),
        {"key": "stale", "stale": "stale"},
    ),
    "cache_found forced expired": (
        "cache_found",
        found_as(HitStatus.FORCE_EXPIRED),
        {"key": "stale", "stale": "stale"},
    ),
    "cache_found forced miss": (
        "cache_found",
        found_as(HitStatus.FORCE_MISS),
        {"key": "key", "stale": "stale"},
    ),
    "cache_found failed filter": (
        "cache_found",
        found_as(HitStatus.FAILED_HIT_FILTER),
        {"key": "key", "stale": "stale"},
    ),
    "cache_miss": (
        "cache_miss",
        lambda cache: cache.cache_miss(),
        {"key": "miss", "bypass": "miss", "stale": "miss"},
    ),
    "cache_lock_wait": (
        "cache_lock_wait",
        wait_for_the_lock,
        {"key": "key", "stale": "stale"},
    ),
    "set_cache_lock": (
        "set_cache_lock",
        lambda cache: cache.set_cache_lock(CacheLock(1)),
        {"never": "never", "disabled": "disabled", "key": "key", "stale": "stale", "hit": "hit"},
    ),
    "set_cache_meta": (
        "set_cache_meta",
        lambda cache: cache.set_cache_meta(make_meta()),
        {"stale": "expired", "miss": "miss"},
    ),
    "update_variance": (
        "update_variance",
        lambda cache: cache.update_variance(V),
        {"miss": "miss", "expired": "expired"},
    ),
    "set_miss_handler": (
        "set_miss_handler",
        lambda cache: cache.set_miss_handler(),
        {"miss": "miss", "expired": "expired"},
    ),
    "miss_handler": (
        "miss_handler",
        lambda cache: cache.miss_handler(),
        {"miss": "miss", "expired": "expired"},
    ),
    "miss_body_reader": (
        "miss_body_reader",
        lambda cache: cache.miss_body_reader(),
        {"miss": "miss", "expired": "expired"},
    ),
    "write_miss_body": (
        "write_miss_body",
        write,
        {"miss": "miss", "expired": "expired"},
    ),
    "finish_miss_handler": (
        "finish_miss_handler",
        finish_twice,
        {"miss": "miss", "expired": "expired"},
    ),
    "revalidate_merge_header": (
        "revalidate_merge_header",
        lambda cache: cache.revalidate_merge_header(ResponseHeader(304)),
        {"stale": "stale"},
    ),
    "revalidate_cache_meta": (
        "revalidate_cache_meta",
        lambda cache: cache.revalidate_cache_meta(make_meta()),
        {"stale": "revalidated"},
    ),
    "revalidate_uncacheable": (
        "revalidate_uncacheable",
        lambda cache: cache.revalidate_uncacheable(ResponseHeader(200), REASON),
        {"stale": "revalidated-nocache"},
    ),
    "set_stale_updating": (
        "set_stale_updating",
        lambda cache: cache.set_stale_updating(),
        {"stale": "stale-updating"},
    ),
    "hit_handler": (
        "hit_handler",
        lambda cache: cache.hit_handler(),
        {each: each for each in HELD},
    ),
    "finish_hit_handler": (
        "finish_hit_handler",
        finish_hit_twice,
        {each: each for each in [*HELD, "miss", "expired"]},
    ),
    "cache_meta": (
        "cache_meta",
        lambda cache: cache.cache_meta(),
        {each: each for each in [*HELD, "miss", "expired"]},
    ),
    "set_max_file_size_bytes": (
        "set_max_file_size_bytes",
        lambda cache: cache.set_max_file_size_bytes(10),
        {each: each for each in ON},
    ),
    "purge": ("purge", lambda cache: cache.purge(), {"key": "key"}),
    "spawn_async_purge": (
        "spawn_async_purge",
        spawn_purge,
        {each: each for each in ON[1:]},
    ),
    "set_write_lock": (
        "set_write_lock",
        lambda cache: cache.set_write_lock(a_permit()),
        {each: each for each in ON},
    ),
    "disable": (
        "disable",
        lambda cache: cache.disable(REASON),
        {"never": "never", **dict.fromkeys([*ON, "disabled"], "disabled")},
    ),
}


async def run(call: Callable[[HttpCache], object], cache: HttpCache) -> None:
    result = call(cache)
    if isinstance(result, Awaitable):
        await result


@pytest.mark.parametrize("event", EVENTS)
async def test_an_event_leads_on_from_its_phases_and_is_refused_in_all_others(event: str) -> None:
    name, call, leads = EVENTS[event]
    for before, (make, phase) in PHASES.items():
        cache = await make()
        assert cache.phase() == phase
        if before in leads:
            await run(call, cache)
            assert cache.phase() == PHASES[leads[before]][1]
        else:
            with pytest.raises(CacheStateError) as caught:
                await run(call, cache)
            assert name in str(caught.value)
            assert phase.text in str(caught.value)
            assert cache.phase() == phase
        cache.close()
        cache.close()


def test_every_event_is_tried() -> None:
    assert {each[0] for each in EVENTS.values()} == {*TRANSITIONS, "disable"}


QUESTIONS = {
    "never": (False, False, True),
    "disabled": (False, False, True),
    "uninitialized": (True, False, False),
    "key": (True, False, False),
    "bypass": (False, True, True),
    "miss": (True, False, True),
    "hit": (True, False, False),
    "stale": (True, False, False),
    "stale-updating": (True, False, False),
    "expired": (True, False, True),
    "revalidated": (True, False, True),
    "revalidated-nocache": (True, False, True),
}


@pytest.mark.parametrize("name", PHASES)
async def test_each_phase_has_its_text_and_its_answers(name: str) -> None:
    make, phase = PHASES[name]
    cache = await make()
    assert (cache.enabled(), cache.bypassing(), cache.upstream_used()) == QUESTIONS[name]
    assert phase.text == {"never": "disabled"}.get(name, name)
    assert str(phase).startswith(phase.text)
    assert phase.text in repr(cache)
    # These never refuse.
    assert cache.maybe_cache_meta() is None or name in [*HELD, "miss", "expired"]
    assert cache.maybe_cache_key() == (None if name in ("never", "uninitialized") else KEY)
    assert cache.storage_type_is(FakeStorage) == (name in ON)
    assert not cache.storage_type_is(StreamingStorage)
    assert not cache.storage_supports_streaming_partial_write()
    assert not cache.is_cache_locked()
    assert not cache.is_cache_lock_writer()
    cache.release_write_lock(REASON)
    assert not cache.exceeded_max_file_size()


def test_reasons_are_told() -> None:
    assert str(CachePhase.Disabled(REASON)) == "disabled (mine)"
    assert CachePhase.Disabled(REASON) != CachePhase.Disabled(NoCacheReason.Deferred)
    assert CachePhase.RevalidatedNoCache(REASON).reason == REASON
    assert CachePhase.Hit.reason is None


# -- going off and on ----------------------------------------------------------------------------


async def test_never_enabled_is_no_reason_and_stays_one() -> None:
    cache = enabled()
    with pytest.raises(CacheStateError, match="NeverEnabled"):
        cache.disable(NoCacheReason.NeverEnabled)
    assert cache.phase() == CachePhase.CacheKey
    never = HttpCache()
    never.disable(NoCacheReason.StorageError)
    assert never.phase() == NEVER_ENABLED


async def test_the_last_reason_counts_and_the_cache_can_be_enabled_again() -> None:
    cache = await miss()
    cache.set_max_file_size_bytes(1)
    cache.disable(NoCacheReason.Deferred)
    cache.disable(NoCacheReason.StorageError)
    assert cache.phase() == CachePhase.Disabled(NoCacheReason.StorageError)
    cache.enable(FakeStorage())
    assert cache.max_file_size_bytes() is None
    assert cache.maybe_cache_key() is None


@pytest.mark.parametrize("name", ["miss", "stale", "hit", "expired", "revalidated"])
@pytest.mark.parametrize("by", ["disable", "close"])
async def test_whatever_is_held_is_given_back(name: str, by: str) -> None:
    cache = await PHASES[name][0]()
    storage = storage_of(cache)
    if name in ("miss", "expired"):
        await cache.set_miss_handler()
    lock = CacheLock(math.inf)
    permit = lock.lock(KEY)
    assert isinstance(permit, WritePermit)
    handle = lock.lock(KEY)
    assert isinstance(handle, WaitHandle)
    cache.set_write_lock(permit)
    if by == "disable":
        cache.disable(NoCacheReason.OriginNotCache)
        assert cache.maybe_cache_key() == KEY
    else:
        cache.close()
        assert cache.phase() == PHASES[name][1]
        assert cache.cache_meta() is not None
    assert storage.all_given_back()
    status = LockStatus.GIVE_UP if by == "disable" else LockStatus.DANGLING
    assert await handle.wait() is status
    assert lock.statistics().held == 0


async def test_a_storage_that_fails_to_abandon_does_not_keep_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: FakeMiss) -> None:
        raise OSError("no")

    monkeypatch.setattr(FakeMiss, "abandon", fail)
    lock = CacheLock(math.inf)
    for way in ("disable", "close"):
        cache = enabled(lock=lock)
        await cache.cache_lookup()
        cache.cache_miss()
        cache.set_cache_meta(make_meta())
        await cache.set_miss_handler()
        with pytest.raises(OSError, match="no"):
            cache.close() if way == "close" else cache.disable(REASON)
        assert lock.statistics().held == 0


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (NoCacheReason.UpstreamError, LockStatus.TRANSIENT_ERROR),
        (NoCacheReason.OriginNotCache, LockStatus.GIVE_UP),
        (REASON, LockStatus.GIVE_UP),
    ],
)
@pytest.mark.parametrize("way", ["disable", "release_write_lock"])
async def test_a_write_lock_ends_with_the_status_of_the_reason(
    way: str, reason: NoCacheReason, status: LockStatus
) -> None:
    lock = CacheLock(math.inf)
    writer, reader = enabled(lock=lock), enabled(lock=lock)
    await writer.cache_lookup()
    await reader.cache_lookup()
    assert writer.is_cache_lock_writer()
    assert reader.is_cache_locked()
    getattr(writer, way)(reason)
    assert not writer.is_cache_lock_writer()
    assert await reader.cache_lock_wait() is status


# -- lookups -------------------------------------------------------------------------------------


async def test_a_lookup_that_fails_takes_no_lock() -> None:
    lock = CacheLock(math.inf)
    cache = enabled(lock=lock)
    storage_of(cache).fails = True
    with pytest.raises(ProxyError):
        await cache.cache_lookup()
    assert lock.statistics().held == 0
    cache.cache_miss()
    assert cache.phase() == CachePhase.Miss


@pytest.mark.parametrize(
    ("status", "locks", "stale"),
    [
        (HitStatus.FRESH, False, False),
        (HitStatus.FORCE_FRESH, False, False),
        (HitStatus.EXPIRED, True, True),
        (HitStatus.FORCE_EXPIRED, True, True),
        (HitStatus.FORCE_MISS, True, False),
        (HitStatus.FAILED_HIT_FILTER, True, False),
    ],
)
async def test_what_is_not_served_as_it_is_takes_the_lock(
    status: HitStatus, locks: bool, stale: bool
) -> None:
    lock = CacheLock(math.inf)
    cache = await found(enabled(lock=lock), status)
    assert cache.is_cache_lock_writer() is locks
    assert cache.hit_status() is status
    if locks:
        assert cache.take_write_lock().stale_writer is stale


async def test_a_forced_miss_holds_nothing() -> None:
    cache = await found(enabled(), HitStatus.FORCE_MISS)
    assert cache.maybe_cache_meta() is None
    assert storage_of(cache).all_given_back()
    cache.cache_miss()
    with pytest.raises(CacheStateError, match="cache_meta"):
        cache.cache_meta()
    with pytest.raises(CacheStateError, match="set_miss_handler"):
        await cache.set_miss_handler()


async def test_a_forced_miss_after_a_wait_has_nothing_to_validate() -> None:
    cache = await found(await stale(), HitStatus.FORCE_MISS)
    assert cache.phase() == CachePhase.Stale
    with pytest.raises(CacheStateError, match="set_stale_updating"):
        cache.set_stale_updating()
    with pytest.raises(CacheStateError, match="revalidate_uncacheable"):
        cache.revalidate_uncacheable(ResponseHeader(200), REASON)
    assert storage_of(cache).all_given_back()


async def test_what_a_filter_expired_is_not_served_stale_but_others_may() -> None:
    meta = make_meta()
    with stopped_clock(165.0):
        natural = await found(enabled(), HitStatus.EXPIRED, meta)
        assert natural.can_serve_stale_error()
        assert natural.can_serve_stale_updating()
        forced = await found(enabled(), HitStatus.FORCE_EXPIRED, meta)
        assert not forced.can_serve_stale_error()
        assert not forced.can_serve_stale_updating()
        # The object was the storage's, that is, everybody's.
        assert natural.can_serve_stale_error()
        natural.set_stale_updating()
        assert natural.can_serve_stale_updating()
        assert not (await hit()).can_serve_stale_error()
    with stopped_clock(175.0):
        assert not natural.can_serve_stale_updating()
        assert natural.can_serve_stale_error()


@pytest.mark.parametrize("then", ["close", "disable", "lookup", "miss", "other"])
async def test_what_was_found_but_not_taken_is_closed(then: str) -> None:
    cache = enabled()
    storage = storage_of(cache)
    storage.entries[KEY] = make_meta()
    assert await cache.cache_lookup() is not None
    if then == "close":
        cache.close()
    elif then == "disable":
        cache.disable(REASON)
    elif then == "miss":
        cache.cache_miss()
    elif then == "other":
        # A filter has put its own reader around it, or in its place.
        cache.cache_found(make_meta(), FakeHit(FakeStorage()), HitStatus.FRESH)
    else:
        assert await cache.cache_lookup() is not None
        assert not storage.hits[1].closed
    assert storage.hits[0].closed


async def test_a_lookup_after_a_wait_replaces_what_was_held() -> None:
    cache = await stale()
    await found(cache, HitStatus.FRESH)
    first, second = storage_of(cache).hits
    assert first.closed
    assert cache.hit_handler() is second
    await cache.finish_hit_handler()
    assert second.closed
    with pytest.raises(CacheStateError, match="hit_handler"):
        cache.hit_handler()


async def test_an_asset_that_is_gone_after_a_wait_leaves_no_metadata() -> None:
    cache = await stale()
    storage_of(cache).entries.clear()
    assert await cache.cache_lookup() is None
    cache.cache_miss()
    assert cache.maybe_cache_meta() is None
    assert storage_of(cache).all_given_back()


def test_the_status_follows_freshness_unless_the_filter_forces_it() -> None:
    assert HitStatus.of(True) is HitStatus.FRESH
    assert HitStatus.of(False) is HitStatus.EXPIRED
    for forced in ForcedFreshness:
        for fresh in (True, False):
            assert HitStatus.of(fresh, forced).name == forced.name


async def test_durations_add_up_and_stay_known(autojump_clock: MockClock) -> None:
    class Slow(FakeStorage):
        async def step(self) -> None:
            await trio.sleep(2)

    lock = CacheLock(10)
    cache = enabled(Slow(), lock=lock, wait_timeout=5)
    assert (cache.lookup_duration(), cache.lock_duration()) == (None, None)
    permit = lock.lock(KEY)
    assert isinstance(permit, WritePermit)
    assert await cache.cache_lookup() is None
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 3)
            nursery.start_soon(release_after, permit, 3)
            assert await cache.cache_lock_wait() is LockStatus.DONE
        assert cache.lock_duration() == 3
        permit = lock.lock(KEY)
        assert await cache.cache_lookup() is None
        # Of the five seconds that it may wait, two are left.
        assert await cache.cache_lock_wait() is LockStatus.WAIT_TIMEOUT
    cache.disable(NoCacheReason.CacheLockTimeout)
    assert cache.lookup_duration() == 4
    assert cache.lock_duration() == 5


async def release_after(permit: WritePermit, seconds: float) -> None:
    await trio.sleep(seconds)
    permit.release(LockStatus.DONE)


# -- variants ------------------------------------------------------------------------------------


async def test_the_primary_slot_may_hold_the_variant() -> None:
    cache = enabled()
    assert cache.cache_vary_lookup(V, make_meta(variance=V))
    assert cache.cache_key() == KEY
    assert not cache.is_wrong_variant(make_meta(variance=W))


async def test_another_variant_is_looked_up_in_its_own_slot_and_never_older_than_the_primary() -> (
    None
):
    primary = make_meta(100, variance=V)
    for created, valid in [(99.5, False), (100.0, True), (101.0, True)]:
        lock = CacheLock(math.inf)
        cache = enabled(lock=lock)
        storage = storage_of(cache)
        storage.entries = {
            KEY: primary,
            KEY.with_variance(W): make_meta(created, variance=W),
        }
        assert await cache.cache_lookup() is not None
        assert not cache.cache_vary_lookup(W, primary)
        assert cache.cache_key() == KEY.with_variance(W)
        again = await cache.cache_lookup()
        assert (again is not None) is valid
        assert storage.hits[0].closed
        # Who has nothing valid fetches, with a lock on the variant only.
        assert cache.is_cache_lock_writer() is not valid
        assert lock.statistics().held == (not valid)
        cache.close()
        assert storage.all_given_back()


async def test_an_entry_in_the_slot_of_another_variant_is_noticed() -> None:
    cache = enabled()
    cache.cache_vary_lookup(W, make_meta(variance=V))
    assert cache.is_wrong_variant(make_meta(variance=V))
    assert cache.is_wrong_variant(make_meta())
    assert not cache.is_wrong_variant(make_meta(variance=W))
    # In a variant's own slot the key stays with the variant, whichever it is.
    assert cache.cache_vary_lookup(V, make_meta(variance=V))
    assert cache.cache_key() == KEY.with_variance(V)


async def test_after_a_wait_the_lookup_begins_at_the_primary_slot() -> None:
    cache = enabled()
    cache.cache_vary_lookup(W, make_meta(200, variance=V))
    await wait_for_the_lock(cache)
    assert cache.cache_key() == KEY
    storage_of(cache).entries[KEY] = make_meta(100)
    assert await cache.cache_lookup() is not None


@pytest.mark.parametrize(
    ("looked_up", "variance", "slot", "keeps_lock"),
    [
        (None, None, None, True),
        (None, V, None, True),
        (V, V, V, True),
        (V, W, None, False),
        (V, None, None, False),
    ],
)
async def test_a_response_that_varies_otherwise_takes_the_primary_slot(
    looked_up: bytes | None, variance: bytes | None, slot: bytes | None, keeps_lock: bool
) -> None:
    lock = CacheLock(math.inf)
    cache = enabled(lock=lock)
    if looked_up is not None:
        cache.cache_vary_lookup(looked_up, make_meta())
    await cache.cache_lookup()
    cache.cache_miss()
    cache.set_cache_meta(make_meta())
    cache.update_variance(variance)
    assert cache.cache_meta().variance == variance
    assert cache.cache_key() == KEY.with_variance(slot)
    assert cache.is_cache_lock_writer() is keeps_lock
    assert lock.statistics().held == keeps_lock
    await cache.set_miss_handler()
    assert storage_of(cache).writers[0].key == KEY.with_variance(slot)


# -- the lock ------------------------------------------------------------------------------------


async def test_a_permit_is_handed_to_a_background_request() -> None:
    lock = CacheLock(math.inf)
    parent = await found(enabled(lock=lock), HitStatus.EXPIRED)
    permit = parent.take_write_lock()
    assert not parent.is_cache_lock_writer()
    with pytest.raises(CacheStateError, match="take_write_lock"):
        parent.take_write_lock()
    parent.set_stale_updating()
    parent.close()
    assert lock.statistics().held == 1
    child = enabled(lock=lock)
    child.set_write_lock(permit)
    with pytest.raises(CacheStateError, match="set_write_lock"):
        child.set_write_lock(permit)
    # It does not queue up behind itself.
    await found(child, HitStatus.EXPIRED)
    assert child.is_cache_lock_writer()
    assert await child.revalidate_cache_meta(make_meta())
    assert lock.statistics().held == 0


async def test_a_permit_is_not_needed_for_a_fresh_response() -> None:
    lock = CacheLock(math.inf)
    cache = enabled(lock=lock)
    await cache.cache_lookup()
    reader = enabled(lock=lock)
    await reader.cache_lookup()
    await found(cache, HitStatus.FRESH)
    assert await reader.cache_lock_wait() is LockStatus.DONE


async def test_a_permit_for_another_slot_is_given_up_for_the_right_one() -> None:
    lock = CacheLock(math.inf)
    permit = lock.lock(OTHER)
    assert isinstance(permit, WritePermit)
    cache = enabled(lock=lock)
    cache.set_write_lock(permit)
    assert await cache.cache_lookup() is None
    assert not permit.held
    assert cache.is_cache_lock_writer()
    assert lock.statistics().held == 1


async def test_a_permit_whose_time_is_over_competes_again(autojump_clock: MockClock) -> None:
    lock = CacheLock(5)
    permit = lock.lock(KEY)
    assert isinstance(permit, WritePermit)
    await trio.sleep(5)
    other = lock.lock(KEY)
    assert isinstance(other, WritePermit)
    cache = enabled(lock=lock)
    cache.set_write_lock(permit)
    await cache.cache_lookup()
    assert cache.is_cache_locked()
    assert other.held


async def test_the_lock_cannot_be_changed_once_it_is_held() -> None:
    for first in (CacheLock(1), None):
        cache = enabled(lock=first)
        second = CacheLock(1)
        cache.set_cache_lock(second, CacheOptionOverrides(wait_timeout=3))
        await cache.cache_lookup()
        assert second.statistics().held == 1
        with pytest.raises(CacheStateError, match="set_cache_lock"):
            cache.set_cache_lock(CacheLock(1))
        cache.close()


async def test_a_lock_set_while_the_cache_is_off_is_used_when_it_goes_on() -> None:
    early, late = CacheLock(1), CacheLock(1)
    for own in (None, late):
        cache = HttpCache()
        cache.set_cache_lock(early, CacheOptionOverrides(wait_timeout=0))
        cache.enable(FakeStorage(), cache_lock=own)
        cache.set_cache_key(KEY)
        await cache.cache_lookup()
        expected = early if own is None else late
        assert expected.statistics().held == 1
        cache.close()


async def test_without_a_lock_nobody_waits() -> None:
    cache = enabled()
    await cache.cache_lookup()
    assert not cache.is_cache_locked()
    with pytest.raises(CacheStateError, match="cache_lock_wait"):
        await cache.cache_lock_wait()


# -- filling -------------------------------------------------------------------------------------


async def filling(storage: FakeStorage | None = None, **options: object) -> HttpCache:
    cache = enabled(storage, **options)  # type: ignore[arg-type] # passed through
    await cache.cache_lookup()
    cache.cache_miss()
    cache.set_cache_meta(make_meta())
    return cache


async def test_a_fill_ends_with_the_lock_released() -> None:
    lock = CacheLock(math.inf)
    cache = await filling(lock=lock)
    reader = enabled(lock=lock)
    await reader.cache_lookup()
    await cache.set_miss_handler(read_back=True)
    assert cache.miss_body_reader() is None
    assert cache.is_cache_lock_writer()
    with pytest.raises(CacheStateError, match="a second time"):
        await cache.set_miss_handler()
    assert await cache.write_miss_body(b"ab", False)
    assert await cache.write_miss_body(b"c", True)
    await cache.finish_miss_handler()
    assert cache.miss_handler() is None
    assert await reader.cache_lock_wait() is LockStatus.DONE
    (writer,) = storage_of(cache).writers
    assert writer.finished
    assert writer.body == b"abc"
    with pytest.raises(CacheStateError, match="without a writer"):
        await cache.write_miss_body(b"d", True)


async def test_what_can_be_read_while_written_releases_the_lock_at_the_head() -> None:
    lock = CacheLock(math.inf)
    cache = await filling(StreamingStorage(), lock=lock)
    assert cache.storage_supports_streaming_partial_write()
    await cache.set_miss_handler()
    assert lock.statistics().held == 0
    assert cache.miss_body_reader() is None
    cache.close()
    cache = await filling(StreamingStorage(), lock=lock)
    await cache.set_miss_handler(read_back=True)
    assert cache.miss_body_reader() is storage_of(cache).hits[0]
    await cache.finish_hit_handler()
    assert storage_of(cache).hits[0].closed


async def test_a_fill_that_cannot_be_finished_keeps_the_lock_until_it_is_disabled() -> None:
    lock = CacheLock(math.inf)
    cache = await filling(lock=lock)
    storage = storage_of(cache)
    await cache.set_miss_handler()
    storage.fails = True
    with pytest.raises(ProxyError):
        await cache.finish_miss_handler()
    assert lock.statistics().held == 1
    cache.disable(NoCacheReason.StorageError)
    assert lock.statistics().held == 0
    assert storage.writers[0].abandoned


async def test_a_new_response_closes_the_stale_one() -> None:
    cache = await stale()
    cache.set_cache_meta(make_meta())
    assert storage_of(cache).all_given_back()


@pytest.mark.parametrize("background", [True, False])
async def test_what_has_to_go_for_it_is_purged(background: bool) -> None:
    eviction = LruEviction(10)
    eviction.admit(OTHER.compact(), 8, 0)
    cache = await filling(eviction=eviction)
    storage = storage_of(cache)
    jobs: list[Callable[[], Awaitable[None]]] = []
    if background:
        cache._spawn = jobs.append
    await cache.set_miss_handler()
    await cache.write_miss_body(b"abcd", True)
    await cache.finish_miss_handler()
    if background:
        assert storage.purged == []
        (job,) = jobs
        cache.close()
        await job()
    assert storage.purged == [(OTHER.compact(), PurgeType.EVICTION)]
    assert eviction.total_size == 4


async def test_a_purge_that_fails_harms_nobody() -> None:
    class Failing(FakeStorage):
        async def purge(self, key: CompactKey, kind: PurgeType) -> bool:
            raise ProxyError.new_in(ErrorType.FileWriteError)

    eviction = LruEviction(10)
    eviction.admit(OTHER.compact(), 8, 0)
    cache = await filling(Failing(), eviction=eviction)
    await cache.set_miss_handler()
    await cache.write_miss_body(b"abcd", True)
    await cache.finish_miss_handler()
    jobs: list[Callable[[], Awaitable[None]]] = []
    cache._spawn = jobs.append
    cache.spawn_async_purge("a test")
    await jobs[0]()
    assert await enabled(Failing()).try_purge() is PurgeStatus.ERROR


async def test_what_was_added_to_an_entry_adds_to_its_weight() -> None:
    eviction = LruEviction(10)
    eviction.admit(KEY.compact(), 3, 0)
    cache = await filling(eviction=eviction)
    storage_of(cache).finish_result = Appended(4)
    await cache.set_miss_handler()
    await cache.finish_miss_handler()
    assert eviction.total_size == 7


async def test_a_use_counts_with_the_eviction_manager() -> None:
    eviction = LruEviction(10)
    eviction.admit(KEY.compact(), 4, 0)
    eviction.admit(OTHER.compact(), 4, 0)
    await found(enabled(eviction=eviction), HitStatus.FRESH)
    assert eviction.admit(CompactKey(b"c" * 16), 4, 0) == [OTHER.compact()]


async def test_a_storage_with_the_same_manager_is_not_counted_twice() -> None:
    eviction = LruEviction(100_000)
    storage = MemoryStorage(100_000, eviction)
    cache = enabled(storage, eviction=eviction)
    assert cache._inner is not None
    assert cache._inner.eviction is None
    await cache.cache_lookup()
    cache.cache_miss()
    cache.set_cache_meta(make_meta())
    await cache.set_miss_handler()
    await cache.write_miss_body(b"abc", True)
    await cache.finish_miss_handler()
    assert eviction.total_size == storage.statistics().bytes
    await storage.aclose()


# -- the largest file ----------------------------------------------------------------------------


async def test_c_09_a_body_that_grows_too_long_ends_the_storing_only() -> None:
    lock = CacheLock(math.inf)
    predictor = Predictor(4)
    cache = await filling(lock=lock, predictor=predictor)
    storage = storage_of(cache)
    cache.set_max_file_size_bytes(3)
    await cache.set_miss_handler()
    assert await cache.write_miss_body(b"abc", False)
    assert not cache.exceeded_max_file_size()
    assert not await cache.write_miss_body(b"d", False)
    assert cache.phase() == CachePhase.Disabled(NoCacheReason.ResponseTooLarge)
    assert cache.exceeded_max_file_size()
    assert cache.max_file_size_bytes() == 3
    assert storage.writers[0].abandoned
    assert lock.statistics().held == 0
    assert not predictor.cacheable_prediction(KEY)


async def test_a_body_is_counted_also_with_the_cache_off() -> None:
    predictor = Predictor(4)
    predictor.mark_uncacheable(KEY, NoCacheReason.ResponseTooLarge)
    cache = enabled(predictor=predictor)
    cache.set_max_file_size_bytes(3)
    assert not cache.cacheable_prediction()
    cache.bypass()
    cache.disable(NoCacheReason.PredictedResponseTooLarge)
    assert cache.track_body_bytes_for_max_file_size(3)
    cache.response_became_cacheable()
    assert predictor.cacheable_prediction(KEY)
    assert not cache.track_body_bytes_for_max_file_size(1)


async def test_each_response_is_counted_by_itself() -> None:
    cache = await stale()
    cache.set_max_file_size_bytes(3)
    assert not cache.track_body_bytes_for_max_file_size(4)
    cache.set_cache_meta(make_meta())
    assert not cache.exceeded_max_file_size()


def test_a_file_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        enabled().set_max_file_size_bytes(-1)


def test_without_a_limit_everything_fits() -> None:
    assert HttpCache().track_body_bytes_for_max_file_size(1 << 40)


def test_the_predictor_is_told_and_without_one_all_is_cacheable() -> None:
    predictor = Predictor(4)
    cache = enabled(predictor=predictor)
    assert cache.cacheable_prediction()
    cache.response_became_uncacheable(NoCacheReason.OriginNotCache)
    assert not cache.cacheable_prediction()
    plain = enabled()
    plain.response_became_uncacheable(NoCacheReason.OriginNotCache)
    plain.response_became_cacheable()
    assert plain.cacheable_prediction()
    with pytest.raises(CacheStateError, match="cache_key"):
        HttpCache().cacheable_prediction()


# -- validating ----------------------------------------------------------------------------------


async def test_a_304_keeps_when_it_was_made_its_variant_and_what_was_noted() -> None:
    lock = CacheLock(math.inf)
    old = make_meta(100, variance=V, extensions={"a": b"old", "b": b"old"})
    cache = await found(enabled(lock=lock), HitStatus.EXPIRED, old)
    new = make_meta(500, variance=W, extensions={"b": b"new", "c": b"new"})
    assert await cache.revalidate_cache_meta(new)
    meta = cache.cache_meta()
    assert storage_of(cache).updated == [meta]
    assert (meta.created, meta.updated, meta.variance) == (100, 500, V)
    assert meta.extensions == {"a": b"old", "b": b"new", "c": b"new"}
    assert lock.statistics().held == 0
    # Neither object was the request's own.
    assert new.created == 500
    assert old.extensions == {"a": b"old", "b": b"old"}


async def test_a_304_that_cannot_be_stored_serves_all_the_same() -> None:
    lock = CacheLock(math.inf)
    cache = await found(enabled(lock=lock), HitStatus.EXPIRED)
    storage_of(cache).fails = True
    assert not await cache.revalidate_cache_meta(make_meta(500))
    assert cache.phase() == CachePhase.Revalidated
    assert cache.cache_meta().updated == 500
    assert lock.statistics().held == 0


async def test_others_are_let_go_only_when_the_storage_has_the_new_metadata() -> None:
    lock = CacheLock(math.inf)
    seen: list[int] = []

    class Looking(FakeStorage):
        async def update_meta(self, key: CacheKey, meta: CacheMeta) -> bool:
            seen.append(lock.statistics().held)
            return True

    cache = await found(enabled(Looking(), lock=lock), HitStatus.EXPIRED)
    assert await cache.revalidate_cache_meta(make_meta())
    assert seen == [1]
    assert lock.statistics().held == 0


async def test_a_304_that_forbids_storing_is_served_once() -> None:
    lock = CacheLock(math.inf)
    old = make_meta()
    cache = await found(enabled(lock=lock), HitStatus.EXPIRED, old)
    reader = await found(enabled(lock=lock), HitStatus.EXPIRED)
    header = ResponseHeader(200)
    cache.revalidate_uncacheable(header, NoCacheReason.OriginNotCache)
    assert cache.cache_meta().header is header
    assert old.header is not header
    assert storage_of(cache).updated == []
    assert await reader.cache_lock_wait() is LockStatus.GIVE_UP


async def test_the_fields_of_a_304_come_into_the_stored_head() -> None:
    stored = ResponseHeader(200)
    stored.headers.add("ETag", '"a"')
    stored.headers.add("Content-Length", "3")
    fresh = ResponseHeader(304)
    fresh.headers.add("ETag", '"b"')
    fresh.headers.add("X-New", "1")
    fresh.headers.add("Content-Length", "0")
    cache = await found(enabled(), HitStatus.EXPIRED, make_meta(header=stored))
    merged = cache.revalidate_merge_header(fresh)
    assert merged.status == 200
    assert merged.headers.get("etag") == '"b"'
    assert merged.headers.get("x-new") == "1"
    assert merged.headers.get("content-length") == "3"
    assert stored.headers.get("etag") == '"a"'


# -- purging -------------------------------------------------------------------------------------


async def test_a_purge_tells_how_it_went() -> None:
    assert await HttpCache().try_purge() is PurgeStatus.NO_CACHE
    cache = enabled()
    assert await cache.try_purge() is PurgeStatus.NOT_FOUND
    storage_of(cache).entries[KEY] = make_meta()
    assert await cache.try_purge() is PurgeStatus.FOUND
    assert storage_of(cache).purged == [(KEY.compact(), PurgeType.INVALIDATION)] * 2
    storage_of(cache).fails = True
    assert await cache.try_purge() is PurgeStatus.ERROR
    with pytest.raises(ProxyError):
        await cache.purge()
    with pytest.raises(CacheStateError, match="purge"):
        await (await miss()).try_purge()
    assert [each.code for each in PurgeStatus] == [405, 200, 404, 500]


async def test_only_what_was_there_is_taken_from_the_eviction_manager() -> None:
    eviction = LruEviction(100)
    eviction.admit(KEY.compact(), 1, 0)
    cache = enabled(eviction=eviction)
    assert not await cache.purge()
    assert eviction.peek(KEY.compact())
    storage_of(cache).entries[KEY] = make_meta()
    assert await cache.purge()
    assert not eviction.peek(KEY.compact())


async def test_a_purge_in_the_background_outlives_the_request() -> None:
    jobs: list[Callable[[], Awaitable[None]]] = []
    cache = HttpCache(jobs.append)
    storage = FakeStorage()
    cache.enable(storage)
    cache.set_cache_key(KEY)
    cache.spawn_async_purge("a test")
    cache.disable(REASON)
    assert storage.purged == []
    await jobs[0]()
    assert storage.purged == [(KEY.compact(), PurgeType.INVALIDATION)]
    with pytest.raises(CacheStateError, match="nursery"):
        enabled().spawn_async_purge("a test")


# -- cancelled, or disabled meanwhile ------------------------------------------------------------


async def fill(cache: HttpCache, stale_first: bool) -> None:
    """What the engine does for a miss, or for a stale response that is replaced."""
    result = await cache.cache_lookup()
    if result is None:
        cache.cache_miss()
    else:
        cache.cache_found(*result, HitStatus.EXPIRED)
    if cache.is_cache_locked():
        return
    if stale_first:
        await cache.hit_handler().read_body()
    cache.set_cache_meta(make_meta())
    await cache.set_miss_handler(read_back=True)
    await cache.write_miss_body(b"abc", False)
    await cache.write_miss_body(b"", True)
    await cache.finish_miss_handler()
    await cache.finish_hit_handler()


async def validate(cache: HttpCache) -> None:
    """What the engine does for a stale response and a 304."""
    result = await cache.cache_lookup()
    assert result is not None
    cache.cache_found(*result, HitStatus.EXPIRED)
    await cache.revalidate_cache_meta(make_meta())
    await cache.hit_handler().read_body()
    await cache.finish_hit_handler()


@pytest.mark.parametrize("kind", [FakeStorage, StreamingStorage])
@pytest.mark.parametrize("way", ["miss", "expired", "revalidated"])
async def test_c_08_cancelled_anywhere_a_writer_leaves_nothing_and_one_takes_over(
    kind: type[FakeStorage], way: str
) -> None:
    for cancel_at in range(20):
        lock = CacheLock(math.inf)
        storage = kind()
        if way != "miss":
            storage.entries[KEY] = make_meta()
        storage.cancel_at = cancel_at
        cache = enabled(storage, lock=lock)
        winners: list[WritePermit] = []

        async def wait(handle: WaitHandle, lock: CacheLock, winners: list[WritePermit]) -> None:
            if (await handle.wait()).retries():
                taken = lock.lock(KEY)
                if isinstance(taken, WritePermit):
                    winners.append(taken)

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as storage.scope:
                try:
                    # Those who wait come in at the first moment that there is a lock.
                    if way == "revalidated":
                        await validate(cache)
                    else:
                        await fill(cache, way == "expired")
                finally:
                    if cache.is_cache_lock_writer():
                        for _ in range(3):
                            handle = lock.lock(KEY)
                            assert isinstance(handle, WaitHandle)
                            nursery.start_soon(wait, handle, lock, winners)
                        with trio.CancelScope(shield=True):
                            await wait_all_tasks_blocked()
                        cache.close()
                        assert lock.statistics().held == 0
                    cache.close()
            await wait_all_tasks_blocked()
            assert storage.all_given_back()
            assert lock.statistics().held == len(winners) <= 1
            nursery.cancel_scope.cancel()
        if not storage.scope.cancelled_caught:
            # It ran to its end: every step before was cancelled once.
            assert cancel_at > 3
            assert storage.steps == cancel_at
            break
    else:
        pytest.fail("it never came to its end")


@pytest.mark.parametrize("found_something", [True, False])
async def test_disabled_while_it_looks_up_a_request_holds_nothing(found_something: bool) -> None:
    lock = CacheLock(math.inf)
    cache = enabled(lock=lock)
    storage = storage_of(cache)
    storage.gate = trio.Event()
    if found_something:
        storage.entries[KEY] = make_meta()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.cache_lookup)
        nursery.start_soon(disable_meanwhile, cache, storage)
    assert lock.statistics().held == 0
    assert storage.all_given_back()


async def disable_meanwhile(cache: HttpCache, storage: FakeStorage) -> None:
    assert storage.gate is not None
    await wait_all_tasks_blocked()
    cache.disable(REASON)
    storage.gate.set()


async def test_disabled_while_it_opens_a_reader_a_request_holds_nothing() -> None:
    cache = await filling(StreamingStorage())
    storage = storage_of(cache)

    async def late(key: CacheKey, tag: bytes) -> tuple[CacheMeta, HitHandler]:
        cache.disable(REASON)
        return make_meta(), FakeHit(storage)

    storage.lookup_streaming_write = late  # type: ignore[method-assign] # only this one
    await cache.set_miss_handler(read_back=True)
    assert len(storage.hits) == 1
    assert storage.all_given_back()


@pytest.mark.parametrize("event", ["set_miss_handler", "write", "finish", "revalidate"])
async def test_disabled_while_the_storage_works_a_request_holds_nothing(event: str) -> None:
    lock = CacheLock(math.inf)
    cache = await filling(lock=lock)
    storage = storage_of(cache)
    if event == "revalidate":
        cache.close()
        cache = await found(enabled(storage, lock=lock), HitStatus.EXPIRED)
    elif event != "set_miss_handler":
        await cache.set_miss_handler()
    storage.gate = trio.Event()

    async def work() -> None:
        if event == "set_miss_handler":
            await cache.set_miss_handler()
        elif event == "write":
            assert not await cache.write_miss_body(b"abc", False)
        elif event == "finish":
            await cache.finish_miss_handler()
        else:
            await cache.revalidate_cache_meta(make_meta())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        nursery.start_soon(disable_meanwhile, cache, storage)
    assert cache.phase() == CachePhase.Disabled(REASON)
    assert lock.statistics().held == 0
    assert storage.all_given_back()


async def _any_way(data: st.DataObject, kind: type[FakeStorage]) -> None:
    lock = CacheLock(math.inf)
    storage = kind()
    cache = HttpCache()
    calls: dict[str, Callable[[HttpCache], object]] = {
        name: call
        for name, (_, call, _) in EVENTS.items()
        if name not in ("enable", "set_write_lock", "cache_lock_wait", "set_cache_lock")
        and not name.startswith("cache_found")
    }
    calls["enable"] = lambda cache: cache.enable(storage, cache_lock=lock)

    def finder(status: HitStatus) -> Callable[[HttpCache], object]:
        return lambda cache: cache.cache_found(make_meta(), FakeHit(storage), status)

    for status in HitStatus:
        calls[f"found {status.name}"] = finder(status)
    # The steps of the usual ways come more often than they would by chance.
    names = [*calls, *["enable", "set_cache_key", "cache_lookup", "cache_miss"] * 4]
    refused = 0
    for _ in range(data.draw(st.integers(1, 30))):
        name = data.draw(st.sampled_from(names))
        if name == "cache_lookup":
            storage.entries = data.draw(st.sampled_from([{}, {KEY: make_meta()}]))
        before = cache.phase()
        try:
            await run(calls[name], cache)
        except CacheStateError:
            refused += 1
            if name.startswith("found"):
                storage.hits[-1].close_now()
            assert cache.phase() == before
        assert lock.statistics().held == cache.is_cache_lock_writer()
        assert cache.enabled() or cache.bypassing() or storage.all_given_back()
    cache.close()
    assert lock.statistics().held == 0
    assert storage.all_given_back()


@given(st.data(), st.sampled_from([FakeStorage, StreamingStorage]))
def test_whatever_is_called_in_whatever_order_all_is_given_back(
    data: st.DataObject, kind: type[FakeStorage]
) -> None:
    trio.run(_any_way, data, kind)


# -- the whole way, with a real store ------------------------------------------------------------


@attrs.define
class _Served:
    phases: list[str] = attrs.Factory(list)
    bodies: list[bytes] = attrs.Factory(list)


class _Slow(FakeStorage):
    """Its look-ups tell what was there when they began."""

    def __init__(self, lock: CacheLock | None = None) -> None:
        super().__init__()
        #: Where others are done with the key during each look-up.
        self.lock = lock

    async def lookup(self, key: CacheKey) -> tuple[CacheMeta, HitHandler] | None:
        meta = self.entries.get(key)
        await self.step()
        if self.lock is not None:
            permit = self.lock.lock(key)
            assert isinstance(permit, WritePermit)
            permit.release(LockStatus.DONE)
        return None if meta is None else (meta, FakeHit(self))


@pytest.mark.parametrize("before", [None, make_meta(900)])
async def test_c_08_a_request_that_a_writer_overtook_finds_what_it_has_stored(
    before: CacheMeta | None,
) -> None:
    lock, storage = CacheLock(30), _Slow()
    storage.gate = trio.Event()
    if before is not None:
        storage.entries[KEY] = before
    cache = enabled(storage, lock=lock)
    permit = lock.lock(KEY)
    assert isinstance(permit, WritePermit)
    results: list[tuple[CacheMeta, HitHandler] | None] = []

    async def look() -> None:
        results.append(await cache.cache_lookup())

    with stopped_clock(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await wait_all_tasks_blocked()
            storage.entries[KEY] = make_meta(1000)
            permit.release(LockStatus.DONE)
            storage.gate.set()
        (result,) = results
        assert result is not None
        assert result[0].created == 1000
        cache.cache_found(*result, HitStatus.FRESH)
    cache.close()
    assert lock.statistics().held == 0
    assert storage.all_given_back()


@pytest.mark.parametrize("before", [None, make_meta(900)])
async def test_c_08_a_request_that_is_overtaken_again_and_again_goes_on(
    before: CacheMeta | None,
) -> None:
    lock = CacheLock(30)
    storage = _Slow(lock)
    if before is not None:
        storage.entries[KEY] = before
    cache = enabled(storage, lock=lock)
    with stopped_clock(1000):
        result = await cache.cache_lookup()
    assert (result is None) is (before is None)
    assert cache.is_cache_lock_writer() is (before is None)
    assert storage.steps == 3
    cache.close()
    assert storage.all_given_back()


async def test_c_08_of_many_requests_for_one_key_one_fills_and_all_are_served() -> None:
    lock = CacheLock(30)
    storage = MemoryStorage(1_000_000)
    served = _Served()

    async def request() -> None:
        cache = enabled(storage, lock=lock)
        try:
            while True:
                result = await cache.cache_lookup()
                if result is not None:
                    cache.cache_found(*result, HitStatus.FRESH)
                    break
                if not cache.is_cache_locked():
                    break
                assert (await cache.cache_lock_wait()).retries()
            body = b""
            if cache.phase() == CachePhase.Hit:
                while (piece := await cache.hit_handler().read_body()) is not None:
                    body += piece
                await cache.finish_hit_handler()
            else:
                cache.cache_miss()
                await wait_all_tasks_blocked()
                cache.set_cache_meta(make_meta())
                await cache.set_miss_handler()
                for piece, end in ((b"one ", False), (b"two", True)):
                    await wait_all_tasks_blocked()
                    await cache.write_miss_body(piece, end)
                    body += piece
                await cache.finish_miss_handler()
            served.phases.append(cache.phase().text)
            served.bodies.append(body)
        finally:
            cache.close()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(request)
    assert served.bodies == [b"one two"] * 50
    assert sorted(served.phases) == ["hit"] * 49 + ["miss"]
    assert lock.statistics().held == 0
    await storage.aclose()


# -- tracing -------------------------------------------------------------------------------------


@attrs.define
class RecordedSpan:
    """Keeps what it is told, in order; fails from the `fails_at`th time on."""

    told: list[tuple[str, object]] = attrs.Factory(list)
    fails_at: float = math.inf

    def add_event(self, name: str, attributes: Mapping[str, str] | None = None) -> None:
        self._take(name, dict(attributes or {}))

    def set_attribute(self, key: str, value: str | float) -> None:
        self._take(key, value)

    def _take(self, name: str, what: object) -> None:
        self.told.append((name, what))
        if len(self.told) >= self.fails_at:
            raise RuntimeError("the exporter is gone")


async def test_a_span_is_told_of_phases_and_what_the_lookup_found() -> None:
    cache, span = HttpCache(), RecordedSpan()
    cache.enable_tracing(span)
    cache.enable(FakeStorage())
    cache.set_cache_key(KEY)
    await found(cache, HitStatus.EXPIRED)
    cache.disable(REASON)
    assert span.told == [
        ("cache.phase", {"phase": "uninitialized"}),
        ("cache.phase", {"phase": "key"}),
        ("cache.lookup_duration", cache.lookup_duration()),
        ("cache.hit_status", "Expired"),
        ("cache.phase", {"phase": "stale"}),
        ("cache.phase", {"phase": "disabled", "reason": "mine"}),
    ]


async def test_a_span_is_told_how_long_the_lock_was_waited_for(autojump_clock: MockClock) -> None:
    lock = CacheLock(60)
    writer, cache, span = enabled(lock=lock), enabled(lock=lock), RecordedSpan()
    cache.enable_tracing(span)
    for each in (writer, cache):
        assert await each.cache_lookup() is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.cache_lock_wait)
        await trio.sleep(2)
        writer.disable(REASON)
    assert span.told == [("cache.lookup_duration", 0.0), ("cache.lock_duration", 2.0)]


async def test_a_span_that_fails_costs_the_request_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for fails_at in (1, 2):
        cache, span = enabled(), RecordedSpan(fails_at=fails_at)
        cache.enable_tracing(span)
        assert await cache.cache_lookup() is None
        cache.cache_miss()
        cache.disable(REASON)
        assert cache.phase() == CachePhase.Disabled(REASON)
        assert len(span.told) == fails_at
    assert [record.getMessage() for record in caplog.records] == [
        "a span given to enable_tracing failed; it is told no more"
    ] * 2
