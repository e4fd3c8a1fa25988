"""Retries with back-off: an origin that answers 503 is asked again, a little later each time.

nox -s demo -- retry_backoff            with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/retry_backoff.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
x-attempts: 1
"""

from __future__ import annotations

import sys

import attrs
import trio

import trioproxy
from trioproxy import ErrorType, HttpPeer, ProxyError, ResponseHeader, Session

ATTEMPTS = 4


@attrs.define
class Attempts:
    made: int = 0


@attrs.define
class Patient(trioproxy.ProxyHttp[Attempts]):
    peer: HttpPeer

    def new_ctx(self) -> Attempts:
        return Attempts()

    async def upstream_peer(self, session: Session, ctx: Attempts) -> HttpPeer:
        # Before the first attempt this is no wait at all; a client that leaves ends it.
        await trio.sleep(trioproxy.backoff(ctx.made))
        ctx.made += 1
        return self.peer

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: Attempts, e: ProxyError
    ) -> ProxyError:
        # Nothing has been sent yet, so that any method may be tried again.
        e.set_retry(ctx.made < ATTEMPTS)
        return e

    async def upstream_response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Attempts
    ) -> None:
        # The origin says that it did nothing; nothing of its answer has gone to the client yet.
        if upstream_response.status == 503 and ctx.made < ATTEMPTS:
            error = ProxyError.explain(ErrorType.HTTPStatus(503), "the origin is busy")
            error.set_retry(True)
            raise error

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Attempts
    ) -> None:
        upstream_response.headers.set("x-attempts", str(ctx.made))


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Patient(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
