"""Send a copy of the traffic to a second origin, and say where that one answers otherwise.

nox -s demo -- mirror                   with origins of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/_origin.py 127.0.0.1:9001 &
python examples/mirror.py http://127.0.0.1:9000 http://127.0.0.1:9001 127.0.0.1:8080

$ curl -i -d 'the same for both' http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, RequestHeader, Session
from trioproxy.modules import HttpModules
from trioproxy.subrequests import Mirror, Mirrored


def for_the_shadow(request: RequestHeader) -> None:
    request.headers.set("x-mirrored", "yes")


def compare(mirrored: Mirrored) -> None:
    request, answer, response = mirrored.request, mirrored.answer, mirrored.response
    ours = answer.status if answer else "nothing"
    theirs = response.status if response else mirrored.error
    verdict = "the same" if ours == theirs else "DIFFERENT"
    print(f"{request.method} {request.path!r}: {ours}, mirror {theirs}: {verdict}", flush=True)


@attrs.define
class Mirroring(trioproxy.ProxyHttp[None]):
    peer: HttpPeer
    shadow: HttpPeer
    share: float = 1.0

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(
            Mirror(self.shadow, sample=self.share, rewrite=for_the_shadow, on_mirrored=compare)
        )

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(
    origin: str = "http://127.0.0.1:9000",
    shadow: str = "http://127.0.0.1:9001",
    bind: str = "127.0.0.1:8080",
) -> None:
    trioproxy.run(Mirroring(HttpPeer.parse(origin), HttpPeer.parse(shadow)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
