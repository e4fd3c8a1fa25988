"""Make an origin a part of a site, its redirects and its cookies included.

nox -s demo -- part_of_a_site           with an origin of its own, or by hand:
python examples/_origin.py &
python examples/part_of_a_site.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/shop/cart
HTTP/1.1 200 OK
...
GET /cart                               (what the origin was asked)

$ curl -i http://127.0.0.1:8080/cart
HTTP/1.1 404 Not Found
...

A Location of the origin's that says http://127.0.0.1:9000/done becomes /shop/done, and a cookie for
the path / one for /shop.
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import HttpModules, PathPrefix, RewriteCookies, RewriteLocation


@attrs.define
class Shop(trioproxy.ProxyHttp[None]):
    origin: str

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(PathPrefix(strip="/shop"))
        modules.add_module(RewriteLocation(origins=[self.origin]))
        modules.add_module(RewriteCookies(domains={"*": None}, http_only=True, same_site="Lax"))

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return HttpPeer.parse(self.origin)


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Shop(origin), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
