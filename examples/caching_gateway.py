"""A gateway with a cache in memory: what the origin lets be stored, it is asked for once.

nox -s demo -- caching_gateway          with an origin of its own, or by hand:
python examples/_cache_origin.py &
python examples/caching_gateway.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i 'http://127.0.0.1:8080/page?max-age=60'
HTTP/1.1 200 OK
...
Cache-Status: trioproxy;fwd=uri-miss;stored

/page: answer 1
...

$ curl -i 'http://127.0.0.1:8080/page?max-age=60'
HTTP/1.1 200 OK
...
Age: 2
Cache-Status: trioproxy;hit;ttl=57

/page: answer 1
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, Session
from trioproxy.cache import MemoryStorage, SharedCache


@attrs.define
class CachingGateway(trioproxy.CachingProxy[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        # hit, miss, stale, ...: what the cache was to this request in the end.
        print(f"{session.req_header().path}: {session.cache.phase()}", flush=True)


def gateway(peer: HttpPeer) -> CachingGateway:
    # One store for all requests of the process; 64 MiB of it, whatever happens.
    return CachingGateway(peer, shared_cache=SharedCache(storage=MemoryStorage(64 << 20)))


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(gateway(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
