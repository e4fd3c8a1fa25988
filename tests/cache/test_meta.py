"""Stored metadata: what it says as time passes, and its form in bytes."""

from __future__ import annotations

import itertools
import zlib

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioproxy._headers import Headers
from trioproxy._messages import ResponseHeader
from trioproxy.cache._meta import CacheMeta

META = CacheMeta(
    header=ResponseHeader(200, [("Content-Type", "text/plain"), ("X", "1"), ("x", "2")]),
    created=100.0,
    updated=1000.0,
    fresh_until=1060.0,
    stale_while_revalidate=10.0,
    stale_if_error=20.0,
    initial_age=7.5,
)


@pytest.mark.parametrize(
    ("now", "fresh", "behind", "error"),
    [
        (1000.0, True, True, True),
        (1059.9, True, True, True),
        (1060.0, False, True, True),
        (1069.9, False, True, True),
        (1070.0, False, False, True),
        (1079.9, False, False, True),
        (1080.0, False, False, False),
    ],
)
def test_it_is_fresh_then_stale_then_worthless(
    now: float, fresh: bool, behind: bool, error: bool
) -> None:
    assert META.is_fresh(now) is fresh
    assert META.may_serve_stale_while_revalidating(now) is behind
    assert META.may_serve_stale_if_error(now) is error


def test_windows_can_be_closed() -> None:
    meta = attrs.evolve(META)
    meta.disable_serve_stale()
    assert meta.is_fresh(1059)
    for now in (1000.0, 1059.0, 1060.0):  # fresh or not: a client may have refused it
        assert not meta.may_serve_stale_while_revalidating(now)
        assert not meta.may_serve_stale_if_error(now)


@pytest.mark.parametrize(
    ("now", "age"), [(1000.0, 7), (1000.5, 8), (1060.0, 67), (900.0, 7), (1e12, 2**31)]
)
def test_c_13_its_age_goes_on_from_the_one_it_came_with(now: float, age: int) -> None:
    assert META.age(now) == age
    served = META.served_header(now)
    assert served.headers.get_all("age") == [str(age)]
    assert "age" not in META.header.headers


def test_it_knows_when_it_was_never_fresh() -> None:
    assert not META.born_stale
    assert attrs.evolve(META, fresh_until=1000.0).born_stale


_TEXT = st.binary(max_size=20).map(lambda raw: raw.translate(None, b"\r\n\0").strip(b" \t"))
_NAME = st.text("abcXYZ-09", min_size=1, max_size=8)
_MOMENT = st.floats(0, 1e11)


@given(
    status=st.integers(100, 999),
    reason=st.none() | _TEXT,
    fields=st.lists(st.tuples(_NAME, _TEXT), max_size=5),
    moments=st.tuples(_MOMENT, _MOMENT, _MOMENT, _MOMENT, _MOMENT, _MOMENT),
    variance=st.none() | st.binary(max_size=16),
    extensions=st.dictionaries(st.text(max_size=5), st.binary(max_size=5), max_size=3),
)
def test_what_is_written_is_read(
    status: int,
    reason: bytes | None,
    fields: list[tuple[str, bytes]],
    moments: tuple[float, float, float, float, float, float],
    variance: bytes | None,
    extensions: dict[str, bytes],
) -> None:
    created, updated, fresh_until, age, behind, error = moments
    meta = CacheMeta(
        header=ResponseHeader(status, fields, reason=reason),
        created=created,
        updated=updated,
        fresh_until=fresh_until,
        initial_age=age,
        stale_while_revalidate=behind,
        stale_if_error=error,
        variance=variance,
        extensions=extensions,
    )
    back = CacheMeta.from_bytes(meta.to_bytes())
    assert back == meta
    assert back.header.headers.raw == meta.header.headers.raw
    assert (back.header.reason, back.status) == (reason, status)
    assert back.to_bytes() == meta.to_bytes()


def test_c_05_a_form_that_is_cut_or_damaged_at_any_byte_is_refused() -> None:
    whole = META.to_bytes()
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 0x41
        for bad in (whole[:index], bytes(damaged)):
            with pytest.raises(ValueError, match="metadata"):
                CacheMeta.from_bytes(bad)
    with pytest.raises(ValueError, match="metadata"):
        CacheMeta.from_bytes(whole + b"\0")


@settings(max_examples=settings().max_examples // 2)
@given(st.binary(max_size=200))
def test_c_05_foreign_bytes_are_refused(data: bytes) -> None:
    for foreign in (data, b"TPM\x01" + data):
        with pytest.raises(ValueError, match="metadata"):
            CacheMeta.from_bytes(foreign)


def test_c_05_a_damage_that_the_check_sum_covers_raises_nothing_but_value_error() -> None:
    whole = attrs.evolve(META, variance=b"v", extensions={"a": b"b"}).to_bytes()[:-4]
    refused = 0
    for index, change in itertools.product(range(4, len(whole)), (0x01, 0x80, 0xFF)):
        damaged = bytearray(whole)
        damaged[index] ^= change
        damaged += zlib.crc32(damaged).to_bytes(4, "big")
        try:
            CacheMeta.from_bytes(bytes(damaged))
        except ValueError:
            refused += 1
    assert refused > 50
    with pytest.raises(ValueError, match="behind its end"):
        CacheMeta.from_bytes(whole + b"x" + zlib.crc32(whole + b"x").to_bytes(4, "big"))
    with pytest.raises(ValueError, match="is cut"):
        CacheMeta.from_bytes(whole[:-1] + zlib.crc32(whole[:-1]).to_bytes(4, "big"))


def test_what_does_not_fit_the_form_is_refused() -> None:
    header = ResponseHeader(200, Headers([("x" * 70_000, "1")]))
    with pytest.raises(ValueError, match="cannot be written"):
        attrs.evolve(META, header=header).to_bytes()
    with pytest.raises(ValueError, match="cannot be written"):
        attrs.evolve(META, variance=b"v" * 300).to_bytes()


def test_it_is_compact() -> None:
    content = sum(len(name) + len(value) for name, value in META.header.headers.raw)
    assert len(META.to_bytes()) <= content + 6 * 3 + 80
