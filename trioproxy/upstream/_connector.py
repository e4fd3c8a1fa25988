"""From a peer to a connection that can carry exchanges."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

import attrs
import trio

from .._config import ServerConf
from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo, Digest
from .._options import Tracer
from .._peer import HttpPeer
from ..codec._h1 import HeadLimits, ResponseReader
from ..codec._h1_codec import H1Codec, http1_codec
from ..streams._h1_client import H1ClientConnection
from ..transport._byte_stream import ByteStream
from ..transport._connect import connect
from ..transport._watched import WatchedStream
from ._negotiate import open_tunnel

_log = logging.getLogger("trioproxy")

#: Host-name look-ups at once: an abandoned one keeps its thread until the resolver answers (R-09).
LOOKUPS = 8


class Connector(ABC):
    """Makes connections; a test puts an in-memory one in its place."""

    @abstractmethod
    async def connect(self, peer: HttpPeer) -> H1ClientConnection:
        """Return a new connection to the peer.

        Raises:
          ProxyError: it could not be made, with all causes in its context.
        """


@attrs.define(eq=False)
class SocketConnector(Connector):
    """Connects over TCP and unix sockets."""

    conf: ServerConf
    _limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(LOOKUPS))
    _limits: HeadLimits = attrs.field(init=False)
    _codec: H1Codec = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._codec = http1_codec(self.conf.http1_codec)
        self._limits = HeadLimits(
            max_bytes=self.conf.max_response_header_bytes,
            max_fields=self.conf.max_response_header_fields,
        )

    async def connect(self, peer: HttpPeer) -> H1ClientConnection:
        """Connect within the peer's timeouts, or the server's where the peer has none."""
        total = peer.options.total_connection_timeout
        if total is None:
            transport, info = await self._connect(peer)
        else:
            made: tuple[ByteStream, ConnectionInfo] | None = None
            with trio.move_on_after(total):
                made = await self._connect(peer)
            if made is None:
                raise ProxyError.explain(
                    ErrorType.ConnectTimedout, f"connecting to {peer}: no answer in {total:g} s"
                ).into_up()
            transport, info = made
        tracer = peer.options.tracer
        if tracer is not None:
            transport = _traced(transport, tracer, Digest.of(info))
        limits = self._limits
        if peer.options.allow_h1_response_invalid_content_length:
            limits = attrs.evolve(limits, allow_invalid_length=True)
        return H1ClientConnection(transport, info, ResponseReader(limits, self._codec))

    async def _connect(self, peer: HttpPeer) -> tuple[ByteStream, ConnectionInfo]:
        """Connect to the peer, or to its proxy and through that to the peer."""
        options = peer.options
        timeout = options.connection_timeout
        if timeout is None:
            timeout = self.conf.connect_timeout
        proxy = peer.proxy
        next_hop = peer if proxy is None else proxy
        transport, info = await connect(
            next_hop.host,
            next_hop.port,
            path=next_hop.path,
            connect_timeout=timeout,
            dns_timeout=self.conf.dns_timeout,
            limiter=self._limiter,
            options=None if options.reuse_key is None else options,
        )
        if proxy is None:
            return transport, info
        started = trio.current_time()
        try:
            reply = await open_tunnel(transport, peer, self._limits, self._codec, timeout)
        except BaseException:
            transport.close_now()
            raise
        now = trio.current_time()
        info = attrs.evolve(info, established=now, proxy_time=now - started, proxy_reply=reply)
        return transport, info


def _traced(transport: ByteStream, tracer: Tracer, digest: Digest) -> ByteStream:
    """Tell a tracer of a connection, and have it told of its end."""

    def tell(what: Callable[[Digest], None]) -> None:
        try:
            what(digest)
        except Exception:  # it may not fail: told, and no matter of the connection
            _log.exception("a tracer of %s failed", digest.peer_addr)

    tell(tracer.on_connected)
    return WatchedStream(transport, lambda: tell(tracer.on_disconnected))
