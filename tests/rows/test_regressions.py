"""Bugs that attacks on the running proxy brought to light, one test for each."""

from __future__ import annotations

import logging

import pytest
from trio.testing import MockClock

from tests._support.raw import CUTS, Recorder, answering, raw_exchange
from trioproxy import ErrorType, ProxyHttp, ResponseHeader, Session

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
