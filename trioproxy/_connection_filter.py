"""Who may connect at all: the filter that every accepted connection meets first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import attrs

from ._info import ConnectionInfo
from ._networks import Network, Networks


class ConnectionFilter(ABC):
    """Accepts or drops connections before TLS and before a byte is read (``ConnectionFilter``).

    Pingora's of the same name. It runs in the connection's own task, so that it may wait, for
    ``header_timeout`` at most. A connection that is dropped is closed at once and without a word.
    """

    @abstractmethod
    async def should_accept(self, info: ConnectionInfo) -> bool:
        """Tell whether a connection may go on.

        An exception is logged, and drops it.

        Args:
          info: What is known of it. No PROXY header was read, so its peer is who has really
            connected.
        """


def _networks(entries: Iterable[str | Network]) -> Networks:
    return Networks.parse(entries)


@attrs.frozen
class NetworkFilter(ConnectionFilter):
    """Accepts or drops by the address that a connection comes from.

    What is in ``deny`` is dropped; of the rest, everything is accepted where ``allow`` is empty, else
    what is in it. Both take what `Networks.parse` takes.

    Attributes:
      allow: Whom to accept; everybody where it is empty.
      deny: Whom to drop, even where ``allow`` has them.
    """

    allow: Networks = attrs.field(default=Networks(), converter=_networks, kw_only=True)
    deny: Networks = attrs.field(default=Networks(), converter=_networks, kw_only=True)

    async def should_accept(self, info: ConnectionInfo) -> bool:
        """Tell whether the address that a connection comes from is one to accept."""
        peer = info.connected_peer
        return peer not in self.deny and (not self.allow or peer in self.allow)
