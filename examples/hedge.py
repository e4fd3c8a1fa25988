"""Two origins: where the first has not answered after 50 ms, the second is asked as well.

nox -s demo -- hedge                    with origins of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/_origin.py 127.0.0.1:9001 &
python examples/hedge.py http://127.0.0.1:9000 http://127.0.0.1:9001 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
x-attempts: 1
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ResponseHeader, Session

PATIENCE = 0.05


@attrs.define
class Attempts:
    made: int = 0


@attrs.define
class Hedging(trioproxy.ProxyHttp[Attempts]):
    peers: list[HttpPeer]

    def new_ctx(self) -> Attempts:
        return Attempts()

    async def upstream_peer(self, session: Session, ctx: Attempts) -> HttpPeer:
        # Called for the second attempt as well; the first one goes on meanwhile.
        session.hedge(PATIENCE)
        peer = self.peers[ctx.made % len(self.peers)]
        ctx.made += 1
        return peer

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Attempts
    ) -> None:
        # Only the answer that came first is ever seen here.
        upstream_response.headers.set("x-attempts", str(ctx.made))


def main(
    first: str = "http://127.0.0.1:9000",
    second: str = "http://127.0.0.1:9001",
    bind: str = "127.0.0.1:8080",
) -> None:
    trioproxy.run(Hedging([HttpPeer.parse(first), HttpPeer.parse(second)]), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
