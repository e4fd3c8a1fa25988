"""A gateway for WebSockets: who may open one is decided by the request, then bytes are counted.

nox -s demo -- websocket_gateway        with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/websocket_gateway.py http://127.0.0.1:9000 127.0.0.1:8080

$ python -m websockets ws://127.0.0.1:8080/chat        (pip install websockets)
> hello
< hello

and, when it is closed, on the gateway's standard output:

/chat: 17 bytes to the origin, 9 bytes back
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import BodyChunk, HttpPeer, ProxyError, Session


@attrs.define
class Traffic:
    there: int = 0
    back: int = 0


@attrs.define
class WebSockets(trioproxy.ProxyHttp[Traffic]):
    peer: HttpPeer

    def new_ctx(self) -> Traffic:
        return Traffic()

    async def request_filter(self, session: Session, ctx: Traffic) -> bool:
        # An offer to switch protocols is a request like any other until the origin accepts it.
        if session.is_upgrade_req() and session.req_header().path.startswith("/private"):
            raise ProxyError.status(403)
        return False

    async def upstream_peer(self, session: Session, ctx: Traffic) -> HttpPeer:
        return self.peer

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Traffic
    ) -> None:
        ctx.there += len(body.data or b"")

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Traffic
    ) -> None:
        ctx.back += len(body.data or b"")

    async def logging(self, session: Session, e: ProxyError | None, ctx: Traffic) -> None:
        if session.was_upgraded():
            path = session.req_header().path
            print(f"{path}: {ctx.there} bytes to the origin, {ctx.back} bytes back", flush=True)


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(WebSockets(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
