"""A proxy for bytes of any protocol that strikes a secret out of what the upstream sends.

nox -s demo -- tcp_proxy                with an origin of its own; or by hand:
python examples/_origin.py 127.0.0.1:9000 &
python examples/tcp_proxy.py tcp://127.0.0.1:9000 127.0.0.1:8080

$ curl -i http://127.0.0.1:8080/hunter2
HTTP/1.1 200 OK
...
GET /*******

The secret is found wherever the pieces are cut, and only what may be its beginning is held back.
"""

from __future__ import annotations

import sys

import attrs

import trioproxy
from trioproxy import BodyChunk
from trioproxy.stream import ProxyStream, StreamPeer, StreamSession


@attrs.define
class Held:
    """What may be the beginning of the secret."""

    data: bytes = b""


@attrs.define
class StrikeOut(ProxyStream[Held]):
    peer: StreamPeer
    secret: bytes = b"hunter2"

    def new_ctx(self) -> Held:
        return Held()

    async def upstream_peer(self, session: StreamSession, ctx: Held) -> StreamPeer:
        return self.peer

    def upstream_data_filter(
        self, session: StreamSession, chunk: BodyChunk, end_of_stream: bool, ctx: Held
    ) -> None:
        data = ctx.data + (chunk.data or b"")
        data = data.replace(self.secret, b"*" * len(self.secret))
        hold = 0
        if not end_of_stream:
            sizes = range(len(self.secret) - 1, 0, -1)
            hold = next((size for size in sizes if data.endswith(self.secret[:size])), 0)
        chunk.data, ctx.data = data[: len(data) - hold], data[len(data) - hold :]


def main(origin: str = "tcp://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    trioproxy.run(StrikeOut(StreamPeer.parse(origin)), bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
