"""A guard over bodies: JSON and images in, each up to a size, and no response that never ends.

nox -s demo -- body_guard               with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/body_guard.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/ -H 'content-type: application/json' -d '{}'
HTTP/1.1 200 OK
...
$ curl -i http://127.0.0.1:8080/ -d plain=form
HTTP/1.1 415 Unsupported Media Type
...
$ head -c 70000 /dev/zero | \\
    curl -i http://127.0.0.1:8080/ -H 'content-type: application/json' --data-binary @-
HTTP/1.1 413 ...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import BodyGuard, GuardedBodies, HttpModules

GUARD = BodyGuard(
    content_types=["application/json", "image/*"],
    max_request_bytes=65536,
    max_bytes_by_type={"image/*": 8 << 20},
    require_body=["POST", "PUT"],
    refuse_body=["GET", "HEAD"],
    max_response_bytes=64 << 20,
)


@attrs.define
class Guarded(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(GUARD)

    def new_ctx(self) -> None:
        return None

    async def early_request_filter(self, session: Session, ctx: None) -> None:
        if session.req_header().path == "/import":
            guard = session.downstream_modules_ctx.get(GuardedBodies)
            assert guard is not None
            guard.limit_request(session, 1 << 30)

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Guarded(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
