"""Rows C-01 to C-16, and of U1-08, U1-10 and U1-11 what they say of the cache.

Each through a whole gateway. What the policy decides by itself is shown in `tests.cache.test_policy`,
how a fill ends at each of its steps in `tests.proxy.test_cache_cancellation`.
"""

from __future__ import annotations

import shutil
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests._support.caching import (
    CacheRecorder,
    Steps,
    get,
    memory,
    open_cache,
    response,
    settled,
    stored_body,
)
from tests._support.matrix import H1, H1_TLS, H2_TLS, H2C, Exchange, Pairing, open_matrix
from tests._support.recording import (
    GET,
    ORIGIN,
    CutError,
    Message,
    Wire,
    answers,
    chunked,
    keeps,
    post,
)
from trioproxy import CachingProxy, HttpPeer, ProxyError, ProxyHttp, RequestHeader, Session
from trioproxy.cache import (
    Cacheable,
    CacheLock,
    CacheMeta,
    DiskStorage,
    SharedCache,
    Storage,
    default_cache_key,
)
from trioproxy.server._reverse import CachingReverse

HOUR_AGO = "Fri, 14 Jul 2017 01:40:00 GMT"
TOMORROW = "Sat, 15 Jul 2017 02:40:00 GMT"


@attrs.define(eq=False, slots=False)
class Cached(CachingProxy[None]):
    """The ready-made cache, with the phase of each request."""

    peer: HttpPeer = ORIGIN
    phases: list[str] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        self.phases.append(session.cache.phase().text)


def cached(storage: Storage | None = None, **options: Any) -> Cached:
    """Return a proxy with the ready-made cache."""
    return Cached(shared_cache=SharedCache(storage=storage or memory(), **options))


def contents(proxy: Cached) -> list[bytes]:
    """Return the bodies that it has stored."""
    assert proxy.shared_cache is not None
    return stored_body(proxy.shared_cache.storage)


async def stores(answer: bytes, request: bytes = GET) -> bool:
    """Tell whether a second request like the first one is answered from the store."""
    proxy = cached(predictor=None)
    steps = Steps([[answer, None], [response(body=b"again"), None]])
    async with open_cache(proxy, steps.origin()) as gateway:
        first = await gateway.exchange(request)
        second = await gateway.exchange(request)
    assert (second.body == first.body) is (len(steps.asked) == 1)
    return len(steps.asked) == 1


class BareCached(ProxyHttp[None]):
    """The trait itself with a cache on, and no callback but the one that must be there."""

    def __init__(self) -> None:
        self.storage = memory()

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return ORIGIN

    def request_cache_filter(self, session: Session, ctx: None) -> None:
        session.cache.enable(self.storage)

    def response_cache_filter(self, session: Session, resp: Any, ctx: None) -> Cacheable:
        return Cacheable(CacheMeta(header=resp.copy(), created=0, updated=0, fresh_until=1e12))


# -- C-01 ----------------------------------------------------------------------------------------


def raw(start: str, *fields: str) -> bytes:
    return "\r\n".join([start, *fields, "", ""]).encode()


@pytest.mark.parametrize("make", [cached, BareCached])
async def test_c_01_what_is_asked_of_whom_is_the_key(make: Any, autojump_clock: MockClock) -> None:
    asked: list[Message] = []

    async def origin(wire: Wire) -> None:
        while True:
            try:
                asked.append(await wire.message())
            except CutError:
                return
            await wire.send(response(body=b"%d" % len(asked)))

    same = [
        raw("GET /a?b=C HTTP/1.1", "Host: site.test"),
        raw("GET /a?b=C HTTP/1.1", "Host: SITE.test:80"),
        raw("GET http://Site.Test/a?b=C HTTP/1.1", "Host: site.test"),
        raw("GET /a?b=C HTTP/1.1", "Host: site.test", "X-Other: 1"),
    ]
    others = [
        raw("GET /a?b=c HTTP/1.1", "Host: site.test"),
        raw("GET /a HTTP/1.1", "Host: site.test"),
        raw("GET /a/?b=C HTTP/1.1", "Host: site.test"),
        raw("GET /%61?b=C HTTP/1.1", "Host: site.test"),
        raw("GET //a?b=C HTTP/1.1", "Host: site.test"),
        raw("GET /a?b=C HTTP/1.1", "Host: site.test:8080"),
        raw("GET /a?b=C HTTP/1.1", "Host: site.test."),
        raw("GET /a?b=C HTTP/1.1", "Host: test"),
        raw("GET /st/a?b=C HTTP/1.1", "Host: site.te"),
    ]
    async with open_cache(make(), origin) as gateway:
        assert [(await gateway.exchange(each)).body for each in same] == [b"1"] * 4
        bodies = [(await gateway.exchange(each)).body for each in others]
        # HEAD shares what GET has stored.
        head = await gateway.exchange(raw("HEAD /a?b=C HTTP/1.1", "Host: site.test"), bodiless=True)
        assert head.status == 200
    assert bodies == [b"%d" % number for number in range(2, 2 + len(others))]


async def test_c_01_another_method_never_shares_the_key(autojump_clock: MockClock) -> None:
    recorder = CacheRecorder()
    steps = Steps([[response(body=b"get")], [response(body=b"options")], [response(body=b"post")]])
    async with open_cache(recorder, steps.origin()) as gateway:
        assert (await gateway.exchange(GET)).body == b"get"
        assert (await gateway.exchange(get(method="OPTIONS"))).body == b"options"
        assert (await gateway.exchange(post(b""))).body == b"post"
        assert (await gateway.exchange(GET)).body == b"get"


@pytest.mark.parametrize("down", [H1, H1_TLS, H2_TLS], ids=str)
async def test_c_01_the_scheme_is_part_of_the_key(down: Any, autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [("cache-control", "max-age=60")], b"hello")

    proxy = cached()
    async with open_matrix(proxy, origin, Pairing(down, H1)) as gateway:
        proxy.peer = gateway.peer()
        for _ in range(2):
            assert (await gateway.exchange()).body == b"hello"
    assert proxy.phases == ["miss", "hit"]
    assert proxy.shared_cache is not None
    scheme = "https" if down.tls else "http"
    (entry,) = proxy.shared_cache.storage._shelf.entries.values()  # type: ignore[attr-defined]  # memory
    expected = RequestHeader("GET", "/path", [("Host", "site.test")], scheme=scheme)
    assert entry.key == default_cache_key(expected).compact()


# -- C-02 ----------------------------------------------------------------------------------------

UNKEYED = [
    "X-Forwarded-Host: evil.test",
    "X-Forwarded-Scheme: nothttps",
    "X-Forwarded-Proto: http",
    "X-Original-URL: /admin",
    "X-Rewrite-URL: /admin",
    "X-HTTP-Method-Override: POST",
    "Forwarded: host=evil.test",
]


async def test_c_02_fields_that_some_origins_believe_are_not_in_the_key(
    autojump_clock: MockClock,
) -> None:
    proxy = cached()
    async with open_cache(proxy, answers(response())) as gateway:
        await gateway.exchange(GET)
        for line in UNKEYED:
            await gateway.exchange(get("/path", line))
    assert proxy.phases == ["miss", *["hit"] * len(UNKEYED)]


async def test_c_02_reverse_overwrites_what_it_sets_itself(autojump_clock: MockClock) -> None:
    asked: list[Message] = []
    proxy = CachingReverse([ORIGIN], shared_cache=SharedCache(storage=memory()))
    async with open_cache(proxy, keeps(asked, response())) as gateway:
        await gateway.exchange(get("/path", *UNKEYED))
    assert asked[0].get("x-forwarded-host") == "site.test"
    assert asked[0].get("x-forwarded-proto") == "http"


# -- C-03 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/account/a.css", "/a.js", "/img/a.png", "/a.css?x.css"])
@pytest.mark.parametrize("cache", [None, "private", "no-store", "max-age=0"])
async def test_c_03_a_suffix_makes_nothing_cacheable(
    path: str, cache: str | None, autojump_clock: MockClock
) -> None:
    assert not await stores(response("Content-Type: text/css", cache=cache), get(path))


# -- C-04 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "asked", "stored"),
    [
        (["Cache-Control: max-age=60"], [], True),
        (["Cache-Control: max-age=60", "Set-Cookie: a=b"], [], False),
        (["Cache-Control: private, max-age=60"], [], False),
        (["Cache-Control: no-store, max-age=60"], [], False),
        (["Cache-Control: max-age=60"], ["Authorization: Basic eA=="], False),
        (["Cache-Control: max-age=60, public"], ["Authorization: Basic eA=="], True),
        (["Cache-Control: s-maxage=60"], ["Authorization: Basic eA=="], True),
        (["Cache-Control: max-age=60, must-revalidate"], ["Authorization: Basic eA=="], True),
        (["Cache-Control: max-age=60, proxy-revalidate"], ["Authorization: Basic eA=="], False),
        (["Cache-Control: max-age=60"], ["Cache-Control: no-store"], False),
    ],
)
async def test_c_04_what_is_somebodys_own_is_not_stored(
    fields: list[str], asked: list[str], stored: bool, autojump_clock: MockClock
) -> None:
    assert await stores(response(*fields, cache=None), get("/path", *asked)) is stored


# -- C-05 ----------------------------------------------------------------------------------------

ENDINGS = ["reset", "close"]
LEGS = [Pairing(H1, H1), Pairing(H1, H1_TLS), Pairing(H1, H2C), Pairing(H2_TLS, H2_TLS)]


@pytest.mark.parametrize("pairing", LEGS, ids=str)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("length", [True, False], ids=["length", "no length"])
async def test_c_05_a_body_that_is_cut_is_never_there_not_even_for_who_reads_it_already(
    pairing: Pairing, ending: str, length: bool, autojump_clock: MockClock
) -> None:
    go = trio.Event()
    asked = 0

    async def origin(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        await exchange.message()
        fields = [("cache-control", "max-age=60"), *([("content-length", "11")] if length else [])]
        await exchange.send_head(200, fields)
        await exchange.send_data(b"hello")
        if asked == 1:
            await go.wait()
            if ending == "reset":
                await exchange.reset()
            exchange.close()
        else:
            await exchange.send_data(b" world", end=True)

    async def take(into: list[bytes | None]) -> None:
        try:
            message = await gateway.exchange()
        except (CutError, trio.BrokenResourceError):
            into.append(None)
        else:
            assert message.status == 200
            into.append(message.body)

    proxy = cached()
    first: list[bytes | None] = []
    async with open_matrix(proxy, origin, pairing, check_windows=False) as gateway:
        proxy.peer = gateway.peer()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(take, first)
                await trio.sleep(1)
            go.set()
        assert first == [None, None]
        assert contents(proxy) == []
        second: list[bytes | None] = []
        await take(second)
        assert second == [b"hello world"]
        assert contents(proxy) == [b"hello world"]


@pytest.mark.parametrize("how", ["the filter fails", "stopped", "the client is gone"])
async def test_c_05_what_ends_here_is_not_there_either(how: str, autojump_clock: MockClock) -> None:
    go = trio.Event()
    steps = Steps([[response()[:-3], go, b"llo"], [response()]])
    recorder = CacheRecorder(storage=memory(whole=True))

    def fail(_session: Session, body: Any, _end: bool, _ctx: object) -> None:
        if body.data == b"llo":
            raise ValueError(how)

    if how == "the filter fails":
        recorder.hooks["upstream_response_body_filter"] = fail
    async with open_cache(recorder, steps.origin()) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await settled()
        if how == "stopped":
            gateway.stop()
        elif how == "the client is gone":
            client.close()
        await settled()
        go.set()
        await settled()
        assert stored_body(recorder.storage) == []
        recorder.hooks.clear()
        assert (await gateway.exchange(GET)).body == b"hello"


async def test_c_05_a_crash_leaves_no_half_file_that_a_later_start_would_serve(
    tmp_path: Any,
) -> None:
    go = trio.Event()
    steps = Steps([[response()[:-3], go, None], [response(body=b"again")]])
    async with open_cache(cached(DiskStorage(tmp_path, 1 << 20)), steps.origin()) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await client.head()
        while bytes(client.buffer) != b"he":
            assert await client.more()
        # As a process leaves its files that is killed now.
        copy = tmp_path.parent / "copy"
        shutil.copytree(tmp_path, copy)
        assert any(each.is_file() for each in copy.rglob("*"))
        later = cached(DiskStorage(copy, 1 << 20))
        async with open_cache(later, steps.origin()) as other:
            assert (await other.exchange(GET)).body == b"again"
        assert later.phases == ["miss"]
        client.close()
        go.set()


# -- C-06 ----------------------------------------------------------------------------------------

KEY = default_cache_key(RequestHeader("GET", "/path", [("Host", "site.test")]))
PART = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/5\r\nContent-Length: 2\r\n"
PART += b"Cache-Control: max-age=60\r\n\r\nhe"


async def test_c_06_a_part_is_never_stored_as_the_whole(autojump_clock: MockClock) -> None:
    assert not await stores(PART)
    assert not await stores(PART, get("/path", "Range: bytes=0-1"))


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("bare", [False, True])
async def test_c_06_a_200_to_a_request_that_had_a_range_is_not_the_whole(
    predicted: bool, bare: bool, autojump_clock: MockClock
) -> None:
    class Puts(Cached):
        """Undoes what was done to the request."""

        async def upstream_request_filter(
            self, session: Session, upstream_request: RequestHeader, ctx: None
        ) -> None:
            upstream_request.headers.set("Range", "bytes=0-1")

        def response_cache_filter(self, session: Session, resp: Any, ctx: None) -> Any:
            if bare:
                return BareCached().response_cache_filter(session, resp, ctx)
            return super().response_cache_filter(session, resp, ctx)

    proxy = Puts(shared_cache=SharedCache(storage=memory()))
    asked: list[Message] = []
    async with open_cache(proxy, keeps(asked, response())) as gateway:
        if predicted:
            assert proxy.shared_cache is not None
            assert proxy.shared_cache.predictor is not None
            proxy.shared_cache.predictor._uncacheable[KEY.primary_hash] = None
        await gateway.exchange(get("/path", "Range: bytes=0-1"))
        await gateway.exchange(GET)
    assert contents(proxy) == []
    assert len(asked) == 2


async def test_c_06_a_request_that_fills_asks_for_the_whole_without_conditions(
    autojump_clock: MockClock,
) -> None:
    asked: list[Message] = []
    proxy = cached()
    conditions = [
        "Range: bytes=0-1",
        'If-Range: "x"',
        'If-None-Match: "x"',
        f"If-Modified-Since: {HOUR_AGO}",
        f"If-Unmodified-Since: {TOMORROW}",
    ]
    async with open_cache(proxy, keeps(asked, response())) as gateway:
        part = await gateway.exchange(get("/path", *conditions[:1]))
        await gateway.exchange(get("/other", *conditions))
    assert (part.status, part.body) == (206, b"he")
    assert [name for request in asked for name, _ in request.fields] == [b"host", b"host"]
    assert contents(proxy) == [b"hello", b"hello"]


# -- C-07 ----------------------------------------------------------------------------------------


async def test_c_07_what_varies_by_anything_is_not_stored(autojump_clock: MockClock) -> None:
    assert not await stores(response("Vary: *"))
    assert not await stores(response("Vary: Accept, *"))
    assert await stores(response("Vary: Accept"))


async def test_c_07_a_variant_is_chosen_by_normalised_fields(autojump_clock: MockClock) -> None:
    proxy = cached()
    origin = answers(response("Vary: Accept-Encoding"))
    spellings = ["gzip, br", "gzip,br", "br,   gzip", "GZIP, br"]
    async with open_cache(proxy, origin) as gateway:
        for each in spellings:
            await gateway.exchange(get("/path", f"Accept-Encoding: {each}"))
        await gateway.exchange(get("/path", "Accept-Encoding: gzip"))
        await gateway.exchange(GET)
    assert proxy.phases == ["miss", "hit", "hit", "hit", "miss", "miss"]


async def test_c_07_a_key_has_at_most_64_variants(autojump_clock: MockClock) -> None:
    proxy = cached()
    async with open_cache(proxy, answers(response("Vary: X-Any"))) as gateway:
        for number in range(100):
            await gateway.exchange(get("/path", f"X-Any: {number}"))
        assert len(contents(proxy)) <= 65  # the primary slot comes besides
        for number in (99, 98, 97):
            await gateway.exchange(get("/path", f"X-Any: {number}"))
    assert proxy.phases == [*["miss"] * 100, "hit", "hit", "hit"]


async def test_c_07_a_vary_that_changes_keys_anew(autojump_clock: MockClock) -> None:
    proxy = cached()
    steps = Steps(
        [
            [response("Vary: X-One", body=b"1")],
            [response("Vary: X-One, X-Two", body=b"2")],
            [response("Vary: X-One, X-Two", body=b"3")],
        ]
    )
    async with open_cache(proxy, steps.origin()) as gateway:
        one = get("/path", "X-One: a", "X-Two: a")
        await gateway.exchange(one)
        await trio.sleep(61)
        assert (await gateway.exchange(one)).body == b"2"
        assert (await gateway.exchange(one)).body == b"2"
        assert (await gateway.exchange(get("/path", "X-One: a", "X-Two: b"))).body == b"3"
    assert proxy.phases == ["miss", "expired", "hit", "miss"]


# -- C-08 ----------------------------------------------------------------------------------------


async def test_c_08_one_fills_and_those_who_wait_too_long_go_themselves_uncached(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[go, response()], [response(body=b"own")]])
    proxy = cached(wait_timeout=5.0)
    bodies: list[bytes] = []

    async def ask() -> None:
        bodies.append((await gateway.exchange(GET)).body)

    async with open_cache(proxy, steps.origin()) as gateway, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
            await settled()
        assert len(steps.asked) == 1
        await trio.sleep(4.9)
        assert len(steps.asked) == 1
        await trio.sleep(0.2)
        assert bodies == [b"own"] * 9
        go.set()
    assert contents(proxy) == [b"hello"]
    assert proxy.phases == [*["disabled"] * 9, "miss"]


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_c_08_of_those_who_wait_exactly_one_takes_over(
    how: str, autojump_clock: MockClock
) -> None:
    go, slow = trio.Event(), trio.Event()
    steps = Steps([[go, None], [slow, response()]])
    lock = CacheLock(60)
    proxy = cached(lock=lock)
    bodies: list[bytes] = []

    async def ask() -> None:
        bodies.append((await gateway.exchange(GET)).body)

    async with open_cache(proxy, steps.origin()) as gateway, trio.open_nursery() as nursery:
        writer = gateway.connect()
        await writer.send(GET)
        await settled()
        for _ in range(20):
            nursery.start_soon(ask)
        await settled()
        assert (lock.statistics().held, lock.statistics().waiting) == (1, 20)
        if how == "fails":
            go.set()
        else:
            writer.close()
        await settled()
        assert len(steps.asked) == 2
        assert (lock.statistics().held, lock.statistics().waiting) == (1, 19)
        slow.set()
    assert bodies == [b"hello"] * 20
    assert len(steps.asked) == 2
    assert (lock.statistics().held, lock.statistics().waiting) == (0, 0)


# -- C-09 ----------------------------------------------------------------------------------------

CHUNKED = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("whole", [True, False])
async def test_c_09_what_is_too_large_is_delivered_and_not_stored(
    known: bool, whole: bool, autojump_clock: MockClock
) -> None:
    body = bytes(1000)
    answer = response(body=body) if known else CHUNKED + chunked(body[:500], body[500:])
    proxy = cached(memory(whole=whole), max_file_size=999)
    async with open_cache(proxy, answers(answer)) as gateway:
        for _ in range(3):
            assert (await gateway.exchange(GET)).body == body
        assert proxy.shared_cache is not None
        statistics = proxy.shared_cache.storage.statistics()
    assert (statistics.entries, statistics.writing, statistics.reserved) == (0, 0, 0)


@pytest.mark.parametrize("known", [True, False])
async def test_c_09_what_the_store_itself_does_not_take_is_delivered(
    known: bool, autojump_clock: MockClock
) -> None:
    body = bytes(1000)
    answer = response(body=body) if known else CHUNKED + chunked(body[:500], body[500:])
    store = memory()
    store._shelf.max_object = 999
    proxy = cached(store)
    async with open_cache(proxy, answers(answer)) as gateway:
        for _ in range(2):
            assert (await gateway.exchange(GET)).body == body
        assert store.statistics().entries == 0


# -- C-10 ----------------------------------------------------------------------------------------


async def test_c_10_a_304_to_a_clients_own_condition_is_not_stored(
    autojump_clock: MockClock,
) -> None:
    class Keeps(Cached):
        """Lets the client's condition through to the origin."""

        async def upstream_request_filter(
            self, session: Session, upstream_request: RequestHeader, ctx: None
        ) -> None:
            value = session.get_header("if-none-match")
            if value:
                upstream_request.headers.set("If-None-Match", value)

    unchanged = b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=60\r\n\r\n'
    steps = Steps([[unchanged], [response('ETag: "1"')]])
    proxy = Keeps(shared_cache=SharedCache(storage=memory()))
    async with open_cache(proxy, steps.origin()) as gateway:
        assert (await gateway.exchange(get("/path", 'If-None-Match: "1"'))).status == 304
        assert contents(proxy) == []
        message = await gateway.exchange(GET)
        assert (message.status, message.body) == (200, b"hello")


async def test_c_10_a_304_updates_only_what_it_validated_and_nothing_of_the_content(
    autojump_clock: MockClock,
) -> None:
    unchanged = (
        b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=60\r\n'
        b"X-New: yes\r\nContent-Length: 99\r\nContent-Encoding: br\r\n"
        b"Content-Range: bytes 0-1/2\r\nContent-Type: evil/type\r\n\r\n"
    )
    other = unchanged.replace(b'"1"', b'"2"')
    steps = Steps([[response('ETag: "1"', "Content-Type: text/plain")], [unchanged], [other]])
    proxy = cached()
    async with open_cache(proxy, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(100)
        await gateway.exchange(GET)
        message = await gateway.exchange(GET)
        await settled()
        assert proxy.phases[-1] == "hit"
        await trio.sleep(100)
        await gateway.exchange(GET)
    assert (message.get("x-new"), message.get("content-length")) == ("yes", "5")
    assert message.get("content-type") == "text/plain"
    assert message.get("content-encoding") is message.get("content-range") is None
    # What was validated is not what is stored.
    assert proxy.phases[-1] == "revalidated-nocache"


@pytest.mark.parametrize("status", [500, 502, 503, 504, 404, 451])
async def test_c_10_an_error_is_stored_only_by_explicit_freshness(
    status: int, autojump_clock: MockClock
) -> None:
    modified = f"Last-Modified: {HOUR_AGO}"
    assert await stores(response(status=status))
    assert await stores(response(modified, status=status, cache=None)) is (status == 404)


async def test_c_10_the_answer_to_head_is_not_stored_as_a_whole(autojump_clock: MockClock) -> None:
    class Heads(Cached):
        """Asks the origin with the client's own method."""

        async def upstream_request_filter(
            self, session: Session, upstream_request: RequestHeader, ctx: None
        ) -> None:
            upstream_request.method = session.req_header().method

    async def origin(wire: Wire) -> None:
        while True:
            try:
                request = await wire.message()
            except CutError:
                return
            answer = response()
            await wire.send(answer[:-5] if request.start.startswith(b"HEAD") else answer)

    proxy = Heads(shared_cache=SharedCache(storage=memory()))
    async with open_cache(proxy, origin) as gateway:
        assert (await gateway.exchange(get(method="HEAD"), bodiless=True)).status == 200
        assert contents(proxy) == []
        assert (await gateway.exchange(GET)).body == b"hello"


# -- C-11 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "location", "gone"),
    [
        (200, None, {"/path"}),
        (204, None, {"/path"}),
        (303, "/other", {"/path", "/other"}),
        (201, "http://site.test/other", {"/path", "/other"}),
        (201, "http://evil.test/other", {"/path"}),
        (201, "https://site.test/other", {"/path"}),
        (404, "/other", set()),
        (500, None, set()),
    ],
)
async def test_c_11_an_unsafe_method_invalidates_its_target_and_its_location(
    status: int, location: str | None, gone: set[str], autojump_clock: MockClock
) -> None:
    fields = [] if location is None else [f"Location: {location}"]
    steps = Steps(
        [
            [response()],
            [response()],
            [response(*fields, status=status, body=b"" if status == 204 else b"hello", cache=None)],
            [response()],
        ]
    )
    proxy = cached()
    async with open_cache(proxy, steps.origin()) as gateway:
        for path in ("/path", "/other"):
            await gateway.exchange(get(path))
        assert (await gateway.exchange(post(b"x"), bodiless=status == 204)).status == status
        await settled()
        del proxy.phases[:]
        for path in ("/path", "/other"):
            await gateway.exchange(get(path))
    assert proxy.phases == ["miss" if path in gone else "hit" for path in ("/path", "/other")]


# -- C-12 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "fresh"),
    [
        (["Cache-Control: max-age=60"], True),
        (["Cache-Control: max-age=99999999999999999999"], True),
        (["Cache-Control: max-age=60, max-age=0"], False),
        (["Cache-Control: max-age=x"], False),
        (["Cache-Control: max-age=-1"], False),
        (["Cache-Control: max-age="], False),
        (["Expires: 0"], False),
        (["Expires: soon"], False),
        ([f"Expires: {TOMORROW}"], True),
        ([f"Expires: {HOUR_AGO}"], False),
        ([f"Expires: {TOMORROW}", f"Expires: {HOUR_AGO}"], False),
        (["Cache-Control: max-age=60", "Age: 61"], False),
        (["Cache-Control: max-age=60", "Age: 99999999999999999999"], False),
        (["Cache-Control: max-age=60", "Age: old"], True),
        (["Cache-Control: max-age=60", f"Date: {TOMORROW}"], True),
        (["Cache-Control: max-age=60", f"Date: {HOUR_AGO}"], False),
    ],
)
async def test_c_12_what_is_broken_counts_as_stale(
    fields: list[str], fresh: bool, autojump_clock: MockClock
) -> None:
    steps = Steps([[response('ETag: "1"', *fields, cache=None)], [response(body=b"again")]])
    proxy = cached(predictor=None)
    async with open_cache(proxy, steps.origin()) as gateway:
        await gateway.exchange(GET)
        message = await gateway.exchange(GET)
    assert (message.body == b"hello") is fresh
    assert (proxy.phases[1] == "hit") is fresh


# -- C-13 ----------------------------------------------------------------------------------------


async def test_c_13_hop_by_hop_nominated_and_proxy_fields_are_not_stored(
    autojump_clock: MockClock,
) -> None:
    fields = [
        "Connection: X-Mine, keep-alive",
        "X-Mine: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Proxy-Authentication-Info: x",
        "Proxy-Connection: keep-alive",
        "Upgrade: other",
        "TE: trailers",
        "X-Kept: 1",
        "Age: 7",
    ]
    proxy = cached()
    async with open_cache(proxy, answers(response(*fields))) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(10)
        message = await gateway.exchange(GET)
    assert proxy.phases == ["miss", "hit"]
    assert {name for name, _ in message.fields} == {
        *(b"accept-ranges", b"age", b"cache-control", b"cache-status", b"connection"),
        *(b"content-length", b"date", b"x-kept"),
    }
    assert message.get("age") == "17"
    assert message.get("connection") == "keep-alive"


# -- C-14 ----------------------------------------------------------------------------------------


async def test_c_14_without_the_traits_say_a_purge_is_a_method_like_any(
    autojump_clock: MockClock,
) -> None:
    steps = Steps([[response()], [response(status=405, cache=None)]])
    proxy = cached()
    async with open_cache(proxy, steps.origin()) as gateway:
        await gateway.exchange(GET)
        assert (await gateway.exchange(get(method="PURGE"))).status == 405
        await gateway.exchange(GET)
    assert steps.asked[1].start == b"PURGE /path HTTP/1.1"
    assert proxy.phases[-1] == "hit"


async def test_c_14_with_its_say_the_entry_goes(autojump_clock: MockClock) -> None:
    class Purges(Cached):
        def request_cache_filter(self, session: Session, ctx: None) -> None:
            assert self.shared_cache is not None
            if session.req_header().method == "PURGE":
                session.cache.enable(self.shared_cache.storage)
            else:
                super().request_cache_filter(session, ctx)

        def is_purge(self, session: Session, ctx: None) -> bool:
            return session.req_header().method == "PURGE"

        def cache_key_callback(self, session: Session, ctx: None) -> Any:
            head = session.req_header().copy()
            head.method = "GET"
            return default_cache_key(head)

    proxy = Purges(shared_cache=SharedCache(storage=memory()))
    steps = Steps([[response()]])
    async with open_cache(proxy, steps.origin()) as gateway:
        await gateway.exchange(GET)
        client = gateway.connect()
        statuses = []
        for _ in range(2):
            await client.send(get(method="PURGE"))
            statuses.append((await client.message()).status)
        await gateway.exchange(GET)
    assert statuses == [200, 404]
    assert len(steps.asked) == 2


# -- C-15 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [cached, BareCached])
@pytest.mark.parametrize("first", [False, True])
async def test_c_15_a_get_with_content_is_neither_served_nor_stored(
    make: Any, first: bool, autojump_clock: MockClock
) -> None:
    fat = b"GET /path HTTP/1.1\r\nHost: site.test\r\nContent-Length: 4\r\n\r\nevil"
    steps = Steps([[response(body=b"one")], [response(body=b"two")], [response(body=b"three")]])
    async with open_cache(make(), steps.origin()) as gateway:
        requests = [fat, GET, GET] if first else [GET, fat, GET]
        bodies = [(await gateway.exchange(each)).body for each in requests]
    assert bodies == ([b"one", b"two", b"two"] if first else [b"one", b"two", b"one"])
    fat_one = steps.asked[0 if first else 1]
    assert fat_one.body == b"evil"


# -- C-16, U1-08, U1-10, U1-11 -------------------------------------------------------------------

BOTH = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 3\r\n"
BOTH += b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"hello")
OLD_CHUNKED = CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + chunked(b"hello")
TO_ITS_END = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n\r\nhello"


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        pytest.param(BOTH, False, id="u1-08"),
        pytest.param(OLD_CHUNKED, False, id="u1-10"),
        pytest.param(response().replace(b"HTTP/1.1", b"HTTP/1.0"), True, id="u1-10 with a length"),
        pytest.param(TO_ITS_END, True, id="u1-11 ended well"),
    ],
)
async def test_c_16_how_a_response_was_framed_says_whether_it_is_stored(
    answer: bytes, stored: bool, bare: bool, autojump_clock: MockClock
) -> None:
    proxy: Any = BareCached() if bare else cached()
    steps = Steps([[answer, None]])
    async with open_cache(proxy, steps.origin()) as gateway:
        for _ in range(2):
            assert (await gateway.exchange(GET)).body == b"hello"
    assert len(steps.asked) == (1 if stored else 2)


@pytest.mark.parametrize("up", [H1, H1_TLS], ids=str)
@pytest.mark.parametrize("well", [False, True])
async def test_c_16_u1_11_a_body_to_the_connections_end_is_stored_only_if_that_came_properly(
    up: Any, well: bool, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        wire: Wire = exchange.wire  # type: ignore[attr-defined]  # HTTP/1's
        await wire.send(TO_ITS_END)
        await trio.testing.wait_all_tasks_blocked()
        if well:
            await wire.half_close()
        elif up.tls:
            wire.stream.send_stream.wire.truncate()
        else:
            wire.stream.send_stream.end.reset()

    proxy = cached()
    async with open_matrix(proxy, origin, Pairing(H1, up)) as gateway:
        proxy.peer = gateway.peer()
        try:
            body: bytes | None = (await gateway.exchange()).body
        except CutError:
            body = None
        assert body == (b"hello" if well else None)
        assert contents(proxy) == ([b"hello"] if well else [])
