"""A forward proxy: CONNECT tunnels to the hosts of a list, with a line about each of them.

Its arguments are what is allowed, but for the second, its address. All else gets 403.

nox -s demo -- forward_proxy            to try it on the demo's origin; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/forward_proxy.py 127.0.0.1:9000 127.0.0.1:8080 '*.example.com:443'

$ curl --proxytunnel --proxy http://127.0.0.1:8080 http://127.0.0.1:9000/hello
GET /hello
...

On standard output, when the tunnel has ended:
127.0.0.1:50000 -> 127.0.0.1:9000: 90 bytes there, 210 bytes back
"""

from __future__ import annotations

import sys

import trioproxy
from trioproxy import HttpPeer, ProxyError, ServerConf, Session


class ForwardProxy(trioproxy.ProxyHttp[None]):
    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        if not session.is_connect_req():
            raise ProxyError.status(405)  # this proxy makes tunnels, and nothing else
        return False

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return session.connect_peer()

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        if not session.was_upgraded():
            return
        print(
            f"{session.client_addr()} -> {session.req_header().authority}: "
            f"{session.body_bytes_read()} bytes there, {session.body_bytes_sent()} bytes back"
            + (f", cut: {e.root_etype()}" if e is not None else ""),
            flush=True,
        )


def conf(*allowed: str) -> ServerConf:
    """Return the settings that let CONNECT have these targets; HTTP/2 is spoken as well."""
    return ServerConf(allow_connect=allowed, h2c=True)


def main(allowed: str = "127.0.0.1:9000", bind: str = "127.0.0.1:8080", *more: str) -> None:
    trioproxy.run(ForwardProxy(), bind, conf=conf(allowed, *more))


if __name__ == "__main__":
    main(*sys.argv[1:])
