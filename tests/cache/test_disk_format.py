from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests._support.stores import make_key, make_meta
from trioproxy.cache._disk_files import (
    EntryFile,
    Layout,
    PartialFile,
    open_entry,
    read_block,
    sweep,
)
from trioproxy.cache._disk_format import (
    BLOCK,
    MAX_HEAD,
    PRELUDE,
    SEAL,
    BadFileError,
    Head,
    Prelude,
    decode_side,
    encode_side,
    file_size,
    open_block,
    seal,
)
from trioproxy.cache._key import CacheKey

GENERATION = bytes(range(16))


@pytest.mark.parametrize(
    "key",
    [
        make_key("a"),
        make_key("a", 7, tag="user"),
        CacheKey(b"", b""),
        CacheKey(b"\0", b"\xff" * 1000, "ü\udc80", b""),
    ],
)
def test_a_head_comes_back_as_it_was(key: CacheKey) -> None:
    head = Head(key, b"meta \0")
    assert Head.decode(head.encode()) == head


def test_a_head_has_a_limit() -> None:
    assert Head(CacheKey(b"", b""), b"x" * (MAX_HEAD - 24)).encode()
    with pytest.raises(ValueError, match="limit"):
        Head(CacheKey(b"", b""), b"x" * (MAX_HEAD - 23)).encode()


@pytest.mark.parametrize("encoded", [b"", b"\1", b"\4\0\0\0abc", b"\0\0\0\0" * 5, b"\0\0\0\0" * 7])
def test_other_bytes_are_no_head(encoded: bytes) -> None:
    with pytest.raises(BadFileError):
        Head.decode(encoded)


@pytest.mark.parametrize("body", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_a_file_is_known_by_its_length(body: int) -> None:
    head = Head(make_key(), b"meta").encode()
    prelude = Prelude(len(head), body, GENERATION)
    size = file_size(len(head), body)
    assert size == PRELUDE + len(head) + body + -(-body // BLOCK) * SEAL
    found = Prelude.decode(prelude.encode(head), size)
    found.check(head)
    assert (found.body_size, found.generation, found.body_at) == (
        body,
        GENERATION,
        PRELUDE + len(head),
    )
    for other in (size - 1, size + 1, 0):
        with pytest.raises(BadFileError):
            Prelude.decode(prelude.encode(head), other)


def test_a_file_that_was_never_finished_is_no_entry() -> None:
    with pytest.raises(BadFileError, match="never finished"):
        Prelude.decode(bytes(PRELUDE), PRELUDE)
    with pytest.raises(BadFileError, match="shorter"):
        Prelude.decode(bytes(PRELUDE - 1), PRELUDE - 1)


def test_another_version_is_refused() -> None:
    start = bytearray(Prelude(0, 0, GENERATION).encode(b""))
    start[8] = 2
    with pytest.raises(BadFileError, match="version 2"):
        Prelude.decode(bytes(start), PRELUDE)


def test_a_block_belongs_to_one_place_of_one_file() -> None:
    block = b"data" + seal(b"data", GENERATION, 3)
    assert bytes(open_block(block, GENERATION, 3)) == b"data"
    for other, generation, index in (
        (block, GENERATION, 4),
        (block, bytes(16), 3),
        (b"Data" + block[4:], GENERATION, 3),
        (block[1:], GENERATION, 3),
        (bytes(8), GENERATION, 3),
        (block[4:], GENERATION, 3),
        (b"", GENERATION, 3),
    ):
        with pytest.raises(BadFileError):
            open_block(other, generation, index)


def test_a_side_file_is_that_of_one_entry_and_whole() -> None:
    content = encode_side(GENERATION, b"meta")
    assert decode_side(content, GENERATION) == b"meta"
    with pytest.raises(BadFileError, match="another entry"):
        decode_side(content, bytes(16))
    for end in range(len(content)):
        with pytest.raises(BadFileError):
            decode_side(content[:end], GENERATION)
    for at in range(len(content)):
        flipped = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        with pytest.raises(BadFileError):
            decode_side(flipped, GENERATION)


# -- whole files -----------------------------------------------------------------------------------


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "cache")
    layout.make()
    return layout


def write(layout: Layout, *blocks: bytes, key: CacheKey | None = None) -> Path:
    """Write an entry and return where it is."""
    head = Head(key or make_key(), make_meta(("ETag", '"1"')).to_bytes()).encode()
    partial = PartialFile(layout, head, GENERATION)
    with partial.file:
        for block in blocks:
            partial.append(block)
        partial.complete(sum(map(len, blocks)), fsync=True)
    return Path(partial.path)


def whole(path: Path, key: CacheKey | None = None) -> bytes:
    """Return the body of an entry, checked in full.

    Raises:
      BadFileError: something is wrong with it.
    """
    entry = open_entry(str(path))
    assert isinstance(entry, EntryFile)
    with entry.file:
        entry.check((key or make_key()).combined_hash)
        entry.decoded_meta()
        prelude = entry.prelude
        blocks = range(-(-prelude.body_size // BLOCK))
        descriptor = entry.file.fileno()
        return b"".join(
            read_block(descriptor, prelude.body_at, prelude.generation, index) for index in blocks
        )


@pytest.mark.parametrize("sizes", [(), (1,), (BLOCK,), (BLOCK, 5), (BLOCK, BLOCK)])
def test_what_was_written_is_read(layout: Layout, sizes: tuple[int, ...]) -> None:
    blocks = [os.urandom(size) for size in sizes]
    assert whole(write(layout, *blocks)) == b"".join(blocks)


def test_no_byte_of_a_file_can_change_unnoticed(layout: Layout) -> None:
    path = write(layout, b"some body")
    content = path.read_bytes()
    unnoticed = []
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            assert whole(path) == b"some body"
            unnoticed.append(at)
        except BadFileError:
            pass
    assert not unnoticed


@pytest.mark.parametrize("cut", [0, 1, PRELUDE - 1, PRELUDE, PRELUDE + 10, -1])
def test_a_file_that_was_cut_is_refused_by_its_head_alone(layout: Layout, cut: int) -> None:
    path = write(layout, b"x" * BLOCK, b"y" * BLOCK)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadFileError):
        open_entry(str(path))


def test_a_file_that_was_not_finished_is_refused(layout: Layout) -> None:
    head = Head(make_key(), make_meta().to_bytes()).encode()
    partial = PartialFile(layout, head, GENERATION)
    partial.append(b"body")
    partial.file.close()
    with pytest.raises(BadFileError, match="never finished"):
        open_entry(partial.path)


def test_the_file_of_another_key_is_refused(layout: Layout) -> None:
    path = write(layout, b"body", key=make_key("b"))
    assert whole(path, make_key("b")) == b"body"
    with pytest.raises(BadFileError, match="another key"):
        whole(path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [Path.mkdir, make_pipe])
def test_what_is_no_file_is_refused(layout: Layout, make: Callable[[Path], None]) -> None:
    path = layout.root / "odd"
    make(path)
    with pytest.raises(BadFileError):
        open_entry(str(path))


def test_a_head_longer_than_the_first_read_is_read(layout: Layout) -> None:
    key = CacheKey(b"", b"k" * 300_000)
    assert whole(write(layout, b"body", key=key), key) == b"body"


# -- files of the dead -----------------------------------------------------------------------------


def test_a_sweep_takes_what_nobody_writes_and_nothing_else(layout: Layout) -> None:
    head = Head(make_key(), b"").encode()
    living = PartialFile(layout, head, GENERATION)
    dead = PartialFile(layout, head, GENERATION)
    dead.file.close()
    side = layout.partial / ("0" * 32 + ".side")
    side.touch()
    foreign = [layout.partial / name for name in ("notes.txt", "x.part", "0" * 32)]
    for each in foreign:
        each.touch()
    assert sweep(layout) == 2
    assert set(layout.partial.iterdir()) == {Path(living.path), *foreign}
    living.file.close()
    assert sweep(layout) == 1
