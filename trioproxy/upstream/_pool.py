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

from .._errors import ErrorType, ProxyError
from .._peer import HttpPeer
from ..streams._abc import UpstreamStream
from ..streams._h1_client import H1ClientConnection
from ._assign import PoolLimits, Want, assign
from ._connector import Connector

_log = logging.getLogger("trioproxy")


@attrs.frozen
class PoolStatistics:
    """The state and the counters of a pool at one moment.

    Attributes:
      idle: Connections that wait for a request.
      leased: Connections that carry one.
      waiting: Leases that wait for a connection to become free.
      connects: Connections made since the start.
      reuses: Leases that an idle connection served.
      closed_idle: Idle connections that ended by themselves, timed out or were displaced.
      unexpected_bytes: Those of them that had sent something although nothing was asked.
      wait_timeouts: Leases that waited in vain.
    """

    idle: int
    leased: int
    waiting: int
    connects: int
    reuses: int
    closed_idle: int
    unexpected_bytes: int
    wait_timeouts: int


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


@attrs.define(eq=False)
class _Waiter(Want):
    """A lease in the making: what `assign` gave it."""

    connection: H1ClientConnection | None = None
    may_connect: bool = False
    served: trio.Event | None = None


class Pool:
    """Connections by reuse key, and their reader tasks; `assign` decides who gets which."""

    def __init__(
        self,
        connector: Connector,
        nursery: trio.Nursery,
        *,
        size: int = 128,
        size_per_peer: int = 128,
        connections_per_peer: int | None = None,
        idle_timeout: float = 55.0,
        wait_timeout: float = 5.0,
    ) -> None:
        """Make an empty pool.

        Args:
          connector: Makes new connections.
          nursery: Owns the reader tasks; it must outlive every lease.
          size: Idle connections kept in all.
          size_per_peer: Idle connections kept of one peer.
          connections_per_peer: Connections to one peer at once; who wants one more waits.
          idle_timeout: Seconds that a connection may be idle, where its peer does not say.
          wait_timeout: Seconds that a lease may wait for a connection to become free.
        """
        self._connector = connector
        self._nursery = nursery
        self._limits = PoolLimits(size, size_per_peer, connections_per_peer)
        self._idle_timeout = idle_timeout
        self._wait_timeout = wait_timeout
        self._idle: dict[Hashable, list[H1ClientConnection]] = {}
        # Oldest first, over all keys: who is displaced when the pool is full.
        self._ages: OrderedDict[H1ClientConnection, Hashable] = OrderedDict()
        # Connections by key: idle, busy and being made.
        self._counts: dict[Hashable, int] = {}
        self._waiters: list[_Waiter] = []
        self._leased = 0
        self._connects = 0
        self._reuses = 0
        self._closed_idle = 0
        self._unexpected_bytes = 0
        self._wait_timeouts = 0

    def statistics(self) -> PoolStatistics:
        """Return the counters of this moment."""
        return PoolStatistics(
            idle=len(self._ages),
            leased=self._leased,
            waiting=len(self._waiters),
            connects=self._connects,
            reuses=self._reuses,
            closed_idle=self._closed_idle,
            unexpected_bytes=self._unexpected_bytes,
            wait_timeouts=self._wait_timeouts,
        )

    async def lease(self, peer: HttpPeer, *, fresh: bool = False) -> Lease:
        """Return a lease on an idle connection to the peer, or on a new one.

        Args:
          peer: Where to.
          fresh: Never take an idle connection: the last one turned out to be stale (row F-04).

        Raises:
          ProxyError: no connection could be made, or none became free in time.
        """
        key = peer.reuse_key
        while True:
            waiter = _Waiter(key, fresh)
            self._waiters.append(waiter)
            self._assign()
            if waiter.connection is None and not waiter.may_connect:
                await self._wait(waiter, peer)
            connection = waiter.connection
            if connection is None:
                break
            # Asked once more: something may have arrived since its reader last looked.
            try:
                usable = connection.usable()
            except BaseException:
                connection.close()
                raise
            if usable:
                connection.timer.disarm()
                self._reuses += 1
                self._leased += 1
                return Lease(self, key, connection)
            self._closed_idle += 1
            self._unexpected_bytes += connection.spoke_out_of_turn
            connection.close()
        try:
            connection = await self._connector.connect(peer)
        except BaseException:
            self._uncount(key)
            raise
        connection.on_idle_end = self._ended
        timeout = peer.options.idle_timeout
        connection.idle_timeout = self._idle_timeout if timeout is None else timeout
        self._connects += 1
        self._leased += 1
        self._nursery.start_soon(self._read, key, connection)
        return Lease(self, key, connection)

    async def _wait(self, waiter: _Waiter, peer: HttpPeer) -> None:
        """Wait until `assign` has something for a waiter."""
        waiter.served = trio.Event()
        try:
            with trio.move_on_after(self._wait_timeout):
                await waiter.served.wait()
        except BaseException:
            self._give_up(waiter)
            raise
        if waiter.connection is None and not waiter.may_connect:
            self._waiters.remove(waiter)
            self._wait_timeouts += 1
            raise ProxyError.explain(
                ErrorType.ConnectTimedout,
                f"no connection to {peer} became free in {self._wait_timeout:g} s",
            ).into_up()

    def _give_up(self, waiter: _Waiter) -> None:
        """Take a waiter out that is being cancelled, and hand on what it may have got just now."""
        if waiter.connection is not None:
            self._put(waiter.key, waiter.connection)
        elif waiter.may_connect:
            self._uncount(waiter.key)
        else:
            self._waiters.remove(waiter)

    def _assign(self) -> None:
        """Do what `assign` says."""
        result = assign(self._waiters, self._idle, self._ages, self._counts, self._limits)
        for waiter, connection in result.leases:
            self._take(connection)
            waiter.connection = connection
            self._serve(waiter)
        for waiter in result.connects:
            self._counts[waiter.key] = self._counts.get(waiter.key, 0) + 1
            waiter.may_connect = True
            self._serve(waiter)
        for connection in result.closings:
            self._take(connection)
            self._closed_idle += 1
            connection.close()

    def _serve(self, waiter: _Waiter) -> None:
        self._waiters.remove(waiter)
        if waiter.served is not None:
            waiter.served.set()

    def _uncount(self, key: Hashable) -> None:
        """Count a connection less, and let those who wait have its place."""
        left = self._counts[key] - 1
        if left:
            self._counts[key] = left
        else:
            del self._counts[key]
        if self._waiters:
            self._assign()

    async def _read(self, key: Hashable, connection: H1ClientConnection) -> None:
        """Run a connection's reader; what goes wrong there is that connection's matter alone."""
        try:
            await connection.run()
        except Exception:
            # A bug in a codec, say: it costs this connection, never the server.
            _log.exception("the reader of %r failed", connection)
            connection.close()
        finally:
            self._uncount(key)

    def take_back(self, key: Hashable, connection: H1ClientConnection) -> None:
        """Take a connection that a lease gives back."""
        self._leased -= 1
        if connection.dead:
            return
        if connection.idle_timeout == 0 or self._limits.idle == 0:
            connection.close()
            return
        if connection.idle_timeout != math.inf:
            connection.timer.arm(connection.idle_timeout, "idle")
        self._put(key, connection)

    def _put(self, key: Hashable, connection: H1ClientConnection) -> None:
        self._idle.setdefault(key, []).append(connection)
        self._ages[connection] = key
        if self._waiters or len(self._ages) > min(self._limits.idle, self._limits.idle_per_peer):
            self._assign()

    def _take(self, connection: H1ClientConnection) -> None:
        """Take a connection out of the idle ones."""
        key = self._ages.pop(connection)
        idle = self._idle[key]
        idle.remove(connection)
        if not idle:
            del self._idle[key]

    def _ended(self, connection: H1ClientConnection) -> None:
        if connection in self._ages:
            self._take(connection)
            self._closed_idle += 1
            self._unexpected_bytes += connection.spoke_out_of_turn

    def close_idle(self) -> None:
        """Close every idle connection."""
        for connection in list(self._ages):
            self._take(connection)
            self._closed_idle += 1
            connection.close()
