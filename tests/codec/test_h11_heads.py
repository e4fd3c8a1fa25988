"""Heads are cut into lines by hand and checked by h11's events: held against h11's own parser."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.codec._h1_h11 import parse_request_head, parse_response_head
from trioproxy.semantics._framing import MessageRefused

NAMES = st.sampled_from([b"Host", b"x-a", b"X_B", b"Accept", b"bad name", b"", b"x:"])
VALUES = st.sampled_from([b"h", b"", b" a b ", b"\ta\t", b"caf\xe9", b"a:b", b"a, b"])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5)


def block(line: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join([line, *(name + b":" + value for name, value in fields), b"", b""])


def by_h11(role: type, data: bytes) -> object:
    connection = h11.Connection(role)
    if role is h11.CLIENT and data[9:10] == b"1":
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    fields = [(name.lower(), name, value) for name, value in event.headers.raw_items()]  # type: ignore[union-attr]
    if isinstance(event, h11.Request):
        return event.method, event.target, event.http_version, fields
    assert isinstance(event, (h11.Response, h11.InformationalResponse))
    return event.status_code, event.reason, event.http_version, fields


@given(
    st.sampled_from(
        [
            b"GET / HTTP/1.1",
            b"get /a?b HTTP/1.0",
            b"GET  / HTTP/1.1",
            b"G\xe9T / HTTP/1.1",
            b"GET /",
        ]
    ),
    FIELDS,
)
def test_a_request_head_reads_as_h11_reads_it(
    line: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    data = block(line, fields)
    expected = by_h11(h11.SERVER, data)
    if expected is None:
        with pytest.raises(MessageRefused):
            parse_request_head(data)
    else:
        assert parse_request_head(data) == expected


@given(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK",
            b"HTTP/1.0 404 ",
            b"HTTP/1.1 103",
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 200OK",
        ]
    ),
    FIELDS,
)
def test_a_response_head_reads_as_h11_reads_it(
    line: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    data = block(line, fields)
    expected = by_h11(h11.CLIENT, data)
    if expected is None:
        with pytest.raises(MessageRefused):
            parse_response_head(data)
    else:
        assert parse_response_head(data) == expected


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([(b"Accept", b"*/*")], "no Host field"),
        ([(b"Host", b"a"), (b"hOST", b"b")], "more than one Host field"),
        ([(b"Host", b"a"), (b"bad name", b"x")], "malformed request"),
    ],
    ids=["no host", "two hosts", "a bad name"],
)
def test_what_is_wrong_with_host_is_said(fields: list[tuple[bytes, bytes]], text: str) -> None:
    with pytest.raises(MessageRefused, match=f"^{text}$"):
        parse_request_head(block(b"GET / HTTP/1.1", fields))
