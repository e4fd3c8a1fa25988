"""Keys: what is told apart, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy._messages import RequestHeader
from trioproxy.cache._key import CacheKey, CompactKey, VarianceBuilder, default_cache_key

BASE = RequestHeader("GET", "/a?b=c", [("Host", "example.com")])


def of(
    method: str = "GET",
    target: str = "/a?b=c",
    host: str = "example.com",
    scheme: str = "http",
    **fields: str,
) -> CacheKey:
    items = [("Host", host), *fields.items()]
    return default_cache_key(RequestHeader(method, target, items, scheme=scheme))


@pytest.mark.parametrize(
    "key",
    [
        of("HEAD"),
        of(host="EXAMPLE.com"),
        of(host="example.com:80"),
        of(host="example.com:"),
        of(scheme="HTTP"),
        of(cookie="x"),
    ],
)
def test_c_01_the_same_resource_has_one_key(key: CacheKey) -> None:
    assert key == default_cache_key(BASE)
    assert key.combined_hash == default_cache_key(BASE).combined_hash


@pytest.mark.parametrize(
    "key",
    [
        of("POST"),
        of("get"),
        of(host="example.org"),
        of(host="example.com:8080"),
        of(host="example.com:443"),
        of(host="example.com."),
        of(scheme="https"),
        of(target="/a?b=d"),
        of(target="/a"),
        of(target="/a?"),
        of(target="/A?b=c"),
        of(target="/./a?b=c"),
        of(target="/%61?b=c"),
        of(target="//a?b=c"),
        default_cache_key(BASE, namespace=b"other"),
    ],
)
def test_c_01_another_resource_has_another_key(key: CacheKey) -> None:
    assert key != default_cache_key(BASE)
    assert key.primary_hash != default_cache_key(BASE).primary_hash


def test_c_01_https_has_its_own_default_port() -> None:
    assert of(scheme="https", host="a:443") == of(scheme="https", host="a")
    assert of(scheme="https", host="a:80") != of(scheme="https", host="a")
    assert of(scheme="https", host="[::1]:443") == of(scheme="https", host="[::1]")


def test_c_01_an_authority_of_any_length_counts_whole() -> None:
    long = "a" * 300
    assert of(host=f"{long}:80") == of(host=long.upper())
    assert of(host=f"{long}b") != of(host=long)


def test_c_01_no_part_runs_into_the_next() -> None:
    keys = [
        of(host="a", target="/b/c"),
        of(host="a/b", target="/c"),
        CacheKey(b"", b"ab"),
        CacheKey(b"a", b"b"),
        CacheKey(b"ab", b""),
        CacheKey(b"1:a,", b"b"),
        CacheKey(b"", b"b", variance=b"a"),
    ]
    assert len({key.combined_hash for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "name", ["X-Forwarded-Host", "X-Original-URL", "X-Rewrite-URL", "Forwarded", "Cookie"]
)
def test_c_02_no_other_field_is_in_the_key(name: str) -> None:
    request = BASE.copy()
    request.headers.add(name, "evil.example")
    assert default_cache_key(request) == default_cache_key(BASE)


def test_a_variant_has_its_own_slot_and_the_same_primary() -> None:
    key = default_cache_key(BASE)
    variant = key.with_variance(b"v" * 16)
    assert key.combined_hash == key.primary_hash == variant.primary_hash
    assert variant.combined_hash != key.combined_hash
    assert len(variant.combined_hash) == len(key.primary_hash) == 16
    assert variant.with_variance(None) == key
    assert variant.with_variance(b"v" * 16) is variant
    assert variant.with_variance(b"w" * 16).combined_hash != variant.combined_hash


def test_the_compact_key_names_the_same_slot() -> None:
    for variance in (None, b"v" * 16):
        key = CacheKey(b"n", b"p", "me", variance)
        compact = key.compact()
        assert compact == CompactKey(key.primary_hash, variance, "me")
        assert compact.combined_hash == key.combined_hash
        assert {compact: 1}[CompactKey(key.primary_hash, variance, "me")] == 1


def test_the_tag_is_not_hashed() -> None:
    assert CacheKey(b"", b"a", "x").combined_hash == CacheKey(b"", b"a", "y").combined_hash


def test_c_07_a_variance_counts_names_and_values_in_any_order() -> None:
    one = VarianceBuilder().add("A", "1").add("b", b"2").finalize()
    assert one == VarianceBuilder().add(b"B", "2").add("a", "1").finalize()
    assert one is not None
    assert len(one) == 16
    assert one != VarianceBuilder().add("a", "12").add("b", "").finalize()
    assert VarianceBuilder().add("a", "x").add("a", "1").add("b", "2").finalize() == one


def test_c_07_absent_is_not_empty_and_nothing_is_no_variance() -> None:
    absent = VarianceBuilder().add("a", None).finalize()
    assert absent not in (None, VarianceBuilder().add("a", "").finalize())
    assert VarianceBuilder().finalize() is None


_PAIRS = st.dictionaries(st.binary(max_size=4).map(bytes.lower), st.none() | st.binary(max_size=4))


def _variance(pairs: dict[bytes, bytes | None]) -> bytes | None:
    builder = VarianceBuilder()
    for name, value in pairs.items():
        builder.add(name, value)
    return builder.finalize()


@given(_PAIRS, _PAIRS)
def test_c_07_two_variances_are_one_only_where_their_parts_are(
    one: dict[bytes, bytes | None], two: dict[bytes, bytes | None]
) -> None:
    assert (_variance(one) == _variance(two)) == (one == two)
