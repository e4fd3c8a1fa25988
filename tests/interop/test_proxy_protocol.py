"""PROXY headers of curl, and those that nginx reads."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import trio

from tests.interop._programs import Certificate, nginx, program, reverse, run
from tests.server._network import ask, get, serving
from trioproxy import HttpPeer, PeerOptions
from trioproxy.server._reverse import Reverse

pytestmark = [pytest.mark.socket, pytest.mark.interop]

IN = ("--proxy-protocol", "in", "--trusted-proxy", "127.0.0.1/32")
#: Answers who is announced, and where that client has connected to.
TELLS = """
  server {{
    listen 127.0.0.1:{port} LISTEN proxy_protocol;
    ssl_certificate {root}/chain.pem; ssl_certificate_key {root}/key.pem;
    default_type text/plain;
    location / {{
      set $client "$proxy_protocol_addr:$proxy_protocol_port";
      set $server "$proxy_protocol_server_addr:$proxy_protocol_server_port";
      return 200 "$client $server\n$server_protocol\n";
    }}
  }}
"""
#: Answers with the forwarding field it got.
MIRROR = """
  server {{
    listen 127.0.0.1:{port}; default_type text/plain;
    location / {{ return 200 "$http_x_forwarded_for\n"; }}
  }}
"""
#: What curl tells of its own connection.
MINE = ("-w", "%{local_ip}:%{local_port} %{remote_ip}:%{remote_port}\\n")


@pytest.mark.parametrize("http", ["--http1.1", "--http2"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curls_header_is_read_before_tls_and_http(scheme: str, http: str, tmp_path: Path) -> None:
    curl = program("curl")
    certificate = Certificate.make(tmp_path)
    tls = certificate.options if scheme == "https" else ("--h2c",)
    how = "--http2-prior-knowledge" if (scheme, http) == ("http", "--http2") else http
    with nginx(tmp_path, MIRROR) as port, reverse(*IN, *tls, f"http://127.0.0.1:{port}") as url:
        command = [curl, "-sS", how, "--cacert", str(certificate.authority)]
        said = run(*command, "--haproxy-protocol", "-w", "%{http_version}", f"{url}/")
        assert said == b"127.0.0.1\n" + (b"2" if http == "--http2" else b"1.1")


def test_a_client_that_another_proxy_announces_reaches_the_origin(tmp_path: Path) -> None:
    with nginx(tmp_path, MIRROR) as port, reverse(*IN, f"http://127.0.0.1:{port}") as url:
        host, _, number = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(number)), 10) as sock:
            sock.sendall(b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 80\r\n" + get("/"))
            said = b"".join(iter(lambda: sock.recv(65536), b""))
        assert said.startswith(b"HTTP/1.1 200 ")
        assert said.endswith(b"\r\n\r\n2001:db8::7\n")


@pytest.mark.parametrize(
    ("listen", "to", "spoken"),
    [
        ("", ("http://127.0.0.1:{}",), "HTTP/1.1"),
        ("http2", ("--upstream-http", "2", "http://127.0.0.1:{}"), "HTTP/2.0"),
        ("ssl", ("--upstream-ca", "{ca}", "https://localhost:{}"), "HTTP/1.1"),
        ("ssl http2", ("--upstream-ca", "{ca}", "https://localhost:{}"), "HTTP/2.0"),
    ],
)
def test_nginx_is_told_each_client_by_a_connection_of_its_own(
    listen: str, to: tuple[str, ...], spoken: str, tmp_path: Path
) -> None:
    curl = program("curl")
    certificate = Certificate.make(tmp_path)
    with nginx(tmp_path, TELLS.replace("LISTEN", listen)) as port:
        arguments = [each.format(port, ca=certificate.authority) for each in to]
        with reverse("--proxy-protocol", "out", *arguments) as url:
            for _ in range(2):  # each run of curl is another client
                # Two requests on one connection.
                said = run(curl, "-sS", *MINE, url, "--next", "-sS", *MINE, url).decode()
                told, version, mine = said.splitlines()[:3]
                assert (told, version) == (mine, spoken)
                assert said.splitlines()[3:] == [told, version, mine]


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_nginx_reads_both_versions_and_refuses_us_without(
    version: int, tmp_path: Path
) -> None:
    Certificate.make(tmp_path)
    options = PeerOptions(proxy_protocol=version)
    with trio.fail_after(30), nginx(tmp_path, TELLS.replace("LISTEN", "")) as port:
        proxy = Reverse([HttpPeer("127.0.0.1", port, options=options)])
        async with serving(proxy) as running:
            reply = await ask(running.urls[0])
        assert reply.status == (200 if version else 502)
        if version:
            address = running.urls[0].removeprefix("http://")
            pattern = rf"127\.0\.0\.1:[0-9]+ {re.escape(address)}\nHTTP/1\.1\n"
            assert re.fullmatch(pattern, reply.body.decode())
