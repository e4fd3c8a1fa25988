"""Decompression of requests, over HTTP/1 and HTTP/2 on both sides."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests._support.coding import ENCODE
from tests._support.matrix import H1, H2C, Exchange, Handler, Pairing, open_matrix
from tests._support.recording import Message, Recorder
from trioproxy import ErrorSource, ErrorType, ProxyError, Session
from trioproxy.modules import (
    HttpModules,
    InflationLimits,
    RequestDecompression,
    RequestDecompressionBuilder,
)

PLAIN = Pairing(H1, H1)
pairings = pytest.mark.parametrize(
    "pairing", [Pairing(down, up) for down in (H1, H2C) for up in (H1, H2C)], ids=str
)
codings = pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
TEXT = b"".join(b"line %d of a text that is worth it\n" % number for number in range(300))


@attrs.define(eq=False, slots=False)
class Decoding(Recorder):
    """Decodes requests."""

    builder: RequestDecompressionBuilder = attrs.field(factory=RequestDecompressionBuilder)

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(self.builder)


def keeping(seen: list[Message]) -> Handler:
    """Return an origin that keeps what it was asked."""

    async def origin(exchange: Exchange) -> None:
        seen.append(await exchange.message())
        await exchange.respond(200, [("content-length", "2")], b"ok")

    return origin


@pairings
@codings
async def test_filters_and_origin_get_the_content_plain(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []
    recorder = Decoding()
    body = ENCODE[coding](TEXT)
    fields = [
        ("content-encoding", coding),
        ("content-length", str(len(body))),
        ("content-type", "text/plain"),
        ("content-digest", "sha-256=:AAAA:"),
    ]
    async with open_matrix(recorder, keeping(seen), pairing) as gateway:
        got = await gateway.exchange("POST", fields=fields, body=body)
    assert got.status == 200
    (request,) = seen
    assert request.body == TEXT
    for name in ("content-encoding", "content-length", "content-digest"):
        assert request.get(name) is None
    assert request.get("content-type") == "text/plain"
    pieces = recorder.pieces("request_body_filter")
    assert b"".join(data or b"" for data, _ in pieces) == TEXT
    assert [end for _, end in pieces].count(True) == 1


@pairings
async def test_trailers_come_behind_the_decoded_body(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []
    fields = [("content-encoding", "gzip")]
    async with open_matrix(Decoding(), keeping(seen), pairing) as gateway:
        client = await gateway.connect()
        got = await client.exchange(
            "POST", fields=fields, body=ENCODE["gzip"](TEXT), trailers=[("x-sum", "1")]
        )
    assert got.status == 200
    assert seen[0].body == TEXT
    assert seen[0].trailers == [(b"x-sum", b"1")]


@codings
async def test_a_body_may_be_cut_at_every_point(coding: str, autojump_clock: MockClock) -> None:
    seen: list[Message] = []
    body = ENCODE[coding](TEXT[:60])
    async with open_matrix(Decoding(), keeping(seen), PLAIN) as gateway:
        client = await gateway.connect()
        for at in range(1, len(body)):
            exchange = await client.open("POST", fields=[("content-encoding", coding)])
            await exchange.send_data(body[:at])
            await trio.testing.wait_all_tasks_blocked()
            await exchange.send_data(body[at:], end=True)
            assert (await exchange.message()).status == 200
    assert [message.body for message in seen] == [TEXT[:60]] * (len(body) - 1)


async def test_a_request_without_a_coding_or_a_body_passes_by(autojump_clock: MockClock) -> None:
    seen: list[Message] = []
    async with open_matrix(Decoding(), keeping(seen), PLAIN) as gateway:
        client = await gateway.connect()
        fields = [("content-length", str(len(TEXT))), ("content-encoding", "identity")]
        await client.exchange("POST", fields=fields, body=TEXT)
        await client.exchange("GET", fields=[("content-encoding", "gzip")])
        await client.exchange("POST", fields=[("content-encoding", "gzip")], body=b"")
    assert [message.body for message in seen] == [TEXT, b"", b""]
    assert seen[0].get("content-length") == str(len(TEXT))
    assert seen[1].get("content-encoding") == "gzip"


@pairings
@pytest.mark.parametrize("refused", ["compress", "gzip, gzip", "aes128gcm", "br, gzip"])
async def test_what_cannot_be_decoded_is_refused_with_what_can(
    refused: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []
    recorder = Decoding()
    async with open_matrix(recorder, keeping(seen), pairing) as gateway:
        got = await gateway.exchange("POST", fields=[("content-encoding", refused)], body=TEXT)
    assert got.status == 415
    assert got.get("accept-encoding") == "zstd, br, gzip, deflate"
    assert seen == []
    assert recorder.names() == ["new_ctx", "early_request_filter", "logging"]


async def test_the_algorithms_are_an_option(autojump_clock: MockClock) -> None:
    recorder = Decoding(builder=RequestDecompressionBuilder(algorithms=["gzip"]))
    async with open_matrix(recorder, keeping([]), PLAIN) as gateway:
        for coding, status in (("gzip", 200), ("br", 415)):
            fields = [("content-encoding", coding)]
            got = await gateway.exchange("POST", fields=fields, body=ENCODE[coding](TEXT))
            assert got.status == status
            assert got.get("accept-encoding") == (None if status == 200 else "gzip")


@pairings
@codings
async def test_content_that_is_broken_is_a_bad_request(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    body = ENCODE[coding](TEXT)
    for broken in (b"this is no such thing, whatever was said of it" * 20, body[:-3], body + b"x"):
        recorder = Decoding()
        async with open_matrix(recorder, keeping([]), pairing, check_windows=False) as gateway:
            fields = [("content-encoding", coding)]
            got = await gateway.exchange("POST", fields=fields, body=broken)
            assert got.status == 400
        error = recorder.the("logging").args["e"]
        assert (error.etype, error.esource) == (
            ErrorType.HTTPStatus(400),
            ErrorSource.DOWNSTREAM,
        )


async def test_what_was_peeked_at_is_plain_and_can_be_sent_again(
    autojump_clock: MockClock,
) -> None:
    seen: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        seen.append(await exchange.message())
        if len(seen) == 1:
            exchange.close()
            return
        await exchange.respond(200, [("content-length", "2")], b"ok")

    peeked: list[Any] = []

    async def request_filter(session: Session, _ctx: object) -> bool:
        peeked.append(await session.peek_request_body(20))
        return False

    def error_while_proxy(*args: Any) -> ProxyError:
        error: ProxyError = args[2]
        error.set_retry(not args[1].retry_buffer_truncated())
        return error

    recorder = Decoding(
        hooks={"request_filter": request_filter, "error_while_proxy": error_while_proxy}
    )
    async with open_matrix(recorder, origin, PLAIN) as gateway:
        fields = [("content-encoding", "gzip")]
        got = await gateway.exchange("PUT", fields=fields, body=ENCODE["gzip"](TEXT))
    assert got.status == 200
    assert [message.body for message in seen] == [TEXT, TEXT]
    assert peeked[0].data == TEXT[:20]
    assert not peeked[0].complete


@pairings
@codings
async def test_what_the_origin_has_not_taken_holds_up_the_rest_of_a_single_piece(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    body = ENCODE[coding](bytes(2_000_000))
    assert len(body) < 5_000
    modules: list[RequestDecompression | None] = []
    go_on = trio.Event()

    async def request_filter(session: Session, _ctx: object) -> bool:
        modules.append(session.downstream_modules_ctx.get(RequestDecompression))
        return False

    async def origin(exchange: Exchange) -> None:
        exchange.hold()
        await exchange.head()
        await go_on.wait()
        exchange.go_on()
        message = await exchange.message()
        await exchange.respond(200, body=b"%d" % len(message.body))

    recorder = Decoding(
        builder=RequestDecompressionBuilder(limits=InflationLimits(ratio=10_000_000)),
        hooks={"request_filter": request_filter},
    )
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        fields = [("content-encoding", coding), ("content-length", str(len(body)))]
        exchange = await client.request("POST", fields=fields, body=body)
        await trio.sleep(10)
        (module,) = modules
        assert module is not None
        assert 0 < module._inflation._given < 700_000
        go_on.set()
        assert (await exchange.message()).body == b"2000000"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithms": "gzip"}, "algorithms='gzip'"),
        ({"algorithms": ["lzma"]}, "'lzma' is no coding"),
        ({"algorithms": []}, "at least one"),
        ({"limits": None}, "limits=None"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RequestDecompressionBuilder(**options)


def test_what_it_says_of_itself() -> None:
    assert repr(RequestDecompressionBuilder().init()) == "<RequestDecompression of nothing>"
