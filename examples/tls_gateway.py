"""TLS for two names with a certificate each, read again on SIGHUP while connections go on.

nox -s demo -- tls_gateway              with an origin and certificates of its own; or by hand:
python examples/_origin.py &
python examples/_certificates.py certs one.test two.test
python examples/tls_gateway.py http://127.0.0.1:9000 127.0.0.1:8080 certs

$ curl -i --cacert certs/ca.pem --connect-to ::127.0.0.1:8080 https://two.test/hello
HTTP/2 200
...
x-tls: two.test TLSv1.3

New certificates in the same files are taken by the connections that come behind a SIGHUP. A request
for two.test over a connection that was made for one.test is answered 421.
"""

from __future__ import annotations

import sys
from pathlib import Path

import attrs

import trioproxy
from trioproxy import HttpPeer, ResponseHeader, ServerConf, Session, TlsSettings


@attrs.define
class TlsGateway(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        tls = session.digest().tls
        if tls is not None:
            told = f"{tls.sni or 'no name'} {tls.version}"
            upstream_response.headers.set("x-tls", told)


def settings(directory: Path) -> TlsSettings:
    """Return what is served: one.test is also for clients that ask for no name, or another."""
    two = TlsSettings(str(directory / "two.test.pem"))
    return TlsSettings(str(directory / "one.test.pem"), sni={"two.test": two})


def main(
    origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080", directory: str = "certs"
) -> None:
    conf = ServerConf(tls=settings(Path(directory)))
    trioproxy.run(TlsGateway(HttpPeer.parse(origin)), bind, conf=conf)


if __name__ == "__main__":
    main(*sys.argv[1:])
