"""The Cache-Status field (RFC 9211): what this cache did with a request."""

from __future__ import annotations

import re
from typing import Literal

#: Why a request went forward (RFC 9211 section 2.2).
Forward = Literal[
    "bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"
]

_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_NOT_IN_STRINGS = re.compile(r"[^ -~]")
_MOST = 10**15 - 1  # what an Integer holds (RFC 9651 section 3.3.1)


def _string(text: str) -> str:
    text = _NOT_IN_STRINGS.sub("?", text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _token_or_string(text: str) -> str:
    return text if _TOKEN.fullmatch(text) else _string(text)


def cache_status(
    name: str,
    *,
    hit: bool = False,
    fwd: Forward | None = None,
    fwd_status: int | None = None,
    ttl: int | None = None,
    stored: bool = False,
    collapsed: bool = False,
    key: str | None = None,
    detail: str | None = None,
) -> bytes:
    """Return this cache's member of a Cache-Status field.

    The field is a list that grows towards the client: add the member as one more field line, behind
    those of caches nearer to the origin.

    Args:
      name: What this cache is called.
      hit: Whether the request was answered without going forward.
      fwd: Why it went forward; not with ``hit``.
      fwd_status: The status that the next server answered with.
      ttl: For how many seconds the response is still fresh; below 0, for how long it has been stale.
      stored: Whether the response of the next server was stored.
      collapsed: Whether the request waited for another one's response.
      key: The cache key, or what of it people may see.
      detail: Whatever else; a character that the field cannot have becomes ``?``.

    Raises:
      ValueError: ``hit`` and ``fwd`` were both given.
    """
    if hit and fwd is not None:
        raise ValueError("a request that was a hit did not go forward: give hit or fwd")
    parts = [_token_or_string(name)]
    if hit:
        parts.append("hit")
    if fwd is not None:
        parts.append(f"fwd={fwd}")
    if fwd_status is not None:
        parts.append(f"fwd-status={int(fwd_status)}")
    if ttl is not None:
        parts.append(f"ttl={max(-_MOST, min(int(ttl), _MOST))}")
    if stored:
        parts.append("stored")
    if collapsed:
        parts.append("collapsed")
    if key is not None:
        # Always a String (RFC 9211 section 2.7).
        parts.append(f"key={_string(key)}")
    if detail is not None:
        parts.append(f"detail={_token_or_string(detail)}")
    return ";".join(parts).encode("ascii")
