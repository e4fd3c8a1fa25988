"""The Cache-Status field, read back by the parser for structured fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.semantics._cache_status import cache_status
from trioproxy.semantics._structured import Item, Token, parse_list


def test_a_hit_says_how_long_it_is_fresh() -> None:
    assert cache_status("trioproxy", hit=True, ttl=376) == b"trioproxy;hit;ttl=376"


def test_a_forced_hit_says_so() -> None:
    assert cache_status("trioproxy", hit=True, detail="forced") == b"trioproxy;hit;detail=forced"


def test_a_request_that_went_forward_says_why_and_what_came() -> None:
    assert (
        cache_status("a.example", fwd="uri-miss", fwd_status=200, stored=True, collapsed=True)
        == b"a.example;fwd=uri-miss;fwd-status=200;stored;collapsed"
    )


def test_a_stale_response_has_a_ttl_below_zero() -> None:
    assert cache_status("c", hit=True, ttl=-412) == b"c;hit;ttl=-412"


def test_a_number_too_large_is_cut_down() -> None:
    assert cache_status("c", hit=True, ttl=10**20) == b"c;hit;ttl=999999999999999"


def test_a_name_that_is_no_token_is_quoted() -> None:
    assert cache_status("two words", hit=True) == b'"two words";hit'
    assert cache_status("127.0.0.1:80", hit=True) == b'"127.0.0.1:80";hit'


def test_a_key_is_a_string_always() -> None:
    assert cache_status("c", hit=True, key="abc") == b'c;hit;key="abc"'


def test_a_hit_did_not_go_forward() -> None:
    with pytest.raises(ValueError, match="hit or fwd"):
        cache_status("c", hit=True, fwd="stale")


_text = st.text(max_size=20)


@given(_text, _text, _text, st.integers(), st.booleans())
def test_whatever_it_is_given_it_is_a_member_of_a_list(
    name: str, key: str, detail: str, ttl: int, stored: bool
) -> None:
    def shown(text: str) -> str:
        return "".join(each if " " <= each <= "~" else "?" for each in text)

    value = cache_status(name, fwd="miss", ttl=ttl, stored=stored, key=key, detail=detail)
    (item, other) = parse_list(value + b", other;hit")
    assert isinstance(item, Item)
    assert item.value == shown(name)
    parameters = {"fwd": "miss", "ttl": max(-(10**15) + 1, min(ttl, 10**15 - 1))}
    parameters |= {"stored": True} if stored else {}
    assert item.parameters == parameters | {"key": shown(key), "detail": shown(detail)}
    assert isinstance(item.parameters["fwd"], Token)
    assert not isinstance(item.parameters["key"], Token)
    assert other == Item("other", {"hit": True})
