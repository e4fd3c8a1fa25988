"""Byte ranges against RFC 9110 section 14; multipart bodies are read by a parser of their own."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import RequestHeader, ResponseHeader
from trioproxy.semantics._range import (
    InvalidRange,
    MultiRange,
    NoRange,
    Piece,
    RangeSlicer,
    RangeType,
    SingleRange,
    parse_range,
    range_header,
)

THEN = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"


@pytest.mark.parametrize(
    ("value", "slices"),
    [
        ("bytes=0-1", [(0, 2)]),
        ("bYTes=0-9", [(0, 10)]),
        ("bytes=0-12", [(0, 10)]),
        ("bytes=0-", [(0, 10)]),
        ("bytes=9-", [(9, 10)]),
        ("bytes=-2", [(8, 10)]),
        ("bytes=-12", [(0, 10)]),
        ("bytes=-10", [(0, 10)]),
        ("bytes=000-0001", [(0, 2)]),
        ("bytes=0-" + "9" * 5000, [(0, 10)]),
        ("bytes=-" + "9" * 5000, [(0, 10)]),
        # What does not exist.
        ("bytes=10-11", []),
        ("bytes=10-", []),
        ("bytes=2-1", []),
        ("bytes=-0", []),
        ("bytes=-", []),
        ("bytes=", []),
        ("bytes= \t", []),
        ("bytes=" + "9" * 5000 + "-", []),
        # Several.
        ("bytes=0-1,4-5", [(0, 2), (4, 6)]),
        ("bytes= 0-1 ,\t4-5 ", [(0, 2), (4, 6)]),
        ("bytes=0-1,2-3", [(0, 2), (2, 4)]),
        ("bytes=0-1,4-5,-1", [(0, 2), (4, 6), (9, 10)]),
        ("bytes=0-1,20-30", [(0, 2)]),
        ("bytes=20-30,0-1", [(0, 2)]),
        ("bytes=20-30,40-50", []),
        # The whole body instead.
        ("bytes=0-1,1-2", None),
        ("bytes=4-5,0-1", None),
        ("bytes=0-,0-", None),
        ("bytes=0-1,-10", None),
        ("bytes", None),
        ("", None),
        ("items=0-1", None),
        ("bytes =0-1", None),
        ("bytes=a-b", None),
        ("bytes=0-1,x", None),
        ("bytes=0-1,", None),
        ("bytes=,", None),
        ("bytes=0", None),
        ("bytes=0-1-2", None),
        ("bytes=--1", None),
        ("bytes=+0-1", None),
        ("bytes=0-1;4-5", None),
        ("bytes=\u0660-\u0661", None),
    ],
)
def test_the_slices_of_a_body_of_ten_bytes(
    value: str, slices: list[tuple[int, int]] | None
) -> None:
    assert parse_range(value.encode(), 10) == slices


def test_too_many_parts_get_the_whole_body() -> None:
    def parts(count: int) -> bytes:
        return b"bytes=" + b",".join(b"%d-%d" % (2 * n, 2 * n) for n in range(count))

    slices = parse_range(parts(199), 1000)
    assert slices is not None
    assert len(slices) == 199
    assert parse_range(parts(200), 1000) is None
    assert parse_range(parts(3), 1000, max_ranges=3) is None
    assert parse_range(b"bytes=" + b"," * 10**6, 1000) is None


def test_an_empty_body_has_no_slice_but_its_last_bytes_are_the_whole() -> None:
    assert parse_range(b"bytes=0-", 0) == []
    assert parse_range(b"bytes=-0", 0) == []
    assert parse_range(b"bytes=-5", 0) is None


def apply(
    asked: dict[str, str] | list[tuple[str, str]],
    held: dict[str, str] | list[tuple[str, str]],
    *,
    method: str = "GET",
    status: int = 200,
) -> tuple[RangeType, ResponseHeader]:
    response = ResponseHeader(status, held, reason="Fine")
    found = range_header(RequestHeader(method, "/", asked), response, boundary=b"BOUND")
    return found, response


TEN = {"Content-Length": "10", "Content-Type": "text/plain"}


def test_a_range_of_head_means_nothing() -> None:
    found, head = apply({"Range": "bytes=2-4"}, TEN, method="HEAD")
    assert found == NoRange()
    assert head.status == 200
    assert head.headers.get("accept-ranges") == "bytes"


def test_one_slice_is_a_206() -> None:
    held = TEN | {
        "Accept-Ranges": "bytes",
        "ETag": '"a"',
        "Content-Digest": "sha-256=:AA:",
        "Repr-Digest": "sha-256=:AA:",
    }
    found, head = apply({"Range": "bytes=2-4"}, held)
    assert found == SingleRange(2, 5)
    assert head == ResponseHeader(
        206,
        {
            "Content-Length": "3",
            "Content-Type": "text/plain",
            "ETag": '"a"',
            "Repr-Digest": "sha-256=:AA:",
            "Content-Range": "bytes 2-4/10",
        },
    )


def test_several_slices_are_a_multipart_206() -> None:
    found, head = apply({"Range": "bytes=0-1,4-,30-31"}, TEN)
    assert found == MultiRange(((0, 2), (4, 10)), 10, b"BOUND", b"text/plain")
    body = b"".join(RangeSlicer(found).feed(b"0123456789", True))
    assert body == (
        b"\r\n--BOUND\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01"
        b"\r\n--BOUND\r\nContent-Type: text/plain\r\nContent-Range: bytes 4-9/10\r\n\r\n456789"
        b"\r\n--BOUND--\r\n"
    )
    assert head == ResponseHeader(
        206,
        {
            "Content-Length": str(len(body)),
            "Content-Type": "multipart/byteranges; boundary=BOUND",
        },
    )


def test_parts_of_an_unknown_type_are_octets() -> None:
    found, _ = apply({"Range": "bytes=0-0,2-2"}, {"Content-Length": "10"})
    assert isinstance(found, MultiRange)
    assert found.content_type == b"application/octet-stream"


def test_boundaries_are_made_up_anew() -> None:
    def boundary() -> bytes:
        response = ResponseHeader(200, TEN)
        found = range_header(RequestHeader("GET", "/", {"Range": "bytes=0-0,2-2"}), response)
        assert isinstance(found, MultiRange)
        return found.boundary

    assert re.fullmatch(rb"[0-9a-f]{16}", boundary())
    assert boundary() != boundary()


def test_what_does_not_exist_is_a_416_that_no_cache_keeps() -> None:
    held = TEN | {
        "Content-Encoding": "gzip",
        "Accept-Ranges": "bytes",
        "Cache-Control": "max-age=5",
        "Expires": THEN,
        "ETag": '"a"',
    }
    found, head = apply({"Range": "bytes=10-"}, held)
    assert found == InvalidRange()
    assert head.status == 416
    assert head.reason is None
    assert dict(head.headers.items()) == {
        "ETag": '"a"',
        "Content-Length": "0",
        "Cache-Control": "no-store",
        "Content-Range": "bytes */10",
    }
    slicer = RangeSlicer(found)
    assert slicer.done
    assert slicer.feed(b"0123456789", True) == []


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"If-Range": '"a"'},
        {"Range": "items=0-1"},
        {"Range": "bytes=4-5,0-1"},
        [("Range", "bytes=0-1"), ("Range", "bytes=2-3")],
    ],
)
def test_a_whole_body_says_that_it_comes_in_ranges(
    asked: dict[str, str] | list[tuple[str, str]],
) -> None:
    found, head = apply(asked, TEN)
    assert found == NoRange()
    assert head == ResponseHeader(200, TEN | {"Accept-Ranges": "bytes"}, reason="Fine")


@pytest.mark.parametrize("status", [201, 203, 204, 206, 301, 304, 404, 412, 500])
def test_only_a_200_comes_in_ranges(status: int) -> None:
    found, head = apply({"Range": "bytes=0-1"}, TEN, status=status)
    assert found == NoRange()
    assert head == ResponseHeader(status, TEN, reason="Fine")


@pytest.mark.parametrize(
    "held",
    [
        [],
        [("Content-Length", "")],
        [("Content-Length", "-1")],
        [("Content-Length", "1_0")],
        [("Content-Length", "10, 10")],
        [("Content-Length", "10"), ("Content-Length", "10")],
        [("Content-Length", "9" * 20)],
        [("Content-Length", "10"), ("Transfer-Encoding", "chunked")],
    ],
)
def test_without_one_good_length_there_are_no_ranges(held: list[tuple[str, str]]) -> None:
    found, head = apply({"Range": "bytes=0-1"}, held)
    assert found == NoRange()
    assert head == ResponseHeader(200, held, reason="Fine")


def test_other_methods_have_no_ranges() -> None:
    found, head = apply({"Range": "bytes=0-1"}, TEN, method="POST")
    assert found == NoRange()
    assert "accept-ranges" not in head.headers


@pytest.mark.parametrize(
    ("if_range", "held", "holds"),
    [
        ('"a"', {"ETag": '"a"'}, True),
        ('"a"', {"ETag": '"b"'}, False),
        ('"a"', {"ETag": 'W/"a"'}, False),
        ('W/"a"', {"ETag": 'W/"a"'}, False),
        ('W/"a"', {"ETag": '"a"'}, False),
        ('"a", "b"', {"ETag": '"a"'}, False),
        ('"a"', {}, False),
        ("a", {"ETag": "a"}, False),
        ("*", {"ETag": '"a"'}, False),
        ("", {"ETag": ""}, False),
        (THEN, {"Last-Modified": THEN}, True),
        (THEN, {"Last-Modified": THEN, "Date": LATER}, True),
        # Changed in the second in which it was sent, perhaps twice.
        (THEN, {"Last-Modified": THEN, "Date": THEN}, False),
        (LATER, {"Last-Modified": THEN}, False),
        (THEN, {"Last-Modified": LATER}, False),
        ("Sunday, 06-Nov-94 08:49:37 GMT", {"Last-Modified": THEN}, False),
        ("broken", {"Last-Modified": "broken"}, False),
        (THEN, {"ETag": '"a"'}, False),
    ],
)
def test_if_range_takes_a_strong_validator_only(
    if_range: str, held: dict[str, str], holds: bool
) -> None:
    found, _ = apply({"Range": "bytes=0-1", "If-Range": if_range}, TEN | held)
    assert found == (SingleRange(0, 2) if holds else NoRange())


def test_a_repeated_if_range_does_not_hold() -> None:
    for value in ('"a"', THEN):
        asked = [("Range", "bytes=0-1"), ("If-Range", value), ("If-Range", value)]
        found, _ = apply(asked, TEN | {"ETag": '"a"', "Last-Modified": THEN})
        assert found == NoRange()


@pytest.mark.parametrize(
    "parts", [(), ((0, 0),), ((3, 2),), ((-1, 2),), ((0, 2), (1, 3)), ((4, 5), (0, 1)), ((9, 11),)]
)
def test_slices_that_are_none_cannot_be_made(parts: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="are no ranges"):
        MultiRange(parts, 10, b"b")
    if parts[:1] and len(parts) == 1 and parts != ((9, 11),):
        with pytest.raises(ValueError, match="are no ranges"):
            SingleRange(*parts[0])


def test_a_boundary_that_would_break_the_framing_cannot_be_made() -> None:
    for boundary in (b"", b"a\r\nb", b'"', b"a b", b"x" * 71):
        with pytest.raises(ValueError, match="not a boundary"):
            MultiRange(((0, 1),), 10, boundary)


def test_the_plan_of_a_single_slice_is_one_piece() -> None:
    plan = SingleRange(2, 5).plan()
    assert plan.pieces == (Piece(b"", 2, 5),)
    assert plan.tail == b""
    assert plan.length == 3


def test_nothing_is_needed_behind_the_last_slice() -> None:
    slicer = RangeSlicer(SingleRange(2, 5))
    assert slicer.feed(b"01") == []
    assert slicer.feed(b"23") == [b"23"]
    assert slicer.feed(b"4567") == [b"4"]
    assert slicer.done
    assert slicer.feed(b"89", True) == []


def test_framing_waits_for_the_slice_behind_it() -> None:
    slicer = RangeSlicer(MultiRange(((0, 1), (4, 5)), 10, b"b"))
    assert slicer.feed(b"") == []
    assert len(slicer.feed(b"0")) == 2
    assert slicer.feed(b"123") == []
    assert slicer.feed(b"") == []
    assert len(slicer.feed(b"4")) == 3
    assert slicer.done


def test_a_body_that_ends_too_early_leaves_the_slicer_undone() -> None:
    slicer = RangeSlicer(SingleRange(2, 5))
    assert slicer.feed(b"012", True) == [b"2"]
    assert not slicer.done


def test_a_whole_body_passes_as_it_comes() -> None:
    slicer = RangeSlicer(NoRange())
    piece = bytes(100)
    (same,) = slicer.feed(piece)
    assert same is piece
    assert not slicer.done
    assert slicer.feed(b"", True) == []
    assert slicer.done


def test_a_piece_inside_a_slice_is_not_copied() -> None:
    slicer = RangeSlicer(SingleRange(1, 1000))
    slicer.feed(b"01")
    piece = bytes(100)
    (same,) = slicer.feed(piece)
    assert same is piece


def read_multipart(body: bytes, content_type: str) -> list[tuple[dict[str, str], bytes]]:
    """Read a multipart body as RFC 2046 has it, knowing nothing of how it was made."""
    match = re.fullmatch(r"multipart/byteranges; boundary=(\S+)", content_type)
    assert match is not None
    delimiter = b"\r\n--" + match[1].encode()
    preamble, *parts, last = body.split(delimiter)
    assert preamble == b""
    assert last == b"--\r\n"
    found = []
    for part in parts:
        assert part.startswith(b"\r\n")
        head, _, content = part[2:].partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        found.append((fields, content))
    return found


def chunked(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(edges)]


_body = st.binary(min_size=1, max_size=200)
_edges = st.sets(st.integers(0, 200), min_size=2, max_size=12).map(sorted)
_cuts = st.lists(st.integers(0, 200), max_size=12)


@given(_body, _edges, _cuts)
def test_any_chunking_gives_the_slices(body: bytes, edges: list[int], cuts: list[int]) -> None:
    wanted = list(zip(edges[::2], edges[1::2], strict=False))
    field = "bytes=" + ",".join(f"{start}-{end - 1}" for start, end in wanted)
    slices = [(start, min(end, len(body))) for start, end in wanted if start < len(body)]
    response = ResponseHeader(200, {"Content-Length": str(len(body)), "Content-Type": "a/b"})
    found = range_header(RequestHeader("GET", "/", {"Range": field}), response)
    slicer = RangeSlicer(found)
    out: list[bytes] = []
    pieces = chunked(body, cuts)
    seen = 0
    for number, piece in enumerate(pieces):
        out += slicer.feed(piece, number == len(pieces) - 1)
        seen += len(piece)
        # No sooner and no later: what it says decides when the reading may stop.
        assert slicer.done == (not slices or seen >= slices[-1][1])
    assert b"" not in out
    sent = b"".join(out)
    assert response.headers.get("content-length") == str(len(sent))
    if not slices:
        assert response.status == 416
        return
    assert response.status == 206
    assert isinstance(found, (SingleRange, MultiRange))
    plan = found.plan()
    sought = b"".join(piece.before + body[piece.start : piece.end] for piece in plan.pieces)
    assert sought + plan.tail == sent
    assert plan.length == len(sent)
    if len(slices) == 1:
        ((start, end),) = slices
        assert sent == body[start:end]
        assert response.headers.get("content-range") == f"bytes {start}-{end - 1}/{len(body)}"
        return
    parts = read_multipart(sent, response.headers.get("content-type") or "")
    assert parts == [
        (
            {"Content-Type": "a/b", "Content-Range": f"bytes {start}-{end - 1}/{len(body)}"},
            body[start:end],
        )
        for start, end in slices
    ]


@given(st.text("0123456789-, =btes\tx", max_size=30), st.integers(0, 40))
def test_whatever_is_asked_the_slices_lie_within_the_body(text: str, total: int) -> None:
    behind = 0
    for start, end in parse_range(b"bytes=" + text.encode(), total) or []:
        assert behind <= start < end <= total
        behind = end
