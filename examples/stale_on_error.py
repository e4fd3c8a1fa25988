"""An origin that goes down: what is stored is served on, stale as it is, for an hour.

nox -s demo -- stale_on_error           with an origin of its own, or by hand:
python examples/_cache_origin.py &
python examples/stale_on_error.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i 'http://127.0.0.1:8080/page?max-age=0'
$ curl -X POST http://127.0.0.1:8080/break
$ curl -i 'http://127.0.0.1:8080/page?max-age=0'
HTTP/1.1 200 OK
...
X-Stale: the origin cannot be asked
...

What says must-revalidate is never served like that: it is a 502 then.
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, ResponseHeader, Session
from trioproxy.cache import CachePhase, MemoryStorage, SharedCache, SharedPolicy

POLICY = SharedPolicy(stale_on_error=3600)


@attrs.define
class StaleOnError(trioproxy.CachingProxy[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    def should_serve_stale(self, session: Session, ctx: None, error: ProxyError | None) -> bool:
        serves = super().should_serve_stale(session, ctx, error)
        if error is not None:
            print(f"{session.req_header().path}: {'stale' if serves else 'no'}, as {error}")
        return serves

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        await super().response_filter(session, upstream_response, ctx)
        if session.cache.phase() is CachePhase.Stale:
            upstream_response.headers.set("X-Stale", "the origin cannot be asked")


def gateway(peer: HttpPeer) -> StaleOnError:
    shared = SharedCache(storage=MemoryStorage(64 << 20), policy=POLICY)
    return StaleOnError(peer, shared_cache=shared)


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(gateway(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
