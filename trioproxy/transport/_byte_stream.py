"""Bytes over a socket, or over any Trio stream, behind one small face.

`SocketStream` works on the raw non-blocking socket: what can be sent goes out at once, without a
checkpoint, and a cancel scope is opened only around a wait that really has to park. Every loop that
sends also receives, and receiving always passes a checkpoint before it reads.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

import trio

from .._errors import ErrorType, ProxyError
from .._info import TcpInfo

#: Parts that are together smaller than this are joined for one plain send.
SMALL = 16384
#: More parts than this are joined whatever their size: the kernel takes 1,024 in one call.
MANY = 64
SLICE = 65536
# The part of Linux's struct tcp_info that every kernel has: 8 bytes, then 24 numbers.
_TCP_INFO = struct.Struct("=8B24I")
# SO_LINGER, on and without any time: closing resets the connection.
_NO_LINGER = struct.pack("ii", 1, 0)


class ByteStream(ABC):
    """A connected transport. Errors are `ProxyError` of unset source: the user of it knows whose."""

    @abstractmethod
    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        """Wait for bytes and return them; ``b""`` is the end of input.

        Raises:
          ProxyError: ReadError, the connection broke.
          trio.ClosedResourceError: it is closed on this side.
          trio.Cancelled: nothing was lost.
        """

    @abstractmethod
    def receive_ready(self, max_bytes: int = SLICE) -> bytes | None:
        """Return what is there without waiting, None where nothing is."""

    @abstractmethod
    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        """Send all parts in order.

        Args:
          parts: The bytes; large ones are not joined.
          timeout: Seconds without progress before it gives up.

        Raises:
          ProxyError: WriteError or WriteTimedout.
          trio.ClosedResourceError: it is closed on this side.
          trio.Cancelled: how much was sent is unknown.
        """

    def send_ready(self, data: bytes) -> int:
        """Send what can be sent without waiting, and return how much that was; 0 on any error."""
        return 0

    @abstractmethod
    async def send_eof(self) -> None:
        """End the output; input goes on."""

    @abstractmethod
    def close_now(self) -> None:
        """Close at once; a task parked in it gets `trio.ClosedResourceError`."""

    def abort(self) -> None:
        """Close at once, and let the other side see that it was not an end: by a reset over TCP."""
        self.close_now()

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 where there is none."""
        return -1

    def tcp_info(self) -> TcpInfo | None:
        """Return what the kernel knows of the connection, None where there is nothing to know."""
        return None


class SocketStream(ByteStream):
    """A connected, non-blocking socket."""

    __slots__ = ("_closed", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._closed = False
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        """Wait for bytes; see `ByteStream.receive_some`."""
        sock = self._sock
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this connection is closed")
            await trio.lowlevel.wait_readable(sock)
            try:
                return sock.recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as exc:
                raise self._error(ErrorType.ReadError, "reading", exc) from exc

    def receive_ready(self, max_bytes: int = SLICE) -> bytes | None:
        """Return what is there; see `ByteStream.receive_ready`."""
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        try:
            return self._sock.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as exc:
            raise self._error(ErrorType.ReadError, "reading", exc) from exc

    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        """Send all parts; see `ByteStream.send_parts`."""
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        sock = self._sock
        try:
            if len(parts) == 1:
                data = parts[0]
                sent = self._try_send(data)
                if sent != len(data):
                    await self._send_rest([data], sent, timeout)
                return
            total = sum(map(len, parts))
            if total <= SMALL or len(parts) > MANY:
                data = b"".join(parts)
                sent = self._try_send(data)
                if sent != total:
                    await self._send_rest([data], sent, timeout)
                return
            try:
                sent = sock.sendmsg(parts)
            except (BlockingIOError, InterruptedError):
                sent = 0
            if sent != total:
                await self._send_rest(parts, sent, timeout)
        except OSError as exc:
            raise self._error(ErrorType.WriteError, "writing", exc) from exc

    def send_ready(self, data: bytes) -> int:
        """Send what can be sent; see `ByteStream.send_ready`."""
        if self._closed or not data:
            return 0
        try:
            return self._try_send(data)
        except OSError:
            return 0

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    async def _send_rest(self, parts: Sequence[bytes], skip: int, timeout: float) -> None:
        for part in parts:
            if skip >= len(part):
                skip -= len(part)
                continue
            view = memoryview(part)[skip:]
            skip = 0
            while view:
                sent = self._try_send(view)
                if not sent:
                    await self._wait_writable(timeout)
                    if self._closed:
                        raise trio.ClosedResourceError("this connection is closed")
                view = view[sent:]

    async def _wait_writable(self, timeout: float) -> None:
        with trio.move_on_after(timeout) as scope:
            await trio.lowlevel.wait_writable(self._sock)
        if scope.cancelled_caught:
            raise ProxyError.explain(
                ErrorType.WriteTimedout, f"no progress in writing for {timeout:g} s"
            )

    def _error(self, etype: ErrorType, doing: str, exc: OSError) -> Exception:
        if self._closed:
            return trio.ClosedResourceError("this connection is closed")
        return ProxyError.because(etype, doing, exc)

    async def send_eof(self) -> None:
        """End the output."""
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close_now(self) -> None:
        """Close at once."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def abort(self) -> None:
        """Close at once, by a reset."""
        if not self._closed:
            with contextlib.suppress(OSError):  # it may have ended already
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.close_now()

    def fileno(self) -> int:
        """Return the descriptor."""
        return -1 if self._closed else self._sock.fileno()

    def tcp_info(self) -> TcpInfo | None:
        """Return what the kernel knows; see `ByteStream.tcp_info`."""
        if sys.platform != "linux":
            return None
        try:
            raw = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            values = _TCP_INFO.unpack(raw)
        except (OSError, struct.error):  # closed, a unix socket, or a kernel that knows less
            return None
        micro = 1e-6
        return TcpInfo(
            state=values[0],
            rtt=values[23] * micro,
            rtt_var=values[24] * micro,
            snd_mss=values[10],
            snd_cwnd=values[26],
            unacked=values[12],
            lost=values[14],
            retransmits=values[31],
        )


class StreamAdapter(ByteStream):
    """Any `trio.abc.Stream`, such as an in-memory one."""

    __slots__ = ("_closed", "_stream")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._closed = False

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        """Wait for bytes; see `ByteStream.receive_some`."""
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError as exc:
            raise ProxyError.because(ErrorType.ReadError, "reading", exc) from exc

    def receive_ready(self, max_bytes: int = SLICE) -> bytes | None:
        """Return None: a Trio stream cannot be asked without waiting."""
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        return None

    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        """Send all parts; see `ByteStream.send_parts`."""
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        view = memoryview(b"".join(parts))
        try:
            while view:
                with trio.move_on_after(timeout) as scope:
                    await self._stream.send_all(view[:SLICE])
                if scope.cancelled_caught:
                    raise ProxyError.explain(
                        ErrorType.WriteTimedout, f"no progress in writing for {timeout:g} s"
                    )
                view = view[SLICE:]
        except trio.BrokenResourceError as exc:
            raise ProxyError.because(ErrorType.WriteError, "writing", exc) from exc

    async def send_eof(self) -> None:
        """End the output, where the stream can do that."""
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            with contextlib.suppress(trio.BrokenResourceError):
                await self._stream.send_eof()

    def close_now(self) -> None:
        """Close at once; a stream whose closing awaits is closed by force."""
        if self._closed:
            return
        self._closed = True
        _close_by_force(self._stream)


def _close_by_force(stream: object) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()
        return
    # What a stapled, a TLS and a socket stream of Trio's wrap.
    for inner in ("send_stream", "receive_stream", "transport_stream", "socket"):
        part = getattr(stream, inner, None)
        if part is not None:
            _close_by_force(part)
