"""Give each request an identifier that origin, client and log have in common.

nox -s demo -- request_ids              with an origin of its own, or by hand:
python examples/_origin.py &
python examples/request_ids.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
X-Request-Id: 01a213b7-f64b-7cf9-ba53-4c0f714bf084

GET /hello
X-Request-Id: 01a213b7-f64b-7cf9-ba53-4c0f714bf084      (what the origin was asked)
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, Session
from trioproxy.modules import HttpModules, RequestId, RequestIdModule


@attrs.define
class RequestIds(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(RequestId())

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        identifier = session.downstream_modules_ctx.get(RequestIdModule)
        assert identifier is not None
        print(f"{identifier.value} {session.request_summary()}")


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(RequestIds(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
