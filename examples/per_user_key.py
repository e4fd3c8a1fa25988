"""Pages that differ by user: the user is part of the key, and Vary tells languages apart.

nox -s demo -- per_user_key             with an origin of its own, or by hand:
python examples/_cache_origin.py &
python examples/per_user_key.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i -b session=a1 'http://127.0.0.1:8080/inbox?max-age=60'
$ curl -i -b session=b2 'http://127.0.0.1:8080/inbox?max-age=60'
$ curl -i -b session=a1 -H 'Accept-Language: de' 'http://127.0.0.1:8080/inbox?max-age=60'

Each of them is stored by itself, and answered from the cache the second time.
"""

from __future__ import annotations

import re
import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, RequestHeader, Session
from trioproxy.cache import CacheKey, MemoryStorage, SharedCache, default_cache_key

# Who has which session; yours come from somewhere else.
SESSIONS = {"a1": "alice", "b2": "bob"}


@attrs.define
class User:
    name: str = ""


@attrs.define
class PerUser(trioproxy.CachingProxy[User]):
    peer: HttpPeer

    def new_ctx(self) -> User:
        return User()

    async def request_filter(self, session: Session, ctx: User) -> bool:
        # What the key is made of must be known for sure, not what a client merely says of itself.
        found = re.search(r"(?:^|; )session=(\w+)", session.get_header("cookie") or "")
        ctx.name = SESSIONS.get(found[1], "") if found else ""
        if not ctx.name:
            raise ProxyError.status(401, "no session of ours")
        return False

    def cache_key_callback(self, session: Session, ctx: User) -> CacheKey:
        # Only the namespace is new: scheme, authority and target stay in the key.
        key = default_cache_key(session.req_header(), namespace=ctx.name.encode())
        return attrs.evolve(key, user_tag=ctx.name)

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: User
    ) -> None:
        # Nothing may reach the origin that changes its answer and is not in the key.
        upstream_request.headers.remove("cookie")
        upstream_request.headers.set("x-user", ctx.name)

    async def upstream_peer(self, session: Session, ctx: User) -> HttpPeer:
        return self.peer


def gateway(peer: HttpPeer) -> PerUser:
    return PerUser(peer, shared_cache=SharedCache(storage=MemoryStorage(64 << 20)))


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(gateway(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
