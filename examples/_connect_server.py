"""A small HTTP CONNECT proxy, to try things with: it wants the credentials demo:demo.

python examples/_connect_server.py 127.0.0.1:3128
"""

from __future__ import annotations

import sys

import trio

GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
REFUSED = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"


async def relay(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    async for data in source:
        await sink.send_all(data)
    await sink.send_eof()


async def tunnel(client: trio.SocketStream) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = await client.receive_some()
        if not data or len(head) > 65536:
            return
        head += data
    if b"\r\nproxy-authorization: basic zgvtbzpkzw1v\r\n" not in head.lower():
        await client.send_all(REFUSED)
        return
    target = head.split(b" ", 2)[1].decode("ascii")
    host, _, port = target.rpartition(":")
    async with await trio.open_tcp_stream(host.strip("[]"), int(port)) as origin:
        await client.send_all(GRANTED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, client, origin)
            nursery.start_soon(relay, origin, client)


async def serve(
    bind: str = "127.0.0.1:3128", *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the proxy; the task status gets its URL."""

    async def connection(stream: trio.SocketStream) -> None:
        try:
            await tunnel(stream)
        except* (OSError, trio.BrokenResourceError):
            pass  # one end is gone, and so is the tunnel
        finally:
            await trio.aclose_forcefully(stream)

    host, _, port = bind.rpartition(":")
    listeners = await trio.open_tcp_listeners(int(port), host=host)
    task_status.started("http://{}:{}".format(*listeners[0].socket.getsockname()[:2]))
    await trio.serve_listeners(connection, listeners)


if __name__ == "__main__":
    try:
        trio.run(lambda: serve(*sys.argv[1:]))
    except* KeyboardInterrupt:
        pass
