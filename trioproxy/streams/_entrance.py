"""What an accepted connection has to get past before TLS: the filter, then the PROXY header.

A header counts where it comes from an address that is trusted, and there it must come: a proxy that
sends none is set up wrong, and to take its connection for the client's own would be worse than to
refuse it. From anywhere else a connection is taken as it is, and a header in it is not looked for:
whatever reads it next will not understand it.
"""

from __future__ import annotations

import logging

import attrs
import trio

from .._config import ServerConf
from .._connection_filter import ConnectionFilter
from .._errors import ProxyError
from .._info import ConnectionInfo
from .._networks import Networks
from .._proxy_header import ProxyHeader
from ..codec._proxy_protocol import ProxyHeaderError, ProxyHeaderReader
from ..transport._byte_stream import ByteStream
from ._server import OnLimit

_log = logging.getLogger("trioproxy")


@attrs.frozen(eq=False)
class Entrance:
    """The way into a listener.

    Attributes:
      filter: Whom to let in; None for everybody.
      trusted: Whose connections begin with a PROXY header.
      timeout: Seconds for the filter, and for the header.
    """

    filter: ConnectionFilter | None
    trusted: Networks
    timeout: float

    @classmethod
    def of(cls, conf: ServerConf, reads_headers: bool) -> Entrance | None:
        """Return the entrance of a listener, None where there is nothing to get past.

        Args:
          conf: The settings.
          reads_headers: Whether those who are trusted begin with a PROXY header there.
        """
        if not reads_headers and conf.connection_filter is None:
            return None
        trusted = conf.trusted_proxies if reads_headers else Networks()
        return cls(conf.connection_filter, trusted, conf.header_timeout)

    async def admit(
        self, transport: ByteStream, info: ConnectionInfo, on_limit: OnLimit
    ) -> tuple[ConnectionInfo, bytes] | None:
        """Let a connection in: return what is known of it, and what was read beyond the header.

        Returns None where it is to be closed; ``on_limit`` was told why, unless it has ended by
        itself before a byte came.
        """
        if self.filter is not None and not await self._accepts(self.filter, info):
            on_limit("connection_filter")
            return None
        if info.peer not in self.trusted:
            return info, b""
        reader = ProxyHeaderReader()
        header: ProxyHeader | None = None
        why = f"no PROXY header came within {self.timeout:g} s"
        with trio.move_on_after(self.timeout):
            try:
                header = await _read_header(transport, reader)
                why = "it ended within a PROXY header" if reader.started else ""
            except ProxyHeaderError as exc:
                why = f"it began with {exc}"
            except ProxyError as exc:
                why = f"it broke before a PROXY header came: {exc}" if reader.started else ""
        if header is not None:
            return info.believing(header), reader.rest
        if why:  # else somebody looked whether we are there
            on_limit("proxy_protocol")
            _log.info("closed a connection from %s: %s", info.peer, why)
        return None

    async def _accepts(self, chosen: ConnectionFilter, info: ConnectionInfo) -> bool:
        try:
            with trio.move_on_after(self.timeout):
                return bool(await chosen.should_accept(info))
        except Exception:  # it is the user's
            _log.exception("dropped a connection from %s: its filter failed", info.peer)
            return False
        _log.warning(
            "dropped a connection from %s: its filter took longer than %g s",
            info.peer,
            self.timeout,
        )
        return False


async def _read_header(transport: ByteStream, reader: ProxyHeaderReader) -> ProxyHeader | None:
    """Read until the header is whole; None at the end of input."""
    while data := await transport.receive_some():
        header = reader.feed(data)
        if header is not None:
            return header
    return None
