from __future__ import annotations

import json
import logging
import signal
import socket
from collections.abc import Iterator

import pytest
import trio

import trioproxy
from tests.server._network import Program, an_origin, ask, connect, get, mirror, receive_all
from trioproxy import HttpPeer, ServerConf
from trioproxy.server._access_log import LOGGER
from trioproxy.server._run import run, set_up_logging

pytestmark = pytest.mark.socket

ERROR_IF_LATE = 30


class Unused(trioproxy.ProxyHttp[None]):
    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: trioproxy.Session, ctx: None) -> HttpPeer:
        raise AssertionError("not reached")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(), logging.getLogger("trioproxy"), logging.getLogger(LOGGER)]
    before = [(each, each.level, each.handlers.copy(), each.propagate) for each in loggers]
    yield
    for each, level, handlers, propagate in before:
        each.setLevel(level)
        each.handlers[:] = handlers
        each.propagate = propagate


# -- in this process -------------------------------------------------------------------------------


def test_a_bind_that_fails_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit) as caught:
            run(Unused(), address)
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert told == f"trioproxy: error: cannot bind {address}: Address already in use\n"


def test_a_wrong_proxy_or_bind_is_an_ordinary_exception() -> None:
    with pytest.raises(TypeError, match="takes a ProxyHttp or a ProxyStream object, not ABCMeta"):
        run(Unused)  # type: ignore[arg-type]  # the point of it
    with pytest.raises(ValueError, match="'x' is not a bind address"):
        run(Unused(), "x")


def test_the_access_log_goes_to_stdout_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        set_up_logging(ServerConf(access_log="common"))
    logging.getLogger(LOGGER).info("a line")
    assert capsys.readouterr().out == "a line\n"


def test_no_access_log_is_nothing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(ServerConf(access_log="common"))
    set_up_logging(ServerConf())
    assert logging.getLogger(LOGGER).handlers == []
    assert capsys.readouterr().out == ""


def test_the_log_has_the_level_that_was_asked_for() -> None:
    set_up_logging(ServerConf(log_level="error"))
    assert not logging.getLogger("trioproxy").isEnabledFor(logging.WARNING)
    set_up_logging(ServerConf(log_level="debug"))
    assert logging.getLogger("trioproxy").isEnabledFor(logging.DEBUG)


# -- as a program ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_s_07_a_signal_stops_gracefully_with_exit_code_0(number: signal.Signals) -> None:
    reached, go = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        reached.set()
        await go.wait()
        await mirror(stream)

    with trio.fail_after(ERROR_IF_LATE):
        async with (
            an_origin(slow) as origin,
            Program.start(
                "trioproxy", "reverse", origin, "--bind", "127.0.0.1:0", "--bind", "127.0.0.1:0",
                "--log-level", "critical", "--access-log", "json",
            ) as program,
        ):  # fmt: skip
            await program.until("(listening on .*\n){2}")
            urls = [line.removeprefix("listening on ") for line in program.err.splitlines()]
            assert len(urls) == 2
            async with await connect(urls[0]) as busy, await connect(urls[1]) as idle:
                await busy.send_all(get("/in-flight"))
                await reached.wait()
                program.process.send_signal(number)
                assert await receive_all(idle) == b""
                go.set()
                assert b"GET /in-flight HTTP/1.1" in await receive_all(busy)
            assert await program.ends() == 0
            (line,) = program.out.splitlines()
            assert json.loads(line)["target"] == "/in-flight"
            assert program.err.count("\n") == 2  # the ready lines, whatever the level


async def test_s_07_a_second_signal_stops_at_once_with_exit_code_1() -> None:
    reached = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        reached.set()
        await receive_all(stream)

    with trio.fail_after(ERROR_IF_LATE):
        async with (
            an_origin(silent) as origin,
            Program.start("trioproxy", "reverse", origin, "--bind", "127.0.0.1:0") as program,
        ):
            url = await program.until(r"listening on (\S+)\n")
            async with await connect(url) as busy:
                await busy.send_all(get())
                await reached.wait()
                program.process.send_signal(signal.SIGTERM)
                await program.until("SIGTERM: stopping within 30 s")
                assert await program.ends(signal.SIGINT) == 1
            assert "SIGINT again: stopping at once" in program.err
            assert "Traceback" not in program.err


async def test_grace_ends_a_request_that_does_not_end_and_the_exit_code_is_0() -> None:
    reached = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        reached.set()
        await receive_all(stream)

    with trio.fail_after(ERROR_IF_LATE):
        async with (
            an_origin(silent) as origin,
            Program.start(
                "trioproxy", "reverse", origin, "--bind", "127.0.0.1:0", "--grace", "0.1"
            ) as program,
        ):
            url = await program.until(r"listening on (\S+)\n")
            async with await connect(url) as busy:
                await busy.send_all(get())
                await reached.wait()
                assert await program.ends(signal.SIGTERM) == 0
                assert await receive_all(busy) == b""
            assert "1 connections were still busy after grace" in program.err


async def test_run_serves_an_object_of_a_file() -> None:
    with trio.fail_after(ERROR_IF_LATE):
        async with Program.start(
            "trioproxy", "run", "tests/server/test_serve.py:Local", "--bind", "127.0.0.1:0"
        ) as program:
            url = await program.until(r"listening on (\S+)\n")
            assert (await ask(url)).body == b"hello"
            assert await program.ends(signal.SIGTERM) == 0
