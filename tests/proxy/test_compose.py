"""`Chain` and `Route`: several traits in one proxy, each callback by its rule."""

from __future__ import annotations

import inspect
from typing import Any

import attrs
import pytest
from trio.testing import MockClock

from tests._support.matrix import PAIRINGS, Exchange, Pairing, open_matrix
from tests._support.recording import ORIGIN, Ctx, Recorder
from trioproxy import (
    BodyChunk,
    Chain,
    FailToProxy,
    HttpPeer,
    ProxyError,
    ProxyHttp,
    RequestHeader,
    ResponseHeader,
    Route,
    Session,
)
from trioproxy.cache import Cacheable, CacheMeta, NoCacheReason, Uncacheable
from trioproxy.modules import HttpModules, ResponseCompressionBuilder
from trioproxy.proxy._bound import Filters
from trioproxy.proxy._compose import _RULES, bind, parts
from trioproxy.proxy._plan import CALLBACKS


def named(owner: str, seen: list[str], **hooks: Any) -> Any:
    """Return a recorder that writes down its calls under a name, into a list of all."""

    class Named(Recorder):
        def _note(self, name: str, ctx: Ctx, shown: object = None, **args: Any) -> None:
            seen.append(f"{owner}.{name}")
            super()._note(name, ctx, shown, **args)

    return Named(hooks=hooks)


async def hello(exchange: Exchange) -> None:
    await exchange.message()
    await exchange.respond(200, [("x", "1")], b"hello", [("t", "1")])


def of(seen: list[str], callback: str) -> list[str]:
    """Return whose calls of a callback were seen, in order, once each."""
    owners = [each.partition(".")[0] for each in seen if each.partition(".")[2] == callback]
    return list(dict.fromkeys(owners))


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_requests_run_from_first_to_last_and_responses_back(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[str] = []
    members = [named(name, seen) for name in "abc"]
    async with open_matrix(Chain(*members), hello, pairing) as gateway:
        _peers(members[-1], gateway)
        response = await gateway.exchange("POST", body=b"up")
    assert response.body == b"hello"
    for callback in ("early_request_filter", "request_filter", "upstream_request_filter"):
        assert of(seen, callback) == ["a", "b", "c"], callback
    for callback in (
        "upstream_response_filter",
        "response_filter",
        "upstream_response_body_filter",
        "response_body_filter",
        "upstream_response_trailer_filter",
        "response_trailer_filter",
        "logging",
    ):
        assert of(seen, callback) == ["c", "b", "a"], callback
    assert of(seen, "request_body_filter") == ["a", "b", "c"]
    assert of(seen, "upstream_peer") == ["c"]


def _peers(recorder: Any, gateway: Any) -> None:
    recorder.peers = tuple(gateway.peer(str(each.host)) for each in recorder.peers)


def test_every_callback_has_a_rule() -> None:
    names = {name for name, _, _ in CALLBACKS}
    assert set(_RULES) == names - Filters.ONCE - {"new_ctx"}


@pytest.mark.parametrize("name", sorted(_RULES))
def test_a_single_override_gets_its_own_context(name: str) -> None:
    """Whatever the rule, one member that overrides a callback is called with its own context."""
    kinds = {each: kind for each, _, kind in CALLBACKS}
    got: list[Any] = []
    parameters = list(inspect.signature(getattr(ProxyHttp, name)).parameters)[1:]
    answer = {"persist_connection_context": "left"}.get(name)

    def plain(self: Any, *args: Any) -> Any:
        got.extend(args)
        return answer

    async def coroutine(self: Any, *args: Any) -> Any:
        return plain(self, *args)

    override: Any = coroutine if kinds[name] == "async def" else plain
    override.__signature__ = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        + [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in parameters]
    )
    body = {name: override, "new_ctx": lambda self: "mine"}
    if name != "upstream_peer":
        body["upstream_peer"] = _peer_of_nobody
    kind = type("Only", (ProxyHttp,), body)
    other = type(
        "Other", (ProxyHttp,), {"new_ctx": lambda self: "other", "upstream_peer": _peer_of_nobody}
    )
    last = name == "upstream_peer"
    members = [other(), kind()] if last else [kind(), other()]
    filters = bind(Chain(*members))
    ctx = filters.new_ctx()
    assert ctx == (("other", "mine") if last else ("mine", "other"))
    values = {each: f"<{each}>" for each in parameters} | {"ctx": ctx}
    if name == "on_connection_reuse":
        values["prev_ctx"] = {0: "<prev_ctx>"}  # type: ignore[assignment]  # what a chain has left
    result = getattr(filters, name)(*(values[each] for each in parameters))
    if inspect.iscoroutine(result):
        with pytest.raises(StopIteration) as stop:
            result.send(None)
        result = stop.value.value
    expected = {each: f"<{each}>" for each in parameters} | {"ctx": "mine"}
    assert got == [expected[each] for each in parameters]
    assert result == ({0: "left"} if name == "persist_connection_context" else None)


async def _peer_of_nobody(self: Any, session: Session, ctx: Any) -> HttpPeer:
    return ORIGIN


async def test_the_first_that_answers_ends_the_request(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    async def answer(session: Session, ctx: object) -> bool:
        await session.write_response_header(ResponseHeader(204), True)
        return True

    members = [named("a", seen), named("b", seen, request_filter=answer), named("c", seen)]
    async with open_matrix(Chain(*members), {}, PAIRINGS[0]) as gateway:
        assert (await gateway.exchange()).status == 204
    assert of(seen, "request_filter") == ["a", "b"]
    assert of(seen, "upstream_peer") == []
    assert of(seen, "logging") == ["c", "b", "a"]


async def test_a_member_may_keep_the_request_from_the_origin(autojump_clock: MockClock) -> None:
    seen: list[str] = []
    members = [
        named("a", seen, proxy_upstream_filter=lambda *_: False),
        named("b", seen),
    ]
    async with open_matrix(Chain(*members), {}, PAIRINGS[0]) as gateway:
        assert (await gateway.exchange()).status == 502
    assert of(seen, "proxy_upstream_filter") == ["a"]


class Adding(Chain.Member[None]):
    """A member that only looks on."""

    def __init__(self, text: str) -> None:
        self.text = text

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> float | None:
        if end_of_stream:
            body.data = (body.data or b"") + self.text.encode()
        return 1.0

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        upstream_response.headers.remove("content-length")


class AsyncAdding(Adding):
    async def response_body_filter(  # type: ignore[override]  # either kind does
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> float | None:
        return super().response_body_filter(session, body, end_of_stream, ctx)


@pytest.mark.parametrize("kinds", [(Adding, Adding), (Adding, AsyncAdding), (AsyncAdding, Adding)])
async def test_the_delays_of_body_filters_add_up(
    kinds: tuple[type[Adding], type[Adding]], autojump_clock: MockClock
) -> None:
    last = Recorder()
    chain = Chain(kinds[0]("a"), kinds[1]("b"), last)
    async with open_matrix(chain, hello, PAIRINGS[0]) as gateway:
        _peers(last, gateway)
        started = autojump_clock.current_time()
        response = await gateway.exchange()
        passed = autojump_clock.current_time() - started
    assert response.body == b"helloba"
    assert passed >= 2


def test_errors_are_handed_from_the_last_member_to_the_first() -> None:
    class Wrapping(Recorder):
        def error_while_proxy(
            self, peer: HttpPeer, session: Session, e: ProxyError, ctx: Any, client_reused: bool
        ) -> ProxyError:
            return e.more_context(str(ctx.number))

        def fail_to_connect(
            self, session: Session, peer: HttpPeer, ctx: Any, e: ProxyError
        ) -> ProxyError:
            return e.more_context(str(ctx.number))

    one, two = Wrapping(), Wrapping()
    filters = bind(Chain(one, two))
    ctx = filters.new_ctx()
    ctx[0].number, ctx[1].number = 1, 2
    error = ProxyError.status(502)
    found = filters.error_while_proxy(ORIGIN, None, error, ctx, False)
    assert (found.context, found.cause.context) == ("1", "2")
    assert filters.fail_to_connect is not None
    found = filters.fail_to_connect(None, ORIGIN, ctx, error)
    assert (found.context, found.cause.context) == ("1", "2")


def test_one_member_that_will_not_store_is_enough() -> None:
    class Storing(Recorder):
        verdict: Any = None

        def response_cache_filter(self, session: Session, resp: ResponseHeader, ctx: Any) -> Any:
            return self.verdict

    one, two = Storing(), Storing()
    filters = bind(Chain(one, two))
    ctx = filters.new_ctx()
    meta: Any = None  # nobody looks into it
    yes: Any = Cacheable(meta)
    no = Uncacheable(NoCacheReason.Custom("no"))
    for first, last, expected in ((yes, no, no), (no, yes, no), (yes, yes, yes)):
        one.verdict, two.verdict = first, last
        assert filters.response_cache_filter(None, None, ctx) is expected


def test_variants_are_told_apart_by_what_each_member_says() -> None:
    class Varying(Recorder):
        value: bytes | None = None

        def cache_vary_filter(self, meta: CacheMeta, ctx: Any, req: RequestHeader) -> bytes | None:
            return self.value

    one, two = Varying(), Varying()
    vary = bind(Chain(one, two)).cache_vary_filter
    assert vary is not None
    found = set()
    for one.value, two.value in ((None, None), (b"x", None), (None, b"x"), (b"x", b"x")):
        found.add(vary(None, (None, None), None))
    assert len(found) == 4
    assert None in found


async def test_each_member_logs_whatever_another_one_does(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def fails(*_: object) -> None:
        raise ValueError("no log")

    last = named("b", seen, logging=fails)
    async with open_matrix(Chain(named("a", seen), last), hello, PAIRINGS[0]) as gateway:
        _peers(last, gateway)
        await gateway.exchange()
    assert of(seen, "logging") == ["b", "a"]
    assert "logging raised ValueError: no log" in caplog.text


async def test_what_members_leave_comes_back_to_each(autojump_clock: MockClock) -> None:
    got: list[tuple[str, object]] = []

    @attrs.define(eq=False, slots=False)
    class Leaving(Recorder):
        name: str = ""

        def persist_connection_context(self, session: Session, ctx: Any) -> object | None:
            return self.name or None

        def on_connection_reuse(self, session: Session, ctx: Any, prev_ctx: object) -> None:
            got.append((self.name, prev_ctx))

    last = Leaving(name="c")
    chain = Chain(Leaving(name="a"), Leaving(name=""), last)

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(200, [("content-length", "0")])

    async with open_matrix(chain, origin, PAIRINGS[0]) as gateway:
        _peers(last, gateway)
        client = await gateway.connect()
        await client.exchange()
        await client.exchange()
    assert got == [("a", "a"), ("c", "c")]


# -- what cannot be chained ------------------------------------------------------------------------


def test_a_chain_wants_a_last_member_that_chooses_the_peer() -> None:
    with pytest.raises(TypeError, match="the last member chooses the peer, and Adding does not"):
        Chain(Recorder(), Adding("x"))
    with pytest.raises(TypeError, match="chooses no peer"):
        Route({"/": Adding("x")})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Chain(), "at least one"),
        (lambda: Chain(object()), "is no trait"),  # type: ignore[arg-type]  # the point
        (lambda: Chain(Route({"/": Recorder()}), Recorder()), "a Route is the last member"),
        (lambda: Route({"/": object()}), "leads to"),  # type: ignore[dict-item]  # the point
    ],
)
def test_what_cannot_be_composed_is_refused(make: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        make()


@pytest.mark.parametrize(
    ("routes", "text"),
    [
        ({}, "at least one"),
        ({"/a": Recorder(), "/a/": Recorder()}, "the same"),
        ({"?": Recorder()}, "pattern"),
    ],
)
def test_wrong_patterns_are_refused(routes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Route(routes)


def test_chains_within_chains_are_one() -> None:
    a, b, c = Recorder(), Recorder(), Recorder()
    chain = Chain(a, Chain(b, c))
    assert chain.members == (a, b, c)
    assert list(parts(chain)) == [a, b, c]


async def test_a_member_that_chooses_no_peer_says_so_where_it_is_served_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_matrix(Adding("x"), {}, PAIRINGS[0]) as gateway:
        assert (await gateway.exchange()).status == 500
    assert "Adding chooses no peer" in caplog.text


# -- routes ---------------------------------------------------------------------------------------


class Saying(Recorder):
    """Answers with its name."""

    text = ""

    async def request_filter(self, session: Session, ctx: Any) -> bool:
        body = self.text.encode()
        head = ResponseHeader(200, {"content-length": str(len(body))})
        await session.write_response_header(head)
        await session.write_response_body(body, True)
        return True


def saying(text: str) -> Saying:
    made = Saying()
    made.text = text
    return made


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_requests_are_routed_by_host_and_path(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[str] = []
    route = Route(
        {
            "api.example": saying("api"),
            "api.example/v2": Chain(named("first", seen), saying("v2")),
            "*.example": Route({"/static": saying("static"), "/": saying("below")}),
            "/health": saying("health"),
        }
    )
    chain = Chain(named("outer", seen), route)
    async with open_matrix(chain, {}, pairing) as gateway:
        client = await gateway.connect()
        found = []
        for authority, target in (
            ("api.example", "/"),
            ("api.example", "/v2/x"),
            ("api.example", "/v22"),
            ("b.example", "/static/a"),
            ("b.example", "/other"),
            ("else", "/health"),
        ):
            response = await client.exchange("GET", target, authority=authority)
            found.append(response.body.decode())
        nothing = await client.exchange("GET", "/", authority="else")
    assert found == ["api", "v2", "api", "static", "below", "health"]
    assert nothing.status == 404
    assert seen.count("outer.new_ctx") == 7
    assert seen.count("first.new_ctx") == 1


async def test_what_one_route_leaves_is_not_for_another(autojump_clock: MockClock) -> None:
    got: list[object] = []

    class Leaving(Saying):
        def persist_connection_context(self, session: Session, ctx: Any) -> object | None:
            return self.text

        def on_connection_reuse(self, session: Session, ctx: Any, prev_ctx: object) -> None:
            got.append((self.text, prev_ctx))

    one, two = Leaving(), Leaving()
    one.text, two.text = "one", "two"
    route = Route({"/one": one, "/two": two})
    async with open_matrix(route, {}, PAIRINGS[0]) as gateway:
        client = await gateway.connect()
        for target in ("/one", "/two", "/two"):
            await client.exchange("GET", target)
    assert got == [("two", "two")]


def test_members_add_their_modules_and_the_default_ones_only_once() -> None:
    calls: list[str] = []

    class Own(Recorder):
        def init_downstream_modules(self, modules: HttpModules) -> None:
            calls.append("own")

    bind(Chain(Recorder(), Own(), Own()))
    assert calls == ["own", "own"]


def test_members_may_add_the_same_module_and_not_two_kinds_of_one() -> None:
    class Level(Recorder):
        level = 0

        def init_downstream_modules(self, modules: HttpModules) -> None:
            modules.add_module(ResponseCompressionBuilder(level=self.level))

    one, two = Level(), Level()
    filters = bind(Chain(one, two))
    assert filters.modules is not None
    assert len(filters.modules.builders) == 1
    two.level = 6
    with pytest.raises(ValueError, match="there is a module ResponseCompression already"):
        bind(Chain(one, two))


class Answering(Recorder):
    async def fail_to_proxy(self, session: Session, e: ProxyError, ctx: Any) -> FailToProxy:
        await session.respond_error(599)
        return FailToProxy(599)


async def test_the_last_member_that_answers_errors_does(autojump_clock: MockClock) -> None:
    class Plain(ProxyHttp[None]):
        def new_ctx(self) -> None:
            return None

        async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
            raise ProxyError.status(503)

    chain = Chain(Answering(), Plain())
    async with open_matrix(chain, {}, PAIRINGS[0]) as gateway:
        assert (await gateway.exchange()).status == 599
