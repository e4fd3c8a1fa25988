"""HTTP/2 by chance: whatever frames come in whatever order, nothing but their own stream suffers."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_rows import h2_gateway
from tests._support.h2_wire import H2Wire, extension, request
from tests._support.matrix import H1, H2C, Exchange, Frames, Pairing, open_matrix
from tests._support.recording import CutError, Recorder

SIZES = (0, 1, 100, 16384)
VALUES = ("", "1", " x", "a\nb", "y" * 5000)
NAMES = (
    "x",
    "X",
    ":path",
    ":method",
    "content-length",
    "connection",
    "te",
    "cookie",
    "host",
    "priority",
)


class Script:
    """Sends frames that a seed chooses: mostly sensible ones, so that they get somewhere."""

    def __init__(self, wire: H2Wire, seed: int) -> None:
        self.wire = wire
        self.random = random.Random(seed)
        self.next = 1
        #: What is encoded: only sent whole, for the table is shared.
        self.open = False

    def stream(self) -> int:
        """Return the number of a stream, most often one that is there."""
        chance = self.random
        if chance.random() < 0.05:
            return chance.choice((0, 2, self.next + 10, 2**31 - 1))
        return chance.randrange(1, max(self.next, 2), 2)

    def flags(self, *names: str) -> list[str]:
        return [name for name in names if self.random.random() < 0.4]

    def fields(self) -> list[tuple[str, str]]:
        chance = self.random
        count = chance.choice((0, 0, 0, 1, 2))
        return [(chance.choice(NAMES), chance.choice(VALUES)) for _ in range(count)]

    async def head(self) -> None:
        """Send what opens a stream, or looks so."""
        chance = self.random
        stream = self.next
        self.next += 2
        method = chance.choice(("GET", "POST", "HEAD", "OPTIONS", "CONNECT", "PUT"))
        path = chance.choice(("/a", "/b", "*", ""))
        if chance.random() < 0.9:
            method, path = chance.choice(("GET", "POST")), "/a"
        fields = request(method, path, self.fields())
        await self.wire.headers(
            stream,
            fields,
            end=chance.random() < 0.5,
            size=chance.choice((None, 10, 1000)),
        )

    async def block(self) -> None:
        """Send trailers, or a response's head where we are the server."""
        await self.wire.headers(
            self.stream() or 1, self.fields() or [("x-t", "1")], end=self.random.random() < 0.8
        )

    async def data(self) -> None:
        chance = self.random
        body = b"d" * chance.choice(SIZES[:3])
        padding = chance.choice((0, 0, 0, 7, 200))
        frame = DataFrame(self.stream() or 1, body, flags=self.flags("END_STREAM"))
        if padding:
            frame.pad_length = padding
            frame.flags.add("PADDED")
        await self.wire.send(frame)

    async def control(self) -> None:
        chance = self.random
        stream = self.stream()
        frames: list[Callable[[], Frame]] = [
            lambda: PingFrame(0, b"12345678", flags=self.flags("ACK")),
            lambda: SettingsFrame(
                0,
                settings={
                    chance.choice((1, 3, 4, 6, 8, 99)): chance.choice((0, 1, 100, 65535, 100000))
                },
            ),
            lambda: SettingsFrame(0, flags=["ACK"]),
            lambda: WindowUpdateFrame(
                stream, window_increment=chance.choice((1, 1000, 65535, 2**30))
            ),
            lambda: WindowUpdateFrame(0, window_increment=chance.choice((1, 1000, 65535, 2**30))),
            lambda: RstStreamFrame(stream or 1, chance.choice((0, 1, 7, 8, 11, 13, 99))),
            lambda: RstStreamFrame(stream or 1, 8),
            lambda: PriorityFrame(stream or 1, depends_on=chance.choice((0, stream, 5))),
            lambda: extension(0x10, 0, (stream or 1).to_bytes(4, "big") + b"u=1, i"),
            lambda: extension(0x10, 0, b"\0\0\0\1u=x;;"),
            lambda: extension(0xFA, stream, b"?"),
        ]
        await self.wire.send(chance.choice(frames)())

    async def hostile(self) -> None:
        """Send what most often ends the connection."""
        chance = self.random
        stream = self.stream() or 1
        frames: list[Frame] = [
            GoAwayFrame(0, last_stream_id=chance.choice((0, 1, 2**31 - 1)), error_code=0),
            ContinuationFrame(stream, b"\x82"),
            HeadersFrame(stream, b"\x82"),
            HeadersFrame(stream, b"\xff\xff\xff", flags=["END_HEADERS"]),
            PushPromiseFrame(stream, 2, b"\x82", flags=["END_HEADERS"]),
            DataFrame(stream, bytes(16384)),
        ]
        if chance.random() < 0.3:
            await self.wire.send_raw(bytes(chance.randrange(256) for _ in range(30)))
        else:
            await self.wire.send(chance.choice(frames))

    async def pause(self) -> None:
        chance = self.random
        if chance.random() < 0.9:
            await wait_all_tasks_blocked()
        else:
            await trio.sleep(chance.choice((1, 20)))

    async def steps(self, count: int, *kinds: Callable[[], Awaitable[None]]) -> None:
        """Take so many steps of these kinds, or as many as the other side lets us."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for _ in range(count):
                await self.random.choice(kinds)()


class NoTraceback(logging.Handler):
    """Collects what was logged with a traceback: a mistake of ours."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


@contextlib.contextmanager
def no_traceback() -> Any:
    """Check that nothing was logged with a traceback."""
    handler = NoTraceback()
    logger = logging.getLogger("trioproxy")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert handler.found == []


def virtual(function: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Run an async function on a clock of its own."""
    trio.run(function, *args, clock=MockClock(autojump_threshold=0))


async def read_all(wire: H2Wire) -> None:
    """Read strictly, until the connection ends."""
    await wire.at_end()


def check_callbacks(recorder: Recorder) -> None:
    """Check that each request that began has ended, once."""
    assert len(recorder.of("new_ctx")) == len(recorder.of("logging"))
    for name in ("request_body_filter", "response_body_filter"):
        ended: set[int] = set()
        for call in recorder.of(name):
            assert call.ctx.number not in ended or name == "request_body_filter"
            if call.args["end_of_stream"]:
                ended.add(call.ctx.number)


async def client_by_chance(seed: int, steps: int, up: Any) -> None:
    async def origin(exchange: Exchange) -> None:
        head = await exchange.head()
        if b"/neighbour" in head.start:
            await exchange.respond(200, [("content-length", "5")], b"hello")
            return
        if b"/b" in head.start:
            await exchange.respond(413, [("content-length", "0")])
            return
        try:
            await exchange.message()
        except CutError:
            return
        await exchange.send_head(200)
        await exchange.send_data(b"x" * 3000)
        await exchange.send_data(b"y" * 70000, end=True)

    recorder = Recorder()
    with no_traceback():
        async with h2_gateway(origin, up=up, recorder=recorder, check_windows=False) as gateway:
            wire = await gateway.frames()
            script = Script(wire, seed)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_all, wire)
                await script.steps(
                    steps,
                    *[script.head] * 4,
                    *[script.data] * 4,
                    script.block,
                    *[script.control] * 3,
                    script.pause,
                    *([script.hostile] if seed % 3 == 0 else []),
                )
                await wait_all_tasks_blocked()
                wire.close()
            await gateway.matrix.sessions_ended()
            check_callbacks(recorder)


@given(seed=st.integers(0, 10**9), steps=st.integers(1, 60), up=st.sampled_from([H1, H2C]))
@settings(max_examples=settings().max_examples // 2, deadline=None)
def test_whatever_a_client_sends_nobody_else_suffers(seed: int, steps: int, up: Any) -> None:
    virtual(client_by_chance, seed, steps, up)


async def origin_by_chance(seed: int, steps: int, down: Any) -> None:
    async def play(wire: H2Wire) -> None:
        await wire.start()
        script = Script(wire, seed + wire.number)
        chance = script.random

        async def read() -> None:
            with contextlib.suppress(EOFError):
                while True:
                    frame = await wire.until(HeadersFrame)
                    script.next = max(script.next, frame.stream_id + 2)

        async def response_head() -> None:
            fields = [(":status", chance.choice(("200", "200", "200", "103", "204", "abc")))]
            await wire.headers(
                script.stream() or 1, fields + script.fields(), end=chance.random() < 0.3
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            await script.steps(
                steps,
                *[response_head] * 5,
                *[script.data] * 5,
                script.block,
                *[script.control] * 2,
                *[script.pause] * 2,
                *([script.hostile] if seed % 3 == 0 else []),
            )
            nursery.cancel_scope.cancel()

    recorder = Recorder()
    with no_traceback():
        async with open_matrix(
            recorder, Frames(play), Pairing(down, H2C), check_windows=False
        ) as gateway:

            async def one(number: int) -> None:
                with contextlib.suppress(CutError):
                    client = await gateway.connect()
                    exchange = await client.open("POST", f"/{number}")
                    await exchange.send_data(b"u" * 20000, end=True)
                    await exchange.message()

            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(one, number)
            await gateway.sessions_ended()
            check_callbacks(recorder)


@given(seed=st.integers(0, 10**9), steps=st.integers(1, 60), down=st.sampled_from([H1, H2C]))
@settings(max_examples=settings().max_examples // 2, deadline=None)
def test_whatever_an_origin_sends_every_request_ends(seed: int, steps: int, down: Any) -> None:
    virtual(origin_by_chance, seed, steps, down)


def test_the_check_for_tracebacks_would_see_one() -> None:
    def fail() -> None:
        with no_traceback():
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                logging.getLogger("trioproxy").exception("seen")

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        fail()
