"""A cache on disk for images alone: fetched whole once, and cut to ranges from then on.

nox -s demo -- image_origin             with an origin of its own, or by hand:
python examples/_cache_origin.py &
python examples/image_origin.py http://127.0.0.1:9000 127.0.0.1:8080 image-cache

$ curl -o /dev/null -D - 'http://127.0.0.1:8080/photo.png?max-age=60'
$ curl -o /dev/null -D - -r 1000-1999 'http://127.0.0.1:8080/photo.png?max-age=60'
HTTP/1.1 206 Partial Content
...
Content-Range: bytes 1000-1999/100000
Cache-Status: trioproxy;hit;ttl=58
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ResponseHeader, Session
from trioproxy.cache import (
    DiskStorage,
    NoCacheReason,
    RespCacheable,
    SharedCache,
    Uncacheable,
)


@attrs.define
class Images(trioproxy.CachingProxy[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    def response_cache_filter(
        self, session: Session, resp: ResponseHeader, ctx: None
    ) -> RespCacheable:
        # By what the origin says it is: the target's ".png" proves nothing.
        if not (resp.headers.get("content-type") or "").startswith("image/"):
            return Uncacheable(NoCacheReason.Custom("no image"))
        return super().response_cache_filter(session, resp, ctx)


def gateway(peer: HttpPeer, directory: str) -> Images:
    # Survives restarts; several processes may share the directory, and the limit.
    storage = DiskStorage(directory, 1 << 30)
    return Images(peer, shared_cache=SharedCache(storage=storage, max_file_size=64 << 20))


def main(
    origin: str = "http://127.0.0.1:9000",
    bind: str = "127.0.0.1:8080",
    directory: str = "image-cache",
) -> None:
    trioproxy.run(gateway(HttpPeer.parse(origin), directory), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
