"""Callbacks with a cache at the edges: what comes besides, and where a fill goes wrong on our side."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests._support.cache_rows import (
    HIT,
    LATER,
    MISS,
    NOT_MODIFIED,
    RANGE,
    TAGGED,
    disables,
    predicted,
    teapot,
)
from tests._support.caching import (
    EPOCH,
    HELLO,
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
    Wire,
    answers,
    chunked,
    keeps,
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
    CacheMeta,
    CompactKey,
    LruEviction,
    SharedCache,
)
from trioproxy.cache._memory import MemoryHitHandler, MemoryMissHandler


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
