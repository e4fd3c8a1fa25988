"""An origin that is reached through an HTTP CONNECT proxy.

nox -s demo -- connect_proxy            with an origin and a proxy of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/_connect_server.py 127.0.0.1:3128 &
python examples/connect_proxy.py http://127.0.0.1:9000 127.0.0.1:3128 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
x-tunnel: 200
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import Digest, HttpPeer, ProxyError, ResponseHeader, Session
from trioproxy.peers import ConnectProxyError, Proxy

# What the proxy of this example wants to see: demo:demo.
CREDENTIALS = "Basic ZGVtbzpkZW1v"


@attrs.define
class Tunnel:
    status: int = 0


@attrs.define
class Egress(trioproxy.ProxyHttp[Tunnel]):
    peer: HttpPeer

    def new_ctx(self) -> Tunnel:
        return Tunnel()

    async def upstream_peer(self, session: Session, ctx: Tunnel) -> HttpPeer:
        return self.peer

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: Tunnel, e: ProxyError
    ) -> ProxyError:
        refusal = e.cause
        if isinstance(refusal, ConnectProxyError) and refusal.response is not None:
            ctx.status = refusal.response.status
            print(f"{peer}: the proxy answered {ctx.status}", file=sys.stderr)
        return e

    async def connected_to_upstream(
        self,
        session: Session,
        reused: bool,
        peer: HttpPeer,
        fd: int,
        digest: Digest | None,
        ctx: Tunnel,
    ) -> None:
        if digest is not None and digest.proxy_reply is not None:
            ctx.status = digest.proxy_reply.status

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Tunnel
    ) -> None:
        upstream_response.headers.set("x-tunnel", str(ctx.status))


def through(origin: str, proxy: str, credentials: str = CREDENTIALS) -> HttpPeer:
    """Return the origin as a peer behind a proxy."""
    next_hop = Proxy.parse(proxy, headers={"Proxy-Authorization": credentials})
    return attrs.evolve(HttpPeer.parse(origin), proxy=next_hop)


def main(
    origin: str = "http://127.0.0.1:9000",
    proxy: str = "127.0.0.1:3128",
    bind: str = "127.0.0.1:8080",
) -> None:
    trioproxy.run(Egress(through(origin, proxy)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
