"""What a cache between the client and the origin must not change, whatever filters and stores do."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

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
)
from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    CutError,
    Message,
    Wire,
    answers,
    keeps,
    returns,
)
from trioproxy import (
    BodyChunk,
    CachingProxy,
    HttpPeer,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    ServerConf,
    Session,
)
from trioproxy._info import ConnectionInfo
from trioproxy._messages import END, Data
from trioproxy.cache import (
    CacheKey,
    CacheMeta,
    CompactKey,
    Created,
    MemoryStorage,
    MissHandler,
    NoCacheReason,
    NoRange,
    Predictor,
    PurgeType,
    SharedCache,
)
from trioproxy.proxy._caching import HitStream


@attrs.define(eq=False, slots=False)
class Cached(CachingProxy[None]):
    """The ready-made policy and nothing else."""

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return ORIGIN


# -- what the origin is asked --------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    ['If-Match: "1"', 'If-None-Match: "1"', "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT"],
)
async def test_the_conditions_of_a_post_reach_the_origin(
    field: str, autojump_clock: MockClock
) -> None:
    asked: list[Message] = []
    proxy = Cached(shared_cache=SharedCache(storage=memory()))
    async with open_cache(proxy, keeps(asked, OK)) as gateway:
        request = (
            f"POST /path HTTP/1.1\r\nHost: site.test\r\n{field}\r\nContent-Length: 2\r\n\r\nab"
        )
        assert (await gateway.exchange(request.encode())).status == 200

    name, _, value = field.partition(": ")
    assert asked[0].get(name) == value


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (get(method="HEAD"), 200, b""),
        (get("/path", "Range: bytes=1-3"), 206, b"ell"),
        (get("/path", 'If-None-Match: "1"'), 304, b""),
        (get("/path", 'If-Match: "2"'), 412, b""),
    ],
)
async def test_a_request_that_was_rewritten_is_answered_as_asked_where_a_filter_then_gives_up(
    request_: bytes, status: int, body: bytes, autojump_clock: MockClock
) -> None:
    async def gives_up(session: Session, _request: RequestHeader, _ctx: object) -> None:
        session.cache.disable(NoCacheReason.Custom("mine"))

    recorder = CacheRecorder(hooks={"upstream_request_filter": gives_up})
    async with open_cache(recorder, answers(response('ETag: "1"'))) as gateway:
        found = await gateway.exchange(request_, bodiless=request_.startswith(b"HEAD"))

    assert (found.status, found.body) == (status, body)
    assert stored_body(recorder.storage) == []
    assert recorder.the("logging").args["e"] is None


# -- lengths -------------------------------------------------------------------------------------


@attrs.define(eq=False, slots=False)
class Changes(Cached):
    """Makes another number of bytes than the head says, and nothing besides."""

    content: bytes = b""
    errors: list[str] = attrs.field(factory=list)

    def upstream_response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        body.data = self.content

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        self.errors.append(str(e))


@pytest.mark.parametrize("content", [b"hel", b"hellohello"])
async def test_a_filter_that_changes_the_length_that_is_declared_gets_nothing_stored(
    content: bytes, autojump_clock: MockClock
) -> None:
    storage = memory()
    proxy = Changes(shared_cache=SharedCache(storage=storage), content=content)
    async with open_cache(proxy, answers(HELLO)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        try:
            status = (await client.message()).status
        except CutError:
            status = 0

    assert status in (0, 500)
    assert stored_body(storage) == []
    (error,) = proxy.errors
    assert "upstream_response_body_filter made" in error


async def test_a_filter_that_changes_the_length_and_says_so_is_stored(
    autojump_clock: MockClock,
) -> None:
    async def undeclare(_session: Session, head: ResponseHeader, _ctx: object) -> None:
        head.headers.remove("Content-Length")

    def double(_session: Session, body: BodyChunk, _end: bool, _ctx: object) -> None:
        body.data = (body.data or b"") * 2

    recorder = CacheRecorder(
        hooks={"upstream_response_filter": undeclare, "upstream_response_body_filter": double}
    )
    async with open_cache(recorder, answers(HELLO)) as gateway:
        bodies = [(await gateway.exchange(GET)).body for _ in range(2)]

    assert bodies == [b"hellohello", b"hellohello"]
    assert recorder.phases() == ["miss", "hit"]


async def test_a_filter_of_the_clients_side_that_undeclares_a_length_is_served_and_not_stored(
    autojump_clock: MockClock,
) -> None:
    async def undeclare(_session: Session, head: ResponseHeader, _ctx: object) -> None:
        head.headers.remove("Content-Length")

    def double(_session: Session, body: BodyChunk, _end: bool, _ctx: object) -> None:
        body.data = (body.data or b"") * 2

    recorder = CacheRecorder(
        hooks={"response_filter": undeclare, "upstream_response_body_filter": double}
    )
    async with open_cache(recorder, answers(HELLO)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hellohello"

    assert stored_body(recorder.storage) == []
    assert recorder.the("logging").args["e"] is None


# -- storages that fail --------------------------------------------------------------------------


class FailingMissHandler(MissHandler):
    """A writer that fails at what it is told to."""

    def __init__(self, inner: MissHandler, broken: str) -> None:
        self._inner = inner
        self._broken = broken

    async def write_body(self, data: bytes, end: bool) -> None:
        if self._broken == "write_body":
            raise OSError(self._broken)
        await self._inner.write_body(data, end)

    async def finish(self) -> Created:
        if self._broken == "finish":
            raise OSError(self._broken)
        result = await self._inner.finish()
        assert isinstance(result, Created)
        return result

    def abandon(self) -> None:
        self._inner.abandon()


class FailingStorage(MemoryStorage):
    """A store of somebody's own, that raises what it likes."""

    broken = ""

    async def lookup(self, key: CacheKey) -> Any:
        if self.broken == "lookup":
            raise OSError(self.broken)
        return await super().lookup(key)

    async def get_miss_handler(self, key: CacheKey, meta: CacheMeta) -> Any:
        if self.broken == "get_miss_handler":
            raise OSError(self.broken)
        return FailingMissHandler(await super().get_miss_handler(key, meta), self.broken)

    async def purge(self, key: CompactKey, kind: PurgeType) -> bool:
        if self.broken == "purge":
            raise OSError(self.broken)
        return await super().purge(key, kind)


@pytest.mark.parametrize("broken", ["lookup", "get_miss_handler", "write_body", "finish"])
async def test_a_storage_that_raises_anything_costs_no_response(
    broken: str, autojump_clock: MockClock
) -> None:
    storage = FailingStorage(1 << 20)
    storage.broken = broken
    recorder = CacheRecorder(storage=storage)
    async with open_cache(recorder, answers(HELLO)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"

    assert recorder.the("logging").args["e"] is None
    assert stored_body(storage) == ([b"hello"] if broken == "lookup" else [])


async def test_a_storage_that_cannot_purge_costs_no_response_of_an_unsafe_method(
    autojump_clock: MockClock,
) -> None:
    storage = FailingStorage(1 << 20)
    storage.broken = "purge"
    async with open_cache(
        Cached(shared_cache=SharedCache(storage=storage)), answers(OK)
    ) as gateway:
        request = b"PUT /path HTTP/1.1\r\nHost: site.test\r\nContent-Length: 2\r\n\r\nab"
        assert (await gateway.exchange(request)).body == b"hello"


async def test_what_the_storage_finds_too_large_is_remembered(autojump_clock: MockClock) -> None:
    predictor = Predictor(8)
    recorder = CacheRecorder(
        storage=MemoryStorage(1 << 20, max_object_bytes=4), predictor=predictor
    )
    async with open_cache(recorder, answers(HELLO)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"

    assert len(predictor) == 1


# -- connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "then",
    [
        b"HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\n\r\n",
        response(status=503, cache=None),
    ],
    ids=["304", "503"],
)
async def test_what_is_stored_is_served_without_the_origins_connection(
    then: bytes, autojump_clock: MockClock
) -> None:
    first = response(body=b"x" * 200_000, cache="max-age=60, stale-if-error=3600")
    free: list[int] = []

    async def looks(session: Session, _head: ResponseHeader, _ctx: object) -> None:
        free.append(gateway.services.pool.statistics().leased)

    recorder = CacheRecorder()
    async with open_cache(recorder, Steps([[first], [then]]).origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(100)
        recorder.hooks["response_filter"] = looks
        assert (await gateway.exchange(GET)).body == b"x" * 200_000

    assert free == [0]


# -- tunnels -------------------------------------------------------------------------------------


async def test_a_tunnels_half_close_is_told_with_the_cache_on(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhi"
        )
        await wire.half_close()
        await wire.more()

    recorder = CacheRecorder()
    async with open_cache(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(get("/path", "Connection: upgrade", "Upgrade: echo"))
        assert (await client.head()).status == 101
        while await client.more():
            pass

    for name in ("upstream_response_body_filter", "response_body_filter"):
        assert recorder.pieces(name) == [(b"hi", False), (None, True)]


# -- time ----------------------------------------------------------------------------------------


async def test_a_long_hit_lets_others_have_their_turn(autojump_clock: MockClock) -> None:
    storage = MemoryStorage(1 << 24)
    meta = CacheMeta(
        header=ResponseHeader(200), created=EPOCH, updated=EPOCH, fresh_until=EPOCH + 60
    )
    writer = await storage.get_miss_handler(CacheKey(b"", b"a"), meta)
    await writer.write_body(bytes(1 << 20), True)
    await writer.finish()
    found = await storage.lookup(CacheKey(b"", b"a"))
    assert found is not None
    stream = HitStream(ConnectionInfo(None, None), ResponseHeader(200), found[1], NoRange())
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        while not any(
            event is END or (type(event) is Data and event.end)
            for event in await stream.receive_batch()
        ):
            pass
        nursery.cancel_scope.cancel()
    stream.release()

    assert turns >= 4


async def test_a_fill_that_outlasts_the_requests_time_is_no_failure_of_the_request(
    autojump_clock: MockClock,
) -> None:
    steps = Steps([[HELLO[:-5], 100.0, b"hello"]])
    done = trio.Event()
    recorder = CacheRecorder(hooks={"logging": lambda *_args: done.set()})
    conf = ServerConf(request_timeout=10)
    async with open_cache(recorder, steps.origin(), conf=conf) as gateway:
        begun = trio.current_time()
        assert (await gateway.exchange(get(method="HEAD"), bodiless=True)).status == 200
        await done.wait()
        assert trio.current_time() - begun == 10

    assert recorder.the("logging").args["e"] is None
    assert stored_body(recorder.storage) == []


@pytest.mark.parametrize(
    "field", ['If-None-Match: "2"', "Range: bytes=0-0", "Range: bytes=9-", 'If-Match: "3"']
)
async def test_a_request_in_the_background_stores_the_whole_whatever_its_client_asked_for(
    field: str, autojump_clock: MockClock
) -> None:
    go = trio.Event()
    new = response('ETag: "2"', body=b"newer")
    steps = Steps([[response('ETag: "1"', cache="max-age=60, stale-while-revalidate=3600")]])
    steps.steps.append([new[:-5], go, b"newer"])
    recorder = CacheRecorder(hooks={"should_serve_stale": returns(True)})
    async with open_cache(recorder, steps.origin()) as gateway:
        await gateway.exchange(GET)
        await trio.sleep(100)
        await gateway.exchange(get("/path", field))
        await settled()
        assert gateway.services.background == 1
        go.set()
        await settled()
        assert stored_body(recorder.storage) == [b"newer"]

    assert [call.args["e"] for call in recorder.of("logging")] == [None, None, None]


async def test_what_came_in_small_pieces_is_served_in_larger_ones(
    autojump_clock: MockClock,
) -> None:
    pieces = [bytes([65 + number]) * 1000 for number in range(50)]
    head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
    steps: list[bytes | trio.Event | float | None] = [head]
    for piece in pieces:
        steps += [b"3e8\r\n%b\r\n" % piece, 0.1]
    recorder = CacheRecorder()
    async with open_cache(recorder, Steps([[*steps, b"0\r\n\r\n"]]).origin()) as gateway:
        bodies = [(await gateway.exchange(GET)).body for _ in range(2)]

    assert bodies == [b"".join(pieces)] * 2
    served = [call for call in recorder.of("response_body_filter") if call.ctx.number == 1]
    assert [(len(call.args["data"]), call.args["end_of_stream"]) for call in served] == [
        (17000, False),
        (17000, False),
        (16000, True),
    ]
