"""The messages of a WebSocket, filtered one by one between a client and an origin in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hyperframe.frame import DataFrame, Frame, HeadersFrame
from trio.testing import MockClock
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode
from websockets.protocol import SERVER, Protocol, State

from tests._support.h2_wire import ENABLE_CONNECT_PROTOCOL, MAX_CONCURRENT_STREAMS, H2Wire
from tests._support.matrix import H1, H1_TLS, H2C, Frames, Pairing, open_matrix
from tests._support.recording import Ctx, CutError, Recorder, Wire, open_gateway, raises
from tests._support.steps import AtStep, run_with, some_steps, use_one_schedule
from tests._support.websocket import DEFLATE, Talk, ask, raw, switch
from trioproxy import Chain, ErrorSource, ErrorType, ProxyError, ResponseHeader, ServerConf, Session
from trioproxy.codec._websocket import WebSocketEnd
from trioproxy.proxy._compose import bind
from trioproxy.websocket import BinaryMessage, TextMessage, WebSocketOptions

Filter = Callable[[bytes], Any]


def same(message: bytes) -> bytes:
    return message


@attrs.define(eq=False, slots=False)
class Chat(Recorder):
    """Filters messages by two functions, and keeps what they were given."""

    up: Filter = same
    down: Filter = same
    options: WebSocketOptions | None = None
    seen: list[tuple[str, type, bytes, bool]] = attrs.field(factory=list)
    to_origin: trio.MemorySendChannel[bytes] | None = None
    to_client: trio.MemorySendChannel[bytes] | None = None

    async def request_filter(self, session: Session, ctx: Ctx) -> bool:
        session.filter_websocket_messages(self.options)
        return await super().request_filter(session, ctx)

    async def custom_forwarding(
        self,
        session: Session,
        ctx: Ctx,
        custom_message_to_upstream: trio.MemorySendChannel[bytes] | None,
        custom_message_to_downstream: trio.MemorySendChannel[bytes],
    ) -> None:
        self._note("custom_forwarding", ctx)
        self.to_origin = custom_message_to_upstream
        self.to_client = custom_message_to_downstream
        await self._async("custom_forwarding", None, session, ctx)

    async def downstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: Ctx, final_hop: bool
    ) -> bytes | None:
        self.seen.append(("up", type(custom_message), bytes(custom_message), final_hop))
        return self.up(custom_message)  # type: ignore[no-any-return]  # a test's

    async def upstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: Ctx, final_hop: bool
    ) -> bytes | None:
        self.seen.append(("down", type(custom_message), bytes(custom_message), final_hop))
        return self.down(custom_message)  # type: ignore[no-any-return]  # a test's


@attrs.define(eq=False)
class Origin:
    """A WebSocket server that answers the handshake and leaves the rest to the test."""

    extensions: bytes | None = None
    deflate: tuple[Any, ...] | None = None
    heads: list[Any] = attrs.field(factory=list)
    talks: list[Talk] = attrs.field(factory=list)
    came: trio.Event = attrs.field(factory=trio.Event)
    left: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, wire: Wire) -> None:
        try:
            self.heads.append(await wire.head())
        except CutError:
            return
        await wire.send(switch(self.extensions))
        self.talks.append(Talk.of(wire, client=False, deflate=self.deflate))
        self.came.set()
        await self.left.wait()

    async def talk(self) -> Talk:
        await self.came.wait()
        return self.talks[-1]


async def opened(
    gateway: Any, origin: Origin, *, extensions: bytes | None = None, deflate: Any = None
) -> tuple[Talk, Talk]:
    """Open a WebSocket; return the client's end and the origin's."""
    wire = gateway.connect()
    await wire.send(ask(extensions=extensions))
    head = await wire.head()
    assert head.status == 101
    assert head.get("sec-websocket-extensions") == (
        None if origin.extensions is None else origin.extensions.decode()
    )
    return Talk.of(wire, client=True, deflate=deflate), await origin.talk()


# -- messages --------------------------------------------------------------------------------------


async def test_each_message_goes_through_its_filter_and_keeps_its_kind(
    autojump_clock: object,
) -> None:
    proxy, origin = Chat(up=bytes.upper, down=bytes.title), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await client.send("hello")
        assert await server.receive() == "HELLO"
        await client.send(b"bytes")
        assert await server.receive() == b"BYTES"
        await server.send("from here")
        assert await client.receive() == "From Here"
        origin.left.set()
    assert proxy.seen == [
        ("up", TextMessage, b"hello", False),
        ("up", BinaryMessage, b"bytes", False),
        ("down", TextMessage, b"from here", False),
    ]
    assert not proxy.of("request_body_filter")
    assert not proxy.of("response_body_filter")
    assert proxy.names().count("custom_forwarding") == 1


@pytest.mark.parametrize(
    ("sent", "result", "got"),
    [
        ("t", "text ü", "text ü"),
        (b"b", "text ü", "text ü"),
        ("t", b"plain", "plain"),
        (b"b", b"plain", b"plain"),
        ("t", bytearray(b"plain"), "plain"),
        ("t", BinaryMessage(b"\xff"), b"\xff"),
        (b"b", TextMessage("now text"), "now text"),
        ("t", b"", ""),
    ],
)
async def test_a_filter_may_change_the_kind(
    sent: str | bytes, result: Any, got: str | bytes, autojump_clock: object
) -> None:
    proxy, origin = Chat(up=lambda _message: result), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await client.send(sent)
        assert await server.receive() == got
        origin.left.set()


async def test_none_drops_a_message(autojump_clock: object) -> None:
    proxy = Chat(up=lambda message: None if b"secret" in message else message)
    origin = Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        for message in ("one", "my secret", "two"):
            await client.send(message)
        assert await server.receive() == "one"
        assert await server.receive() == "two"
        origin.left.set()


async def test_fragments_come_as_one_message_and_controls_between_them_go_first(
    autojump_clock: object,
) -> None:
    proxy, origin = Chat(), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await client.raw(raw(1, b"\xe2\x82", fin=False) + raw(9, b"still there?"))
        assert (await server.frame()).opcode is Opcode.PING
        await server.say(server.frames.send_pong, b"still there?")
        assert bytes((await client.frame()).data) == b"still there?"
        await client.raw(raw(0, b"\xac", fin=False) + raw(0))
        assert await server.receive() == "€"
        origin.left.set()
    assert proxy.seen == [("up", TextMessage, "€".encode(), False)]


async def test_every_split_of_a_conversation_gives_the_same(autojump_clock: object) -> None:
    script = raw(1, b"he", fin=False) + raw(9, b"p") + raw(0, b"llo") + raw(2, b"x" * 130)
    for cut in range(1, len(script)):
        proxy, origin = Chat(up=bytes.upper), Origin()
        async with open_gateway(proxy, origin) as gateway:
            client, server = await opened(gateway, origin)
            await client.raw(script[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await client.raw(script[cut:])
            assert bytes((await server.frame()).data) == b"p"
            assert await server.receive() == "HELLO"
            assert await server.receive() == b"X" * 130
            origin.left.set()


async def test_others_have_their_turn_while_small_frames_are_read(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    read: Counter[int] = Counter()
    feed = WebSocketEnd.feed

    def counted(end: WebSocketEnd, data: bytes) -> Any:
        read[turns] += len(data)
        return feed(end, data)

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    monkeypatch.setattr(WebSocketEnd, "feed", counted)
    proxy, origin = Chat(), Origin()
    async with open_gateway(proxy, origin) as gateway, trio.open_nursery() as nursery:
        client, server = await opened(gateway, origin)
        nursery.start_soon(somebody_else)
        await client.raw(raw(1, fin=False) + raw(0, fin=False) * 10000 + raw(0, b"at last"))
        assert await server.receive() == "at last"
        origin.left.set()
        nursery.cancel_scope.cancel()
    assert sum(read.values()) > 60000
    assert max(read.values()) <= 8192  # the other task may just have had its turn


async def test_what_came_with_the_101_is_read(autojump_clock: object) -> None:
    async def eager(wire: Wire) -> None:
        await wire.head()
        await wire.send(switch() + raw(1, b"at once", mask=None))
        await wire.at_end()

    proxy = Chat(down=bytes.upper)
    async with open_gateway(proxy, eager) as gateway:
        wire = gateway.connect()
        await wire.send(ask() + raw(1, b"early"))
        await wire.head()
        assert await Talk.of(wire, client=True).receive() == "AT ONCE"
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(message for _, _, message, _ in proxy.seen) == [b"at once", b"early"]


async def test_a_slow_filter_stops_the_client_and_not_the_origin(autojump_clock: object) -> None:
    class Slow(Chat):
        async def downstream_custom_message_proxy_filter(
            self, session: Session, custom_message: bytes, ctx: Ctx, final_hop: bool
        ) -> bytes | None:
            await super().downstream_custom_message_proxy_filter(
                session, custom_message, ctx, final_hop
            )
            await trio.sleep(10)
            return custom_message

    proxy, origin = Slow(), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        for _ in range(3):
            await client.send("slow")
        await trio.testing.wait_all_tasks_blocked()
        assert len(proxy.seen) == 1
        await server.send("fast")
        started = trio.current_time()
        assert await client.receive() == "fast"
        assert trio.current_time() == started
        for _ in range(3):
            assert await server.receive() == "slow"
        origin.left.set()


# -- injection -------------------------------------------------------------------------------------


async def test_messages_are_put_in_from_the_side_both_ways(autojump_clock: object) -> None:
    proxy, origin = Chat(up=bytes.upper, down=bytes.upper), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await trio.testing.wait_all_tasks_blocked()
        assert proxy.to_origin is not None
        assert proxy.to_client is not None
        await proxy.to_origin.send(b"binary")
        await proxy.to_client.send(TextMessage("text"))
        assert await server.receive() == b"binary"
        assert await client.receive() == "text"
        assert proxy.to_client.statistics().max_buffer_size == 128
        await proxy.to_client.aclose()  # ends this injection, and nothing else
        await server.send("on")
        assert await client.receive() == "ON"
        await proxy.to_origin.send(b"still")
        assert await server.receive() == b"still"
        client.wire.close()
        origin.left.set()
        await gateway.ended()
        with pytest.raises(trio.ClosedResourceError):
            await proxy.to_origin.send(b"too late")
    assert [name for name, *_ in proxy.seen] == ["down"]


async def test_what_is_no_message_fails_the_websocket(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    proxy, origin = Chat(), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await trio.testing.wait_all_tasks_blocked()
        assert proxy.to_client is not None
        await proxy.to_client.send(5)  # type: ignore[arg-type]  # the mistake
        assert (await client.closing())[0] == 1011
        assert (await server.closing())[0] == 1001
        origin.left.set()
        await gateway.ended()
    assert "custom_forwarding gave 5: bytes are right" in caplog.text


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "origin"])
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1014, "gateway"), (4999, "bye")])
async def test_close_codes_are_passed_both_ways(
    side: str, code: int, reason: str, autojump_clock: object
) -> None:
    proxy, origin = Chat(), Origin()
    async with open_gateway(proxy, origin) as gateway:
        ends = await opened(gateway, origin)
        one, other = ends if side == "client" else ends[::-1]
        close = raw(8, code.to_bytes(2, "big") + reason.encode(), mask=None)
        masked = raw(8, code.to_bytes(2, "big") + reason.encode())
        await one.raw(masked if side == "client" else close)
        assert await other.closing() == (code, reason)
        await other.raw(close if side == "client" else masked)
        assert await one.closing() == (code, reason)
        ends[1].wire.close()  # the server closes first (RFC 6455 section 7.1.1)
        origin.left.set()
        assert await ends[0].ends()
        ends[0].wire.close()
        await gateway.ended()
    assert proxy.the("logging").args["e"] is None


async def test_messages_before_a_close_are_delivered_and_nothing_behind_it(
    autojump_clock: object,
) -> None:
    proxy, origin = Chat(), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await client.raw(raw(1, b"last") + raw(8, b"\x03\xe8") + raw(1, b"lost") + raw(3))
        assert await server.receive() == "last"
        assert await server.closing() == (1000, "")
        assert proxy.to_origin is not None
        await proxy.to_origin.send(b"too late")
        await server.raw(raw(1, b"one more", mask=None))
        assert await client.receive() == "one more"
        client.wire.close()
        assert await server.ends()
        origin.left.set()


BROKEN = [
    ("a reserved opcode", raw(3), 1002),
    ("no UTF-8", raw(1, b"\xff"), 1007),
    ("too large", raw(2, b"x" * 101), 1009),
    ("a bad close", raw(8, b"\x03\xed"), 1002),
]


@pytest.mark.parametrize(("name", "data", "code"), BROKEN, ids=[each[0] for each in BROKEN])
async def test_a_client_that_breaks_the_protocol_is_told_why(
    name: str, data: bytes, code: int, autojump_clock: object
) -> None:
    proxy, origin = Chat(options=WebSocketOptions(max_message_bytes=100)), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await client.raw(raw(1, b"good") + data)
        assert await server.receive() == "good"
        assert (await server.closing())[0] == 1001
        assert await server.ends()
        assert (await client.closing())[0] == code
        assert await client.ends()
        origin.left.set()
        await gateway.ended()
    error = proxy.the("logging").args["e"]
    assert error.etype == ErrorType.Custom("WebSocketError")
    assert error.esource is ErrorSource.DOWNSTREAM


async def test_an_origin_that_breaks_the_protocol_is_told_why(autojump_clock: object) -> None:
    proxy, origin = Chat(), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await server.raw(raw(1, b"masked"))
        assert (await client.closing())[0] == 1011
        assert await client.ends()
        assert (await server.closing())[0] == 1002
        assert await server.ends()
        origin.left.set()
        await gateway.ended()
    assert proxy.the("logging").args["e"].esource is ErrorSource.UPSTREAM


@pytest.mark.parametrize(
    "failing",
    [
        raises(RuntimeError("oops")),
        raises(ProxyError.status(403)),
        lambda _message: 5,
        lambda _message: TextMessage(b"\xff"),
    ],
)
@pytest.mark.parametrize("side", ["up", "down"])
async def test_an_exception_of_a_filter_ends_it_with_1011(
    failing: Filter, side: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    proxy, origin = Chat(), Origin()
    setattr(proxy, side, failing)
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await (client if side == "up" else server).send("hello")
        assert (await client.closing())[0] == 1011
        assert (await server.closing())[0] == 1001
        assert await client.ends()
        assert await server.ends()
        origin.left.set()
        await gateway.ended()
    assert proxy.of("error_while_proxy")
    assert proxy.the("logging").args["e"] is not None


async def test_an_exception_of_custom_forwarding_ends_it_with_1011(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    proxy, origin = Chat(hooks={"custom_forwarding": raises(RuntimeError("oops"))}), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        assert (await client.closing())[0] == 1011
        assert (await server.closing())[0] == 1001
        origin.left.set()
        await gateway.ended()
    assert "custom_forwarding raised RuntimeError: oops" in caplog.text


async def test_an_end_without_a_close_is_a_cut_for_the_other_side(autojump_clock: object) -> None:
    proxy, origin = Chat(), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await client.raw(raw(1, b"half", fin=False))
        server.wire.close()
        origin.left.set()
        assert await client.ends()
        client.wire.close()
        await gateway.ended()


async def test_t_05_an_idle_websocket_is_cut_and_a_half_closed_one_goes_on_for_a_while(
    autojump_clock: object,
) -> None:
    proxy, origin = Chat(), Origin()
    conf = ServerConf(tunnel_idle_timeout=300, tunnel_half_close_timeout=60)
    async with open_gateway(proxy, origin, conf=conf) as gateway:
        client, server = await opened(gateway, origin)
        for _ in range(3):
            await trio.sleep(290)
            await server.say(server.frames.send_ping, b"")
            assert (await client.frame()).opcode is Opcode.PING
        assert proxy.to_client is not None
        for _ in range(3):
            await trio.sleep(290)
            await proxy.to_client.send(b"from the side")
            assert await client.receive() == b"from the side"
        started = trio.current_time()
        assert await client.ends()
        assert trio.current_time() - started == 300
        origin.left.set()
        await gateway.ended()
    assert proxy.the("logging").args["e"].etype == ErrorType.ReadTimedout

    proxy, origin = Chat(), Origin()
    async with open_gateway(proxy, origin, conf=conf) as gateway:
        client, server = await opened(gateway, origin)
        await client.wire.half_close()
        assert await server.ends()
        started = trio.current_time()
        await server.send("still")
        assert await client.receive() == "still"
        assert await client.ends()
        assert trio.current_time() - started == 60
        origin.left.set()
        await gateway.ended()


# -- compression -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "of_client", "of_origin"),
    [
        (DEFLATE, (False, False, 15, 15), (False, False, 15, 15)),
        (
            DEFLATE + b"; client_no_context_takeover; server_max_window_bits=10",
            (False, True, 10, 15),
            (True, False, 15, 10),
        ),
        (
            DEFLATE + b"; server_no_context_takeover; client_max_window_bits=9",
            (True, False, 15, 9),
            (False, True, 9, 15),
        ),
        (None, None, None),
    ],
)
async def test_both_sides_compress_as_the_origin_has_agreed_to(
    answer: bytes | None, of_client: Any, of_origin: Any, autojump_clock: object
) -> None:
    proxy, origin = Chat(up=lambda m: m + b"!"), Origin(answer, of_origin)
    offer = DEFLATE + b"; client_max_window_bits, x-other"
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin, extensions=offer, deflate=of_client)
        for message in ("hello hello hello hello", "hello hello again", "x" * 100_000):
            await client.send(message)
            assert await server.receive() == message + "!"
            await server.send(message)
            assert await client.receive() == message
        origin.left.set()
    (head,) = origin.heads
    assert head.get("sec-websocket-extensions") == offer.decode().removesuffix(", x-other")


async def test_without_compression_nothing_is_offered(autojump_clock: object) -> None:
    proxy, origin = Chat(options=WebSocketOptions(compression=False)), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin, extensions=DEFLATE)
        await client.send("plain")
        assert await server.receive() == "plain"
        origin.left.set()
    assert origin.heads[0].get("sec-websocket-extensions") is None


async def test_the_client_may_have_no_compression_where_the_origin_has(
    autojump_clock: object,
) -> None:
    def unsaid(_session: Session, head: ResponseHeader, _ctx: Ctx) -> None:
        head.headers.remove("sec-websocket-extensions")

    proxy = Chat(hooks={"response_filter": unsaid})
    origin = Origin(DEFLATE, (False, False, 15, 15))
    async with open_gateway(proxy, origin) as gateway:
        wire = gateway.connect()
        await wire.send(ask(extensions=DEFLATE))
        assert (await wire.head()).get("sec-websocket-extensions") is None
        client, server = Talk.of(wire, client=True), await origin.talk()
        await server.send("compressed here" * 20)
        assert await client.receive() == "compressed here" * 20
        await client.send("and not here")
        assert await server.receive() == "and not here"
        origin.left.set()


@pytest.mark.parametrize("answer", [b"x-other", DEFLATE + b"; mystery", DEFLATE])
async def test_an_origin_that_agrees_to_what_was_not_offered_is_a_502(
    answer: bytes, autojump_clock: object
) -> None:
    proxy, origin = Chat(), Origin(answer)
    offer = None if answer == DEFLATE else DEFLATE
    async with open_gateway(proxy, origin) as gateway:
        wire = gateway.connect()
        await wire.send(ask(extensions=offer))
        assert (await wire.message()).status == 502
        origin.left.set()


# -- what is no WebSocket --------------------------------------------------------------------------


async def test_requests_and_other_protocols_are_left_alone(autojump_clock: object) -> None:
    async def origin(wire: Wire) -> None:
        head = await wire.head()
        if head.get("upgrade") is None:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        await wire.send(switch().replace(b"websocket", b"other"))
        assert await wire.more()
        await wire.send(bytes(wire.buffer).upper())
        await wire.half_close()
        await wire.at_end()

    proxy = Chat()
    async with open_gateway(proxy, origin) as gateway:
        response = await gateway.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert response.body == b"ok"
        client = gateway.connect()
        await client.send(ask().replace(b"Upgrade: websocket", b"Upgrade: other"))
        assert (await client.head()).status == 101
        await client.send(b"raw")
        assert await client.more()
        assert client.buffer == b"RAW"
        await client.half_close()
    assert proxy.pieces("request_body_filter")[-2:] == [(b"raw", False), (None, True)]
    assert not proxy.of("custom_forwarding")


async def test_it_is_too_late_to_filter_once_the_request_has_gone(autojump_clock: object) -> None:
    def late(session: Session, *_: object) -> None:
        session.filter_websocket_messages()

    async def origin(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    proxy = Recorder(hooks={"response_filter": late})
    async with open_gateway(proxy, origin) as gateway:
        response = await gateway.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert response.status == 500
    assert "upstream_request_filter is the last" in str(proxy.the("fail_to_proxy").args["e"])


async def test_the_bytes_of_both_sides_are_counted(autojump_clock: object) -> None:
    proxy, origin = Chat(down=lambda _message: None), Origin()
    async with open_gateway(proxy, origin) as gateway:
        client, server = await opened(gateway, origin)
        await client.send("hello")
        await server.receive()
        await server.send(b"dropped")
        await trio.testing.wait_all_tasks_blocked()
        origin.left.set()
    session = proxy.the("logging").args["session"]
    assert session.body_bytes_read() == 2 + 4 + 5
    assert session.upstream_body_bytes_received() == 2 + 7
    assert session.body_bytes_sent() == 0


async def test_members_of_a_chain_hand_messages_on(autojump_clock: object) -> None:
    seen: list[str] = []

    class Member(Chain.Member[None]):
        def __init__(self, name: str) -> None:
            self.name = name

        async def downstream_custom_message_proxy_filter(
            self, session: Session, custom_message: bytes, ctx: None, final_hop: bool
        ) -> bytes | None:
            seen.append(self.name)
            return None if b"drop" in custom_message else custom_message + self.name.encode()

        async def upstream_custom_message_proxy_filter(
            self, session: Session, custom_message: bytes, ctx: None, final_hop: bool
        ) -> bytes | None:
            return custom_message + self.name.encode()

    last = Chat(up=lambda m: m + b"c", down=lambda m: m + b"c")
    filters = bind(Chain(Member("a"), Member("b"), last))
    ctx = (None, None, Ctx(0))
    up, down = (
        filters.downstream_custom_message_proxy_filter,
        filters.upstream_custom_message_proxy_filter,
    )
    assert up is not None
    assert down is not None
    assert await up("session", b"m", ctx, False) == b"mabc"
    assert await down("session", b"m", ctx, False) == b"mcba"
    seen.clear()
    assert await up("session", b"drop", ctx, False) is None
    assert seen == ["a"]


# -- over both versions of HTTP --------------------------------------------------------------------


async def h2_origin(wire: H2Wire) -> None:
    """Be an origin of HTTP/2 whose WebSocket sends back what comes."""
    await wire.start({MAX_CONCURRENT_STREAMS: 100, ENABLE_CONNECT_PROTOCOL: 1})
    head = await wire.until(HeadersFrame)
    stream = head.stream_id
    fields = dict(head.fields)  # type: ignore[attr-defined]  # a Head
    offered = fields.get(b"sec-websocket-extensions")
    answer: list[tuple[str, str]] = [(":status", "200")]
    frames = Protocol(SERVER, state=State.OPEN, max_size=None)
    if offered is not None:
        assert offered == DEFLATE
        answer.append(("sec-websocket-extensions", DEFLATE.decode()))
        frames.extensions = [PerMessageDeflate(False, False, 15, 15)]
    await wire.headers(stream, answer)
    while True:
        frame = await wire.until(Frame, stream)
        if not isinstance(frame, DataFrame):
            return
        if frame.data:
            await wire.credit(0, len(frame.data))
            await wire.credit(stream, len(frame.data))
            frames.receive_data(frame.data)
        for event in frames.events_received():
            if event.opcode is Opcode.TEXT:  # type: ignore[union-attr]  # no handshake
                frames.send_text(event.data)  # type: ignore[union-attr]
        for data in frames.data_to_send():
            if data:
                await wire.data(stream, data)
        if "END_STREAM" in frame.flags:
            await wire.data(stream, b"", end=True)
            return


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("down", [H1, H1_TLS], ids=str)
async def test_an_origin_of_http_2_is_asked_for_the_same(
    down: Any, compressed: bool, autojump_clock: MockClock
) -> None:
    proxy = Chat(up=bytes.upper, down=lambda m: m + b"!")
    deflate = (False, False, 15, 15) if compressed else None
    async with open_matrix(
        proxy, Frames(h2_origin), Pairing(down, H2C), check_windows=False
    ) as gateway:
        connection = await gateway.connect()
        assert connection.wire is not None
        await connection.wire.send(ask(extensions=DEFLATE if compressed else None))
        head = await connection.wire.head()
        assert head.status == 101
        assert (head.get("sec-websocket-extensions") is not None) is compressed
        client = Talk.of(connection.wire, client=True, deflate=deflate)
        for message in ("hello", "hello again", "x" * 10_000):
            await client.send(message)
            assert await client.receive() == message.upper() + "!"
        await client.raw(raw(8, b"\x0f\xa1"))
        assert await client.closing() == (4001, "")
        await connection.wire.half_close()
        assert await client.ends()
        await gateway.sessions_ended()
    assert proxy.the("logging").args["e"] is None


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("down", [H1, H1_TLS], ids=str)
async def test_both_ends_are_told_where_the_server_stops(
    down: Any, answers: bool, autojump_clock: MockClock
) -> None:
    proxy = Chat()
    got: list[tuple[int, str]] = []

    async def origin(exchange: Any) -> None:
        await exchange.wire.head()
        await exchange.wire.send(switch())
        server = Talk.of(exchange.wire, client=False)
        got.append(await server.closing())
        if answers:
            await server.raw(raw(8, b"\x03\xe9", mask=None))
        else:
            await trio.sleep_forever()

    async with open_matrix(proxy, origin, Pairing(down, H1)) as gateway:
        connection = await gateway.connect()
        wire = connection.wire
        assert wire is not None
        await wire.send(ask())
        assert (await wire.head()).status == 101
        client = Talk.of(wire, client=True)

        async def leave() -> None:
            got.append(await client.closing())
            if answers:
                await client.raw(raw(8, b"\x03\xe9"))
                wire.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            started = trio.current_time()
            await gateway.running.drain(5)
            took = trio.current_time() - started
    assert got == [(1001, "")] * 2
    # Whoever does not answer is cut a little later.
    assert (5 <= took < 6) if answers else (7 <= took < 8)
    error = proxy.the("logging").args["e"]
    assert (error is None) is answers


# -- cancellation ----------------------------------------------------------------------------------


async def conversation(bomb: AtStep, deed: str) -> None:
    proxy, origin = Chat(up=bytes.upper), Origin(DEFLATE, (False, False, 15, 15))
    with trio.move_on_after(100):
        async with open_gateway(proxy, origin) as gateway:
            wire = gateway.connect()
            bomb.deed = {"stop": gateway.stop, "leave": wire.close}[deed]
            bomb.on = True
            try:
                await wire.send(ask(extensions=DEFLATE))
                await wire.head()
                client = Talk.of(wire, client=True, deflate=(False, False, 15, 15))
                server = await origin.talk()
                await trio.testing.wait_all_tasks_blocked()
                if proxy.to_client is not None:
                    await proxy.to_client.send(b"hello")
                await client.frame()
                await client.send("hello")
                await server.frame()
                await server.raw(raw(3, mask=None))
                await client.closing()
            except (Exception, ExceptionGroup):
                pass  # what the deed has cut
            finally:
                bomb.on = False
                origin.left.set()


@pytest.mark.parametrize("deed", ["stop", "leave"])
def test_a_cut_at_any_step_leaves_nothing(deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_schedule(monkeypatch)
    count = AtStep(0)
    run_with(count, lambda: conversation(count, deed))
    assert count.count > 20
    for step in some_steps(count.count, 3):
        bomb = AtStep(step)
        run_with(bomb, lambda bomb=bomb: conversation(bomb, deed))  # type: ignore[misc]  # each its own
