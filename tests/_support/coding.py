"""Content codings by libraries that the proxy's own code does not go through: one shot, all or nothing."""

from __future__ import annotations

import functools
import gzip
import importlib
import zlib
from collections.abc import Callable
from typing import Any

brotli: Any = importlib.import_module("brotli")
try:
    zstd: Any = importlib.import_module("compression.zstd")
except ImportError:
    zstd = importlib.import_module("backports.zstd")


def _inflate(data: bytes) -> bytes:
    """Decode deflate, and refuse what is not whole."""
    inner = zlib.decompressobj(15)
    decoded = inner.decompress(data)
    assert inner.eof
    assert not inner.unused_data
    return decoded


DECODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": _inflate,
    "br": brotli.decompress,
    "zstd": zstd.decompress,
}
ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": functools.partial(brotli.compress, quality=5),
    "zstd": zstd.compress,
}


def so_far(coding: str) -> Callable[[bytes], bytes]:
    """Return a decoder for what has come up to now: each call takes more, and gives what it can."""
    if coding == "br":
        return brotli.Decompressor().process  # type: ignore[no-any-return]
    if coding == "zstd":
        return zstd.ZstdDecompressor().decompress  # type: ignore[no-any-return]
    return zlib.decompressobj(31 if coding == "gzip" else 15).decompress
