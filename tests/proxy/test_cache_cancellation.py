"""Whatever ends a request that fills the cache: no lock stays, nothing half is stored, one takes over.

The sweeps do their deed before the steps of a scenario, as those of `test_cancellation` do. That no lock,
writer, reader, permit or task is left is checked by `open_cache` itself, in every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests._support.caching import (
    CacheRecorder,
    Steps,
    get,
    memory,
    open_cache,
    response,
    settled,
    stored_body,
)
from tests._support.faulty import failing
from tests._support.matrix import H1, H2C, LEGS, Exchange, Leg, Pairing, open_matrix
from tests._support.recording import GET, CutError, Gateway, Message, Wire, chunked, raises
from tests._support.steps import AtStep, run_with, some_steps, use_one_schedule
from trioproxy import BodyChunk, ErrorSource, ErrorType, ProxyError, ServerConf, Session
from trioproxy.cache import CacheLock, MemoryStorage
from trioproxy.cache._memory import MemoryMissHandler
from trioproxy.transport._byte_stream import StreamAdapter

BODY = b"hello world"
ANSWER = response('ETag: "1"', body=BODY, cache="max-age=60, stale-while-revalidate=3600")
#: The head, and the body in pieces that arrive one by one.
PIECES: list[bytes | trio.Event | float | None] = [
    0.01,
    ANSWER[:-11],
    0.01,
    b"hello",
    0.01,
    b" world",
]
RENEWED: list[bytes | trio.Event | float | None] = [
    0.01,
    b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nCache-Control: max-age=60\r\n\r\n',
]
LATER = 100.0


async def take(client: Wire) -> bytes | int | None:
    """Read a response and return its body; None where it was cut, its status where it is none."""
    try:
        message = await client.message()
    except (CutError, trio.BrokenResourceError, trio.ClosedResourceError):
        return None
    return message.body if message.status == 200 else message.status


@attrs.define(eq=False)
class Run:
    """What came of one run."""

    recorder: CacheRecorder
    asked: list[Message] = attrs.field(factory=list)
    writer: bytes | int | None = None
    readers: list[bytes | int | None] = attrs.field(factory=list)
    #: Requests that the origin had got when all had ended, before one more came.
    asked_before: int = 0
    steps: int = 0
    calls: int = 0


Deed = Callable[[Gateway, Wire], None]


def nothing(_gateway: Gateway, _client: Wire) -> None:
    pass


def stop(gateway: Gateway, _client: Wire) -> None:
    """Cancel the writer's connection."""
    connection = next(iter(gateway.connections), None)
    if connection is not None:
        gateway.connections[connection].cancel()


def leave(_gateway: Gateway, client: Wire) -> None:
    """Let the writer's client go away."""
    client.close()


def stop_background(gateway: Gateway, _client: Wire) -> None:
    assert gateway.services.nursery is not None
    gateway.services.nursery.cancel_scope.cancel()


def play(
    step: int,
    deed: Deed,
    *,
    whole: bool = False,
    stale: bool = False,
    behind: bool = False,
    readers: int = 2,
    calls: list[int] | None = None,
    nth: int = 0,
) -> Run:
    """Let a client fetch, others wait for it, and do the deed to the first before a step.

    Args:
      step: Which step, 0 for none.
      deed: What to do.
      whole: Use a store that cannot be read while it is written.
      stale: Let something stale be there, which a 304 confirms.
      behind: Serve it meanwhile.
      readers: How many wait.
      calls: Counts the reads and writes of the gateway.
      nth: Which of these fails, and all that follow on the same transport.
    """
    bomb = AtStep(step)
    recorder = CacheRecorder(storage=memory(whole=whole))
    if behind:
        recorder.hooks["should_serve_stale"] = lambda _s, _c, error: error is None
    run = Run(recorder)
    adapt = StreamAdapter if calls is None else failing(nth, calls)

    async def main() -> None:
        steps = Steps([RENEWED if stale else PIECES, PIECES])
        if stale:
            steps.steps.insert(0, [ANSWER])
        async with open_cache(recorder, steps.origin(), adapt=adapt) as gateway:
            if stale:
                await gateway.exchange(GET)
                for client in gateway.clients:
                    client.close()
                await gateway.ended()
                await trio.sleep(LATER)
                del steps.asked[:], steps.steps[0], recorder.calls[:]
            run.asked = steps.asked
            writer = gateway.connect()
            waiting = []
            bomb.deed = lambda: deed(gateway, writer)
            bomb.on = True
            try:
                await writer.send(GET)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            await settled()
            for _ in range(readers):
                waiting.append(gateway.connect())
                await waiting[-1].send(GET)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep, writer, run)
                for each in waiting:
                    run.readers.append(await take(each))
            for client in gateway.clients:
                client.close()
            await gateway.ended()
            await trio.sleep(1)
            bomb.on = False
            if calls is not None:
                run.calls, calls[0] = calls[0], -1000
            run.asked_before = len(steps.asked)
            # Whatever happened, the next one gets it.
            gateway.services.nursery = None if deed is stop_background else gateway.services.nursery
            assert (await gateway.exchange(GET)).body == BODY
            await trio.sleep(1)

    run_with(bomb, main)
    run.steps = bomb.count
    return run


async def keep(writer: Wire, run: Run) -> None:
    run.writer = await take(writer)


@pytest.fixture(autouse=True)
def _one_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_schedule(monkeypatch)


def test_without_a_deed_one_fetches_for_all() -> None:
    for whole in (False, True):
        run = play(0, nothing, whole=whole)
        assert (run.writer, run.readers) == (BODY, [BODY, BODY])
        assert len(run.asked) == 1
        again = play(0, nothing, whole=whole)
        assert (again.steps, again.recorder.shown()) == (run.steps, run.recorder.shown())


@pytest.mark.parametrize("whole", [False, True], ids=["partial", "whole"])
@pytest.mark.parametrize("deed", [stop, leave])
def test_a_writer_that_is_ended_at_each_of_its_steps_is_followed_by_one_other(
    deed: Deed, whole: bool
) -> None:
    readers = 2 if deed is stop or not whole else 1
    all_served = (BODY,) * readers
    total = play(0, nothing, whole=whole, readers=readers).steps
    assert total > 20
    seen = set()
    for step in some_steps(total, 4):
        run = play(step, deed, whole=whole, readers=readers)
        try:
            assert len(run.asked) <= 2
            assert stored_body(run.recorder.storage) == [BODY]
            for call in run.recorder.of("logging"):
                error = call.args["e"]
                if error is not None and call.ctx.number and error.root_etype() != CUT:
                    raise AssertionError(error)
            # Nobody who waited fails, but those who had begun to read what was never completed.
            if whole or deed is leave:
                assert tuple(run.readers) == all_served
                assert run.asked_before == len(run.asked)
            else:
                assert set(run.readers) <= {BODY, None}
            seen.add((run.writer is None, tuple(run.readers), run.asked_before))
        except AssertionError as exc:
            exc.add_note(
                f"{deed.__name__} at step {step} of {total}: {run.writer!r} {run.readers} {run.recorder.shown()}"
            )
            raise
    assert (False, all_served, 1) in seen
    # Somebody else took over ...
    assert (True, all_served, 2) in seen
    # ... and where what is written can be read, a client that left meanwhile let it come to its end.
    assert whole or deed is stop or (True, all_served, 1) in seen
    assert any(None in readers for _, readers, _ in seen) is (deed is stop and not whole)


#: What a reader sees of an entry that was never completed.
CUT = ErrorType.PrematureBodyEnd


@pytest.mark.parametrize("deed", [stop, leave])
def test_a_revalidation_that_is_ended_at_each_of_its_steps_is_taken_over(deed: Deed) -> None:
    total = play(0, nothing, stale=True, readers=1).steps
    followed = 0
    for step in some_steps(total, 4):
        run = play(step, deed, stale=True, readers=1)
        try:
            assert run.readers == [BODY]
            assert len(run.asked) <= 2
            assert run.asked_before == len(run.asked)
            assert stored_body(run.recorder.storage) == [BODY]
        except AssertionError as exc:
            exc.add_note(
                f"{deed.__name__} at step {step} of {total}: {run.writer!r} {run.readers} {run.recorder.shown()}"
            )
            raise
        followed += len(run.asked) - 1
    assert followed


@pytest.mark.parametrize("deed", [stop, leave, stop_background])
def test_a_renewal_in_the_background_goes_on_without_the_client_and_ends_with_the_server(
    deed: Deed,
) -> None:
    total = play(0, nothing, stale=True, behind=True, readers=1).steps
    for step in some_steps(total, 4):
        run = play(step, deed, stale=True, behind=True, readers=1)
        try:
            assert run.readers == [BODY]
            assert len(run.asked) <= 2
            assert stored_body(run.recorder.storage) == [BODY]
        except AssertionError as exc:
            exc.add_note(
                f"{deed.__name__} at step {step} of {total}: {run.writer!r} {run.readers} {run.recorder.shown()}"
            )
            raise


@pytest.mark.parametrize("whole", [False, True], ids=["partial", "whole"])
def test_any_read_or_write_may_fail_while_others_wait(whole: bool) -> None:
    good = play(0, nothing, whole=whole, readers=1, calls=[0])
    assert (good.writer, good.readers) == (BODY, [BODY])
    total = good.calls
    assert total > 10
    hurt = 0
    for nth in range(1, total + 1):
        run = play(0, nothing, whole=whole, readers=1, calls=[0], nth=nth)
        try:
            assert stored_body(run.recorder.storage) == [BODY]
            assert len(run.asked) <= 3
        except AssertionError as exc:
            exc.add_note(f"call {nth} of {total}: {run.asked} {run.recorder.shown()}")
            raise
        hurt += BODY not in (run.writer, *run.readers)
        assert BODY in (run.writer, *run.readers) or not whole
    assert hurt or whole


# -- many at once --------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "whole"), [(500, False), (100, True)])
async def test_five_hundred_requests_for_one_cold_key_reach_the_origin_once(
    count: int, whole: bool, autojump_clock: MockClock
) -> None:
    recorder = Recorded(storage=memory(whole=whole))
    steps = Steps([PIECES])
    bodies: list[bytes | int | None] = []

    async def ask(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.send(GET)
        bodies.append(await take(client))
        client.close()

    async with open_cache(recorder, steps.origin()) as gateway:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(ask, gateway)
        await settled()
        assert recorder.phases == {"miss": 1, "hit": count - 1}

    assert bodies == [BODY] * count
    assert len(steps.asked) == 1


@attrs.define(eq=False, slots=False)
class Recorded(CacheRecorder):
    """Counts phases and keeps no transcript, of which five hundred are too much."""

    phases: Counter[str] = attrs.field(factory=Counter)  # type: ignore[assignment]  # counts instead

    def _note(self, name: str, ctx: Any, shown: object = None, **args: Any) -> None:
        if name == "logging":
            self.phases[str(args["phase"])] += 1


async def test_of_many_that_wait_for_a_writer_that_fails_one_takes_over_at_a_time(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorded(storage=memory(whole=True))
    steps = Steps([[0.1, None], [0.1, None], [0.1, ANSWER]])
    got: list[bytes | int | None] = []

    async def ask(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.send(GET)
        got.append(await take(client))

    async with open_cache(recorder, steps.origin()) as gateway, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask, gateway)

    assert sorted(got, key=str) == sorted([502, 502, *[BODY] * 18], key=str)
    assert len(steps.asked) == 3


# -- a client that is gone -----------------------------------------------------------------------


async def test_a_transfer_goes_on_without_its_client_where_others_can_read_it(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[ANSWER[:-11], b"hello", go, b" world"]])
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await settled()
        client.close()
        await settled()
        assert recorder.of("logging") == []
        go.set()
        await settled()
        assert recorder.the("logging").args["e"] is None
        assert stored_body(recorder.storage) == [BODY]
        # The connection to the origin is as good as new.
        assert gateway.pool.statistics().idle == 1

    assert "fail_to_proxy" not in recorder.names()
    assert "error_while_proxy" not in recorder.names()


@pytest.mark.parametrize("down", LEGS, ids=str)
@pytest.mark.parametrize("up", [H1, H2C], ids=str)
async def test_a_transfer_goes_on_whatever_its_client_spoke(
    down: Leg, up: Leg, autojump_clock: MockClock
) -> None:
    go = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [("cache-control", "max-age=60")])
        await exchange.send_data(b"hello")
        await go.wait()
        await exchange.send_data(b" wor")
        await exchange.send_data(b"ld", end=True)

    recorder = CacheRecorder()
    async with open_matrix(recorder, origin, Pairing(down, up), check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.open(end=True)
        await exchange.at_least(5)
        await exchange.reset()
        await settled()
        assert recorder.of("logging") == []
        go.set()
        await settled()
        assert recorder.the("logging").args["e"] is None
        assert (await gateway.exchange()).body == BODY
        assert stored_body(recorder.storage) == [BODY]
        assert len(gateway.asked) == 1


@pytest.mark.parametrize("whole", [False, True], ids=["partial", "whole"])
@pytest.mark.parametrize("down", LEGS, ids=str)
async def test_a_client_that_has_its_answer_may_leave_whatever_it_spoke(
    down: Leg, whole: bool, autojump_clock: MockClock
) -> None:
    go = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [("cache-control", "max-age=60")])
        await go.wait()
        await exchange.send_data(BODY, end=True)

    recorder = CacheRecorder(storage=memory(whole=whole))
    async with open_matrix(recorder, origin, Pairing(down, H1), check_windows=False) as gateway:
        client = await gateway.connect()
        assert (await client.exchange("HEAD")).status == 200
        client.close()
        await settled()
        go.set()
        await settled()
        assert recorder.the("logging").args["e"] is None
        assert stored_body(recorder.storage) == [BODY]


async def test_nothing_is_stored_without_the_client_where_nobody_could_read_it(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[ANSWER[:-11], b"hello", go, b" world"]])
    recorder = CacheRecorder(storage=memory(whole=True))
    async with open_cache(recorder, steps.origin()) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await settled()
        client.close()
        await settled()
        error = recorder.the("logging").args["e"]
        assert (error.root_etype(), error.esource) == (
            ErrorType.ConnectionClosed,
            ErrorSource.DOWNSTREAM,
        )
        go.set()
        await settled()
        assert stored_body(recorder.storage) == []


async def test_a_writer_whose_client_does_not_read_is_bounded_by_the_write_timeout(
    autojump_clock: MockClock,
) -> None:
    steps = Steps([[ANSWER]])
    recorder = CacheRecorder()
    conf = ServerConf(write_timeout=5)
    async with open_cache(recorder, steps.origin(), conf=conf, lockstep=True) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, GET)
            await trio.sleep(6)
        # What it did not take is there for others.
        assert stored_body(recorder.storage) == [BODY]
        client.close()
        assert recorder.the("logging").args["e"] is None


async def test_those_who_wait_do_not_wait_for_what_is_told_of_a_client_that_left(
    autojump_clock: MockClock,
) -> None:
    steps = Steps([[trio.Event()], [ANSWER]])

    async def slowly(session: Session, _e: ProxyError | None, ctx: Any) -> None:
        if ctx.number == 0:
            await trio.sleep(0.9)

    recorder = CacheRecorder(hooks={"logging": slowly})
    async with open_cache(recorder, steps.origin()) as gateway:
        writer, reader = gateway.connect(), gateway.connect()
        await writer.send(GET)
        await settled()
        await reader.send(GET)
        await settled()
        started = trio.current_time()
        writer.close()
        assert await take(reader) == BODY
        assert trio.current_time() == started
        await gateway.ended()


# -- bodies --------------------------------------------------------------------------------------

MIB = bytes(range(256)) * 4096


@pytest.mark.parametrize("whole", [False, True], ids=["partial", "whole"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_mebibyte_goes_through_the_cache_unchanged(
    framing: str, whole: bool, autojump_clock: MockClock
) -> None:
    head = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n"
    if framing == "length":
        answer = head + b"Content-Length: 1048576\r\n\r\n" + MIB
    elif framing == "chunked":
        answer = head + b"Transfer-Encoding: chunked\r\n\r\n"
        answer += chunked(*(MIB[at : at + 5000] for at in range(0, len(MIB), 5000)))
    else:
        answer = head + b"\r\n" + MIB
    steps = Steps([[answer, None]])
    recorder = Recorded(storage=MemoryStorage(1 << 26) if not whole else memory(whole=True))
    async with open_cache(recorder, steps.origin()) as gateway:
        clients = [gateway.connect() for _ in range(3)]
        for client in clients:
            await client.send(GET)
        for client in clients:
            assert await take(client) == MIB
        if framing == "length":
            ranged = await gateway.exchange(get("/path", "Range: bytes=65530-131080"))
            assert ranged.body == MIB[65530:131081]

    assert recorder.phases == {"miss": 1, "hit": 3 if framing == "length" else 2}


async def test_a_slow_reader_of_what_is_written_holds_nobody_up(autojump_clock: MockClock) -> None:
    go = trio.Event()
    steps = Steps([[response(body=MIB)[:-700000], go, MIB[-700000:]]])
    recorder = Recorded(storage=memory())
    conf = ServerConf(write_timeout=1e6)
    async with open_cache(recorder, steps.origin(), conf=conf, lockstep=True) as gateway:
        writer, reader = gateway.connect(), gateway.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.send, GET)
            await settled()
            nursery.start_soon(reader.send, GET)
            await settled()
            go.set()
            assert await take(writer) == MIB
            assert stored_body(recorder.storage) == [MIB]
            await settled()
            assert recorder.phases == {"miss": 1}
            # It reads now, a little from time to time.
            head = await reader.head()
            await trio.sleep(1000)
            await reader.body(head)
            assert head.body == MIB


# -- a response that is cut ----------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n"
CUTS = {
    "short of its length": (HEAD + b"Content-Length: 11\r\n\r\nhello", b""),
    "chunked, without its last chunk": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"hello")[:-5],
        b"",
    ),
    "chunked, broken": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"no chunk\r\n",
    ),
    "before its content": (HEAD + b"Content-Length: 11\r\n\r\n", b""),
}


async def cut_is_not_stored(answer: tuple[bytes, bytes], whole: bool) -> None:
    """Check that what is cut is given to nobody as if it was whole."""
    go = trio.Event()
    before, behind = answer
    cut: list[bytes | trio.Event | float | None] = [before, go, behind, None]
    steps = Steps([cut, [ANSWER]])
    recorder = CacheRecorder(storage=memory(whole=whole))
    async with open_cache(recorder, steps.origin()) as gateway:
        writer, reader = gateway.connect(), gateway.connect()
        await writer.send(GET)
        await settled()
        await reader.send(GET)
        await settled()
        go.set()
        assert await take(writer) is None
        # Who has seen nothing of it yet takes over, anybody else is aborted.
        assert await take(reader) == (BODY if whole else None)
        assert stored_body(recorder.storage) == ([BODY] if whole else [])
        assert (await gateway.exchange(GET)).body == BODY
    assert len(steps.asked) == 2


@pytest.mark.parametrize("whole", [False, True], ids=["partial", "whole"])
@pytest.mark.parametrize("name", CUTS)
async def test_a_response_that_is_cut_is_given_to_nobody_as_if_it_was_whole(
    name: str, whole: bool, autojump_clock: MockClock
) -> None:
    await cut_is_not_stored(CUTS[name], whole)


@pytest.mark.parametrize("name", CUTS)
async def test_what_is_cut_behind_the_clients_end_is_not_stored(
    name: str, autojump_clock: MockClock
) -> None:
    before, behind = CUTS[name]
    recorder = CacheRecorder()
    async with open_cache(recorder, Steps([[before, 1.0, behind, None]]).origin()) as gateway:
        assert (await gateway.exchange(get(method="HEAD"), bodiless=True)).status == 200
        await trio.sleep(2)
        assert stored_body(recorder.storage) == []

    assert recorder.the("logging").args["e"] is None


async def test_a_store_that_keeps_what_is_cut_is_found(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def abandon(self: MemoryMissHandler) -> None:
        if not self._done:
            self._done = True
            self._shelf.complete(self._entry)

    monkeypatch.setattr(MemoryMissHandler, "abandon", abandon)
    for whole in (False, True):
        with pytest.raises((AssertionError, ExceptionGroup)):
            await cut_is_not_stored(CUTS["short of its length"], whole)


@pytest.mark.parametrize(
    "phase", ["upstream_response_body_filter", "response_body_filter", "response_filter"]
)
async def test_a_filter_that_fails_leaves_nothing_in_the_store(
    phase: str, autojump_clock: MockClock
) -> None:
    recorder = CacheRecorder(hooks={phase: raises(ValueError(phase))})
    async with open_cache(recorder, Steps([PIECES]).origin()) as gateway:
        client = gateway.connect()
        await client.send(GET)
        assert await take(client) in (500, None)
        assert stored_body(recorder.storage) == []
        recorder.hooks.clear()
        assert (await gateway.exchange(GET)).body == BODY


async def test_a_filter_that_fails_behind_the_clients_end_is_the_caches_matter(
    autojump_clock: MockClock,
) -> None:
    def fail(_session: Session, body: BodyChunk, _end: bool, _ctx: object) -> None:
        if body.data == b" world":
            raise ValueError("behind")

    recorder = CacheRecorder(hooks={"upstream_response_body_filter": fail})
    async with open_cache(recorder, Steps([PIECES]).origin()) as gateway:
        ranged = await gateway.exchange(get("/path", "Range: bytes=0-1"))
        assert (ranged.status, ranged.body) == (206, b"he")
        await trio.sleep(1)
        assert stored_body(recorder.storage) == []

    assert recorder.the("logging").args["e"] is None
    assert recorder.phases() == ["disabled (UpstreamError)"]


async def test_a_reader_gets_the_head_of_what_is_written_before_its_content_is_there(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[ANSWER[:-11], go, BODY]])
    recorder = CacheRecorder()
    async with open_cache(recorder, steps.origin()) as gateway:
        writer, reader = gateway.connect(), gateway.connect()
        await writer.send(GET)
        await settled()
        await reader.send(GET)
        head = await reader.head()
        assert head.status == 200
        go.set()
        await reader.body(head)
        assert head.body == BODY


async def test_a_writer_that_is_over_its_time_is_replaced_and_disturbs_nobody(
    autojump_clock: MockClock,
) -> None:
    go = trio.Event()
    steps = Steps([[go, response(body=b"late")], [ANSWER]])
    recorder = CacheRecorder(lock=CacheLock(10))
    async with open_cache(recorder, steps.origin()) as gateway:
        writer, reader = gateway.connect(), gateway.connect()
        await writer.send(GET)
        await settled()
        await reader.send(GET)
        assert await take(reader) == BODY
        assert recorder.lock is not None
        assert recorder.lock.statistics().held == 0
        go.set()
        assert await take(writer) == b"late"

    assert len(steps.asked) == 2


@pytest.mark.parametrize("deed", [stop, leave])
@pytest.mark.parametrize("asked", ["", "Range: bytes=0-1,4-5"])
def test_a_hit_can_be_ended_at_each_of_its_steps(deed: Deed, asked: str) -> None:
    def hit(step: int) -> tuple[int, CacheRecorder]:
        bomb = AtStep(step)
        recorder = CacheRecorder()

        async def main() -> None:
            async with open_cache(recorder, Steps([[ANSWER]]).origin()) as gateway:
                await gateway.exchange(GET)
                for each in gateway.clients:
                    each.close()
                await gateway.ended()
                client = gateway.connect()
                bomb.deed = lambda: deed(gateway, client)
                bomb.on = True
                try:
                    await client.send(get("/path", asked) if asked else GET)
                    await client.message()
                except (CutError, trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                client.close()
                await gateway.ended()
                bomb.on = False
                assert (await gateway.exchange(GET)).body == BODY
                # The entry may be replaced at once: nobody reads it any more.
                assert isinstance(recorder.storage, MemoryStorage)
                await settled()
                assert recorder.storage._shelf.pinned == 0

        run_with(bomb, main)
        return bomb.count, recorder

    total, _ = hit(0)
    for step in some_steps(total, 4):
        _, recorder = hit(step)
        for call in recorder.of("logging"):
            error = call.args["e"]
            assert error is None or error.root_etype() in (
                ErrorType.ConnectionClosed,
                ErrorType.WriteError,
                ErrorType.Custom("Cancelled"),
            ), (step, error)


async def test_a_fill_without_its_client_is_bounded_by_the_requests_time(
    autojump_clock: MockClock,
) -> None:
    steps = Steps([[ANSWER[:-11], 3.0, b"hello", trio.Event()]])
    recorder = CacheRecorder()
    conf = ServerConf(request_timeout=30, read_timeout=1000)
    async with open_cache(recorder, steps.origin(), conf=conf) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await settled()
        client.close()
        await trio.sleep(29)
        assert gateway.services.sessions == 1
        await trio.sleep(2)
        assert gateway.services.sessions == 0
        assert stored_body(recorder.storage) == []
