from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import Headers, RequestHeader, ResponseHeader
from trioproxy._headers import Field
from trioproxy.semantics._forwarding import (
    append_forwarded,
    append_via,
    filter_trailers,
    host_of,
    set_forwarded,
    strip_response,
    to_upstream,
)
from trioproxy.semantics._framing import HeadLimits, check_request, check_response

LIMITS = HeadLimits()


def _fields(*pairs: tuple[str, str]) -> list[Field]:
    return Headers(pairs).fields


def _request(*pairs: tuple[str, str]) -> RequestHeader:
    """Return a request as a codec hands it on."""
    fields = _fields(("Host", "h"), *pairs)
    return check_request(b"GET", b"/", b"1.1", fields, LIMITS)


def _response(*pairs: tuple[str, str]) -> ResponseHeader:
    return check_response(200, b"OK", b"1.1", _fields(*pairs), LIMITS, "GET")


HOP_BY_HOP = [
    ("Connection", "close"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "gzip"),
    ("Transfer-Encoding", "chunked"),
    ("Upgrade", "websocket"),
    ("HTTP2-Settings", "AAMAAABk"),
]


@pytest.mark.parametrize("pair", HOP_BY_HOP)
@pytest.mark.parametrize("by_hand", [False, True])
def test_h1_19_hop_by_hop_fields_are_stripped_both_ways(
    pair: tuple[str, str], by_hand: bool
) -> None:
    request, response = _request(pair, ("a", "1")), _response(pair, ("a", "1"))
    if by_hand:
        request.facts = response.facts = None
    assert to_upstream(request).headers.items() == [("Host", "h"), ("a", "1")]
    strip_response(response)
    assert response.headers.items() == [("a", "1")]


@pytest.mark.parametrize("by_hand", [False, True])
def test_h1_19_nominated_fields_are_stripped_both_ways(by_hand: bool) -> None:
    pairs = [("X-A", "1"), ("Connection", "x-a, X-B"), ("x-b", "2"), ("Connection", "\tx-c ,")]
    pairs += [("X-C", "3"), ("X-D", "4")]
    request, response = _request(*pairs), _response(*pairs)
    if by_hand:
        request.facts = response.facts = None
    assert to_upstream(request).headers.items() == [("Host", "h"), ("X-D", "4")]
    strip_response(response)
    assert response.headers.items() == [("X-D", "4")]


PROTECTED = [
    "Host",
    "Authorization",
    "Cookie",
    "Cache-Control",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Anything",
    "Via",
    "Date",
    "Set-Cookie",
]


@pytest.mark.parametrize("name", PROTECTED)
def test_h1_19_some_nominations_are_ignored(name: str) -> None:
    pairs = [("Connection", f"{name}, x-a"), ("X-A", "1")]
    if name != "Host":
        pairs.append((name, "kept"))
    sent = to_upstream(_request(*pairs)).headers
    assert name in sent
    assert "x-a" not in sent
    assert "connection" not in sent


@pytest.mark.parametrize("name", ["Content-Length", "Transfer-Encoding"])
def test_h1_19_framing_is_decided_before_nomination_is_looked_at(name: str) -> None:
    request = _request(("Connection", name), (name, "5" if name == "Content-Length" else "chunked"))
    assert request.facts is not None
    assert request.facts.has_body
    if name == "Content-Length":
        assert to_upstream(request).headers.get(name) == "5"


def test_h1_19_close_nominates_nothing() -> None:
    request = _request(("Connection", "close"), ("Close", "1"))
    assert to_upstream(request).headers.get("close") == "1"


def test_what_is_not_hop_by_hop_goes_on_in_order_and_case() -> None:
    pairs = [("Trailer", "x"), ("Proxy-Authorization", "Basic eA=="), ("b", "1"), ("A", "2")]
    request = _request(*pairs, ("b", "3"))
    sent = to_upstream(request)
    assert sent.headers.raw == request.headers.raw
    assert sent == request


def test_each_attempt_gets_a_copy_of_its_own() -> None:
    request = _request(("a", "1"), ("Connection", "close"))
    first = to_upstream(request)
    first.headers.set("a", "changed")
    first.path = "/changed"
    second = to_upstream(request)
    assert second.headers.get("a") == "1"
    assert second.path == "/"
    assert request.headers.get("connection") == "close"


NAMES = st.sampled_from(
    ["Connection", "TE", "Keep-Alive", "Upgrade", "X-A", "x-b", "Cookie", "Via", "Close", "Date"]
)
VALUES = st.lists(
    st.sampled_from(["x-a", "X-B", "close", "keep-alive", "cookie", "te", "connection", ""]),
    max_size=3,
).map(" , ".join)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.booleans())
def test_forwarding_twice_equals_forwarding_once(
    pairs: list[tuple[str, str]], by_hand: bool
) -> None:
    request, response = _request(*pairs), _response(*pairs)
    if by_hand:
        request.facts = response.facts = None
    once = to_upstream(request)
    # The next proxy reads it from the wire.
    again = check_request(b"GET", b"/", b"1.1", once.headers.fields.copy(), LIMITS)
    assert to_upstream(again).headers.raw == once.headers.raw
    assert to_upstream(once).headers.raw == once.headers.raw
    strip_response(response)
    stripped = response.headers.raw
    strip_response(response)
    assert response.headers.raw == stripped
    assert not {"connection", "te", "keep-alive", "upgrade"} & {
        name.lower() for name in [*once.headers, *response.headers]
    }


def test_h1_20_te_never_goes_on_and_is_remembered() -> None:
    request = _request(("TE", "trailers, deflate;q=0.5"))
    assert request.facts is not None
    assert request.facts.te_trailers
    assert "te" not in to_upstream(request).headers


NOT_IN_TRAILERS = [
    "Content-Length",
    "Transfer-Encoding",
    "Host",
    "Connection",
    "TE",
    "Trailer",
    "Authorization",
    "Cookie",
    "Set-Cookie",
    "Cache-Control",
    "Content-Type",
    "Content-Encoding",
    "Content-Range",
    "X-Forwarded-For",
    "X-Forwarded-Anything",
    "Forwarded",
    "Content_Length",
    "X_Forwarded_For",
]


@pytest.mark.parametrize("name", NOT_IN_TRAILERS)
def test_h1_20_trailers_that_mean_framing_routing_or_content_are_dropped(name: str) -> None:
    trailers = Headers([("X-Sum", "1"), (name, "2"), ("x-sum", "3")])
    assert filter_trailers(trailers).items() == [("X-Sum", "1"), ("x-sum", "3")]
    assert len(trailers) == 3


def test_h1_20_other_trailers_are_forwarded() -> None:
    pairs = [("Server-Timing", "a"), ("Digest", "b"), ("ETag", '"c"'), ("grpc-status", "0")]
    assert filter_trailers(Headers(pairs)).items() == pairs


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1:80", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("unix:/x", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_an_address_loses_its_port(address: str | None, host: str) -> None:
    assert host_of(address) == host


def test_the_forwarding_fields_are_set_anew_for_a_client_that_is_not_trusted() -> None:
    headers = Headers(
        [
            ("x-forwarded-for", "6.6.6.6"),
            ("X-FORWARDED-FOR", "7.7.7.7"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil"),
        ]
    )
    set_forwarded(headers, client="10.0.0.1:5000", proto="http", host="a:81")
    assert headers.items() == [
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "a:81"),
    ]


def test_what_a_client_said_of_its_host_goes_even_where_there_is_none() -> None:
    headers = Headers({"X-Forwarded-Host": "evil"})
    set_forwarded(headers, client=None, proto="http", host="")
    assert headers.items() == [("X-Forwarded-For", "unknown"), ("X-Forwarded-Proto", "http")]


def test_a_trusted_proxy_is_appended_to() -> None:
    headers = Headers(
        [
            ("X-Forwarded-For", "1.1.1.1, 2.2.2.2"),
            ("x-forwarded-for", "3.3.3.3"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "outer"),
        ]
    )
    set_forwarded(headers, client="[::1]:9", proto="http", host="a", trusted=True)
    assert headers.items() == [
        ("X-Forwarded-For", "1.1.1.1, 2.2.2.2, 3.3.3.3, ::1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "outer"),
    ]


def test_a_trusted_proxy_that_said_nothing_is_helped_out() -> None:
    headers = Headers()
    set_forwarded(headers, client="10.0.0.1:1", proto="http", host="a", trusted=True)
    assert headers.items() == [
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "a"),
    ]


def test_forwarded_gets_an_element_with_what_needs_quotes_quoted() -> None:
    headers = Headers()
    append_forwarded(headers, client="10.0.0.1:1", proto="http", host="a:81")
    assert headers.items() == [("Forwarded", 'for=10.0.0.1;proto=http;host="a:81"')]
    append_forwarded(headers, client="[2001:db8::1]:1", proto="https", host="")
    append_forwarded(headers, client=None, proto="http", host='a";for=evil\\')
    assert headers.get_all("forwarded") == [
        'for=10.0.0.1;proto=http;host="a:81", for="[2001:db8::1]";proto=https, '
        'for=unknown;proto=http;host="a\\";for=evil\\\\"'
    ]


def test_via_names_the_version_that_was_received() -> None:
    headers = Headers([("via", "1.0 first"), ("Via", "2 second")])
    append_via(headers, "HTTP/1.1", "trioproxy")
    append_via(headers, "HTTP/2", "again")
    assert headers.items() == [("Via", "1.0 first, 2 second, 1.1 trioproxy, 2 again")]


def test_a_forwarding_field_cannot_be_made_to_break_a_line() -> None:
    headers = Headers()
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        append_via(headers, "HTTP/1.1", "a\r\nb: c")
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        set_forwarded(headers, client="10.0.0.1", proto="http", host="a\r\nb: c")
