"""What a cache keeps its responses in: the interfaces, and the values that go with them.

The rules that every store keeps, and that `tests/cache/test_storage_contract.py` holds it to:

- An entry is there as soon as its writer finished, and never before: a writer that failed, was
  abandoned or forgotten leaves nothing (row C-05).
- A reader sees the bytes of one writer, whole and in order, or an error. An entry that is replaced,
  purged or evicted while it is read is read on to its end.
- A store that can be read while it is written shows an entry under way to those who look it up,
  before the complete one that it will replace. Its readers go at their own pace and never hold the
  writer up; if the writer fails, they fail.
- The store tells its `EvictionManager` of every admission, access and removal, and removes what the
  manager names. Nobody else has to.
- Variants of one resource (``CacheKey.variance``) are entries of their own.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from io import UnsupportedOperation
from typing import TYPE_CHECKING, ClassVar

import attrs

from .._errors import ErrorSource, ErrorType, ProxyError

if TYPE_CHECKING:
    from ._key import CacheKey, CompactKey
    from ._meta import CacheMeta

#: The longest piece of a body that a reader is handed, in bytes.
MAX_PIECE = 65536

#: The kind of error of a store that has no room left because of what is being written and read.
STORAGE_FULL = ErrorType.Custom("cache storage full")

#: The extension of `CacheMeta` that holds cache tags which stand in no field, comma-separated.
TAG_EXTENSION = "cache-tag"


class PurgeType(enum.Enum):
    """Why an entry goes (Pingora's ``PurgeType``)."""

    EVICTION = "eviction"
    """To make room. An entry that is being written under the same key stays."""

    INVALIDATION = "invalidation"
    """It must not be served again. What is being written under the key will not be kept either."""


@attrs.frozen
class Created:
    """A writer finished, and its entry is a new one.

    Attributes:
      size: Bytes that the entry counts for in the store, its key and metadata among them.
    """

    size: int


@attrs.frozen
class Appended:
    """A writer finished, and its bytes were added to an entry that was there.

    Attributes:
      size: Bytes that were added.
      max_size: Bytes that the entry counts for at most, or None for no such bound.
    """

    size: int
    max_size: int | None = None


@attrs.frozen
class StorageStatistics:
    """The state and the counters of a store at one moment.

    Attributes:
      entries: Complete entries.
      bytes: Bytes that they count for, their keys and metadata among them.
      writing: Entries that are being written.
      reserved: Bytes of these, and of entries that are gone but still being read.
      hits: Look-ups that found something, fresh or not.
      misses: Look-ups that found nothing.
      admissions: Entries that were completed.
      abandoned: Entries that were begun and came to nothing.
      evictions: Entries that were removed to make room.
      purges: Entries that were removed by key or tag.
    """

    entries: int = 0
    bytes: int = 0
    writing: int = 0
    reserved: int = 0
    hits: int = 0
    misses: int = 0
    admissions: int = 0
    abandoned: int = 0
    evictions: int = 0
    purges: int = 0


class HitHandler(ABC):
    """Reads the body of one entry; one task at a time (Pingora's ``HandleHit``).

    It keeps its entry's bytes until it is closed, so it has to be, by `finish` or `close_now`.
    """

    __slots__ = ()

    #: Whether serving it counts as a use. The store counts by itself, when it is looked up.
    should_count_access: ClassVar[bool] = True
    #: What a use adds to the entry's weight.
    eviction_weight: ClassVar[int] = 0

    @property
    @abstractmethod
    def size(self) -> int | None:
        """The length of the whole body, or None while it is being written."""

    @abstractmethod
    async def read_body(self) -> bytes | None:
        """Return the next piece, never an empty one and of at most 65,536 bytes, or None.

        None comes at the end of the body or of the range that was asked for, and again each time
        after that. It need not be a checkpoint where there is something to return.

        Raises:
          ProxyError: the writer failed (``PrematureBodyEnd``, or ``ResponseTooLarge`` where the
            entry outgrew the store), or the entry cannot be read; of internal source.
          trio.Cancelled: nothing is lost.
        """

    def can_seek(self) -> bool:
        """Tell whether `seek` works."""
        return False

    def can_seek_multipart(self) -> bool:
        """Tell whether `seek` may be called again, for the next of several ranges."""
        return self.can_seek()

    def seek(self, start: int, end: int | None = None) -> None:
        """Go on with the bytes from ``start`` to before ``end`` (or the end of the body).

        Raises:
          io.UnsupportedOperation: this one cannot.
          ValueError: the body does not have these bytes.
        """
        raise UnsupportedOperation(f"{type(self).__name__} cannot seek")

    async def finish(self) -> None:
        """Close after everything was read; a store may do here what has to wait. May be repeated."""
        self.close_now()

    @abstractmethod
    def close_now(self) -> None:
        """Let go of the entry, at any time and any number of times."""


class MissHandler(ABC):
    """Writes one entry (Pingora's ``HandleMiss``).

    The way is `write_body` with ``end`` set on the last call, then `finish`. Whatever does not come
    that far, also a handler that is dropped, is abandoned.
    """

    __slots__ = ()

    @abstractmethod
    async def write_body(self, data: bytes, end: bool) -> None:
        """Add a piece of the body; ``end`` says that it is the last one (it may be empty).

        The object is kept, not copied. Readers never make it wait.

        Raises:
          ProxyError: the entry is larger than the store takes (``ResponseTooLarge``, row C-09), or
            the store has no room or fails; of internal source. The entry is abandoned then.
          RuntimeError: the body has ended, or the handler was finished or abandoned.
        """

    @abstractmethod
    async def finish(self) -> Created | Appended:
        """Make the entry visible and let its readers see its end.

        Raises:
          ProxyError: the store failed; nothing became visible.
          RuntimeError: the body has not ended, or the entry was finished or abandoned before.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Drop what was written: nothing becomes visible, readers fail (row C-05).

        At any time and any number of times; after `finish` it does nothing.
        """

    def streaming_write_tag(self) -> bytes | None:
        """Return the name for `Storage.lookup_streaming_write`, or None without such reading."""
        return None


class Storage(ABC):
    """Where a cache keeps its responses (Pingora's ``Storage``).

    Every method may raise `ProxyError`; the cache then goes on without the store. Look-ups need not
    be checkpoints.
    """

    #: Whether an entry can be read while it is written.
    supports_streaming_partial_write: ClassVar[bool] = False

    @abstractmethod
    async def lookup(self, key: CacheKey) -> tuple[CacheMeta, HitHandler] | None:
        """Return what is stored under exactly this key (primary and variance), or None.

        An entry that is being written comes before a complete one, if it was begun later than that.
        """

    async def lookup_streaming_write(
        self, key: CacheKey, tag: bytes
    ) -> tuple[CacheMeta, HitHandler] | None:
        """Return the entry of one writer: while it writes, and later as long as it is the one kept.

        This is neither a hit nor a use. None where the writer failed, or the store cannot.
        """
        return None

    @abstractmethod
    async def get_miss_handler(self, key: CacheKey, meta: CacheMeta) -> MissHandler:
        """Begin an entry. Several writers of one key may be under way; the last begun wins.

        Raises:
          ProxyError: it is larger than the store takes, as its Content-Length says
            (``ResponseTooLarge``), or there is no room.
        """

    @abstractmethod
    async def purge(self, key: CompactKey, kind: PurgeType) -> bool:
        """Remove one entry and tell whether there was one; variants are entries of their own.

        Whoever reads it reads on.
        """

    @abstractmethod
    async def purge_tag(self, tag: str) -> int:
        """Invalidate every entry with this cache tag (`cache_tags`) and return their number."""

    @abstractmethod
    async def update_meta(self, key: CacheKey, meta: CacheMeta) -> bool:
        """Replace the metadata of a complete entry and tell whether it was there.

        An entry whose ``created`` is another one is not the entry that was validated; it stays as
        it is, and the answer is False (row C-10).
        """

    @abstractmethod
    def statistics(self) -> StorageStatistics:
        """Return the counters."""

    async def aclose(self) -> None:  # noqa: B027 - most stores have nothing to close
        """Close the store. What is being written is abandoned; look-ups find nothing any more."""


def cache_tags(meta: CacheMeta) -> frozenset[str]:
    """Return the cache tags of an entry, in lower case.

    They stand in its Cache-Tag fields, and in ``meta.extensions["cache-tag"]``.
    """
    lines = meta.header.headers.get_all("cache-tag")
    extra = meta.extensions.get(TAG_EXTENSION)
    if extra is not None:
        lines.append(extra.decode("latin-1"))
    return frozenset(tag for line in lines for part in line.split(",") if (tag := fold_tag(part)))


def fold_tag(tag: str) -> str:
    """Return a cache tag in the one form that tags are compared in."""
    return tag.strip(" \t").lower()


def declared_size(meta: CacheMeta) -> int | None:
    """Return the one valid Content-Length of an entry's head, or None."""
    lines = meta.header.headers.get_all("content-length")
    if len(lines) != 1:
        return None
    value = lines[0]
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None


def too_large(limit: int) -> ProxyError:
    """Return the error of an entry that outgrew its limit."""
    context = f"a cache entry of more than {limit} bytes"
    return ProxyError(ErrorType.ResponseTooLarge, ErrorSource.INTERNAL, context=context)


def incomplete() -> ProxyError:
    """Return the error of a reader whose writer failed."""
    context = "the cache entry was never completed"
    return ProxyError(ErrorType.PrematureBodyEnd, ErrorSource.INTERNAL, context=context)


def storage_full() -> ProxyError:
    """Return the error of a writer for which there is no room."""
    context = "no room left beside what is being written and read"
    return ProxyError(STORAGE_FULL, ErrorSource.INTERNAL, context=context)
