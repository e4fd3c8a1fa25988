"""Bytes in the shape of an exchange: what a CONNECT tunnel leads to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests._support.wire import WireEnd, wires
from trioproxy import ErrorSource, ErrorType, ProxyError, RequestHeader, ResponseHeader
from trioproxy._info import ConnectionInfo
from trioproxy._messages import END, Data
from trioproxy.streams._raw import RawConnection, RawUpstreamStream

HEAD = RequestHeader("CONNECT", b"a.test:443", {"Host": "a.test:443"})


class End(WireEnd):
    aborted = False

    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        await super().send_parts(parts, timeout)

    def abort(self) -> None:
        self.aborted = True
        self.close_now()


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[RawConnection, RawUpstreamStream, End, WireEnd]]:
    """Open a tunnel; its task must end by itself."""
    near, far = wires()
    ours = End()
    ours.other, far.other = far, ours
    connection = RawConnection(ours, ConnectionInfo("a.test:443", None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        stream = connection.start()
        await stream.send(HEAD, END)
        yield connection, stream, ours, far
        stream.release()
    assert ours.closed
    near.close_now()


async def test_it_begins_with_a_200(autojump_clock: object) -> None:
    async with opened() as (connection, stream, _, far):
        assert (connection.room, connection.busy, connection.shared) == (0, 1, False)
        (head,) = await stream.receive_batch()
        assert isinstance(head, ResponseHeader)
        assert (head.status, head.reason) == (200, b"Connection established")
        assert not stream.anything_sent
        assert not far.unread  # nobody was sent the head
        assert stream.fileno() == -1


async def test_bytes_flow_and_both_ends_are_half_closes(autojump_clock: object) -> None:
    async with opened() as (connection, stream, ours, far):
        await stream.receive_batch()
        await stream.send(Data(b"one"), Data(b"two", True))
        assert stream.anything_sent
        assert bytes(far.unread) == b"onetwo"
        assert far.ended
        await far.send_parts([b"three"], 1)
        assert await stream.receive_batch() == [Data(b"three")]
        await far.send_eof()
        assert await stream.receive_batch() == [END]
        stream.release()
        assert not ours.aborted
        assert (connection.room, connection.busy, connection.dead) == (0, 0, True)
        assert "dead" in repr(connection)


async def test_one_that_has_not_ended_on_both_sides_is_reset(autojump_clock: object) -> None:
    async with opened() as (_, stream, ours, _far):
        await stream.receive_batch()
        await stream.send(END)
        stream.release()
        stream.release()
        assert ours.aborted


async def test_one_whose_tunnel_was_never_opened_just_ends(autojump_clock: object) -> None:
    async with opened() as (_, stream, ours, _far):
        stream.release()
        assert ours.closed
        assert not ours.aborted


async def test_behind_its_end_a_receive_waits_until_the_connection_is_closed(
    autojump_clock: object,
) -> None:
    async with opened() as (connection, stream, _, far):
        await stream.receive_batch()
        far.close_now()
        assert await stream.receive_batch() == [END]
        with trio.move_on_after(100) as scope:
            await stream.receive_batch()
        assert scope.cancelled_caught
        connection.close()
        with pytest.raises(ProxyError) as caught:
            await stream.receive_batch()
        assert caught.value.etype == ErrorType.ConnectionClosed
        assert caught.value.esource is ErrorSource.UPSTREAM
        with pytest.raises(ProxyError) as caught:
            await stream.send(Data(b"late"))
        assert caught.value.esource is ErrorSource.UPSTREAM


async def test_waiting_and_writing_have_their_times(autojump_clock: object) -> None:
    async with opened() as (_, stream, ours, _far):
        await stream.receive_batch()
        stream.read_timeout = 5
        with pytest.raises(ProxyError) as caught:
            await stream.receive_batch()
        assert caught.value.etype == ErrorType.ReadTimedout
        assert trio.current_time() == 5
        ours.room = 0
        stream.write_timeout = 7
        with pytest.raises(ProxyError) as caught:
            await stream.send(Data(b"x"))
        assert caught.value.etype == ErrorType.WriteTimedout
        assert caught.value.esource is ErrorSource.UPSTREAM
        assert stream.write_pending_time == 7


@pytest.mark.parametrize("early", [True, False])
async def test_events_out_of_order_are_refused(early: bool, autojump_clock: object) -> None:
    async with opened() as (_, stream, _ours, far):
        if early:
            events = [Data(b"x")]
        else:
            await stream.receive_batch()
            await stream.send(END)
            events = [Data(b"x")]
        with pytest.raises(ProxyError) as caught:
            await stream.send(*events)
        assert caught.value.etype == ErrorType.InternalError
        assert not far.unread


async def test_a_connection_serves_one_exchange_and_is_never_idle(autojump_clock: object) -> None:
    async with opened() as (connection, stream, _, _far):
        with pytest.raises(ProxyError):
            connection.start()
        assert not connection.usable()
        stream.release()
        with pytest.raises(ProxyError):
            connection.start()
    async with trio.open_nursery() as nursery:
        near, _ = wires()
        connection = RawConnection(near, ConnectionInfo(None, None))
        assert (connection.room, connection.busy) == (1, 0)
        assert "idle" in repr(connection)
        nursery.start_soon(connection.run)
        await trio.testing.wait_all_tasks_blocked()
        connection.arm_idle(55)
        assert near.closed
