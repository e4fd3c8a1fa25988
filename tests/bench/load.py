"""A load client: ``python load.py PORT TARGET CONNECTIONS SECONDS`` prints ``RESPONSES SECONDS``.

Each connection has one request under way at a time, prebuilt; a response counts when all the bytes
that its Content-Length announces have come. A status other than 200 or a connection that ends is
an error, and ends the run.
"""

from __future__ import annotations

import re
import selectors
import socket
import sys
import time
from collections.abc import Sequence

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_BUFFER = 262144


class LoadError(Exception):
    """What came back is not what was asked for."""


class Connection:
    """One client connection."""

    __slots__ = ("head", "left", "request", "sock")

    def __init__(self, port: int, request: bytes) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = request
        self.head = b""
        self.left = 0
        self.sock.sendall(request)

    def received(self, view: memoryview) -> bool:
        """Take bytes; True when they complete a response, and then the next request is out."""
        size = len(view)
        if self.left:
            self.left -= size
        else:
            head = self.head + bytes(view)
            end = head.find(b"\r\n\r\n")
            if end < 0:
                self.head = head
                return False
            match = _LENGTH.search(head, 0, end + 2)
            if not head.startswith(b"HTTP/1.1 200 ") or match is None:
                raise LoadError(f"unexpected response: {head[:end]!r}")
            self.head = b""
            self.left = int(match[1]) - (len(head) - end - 4)
        if self.left < 0:
            raise LoadError("more bytes than the response has")
        if self.left:
            return False
        self.sock.sendall(self.request)
        return True


def run(port: int, target: str, connections: int, seconds: float) -> tuple[int, float]:
    """Return how many whole responses came, and in how many seconds."""
    request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode("ascii")
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    responses = 0
    started = now = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        opened: list[Connection] = []
        try:
            for _ in range(connections):
                connection = Connection(port, request)
                opened.append(connection)
                selector.register(connection.sock, selectors.EVENT_READ, connection)
            while now - started < seconds:
                ready = selector.select(10)
                if not ready:
                    raise LoadError("no response within 10 s")
                for key, _ in ready:
                    connection = key.data
                    size = connection.sock.recv_into(buffer)
                    if not size:
                        raise LoadError("a connection was closed")
                    responses += connection.received(view[:size])
                now = time.perf_counter()
        finally:
            for connection in opened:
                connection.sock.close()
    return responses, now - started


def main(arguments: Sequence[str]) -> None:
    """Run and print."""
    port, target, connections, seconds = arguments
    try:
        responses, lasted = run(int(port), target, int(connections), float(seconds))
    except (LoadError, OSError) as exc:
        sys.exit(f"load: {exc}")
    print(responses, f"{lasted:.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
