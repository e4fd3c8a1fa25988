from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import Headers

NAMES = st.text("!#$%&'*+-.^_`|~0aAzZ", min_size=1, max_size=8)
VALUES = st.binary(max_size=12).filter(lambda value: not set(value) & set(b"\r\n\0"))
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


def test_order_repeats_and_case_are_kept_on_the_wire() -> None:
    headers = Headers([("B", "1"), ("a", "2"), ("b", "3")])
    assert headers.raw == [(b"B", b"1"), (b"a", b"2"), (b"b", b"3")]
    assert headers.items() == [("B", "1"), ("a", "2"), ("b", "3")]
    assert list(headers) == ["B", "a", "b"]
    assert len(headers) == 3


@pytest.mark.parametrize("name", ["x-served-by", "X-Served-By", b"x-SERVED-by"])
def test_fields_are_looked_up_case_blind_by_str_and_bytes(name: str | bytes) -> None:
    headers = Headers({"X-Served-By": "gateway"})
    assert headers.get(name) == "gateway"
    assert headers.get_bytes(name) == b"gateway"
    assert headers.get_all(name) == ["gateway"]
    assert name in headers


def test_a_missing_field_is_none_or_the_default() -> None:
    headers = Headers()
    assert headers.get("a") is None
    assert headers.get("a", "b") == "b"
    assert headers.get_bytes("a", b"c") == b"c"
    assert headers.get_all("a") == []
    assert "a" not in headers
    assert 5 not in headers


def test_a_name_that_no_field_can_have_is_merely_missing() -> None:
    headers = Headers({"a": "1"})
    assert headers.get("\u20ac") is None
    headers.remove("\u20ac")
    assert headers.items() == [("a", "1")]


def test_get_gives_the_first_of_several_values() -> None:
    headers = Headers([("a", "1"), ("A", "2")])
    assert headers.get("a") == "1"
    assert headers.get_all("a") == ["1", "2"]


def test_set_keeps_the_first_place_and_drops_the_repeats() -> None:
    headers = Headers([("a", "1"), ("b", "2"), ("A", "3"), ("c", "4")])
    headers.set("A", "new")
    assert headers.items() == [("A", "new"), ("b", "2"), ("c", "4")]
    headers.set("d", b"5")
    assert headers.items()[-1] == ("d", "5")


def test_remove_takes_every_value_and_forgives_absence() -> None:
    headers = Headers([("a", "1"), ("b", "2"), ("A", "3")])
    headers.remove(b"A")
    headers.remove("not there")
    assert headers.items() == [("b", "2")]


def test_text_is_latin_1_so_nothing_is_lost() -> None:
    value = bytes(each for each in range(256) if each not in b"\r\n\0\t ")
    headers = Headers([("a", value)])
    assert headers.get("a") == value.decode("latin-1")
    headers.set("b", headers.get("a") or "")
    assert headers.get_bytes("b") == value


def test_blanks_around_a_value_go_and_blanks_inside_stay() -> None:
    assert Headers({"a": " \t1\t 2 "}).get("a") == "1\t 2"


@pytest.mark.parametrize("bad", ["1\r\nb: 2", "1\n", b"\r", b"\0", "a\0b"])
def test_h1_30_cr_lf_and_nul_in_a_value_are_refused_at_the_call(bad: str | bytes) -> None:
    headers = Headers([("a", "1")])
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        headers.set("a", bad)
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        headers.add("a", bad)
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        Headers([("a", bad)])
    assert headers.items() == [("a", "1")]


@pytest.mark.parametrize("bad", ["", " a", "a ", "a:", "a\r\n", b"a\0", "\xe4", "\u20ac", b"a b"])
def test_h1_30_a_name_that_is_no_token_is_refused_at_the_call(bad: str | bytes) -> None:
    headers = Headers()
    with pytest.raises(ValueError, match="not a field name"):
        headers.set(bad, "1")
    with pytest.raises(ValueError, match="not a field name"):
        headers.add(bad, "1")
    assert len(headers) == 0


def test_text_beyond_latin_1_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="encode it to bytes yourself"):
        Headers({"a": "\u20ac"})


@pytest.mark.parametrize("number", [0, 5])
def test_a_number_is_not_taken_for_that_many_nuls(number: int) -> None:
    headers = Headers()
    with pytest.raises(TypeError, match="str or bytes"):
        headers.set("content-length", number)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(TypeError, match="str or bytes"):
        headers.get(number)  # type: ignore[arg-type]  # the mistake under test
    assert len(headers) == 0


def test_a_copy_is_independent() -> None:
    headers = Headers([("a", "1"), ("b", "2")])
    for copy in (headers.copy(), Headers(headers)):
        copy.set("a", "changed")
        copy.remove("b")
        copy.add("c", "3")
    assert headers.items() == [("a", "1"), ("b", "2")]


def test_equality_is_case_blind_in_names_and_exact_in_values_and_order() -> None:
    assert Headers({"A": "1"}) == Headers({"a": "1"})
    assert Headers({"a": "x"}) != Headers({"a": "X"})
    assert Headers([("a", "1"), ("b", "2")]) != Headers([("b", "2"), ("a", "1")])
    assert Headers() != []
    with pytest.raises(TypeError):
        hash(Headers())


def test_repr_shows_the_fields() -> None:
    assert repr(Headers({"A": "1"})) == "Headers([('A', '1')])"


@given(PAIRS)
def test_what_goes_in_comes_out(pairs: list[tuple[str, bytes]]) -> None:
    headers = Headers(pairs)
    assert headers.raw == [(name.encode(), value.strip(b" \t")) for name, value in pairs]
    assert Headers(headers.raw) == headers
    assert Headers(headers.items()).raw == headers.raw


@given(PAIRS, NAMES, VALUES)
def test_set_touches_one_name_only(pairs: list[tuple[str, bytes]], name: str, value: bytes) -> None:
    headers = Headers(pairs)
    others = [field for field in headers.raw if field[0].lower() != name.lower().encode()]
    headers.set(name, value)
    assert headers.get_all(name) == [value.strip(b" \t").decode("latin-1")]
    assert [field for field in headers.raw if field[0].lower() != name.lower().encode()] == others
    headers.remove(name.swapcase())
    assert headers.raw == others


@given(st.one_of(st.text(max_size=6), st.binary(max_size=6)), st.text(max_size=6))
def test_nothing_that_is_accepted_can_break_a_line(name: str | bytes, value: str) -> None:
    headers = Headers()
    try:
        headers.add(name, value)
    except ValueError:
        return
    wire = b"".join(raw + b": " + content for raw, content in headers.raw)
    assert not set(wire) & set(b"\r\n\0")
    assert wire.partition(b":")[0] == headers.raw[0][0]
