"""A small origin for the gRPC example: it sends back the messages of every call.

    python examples/_grpc_origin.py [HOST:PORT]     (127.0.0.1:9000 where none is given)

HTTP/2 in clear text, by prior knowledge. Plain Trio and h2; neither a proxy nor a gRPC library is
needed to run it. It reads a call's messages whole and does not wait for windows: they must be small.
"""

from __future__ import annotations

import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trio


async def serve(
    bind: str = "127.0.0.1:9000",
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the origin; the task status gets its URL."""

    async def connection(stream: trio.SocketStream) -> None:
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        http.initiate_connection()
        calls: dict[int, bytearray] = {}
        try:
            while True:
                await stream.send_all(http.data_to_send())
                received = await stream.receive_some()
                if not received:
                    return
                for event in http.receive_data(bytes(received)):
                    answer(http, event, calls)
        except (trio.BrokenResourceError, h2.exceptions.ProtocolError):
            pass  # the client is gone, or no client of ours
        finally:
            await trio.aclose_forcefully(stream)

    host, _, port = bind.rpartition(":")
    listeners = await trio.open_tcp_listeners(int(port), host=host)
    task_status.started("http://{}:{}".format(*listeners[0].socket.getsockname()[:2]))
    await trio.serve_listeners(connection, listeners)


def answer(
    http: h2.connection.H2Connection, event: h2.events.Event, calls: dict[int, bytearray]
) -> None:
    """Keep what comes of a call, and answer where it ends."""
    if isinstance(event, h2.events.RequestReceived):
        assert event.stream_id is not None
        calls[event.stream_id] = bytearray()
    elif isinstance(event, h2.events.DataReceived):
        assert event.stream_id is not None
        calls[event.stream_id] += event.data or b""
        http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
    elif isinstance(event, h2.events.StreamReset):
        calls.pop(event.stream_id, None)
    elif isinstance(event, h2.events.StreamEnded):
        assert event.stream_id is not None
        messages = bytes(calls.pop(event.stream_id))
        head = [(":status", "200"), ("content-type", "application/grpc"), ("server", "origin")]
        http.send_headers(event.stream_id, head)
        http.send_data(event.stream_id, messages)
        http.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)


async def main(bind: str = "127.0.0.1:9000") -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, bind)
        print(f"listening on {url}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        trio.run(lambda: main(*sys.argv[1:]))
    except* KeyboardInterrupt:
        pass
