"""Which HTTP/1 head parser is used: a value that the readers take, and its look-up by name.

A codec parses complete heads and nothing else: the search for a head's end, its limits, the strict
look at its raw bytes, the validator and the bodies are the same for all of them. Another parser is
a module with two functions and one more entry here.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from .._headers import Field
from . import _h1_h11


@attrs.frozen
class H1Codec:
    """A parser of HTTP/1 heads.

    Both functions get one complete head, its empty line included, that holds no bare line end, no
    control and no fold. They return the fields as (lower-case name, name as received, value
    without outer blanks), every one of them, in order, and raise `MessageRefused` (400, 502)
    where the head is malformed.

    Attributes:
      name: What ``ServerConf.http1_codec`` calls it.
      parse_request_head: Gives method, target, version (``b"1.1"``) and fields.
      parse_response_head: Gives status, reason, version and fields.
    """

    name: str
    parse_request_head: Callable[[bytes], tuple[bytes, bytes, bytes, list[Field]]]
    parse_response_head: Callable[[bytes], tuple[int, bytes, bytes, list[Field]]]


H11 = H1Codec("h11", _h1_h11.parse_request_head, _h1_h11.parse_response_head)

_CODECS = {"auto": H11, "h11": H11}


def http1_codec(name: str) -> H1Codec:
    """Return the codec of a name: ``"h11"``, or ``"auto"`` for the fastest there is.

    Raises:
      ValueError: there is none of that name.
    """
    try:
        return _CODECS[name]
    except KeyError:
        raise ValueError(f"http1_codec={name!r}: one of {', '.join(_CODECS)} is right") from None
