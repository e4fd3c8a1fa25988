"""A cache that many requests share: where it keeps things, by which rules, and what guards it."""

from __future__ import annotations

import attrs

from ._lock import CacheLock
from ._policy import SharedPolicy
from ._predictor import Predictor
from ._storage import Storage

#: Seconds for which one request may fill while others wait for it.
LOCK_AGE = 60.0
#: Keys that are remembered not to be cacheable.
PREDICTIONS = 16384


@attrs.frozen(eq=False, kw_only=True)
class SharedCache:
    """What `trioproxy.CachingProxy` caches with.

    Attributes:
      storage: Where responses are kept.
      policy: What may be stored and served (RFC 9111).
      lock: Lets one request at a time fetch what many want; None for no such rule.
      wait_timeout: Seconds that a request waits for another one at most; it then goes on uncached.
      predictor: Remembers what turned out not to be cacheable; None to look each time.
      max_file_size: Bytes of content that are stored at most; None for what the storage takes.
      name: How the field Cache-Status calls this cache; None adds no such field.
    """

    storage: Storage
    policy: SharedPolicy = attrs.field(factory=SharedPolicy)
    lock: CacheLock | None = attrs.field(factory=lambda: CacheLock(LOCK_AGE))
    wait_timeout: float = 10.0
    predictor: Predictor | None = attrs.field(factory=lambda: Predictor(PREDICTIONS))
    max_file_size: int | None = None
    name: str | None = "trioproxy"
