"""Streams below HTTP on what listeners accept."""

from __future__ import annotations

import logging
from typing import Any

import trio

from .._config import Listener, ServerConf, reads_headers
from ..stream._bound import StreamFilters
from ..stream._connection import StreamConnection
from ..stream._engine import StreamEngine, StreamServices
from ..stream._filters import ProxyStream
from ..streams._entrance import Entrance
from ..transport._tls_server import TlsAcceptor
from ..upstream._connector import Opener
from ..upstream._pool import PoolStatistics
from ._access_log import AccessLog
from ._service import Open, Service


class StreamService(Service):
    """How the connections of a `ProxyStream` are served."""

    schemes = ("tcp", "tls")

    def __init__(self, proxy: ProxyStream[Any], conf: ServerConf, opener: Opener) -> None:
        """Make what all connections share.

        Args:
          proxy: The proxy object.
          conf: Timeouts and limits.
          opener: Makes upstream connections.
        """
        super().__init__()
        access_log = AccessLog(conf.access_log) if conf.access_log != "off" else None
        self.conf = conf
        self.counts = self.services = StreamServices(
            conf=conf,
            opener=opener,
            filters=StreamFilters.bind(proxy),
            log=logging.getLogger("trioproxy"),
            on_record=access_log.write_stream if access_log is not None else None,
        )
        self.handler = StreamEngine(self.services).handle

    @classmethod
    def open(
        cls, proxy: ProxyStream[Any], conf: ServerConf, connector: Any, nursery: trio.Nursery
    ) -> StreamService:
        """Return a service; a stream's upstream connection ends with it, so that none is pooled.

        Raises:
          TypeError: the connector makes connections for HTTP alone.
        """
        if not isinstance(connector, Opener):
            raise TypeError(f"{connector!r} cannot open a stream: it has no method open()")
        return cls(proxy, conf, connector)

    @classmethod
    def acceptor(cls, listener: Listener | None, conf: ServerConf) -> TlsAcceptor | None:
        """Return what opens TLS on a listener; see `Service.acceptor`."""
        settings = conf.tls
        if listener is not None:
            for name in ("http", "h2c", "custom"):
                if (value := getattr(listener, name)) not in (None, ()):
                    raise ValueError(
                        f"{name}={value!r} is for a ProxyHttp, and {listener.address} serves a "
                        "ProxyStream: leave it out"
                    )
            settings = settings if listener.tls is None else listener.tls
        return None if settings is None else TlsAcceptor(settings, None)

    def front(self, tls: TlsAcceptor | None, listener: Listener | None) -> Open:
        """Return what makes connections of what a listener accepts."""
        entrance = Entrance.of(self.conf, reads_headers(self.conf, listener))
        return lambda transport, info: StreamConnection(
            transport, info, tls, self.on_limit, entrance
        )

    @property
    def draining(self) -> bool:
        """Whether the server stops."""
        return self.services.draining

    def start(self, nursery: trio.Nursery) -> None:
        """Do nothing: no stream leaves anything behind."""

    def drain(self) -> None:
        """Let streams know; they end when their parties end them, or at grace."""
        self.services.draining = True

    async def part(self) -> None:
        """Do nothing: bytes have no last word."""

    def shed(self) -> None:
        """Do nothing: there is no idle connection."""

    def pool_statistics(self) -> PoolStatistics:
        """Return how many upstream connections there are, and were made."""
        open_now = self.services.upstreams
        return PoolStatistics(
            idle=0,
            leased=open_now,
            waiting=0,
            connects=self.services.connects,
            reuses=0,
            closed_idle=0,
            unexpected_bytes=0,
            wait_timeouts=0,
            connections=open_now,
        )
