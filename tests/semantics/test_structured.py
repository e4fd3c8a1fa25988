"""Structured fields, against RFC 9651: what its sections 3 and 4.2 show, and what they refuse."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioproxy.semantics._structured import (
    BadStructure,
    BareItem,
    Date,
    InnerList,
    Item,
    Member,
    Token,
    parse_dictionary,
    parse_item,
    parse_list,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-0", 0),
        ("-999999999999999", -(10**15) + 1),
        ("00", 0),
        ("4.5", 4.5),
        ("-1.125", -1.125),
        ("123456789012.1", 123456789012.1),
        ('"hello world"', "hello world"),
        (r'"a \"b\" \\"', 'a "b" \\'),
        ('""', ""),
        ("foo123/456", "foo123/456"),
        ("*a:b!", "*a:b!"),
        (":cHJldGVuZCB0aGlzIGlzIGJpbmFyeSBjb250ZW50Lg==:", b"pretend this is binary content."),
        (":aGVsbG8:", b"hello"),
        ("::", b""),
        ("?1", True),
        ("?0", False),
        ("@1659578233", Date(1659578233)),
        ("@-1", Date(-1)),
        ('%"f%c3%bc%c3%bc"', "füü"),
        ("  1  ", 1),
    ],
)
def test_items_of_every_kind(text: str, value: BareItem) -> None:
    item = parse_item(text.encode())
    assert item.value == value
    assert type(item.value) is (Token if text[0] in "f*" else type(value))
    assert item.parameters == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\t1",
        "1\t",
        "-",
        "--1",
        "1000000000000000",
        "1.",
        ".5",
        "1.1234",
        "1234567890123.1",
        '"open',
        '"bad \\a escape"',
        '"tab\t"',
        '"ü"',
        ":a b:",
        ":YQ==",
        ":=YQ:",
        ":Y:",
        ":Y=Q=:",
        "?",
        "?2",
        "?true",
        "@1.5",
        "@",
        "@x",
        '%"%C3"',
        '%"%c3"',
        '%"%"',
        '%"open',
        "%x",
        "(a)",
        "a b",
        "a,b",
        "a;",
        "a;B=1",
        "a;b=",
        "1;b =1",
        "{",
        "\x00",
        "\x7f",
    ],
)
def test_what_is_not_an_item_is_refused(text: str) -> None:
    with pytest.raises(BadStructure):
        parse_item(text.encode())


def test_parameters_are_items_and_the_last_of_a_key_counts() -> None:
    item = parse_item(b'abc;a=1; b="x";c;a=?0;  *d-e.f_=t')
    assert item == Item(Token("abc"), {"a": False, "b": "x", "c": True, "*d-e.f_": Token("t")})


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", []),
        ("   ", []),
        ("sugar, tea, rum", [Item(Token(each), {}) for each in ("sugar", "tea", "rum")]),
        ("1,2 \t,\t 3", [Item(1, {}), Item(2, {}), Item(3, {})]),
        ("()", [InnerList((), {})]),
        ("(  )", [InnerList((), {})]),
        (
            '("foo"; a=1;b=2);lvl=5, ("bar" 1.5 );lvl=1',
            [
                InnerList((Item("foo", {"a": 1, "b": 2}),), {"lvl": 5}),
                InnerList((Item("bar", {}), Item(1.5, {})), {"lvl": 1}),
            ],
        ),
    ],
)
def test_lists(text: str, members: list[Member]) -> None:
    assert parse_list(text.encode()) == members


@pytest.mark.parametrize(
    "text",
    ["a,", ",a", "a,,b", "a b", "(a", "(a,b)", '("a""b")', "(a)b", "((a))", "a;=1", "(", "(a\tb)"],
)
def test_what_is_not_a_list_is_refused(text: str) -> None:
    with pytest.raises(BadStructure):
        parse_list(text.encode())


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", {}),
        ("u=2, i", {"u": Item(2, {}), "i": Item(True, {})}),
        (
            "a=?0, b, c; foo=bar",
            {
                "a": Item(False, {}),
                "b": Item(True, {}),
                "c": Item(True, {"foo": Token("bar")}),
            },
        ),
        (
            "r=4.9, p=(joy sorrow)",
            {
                "r": Item(4.9, {}),
                "p": InnerList((Item(Token("joy"), {}), Item(Token("sorrow"), {})), {}),
            },
        ),
        ("a=1,b=2,a=3", {"a": Item(3, {}), "b": Item(2, {})}),
    ],
)
def test_dictionaries(text: str, members: dict[str, Member]) -> None:
    assert list(parse_dictionary(text.encode()).items()) == list(members.items())


@pytest.mark.parametrize(
    "text", ["a=", "A=1", "a=1,", "=1", "a =1", "a= 1", "a=1 b=2", "1=a", "a=1;", "a=1,,b", "ä=1"]
)
def test_what_is_not_a_dictionary_is_refused(text: str) -> None:
    with pytest.raises(BadStructure):
        parse_dictionary(text.encode())


@given(st.binary(max_size=40) | st.text('(); ,=abAB19.-"\\:?@%*\t', max_size=40).map(str.encode))
def test_any_bytes_are_parsed_or_refused(value: bytes) -> None:
    for parse in (parse_item, parse_list, parse_dictionary):
        with contextlib.suppress(BadStructure):
            parse(value)


@settings(max_examples=settings().max_examples // 2)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z*][a-z0-9_.*-]{0,8}", fullmatch=True),
        st.integers(-(10**15) + 1, 10**15 - 1),
    )
)
def test_a_written_dictionary_is_read_back(members: dict[str, int]) -> None:
    text = ", ".join(f"{key}={value}" for key, value in members.items())
    assert parse_dictionary(text.encode()) == {k: Item(v, {}) for k, v in members.items()}
