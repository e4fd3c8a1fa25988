"""The pool of upstream connections: leases are the only way to hold one.

The tasks of every connection live in the pool's nursery, so that a connection outlives the session
that made it, and an idle one is watched without a task of its own: whatever happens on it takes it
out of the pool (row U1-01).

A connection that announces a client by a PROXY header belongs to that client's connection: it has a
reuse key of its own, and ends when that connection does.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Hashable
from functools import partial
from types import TracebackType
from typing import Any

import attrs
import trio

from .._errors import ErrorType, ProxyError
from .._info import Announcement
from .._peer import HttpPeer
from ..streams._abc import UpstreamConnection, UpstreamStream
from ._assign import ANY, Group, Slot, Want, assign, choose
from ._connector import Connector

_log = logging.getLogger("trioproxy")

#: Reuse keys that something is remembered of, the least recently noted forgotten first.
REMEMBERED = 1024


def expected_room(peer: HttpPeer) -> int:
    """Return how many exchanges a new connection to the peer may carry at once, at best."""
    return 1 if peer.http_version == (1, 1) else peer.options.max_h2_streams


@attrs.frozen
class PoolStatistics:
    """The state and the counters of a pool at one moment.

    Attributes:
      idle: Connections that carry nothing and wait for a request.
      leased: Requests that connections carry; those of HTTP/2 carry several.
      waiting: Leases that wait for a connection.
      connects: Connections made since the start.
      reuses: Leases that a connection served which was there.
      closed_idle: Idle connections that ended by themselves, timed out or were displaced.
      unexpected_bytes: Those of them that had sent something although nothing was asked.
      wait_timeouts: Leases that waited in vain.
      connections: Connections that are open.
    """

    idle: int
    leased: int
    waiting: int
    connects: int
    reuses: int
    closed_idle: int
    unexpected_bytes: int
    wait_timeouts: int
    connections: int


class Lease:
    """One exchange's hold on a connection; leaving the block gives it back.

    A connection that carries one exchange at a time goes back only when both messages of the
    exchange are whole and no byte lies behind them; any doubt closes it.
    """

    __slots__ = ("_pool", "_slot", "stream")

    def __init__(self, pool: Pool, slot: _Slot) -> None:
        self._pool = pool
        self._slot: _Slot | None = slot
        self.stream: UpstreamStream = slot.connection.start()

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
        """Give the exchange back; does nothing the second time."""
        slot = self._slot
        if slot is not None:
            self._slot = None
            self.stream.release()
            self._pool.take_back(slot)


@attrs.define(eq=False)
class _Waiter(Want):
    """A lease in the making: what `assign` gave it."""

    slot: _Slot | None = None
    may_connect: bool = False
    #: What its connect added to the group's `hoped`.
    hope: int = 0
    served: trio.Event | None = None


_Slot = Slot[_Waiter]
_Group = Group[_Waiter]


class Pool:
    """Connections by reuse key, and their tasks; `assign` decides who gets which."""

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
          nursery: Owns the connections' tasks; it must outlive every lease.
          size: Idle connections kept in all.
          size_per_peer: Idle connections kept of one peer.
          connections_per_peer: Connections to one peer at once; who wants one more waits.
          idle_timeout: Seconds that a connection may be idle, where its peer does not say.
          wait_timeout: Seconds that a lease may wait for a connection to become free, and for one
            that another lease makes before it makes its own.
        """
        self._connector = connector
        self._nursery = nursery
        self._size = size
        self._size_per_peer = size_per_peer
        self._cap = connections_per_peer
        self._idle_timeout = idle_timeout
        self._wait_timeout = wait_timeout
        self._draining = False
        self._groups: dict[Hashable, _Group] = {}
        # Idle connections of all groups, the oldest first: who is displaced when the pool is full.
        self._ages: OrderedDict[_Slot, None] = OrderedDict()
        # What connections turned out to carry at once where that was less than wished.
        self._rooms: OrderedDict[Hashable, int] = OrderedDict()
        self._http1_only: OrderedDict[Hashable, None] = OrderedDict()
        self._tickets = 0
        self._made = 0
        self._open = 0
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
            waiting=sum(len(group.waiters) for group in self._groups.values()),
            connects=self._connects,
            reuses=self._reuses,
            closed_idle=self._closed_idle,
            unexpected_bytes=self._unexpected_bytes,
            wait_timeouts=self._wait_timeouts,
            connections=self._open,
        )

    async def lease(
        self, peer: HttpPeer, *, fresh: bool = False, http1: bool = False, raw: bool = False
    ) -> Lease:
        """Return a lease on a connection to the peer, one that is there or a new one.

        Args:
          peer: Where to.
          fresh: Take only a connection that is made from now on: the last one turned out to be
            lost (rows F-04, H2-28). Several such leases may share one.
          http1: Take one that speaks HTTP/1.1 where the peer allows that: the request offers to
            switch protocols.
          raw: Take a new one that carries bytes and no HTTP: the request is CONNECT.

        Raises:
          ProxyError: no connection could be made, or none became free in time.
        """
        if raw:
            peer = peer.raw()
        elif http1 or (self._http1_only and peer.shared_key in self._http1_only):
            peer = peer.http1() or peer
        since = self._made if fresh else ANY
        key = peer.reuse_key
        while True:
            group = self._groups.get(key)
            if group is None:
                group = self._group(key, peer)
            slot = None
            if not group.waiters:
                slot = choose(group.in_use, group.idle_shared, group.idle, since)
            if slot is not None:
                self._promise(slot)
            else:
                waiter = self._ask(group, since)
                if waiter.slot is None and not waiter.may_connect:
                    await self._wait(group, waiter, peer)
                slot = waiter.slot
                if slot is None:
                    return await self._connect(group, waiter, peer)
            # Asked once more: something may have arrived since its reader last looked.
            usable = False
            try:
                usable = slot.connection.usable()
            finally:
                if not usable:
                    self._reject(slot)
            if usable:
                slot.promised -= 1
                self._reuses += 1
                return self._start(slot)

    def remember_http1(self, peer: HttpPeer) -> None:
        """Use HTTP/1.1 for the peer from now on: it asked for that (row H2-25)."""
        _note(self._http1_only, peer.shared_key, None)

    def _group(self, key: Hashable, peer: HttpPeer) -> _Group:
        """Return a new group for the peer's reuse key."""
        wished = expected_room(peer)
        expected = wished if wished == 1 else min(wished, self._rooms.get(peer.shared_key, wished))
        group = self._groups[key] = Group(key, wished, expected, shared_key=peer.shared_key)
        return group

    def _ask(self, group: _Group, since: int) -> _Waiter:
        """Return somebody new who waits, with what there is for them now."""
        self._tickets += 1
        waiter = _Waiter(self._tickets, since)
        group.waiters.append(waiter)
        if group.stale or len(group.waiters) == 1:
            self._assign(group)
        else:  # there was nothing for those before, and there still is not
            self._assign(group, [waiter], group.hope)
        return waiter

    async def _wait(self, group: _Group, waiter: _Waiter, peer: HttpPeer) -> None:
        """Wait until `assign` has something for a waiter."""
        waiter.served = trio.Event()
        try:
            with trio.move_on_after(self._wait_timeout):
                await waiter.served.wait()
        except BaseException:
            self._give_up(group, waiter)
            raise
        if waiter.slot is None and not waiter.may_connect:
            # Another one's connect takes too long: try by oneself, if that may be.
            group.lonely = max(group.lonely, waiter.ticket)
            self._assign(group)
        if waiter.slot is None and not waiter.may_connect:
            self._leave(group, waiter)
            self._wait_timeouts += 1
            raise ProxyError.explain(
                ErrorType.ConnectTimedout,
                f"no connection to {peer} became free in {self._wait_timeout:g} s",
            ).into_up()

    def _leave(self, group: _Group, waiter: _Waiter) -> None:
        """Take a waiter out that got nothing."""
        group.waiters.remove(waiter)
        group.stale = True

    def _give_up(self, group: _Group, waiter: _Waiter) -> None:
        """Take a waiter out that is being cancelled, and hand on what it may have got just now."""
        if waiter.slot is not None:
            waiter.slot.promised -= 1
            self._settle(waiter.slot)
        elif waiter.may_connect:
            group.hoped -= waiter.hope
            self._uncount(group)
        else:
            self._leave(group, waiter)

    async def _connect(self, group: _Group, waiter: _Waiter, peer: HttpPeer) -> Lease:
        """Make a connection for a waiter who may, and let others have what room it has beside."""
        try:
            connection = await self._connector.connect(peer)
        except BaseException as exc:
            group.hoped -= waiter.hope
            if isinstance(exc, Exception):
                group.lonely = self._tickets  # they waited for this; now each tries by itself
            self._uncount(group)
            raise
        self._made += 1
        self._connects += 1
        self._open += 1
        slot = Slot(connection, group, self._made, hope=waiter.hope)
        if connection.settled:
            self._unhope(slot)
        connection.on_idle_end = partial(self._ended, slot)
        connection.on_room = partial(self._room_changed, slot)
        timeout = peer.options.idle_timeout
        connection.idle_timeout = self._idle_timeout if timeout is None else timeout
        self._nursery.start_soon(self._read, slot, peer.announce)
        slot.users = 1
        if slot.shared:
            group.in_use.append(slot)
        if peer.announce is not None:
            peer.announce.life.hold(slot, partial(self._bereave, slot))
        try:
            lease = self._start(slot)
        finally:
            self._learn(slot)
            if group.waiters:
                self._assign(group)
        return lease

    def _start(self, slot: _Slot) -> Lease:
        """Start an exchange whose place is counted already."""
        try:
            lease = Lease(self, slot)
        except BaseException:
            slot.retired = True
            self._settle(slot)
            raise
        self._leased += 1
        return lease

    def _learn(self, slot: _Slot) -> None:
        """Remember what a connection carries at once, so that nobody waits for more."""
        group, connection = slot.group, slot.connection
        if group.wished > 1 and connection.settled and not connection.dead:
            room = connection.room + connection.busy if slot.shared else 1
            group.expected = min(group.wished, max(1, room))
            if group.expected < group.wished:
                _note(self._rooms, group.shared_key, group.expected)
            else:
                self._rooms.pop(group.shared_key, None)

    def _room_changed(self, slot: _Slot, connection: UpstreamConnection) -> None:
        """Take it that a connection may carry more, or less."""
        group = slot.group
        if slot.hope and connection.settled:
            self._unhope(slot)
        if connection.room > 0:
            self._learn(slot)
        elif slot in self._ages:  # told to go away: of no more use
            self._displace(slot)
        if group.waiters:
            self._assign(group)

    def _unhope(self, slot: _Slot) -> None:
        """Let nobody hope for a connection's room any more: it is known, or there is none."""
        slot.group.hoped -= slot.hope
        slot.hope = 0

    def _assign(
        self, group: _Group, waiters: list[_Waiter] | None = None, hope: int | None = None
    ) -> None:
        """Do what `assign` says: for all who wait, or for those who came since it was last asked."""
        if waiters is None or hope is None:
            waiters, hope = group.waiters, group.hoped
            group.stale = False
        result = assign(group, waiters, hope, self._cap)
        group.hope = result.hope
        for waiter, slot in result.leases:
            self._promise(slot)
            waiter.slot = slot
            _serve(group, waiter)
        for waiter in result.connects:
            group.count += 1
            waiter.hope = group.expected - 1
            group.hoped += waiter.hope
            waiter.may_connect = True
            _serve(group, waiter)
        for slot in result.closings:
            self._displace(slot)

    def _uncount(self, group: _Group) -> None:
        """Count a connection less, and let those who wait have its place."""
        group.count -= 1
        if group.waiters:
            self._assign(group)
        elif not group.count:
            del self._groups[group.key]

    def _bereave(self, slot: _Slot) -> None:
        """End a connection whose client is gone: now, or with the exchanges that it carries."""
        if slot in self._ages:
            self._displace(slot)
        slot.retired = True

    async def _read(self, slot: _Slot, announce: Announcement | None) -> None:
        """Run a connection's tasks; what goes wrong there is that connection's matter alone."""
        connection = slot.connection
        try:
            await connection.run()
        except Exception:
            # A bug in a codec, say: it costs this connection, never the server.
            _log.exception("the reader of %r failed", connection)
            connection.close()
        finally:
            self._ended(slot, connection)
            slot.retired = True
            if slot.hope:  # as good as a connect that failed
                self._unhope(slot)
                slot.group.lonely = self._tickets
            self._open -= 1
            if announce is not None:
                announce.life.let_go(slot)
            self._uncount(slot.group)

    def take_back(self, slot: _Slot) -> None:
        """Take an exchange's place that a lease gives back."""
        self._leased -= 1
        self._settle(slot)

    def _promise(self, slot: _Slot) -> None:
        """Give a place on a connection to somebody who will start an exchange."""
        if not slot.users:
            self._take(slot)
            if slot.shared:
                slot.group.in_use.append(slot)
        slot.users += 1
        slot.promised += 1

    def _reject(self, slot: _Slot) -> None:
        """Give up a promise that the connection cannot keep; it is never offered again."""
        slot.promised -= 1
        if slot.users == 1:
            self._closed_idle += 1
            self._unexpected_bytes += slot.connection.spoke_out_of_turn
        if slot.users == 1 or slot.room > 0:
            slot.retired = True
        self._settle(slot)

    def _settle(self, slot: _Slot) -> None:
        """Take a place back, given up or used; what then carries nothing becomes idle."""
        slot.users -= 1
        connection, group = slot.connection, slot.group
        if slot.users:
            if group.waiters:
                self._assign(group)
            return
        if slot.shared:
            group.in_use.remove(slot)
        if connection.dead:
            return
        timeout = connection.idle_timeout
        if (
            slot.retired
            or timeout == 0
            or self._draining
            or not self._size
            or (slot.shared and connection.room <= 0)
        ):
            connection.close()
            return
        if timeout != math.inf:
            connection.arm_idle(timeout)
        (group.idle_shared if slot.shared else group.idle).append(slot)
        self._ages[slot] = None
        if group.waiters:
            self._assign(group)
        self._shrink(group)

    def _shrink(self, group: _Group) -> None:
        """Close what is idle beyond the limits, the least recently used first."""
        while len(group.idle) + len(group.idle_shared) > self._size_per_peer:
            self._displace((group.idle or group.idle_shared)[0])
        while len(self._ages) > self._size:
            self._displace(next(iter(self._ages)))

    def _take(self, slot: _Slot) -> None:
        """Take a connection out of the idle ones."""
        del self._ages[slot]
        group = slot.group
        idle = group.idle_shared if slot.shared else group.idle
        if idle[-1] is slot:
            idle.pop()
        else:
            idle.remove(slot)

    def _displace(self, slot: _Slot) -> None:
        """Close an idle connection."""
        self._take(slot)
        self._closed_idle += 1
        slot.retired = True
        slot.connection.close()

    def _ended(self, slot: _Slot, connection: UpstreamConnection) -> None:
        if slot in self._ages:
            self._take(slot)
            self._closed_idle += 1
            self._unexpected_bytes += connection.spoke_out_of_turn

    def close_idle(self) -> None:
        """Close every idle connection."""
        while self._ages:
            self._displace(next(iter(self._ages)))

    def drain(self) -> None:
        """Close every idle connection, and from now on each one that becomes idle."""
        self._draining = True
        self.close_idle()


def _serve(group: _Group, waiter: _Waiter) -> None:
    group.waiters.remove(waiter)
    if waiter.served is not None:
        waiter.served.set()


def _note(memory: OrderedDict[Hashable, Any], key: Hashable, value: Any) -> None:
    """Remember something of a reuse key, and forget what was noted least recently."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
