from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from trioproxy import ErrorSource, ErrorType, HttpPeer, PeerOptions, ProxyError, RequestHeader
from trioproxy._info import ConnectionInfo
from trioproxy._messages import END, ResponseEvent
from trioproxy.codec._h1 import HeadLimits, ResponseReader
from trioproxy.streams._abc import UpstreamStream
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
