"""Wall-clock time, for the fields that carry dates; durations use Trio's clock."""

from __future__ import annotations

import time
from email.utils import formatdate

_cached_second = 0
_cached_date = b""


def wall_time() -> float:
    """Return the seconds since the epoch."""
    return time.time()


def http_date() -> bytes:
    """Return now as an IMF-fixdate (RFC 9110 section 5.6.7), made once a second."""
    global _cached_second, _cached_date
    now = int(time.time())
    if now != _cached_second:
        _cached_date = formatdate(now, usegmt=True).encode("ascii")
        _cached_second = now
    return _cached_date
