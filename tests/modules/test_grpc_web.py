"""gRPC-Web to gRPC: base64 in a stream, heads, and whole calls in every pairing of protocols."""

from __future__ import annotations

import base64
import itertools
import re
from typing import Any, cast

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests._support.grpc_web import BINARY, TEXT, asked, decoded, frame, from_text
from tests._support.matrix import H1, H2_TLS, H2C, Exchange, Pairing, open_matrix
from tests._support.recording import CutError, Message
from tests.modules._modular import CUTS, TO_HTTP2, VERSIONS, Modular, cut_link
from trioproxy import BodyChunk, Headers, ProxyError, RequestHeader, ResponseHeader, Session
from trioproxy.modules import GrpcWeb, GrpcWebBridge, HttpModule, HttpModuleBuilder
from trioproxy.modules._grpc_web import Base64Decoder, FrameEncoder, trailer_frame
from trioproxy.semantics._forwarding import to_upstream
from trioproxy.semantics._h2 import request_fields

NO_SESSION = cast("Session", None)

to_http2 = pytest.mark.parametrize("pairing", TO_HTTP2, ids=str)
forms = pytest.mark.parametrize("kind", [BINARY, TEXT])
cuts = pytest.mark.parametrize("cut", CUTS, ids=str)


# -- base64 in a stream ----------------------------------------------------------------------------


def pieces_of(data: bytes, points: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


@given(st.lists(st.binary(min_size=1, max_size=20)), st.lists(st.integers(0, 1000)))
def test_base64_that_is_padded_in_its_middle_decodes_however_it_is_cut(
    units: list[bytes], points: list[int]
) -> None:
    decoder = Base64Decoder()
    body = b"".join(map(base64.b64encode, units))
    out = b"".join([decoder.feed(piece) for piece in pieces_of(body, points)])
    decoder.finish()
    assert out == b"".join(units)


@given(st.text("AZaz09+/=\n- ").map(str.encode), st.lists(st.integers(0, 100)))
def test_any_text_decodes_or_is_refused_and_alike_however_it_is_cut(
    body: bytes, points: list[int]
) -> None:
    def result(pieces: list[bytes]) -> bytes | None:
        decoder = Base64Decoder()
        try:
            out = b"".join([decoder.feed(piece) for piece in pieces])
            decoder.finish()
        except ValueError:
            return None
        return out

    whole = result([body])
    assert result(pieces_of(body, points)) == whole
    assert (whole is None) is not bool(
        re.fullmatch(rb"([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)*", body)
    )


@pytest.mark.parametrize("body", [b"=AAA", b"A===", b"AA=A", b"AAA", b"AAAA\n", b"AA-_", b"===="])
def test_what_is_no_base64_is_refused(body: bytes) -> None:
    def decode() -> None:
        decoder = Base64Decoder()
        decoder.feed(body)
        decoder.finish()

    with pytest.raises(ValueError, match="base64"):
        decode()


@given(st.lists(st.binary(max_size=30)), st.lists(st.integers(0, 1000)))
def test_what_is_encoded_can_be_decoded_at_once_and_no_whole_message_is_held(
    messages: list[bytes], points: list[int]
) -> None:
    encoder = FrameEncoder()
    content = b"".join(map(frame, messages))
    ends = {0}
    for message in messages:
        ends.add(max(ends) + 5 + len(message))
    came, out = 0, b""
    for piece in pieces_of(content, points):
        for unit in re.findall(rb"[^=]+={0,2}", encoder.feed(piece)):
            out += unit
            # Some clients take padding for the end of a message.
            assert not unit.endswith(b"=") or len(from_text(out)) in ends
        came += len(piece)
        there = len(from_text(out))
        assert came - 2 <= there <= came
        assert there >= max(end for end in ends if end <= came)
    assert encoder.flush() == b""
    assert from_text(out) == content


def test_a_message_that_is_cut_off_is_flushed_as_it_is() -> None:
    encoder = FrameEncoder()
    content = frame(b"hello")[:-1]
    assert from_text(encoder.feed(content) + encoder.flush()) == content


def test_trailers_become_a_frame() -> None:
    trailers = Headers([("Grpc-Status", "0"), ("x-last-bin", "AAE="), ("grpc-message", "")])
    block = b"grpc-status: 0\r\nx-last-bin: AAE=\r\ngrpc-message: \r\n"
    assert trailer_frame(trailers) == b"\x80\0\0\0" + bytes([len(block)]) + block
    assert trailer_frame(Headers()) == b"\x80\0\0\0\0"


# -- heads -----------------------------------------------------------------------------------------


async def bridge(
    *fields: tuple[str, str], method: str = "POST"
) -> tuple[GrpcWebBridge, RequestHeader]:
    module = GrpcWeb().init()
    request = RequestHeader(method, "/a.B/C", [("Host", "x"), *fields])
    assert not await module.request_header_filter(NO_SESSION, request)
    return module, request


@pytest.mark.parametrize(
    ("web", "grpc"),
    [
        ("application/grpc-web", "application/grpc"),
        ("application/grpc-web+proto", "application/grpc+proto"),
        ("Application/gRPC-Web+Thrift; charset=utf-8", "application/grpc+thrift"),
        ("application/grpc-web-text", "application/grpc"),
        ("application/grpc-web-text+json", "application/grpc+json"),
        ("application/grpc-web-text-base64+proto", "application/grpc+proto"),
    ],
)
async def test_a_request_becomes_one_of_grpc(web: str, grpc: str) -> None:
    module, request = await bridge(("Content-Type", web), ("Content-Length", "5"))
    assert module.bridged
    fields = request_fields(to_upstream(request), scheme=b"http")
    assert (b"content-type", grpc.encode()) in fields
    assert (b"te", b"trailers") in fields
    assert b"content-length" not in dict(fields)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("POST", "application/grpc"),
        ("POST", "application/grpc-webby"),
        ("POST", "application/grpc-web-textual"),
        ("POST", "text/application/grpc-web"),
        ("POST", "application/json"),
        ("GET", "application/grpc-web"),
        ("OPTIONS", "application/grpc-web"),
    ],
)
async def test_a_request_that_is_no_grpc_web_passes_untouched(method: str, kind: str) -> None:
    fields = [("Content-Type", kind), ("Content-Length", "5")]
    module, request = await bridge(*fields, method=method)
    assert not module.bridged
    assert request.headers == Headers([("Host", "x"), *fields])
    assert request.facts is None


@pytest.mark.parametrize(
    ("asks", "accept", "answered"),
    [
        (BINARY, None, BINARY),
        (TEXT, None, TEXT),
        (TEXT, "*/*", TEXT),
        (BINARY, "application/grpc-web-text", TEXT),
        (TEXT, "application/grpc-web", BINARY),
        (TEXT, "application/grpc-web-text, application/grpc-web", TEXT),
        (BINARY, "application/grpc-web-text, application/grpc-web", BINARY),
        (BINARY, "application/grpc-web;q=0.5, application/grpc-web-text", TEXT),
        (BINARY, "application/grpc-web-text;q=0", BINARY),
        (BINARY, "application/grpc-web-text ; q=0.8, text/html", TEXT),
    ],
)
async def test_the_client_chooses_the_form_of_the_response(
    asks: str, accept: str | None, answered: str
) -> None:
    fields = [("Content-Type", asks)] + ([("Accept", accept)] if accept is not None else [])
    module, _ = await bridge(*fields)
    response = ResponseHeader(200, [("content-type", "application/grpc")])
    await module.response_header_filter(NO_SESSION, response, False)
    assert response.headers.get("content-type") == answered


async def test_a_connection_field_of_a_head_made_by_hand_keeps_its_meaning() -> None:
    _, request = await bridge(("Content-Type", BINARY), ("Connection", "X-Hop"), ("X-Hop", "1"))
    assert "x-hop" not in to_upstream(request).headers


async def test_encoded_content_is_refused() -> None:
    with pytest.raises(ProxyError) as refused:
        await bridge(("Content-Type", BINARY), ("Content-Encoding", "gzip"))
    assert refused.value.etype.code == 415
    module, _ = await bridge(("Content-Type", BINARY), ("Content-Encoding", "identity"))
    head = [("content-type", "application/grpc"), ("content-encoding", "gzip")]
    with pytest.raises(ProxyError, match="Content-Encoding"):
        await module.response_header_filter(NO_SESSION, ResponseHeader(200, head), False)


# -- through a proxy -------------------------------------------------------------------------------


GRPC = [("content-type", "application/grpc+proto")]
FINE = [("grpc-status", "0"), ("grpc-message", "fine")]


@attrs.define
class Origin:
    """Answers with messages, and keeps what it was asked."""

    messages: list[bytes]
    trailers: list[tuple[str, str]] = attrs.field(factory=lambda: list(FINE))
    asked: list[Message] = attrs.field(factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(await exchange.message())
        await exchange.send_head(200, GRPC)
        for message in self.messages:
            await exchange.send_data(frame(message))
        await exchange.send_trailers(self.trailers)


@cuts
@forms
@to_http2
async def test_a_call_goes_there_and_back(
    pairing: Pairing, kind: str, cut: tuple[int, ...], autojump_clock: MockClock
) -> None:
    origin = Origin([b"", b"a", b"hello" * 20])
    proxy = Modular(builders=[GrpcWeb()])
    body = asked(kind, b"question")
    async with open_matrix(
        proxy, origin, pairing, link=cut_link(cut), upstream_link=cut_link(cut)
    ) as gateway:
        fields = [("content-type", kind), ("content-length", str(len(body)))]
        response = await gateway.exchange("POST", "/a.B/C", fields, body=body)
    (request,) = origin.asked
    assert request.body == frame(b"question")
    assert request.get("content-type") == "application/grpc+proto"
    assert request.get("te") == "trailers"
    assert request.get("content-length") is None
    assert (response.status, response.get("content-type")) == (200, kind)
    assert response.get("content-length") is None
    assert response.trailers == []
    assert decoded(response) == (origin.messages, dict(FINE))


@forms
@to_http2
async def test_each_message_of_a_stream_is_delivered_at_once(
    pairing: Pairing, kind: str, autojump_clock: MockClock
) -> None:
    messages = [b"a", b"bc", b"def", b"", b"x" * 100]
    may_go_on = [trio.Event() for _ in messages]

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, GRPC)
        for message, event in zip(messages, may_go_on, strict=True):
            await exchange.send_data(frame(message))
            await event.wait()
        await exchange.send_trailers(FINE)

    async with open_matrix(Modular(builders=[GrpcWeb()]), origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.request(
            "POST", fields=[("content-type", kind)], body=asked(kind, b"")
        )
        size = 0
        for number, event in enumerate(may_go_on, 1):
            content = len(frame(messages[number - 1]))
            size += -(-content // 3) * 4 if "-text" in kind else content
            response = await exchange.at_least(size)
            assert decoded(response) == (messages[:number], None)
            event.set()
        assert decoded(await exchange.message()) == (messages, dict(FINE))


@forms
@to_http2
async def test_a_request_that_comes_in_pieces_goes_on_as_it_comes(
    pairing: Pairing, kind: str, autojump_clock: MockClock
) -> None:
    first, second = b"one", b"more than that"
    seen = trio.Event()

    async def origin(exchange: Exchange) -> None:
        await exchange.at_least(len(frame(first)))
        seen.set()
        assert (await exchange.message()).body == frame(first) + frame(second)
        await exchange.send_head(200, GRPC)
        await exchange.send_trailers(FINE)

    async with open_matrix(Modular(builders=[GrpcWeb()]), origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST", fields=[("content-type", kind)])
        await exchange.send_data(asked(kind, first))  # with padding, where it is base64
        await seen.wait()
        await exchange.send_data(asked(kind, second), end=True)
        assert decoded(await exchange.message()) == ([], dict(FINE))


@forms
@to_http2
async def test_trailers_only_stay_in_the_head(
    pairing: Pairing, kind: str, autojump_clock: MockClock
) -> None:
    status = [("grpc-status", "9"), ("grpc-message", "not%20now")]

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, [*GRPC, *status], end=True)

    async with open_matrix(Modular(builders=[GrpcWeb()]), origin, pairing) as gateway:
        response = await gateway.exchange(
            "POST", fields=[("content-type", kind)], body=asked(kind, b"x")
        )
    assert (response.get("content-type"), response.body) == (kind, b"")
    assert [response.get(name) for name, _ in status] == [value for _, value in status]


@to_http2
async def test_an_answer_that_is_no_grpc_passes_as_it_is(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(
            503, [("content-type", "text/plain"), ("content-length", "4")], b"busy"
        )

    async with open_matrix(Modular(builders=[GrpcWeb()]), origin, pairing) as gateway:
        response = await gateway.exchange(
            "POST", fields=[("content-type", TEXT)], body=asked(TEXT, b"x")
        )
    assert (response.status, response.body) == (503, b"busy")
    assert (response.get("content-type"), response.get("content-length")) == ("text/plain", "4")


@pytest.mark.parametrize("pairing", VERSIONS, ids=str)
async def test_other_requests_and_their_trailers_pass_untouched(
    pairing: Pairing, autojump_clock: MockClock
) -> None:
    seen: list[Message] = []

    async def origin(exchange: Exchange) -> None:
        seen.append(await exchange.message())
        await exchange.respond(200, GRPC, b"abc", trailers=FINE)

    async with open_matrix(Modular(builders=[GrpcWeb()]), origin, pairing) as gateway:
        fields = [("content-type", "application/grpc"), ("te", "trailers")]
        if not pairing.down.h2:
            fields.append(("connection", "te"))
        response = await gateway.exchange("POST", fields=fields, body=b"abc")
    assert seen[0].body == b"abc"
    assert response.get("content-type") == "application/grpc+proto"
    assert response.body == b"abc"
    assert [(name.decode(), value.decode()) for name, value in response.trailers] == FINE


@pytest.mark.parametrize(
    ("rest", "why"),
    [(b"?!?!", "is not base64"), (b"AAA", "ends inside a group of base64")],
)
@to_http2
async def test_what_is_no_base64_is_refused_on_the_way(
    pairing: Pairing, rest: bytes, why: str, autojump_clock: MockClock
) -> None:
    gone = trio.Event()

    async def origin(exchange: Exchange) -> None:
        with pytest.raises(CutError):
            await exchange.message()
        gone.set()

    async with open_matrix(Modular(builders=[GrpcWeb()]), origin, pairing) as gateway:
        client = await gateway.connect()
        exchange = await client.open("POST", fields=[("content-type", TEXT)])
        await exchange.send_data(asked(TEXT, b"question"))
        await exchange.send_data(rest, end=True)
        assert (await exchange.message()).status == 400
        await gone.wait()
    (record,) = gateway.records
    assert f"application/grpc-web-text: the content {why}" in str(record.error)


@forms
@to_http2
async def test_a_declared_length_goes_and_what_has_no_trailers_gets_none(
    pairing: Pairing, kind: str, autojump_clock: MockClock
) -> None:
    content = frame(b"hello") + frame(b"more")[:-1]  # which ends inside a message

    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        fields = [*GRPC, ("content-length", str(len(content)))]
        await exchange.respond(200, fields, content)

    async with open_matrix(Modular(builders=[GrpcWeb()]), origin, pairing) as gateway:
        response = await gateway.exchange(
            "POST", fields=[("content-type", kind)], body=asked(kind, b"x")
        )
    assert response.get("content-length") is None
    assert (from_text(response.body) if kind == TEXT else response.body) == content


async def test_an_informational_head_is_not_the_response(autojump_clock: MockClock) -> None:
    module, _ = await bridge(("Content-Type", BINARY))
    hint = ResponseHeader(103, GRPC)
    await module.response_header_filter(NO_SESSION, hint, False)
    assert hint.headers == Headers(GRPC)


@forms
async def test_a_response_that_is_cut_has_no_trailers_and_no_end(
    kind: str, autojump_clock: MockClock
) -> None:
    async def origin(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.send_head(200, GRPC)
        await exchange.send_data(frame(b"hello"))
        await exchange.reset()

    for down in (H1, H2_TLS):
        async with open_matrix(
            Modular(builders=[GrpcWeb()]), origin, Pairing(down, H2C)
        ) as gateway:
            with pytest.raises(CutError) as cut:
                await gateway.exchange(
                    "POST", fields=[("content-type", kind)], body=asked(kind, b"x")
                )
        assert cut.value.message is not None
        assert decoded(cut.value.message) == ([b"hello"], None)


async def test_a_callback_sees_grpc_and_may_answer_in_it(autojump_clock: MockClock) -> None:
    async def answer(session: Session, ctx: Any) -> bool:
        assert session.get_header("content-type") == "application/grpc+proto"
        bridge = session.downstream_modules_ctx.get(GrpcWebBridge)
        assert bridge is not None
        assert bridge.bridged
        head = ResponseHeader(200, {"content-type": "application/grpc"})
        await session.write_response_header(head)
        await session.write_response_body(frame(b"by hand"), end_of_stream=False)
        await session.write_response_trailers(Headers(FINE))
        return True

    proxy = Modular(builders=[GrpcWeb()], hooks={"request_filter": answer})
    async with open_matrix(proxy, Origin([]), Pairing(H1, H2C)) as gateway:
        response = await gateway.exchange(
            "POST", fields=[("content-type", TEXT)], body=asked(TEXT, b"x")
        )
    assert decoded(response) == ([b"by hand"], dict(FINE))


class Counting(HttpModule):
    """Stands behind the bridge, as a module that compresses does."""

    def __init__(self) -> None:
        self.seen = b""
        self.ends = 0

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        self.seen += body.data or b""
        self.ends += end_of_stream


class CountingBuilder(HttpModuleBuilder):
    order = -1
    module_type = Counting

    def init(self) -> Counting:
        return Counting()


@forms
@to_http2
async def test_a_module_behind_the_bridge_sees_the_frame_of_trailers(
    pairing: Pairing, kind: str, autojump_clock: MockClock
) -> None:
    found: list[Counting | None] = []

    async def logging(session: Session, *_: Any) -> None:
        found.append(session.downstream_modules_ctx.get(Counting))

    proxy = Modular(builders=[CountingBuilder(), GrpcWeb()], hooks={"logging": logging})
    async with open_matrix(proxy, Origin([b"hello"]), pairing) as gateway:
        response = await gateway.exchange(
            "POST", fields=[("content-type", kind)], body=asked(kind, b"x")
        )
    (module,) = found
    assert module is not None
    assert (module.seen, module.ends) == (response.body, 1)
    assert decoded(response) == ([b"hello"], dict(FINE))
