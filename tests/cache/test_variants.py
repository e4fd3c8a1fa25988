"""Variants of one resource beside a model: the slots, which of them counts, and what purges leave."""

from __future__ import annotations

import itertools

import attrs
import trio
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import ResponseHeader
from trioproxy.cache._http_cache import HttpCache
from trioproxy.cache._key import CacheKey
from trioproxy.cache._lock import CacheLock
from trioproxy.cache._memory import MemoryStorage
from trioproxy.cache._meta import CacheMeta
from trioproxy.cache._phase import HitStatus
from trioproxy.cache._storage import PurgeType

KEY = CacheKey(b"", b"/a")
VARIANTS = [letter * 16 for letter in (b"a", b"b", b"c")]


@attrs.frozen
class Stored:
    """What a slot holds: the variant that it is, when it was stored, and its content."""

    variance: bytes | None
    created: float
    body: bytes


class Resource:
    """One resource in a real store, behind the steps of a request, and the model beside it."""

    def __init__(self) -> None:
        self.storage = MemoryStorage(1 << 20)
        self.lock = CacheLock(60)
        #: By slot: None is the primary one, which tells how responses vary.
        self.model: dict[bytes | None, Stored] = {}
        self.bodies = itertools.count()
        self.now = 1000.0

    def expected(self, asked: bytes) -> tuple[Stored | None, bytes | None]:
        """Return what a request for a variant finds, and the slot that it fills otherwise."""
        primary = self.model.get(None)
        if primary is None:
            return None, None
        if primary.variance in (None, asked):
            return primary, None
        own = self.model.get(asked)
        if own is not None and own.created >= primary.created:
            return own, asked
        return None, asked

    async def ask(self, asked: bytes, varies: bool) -> None:
        """Ask for a variant; where it is not there, the origin's response is stored."""
        expected, slot = self.expected(asked)
        cache = HttpCache()
        cache.enable(self.storage, None, None, self.lock)
        cache.set_cache_key(KEY)
        found = await self.look_up(cache, asked)
        if found is None:
            assert expected is None
            await self.fill(cache, asked if varies else None, slot)
        else:
            meta, body = found
            assert expected == Stored(meta.variance, meta.created, body)
        cache.close()

    async def look_up(self, cache: HttpCache, asked: bytes) -> tuple[CacheMeta, bytes] | None:
        found = await cache.cache_lookup()
        if found is None:
            return None
        meta = found[0]
        # A trait says by the primary's Vary which variant a request asks for, or that there is none.
        if meta.variance is not None and not cache.cache_vary_lookup(asked, meta):
            found[1].close_now()
            found = await cache.cache_lookup()
            if found is None:
                return None
            meta = found[0]
        assert not cache.is_wrong_variant(meta)
        cache.cache_found(*found, HitStatus.FRESH)
        body = b""
        while (piece := await cache.hit_handler().read_body()) is not None:
            body += piece
        await cache.finish_hit_handler()
        return meta, body

    async def fill(self, cache: HttpCache, variance: bytes | None, slot: bytes | None) -> None:
        body = b"%d" % next(self.bodies)
        cache.cache_miss()
        cache.set_cache_meta(
            CacheMeta(
                header=ResponseHeader(200),
                created=self.now,
                updated=self.now,
                fresh_until=self.now + 60,
            )
        )
        cache.update_variance(variance)
        await cache.set_miss_handler()
        await cache.write_miss_body(body, True)
        await cache.finish_miss_handler()
        if variance != slot:
            slot = None  # responses vary in another way now: this one says how
        self.model[slot] = Stored(variance, self.now, body)

    async def purge(self, variance: bytes | None) -> None:
        key = KEY if variance is None else KEY.with_variance(variance)
        was_there = await self.storage.purge(key.compact(), PurgeType.INVALIDATION)
        assert was_there is (self.model.pop(variance, None) is not None)


async def play(data: st.DataObject) -> None:
    resource = Resource()
    for _ in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.sampled_from(["ask", "wait", "purge", "purge one"]))
        if step == "ask":
            await resource.ask(
                data.draw(st.sampled_from(VARIANTS)),
                data.draw(st.sampled_from([True] * 5 + [False])),
            )
        elif step == "wait":
            resource.now += 1
        else:
            await resource.purge(None if step == "purge" else data.draw(st.sampled_from(VARIANTS)))
        state = resource.storage.statistics()
        assert (state.entries, state.writing, state.reserved) == (len(resource.model), 0, 0)
        assert resource.lock.statistics().held == 0


@given(st.data())
def test_variants_are_found_where_the_model_has_them(data: st.DataObject) -> None:
    trio.run(play, data)
