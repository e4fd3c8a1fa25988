"""HTTP/2 for clients, where the origin speaks HTTP/1.1.

nox -s demo -- h2_to_h1                 with an origin of its own, or by hand:
python examples/_origin.py &
python examples/h2_to_h1.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i --http2-prior-knowledge http://127.0.0.1:8080/hello
HTTP/2 200
...
x-versions: HTTP/2 from the client, HTTP/1.1 to the origin

GET /hello
Host: 127.0.0.1:8080                    (what the origin was asked: Host is HTTP/2's :authority)
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ResponseHeader, ServerConf, Session

# In clear text a client has to know; over TLS (examples/tls_gateway.py) it is agreed on.
CONF = ServerConf(h2c=True)


@attrs.define
class Versions(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        # Nothing in a filter depends on the version; it is here to be looked at.
        ours, theirs = session.req_header().version, upstream_response.version
        told = f"{ours} from the client, {theirs} to the origin"
        upstream_response.headers.set("x-versions", told)


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Versions(HttpPeer.parse(origin)), bind, conf=CONF)


if __name__ == "__main__":
    main(*sys.argv[1:])
