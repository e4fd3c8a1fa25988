"""Server-sent events, one by one: the parser against the standard's words, the module in a proxy."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.matrix import H1, H2C, Exchange, Pairing, open_matrix
from tests._support.recording import CutError, Message
from tests.modules._modular import CUTS, PLAIN_H1, VERSIONS, Modular, cut_link
from trioproxy import Session
from trioproxy.modules import Event, EventStream, SseFilter
from trioproxy.modules._sse import EventParser, Parsed

STREAM = [("content-type", "text/event-stream")]
pairings = pytest.mark.parametrize("pairing", VERSIONS, ids=str)


# -- the standard ----------------------------------------------------------------------------------


def read(stream: bytes) -> list[tuple[str, str, str, int | None]]:
    """Interpret a whole stream word by word as section 9.2.6 has it.

    Returns the type, data and last event id of each event, and the reconnection time at its moment.
    """
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    events: list[tuple[str, str, str, int | None]] = []
    data, kind, last_id, new_id = "", "", "", ""
    retry: int | None = None
    lines = re.split("\r\n|\r|\n", text)
    for line in lines[:-1]:  # what no line end follows is no line
        if line == "":
            last_id = new_id
            if data != "":
                events.append((kind or "message", data[:-1], last_id, retry))
            data, kind = "", ""
            continue
        if line.startswith(":"):
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            new_id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return events


def parsed(stream: bytes, points: list[int] | None = None) -> list[Parsed | bytes]:
    at = sorted({0, len(stream), *(point % (len(stream) + 1) for point in points or [])})
    parser = EventParser(1 << 20)
    return [
        each for start, end in itertools.pairwise(at) for each in parser.feed(stream[start:end])
    ]


def written(items: list[Parsed | bytes], *, anew: bool) -> bytes:
    """Return the stream that goes on, with every event as it was or written anew."""
    return b"".join(
        [
            item if isinstance(item, bytes) else item.event.encode() if anew else item.raw
            for item in items
        ]
    )


WORDS = [
    "data", "event", "id", "retry", "other", "\ufeff", ":", " ", "\r", "\n", "\r\n", "\n\n", "0",
    "15", "x", "\0", "\u00e9", "\u2028", "data: ", "id: ", "event: ",
]  # fmt: skip
streams = st.lists(st.sampled_from(WORDS), max_size=40).map(lambda words: "".join(words).encode())


@given(streams, st.lists(st.integers(0, 1000)))
def test_a_stream_means_the_same_behind_the_parser_however_it_is_cut(
    stream: bytes, points: list[int]
) -> None:
    whole, cut = parsed(stream), parsed(stream, points)
    assert cut == whole
    for anew in (False, True):
        assert read(written(whole, anew=anew)) == read(stream)


@given(streams)
def test_the_filter_gets_every_event_that_a_client_would_get(stream: bytes) -> None:
    events = [each.event for each in parsed(stream) if isinstance(each, Parsed)]
    assert [(each.event, each.data) for each in events] == [each[:2] for each in read(stream)]


@given(st.binary(), st.lists(st.integers(0, 1000)))
def test_any_bytes_parse_alike_however_they_are_cut(stream: bytes, points: list[int]) -> None:
    assert parsed(stream, points) == parsed(stream)


@pytest.mark.parametrize(
    ("block", "event"),
    [
        (b"data: a\n\n", Event("a")),
        (b"data:a\ndata: b\ndata\n\n", Event("a\nb\n")),
        (b"data\n\n", Event("")),
        (b"event: add\rid: 7\rretry: 15\rdata:  x\r\r", Event(" x", "add", "7", 15)),
        (b"id\r\ndata: a\r\n\r\n", Event("a", id="")),
        (b"id: a\0b\nretry: 1s\nretry: \xc2\xb2\ndata: a\n\n", Event("a")),
        (b"event: one\nevent:\ndata: a\n\n", Event("a")),
        (b"\xef\xbb\xbfdata: a\n\n", Event("a")),
        (b"data: \xff\n\n", Event("\ufffd")),
    ],
)
def test_a_block_is_an_event(block: bytes, event: Event) -> None:
    (found,) = parsed(block)
    assert isinstance(found, Parsed)
    assert found.event == event
    (again,) = parsed(event.encode())
    assert isinstance(again, Parsed)
    assert again.event == event


def test_comments_and_blocks_without_data_pass_as_they_are() -> None:
    stream = b"retry: 15\n\n: hello\n\nevent: a\nid: 4\n\n:\r\ndata: cut"
    assert parsed(stream) == [
        b"retry: 15\n\n",
        b": hello\n",
        b"\n",
        b"event: a\nid: 4\n\n",
        b":\n",
    ]


def test_a_comment_inside_an_event_does_not_wait_for_it() -> None:
    parser = EventParser(100)
    assert parser.feed(b"data: a\n: alive\ndata: b") == [b": alive\n"]
    assert parser.feed(b"c\n\n") == [Parsed(Event("a\nbc"), b"data: a\ndata: bc\n\n")]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "stream",
    [
        b"data: 0123456789",
        b"data: 0123456789\n\n",
        b": 012345678901234",
        b": 012345678901234\n",
        b"data: 1\ndata: 2\nid",
        b"a\nb\nc\n" * 9,
    ],
)
def test_an_event_has_a_bound(stream: bytes, size: int) -> None:
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    for limit, fits in ((200, True), (15, False)):
        parser = EventParser(limit)
        if fits:
            for piece in pieces:
                parser.feed(piece)
            continue
        with pytest.raises(ValueError, match="an event has more than 15 bytes"):
            [parser.feed(piece) for piece in pieces]


def test_many_events_do_not_add_up_to_one() -> None:
    parser = EventParser(20)
    for _ in range(1000):
        assert len(parser.feed(b"data: 0123456789\n\n: comment of 19 b\n")) == 2


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"data": b"a"}, "data"),
        ({"event": "a\nb"}, "event='a\\\\nb': text without a line end is right"),
        ({"id": "a\rb"}, "id="),
        ({"id": "a\0b"}, "text without NUL is right"),
        ({"retry": -1}, "retry=-1: milliseconds"),
        ({"retry": 1.5}, "retry=1.5"),
    ],
)
def test_an_event_that_cannot_be_written_is_refused(fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises((ValueError, TypeError), match=wrong):
        Event(**fields)


def test_text_of_an_event_cannot_break_out_of_it() -> None:
    event = Event("a\r\n\r\nevent: forged\rdata: b")
    assert read(event.encode()) == [("message", "a\n\nevent: forged\ndata: b", "", None)]


# -- the module ------------------------------------------------------------------------------------


def keep(session: Session, event: Event) -> Event:
    return event


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, "apply=None, factory=None: one of the two is right"),
        ({"apply": keep, "factory": lambda session: keep}, "one of the two"),
        ({"apply": 3}, "apply=3: a function is right"),
        ({"apply": keep, "max_event_bytes": 0}, "max_event_bytes=0: bytes"),
        ({"apply": keep, "ask_identity": "no"}, "ask_identity='no': True or False"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)):
        SseFilter(**options)


def shout(session: Session, event: Event) -> Event | list[Event] | None:
    """Drop, double, change or keep."""
    if event.event == "secret":
        return None
    if event.data == "twice":
        return [event, attrs.evolve(event, data="again")]
    return event if event.data == "as it is" else attrs.evolve(event, data=event.data.upper())


CAME = (
    b"retry: 10\r\n\r\nid: 1\r\ndata: one\r\n\r\n: alive\r\n\r\nevent: secret\r\ndata: x\r\n\r\n"
    b"data: as it is\r\nunknown: kept\r\n\r\ndata: twice\r\n\r\ndata: cut off"
)
GOES = (
    b"retry: 10\n\nid: 1\ndata: ONE\n\n: alive\n\ndata: as it is\nunknown: kept\n\n"
    b"data: twice\n\ndata: again\n\n"
)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pairings
async def test_events_are_dropped_doubled_changed_and_kept(
    pairing: Pairing, cut: tuple[int, ...], autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [*STREAM, ("content-length", str(len(CAME)))], CAME)

    proxy = Modular(builders=[SseFilter(shout)])
    async with open_matrix(proxy, origin, pairing, upstream_link=cut_link(cut)) as gateway:
        response = await gateway.exchange()
    assert response.get("content-length") is None
    assert response.body == GOES


@pairings
async def test_no_event_and_no_comment_of_an_endless_stream_waits(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    # Something comes every 50 seconds, and the filter takes a second over each event.
    moments: list[tuple[float, bytes]] = []

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [("content-type", "Text/Event-Stream; charset=utf-8")])
        for number in itertools.count():
            await trio.sleep(50)
            try:
                await exchange.send_data(b"data: %d\n\n" % number)
                await trio.sleep(50)
                await exchange.send_data(b":\n")
            except CutError:
                return

    async def later(session: Session, event: Event) -> Event:
        await trio.sleep(1)
        return attrs.evolve(event, data=f"{event.data}!")

    started = trio.current_time()
    async with open_matrix(Modular(builders=[SseFilter(later)]), origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        await exchange.head()
        assert trio.current_time() - started < 1
        size = 0
        for number in range(20):
            for piece in (b"data: %d!\n\n" % number, b":\n"):
                size += len(piece)
                response = await exchange.at_least(size)
                assert response.body.endswith(piece)
                moments.append((trio.current_time() - started, piece))
        exchange.close()
        await gateway.sessions_ended()
    for index, (moment, piece) in enumerate(moments):
        due = 50 * (index + 1) + (1 if piece != b":\n" else 0)
        assert due <= moment < due + 1


async def test_a_factory_makes_a_filter_for_each_stream(autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, STREAM, b"data: a\n\ndata: b\n\n")

    def numbering(session: Session) -> Callable[[Session, Event], Event]:
        numbers = itertools.count(1)
        return lambda session, event: attrs.evolve(event, id=str(next(numbers)))

    seen: list[int] = []

    async def logging(session: Session, *_: Any) -> None:
        stream = session.downstream_modules_ctx.get(EventStream)
        assert stream is not None
        assert stream.active
        seen.append(stream.events)

    proxy = Modular(builders=[SseFilter(factory=numbering)], hooks={"logging": logging})
    async with open_matrix(proxy, origin, PLAIN_H1) as gateway:
        for _ in range(2):
            body = (await gateway.exchange()).body
            assert body == b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n"
    assert seen == [2, 2]


@pairings
async def test_other_responses_pass_untouched(pairing: Pairing, autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(
            200, [("content-type", "text/plain"), ("content-length", "9")], b"data: a\r\r"
        )

    def refuse(session: Session, event: Event) -> Event:
        raise AssertionError("not reached")

    async with open_matrix(Modular(builders=[SseFilter(refuse)]), origin, pairing) as gateway:
        response = await gateway.exchange()
    assert (response.get("content-length"), response.body) == ("9", b"data: a\r\r")


@pairings
async def test_an_event_beyond_the_bound_ends_the_response(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, STREAM)
        await exchange.send_data(b"data: fits\n\n")
        await wait_all_tasks_blocked()
        await exchange.send_data(b"data: " + b"x" * 100)
        await exchange.gone()

    builder = SseFilter(keep, max_event_bytes=50)
    async with open_matrix(Modular(builders=[builder]), origin, pairing) as gateway:
        with pytest.raises(CutError) as cut:
            await gateway.exchange()
    assert cut.value.message is not None
    assert cut.value.message.body == b"data: fits\n\n"
    told = "an event has more than 50 bytes, which is SseFilter's max_event_bytes"
    assert told in str(gateway.records[0].error)


@pytest.mark.parametrize("wrong", ["raises", "returns"])
async def test_a_filter_that_fails_ends_the_response(
    wrong: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, STREAM, b"data: a\n\n")

    def fails(session: Session, event: Event) -> Any:
        if wrong == "raises":
            raise RuntimeError("oh")
        return ["data: raw"]

    async with open_matrix(Modular(builders=[SseFilter(fails)]), origin, PLAIN_H1) as gateway:
        try:
            response = await gateway.exchange()
        except CutError as cut:
            assert cut.message is None or cut.message.body == b""  # noqa: PT017
        else:
            assert response.status == 500
    expected = (
        "RuntimeError: oh" if wrong == "raises" else "returned 'data: raw': an Event is right"
    )
    assert "EventStream.response_body_filter raised" in caplog.text
    assert expected in caplog.text


@pytest.mark.parametrize("ask_identity", [True, False])
async def test_the_origin_is_asked_not_to_encode_a_stream(
    ask_identity: bool, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        seen.append(await exchange.message())
        await exchange.respond(200, STREAM, b"data: a\n\n")

    builder = SseFilter(keep, ask_identity=ask_identity)
    async with open_matrix(Modular(builders=[builder]), origin, Pairing(H1, H2C)) as gateway:
        for accept in ("text/html, text/event-stream;q=0.5", "*/*"):
            await gateway.exchange(fields=[("accept", accept), ("accept-encoding", "gzip")])
    asked = [each.get("accept-encoding") for each in seen]
    assert asked == ["identity" if ask_identity else "gzip", "gzip"]


@pairings
async def test_an_encoded_stream_is_refused_not_passed_unfiltered(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [*STREAM, ("content-encoding", "gzip")])
        await exchange.gone()

    async with open_matrix(Modular(builders=[SseFilter(keep)]), origin, pairing) as gateway:
        assert (await gateway.exchange()).status == 502
    assert "with a Content-Encoding cannot be filtered" in str(gateway.records[0].error)


async def test_head_tells_of_no_length_either(autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [*STREAM, ("content-length", "9")], end=True)

    async def logging(session: Session, *_: Any) -> None:
        stream = session.downstream_modules_ctx.get(EventStream)
        assert stream is not None
        assert not stream.active

    proxy = Modular(builders=[SseFilter(keep)], hooks={"logging": logging})
    async with open_matrix(proxy, origin, PLAIN_H1) as gateway:
        response = await gateway.exchange("HEAD")
    assert (response.status, response.get("content-length")) == (200, None)


async def test_an_informational_head_is_not_the_streams(autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(103, STREAM)
        await exchange.respond(200, [("content-type", "text/plain")], b"data: a\n\nrest")

    def refuse(session: Session, event: Event) -> Event:
        raise AssertionError("not reached")

    async with open_matrix(Modular(builders=[SseFilter(refuse)]), origin, PLAIN_H1) as gateway:
        assert (await gateway.exchange()).body == b"data: a\n\nrest"
