from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy._networks import Networks, address_of

PRIVATE = Networks.parse(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "fe80::/10"])


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.0:1",
        "10.255.255.255:65535",
        "10.1.2.3",
        "192.0.2.7:80",
        "[2001:db8::1]:443",
        "2001:db8:ffff::",
        "[fe80::1%eth0]:80",
        "[::ffff:10.1.2.3]:80",
        "::ffff:10.1.2.3",
    ],
)
def test_an_address_belongs_to_its_network(address: str) -> None:
    assert address in PRIVATE


@pytest.mark.parametrize(
    "address",
    [
        "11.0.0.1:80",
        "192.0.2.8:80",
        "192.0.2.6",
        "[2001:db9::1]:443",
        "[::ffff:11.0.0.1]:80",
        "[::10.1.2.3]:80",
        "unix:/run/socket",
        "unix:10.0.0.1",
        None,
        "",
        "unknown",
        "10.1.2",
        "10.1.2.3.4:80",
        "[10.1.2.3",
        b"10.1.2.3",
        10,
    ],
)
def test_anything_else_belongs_to_none(address: object) -> None:
    assert address not in PRIVATE


def test_unix_sockets_belong_to_a_word_of_their_own() -> None:
    networks = Networks.parse(["unix"])
    assert None in networks
    assert "unix:/run/socket" in networks
    assert "127.0.0.1:80" not in networks
    assert "unix" not in networks  # it is the name of no socket


def test_no_network_has_no_address() -> None:
    nobody = Networks.parse([])
    assert not nobody
    assert nobody == Networks()
    assert None not in nobody
    assert "127.0.0.1:80" not in nobody


def test_everything_is_in_the_whole_of_its_family_alone() -> None:
    everywhere = Networks.parse(["0.0.0.0/0"])
    assert "203.0.113.9:1" in everywhere
    assert "[::ffff:203.0.113.9]:1" in everywhere
    assert "[2001:db8::1]:1" not in everywhere
    assert "203.0.113.9:1" not in Networks.parse(["::/0"])


def test_a_mapped_network_is_one_of_ipv4() -> None:
    assert Networks.parse(["::ffff:10.0.0.0/104"]) == Networks.parse(["10.0.0.0/8"])


def test_networks_are_a_value() -> None:
    given = [ipaddress.ip_network("10.0.0.0/8"), "192.0.2.1", "10.0.0.0/8", "unix"]
    networks = Networks.parse(given)
    assert tuple(networks) == ("10.0.0.0/8", "192.0.2.1/32", "unix")
    assert len(networks) == 3
    assert str(networks) == "10.0.0.0/8, 192.0.2.1/32, unix"
    assert Networks.parse(networks) is networks
    assert hash(networks) == hash(Networks.parse(given))
    assert repr(networks) == "Networks(entries=('10.0.0.0/8', '192.0.2.1/32', 'unix'))"


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (["10.0.0.1/8"], "'10.0.0.1/8' has bits behind its prefix: 10.0.0.0/8 is right"),
        (["2001:db8::1/32"], "'2001:db8::1/32' has bits behind its prefix: 2001:db8::/32 is right"),
        (["10.0.0.0/33"], "'10.0.0.0/33' is no network: CIDR is right"),
        (["localhost"], "'localhost' is no network"),
        ([""], "'' is no network"),
        ([7], "7 is no network: text such as '10.0.0.0/8' is right"),
        ("10.0.0.0/8", "several networks are right, such as ('10.0.0.0/8',)"),
    ],
)
def test_what_is_no_network_is_refused_with_what_is_right(entries: list[str], told: str) -> None:
    with pytest.raises(ValueError, match="right") as refused:
        Networks.parse(entries)
    assert told in str(refused.value)


_ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6)


@st.composite
def _networks(draw: st.DrawFn) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    address = draw(_ADDRESSES)
    bits = draw(st.integers(0, address.max_prefixlen))
    return ipaddress.ip_network(f"{address}/{bits}", strict=False)


@given(st.lists(_networks(), max_size=8), st.data())
def test_belonging_is_what_ipaddress_says_it_is(
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network], data: st.DataObject
) -> None:
    near = [_ADDRESSES]
    for network in networks:
        first, last = int(network.network_address), int(network.broadcast_address)
        edges = [max(first - 1, 0), first, last, min(last + 1, 2**network.max_prefixlen - 1)]
        near.append(st.sampled_from([type(network.network_address)(edge) for edge in edges]))
    address = data.draw(st.one_of(near))
    if address.version == 6 and address.ipv4_mapped is not None:
        return  # of these there is a rule of its own
    text = f"{address}:80" if address.version == 4 else f"[{address}]:80"
    expected = any(
        network.version == address.version and address in network for network in networks
    )
    assert (text in Networks.parse(networks)) == expected


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1%lo]:80", "::1"),
        ("::1", "::1"),
        ("unix:/a", None),
        ("", None),
        ("a.example:80", None),
    ],
)
def test_the_address_of_a_text(text: str, address: str | None) -> None:
    assert address_of(text) == (None if address is None else ipaddress.ip_address(address))
