"""The pool of upstream connections: leases are the only way to hold one.

The reader task of every connection lives in the pool's nursery, so that an idle connection is
watched without a task of its own: whatever happens on it takes it out of the pool (row U1-01).
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Hashable
from types import TracebackType

import attrs
import trio

from .._peer import HttpPeer
from ..streams._abc import UpstreamStream
from ..streams._h1_client import H1ClientConnection
from ._connector import Connector

_log = logging.getLogger("trioproxy")


@attrs.frozen
class PoolStatistics:
    """The state and the counters of a pool at one moment.

    Attributes:
      idle: Connections that wait for a request.
      leased: Connections that carry one.
      connects: Connections made since the start.
      reuses: Leases that an idle connection served.
      closed_idle: Idle connections that ended by themselves, timed out or were displaced.
    """

    idle: int
    leased: int
    connects: int
    reuses: int
    closed_idle: int


class Lease:
    """One exchange's hold on a connection; leaving the block gives it back or closes it.

    The connection goes back only when both messages of the exchange are whole and no byte lies
    behind them; any doubt closes it.
    """

    __slots__ = ("_connection", "_key", "_pool", "stream")

    def __init__(self, pool: Pool, key: Hashable, connection: H1ClientConnection) -> None:
        self._pool = pool
        self._key = key
        self._connection = connection
        self.stream: UpstreamStream = connection.start()

    async def __aenter__(self) -> UpstreamStream:
        return self.stream

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the connection back; does nothing the second time."""
        connection = self._connection
        if connection is not None:
            self._connection = None  # type: ignore[assignment]
            connection.release()
            self._pool.take_back(self._key, connection)


class Pool:
    """Idle connections by reuse key, the most recently used first, and their reader tasks."""

    def __init__(
        self,
        connector: Connector,
        nursery: trio.Nursery,
        *,
        size: int = 128,
        idle_timeout: float = 55.0,
    ) -> None:
        """Make an empty pool.

        Args:
          connector: Makes new connections.
          nursery: Owns the reader tasks; it must outlive every lease.
          size: Idle connections kept in all.
          idle_timeout: Seconds that a connection may be idle, where its peer does not say.
        """
        self._connector = connector
        self._nursery = nursery
        self._size = size
        self._idle_timeout = idle_timeout
        self._idle: dict[Hashable, list[H1ClientConnection]] = {}
        # Oldest first, over all keys: who is displaced when the pool is full.
        self._ages: OrderedDict[H1ClientConnection, Hashable] = OrderedDict()
        self._leased = 0
        self._connects = 0
        self._reuses = 0
        self._closed_idle = 0

    def statistics(self) -> PoolStatistics:
        """Return the counters of this moment."""
        return PoolStatistics(
            idle=len(self._ages),
            leased=self._leased,
            connects=self._connects,
            reuses=self._reuses,
            closed_idle=self._closed_idle,
        )

    async def lease(self, peer: HttpPeer, *, fresh: bool = False) -> Lease:
        """Return a lease on an idle connection to the peer, or on a new one.

        Args:
          peer: Where to.
          fresh: Never take an idle connection: the last one turned out to be stale (row F-04).

        Raises:
          ProxyError: no connection could be made.
        """
        key = peer.reuse_key
        idle = None if fresh else self._idle.get(key)
        while idle:
            connection = idle.pop()
            del self._ages[connection]
            if not idle:
                del self._idle[key]
            if connection.usable():
                connection.timer.disarm()
                self._reuses += 1
                self._leased += 1
                return Lease(self, key, connection)
            self._closed_idle += 1
            connection.close()
        connection = await self._connector.connect(peer)
        connection.on_idle_end = self._ended
        timeout = peer.options.idle_timeout
        connection.idle_timeout = self._idle_timeout if timeout is None else timeout
        self._connects += 1
        self._leased += 1
        self._nursery.start_soon(self._read, connection)
        return Lease(self, key, connection)

    async def _read(self, connection: H1ClientConnection) -> None:
        """Run a connection's reader; what goes wrong there is that connection's matter alone."""
        try:
            await connection.run()
        except Exception:
            # A bug in a codec, say: it costs this connection, never the server.
            _log.exception("the reader of %r failed", connection)
            connection.close()

    def take_back(self, key: Hashable, connection: H1ClientConnection) -> None:
        """Take a connection that a lease gives back."""
        self._leased -= 1
        if connection.dead:
            return
        if connection.idle_timeout == 0 or self._size == 0:
            connection.close()
            return
        while len(self._ages) >= self._size:
            oldest = next(iter(self._ages))
            self._forget(oldest)
            oldest.close()
        self._idle.setdefault(key, []).append(connection)
        self._ages[connection] = key
        if connection.idle_timeout != math.inf:
            connection.timer.arm(connection.idle_timeout, "idle")

    def _ended(self, connection: H1ClientConnection) -> None:
        if connection in self._ages:
            self._forget(connection)

    def _forget(self, connection: H1ClientConnection) -> None:
        key = self._ages.pop(connection)
        self._closed_idle += 1
        idle = self._idle[key]
        idle.remove(connection)
        if not idle:
            del self._idle[key]

    def close_idle(self) -> None:
        """Close every idle connection."""
        for connection in list(self._ages):
            self._forget(connection)
            connection.close()
