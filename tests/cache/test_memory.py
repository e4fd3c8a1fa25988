"""The store in memory: what it holds beyond the contract, its bound above all."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from tests._support.stores import body, fill, make_key, make_meta, rest
from trioproxy import ErrorSource, ProxyError
from trioproxy.cache._eviction import LruEviction, S3FifoEviction, slot_of
from trioproxy.cache._key import CacheKey
from trioproxy.cache._memory import MemoryHitHandler, MemoryMissHandler, MemoryStorage
from trioproxy.cache._storage import MAX_PIECE, STORAGE_FULL, PurgeType


async def find(store: MemoryStorage, name: str = "a") -> MemoryHitHandler:
    found = await store.lookup(make_key(name))
    assert found is not None
    return found[1]


def held(store: MemoryStorage) -> int:
    counted = store.statistics()
    return counted.bytes + counted.reserved


# -- pieces --------------------------------------------------------------------------------------


async def test_readers_are_handed_the_very_objects_that_were_written() -> None:
    store = MemoryStorage(10**6)
    pieces = [b"x" * MAX_PIECE, b"y" * 3]
    await fill(store, make_key(), *pieces)
    for _ in range(2):
        reader = await find(store)
        assert [await reader.read_body() is piece for piece in pieces] == [True, True]
        reader.close_now()


async def test_whole_pieces_of_a_range_are_not_copied_either() -> None:
    store = MemoryStorage(10**6)
    pieces = [b"abc", b"defghi", b"jkl"]
    await fill(store, make_key(), *pieces)
    reader = await find(store)
    reader.seek(1, 11)
    assert await reader.read_body() == b"bc"
    assert await reader.read_body() is pieces[1]
    assert await reader.read_body() == b"jk"
    assert await reader.read_body() is None
    reader.close_now()


async def test_what_is_no_bytes_is_copied_so_that_nobody_changes_it() -> None:
    store = MemoryStorage(10**6)
    data = bytearray(b"abc")
    wrong: Any = data
    await fill(store, make_key(), wrong)
    data[0] = 0
    assert await body(store, make_key()) == b"abc"


async def test_hits_and_writes_do_not_wait() -> None:
    # Not even for a checkpoint: the engine has enough of these.
    store = MemoryStorage(10**6)
    with trio.testing.assert_no_checkpoints():
        await fill(store, make_key(), b"one", b"two")
        assert await body(store, make_key()) == b"onetwo"


async def test_a_closed_reader_reads_nothing() -> None:
    store = MemoryStorage(10**6)
    await fill(store, make_key(), b"x")
    reader = await find(store)
    reader.close_now()
    reader.close_now()
    with pytest.raises(RuntimeError, match="closed"):
        await reader.read_body()


# -- the bound -----------------------------------------------------------------------------------


async def test_the_eviction_manager_may_not_allow_more_than_the_store() -> None:
    with pytest.raises(ValueError, match="above"):
        MemoryStorage(100, LruEviction(101))


async def test_a_scan_leaves_what_is_used_again_where_the_manager_keeps_it() -> None:
    store = MemoryStorage(100_000, S3FifoEviction(100_000))
    await fill(store, make_key("hot"), b"x" * 1000)
    for _ in range(2):
        await body(store, make_key("hot"))
    for number in range(100):
        await fill(store, make_key(f"n{number}"), b"x" * 1000)
    assert await body(store, make_key("hot")) is not None


async def test_metadata_and_tiny_pieces_count() -> None:
    store = MemoryStorage(10**6)
    plain = await fill(store, make_key("a"), b"x" * 100)
    fields = await fill(store, make_key("b"), b"x" * 100, meta=make_meta(("X", "y" * 500)))
    tiny = await fill(store, make_key("c"), *[b"x"] * 100)
    tags = await fill(store, make_key("d"), b"x" * 100, meta=make_meta(("Cache-Tag", "a,b,c,d")))
    assert fields >= plain + 500
    assert tiny >= plain + 99 * 80
    assert tags >= plain + 4 * 300


@pytest.mark.parametrize(
    ("pieces", "fields"), [((), 0), ((b"x" * 20_000,), 5), ([b"?"] * 300, 1), ((b"body",), 30)]
)
async def test_an_entry_takes_no_more_memory_than_it_counts_for(
    pieces: list[bytes], fields: int
) -> None:
    store = MemoryStorage(10**8)
    await fill(store, make_key(), b"warm")
    before = store.statistics().bytes
    tracemalloc.start()
    try:
        gc.collect()
        start = tracemalloc.get_traced_memory()[0]
        for number in range(40):
            lines = [(f"X-{number}-{line}", f"value {number} {line}") for line in range(fields)]
            meta = make_meta(("Cache-Tag", f"t{number},common"), *lines)
            await fill(
                store,
                make_key(f"n{number}"),
                *[bytes(bytearray(each)) for each in pieces],
                meta=meta,
            )
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    counted = store.statistics().bytes - before
    assert taken <= counted
    assert counted <= 2 * taken + 100_000


async def test_what_is_being_written_displaces_complete_entries() -> None:
    store = MemoryStorage(100_000)
    for number in range(4):
        await fill(store, make_key(f"n{number}"), b"x" * 20_000)
    writer = await store.get_miss_handler(make_key(), make_meta())
    for _ in range(20):
        await writer.write_body(b"x" * 1000, False)
        assert held(store) <= 100_000
    assert store.statistics().evictions == 1
    writer.abandon()
    assert store.statistics().reserved == 0


async def test_writers_together_stay_within_the_bound() -> None:
    store = MemoryStorage(100_000)
    writers = [
        await store.get_miss_handler(make_key(f"n{number}"), make_meta()) for number in range(6)
    ]
    errors = []
    for _ in range(20):
        for writer in list(writers):
            try:
                await writer.write_body(b"x" * 1000, False)
            except ProxyError as exc:
                errors.append(exc)
                writers.remove(writer)
            assert held(store) <= 100_000
    assert errors
    assert all(error.etype == STORAGE_FULL for error in errors)
    assert all(error.esource is ErrorSource.INTERNAL for error in errors)
    assert len(writers) >= 3
    for writer in writers:
        await writer.write_body(b"", True)
        await writer.finish()
    assert store.statistics().entries == len(writers)


async def test_a_writer_is_refused_where_not_even_its_metadata_fits() -> None:
    store = MemoryStorage(1000)
    with pytest.raises(ProxyError) as caught:
        await store.get_miss_handler(make_key(), make_meta())
    assert caught.value.etype == STORAGE_FULL
    assert store.statistics().writing == 0


async def test_what_slow_readers_hold_is_counted_until_they_let_go() -> None:
    store = MemoryStorage(100_000, max_object_bytes=50_000)
    await fill(store, make_key("a"), b"x" * 40_000)
    reader = await find(store)
    await store.purge(make_key("a").compact(), PurgeType.INVALIDATION)
    assert store.statistics().entries == 0
    assert store.statistics().reserved >= 40_000
    await fill(store, make_key("b"), b"y" * 40_000)
    await fill(store, make_key("c"), b"z" * 40_000)
    assert held(store) <= 100_000
    assert store.statistics().entries == 1
    assert await rest(reader) == b"x" * 40_000
    reader.close_now()
    assert store.statistics().reserved == 0


async def test_nothing_is_evicted_in_vain() -> None:
    # Two of three entries are being read: removing all three would not make room for the fourth.
    store = MemoryStorage(100_000, max_object_bytes=60_000)
    for name in "abc":
        await fill(store, make_key(name), b"x" * 28_000)
    readers = [await find(store, name) for name in "ab"]
    writer = await store.get_miss_handler(make_key("d"), make_meta())
    with pytest.raises(ProxyError) as caught:
        await writer.write_body(b"x" * 50_000, False)
    assert caught.value.etype == STORAGE_FULL
    assert store.statistics().entries == 3
    for reader in readers:
        reader.close_now()
    await fill(store, make_key("d"), b"x" * 50_000)
    assert await body(store, make_key("d")) is not None


async def test_readers_that_gave_up_leave_nothing_at_the_entry() -> None:
    store = MemoryStorage(100_000)
    writer = await store.get_miss_handler(make_key(), make_meta())
    for _ in range(3):
        reader = await find(store)
        with trio.move_on_after(0):
            await reader.read_body()
        reader.close_now()
    assert not writer._entry.parked
    writer.abandon()


async def test_a_reader_that_was_forgotten_holds_nothing() -> None:
    store = MemoryStorage(100_000)
    await fill(store, make_key(), b"x" * 1000)
    reader = await find(store)
    await store.purge(make_key().compact(), PurgeType.INVALIDATION)
    assert store.statistics().reserved
    del reader
    await trio.testing.wait_all_tasks_blocked()
    assert store.statistics().reserved == 0


def test_a_reader_and_a_writer_may_outlive_the_run() -> None:
    store = MemoryStorage(100_000)
    kept: list[object] = []

    async def run() -> None:
        await fill(store, make_key(), b"x")
        kept.append(await find(store))
        kept.append(await store.get_miss_handler(make_key("b"), make_meta()))
        await store.purge(make_key().compact(), PurgeType.INVALIDATION)

    trio.run(run)
    assert store.statistics().reserved
    kept.clear()
    assert store.statistics().reserved == 0
    assert store.statistics().writing == 0


async def test_metadata_that_grows_makes_room() -> None:
    store = MemoryStorage(100_000)
    await fill(store, make_key("a"), b"x" * 20_000)
    await fill(store, make_key("b"), b"x" * 20_000)
    reader = await find(store, "b")
    assert await store.update_meta(make_key("b"), make_meta(("X", "y" * 60_000)))
    assert held(store) <= 100_000
    assert await body(store, make_key("a")) is None
    assert await body(store, make_key("b")) is not None
    reader.close_now()
    assert store._shelf.pinned == 0
    await store.purge(make_key("b").compact(), PurgeType.INVALIDATION)
    assert held(store) == 0


async def test_nothing_is_left_of_what_is_gone() -> None:
    store = MemoryStorage(10**6)
    await fill(store, make_key(), b"x", meta=make_meta(("Cache-Tag", "a,b")))
    (await store.get_miss_handler(make_key("b"), make_meta())).abandon()
    await fill(store, make_key("c", 1), b"x")
    await store.purge(make_key().compact(), PurgeType.INVALIDATION)
    await store.purge(make_key("c", 1).compact(), PurgeType.INVALIDATION)
    empty = MemoryStorage(10**6)
    for name, value in vars(store._shelf).items():
        if isinstance(value, dict):
            assert value == vars(empty._shelf)[name] == {}, name
    assert held(store) == 0


# -- tasks that wait -----------------------------------------------------------------------------


@settings(max_examples=settings().max_examples // 2)
@given(
    pieces=st.lists(st.binary(max_size=3), max_size=6),
    starts=st.lists(st.integers(0, 7), max_size=4),
    cancelled=st.sets(st.integers(0, 7)),
    ending=st.sampled_from(["finish", "abandon", "purge"]),
)
def test_tasks_that_read_along_get_all_or_an_error(
    pieces: list[bytes], starts: list[int], cancelled: set[int], ending: str
) -> None:
    whole = b"".join(pieces)
    outcomes: list[tuple[bytes, str]] = []

    async def read(reader: MemoryHitHandler) -> None:
        got = b""
        outcome = "cancelled"
        try:
            while (piece := await reader.read_body()) is not None:
                got += piece
            outcome = "end"
        except ProxyError:
            outcome = "error"
        finally:
            reader.close_now()
            outcomes.append((got, outcome))

    async def run() -> None:
        store = MemoryStorage(10**6)
        writer = await store.get_miss_handler(make_key(), make_meta())
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for step, piece in enumerate([*pieces, b""]):
                    for _ in range(starts.count(step)):
                        nursery.start_soon(read, await find(store))
                    await trio.testing.wait_all_tasks_blocked()
                    if step in cancelled:
                        nursery.start_soon(give_up, await find(store))
                        await trio.testing.wait_all_tasks_blocked()
                    await writer.write_body(piece, step == len(pieces))
                if ending == "purge":
                    await store.purge(make_key().compact(), PurgeType.INVALIDATION)
                if ending == "abandon":
                    writer.abandon()
                else:
                    await writer.finish()
        assert store.statistics().reserved == 0

    async def give_up(reader: MemoryHitHandler) -> None:
        with trio.move_on_after(0):
            while await reader.read_body() is not None:
                pass
        reader.close_now()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    expected = "error" if ending == "abandon" else "end"
    assert len(outcomes) == sum(start <= len(pieces) for start in starts)
    for got, outcome in outcomes:
        assert outcome == expected
        assert whole.startswith(got)
        assert got == whole or outcome == "error"


# -- any order of things -------------------------------------------------------------------------

KEYS = [make_key("a"), make_key("a", 1), make_key("b")]
LIMIT = 40_000


@attrs.define(eq=False)
class Writing:
    """What one writer has written so far."""

    key: CacheKey
    handler: MemoryMissHandler
    number: int
    data: bytes = b""
    ended: bool = False
    finished: bool = False
    failed: bool = False
    purged: bool = False


@attrs.define(eq=False)
class Reading:
    """What one reader has seen, and which writer's bytes these have to be."""

    handler: MemoryHitHandler
    of: Writing
    data: bytes = b""
    ended: bool = False


class StoreMachine(RuleBasedStateMachine):
    """Writers, readers, purges and evictions in any order; nothing here ever waits.

    A reader gets the bytes of exactly one writer, whole or with an error, and the store never
    shows, keeps or counts what it should not.
    """

    writings = Bundle("writings")
    readings = Bundle("readings")

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStorage(LIMIT)
        self.writers: list[Writing] = []
        self.readers: list[Reading] = []

    @initialize(make=st.sampled_from([LruEviction, S3FifoEviction]))
    def open(self, make: type[LruEviction | S3FifoEviction]) -> None:
        self.store = MemoryStorage(LIMIT, make(LIMIT), max_object_bytes=15_000)

    def run(self, coroutine: Any) -> Any:
        """Run what must not wait to its end."""
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        finally:
            coroutine.close()
        raise AssertionError("it waits")

    @rule(target=writings, key=st.sampled_from(KEYS), tag=st.sampled_from(["t", "u"]))
    def begin(self, key: CacheKey, tag: str) -> Writing | None:
        number = len(self.writers)
        # The number comes along, so that a look-up tells whose entry it found.
        meta = make_meta(("Cache-Tag", tag), ("X-Number", str(number)))
        try:
            handler = trio.run(self.store.get_miss_handler, key, meta)
        except ProxyError:
            return None
        writing = Writing(key, handler, number)
        self.writers.append(writing)
        return writing

    @rule(writing=writings, size=st.integers(0, 6000), end=st.booleans())
    def write(self, writing: Writing | None, size: int, end: bool) -> None:
        if writing is None or writing.ended or writing.failed:
            return
        data = bytes([writing.number % 256]) * size
        try:
            self.run(writing.handler.write_body(data, end))
        except ProxyError:
            writing.failed = True
        else:
            writing.data += data
            writing.ended = end

    @rule(writing=writings)
    def finish(self, writing: Writing | None) -> None:
        if writing is not None and writing.ended and not writing.failed and not writing.finished:
            self.run(writing.handler.finish())
            writing.finished = True

    @rule(writing=writings)
    def abandon(self, writing: Writing | None) -> None:
        if writing is not None:
            writing.handler.abandon()
            writing.failed = writing.failed or not writing.finished

    def find(self, key: CacheKey) -> Reading | None:
        found = self.run(self.store.lookup(key))
        if found is None:
            return None
        writing = self.writers[int(found[0].header.headers.get("x-number"))]
        assert writing.key == key
        assert not writing.failed
        assert not writing.purged
        # Nothing that was begun later is there, neither complete nor under way: only what went by
        # eviction may be missing.
        assert not any(
            later.key == key and not (later.failed or later.purged or later.finished)
            for later in self.writers[writing.number + 1 :]
        )
        return Reading(found[1], writing)

    @rule(target=readings, key=st.sampled_from(KEYS))
    def look_up(self, key: CacheKey) -> Reading | None:
        reading = self.find(key)
        if reading is not None:
            self.readers.append(reading)
        return reading

    @rule(target=readings, writing=writings)
    def look_up_by_tag(self, writing: Writing | None) -> Reading | None:
        if writing is None:
            return None
        tag = writing.handler.streaming_write_tag()
        found = self.run(self.store.lookup_streaming_write(writing.key, tag))
        if found is None:
            assert writing.failed or writing.finished
            return None
        assert not writing.failed
        reading = Reading(found[1], writing)
        self.readers.append(reading)
        return reading

    @rule(reading=readings, times=st.integers(1, 4))
    def read(self, reading: Reading | None, times: int) -> None:
        if reading is None or reading not in self.readers:
            return
        for _ in range(times):
            at_end = len(reading.data) == len(reading.of.data)
            if at_end and not reading.of.finished and not reading.of.failed:
                return  # it would wait
            try:
                piece = self.run(reading.handler.read_body())
            except ProxyError:
                assert reading.of.failed
                return
            assert not reading.of.failed
            if piece is None:
                assert reading.of.finished
                assert reading.data == reading.of.data
                reading.ended = True
            else:
                assert not reading.ended
                reading.data += piece
                assert reading.of.data.startswith(reading.data)

    @rule(reading=readings)
    def close(self, reading: Reading | None) -> None:
        if reading in self.readers:
            self.readers.remove(reading)
            reading.handler.close_now()

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(PurgeType))
    def purge(self, key: CacheKey, kind: PurgeType) -> None:
        self.run(self.store.purge(key.compact(), kind))
        for writing in self.writers:
            if writing.key == key and (writing.finished or kind is PurgeType.INVALIDATION):
                writing.purged = True

    @rule(reading=readings, tag=st.sampled_from(["t", "u"]), size=st.integers(0, 20_000))
    def update_meta(self, reading: Reading | None, tag: str, size: int) -> None:
        if reading is None:
            return
        key, number = reading.of.key, str(reading.of.number)
        kept = self.store._shelf.entries.get(slot_of(key.primary_hash, key.variance))
        if kept is reading.of.handler._entry:
            meta = make_meta(("Cache-Tag", tag), ("X-Number", number), ("X", "y" * size))
            assert self.run(self.store.update_meta(key, meta))

    @rule()
    def invalidate_a_tag(self) -> None:
        self.run(self.store.purge_tag("t"))
        for writing in self.writers:
            writing.purged = writing.purged or writing.handler._entry.tags == {"t"}

    @invariant()
    def bound(self) -> None:
        assert held(self.store) <= LIMIT
        counted = self.store.statistics()
        under_way = [each for each in self.writers if not (each.finished or each.failed)]
        assert counted.writing == len(under_way)
        if not under_way and not self.readers:
            assert counted.reserved == 0
        if not counted.entries:
            assert counted.bytes == 0
        shelf = self.store._shelf
        read = [each.weight for each in shelf.entries.values() if each.readers]
        assert shelf.pinned == sum(read)

    def teardown(self) -> None:
        for reading in self.readers:
            reading.handler.close_now()
        for writing in self.writers:
            writing.handler.abandon()
        assert self.store.statistics().reserved == 0


StoreMachine.TestCase.settings = settings(
    max_examples=settings().max_examples // 2, stateful_step_count=40
)
TestTheStoreInAnyOrder = StoreMachine.TestCase
