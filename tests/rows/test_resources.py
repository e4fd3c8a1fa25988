"""Rows R-01 to R-03: the sizes of a head, a target and a body."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from tests._support.raw import (
    SOON,
    Origin,
    Outcome,
    Pause,
    Recorder,
    Step,
    assert_refused,
    raw_exchange,
    read_messages,
)
from trioproxy import ServerConf

KIB = 1024
LINE = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trioproxy")


def pieces(data: bytes) -> Iterator[list[bytes]]:
    """Cut large input at several places and sizes."""
    yield [data]
    for size in (1000, 16384, 65536):
        yield [data[i : i + size] for i in range(0, len(data), size)]
    for at in (1, 13, 15, len(data) // 2, len(data) - 1, len(data) - 3):
        yield [data[:at], data[at:]]


def padded(size: int, *, count: int = 10) -> bytes:
    """Return a head of exactly so many bytes."""
    fields = b"".join(b"X-%02d: %s\r\n" % (n, b"v" * (size // count - 100)) for n in range(count))
    rest = size - len(LINE) - len(fields) - len(b"Y: \r\n\r\n")
    head = LINE + fields + b"Y: " + b"w" * rest + b"\r\n\r\n"
    assert len(head) == size
    return head


def assert_taken(outcome: Outcome) -> None:
    assert [answer.status for answer in outcome.answers] == [200]
    assert len(outcome.requests) == 1


async def test_r_01_head_larger_than_64_kib(autojump_clock: MockClock) -> None:
    for steps in pieces(padded(64 * KIB)):
        assert_taken(await raw_exchange(b"", steps))
    for size in (64 * KIB + 1, 100 * KIB):
        for steps in pieces(padded(size)):
            assert_refused(await raw_exchange(b"", steps), 431, [len(step) for step in steps])


async def test_r_01_head_that_never_ends_is_refused_at_the_limit(autojump_clock: MockClock) -> None:
    endless: list[list[Step]] = [
        [LINE + b"X: ", *[b"v" * 1000] * 66, Pause(5)],
        [LINE, *[b"X: y\r\n" * 100] * 110, Pause(5)],
    ]
    for steps in endless:
        outcome = await raw_exchange(b"", steps)
        assert_refused(outcome, 431)
        assert outcome.seconds < 1


async def test_r_01_more_than_128_fields(autojump_clock: MockClock) -> None:
    def fields(count: int) -> bytes:
        return LINE + b"X: y\r\n" * (count - 1) + b"\r\n"

    for steps in pieces(fields(128)):
        assert_taken(await raw_exchange(b"", steps))
    for count in (129, 1000):
        for steps in pieces(fields(count)):
            assert_refused(await raw_exchange(b"", steps), 431, [len(step) for step in steps])


async def test_r_01_limits_are_options(autojump_clock: MockClock) -> None:
    conf = ServerConf(max_header_bytes=200, max_header_fields=3)
    assert_taken(await raw_exchange(LINE + b"\r\n", "bytes", conf=conf))
    for request in (LINE + b"X: y\r\n" * 3 + b"\r\n", LINE + b"X: " + b"y" * 200 + b"\r\n\r\n"):
        for cut in ("whole", "bytes"):
            assert_refused(await raw_exchange(request, cut, conf=conf), 431)


async def test_r_02_target_larger_than_16_kib(autojump_clock: MockClock) -> None:
    def target(size: int, rest: bytes = b" HTTP/1.1\r\nHost: a\r\n\r\n") -> bytes:
        return b"GET /" + b"t" * (size - 1) + rest

    for steps in pieces(target(16 * KIB)):
        assert_taken(await raw_exchange(b"", steps))
    for size in (16 * KIB + 1, 20 * KIB, 70 * KIB):
        for steps in pieces(target(size)):
            assert_refused(await raw_exchange(b"", steps), 414, [len(step) for step in steps])
    # One that never ends is refused without waiting for its end.
    for steps in pieces(target(17 * KIB, b"")):
        outcome = await raw_exchange(b"", [*steps, Pause(5)])
        assert_refused(outcome, 414)
        assert outcome.seconds < 1


async def test_r_02_absolute_targets_are_measured_as_they_came(autojump_clock: MockClock) -> None:
    request = b"GET http://b/" + b"t" * 16 * KIB + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    for steps in pieces(request):
        assert_refused(await raw_exchange(b"", steps), 414)


async def test_r_03_declared_body_beyond_the_limit(autojump_clock: MockClock) -> None:
    conf = ServerConf(max_body_bytes=10)

    def post(size: int) -> bytes:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        return head + b"x" * min(size, 100)

    for cut in ("whole", "bytes", "sevens"):
        assert_taken(await raw_exchange(post(10), cut, conf=conf))
        for size in (11, 10**9):
            assert_refused(await raw_exchange(post(size), cut, conf=conf), 413)
    assert_refused(await raw_exchange(post(1), conf=ServerConf(max_body_bytes=0)), 413)


@pytest.mark.parametrize("cut", ["whole", "bytes", "line ends", "sevens"])
async def test_r_03_body_of_unknown_length_beyond_the_limit(
    cut: str, autojump_clock: MockClock
) -> None:
    conf = ServerConf(max_body_bytes=10)
    fits = CHUNKED + b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"
    assert_taken(await raw_exchange(fits, cut, conf=conf))
    for body in (
        b"4\r\n0123\r\n7\r\n456789a\r\n0\r\n\r\n",
        b"20\r\n" + b"x" * 32 + b"\r\n0\r\n\r\n",
    ):
        outcome = await raw_exchange(CHUNKED + body, cut, conf=conf)
        if cut == "whole":
            assert_refused(outcome, 413)
            continue
        assert outcome.answer.status == 413
        assert outcome.answer.one(b"connection") == b"close"
        assert outcome.seconds < SOON
        assert True not in outcome.proxy.ends_in
        for data in outcome.origins:
            (message,) = read_messages(data)
            assert not message.complete
            assert len(message.body) <= 10


async def test_r_03_beyond_the_limit_behind_a_started_response_aborts_both(
    autojump_clock: MockClock,
) -> None:
    async def early(origin: Origin) -> None:
        await origin.head()
        await origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nbegun")
        await origin.to_end()

    proxy = Recorder()
    steps = [CHUNKED, b"5\r\n01234\r\n", b"6\r\n567890\r\n", b"0\r\n\r\n"]
    outcome = await raw_exchange(
        b"", steps, origin=early, proxy=proxy, conf=ServerConf(max_body_bytes=10)
    )
    assert outcome.answer.status == 200
    assert not outcome.answer.complete
    assert outcome.answer.body == b"begun"
    (message,) = read_messages(outcome.origin)
    assert not message.complete
    assert proxy.calls.count("logging") == 1
