"""Who gets which connection: one pure, synchronous step of the pool.

The pool calls `assign` whenever somebody starts to wait, a connection comes back or one ends; it
then does what the `Assignment` says. Nothing here waits, connects or changes what it is given.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs

ConnectionT = TypeVar("ConnectionT")
WaiterT = TypeVar("WaiterT", bound="Want")


@attrs.frozen
class PoolLimits:
    """Bounds of a pool.

    Attributes:
      idle: Idle connections in all.
      idle_per_peer: Idle connections of one reuse key.
      connections_per_peer: Connections of one reuse key, busy ones included; None for no limit.
    """

    idle: int = 128
    idle_per_peer: int = 128
    connections_per_peer: int | None = None


@attrs.define(eq=False)
class Want:
    """Somebody who wants a connection.

    Attributes:
      key: The reuse key.
      fresh: Never an idle connection: the last one turned out to be stale (row F-04).
    """

    key: Hashable
    fresh: bool = False


@attrs.frozen
class Assignment(Generic[WaiterT, ConnectionT]):
    """What the pool has to do now.

    Attributes:
      leases: Waiters that get an idle connection, each with it.
      connects: Waiters that may make a new connection.
      closings: Idle connections to close.
    """

    leases: list[tuple[WaiterT, ConnectionT]]
    connects: list[WaiterT]
    closings: list[ConnectionT]


def assign(
    waiters: Sequence[WaiterT],
    idle: Mapping[Any, Sequence[ConnectionT]],
    ages: Mapping[ConnectionT, Any],
    counts: Mapping[Any, int],
    limits: PoolLimits,
) -> Assignment[WaiterT, ConnectionT]:
    """Match those who wait with connections, the first come first.

    A waiter takes the idle connection of its key that was used last, else makes a new one where the
    limit of its key allows, else waits; a waiter for a fresh connection has an idle one of its key
    closed where there is no room beside it. What is idle beyond the limits is closed, the least
    recently used first.

    Args:
      waiters: Who waits, in the order of arrival.
      idle: Idle connections by key, the one used last at the end.
      ages: Every idle connection with its key, the one used last at the end.
      counts: Connections by key: idle, busy and being made.
      limits: The bounds.
    """
    result: Assignment[WaiterT, ConnectionT] = Assignment([], [], [])
    taken: dict[Hashable, int] = {}  # idle connections used up, from the end of their list
    closed: dict[Hashable, int] = {}  # and closed, from its start
    made: dict[Hashable, int] = {}
    cap = limits.connections_per_peer
    for waiter in waiters:
        key = waiter.key
        free = idle.get(key, ())
        left = len(free) - taken.get(key, 0) - closed.get(key, 0)
        if left > 0 and not waiter.fresh:
            taken[key] = taken.get(key, 0) + 1
            result.leases.append((waiter, free[-taken[key]]))
            continue
        count = counts.get(key, 0) + made.get(key, 0) - closed.get(key, 0)
        if cap is not None and count >= cap:
            surplus = count - cap + 1
            if surplus > left:
                continue
            first = closed.get(key, 0)
            result.closings.extend(free[first : first + surplus])
            closed[key] = first + surplus
        made[key] = made.get(key, 0) + 1
        result.connects.append(waiter)
    _shrink(result, idle, ages, limits)
    return result


def _shrink(
    result: Assignment[WaiterT, ConnectionT],
    idle: Mapping[Any, Sequence[ConnectionT]],
    ages: Mapping[ConnectionT, Any],
    limits: PoolLimits,
) -> None:
    """Add to the closings what is idle beyond the limits."""
    if len(ages) <= limits.idle and len(ages) <= limits.idle_per_peer:
        return
    gone = {connection for _, connection in result.leases}
    gone.update(result.closings)
    per_key = {key: sum(each not in gone for each in free) for key, free in idle.items()}
    total = len(ages) - len(gone)
    for connection, key in ages.items():
        if connection in gone:
            continue
        if total > limits.idle or per_key[key] > limits.idle_per_peer:
            result.closings.append(connection)
            total -= 1
            per_key[key] -= 1
