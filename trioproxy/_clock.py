"""Wall-clock time, for the fields that carry dates; durations use Trio's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
def clock_from(source: Callable[[], float]) -> Iterator[None]:
    """Let this tell the seconds since the epoch inside the block, so that a run can move them."""
    global _source
    before, _source = _source, source
    try:
        yield
    finally:
        _source = before


def stopped_clock(moment: float = 1.5e9) -> AbstractContextManager[None]:
    """Let it be one moment inside the block, so that a run gives the same bytes each time."""
    return clock_from(lambda: moment)
