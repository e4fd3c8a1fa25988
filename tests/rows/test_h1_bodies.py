"""Rows H1-06 to H1-09 and H1-20: chunked bodies that are broken, on their way to the origin."""

from __future__ import annotations

import logging

import pytest
from trio.testing import MockClock

from tests._support.raw import (
    CUTS,
    SOON,
    Origin,
    Pause,
    Recorder,
    answering,
    assert_refused,
    raw_exchange,
    read_messages,
)
from tests._support.raw import cut as pieces
from trioproxy import ErrorSource, RequestHeader, Session

cuts = pytest.mark.parametrize("cut", CUTS)

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
GOOD = b"5\r\nhello\r\n"
LAST = b"0\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trioproxy")


async def broken(body: bytes, cut: str, good: bytes = b"") -> None:
    """Send a broken body, alone and behind a good chunk; the origin must see no end of it."""
    for before, seen in ((b"", good), (GOOD, b"hello" + good)):
        if cut == "whole":
            outcome = await raw_exchange(HEAD + before + body)
            assert_refused(outcome, 400, body[:100])
            continue
        # The head came first, so the session runs before the mistake can be known.
        outcome = await raw_exchange(b"", [HEAD, *pieces(before + body, cut)])
        assert outcome.answer.status == 400, body
        assert outcome.answer.one(b"connection") == b"close", body
        assert outcome.answer.complete, body
        assert outcome.seconds < SOON, body
        assert outcome.after_end, body
        assert outcome.calls.count("logging") == 1, body
        assert outcome.calls[-1] == "logging", body
        (error,) = outcome.proxy.errors
        assert error is not None, body
        assert error.esource is ErrorSource.DOWNSTREAM, body
        assert True not in outcome.proxy.ends_in, body
        got = b"".join(data for data in outcome.proxy.body_in if data)
        assert seen.startswith(got), (body, got)
        for data in outcome.origins:
            for message in read_messages(data):
                assert not message.complete, (body, data)
                assert seen.startswith(message.body), (body, data)
        assert b"smuggled" not in outcome.origin, body


@cuts
async def test_h1_06_chunk_size_that_is_not_a_plain_number(
    cut: str, autojump_clock: MockClock
) -> None:
    for size in (
        b"+5",
        b"-5",
        b"0x5",
        b"5_0",
        b" 5",
        b"\t5",
        b"5 ",
        b"5\t",
        b"",
        b"g",
        b"5h",
        b"\x0c5",
        b"5\x00",
        b"\xb2",
        b"5,5",
        b"8000000000000005",
        b"10000000000000005",
        b"ffffffffffffffffffffff",
        b"5 ;a=b",
        b"'5'",
    ):
        await broken(size + b"\r\nhello\r\n" + LAST + SMUGGLED, cut)


@cuts
async def test_h1_06_large_and_padded_sizes_are_taken(cut: str, autojump_clock: MockClock) -> None:
    request = HEAD + b"00005\r\nhello\r\n0000A\r\n0123456789\r\n000\r\n\r\n"
    outcome = await raw_exchange(request, cut)
    assert [each.body for each in outcome.requests] == [b"hello0123456789"]
    assert outcome.answer.status == 200


@cuts
async def test_h1_07_malformed_chunk_extensions(cut: str, autojump_clock: MockClock) -> None:
    for ext in (
        b";a\rb",
        b";a=\rb",
        b";\r",
        b";a\nb",
        b";a=b\n",
        b";",
        b";;",
        b";a;",
        b";=b",
        b";a=",
        b";a b",
        b";a=b c",
        b';a="b',
        b';a="b"c',
        b';a="b\r\nX"',
        b';a="\\',
        b";a=\x00",
        b";\x7f",
        b"a=b",
        b" a=b",
        b",a=b",
        b";a=b ",
        b";a(b",
        b";\xe4",
    ):
        await broken(b"5" + ext + b"\r\nhello\r\n" + LAST + SMUGGLED, cut)


async def test_h1_07_chunk_line_longer_than_4096(autojump_clock: MockClock) -> None:
    for cut in ("whole", "line ends"):
        await broken(b"5;" + b"a" * 4095 + b"\r\nhello\r\n" + LAST, cut)
    # At its limit it passes, and one that never ends is refused without waiting for its end.
    outcome = await raw_exchange(HEAD + b"5;" + b"a" * 4094 + b"\r\nhello\r\n" + LAST)
    assert outcome.answer.status == 200
    endless = await raw_exchange(b"", [HEAD, b"5;" + b"a" * 2000, b"a" * 2100, Pause(1)])
    assert endless.answer.status == 400
    assert endless.seconds < 1


async def test_h1_07_more_than_16_kib_of_framing_overhead(autojump_clock: MockClock) -> None:
    chunks = (
        b"1;" + b"e" * 3000 + b"\r\nx\r\n",
        b"0" * 3000 + b"1\r\nx\r\n",
        b"1" + b";a=b" * 750 + b"\r\nx\r\n",
    )
    for chunk in chunks:
        outcome = await raw_exchange(HEAD + chunk * 5 + LAST)
        assert outcome.answer.status == 200
        await broken(chunk * 6 + LAST, "whole", b"x" * 5)
        await broken(chunk * 6 + LAST, "line ends", b"x" * 5)


async def test_h1_07_many_small_chunks_are_no_overhead(autojump_clock: MockClock) -> None:
    outcome = await raw_exchange(HEAD + b"1\r\nx\r\n" * 20000 + LAST)
    assert [each.body for each in outcome.requests] == [b"x" * 20000]


@cuts
async def test_h1_07_legal_extensions_are_dropped(cut: str, autojump_clock: MockClock) -> None:
    for ext in (b";a", b";a=b", b"; a = b", b';a="b;\\"c\r"'.replace(b"\r", b""), b";a;b=c;d"):
        request = HEAD + b"5" + ext + b"\r\nhello\r\n0" + ext + b"\r\n\r\n"
        outcome = await raw_exchange(request, cut)
        assert [each.body for each in outcome.requests] == [b"hello"]
        assert b";" not in outcome.origin


@cuts
async def test_h1_08_chunk_data_that_its_size_does_not_end(
    cut: str, autojump_clock: MockClock
) -> None:
    for body in (
        b"5\r\nhelloX\r\n",
        b"5\r\nhello",
        b"5\r\nhello\n",
        b"5\r\nhello\r",
        b"5\r\nhello\rX",
        b"5\r\nhelloXX",
        b"5\r\nhello\n\r",
        b"5\r\nhello\r\r\n",
        b"5\r\nhello \r\n",
        b"4\r\nhello\r\n",
    ):
        good = b"hell" if body.startswith(b"4") else b"hello"
        await broken(body + LAST + SMUGGLED, cut, good)


@cuts
async def test_h1_08_last_chunk_ended_by_a_line_feed(cut: str, autojump_clock: MockClock) -> None:
    for last in (b"0\n\r\n", b"0\r\n\n", b"0\n\n", b"0\r\r\n\r\n", b"0\r\n\r\r\n", b"0\r\nX"):
        await broken(last + SMUGGLED, cut)


@cuts
async def test_h1_09_bare_line_feeds_in_chunk_lines_and_trailers(
    cut: str, autojump_clock: MockClock
) -> None:
    for body, good in (
        (b"5\nhello\r\n" + LAST, b""),
        (b"5\r\nhello\n" + LAST, b"hello"),
        (b"0\r\nX: y\n\r\n", b""),
        (b"0\r\nX: y\r\n\n", b""),
        (b"0\r\nX: y\nZ: a\r\n\r\n", b""),
        (b"0\r\nX: y\rZ: a\r\n\r\n", b""),
    ):
        await broken(body + SMUGGLED, cut, good)


@cuts
async def test_h1_20_trailers_go_on_without_those_that_mean_something(
    cut: str, autojump_clock: MockClock
) -> None:
    names = (
        b"content-length transfer-encoding host connection te trailer authorization cookie "
        b"set-cookie cache-control content-type content-encoding content-range "
        b"x-forwarded-for x-forwarded-host keep-alive proxy-authorization expect "
        b"content_length x_forwarded_for transfer_encoding x-real-ip x-hop"
    ).split()
    trailers = b"".join(b"%s: 1\r\n" % name for name in names)
    request = (
        HEAD.replace(b"\r\n\r\n", b"\r\nConnection: x-hop\r\nTE: trailers, gzip\r\n\r\n")
        + GOOD
        + b"0\r\nX-Sum: abc \r\n"
        + trailers
        + b"X-Two:\t2\r\n\r\n"
    )
    response = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-hop\r\n\r\n"
        b"2\r\nok\r\n0\r\nX-Down: 1\r\n" + trailers + b"\r\n"
    )
    outcome = await raw_exchange(request, cut, origin=answering(response))
    (got,) = outcome.requests
    assert got.complete
    assert got.trailers == [(b"X-Sum", b"abc"), (b"X-Two", b"2")]
    assert got.all(b"te") == []
    assert {name.lower() for name, _ in got.fields} == {b"host", b"transfer-encoding"}
    assert outcome.answer.body == b"ok"
    assert outcome.answer.trailers == [(b"X-Down", b"1")]
    assert {name.lower() for name, _ in outcome.answer.fields} == {
        b"date",
        b"transfer-encoding",
        b"connection",
    }


@cuts
async def test_h1_20_malformed_trailers(cut: str, autojump_clock: MockClock) -> None:
    for line in (
        b"X",
        b"X : y",
        b": y",
        b" X: y",
        b"X: a\x00b",
        b"X: a\x01",
        b"X(: y",
        b"A: b\r\n c",
        b"GET / HTTP/1.1",
    ):
        await broken(b"0\r\n" + line + b"\r\n\r\n" + SMUGGLED, cut)


async def test_h1_20_too_many_or_too_large_trailers(autojump_clock: MockClock) -> None:
    most = b"".join(b"X-%d: y\r\n" % n for n in range(32))
    large = b"".join(b"X-%d: %s\r\n" % (n, b"v" * 2000) for n in range(4))
    for trailers in (most, large):
        outcome = await raw_exchange(HEAD + b"0\r\n" + trailers + b"\r\n", "whole")
        assert outcome.answer.status == 200
    for trailers in (
        most + b"X: y\r\n",
        large + b"X: " + b"v" * 300 + b"\r\n",
        b"X: " + b"v" * 4096 + b"\r\n",
    ):
        for cut in ("whole", "line ends", "sevens"):
            await broken(b"0\r\n" + trailers + b"\r\n", cut)


@cuts
async def test_h1_20_trailers_never_become_fields(cut: str, autojump_clock: MockClock) -> None:
    class Reader(Recorder):
        async def request_filter(self, session: Session, ctx: None) -> bool:
            while await session.read_request_body() is not None:
                pass
            assert session.get_header("x-late") is None
            return False

        async def upstream_request_filter(
            self, session: Session, upstream_request: RequestHeader, ctx: None
        ) -> None:
            assert upstream_request.headers.get("x-late") is None

    outcome = await raw_exchange(HEAD + GOOD + b"0\r\nX-Late: 1\r\n\r\n", cut, proxy=Reader())
    (got,) = outcome.requests
    assert got.all(b"x-late") == []
    assert got.trailers == [(b"X-Late", b"1")]


async def test_h1_06_broken_upload_behind_a_started_response_ends_it_cut(
    autojump_clock: MockClock,
) -> None:
    # What a refusal would say must never be read as the rest of a response that has begun.
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nbegun"

    async def early(origin: Origin) -> None:
        await origin.head()
        await origin.send(response)
        await origin.to_end()

    outcome = await raw_exchange(b"", [HEAD + GOOD, b"xyz\r\n"], origin=early)
    answer = outcome.answer
    assert answer.status == 200
    assert not answer.complete
    assert answer.body == b"begun"
    assert LAST not in outcome.origin
