"""What several modules ask about a message's content: its media type and its coding."""

from __future__ import annotations

import re

from .._headers import Headers

_NAME = r"[!#$%&'+\-.^_`|~0-9a-z]+"  # a token without "*", which no type has
_RANGE = re.compile(rf"\*/\*|{_NAME}/(?:\*|{_NAME})")


def is_encoded(headers: Headers) -> bool:
    """Tell whether content is encoded: Content-Encoding says more than identity."""
    for value in headers.get_all("content-encoding"):
        if any(each.strip().lower() not in ("", "identity") for each in value.split(",")):
            return True
    return False


def media_type(headers: Headers) -> str | None:
    """Return the media type of the content in lower case, None where it is missing or said twice."""
    values = headers.get_all("content-type")
    if len(values) != 1:
        return None
    return values[0].partition(";")[0].strip().lower() or None


def is_media_range(text: str) -> bool:
    """Tell whether this is a media type, ``type/*`` or ``*/*``, in lower case."""
    return _RANGE.fullmatch(text) is not None


def ranges_of(kind: str) -> tuple[str, str, str]:
    """Return the ranges that a media type is in, the closest first."""
    return kind, f"{kind.partition('/')[0]}/*", "*/*"
