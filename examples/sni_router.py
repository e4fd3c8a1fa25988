"""TLS passed through to the origin that its server name belongs to; nobody's key is needed here.

nox -s demo -- sni_router               with two HTTPS origins of its own; or by hand:
python examples/_tls_origin.py one.test 127.0.0.1:9001 &
python examples/_tls_origin.py two.test 127.0.0.1:9002 &
python examples/sni_router.py tcp://127.0.0.1:9001 tcp://127.0.0.1:9002 127.0.0.1:8080

$ curl -k --connect-to ::127.0.0.1:8080 https://two.test/hello
two.test got GET /hello
$ curl -k --connect-to ::127.0.0.1:8080 https://one.test/hello
one.test got GET /hello

A name that is not listed, and what is no TLS, is dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import attrs

import trioproxy
from trioproxy import ProxyError
from trioproxy.stream import ProxyStream, StreamPeer, StreamSession


@attrs.define
class SniRouter(ProxyStream[None]):
    peers: Mapping[str, StreamPeer]

    def new_ctx(self) -> None:
        return None

    async def accept_filter(self, session: StreamSession, ctx: None) -> bool:
        hello = await session.client_hello()
        return hello is not None and hello.server_name in self.peers

    async def upstream_peer(self, session: StreamSession, ctx: None) -> StreamPeer:
        hello = await session.client_hello()
        assert hello is not None
        assert hello.server_name is not None
        return self.peers[hello.server_name]

    async def logging(self, session: StreamSession, e: ProxyError | None, ctx: None) -> None:
        to, back = session.bytes_from_client(), session.bytes_to_client()
        print(f"{session.client_addr()}: {to} bytes there, {back} back", flush=True)


def main(
    one: str = "tcp://127.0.0.1:9001",
    two: str = "tcp://127.0.0.1:9002",
    bind: str = "127.0.0.1:8080",
) -> None:
    peers = {"one.test": StreamPeer.parse(one), "two.test": StreamPeer.parse(two)}
    trioproxy.run(SniRouter(peers), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
