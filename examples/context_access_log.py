"""A context per request: an id and a clock that every callback shares, and an access log.

    nox -s demo -- context_access_log       with an origin of its own, or by hand:
    python examples/_origin.py &
    python examples/context_access_log.py http://127.0.0.1:9000 127.0.0.1:8080

    $ curl -i http://127.0.0.1:8080/hello
    HTTP/1.1 200 OK
    ...
    x-request-id: 1

and on the proxy's standard output:

    #1 127.0.0.1:52114 GET /hello -> 200, 87 bytes, 1.3 ms, new connection
"""

from __future__ import annotations

import itertools
import sys

import attrs
import trio

import trioproxy
from trioproxy import Digest, HttpPeer, ProxyError, RequestHeader, ResponseHeader, Session

numbers = itertools.count(1)


@attrs.define
class Request:
    """What the callbacks of one request share; no other request ever sees it."""

    number: int = attrs.field(factory=lambda: next(numbers))
    started: float = attrs.field(factory=trio.current_time)
    connection: str = "no connection"


@attrs.define
class AccessLog(trioproxy.ProxyHttp[Request]):
    peer: HttpPeer

    def new_ctx(self) -> Request:
        return Request()

    async def upstream_peer(self, session: Session, ctx: Request) -> HttpPeer:
        return self.peer

    async def connected_to_upstream(
        self,
        session: Session,
        reused: bool,
        peer: HttpPeer,
        fd: int,
        digest: Digest | None,
        ctx: Request,
    ) -> None:
        ctx.connection = "reused connection" if reused else "new connection"

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: Request
    ) -> None:
        upstream_request.headers.set("x-request-id", str(ctx.number))

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Request
    ) -> None:
        upstream_response.headers.set("x-request-id", str(ctx.number))

    async def logging(self, session: Session, e: ProxyError | None, ctx: Request) -> None:
        # Runs last and exactly once, whatever became of the request.
        head, reply = session.req_header(), session.response_written()
        print(
            f"#{ctx.number} {session.client_addr()} {head.method} {head.path!s}"
            f" -> {reply.status if reply else '-'}, {session.body_bytes_sent()} bytes,"
            f" {(trio.current_time() - ctx.started) * 1000:.1f} ms, {ctx.connection}"
            + (f", {e.etype}" if e else ""),
            flush=True,
        )


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(AccessLog(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
