"""What one kind of proxy object differs in from another: how its connections are served.

`_serve` owns listeners, limits and the stop, whatever is spoken. A `Service` turns an accepted
transport into a connection that serves itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import trio

from .._config import Listener, ServerConf
from .._counts import SessionCounts
from .._info import ConnectionInfo
from ..cache._storage import StorageStatistics
from ..transport._byte_stream import ByteStream
from ..transport._tls_server import TlsAcceptor
from ..upstream._pool import PoolStatistics


class Served(Protocol):
    """A connection under way.

    Attributes:
      transport: The bytes.
      info: Who is there.
    """

    transport: ByteStream
    info: ConnectionInfo

    async def run(self, handler: Any) -> None:
        """Serve it to its end, each session or exchange by the handler."""

    def drain(self) -> None:
        """Close now if it is idle, else when what is under way has ended."""


#: Makes a connection of an accepted transport; it is told of limits that end it early.
Open = Callable[[ByteStream, ConnectionInfo], Served]


class Service(ABC):
    """How the connections of one proxy object are served.

    Attributes:
      conf: Timeouts and limits.
      counts: What is counted of its sessions.
      handler: What `Served.run` gets.
      schemes: How the URL of a listener begins, without TLS and with it.
      limits_hit: What ended connections beside their sessions, by its name.
      refused: Requests that were answered before any callback, by status.
    """

    conf: ServerConf
    counts: SessionCounts
    handler: Any
    schemes: tuple[str, str]

    def __init__(self) -> None:
        self.limits_hit: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()

    @classmethod
    @abstractmethod
    def open(cls, proxy: Any, conf: ServerConf, connector: Any, nursery: trio.Nursery) -> Service:
        """Return the service of a proxy object.

        Args:
          proxy: The proxy object.
          conf: Timeouts and limits.
          connector: Makes upstream connections.
          nursery: Where those live that outlive a session.
        """

    @classmethod
    @abstractmethod
    def acceptor(cls, listener: Listener | None, conf: ServerConf) -> TlsAcceptor | None:
        """Return what opens TLS on a listener, None for clear text.

        Raises:
          ValueError: the listener's settings cannot be used.
        """

    @abstractmethod
    def front(self, tls: TlsAcceptor | None, listener: Listener | None) -> Open:
        """Return what makes connections of what a listener accepts."""

    @abstractmethod
    def start(self, nursery: trio.Nursery) -> None:
        """Take the nursery of what outlives the session that started it."""

    @property
    @abstractmethod
    def draining(self) -> bool:
        """Whether the server stops."""

    @abstractmethod
    def drain(self) -> None:
        """Let the server stop: nothing new is begun that could outlive what is under way."""

    @abstractmethod
    async def part(self) -> None:
        """Say a last word to those who are to be cut at the end of grace, where there is one."""

    @abstractmethod
    def shed(self) -> None:
        """Give up what is idle, as descriptors or memory have run out."""

    @abstractmethod
    def pool_statistics(self) -> PoolStatistics:
        """Return the counters of the upstream connections."""

    def cache_statistics(self) -> tuple[dict[str, int], int, StorageStatistics | None]:
        """Return requests by their cache phase, collapsed requests, and the storage's counters."""
        return {}, 0, None

    def on_limit(self, name: str) -> None:
        """Count a limit that has ended a connection."""
        self.limits_hit[name] += 1
