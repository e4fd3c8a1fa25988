from __future__ import annotations

from typing import Any

import attrs
import pytest

from trioproxy import PeerOptions
from trioproxy.peers import CertKey, Proxy
from trioproxy.stream import StreamPeer


@pytest.mark.parametrize(
    ("url", "expected", "name"),
    [
        ("tcp://127.0.0.1:5432", StreamPeer("127.0.0.1", 5432), "127.0.0.1:5432"),
        ("tcp://db.example:80", StreamPeer("db.example", 80), "db.example:80"),
        ("tcp://[::1]:1", StreamPeer("::1", 1), "[::1]:1"),
        (
            "tls://db.example:443",
            StreamPeer("db.example", 443, scheme="tls"),
            "tls://db.example:443",
        ),
        ("unix:/run/db.sock", StreamPeer(path="/run/db.sock"), "unix:/run/db.sock"),
    ],
)
def test_an_address_is_read(url: str, expected: StreamPeer, name: str) -> None:
    peer = StreamPeer.parse(url)
    assert peer == expected
    assert str(peer) == peer.name == name
    assert hash(peer) == hash(expected)


def test_tls_over_a_unix_socket_needs_a_name() -> None:
    peer = StreamPeer.parse("tls+unix:/run/db.sock", sni="db.example")
    assert (peer.path, peer.scheme, peer.name) == ("/run/db.sock", "tls", "tls+unix:/run/db.sock")
    assert peer.way.server_name == "db.example"
    with pytest.raises(ValueError, match=r"^sni=None: without a name no certificate can be"):
        StreamPeer.parse("tls+unix:/run/db.sock")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80",
        "tcp:127.0.0.1:80",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:80/path",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://::1:80",
        "tcp://http://a:80",
        "tcp://http+unix:path",
        "tcp://user@host:80",
        "http://127.0.0.1:80",
        "udp://127.0.0.1:80",
        "unix:",
        "tls+unix:",
    ],
)
def test_what_is_no_address_of_a_stream_says_what_is(url: str) -> None:
    with pytest.raises(ValueError, match=r"^'.*(PATH is right|tcp://host:port, tls://host:port)"):
        StreamPeer.parse(url)


def test_the_way_there_is_that_of_an_http_peer_with_all_its_options() -> None:
    options = PeerOptions(
        connection_timeout=3, bind_to="127.0.0.2", client_cert_key=CertKey("a.pem"), dscp=1
    )
    proxy = Proxy("proxy.example", 3128)
    peer = StreamPeer(
        "db.example", 5432, scheme="tls", sni="other.example", proxy=proxy, options=options
    )
    way = peer.way
    assert (way.host, way.port, way.scheme, way.proxy) == ("db.example", 5432, "https", proxy)
    assert (way.server_name, way.options) == ("other.example", options)
    assert peer.name == "tls://db.example:5432 via proxy.example:3128"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scheme": "http"}, "scheme='http': 'tcp' or 'tls' is right"),
        ({"port": 0}, "port=0: 1 to 65535 is right"),
        ({"path": "x"}, "a peer has host and port, or the path of a unix socket, not both"),
        ({"sni": "a.example"}, "sni is for TLS: scheme='tls' is right, or leave it out"),
        ({"alpn": ("h2",)}, "alpn is for TLS: scheme='tls' is right, or leave it out"),
        ({"scheme": "tls", "alpn": "h2"}, "alpn='h2': names of protocols for ALPN"),
        ({"scheme": "tls", "alpn": ("",)}, "alpn=('',): names of protocols for ALPN"),
        ({"scheme": "tls", "alpn": ("x" * 256,)}, "alpn=("),
        ({"options": "no"}, "options='no': a PeerOptions is right"),
        (
            {"options": PeerOptions(verify_cert=False)},
            "verify_cert is for TLS: scheme='tls' is right, or leave it out",
        ),
    ],
)
def test_a_wrong_field_is_told(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is compared below
        StreamPeer(**{"host": "127.0.0.1", "port": 80, **fields})
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("read_timeout", 1.0),
        ("idle_timeout", 1.0),
        ("allow_h1_response_invalid_content_length", True),
        ("http_version", (2, 1)),
        ("max_h2_streams", 2),
        ("h2_ping_interval", 1.0),
        ("h2_stream_window_size", 70000),
        ("h2_connection_window_size", 70000),
    ],
)
def test_options_that_are_for_http_are_refused(option: str, value: object) -> None:
    options = PeerOptions(**{option: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{option} is for HTTP, which a stream is not"):
        StreamPeer("127.0.0.1", 80, options=options)


def test_every_option_is_either_used_or_refused() -> None:
    used = {
        "connection_timeout",
        "tls_handshake_timeout",
        "total_connection_timeout",
        "write_timeout",
        "bind_to",
        "tcp_keepalive",
        "tcp_recv_buf",
        "dscp",
        "tcp_fast_open",
        "custom_l4",
        "extra_proxy_headers",
        "tracer",
        "verify_cert",
        "verify_hostname",
        "alternative_cn",
        "ca",
        "client_cert_key",
        "min_tls_version",
        "ciphers",
        "upstream_tls_handshake_complete_hook",
    }
    from trioproxy.stream._peer import _OF_HTTP

    assert not used & set(_OF_HTTP)
    fields = {field.name for field in attrs.fields(PeerOptions) if field.init}
    assert used | set(_OF_HTTP) == fields
