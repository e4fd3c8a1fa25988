from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from trioproxy import ErrorSource, ErrorType, ProxyError
from trioproxy.transport._byte_stream import (
    MANY,
    SMALL,
    ByteStream,
    SocketStream,
    StreamAdapter,
)

BIG = 4 * 1024 * 1024  # more than any socket buffer takes at once


def _socket_pair() -> tuple[SocketStream, SocketStream]:
    one, other = socket.socketpair()
    return SocketStream(one), SocketStream(other)


def _memory_pair() -> tuple[StreamAdapter, StreamAdapter]:
    one, other = trio.testing.memory_stream_pair()
    return StreamAdapter(one), StreamAdapter(other)


@pytest.fixture(params=[pytest.param("socket", marks=pytest.mark.socket), "memory"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    one: ByteStream
    other: ByteStream
    one, other = _socket_pair() if request.param == "socket" else _memory_pair()
    with trio.fail_after(10):
        yield one, other
    one.close_now()
    other.close_now()


Pair = tuple[ByteStream, ByteStream]


async def _read_all(stream: ByteStream) -> bytes:
    data = bytearray()
    while chunk := await stream.receive_some():
        data += chunk
    return bytes(data)


@pytest.mark.parametrize(
    "parts",
    [
        [b"abc"],
        [b"a", b"", b"bc"],
        [b"a" * SMALL, b"b" * SMALL],
        [b"x"] * (2 * SMALL),
        [b"xy"] * (MANY + 1),
        [b"head", b"z" * BIG, b"tail"],
        [],
        [b""],
    ],
    ids=["one", "few", "large", "very many", "many", "huge", "none", "empty"],
)
async def test_all_parts_arrive_in_order(pair: Pair, parts: list[bytes]) -> None:
    one, other = pair

    async def send() -> None:
        await one.send_parts(parts, 5)
        await one.send_parts([b"!"], 5)
        one.close_now()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await _read_all(other) == b"".join(parts) + b"!"


async def test_receive_some_gives_no_more_than_it_is_asked_for(pair: Pair) -> None:
    one, other = pair
    await one.send_parts([b"abcdef"], 5)
    assert await other.receive_some(4) == b"abcd"
    assert await other.receive_some(4) == b"ef"


async def test_the_end_of_input_is_empty_and_stays(pair: Pair) -> None:
    one, other = pair
    await one.send_eof()
    assert await other.receive_some() == b""
    assert await other.receive_some() == b""
    await other.send_parts([b"still"], 5)
    assert await one.receive_some() == b"still"


async def test_close_now_wakes_a_parked_reader(pair: Pair) -> None:
    one, _ = pair

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await one.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        one.close_now()


async def test_a_closed_stream_refuses_everything_but_another_close(pair: Pair) -> None:
    one, _ = pair
    one.close_now()
    one.close_now()
    with pytest.raises(trio.ClosedResourceError):
        await one.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        one.receive_ready()
    with pytest.raises(trio.ClosedResourceError):
        await one.send_parts([b"a"], 5)
    with pytest.raises(trio.ClosedResourceError):
        await one.send_eof()
    assert one.fileno() == -1


async def test_the_other_side_sees_a_close_as_the_end(pair: Pair) -> None:
    one, other = pair
    one.close_now()
    assert await other.receive_some() == b""


async def test_writing_to_one_who_left_is_a_write_error_of_unset_source(pair: Pair) -> None:
    one, other = pair
    other.close_now()
    with pytest.raises(ProxyError) as caught:
        await one.send_parts([b"a"], 5)
    assert caught.value.etype == ErrorType.WriteError
    assert caught.value.esource is ErrorSource.UNSET
    assert caught.value.cause is not None


async def test_a_cancelled_receive_loses_nothing(pair: Pair) -> None:
    one, other = pair
    with trio.move_on_after(0):
        await other.receive_some()
    await one.send_parts([b"abc"], 5)
    with trio.CancelScope() as scope:
        scope.cancel()
        await other.receive_some()
    assert scope.cancelled_caught
    assert await other.receive_some() == b"abc"


@pytest.mark.socket
async def test_a_slow_reader_parks_the_writer() -> None:
    one, other = _socket_pair()
    done: list[bool] = []

    async def send() -> None:
        await one.send_parts([b"a" * BIG, b"b" * BIG], 5)
        done.append(True)
        one.close_now()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert not done
            assert await _read_all(other) == b"a" * BIG + b"b" * BIG
    assert done
    other.close_now()


@pytest.mark.socket
async def test_a_writer_without_progress_times_out_on_a_socket(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one, other = _socket_pair()
    with trio.fail_after(1000), pytest.raises(ProxyError, match="no progress in writing for 7 s"):
        await one.send_parts([b"a" * BIG], 7)
    assert trio.current_time() == pytest.approx(7)
    one.close_now()
    other.close_now()


async def test_a_writer_without_progress_times_out_in_memory(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one, _ = trio.testing.lockstep_stream_pair()
    stream = StreamAdapter(one)
    with trio.fail_after(1000), pytest.raises(ProxyError) as caught:
        await stream.send_parts([b"a"], 7)
    assert caught.value.etype == ErrorType.WriteTimedout
    assert trio.current_time() == pytest.approx(7)


@pytest.mark.socket
async def test_progress_restarts_the_write_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one, other = _socket_pair()
    received = 0

    async def read_slowly() -> None:
        nonlocal received
        while received < BIG:
            await trio.sleep(5)
            while (chunk := other.receive_ready()) is not None:
                received += len(chunk)

    with trio.fail_after(10000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_slowly)
            await one.send_parts([b"a" * BIG], 7)
    assert received == BIG
    assert trio.current_time() > 7
    one.close_now()
    other.close_now()


@pytest.mark.socket
async def test_close_now_wakes_a_parked_writer() -> None:
    one, other = _socket_pair()

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await one.send_parts([b"a" * BIG], 5)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            one.close_now()
    other.close_now()


@pytest.mark.socket
async def test_receive_ready_tells_bytes_silence_and_the_end_apart() -> None:
    one, other = _socket_pair()
    assert one.receive_ready() is None
    await other.send_parts([b"abc"], 5)
    assert one.receive_ready(2) == b"ab"
    assert one.receive_ready() == b"c"
    assert one.receive_ready() is None
    other.close_now()
    assert one.receive_ready() == b""
    one.close_now()


@pytest.mark.socket
async def test_a_reset_is_a_read_error_and_not_the_end() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    stream = SocketStream(accepted)
    assert stream.fileno() == accepted.fileno()
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with trio.fail_after(10), pytest.raises(ProxyError) as caught:
        await stream.receive_some()
    assert caught.value.etype == ErrorType.ReadError
    assert isinstance(caught.value.cause, ConnectionResetError)
    stream.close_now()


async def test_a_stapled_stream_is_closed_in_both_halves() -> None:
    one, other = trio.testing.memory_stream_pair()
    StreamAdapter(one).close_now()
    with pytest.raises(trio.ClosedResourceError):
        await one.send_stream.send_all(b"a")
    with pytest.raises(trio.ClosedResourceError):
        await one.receive_stream.receive_some()
    assert await other.receive_some() == b""


@pytest.mark.socket
async def test_trios_own_socket_and_tls_streams_are_closed_at_once() -> None:
    for wrap in (False, True):
        sock, other = trio.socket.socketpair()
        stream: trio.abc.Stream = trio.SocketStream(sock)
        if wrap:
            stream = trio.SSLStream(stream, ssl.create_default_context(), server_hostname="a")
        StreamAdapter(stream).close_now()
        with trio.fail_after(10):
            assert await other.recv(1) == b""
        assert sock.fileno() == -1
        other.close()
