"""Wall-clock time, for the fields that carry dates; durations use Trio's clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

_source = time.time
_cached_second = 0
_cached_date = b""


def wall_time() -> float:
    """Return the seconds since the epoch."""
    return _source()


def http_date() -> bytes:
    """Return now as an IMF-fixdate (RFC 9110 section 5.6.7), made once a second."""
    global _cached_second, _cached_date
    now = int(_source())
    if now != _cached_second:
        _cached_date = formatdate(now, usegmt=True).encode("ascii")
        _cached_second = now
    return _cached_date


@contextmanager
def stopped_clock(moment: float = 1.5e9) -> Iterator[None]:
    """Let it be one moment inside this block, so that a run gives the same bytes each time."""
    global _source
    before, _source = _source, lambda: moment
    try:
        yield
    finally:
        _source = before
