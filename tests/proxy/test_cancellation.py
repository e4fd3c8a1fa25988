"""Cancelling at every step of small exchanges leaves no task, no open stream and no lease.

A first run counts the steps that Trio's tasks take. Then, for each of them, a run of its own does
the deed right before that step. That no lease, no session, no task and no open stream is left is
checked by `open_gateway` itself, in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio._core._run
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.faulty import failing
from tests._support.matrix import H1, Pairing, open_matrix
from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    ORIGIN_2,
    Ctx,
    CutError,
    Gateway,
    Origins,
    Recorder,
    Wire,
    answers,
    chunked,
    open_gateway,
    post,
    raises,
)
from tests._support.steps import some_steps
from trioproxy import (
    BodyChunk,
    ErrorSource,
    ErrorType,
    FailToProxy,
    HttpPeer,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    ServerConf,
    Session,
)
from trioproxy._messages import END
from trioproxy.server._http import HttpService
from trioproxy.testing import memory_exchange
from trioproxy.transport._byte_stream import StreamAdapter

RESPONSE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(
    b"hello", b"world", trailers=b"X-Sum: 1\r\n"
)


# -- the scenarios -------------------------------------------------------------------------------


async def pause(*_args: object) -> None:
    """Be a filter that waits a little."""
    await trio.sleep(0.01)


async def pause_and_decline(*_args: object) -> bool:
    await trio.sleep(0.01)
    return False


async def pause_and_go_on(*_args: object) -> bool:
    await trio.sleep(0.01)
    return True


async def answer(session: Session, _ctx: Ctx) -> bool:
    while await session.read_request_body() is not None:
        pass
    await session.write_response_header(ResponseHeader(200))
    for _ in range(2):
        await trio.sleep(0.01)
        await session.write_response_body(b"own", False)
    await session.write_response_body(None, True)
    return True


def retry(_session: Session, _peer: HttpPeer, _ctx: Ctx, e: ProxyError) -> ProxyError:
    e.set_retry(True)
    return e


PAUSES: dict[str, Callable[..., Any]] = {
    "early_request_filter": pause,
    "request_filter": pause_and_decline,
    "proxy_upstream_filter": pause_and_go_on,
    "connected_to_upstream": pause,
    "upstream_request_filter": pause,
    "request_body_filter": pause,
    "upstream_response_filter": pause,
    "response_filter": pause,
    "upstream_response_body_filter": lambda *_: 0.01,
    "response_body_filter": pause,
    "response_trailer_filter": pause,
    "logging": pause,
}


@attrs.frozen
class Scenario:
    """What a client sends, and what becomes of it when nothing is cancelled."""

    hooks: dict[str, Callable[..., Any]]
    requests: list[bytes]
    statuses: list[int]
    origins: Origins = attrs.field(factory=lambda: {ORIGIN.name: answers(RESPONSE)})
    peers: tuple[HttpPeer, ...] = (ORIGIN,)


SCENARIOS = {
    "two requests, the second on a pooled connection": Scenario(
        {}, [post(b"one", b"two", framing="chunked"), GET], [200, 200]
    ),
    "every filter waits": Scenario(PAUSES, [post(b"one", b"two", framing="chunked")], [200]),
    "a connect failure is retried": Scenario(
        {"fail_to_connect": retry},
        [post(b"one")],
        [200],
        {ORIGIN.name: ErrorType.ConnectRefused, ORIGIN_2.name: answers(OK)},
        (ORIGIN, ORIGIN_2),
    ),
    "a filter refuses": Scenario({"request_filter": raises(ProxyError.status(403))}, [GET], [403]),
    "a filter answers": Scenario({"request_filter": answer}, [post(b"one"), GET], [200, 200]),
    "a filter fails in mid body": Scenario(
        {"response_body_filter": raises(ProxyError.status(500))}, [post(b"one")], [500]
    ),
}
scenarios = pytest.mark.parametrize("name", SCENARIOS)


# -- the machine ---------------------------------------------------------------------------------


class AtStep(trio.abc.Instrument):
    """Counts steps from `start` on, and does something before one of them."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.count = 0
        self.deed: Callable[[], None] | None = None
        self.started = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.started:
            self.count += 1
            if self.count == self.step and self.deed is not None:
                self.deed()


STOPPED = {ErrorType.Custom("Cancelled")}
#: What a client that left looks like: its going was noticed, or a write to it failed before.
GONE = {ErrorType.ConnectionClosed, ErrorType.WriteError}

Deed = Callable[[Gateway, Wire], None]


def play(
    scenario: Scenario,
    step: int,
    deed: Deed,
    adapt: Callable[[Any], StreamAdapter] = StreamAdapter,
) -> tuple[int, Recorder, list[int]]:
    """Run a scenario; return the steps it took, its recorder, and the statuses that arrived."""
    bomb = AtStep(step)
    recorder = Recorder(hooks=dict(scenario.hooks), peers=scenario.peers)
    statuses: list[int] = []

    async def main() -> None:
        async with open_gateway(recorder, scenario.origins, adapt=adapt) as gateway:
            client = gateway.connect()
            bomb.deed = lambda: deed(gateway, client)
            bomb.started = True
            try:
                for request in scenario.requests:
                    await client.send(request)
                    statuses.append((await client.message()).status)
            except (CutError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            client.close()
            await gateway.ended()
            bomb.started = False

    # One order of the tasks in a batch, so that the k-th step is the same step in each run.
    trio._core._run._r.seed(1)
    trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[bomb])
    return bomb.count, recorder, statuses


@pytest.fixture(autouse=True)
def _one_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)


def nothing(_gateway: Gateway, _client: Wire) -> None:
    pass


def stop(gateway: Gateway, _client: Wire) -> None:
    gateway.stop()


def leave(_gateway: Gateway, client: Wire) -> None:
    client.close()


def half_close(_gateway: Gateway, client: Wire) -> None:
    client.stream.send_stream.close()


def check(recorder: Recorder) -> None:
    """Check that the callbacks of each request came in an order that can be (invariant 1)."""
    for made in recorder.of("new_ctx"):
        calls = [call for call in recorder.calls if call.ctx is made.ctx]
        names = [call.name for call in calls]
        assert names.count("logging") == 1, names
        assert names[-1] == "logging"
        assert names.count("fail_to_proxy") <= 1
        for name in ("upstream_response_body_filter", "response_body_filter"):
            ends = [call.args["end_of_stream"] for call in calls if call.name == name]
            assert True not in ends[:-1], ends
        attempt: list[bool] = []
        for call in calls:
            if call.name == "upstream_peer":
                attempt = []
            elif call.name == "request_body_filter":
                assert True not in attempt
                attempt.append(call.args["end_of_stream"])


# -- the sweeps ----------------------------------------------------------------------------------


@scenarios
def test_the_scenario_ends_well_and_takes_the_same_steps_twice(name: str) -> None:
    scenario = SCENARIOS[name]
    steps, recorder, statuses = play(scenario, 0, nothing)

    check(recorder)
    assert statuses == scenario.statuses
    again = play(scenario, 0, nothing)
    assert again[0] == steps
    assert again[1].shown() == recorder.shown()


@scenarios
@pytest.mark.parametrize("deed", [stop, leave, half_close])
def test_it_can_be_ended_at_each_of_its_steps(name: str, deed: Deed) -> None:
    scenario = SCENARIOS[name]
    steps, _, _ = play(scenario, 0, nothing)
    assert steps > 10

    fails = scenario.statuses[0] >= 400
    seen: set[ErrorType] = set()
    for step in some_steps(steps, 3):
        _, recorder, statuses = play(scenario, step, deed)
        try:
            check(recorder)
            for call in recorder.of("logging"):
                error = call.args["e"]
                if error is not None and not fails:
                    etype = error.root_etype()
                    assert (etype in STOPPED) if deed is stop else (etype in GONE), error
                    assert error.esource is (
                        ErrorSource.INTERNAL if deed is stop else ErrorSource.DOWNSTREAM
                    )
                    seen.add(etype)
            assert statuses == scenario.statuses[: len(statuses)]
        except AssertionError as exc:
            exc.add_note(f"{deed.__name__} at step {step} of {steps}: {recorder.shown()}")
            raise
    # The sweep hit sessions in flight, not only what lies around them.
    assert seen or fails


@scenarios
def test_it_survives_a_failure_of_each_of_its_reads_and_writes(name: str) -> None:
    scenario = SCENARIOS[name]
    calls = [0]
    play(scenario, 0, nothing, failing(0, calls))
    total = calls[0]
    assert total >= 3

    failed = 0
    for nth in range(1, total + 1):
        _, recorder, _ = play(scenario, 0, nothing, failing(nth, [0]))
        check(recorder)
        failed += any(call.args["e"] is not None for call in recorder.of("logging"))
    assert failed


# -- particular places ---------------------------------------------------------------------------


async def test_logging_that_waits_too_long_does_not_keep_a_stopped_session(
    autojump_clock: MockClock,
) -> None:
    async def log(_session: Session, _e: ProxyError | None, _ctx: Ctx) -> None:
        await trio.sleep_forever()

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.more()

    recorder = Recorder(hooks={"logging": log})
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        gateway.stop()
        await gateway.ended()
        assert trio.current_time() - started == pytest.approx(1, abs=0.1)


async def test_a_stop_does_not_cut_off_what_is_told_of_a_client_that_left(
    autojump_clock: MockClock,
) -> None:
    told: list[str] = []

    async def fail_to_proxy(_session: Session, _e: ProxyError, _ctx: Ctx) -> FailToProxy:
        await trio.sleep(0.5)
        told.append("fail_to_proxy")
        return FailToProxy(0)

    async def origin(wire: Wire) -> None:
        await wire.message()
        await wire.more()

    recorder = Recorder(hooks={"fail_to_proxy": fail_to_proxy})
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        await trio.testing.wait_all_tasks_blocked()
        gateway.stop()
        await gateway.ended()

    assert told == ["fail_to_proxy"]
    assert recorder.the("logging").args["e"].etype == ErrorType.ConnectionClosed


async def test_a_filters_own_tasks_are_cancelled_with_it(autojump_clock: MockClock) -> None:
    ended: list[str] = []

    async def helper() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("helper")

    async def request_body_filter(
        _session: Session, _body: BodyChunk, _end: bool, _ctx: Ctx
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(helper)

    recorder = Recorder(hooks={"request_body_filter": request_body_filter})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(post(b"x"))
        await trio.testing.wait_all_tasks_blocked()
        client.close()
        await gateway.ended()

    assert ended == ["helper"]
    assert recorder.the("logging").args["e"].etype == ErrorType.ConnectionClosed


ONE = ServerConf(max_sessions=1)
PLAIN = Pairing(H1, H1)


async def test_a_session_that_is_cancelled_while_it_is_shed_reaches_no_callback(
    autojump_clock: MockClock,
) -> None:
    """It has no context that a callback could be given."""
    recorder = Recorder()
    async with open_matrix(recorder, ErrorType.ConnectError, PLAIN, conf=ONE) as gateway:
        service = gateway.running._server.service
        assert isinstance(service, HttpService)
        services = service.services
        services.sessions += 1
        up, down = memory_exchange()

        async def blocked(*_events: object) -> None:
            await trio.sleep_forever()

        down.send = blocked  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            assert services.handle is not None
            nursery.start_soon(services.handle, down, None)
            await up.send(RequestHeader("GET", "/", {"Host": "a"}), END)
            await wait_all_tasks_blocked()
            assert services.sessions_shed == 1
            nursery.cancel_scope.cancel()
        services.sessions -= 1
    assert recorder.calls == []
