"""Clients prove who they are by a certificate, and the origin is told who that was.

nox -s demo -- mtls                     with an origin and certificates of its own; or by hand:
python examples/_origin.py &
python examples/_certificates.py certs localhost me@example.test
python examples/mtls.py http://127.0.0.1:9000 127.0.0.1:8080 certs

$ curl -i --cacert certs/ca.pem --cert certs/me@example.test.pem https://127.0.0.1:8080/hello
HTTP/2 200
...
x-client-subject: O=Examples,OU=trioproxy,CN=me@example.test           (what the origin was asked)

Without --cert there is no answer at all: the handshake fails. A field x-client-subject that the
client sends by itself never reaches the origin.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import quote

import attrs

import trioproxy
from trioproxy import HttpPeer, ProxyError, RequestHeader, ServerConf, Session, TlsSettings

FIELD = "x-client-subject"


@attrs.define
class Mtls(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: None
    ) -> None:
        tls = session.digest().tls
        if tls is None or tls.peer_subject is None:
            raise ProxyError.status(403)  # a listener without client certificates
        # set() replaces every copy that the client sent. A subject may have any character.
        subject = quote(tls.peer_subject, safe=" =,+@.")
        upstream_request.headers.set(FIELD, subject)


def conf(directory: Path) -> ServerConf:
    tls = TlsSettings(str(directory / "localhost.pem"), client_ca=str(directory / "ca.pem"))
    # Many origins take X_Client_Subject for the same field: no name with an underscore passes.
    return ServerConf(tls=tls, refuse_underscores=True)


def main(
    origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080", directory: str = "certs"
) -> None:
    trioproxy.run(Mtls(HttpPeer.parse(origin)), bind, conf=conf(Path(directory)))


if __name__ == "__main__":
    main(*sys.argv[1:])
