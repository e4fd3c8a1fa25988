"""HTTP/2 field lists to heads and back: what RFC 9113 calls malformed, and one reading with HTTP/1."""

from __future__ import annotations

import base64

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trioproxy import Headers, RequestHeader, ResponseHeader
from trioproxy._headers import Field
from trioproxy._messages import RequestFacts
from trioproxy.semantics._forwarding import strip_response, to_upstream
from trioproxy.semantics._framing import (
    HeadLimits,
    MessageRefused,
    check_request,
    check_response,
)
from trioproxy.semantics._h2 import (
    MalformedMessage,
    Pair,
    check_h2_request,
    check_h2_response,
    check_h2_trailers,
    request_fields,
    response_fields,
    trailer_fields,
    websocket_accept,
)

LIMITS = HeadLimits()
PSEUDO = {":method": "GET", ":scheme": "https", ":path": "/", ":authority": "a"}
WEBSOCKET = {
    ":method": "CONNECT",
    ":protocol": "websocket",
    ":scheme": "https",
    ":path": "/chat",
    ":authority": "a",
}


def pairs(*fields: tuple[str, str]) -> list[Pair]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]


def but(first: dict[str, str] = PSEUDO, /, **changes: str | None) -> dict[str, str]:
    """Return pseudo-fields with changes: ``method=None`` leaves :method out."""
    made = {**first, **{f":{name}": value for name, value in changes.items()}}
    return {name: value for name, value in made.items() if value is not None}


def request(
    *fields: tuple[str, str],
    end_stream: bool = True,
    limits: HeadLimits = LIMITS,
    scheme: str = "https",
    connect_protocol: bool = False,
    pseudo: dict[str, str] = PSEUDO,
    method: str | None = None,
    path: str | None = None,
    authority: str | None = None,
) -> RequestHeader:
    """Read a request of some pseudo-fields, or of the usual ones with another value."""
    given = {":method": method, ":path": path, ":authority": authority}
    first = {**pseudo, **{name: value for name, value in given.items() if value is not None}}
    return check_h2_request(
        pairs(*first.items(), *fields),
        end_stream=end_stream,
        limits=limits,
        scheme=scheme,
        connect_protocol=connect_protocol,
    )


def response(
    *fields: tuple[str, str],
    status: str | None = "200",
    end_stream: bool = False,
    limits: HeadLimits = LIMITS,
    method: str = "GET",
    extended: RequestHeader | None = None,
) -> ResponseHeader:
    first = [] if status is None else [(":status", status)]
    return check_h2_response(
        pairs(*first, *fields),
        end_stream=end_stream,
        limits=limits,
        request_method=method,
        extended=extended,
    )


# -- requests: the head -------------------------------------------------------------------------


def test_h2_14_a_request_becomes_a_head_with_host_first() -> None:
    head = request(("accept", "*/*"), ("x-a", "1"), authority="Example.com:8443", path="/a?b=c")
    assert head.method == "GET"
    assert head.target == b"/a?b=c"
    assert head.version == "HTTP/2"
    assert head.scheme == "https"
    assert head.headers.items() == [("Host", "Example.com:8443"), ("accept", "*/*"), ("x-a", "1")]
    facts = head.facts
    assert facts is not None
    assert facts == RequestFacts()
    assert not facts.has_body


def test_h2_12_the_scheme_of_a_request_is_never_trusted() -> None:
    assert request(scheme="http").scheme == "http"
    assert (
        check_h2_request(
            pairs((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")),
            end_stream=True,
            limits=LIMITS,
            scheme="https",
        ).scheme
        == "https"
    )


@pytest.mark.parametrize("host", ["a", "A", "a:80"])
def test_h2_12_host_alone_is_taken_and_moved_first(host: str) -> None:
    head = request(("x-a", "1"), ("host", host), pseudo=but(authority=None))
    assert head.headers.items() == [("Host", host), ("x-a", "1")]


def test_h2_12_a_host_that_equals_the_authority_is_one_field() -> None:
    head = request(("host", "EXAMPLE.com"), authority="example.COM")
    assert head.headers.items() == [("Host", "example.COM")]


def test_h2_14_cookie_crumbs_become_one_field_where_the_first_was() -> None:
    head = request(("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2"), ("cookie", "c=3"))
    assert head.headers.items() == [("Host", "a"), ("cookie", "a=1; b=2; c=3"), ("x-a", "1")]


def test_h2_14_content_without_a_length_counts_as_chunked() -> None:
    facts = request(method="POST", end_stream=False).facts
    assert facts is not None
    assert (facts.chunked, facts.content_length, facts.has_body) == (True, None, True)


@pytest.mark.parametrize(("text", "number"), [("5", 5), ("0005", 5), ("0", 0), ("00", 0)])
def test_h2_13_a_declared_length_is_kept_as_a_plain_number(text: str, number: int) -> None:
    head = request(("x-a", "1"), ("content-length", text), method="POST", end_stream=False)
    assert head.facts is not None
    assert (head.facts.chunked, head.facts.content_length) == (False, number)
    assert head.headers.get("content-length") == str(number)


def test_h2_13_a_length_of_nothing_may_come_with_the_end() -> None:
    facts = request(("content-length", "0"), method="POST").facts
    assert facts is not None
    assert (facts.content_length, facts.has_body) == (0, False)


def test_te_trailers_is_a_fact_and_goes_no_further() -> None:
    head = request(("te", "Trailers"), ("x-a", "1"))
    assert head.facts is not None
    assert head.facts.te_trailers
    assert to_upstream(head).headers.items() == [("Host", "a"), ("x-a", "1")]


def test_http2_settings_goes_no_further() -> None:
    assert "http2-settings" not in to_upstream(request(("http2-settings", "AAA"))).headers


def test_an_expectation_is_a_fact() -> None:
    head = request(("expect", "100-Continue"), method="POST", end_stream=False)
    assert head.facts is not None
    assert head.facts.expect_continue


def test_options_may_ask_for_all() -> None:
    assert request(method="OPTIONS", path="*").target == b"*"


# -- requests: malformed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "X-A", "x-A", "fo(o", "a b", "a:", ":", "x\x00", "x\r\ny", "x\x7f", "\xe9", " x", "x "],
)
def test_h2_11_a_name_that_is_not_a_lower_case_token_is_malformed(name: str) -> None:
    with pytest.raises(MalformedMessage):
        request((name, "v"))


@pytest.mark.parametrize(
    "value",
    [
        "a\x00b",
        "a\rb",
        "a\nb",
        "\n",
        "a\r\nx: y",
        "a\x01",
        "\x1f",
        "a\x7f",
        "\x0b",
        " a",
        "a ",
        "\ta",
        "a\t",
        " ",
        "\t",
    ],
)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_h2_11_controls_and_outer_blanks_in_a_value_are_malformed(value: str, place: str) -> None:
    fields = {
        "first": [("x-a", value), ("x-b", "v")],
        "middle": [("x-a", "v"), ("user-agent", value), ("x-b", "v")],
        "last": [("x-a", ""), ("cookie", value)],
    }
    with pytest.raises(MalformedMessage):
        request(*fields[place])


@pytest.mark.parametrize("value", ["", "a b", "a\tb", "\xe9\xff", "~", "a" * 9000])
def test_h2_11_other_values_pass(value: str) -> None:
    assert request(("x-a", value)).headers.get("x-a") == value


@pytest.mark.parametrize("name", list(PSEUDO))
def test_h2_11_a_pseudo_field_that_comes_twice_is_malformed(name: str) -> None:
    with pytest.raises(MalformedMessage):
        request((name, PSEUDO[name]))


@pytest.mark.parametrize("name", [":status", ":foo", ":", ":Method", ":method "])
def test_h2_11_an_unknown_pseudo_field_is_malformed(name: str) -> None:
    with pytest.raises(MalformedMessage):
        request((name, "x"))


@pytest.mark.parametrize("name", list(PSEUDO))
def test_h2_11_a_late_pseudo_field_is_malformed(name: str) -> None:
    with pytest.raises(MalformedMessage):
        request(("x-a", "1"), (name, PSEUDO[name]), pseudo=but(**{name[1:]: None}))


@pytest.mark.parametrize("name", ["method", "scheme", "path", "authority"])
def test_h2_11_a_missing_pseudo_field_is_malformed(name: str) -> None:
    with pytest.raises(MalformedMessage):
        request(pseudo=but(**{name: None}))


def test_h2_11_an_empty_list_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        check_h2_request([], end_stream=True, limits=LIMITS, scheme="http")
    with pytest.raises(MalformedMessage):
        check_h2_response([], end_stream=True, limits=LIMITS, request_method="GET")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connection", "close"),
        ("connection", ""),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
        ("te", ""),
    ],
)
def test_h2_11_fields_about_a_connection_are_malformed(name: str, value: str) -> None:
    with pytest.raises(MalformedMessage):
        request((name, value))


@pytest.mark.parametrize(
    "method", ["", "G T", "GET /admin HTTP/1.1", "GET\t", "G(T", "\xe9", "G" * 33, "GET\x00"]
)
def test_h2_12_a_method_that_is_no_token_is_malformed(method: str) -> None:
    with pytest.raises(MalformedMessage):
        request(method=method)


@pytest.mark.parametrize("scheme", ["", "ftp", "https ", "http:", "ws"])
def test_h2_12_a_scheme_other_than_http_is_malformed(scheme: str) -> None:
    with pytest.raises(MalformedMessage):
        request(pseudo=but(scheme=scheme))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "?a",
        "*",
        "/a b",
        "/ HTTP/1.1",
        "/a\x01",
        "/a\x7f",
        "/a#b",
        "/a\\b",
        "/\xe9",
        "/a\r\nx: y",
        "http://a/",
        "**",
    ],
)
def test_h2_12_a_path_that_is_none_is_malformed(path: str) -> None:
    with pytest.raises(MalformedMessage):
        request(path=path)


@pytest.mark.parametrize(
    "authority", ["", "u@a", "u:p@a", "a b", "a/", "a:x", "a:70000", "[::1", "[x]", "a,b", "\xe9"]
)
def test_h2_12_an_authority_that_is_none_is_malformed(authority: str) -> None:
    with pytest.raises(MalformedMessage):
        request(authority=authority)
    with pytest.raises(MalformedMessage):
        request(("host", authority), pseudo=but(authority=None))


@pytest.mark.parametrize("host", ["b", "a:443", "a.", ""])
def test_h2_12_a_host_that_differs_from_the_authority_is_malformed(host: str) -> None:
    with pytest.raises(MalformedMessage):
        request(("host", host))


def test_h2_12_two_hosts_are_malformed() -> None:
    with pytest.raises(MalformedMessage):
        request(("host", "a"), ("host", "a"))


@pytest.mark.parametrize(
    "lengths",
    [["5", "5"], ["5", "6"], ["5, 5"], [""], ["-1"], ["+5"], ["0x5"], ["5a"], [str(2**63)]],
)
def test_h2_13_several_lengths_or_none_that_is_one_are_malformed(lengths: list[str]) -> None:
    with pytest.raises(MalformedMessage):
        request(*[("content-length", each) for each in lengths], end_stream=False)


def test_h2_13_a_length_and_the_end_at_once_are_malformed() -> None:
    with pytest.raises(MalformedMessage):
        request(("content-length", "5"), method="POST", end_stream=True)


# -- requests: refused, as over HTTP/1 ----------------------------------------------------------


def refused(
    status: int,
    *fields: tuple[str, str],
    limits: HeadLimits = LIMITS,
    pseudo: dict[str, str] = PSEUDO,
) -> None:
    with pytest.raises(MessageRefused) as caught:
        request(*fields, limits=limits, pseudo=pseudo)
    assert caught.value.status == status


def test_h2_05_a_list_over_its_bound_is_431() -> None:
    size = sum(len(name) + len(value) + 32 for name, value in [*PSEUDO.items(), ("x-a", "")])
    fits = ("x-a", "v" * (65536 - size))
    assert request(fits).headers.get("x-a") == fits[1]
    refused(431, (fits[0], fits[1] + "v"))


def test_h2_05_too_many_fields_are_431() -> None:
    assert len(request(*[("x-a", "")] * 127).headers) == 128
    refused(431, *[("x-a", "")] * 128)


def test_h2_05_cookie_crumbs_are_one_field() -> None:
    assert len(request(*[("cookie", "a=b")] * 500).headers) == 2


def test_h2_05_what_is_malformed_and_too_large_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        request(("x-a", "v" * 70000), ("X", "y"))


def test_a_target_that_is_too_long_is_414() -> None:
    refused(414, pseudo=but(path="/" + "a" * 16384))


@pytest.mark.parametrize("expectation", ["200-ok", "", "100-continue, x"])
def test_an_expectation_that_cannot_be_met_is_417(expectation: str) -> None:
    refused(417, ("expect", expectation))


def test_trace_is_405_unless_allowed() -> None:
    refused(405, pseudo=but(method="TRACE"))
    assert request(method="TRACE", limits=HeadLimits(allow_trace=True)).method == "TRACE"


def test_h1_26_connect_is_405() -> None:
    refused(405, pseudo={":method": "CONNECT", ":authority": "a:443"})


@pytest.mark.parametrize(
    "name", ["content_length", "transfer_encoding", "x_forwarded_for", "host_", "_host", "te_"]
)
def test_h1_18_a_name_with_an_underscore_that_reads_like_another_is_400(name: str) -> None:
    refused(400, (name, "v"))


def test_h1_18_other_names_with_underscores_pass_unless_refused() -> None:
    assert request(("my_field", "v")).headers.get("my_field") == "v"
    refused(400, ("my_field", "v"), limits=HeadLimits(refuse_underscores=True))


# -- one reading --------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["accept", "cookie", "content-length", "expect", "host", "x-a", "x_a", "content_length", "te"]
)
VALUES = st.sampled_from(
    ["", "a", "b c", "0", "5", "05", "5,5", "100-continue", "trailers", "\xe9"]
)


@given(
    st.sampled_from(["GET", "POST", "OPTIONS", "TRACE", "CONNECT", "G T", "foo", ""]),
    st.sampled_from(["/", "/a?b", "*", "", "a", "/a#", "/a b", "/\\", "/\xe9", "/" + "a" * 20000]),
    st.sampled_from(["a", "a:1", "", "a@b", "a b", "[::1]", "a:99999"]),
    st.lists(st.tuples(NAMES, VALUES), max_size=4),
)
def test_h2_14_http_1_and_http_2_take_the_same_requests(
    method: str, path: str, authority: str, fields: list[tuple[str, str]]
) -> None:
    names = [name for name, _ in fields]
    assume("host" not in names)  # beside :authority it has rules of its own
    assume(("te" not in names) or ("te", "trailers") in fields)
    assume(all(value == "trailers" for name, value in fields if name == "te"))
    old: RequestHeader | None = None
    new: RequestHeader | None = None
    try:
        lines: list[Field] = [(b"host", b"Host", authority.encode("latin-1"))]
        lines += [(name, name, value) for name, value in pairs(*fields)]
        target = path.encode("latin-1")
        old = check_request(method.encode(), target, b"1.1", lines, LIMITS, scheme="https")
    except MessageRefused:
        pass
    pseudo = {":method": method, ":path": path, ":authority": authority}
    if method != "CONNECT":
        pseudo[":scheme"] = "https"
    try:
        new = request(*fields, pseudo=pseudo, end_stream=False)
    except (MalformedMessage, MessageRefused):
        pass
    assert (old is None) is (new is None)
    if old is not None and new is not None:
        assert (new.method, new.target) == (old.method, old.target)
        if names.count("cookie") < 2:
            assert new.headers == old.headers
        assert old.facts is not None
        assert new.facts is not None
        assert new.facts.content_length == old.facts.content_length
        assert new.facts.expect_continue == old.facts.expect_continue
        assert new.facts.te_trailers == old.facts.te_trailers


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=8) | st.sampled_from([b":method", b":path", b":status", b"te"]),
            st.binary(max_size=8) | st.sampled_from([b"GET", b"/", b"https", b"200"]),
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_any_fields_are_taken_or_refused(fields: list[Pair], end_stream: bool) -> None:
    outcomes: list[object] = []
    try:
        outcomes.append(
            check_h2_request(fields, end_stream=end_stream, limits=LIMITS, scheme="http")
        )
    except (MalformedMessage, MessageRefused) as exc:
        outcomes.append(exc)
    try:
        outcomes.append(
            check_h2_response(fields, end_stream=end_stream, limits=LIMITS, request_method="GET")
        )
    except (MalformedMessage, MessageRefused) as exc:
        outcomes.append(exc)
    try:
        outcomes.append(check_h2_trailers(fields))
    except (MalformedMessage, MessageRefused) as exc:
        outcomes.append(exc)
    assert len(outcomes) == 3


# -- extended CONNECT ---------------------------------------------------------------------------


def websocket(
    *fields: tuple[str, str],
    connect_protocol: bool = True,
    pseudo: dict[str, str] = WEBSOCKET,
) -> RequestHeader:
    return request(*fields, pseudo=pseudo, end_stream=False, connect_protocol=connect_protocol)


def test_h2_29_an_extended_connect_looks_like_an_upgrade() -> None:
    head = websocket(("sec-websocket-version", "13"))
    assert head.method == "GET"
    assert head.target == b"/chat"
    assert head.offers == b"websocket"
    assert head.headers.get("connection") == "upgrade"
    assert head.headers.get("sec-websocket-version") == "13"
    key = head.headers.get("sec-websocket-key")
    assert key is not None
    assert len(base64.b64decode(key, validate=True)) == 16
    assert key != websocket().headers.get("sec-websocket-key")
    facts = head.facts
    assert facts is not None
    assert facts.extended_connect
    assert facts.offers == (b"websocket",)
    assert not facts.has_body


def test_h2_29_its_upstream_request_keeps_the_offer() -> None:
    sent = to_upstream(websocket())
    assert sent.offers == b"websocket"
    assert "connection" not in sent.headers


def test_h2_29_a_key_that_the_client_sent_stays() -> None:
    assert websocket(("sec-websocket-key", "abc")).headers.get_all("sec-websocket-key") == ["abc"]


def test_h2_29_an_extended_connect_that_was_not_advertised_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        websocket(connect_protocol=False)


def test_h2_29_another_protocol_is_501() -> None:
    with pytest.raises(MessageRefused) as caught:
        websocket(pseudo=but(WEBSOCKET, protocol="connect-udp"))
    assert caught.value.status == 501


@pytest.mark.parametrize("name", ["scheme", "path", "authority"])
def test_h2_29_an_extended_connect_has_a_whole_target(name: str) -> None:
    with pytest.raises(MalformedMessage):
        websocket(pseudo=but(WEBSOCKET, **{name: None}))


@pytest.mark.parametrize("change", [{"method": "GET"}, {"path": "*"}, {"protocol": "a b"}])
def test_h2_29_a_protocol_belongs_to_connect(change: dict[str, str | None]) -> None:
    with pytest.raises(MalformedMessage):
        websocket(pseudo=but(WEBSOCKET, **change))


def test_h2_29_an_extended_connect_has_no_length() -> None:
    with pytest.raises(MalformedMessage):
        websocket(("content-length", "5"))


@pytest.mark.parametrize("extra", [":path", ":scheme"])
def test_h2_12_a_plain_connect_with_a_target_is_malformed(extra: str) -> None:
    with pytest.raises(MalformedMessage):
        request(pseudo={":method": "CONNECT", ":authority": "a:1", extra: PSEUDO[extra]})


def test_the_answer_to_a_key_is_that_of_rfc_6455() -> None:
    assert websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


# -- responses ----------------------------------------------------------------------------------


def test_a_response_becomes_a_head() -> None:
    head = response(("content-type", "text/plain"), ("set-cookie", "a"), ("set-cookie", "b"))
    assert (head.status, head.reason, head.version) == (200, None, "HTTP/2")
    assert head.headers.items() == [
        ("content-type", "text/plain"),
        ("set-cookie", "a"),
        ("set-cookie", "b"),
    ]


@pytest.mark.parametrize(
    ("status", "length", "end_stream", "method", "facts"),
    [
        # (content_length, has_body, chunked)
        ("200", None, False, "GET", (None, True, True)),
        ("200", "5", False, "GET", (5, True, False)),
        ("200", "05", False, "GET", (5, True, False)),
        ("200", "0", False, "GET", (0, False, False)),
        ("200", None, True, "GET", (None, False, False)),
        ("200", "0", True, "GET", (0, False, False)),
        ("200", "5", True, "HEAD", (5, False, False)),
        ("200", "5", False, "HEAD", (5, False, False)),
        ("200", None, False, "HEAD", (None, False, False)),
        ("204", None, True, "GET", (None, False, False)),
        ("304", "5", True, "GET", (5, False, False)),
        ("999", None, True, "GET", (None, False, False)),
    ],
)
def test_h2_13_how_the_content_of_a_response_ends(
    status: str,
    length: str | None,
    end_stream: bool,
    method: str,
    facts: tuple[int | None, bool, bool],
) -> None:
    fields = [] if length is None else [("content-length", length)]
    found = response(*fields, status=status, end_stream=end_stream, method=method).facts
    assert found is not None
    assert (found.content_length, found.has_body, found.chunked) == facts
    assert not found.until_close


@pytest.mark.parametrize(
    "status",
    [None, "", "20", "2000", "abc", "099", "000", "+20", " 200", "200 ", "99999", "2\xb20"],
)
def test_h2_26_a_status_that_is_none_is_malformed(status: str | None) -> None:
    with pytest.raises(MalformedMessage):
        response(status=status)


@pytest.mark.parametrize(
    "fields",
    [
        [(":status", "200")],
        [(":path", "/")],
        [("x-a", "1"), (":status", "200")],
        [("X-A", "1")],
        [("fo(o", "1")],
        [("", "1")],
        [("x-a", "a\r\nb")],
        [("x-a", "\x00")],
        [("x-a", "a ")],
        [("connection", "close")],
        [("keep-alive", "5")],
        [("proxy-connection", "close")],
        [("transfer-encoding", "chunked")],
        [("upgrade", "h2c")],
    ],
)
def test_h2_26_a_response_with_wrong_fields_is_malformed(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(MalformedMessage):
        response(*fields)


def test_h2_26_a_status_behind_a_field_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        response(("x-a", "1"), (":status", "200"), status=None)


@pytest.mark.parametrize("end_stream", [False, True])
def test_h2_26_a_101_is_malformed(end_stream: bool) -> None:
    with pytest.raises(MalformedMessage):
        response(status="101", end_stream=end_stream)


def test_h2_26_an_informational_response_does_not_end_its_stream() -> None:
    with pytest.raises(MalformedMessage):
        response(status="103", end_stream=True)
    head = response(("link", "</a>"), ("content-length", "5"), status="103")
    assert head.facts is not None
    assert not head.facts.has_body
    assert head.headers.items() == [("link", "</a>")]


@pytest.mark.parametrize("lengths", [["5", "5"], ["5", "6"], ["x"], [""], ["5,5"]])
def test_h2_13_a_wrong_length_of_a_response_is_malformed_unless_allowed(lengths: list[str]) -> None:
    fields = [("x-a", "1"), *[("content-length", each) for each in lengths], ("x-b", "2")]
    with pytest.raises(MalformedMessage):
        response(*fields)
    head = response(*fields, limits=HeadLimits(allow_invalid_length=True))
    assert head.headers.items() == [("x-a", "1"), ("x-b", "2")]
    assert head.facts is not None
    assert head.facts.chunked


def test_h2_13_a_length_and_the_end_of_a_response_at_once_are_malformed() -> None:
    with pytest.raises(MalformedMessage):
        response(("content-length", "5"), end_stream=True)


@pytest.mark.parametrize("fields", [[("x-a", "1")] * 129, [("x-a", "v" * 66000)]])
def test_h2_05_a_response_over_its_bounds_is_502(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(MessageRefused) as caught:
        response(*fields)
    assert caught.value.status == 502
    assert len(response(*[("x-a", "1")] * 128).headers) == 128


def test_h2_26_hop_by_hop_fields_that_are_no_fault_go_no_further() -> None:
    head = response(("te", "trailers"), ("x-a", "1"))
    strip_response(head)
    assert head.headers.items() == [("x-a", "1")]


def test_an_accepted_extended_connect_becomes_a_101() -> None:
    asked = websocket(("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="))
    head = response(("sec-websocket-protocol", "chat"), ("content-length", "0"), extended=asked)
    assert head.status == 101
    assert head.headers.items() == [
        ("sec-websocket-protocol", "chat"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ]
    assert head.facts is not None
    assert not head.facts.has_body
    assert head.facts.hop_by_hop


def test_a_refused_extended_connect_is_a_response() -> None:
    assert response(status="403", extended=websocket()).status == 403


# -- trailers -----------------------------------------------------------------------------------


def test_trailers_become_fields() -> None:
    trailers = check_h2_trailers(pairs(("grpc-status", "0"), ("x-a", "1"), ("x-a", "2")))
    assert trailers.items() == [("grpc-status", "0"), ("x-a", "1"), ("x-a", "2")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (":path", "/"),
        (":status", "200"),
        ("X-A", "1"),
        ("", "1"),
        ("x-a", " 1"),
        ("x-a", "\n"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
    ],
)
def test_h2_11_trailers_with_wrong_fields_are_malformed(name: str, value: str) -> None:
    with pytest.raises(MalformedMessage):
        check_h2_trailers(pairs(("x-b", "1"), (name, value)))


@pytest.mark.parametrize("fields", [[("x-a", "1")] * 33, [("x-a", "v" * 8186)]])
def test_h1_20_trailers_over_their_bounds_are_refused(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(MessageRefused) as caught:
        check_h2_trailers(pairs(*fields))
    assert caught.value.status == 400


@pytest.mark.parametrize("fields", [[("x-a", "1")] * 32, [("x-a", "v" * 8185)]])
def test_h1_20_trailers_within_their_bounds_pass(fields: list[tuple[str, str]]) -> None:
    assert len(check_h2_trailers(pairs(*fields))) == len(fields)


# -- writing ------------------------------------------------------------------------------------


def test_h2_15_a_request_is_written_with_its_pseudo_fields_first() -> None:
    head = RequestHeader(
        "POST", "/a?b", [("X-A", "1"), ("Host", "example.com"), ("Content-Length", "5")]
    )
    assert request_fields(head, scheme=b"https") == pairs(
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "example.com"),
        (":path", "/a?b"),
        ("x-a", "1"),
        ("content-length", "5"),
    )
    assert (b"content-length", b"5") not in request_fields(head, scheme=b"https", length=False)


def test_h2_15_a_request_without_host_has_no_authority() -> None:
    head = RequestHeader("GET", "/", [("Host", "")])
    assert [name for name, _ in request_fields(head, scheme=b"http")] == [
        b":method",
        b":scheme",
        b":path",
    ]


HOP_BY_HOP = [
    ("Connection", "close"),
    ("Keep-Alive", "5"),
    ("Proxy-Connection", "close"),
    ("TE", "gzip"),
    ("Transfer-Encoding", "chunked"),
    ("Upgrade", "websocket"),
    ("HTTP2-Settings", "AAA"),
]


def test_h2_15_fields_about_a_connection_are_not_written() -> None:
    fields = request_fields(RequestHeader("GET", "/", HOP_BY_HOP), scheme=b"http")
    assert all(name[:1] == b":" for name, _ in fields)
    head = ResponseHeader(200, [*HOP_BY_HOP, ("X-A", "1")])
    assert response_fields(head, date=None) == pairs((":status", "200"), ("x-a", "1"))
    trailers = Headers([*HOP_BY_HOP, ("Host", "a"), ("Content-Length", "5"), ("X-A", "1")])
    assert trailer_fields(trailers) == pairs(("x-a", "1"))


def test_h2_15_what_a_client_said_of_trailers_is_written_anew() -> None:
    lines: list[Field] = [(b"host", b"Host", b"a"), (b"te", b"TE", b"gzip;q=0.5, trailers")]
    head = to_upstream(check_request(b"GET", b"/", b"1.1", lines, LIMITS))
    assert request_fields(head, scheme=b"http")[-1] == (b"te", b"trailers")


def test_h2_15_blanks_around_a_value_are_not_written() -> None:
    head = ResponseHeader(200, Headers.trusted([(b"x-a", b"X-A", b" \ta b\t ")]))
    assert response_fields(head, date=None)[1:] == [(b"x-a", b"a b")]


def test_h2_29_an_offer_is_written_as_an_extended_connect() -> None:
    lines: list[Field] = [
        (b"host", b"Host", b"a"),
        (b"connection", b"Connection", b"Upgrade"),
        (b"upgrade", b"Upgrade", b"websocket"),
        (b"sec-websocket-key", b"Sec-WebSocket-Key", b"abc"),
        (b"sec-websocket-version", b"Sec-WebSocket-Version", b"13"),
    ]
    head = to_upstream(check_request(b"GET", b"/chat", b"1.1", lines, LIMITS))
    fields = request_fields(head, scheme=b"https", extended=True)
    assert sorted(fields) == sorted(pairs(*WEBSOCKET.items(), ("sec-websocket-version", "13")))


def test_a_final_response_gets_a_date_unless_it_has_one() -> None:
    date = b"Thu, 01 Jan 1970 00:00:00 GMT"
    assert response_fields(ResponseHeader(200), date=date)[1:] == [(b"date", date)]
    assert response_fields(ResponseHeader(200, [("Date", "x")]), date=date)[1:] == [(b"date", b"x")]
    assert response_fields(ResponseHeader(103), date=date) == [(b":status", b"103")]


@pytest.mark.parametrize(("status", "goes"), [(200, True), (304, True), (103, False), (204, False)])
def test_a_length_is_written_where_a_response_may_have_one(status: int, goes: bool) -> None:
    head = ResponseHeader(status, [("Content-Length", "5")])
    fields = response_fields(head, date=None)
    assert ((b"content-length", b"5") in fields) is goes
    assert (b"content-length", b"5") not in response_fields(head, date=None, length=False)


def test_h2_29_a_101_is_written_as_a_200() -> None:
    head = ResponseHeader(
        101,
        [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", "abc"),
            ("Sec-WebSocket-Protocol", "chat"),
        ],
    )
    assert response_fields(head, date=b"d") == pairs(
        (":status", "200"), ("sec-websocket-protocol", "chat"), ("date", "d")
    )


NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True).map(lambda name: f"X-{name}")
VALUE = st.from_regex(r"([!-~\xa0-\xff]([ -~\xa0-\xff\t]{0,8}[!-~\xa0-\xff])?)?", fullmatch=True)


@given(st.lists(st.tuples(NAME, VALUE), max_size=6), st.sampled_from(["GET", "PUT", "OPTIONS"]))
def test_h2_15_a_request_keeps_its_fields_over_http_2(
    fields: list[tuple[str, str]], method: str
) -> None:
    lines: list[Field] = [(b"host", b"Host", b"a:1")]
    lines += [(name.lower(), name, value) for name, value in pairs(*fields)]
    head = check_request(method.encode(), b"/p?q", b"1.1", list(lines), LIMITS)
    sent = request_fields(to_upstream(head), scheme=b"http")
    back = check_h2_request(sent, end_stream=True, limits=LIMITS, scheme="http")
    assert back == RequestHeader.trusted(
        method, b"/p?q", "HTTP/2", Headers.trusted(lines), "http", None
    )


@given(st.lists(st.tuples(NAME, VALUE), max_size=6), st.sampled_from([200, 204, 304, 404, 599]))
def test_h2_15_a_response_keeps_its_fields_over_http_2(
    fields: list[tuple[str, str]], status: int
) -> None:
    lines: list[Field] = [(name.lower(), name, value) for name, value in pairs(*fields)]
    head = check_response(status, None, b"1.1", list(lines), LIMITS, "GET")
    sent = response_fields(head, date=None)
    back = check_h2_response(sent, end_stream=True, limits=LIMITS, request_method="GET")
    assert (back.status, back.headers) == (status, Headers.trusted(lines))
