"""Purge: whoever has the token may have one response forgotten, or all that bear a tag.

nox -s demo -- purge                    with an origin of its own, or by hand:
python examples/_cache_origin.py &
python examples/purge.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i 'http://127.0.0.1:8080/news/1?max-age=60'
$ curl -i -X PURGE -H 'Authorization: Bearer demo' 'http://127.0.0.1:8080/news/1?max-age=60'
$ curl -i -X PURGE -H 'Authorization: Bearer demo' -H 'Cache-Tag: news' 'http://127.0.0.1:8080/'

The origin has tagged all that lies under /news/ with "news".
"""

from __future__ import annotations

import hmac
import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, ResponseHeader, Session
from trioproxy.cache import MemoryStorage, SharedCache

TOKEN = "demo"


@attrs.define
class Purge(trioproxy.CachingProxy[None]):
    peer: HttpPeer
    token: str

    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        if session.req_header().method != "PURGE":
            return False
        # Before anything else: an open purge lets anybody send all traffic to the origin.
        given = session.get_header("authorization") or ""
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise ProxyError.status(403, "a purge without the token")
        tag = session.get_header("cache-tag")
        if tag is None or self.shared_cache is None:
            return False
        gone = await self.shared_cache.storage.purge_tag(tag)
        text = f"{gone} gone\n".encode()
        head = ResponseHeader(200, [("content-type", "text/plain"), ("cache-control", "no-store")])
        head.headers.set("content-length", str(len(text)))
        await session.write_response_header(head)
        await session.write_response_body(text, True)
        return True

    def request_cache_filter(self, session: Session, ctx: None) -> None:
        # A purge needs the store, and the key that a GET of the same target has: super's callback
        # makes that one.
        if session.req_header().method == "PURGE" and self.shared_cache is not None:
            session.cache.enable(self.shared_cache.storage)
        else:
            super().request_cache_filter(session, ctx)

    def is_purge(self, session: Session, ctx: None) -> bool:
        return session.req_header().method == "PURGE"

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def gateway(peer: HttpPeer, token: str = TOKEN) -> Purge:
    return Purge(peer, token, shared_cache=SharedCache(storage=MemoryStorage(64 << 20)))


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(gateway(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
