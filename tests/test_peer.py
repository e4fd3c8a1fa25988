from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from examples._chat import LengthPrefixed
from trioproxy import Digest, HttpPeer, PeerOptions
from trioproxy.peers import BindTo, CertKey, Proxy, TcpKeepalive, TlsInfo


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
        ("http://a:443", "a", 443, "a:443"),
    ],
)
def test_parse_reads_host_and_port(url: str, host: str, port: int, authority: str) -> None:
    peer = HttpPeer.parse(url)
    assert (peer.host, peer.port, peer.path, peer.scheme) == (host, port, None, "http")
    assert peer.authority == authority
    assert str(peer) == peer.name == authority


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "name"),
    [
        ("https://example.com", "example.com", 443, "example.com", "example.com"),
        ("https://example.com./", "example.com.", 443, "example.com.", "example.com"),
        ("https://a:443", "a", 443, "a", "a"),
        ("https://a:80", "a", 80, "a:80", "a"),
        ("https://[::1]", "::1", 443, "[::1]", "::1"),
        ("https://[fe80::1%lo]:1", "fe80::1%lo", 1, "[fe80::1%lo]:1", "fe80::1"),
        ("https://127.0.0.1", "127.0.0.1", 443, "127.0.0.1", "127.0.0.1"),
    ],
)
def test_an_https_peer_is_verified_by_its_host(
    url: str, host: str, port: int, authority: str, name: str
) -> None:
    peer = HttpPeer.parse(url)
    assert (peer.host, peer.port, peer.path, peer.scheme) == (host, port, None, "https")
    assert peer.authority == authority
    assert str(peer) == peer.name == f"https://{authority}"
    assert (peer.sni, peer.server_name) == (None, name)
    assert HttpPeer(host, port, scheme="https") == peer


def test_parse_reads_the_path_of_a_unix_socket() -> None:
    peer = HttpPeer.parse("http+unix:/run/a socket")
    assert (peer.host, peer.port, peer.path) == (None, None, "/run/a socket")
    assert peer.authority == "localhost"
    assert peer.name == "unix:/run/a socket"
    assert HttpPeer.new_uds("/run/a socket") == peer


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("", r"http://host\[:port\], https://host\[:port\] or http\+unix:PATH is"),
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
        ("HTTPS://a", r"https://host\[:port\] or http\+unix:PATH is"),
        ("https://[::1", r"https://\[v6\]:port is right"),
        ("https://a..b", "give one as sni"),
        ("https+unix:/x", "is not an origin"),
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
    with pytest.raises(ValueError, match="scheme='gopher': 'http' or 'https' is right"):
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


def _options(name: str, value: Any) -> PeerOptions:
    options: dict[str, Any] = {name: value}
    return PeerOptions(**options)


NAMES = [
    "connection_timeout",
    "total_connection_timeout",
    "read_timeout",
    "write_timeout",
    "idle_timeout",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_timeout_is_the_servers_or_seconds_or_none_at_all(name: str) -> None:
    assert getattr(PeerOptions(), name) is None
    for value in (None, 0.5, 3, math.inf):
        assert getattr(_options(name, value), name) == value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [-1, math.nan, "5", True])
def test_a_timeout_that_is_none_is_refused_with_what_is_right(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.* math.inf means no limit"):
        _options(name, bad)


def test_zero_disables_pooling_and_is_no_other_timeout() -> None:
    assert PeerOptions(idle_timeout=0).idle_timeout == 0
    for name in NAMES[:-1]:
        with pytest.raises(ValueError, match=f"{name}=0: seconds above 0 are right"):
            _options(name, 0)


# -- how to connect --------------------------------------------------------------------------------


class L4:
    async def connect(self, address: object) -> Any:
        raise NotImplementedError


class Trace:
    def on_connected(self, digest: Digest) -> None:
        raise NotImplementedError

    def on_disconnected(self, digest: Digest) -> None:
        raise NotImplementedError


L4_ONE, L4_TWO = L4(), L4()
VIA = Proxy("p", 3128)

SHAPING: list[dict[str, Any]] = [
    {},
    {"bind_to": BindTo("127.0.0.1")},
    {"bind_to": "127.0.0.2"},
    {"bind_to": BindTo("127.0.0.1", (1, 2))},
    {"bind_to": BindTo("127.0.0.1", (1, 2), True)},
    {"tcp_keepalive": TcpKeepalive()},
    {"tcp_keepalive": TcpKeepalive(count=9)},
    {"tcp_recv_buf": 1000},
    {"dscp": 0},
    {"dscp": 1},
    {"tcp_fast_open": True},
    {"custom_l4": L4_ONE},
    {"custom_l4": L4_TWO},
    {"allow_h1_response_invalid_content_length": True},
]


def test_all_that_shapes_a_connection_is_in_the_reuse_key() -> None:
    peers = [HttpPeer("a", 80, options=PeerOptions(**options)) for options in SHAPING]
    behind: list[tuple[Proxy, dict[str, Any]]] = [
        (VIA, {}),
        (Proxy("q", 3128), {}),
        (Proxy("p", 3129), {}),
        (Proxy(path="/p"), {}),
        (Proxy("p", 3128, headers={"X": "1"}), {}),
        (VIA, {"extra_proxy_headers": {"X": "1"}}),
        (VIA, {"extra_proxy_headers": {"X": "2"}}),
        (VIA, {"dscp": 1}),
    ]
    peers += [HttpPeer("a", 80, proxy=via, options=PeerOptions(**more)) for via, more in behind]
    assert len({peer.reuse_key for peer in peers}) == len(peers)
    again = [HttpPeer("a", 80, options=PeerOptions(**options)) for options in SHAPING]
    assert [peer.reuse_key for peer in again] == [peer.reuse_key for peer in peers[: len(again)]]


def test_what_does_not_shape_a_connection_is_not_in_the_reuse_key() -> None:
    options = PeerOptions(total_connection_timeout=1, tracer=Trace())
    assert HttpPeer("a", 80, options=options).reuse_key == HttpPeer("a", 80).reuse_key


def test_a_changed_copy_of_the_options_gets_its_own_key() -> None:
    options = attrs.evolve(PeerOptions(dscp=1), dscp=None)
    assert options.reuse_key is None
    assert options == PeerOptions()


def test_an_address_to_bind_to_may_be_text() -> None:
    assert PeerOptions(bind_to="::1").bind_to == BindTo("::1")


@pytest.mark.parametrize(
    ("option", "bad", "right"),
    [
        ("bind_to", "localhost", "bind_to='localhost': a local IP address is right"),
        ("bind_to", 5, "bind_to=5: a BindTo or None is right"),
        ("tcp_keepalive", 30, "tcp_keepalive=30: a TcpKeepalive or None is right"),
        ("tcp_recv_buf", 0, "tcp_recv_buf=0: a number of bytes, 1 to"),
        ("tcp_recv_buf", 1.5, "tcp_recv_buf=1.5: a number of bytes"),
        ("dscp", 64, "dscp=64: a code point, 0 to 63"),
        ("dscp", -1, "dscp=-1: a code point"),
        ("dscp", True, "dscp=True: a code point"),
        ("tcp_fast_open", 1, "tcp_fast_open=1: True or False is right"),
        ("custom_l4", object(), r"it has no method connect\(\)"),
        ("tracer", object(), r"it has no method on_connected\(\)"),
        ("extra_proxy_headers", {"a b": "c"}, "is not a field name"),
        ("extra_proxy_headers", {"a": "b\r\nc: d"}, "is not a field value"),
        ("extra_proxy_headers", {"HOST": "a"}, "'HOST' is written by the engine"),
        ("extra_proxy_headers", {"content-length": "1"}, "written by the engine"),
        ("extra_proxy_headers", {"Transfer-Encoding": "x"}, "written by the engine"),
        ("allow_h1_response_invalid_content_length", None, "True or False is right"),
    ],
)
def test_an_option_that_is_none_is_refused_with_what_is_right(
    option: str, bad: object, right: str
) -> None:
    with pytest.raises(ValueError, match=right):
        _options(option, bad)


def test_a_connector_must_be_hashable() -> None:
    @attrs.define
    class Unhashable(L4):
        pass

    with pytest.raises(ValueError, match=r"custom_l4=.* must be hashable"):
        PeerOptions(custom_l4=Unhashable())


@pytest.mark.parametrize("bad", [(0, 5), (5, 4), (5, 65536), (5,), (1, 2, 3), 5, [1, 2], (1.0, 2)])
def test_a_range_of_ports_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="the first and the last port are right"):
        BindTo("127.0.0.1", bad)


@pytest.mark.parametrize("name", ["idle", "interval", "count"])
@pytest.mark.parametrize("bad", [0, -1, None, 1.5, 40000])
def test_a_keep_alive_number_that_is_none_is_refused(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        TcpKeepalive(**{name: bad})


@pytest.mark.parametrize("bad", [0, -1, math.inf, "5"])
def test_a_user_timeout_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="user_timeout="):
        TcpKeepalive(user_timeout=bad)


@pytest.mark.parametrize("options", [each for each in SHAPING[1:11] if each], ids=str)
def test_options_of_tcp_sockets_fit_tcp_sockets_only(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is for TCP, and unix:/x is none"):
        HttpPeer.new_uds("/x", options=PeerOptions(**options))
    with pytest.raises(ValueError, match=f"{name} is for TCP, and unix:/p is none"):
        HttpPeer("a", 80, proxy=Proxy(path="/p"), options=PeerOptions(**options))
    with pytest.raises(ValueError, match=f"{name} is for the built-in sockets"):
        PeerOptions(custom_l4=L4_ONE, **options)


# -- through a proxy -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("next_hop", "proxy", "name"),
    [
        ("p:3128", Proxy("p", 3128), "a:81 via p:3128"),
        ("http://p", Proxy("p", 80), "a:81 via p:80"),
        ("http://[::1]:1", Proxy("::1", 1), "a:81 via [::1]:1"),
        ("http+unix:/p", Proxy(path="/p"), "a:81 via unix:/p"),
        (VIA, VIA, "a:81 via p:3128"),
    ],
)
def test_a_peer_behind_a_proxy_names_both(next_hop: str | Proxy, proxy: Proxy, name: str) -> None:
    peer = HttpPeer.new_proxy(next_hop, "a", 81)
    assert peer == HttpPeer("a", 81, proxy=proxy)
    assert str(peer) == peer.name == name
    assert peer.authority == "a:81"


def test_a_proxys_fields_come_through_and_do_not_show() -> None:
    peer = HttpPeer.new_proxy("p:1", "a", 81, headers={"Proxy-Authorization": "secret"})
    assert peer.proxy is not None
    assert peer.proxy.headers == ((b"Proxy-Authorization", b"secret"),)
    assert "secret" not in repr(peer)


def test_options_and_group_key_come_through_new_proxy() -> None:
    options = PeerOptions(read_timeout=1)
    peer = HttpPeer.new_proxy("p:1", "a", 81, group_key=7, options=options)
    assert (peer.group_key, peer.options) == (7, options)


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (lambda: Proxy("p", 0), "1 to 65535 is right"),
        (lambda: Proxy("p q", 1), "a host name"),
        (lambda: Proxy("p", 1, path="/p"), "a proxy has host and port, or the path"),
        (lambda: Proxy.parse("p"), "has no port"),
        (lambda: Proxy.parse("https://p"), "a proxy is asked without TLS"),
        (lambda: Proxy("p", 1, headers={"Host": "x"}), "written by the engine"),
        (lambda: HttpPeer(path="/x", proxy=VIA), "not to a unix socket"),
        (lambda: HttpPeer("a", 80, proxy="p:1"), "proxy='p:1': a Proxy is right"),  # type: ignore[arg-type]  # the mistake under test
        (lambda: HttpPeer("a", 80, options={}), "options={}: a PeerOptions is right"),  # type: ignore[arg-type]  # the mistake under test
        (
            lambda: HttpPeer("a", 80, options=PeerOptions(extra_proxy_headers={"X": "1"})),
            "extra_proxy_headers are for a peer that has a proxy",
        ),
    ],
)
def test_a_way_that_is_none_is_refused(make: Any, right: str) -> None:
    with pytest.raises(ValueError, match=right):
        make()


# -- TLS and HTTP versions -------------------------------------------------------------------------


def https(**more: Any) -> HttpPeer:
    return HttpPeer("a.test", 443, scheme="https", **more)


def test_a_name_of_its_own_is_verified_in_place_of_the_host() -> None:
    peer = https(sni="b.test.")
    assert peer.server_name == "b.test"
    assert peer.authority == "a.test"
    assert HttpPeer.parse("https://a.test", sni="b.test.") == peer
    assert HttpPeer.new_mtls("a.test", 443, "b.test.", None) == peer
    behind = HttpPeer.new_proxy("p:1", "a.test", 443, tls=True, sni="b.test")
    assert behind.server_name == "b.test"
    assert behind.name == "https://a.test via p:1"
    unix = HttpPeer.new_uds("/x", tls=True, sni="b.test")
    assert (unix.server_name, unix.authority, unix.name) == ("b.test", "b.test", "unix:/x over TLS")
    # A copy for another host does not keep the name of the first.
    assert attrs.evolve(https(), host="c.test").server_name == "c.test"
    assert HttpPeer("a.test", 80).server_name is None


UNVERIFIED = PeerOptions(verify_cert=False)


def test_a_peer_without_a_name_needs_to_say_that_nobody_is_verified() -> None:
    makers: list[Callable[[PeerOptions], HttpPeer]] = [
        lambda options: https(sni="", options=options),
        lambda options: HttpPeer.new_uds("/x", tls=True, options=options),
        lambda options: HttpPeer.new_uds("/x", tls=True, sni="", options=options),
    ]
    for make in makers:
        assert make(UNVERIFIED).server_name is None
        for options in (PeerOptions(), PeerOptions(verify_hostname=False)):
            with pytest.raises(ValueError, match=r"sni=.*: without a name .* verify_cert=False"):
                make(options)


@pytest.mark.parametrize(
    "sni", ["a b", "a..b", ".a", "-a", "a-", "\xfc", "*.a", "a:1", "[::1]", "x" * 64, "a." * 128, 5]
)
def test_a_name_that_no_certificate_has_is_refused(sni: Any) -> None:
    with pytest.raises(
        ValueError, match=r"sni=.*: a host name \(ASCII\) or an IP address is right"
    ):
        https(sni=sni)


def test_a_host_that_no_certificate_has_needs_another_name() -> None:
    with pytest.raises(ValueError, match=r"host='a\$b' is no name .*: give one as sni"):
        HttpPeer("a$b", 443, scheme="https")
    assert HttpPeer("a$b", 443, scheme="https", sni="a.test").server_name == "a.test"


class Authority:
    def configure_trust(self, context: Any) -> None:
        raise NotImplementedError


class Leaf:
    def configure_cert(self, context: Any) -> None:
        raise NotImplementedError


def _hook(_tls: TlsInfo) -> None:
    raise NotImplementedError


AUTHORITY, LEAF = Authority(), Leaf()

OF_TLS: list[dict[str, Any]] = [
    {"verify_cert": False},
    {"verify_hostname": False},
    {"alternative_cn": "b.test"},
    {"alternative_cn": "c.test"},
    {"ca": "/a.pem"},
    {"ca": b"/a.pem"},
    {"ca": ["/a.pem", "/b.pem"]},
    {"ca": AUTHORITY},
    {"ca": Authority()},
    {"client_cert_key": LEAF},
    {"client_cert_key": Leaf()},
    {"client_cert_key": CertKey("/a")},
    {"client_cert_key": CertKey("/a", "/b")},
    {"client_cert_key": CertKey("/a", "/b", "secret")},
    {"min_tls_version": "1.3"},
    {"ciphers": "AES"},
    {"upstream_tls_handshake_complete_hook": _hook},
]
OF_HTTP: list[dict[str, Any]] = [
    {"proxy_protocol": 0},
    {"proxy_protocol": 1},
    {"proxy_protocol": 2},
    {"http_version": (2, 1)},
    {"http_version": (2, 2)},
    {"max_h2_streams": 2},
    {"h2_ping_interval": 1},
    {"h2_ping_interval": 2},
    {"h2_stream_window_size": 1},
    {"h2_connection_window_size": 65535},
    {"custom": LengthPrefixed()},
    {"custom": LengthPrefixed("lp/2")},
]


def test_all_of_tls_and_of_http_is_in_the_reuse_key() -> None:
    def peers() -> list[HttpPeer]:
        return [
            HttpPeer("a.test", 443),
            https(),
            https(sni="b.test"),
            https(client_cert_key=LEAF),
            https(sni="", options=UNVERIFIED),
            *(https(options=PeerOptions(**options)) for options in OF_TLS + OF_HTTP),
            *(HttpPeer("a.test", 443, options=PeerOptions(**options)) for options in OF_HTTP),
        ]

    assert len({peer.reuse_key for peer in peers()}) == len(peers())
    assert [peer.reuse_key for peer in peers()] == [peer.reuse_key for peer in peers()]


def test_no_option_was_forgotten() -> None:
    """Whoever adds one decides here whether it keeps connections apart."""
    shaping = {name for options in SHAPING + OF_TLS + OF_HTTP for name in options}
    elsewhere = {"extra_proxy_headers", "tls_handshake_timeout", "tracer", *NAMES}
    fields = {field.name for field in attrs.fields(PeerOptions) if field.init}
    assert shaping | elsewhere == fields
    assert not shaping & elsewhere


def test_a_name_as_given_and_as_defaulted_is_the_same_name() -> None:
    assert https().reuse_key == https(sni="a.test").reuse_key


@pytest.mark.parametrize("options", OF_TLS, ids=lambda options: next(iter(options)))
def test_what_only_tls_has_fits_https_only(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is for TLS: scheme='https' is right"):
        HttpPeer("a.test", 80, options=PeerOptions(**options))
    with pytest.raises(ValueError, match=f"{name} is for TLS"):
        HttpPeer.new_uds("/x", options=PeerOptions(**options))


@pytest.mark.parametrize(
    "more",
    [{"sni": "a"}, {"sni": ""}, {"client_cert_key": LEAF}],
    ids=["name", "no name", "certificate"],
)
def test_what_only_an_https_peer_has_fits_no_other(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(more))} is for TLS"):
        HttpPeer("a.test", 80, **more)


def test_one_certificate_is_enough() -> None:
    with pytest.raises(ValueError, match="client_cert_key: the peer has one and its options, too"):
        https(client_cert_key=LEAF, options=PeerOptions(client_cert_key=LEAF))


def test_a_chain_and_a_key_may_be_two_paths() -> None:
    options = PeerOptions(client_cert_key=(Path("/a"), "/b"))
    assert options.client_cert_key == CertKey("/a", "/b")
    assert "secret" not in repr(PeerOptions(client_cert_key=CertKey("/a", "/b", "secret")))


@pytest.mark.parametrize(
    ("option", "bad", "right"),
    [
        ("verify_cert", None, "True or False is right"),
        ("verify_hostname", 1, "True or False is right"),
        ("alternative_cn", "", "alternative_cn='': a host name"),
        ("alternative_cn", "*.a", "alternative_cn=.*: a host name"),
        ("ca", "", "ca='': a path, PEM as text"),
        ("ca", 5, "ca=5: a path, PEM as text"),
        ("ca", (), r"ca=\(\): a path, PEM as text"),
        ("ca", ("/a", None), "ca=None: a path, PEM as text"),
        ("client_cert_key", "/a", "client_cert_key='/a': a CertKey, or an object"),
        ("client_cert_key", ("/a", ""), "key='': the path of a PEM file is right"),
        ("client_cert_key", ("", "/a"), "chain='': the path of a PEM file is right"),
        ("min_tls_version", "1.1", "min_tls_version='1.1': one of '1.2', '1.3' is right"),
        ("min_tls_version", 1.2, "min_tls_version=1.2: one of"),
        ("ciphers", "", "ciphers='': a list of OpenSSL cipher names"),
        ("ciphers", ["AES"], "a list of OpenSSL cipher names"),
        ("http_version", (1, 2), r"http_version=\(1, 2\): the highest and the lowest"),
        ("http_version", (3, 1), "the highest and the lowest version are right"),
        ("http_version", 2, "http_version=2: the highest and the lowest version are right"),
        ("http_version", (2.0, True), "the highest and the lowest version are right"),
        ("http_version", None, "the highest and the lowest version are right"),
        ("max_h2_streams", 0, "max_h2_streams=0: a number, 1 to"),
        ("max_h2_streams", None, "max_h2_streams=None: a number"),
        ("h2_ping_interval", 0, "h2_ping_interval=0: seconds above 0"),
        ("h2_stream_window_size", 0, "h2_stream_window_size=0: a number of bytes, 1 to"),
        ("h2_stream_window_size", 1 << 31, "a number of bytes, 1 to 2147483647"),
        ("h2_connection_window_size", 65534, "a number of bytes, 65535 to 2147483647"),
        ("upstream_tls_handshake_complete_hook", "x", "a function or None is right"),
    ],
)
def test_an_option_of_tls_or_http_that_is_none_is_refused_with_what_is_right(
    option: str, bad: object, right: str
) -> None:
    with pytest.raises(ValueError, match=right):
        _options(option, bad)


def test_an_authority_must_be_hashable() -> None:
    @attrs.define
    class Unhashable(Authority):
        pass

    with pytest.raises(ValueError, match="must be hashable"):
        PeerOptions(ca=Unhashable())


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ({"verify_cert": False, "ca": "/a"}, "ca: verify_cert=False trusts everybody"),
        ({"verify_cert": False, "alternative_cn": "b"}, "alternative_cn='b': verify_cert=False"),
        ({"verify_hostname": False, "alternative_cn": "b"}, "verify_hostname=False accepts"),
    ],
)
def test_whom_to_trust_where_everybody_is_trusted_is_refused(
    options: dict[str, Any], right: str
) -> None:
    with pytest.raises(ValueError, match=right):
        PeerOptions(**options)


def test_other_versions_make_other_options() -> None:
    options = PeerOptions(read_timeout=1)
    changed = options.with_http_version(2, 1)
    assert (
        changed
        == options.set_http_version(2, 1)
        == PeerOptions(read_timeout=1, http_version=(2, 1))
    )
    assert options.http_version == (1, 1)
    with pytest.raises(ValueError, match=r"http_version=\(1, 2\)"):
        options.set_http_version(1, 2)


@pytest.mark.parametrize(
    ("pair", "alpn", "without_tls", "limited"),
    [
        ((1, 1), ("http/1.1",), (1, 1), "same"),
        ((2, 1), ("h2", "http/1.1"), (1, 1), "other"),
        ((2, 2), ("h2",), (2, 2), "none"),
    ],
)
def test_what_a_peer_may_speak_and_the_same_limited_to_http1(
    pair: tuple[int, int], alpn: tuple[str, ...], without_tls: tuple[int, int], limited: str
) -> None:
    options = PeerOptions(http_version=pair, dscp=1)
    assert options.alpn == alpn
    peer = https(options=options, sni="b.test", group_key=5)
    plain = HttpPeer("a.test", 80, options=options)
    assert (peer.http_version, plain.http_version) == (pair, without_tls)
    assert plain.http1() is (None if limited == "none" else plain)
    one = peer.http1()
    if limited == "other":
        assert one == attrs.evolve(peer, options=PeerOptions(http_version=(1, 1), dscp=1))
        assert one is not None
        assert one.reuse_key != peer.reuse_key
        assert peer.http1() is one
        assert one.http1() is one
        # Finding it out is no part of the peer's value.
        assert peer == https(options=options, sni="b.test", group_key=5)
        assert attrs.evolve(peer, host="c.test").http1() != one
    else:
        assert one is (peer if limited == "same" else None)
