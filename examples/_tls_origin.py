"""A small HTTPS origin with a throw-away certificate, to route to by its name.

    python examples/_tls_origin.py two.test 127.0.0.1:9002

It answers each request with its own name and ends the connection. It needs trustme:
pip install 'trioproxy[selfsigned]'.
"""

from __future__ import annotations

import ssl
import sys

import trio
import trustme


async def answer(stream: trio.SSLStream[trio.SocketStream], name: str) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some()
        if not data or len(head) > 65536:
            return
        head += data
    line = head.partition(b"\r\n")[0].rpartition(b" ")[0]
    body = name.encode() + b" got " + line + b"\n"
    fields = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    await stream.send_all(b"HTTP/1.1 200 OK\r\n" + fields + body)
    await stream.aclose()


async def serve(
    bind: str = "127.0.0.1:9001",
    name: str = "one.test",
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the origin; the task status gets its URL, without a word of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(name).configure_cert(context)

    async def connection(plain: trio.SocketStream) -> None:
        stream = trio.SSLStream(plain, context, server_side=True, https_compatible=True)
        try:
            await answer(stream, name)
        except trio.BrokenResourceError:
            pass  # the client is gone
        finally:
            await trio.aclose_forcefully(stream)

    host, _, port = bind.rpartition(":")
    listeners = await trio.open_tcp_listeners(int(port), host=host)
    task_status.started("http://{}:{}".format(*listeners[0].socket.getsockname()[:2]))
    await trio.serve_listeners(connection, listeners)


if __name__ == "__main__":
    try:
        trio.run(serve, sys.argv[2], sys.argv[1])
    except* KeyboardInterrupt:
        pass
