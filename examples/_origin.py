"""A small origin for the demo and the examples: it answers with what it was asked.

    python examples/_origin.py [HOST:PORT]          (127.0.0.1:9000 where none is given)

``/count`` is answered by a body that comes in five pieces, ``/events`` by three server-sent events,
a WebSocket by its own messages, and everything else by the request as it arrived here, so that a
proxy's edits can be seen. Plain Trio and h11; no proxy is needed to run it.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import AsyncIterator

import h11
import trio


async def exchange(stream: trio.abc.Stream, connection: h11.Connection, name: str) -> bool:
    """Read one request and answer it; return whether another may follow."""

    async def event() -> object:
        while (found := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        return found

    request = await event()
    if not isinstance(request, h11.Request):
        return False
    if connection.they_are_waiting_for_100_continue:
        go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        await stream.send_all(connection.send(go_on) or b"")
    body = bytearray()
    while isinstance(data := await event(), h11.Data):
        body += data.data

    key = dict(request.headers).get(b"sec-websocket-key")
    if key is not None:
        await echo_messages(stream, connection, key)
        return False
    fields = [("Content-Type", "text/plain"), ("Server", name)]
    if request.target == b"/events":
        fields[0] = ("Content-Type", "text/event-stream")
        content = pieces([b"data: one\n\n", b"data: two\n\n", b"data: three\n\n"], pause=0.02)
    elif request.target != b"/count":
        lines = [request.method + b" " + request.target]
        lines += [key + b": " + value for key, value in request.headers.raw_items()]
        whole = b"\n".join([*lines, b"", body])
        fields.append(("Content-Length", str(len(whole))))
        content = pieces([whole])
    else:
        content = pieces([b"one\n", b"two\n", b"three\n", b"four\n", b"five\n"], pause=0.02)

    if request.method == b"HEAD":
        content = pieces([])
    head = h11.Response(status_code=200, reason=b"OK", headers=fields)
    await stream.send_all(connection.send(head) or b"")
    async for piece in content:
        await stream.send_all(connection.send(h11.Data(piece)) or b"")
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
    if connection.our_state is h11.MUST_CLOSE or connection.their_state is h11.MUST_CLOSE:
        return False
    connection.start_next_cycle()
    return True


async def echo_messages(stream: trio.abc.Stream, connection: h11.Connection, key: bytes) -> None:
    """Accept a WebSocket (RFC 6455) and send back what comes: short messages in one frame each."""
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    fields = [
        ("Connection", "upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Accept", accept.decode()),
    ]
    switch = h11.InformationalResponse(status_code=101, headers=fields, reason=b"Switching")
    await stream.send_all(connection.send(switch) or b"")
    buffer = bytearray(connection.trailing_data[0])
    while True:
        while len(buffer) < 6 or len(buffer) < 6 + (buffer[1] & 127):
            data = await stream.receive_some()
            if not data:
                return
            buffer += data
        size = buffer[1] & 127  # a client's frames are masked, a server's are not
        mask = buffer[2:6]
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(buffer[6 : 6 + size]))
        await stream.send_all(bytes([buffer[0], size]) + payload)
        if buffer[0] & 15 == 8:  # a close frame, sent back
            return
        del buffer[: 6 + size]


async def pieces(parts: list[bytes], pause: float = 0) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        await trio.sleep(pause)


async def serve(
    bind: str = "127.0.0.1:9000",
    name: str = "origin",
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the origin; the task status gets its URL. ``name`` goes into the Server field."""

    async def connection(stream: trio.SocketStream) -> None:
        parser = h11.Connection(h11.SERVER)
        try:
            while await exchange(stream, parser, name):
                pass
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # the client is gone, or no client of ours
        finally:
            await trio.aclose_forcefully(stream)

    host, _, port = bind.rpartition(":")
    listeners = await trio.open_tcp_listeners(int(port), host=host)
    task_status.started("http://{}:{}".format(*listeners[0].socket.getsockname()[:2]))
    await trio.serve_listeners(connection, listeners)


async def main(bind: str = "127.0.0.1:9000") -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, bind)
        print(f"listening on {url}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        trio.run(lambda: main(*sys.argv[1:]))
    except* KeyboardInterrupt:
        pass
