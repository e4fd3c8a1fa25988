"""The gateway of the demo: one class, and a callback for each thing it does to a request."""

from __future__ import annotations

from collections.abc import Callable

import attrs

import trioproxy
from trioproxy import (
    BodyChunk,
    ErrorSource,
    ErrorType,
    HttpPeer,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    Session,
)


@attrs.define
class Context:
    """What the callbacks of one request share."""

    numbering: bool = False
    lines: int = 0
    rest: bytes = b""
    origin_asked: bool = False


@attrs.define
class Gateway(trioproxy.ProxyHttp[Context]):
    """Answers ``/healthz``, refuses ``/private``, numbers the lines of ``/count``, edits the rest.

    Attributes:
      peer: The origin.
      log: Called with a line about each request, when it is over.
    """

    peer: HttpPeer
    log: Callable[[str], object]

    def new_ctx(self) -> Context:
        return Context()

    # -- before the origin ---------------------------------------------------------------------

    async def request_filter(self, session: Session, ctx: Context) -> bool:
        path = session.req_header().path
        if path == "/healthz":
            fields = {"content-type": "text/plain", "content-length": "5"}
            await session.write_response_header(ResponseHeader(200, fields), end_of_stream=False)
            await session.write_response_body(b"fine\n", end_of_stream=True)
            return True
        if path == "/private":
            raise ProxyError.status(403)
        return False

    async def upstream_peer(self, session: Session, ctx: Context) -> HttpPeer:
        ctx.origin_asked = True
        return self.peer

    # -- towards the origin --------------------------------------------------------------------

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: Context
    ) -> None:
        upstream_request.headers.set("x-gateway", "demo")

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Context
    ) -> None:
        if body.data:
            body.data = body.data.upper()

    # -- towards the client --------------------------------------------------------------------

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Context
    ) -> None:
        headers = upstream_response.headers
        headers.set("x-served-by", "gateway")
        headers.remove("server")
        if session.req_header().path == "/count":
            ctx.numbering = True
            # The length changes: without the field the proxy frames the reply by itself.
            headers.remove("content-length")

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Context
    ) -> None:
        if not ctx.numbering:
            return
        *whole, ctx.rest = (ctx.rest + (body.data or b"")).split(b"\n")
        if end_of_stream and ctx.rest:
            whole.append(ctx.rest)
        out = b""
        for line in whole:
            ctx.lines += 1
            out += b"%d: %s\n" % (ctx.lines, line)
        body.data = out

    # -- and in the end ------------------------------------------------------------------------

    def suppress_error_log(self, session: Session, ctx: Context, e: ProxyError) -> bool:
        # A refusal of our own is no news, nor is a client that left.
        return e.etype == ErrorType.HTTPStatus(403) or e.esource is ErrorSource.DOWNSTREAM

    async def logging(self, session: Session, e: ProxyError | None, ctx: Context) -> None:
        head, reply = session.req_header(), session.response_written()
        asked = "the origin was asked" if ctx.origin_asked else "without the origin"
        # What a client sends is shown escaped: repr() keeps its control characters off a terminal.
        self.log(f"{head.method} {head.path!r} {reply.status if reply else '-'}, {asked}")


class Broken(Gateway):
    """Forgets one of its jobs, to show that the demo notices."""

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Context
    ) -> None:
        return None
