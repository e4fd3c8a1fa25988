"""gRPC-Web clients before a grpcio server: what it says arrives, over HTTP/1.1 and over HTTP/2.

The server lives in threads of this process; the client is made of the wires of the other tests and
a decoder of the protocol's document.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs
import pytest
import trio

import trioproxy
from tests._support.grpc_web import BINARY, TEXT, asked, decoded
from tests._support.h2_wire import H2Peer, H2Wire
from tests._support.matrix import Exchange, H1Exchange, H2Exchange
from tests._support.recording import Message, Wire
from tests.interop._programs import PATIENCE
from tests.server._network import connect, serving
from trioproxy import HttpPeer, PeerOptions, Session
from trioproxy.modules import GrpcWeb, HttpModules

grpc: Any = pytest.importorskip("grpc", reason="grpcio is not installed")

pytestmark = [pytest.mark.socket, pytest.mark.interop]

SERVICE = "trioproxy.test.Web"
LARGE = 8 << 20
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 0),
]
OK = {"grpc-status": "0"}


@attrs.define(eq=False)
class Service:
    """The handlers; a stream waits for the client before each message but the first."""

    may_go_on: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(1))
    ended: threading.Event = attrs.field(factory=threading.Event)

    def echo(self, request: bytes, context: Any) -> bytes:
        return request

    def metadata(self, request: bytes, context: Any) -> bytes:
        given = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-first", given["x-text"]),))
        context.set_trailing_metadata((("x-last-bin", given["x-blob-bin"]), ("x-last", "end")))
        assert 50 < context.time_remaining() < 110
        return b"done"

    def fail(self, request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "caf\u00e9 100%")
        raise AssertionError("not reached")

    def count(self, request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(self.ended.set)
        for number in range(int(request)):
            assert self.may_go_on.acquire(timeout=PATIENCE)
            yield b"%d" % number

    def break_off(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"one"
        context.abort(grpc.StatusCode.DATA_LOSS, "after one")

    def handlers(self) -> Any:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        methods: dict[str, Any] = {
            name: unary(getattr(self, name)) for name in ("echo", "metadata", "fail")
        }
        methods |= {name: stream(getattr(self, name)) for name in ("count", "break_off")}
        return grpc.method_handlers_generic_handler(SERVICE, methods)


@attrs.define
class Gateway(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(GrpcWeb())

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


@attrs.define(eq=False)
class Client:
    """Calls over one version of HTTP in one form, a connection for each."""

    url: str
    version: str
    kind: str
    service: Service
    nursery: trio.Nursery
    opened: list[trio.SocketStream] = attrs.field(factory=list)

    async def start(self, name: str, message: bytes, *fields: tuple[str, str]) -> Exchange:
        """Send a call."""
        body = asked(self.kind, message)
        path = f"/{SERVICE}/{name}"
        head = [("content-type", self.kind), ("content-length", str(len(body))), *fields]
        stream = await connect(self.url)
        self.opened.append(stream)
        both: trio.StapledStream[Any, Any] = trio.StapledStream(stream, stream)
        exchange: Exchange
        if self.version == "2":
            peer = H2Peer(H2Wire(both, client=True))
            self.nursery.start_soon(peer.run)
            exchange = H2Exchange(await peer.open("POST", path, head))
        else:
            exchange = h1 = H1Exchange(Wire(both))
            await h1.send_request_head("POST", path, head, "site.test", end=False)
        self.nursery.start_soon(lambda: exchange.send_data(body, end=True))
        return exchange

    async def call(self, name: str, message: bytes, *fields: tuple[str, str]) -> Message:
        """Return the whole response."""
        return await (await self.start(name, message, *fields)).message()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def server(service: Service) -> Iterator[str]:
    workers = concurrent.futures.ThreadPoolExecutor(4)
    server = grpc.server(workers, handlers=(service.handlers(),), options=OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
        workers.shutdown()


@contextlib.asynccontextmanager
async def client_of(
    server: str, service: Service, version: str, kind: str
) -> AsyncIterator[Client]:
    peer = HttpPeer.parse(server, options=PeerOptions(http_version=(2, 2), max_h2_streams=100))
    with trio.fail_after(PATIENCE):
        async with serving(Gateway(peer), h2c=True) as running, trio.open_nursery() as nursery:
            client = Client(running.urls[0], version, kind, service, nursery)
            yield client
            for stream in client.opened:
                await stream.aclose()
            nursery.cancel_scope.cancel()


def every(test: Any) -> Any:
    """Run a test in both forms over both versions."""
    test = pytest.mark.parametrize("kind", [BINARY, TEXT])(test)
    return pytest.mark.parametrize("version", ["1.1", "2"])(test)


@every
async def test_one_request_gives_one_response(
    server: str, service: Service, version: str, kind: str
) -> None:
    async with client_of(server, service, version, kind) as client:
        for message in (b"", b"x", b"hello" * 5000):
            response = await client.call("echo", message)
            assert response.get("content-type") == kind
            messages, trailers = decoded(response)
            assert messages == [message]
            assert trailers is not None
            assert trailers["grpc-status"] == "0"


@every
async def test_messages_much_larger_than_the_windows_pass_both_ways(
    server: str, service: Service, version: str, kind: str
) -> None:
    message = os.urandom(LARGE)
    async with client_of(server, service, version, kind) as client:
        assert decoded(await client.call("echo", message))[0] == [message]


@every
async def test_a_stream_gives_each_message_before_the_next_is_made(
    server: str, service: Service, version: str, kind: str
) -> None:
    async with client_of(server, service, version, kind) as client:
        exchange = await client.start("count", b"8")
        seen: list[bytes] = []
        size = 0
        while len(seen) < 8:
            size += len(asked(kind, b"0"))
            seen, trailers = decoded(await exchange.at_least(size))
            assert seen == [b"%d" % number for number in range(len(seen))]
            service.may_go_on.release()
        messages, trailers = decoded(await exchange.message())
        assert messages == seen
        assert trailers is not None
        assert trailers["grpc-status"] == "0"


@every
async def test_metadata_and_the_deadline_pass(
    server: str, service: Service, version: str, kind: str
) -> None:
    async with client_of(server, service, version, kind) as client:
        fields = [("x-text", "told"), ("x-blob-bin", "AAEC"), ("grpc-timeout", "100S")]
        response = await client.call("metadata", b"", *fields)
    assert response.get("x-first") == "told"
    messages, trailers = decoded(response)
    assert messages == [b"done"]
    assert trailers is not None
    assert trailers["grpc-status"] == "0"
    assert trailers["x-last-bin"].rstrip("=") == "AAEC"
    assert trailers["x-last"] == "end"


@every
async def test_errors_keep_their_status_and_message(
    server: str, service: Service, version: str, kind: str
) -> None:
    async with client_of(server, service, version, kind) as client:
        failed = await client.call("fail", b"")
        unknown = await client.call("no_such_method", b"")
        broken = await client.call("break_off", b"")
    # Of nothing but trailers: they may come in the head, or as a frame.
    for response, status, message in (
        (failed, "9", "caf%C3%A9 100%25"),
        (unknown, "12", "Method not found!"),
    ):
        messages, trailers = decoded(response)
        told = trailers or {name.decode(): value.decode() for name, value in response.fields}
        assert (messages, told["grpc-status"]) == ([], status)
        assert told["grpc-message"] == message
    messages, trailers = decoded(broken)
    assert messages == [b"one"]
    assert trailers is not None
    assert (trailers["grpc-status"], trailers["grpc-message"]) == ("15", "after one")


async def test_a_client_that_leaves_a_stream_stops_the_server(
    server: str, service: Service
) -> None:
    async with client_of(server, service, "2", TEXT) as client:
        exchange = await client.start("count", b"1000")
        await exchange.at_least(1)
        await exchange.reset()
        for _ in range(1000):
            service.may_go_on.release()
        assert await trio.to_thread.run_sync(service.ended.wait, PATIENCE)
