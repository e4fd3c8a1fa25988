"""Ask another server first whether the request may pass, and tell the origin what it said.

nox -s demo -- subrequest               with origins of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/_origin.py 127.0.0.1:9001 &
python examples/subrequest.py http://127.0.0.1:9000 http://127.0.0.1:9001 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
GET /hello
...
x-checked-by: origin
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, Session


@attrs.define
class AskBefore(trioproxy.ProxyHttp[None]):
    origin: HttpPeer
    authority: HttpPeer

    def new_ctx(self) -> None:
        return None

    def allow_spawning_subrequest(self, session: Session, ctx: None) -> bool:
        # One that asks the authority asks nobody before.
        return not session.is_subrequest()

    async def request_filter(self, session: Session, ctx: None) -> bool:
        spawner = session.subrequest_spawner
        if spawner is None:
            return False
        # The client's own fields go along: its cookie, its authorization.
        question = session.req_header().copy()
        question.method, question.target = "GET", "/check"
        question.headers.set("x-original-path", session.req_header().path)
        async with spawner.open(question) as answer:
            head = await answer.response_header()
            if head.status >= 300:
                # Its refusal, with its challenge, is what the client gets.
                await answer.pipe_to(session)
                return True
            await answer.drain()
        # From here on the request goes its way, with what was found out.
        session.req_header().headers.set("x-checked-by", head.headers.get("server") or "nobody")
        return False

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.authority if session.is_subrequest() else self.origin


def main(
    origin: str = "http://127.0.0.1:9000",
    authority: str = "http://127.0.0.1:9001",
    bind: str = "127.0.0.1:8080",
) -> None:
    trioproxy.run(AskBefore(HttpPeer.parse(origin), HttpPeer.parse(authority)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
