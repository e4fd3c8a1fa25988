from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from examples import __main__ as runner
from examples._connect_server import serve as serve_connect
from examples._gateway import Broken
from examples._origin import serve as serve_origin
from examples.add_header import AddHeader
from examples.answer_early import AnswerEarly
from examples.connect_proxy import Egress, through
from examples.context_access_log import AccessLog
from examples.failover import Failover
from examples.inside_trio_app import Forward
from examples.retry_backoff import Patient
from examples.rewrite_body import NumberLines
from examples.server_sent_events import NumberEvents
from examples.slow_client_guard import CONF, MOST, Guard
from examples.websocket_gateway import WebSockets
from tests.server._network import (
    Program,
    an_origin,
    answering,
    ask,
    connect,
    get,
    receive_until,
    serving,
)
from trioproxy import HttpPeer

pytestmark = pytest.mark.socket

NAMES = [
    "add_header",
    "answer_early",
    "connect_proxy",
    "context_access_log",
    "failover",
    "inside_trio_app",
    "retry_backoff",
    "rewrite_body",
    "server_sent_events",
    "slow_client_guard",
    "websocket_gateway",
]


@asynccontextmanager
async def the_origin() -> AsyncIterator[HttpPeer]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            yield HttpPeer.parse(await nursery.start(serve_origin, "127.0.0.1:0"))
            nursery.cancel_scope.cancel()


# -- the origin ------------------------------------------------------------------------------------


async def test_the_origin_answers_with_what_it_was_asked() -> None:
    async with the_origin() as peer:
        request = (
            b"POST /a?b HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nContent-Length: 3\r\n"
            b"Connection: close\r\n\r\nabc"
        )
        reply = await ask(f"http://{peer}", request)
        assert reply.status == 200
        assert reply.body.startswith(b"POST /a?b\nHost: x\nX-One: 1\n")
        assert reply.body.endswith(b"\n\nabc")


async def test_the_origin_answers_head_without_a_body() -> None:
    async with the_origin() as peer:
        reply = await ask(f"http://{peer}", get("/a", method="HEAD"))
        assert reply.status == 200
        assert int(reply.fields["content-length"]) > 0
        assert reply.body == b""


async def test_the_origin_lets_a_waiting_client_send_its_body() -> None:
    async with the_origin() as peer, await connect(f"http://{peer}") as stream:
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        await stream.send_all(head)
        assert (await receive_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"abc")
        assert (await receive_until(stream, b"abc")).startswith(b"HTTP/1.1 200 ")


# -- each example does what its docstring says -----------------------------------------------------


async def test_add_header_adds_to_the_request_and_to_the_reply() -> None:
    async with the_origin() as peer, serving(AddHeader(peer)) as running:
        reply = await ask(running.urls[0], get("/hello", "X-Gateway: forged"))
        assert reply.status == 200
        assert reply.fields["x-served-by"] == "gateway"
        assert "server" not in reply.fields
        assert reply.body.startswith(b"GET /hello\n")
        assert reply.body.count(b"x-gateway: add_header\n") == 1
        assert b"forged" not in reply.body


async def test_answer_early_answers_by_itself() -> None:
    nobody = HttpPeer("127.0.0.1", 1)
    with trio.fail_after(20):
        async with serving(AnswerEarly(nobody)) as running:
            reply = await ask(running.urls[0], get("/healthz"))
            assert (reply.status, reply.body) == (200, b"fine\n")


async def test_answer_early_refuses_what_is_private() -> None:
    async with the_origin() as peer, serving(AnswerEarly(peer)) as running:
        url = running.urls[0]
        assert (await ask(url, get("/private"))).status == 403
        assert (await ask(url, get("/private", "Authorization: Basic eDp5"))).status == 200
        assert (await ask(url, get("/public"))).body.startswith(b"GET /public\n")


async def test_rewrite_body_numbers_the_lines_while_they_come() -> None:
    second = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        await receive_until(stream, b"\r\n\r\n")
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\none\ntw"
        )
        await second.wait()
        await stream.send_all(b"o\n\nthree")

    with trio.fail_after(20):
        async with (
            an_origin(handler) as url,
            serving(NumberLines(HttpPeer.parse(url))) as running,
            await connect(running.urls[0]) as stream,
        ):
            await stream.send_all(get())
            received = await receive_until(stream, b"1: one\n")
            assert b"two" not in received
            second.set()
            received += await receive_until(stream, b"0\r\n\r\n")
            body = received.partition(b"\r\n\r\n")[2]
            lines = [line for line in body.splitlines() if b" " in line]
            assert lines == [b"1: one", b"2: two", b"3: ", b"4: three", b"(4 lines)"]


async def test_rewrite_body_leaves_other_types_alone() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 4\r\n\r\na\nb\n"
    with trio.fail_after(20):
        async with (
            an_origin(answering(response)) as url,
            serving(NumberLines(HttpPeer.parse(url))) as running,
        ):
            reply = await ask(running.urls[0])
            assert (reply.fields["content-length"], reply.body) == ("4", b"a\nb\n")


async def test_failover_goes_on_to_the_second_origin() -> None:
    async with the_origin() as peer:
        with runner.nobody() as dead:
            async with serving(Failover([HttpPeer.parse(dead), peer])) as running:
                reply = await ask(
                    running.urls[0],
                    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
                )
                assert (reply.status, reply.fields["x-attempts"]) == (200, "2")
                assert reply.body.endswith(b"\n\nabc")


async def test_failover_gives_up_when_both_are_down() -> None:
    with trio.fail_after(20), runner.nobody() as one, runner.nobody() as two:
        peers = [HttpPeer.parse(one), HttpPeer.parse(two)]
        async with serving(Failover(peers)) as running:
            assert (await ask(running.urls[0])).status == 502
            assert running.statistics().retries == 1


async def test_context_access_log_numbers_requests_and_prints_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with the_origin() as peer, serving(AccessLog(peer)) as running:
        first = await ask(running.urls[0], get("/one"))
        second = await ask(running.urls[0], get("/two"))
        number = int(first.fields["x-request-id"])
        assert second.fields["x-request-id"] == str(number + 1)
        assert f"x-request-id: {number}\n".encode() in first.body
        await running.drain()
    lines = capsys.readouterr().out.splitlines()
    assert f"GET /one -> 200, {len(first.body)} bytes, " in lines[0]
    assert lines[0].startswith(f"#{number} 127.0.0.1:")
    assert lines[0].endswith(" ms, new connection")
    assert lines[1].startswith(f"#{number + 1} ")
    assert lines[1].endswith(" ms, reused connection")


@pytest.mark.parametrize(("credentials", "status"), [("Basic ZGVtbzpkZW1v", 200), ("", 407)])
async def test_connect_proxy_shows_what_the_proxy_answered(
    credentials: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with the_origin() as peer, trio.open_nursery() as nursery:
        proxy = await nursery.start(serve_connect, "127.0.0.1:0")
        egress = Egress(through(f"http://{peer}", proxy, credentials))
        async with serving(egress) as running:
            reply = await ask(running.urls[0], get("/a"))
            if status == 200:
                assert (reply.status, reply.fields["x-tunnel"]) == (200, "200")
                assert reply.body.startswith(b"GET /a\n")
            else:
                assert reply.status == 502
                assert f"{egress.peer}: the proxy answered 407" in capsys.readouterr().err
        nursery.cancel_scope.cancel()


async def test_inside_trio_app_forwards() -> None:
    async with the_origin() as peer, serving(Forward(peer)) as running:
        assert (await ask(running.urls[0], get("/a"))).body.startswith(b"GET /a\n")


async def test_retry_backoff_asks_again_until_the_origin_is_not_busy() -> None:
    asked = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal asked
        await receive_until(stream, b"\r\n\r\n")
        asked += 1
        status = b"200 OK" if asked == 3 else b"503 Service Unavailable"
        await stream.send_all(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    with trio.fail_after(20):
        async with (
            an_origin(handler) as url,
            serving(Patient(HttpPeer.parse(url))) as running,
        ):
            reply = await ask(running.urls[0])
            assert (reply.status, reply.fields["x-attempts"]) == (200, "3")


async def test_retry_backoff_gives_up_in_the_end() -> None:
    response = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with trio.fail_after(20):
        async with (
            an_origin(answering(response)) as url,
            serving(Patient(HttpPeer.parse(url))) as running,
        ):
            reply = await ask(running.urls[0])
            assert (reply.status, reply.fields["x-attempts"]) == (503, "4")


# -- the demo --------------------------------------------------------------------------------------


async def test_the_demo_shows_every_step_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(20):
        assert await runner.demo(once=True) == 0
    shown = capsys.readouterr().out
    assert "WRONG" not in shown
    assert f"All {len(runner.STEPS)} replies came back right." in shown
    for step in runner.STEPS:
        assert step.title in shown
        for line in step.lines:
            assert line in shown
    assert "logging: GET '/healthz' 200, without the origin" in shown


async def test_the_demo_notices_a_gateway_that_is_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with trio.fail_after(20):
        assert await runner.demo(once=True, gateway=Broken) == 1
    shown = capsys.readouterr().out
    assert "WRONG: the line 'x-served-by: gateway' is missing (response_filter)" in shown
    assert "WRONG: the field 'server' is still there" in shown
    assert "3 of 5 replies did not come back right." in shown


def test_the_environment_can_break_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIOPROXY_DEMO_BREAK", "1")
    assert runner.main(["--once"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_demo_stays_up_until_a_signal(number: signal.Signals) -> None:
    with trio.fail_after(30):
        async with Program.start("examples") as program:
            url = await program.until(r"Ask the gateway (\S+) from another", out=True)
            await program.until("as requests come:\n", out=True)
            assert (await ask(url, get("/healthz"))).body == b"fine\n"
            await program.until(r"GET '/healthz' 200, without the origin\n$", out=True)
            assert await program.ends(number) == 0
            assert program.out.endswith("Stopped.\n")
            assert program.err == ""


async def test_the_demo_ends_clean_on_a_signal_in_the_middle() -> None:
    with trio.fail_after(30):
        async with Program.start("examples", "--once") as program:
            await program.until("An origin runs", out=True)
            assert await program.ends(signal.SIGINT) == 0
            assert program.err == ""


# -- examples by name ------------------------------------------------------------------------------


def test_the_list_has_a_line_for_every_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.rstrip().endswith(".") and len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope"], f"there is no example 'nope': one of {', '.join(NAMES)} is right"),
        (["_origin"], "there is no example '_origin': one of"),
        (["add_header", "--once"], "--once is for the demo"),
        (["add_header", "failover"], "unrecognized arguments: failover"),
        (["--twice"], "--twice"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        runner.main(arguments)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert expected in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "expected_field", "expected_output"),
    [
        ("connect_proxy", "x-tunnel: 200", "$ curl -i http://127.0.0.1:"),
        ("context_access_log", "x-request-id: 1", "GET /hello -> 200"),
        ("failover", "x-attempts: 2", "$ curl -i http://127.0.0.1:"),
        ("inside_trio_app", "Server: origin", "the program goes on without it\n"),
    ],
)
async def test_an_example_by_name_runs_with_its_own_origin_until_a_signal(
    name: str, expected_field: str, expected_output: str
) -> None:
    with trio.fail_after(30):
        async with Program.start("examples", name) as program:
            url = await program.until(r"listening on (\S+)\n")
            reply = await ask(url, get("/hello"))
            assert reply.status == 200
            assert f"\r\n{expected_field}\r\n".encode() in reply.raw
            assert await program.ends(signal.SIGINT) == 0
            assert expected_output in program.out
            assert "Traceback" not in program.err


async def test_server_sent_events_are_numbered_one_by_one() -> None:
    async with (
        the_origin() as peer,
        serving(NumberEvents(peer)) as running,
        await connect(running.urls[0]) as stream,
    ):
        await stream.send_all(get("/events"))
        await receive_until(stream, b"id: 1\ndata: one\n\n")
        await receive_until(stream, b"id: 3\ndata: three\n\n")


async def test_the_guard_takes_whole_requests_of_a_bounded_size() -> None:
    async with the_origin() as peer, serving(Guard(peer), **attrs.asdict(CONF)) as running:
        (url,) = running.urls
        for size, status in ((5, 200), (MOST, 200), (MOST + 1, 413)):
            head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            assert (await ask(url, head % size + bytes(size))).status == status


async def test_the_websocket_gateway_counts_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    async with the_origin() as peer, serving(WebSockets(peer)) as running:
        fields = ("Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
        opening = get("/private/chat", *fields).replace(b"close", b"upgrade")
        assert (await ask(running.urls[0], opening)).status == 403
        async with await connect(running.urls[0]) as stream:
            await stream.send_all(opening.replace(b"/private", b""))
            await receive_until(stream, b"\r\n\r\n")
            await stream.send_all(b"\x81\x85\0\0\0\0hello")
            assert await receive_until(stream, b"hello") == b"\x81\x05hello"
            await stream.send_all(b"\x88\x80\0\0\0\0")
            assert await receive_until(stream, b"\x88\0")
    assert "/chat: 17 bytes to the origin, 9 bytes back" in capsys.readouterr().out
