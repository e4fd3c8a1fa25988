"""A protocol of your own through the proxy: messages over TLS, filtered one by one both ways.

nox -s demo -- custom_protocol          with an origin and a certificate of its own; or by hand:
python -m examples._chat origin 127.0.0.1:9000 &
python examples/_certificates.py certs localhost
python -m examples.custom_protocol http://127.0.0.1:9000 127.0.0.1:8080 certs

$ python -m examples._chat talk 127.0.0.1:8080 certs/ca.pem "hello, room 7" "secret plans"
<- the gateway says: welcome                           (put in from the side)
<- HELLO, ROOM 7                                       (sent back by the origin, then filtered)
<- GOODBYE
<- closed with 200

The origin never got the secret plans. The protocol is in examples/_chat.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import attrs
import trio

import trioproxy
from examples._chat import LengthPrefixed
from trioproxy import HttpPeer, Listener, PeerOptions, Session, TlsSettings

PROTOCOL = LengthPrefixed()


@attrs.define
class Chat(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    async def custom_forwarding(
        self,
        session: Session,
        ctx: None,
        custom_message_to_upstream: trio.MemorySendChannel[bytes] | None,
        custom_message_to_downstream: trio.MemorySendChannel[bytes],
    ) -> None:
        # A channel may be kept and used at any time; with the last message it can be closed.
        async with custom_message_to_downstream:
            await custom_message_to_downstream.send(b"the gateway says: welcome")

    async def downstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: None, final_hop: bool
    ) -> bytes | None:
        return None if custom_message.startswith(b"secret") else custom_message

    async def upstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: None, final_hop: bool
    ) -> bytes | None:
        return custom_message.upper()


def listener(bind: str, directory: Path) -> Listener:
    """Return a listener that offers the protocol by ALPN, beside HTTP."""
    return Listener(bind, tls=TlsSettings(str(directory / "localhost.pem")), custom=PROTOCOL)


def peer(origin: str) -> HttpPeer:
    """Return an origin that speaks nothing else."""
    return HttpPeer.parse(origin, options=PeerOptions(custom=PROTOCOL))


def main(
    origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080", directory: str = "certs"
) -> None:
    trioproxy.run(Chat(peer(origin)), listener(bind, Path(directory)))


if __name__ == "__main__":
    main(*sys.argv[1:])
