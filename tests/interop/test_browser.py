"""A page in headless Chromium, over HTTP/2 through ``trioproxy reverse``."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from tests.interop._programs import Certificate, origin, program, reverse, run

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


def test_a_page_with_what_belongs_to_it_comes_over_http2(tmp_path: Path) -> None:
    browser = program("chromium")
    certificate = Certificate.make(tmp_path)
    with origin(PAGES) as behind, reverse(*certificate.options, behind) as url:
        shown = run(
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--ignore-certificate-errors",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            f"{url}/",
        ).decode()
    match = re.search(r'<pre id="told">(.*?)</pre>', shown, re.DOTALL)
    assert match is not None, shown
    told = json.loads(html.unescape(match[1]))
    expected = ["/", "/app.js", "/dot.svg", "/echo", "/style.css"]
    assert sorted(told["loaded"]) == [[path, "h2"] for path in expected]
    assert (told["color"], told["script"], told["echoed"]) == ("rgb(1, 2, 3)", True, 300000)
