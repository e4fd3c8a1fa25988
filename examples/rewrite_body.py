"""Rewrite the body of every text reply while it streams through: no piece waits for the next.

nox -s demo -- rewrite_body             with an origin of its own, or by hand:
python examples/_origin.py &
python examples/rewrite_body.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -N http://127.0.0.1:8080/count
1: one
2: two
3: three
4: four
5: five
(5 lines)
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import BodyChunk, HttpPeer, ResponseHeader, Session


@attrs.define
class Numbering:
    """What one reply needs: whether it is text, lines so far, and the line that is not whole yet."""

    text: bool = False
    lines: int = 0
    rest: bytes = b""


@attrs.define
class NumberLines(trioproxy.ProxyHttp[Numbering]):
    peer: HttpPeer

    def new_ctx(self) -> Numbering:
        return Numbering()

    async def upstream_peer(self, session: Session, ctx: Numbering) -> HttpPeer:
        return self.peer

    async def upstream_response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Numbering
    ) -> None:
        headers = upstream_response.headers
        ctx.text = (headers.get("content-type") or "").startswith("text/")
        if ctx.text:
            # The length changes: without the field the proxy frames the reply by itself.
            headers.remove("content-length")

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Numbering
    ) -> None:
        if not ctx.text:
            return
        *whole, ctx.rest = (ctx.rest + (body.data or b"")).split(b"\n")
        if end_of_stream and ctx.rest:
            whole.append(ctx.rest)
        out = b""
        for line in whole:
            ctx.lines += 1
            out += b"%d: %s\n" % (ctx.lines, line)
        if end_of_stream:
            out += b"(%d lines)\n" % ctx.lines
        body.data = out


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(NumberLines(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
