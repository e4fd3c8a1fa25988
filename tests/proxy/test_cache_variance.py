"""Callbacks with variants of a resource, and with a predictor of what is uncacheable."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests._support.cache_rows import (
    FIT,
    LATER,
    NEWS,
    UNCACHEABLE,
    broken,
    predicted,
    returns_key,
)
from tests._support.caching import (
    CONNECTED,
    HELLO,
    KEYED,
    CacheRecorder,
    Steps,
    get,
    open_cache,
    response,
    settled,
    stored_body,
)
from tests._support.recording import (
    GET,
    answers,
    chunked,
)
from trioproxy.cache import (
    Predictor,
)


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
