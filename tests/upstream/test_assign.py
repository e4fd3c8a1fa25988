"""The pool's one decision, held against its rules over any state it can be in."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.upstream._assign import Assignment, PoolLimits, Want, assign


@attrs.frozen
class State:
    """What a pool might hand to `assign`: connections are numbers, keys letters."""

    waiters: list[Want]
    ages: dict[int, str]
    counts: dict[Any, int]
    limits: PoolLimits

    @property
    def idle(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for connection, key in self.ages.items():
            found.setdefault(key, []).append(connection)
        return found

    def assign(self) -> Assignment[Want, int]:
        return assign(self.waiters, self.idle, self.ages, self.counts, self.limits)


KEYS = st.sampled_from("abc")
WANTS = st.builds(Want, KEYS, st.booleans())


@st.composite
def states(draw: st.DrawFn) -> State:
    ages = dict(enumerate(draw(st.lists(KEYS, max_size=8))))
    busy = draw(st.dictionaries(KEYS, st.integers(0, 3)))
    counts = dict(Counter(ages.values()) + Counter(busy))
    limits = PoolLimits(
        draw(st.integers(0, 8)),
        draw(st.integers(0, 8)),
        draw(st.none() | st.integers(1, 4)),
    )
    return State(draw(st.lists(WANTS, max_size=8)), ages, counts, limits)


@given(states())
def test_every_waiter_has_one_fate_and_every_connection_one_owner(state: State) -> None:
    result = state.assign()
    served = [waiter for waiter, _ in result.leases] + result.connects
    assert len({id(waiter) for waiter in served}) == len(served)
    handled = [connection for _, connection in result.leases] + result.closings
    assert len(set(handled)) == len(handled)
    assert set(handled) <= set(state.ages)


@given(states())
def test_a_lease_has_the_key_it_was_wanted_for_and_is_never_stale_by_choice(state: State) -> None:
    for waiter, connection in state.assign().leases:
        assert state.ages[connection] == waiter.key
        assert not waiter.fresh


@given(states())
def test_limits_hold_afterwards(state: State) -> None:
    result = state.assign()
    gone = {connection for _, connection in result.leases} | set(result.closings)
    left = Counter(key for connection, key in state.ages.items() if connection not in gone)
    assert left.total() <= state.limits.idle
    assert all(number <= state.limits.idle_per_peer for number in left.values())
    cap = state.limits.connections_per_peer
    if cap is not None:
        closed: Counter[Any] = Counter(state.ages[connection] for connection in result.closings)
        made = Counter(waiter.key for waiter in result.connects)
        for key, number in made.items():
            before = state.counts.get(key, 0)
            assert before - closed[key] + number <= max(cap, before - closed[key])


@given(states())
def test_nobody_waits_who_need_not_and_nobody_is_overtaken(state: State) -> None:
    result = state.assign()
    served = {id(waiter) for waiter, _ in result.leases} | {id(each) for each in result.connects}
    waiting = [waiter for waiter in state.waiters if id(waiter) not in served]
    assert not waiting or state.limits.connections_per_peer is not None
    for waiter in waiting:
        index = state.waiters.index(waiter)
        later = [each for each in state.waiters[index + 1 :] if each.key == waiter.key]
        # A waiter for a fresh connection may be stuck where an idle one is of use to the next.
        assert all(id(each) not in served or not each.fresh for each in later)


def test_the_connection_used_last_is_taken_first_and_the_oldest_is_closed_first() -> None:
    state = State([Want("a")], {1: "a", 2: "a", 3: "a"}, {"a": 3}, PoolLimits(1, 1, None))
    result = state.assign()
    assert [connection for _, connection in result.leases] == [3]
    assert result.closings == [1]


def test_a_fresh_connection_has_an_idle_one_closed_where_there_is_no_room() -> None:
    state = State([Want("a", fresh=True)], {1: "a", 2: "a"}, {"a": 2}, PoolLimits(8, 8, 2))
    result = state.assign()
    assert result.closings == [1]
    assert result.connects == state.waiters
