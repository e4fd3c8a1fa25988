"""Only users with their passwords get to the origin.

nox -s demo -- basic_auth               with an origin of its own, or by hand:
python examples/_origin.py &
python examples/basic_auth.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i -u ann:sesame http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
X-User: ann                             (what the origin was asked; it does not see the password)

$ curl -i -u ann:wrong http://127.0.0.1:8080/hello
HTTP/1.1 401 Unauthorized
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import BasicAuth, HttpModules

# Made by trioproxy.modules.hash_password("sesame"): nobody can read the password here.
USERS = {
    "ann": "scrypt$14$8$5$WPMux64/v1qBznkv8aBRyQ==$r2c84YGfavDfTfSiF/CyXcSHvV30u5BVPPtxauDLNDI=",
}


@attrs.define
class Den(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(BasicAuth(users=USERS, realm="the den", user_field="X-User"))

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Den(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
