"""What a request that came in a protocol of the user's must be before it may go on in HTTP.

A codec of the user's knows its own protocol; that its heads mean one thing to everybody behind it
is looked after here (RFC 9110 sections 7.2, 7.6.1, 8.6; rows H1-16, H1-17, H1-19, H1-26).
"""

from __future__ import annotations

from .._messages import RequestFacts, RequestHeader
from ._framing import nominated_by, valid_host


def custom_facts(head: RequestHeader, *, ends: bool, allow_trace: bool) -> RequestFacts:
    """Return the facts of a request.

    Args:
      head: Its head, whose hop-by-hop fields will be stripped.
      ends: Whether nothing follows it.
      allow_trace: Whether TRACE is taken.

    Raises:
      ValueError: it means nothing, or more than one thing.
    """
    if head.method == "CONNECT" or (head.method == "TRACE" and not allow_trace):
        raise ValueError(f"the method {head.method} is not allowed")
    if not head.target.startswith(b"/") and not (head.target == b"*" and head.method == "OPTIONS"):
        raise ValueError(f"the target {head.target[:64]!r} does not begin with a slash")
    hosts = [value for name, _, value in head.headers.fields if name == b"host"]
    if len(hosts) > 1 or not all(map(valid_host, hosts)):
        raise ValueError("there is more than one Host, or it is none")
    lengths = [value for name, _, value in head.headers.fields if name == b"content-length"]
    if len(lengths) > 1 or not all(value.isdigit() for value in lengths):
        raise ValueError("Content-Length is not one number")
    if ends and lengths and int(lengths[0]):
        raise ValueError("the content is shorter than its Content-Length")
    values = [value for name, _, value in head.headers.fields if name == b"connection"]
    tokens = [token.strip(b" \t").lower() for value in values for token in value.split(b",")]
    return RequestFacts(
        content_length=int(lengths[0]) if lengths else None,
        # Without the end beside the head there is content, however little it turns out to be.
        chunked=not ends and not lengths,
        nominated=nominated_by(tokens),
        hop_by_hop=True,
    )
