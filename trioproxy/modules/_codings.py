"""The content codings: encoders that flush, and decoders that give a bounded piece at a time.

The one place that knows the libraries. gzip and deflate are always there; br and zstd come with the
extra ``compress``, and the fast levels of gzip and deflate are taken by isal where that is installed.
"""

from __future__ import annotations

import importlib
import inspect
import zlib
from abc import ABC, abstractmethod
from typing import Any

import attrs

#: Bytes that a decoder gives at a time, about.
PIECE = 65536

# 256 KiB of what went before is looked at: on what is usual on the web that is worth as much as a
# larger window, and a quarter of the memory.
_WINDOW_LOG = 18
# Tables of this size, for the same reason.
_TABLE_LOG = 17
# What a decoder has to take, and has to have memory for (RFC 9659).
_MAX_ZSTD_WINDOW_LOG = 23
# isal has its own levels, which are better than zlib's at its lowest ones.
_ISAL_LEVELS = 3
# Frames and members cost something even where they are empty.
_FREE_MEMBERS = 64
_BYTES_OF_MEMBER = 1024


class CodingError(Exception):
    """What was to be decoded is not what its coding says, or was cut off."""


class Encoder(ABC):
    """Encodes one body."""

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """Take a piece; return what comes of it now, which may be nothing."""

    @abstractmethod
    def flush(self) -> bytes:
        """Return what was held back, so that everything up to here can be decoded."""

    @abstractmethod
    def finish(self) -> bytes:
        """Return the end."""


class Decoder(ABC):
    """Decodes one body: feed a piece, then read until there is no `more`.

    Attributes:
      more: Whether `read` may give something without another `feed`.
    """

    def __init__(self) -> None:
        self.more = False
        self._begun = False

    def feed(self, data: bytes) -> None:
        """Take a piece; what was fed before has been read."""
        if data:
            self._begun = self.more = True
            self._take(data)

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """Remember a piece."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the next bytes, `PIECE` or a little more at most; sets `more`.

        Raises:
          CodingError: it cannot be decoded.
        """

    def finish(self) -> None:
        """Make sure that the end is the end; a body of no bytes at all counts as an empty one.

        Raises:
          CodingError: something is missing.
        """
        if self._begun and not self._ended:
            raise CodingError("it was cut off")

    @property
    @abstractmethod
    def _ended(self) -> bool:
        """Whether the end was there."""


# -- gzip and deflate ----------------------------------------------------------------------------


class _ZlibEncoder(Encoder):
    def __init__(self, level: int, wbits: int) -> None:
        library: Any = zlib
        if level <= _ISAL_LEVELS:
            library = _module("isal.isal_zlib") or zlib
        self._inner = library.compressobj(level, zlib.DEFLATED, wbits)

    def encode(self, data: bytes) -> bytes:
        encoded: bytes = self._inner.compress(data)
        return encoded

    def flush(self) -> bytes:
        flushed: bytes = self._inner.flush(zlib.Z_SYNC_FLUSH)
        return flushed

    def finish(self) -> bytes:
        end: bytes = self._inner.flush()
        return end


class _ZlibDecoder(Decoder):
    """gzip, of as many members as there are (RFC 1952 section 2.2), and deflate.

    What is called deflate is zlib's format (RFC 9110 section 8.4.1.2), but some send the bare
    compressed data; the first two bytes tell.
    """

    def __init__(self, *, gzip: bool) -> None:
        super().__init__()
        self._gzip = gzip
        self._inner = zlib.decompressobj(31) if gzip else None
        self._input = b""
        self._members = _Members()

    def _take(self, data: bytes) -> None:
        self._input += data
        self._members.count_bytes(len(data))

    def read(self) -> bytes:
        inner = self._inner
        if inner is None:
            if len(self._input) < 2:
                self.more = False
                return b""
            head = int.from_bytes(self._input[:2], "big")
            with_header = head >> 8 & 15 == zlib.DEFLATED and not head % 31
            inner = self._inner = zlib.decompressobj(15 if with_header else -15)
        try:
            while True:
                if inner.eof:
                    if not self._gzip:
                        raise CodingError("there is something behind its end")
                    self._members.begin()
                    inner = self._inner = zlib.decompressobj(31)
                data = inner.decompress(self._input, PIECE)
                self._input = inner.unused_data if inner.eof else inner.unconsumed_tail
                # With no input left some output may be waiting still, where this much came.
                self.more = bool(self._input) or (len(data) == PIECE and not inner.eof)
                if data or not self.more:
                    return data
        except zlib.error as exc:
            raise CodingError(str(exc)) from exc

    @property
    def _ended(self) -> bool:
        return self._inner is not None and self._inner.eof


@attrs.define
class _Members:
    """How many parts a body has, against how long it is: each costs something, empty or not."""

    size: int = 0
    number: int = 1

    def count_bytes(self, size: int) -> None:
        """Count what was fed."""
        self.size += size

    def begin(self) -> None:
        """Count a part."""
        self.number += 1
        if self.number > _FREE_MEMBERS + self.size // _BYTES_OF_MEMBER:
            raise CodingError(f"it is made of {self.number} parts and more")


# -- br ------------------------------------------------------------------------------------------


class _BrotliEncoder(Encoder):
    def __init__(self, level: int) -> None:
        self._inner = load("br").Compressor(quality=level, lgwin=_WINDOW_LOG)

    def encode(self, data: bytes) -> bytes:
        encoded: bytes = self._inner.process(data)
        return encoded

    def flush(self) -> bytes:
        flushed: bytes = self._inner.flush()
        return flushed

    def finish(self) -> bytes:
        end: bytes = self._inner.finish()
        return end


class _BrotliDecoder(Decoder):
    def __init__(self) -> None:
        super().__init__()
        library = load("br")
        self._error: type[Exception] = library.error
        self._inner = library.Decompressor()
        self._input = b""

    def _take(self, data: bytes) -> None:
        self._input = data

    def read(self) -> bytes:
        data, self._input = self._input, b""
        try:
            # It may give half as much again.
            decoded: bytes = self._inner.process(data, output_buffer_limit=PIECE // 2)
        except self._error as exc:
            raise CodingError(str(exc)) from exc
        # It says that it can take more while it still has something to give.
        waiting = decoded or not self._inner.can_accept_more_data()
        self.more = bool(waiting) and not self._inner.is_finished()
        return decoded

    @property
    def _ended(self) -> bool:
        ended: bool = self._inner.is_finished()
        return ended


# -- zstd ----------------------------------------------------------------------------------------


class _ZstdEncoder(Encoder):
    def __init__(self, level: int) -> None:
        library = load("zstd")
        parameter = library.CompressionParameter
        options = {
            parameter.compression_level: level,
            parameter.window_log: _WINDOW_LOG,
            parameter.hash_log: _TABLE_LOG,
            parameter.chain_log: _TABLE_LOG,
        }
        self._inner = library.ZstdCompressor(options=options)

    def encode(self, data: bytes) -> bytes:
        encoded: bytes = self._inner.compress(data)
        return encoded

    def flush(self) -> bytes:
        flushed: bytes = self._inner.flush(self._inner.FLUSH_BLOCK)
        return flushed

    def finish(self) -> bytes:
        end: bytes = self._inner.flush()
        return end


class _ZstdDecoder(Decoder):
    """Frames, as many as there are (RFC 8878 section 3.1)."""

    def __init__(self) -> None:
        super().__init__()
        self._library = load("zstd")
        self._inner = self._new()
        self._input = b""
        self._members = _Members()

    def _new(self) -> Any:
        limit = self._library.DecompressionParameter.window_log_max
        return self._library.ZstdDecompressor(options={limit: _MAX_ZSTD_WINDOW_LOG})

    def _take(self, data: bytes) -> None:
        self._input = data
        self._members.count_bytes(len(data))

    def read(self) -> bytes:
        try:
            while True:
                if self._inner.eof:
                    self._members.begin()
                    self._inner = self._new()
                data, self._input = self._input, b""
                decoded: bytes = self._inner.decompress(data, PIECE)
                if self._inner.eof:
                    self._input = self._inner.unused_data
                    self.more = bool(self._input)
                else:
                    self.more = not self._inner.needs_input
                if decoded or not self.more:
                    return decoded
        except self._library.ZstdError as exc:
            raise CodingError(str(exc)) from exc

    @property
    def _ended(self) -> bool:
        ended: bool = self._inner.eof
        return ended


# -- all of them ---------------------------------------------------------------------------------


@attrs.frozen
class Coding:
    """What there is to know of a coding.

    Attributes:
      name: What it is called in Content-Encoding.
      top: The highest level; 1 is the lowest.
      slow: From this level on a piece of 64 KiB takes longer than an event loop should wait.
    """

    name: str
    top: int
    slow: int


#: The codings that we know, those that we would rather use first.
CODINGS = {
    coding.name: coding
    for coding in (
        Coding("zstd", 19, 13),
        Coding("br", 11, 9),
        Coding("gzip", 9, 9),
        Coding("deflate", 9, 9),
    )
}

_MODULES: dict[str, Any] = {}


def _module(name: str) -> Any:
    """Return a module that is perhaps not installed, or None; asked once."""
    if name not in _MODULES:
        try:
            _MODULES[name] = importlib.import_module(name)
        except ImportError:
            _MODULES[name] = None
    return _MODULES[name]


def _library(coding: str) -> Any:
    if coding == "br":
        library = _module("brotli")
        # Before version 1.2 a small piece could become a gigabyte at once.
        if library is not None and "output_buffer_limit" in (
            inspect.getdoc(library.Decompressor.process) or ""
        ):
            return library
        return None
    return _module("compression.zstd") or _module("backports.zstd")


def available(coding: str) -> bool:
    """Tell whether a coding can be used here."""
    return coding in ("gzip", "deflate") or (coding in CODINGS and _library(coding) is not None)


def installed() -> tuple[str, ...]:
    """Return the codings that can be used here, those first that we would rather use."""
    return tuple(coding for coding in CODINGS if available(coding))


def load(coding: str) -> Any:
    """Return the library of a coding; None for those that need none.

    Raises:
      ValueError: it is not installed, with what to type.
    """
    if coding in ("gzip", "deflate"):
        return None
    library = _library(coding)
    if library is None:
        needs = "brotli 1.2 or newer" if coding == "br" else "backports.zstd, or Python 3.14"
        raise ValueError(f'{coding} needs {needs}: python -m pip install "trioproxy[compress]"')
    return library


def encoder(coding: str, level: int) -> Encoder:
    """Return a new encoder."""
    if coding == "br":
        return _BrotliEncoder(level)
    if coding == "zstd":
        return _ZstdEncoder(level)
    return _ZlibEncoder(level, 31 if coding == "gzip" else 15)


def decoder(coding: str) -> Decoder:
    """Return a new decoder."""
    if coding == "br":
        return _BrotliDecoder()
    if coding == "zstd":
        return _ZstdDecoder()
    return _ZlibDecoder(gzip=coding == "gzip")
