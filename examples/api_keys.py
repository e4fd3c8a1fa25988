"""Only requests with a key get to the origin, which is told whose key it was.

nox -s demo -- api_keys                 with an origin of its own, or by hand:
python examples/_origin.py &
python examples/api_keys.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i -H 'X-Api-Key: the key of ann' http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
X-Client: ann                           (what the origin was asked; it does not see the key)

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 401 Unauthorized
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import ApiKeyAuth, HttpModules

# A real program reads them from where its secrets are.
KEYS = {"ann": "the key of ann", "bob": "the key of bob"}


def guarded(session: Session) -> bool:
    return session.req_header().path != "/healthz"


@attrs.define
class ApiKeys(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        keys = ApiKeyAuth(keys=KEYS, header="X-Api-Key", owner_field="X-Client", applies=guarded)
        modules.add_module(keys)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(ApiKeys(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
