"""nginx as an origin of HTTP/2, which ends its connections in the middle of the load."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop._programs import Certificate, program, reverse, run

pytestmark = [pytest.mark.socket, pytest.mark.interop]

#: A GOAWAY behind so many requests, and fewer streams than clients of ours ask for.
CONF = """
daemon off; master_process off; worker_processes 1; pid {root}/nginx.pid;
error_log {root}/error.log error;
events {{ worker_connections 512; }}
http {{
  access_log off; keepalive_requests 30; http2_max_concurrent_streams 16;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
  uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
  server {{
    listen 127.0.0.1:{port} {tls} http2; root {root};
    ssl_certificate {root}/chain.pem; ssl_certificate_key {root}/key.pem;
  }}
}}
"""


@contextlib.contextmanager
def nginx(root: Path, *, tls: bool) -> Iterator[int]:
    """Run nginx with one page; gives its port."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("nginx is not installed")
    root.chmod(0o755)
    (root / "page").write_bytes(b"Hello, world!\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    conf = root / "nginx.conf"
    text = CONF.format(root=root, port=port, tls="ssl" if tls else "")
    conf.write_text(text, encoding="utf-8")
    command = [found, "-e", str(root / "error.log"), "-p", str(root), "-c", str(conf)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        try:
            while child.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                except OSError:
                    time.sleep(0.01)  # another process's start, which cannot be awaited
                else:
                    break
            assert child.returncode is None, child.communicate()
            yield port
        finally:
            child.kill()


@pytest.mark.parametrize("kind", ["tls", "h2c"])
def test_no_request_is_lost_where_the_origin_ends_its_connections(
    kind: str, tmp_path: Path
) -> None:
    h2load = program("h2load")
    certificate = Certificate.make(tmp_path)
    with nginx(tmp_path, tls=kind == "tls") as port:
        if kind == "tls":
            to = ("--upstream-ca", str(certificate.authority), f"https://localhost:{port}")
        else:
            to = ("--upstream-http", "2", f"http://127.0.0.1:{port}")
        with reverse("--h2c", *to) as url:
            said = run(h2load, "-n", "300", "-c", "2", "-m", "20", f"{url}/page").decode("ascii")
    assert re.search(r"^requests: .* 300 succeeded, 0 failed, 0 errored", said, re.MULTILINE), said
    assert "status codes: 300 2xx" in said
