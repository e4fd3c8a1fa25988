"""Answer some requests without the origin, refuse others.

nox -s demo -- answer_early             with an origin of its own, or by hand:
python examples/_origin.py &
python examples/answer_early.py http://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/healthz
HTTP/1.1 200 OK
...
fine

$ curl -i http://127.0.0.1:8080/private
HTTP/1.1 403 Forbidden
...
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, ResponseHeader, Session


@attrs.define
class AnswerEarly(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def request_filter(self, session: Session, ctx: None) -> bool:
        path = session.req_header().path
        if path == "/healthz":
            # An answer of our own: the head, then the body as it comes, then True for "done".
            fields = {"content-type": "text/plain", "content-length": "5"}
            await session.write_response_header(ResponseHeader(200, fields), end_of_stream=False)
            await session.write_response_body(b"fine\n", end_of_stream=True)
            return True
        if path.startswith("/private") and session.get_header("authorization") is None:
            # A refusal: fail_to_proxy answers it, logging() sees it.
            raise ProxyError.status(403)
        return False

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(AnswerEarly(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
