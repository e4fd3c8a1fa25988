"""Let the pages of some sites read what an origin answers.

nox -s demo -- cors                     with an origin of its own, or by hand:
python examples/_origin.py &
python examples/cors.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i -H 'Origin: https://www.app.example' http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
Access-Control-Allow-Origin: https://www.app.example

$ curl -i -X OPTIONS -H 'Origin: https://www.app.example' -H 'Access-Control-Request-Method: PUT' http://127.0.0.1:8080/hello
HTTP/1.1 204 No Content
...
Access-Control-Allow-Methods: GET, POST, PUT

The second one is what a browser asks before it puts something: the origin does not get to see it.
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import Cors, HttpModules


@attrs.define
class Shared(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(
            Cors(
                allow_origins=["https://app.example", "https://*.app.example"],
                allow_methods=["GET", "POST", "PUT"],
                allow_headers=["Content-Type", "Authorization"],
                allow_credentials=True,
            )
        )

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Shared(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
