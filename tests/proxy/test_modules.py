"""Modules in their rows: what each hook sees, and that a request pays for none it does not use."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests._support.matrix import PAIRINGS, Exchange, Pairing, keeps, open_matrix
from tests._support.recording import CutError, Message, Recorder
from trioproxy import (
    BodyChunk,
    Headers,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    Session,
)
from trioproxy._messages import END, Data, ResponseEvent, Trailers
from trioproxy.modules import HttpModule, HttpModuleBuilder, HttpModules, ModulesCtx
from trioproxy.proxy._chain import response_row


class Marking(HttpModule):
    """Puts its name into everything that passes, and writes down what it saw."""

    def __init__(self, builder: Mark) -> None:
        self.name, self.seen = builder.name, builder.seen

    def _note(self, what: str) -> None:
        self.seen.append(f"{self.name}.{what}")

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        self._note("request")
        request.headers.add("x-row", self.name)
        request.headers.remove("content-length")
        return False

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        self._note(f"up({body.data!r}, {end_of_stream})")
        if end_of_stream:
            body.data = (body.data or b"") + f"<{self.name}>".encode()

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        self._note(f"head({response.status}, {end_of_stream})")
        response.headers.add("x-row", self.name)
        if not end_of_stream:
            response.headers.remove("content-length")

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        self._note(f"down({body.data!r}, {end_of_stream})")
        if end_of_stream:
            body.data = (body.data or b"") + f"<{self.name}>".encode()

    async def response_trailer_filter(self, session: Session, trailers: Headers) -> bytes | None:
        self._note("trailers")
        trailers.add("x-row", self.name)
        return None

    def response_done_filter(self, session: Session) -> None:
        self._note("done")


class Other(Marking):
    """The same as a type of its own."""


@attrs.define
class Mark(HttpModuleBuilder):
    name: str
    seen: list[str]
    order: int = 0
    on_demand: bool = False
    module_type: type[HttpModule] = Marking

    def init(self) -> HttpModule:
        kind: Any = self.module_type
        made: HttpModule = kind(self)
        return made


@attrs.frozen
class Simple(HttpModuleBuilder):
    """Adds a module that needs nothing."""

    module_type: type[HttpModule]

    def init(self) -> HttpModule:
        return self.module_type()


@attrs.define(eq=False, slots=False)
class Proxied(Recorder):
    """A recorder with modules."""

    downstream: tuple[HttpModuleBuilder, ...] = ()
    upstream: tuple[HttpModuleBuilder, ...] = ()

    def init_downstream_modules(self, modules: HttpModules) -> None:
        for each in self.downstream:
            modules.add_module(each)

    def init_upstream_modules(self, modules: HttpModules) -> None:
        for each in self.upstream:
            modules.add_module(each)


def row(seen: list[str]) -> tuple[Mark, Mark]:
    """Return two modules; the second one comes first, by its order."""
    return (
        Mark("last", seen, order=-5),
        Mark("first", seen, order=5, module_type=Other),
    )


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_modules_act_in_their_order_in_both_directions(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[str] = []
    got: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        got.append(await exchange.message())
        await exchange.respond(200, [], b"hello", [("t", "1")])

    proxy = Proxied(downstream=row(seen))
    async with open_matrix(proxy, origin, pairing) as gateway:
        response = await gateway.exchange("POST", body=b"up")
    assert got[0].body == b"up<first><last>"
    assert [value for name, value in got[0].fields if name == b"x-row"] == [b"first", b"last"]
    assert response.body == b"hello<first><last>"
    assert [value for name, value in response.fields if name == b"x-row"] == [b"first", b"last"]
    for name in ("first", "last"):
        mine = [each.partition(".")[2] for each in seen if each.startswith(name)]
        assert [each for each in mine if not each.startswith(("up", "down"))] == [
            "request",
            "head(200, False)",
            "trailers",
            "done",
        ]
    for what in ("request", "head(200, False)", "trailers", "done"):
        assert seen.index(f"first.{what}") < seen.index(f"last.{what}")
    for way in ("up", "down"):
        ends = [each for each in seen if f".{way}(" in each and each.endswith("True)")]
        assert [each.partition(".")[0] for each in ends] == ["first", "last"]
    names = proxy.names()
    assert names.index("early_request_filter") < names.index("request_filter")


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_modules_of_the_upstreams_side_act_before_the_filters(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[str] = []
    origin_head: dict[str, str | None] = {}

    def note(session: Session, head: ResponseHeader, ctx: object) -> None:
        origin_head["row"] = head.headers.get("x-row")

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [("content-length", "5")], b"hello")

    proxy = Proxied(upstream=(Mark("up", seen),), hooks={"upstream_response_filter": note})
    async with open_matrix(proxy, origin, pairing) as gateway:
        response = await gateway.exchange()
    assert response.body == b"hello<up>"
    assert origin_head == {"row": "up"}
    pieces = proxy.pieces("upstream_response_body_filter")
    assert b"".join(data or b"" for data, _ in pieces) == b"hello<up>"
    assert [end for _, end in pieces].count(True) == 1
    assert "up.request" not in seen
    assert seen[-1] == "up.done"


async def test_the_trait_sets_upstream_modules_up_by_the_head(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    class Adjusting(Proxied):
        async def adjust_upstream_modules(
            self,
            session: Session,
            upstream_response: ResponseHeader,
            end_of_stream: bool,
            ctx: object,
        ) -> None:
            seen.append(f"adjust({upstream_response.status}, {end_of_stream})")
            if "x-mark" in upstream_response.headers:
                session.upstream_modules_ctx.get(Marking)

    async def origin(exchange: Exchange) -> None:
        request = await exchange.message()
        marked = [("x-mark", "1")] if request.start.startswith(b"GET /marked") else []
        await exchange.respond(200, marked, b"hello")

    proxy = Adjusting(upstream=(Mark("up", seen, on_demand=True),))
    async with open_matrix(proxy, origin, PAIRINGS[0]) as gateway:
        plain = await gateway.exchange()
        assert seen == ["adjust(200, False)"]
        marked = await gateway.exchange("GET", "/marked")
    assert (plain.body, marked.body) == (b"hello", b"hello<up>")


async def test_a_module_may_answer(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    class Answering(Marking):
        async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
            head = ResponseHeader(200, {"content-length": "2"})
            await session.write_response_header(head)
            await session.write_response_body(b"no", True)
            return True

    proxy = Proxied(downstream=(Mark("it", seen, module_type=Answering),))
    async with open_matrix(proxy, {}, PAIRINGS[0]) as gateway:
        response = await gateway.exchange()
    assert (response.status, response.body) == (200, b"no<it>")
    assert proxy.names() == ["new_ctx", "early_request_filter", "logging"]
    assert seen[0] == "it.head(200, False)"


async def test_a_module_that_says_it_answered_and_did_not_is_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Lying(HttpModule):
        async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
            return True

    proxy = Proxied(downstream=(_plain(Lying),))
    async with open_matrix(proxy, {}, PAIRINGS[0]) as gateway:
        response = await gateway.exchange()
    assert response.status == 500
    assert "Lying.request_header_filter returned True and answered nothing" in caplog.text


async def test_a_refusal_of_a_module_is_an_error_of_the_request(autojump_clock: MockClock) -> None:
    class Refusing(HttpModule):
        async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
            raise ProxyError.status(403)

    proxy = Proxied(downstream=(_plain(Refusing),))
    async with open_matrix(proxy, {}, PAIRINGS[0]) as gateway:
        response = await gateway.exchange()
    assert response.status == 403
    assert "fail_to_proxy" in proxy.names()
    assert "request_filter" not in proxy.names()


async def failed(exchange: Exchange) -> bool:
    """Tell whether an exchange was answered 500, or cut where its head was out."""
    try:
        return (await exchange.message()).status == 500
    except CutError:
        return True


@pytest.mark.parametrize(
    "hook",
    [
        "request_header_filter",
        "request_body_filter",
        "response_header_filter",
        "response_body_filter",
        "response_trailer_filter",
    ],
)
async def test_a_module_that_raises_costs_its_own_request(
    hook: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(self: HttpModule, session: Session, *args: object) -> None:
        if session.req_header().path == "/bad":
            raise ValueError("a mistake")

    failing: Any = type("Failing", (HttpModule,), {hook: fails})

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [], b"hello", [("t", "1")])

    proxy = Proxied(downstream=(_plain(failing),))
    async with open_matrix(proxy, origin, PAIRINGS[-1]) as gateway:
        client = await gateway.connect()
        bad = await client.open("POST", "/bad")
        await bad.send_data(b"x", end=True)
        assert await failed(bad)
        good = await (await gateway.connect()).exchange("POST", "/good", body=b"x")
        assert good.body == b"hello"
    assert "a mistake" in caplog.text


async def test_done_comes_once_whatever_became_of_the_request(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    async def origin(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send_head(200)
        await exchange.send_data(b"begun")
        await exchange.reset()

    proxy = Proxied(downstream=(Mark("it", seen),))
    async with open_matrix(proxy, origin, PAIRINGS[0], check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        await exchange.head()
        await exchange.gone()
    assert seen.count("it.done") == 1
    assert not [each for each in seen if each.endswith("True)")]
    assert proxy.names()[-1] == "logging"


async def test_an_error_response_passes_by_the_modules(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    async def refuse(session: Session, ctx: object) -> bool:
        raise ProxyError.status(418)

    proxy = Proxied(downstream=(Mark("it", seen),), hooks={"request_filter": refuse})
    async with open_matrix(proxy, {}, PAIRINGS[0]) as gateway:
        response = await gateway.exchange()
    assert (response.status, response.body) == (418, b"")
    assert seen == ["it.request", "it.done"]


async def test_a_module_on_demand_exists_for_who_asks(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    async def ask(session: Session, ctx: object) -> None:
        if session.req_header().path == "/ask":
            found = session.downstream_modules_ctx.get(Marking)
            assert found is session.downstream_modules_ctx.get(Marking)
            assert session.downstream_modules_ctx.get(Other) is None

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [], b"hello")

    proxy = Proxied(
        downstream=(Mark("it", seen, on_demand=True),), hooks={"early_request_filter": ask}
    )
    async with open_matrix(proxy, origin, PAIRINGS[0]) as gateway:
        assert (await gateway.exchange()).body == b"hello"
        assert not seen
        assert (await gateway.exchange("GET", "/ask")).body == b"hello<it>"
    assert "it.request" in seen


async def test_a_body_goes_through_the_modules_once_however_often_it_is_tried(
    autojump_clock: MockClock,
) -> None:
    seen: list[str] = []
    got: list[bytes] = []

    async def origin(exchange: Exchange) -> None:
        got.append((await exchange.message()).body)
        if len(got) == 1:
            exchange.close()
        else:
            await exchange.respond(200, [], b"ok")

    def again(
        peer: object, session: Session, e: ProxyError, ctx: object, reused: bool
    ) -> ProxyError:
        e.set_retry(True)
        return e

    peeked: list[object] = []

    async def peek(session: Session, ctx: object) -> bool:
        peeked.append(await session.peek_request_body(100))
        return False

    proxy = Proxied(
        downstream=(Mark("it", seen),),
        hooks={"error_while_proxy": again, "request_filter": peek},
    )
    async with open_matrix(proxy, origin, PAIRINGS[0]) as gateway:
        response = await gateway.exchange("POST", body=b"body")
    assert response.body == b"ok<it>"
    assert got == [b"body<it>", b"body<it>"]
    assert str(peeked[0]) == "Peeked(data=b'body<it>', complete=True)"
    assert len([each for each in seen if ".up(" in each and "True" in each]) == 1


class Pondering(HttpModule):
    """Looks at the second piece of a body for a while."""

    seen: int = 0

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        self.seen += 1
        if self.seen == 2:
            await trio.sleep(5)


@attrs.frozen
class Ponder(HttpModuleBuilder):
    module_type = Pondering

    def init(self) -> HttpModule:
        return Pondering()


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_a_piece_at_which_a_module_was_cut_is_missed_by_no_other_attempt(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    def again(_peer: object, _session: object, e: ProxyError, *_rest: object) -> ProxyError:
        e.set_retry(True)
        return e

    asked: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        if not proxy.of("error_while_proxy"):
            await exchange.at_least(4)
            await trio.sleep(2)
            exchange.close()
            return
        asked.append(await exchange.message())
        await exchange.respond(200, [("content-length", "0")])

    proxy = Proxied(downstream=(Ponder(),), hooks={"error_while_proxy": again})
    async with open_matrix(proxy, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        await exchange.send_data(b"one ")
        await trio.sleep(1)
        await exchange.send_data(b"two ")
        await exchange.send_data(b"three", end=True)
        await gateway.sessions_ended()
        assert [each.status for each in gateway.records] == [502]
    assert asked == []


async def test_what_is_behind_a_piece_at_which_a_module_was_cut_is_not_read(
    autojump_clock: MockClock,
) -> None:
    async def request_filter(session: Session, _ctx: object) -> bool:
        with trio.move_on_after(3):
            while await session.read_request_body() is not None:
                pass
        await session.read_request_body()
        return False

    proxy = Proxied(downstream=(Ponder(),), hooks={"request_filter": request_filter})
    async with open_matrix(proxy, {}, PAIRINGS[0]) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        await exchange.send_data(b"one ")
        await trio.sleep(1)
        await exchange.send_data(b"two ", end=True)
        assert (await exchange.message()).status == 500
    assert "a piece of the request's body, which is lost" in str(proxy.the("logging").args["e"])


class Scanning(HttpModule):
    """Takes its time over each piece of a request's body, or refuses it."""

    refuses = False

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        if self.refuses:
            self.refuses = False
            raise ProxyError.status(422, "not that")
        await trio.sleep(5)


class Refusing(Scanning):
    """Refuses the first piece."""

    refuses = True


@pytest.mark.parametrize("kind", [Scanning, Refusing])
@pytest.mark.parametrize("reads", [False, True], ids=["peeks", "reads"])
async def test_a_body_of_which_a_piece_was_lost_in_a_module_never_goes_on(
    reads: bool, kind: type[HttpModule], autojump_clock: MockClock
) -> None:
    got: list[Message] = []

    async def look(session: Session, ctx: object) -> bool:
        with trio.move_on_after(1), contextlib.suppress(ProxyError):
            if reads:
                await session.read_request_body()
            else:
                await session.peek_request_body(100)
        return False

    proxy = Proxied(downstream=(Simple(kind),), hooks={"request_filter": look})
    async with open_matrix(proxy, keeps(got), PAIRINGS[0]) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST")
        await exchange.send_data(b"body")
        await trio.sleep(2)
        await exchange.send_data(b"more", end=True)
        assert (await exchange.message()).status == 500
    assert not got


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_response_of_which_a_piece_was_lost_in_a_module_is_cut(
    refuses: bool, autojump_clock: MockClock
) -> None:
    class Slow(HttpModule):
        async def response_body_filter(
            self, session: Session, body: BodyChunk, end_of_stream: bool
        ) -> None:
            if body.data == b"two":
                if refuses:
                    raise ProxyError.status(502, "not that")
                await trio.sleep(5)

    async def write(session: Session, ctx: object) -> bool:
        await session.write_response_header(ResponseHeader(200))
        await session.write_response_body(b"one", end_of_stream=False)
        with trio.move_on_after(1), contextlib.suppress(ProxyError):
            await session.write_response_body(b"two", end_of_stream=False)
        await session.write_response_body(b"three", end_of_stream=True)
        return True

    proxy = Proxied(downstream=(Simple(Slow),), hooks={"request_filter": write})
    for pairing in (PAIRINGS[0], PAIRINGS[-1]):
        async with open_matrix(proxy, keeps([]), pairing) as gateway:
            with pytest.raises(CutError) as cut:
                await gateway.exchange()
        assert cut.value.message is not None
        assert cut.value.message.body == b"one"


async def test_an_attempt_is_not_repeated_where_a_module_had_a_piece_of_the_body(
    autojump_clock: MockClock,
) -> None:
    got: list[bytes] = []

    async def origin(exchange: Exchange) -> None:
        if got:
            got.append((await exchange.message()).body)
            await exchange.respond(200, [], b"ok")
        else:
            got.append((await exchange.head()).body)
            exchange.close()

    def again(
        peer: object, session: Session, e: ProxyError, ctx: object, reused: bool
    ) -> ProxyError:
        e.set_retry(True)
        return e

    proxy = Proxied(downstream=(Simple(Scanning),), hooks={"error_while_proxy": again})
    async with open_matrix(proxy, origin, PAIRINGS[0]) as gateway:
        assert (await gateway.exchange("POST", body=b"body")).status == 502
    assert got == [b""]


async def test_bytes_for_trailers_pass_the_modules_behind(autojump_clock: MockClock) -> None:
    class Ending(HttpModule):
        async def response_trailer_filter(
            self, session: Session, trailers: Headers
        ) -> bytes | None:
            return b"[%d trailers]" % len(trailers.items())

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [], b"hello", [("t", "1")])

    proxy = Proxied(downstream=(_plain(Ending, order=1), Mark("behind", [])))
    async with open_matrix(proxy, origin, PAIRINGS[0]) as gateway:
        response = await gateway.exchange()
    assert response.body == b"hello[1 trailers]<behind>"
    assert not response.trailers


@pytest.mark.parametrize(
    ("name", "make", "text"),
    [
        ("response_heder_filter", lambda self: None, "response_header_filter was meant"),
        ("response_body_filter", lambda self, session, body, end_of_stream: None, "coroutine"),
        ("response_body_filter", lambda self, session: None, "takes the wrong arguments"),
        ("response_done_filter", None, "must be a method"),
    ],
)
def test_a_wrong_hook_is_refused_when_the_class_is_made(name: str, make: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        type("Wrong", (HttpModule,), {name: make})


def test_two_modules_of_one_type_are_refused() -> None:
    with pytest.raises(ValueError, match="there is a module Marking already"):
        HttpModules([Mark("a", []), Mark("b", [])])


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="an HttpModuleBuilder is right"):
        HttpModules([object()])  # type: ignore[list-item]  # the point


def test_an_idle_module_is_made_for_nobody() -> None:
    ctx = ModulesCtx(HttpModules([Mark("it", [], on_demand=True)]))
    assert ctx.instances == ()


def _plain(kind: type[HttpModule], order: int = 0) -> HttpModuleBuilder:
    """Return a builder of modules without options."""
    return _Plain(kind, order)


@attrs.define
class _Plain(HttpModuleBuilder):
    module_type: type[HttpModule]
    order: int = 0

    def init(self) -> HttpModule:
        return self.module_type()


class _Seen(HttpModule):
    """Holds what it sees to the contract."""

    def __init__(self) -> None:
        self.ended = 0
        self.trailers = 0
        self.content = b""

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        assert not self.ended
        assert not self.trailers
        self.ended += end_of_stream
        self.content += body.data or b""

    async def response_trailer_filter(self, session: Session, trailers: Headers) -> bytes | None:
        assert self.ended
        self.trailers += 1
        return None


class _FakeSession:
    _phase = ""

    def req_header(self) -> RequestHeader:
        return RequestHeader("GET", "/")


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=4), max_size=4),
    trailers=st.booleans(),
    marked=st.booleans(),
    cuts=st.lists(st.integers(0, 12), max_size=5),
)
def test_a_row_keeps_a_message_a_message(
    pieces: list[bytes], trailers: bool, marked: bool, cuts: list[int]
) -> None:
    events: list[ResponseEvent] = [ResponseHeader(200)]
    events += [Data(piece) for piece in pieces]
    if trailers:
        events.append(Trailers(Headers([("t", "1")])))
        events.append(END)
    elif marked and pieces:
        events[-1] = Data(pieces[-1], True)
    else:
        events.append(END)

    async def main() -> None:
        session: Any = _FakeSession()
        witness = _Seen()
        rows = response_row(session, [Marking(Mark("m", [])), witness])
        out: list[ResponseEvent] = []
        edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
        for start, stop in itertools.pairwise(edges):
            if start < stop:
                out += await rows.pass_on(events[start:stop])
        assert witness.ended == 1
        assert witness.content == b"".join(pieces) + b"<m>"
        assert witness.trailers == trailers
        content = b"".join(event.data for event in out if type(event) is Data)
        assert content == witness.content
        ends = [event for event in out if event is END or (type(event) is Data and event.end)]
        assert len(ends) == 1
        assert out[-1] is ends[0]

    trio.run(main)


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_a_request_leaves_something_to_the_next_one_on_its_connection(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    got: list[tuple[int, object]] = []

    class Leaving(Recorder):
        def persist_connection_context(self, session: Session, ctx: Any) -> object | None:
            return f"left by {ctx.number}"

        def on_connection_reuse(self, session: Session, ctx: Any, prev_ctx: object) -> None:
            got.append((ctx.number, prev_ctx))

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [("content-length", "0")])

    async with open_matrix(Leaving(), origin, pairing) as gateway:
        client, other = await gateway.connect(), await gateway.connect()
        await client.exchange()
        await other.exchange()
        await client.exchange()
        await client.exchange()
    expected = [(2, "left by 0"), (3, "left by 2")]
    assert got == ([] if pairing.down.h2 else expected)


async def test_what_cannot_be_left_is_told_and_nothing_is_left(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[object] = []

    class Failing(Recorder):
        def persist_connection_context(self, session: Session, ctx: object) -> object | None:
            raise ValueError("cannot")

        def on_connection_reuse(self, session: Session, ctx: object, prev_ctx: object) -> None:
            taken.append(prev_ctx)

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [("content-length", "0")])

    async with open_matrix(Failing(), origin, PAIRINGS[0]) as gateway:
        client = await gateway.connect()
        assert [(await client.exchange()).status for _ in range(2)] == [200, 200]
    assert "persist_connection_context raised ValueError: cannot" in caplog.text
    assert not taken


async def test_what_on_connection_reuse_raises_fails_its_request(autojump_clock: MockClock) -> None:
    class Failing(Recorder):
        def persist_connection_context(self, session: Session, ctx: object) -> object | None:
            return "left"

        def on_connection_reuse(self, session: Session, ctx: object, prev_ctx: object) -> None:
            raise ProxyError.status(403)

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [("content-length", "0")])

    proxy = Failing()
    async with open_matrix(proxy, origin, PAIRINGS[0]) as gateway:
        client = await gateway.connect()
        assert (await client.exchange()).status == 200
        assert (await client.exchange()).status == 403
    assert proxy.names()[-2:] == ["request_summary", "logging"]


async def test_a_continue_of_a_task_beside_leaves_the_final_heads_row_alone(
    autojump_clock: MockClock,
) -> None:
    seen: list[str] = []

    class Slow(Marking):
        async def response_header_filter(
            self, session: Session, response: ResponseHeader, end_of_stream: bool
        ) -> None:
            if response.status == 200:
                await trio.sleep(2)
            await super().response_header_filter(session, response, end_of_stream)

    async def answer(session: Session, ctx: object) -> bool:
        async def invite() -> None:
            await trio.sleep(1)
            await session.write_continue_response()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite)
            await session.write_response_header(ResponseHeader(200))
            await session.write_response_body(b"body", False)
            await session.write_response_body(None, True)
        return True

    proxy = Proxied(
        downstream=(Mark("it", seen, module_type=Slow),), hooks={"request_filter": answer}
    )
    async with open_matrix(proxy, {}, PAIRINGS[0]) as gateway:
        response = await gateway.exchange()
    assert (response.status, response.body) == (200, b"body<it>")
    downs = [each for each in seen if ".down(" in each]
    assert downs == ["it.down(b'body', False)", "it.down(None, True)"]
