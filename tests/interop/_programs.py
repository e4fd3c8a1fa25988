"""``trioproxy reverse`` as a process, an origin and a certificate, for programs that are not ours."""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import attrs
import pytest
import trustme

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]

#: How long a program may take that hangs. None of them does more than a second's work.
PATIENCE = 30.0
CLIENT_GONE = " ERROR trioproxy: Fail to proxy: Downstream ConnectionClosed "


@attrs.frozen
class Certificate:
    """Files of a certificate for localhost and 127.0.0.1."""

    chain: Path
    key: Path
    authority: Path

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        """Make one by an authority of its own."""
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        found = cls(directory / "chain.pem", directory / "key.pem", directory / "ca.pem")
        for number, blob in enumerate(leaf.cert_chain_pems):
            blob.write_to_path(found.chain, append=number > 0)
        leaf.private_key_pem.write_to_path(found.key)
        authority.cert_pem.write_to_path(found.authority)
        return found

    @property
    def options(self) -> tuple[str, ...]:
        """What lets ``reverse`` serve with it."""
        return ("--tls-cert", str(self.chain), "--tls-key", str(self.key))


def program(name: str) -> str:
    """Return the path of a program; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str, stdin: bytes = b"") -> bytes:
    """Run a program that has to succeed; return what it printed."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@contextlib.contextmanager
def started_once(
    start: Callable[[str], contextlib.AbstractContextManager[T]],
) -> Iterator[Callable[[str], T]]:
    """Give a function that starts something of a kind when it is asked for first.

    In place of a fixture with parameters: random order would start that over and over.
    """
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(start(kind)))


@contextlib.contextmanager
def reverse(*arguments: str) -> Iterator[str]:
    """Run ``trioproxy reverse`` on a free port; gives its URL.

    It has to stop well, having logged no other error than that clients went away.
    """
    command = [sys.executable, "-m", "trioproxy", "reverse", "--bind", "127.0.0.1:0"]
    command += ["--log-level", "error", "--grace", "5", *arguments]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    with child:
        try:
            first = child.stderr.readline()
            said, _, url = first.strip().rpartition(" ")
            assert said == "listening on", first + child.stderr.read()
            yield url
            child.terminate()
            _, log = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
    lines = log.splitlines()
    unexpected = [line for line in lines if CLIENT_GONE not in line]
    assert (child.returncode, unexpected) == (0, []), (child.returncode, unexpected)


_NGINX = """
daemon off; master_process off; worker_processes 1; pid {root}/nginx.pid;
error_log {root}/error.log error;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
  uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
  {http}
}}
"""


@contextlib.contextmanager
def nginx(root: Path, http: str) -> Iterator[int]:
    """Run nginx on a free port of 127.0.0.1, which it gives.

    Args:
      root: A directory for its files.
      http: Its settings for HTTP; ``{root}`` and ``{port}`` are filled in.
    """
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("nginx is not installed")
    root.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    conf = root / "nginx.conf"
    settings = http.format(root=root, port=port)
    conf.write_text(_NGINX.format(root=root, http=settings), encoding="utf-8")
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


@contextlib.contextmanager
def origin(pages: dict[str, tuple[str, bytes]] | None = None) -> Iterator[str]:
    """Serve pages by path over HTTP/1.1, and send back what is posted; gives the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # A response is written in two pieces, the second of which would wait for the first's ACK.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            found = (pages or {}).get(self.path)
            content_type, body = found or ("text/plain", b"no such page\n")
            self._answer(200 if found else 404, content_type, body)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length")
            body = self._chunks() if length is None else self.rfile.read(int(length))
            self._answer(200, "application/octet-stream", body)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
