"""Where a disk store keeps its files, and reading and writing one: everything here blocks.

The directory::

    objects/ab/abcdef...        an entry, named by the combined hash of its key
    objects/ab/abcdef....meta   its metadata, where that changed later
    partial/<random>.part       an entry being written, locked by its writer as long as it lives
    partial/<random>.side       a side file being written
    trioproxy-index-N.sqlite3   the index, see `_disk_index`
    trioproxy-lock              empty; locked while an index is made

Names of any other form are none of ours, and nobody touches them.
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from ._disk_format import (
    BLOCK,
    GENERATION,
    MAX_HEAD,
    PRELUDE,
    SEAL,
    SIDE_PRELUDE,
    BadFileError,
    Head,
    Prelude,
    block_at,
    decode_side,
    open_block,
    seal,
)
from ._meta import CacheMeta

if sys.platform != "win32":
    import fcntl

# One read brings the head and the whole first block of nearly every entry.
_FIRST_READ = BLOCK + SEAL + 4096
_OBJECT = re.compile(r"[0-9a-f]{32}")
# Without waiting for a writer, should somebody have put a pipe there.
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@attrs.frozen
class Layout:
    """The names inside the directory.

    Attributes:
      root: The directory.
    """

    root: Path

    @property
    def objects(self) -> Path:
        """Where the entries are."""
        return self.root / "objects"

    @property
    def partial(self) -> Path:
        """Where files are written."""
        return self.root / "partial"

    def shard(self, first: int) -> str:
        """Return the directory of the entries whose name begins with this byte."""
        return f"{self.root}{os.sep}objects{os.sep}{first:02x}"

    def entry(self, name: bytes) -> str:
        """Return the path of an entry."""
        return f"{self.root}{os.sep}objects{os.sep}{name[:1].hex()}{os.sep}{name.hex()}"

    def side(self, name: bytes) -> str:
        """Return the path of an entry's side file."""
        return self.entry(name) + ".meta"

    def make(self) -> None:
        """Make what is missing of the directory, for the owner's eyes only."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.objects.mkdir(mode=0o700, exist_ok=True)
        self.partial.mkdir(mode=0o700, exist_ok=True)


def object_name(filename: str, first: int) -> bytes | None:
    """Return the name of the entry that such a file in this shard is, or None for others."""
    if _OBJECT.fullmatch(filename) is None:
        return None
    name = bytes.fromhex(filename)
    return name if name[0] == first else None


def remove(path: str) -> bool:
    """Remove a file and tell whether it was there.

    Raises:
      OSError: it is there and cannot be removed.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


@attrs.frozen
class EntryFile:
    """A complete entry, open for reading.

    Attributes:
      file: The open file.
      prelude: Its prelude.
      head: Its head.
      meta: Its metadata: that of the side file, where it has one of its own.
      start: What the first read brought, from the file's first byte.
      modified: When the file was last written, in nanoseconds since the epoch.
      side_size: Bytes of the side file, 0 without.
    """

    file: io.FileIO
    prelude: Prelude
    head: Head
    meta: bytes
    start: bytes
    modified: int
    side_size: int

    def check(self, name: bytes) -> memoryview | None:
        """Check that it is the entry of this name, and return the first block if that was read.

        Raises:
          BadFileError: it is not, or has changed.
        """
        if self.head.key.combined_hash != name:
            raise BadFileError("the entry of another key")
        return self._first_block()

    def decoded_meta(self) -> CacheMeta:
        """Return the metadata.

        Raises:
          BadFileError: they are of another version.
        """
        try:
            return CacheMeta.from_bytes(self.meta)
        except ValueError as error:
            raise BadFileError(f"not metadata: {error}") from error

    def _first_block(self) -> memoryview | None:
        length = min(BLOCK, self.prelude.body_size)
        begin = self.prelude.body_at
        block = self.start[begin : begin + length + SEAL]
        if not length or len(block) < length + SEAL:
            return None
        return open_block(block, self.prelude.generation, 0)


def open_entry(path: str) -> EntryFile | None:
    """Open an entry and check its head and its length; None where there is no such file.

    Raises:
      BadFileError: the file is torn or foreign.
      OSError: it cannot be read.
    """
    file = _open_to_read(path)
    if file is None:
        return None
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadFileError("not a file")
        start = read_at(file.fileno(), _FIRST_READ, 0)
        prelude = Prelude.decode(start, status.st_size)
        encoded = start[PRELUDE : prelude.body_at]
        if len(encoded) < prelude.head_size:
            encoded += read_at(file.fileno(), prelude.head_size - len(encoded), len(start))
        prelude.check(encoded)
        head = Head.decode(encoded)
        side = _read_side(path + ".meta", prelude.generation)
        return EntryFile(
            file=file,
            prelude=prelude,
            head=head,
            meta=head.meta if side is None else side,
            start=start,
            modified=status.st_mtime_ns,
            side_size=0 if side is None else SIDE_PRELUDE + len(side),
        )
    except BaseException:
        file.close()
        raise


def _open_to_read(path: str) -> io.FileIO | None:
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    try:
        return io.FileIO(descriptor)
    except IsADirectoryError:
        os.close(descriptor)
        raise BadFileError("a directory in the place of an entry") from None


def _read_side(path: str, generation: bytes) -> bytes | None:
    """Return the later metadata of an entry; a side file that is not its own does not count."""
    file = _open_to_read(path)
    if file is None:
        return None
    with file:
        try:
            return decode_side(read_at(file.fileno(), SIDE_PRELUDE + MAX_HEAD, 0), generation)
        except BadFileError:
            return None


def read_block(descriptor: int, body_at: int, generation: bytes, index: int) -> memoryview:
    """Read a block and check it.

    Raises:
      BadFileError: it has changed, or the file was cut.
      OSError: it cannot be read.
    """
    block = read_at(descriptor, BLOCK + SEAL, block_at(body_at, index))
    return open_block(block, generation, index)


def read_at(descriptor: int, length: int, at: int) -> bytes:
    """Read up to ``length`` bytes from a place; fewer only at the end of the file."""
    if hasattr(os, "pread"):
        data = os.pread(descriptor, length, at)
        while data and len(data) < length:
            more = os.pread(descriptor, length - len(data), at + len(data))
            if not more:
                break
            data += more
        return data
    os.lseek(descriptor, at, os.SEEK_SET)
    pieces = []
    while length and (piece := os.read(descriptor, length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


class PartialFile:
    """An entry's file while it is written, under a name that nobody looks up.

    The lock that it holds on the file ends with the process, however that ends, and so tells
    another process which of these files nobody will finish.

    Attributes:
      path: Where it is.
      file: The open file.
      generation: Of the entry.
    """

    def __init__(self, layout: Layout, encoded_head: bytes, generation: bytes) -> None:
        """Create the file, with room for the prelude in front of the head.

        Raises:
          OSError: that failed; nothing is left behind.
        """
        self.generation = generation
        self._head = encoded_head
        self._blocks = 0
        self.path, descriptor = _create_locked(layout, ".part")
        self.file = io.FileIO(descriptor, "r+")
        try:
            _write_all(descriptor, bytes(PRELUDE) + encoded_head)
        except BaseException:
            self.file.close()
            os.unlink(self.path)
            raise

    def append(self, data: bytes | bytearray) -> None:
        """Write the next block; only the last one may be shorter than `BLOCK`."""
        checksum = seal(data, self.generation, self._blocks)
        _write_all(self.file.fileno(), data + checksum)
        self._blocks += 1

    def complete(self, body_size: int, *, fsync: bool) -> int:
        """Write the prelude, which makes it an entry, and return when it was last modified.

        Args:
          body_size: Bytes of the body.
          fsync: Whether to wait until everything is on the medium.
        """
        descriptor = self.file.fileno()
        prelude = Prelude(len(self._head), body_size, self.generation)
        if fsync:
            # The prelude must not be there before what it vouches for.
            os.fsync(descriptor)
        os.lseek(descriptor, 0, os.SEEK_SET)
        _write_all(descriptor, prelude.encode(self._head))
        if fsync:
            os.fsync(descriptor)
        return os.fstat(descriptor).st_mtime_ns


def _create_locked(layout: Layout, suffix: str) -> tuple[str, int]:
    """Create a file under a new name and lock it; return its path and descriptor."""
    while True:
        path = f"{layout.partial}{os.sep}{os.urandom(GENERATION).hex()}{suffix}"
        try:
            descriptor = os.open(path, _CREATE, 0o600)
        except FileNotFoundError:
            # Somebody has emptied the directory under us.
            layout.make()
            descriptor = os.open(path, _CREATE, 0o600)
        try:
            if _locked(descriptor) and os.path.exists(path):
                return path, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Another process took it for a dead one's in the moment before it was locked.
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Lock a file for this process, unless somebody else has."""
    # Without these locks there is Windows, where nobody can unlink what is open elsewhere.
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextmanager
def directory_lock(layout: Layout) -> Iterator[None]:
    """Keep the other processes out for a moment; only for what SQLite's own lock cannot cover."""
    descriptor = os.open(layout.root / "trioproxy-lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_side(layout: Layout, name: bytes, content: bytes, *, fsync: bool) -> None:
    """Put a side file into its place, whole or not at all."""
    path, descriptor = _create_locked(layout, ".side")
    try:
        try:
            _write_all(descriptor, content)
            if fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(path, layout.side(name))
    except BaseException:
        remove(path)
        raise


def sweep(layout: Layout) -> int:
    """Remove what dead processes left half written, and return how many files that were."""
    swept = 0
    for each in os.scandir(layout.partial):
        stem, suffix = os.path.splitext(each.name)
        if suffix not in (".part", ".side") or _OBJECT.fullmatch(stem) is None:
            continue
        try:
            descriptor = os.open(each.path, _READ)
            try:
                if _locked(descriptor):
                    swept += remove(each.path)
            finally:
                os.close(descriptor)
        except (FileNotFoundError, PermissionError):
            # Finished or swept by another process; or open there, on systems that mind.
            continue
    return swept


def sync_directory(path: str) -> None:
    """Wait until the names in a directory are on the medium."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
