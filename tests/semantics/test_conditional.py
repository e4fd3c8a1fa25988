"""Conditions on a response that is held, against RFC 9110 section 13."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioproxy import RequestHeader, ResponseHeader
from trioproxy.semantics._conditional import (
    entity_tags,
    evaluate_conditions,
    fill_request,
    not_modified,
    precondition_failed,
    strong_match,
    weak_match,
)

OLD = "Sun, 06 Nov 1994 08:49:36 GMT"
THEN = "Sun, 06 Nov 1994 08:49:37 GMT"
NEW = "Sun, 06 Nov 1994 08:49:38 GMT"
STRONG = {"ETag": '"a"', "Last-Modified": THEN}


def outcome(
    asked: dict[str, str] | list[tuple[str, str]],
    held: dict[str, str],
    *,
    method: str = "GET",
    status: int = 200,
    received: float | None = None,
) -> int | None:
    return evaluate_conditions(
        RequestHeader(method, "/", asked), ResponseHeader(status, held), received=received
    )


@pytest.mark.parametrize(
    ("one", "other", "strong", "weak"),
    [
        (b'W/"1"', b'W/"1"', False, True),
        (b'W/"1"', b'W/"2"', False, False),
        (b'W/"1"', b'"1"', False, True),
        (b'"1"', b'"1"', True, True),
        (b'"1"', b'"2"', False, False),
    ],
)
def test_tags_compare_as_the_table_of_the_rfc_says(
    one: bytes, other: bytes, strong: bool, weak: bool
) -> None:
    for pair in ((one, other), (other, one)):
        assert strong_match(*pair) is strong
        assert weak_match(*pair) is weak


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (b'"a"', [b'"a"']),
        (b'"a,b", W/"c"', [b'"a,b"', b'W/"c"']),
        (b'"a","b"', [b'"a"', b'"b"']),
        (b',, "a" ,\t"b",', [b'"a"', b'"b"']),
        (b'""', [b'""']),
        (b"bare , b", [b"bare", b"b"]),
        (b'"open, "b"', [b'"open, "', b'b"']),
        (b'"open', [b'"open']),
        (b'w/"a"', [b'w/"a"']),
        (b"", []),
    ],
)
def test_a_list_of_tags_is_taken_apart_around_quotes(value: bytes, tags: list[bytes]) -> None:
    assert entity_tags(value) == tags


_tag = st.builds(
    lambda weak, opaque: b'%b"%b"' % (b"W/" if weak else b"", opaque),
    st.booleans(),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"')).map(
        str.encode
    ),
)


@settings(max_examples=settings().max_examples // 2)
@given(st.lists(_tag, max_size=6), st.sampled_from([b",", b", ", b" ,\t", b",,"]))
def test_any_proper_list_of_tags_is_read_back(tags: list[bytes], comma: bytes) -> None:
    assert entity_tags(comma.join(tags)) == tags


@pytest.mark.parametrize(
    ("value", "etag", "status"),
    [
        ('"a"', '"a"', 304),
        ('W/"a"', '"a"', 304),
        ('"a"', 'W/"a"', 304),
        ('"b", "a"', '"a"', 304),
        ('"a,b"', '"a,b"', 304),
        ('"a,b"', '"b"', None),
        ('"ab"', '"a"', None),
        ("a", '"a"', None),
        ("a", "a", 304),
        ("*", '"a"', 304),
        ("*", None, 304),
        ('"*"', '"a"', None),
        ('"a"', None, None),
        ("", '"a"', None),
    ],
)
def test_if_none_match(value: str, etag: str | None, status: int | None) -> None:
    assert outcome({"If-None-Match": value}, {} if etag is None else {"ETag": etag}) == status


@pytest.mark.parametrize(
    ("value", "etag", "status"),
    [
        ('"a"', '"a"', None),
        ('"b", "a"', '"a"', None),
        ('"b"', '"a"', 412),
        ('W/"a"', '"a"', 412),
        ('W/"a"', 'W/"a"', 412),
        ("*", '"a"', None),
        ("*", None, None),
        ('"a"', None, 412),
    ],
)
def test_if_match(value: str, etag: str | None, status: int | None) -> None:
    assert outcome({"If-Match": value}, {} if etag is None else {"ETag": etag}) == status


def test_tags_on_several_lines_are_one_list() -> None:
    assert outcome([("If-None-Match", '"x"'), ("If-None-Match", '"a"')], STRONG) == 304


@pytest.mark.parametrize(("since", "status"), [(OLD, None), (THEN, 304), (NEW, 304)])
def test_if_modified_since(since: str, status: int | None) -> None:
    assert outcome({"If-Modified-Since": since}, {"Last-Modified": THEN}) == status


@pytest.mark.parametrize(("since", "status"), [(OLD, 412), (THEN, None), (NEW, None)])
def test_if_unmodified_since(since: str, status: int | None) -> None:
    assert outcome({"If-Unmodified-Since": since}, {"Last-Modified": THEN}) == status


def test_dates_have_three_forms() -> None:
    for since in ("Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"):
        assert outcome({"If-Modified-Since": since}, {"Last-Modified": THEN}) == 304


@pytest.mark.parametrize("broken", ["", "0", "yesterday", f"{NEW}, {NEW}", NEW + "+1", "-1"])
def test_a_broken_date_is_ignored(broken: str) -> None:
    assert outcome({"If-Modified-Since": broken}, {"Last-Modified": THEN}) is None
    assert outcome({"If-Modified-Since": NEW}, {"Last-Modified": broken, "Date": OLD}) is None
    assert outcome({"If-Unmodified-Since": broken}, {"Last-Modified": THEN}) is None
    assert outcome({"If-Unmodified-Since": OLD}, {"Last-Modified": broken}) is None


def test_a_repeated_date_is_ignored() -> None:
    twice = [("If-Modified-Since", NEW), ("If-Modified-Since", NEW)]
    assert outcome(twice, {"Last-Modified": THEN}) is None
    twice = [("If-Unmodified-Since", OLD), ("If-Unmodified-Since", OLD)]
    assert outcome(twice, {"Last-Modified": THEN}) is None


def test_a_response_without_a_modification_date_counts_as_changed_when_it_was_made() -> None:
    assert outcome({"If-Modified-Since": THEN}, {"Date": THEN}) == 304
    assert outcome({"If-Modified-Since": OLD}, {"Date": THEN}) is None
    assert outcome({"If-Modified-Since": THEN}, {}, received=0.0) == 304
    assert outcome({"If-Modified-Since": THEN}, {}, received=2e9) is None
    assert outcome({"If-Modified-Since": THEN}, {}) is None
    assert outcome({"If-Unmodified-Since": OLD}, {"Date": THEN}) is None


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        # If-Match, not If-Unmodified-Since.
        ({"If-Match": '"a"', "If-Unmodified-Since": OLD}, None),
        ({"If-Match": '"b"', "If-Unmodified-Since": NEW}, 412),
        # If-None-Match, not If-Modified-Since.
        ({"If-None-Match": '"b"', "If-Modified-Since": NEW}, None),
        ({"If-None-Match": '"a"', "If-Modified-Since": OLD}, 304),
        ({"If-None-Match": '"b"', "If-Modified-Since": "broken"}, None),
        # A failure comes before what would be a 304.
        ({"If-Match": '"b"', "If-None-Match": '"a"'}, 412),
        ({"If-Unmodified-Since": OLD, "If-None-Match": '"a"'}, 412),
        # And what holds goes on to the next.
        ({"If-Match": '"a"', "If-None-Match": '"a"'}, 304),
        ({"If-Unmodified-Since": NEW, "If-Modified-Since": NEW}, 304),
        ({}, None),
    ],
)
def test_conditions_are_evaluated_in_their_order(asked: dict[str, str], status: int | None) -> None:
    assert outcome(asked, STRONG) == status


@pytest.mark.parametrize("status", [201, 204, 206, 301, 304, 404, 412, 500])
def test_conditions_are_ignored_where_the_answer_is_no_200(status: int) -> None:
    assert outcome({"If-Match": '"b"'}, STRONG, status=status) is None
    assert outcome({"If-None-Match": '"a"'}, STRONG, status=status) is None


def test_conditions_of_other_methods_are_for_the_origin() -> None:
    assert outcome({"If-Match": '"b"'}, STRONG, method="PUT") is None
    assert outcome({"If-None-Match": "*"}, STRONG, method="POST") is None
    assert outcome({"If-None-Match": '"a"'}, STRONG, method="HEAD") == 304


CONTENT = {
    "Content-Length": "5",
    "Content-Type": "text/plain",
    "Content-Encoding": "gzip",
    "Transfer-Encoding": "chunked",
    "Accept-Ranges": "bytes",
}
KEPT = {
    "Date": NEW,
    "ETag": '"a"',
    "Vary": "Accept",
    "Content-Location": "/x",
    "Set-Cookie": "a=b",
}
FRESHNESS = {"Cache-Control": "max-age=5", "Expires": NEW, "CDN-Cache-Control": "max-age=9"}


def test_a_304_keeps_all_but_what_describes_content() -> None:
    head = ResponseHeader(200, CONTENT | KEPT | FRESHNESS, reason="Fine")
    not_modified(head)
    assert head == ResponseHeader(304, KEPT | FRESHNESS)


def test_a_412_has_no_content_and_no_cache_keeps_it() -> None:
    head = ResponseHeader(200, CONTENT | KEPT | FRESHNESS, reason="Fine")
    precondition_failed(head)
    assert head == ResponseHeader(412, KEPT | {"Content-Length": "0", "Cache-Control": "no-store"})


CLIENT = {
    "Host": "example",
    "If-Match": '"a"',
    "If-None-Match": '"b"',
    "If-Modified-Since": OLD,
    "If-Unmodified-Since": OLD,
    "If-Range": '"c"',
    "Range": "bytes=0-1",
    "Accept": "*/*",
}


def test_a_request_that_fills_the_cache_asks_for_the_whole() -> None:
    request = RequestHeader("HEAD", "/", CLIENT)
    fill_request(request)
    assert request == RequestHeader("GET", "/", {"Host": "example", "Accept": "*/*"})


def test_a_request_that_refreshes_has_the_validators_of_what_is_stored() -> None:
    request = RequestHeader("GET", "/", CLIENT)
    fill_request(request, ResponseHeader(200, {"ETag": 'W/"s"', "Last-Modified": THEN}))
    assert request == RequestHeader(
        "GET",
        "/",
        {
            "Host": "example",
            "Accept": "*/*",
            "If-Modified-Since": THEN,
            "If-None-Match": 'W/"s"',
        },
    )


def test_a_stored_response_without_validators_gives_no_condition() -> None:
    request = RequestHeader("GET", "/", {"Host": "example"})
    fill_request(request, ResponseHeader(200, {"ETag": "", "Date": THEN}))
    assert request == RequestHeader("GET", "/", {"Host": "example"})
