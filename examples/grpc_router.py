"""gRPC calls, sent to one of two origins by service and method.

nox -s demo -- grpc_router              with two origins of its own; or by hand:
python examples/_grpc_origin.py 127.0.0.1:9000 &
python examples/_grpc_origin.py 127.0.0.1:9001 &
python examples/grpc_router.py http://127.0.0.1:9000 http://127.0.0.1:9001 127.0.0.1:8080

$ printf '\\0\\0\\0\\0\\5hello' | curl -i -o - --http2-prior-knowledge --data-binary @- \\
    -H 'content-type: application/grpc' -H 'te: trailers' http://127.0.0.1:8080/demo.Echo/Say
HTTP/2 200
...
x-routed-by: demo.Echo
...
grpc-status: 0
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import attrs

import trioproxy
from trioproxy import HttpPeer, PeerOptions, ResponseHeader, ServerConf, Session

# gRPC is HTTP/2 on both sides; in clear text both have to know.
CONF = ServerConf(h2c=True)
GRPC = PeerOptions(http_version=(2, 2), max_h2_streams=100, h2_ping_interval=30.0)

UNIMPLEMENTED = "12"


@attrs.define
class Route:
    key: str = ""
    peer: HttpPeer | None = None


@attrs.define
class GrpcRouter(trioproxy.ProxyHttp[Route]):
    """Routes by ``package.Service/Method``, or by ``package.Service`` for what is left."""

    routes: Mapping[str, HttpPeer]

    def new_ctx(self) -> Route:
        return Route()

    async def request_filter(self, session: Session, ctx: Route) -> bool:
        method = session.req_header().path.removeprefix("/")
        for ctx.key in (method, method.partition("/")[0]):
            ctx.peer = self.routes.get(ctx.key)
            if ctx.peer is not None:
                return False
        # What gRPC calls "trailers only". Any other error is told by its HTTP status: a client takes
        # 502 for UNAVAILABLE.
        fields = {
            "content-type": "application/grpc",
            "grpc-status": UNIMPLEMENTED,
            "grpc-message": "no origin has this service",
        }
        await session.write_response_header(ResponseHeader(200, fields), end_of_stream=True)
        return True

    async def upstream_peer(self, session: Session, ctx: Route) -> HttpPeer:
        assert ctx.peer is not None
        return ctx.peer

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Route
    ) -> None:
        upstream_response.headers.set("x-routed-by", ctx.key)


def router(first: str, second: str) -> GrpcRouter:
    one, two = (HttpPeer.parse(url, options=GRPC) for url in (first, second))
    return GrpcRouter({"demo.Echo": one, "demo.Echo/Shout": two, "demo.Other": two})


def main(
    first: str = "http://127.0.0.1:9000",
    second: str = "http://127.0.0.1:9001",
    bind: str = "127.0.0.1:8080",
) -> None:
    trioproxy.run(router(first, second), bind, conf=CONF)


if __name__ == "__main__":
    main(*sys.argv[1:])
