"""What the callbacks of a stream see of it, and may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo, Digest
from .._util import Bell
from ..codec._client_hello import ClientHello, HelloReader, NotTls
from ..transport._byte_stream import ByteStream

if TYPE_CHECKING:
    from ._engine import StreamServices
    from ._peer import StreamPeer

#: Bytes of the client that are read before there is an upstream, at most.
READ_AHEAD = 65536


class StreamSession:
    """One connection of a client, and the connection that it is joined to.

    Attributes:
      error: What the session has failed with, once it has.
    """

    def __init__(
        self, services: StreamServices, transport: ByteStream, info: ConnectionInfo
    ) -> None:
        self.error: ProxyError | None = None
        self._services = services
        self._transport = transport
        self._info = info
        self._started = trio.current_time()
        self._phase = ""
        self._peer: StreamPeer | None = None
        self._upstream: ByteStream | None = None
        self._dropped = False
        self._shed = False
        # What was read ahead, whether that was all, and who waits for more of it.
        self._ahead = bytearray()
        self._ahead_ended = False
        self._ahead_over = False
        self._more = Bell()
        self._hello: ClientHello | None = None
        self._from_client = self._to_client = 0
        self._from_upstream = self._to_upstream = 0

    def __repr__(self) -> str:
        return f"<StreamSession of {self._info.peer}>"

    # -- who is there ----------------------------------------------------------------------------

    def client_addr(self) -> str | None:
        """Return the client's address as text (``127.0.0.1:5000``), None for unnamed sockets."""
        return self._info.peer

    def server_addr(self) -> str | None:
        """Return the address the client connected to, as text."""
        return self._info.local

    def digest(self) -> Digest:
        """Return the facts of the client's connection: addresses, times, TLS where it ends here."""
        return Digest.of(self._info)

    def is_process_shutting_down(self) -> bool:
        """Tell whether the server is draining."""
        return self._services.draining

    # -- looking ahead ---------------------------------------------------------------------------

    async def peek(
        self, limit: int = READ_AHEAD, *, at_least: int = 1, timeout: float | None = None
    ) -> bytes:
        """Return the client's first bytes, and consume nothing.

        Until ``connected_to_upstream`` has returned; the same bytes may be looked at again and again.
        Where the upstream is the one to speak first, this waits in vain.

        Args:
          limit: Bytes to return at most.
          at_least: Bytes to wait for. Fewer are returned where the client's output ends before.
          timeout: Seconds to wait; None takes ``ServerConf.header_timeout``.

        Raises:
          ProxyError: ReadTimedout, so many bytes did not come in time.
          ValueError: the numbers do not fit each other, or more than 65,536 bytes are wanted.
        """
        if not 0 <= at_least <= limit <= READ_AHEAD:
            raise ValueError(
                f"at_least={at_least}, limit={limit}: 0 <= at_least <= limit <= {READ_AHEAD} is "
                "right"
            )
        self._check_ahead()
        with self._patience(timeout) as scope:
            while len(self._ahead) < at_least and not self._ahead_ended:
                await self._more.wait()
        if scope.cancelled_caught:
            raise self._too_slow(f"{at_least} bytes of the client", timeout)
        return bytes(self._ahead[:limit])

    async def client_hello(self, *, timeout: float | None = None) -> ClientHello | None:
        """Return what a TLS client asks for, and consume nothing: its TLS may end elsewhere.

        None where it is not TLS, malformed, or its ClientHello is larger than 64 KiB. Where the
        listener itself ends TLS, ``digest`` has the name.

        Args:
          timeout: Seconds to wait for all of it; None takes ``ServerConf.header_timeout``.

        Raises:
          ProxyError: ReadTimedout, it did not come in time.
        """
        if self._hello is not None:
            return self._hello
        self._check_ahead()
        reader = HelloReader()
        with self._patience(timeout):
            while True:
                try:
                    hello = reader.feed(bytes(self._ahead[len(reader.received) :]))
                except NotTls:
                    return None
                if hello is not None:
                    self._hello = hello
                    return hello
                if self._ahead_ended:
                    return None
                await self._more.wait()
        raise self._too_slow("a ClientHello", timeout)

    def _check_ahead(self) -> None:
        if self._ahead_over:
            raise RuntimeError("nothing can be read ahead any more: the upstream is connected")

    def _patience(self, timeout: float | None) -> trio.CancelScope:
        seconds = self._services.conf.header_timeout if timeout is None else timeout
        return trio.CancelScope(deadline=trio.current_time() + seconds)

    def _too_slow(self, what: str, timeout: float | None) -> ProxyError:
        seconds = self._services.conf.header_timeout if timeout is None else timeout
        return ProxyError.explain(
            ErrorType.ReadTimedout, f"{what} did not come within {seconds:g} s"
        ).into_down()

    async def _read_ahead(self) -> None:
        """Read until there is as much as may be held; cancelled where nobody wants more.

        Raises:
          ProxyError: the client is gone.
        """
        ahead = self._ahead
        while not self._ahead_ended and len(ahead) < READ_AHEAD:
            data = await self._transport.receive_some(READ_AHEAD - len(ahead))
            self._from_client += len(data)
            ahead += data
            self._ahead_ended = not data
            self._more.ring()

    # -- counters --------------------------------------------------------------------------------

    def bytes_from_client(self) -> int:
        """Return how many bytes were read from the client, before any filter."""
        return self._from_client

    def bytes_to_upstream(self) -> int:
        """Return how many bytes were sent to the upstream."""
        return self._to_upstream

    def bytes_from_upstream(self) -> int:
        """Return how many bytes were read from the upstream, before any filter."""
        return self._from_upstream

    def bytes_to_client(self) -> int:
        """Return how many bytes were sent to the client."""
        return self._to_client

    def _read_from_client(self, count: int) -> None:
        self._from_client += count

    def _sent_to_upstream(self, count: int) -> None:
        self._to_upstream += count

    def _read_from_upstream(self, count: int) -> None:
        self._from_upstream += count

    def _sent_to_client(self, count: int) -> None:
        self._to_client += count
