"""Which stream a client wants first (RFC 9218): urgency and whether parts of it are of use."""

from __future__ import annotations

from typing import NamedTuple

from ._structured import BadStructure, Item, parse_dictionary

#: A longer value is not looked at.
MAX_BYTES = 1024


class Priority(NamedTuple):
    """A stream's priority.

    Attributes:
      urgency: 0, the most urgent, to 7.
      incremental: Whether the client can use parts, so that streams of an urgency should share.
    """

    urgency: int = 3
    incremental: bool = False


DEFAULT = Priority()


def parse_priority(value: bytes | None) -> Priority:
    """Return what a Priority field or a PRIORITY_UPDATE frame says; what is broken says nothing.

    A parameter of another type, or out of its range, counts as absent (RFC 9218 section 4).
    """
    if not value or len(value) > MAX_BYTES:
        return DEFAULT
    try:
        members = parse_dictionary(value)
    except BadStructure:
        return DEFAULT
    urgency, incremental = DEFAULT
    match members.get("u"):
        case Item(value=int(number)) if type(number) is int and 0 <= number <= 7:
            urgency = number
    match members.get("i"):
        case Item(value=bool(flag)):
            incremental = flag
    return Priority(urgency, incremental)
