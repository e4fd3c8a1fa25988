"""The cache on disk: a directory bounded by bytes, that several processes may share.

What is served is decided by the entry's own file, see `_disk_format`; the index, see `_disk_index`,
only says what goes first when room is needed, and who has which tag.

An entry is written aside and renamed into place when it is whole, so there is never a half one, at
whatever moment the process dies. Whoever reads holds the file open, and reads on when it is
replaced, purged or evicted, here or in another process. Nothing is read that is not checked: the
head and the length when the entry is looked up, each block before it is handed out. What does not
pass is removed; a small entry is then a miss, a reader in the midst of a large one fails.

By default nothing waits for the medium. A process that is killed loses nothing but what it was
writing; a power cut may damage the newest entries, and the checks find that.

Bodies of up to one block stay in memory until they are finished: they cost one visit to a thread
when they are written and one when they are read. Longer ones pass block by block, and can be read
while they are written by this process: what is in the file from there, the rest from the writer's
buffer.

Only file operations that may wait are done in threads, no more than `_THREADS` at a time, and they
are not abandoned: a thread that goes on with a descriptor that somebody else closed would read or
write another file. So a cancelled task may have to wait for one block.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import trio

from .._clock import wall_time
from .._errors import ErrorSource, ErrorType, ProxyError
from .._util import Bell
from ._disk_files import Layout, PartialFile, open_entry, read_block, remove
from ._disk_format import (
    BLOCK,
    GENERATION,
    MAX_HEAD,
    PRELUDE,
    BadFileError,
    Head,
    file_size,
    occupied,
)
from ._disk_index import DiskIndex, Outcome, Row, resource_of
from ._meta import CacheMeta
from ._storage import (
    Created,
    HitHandler,
    MissHandler,
    PurgeType,
    Storage,
    StorageStatistics,
    cache_tags,
    declared_size,
    fold_tag,
    incomplete,
    storage_full,
    too_large,
)

if TYPE_CHECKING:
    import io

    from ._key import CacheKey, CompactKey

#: Seconds that closing may take, cancelled or not: threads at work are waited for.
CLOSE_TIME = 10.0

T = TypeVar("T")

# File operations at the same time.
_THREADS: Final = 8
# Room for an entry that is being written is made in steps of this many bytes.
_STEP: Final = 4 << 20
# Letting go of a longer file may take the file system a while.
_LONG: Final = 16 << 20
# Uses that are written into the index at a time, and how long they may wait for it, in seconds.
_USES: Final = 256
_USES_AFTER: Final = 30.0


class _Body:
    """One entry's body: a file, and behind it what its writer holds in memory.

    It stays open as long as anybody holds it; a thread at work on the file does.
    """

    __slots__ = (
        "body_at",
        "cached",
        "failure",
        "file",
        "flushed",
        "generation",
        "holders",
        "parked",
        "store",
        "tail",
        "total",
    )

    def __init__(self, store: _Files, generation: bytes, body_at: int = 0) -> None:
        self.store = store
        self.generation = generation
        #: Where the first block begins.
        self.body_at = body_at
        self.file: io.FileIO | None = None
        #: Bytes that are in the file, whole blocks until it is complete.
        self.flushed = 0
        self.tail = bytearray()
        #: The length, once it is known.
        self.total: int | None = None
        self.failure: Callable[[], ProxyError] | None = None
        #: The first block, where the look-up brought it.
        self.cached: memoryview | None = None
        self.parked: dict[Bell, None] = {}
        self.holders = 1

    def hold(self) -> None:
        self.holders += 1

    def release(self) -> None:
        self.holders -= 1
        if not self.holders and self.file is not None:
            file, self.file = self.file, None
            self.store.dispose(file.close, self.flushed)

    def wake(self) -> None:
        if self.parked:
            parked, self.parked = self.parked, {}
            for bell in parked:
                bell.ring()

    async def read(self, at: int, bell: Bell) -> bytes | memoryview | None:
        """Return bytes from a place on, at most a block; None at the end."""
        while True:
            if self.failure is not None:
                raise self.failure()
            if at < self.flushed:
                return await self._read_block(at)
            if at - self.flushed < len(self.tail):
                start = at - self.flushed
                return bytes(memoryview(self.tail)[start : start + BLOCK])
            if self.total is not None:
                return None
            self.parked[bell] = None
            await bell.wait()

    async def _read_block(self, at: int) -> memoryview:
        index, skip = divmod(at, BLOCK)
        if index == 0 and self.cached is not None:
            return self.cached[skip:]
        file = self.file
        assert file is not None
        self.hold()
        try:
            block = await self.store.work(
                partial(read_block, file.fileno(), self.body_at, self.generation, index)
            )
        finally:
            self.release()
        return block[skip:]


class _Writing:
    """An entry that is being written."""

    __slots__ = (
        "begun",
        "body",
        "encoded_meta",
        "handler",
        "head",
        "hidden",
        "name",
        "number",
        "reserved",
        "resource",
        "tags",
    )

    def __init__(self, key: CacheKey, number: int, meta: CacheMeta, body: _Body) -> None:
        self.name = key.combined_hash
        self.resource = resource_of(key)
        self.number = number
        self.begun = wall_time()
        # Whoever looks it up gets metadata of its own, and the writer's may change.
        self.encoded_meta = meta.to_bytes()
        self.head = Head(key, self.encoded_meta).encode()
        self.tags = cache_tags(meta)
        body.body_at = PRELUDE + len(self.head)
        self.body = body
        #: Bytes for which room was made.
        self.reserved = 0
        #: Whether it was purged: it is not found, and not kept.
        self.hidden = False
        #: Its writer; not held, so that one that is forgotten is noticed.
        self.handler: Callable[[], DiskMissHandler | None] = lambda: None


class _Files:
    """The threads and the counters that a store shares with its readers and writers."""

    def __init__(self, layout: Layout, *, fsync: bool) -> None:
        self.layout = layout
        self.index = DiskIndex(layout, fsync=fsync)
        self.fsync = fsync
        self.limiter = trio.CapacityLimiter(_THREADS)
        # SQLite's connection is for one at a time, and those who wait take no thread.
        self.index_limiter = trio.CapacityLimiter(1)
        self.token: trio.lowlevel.TrioToken | None = None
        self.disposing = 0
        self.disposed = trio.lowlevel.ParkingLot()

    async def work(self, call: Callable[[], T]) -> T:
        """Do something with a file in a thread."""
        return await trio.to_thread.run_sync(call, limiter=self.limiter)

    async def ask(self, call: Callable[[], T]) -> T:
        """Do something with the index in a thread."""
        return await trio.to_thread.run_sync(call, limiter=self.index_limiter)

    def dispose(self, call: Callable[[], object], size: int) -> None:
        """Let go of a file of this size; a long one is let go of in a thread."""
        if size < _LONG or not trio.lowlevel.in_trio_run():
            _quietly(call)
            return
        token = trio.lowlevel.current_trio_token()

        def deliver(_outcome: object) -> None:
            try:
                token.run_sync_soon(self._disposed)
            except trio.RunFinishedError:
                pass

        self.disposing += 1
        trio.lowlevel.start_thread_soon(partial(_quietly, call), deliver, "cache file")

    def _disposed(self) -> None:
        self.disposing -= 1
        self.disposed.unpark_all()

    async def settle(self) -> None:
        """Wait until every file that was let go of is gone."""
        while self.disposing:
            await self.disposed.park()

    def later(self, action: Callable[[], None]) -> None:
        """Do what was forgotten; the garbage collector may call from anywhere."""
        if self.token is not None:
            try:
                self.token.run_sync_soon(action)
            except trio.RunFinishedError:
                pass
            else:
                return
        action()


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError:
        pass  # what cannot be removed now is found by the next sweep


class DiskHitHandler(HitHandler):
    """Reads an entry of a `DiskStorage`; it can seek, also while the entry is being written."""

    __slots__ = ("_at", "_bell", "_body", "_end", "_on_damage")

    def __init__(self, body: _Body, on_damage: Callable[[], Awaitable[None]]) -> None:
        # The caller has counted this reader among those who hold the body.
        self._body: _Body | None = body
        self._at = 0
        self._end: int | None = None
        self._bell = Bell()
        self._on_damage = on_damage

    @property
    def generation(self) -> bytes:
        """What tells this entry from every other one that its key has had."""
        return self._open().generation

    def _open(self) -> _Body:
        if self._body is None:
            raise RuntimeError("this reader of a cache entry was closed")
        return self._body

    @property
    def size(self) -> int | None:
        """The length of the whole body, or None while it is being written."""
        return self._open().total

    async def read_body(self) -> bytes | None:
        """Return the next piece, or None; it is checked before it is returned.

        Raises:
          ProxyError: the writer failed, or the file is damaged (it is removed then) or cannot be
            read; of internal source.
          trio.Cancelled: nothing is lost.
        """
        body = self._open()
        if self._end is not None and self._at >= self._end:
            return None
        try:
            data = await body.read(self._at, self._bell)
        except BadFileError as error:
            await self._on_damage()
            raise _failed(ErrorType.FileReadError, "a damaged cache entry", error) from error
        except OSError as error:
            raise _failed(ErrorType.FileReadError, "cannot read a cache entry", error) from error
        if data is None:
            if self._end is not None:
                raise incomplete()  # a range was asked for before the size was known
            return None
        if self._end is not None:
            data = data[: self._end - self._at]
        self._at += len(data)
        return bytes(data)

    def can_seek(self) -> bool:
        """Tell that it can."""
        return True

    def seek(self, start: int, end: int | None = None) -> None:
        """Go on with the bytes from ``start`` to before ``end`` (or the end of the body)."""
        size = self._open().total
        last = start if end is None else end
        if not 0 <= start <= last or (size is not None and last > size):
            raise ValueError(f"no bytes {start} to {end} in a body of {size}")
        self._at = start
        self._end = end

    def close_now(self) -> None:
        """Let go of the entry, at any time and any number of times."""
        body, self._body = self._body, None
        if body is not None:
            body.release()

    def __del__(self) -> None:
        body = self._body
        if body is not None:
            body.store.later(body.release)


class DiskMissHandler(MissHandler):
    """Writes an entry of a `DiskStorage`."""

    __slots__ = (
        "__weakref__",
        "_busy",
        "_closed",
        "_ended",
        "_file",
        "_over",
        "_store",
        "_writing",
    )

    def __init__(self, store: DiskStorage, writing: _Writing) -> None:
        self._store = store
        self._writing = writing
        self._file: PartialFile | None = None
        #: Whether a thread is at work on the file.
        self._busy = False
        self._ended = False
        #: Whether it was finished or abandoned, and whether by the store, as that was closed.
        self._over = False
        self._closed = False
        writing.handler = weakref.ref(self)

    def _check(self) -> None:
        if self._closed:
            raise incomplete()
        if self._over:
            raise RuntimeError("this writer of a cache entry was finished or abandoned")

    async def write_body(self, data: bytes, end: bool) -> None:
        """Add a piece of the body; ``end`` says that it is the last one (it may be empty).

        Raises:
          ProxyError: the entry is too large, there is no room for it, or the disk failed (full, not
            writable, broken: ``FileWriteError``); of internal source. It is abandoned then.
          trio.Cancelled: it is abandoned.
        """
        self._check()
        if self._ended:
            raise RuntimeError("the body has ended")
        body = self._writing.body
        size = body.flushed + len(body.tail) + len(data)
        try:
            if size > self._store.max_object_bytes:
                raise too_large(self._store.max_object_bytes)
            view = memoryview(data)
            while view:
                room = BLOCK - len(body.tail)
                body.tail += view[:room]
                view = view[room:]
                body.wake()
                if len(body.tail) == BLOCK:
                    await self._flush()
        except BaseException as error:
            self._fail(error)
            raise
        self._ended = end

    async def _flush(self) -> None:
        """Write the block that is full."""
        writing, body = self._writing, self._writing.body
        size = file_size(len(writing.head), body.flushed + BLOCK)
        if size > writing.reserved:
            await self._store.make_room_for(writing, size)
            if self._over:
                raise incomplete()
        await self._work(partial(self._append, body.tail))
        body.flushed += BLOCK
        body.tail = bytearray()

    async def _work(self, call: Callable[[], T]) -> T:
        """Do something with the file in a thread.

        Raises:
          ProxyError: it failed, or the entry was abandoned meanwhile.
        """
        self._busy = True
        try:
            result = await self._store.files.work(call)
        except OSError as error:
            raise _failed(ErrorType.FileWriteError, "cannot store a response", error) from error
        finally:
            self._busy = False
            body = self._writing.body
            if self._file is not None and body.file is None:
                body.file = self._file.file
            if self._over:
                self._discard()
        if self._over:
            raise incomplete()
        return result

    def _append(self, data: bytearray) -> None:
        if self._file is None:
            writing = self._writing
            layout = self._store.files.layout
            self._file = PartialFile(layout, writing.head, writing.body.generation)
        if data:
            self._file.append(data)

    def _complete(self, data: bytearray, size: int) -> int:
        """Write what is left, and the prelude; return when the file was last modified."""
        self._append(data)
        assert self._file is not None
        return self._file.complete(size, fsync=self._store.files.fsync)

    async def finish(self) -> Created:
        """Make the entry visible and let its readers see its end.

        Raises:
          ProxyError: the disk failed, or there is no room; nothing became visible.
          trio.Cancelled: the same, unless the entry was visible already.
        """
        self._check()
        if not self._ended:
            self.abandon()
            raise RuntimeError("the body has not ended: the last write_body has end=True")
        writing, body = self._writing, self._writing.body
        size = body.flushed + len(body.tail)
        try:
            modified = await self._work(partial(self._complete, body.tail, size))
            assert self._file is not None
            length = file_size(len(writing.head), size)
            row = Row(writing.name, length, modified, writing.tags, writing.resource)
            await self._store.publish(writing, self._file.path, row)
        except BaseException as error:
            self._fail(error)
            raise
        if not self._over:
            self._over = True
            body.flushed, body.tail, body.total = size, bytearray(), size
            body.wake()
            body.release()
        return Created(occupied(length))

    def abandon(self) -> None:
        """Drop what was written: nothing becomes visible, readers fail (row C-05)."""
        self._fail(None)

    def close(self) -> None:
        """Abandon it, as the store is closed: its writer finds that out as an error."""
        self._closed = not self._over
        self._fail(None)

    def _fail(self, error: BaseException | None) -> None:
        if self._over:
            return
        self._over = True
        oversize = isinstance(error, ProxyError) and error.etype == ErrorType.ResponseTooLarge
        limit = self._store.max_object_bytes
        body = self._writing.body
        body.failure = partial(too_large, limit) if oversize else incomplete
        body.tail = bytearray()
        body.wake()
        self._store.forget(self._writing)
        if not self._busy:
            self._discard()

    def _discard(self) -> None:
        """Remove the file, if it has come to one."""
        body = self._writing.body
        # Closed first, as some systems do not remove what is open.
        body.release()
        if self._file is not None:
            self._store.files.dispose(partial(remove, self._file.path), body.flushed)
            self._file = None

    def streaming_write_tag(self) -> bytes:
        """Return the name for `Storage.lookup_streaming_write`."""
        return self._writing.body.generation

    def __del__(self) -> None:
        if not self._over:
            self._store.files.later(self.abandon)


class DiskStorage(Storage):
    """A store in a directory, for production use.

    It survives restarts and is safe against a kill at any moment. Several processes may use one
    directory, each with an object of its own (made after a fork, or at least not used before it):
    what one has finished, all see, and a purge reaches what any of them is writing. They keep one
    limit together, and share the order of use, which they tell each other some seconds late. What
    they are writing counts for each alone.

    Entries can be read while they are written, by readers of the same process. Several writers of
    one key may be under way: the one begun last is what look-ups find and what is kept in the end.

    Args:
      directory: Where; made if it is not there. Files in it that are not the store's are left
        alone. It has to be on a local file system: SQLite needs its locks.
      max_bytes: The limit of all files together, counted in the 4 KiB that file systems give room
        in, the index excepted. What is evicted while it is read takes its room until that ends.
      max_object_bytes: The longest body that is kept (row C-09), a quarter of the limit where it is
        None.
      fsync: Whether an entry is on the medium before it is visible. Without it, a power cut may
        damage the newest entries; they are found out by their checksums, and not served.
    """

    supports_streaming_partial_write: ClassVar[bool] = hasattr(os, "pread")

    def __init__(
        self,
        directory: str | os.PathLike[str],
        max_bytes: int,
        *,
        max_object_bytes: int | None = None,
        fsync: bool = False,
    ) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes is {max_bytes}: a store needs some room")
        self.max_bytes = max_bytes
        self.max_object_bytes = max_bytes // 4 if max_object_bytes is None else max_object_bytes
        self.files = _Files(Layout(_absolute(directory)), fsync=fsync)
        self._opening = trio.Lock()
        self._ready = False
        self._closed = False
        self._numbers = count(1)
        # What is being written, by name, in the order of the numbers; and what of each name was
        # kept, as long as something of that name is being written.
        self._writing: dict[bytes, list[_Writing]] = {}
        self._kept: dict[bytes, int] = {}
        self._reserved = 0
        self._uses_written = 0.0
        self._hits = self._misses = self._admissions = 0
        self._abandoned = self._purges = 0

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return self.files.layout.root

    # -- opening and closing -----------------------------------------------------------------------

    async def open(self) -> None:
        """Make the directory, remove what dead processes left there, and bring the index up to it.

        No body is read. Every other method does this first if it was not done; a server does it at
        start, to learn early that it cannot.

        Raises:
          ProxyError: that failed (``FileOpenError``).
        """
        if not self._ready:
            async with self._opening:
                await self._open()

    async def _open(self) -> None:
        if not self._ready and not self._closed:
            self.files.token = trio.lowlevel.current_trio_token()
            opening = partial(self.files.index.open, self.max_bytes)
            await self._ask(opening, ErrorType.FileOpenError)
            self._uses_written = trio.current_time()
            self._ready = True

    async def aclose(self) -> None:
        """Close the store: what is being written is abandoned, what is being read is read on.

        The files stay. It finishes also when it is cancelled, within ten seconds.
        """
        if self._closed:
            return
        self._closed = True
        for each in self._all_writing():
            handler = each.handler()
            if handler is not None:
                handler.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIME):
            await self.files.settle()
            async with self._opening:
                await self.files.ask(self.files.index.close)

    # -- reading -----------------------------------------------------------------------------------

    async def lookup(self, key: CacheKey) -> tuple[CacheMeta, DiskHitHandler] | None:
        """Return what is stored under exactly this key (primary and variance), or None.

        Raises:
          ProxyError: the directory or the file cannot be opened or read. A file that is torn or
            foreign is removed, and is as good as none.
          trio.Cancelled: nothing is left open.
        """
        if self._closed:
            return None
        await self.open()
        await self._write_uses()
        name = key.combined_hash
        newest = self._newest(name)
        if newest is not None:
            self._hits += 1
            return self._partial(newest)
        found = await self._complete(key)
        if found is None:
            self._misses += 1
            return None
        self._hits += 1
        self.files.index.touch(name)
        return found

    async def lookup_streaming_write(
        self, key: CacheKey, tag: bytes
    ) -> tuple[CacheMeta, DiskHitHandler] | None:
        """Return the entry of one writer: while it writes, and as long as it is the one kept."""
        if self._closed:
            return None
        await self.open()
        for each in self._writing.get(key.combined_hash, ()):
            if each.body.generation == tag:
                return self._partial(each)
        found = await self._complete(key)
        if found is not None and found[1].generation != tag:
            found[1].close_now()
            return None
        return found

    def _partial(self, writing: _Writing) -> tuple[CacheMeta, DiskHitHandler]:
        writing.body.hold()
        meta = CacheMeta.from_bytes(writing.encoded_meta)
        return meta, self._reader(writing.name, writing.body)

    def _reader(self, name: bytes, body: _Body) -> DiskHitHandler:
        remove_it = partial(self.files.index.remove, name, body.generation)

        async def on_damage() -> None:
            await self._ask(remove_it)

        return DiskHitHandler(body, on_damage)

    async def _complete(self, key: CacheKey) -> tuple[CacheMeta, DiskHitHandler] | None:
        """Look a complete entry up: one visit to a thread, which brings its first block as well."""
        files, name = self.files, key.combined_hash
        try:
            loaded = await files.work(partial(_load, files, files.layout.entry(name), name))
        except BadFileError:
            await self._ask(partial(files.index.remove_bad, name))
            return None
        except OSError as error:
            raise _failed(ErrorType.FileOpenError, "cannot open a cache entry", error) from error
        if loaded is None:
            return None
        meta, body = loaded
        return meta, self._reader(name, body)

    async def _write_uses(self) -> None:
        """Tell the index, and so the other processes, what was used, now and then."""
        untold = self.files.index.untold
        if untold >= _USES or (untold and trio.current_time() > self._uses_written + _USES_AFTER):
            self._uses_written = trio.current_time()
            await self._ask(self.files.index.flush)

    # -- writing -----------------------------------------------------------------------------------

    async def get_miss_handler(self, key: CacheKey, meta: CacheMeta) -> DiskMissHandler:
        """Begin an entry; nothing is on the disk before its first block is full.

        Raises:
          ProxyError: it is larger than the store takes, as its Content-Length says, or its head is
            (``ResponseTooLarge``), or the directory cannot be used, or the store is closed.
        """
        await self.open()
        if self._closed:
            raise _failed(ErrorType.FileCreateError, "the cache is closed", None)
        declared = declared_size(meta)
        if declared is not None and declared > self.max_object_bytes:
            raise too_large(self.max_object_bytes)
        try:
            body = _Body(self.files, os.urandom(GENERATION))
            writing = _Writing(key, next(self._numbers), meta, body)
        except ValueError:
            raise too_large(MAX_HEAD) from None
        self._writing.setdefault(writing.name, []).append(writing)
        return DiskMissHandler(self, writing)

    def _newest(self, name: bytes) -> _Writing | None:
        """Return what look-ups find of what is being written."""
        kept = self._kept.get(name, 0)
        for each in reversed(self._writing.get(name, ())):
            if each.number > kept and not each.hidden:
                return each
        return None

    def _all_writing(self) -> list[_Writing]:
        return [each for group in self._writing.values() for each in group]

    async def make_room_for(self, writing: _Writing, size: int) -> None:
        """Set bytes aside for an entry that has grown to this size; for its writer.

        Raises:
          ProxyError: there are none.
        """
        step = min(_STEP, max(BLOCK, self.max_bytes // 64))
        more = max(size, writing.reserved + step) - writing.reserved
        writing.reserved += more
        self._reserved += more
        limit = self.max_bytes - self._reserved
        if limit < 0 or not await self._ask(partial(self.files.index.make_room, limit)):
            raise storage_full()

    async def publish(self, writing: _Writing, path: str, row: Row) -> None:
        """Put a finished file in its place, unless it was purged or outrun; for its writer.

        Raises:
          ProxyError: there is no room, or the disk failed.
        """
        name = writing.name
        if writing.hidden or writing.number < self._kept.get(name, 0):
            await self.files.work(partial(remove, path))
        else:
            # Set before anything is waited for: who finishes meanwhile compares with it.
            self._kept[name] = writing.number
            limit = self.max_bytes - self._reserved + writing.reserved
            publish = partial(self.files.index.publish, path, row, limit, writing.begun)
            outcome = await self._ask(publish)
            if outcome is Outcome.NO_ROOM:
                raise storage_full()
            self._admissions += outcome is Outcome.KEPT
        self._drop(writing)

    def forget(self, writing: _Writing) -> None:
        """Count an entry that came to nothing; for its writer."""
        if self._drop(writing):
            self._abandoned += 1

    def _drop(self, writing: _Writing) -> bool:
        group = self._writing.get(writing.name, [])
        if writing not in group:
            return False
        group.remove(writing)
        self._reserved -= writing.reserved
        if not group:
            del self._writing[writing.name]
            self._kept.pop(writing.name, None)
        return True

    # -- changing ----------------------------------------------------------------------------------

    async def purge(self, key: CompactKey, kind: PurgeType) -> bool:
        """Remove one entry and tell whether there was one; variants are entries of their own."""
        if self._closed:
            return False
        await self.open()
        name = key.combined_hash
        hidden = 0
        invalidate = kind is PurgeType.INVALIDATION
        if invalidate:
            hidden = _hide(self._writing.get(name, ()))
        removed: bool = await self._ask(
            partial(self.files.index.remove, name, invalidate=invalidate)
        )
        if invalidate:
            self._purges += hidden + removed
        else:
            self.files.index.evictions += removed
        return hidden > 0 or removed

    async def purge_tag(self, tag: str) -> int:
        """Invalidate every entry with this cache tag and return their number."""
        if self._closed:
            return 0
        await self.open()
        tag = fold_tag(tag)
        hidden = _hide(each for each in self._all_writing() if tag in each.tags)
        removed = await self._ask(partial(self.files.index.remove_tag, tag))
        self._purges += hidden + removed
        return hidden + removed

    async def update_meta(self, key: CacheKey, meta: CacheMeta) -> bool:
        """Replace the metadata of a complete entry and tell whether it was there.

        They go into a small file beside it, which is exchanged as a whole.
        """
        if self._closed:
            return False
        await self.open()
        limit = self.max_bytes - self._reserved
        update = partial(self.files.index.update_meta, key.combined_hash, meta, limit)
        try:
            return await self._ask(update)
        except ValueError:
            raise too_large(MAX_HEAD) from None

    def statistics(self) -> StorageStatistics:
        """Return the counters.

        Entries and bytes are those of all processes, when this one last looked at the index; the
        rest is what this process did.
        """
        index = self.files.index
        return StorageStatistics(
            entries=index.entries,
            bytes=index.bytes,
            writing=len(self._all_writing()),
            reserved=self._reserved,
            hits=self._hits,
            misses=self._misses,
            admissions=self._admissions,
            abandoned=self._abandoned,
            evictions=index.evictions,
            purges=self._purges,
        )

    async def _ask(self, call: Callable[[], T], etype: ErrorType = ErrorType.FileWriteError) -> T:
        """Ask the index something."""
        try:
            return await self.files.ask(call)
        except (OSError, sqlite3.Error) as error:
            raise _failed(etype, f"the cache in {self.directory} failed", error) from error


def _load(files: _Files, path: str, name: bytes) -> tuple[CacheMeta, _Body] | None:
    """Open a complete entry; in a thread."""
    entry = open_entry(path)
    if entry is None:
        return None
    try:
        first = entry.check(name)
        meta = entry.decoded_meta()
        body = _Body(files, entry.prelude.generation, entry.prelude.body_at)
        body.file = entry.file
        body.total = body.flushed = entry.prelude.body_size
        body.cached = first
    except BaseException:
        entry.file.close()
        raise
    return meta, body


def _hide(group: Iterable[_Writing]) -> int:
    """Let entries under way be neither found nor kept, and count them."""
    visible = [each for each in group if not each.hidden]
    for each in visible:
        each.hidden = True
    return len(visible)


def _absolute(directory: str | os.PathLike[str]) -> Path:
    # The working directory may be another one later.
    return Path(os.path.abspath(directory))


def _failed(etype: ErrorType, context: str, cause: BaseException | None) -> ProxyError:
    return ProxyError(etype, ErrorSource.INTERNAL, context=context, cause=cause)
