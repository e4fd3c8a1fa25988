"""A grpcio client and server through ``trioproxy reverse``, HTTP/2 on both sides.

Messages are bytes, so that no generated code is needed. Client and server live in threads of this
process and the proxy in one of its own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.interop._programs import PATIENCE, Certificate, reverse, started_once

grpc: Any = pytest.importorskip("grpc", reason="grpcio is not installed")

pytestmark = [pytest.mark.socket, pytest.mark.interop]

SERVICE = "trioproxy.test.Service"
LARGE = 8 << 20
AT_ONCE = 100
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
]


class Service:
    """The handlers, and what they saw."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.ended = threading.Event()
        self.together = threading.Barrier(AT_ONCE)

    def wait_for_the_end(self, context: Any) -> None:
        """Tell that a call has begun, and come back when it is over."""
        if context.add_callback(self.ended.set):
            self.started.set()
            assert self.ended.wait(PATIENCE)

    # -- one request, one response

    def echo(self, request: bytes, context: Any) -> bytes:
        return request

    def meet(self, request: bytes, context: Any) -> bytes:
        self.together.wait(PATIENCE)
        return request

    def metadata(self, request: bytes, context: Any) -> bytes:
        given: dict[str, Any] = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-first", given["x-text"]),))
        context.set_trailing_metadata((("x-last-bin", given["x-blob-bin"]),))
        text: str = given["x-text"]
        return text.encode()

    def remaining(self, request: bytes, context: Any) -> bytes:
        return str(context.time_remaining()).encode()

    def fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nothing but trailers, caf\u00e9 100%")
        raise AssertionError("not reached")

    def wait(self, request: bytes, context: Any) -> bytes:
        self.wait_for_the_end(context)
        return b""

    def give_up(self, request: bytes, context: Any) -> bytes:
        context.cancel()
        return b""

    # -- streams

    def count(self, request: bytes, context: Any) -> Iterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()

    def endless(self, request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(self.ended.set)
        while True:
            yield bytes(10000)

    def break_off(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"one"
        context.abort(grpc.StatusCode.DATA_LOSS, "after one message")

    def give_up_later(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"one"
        context.cancel()

    def total(self, requests: Iterator[bytes], context: Any) -> bytes:
        sizes = [len(each) for each in requests]
        return f"{len(sizes)} {sum(sizes)}".encode()

    def refuse_early(self, requests: Iterator[bytes], context: Any) -> bytes:
        assert next(requests) == b"x" * 1000
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more of that")
        raise AssertionError("not reached")

    def chat(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from requests

    def handlers(self) -> Any:
        unary = ("echo", "meet", "metadata", "remaining", "fail", "wait", "give_up")
        kinds = {
            grpc.unary_unary_rpc_method_handler: unary,
            grpc.unary_stream_rpc_method_handler: (
                "count",
                "endless",
                "break_off",
                "give_up_later",
            ),
            grpc.stream_unary_rpc_method_handler: ("total", "refuse_early"),
            grpc.stream_stream_rpc_method_handler: ("chat",),
        }
        found = {name: kind(getattr(self, name)) for kind, names in kinds.items() for name in names}
        return grpc.method_handlers_generic_handler(SERVICE, found)


@attrs.frozen
class Gateway:
    """A way through the proxy to a server, whose service changes with every test."""

    channel: Any
    service: Service

    def unary(self, name: str) -> Any:
        return self.channel.unary_unary(f"/{SERVICE}/{name}")

    def server_stream(self, name: str) -> Any:
        return self.channel.unary_stream(f"/{SERVICE}/{name}")

    def client_stream(self, name: str) -> Any:
        return self.channel.stream_unary(f"/{SERVICE}/{name}")

    def both_streams(self, name: str) -> Any:
        return self.channel.stream_stream(f"/{SERVICE}/{name}")


class Current:
    """Hands calls to the service of the test that runs."""

    service = Service()

    def service_name(self) -> str:
        return SERVICE

    def service_of(self, details: Any) -> Any:
        return self.service.handlers().service(details)


@contextlib.contextmanager
def running(kind: str, directory: Path) -> Iterator[tuple[Any, Current]]:
    """A server, the proxy before it and a channel through both, over TLS on both sides or none."""
    current = Current()

    class Dispatch(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc may be absent: it is Any
        def service(self, details: Any) -> Any:
            return current.service_of(details)

    workers = concurrent.futures.ThreadPoolExecutor(AT_ONCE + 20)
    server = grpc.server(workers, handlers=(Dispatch(),), options=OPTIONS)
    if kind == "tls":
        certificate = Certificate.make(directory)
        ca = certificate.authority.read_bytes()
        pair = (certificate.key.read_bytes(), certificate.chain.read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials((pair,)))
        options = (*certificate.options, "--upstream-ca", str(certificate.authority))
        options = (*options, "--upstream-http", "2", f"https://localhost:{port}")
    else:
        ca = None
        port = server.add_insecure_port("127.0.0.1:0")
        options = ("--h2c", "--upstream-http", "2", f"http://127.0.0.1:{port}")
    server.start()
    try:
        with reverse(*options) as url:
            address = url.partition("://")[2]
            if ca is None:
                channel = grpc.insecure_channel(address, OPTIONS)
            else:
                channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), OPTIONS)
            with channel:
                yield channel, current
    finally:
        server.stop(0).wait()
        workers.shutdown()


@pytest.fixture(scope="module")
def gateways(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], tuple[Any, Current]]]:
    directory = tmp_path_factory.mktemp("certificate")
    with started_once(lambda kind: running(kind, directory)) as start:
        yield start


@pytest.fixture(params=["tls", "h2c"])
def gateway(
    request: pytest.FixtureRequest, gateways: Callable[[str], tuple[Any, Current]]
) -> Iterator[Gateway]:
    channel, current = gateways(request.param)
    current.service = Service()
    yield Gateway(channel, current.service)
    current.service.ended.set()


def failure(call: Any) -> Any:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def test_one_request_gives_one_response(gateway: Gateway) -> None:
    for message in (b"", b"x", b"hello" * 5000):
        response, call = gateway.unary("echo").with_call(message, timeout=PATIENCE)
        assert response == message
        assert call.code() is grpc.StatusCode.OK


def test_a_stream_of_responses_comes_in_order(gateway: Gateway) -> None:
    responses = list(gateway.server_stream("count")(b"200", timeout=PATIENCE))
    assert responses == [str(number).encode() for number in range(200)]
    assert list(gateway.server_stream("count")(b"0", timeout=PATIENCE)) == []


def test_a_stream_of_requests_arrives_whole(gateway: Gateway) -> None:
    requests = (bytes(size) for size in range(0, 4000, 20))
    assert gateway.client_stream("total")(requests, timeout=PATIENCE) == b"200 398000"
    assert gateway.client_stream("total")(iter(()), timeout=PATIENCE) == b"0 0"


def test_both_sides_talk_in_turn(gateway: Gateway) -> None:
    received: list[bytes] = []
    may_go_on = threading.Semaphore()

    def requests() -> Iterator[bytes]:
        for number in range(50):
            # The next message is made only when the answer to the one before it has come.
            assert may_go_on.acquire(timeout=PATIENCE)
            assert len(received) == number
            yield b"%d" % number

    for response in gateway.both_streams("chat")(requests(), timeout=PATIENCE):
        received.append(response)
        may_go_on.release()
    assert received == [b"%d" % number for number in range(50)]


def test_messages_much_larger_than_the_windows_pass_both_ways(gateway: Gateway) -> None:
    message = os.urandom(1024) * (LARGE // 1024)
    assert gateway.unary("echo")(message, timeout=PATIENCE) == message
    half = message[LARGE // 2 :]
    responses = list(gateway.both_streams("chat")(iter([half] * 2), timeout=PATIENCE))
    assert responses == [half, half]


def test_metadata_pass_as_fields_and_as_trailers(gateway: Gateway) -> None:
    blob = bytes(range(256))
    response, call = gateway.unary("metadata").with_call(
        b"", metadata=(("x-text", "told"), ("x-blob-bin", blob)), timeout=PATIENCE
    )
    assert response == b"told"
    assert dict(call.initial_metadata())["x-first"] == "told"
    assert dict(call.trailing_metadata())["x-last-bin"] == blob


def test_an_error_of_nothing_but_trailers_keeps_its_status_and_message(gateway: Gateway) -> None:
    error = failure(lambda: gateway.unary("fail")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "nothing but trailers, caf\u00e9 100%"
    assert dict(error.trailing_metadata())["x-why"] == "because"
    unknown = failure(lambda: gateway.unary("no_such_method")(b"", timeout=PATIENCE))
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_error_after_messages_keeps_both(gateway: Gateway) -> None:
    call = gateway.server_stream("break_off")(b"", timeout=PATIENCE)
    assert next(call) == b"one"
    error = failure(lambda: next(call))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "after one message")


def test_an_answer_before_the_requests_end_comes_through(gateway: Gateway) -> None:
    requests = itertools.repeat(b"x" * 1000)
    error = failure(lambda: gateway.client_stream("refuse_early")(requests, timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "no more of that"


def test_a_deadline_is_told_to_the_server_and_ends_the_call_on_both_sides(
    gateway: Gateway,
) -> None:
    # grpc-timeout is rounded up; without the field it would be hours.
    assert 50 < float(gateway.unary("remaining")(b"", timeout=100)) < 110
    error = failure(lambda: gateway.unary("wait")(b"", timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert gateway.service.ended.wait(1), "the server did not notice"


def test_a_client_that_cancels_is_noticed_by_the_server_soon(gateway: Gateway) -> None:
    waiting = gateway.unary("wait").future(b"", timeout=PATIENCE)
    assert gateway.service.started.wait(PATIENCE)
    assert not gateway.service.ended.is_set()
    waiting.cancel()
    assert gateway.service.ended.wait(1), "the server did not notice"


def test_a_client_that_cancels_a_stream_under_way_stops_the_server(gateway: Gateway) -> None:
    call = gateway.server_stream("endless")(b"", timeout=PATIENCE)
    for _ in range(30):
        assert len(next(call)) == 10000
    assert not gateway.service.ended.is_set()
    call.cancel()
    assert gateway.service.ended.wait(1), "the server did not notice"


def test_a_server_that_cancels_is_noticed_by_the_client(gateway: Gateway) -> None:
    error = failure(lambda: gateway.unary("give_up")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.CANCELLED
    call = gateway.server_stream("give_up_later")(b"", timeout=PATIENCE)
    error = failure(lambda: list(call))
    assert error.code() is grpc.StatusCode.CANCELLED


def test_a_hundred_calls_are_under_way_at_once(gateway: Gateway) -> None:
    meet = gateway.unary("meet")
    calls = [meet.future(b"%d" % number, timeout=PATIENCE) for number in range(AT_ONCE)]
    assert [call.result() for call in calls] == [b"%d" % number for number in range(AT_ONCE)]
