"""A guard against clients that are slow on purpose: they hold a connection, never for long.

nox -s demo -- slow_client_guard        with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/slow_client_guard.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello -d short
HTTP/1.1 200 OK
...
$ head -c 70000 /dev/zero | curl -i http://127.0.0.1:8080/hello --data-binary @-
HTTP/1.1 413 Payload Too Large
...
$ curl --limit-rate 100 http://127.0.0.1:8080/large      (is cut: less than 1 KiB a second)
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, ServerConf, Session

#: A whole head within 5 seconds, content without a gap of more than 5, and no idle connections.
CONF = ServerConf(header_timeout=5, body_timeout=5, idle_timeout=10)
MOST = 65536


@attrs.define
class Guard(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def early_request_filter(self, session: Session, ctx: None) -> None:
        session.set_min_send_rate(1024)
        session.set_keepalive_reuses_remaining(100)

    async def request_filter(self, session: Session, ctx: None) -> bool:
        # The origin is asked when the whole request is here: a slow client never holds it.
        if not (await session.peek_request_body(MOST)).complete:
            raise ProxyError.status(413)
        return False

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Guard(HttpPeer.parse(origin)), bind, conf=CONF)


if __name__ == "__main__":
    main(*sys.argv[1:])
