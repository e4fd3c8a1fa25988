"""Whole transcripts of callbacks with a cache, row by row of the phase table."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests._support.cache_rows import (
    ADMIT,
    BEHIND,
    BUSY,
    FAILED,
    FIT,
    HIT,
    INSTEAD,
    LATER,
    MISS,
    NEWS,
    NOT_MODIFIED,
    RANGE,
    STALE,
    STORED,
    TAGGED,
    UNCACHEABLE,
    Hooks,
    UnseekableStorage,
    broken,
    disables,
    predicted,
    teapot,
)
from tests._support.caching import (
    CONNECTED,
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
)
from tests._support.recording import (
    GET,
    ORIGIN,
    CutError,
    Origins,
    Outcome,
    chunked,
    cuts,
    raises,
    returns,
)
from trioproxy import (
    ErrorType,
    RequestHeader,
    ResponseHeader,
    Session,
)
from trioproxy.cache import (
    CacheLock,
    ForcedFreshness,
    NoCacheReason,
    Predictor,
    SingleRange,
    Storage,
    Uncacheable,
)


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


HEAD_HIT = [*HIT[:-3], "response_filter(200)", "logging"]
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
