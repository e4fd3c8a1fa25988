from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import RequestHeader
from trioproxy.semantics._targets import Pattern, normal_path, split_authority


def asks(authority: str, target: str = "/", scheme: str = "http") -> RequestHeader:
    return RequestHeader("GET", target, {"Host": authority}, scheme=scheme)


@pytest.mark.parametrize(
    ("text", "authority", "target", "expected"),
    [
        ("a.example", "a.example", "/x", True),
        ("a.example", "A.Example.:8080", "/x", True),
        ("a.example", "b.a.example", "/", False),
        ("*.example", "a.example", "/", True),
        ("*.example", "b.a.example", "/", True),
        ("*.example", "example", "/", False),
        ("*.example", "notexample", "/", False),
        ("a.example:80", "a.example", "/", True),
        ("a.example:80", "a.example:81", "/", False),
        ("[::1]:8080", "[::1]:8080", "/", True),
        ("[::1]", "[::1]", "/", True),
        ("/api", "any", "/api", True),
        ("/api", "any", "/api/", True),
        ("/api", "any", "/api/x?y", True),
        ("/api", "any", "/apix", False),
        ("/api", "any", "/x/../api/y", True),
        ("/api", "any", "/api/../x", False),
        ("/api", "any", "/%61pi/x", True),
        ("/api", "any", "//api", True),
        ("/api", "any", "/api%2fx", False),
        ("/", "any", "/", True),
        ("/", "any", "/x", True),
        ("/", "any", "*", True),
        ("/api/", "any", "/api", True),
        ("a.example/api", "a.example", "/api/x", True),
        ("a.example/api", "b.example", "/api/x", False),
    ],
)
def test_what_a_pattern_matches(text: str, authority: str, target: str, expected: bool) -> None:
    assert Pattern.parse(text).matches(asks(authority, target)) is expected


def test_the_port_of_a_scheme_counts_where_none_is_said() -> None:
    pattern = Pattern.parse("a.example:443")
    assert pattern.matches(asks("a.example", scheme="https"))
    assert not pattern.matches(asks("a.example"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://a/",
        "a*.example",
        "*",
        "a b",
        "/a?b",
        "/a#b",
        "a:b:c",
        "a:0",
        "a:70000",
        "ä",
        "/a*",
    ],
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        Pattern.parse(text)


def test_the_most_specific_pattern_comes_first() -> None:
    texts = ["/", "/a", "*.example", "*.b.example", "b.example", "b.example/x", "b.example:8080"]
    ordered = sorted(map(Pattern.parse, texts), key=lambda each: each.rank)
    assert [str(each) for each in ordered] == [
        "b.example:8080",
        "b.example/x",
        "b.example",
        "*.b.example",
        "*.example",
        "/a",
        "/",
    ]


@given(st.text("abc/.%26e~", min_size=1, max_size=20))
def test_a_normal_path_is_its_own(path: str) -> None:
    once = normal_path(f"/{path}".encode())
    assert once.startswith(b"/")
    assert b"/../" not in once
    assert b"//" not in once
    if b"%" not in once:
        assert normal_path(once) == once


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ("a", ("a", None)),
        ("a:1", ("a", 1)),
        ("A.:", ("a", None)),
        ("[::1]", ("[::1]", None)),
        ("[::1]:5", ("[::1]", 5)),
        ("", ("", None)),
    ],
)
def test_an_authority_is_split(authority: str, expected: tuple[str, int | None]) -> None:
    assert split_authority(authority) == expected
