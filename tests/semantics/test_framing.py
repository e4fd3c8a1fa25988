"""The validator alone, as any HTTP/1 parser or HTTP/2 would call it: no help from h11."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioproxy import RequestHeader, ResponseHeader
from trioproxy._headers import Field
from trioproxy.semantics._framing import (
    HeadLimits,
    MessageRefused,
    check_request,
    check_response,
    parse_length,
    valid_host,
)

LIMITS = HeadLimits()
HOST = ("Host", "a")


def fields(*pairs: tuple[str, str]) -> list[Field]:
    return [
        (name.lower().encode("latin-1"), name.encode("latin-1"), value.encode("latin-1"))
        for name, value in pairs
    ]


def request(
    *pairs: tuple[str, str],
    method: bytes = b"GET",
    target: bytes = b"/",
    version: bytes = b"1.1",
    limits: HeadLimits = LIMITS,
) -> RequestHeader:
    return check_request(method, target, version, fields(*pairs), limits)


def response(
    *pairs: tuple[str, str],
    status: int = 200,
    version: bytes = b"1.1",
    method: str = "GET",
    limits: HeadLimits = LIMITS,
) -> ResponseHeader:
    return check_response(status, b"", version, fields(*pairs), limits, method)


TWO_LENGTHS = [("Content-Length", "5"), ("content-length", "5")]
LENGTH, CHUNKED = ("Content-Length", "5"), ("Transfer-Encoding", "chunked")


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([HOST, *TWO_LENGTHS], 400),
        ([HOST, ("Content-Length", "5, 5")], 400),
        ([HOST, ("Content-Length", "")], 400),
        ([HOST, LENGTH, CHUNKED], 400),
        ([HOST, CHUNKED, LENGTH], 400),
        ([HOST, CHUNKED, CHUNKED], 400),
        ([HOST, ("Transfer-Encoding", "gzip"), CHUNKED], 501),
        ([HOST, ("Transfer-Encoding", "gzip, chunked")], 501),
        ([HOST, CHUNKED, ("Transfer-Encoding", "gzip")], 400),
        ([HOST, ("Transfer-Encoding", "")], 400),
        ([HOST, ("Transfer-Encoding", "\x0bchunked")], 400),
        ([], 400),
        ([HOST, HOST], 400),
        ([("Host", "")], 400),
        ([("Host", "a,b")], 400),
        ([HOST, ("Expect", "something")], 417),
        ([HOST, ("Content_Length", "5")], 400),
    ],
)
def test_requests_that_no_parser_need_refuse(pairs: list[tuple[str, str]], status: int) -> None:
    with pytest.raises(MessageRefused) as caught:
        request(*pairs)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ((b"GET", b"/", b"1.2"), 505),
        ((b"GET", b"/", b"2.0"), 505),
        ((b"GET", b"/", b"11"), 400),
        ((b"GET", b"/", b""), 400),
        ((b"", b"/", b"1.1"), 400),
        ((b"G T", b"/", b"1.1"), 400),
        ((b"GET\r", b"/", b"1.1"), 400),
        ((b"M" * 33, b"/", b"1.1"), 400),
        ((b"GET", b"", b"1.1"), 400),
        ((b"GET", b"/\n", b"1.1"), 400),
        ((b"GET", b"/a b", b"1.1"), 400),
        ((b"GET", b"/" * 16385, b"1.1"), 414),
        ((b"CONNECT", b"a:443", b"1.1"), 405),
        ((b"TRACE", b"/", b"1.1"), 405),
    ],
)
def test_request_lines_that_no_parser_need_refuse(
    line: tuple[bytes, bytes, bytes], status: int
) -> None:
    with pytest.raises(MessageRefused) as caught:
        request(HOST, method=line[0], target=line[1], version=line[2])
    assert caught.value.status == status


def test_too_many_fields() -> None:
    assert len(request(HOST, *[("X", "y")] * 127).headers) == 128
    with pytest.raises(MessageRefused) as caught:
        request(HOST, *[("X", "y")] * 128)
    assert caught.value.status == 431


def test_a_refusal_never_quotes_the_message() -> None:
    with pytest.raises(MessageRefused) as caught:
        request(("Host", "se\rcret"))
    assert "cret" not in caught.value.text


@given(st.binary(max_size=24))
@settings(deadline=None)
def test_a_length_is_ascii_digits_and_nothing_else(value: bytes) -> None:
    number = parse_length(value)
    assert (number is not None) == (
        0 < len(value) <= 20 and all(48 <= c <= 57 for c in value) and int(value) < 2**63
    )
    if number is not None:
        assert number == int(value)


@given(st.binary(max_size=12))
@settings(deadline=None)
def test_a_host_has_nothing_that_splits_it(host: bytes) -> None:
    if valid_host(host):
        assert host
        assert not set(host) & set(b'@/\\?#, \t\r\n\0"<>^`{|}')
        assert max(host) < 0x7F


@pytest.mark.parametrize(
    ("pairs", "method", "length", "chunked", "body", "until_close", "poisoned"),
    [
        ([LENGTH], "GET", 5, False, True, False, False),
        ([("Content-Length", "0")], "GET", 0, False, False, False, False),
        ([CHUNKED], "GET", None, True, True, False, False),
        ([LENGTH, CHUNKED], "GET", None, True, True, False, True),
        ([], "GET", None, False, True, True, False),
        ([LENGTH], "HEAD", 5, False, False, False, False),
        ([CHUNKED], "HEAD", None, True, False, False, False),
        ([], "HEAD", None, False, False, False, False),
    ],
)
def test_how_a_response_is_delimited(
    pairs: list[tuple[str, str]],
    method: str,
    length: int | None,
    chunked: bool,
    body: bool,
    until_close: bool,
    poisoned: bool,
) -> None:
    head = response(*pairs, method=method)
    facts = head.facts
    assert facts is not None
    assert (facts.content_length, facts.chunked) == (length, chunked)
    assert (facts.has_body, facts.until_close, facts.poisoned) == (body, until_close, poisoned)
    if poisoned:
        assert "content-length" not in head.headers


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_content(status: int) -> None:
    for pairs in ([LENGTH], [CHUNKED], []):
        facts = response(*pairs, status=status).facts
        assert facts is not None
        assert not facts.has_body
        assert not facts.until_close


@pytest.mark.parametrize(
    "pairs",
    [
        TWO_LENGTHS,
        [("Content-Length", "5, 5")],
        [("Content-Length", "-1")],
        [("Transfer-Encoding", "gzip")],
        [("Transfer-Encoding", "gzip, chunked")],
        [CHUNKED, CHUNKED],
    ],
)
def test_responses_that_cannot_be_delimited(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(MessageRefused) as caught:
        response(*pairs)
    assert caught.value.status == 502


def test_transfer_encoding_of_an_old_response_is_decoded_but_never_trusted() -> None:
    facts = response(CHUNKED, version=b"1.0").facts
    assert facts is not None
    assert facts.chunked
    assert facts.poisoned


def test_framing_fields_of_an_informational_response_mean_nothing() -> None:
    for pairs in (TWO_LENGTHS, [("Transfer-Encoding", "gzip")], [LENGTH, CHUNKED]):
        head = response(*pairs, ("Link", "x"), status=103)
        assert head.facts is not None
        assert not head.facts.has_body
        assert "content-length" not in head.headers
        assert head.headers.get("link") == "x"


@pytest.mark.parametrize("version", [b"1.2", b"2.0", b"0.9", b""])
def test_responses_of_other_versions(version: bytes) -> None:
    with pytest.raises(MessageRefused):
        response(version=version)
