"""Facts about a connection, captured once when it is made and handed along as a value."""

from __future__ import annotations

import attrs


@attrs.frozen
class ConnectionInfo:
    """Where a connection leads.

    Attributes:
      local: Our address as text (``127.0.0.1:80``, ``[::1]:80``, ``unix:PATH``), None if unnamed.
      peer: The other party's address, likewise.
      established: When it was made, in seconds of Trio's clock.
      secure: Whether it is TLS.
    """

    local: str | None
    peer: str | None
    established: float = 0.0
    secure: bool = False


@attrs.frozen
class Digest:
    """What `connected_to_upstream` is told of the connection (Pingora's ``Digest``).

    Attributes:
      peer_addr: The origin's address as text, None for an unnamed socket.
      local_addr: Our address as text.
      established: When the connection was made, in seconds of Trio's clock.
    """

    peer_addr: str | None
    local_addr: str | None
    established: float

    @classmethod
    def of(cls, info: ConnectionInfo) -> Digest:
        """Return the digest of a connection."""
        return cls(info.peer, info.local, info.established)
