"""Which entries of a store have to go when it is full: pure bookkeeping, no I/O.

A manager knows keys and sizes. The store tells it what it took in and what was used, and removes
what the manager names; one manager serves one store.
"""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import ClassVar, Final

import attrs

from ._key import CompactKey

#: The variants that one resource may have (row C-07).
MAX_VARIANTS: Final = 64


def slot_of(primary_hash: bytes, variance: bytes | None) -> bytes:
    """Return what tells entries apart: the primary hash is of one length, so nothing is mixed up."""
    return primary_hash if variance is None else primary_hash + variance


@attrs.define(eq=False)
class Record:
    """What a manager knows of one entry.

    Attributes:
      key: The key.
      size: Bytes.
      fresh_until: When it stops being fresh, in wall seconds.
      uses: How often it was used, as far as the manager counts that.
    """

    key: CompactKey
    size: int
    fresh_until: float
    uses: int = 0


class EvictionManager(ABC):
    """Decides what a full store removes (Pingora's ``EvictionManager``).

    What a method returns is out of the manager already; the store has to remove it. Keys are told
    apart by hash and variance, whatever their user tag.
    """

    @property
    @abstractmethod
    def limit_bytes(self) -> int:
        """The bytes that all entries and what is reserved may have together."""

    @abstractmethod
    def admit(self, key: CompactKey, size: int, fresh_until: float) -> list[CompactKey]:
        """Take an entry in, or replace the one of this key; return what has to go for it.

        An entry that does not fit at all is named itself, and nothing else goes.
        """

    @abstractmethod
    def increment_weight(self, key: CompactKey, delta: int) -> list[CompactKey]:
        """Change an entry's size; return what has to go. An unknown one is ignored."""

    @abstractmethod
    def remove(self, key: CompactKey) -> bool:
        """Forget an entry and tell whether it was known."""

    @abstractmethod
    def access(self, key: CompactKey) -> bool:
        """Note that an entry was used and tell whether it is known."""

    @abstractmethod
    def peek(self, key: CompactKey) -> bool:
        """Tell whether an entry is known, which is no use of it."""

    @abstractmethod
    def reserve(self, delta: int) -> list[CompactKey]:
        """Set bytes aside for what is no entry (negative: give them back); return what has to go."""

    @property
    @abstractmethod
    def reserved(self) -> int:
        """The bytes that are set aside."""

    @property
    @abstractmethod
    def total_size(self) -> int:
        """The bytes of all entries."""

    @property
    @abstractmethod
    def total_items(self) -> int:
        """The number of entries."""

    @abstractmethod
    def save(self) -> bytes:
        """Return the entries and their order in a compact form."""

    @abstractmethod
    def load(self, data: bytes) -> list[CompactKey]:
        """Become what `save` wrote; return what does not fit into this manager's limits.

        Raises:
          ValueError: it is not what `save` of this class writes, or broken; nothing has changed.
        """


class _Bounded(EvictionManager):
    """What both managers share: the limits, and sizes by key."""

    #: The letter of this class in its saved form.
    _kind: ClassVar[bytes]

    def __init__(
        self, limit_bytes: int, watermark_items: int | None, max_variants: int | None
    ) -> None:
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes is {limit_bytes}, it must not be negative")
        if watermark_items is not None and watermark_items < 1:
            raise ValueError(f"watermark_items is {watermark_items}, it must be 1 or more")
        if max_variants is not None and max_variants < 1:
            raise ValueError(f"max_variants is {max_variants}, it must be 1 or more")
        self._limit = limit_bytes
        self._max_variants = max_variants
        # The variants of each primary hash, the one used longest ago first (row C-07).
        self._variants: dict[bytes, OrderedDict[bytes, None]] = {}
        self._watermark = watermark_items
        self._size = 0
        self._reserved = 0

    @property
    def limit_bytes(self) -> int:
        """The bytes that all entries and what is reserved may have together."""
        return self._limit

    @property
    def reserved(self) -> int:
        """The bytes that are set aside."""
        return self._reserved

    @property
    def total_size(self) -> int:
        """The bytes of all entries."""
        return self._size

    def admit(self, key: CompactKey, size: int, fresh_until: float) -> list[CompactKey]:
        """Take an entry in, or replace the one of this key; return what has to go for it."""
        if size + self._reserved > self._limit:
            self.remove(key)
            return [key]
        slot = slot_of(key.primary_hash, key.variance)
        record = self._find(slot)
        if record is not None:
            self._size += size - record.size
            record.key = key
            record.size = size
            record.fresh_until = fresh_until
            self._used(slot, record)
            return self._shrink()
        # Room first, so that what is new does not go to make room for itself.
        evicted = self._shrink(size, 1)
        self._size += size
        self._insert(slot, Record(key, size, fresh_until))
        if key.variance is not None:
            evicted += self._note_variant(key.primary_hash, slot)
        return evicted

    def remove(self, key: CompactKey) -> bool:
        """Forget an entry and tell whether it was known."""
        slot = slot_of(key.primary_hash, key.variance)
        record = self._take(slot)
        if record is None:
            return False
        self._gone(record, slot)
        return True

    def increment_weight(self, key: CompactKey, delta: int) -> list[CompactKey]:
        """Change an entry's size; return what has to go. An unknown one is ignored."""
        record = self._find(slot_of(key.primary_hash, key.variance))
        if record is None:
            return []
        delta = max(delta, -record.size)
        record.size += delta
        self._size += delta
        return self._shrink()

    def reserve(self, delta: int) -> list[CompactKey]:
        """Set bytes aside for what is no entry (negative: give them back); return what has to go."""
        self._reserved += delta
        return self._shrink() if delta > 0 else []

    def peek(self, key: CompactKey) -> bool:
        """Tell whether an entry is known, which is no use of it."""
        return self._find(slot_of(key.primary_hash, key.variance)) is not None

    def _shrink(self, size: int = 0, items: int = 0) -> list[CompactKey]:
        """Evict until so much more fits."""
        evicted: list[CompactKey] = []
        room = self._limit - self._reserved - size
        most = None if self._watermark is None else self._watermark - items
        while self._size > room or (most is not None and self.total_items > most):
            record = self._evict()
            if record is None:
                break
            self._gone(record, slot_of(record.key.primary_hash, record.key.variance))
            evicted.append(record.key)
        return evicted

    def _gone(self, record: Record, slot: bytes) -> None:
        self._size -= record.size
        if record.key.variance is not None:
            variants = self._variants[record.key.primary_hash]
            del variants[slot]
            if not variants:
                del self._variants[record.key.primary_hash]

    def _note_variant(self, primary_hash: bytes, slot: bytes) -> list[CompactKey]:
        """Remember a new variant; return the one that is too many."""
        variants = self._variants.setdefault(primary_hash, OrderedDict())
        variants[slot] = None
        if self._max_variants is None or len(variants) <= self._max_variants:
            return []
        oldest = next(iter(variants))
        record = self._take(oldest)
        assert record is not None
        self._gone(record, oldest)
        return [record.key]

    def _become(self, records: list[Record]) -> list[CompactKey]:
        """Count what was loaded; return what does not fit."""
        self._size = sum(record.size for record in records)
        self._variants = {}
        evicted: list[CompactKey] = []
        for record in records:
            key = record.key
            if key.variance is not None:
                slot = slot_of(key.primary_hash, key.variance)
                evicted += self._note_variant(key.primary_hash, slot)
        return evicted + self._shrink()

    @abstractmethod
    def _find(self, slot: bytes) -> Record | None: ...

    @abstractmethod
    def _insert(self, slot: bytes, record: Record) -> None: ...

    @abstractmethod
    def _take(self, slot: bytes) -> Record | None:
        """Take one out."""

    @abstractmethod
    def _used(self, slot: bytes, record: Record) -> None: ...

    @abstractmethod
    def _evict(self) -> Record | None:
        """Take out the one that goes next."""


class LruEviction(_Bounded):
    """Removes what was not used for the longest time.

    Args:
      limit_bytes: The bytes of all entries.
      watermark_items: The number of entries, None for any.
      max_variants: The variants of one resource, None for any; what was used longest ago goes first
        (row C-07).
    """

    _kind = b"L"

    def __init__(
        self,
        limit_bytes: int,
        watermark_items: int | None = None,
        *,
        max_variants: int | None = MAX_VARIANTS,
    ) -> None:
        super().__init__(limit_bytes, watermark_items, max_variants)
        # The one to go first stands first.
        self._records: OrderedDict[bytes, Record] = OrderedDict()

    @property
    def total_items(self) -> int:
        """The number of entries."""
        return len(self._records)

    def access(self, key: CompactKey) -> bool:
        """Note that an entry was used and tell whether it is known."""
        variance = key.variance
        slot = key.primary_hash if variance is None else key.primary_hash + variance
        try:
            self._records.move_to_end(slot)
        except KeyError:
            return False
        if variance is not None:
            self._variants[key.primary_hash].move_to_end(slot)
        return True

    def save(self) -> bytes:
        """Return the entries and their order in a compact form."""
        return _pack(self._kind, [self._records.values()])

    def load(self, data: bytes) -> list[CompactKey]:
        """Become what `save` wrote; return what does not fit into this manager's limits."""
        (records,) = _unpack(self._kind, data, 1)
        self._records = _index(records)
        return self._become(records)

    def _find(self, slot: bytes) -> Record | None:
        return self._records.get(slot)

    def _insert(self, slot: bytes, record: Record) -> None:
        self._records[slot] = record

    def _take(self, slot: bytes) -> Record | None:
        return self._records.pop(slot, None)

    def _used(self, slot: bytes, record: Record) -> None:
        self.access(record.key)

    def _evict(self) -> Record | None:
        return self._records.popitem(last=False)[1] if self._records else None


class S3FifoEviction(_Bounded):
    """Keeps what is used again from being washed out by what is used once (S3-FIFO).

    A newcomer waits in a small queue; it goes on to the main queue when it was used twice by the
    time it gets to the end, or when it comes back soon after it was evicted, which a ghost queue of
    hashes remembers. In the main queue what was used goes round again. A use costs one addition.

    Args:
      limit_bytes: The bytes of all entries.
      watermark_items: The number of entries, None for any.
      max_variants: The variants of one resource, None for any; what was used longest ago goes first
        (row C-07).
      small: The small queue's part of the bytes, 0 to 1.
      ghost_items: The most that are remembered after they were evicted; never more than there are
        entries.
    """

    _kind = b"S"
    #: Uses that are counted at most, and those that lead from the small queue to the main one.
    _MOST: Final = 3
    _ENOUGH: Final = 2

    def __init__(
        self,
        limit_bytes: int,
        watermark_items: int | None = None,
        *,
        max_variants: int | None = MAX_VARIANTS,
        small: float = 0.1,
        ghost_items: int = 65536,
    ) -> None:
        super().__init__(limit_bytes, watermark_items, max_variants)
        if not 0 <= small <= 1:
            raise ValueError(f"small is {small}, it must be from 0 to 1")
        if ghost_items < 0:
            raise ValueError(f"ghost_items is {ghost_items}, it must not be negative")
        self._small_share = small
        self._ghost_items = ghost_items
        self._small: OrderedDict[bytes, Record] = OrderedDict()
        self._main: OrderedDict[bytes, Record] = OrderedDict()
        self._ghost: OrderedDict[bytes, None] = OrderedDict()
        self._small_size = 0

    @property
    def total_items(self) -> int:
        """The number of entries."""
        return len(self._small) + len(self._main)

    @property
    def ghosts(self) -> int:
        """The number of evicted entries that are remembered."""
        return len(self._ghost)

    def access(self, key: CompactKey) -> bool:
        """Note that an entry was used and tell whether it is known."""
        variance = key.variance
        slot = key.primary_hash if variance is None else key.primary_hash + variance
        record = self._main.get(slot) or self._small.get(slot)
        if record is None:
            return False
        if record.uses < self._MOST:
            record.uses += 1
        if variance is not None:
            self._variants[key.primary_hash].move_to_end(slot)
        return True

    def admit(self, key: CompactKey, size: int, fresh_until: float) -> list[CompactKey]:
        """Take an entry in, or replace the one of this key; return what has to go for it."""
        before = self._small.get(slot_of(key.primary_hash, key.variance))
        if before is not None and size + self._reserved <= self._limit:
            self._small_size += size - before.size
        return super().admit(key, size, fresh_until)

    def increment_weight(self, key: CompactKey, delta: int) -> list[CompactKey]:
        """Change an entry's size; return what has to go. An unknown one is ignored."""
        record = self._small.get(slot_of(key.primary_hash, key.variance))
        if record is not None:
            self._small_size += max(delta, -record.size)
        return super().increment_weight(key, delta)

    def save(self) -> bytes:
        """Return the entries, their order and uses in a compact form; ghosts are not kept."""
        return _pack(self._kind, [self._small.values(), self._main.values()])

    def load(self, data: bytes) -> list[CompactKey]:
        """Become what `save` wrote; return what does not fit into this manager's limits."""
        small, main = _unpack(self._kind, data, 2)
        self._small, self._main = _index(small), _index(main)
        self._ghost.clear()
        self._small_size = sum(record.size for record in small)
        return self._become(small + main)

    def _find(self, slot: bytes) -> Record | None:
        return self._main.get(slot) or self._small.get(slot)

    def _insert(self, slot: bytes, record: Record) -> None:
        if slot in self._ghost:
            del self._ghost[slot]
            self._main[slot] = record
        else:
            self._small[slot] = record
            self._small_size += record.size

    def _take(self, slot: bytes) -> Record | None:
        record = self._small.pop(slot, None)
        if record is None:
            return self._main.pop(slot, None)
        self._small_size -= record.size
        return record

    def _used(self, slot: bytes, record: Record) -> None:
        self.access(record.key)

    def _evict(self) -> Record | None:
        if self._small_size < self._small_share * self._limit and self._main:
            return self._evict_main()
        while self._small:
            slot, record = self._small.popitem(last=False)
            self._small_size -= record.size
            if record.uses < self._ENOUGH:
                self._remember(slot)
                return record
            record.uses = 0
            self._main[slot] = record
        return self._evict_main()

    def _evict_main(self) -> Record | None:
        # Each round takes a use off, so it ends.
        while self._main:
            slot, record = self._main.popitem(last=False)
            if not record.uses:
                return record
            record.uses -= 1
            self._main[slot] = record
        return None

    def _remember(self, slot: bytes) -> None:
        self._ghost[slot] = None
        most = min(self._ghost_items, self.total_items + 1)
        while len(self._ghost) > most:
            self._ghost.popitem(last=False)


# -- the saved form ------------------------------------------------------------------------------
#
# "TPEV", version, kind, then for each queue its length and its records, then a CRC-32 of all that.

_MAGIC: Final = b"TPEV\x01"
_COUNT: Final = struct.Struct(">I")
_RECORD: Final = struct.Struct(">16sBHQdB")


def _pack(kind: bytes, queues: Iterable[Collection[Record]]) -> bytes:
    parts = [_MAGIC, kind]
    for queue in queues:
        parts.append(_COUNT.pack(len(queue)))
        for each in queue:
            key = each.key
            variance = key.variance or b""
            tag = key.user_tag.encode("utf-8", "surrogateescape")
            numbers = (each.size, each.fresh_until, each.uses)
            parts.append(_RECORD.pack(key.primary_hash, len(variance), len(tag), *numbers))
            parts += (variance, tag)
    data = b"".join(parts)
    return data + _COUNT.pack(zlib.crc32(data))


def _unpack(kind: bytes, data: bytes, queues: int) -> list[list[Record]]:
    start = len(_MAGIC) + 1
    end = len(data) - _COUNT.size
    if data[:start] != _MAGIC + kind or end < start:
        raise ValueError("not the saved state of such an eviction manager")
    if _COUNT.pack(zlib.crc32(data[:end])) != data[end:]:
        raise ValueError("the saved state of an eviction manager is broken")
    try:
        found, rest = _unpack_queues(data[:end], start, queues)
    except (struct.error, UnicodeDecodeError) as exc:
        raise ValueError("the saved state of an eviction manager is broken") from exc
    slots = {slot_of(each.key.primary_hash, each.key.variance) for part in found for each in part}
    if rest != end or len(slots) != sum(map(len, found)):
        raise ValueError("the saved state of an eviction manager is broken")
    return found


def _unpack_queues(data: bytes, at: int, queues: int) -> tuple[list[list[Record]], int]:
    found: list[list[Record]] = []
    for _ in range(queues):
        (count,) = _COUNT.unpack_from(data, at)
        at += _COUNT.size
        records = []
        for _ in range(count):
            primary, variance, tag, size, fresh_until, uses = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            middle, end = at + variance, at + variance + tag
            key = CompactKey(
                primary,
                data[at:middle] or None,
                data[middle:end].decode("utf-8", "surrogateescape"),
            )
            records.append(Record(key, size, fresh_until, uses))
            at = end
        found.append(records)
    return found, at


def _index(records: list[Record]) -> OrderedDict[bytes, Record]:
    return OrderedDict(
        (slot_of(each.key.primary_hash, each.key.variance), each) for each in records
    )
