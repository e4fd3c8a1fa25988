"""The pool's one decision, held against its rules over any state it can be in."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests._support.upstream import FakeConnection
from trioproxy.upstream._assign import ANY, Assignment, Group, Slot, Want, assign, choose


def make_group(expected: int = 1, lonely: int = 0) -> Group[Want]:
    return Group("key", expected, expected, lonely=lonely)


def add(group: Group[Want], number: int, *, limit: int = 0, users: int = 0) -> Slot[Want]:
    """Put a connection into a group: a shared one where it has a limit."""
    connection = FakeConnection(limit or None)
    for _ in range(users):
        connection.start()
    slot = Slot(connection, group, number, users)
    group.count += 1
    if users:
        if slot.shared:
            group.in_use.append(slot)
    else:
        (group.idle_shared if slot.shared else group.idle).append(slot)
    return slot


@attrs.frozen
class State:
    """What a pool might hand to `assign`."""

    group: Group[Want]
    cap: int | None

    def assign(self) -> Assignment[Want]:
        return assign(self.group, self.group.waiters, self.group.hoped, self.cap)


@st.composite
def states(draw: st.DrawFn) -> State:
    group = make_group(draw(st.integers(1, 4)), draw(st.integers(0, 3)))
    for number in range(draw(st.integers(0, 6))):
        limit = draw(st.sampled_from([0, 0, 1, 2, 4]))
        add(group, number, limit=limit, users=draw(st.integers(0, limit or 1)))
    making = draw(st.integers(0, 2))
    group.count += making
    if making:
        group.hoped = draw(st.integers(0, 6))
    sinces = draw(st.lists(st.sampled_from([ANY, ANY, 0, 2, 9]), max_size=10))
    group.waiters = [Want(ticket, since) for ticket, since in enumerate(sinces, 1)]
    return State(group, draw(st.none() | st.integers(1, 6)))


@given(states())
def test_every_waiter_has_one_fate_and_no_connection_is_over_its_room(state: State) -> None:
    result = state.assign()
    served = [waiter for waiter, _ in result.leases] + result.connects
    assert len({id(waiter) for waiter in served}) == len(served)
    given_out = Counter(slot for _, slot in result.leases)
    assert all(number <= slot.room for slot, number in given_out.items())
    assert len(set(result.closings)) == len(result.closings)
    assert not given_out.keys() & set(result.closings)
    assert all(not slot.users for slot in result.closings)


@given(states())
def test_nobody_gets_a_connection_that_is_older_than_they_allow(state: State) -> None:
    assert all(slot.number > waiter.since for waiter, slot in state.assign().leases)


@given(states())
def test_the_limit_of_connections_holds_afterwards(state: State) -> None:
    result = state.assign()
    if state.cap is not None and result.connects:
        assert state.group.count - len(result.closings) + len(result.connects) <= state.cap


@given(states())
def test_nobody_waits_who_need_not(state: State) -> None:
    group, result = state.group, state.assign()
    served = {id(waiter) for waiter, _ in result.leases} | {id(each) for each in result.connects}
    waiting = [waiter for waiter in group.waiters if id(waiter) not in served]
    given_out = Counter(slot for _, slot in result.leases)
    closed = set(result.closings)
    slots = [*group.in_use, *group.idle_shared, *group.idle]
    left = [slot for slot in slots if slot.room > given_out[slot] and slot not in closed]
    count = group.count - len(closed) + len(result.connects)
    hoped = group.hoped + len(result.connects) * (group.expected - 1)
    assert 0 <= result.hope <= hoped
    for waiter in waiting:
        assert not any(slot.number > waiter.since for slot in left)
    # All who wait have another's connect to hope for, or the limit keeps them from their own.
    unhoping = [waiter for waiter in waiting if waiter.ticket <= group.lonely]
    if state.cap is None or count < state.cap:
        assert not unhoping
        assert len(waiting) <= hoped


@given(states())
def test_the_first_come_is_served_first_among_the_alike(state: State) -> None:
    group, result = state.group, state.assign()
    leased = {id(waiter) for waiter, _ in result.leases}
    for index, waiter in enumerate(group.waiters):
        later = group.waiters[index + 1 :]
        if id(waiter) not in leased:
            assert all(id(each) not in leased for each in later if each.since >= waiter.since)


@given(states())
def test_deciding_changes_nothing(state: State) -> None:
    group = state.group
    before = attrs.asdict(group, recurse=False)
    first = state.assign()
    assert state.assign() == first
    assert attrs.asdict(group, recurse=False) == before


def test_the_fullest_in_use_comes_before_idle_ones_and_shared_before_single_ones() -> None:
    group = make_group()
    add(group, 1, limit=4, users=1)
    fullest = add(group, 2, limit=4, users=2)
    full = add(group, 3, limit=3, users=3)
    idle_shared = [add(group, number, limit=4) for number in (4, 5)]
    idle = [add(group, number) for number in (6, 7)]
    assert full.room == 0
    group.waiters = [Want(number) for number in range(1, 15)]
    result = assign(group, group.waiters, 0, None)
    order = [slot.number for _, slot in result.leases]
    assert order == [2, 2, 1, 1, 1, 5, 5, 5, 5, 4, 4, 4, 4, 7]
    assert choose(group.in_use, group.idle_shared, group.idle, ANY) is fullest
    assert choose([], group.idle_shared, group.idle, ANY) is idle_shared[-1]
    assert choose([], [], group.idle, ANY) is idle[-1]


def test_one_that_is_told_to_go_away_or_retired_is_never_taken() -> None:
    group = make_group()
    add(group, 1, limit=4, users=1).connection.go_away()  # type: ignore[attr-defined]  # a fake
    add(group, 2, limit=4, users=1).retired = True
    assert choose(group.in_use, group.idle_shared, group.idle, ANY) is None


def test_those_who_come_while_a_connection_is_made_wait_for_its_room() -> None:
    group = make_group(expected=3)
    group.waiters = [Want(number) for number in range(1, 8)]
    result = assign(group, group.waiters, 0, None)
    assert [each.ticket for each in result.connects] == [1, 4, 7]
    assert result.hope == 2


def test_those_whom_a_connect_has_failed_make_their_own_all_at_once() -> None:
    group = make_group(expected=100, lonely=3)
    group.waiters = [Want(number) for number in range(1, 6)]
    result = assign(group, group.waiters, 0, None)
    assert [each.ticket for each in result.connects] == [1, 2, 3]


@pytest.mark.parametrize("limit", [0, 4], ids=["single", "shared"])
def test_a_new_connection_has_an_idle_one_closed_where_there_is_no_place(limit: int) -> None:
    group = make_group()
    oldest = add(group, 1, limit=limit)
    add(group, 2, limit=limit)
    group.waiters = [Want(1, since=2)]
    result = assign(group, group.waiters, 0, 2)
    assert result.closings == [oldest]
    assert result.connects == group.waiters


def test_one_that_wants_a_new_connection_takes_another_ones_if_it_is_made_later() -> None:
    group = make_group()
    add(group, 1, limit=4, users=1)
    later = add(group, 3, limit=4, users=1)
    assert choose(group.in_use, group.idle_shared, group.idle, 2) is later
    assert choose(group.in_use, group.idle_shared, group.idle, 3) is None


def test_who_may_take_an_older_one_is_not_kept_by_those_who_may_not() -> None:
    group = make_group()
    slot = add(group, 1, limit=4, users=1)
    group.waiters = [Want(1, since=1), Want(2)]
    result = assign(group, group.waiters, 0, 1)
    assert result.leases == [(group.waiters[1], slot)]


def test_a_promise_takes_room_before_the_exchange_starts() -> None:
    slot = add(make_group(), 1, limit=4, users=1)
    slot.promised = 2
    assert slot.room == 1
