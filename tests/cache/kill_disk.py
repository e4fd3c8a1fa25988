"""Kills processes while they fill a cache directory, and looks at what they leave there.

``python -m tests.cache.kill_disk --rounds 200 --seed 7`` ends with status 1 as soon as a body is
served that nobody has written in full, or the books do not balance; the seed repeats the kills that
are counted in steps, while those from outside come when they come.

Each round forks two processes that fill, replace, refresh, purge and read one directory. One of
them dies: from outside after some output, or by its own hand before or after one of its system
calls, which reaches the moments between two of them. Then a third process opens the directory like
a server that starts, reads whatever is found under any key, and compares the index with the files.

A body carries its key, its length and a digest of itself, and its metadata name the same writer.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import attrs
import trio

from tests._support.stores import make_key, make_meta
from trioproxy import ProxyError
from trioproxy.cache._disk import DiskStorage
from trioproxy.cache._disk_format import occupied
from trioproxy.cache._key import CacheKey
from trioproxy.cache._meta import CacheMeta
from trioproxy.cache._storage import HitHandler, PurgeType

LIMIT = 3_000_000
KEYS = 40
SIZES = (0, 1, 900, 20_000, 65_536, 65_537, 200_000, 500_000)
# What the process that kills itself counts.
CALLS = ("open", "write", "replace", "unlink", "fstat")


def make_body(name: str, serial: str, size: int) -> bytes:
    """Return a body that says whose it is and whether it is whole."""
    content = random.Random(f"{name} {serial}").randbytes(size)
    text = f"{name} {serial} {size}\n".encode() + content
    return blake2b(text, digest_size=16).digest() + text


def check_body(name: str, meta: CacheMeta, body: bytes) -> None:
    """Check that it is a whole body of this key, and that of this metadata."""
    text = body[16:]
    head, _, content = text.partition(b"\n")
    found, serial, size = head.decode().split(" ")
    assert len(content) == int(size), f"{len(content)} bytes instead of {size}"
    assert blake2b(text, digest_size=16).digest() == body[:16], "other bytes"
    assert found == name, f"the body of {found} for {name}"
    assert meta.header.headers.get("etag") == serial, "the metadata of another body"


async def read(reader: HitHandler) -> bytes | None:
    """Return a body, or None where its writer failed."""
    pieces = []
    try:
        while (piece := await reader.read_body()) is not None:
            pieces.append(piece)
    except ProxyError:
        return None
    finally:
        await reader.finish()
    return b"".join(pieces)


# -- the processes that are killed -----------------------------------------------------------------


@attrs.define
class Filler:
    """Does one thing after the other to a store."""

    store: DiskStorage
    chance: random.Random

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            name, key = self.pick()
            await self.chance.choice(
                (self.fill, self.fill, self.fill, self.look, self.look, self.refresh, self.purge)
            )(name, key)
            os.write(1, b".")

    def pick(self) -> tuple[str, CacheKey]:
        number = self.chance.randrange(KEYS)
        return key_of(number)

    async def fill(self, name: str, key: CacheKey) -> None:
        serial = str(self.chance.getrandbits(52))
        body = make_body(name, serial, self.chance.choice(SIZES))
        meta = make_meta(("ETag", serial), ("Cache-Tag", f"t{serial[-1]}"), created=float(serial))
        writer = await self.store.get_miss_handler(key, meta)
        step = self.chance.choice((1000, 16_384, 100_000))
        for at in range(0, len(body), step):
            await writer.write_body(body[at : at + step], False)
        if self.chance.random() < 0.1:
            writer.abandon()
        else:
            await writer.write_body(b"", True)
            await writer.finish()

    async def look(self, name: str, key: CacheKey) -> None:
        found = await self.store.lookup(key)
        if found is not None:
            complete = found[1].size is not None
            body = await read(found[1])
            assert body is not None or not complete, "a complete entry could not be read"
            if body is not None:
                check_body(name, found[0], body)

    async def refresh(self, _name: str, key: CacheKey) -> None:
        found = await self.store.lookup(key)
        if found is not None:
            found[1].close_now()
            await self.store.update_meta(key, attrs.evolve(found[0], updated=1.6e9))

    async def purge(self, _name: str, key: CacheKey) -> None:
        if self.chance.random() < 0.3:
            await self.store.purge_tag(f"t{self.chance.randrange(10)}")
        else:
            await self.store.purge(key.compact(), self.chance.choice(list(PurgeType)))


def key_of(number: int) -> tuple[str, CacheKey]:
    """Return the name and the key with a number; some are variants of one resource."""
    name = f"k{number}"
    return name, make_key(f"k{number // 4}", number % 4 or None)


async def fill(directory: Path, seed: int, steps: int) -> None:
    """Be one process that fills a directory."""
    chance = random.Random(seed)
    store = DiskStorage(directory, LIMIT)
    await store.open()
    os.write(1, b"!")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(Filler(store, chance).run, steps)
    await store.aclose()


def die_at(call_number: int, before: bool) -> None:
    """Let this process die before or after one of its system calls."""
    left = call_number

    def wrapped(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    for name in CALLS:
        setattr(os, name, functools.partial(wrapped, getattr(os, name)))


# -- the process that starts afterwards ------------------------------------------------------------


async def verify(directory: Path) -> None:
    """Be a server that starts on what is left: nothing of it may be wrong."""
    descriptors = len(os.listdir("/proc/self/fd"))
    store = DiskStorage(directory, LIMIT)
    await store.open()
    assert list((directory / "partial").iterdir()) == [], "a file of a dead process is left"
    counted = store.statistics()
    files = {
        each.name: each.stat().st_size
        for each in (directory / "objects").glob("??/*")
        if each.suffix != ".meta"
    }
    sides = {each.stem: each.stat().st_size for each in (directory / "objects").glob("??/*.meta")}
    assert set(sides) <= set(files), "metadata without an entry"
    total = sum(occupied(size) for size in (*files.values(), *sides.values()))
    assert counted.entries == len(files), f"{counted.entries} rows, {len(files)} files"
    assert counted.bytes == total, f"{counted.bytes} bytes in the index, {total} on disk"
    assert counted.bytes <= LIMIT, f"{counted.bytes} bytes are above the limit"
    found = 0
    for number in range(KEYS):
        name, key = key_of(number)
        entry = await store.lookup(key)
        if entry is not None:
            body = await read(entry[1])
            assert body is not None, "an entry that was found is damaged"
            check_body(name, entry[0], body)
            found += 1
    assert found == len(files), f"{found} of {len(files)} entries can be found"
    await store.aclose()
    assert len(os.listdir("/proc/self/fd")) == descriptors, "a descriptor is left"


def check_index(directory: Path) -> None:
    """Check that the database of the index is sound."""
    (index,) = directory.glob("trioproxy-index-*.sqlite3")
    db = sqlite3.connect(index)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",), "a damaged index"
    db.close()


# -- the rounds ------------------------------------------------------------------------------------


def forked(work: Callable[[], None], stdout: int) -> int:
    """Do something in a process of its own, whose output goes to a pipe; return its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.dup2(stdout, 1)
        work()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def ended(process: int) -> int:
    """Wait for a process and return its status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_round(directory: Path, chance: random.Random) -> bool:
    """Fill with two processes, kill one, and look; tell whether it was killed before it ended.

    Raises:
      AssertionError: something was wrong; the process that found it has said what.
    """
    by_itself = chance.random() < 0.5
    steps = 60
    reading, writing = os.pipe()

    def victim() -> None:
        if by_itself:
            die_at(chance.randrange(1, 400), chance.random() < 0.5)
        trio.run(fill, directory, chance.getrandbits(32), steps)

    def survivor() -> None:
        trio.run(fill, directory, chance.getrandbits(32) + 1, steps // 12)

    dying = forked(victim, writing)
    os.close(writing)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    living = forked(survivor, nowhere)
    if by_itself:
        while os.read(reading, 1000):
            pass
    else:
        left = chance.randrange(60)
        while left > 0 and (output := os.read(reading, 1)):
            left -= len(output)
        os.kill(dying, signal.SIGKILL)
    os.close(reading)
    status = ended(dying)
    assert status in (0, -signal.SIGKILL), f"the process to be killed ended with {status}"
    assert ended(living) == 0, "the process that shared the directory failed"
    checking = forked(functools.partial(trio.run, verify, directory), nowhere)
    os.close(nowhere)
    assert ended(checking) == 0, "what the killed process left is wrong"
    check_index(directory)
    return status != 0


def main() -> None:
    """Run the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.cache.kill_disk", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--directory", type=Path, help="kept afterwards")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="trioproxy-kill-"))
    killed = 0
    for number in range(options.rounds):
        try:
            killed += run_round(directory, random.Random(chance.getrandbits(64)))
        except AssertionError as error:
            sys.exit(f"in round {number} of seed {options.seed} in {directory}: {error}")
    if options.directory is None:
        shutil.rmtree(directory)
    print(
        f"{killed} processes killed in {options.rounds} rounds, seed {options.seed}: nothing wrong was left"
    )


if __name__ == "__main__":
    main()
