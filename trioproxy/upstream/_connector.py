"""From a peer to a connection that can carry exchanges."""

from __future__ import annotations

from abc import ABC, abstractmethod

import attrs
import trio

from .._config import ServerConf
from .._peer import HttpPeer
from ..codec._h1 import HeadLimits, ResponseReader
from ..codec._h1_codec import H1Codec, http1_codec
from ..streams._h1_client import H1ClientConnection
from ..transport._connect import connect

#: Host-name look-ups at once: an abandoned one keeps its thread until the resolver answers (R-09).
LOOKUPS = 8


class Connector(ABC):
    """Makes connections; a test puts an in-memory one in its place."""

    @abstractmethod
    async def connect(self, peer: HttpPeer) -> H1ClientConnection:
        """Return a new connection to the peer.

        Raises:
          ProxyError: it could not be made, with all causes in its context.
        """


@attrs.define(eq=False)
class SocketConnector(Connector):
    """Connects over TCP and unix sockets."""

    conf: ServerConf
    _limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(LOOKUPS))
    _limits: HeadLimits = attrs.field(init=False)
    _codec: H1Codec = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._codec = http1_codec(self.conf.http1_codec)
        self._limits = HeadLimits(
            max_bytes=self.conf.max_response_header_bytes,
            max_fields=self.conf.max_response_header_fields,
        )

    async def connect(self, peer: HttpPeer) -> H1ClientConnection:
        """Connect within the peer's timeout, or the server's where the peer has none."""
        timeout = peer.options.connection_timeout
        if timeout is None:
            timeout = self.conf.connect_timeout
        transport, info = await connect(
            peer.host,
            peer.port,
            path=peer.path,
            connect_timeout=timeout,
            dns_timeout=self.conf.dns_timeout,
            limiter=self._limiter,
        )
        return H1ClientConnection(transport, info, ResponseReader(self._limits, self._codec))
