"""Compression before the cache: stored once, served to each client as it likes."""

from __future__ import annotations

import gzip
from typing import Any

import attrs
import pytest
from trio.testing import MockClock

from tests._support.caching import CacheRecorder, open_cache, stored_body
from tests._support.coding import DECODE, ENCODE
from tests._support.matrix import H1, H2C, Exchange, Handler, Pairing, open_matrix
from tests._support.recording import Message, Wire
from trioproxy import ErrorType, HttpPeer, ProxyError, Session
from trioproxy.modules import HttpModules, ResponseCompressionBuilder

PLAIN = Pairing(H1, H1)
pairings = pytest.mark.parametrize(
    "pairing", [Pairing(down, up) for down in (H1, H2C) for up in (H1, H2C)], ids=str
)
TEXT = b"".join(b"line %d of a text that is worth it\n" % number for number in range(300))
KIND = ("content-type", "text/plain")
LENGTH = ("content-length", str(len(TEXT)))
FRESH = ("cache-control", "max-age=60")
GZIP = ("accept-encoding", "gzip")
BR = ("accept-encoding", "br")
ALL = ("accept-encoding", "gzip, deflate, br, zstd")


@attrs.define(eq=False, slots=False)
class Storing(CacheRecorder):
    """Compresses what comes from the origin, at some levels, and perhaps what goes to the client."""

    levels: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(("zstd", "br", "gzip"), 5))
    builder: ResponseCompressionBuilder | None = attrs.field(factory=ResponseCompressionBuilder)

    def init_downstream_modules(self, modules: HttpModules) -> None:
        if self.builder is not None:
            modules.add_module(self.builder)

    async def request_filter(self, session: Session, ctx: Any) -> bool:
        for coding, level in self.levels.items():
            session.upstream_compression.adjust_algorithm_level(coding, level)
        return await super().request_filter(session, ctx)


def giving(*fields: tuple[str, str], body: bytes = TEXT, seen: list[Message]) -> Handler:
    """Return an origin that gives this to whoever does not hold it yet."""

    async def origin(exchange: Exchange) -> None:
        message = await exchange.message()
        seen.append(message)
        known = message.get("if-none-match")
        tag = dict(fields).get("etag")
        if known is not None and tag is not None and tag in known:
            await exchange.respond(
                304, [(n, v) for n, v in fields if n in ("etag", "cache-control")]
            )
        else:
            to_head = message.start.startswith(b"HEAD")
            await exchange.respond(200, fields, b"" if to_head else body)

    return origin


def decoded(message: Message) -> bytes:
    """Return the content as the client understands it."""
    coding = message.get("content-encoding")
    return message.body if coding is None else DECODE[coding](message.body)


@pairings
async def test_a_response_is_stored_compressed_once_and_every_client_gets_its_own(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []
    recorder = Storing()
    origin = giving(KIND, LENGTH, FRESH, ("etag", '"one"'), seen=seen)
    async with open_matrix(recorder, origin, pairing) as gateway:
        answers = {
            fields: await gateway.exchange(fields=fields)
            for fields in ((), (GZIP,), (BR,), (ALL,), (("accept-encoding", "gzip;q=0"),))
        }
    assert len(seen) == 1
    (stored,) = stored_body(recorder.storage)
    assert gzip.decompress(stored) == TEXT
    for fields, got in answers.items():
        takes_gzip = fields in ((GZIP,), (ALL,))
        assert got.get("content-encoding") == ("gzip" if takes_gzip else None)
        assert got.get("vary") == "Accept-Encoding"
        assert got.get("etag") == 'W/"one"'
        assert decoded(got) == TEXT
        if takes_gzip:
            assert got.body == stored


async def test_what_is_stored_can_be_recoded_for_who_wants_something_else(
    autojump_clock: MockClock,
) -> None:
    seen: list[Message] = []
    recorder = Storing(builder=ResponseCompressionBuilder(5))
    async with open_matrix(recorder, giving(KIND, FRESH, seen=seen), PLAIN) as gateway:
        for fields, coding in (((GZIP,), "gzip"), ((BR,), "br"), ((ALL,), "gzip"), ((), None)):
            got = await gateway.exchange(fields=fields)
            assert got.get("content-encoding") == coding
            assert decoded(got) == TEXT
    assert len(seen) == 1


async def test_where_gzip_is_off_the_first_algorithm_is_stored(autojump_clock: MockClock) -> None:
    recorder = Storing(levels={"br": 5, "zstd": 0, "gzip": 0})
    async with open_matrix(recorder, giving(KIND, FRESH, seen=[]), PLAIN) as gateway:
        assert (await gateway.exchange(fields=[GZIP])).body == TEXT
        assert decoded(await gateway.exchange(fields=[BR])) == TEXT
    (stored,) = stored_body(recorder.storage)
    assert DECODE["br"](stored) == TEXT


@pytest.mark.parametrize("control", ["no-store", "private, max-age=60"])
async def test_what_is_never_stored_is_made_for_the_client_that_asks(
    control: str, autojump_clock: MockClock
) -> None:
    recorder = Storing()
    origin = giving(KIND, ("cache-control", control), seen=[])
    async with open_matrix(recorder, origin, PLAIN) as gateway:
        for fields, coding in (((GZIP,), "gzip"), ((BR,), "br"), ((), None)):
            got = await gateway.exchange(fields=fields)
            assert got.get("content-encoding") == coding
            assert got.get("vary") == "Accept-Encoding"
            assert decoded(got) == TEXT
    assert stored_body(recorder.storage) == []


async def test_without_the_clients_side_each_coding_is_stored_by_itself(
    autojump_clock: MockClock,
) -> None:
    seen: list[Message] = []
    recorder = Storing(builder=None)
    async with open_matrix(recorder, giving(KIND, FRESH, seen=seen), PLAIN) as gateway:
        for fields, coding in (((GZIP,), "gzip"), ((BR,), "br"), ((), None)) * 2:
            got = await gateway.exchange(fields=fields)
            assert got.get("content-encoding") == coding
            assert decoded(got) == TEXT
    assert len(seen) == 3


async def test_without_a_cache_it_is_as_on_the_clients_side(autojump_clock: MockClock) -> None:
    recorder = Storing(storage=None)
    async with open_matrix(recorder, giving(KIND, LENGTH, seen=[]), PLAIN) as gateway:
        for fields, coding in (((GZIP,), "gzip"), ((BR,), "br"), ((), None)):
            for method in ("GET", "HEAD"):
                got = await gateway.exchange(method, fields=fields)
                assert got.get("content-encoding") == coding
                assert got.get("vary") == "Accept-Encoding"
                assert method == "HEAD" or decoded(got) == TEXT
    filters = recorder.of("upstream_response_filter")
    assert filters[0].args["head"].headers.get("content-encoding") == "gzip"


@pairings
async def test_a_request_for_the_head_fills_the_cache_with_the_body(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []
    recorder = Storing()
    async with open_matrix(recorder, giving(KIND, LENGTH, FRESH, seen=seen), pairing) as gateway:
        heads = [await gateway.exchange("HEAD", fields=[GZIP]) for _ in range(2)]
        whole = await gateway.exchange(fields=[GZIP])
        plain = await gateway.exchange("HEAD")
    assert len(seen) == 1
    for head in heads:
        assert (head.get("content-encoding"), head.body) == ("gzip", b"")
    assert decoded(whole) == TEXT
    assert plain.get("content-encoding") is None


async def test_conditions_are_met_by_the_weak_tag(autojump_clock: MockClock) -> None:
    seen: list[Message] = []
    origin = giving(KIND, FRESH, ("etag", '"one"'), seen=seen)
    async with open_matrix(Storing(), origin, PLAIN) as gateway:
        await gateway.exchange(fields=[GZIP])
        for held in ('W/"one"', '"one"'):
            got = await gateway.exchange(fields=[GZIP, ("if-none-match", held)])
            assert (got.status, got.get("etag")) == (304, 'W/"one"')
        got = await gateway.exchange(fields=[GZIP, ("if-match", 'W/"one"')])
        assert got.status == 412
    assert len(seen) == 1


async def test_ranges_are_of_what_the_client_would_get_and_so_are_passed_over(
    autojump_clock: MockClock,
) -> None:
    picture = ("content-type", "image/png")
    part = ("range", "bytes=0-9")
    for kind in (KIND, picture):
        async with open_matrix(Storing(), giving(kind, LENGTH, FRESH, seen=[]), PLAIN) as gateway:
            for _ in range(2):  # while it is filled, and when it is stored
                for fields in ([part], [part, GZIP]):
                    got = await gateway.exchange(fields=fields)
                    if kind is picture:
                        assert (got.status, got.body) == (206, TEXT[:10])
                    else:
                        assert got.status == 200
                        assert got.get("accept-ranges") is None
                        assert decoded(got) == TEXT


async def test_a_304_of_the_origin_leaves_the_weak_tag_and_the_coding(
    autojump_clock: MockClock,
) -> None:
    requests: list[Message] = []

    async def origin(wire: Wire) -> None:
        requests.append(await wire.message())
        fields = b'ETag: "one"\r\nCache-Control: max-age=60\r\n'
        if requests[-1].get("if-none-match") is None:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
            await wire.send(head % len(TEXT) + fields + b"\r\n" + TEXT)
        else:
            await wire.send(b"HTTP/1.1 304 Not Modified\r\n" + fields + b"\r\n")
        await wire.more()

    recorder = Storing()
    async with open_cache(recorder, origin) as gateway:
        request = b"GET /path HTTP/1.1\r\nHost: site.test\r\nAccept-Encoding: %s\r\n\r\n"
        first = await gateway.exchange(request % b"gzip")
        autojump_clock.jump(61)
        second = await gateway.exchange(request % b"gzip")
        third = await gateway.exchange(request % b"identity")
    assert requests[1].get("if-none-match") == 'W/"one"'
    assert len(requests) == 2
    for got in (first, second):
        assert (got.get("etag"), got.get("content-encoding")) == ('W/"one"', "gzip")
        assert decoded(got) == TEXT
    assert (third.get("etag"), third.body) == ('W/"one"', TEXT)


async def test_what_the_origin_has_coded_is_stored_as_it_is(autojump_clock: MockClock) -> None:
    body = ENCODE["br"](TEXT)
    recorder = Storing()
    origin = giving(KIND, FRESH, ("content-encoding", "br"), body=body, seen=[])
    async with open_matrix(recorder, origin, PLAIN) as gateway:
        assert (await gateway.exchange(fields=[ALL])).body == body
        assert (await gateway.exchange()).body == TEXT
    assert stored_body(recorder.storage) == [body]


async def test_an_attempt_that_failed_leaves_nothing_to_the_next(autojump_clock: MockClock) -> None:
    """The first attempt ends when the content that came with the head was compressed already."""
    refused = 0

    def error_while_proxy(
        _peer: HttpPeer, _session: Session, e: ProxyError, _ctx: object, _reused: bool
    ) -> ProxyError:
        e.set_retry(True)
        return e

    async def upstream_response_filter(*_args: object) -> None:
        nonlocal refused
        refused += 1
        if refused == 1:
            raise ProxyError.new_up(ErrorType.ReadError)

    recorder = Storing(
        hooks={
            "upstream_response_filter": upstream_response_filter,
            "error_while_proxy": error_while_proxy,
        }
    )
    text = TEXT[:500]
    length = ("content-length", str(len(text)))
    origin = giving(KIND, FRESH, length, body=text, seen=[])
    async with open_matrix(recorder, origin, PLAIN, check_windows=False) as gateway:
        got = await gateway.exchange(fields=[GZIP])
    assert refused == 2
    assert got.get("content-encoding") == "gzip"
    assert decoded(got) == text
