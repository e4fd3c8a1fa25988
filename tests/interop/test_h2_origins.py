"""nginx as an origin of HTTP/2, which ends its connections in the middle of the load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop._programs import Certificate, nginx, program, reverse, run

pytestmark = [pytest.mark.socket, pytest.mark.interop]

#: A GOAWAY behind so many requests, and fewer streams than clients of ours ask for.
HTTP = """
  keepalive_requests 30; http2_max_concurrent_streams 16;
  server {{
    listen 127.0.0.1:{port} LISTEN http2; root {root};
    ssl_certificate {root}/chain.pem; ssl_certificate_key {root}/key.pem;
  }}
"""


@pytest.mark.parametrize("kind", ["tls", "h2c"])
def test_no_request_is_lost_where_the_origin_ends_its_connections(
    kind: str, tmp_path: Path
) -> None:
    h2load = program("h2load")
    certificate = Certificate.make(tmp_path)
    (tmp_path / "page").write_bytes(b"Hello, world!\n")
    with nginx(tmp_path, HTTP.replace("LISTEN", "ssl" if kind == "tls" else "")) as port:
        if kind == "tls":
            to = ("--upstream-ca", str(certificate.authority), f"https://localhost:{port}")
        else:
            to = ("--upstream-http", "2", f"http://127.0.0.1:{port}")
        with reverse("--h2c", *to) as url:
            said = run(h2load, "-n", "300", "-c", "2", "-m", "20", f"{url}/page").decode("ascii")
    assert re.search(r"^requests: .* 300 succeeded, 0 failed, 0 errored", said, re.MULTILINE), said
    assert "status codes: 300 2xx" in said
