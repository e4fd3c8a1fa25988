"""A client's and an origin's reading of HTTP/1, small and strict, that shares no code with ours.

It takes only what a proxy should ever write, so that a doubtful message is a finding.
"""

from __future__ import annotations

import re
from functools import lru_cache

import attrs
import trio

from .._errors import ProxyError
from ._scenario import BLOCK as BLOCK
from ._secure import AnyEnd

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


@lru_cache(maxsize=256)
def blocks(kind: bytes, number: int, attempt: int, count: int) -> bytes:
    """Return a body in which each 16 bytes say whose they are."""
    return b"".join(b"<%s%03d.%d:%07d>" % (kind, number, attempt, n) for n in range(count))


class MalformedError(Exception):
    """The bytes are not what a proxy may write."""


class CutError(Exception):
    """The connection ended; `message` has what had come, `reset` how it ended."""

    def __init__(self, message: Message | None, *, reset: bool) -> None:
        super().__init__("reset" if reset else "ended")
        self.message = message
        self.reset = reset


@attrs.define(eq=False)
class Message:
    """A message as it was read."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytearray = attrs.field(factory=bytearray)
    trailers: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    complete: bool = False
    #: Ended by the connection's end alone, so that a cut cannot be told from the end.
    until_close: bool = False

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.start[9:12])

    def get(self, name: bytes) -> bytes | None:
        """Return a field's value.

        Raises:
          MalformedError: there are several.
        """
        values = [value for key, value in self.fields if key == name]
        if len(values) > 1:
            raise MalformedError(f"{name!r} comes {len(values)} times")
        return values[0] if values else None


class Wire:
    """Reads messages from a link's end, and writes bytes to it."""

    def __init__(self, end: AnyEnd) -> None:
        """Take over an end."""
        self.end = end
        self.buffer = bytearray()
        self.message: Message | None = None

    async def send(self, data: bytes, timeout: float = 1000.0) -> bool:
        """Send bytes; False where the connection has ended."""
        try:
            await self.end.send_parts([data], timeout)
        except (ProxyError, trio.ClosedResourceError):
            return False
        return True

    async def _more(self) -> bool:
        try:
            data = await self.end.receive_some()
        except (ProxyError, trio.ClosedResourceError) as exc:
            raise CutError(self.message, reset=True) from exc
        self.buffer += data
        return bool(data)

    async def _need(self) -> None:
        if not await self._more():
            raise CutError(self.message, reset=False)

    async def idle_end(self) -> bool:
        """Wait for the first byte of a message; True where the connection ended instead."""
        return not self.buffer and not await self._more()

    async def _line(self) -> bytes:
        while (at := self.buffer.find(b"\n")) < 0:
            if len(self.buffer) > 65536:
                raise MalformedError("a line without an end")
            await self._need()
        line = bytes(self.buffer[: at + 1])
        del self.buffer[: at + 1]
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise MalformedError(f"a bad line end: {line!r}")
        return line[:-2]

    async def _fields(self) -> list[tuple[bytes, bytes]]:
        fields = []
        while line := await self._line():
            name, colon, text = line.partition(b":")
            text = text.strip(b" ")
            if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(text):
                raise MalformedError(f"a bad field: {line!r}")
            fields.append((name.lower(), text))
        return fields

    async def head(self) -> Message:
        """Read a head."""
        self.message = None
        start = await self._line()
        pattern = rb"HTTP/1\.1 [0-9]{3} [^\r\n]*|[A-Z]+ /[!-~]* HTTP/1\.1"
        if not re.fullmatch(pattern, start):
            raise MalformedError(f"a bad start line: {start!r}")
        self.message = Message(start, await self._fields())
        return self.message

    async def _take(self, count: int, into: bytearray) -> None:
        while count:
            if not self.buffer:
                await self._need()
            piece = self.buffer[:count]
            del self.buffer[: len(piece)]
            into += piece
            count -= len(piece)

    async def body(self, message: Message, *, bodiless: bool = False) -> None:
        """Read the body behind a head; `bodiless` for a response to HEAD."""
        length, coding = message.get(b"content-length"), message.get(b"transfer-encoding")
        if length is not None and coding is not None:
            raise MalformedError("two framings")
        if length is not None and not re.fullmatch(rb"0|[1-9][0-9]*", length):
            raise MalformedError(f"a bad length: {length!r}")
        if coding is not None and coding != b"chunked":
            raise MalformedError(f"a bad coding: {coding!r}")
        response = message.start.startswith(b"HTTP/")
        if response and (bodiless or message.status < 200 or message.status in (204, 304)):
            if message.status < 200 and (length or coding):
                raise MalformedError("framing on an interim response")
        elif coding is not None:
            await self._chunks(message)
        elif length is not None:
            await self._take(int(length), message.body)
        elif response:
            message.until_close = True
            while self.buffer or await self._more():
                await self._take(len(self.buffer), message.body)
        message.complete = True
        self.message = None

    async def _chunks(self, message: Message) -> None:
        while True:
            line = await self._line()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", line):
                raise MalformedError(f"a bad chunk size: {line!r}")
            size = int(line, 16)
            if not size:
                message.trailers = await self._fields()
                return
            await self._take(size, message.body)
            if await self._line():
                raise MalformedError("a chunk longer than its size")
