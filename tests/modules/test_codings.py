"""The codings against their own libraries: whatever way a body is cut, and whatever is wrong with it."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests._support.coding import DECODE, ENCODE, so_far, zstd
from trioproxy.modules import _codings
from trioproxy.modules._codings import CODINGS, PIECE, CodingError, available, decoder, encoder

TEXT = b"".join(b"line %d of what is to be compressed\n" % number for number in range(200))
NOISE = random.Random(1).randbytes(3000)


codings = pytest.mark.parametrize("coding", sorted(CODINGS))


def encoded(coding: str, level: int, pieces: Sequence[bytes]) -> bytes:
    """Encode a body with ours, flushed behind each piece."""
    ours = encoder(coding, level)
    out = []
    for piece in pieces:
        out += [ours.encode(piece), ours.flush()]
    return b"".join([*out, ours.finish()])


def given_pieces(coding: str, pieces: Sequence[bytes]) -> Iterator[bytes]:
    """Decode a body with ours."""
    ours = decoder(coding)
    for piece in pieces:
        ours.feed(piece)
        while ours.more:
            yield ours.read()
    ours.finish()


def decoded(coding: str, *pieces: bytes) -> bytes:
    """Return a body decoded with ours."""
    return b"".join(given_pieces(coding, pieces))


@codings
def test_every_level_gives_what_its_own_library_reads(coding: str) -> None:
    for level in range(1, CODINGS[coding].top + 1):
        data = encoded(coding, level, [TEXT, NOISE, b"end"])
        assert DECODE[coding](data) == TEXT + NOISE + b"end"


@codings
@given(bodies=st.lists(st.binary(max_size=2000), max_size=6), level=st.integers(1, 6))
def test_any_body_in_any_pieces_comes_back(coding: str, bodies: list[bytes], level: int) -> None:
    data = encoded(coding, level, bodies)
    assert DECODE[coding](data) == b"".join(bodies)
    assert decoded(coding, data) == b"".join(bodies)


@codings
def test_what_was_flushed_can_be_decoded_before_more_comes(coding: str) -> None:
    ours, theirs = encoder(coding, 5), decoder(coding)
    for number in range(20):
        event = b"data: event %d\n\n" % number
        theirs.feed(ours.encode(event) + ours.flush())
        assert theirs.read() == event


@codings
def test_a_body_may_be_cut_at_every_point(coding: str) -> None:
    data = ENCODE[coding](TEXT[:400])
    for at in range(len(data) + 1):
        assert decoded(coding, data[:at], data[at:]) == TEXT[:400]
    assert decoded(coding, *[data[at : at + 1] for at in range(len(data))]) == TEXT[:400]


@codings
def test_a_piece_never_gives_more_at_a_time_than_there_is_room_for(coding: str) -> None:
    bomb = ENCODE[coding](bytes(5_000_000))
    sizes = [len(piece) for piece in given_pieces(coding, [bomb])]
    assert sum(sizes) == 5_000_000
    assert max(sizes) <= 2 * PIECE


@codings
def test_all_that_can_be_decoded_of_a_piece_is_given(coding: str) -> None:
    data = ENCODE[coding](bytes(300_000))
    for at in range(len(data)):
        ours = decoder(coding)
        ours.feed(data[:at])
        given = 0
        while ours.more:
            given += len(ours.read())
        assert given == len(so_far(coding)(data[:at]))


@codings
def test_no_bytes_at_all_are_an_empty_body(coding: str) -> None:
    assert decoded(coding) == b""
    assert decoded(coding, b"", b"") == b""


@codings
def test_a_body_that_is_cut_off_is_an_error_wherever_that_was(coding: str) -> None:
    data = ENCODE[coding](TEXT[:400])
    for at in range(1, len(data)):
        with pytest.raises(CodingError):
            decoded(coding, data[:at])


@codings
def test_what_is_behind_the_end_is_an_error(coding: str) -> None:
    data = ENCODE[coding](TEXT)
    for pieces in ((data + b"more",), (data, b"more")):
        with pytest.raises(CodingError):
            decoded(coding, *pieces)


@codings
def test_what_is_no_such_coding_is_an_error(coding: str) -> None:
    with pytest.raises(CodingError):
        decoded(coding, b"this is plain text, whatever was said of it" * 10)


@codings
@given(data=st.binary(min_size=1, max_size=500))
def test_no_bytes_break_a_decoder(coding: str, data: bytes) -> None:
    try:
        content: bytes | None = decoded(coding, data)
    except CodingError:
        content = None
    assert content is None or isinstance(content, bytes)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_body_may_consist_of_several_members_cut_anywhere(coding: str) -> None:
    encode = ENCODE[coding]
    data = encode(b"one ") + encode(b"") + encode(b"two")
    for at in range(len(data) + 1):
        assert decoded(coding, data[:at], data[at:]) == b"one two"


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_members_without_end_are_refused(coding: str) -> None:
    with pytest.raises(CodingError, match="parts and more"):
        decoded(coding, ENCODE[coding](b"") * 1000)


def test_a_frame_of_zstd_that_is_to_be_skipped_is() -> None:
    frame = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    assert decoded("zstd", frame + zstd.compress(b"text") + frame) == b"text"


def test_deflate_without_its_header_is_taken_too() -> None:
    bare = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = bare.compress(TEXT) + bare.flush()
    for at in range(4):
        assert decoded("deflate", data[:at], data[at:]) == TEXT


def test_a_window_of_zstd_beyond_8_mib_is_refused() -> None:
    """RFC 9659: nobody has to have the memory for it."""
    wide = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 24})
    data = wide.compress(TEXT) + wide.flush()
    with pytest.raises(CodingError, match="memory"):
        decoded("zstd", data)


def test_isal_takes_the_lowest_levels_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    isal: Any = pytest.importorskip("isal.isal_zlib")
    for coding in ("gzip", "deflate"):
        for level in range(1, 5):
            kind = type(encoder(coding, level)._inner)  # type: ignore[attr-defined]
            assert (kind is type(isal.compressobj())) == (level < 4)
    monkeypatch.setitem(_codings._MODULES, "isal.isal_zlib", None)
    assert gzip.decompress(encoded("gzip", 1, [TEXT])) == TEXT
    assert type(encoder("gzip", 1)._inner) is type(zlib.compressobj())  # type: ignore[attr-defined]


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_a_missing_library_says_what_to_type(coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("brotli", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(_codings._MODULES, name, None)
    assert not available(coding)
    with pytest.raises(ValueError, match=r'pip install "trioproxy\[compress\]"'):
        encoder(coding, 1)
    with pytest.raises(ValueError, match=coding):
        decoder(coding)
    assert available("gzip")
    assert available("deflate")
    assert not available("compress")


def test_a_brotli_that_cannot_be_stopped_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Old:
        class Decompressor:
            def process(self, data: bytes) -> bytes:
                """Decompress everything at once."""
                return data

    monkeypatch.setitem(_codings._MODULES, "brotli", Old)
    assert not available("br")
    with pytest.raises(ValueError, match=r"brotli 1\.2"):
        decoder("br")
