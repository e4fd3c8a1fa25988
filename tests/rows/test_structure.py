"""Rows on structured concurrency: what one session does never reaches another."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

import trioproxy
from tests._support.recording import (
    GET,
    OK,
    Recorder,
    Wire,
    answers,
    open_gateway,
    post,
    raises,
)
from trioproxy import ErrorType, Session
from trioproxy.streams._h1_client import H1ClientConnection

PACKAGE = Path(trioproxy.__file__).parent

PHASES = (
    "early_request_filter",
    "request_filter",
    "proxy_upstream_filter",
    "upstream_peer",
    "connected_to_upstream",
    "upstream_request_filter",
    "request_body_filter",
    "upstream_response_filter",
    "response_filter",
    "upstream_response_body_filter",
    "response_body_filter",
)


@pytest.mark.parametrize("error", [ValueError("mine"), MemoryError(), RecursionError()])
@pytest.mark.parametrize("phase", PHASES)
async def test_s_01_a_callback_that_raises_ends_its_own_session(
    phase: str, error: Exception, autojump_clock: object
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, answers(OK)) as gateway:
        other = gateway.connect()
        await other.send(post(b"one"))
        assert (await other.message()).status == 200
        proxy.hooks[phase] = raises(error)
        assert (await gateway.exchange(post(b"two"))).status == 500
        del proxy.hooks[phase]
        await other.send(post(b"three"))
        assert (await other.message()).status == 200
    logged = [call.args["e"] for call in proxy.of("logging")]
    assert [e is None for e in logged] == [True, False, True]
    assert logged[1].root_cause() is error


async def test_s_02_one_error_is_picked_of_a_group(autojump_clock: object) -> None:
    async def both(_session: Session, _ctx: object) -> bool:
        async def fail() -> None:
            raise ValueError("the one that matters")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail)
        return False

    proxy = Recorder(hooks={"request_filter": both})
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500
    cause = proxy.the("logging").args["e"].root_cause()
    assert type(cause) is ValueError
    assert str(cause) == "the one that matters"


async def test_s_02_a_callbacks_own_cancelled_scope_is_its_own_business(
    autojump_clock: object,
) -> None:
    async def own(_session: Session, _ctx: object) -> bool:
        with trio.move_on_after(1):
            await trio.sleep_forever()
        return False

    proxy = Recorder(hooks={"request_filter": own})
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 200


async def test_s_03_a_slow_logging_is_given_up_after_its_deadline(autojump_clock: object) -> None:
    async def slow(*_args: object) -> None:
        await trio.sleep_forever()

    proxy = Recorder(hooks={"logging": slow})
    async with open_gateway(proxy, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await client.message()
        started = trio.current_time()
        gateway.stop()
        await gateway.ended()
        assert trio.current_time() - started <= 2


async def test_s_04_a_connection_whose_write_was_cancelled_is_not_used_again(
    autojump_clock: object,
) -> None:
    async def early(wire: Wire) -> None:
        await wire.head()
        await wire.send(OK)
        await trio.sleep(100)

    proxy = Recorder()
    async with open_gateway(proxy, early, lockstep=True) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, post(bytes(60_000)))
            assert (await client.message()).status == 200
        await gateway.ended()
        assert gateway.pool.statistics().idle == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_s_05_what_ends_the_program_passes_through(error: type[BaseException]) -> None:
    def hook(*_args: object) -> None:
        raise error

    async def main() -> None:
        proxy = Recorder(hooks={"request_filter": hook})
        async with open_gateway(proxy, answers(OK)) as gateway:
            await gateway.exchange(GET)

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(error)


async def test_s_10_a_reader_that_fails_costs_its_connection_alone(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Recorder()
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 200
        (idle,) = gateway.pool._ages
        transport = cast("H1ClientConnection", idle.connection).transport
        transport.receive_ready = raises(ZeroDivisionError())  # type: ignore[method-assign]
        assert (await gateway.exchange(GET)).status == 502
        assert (await gateway.exchange(GET)).status == 200


@functools.cache
def package() -> dict[Path, list[ast.AST]]:
    """Return the syntax of all modules, which are read once."""
    return {
        path: list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        for path in PACKAGE.rglob("*.py")
    }


def test_s_11_every_shield_has_a_deadline() -> None:
    shields = 0
    for path, nodes in package().items():
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            words = {keyword.arg for keyword in node.keywords}
            if "shield" in words:
                shields += 1
                name = ast.unparse(node.func)
                timed = "deadline" in words or name in ("trio.move_on_after", "trio.fail_after")
                assert timed, f"{path.name}:{node.lineno}"
    assert shields


def test_no_error_is_swallowed_that_might_be_a_cancellation() -> None:
    for path, nodes in package().items():
        for node in nodes:
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type is not None else ""
            if caught in ("", "BaseException"):
                # Allowed where it is raised again, and nowhere else.
                assert any(
                    isinstance(each, ast.Raise) and each.exc is None for each in ast.walk(node)
                ), f"{path.name}:{node.lineno}"


async def test_errors_have_their_kind_after_all_that(autojump_clock: object) -> None:
    proxy = Recorder(hooks={"request_filter": raises(ValueError("x"))})
    async with open_gateway(proxy, answers(OK)) as gateway:
        await gateway.exchange(GET)
    assert proxy.the("logging").args["e"].etype == ErrorType.InternalError
