"""What every store keeps to; each implementation is one entry of `STORES`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
import trio
import trio.testing

from tests._support.stores import NOW, body, fill, make_key, make_meta, rest
from trioproxy import ErrorSource, ErrorType, ProxyError
from trioproxy.cache._disk import DiskStorage
from trioproxy.cache._eviction import MAX_VARIANTS
from trioproxy.cache._memory import MemoryStorage
from trioproxy.cache._storage import (
    MAX_PIECE,
    Created,
    HitHandler,
    MissHandler,
    PurgeType,
    Storage,
)

#: Directory of its own, limit of the whole, limit of one body.
Make: TypeAlias = Callable[[Path, int, int], Awaitable[Storage]]


async def make_memory(directory: Path, max_bytes: int, max_object_bytes: int) -> Storage:
    return MemoryStorage(max_bytes, max_object_bytes=max_object_bytes)


async def make_disk(directory: Path, max_bytes: int, max_object_bytes: int) -> Storage:
    return DiskStorage(directory, max_bytes, max_object_bytes=max_object_bytes)


STORES: dict[str, Make] = {"memory": make_memory, "disk": make_disk}


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest) -> Make:
    return STORES[request.param]


@pytest.fixture
async def store(make: Make, tmp_path: Path) -> AsyncIterator[Storage]:
    """A store with room for everything that a test puts in."""
    made = await make(tmp_path / "store", 2**24, 2**22)
    yield made
    await made.aclose()


@pytest.fixture
def streaming(store: Storage) -> Storage:
    if not store.supports_streaming_partial_write:
        pytest.skip("cannot be read while it is written")
    return store


@attrs.define
class Reading:
    """A task's progress with a reader."""

    got: list[bytes] = attrs.field(factory=list)
    ended: bool = False
    error: ProxyError | None = None

    async def run(self, reader: HitHandler) -> None:
        try:
            while (piece := await reader.read_body()) is not None:
                self.got.append(piece)
            self.ended = True
        except ProxyError as exc:
            self.error = exc
        finally:
            reader.close_now()


@asynccontextmanager
async def tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery that does not wait for ever for a reader that nobody wakes."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            yield nursery


async def find(store: Storage, name: str = "a") -> HitHandler:
    found = await store.lookup(make_key(name))
    assert found is not None
    return found[1]


async def begin(store: Storage, *pieces: bytes, name: str = "a") -> MissHandler:
    writer = await store.get_miss_handler(make_key(name), make_meta())
    for piece in pieces:
        await writer.write_body(piece, False)
    return writer


# -- storing and finding -------------------------------------------------------------------------


async def test_what_was_never_stored_is_not_found(store: Storage) -> None:
    assert await store.lookup(make_key()) is None
    assert not await store.purge(make_key().compact(), PurgeType.INVALIDATION)
    assert not await store.update_meta(make_key(), make_meta())
    assert await store.purge_tag("tag") == 0


async def test_a_finished_entry_is_found_with_its_metadata_and_body(store: Storage) -> None:
    meta = make_meta(("Content-Type", "text/plain"), ("ETag", '"1"'), extensions={"x": b"\0y"})
    await fill(store, make_key(), b"hello ", b"world", meta=meta)
    found = await store.lookup(make_key())
    assert found is not None
    assert found[0] == meta
    assert found[1].size == 11
    assert await rest(found[1]) == b"hello world"
    await found[1].finish()


async def test_an_empty_body_is_a_body(store: Storage) -> None:
    await fill(store, make_key())
    reader = await find(store)
    assert reader.size == 0
    assert await reader.read_body() is None
    reader.close_now()


async def test_the_end_is_told_every_time(store: Storage) -> None:
    await fill(store, make_key(), b"x")
    reader = await find(store)
    assert await rest(reader) == b"x"
    assert await reader.read_body() is None
    reader.close_now()


async def test_the_last_bytes_may_come_with_the_end(store: Storage) -> None:
    writer = await begin(store, b"one")
    await writer.write_body(b"two", True)
    await writer.finish()
    assert await body(store, make_key()) == b"onetwo"


async def test_pieces_are_never_empty_and_never_longer_than_said(store: Storage) -> None:
    data = bytes(range(256)) * 1000
    await fill(store, make_key(), b"", data, b"", b"tail")
    reader = await find(store)
    pieces = []
    while (piece := await reader.read_body()) is not None:
        pieces.append(piece)
    reader.close_now()
    assert b"".join(pieces) == data + b"tail"
    assert all(0 < len(piece) <= MAX_PIECE for piece in pieces)


async def test_keys_and_variants_are_entries_of_their_own(store: Storage) -> None:
    await fill(store, make_key("a"), b"a")
    await fill(store, make_key("a", 1), b"a1")
    await fill(store, make_key("a", 2), b"a2")
    await fill(store, make_key("b"), b"b")
    assert await body(store, make_key("a")) == b"a"
    assert await body(store, make_key("a", 1)) == b"a1"
    assert await body(store, make_key("a", 2)) == b"a2"
    assert await store.purge(make_key("a").compact(), PurgeType.INVALIDATION)
    assert await body(store, make_key("a")) is None
    assert await body(store, make_key("a", 1)) == b"a1"
    assert await body(store, make_key("b")) == b"b"


async def test_a_resource_has_a_bounded_number_of_variants(store: Storage) -> None:
    for variant in range(MAX_VARIANTS + 1):
        await fill(store, make_key("a", variant), b"x")
    assert await body(store, make_key("a", 0)) is None
    assert await body(store, make_key("a", 1)) == b"x"
    assert store.statistics().entries == MAX_VARIANTS


async def test_whoever_handed_the_metadata_in_cannot_change_what_is_stored(store: Storage) -> None:
    meta = make_meta(("ETag", '"1"'))
    await fill(store, make_key(), b"x", meta=meta)
    meta.header.headers.set("ETag", '"2"')
    meta.disable_serve_stale()
    found = await store.lookup(make_key())
    assert found is not None
    assert found[0] == make_meta(("ETag", '"1"'))
    found[1].close_now()


# -- seeking -------------------------------------------------------------------------------------


async def test_a_range_is_read_from_its_start_to_before_its_end(store: Storage) -> None:
    pieces = [bytes([number]) * (number % 7 + 1) for number in range(100)] + [b"z" * 150_000]
    whole = b"".join(pieces)
    await fill(store, make_key(), *pieces)
    reader = await find(store)
    assert reader.can_seek()
    assert reader.can_seek_multipart()
    ends = (0, 1, 2, 3, 50, 397, 70_000, len(whole))
    for start in (0, 1, 5, 399, 400, 65_935, len(whole)):
        for end in (end for end in ends if end >= start):
            reader.seek(start, end)
            assert await rest(reader) == whole[start:end]
        reader.seek(start)
        assert await rest(reader) == whole[start:]
    reader.close_now()


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (0, 4), (4, None), (4, 4)])
async def test_bytes_that_are_not_there_cannot_be_sought(
    store: Storage, start: int, end: int | None
) -> None:
    await fill(store, make_key(), b"abc")
    reader = await find(store)
    with pytest.raises(ValueError, match="bytes"):
        reader.seek(start, end)
    assert await rest(reader) == b"abc"
    reader.close_now()


# -- writers that do not finish ------------------------------------------------------------------


async def test_nothing_is_complete_before_the_writer_finished(store: Storage) -> None:
    writer = await begin(store, b"half")
    await writer.write_body(b"", True)
    if store.supports_streaming_partial_write:
        reader = await find(store)
        assert reader.size is None
        reader.close_now()
    else:
        assert await store.lookup(make_key()) is None
    await writer.finish()
    assert await body(store, make_key()) == b"half"


async def test_an_abandoned_writer_leaves_nothing(store: Storage) -> None:
    writer = await begin(store, b"half")
    writer.abandon()
    writer.abandon()
    assert await store.lookup(make_key()) is None
    with pytest.raises(RuntimeError):
        await writer.write_body(b"more", True)
    with pytest.raises(RuntimeError):
        await writer.finish()
    assert store.statistics().writing == 0
    assert store.statistics().abandoned == 1


async def test_a_forgotten_writer_leaves_nothing(store: Storage) -> None:
    writer = await begin(store, b"half")
    del writer
    with trio.move_on_after(5):
        while store.statistics().writing:
            await trio.lowlevel.checkpoint()
    assert store.statistics().writing == 0
    assert await store.lookup(make_key()) is None


async def test_a_body_that_has_not_ended_is_not_kept(store: Storage) -> None:
    writer = await begin(store, b"half")
    with pytest.raises(RuntimeError, match="end"):
        await writer.finish()
    assert await store.lookup(make_key()) is None
    assert store.statistics().writing == 0


async def test_nothing_is_written_behind_the_end(store: Storage) -> None:
    writer = await begin(store)
    await writer.write_body(b"all", True)
    with pytest.raises(RuntimeError, match="end"):
        await writer.write_body(b"more", True)
    await writer.finish()
    assert await body(store, make_key()) == b"all"


async def test_a_writer_finishes_once_and_abandoning_it_then_does_nothing(store: Storage) -> None:
    writer = await begin(store)
    await writer.write_body(b"all", True)
    result = await writer.finish()
    assert isinstance(result, Created)
    assert result.size >= 3
    with pytest.raises(RuntimeError):
        await writer.finish()
    writer.abandon()
    assert await body(store, make_key()) == b"all"


async def test_an_abandoned_replacement_leaves_the_old_entry(store: Storage) -> None:
    await fill(store, make_key(), b"old")
    writer = await begin(store, b"new")
    writer.abandon()
    assert await body(store, make_key()) == b"old"


# -- limits --------------------------------------------------------------------------------------


async def test_a_declared_length_above_the_limit_is_refused_at_once(
    make: Make, tmp_path: Path
) -> None:
    store = await make(tmp_path / "store", 10**6, 1000)
    with pytest.raises(ProxyError) as caught:
        await store.get_miss_handler(make_key(), make_meta(("Content-Length", "1001")))
    assert caught.value.etype == ErrorType.ResponseTooLarge
    assert caught.value.esource is ErrorSource.INTERNAL
    await fill(store, make_key(), b"x" * 1000, meta=make_meta(("Content-Length", "1000")))
    await store.aclose()


async def test_a_body_that_outgrows_the_limit_is_abandoned(make: Make, tmp_path: Path) -> None:
    store = await make(tmp_path / "store", 10**6, 1000)
    await fill(store, make_key("b"), b"x" * 1000)
    writer = await begin(store, b"x" * 1000)
    with pytest.raises(ProxyError) as caught:
        await writer.write_body(b"x", True)
    assert caught.value.etype == ErrorType.ResponseTooLarge
    assert caught.value.esource is ErrorSource.INTERNAL
    assert await store.lookup(make_key()) is None
    assert await body(store, make_key("b")) == b"x" * 1000
    assert store.statistics().abandoned == 1
    await store.aclose()


async def test_what_was_used_longest_ago_goes_when_the_store_is_full(
    make: Make, tmp_path: Path
) -> None:
    store = await make(tmp_path / "store", 100_000, 50_000)
    names = [f"n{number}" for number in range(12)]
    for name in names:
        await fill(store, make_key(name), b"x" * 10_000)
        # The first is used all the time.
        assert await body(store, make_key(names[0])) is not None
        counted = store.statistics()
        assert counted.bytes + counted.reserved <= 100_000
    kept = [name for name in names if await body(store, make_key(name)) is not None]
    assert kept[0] == names[0]
    assert kept[1:] == names[-(len(kept) - 1) :]
    assert 5 < len(kept) < 11
    counted = store.statistics()
    assert (counted.entries, counted.evictions) == (len(kept), 12 - len(kept))
    await store.aclose()


async def test_an_entry_that_is_evicted_is_read_on_to_its_end(make: Make, tmp_path: Path) -> None:
    store = await make(tmp_path / "store", 100_000, 50_000)
    await fill(store, make_key(), b"one", b"two")
    reader = await find(store)
    first = await reader.read_body()
    assert first is not None
    for number in range(12):
        await fill(store, make_key(f"n{number}"), b"x" * 10_000)
    assert await store.lookup(make_key()) is None
    assert first + await rest(reader) == b"onetwo"
    reader.close_now()
    await store.aclose()


# -- replacing and removing ----------------------------------------------------------------------


async def test_a_new_entry_replaces_the_old_one_whose_readers_go_on(store: Storage) -> None:
    await fill(store, make_key(), b"old ", b"body")
    reader = await find(store)
    first = await reader.read_body()
    assert first is not None
    await fill(store, make_key(), b"new")
    assert await body(store, make_key()) == b"new"
    assert first + await rest(reader) == b"old body"
    reader.close_now()
    assert store.statistics().entries == 1


async def test_of_two_writers_the_one_begun_last_is_kept(store: Storage) -> None:
    earlier = await begin(store, b"earlier")
    later = await begin(store, b"later")
    await later.write_body(b"", True)
    await later.finish()
    await earlier.write_body(b"", True)
    await earlier.finish()
    assert await body(store, make_key()) == b"later"
    assert store.statistics().entries == 1


@pytest.mark.parametrize("kind", PurgeType)
async def test_a_purged_entry_is_not_found_but_read_on(store: Storage, kind: PurgeType) -> None:
    await fill(store, make_key(), b"one", b"two")
    reader = await find(store)
    first = await reader.read_body()
    assert first is not None
    assert await store.purge(make_key().compact(), kind)
    assert not await store.purge(make_key().compact(), kind)
    assert await store.lookup(make_key()) is None
    assert first + await rest(reader) == b"onetwo"
    reader.close_now()
    assert store.statistics().bytes == 0


async def test_a_purge_does_not_ask_for_the_user_tag(store: Storage) -> None:
    await fill(store, make_key(tag="alice"), b"x")
    assert await store.purge(make_key(tag="bob").compact(), PurgeType.INVALIDATION)


async def test_an_invalidation_reaches_what_is_being_written(store: Storage) -> None:
    writer = await begin(store, b"of before")
    await store.purge(make_key().compact(), PurgeType.INVALIDATION)
    await writer.write_body(b"", True)
    await writer.finish()
    assert await store.lookup(make_key()) is None
    assert store.statistics().bytes == 0


async def test_an_eviction_leaves_what_is_being_written(store: Storage) -> None:
    await fill(store, make_key(), b"old")
    writer = await begin(store, b"new")
    assert await store.purge(make_key().compact(), PurgeType.EVICTION)
    await writer.write_body(b"", True)
    await writer.finish()
    assert await body(store, make_key()) == b"new"


async def test_a_tag_invalidates_every_entry_that_has_it(store: Storage) -> None:
    await fill(store, make_key("a"), b"a", meta=make_meta(("Cache-Tag", "News , sport")))
    two_lines = make_meta(("Cache-Tag", "x"), ("Cache-Tag", "news"))
    await fill(store, make_key("a", 1), b"a1", meta=two_lines)
    await fill(store, make_key("b"), b"b", meta=make_meta(("Cache-Tag", "newspaper")))
    await fill(store, make_key("c"), b"c", meta=make_meta(extensions={"cache-tag": b"k,NEWS"}))
    await fill(store, make_key("d"), b"d")
    assert await store.purge_tag(" nEWS ") == 3
    assert await store.purge_tag("news") == 0
    left = [name for name in "abcd" if await body(store, make_key(name)) is not None]
    assert left == ["b", "d"]
    assert await store.purge_tag("newspaper") == 1
    assert store.statistics().entries == 1


async def test_a_tag_reaches_what_is_being_written(store: Storage) -> None:
    writer = await store.get_miss_handler(make_key(), make_meta(("Cache-Tag", "news")))
    assert await store.purge_tag("news") == 1
    await writer.write_body(b"x", True)
    await writer.finish()
    assert await store.lookup(make_key()) is None


async def test_an_entry_that_was_replaced_is_not_found_by_its_old_tag(store: Storage) -> None:
    await fill(store, make_key(), b"old", meta=make_meta(("Cache-Tag", "old")))
    await fill(store, make_key(), b"new", meta=make_meta(("Cache-Tag", "new")))
    assert await store.purge_tag("old") == 0
    assert await store.purge_tag("new") == 1


# -- metadata ------------------------------------------------------------------------------------


async def test_new_metadata_replaces_the_old_and_leaves_the_body(store: Storage) -> None:
    await fill(store, make_key(), b"body", meta=make_meta(("ETag", '"1"'), ("Cache-Tag", "early")))
    changed = make_meta(("ETag", '"1"'), ("Cache-Tag", "late"), ("X-More", "y" * 5000))
    changed = attrs.evolve(changed, updated=NOW + 100, fresh_until=NOW + 160)
    before = store.statistics().bytes
    assert await store.update_meta(make_key(), changed)
    found = await store.lookup(make_key())
    assert found is not None
    assert found[0] == changed
    assert await rest(found[1]) == b"body"
    found[1].close_now()
    assert store.statistics().bytes >= before + 5000
    assert await store.purge_tag("early") == 0
    assert await store.purge_tag("late") == 1


async def test_metadata_of_another_entry_is_refused(store: Storage) -> None:
    await fill(store, make_key(), b"new", meta=make_meta(("ETag", '"2"'), created=NOW + 1))
    assert not await store.update_meta(make_key(), make_meta(("ETag", '"1"')))
    found = await store.lookup(make_key())
    assert found is not None
    assert found[0].header.headers.get("etag") == '"2"'
    found[1].close_now()


async def test_metadata_is_replaced_while_it_is_read(store: Storage) -> None:
    await fill(store, make_key(), b"one", b"two")
    reader = await find(store)
    first = await reader.read_body()
    assert first is not None
    assert await store.update_meta(make_key(), make_meta(("X", "y")))
    assert first + await rest(reader) == b"onetwo"
    reader.close_now()
    assert store.statistics().reserved == 0


# -- reading while it is written -----------------------------------------------------------------


async def test_readers_follow_the_writer_each_at_its_own_pace(streaming: Storage) -> None:
    writer = await begin(streaming, b"one ")
    quick = Reading()
    slow = await find(streaming)
    async with tasks() as nursery:
        nursery.start_soon(quick.run, await find(streaming))
        await trio.testing.wait_all_tasks_blocked()
        assert quick.got == [b"one "]
        await writer.write_body(b"two ", False)
        await trio.testing.wait_all_tasks_blocked()
        assert b"".join(quick.got) == b"one two "
        await writer.write_body(b"three", True)
        await writer.finish()
    assert quick.ended
    assert b"".join(quick.got) == b"one two three"
    assert await rest(slow) == b"one two three"
    slow.close_now()
    assert await body(streaming, make_key()) == b"one two three"


async def test_a_reader_sees_no_end_before_the_writer_finished(streaming: Storage) -> None:
    writer = await begin(streaming)
    await writer.write_body(b"all", True)
    reading = Reading()
    async with tasks() as nursery:
        nursery.start_soon(reading.run, await find(streaming))
        await trio.testing.wait_all_tasks_blocked()
        assert reading.got == [b"all"]
        writer.abandon()
    assert not reading.ended
    assert reading.error is not None


async def test_a_failed_writer_fails_its_readers(streaming: Storage) -> None:
    writer = await begin(streaming, b"half")
    parked, behind = Reading(), await find(streaming)
    async with tasks() as nursery:
        nursery.start_soon(parked.run, await find(streaming))
        await trio.testing.wait_all_tasks_blocked()
        writer.abandon()
    assert parked.error is not None
    assert parked.error.etype == ErrorType.PrematureBodyEnd
    assert parked.error.esource is ErrorSource.INTERNAL
    for _ in range(2):
        with pytest.raises(ProxyError):
            await rest(behind)
    behind.close_now()
    assert streaming.statistics().reserved == 0


async def test_a_forgotten_writer_fails_its_readers(streaming: Storage) -> None:
    writer = await begin(streaming, b"half")
    parked = Reading()
    async with tasks() as nursery:
        nursery.start_soon(parked.run, await find(streaming))
        await trio.testing.wait_all_tasks_blocked()
        del writer
    assert parked.error is not None


async def test_a_body_that_outgrows_the_limit_fails_its_readers(make: Make, tmp_path: Path) -> None:
    store = await make(tmp_path / "store", 10**6, 1000)
    if not store.supports_streaming_partial_write:
        pytest.skip("cannot be read while it is written")
    writer = await begin(store, b"x" * 1000)
    reader = await find(store)
    with pytest.raises(ProxyError):
        await writer.write_body(b"x", False)
    with pytest.raises(ProxyError) as caught:
        await rest(reader)
    assert caught.value.etype == ErrorType.ResponseTooLarge
    reader.close_now()
    await store.aclose()


async def test_a_reader_that_is_cancelled_loses_nothing(streaming: Storage) -> None:
    writer = await begin(streaming, b"one")
    reader = await find(streaming)
    assert await reader.read_body() == b"one"
    for _ in range(3):
        with trio.CancelScope() as scope:
            scope.cancel()
            await reader.read_body()
        assert scope.cancelled_caught
    await writer.write_body(b"two", True)
    await writer.finish()
    assert await rest(reader) == b"two"
    reader.close_now()


async def test_an_entry_under_way_is_found_before_the_complete_one(streaming: Storage) -> None:
    await fill(streaming, make_key(), b"old")
    writer = await begin(streaming, b"new")
    reader = await find(streaming)
    assert await reader.read_body() == b"new"
    reader.close_now()
    writer.abandon()
    assert await body(streaming, make_key()) == b"old"


async def test_a_complete_entry_is_found_before_one_begun_earlier(streaming: Storage) -> None:
    earlier = await begin(streaming, b"earlier")
    await fill(streaming, make_key(), b"later")
    assert await body(streaming, make_key()) == b"later"
    earlier.abandon()


async def test_the_tag_of_a_writer_finds_its_entry_alone(streaming: Storage) -> None:
    key = make_key()
    one = await begin(streaming, b"one")
    two = await begin(streaming, b"two")
    for writer, expected in ((one, b"one"), (two, b"two")):
        tag = writer.streaming_write_tag()
        assert tag is not None
        assert await streaming.lookup_streaming_write(make_key("b"), tag) is None
        found = await streaming.lookup_streaming_write(key, tag)
        assert found is not None
        assert await found[1].read_body() == expected
        found[1].close_now()
        await writer.write_body(b"", True)
        await writer.finish()
    tags = [writer.streaming_write_tag() or b"" for writer in (one, two)]
    assert await streaming.lookup_streaming_write(key, tags[0]) is None
    found = await streaming.lookup_streaming_write(key, tags[1])
    assert found is not None
    assert await rest(found[1]) == b"two"
    found[1].close_now()


async def test_the_tag_finds_an_entry_that_was_invalidated_meanwhile(streaming: Storage) -> None:
    # Whoever waits for this very response gets it; nobody else does.
    writer = await begin(streaming, b"one")
    reader = await find(streaming)
    assert await streaming.purge(make_key().compact(), PurgeType.INVALIDATION)
    assert await streaming.lookup(make_key()) is None
    found = await streaming.lookup_streaming_write(make_key(), writer.streaming_write_tag() or b"")
    assert found is not None
    await writer.write_body(b"two", True)
    await writer.finish()
    for each in (reader, found[1]):
        assert await rest(each) == b"onetwo"
        each.close_now()
    assert await streaming.lookup(make_key()) is None
    assert streaming.statistics().reserved == 0


async def test_a_tag_of_nobody_finds_nothing(streaming: Storage) -> None:
    writer = await begin(streaming, b"one")
    tag = writer.streaming_write_tag() or b""
    writer.abandon()
    await fill(streaming, make_key(), b"other")
    assert await streaming.lookup_streaming_write(make_key(), tag) is None
    assert await streaming.lookup_streaming_write(make_key(), b"") is None


async def test_a_range_is_sought_before_it_was_written(streaming: Storage) -> None:
    writer = await begin(streaming, b"0123")
    readers = [await find(streaming) for _ in range(2)]
    if not readers[0].can_seek():
        pytest.skip("cannot seek while it is written")
    readers[0].seek(6, 9)
    readers[1].seek(5)
    readings = [Reading(), Reading()]
    async with tasks() as nursery:
        for reader, reading in zip(readers, readings, strict=True):
            nursery.start_soon(reading.run, reader)
        await trio.testing.wait_all_tasks_blocked()
        await writer.write_body(b"45", False)
        await writer.write_body(b"67", False)
        await writer.write_body(b"89ab", True)
        await writer.finish()
    assert [b"".join(reading.got) for reading in readings] == [b"678", b"56789ab"]


async def test_a_range_that_never_came_is_an_error(streaming: Storage) -> None:
    writer = await begin(streaming, b"0123")
    reader = await find(streaming)
    if not reader.can_seek():
        pytest.skip("cannot seek while it is written")
    reader.seek(2, 9)
    await writer.write_body(b"", True)
    await writer.finish()
    with pytest.raises(ProxyError):
        await rest(reader)
    reader.close_now()


# -- the books -----------------------------------------------------------------------------------


async def test_what_happened_is_counted(store: Storage) -> None:
    await body(store, make_key())
    size = await fill(store, make_key(), b"x" * 1000)
    await body(store, make_key())
    await body(store, make_key())
    (await begin(store, name="b")).abandon()
    writer = await begin(store, b"more", name="c")
    counted = store.statistics()
    assert (counted.hits, counted.misses, counted.admissions, counted.abandoned) == (2, 1, 1, 1)
    assert (counted.entries, counted.bytes, counted.writing) == (1, size, 1)
    assert size >= 1000
    writer.abandon()
    await store.purge(make_key().compact(), PurgeType.INVALIDATION)
    counted = store.statistics()
    assert (counted.entries, counted.bytes, counted.writing) == (0, 0, 0)
    assert (counted.purges, counted.reserved) == (1, 0)


async def test_a_closed_store_finds_and_takes_nothing(store: Storage) -> None:
    await fill(store, make_key(), b"x")
    writer = await begin(store, b"half", name="b")
    await store.aclose()
    assert await store.lookup(make_key()) is None
    with pytest.raises(ProxyError):
        await store.get_miss_handler(make_key(), make_meta())
    with pytest.raises(ProxyError):
        await writer.write_body(b"more", True)
    await store.aclose()
