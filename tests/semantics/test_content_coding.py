"""What a client says of content codings, which one it gets, and what becomes of the head."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy import Headers
from trioproxy.semantics._content_coding import (
    AcceptEncoding,
    accept_encoding,
    content_codings,
    forbids_transforming,
    forget_digests,
    parse_accept_encoding,
    recode,
    vary_by_encoding,
)

ORDER = (b"zstd", b"br", b"gzip", b"deflate")


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        (b"gzip", b"gzip"),
        (b"GZIP", b"gzip"),
        (b"x-gzip", b"gzip"),
        (b"gzip, deflate, br, zstd", b"zstd"),
        (b"gzip, deflate, br", b"br"),
        (b"gzip;q=1.0, br;q=0.9", b"gzip"),
        (b"gzip;q=0.001, br;q=0.002", b"br"),
        (b"gzip ; q=0.5 , br ;\tq=0.4", b"gzip"),
        (b"gzip;Q=0.5", b"gzip"),
        (b"*", b"zstd"),
        (b"*;q=0.5, zstd;q=0", b"br"),
        (b"*;q=0, gzip", b"gzip"),
        (b"*;q=0", None),
        (b"gzip;q=0", None),
        (b"gzip;q=0.000", None),
        (b"", None),
        (b"identity", None),
        (b"identity;q=0", None),
        (b"identity;q=0, gzip;q=0.1", b"gzip"),
        (b"identity, gzip", b"gzip"),
        (b"identity;q=1, gzip;q=0.9", None),
        (b"identity;q=0.5, *;q=0.5", b"zstd"),
        (b"identity;q=0.6, *;q=0.5", None),
        (b"compress", None),
        (b", ,gzip,", b"gzip"),
        (b"gzip, gzip;q=0", None),
        (b"gzip;q=2", None),
        (b"gzip;q=0.1234", None),
        (b"gzip;level=9", None),
        (b"gzip zip", None),
    ],
)
def test_the_coding_that_a_client_wants_most_is_chosen(value: bytes, chosen: bytes | None) -> None:
    assert parse_accept_encoding(value).choose(ORDER) == chosen


def test_several_lines_are_one_list_and_none_is_told_apart_from_an_empty_one() -> None:
    assert accept_encoding(Headers()) is None
    assert accept_encoding(Headers([("Accept-Encoding", "")])) == AcceptEncoding({})
    lines = Headers([("Accept-Encoding", "gzip;q=0.5"), ("accept-encoding", "br;q=0.25")])
    assert accept_encoding(lines) == AcceptEncoding({b"gzip": 500, b"br": 250})


WEIGHTS = st.integers(0, 1000)
NAMES = st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b"identity", b"*", b"compress"])
BLANKS = st.sampled_from([b"", b" ", b"\t", b"  "])


def _weight(weight: int) -> bytes:
    return b"1" if weight == 1000 else b"0.%03d" % weight


@given(st.dictionaries(NAMES, st.tuples(WEIGHTS, BLANKS, BLANKS)), st.permutations(ORDER))
def test_what_is_chosen_is_wanted_and_nothing_is_wanted_more(
    said: dict[bytes, tuple[int, bytes, bytes]], order: list[bytes]
) -> None:
    value = b",".join(
        before + name + behind + b";q=" + _weight(weight)
        for name, (weight, before, behind) in said.items()
    )
    weights = {name: weight for name, (weight, _, _) in said.items()}

    chosen = parse_accept_encoding(value).choose(order)

    wanted = [weights.get(coding, weights.get(b"*", 0)) for coding in order]
    best = max(wanted)
    if best == 0 or weights.get(b"identity", 0) > best:
        assert chosen is None
    else:
        assert chosen == order[wanted.index(best)]


@given(st.binary(max_size=300))
def test_no_value_breaks_the_parser(value: bytes) -> None:
    parsed = parse_accept_encoding(value)
    assert all(0 <= weight <= 1000 for weight in parsed.weights.values())
    assert parsed.choose(ORDER) in (*ORDER, None)


@pytest.mark.parametrize(
    ("values", "codings"),
    [
        ([], ()),
        (["identity"], ()),
        (["GZip"], (b"gzip",)),
        (["x-gzip"], (b"gzip",)),
        (["gzip, identity", "br"], (b"gzip", b"br")),
        ([", gzip ,"], (b"gzip",)),
    ],
)
def test_the_codings_of_a_message(values: list[str], codings: tuple[bytes, ...]) -> None:
    assert content_codings(Headers([("Content-Encoding", value) for value in values])) == codings


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["Accept-Encoding"]),
        ([""], ["Accept-Encoding"]),
        (["Origin"], ["Origin, Accept-Encoding"]),
        (["Origin", "Cookie"], ["Origin, Cookie, Accept-Encoding"]),
        (["Origin, accept-encoding"], ["Origin, accept-encoding"]),
        (["*"], ["*"]),
        (["Origin, *"], ["Origin, *"]),
    ],
)
def test_vary_names_accept_encoding_once(before: list[str], after: list[str]) -> None:
    headers = Headers([("Vary", value) for value in before])
    vary_by_encoding(headers)
    assert headers.get_all("vary") == after


def test_a_head_that_is_recoded_loses_what_was_true_of_the_bytes() -> None:
    headers = Headers(
        [
            ("Content-Type", "text/plain"),
            ("Content-Length", "5"),
            ("ETag", '"one"'),
            ("Accept-Ranges", "bytes"),
            ("Content-MD5", "x"),
            ("Digest", "x"),
            ("Content-Digest", "x"),
            ("Repr-Digest", "x"),
            ("Last-Modified", "Wed, 25 Nov 2026 08:00:00 GMT"),
        ]
    )
    recode(headers, b"gzip")
    assert headers.items() == [
        ("Content-Type", "text/plain"),
        ("ETag", 'W/"one"'),
        ("Last-Modified", "Wed, 25 Nov 2026 08:00:00 GMT"),
        ("Content-Encoding", "gzip"),
    ]
    recode(headers, None)
    assert headers.get("etag") == 'W/"one"'
    assert "content-encoding" not in headers


def test_digests_leave_the_trailers_and_others_stay() -> None:
    trailers = Headers([("Repr-Digest", "x"), ("Server-Timing", "a"), ("content-digest", "x")])
    forget_digests(trailers)
    assert trailers.items() == [("Server-Timing", "a")]


@pytest.mark.parametrize(
    ("value", "forbids"),
    [("no-transform", True), ("max-age=1, No-Transform", True), ("x=no-transform", False)],
)
def test_no_transform_is_a_directive_of_its_own(value: str, forbids: bool) -> None:
    assert forbids_transforming(Headers([("Cache-Control", value)])) is forbids
    assert not forbids_transforming(Headers())
