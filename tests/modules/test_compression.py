"""Compression of responses, over HTTP/1 and HTTP/2 on both sides, against decoders that are not ours."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._support.coding import DECODE, ENCODE, so_far
from tests._support.matrix import H1, H2C, PAIRINGS, Exchange, Handler, Pairing, open_matrix
from tests._support.recording import CutError, Message, Recorder, returns
from trioproxy import (
    BodyChunk,
    ErrorSource,
    ErrorType,
    ProxyHttp,
    RequestHeader,
    ResponseHeader,
    Session,
)
from trioproxy.modules import (
    HttpModules,
    InflationLimits,
    ModulesCtx,
    ResponseCompression,
    ResponseCompressionBuilder,
)
from trioproxy.modules._compression import upstream_compression

PLAIN = Pairing(H1, H1)
pairings = pytest.mark.parametrize(
    "pairing", [Pairing(down, up) for down in (H1, H2C) for up in (H1, H2C)], ids=str
)
TEXT = b"".join(b"line %d of a text that is worth it\n" % number for number in range(300))
KIND = ("content-type", "text/plain; charset=utf-8")
ALL = ("accept-encoding", "gzip, deflate, br, zstd")


@attrs.define(eq=False, slots=False)
class Compressing(Recorder):
    """Compresses as its builder says; None leaves the trait's default."""

    builder: ResponseCompressionBuilder | None = attrs.field(
        factory=lambda: ResponseCompressionBuilder(5)
    )

    def init_downstream_modules(self, modules: HttpModules) -> None:
        if self.builder is None:
            super().init_downstream_modules(modules)
        else:
            modules.add_module(self.builder)


def giving(
    *fields: tuple[str, str],
    body: bytes = TEXT,
    status: int = 200,
    trailers: list[tuple[str, str]] | None = None,
    seen: list[Message] | None = None,
) -> Handler:
    """Return an origin that gives this, whatever it is asked."""

    async def origin(exchange: Exchange) -> None:
        message = await exchange.message()
        if seen is not None:
            seen.append(message)
        to_head = message.start.startswith(b"HEAD")
        await exchange.respond(status, fields, b"" if to_head else body, trailers)

    return origin


def in_chunks(*chunks: bytes, fields: list[tuple[str, str]]) -> Handler:
    """Return an origin that sends its body in pieces, each read by itself."""

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, fields)
        for chunk in chunks:
            await exchange.send_data(chunk)
            await wait_all_tasks_blocked()
        await exchange.send_data(b"", end=True)

    return origin


async def answer(
    proxy: ProxyHttp[Any],
    origin: Handler,
    *fields: tuple[str, str],
    pairing: Pairing = PLAIN,
    method: str = "GET",
) -> Message:
    """Return what one request gets."""
    async with open_matrix(proxy, origin, pairing) as gateway:
        return await gateway.exchange(method, fields=fields)


def decoded(message: Message) -> bytes:
    """Return the content as the client understands it."""
    coding = message.get("content-encoding")
    return message.body if coding is None else DECODE[coding](message.body)


# -- what the client gets ------------------------------------------------------------------------


@pairings
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_client_gets_the_coding_it_takes(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    origin = giving(KIND, ("content-length", str(len(TEXT))), ("etag", '"one"'))
    got = await answer(Compressing(), origin, ("accept-encoding", coding), pairing=pairing)
    assert got.get("content-encoding") == coding
    assert got.get("vary") == "Accept-Encoding"
    assert got.get("etag") == 'W/"one"'
    assert got.get("content-length") is None
    assert len(got.body) < len(TEXT) / 3
    assert decoded(got) == TEXT


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
async def test_trailers_come_behind_the_compressed_body(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    origin = giving(KIND, trailers=[("x-sum", "1"), ("repr-digest", "sha-256=:AAAA:")])
    got = await answer(Compressing(), origin, ALL, ("te", "trailers"), pairing=pairing)
    assert got.get("content-encoding") == "zstd"
    assert decoded(got) == TEXT
    assert got.trailers == [(b"x-sum", b"1")]


@pairings
async def test_head_has_the_head_of_get(pairing: Pairing, autojump_clock: MockClock) -> None:
    for fields in ([KIND, ("content-length", str(len(TEXT)))], [KIND]):
        heads = [
            await answer(Compressing(), giving(*fields), ALL, pairing=pairing, method=method)
            for method in ("GET", "HEAD")
        ]
        whole, alone = [[f for f in head.fields if f[0] != b"date"] for head in heads]
        assert (b"content-encoding", b"zstd") in whole
        # Over HTTP/2 an origin ends the stream with the head: of what GET would get nothing is known.
        assert alone == whole
        assert heads[1].body == b""


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([("content-type", "image/png")], 200),
        ([("content-type", "application/grpc+json")], 200),
        ([], 200),
        ([KIND, ("cache-control", "max-age=9, no-transform")], 200),
        ([KIND, ("content-encoding", "gzip")], 200),
        ([KIND, ("content-encoding", "br, gzip")], 200),
        ([KIND, ("content-encoding", "aes128gcm")], 200),
        ([KIND, ("content-range", "bytes 0-10799/20000")], 206),
        ([KIND], 206),
        ([KIND, ("content-range", "bytes 0-10799/20000")], 200),
    ],
)
async def test_what_is_left_alone(
    fields: list[tuple[str, str]], status: int, autojump_clock: MockClock
) -> None:
    fields = [*fields, ("content-length", str(len(TEXT))), ("etag", '"x"')]
    got = await answer(Compressing(), giving(*fields, status=status), ALL)
    assert got.body == TEXT
    assert {(name.encode(), value.encode()) for name, value in fields} <= set(got.fields)
    assert got.get("vary") is None


@pytest.mark.parametrize("status", [204, 304])
async def test_a_response_without_content_stays_one(status: int, autojump_clock: MockClock) -> None:
    got = await answer(Compressing(), giving(KIND, body=b"", status=status), ALL)
    assert got.status == status
    assert got.get("content-encoding") is None


@pytest.mark.parametrize("fields", [[("content-length", "0")], []])
@pairings
async def test_an_empty_body_is_not_made_longer(
    pairing: Pairing, fields: list[tuple[str, str]], autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [KIND, *fields], end=True)

    got = await answer(Compressing(), origin, ALL, pairing=pairing)
    assert decoded(got) == b""
    if fields:
        assert got.get("content-encoding") is None


async def test_what_is_too_short_is_left_alone_where_that_is_known(
    autojump_clock: MockClock,
) -> None:
    for size, coding in ((19, None), (20, "zstd")):
        origin = giving(KIND, ("content-length", str(size)), body=TEXT[:size])
        got = await answer(Compressing(), origin, ALL)
        assert got.get("content-encoding") == coding
        assert decoded(got) == TEXT[:size]
    builder = ResponseCompressionBuilder(5, min_size=1000)
    got = await answer(Compressing(builder=builder), giving(KIND), ALL)
    assert got.get("content-encoding") == "zstd"  # nobody knows how long a chunked one is


@pytest.mark.parametrize(
    "accepted", [None, "", "identity", "gzip;q=0", "identity;q=1, gzip;q=0.5", "compress"]
)
async def test_a_client_that_wants_none_gets_the_body_and_is_told_why(
    accepted: str | None, autojump_clock: MockClock
) -> None:
    fields = [] if accepted is None else [("accept-encoding", accepted)]
    origin = giving(KIND, ("content-length", str(len(TEXT))), ("vary", "Origin"), ("etag", '"1"'))
    got = await answer(Compressing(), origin, *fields)
    assert got.get("vary") == "Origin, Accept-Encoding"
    assert got.get("content-length") == str(len(TEXT))
    assert got.get("etag") == '"1"'
    assert got.get("content-encoding") is None
    assert got.body == TEXT


async def test_a_client_that_forbids_transforming_gets_the_body(autojump_clock: MockClock) -> None:
    got = await answer(Compressing(), giving(KIND), ALL, ("cache-control", "no-transform"))
    assert got.get("content-encoding") is None
    assert got.body == TEXT


async def test_the_order_of_the_builder_decides_between_equals(autojump_clock: MockClock) -> None:
    builder = ResponseCompressionBuilder(5, algorithms=("deflate", "br"))
    got = await answer(Compressing(builder=builder), giving(KIND), ALL)
    assert got.get("content-encoding") == "deflate"
    got = await answer(Compressing(builder=builder), giving(KIND), ("accept-encoding", "gzip"))
    assert got.get("content-encoding") is None


async def test_content_types_are_an_option(autojump_clock: MockClock) -> None:
    builder = ResponseCompressionBuilder(5, content_types=["application/x-own", "*+cbor"])
    for kind, coding in (
        ("application/x-own", "zstd"),
        ("Application/X-Own ; a=b", "zstd"),
        ("application/senml+cbor", "zstd"),
        ("text/plain", None),
        ("application/x-owner", None),
    ):
        got = await answer(Compressing(builder=builder), giving(("content-type", kind)), ALL)
        assert got.get("content-encoding") == coding


@pytest.mark.parametrize(
    ("kind", "worth"),
    [
        ("text/html", True),
        ("application/json", True),
        ("application/problem+json", True),
        ("image/svg+xml", True),
        ("application/wasm", True),
        ("font/ttf", True),
        ("font/woff2", False),
        ("image/jpeg", False),
        ("video/mp4", False),
        ("application/zip", False),
        ("application/octet-stream", False),
        ("application/grpc", False),
        ("application/grpc-web+json", False),
        ("nonsense", False),
    ],
)
def test_what_is_worth_it(kind: str, worth: bool) -> None:
    assert ResponseCompressionBuilder().compresses(kind) is worth


# -- switching it on -----------------------------------------------------------------------------


async def test_a_filter_switches_on_what_every_proxy_has(autojump_clock: MockClock) -> None:
    async def request_filter(session: Session, _ctx: object) -> bool:
        compression = session.downstream_modules_ctx.get(ResponseCompression)
        assert compression is not None
        assert repr(compression) == "<ResponseCompression off>"
        compression.adjust_level(6)
        assert repr(compression) == "<ResponseCompression zstd 6, br 6, gzip 6, deflate 6>"
        return False

    recorder = Compressing(builder=None)
    got = await answer(recorder, giving(KIND), ALL)
    assert got.get("content-encoding") is None
    assert got.get("vary") is None
    recorder = Compressing(builder=None, hooks={"request_filter": request_filter})
    got = await answer(recorder, giving(KIND), ALL)
    assert got.get("content-encoding") == "zstd"
    assert decoded(got) == TEXT


async def test_one_algorithm_can_have_a_level_of_its_own(autojump_clock: MockClock) -> None:
    noise = random.Random(1).choices(TEXT.split(), k=4000)
    body = b" ".join(noise)
    sizes = []
    for level in (0, 1, 8):

        async def request_filter(session: Session, _ctx: object, level: int = level) -> bool:
            compression = session.downstream_modules_ctx.get(ResponseCompression)
            assert compression is not None
            compression.adjust_algorithm_level("gzip", level)
            return False

        recorder = Compressing(builder=None, hooks={"request_filter": request_filter})
        got = await answer(recorder, giving(KIND, body=body), ALL)
        assert got.get("content-encoding") == ("gzip" if level else None)
        assert decoded(got) == body
        sizes.append(len(got.body))
    assert sizes[0] == len(body)
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(("coding", "level"), [("br", 9), ("zstd", 13), ("gzip", 9)])
async def test_what_takes_long_is_done_by_a_thread(
    coding: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    run_sync = trio.to_thread.run_sync

    async def counted(function: Callable[..., bytes], *args: Any) -> bytes:
        jobs.append(function)
        return await run_sync(function, *args)

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    for each in (level - 1, level):
        builder = ResponseCompressionBuilder(algorithm_levels={coding: each})
        fields = [KIND]
        origin = in_chunks(TEXT, TEXT, fields=fields)
        got = await answer(Compressing(builder=builder), origin, ("accept-encoding", coding))
        assert decoded(got) == TEXT + TEXT
        assert bool(jobs) == (each == level)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": 10}, "level=10: 0 .off. to 9"),
        ({"level": True}, "level=True"),
        ({"algorithms": "gzip"}, "algorithms='gzip'"),
        ({"algorithms": ["lzma"]}, "'lzma' is no coding: zstd, br, gzip, deflate are"),
        ({"algorithms": ["gzip", "gzip"]}, "each of them once"),
        ({"algorithms": []}, "one or more codings"),
        ({"algorithm_levels": {"gzip": 10}}, "gzip=10: 0 .off. to 9"),
        ({"algorithm_levels": {"br": 12}}, "br=12: 0 .off. to 11"),
        ({"algorithm_levels": 3}, "a mapping"),
        ({"algorithms": ["gzip"], "algorithm_levels": {"br": 1}}, "br is not in algorithms"),
        ({"decompress": 1}, "decompress=1"),
        ({"content_types": "text/html"}, "a list of media types"),
        ({"content_types": ["html"]}, "'html' is no media type"),
        ({"min_size": -1}, "min_size=-1"),
        ({"limits": 3}, "limits=3"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ResponseCompressionBuilder(**options)


def test_a_wrong_adjustment_is_refused_with_what_is_right() -> None:
    compression = ResponseCompressionBuilder().init()
    for level in (-1, 10, 1.5):
        with pytest.raises(ValueError, match=r"0 \(off\) to 9"):
            compression.adjust_level(level)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0 \(off\) to 19"):
        compression.adjust_algorithm_level("zstd", 20)
    with pytest.raises(ValueError, match="'compress' is no coding"):
        compression.adjust_algorithm_level("compress", 1)


def test_a_proxy_that_compresses_nothing_loads_no_library() -> None:
    program = """
import sys
import trioproxy
from trioproxy.modules import HttpModules

trioproxy.ProxyHttp.init_downstream_modules(None, HttpModules())
print([name for name in ("brotli", "backports.zstd", "compression.zstd", "isal") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_limits_are_numbers() -> None:
    for option in ("ratio", "free", "size"):
        with pytest.raises(ValueError, match=f"{option}=0: a number from 1"):
            InflationLimits(**{option: 0})


# -- streaming -----------------------------------------------------------------------------------


@pairings
@pytest.mark.parametrize("side", ["downstream", "upstream", "both, recoded"])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_each_event_of_an_endless_stream_arrives_before_the_next_is_sent(
    coding: str, side: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    events = [b"data: event %d\n\n" % number for number in range(10)]
    arrived = trio.Event()

    async def origin(exchange: Exchange) -> None:
        nonlocal arrived
        await exchange.message()
        await exchange.send_head(200, [("content-type", "text/event-stream")])
        for event in events:
            arrived = trio.Event()
            await exchange.send_data(event)
            await arrived.wait()
            await trio.sleep(30)
        await exchange.gone()

    async def request_filter(session: Session, _ctx: object) -> bool:
        if side == "upstream":
            session.upstream_compression.adjust_level(3)
        elif side == "both, recoded":  # in gzip as far as the filters, then as the client wants it
            session.upstream_compression.adjust_algorithm_level("gzip", 3)
            session.req_header().headers.set("accept-encoding", "gzip")
        return False

    async def response_filter(session: Session, head: ResponseHeader, _ctx: object) -> None:
        if side == "both, recoded":
            assert head.headers.get("content-encoding") == "gzip"
            session.req_header().headers.set("accept-encoding", coding)

    recorder = Compressing(
        hooks={"request_filter": request_filter, "response_filter": response_filter}
    )
    if side == "upstream":
        recorder.builder = ResponseCompressionBuilder()
    async with open_matrix(recorder, origin, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.request(fields=[("accept-encoding", coding)])
        assert (await exchange.head()).get("content-encoding") == coding
        decode, taken = so_far(coding), 0
        for event in events:
            came = b""
            while len(came) < len(event):
                body = (await exchange.at_least(taken + 1)).body
                came += decode(body[taken:])
                taken = len(body)
            assert came == event
            arrived.set()
        await exchange.reset()


@given(cuts=st.lists(st.integers(1, 400), max_size=5), level=st.integers(1, 9))
def test_a_body_in_any_pieces_comes_back(cuts: list[int], level: int) -> None:
    """The pieces that an origin sends, and what the client gets of them."""

    async def main() -> None:
        chunks, at = [], 0
        for size in cuts:
            chunks.append(TEXT[at : at + size])
            at += size
        origin = in_chunks(*chunks, fields=[KIND])
        builder = ResponseCompressionBuilder(level)
        got = await answer(Compressing(builder=builder), origin, ALL)
        assert got.get("content-encoding") == "zstd"
        assert decoded(got) == TEXT[:at]

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_many_chunks_that_came_at_once_are_flushed_once(autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        async with exchange.one_write():
            await exchange.send_head(200, [KIND])
            for at in range(0, len(TEXT), 50):
                await exchange.send_data(TEXT[at : at + 50])
        await trio.sleep(1)
        await exchange.send_data(b"", end=True)

    whole = await answer(Compressing(), giving(KIND), ALL)
    pieces = await answer(Compressing(), origin, ALL)
    assert decoded(pieces) == TEXT
    assert len(pieces.body) < len(whole.body) + 30


async def test_a_response_that_a_callback_writes_is_compressed(autojump_clock: MockClock) -> None:
    async def request_filter(session: Session, _ctx: object) -> bool:
        length = str(len(TEXT))
        head = ResponseHeader(200, [("Content-Type", "text/plain"), ("Content-Length", length)])
        await session.write_response_header(head)
        await session.write_response_body(TEXT[:100], False)
        await session.write_response_body(TEXT[100:], False)
        await session.write_response_body(None, True)
        return True

    recorder = Compressing(hooks={"request_filter": request_filter})
    got = await answer(recorder, giving(), ALL)
    assert got.get("content-encoding") == "zstd"
    assert decoded(got) == TEXT


async def test_bytes_that_take_the_place_of_trailers_are_compressed_too(
    autojump_clock: MockClock,
) -> None:
    recorder = Compressing(hooks={"response_trailer_filter": returns(b"the end")})
    got = await answer(recorder, giving(KIND, trailers=[("x", "1")]), ALL)
    assert got.get("content-encoding") == "zstd"
    assert decoded(got) == TEXT + b"the end"


@pairings
async def test_a_client_that_leaves_ends_a_compressed_response(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    ended = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [KIND])
        await exchange.send_data(TEXT)
        await exchange.gone()
        ended.set()

    recorder = Compressing()
    async with open_matrix(recorder, origin, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.request(fields=[ALL])
        await exchange.at_least(1)
        await exchange.reset()
        await ended.wait()
        await gateway.sessions_ended()
    error = recorder.the("logging").args["e"]
    assert error.esource is ErrorSource.DOWNSTREAM


@pairings
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_a_client_that_leaves_ends_what_is_being_decoded(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    """A single piece that would have become many more."""
    recorder = decoding(limits=InflationLimits(ratio=10_000_000))
    origin = giving(("content-encoding", coding), body=ENCODE[coding](bytes(5_000_000)))
    async with open_matrix(recorder, origin, pairing, check_windows=False) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        exchange.hold()
        await exchange.at_least(1)
        await trio.sleep(1)
        await exchange.reset()
        await gateway.sessions_ended()
    error = recorder.the("logging").args["e"]
    assert error.esource is ErrorSource.DOWNSTREAM


@pairings
async def test_an_origin_that_cuts_its_body_cuts_the_compressed_one(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [KIND])
        await exchange.send_data(TEXT)
        await wait_all_tasks_blocked()
        await exchange.reset()

    async with open_matrix(Compressing(), origin, pairing, check_windows=False) as gateway:
        with pytest.raises(CutError) as caught:
            await gateway.exchange(fields=[ALL])
    message = caught.value.message
    assert message is not None
    assert so_far("zstd")(message.body) == TEXT


async def test_a_second_response_on_the_connection_begins_anew(autojump_clock: MockClock) -> None:
    async with open_matrix(Compressing(), giving(KIND), PLAIN) as gateway:
        client = await gateway.connect()
        for accepted in ("gzip", "br", "", "gzip"):
            got = await client.exchange(fields=[("accept-encoding", accepted)])
            assert got.get("content-encoding") == (accepted or None)
            assert decoded(got) == TEXT


async def test_an_informational_head_passes_by(autojump_clock: MockClock) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(103, [("link", "</a>; rel=preload"), KIND])
        await exchange.respond(200, [KIND], TEXT)

    async with open_matrix(Compressing(), origin, PLAIN) as gateway:
        client = await gateway.connect()
        exchange = await client.request(fields=[ALL])
        got = await exchange.message()
        (early,) = await exchange.informational()
    assert early.get("content-encoding") is None
    assert early.get("vary") is None
    assert decoded(got) == TEXT


# -- conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "tag"),
    [
        ('W/"one"', 'W/"one"'),
        ('"one"', '"one"'),
        ('W/"one", "one"', '"one"'),
        ('W/"other"', '"one"'),
        ("*", '"one"'),
    ],
)
async def test_a_304_has_the_tag_that_the_client_holds(
    held: str, tag: str, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []
    origin = giving(("etag", '"one"'), ("vary", "Origin"), body=b"", status=304, seen=seen)
    got = await answer(Compressing(), origin, ALL, ("if-none-match", held))
    assert seen[0].get("if-none-match") == held
    assert got.status == 304
    assert got.get("etag") == tag
    assert got.get("vary") == "Origin, Accept-Encoding"


async def test_a_304_that_says_nothing_of_vary_lets_what_is_stored_stand(
    autojump_clock: MockClock,
) -> None:
    origin = giving(("etag", 'W/"one"'), body=b"", status=304)
    got = await answer(Compressing(), origin, ALL, ("if-none-match", 'W/"one"'))
    assert got.get("vary") is None
    assert got.get("etag") == 'W/"one"'


# -- decoding ------------------------------------------------------------------------------------


def decoding(**options: Any) -> Compressing:
    """Return a proxy that decodes for clients that do not take what there is."""
    return Compressing(builder=ResponseCompressionBuilder(decompress=True, **options))


@pairings
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_client_that_does_not_take_the_coding_gets_the_content(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    body = ENCODE[coding](TEXT)
    origin = giving(
        ("content-encoding", coding), ("content-length", str(len(body))), ("etag", '"1"'), body=body
    )
    got = await answer(decoding(), origin, pairing=pairing)
    assert got.get("content-encoding") is None
    assert got.get("content-length") is None
    assert got.get("etag") == 'W/"1"'
    assert got.get("vary") == "Accept-Encoding"
    assert got.body == TEXT

    got = await answer(decoding(), origin, ("accept-encoding", coding), pairing=pairing)
    assert got.get("content-encoding") == coding
    assert got.get("etag") == '"1"'
    assert got.get("vary") == "Accept-Encoding"
    assert got.body == body


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_coded_body_may_be_cut_at_every_point(
    coding: str, autojump_clock: MockClock
) -> None:
    body = ENCODE[coding](TEXT[:60])

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        at = exchange.index
        await exchange.send_head(200, [("content-encoding", coding)])
        for piece in (body[:at], body[at:]):
            if piece:
                await exchange.send_data(piece)
                await wait_all_tasks_blocked()
        await exchange.send_data(b"", end=True)

    async with open_matrix(decoding(), origin, PLAIN) as gateway:
        client = await gateway.connect()
        for _ in range(len(body) + 1):
            assert (await client.exchange()).body == TEXT[:60]


async def test_what_the_client_does_not_take_is_recoded_into_what_it_takes(
    autojump_clock: MockClock,
) -> None:
    origin = giving(KIND, ("content-encoding", "x-gzip"), body=ENCODE["gzip"](TEXT))
    proxy = Compressing(builder=ResponseCompressionBuilder(5, decompress=True))
    got = await answer(proxy, origin, ("accept-encoding", "br"))
    assert got.get("content-encoding") == "br"
    assert decoded(got) == TEXT
    got = await answer(proxy, origin, ALL)
    assert got.get("content-encoding") == "x-gzip"  # it takes that: no work is done twice


async def test_what_is_recoded_may_be_more_than_a_piece(autojump_clock: MockClock) -> None:
    text = TEXT * 50
    body = ENCODE["gzip"](text)
    length = ("content-length", str(len(body)))  # so that the piece is known to be the last
    origin = giving(KIND, ("content-encoding", "gzip"), length, body=body)
    proxy = Compressing(builder=ResponseCompressionBuilder(5, decompress=True))
    for coding in ("br", "deflate", "zstd"):
        got = await answer(proxy, origin, ("accept-encoding", coding))
        assert got.get("content-encoding") == coding
        assert decoded(got) == text


@pytest.mark.parametrize("codings", ["br, gzip", "aes128gcm", "gzip, gzip"])
async def test_several_codings_and_unknown_ones_are_left_alone(
    codings: str, autojump_clock: MockClock
) -> None:
    got = await answer(decoding(), giving(("content-encoding", codings)))
    assert got.get("content-encoding") == codings
    assert got.body == TEXT


@pairings
async def test_a_filter_can_ask_for_plain_content_to_read(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def request_filter(session: Session, _ctx: object) -> bool:
        session.upstream_compression.adjust_decompression(True, always=True)
        return False

    recorder = Compressing(hooks={"request_filter": request_filter})
    origin = giving(KIND, ("content-encoding", "gzip"), body=ENCODE["gzip"](TEXT))
    got = await answer(recorder, origin, ALL, pairing=pairing)
    read = [data for data, _ in recorder.pieces("response_body_filter")]
    assert b"".join(data or b"" for data in read) == TEXT
    head = recorder.the("upstream_response_filter").args["head"]
    assert "content-encoding" not in head.headers
    assert got.get("content-encoding") == "zstd"
    assert decoded(got) == TEXT


@pairings
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_what_the_client_has_not_taken_holds_up_the_rest_of_a_single_piece(
    coding: str, pairing: Pairing, autojump_clock: MockClock
) -> None:
    body = ENCODE[coding](bytes(2_000_000))
    assert len(body) < 5_000
    compressions: list[ResponseCompression | None] = []

    async def request_filter(session: Session, _ctx: object) -> bool:
        compressions.append(session.downstream_modules_ctx.get(ResponseCompression))
        return False

    recorder = decoding(limits=InflationLimits(ratio=10_000_000))
    recorder.hooks["request_filter"] = request_filter
    origin = giving(("content-encoding", coding), body=body)
    async with open_matrix(recorder, origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.request()
        exchange.hold()
        await exchange.at_least(1)
        await trio.sleep(10)
        (compression,) = compressions
        assert compression is not None
        inflation = compression._inflation
        assert inflation is not None
        assert 0 < inflation._given < 500_000
        exchange.go_on()
        got = await exchange.message()
        assert len(got.body) == inflation._given == 2_000_000


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_what_cannot_be_decoded_is_the_origins_error(
    coding: str, autojump_clock: MockClock
) -> None:
    body = ENCODE[coding](TEXT)
    for broken in (b"this is no such thing, whatever was said of it" * 20, body[:-3], body + b"x"):
        recorder = decoding()
        origin = giving(("content-encoding", coding), body=broken)
        async with open_matrix(recorder, origin, PLAIN) as gateway:
            client = await gateway.connect()
            exchange = await client.request()
            try:
                assert (await exchange.message()).status == 502
            except CutError:
                pass
        error = recorder.the("logging").args["e"]
        assert (error.etype, error.esource) == (
            ErrorType.CompressionError,
            ErrorSource.UPSTREAM,
        )


async def test_a_coded_body_of_no_bytes_is_empty(autojump_clock: MockClock) -> None:
    got = await answer(decoding(), in_chunks(fields=[("content-encoding", "gzip")]))
    assert got.status == 200
    assert got.body == b""


# -- by itself -----------------------------------------------------------------------------------


class _Session:
    """As much of a session as the upstream's side looks at."""

    def __init__(self) -> None:
        self.downstream_modules_ctx = ModulesCtx(HttpModules([ResponseCompressionBuilder(5)]))


def test_the_upstreams_side_is_off_whatever_the_clients_side_is() -> None:
    session: Any = _Session()
    assert repr(upstream_compression(session)) == "<ResponseCompression off>"


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
async def test_a_tunnel_is_left_alone(method: str) -> None:
    session: Any = _Session()
    session.req_header = lambda: RequestHeader(method, "/", [ALL])
    response = ResponseHeader(200, [KIND])
    await ResponseCompressionBuilder(5).init().response_header_filter(session, response, False)
    assert ("content-encoding" in response.headers) == (method == "GET")


async def test_content_that_would_get_its_own_coding_again_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    async def request_filter(session: Session, _ctx: object) -> bool:
        compression = session.downstream_modules_ctx.get(ResponseCompression)
        assert compression is not None
        compression.adjust_decompression(True, always=True)
        return False

    recorder = Compressing(hooks={"request_filter": request_filter})
    body = ENCODE["gzip"](TEXT)
    origin = giving(KIND, ("content-encoding", "gzip"), ("etag", '"1"'), body=body)
    got = await answer(recorder, origin, ("accept-encoding", "gzip"))
    assert (got.body, got.get("etag")) == (body, '"1"')
    assert got.get("vary") == "Accept-Encoding"  # another client gets something else


async def test_a_flush_gives_what_was_held_back_and_then_nothing() -> None:
    session: Any = _Session()
    session.req_header = lambda: RequestHeader("GET", "/", [ALL])
    compression = ResponseCompressionBuilder(5, algorithms=["gzip"]).init()
    await compression.response_header_filter(session, ResponseHeader(200, [KIND]), False)
    chunks = [BodyChunk() for _ in range(4)]
    nothing, piece, flushed, again = chunks
    await compression.response_flush_filter(session, nothing)
    piece.data = b"some text"
    await compression.response_body_filter(session, piece, False)
    await compression.response_flush_filter(session, flushed)
    await compression.response_flush_filter(session, again)
    assert nothing.data is again.data is None
    assert so_far("gzip")((piece.data or b"") + (flushed.data or b"")) == b"some text"


async def test_nothing_is_held_when_the_exchange_is_over(autojump_clock: MockClock) -> None:
    compressions: list[ResponseCompression] = []

    async def request_filter(session: Session, _ctx: object) -> bool:
        compressions.append(session.upstream_compression)
        compression = session.downstream_modules_ctx.get(ResponseCompression)
        assert compression is not None
        compressions.append(compression)
        compressions[0].adjust_level(1)
        return False

    recorder = Compressing(hooks={"request_filter": request_filter})
    got = await answer(recorder, giving(KIND), ALL)
    assert decoded(got) == TEXT
    assert len(compressions) == 2
    assert all(each._encoder is None for each in compressions)
