"""What a stream's callbacks see, in which order, and what becomes of its bytes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.streams import (
    UPSTREAM,
    UPSTREAM_2,
    Ctx,
    Recorder,
    is_cut,
    open_streams,
    receive,
    receive_all,
    send,
    send_and_end,
)
from trioproxy import BodyChunk, ErrorSource, ErrorType, ProxyError, ServerConf
from trioproxy.stream import ProxyStream, StreamPeer, StreamSession
from trioproxy.testing._network import Link, Path


def raises(exc: BaseException) -> Callable[..., Any]:
    """Return a plain hook that raises."""

    def hook(*_args: object) -> Any:
        raise exc

    return hook


def fails(exc: BaseException) -> Callable[..., Awaitable[Any]]:
    """Return an async hook that raises."""

    async def hook(*_args: object) -> Any:
        raise exc

    return hook


def again(_session: StreamSession, _peer: StreamPeer, _ctx: Ctx, e: ProxyError) -> ProxyError:
    e.set_retry(True)
    return e


# -- a whole stream --------------------------------------------------------------------------------


async def test_the_callbacks_run_in_order_and_see_every_byte(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await send(client, b"hello")
        assert await receive(upstream, 5) == b"hello"
        await send(upstream, b"welcome")
        assert await receive(client, 7) == b"welcome"
        await client.send_eof()
        assert await receive_all(upstream) == b""
        await send(upstream, b"bye")
        await upstream.send_eof()
        assert await receive_all(client) == b"bye"
        await streams.ended()
    assert recorder.shown() == [
        "new_ctx()",
        "accept_filter()",
        "upstream_peer()",
        "connected_to_upstream(upstream.test:7000)",
        "downstream_data_filter(b'hello', False)",
        "upstream_data_filter(b'welcome', False)",
        "downstream_data_filter(None, True)",
        "upstream_data_filter(b'bye', False)",
        "upstream_data_filter(None, True)",
        "logging(None)",
    ]
    assert len({call.ctx for call in recorder.calls}) == 1
    session: StreamSession = recorder.the("logging").args["session"]
    assert (session.bytes_from_client(), session.bytes_to_upstream()) == (5, 5)
    assert (session.bytes_from_upstream(), session.bytes_to_client()) == (10, 10)
    assert session.client_addr() == "198.51.100.1:50001"
    assert session.server_addr() == "192.0.2.1:80"
    assert session.digest().peer_addr == "198.51.100.1:50001"
    assert recorder.the("connected_to_upstream").args["digest"].peer_addr == "192.0.2.20:7000"


class Least(ProxyStream[None]):
    """Overrides what must be, and nothing else."""

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: StreamSession, ctx: None) -> StreamPeer:
        return UPSTREAM


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_either_side_may_end_first_and_the_other_one_goes_on(
    first: str, autojump_clock: MockClock
) -> None:
    async with open_streams(Least()) as streams:
        ends = list(await streams.joined())
        if first == "upstream":
            ends.reverse()
        one, other = ends
        for source, sink in ((one, other), (other, one)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_and_end, source, b"x" * 200_000)
                assert len(await receive_all(sink)) == 200_000
        await streams.ended()
        assert streams.running.statistics().errors == ()


async def test_the_upstream_may_speak_first(autojump_clock: MockClock) -> None:
    async with open_streams(Least()) as streams:
        client, upstream = await streams.joined()
        await send(upstream, b"220 ready\r\n")
        assert await receive(client, 11) == b"220 ready\r\n"


async def test_what_came_before_there_was_an_upstream_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    async with open_streams(Least(), delay=1.0) as streams:
        client = streams.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, client, b"a" * 200_000)
            upstream = await streams.upstream()
            assert await receive_all(upstream) == b"a" * 200_000


async def test_no_byte_has_to_flow(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await client.send_eof()
        await upstream.send_eof()
        assert await receive_all(client) == await receive_all(upstream) == b""
        await streams.ended()
    assert recorder.the("logging").shown == "None"


async def test_sessions_of_one_object_share_nothing(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        pairs = [await streams.joined() for _ in range(5)]
        for number, (client, _) in enumerate(pairs):
            await send(client, b"%d" % number)
        for number, (_, upstream) in reversed(list(enumerate(pairs))):
            assert await receive(upstream, 1) == b"%d" % number
        statistics = streams.running.statistics()
        assert (statistics.sessions, statistics.connections) == (5, 5)
        assert (statistics.pool.leased, statistics.pool.connects) == (5, 5)
    assert len({call.ctx for call in recorder.calls}) == 5


# -- data filters ----------------------------------------------------------------------------------


class Rewriting(Least):
    """Has one plain filter and one that waits."""

    def downstream_data_filter(
        self, session: StreamSession, chunk: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        chunk.data = b"[end]" if end_of_stream else (chunk.data or b"").upper()

    async def upstream_data_filter(
        self, session: StreamSession, chunk: BodyChunk, end_of_stream: bool, ctx: None
    ) -> float | None:
        await trio.sleep(1)
        if chunk.data == b"secret":
            chunk.data = None
        return 2.5 if chunk.data else None


async def test_filters_rewrite_swallow_and_append(autojump_clock: MockClock) -> None:
    async with open_streams(Rewriting()) as streams:
        client, upstream = await streams.joined()
        await send(client, b"hello")
        await client.send_eof()
        assert await receive_all(upstream) == b"HELLO[end]"
        await send(upstream, b"secret")
        await wait_all_tasks_blocked()
        await trio.sleep(1.5)
        await send(upstream, b"open")
        await upstream.send_eof()
        assert await receive_all(client) == b"open"
        session = streams.service.services
        assert session.sessions_total == 1


async def test_a_filter_delays_what_it_saw_and_not_the_other_direction(
    autojump_clock: MockClock,
) -> None:
    async with open_streams(Rewriting()) as streams:
        client, upstream = await streams.joined()
        started = trio.current_time()
        await send(upstream, b"slow")
        await wait_all_tasks_blocked()
        await send(client, b"fast")
        assert await receive(upstream, 4) == b"FAST"
        assert trio.current_time() == started
        assert await receive(client, 4) == b"slow"
        assert trio.current_time() == started + 3.5


@pytest.mark.parametrize("delay", [-1, math.inf, "soon", float("nan")])
@pytest.mark.parametrize("name", ["downstream_data_filter", "upstream_data_filter"])
async def test_a_delay_that_cannot_be_is_the_filters_mistake(
    name: str, delay: object, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async def data_filter(*_args: object) -> object:
        return delay

    recorder = Recorder(hooks={name: data_filter})
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await send(client if name[0] == "d" else upstream, b"x")
        assert await is_cut(client)
        assert await is_cut(upstream)
        await streams.ended()
    error = recorder.the("logging").args["e"]
    assert error.etype == ErrorType.InternalError
    assert f"{name} returned {delay!r}" in str(error)


@pytest.mark.parametrize("name", ["downstream_data_filter", "upstream_data_filter"])
async def test_s_01_a_filter_that_fails_cuts_its_own_stream_alone(
    name: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        others = await streams.joined()
        await send(others[0], b"before")
        assert await receive(others[1], 6) == b"before"
        recorder.hooks[name] = fails(LookupError("oops"))
        client, upstream = await streams.joined()
        await send(client if name[0] == "d" else upstream, b"x")
        assert await is_cut(client)
        assert await is_cut(upstream)
        recorder.hooks.clear()
        await send(others[0], b"still here")
        assert await receive(others[1], 10) == b"still here"
        assert streams.running.statistics().errors == (("Internal InternalError", 1),)
    first = recorder.of("logging")[0]
    error = first.args["e"]
    assert isinstance(error.cause, LookupError)
    assert error.esource is ErrorSource.INTERNAL
    ends = [call.args["end"] for call in recorder.of(name) if call.ctx is first.ctx]
    assert True not in ends
    traced = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in traced] == [f"{name} raised LookupError: oops"]


async def test_s_02_a_group_with_a_cancelled_in_it_is_one_error(autojump_clock: MockClock) -> None:
    async def data_filter(*_args: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.lowlevel.checkpoint()
            raise KeyError("one of two")

    recorder = Recorder(hooks={"downstream_data_filter": data_filter})
    async with open_streams(recorder) as streams:
        client, _ = await streams.joined()
        await send(client, b"x")
        assert await is_cut(client)
        await streams.ended()
    assert isinstance(recorder.the("logging").args["e"].cause, KeyError)


# -- who is let in, and where to -------------------------------------------------------------------


async def test_a_connection_can_be_dropped_before_anybody_is_asked(
    autojump_clock: MockClock,
) -> None:
    async def accept_filter(_session: StreamSession, _ctx: Ctx) -> bool:
        return False

    recorder = Recorder(hooks={"accept_filter": accept_filter})
    async with open_streams(recorder) as streams:
        assert await receive_all(streams.connect()) == b""
        await streams.ended()
        assert streams.opener.asked == []
        assert streams.running.statistics().errors == ()
    assert recorder.shown() == ["new_ctx()", "accept_filter()", "logging(None)"]


@pytest.mark.parametrize("name", ["accept_filter", "upstream_peer", "connected_to_upstream"])
async def test_an_early_failure_cuts_the_client(name: str, autojump_clock: MockClock) -> None:
    recorder = Recorder(hooks={name: fails(ProxyError.status(403))})
    async with open_streams(recorder) as streams:
        assert await is_cut(streams.connect())
        await streams.ended()
    calls = [call.name for call in recorder.calls]
    assert calls[-3:] == [name, "error_while_proxy", "logging"]
    assert recorder.the("logging").args["e"].etype == ErrorType.HTTPStatus(403)


async def test_without_a_context_no_other_callback_runs(autojump_clock: MockClock) -> None:
    recorder = Recorder(hooks={"new_ctx": raises(ValueError("no"))})
    async with open_streams(recorder) as streams:
        assert await is_cut(streams.connect())
        await streams.ended()
        assert streams.running.statistics().errors == (("Internal InternalError", 1),)
    assert recorder.shown() == ["new_ctx()"]


async def test_something_that_is_no_peer_is_told(autojump_clock: MockClock) -> None:
    async def upstream_peer(*_args: object) -> object:
        return "upstream.test:7000"

    recorder = Recorder(hooks={"upstream_peer": upstream_peer})
    async with open_streams(recorder) as streams:
        assert await is_cut(streams.connect())
        await streams.ended()
    assert "upstream_peer returned 'upstream.test:7000': a StreamPeer is right" in str(
        recorder.the("logging").args["e"]
    )


async def test_a_failure_to_connect_may_be_tried_elsewhere(autojump_clock: MockClock) -> None:
    recorder = Recorder((UPSTREAM, UPSTREAM_2), hooks={"fail_to_connect": again})
    outcomes = {UPSTREAM.name: ErrorType.ConnectRefused}
    async with open_streams(recorder, outcomes) as streams:
        client = streams.connect()
        await send(client, b"not lost")
        upstream = await streams.upstream()
        assert await receive(upstream, 8) == b"not lost"
        assert streams.running.statistics().retries == 1
        assert [peer.name for peer, _ in streams.opener.asked] == [UPSTREAM.name, UPSTREAM_2.name]
    assert [call.name for call in recorder.calls][:6] == [
        "new_ctx",
        "accept_filter",
        "upstream_peer",
        "fail_to_connect",
        "upstream_peer",
        "connected_to_upstream",
    ]


async def test_attempts_are_counted(autojump_clock: MockClock) -> None:
    recorder = Recorder(hooks={"fail_to_connect": again})
    outcomes = {UPSTREAM.name: ErrorType.ConnectRefused}
    async with open_streams(recorder, outcomes, conf=ServerConf(max_attempts=3)) as streams:
        assert await is_cut(streams.connect())
        await streams.ended()
        statistics = streams.running.statistics()
        assert statistics.retries == 2
        assert statistics.errors == (("Upstream ConnectRefused", 1),)
    assert len(recorder.of("fail_to_connect")) == 3
    assert len(recorder.of("error_while_proxy")) == 1


async def test_a_failure_to_connect_without_a_mark_is_final(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_streams(recorder, {UPSTREAM.name: ErrorType.ConnectTimedout}) as streams:
        assert await is_cut(streams.connect())
        await streams.ended()
    assert [call.name for call in recorder.calls][3:] == [
        "fail_to_connect",
        "error_while_proxy",
        "logging",
    ]


async def test_the_peers_alpn_is_what_the_connection_offers(autojump_clock: MockClock) -> None:
    peer = StreamPeer("upstream.test", 7000, scheme="tls", alpn=("imap",))
    async with open_streams(Recorder((peer,))) as streams:
        await streams.joined()
        ((way, alpn),) = streams.opener.asked
        assert (way.scheme, way.server_name, alpn) == ("https", "upstream.test", ("imap",))


@pytest.mark.parametrize("name", ["fail_to_connect", "error_while_proxy"])
async def test_a_callback_that_may_not_fail_changes_nothing_when_it_does(
    name: str, autojump_clock: MockClock
) -> None:
    recorder = Recorder(hooks={name: raises(ValueError("mistake"))})
    async with open_streams(recorder, {UPSTREAM.name: ErrorType.ConnectRefused}) as streams:
        assert await is_cut(streams.connect())
        await streams.ended()
    assert recorder.the("logging").args["e"].etype == ErrorType.ConnectRefused


async def test_error_while_proxy_may_return_another_error(autojump_clock: MockClock) -> None:
    other = ProxyError.new_up(ErrorType.Custom("Replaced"))
    recorder = Recorder(hooks={"error_while_proxy": lambda *_: other})
    async with open_streams(recorder, {UPSTREAM.name: ErrorType.ConnectRefused}) as streams:
        assert await is_cut(streams.connect())
        await streams.ended()
        assert streams.running.statistics().errors == (("Upstream Replaced", 1),)
    assert recorder.the("logging").args["e"] is other


# -- sides that break ------------------------------------------------------------------------------


async def test_a_client_that_breaks_off_cuts_the_upstream(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await send(client, b"x")
        assert await receive(upstream, 1) == b"x"
        client.reset()
        assert await is_cut(upstream)
        await streams.ended()
    error = recorder.the("logging").args["e"]
    assert (error.etype, error.esource) == (ErrorType.ReadError, ErrorSource.DOWNSTREAM)
    assert len(recorder.of("error_while_proxy")) == 1


async def test_an_upstream_that_breaks_off_cuts_the_client(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await send(upstream, b"half of an ans")
        assert await receive(client, 14) == b"half of an ans"
        upstream.reset()
        assert await is_cut(client)
        await streams.ended()
    error = recorder.the("logging").args["e"]
    assert (error.etype, error.esource) == (ErrorType.ReadError, ErrorSource.UPSTREAM)


@pytest.mark.parametrize("where", ["accept_filter", "upstream_peer", "connected_to_upstream"])
async def test_a_client_that_breaks_off_early_cancels_what_is_done_for_it(
    where: str, autojump_clock: MockClock
) -> None:
    started = trio.Event()

    async def waits(*_args: object) -> Any:
        started.set()
        await trio.sleep_forever()

    recorder = Recorder(hooks={where: waits})
    async with open_streams(recorder) as streams:
        client = streams.connect()
        await started.wait()
        client.reset()
        await streams.ended()
        if streams.opener.ends:
            assert await is_cut(streams.opener.ends[0])
    error = recorder.the("logging").args["e"]
    assert (error.etype, error.esource) == (ErrorType.ConnectionClosed, ErrorSource.DOWNSTREAM)


async def test_a_client_that_breaks_off_while_it_is_connected_ends_that(
    autojump_clock: MockClock,
) -> None:
    async with open_streams(Least(), delay=1000.0) as streams:
        client = streams.connect()
        await wait_all_tasks_blocked()
        started = trio.current_time()
        client.reset()
        await streams.ended()
        assert trio.current_time() == started
        assert streams.running.statistics().errors == (("Downstream ConnectionClosed", 1),)


async def test_what_a_client_does_is_no_error_in_the_log(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, "trioproxy")
    async with open_streams(Least()) as streams:
        client, upstream = await streams.joined()
        client.reset()
        assert await is_cut(upstream)
        client, upstream = await streams.joined()
        upstream.reset()
        assert await is_cut(client)
        await streams.ended()
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    (info, one), (error, two) = told
    assert info == "INFO"
    assert one.startswith("Fail to proxy: Downstream ReadError")
    assert error == "ERROR"
    assert two.startswith("Fail to proxy: Upstream ReadError")
    assert two.endswith("198.51.100.1:50002 to upstream.test:7000")


# -- time ------------------------------------------------------------------------------------------


async def test_t_05_a_stream_is_idle_only_when_nothing_moves_either_way(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        for _ in range(5):
            await trio.sleep(299)
            await send(client, b"x")
            await receive(upstream, 1)
        for _ in range(5):
            await trio.sleep(299)
            await send(upstream, b"x")
            await receive(client, 1)
        started = trio.current_time()
        assert await is_cut(client)
        assert trio.current_time() == started + 300
        assert await is_cut(upstream)
        await streams.ended()
    error = recorder.the("logging").args["e"]
    assert error.etype == ErrorType.ReadTimedout
    assert "nothing moved in the tunnel for 300 s" in str(error)


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_t_05_a_half_closed_stream_lets_the_other_side_go_on_for_a_minute(
    first: str, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        ends = list(await streams.joined())
        if first == "upstream":
            ends.reverse()
        one, other = ends
        await one.send_eof()
        assert await receive_all(other) == b""
        started = trio.current_time()
        for _ in range(5):
            await trio.sleep(11)
            await send(other, b"x")
            assert await receive(one, 1) == b"x"
        assert await is_cut(one)
        assert trio.current_time() == started + 60
        await streams.ended()
    error = recorder.the("logging").args["e"]
    assert "one side of the tunnel had ended, the other went on for 60 s" in str(error)


async def test_a_filter_at_work_is_not_idleness(autojump_clock: MockClock) -> None:
    async def data_filter(
        _session: StreamSession, chunk: BodyChunk, _end: bool, _ctx: Ctx
    ) -> float | None:
        return 5000 if chunk.data else None

    recorder = Recorder(hooks={"downstream_data_filter": data_filter})
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await send(client, b"x")
        assert await receive(upstream, 1) == b"x"
        assert trio.current_time() >= 5000


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_side_that_reads_nothing_ends_the_stream_by_write_timeout(
    side: str, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_streams(recorder, conf=ServerConf(write_timeout=7)) as streams:
        client, upstream = await streams.joined()
        reader, writer = (client, upstream) if side == "client" else (upstream, client)
        with pytest.raises(ProxyError):
            await send(writer, b"x" * 1_000_000)
        assert trio.current_time() == 7
        assert await is_cut(reader)
        await streams.ended()
    error = recorder.the("logging").args["e"]
    source = ErrorSource.DOWNSTREAM if side == "client" else ErrorSource.UPSTREAM
    assert (error.etype, error.esource) == (ErrorType.WriteTimedout, source)


# -- backpressure and bounds -----------------------------------------------------------------------


@pytest.mark.parametrize("peeks", [False, True])
async def test_r_07_what_is_held_of_a_stalled_stream_is_bounded(
    peeks: bool, autojump_clock: MockClock
) -> None:
    async def accept_filter(session: StreamSession, _ctx: Ctx) -> bool:
        await session.peek(65536, at_least=65536)
        return True

    small = Link(Path(capacity=4096), Path(capacity=4096))
    recorder = Recorder(hooks={"accept_filter": accept_filter} if peeks else {})
    conf = ServerConf(write_timeout=math.inf, tunnel_idle_timeout=math.inf)
    async with open_streams(recorder, {UPSTREAM.name: small}, conf=conf) as streams:
        client = streams.connect(small)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flood, client)
            upstream = await streams.upstream()
            nursery.start_soon(_flood, upstream)
            await wait_all_tasks_blocked()
            # Taken from either party, less what lies in the kernel towards the other one.
            held = [
                client.outgoing.taken - upstream.incoming.sent,
                upstream.outgoing.taken - client.incoming.sent,
            ]
            nursery.cancel_scope.cancel()
    assert all(0 < each <= 65536 for each in held)


async def _flood(end: Any) -> None:
    while True:
        await send(end, b"z" * 4096)


# -- the server's limits and its stop --------------------------------------------------------------


async def test_r_04_accepting_pauses_at_max_connections(autojump_clock: MockClock) -> None:
    async with open_streams(Least(), conf=ServerConf(max_connections=2)) as streams:
        pairs = [await streams.joined() for _ in range(2)]
        third = streams.connect()
        await wait_all_tasks_blocked()
        assert len(streams.opener.ends) == 2
        pairs[0][0].reset()
        upstream = await streams.upstream(2)
        await send(third, b"my turn")
        assert await receive(upstream, 7) == b"my turn"
        assert streams.running.statistics().connection_limit_hits >= 1


async def test_sessions_beyond_max_sessions_are_cut_before_any_callback(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_streams(recorder, conf=ServerConf(max_sessions=1)) as streams:
        await streams.joined()
        assert await receive_all(streams.connect()) == b""
        assert streams.running.statistics().sessions_shed == 1
    assert len(recorder.of("new_ctx")) == 1


async def test_s_07_a_graceful_stop_lets_streams_go_on_until_grace(
    autojump_clock: MockClock,
) -> None:
    recorder = Recorder()
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.running.drain, 30)
            await wait_all_tasks_blocked()
            with pytest.raises(ConnectionRefusedError):
                streams.acceptor.connect(Link())
            await send(client, b"still")
            assert await receive(upstream, 5) == b"still"
            assert recorder.calls[0].ctx is not None
            session: StreamSession = recorder.the("upstream_peer").args["session"]
            assert session.is_process_shutting_down()
        assert trio.current_time() == started + 30
        assert await is_cut(client)
        assert await is_cut(upstream)
    error = recorder.the("logging").args["e"]
    assert (error.etype, error.esource) == (ErrorType.Custom("Cancelled"), ErrorSource.INTERNAL)
    assert recorder.of("error_while_proxy") == []


async def test_a_graceful_stop_is_over_when_the_last_stream_is(autojump_clock: MockClock) -> None:
    async with open_streams(Least()) as streams:
        client, upstream = await streams.joined()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.running.drain, 30)
            await trio.sleep(3)
            await client.send_eof()
            await upstream.send_eof()
        assert trio.current_time() == 3


async def test_logging_that_waits_is_cut_off(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def log(*_args: object) -> None:
        await trio.sleep_forever()

    recorder = Recorder(hooks={"logging": log})
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await client.send_eof()
        await upstream.send_eof()
        await streams.ended()
        assert trio.current_time() == 1
    assert "logging was cut off by logging_timeout (1 s)" in caplog.text


@attrs.define
class Unheard(Exception):
    """What a test raises."""


async def test_logging_that_fails_is_told_and_nothing_else(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    recorder = Recorder(hooks={"logging": fails(Unheard())})
    async with open_streams(recorder) as streams:
        client, upstream = await streams.joined()
        await client.send_eof()
        await upstream.send_eof()
        assert await receive_all(client) == b""
        await streams.ended()
        assert streams.running.statistics().errors == ()
    assert "logging raised Unheard" in caplog.text


async def test_it_has_a_url_of_its_own(autojump_clock: MockClock) -> None:
    async with open_streams(Least()) as streams:
        assert streams.running.urls == ("tcp://proxy.test",)


# -- the access log --------------------------------------------------------------------------------


async def refuse(_session: StreamSession, _ctx: Ctx) -> bool:
    return False


@pytest.mark.parametrize(
    ("hooks", "refused", "status"),
    [
        ({}, False, 200),
        ({"accept_filter": refuse}, False, 403),
        ({"accept_filter": fails(ProxyError.status(429))}, False, 429),
        ({"upstream_peer": fails(KeyError())}, False, 500),
        ({}, True, 502),
    ],
)
async def test_a_stream_is_recorded_as_it_ended(
    hooks: dict[str, Callable[..., Any]],
    refused: bool,
    status: int,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    caplog.set_level(logging.INFO, "trioproxy.access")
    outcomes = {UPSTREAM.name: ErrorType.ConnectRefused} if refused else {}
    conf = ServerConf(access_log="json")
    async with open_streams(Recorder(hooks=hooks), outcomes, conf=conf) as streams:
        client = streams.connect()
        if status == 200:
            upstream = await streams.upstream()
            await send_and_end(client, b"abc")
            await receive_all(upstream)
            await trio.sleep(2.5)
            await send_and_end(upstream, b"defgh")
            await receive_all(client)
        await streams.ended()
    (line,) = [each.getMessage() for each in caplog.records if each.name == "trioproxy.access"]
    record = json.loads(line)
    assert record["status"] == status
    assert record["client"] == "198.51.100.1:50001"
    assert record["protocol"] == "tcp"
    assert (record["error"] is None) == (status in (200, 403))
    if status == 200:
        assert (record["bytes_sent"], record["bytes_received"]) == (5, 3)
        assert record["duration"] == 2.5
        assert record["upstream"] == "upstream.test:7000"


async def test_a_client_that_broke_off_is_recorded_as_400(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, "trioproxy.access")
    async with open_streams(Least(), conf=ServerConf(access_log="common")) as streams:
        client, _ = await streams.joined()
        client.reset()
        await streams.ended()
    assert '"STREAM upstream.test:7000 tcp" 400 -' in caplog.text
