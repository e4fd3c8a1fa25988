"""What the cache keeps about a stored response, and its form on a disk."""

from __future__ import annotations

import struct
import zlib

import attrs

from .._headers import Headers
from .._messages import ResponseHeader
from ..semantics._cache_control import MAX_SECONDS

_MAGIC = b"TPM\x01"  # the last byte is the version
# created, updated, fresh_until, initial_age; the two windows; status; the lengths of variance
# (plus one, 0 is none), reason (likewise) and version; how many extensions and fields.
_FIXED = struct.Struct("!ddddddHBHBHH")
_PAIR = struct.Struct("!HI")
_CHECK = struct.Struct("!I")


@attrs.define(kw_only=True)
class CacheMeta:
    """A stored response without its body (Pingora's ``CacheMeta``).

    Moments are wall-clock seconds since the epoch, windows are seconds.

    Attributes:
      header: The response's head: the fields that may be stored, without Age.
      created: When it was stored first.
      updated: When it was received, or validated last.
      fresh_until: Until when it may be served without asking; it is stale from then on.
      stale_while_revalidate: How long after that it may be served while it is being validated.
      stale_if_error: How long after that it may be served where the origin cannot answer.
      initial_age: Its age at ``updated`` (RFC 9111 section 4.2.3, ``corrected_initial_age``).
      variance: The variant that it is, None where it does not vary.
      extensions: What else users keep with it, by name.
    """

    header: ResponseHeader
    created: float
    updated: float
    fresh_until: float
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    initial_age: float = 0.0
    variance: bytes | None = None
    extensions: dict[str, bytes] = attrs.field(factory=dict)

    @property
    def status(self) -> int:
        """The response's status."""
        return self.header.status

    @property
    def born_stale(self) -> bool:
        """Whether it was never fresh, so that every use of it needs a validation."""
        return self.fresh_until <= self.updated

    def age(self, now: float) -> int:
        """Return the current age in whole seconds (RFC 9111 section 4.2.3)."""
        return int(min(self.initial_age + max(now - self.updated, 0.0), MAX_SECONDS))

    def is_fresh(self, now: float) -> bool:
        """Tell whether it may be served without asking (RFC 9111 section 4.2)."""
        return now < self.fresh_until

    def may_serve_stale_while_revalidating(self, now: float) -> bool:
        """Tell whether it may be served while it is being validated (RFC 5861 section 3)."""
        window = self.stale_while_revalidate  # 0 is never, were it even fresh: it may be refused
        return window > 0 and now < self.fresh_until + window

    def may_serve_stale_if_error(self, now: float) -> bool:
        """Tell whether it may be served where the origin cannot answer (RFC 5861 section 4)."""
        window = self.stale_if_error
        return window > 0 and now < self.fresh_until + window

    def disable_serve_stale(self) -> None:
        """Close both windows."""
        self.stale_while_revalidate = self.stale_if_error = 0.0

    def served_header(self, now: float) -> ResponseHeader:
        """Return the head as it is served from the cache: a copy, with its Age (section 5.1)."""
        header = self.header.copy()
        header.headers.fields.append((b"age", b"Age", b"%d" % self.age(now)))
        return header

    def to_bytes(self) -> bytes:
        """Return its compact form, which any later version of this package can tell from others.

        Raises:
          ValueError: something is too large for the form: 65,535 fields or extensions, 64 KiB of a
            name, 254 bytes of a variance.
        """
        header = self.header
        reason, version = header.reason, header.version.encode("ascii")
        try:
            parts = [
                _MAGIC,
                _FIXED.pack(
                    self.created,
                    self.updated,
                    self.fresh_until,
                    self.initial_age,
                    self.stale_while_revalidate,
                    self.stale_if_error,
                    header.status,
                    0 if self.variance is None else len(self.variance) + 1,
                    0 if reason is None else len(reason) + 1,
                    len(version),
                    len(self.extensions),
                    len(header.headers.fields),
                ),
                self.variance or b"",
                reason or b"",
                version,
            ]
            for key, value in self.extensions.items():
                name = key.encode("utf-8")
                parts += (_PAIR.pack(len(name), len(value)), name, value)
            for _, name, value in header.headers.fields:
                parts += (_PAIR.pack(len(name), len(value)), name, value)
        except struct.error as exc:
            raise ValueError(f"the metadata cannot be written: {exc}") from None
        whole = b"".join(parts)
        return whole + _CHECK.pack(zlib.crc32(whole))

    @classmethod
    def from_bytes(cls, data: bytes) -> CacheMeta:
        """Read what `to_bytes` wrote.

        Raises:
          ValueError: it was not written by `to_bytes` of this version, or it is damaged.
        """
        if data[:4] != _MAGIC:
            raise ValueError("not the metadata of a cached response, or of another version")
        end = len(data) - _CHECK.size
        if end < _FIXED.size or _CHECK.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
            raise ValueError("the metadata of a cached response is damaged")
        try:
            return _Reader(data, len(_MAGIC), end).meta()
        except (struct.error, UnicodeDecodeError) as exc:
            raise ValueError(f"the metadata of a cached response is damaged: {exc}") from None


class _Reader:
    """Takes the parts of the form off the bytes."""

    __slots__ = ("data", "end", "pos")

    def __init__(self, data: bytes, pos: int, end: int) -> None:
        self.data = data
        self.pos = pos
        self.end = end

    def meta(self) -> CacheMeta:
        fixed = _FIXED.unpack_from(self.data, self.pos)
        self.pos += _FIXED.size
        created, updated, fresh_until, initial_age, while_revalidate, if_error = fixed[:6]
        status, variance_length, reason_length, version_length, extensions, fields = fixed[6:]
        variance = self._optional(variance_length)
        reason = self._optional(reason_length)
        version = self._bytes(version_length).decode("ascii")
        meta = CacheMeta(
            header=ResponseHeader(status, reason=reason, version=version),
            created=created,
            updated=updated,
            fresh_until=fresh_until,
            stale_while_revalidate=while_revalidate,
            stale_if_error=if_error,
            initial_age=initial_age,
            variance=variance,
            extensions={name.decode(): value for name, value in self._pairs(extensions)},
        )
        meta.header.headers = Headers(self._pairs(fields))
        if self.pos != self.end:
            raise ValueError("the metadata of a cached response has something behind its end")
        return meta

    def _bytes(self, length: int) -> bytes:
        start = self.pos
        self.pos += length
        if self.pos > self.end:
            raise ValueError("the metadata of a cached response is cut")
        return self.data[start : self.pos]

    def _optional(self, length: int) -> bytes | None:
        return self._bytes(length - 1) if length else None

    def _pairs(self, count: int) -> list[tuple[bytes, bytes]]:
        pairs = []
        for _ in range(count):
            name_length, value_length = _PAIR.unpack(self._bytes(_PAIR.size))
            pairs.append((self._bytes(name_length), self._bytes(value_length)))
        return pairs
