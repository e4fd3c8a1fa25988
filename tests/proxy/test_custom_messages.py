"""A protocol of one's own on either side of the proxy, and the messages beside its content."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from examples._chat import MESSAGE, PREFIX, LengthPrefixed, Party
from tests._support.recording import (
    GET,
    OK,
    ORIGIN_2,
    Ctx,
    CutError,
    Gateway,
    Recorder,
    Wire,
    answers,
    open_gateway,
    post,
    raises,
)
from tests._support.steps import AtStep, run_with, some_steps, use_one_schedule
from trioproxy import (
    ErrorSource,
    ErrorType,
    Headers,
    HttpPeer,
    PeerOptions,
    ProxyError,
    RequestHeader,
    ResponseHeader,
    ServerConf,
    Session,
)
from trioproxy.custom import END, CodecEvent, Data, Message, Trailers

PROTOCOL = LengthPrefixed()
PEER = HttpPeer("origin.test", 80, options=PeerOptions(custom=PROTOCOL))
ROOM = RequestHeader("JOIN", "/room", [("Host", "site.test")], version="lp/1")
FINE = ResponseHeader(200, [("X-One", "1")], version="lp/1")

Handler = Callable[[Party], Any]


@attrs.define(eq=False, slots=False)
class Chat(Recorder):
    """Keeps what the filters of messages were given, and what `custom_forwarding` was."""

    up: Callable[[bytes], Any] = bytes.upper
    down: Callable[[bytes], Any] = bytes.title
    seen: list[tuple[str, bytes, bool]] = attrs.field(factory=list)
    channels: list[Any] = attrs.field(factory=list)

    async def custom_forwarding(
        self,
        session: Session,
        ctx: Ctx,
        custom_message_to_upstream: trio.MemorySendChannel[bytes] | None,
        custom_message_to_downstream: trio.MemorySendChannel[bytes],
    ) -> None:
        self._note("custom_forwarding", ctx)
        self.channels = [custom_message_to_upstream, custom_message_to_downstream]
        await self._async("custom_forwarding", None, session, ctx)

    async def downstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: Ctx, final_hop: bool
    ) -> bytes | None:
        self.seen.append(("up", custom_message, final_hop))
        return self.up(custom_message)  # type: ignore[no-any-return]  # a test's

    async def upstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: Ctx, final_hop: bool
    ) -> bytes | None:
        self.seen.append(("down", custom_message, final_hop))
        return self.down(custom_message)  # type: ignore[no-any-return]  # a test's


def server(handler: Handler) -> Callable[[Wire], Any]:
    """Return an origin that speaks the protocol."""

    async def origin(wire: Wire) -> None:
        try:
            await handler(Party(wire.stream, PROTOCOL.server()))
        except (EOFError, CutError):
            pass

    return origin


def client(gateway: Gateway) -> Party:
    """Return a client that does."""
    return Party(gateway.connect_custom(PROTOCOL).stream, PROTOCOL.client())


async def exactly(party: Party, *expected: CodecEvent) -> None:
    """Receive just these, in this order."""
    for event in expected:
        assert await party.receive() == event


async def anyhow(party: Party, *expected: CodecEvent) -> None:
    """Receive these in any order: messages have none beside content."""
    left = list(expected)
    while left:
        left.remove(await party.receive())


async def until(party: Party, last: CodecEvent) -> list[CodecEvent]:
    """Return all that comes up to an event."""
    events = [await party.receive()]
    while events[-1] != last:
        events.append(await party.receive())
    return events


async def rest(party: Party) -> list[CodecEvent]:
    """Return all that comes until the connection ends."""
    events = []
    try:
        while True:
            events.append(await party.receive())
    except EOFError:
        return events


async def echo(party: Party) -> None:
    """Send every message back; the message ``end`` ends the response."""
    while True:
        event = await party.receive()
        if isinstance(event, RequestHeader):
            await party.send(FINE)
        elif isinstance(event, Message):
            await party.send(event)
            if event.data == b"END":
                await party.send(END)


# -- both sides speak it ---------------------------------------------------------------------------


async def test_an_exchange_is_that_of_http_with_messages_beside_it(autojump_clock: object) -> None:
    async def origin(party: Party) -> None:
        head = await party.receive()
        assert isinstance(head, RequestHeader)
        assert (head.method, head.path) == ("JOIN", "/room")
        assert head.headers.items() == [("Host", "site.test")]
        await exactly(
            party, Data(b"content"), Message(b"ONE"), Trailers(Headers([("T", "1")])), END
        )
        await party.send(FINE, Message(b"two"), Data(b"answer"))
        await exactly(party, Message(b"THREE"))
        await party.send(Message(b"four"), Trailers(Headers([("U", "2")])), END)
        await party.receive()

    proxy = Chat([PEER])
    async with open_gateway(proxy, server(origin)) as gateway:
        party = client(gateway)
        await party.send(ROOM, Data(b"content"))
        await trio.testing.wait_all_tasks_blocked()
        await party.send(Message(b"one"))
        await trio.testing.wait_all_tasks_blocked()
        await party.send(Trailers(Headers([("T", "1")])), END)
        await anyhow(party, FINE, Data(b"answer"), Message(b"Two"))
        await party.send(Message(b"three"))  # behind the request's end, before the response's
        await exactly(party, Message(b"Four"), Trailers(Headers([("U", "2")])), END)
    assert proxy.seen == [
        ("up", b"one", False),
        ("down", b"two", False),
        ("up", b"three", False),
        ("down", b"four", False),
    ]
    assert proxy.pieces("request_body_filter") == [(b"content", False), (None, True)]
    assert proxy.pieces("response_body_filter") == [(b"answer", False), (None, True)]
    assert proxy.names().count("custom_forwarding") == 1
    assert proxy.the("logging").args["e"] is None
    names = proxy.names()
    assert names.index("upstream_request_filter") < names.index("custom_forwarding")
    assert names.index("custom_forwarding") < names.index("request_body_filter")


async def test_every_split_of_an_exchange_gives_the_same(autojump_clock: object) -> None:
    codec = PROTOCOL.client()
    events = (ROOM, Data(b"body"), Message(b"one"), END, Message(b"end"))
    script = b"".join([codec.encode(event) for event in events])

    async def origin(party: Party) -> None:
        await exactly(party, ROOM)
        await anyhow(party, Data(b"body"), END, Message(b"ONE"), Message(b"END"))
        events = (FINE, Data(b"fine"), Message(b"two"), END)
        answer = b"".join([party.codec.encode(event) for event in events])
        cut = len(proxy.of("new_ctx")) % len(answer)
        await party.stream.send_all(answer[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await party.stream.send_all(answer[cut:])
        await party.receive()

    proxy = Chat([PEER])
    async with open_gateway(proxy, server(origin)) as gateway:
        for cut in range(len(script)):
            party = client(gateway)
            await party.stream.send_all(script[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await party.stream.send_all(script[cut:])
            await anyhow(party, FINE, Data(b"fine"), Message(b"Two"))
            await exactly(party, END)
            await trio.testing.wait_all_tasks_blocked()
            gateway.pool.close_idle()


async def test_connections_are_kept_on_both_sides(autojump_clock: object) -> None:
    proxy = Chat([PEER])
    async with open_gateway(proxy, server(echo)) as gateway:
        party = client(gateway)
        for _ in range(3):
            await party.send(ROOM, END, Message(b"end"))
            assert await until(party, END) in (
                [FINE, Message(b"End"), END],
                [Message(b"End"), FINE, END],
            )
        await trio.testing.wait_all_tasks_blocked()
        assert gateway.pool.statistics().idle == 1
        assert len(gateway.connector.asked) == 1
        # Two at once: the second one waits, with its messages.
        await party.send(ROOM, END, Message(b"end"), ROOM, END, Message(b"a"), Message(b"end"))
        await until(party, END)
        events = await until(party, END)
        assert [each.data for each in events if isinstance(each, Message)] == [b"A", b"End"]
    assert len(proxy.of("logging")) == 5


async def test_a_slow_filter_delays_the_end_and_nothing_else(autojump_clock: object) -> None:
    class Slow(Chat):
        async def upstream_custom_message_proxy_filter(
            self, session: Session, custom_message: bytes, ctx: Ctx, final_hop: bool
        ) -> bytes | None:
            await trio.sleep(10)
            return custom_message

    async def origin(party: Party) -> None:
        await party.receive()
        await party.send(FINE, Data(b"at once"), Message(b"a"), Message(b"b"), Data(b"last"), END)
        await party.receive()

    proxy = Slow([PEER])
    async with open_gateway(proxy, server(origin)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        events = await until(party, END)
        assert [each.data for each in events if isinstance(each, Message)] == [b"a", b"b"]
        assert b"".join(x.data for x in events if isinstance(x, Data)) == b"at oncelast"
        assert trio.current_time() == 20


async def test_none_drops_a_message(autojump_clock: object) -> None:
    proxy = Chat([PEER], up=lambda m: None if m == b"secret" else m.upper(), down=lambda m: m)
    async with open_gateway(proxy, server(echo)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END, *map(Message, (b"one", b"secret", b"", b"end")))
        events = await until(party, END)
        messages = [each.data for each in events if isinstance(each, Message)]
        assert messages == [b"ONE", b"", b"END"]


async def test_messages_are_put_in_from_the_side_unfiltered(autojump_clock: object) -> None:
    proxy = Chat([PEER])
    async with open_gateway(proxy, server(echo)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        await exactly(party, FINE)
        up, down = proxy.channels
        await down.send(b"to the client")
        await exactly(party, Message(b"to the client"))
        await up.send(b"to the origin")
        await exactly(party, Message(b"To The Origin"))
        await down.aclose()
        await party.send(Message(b"on"))
        await exactly(party, Message(b"On"))
        await up.send(b"END")
        await exactly(party, Message(b"End"), END)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await up.send(b"too late")
    assert [message for side, message, _ in proxy.seen if side == "up"] == [b"on"]
    assert (up.statistics().max_buffer_size, down.statistics().max_buffer_size) == (128, 128)


async def test_a_reader_that_stops_stops_the_writer(autojump_clock: object) -> None:
    sent = 0

    async def origin(party: Party) -> None:
        await party.receive()
        await trio.sleep_forever()

    class Stuck(Chat):
        async def downstream_custom_message_proxy_filter(self, *args: Any) -> bytes | None:
            await trio.sleep(1000)
            return b""

    async with open_gateway(Stuck([PEER]), server(origin), lockstep=True) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)

        async def flood() -> None:
            nonlocal sent
            try:
                while True:
                    await party.send(Message(bytes(1000)))
                    sent += 1000
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked()
            assert 10_000 < sent < 100_000
            (connection,) = gateway.connections
            assert connection.buffered < 100_000
            nursery.cancel_scope.cancel()
        gateway.stop()
        await gateway.ended()


# -- one side speaks HTTP --------------------------------------------------------------------------


async def test_a_client_s_messages_end_at_the_filter_where_the_origin_speaks_http(
    autojump_clock: object,
) -> None:
    release = trio.Event()

    async def origin(wire: Wire) -> None:
        message = await wire.message()
        assert message.start == b"JOIN /room HTTP/1.1"
        assert message.get("host") == "site.test"
        assert message.body == b"content"
        await release.wait()
        await wire.send(b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello")

    proxy = Chat()
    async with open_gateway(proxy, origin) as gateway:
        party = client(gateway)
        await party.send(ROOM, Data(b"content"), END, Message(b"one"))
        await trio.testing.wait_all_tasks_blocked()
        assert proxy.seen == [("up", b"one", True)]
        up, down = proxy.channels
        assert up is None
        await down.send(b"welcome")
        await exactly(party, Message(b"welcome"))
        release.set()
        head = await party.receive()
        assert isinstance(head, ResponseHeader)
        assert head.status == 201
        await exactly(party, Data(b"hello"), END)
    session = proxy.the("request_filter").args["session"]
    assert session.is_custom()
    assert not session.is_http2()


async def test_a_request_without_a_host_gets_the_peer_s(autojump_clock: object) -> None:
    async def origin(wire: Wire) -> None:
        assert (await wire.message()).get("host") == "origin.test"
        await wire.send(OK)

    async with open_gateway(Chat(), origin) as gateway:
        party = client(gateway)
        await party.send(RequestHeader("GET", "/"), END)
        await until(party, END)


async def test_an_origin_s_messages_end_at_the_filter_where_the_client_speaks_http(
    autojump_clock: object,
) -> None:
    async def origin(party: Party) -> None:
        head = await party.receive()
        assert isinstance(head, RequestHeader)
        assert head.method == "POST"
        await exactly(party, Data(b"body"), END, Message(b"from the side"))
        await party.send(FINE, Message(b"lost"), Data(b"hello"), END)
        await party.receive()

    proxy = Chat([PEER])
    async with open_gateway(proxy, server(origin)) as gateway:
        wire = gateway.connect()
        await wire.send(post(b"body"))
        await trio.testing.wait_all_tasks_blocked()
        up, down = proxy.channels
        await down.send(b"nobody hears this")
        await up.send(b"from the side")
        response = await wire.message()
        assert response.status == 200
        assert response.get("x-one") == "1"
        assert response.body == b"hello"
    assert proxy.seen == [("down", b"lost", True)]
    assert not proxy.of("request_filter")[0].args["session"].is_custom()


async def test_an_origin_that_won_a_race_gets_messages_from_the_side(
    autojump_clock: object,
) -> None:
    got: list[CodecEvent] = []

    async def origin(party: Party) -> None:
        await party.receive()
        await exactly(party, END)
        await party.send(FINE)
        got.append(await party.receive())
        await party.send(END)

    async def silent(wire: Wire) -> None:
        await wire.message()
        await wire.more()

    async def request_filter(session: Session, _ctx: Ctx) -> bool:
        session.hedge(1)
        return False

    async def say(_session: Session, _ctx: Ctx) -> None:
        await proxy.channels[0].send(b"from the side")

    hooks = {"request_filter": request_filter, "custom_forwarding": say}
    proxy = Chat([ORIGIN_2, PEER], hooks=hooks)
    origins = {ORIGIN_2.name: silent, PEER.name: server(origin)}
    async with open_gateway(proxy, origins) as gateway:
        with trio.fail_after(60):
            assert (await gateway.exchange(GET)).status == 200
    assert got == [Message(b"from the side")]


async def test_between_http_and_http_there_are_no_messages(autojump_clock: object) -> None:
    proxy = Chat()
    async with open_gateway(proxy, answers(OK)) as gateway:
        assert (await gateway.exchange(GET)).body == b"hello"
    assert not proxy.of("custom_forwarding")
    session = proxy.the("request_filter").args["session"]
    assert session.downstream_custom_message() is None


# -- answers of one's own --------------------------------------------------------------------------


async def test_a_filter_may_answer_and_talk_by_itself(autojump_clock: object) -> None:
    async def answer(session: Session, _ctx: Ctx) -> bool:
        channel = session.downstream_custom_message()
        assert channel is not None
        await session.write_response_header(ResponseHeader(200))
        while (message := await channel.receive_message()) != b"bye":
            assert message is not None
            await channel.send_message(message[::-1])
        await session.write_response_body(None, True)
        assert await channel.receive_message() is None
        await channel.send_message(b"dropped")
        return True

    proxy = Chat(hooks={"request_filter": answer})
    async with open_gateway(proxy, answers(OK)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END, Message(b"abc"), Message(b"bye"))
        assert isinstance(await party.receive(), ResponseHeader)
        await exactly(party, Message(b"cba"), END)
        await party.send(ROOM, END, Message(b"bye"))
        assert isinstance(await party.receive(), ResponseHeader)
        await exactly(party, END)


async def test_a_refusal_is_a_response_of_the_protocol(autojump_clock: object) -> None:
    proxy = Chat(hooks={"request_filter": raises(ProxyError.status(403))})
    async with open_gateway(proxy, answers(OK)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        head = await party.receive()
        assert isinstance(head, ResponseHeader)
        assert head.status == 403
        await exactly(party, END)


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [ErrorSource.UNSET, ErrorSource.UPSTREAM])
@pytest.mark.parametrize("side", ["up", "down"])
async def test_an_error_that_a_filter_raises_counts_whatever_its_source(
    side: str, source: ErrorSource, autojump_clock: object
) -> None:
    error = ProxyError.status(418)
    error.esource = source
    proxy = Chat([PEER])
    setattr(proxy, side, raises(error))
    async with open_gateway(proxy, server(echo)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END, Message(b"end"))
        assert FINE not in (came := await rest(party)) or END not in came
    assert proxy.the("logging").args["e"].root_etype() == ErrorType.HTTPStatus(418)


async def test_an_origin_that_takes_no_more_messages_is_still_heard(
    autojump_clock: object,
) -> None:
    async def origin(wire: Wire) -> None:
        party = Party(wire.stream, PROTOCOL.server())
        await until(party, END)
        await party.send(FINE)
        wire.stream.receive_stream.close()
        await trio.sleep(1)
        await party.send(Message(b"last"), Data(b"words"), END)

    proxy = Chat([PEER])
    async with open_gateway(proxy, origin) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        await exactly(party, FINE)
        for _ in range(5):
            await party.send(Message(b"still talking"))
            await trio.testing.wait_all_tasks_blocked()
        await anyhow(party, Message(b"Last"), Data(b"words"))
        await exactly(party, END)
    assert proxy.the("logging").args["e"] is None
    assert len(proxy.seen) == 6


@pytest.mark.parametrize("name", ["up", "down", "custom_forwarding", "kind", "injected"])
async def test_an_exception_fails_the_attempt(
    name: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    oops = raises(RuntimeError("oops"))
    proxy = Chat([PEER])
    if name == "custom_forwarding":
        proxy.hooks[name] = oops
    elif name == "kind":
        proxy.up = lambda _message: "text"
    elif name != "injected":
        setattr(proxy, name, oops)
    async with open_gateway(proxy, server(echo)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END, Message(b"one"))
        if name == "injected":
            await trio.testing.wait_all_tasks_blocked()
            await proxy.channels[1].send(5)
        events = await rest(party)
        await gateway.ended()
    assert FINE not in events or END not in events
    assert proxy.of("error_while_proxy")
    error = proxy.the("logging").args["e"]
    assert error.esource is ErrorSource.INTERNAL
    assert "trioproxy" in caplog.text or error is not None


@pytest.mark.parametrize("size", [1000, 1_000_000])
async def test_messages_are_sent_again_as_content_is(size: int, autojump_clock: object) -> None:
    async def origin(party: Party) -> None:
        await exactly(party, ROOM, END)
        messages = [await party.receive() for _ in range(size // 1000 + 1)]
        if len(proxy.of("upstream_peer")) < 3:
            return
        assert all(isinstance(each, Message) for each in messages)
        await party.send(FINE, END)
        await party.receive()

    proxy = Chat([PEER], hooks={"error_while_proxy": lambda _p, _s, e, _c, _r: _again(e)})
    async with open_gateway(proxy, server(origin)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        for _ in range(size // 1000):
            await party.send(Message(b"m" * 1000))
        await party.send(Message(b"last"))
        head = await party.receive()
        assert isinstance(head, ResponseHeader)
        assert head.status == (200 if size == 1000 else 502)
    assert len(proxy.of("upstream_peer")) == (3 if size == 1000 else 1)
    assert len(proxy.seen) == (6 if size == 1000 else 1001)


def _again(error: ProxyError) -> ProxyError:
    error.set_retry(True)
    return error


async def test_a_connection_that_had_become_stale_is_tried_again(autojump_clock: object) -> None:
    async def once(party: Party) -> None:
        await until(party, END)
        await party.send(FINE, END)

    proxy = Chat([PEER])
    async with open_gateway(proxy, server(once)) as gateway:
        for _ in range(3):
            party = client(gateway)
            await party.send(ROOM, END)
            await exactly(party, FINE, END)
    assert len(proxy.of("upstream_peer")) == 3


async def test_an_origin_that_breaks_its_protocol_is_a_502(autojump_clock: object) -> None:
    async def origin(wire: Wire) -> None:
        await wire.more()
        await wire.send(PREFIX.pack(1 << 20, MESSAGE))
        await wire.at_end()

    async with open_gateway(Chat([PEER]), origin) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        head = await party.receive()
        assert isinstance(head, ResponseHeader)
        assert head.status == 502


async def test_an_origin_that_stops_in_the_midst_cuts_the_response(autojump_clock: object) -> None:
    async def origin(party: Party) -> None:
        await until(party, END)
        await party.send(FINE, Data(b"half"), Message(b"m"))

    async with open_gateway(Chat([PEER]), server(origin)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        with pytest.raises(EOFError):
            await until(party, END)


async def test_an_origin_that_says_nothing_times_out(autojump_clock: object) -> None:
    async def origin(party: Party) -> None:
        while True:
            await party.receive()

    conf = ServerConf(read_timeout=7)
    async with open_gateway(Chat([PEER]), server(origin), conf=conf) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        head = await party.receive()
        assert isinstance(head, ResponseHeader)
        assert (head.status, trio.current_time()) == (502, 7)


async def test_bytes_on_an_idle_connection_to_an_origin_end_it(autojump_clock: object) -> None:
    async def origin(party: Party) -> None:
        await until(party, END)
        await party.send(FINE, END)
        await trio.sleep(1)
        await party.send(Message(b"out of turn"))
        await party.receive()

    async with open_gateway(Chat([PEER]), server(origin)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        await exactly(party, FINE, END)
        await trio.testing.wait_all_tasks_blocked()
        assert gateway.pool.statistics().idle == 1
        await trio.sleep(2)
        assert gateway.pool.statistics().idle == 0
        assert gateway.pool.statistics().unexpected_bytes == 1


@pytest.mark.parametrize("garbage", [PREFIX.pack(1 << 20, MESSAGE), PREFIX.pack(0, 9)])
async def test_a_client_that_breaks_its_protocol_is_refused(
    garbage: bytes, autojump_clock: object
) -> None:
    proxy = Chat([PEER])
    async with open_gateway(proxy, server(echo)) as gateway:
        wire = gateway.connect_custom(PROTOCOL)
        await wire.send(garbage)
        assert await wire.at_end()
        assert gateway.refused == [400]
        party = client(gateway)
        await party.send(ROOM, END)
        await exactly(party, FINE)
        await party.stream.send_all(garbage)
        with pytest.raises(EOFError):
            await party.receive()
        party = client(gateway)
        await party.send(END)
        with pytest.raises(EOFError):
            await party.receive()
        assert gateway.refused == [400, 400]
    assert proxy.the("logging").args["e"].esource is ErrorSource.DOWNSTREAM


@pytest.mark.parametrize(
    "head",
    [
        RequestHeader("CONNECT", "other.test:443"),
        RequestHeader("TRACE", "/"),
        RequestHeader("GET", "http://other.test/"),
        RequestHeader("GET", "*"),
        RequestHeader("GET", "/", [("Host", "a"), ("Host", "b")]),
        RequestHeader("GET", "/", [("Host", "a/b")]),
        RequestHeader("GET", "/", [("Content-Length", "1"), ("Content-Length", "2")]),
        RequestHeader("GET", "/", [("Content-Length", "-1")]),
        RequestHeader("GET", "/", [("Content-Length", "1")]),
    ],
)
async def test_a_head_with_another_meaning_behind_us_is_refused(
    head: RequestHeader, autojump_clock: object
) -> None:
    proxy = Chat()
    async with open_gateway(proxy, answers(OK)) as gateway:
        party = client(gateway)
        await party.send(head, END)
        assert await rest(party) == []
        assert gateway.refused == [400]
    assert not proxy.calls


async def test_hop_by_hop_fields_stay_with_their_hop(autojump_clock: object) -> None:
    got = []

    async def origin(wire: Wire) -> None:
        got.append(await wire.message())
        await wire.send(OK)

    async with open_gateway(Chat(), origin) as gateway:
        party = client(gateway)
        fields = [
            ("Host", "site.test"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "x-mine, close"),
            ("X-Mine", "1"),
            ("Upgrade", "websocket"),
            ("X-Other", "2"),
        ]
        await party.send(RequestHeader("POST", "/", fields), Data(b"body"), END)
        await until(party, END)
    (message,) = got
    assert message.body == b"body"
    names = [name for name, _ in message.fields]
    assert not {b"x-mine", b"upgrade", b"connection"} & set(names)
    assert names.count(b"transfer-encoding") == 1
    assert message.get("x-other") == "2"


async def test_content_is_held_to_its_length(autojump_clock: object) -> None:
    async def origin(wire: Wire) -> None:
        with contextlib.suppress(CutError):
            await wire.message()
        await wire.at_end()

    for content, status in ((b"12345", 500), (b"123", 500)):
        async with open_gateway(Chat(), origin) as gateway:
            party = client(gateway)
            head = RequestHeader("POST", "/", [("Host", "a"), ("Content-Length", "4")])
            await party.send(head, Data(content), END)
            answer = await party.receive()
            assert isinstance(answer, ResponseHeader)
            assert answer.status == status


@pytest.mark.parametrize(
    "events",
    [
        [ResponseHeader(101)],
        [ResponseHeader(103), ResponseHeader(200), END],
        [Data(b"no head")],
        [END],
        [ResponseHeader(200), ResponseHeader(200), END],
        [ResponseHeader(200), Trailers(Headers()), Data(b"late"), END],
    ],
)
async def test_what_is_no_response_is_a_502_or_a_cut(
    events: list[CodecEvent], autojump_clock: object
) -> None:
    async def origin(party: Party) -> None:
        await until(party, END)
        await party.send(*events)
        await party.receive()

    proxy = Chat([PEER])
    async with open_gateway(proxy, server(origin)) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        came = await rest(party)
        assert [x.status for x in came if isinstance(x, ResponseHeader)] in ([502], [200])
        assert (END in came) is (came[0] != ResponseHeader(200))
        assert gateway.pool.statistics().idle == 0
    assert proxy.the("logging").args["e"].esource is ErrorSource.UPSTREAM


@pytest.mark.parametrize(
    "events",
    [[ROOM, ROOM], [ROOM, Trailers(Headers()), Data(b"late")], [ROOM, Trailers(Headers())] * 2],
)
async def test_what_is_no_request_is_refused(
    events: list[CodecEvent], autojump_clock: object
) -> None:
    async with open_gateway(Chat([PEER]), server(echo)) as gateway:
        for pause in (False, True):
            party = client(gateway)
            with contextlib.suppress(trio.BrokenResourceError):
                for event in events:
                    await party.send(event)
                    if pause:
                        await trio.testing.wait_all_tasks_blocked()
            statuses = [x.status for x in await rest(party) if isinstance(x, ResponseHeader)]
            assert statuses in ([], [400], [200])
        await gateway.ended()


async def test_a_client_that_leaves_ends_the_exchange_with_the_origin(
    autojump_clock: object,
) -> None:
    noticed = trio.Event()

    async def origin(party: Party) -> None:
        await until(party, END)
        try:
            await party.receive()
        except EOFError:
            noticed.set()

    async with open_gateway(Chat([PEER]), server(origin)) as gateway:
        wire = gateway.connect_custom(PROTOCOL)
        await Party(wire.stream, PROTOCOL.client()).send(ROOM, END)
        await trio.testing.wait_all_tasks_blocked()
        wire.close()
        await noticed.wait()


async def test_an_idle_client_is_let_go(autojump_clock: object) -> None:
    async with open_gateway(Chat([PEER]), server(echo)) as gateway:
        wire = gateway.connect_custom(PROTOCOL)
        assert await wire.at_end()
        assert trio.current_time() == 15
        party = client(gateway)
        await party.send(ROOM, END, Message(b"end"))
        await until(party, END)
        assert await party.stream.receive_some() == b""
        assert trio.current_time() == 75


# -- the limits of every client --------------------------------------------------------------------


async def test_messages_either_way_keep_an_exchange_from_timing_out(
    autojump_clock: object,
) -> None:
    async def origin(party: Party) -> None:
        await until(party, END)
        for _ in range(5):
            await trio.sleep(6)
            await party.send(Message(b"still here"))
        for _ in range(5):
            await party.receive()
        await trio.sleep_forever()

    conf = ServerConf(read_timeout=7)
    async with open_gateway(Chat([PEER]), server(origin), conf=conf) as gateway:
        party = client(gateway)
        await party.send(ROOM, END)
        for _ in range(5):
            await party.receive()
        for _ in range(5):
            await trio.sleep(6)
            await party.send(Message(b"and here"))
        head = await party.receive()
        assert isinstance(head, ResponseHeader)
        assert (head.status, trio.current_time()) == (502, 67)
        gateway.stop()


async def test_content_is_limited_in_time_and_size(autojump_clock: object) -> None:
    async def origin(party: Party) -> None:
        while True:
            await party.receive()

    async def answer(party: Party) -> int:
        head = await party.receive()
        assert isinstance(head, ResponseHeader)
        return head.status

    conf = ServerConf(body_timeout=7, max_body_bytes=10)
    async with open_gateway(Chat([PEER]), server(origin), conf=conf) as gateway:
        party = client(gateway)
        await party.send(ROOM, Data(b"x" * 11))
        assert await answer(party) == 413
        party = client(gateway)
        await party.send(ROOM, Data(b"slow"))
        await trio.sleep(6)
        await party.send(Message(b"something else"))
        assert await answer(party) == 408
        assert trio.current_time() == 13
    conf = ServerConf(min_receive_rate=10)
    async with open_gateway(Chat([PEER]), server(origin), conf=conf) as gateway:
        party = client(gateway)
        await party.send(ROOM)
        started = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(50):
                await party.send(Data(b"x"))
                await trio.sleep(1)
        assert await answer(party) == 408
        assert trio.current_time() - started > 5
        assert gateway.records[-1].duration < 10


async def test_a_connection_carries_as_many_requests_as_it_may(autojump_clock: object) -> None:
    conf = ServerConf(keepalive_request_limit=2)
    async with open_gateway(Chat([PEER]), server(echo), conf=conf) as gateway:
        party = client(gateway)
        for _ in range(2):
            await party.send(ROOM, END, Message(b"end"))
            await until(party, END)
        assert await party.stream.receive_some() == b""


@pytest.mark.parametrize("closes", [False, True])
async def test_the_rest_of_a_request_is_dropped_within_its_bounds(
    closes: bool, autojump_clock: object
) -> None:
    async def answer(session: Session, _ctx: Ctx) -> bool:
        session.set_close_on_response_before_downstream_finish(closes)
        await session.write_response_header(ResponseHeader(200), True)
        return True

    proxy = Chat([PEER], hooks={"request_filter": answer})
    conf = ServerConf(drain_bytes=100_000)
    async with open_gateway(proxy, server(echo), conf=conf) as gateway:
        party = client(gateway)
        await party.send(ROOM, Data(b"x"))
        assert isinstance(await party.receive(), ResponseHeader)
        assert await party.receive() is END
        if closes:
            assert await party.stream.receive_some() == b""
            return
        await party.send(Data(b"x" * 1000), Message(b"m"), END, ROOM, Data(b"x"))
        assert isinstance(await party.receive(), ResponseHeader)
        assert await party.receive() is END
        sent = 0
        with contextlib.suppress(trio.BrokenResourceError):
            while sent < 1_000_000:
                await party.send(Data(b"x" * 10_000))
                sent += 10_000
                await trio.testing.wait_all_tasks_blocked()
        assert 100_000 < sent < 250_000


async def test_what_came_of_the_origin_is_counted(autojump_clock: object) -> None:
    async def origin(party: Party) -> None:
        await until(party, END)
        await party.send(FINE, Data(b"hello"), END)
        await party.receive()

    proxy = Chat([PEER])
    async with open_gateway(proxy, server(origin)) as gateway:
        party = client(gateway)
        await party.send(ROOM, Data(b"abc"), END)
        await until(party, END)
    session = proxy.the("logging").args["session"]
    assert session.upstream_body_bytes_received() == 5
    assert (session.body_bytes_read(), session.body_bytes_sent()) == (3, 5)


# -- cancellation ----------------------------------------------------------------------------------


async def conversation(bomb: AtStep, deed: str) -> None:
    proxy = Chat([PEER])
    with trio.move_on_after(100):
        async with open_gateway(proxy, server(echo)) as gateway:
            wire = gateway.connect_custom(PROTOCOL)
            bomb.deed = {"stop": gateway.stop, "leave": wire.close}[deed]
            bomb.on = True
            try:
                party = Party(wire.stream, PROTOCOL.client())
                await party.send(ROOM, Data(b"body"), Message(b"one"), END)
                await until(party, Message(b"One"))
                await proxy.channels[1].send(b"hello")
                await until(party, Message(b"hello"))
                await proxy.channels[0].send(b"END")
                await until(party, END)
                await party.send(ROOM, END, Message(b"end"))
                await until(party, END)
            except (Exception, ExceptionGroup):
                pass  # what the deed has cut
            finally:
                bomb.on = False


@pytest.mark.parametrize("deed", ["stop", "leave"])
def test_a_cut_at_any_step_leaves_nothing(deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_schedule(monkeypatch)
    count = AtStep(0)
    run_with(count, lambda: conversation(count, deed))
    assert count.count > 50
    for step in some_steps(count.count, 3):
        bomb = AtStep(step)
        run_with(bomb, lambda bomb=bomb: conversation(bomb, deed))  # type: ignore[misc]  # each its own
