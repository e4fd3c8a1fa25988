"""Whole transcripts of callbacks with a cache, row by row of the phase table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests._support.caching import (
    CONNECTED,
    EPOCH,
    HELLO,
    KEYED,
    PREFIX,
    CacheRecorder,
    Steps,
    get,
    memory,
    open_cache,
    response,
    settled,
    stored_body,
    vary_on_field,
)
from tests._support.matrix import PAIRINGS, Exchange, Pairing, open_matrix
from tests._support.recording import (
    GET,
    ORIGIN,
    CutError,
    Origins,
    Outcome,
    Wire,
    answers,
    chunked,
    cuts,
    keeps,
    post,
    raises,
    returns,
)
from tests._support.stores import fill, make_meta
from trioproxy import (
    CachingProxy,
    ErrorType,
    HttpPeer,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    Session,
)
from trioproxy.cache import (
    CacheKey,
    CacheLock,
    CacheMeta,
    CompactKey,
    ForcedFreshness,
    LruEviction,
    MemoryStorage,
    NoCacheReason,
    Predictor,
    SharedCache,
    SingleRange,
    Storage,
    Uncacheable,
)
from trioproxy.cache._lock import WritePermit
from trioproxy.cache._memory import MemoryHitHandler, MemoryMissHandler

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


@attrs.frozen
class Row:
    """One row: what was before, what happens, and the callbacks that it makes run."""

    name: str
    expected: list[str]
    #: What the client sees; status 0 for a response that was cut.
    status: int
    #: The phase that `logging` sees.
    phase: str
    body: bytes = b"hello"
    #: Requests to send and seconds to wait before.
    before: list[bytes | float] = attrs.field(factory=list)
    hooks: Callable[[], Hooks] = dict
    #: What the origin answers in turn, the last one repeated; `origins` takes its place.
    responses: list[bytes] = attrs.field(factory=lambda: [HELLO])
    origins: Outcome | Origins | None = None
    request: bytes = GET
    bodiless: bool = False
    fields: dict[str, str | None] = attrs.field(factory=dict)
    storage: Callable[[], Storage | None] = memory
    lock: bool = True
    predictor: Callable[[], Predictor | None] = lambda: None
    max_file_size: int | None = None
    #: What is in the store behind it.
    stored: list[bytes] | None = None
    log: str = "logging"


def disables(session: Session, *_args: object) -> None:
    session.cache.disable(NoCacheReason.Custom("mine"))


HEAD_HIT = [*HIT[:-3], "response_filter(200)", "logging"]
RANGE = "Range: bytes=1-3"
FIRST: list[bytes | float] = [GET]
OLD: list[bytes | float] = [GET, LATER]

ROWS = [
    Row("hit", HIT, 200, "hit", before=FIRST, fields={"age": "0"}),
    Row("hit, no lock", HIT, 200, "hit", before=FIRST, lock=False),
    Row(
        "hit, of a store that cannot seek",
        [name for name in HIT if "range" not in name],
        200,
        "hit",
        before=FIRST,
        request=get("/path", RANGE),
        storage=lambda: UnseekableStorage(1 << 26),
    ),
    Row(
        "hit, HEAD",
        HEAD_HIT,
        200,
        "hit",
        b"",
        FIRST,
        request=get(method="HEAD"),
        bodiless=True,
        fields={"content-length": "5"},
    ),
    Row(
        "hit, a range",
        [
            *HIT[:-3],
            "response_filter(206)",
            "response_body_filter(b'ell', False)",
            "response_body_filter(None, True)",
            "logging",
        ],
        206,
        "hit",
        b"ell",
        FIRST,
        request=get("/path", RANGE),
        fields={"content-range": "bytes 1-3/5"},
    ),
    Row(
        "hit, a range that cannot be had",
        [*HIT[:-3], "response_filter(416)", "logging"],
        416,
        "hit",
        b"",
        FIRST,
        request=get("/path", "Range: bytes=9-"),
        fields={"content-range": "bytes */5"},
    ),
    Row(
        "hit, the client's copy is good",
        [*HIT[:-4], "response_filter(304)", "logging"],
        304,
        "hit",
        b"",
        FIRST,
        request=get("/path", 'If-None-Match: "1"'),
        responses=[TAGGED],
        fields={"content-length": None},
    ),
    Row(
        "hit, a precondition fails",
        [*HIT[:-5], "response_filter(412)", "logging"],
        412,
        "hit",
        b"",
        FIRST,
        request=get("/path", 'If-Match: "2"'),
        responses=[TAGGED],
    ),
    Row(
        "hit, fresh by the filter's word",
        [*STALE, *FIT, *STORED, "logging"],
        200,
        "hit",
        before=OLD,
        hooks=lambda: {"cache_hit_filter": returns(ForcedFreshness.FORCE_FRESH)},
    ),
    Row("miss, writer", MISS, 200, "miss", stored=[b"hello"], fields={"age": None}),
    Row("miss, no lock", MISS, 200, "miss", lock=False, stored=[b"hello"]),
    Row(
        "miss, of unknown length",
        [
            *MISS[: MISS.index("response_filter(200)") + 1],
            "upstream_response_body_filter(b'hello', False)",
            "response_body_filter(b'hello', False)",
            "upstream_response_body_filter(None, True)",
            "response_body_filter(None, True)",
            "logging",
        ],
        200,
        "miss",
        responses=[
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked(b"hello")
        ],
        stored=[b"hello"],
    ),
    Row(
        "miss, with an informational head before",
        [
            *KEYED,
            "cache_miss",
            *CONNECTED,
            "upstream_response_filter(103)",
            "response_filter(103)",
            *ADMIT,
            *NEWS,
            "logging",
        ],
        200,
        "miss",
        responses=[b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + HELLO],
        stored=[b"hello"],
    ),
    Row(
        "miss, HEAD: the whole is fetched",
        [*MISS[:-3], "upstream_response_body_filter(b'hello', True)", "logging"],
        200,
        "miss",
        b"",
        request=get(method="HEAD"),
        bodiless=True,
        stored=[b"hello"],
    ),
    Row(
        "miss, a range: the whole is fetched",
        [
            *MISS[:-4],
            "response_filter(206)",
            "upstream_response_body_filter(b'hello', True)",
            "response_body_filter(b'ell', True)",
            "logging",
        ],
        206,
        "miss",
        b"ell",
        request=get("/path", RANGE),
        stored=[b"hello"],
    ),
    Row(
        "miss, the client's copy is good: the whole is fetched",
        [
            *MISS[:-5],
            "response_filter(304)",
            "upstream_response_body_filter(b'hello', True)",
            "logging",
        ],
        304,
        "miss",
        b"",
        request=get("/path", 'If-None-Match: "1"'),
        responses=[TAGGED],
        stored=[b"hello"],
    ),
    Row(
        "miss, a precondition fails: the whole is fetched",
        [
            *MISS[:-6],
            "response_filter(412)",
            "upstream_response_body_filter(b'hello', True)",
            "logging",
        ],
        412,
        "miss",
        b"",
        request=get("/path", 'If-Match: "2"'),
        responses=[TAGGED],
        stored=[b"hello"],
    ),
    Row(
        "miss, by the filter's word",
        [*KEYED, "cache_vary_filter", "cache_hit_filter(True)", *MISS[len(KEYED) :]],
        200,
        "miss",
        before=FIRST,
        hooks=lambda: {"cache_hit_filter": returns(ForcedFreshness.FORCE_MISS)},
    ),
    Row(
        "miss, as the hit filter fails",
        [*KEYED, "cache_vary_filter", "cache_hit_filter(True)", *MISS[len(KEYED) :]],
        200,
        "miss",
        before=FIRST,
        hooks=lambda: {"cache_hit_filter": raises(ValueError("hit"))},
    ),
    Row(
        "miss, as the look-up fails",
        MISS,
        200,
        "miss",
        storage=lambda: broken("lookup"),
        stored=[b"hello"],
    ),
    Row(
        "not cacheable",
        [*KEYED, "cache_miss", *CONNECTED, *UNCACHEABLE, *FIT, *NEWS, "logging"],
        200,
        "disabled (OriginNotCache)",
        responses=[response(cache="no-store")],
        stored=[],
    ),
    Row(
        "not cacheable, a range",
        [
            *KEYED,
            "cache_miss",
            *CONNECTED,
            *UNCACHEABLE,
            *FIT,
            "response_filter(206)",
            "upstream_response_body_filter(b'hello', True)",
            "response_body_filter(b'ell', True)",
            "logging",
        ],
        206,
        "disabled (OriginNotCache)",
        b"ell",
        responses=[response(cache="no-store")],
        request=get("/path", RANGE),
    ),
    Row(
        "not cacheable, by the filter's word",
        [*KEYED, "cache_miss", *CONNECTED, *UNCACHEABLE, *FIT, *NEWS, "logging"],
        200,
        "disabled (mine)",
        hooks=lambda: {"response_cache_filter": returns(Uncacheable(NoCacheReason.Custom("mine")))},
        stored=[],
    ),
    Row(
        "not cacheable, as the cache filter fails",
        [*KEYED, "cache_miss", *CONNECTED, *UNCACHEABLE, *FIT, *NEWS, "logging"],
        200,
        "disabled (StorageError)",
        hooks=lambda: {"response_cache_filter": raises(teapot())},
        stored=[],
    ),
    Row(
        "too large, as its length says",
        [*KEYED, "cache_miss", *CONNECTED, *UNCACHEABLE, FIT[0], *NEWS, "logging"],
        200,
        "disabled (ResponseTooLarge)",
        request=get("/path", RANGE),
        max_file_size=4,
        stored=[],
    ),
    Row(
        "too large, as it turns out",
        [
            *MISS[: MISS.index("response_filter(200)") + 1],
            "upstream_response_body_filter(b'hello', False)",
            "response_body_filter(b'hello', False)",
            "upstream_response_body_filter(None, True)",
            "response_body_filter(None, True)",
            "logging",
        ],
        200,
        "disabled (ResponseTooLarge)",
        responses=[
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked(b"hello")
        ],
        max_file_size=4,
        stored=[],
    ),
    Row(
        "304 on a miss, as a filter asked for it",
        [
            *KEYED,
            "cache_miss",
            *CONNECTED,
            "upstream_response_filter(304)",
            "cache_not_modified_filter(304)",
            "response_filter(304)",
            "logging",
        ],
        304,
        "disabled (304 on miss)",
        b"",
        request=get("/path", 'If-None-Match: "1"'),
        hooks=lambda: {"upstream_request_filter": ask_again},
        responses=[NOT_MODIFIED],
        stored=[],
    ),
    Row(
        "the store takes nothing in",
        MISS,
        200,
        "disabled (StorageError)",
        storage=lambda: broken("get_miss_handler"),
        stored=[],
    ),
    Row(
        "stale, 304",
        [
            *STALE,
            *CONNECTED,
            "upstream_response_filter(304)",
            "response_cache_filter(200)",
            *FIT,
            *STORED,
            "logging",
        ],
        200,
        "revalidated",
        before=OLD,
        responses=[TAGGED, NOT_MODIFIED],
        stored=[b"hello"],
    ),
    Row(
        "stale, 304, the client's copy is good too",
        [
            *STALE,
            *CONNECTED,
            "upstream_response_filter(304)",
            "response_cache_filter(200)",
            FIT[0],
            "response_filter(304)",
            "logging",
        ],
        304,
        "revalidated",
        b"",
        before=OLD,
        request=get("/path", 'If-None-Match: "1"'),
        responses=[TAGGED, NOT_MODIFIED],
    ),
    Row(
        "stale, 304, and no longer cacheable",
        [
            *STALE,
            *CONNECTED,
            "upstream_response_filter(304)",
            "response_cache_filter(200)",
            *FIT,
            *STORED,
            "logging",
        ],
        200,
        "revalidated-nocache (OriginNotCache)",
        before=OLD,
        responses=[TAGGED, NOT_MODIFIED.replace(b"max-age=60", b"no-store")],
    ),
    Row(
        "stale, 304, the cache filter fails",
        [
            *STALE,
            *CONNECTED,
            "upstream_response_filter(304)",
            "response_cache_filter(200)",
            *FIT,
            *STORED,
            "logging",
        ],
        200,
        "revalidated-nocache (InternalError)",
        before=OLD,
        hooks=lambda: {"response_cache_filter": raises(ValueError("merged"))},
        responses=[TAGGED, NOT_MODIFIED],
    ),
    Row(
        "stale, 304, upstream_response_filter fails",
        [
            *STALE,
            *CONNECTED,
            "upstream_response_filter(304)",
            *FIT,
            *STORED,
            "logging",
        ],
        200,
        "revalidated-nocache (InternalError)",
        before=OLD,
        hooks=lambda: {"upstream_response_filter": raises(ValueError("304"))},
        responses=[TAGGED, NOT_MODIFIED],
    ),
    Row(
        "stale, 304, the store does not take it",
        [
            *STALE,
            *CONNECTED,
            "upstream_response_filter(304)",
            "response_cache_filter(200)",
            *FIT,
            *STORED,
            "logging",
        ],
        200,
        "revalidated",
        before=OLD,
        responses=[TAGGED, NOT_MODIFIED],
        storage=lambda: broken("update_meta"),
    ),
    Row(
        "stale, 200",
        [*STALE, *CONNECTED, *ADMIT, *NEWS, "logging"],
        200,
        "expired",
        before=OLD,
        responses=[response(body=b"older"), HELLO],
        stored=[b"hello"],
    ),
    Row(
        "stale, by the filter's word",
        [
            *KEYED,
            "cache_vary_filter",
            "cache_hit_filter(True)",
            *CONNECTED,
            *ADMIT,
            *NEWS,
            "logging",
        ],
        200,
        "expired",
        before=FIRST,
        hooks=lambda: {"cache_hit_filter": returns(ForcedFreshness.FORCE_EXPIRED)},
        responses=[response(body=b"older"), HELLO],
    ),
    Row(
        "stale within its time to be served behind, no lock",
        [*STALE, *CONNECTED, *ADMIT, *NEWS, "logging"],
        200,
        "expired",
        before=OLD,
        hooks=lambda: {"should_serve_stale": returns(True)},
        responses=[BEHIND],
        lock=False,
    ),
    Row(
        "stale within its time to be served behind, the filter says no",
        [*STALE, "should_serve_stale(None)", *CONNECTED, *ADMIT, *NEWS, "logging"],
        200,
        "expired",
        before=OLD,
        responses=[BEHIND],
    ),
    Row(
        "stale, upstream 5xx",
        [
            *STALE,
            *CONNECTED,
            "should_serve_stale(HTTPStatus (code: 503))",
            *FIT,
            *STORED,
            "logging",
        ],
        200,
        "stale",
        before=OLD,
        responses=[INSTEAD, BUSY],
        fields={"age": "100"},
        stored=[b"hello"],
    ),
    Row(
        "stale, upstream 5xx, the filter says no",
        [
            *STALE,
            *CONNECTED,
            "should_serve_stale(HTTPStatus (code: 503))",
            "upstream_response_filter(503)",
            "response_cache_filter(503)",
            "cache_not_modified_filter(503)",
            "range_header_filter(503)",
            "response_filter(503)",
            "upstream_response_body_filter(b'hello', True)",
            "response_body_filter(b'hello', True)",
            "logging",
        ],
        503,
        "disabled (OriginNotCache)",
        before=OLD,
        hooks=lambda: {"should_serve_stale": returns(False)},
        responses=[INSTEAD, BUSY],
        stored=[b"hello"],
    ),
    Row(
        "stale, upstream 5xx, forced by the filter's word",
        [
            *KEYED,
            "cache_vary_filter",
            "cache_hit_filter(True)",
            *CONNECTED,
            "upstream_response_filter(503)",
            "response_cache_filter(503)",
            "cache_not_modified_filter(503)",
            "range_header_filter(503)",
            "response_filter(503)",
            "upstream_response_body_filter(b'hello', True)",
            "response_body_filter(b'hello', True)",
            "logging",
        ],
        503,
        "disabled (OriginNotCache)",
        before=FIRST,
        hooks=lambda: {"cache_hit_filter": returns(ForcedFreshness.FORCE_EXPIRED)},
        responses=[INSTEAD, BUSY],
    ),
    Row(
        "stale, connect error",
        [
            *STALE,
            "proxy_upstream_filter",
            "upstream_peer",
            "fail_to_connect",
            "should_serve_stale(ConnectRefused)",
            "request_summary",
            *FIT,
            *STORED,
            "logging",
        ],
        200,
        "stale",
        before=OLD,
        origins={ORIGIN.name: [cuts(INSTEAD), ErrorType.ConnectRefused]},
    ),
    Row(
        "stale, connect error, the filter says no",
        [
            *STALE,
            "proxy_upstream_filter",
            "upstream_peer",
            "fail_to_connect",
            "should_serve_stale(ConnectRefused)",
            *FAILED,
            "logging(ConnectRefused)",
        ],
        502,
        "disabled (UpstreamError)",
        b"",
        before=OLD,
        hooks=lambda: {"should_serve_stale": returns(False)},
        origins={ORIGIN.name: [cuts(INSTEAD), ErrorType.ConnectRefused]},
        log="logging(ConnectRefused)",
        stored=[b"hello"],
    ),
    Row(
        "stale, the origin closes",
        [
            *STALE,
            *CONNECTED,
            "error_while_proxy",
            "should_serve_stale(ConnectionClosed)",
            "request_summary",
            *FIT,
            *STORED,
            "logging",
        ],
        200,
        "stale",
        before=OLD,
        origins={ORIGIN.name: [cuts(INSTEAD), cuts()]},
    ),
    Row(
        "bypass, GET and 200: it fills",
        [*KEYED, *CONNECTED, *UNCACHEABLE, "cache_miss", "cache_vary_filter", *NEWS, "logging"],
        200,
        "miss",
        predictor=predicted,
        stored=[b"hello"],
    ),
    Row(
        "bypass, another status",
        [
            *KEYED,
            *CONNECTED,
            "upstream_response_filter(404)",
            "response_cache_filter(404)",
            "response_filter(404)",
            *NEWS[1:],
            "logging",
        ],
        404,
        "disabled (Deferred)",
        predictor=predicted,
        responses=[response(status=404)],
        stored=[],
    ),
    Row(
        "bypass, HEAD",
        [*KEYED, *CONNECTED, *UNCACHEABLE, "response_filter(200)", "logging"],
        200,
        "disabled (Deferred)",
        b"",
        request=get(method="HEAD"),
        bodiless=True,
        predictor=predicted,
        responses=[response(body=b"")],
        stored=[],
    ),
    Row(
        "bypass, still not cacheable",
        [*KEYED, *CONNECTED, *UNCACHEABLE, *NEWS, "logging"],
        200,
        "bypass",
        predictor=predicted,
        responses=[response(cache="no-store")],
        stored=[],
    ),
    Row(
        "bypass, of unknown length beside a limit",
        [
            *KEYED,
            *CONNECTED,
            *UNCACHEABLE,
            "response_filter(200)",
            "upstream_response_body_filter(b'hello', False)",
            "response_body_filter(b'hello', False)",
            "upstream_response_body_filter(None, True)",
            "response_body_filter(None, True)",
            "logging",
        ],
        200,
        "disabled (PredictedResponseTooLarge)",
        predictor=predicted,
        responses=[
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked(b"hello")
        ],
        max_file_size=100,
        stored=[],
    ),
    Row(
        "bypass, with a range of which the origin takes no notice",
        [*KEYED, *CONNECTED, *UNCACHEABLE, *NEWS, "logging"],
        200,
        "disabled (Deferred)",
        request=get("/path", RANGE),
        predictor=predicted,
        stored=[],
    ),
    Row(
        "purge, found",
        [*KEYED, "purge_response_filter(Found)", "logging"],
        200,
        "key",
        b"",
        FIRST,
        hooks=lambda: {"is_purge": returns(True)},
        fields={"cache-control": "private, no-store", "content-length": "0"},
        stored=[],
    ),
    Row(
        "purge, not found",
        [*KEYED, "purge_response_filter(NotFound)", "logging"],
        404,
        "key",
        b"",
        hooks=lambda: {"is_purge": returns(True)},
    ),
    Row(
        "purge, the cache is off",
        [*PREFIX, "is_purge", "purge_response_filter(NoCache)", "logging"],
        405,
        "disabled (NeverEnabled)",
        b"",
        hooks=lambda: {"is_purge": returns(True)},
        storage=lambda: None,
    ),
    Row(
        "purge, the store fails",
        [*KEYED, "purge_response_filter(Error)", "logging"],
        500,
        "key",
        b"",
        hooks=lambda: {"is_purge": returns(True)},
        storage=lambda: broken("purge"),
    ),
    Row(
        "purge, its filter fails",
        [*KEYED, "purge_response_filter(NotFound)", "logging"],
        500,
        "key",
        b"",
        hooks=lambda: {"is_purge": returns(True), "purge_response_filter": raises(teapot())},
    ),
    Row(
        "the cache is off",
        [
            *PREFIX,
            "is_purge",
            *CONNECTED,
            "upstream_response_filter(200)",
            *NEWS,
            "logging",
        ],
        200,
        "disabled (NeverEnabled)",
        storage=lambda: None,
    ),
    Row(
        "request_cache_filter fails: ignored",
        [
            *PREFIX,
            "is_purge",
            *CONNECTED,
            "upstream_response_filter(200)",
            *NEWS,
            "logging",
        ],
        200,
        "disabled (NeverEnabled)",
        hooks=lambda: {"request_cache_filter": raises(teapot())},
        stored=[],
    ),
    Row(
        "cache_key_callback fails: uncached",
        [*KEYED, *CONNECTED, "upstream_response_filter(200)", *NEWS, "logging"],
        200,
        "disabled (StorageError)",
        hooks=lambda: {"cache_key_callback": raises(ValueError("key"))},
        stored=[],
    ),
    Row(
        "is_purge fails",
        [*KEYED, *FAILED, "logging(HTTPStatus (code: 418))"],
        418,
        "disabled (InternalError)",
        b"",
        hooks=lambda: {"is_purge": raises(teapot())},
        log="logging(HTTPStatus (code: 418))",
    ),
    Row(
        "cache_miss fails",
        [*KEYED, "cache_miss", *FAILED, "logging(HTTPStatus (code: 418))"],
        418,
        "disabled (InternalError)",
        b"",
        hooks=lambda: {"cache_miss": raises(teapot())},
    ),
    Row(
        "cache_miss switches the cache off",
        [*KEYED, "cache_miss", *CONNECTED, "upstream_response_filter(200)", *NEWS, "logging"],
        200,
        "disabled (mine)",
        hooks=lambda: {"cache_miss": disables},
        stored=[],
    ),
    Row(
        "cache_hit_filter switches the cache off",
        [
            *KEYED,
            "cache_vary_filter",
            "cache_hit_filter(True)",
            *CONNECTED,
            "upstream_response_filter(200)",
            *NEWS,
            "logging",
        ],
        200,
        "disabled (mine)",
        before=FIRST,
        hooks=lambda: {"cache_hit_filter": disables},
    ),
    *(
        Row(
            f"cache_vary_filter fails on a hit, with {type(error).__name__}",
            [*KEYED, "cache_vary_filter", *FAILED, f"logging({shown})"],
            code,
            "disabled (InternalError)",
            b"",
            FIRST,
            hooks=lambda error=error: {"cache_vary_filter": raises(error)},  # type: ignore[misc]
        )
        for error, shown, code in (
            (ValueError("vary"), "InternalError", 500),
            (teapot(), "HTTPStatus (code: 418)", 418),
        )
    ),
    Row(
        "cache_vary_filter fails on a miss",
        [
            *MISS[: MISS.index("cache_vary_filter") + 1],
            "error_while_proxy",
            *FAILED,
            "logging(HTTPStatus (code: 418))",
        ],
        418,
        "disabled (UpstreamError)",
        b"",
        hooks=lambda: {"cache_vary_filter": raises(teapot())},
        stored=[],
    ),
    Row(
        "cache_not_modified_filter fails on a hit: the whole is sent",
        HIT,
        200,
        "hit",
        before=FIRST,
        hooks=lambda: {"cache_not_modified_filter": raises(teapot())},
    ),
    Row(
        "cache_not_modified_filter fails on a miss: the whole is sent",
        MISS,
        200,
        "miss",
        hooks=lambda: {"cache_not_modified_filter": raises(teapot())},
        stored=[b"hello"],
    ),
    Row(
        "range_header_filter fails on a hit",
        [*HIT[:-3], "logging(HTTPStatus (code: 418))"],
        500,
        "hit",
        b"",
        FIRST,
        hooks=lambda: {"range_header_filter": raises(teapot())},
    ),
    Row(
        "range_header_filter has its own mind",
        [
            *HIT[:-3],
            "response_filter(200)",
            "response_body_filter(b'lo', False)",
            "response_body_filter(None, True)",
            "logging",
        ],
        200,
        "hit",
        b"lo",
        FIRST,
        hooks=lambda: {"range_header_filter": cut_to_two},
    ),
    Row(
        "response_filter fails on a hit",
        [*HIT[:-2], "logging(HTTPStatus (code: 418))"],
        500,
        "hit",
        b"",
        FIRST,
        hooks=lambda: {"response_filter": raises(teapot())},
    ),
    Row(
        "response_filter fails on what a 304 confirmed",
        [
            *STALE,
            *CONNECTED,
            "upstream_response_filter(304)",
            "response_cache_filter(200)",
            *FIT,
            STORED[0],
            "logging(HTTPStatus (code: 418))",
        ],
        500,
        "revalidated",
        b"",
        before=OLD,
        hooks=lambda: {"response_filter": raises(teapot())},
        responses=[TAGGED, NOT_MODIFIED],
    ),
    Row(
        "response_filter fails on a miss",
        [
            *MISS[: MISS.index("response_filter(200)") + 1],
            "error_while_proxy",
            *FAILED,
            "logging(HTTPStatus (code: 418))",
        ],
        418,
        "disabled (UpstreamError)",
        b"",
        hooks=lambda: {"response_filter": raises(teapot())},
        stored=[],
    ),
    Row(
        "should_serve_stale fails on a 5xx",
        [
            *STALE,
            *CONNECTED,
            "should_serve_stale(HTTPStatus (code: 503))",
            "error_while_proxy",
            "should_serve_stale(InternalError)",
            *FAILED,
            "logging(InternalError)",
        ],
        500,
        "disabled (InternalError)",
        b"",
        before=OLD,
        hooks=lambda: {"should_serve_stale": raises(ValueError("stale"))},
        responses=[INSTEAD, BUSY],
    ),
    Row(
        "proxy_upstream_filter declines",
        [*KEYED, "cache_miss", "proxy_upstream_filter", "logging"],
        502,
        "disabled (DeclinedToUpstream)",
        b"",
        hooks=lambda: {"proxy_upstream_filter": returns(False)},
    ),
    Row(
        "proxy_upstream_filter fails",
        [
            *KEYED,
            "cache_miss",
            "proxy_upstream_filter",
            *FAILED,
            "logging(HTTPStatus (code: 418))",
        ],
        418,
        "disabled (InternalError)",
        b"",
        hooks=lambda: {"proxy_upstream_filter": raises(teapot())},
    ),
    Row(
        "a miss, connect error",
        [
            *KEYED,
            "cache_miss",
            "proxy_upstream_filter",
            "upstream_peer",
            "fail_to_connect",
            *FAILED,
            "logging(ConnectRefused)",
        ],
        502,
        "disabled (UpstreamError)",
        b"",
        origins=ErrorType.ConnectRefused,
    ),
]


async def ask_again(session: Session, request: RequestHeader, _ctx: object) -> None:
    request.headers.set("If-None-Match", session.get_header("if-none-match") or "")


def cut_to_two(_session: Session, head: ResponseHeader, _ctx: object) -> SingleRange:
    head.headers.set("Content-Length", "2")
    return SingleRange(3, 5)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_callbacks_run_as_the_phase_table_says(row: Row, autojump_clock: MockClock) -> None:
    recorder = CacheRecorder(
        storage=row.storage(),
        lock=CacheLock(60) if row.lock else None,
        predictor=row.predictor(),
        max_file_size=row.max_file_size,
    )

    origins = row.origins or Steps([[each] for each in row.responses]).origin()

    async with open_cache(recorder, origins) as gateway:
        for step in row.before:
            if isinstance(step, float):
                await trio.sleep(step)
            else:
                await gateway.exchange(step)
                await settled()
        recorder.calls.clear()
        recorder.hooks = row.hooks()
        try:
            message = await gateway.exchange(row.request, bodiless=row.bodiless)
        except CutError:
            message = None

    assert recorder.shown() == row.expected
    assert message is not None
    assert (message.status, message.body) == (row.status, row.body)
    for name, value in row.fields.items():
        assert message.get(name) == value, name
    assert recorder.phases() == [row.phase]
    if row.stored is not None:
        assert stored_body(recorder.storage) == row.stored


# -- those who wait for another one --------------------------------------------------------------

READER = HIT
PARTIAL_READER = [
    *HIT[:-2],
    "response_body_filter(b'hello', False)",
    "response_body_filter(None, True)",
    "logging",
]
UNCACHED = [*KEYED, *CONNECTED, "upstream_response_filter(200)", *NEWS, "logging"]


@attrs.frozen
class Wait:
    """How a wait ends, and what becomes of who waited."""

    name: str
    #: What the writer's request gets, before and behind the moment when the reader waits.
    steps: list[bytes | trio.Event | float | None]
    expected: list[str]
    phase: str
    writer: str
    #: Seconds until the writer's answer.
    seconds: float = 1.0
    wait_timeout: float | None = None
    writer_leaves: bool = False
    whole: bool = False


WAITS = [
    Wait("done, read while it is written", [HELLO], PARTIAL_READER, "hit", "miss"),
    Wait("done, read when it is whole", [HELLO], READER, "hit", "miss", whole=True),
    Wait(
        "give up",
        [response(cache="no-store")],
        UNCACHED,
        "disabled (CacheLockGiveUp)",
        "disabled (OriginNotCache)",
    ),
    Wait("transient error", [None], MISS, "miss", "disabled (UpstreamError)"),
    Wait("dangling", [HELLO], MISS, "miss", "miss", writer_leaves=True),
    Wait(
        "age timeout",
        [HELLO],
        MISS,
        "miss",
        "miss",
        seconds=30,
    ),
    Wait(
        "wait timeout",
        [HELLO],
        UNCACHED,
        "disabled (CacheLockTimeout)",
        "miss",
        seconds=10,
        wait_timeout=5,
    ),
]


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.name)
async def test_a_reader_behind_a_lock_goes_on_by_what_the_writer_says(
    wait: Wait, autojump_clock: MockClock
) -> None:
    go = trio.Event()
    steps = Steps([[go, *wait.steps], [HELLO]])
    recorder = CacheRecorder(
        storage=memory(whole=wait.whole), lock=CacheLock(20), wait_timeout=wait.wait_timeout
    )

    async with open_cache(recorder, steps.origin()) as gateway:
        writer = gateway.connect()
        await writer.send(GET)
        await settled()
        reader = gateway.connect()
        await reader.send(GET)
        await settled()
        assert len(steps.asked) == 1
        assert recorder.of_request(1) == KEYED
        if wait.writer_leaves:
            writer.close()
        else:
            await trio.sleep(wait.seconds)
        go.set()
        message = await reader.message()

    assert (message.status, message.body) == (200, b"hello")
    assert recorder.of_request(1) == wait.expected
    by_ctx = {call.ctx.number: str(call.args["phase"]) for call in recorder.of("logging")}
    assert by_ctx == {0: wait.writer, 1: wait.phase}
    assert len(steps.asked) == (1 if wait.phase == "hit" else 2)


async def test_a_reader_waits_four_times_and_then_goes_uncached(autojump_clock: MockClock) -> None:
    waits = 0

    class Unlucky(CacheLock):
        """Somebody else always comes first, and fails at once."""

        def lock(self, key: CacheKey, *, stale_writer: bool = False) -> Any:
            nonlocal waits
            permit = super().lock(key)
            handle = super().lock(key)
            assert isinstance(permit, WritePermit)
            permit.drop()
            waits += 1
            return handle

    recorder = CacheRecorder(lock=Unlucky(60))
    async with open_cache(recorder, answers(HELLO)) as gateway:
        assert (await gateway.exchange(GET)).status == 200

    assert waits == 5  # one for each look-up, of which the last does not wait
    assert recorder.shown() == UNCACHED
    assert recorder.phases() == ["disabled (CacheLockTimeout)"]


async def test_a_stale_reader_waits_where_nothing_stale_is_to_be_served(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[BEHIND], [go, HELLO]])
    recorder = CacheRecorder(storage=memory(whole=True))
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        writer = gateway.connect()
        await writer.send(GET)
        await settled()
        reader = gateway.connect()
        await reader.send(GET)
        await settled()
        assert recorder.of_request(2) == [*STALE, "should_serve_stale(None)"]
        go.set()
        assert (await reader.message()).body == b"hello"
        assert (await writer.message()).body == b"hello"

    assert recorder.of_request(2) == [
        *STALE,
        "should_serve_stale(None)",
        "cache_vary_filter",
        "cache_hit_filter(True)",
        *FIT,
        *STORED,
        "logging",
    ]
    assert recorder.phases() == ["miss", "expired", "hit"]


async def test_what_is_forced_to_be_a_miss_after_a_wait_is_fetched_anew(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[TAGGED], [go, None], [TAGGED]])
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        writer = gateway.connect()
        await writer.send(GET)
        await settled()
        reader = gateway.connect()
        await reader.send(GET)
        await settled()
        recorder.hooks["cache_hit_filter"] = returns(ForcedFreshness.FORCE_MISS)
        go.set()
        assert (await writer.message()).status == 502
        assert (await reader.message()).body == b"hello"

    assert steps.asked[2].get("if-none-match") is None
    assert recorder.of_request(2) == [
        *STALE,
        "cache_vary_filter",
        "cache_hit_filter(False)",
        *MISS[len(KEYED) :],
    ]


@pytest.mark.parametrize("error", [BUSY, None], ids=["503", "closes"])
async def test_a_writer_that_serves_stale_for_an_error_lets_go_of_the_lock(
    error: bytes | None, autojump_clock: MockClock
) -> None:
    steps = Steps([[INSTEAD], [error], [HELLO]])

    async def slowly(*_args: object) -> None:
        await trio.sleep(1000)

    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        recorder.hooks["response_filter"] = slowly
        writer = gateway.connect()
        await writer.send(GET)
        await settled()
        del recorder.hooks["response_filter"]
        started = trio.current_time()
        assert (await gateway.exchange(GET)).body == b"hello"
        assert trio.current_time() == started

    assert recorder.phases()[1] == "expired"


# -- in the background ---------------------------------------------------------------------------

SERVES = {"should_serve_stale": returns(True)}
STALE_HIT = [*STALE, "should_serve_stale(None)", *FIT, *STORED, "logging"]


async def test_a_stale_response_is_served_while_a_request_in_the_background_renews_it(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[BEHIND], [go, response('ETag: "2"')]])
    recorder = CacheRecorder(hooks=dict(SERVES))
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        first = await gateway.exchange(GET)
        assert first.get("age") == "100"
        await settled()
        assert recorder.of_request(1) == STALE_HIT
        assert gateway.services.background == 1
        # The next one reads the lock, and need not wait for it.
        await gateway.exchange(GET)
        await settled()
        assert recorder.of_request(3) == STALE_HIT
        assert len(steps.asked) == 2
        go.set()
        await settled()
        assert gateway.services.background == 0
        last = await gateway.exchange(GET)
        assert last.get("etag") == '"2"'

    # The whole of a request, that takes the permit over.
    assert recorder.of_request(2) == [*STALE, *CONNECTED, *ADMIT, *NEWS, "logging"]
    ends = {call.ctx.number: str(call.args["phase"]) for call in recorder.of("logging")}
    assert ends == {0: "miss", 1: "stale-updating", 2: "expired", 3: "stale-updating", 4: "hit"}
    assert recorder.of("logging")[3].args["session"].is_subrequest()


async def test_a_request_in_the_background_asks_with_the_validators(
    autojump_clock: MockClock,
) -> None:
    steps = Steps([[response('ETag: "1"', cache="max-age=60, stale-while-revalidate=3600")]])
    steps.steps.append([NOT_MODIFIED])
    recorder = CacheRecorder(hooks=dict(SERVES))
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        await gateway.exchange(get("/path", "X-Mine: 1", method="HEAD"), bodiless=True)
        await settled()
        assert [str(phase) for phase in recorder.phases()] == [
            "miss",
            "stale-updating",
            "revalidated",
        ]
        assert (await gateway.exchange(GET)).get("age") == "0"

    asked = steps.asked[1]
    assert asked.start == b"GET /path HTTP/1.1"
    assert (asked.get("if-none-match"), asked.get("x-mine")) == ('"1"', "1")


@pytest.mark.parametrize("reason", ["too many", "draining", "no nursery"])
async def test_without_a_request_in_the_background_the_writer_asks_itself(
    reason: str, autojump_clock: MockClock
) -> None:
    recorder = CacheRecorder(hooks=dict(SERVES))
    async with open_cache(recorder, Steps([[BEHIND]]).origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        services = gateway.services
        if reason == "too many":
            services.background = services.conf.max_background_requests
        elif reason == "draining":
            services.draining = True
        else:
            services.nursery = None
        await gateway.exchange(GET)
        if reason == "too many":
            services.background = 0

    assert recorder.of_request(1) == [
        *STALE,
        "should_serve_stale(None)",
        *CONNECTED,
        *ADMIT,
        *NEWS,
        "logging",
    ]


async def test_a_request_in_the_background_that_fails_leaves_what_is_stored(
    autojump_clock: MockClock,
) -> None:
    steps = Steps([[BEHIND], [None], [HELLO]])
    recorder = CacheRecorder(hooks=dict(SERVES))
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        await gateway.exchange(GET)
        await settled()
        assert recorder.of_request(2)[-1] == "logging(ConnectionClosed)"
        # Its permit is free again.
        assert (await gateway.exchange(GET)).get("age") == "100"
        await settled()

    assert recorder.of_request(3) == STALE_HIT
    assert recorder.phases()[-1] == "expired"


async def test_a_request_in_the_background_that_does_not_cache_lets_go_of_the_permit_at_once(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[BEHIND], [go, HELLO]])
    recorder = CacheRecorder(hooks=dict(SERVES))

    def only_for_clients(session: Session, _ctx: object) -> None:
        if not session.is_subrequest():
            recorder.enable(session)

    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        recorder.hooks["request_cache_filter"] = only_for_clients
        await gateway.exchange(GET)
        await settled()
        assert recorder.lock is not None
        assert (len(steps.asked), recorder.lock.statistics().held) == (2, 0)
        go.set()


async def test_a_request_in_the_background_that_gets_no_context_lets_go_of_the_permit(
    autojump_clock: MockClock,
) -> None:
    def new_ctx() -> object:
        if len(recorder.of("new_ctx")) == 3:
            raise ValueError("no context")
        return recorder.of("new_ctx")[-1].ctx

    recorder = CacheRecorder(hooks={**SERVES, "new_ctx": new_ctx})
    async with open_cache(recorder, Steps([[BEHIND]]).origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        await gateway.exchange(GET)
        await settled()
        assert recorder.lock is not None
        assert recorder.lock.statistics().held == 0
        await gateway.exchange(GET)
        await settled()

    assert recorder.phases() == ["miss", "stale-updating", "stale-updating", "expired"]


async def test_a_method_with_content_is_not_repeated_in_the_background(
    autojump_clock: MockClock,
) -> None:
    key = returns_key()
    steps = Steps([[BEHIND]])
    recorder = CacheRecorder(hooks={**SERVES, "cache_key_callback": key})
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(post(b"ask"))
        await trio.sleep(LATER)
        await gateway.exchange(post(b"ask"))

    assert [each.body for each in steps.asked] == [b"ask", b"ask"]
    assert recorder.phases() == ["miss", "expired"]


async def test_a_request_in_the_background_is_bounded_in_time(autojump_clock: MockClock) -> None:
    never = trio.Event()
    steps = Steps([[BEHIND], [never]])
    recorder = CacheRecorder(hooks=dict(SERVES))
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        await gateway.exchange(GET)
        await trio.sleep(gateway.services.conf.background_timeout + 1)
        assert gateway.services.background == 0
        never.set()


# -- variants ------------------------------------------------------------------------------------


def varied(name: str, body: bytes, *fields: str) -> bytes:
    return response(f"Vary: {name}", *fields, body=body)


EN = get("/path", "Accept-Language: en")
DE = get("/path", "Accept-Language: de")


async def test_a_second_variant_is_stored_beside_the_first(autojump_clock: MockClock) -> None:
    steps = Steps([[varied("Accept-Language", b"hello")], [varied("Accept-Language", b"hallo")]])
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        bodies = [(await gateway.exchange(each)).body for each in (EN, DE, EN, DE)]

    assert bodies == [b"hello", b"hallo"] * 2
    assert recorder.phases() == ["miss", "miss", "hit", "hit"]
    # The primary slot has the other variant, so that there is no hit filter for it.
    assert recorder.of_request(1)[: len(KEYED) + 2] == [*KEYED, "cache_vary_filter", "cache_miss"]
    # The second look-up is not asked for the variant again.
    assert recorder.of_request(3)[: len(KEYED) + 3] == [
        *KEYED,
        "cache_vary_filter",
        "cache_hit_filter(True)",
        *FIT[:1],
    ]
    assert sorted(stored_body(recorder.storage)) == [b"hallo", b"hello"]


async def test_a_vary_that_changes_takes_the_primary_slot_and_ends_the_variants(
    autojump_clock: MockClock,
) -> None:
    steps = Steps(
        [
            [varied("Accept-Language", b"hello")],
            [varied("Accept-Language", b"hallo")],
            [varied("Accept-Language, X-Other", b"salut")],
            [varied("Accept-Language, X-Other", b"again")],
        ]
    )
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(EN)
        await gateway.exchange(DE)
        await trio.sleep(1)
        fr = get("/path", "Accept-Language: fr")
        assert (await gateway.exchange(fr)).body == b"salut"
        assert (await gateway.exchange(fr)).body == b"salut"
        # The variant from before is older than what the primary slot says now.
        assert (await gateway.exchange(DE)).body == b"again"

    assert recorder.phases() == ["miss", "miss", "miss", "hit", "miss"]


async def test_a_purge_of_the_resource_ends_all_its_variants(autojump_clock: MockClock) -> None:
    steps = Steps([[varied("Accept-Language", b"hello")], [varied("Accept-Language", b"hallo")]])
    recorder = CacheRecorder()
    key = returns_key()
    recorder.hooks["cache_key_callback"] = key
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(EN)
        await gateway.exchange(DE)
        await trio.sleep(1)
        assert (await gateway.exchange(get(method="PURGE"))).status == 200
        await gateway.exchange(EN)
        await gateway.exchange(DE)

    assert recorder.phases() == ["miss", "miss", "key", "miss", "miss"]


def returns_key() -> Callable[..., CacheKey]:
    return lambda *_args: CacheKey(b"test", b"one")


async def test_a_stale_variant_is_revalidated_in_its_own_slot(autojump_clock: MockClock) -> None:
    steps = Steps(
        [
            [varied("Accept-Language", b"hello", 'ETag: "e"')],
            [varied("Accept-Language", b"hallo", 'ETag: "d"')],
            [b'HTTP/1.1 304 Not Modified\r\nETag: "d"\r\nCache-Control: max-age=60\r\n\r\n'],
        ]
    )
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(EN)
        await gateway.exchange(DE)
        await trio.sleep(LATER)
        assert (await gateway.exchange(DE)).body == b"hallo"
        assert (await gateway.exchange(DE)).body == b"hallo"

    assert steps.asked[2].get("if-none-match") == '"d"'
    assert recorder.phases() == ["miss", "miss", "revalidated", "hit"]


async def test_variants_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    go = trio.Event()
    steps = Steps(
        [
            [varied("Accept-Language", b"hello")],
            [go, varied("Accept-Language", b"hallo")],
            [varied("Accept-Language", b"salut")],
        ]
    )
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(EN)
        slow = gateway.connect()
        await slow.send(DE)
        await settled()
        fr = get("/path", "Accept-Language: fr")
        assert (await gateway.exchange(fr)).body == b"salut"
        go.set()
        assert (await slow.message()).body == b"hallo"


# -- the predictor -------------------------------------------------------------------------------


async def test_the_predictor_learns_and_forgets(autojump_clock: MockClock) -> None:
    no_store = response(cache="no-store")
    steps = Steps([[no_store], [no_store], [HELLO], [HELLO]])
    recorder = CacheRecorder(predictor=Predictor(8))
    async with open_cache(recorder, steps.origin()) as gateway:
        for _ in range(4):
            assert (await gateway.exchange(GET)).body == b"hello"

    assert recorder.phases() == ["disabled (OriginNotCache)", "bypass", "miss", "hit"]
    assert recorder.of_request(1) == [*KEYED, *CONNECTED, *UNCACHEABLE, *NEWS, "logging"]


async def test_what_is_too_large_by_its_length_is_not_looked_up_again(
    autojump_clock: MockClock,
) -> None:
    recorder = CacheRecorder(predictor=Predictor(8), max_file_size=4)
    async with open_cache(recorder, answers(HELLO, HELLO, response(body=b"four"))) as gateway:
        client = gateway.connect()
        for _ in range(4):
            await client.send(GET)
            await client.message()

    assert recorder.phases() == [
        "disabled (ResponseTooLarge)",
        "disabled (ResponseTooLarge)",
        "miss",
        "hit",
    ]
    assert "cache_miss" not in recorder.of_request(1)


async def test_what_was_too_large_is_counted_until_it_fits(autojump_clock: MockClock) -> None:
    def of(body: bytes) -> bytes:
        head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + chunked(body)

    steps = Steps([[of(b"longer")], [of(b"longer")], [of(b"four")], [of(b"four")]])
    recorder = CacheRecorder(predictor=Predictor(8), max_file_size=4)
    async with open_cache(recorder, steps.origin()) as gateway:
        bodies = [(await gateway.exchange(GET)).body for _ in range(5)]

    assert bodies == [b"longer", b"longer", b"four", b"four", b"four"]
    assert recorder.phases() == [
        "disabled (ResponseTooLarge)",
        "disabled (PredictedResponseTooLarge)",
        "disabled (PredictedResponseTooLarge)",
        "miss",
        "hit",
    ]


async def test_a_lookup_of_what_is_predicted_is_not_done(autojump_clock: MockClock) -> None:
    recorder = CacheRecorder(storage=broken("lookup"), predictor=predicted())
    async with open_cache(recorder, answers(HELLO)) as gateway:
        await gateway.exchange(GET)

    session = recorder.the("logging").args["session"]
    assert session.cache.lookup_duration() is None


# -- what comes besides --------------------------------------------------------------------------


async def test_a_304_reaches_the_client_before_the_whole_is_stored(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[TAGGED[:-5], go, b"hello"]])
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        response = await gateway.exchange(get("/path", 'If-None-Match: "1"'))
        assert response.status == 304
        assert stored_body(recorder.storage) == []
        go.set()
        await settled()
        assert stored_body(recorder.storage) == [b"hello"]

    assert recorder.the("logging").args["e"] is None


@pytest.mark.parametrize("whole", [False, True])
async def test_a_client_that_has_all_it_wants_may_leave_while_the_rest_is_stored(
    whole: bool, autojump_clock: MockClock
) -> None:
    go = trio.Event()
    steps = Steps([[HELLO[:-5], go, b"hello"]])
    recorder = CacheRecorder(storage=memory(whole=whole))
    async with open_cache(recorder, steps.origin()) as gateway:
        client = gateway.connect()
        await client.send(get(method="HEAD"))
        assert (await client.message(bodiless=True)).status == 200
        client.close()
        await settled()
        go.set()
        await settled()
        assert stored_body(recorder.storage) == [b"hello"]

    assert recorder.the("logging").args["e"] is None


async def test_the_connection_of_a_304_is_used_again(autojump_clock: MockClock) -> None:
    quick = TAGGED.replace(b"max-age=60", b"max-age=1")
    steps = Steps([[quick], [NOT_MODIFIED.replace(b"max-age=60", b"max-age=1")]])
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        for _ in range(4):
            await gateway.exchange(GET)
            await trio.sleep(2)
        assert gateway.connector.asked == [ORIGIN.name]

    assert recorder.phases() == ["miss", "revalidated", "revalidated", "revalidated"]


async def test_an_attempt_that_is_repeated_leaves_nothing_of_the_first_in_the_store(
    autojump_clock: MockClock,
) -> None:
    def again(_peer: object, _session: Session, e: ProxyError, ctx: Any, _r: bool) -> ProxyError:
        e.set_retry(ctx.attempts < 2)
        return e

    def fails_once(*_args: object) -> None:
        if len(recorder.of("response_filter")) == 1:
            raise teapot()

    recorder = CacheRecorder(hooks={"error_while_proxy": again})
    recorder.hooks["response_filter"] = fails_once
    async with open_cache(recorder, Steps([[HELLO]]).origin()) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"
        assert stored_body(recorder.storage) == []

    assert recorder.the("logging").args["e"] is None
    assert recorder.phases() == ["disabled (UpstreamError)"]


async def test_an_attempt_that_fails_before_the_store_is_open_is_repeated(
    autojump_clock: MockClock,
) -> None:
    def again(_peer: object, _session: Session, e: ProxyError, ctx: Any, _r: bool) -> ProxyError:
        e.set_retry(ctx.attempts < 2)
        return e

    def fails_once(meta: CacheMeta, ctx: Any, request: RequestHeader) -> bytes | None:
        if ctx.number == 1 and ctx.attempts == 1 and meta.age(EPOCH + LATER) == 0:
            raise teapot()
        return vary_on_field(meta, ctx, request)

    recorder = CacheRecorder(hooks={"error_while_proxy": again, "cache_vary_filter": fails_once})
    async with open_cache(recorder, Steps([[HELLO]]).origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        assert (await gateway.exchange(GET)).body == b"hello"

    assert recorder.phases() == ["miss", "disabled (UpstreamError)"]


async def test_trailers_go_by_a_cache_that_stores_the_rest(autojump_clock: MockClock) -> None:
    head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
    origin = answers(head + chunked(b"hello", trailers=b"X-Sum: 1\r\n"))
    recorder = CacheRecorder()
    async with open_cache(recorder, origin) as gateway:
        assert (await gateway.exchange(GET)).trailers == [(b"x-sum", b"1")]
        assert (await gateway.exchange(GET)).trailers == []

    assert recorder.of_request(0)[-6:] == [
        "response_body_filter(b'hello', False)",
        "upstream_response_body_filter(None, True)",
        "response_body_filter(None, True)",
        "upstream_response_trailer_filter",
        "response_trailer_filter",
        "logging",
    ]


async def test_what_the_upstreams_filters_write_is_stored_and_the_clients_is_not(
    autojump_clock: MockClock,
) -> None:
    async def upstream(_session: Session, head: ResponseHeader, _ctx: object) -> None:
        head.headers.set("X-Up", "1")

    async def downstream(_session: Session, head: ResponseHeader, _ctx: object) -> None:
        head.headers.set("X-Down", str(len(recorder.of("response_filter"))))

    def shout(_session: Session, body: Any, _end: bool, _ctx: object) -> None:
        body.data = (body.data or b"").upper()

    def turn(_session: Session, body: Any, _end: bool, _ctx: object) -> None:
        body.data = (body.data or b"")[::-1]

    recorder = CacheRecorder(
        hooks={
            "upstream_response_filter": upstream,
            "response_filter": downstream,
            "upstream_response_body_filter": shout,
            "response_body_filter": turn,
        }
    )
    async with open_cache(recorder, answers(HELLO)) as gateway:
        first = await gateway.exchange(GET)
        second = await gateway.exchange(GET)

    assert first.body == second.body == b"OLLEH"
    assert stored_body(recorder.storage) == [b"HELLO"]
    assert (first.get("x-up"), second.get("x-up")) == ("1", "1")
    assert (first.get("x-down"), second.get("x-down")) == ("1", "2")


async def test_the_origin_gets_a_request_that_can_fill_the_cache(autojump_clock: MockClock) -> None:
    asked: list[Any] = []
    recorder = CacheRecorder()
    async with open_cache(recorder, keeps(asked, HELLO)) as gateway:
        conditions = [
            "If-Match: *",
            'If-None-Match: "x"',
            "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
            "If-Unmodified-Since: Thu, 01 Jan 2060 00:00:00 GMT",
            'If-Range: "x"',
            "Range: bytes=0-1",
            "X-Mine: 1",
        ]
        await gateway.exchange(get("/path", *conditions, method="HEAD"), bodiless=True)

    assert asked[0].start == b"GET /path HTTP/1.1"
    assert {name for name, _ in asked[0].fields} == {b"host", b"x-mine"}


async def test_a_bypassed_request_goes_as_it_is(autojump_clock: MockClock) -> None:
    asked: list[Any] = []
    recorder = CacheRecorder(predictor=predicted())
    async with open_cache(recorder, keeps(asked, response(body=b""))) as gateway:
        await gateway.exchange(get("/path", "Range: bytes=0-1", method="HEAD"), bodiless=True)

    assert asked[0].start == b"HEAD /path HTTP/1.1"
    assert asked[0].get("range") == "bytes=0-1"


@pytest.mark.parametrize("found", [False, True])
async def test_a_request_that_wants_only_what_is_stored_is_not_sent_on(
    found: bool, autojump_clock: MockClock
) -> None:
    class Proxy(CachingProxy[None]):
        def new_ctx(self) -> None:
            return None

        async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
            return ORIGIN

    steps = Steps([[HELLO]])
    proxy = Proxy(shared_cache=SharedCache(storage=memory()))
    async with open_cache(proxy, steps.origin()) as gateway:
        if found:
            await gateway.exchange(GET)
        message = await gateway.exchange(get("/path", "Cache-Control: only-if-cached"))

    assert message.status == (200 if found else 504)
    assert len(steps.asked) == found


async def test_an_upgrade_goes_through_with_the_cache_on(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        while await wire.more():
            await wire.send(bytes(wire.buffer))
            wire.buffer.clear()

    recorder = CacheRecorder()
    async with open_cache(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(get("/path", "Connection: upgrade", "Upgrade: echo"))
        assert (await client.head()).status == 101
        await client.send(b"ping")
        while bytes(client.buffer) != b"ping":
            assert await client.more()
        client.close()
        await gateway.ended()

    assert stored_body(recorder.storage) == []
    names = recorder.names()
    assert names.count("upstream_response_body_filter") >= 1
    assert names[-1] == "logging"


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_the_callbacks_are_the_same_whatever_is_spoken(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        fields = [("cache-control", "max-age=60"), ("content-length", "5")]
        await exchange.respond(200, fields, b"hello")

    recorder = CacheRecorder()
    async with open_matrix(recorder, origin, pairing) as gateway:
        first = await gateway.exchange()
        second = await gateway.exchange()
        part = await gateway.exchange(fields=[("range", "bytes=1-3")])
        assert len(gateway.asked) == 1

    assert (first.body, second.body, part.body) == (b"hello", b"hello", b"ell")
    assert recorder.of_request(0) == MISS
    assert recorder.of_request(1) == HIT


async def test_hits_keep_their_connection(autojump_clock: MockClock) -> None:
    recorder = CacheRecorder()
    async with open_cache(recorder, answers(HELLO)) as gateway:
        client = gateway.connect()
        for request, bodiless, status, body in (
            (GET, False, 200, b"hello"),
            (GET, False, 200, b"hello"),
            (get(method="HEAD"), True, 200, b""),
            (get("/path", RANGE), False, 206, b"ell"),
            (get("/path", "Range: bytes=9-"), False, 416, b""),
            (get("/path", "Range: bytes=0-0,2-2"), False, 206, None),
            (get("/path", "If-None-Match: *"), False, 304, b""),
            (get("/path", 'If-Match: "no"'), False, 412, b""),
            (get(method="PURGE"), False, 404, b""),
            (GET, False, 200, b"hello"),
        ):
            await client.send(request)
            message = await client.message(bodiless=bodiless)
            assert message.status == status
            assert message.get("connection") == "keep-alive"
            if body is not None:
                assert message.body == body
        assert len(gateway.clients) == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_of_http_1_0_gets_what_is_stored(
    framing: str, autojump_clock: MockClock
) -> None:
    head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
    recorder = CacheRecorder()
    origin = answers(HELLO if framing == "length" else head + chunked(b"hello"))
    async with open_cache(recorder, origin) as gateway:
        for _ in range(3):
            message = await gateway.exchange(b"GET /path HTTP/1.0\r\nHost: site.test\r\n\r\n")
            assert (message.status, message.body) == (200, b"hello")
            assert message.get("transfer-encoding") is None
        assert (await gateway.exchange(GET)).body == b"hello"

    assert recorder.phases() == ["miss", "hit", "hit", "hit"]


async def test_several_ranges_of_a_hit_and_of_a_miss_are_the_same(
    autojump_clock: MockClock,
) -> None:
    body = bytes(range(256)) * 1000
    recorder = CacheRecorder()
    ask = get("/path", "Range: bytes=0-9,100000-150000,-1")
    async with open_cache(recorder, answers(response(body=body))) as gateway:
        messages = [await gateway.exchange(ask) for _ in range(2)]

    assert recorder.phases() == ["miss", "hit"]
    parts = []
    for message in messages:
        kind = message.get("content-type")
        assert kind is not None
        boundary = kind.rpartition("=")[2].encode()
        assert message.body.endswith(b"--" + boundary + b"--\r\n")
        parts.append([part.partition(b"\r\n\r\n")[2] for part in message.body.split(boundary)])
    assert parts[0] == parts[1]
    wanted = [body[:10], body[100000:150001], body[-1:]]
    assert [part.removesuffix(b"\r\n--") for part in parts[0] if part] == wanted


async def test_what_is_evicted_when_the_server_has_ended_costs_nobody_a_response(
    autojump_clock: MockClock,
) -> None:
    class Full(LruEviction):
        """Has no room for anything."""

        def admit(self, key: CompactKey, size: int, fresh_until: float) -> list[CompactKey]:
            return [key]

    recorder = CacheRecorder()

    def enable(session: Session, _ctx: object) -> None:
        assert recorder.storage is not None
        session.cache.enable(recorder.storage, eviction=Full(1000))

    recorder.hooks["request_cache_filter"] = enable
    async with open_cache(recorder, answers(HELLO)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"
        await settled()
        assert stored_body(recorder.storage) == []
        assert gateway.services.nursery is not None
        gateway.services.nursery.cancel_scope.cancel()
        await settled()
        assert (await gateway.exchange(GET)).body == b"hello"

    assert [call.args["e"] for call in recorder.of("logging")] == [None, None]


# -- where a fill goes wrong on our side ---------------------------------------------------------


async def test_a_delay_of_the_upstreams_filter_comes_before_the_store(
    autojump_clock: MockClock,
) -> None:
    recorder = CacheRecorder(hooks={"upstream_response_body_filter": returns(5.0)})
    async with open_cache(recorder, answers(HELLO)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        assert (await client.head()).status == 200
        await trio.sleep(4.9)
        assert stored_body(recorder.storage) == []
        await trio.sleep(0.2)
        assert stored_body(recorder.storage) == [b"hello"]


@pytest.mark.parametrize("whole", [False, True])
async def test_a_filter_may_switch_the_cache_off_in_mid_fill(
    whole: bool, autojump_clock: MockClock
) -> None:
    recorder = CacheRecorder(
        storage=memory(whole=whole), hooks={"upstream_response_body_filter": disables}
    )
    async with open_cache(recorder, answers(HELLO)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"

    assert stored_body(recorder.storage) == []
    assert recorder.phases() == ["disabled (mine)"]
    assert recorder.the("logging").args["e"] is None


@pytest.mark.parametrize("at", ["write_body", "finish"])
@pytest.mark.parametrize(
    "error", [OSError("full"), ProxyError.explain(ErrorType.FileWriteError, "")]
)
async def test_a_store_that_fails_in_mid_fill_costs_nobody_a_response(
    at: str, error: Exception, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(MemoryMissHandler, at, raises(error))
    recorder = CacheRecorder()
    async with open_cache(recorder, answers(HELLO)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"

    assert stored_body(recorder.storage) == []
    assert recorder.phases() == ["disabled (StorageError)"]
    assert recorder.the("logging").args["e"] is None


async def test_a_reader_that_fails_in_mid_body_cuts_the_hit(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    pieces = [bytes(65536)] * 3

    async def read_body(_self: object) -> bytes:
        if not pieces:
            raise ProxyError.explain(ErrorType.FileReadError, "gone").into_in()
        return pieces.pop()

    recorder = CacheRecorder()
    async with open_cache(recorder, answers(response(body=bytes(1 << 20)))) as gateway:
        await gateway.exchange(GET)
        recorder.calls.clear()
        monkeypatch.setattr(MemoryHitHandler, "read_body", read_body)
        client = gateway.connect()
        await client.send(GET)
        with pytest.raises(CutError) as caught:
            await client.message()
        assert await client.at_end()

    assert caught.value.message is not None
    assert recorder.shown()[-1] == "logging(FileReadError)"
    assert "fail_to_proxy" not in recorder.names()
    assert "error_while_proxy" not in recorder.names()


async def test_an_entry_that_says_it_is_another_variant_is_not_served(
    autojump_clock: MockClock,
) -> None:
    slots = [b"p" * 16, b"q" * 16]
    recorder = CacheRecorder(hooks={"cache_vary_filter": lambda *_args: slots[0]})
    key = CacheKey(b"test", b"one")
    recorder.hooks["cache_key_callback"] = returns(key)
    async with open_cache(recorder, answers(HELLO)) as gateway:
        await gateway.exchange(GET)
        meta = make_meta(created=EPOCH + 1)
        assert recorder.storage is not None
        await fill(recorder.storage, key.with_variance(slots[1]), b"wrong", meta=meta)
        del slots[0]
        assert (await gateway.exchange(GET)).body == b"hello"

    assert recorder.phases() == ["miss", "disabled (InternalError)"]
    assert "cache_hit_filter(True)" not in recorder.of_request(1)


async def test_a_response_without_content_is_stored_too(autojump_clock: MockClock) -> None:
    empty = b"HTTP/1.1 204 No Content\r\nCache-Control: max-age=60\r\n\r\n"
    recorder = CacheRecorder()
    async with open_cache(recorder, answers(empty)) as gateway:
        for _ in range(2):
            assert (await gateway.exchange(GET)).status == 204

    assert recorder.phases() == ["miss", "hit"]
    for name in ("upstream_response_body_filter", "response_body_filter"):
        assert recorder.of(name) == []
