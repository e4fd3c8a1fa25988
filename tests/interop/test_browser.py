"""Pages in headless Chromium, over HTTP/2 through ``trioproxy reverse``."""

from __future__ import annotations

import html
import http
import json
import queue
import re
import signal
import subprocess
import threading
import urllib.parse
from pathlib import Path

import pytest
import trio
import websockets.sync.server
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tests.interop._programs import PATIENCE, Certificate, origin, program, reverse, run
from tests.server._network import Program

Connection = websockets.sync.server.ServerConnection

pytestmark = [pytest.mark.socket, pytest.mark.interop, pytest.mark.slow]

# What the page tells: each thing that was loaded, over which protocol, and its size.
PAGE = b"""<!doctype html>
<html><head><title>page</title><link rel="stylesheet" href="/style.css">
<link rel="icon" href="data:,"><script src="/app.js"></script></head>
<body><img src="/dot.svg"><pre id="told"></pre><script>
window.onload = async () => {
  const echoed = await (await fetch("/echo", {method: "POST", body: "x".repeat(300000)})).text();
  const entries = performance.getEntriesByType("navigation")
    .concat(performance.getEntriesByType("resource"));
  const loaded = entries.map(e => [new URL(e.name).pathname, e.nextHopProtocol]);
  const color = getComputedStyle(document.body).color;
  document.getElementById("told").textContent = JSON.stringify(
    {loaded, color, script: window.loaded, echoed: echoed.length});
};
</script></body></html>
"""
PAGES = {
    "/": ("text/html", PAGE),
    "/style.css": ("text/css", b"body { color: rgb(1, 2, 3) }" + b" " * 100000),
    "/app.js": ("text/javascript", b"window.loaded = true;" + b" " * 100000),
    "/dot.svg": ("image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg" width="1"/>'),
}


TALK = b"""<!doctype html>
<html><head><link rel="icon" href="data:,"></head><body><script>
const socket = new WebSocket(location.href.replace("https", "wss") + "socket", "chat");
socket.binaryType = "arraybuffer";
const told = {sizes: []};
socket.onopen = () => {
  told.protocol = socket.protocol;
  for (const size of [1, 1000, 300000]) socket.send("x".repeat(size));
};
socket.onmessage = (event) => {
  told.sizes.push(event.data.length);
  if (told.sizes.length == 3) socket.close(4001, "bye");
};
socket.onclose = (event) => {
  told.closed = [event.code, event.reason, event.wasClean];
  fetch("/told?" + encodeURIComponent(JSON.stringify(told)));
};
</script></body></html>
"""


def chromium(directory: Path, *arguments: str) -> list[str]:
    """Return the command that runs the browser without a window."""
    return [
        program("chromium"),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--ignore-certificate-errors",
        f"--user-data-dir={directory / 'profile'}",
        *arguments,
    ]


def test_a_page_with_what_belongs_to_it_comes_over_http2(tmp_path: Path) -> None:
    command = chromium(tmp_path, "--virtual-time-budget=10000", "--dump-dom")
    certificate = Certificate.make(tmp_path)
    with origin(PAGES) as behind, reverse(*certificate.options, behind) as url:
        shown = run(*command, f"{url}/").decode()
    match = re.search(r'<pre id="told">(.*?)</pre>', shown, re.DOTALL)
    assert match is not None, shown
    told = json.loads(html.unescape(match[1]))
    expected = ["/", "/app.js", "/dot.svg", "/echo", "/style.css"]
    assert sorted(told["loaded"]) == [[path, "h2"] for path in expected]
    assert (told["color"], told["script"], told["echoed"]) == ("rgb(1, 2, 3)", True, 300000)


def test_a_websocket_of_a_page_goes_over_http2(tmp_path: Path) -> None:
    command = chromium(
        tmp_path, "--remote-debugging-port=0"
    )  # or it would end with the page's load
    via: list[str] = []
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def page(connection: Connection, request: Request) -> Response | None:
        path, _, query = request.path.partition("?")
        if path == "/socket":
            return None
        if path == "/told":
            told.put(urllib.parse.unquote(query))
        response = connection.respond(http.HTTPStatus.OK, TALK.decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html"
        return response

    def echo(connection: Connection) -> None:
        assert connection.request is not None
        via.append(connection.request.headers["Via"])
        for message in connection:
            connection.send(message)

    certificate = Certificate.make(tmp_path)
    serving = websockets.sync.server.serve(
        echo, "127.0.0.1", 0, process_request=page, subprotocols=[Subprotocol("chat")]
    )
    thread = threading.Thread(target=serving.serve_forever)
    with serving as server:
        thread.start()
        port = server.socket.getsockname()[1]
        with (
            reverse(*certificate.options, f"http://127.0.0.1:{port}") as url,
            subprocess.Popen([*command, f"{url}/"], stderr=subprocess.DEVNULL) as browser,
        ):
            try:
                found = json.loads(told.get(timeout=PATIENCE))
            finally:
                browser.terminate()
    thread.join()
    assert found == {"sizes": [1, 1000, 300000], "protocol": "chat", "closed": [4001, "bye", True]}
    assert via == ["2 trioproxy"]


async def test_a_page_calls_a_grpc_origin_by_grpc_web(tmp_path: Path) -> None:
    command = chromium(tmp_path, "--virtual-time-budget=10000", "--dump-dom")
    with trio.fail_after(PATIENCE):
        async with Program.start("examples", "grpc_web_page") as example:
            url = await example.until(r"listening on (\S+)\n")
            page = await trio.to_thread.run_sync(lambda: run(*command, f"{url}/"))
            assert await example.ends(signal.SIGINT) == 0
    match = re.search(r'<pre id="told">(.*?)</pre>', page.decode(), re.DOTALL)
    assert match is not None, page
    assert match[1].splitlines() == [
        "message: hello",
        "binary, status: 0",
        "message: hello",
        "text, status: 0",
    ]
