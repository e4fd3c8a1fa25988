from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests._support.upstream import FakeConnection, FakeStream
from trioproxy import ErrorSource, ErrorType, HttpPeer, PeerOptions, ProxyError, RequestHeader
from trioproxy._info import ConnectionInfo
from trioproxy._messages import END, ResponseEvent
from trioproxy.codec._h1 import HeadLimits, ResponseReader
from trioproxy.streams._abc import UpstreamConnection, UpstreamStream
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.transport._byte_stream import StreamAdapter
from trioproxy.upstream._connector import Connector
from trioproxy.upstream._pool import Lease, Pool

WireEnd = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PEER = HttpPeer("origin.example", 80)


@attrs.define
class Wires(Connector):
    """Connects to nothing, and keeps the far end of every wire."""

    far: list[WireEnd] = attrs.field(factory=list)
    peers: list[HttpPeer] = attrs.field(factory=list)

    async def connect(self, peer: HttpPeer) -> H1ClientConnection:
        await trio.lowlevel.checkpoint()
        near, far = trio.testing.memory_stream_pair()
        self.far.append(far)
        self.peers.append(peer)
        info = ConnectionInfo(None, peer.name, trio.current_time())
        return H1ClientConnection(StreamAdapter(near), info, ResponseReader(HeadLimits()))


@asynccontextmanager
async def open_pool(
    size: int = 128, idle_timeout: float = 55, connections_per_peer: int | None = None
) -> AsyncIterator[tuple[Pool, Wires]]:
    wires = Wires()
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            pool = Pool(
                wires,
                nursery,
                size=size,
                idle_timeout=idle_timeout,
                connections_per_peer=connections_per_peer,
            )
            yield pool, wires
            nursery.cancel_scope.cancel()


async def _read(stream: UpstreamStream) -> list[ResponseEvent]:
    events: list[ResponseEvent] = []
    while not events or not (events[-1] is END or getattr(events[-1], "end", False)):
        events += await stream.receive_batch()
    return events


async def _exchange(
    stream: UpstreamStream, far: WireEnd, answer: bytes = OK, method: str = "GET"
) -> list[ResponseEvent]:
    await stream.send(RequestHeader(method, "/", {"Host": "h"}), END)
    await far.receive_some()
    await far.send_all(answer)
    return await _read(stream)


async def _use(pool: Pool, wires: Wires, peer: HttpPeer = PEER) -> UpstreamStream:
    """Run one exchange on a lease, and return its stream."""
    async with await pool.lease(peer) as stream:
        index = wires.peers.index(peer) if stream.reused else -1
        await _exchange(stream, wires.far[index])
    return stream


async def _is_closed(far: WireEnd) -> bool:
    with trio.move_on_after(1):
        return await far.receive_some() == b""
    return False


def _counts(pool: Pool) -> tuple[int, int, int, int, int]:
    numbers = pool.statistics()
    return (
        numbers.idle,
        numbers.leased,
        numbers.connects,
        numbers.reuses,
        numbers.closed_idle,
    )


async def test_a_connection_is_used_again_after_a_whole_exchange() -> None:
    async with open_pool() as (pool, wires):
        first = await _use(pool, wires)
        assert _counts(pool) == (1, 0, 1, 0, 0)
        async with await pool.lease(PEER) as second:
            assert _counts(pool) == (0, 1, 1, 1, 0)
            await _exchange(second, wires.far[0])
        assert (first.reused, second.reused) == (False, True)
        assert len(wires.far) == 1
        assert _counts(pool) == (1, 0, 1, 1, 0)


async def test_two_leases_at_once_hold_two_connections() -> None:
    async with open_pool() as (pool, wires):
        async with await pool.lease(PEER) as one, await pool.lease(PEER) as other:
            assert _counts(pool)[:3] == (0, 2, 2)
            await _exchange(one, wires.far[0])
            await _exchange(other, wires.far[1])
        assert _counts(pool)[:2] == (2, 0)


async def test_the_connection_used_last_is_used_first() -> None:
    async with open_pool() as (pool, wires):
        lease_1, lease_2 = await pool.lease(PEER), await pool.lease(PEER)
        await _exchange(lease_1.stream, wires.far[0])
        await _exchange(lease_2.stream, wires.far[1])
        lease_2.release()
        lease_1.release()
        async with await pool.lease(PEER) as stream:
            await _exchange(stream, wires.far[0])  # would hang on the other wire


async def test_releasing_twice_counts_once() -> None:
    async with open_pool() as (pool, wires):
        lease = await pool.lease(PEER)
        await _exchange(lease.stream, wires.far[0])
        lease.release()
        lease.release()
        assert _counts(pool)[:2] == (1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\n",
    ],
    ids=["close", "old", "surplus"],
)
async def test_a_connection_that_said_so_or_said_too_much_is_not_kept(answer: bytes) -> None:
    async with open_pool() as (pool, wires):
        async with await pool.lease(PEER) as stream:
            await _exchange(stream, wires.far[0], answer)
        assert _counts(pool)[:2] == (0, 0)
        assert await _is_closed(wires.far[0])


@pytest.mark.parametrize("done", ["nothing", "request", "head", "half a request"])
async def test_leaving_early_closes_the_connection(done: str) -> None:
    async with open_pool() as (pool, wires):
        async with await pool.lease(PEER) as stream:
            if done == "half a request":
                await stream.send(RequestHeader("POST", "/", {"Host": "h", "Content-Length": "5"}))
            elif done != "nothing":
                await stream.send(RequestHeader("GET", "/", {"Host": "h"}), END)
            if done == "head":
                await wires.far[0].send_all(OK[:-1])
                await stream.receive_batch()
        assert _counts(pool)[:2] == (0, 0)
        if done in ("request", "head", "half a request"):
            await wires.far[0].receive_some()
        assert await _is_closed(wires.far[0])


@pytest.mark.parametrize("what", ["bytes", "a perfect response", "the end"])
async def test_u1_01_an_idle_connection_that_stirs_is_dropped(what: str) -> None:
    async with open_pool() as (pool, wires):
        await _use(pool, wires)
        if what == "the end":
            await wires.far[0].send_eof()
        else:
            await wires.far[0].send_all(b"x" if what == "bytes" else OK)
        await trio.testing.wait_all_tasks_blocked()
        assert _counts(pool) == (0, 0, 1, 0, 1)
        assert await _is_closed(wires.far[0])
        stream = await _use(pool, wires)
        assert not stream.reused
        assert len(wires.far) == 2


async def test_u1_01_bytes_that_nobody_has_read_yet_are_seen_at_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_pool() as (pool, wires):
        await _use(pool, wires)
        # A memory stream cannot be asked without waiting; this one has something to tell.
        monkeypatch.setattr(StreamAdapter, "receive_ready", lambda *_: b"H")
        async with await pool.lease(PEER) as stream:
            assert not stream.reused
        assert _counts(pool)[2:] == (2, 0, 1)


async def test_an_idle_connection_expires(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pool(idle_timeout=55) as (pool, wires):
        await _use(pool, wires)
        await trio.sleep(54)
        assert _counts(pool)[0] == 1
        await _use(pool, wires)  # starts the time anew
        await trio.sleep(54)
        assert _counts(pool)[0] == 1
        await trio.sleep(2)
        assert _counts(pool) == (0, 0, 1, 1, 1)
        assert await _is_closed(wires.far[0])


async def test_the_idle_time_does_not_run_during_an_exchange(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pool(idle_timeout=55) as (pool, wires):
        await _use(pool, wires)
        async with await pool.lease(PEER) as stream:
            await trio.sleep(1000)
            await _exchange(stream, wires.far[0])
        assert _counts(pool) == (1, 0, 1, 1, 0)


async def test_a_peer_has_its_own_idle_timeout(autojump_clock: trio.testing.MockClock) -> None:
    short = HttpPeer("short.example", 80, options=PeerOptions(idle_timeout=5))
    never = HttpPeer("never.example", 80, options=PeerOptions(idle_timeout=math.inf))
    async with open_pool(idle_timeout=55) as (pool, wires):
        await _use(pool, wires, short)
        await _use(pool, wires, never)
        await trio.sleep(6)
        assert _counts(pool)[0] == 1
        await trio.sleep(10_000)
        assert _counts(pool)[0] == 1
        assert (await _use(pool, wires, never)).reused


async def test_an_idle_timeout_of_zero_disables_pooling() -> None:
    peer = HttpPeer("origin.example", 80, options=PeerOptions(idle_timeout=0))
    async with open_pool() as (pool, wires):
        await _use(pool, wires, peer)
        assert _counts(pool) == (0, 0, 1, 0, 0)
        assert await _is_closed(wires.far[0])


async def test_a_pool_of_size_zero_keeps_nothing() -> None:
    async with open_pool(size=0) as (pool, wires):
        await _use(pool, wires)
        assert _counts(pool) == (0, 0, 1, 0, 0)
        assert await _is_closed(wires.far[0])


async def test_peers_with_different_keys_share_no_connection() -> None:
    peers = [
        PEER,
        HttpPeer("origin.example", 81),
        HttpPeer("Origin.example", 80),
        HttpPeer("origin.example", 80, group_key=1),
        HttpPeer.new_uds("/origin"),
    ]
    async with open_pool() as (pool, wires):
        for peer in peers:
            assert not (await _use(pool, wires, peer)).reused
        assert _counts(pool)[0] == len(peers)
        for peer in peers:
            assert (await _use(pool, wires, peer)).reused
        assert len(wires.far) == len(peers)


async def test_the_oldest_idle_connection_makes_room() -> None:
    peers = [HttpPeer(f"{name}.example", 80) for name in "abc"]
    async with open_pool(size=2) as (pool, wires):
        for peer in peers:
            await _use(pool, wires, peer)
        assert _counts(pool) == (2, 0, 3, 0, 1)
        assert await _is_closed(wires.far[0])
        assert (await _use(pool, wires, peers[1])).reused
        assert (await _use(pool, wires, peers[2])).reused


async def test_f_04_a_fresh_lease_passes_idle_connections_by() -> None:
    async with open_pool() as (pool, wires):
        await _use(pool, wires)
        async with await pool.lease(PEER, fresh=True) as stream:
            assert not stream.reused
        assert len(wires.far) == 2
        assert _counts(pool)[0] == 1


async def test_close_idle_closes_the_idle_ones_only() -> None:
    async with open_pool() as (pool, wires):
        await _use(pool, wires)
        lease = await pool.lease(PEER, fresh=True)
        pool.close_idle()
        assert await _is_closed(wires.far[0])
        await _exchange(lease.stream, wires.far[1])
        lease.release()
        assert _counts(pool)[:2] == (1, 0)


async def test_the_pool_forgets_peers_that_it_has_no_connection_to() -> None:
    async with open_pool() as (pool, wires):
        for number in range(5):
            peer = HttpPeer(f"{number}.example", 80)
            await _use(pool, wires, peer)
            async with await pool.lease(peer):
                pass  # left early: the connection is closed
        assert _counts(pool)[0] == 0
        await trio.testing.wait_all_tasks_blocked()
        assert not pool._groups
        assert not pool._ages


async def test_nothing_is_left_when_the_pools_nursery_is_cancelled() -> None:
    leases: list[Lease] = []
    async with open_pool() as (pool, wires):
        await _use(pool, wires)
        leases.append(await pool.lease(PEER, fresh=True))
        stream = leases[0].stream
        await stream.send(RequestHeader("GET", "/", {"Host": "h"}), END)
    assert _counts(pool)[0] == 0
    for far in wires.far:
        while await far.receive_some():
            pass  # the request, then the end
    with trio.fail_after(10), pytest.raises(ProxyError) as caught:
        await stream.receive_batch()
    assert caught.value.esource is ErrorSource.UPSTREAM
    leases[0].release()
    assert _counts(pool)[:2] == (0, 0)


async def test_a_connect_that_fails_leaves_no_lease() -> None:
    class Refusing(Connector):
        async def connect(self, peer: HttpPeer) -> H1ClientConnection:
            await trio.lowlevel.checkpoint()
            raise ProxyError.new_up(ErrorType.ConnectRefused)

    async with trio.open_nursery() as nursery:
        pool = Pool(Refusing(), nursery)
        with pytest.raises(ProxyError):
            await pool.lease(PEER)
        assert _counts(pool) == (0, 0, 0, 0, 0)


async def test_a_cancelled_connect_leaves_no_lease() -> None:
    async with open_pool() as (pool, wires):
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.lease(PEER)
        assert scope.cancelled_caught
        assert _counts(pool) == (0, 0, 0, 0, 0)
        assert not wires.far


async def test_a_bug_in_a_reader_costs_its_connection_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: ResponseReader, data: bytes) -> None:
        raise RuntimeError("a bug")

    async with open_pool() as (pool, wires):
        await _use(pool, wires)
        async with await pool.lease(PEER, fresh=True) as stream:
            await stream.send(RequestHeader("GET", "/", {"Host": "h"}), END)
            with monkeypatch.context() as patch:
                patch.setattr(ResponseReader, "feed", broken)
                await wires.far[1].send_all(OK)
                with pytest.raises(ProxyError) as caught:
                    await stream.receive_batch()
            assert caught.value.esource is ErrorSource.UPSTREAM
        assert (await _use(pool, wires)).reused
        assert _counts(pool)[:2] == (1, 0)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


async def test_who_wants_more_than_the_limit_of_a_peer_waits_in_turn() -> None:
    async with open_pool(connections_per_peer=1) as (pool, wires):
        order: list[int] = []

        async def want(number: int) -> None:
            async with await pool.lease(PEER) as stream:
                order.append(number)
                await _exchange(stream, wires.far[0])

        async with trio.open_nursery() as nursery:
            lease = await pool.lease(PEER)
            for number in range(3):
                nursery.start_soon(want, number)
                await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().waiting == 3
            assert (await pool.lease(HttpPeer("other.example", 80))).stream.reused is False
            await _exchange(lease.stream, wires.far[0])
            lease.release()
        assert order == [0, 1, 2]
        assert (pool.statistics().waiting, pool.statistics().connects) == (0, 2)


async def test_a_connection_that_ends_makes_room_for_one_that_waits() -> None:
    async with open_pool(connections_per_peer=1) as (pool, _), trio.open_nursery() as nursery:
        lease = await pool.lease(PEER)

        async def want() -> None:
            (await pool.lease(PEER)).release()

        nursery.start_soon(want)
        await trio.testing.wait_all_tasks_blocked()
        lease.release()  # in the middle of nothing: closed, not given back


async def test_waiting_for_a_connection_has_a_deadline(autojump_clock: object) -> None:
    async with open_pool(connections_per_peer=1) as (pool, _):
        await pool.lease(PEER)
        started = trio.current_time()
        with pytest.raises(ProxyError, match=r"no connection to .* became free in 5 s") as caught:
            await pool.lease(PEER)
        assert trio.current_time() - started == 5
        assert caught.value.etype == ErrorType.ConnectTimedout
        assert caught.value.esource is ErrorSource.UPSTREAM
        assert (pool.statistics().waiting, pool.statistics().wait_timeouts) == (0, 1)


async def test_a_cancelled_wait_hands_on_what_it_got_in_that_moment() -> None:
    async with open_pool(connections_per_peer=1) as (pool, wires):
        lease = await pool.lease(PEER)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.lease, PEER)
                await trio.testing.wait_all_tasks_blocked()
                await _exchange(lease.stream, wires.far[0])
                scope.cancel()  # the waiter is to run with that,
                lease.release()  # and gets the connection before it does
        assert _counts(pool)[:2] == (1, 0)
        async with await pool.lease(PEER) as stream:
            assert stream.reused


async def test_a_failed_connection_makes_room_again() -> None:
    async with open_pool(connections_per_peer=1) as (pool, wires):

        async def fail(peer: HttpPeer) -> H1ClientConnection:
            raise ProxyError.new_up(ErrorType.ConnectRefused)

        connect, wires.connect = wires.connect, fail  # type: ignore[method-assign]
        with pytest.raises(ProxyError, match="ConnectRefused"):
            await pool.lease(PEER)
        wires.connect = connect  # type: ignore[method-assign]
        await pool.lease(PEER)


async def test_u1_01_bytes_on_an_idle_connection_are_counted() -> None:
    async with open_pool() as (pool, wires):
        await _use(pool, wires)
        await wires.far[0].send_all(OK)
        await trio.testing.wait_all_tasks_blocked()
        assert pool.statistics().unexpected_bytes == 1
        assert _counts(pool)[0] == 0
        async with await pool.lease(PEER) as stream:
            assert not stream.reused


# -- a pool of fake connections, in any order of events ------------------------------------------

ASKS = st.tuples(st.just("ask"), st.integers(0, 1), st.booleans())
MADE = st.tuples(st.just("made"), st.integers(0, 9), st.sampled_from([None, 1, 2, 3, 5, -1, -3]))
OTHERS = st.tuples(
    st.sampled_from(
        ["fail", "release", "release", "cancel", "kill", "crash", "stale", "go away", "wait"]
    ),
    st.integers(0, 9),
    st.none(),
)
ALLOW = st.tuples(st.just("allow"), st.integers(0, 9), st.integers(0, 5))
#: What happens, and whether all tasks run on before the next thing happens.
STEPS = st.lists(
    st.tuples(st.one_of(ASKS, ASKS, MADE, MADE, OTHERS, OTHERS, ALLOW), st.booleans()),
    max_size=40,
)


@attrs.define(eq=False)
class Asked:
    """A lease that was asked for."""

    fresh: bool
    made_before: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    lease: Lease | None = None
    over: bool = False


@attrs.define(eq=False)
class Connecting:
    """A connect under way: what shall become of it."""

    peer: HttpPeer
    outcome: trio.Event = attrs.field(factory=trio.Event)
    limit: int | None = None
    failed: bool = False


@attrs.define(eq=False)
class Model(Connector):
    """A pool, and all that happens around it."""

    cap: int | None
    size: int
    wished: int
    clock: trio.testing.MockClock
    http_version: tuple[int, int] = (2, 2)
    refusing: bool = False
    connecting: list[Connecting] = attrs.field(factory=list)
    made: list[tuple[HttpPeer, FakeConnection]] = attrs.field(factory=list)
    asked: list[Asked] = attrs.field(factory=list)
    peers: list[HttpPeer] = attrs.field(init=False)
    pool: Pool = attrs.field(init=False)
    nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        options = PeerOptions(http_version=self.http_version, max_h2_streams=self.wished)
        self.peers = [HttpPeer(f"{name}.example", 80, options=options) for name in "ab"]

    async def connect(self, peer: HttpPeer) -> UpstreamConnection:
        mine = Connecting(peer)
        self.connecting.append(mine)
        try:
            await mine.outcome.wait()
        finally:
            self.connecting.remove(mine)
        if mine.failed:
            raise ProxyError.new_up(ErrorType.ConnectRefused)
        limit = mine.limit
        connection = FakeConnection(limit and abs(limit), settled=limit is None or limit > 0)
        connection.refuses = self.refusing
        self.made.append((peer, connection))
        return connection

    async def ask(self, asked: Asked, peer: HttpPeer) -> None:
        try:
            with asked.scope:
                asked.lease = await self.pool.lease(peer, fresh=asked.fresh)
        except ProxyError:
            pass
        finally:
            asked.over = True
        if asked.lease is not None and asked.fresh:
            connection = cast("FakeStream", asked.lease.stream).connection
            numbers = [each for _, each in self.made]
            assert numbers.index(connection) >= asked.made_before

    @property
    def held(self) -> list[Lease]:
        return [each.lease for each in self.asked if each.lease is not None]

    @property
    def alive(self) -> list[FakeConnection]:
        return [each for _, each in self.made if not each.dead]

    def step(self, name: str, index: int, value: int | bool | None) -> None:
        if name == "ask":
            asked = Asked(bool(value), len(self.made))
            self.asked.append(asked)
            self.nursery.start_soon(self.ask, asked, self.peers[index])
        elif name in ("made", "fail"):
            if self.connecting:
                connecting = self.connecting[index % len(self.connecting)]
                if not connecting.outcome.is_set():
                    connecting.limit = value
                    connecting.failed = name == "fail"
                    connecting.outcome.set()
        elif name == "release":
            holding = [each for each in self.asked if each.lease is not None]
            if holding:
                asked = holding[index % len(holding)]
                assert asked.lease is not None
                asked.lease.release()
                asked.lease = None
        elif name == "cancel":
            pending = [each for each in self.asked if not each.over]
            if pending:
                pending[index % len(pending)].scope.cancel()
        elif name == "wait":
            self.clock.jump(6)
        elif self.alive:
            connection = self.alive[index % len(self.alive)]
            if name == "allow":
                assert value is not None
                if connection.shared:
                    connection.allow(value)
            elif name == "go away":
                if connection.shared:
                    connection.go_away()
            elif name == "stale":
                connection.stale = True
            else:
                if name == "crash":
                    connection.failure = RuntimeError("a bug")
                connection.close()

    def check(self) -> None:
        """Hold what the pool says against what there is, when all tasks are blocked."""
        numbers = self.pool.statistics()
        alive = self.alive
        assert numbers.leased == len(self.held)
        assert numbers.leased == sum(each.busy for _, each in self.made)
        assert numbers.idle == sum(not each.busy for each in alive) <= self.size
        assert numbers.connections == len(alive)
        waiting = [each for each in self.asked if not each.over]
        assert numbers.waiting + len(self.connecting) == len(waiting)
        for peer in self.peers:
            self.check_peer(peer)

    def check_peer(self, peer: HttpPeer) -> None:
        alive = [each for at, each in self.made if at is peer and not each.dead]
        connecting = sum(each.peer is peer for each in self.connecting)
        group = self.pool._groups.get(peer.reuse_key)
        if group is None:
            assert not alive
            assert not connecting
            return
        count = len(alive) + connecting
        assert group.count == count > 0
        assert self.cap is None or count <= self.cap
        slots = [*group.in_use, *group.idle_shared, *group.idle]
        assert not any(slot.promised for slot in slots)
        open_ones = [slot for slot in slots if slot.room > 0]
        for waiter in group.waiters:
            assert not any(slot.number > waiter.since for slot in open_ones)
        hoping = connecting + sum(not each.settled for each in alive)
        assert group.hoped <= hoping * (self.wished - 1)
        if self.cap is None or count < self.cap:
            # Whoever waits, waits for room in connections being made or not settled.
            assert len(group.waiters) <= group.hoped
            assert all(waiter.ticket > group.lonely for waiter in group.waiters)

    async def run(self, steps: list[Any]) -> None:
        with trio.fail_after(100_000):
            async with trio.open_nursery() as tasks, trio.open_nursery() as self.nursery:
                self.pool = Pool(
                    self,
                    tasks,
                    size=self.size,
                    size_per_peer=self.size,
                    connections_per_peer=self.cap,
                )
                for step, settled in steps:
                    self.step(*step)
                    if settled:
                        await trio.testing.wait_all_tasks_blocked()
                        self.check()
                await trio.testing.wait_all_tasks_blocked()
                self.check()
                for asked in self.asked:
                    asked.scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert not self.pool.statistics().waiting
                for lease in self.held:
                    lease.release()
                self.pool.close_idle()
                await trio.testing.wait_all_tasks_blocked()
                assert not self.pool._groups
                assert not tasks.child_tasks


@given(STEPS, st.sampled_from([None, None, 1, 2, 4]), st.sampled_from([1, 2, 9]), st.integers(1, 4))
def test_whatever_happens_the_pool_keeps_its_promises(
    steps: list[Any], cap: int | None, size: int, wished: int
) -> None:
    clock = trio.testing.MockClock()
    logging.disable(logging.CRITICAL)  # of bugs that the steps plant
    try:
        trio.run(Model(cap, size, wished, clock).run, steps, clock=clock)
    finally:
        logging.disable(logging.NOTSET)


# -- connections that carry many exchanges at once -----------------------------------------------


@asynccontextmanager
async def open_model(
    wished: int, *, cap: int | None = None, http_version: tuple[int, int] = (2, 2)
) -> AsyncIterator[Model]:
    """Open a pool that no connect ends in by itself."""
    model = Model(cap, 9, wished, trio.testing.MockClock(), http_version=http_version)
    with trio.fail_after(100_000):
        async with trio.open_nursery() as tasks, trio.open_nursery() as model.nursery:
            model.pool = Pool(model, tasks, connections_per_peer=cap)
            yield model
            tasks.cancel_scope.cancel()
            model.nursery.cancel_scope.cancel()


async def _ask(model: Model, number: int, *, fresh: bool = False) -> None:
    for _ in range(number):
        model.step("ask", 0, fresh)
    await trio.testing.wait_all_tasks_blocked()
    model.check()


async def _step(model: Model, name: str, value: int | None = None) -> None:
    model.step(name, 0, value)
    await trio.testing.wait_all_tasks_blocked()
    model.check()


def _loads(model: Model) -> list[int]:
    return [connection.busy for _, connection in model.made]


def _dead(model: Model) -> list[bool]:
    return [connection.dead for _, connection in model.made]


async def test_many_requests_at_once_make_one_shared_connection() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 100)
        assert len(model.connecting) == 1
        await _step(model, "made", 100)
        assert _loads(model) == [100]
        await _ask(model, 1)
        assert len(model.connecting) == 1
        numbers = model.pool.statistics()
        assert (numbers.connects, numbers.reuses, numbers.connections) == (1, 99, 1)


async def test_more_requests_at_once_than_one_connection_carries_make_several() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 250)
        assert len(model.connecting) == 3


@pytest.mark.parametrize("http_version", [(1, 1), (2, 1)], ids=["h1", "h2 needs TLS"])
async def test_requests_to_a_peer_of_http1_wait_for_nobodys_connect(
    http_version: tuple[int, int],
) -> None:
    async with open_model(wished=100, http_version=http_version) as model:
        await _ask(model, 5)
        assert len(model.connecting) == 5


async def test_those_who_waited_for_http2_and_see_http1_connect_at_once_and_that_is_kept() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 5)
        await _step(model, "made", None)
        assert len(model.connecting) == 4
        await _ask(model, 3)  # nobody waits in vain again
        assert len(model.connecting) == 7
        await _step(model, "made", 100)  # it speaks HTTP/2 after all, and has room for all
        await _ask(model, 2)
        assert _loads(model) == [1, 3]


async def test_an_origin_that_allows_less_gets_as_many_connections_as_that_takes_at_once() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 20)
        await _step(model, "made", 5)
        assert _loads(model) == [5]
        assert len(model.connecting) == 3


async def test_those_who_wait_do_so_until_the_origin_has_said_how_many_it_allows() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 20)
        await _step(model, "made", -1)
        assert _loads(model) == [1]
        assert not model.connecting
        await _step(model, "allow", 5)
        assert _loads(model) == [5]
        assert len(model.connecting) == 3


async def test_a_connection_that_is_not_settled_says_nothing_of_the_room_of_others() -> None:
    async with open_model(wished=3) as model:
        await _ask(model, 2)
        await _step(model, "made", -3)
        await _ask(model, 4)  # one more waits for that connection, three for another
        assert len(model.connecting) == 1


async def test_a_connection_that_ends_before_it_is_settled_is_a_connect_that_failed() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 5)
        await _step(model, "made", -1)
        await _step(model, "kill")
        assert len(model.connecting) == 4


async def test_those_whose_connect_failed_connect_by_themselves_at_once() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 5)
        await _step(model, "fail")
        assert len(model.connecting) == 4
        await _ask(model, 1)
        assert len(model.connecting) == 4


async def test_a_cancelled_connect_is_taken_over_by_one_who_waited() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 5)
        await _step(model, "cancel")
        assert len(model.connecting) == 1
        await _step(model, "made", 100)
        assert _loads(model) == [4]


async def test_who_waits_too_long_for_anothers_connect_makes_its_own(
    autojump_clock: object,
) -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 3)
        await trio.sleep(6)
        assert len(model.connecting) == 3
        assert model.pool.statistics().wait_timeouts == 0


async def test_who_may_not_connect_at_last_gives_up(autojump_clock: object) -> None:
    async with open_model(wished=100, cap=1) as model:
        await _ask(model, 3)
        await trio.sleep(6)
        assert len(model.connecting) == 1
        assert model.pool.statistics().wait_timeouts == 2


async def test_h2_28_those_who_lost_a_connection_share_a_new_one() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 1)
        await _step(model, "made", 100)
        await _ask(model, 5, fresh=True)
        assert len(model.connecting) == 1
        await _step(model, "made", 100)
        assert _loads(model) == [1, 5]


async def test_who_waits_gets_the_room_that_an_origin_adds() -> None:
    async with open_model(wished=100, cap=1) as model:
        await _ask(model, 5)
        await _step(model, "made", 2)
        assert _loads(model) == [2]
        await _step(model, "allow", 4)
        assert _loads(model) == [4]
        await _step(model, "release")
        assert _loads(model) == [4]
        assert model.pool.statistics().waiting == 0


async def test_h2_22_a_connection_that_goes_away_gets_no_more_and_ends_with_its_last_exchange() -> (
    None
):
    async with open_model(wished=100) as model:
        await _ask(model, 2)
        await _step(model, "made", 100)
        await _step(model, "go away")
        await _ask(model, 1)
        assert len(model.connecting) == 1
        await _step(model, "release")
        assert _loads(model) == [1]
        assert _dead(model)[0] is False
        await _step(model, "release")
        assert _dead(model)[0] is True
        assert model.pool.statistics().closed_idle == 0


async def test_h2_22_an_idle_connection_that_goes_away_is_closed() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 1)
        await _step(model, "made", 100)
        await _step(model, "release")
        assert _dead(model) == [False]
        await _step(model, "go away")
        assert _dead(model) == [True]
        assert model.pool.statistics().closed_idle == 1


async def test_a_shared_connection_without_exchanges_is_idle_and_used_again() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 2)
        await _step(model, "made", 100)
        connection = model.made[0][1]
        await _step(model, "release")
        assert connection.armed == []
        await _step(model, "release")
        assert connection.armed == [55.0]
        assert model.pool.statistics().idle == 1
        await _ask(model, 1)
        assert _loads(model) == [1]


async def test_one_that_is_draining_keeps_nothing_idle_and_cuts_nothing() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 2)
        await _step(model, "made", 100)
        await _ask(model, 1, fresh=True)
        await _step(model, "made", 100)
        model.step("release", 2, None)
        model.pool.drain()
        await trio.testing.wait_all_tasks_blocked()
        assert _dead(model) == [False, True]
        await _step(model, "release")
        assert _dead(model)[0] is False
        await _step(model, "release")
        assert _dead(model)[0] is True


async def test_a_shared_connection_that_is_stale_costs_those_on_it_nothing() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 2)
        await _step(model, "made", 100)
        await _step(model, "stale")
        await _ask(model, 1)
        assert len(model.connecting) == 1
        assert _loads(model) == [2]
        assert _dead(model)[0] is False


async def test_a_connection_that_is_dead_when_it_is_made_leaves_no_lease() -> None:
    class Dead(Connector):
        async def connect(self, peer: HttpPeer) -> UpstreamConnection:
            await trio.lowlevel.checkpoint()
            connection = FakeConnection(100)
            connection.close()
            return connection

    async with trio.open_nursery() as nursery:
        pool = Pool(Dead(), nursery)
        with pytest.raises(ProxyError, match="ConnectionClosed"):
            await pool.lease(PEER)
    assert pool.statistics().leased == 0
    assert pool.statistics().connections == 0
    assert not pool._groups


async def test_h2_25_a_peer_that_asked_for_http1_gets_http1() -> None:
    peer = HttpPeer("origin.example", 443, scheme="https", options=PeerOptions(http_version=(2, 1)))
    only = HttpPeer("only.example", 80, options=PeerOptions(http_version=(2, 2)))
    async with open_pool() as (pool, wires):
        await _use(pool, wires, peer)
        (await pool.lease(peer, http1=True)).release()
        await pool.lease(only, http1=True)
        pool.remember_http1(peer)
        pool.remember_http1(only)
        (await pool.lease(peer)).release()
        (await pool.lease(only)).release()
        assert wires.peers == [peer, peer.http1(), only, peer.http1(), only]


async def test_what_is_remembered_of_peers_is_bounded() -> None:
    async with open_pool() as (pool, wires):
        options = PeerOptions(http_version=(2, 2), max_h2_streams=2)
        for number in range(1100):
            peer = HttpPeer(f"{number}.example", 80, options=options)
            pool.remember_http1(peer)
            (await pool.lease(peer)).release()
        assert len(wires.peers) == 1100
        assert len(pool._http1_only) == len(pool._rooms) == 1024


async def test_a_cancelled_wait_hands_on_its_right_to_connect() -> None:
    async with open_model(wished=3, cap=1) as model:
        await _ask(model, 1)
        await _step(model, "made", 3)
        await _ask(model, 2, fresh=True)
        model.step("cancel", 0, None)  # the first waiter is to run with that,
        model.step("release", 0, None)  # and gets the place of the old connection before it does
        await trio.testing.wait_all_tasks_blocked()
        model.check()
        assert len(model.connecting) == 1


async def test_the_room_that_a_cancelled_waiter_hoped_for_is_there_for_the_next() -> None:
    async with open_model(wished=3) as model:
        await _ask(model, 3)
        model.step("cancel", 2, None)
        await trio.testing.wait_all_tasks_blocked()
        await _ask(model, 1)
        assert len(model.connecting) == 1


async def test_room_that_goes_before_a_waiter_has_run_costs_the_connection_nothing() -> None:
    async with open_model(wished=9, cap=1) as model:
        await _ask(model, 3)
        await _step(model, "made", 2)
        model.step("release", 0, None)
        model.step("allow", 0, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert _loads(model) == [1]
        assert model.pool.statistics().waiting == 1
        await _step(model, "allow", 2)
        assert _loads(model) == [2]


async def test_a_connection_that_goes_away_says_nothing_of_the_room_of_others() -> None:
    async with open_model(wished=100) as model:
        await _ask(model, 2)
        await _step(model, "made", 100)
        await _step(model, "go away")
        await _ask(model, 50)
        assert len(model.connecting) == 1


async def test_a_connection_that_crashes_without_a_word_is_not_idle_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_model(wished=2) as model:
        await _ask(model, 1)
        await _step(model, "made", 2)
        await _step(model, "release")
        connection = model.made[0][1]
        connection.on_idle_end = lambda _: None
        await _step(model, "crash")
        assert model.pool.statistics().closed_idle == 1
    (record,) = caplog.records
    assert "failed" in record.getMessage()


async def test_a_connection_that_starts_no_exchange_is_closed() -> None:
    async with open_model(wished=2) as model:
        await _ask(model, 2)
        model.refusing = True
        await _step(model, "made", 2)
        assert _dead(model) == [True]
        assert len(model.connecting) == 1


# -- connections that announce a client --------------------------------------------------------------


def _client() -> ConnectionInfo:
    return ConnectionInfo("192.0.2.1:80", "198.51.100.1:50000")


async def test_a_connection_that_announces_a_client_is_for_that_client_connection_alone() -> None:
    async with open_pool() as (pool, wires):
        one, two = PEER.announcing(_client(), 2), PEER.announcing(_client(), 2)
        await _use(pool, wires, one)
        await _use(pool, wires, two)
        await _use(pool, wires, PEER)
        assert _counts(pool) == (3, 0, 3, 0, 0)
        await _use(pool, wires, one)
        assert _counts(pool) == (3, 0, 3, 1, 0)


async def test_an_idle_connection_is_closed_when_the_client_that_it_announces_leaves() -> None:
    async with open_pool() as (pool, wires):
        client = _client()
        await _use(pool, wires, PEER.announcing(client, 2))
        await _use(pool, wires, PEER)
        client.life.end()
        assert _counts(pool)[0] == 1
        assert await _is_closed(wires.far[0])
        assert not await _is_closed(wires.far[1])


async def test_a_leased_connection_is_closed_when_the_exchange_of_a_client_that_left_is_over() -> (
    None
):
    async with open_pool() as (pool, wires):
        client = _client()
        async with await pool.lease(PEER.announcing(client, 2)) as stream:
            client.life.end()
            await _exchange(stream, wires.far[0])  # the client's cache may want the rest
        assert pool.statistics().idle == 0
        assert await _is_closed(wires.far[0])


async def test_a_client_that_has_left_before_gets_a_connection_that_is_not_kept() -> None:
    async with open_pool() as (pool, wires):
        client = _client()
        client.life.end()
        await _use(pool, wires, PEER.announcing(client, 2))
        assert pool.statistics().idle == 0
        assert await _is_closed(wires.far[0])


async def test_a_client_connection_forgets_the_connections_that_have_ended() -> None:
    async with open_pool() as (pool, wires):
        client = _client()
        for index in range(3):
            await _use(pool, wires, PEER.announcing(client, 2))
            await wires.far[index].aclose()
            await trio.testing.wait_all_tasks_blocked()
        assert not client.life._held
        assert pool._groups == {}


async def test_what_is_learned_of_a_peer_holds_for_whichever_client_it_is_told_of() -> None:
    peer = attrs.evolve(PEER, options=PeerOptions(http_version=(2, 1), max_h2_streams=5))
    peer = attrs.evolve(peer, scheme="https", host="a.test")
    async with open_pool() as (pool, wires):
        pool.remember_http1(peer.announcing(_client(), 2))
        assert len(pool._http1_only) == 1
        async with await pool.lease(peer.announcing(_client(), 2)):
            assert wires.peers[0].http_version == (1, 1)
            assert wires.peers[0].announce is not None
        async with await pool.lease(peer):
            assert wires.peers[1].http_version == (1, 1)
