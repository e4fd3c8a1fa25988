"""Tell browsers to be careful with what an origin sends.

nox -s demo -- security_headers         with an origin of its own, or by hand:
python examples/_origin.py &
python examples/security_headers.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
X-Content-Type-Options: nosniff
X-Frame-Options: DENY
Referrer-Policy: strict-origin-when-cross-origin
Content-Security-Policy: default-src 'self'

The origin's own Server field is gone.
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import HttpModules, SecurityHeaders


@attrs.define
class Careful(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(
            SecurityHeaders(
                frame_options="DENY",
                content_security_policy="default-src 'self'",
                remove=["Server", "X-Powered-By"],
            )
        )

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Careful(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
