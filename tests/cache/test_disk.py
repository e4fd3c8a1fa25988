"""What a store on disk keeps to beside the contract of every store."""

from __future__ import annotations

import errno
import gc
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests._support.stores import body, fill, make_key, make_meta, rest
from trioproxy import ErrorSource, ErrorType, ProxyError
from trioproxy.cache import _disk, _disk_index
from trioproxy.cache._disk import DiskStorage
from trioproxy.cache._disk_format import BLOCK, MAX_HEAD, Head, Prelude, occupied
from trioproxy.cache._key import CacheKey
from trioproxy.cache._storage import STORAGE_FULL, HitHandler, PurgeType

LIMIT = 2**22
LONG = random.Random(1).randbytes(3 * BLOCK + 100)


@attrs.define
class Directory:
    """A cache directory, and the stores that are open on it: one for each process that there is."""

    path: Path
    stores: list[DiskStorage] = attrs.field(factory=list)

    async def open(self, limit: int = LIMIT, **options: Any) -> DiskStorage:
        store = DiskStorage(self.path, limit, **{"max_object_bytes": limit, **options})
        self.stores.append(store)
        await store.open()
        return store

    def entry(self, key: CacheKey | None = None) -> Path:
        name = (key or make_key()).combined_hash.hex()
        return self.path / "objects" / name[:2] / name

    def files(self, pattern: str = "objects/*/*") -> list[Path]:
        return sorted(self.path.glob(pattern))

    def side(self, key: CacheKey | None = None) -> Path:
        return self.entry(key).with_suffix(".meta")

    def indexes(self) -> list[Path]:
        return self.files("trioproxy-index-*.sqlite3")

    def size(self) -> int:
        return sum(occupied(each.stat().st_size) for each in self.files())


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Directory]:
    """A directory whose stores are closed in the end: no descriptor and no half file is left."""
    directory = Directory(tmp_path / "cache")
    gc.collect()  # what another test has left is not to be closed meanwhile
    before = descriptors()
    with trio.fail_after(30):
        yield directory
        for each in directory.stores:
            await each.aclose()
    assert descriptors() == before
    assert [each for each in directory.files("partial/*") if each.suffix != ".txt"] == []


@pytest.fixture
async def store(directory: Directory) -> DiskStorage:
    return await directory.open()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def find(store: DiskStorage, key: CacheKey | None = None) -> HitHandler:
    found = await store.lookup(key or make_key())
    assert found is not None
    return found[1]


async def read_until_error(reader: HitHandler) -> tuple[bytes, ProxyError | None]:
    """Return what a reader gives, and the error at its end if there is one; and close it."""
    got = b""
    try:
        while (piece := await reader.read_body()) is not None:
            got += piece
    except ProxyError as error:
        return got, error
    finally:
        reader.close_now()
    return got, None


async def failure_of(work: Callable[[], Awaitable[object]]) -> ProxyError | None:
    """Do something and return its error, if there was one."""
    try:
        await work()
    except ProxyError as error:
        return error
    return None


# -- restarts ------------------------------------------------------------------------------------


async def test_what_was_stored_is_there_after_a_restart(directory: Directory) -> None:
    store = await directory.open()
    meta = make_meta(("ETag", '"1"'), ("Cache-Tag", "news"))
    await fill(store, make_key(), LONG, meta=meta)
    await fill(store, make_key("a", 1), b"variant")
    before = store.statistics()
    await store.aclose()
    store = await directory.open()
    after = store.statistics()
    assert (after.entries, after.bytes) == (before.entries, before.bytes) == (2, directory.size())
    found = await store.lookup(make_key())
    assert found is not None
    assert found[0] == meta
    assert await rest(found[1]) == LONG
    found[1].close_now()
    assert await body(store, make_key("a", 1)) == b"variant"
    assert await store.purge_tag("news") == 1


async def test_later_metadata_is_there_after_a_restart(directory: Directory) -> None:
    store = await directory.open()
    await fill(store, make_key(), b"x", meta=make_meta(("Cache-Tag", "old")))
    changed = make_meta(("Cache-Tag", "new"), ("X", "y"))
    assert await store.update_meta(make_key(), changed)
    await store.aclose()
    for index in directory.indexes():
        index.unlink()
    store = await directory.open()
    assert store.statistics().bytes == directory.size()
    found = await store.lookup(make_key())
    assert found is not None
    assert found[0] == changed
    found[1].close_now()
    assert await store.purge_tag("old") == 0
    assert await store.purge_tag("new") == 1
    assert directory.files() == []


async def test_metadata_have_a_limit(directory: Directory) -> None:
    store = await directory.open()
    long = make_meta(extensions={"x": b"x" * MAX_HEAD})
    with pytest.raises(ProxyError) as caught:
        await store.get_miss_handler(make_key(), long)
    assert caught.value.etype == ErrorType.ResponseTooLarge
    await fill(store, make_key(), b"x")
    with pytest.raises(ProxyError) as caught:
        await store.update_meta(make_key(), long)
    assert caught.value.etype == ErrorType.ResponseTooLarge
    assert await body(store, make_key()) == b"x"


async def test_the_order_of_use_outlives_a_restart(directory: Directory) -> None:
    store = await directory.open(120_000)
    for number in range(9):
        await fill(store, make_key(f"n{number}"), b"x" * 10_000)
    for number in (0, 1):
        await body(store, make_key(f"n{number}"))
    await store.aclose()
    store = await directory.open(120_000)
    for number in range(3):
        await fill(store, make_key(f"m{number}"), b"x" * 10_000)
    kept = [number for number in range(9) if await body(store, make_key(f"n{number}")) is not None]
    assert kept == [0, 1, 5, 6, 7, 8]


async def test_a_smaller_limit_holds_from_the_start(directory: Directory) -> None:
    store = await directory.open()
    for number in range(20):
        await fill(store, make_key(f"n{number}"), b"x" * 10_000)
    await store.aclose()
    store = await directory.open(50_000)
    assert 0 < directory.size() == store.statistics().bytes <= 50_000
    assert await body(store, make_key("n19")) is not None


async def test_a_lost_index_is_made_again_without_reading_a_body(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await directory.open()
    await fill(store, make_key(), LONG, meta=make_meta(("Cache-Tag", "news")))
    await fill(store, make_key("a", 1), LONG)
    before = store.statistics()
    await store.aclose()
    for index in directory.indexes():
        index.unlink()
    read = 0
    real = os.pread

    def counting(descriptor: int, length: int, at: int) -> bytes:
        nonlocal read
        data = real(descriptor, length, at)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    store = await directory.open()
    monkeypatch.undo()
    # One read for each head, which brings a block along.
    assert read < 2 * (BLOCK + 5000) < 2 * len(LONG)
    after = store.statistics()
    assert (after.entries, after.bytes) == (before.entries, before.bytes)
    assert await store.purge_tag("news") == 1


async def test_the_start_reads_no_file_that_the_index_knows(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await directory.open()
    await fill(store, make_key(), LONG)
    await store.aclose()
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "read")
    store = await directory.open()
    monkeypatch.undo()
    assert store.statistics().entries == 1


async def test_a_row_whose_file_is_gone_goes_at_the_start(directory: Directory) -> None:
    store = await directory.open()
    await fill(store, make_key(), LONG)
    await store.aclose()
    directory.entry().unlink()
    store = await directory.open()
    assert (store.statistics().entries, store.statistics().bytes) == (0, 0)


@pytest.mark.parametrize("fsync", [False, True])
async def test_an_entry_is_written_to_the_medium_if_that_was_asked_for(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    synced: list[str] = []
    real = os.fsync

    def recording(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    store = await directory.open(fsync=fsync)
    monkeypatch.setattr(os, "fsync", recording)
    await fill(store, make_key(), LONG)
    assert await body(store, make_key()) == LONG
    if fsync:
        # What the prelude vouches for, the prelude, and the name.
        assert [Path(each).suffix for each in synced] == [".part", ".part", ""]
        assert synced[-1] == str(directory.entry().parent)
    else:
        assert synced == []


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"foreign", bytes(200), b"x" * 200_000])
@pytest.mark.parametrize("restart", [False, True])
async def test_a_foreign_file_in_the_place_of_an_entry_is_dropped(
    directory: Directory, content: bytes, restart: bool
) -> None:
    store = await directory.open()
    await fill(store, make_key(), LONG)
    if restart:
        await store.aclose()
    directory.entry().write_bytes(content)
    if restart:
        store = await directory.open()
        assert directory.files() == []
    assert await store.lookup(make_key()) is None
    assert directory.files() == []
    assert store.statistics().bytes == 0
    await fill(store, make_key(), b"new")
    assert await body(store, make_key()) == b"new"


async def test_files_of_others_are_left_alone(directory: Directory) -> None:
    store = await directory.open()
    await fill(store, make_key(), b"x")
    await store.aclose()
    shard = directory.entry().parent
    odd = [
        directory.path / "notes.txt",
        directory.path / "objects" / "notes.txt",
        directory.path / "partial" / "notes.txt",
        shard / "notes.txt",
        shard / ("0" * 31),
        # The name of an entry, but of another shard.
        shard / ("0" * 32 if shard.name != "00" else "1" * 32),
        shard / "notes.meta",
    ]
    for each in odd:
        each.write_bytes(b"mine")
    store = await directory.open()
    assert await store.purge(make_key().compact(), PurgeType.INVALIDATION)
    await store.aclose()
    assert all(each.read_bytes() == b"mine" for each in odd)


async def test_an_entry_under_another_name_is_dropped(directory: Directory) -> None:
    store = await directory.open()
    await fill(store, make_key("b"), b"b")
    directory.entry(make_key("a")).parent.mkdir(exist_ok=True)
    directory.entry(make_key("b")).rename(directory.entry(make_key("a")))
    assert await store.lookup(make_key("a")) is None
    assert directory.files() == []


@pytest.mark.parametrize("restart", [False, True])
async def test_an_entry_whose_metadata_are_of_another_version_is_dropped(
    directory: Directory, restart: bool
) -> None:
    store = await directory.open()
    await fill(store, make_key(), b"x")
    (index,) = directory.indexes()
    encoded = Head(make_key(), b"metadata of tomorrow").encode()
    content = Prelude(len(encoded), 0, bytes(16)).encode(encoded) + encoded
    directory.entry().write_bytes(content)
    if restart:
        await store.aclose()
        store = await directory.open()
        assert directory.files() == []
    assert not await store.update_meta(make_key(), make_meta())
    assert await store.lookup(make_key()) is None
    assert directory.files() == []
    assert directory.indexes() == [index]


async def test_flipped_bits_never_come_out(directory: Directory) -> None:
    store = await directory.open()
    chance = random.Random(2)
    outcomes = set()
    for number in range(60):
        key = make_key(f"n{number}")
        data = chance.randbytes(chance.choice((10, BLOCK, 3 * BLOCK + 100)))
        await fill(store, key, data)
        path = directory.entry(key)
        content = bytearray(path.read_bytes())
        # Most bytes are of the body.
        at = chance.randrange(chance.choice((300, len(content)))) % len(content)
        content[at] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        found = await store.lookup(key)
        if found is None:
            outcomes.add("miss")
        else:
            got, error = await read_until_error(found[1])
            assert error is not None
            assert error.esource is ErrorSource.INTERNAL
            assert data.startswith(got)
            outcomes.add("cut")
        assert not path.exists()
    assert outcomes == {"miss", "cut"}
    assert store.statistics().entries == 0


async def test_a_range_is_checked_as_well(store: DiskStorage, directory: Directory) -> None:
    await fill(store, make_key(), LONG)
    reader = await find(store)
    content = bytearray(directory.entry().read_bytes())
    content[-60] ^= 1
    directory.entry().write_bytes(content)
    reader.seek(10, 2 * BLOCK)
    assert await rest(reader) == LONG[10 : 2 * BLOCK]
    reader.seek(3 * BLOCK + 90)
    with pytest.raises(ProxyError) as caught:
        await rest(reader)
    assert caught.value.etype == ErrorType.FileReadError
    reader.close_now()
    assert await store.lookup(make_key()) is None


@pytest.mark.parametrize("content", [b"", b"foreign", bytes(100)])
async def test_a_side_file_that_is_none_does_not_count(
    directory: Directory, content: bytes
) -> None:
    store = await directory.open()
    await fill(store, make_key(), b"x", meta=make_meta(("ETag", '"1"')))
    directory.side().write_bytes(content)
    found = await store.lookup(make_key())
    assert found is not None
    assert found[0].header.headers.get("etag") == '"1"'
    found[1].close_now()


async def test_later_metadata_do_not_stick_to_the_next_entry(directory: Directory) -> None:
    store = await directory.open()
    await fill(store, make_key(), b"old")
    assert await store.update_meta(make_key(), make_meta(("X", "later")))
    content = directory.side().read_bytes()
    await fill(store, make_key(), b"new")
    assert not directory.side().exists()
    # As if the process had died in between.
    directory.side().write_bytes(content)
    await store.aclose()
    store = await directory.open()
    found = await store.lookup(make_key())
    assert found is not None
    assert found[0] == make_meta()
    found[1].close_now()
    assert not directory.side().exists()


@pytest.mark.parametrize("keep", [0, 100, 5000])
async def test_a_damaged_index_is_made_again(directory: Directory, keep: int) -> None:
    store = await directory.open()
    for number in range(30):
        await fill(store, make_key(f"n{number}"), b"x")
    await store.aclose()
    (index,) = directory.indexes()
    index.write_bytes(index.read_bytes()[:keep] + b"damaged " * 5000)
    store = await directory.open()
    assert store.statistics().entries == 30
    assert await store.purge(make_key("n3").compact(), PurgeType.INVALIDATION)
    assert await body(store, make_key("n4")) == b"x"
    assert len(directory.indexes()) == 1


async def test_an_index_of_another_version_is_made_again(directory: Directory) -> None:
    store = await directory.open()
    await fill(store, make_key(), b"x")
    await store.aclose()
    db = sqlite3.connect(directory.indexes()[0])
    db.execute("PRAGMA user_version = 99")
    db.close()
    store = await directory.open()
    assert store.statistics().entries == 1


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE tags",
        "DELETE FROM total",
        "UPDATE entries SET name = 'x' || hex(name)",
        "UPDATE entries SET size = 'text'",
    ],
)
async def test_an_index_with_nonsense_in_it_is_made_again_while_it_is_used(
    directory: Directory, damage: str
) -> None:
    store = await directory.open(120_000)
    for number in range(9):
        await fill(store, make_key(f"n{number}"), b"x" * 10_000)
    db = sqlite3.connect(directory.indexes()[0], isolation_level=None)
    db.execute(damage)
    db.close()
    for number in range(9):
        await fill(store, make_key(f"m{number}"), b"x" * 10_000, meta=make_meta(("Cache-Tag", "t")))
    assert directory.size() == store.statistics().bytes <= 120_000
    assert await store.purge_tag("t") == 9


@pytest.mark.parametrize("boot", ["this", "another"])
async def test_an_index_is_checked_in_full_after_the_machine_was_started(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    monkeypatch.setattr(_disk_index, "_boot", lambda: "this")
    store = await directory.open()
    for number in range(30):
        await fill(store, make_key(f"n{number}"), b"x")
    page = page_of(store, "entries_used")
    await store.aclose()
    (index,) = directory.indexes()
    content = bytearray(index.read_bytes())
    # A moment in the order of use that is not that of the entry: each page is sound in itself.
    content[page * 4096 - 30] ^= 1
    index.write_bytes(content)
    monkeypatch.setattr(_disk_index, "_boot", lambda: boot)
    store = await directory.open()
    assert store.statistics().entries == 30
    assert (directory.indexes() == [index]) is (boot == "this")


def page_of(store: DiskStorage, name: str) -> int:
    """Return the number of the first page of a table or an index."""
    db = store.files.index._db
    assert db is not None
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    assert db.execute("PRAGMA page_size").fetchone() == (4096,)
    return int(page)


async def test_a_directory_that_was_emptied_is_made_again(directory: Directory) -> None:
    store = await directory.open()
    await fill(store, make_key(), LONG)
    for _ in range(2):
        subprocess.run(["rm", "-r", directory.path], check=True)  # noqa: ASYNC221 - waits for a moment alone
        assert await store.lookup(make_key()) is None
        await fill(store, make_key(), LONG)
        assert await body(store, make_key()) == LONG


# -- several processes -------------------------------------------------------------------------------


async def test_what_one_process_stored_all_find(directory: Directory) -> None:
    one, two = await directory.open(), await directory.open()
    await fill(one, make_key(), LONG, meta=make_meta(("Cache-Tag", "news")))
    assert await body(two, make_key()) == LONG
    assert await two.update_meta(make_key(), make_meta(("Cache-Tag", "sport")))
    found = await one.lookup(make_key())
    assert found is not None
    assert found[0].header.headers.get("cache-tag") == "sport"
    assert await one.purge_tag("news") == 0
    assert await one.purge_tag("sport") == 1
    assert await two.lookup(make_key()) is None
    # The reader goes on with the file that it has.
    assert await rest(found[1]) == LONG
    found[1].close_now()


async def test_what_one_process_is_writing_the_others_do_not_see(directory: Directory) -> None:
    one, two = await directory.open(), await directory.open()
    await fill(one, make_key(), b"old")
    writer = await one.get_miss_handler(make_key(), make_meta())
    await writer.write_body(LONG, True)
    assert await body(two, make_key()) == b"old"
    # Nor does one that starts now take it for a dead one's.
    three = await directory.open()
    await writer.finish()
    for each in (two, three):
        assert await body(each, make_key()) == LONG


@pytest.mark.parametrize("kind", PurgeType)
async def test_a_purge_reaches_what_other_processes_are_writing(
    directory: Directory, kind: PurgeType
) -> None:
    one, two = await directory.open(), await directory.open()
    await fill(one, make_key(), b"old")
    writer = await two.get_miss_handler(make_key(), make_meta())
    await writer.write_body(LONG, True)
    assert await one.purge(make_key().compact(), kind)
    await writer.finish()
    kept = LONG if kind is PurgeType.EVICTION else None
    assert await body(one, make_key()) == await body(two, make_key()) == kept
    # What was begun afterwards is not concerned.
    await fill(two, make_key(), b"new")
    assert await body(one, make_key()) == b"new"


async def test_a_tag_reaches_what_other_processes_are_writing(directory: Directory) -> None:
    one, two = await directory.open(), await directory.open()
    writers = [
        await two.get_miss_handler(make_key(tag), make_meta(("Cache-Tag", tag))) for tag in "ab"
    ]
    for writer in writers:
        await writer.write_body(LONG, True)
    await one.purge_tag("a")
    for writer in writers:
        await writer.finish()
    assert await body(one, make_key("a")) is None
    assert await body(one, make_key("b")) == LONG
    assert two.statistics().admissions == 1


async def test_a_reader_keeps_the_entry_that_another_process_replaces(directory: Directory) -> None:
    one, two = await directory.open(), await directory.open()
    await fill(one, make_key(), LONG)
    reader = await find(one)
    first = await reader.read_body()
    assert first is not None
    await fill(two, make_key(), b"new" * BLOCK)
    assert first + await rest(reader) == LONG
    reader.close_now()
    assert await body(one, make_key()) == b"new" * BLOCK


async def test_all_processes_keep_one_limit(directory: Directory) -> None:
    stores = [await directory.open(200_000) for _ in range(3)]
    for number in range(60):
        await fill(stores[number % 3], make_key(f"n{number}"), b"x" * 10_000)
        assert directory.size() <= 200_000
    assert directory.size() > 150_000
    await fill(stores[0], make_key(), b"")
    assert stores[0].statistics().bytes == directory.size()


async def test_a_use_is_told_to_the_others_after_a_while(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_disk, "_USES", 1)
    one, two = await directory.open(120_000), await directory.open(120_000)
    for number in range(9):
        await fill(one, make_key(f"n{number}"), b"x" * 10_000)
    await body(two, make_key("n0"))
    assert await two.lookup(make_key("none")) is None
    await fill(one, make_key("m"), b"x" * 10_000)
    assert await body(one, make_key("n0")) is not None
    assert await body(one, make_key("n1")) is None


async def test_who_finds_the_index_gone_takes_the_new_one(directory: Directory) -> None:
    one, two = await directory.open(), await directory.open()
    await fill(one, make_key("a"), b"a")
    db = sqlite3.connect(directory.indexes()[0])
    db.execute("DROP TABLE tags")
    db.close()
    await fill(two, make_key("b"), b"b")
    await fill(one, make_key("c"), b"c")
    assert len(directory.indexes()) == 1
    await fill(two, make_key("d"), b"d")
    assert two.statistics().entries == 4
    await one.aclose()
    await fill(two, make_key("e"), b"e")
    assert two.statistics().entries == 5


async def test_many_start_at_the_same_time(directory: Directory) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(directory.open)
    for number, store in enumerate(directory.stores):
        await fill(store, make_key(f"n{number}"), b"x")
    assert directory.stores[-1].statistics().entries == 5


# -- a disk that fails -----------------------------------------------------------------------------


CALLS = ("open", "write", "replace", "fstat", "lseek")


@attrs.define
class Fault:
    """Lets one of the system calls that a store makes fail, or all from that one on."""

    number: int
    error: int
    lasting: bool
    count: int = 0

    def call(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count == self.number or (self.lasting and self.count > self.number):
            raise OSError(self.error, os.strerror(self.error))
        return real(*args, **kwargs)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CALLS:
            monkeypatch.setattr(os, name, partial(self.call, getattr(os, name)))


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
async def test_a_disk_that_fails_costs_one_error_and_nothing_of_what_is_stored(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, error: int, lasting: bool
) -> None:
    store = await directory.open()
    await fill(store, make_key(), b"old")
    failures = 0
    for number in range(1, 100):
        before = descriptors()
        fault = Fault(number, error, lasting)
        with monkeypatch.context() as patch:
            fault.install(patch)
            failure = await failure_of(partial(fill, store, make_key(), LONG))
        if failure is not None:
            failures += 1
            assert failure.etype == ErrorType.FileWriteError
            assert failure.esource is ErrorSource.INTERNAL
            assert isinstance(failure.cause, OSError)
            assert failure.cause.errno == error
        assert descriptors() == before
        assert directory.files("partial/*") == []
        assert store.statistics().writing == store.statistics().reserved == 0
        if fault.count < number:
            assert await body(store, make_key()) == LONG
            break
        assert await body(store, make_key()) == b"old"
    assert failures >= 8


async def test_an_index_without_room_fails_the_writer_alone(directory: Directory) -> None:
    store = await directory.open()
    await fill(store, make_key("a"), b"a")
    db = store.files.index._db
    assert db is not None
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    many = ",".join(f"tag-number-{number}" for number in range(1000))
    with pytest.raises(ProxyError) as caught:
        await fill(store, make_key("b"), b"b", meta=make_meta(("Cache-Tag", many)))
    assert caught.value.etype == ErrorType.FileWriteError
    assert await store.lookup(make_key("b")) is None
    assert directory.files() == [directory.entry(make_key("a"))]
    assert await body(store, make_key("a")) == b"a"
    db.execute("PRAGMA max_page_count = 1000000")
    await fill(store, make_key("b"), b"b", meta=make_meta(("Cache-Tag", many)))
    assert await store.purge_tag("tag-number-7") == 1


async def test_a_reader_of_a_disk_that_fails_says_so(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await directory.open()
    await fill(store, make_key(), LONG)
    reader = await find(store)
    with monkeypatch.context() as patch:
        Fault(1, errno.EIO, lasting=True).install(patch)
        with pytest.raises(ProxyError) as caught:
            await store.lookup(make_key())
        assert caught.value.etype == ErrorType.FileOpenError
        fault = Fault(1, errno.EIO, lasting=True)
        patch.setattr(os, "pread", partial(fault.call, os.pread))
        assert await reader.read_body() == LONG[:BLOCK]
        with pytest.raises(ProxyError) as caught:
            await reader.read_body()
        assert caught.value.etype == ErrorType.FileReadError
    # It is not the entry's fault.
    assert await rest(reader) == LONG[BLOCK:]
    reader.close_now()
    assert await body(store, make_key()) == LONG


async def test_a_directory_that_cannot_be_used_is_an_error_each_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    store = DiskStorage(path / "cache", LIMIT)
    for _ in range(2):
        with pytest.raises(ProxyError) as caught:
            await store.open()
        assert caught.value.etype == ErrorType.FileOpenError
        with pytest.raises(ProxyError):
            await store.lookup(make_key())
    path.unlink()
    assert await store.lookup(make_key()) is None
    await store.aclose()


async def test_a_store_needs_some_room(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="room"):
        DiskStorage(tmp_path, 0)


# -- room ------------------------------------------------------------------------------------------


async def test_room_is_made_while_an_entry_is_written(directory: Directory) -> None:
    store = await directory.open()
    for number in range(30):
        await fill(store, make_key(f"n{number}"), b"x" * 100_000)
    writer = await store.get_miss_handler(make_key(), make_meta())
    for _ in range(50):
        await writer.write_body(b"y" * BLOCK, False)
        half = sum(each.stat().st_size for each in directory.files("partial/*"))
        assert directory.size() + half <= LIMIT
    writer.abandon()
    assert 0 < store.statistics().entries < 15


async def test_a_writer_without_room_beside_another_is_refused(directory: Directory) -> None:
    store = await directory.open()
    writers = [await store.get_miss_handler(make_key(name), make_meta()) for name in "ab"]

    async def write() -> None:
        for _ in range(60):
            for writer in writers:
                await writer.write_body(b"y" * BLOCK, False)

    failure = await failure_of(write)
    assert failure is not None
    assert failure.etype == STORAGE_FULL
    assert store.statistics().writing == 1


# -- going away ------------------------------------------------------------------------------------


class AtStep(trio.abc.Instrument):
    """Cancels before one of the steps of all tasks, and counts them."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.step = step
        self.scope = scope
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1
        if self.count == self.step:
            self.scope.cancel()


async def write_long(store: DiskStorage) -> None:
    writer = await store.get_miss_handler(make_key(), make_meta())
    try:
        reader = await find(store)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.read_body)
                await writer.write_body(LONG, True)
            await writer.finish()
        finally:
            reader.close_now()
    except BaseException:
        writer.abandon()
        raise


async def read_long(store: DiskStorage) -> None:
    assert await body(store, make_key("long")) == LONG
    assert await store.lookup(make_key("none")) is None


async def change(store: DiskStorage) -> None:
    await store.update_meta(make_key("long"), make_meta(("X", "y")))
    await store.purge(make_key("short").compact(), PurgeType.INVALIDATION)
    await store.purge_tag("tag")


@pytest.mark.parametrize("work", [write_long, read_long, change])
async def test_whoever_is_cancelled_leaves_nothing_open_or_half_done(
    directory: Directory, work: Callable[[DiskStorage], Awaitable[None]]
) -> None:
    store = await directory.open()
    cancelled = 0
    for step in range(1, 200):
        await fill(store, make_key("long"), LONG)
        before = descriptors()
        with trio.CancelScope() as scope:
            instrument = AtStep(step, scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                await work(store)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert descriptors() == before
        assert directory.files("partial/*") == []
        assert store.statistics().writing == store.statistics().reserved == 0
        assert await body(store, make_key("long")) == LONG
        written = await body(store, make_key())
        assert written in (None, LONG)
        await store.purge(make_key().compact(), PurgeType.INVALIDATION)
        cancelled += scope.cancelled_caught
        if instrument.count < step:
            break
    assert cancelled >= 3


async def in_a_thread(
    monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], Awaitable[object]]
) -> Callable[[], Awaitable[None]]:
    """Start something and wait until a thread is in a system call; return what lets it go on."""
    token = trio.lowlevel.current_trio_token()
    arrived, go_on, over = trio.Event(), threading.Event(), trio.Event()
    real = getattr(os, name)

    def held(*args: Any) -> Any:
        token.run_sync_soon(arrived.set)
        assert go_on.wait(20)
        return real(*args)

    async def run() -> None:
        try:
            await work()
        except (ProxyError, RuntimeError):
            pass
        finally:
            over.set()

    monkeypatch.setattr(os, name, held)
    trio.lowlevel.spawn_system_task(run)
    await arrived.wait()

    async def release() -> None:
        monkeypatch.undo()
        go_on.set()
        await over.wait()

    return release


async def test_a_writer_is_abandoned_while_a_thread_writes(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await directory.open()
    before = descriptors()
    for calls in range(2):
        writer = await store.get_miss_handler(make_key(), make_meta())
        for _ in range(calls):
            await writer.write_body(b"x" * BLOCK, False)
        release = await in_a_thread(monkeypatch, "write", partial(writer.write_body, LONG, True))
        writer.abandon()
        assert await store.lookup(make_key()) is None
        await release()
        assert descriptors() == before
        assert directory.files("partial/*") == []


async def test_a_writer_is_abandoned_while_a_thread_completes_it(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await directory.open()
    before = descriptors()
    for name in ("lseek", "replace"):
        writer = await store.get_miss_handler(make_key(), make_meta())
        await writer.write_body(LONG, True)
        release = await in_a_thread(monkeypatch, name, writer.finish)
        writer.abandon()
        await release()
        assert descriptors() == before
        assert await body(store, make_key()) is None
        assert directory.size() == store.statistics().bytes == 0


async def test_a_reader_is_closed_while_a_thread_reads(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await directory.open()
    await fill(store, make_key(), LONG)
    before = descriptors()
    reader = await find(store)
    await reader.read_body()
    release = await in_a_thread(monkeypatch, "pread", reader.read_body)
    reader.close_now()
    # The thread's descriptor is not given to anybody else before it is done.
    assert descriptors() == before + 1
    await release()
    assert descriptors() == before
    with pytest.raises(RuntimeError, match="closed"):
        await reader.read_body()


async def test_nothing_that_may_block_is_done_by_the_event_loop(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = threading.current_thread()
    blocking: set[str] = set()

    def checked(name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is loop:
            blocking.add(name)
        return real(*args, **kwargs)

    names = ("open", "write", "pread", "replace", "unlink", "fstat", "fsync", "listdir", "scandir")
    for name in (*names, "mkdir", "lseek"):
        monkeypatch.setattr(os, name, partial(checked, name, getattr(os, name)))
    monkeypatch.setattr(sqlite3, "connect", partial(checked, "connect", sqlite3.connect))
    transaction = _disk_index.DiskIndex._transaction
    check = partial(checked, "transaction")
    monkeypatch.setattr(
        _disk_index.DiskIndex, "_transaction", lambda index: check(transaction, index)
    )
    store = await directory.open(fsync=True)
    await write_long(store)
    assert await body(store, make_key()) == LONG
    reader = await find(store)
    reader.seek(2 * BLOCK)
    await rest(reader)
    reader.close_now()
    await change(store)
    await store.purge(make_key().compact(), PurgeType.EVICTION)
    writer = await store.get_miss_handler(make_key(), make_meta())
    await writer.write_body(b"short", False)
    writer.abandon()
    await store.aclose()
    monkeypatch.undo()
    assert blocking == set()


async def test_long_files_are_let_go_of_in_threads(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_disk, "_LONG", BLOCK)
    store = await directory.open()
    before = descriptors()
    await fill(store, make_key("a"), LONG)
    reader = await find(store, make_key("a"))
    writer = await store.get_miss_handler(make_key("b"), make_meta())
    await writer.write_body(LONG, False)
    assert len(directory.files("partial/*")) == 1
    reader.close_now()
    writer.abandon()
    await store.files.settle()
    assert descriptors() == before
    assert directory.files("partial/*") == []


async def test_closing_a_store_abandons_what_is_being_written(directory: Directory) -> None:
    store = await directory.open()
    writer = await store.get_miss_handler(make_key(), make_meta())
    await writer.write_body(LONG, False)
    reader = await find(store)
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.aclose()
    assert directory.files("partial/*") == []
    with pytest.raises(ProxyError):
        await rest(reader)
    reader.close_now()
    store = await directory.open()
    assert await store.lookup(make_key()) is None


async def test_a_store_serves_one_run_of_trio_after_another(tmp_path: Path) -> None:
    store = DiskStorage(tmp_path / "cache", LIMIT)
    before = descriptors()

    def run(work: Callable[[], Awaitable[object]]) -> object:
        return trio.run(work)

    fill_it = partial(fill, store, make_key(), LONG)
    await trio.to_thread.run_sync(run, fill_it)
    assert await trio.to_thread.run_sync(run, partial(body, store, make_key())) == LONG
    await store.aclose()
    assert descriptors() == before


# -- much ------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_memory_stays_flat_for_a_large_entry(directory: Directory) -> None:
    size = 24 * 2**20
    store = await directory.open(2 * size, max_object_bytes=size)
    piece = bytes(50_000)
    writer = await store.get_miss_handler(make_key(), make_meta())
    await writer.write_body(piece, False)
    reader = await find(store)
    read = 0

    async def follow() -> None:
        nonlocal read
        while (part := await reader.read_body()) is not None:
            read += len(part)

    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for left in range(size - len(piece), 0, -len(piece)):
                await writer.write_body(piece[:left], False)
            await writer.write_body(b"", True)
            await writer.finish()
        assert read == size
        reader.seek(size - 10)
        assert await rest(reader) == bytes(10)
        reader.seek(0)
        read = 0
        await follow()
        assert read == size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    reader.close_now()
    assert peak < 2**20


@pytest.mark.slow
async def test_processes_killed_while_they_fill_leave_nothing_wrong() -> None:
    result = await trio.run_process(
        [sys.executable, "-m", "tests.cache.kill_disk", "--rounds", "10"],
        cwd=Path(__file__).parents[2],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    killed = re.match(rb"([0-9]+) processes killed", result.stdout)
    assert killed is not None
    assert int(killed[1]) >= 3
