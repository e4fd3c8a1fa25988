"""Stopping, leaving or breaking at every step of small streams leaves no task and no open stream.

A first run counts the steps that Trio's tasks take. Then, for each of them, a run of its own does
the deed right before that step. That no session, no connection and no open stream is left is
checked by `open_streams` itself, in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from tests._support.steps import AtStep, run_with, some_steps, use_one_schedule
from tests._support.streams import (
    UPSTREAM,
    UPSTREAM_2,
    Ctx,
    Recorder,
    Streams,
    open_streams,
    receive,
    receive_all,
    send,
)
from trioproxy import ErrorSource, ErrorType, ProxyError
from trioproxy.stream import StreamPeer, StreamSession
from trioproxy.testing._network import End, Network


async def pause(*_args: object) -> None:
    """Be a callback that waits a little."""
    await trio.sleep(0.01)


async def pause_and_accept(session: StreamSession, _ctx: Ctx) -> bool:
    await session.peek()
    await trio.sleep(0.01)
    return True


async def drop(_session: StreamSession, _ctx: Ctx) -> bool:
    await trio.sleep(0.01)
    return False


def again(_session: StreamSession, _peer: StreamPeer, _ctx: Ctx, e: ProxyError) -> ProxyError:
    e.set_retry(True)
    return e


async def fail(*_args: object) -> None:
    await trio.sleep(0.01)
    raise LookupError("oops")


@attrs.frozen
class Scenario:
    """What the callbacks do, and how a stream ends when nothing else happens."""

    hooks: dict[str, Callable[..., Any]] = attrs.field(factory=dict)
    refused: bool = False
    error: ErrorType | None = None


SCENARIOS = {
    "bytes both ways": Scenario(),
    "every callback waits": Scenario(
        {
            "accept_filter": pause_and_accept,
            "connected_to_upstream": pause,
            "downstream_data_filter": pause,
            "upstream_data_filter": pause,
            "logging": pause,
        }
    ),
    "a connect failure is retried": Scenario({"fail_to_connect": again}, refused=True),
    "nobody can be connected to": Scenario(refused=True, error=ErrorType.ConnectRefused),
    "a connection is dropped": Scenario({"accept_filter": drop}),
    "a filter fails": Scenario({"upstream_data_filter": fail}, error=ErrorType.InternalError),
}
scenarios = pytest.mark.parametrize("name", SCENARIOS)

Deed = Callable[[Streams], None]


def play(
    scenario: Scenario, step: int, deed: Deed, monkeypatch: pytest.MonkeyPatch, failing: int = 0
) -> tuple[int, Recorder, int]:
    """Run a scenario; return the steps it took, its recorder, and the proxy's operations."""
    bomb = AtStep(step)
    recorder = Recorder((UPSTREAM, UPSTREAM_2), hooks=dict(scenario.hooks))
    outcomes = {UPSTREAM.name: ErrorType.ConnectRefused} if scenario.refused else {}
    networks: list[Network] = []

    def network() -> Network:
        networks.append(Network(failing))
        return networks[-1]

    async def upstream_side(streams: Streams) -> None:
        try:
            upstream = await streams.upstream()
            assert await receive(upstream, 5) == b"hello"
            await send(upstream, b"welcome")
            assert await receive_all(upstream) == b" there"
            await send(upstream, b"bye")
            await upstream.send_eof()
        except (ProxyError, AssertionError, trio.ClosedResourceError):
            for end in streams.opener.ends:
                end.close_now()

    async def client_side(streams: Streams, client: End) -> None:
        try:
            await send(client, b"hello")
            await receive(client, 7)
            await send(client, b" there")
            await client.send_eof()
            await receive_all(client)
        except (ProxyError, AssertionError, trio.ClosedResourceError):
            client.close_now()

    async def main() -> None:
        async with open_streams(recorder, outcomes, delay=0.01) as streams:
            bomb.deed = lambda: deed(streams)
            bomb.on = True
            client = streams.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upstream_side, streams)
                await client_side(streams, client)
                await streams.ended()
                nursery.cancel_scope.cancel()
            bomb.on = False

    with monkeypatch.context() as patch:
        patch.setattr("tests._support.streams.Network", network)
        run_with(bomb, main)
    return bomb.count, recorder, networks[0].operations


@pytest.fixture(autouse=True)
def _one_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_schedule(monkeypatch)


def nothing(_streams: Streams) -> None:
    pass


def stop(streams: Streams) -> None:
    streams.stop()


def leave(streams: Streams) -> None:
    for client in streams.clients:
        client.reset()


def half_close(streams: Streams) -> None:
    for client in streams.clients:
        if not client.closed:
            client.outgoing.end()


def upstream_leaves(streams: Streams) -> None:
    for end in streams.opener.ends:
        end.reset()


DEEDS: dict[Deed, ErrorSource | None] = {
    stop: ErrorSource.INTERNAL,
    leave: ErrorSource.DOWNSTREAM,
    half_close: None,
    upstream_leaves: ErrorSource.UPSTREAM,
}


def check(recorder: Recorder) -> None:
    """Check that the callbacks of each session came in an order that can be."""
    for made in recorder.of("new_ctx"):
        calls = [call for call in recorder.calls if call.ctx is made.ctx]
        names = [call.name for call in calls]
        assert names.count("logging") == 1, names
        assert names[-1] == "logging"
        assert names.count("error_while_proxy") <= 1
        assert names.count("connected_to_upstream") <= 1
        for name in ("downstream_data_filter", "upstream_data_filter"):
            ends = [call.args["end"] for call in calls if call.name == name]
            assert True not in ends[:-1], ends


@scenarios
def test_the_scenario_ends_as_it_should_and_takes_the_same_steps_twice(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name]
    steps, recorder, _ = play(scenario, 0, nothing, monkeypatch)
    check(recorder)
    error = recorder.the("logging").args["e"]
    assert (None if error is None else error.etype) == scenario.error
    again = play(scenario, 0, nothing, monkeypatch)
    assert again[0] == steps
    assert again[1].shown() == recorder.shown()


@scenarios
@pytest.mark.parametrize("deed", DEEDS)
def test_s_03_it_can_be_ended_at_each_of_its_steps(
    name: str, deed: Deed, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name]
    steps, _, _ = play(scenario, 0, nothing, monkeypatch)
    assert steps > 10
    seen: set[ErrorSource] = set()
    for step in some_steps(steps, 2 if steps > 60 else 1):
        _, recorder, _ = play(scenario, step, deed, monkeypatch)
        try:
            check(recorder)
            for call in recorder.of("logging"):
                error = call.args["e"]
                if error is not None and error.root_etype() != scenario.error:
                    seen.add(error.esource)
        except AssertionError as exc:
            exc.add_note(f"{deed.__name__} at step {step} of {steps}: {recorder.shown()}")
            raise
    expected = DEEDS[deed]
    assert seen <= ({expected} if expected is not None else {ErrorSource.UPSTREAM})
    # The sweep hit sessions in flight, not only what lies around them.
    never_connected = deed is upstream_leaves and (
        scenario.error == ErrorType.ConnectRefused or scenario.hooks.get("accept_filter") is drop
    )
    assert seen or expected is None or never_connected


@scenarios
def test_it_survives_a_failure_of_each_of_its_reads_and_writes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name]
    _, _, total = play(scenario, 0, nothing, monkeypatch)
    failed = 0
    for nth in range(1, total + 1):
        _, recorder, _ = play(scenario, 0, nothing, monkeypatch, nth)
        check(recorder)
        failed += any(call.args["e"] is not None for call in recorder.of("logging"))
    assert failed or total <= 1
