"""The origin where nginx is not installed. ``python origin.py`` prints its port.

It answers every head on a connection, in turn, with a canned response: ``/large`` with 1 MiB,
``/hit`` with what a cache may keep, anything else with a few bytes.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate

from tests.bench.workloads import HIT_BODY, LARGE_BODY, SMALL_BODY

HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n"
)
HIT = HEAD.replace(b"Server:", b"Cache-Control: max-age=86400\r\nServer:").replace(
    b"Thu, 01 Jan 2026 00:00:00 GMT", formatdate(usegmt=True).encode("ascii")
)
HIT = HIT % len(HIT_BODY) + HIT_BODY
SMALL = HEAD % len(SMALL_BODY) + SMALL_BODY
LARGE = HEAD % len(LARGE_BODY) + LARGE_BODY


ANSWERS = {b"/large": LARGE, b"/hit": HIT}


class Origin(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole head."""
        *heads, self.received = (self.received + data).split(b"\r\n\r\n")
        for head in heads:
            self.transport.write(ANSWERS.get(head[4 : head.find(b" ", 4)], SMALL))


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
