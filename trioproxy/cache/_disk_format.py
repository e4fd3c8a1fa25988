"""The files of a disk store: from values to bytes and back, without any I/O.

An entry is one file::

    prelude | head | block 0 | block 1 | ...

The prelude has a fixed length and is written last, over zeros: a file that was never finished has
none. It tells the length of everything, so that a file that was cut is known by its size, and
holds a digest over itself and the head. The head holds the whole key, so that a file under a wrong
name is known, and the metadata as the response came.

The body is cut into blocks of `BLOCK` bytes, each followed by a checksum that also covers which
file and which place it belongs to. A block is checked before any byte of it is used, and a range
is checked like the whole.

Metadata that changed later lies in a small file of its own beside the entry, bound to it by the
entry's generation: 16 random bytes that no other file has.
"""

from __future__ import annotations

import struct
import zlib
from hashlib import blake2b

import attrs

from ._key import CacheKey

#: Body bytes of a block, which is also the largest piece that is read or written at once.
BLOCK = 65536
#: Bytes of a block's checksum.
SEAL = 4
#: Bytes of a generation.
GENERATION = 16
#: The most bytes that key and metadata may take together.
MAX_HEAD = 1 << 20

#: What file systems give room in; a store of small entries would outgrow its limit several times.
UNIT = 4096

_ENTRY_MAGIC = b"\x89tpcache"
_SIDE_MAGIC = b"\x89tpcmeta"
_VERSION = 1
_DIGEST = 16
# Magic, version, four bytes for later versions, length of the head, length of the body, generation.
_FIXED = struct.Struct("<8sHIIQ16s")
_SIDE = struct.Struct("<8sHII16s")
_LENGTH = struct.Struct("<I")
_SEAL = struct.Struct("<I")

#: Bytes of a prelude.
PRELUDE = _FIXED.size + _DIGEST
#: Bytes of a side file in front of its metadata.
SIDE_PRELUDE = _SIDE.size + _DIGEST


class BadFileError(ValueError):
    """A file is torn, foreign, of another version, or not where it belongs."""


@attrs.frozen
class Head:
    """What stands in front of a body.

    Attributes:
      key: The whole key.
      meta: The metadata, in its own form.
    """

    key: CacheKey
    meta: bytes

    def encode(self) -> bytes:
        """Return the bytes of the head.

        Raises:
          ValueError: it is longer than `MAX_HEAD`.
        """
        key = self.key
        variance = (b"", b"") if key.variance is None else (b"\x01", key.variance)
        user_tag = key.user_tag.encode("utf-8", "surrogatepass")
        parts = (key.namespace, key.primary, user_tag, *variance, self.meta)
        encoded = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
        if len(encoded) > MAX_HEAD:
            raise ValueError(f"key and metadata take {len(encoded)} bytes, the limit is {MAX_HEAD}")
        return encoded

    @classmethod
    def decode(cls, encoded: bytes) -> Head:
        """Return the head of these bytes, whose digest was right.

        Raises:
          BadFileError: they are none.
        """
        parts = []
        at = 0
        while at < len(encoded):
            if at + _LENGTH.size > len(encoded):
                raise BadFileError("a part of the head is cut")
            (length,) = _LENGTH.unpack_from(encoded, at)
            at += _LENGTH.size
            if at + length > len(encoded):
                raise BadFileError("a part of the head is cut")
            parts.append(encoded[at : at + length])
            at += length
        if len(parts) != 6:
            raise BadFileError("the head has the wrong number of parts")
        namespace, primary, user_tag, varies, variance, meta = parts
        try:
            tag = user_tag.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise BadFileError("the tag of the key is not text") from None
        return cls(CacheKey(namespace, primary, tag, variance if varies else None), meta)


@attrs.frozen
class Prelude:
    """The first bytes of an entry's file.

    Attributes:
      head_size: Bytes of the head.
      body_size: Bytes of the body, without checksums.
      generation: What tells this file from every other one.
      digest: Of the three above and the head.
    """

    head_size: int
    body_size: int
    generation: bytes
    digest: bytes = b""

    @property
    def body_at(self) -> int:
        """Where the first block begins."""
        return PRELUDE + self.head_size

    @property
    def file_size(self) -> int:
        """The length of the file."""
        return file_size(self.head_size, self.body_size)

    def encode(self, head: bytes) -> bytes:
        """Return the bytes of the prelude in front of this head."""
        fixed = _FIXED.pack(
            _ENTRY_MAGIC, _VERSION, 0, self.head_size, self.body_size, self.generation
        )
        return fixed + _digest(fixed, head)

    @classmethod
    def decode(cls, start: bytes, size: int) -> Prelude:
        """Return the prelude at the start of a file of ``size`` bytes.

        Raises:
          BadFileError: it is no entry, or it was cut or has grown.
        """
        if len(start) < PRELUDE:
            raise BadFileError("shorter than a prelude")
        magic, version, later, head_size, body_size, generation = _FIXED.unpack_from(start)
        if magic != _ENTRY_MAGIC:
            raise BadFileError("not an entry, or never finished")
        if version != _VERSION or later:
            raise BadFileError(f"an entry of version {version}, {later}")
        if head_size > MAX_HEAD:
            raise BadFileError("the head is too long")
        prelude = cls(head_size, body_size, generation, start[_FIXED.size : PRELUDE])
        if prelude.file_size != size:
            raise BadFileError(f"{size} bytes long instead of {prelude.file_size}")
        return prelude

    def check(self, head: bytes) -> None:
        """Check the digest.

        Raises:
          BadFileError: prelude or head have changed.
        """
        if self.encode(head)[_FIXED.size :] != self.digest:
            raise BadFileError("the digest of the head is wrong")


def encode_side(generation: bytes, meta: bytes) -> bytes:
    """Return the file that holds later metadata of an entry."""
    fixed = _SIDE.pack(_SIDE_MAGIC, _VERSION, 0, len(meta), generation)
    return fixed + _digest(fixed, meta) + meta


def decode_side(content: bytes, generation: bytes) -> bytes:
    """Return the metadata in a side file that belongs to the entry of this generation.

    Raises:
      BadFileError: it is none, was cut, or belongs to another entry.
    """
    if len(content) < SIDE_PRELUDE:
        raise BadFileError("shorter than a prelude")
    magic, version, later, length, owner = _SIDE.unpack_from(content)
    meta = content[SIDE_PRELUDE:]
    if (magic, version, later, length) != (_SIDE_MAGIC, _VERSION, 0, len(meta)):
        raise BadFileError("not a side file of this version, or cut")
    if owner != generation:
        raise BadFileError("the metadata of another entry")
    fixed = content[: _SIDE.size]
    if _digest(fixed, meta) != content[_SIDE.size : SIDE_PRELUDE]:
        raise BadFileError("the digest of the metadata is wrong")
    return meta


def file_size(head_size: int, body_size: int) -> int:
    """Return the length of an entry's file."""
    blocks = -(-body_size // BLOCK)
    return PRELUDE + head_size + body_size + blocks * SEAL


def occupied(size: int) -> int:
    """Return what a file of this length takes on the medium, in whole `UNIT` bytes."""
    return -(-size // UNIT) * UNIT


def block_at(body_at: int, index: int) -> int:
    """Return where a block begins."""
    return body_at + index * (BLOCK + SEAL)


def seal(data: bytes | bytearray | memoryview, generation: bytes, index: int) -> bytes:
    """Return the checksum of a block in its place."""
    return _SEAL.pack(zlib.crc32(data, _seed(generation, index)))


def open_block(block: bytes, generation: bytes, index: int) -> memoryview:
    """Return the bytes of a block, checked.

    Raises:
      BadFileError: they have changed, or are those of another place.
    """
    view = memoryview(block)
    data = view[:-SEAL]
    if len(view) <= SEAL or seal(data, generation, index) != view[-SEAL:]:
        raise BadFileError(f"the checksum of block {index} is wrong")
    return data


def _seed(generation: bytes, index: int) -> int:
    return zlib.crc32(_LENGTH.pack(index & 0xFFFFFFFF), zlib.crc32(generation))


def _digest(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=_DIGEST)
    for part in parts:
        digest.update(part)
    return digest.digest()
