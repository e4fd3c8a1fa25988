"""What an access log wants to know of an exchange."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class ExchangeRecord:
    """One exchange that has ended, or a request that was refused before a session existed.

    Attributes:
      client: The client's address as text, None for an unnamed socket.
      method: The method, ``-`` where none was read.
      target: The target as received.
      version: ``HTTP/1.1`` and the like, ``-`` where none was read.
      status: The status sent, 0 for none.
      body_bytes_sent: Payload bytes of the response.
      body_bytes_received: Payload bytes of the request.
      duration: Seconds.
      upstream: The peer of the last attempt, or None.
      error: The error's text, or None.
      started_at: When it started, in seconds since the epoch.
    """

    client: str | None
    method: str
    target: bytes
    version: str
    status: int
    body_bytes_sent: int
    body_bytes_received: int
    duration: float
    upstream: str | None
    error: str | None
    started_at: float
