"""Two origins: try the first one, and the other where it cannot be connected to.

nox -s demo -- failover                 with origins of its own, the first one down; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/failover.py http://127.0.0.1:9001 http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
x-attempts: 2
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, PeerOptions, ProxyError, ResponseHeader, Session


@attrs.define
class Attempts:
    made: int = 0


@attrs.define
class Failover(trioproxy.ProxyHttp[Attempts]):
    peers: list[HttpPeer]

    def new_ctx(self) -> Attempts:
        return Attempts()

    async def upstream_peer(self, session: Session, ctx: Attempts) -> HttpPeer:
        # Called once per attempt: another answer the next time is what failing over is.
        peer = self.peers[ctx.made % len(self.peers)]
        ctx.made += 1
        return peer

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: Attempts, e: ProxyError
    ) -> ProxyError:
        # Nothing has been sent yet, so that a POST may be tried again, too.
        e.set_retry(ctx.made < len(self.peers))
        return e

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Attempts
    ) -> None:
        upstream_response.headers.set("x-attempts", str(ctx.made))


def main(
    first: str = "http://127.0.0.1:9001",
    second: str = "http://127.0.0.1:9000",
    bind: str = "127.0.0.1:8080",
) -> None:
    options = PeerOptions(connection_timeout=1.0)
    peers = [HttpPeer.parse(url, options=options) for url in (first, second)]
    trioproxy.run(Failover(peers), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
