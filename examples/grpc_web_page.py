"""A page that calls a gRPC origin from the browser, by gRPC-Web.

nox -s demo -- grpc_web_page            with an origin of its own; or by hand:
python examples/_grpc_origin.py 127.0.0.1:9000 &
python examples/grpc_web_page.py http://127.0.0.1:9000 127.0.0.1:8080

Open http://127.0.0.1:8080/ in a browser, or:

$ printf '\\0\\0\\0\\0\\5hello' | curl -i -o - --data-binary @- \\
    -H 'content-type: application/grpc-web' http://127.0.0.1:8080/demo.Echo/Say
HTTP/1.1 200 OK
content-type: application/grpc-web
...
$ printf '\\0\\0\\0\\0\\5hello' | base64 | tr -d '\\n' | curl -i --data-binary @- \\
    -H 'content-type: application/grpc-web-text' http://127.0.0.1:8080/demo.Echo/Say
HTTP/1.1 200 OK
content-type: application/grpc-web-text
...

The messages of the origin are plain text; with protobuf the frames are the same.
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, PeerOptions, ResponseHeader, Session
from trioproxy.modules import GrpcWeb, HttpModules

# gRPC is HTTP/2, whatever the browser speaks; in clear text we have to know.
GRPC = PeerOptions(http_version=(2, 2), max_h2_streams=100)

PAGE = b"""<!doctype html>
<html><head><meta charset="utf-8"><title>gRPC-Web</title><link rel="icon" href="data:,"></head>
<body><h1>gRPC-Web</h1>
<form><input id="message" value="hello"> <button>Say</button></form><pre id="told"></pre>
<script>
// A frame: a byte of flags, four of length, and the message.
function frame(message) {
  const framed = new Uint8Array(5 + message.length);
  new DataView(framed.buffer).setUint32(1, message.length);
  framed.set(message, 5);
  return framed;
}

// Base64 may be padded wherever the sender flushed: the first group that is padded ends a unit.
function fromBase64(text) {
  const units = (text.match(/[^=]+={0,2}/g) || []).map(atob);
  return Uint8Array.from(units.join(""), (letter) => letter.charCodeAt(0));
}

async function* pieces(response, text) {
  const reader = response.body.getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    if (!text) { yield value; continue; }
    rest += new TextDecoder().decode(value);
    const whole = rest.length - rest.length % 4;
    yield fromBase64(rest.slice(0, whole));
    rest = rest.slice(whole);
  }
}

async function call(path, message, {text, onmessage}) {
  const body = frame(new TextEncoder().encode(message));
  const kind = text ? "application/grpc-web-text" : "application/grpc-web";
  const response = await fetch(path, {
    method: "POST",
    headers: {"content-type": kind, "x-grpc-web": "1"},
    body: text ? btoa(String.fromCharCode(...body)) : body,
  });
  if (!(response.headers.get("content-type") || "").startsWith("application/grpc-web")) {
    throw new Error("HTTP status " + response.status);
  }
  // An error without any message has its trailers in the head.
  let status = response.headers.get("grpc-status");
  let buffer = new Uint8Array();
  for await (const piece of pieces(response, text)) {
    const joined = new Uint8Array(buffer.length + piece.length);
    joined.set(buffer);
    joined.set(piece, buffer.length);
    buffer = joined;
    while (buffer.length >= 5) {
      const end = 5 + new DataView(buffer.buffer, buffer.byteOffset).getUint32(1);
      if (buffer.length < end) break;
      const content = new TextDecoder().decode(buffer.subarray(5, end));
      if (buffer[0] & 0x80) status = /^grpc-status: *([0-9]+)/m.exec(content)[1];
      else onmessage(content);
      buffer = buffer.slice(end);
    }
  }
  return status;
}

async function say(event) {
  if (event) event.preventDefault();
  const told = document.getElementById("told");
  told.textContent = "";
  for (const text of [false, true]) {
    const onmessage = (message) => { told.textContent += "message: " + message + "\\n"; };
    const message = document.getElementById("message").value;
    const status = await call("/demo.Echo/Say", message, {text, onmessage});
    told.textContent += (text ? "text" : "binary") + ", status: " + status + "\\n";
  }
}

document.querySelector("form").onsubmit = say;
window.onload = () => say();
</script></body></html>
"""


@attrs.define
class GrpcWebPage(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(GrpcWeb())

    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        head = session.req_header()
        if head.method != "GET" or head.path != "/":
            return False
        fields = {"content-type": "text/html", "content-length": str(len(PAGE))}
        await session.write_response_header(ResponseHeader(200, fields))
        await session.write_response_body(PAGE, end_of_stream=True)
        return True

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def gateway(origin: str) -> GrpcWebPage:
    return GrpcWebPage(HttpPeer.parse(origin, options=GRPC))


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(gateway(origin), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
