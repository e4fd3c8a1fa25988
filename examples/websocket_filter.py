"""Filters a WebSocket message by message: words are replaced, one is dropped, one is put in.

nox -s demo -- websocket_filter         with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/websocket_filter.py http://127.0.0.1:9000 127.0.0.1:8080

$ python -m websockets ws://127.0.0.1:8080/chat        (pip install websockets)
< 1 here
> hello darn world
< hello d*** world
> /quit
(not sent on: the origin never sees it)

The client may compress its messages: what it and the origin have agreed on holds. It needs wsproto:
pip install 'trioproxy[websocket]'.
"""

from __future__ import annotations

import sys

import attrs
import trio

import trioproxy
from trioproxy import HttpPeer, ProxyError, Session
from trioproxy.websocket import TextMessage, WebSocketOptions


@attrs.define
class Room:
    """Who is there: the way to each client."""

    clients: list[trio.MemorySendChannel[bytes]] = attrs.field(factory=list)

    def tell(self, text: str) -> None:
        """Tell everybody; who does not read misses it."""
        for client in self.clients:
            try:
                client.send_nowait(TextMessage(text))
            except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                pass


@attrs.define
class Member:
    way: trio.MemorySendChannel[bytes] | None = None


@attrs.define
class Polite(trioproxy.ProxyHttp[Member]):
    peer: HttpPeer
    room: Room = attrs.field(factory=Room)

    def new_ctx(self) -> Member:
        return Member()

    async def request_filter(self, session: Session, ctx: Member) -> bool:
        session.filter_websocket_messages(WebSocketOptions(max_message_bytes=65536))
        return False

    async def upstream_peer(self, session: Session, ctx: Member) -> HttpPeer:
        return self.peer

    async def custom_forwarding(
        self,
        session: Session,
        ctx: Member,
        custom_message_to_upstream: trio.MemorySendChannel[bytes] | None,
        custom_message_to_downstream: trio.MemorySendChannel[bytes],
    ) -> None:
        ctx.way = custom_message_to_downstream
        self.room.clients.append(ctx.way)
        self.room.tell(f"{len(self.room.clients)} here")

    async def downstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: Member, final_hop: bool
    ) -> bytes | None:
        return None if custom_message.startswith(b"/") else custom_message

    async def upstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: Member, final_hop: bool
    ) -> bytes | None:
        return custom_message.replace(b"darn", b"d***")

    async def logging(self, session: Session, e: ProxyError | None, ctx: Member) -> None:
        if ctx.way is not None:
            self.room.clients.remove(ctx.way)
            self.room.tell(f"{len(self.room.clients)} here")


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(Polite(HttpPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
