"""Ask another service about each request before it goes on.

nox -s demo -- forward_auth             with an origin and a service of its own; or by hand:
python examples/_origin.py &
python examples/_auth_service.py 127.0.0.1:9001 &
python examples/forward_auth.py http://127.0.0.1:9000 http://127.0.0.1:9001 127.0.0.1:8080

$ curl -i -b session=of-ann http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
x-user: ann                             (what the origin was asked)

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 302 Found
Location: https://login.example/?to=/hello
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import ForwardAuth, HttpModules


@attrs.define
class AskFirst(trioproxy.ProxyHttp[None]):
    peer: HttpPeer
    service: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        asks = ForwardAuth(peer=self.service, path="/verify", to_origin=["X-User"], timeout=2)
        modules.add_module(asks)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(
    origin: str = "http://127.0.0.1:9000",
    service: str = "http://127.0.0.1:9001",
    bind: str = "127.0.0.1:8080",
) -> None:
    trioproxy.run(AskFirst(HttpPeer.parse(origin), HttpPeer.parse(service)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
