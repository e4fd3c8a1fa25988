"""curl, nghttp and h2load through ``trioproxy reverse`` over HTTP/2, to an HTTP/1.1 origin."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.interop._programs import Certificate, origin, program, reverse, run, started_once

pytestmark = [pytest.mark.socket, pytest.mark.interop]

LARGE = bytes(range(256)) * 8192  # 2 MiB, many times the windows that a connection starts with
PAGES = {"/small": ("text/plain", b"Hello, world!\n"), "/large": ("image/x-noise", LARGE)}
TARGETS = {*PAGES, "/echo", "/missing"}


@attrs.frozen
class Gateway:
    """A running proxy: its URL, and what curl needs for it."""

    url: str
    curl: tuple[str, ...]


@contextlib.contextmanager
def running(kind: str, directory: Path) -> Iterator[Gateway]:
    """Run the proxy, over TLS or in cleartext, and its origin."""
    with origin(PAGES) as behind:
        if kind == "h2c":
            with reverse("--h2c", behind) as url:
                yield Gateway(url, ("--http2-prior-knowledge",))
        else:
            certificate = Certificate.make(directory)
            with reverse(*certificate.options, behind) as url:
                yield Gateway(url, ("--http2", "--cacert", str(certificate.authority)))


@pytest.fixture(scope="module")
def gateways(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Gateway]]:
    directory = tmp_path_factory.mktemp("certificate")
    with started_once(lambda kind: running(kind, directory)) as start:
        yield start


@pytest.fixture(params=["tls", "h2c"])
def gateway(request: pytest.FixtureRequest, gateways: Callable[[str], Gateway]) -> Gateway:
    return gateways(request.param)


def curl(gateway: Gateway, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run curl; ``/small`` and the like are pages of the gateway."""
    path = program("curl")
    if b"HTTP2" not in run(path, "--version"):
        pytest.skip("this curl has no HTTP/2")
    command = [gateway.url + each if each in TARGETS else each for each in arguments]
    return run(path, "--silent", "--show-error", *gateway.curl, *command, stdin=stdin)


def test_curl_gets_pages_small_and_large(gateway: Gateway) -> None:
    told = "-w", "|%{http_version} %{http_code} %{content_type} %{num_connects}|"
    page = curl(gateway, *told, "/small")
    assert page == b"Hello, world!\n|2 200 text/plain 1|"
    assert curl(gateway, *told, "/missing") == b"no such page\n|2 404 text/plain 1|"
    assert curl(gateway, "/large") == LARGE


def test_curl_sees_a_head_without_a_body_for_head_and_none_of_hop_by_hop(gateway: Gateway) -> None:
    head = curl(gateway, "-D", "-", "-o", os.devnull, "/small").decode("ascii").lower()
    assert head.startswith("http/2 200")
    names = {line.partition(":")[0] for line in head.splitlines()[1:] if line.strip()}
    assert names >= {"content-type", "content-length", "server", "date"}
    assert not names & {"connection", "keep-alive", "transfer-encoding", "upgrade"}


def test_curl_posts_and_gets_it_back_with_and_without_a_length(gateway: Gateway) -> None:
    known = ("--data-binary", "@-", "/echo")
    assert curl(gateway, *known, stdin=LARGE) == LARGE
    unknown = ("-X", "POST", "-T", "-", "/echo")
    assert curl(gateway, *unknown, stdin=LARGE) == LARGE


def test_curl_has_many_requests_at_once_on_one_connection(gateway: Gateway) -> None:
    if gateway.url.startswith("http:"):
        pytest.skip("curl 7.88 mixes up its own transfers where it has no ALPN to wait for")
    told = "--parallel", "-w", "%{http_version} %{http_code} %{num_connects} %{size_download}\n"
    requests = ("-o", os.devnull, "/small") * 20
    lines = curl(gateway, *told, *requests).decode("ascii").splitlines()
    fields = [line.split() for line in lines]
    assert [(f[0], f[1], f[3]) for f in fields] == [("2", "200", "14")] * 20
    assert sum(int(f[2]) for f in fields) == 1


def test_http1_is_spoken_beside_it_on_the_same_port(gateway: Gateway) -> None:
    plain = attrs.evolve(gateway, curl=(*gateway.curl[1:], "--http1.1"))
    assert curl(plain, "-w", "%{http_version}", "/small") == b"Hello, world!\n1.1"


def test_an_upgrade_to_http2_in_cleartext_is_not_taken(gateway: Gateway) -> None:
    if gateway.url.startswith("https:"):
        pytest.skip("over TLS it is ALPN that chooses")
    asks = attrs.evolve(gateway, curl=("--http2",))
    assert curl(asks, "-w", "%{http_version}", "/small") == b"Hello, world!\n1.1"


def test_nghttp_gets_a_page_many_times_over_on_one_connection(gateway: Gateway) -> None:
    said = run(program("nghttp"), "-nv", "-m", "5", f"{gateway.url}/small").decode("ascii")
    said = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert len(re.findall(r"recv \(stream_id=\d+\) :status: 200", said)) == 5
    assert len(re.findall(r"recv DATA frame <length=14, flags=0x01, stream_id=\d+>", said)) == 5
    assert "RST_STREAM" not in said
    assert "recv GOAWAY" not in said


def test_nghttp_posts_with_trailers(gateway: Gateway, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"0123456789" * 20000)
    command = program("nghttp"), "--trailer", "x-sum: 45", "-d", str(body), f"{gateway.url}/echo"
    assert run(*command) == body.read_bytes()


def test_h2load_has_no_failure_with_many_streams_on_many_connections(gateway: Gateway) -> None:
    load = ("-n", "600", "-c", "4", "-m", "25")
    said = run(program("h2load"), *load, f"{gateway.url}/small").decode("ascii")
    done = "requests: 600 total, 600 started, 600 done, 600 succeeded, 0 failed, 0 errored"
    assert done in said
    assert "status codes: 600 2xx, 0 3xx, 0 4xx, 0 5xx" in said
