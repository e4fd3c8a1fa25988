"""From accepted bytes to a session: TLS, where the listener has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .._errors import ProxyError
from .._info import ConnectionInfo
from ..transport._byte_stream import ByteStream
from ..transport._tls_server import TlsAcceptor

StreamHandler = Callable[[ByteStream, ConnectionInfo], Awaitable[None]]


class StreamConnection:
    """One accepted connection that becomes a stream."""

    def __init__(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        tls: TlsAcceptor | None,
        on_limit: Callable[[str], None],
    ) -> None:
        """Take over an accepted transport.

        Args:
          transport: The bytes.
          info: Who is there.
          tls: Opens TLS; None for bytes as they are.
          on_limit: Called with the name of a limit that ends the connection before its session.
        """
        self.transport = transport
        self.info = info
        self._tls = tls
        self._on_limit = on_limit
        self._draining = False
        self._opening: trio.CancelScope | None = None

    async def run(self, handler: StreamHandler) -> None:
        """Serve the session; the transport is closed when this returns."""
        try:
            if not self._draining and await self._open():
                await handler(self.transport, self.info)
        finally:
            self.transport.close_now()

    def drain(self) -> None:
        """Close now if no session is under way; one that is goes on until its parties end it."""
        self._draining = True
        if self._opening is not None:
            self._opening.cancel()

    async def _open(self) -> bool:
        """Open TLS; False where that failed, or is to be no more."""
        if self._tls is None:
            return True
        with trio.CancelScope() as self._opening:
            try:
                self.transport, self.info = await self._tls.accept(self.transport, self.info)
            except ProxyError as exc:
                self._on_limit(f"tls_{exc.etype}")
                return False
            finally:
                self._opening = None
            return True
        return False
