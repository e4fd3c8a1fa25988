"""Which keys were not cacheable the last time, so that nobody looks them up or waits for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._policy import NoCacheReason

if TYPE_CHECKING:
    from ._key import CacheKey

#: Reasons that speak of the resource; the others speak of this one exchange.
_MARKED = (NoCacheReason.OriginNotCache, NoCacheReason.ResponseTooLarge)


class Predictor:
    """Remembers keys whose response was not cacheable (Pingora's ``Predictor``).

    A variant is not known before the lookup, so all variants of a key count as one. What leaves
    the memory counts as cacheable again, as does what was never seen.
    """

    def __init__(
        self, capacity: int, skip_custom_reasons: Callable[[str], bool] | None = None
    ) -> None:
        """Make a predictor that has seen nothing.

        Args:
          capacity: Keys to remember, the least recently marked forgotten first.
          skip_custom_reasons: Tells of the name of a custom reason whether it is not worth
            remembering, as it may be another one the next time.
        """
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: a predictor remembers at least one key")
        self._capacity = capacity
        self._skip = skip_custom_reasons
        self._uncacheable: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uncacheable)

    def cacheable_prediction(self, key: CacheKey) -> bool:
        """Return whether the response is likely cacheable; asking does not refresh the memory."""
        return key.primary_hash not in self._uncacheable

    def mark_cacheable(self, key: CacheKey) -> bool:
        """Forget that the key was not cacheable; return whether it was cacheable before."""
        if key.primary_hash not in self._uncacheable:
            return True
        del self._uncacheable[key.primary_hash]
        return False

    def mark_uncacheable(self, key: CacheKey, reason: NoCacheReason) -> bool | None:
        """Remember that the key is not cacheable, where the reason says so of the resource.

        Returns:
          Whether this is news; None where the reason does not count.
        """
        if not self._counts(reason):
            return None
        name = key.primary_hash
        news = name not in self._uncacheable
        self._uncacheable[name] = None
        self._uncacheable.move_to_end(name)
        if len(self._uncacheable) > self._capacity:
            self._uncacheable.popitem(last=False)
        return news

    def _counts(self, reason: NoCacheReason) -> bool:
        if reason.custom:
            return self._skip is None or not self._skip(reason.name)
        return reason in _MARKED
