"""The way of the bodies: what the filters are called with, and what becomes of what they make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    Ctx,
    CutError,
    Message,
    Origin,
    Recorder,
    Wire,
    answers,
    chunked,
    cuts,
    in_pieces,
    keeps,
    open_gateway,
    post,
)
from trioproxy import (
    BodyChunk,
    ErrorSource,
    ErrorType,
    HttpPeer,
    ProxyError,
    ProxyHttp,
    RequestHeader,
    ResponseHeader,
    Session,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
FILTERS = ["upstream_response_body_filter", "response_body_filter"]

Pieces = list[tuple[bytes | None, bool]]


def virtual(function: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Run an async function on a clock of its own, as a property test needs it."""
    trio.run(function, *args, clock=MockClock(autojump_threshold=0))


async def send_pieces(wire: Wire, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        await wire.send(piece)
        await wait_all_tasks_blocked()


def split(data: bytes, at: Sequence[int]) -> list[bytes]:
    """Cut bytes at some places."""
    places = [0, *sorted(set(at)), len(data)]
    return [data[a:b] for a, b in pairwise(places) if data[a:b]]


def check_pieces(pieces: Pieces, body: bytes) -> None:
    """Check what a body filter was given for a body that ended properly."""
    assert b"".join(data or b"" for data, _ in pieces) == body
    assert [end for _, end in pieces] == [False] * (len(pieces) - 1) + [True]
    # Only the end comes without data.
    assert all(data for data, end in pieces if not end)


# -- what the request's filter is called with ----------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([GET], [(None, True)]),
        ([b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"], [(None, True)]),
        ([post(b"abc")], [(b"abc", True)]),
        (
            [post(b"abcdef")[:-6], b"abc", b"def"],
            [(b"abc", False), (b"def", True)],
        ),
        (
            [post(framing="chunked")[:-5], b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n"],
            [(b"abc", False), (b"de", False), (None, True)],
        ),
        ([post(framing="chunked")], [(None, True)]),
        (
            [post(framing="chunked")[:-5], b"1\r\na\r\n", b"0\r\n", b"X-Sum: 1\r\n\r\n"],
            [(b"a", False), (None, True)],
        ),
    ],
    ids=[
        "no body",
        "length zero",
        "length, one read",
        "length, two reads",
        "chunked",
        "chunked, empty",
        "chunked, trailers",
    ],
)
async def test_the_request_body_filter_is_called_as_its_framing_says(
    sent: list[bytes], expected: Pieces, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    got: list[Message] = []
    async with open_gateway(recorder, keeps(got)) as gateway:
        client = gateway.connect()
        await send_pieces(client, sent)
        assert (await client.message()).status == 200

    assert recorder.pieces("request_body_filter") == expected
    assert got[0].body == b"".join(data or b"" for data, _ in expected)


@given(
    body=st.binary(max_size=40),
    cuts_at=st.lists(st.integers(0, 200), max_size=6),
    pieces_at=st.lists(st.integers(1, 39), max_size=4),
    framing=st.sampled_from(["length", "chunked"]),
)
def test_a_request_body_reaches_filter_and_origin_whole_however_it_is_cut(
    body: bytes, cuts_at: list[int], pieces_at: list[int], framing: Any
) -> None:
    async def main() -> None:
        recorder = Recorder()
        got: list[Message] = []
        async with open_gateway(recorder, keeps(got)) as gateway:
            client = gateway.connect()
            request = post(*split(body, pieces_at), framing=framing)
            await send_pieces(client, split(request, cuts_at))
            assert (await client.message()).body == b"hello"

        assert got[0].body == body
        check_pieces(recorder.pieces("request_body_filter"), body)

    virtual(main)


# -- what the response's filters are called with -------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (GET.replace(b"GET", b"HEAD"), OK[:-5]),
        (GET.replace(b"GET", b"HEAD"), CHUNKED),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n"),
        (GET, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
    ids=["HEAD", "HEAD, chunked", "204", "304", "304 with a length", "length zero"],
)
async def test_a_response_without_a_body_calls_no_body_filter(
    request_: bytes, response: bytes, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, answers(response)) as gateway:
        client = gateway.connect()
        for _ in range(2):  # and the connection stays in step
            await client.send(request_)
            await client.message(bodiless=request_.startswith(b"HEAD"))

    for name in FILTERS:
        assert recorder.pieces(name) == []
    assert [call.args["e"] for call in recorder.of("logging")] == [None, None]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (in_pieces(OK), [(b"hello", True)]),
        (in_pieces(OK[:-2], OK[-2:]), [(b"hel", False), (b"lo", True)]),
        (
            in_pieces(CHUNKED, b"3\r\nhel\r\n", b"2\r\nlo\r\n", b"0\r\n\r\n"),
            [(b"hel", False), (b"lo", False), (None, True)],
        ),
        (in_pieces(CHUNKED + b"0\r\n\r\n"), [(None, True)]),
        (
            in_pieces(CHUNKED, b"5\r\nhello\r\n", b"0\r\n", b"X-Sum: 1\r\n\r\n"),
            [(b"hello", False), (None, True)],
        ),
        (cuts(UNTIL_CLOSE, b"hel", b"lo"), [(b"hel", False), (b"lo", False), (None, True)]),
        (cuts(UNTIL_CLOSE), [(None, True)]),
    ],
    ids=[
        "length, one read",
        "length, two reads",
        "chunked",
        "chunked, empty",
        "chunked, trailers",
        "until close",
        "until close, empty",
    ],
)
async def test_both_response_body_filters_are_called_as_the_framing_says(
    origin: Origin, expected: Pieces, autojump_clock: MockClock
) -> None:
    recorder = Recorder()
    async with open_gateway(recorder, origin) as gateway:
        response = await gateway.exchange(GET)

    for name in FILTERS:
        assert recorder.pieces(name) == expected
    assert response.body == b"".join(data or b"" for data, _ in expected)


@given(
    body=st.binary(max_size=40),
    cuts_at=st.lists(st.integers(0, 200), max_size=6),
    pieces_at=st.lists(st.integers(1, 39), max_size=4),
    framing=st.sampled_from(["length", "chunked", "trailers", "close"]),
)
def test_a_response_body_reaches_filters_and_client_whole_however_it_is_cut(
    body: bytes, cuts_at: list[int], pieces_at: list[int], framing: str
) -> None:
    if framing == "length":
        response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    elif framing == "close":
        response = UNTIL_CLOSE + body
    else:
        trailers = b"X-Sum: 1\r\n" if framing == "trailers" else b""
        response = CHUNKED + chunked(*split(body, pieces_at), trailers=trailers)

    async def main() -> None:
        recorder = Recorder()
        pieces = split(response, cuts_at)
        origin = cuts(*pieces) if framing == "close" else in_pieces(*pieces)
        async with open_gateway(recorder, origin) as gateway:
            got = await gateway.exchange(GET)

        assert got.body == body
        assert bool(got.trailers) == (framing == "trailers")
        for name in FILTERS:
            if framing == "length" and not body:
                assert recorder.pieces(name) == []
            else:
                check_pieces(recorder.pieces(name), body)

    virtual(main)


# -- bodies that are cut -------------------------------------------------------------------------


@given(data=st.data(), framing=st.sampled_from(["length", "chunked"]))
@settings(max_examples=settings().max_examples // 2, deadline=None)
def test_a_cut_response_never_has_an_end_of_stream_nor_a_proper_end(
    data: st.DataObject, framing: str
) -> None:
    head = CHUNKED if framing == "chunked" else b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n"
    body = chunked(b"hello", b" world") if framing == "chunked" else b"hello world"
    kept = body[: data.draw(st.integers(0, len(body) - 1), label="kept")]
    at = data.draw(st.lists(st.integers(0, len(body)), max_size=3), label="cuts")

    async def main() -> None:
        recorder = Recorder()
        async with open_gateway(recorder, cuts(head, *split(kept, at))) as gateway:
            with pytest.raises(CutError):
                await gateway.exchange(GET)

        for name in FILTERS:
            assert not any(end for _, end in recorder.pieces(name))
        assert recorder.the("logging").args["e"].esource is ErrorSource.UPSTREAM

    virtual(main)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_upload_that_the_client_cuts_has_no_end_of_stream(
    framing: Any, autojump_clock: MockClock
) -> None:
    cut: list[Message | None] = []

    async def origin(wire: Wire) -> None:
        with pytest.raises(CutError) as caught:
            await wire.message()
        cut.append(caught.value.message)

    recorder = Recorder()
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        request = post(b"abcdef", framing=framing)
        await send_pieces(client, [request[: request.index(b"abcdef") + 3]])
        client.close()
        await gateway.ended()

    (message,) = cut
    assert message is not None
    assert message.body == b"abc"
    assert not any(end for _, end in recorder.pieces("request_body_filter"))
    error = recorder.the("logging").args["e"]
    assert (error.etype, error.esource) == (ErrorType.ConnectionClosed, ErrorSource.DOWNSTREAM)


async def test_an_upload_that_turns_malformed_is_answered_400_and_cut_upstream(
    autojump_clock: MockClock,
) -> None:
    cut: list[Message | None] = []

    async def origin(wire: Wire) -> None:
        with pytest.raises(CutError) as caught:
            await wire.message()
        cut.append(caught.value.message)

    recorder = Recorder()
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await send_pieces(client, [post(framing="chunked")[:-5] + b"2\r\nab\r\n", b"xyz\r\n"])
        assert (await client.message()).status == 400

    (message,) = cut
    assert message is not None
    assert message.body == b"ab"
    assert recorder.pieces("request_body_filter") == [(b"ab", False)]


async def test_an_upload_that_stalls_is_answered_408(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        with pytest.raises(CutError):
            await wire.message()

    async with open_gateway(Recorder(), origin) as gateway:
        client = gateway.connect()
        started = trio.current_time()
        await client.send(post(b"x" * 100)[:-50])
        assert (await client.message()).status == 408
        assert trio.current_time() - started == pytest.approx(60, abs=0.1)


async def test_an_upload_given_up_for_an_early_response_has_no_end_of_stream(
    autojump_clock: MockClock,
) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await wire.more()

    recorder = Recorder()
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await client.send(post(b"x" * 100)[:-50])
        response = await client.message()
        assert gateway.pool.statistics().idle == 0

    assert (response.status, response.body) == (413, b"big")
    assert response.get("connection") == "close"
    assert not any(end for _, end in recorder.pieces("request_body_filter"))
    assert recorder.pieces("response_body_filter")[-1][1] is True
    assert recorder.the("logging").args["e"] is None


async def test_an_origin_that_stops_reading_may_still_answer(autojump_clock: MockClock) -> None:
    async def origin(wire: Wire) -> None:
        await wire.head()
        wire.stream.receive_stream.close()  # writes to it fail from now on
        await trio.sleep(5)
        await wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")

    recorder = Recorder()
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        await send_pieces(client, [post(b"x" * 100)[:-50], b"x" * 25])
        assert (await client.message()).status == 413


# -- rewriting -----------------------------------------------------------------------------------


@attrs.define
class Rewriting(ProxyHttp[None]):
    """Does something to each piece of one body, and frames anew where it is told to."""

    direction: str
    change: Callable[[bytes | None, bool], bytes | None]
    reframe: bool = True

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return ORIGIN

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: None
    ) -> None:
        if self.reframe and self.direction == "request":
            upstream_request.headers.remove("Content-Length")

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        if self.direction == "request":
            body.data = self.change(body.data, end_of_stream)

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        if self.reframe and self.direction != "request":
            upstream_response.headers.remove("Content-Length")

    def upstream_response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        if self.direction == "upstream":
            body.data = self.change(body.data, end_of_stream)

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        if self.direction == "response":
            body.data = self.change(body.data, end_of_stream)


directions = pytest.mark.parametrize("direction", ["request", "upstream", "response"])


async def through(proxy: Rewriting, *pieces: bytes, length: bool = False) -> bytes:
    """Send pieces through a proxy in its direction, and return what comes out."""
    body = b"".join(pieces)
    got: list[Message] = []
    if proxy.direction == "request":
        origin = keeps(got)
        request = (
            [post(body)[: -len(body)], *pieces]
            if length
            else [
                post(framing="chunked")[:-5],
                *(chunked(each)[:-5] for each in pieces),
                b"0\r\n\r\n",
            ]
        )
    else:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        origin = (
            in_pieces(head, *pieces)
            if length
            else in_pieces(CHUNKED, *(chunked(each)[:-5] for each in pieces), b"0\r\n\r\n")
        )
        request = [GET]
    async with open_gateway(proxy, origin) as gateway:
        client = gateway.connect()
        await send_pieces(client, request)
        response = await client.message()
    return got[0].body if proxy.direction == "request" else response.body


@directions
@pytest.mark.parametrize("length", [True, False])
async def test_a_filter_rewrites_lengthens_and_shortens_a_body_that_is_framed_anew(
    direction: str, length: bool, autojump_clock: MockClock
) -> None:
    def change(data: bytes | None, end: bool) -> bytes | None:
        return (b"<" + data * 2 + b">" if data else b"") + (b"." if end else b"")

    proxy = Rewriting(direction, change)
    assert await through(proxy, b"ab", b"c", length=length) == b"<abab><cc>."
    assert (
        await through(
            Rewriting(direction, lambda data, _end: data[:1] if data else data),
            b"ab",
            b"cd",
            length=length,
        )
        == b"ac"
    )


@directions
@pytest.mark.parametrize("nothing", [None, b""])
async def test_none_and_empty_both_swallow_a_piece_and_never_end_the_body(
    direction: str, nothing: bytes | None, autojump_clock: MockClock
) -> None:
    def first(data: bytes | None, _end: bool) -> bytes | None:
        return nothing if data == b"ab" else data

    def last(data: bytes | None, end: bool) -> bytes | None:
        return nothing if end else data

    assert await through(Rewriting(direction, first), b"ab", b"cd", length=True) == b"cd"
    assert await through(Rewriting(direction, first), b"ab", b"cd") == b"cd"
    assert await through(Rewriting(direction, last), b"ab", b"cd", length=True) == b"ab"
    assert await through(Rewriting(direction, lambda _data, _end: nothing), b"ab", b"c") == b""
    assert (
        await through(Rewriting(direction, lambda _data, _end: nothing), b"ab", length=True) == b""
    )


@directions
async def test_a_filter_that_keeps_the_length_need_not_frame_anew(
    direction: str, autojump_clock: MockClock
) -> None:
    proxy = Rewriting(direction, lambda data, _end: data and data.upper(), reframe=False)
    assert await through(proxy, b"ab", b"cd", length=True) == b"ABCD"


@directions
async def test_a_filter_may_collect_the_body_and_put_it_out_at_the_end(
    direction: str, autojump_clock: MockClock
) -> None:
    collected: list[bytes] = []

    def change(data: bytes | None, end: bool) -> bytes | None:
        collected.append(data or b"")
        return b"".join(collected) if end else None

    for length in (True, False):
        collected.clear()
        assert (
            await through(Rewriting(direction, change, reframe=False), b"ab", b"cd", length=length)
            == b"abcd"
        )


async def test_the_request_filter_may_give_a_body_to_a_request_that_has_none(
    autojump_clock: MockClock,
) -> None:
    got: list[Message] = []
    proxy = Rewriting("request", lambda _data, _end: b"made up")
    async with open_gateway(proxy, keeps(got)) as gateway:
        await gateway.exchange(GET)

    assert got[0].body == b"made up"


# -- more or fewer bytes than were declared -----------------------------------------------------

NAMES = {
    "request": ("request_body_filter", "upstream_request_filter"),
    "upstream": ("upstream_response_body_filter", "response_filter"),
    "response": ("response_body_filter", "response_filter"),
}


@attrs.define
class OnlyOne(ProxyHttp[None]):
    """Lets the first piece of one body pass, and then makes more or fewer bytes of it."""

    change: Callable[[bytes | None], bytes | None]
    errors: list[ProxyError | None] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return ORIGIN

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        self.errors.append(e)


class OnlyRequest(OnlyOne):
    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        body.data = self.change(body.data)


class OnlyUpstream(OnlyOne):
    def upstream_response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        body.data = self.change(body.data)


class OnlyResponse(OnlyOne):
    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        body.data = self.change(body.data)


ONLY: dict[str, type[OnlyOne]] = {
    "request": OnlyRequest,
    "upstream": OnlyUpstream,
    "response": OnlyResponse,
}
mismatches = pytest.mark.parametrize(
    "change",
    [lambda data: data and data + b"x", lambda data: data and data[1:], lambda _data: None],
    ids=["more", "fewer", "none"],
)


def check_mismatch(proxy: OnlyOne, direction: str) -> None:
    (error,) = proxy.errors
    assert error is not None
    assert error.root_etype() == ErrorType.InternalError
    assert error.esource is ErrorSource.INTERNAL
    filter_, where = NAMES[direction]
    assert filter_ in str(error)
    assert f"remove Content-Length in {where}" in str(error)


@pytest.mark.parametrize("direction", ["upstream", "response"])
@mismatches
async def test_a_response_of_another_length_than_declared_is_an_error_that_names_the_filter(
    direction: str, change: Callable[[bytes | None], bytes | None], autojump_clock: MockClock
) -> None:
    proxy = ONLY[direction](change)
    async with open_gateway(proxy, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET)
        # All of it arrived at once, and so nothing had to be sent before the mistake was seen.
        assert (await client.message()).status == 500
        assert await client.at_end()

    check_mismatch(proxy, direction)


@pytest.mark.parametrize("direction", ["upstream", "response"])
@mismatches
async def test_it_is_cut_where_its_head_is_out(
    direction: str, change: Callable[[bytes | None], bytes | None], autojump_clock: MockClock
) -> None:
    proxy = ONLY[direction](change)
    async with open_gateway(proxy, in_pieces(OK[:-5], b"he", b"llo")) as gateway:
        client = gateway.connect()
        await client.send(GET)
        with pytest.raises(CutError) as cut:
            await client.message()

    message = cut.value.message
    assert message is not None
    assert len(message.body) < 5
    check_mismatch(proxy, direction)


@mismatches
async def test_a_request_of_another_length_than_declared_never_reaches_the_origin_as_whole(
    change: Callable[[bytes | None], bytes | None], autojump_clock: MockClock
) -> None:
    whole: list[Message] = []
    proxy = OnlyRequest(change)
    async with open_gateway(proxy, keeps(whole)) as gateway:
        assert (await gateway.exchange(post(b"abc"))).status == 500

    assert whole == []
    check_mismatch(proxy, "request")


async def test_a_body_for_a_request_of_length_zero_is_such_a_mistake_too(
    autojump_clock: MockClock,
) -> None:
    whole: list[Message] = []
    proxy = OnlyRequest(lambda _data: b"made up")
    async with open_gateway(proxy, keeps(whole)) as gateway:
        response = await gateway.exchange(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
        )

    assert response.status == 500
    assert [each.body for each in whole if each.body] == []
    check_mismatch(proxy, "request")


@pytest.mark.parametrize("length", [2, 3, 4])
@pytest.mark.parametrize("trailers", [b"", b"X-Sum: 1\r\n"], ids=["bare", "trailers"])
async def test_a_length_that_upstream_request_filter_sets_has_to_be_right(
    length: int, trailers: bytes, autojump_clock: MockClock
) -> None:
    @attrs.define
    class Sized(OnlyOne):
        async def upstream_request_filter(
            self, session: Session, upstream_request: RequestHeader, ctx: None
        ) -> None:
            upstream_request.headers.set("Content-Length", str(length))

    got: list[Message] = []
    async with open_gateway(Sized(lambda data: data), keeps(got)) as gateway:
        client = gateway.connect()
        rest = chunked(b"bc", trailers=trailers)
        await send_pieces(client, [post(framing="chunked")[:-5], b"1\r\na\r\n", rest])
        response = await client.message()

    assert response.status == (200 if length == 3 else 500)
    assert [each.body for each in got] == ([b"abc"] if length == 3 else [])


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (GET.replace(b"GET", b"HEAD"), OK[:-5]),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
    ids=["HEAD", "304"],
)
async def test_answers_to_head_and_304_keep_any_length(
    request_: bytes, response: bytes, autojump_clock: MockClock
) -> None:
    proxy = OnlyResponse(lambda _data: b"never")
    async with open_gateway(proxy, answers(response)) as gateway:
        client = gateway.connect()
        for _ in range(2):
            await client.send(request_)
            head = await client.head()
            assert head.get("content-length") == "5"

    assert proxy.errors == [None, None]


async def test_a_length_that_response_filter_sets_wrong_is_an_error(
    autojump_clock: MockClock,
) -> None:
    async def response_filter(_session: Session, head: ResponseHeader, _ctx: Ctx) -> None:
        head.headers.set("Content-Length", "7")

    recorder = Recorder(hooks={"response_filter": response_filter})
    async with open_gateway(recorder, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500

    assert recorder.the("logging").args["e"].root_etype() == ErrorType.InternalError


# -- delays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILTERS)
async def test_the_seconds_that_a_filter_returns_pass_before_its_piece_goes_on(
    name: str, autojump_clock: MockClock
) -> None:
    def delay(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> float | None:
        data = body.data or b""
        return 10.0 if b"one" in data else 20.0 if b"two" in data else None

    recorder = Recorder(hooks={name: delay})
    origin = in_pieces(CHUNKED, b"3\r\none\r\n", b"3\r\ntwo\r\n", b"5\r\nthree\r\n", b"0\r\n\r\n")
    times: list[tuple[bytes, float]] = []
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        started = trio.current_time()
        await client.send(GET)
        while not client.buffer.endswith(b"0\r\n\r\n"):
            before = len(client.buffer)
            assert await client.more()
            times.append((bytes(client.buffer[before:]), round(trio.current_time() - started)))

    at = {piece: next(when for data, when in times if piece in data) for piece in (b"one", b"two")}
    assert times[0][1] == 0  # the head does not wait
    assert at == {b"one": 10, b"two": 30}
    assert times[-1][1] == 30
    assert recorder.pieces(name)[0] == (b"one", False)


async def test_the_delays_of_both_filters_add_up(autojump_clock: MockClock) -> None:
    recorder = Recorder(
        hooks={
            "upstream_response_body_filter": lambda *_: 3,
            "response_body_filter": lambda *_: 4.5,
        }
    )
    async with open_gateway(recorder, answers(OK)) as gateway:
        started = trio.current_time()
        await gateway.exchange(GET)
        assert trio.current_time() - started == pytest.approx(7.5)


async def test_a_delay_is_not_counted_as_the_origins_silence(autojump_clock: MockClock) -> None:
    recorder = Recorder(hooks={"response_body_filter": lambda *_: 500})
    origin = in_pieces(CHUNKED, b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n")
    async with open_gateway(recorder, origin) as gateway:
        assert (await gateway.exchange(GET)).body == b"onetwo"


# -- two directions, two tasks -------------------------------------------------------------------


async def test_a_slow_upload_filter_never_stalls_the_download(autojump_clock: MockClock) -> None:
    async def slow(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        await trio.sleep(50)

    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(CHUNKED)
        for _ in range(5):
            await wire.send(b"4\r\ntick\r\n")
            await trio.sleep(1)
        await wire.send(b"0\r\n\r\n")
        await wire.more()

    recorder = Recorder(hooks={"request_body_filter": slow})
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        started = trio.current_time()
        await send_pieces(client, [post(b"0123456789")[:-10], b"01234", b"56789"])
        assert (await client.message()).body == b"tick" * 5
        assert trio.current_time() - started == pytest.approx(5, abs=0.5)


async def test_a_slow_download_filter_never_stalls_the_upload(autojump_clock: MockClock) -> None:
    arrived: list[float] = []

    async def origin(wire: Wire) -> None:
        request = await wire.head()
        await wire.send(CHUNKED + b"1\r\nx\r\n")
        await wire.body(request)
        arrived.append(trio.current_time())
        await wire.send(b"0\r\n\r\n")
        await wire.more()

    recorder = Recorder(hooks={"response_body_filter": lambda *_: 50})
    async with open_gateway(recorder, origin) as gateway:
        client = gateway.connect()
        started = trio.current_time()
        await send_pieces(client, [post(b"0123456789")[:-10], b"01234", b"56789"])
        await client.message()

    assert arrived[0] - started == pytest.approx(0, abs=0.5)


# -- bounded buffers -----------------------------------------------------------------------------

BLOCK = b"x" * 16384
#: What one session may hold in all (row R-07).
BOUND = 262144


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_that_does_not_read_stops_the_origin(
    framing: str, autojump_clock: MockClock
) -> None:
    sent = 0

    async def origin(wire: Wire) -> None:
        nonlocal sent
        await wire.message()
        if framing == "chunked":
            await wire.send(CHUNKED)
        else:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * len(BLOCK)))
        for _ in range(100):
            await wire.send(chunked(BLOCK)[:-5] if framing == "chunked" else BLOCK)
            sent += len(BLOCK)
        if framing == "chunked":
            await wire.send(b"0\r\n\r\n")
        await wire.more()

    recorder = Recorder()
    async with open_gateway(recorder, origin, lockstep=True) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await wait_all_tasks_blocked()
        assert sent <= BOUND
        response = await client.message()

    assert response.body == BLOCK * 100


@pytest.mark.parametrize("with_filter", [True, False])
async def test_an_origin_that_does_not_read_stops_the_client(
    with_filter: bool, autojump_clock: MockClock
) -> None:
    sent = 0
    read_on = trio.Event()
    got: list[Message] = []

    async def origin(wire: Wire) -> None:
        request = await wire.head()
        await read_on.wait()
        await wire.body(request)
        got.append(request)
        await wire.send(OK)
        await wire.more()

    async def upload(client: Wire) -> None:
        nonlocal sent
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (100 * len(BLOCK))
        )
        for _ in range(100):
            await client.send(BLOCK)
            sent += len(BLOCK)

    proxy: ProxyHttp[Any] = Recorder() if with_filter else OnlyOne(lambda data: data)
    async with open_gateway(proxy, origin, lockstep=True) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload, client)
            await wait_all_tasks_blocked()
            assert sent <= BOUND
            read_on.set()
        assert (await client.message()).status == 200

    assert got[0].body == BLOCK * 100


async def test_a_filter_that_does_not_go_on_stops_the_client(autojump_clock: MockClock) -> None:
    sent = 0
    go_on = trio.Event()

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        await go_on.wait()
        while await session.read_request_body() is not None:
            pass
        await session.respond_error(403)
        return True

    async def upload(client: Wire) -> None:
        nonlocal sent
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (100 * len(BLOCK))
        )
        for _ in range(100):
            await client.send(BLOCK)
            sent += len(BLOCK)

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_gateway(recorder, answers(OK), lockstep=True) as gateway:
        client = gateway.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload, client)
            await wait_all_tasks_blocked()
            assert sent <= BOUND
            go_on.set()
        assert (await client.message()).status == 403


# -- answers of a filter's own -------------------------------------------------------------------


async def test_a_filter_answers_with_a_streamed_body(autojump_clock: MockClock) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        await session.write_response_header(ResponseHeader(200, [("X-Own", "1")]))
        for number in range(3):
            await trio.sleep(1)
            await session.write_response_body(b"piece %d " % number, False)
        await session.write_response_body(None, True)
        return True

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_gateway(recorder, answers(OK)) as gateway:
        client = gateway.connect()
        for _ in range(2):  # and the connection is kept
            await client.send(GET)
            assert (await client.head()).get("transfer-encoding") == "chunked"
            message = Message(b"HTTP/1.1 200 OK", [(b"transfer-encoding", b"chunked")])
            await client.body(message)
            assert message.body == b"piece 0 piece 1 piece 2 "

    # The response's filters are for what comes from an origin.
    assert not recorder.of("response_filter")
    assert not recorder.of("response_body_filter")
    assert gateway.records[0].body_bytes_sent == 24


async def test_a_client_that_does_not_read_stops_a_filter_that_answers(
    autojump_clock: MockClock,
) -> None:
    sent = 0

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        nonlocal sent
        await session.write_response_header(ResponseHeader(200))
        for _ in range(100):
            await session.write_response_body(BLOCK, False)
            sent += len(BLOCK)
        await session.write_response_body(None, True)
        return True

    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_gateway(recorder, answers(OK), lockstep=True) as gateway:
        client = gateway.connect()
        await client.send(GET)
        await wait_all_tasks_blocked()
        assert sent <= BOUND
        assert len((await client.message()).body) == 100 * len(BLOCK)


# -- reading before the proxying starts ----------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("reads", [1, 100])
async def test_what_a_filter_reads_still_reaches_the_origin(
    framing: Any, reads: int, autojump_clock: MockClock
) -> None:
    read: list[bytes | None] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        for _ in range(reads):
            read.append(await session.read_request_body())
            if read[-1] is None:
                break
        return False

    got: list[Message] = []
    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_gateway(recorder, keeps(got)) as gateway:
        client = gateway.connect()
        request = post(b"first", b"second", framing=framing)
        at = request.index(b"second") - (0 if framing == "length" else 3)
        await send_pieces(client, [request[:at], request[at:]])
        assert (await client.message()).status == 200

    assert read == ([b"first"] if reads == 1 else [b"first", b"second", None])
    assert got[0].body == b"firstsecond"
    pieces = recorder.pieces("request_body_filter")
    check_pieces(pieces, b"firstsecond")
    assert pieces[0] == ((b"first", False) if reads == 1 else (b"firstsecond", True))


@pytest.mark.parametrize(("size", "status"), [(65536, 200), (65537, 500)])
async def test_a_filter_that_read_more_than_can_be_kept_is_told_so(
    size: int, status: int, autojump_clock: MockClock
) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        while await session.read_request_body() is not None:
            pass
        return False

    got: list[Message] = []
    recorder = Recorder(hooks={"request_filter": request_filter})
    async with open_gateway(recorder, keeps(got)) as gateway:
        assert (await gateway.exchange(post(b"x" * size))).status == status

    assert [len(each.body) for each in got] == ([size] if status == 200 else [])


# -- again ---------------------------------------------------------------------------------------


async def test_a_retry_replays_the_body_as_one_piece_and_goes_on_with_the_rest(
    autojump_clock: MockClock,
) -> None:
    def again(
        _peer: HttpPeer, _session: Session, e: ProxyError, ctx: Ctx, _reused: bool
    ) -> ProxyError:
        e.set_retry(ctx.attempts == 1)
        return e

    async def first(wire: Wire) -> None:
        await wire.head()
        await wait_all_tasks_blocked(0.5)
        await trio.sleep(1)

    got: list[Message] = []
    recorder = Recorder(hooks={"error_while_proxy": again})
    async with open_gateway(recorder, {ORIGIN.name: [first, keeps(got)]}) as gateway:
        client = gateway.connect()
        await send_pieces(client, [post(framing="chunked")[:-5], b"2\r\nab\r\n", b"2\r\ncd\r\n"])
        await trio.sleep(2)
        await send_pieces(client, [b"2\r\nef\r\n", b"0\r\n\r\n"])
        assert (await client.message()).status == 200

    assert got[0].body == b"abcdef"
    assert recorder.pieces("request_body_filter") == [
        (b"ab", False),
        (b"cd", False),
        (b"abcd", False),
        (b"ef", False),
        (None, True),
    ]


async def test_each_attempt_sees_the_end_of_a_whole_body_once(autojump_clock: MockClock) -> None:
    def again(
        _peer: HttpPeer, _session: Session, e: ProxyError, ctx: Ctx, _reused: bool
    ) -> ProxyError:
        e.set_retry(ctx.attempts < 3)
        return e

    recorder = Recorder(hooks={"error_while_proxy": again})
    async with open_gateway(recorder, cuts()) as gateway:
        assert (await gateway.exchange(post(b"ab", b"cd", framing="chunked"))).status == 502

    pieces = recorder.pieces("request_body_filter")
    assert sum(end for _, end in pieces) == 3
    assert pieces[-1] == (b"abcd", True)


async def test_a_rewriting_filter_starts_from_the_raw_body_in_each_attempt(
    autojump_clock: MockClock,
) -> None:
    async def rewrite(_session: Session, body: BodyChunk, _end: bool, _ctx: Ctx) -> None:
        if body.data:
            body.data = body.data.upper()

    def again(
        _peer: HttpPeer, _session: Session, e: ProxyError, _ctx: Ctx, _reused: bool
    ) -> ProxyError:
        e.set_retry(True)
        return e

    got: list[Message] = []
    recorder = Recorder(hooks={"request_body_filter": rewrite, "error_while_proxy": again})
    async with open_gateway(recorder, {ORIGIN.name: [cuts(), keeps(got)]}) as gateway:
        await gateway.exchange(post(b"abc"))

    assert recorder.pieces("request_body_filter") == [(b"abc", True)] * 2
    assert got[0].body == b"ABC"
