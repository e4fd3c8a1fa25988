"""Server-sent events, filtered one by one: no event waits for the next.

nox -s demo -- server_sent_events       with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/server_sent_events.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -N http://127.0.0.1:8080/events
id: 1
data: one

id: 2
data: two

id: 3
data: three

This is what a body filter of one's own looks like; it knows LF alone. The module of sse_filter knows
all that an event may look like.
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import BodyChunk, HttpPeer, ResponseHeader, Session


@attrs.define
class Events:
    """What one stream needs: whether it is one, events so far, and the one that is not whole yet."""

    stream: bool = False
    count: int = 0
    rest: bytes = b""


@attrs.define
class NumberEvents(trioproxy.ProxyHttp[Events]):
    peer: HttpPeer

    def new_ctx(self) -> Events:
        return Events()

    async def upstream_peer(self, session: Session, ctx: Events) -> HttpPeer:
        return self.peer

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Events
    ) -> None:
        kind = upstream_response.headers.get("content-type") or ""
        ctx.stream = kind.startswith("text/event-stream")

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Events
    ) -> None:
        if not ctx.stream:
            return
        *whole, ctx.rest = (ctx.rest + (body.data or b"")).split(b"\n\n")
        out = b""
        for event in whole:
            ctx.count += 1
            out += b"id: %d\n%s\n\n" % (ctx.count, event)
        body.data = out + ctx.rest if end_of_stream else out


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(NumberEvents(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
