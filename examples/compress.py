"""Compress responses for clients that accept it, and decode requests before the origin sees them.

nox -s demo -- compress                 with an origin of its own, or by hand:
python examples/_origin.py &
python examples/compress.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -s -D - --compressed http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
Vary: Accept-Encoding
Content-Encoding: gzip
...
GET /hello
...
$ curl -N --compressed http://127.0.0.1:8080/events        each event comes at once
$ echo hello | gzip | curl --data-binary @- -H 'Content-Encoding: gzip' http://127.0.0.1:8080/
...
hello
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import (
    HttpModules,
    RequestDecompressionBuilder,
    ResponseCompression,
    ResponseCompressionBuilder,
)


@attrs.define
class Compress(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(RequestDecompressionBuilder())
        # gzip alone: br and zstd are better, and need trioproxy[compress].
        modules.add_module(ResponseCompressionBuilder(level=6, algorithms=["gzip"]))

    async def request_filter(self, session: Session, ctx: None) -> bool:
        if session.req_header().path == "/events":
            # What never ends is worth less work for each piece.
            compression = session.downstream_modules_ctx.get(ResponseCompression)
            assert compression is not None
            compression.adjust_level(1)
        return False

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Compress(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
