"""What a stored response is found by: its key, and the variant of it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from hashlib import blake2b

import attrs

from .._messages import RequestHeader

_DIGEST_BYTES = 16
_LONGEST_CACHED = 256
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _joined(parts: Iterable[bytes]) -> bytes:
    """Join parts so that no other parts give the same bytes (decision 14)."""
    return b"".join([b"%d:%b," % (len(part), part) for part in parts])


def _digest(parts: Iterable[bytes]) -> bytes:
    return blake2b(_joined(parts), digest_size=_DIGEST_BYTES).digest()


def _combined(primary_hash: bytes, variance: bytes | None) -> bytes:
    return primary_hash if variance is None else _digest((primary_hash, variance))


@attrs.frozen
class CompactKey:
    """A key as eviction and purge need it: hashes alone (Pingora's ``CompactCacheKey``).

    Attributes:
      primary_hash: The 16 bytes that name the key without its variant.
      variance: The 16 bytes of the variant, or None for the primary slot.
      user_tag: Whose entry it is.
    """

    primary_hash: bytes
    variance: bytes | None = None
    user_tag: str = ""

    @property
    def combined_hash(self) -> bytes:
        """The 16 bytes that name the slot."""
        return _combined(self.primary_hash, self.variance)


@attrs.frozen
class CacheKey:
    """What a response is stored under (Pingora's ``CacheKey``).

    Attributes:
      namespace: Keeps the keys of one user of a storage apart from another's.
      primary: What is asked for; see `default_cache_key`.
      user_tag: Whose entry it is; it is not hashed.
      variance: The variant, as `VarianceBuilder` makes it, or None for the primary slot.
      primary_hash: The 16 bytes that name the key without its variant (BLAKE2b).
      combined_hash: The 16 bytes that name the slot; those of the key where there is no variant.
    """

    namespace: bytes
    primary: bytes
    user_tag: str = ""
    variance: bytes | None = None
    primary_hash: bytes = attrs.field(init=False, eq=False, repr=False)
    combined_hash: bytes = attrs.field(init=False, eq=False, repr=False)

    @primary_hash.default
    def _hash_primary(self) -> bytes:
        return _digest((self.namespace, self.primary))

    @combined_hash.default
    def _hash_all(self) -> bytes:
        return _combined(self.primary_hash, self.variance)

    def with_variance(self, variance: bytes | None) -> CacheKey:
        """Return the key of another variant; None is the primary slot."""
        if variance == self.variance:
            return self
        return CacheKey(self.namespace, self.primary, self.user_tag, variance)

    def compact(self) -> CompactKey:
        """Return the key as eviction and purge need it."""
        return CompactKey(self.primary_hash, self.variance, self.user_tag)


def default_cache_key(request: RequestHeader, *, namespace: bytes = b"") -> CacheKey:
    """Return the key of a request: method, scheme, authority and the whole target (row C-01).

    HEAD shares the key of GET. The authority counts in lower case and without the scheme's own
    port; the target counts byte for byte. No other field is part of it.

    Args:
      request: The request.
      namespace: Of the key.
    """
    method, scheme, authority = request.method, request.scheme, request.authority
    if len(authority) <= _LONGEST_CACHED:
        origin = _cached_origin(method, scheme, authority)
    else:
        origin = _origin(method, scheme, authority)
    target = request.target
    return CacheKey(namespace, b"%b%d:%b," % (origin, len(target), target))


def _origin(method: str, scheme: str, authority: str) -> bytes:
    if method == "HEAD":
        method = "GET"
    scheme = scheme.lower()
    authority = normal_authority(scheme, authority)
    return _joined((method.encode(), scheme.encode(), authority.encode("latin-1")))


_cached_origin = functools.lru_cache(maxsize=1024)(_origin)


def normal_authority(scheme: str, authority: str) -> str:
    """Return an authority in lower case, without its scheme's own port (RFC 9110 section 4.2.3)."""
    authority = authority.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ":"))
    return authority.removesuffix(":")


class VarianceBuilder:
    """Collects what a variant depends on (Pingora's ``VarianceBuilder``).

    The order in which it is added does not count, and each name counts once, the last time.
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[bytes, bytes | None] = {}

    def add(self, name: str | bytes, value: str | bytes | None) -> VarianceBuilder:
        """Add a value; None says that it is absent, which is not the same as empty.

        Args:
          name: What varies, a field's name for one; its case does not count.
          value: The value that this request has.

        Returns:
          The builder, so that calls can be chained.
        """
        raw = name.encode("utf-8") if isinstance(name, str) else name
        self._values[raw.lower()] = value.encode("utf-8") if isinstance(value, str) else value
        return self

    def finalize(self) -> bytes | None:
        """Return the variance, 16 bytes; None where nothing was added."""
        if not self._values:
            return None
        parts: list[bytes] = []
        for name, value in sorted(self._values.items(), key=lambda pair: pair[0]):
            parts += (name, b"absent") if value is None else (name, b"is", value)
        return _digest(parts)
