"""The cache in memory: bounded by bytes, and readable while it is written.

Everything that the store keeps alive counts against its one limit: complete entries, which the
eviction manager holds, and what the manager has set aside for it, that is entries being written and
entries that are gone but still being read. So neither a slow reader nor a flood of writers makes it
grow beyond the limit: a writer for which there is no room is abandoned.

All of it happens in one thread and without waiting, except where a reader has caught up with its
writer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Final

import attrs
import trio

from .._errors import ProxyError
from .._util import Bell
from ._eviction import EvictionManager, LruEviction, slot_of
from ._storage import (
    MAX_PIECE,
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
    from ._key import CacheKey, CompactKey
    from ._meta import CacheMeta

# What Python needs beside the bytes that are counted, measured on CPython 3.11 to 3.13.
_ENTRY_OVERHEAD: Final = 1500
_PIECE_OVERHEAD: Final = 96
_FIELD_OVERHEAD: Final = 200
_TAG_OVERHEAD: Final = 350


def _meta_weight(meta: CacheMeta, tags: frozenset[str]) -> int:
    weight = sum(2 * len(tag) + _TAG_OVERHEAD for tag in tags)
    for name, value in meta.header.headers.raw:
        weight += 2 * len(name) + len(value) + _FIELD_OVERHEAD
    for key, extension in meta.extensions.items():
        weight += len(key) + len(extension) + _FIELD_OVERHEAD
    return weight


def _own(meta: CacheMeta) -> CacheMeta:
    """Return a copy that whoever handed it in cannot change."""
    return attrs.evolve(meta, header=meta.header.copy(), extensions=dict(meta.extensions))


class _Entry:
    """One response: what is there of its body, and who waits for more."""

    __slots__ = (
        "complete",
        "ends",
        "failure",
        "key",
        "lingering",
        "meta",
        "number",
        "parked",
        "pieces",
        "readers",
        "size",
        "slot",
        "tags",
        "weight",
    )

    def __init__(self, key: CompactKey, meta: CacheMeta, number: int) -> None:
        self.key = key
        self.slot = slot_of(key.primary_hash, key.variance)
        self.meta = meta
        #: Later ones have higher numbers.
        self.number = number
        self.tags = cache_tags(meta)
        self.pieces: list[bytes] = []
        #: Where each piece ends, for seeking.
        self.ends: list[int] = []
        self.size = 0
        self.weight = _ENTRY_OVERHEAD + len(self.slot) + len(key.user_tag)
        self.weight += _meta_weight(meta, self.tags)
        self.complete = False
        self.failure: Callable[[], ProxyError] | None = None
        self.readers = 0
        #: Whether it is complete and gone, its weight set aside for those who read it.
        self.lingering = False
        self.parked: dict[Bell, None] = {}

    def set_meta(self, meta: CacheMeta) -> int:
        """Change the metadata; return what that adds to the weight."""
        before = _meta_weight(self.meta, self.tags)
        self.meta = meta
        self.tags = cache_tags(meta)
        delta = _meta_weight(meta, self.tags) - before
        self.weight += delta
        return delta

    def append(self, data: bytes) -> None:
        if len(data) <= MAX_PIECE:
            self._add(data)
        else:
            view = memoryview(data)
            for start in range(0, len(data), MAX_PIECE):
                self._add(bytes(view[start : start + MAX_PIECE]))
        self.wake()

    def _add(self, piece: bytes) -> None:
        self.size += len(piece)
        self.pieces.append(piece)
        self.ends.append(self.size)

    def wake(self) -> None:
        if self.parked:
            parked, self.parked = self.parked, {}
            for bell in parked:
                bell.ring()


class _Shelf:
    """What is kept and what is being written, and the room for it."""

    def __init__(self, eviction: EvictionManager, max_object: int) -> None:
        self.eviction = eviction
        self.limit = eviction.limit_bytes
        self.max_object = max_object
        self.entries: dict[bytes, _Entry] = {}
        # What is being written: by number, and as far as look-ups find it, by slot in the order of
        # the numbers.
        self.writing: dict[int, _Entry] = {}
        self.partial: dict[bytes, list[_Entry]] = {}
        self.tags: dict[str, dict[_Entry, None]] = {}
        # Bytes of entries that evicting would not free, as they are being read.
        self.pinned = 0
        self.numbers = count(1)
        self.token: trio.lowlevel.TrioToken | None = None
        self.closed = False
        self.hits = self.misses = self.admissions = 0
        self.abandoned = self.evictions = self.purges = 0

    # -- readers -----------------------------------------------------------------------------------

    def enter(self, entry: _Entry) -> None:
        """Count one more reader."""
        entry.readers += 1
        if entry.readers == 1 and entry.complete and not entry.lingering:
            self.pinned += entry.weight

    def leave(self, entry: _Entry) -> None:
        """Let one reader go."""
        entry.readers -= 1
        if entry.readers or not entry.complete:
            return
        if entry.lingering:
            entry.lingering = False
            self.eviction.reserve(-entry.weight)
        else:
            self.pinned -= entry.weight

    # -- writers -----------------------------------------------------------------------------------

    def begin(self, entry: _Entry) -> None:
        """Let an entry be written, and be found while it is."""
        self.token = trio.lowlevel.current_trio_token()
        if self.closed or not self._take(entry.weight):
            raise storage_full()
        self.writing[entry.number] = entry
        self.partial.setdefault(entry.slot, []).append(entry)

    def grow(self, entry: _Entry, data: bytes) -> ProxyError | None:
        """Add to an entry; return the error that it was abandoned for."""
        size = len(data)
        weight = size + _PIECE_OVERHEAD * (1 + (size - 1) // MAX_PIECE)
        failure: Callable[[], ProxyError]
        if entry.size + size > self.max_object:
            failure = partial(too_large, self.max_object)
        elif not self._take(weight):
            failure = storage_full
        else:
            entry.weight += weight
            entry.append(data)
            return None
        self.fail(entry, failure)
        return failure()

    def complete(self, entry: _Entry) -> None:
        """Put a finished entry into the place of the one before it, if nothing newer is there."""
        visible = self.hide(entry)
        del self.writing[entry.number]
        entry.complete = True
        entry.wake()
        before = self.entries.get(entry.slot)
        if not visible or (before is not None and before.number > entry.number):
            # Its bytes are set aside already.
            entry.lingering = entry.readers > 0
            if not entry.lingering:
                self.eviction.reserve(-entry.weight)
            return
        self.admissions += 1
        self.eviction.reserve(-entry.weight)
        if before is not None:
            self.drop(before)
        self.entries[entry.slot] = entry
        self.tag(entry)
        if entry.readers:
            self.pinned += entry.weight
        self.evict(self.eviction.admit(entry.key, entry.weight, entry.meta.fresh_until))

    def fail(self, entry: _Entry, failure: Callable[[], ProxyError]) -> None:
        """Let an entry come to nothing."""
        if self.writing.pop(entry.number, None) is None:
            return
        self.hide(entry)
        self.abandoned += 1
        self.eviction.reserve(-entry.weight)
        entry.failure = failure
        entry.pieces, entry.ends = [], []
        entry.wake()

    def hide(self, entry: _Entry) -> bool:
        """Take an entry under way from where look-ups find it; tell whether it was there."""
        under_way = self.partial.get(entry.slot, [])
        if entry not in under_way:
            return False
        under_way.remove(entry)
        if not under_way:
            del self.partial[entry.slot]
        return True

    # -- room --------------------------------------------------------------------------------------

    def _take(self, size: int) -> bool:
        """Set bytes aside and tell whether there was room; evict nothing in vain."""
        if self.eviction.reserved + self.pinned + size > self.limit:
            return False
        self.evict(self.eviction.reserve(size))
        return True

    def evict(self, keys: list[CompactKey]) -> None:
        """Remove what the manager names, and what it names for those that are still being read."""
        todo = keys
        while todo:
            key = todo.pop()
            entry = self.entries.get(slot_of(key.primary_hash, key.variance))
            if entry is not None:
                self.evictions += 1
                todo += self._unlink(entry)

    def drop(self, entry: _Entry) -> None:
        """Remove an entry that the manager still knows."""
        self.eviction.remove(entry.key)
        self.evict(self._unlink(entry))

    def _unlink(self, entry: _Entry) -> list[CompactKey]:
        """Take an entry that the manager does not know any more out; return what has to go too."""
        del self.entries[entry.slot]
        self.untag(entry)
        if not entry.readers:
            return []
        self.pinned -= entry.weight
        entry.lingering = True
        return self.eviction.reserve(entry.weight)

    def later(self, action: Callable[[], None]) -> None:
        """Do what was forgotten; the garbage collector may call from anywhere."""
        token = self.token
        if token is not None:
            try:
                token.run_sync_soon(action)
            except trio.RunFinishedError:
                pass
            else:
                return
        action()

    # -- tags --------------------------------------------------------------------------------------

    def tag(self, entry: _Entry) -> None:
        """Let an entry be found by its tags."""
        for tag in entry.tags:
            self.tags.setdefault(tag, {})[entry] = None

    def untag(self, entry: _Entry) -> None:
        """Let it not be found by them any more."""
        for tag in entry.tags:
            tagged = self.tags[tag]
            del tagged[entry]
            if not tagged:
                del self.tags[tag]


class MemoryHitHandler(HitHandler):
    """Reads an entry of a `MemoryStorage`, at its own pace; it can seek, also while it is written.

    Seeking takes a time logarithmic in the number of pieces.
    """

    __slots__ = ("_bell", "_entry", "_index", "_left", "_shelf", "_skip")

    def __init__(self, shelf: _Shelf, entry: _Entry) -> None:
        self._shelf = shelf
        self._entry: _Entry | None = entry
        self._index = 0
        # Bytes to leave out before the next one, and bytes that the range still has.
        self._skip = 0
        self._left: int | None = None
        self._bell: Bell | None = None
        shelf.enter(entry)

    @property
    def size(self) -> int | None:
        """The length of the whole body, or None while it is being written."""
        entry = self._open()
        return entry.size if entry.complete else None

    def _open(self) -> _Entry:
        if self._entry is None:
            raise RuntimeError("this reader of a cache entry was closed")
        return self._entry

    async def read_body(self) -> bytes | None:
        """Return the next piece, or None; waits only for what was not written yet."""
        entry = self._open()
        while True:
            if self._left == 0:
                return None
            if entry.failure is not None:
                raise entry.failure()
            index = self._index
            if index < len(entry.pieces):
                piece = entry.pieces[index]
                self._index = index + 1
                if self._skip or self._left is not None:
                    piece = self._cut(piece)
                if piece:
                    return piece
            elif not entry.complete:
                await self._park(entry)
            elif self._skip or self._left is not None:
                raise incomplete()  # a range was asked for before the size was known
            else:
                return None

    def _cut(self, piece: bytes) -> bytes:
        """Return what of a piece belongs to the range."""
        if self._skip:
            skipped = min(self._skip, len(piece))
            self._skip -= skipped
            piece = piece[skipped:]
        if self._left is not None:
            piece = piece[: self._left]
            self._left -= len(piece)
        return piece

    async def _park(self, entry: _Entry) -> None:
        bell = self._bell
        if bell is None:
            bell = self._bell = Bell()
        entry.parked[bell] = None
        await bell.wait()

    def can_seek(self) -> bool:
        """Tell that it can."""
        return True

    def seek(self, start: int, end: int | None = None) -> None:
        """Go on with the bytes from ``start`` to before ``end`` (or the end of the body)."""
        entry = self._open()
        last = end if end is not None else max(start, entry.size)
        if not 0 <= start <= last or (entry.complete and last > entry.size):
            raise ValueError(f"no bytes {start} to {end} in a body of {entry.size}")
        index = bisect_right(entry.ends, start)
        self._index = index
        self._skip = start - (entry.ends[index - 1] if index else 0)
        self._left = None if end is None else end - start

    def close_now(self) -> None:
        """Let go of the entry, at any time and any number of times."""
        entry = self._entry
        if entry is not None:
            self._entry = None
            if self._bell is not None:
                entry.parked.pop(self._bell, None)
            self._shelf.leave(entry)

    def __del__(self) -> None:
        entry = self._entry
        if entry is not None:
            self._shelf.later(partial(self._shelf.leave, entry))


class MemoryMissHandler(MissHandler):
    """Writes an entry of a `MemoryStorage`; it never waits."""

    __slots__ = ("_done", "_ended", "_entry", "_shelf")

    def __init__(self, shelf: _Shelf, entry: _Entry) -> None:
        self._shelf = shelf
        self._entry = entry
        self._ended = False
        self._done = False

    def _check(self) -> None:
        if self._done:
            raise RuntimeError("this writer of a cache entry was finished or abandoned")
        if self._entry.failure is not None:
            self._done = True
            raise self._entry.failure()

    async def write_body(self, data: bytes, end: bool) -> None:
        """Add a piece of the body; ``end`` says that it is the last one (it may be empty)."""
        self._check()
        if self._ended:
            raise RuntimeError("the body has ended")
        if data:
            failure = self._shelf.grow(self._entry, data if type(data) is bytes else bytes(data))
            if failure is not None:
                self._done = True
                raise failure
        self._ended = end

    async def finish(self) -> Created:
        """Make the entry visible and let its readers see its end."""
        self._check()
        if not self._ended:
            self.abandon()
            raise RuntimeError("the body has not ended: the last write_body has end=True")
        self._done = True
        self._shelf.complete(self._entry)
        return Created(self._entry.weight)

    def abandon(self) -> None:
        """Drop what was written: nothing becomes visible, readers fail (row C-05)."""
        if not self._done:
            self._done = True
            self._shelf.fail(self._entry, incomplete)

    def streaming_write_tag(self) -> bytes:
        """Return the name for `Storage.lookup_streaming_write`."""
        return self._entry.number.to_bytes(8, "big")

    def __del__(self) -> None:
        if not self._done:
            self._shelf.later(partial(self._shelf.fail, self._entry, incomplete))


class MemoryStorage(Storage):
    """A store in memory that can be read while it is written.

    Entries of one key may be written at the same time; the one begun last is what look-ups find and
    what is kept in the end, and one begun earlier that finishes later is not kept.

    The metadata that a look-up returns is the stored object: copy it before you change it.

    Args:
      max_bytes: The limit of everything that the store keeps alive: keys, metadata and bodies, with
        an estimate of what Python adds.
      eviction: Decides what goes; a `LruEviction` of that limit where it is None. It serves this
        store alone.
      max_object_bytes: The longest body that is kept (row C-09), a quarter of the limit where it is
        None.
    """

    supports_streaming_partial_write: ClassVar[bool] = True

    def __init__(
        self,
        max_bytes: int,
        eviction: EvictionManager | None = None,
        *,
        max_object_bytes: int | None = None,
    ) -> None:
        if eviction is None:
            eviction = LruEviction(max_bytes)
        if eviction.limit_bytes > max_bytes:
            raise ValueError(
                f"the eviction manager's limit of {eviction.limit_bytes} bytes is above the "
                f"store's {max_bytes}"
            )
        limit = max_bytes // 4 if max_object_bytes is None else max_object_bytes
        self._shelf = _Shelf(eviction, limit)

    @property
    def eviction(self) -> EvictionManager:
        """The manager that decides what goes."""
        return self._shelf.eviction

    async def lookup(self, key: CacheKey) -> tuple[CacheMeta, MemoryHitHandler] | None:
        """Return what is stored under exactly this key (primary and variance), or None."""
        shelf = self._shelf
        variance = key.variance
        slot = key.primary_hash if variance is None else key.primary_hash + variance
        entry = shelf.entries.get(slot)
        if shelf.partial and (under_way := shelf.partial.get(slot)):
            newest = under_way[-1]
            if entry is None or newest.number > entry.number:
                entry = newest
        if entry is None:
            shelf.misses += 1
            return None
        shelf.hits += 1
        if entry.complete:
            shelf.eviction.access(entry.key)
        return entry.meta, MemoryHitHandler(shelf, entry)

    async def lookup_streaming_write(
        self, key: CacheKey, tag: bytes
    ) -> tuple[CacheMeta, MemoryHitHandler] | None:
        """Return the entry of one writer: while it writes, and as long as it is the one kept."""
        shelf = self._shelf
        number = int.from_bytes(tag, "big")
        slot = slot_of(key.primary_hash, key.variance)
        entry = shelf.writing.get(number) or shelf.entries.get(slot)
        if entry is None or entry.number != number or entry.slot != slot:
            return None
        return entry.meta, MemoryHitHandler(shelf, entry)

    async def get_miss_handler(self, key: CacheKey, meta: CacheMeta) -> MemoryMissHandler:
        """Begin an entry. Several writers of one key may be under way; the last begun wins."""
        shelf = self._shelf
        declared = declared_size(meta)
        if declared is not None and declared > shelf.max_object:
            raise too_large(shelf.max_object)
        entry = _Entry(key.compact(), _own(meta), next(shelf.numbers))
        shelf.begin(entry)
        return MemoryMissHandler(shelf, entry)

    async def purge(self, key: CompactKey, kind: PurgeType) -> bool:
        """Remove one entry and tell whether there was one; variants are entries of their own."""
        shelf = self._shelf
        slot = slot_of(key.primary_hash, key.variance)
        entry = shelf.entries.get(slot)
        if kind is PurgeType.EVICTION:
            if entry is not None:
                shelf.evictions += 1
                shelf.drop(entry)
            return entry is not None
        removed = len(shelf.partial.pop(slot, ()))
        if entry is not None:
            shelf.drop(entry)
            removed += 1
        shelf.purges += removed
        return removed > 0

    async def purge_tag(self, tag: str) -> int:
        """Invalidate every entry with this cache tag and return their number."""
        shelf = self._shelf
        tag = fold_tag(tag)
        tagged = list(shelf.tags.get(tag, ()))
        for entry in tagged:
            # Those of its kind that have to go for one that is still read are gone already.
            if entry is shelf.entries.get(entry.slot):
                shelf.drop(entry)
        hidden = [each for each in shelf.writing.values() if tag in each.tags and shelf.hide(each)]
        removed = len(tagged) + len(hidden)
        shelf.purges += removed
        return removed

    async def update_meta(self, key: CacheKey, meta: CacheMeta) -> bool:
        """Replace the metadata of a complete entry and tell whether it was there."""
        shelf = self._shelf
        entry = shelf.entries.get(slot_of(key.primary_hash, key.variance))
        if entry is None or entry.meta.created != meta.created:
            return False
        shelf.untag(entry)
        delta = entry.set_meta(_own(meta))
        shelf.tag(entry)
        if entry.readers:
            shelf.pinned += delta
        shelf.evict(shelf.eviction.increment_weight(entry.key, delta))
        return True

    def statistics(self) -> StorageStatistics:
        """Return the counters."""
        shelf = self._shelf
        return StorageStatistics(
            entries=len(shelf.entries),
            bytes=shelf.eviction.total_size,
            writing=len(shelf.writing),
            reserved=shelf.eviction.reserved,
            hits=shelf.hits,
            misses=shelf.misses,
            admissions=shelf.admissions,
            abandoned=shelf.abandoned,
            evictions=shelf.evictions,
            purges=shelf.purges,
        )

    async def aclose(self) -> None:
        """Drop everything. What is being written is abandoned, what is being read is read on."""
        shelf = self._shelf
        shelf.closed = True
        for entry in list(shelf.writing.values()):
            shelf.fail(entry, incomplete)
        while shelf.entries:
            shelf.drop(next(iter(shelf.entries.values())))
