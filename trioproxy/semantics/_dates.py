"""Dates of HTTP (RFC 9110 section 5.6.7): three forms are read, one is written."""

from __future__ import annotations

import functools
import re
from calendar import timegm
from datetime import date
from email.utils import formatdate

from .._clock import wall_time

_MONTH_NAMES = "jan feb mar apr may jun jul aug sep oct nov dec"
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES.split(), 1)}
_SHORT = "(?:mon|tue|wed|thu|fri|sat|sun)"
_LONG = "(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9]|60)"
_FLAGS = re.IGNORECASE | re.ASCII
_FIXED = re.compile(
    f"{_SHORT}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT", _FLAGS
)
_RFC850 = re.compile(
    f"{_LONG}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT", _FLAGS
)
_ASCTIME = re.compile(
    f"{_SHORT} {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} (?P<year>[0-9]{{4}})", _FLAGS
)
_LONGEST = 33  # "Wednesday, 01-Jan-20 00:00:00 GMT"


def parse_date(value: str | bytes, *, now: float | None = None) -> int | None:
    """Return a date as seconds since the epoch, or None where it is not a date.

    The words are read case-blind; the day of the week may be wrong, which old senders get wrong.

    Args:
      value: The field's value.
      now: Around what a year of two digits lies, the wall clock by default.
    """
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not 24 <= len(text) <= _LONGEST:
        return None
    # Nothing but the first form is of 29 characters.
    return _parse_fixed(text) if len(text) == 29 else _parse_old(text, now)


@functools.lru_cache(maxsize=1024)  # one second's Date comes with every response of that second
def _parse_fixed(text: str) -> int | None:
    match = _FIXED.fullmatch(text)
    return None if match is None else _seconds(match, int(match["year"]))


def _parse_old(text: str, now: float | None) -> int | None:
    match = _ASCTIME.fullmatch(text)
    if match is not None:
        return _seconds(match, int(match["year"]))
    match = _RFC850.fullmatch(text)
    if match is None:
        return None
    # More than 50 years ahead is the past century (RFC 9110 section 5.6.7).
    now = wall_time() if now is None else now
    this_year = date.fromordinal(date(1970, 1, 1).toordinal() + int(now // 86400)).year
    year = this_year - this_year % 100 + int(match["year"])
    if year > this_year + 50:
        year -= 100
    elif year < this_year - 49:
        year += 100
    return _seconds(match, year)


def _seconds(match: re.Match[str], year: int) -> int | None:
    month, day = _MONTHS[match["month"].lower()], int(match["day"])
    try:
        date(year, month, day)
    except ValueError:
        return None
    # A leap second is the next one: the epoch's seconds know none.
    return timegm(
        (year, month, day, int(match["hour"]), int(match["minute"]), int(match["second"]))
    )


def format_http_date(seconds: float) -> str:
    """Return seconds since the epoch as an IMF-fixdate."""
    return formatdate(int(seconds), usegmt=True)
