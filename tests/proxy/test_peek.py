"""Looking at a request's body before a peer is chosen: the bytes travel as if nobody had looked."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import ProxyError, RequestHeader
from trioproxy._messages import END, Data, RequestEvent
from trioproxy.proxy._body import RETRY_BUFFER, RequestBody
from trioproxy.testing import memory_exchange

HEAD = RequestHeader("POST", b"/", {"Host": "h"})


async def body_of(*pieces: bytes) -> RequestBody:
    """Return the body of a request whose pieces wait one batch each."""
    up, down = memory_exchange()
    await up.send(HEAD)
    await down.receive_batch()
    batches: list[list[RequestEvent]] = [[Data(piece)] for piece in pieces]
    batches.append([END])

    async def receive() -> list[RequestEvent]:
        await trio.lowlevel.checkpoint()
        return batches.pop(0)

    down.receive_batch = receive  # type: ignore[method-assign]
    return RequestBody(down, True, [])


async def contents(body: RequestBody) -> bytes:
    """Return what an attempt sends of a body."""
    body.start_attempt()
    found = b""
    while True:
        for event in await body.next_batch():
            if isinstance(event, Data):
                found += event.data
                if event.end:
                    return found
            elif event is END:
                return found


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=5), st.integers(0, 30))
def test_peeking_changes_nothing_for_the_attempt(pieces: list[bytes], limit: int) -> None:
    async def main() -> None:
        body = await body_of(*pieces)
        whole = b"".join(pieces)
        data, complete = await body.peek(limit)
        assert data == whole[:limit]
        assert complete == (len(whole) <= limit)
        assert body.bytes_read == 0
        assert await body.peek(limit) == (data, complete)
        assert await contents(body) == whole

    trio.run(main)


async def test_a_second_attempt_and_its_peek_see_the_whole_body_again() -> None:
    body = await body_of(b"one", b"two")
    assert await body.peek(100) == (b"onetwo", True)
    assert await contents(body) == b"onetwo"
    assert await body.peek(4) == (b"onet", False)
    assert await contents(body) == b"onetwo"


async def test_what_a_filter_read_itself_is_peeked_at_too() -> None:
    body = await body_of(b"one", b"two")
    assert await body.read() == b"one"
    assert await body.peek(100) == (b"onetwo", True)
    assert await contents(body) == b"onetwo"


async def test_a_cancelled_peek_loses_nothing() -> None:
    body = await body_of(b"one", b"two")
    with trio.CancelScope() as scope:
        scope.cancel()
        await body.peek(100)
    assert scope.cancelled_caught
    assert await contents(body) == b"onetwo"


async def test_a_body_that_cannot_be_sent_again_has_no_start_to_peek_at() -> None:
    body = await body_of(bytes(RETRY_BUFFER), b"x", b"y")
    assert await body.read() == bytes(RETRY_BUFFER)
    assert await body.read() == b"x"
    with pytest.raises(ProxyError, match="before it was peeked at"):
        await body.peek(10)


@pytest.mark.parametrize("peeks", [True, False], ids=["peeked", "read"])
async def test_a_body_in_tiny_pieces_is_kept_in_little_more_than_its_own_size(peeks: bool) -> None:
    pieces = [b"%02d" % (number % 100) for number in range(RETRY_BUFFER // 2)]
    body = await body_of(*pieces)
    gc.collect()
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        if peeks:
            await body.peek(RETRY_BUFFER - 2)
        else:
            for _ in pieces:
                await body.read()
        taken = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    assert taken < 2 * RETRY_BUFFER
    body.start_attempt()
    assert await contents(body) == b"".join(pieces)
