from __future__ import annotations

import math

import attrs
import pytest

from trioproxy import HttpPeer, PeerOptions


@pytest.mark.parametrize(
    ("url", "host", "port", "authority"),
    [
        ("http://example.com", "example.com", 80, "example.com"),
        ("http://example.com/", "example.com", 80, "example.com"),
        ("http://example.com:8080", "example.com", 8080, "example.com:8080"),
        ("http://Example.com:80", "Example.com", 80, "Example.com"),
        ("http://a_b-c.1:9", "a_b-c.1", 9, "a_b-c.1:9"),
        ("127.0.0.1:9000", "127.0.0.1", 9000, "127.0.0.1:9000"),
        ("localhost:1", "localhost", 1, "localhost:1"),
        ("http://[::1]", "::1", 80, "[::1]"),
        ("http://[::1]:65535", "::1", 65535, "[::1]:65535"),
        ("[fe80::1%lo]:81", "fe80::1%lo", 81, "[fe80::1%lo]:81"),
    ],
)
def test_parse_reads_host_and_port(url: str, host: str, port: int, authority: str) -> None:
    peer = HttpPeer.parse(url)
    assert (peer.host, peer.port, peer.path, peer.scheme) == (host, port, None, "http")
    assert peer.authority == authority
    assert str(peer) == peer.name == authority


def test_parse_reads_the_path_of_a_unix_socket() -> None:
    peer = HttpPeer.parse("http+unix:/run/a socket")
    assert (peer.host, peer.port, peer.path) == (None, None, "/run/a socket")
    assert peer.authority == "localhost"
    assert peer.name == "unix:/run/a socket"
    assert HttpPeer.new_uds("/run/a socket") == peer


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("", r"http://host\[:port\] or http\+unix:PATH is"),
        ("http://", r"http://host\[:port\]"),
        ("ftp://a", r"http://host\[:port\]"),
        ("http://a/b", r"http://host\[:port\]"),
        ("http://a?b", r"http://host\[:port\]"),
        ("http://u:p@a", r"http://host\[:port\]"),
        ("http://a b", r"http://host\[:port\]"),
        ("http://[::1", r"http://\[v6\]:port is right"),
        ("http://[::1]x", r"http://\[v6\]:port is right"),
        ("http://[localhost]:80", r"http://\[v6\]:port is right"),
        ("http://[a:b]:80", "a host name"),
        ("http://a:0", "1 to 65535"),
        ("http://a:65536", "1 to 65535"),
        ("http://a:x", "1 to 65535"),
        ("http://a:+80", "1 to 65535"),
        ("http://a:\u0661", "1 to 65535"),
        ("http://a:" + "9" * 5000, "1 to 65535"),
        ("http://::1:80", "1 to 65535"),
        ("http://:80", "a host name"),
        ("http://b\xfccher.example", "a host name"),
        ("example.com", r"host:port or http://host\[:port\] is right"),
        ("http+unix:", "http.unix:PATH is right"),
        ("https://a", "https origins need TLS"),
    ],
)
def test_parse_refuses_and_says_what_is_right(url: str, right: str) -> None:
    with pytest.raises(ValueError, match=right):
        HttpPeer.parse(url)


@pytest.mark.parametrize(
    "host", ["", None, "a b", "a/b", "u@a", "a\r\n", "[::1]", "a:80", "\xfc", 5]
)
def test_a_host_that_is_none_is_refused(host: object) -> None:
    with pytest.raises(ValueError, match="a host name"):
        HttpPeer(host, 80)  # type: ignore[arg-type]  # the mistakes under test


@pytest.mark.parametrize("port", [0, -1, 65536, None, "80", 80.0, True])
def test_a_port_that_is_none_is_refused(port: object) -> None:
    with pytest.raises(ValueError, match="1 to 65535 is right"):
        HttpPeer("a", port)  # type: ignore[arg-type]  # the mistakes under test


def test_a_peer_has_a_host_or_a_path_and_not_both() -> None:
    with pytest.raises(ValueError, match="not both"):
        HttpPeer("a", 80, path="/x")
    with pytest.raises(ValueError, match="not both"):
        HttpPeer(port=80, path="/x")
    with pytest.raises(ValueError, match="path of a unix socket is right"):
        HttpPeer.new_uds("")


def test_a_scheme_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(ValueError, match="https origins need TLS"):
        HttpPeer("a", 443, scheme="https")
    with pytest.raises(ValueError, match="'http' is right"):
        HttpPeer("a", 80, scheme="gopher")


def test_options_and_group_key_come_through_every_constructor() -> None:
    options = PeerOptions(read_timeout=1)
    for peer in (
        HttpPeer("a", 80, group_key=7, options=options),
        HttpPeer.parse("http://a", group_key=7, options=options),
        HttpPeer.parse("http+unix:/x", group_key=7, options=options),
        HttpPeer.new_uds("/x", group_key=7, options=options),
    ):
        assert peer.group_key == 7
        assert peer.options is options


def test_the_reuse_key_tells_apart_what_may_not_share_a_connection() -> None:
    peers = [
        HttpPeer("a", 80),
        HttpPeer("b", 80),
        HttpPeer("a", 81),
        HttpPeer("A", 80),  # a host name counts as given
        HttpPeer("a", 80, group_key=1),
        HttpPeer.new_uds("a"),
        HttpPeer.new_uds("b"),
    ]
    assert len({peer.reuse_key for peer in peers}) == len(peers)


def test_timeouts_do_not_keep_connections_apart() -> None:
    plain = HttpPeer("a", 80)
    timed = HttpPeer("a", 80, options=PeerOptions(read_timeout=1, idle_timeout=0))
    assert plain.reuse_key == timed.reuse_key
    assert plain != timed


def test_a_changed_copy_gets_its_own_key_and_name() -> None:
    peer = attrs.evolve(HttpPeer("a", 80), host="b")
    assert peer.reuse_key == HttpPeer("b", 80).reuse_key
    assert peer.name == "b"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        peer.host = "c"  # type: ignore[misc]  # the mistake under test


NAMES = ["connection_timeout", "read_timeout", "write_timeout", "idle_timeout"]


@pytest.mark.parametrize("name", NAMES)
def test_a_timeout_is_the_servers_or_seconds_or_none_at_all(name: str) -> None:
    assert getattr(PeerOptions(), name) is None
    for value in (None, 0.5, 3, math.inf):
        assert getattr(PeerOptions(**{name: value}), name) == value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [-1, math.nan, "5", True])
def test_a_timeout_that_is_none_is_refused_with_what_is_right(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.* math.inf means no limit"):
        PeerOptions(**{name: bad})


def test_zero_disables_pooling_and_is_no_other_timeout() -> None:
    assert PeerOptions(idle_timeout=0).idle_timeout == 0
    for name in NAMES[:-1]:
        with pytest.raises(ValueError, match=f"{name}=0: seconds above 0 are right"):
            PeerOptions(**{name: 0})
