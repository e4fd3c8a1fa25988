"""A client that has all of its content has got its response, whatever end is still to come."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import H1, H1_TLS, H2_TLS, H2C, Exchange, Leg, Pairing, open_matrix
from tests._support.recording import Recorder


@pytest.mark.parametrize("up", [H2C, H2_TLS], ids=str)
@pytest.mark.parametrize("down", [H1, H1_TLS], ids=str)
async def test_who_leaves_before_the_trailers_has_got_what_it_asked_for(
    down: Leg, up: Leg, autojump_clock: MockClock
) -> None:
    gone = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [("content-length", "5")])
        await exchange.send_data(b"hello")
        await gone.wait()
        await exchange.send_trailers([("x-sum", "1")])

    recorder = Recorder()
    async with open_matrix(recorder, origin, Pairing(down, up)) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        assert (await exchange.at_least(5)).body == b"hello"
        client.close()
        await wait_all_tasks_blocked()
        gone.set()
        await gateway.ended()

    assert recorder.shown()[-1] == "logging"
    assert recorder.the("logging").args["e"] is None
