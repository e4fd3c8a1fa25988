"""Several traits in one proxy: one that stamps, one that checks, and different ones by path.

nox -s demo -- composition             with an origin of its own, or by hand:
python examples/_origin.py &
python examples/composition.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/private
HTTP/1.1 403 Forbidden
...

$ curl -i -H 'x-key: sesame' http://127.0.0.1:8080/private
HTTP/1.1 200 OK
x-gateway: composed
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import Chain, HttpPeer, ProxyError, ResponseHeader, Route, Session


class Stamp(Chain.Member[None]):
    # It is idle on the way to the origin, and not called there.
    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        upstream_response.headers.set("x-gateway", "composed")


@attrs.define
class Key(Chain.Member[None]):
    key: str

    async def request_filter(self, session: Session, ctx: None) -> bool:
        if session.get_header("x-key") != self.key:
            raise ProxyError.status(403)
        return False


@attrs.define
class Gateway(trioproxy.ProxyHttp[None]):
    origin: str

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return HttpPeer.parse(self.origin)


def gateway(public: str, private: str) -> Chain:
    # Everybody may see one origin; who has the key sees the other one too.
    return Chain(
        Stamp(),
        Route({"/private": Chain(Key("sesame"), Gateway(private)), "/": Gateway(public)}),
    )


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(gateway(origin, origin), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
