"""What goes out is made from values: framing fields above all."""

from __future__ import annotations

import pytest

from trioproxy import Headers, RequestHeader, ResponseHeader
from trioproxy.codec._h1_write import (
    Framing,
    declared_length,
    encode_request_head,
    encode_response_head,
    encode_trailers,
)


@pytest.mark.parametrize("value", ["", "+5", "-1", "5, 5", "0x5", "5 5", "\xb2", "9" * 5000])
def test_a_length_that_a_filter_set_must_be_a_number(value: str) -> None:
    with pytest.raises(ValueError, match=r"[Nn]ot a number|Exceeds|too large"):
        declared_length(Headers([("Content-Length", value)]))


def test_a_length_set_twice_is_refused_though_equal() -> None:
    with pytest.raises(ValueError, match="twice"):
        declared_length(Headers([("Content-Length", "5"), ("content-length", "5")]))
    assert declared_length(Headers([("content-length", "005")])) == 5
    assert declared_length(Headers()) is None


def test_connection_fields_of_a_filter_are_passed_over() -> None:
    left = [
        ("Transfer-Encoding", "gzip"),
        ("Connection", "x"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "close"),
        ("Content-Length", "5"),
        ("X", "y"),
    ]
    request = encode_request_head(RequestHeader("PUT", b"/x", left), Framing.CHUNKED)
    assert request == b"PUT /x HTTP/1.1\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n"
    response = encode_response_head(
        ResponseHeader(200, left), Framing.CHUNKED, date=None, connection=b"close"
    )
    expected = b"HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert response == expected


@pytest.mark.parametrize("status", [100, 103, 204])
def test_no_framing_where_there_is_never_content(status: int) -> None:
    head = ResponseHeader(status, [("Content-Length", "5"), ("Transfer-Encoding", "chunked")])
    wire = encode_response_head(head, Framing.NONE, date=None, connection=None)
    assert wire.splitlines()[1:] == [b""]


def test_the_date_is_added_where_it_is_missing_and_never_replaced() -> None:
    with_date = ResponseHeader(200, [("date", "then")])
    wire = encode_response_head(with_date, Framing.CLOSE, date=b"now", connection=None)
    assert wire == b"HTTP/1.1 200 OK\r\ndate: then\r\n\r\n"
    wire = encode_response_head(ResponseHeader(200), Framing.CLOSE, date=b"now", connection=None)
    assert wire == b"HTTP/1.1 200 OK\r\nDate: now\r\n\r\n"


def test_reasons_go_out_as_they_are_and_unknown_statuses_without_one() -> None:
    for head, line in (
        (ResponseHeader(200, reason=b"\xe4 b"), b"HTTP/1.1 200 \xe4 b"),
        (ResponseHeader(200, reason=b""), b"HTTP/1.1 200 "),
        (ResponseHeader(799), b"HTTP/1.1 799 "),
        (ResponseHeader(404), b"HTTP/1.1 404 Not Found"),
    ):
        wire = encode_response_head(head, Framing.CLOSE, date=None, connection=None)
        assert wire.split(b"\r\n")[0] == line


def test_trailers_never_carry_a_length() -> None:
    trailers = Headers([("Content-Length", "5"), ("Transfer-Encoding", "chunked"), ("X-Sum", "1")])
    assert encode_trailers(trailers) == b"0\r\nX-Sum: 1\r\n\r\n"
