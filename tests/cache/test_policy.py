"""What a shared cache stores, reuses, freshens and forgets (RFC 9111), by tables."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy._headers import Headers
from trioproxy._messages import RequestFacts, RequestHeader, ResponseFacts, ResponseHeader
from trioproxy.cache._meta import CacheMeta
from trioproxy.cache._policy import (
    HEURISTIC,
    Cacheable,
    CacheMetaDefaults,
    NoCacheReason,
    RespCacheable,
    SharedPolicy,
    Uncacheable,
    Verdict,
    initial_age,
    merge_not_modified,
    request_cacheable,
    resp_cacheable,
    vary_fields,
)
from trioproxy.semantics._cache_control import CacheControl
from trioproxy.semantics._dates import format_http_date

NOW = 1_795_000_000.0
POLICY = SharedPolicy()
NOT_STORED = Uncacheable(NoCacheReason.OriginNotCache)
NOT_THIS_TIME = Uncacheable(NoCacheReason.Deferred)
DAY = 86400

# A value that is a number of seconds is a date, from NOW.
Fields = list[tuple[str, str | int]]


def headers(fields: Fields) -> Headers:
    return Headers(
        (name, format_http_date(NOW + value) if isinstance(value, int) else value)
        for name, value in fields
    )


def request(method: str = "GET", target: str = "/a?b", **fields: str) -> RequestHeader:
    items = [("Host", "example.com"), *((k.replace("_", "-"), v) for k, v in fields.items())]
    return RequestHeader(method, target, items)


def response(fields: Fields, status: int = 200) -> ResponseHeader:
    return ResponseHeader(status, headers(fields))


def store(
    fields: Fields,
    status: int = 200,
    *,
    asked: RequestHeader | None = None,
    policy: SharedPolicy = POLICY,
) -> RespCacheable:
    return policy.store(
        asked or request(), response(fields, status), request_time=NOW, response_time=NOW
    )


def stored(
    fields: Fields,
    status: int = 200,
    *,
    asked: RequestHeader | None = None,
    policy: SharedPolicy = POLICY,
) -> CacheMeta:
    found = store(fields, status, asked=asked, policy=policy)
    assert isinstance(found, Cacheable)
    return found.meta


def fresh_for(found: RespCacheable) -> float | None:
    """Return for how long a response is fresh from now on; None where it is not stored."""
    return found.meta.fresh_until - NOW if isinstance(found, Cacheable) else None


ETAG: tuple[str, str | int] = ("ETag", '"a"')

LIFETIMES: list[tuple[Fields, float | None]] = [
    # nothing said
    ([], None),
    ([("Date", 0)], None),
    ([ETAG], None),
    # max-age and s-maxage
    ([("Cache-Control", "max-age=3600")], 3600),
    ([("Cache-Control", "MaX-aGe=3600")], 3600),
    ([("Cache-Control", "foobar, max-age=3600")], 3600),
    ([("Cache-Control", "max-age=2147483648")], 2**31),
    ([("Cache-Control", "max-age=99999999999")], 2**31),
    ([("Cache-Control", "max-age=0")], None),
    ([("Cache-Control", "max-age=0"), ETAG], 0),
    ([("Cache-Control", "max-age=-3600")], None),
    ([("Cache-Control", "max-age=0"), ("Expires", 3600), ("Date", 0)], None),
    ([("Cache-Control", "max-age=3600"), ("Expires", -7200), ("Date", 0)], 3600),
    ([("Cache-Control", "max-age=3600"), ("Expires", "0"), ("Date", 0)], 3600),
    ([("Cache-Control", "s-maxage=3600")], 3600),
    ([("Cache-Control", "max-age=3600, s-maxage=1")], 1),
    ([("Cache-Control", "s-maxage=1"), ("Cache-Control", "max-age=3600")], 1),
    ([("Cache-Control", "max-age=1, s-maxage=3600")], 3600),
    ([("Cache-Control", "max-age=0, s-maxage=3600"), ("Expires", -10)], 3600),
    ([("Cache-Control", "max-age=3600, s-maxage=x"), ETAG], 0),
    ([("Cache-Control", "max-age=1800, max-age=1"), ETAG], 0),
    ([("Cache-Control", 'extension="max-age=3600", max-age=1')], 1),
    ([("Cache-Control", 'max-age=1, extension="max-age=3600"')], 1),
    # Expires
    ([("Expires", 30 * DAY), ("Date", 0)], 30 * DAY),
    ([("Expires", 300)], 300),
    ([("Expires", 10), ("Date", "foo")], 10),
    ([("Expires", 10), ("Date", 5), ("Date", 6)], 10),
    ([("Expires", "Tue, 19 Jan 2038 14:14:08 GMT"), ("Date", 0)], 352523248),
    ([("Expires", "Thursday, 18-Aug-50 02:01:18 GMT"), ("Date", 0)], 749400878),
    ([("Expires", "Thu Aug  8 02:01:18 2050"), ("Date", 0)], 748536878),
    ([("Expires", "THU, 18 AUG 2050 02:01:18 gMT"), ("Date", 0)], 749400878),
    ([("Expires", -30 * DAY), ("Date", 0)], None),
    ([("Expires", 0), ("Date", 0)], None),
    ([("Expires", 300), ("Date", 400)], None),
    ([("Expires", "0"), ("Date", 0)], None),
    ([("Expires", "0"), ("Date", 0), ETAG], 0),
    ([("Expires", "Thu, 18 Aug 2050 02:01:18 UTC"), ETAG], 0),
    ([("Expires", "Thu, 18 Aug 2050 2:01:18 GMT"), ETAG], 0),
    ([("Expires", 100), ("Expires", 200), ETAG], 0),
    ([("Expires", 100), ("Expires", 100)], 100),
    # Age and Date
    ([("Date", 0), ("Cache-Control", "max-age=3600"), ("Age", "1800")], 1800),
    ([("Date", 0), ("Cache-Control", "max-age=3600"), ("Age", "7200")], None),
    ([("Date", -10), ("Expires", 10), ("Age", "25")], None),
    ([("Date", 10), ("Expires", 20), ("Age", "15")], None),
    ([("Date", -600), ("Cache-Control", "max-age=3600")], 3000),
    ([("Date", -600), ("Cache-Control", "max-age=3600"), ("Age", "60")], 3000),
    ([("Date", 600), ("Cache-Control", "max-age=3600")], 3600),
    # no-cache
    ([("Cache-Control", "max-age=10000, no-cache"), ("Expires", 10000), ("Date", 0)], None),
    ([("Cache-Control", "no-cache"), ETAG], 0),
    ([("Cache-Control", "max-age=10000, No-CaChE"), ("Last-Modified", -9)], 0),
    ([("Cache-Control", 'no-cache="a", max-age=9')], 9),
    # what forbids to store
    ([("Cache-Control", "no-store")], None),
    ([("Cache-Control", "max-age=10000, No-StOrE"), ("Expires", 10000), ("Date", 0)], None),
    ([("Cache-Control", "private, max-age=3600")], None),
    ([("Cache-Control", 'private="a", max-age=3600')], 3600),
    # Pragma means nothing in a response
    ([("Cache-Control", "max-age=3600"), ("Pragma", "no-cache")], 3600),
    ([("Date", 0), ("Last-Modified", -10000), ("Pragma", "no-cache")], 1000),
    # stored stale, to be validated or served where the origin is gone
    ([("Expires", -5000), ("Last-Modified", -100000), ("Date", 0)], 0),
    ([("Cache-Control", "max-age=0, stale-while-revalidate=60")], 0),
    # targeted
    ([("CDN-Cache-Control", "max-age=3600")], 3600),
    ([("CDN-Cache-Control", "max-age=99999999999")], 2**31),
    ([("CDN-Cache-Control", "max-age=3600"), ("Date", 0), ("Age", "7200")], None),
    ([("CDN-Cache-Control", "max-age=0")], None),
    ([("CDN-Cache-Control", "foobar, max-age=3600")], 3600),
    ([("CDN-Cache-Control", "max-age=3600"), ("Expires", -10000), ("Date", 0)], 3600),
    ([("CDN-Cache-Control", "max-age=0"), ("Expires", 10000), ("Date", 0)], None),
    ([("CDN-Cache-Control", "foo"), ("Expires", 10000), ("Cache-Control", "max-age=9")], None),
    ([("CDN-Cache-Control", "max-age=3600"), ("Cache-Control", "max-age=1")], 3600),
    ([("CDN-Cache-Control", "max-age=1"), ("Cache-Control", "max-age=3600")], 1),
    ([("CDN-Cache-Control", "private"), ("Cache-Control", "max-age=10000")], None),
    ([("CDN-Cache-Control", "no-cache"), ("Cache-Control", "max-age=10000")], None),
    ([("CDN-Cache-Control", "no-store"), ("Cache-Control", "max-age=10000")], None),
    ([("CDN-Cache-Control", "max-age=10000"), ("Cache-Control", "no-store")], 10000),
    ([("CDN-Cache-Control", "max-age=10000, &&&&&"), ("Cache-Control", "no-store")], None),
    ([("CDN-Cache-Control", 'max-age="10000"'), ("Cache-Control", "no-store")], None),
    ([("CDN-Cache-Control", ""), ("Cache-Control", "max-age=5")], 5),
    ([("CDN-Cache-Control", "max-age =100"), ("Cache-Control", "max-age=1")], 1),
]


@pytest.mark.parametrize(("fields", "seconds"), LIFETIMES)
def test_c_12_how_long_a_response_is_fresh(fields: Fields, seconds: float | None) -> None:
    assert fresh_for(store(fields)) == seconds


def test_the_targets_are_an_option() -> None:
    fields: Fields = [("CDN-Cache-Control", "no-store"), ("My-CC", "max-age=5")]
    assert fresh_for(store(fields, policy=SharedPolicy(targets=("My-CC",)))) == 5
    fields = [("CDN-Cache-Control", "no-store"), ("Cache-Control", "max-age=6")]
    assert fresh_for(store(fields, policy=SharedPolicy(targets=()))) == 6


# --- Age


@pytest.mark.parametrize(
    ("values", "age"),
    [
        ([], 0),
        (["0"], 0),
        (["30"], 30),
        (["0030"], 30),
        (["7200, 0"], 7200),
        (["0, 7200"], 0),
        (["7200", "0"], 7200),
        (["0", "7200"], 0),
        (["3600", "3600"], 3600),
        (["2147483647"], 2147483647),
        (["2147483648"], 2**31),
        (["2147483649"], 2**31),
        (["9" * 5000], 2**31),
        (["abc"], 0),
        (["-7200"], 0),
        (["+7200"], 0),
        (["7200.0"], 0),
        (["7200;foo=bar"], 0),
        (["7200 0"], 0),
        ([""], 0),
        ([", 5"], 0),
        (["abc", "7200"], 0),
    ],
)
def test_c_12_the_first_age_counts_and_a_broken_one_not(values: list[str], age: int) -> None:
    head = response([("Age", value) for value in values])
    assert initial_age(head, request_time=NOW, response_time=NOW) == age


@pytest.mark.parametrize(
    ("date", "age", "delay", "expected"),
    [
        (None, None, 0.0, 0.0),
        (None, None, 2.5, 2.5),
        (None, 10, 2.5, 12.5),
        (-10, None, 0.0, 10.0),
        (-10, 5, 2.0, 10.0),
        (-10, 9, 2.0, 11.0),
        (10, None, 0.0, 0.0),
        (None, None, -5.0, 0.0),
    ],
)
def test_c_13_an_age_is_corrected_by_date_and_delay(
    date: int | None, age: int | None, delay: float, expected: float
) -> None:
    fields: Fields = []
    if date is not None:
        fields.append(("Date", date))
    if age is not None:
        fields.append(("Age", str(age)))
    found = initial_age(response(fields), request_time=NOW - delay, response_time=NOW)
    assert found == expected


def test_a_date_of_whole_seconds_makes_no_age_of_a_fraction() -> None:
    head = response([("Date", 0), ("Cache-Control", "max-age=1")])
    assert initial_age(head, request_time=NOW + 0.9, response_time=NOW + 0.9) == 0


# --- statuses

EXPLICIT: Fields = [("Cache-Control", "max-age=100"), ("Date", 0)]
IMPLICIT: Fields = [("Last-Modified", -DAY), ("Date", 0)]


@pytest.mark.parametrize(
    "status",
    [
        *(200, 203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 416, 499),
        *(500, 501, 502, 503, 504, 599, 600, 999),
    ],
)
def test_any_final_status_is_stored_by_explicit_freshness(status: int) -> None:
    assert fresh_for(store(EXPLICIT, status)) == 100
    stale: Fields = [("Expires", -5000), ("Last-Modified", -100000), ("Date", 0)]
    assert fresh_for(store(stale, status)) == 0


@pytest.mark.parametrize("status", [100, 101, 103, 206, 304])
def test_c_06_a_response_that_is_no_whole_one_is_never_stored(status: int) -> None:
    assert store([*EXPLICIT, ("Cache-Control", "public")], status) == NOT_STORED
    assert store([*EXPLICIT, ("CDN-Cache-Control", "max-age=9")], status) == NOT_STORED


@pytest.mark.parametrize("status", [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501])
def test_a_status_may_be_heuristically_fresh(status: int) -> None:
    assert status in HEURISTIC
    assert fresh_for(store(IMPLICIT, status)) == DAY / 10


@pytest.mark.parametrize(
    "status", [201, 202, 299, 302, 303, 307, 400, 403, 412, 451, 499, 500, 502, 503, 504, 599, 999]
)
def test_c_10_other_statuses_are_not_unless_they_are_public(status: int) -> None:
    assert store(IMPLICIT, status) == NOT_STORED
    assert fresh_for(store([*IMPLICIT, ("Cache-Control", "public")], status)) == DAY / 10


@pytest.mark.parametrize(
    ("modified", "date", "seconds"),
    [
        (-100, 0, 10.0),
        (-DAY, 0, 8640.0),
        (-1000 * DAY, 0, float(DAY)),
        (-DAY, None, 8640.0),
        (-200, -100, -90.0),  # 10 s of freshness, and 100 s old
        (-9, 0, None),
        (0, 0, None),
        (100, 0, None),
        ("yesterday", 0, None),
    ],
)
def test_heuristic_freshness_is_a_tenth_of_the_time_unchanged(
    modified: int | str, date: int | None, seconds: float | None
) -> None:
    fields: Fields = [("Last-Modified", modified)]
    if date is not None:
        fields.append(("Date", date))
    assert fresh_for(store(fields)) == seconds


def test_heuristics_are_an_option() -> None:
    assert store(IMPLICIT, policy=SharedPolicy(heuristic_fraction=0)) == NOT_STORED
    assert fresh_for(store(IMPLICIT, policy=SharedPolicy(heuristic_limit=60))) == 60
    assert fresh_for(store(EXPLICIT, policy=SharedPolicy(heuristic_limit=60))) == 100


@pytest.mark.parametrize(
    ("status", "value", "seconds"),
    [
        (200, "max-age=3600, no-store, must-understand", 3600),
        (404, "max-age=3600, must-understand", 3600),
        (599, "max-age=3600, no-store, must-understand", None),
        (599, "max-age=3600, must-understand", None),
        (999, "max-age=3600, must-understand", None),
        (200, "private, max-age=3600, no-store, must-understand", None),
    ],
)
def test_must_understand_stands_for_no_store_where_the_status_is_known(
    status: int, value: str, seconds: int | None
) -> None:
    assert fresh_for(store([("Cache-Control", value)], status)) == seconds


# --- what else decides whether it is stored


@pytest.mark.parametrize("target", ["/account/a.css", "/x.jpg", "/static/app.js?v=1", "/a.css;x"])
def test_c_03_a_suffix_makes_nothing_cacheable(target: str) -> None:
    asked = request(target=target)
    for fields in ([("Content-Type", "text/css")], [("Content-Type", "image/png"), ETAG]):
        assert store(list(fields), asked=asked) == NOT_STORED
    assert store([("Cache-Control", "private, max-age=9")], asked=asked) == NOT_STORED


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("max-age=3600", None),
        ("max-age=3600, public", 3600),
        ("max-age=3600, must-revalidate", 3600),
        ("s-maxage=3600", 3600),
        ("max-age=3600, proxy-revalidate", None),
        ("max-age=3600, public, private", None),
        ("max-age=3600, public, no-store", None),
    ],
)
def test_c_04_an_authorized_response_is_stored_only_where_it_says_so(
    value: str, seconds: int | None
) -> None:
    asked = request(Authorization="FOO")
    assert fresh_for(store([("Cache-Control", value)], asked=asked)) == seconds
    if seconds is None:
        targeted: Fields = [("CDN-Cache-Control", value), ("Cache-Control", "public")]
        assert store(targeted, asked=asked) == NOT_STORED


@pytest.mark.parametrize(
    ("fields", "by_default", "by_option"),
    [
        (EXPLICIT, None, 100),
        (IMPLICIT, None, None),
        ([("Cache-Control", 'max-age=9, no-cache="Set-Cookie"')], 9, 9),
        ([("Cache-Control", 'max-age=9, private="set-cookie"')], 9, 9),
    ],
)
def test_c_04_set_cookie_is_not_stored_unless_the_policy_says_so(
    fields: Fields, by_default: int | None, by_option: int | None
) -> None:
    fields = [*fields, ("Set-Cookie", "a=b")]
    assert fresh_for(store(fields)) == by_default
    option = SharedPolicy(store_set_cookie=True)
    assert fresh_for(store(fields, policy=option)) == by_option
    if by_default is not None:
        assert "set-cookie" not in stored(fields, policy=option).header.headers
    elif by_option is not None:
        assert stored(fields, policy=option).header.headers.get("set-cookie") == "a=b"


@pytest.mark.parametrize(
    "value", ["*", "*, *", ", *", "*, Foo", "Foo, *", "foo bar", "foo;bar", "(foo)"]
)
def test_c_07_what_varies_by_anything_is_not_stored(value: str) -> None:
    assert store([*EXPLICIT, ("Vary", value)]) == NOT_STORED
    assert store([*EXPLICIT, ("Vary", ""), ("Vary", value)]) == NOT_STORED
    assert vary_fields(headers([("Vary", value)])) is None


def test_c_06_what_a_range_brought_is_not_stored() -> None:
    asked = request(Range="bytes=0-1")
    assert store(EXPLICIT, asked=asked) == NOT_THIS_TIME
    head = response(EXPLICIT)
    found = POLICY.store(asked, head, request_time=NOW, response_time=NOW, sent=request())
    assert fresh_for(found) == 100
    found = POLICY.store(request(), head, request_time=NOW, response_time=NOW, sent=asked)
    assert found == NOT_THIS_TIME


def test_c_10_what_a_condition_or_head_left_over_is_not_stored() -> None:
    asked = request(If_Match='"a"')
    assert store(EXPLICIT, 412, asked=asked) == NOT_THIS_TIME
    assert store(EXPLICIT, 304, asked=request(If_None_Match='"a"')) == NOT_STORED
    assert fresh_for(store(EXPLICIT, 412)) == 100
    assert store(EXPLICIT, asked=request("HEAD")) == NOT_THIS_TIME
    found = POLICY.store(
        request("HEAD"), response(EXPLICIT), request_time=NOW, response_time=NOW, sent=request()
    )
    assert fresh_for(found) == 100


def test_c_16_what_came_with_two_framings_is_not_stored() -> None:
    head = response(EXPLICIT)
    head.facts = ResponseFacts(poisoned=True)
    assert POLICY.store(request(), head, request_time=NOW, response_time=NOW) == NOT_STORED


def test_c_15_a_get_with_a_body_is_neither_served_nor_stored() -> None:
    asked = request(Content_Length="3")
    asked.facts = RequestFacts(content_length=3)
    assert not request_cacheable(asked)
    assert store(EXPLICIT, asked=asked) == NOT_THIS_TIME
    assert POLICY.reuse(asked, stored(EXPLICIT), now=NOW) is Verdict.MISS
    asked.facts = RequestFacts(chunked=True)
    assert store(EXPLICIT, asked=asked) == NOT_THIS_TIME
    asked.facts = RequestFacts(content_length=0)
    assert fresh_for(store(EXPLICIT, asked=asked)) == 100


def test_an_offer_to_switch_protocols_goes_past_the_cache() -> None:
    asked = request(Upgrade="websocket")
    asked.facts = RequestFacts(offers=(b"websocket",))
    assert not request_cacheable(asked)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "get", "QUERY", "CONNECT"])
def test_other_methods_are_not_stored(method: str) -> None:
    assert store(EXPLICIT, asked=request(method)) == NOT_THIS_TIME
    assert POLICY.reuse(request(method), stored(EXPLICIT), now=NOW) is Verdict.MISS


@pytest.mark.parametrize(
    ("location", "fields", "status", "seconds"),
    [
        ("/a?b", EXPLICIT, 200, 100),
        ("", EXPLICIT, 200, 100),
        ("http://example.com/a?b", EXPLICIT, 200, 100),
        ("http://EXAMPLE.com:80/a?b", EXPLICIT, 200, 100),
        ("/a?b", [("Expires", 50), ("Date", 0)], 200, 50),
        ("/a", EXPLICIT, 200, None),
        ("https://example.com/a?b", EXPLICIT, 200, None),
        ("http://example.org/a?b", EXPLICIT, 200, None),
        ("/a?b", EXPLICIT, 201, None),
        ("/a?b", EXPLICIT, 404, None),
        ("/a?b", IMPLICIT, 200, None),
        ("/a?b", [("Cache-Control", "max-age=0"), ETAG], 200, None),
        ("http://[", EXPLICIT, 200, None),
        (None, EXPLICIT, 200, None),
    ],
)
def test_a_post_is_stored_where_it_shows_its_own_target(
    location: str | None, fields: Fields, status: int, seconds: int | None
) -> None:
    asked = request("POST", Content_Length="5")
    asked.facts = RequestFacts(content_length=5)
    fields = [*fields] if location is None else [*fields, ("Content-Location", location)]
    assert fresh_for(store(fields, status, asked=asked)) == seconds
    found = POLICY.stored_as(asked)
    assert (found.method, found.target) == ("GET", b"/a?b")
    assert request_cacheable(found)
    assert POLICY.stored_as(found) is found


# --- what is kept of a head


def test_c_13_hop_by_hop_nominated_and_proxy_fields_are_not_kept() -> None:
    dropped = ["Connection", "Keep-Alive", "TE", "Transfer-Encoding", "Upgrade", "Trailer", "Age"]
    dropped += ["Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization"]
    dropped += ["Proxy-Connection", "A", "B"]
    kept = ["Content-Encoding", "Content-Length", "Content-Location", "Content-Range", "ETag"]
    kept += ["Content-MD5", "Content-Type", "Clear-Site-Data", "Set-Cookie2", "X-Frame-Options"]
    kept += ["Content-Foo", "Warning", "Alt-Svc", "C"]
    fields: Fields = [(name, "1") for name in [*dropped, *kept] if name != "Connection"]
    head = response([*EXPLICIT, *fields, ("Connection", "a, B, close")])
    head.version = "HTTP/2"
    head.facts = ResponseFacts(hop_by_hop=True, nominated=(b"a", b"b"))
    for facts in (head.facts, None):
        head.facts = facts
        found = POLICY.store(request(), head, request_time=NOW, response_time=NOW)
        assert isinstance(found, Cacheable)
        header = found.meta.header
        assert {name.lower() for name in header.headers} == {
            name.lower() for name in [*kept, "Cache-Control", "Date"]
        }
        assert (header.version, header.facts) == ("HTTP/1.1", None)
    assert "connection" in head.headers  # the response that goes on is another object


def test_fields_that_no_cache_or_private_list_are_not_kept() -> None:
    fields: Fields = [("Cache-Control", 'no-cache="a, B"'), ("Cache-Control", 'private="c"')]
    fields += [("A", "1"), ("b", "2"), ("C", "3"), ("d", "4"), *EXPLICIT]
    assert {name.lower() for name in stored(fields).header.headers} == {
        "cache-control",
        "d",
        "date",
    }


def test_a_date_is_made_where_there_is_none_and_a_broken_one_stays() -> None:
    fields: Fields = [("Cache-Control", "max-age=9")]
    assert stored(fields).header.headers.get("date") == format_http_date(NOW)
    fields.append(("Date", "foo"))
    assert stored(fields).header.headers.get_all("date") == ["foo"]


def test_the_moments_are_kept() -> None:
    head = response([("Date", -30), ("Cache-Control", "max-age=60")])
    found = POLICY.store(request(), head, request_time=NOW - 2, response_time=NOW)
    assert isinstance(found, Cacheable)
    meta = found.meta
    assert (meta.created, meta.updated, meta.initial_age) == (NOW, NOW, 30)
    assert meta.fresh_until == NOW + 30
    assert meta.served_header(NOW + 5).headers.get("age") == "35"


# --- windows for stale responses


@pytest.mark.parametrize(
    ("value", "behind", "error"),
    [
        ("max-age=2", 0, DAY),
        ("max-age=2, stale-while-revalidate=5", 5, DAY),
        ("max-age=2, stale-if-error=60", 0, 60),
        ("max-age=2, stale-if-error=0", 0, 0),
        ("max-age=2, stale-while-revalidate=x, stale-if-error=y", 0, 0),
        ("max-age=2, must-revalidate, stale-if-error=60", 0, 0),
        ("max-age=2, proxy-revalidate, stale-while-revalidate=5", 0, 0),
        ("s-maxage=2, stale-while-revalidate=5, stale-if-error=60", 0, 0),
        ("no-cache, stale-while-revalidate=5, stale-if-error=60", 0, 0),
        ('max-age=2, no-cache="a", stale-while-revalidate=5', 5, DAY),
    ],
)
def test_how_long_a_stale_response_may_be_served(value: str, behind: int, error: int) -> None:
    meta = stored([("Cache-Control", value), ETAG])
    assert (meta.stale_while_revalidate, meta.stale_if_error) == (behind, error)
    stale = meta.fresh_until
    verdict = POLICY.reuse(request(), meta, now=stale)
    assert verdict is (Verdict.REVALIDATE_BEHIND if behind else Verdict.EXPIRED)
    assert POLICY.reuse(request(), meta, now=stale + behind) is Verdict.EXPIRED
    assert POLICY.serve_stale_on_error(meta, stale) is bool(error)
    assert not POLICY.serve_stale_on_error(meta, stale + error)


@pytest.mark.parametrize(
    ("value", "status", "served"),
    [
        ("max-age=2", None, True),
        ("max-age=2", 503, True),
        ("max-age=2", 500, False),
        ("max-age=2, stale-if-error=60", 500, True),
        ("max-age=2, stale-if-error=60", 504, True),
        ("max-age=2, stale-if-error=60", 501, False),
        ("max-age=2, stale-if-error=60", 404, False),
        ("max-age=2, must-revalidate", 503, False),
    ],
)
def test_which_failures_let_a_stale_response_be_served(
    value: str, status: int | None, served: bool
) -> None:
    meta = stored([("Cache-Control", value), ETAG])
    assert POLICY.serve_stale_on_error(meta, NOW + 10, status) is served


def test_stale_on_error_is_an_option() -> None:
    never = SharedPolicy(stale_on_error=0)
    meta = stored([("Cache-Control", "max-age=2"), ETAG], policy=never)
    assert not never.serve_stale_on_error(meta, NOW + 2)
    meta.disable_serve_stale()
    assert not POLICY.serve_stale_on_error(meta, NOW + 1)


# --- reuse, and what a request says

BEHIND: Fields = [("Cache-Control", "max-age=10, stale-while-revalidate=10"), ETAG]


@pytest.mark.parametrize(
    ("fields", "after", "directives", "verdict"),
    [
        (EXPLICIT, 99, "", Verdict.FRESH),
        (EXPLICIT, 100, "", Verdict.EXPIRED),
        (EXPLICIT, 10, "foo, bar=1", Verdict.FRESH),
        (EXPLICIT, 10, "no-store", Verdict.FRESH),
        (EXPLICIT, 10, "no-cache", Verdict.REFUSED),
        (EXPLICIT, 10, "max-age=0", Verdict.EXPIRED),
        (EXPLICIT, 0, "max-age=0", Verdict.EXPIRED),
        (EXPLICIT, 10, "max-age=9", Verdict.EXPIRED),
        (EXPLICIT, 10, "max-age=10", Verdict.FRESH),
        (EXPLICIT, 10, "max-age=x", Verdict.EXPIRED),
        ([*EXPLICIT, ("Age", "50")], 0, "max-age=49", Verdict.EXPIRED),
        (EXPLICIT, 10, "min-fresh=90", Verdict.FRESH),
        (EXPLICIT, 10, "min-fresh=91", Verdict.EXPIRED),
        ([*EXPLICIT, ("Age", "50")], 0, "min-fresh=51", Verdict.EXPIRED),
        (EXPLICIT, 10, "min-fresh=x", Verdict.FRESH),
        (BEHIND, 15, "min-fresh=0", Verdict.EXPIRED),
        # It came 4 s after it had become stale.
        ([*BEHIND, ("Age", "14")], 5, "", Verdict.REVALIDATE_BEHIND),
        ([*BEHIND, ("Age", "14")], 6, "", Verdict.EXPIRED),
        (EXPLICIT, 110, "max-stale", Verdict.STALE_ALLOWED),
        (EXPLICIT, 110, "max-stale=10", Verdict.STALE_ALLOWED),
        (EXPLICIT, 111, "max-stale=10", Verdict.EXPIRED),
        (EXPLICIT, 110, "max-stale=x", Verdict.EXPIRED),
        (EXPLICIT, 110, "max-stale=10, max-age=105", Verdict.EXPIRED),
        (EXPLICIT, 110, "max-stale=10, max-age=110", Verdict.STALE_ALLOWED),
        (EXPLICIT, 110, "max-stale, min-fresh=1", Verdict.EXPIRED),
        ([("Cache-Control", "s-maxage=100")], 110, "max-stale", Verdict.EXPIRED),
        ([("Cache-Control", "max-age=100, must-revalidate")], 110, "max-stale", Verdict.EXPIRED),
        ([("Cache-Control", "no-cache"), ETAG], 0, "max-stale", Verdict.EXPIRED),
        (EXPLICIT, 10, "only-if-cached", Verdict.FRESH),
        (EXPLICIT, 110, "only-if-cached", Verdict.ONLY_IF_CACHED),
        (EXPLICIT, 110, "only-if-cached, max-stale", Verdict.STALE_ALLOWED),
        (EXPLICIT, 10, "only-if-cached, no-cache", Verdict.ONLY_IF_CACHED),
        (None, 0, "", Verdict.MISS),
        (None, 0, "max-stale", Verdict.MISS),
        (None, 0, "no-cache", Verdict.MISS),
        (None, 0, "only-if-cached", Verdict.ONLY_IF_CACHED),
    ],
)
def test_what_is_done_with_a_stored_response(
    fields: Fields | None, after: int, directives: str, verdict: Verdict
) -> None:
    meta = None if fields is None else stored(fields)
    asked = request(Cache_Control=directives) if directives else request()
    assert POLICY.reuse(asked, meta, now=NOW + after) is verdict
    asked.method = "HEAD"
    assert POLICY.reuse(asked, meta, now=NOW + after) is verdict
    deaf = SharedPolicy(honour_request=False)
    expected = deaf.reuse(request(), meta, now=NOW + after)
    assert deaf.reuse(asked, meta, now=NOW + after) is expected


@pytest.mark.parametrize(
    ("directives", "verdict"),
    [
        ("", Verdict.REVALIDATE_BEHIND),
        ("max-stale", Verdict.REVALIDATE_BEHIND),
        ("max-age=1000", Verdict.EXPIRED),
        ("max-age=1000, max-stale", Verdict.REVALIDATE_BEHIND),
        ("only-if-cached", Verdict.REVALIDATE_BEHIND),
        ("no-cache", Verdict.REFUSED),
    ],
)
def test_a_request_may_not_take_what_is_being_revalidated(
    directives: str, verdict: Verdict
) -> None:
    meta = stored([("Cache-Control", "max-age=100, stale-while-revalidate=60")])
    assert POLICY.reuse(request(Cache_Control=directives), meta, now=NOW + 110) is verdict


def test_pragma_means_nothing_in_a_request() -> None:
    assert POLICY.reuse(request(Pragma="no-cache"), stored(EXPLICIT), now=NOW) is Verdict.FRESH


def test_a_request_that_says_no_store_is_not_stored_this_time() -> None:
    asked = request(Cache_Control="no-store")
    assert store(EXPLICIT, asked=asked) == NOT_THIS_TIME
    assert fresh_for(store(EXPLICIT, asked=asked, policy=SharedPolicy(honour_request=False))) == 100


# --- Vary


def variant(meta: CacheMeta, *fields: tuple[str, str], policy: SharedPolicy = POLICY) -> bool:
    """Tell whether the stored response is the variant that a request with these fields wants."""
    asked = RequestHeader("GET", "/a?b", [("Host", "example.com"), *fields])
    return policy.variance(meta, asked) == meta.variance


@pytest.mark.parametrize(
    ("vary", "first", "second", "same"),
    [
        ("Foo", [("Foo", "1")], [("Foo", "1")], True),
        ("Foo", [("Foo", "1")], [("FOO", "1")], True),
        ("Foo", [("Foo", "1")], [("Foo", "2")], False),
        ("Foo", [("Foo", "a")], [("Foo", "A")], False),
        ("Foo", [], [("Foo", "1")], False),
        ("Foo", [("Foo", "1")], [], False),
        ("Foo", [], [("Foo", "")], False),
        ("Foo", [], [], True),
        ("Foo", [("Other", "2")], [("Other", "3")], True),
        ("Foo, Bar", [("Foo", "1"), ("Bar", "a")], [("Bar", "a"), ("Foo", "1")], True),
        ("Foo, Bar", [("Foo", "1"), ("Bar", "a")], [("Foo", "2"), ("Bar", "a")], False),
        ("Foo, Bar", [("Foo", "1"), ("Bar", "2")], [("Foo", "2"), ("Bar", "1")], False),
        ("Foo, Bar, Baz", [("Foo", "1"), ("Baz", "7")], [("Foo", "1"), ("Baz", "7")], True),
        ("Foo", [("Foo", "1, 2")], [("Foo", "1"), ("Foo", "2")], True),
        ("Foo", [("Foo", "1,2")], [("Foo", " 1,\t2 ")], True),
        ("Foo", [("Foo", "1, 2")], [("Foo", "2, 1")], False),
        ("Foo", [("Foo", '"a, b"')], [("Foo", '"a,b"')], False),
        ("Cookie", [("Cookie", "a=1, 2")], [("Cookie", "a=1,2")], False),
        ("Accept-Language", [("Accept-Language", "en, de")], [("Accept-Language", "DE ,eN")], True),
        ("Accept-Language", [("Accept-Language", "en, de")], [("Accept-Language", "en")], False),
        (
            "Accept-Language",
            [("Accept-Language", "en;q=0.5, de")],
            [("Accept-Language", "de;q=1.0, en; Q=0.50")],
            True,
        ),
        (
            "Accept-Language",
            [("Accept-Language", "en;q=0.5, de")],
            [("Accept-Language", "en, de;q=0.5")],
            False,
        ),
        (
            "Accept-Encoding",
            [("Accept-Encoding", "gzip, br")],
            [("Accept-Encoding", "BR,gzip")],
            True,
        ),
        (
            "Accept-Encoding",
            [("Accept-Encoding", "gzip, br;q=0")],
            [("Accept-Encoding", "gzip, br")],
            False,
        ),
        ("Accept", [("Accept", "text/html;a=B")], [("Accept", "text/HTML ; a=B")], True),
        ("Accept", [("Accept", "text/html;a=B")], [("Accept", "text/html;a=b")], False),
        ("Accept", [("Accept", "a/b;q=2")], [("Accept", "a/b")], False),
    ],
)
def test_c_07_a_variant_is_chosen_by_normalised_fields(
    vary: str, first: list[tuple[str, str]], second: list[tuple[str, str]], same: bool
) -> None:
    asked = RequestHeader("GET", "/a?b", [("Host", "example.com"), *first])
    meta = stored([*EXPLICIT, ("Vary", vary)], asked=asked)
    assert variant(meta, *first)
    assert variant(meta, *second) is same


def test_c_07_long_fields_are_compared_as_well() -> None:
    long = "a, " * 300
    asked = request(Foo=long + "b")
    vary = ", ".join([f"x{number}" for number in range(200)])
    meta = stored([*EXPLICIT, ("Vary", vary), ("Vary", "Foo")], asked=asked)
    assert variant(meta, ("Foo", "a," * 300 + "b"))
    assert not variant(meta, ("Foo", long + "c"))
    assert not variant(meta, ("Foo", long + "b"), ("x199", "1"))


def test_c_07_a_response_without_vary_fits_every_request() -> None:
    meta = stored(EXPLICIT)
    assert meta.variance is None
    assert variant(meta, ("Foo", "1"))


def test_c_07_vary_that_changes_keys_anew() -> None:
    meta = stored([*EXPLICIT, ("Vary", "Foo")], asked=request(Foo="1", Bar="1"))
    more = stored([*EXPLICIT, ("Vary", "Foo"), ("Vary", "bar")], asked=request(Foo="1", Bar="1"))
    assert vary_fields(more.header.headers) == (b"bar", b"foo")
    assert meta.variance != more.variance
    assert variant(meta, ("Foo", "1"), ("Bar", "2"))
    assert not variant(more, ("Foo", "1"), ("Bar", "2"))


LANGUAGE: Fields = [*EXPLICIT, ("Vary", "Accept-Language, Foo"), ("Content-Language", "de")]


@pytest.mark.parametrize(
    ("second", "selected"),
    [
        ([("Accept-Language", "fr;q=0.5, DE;q=1.0")], True),
        ([("Accept-Language", "de")], True),
        ([("Accept-Language", "de, fr")], False),
        ([("Accept-Language", "fr, de;q=0.5")], False),
        ([("Accept-Language", "de;q=0")], False),
        ([("Accept-Language", "de"), ("Foo", "1")], False),
        ([], False),
    ],
)
def test_the_language_that_a_client_likes_best_is_selected_by_an_option(
    second: list[tuple[str, str]], selected: bool
) -> None:
    asked = request(Accept_Language="en, de")
    policy = SharedPolicy(select_language=True)
    meta = stored(LANGUAGE, asked=asked, policy=policy)
    assert variant(meta, *second, policy=policy) is selected
    assert variant(meta, ("Accept-Language", "de, en"), policy=policy)
    assert not variant(stored(LANGUAGE, asked=asked), *second)


# --- 304


def update(
    meta: CacheMeta,
    fields: Fields,
    *,
    asked: RequestHeader | None = None,
    after: int = 1000,
) -> RespCacheable:
    return POLICY.update(
        asked or request(),
        meta,
        response(fields, 304),
        request_time=NOW + after,
        response_time=NOW + after,
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "kept"),
    [
        ("Test-Header", "a", "b", "b"),
        ("Content-Foo", "a", "b", "b"),
        ("Content-Location", "/foo", "/bar", "/bar"),
        ("Content-MD5", "a", "b", "b"),
        ("Content-Security-Policy", "a", "b", "b"),
        ("X-Frame-Options", "deny", "sameorigin", "sameorigin"),
        ("Vary", "a", "b", "b"),
        ("Content-Length", "36", "10", "36"),
        ("Content-Encoding", "gzip", "br", "gzip"),
        ("Content-Range", "a", "b", "a"),
        ("Content-Type", "text/plain", "text/html", "text/plain"),
    ],
)
def test_c_10_a_304_replaces_all_but_what_describes_the_content(
    name: str, old: str, new: str, kept: str
) -> None:
    meta = stored([*EXPLICIT, ETAG, (name, old), (name, old), ("Only", "here")])
    found = update(meta, [ETAG, (name, new), ("New", "1"), ("Date", 1000)])
    assert isinstance(found, Cacheable)
    fields = found.meta.header.headers
    assert set(fields.get_all(name)) == {kept}
    assert (fields.get("only"), fields.get("new")) == ("here", "1")
    assert found.meta.status == 200
    assert meta.header.headers.get_all(name) == [old, old]


@pytest.mark.parametrize(
    "name", ["Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Proxy-Connection", "A"]
)
def test_c_10_hop_by_hop_fields_of_a_304_are_not_kept(name: str) -> None:
    meta = stored([*EXPLICIT, ETAG])
    found = update(meta, [("Connection", "a"), (name, "a"), ("B", "2")])
    assert isinstance(found, Cacheable)
    assert name not in found.meta.header.headers
    assert found.meta.header.headers.get("b") == "2"


def test_a_304_freshens_from_its_own_moment() -> None:
    meta = stored([*EXPLICIT, ETAG, ("Age", "40"), ("Vary", "Foo")])
    meta.extensions["x"] = b"y"
    found = update(meta, [ETAG, ("Cache-Control", "max-age=60"), ("Age", "7")])
    assert isinstance(found, Cacheable)
    new = found.meta
    assert (new.created, new.updated, new.initial_age) == (NOW, NOW + 1000, 7)
    assert new.fresh_until == NOW + 1053
    assert new.header.headers.get("date") == format_http_date(NOW + 1000)
    assert (new.variance, new.extensions) == (meta.variance, {"x": b"y"})
    without = update(meta, [ETAG])
    assert isinstance(without, Cacheable)
    assert (without.meta.initial_age, without.meta.fresh_until) == (0, NOW + 1100)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ([ETAG], [ETAG], True),
        ([ETAG], [("ETag", 'W/"a"')], True),
        ([ETAG], [("ETag", '"b"')], False),
        ([ETAG], [], True),
        ([("Last-Modified", -10)], [("Last-Modified", -10)], True),
        ([("Last-Modified", -10)], [("Last-Modified", -9)], False),
        ([ETAG, ("Last-Modified", -10)], [ETAG, ("Last-Modified", -9)], True),
        ([("Last-Modified", -10)], [ETAG, ("Last-Modified", -10)], True),
        ([("Last-Modified", -10)], [ETAG], True),
    ],
)
def test_c_10_a_304_freshens_only_the_response_that_it_validated(
    old: Fields, new: Fields, same: bool
) -> None:
    found = update(stored([*EXPLICIT, *old]), new)
    assert isinstance(found, Cacheable) is same
    if not same:
        assert found == Uncacheable(NoCacheReason.UpstreamError)


@pytest.mark.parametrize(
    "fields",
    [
        [("Cache-Control", "no-store")],
        [("Cache-Control", "private")],
        [("Vary", "*")],
        [("Set-Cookie", "a=b")],
    ],
)
def test_a_304_may_take_back_what_was_allowed(fields: Fields) -> None:
    assert update(stored([*EXPLICIT, ETAG]), [*fields, ETAG]) == NOT_STORED


def test_a_304_to_a_request_that_says_no_store_freshens_nothing() -> None:
    found = update(stored([*EXPLICIT, ETAG]), [ETAG], asked=request(Cache_Control="no-store"))
    assert found == NOT_THIS_TIME


def test_merging_leaves_both_heads_as_they_were() -> None:
    old, news = response([("A", "1"), ("Age", "5")]), response([("A", "2")], 304)
    merged = merge_not_modified(old, news)
    assert merged.headers.items() == [("A", "2")]
    assert merged.status == 200
    assert old.headers.get("age") == "5"
    assert news.headers.items() == [("A", "2")]


# --- invalidation


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "foo", "get"])
@pytest.mark.parametrize("status", [200, 201, 204, 299, 301, 303, 304])
def test_c_11_an_unsafe_method_invalidates_its_target(method: str, status: int) -> None:
    [found] = POLICY.invalidates(request(method), response([], status))
    assert (found.method, found.target, found.authority) == ("GET", b"/a?b", "example.com")


@pytest.mark.parametrize("status", [100, 400, 404, 412, 500, 503, 600])
def test_c_11_a_failed_one_invalidates_nothing(status: int) -> None:
    assert POLICY.invalidates(request("POST"), response([("Location", "/x")], status)) == []


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "SEARCH", "QUERY", "CONNECT"]
)
def test_c_11_a_safe_method_invalidates_nothing(method: str) -> None:
    assert POLICY.invalidates(request(method), response([("Location", "/x")])) == []


@pytest.mark.parametrize("name", ["Location", "Content-Location"])
@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("/x", b"/x"),
        ("x", b"/x"),
        ("?y", b"/a?y"),
        ("http://example.com/x?y", b"/x?y"),
        ("HTTP://EXAMPLE.COM:80/x", b"/x"),
        ("http://example.com", b"/"),
        ("//example.com/x", b"/x"),
        ("/x#fragment", b"/x"),
        ("/a?b", None),
        ("", None),
        ("https://example.com/x", None),
        ("http://example.com:81/x", None),
        ("http://example.org/x", None),
        ("//example.org/x", None),
        ("http://user@example.com/x", None),
        ("http://example.com@example.org/x", None),
        ("ftp://example.com/x", None),
        ("javascript:alert(1)", None),
        ("http://[x", None),
        ("/ä", None),
        ("/a b", None),
        ("/a\\b", None),
    ],
)
def test_c_11_locations_count_within_the_same_origin(
    name: str, reference: str, target: bytes | None
) -> None:
    found = POLICY.invalidates(request("POST"), response([(name, reference)], 201))
    assert [each.target for each in found] == [b"/a?b", *([] if target is None else [target])]


def test_c_11_options_asterisk_has_no_target() -> None:
    assert POLICY.invalidates(request("FOO", "*"), response([])) == []


# --- the bare helper

DEFAULTS = CacheMetaDefaults(lambda status: 7 if status == 200 else None, 3, 4)


@pytest.mark.parametrize(
    ("fields", "authorized", "seconds"),
    [
        ([], False, 7),
        ([], True, None),
        ([("Cache-Control", "max-age=60")], False, 60),
        ([("Cache-Control", "max-age=60")], True, None),
        ([("Cache-Control", "max-age=60, public")], True, 60),
        ([("Cache-Control", "s-maxage=60")], True, 60),
        ([("Cache-Control", "must-revalidate")], True, 7),
        ([("Cache-Control", "no-store, max-age=60")], False, None),
        ([("Cache-Control", "private, max-age=60")], False, None),
        ([("Cache-Control", 'private="a", max-age=60')], False, 60),
        ([("Cache-Control", "no-cache, max-age=60")], False, 0),
        ([("Cache-Control", "max-age=60, s-maxage=5")], False, 5),
        ([("Cache-Control", "max-age=60, s-maxage=x")], False, 0),
        ([("Cache-Control", "max-age=0")], False, 0),
        ([("Cache-Control", "max-age=x"), ("Expires", 60)], False, 0),
        ([("Expires", 60)], False, 60),
        ([("Expires", "0")], False, 0),
        ([("Expires", 60), ("Expires", 61)], False, 0),
        ([("Cache-Control", "max-age=60"), ("Age", "50")], False, 10),
        ([("Cache-Control", "max-age=60"), ("Set-Cookie", "a=b")], False, 60),
        ([("Vary", "*")], False, None),
        ([("Last-Modified", -DAY)], False, 7),
    ],
)
def test_c_12_the_helper_decides_by_the_same_rules(
    fields: Fields, authorized: bool, seconds: float | None
) -> None:
    head = response(fields)
    found = resp_cacheable(CacheControl.of(head.headers), head, authorized, DEFAULTS, now=NOW)
    assert fresh_for(found) == seconds


def test_the_helper_takes_what_is_missing_from_the_defaults() -> None:
    def decide(status: int, value: str | None = None) -> RespCacheable:
        cc = None if value is None else CacheControl.parse(value.encode())
        return resp_cacheable(cc, response([], status), False, DEFAULTS, now=NOW)

    found = decide(200)
    assert isinstance(found, Cacheable)
    assert (found.meta.stale_while_revalidate, found.meta.stale_if_error) == (3, 4)
    found = decide(200, "max-age=9, stale-while-revalidate=30, stale-if-error=40")
    assert isinstance(found, Cacheable)
    assert (found.meta.stale_while_revalidate, found.meta.stale_if_error) == (30, 40)
    found = decide(200, "max-age=9, must-revalidate, stale-if-error=40")
    assert isinstance(found, Cacheable)
    assert (found.meta.stale_while_revalidate, found.meta.stale_if_error) == (0, 0)
    assert decide(404) == NOT_STORED
    assert fresh_for(decide(404, "max-age=9")) == 9
    assert fresh_for(decide(304)) == 7
    assert decide(206, "max-age=9") == NOT_STORED
    assert resp_cacheable(None, response([]), False, CacheMetaDefaults(), now=NOW) == NOT_STORED


# --- reasons and properties


def test_reasons_are_compared_by_value() -> None:
    assert NoCacheReason.Custom("x") == NoCacheReason.Custom("x")
    assert NoCacheReason.Custom("Deferred") != NoCacheReason.Deferred
    assert str(NoCacheReason.OriginNotCache) == "OriginNotCache"
    for name in ("NeverEnabled", "ResponseTooLarge", "PredictedResponseTooLarge", "StorageError"):
        assert getattr(NoCacheReason, name) == NoCacheReason(name)
    for name in ("DeclinedToUpstream", "UpstreamError", "CacheLockGiveUp", "CacheLockTimeout"):
        assert getattr(NoCacheReason, name) == NoCacheReason(name)


_DIRECTIVES = ["no-store", "private", "no-cache", "public", "must-revalidate", "must-understand"]
_DIRECTIVES += ["max-age=10", "max-age=x", "s-maxage=5", 'private="a"', "stale-if-error=9"]
_FIELDS: list[tuple[str, str | int]] = [
    ("Expires", 50),
    ("Expires", "0"),
    ("Age", "7"),
    ("Age", "x"),
    ("Date", -3),
    ("Last-Modified", -1000),
    ("Vary", "Foo"),
    ("Vary", "*"),
    ("Set-Cookie", "a=b"),
    ETAG,
    ("CDN-Cache-Control", "max-age=20"),
    ("CDN-Cache-Control", "no-store"),
]


@given(
    directives=st.lists(st.sampled_from(_DIRECTIVES), max_size=4),
    fields=st.lists(st.sampled_from(_FIELDS), max_size=5),
    status=st.sampled_from([200, 204, 206, 302, 304, 404, 500, 599]),
    authorized=st.booleans(),
    after=st.integers(0, 100),
)
def test_nothing_forbidden_is_stored_and_nothing_stale_is_fresh(
    directives: list[str],
    fields: Fields,
    status: int,
    authorized: bool,
    after: int,
) -> None:
    said: Fields = [("Cache-Control", value) for value in directives]
    asked = request(Authorization="x") if authorized else request()
    found = store([*said, *fields], status, asked=asked)
    if isinstance(found, Uncacheable):
        return
    meta = found.meta
    assert status not in (206, 304)
    assert ("Vary", "*") not in fields
    assert ("Set-Cookie", "a=b") not in fields
    targeted = any(name == "CDN-Cache-Control" for name, _ in fields)
    if not targeted:
        assert "private" not in directives
        assert "no-store" not in directives or "must-understand" in directives
        if authorized:
            assert {"public", "must-revalidate", "s-maxage=5"} & set(directives)
        if "no-cache" in directives:
            assert meta.fresh_until <= NOW
    now = NOW + after
    verdict = POLICY.reuse(asked, meta, now=now)
    assert (verdict is Verdict.FRESH) == (now < meta.fresh_until)
    assert meta.age(now) >= after
    assert CacheMeta.from_bytes(meta.to_bytes()) == meta


def test_every_verdict_is_reached() -> None:
    fields: Fields = [("Cache-Control", "max-age=10, stale-while-revalidate=10")]
    meta = stored(fields)
    seen = set()
    for directives, after, held in itertools.product(
        ("", "no-cache", "only-if-cached", "max-stale"), (0, 15, 25), (meta, None)
    ):
        asked = request(Cache_Control=directives)
        seen.add(POLICY.reuse(asked, held, now=NOW + after))
    assert seen == set(Verdict)


def test_the_policy_is_a_value() -> None:
    assert attrs.evolve(POLICY, stale_on_error=1.0) != POLICY
    assert SharedPolicy() == POLICY
