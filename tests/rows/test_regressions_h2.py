"""Bugs of HTTP/2 that attacks on the running proxy brought to light, one test for each."""

from __future__ import annotations

import itertools
import logging

import pytest
import trio
from hyperframe.frame import Frame, PingFrame
from trio.testing import MockClock

from tests._support.h2_rows import get, h2_gateway, never, response
from tests._support.h2_wire import ENHANCE_YOUR_CALM, INITIAL_WINDOW_SIZE, request
from tests._support.matrix import H2C, Exchange
from trioproxy.streams import _h2


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trioproxy")


async def test_a_read_full_of_small_frames_lets_others_have_their_turn(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        connection = gateway.latest()
        refused = request(fields=[("expect", "the impossible")])
        frames: list[Frame] = []
        for n in range(200):
            frames += wire.head_frames(2 * n + 1, refused, end=True)
        seen = [connection.codec.last_stream_id]
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    while True:
                        seen.append(connection.codec.last_stream_id)
                        await trio.lowlevel.checkpoint()

                nursery.start_soon(watch)
                await wire.send(*frames)
                while connection.codec.last_stream_id < 399:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        taken = [(later - before) // 2 for before, later in itertools.pairwise(seen)]
        # The one that watches may be the last in one round and the first in the next.
        assert 1 <= max(taken) <= _h2.FRAMES_AT_ONCE + _h2.FRAMES_IN_TROUBLE
        # From the second turn on: refusals are trouble.
        assert sorted(taken)[-2] <= 2 * _h2.FRAMES_IN_TROUBLE
        assert await response(wire, 399) == ("417", b"this expectation cannot be met\n")


async def test_what_is_wrong_behind_many_frames_waits_until_they_were_gone_through(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway() as gateway:
        wire = await gateway.frames()
        heads: list[Frame] = []
        for n in range(40):
            heads += wire.head_frames(2 * n + 1, request("GET", "/neighbour"), end=True)
        raw = b"".join(frame.serialize() for frame in heads)
        await wire.send_raw(
            raw + PingFrame(0, b"8 bytes.").serialize().replace(b"\x00" * 4, b"\0\0\0\1", 1)
        )
        gone = await wire.goaway()
        assert gone.last_stream_id == 79


async def test_h2_07_refusals_that_nobody_reads_end_the_connection(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_h2, "MOST_UNSENT", 10_000)
    async with h2_gateway(never) as gateway:
        wire = await gateway.frames()
        connection = gateway.latest()

        async def nobody_reads(*_: object) -> None:
            await trio.sleep_forever()

        connection.transport.send_parts = nobody_reads
        refused = request(fields=[("expect", "the impossible")])
        frames: list[Frame] = []
        for n in range(300):
            frames += wire.head_frames(2 * n + 1, refused, end=True)
        await wire.send(*frames)
        await trio.sleep(1)  # nothing else has anything to do
        assert connection.codec.failure.code == ENHANCE_YOUR_CALM
        assert connection.codec.last_stream_id < 599
        assert connection.buffered < 20_000
        assert gateway.limits_hit() == {"h2_max_unsent_bytes": 1}


async def large(exchange: Exchange) -> None:
    """Answer neighbours shortly, and everybody else with more than a stream's window holds."""
    head = await exchange.head()
    body = b"hello" if b"/neighbour" in head.start else b"x" * 200_000
    await exchange.respond(200, [("content-length", str(len(body)))], body)


async def test_h2_17_readers_that_stop_leave_room_to_others_on_the_origins_connection(
    autojump_clock: MockClock,
) -> None:
    async with h2_gateway(large, up=H2C) as gateway:
        wire = await gateway.frames(start=False)
        await wire.start({INITIAL_WINDOW_SIZE: 0})
        for n in range(40):
            await get(wire, 2 * n + 1, "/large")
        await wire.ping()
        await trio.sleep(10)  # all that the windows let through is under way
        assert gateway.matrix.running.statistics().sessions == 40
        assert gateway.matrix.running.statistics().pool.connections == 1
        with trio.fail_after(5):
            await gateway.neighbour_is_served()
        wire.close()
        await gateway.matrix.sessions_ended()
