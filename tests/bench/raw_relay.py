"""The upper bound: Trio copies bytes. ``python raw_relay.py ORIGIN_PORT`` prints its port."""

from __future__ import annotations

import contextlib
import functools
import sys

import trio


async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    """Copy until the source ends, then end the sink."""
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await source.receive_some(65536):
            await sink.send_all(data)
        await sink.send_eof()


async def relay(port: int, client: trio.SocketStream) -> None:
    """Serve one client connection, over an origin connection of its own."""
    origin = await trio.open_tcp_stream("127.0.0.1", port)
    async with client, origin, trio.open_nursery() as nursery:
        nursery.start_soon(copy, client, origin)
        nursery.start_soon(copy, origin, client)


async def main(port: int) -> None:
    """Relay until killed."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(functools.partial(relay, port), listeners)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
