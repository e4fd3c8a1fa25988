"""The yardstick: a bare relay of Trio and h11. ``python h11_relay.py ORIGIN_PORT`` prints its port.

No filters, no pool, no checks, no timeouts: one origin connection for each client connection, kept
alive on both sides, and one write for whatever is decoded already.
"""

from __future__ import annotations

import contextlib
import functools
import sys

import h11
import trio


async def carry(
    source: trio.SocketStream, reader: h11.Connection, to: trio.SocketStream, writer: h11.Connection
) -> bool:
    """Carry one message; False where the source ended instead."""
    parts: list[bytes] = []
    while True:
        event = reader.next_event()
        if event is h11.NEED_DATA:
            if parts:
                await to.send_all(b"".join(parts))
                parts = []
            reader.receive_data(await source.receive_some(65536))
        elif isinstance(event, h11.ConnectionClosed):
            return False
        else:
            parts.append(writer.send(event) or b"")  # type: ignore[arg-type]  # never PAUSED here
            if isinstance(event, h11.EndOfMessage):
                await to.send_all(b"".join(parts))
                return True


async def relay(port: int, client: trio.SocketStream) -> None:
    """Serve one client connection until either side ends it."""
    server, requester = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
    async with client, await trio.open_tcp_stream("127.0.0.1", port) as origin:
        with contextlib.suppress(trio.BrokenResourceError, h11.ProtocolError):
            while await carry(client, server, origin, requester):
                if not await carry(origin, requester, client, server):
                    return
                server.start_next_cycle()
                requester.start_next_cycle()


async def main(port: int) -> None:
    """Relay until killed."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(functools.partial(relay, port), listeners)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
