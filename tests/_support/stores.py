"""Keys, metadata and bodies for the tests of cache stores."""

from __future__ import annotations

import trio

from trioproxy import ResponseHeader
from trioproxy.cache._key import CacheKey
from trioproxy.cache._meta import CacheMeta
from trioproxy.cache._storage import Created, HitHandler, Storage

NOW = 1.5e9


def make_key(name: str = "a", variant: int | None = None, *, tag: str = "") -> CacheKey:
    """Return a key, of one variant where a number is given."""
    variance = None if variant is None else variant.to_bytes(16, "big")
    return CacheKey(b"test", name.encode(), tag, variance)


def make_meta(
    *fields: tuple[str, str], created: float = NOW, extensions: dict[str, bytes] | None = None
) -> CacheMeta:
    """Return the metadata of a response with these fields."""
    return CacheMeta(
        header=ResponseHeader(200, fields),
        created=created,
        updated=created,
        fresh_until=created + 60,
        extensions=extensions or {},
    )


async def fill(store: Storage, key: CacheKey, *pieces: bytes, meta: CacheMeta | None = None) -> int:
    """Store a response and return what it counts for."""
    writer = await store.get_miss_handler(key, meta or make_meta())
    for piece in pieces:
        await writer.write_body(piece, False)
    await writer.write_body(b"", True)
    result = await writer.finish()
    assert isinstance(result, Created)
    return result.size


async def rest(reader: HitHandler) -> bytes:
    """Return what a reader still has, up to its end."""
    pieces = []
    with trio.fail_after(10):
        while (piece := await reader.read_body()) is not None:
            pieces.append(piece)
    return b"".join(pieces)


async def body(store: Storage, key: CacheKey) -> bytes | None:
    """Return the body that a look-up finds, read to its end."""
    found = await store.lookup(key)
    if found is None:
        return None
    _, reader = found
    try:
        return await rest(reader)
    finally:
        await reader.finish()
