"""A service that is asked about each request first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.h2_wire import AnyFields
from tests._support.matrix import Exchange, Matrix, Pairing, keeps, open_matrix
from tests._support.recording import ORIGIN, Ctx, Message
from tests.modules._modular import Modular
from tests.modules._world import PLAIN, World, open_modules, some_pairings
from trioproxy import ErrorType, HttpPeer, Session
from trioproxy.modules import ForwardAuth, ForwardAuthModule, ForwardingFields

AUTH = "auth.test"


@attrs.define
class Service:
    """Answers all alike, and keeps what it was asked."""

    status: int = 200
    fields: AnyFields = ()
    body: bytes = b""
    asked: list[Message] = attrs.field(factory=list)
    gate: trio.Event | None = None

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(await exchange.message())
        if self.gate is not None:
            await self.gate.wait()
        await exchange.respond(self.status, self.fields, self.body)


def behind(
    service: Any,
    pairing: Pairing = PLAIN,
    *more: Any,
    hooks: dict[str, Callable[..., Any]] | None = None,
    **options: Any,
) -> tuple[list[Message], ForwardAuth, AbstractAsyncContextManager[World]]:
    """Return what comes to the origin, the module, and the gateway to open."""
    asked: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        asked.append(await exchange.message())
        await exchange.respond(200, [("set-cookie", "o=1"), ("x-user", "origin")], b"hello")

    module = ForwardAuth(peer=HttpPeer(AUTH, 80), **options)
    origins = {str(ORIGIN.host): origin, AUTH: service}
    opened = open_modules(pairing, module, *more, origins=origins, hooks=hooks)
    return asked, module, opened


def reach(world: World, module: ForwardAuth) -> None:
    """Let the service be reached over the network in memory."""
    object.__setattr__(module, "peer", world.gateway.peer(HttpPeer(AUTH, 80)))


@some_pairings
async def test_a_request_that_the_service_likes_goes_on(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    fields = [("x-user", "ann"), ("x-role", "a"), ("x-role", "b"), ("x-other", "1")]
    service = Service(204, [*fields, ("set-cookie", "s=2")])
    seen: list[int] = []

    def request_filter(session: Session, _ctx: object) -> bool:
        found = session.downstream_modules_ctx.get(ForwardAuthModule)
        assert found is not None
        assert found.answer is not None
        seen.append(found.answer.status)
        return False

    asked, module, opened = behind(
        service,
        pairing,
        path="/verify?x=1",
        to_origin=["X-User", "X-Role", "X-Team"],
        to_client=["Set-Cookie", "X-User"],
        hooks={"request_filter": request_filter},
    )
    sent = [
        ("authorization", "Bearer t"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-user", "root"),
        ("x-team", "root"),
        ("content-type", "text/plain"),
    ]
    async with opened as world:
        reach(world, module)
        answer = await world.exchange("POST", "/path?q=1", fields=sent, body=b"data")
    assert answer.status == 200
    (question,) = service.asked
    got = {name.decode(): value.decode() for name, value in question.fields}
    got.pop("host", None)
    assert got == {
        "authorization": "Bearer t",
        "cookie": "a=1; b=2",
        "x-forwarded-method": "POST",
        "x-forwarded-proto": pairing.down.scheme,
        "x-forwarded-host": "site.test",
        "x-forwarded-uri": "/path?q=1",
        "x-forwarded-for": "203.0.113.9",
    }
    assert question.body == b""
    (request,) = asked
    assert request.body == b"data"
    assert request.get("authorization") == "Bearer t"
    told = [pair for pair in request.fields if pair[0] in (b"x-user", b"x-role", b"x-team")]
    assert told == [(b"x-user", b"ann"), (b"x-role", b"a"), (b"x-role", b"b")]
    assert request.get("x-other") is None
    assert [value for name, value in answer.fields if name == b"set-cookie"] == [b"o=1", b"s=2"]
    assert answer.get("x-user") == "ann"
    assert seen == [204]


@some_pairings
@pytest.mark.parametrize("status", [302, 401, 403, 404, 429])
async def test_a_refusal_goes_to_the_client(
    pairing: Pairing, status: int, autojump_clock: MockClock
) -> None:
    fields = [
        ("www-authenticate", 'Bearer realm="x"'),
        ("location", "https://login.test/?to=/path"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("content-type", "text/html"),
        ("cache-control", "public, max-age=100"),
        ("x-secret", "inner"),
        ("server", "inner"),
    ]
    service = Service(status, fields, b"<p>no</p>")
    asked, module, opened = behind(service, pairing)
    async with opened as world:
        reach(world, module)
        answer = await world.exchange("POST", body=b"data")
        assert not asked
    assert (answer.status, answer.body) == (status, b"<p>no</p>")
    kept = [(name.decode(), value.decode()) for name, value in answer.fields]
    assert [pair for pair in kept if pair[0] not in ("date", "connection")] == [
        *fields[:5],
        ("cache-control", "no-store"),
        ("content-length", "9"),
    ]


@pytest.mark.parametrize("status", [500, 502, 503, 600])
async def test_a_service_that_fails_lets_nobody_on(
    status: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    asked, module, opened = behind(Service(status, [("set-cookie", "a=1")], b"trace"))
    async with opened as world:
        reach(world, module)
        answer = await world.exchange(fields=[("authorization", "Basic aHVzaA==")])
        assert (answer.status, answer.body) == (503, b"cannot authenticate now\n")
        assert answer.get("cache-control") == "no-store"
        assert answer.get("set-cookie") is None
        assert not asked
    assert "aHVzaA" not in caplog.text


async def hangs_up(exchange: Exchange) -> None:
    await exchange.message()
    exchange.close()


async def cuts(exchange: Exchange) -> None:
    await exchange.message()
    await exchange.send_head(200, [("content-length", "5")])
    await exchange.send_data(b"abc")
    exchange.close()


@pytest.mark.parametrize(
    "service",
    [ErrorType.ConnectRefused, hangs_up, cuts, Service(200, [], b"x" * 70_000)],
    ids=["refused", "hangs up", "cut", "too much"],
)
async def test_a_service_that_gives_no_whole_answer_lets_nobody_on(
    service: Any, autojump_clock: MockClock
) -> None:
    asked, module, opened = behind(service)
    async with opened as world:
        reach(world, module)
        assert (await world.exchange()).status == 503
        assert not asked


async def test_a_service_that_takes_too_long_lets_nobody_on(autojump_clock: MockClock) -> None:
    service = Service(gate=trio.Event())
    asked, module, opened = behind(service, timeout=3)
    async with opened as world:
        reach(world, module)
        started = trio.current_time()
        assert (await world.exchange()).status == 503
        assert trio.current_time() - started == 3
        assert not asked
        assert service.gate is not None
        service.gate.set()


async def test_a_client_that_leaves_gives_the_question_up(autojump_clock: MockClock) -> None:
    gone = trio.Event()

    async def service(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.gone()
        gone.set()

    asked, module, opened = behind(service)
    async with opened as world:
        reach(world, module)
        client = await world.gateway.connect()
        await client.request()
        await wait_all_tasks_blocked()
        client.close()
        await gone.wait()
        assert not asked


async def test_two_authorization_fields_are_one_too_many(autojump_clock: MockClock) -> None:
    service = Service()
    asked, module, opened = behind(service)
    async with opened as world:
        reach(world, module)
        fields = [("authorization", "Bearer good"), ("Authorization", "Bearer other")]
        assert (await world.exchange(fields=fields)).status == 400
        assert not asked
        assert not service.asked


async def test_the_service_is_told_what_is_believed_of_the_client(
    autojump_clock: MockClock,
) -> None:
    service = Service()
    forwarding = ForwardingFields(trusted=["203.0.113.0/24"])
    asked, module, opened = behind(service, PLAIN, forwarding)
    sent = [
        ("x-forwarded-for", "6.6.6.6, 1.1.1.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.test"),
        ("x-forwarded-uri", "/innocent"),
        ("x-forwarded-method", "GET"),
    ]
    async with opened as world:
        reach(world, module)
        assert (await world.exchange("DELETE", "/path", fields=sent)).status == 200
    (question,) = service.asked
    assert question.get("x-forwarded-for") == "1.1.1.1"
    assert question.get("x-forwarded-proto") == "https"
    assert question.get("x-forwarded-host") == "shop.test"
    assert question.get("x-forwarded-uri") == "/path"
    assert question.get("x-forwarded-method") == "DELETE"
    assert len(asked) == 1


async def test_connection_cannot_take_away_what_the_origin_is_told(
    autojump_clock: MockClock,
) -> None:
    service = Service(200, [("x-user", "ann")])
    asked, module, opened = behind(service, to_origin=["x-user"])
    async with opened as world:
        reach(world, module)
        await world.exchange(fields=[("connection", "x-user, authorization")])
    assert asked[0].get("x-user") == "ann"


async def test_a_lost_connection_to_the_service_is_replaced(autojump_clock: MockClock) -> None:
    count = 0

    async def service(exchange: Exchange) -> None:
        nonlocal count
        await exchange.message()
        count += 1
        if exchange.index == 1 and exchange.connection == 0:
            exchange.close()
            return
        await exchange.respond(200)

    asked, module, opened = behind(service)
    async with opened as world:
        reach(world, module)
        for _ in range(3):
            assert (await world.exchange()).status == 200
        assert world.gateway.asked.count(AUTH) == 2
    assert count == 4
    assert len(asked) == 3


async def test_some_requests_are_not_asked_about(autojump_clock: MockClock) -> None:
    def guarded(session: Session) -> bool:
        return session.req_header().path != "/open"

    service = Service(403)
    asked, module, opened = behind(service, to_origin=["x-user"], applies=guarded)
    async with opened as world:
        reach(world, module)
        assert (await world.exchange("GET", "/open", fields=[("x-user", "root")])).status == 200
        assert (await world.exchange("GET", "/shut")).status == 403
    assert asked[0].get("x-user") is None
    assert len(service.asked) == 1


# -- by a subrequest -----------------------------------------------------------------------------


@attrs.define(eq=False, slots=False)
class Spawning(Modular):
    """Lets its requests make others, and sends those of the module to the service."""

    allowed: bool = attrs.field(default=True, kw_only=True)
    gateway: Matrix | None = attrs.field(default=None, kw_only=True)

    def allow_spawning_subrequest(self, session: Session, ctx: Ctx) -> bool:
        return self.allowed and not session.is_subrequest()

    async def upstream_peer(self, session: Session, ctx: Ctx) -> HttpPeer:
        assert self.gateway is not None
        made = session.subrequest_ctx
        name = AUTH if made is not None else str(ORIGIN.host)
        assert made is None or isinstance(made.user_ctx, ForwardAuthModule)
        return self.gateway.peer(HttpPeer(name, 80))


@asynccontextmanager
async def spawning(
    service: Any, pairing: Pairing = PLAIN, *, allowed: bool = True, **options: Any
) -> AsyncIterator[tuple[Matrix, list[Message]]]:
    """Run a gateway that asks the service by subrequests; give it and what comes to the origin."""
    asked: list[Message] = []
    proxy = Spawning(builders=[ForwardAuth(path="/verify", **options)], allowed=allowed)
    origins = {str(ORIGIN.host): keeps(asked), AUTH: service}
    async with open_matrix(proxy, origins, pairing) as gateway:
        proxy.gateway = gateway
        yield gateway, asked


@some_pairings
async def test_the_service_may_be_asked_by_a_subrequest(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    service = Service(200, [("x-user", "ann")], b"content")
    async with spawning(service, pairing, to_origin=["X-User"]) as (gateway, asked):
        sent = [("authorization", "Bearer t"), ("x-user", "root")]
        answer = await gateway.exchange("POST", "/path?q", fields=sent, body=b"data")
        assert (answer.status, answer.body) == (200, b"hello")
        service.status, service.fields = 401, [("www-authenticate", "Bearer")]
        answer = await gateway.exchange("POST", "/path?q", fields=sent, body=b"data")
        assert (answer.status, answer.body) == (401, b"content")
        assert answer.get("www-authenticate") == "Bearer"
        assert answer.get("cache-control") == "no-store"
    (request,) = asked
    assert (request.body, request.get("x-user")) == (b"data", "ann")
    question = service.asked[0]
    assert question.get("authorization") == "Bearer t"
    assert question.get("x-forwarded-uri") == "/path?q"
    assert question.body == b""


@pytest.mark.parametrize(
    "service",
    [ErrorType.ConnectRefused, hangs_up, cuts, Service(500), Service(200, [], b"x" * 70_000)],
    ids=["refused", "hangs up", "cut", "500", "too much"],
)
async def test_a_subrequest_that_fails_lets_nobody_on(
    service: Any, autojump_clock: MockClock
) -> None:
    async with spawning(service) as (gateway, asked):
        assert (await gateway.exchange()).status == 503
        assert not asked


async def test_a_subrequest_that_takes_too_long_lets_nobody_on(autojump_clock: MockClock) -> None:
    gone = trio.Event()

    async def service(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.gone()
        gone.set()

    async with spawning(service, timeout=3) as (gateway, asked):
        started = trio.current_time()
        assert (await gateway.exchange()).status == 503
        assert trio.current_time() - started == 3
        await gone.wait()
        assert not asked


async def test_without_leave_to_make_a_subrequest_nobody_is_let_on(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with spawning(Service(), allowed=False) as (gateway, asked):
        assert (await gateway.exchange()).status == 500
        assert not asked
    assert "allow_spawning_subrequest is to return True" in caplog.text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"peer": "http://auth"}, "peer='http://auth'"),
        ({"path": "verify"}, "path='verify'"),
        ({"path": "/a b"}, "path='/a b'"),
        ({"path": "/a#b"}, "path='/a#b'"),
        ({"to_service": ["Content-Length"]}, "to_service has 'Content-Length'"),
        ({"to_origin": ["Host"]}, "to_origin has 'Host'"),
        ({"to_origin": "X-User"}, "several are right"),
        ({"to_client": ["Transfer-Encoding"]}, "to_client has"),
        ({"to_client": ["a b"]}, "to_client='a b'"),
        ({"timeout": 0}, "timeout=0"),
        ({"max_body_bytes": -1}, "max_body_bytes=-1"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ForwardAuth(**({"peer": HttpPeer(AUTH, 80)} | options))
