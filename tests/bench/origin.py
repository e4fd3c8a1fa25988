"""The origin where nginx is not installed. ``python origin.py`` prints its port.

It answers every head on a connection, in turn, with a canned response: ``/large`` with 1 MiB,
anything else with a few bytes.
"""

from __future__ import annotations

import asyncio

from tests.bench.workloads import LARGE_BODY, SMALL_BODY

HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n"
)
SMALL = HEAD % len(SMALL_BODY) + SMALL_BODY
LARGE = HEAD % len(LARGE_BODY) + LARGE_BODY


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
            self.transport.write(LARGE if head.startswith(b"GET /large ") else SMALL)


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
