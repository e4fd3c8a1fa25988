"""Whatever ends a request that makes others, at any step: nothing is left, and no client feels it.

The sweeps do their deed before the steps of a scenario, as those of `test_cancellation` do. That no
lease, session, subrequest, task or open stream is left is checked by `open_spawning` in every run,
and here that neither end of an exchange in memory stays in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from tests._support.caching import settled
from tests._support.faulty import failing
from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    ORIGIN_2,
    Ctx,
    CutError,
    Gateway,
    Message,
    Origins,
    Wire,
    answers,
    chunked,
    open_gateway,
    post,
)
from tests._support.spawning import Spawning, open_spawning, spawner_of
from tests._support.steps import AtStep, run_with, some_steps, use_one_schedule
from trioproxy import ErrorSource, ErrorType, HttpPeer, ResponseHeader, Session
from trioproxy.modules import HttpModuleBuilder, HttpModules
from trioproxy.proxy import _subrequest
from trioproxy.streams._memory import MemoryDownstream, MemoryUpstream, memory_exchange
from trioproxy.subrequests import Mirror
from trioproxy.transport._byte_stream import StreamAdapter

UPLOAD = post(b"one", b"two", framing="chunked")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(
    b"hello", b"world", trailers=b"X-Sum: 1\r\n"
)


@attrs.define(eq=False, slots=False)
class Proxy(Spawning):
    """A proxy of a scenario."""

    modules: tuple[HttpModuleBuilder, ...] = ()

    def init_downstream_modules(self, modules: HttpModules) -> None:
        for each in self.modules:
            modules.add_module(each)


async def by_kind(session: Session, _ctx: Ctx) -> HttpPeer:
    return ORIGIN_2 if session.is_subrequest() else ORIGIN


# -- the scenarios -------------------------------------------------------------------------------


async def in_background(session: Session, _ctx: Ctx) -> bool:
    if not session.is_subrequest():
        spawner_of(session).spawn_background(body=b"news")
    return False


async def piped(session: Session, _ctx: Ctx) -> bool:
    if session.is_subrequest():
        return False

    async def task_filter(task: Any) -> Any:
        await trio.sleep(0.01)
        return task

    await spawner_of(session).pipe(body=spawner_of(session).share_body(), task_filter=task_filter)
    return True


async def looked_at(session: Session, _ctx: Ctx) -> bool:
    if not session.is_subrequest():
        async with spawner_of(session).open(body=b"who is it") as subrequest:
            assert (await subrequest.response_header()).status == 200
            assert await subrequest.read() == b"helloworld"
            assert subrequest.trailers is not None
    return False


async def chained(session: Session, _ctx: Ctx) -> bool:
    if session.is_subrequest():
        return False
    spawner = spawner_of(session)
    shared = spawner.share_body()
    async with spawner.open(body=shared) as first:
        await first.drain()
    await spawner.pipe(body=shared, end_of_stream=False)
    await spawner.pipe()
    return True


async def at_once(session: Session, _ctx: Ctx) -> bool:
    """Ask three and answer with what they say."""
    if session.is_subrequest():
        return False
    parts = [b""] * 3

    async def ask(number: int) -> None:
        async with spawner_of(session).open() as subrequest:
            parts[number] = await subrequest.read()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(ask, number)
    await session.write_response_header(ResponseHeader(200))
    await session.write_response_body(b"|".join(parts), True)
    return True


async def nested(session: Session, _ctx: Ctx) -> bool:
    if session.subrequest_spawner is None:
        return False
    await session.subrequest_spawner.pipe()
    return True


async def hedged(session: Session, _ctx: Ctx) -> bool:
    session.hedge(0.01)
    return False


def slow(seconds: float, response: bytes = CHUNKED) -> Any:
    async def serve(wire: Wire) -> None:
        while True:
            try:
                await wire.message()
            except CutError:
                return
            await trio.sleep(seconds)
            await wire.send(response)

    return serve


@attrs.frozen
class Scenario:
    """What a client sends, and what becomes of it when nothing is ended."""

    request_filter: Callable[..., Any] | None
    requests: list[bytes]
    bodies: list[bytes]
    #: Requests that are made of each.
    made: int
    #: Whether what happens to them is none of the client's business.
    aside: bool = False
    peers: tuple[HttpPeer, ...] = ()
    origins: Origins = attrs.field(
        factory=lambda: {ORIGIN.name: answers(OK), ORIGIN_2.name: answers(CHUNKED)}
    )
    modules: tuple[HttpModuleBuilder, ...] = ()
    depth: int = 1
    #: Whether a failure may leave another response that is whole as well.
    composed: bool = False


SCENARIOS = {
    "in the background": Scenario(in_background, [GET, UPLOAD], [b"hello"] * 2, 1, aside=True),
    "piped, with the client's body": Scenario(piped, [UPLOAD, GET], [b"helloworld"] * 2, 1),
    "looked at": Scenario(looked_at, [GET, UPLOAD], [b"hello"] * 2, 1),
    "chained": Scenario(chained, [UPLOAD], [b"helloworld" * 2], 3, composed=True),
    "three at once": Scenario(at_once, [GET], [b"|".join([b"helloworld"] * 3)], 3, composed=True),
    "three deep": Scenario(nested, [GET], [b"helloworld"], 3, depth=3),
    "mirrored": Scenario(
        None, [UPLOAD, GET], [b"hello"] * 2, 1, aside=True, modules=(Mirror(ORIGIN_2),)
    ),
    "mirrored to who is slow": Scenario(
        None,
        [UPLOAD],
        [b"hello"],
        1,
        aside=True,
        modules=(Mirror(ORIGIN_2),),
        origins={ORIGIN.name: answers(OK), ORIGIN_2.name: slow(0.05)},
    ),
    "hedged, and the second wins": Scenario(
        hedged,
        [GET, UPLOAD.replace(b"POST", b"PUT")],
        [b"hello"] * 2,
        0,
        peers=(ORIGIN, ORIGIN_2, ORIGIN, ORIGIN_2),
        origins={ORIGIN.name: slow(0.05), ORIGIN_2.name: answers(OK)},
        composed=True,
    ),
    "hedged, and both answer at once": Scenario(
        hedged,
        [GET],
        [b"hello"],
        0,
        peers=(ORIGIN, ORIGIN_2),
        origins={ORIGIN.name: slow(0.02, OK), ORIGIN_2.name: slow(0.01, OK)},
    ),
}
scenarios = pytest.mark.parametrize("name", SCENARIOS)


# -- the machine ---------------------------------------------------------------------------------


@attrs.define(eq=False)
class Run:
    """What came of one run."""

    recorder: Proxy
    steps: int = 0
    replies: list[Message] = attrs.field(factory=list)
    #: Subrequests that were begun, hedges, and what was refused or dropped.
    counts: tuple[int, ...] = ()
    calls: int = 0


Deed = Callable[[Gateway, Wire], None]


@pytest.fixture(autouse=True)
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[MemoryUpstream, MemoryDownstream]]:
    """Keep every exchange in memory that a run makes, and let its tasks run in one order."""
    use_one_schedule(monkeypatch)
    made: list[tuple[MemoryUpstream, MemoryDownstream]] = []

    def keep(info: Any) -> tuple[MemoryUpstream, MemoryDownstream]:
        made.append(memory_exchange(info))
        return made[-1]

    monkeypatch.setattr(_subrequest, "memory_exchange", keep)
    return made


def play(
    scenario: Scenario,
    step: int,
    deed: Deed,
    pairs: list[tuple[MemoryUpstream, MemoryDownstream]],
    calls: list[int] | None = None,
    nth: int = 0,
) -> Run:
    """Run a scenario with a deed before one of its steps, 0 for none."""
    bomb = AtStep(step)
    hooks: dict[str, Any] = {}
    if scenario.request_filter is not None:
        hooks["request_filter"] = scenario.request_filter
    if not scenario.peers:
        hooks["upstream_peer"] = by_kind
    recorder = Proxy(
        hooks=hooks,
        peers=scenario.peers or (ORIGIN,),
        modules=scenario.modules,
        depth=scenario.depth,
    )
    run = Run(recorder)
    del pairs[:]
    adapt = StreamAdapter if calls is None else failing(nth, calls)

    async def main() -> None:
        async with open_spawning(recorder, scenario.origins, adapt=adapt) as gateway:
            client = gateway.connect()
            bomb.deed = lambda: deed(gateway, client)
            bomb.on = True
            try:
                for request in scenario.requests:
                    await client.send(request)
                    run.replies.append(await client.message())
            except (CutError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            client.close()
            await gateway.ended()
            # An origin that can no longer be written to may still answer: it is waited for.
            await trio.sleep(1 if calls is None else 100)
            await settled()
            bomb.on = False
            services = gateway.services
            assert services.background == services.subrequests == services.sessions == 0
            run.counts = (
                services.subrequests_total,
                services.hedges,
                services.subrequests_refused,
                services.mirrors_dropped,
            )
            if calls is not None:
                run.calls, calls[0] = calls[0], -1000

    run_with(bomb, main)
    run.steps = bomb.count
    for up, down in pairs:
        assert up._exchange.upstream_left
        assert up._exchange.downstream_left
        assert down._scope is None
    return run


def nothing(_gateway: Gateway, _client: Wire) -> None:
    pass


def stop(gateway: Gateway, _client: Wire) -> None:
    gateway.stop()


def leave(_gateway: Gateway, client: Wire) -> None:
    client.close()


def half_close(_gateway: Gateway, client: Wire) -> None:
    client.stream.send_stream.close()


def stop_background(gateway: Gateway, _client: Wire) -> None:
    assert gateway.services.nursery is not None
    gateway.services.nursery.cancel_scope.cancel()


def drain(gateway: Gateway, _client: Wire) -> None:
    gateway.services.draining = True


def note(exc: AssertionError, deed: Deed, step: int, total: int, run: Run) -> None:
    exc.add_note(f"{deed.__name__} at step {step} of {total}: {run.counts} {run.recorder.shown()}")


def check(run: Run) -> None:
    """Check that every request that began was told its end, once and last."""
    recorder = run.recorder
    for made in recorder.of("new_ctx"):
        names = [call.name for call in recorder.calls if call.ctx is made.ctx]
        assert names.count("logging") == 1, names
        assert names[-1] == "logging"


#: What a session looks like that somebody ended.
ENDED = {ErrorType.Custom("Cancelled"), ErrorType.ConnectionClosed, ErrorType.WriteError}


# -- the sweeps ----------------------------------------------------------------------------------


@scenarios
def test_it_ends_well_and_takes_the_same_steps_twice(name: str, pairs: Any) -> None:
    scenario = SCENARIOS[name]
    run = play(scenario, 0, nothing, pairs)
    check(run)
    assert [reply.body for reply in run.replies] == scenario.bodies
    made = scenario.made * len(scenario.requests)
    hedges = len(scenario.peers) and len(scenario.requests)
    assert run.counts == (made, hedges, 0, 0)
    assert len(pairs) == made
    assert {call.args["e"] for call in run.recorder.of("logging")} == {None}
    again = play(scenario, 0, nothing, pairs)
    assert again.steps == run.steps
    assert again.recorder.shown() == run.recorder.shown()


@scenarios
@pytest.mark.parametrize("deed", [stop, leave, half_close])
def test_s_09_its_client_can_be_ended_at_each_of_its_steps(
    name: str, deed: Deed, pairs: Any
) -> None:
    scenario = SCENARIOS[name]
    total = play(scenario, 0, nothing, pairs).steps
    assert total > 20
    seen = 0
    for step in some_steps(total, 5):
        run = play(scenario, step, deed, pairs)
        try:
            check(run)
            bodies = [reply.body for reply in run.replies]
            assert bodies == scenario.bodies[: len(bodies)]
            for call in run.recorder.of("logging"):
                error = call.args["e"]
                if error is not None:
                    assert error.root_etype() in ENDED, error
                    assert error.esource in (ErrorSource.INTERNAL, ErrorSource.DOWNSTREAM)
                    seen += 1
        except AssertionError as exc:
            note(exc, deed, step, total, run)
            raise
    assert seen


@scenarios
@pytest.mark.parametrize("deed", [stop_background, drain])
def test_s_09_what_is_in_the_background_can_be_ended_at_each_step_and_no_client_feels_it(
    name: str, deed: Deed, pairs: Any
) -> None:
    scenario = SCENARIOS[name]
    total = play(scenario, 0, nothing, pairs).steps
    ended = refused = 0
    for step in some_steps(total, 5):
        run = play(scenario, step, deed, pairs)
        try:
            check(run)
            assert [reply.body for reply in run.replies] == scenario.bodies
            for call in run.recorder.of("logging"):
                if not call.args["session"].is_subrequest():
                    assert call.args["e"] is None
                elif call.args["e"] is not None:
                    assert call.args["e"].etype == ErrorType.Custom("Cancelled")
                    ended += 1
            made = scenario.made * len(scenario.requests)
            total_made, _, not_made, dropped = run.counts
            # What is not made is counted.
            assert not_made >= dropped
            if deed is drain:
                assert total_made + not_made == made
            refused += not_made
        except AssertionError as exc:
            note(exc, deed, step, total, run)
            raise
    if scenario.aside and deed is drain:
        assert refused
    elif not scenario.aside:
        assert (ended, refused) == (0, 0)


@scenarios
def test_any_read_or_write_of_any_of_them_may_fail(name: str, pairs: Any) -> None:
    scenario = SCENARIOS[name]
    total = play(scenario, 0, nothing, pairs, calls=[0]).calls
    assert total >= 4
    whole = 0
    for nth in range(1, total + 1):
        run = play(scenario, 0, nothing, pairs, calls=[0], nth=nth)
        try:
            check(run)
            for reply, body in zip(run.replies, scenario.bodies, strict=False):
                assert reply.status >= 400 or reply.body == body or scenario.composed
            whole += [reply.body for reply in run.replies] == scenario.bodies
        except AssertionError as exc:
            note(exc, nothing, nth, total, run)
            raise
    # What goes wrong beside the client's own exchange is not felt there.
    assert whole or not (scenario.aside or scenario.peers)


async def test_without_a_place_for_it_nothing_is_begun_in_the_background() -> None:
    proxy = Proxy(hooks={"request_filter": in_background}, modules=(Mirror(ORIGIN_2),))
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"
        services = gateway.services
        assert (services.subrequests_refused, services.mirrors_dropped) == (2, 1)
