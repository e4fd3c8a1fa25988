"""CONNECT has one reading, the same over both versions of HTTP (rows H1-26, H2-29)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trioproxy import ConnectRule
from trioproxy._messages import RequestHeader
from trioproxy.semantics._framing import HeadLimits, MessageRefused, check_request
from trioproxy.semantics._h2 import MalformedMessage, check_h2_request

ALLOW = HeadLimits(
    allow_connect=tuple(map(ConnectRule.parse, ("a:1", "*.b.c:443", "10.0.0.1:*", "[::1]:*")))
)
ANYWHERE = HeadLimits(allow_connect=(ConnectRule.parse("*:*"),))
OFF = HeadLimits()

PARTS = ("a", "b", "c", ".", ":", "1", "443", "[::1]", "10.0.0.1", "@", "%61", "0x", "[", "]", "*")
AUTHORITIES = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=6).map("".join),
    st.text("aB0x1.:[]*-_@%/,;=~", max_size=16),
)


def over_http_1(target: str, host: str | None, limits: HeadLimits) -> RequestHeader:
    raw = target.encode("latin-1")
    fields = [] if host is None else [(b"host", b"Host", host.encode("latin-1"))]
    return check_request(b"CONNECT", raw, b"1.1", fields, limits)


def over_http_2(target: str, limits: HeadLimits, *, end: bool = False) -> RequestHeader:
    pairs = [(b":method", b"CONNECT"), (b":authority", target.encode("latin-1"))]
    return check_h2_request(pairs, end_stream=end, limits=limits, scheme="http")


@given(AUTHORITIES, st.sampled_from([ALLOW, ANYWHERE]))
@example("a:1", ALLOW)
@example("A.:1", ALLOW)
@example("x.b.c:443", ALLOW)
@example("10.0.0.1:80", ALLOW)
@example("a:2", ALLOW)
def test_both_versions_of_http_read_a_target_alike(text: str, limits: HeadLimits) -> None:
    verdicts: list[object] = []
    readings: tuple[Callable[[], RequestHeader], ...] = (
        lambda: over_http_1(text, text, limits),
        lambda: over_http_2(text, limits),
        lambda: over_http_2(text, limits, end=True),
    )
    for read in readings:
        try:
            head = read()
        except MalformedMessage:
            verdicts.append(400)
        except MessageRefused as exc:
            verdicts.append(exc.status)
        else:
            facts = head.facts
            assert facts is not None
            assert facts.connect is not None
            assert head.target == str(facts.connect).encode()
            assert head.authority == str(facts.connect)
            assert any(rule.allows(facts.connect) for rule in limits.allow_connect)
            assert not facts.has_body
            assert not facts.expect_continue
            assert head.asks_to_switch
            assert [head.switched_by(status) for status in (101, 200, 299, 300, 407)] == [
                True,
                True,
                True,
                False,
                False,
            ]
            verdicts.append(facts.connect)
    assert verdicts[1:] == verdicts[:1] * 2, (text, verdicts)


@given(AUTHORITIES)
def test_without_a_list_nothing_is_taken(text: str) -> None:
    with pytest.raises(MessageRefused) as caught:
        over_http_1(text or "x", text, OFF)
    assert caught.value.status == 405
    with pytest.raises((MessageRefused, MalformedMessage)):
        over_http_2(text, OFF)


@given(AUTHORITIES, AUTHORITIES)
def test_a_host_that_is_taken_names_the_target(target: str, host: str) -> None:
    try:
        head = over_http_1(target or "x", host, ANYWHERE)
    except MessageRefused:
        return
    assert head.facts is not None
    assert head.facts.connect is not None
    same = {str(head.facts.connect), str(head.facts.connect).rpartition(":")[0]}
    assert host.lower().replace(".:", ":").removesuffix(".") in same or "[" in host


def test_a_head_that_is_no_connect_switches_by_101_alone() -> None:
    head = RequestHeader("CONNECT", b"a:1", {"Host": "a:1"})  # made by hand: nobody checked it
    assert not head.asks_to_switch
    assert [head.switched_by(status) for status in (101, 200)] == [True, False]
