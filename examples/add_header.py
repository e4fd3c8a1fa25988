"""Add a field to every request and to every reply.

nox -s demo -- add_header               with an origin of its own, or by hand:
python examples/_origin.py &
python examples/add_header.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
x-served-by: gateway

GET /hello
x-gateway: add_header                   (what the origin was asked)
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, RequestHeader, ResponseHeader, Session


@attrs.define
class AddHeader(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: None
    ) -> None:
        # A copy for this origin: session.req_header() stays as the client sent it.
        upstream_request.headers.set("x-gateway", "add_header")

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        upstream_response.headers.set("x-served-by", "gateway")
        upstream_response.headers.remove("server")


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(AddHeader(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
