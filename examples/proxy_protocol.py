"""Behind a load balancer that tells who the client is by a PROXY header, and is alone let in.

nox -s demo -- proxy_protocol           with an origin of its own, or by hand:
python examples/_origin.py &
python examples/proxy_protocol.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i --haproxy-protocol http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
x-client: 127.0.0.1:40606
x-load-balancer: 127.0.0.1:40606

Without --haproxy-protocol the connection is closed, and the log says why. A load balancer announces
another address than its own, and so does this:

$ printf 'PROXY TCP4 203.0.113.7 203.0.113.9 40000 80\r\nGET / HTTP/1.0\r\nHost: a\r\n\r\n' \\
    | curl -sN telnet://127.0.0.1:8080
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, RequestHeader, ResponseHeader, ServerConf, Session
from trioproxy.connections import NetworkFilter

# Where the load balancers are. Whoever can connect from here is believed, whatever it says.
BALANCERS = ("127.0.0.1", "::1", "10.20.0.0/16")

CONF = ServerConf(
    proxy_protocol="in",
    trusted_proxies=BALANCERS,
    # Nobody else gets as far as TLS.
    connection_filter=NetworkFilter(allow=BALANCERS),
)


@attrs.define
class BehindBalancer(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: None
    ) -> None:
        # What a trusted proxy sent of X-Forwarded-For is kept, and the client appended to it.
        session.set_forwarding_fields(upstream_request)

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        digest, headers = session.digest(), upstream_response.headers
        headers.set("x-client", session.client_addr() or "unknown")
        headers.set("x-load-balancer", digest.connected_peer_addr or "unknown")
        if digest.proxy_header is not None and digest.proxy_header.tls is not None:
            headers.set("x-client-tls", digest.proxy_header.tls.version or "unknown")


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(BehindBalancer(HttpPeer.parse(origin)), bind, conf=CONF)


if __name__ == "__main__":
    main(*sys.argv[1:])
