"""Bugs that attacks on the running proxy brought to light, one test for each."""

from __future__ import annotations

import contextlib
import logging
import socket

import pytest
import trio
from trio.testing import MockClock

from tests._support.raw import CUTS, Pause, Recorder, Step, answering, raw_exchange
from trioproxy import ErrorType, ProxyError, ProxyHttp, ResponseHeader, Session, serve

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trioproxy")


class WithoutBodyFilter(Recorder):
    """Does not override `request_body_filter`, so that the engine takes its short ways."""

    request_body_filter = ProxyHttp.request_body_filter


@pytest.mark.parametrize("cut", CUTS)
async def test_trailers_are_filtered_without_a_body_filter_too(
    cut: str, autojump_clock: MockClock
) -> None:
    request = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: evil\r\nAuthorization: b\r\nContent-Length: 9\r\n\r\n"
    )
    outcome = await raw_exchange(request, cut, proxy=WithoutBodyFilter(), origin=answering(OK))
    (got,) = outcome.requests
    assert got.body == b"abc"
    assert got.trailers == [(b"X-Sum", b"1")]


class Rewriting(Recorder):
    """Writes another status over the origin's."""

    status: int

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        upstream_response.status = self.status


@pytest.mark.parametrize(
    ("request_", "response", "status"),
    [
        (GET, OK, 101),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nraw",
            200,
        ),
    ],
    ids=["made", "unmade"],
)
async def test_a_filter_cannot_make_or_unmake_a_switch_of_protocols(
    request_: bytes, response: bytes, status: int, autojump_clock: MockClock
) -> None:
    proxy = Rewriting()
    proxy.status = status
    outcome = await raw_exchange(request_, proxy=proxy, origin=answering(response))
    assert outcome.answer.status == 500
    assert outcome.answer.body == b""
    (error,) = proxy.errors
    assert error is not None
    assert error.etype == ErrorType.InternalError


class Remembering(Recorder):
    """Answers the first request itself, and reads its session again while the second one runs."""

    first: Session | None = None
    stolen: bytes | None = None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        if self.first is None:
            self.first = session
            session.set_close_on_response_before_downstream_finish(False)
            await session.write_response_header(ResponseHeader(204), end_of_stream=True)
            return True
        await trio.sleep(1)
        with pytest.raises(ProxyError, match="the exchange is over"):
            self.stolen = await self.first.read_request_body()
        return False


async def test_a_session_that_is_over_reads_nothing_of_the_next_request(
    autojump_clock: MockClock,
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    proxy = Remembering()
    steps: list[Step] = [
        head % 3,
        Pause(0.5),
        b"abc",
        Pause(0.5),
        head % 6,
        Pause(0.5),
        b"second",
        Pause(2.0),
    ]
    outcome = await raw_exchange(b"", steps, proxy=proxy, origin=answering(OK))
    assert proxy.stolen is None
    assert [answer.status for answer in outcome.answers] == [204, 200]
    (got,) = outcome.requests
    assert got.body == b"second"


class GivingUp(Recorder):
    """Shuts the exchange down and goes on as if nothing had happened."""

    async def request_filter(self, session: Session, ctx: None) -> bool:
        await session.shutdown()
        return False


async def test_nothing_is_answered_behind_shutdown(autojump_clock: MockClock) -> None:
    outcome = await raw_exchange(GET, proxy=GivingUp(), origin=answering(OK))
    assert outcome.response == b""
    assert outcome.calls[-1] == "logging"


@pytest.mark.socket
async def test_a_burst_of_connections_is_accepted_within_a_few_rounds_of_the_scheduler() -> None:
    with trio.fail_after(10), contextlib.ExitStack() as clients:
        async with trio.open_nursery() as nursery:
            running = await nursery.start(serve, Recorder(), "127.0.0.1:0")
            port = int(running.urls[0].rpartition(":")[2])
            for _ in range(32):
                clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(8):
                await trio.lowlevel.checkpoint()
            assert running.statistics().connections_total == 32
            nursery.cancel_scope.cancel()
