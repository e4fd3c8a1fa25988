"""Who gets which connection: one pure, synchronous step of the pool.

The pool calls `assign` whenever somebody starts to wait, a connection gets room or one ends; it
then does what the `Assignment` says. Nothing here waits, connects or changes what it is given.

**Theory of operation.** All connections and waiters of one reuse key form a `Group`; groups share
nothing but the limit on idle connections. Which connection is taken is the one rule of `choose`.
Where there is none, a waiter makes one, and those who come while it does wait for it, as many as
it is expected to have room for: a hundred requests at once make one HTTP/2 connection, not a
hundred. That a waiter waits for another one's connect is recorded nowhere: `Group.hoped` tells how
many may, and each pass counts them anew in the order of arrival.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import attrs

from ..streams._abc import UpstreamConnection

#: What is older than any connection: `Want.since` of those who take whatever there is.
ANY = -1


@attrs.define(eq=False)
class Want:
    """Somebody who wants a connection.

    Attributes:
      ticket: Their place in the order of arrival.
      since: Only a connection with a higher number will do: one that was made after the wish, for
        an older one turned out to be lost (rows F-04, H2-28).
    """

    ticket: int = 0
    since: int = ANY


WaiterT = TypeVar("WaiterT", bound=Want)


@attrs.define(eq=False)
class Slot(Generic[WaiterT]):
    """A connection with what the pool knows of it.

    Attributes:
      connection: The connection.
      group: Where it belongs.
      number: Its place in the order in which connections were made.
      users: Exchanges it carries or is promised for; 0 makes it an idle one.
      promised: Those of them that have not started yet.
      retired: Whether it is never to be offered again.
      hope: Room that waiters still hope for, until the origin says how much it is: its part of the
        group's `hoped`.
      shared: Whether it carries many exchanges at once.
    """

    connection: UpstreamConnection
    group: Group[WaiterT]
    number: int
    users: int = 0
    promised: int = 0
    retired: bool = False
    hope: int = 0
    shared: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.shared = self.connection.shared

    @property
    def room(self) -> int:
        """Exchanges that may still be promised."""
        return 0 if self.retired else self.connection.room - self.promised


@attrs.define(eq=False)
class Group(Generic[WaiterT]):
    """The connections of one reuse key, and who waits for one.

    Attributes:
      key: The reuse key.
      wished: Exchanges that a connection is to carry at once where the origin allows it.
      expected: How many a new connection will probably carry: less, where an earlier one did.
      in_use: Shared connections that carry something.
      idle_shared: Idle shared ones, the one used last at the end.
      idle: Idle ones that carry one exchange at a time, the one used last at the end.
      count: All connections: idle, busy and being made.
      hoped: Room that connections will have beside those who make them, once they are made and
        the origin has said how much it is.
      waiters: Who waits, in the order of arrival.
      hope: What the last pass left of `hoped`.
      stale: Whether somebody has left since the last pass, so that `hope` is too low.
      lonely: The highest ticket of those who wait for nobody else's connect any more: one failed
        them already, or takes too long.
      shared_key: What is remembered of the peer stands under this.
    """

    key: Hashable
    wished: int = 1
    expected: int = 1
    in_use: list[Slot[WaiterT]] = attrs.field(factory=list)
    idle_shared: list[Slot[WaiterT]] = attrs.field(factory=list)
    idle: list[Slot[WaiterT]] = attrs.field(factory=list)
    count: int = 0
    hoped: int = 0
    waiters: list[WaiterT] = attrs.field(factory=list)
    hope: int = 0
    stale: bool = False
    lonely: int = 0
    shared_key: Hashable = None


@attrs.frozen
class Assignment(Generic[WaiterT]):
    """What the pool has to do now.

    Attributes:
      leases: Waiters that get a connection, each with it.
      connects: Waiters that may make a new connection.
      closings: Idle connections to close.
      hope: Room in connections being made that nobody waits for yet.
    """

    leases: list[tuple[WaiterT, Slot[WaiterT]]]
    connects: list[WaiterT]
    closings: list[Slot[WaiterT]]
    hope: int


def choose(
    in_use: Sequence[Slot[WaiterT]],
    idle_shared: Sequence[Slot[WaiterT]],
    idle: Sequence[Slot[WaiterT]],
    since: int,
    given: Mapping[Slot[WaiterT], int] | None = None,
) -> Slot[WaiterT] | None:
    """Return the connection to take, or None where there is none.

    That is a shared one in use that has room (the fullest, so that the others may come to rest), an
    idle shared one, an idle one that carries one exchange at a time; of the idle ones that which
    was used last.

    Args:
      in_use: As in `Group`.
      idle_shared: As in `Group`.
      idle: As in `Group`.
      since: What the number of the connection must exceed.
      given: What is promised of the shared ones in use, beside what they know themselves.
    """
    if in_use:
        best, most = None, 0
        for slot in in_use:
            extra = 0 if given is None else given.get(slot, 0)
            users = slot.users + extra
            if users > most and slot.number > since and slot.room > extra:
                best, most = slot, users
        if best is not None:
            return best
    for slot in reversed(idle_shared):
        if slot.number > since and slot.room > 0:
            return slot
    for slot in reversed(idle):
        if slot.number > since:
            return slot
    return None


def assign(
    group: Group[WaiterT], waiters: Sequence[WaiterT], hope: int, cap: int | None
) -> Assignment[WaiterT]:
    """Match those who wait with connections, the first come first.

    A waiter takes the connection that `choose` finds, else waits for one that is being made and
    will have room, else makes a new one where the limit allows, else waits. Who wants a connection
    that is newer than all idle ones has one of those closed where there is no place beside it.

    Args:
      group: The connections.
      waiters: Who waits, in the order of arrival: all of the group, or those who came since the
        last pass.
      hope: Room in connections being made that nobody of the others waits for.
      cap: Limit of connections, None for no limit.
    """
    result: Assignment[WaiterT] = Assignment([], [], [], 0)
    in_use, idle_shared, idle = list(group.in_use), list(group.idle_shared), list(group.idle)
    given: dict[Slot[WaiterT], int] = {}
    count = group.count
    dry = False
    for index, waiter in enumerate(waiters):
        slot = None if dry else choose(in_use, idle_shared, idle, waiter.since, given)
        if slot is not None:
            result.leases.append((waiter, slot))
            if not slot.shared:
                idle.remove(slot)
                continue
            if not slot.users and slot not in given:
                idle_shared.remove(slot)
                in_use.append(slot)
            given[slot] = given.get(slot, 0) + 1
            continue
        # Nothing for one who takes whatever there is: nothing for anybody behind.
        dry = dry or waiter.since == ANY
        if waiter.ticket > group.lonely:
            left = len(waiters) - index
            if dry and hope >= left:
                hope -= left
                break
            if hope > 0:
                hope -= 1
                continue
        if cap is not None and count >= cap:
            surplus = count - cap + 1
            if surplus > len(idle) + len(idle_shared):
                if dry and hope <= 0:
                    break
                continue
            for _ in range(surplus):
                result.closings.append((idle or idle_shared).pop(0))
                count -= 1
        count += 1
        hope += group.expected - 1
        result.connects.append(waiter)
    return attrs.evolve(result, hope=hope)
