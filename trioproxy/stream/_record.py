"""What an access log wants to know of a stream."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class StreamRecord:
    """One stream that has ended.

    Attributes:
      client: The client's address as text, None for an unnamed socket.
      protocol: How the client came: ``tcp``, ``tls`` or ``unix``.
      server_name: The name that its ClientHello asked for, where one was read, or None.
      status: How it ended, in the numbers that nginx has for streams: 200, all was passed on; 400,
        the client broke it off; 403, ``accept_filter`` dropped it; 500, an error in the proxy; 502,
        the upstream failed; 503, too many sessions.
      bytes_sent: Bytes to the client.
      bytes_received: Bytes from the client.
      duration: Seconds.
      upstream: The peer of the last attempt, or None.
      error: The error's text, or None.
      started_at: When it started, in seconds since the epoch.
    """

    client: str | None
    protocol: str
    server_name: str | None
    status: int
    bytes_sent: int
    bytes_received: int
    duration: float
    upstream: str | None
    error: str | None
    started_at: float
