"""Cache-Control, and what stands before it (RFC 9111 section 5.2, RFC 9213)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy._headers import Headers
from trioproxy.semantics._cache_control import MAX_SECONDS, CacheControl

NUMBERS = ("max-age", "s-maxage", "stale-while-revalidate", "stale-if-error", "min-fresh")


def parse(value: str) -> CacheControl:
    return CacheControl.parse(value.encode("latin-1"))


def targeted(*values: str) -> CacheControl | None:
    headers = Headers([("CDN-Cache-Control", value) for value in values])
    return CacheControl.targeted(headers, ["CDN-Cache-Control"])


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("{}=3600", 3600),
        ("{}=0", 0),
        ("{}=003600", 3600),
        ('{}="3600"', 3600),
        ("foobar, {}=3600", 3600),
        ("{}=3600,", 3600),
        (", ,{}=3600", 3600),
        ("a=b=c;{}=3600", 3600),
        ('x="max-age=1, s-maxage=1", {}=3600', 3600),
        ('x="a\\"b", {}=3600', 3600),
        ("{}=3600, {}=3600", 3600),
        ("foo", None),
        ('x="{}=3600"', None),
        ("", None),
    ],
)
def test_a_number_is_read(name: str, value: str, seconds: int | None) -> None:
    found = parse(value.replace("{}", name))
    assert found.seconds(name) == getattr(found, name.replace("-", "_")) == seconds
    shouted = parse(value.replace("{}", name.title()))
    assert shouted.seconds(name) == seconds


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        "{}",
        "{}=",
        "{}=abc",
        "{}=-3600",
        "{}=+3600",
        "{}=3600.0",
        "{}=3600.5",
        "{}=a3600",
        "{}=3600a",
        "{}='3600'",
        "{}=3600 1",
        "{}=0x10",
        "{}=3_600",
        "{}=³",
        "{} =3600",
        "{}= 3600",
        '{}="3600',
        '{}="3600"1',
        'x="open, {}=3600',
        "{}=1800, {}=1",
        "{}=1, {}=1800",
        "{}=1800, {}=abc",
        "{}, {}=1800",
    ],
)
def test_c_12_a_broken_or_contradicted_number_is_nothing(name: str, value: str) -> None:
    assert parse(value.replace("{}", name)).seconds(name) == 0


@pytest.mark.parametrize(
    "number", ["2147483648", "2147483649", "99999999999", "0" * 50 + "9" * 5000]
)
def test_c_12_a_large_number_saturates(number: str) -> None:
    assert parse(f"max-age={number}").max_age == MAX_SECONDS == 2**31
    assert parse("max-age=2147483647").max_age == 2**31 - 1


@pytest.mark.parametrize(
    ("value", "bare", "fields"),
    [
        ("{}", True, set()),
        ('{}="a"', False, {b"a"}),
        ('{}="a, B ,c"', False, {b"a", b"b", b"c"}),
        ("{}=a", False, {b"a"}),
        ('{}="a", {}="b"', False, {b"a", b"b"}),
        ('{}, {}="a"', True, {b"a"}),
        ('{}=""', True, set()),
        ('{}="a b"', True, set()),
        ('{}="a,,b"', True, set()),
        ('{}= "a"', True, set()),
        ('{}="a', True, set()),
        ("foo", False, set()),
    ],
)
def test_field_names_are_read_or_the_directive_is_bare(
    value: str, bare: bool, fields: set[bytes]
) -> None:
    private = parse(value.replace("{}", "private"))
    assert (private.private, private.private_fields) == (bare, frozenset(fields))
    no_cache = parse(value.replace("{}", "No-Cache"))
    assert (no_cache.no_cache, no_cache.no_cache_fields) == (bare, frozenset(fields))


def test_directives_without_a_value_are_told() -> None:
    cc = parse(
        "no-store, MUST-revalidate, proxy-revalidate, public, only-if-cached, must-understand"
    )
    assert cc.no_store
    assert cc.must_revalidate
    assert cc.proxy_revalidate
    assert cc.public
    assert cc.only_if_cached
    assert cc.must_understand
    nothing = parse("max-age=1")
    assert not nothing.no_store
    assert not nothing.must_revalidate
    assert not nothing.proxy_revalidate
    assert not nothing.public
    assert not nothing.only_if_cached
    assert not nothing.must_understand


@pytest.mark.parametrize("value", ["no-store=1", "no-store=", 'no-store="x"', 'x="y, no-store'])
def test_what_forbids_counts_however_it_is_written(value: str) -> None:
    assert parse(value).no_store


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("max-stale", MAX_SECONDS), ("max-stale=5", 5), ("max-stale=x", 0), ("max-stale=", 0)],
)
def test_max_stale_without_a_number_has_no_end(value: str, seconds: int) -> None:
    assert parse(value).max_stale == seconds


def test_max_stale_may_be_absent() -> None:
    assert parse("max-age=0").max_stale is None


@pytest.mark.parametrize(
    ("value", "forbids"),
    [
        ("must-revalidate", True),
        ("proxy-revalidate", True),
        ("s-maxage=2", True),
        ("no-cache", True),
        ('no-cache="a"', False),
        ("max-age=2", False),
    ],
)
def test_some_directives_forbid_to_serve_stale(value: str, forbids: bool) -> None:
    assert parse(value).forbids_stale is forbids


def test_a_directive_of_somebody_else_is_kept() -> None:
    cc = parse('Ext="a\\"b", other, max-age=1, ext=last')
    assert cc.get("ext") == "last"
    assert cc.directives["ext"] == ('a"b', "last")
    assert "other" in cc
    assert cc.get("other") is None
    assert cc.get("none", "default") == "default"


def test_several_lines_are_one_list() -> None:
    headers = Headers([("cache-control", "max-age=5"), ("CACHE-CONTROL", "no-store")])
    cc = CacheControl.of(headers)
    assert cc is not None
    assert cc.max_age == 5
    assert cc.no_store
    assert CacheControl.of(headers, "Other") is None


def test_no_length_of_a_value_takes_more_than_one_pass() -> None:
    for piece in (" ", 'a="', 'a="\\",', "a =", '="', '"\\', "a,", ";"):
        value = piece * (60_000 // len(piece))
        assert parse(value + ",no-store").no_store


@given(st.binary(max_size=60), st.sampled_from(["max-age", "no-cache", "private"]))
def test_no_bytes_break_the_reader(noise: bytes, name: str) -> None:
    cc = CacheControl.parse(noise + b"," + name.encode())
    assert (cc.max_age or 0) >= 0
    assert isinstance(cc.private_fields | cc.no_cache_fields, frozenset)


@pytest.mark.parametrize(
    "values",
    [
        ("max-age=3600",),
        ("foobar, max-age=3600",),
        ("max-age=1", "max-age=3600"),
        ("max-age=3600;x=y",),
    ],
)
def test_a_targeted_field_is_a_structured_dictionary(values: tuple[str, ...]) -> None:
    cc = targeted(*values)
    assert cc is not None
    assert cc.max_age == 3600


@pytest.mark.parametrize(
    "value",
    [
        "",
        "max-age=10000, &&&&&",
        'max-age="10000"',
        "max-age=1.5",
        "max-age",
        "max-age=(1)",
        "MaX-aGe=3600",
        "max-age =100",
        "max-age= 100",
        "max-age=1;",
        "s-maxage=?1",
    ],
)
def test_a_broken_targeted_field_is_ignored_as_a_whole(value: str) -> None:
    assert targeted(value) is None


def test_a_targeted_field_has_all_directives() -> None:
    cc = targeted('private="a, b", no-store=?0, no-cache, must-revalidate, max-age=99999999999')
    assert cc is not None
    assert not cc.no_store
    assert cc.no_cache
    assert cc.must_revalidate
    assert cc.private_fields == {b"a", b"b"}
    assert cc.max_age == MAX_SECONDS
    negative = targeted("max-age=-1")
    assert negative is not None
    assert negative.max_age == 0


def test_the_first_valid_target_counts() -> None:
    headers = Headers([("A-CC", "max-age=?"), ("B-CC", "max-age=2"), ("C-CC", "max-age=3")])
    cc = CacheControl.targeted(headers, ["a-cc", "B-CC", b"C-CC"])
    assert cc is not None
    assert cc.max_age == 2
    assert CacheControl.targeted(headers, []) is None
