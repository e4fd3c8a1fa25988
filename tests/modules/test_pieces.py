"""Hooks that have more to give than is good to hold, and hooks that hold back until nothing waits."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests._support.matrix import H1, H2C, Exchange, Pairing, open_matrix
from tests._support.recording import Message, Recorder
from trioproxy import BodyChunk, Headers, RequestHeader, ResponseHeader, Session
from trioproxy._messages import END, Data, RequestEvent, ResponseEvent, Trailers
from trioproxy.modules import HttpModule, HttpModuleBuilder, HttpModules
from trioproxy.proxy._body import RequestBody
from trioproxy.proxy._chain import request_row, response_row

pairings = pytest.mark.parametrize(
    "pairing", [Pairing(down, up) for down in (H1, H2C) for up in (H1, H2C)], ids=str
)


class Splitting(HttpModule):
    """Gives a byte at a time, each twice."""

    def __init__(self) -> None:
        self.left = b""
        self.calls: list[tuple[bytes | None, bool]] = []

    def _next(self, body: BodyChunk, end_of_stream: bool) -> bool:
        self.calls.append((body.data, end_of_stream))
        if body.data:
            assert not self.left
            self.left = body.data
        body.data, self.left = self.left[:1] * 2, self.left[1:]
        return bool(self.left)

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        request.headers.remove("content-length")
        return False

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> bool:
        return self._next(body, end_of_stream)

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        response.headers.remove("content-length")

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> bool:
        return self._next(body, end_of_stream)


class SplittingAgain(Splitting):
    """The same as a type of its own."""


class Holding(HttpModule):
    """Holds everything back until nothing more is there."""

    def __init__(self) -> None:
        self.held = b""
        self.flushes: list[bytes] = []
        self.ended = False

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        self.held += body.data or b""
        body.data = None
        if end_of_stream:
            self.ended = True
            body.data, self.held = self.held, b""

    async def response_flush_filter(self, session: Session, body: BodyChunk) -> None:
        assert body.data is None
        assert not self.ended
        self.flushes.append(self.held)
        body.data, self.held = self.held, b""


class HoldingAgain(Holding):
    """The same as a type of its own."""


@attrs.define
class _Plain(HttpModuleBuilder):
    module_type: type[HttpModule]
    order: int = 0

    def init(self) -> HttpModule:
        return self.module_type()


@attrs.define(eq=False, slots=False)
class Proxied(Recorder):
    """A recorder with modules, on either side."""

    downstream: tuple[type[HttpModule], ...] = ()
    upstream: tuple[type[HttpModule], ...] = ()

    def init_downstream_modules(self, modules: HttpModules) -> None:
        for each in self.downstream:
            modules.add_module(_Plain(each))

    def init_upstream_modules(self, modules: HttpModules) -> None:
        for each in self.upstream:
            modules.add_module(_Plain(each))


def doubled(data: bytes, times: int = 1) -> bytes:
    """Return each byte twice, or four times."""
    return bytes(byte for byte in data for _ in range(2**times))


SPLITTERS: tuple[type[HttpModule], ...] = (Splitting, SplittingAgain)


@pairings
@pytest.mark.parametrize("trailers", [None, [("x-sum", "1")]])
async def test_pieces_in_pieces_come_in_order_both_ways(
    trailers: list[tuple[str, str]] | None, pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        seen.append(await exchange.message())
        await exchange.respond(
            200, [("content-length", "5")] if trailers is None else [], b"hello", trailers
        )

    proxy = Proxied(downstream=SPLITTERS, upstream=SPLITTERS)
    async with open_matrix(proxy, origin, pairing) as gateway:
        client = await gateway.connect()
        got = await client.exchange("POST", body=b"up here", trailers=trailers)
    expected = [] if trailers is None else [(b"x-sum", b"1")]
    assert seen[0].body == doubled(b"up here", 2)
    assert seen[0].trailers == expected
    assert got.body == doubled(b"hello", 4)
    assert got.trailers == expected
    pieces = proxy.pieces("response_body_filter")
    assert [end for _, end in pieces].count(True) == 1
    assert pieces[-1][1]


class _FakeSession:
    _phase = ""

    def req_header(self) -> RequestHeader:
        return RequestHeader("GET", "/")


def _cut(events: list[Any], cuts: list[int]) -> list[list[Any]]:
    edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    return [events[start:stop] for start, stop in itertools.pairwise(edges) if start < stop]


def _message(pieces: list[bytes], trailers: bool, marked: bool) -> list[Any]:
    events: list[Any] = [Data(piece) for piece in pieces]
    if trailers:
        return [*events, Trailers(Headers([("t", "1")])), END]
    if marked and pieces:
        return [*events[:-1], Data(pieces[-1], True)]
    return [*events, END]


messages = {
    "pieces": st.lists(st.binary(min_size=1, max_size=5), max_size=4),
    "trailers": st.booleans(),
    "marked": st.booleans(),
    "cuts": st.lists(st.integers(0, 12), max_size=5),
}


@given(**messages, kinds=st.permutations([Splitting, SplittingAgain, Holding, HoldingAgain]))
def test_any_row_keeps_a_response_whole_and_in_order(
    pieces: list[bytes],
    trailers: bool,
    marked: bool,
    cuts: list[int],
    kinds: list[type[HttpModule]],
) -> None:
    async def main() -> None:
        session: Any = _FakeSession()
        modules = [kind() for kind in kinds]
        row = response_row(session, modules)
        out: list[ResponseEvent] = []
        batches = _cut([ResponseHeader(200), *_message(pieces, trailers, marked)], cuts)
        arrived = 0
        for batch in batches:
            out += await row.pass_on(batch)
            while row.more:
                out += await row.go_on()
            # What came has gone on, whatever holds back.
            arrived += sum(len(event.data) for event in batch if type(event) is Data)
            sent = b"".join(event.data for event in out if type(event) is Data)
            assert sent == doubled(b"".join(pieces)[:arrived], 2)
        assert [event is END or (type(event) is Data and event.end) for event in out].count(
            True
        ) == 1
        assert out[-1] is END or out[-1].end  # type: ignore[union-attr]
        assert [type(event) for event in out].count(Trailers) == trailers

    trio.run(main)


@given(**messages)
def test_any_row_keeps_a_request_whole_and_in_order(
    pieces: list[bytes], trailers: bool, marked: bool, cuts: list[int]
) -> None:
    async def main() -> None:
        session: Any = _FakeSession()
        row = request_row(session, [Splitting(), SplittingAgain()])
        out: list[RequestEvent] = []
        for batch in _cut(_message(pieces, trailers, marked), cuts):
            out += await row.pass_on(batch)
            while row.more:
                out += await row.go_on()
        sent = b"".join(event.data for event in out if type(event) is Data)
        assert sent == doubled(b"".join(pieces), 2)
        assert [event is END or (type(event) is Data and event.end) for event in out].count(
            True
        ) == 1
        assert [type(event) for event in out].count(Trailers) == trailers

    trio.run(main)


async def test_a_hook_is_asked_again_with_nothing_until_it_is_through() -> None:
    session: Any = _FakeSession()
    module = Splitting()
    row = response_row(session, [module])
    await row.pass_on([ResponseHeader(200)])
    given = [(await row.pass_on([Data(b"ab", True)]), row.more)]
    given += [(await row.go_on(), row.more)]
    assert given == [([Data(b"aa")], True), ([Data(b"bb", True)], False)]
    assert module.calls == [(b"ab", True), (None, True)]


async def test_no_more_waits_between_modules_than_came_at_once() -> None:
    session: Any = _FakeSession()
    row = response_row(session, [Splitting(), SplittingAgain()])
    out = await row.pass_on([ResponseHeader(200), Data(bytes(50), True)])
    while row.more:
        assert all(len(stage.waiting) <= 1 for stage in row._stages)
        out += await row.go_on()
    assert sum(len(event.data) for event in out if type(event) is Data) == 200


async def test_a_body_whose_end_has_arrived_has_ended_whatever_modules_are_through_with() -> None:
    session: Any = _FakeSession()
    stream: Any = None
    body = RequestBody(stream, True, [Data(b"abc", True)])
    body.go_through(request_row(session, [Splitting()]))
    assert body.ended
    assert await body.next_batch() == [Data(b"aa")]
    assert body.ended
    assert body.readable_now
    pieces = [await body.read(), await body.read(), await body.read()]
    assert pieces == [b"bb", b"cc", None]
    assert body.bytes_read == 3


async def test_nothing_is_flushed_before_the_head_and_behind_the_end() -> None:
    session: Any = _FakeSession()
    module = Holding()
    row = response_row(session, [module])
    await row.pass_on([ResponseHeader(103)])
    assert module.flushes == []
    assert len(await row.pass_on([ResponseHeader(200)])) == 1
    assert await row.pass_on([Data(b"a"), Data(b"b")]) == [Data(b"ab")]
    assert await row.pass_on([Data(b"c", True)]) == [Data(b"c", True)]
    assert module.flushes == [b"", b"ab"]
