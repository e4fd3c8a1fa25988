from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioproxy.codec._connect import ConnectReader, connect_request
from trioproxy.codec._h1 import ResponseReader
from trioproxy.codec._h1_codec import H11
from trioproxy.semantics._framing import HeadLimits, MessageRefused

GRANTED = b"HTTP/1.1 200 Connection established\r\nVia: p\r\n\r\n"


def _reader(**limits: Any) -> ConnectReader:
    return ConnectReader(HeadLimits(**limits), H11)


def test_the_request_has_the_authority_twice_and_the_fields_in_order() -> None:
    assert connect_request("[::1]:443", [(b"X-A", b"1"), (b"x-a", b"2")]) == (
        b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
    )


@given(cuts=st.sets(st.integers(1, len(GRANTED) - 1)))
@settings(max_examples=settings().max_examples // 2)
def test_an_answer_is_read_however_it_was_cut(cuts: set[int]) -> None:
    reader = _reader()
    places = [0, *sorted(cuts), len(GRANTED)]
    pieces = [GRANTED[a:b] for a, b in itertools.pairwise(places)]
    told = [reader.feed(piece) for piece in pieces]
    assert told == [False] * (len(pieces) - 1) + [True]
    assert reader.response is not None
    assert (reader.response.status, reader.response.headers.get("via")) == (200, "p")


@pytest.mark.parametrize("field", [b"Content-Length: 0", b"Content-Length: 5", b"X: y"])
def test_a_content_length_of_a_tunnel_is_ignored(field: bytes) -> None:
    assert _reader().feed(b"HTTP/1.1 204 x\r\n" + field + b"\r\n\r\n")
    assert _reader().feed(b"HTTP/1.0 200 x\r\n" + field + b"\r\n\r\n")


def test_informational_answers_are_passed_over() -> None:
    reader = _reader()
    assert not reader.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\n\r\n")
    assert reader.feed(GRANTED)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 x\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 502 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 302 x\r\nLocation: /\r\n\r\nuntil the end",
    ],
)
def test_another_answer_may_have_content(answer: bytes) -> None:
    reader = _reader()
    assert reader.feed(answer)
    assert reader.response is not None
    assert reader.response.status == int(answer[9:12])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n", "no Transfer-Encoding"),
        (GRANTED + b"S", "bytes behind"),
        (b"HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\nS", "bytes behind"),
        (b"HTTP/1.1 200 x\r\nContent-Length: 1\r\n\r\nS", "bytes behind"),
        (b"HTTP/1.1 200 x\r\nContent-Length: 9\r\n\r\nS", "bytes behind"),
        (b"HTTP/1.1 204 x\r\n\r\nS", "bytes behind"),
        (GRANTED + GRANTED, "bytes behind"),
    ],
)
def test_an_untrustworthy_tunnel_is_refused_and_its_head_kept(answer: bytes, why: str) -> None:
    reader = _reader()
    with pytest.raises(MessageRefused, match=why):
        reader.feed(answer)
    assert reader.response is not None
    assert reader.response.status in (200, 204)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 x\nVia: p\n\n",
        b"\r\nHTTP/1.1 200 x\r\n\r\n",
        b"HTTP/2.0 200 x\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 x\r\n\r\n" * 33,
    ],
)
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    reader = _reader()
    with pytest.raises(MessageRefused):
        reader.feed(answer)
    assert reader.response is None


def test_a_head_that_never_ends_is_refused_at_the_limit() -> None:
    reader = _reader(max_bytes=1000)
    assert not reader.feed(b"HTTP/1.1 200 x\r\nVia: " + b"p" * 900)
    with pytest.raises(MessageRefused, match="too large"):
        reader.feed(b"p" * 100)


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(MessageRefused, match="too many header fields"):
        _reader(max_fields=3).feed(b"HTTP/1.1 200 x\r\n" + b"A: b\r\n" * 4 + b"\r\n")


# -- a response whose Content-Length says nothing --------------------------------------------------

BAD_LENGTHS = [
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Content-Length: 5\r\ncontent-length: 5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: -5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length:\r\n",
    b"Content-Length : 5 6\r\n",
    b"Content-Length: 5\r\n 6\r\n",
]


@pytest.mark.parametrize("fields", BAD_LENGTHS)
def test_a_bad_length_is_refused_unless_it_is_allowed(fields: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nX: y\r\n" + fields + b"\r\n"
    strict = ResponseReader(HeadLimits())
    strict.expect("GET")
    strict.feed(head)
    with pytest.raises(MessageRefused):
        strict.events()
    lenient = ResponseReader(HeadLimits(allow_invalid_length=True))
    lenient.expect("GET")
    lenient.feed(head + b"12")
    response, data = lenient.events()
    assert response.headers.items() == [("X", "y")]  # type: ignore[union-attr]  # it is a head
    assert data.data == b"12"  # type: ignore[union-attr]  # it is content
    assert lenient.in_body
    lenient.eof()
    assert lenient.done
    assert not lenient.keep_alive


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_without_content_an_allowed_bad_length_costs_the_connection(
    method: str, status: int
) -> None:
    reader = ResponseReader(HeadLimits(allow_invalid_length=True))
    reader.expect(method)
    reader.feed(b"HTTP/1.1 %d x\r\nContent-Length: x\r\n\r\n" % status)
    reader.events()
    assert reader.done
    assert not reader.keep_alive


def test_beside_chunked_an_allowed_bad_length_costs_the_connection() -> None:
    reader = ResponseReader(HeadLimits(allow_invalid_length=True))
    reader.expect("GET")
    reader.feed(
        b"HTTP/1.1 200 x\r\nContent-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    reader.events()
    assert reader.done
    assert not reader.keep_alive


def test_a_good_length_stays_where_bad_ones_are_allowed() -> None:
    reader = ResponseReader(HeadLimits(allow_invalid_length=True))
    reader.expect("GET")
    reader.feed(b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nab")
    reader.events()
    assert reader.done
    assert reader.keep_alive
