"""Requests that callbacks make: what they see, what comes of them, and what is left of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
import trio
from trio.testing import MockClock

from tests._support.caching import settled
from tests._support.recording import (
    GET,
    OK,
    ORIGIN,
    ORIGIN_2,
    Ctx,
    CutError,
    Message,
    Origins,
    Recorder,
    Wire,
    answers,
    chunked,
    in_pieces,
    keeps,
    open_gateway,
    post,
)
from tests._support.spawning import Spawning, open_spawning, spawner_of
from trioproxy import (
    ErrorSource,
    ErrorType,
    Headers,
    HttpPeer,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    Route,
    ServerConf,
    Session,
)
from trioproxy.proxy._compose import bind
from trioproxy.subrequests import (
    SUBREQUEST_ERROR,
    BodyMode,
    Subrequest,
    SubrequestCtx,
)

SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def by_target(session: Session, _ctx: Ctx) -> HttpPeer:
    """Choose the second origin for a subrequest."""
    return ORIGIN_2 if session.is_subrequest() else ORIGIN


# -- the callback --------------------------------------------------------------------------------


async def test_a_callback_is_asked_once_for_every_request_behind_the_early_filter() -> None:
    spawners: list[object] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        spawners.append(session.subrequest_spawner)
        if session.subrequest_spawner is not None:
            await session.subrequest_spawner.pipe()
            return True
        return False

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"
        statistics = gateway.services
        assert (statistics.subrequests_total, statistics.sessions_total) == (1, 2)

    assert proxy.names() == [
        "new_ctx",
        "early_request_filter",
        "allow_spawning_subrequest",
        "request_filter",
        *("new_ctx", "early_request_filter", "allow_spawning_subrequest", "request_filter"),
        *("proxy_upstream_filter", "upstream_peer", "connected_to_upstream"),
        *("upstream_request_filter", "request_body_filter"),
        *("upstream_response_filter", "response_filter"),
        *("upstream_response_body_filter", "response_body_filter"),
        "logging",
        "logging",
    ]
    assert spawners[0] is not None
    assert spawners[1] is None


async def test_without_leave_there_is_no_spawner() -> None:
    seen: list[object] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        seen.append(session.subrequest_spawner)
        return False

    proxy = Spawning(
        hooks={"request_filter": request_filter, "allow_spawning_subrequest": lambda *_: False}
    )
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 200
    assert seen == [None]


async def test_an_exception_of_the_callback_fails_the_request() -> None:
    def mistake(*_args: object) -> bool:
        raise ValueError("ours")

    proxy = Spawning(hooks={"allow_spawning_subrequest": mistake})
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500
    assert isinstance(proxy.the("logging").args["e"].cause, ValueError)


# -- what a subrequest is ------------------------------------------------------------------------


async def test_it_is_a_copy_of_the_request_as_it_stands_and_knows_what_it_is_for() -> None:
    seen: list[SubrequestCtx | None] = []
    asked: list[Message] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        seen.append(session.subrequest_ctx)
        if session.is_subrequest():
            assert not session.is_http2()
            assert session.client_addr() == "198.51.100.1:50000"
            assert session.is_body_empty()
            return False
        session.req_header().headers.set("X-Edited", "yes")
        async with spawner_of(session).open(user_ctx="what for") as subrequest:
            assert (await subrequest.response_header()).status == 200
            assert await subrequest.response_header() is subrequest.response
            assert await subrequest.read() == b"second"
            assert subrequest.ended
        assert subrequest.error is None
        return False

    proxy = Spawning(hooks={"request_filter": request_filter, "upstream_peer": by_target})
    origins = {ORIGIN.name: answers(OK), ORIGIN_2.name: keeps(asked, SECOND)}
    async with open_spawning(proxy, origins) as gateway:
        assert (await gateway.exchange(post(b"the body"))).body == b"hello"

    (message,) = asked
    assert message.start == b"POST /path HTTP/1.1"
    assert message.get("x-edited") == "yes"
    assert message.get("content-length") in (None, "0")
    assert message.body == b""
    assert seen[0] is None
    assert seen[1] is not None
    assert (seen[1].user_ctx, seen[1].depth, seen[1].background) == ("what for", 1, False)
    assert seen[1].body_mode is BodyMode.NO_BODY


async def test_it_goes_the_way_that_its_request_has_been_routed() -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        head = session.req_header().copy()
        head.path = "/verify"
        await spawner_of(session).pipe(head)
        return True

    proxy = Spawning(hooks={"request_filter": request_filter, "upstream_peer": by_target})
    origins = {ORIGIN.name: answers(OK), ORIGIN_2.name: answers(SECOND)}
    async with open_spawning(proxy, origins) as gateway:
        gateway.services.filters = bind(Route({"/path": proxy, "/": Recorder()}))
        assert (await gateway.exchange(GET)).body == b"second"


async def test_its_head_can_be_another_one() -> None:
    asked: list[Message] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        head = RequestHeader("PUT", "/other?q=1", {"Host": "other.test", "Upgrade": "x"})
        await spawner_of(session).pipe(head, body=b"new")
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, keeps(asked)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"

    (message,) = asked
    assert message.start == b"PUT /other?q=1 HTTP/1.1"
    assert (message.get("host"), message.get("content-length")) == ("other.test", "3")
    assert message.get("upgrade") is None
    assert message.body == b"new"


async def test_one_without_a_host_gets_that_of_its_peer() -> None:
    asked: list[Message] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if not session.is_subrequest():
            async with spawner_of(session).open(RequestHeader("GET", "/no-host")) as subrequest:
                await subrequest.drain()
            async with spawner_of(session).open() as subrequest:
                await subrequest.drain()
        return False

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, keeps(asked)) as gateway:
        assert (await gateway.exchange(b"GET /old HTTP/1.0\r\n\r\n")).status == 200
    assert [each.get("host") for each in asked] == ["origin.test"] * 3


@pytest.mark.parametrize("background", [False, True])
async def test_a_tunnel_is_none(background: bool) -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        head = RequestHeader("CONNECT", "origin.test:443", {"Host": "origin.test:443"})
        if background:
            spawner_of(session).spawn_background(head)
        else:
            await spawner_of(session).pipe(head)
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500
        assert gateway.connector.asked == []
    error = proxy.the("logging").args["e"]
    assert "a subrequest cannot be CONNECT" in str(error)


@pytest.mark.parametrize("size", [1, 65535, 65536, 300_000])
@pytest.mark.parametrize("iterated", [False, True])
async def test_its_body_is_given_whole_or_piece_by_piece(size: int, iterated: bool) -> None:
    asked: list[Message] = []
    data = bytes(i % 251 for i in range(size))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, 1000):
            yield data[start : start + 1000]
            await trio.lowlevel.checkpoint()

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            assert session.subrequest_ctx is not None
            assert session.subrequest_ctx.body_mode is BodyMode.EXPECT_BODY
            return False
        await spawner_of(session).pipe(body=pieces() if iterated else data)
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, keeps(asked)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"

    assert asked[0].body == data
    assert (asked[0].get("content-length") is None) is iterated


async def test_the_clients_body_is_shared_by_one_after_another() -> None:
    asked: list[Message] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        spawner = spawner_of(session)
        shared = spawner.share_body()
        async with spawner.open(body=shared) as first:
            assert (await first.response_header()).status == 200
            await first.drain()
        assert shared.saved == b"one two "
        assert shared.complete
        await spawner.pipe(body=shared)
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, keeps(asked)) as gateway:
        reply = await gateway.exchange(post(b"one ", b"two ", framing="chunked"))
        assert reply.body == b"hello"

    assert [each.body for each in asked] == [b"one two ", b"one two "]


async def test_a_body_of_which_too_much_was_read_is_shared_once() -> None:
    asked: list[Message] = []
    raised: list[ProxyError] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        spawner = spawner_of(session)
        shared = spawner.share_body(save=3)
        async with spawner.open(body=shared) as first:
            await first.drain()
        assert shared.saved is None
        try:
            await spawner.pipe(body=shared)
        except ProxyError as exc:
            raised.append(exc)
            raise
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, keeps(asked)) as gateway:
        assert (await gateway.exchange(post(b"four"))).status == 500

    assert [each.body for each in asked] == [b"four"]
    assert "more than the 3 bytes that are saved" in str(raised[0])
    # The subrequest was given up, not sent as if it were whole.
    assert [str(call.args["e"].root_etype()) for call in proxy.of("logging")[1:]] == [
        "ConnectionClosed",
        "InternalError",
    ]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_that_was_read_before_is_shared_from_its_start(
    framing: Literal["length", "chunked"], whole: bool
) -> None:
    asked: list[Message] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        while await session.read_request_body() is not None and whole:
            pass
        spawner = spawner_of(session)
        await spawner.pipe(body=spawner.share_body(save=0))
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, keeps(asked), lockstep=True) as gateway:
        client = gateway.connect()
        first, second = post(b"one ", b"two", framing=framing).split(b"two")
        await client.send(first)
        await client.send(b"two" + second)
        assert (await client.message()).status == 200
    assert [each.body for each in asked] == [b"one two"]


# -- piping --------------------------------------------------------------------------------------


async def test_a_client_that_gets_no_informational_responses_gets_the_final_one() -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        session.set_ignore_info_resp(True)
        await spawner_of(session).pipe()
        return True

    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(hints + OK)) as gateway:
        response = await gateway.exchange(GET)
        assert (response.status, response.body) == (200, b"hello")


async def test_a_filter_sees_what_is_piped_and_may_drop_or_replace_it() -> None:
    seen: list[object] = []

    async def task_filter(task: Any) -> Any:
        seen.append(task if not isinstance(task, Headers) else task.items())
        if isinstance(task, ResponseHeader):
            task.headers.set("X-Piped", "yes")
            return task
        if isinstance(task, bytes):
            return task.upper() if task != b"drop" else None
        return task

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        subrequest = await spawner_of(session).pipe(task_filter=task_filter)
        assert subrequest.response is not None
        return True

    pieces = [b"3\r\none\r\n", b"4\r\ndrop\r\n", chunked(b"two", trailers=b"X-Sum: 1\r\n")]
    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, in_pieces(CHUNKED, *pieces)) as gateway:
        reply = await gateway.exchange(GET)

    assert reply.get("x-piped") == "yes"
    assert reply.body == b"ONETWO"
    assert reply.trailers == [(b"x-sum", b"1")]
    assert seen[1:] == [b"one", b"drop", b"two", [("X-Sum", "1")]]


async def test_a_filter_that_returns_something_else_is_told_what_is_right() -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        await spawner_of(session).pipe(task_filter=lambda _task: b"no head")
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500
    error = proxy.of("logging")[-1].args["e"]
    assert "for ResponseHeader: that, or None, is right" in str(error.cause)


async def test_several_are_piped_into_one_response() -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        spawner = spawner_of(session)
        for number in range(3):
            await spawner.pipe(task_filter=without_length, end_of_stream=number == 2)
        return True

    def without_length(task: Any) -> Any:
        if isinstance(task, ResponseHeader):
            task.headers.remove("content-length")
        return task

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(OK, SECOND, OK)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hellosecondhello"


async def test_what_the_first_found_decides_what_the_second_asks() -> None:
    asked: list[Message] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        spawner = spawner_of(session)
        async with spawner.open(RequestHeader("GET", "/token", {"Host": "auth.test"})) as first:
            token = await first.read(64)
        head = session.req_header().copy()
        head.headers.set("Authorization", b"Bearer " + token)
        await spawner.pipe(head)
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, keeps(asked)) as gateway:
        assert (await gateway.exchange(GET)).status == 200
    assert [each.start for each in asked] == [b"GET /token HTTP/1.1", b"GET /path HTTP/1.1"]
    assert asked[1].get("authorization") == "Bearer hello"


async def test_an_answer_to_head_has_no_body_whatever_is_piped() -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        head = session.req_header().copy()
        head.method = "GET"
        await spawner_of(session).pipe(head)
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(OK)) as gateway:
        client = gateway.connect()
        await client.send(GET.replace(b"GET", b"HEAD") + GET)
        assert (await client.message(bodiless=True)).get("content-length") == "5"
        assert (await client.message()).body == b"hello"


async def test_a_slow_client_slows_the_subrequest_down(autojump_clock: MockClock) -> None:
    sent: list[int] = []

    async def endless(wire: Wire) -> None:
        await wire.message()
        await wire.send(CHUNKED)
        while True:
            await wire.send(b"4000\r\n" + bytes(0x4000) + b"\r\n")
            sent.append(0x4000)

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        async with spawner_of(session).open() as subrequest:
            assert (await subrequest.response_header()).status == 200
            await trio.sleep(10)
            assert len(await anext(subrequest)) > 0
            raise ProxyError.status(503)

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, endless, lockstep=True) as gateway:
        assert (await gateway.exchange(GET)).status == 503
        # Nobody has read for ten seconds: what lies between is bounded.
        assert sum(sent) <= 262144
    # The one that was not wanted any more was cancelled, and says so.
    assert proxy.of("logging")[0].args["e"].etype == ErrorType.ConnectionClosed


# -- failures ------------------------------------------------------------------------------------


async def test_one_that_fails_before_it_has_answered_is_answered_as_a_client_is() -> None:
    errors: list[ProxyError | None] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        async with spawner_of(session).open() as subrequest:
            assert (await subrequest.response_header()).status == 502
            await subrequest.drain()
        errors.append(subrequest.error)
        return False

    proxy = Spawning(hooks={"request_filter": request_filter, "upstream_peer": by_target})
    origins: Origins = {ORIGIN.name: answers(OK), ORIGIN_2.name: ErrorType.ConnectRefused}
    async with open_spawning(proxy, origins) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"
    assert errors[0] is not None
    assert errors[0].etype == ErrorType.ConnectRefused


async def test_one_that_is_cut_says_so_and_where_it_came_from() -> None:
    async def cut(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        await spawner_of(session).pipe()
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, cut) as gateway:
        client = gateway.connect()
        await client.send(GET)
        with pytest.raises(CutError):
            await client.message()

    error = proxy.of("logging")[-1].args["e"]
    assert error.etype == SUBREQUEST_ERROR
    assert error.esource is ErrorSource.UPSTREAM
    assert "the subrequest GET /path was cut" in str(error)
    assert error.root_etype() == ErrorType.ConnectionClosed
    assert "in the middle of a response's content" in str(error)


async def test_a_longer_answer_than_is_read_is_an_error() -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        async with spawner_of(session).open() as subrequest:
            await subrequest.read(4)
        return False

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 502
    assert "has answered with more than 4 bytes" in str(proxy.of("logging")[-1].args["e"])


async def test_what_the_block_raises_comes_out_of_it_as_itself() -> None:
    class OursError(Exception):
        pass

    caught: list[Exception] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if not session.is_subrequest():
            try:
                async with spawner_of(session).open():
                    raise OursError
            except OursError as exc:
                caught.append(exc)
        return False

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 200
    assert len(caught) == 1


async def test_a_body_that_fails_gives_the_subrequest_up() -> None:
    asked: list[Message] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError("no more of it")

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        await spawner_of(session).pipe(body=pieces())
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, keeps(asked)) as gateway:
        assert (await gateway.exchange(GET)).status == 500
    assert asked == []
    assert isinstance(proxy.of("logging")[-1].args["e"].cause, ValueError)


async def test_they_are_not_deeper_than_eight() -> None:
    errors: list[ProxyError] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        try:
            await spawner_of(session).pipe()
        except ProxyError as exc:
            errors.append(exc)
            raise
        return True

    proxy = Spawning(hooks={"request_filter": request_filter}, depth=100)
    async with open_spawning(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 500
        services = gateway.services
        assert (services.subrequests_total, services.subrequests_refused) == (8, 1)
    assert len(errors) == 1
    assert "more than 8 deep" in str(errors[0])
    assert len(proxy.of("logging")) == 9


async def test_the_limit_of_sessions_does_not_keep_out_what_one_of_them_asks_for() -> None:
    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        await spawner_of(session).pipe()
        return True

    proxy = Spawning(hooks={"request_filter": request_filter})
    conf = ServerConf(max_sessions=1)
    async with open_spawning(proxy, answers(OK), conf=conf) as gateway:
        assert (await gateway.exchange(GET)).status == 200
        assert gateway.services.sessions_shed == 0


# -- in the background ---------------------------------------------------------------------------


async def test_one_in_the_background_outlives_its_request(autojump_clock: MockClock) -> None:
    asked: list[Message] = []
    go = trio.Event()
    started: list[bool] = []

    async def slow(wire: Wire) -> None:
        asked.append(await wire.message())
        await go.wait()
        await wire.send(OK)
        await wire.more()

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if not session.is_subrequest():
            started.append(spawner_of(session).spawn_background(body=b"news", user_ctx=1))
        return False

    proxy = Spawning(hooks={"request_filter": request_filter, "upstream_peer": by_target})
    async with open_spawning(proxy, {ORIGIN.name: answers(OK), ORIGIN_2.name: slow}) as gateway:
        assert (await gateway.exchange(GET)).status == 200
        await settled()
        assert [call.args["session"].is_subrequest() for call in proxy.of("logging")] == [False]
        assert gateway.services.background == gateway.services.subrequests == 1
        go.set()
        await settled()
        assert gateway.services.background == gateway.services.subrequests == 0

    assert started == [True]
    assert asked[0].body == b"news"
    session = proxy.of("logging")[1].args["session"]
    assert session.subrequest_ctx.background
    assert session.subrequest_ctx.user_ctx == 1


@pytest.mark.parametrize("reason", ["too many", "draining", "no nursery", "too deep"])
async def test_none_is_started_in_the_background_where_that_cannot_be(reason: str) -> None:
    started: list[bool] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        services = gateway.services
        if reason == "too deep":
            session.subrequest_ctx = SubrequestCtx(depth=8)
        services.draining = reason == "draining"
        if reason == "too many":
            services.background = services.conf.max_background_requests
        nursery = services.nursery
        if reason == "no nursery":
            services.nursery = None
        started.append(spawner_of(session).spawn_background())
        services.nursery, services.draining = nursery, False
        if reason == "too many":
            services.background = 0
        return False

    proxy = Spawning(hooks={"request_filter": request_filter}, depth=100)
    async with open_spawning(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).status == 200
        assert gateway.services.subrequests_refused == 1
        assert gateway.services.subrequests_total == 0
    assert started == [False]


async def test_no_subrequest_is_too_long_to_be_looked_at_by_its_repr() -> None:
    shown: list[str] = []

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        if session.is_subrequest():
            return False
        spawner = spawner_of(session)
        shown.append(repr(spawner))
        shared = spawner.share_body(save=2)
        shown.append(repr(shared))
        async with spawner.open(body=shared) as subrequest:
            shown.append(repr(subrequest))
            await subrequest.response_header()
            shown.append(repr(subrequest))
            await subrequest.drain()
            shown.append(repr(subrequest))
        shown.append(repr(shared))
        return False

    proxy = Spawning(hooks={"request_filter": request_filter})
    async with open_spawning(proxy, answers(OK)) as gateway:
        await gateway.exchange(post(b"abc"))
    assert shown == [
        "<SubrequestSpawner of <Session POST '/path' from 198.51.100.1:50000>>",
        "<SharedBody 0 bytes saved>",
        "<Subrequest POST '/path' not asked>",
        "<Subrequest POST '/path' answering>",
        "<Subrequest POST '/path' ended>",
        "<SharedBody more than can be saved, complete>",
    ]
    assert isinstance(Subrequest.error, property)
