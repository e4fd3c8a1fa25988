"""A connection in memory that can be asked without waiting, bounded, cut and looked into."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from trioproxy import ErrorType, ProxyError
from trioproxy.transport._byte_stream import SLICE, ByteStream


class WireEnd(ByteStream):
    """One end of a connection in memory, which can be asked without waiting and counts calls.

    `cut` bounds what one receive gives; `room` what the other end holds unread.
    """

    def __init__(self, room: float = float("inf"), cut: int = SLICE) -> None:
        self.unread = bytearray()
        self.ended = False
        self.closed = False
        self.sends: list[int] = []
        self.receives = 0
        self.cut = cut
        self.room = room
        self.moved = trio.lowlevel.ParkingLot()
        self.other = self

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        self.receives += 1
        await trio.lowlevel.checkpoint()
        while True:
            data = self.receive_ready(max_bytes)
            if data is not None:
                return data
            await self.moved.park()

    def receive_ready(self, max_bytes: int = SLICE) -> bytes | None:
        if self.closed:
            raise trio.ClosedResourceError
        size = min(max_bytes, self.cut)
        if not self.unread:
            return b"" if self.ended else None
        data = bytes(self.unread[:size])
        del self.unread[:size]
        self.moved.unpark_all()
        return data

    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        self.sends.append(sum(map(len, parts)))
        view = memoryview(b"".join(parts))
        while view:
            sent = self.send_ready(bytes(view))
            view = view[sent:]
            if view:
                with trio.move_on_after(timeout) as scope:
                    await self.other.moved.park()
                if scope.cancelled_caught:
                    raise ProxyError.explain(ErrorType.WriteTimedout, "no progress")

    def send_ready(self, data: bytes) -> int:
        if self.closed:
            return 0
        room = min(len(data), max(0, self.room - len(self.other.unread)))
        self.other.unread += data[: int(room)]
        self.other.moved.unpark_all()
        return int(room)

    async def send_eof(self) -> None:
        self.end()

    def end(self) -> None:
        self.other.ended = True
        self.other.moved.unpark_all()

    def close_now(self) -> None:
        self.closed = True
        self.moved.unpark_all()
        self.end()


def wires(room: float = float("inf"), cut: int = SLICE) -> tuple[WireEnd, WireEnd]:
    one, two = WireEnd(room, cut), WireEnd(room, cut)
    one.other, two.other = two, one
    return one, two
