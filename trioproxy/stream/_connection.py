"""From accepted bytes to a session: who may in, and TLS where the listener has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .._errors import ProxyError
from .._info import ConnectionInfo
from ..streams._entrance import Entrance
from ..transport._byte_stream import ByteStream
from ..transport._tls_server import TlsAcceptor

StreamHandler = Callable[[ByteStream, ConnectionInfo, bytes], Awaitable[None]]


class StreamConnection:
    """One accepted connection that becomes a stream."""

    def __init__(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        tls: TlsAcceptor | None,
        on_limit: Callable[[str], None],
        entrance: Entrance | None = None,
    ) -> None:
        """Take over an accepted transport.

        Args:
          transport: The bytes.
          info: Who is there.
          tls: Opens TLS; None for bytes as they are.
          on_limit: Called with the name of a limit that ends the connection before its session.
          entrance: What a connection has to get past first; None where there is nothing.
        """
        self.transport = transport
        self.info = info
        self._tls = tls
        self._on_limit = on_limit
        self._entrance = entrance
        # What was read beyond a PROXY header.
        self._received = b""
        self._draining = False
        self._opening: trio.CancelScope | None = None

    async def run(self, handler: StreamHandler) -> None:
        """Serve the session; the transport is closed when this returns."""
        try:
            if not self._draining and await self._open():
                await handler(self.transport, self.info, self._received)
        finally:
            self.transport.close_now()

    def drain(self) -> None:
        """Close now if no session is under way; one that is goes on until its parties end it."""
        self._draining = True
        if self._opening is not None:
            self._opening.cancel()

    async def _open(self) -> bool:
        """Let it in and open TLS; False where that failed, or is to be no more."""
        if self._tls is None and self._entrance is None:
            return True
        with trio.CancelScope() as self._opening:
            try:
                return await self._admit()
            finally:
                self._opening = None
        return False

    async def _admit(self) -> bool:
        if self._entrance is not None:
            admitted = await self._entrance.admit(self.transport, self.info, self._on_limit)
            if admitted is None:
                return False
            self.info, self._received = admitted
        if self._tls is not None:
            received, self._received = self._received, b""
            try:
                self.transport, self.info = await self._tls.accept(
                    self.transport, self.info, received
                )
            except ProxyError as exc:
                self._on_limit(f"tls_{exc.etype}")
                return False
        return True
