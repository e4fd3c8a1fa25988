"""Rows H2-21, H2-22, H2-24 to H2-28 and H2-30: what an HTTP/2 origin may do to us."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_wire import (
    CANCEL,
    ENABLE_PUSH,
    ENHANCE_YOUR_CALM,
    HTTP_1_1_REQUIRED,
    INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    AnyFields,
    H2Wire,
)
from tests._support.matrix import (
    H1,
    H2_TLS,
    H2C,
    OK,
    Exchange,
    Frames,
    Matrix,
    Outcome,
    Pairing,
    open_matrix,
)
from tests._support.recording import CutError, Message, Recorder
from trioproxy import ErrorSource

Serve = Callable[[H2Wire, int], Awaitable[None]]

LENGTH_5: AnyFields = [(":status", "200"), ("content-length", "5")]


async def accept(wire: H2Wire) -> int:
    """Read until the next request's head; return its stream."""
    return (await wire.until(HeadersFrame)).stream_id


async def accept_whole(wire: H2Wire) -> int:
    """Read until the end of the next request without trailers; return its stream."""
    head = await wire.until(HeadersFrame)
    if "END_STREAM" not in head.flags:
        await wire.until(DataFrame, head.stream_id, lambda frame: "END_STREAM" in frame.flags)
    return head.stream_id


async def answer(wire: H2Wire, stream: int) -> None:
    """Send a whole response."""
    async with wire.one_write():
        await wire.headers(stream, LENGTH_5)
        await wire.data(stream, b"hello", end=True)


async def serve_all(wire: H2Wire) -> None:
    """Answer every request."""
    while True:
        await answer(wire, await accept_whole(wire))


def frames(script: Callable[[H2Wire], Awaitable[None]]) -> Frames:
    """Return an origin that starts properly, and then plays a script."""

    async def play(wire: H2Wire) -> None:
        await wire.start()
        await script(wire)

    return Frames(play)


@contextlib.asynccontextmanager
async def upstream(
    *outcomes: Outcome,
    down: Any = H1,
    recorder: Recorder | None = None,
    **options: Any,
) -> AsyncIterator[Matrix]:
    """Run a gateway before an HTTP/2 origin whose connections go as these outcomes."""
    recorder = Recorder() if recorder is None else recorder
    async with open_matrix(
        recorder,
        {"origin.test": outcomes},
        Pairing(down, H2C),
        check_windows=False,
    ) as gateway:
        if options:
            recorder.peers = (gateway.peer(**options),)
        yield gateway


def errors(recorder: Recorder) -> list[str | None]:
    """Return the kinds of the errors that sessions ended with."""
    found = [call.args["e"] for call in recorder.of("logging")]
    return [None if error is None else str(error.etype) for error in found]


async def together(gateway: Matrix, *requests: dict[str, Any]) -> list[Message | CutError]:
    """Send requests at once, each on a connection of its own; return what came of them."""
    results: dict[int, Message | CutError] = {}

    async def one(number: int, request: dict[str, Any]) -> None:
        try:
            results[number] = await gateway.exchange(**request)
        except CutError as exc:
            results[number] = exc

    async with trio.open_nursery() as nursery:
        for number, request in enumerate(requests):
            nursery.start_soon(one, number, request)
    return [results[number] for number in range(len(requests))]


def statuses(results: list[Message | CutError]) -> list[int]:
    """Return the statuses of responses, 0 for one that was cut."""
    return [0 if isinstance(each, CutError) else each.status for each in results]


# -- H2-21 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [H1, H2C], ids=str)
@pytest.mark.parametrize("code", [NO_ERROR, CANCEL])
async def test_h2_21_a_reset_behind_a_whole_response_stops_the_upload_and_nothing_else(
    code: int, down: Any, autojump_clock: MockClock
) -> None:
    async def script(wire: H2Wire) -> None:
        stream = await accept(wire)
        async with wire.one_write():
            await answer(wire, stream)
            await wire.send(RstStreamFrame(stream, code))
        await serve_all(wire)

    recorder = Recorder()
    async with upstream(frames(script), down=down, recorder=recorder) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST", fields=[("content-length", "1000000")])
        await exchange.send_data(b"x" * 30000)
        response = await exchange.message()
        assert (response.status, response.body) == (200, b"hello")
        await gateway.sessions_ended()
        # The connection goes on.
        assert (await gateway.exchange()).status == 200
        assert gateway.asked == ["origin.test"]
    assert errors(recorder) == [None, None]


# -- H2-22 ---------------------------------------------------------------------------------------

POST: dict[str, Any] = {"method": "POST", "body": b"again"}


@pytest.mark.parametrize("code", [NO_ERROR, ENHANCE_YOUR_CALM])
async def test_h2_22_a_goaway_lets_lower_streams_end_and_others_start_again(
    code: int, autojump_clock: MockClock
) -> None:
    bodies: list[bytes] = []

    async def first(wire: H2Wire) -> None:
        await answer(wire, await accept_whole(wire))  # so that it is known how many it takes
        one, two = await accept_whole(wire), await accept_whole(wire)
        await wire.send(GoAwayFrame(0, last_stream_id=one, error_code=code))
        await wait_all_tasks_blocked()
        await answer(wire, one)
        await wire.at_end()
        assert two == one + 2

    async def second(exchange: Exchange) -> None:
        bodies.append((await exchange.message()).body)
        await exchange.respond(200, [("content-length", "5")], b"hello")

    recorder = Recorder()
    async with upstream(frames(first), second, recorder=recorder) as gateway:
        assert (await gateway.exchange()).status == 200
        assert statuses(await together(gateway, POST, POST)) == [200, 200]
        assert gateway.asked == ["origin.test"] * 2
        assert (await gateway.exchange()).status == 200
        assert gateway.asked == ["origin.test"] * 2
    # Only the disowned one was sent again, and whole.
    assert bodies == [b"again", b""]
    assert errors(recorder) == [None] * 4


async def test_h2_22_what_cannot_be_sent_again_is_an_error(autojump_clock: MockClock) -> None:
    async def first(wire: H2Wire) -> None:
        stream = await accept(wire)
        for _ in range(6):
            frame = await wire.until(DataFrame, stream)
            await wire.credit(0, len(frame.data))
            await wire.credit(stream, len(frame.data))
        await wire.send(GoAwayFrame(0, last_stream_id=0))
        await wire.at_end()

    async with upstream(frames(first), OK) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST", fields=[("content-length", "1000000")])
        async with trio.open_nursery() as nursery:

            async def upload() -> None:
                with contextlib.suppress(CutError):
                    await exchange.send_data(b"x" * 1000000, end=True)

            nursery.start_soon(upload)
            assert (await exchange.message()).status == 502
            client.close()
        assert gateway.asked == ["origin.test"]


async def test_h2_22_a_goaway_on_an_idle_connection_costs_no_request(
    autojump_clock: MockClock,
) -> None:
    async def first(wire: H2Wire) -> None:
        await answer(wire, await accept_whole(wire))
        await wait_all_tasks_blocked()
        await wire.send(GoAwayFrame(0, last_stream_id=1))
        await wire.at_end()

    recorder = Recorder()
    async with upstream(frames(first), OK, recorder=recorder) as gateway:
        assert (await gateway.exchange()).status == 200
        await trio.sleep(1)
        assert (await gateway.exchange(**POST)).status == 200
        assert gateway.asked == ["origin.test"] * 2
    assert recorder.of("error_while_proxy") == []


# -- H2-24 ---------------------------------------------------------------------------------------


async def test_h2_24_a_refused_stream_is_tried_again_whatever_its_method(
    autojump_clock: MockClock,
) -> None:
    got: list[bytes] = []

    async def first(wire: H2Wire) -> None:
        stream = await accept_whole(wire)
        await wire.send(RstStreamFrame(stream, REFUSED_STREAM))
        await serve_all(wire)

    async def second(exchange: Exchange) -> None:
        got.append((await exchange.message()).body)
        await exchange.respond(200, [("content-length", "5")], b"hello")

    recorder = Recorder()
    async with upstream(frames(first), second, recorder=recorder) as gateway:
        assert (await gateway.exchange(**POST)).status == 200
        # Not on the same connection right away.
        assert gateway.asked == ["origin.test"] * 2
    assert got == [b"again"]


async def test_h2_24_a_stream_that_is_refused_for_ever_ends_within_max_attempts(
    autojump_clock: MockClock,
) -> None:
    count = 0

    async def refuse(wire: H2Wire) -> None:
        nonlocal count
        while True:
            stream = await accept_whole(wire)
            count += 1
            await wire.send(RstStreamFrame(stream, REFUSED_STREAM))

    async with upstream(frames(refuse)) as gateway:
        assert (await gateway.exchange(**POST)).status == 502
    assert 1 < count <= 16


# -- H2-25 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["goaway", "reset"])
async def test_h2_25_http_1_1_required_is_followed_and_remembered(
    how: str, autojump_clock: MockClock
) -> None:
    async def wants_http1(wire: H2Wire) -> None:
        stream = await accept_whole(wire)
        if how == "goaway":
            await wire.send(GoAwayFrame(0, 0, HTTP_1_1_REQUIRED))
        else:
            await wire.send(RstStreamFrame(stream, HTTP_1_1_REQUIRED))
        await wire.at_end()

    recorder = Recorder()
    async with open_matrix(
        recorder,
        {"origin.test": [frames(wants_http1), OK]},
        Pairing(H1, H2_TLS),
        alpn=["h2", "http/1.1"],
        check_windows=False,
    ) as gateway:
        recorder.peers = (gateway.peer(http_version=(2, 1)),)
        assert (await gateway.exchange(**POST)).status == 200
        assert gateway.upstream.spoken == ["h2", "http/1.1"]
        # A second connection is needed while the first is busy: nobody asks for HTTP/2 again.
        assert statuses(await together(gateway, POST, POST)) == [200, 200]
        assert gateway.upstream.spoken[2:] in ([], ["http/1.1"])


@pytest.mark.parametrize("alpn", [["http/1.1"], []], ids=["http/1.1", "none"])
async def test_h2_25_an_origin_without_h2_is_spoken_to_over_http_1_1(
    alpn: list[str], autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_matrix(
        recorder, OK, Pairing(H1, H2_TLS), alpn=alpn or ["something"], check_windows=False
    ) as gateway:
        recorder.peers = (gateway.peer(http_version=(2, 1)),)
        assert (await gateway.exchange()).status == 200
        assert gateway.upstream.spoken[0] in ("http/1.1", None)


# -- H2-26 ---------------------------------------------------------------------------------------

MALFORMED: dict[str, AnyFields] = {
    "no status": [("x", "1")],
    "status of two digits": [(":status", "20")],
    "status of five digits": [(":status", "99999")],
    "no number": [(":status", "abc")],
    "101": [(":status", "101")],
    "two statuses": [(":status", "200"), (":status", "200")],
    "late status": [("x", "1"), (":status", "200")],
    "a request's pseudo-field": [(":status", "200"), (":path", "/")],
    "connection": [(":status", "200"), ("connection", "close")],
    "transfer-encoding": [(":status", "200"), ("transfer-encoding", "chunked")],
    "keep-alive": [(":status", "200"), ("keep-alive", "5")],
    "upper case": [(":status", "200"), ("X-Upper", "1")],
    "no token": [(":status", "200"), ("fo(o", "1")],
    "LF in a value": [(":status", "200"), ("x", "a\nb")],
    "NUL in a value": [(":status", "200"), ("x", "a\0b")],
    "two lengths": [(":status", "200"), ("content-length", "5"), ("content-length", "6")],
    "length that is none": [(":status", "200"), ("content-length", "five")],
}


async def malformed(gateway: Matrix, recorder: Recorder, sibling: trio.Event) -> None:
    """Check that the first of two requests fails, and the other one does not suffer."""
    results: list[int] = []
    async with trio.open_nursery() as nursery:

        async def calm() -> None:
            response = await gateway.exchange(target="/sibling")
            results.append(response.status)

        nursery.start_soon(calm)
        await wait_all_tasks_blocked()
        client = await gateway.connect()
        response = await client.exchange(target="/bad")
        assert response.status == 502
        await wait_all_tasks_blocked()
        assert results == []
        sibling.set()
    assert results == [200]
    error = next(call.args["e"] for call in recorder.of("logging") if call.args["e"] is not None)
    assert error.esource is ErrorSource.UPSTREAM
    assert gateway.asked == ["origin.test"]


@pytest.mark.parametrize("end", [False, True], ids=["open", "ended"])
@pytest.mark.parametrize("case", [*MALFORMED, "1xx that ends", "content before a head"])
async def test_h2_26_a_malformed_response_is_502_and_its_siblings_live(
    case: str, end: bool, autojump_clock: MockClock
) -> None:
    end = end or case == "1xx that ends"
    sibling = trio.Event()

    async def script(wire: H2Wire) -> None:
        await answer(wire, await accept_whole(wire))
        other, bad = await accept_whole(wire), await accept_whole(wire)
        if case == "1xx that ends":
            await wire.headers(bad, [(":status", "103")], end=True)
        elif case == "content before a head":
            await wire.data(bad, b"hello", end=end)
        else:
            await wire.headers(bad, MALFORMED[case], end=end)
        if not end or case == "content before a head":  # else both sides have ended it
            frame = await wire.until(RstStreamFrame)
            assert (frame.stream_id, frame.error_code) == (bad, PROTOCOL_ERROR)
        await sibling.wait()
        await answer(wire, other)
        await wire.at_end()

    recorder = Recorder()
    async with upstream(frames(script), recorder=recorder) as gateway:
        assert (await gateway.exchange()).status == 200
        await malformed(gateway, recorder, sibling)


async def test_h2_26_u1_06_more_informational_heads_than_allowed_are_502(
    autojump_clock: MockClock,
) -> None:
    async def script(wire: H2Wire) -> None:
        stream = await accept_whole(wire)
        for _ in range(40):
            await wire.headers(stream, [(":status", "103"), ("link", "</a>")])
        assert (await wire.until(RstStreamFrame, stream)).error_code == CANCEL
        await serve_all(wire)

    async with upstream(frames(script), down=H2C) as gateway:
        started = trio.current_time()
        client = await gateway.connect()
        exchange = await client.request()
        assert (await exchange.message()).status == 502
        assert len(await exchange.informational(32)) == 32
        assert trio.current_time() == started
        assert (await gateway.exchange()).status == 200
        assert gateway.asked == ["origin.test"]


# -- H2-27 ---------------------------------------------------------------------------------------


async def test_h2_27_a_push_is_a_protocol_error(autojump_clock: MockClock) -> None:
    codes: list[int] = []

    async def script(wire: H2Wire) -> None:
        stream = await accept_whole(wire)
        assert wire.settings[ENABLE_PUSH] == 0
        block = wire.encoder.encode([(b":method", b"GET"), (b":path", b"/pushed")])
        await wire.send(PushPromiseFrame(stream, 2, block, flags=["END_HEADERS"]))
        codes.append((await wire.goaway()).error_code)

    async with upstream(frames(script)) as gateway:
        assert (await gateway.exchange()).status == 502
    assert codes == [PROTOCOL_ERROR]


# -- H2-28, H2-30 --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "goaway", "garbage", "silent"])
async def test_h2_28_h2_30_each_session_of_a_dying_connection_gets_its_own_error(
    how: str, autojump_clock: MockClock
) -> None:
    async def first(wire: H2Wire) -> None:
        await answer(wire, await accept_whole(wire))
        for _ in range(6):
            await accept_whole(wire)
        if how == "goaway":
            await wire.send(GoAwayFrame(0, 2**31 - 1, INTERNAL_ERROR))
        elif how == "garbage":
            await wire.send_raw(b"\xff" * 100)
            await wire.at_end()
        elif how == "silent":
            wire.answers = False
            await wire.until(PingFrame)
            await wire.at_end()

    recorder = Recorder()
    options = {"h2_ping_interval": 10} if how == "silent" else {}
    async with upstream(frames(first), OK, recorder=recorder, **options) as gateway:
        assert (await gateway.exchange()).status == 200
        started = trio.current_time()
        results = await together(gateway, *[{}] * 5, POST)
        if how == "silent":
            assert 10 < trio.current_time() - started < 16
        # What may be repeated is, once each; the POST is not.
        assert statuses(results) == [200] * 5 + [502]
        assert set(gateway.asked) == {"origin.test"}
        assert len(gateway.asked) <= 7
    failed = [call.args["e"] for call in recorder.of("error_while_proxy")]
    assert len(failed) == 6
    assert len({id(error) for error in failed}) == 6
    assert {error.esource for error in failed} == {ErrorSource.UPSTREAM}


async def test_h2_30_a_ping_that_is_answered_keeps_the_connection(
    autojump_clock: MockClock,
) -> None:
    pings = 0

    async def script(wire: H2Wire) -> None:
        nonlocal pings
        stream = await accept_whole(wire)
        for _ in range(3):
            await wire.until(PingFrame)
            pings += 1
        await answer(wire, stream)
        await serve_all(wire)

    async with upstream(frames(script), h2_ping_interval=7) as gateway:
        assert (await gateway.exchange()).status == 200
        assert (await gateway.exchange()).status == 200
        assert gateway.asked == ["origin.test"]
    assert pings == 3


async def test_f_08_a_silent_stream_is_cancelled_and_no_sibling_suffers(
    autojump_clock: MockClock,
) -> None:
    async def script(wire: H2Wire) -> None:
        await answer(wire, await accept_whole(wire))
        silent, other = await accept_whole(wire), await accept_whole(wire)
        frame = await wire.until(RstStreamFrame)
        assert (frame.stream_id, frame.error_code) == (silent, CANCEL)
        await answer(wire, other)
        await wire.at_end()

    recorder = Recorder()
    async with upstream(frames(script), OK, recorder=recorder) as gateway:
        assert (await gateway.exchange()).status == 200
        results: list[int] = []
        async with trio.open_nursery() as nursery:

            async def late() -> None:
                await trio.sleep(30)
                results.append((await gateway.exchange()).status)

            nursery.start_soon(late)
            assert (await gateway.exchange()).status == 502
        # What was under way on the same connection went on; new requests have another one.
        assert results == [200]
        assert (await gateway.exchange()).status == 200
    assert errors(recorder) == [None, "ReadTimedout", None, None]


@pytest.mark.parametrize("down", [H1, H2C], ids=str)
async def test_h1_33_a_client_that_leaves_makes_a_cancel_upstream(
    down: Any, autojump_clock: MockClock
) -> None:
    codes: list[int] = []

    async def script(wire: H2Wire) -> None:
        stream = await accept(wire)
        codes.append((await wire.until(RstStreamFrame, stream)).error_code)
        await serve_all(wire)

    async with upstream(frames(script), down=down) as gateway:
        for method in ("GET", "POST"):
            codes.clear()
            client = await gateway.connect()
            exchange = await client.open(method, end=method == "GET")
            await wait_all_tasks_blocked()
            await exchange.reset()
            await gateway.sessions_ended()
            await wait_all_tasks_blocked()
            assert codes == [CANCEL]
            break
        assert (await gateway.exchange()).status == 200
        assert gateway.asked == ["origin.test"]


async def test_a_stream_limit_of_the_origin_is_kept_to(autojump_clock: MockClock) -> None:
    most = 0

    async def limited(wire: H2Wire) -> None:
        nonlocal most
        await wire.start({MAX_CONCURRENT_STREAMS: 2})
        while True:
            live = [await accept_whole(wire)]
            with trio.move_on_after(1):
                live.append(await accept_whole(wire))
            with trio.move_on_after(1):
                live.append(await accept_whole(wire))
            most = max(most, len(live))
            for stream in live:
                await answer(wire, stream)

    async with upstream(Frames(limited)) as gateway:
        results = await together(gateway, *[{}] * 12)
        assert statuses(results) == [200] * 12
    assert most == 2


async def test_settings_that_lower_the_window_under_way_are_followed(
    autojump_clock: MockClock,
) -> None:
    async def script(wire: H2Wire) -> None:
        stream = await accept(wire)
        await wire.send(SettingsFrame(0, settings={0x4: 1000}))
        taken = 0
        while taken < 200_000:
            frame = await wire.until(
                Frame,
                stream,
                lambda frame: isinstance(frame, DataFrame),
            )
            assert isinstance(frame, DataFrame)
            taken += len(frame.data)
            if frame.data:
                await wire.credit(0, len(frame.data))
                await wire.credit(stream, len(frame.data))
        await answer(wire, stream)
        await serve_all(wire)

    async with upstream(frames(script)) as gateway:
        response = await gateway.exchange(
            "POST", fields=[("content-length", "200000")], body=b"x" * 200_000
        )
        assert response.status == 200
