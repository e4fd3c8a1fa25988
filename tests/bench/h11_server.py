"""The yardstick of cache hits: a bare server of Trio and h11 that always sends the same bytes.

``python -m tests.bench.h11_server`` prints its port. No checks, no timeouts, one write a response.
"""

from __future__ import annotations

import contextlib

import h11
import trio

from tests.bench.workloads import HIT_BODY

HEADERS = [("content-type", "text/plain"), ("content-length", str(len(HIT_BODY)))]


async def serve(client: trio.SocketStream) -> None:
    """Answer whatever is asked for on one connection."""
    server = h11.Connection(h11.SERVER)
    async with client:
        with contextlib.suppress(trio.BrokenResourceError, h11.ProtocolError):
            while True:
                event = server.next_event()
                if event is h11.NEED_DATA:
                    server.receive_data(await client.receive_some(65536))
                elif isinstance(event, h11.ConnectionClosed):
                    return
                elif isinstance(event, h11.EndOfMessage):
                    parts = [
                        server.send(h11.Response(status_code=200, headers=HEADERS)),
                        server.send(h11.Data(data=HIT_BODY)),
                        server.send(h11.EndOfMessage()),
                    ]
                    await client.send_all(b"".join(part or b"" for part in parts))
                    server.start_next_cycle()


async def main() -> None:
    """Serve until killed."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(serve, listeners)


if __name__ == "__main__":
    trio.run(main)
