"""A network in memory with the faults of a real one, behind the interfaces that sockets have.

A link has two directions; each has a capacity, so that backpressure is real, a latency, sizes in
which what was sent arrives, and at most one fault. Closing follows TCP: who closes with bytes
unread resets the link, and what was under way on it is lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Literal

import attrs
import trio

from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from ..transport._byte_stream import SLICE, ByteStream
from ..transport._listen import Acceptor
from ._repr import Value

CAPACITY = 65536
#: Reads that `Path.pieces` cuts: more show nothing new, and cost time.
PIECES = 400

FaultKind = Literal["reset", "fin", "stall", "silence"]


@attrs.frozen(repr=False)
class Fault(Value):
    """What goes wrong in one direction of a link once some bytes have passed.

    Attributes:
      kind: ``"reset"`` breaks the link; ``"fin"`` ends this direction, and what is sent later is
        lost; ``"stall"`` holds everything back for a while; with ``"silence"`` nothing arrives any
        more, and nobody is told.
      at: The number of bytes that pass before.
      seconds: How long a stall lasts.
    """

    kind: FaultKind = "reset"
    at: int = 0
    seconds: float = 0.0


@attrs.frozen(repr=False)
class Path(Value):
    """One direction of a link.

    Attributes:
      latency: Seconds from sending to arrival.
      pieces: Sizes in which bytes are read, one after another and over again, for the first few
        hundred reads; empty for no limit.
      capacity: Bytes that may be under way.
      fault: What goes wrong, or None.
    """

    latency: float = 0.0
    pieces: tuple[int, ...] = ()
    capacity: int = CAPACITY
    fault: Fault | None = None


_DIRECT = Path()


@attrs.frozen(repr=False)
class Link(Value):
    """Both directions of a link.

    Attributes:
      out: From the side that connected to the other one.
      back: The way back.
    """

    out: Path = _DIRECT
    back: Path = _DIRECT


PLAIN = Link()


class _Direction:
    """The bytes under way from one end to the other."""

    def __init__(self, network: Network, name: str, path: Path) -> None:
        self.network = network
        self.name = name
        self.path = path
        self.segments: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.sent = 0
        self.taken = 0
        #: When the end of this direction arrives, None while it is open.
        self.fin: float | None = None
        self.broken = False
        self.receiver_closed = False
        self.silent = False
        self.held_until = -math.inf
        self._piece = 0
        self.readers = trio.lowlevel.ParkingLot()
        self.writers = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        self.readers.unpark_all()
        self.writers.unpark_all()

    # -- the sender's side

    def put(self, data: bytes | memoryview) -> int:
        """Take what there is room for."""
        room = self.path.capacity - self.size
        if room <= 0:
            return 0
        data = bytes(data[:room])
        fault, before = self.path.fault if self.network.faults else None, self.sent
        self.sent += len(data)
        self.network.note(self.name, "sent", len(data))
        if self.fin is not None:  # a fault ended this direction: the rest is lost
            return len(data)
        if fault is not None and before <= fault.at < self.sent:
            self._append(data[: fault.at - before])
            self.network.note(self.name, fault.kind, fault.at)
            self._fall(fault)
            if fault.kind in ("stall", "silence"):
                self._append(data[fault.at - before :])
        else:
            self._append(data)
        return len(data)

    def _append(self, data: bytes) -> None:
        if data:
            self.size += len(data)
            self.segments.append((self._arrival(), data))
            self.readers.unpark_all()

    def _arrival(self) -> float:
        return max(trio.current_time() + self.path.latency, self.held_until)

    def _fall(self, fault: Fault) -> None:
        if fault.kind == "reset":
            self.network.break_link(self)
        elif fault.kind == "fin":
            self.end()
        elif fault.kind == "stall":
            self.held_until = trio.current_time() + fault.seconds
        else:
            self.silent = True

    def end(self) -> None:
        """End this direction behind what is under way."""
        if self.fin is None:
            self.fin = self._arrival()
            self.wake()

    def cut(self) -> None:
        """Break this direction: what has not arrived is lost."""
        if self.broken or self.silent:
            return
        self.broken = True
        now = trio.current_time()
        self.segments = deque(each for each in self.segments if each[0] <= now)
        self.size = sum(len(data) for _, data in self.segments)
        self.wake()

    # -- the receiver's side

    def take(self, most: int) -> bytes | None:
        """Return what has arrived, ``b""`` at the end, None where nothing has.

        Raises:
          ConnectionResetError: the link is broken.
        """
        now = trio.current_time()
        if self.segments and not self.silent and self.segments[0][0] <= now:
            pieces = self.path.pieces
            if pieces and self._piece < PIECES:
                most = min(most, pieces[self._piece % len(pieces)])
                self._piece += 1
            arrival, data = self.segments.popleft()
            if len(data) > most:
                self.segments.appendleft((arrival, data[most:]))
                data = data[:most]
            self.size -= len(data)
            self.taken += len(data)
            self.writers.unpark_all()
            self.network.note(self.name, "read", len(data))
            return data
        if self.broken:
            raise ConnectionResetError("connection reset by peer")
        if self.fin is not None and not self.segments and not self.silent and self.fin <= now:
            return b""
        return None

    def arrived(self) -> int:
        """Return how many bytes lie unread at the receiver."""
        if self.silent:
            return 0
        now = trio.current_time()
        return sum(len(data) for arrival, data in self.segments if arrival <= now)

    async def wait_readable(self) -> None:
        """Wait until `take` is worth another try."""
        when = math.inf
        if self.silent:
            pass
        elif self.segments:
            when = self.segments[0][0]
        elif self.fin is not None:
            when = self.fin
        with trio.CancelScope(deadline=when):
            await self.readers.park()


class End(ByteStream):
    """One end of a link."""

    def __init__(self, network: Network, out: _Direction, back: _Direction, counted: bool) -> None:
        self.network = network
        self.outgoing = out
        self.incoming = back
        self.closed = False
        #: Bytes that a write holds while it waits for room.
        self.pending = 0
        self._counted = counted

    def _operation(self, etype: ErrorType) -> None:
        """Count an operation of the proxy's; the chosen one fails."""
        if self._counted and self.network.operation():
            self.network.note(self.outgoing.name, "failed", self.network.operations)
            self.network.break_link(self.outgoing)
            raise ProxyError.explain(etype, "this operation was chosen to fail")

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this end is closed")

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        """Wait for bytes; see `ByteStream.receive_some`."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            data = self._take(max_bytes)
            if data is not None:
                self._operation(ErrorType.ReadError)
                return data
            await self.incoming.wait_readable()

    def receive_ready(self, max_bytes: int = SLICE) -> bytes | None:
        """Return what is there; see `ByteStream.receive_ready`."""
        self._check_open()
        data = self._take(max_bytes)
        if data is not None:
            self._operation(ErrorType.ReadError)
        return data

    def _take(self, most: int) -> bytes | None:
        try:
            return self.incoming.take(most)
        except ConnectionResetError as exc:
            raise ProxyError.because(ErrorType.ReadError, "reading", exc) from exc

    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        """Send all parts; see `ByteStream.send_parts`."""
        self._check_open()
        self._operation(ErrorType.WriteError)
        out = self.outgoing
        view = memoryview(b"".join(parts))
        while view:
            if out.broken:
                raise ProxyError.explain(ErrorType.WriteError, "connection reset by peer")
            if out.receiver_closed:
                # As with TCP: this write seems to go well, and is answered by a reset.
                self.network.note(out.name, "refused", len(view))
                self.network.break_link(out)
                return
            sent = out.put(view)
            view = view[sent:]
            if view and not sent:
                self.pending = len(view)
                try:
                    with trio.move_on_after(timeout) as scope:
                        await out.writers.park()
                finally:
                    self.pending = 0
                if scope.cancelled_caught:
                    raise ProxyError.explain(
                        ErrorType.WriteTimedout, f"no progress in writing for {timeout:g} s"
                    )
                self._check_open()

    def send_ready(self, data: bytes) -> int:
        """Send what there is room for; see `ByteStream.send_ready`."""
        out = self.outgoing
        if self.closed or out.broken or out.receiver_closed or out.fin is not None:
            return 0
        return out.put(data)

    async def send_eof(self) -> None:
        """End the output."""
        self._check_open()
        self.network.note(self.outgoing.name, "eof", self.outgoing.sent)
        self.outgoing.end()

    def close_now(self) -> None:
        """Close both directions; bytes that nobody has read make it a reset."""
        if self.closed:
            return
        self.closed = True
        unread = self.incoming.arrived() > 0
        self.network.note(self.outgoing.name, "reset" if unread else "closed", self.outgoing.sent)
        self._leave(unread)

    def abort(self) -> None:
        """Close as a cut; see `ByteStream.abort`."""
        self.reset()

    def reset(self) -> None:
        """Break the link at once, as a process that is killed may."""
        if not self.closed:
            self.closed = True
            self.network.note(self.outgoing.name, "reset", self.outgoing.sent)
            self._leave(True)

    def _leave(self, reset: bool) -> None:
        self.incoming.receiver_closed = True
        self.incoming.segments.clear()
        self.incoming.size = 0
        if reset:
            self.network.break_link(self.outgoing)
        else:
            self.outgoing.end()
        self.incoming.wake()
        self.outgoing.wake()


class Network:
    """All links of a world, and what happened on them."""

    def __init__(self, fail_operation: int = 0) -> None:
        """Make a network without links.

        Args:
          fail_operation: The number of the stream operation of the proxy that fails; 0 for none.
        """
        self.trace: list[str] = []
        self.operations = 0
        #: Whether links get their faults; off once a run asks whether the proxy is still well.
        self.faults = True
        self._fail_operation = fail_operation
        self._others: dict[_Direction, _Direction] = {}
        #: The proxy's ends, in the order in which they were made.
        self.ends: list[End] = []

    def note(self, who: str, what: str, number: float) -> None:
        """Write down what happened."""
        self.trace.append(f"{trio.current_time():.6f} {who} {what} {number:g}")

    def operation(self) -> bool:
        """Count an operation of the proxy's; True where it is the one to fail."""
        self.operations += 1
        return self.faults and self.operations == self._fail_operation

    def link(self, name: str, link: Link, *, proxy_connects: bool) -> tuple[End, End]:
        """Make a link; return the proxy's end of it, and the other party's."""
        out = _Direction(self, f"{name}>", self._whole(link.out))
        back = _Direction(self, f"{name}<", self._whole(link.back))
        self._others[out], self._others[back] = back, out
        if proxy_connects:
            ours, theirs = End(self, out, back, True), End(self, back, out, False)
        else:
            ours, theirs = End(self, back, out, True), End(self, out, back, False)
        self.ends.append(ours)
        return ours, theirs

    def calm(self) -> None:
        """Let faults stop: links that hold something back break, and new ones get no fault."""
        self.faults = False
        for direction in self._others:
            if direction.silent or direction.held_until > trio.current_time():
                direction.silent = False
                self.break_link(direction)

    def _whole(self, path: Path) -> Path:
        return path if self.faults else attrs.evolve(path, fault=None)

    def break_link(self, direction: _Direction) -> None:
        """Break both directions of the link that this one belongs to."""
        direction.cut()
        self._others[direction].cut()


class MemoryAcceptor(Acceptor):
    """Where the connections of clients in memory arrive."""

    def __init__(self, network: Network, url: str = "http://proxy.test") -> None:
        """Make an acceptor.

        Args:
          network: Gives the links.
          url: Its name.
        """
        self.url = url
        self._network = network
        self._waiting: deque[tuple[End, ConnectionInfo]] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False
        self._count = 0

    def connect(self, link: Link) -> End:
        """Return the client's end of a new connection.

        Raises:
          ConnectionRefusedError: nobody listens any more.
        """
        if self._closed:
            raise ConnectionRefusedError("nobody listens")
        self._count += 1
        ours, theirs = self._network.link(f"client{self._count}", link, proxy_connects=False)
        info = ConnectionInfo(
            "192.0.2.1:80", f"198.51.100.1:{50000 + self._count}", trio.current_time()
        )
        self._waiting.append((ours, info))
        self._lot.unpark_all()
        return theirs

    async def accept(self) -> tuple[ByteStream, ConnectionInfo]:
        """Wait for the next connection; see `Acceptor.accept`."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this listener is closed")
            if self._waiting:
                return self._waiting.popleft()
            await self._lot.park()

    def close(self) -> None:
        """Take no more connections, and reset those that nobody accepted."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft()[0].reset()
        self._lot.unpark_all()
