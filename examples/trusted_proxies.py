"""Find out who asks behind proxies that are trusted, and tell the origin.

nox -s demo -- trusted_proxies          with an origin of its own, or by hand:
python examples/_origin.py &
python examples/trusted_proxies.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i -H 'X-Forwarded-For: 6.6.6.6, 203.0.113.9' http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
X-Forwarded-For: 203.0.113.9, 127.0.0.1         (what the origin was asked)
Forwarded: for=203.0.113.9, for=127.0.0.1;proto=http;host="127.0.0.1:8080"

curl is a trusted proxy here, as it asks from this machine: who it names is believed, and what that
one said of others is not.
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, Session
from trioproxy.modules import Forwarding, ForwardingFields, HttpModules


@attrs.define
class TrustedProxies(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        networks = ["127.0.0.0/8", "::1", "10.0.0.0/8"]
        modules.add_module(ForwardingFields(trusted=networks, forwarded=True, via="gateway"))

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        who = session.downstream_modules_ctx.get(Forwarding)
        assert who is not None
        print(f"{who.client} asked for {who.proto}://{who.host}{session.req_header().path}")


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(TrustedProxies(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
