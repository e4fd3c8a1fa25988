"""The client that leaves, in every phase of its request; and how far a request may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    ORIGIN_2,
    Gateway,
    Message,
    Recorder,
    Wire,
    keeps,
    open_gateway,
    post,
)
from trioproxy import ErrorSource, ErrorType, ProxyError, Session

HANG = trio.sleep_forever
POST_BEGUN = b"POST /path HTTP/1.1\r\nHost: site.test\r\nContent-Length: 100\r\n\r\nbegun"
BIG = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + bytes(200_000)
ASK = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"


async def hang(*_args: object) -> None:
    await HANG()


async def silent(wire: Wire) -> None:
    """Take everything and never answer."""
    while await wire.more():
        pass


async def endless(wire: Wire) -> None:
    """Answer with more than anybody reads."""
    await wire.head()
    await wire.send(BIG)
    while await wire.more():
        pass


async def switches(wire: Wire) -> None:
    await wire.head()
    await wire.send(SWITCH)
    while await wire.more():
        pass


async def back_off(_session: Session, _ctx: object) -> Any:
    # The second attempt of a request whose first one was refused.
    await HANG()


#: phase: hooks, what the client sends, the origin, whether an upstream connection is held.
PHASES: dict[str, tuple[dict[str, Callable[..., Any]], bytes, Any, bool]] = {
    "early_request_filter": ({"early_request_filter": hang}, GET, keeps([]), False),
    "request_filter": ({"request_filter": hang}, GET, keeps([]), False),
    "proxy_upstream_filter": ({"proxy_upstream_filter": hang}, GET, keeps([]), False),
    "choosing a peer": ({"upstream_peer": hang}, GET, keeps([]), False),
    "connected_to_upstream": ({"connected_to_upstream": hang}, GET, keeps([]), True),
    "upstream_request_filter": ({"upstream_request_filter": hang}, GET, keeps([]), True),
    "waiting for the head": ({}, GET, silent, True),
    "waiting for the head, pipelined bytes unread": ({}, GET + GET, silent, True),
    "in the middle of the upload": ({}, POST_BEGUN, silent, True),
    "request_body_filter": ({"request_body_filter": hang}, post(b"x"), silent, True),
    "response_filter": ({"response_filter": hang}, GET, keeps([]), True),
    "in the middle of the download": ({}, GET, endless, True),
    "response_body_filter": ({"response_body_filter": hang}, GET, keeps([]), True),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_h1_33_a_client_that_resets_cancels_its_session_at_once(
    phase: str, autojump_clock: object
) -> None:
    hooks, request, origin, held = PHASES[phase]
    proxy = Recorder(hooks=hooks)
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        let_it_reset(gateway)
        await client.send(request)
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        client.close()
        await gateway.ended()
        assert trio.current_time() - started < 1
    error: ProxyError = proxy.the("logging").args["e"]
    assert error.etype == ErrorType.ConnectionClosed
    assert error.esource is ErrorSource.DOWNSTREAM
    names = proxy.names()
    assert len(proxy.of("error_while_proxy")) == held
    assert len(proxy.of("fail_to_proxy")) == 1
    assert names[-1] == "logging"
    assert gateway.pool.statistics().idle == 0


def let_it_reset(gateway: Gateway) -> None:
    """Have the client's connection end by a reset: a stream in memory only knows proper ends."""
    (connection,) = gateway.connections
    receive = connection.transport.receive_some

    async def reset_at_end(max_bytes: int = 65536) -> bytes:
        if data := await receive(max_bytes):
            return data
        raise ProxyError.new(ErrorType.ReadError)

    connection.transport.receive_some = reset_at_end  # type: ignore[method-assign]


async def test_h1_33_a_tunnel_ends_with_the_client_that_resets(autojump_clock: object) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, switches) as gateway:
        client = gateway.connect()
        await client.send(ASK)
        await client.head()
        started = trio.current_time()
        client.close()
        await gateway.ended()
        assert trio.current_time() - started < 1
    assert len(proxy.of("logging")) == 1


async def test_h1_33_in_back_off_between_two_attempts(autojump_clock: object) -> None:
    async def peer(_session: Session, ctx: Any) -> Any:
        ctx.attempts += 1
        if ctx.attempts == 2:
            await HANG()
        return ORIGIN

    def retry(_session: Session, _peer: object, _ctx: object, e: ProxyError) -> ProxyError:
        e.set_retry(True)
        return e

    proxy = Recorder(hooks={"upstream_peer": peer, "fail_to_connect": retry})
    origins = {ORIGIN.name: ErrorType.ConnectRefused, ORIGIN_2.name: ErrorType.ConnectRefused}
    async with open_gateway(proxy, origins) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        await gateway.ended()
    assert proxy.the("logging").args["e"].root_etype() == ErrorType.ConnectionClosed


@pytest.mark.parametrize("abort", [True, False])
async def test_h1_32_a_half_close_behind_a_request(abort: bool, autojump_clock: object) -> None:
    answer = trio.Event()

    async def origin(wire: Wire) -> None:
        await wire.message()
        await answer.wait()
        await wire.send(OK)
        await wire.more()

    async def knob(session: Session, _ctx: object) -> None:
        session.set_abort_on_close(abort)

    proxy = Recorder(hooks={"early_request_filter": knob})
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        await client.half_close()
        await trio.testing.wait_all_tasks_blocked()
        answer.set()
        if abort:
            assert await client.at_end()
        else:
            response = await client.message()
            assert response.body == b"hello"
            assert response.get("connection") == "close"
            assert await client.at_end()
    error = proxy.the("logging").args["e"]
    assert (error is None) is not abort


async def test_h1_32_a_half_close_counts_for_the_last_of_the_pipelined_requests_alone(
    autojump_clock: object,
) -> None:
    async def knob(session: Session, _ctx: object) -> None:
        session.set_abort_on_close(False)

    got: list[Message] = []
    proxy = Recorder(hooks={"early_request_filter": knob})
    async with open_gateway(proxy, keeps(got)) as gateway:
        client = gateway.connect()
        await client.send(GET * 50)
        await client.half_close()
        answers = [await client.message() for _ in range(50)]
        assert await client.at_end()
    assert [answer.get("connection") for answer in answers] == ["keep-alive"] * 49 + ["close"]
    assert len(got) == 50


async def test_h1_32_the_requests_before_the_last_are_answered_though_it_is_aborted(
    autojump_clock: object,
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, keeps([])) as gateway:
        client = gateway.connect()
        await client.send(GET * 3)
        await client.half_close()
        assert [(await client.message()).body for _ in range(2)] == [b"hello"] * 2
        assert await client.at_end()
    assert [call.args["e"] is None for call in proxy.of("logging")] == [True, True, False]


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE"])
async def test_h1_34_max_forwards_is_counted_down_and_answered_at_zero(
    method: bytes, autojump_clock: object
) -> None:
    from trioproxy.codec._h1 import HeadLimits, RequestReader
    from trioproxy.streams._h1_server import H1ServerConnection

    got: list[Message] = []
    proxy = Recorder()
    async with open_gateway(proxy, keeps(got)) as gateway:
        for number in (b"0", b"7", b"many"):
            client = gateway.connect()
            made = [each for each in gateway.connections if isinstance(each, H1ServerConnection)]
            (connection,) = [each for each in made if not each.events][-1:]
            connection.reader = RequestReader(HeadLimits(allow_trace=True))
            await client.send(
                b"%s / HTTP/1.1\r\nHost: a\r\nCookie: secret\r\nMax-Forwards: %s\r\n\r\n"
                % (method, number)
            )
            response = await client.message()
            assert response.status == 200
            if number == b"0" and method == b"TRACE":
                assert response.body.startswith(b"TRACE / HTTP/1.1\r\nHost: a\r\n")
                assert b"secret" not in response.body
    assert [request.get("max-forwards") for request in got] == ["6", "many"]
    assert len(proxy.of("logging")) == 3


async def test_h1_35_an_http2_preface_is_told_off(autojump_clock: object) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, keeps([])) as gateway:
        client = gateway.connect()
        await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        response = await client.message()
        assert response.status == 505
        assert response.get("connection") == "close"
        assert await client.at_end()
    assert not proxy.calls


async def test_h1_35_a_tls_handshake_in_clear_text_is_closed_within_the_first_read(
    autojump_clock: object,
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, keeps([])) as gateway:
        client = gateway.connect()
        started = trio.current_time()
        await client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
        assert await client.at_end()
        await gateway.ended()
        assert trio.current_time() == started
        assert gateway.refused == [400]
    assert not proxy.calls
