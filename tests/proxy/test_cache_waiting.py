"""Callbacks of requests that wait for another one that fills, and of renewals in the background."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests._support.cache_rows import (
    ADMIT,
    BEHIND,
    BUSY,
    FIT,
    HIT,
    INSTEAD,
    LATER,
    MISS,
    NEWS,
    NOT_MODIFIED,
    STALE,
    STORED,
    TAGGED,
    returns_key,
)
from tests._support.caching import (
    CONNECTED,
    HELLO,
    KEYED,
    CacheRecorder,
    Steps,
    get,
    memory,
    open_cache,
    response,
    settled,
)
from tests._support.recording import (
    GET,
    Ctx,
    Recorder,
    answers,
    post,
    returns,
)
from trioproxy import (
    Route,
    Session,
)
from trioproxy.cache import (
    CacheKey,
    CacheLock,
    ForcedFreshness,
)
from trioproxy.cache._lock import WritePermit
from trioproxy.proxy._compose import bind

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


async def test_what_a_route_has_stored_is_renewed_by_that_route(autojump_clock: MockClock) -> None:
    async def rewrite(session: Session, _ctx: Ctx) -> bool:
        session.req_header().path = "/inside"
        return False

    steps = Steps([[BEHIND], [response('ETag: "2"')]])
    recorder = CacheRecorder(hooks={**SERVES, "request_filter": rewrite})
    async with open_cache(recorder, steps.origin()) as gateway:
        gateway.services.filters = bind(Route({"/path": recorder, "/inside": Recorder()}))
        await gateway.exchange(GET)
        await trio.sleep(LATER)
        await gateway.exchange(GET)
        await settled()
        assert [str(phase) for phase in recorder.phases()] == ["miss", "stale-updating", "expired"]
        assert (await gateway.exchange(GET)).get("etag") == '"2"'


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
