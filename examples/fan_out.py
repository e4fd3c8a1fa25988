"""Answer one request by several others that run at once, merged into one JSON object.

nox -s demo -- fan_out                  with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/fan_out.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl 'http://127.0.0.1:8080/all?user,orders,count'
{"user": "GET /user...", "orders": "GET /orders...", "count": "one\\ntwo\\n..."}
"""

from __future__ import annotations

import json
import sys

import attrs
import trio

import trioproxy
from trioproxy import HttpPeer, ProxyError, ResponseHeader, Session
from trioproxy.subrequests import SubrequestSpawner

MOST_PARTS = 8
MOST_BYTES = 65536


@attrs.define
class FanOut(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    def allow_spawning_subrequest(self, session: Session, ctx: None) -> bool:
        return not session.is_subrequest() and session.req_header().path == "/all"

    async def request_filter(self, session: Session, ctx: None) -> bool:
        spawner = session.subrequest_spawner
        if spawner is None:
            return False
        names = (session.req_header().query or "").split(",")
        if not all(name.isalnum() for name in names) or len(names) > MOST_PARTS:
            raise ProxyError.status(400)
        parts: dict[str, str | None] = dict.fromkeys(names)
        # They end with this block; so do they all where the client leaves.
        async with trio.open_nursery() as nursery:
            for name in parts:
                nursery.start_soon(self.ask, session, spawner, name, parts)
        body = json.dumps(parts).encode()
        head = ResponseHeader(200, {"content-type": "application/json"})
        head.headers.set("content-length", str(len(body)))
        await session.write_response_header(head)
        await session.write_response_body(body, end_of_stream=True)
        return True

    async def ask(
        self,
        session: Session,
        spawner: SubrequestSpawner,
        name: str,
        parts: dict[str, str | None],
    ) -> None:
        head = session.req_header().copy()
        head.target = f"/{name}"
        try:
            async with spawner.open(head) as part:
                if (await part.response_header()).status == 200:
                    parts[name] = (await part.read(MOST_BYTES)).decode("utf-8", "replace")
        except ProxyError as exc:
            # A part that was cut, or is too long, is null; the others still count.
            print(f"{name}: {exc}", file=sys.stderr, flush=True)

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(FanOut(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
