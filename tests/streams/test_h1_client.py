"""An HTTP/1 connection to an origin between its exchanges."""

from __future__ import annotations

import trio
import trio.testing

from trioproxy import RequestHeader
from trioproxy._info import ConnectionInfo
from trioproxy._messages import END
from trioproxy.codec._h1 import HeadLimits, ResponseReader
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.transport._byte_stream import StreamAdapter

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"


async def test_a_connection_with_a_response_that_nobody_took_is_never_used_again() -> None:
    near, far = trio.testing.memory_stream_pair()
    info = ConnectionInfo(None, None)
    connection = H1ClientConnection(StreamAdapter(near), info, ResponseReader(HeadLimits()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        exchange = connection.start()
        await exchange.send(RequestHeader("GET", "/", {"Host": "h"}), END)
        await far.send_all(OK)
        await trio.testing.wait_all_tasks_blocked()
        connection.release()
        assert connection.dead


async def test_bytes_behind_a_response_cost_the_connection_and_are_not_taken_in() -> None:
    near, far = trio.testing.lockstep_stream_pair()
    info = ConnectionInfo(None, None)
    connection = H1ClientConnection(StreamAdapter(near), info, ResponseReader(HeadLimits()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        exchange = connection.start()
        with trio.CancelScope() as flood:
            async with trio.open_nursery() as origin:
                origin.start_soon(exchange.send, RequestHeader("GET", "/", {"Host": "h"}), END)
                await far.receive_some(65536)
                origin.start_soon(far.send_all, OK + bytes(10_000_000))
                await trio.testing.wait_all_tasks_blocked()
                assert connection.reader.leftover <= 65536
                assert len(await exchange.receive_batch()) == 2
                connection.release()
                assert connection.dead
                flood.cancel()
