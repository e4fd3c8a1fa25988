"""HTTP on what listeners accept: its connections, its engine, its pool of upstream ones."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import attrs
import trio

from .._clock import wall_time
from .._config import Listener, ServerConf, check_versions, reads_headers
from .._custom import Protocol
from .._info import ConnectionInfo
from ..cache._storage import Storage, StorageStatistics
from ..codec._h1 import HeadLimits, RequestReader
from ..codec._h1_codec import http1_codec
from ..codec._h2 import H2Codec, H2Options
from ..proxy._cached import CachingProxy
from ..proxy._compose import Proxy, bind, parts
from ..proxy._engine import Engine
from ..proxy._record import ExchangeRecord
from ..proxy._services import Services
from ..streams._custom_server import CustomServerConnection, CustomServerOptions
from ..streams._entrance import Entrance
from ..streams._h1_server import H1ServerConnection, H1ServerOptions
from ..streams._h2_server import H2ServerConnection, H2ServerOptions
from ..streams._serve import Front, ServerConnection
from ..transport._byte_stream import ByteStream
from ..transport._tls_server import TlsAcceptor
from ..upstream._connector import Connector
from ..upstream._pool import Pool, PoolStatistics
from ._access_log import AccessLog
from ._service import Open, Service

log = logging.getLogger("trioproxy")


def _versions(listener: Listener | None, conf: ServerConf) -> tuple[str, bool]:
    """Return the versions of HTTP on a listener, and whether HTTP/2 in clear text is one."""
    http, h2c = conf.http, conf.h2c
    if listener is not None:
        http = listener.http if listener.http is not None else http
        h2c = listener.h2c if listener.h2c is not None else (h2c and http != "off")
        check_versions(http, h2c)
    return http, h2c


def _protocols(listener: Listener | None, http: str, *, secure: bool) -> tuple[Protocol, ...]:
    """Return the protocols of the user's on a listener.

    Raises:
      ValueError: nothing could choose between them.
    """
    custom = () if listener is None else listener.custom
    if listener is not None and custom and not secure and (http != "off" or len(custom) != 1):
        raise ValueError(
            f"custom on {listener.address}: without TLS there is no ALPN to choose by; one protocol "
            "and http='off' are right, or tls"
        )
    return custom


def storages(proxy: Proxy) -> list[Storage]:
    """Return the storages that a proxy caches in."""
    shared = [each.shared_cache for each in parts(proxy) if isinstance(each, CachingProxy)]
    return list(dict.fromkeys(each.storage for each in shared if each is not None))


class HttpService(Service):
    """How the connections of a `ProxyHttp`, or of several, are served."""

    schemes = ("http", "https")

    def __init__(self, proxy: Proxy, conf: ServerConf, pool: Pool) -> None:
        """Make what all connections share.

        Args:
          proxy: The proxy object.
          conf: Timeouts and limits.
          pool: The upstream connections.
        """
        super().__init__()
        self.proxy = proxy
        self.conf = conf
        self.pool = pool
        self.access_log = AccessLog(conf.access_log) if conf.access_log != "off" else None
        self.services = Services(
            conf=conf,
            pool=pool,
            filters=bind(proxy),
            log=log,
            on_record=self.access_log.write if self.access_log is not None else None,
        )
        self.counts = self.services
        self.handler = Engine(self.services).handle
        self.codec = http1_codec(conf.http1_codec)
        self.limits = HeadLimits(
            max_bytes=conf.max_header_bytes,
            max_fields=conf.max_header_fields,
            max_target_bytes=conf.max_target_bytes,
            refuse_underscores=conf.refuse_underscores,
            allow_trace=conf.allow_trace,
            allow_connect=conf.allow_connect,
        )
        shared: dict[str, Any] = {
            "idle_timeout": conf.idle_timeout,
            "body_timeout": conf.body_timeout,
            "min_receive_rate": conf.min_receive_rate,
            "write_timeout": conf.write_timeout,
            "drain_timeout": conf.drain_timeout,
            "server_name": conf.server_name.encode("ascii"),
        }
        self.options = H1ServerOptions(
            header_timeout=conf.header_timeout,
            drain_bytes=conf.drain_bytes,
            request_limit=conf.keepalive_request_limit,
            **shared,
        )
        self.custom_options = CustomServerOptions(
            header_timeout=conf.header_timeout,
            drain_bytes=conf.drain_bytes,
            request_limit=conf.keepalive_request_limit,
            max_body_bytes=conf.max_body_bytes,
            allow_trace=conf.allow_trace,
            **shared,
        )
        self.h2_options = H2ServerOptions(
            max_streams=conf.h2_max_streams,
            request_limit=min(
                conf.h2_request_limit, conf.keepalive_request_limit or conf.h2_request_limit
            ),
            max_body_bytes=conf.max_body_bytes,
            **shared,
        )
        self.codec_options = H2Options(
            stream_window=conf.h2_stream_window,
            connection_window=conf.h2_connection_window,
            max_streams=conf.h2_max_streams,
            head_limits=self.limits,
            limits=conf.h2_limits,
        )
        self.secure_codec_options = attrs.evolve(self.codec_options, scheme="https")

    @classmethod
    def open(
        cls,
        proxy: Proxy,
        conf: ServerConf,
        connector: Connector,
        nursery: trio.Nursery,
    ) -> HttpService:
        """Return a service with a pool of its own, whose connections live in a nursery."""
        pool = Pool(
            connector,
            nursery,
            size=conf.pool_size,
            size_per_peer=conf.pool_size_per_peer,
            connections_per_peer=conf.max_connections_per_peer,
            wait_timeout=conf.pool_wait_timeout,
            idle_timeout=conf.upstream_idle_timeout,
        )
        return cls(proxy, conf, pool)

    @property
    def draining(self) -> bool:
        """Whether the server stops."""
        return self.services.draining

    def start(self, nursery: trio.Nursery) -> None:
        """Take the nursery of what outlives its request."""
        self.services.nursery = nursery

    def drain(self) -> None:
        """Let connections end with what they carry now, and keep no idle one of the pool."""
        self.services.draining = True
        self.pool.drain()

    async def part(self) -> None:
        """Have the WebSockets closed whose messages are filtered."""
        await self.services.part()

    def shed(self) -> None:
        """Close the idle connections of the pool."""
        self.pool.close_idle()

    def pool_statistics(self) -> PoolStatistics:
        """Return the counters of the pool."""
        return self.pool.statistics()

    def cache_statistics(self) -> tuple[dict[str, int], int, StorageStatistics | None]:
        """Return what the cache was to requests, and the counters of its storage."""
        found = storages(self.proxy)
        storage = found[0].statistics() if found else None
        return self.services.cache_phases, self.services.collapsed, storage

    # -- connections -----------------------------------------------------------------------------

    @classmethod
    def acceptor(cls, listener: Listener | None, conf: ServerConf) -> TlsAcceptor | None:
        """Return what opens TLS on a listener; see `Service.acceptor`."""
        http, _ = _versions(listener, conf)
        settings = conf.tls if listener is None or listener.tls is None else listener.tls
        custom = _protocols(listener, http, secure=settings is not None)
        if settings is None:
            return None
        offered: dict[str, list[str]] = {"1": ["http/1.1"], "2": ["h2"], "off": []}
        names = offered.get(http, ["h2", "http/1.1"])
        return TlsAcceptor(settings, names, [each.alpn for each in custom])

    def front(self, tls: TlsAcceptor | None, listener: Listener | None) -> Open:
        """Return what makes connections of what a listener accepts."""
        http, h2c = _versions(listener, self.conf)
        custom = _protocols(listener, http, secure=tls is not None)
        openers = {each.alpn: partial(self.open_custom, each) for each in custom}
        front = Front(
            self.open_h1,
            self.open_h2,
            tls,
            http1=http in ("auto", "1"),
            http2=http == "2" or (h2c and tls is None) or (tls is not None and http == "auto"),
            first_timeout=self.conf.header_timeout,
            entrance=Entrance.of(self.conf, reads_headers(self.conf, listener)),
            custom=openers,
            only=openers[custom[0].alpn] if http == "off" else None,
        )
        return lambda transport, info: ServerConnection(transport, info, front, self.on_limit)

    def open_h1(
        self, transport: ByteStream, info: ConnectionInfo, received: bytes
    ) -> H1ServerConnection:
        """Speak HTTP/1 on an accepted transport."""
        reader = RequestReader(
            self.limits,
            scheme="https" if info.secure else "http",
            max_body_bytes=self.conf.max_body_bytes,
            codec=self.codec,
        )
        return H1ServerConnection(
            transport, info, reader, self.options, self.on_refused, self.on_limit, received
        )

    def open_h2(
        self, transport: ByteStream, info: ConnectionInfo, received: bytes
    ) -> H2ServerConnection:
        """Speak HTTP/2 on an accepted transport."""
        options = self.secure_codec_options if info.secure else self.codec_options
        codec = H2Codec(server=True, options=options, now=trio.current_time)
        return H2ServerConnection(
            transport, info, codec, self.h2_options, self.on_refused, self.on_limit, received
        )

    def open_custom(
        self, protocol: Protocol, transport: ByteStream, info: ConnectionInfo
    ) -> CustomServerConnection:
        """Speak a protocol of the user's on an accepted transport."""
        return CustomServerConnection(
            transport, info, protocol.server(), self.custom_options, self.on_refused, self.on_limit
        )

    def on_refused(self, info: ConnectionInfo, status: int, reason: str) -> None:
        self.refused[status] += 1
        log.info("refused a request from %s: %d %s", info.peer, status, reason)
        if self.access_log is not None:
            self.access_log.write(
                ExchangeRecord(
                    client=info.peer,
                    method="-",
                    target=b"-",
                    version="-",
                    status=status,
                    body_bytes_sent=0,
                    body_bytes_received=0,
                    duration=0.0,
                    upstream=None,
                    error=reason,
                    started_at=wall_time(),
                )
            )
