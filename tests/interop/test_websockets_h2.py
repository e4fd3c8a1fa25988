"""WebSockets over HTTP/2 (RFC 8441) through ``trioproxy reverse`` to an HTTP/1.1 WebSocket server.

The client is the h2 library on a blocking socket, with the frames of the `websockets` library.
"""

from __future__ import annotations

import contextlib
import http
import os
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
import websockets.sync.client
import websockets.sync.server
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode
from websockets.protocol import CLIENT, Protocol, State

from tests.interop._programs import PATIENCE, Certificate, reverse, started_once

pytestmark = [pytest.mark.socket, pytest.mark.interop]

Connection = websockets.sync.server.ServerConnection


class Http2Client:
    """One connection, whose reader is whoever waits for something."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        configuration = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(configuration)
        self.heads: dict[int, dict[str, str]] = {}
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.has_settings = False
        self.connection.initiate_connection()
        self.flush()
        while not self.has_settings:
            self.read()

    def flush(self) -> None:
        """Send what the library has to say."""
        self.sock.sendall(self.connection.data_to_send())

    def read(self) -> None:
        """Read once, and take in what has come."""
        received = self.sock.recv(65536)
        assert received, "the proxy closed the connection"
        for event in self.connection.receive_data(received):
            assert not isinstance(event, h2.events.ConnectionTerminated), event
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self.has_settings = True
            elif isinstance(event, h2.events.ResponseReceived):
                assert event.stream_id is not None
                assert event.headers is not None
                self.heads[event.stream_id] = {str(n): str(v) for n, v in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                assert event.stream_id is not None
                assert event.data is not None
                assert event.flow_controlled_length is not None
                self.data[event.stream_id] += event.data
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    self.connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
            elif isinstance(event, h2.events.StreamEnded):
                assert event.stream_id is not None
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                assert event.stream_id is not None
                self.reset[event.stream_id] = event.error_code or 0
        self.flush()

    def request(self, fields: list[tuple[str, str]], *, end: bool) -> int:
        """Start a stream; return its number when the response's head has come."""
        stream = self.connection.get_next_available_stream_id()
        self.data[stream] = bytearray()
        self.connection.send_headers(stream, fields, end_stream=end)
        self.flush()
        while stream not in self.heads:
            assert stream not in self.reset, self.reset
            self.read()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send data as the windows allow."""
        while data or end:
            room = min(
                self.connection.local_flow_control_window(stream),
                self.connection.max_outbound_frame_size,
            )
            if data and room <= 0:
                self.read()
                continue
            piece, data = data[:room], data[room:]
            last = end and not data
            self.connection.send_data(stream, piece, end_stream=last)
            self.flush()
            if last:
                return


@attrs.define(eq=False)
class WebSocket:
    """A WebSocket on a stream of an HTTP/2 connection."""

    client: Http2Client
    stream: int
    frames: Protocol

    @classmethod
    def open(cls, client: Http2Client, path: str = "/") -> WebSocket:
        """Ask for one; the status says whether it is one."""
        fields = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "site.test"),
            ("sec-websocket-version", "13"),
            ("origin", "https://site.test"),
        ]
        stream = client.request(fields, end=False)
        return cls(client, stream, Protocol(CLIENT, state=State.OPEN, max_size=None))

    @property
    def status(self) -> str:
        """The status of the response."""
        return self.client.heads[self.stream][":status"]

    def put(self) -> None:
        """Send the frames that are due, and the end of the stream where it is due."""
        for data in self.frames.data_to_send():
            self.client.send(self.stream, data, end=not data)

    def send(self, message: bytes) -> None:
        """Send a binary message."""
        self.frames.send_binary(message)
        self.put()

    def receive(self) -> tuple[Opcode, bytes]:
        """Return the next frame's kind and data."""
        incoming = self.client.data[self.stream]
        while True:
            if incoming:
                self.frames.receive_data(bytes(incoming))
                incoming.clear()
            for event in self.frames.events_received():
                return event.opcode, bytes(event.data)  # type: ignore[union-attr]  # no handshake
            assert self.stream not in self.client.ended | self.client.reset.keys()
            self.client.read()

    def end(self) -> None:
        """Wait for the end of what comes, and end the stream here too."""
        while self.stream not in self.client.ended:
            self.client.read()
        self.frames.receive_eof()
        self.put()


class Echo:
    """Sends every message back, and keeps how connections ended."""

    def __init__(self) -> None:
        self.closed: queue.SimpleQueue[tuple[str, int | None, str | None]] = queue.SimpleQueue()

    def __call__(self, connection: Connection) -> None:
        try:
            for message in connection:
                if message == b"close":
                    connection.close(4002, "as you wish")
                else:
                    connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            assert connection.request is not None
            path = connection.request.path
            self.closed.put((path, connection.close_code, connection.close_reason))

    def closing(self, path: str, seconds: float = PATIENCE) -> tuple[int | None, str | None]:
        """Wait for a WebSocket at this path to be closed; return the code and the reason."""
        while True:
            at, code, reason = self.closed.get(timeout=seconds)
            if at == path:
                return code, reason


def refuse_one_path(
    connection: Connection, request: websockets.http11.Request
) -> websockets.http11.Response | None:
    """Answer 403 at ``/private``, and any request that is for no WebSocket."""
    if request.path == "/private":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not here\n")
    if request.path == "/page":
        return connection.respond(http.HTTPStatus.OK, "a page\n")
    return None


@attrs.frozen
class Gateway:
    """A proxy before a WebSocket server."""

    url: str
    certificate: Certificate | None
    echo: Echo

    @contextlib.contextmanager
    def connect(self) -> Iterator[Http2Client]:
        """Open an HTTP/2 connection."""
        host, _, port = self.url.partition("://")[2].rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE) as plain:
            if self.certificate is None:
                yield Http2Client(plain)
                return
            context = ssl.create_default_context(cafile=str(self.certificate.authority))
            context.set_alpn_protocols(["h2", "http/1.1"])
            with context.wrap_socket(plain, server_hostname="localhost") as sock:
                assert sock.selected_alpn_protocol() == "h2"
                yield Http2Client(sock)


@contextlib.contextmanager
def running(kind: str, directory: Path) -> Iterator[Gateway]:
    """Run the proxy, over TLS or in cleartext, and its origin."""
    echo = Echo()
    certificate: Certificate | None = None
    options: tuple[str, ...] = ("--h2c",)
    if kind == "tls":
        certificate = Certificate.make(directory)
        options = certificate.options
    serving = websockets.sync.server.serve(
        echo, "127.0.0.1", 0, max_size=None, process_request=refuse_one_path
    )
    thread = threading.Thread(target=serving.serve_forever)
    with serving as server:
        thread.start()
        port = server.socket.getsockname()[1]
        with reverse(*options, f"http://127.0.0.1:{port}") as url:
            yield Gateway(url, certificate, echo)
    thread.join()


@pytest.fixture(scope="module")
def gateways(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Gateway]]:
    directory = tmp_path_factory.mktemp("certificate")
    with started_once(lambda kind: running(kind, directory)) as start:
        yield start


@pytest.fixture(params=["tls", "h2c"])
def gateway(request: pytest.FixtureRequest, gateways: Callable[[str], Gateway]) -> Gateway:
    return gateways(request.param)


def test_websockets_and_requests_share_a_connection(gateway: Gateway) -> None:
    with gateway.connect() as client:
        one, two = WebSocket.open(client, "/one"), WebSocket.open(client, "/two")
        assert (one.status, two.status) == ("200", "200")
        assert not client.heads[one.stream].keys() & {"upgrade", "connection", "content-length"}
        for size in (1, 125, 126, 65536, 1 << 18):
            message = os.urandom(size)
            one.send(message)
            two.send(message[::-1])
            assert one.receive() == (Opcode.BINARY, message)
            assert two.receive() == (Opcode.BINARY, message[::-1])
        fields = [(":method", "GET"), (":scheme", "https"), (":path", "/page")]
        page = client.request([*fields, (":authority", "site.test")], end=True)
        while page not in client.ended:
            client.read()
        assert client.heads[page][":status"] == "200"
        assert client.data[page] == b"a page\n"
        one.frames.send_close(4001, "bye")
        one.put()
        assert one.receive() == (Opcode.CLOSE, b"\x0f\xa1bye")
        one.end()
        assert gateway.echo.closing("/one") == (4001, "bye")
        two.send(b"close")
        assert two.receive() == (Opcode.CLOSE, b"\x0f\xa2as you wish")
        two.put()
        two.end()
        assert gateway.echo.closing("/two") == (4002, "as you wish")
        assert client.reset == {}


def test_a_server_that_refuses_is_heard(gateway: Gateway) -> None:
    with gateway.connect() as client:
        refused = WebSocket.open(client, "/private")
        assert refused.status == "403"
        while refused.stream not in client.ended:
            client.read()
        assert client.data[refused.stream] == b"not here\n"
        accepted = WebSocket.open(client)
        accepted.send(b"hello")
        assert accepted.receive() == (Opcode.BINARY, b"hello")


def test_a_client_that_resets_its_stream_is_noticed_by_the_server_soon(gateway: Gateway) -> None:
    with gateway.connect() as client:
        reset, stays = WebSocket.open(client, "/reset"), WebSocket.open(client)
        client.connection.reset_stream(reset.stream, 8)
        client.flush()
        assert gateway.echo.closing("/reset", 2) == (1006, "")
        stays.send(b"hello")
        assert stays.receive() == (Opcode.BINARY, b"hello")


def test_a_client_of_http1_is_served_beside_it(gateway: Gateway) -> None:
    context = None
    if gateway.certificate is not None:
        context = ssl.create_default_context(cafile=str(gateway.certificate.authority))
    url = gateway.url.replace("http", "ws", 1)
    with (
        gateway.connect() as client,
        websockets.sync.client.connect(url, ssl=context, proxy=None) as old,
    ):
        new = WebSocket.open(client)
        for message in (b"one", b"two"):
            new.send(message)
            old.send(message)
            assert old.recv() == message
            assert new.receive() == (Opcode.BINARY, message)
