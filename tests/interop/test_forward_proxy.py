"""curl, Node.js and the `websockets` client through CONNECT tunnels of ``trioproxy reverse``."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest
import websockets.sync.client
import websockets.sync.server

from tests.interop._programs import Certificate, program, reverse, run, started_once

pytestmark = [pytest.mark.socket, pytest.mark.interop]

LARGE = bytes(range(256)) * 8192


class Pages(BaseHTTPRequestHandler):
    """Serves one large page, and sends back what is posted."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(LARGE)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@contextlib.contextmanager
def secure_origin(certificate: Certificate) -> Iterator[int]:
    """Serve pages over TLS; gives the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@attrs.frozen
class Forward:
    """A running proxy, an origin, and the authority of both."""

    url: str
    port: int
    authority: str


@contextlib.contextmanager
def running(kind: str, directory: Path) -> Iterator[Forward]:
    mine = directory / kind
    mine.mkdir()
    certificate = Certificate.make(mine)
    options = certificate.options if kind == "https" else ("--h2c",)
    with secure_origin(certificate) as port:
        allow = ("--allow-connect", f"localhost:{port}")
        with reverse(*options, *allow, "http://127.0.0.1:1") as url:
            yield Forward(url, port, str(certificate.authority))


@pytest.fixture(scope="module")
def forwards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Forward]]:
    directory = tmp_path_factory.mktemp("certificate")
    with started_once(lambda kind: running(kind, directory)) as start:
        yield start


def curl(forward: Forward, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run curl with the proxy."""
    proxy = forward.url.replace("127.0.0.1", "localhost")
    trust = ("--cacert", forward.authority, "--proxy-cacert", forward.authority)
    return run(program("curl"), "-sS", "--proxy", proxy, *trust, *arguments, stdin=stdin)


@pytest.mark.parametrize("kind", ["http", "https"])
def test_curl_reaches_an_https_origin_through_it(
    kind: str, forwards: Callable[[str], Forward]
) -> None:
    forward = forwards(kind)
    url = f"https://localhost:{forward.port}/"
    assert curl(forward, url) == LARGE
    assert curl(forward, "--data-binary", "@-", url, stdin=LARGE) == LARGE


@pytest.mark.parametrize("kind", ["http", "https"])
def test_curl_is_told_what_is_not_allowed(kind: str, forwards: Callable[[str], Forward]) -> None:
    forward = forwards(kind)
    shown = ("-o", "/dev/null", "-w", "%{http_connect}", "https://example.com/")
    command = (program("curl"), "-s", "--proxy", forward.url.replace("127.0.0.1", "localhost"))
    done = run("sh", "-c", '"$@"; test $? = 56', "sh", *command, "--proxy-cacert",
               forward.authority, *shown)  # fmt: skip
    assert done == b"403"


NODE = """
const http2 = require('http2'), tls = require('tls'), fs = require('fs');
const [url, target, ca] = process.argv.slice(1);
const trusted = fs.readFileSync(ca);
const session = http2.connect(url, {ca: trusted});
const wanted = 3;
let done = 0;
function one() {
  const stream = session.request({':method': 'CONNECT', ':authority': target});
  stream.on('response', headers => {
    if (headers[':status'] !== 200) throw new Error(headers[':status']);
    const inner = tls.connect({socket: stream, servername: 'localhost', ca: trusted}, () => {
      inner.write('GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n');
    });
    let size = 0;
    inner.on('data', data => { size += data.length; });
    inner.on('end', () => {
      console.log(size > 2097152);
      stream.end();
      if (++done === wanted) session.close();
    });
  });
}
for (let i = 0; i < wanted; i++) one();
"""


@pytest.mark.parametrize("kind", ["http", "https"])
def test_node_opens_several_tunnels_on_one_connection_of_http_2(
    kind: str, forwards: Callable[[str], Forward]
) -> None:
    forward = forwards(kind)
    url = forward.url.replace("127.0.0.1", "localhost")
    node = program("node")
    said = run(node, "-e", NODE, url, f"localhost:{forward.port}", forward.authority)
    assert said.split() == [b"true"] * 3


def test_a_websocket_goes_through_it() -> None:
    def echo(connection: websockets.sync.server.ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with websockets.sync.server.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.socket.getsockname()[1]
            allow = ("--allow-connect", f"127.0.0.1:{port}")
            with (
                reverse(*allow, "http://127.0.0.1:1") as url,
                websockets.sync.client.connect(
                    f"ws://127.0.0.1:{port}", proxy=url, max_size=None
                ) as client,
            ):
                for message in ("hello", LARGE):
                    client.send(message)
                    assert client.recv() == message
        finally:
            server.shutdown()
            thread.join()
