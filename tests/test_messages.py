from __future__ import annotations

import http

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import BodyChunk, Headers, RequestHeader, ResponseHeader
from trioproxy._messages import END, RequestFacts


def test_target_gives_path_and_query() -> None:
    head = RequestHeader("GET", "/a/b?c=d?e")
    assert (head.target, head.path, head.query) == (b"/a/b?c=d?e", "/a/b", "c=d?e")
    head = RequestHeader("GET", b"/a")
    assert (head.path, head.query) == ("/a", None)
    head = RequestHeader("GET", b"/a?")
    assert (head.path, head.query) == ("/a", "")


def test_setting_path_or_query_remakes_target() -> None:
    head = RequestHeader("GET", "/a?b=c")
    head.path = "/x"
    assert head.target == b"/x?b=c"
    head.query = "y"
    assert head.target == b"/x?y"
    head.query = ""
    assert head.target == b"/x?"
    head.query = None
    assert head.target == b"/x"
    head.query = "z"
    assert head.target == b"/x?z"


def test_setting_target_remakes_path_and_query() -> None:
    head = RequestHeader("GET", "/a?b=c")
    head.target = b"/x"
    assert (head.path, head.query) == ("/x", None)
    head.target = "/y?z"
    assert (head.path, head.query) == ("/y", "z")


def test_odd_but_legal_targets_go_on_as_they_are() -> None:
    for target in (b"*", b"//x/../%2e%00//", b"/\x22<>{}|^`[]", b"/?"):
        head = RequestHeader("OPTIONS", target)
        assert head.target == target


BAD = ["", "/a b", "/a\r\n", "/a\0", "/a#b", "/a\\b", "/\x7f", "/\xe4", "/\u20ac"]


@pytest.mark.parametrize("bad", BAD)
def test_h1_30_a_target_that_breaks_its_line_is_refused_at_the_call(bad: str) -> None:
    with pytest.raises(ValueError, match="is not a request target"):
        RequestHeader("GET", bad)
    head = RequestHeader("GET", "/ok?q")
    with pytest.raises(ValueError, match="is not a request target"):
        head.target = bad.encode()
    if bad:
        with pytest.raises(ValueError, match="is not a request target"):
            head.path = bad
        with pytest.raises(ValueError, match="is not a request target"):
            head.query = bad
    assert head.target == b"/ok?q"


@pytest.mark.parametrize("bad", ["", "a", "http://other/", "?a"])
def test_a_path_that_makes_another_form_of_target_is_refused(bad: str) -> None:
    head = RequestHeader("GET", "/ok?q")
    with pytest.raises(ValueError, match=r"is not a path|has a '\?'"):
        head.path = bad
    assert head.target == b"/ok?q"


def test_a_question_mark_in_path_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="set query apart from path"):
        RequestHeader("GET", "/").path = "/a?b"


@pytest.mark.parametrize("bad", ["", "GET ", "G\r\nT", "G:", "\xe4"])
def test_h1_30_a_method_that_is_no_token_is_refused_at_the_call(bad: str) -> None:
    with pytest.raises(ValueError, match="is not a method"):
        RequestHeader(bad, "/")
    head = RequestHeader("get", "/")
    with pytest.raises(ValueError, match="is not a method"):
        head.method = bad
    assert head.method == "get"


def test_authority_is_the_host_field() -> None:
    head = RequestHeader("GET", "/", {"host": "a:81"})
    assert head.authority == "a:81"
    head.authority = "b"
    assert head.headers.items() == [("Host", "b")]
    head.headers.remove("host")
    assert head.authority == ""
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        head.authority = "a\r\nb: c"


def test_a_request_has_defaults_for_version_and_scheme() -> None:
    head = RequestHeader("GET", "/")
    assert (head.version, head.scheme, len(head.headers)) == ("HTTP/1.1", "http", 0)
    head = RequestHeader("GET", "/", [("a", "1")], version="HTTP/1.0", scheme="https")
    assert (head.version, head.scheme) == ("HTTP/1.0", "https")


def test_a_copy_of_a_request_is_edited_apart() -> None:
    head = RequestHeader("GET", "/a?b", {"a": "1"})
    head.facts = RequestFacts(chunked=True)
    copy = head.copy()
    assert copy == head
    assert copy.facts is head.facts
    copy.method = "POST"
    copy.path = "/x"
    copy.headers.set("a", "2")
    assert (head.method, head.target, head.headers.get("a")) == ("GET", b"/a?b", "1")
    assert copy != head
    assert head != "GET"


def test_heads_show_what_they_are() -> None:
    assert repr(RequestHeader("GET", "/a", {"b": "c"})) == (
        "RequestHeader('GET', '/a', [('b', 'c')])"
    )
    assert repr(ResponseHeader(200, {"b": "c"})) == "ResponseHeader(200, [('b', 'c')])"
    assert repr(END) == "END"


def test_a_request_has_a_body_where_the_facts_say_so() -> None:
    assert RequestFacts(chunked=True).has_body
    assert RequestFacts(content_length=1).has_body
    assert not RequestFacts(content_length=0).has_body
    assert not RequestFacts().has_body


@given(
    st.text("/%.aZ~;=&", max_size=8),
    st.none() | st.text("?/%.aZ~;=&", max_size=8),
    st.text("/%.aZ~;=&", max_size=8),
    st.none() | st.text("?/%.aZ~;=&", max_size=8),
)
def test_path_and_query_are_independent(
    path: str, query: str | None, new_path: str, new_query: str | None
) -> None:
    head = RequestHeader("GET", "/" + path + ("" if query is None else "?" + query))
    assert (head.path, head.query) == ("/" + path, query)
    head.path = "/" + new_path
    assert (head.path, head.query) == ("/" + new_path, query)
    head.query = new_query
    assert (head.path, head.query) == ("/" + new_path, new_query)
    assert RequestHeader("GET", head.target) == head


@given(st.text(max_size=6))
def test_what_is_accepted_as_a_path_is_read_back_as_it_was(path: str) -> None:
    head = RequestHeader("GET", "/?q")
    try:
        head.path = path
    except ValueError:
        assert head.target == b"/?q"
    else:
        assert (head.path, head.query) == (path, "q")


def test_a_response_takes_an_int_or_an_http_status() -> None:
    head = ResponseHeader(http.HTTPStatus.NOT_FOUND)
    assert head.status == 404
    assert type(head.status) is int
    for status in (100, 299, 599, 999):
        head.status = status
        assert head.status == status
    for status in (0, 99, 1000, -200):
        with pytest.raises(ValueError, match="100 to 999"):
            head.status = status
        with pytest.raises(ValueError, match="100 to 999"):
            ResponseHeader(status)


def test_a_reason_is_bytes_and_none_is_the_standard_one() -> None:
    assert ResponseHeader(200).reason is None
    head = ResponseHeader(200, reason="Fine \xfc")
    assert head.reason == b"Fine \xfc"
    head.reason = b""
    assert head.reason == b""
    head.reason = None
    assert head.reason is None


@pytest.mark.parametrize("bad", ["a\r\nb: c", "\n", b"\0"])
def test_h1_30_a_reason_that_breaks_its_line_is_refused_at_the_call(bad: str | bytes) -> None:
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        ResponseHeader(200, reason=bad)
    head = ResponseHeader(200, reason=b"ok")
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        head.reason = bad
    assert head.reason == b"ok"


def test_a_reason_beyond_latin_1_is_refused() -> None:
    with pytest.raises(ValueError, match="latin-1"):
        ResponseHeader(200, reason="\u20ac")


def test_a_copy_of_a_response_is_edited_apart() -> None:
    head = ResponseHeader(200, {"a": "1"}, reason="x", version="HTTP/1.0")
    copy = head.copy()
    assert copy == head
    assert copy.version == "HTTP/1.0"
    copy.status = 404
    copy.headers.remove("a")
    copy.reason = None
    assert (head.status, head.headers.get("a"), head.reason) == (200, "1", b"x")
    assert copy != head
    assert head != 200


def test_heads_are_not_hashable_as_they_change() -> None:
    for head in (RequestHeader("GET", "/"), ResponseHeader(200)):
        with pytest.raises(TypeError):
            hash(head)


def test_a_head_takes_over_the_fields_it_is_given() -> None:
    headers = Headers({"a": "1"})
    assert RequestHeader("GET", "/", headers).headers is headers
    assert ResponseHeader(200, headers).headers is headers


def test_a_body_chunk_is_one_holder_refilled() -> None:
    chunk = BodyChunk()
    assert chunk.data is None
    chunk.data = b"b"
    assert chunk == BodyChunk(b"b")
