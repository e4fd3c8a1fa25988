"""A client's end of a CONNECT tunnel, the same over both versions of HTTP, and origins of bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import attrs
import trio
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame

from tests._support.h2_wire import AnyFields, H2Wire, as_fields
from tests._support.matrix import Exchange, H1Exchange, Matrix
from tests._support.recording import Wire

#: Where a tunnel leads in these tests: what `ORIGIN` is, by another port.
TARGET = "origin.test:443"


class Tunnel(ABC):
    """What a client does with a tunnel."""

    status: int
    fields: list[tuple[bytes, bytes]]

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send bytes."""

    @abstractmethod
    async def half_close(self) -> None:
        """End our side."""

    @abstractmethod
    async def receive(self) -> bytes | int | None:
        """Return what comes next, ``b""`` at the end; how it was cut else.

        That is the error code over HTTP/2, and None for a reset connection.
        """

    async def read(self, count: int) -> bytes:
        """Return so many bytes."""
        got = b""
        while len(got) < count:
            data = await self.receive()
            assert isinstance(data, bytes), (got, data)
            assert data, got
            got += data
        assert len(got) == count, got
        return got

    @abstractmethod
    async def leave(self) -> None:
        """Give the tunnel up at once."""


@attrs.define(eq=False, slots=False)
class H1Tunnel(Tunnel):
    wire: Wire
    status: int = 0
    fields: list[tuple[bytes, bytes]] = attrs.field(factory=list)

    async def send(self, data: bytes) -> None:
        await self.wire.send(data)

    async def half_close(self) -> None:
        await self.wire.half_close()

    async def receive(self) -> bytes | int | None:
        wire = self.wire
        try:
            if not wire.buffer and not await wire.more():
                return b""
        except trio.BrokenResourceError:
            return None
        data = bytes(wire.buffer)
        wire.buffer.clear()
        return data

    async def leave(self) -> None:
        self.wire.close()


@attrs.define(eq=False, slots=False)
class H2Tunnel(Tunnel):
    wire: H2Wire
    stream: int = 1
    status: int = 0
    fields: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    ended: bool = False

    async def send(self, data: bytes) -> None:
        await self.wire.data(self.stream, data)

    async def half_close(self) -> None:
        await self.wire.data(self.stream, b"", end=True)

    async def receive(self) -> bytes | int | None:
        if self.ended:
            return b""
        while True:
            frame = await self.wire.until(Frame, self.stream)
            if isinstance(frame, RstStreamFrame):
                return int(frame.error_code)
            if isinstance(frame, DataFrame):
                self.ended = "END_STREAM" in frame.flags
                if frame.flow_controlled_length:
                    await self.wire.credit(0, frame.flow_controlled_length)
                    if not self.ended:
                        await self.wire.credit(self.stream, frame.flow_controlled_length)
                if frame.data or self.ended:
                    return frame.data
            assert not isinstance(frame, HeadersFrame), frame

    async def leave(self) -> None:
        await self.wire.send(RstStreamFrame(self.stream, 8))


def ask(target: str = TARGET, *fields: bytes, version: bytes = b"1.1") -> bytes:
    """Return a CONNECT request of HTTP/1."""
    name = target.encode()
    lines = [b"CONNECT " + name + b" HTTP/" + version, b"Host: " + name, *fields]
    return b"\r\n".join([*lines, b"", b""])


async def connect(
    gateway: Matrix, target: str = TARGET, fields: AnyFields = (), early: bytes = b""
) -> Tunnel:
    """Ask for a tunnel on a new connection, as its leg has it; the final answer's head is there.

    Args:
      gateway: Where.
      target: Where to.
      fields: More fields.
      early: What is sent before the answer.
    """
    if gateway.pairing.down.h2:
        return await connect_h2(await gateway.frames(), target=target, fields=fields, early=early)
    client = await gateway.connect()
    wire = client.wire
    assert wire is not None
    lines = [b"%s: %s" % pair for pair in as_fields(fields)]
    await wire.send(ask(target, *lines) + early)
    head = await wire.head()
    return H1Tunnel(wire, head.status, head.fields)


async def connect_h2(
    wire: H2Wire,
    stream: int = 1,
    *,
    target: str = TARGET,
    fields: AnyFields = (),
    early: bytes = b"",
) -> H2Tunnel:
    """Do the same as a stream of a connection of HTTP/2."""
    pseudo = [(":method", "CONNECT"), (":authority", target)]
    await wire.headers(stream, [*as_fields(pseudo), *as_fields(fields)])
    if early:
        await wire.data(stream, early)
    head = await wire.head(stream)
    status = head.get(":status")
    assert status is not None
    assert (int(status) >= 300) or "END_STREAM" not in head.flags
    answered = [pair for pair in head.fields if pair[0] != b":status"]
    return H2Tunnel(wire, stream, int(status), answered)


def wire_of(exchange: Exchange) -> Wire:
    """Return the bytes behind an exchange."""
    assert isinstance(exchange, H1Exchange)
    return exchange.wire


async def shout(exchange: Exchange) -> None:
    """Be an origin that sends back what comes in upper case, and says BYE at its end."""
    wire = wire_of(exchange)
    while wire.buffer or await wire.more():
        data = bytes(wire.buffer)
        wire.buffer.clear()
        await wire.send(data.upper())
    await wire.send(b"BYE")
    exchange.close()
