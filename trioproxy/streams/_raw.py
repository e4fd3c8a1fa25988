"""Bytes towards an origin, in the shape of an exchange: what a CONNECT tunnel leads to.

No HTTP is spoken here. The request's head goes nowhere, and the 200 that the exchange begins with
says that the connection is there (RFC 9110 section 9.3.6). From then on it is a tunnel as behind a
101: content both ways, and an end is a half-close. Such a connection carries one exchange and no
more. Whatever reads, reads for somebody who waits: there is no reader task, and no byte is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from .._errors import ErrorSource, ErrorType, ProxyError
from .._info import ConnectionInfo
from .._messages import (
    END,
    Data,
    RequestEvent,
    RequestHeader,
    ResponseEvent,
    ResponseFacts,
    ResponseHeader,
)
from ..transport._byte_stream import ByteStream
from ._abc import UpstreamConnection, UpstreamStream

READ_SIZE = 65536


class RawConnection(UpstreamConnection):
    """A connection to an origin that carries bytes."""

    __slots__ = (
        "_exchange",
        "_over",
        "dead",
        "idle_timeout",
        "info",
        "on_idle_end",
        "on_room",
        "served",
        "spoke_out_of_turn",
        "transport",
    )

    def __init__(self, transport: ByteStream, info: ConnectionInfo) -> None:
        """Take over a connected transport.

        Args:
          transport: The bytes.
          info: Where they go.
        """
        self.transport = transport
        self.info = info
        self.dead = False
        self.served = 0
        self.spoke_out_of_turn = False
        self.idle_timeout = math.inf
        self.on_idle_end: Callable[[UpstreamConnection], None] = _nobody
        self.on_room: Callable[[UpstreamConnection], None] = _nobody
        self._exchange: RawUpstreamStream | None = None
        self._over = trio.Event()

    def __repr__(self) -> str:
        state = "dead" if self.dead else "idle" if self._exchange is None else "busy"
        return f"<RawConnection to {self.info.peer} {state}>"

    @property
    def shared(self) -> bool:
        """False: one exchange."""
        return False

    @property
    def room(self) -> int:
        """1 before the exchange, else 0."""
        return 0 if self.dead or self.served else 1

    @property
    def busy(self) -> int:
        """1 during the exchange, else 0."""
        return 0 if self._exchange is None else 1

    async def run(self) -> None:
        """Wait for the end of the exchange."""
        try:
            await self._over.wait()
        finally:
            self.close()

    def start(self) -> RawUpstreamStream:
        """Start the exchange."""
        if not self.room:
            raise _gone()
        self.served += 1
        self._exchange = RawUpstreamStream(self)
        return self._exchange

    def release(self) -> None:
        """End the exchange, and the connection with it: by a reset where that cuts a tunnel."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if exchange.cut:
                self.transport.abort()
            self.close()

    def arm_idle(self, seconds: float) -> None:
        """Close: it is of no use to anybody else."""
        self.close()

    def usable(self) -> bool:
        """Return False: what it carried before is unknown."""
        return False

    def close(self) -> None:
        """Close the connection at once; its task ends by itself."""
        self.dead = True
        self.transport.close_now()
        self._over.set()


class RawUpstreamStream(UpstreamStream):
    """The exchange on a `RawConnection`."""

    __slots__ = (
        "_connection",
        "_greeted",
        "_head_sent",
        "_received_end",
        "_sent",
        "_sent_end",
        "body_bytes_received",
        "info",
        "read_timeout",
        "reused",
        "write_pending_time",
        "write_timeout",
    )

    def __init__(self, connection: RawConnection) -> None:
        self._connection = connection
        self.info = connection.info
        self.reused = False
        self.read_timeout = math.inf
        self.write_timeout = math.inf
        self.body_bytes_received = 0
        self.write_pending_time = 0.0
        self._head_sent = False
        self._greeted = False
        self._sent = False
        self._sent_end = False
        self._received_end = False

    @property
    def anything_sent(self) -> bool:
        """Whether a byte of the tunnel may have reached the wire."""
        return self._sent

    @property
    def cut(self) -> bool:
        """Whether the tunnel was opened, and has not ended on both sides."""
        return self._greeted and not (self._sent_end and self._received_end)

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1."""
        return self._connection.transport.fileno()

    async def send(self, *events: RequestEvent) -> None:
        """Send events; the head and its end are for nobody but us."""
        parts: list[bytes] = []
        end = False
        for event in events:
            if type(event) is RequestHeader:
                self._head_sent = True
            elif not self._greeted:
                # The end of the request's head: the tunnel's own half-close comes behind the 200.
                if event is not END:
                    raise ProxyError.explain(
                        ErrorType.InternalError, "content was sent before the tunnel was there"
                    ).into_in()
            elif self._sent_end or end:
                raise ProxyError.explain(
                    ErrorType.InternalError, "content was sent behind the end of a tunnel"
                ).into_in()
            elif type(event) is Data:
                parts.append(event.data)
                end = event.end
            else:
                end = True
        transport = self._connection.transport
        started = trio.current_time()
        try:
            if parts:
                self._sent = True
                await transport.send_parts(parts, self.write_timeout)
            if end:
                await transport.send_eof()
                self._sent_end = True
        except trio.ClosedResourceError as exc:
            raise _gone() from exc
        except ProxyError as exc:
            raise exc.into_up() from exc.cause
        finally:
            self.write_pending_time += trio.current_time() - started

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return the 200, then what comes."""
        connection = self._connection
        if not self._greeted:
            await trio.lowlevel.checkpoint()
            self._greeted = True
            return [_granted()]
        data: bytes | None = None
        try:
            if (
                self._received_end
            ):  # nothing more can come but a reset, which only a write would see
                await connection._over.wait()  # noqa: SLF001  # its own connection
                raise _gone()
            with trio.move_on_after(self.read_timeout):
                data = await connection.transport.receive_some(READ_SIZE)
        except trio.ClosedResourceError as exc:
            raise _gone() from exc
        except ProxyError as exc:
            raise exc.into_up() from exc.cause
        if data is None:
            raise ProxyError.explain(
                ErrorType.ReadTimedout, f"nothing came in the tunnel for {self.read_timeout:g} s"
            ).into_up()
        if data:
            return [Data(data)]
        self._received_end = True
        return [END]

    def release(self) -> None:
        """End the exchange, and the connection with it; nothing the second time."""
        self._connection.release()


def _granted() -> ResponseHeader:
    head = ResponseHeader(200, reason=b"Connection established")
    head.facts = ResponseFacts(has_body=False)
    return head


def _nobody(_: UpstreamConnection) -> None:
    """Stand in for an owner that does not care."""


def _gone() -> ProxyError:
    error = ProxyError.explain(ErrorType.ConnectionClosed, "the connection to the origin is closed")
    error.esource = ErrorSource.UPSTREAM
    return error
