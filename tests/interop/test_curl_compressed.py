"""curl --compressed through ``trioproxy reverse --compress``: a decoder that is none of Python's."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.interop._programs import Certificate, origin, program, reverse, run

pytestmark = [pytest.mark.socket, pytest.mark.interop]

TEXT = b"".join(b"line %d of a text that is worth it\n" % number for number in range(20000))
PAGES = {
    "/text": ("text/plain", TEXT),
    "/picture": ("image/png", TEXT),
    "/short": ("text/plain", b"short"),
}


@attrs.frozen
class Gateway:
    """A running proxy, and what curl needs for it."""

    url: str
    options: tuple[str, ...]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gateway]]:
    certificate = Certificate.make(tmp_path_factory.mktemp("certificate"))
    authority = ("--cacert", str(certificate.authority))
    with (
        origin(PAGES) as behind,
        reverse("--compress", behind) as plain,
        reverse("--compress", *certificate.options, behind) as tls,
        reverse("--compress", "--cache", "memory", behind) as cached,
    ):
        yield {
            "http/1.1": Gateway(plain, ("--http1.1",)),
            "http/2": Gateway(tls, ("--http2", *authority)),
            "cached": Gateway(cached, ("--http1.1",)),
        }


def curl(gateway: Gateway, path: str, *arguments: str) -> bytes:
    """Run curl."""
    command = ("--silent", "--show-error", *gateway.options, *arguments, gateway.url + path)
    return run(program("curl"), *command)


def features() -> set[str]:
    """Return what this curl can do."""
    told = run(program("curl"), "--version").decode()
    return set(told.partition("Features:")[2].split())


@pytest.mark.parametrize("kind", ["http/1.1", "http/2", "cached"])
@pytest.mark.parametrize(
    ("coding", "feature"),
    [("gzip", "libz"), ("deflate", "libz"), ("br", "brotli"), ("zstd", "zstd"), (None, "libz")],
)
def test_curl_decodes_what_it_asked_for(
    coding: str | None, feature: str, kind: str, gateways: dict[str, Gateway]
) -> None:
    if feature not in features():
        pytest.skip(f"this curl has no {feature}")
    asked = [] if coding is None else ["-H", f"Accept-Encoding: {coding}"]
    told = ("-w", "|%{size_download}")
    got, _, size = curl(gateways[kind], "/text", "--compressed", *asked, *told).rpartition(b"|")
    assert got == TEXT
    assert int(size) < len(TEXT) / 5


@pytest.mark.parametrize("kind", ["http/1.1", "http/2", "cached"])
def test_curl_gets_plain_what_it_did_not_ask_for(kind: str, gateways: dict[str, Gateway]) -> None:
    gateway = gateways[kind]
    assert curl(gateway, "/text") == TEXT
    for path, body in (("/picture", TEXT), ("/short", b"short")):
        head = curl(gateway, path, "--compressed", "-D", "-", "-o", os.devnull).decode().lower()
        assert "content-encoding" not in head
        assert f"content-length: {len(body)}" in head
        assert curl(gateway, path, "--compressed") == body


def test_curl_sees_the_same_head_for_head(gateways: dict[str, Gateway]) -> None:
    gateway = gateways["http/1.1"]
    gzip_only = ("-H", "Accept-Encoding: gzip")
    get = curl(gateway, "/text", *gzip_only, "-D", "-", "-o", os.devnull)
    head = curl(gateway, "/text", *gzip_only, "--head")
    without_date = [re.sub(rb"(?im)^date:.*\r\n", b"", each) for each in (get, head)]
    assert without_date[0] == without_date[1]
    assert b"Content-Encoding: gzip" in head


def test_the_bytes_are_those_of_gzip(gateways: dict[str, Gateway], tmp_path: Path) -> None:
    file = tmp_path / "text.gz"
    curl(gateways["http/1.1"], "/text", "-H", "Accept-Encoding: gzip", "-o", str(file))
    assert gzip.decompress(file.read_bytes()) == TEXT
    assert run(program("gzip"), "-dc", str(file)) == TEXT
