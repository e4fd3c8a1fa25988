"""Origins, gateways and a client on the loopback; the client reads by itself, with none of our code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

import trioproxy
from trioproxy.server._kinds import Proxy

ROOT = Path(__file__).resolve().parents[2]

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@attrs.frozen
class Reply:
    """A reply as bytes came."""

    raw: bytes

    @property
    def status(self) -> int:
        """The status of the first status line."""
        return int(self.raw.split(b" ", 2)[1])

    @property
    def fields(self) -> dict[str, str]:
        """The fields, names in lower case."""
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}

    @property
    def body(self) -> bytes:
        """What follows the head, as on the wire."""
        return self.raw.partition(b"\r\n\r\n")[2]


def get(target: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return a request without a body that ends its connection."""
    lines = [f"{method} {target} HTTP/{version}", *fields, "Connection: close", "", ""]
    if not any(field.lower().startswith("host:") for field in fields):
        lines.insert(1, "Host: site.test")
    return "\r\n".join(lines).encode("latin-1")


async def connect(url: str) -> trio.SocketStream:
    """Connect to a listener by its URL."""
    if url.startswith("http+unix:"):
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.connect(url.removeprefix("http+unix:"))
        return trio.SocketStream(sock)
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await trio.open_tcp_stream(host.strip("[]"), int(port))


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Read to the end of input."""
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)


async def receive_until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    """Read until some bytes have come."""
    data = bytearray()
    while end not in data:
        piece = await stream.receive_some()
        assert piece, f"the input ended before {end!r}: {bytes(data)!r}"
        data += piece
    return bytes(data)


async def ask(url: str, request: bytes | None = None) -> Reply:
    """Send a request that ends its connection, and read the whole reply."""
    async with await connect(url) as stream:
        await stream.send_all(get() if request is None else request)
        return Reply(await receive_all(stream))


@asynccontextmanager
async def serving(proxy: Proxy, *binds: str, **conf: Any) -> AsyncIterator[trioproxy.Running]:
    """Serve a proxy, on a free port where no bind is given."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(
            lambda task_status: trioproxy.serve(
                proxy,
                *(binds or ("127.0.0.1:0",)),
                conf=trioproxy.ServerConf(**conf),
                task_status=task_status,
            )
        )
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def an_origin(handler: Handler) -> AsyncIterator[str]:
    """Serve connections by a function, one request each; gives the URL."""
    async with trio.open_nursery() as nursery:

        async def connection(stream: trio.SocketStream) -> None:
            try:
                await handler(stream)
            except trio.BrokenResourceError:
                pass
            finally:
                await trio.aclose_forcefully(stream)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, connection, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def answering(response: bytes) -> Handler:
    """Return a handler that reads a request's head and sends a fixed response."""

    async def handler(stream: trio.SocketStream) -> None:
        await receive_until(stream, b"\r\n\r\n")
        await stream.send_all(response)

    return handler


async def mirror(stream: trio.SocketStream) -> None:
    """Answer with the head of the request, as it came."""
    head = await receive_until(stream, b"\r\n\r\n")
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(head), head))


class Program:
    """A program of ours as a process of its own, with its standard error read line by line."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.err = ""
        self.out = ""

    @classmethod
    @asynccontextmanager
    async def start(cls, *arguments: str, cwd: Path = ROOT) -> AsyncIterator[Program]:
        """Run ``python -m ...``; it is killed if it is still there in the end."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
        )
        program = cls(process)
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                assert process.stdout is not None
                assert process.stderr is not None
                await process.stdout.aclose()
                await process.stderr.aclose()

    async def until(self, pattern: str, *, out: bool = False) -> str:
        """Read until a pattern matches; return its first group, or what matched."""
        stream = self.process.stdout if out else self.process.stderr
        assert stream is not None
        while (match := re.search(pattern, self.out if out else self.err)) is None:
            data = await stream.receive_some()
            assert data, f"{pattern!r} never came: {self.out}{self.err}"
            if out:
                self.out += data.decode()
            else:
                self.err += data.decode()
        return match[1] if match.re.groups else match[0]

    async def ends(self, *signals: signal.Signals) -> int:
        """Send signals, read what is left and return the exit code."""
        for number in signals:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out += (await receive_all(self.process.stdout)).decode()
        self.err += (await receive_all(self.process.stderr)).decode()
        return await self.process.wait()
