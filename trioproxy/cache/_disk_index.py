"""The index of a disk store: how many bytes there are, what was used last, and who has which tag.

It is a SQLite database that all processes on the directory share, and a hint at most: what is
served is decided by the entry's file alone, so an index that is lost or damaged costs nothing but
the time to make it again from names, sizes and heads.

SQLite's write lock is the one lock of the directory: a file gets into its place, changes its
metadata or goes only within a transaction that changes its row as well. A process that dies in
between leaves a file without its row or the other way round; `DiskIndex.open` finds both.

A damaged index is never deleted and made anew under its name, as SQLite in another process would
go on with files of that name: the next one has the next number, and whoever finds its own gone
looks for the newest.

Everything here blocks and is called in worker threads, one call at a time.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import attrs

from .._clock import wall_time
from ._disk_files import (
    EntryFile,
    Layout,
    directory_lock,
    object_name,
    open_entry,
    remove,
    sweep,
    sync_directory,
    write_side,
)
from ._disk_format import MAX_HEAD, UNIT, BadFileError, encode_side, occupied
from ._eviction import MAX_VARIANTS
from ._key import CacheKey
from ._meta import CacheMeta
from ._storage import cache_tags

T = TypeVar("T")

_SCHEMA_VERSION = 1
# What an entry counts for, after OLD., NEW. or nothing; as `occupied`.
_COST = f"(({{0}}size + {UNIT - 1}) / {UNIT} + ({{0}}side + {UNIT - 1}) / {UNIT}) * {UNIT}"
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE entries (
    name BLOB PRIMARY KEY, size INTEGER NOT NULL, side INTEGER NOT NULL,
    modified INTEGER NOT NULL, used REAL NOT NULL, resource BLOB
) WITHOUT ROWID;
CREATE INDEX entries_used ON entries (used);
CREATE INDEX entries_variants ON entries (resource, used) WHERE resource IS NOT NULL;
CREATE TABLE tags (tag TEXT, name BLOB, PRIMARY KEY (tag, name)) WITHOUT ROWID;
CREATE INDEX tags_name ON tags (name);
CREATE TABLE purged (what PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE total (items INTEGER NOT NULL, bytes INTEGER NOT NULL, boot TEXT NOT NULL);
INSERT INTO total VALUES (0, 0, '');
CREATE TRIGGER added AFTER INSERT ON entries BEGIN
    UPDATE total SET items = items + 1, bytes = bytes + {_COST.format("NEW.")};
END;
CREATE TRIGGER removed AFTER DELETE ON entries BEGIN
    UPDATE total SET items = items - 1, bytes = bytes - {_COST.format("OLD.")};
    DELETE FROM tags WHERE name = OLD.name;
END;
CREATE TRIGGER changed AFTER UPDATE OF side ON entries BEGIN
    UPDATE total SET bytes = bytes - {_COST.format("OLD.")} + {_COST.format("NEW.")};
END;
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""
_INDEX = re.compile(r"trioproxy-index-([0-9]{1,9})\.sqlite3")
# How long a writer waits for those of other processes, in seconds.
_BUSY = 5.0
# How long a purge counts for those who are writing in other processes, in seconds.
_REMEMBERED = 3600.0
# Entries that go in one transaction, so that other processes get a turn.
_BATCH = 64
# Primary result codes by which SQLite says that the file is not what it should be: a table is
# missing, it was moved away, it cannot be read, is damaged, is no database.
_DAMAGED = {1, 8, 10, 11, 26}


@attrs.frozen
class Row:
    """What the index knows about an entry.

    Attributes:
      name: The combined hash of its key.
      size: Bytes of its file.
      modified: When that was last written, in nanoseconds since the epoch.
      tags: Its cache tags.
      resource: Where it is a variant, the hash of the key that the variants share.
      side: Bytes of its side file.
    """

    name: bytes
    size: int
    modified: int
    tags: frozenset[str]
    resource: bytes | None
    side: int = 0


class Outcome(enum.Enum):
    """What became of a finished file."""

    KEPT = "kept"
    #: There is no room for it, whatever is removed.
    NO_ROOM = "no room"
    #: Somebody has purged what it would be, since its writer began.
    PURGED = "purged"


class DiskIndex:
    """The index of one directory, as one process sees it.

    Attributes:
      entries: Complete entries, when it was last looked at.
      bytes: What their files take, when it was last looked at.
      evictions: Entries that this process has removed to make room.
      swept: Files of dead processes that were removed.
    """

    def __init__(self, layout: Layout, *, fsync: bool = False) -> None:
        self.layout = layout
        self.entries = 0
        self.bytes = 0
        self.evictions = 0
        self.swept = 0
        self._fsync = fsync
        self._db: sqlite3.Connection | None = None
        self._number = 0
        self._last_use = 0.0
        self._touched: dict[bytes, float] = {}
        self._closed = False

    # -- opening -----------------------------------------------------------------------------------

    def open(self, limit: int) -> None:
        """Make the directory, sweep it, and bring the index up to what is there.

        No body is read, and no head of an entry that the index knows.

        Args:
          limit: What all entries together may take, in bytes.

        Raises:
          OSError, sqlite3.Error: that failed.
        """
        self._guarded(self._catch_up)
        self.make_room(limit)

    def close(self) -> None:
        """Write down what is left, and close the database."""
        if self._db is not None:
            try:
                self._guarded(lambda: None)
            except (OSError, sqlite3.Error):
                pass  # nothing but the order of use is lost
        self._closed = True
        self._disconnect()

    def _catch_up(self) -> None:
        boot = _boot()
        with self._transaction() as db:
            if db.execute("SELECT boot FROM total").fetchone() != (boot,):
                self._distrust(db)
            self.swept += sweep(self.layout)
            shards = {name[0] for (name,) in db.execute("SELECT name FROM entries")}
        shards.update(_shard_numbers(os.listdir(self.layout.objects)))
        for first in sorted(shards):
            with self._transaction() as db:
                self._reconcile(db, first)
        with self._transaction() as db:
            # The triggers keep the sums, but a bit that flipped would be carried along for ever.
            query = f"SELECT COUNT(*), COALESCE(SUM({_COST.format('')}), 0) FROM entries"
            db.execute(f"UPDATE total SET (items, bytes) = ({query}), boot = ?", (boot,))

    def _distrust(self, db: sqlite3.Connection) -> None:
        """Check an index that was written before the machine was started."""
        if db.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise _NonsenseError("a damaged index")

    def _connection(self) -> sqlite3.Connection:
        """Return the connection to the newest index."""
        if self._closed:
            raise OSError(errno.EBADF, "the index is closed")
        if self._db is not None and not os.path.exists(self._path(self._number)):
            # Another process found it damaged.
            self._disconnect()
        if self._db is None:
            self.layout.make()
            with directory_lock(self.layout):
                self._db = self._connect()
        return self._db

    def _connect(self) -> sqlite3.Connection:
        self._number = max(self._numbers(), default=1)
        path = self._path(self._number)
        db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        # Not WAL, which maps a file into memory: where the disk is full, that can be a SIGBUS. The
        # journal stays where it is, so that there is room for it when something is to be removed.
        db.execute("PRAGMA journal_mode = PERSIST")
        db.execute("PRAGMA journal_size_limit = 1048576")
        # A process that dies does not damage the index, a power cut may: see `_distrust`.
        db.execute("PRAGMA synchronous = OFF")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(_SCHEMA)
        elif version != _SCHEMA_VERSION:
            raise _NonsenseError

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:
                pass  # a damaged one need not close

    def _numbers(self) -> list[int]:
        names = os.listdir(self.layout.root)
        return [int(match[1]) for name in names if (match := _INDEX.fullmatch(name))]

    def _path(self, number: int) -> str:
        return str(self.layout.root / f"trioproxy-index-{number}.sqlite3")

    def _supersede(self) -> None:
        """Begin a new index, as this one is damaged."""
        self._disconnect()
        number = self._number
        with directory_lock(self.layout):
            if os.path.exists(self._path(number)):
                # From here on everybody opens the new one, and finds the old one gone.
                os.close(os.open(self._path(number + 1), os.O_CREAT | os.O_RDWR, 0o600))
                for suffix in ("", "-journal", "-wal", "-shm"):
                    remove(self._path(number) + suffix)

    # -- transactions ------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do some work on the index; begin a new index and do it again if this one is damaged."""
        try:
            self._write_uses()
            return work()
        except (TypeError, ValueError, AttributeError, _NonsenseError):
            pass  # there is something in it that nobody has written
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                raise
        self._supersede()
        if work != self._catch_up:
            self._catch_up()
        return work()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the directory's lock."""
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            self.entries, self.bytes = db.execute("SELECT items, bytes FROM total").fetchone()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    # -- what the store asks for ---------------------------------------------------------------------

    def touch(self, name: bytes) -> None:
        """Note that an entry was used; this alone does not block, and is written down later."""
        self._touched[name] = self._now()

    @property
    def untold(self) -> int:
        """How many uses are not written down yet."""
        return len(self._touched)

    def flush(self) -> None:
        """Write the uses down."""
        self._guarded(lambda: None)

    def make_room(self, limit: int, name: bytes = b"", size: int = 0) -> bool:
        """Remove what was not used for longest until an entry has room; False where it never has.

        Args:
          limit: What all entries together may take, in bytes.
          name: An entry that is going to be replaced.
          size: Bytes of the one that comes.
        """
        return size <= limit and self._guarded(lambda: self._make_room(limit, name, size))

    def publish(self, path: str, row: Row, limit: int, begun: float) -> Outcome:
        """Make room for a finished file and put it in its place, if it may and can be there.

        Args:
          path: Where it is.
          row: What it will be.
          limit: What all entries together may take, in bytes.
          begun: When its writer began, in wall seconds.
        """
        if occupied(row.size) > limit:
            return Outcome.NO_ROOM

        def work() -> Outcome:
            while True:
                outcome = self._publish(path, row, limit, begun)
                if outcome is not Outcome.NO_ROOM:
                    return outcome
                if not self._make_room(limit, row.name, occupied(row.size)):
                    return outcome

        return self._guarded(work)

    def remove(
        self, name: bytes, generation: bytes | None = None, *, invalidate: bool = False
    ) -> bool:
        """Remove an entry and tell whether it was there.

        Args:
          name: The entry.
          generation: Of the only one that is to be removed; None for any.
          invalidate: Whether what is being written, in whatever process, is not to be kept.
        """

        def work() -> bool:
            with self._transaction() as db:
                if invalidate:
                    _note_purge(db, name)
                if generation is not None:
                    entry = self._open(name)
                    if entry is None or entry.prelude.generation != generation:
                        return False
                return self._remove(db, name)

        return self._guarded(work)

    def remove_bad(self, name: bytes) -> None:
        """Remove the file of an entry unless it is a good one by now."""

        def work() -> None:
            with self._transaction() as db:
                if self._open(name) is None:
                    self._remove(db, name)

        self._guarded(work)

    def remove_tag(self, tag: str) -> int:
        """Remove every entry with a tag, and return how many there were."""

        def work() -> int:
            removed = 0
            with self._transaction() as db:
                _note_purge(db, tag)
            while True:
                with self._transaction() as db:
                    query = "SELECT name FROM tags WHERE tag = ? LIMIT ?"
                    names = [name for (name,) in db.execute(query, (tag, _BATCH))]
                    removed += sum(self._remove(db, name) for name in names)
                    db.executemany(
                        "DELETE FROM tags WHERE tag = ? AND name = ?",
                        [(tag, name) for name in names],
                    )
                if len(names) < _BATCH:
                    return removed

        return self._guarded(work)

    def update_meta(self, name: bytes, meta: CacheMeta, limit: int) -> bool:
        """Give an entry other metadata, unless it is not the one that these were made from.

        Raises:
          ValueError: they are longer than `MAX_HEAD`.
          OSError, sqlite3.Error: that failed.
        """
        encoded = meta.to_bytes()
        if len(encoded) > MAX_HEAD:
            raise ValueError(f"metadata of {len(encoded)} bytes")

        def work() -> bool:
            with self._transaction() as db:
                entry = self._open(name)
                if entry is None or entry.decoded_meta().created != meta.created:
                    return False
                content = encode_side(entry.prelude.generation, encoded)
                write_side(self.layout, name, content, fsync=self._fsync)
                db.execute("UPDATE entries SET side = ? WHERE name = ?", (len(content), name))
                db.execute("DELETE FROM tags WHERE name = ?", (name,))
                _add_tags(db, name, cache_tags(meta))
            self._make_room(limit, name, 0)
            return True

        return self._guarded(work)

    # -- within a transaction ------------------------------------------------------------------------

    def _publish(self, path: str, row: Row, limit: int, begun: float) -> Outcome:
        """Put a file in its place if there is room."""
        moved = False
        try:
            with self._transaction() as db:
                if _purged_since(db, row, begun):
                    remove(path)
                    return Outcome.PURGED
                if self._excess(db, limit, row.name, occupied(row.size)) > 0:
                    return Outcome.NO_ROOM
                self._insert(db, row, self._now())
                self._limit_variants(db, row)
                self._move(path, row.name)
                moved = True
        except BaseException:
            if moved:
                # Without a row it would escape the limit.
                remove(self.layout.entry(row.name))
            raise
        return Outcome.KEPT

    def _excess(self, db: sqlite3.Connection, limit: int, name: bytes, size: int) -> int:
        """Return how many bytes have to go before an entry may come, or replace what it was."""
        query = "SELECT bytes - COALESCE((SELECT size + side FROM entries WHERE name = ?), 0) FROM total"
        (others,) = db.execute(query, (name,)).fetchone()
        return int(others) + size - limit

    def _make_room(self, limit: int, name: bytes, size: int) -> bool:
        cost = _COST.format("")
        query = f"SELECT name, {cost} FROM entries WHERE name != ? ORDER BY used LIMIT ?"
        while True:
            with self._transaction() as db:
                excess = self._excess(db, limit, name, size)
                if excess <= 0:
                    return True
                victims = db.execute(query, (name, _BATCH)).fetchall()
                if not victims:
                    if excess > size - limit:
                        raise _NonsenseError("bytes of no entry")
                    return False
                for victim, freed in victims:
                    self._remove(db, victim)
                    self.evictions += 1
                    excess -= freed
                    if excess <= 0:
                        return True

    def _limit_variants(self, db: sqlite3.Connection, row: Row) -> None:
        """Remove the variants of a resource that were not used for longest (row C-07)."""
        query = "SELECT name FROM entries WHERE resource = ? ORDER BY used DESC LIMIT -1 OFFSET ?"
        if row.resource is not None:
            for (name,) in db.execute(query, (row.resource, MAX_VARIANTS)).fetchall():
                self._remove(db, name)
                self.evictions += 1

    def _move(self, path: str, name: bytes) -> None:
        target = self.layout.entry(name)
        try:
            os.replace(path, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            os.replace(path, target)
        remove(self.layout.side(name))
        if self._fsync:
            sync_directory(os.path.dirname(target))

    def _remove(self, db: sqlite3.Connection, name: bytes) -> bool:
        removed = remove(self.layout.entry(name))
        remove(self.layout.side(name))
        db.execute("DELETE FROM entries WHERE name = ?", (name,))
        return removed

    def _open(self, name: bytes) -> EntryFile | None:
        """Open an entry for its head alone; None where there is none, or not a good one."""
        try:
            entry = open_entry(self.layout.entry(name))
            if entry is not None:
                entry.file.close()
                entry.check(name)
                entry.decoded_meta()
        except BadFileError:
            return None
        return entry

    def _insert(self, db: sqlite3.Connection, row: Row, used: float) -> None:
        db.execute("DELETE FROM entries WHERE name = ?", (row.name,))
        values = (row.name, row.size, row.side, row.modified, used, row.resource)
        db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", values)
        _add_tags(db, row.name, row.tags)

    def _reconcile(self, db: sqlite3.Connection, first: int) -> None:
        """Bring the rows of one shard up to its files, and remove what is torn or foreign there."""
        files, sides = self._list(first)
        query = "SELECT name, size, modified, side FROM entries WHERE name >= ? AND name < ?"
        # A longer name than any stands for the end of the last shard.
        limits = (bytes([first]), bytes([first + 1]) if first < 255 else b"\xff" * 17)
        known = {name: tuple(rest) for name, *rest in db.execute(query, limits).fetchall()}
        db.executemany(
            "DELETE FROM entries WHERE name = ?", [(name,) for name in known if name not in files]
        )
        for name, (size, modified) in files.items():
            if known.get(name) != (size, modified, sides.get(name, 0)):
                row = self._row_of(name)
                if row is None:
                    self._remove(db, name)
                else:
                    self._insert(db, row, modified / 1e9)
                    if not row.side:
                        # That of an entry before it, whose replacing was cut short.
                        remove(self.layout.side(name))
        for name in sides.keys() - files.keys():
            remove(self.layout.side(name))

    def _list(self, first: int) -> tuple[dict[bytes, tuple[int, int]], dict[bytes, int]]:
        """Return size and time of the entries of a shard, and the sizes of their side files."""
        files: dict[bytes, tuple[int, int]] = {}
        sides: dict[bytes, int] = {}
        try:
            listing = list(os.scandir(self.layout.shard(first)))
        except FileNotFoundError:
            return files, sides
        for each in listing:
            name = object_name(each.name.removesuffix(".meta"), first)
            if name is not None and each.is_file(follow_symlinks=False):
                status = each.stat()
                if each.name.endswith(".meta"):
                    sides[name] = status.st_size
                else:
                    files[name] = (status.st_size, status.st_mtime_ns)
        return files, sides

    def _row_of(self, name: bytes) -> Row | None:
        """Return the row of an entry by its head, or None where it is no entry."""
        entry = self._open(name)
        if entry is None:
            return None
        tags = cache_tags(entry.decoded_meta())
        size, key = entry.prelude.file_size, entry.head.key
        return Row(name, size, entry.modified, tags, resource_of(key), entry.side_size)

    def _write_uses(self) -> None:
        touched, self._touched = self._touched, {}
        if touched:
            with self._transaction() as db:
                uses = [(used, name) for name, used in list(touched.items())]
                db.executemany("UPDATE entries SET used = ? WHERE name = ?", uses)

    def _now(self) -> float:
        """Return the time of a use: no two of one process are at the same."""
        self._last_use = max(wall_time(), self._last_use + 1e-6)
        return self._last_use


class _NonsenseError(Exception):
    """The index is of another version, or its numbers contradict each other."""


def _boot() -> str:
    """Return what is another one after each start of the machine; at random where that is unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.urandom(8).hex()


def _shard_numbers(filenames: Iterable[str]) -> set[int]:
    return {int(each, 16) for each in filenames if re.fullmatch("[0-9a-f]{2}", each)}


def resource_of(key: CacheKey) -> bytes | None:
    """Return what the variants of a resource have in common; None for its primary slot."""
    return None if key.variance is None else key.primary_hash


def _note_purge(db: sqlite3.Connection, what: bytes | str) -> None:
    """Note that an entry, or a tag, was purged, for those who are writing in other processes."""
    now = wall_time()
    db.execute("DELETE FROM purged WHERE at < ?", (now - _REMEMBERED,))
    db.execute("INSERT OR REPLACE INTO purged VALUES (?, ?)", (what, now))


def _purged_since(db: sqlite3.Connection, row: Row, begun: float) -> bool:
    query = "SELECT at FROM purged WHERE what = ? AND at > ?"
    return any(
        db.execute(query, (what, begun)).fetchone() is not None for what in (row.name, *row.tags)
    )


def _add_tags(db: sqlite3.Connection, name: bytes, tags: Iterable[str]) -> None:
    db.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, name) for tag in tags])
