"""WebSockets on a `Wire`, with the frames of the `websockets` library, and frames made by hand."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, SERVER, Protocol, State

from tests._support.recording import Wire

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
DEFLATE = b"permessage-deflate"


def raw(
    opcode: int,
    data: bytes = b"",
    *,
    fin: bool = True,
    bits: int = 0,
    mask: bytes | None = b"\1\2\3\4",
) -> bytes:
    """Return a frame, right or not."""
    out = bytes([(fin << 7) | (bits << 4) | opcode])
    marked = 0 if mask is None else 0x80
    if len(data) < 126:
        out += bytes([marked | len(data)])
    elif len(data) < 1 << 16:
        out += struct.pack("!BH", marked | 126, len(data))
    else:
        out += struct.pack("!BQ", marked | 127, len(data))
    if mask is None:
        return out + data
    key = itertools.cycle(mask)
    return out + mask + bytes(byte ^ next(key) for byte in data)


def ask(*fields: bytes, extensions: bytes | None = None) -> bytes:
    """Return the request for a WebSocket."""
    lines = [
        b"GET /chat HTTP/1.1",
        b"Host: site.test",
        b"Connection: upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + KEY,
        *fields,
    ]
    if extensions is not None:
        lines.append(b"Sec-WebSocket-Extensions: " + extensions)
    return b"\r\n".join([*lines, b"", b""])


def switch(extensions: bytes | None = None) -> bytes:
    """Return the answer that makes it one."""
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Connection: upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Accept: " + ACCEPT,
    ]
    if extensions is not None:
        lines.append(b"Sec-WebSocket-Extensions: " + extensions)
    return b"\r\n".join([*lines, b"", b""])


@attrs.define(eq=False)
class Talk:
    """One end of a WebSocket behind its handshake: it answers nothing by itself."""

    wire: Wire
    frames: Protocol
    waiting: list[Frame] = attrs.field(factory=list)

    @classmethod
    def of(cls, wire: Wire, *, client: bool, deflate: Sequence[Any] | None = None) -> Talk:
        """Begin; ``deflate`` has the arguments of `PerMessageDeflate` on our side."""
        frames = Protocol(CLIENT if client else SERVER, state=State.OPEN, max_size=None)
        if deflate is not None:
            frames.extensions = [PerMessageDeflate(*deflate)]
        return cls(wire, frames)

    async def send(self, message: str | bytes) -> None:
        """Send a message in one frame."""
        if isinstance(message, str):
            await self.say(self.frames.send_text, message.encode())
        else:
            await self.say(self.frames.send_binary, message)

    async def say(self, what: Callable[..., None], *arguments: Any) -> None:
        """Send what a method of the library's makes."""
        what(*arguments)
        await self.wire.send(b"".join(self.frames.data_to_send()))

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.wire.send(data)

    async def frame(self) -> Frame:
        """Return the next frame.

        Raises:
          EOFError: there is none.
        """
        while not self.waiting:
            if not self.wire.buffer and not await self.wire.more():
                raise EOFError
            self.frames.receive_data(bytes(self.wire.buffer))
            self.wire.buffer.clear()
            assert self.frames.parser_exc is None, self.frames.parser_exc
            self.waiting += [x for x in self.frames.events_received() if isinstance(x, Frame)]
            self.frames.data_to_send()
        return self.waiting.pop(0)

    async def receive(self) -> str | bytes:
        """Return the next message, which has come in one frame."""
        frame = await self.frame()
        assert frame.opcode in (Opcode.TEXT, Opcode.BINARY), frame
        assert frame.fin
        data = bytes(frame.data)
        return data.decode() if frame.opcode is Opcode.TEXT else data

    async def closing(self) -> tuple[int, str]:
        """Return the code and the reason of the Close that comes next."""
        frame = await self.frame()
        assert frame.opcode is Opcode.CLOSE, frame
        data = bytes(frame.data)
        return (int.from_bytes(data[:2], "big"), data[2:].decode()) if data else (1005, "")

    async def ends(self) -> bool:
        """Tell whether nothing comes any more, not even a frame."""
        try:
            await self.frame()
        except EOFError:
            return True
        return False
