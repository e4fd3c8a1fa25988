"""What rows of the phase table with a cache are made of: runs of callbacks, responses, stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests._support.caching import (
    CONNECTED,
    KEYED,
    response,
)
from trioproxy import (
    ErrorType,
    ProxyError,
    Session,
)
from trioproxy.cache import (
    CacheKey,
    CacheMeta,
    MemoryStorage,
    NoCacheReason,
    Predictor,
)
from trioproxy.cache._memory import MemoryHitHandler

Hooks = dict[str, Callable[..., Any]]
FAILED = ["fail_to_proxy", "suppress_error_log", "request_summary"]

#: What a client is asked that may be 304, 206, ... of it.
FIT = ["cache_not_modified_filter(200)", "range_header_filter(200)"]
STORED = ["response_filter(200)", "response_body_filter(b'hello', True)"]
HIT = [*KEYED, "cache_vary_filter", "cache_hit_filter(True)", *FIT, *STORED, "logging"]
STALE = [*KEYED, "cache_vary_filter", "cache_hit_filter(False)"]
NEWS = [
    "response_filter(200)",
    "upstream_response_body_filter(b'hello', True)",
    "response_body_filter(b'hello', True)",
]
ADMIT = ["upstream_response_filter(200)", "response_cache_filter(200)", "cache_vary_filter", *FIT]
MISS = [*KEYED, "cache_miss", *CONNECTED, *ADMIT, *NEWS, "logging"]
UNCACHEABLE = ["upstream_response_filter(200)", "response_cache_filter(200)"]
NOT_MODIFIED = b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=60\r\n\r\n'
TAGGED = response('ETag: "1"')
#: Served while it is being revalidated, for an hour.
BEHIND = response(cache="max-age=60, stale-while-revalidate=3600")
#: Served where the origin has failed, for an hour.
INSTEAD = response(cache="max-age=60, stale-if-error=3600")
BUSY = response(status=503, cache=None)
#: Longer than what is stored is fresh.
LATER = 100.0


class Unseekable(MemoryHitHandler):
    """A reader that cannot seek."""

    __slots__ = ()

    def can_seek(self) -> bool:
        return False


class UnseekableStorage(MemoryStorage):
    """A store whose readers cannot seek."""

    async def lookup(self, key: CacheKey) -> Any:
        found = await super().lookup(key)
        if found is None:
            return None
        meta, reader = found
        entry = reader._open()
        reader.close_now()
        return meta, Unseekable(self._shelf, entry)


class BrokenStorage(MemoryStorage):
    """A store that fails at what it is told to."""

    broken: frozenset[str] = frozenset()

    def _check(self, name: str) -> None:
        if name in self.broken:
            raise ProxyError.explain(ErrorType.FileReadError, name).into_in()

    async def lookup(self, key: CacheKey) -> Any:
        self._check("lookup")
        return await super().lookup(key)

    async def get_miss_handler(self, key: CacheKey, meta: CacheMeta) -> Any:
        self._check("get_miss_handler")
        return await super().get_miss_handler(key, meta)

    async def purge(self, key: Any, kind: Any) -> bool:
        self._check("purge")
        return await super().purge(key, kind)

    async def update_meta(self, key: CacheKey, meta: CacheMeta) -> bool:
        self._check("update_meta")
        return await super().update_meta(key, meta)


def broken(*names: str) -> BrokenStorage:
    storage = BrokenStorage(1 << 26)
    storage.broken = frozenset(names)
    return storage


def teapot() -> ProxyError:
    return ProxyError.status(418)


class Pessimist(Predictor):
    """Takes everything for uncacheable."""

    def cacheable_prediction(self, key: CacheKey) -> bool:
        return False


def predicted() -> Predictor:
    """Return a predictor that knows the resource of the tests for uncacheable."""
    return Pessimist(8)


RANGE = "Range: bytes=1-3"


def disables(session: Session, *_args: object) -> None:
    session.cache.disable(NoCacheReason.Custom("mine"))


def returns_key() -> Callable[..., CacheKey]:
    return lambda *_args: CacheKey(b"test", b"one")
