"""The three forms of dates (RFC 9110 section 5.6.7), and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioproxy.semantics._dates import format_http_date, parse_date

NOW = 1_795_000_000.0  # in November 2026
MOMENT = 2_544_400_878


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Thu, 18 Aug 2050 02:01:18 GMT", MOMENT),
        ("Thursday, 18-Aug-50 02:01:18 GMT", MOMENT),
        ("Thu Aug 18 02:01:18 2050", MOMENT),
        ("Thu Aug  8 02:01:18 2050", MOMENT - 10 * 86400),
        ("THU, 18 AUG 2050 02:01:18 gmt", MOMENT),
        ("tHURSDAY, 18-aUG-50 02:01:18 Gmt", MOMENT),
        ("Mon, 18 Aug 2050 02:01:18 GMT", MOMENT),  # it was no Monday
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun Nov  6 08:49:37 1994", 784111777),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228800),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Wed, 31 Dec 1969 23:59:59 GMT", -1),
        ("Sun, 21 Nov 2286 04:46:39 GMT", 10000039599),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253402300799),
        ("Thu, 29 Feb 2024 00:00:00 GMT", 1709164800),
    ],
)
def test_a_date_is_read_in_each_of_its_forms(value: str, seconds: int) -> None:
    assert parse_date(value, now=NOW) == seconds
    assert parse_date(value.encode(), now=NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "-1",
        "1795000000",
        "Thu, 18 Aug 2050 02:01:18 UTC",
        "Thu, 18 Aug 2050 02:01:18 AEST",
        "Thu, 18 Aug 2050 02:01:18 +0000",
        "Thu, 18 Aug 2050 02:01:18",
        "Thu, 18 Aug 50 02:01:18 GMT",
        "Thu 18 Aug 2050 02:01:18 GMT",
        "Thu, 18  Aug  2050 02:01:18 GMT",
        "Thu, 18-Aug-2050 02:01:18 GMT",
        "Thu, 18 Aug 2050 02.01.18 GMT",
        "Thu, 18 Aug 2050 2:01:18 GMT",
        "Thu, 8 Aug 2050 02:01:18 GMT",
        "Thu, 30 Feb 2050 02:01:18 GMT",
        "Thu, 29 Feb 2023 00:00:00 GMT",
        "Thu, 00 Aug 2050 02:01:18 GMT",
        "Thu, 18 Foo 2050 02:01:18 GMT",
        "Thu, 18 Aug 2050 24:01:18 GMT",
        "Thu, 18 Aug 2050 02:60:18 GMT",
        "Thu, 18 Aug 2050 02:01:61 GMT",
        "Thu, 18 Aug 0000 02:01:18 GMT",
        "Foo, 18 Aug 2050 02:01:18 GMT",
        "Thu, 18-Aug-50 02:01:18 GMT",
        "Thursday, 18 Aug 2050 02:01:18 GMT",
        "Thu Aug 8 02:01:18 2050",
        "Thu Aug 18 02:01:18 2050 GMT",
        " Thu, 18 Aug 2050 02:01:18 GMT",
        "Thu, 18 Aug 2050 02:01:18 GMT ",
        "Thu, 18 Aug 2050 02:01:18 GMT, Thu, 18 Aug 2050 02:01:18 GMT",
        "Thu, ١٨ Aug 2050 02:01:18 GMT",
    ],
)
def test_what_is_in_no_form_is_no_date(value: str) -> None:
    assert parse_date(value, now=NOW) is None


@pytest.mark.parametrize(
    ("year", "read"), [("27", 2027), ("76", 2076), ("77", 1977), ("99", 1999), ("26", 2026)]
)
def test_a_year_of_two_digits_is_at_most_fifty_ahead(year: str, read: int) -> None:
    found = parse_date(f"Monday, 01-Jun-{year} 00:00:00 GMT", now=NOW)
    assert found == parse_date(f"Mon, 01 Jun {read} 00:00:00 GMT")


def test_the_century_turns() -> None:
    late = 4_090_000_000.0  # in August 2099
    assert parse_date("Monday, 01-Jun-01 00:00:00 GMT", now=late) == parse_date(
        "Wed, 01 Jun 2101 00:00:00 GMT"
    )


def test_without_a_moment_the_wall_clock_tells_the_century() -> None:
    assert parse_date("Monday, 01-Jun-30 00:00:00 GMT") == parse_date(
        "Sat, 01 Jun 2030 00:00:00 GMT"
    )


@settings(max_examples=settings().max_examples // 2)
@given(st.integers(0, 253402300799))
def test_what_is_written_is_read(seconds: int) -> None:
    assert parse_date(format_http_date(seconds)) == seconds


@given(st.text(max_size=40))
def test_no_text_breaks_the_reader(text: str) -> None:
    assert parse_date(text, now=NOW) is None
