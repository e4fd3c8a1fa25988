"""curl and openssl through streams below HTTP: what they verify is whom they speak with."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop._programs import PATIENCE, Certificate, origin, program, reverse, run

pytestmark = [pytest.mark.interop, pytest.mark.socket]

PAGE = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@contextlib.contextmanager
def s_server(certificate: Certificate, *arguments: str) -> Iterator[int]:
    """Run ``openssl s_server``, which sends back each line reversed; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-rev"]
    command += ["-cert", str(certificate.chain), "-key", str(certificate.key), *arguments]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with child:
        try:
            assert child.stdout is not None
            while b"ACCEPT" not in child.stdout.readline():
                assert child.poll() is None
            yield port
        finally:
            child.kill()


def s_client(url: str, *arguments: str, say: bytes = b"hello\n") -> bytes:
    """Run ``openssl s_client`` until a line has come back; return all that it printed."""
    where = url.partition("://")[2]
    command = [program("openssl"), "s_client", "-connect", where, "-verify_return_error"]
    child = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(say)
            child.stdin.flush()
            told, ends = b"", time.perf_counter() + PATIENCE
            while say.strip()[::-1] not in told and time.perf_counter() < ends:
                line = child.stdout.readline()
                if not line:
                    break
                told += line
            return told
        finally:
            child.kill()


@pytest.mark.parametrize("size", [0, 1, len(PAGE)])
def test_curl_gets_and_posts_through_a_stream(size: int, tmp_path: Path) -> None:
    curl = program("curl")
    body = tmp_path / "body"
    body.write_bytes(PAGE[:size])
    with (
        origin({"/": ("application/octet-stream", PAGE[:size])}) as url,
        reverse(url.replace("http:", "tcp:")) as front,
    ):
        where = front.replace("tcp:", "http:")
        assert run(curl, "-sS", f"{where}/") == PAGE[:size]
        assert run(curl, "-sS", "--data-binary", f"@{body}", f"{where}/") == PAGE[:size]
        # Two requests over one connection.
        assert run(curl, "-sS", f"{where}/", f"{where}/") == PAGE[:size] * 2


def test_curl_verifies_the_proxy_where_tls_ends_there(certificate: Certificate) -> None:
    curl = program("curl")
    with (
        origin({"/": ("text/plain", b"inside\n")}) as url,
        reverse(url.replace("http:", "tcp:"), *certificate.options) as front,
    ):
        assert front.startswith("tls://")
        where = front.replace("tls:", "https:")
        trust = ("--cacert", str(certificate.authority))
        assert run(curl, "-sS", *trust, f"{where}/") == b"inside\n"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_verifies_the_upstream_where_tls_passes_through(
    version: str, certificate: Certificate
) -> None:
    with s_server(certificate) as port, reverse(f"tcp://127.0.0.1:{port}") as front:
        trust = ("-CAfile", str(certificate.authority), "-verify_hostname", "localhost")
        told = s_client(front, version, *trust)
        assert b"Verify return code: 0 (ok)" in told or b"Verification: OK" in told
        assert b"olleh" in told


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_on_both_sides_where_tls_ends_at_the_proxy_and_opens_anew(
    version: str, certificate: Certificate
) -> None:
    with s_server(certificate, version) as port:
        upstream = f"tls://localhost:{port}"
        trust = ("--upstream-ca", str(certificate.authority))
        with reverse(upstream, *trust, *certificate.options) as front:
            told = s_client(front, "-CAfile", str(certificate.authority))
            assert b"olleh" in told


def test_openssl_is_cut_off_where_the_upstream_is_not_trusted(certificate: Certificate) -> None:
    with s_server(certificate) as port:
        command = ("--log-level", "critical")
        with reverse(f"tls://localhost:{port}", *certificate.options, *command) as front:
            told = s_client(front, "-CAfile", str(certificate.authority))
            assert b"olleh" not in told
