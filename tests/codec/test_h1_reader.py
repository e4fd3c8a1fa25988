"""The HTTP/1 readers alone: the same events at every cut, and no exception but the refusal."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioproxy import Headers, RequestHeader, ResponseHeader
from trioproxy._messages import END, Data, RequestEvent, ResponseEvent, Trailers
from trioproxy.codec._chunked import ChunkedDecoder
from trioproxy.codec._h1 import (
    MAX_INFORMATIONAL,
    HeadLimits,
    IncompleteMessage,
    RequestReader,
    ResponseReader,
)
from trioproxy.codec._h1_codec import H1Codec, http1_codec
from trioproxy.codec._h1_write import (
    LAST_CHUNK,
    Framing,
    encode_request_head,
    encode_response_head,
    encode_trailers,
)
from trioproxy.semantics._framing import MessageRefused

LIMITS = HeadLimits()
fast = settings(max_examples=settings().max_examples, deadline=None)

REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n\r\nGET / HTTP/1.0\r\nX: \xff\r\n\r\n",
    b"POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5\r\nhello\r\n1;a="b"\r\n!\r\n0\r\nX-Sum: 1\r\nY: \r\n\r\n',
    b"PUT http://b/c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
)
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.0 200 \r\nX : y\r\nZ: a\r\n  b\r\n\tc\r\n\r\nuntil close",
    b"HTTP/1.1 999 \xe4\r\nContent-Length: 0\r\n\r\n",
)


def cuts(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def joined(events: Iterable[RequestEvent | ResponseEvent]) -> list[object]:
    """Return events with the content of a message joined, as cuts may fall anywhere in it."""
    result: list[object] = []
    body = b""
    for event in events:
        if isinstance(event, Data):
            assert event.data, "no piece of content is empty"
            body += event.data
            if event.end:
                result += [body, "end"]
                body = b""
        elif event is END:
            result += [body, "end"]
            body = b""
        elif isinstance(event, Trailers):
            result.append(("trailers", event.headers.raw))
        else:
            assert isinstance(event, (RequestHeader, ResponseHeader))
            kind = event.method if isinstance(event, RequestHeader) else event.status
            result.append((kind, event.version, event.headers.raw, event.facts))
    if body:
        result.append(body)
    return result


def read_requests(pieces: Iterable[bytes], reader: RequestReader | None = None) -> list[object]:
    """Read request after request, as a server would."""
    reader = RequestReader(LIMITS) if reader is None else reader
    events: list[RequestEvent] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while True:
                events += reader.events()
                if reader.refused is not None:
                    raise reader.refused
                if not reader.done:
                    break
                reader.next_message()
                if not reader.buffer:
                    break
    except MessageRefused as exc:
        return [*joined(events), exc.status]
    return joined(events)


def read_response(pieces: Iterable[bytes], method: str = "GET") -> list[object]:
    reader = ResponseReader(LIMITS)
    reader.expect(method)
    events: list[ResponseEvent] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            events += reader.events()
            if reader.refused is not None:
                raise reader.refused
        events += reader.eof()
    except MessageRefused as exc:
        return [*joined(events), exc.status]
    except IncompleteMessage:
        return [*joined(events), "cut"]
    return joined(events)


places = st.lists(st.integers(0, 10_000), max_size=12)


@fast
@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4), places)
def test_requests_read_the_same_at_every_cut(messages: list[bytes], where: list[int]) -> None:
    data = b"".join(messages)
    whole = read_requests([data])
    assert whole.count("end") == len(messages)
    assert read_requests(cuts(data, where)) == whole


@pytest.mark.parametrize("data", REQUESTS)
def test_requests_read_the_same_at_every_single_cut(data: bytes) -> None:
    whole = read_requests([data])
    assert whole[-1] == "end"
    for place in range(1, len(data)):
        assert read_requests([data[:place], data[place:]]) == whole
    assert read_requests([data[i : i + 1] for i in range(len(data))]) == whole


@pytest.mark.parametrize("data", RESPONSES)
def test_responses_read_the_same_at_every_single_cut(data: bytes) -> None:
    whole = read_response([data])
    assert whole[-1] == "end"
    for place in range(1, len(data)):
        assert read_response([data[:place], data[place:]]) == whole
    assert read_response([data[i : i + 1] for i in range(len(data))]) == whole


def mutate(data: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        piece = rng.choice(
            [
                bytes([rng.randrange(256)]),
                b"\r",
                b"\n",
                b"\r\n",
                b" ",
                b"\t",
                b":",
                b",",
                b";",
                b"\0",
            ]
        )
        if kind == 0:
            changed[at:at] = piece
        elif kind == 1:
            changed[at : at + 1] = piece
        elif kind == 2:
            del changed[at : at + rng.randint(1, 4)]
        else:
            other = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[min(at, other) : max(at, other)]
    return bytes(changed)


@settings(max_examples=2 * settings().max_examples, deadline=None)
@given(st.sampled_from(REQUESTS), st.integers(0, 2**32), places)
def test_mutated_requests_are_taken_or_refused_the_same_at_every_cut(
    message: bytes, seed: int, where: list[int]
) -> None:
    data = mutate(message + REQUESTS[0], seed)
    whole = read_requests([data])
    pieces = read_requests(cuts(data, where))
    # Where the mistake lies in a body, a cut shows what comes before it; nothing else may differ.
    refused = [result[-1] for result in (whole, pieces) if result and isinstance(result[-1], int)]
    assert len(refused) in (0, 2), (data, whole, pieces)
    if refused:
        assert pieces[: len(whole) - 1] == whole[:-1]
        assert refused[0] == refused[1]
    else:
        assert pieces == whole


@settings(max_examples=2 * settings().max_examples, deadline=None)
@given(st.sampled_from(RESPONSES), st.integers(0, 2**32), st.sampled_from(["GET", "HEAD"]))
def test_mutated_responses_are_read_or_refused_with_502(
    message: bytes, seed: int, method: str
) -> None:
    data = mutate(message, seed)
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        for outcome in read_response(pieces, method):
            if isinstance(outcome, int):
                assert outcome == 502


@fast
@given(st.binary(max_size=300), places)
def test_noise_is_never_another_exception(data: bytes, where: list[int]) -> None:
    read_requests(cuts(data, where))
    read_response(cuts(data, where))


# -- chunks ----------------------------------------------------------------------------------------

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=8)
extensions = st.sampled_from([b"", b";a", b";a=b", b'; x = "y;\\" "', b";a;b=c"])


def encode(content: list[bytes], exts: list[bytes], trailers: bytes = b"") -> bytes:
    def ext(n: int) -> bytes:
        return exts[n % len(exts)]

    body = b"".join(b"%x%s\r\n%s\r\n" % (len(c), ext(n), c) for n, c in enumerate(content))
    return body + b"0" + ext(len(content)) + b"\r\n" + trailers + b"\r\n"


@fast
@given(chunks, st.lists(extensions, min_size=1, max_size=3), places)
def test_chunks_decode_as_h11_decodes_them(
    content: list[bytes], exts: list[bytes], where: list[int]
) -> None:
    wire = encode(content, exts, b"X-Sum: 1 \r\nY:2\r\n")
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    expected, trailers = b"", []
    while (event := oracle.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.Data):
            expected += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            trailers = list(event.headers.raw_items())
            break
    decoder, buffer = ChunkedDecoder(), bytearray()
    events: list[RequestEvent] = []
    for piece in cuts(wire + b"GET / next", where):
        buffer += piece
        if not decoder.done:
            events += decoder.decode(buffer)
    assert joined(events) == [("trailers", trailers), expected, "end"]
    assert buffer == b"GET / next"
    assert expected == b"".join(content)


def test_many_small_chunks_make_one_event() -> None:
    decoder = ChunkedDecoder()
    events = decoder.decode(bytearray(b"1\r\nx\r\n" * 10_000))
    assert events == [Data(b"x" * 10_000)]


def test_a_flood_of_small_chunks_is_not_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = 0
    take = ChunkedDecoder._line

    def counted(decoder: ChunkedDecoder, buffer: bytearray) -> bytes | None:
        nonlocal lines
        lines += 1
        return take(decoder, buffer)

    monkeypatch.setattr(ChunkedDecoder, "_line", counted)
    content = [b"\r\n" + b"x" * (size - 2) for size in range(2, 16)]
    body = b"".join(b"%x\r\n%s\r\n%X\r\n%s\r\n" % (len(c), c, len(c), c) for c in content) * 1000
    assert ChunkedDecoder().decode(bytearray(body)) == [
        Data(b"".join(c + c for c in content) * 1000)
    ]
    assert lines < 10


@pytest.mark.parametrize(
    "wrong",
    [
        b"1\na\r\n",
        b"1\r\na\n",
        b"1\r\nab\r\n",
        b"2\r\na\r\n3\r\nabc\r\n",
        b"1\r\na\r\r\n",
        b" 1\r\na\r\n",
        b"+1\r\na\r\n",
        b"g\r\n" + b"a" * 16 + b"\r\n",
    ],
)
def test_a_mistake_behind_small_chunks_is_found_however_they_are_cut(wrong: bytes) -> None:
    wire = b"3\r\nabc\r\nC\r\n1\r\na\r\n2\r\nbb\r\n" + wrong + b"0\r\n\r\n"

    def read(step: int) -> tuple[bytes, str]:
        decoder, buffer, content = ChunkedDecoder(), bytearray(), b""
        for at in range(0, len(wire), step):
            buffer += wire[at : at + step]
            try:
                events = decoder.decode(buffer)
            except MessageRefused as exc:
                return content, str(exc)
            content += b"".join(event.data for event in events if type(event) is Data)
        return content, str(decoder.refused)

    results = {read(step) for step in (1, 2, 7, len(wire))}
    assert len(results) == 1
    assert results.pop()[1] != "None"


def test_good_chunks_before_a_mistake_come_out_and_the_next_call_raises() -> None:
    decoder = ChunkedDecoder(502)
    assert decoder.decode(bytearray(b"1\r\na\r\n1\r\nb\r\nzz\r\n")) == [Data(b"ab")]
    assert decoder.refused is not None
    with pytest.raises(MessageRefused) as caught:
        decoder.decode(bytearray())
    assert caught.value is decoder.refused
    assert caught.value.status == 502


def test_a_head_whose_body_is_broken_in_the_same_read_is_refused_unseen() -> None:
    reader = RequestReader(LIMITS)
    reader.feed(REQUESTS[4].replace(b"1;a", b"1;;a"))
    with pytest.raises(MessageRefused):
        reader.events()


@pytest.mark.parametrize(
    "line",
    [b"5 " + b" " * 4000, b"5" + b";a" * 2000 + b" ", b"5;a=" + b'"' + b"\\" * 4000],
)
def test_long_chunk_lines_are_judged_in_linear_time(line: bytes) -> None:
    # Quadratic matching would show as minutes here, not as a slower test.
    for _ in range(200):
        with pytest.raises(MessageRefused):
            ChunkedDecoder().decode(bytearray(line + b"\r\n"))


def test_blanks_in_heads_are_judged_in_linear_time() -> None:
    limits = HeadLimits(max_bytes=1 << 22)
    blanks = b" " * 1_000_000
    head = (
        b"HTTP/1.1 200 OK\r\nA: x" + blanks + b"y\r\n" + blanks + b"z\r\nContent-Length: 0\r\n\r\n"
    )
    reader = ResponseReader(limits)
    reader.expect("GET")
    reader.feed(head)
    (answer, end) = reader.events()
    assert end is END
    assert isinstance(answer, ResponseHeader)
    assert answer.headers.get("a") == "x" + " " * 1_000_000 + "y z"
    many_folds = b"HTTP/1.1 200 OK\r\nA:" + b"\r\n x" * 200_000 + b"\r\n\r\n"
    reader = ResponseReader(limits)
    reader.expect("HEAD")
    reader.feed(many_folds)
    assert len(reader.events()) == 2


# -- responses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 O\x01K\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n X: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\r\n : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX y: z\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: y\r\n\r\n",
        b"HTTP/1.1 099 X\r\n\r\n",
        b"HTTP/1.1 20 X\r\n\r\n",
        b"HTTP/1.1 2000 X\r\n\r\n",
        b"HTTP/1.1 +20 X\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_responses_that_are_refused(head: bytes) -> None:
    body = b"hello" * 3
    assert read_response([head + body]) == [502]
    assert read_response([head[i : i + 1] for i in range(len(head))]) == [502]


def test_too_many_informational_responses() -> None:
    one = b"HTTP/1.1 103 X\r\n\r\n"
    assert len(read_response([one * MAX_INFORMATIONAL + RESPONSES[0]])) == MAX_INFORMATIONAL + 3
    assert read_response([one * (MAX_INFORMATIONAL + 1) + RESPONSES[0]])[-1] == 502


@pytest.mark.parametrize("data", [RESPONSES[0], RESPONSES[2]])
def test_a_response_that_ends_early_is_cut(data: bytes) -> None:
    for end in range(len(data)):
        assert read_response([data[:end]])[-1] == "cut"


# -- writing and reading back ----------------------------------------------------------------------

names = st.text("abcXYZ-!09", min_size=1, max_size=8).filter(
    lambda name: name.lower() not in ("te", "via", "host")
)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=20).filter(
    lambda value: "\x7f" not in value and not any("\x80" <= c < "\xa0" for c in value)
)
pairs = st.lists(st.tuples(names, values), max_size=6)


@fast
@given(pairs, chunks, st.sampled_from(["GET", "POST", "x"]), places)
def test_what_is_written_as_a_request_reads_back(
    fields: list[tuple[str, str]], content: list[bytes], method: str, where: list[int]
) -> None:
    request = RequestHeader(method, b"/a?b", [("Host", "h"), *fields])
    wire = encode_request_head(request, Framing.CHUNKED)
    wire += b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in content)
    trailers = Headers([("X-Sum", "1")])
    head, *rest = read_requests(cuts(wire + encode_trailers(trailers), where))
    assert isinstance(head, tuple)
    raw = [field for field in head[2] if field[0].lower() != b"transfer-encoding"]
    assert (head[0], raw) == (method, request.headers.raw)
    assert rest == [("trailers", [(b"X-Sum", b"1")]), b"".join(content), "end"]


@fast
@given(pairs, chunks, st.integers(200, 999).filter(lambda s: s not in (204, 304)), places)
def test_what_is_written_as_a_response_reads_back(
    fields: list[tuple[str, str]], content: list[bytes], status: int, where: list[int]
) -> None:
    response = ResponseHeader(status, fields)
    wire = encode_response_head(response, Framing.CHUNKED, date=None, connection=b"close")
    wire += b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in content) + LAST_CHUNK
    head, *rest = read_response(cuts(wire, where))
    assert isinstance(head, tuple)
    made = (b"transfer-encoding", b"connection")
    raw = [field for field in head[2] if field[0].lower() not in made]
    assert (head[0], raw) == (status, response.headers.raw)
    assert rest == [b"".join(content), "end"]


# -- the seam --------------------------------------------------------------------------------------


def test_a_codec_is_looked_up_by_name() -> None:
    assert http1_codec("h11").name == "h11"
    assert http1_codec("auto") is http1_codec("h11")
    with pytest.raises(ValueError, match="one of auto, h11"):
        http1_codec("llhttp")


def test_the_readers_use_the_codec_they_are_given() -> None:
    seen: list[bytes] = []

    def request_head(block: bytes) -> tuple[bytes, bytes, bytes, list[tuple[bytes, bytes, bytes]]]:
        seen.append(block)
        return b"PUT", b"/other", b"1.1", [(b"host", b"Host", b"other")]

    def response_head(block: bytes) -> tuple[int, bytes, bytes, list[tuple[bytes, bytes, bytes]]]:
        seen.append(block)
        return 204, b"", b"1.1", []

    codec = H1Codec("test", request_head, response_head)
    head, *_ = read_requests([REQUESTS[0]], RequestReader(LIMITS, codec=codec))
    assert isinstance(head, tuple)
    assert head[0] == "PUT"
    reader = ResponseReader(LIMITS, codec)
    reader.expect("GET")
    reader.feed(RESPONSES[0])
    answer = reader.events()[0]
    assert isinstance(answer, ResponseHeader)
    assert answer.status == 204
    assert seen == [REQUESTS[0], RESPONSES[0].removesuffix(b"hello")]


@pytest.mark.parametrize("name", ["h11"])
def test_a_codec_returns_every_field_as_it_came(name: str) -> None:
    codec = http1_codec(name)
    fields = b"Host: a\r\nX-A:  1 \r\nx-a:\t2\r\nContent-Length: 007\r\nConnection: x\r\n\r\n"
    expected = [
        (b"host", b"Host", b"a"),
        (b"x-a", b"X-A", b"1"),
        (b"x-a", b"x-a", b"2"),
        (b"content-length", b"Content-Length", b"007"),
        (b"connection", b"Connection", b"x"),
    ]
    request = codec.parse_request_head(b"get /\x21?\x7e HTTP/1.0\r\n" + fields)
    assert request == (b"get", b"/!?~", b"1.0", expected)
    response = codec.parse_response_head(b"HTTP/1.1 999 A\xffb\r\n" + fields)
    assert response == (999, b"A\xffb", b"1.1", expected)
    empty = codec.parse_response_head(b"HTTP/1.0 200 \r\n\r\n")
    assert (empty[0], empty[1] or b"", empty[2], empty[3]) == (200, b"", b"1.0", [])


@pytest.mark.parametrize("size", [0, 1, 4, 5])
def test_two_feeds_without_a_look_lose_nothing(size: int) -> None:
    reader = RequestReader(LIMITS)
    reader.feed(REQUESTS[2][:-5])
    events = reader.events()
    reader.feed(b"hello"[:size])
    reader.feed(b"hello"[size:] + b"next")
    while not reader.done:
        events += reader.events()
    assert joined(events)[1:] == [b"hello", "end"]
    assert reader.take_leftover() == b"next"
