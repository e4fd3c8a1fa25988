"""Targets of CONNECT requests have one spelling, and rules compare nothing else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trioproxy import ConnectRule
from trioproxy._connect_target import ConnectTarget, plain_host

LABELS = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,10}[A-Za-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PORTS = st.integers(1, 65535)
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)
# What strings close to a target are made of.
NEAR = st.text("aZ0x1.:[]*-_@%/ \t\r\n\0é,é", max_size=20)


@given(st.one_of(NEAR, st.text(max_size=10), st.builds("{}:{}".format, NEAR, PORTS)))
@example("a:1\n")
@example("a.test:443 ")
@example("\N{KELVIN SIGN}.test:443")
@example("\N{FULLWIDTH DIGIT ONE}.test:443")
def test_what_is_read_as_a_target_has_one_spelling_and_holds_nothing_odd(text: str) -> None:
    try:
        target = ConnectTarget.parse(text)
    except ValueError:
        return
    shown = str(target)
    assert ConnectTarget.parse(shown) == target
    assert str(ConnectTarget.parse(shown)) == shown
    assert shown.isascii()
    assert set(shown) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.:[]")
    assert 0 < target.port < 65536
    # Nothing but case, a last dot and the way an IPv6 address is written was evened out.
    if ":" not in target.host:
        assert text.lower().replace(".:", ":") == shown


@given(NAMES, PORTS)
def test_a_name_is_one_in_any_case_and_with_a_dot_behind_it(name: str, port: int) -> None:
    last = name.rpartition(".")[2].lower()
    numeric = last.isdigit() or (
        last.startswith("0x") and not set(last[2:]) - set("0123456789abcdef")
    )
    texts = [f"{name}:{port}", f"{name.upper()}:{port}", f"{name}.:{port}"]
    if numeric:
        for text in texts:
            try:
                target = ConnectTarget.parse(text)
            except ValueError:
                continue
            assert str(ipaddress.IPv4Address(name)) == target.host
        return
    assert {ConnectTarget.parse(text) for text in texts} == {ConnectTarget(name.lower(), port)}


@given(st.one_of(V4, V6), PORTS)
def test_an_address_is_one(address: str, port: int) -> None:
    text = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if ":" in address and ipaddress.IPv6Address(address).ipv4_mapped is not None:
        with pytest.raises(ValueError, match="IPv4"):
            ConnectTarget.parse(text)
        return
    target = ConnectTarget.parse(text)
    assert ipaddress.ip_address(target.host) == ipaddress.ip_address(address)
    assert ConnectRule.parse(text).allows(target)
    if ":" in address:
        exploded = ipaddress.IPv6Address(address).exploded.upper()
        assert ConnectTarget.parse(f"[{exploded}]:{port}") == target


@given(NEAR, st.one_of(st.just("*"), PORTS.map(str), NEAR))
def test_a_rule_is_read_back_from_what_it_shows(host: str, port: str) -> None:
    try:
        rule = ConnectRule.parse(f"{host}:{port}")
    except ValueError:
        return
    assert ConnectRule.parse(str(rule)) == rule


@given(NAMES, NAMES, PORTS, PORTS)
def test_a_star_stands_for_names_below_and_for_nothing_else(
    name: str, other: str, port: int, second: int
) -> None:
    try:
        above = ConnectTarget.parse(f"{name}:{port}")
        below = ConnectTarget.parse(f"{other}.{name}:{port}")
        glued = ConnectTarget.parse(f"x{name}:{port}")
        rule = ConnectRule.parse(f"*.{name}:{port}")
    except ValueError:
        return  # it reads like an address, or is too long
    assert rule.allows(below)
    assert not rule.allows(above)
    assert not rule.allows(glued)
    assert rule.allows(ConnectTarget(below.host, second)) is (second == port)
    assert ConnectRule.parse(f"*.{name}:*").allows(ConnectTarget(below.host, second))
    for everything in ("*:*", f"*:{port}"):
        for target in (above, below, glued):
            assert ConnectRule.parse(everything).allows(target)
    exact = ConnectRule.parse(f"{name.upper()}.:{port}")
    assert exact.allows(above)
    assert not exact.allows(below)
    assert not exact.allows(glued)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a.test", "no port"),
        ("", "no port"),
        (":443", "neither a name"),
        ("a.test:", "1 to 65535"),
        ("a.test:0", "1 to 65535"),
        ("a.test:65536", "1 to 65535"),
        ("a.test:http", "1 to 65535"),
        ("a.test:4*", "1 to 65535"),
        ("http://a.test:443", "neither a name"),
        ("a.*.test:443", "neither a name"),
        ("a*.test:443", "neither a name"),
        ("*.*.test:443", "neither a name"),
        ("**:443", "neither a name"),
        ("10.0.0.*:443", "neither a name"),
        ("10.0.0.0/8:443", "neither a name"),
        ("*.10.0.0.1:443", "below"),
        ("*.[::1]:443", "below"),
        ("::1:443", "neither a name"),
        ("[::1:443", "IPv6 address is malformed"),
        ("[fe80::1%eth0]:443", "IPv6 address is malformed"),
        ("[::ffff:10.0.0.1]:443", "IPv4 address"),
        ("127.1:443", "four plain"),
        ("0x7f000001:443", "four plain"),
        ("127.0.0.01:443", "four plain"),
    ],
)
def test_a_rule_that_is_none_says_why_and_what_is_right(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        ConnectRule.parse(text)
    message = str(caught.value)
    assert message.startswith(f"{text!r} allows nothing (")
    assert message.endswith("*.example.com:443, 10.0.0.1:* or [::1]:443")


@pytest.mark.parametrize("host", ["a" * 64, ".".join(["abcdefg"] * 32), "a..b", ".", "", "[", "[]"])
def test_a_host_that_no_resolver_takes_is_none(host: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of several texts
        plain_host(host)
