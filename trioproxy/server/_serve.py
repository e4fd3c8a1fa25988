"""A proxy object on its listeners: who owns which task, and how all of it stops.

::

    serve's nursery
    |- pool nursery          one reader per upstream connection
    `- connection nursery    one accept loop per listening socket
       `- connection         TLS first; then HTTP/1: its reader, and its exchanges one after
                             another; or HTTP/2: its reader, its writer, a task per exchange

Stopping walks the tree from the outside in: stop accepting, close what is idle, say
``Connection: close`` on the rest, wait within grace, cancel.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import trio

from .._clock import wall_time
from .._config import Listener, ServerConf, check_versions
from .._custom import Protocol
from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from ..cache._storage import Storage, StorageStatistics
from ..codec._h1 import HeadLimits, RequestReader
from ..codec._h1_codec import http1_codec
from ..codec._h2 import H2Codec, H2Options
from ..proxy._cached import CachingProxy
from ..proxy._compose import Composite, Proxy, bind, parts
from ..proxy._engine import Engine, Services
from ..proxy._filters import ProxyHttp
from ..proxy._record import ExchangeRecord
from ..streams._custom_server import CustomServerConnection, CustomServerOptions
from ..streams._h1_server import H1ServerConnection, H1ServerOptions
from ..streams._h2_server import H2ServerConnection, H2ServerOptions
from ..streams._serve import Front, ServerConnection
from ..transport._byte_stream import ByteStream
from ..transport._listen import Acceptor, open_listeners
from ..transport._tls_server import TlsAcceptor
from ..upstream._connector import Connector, SocketConnector
from ..upstream._pool import Pool, PoolStatistics
from ._access_log import AccessLog
from ._descriptors import default_max_connections

log = logging.getLogger("trioproxy")

#: Connections accepted at once behind the first, where more wait.
ACCEPT_BURST = 31
#: Seconds between two tries to accept when descriptors or memory have run out (row R-06).
ACCEPT_BACKOFF = 0.1
#: The longest pause after a failure that has nothing to do with that (row S-08).
ACCEPT_BACKOFF_MOST = 5.0
#: Seconds between two log lines about that.
ACCEPT_LOG_INTERVAL = 60.0


@attrs.frozen
class Statistics:
    """The counters of a running server at one moment.

    Attributes:
      connections: Client connections that are open.
      connections_total: Client connections accepted since the start.
      sessions: Requests in flight.
      sessions_total: Requests that reached the proxy object since the start.
      refused: Requests answered before any callback, for bad syntax or a limit.
      refusals: The same by status, as pairs of status and number.
      errors: Sessions that ended with an error, by its source and kind, such as
        ``("Upstream ReadTimedout", 3)``; every timeout and limit within a session is among them.
      limits_hit: What ended client connections beside their requests, by the setting or the limit:
        ``idle_timeout``, ``drain_bytes`` or ``drain_timeout``; ``tls_`` and an error's kind for TLS
        handshakes; for HTTP/2 the limits that the documentation's page on it lists.
      sessions_shed: Requests answered 503 as ``max_sessions`` were in flight.
      connection_limit_hits: Times that accepting paused as ``max_connections`` were open.
      retries: Attempts after the first of a request.
      accept_errors: Times that accepting failed for want of descriptors or memory.
      cache: Requests with the cache on, by the phase that they ended in, such as ``("hit", 10)``.
      collapsed: Requests that waited for another one that filled the cache.
      cache_storage: What the storage of a `CachingProxy` holds and has done; None for another proxy,
        and of several storages the first.
      pool: The upstream connections.
    """

    connections: int
    connections_total: int
    sessions: int
    sessions_total: int
    refused: int
    refusals: tuple[tuple[int, int], ...]
    errors: tuple[tuple[str, int], ...]
    limits_hit: tuple[tuple[str, int], ...]
    sessions_shed: int
    connection_limit_hits: int
    retries: int
    accept_errors: int
    cache: tuple[tuple[str, int], ...]
    collapsed: int
    cache_storage: StorageStatistics | None
    pool: PoolStatistics


class Running:
    """A server that runs: its addresses, its counters and its graceful stop."""

    def __init__(self, server: _Server, urls: tuple[str, ...]) -> None:
        self._server = server
        self.urls = urls

    def __repr__(self) -> str:
        return f"<Running on {', '.join(self.urls)}>"

    def statistics(self) -> Statistics:
        """Return every counter as one frozen value."""
        return self._server.statistics()

    def reload(self) -> bool:
        """Read the certificates of every listener again, for connections to come.

        Those that are open go on as they are. Returns whether all could be read; the log says what
        could not, and what was there before stays in force.
        """
        done = [tls.reload() for tls in self._server.tls]  # each of them, whatever the others say
        return all(done)

    async def drain(self, timeout: float | None = None) -> None:
        """Stop gracefully; return when the last session has ended.

        No connection is accepted any more, idle ones are closed at once, and what is in flight ends
        with ``Connection: close``. After the timeout the rest is cancelled.

        Args:
          timeout: Seconds; None takes ``conf.grace``.
        """
        await self._server.drain(timeout)


class _Server:
    def __init__(self, proxy: Proxy, conf: ServerConf, pool: Pool) -> None:
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
        self.engine = Engine(self.services)
        self.codec = http1_codec(conf.http1_codec)
        self.limits = HeadLimits(
            max_bytes=conf.max_header_bytes,
            max_fields=conf.max_header_fields,
            max_target_bytes=conf.max_target_bytes,
            refuse_underscores=conf.refuse_underscores,
            allow_trace=conf.allow_trace,
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
        #: What is spoken on each listener.
        self.listening: list[tuple[Acceptor, Front]] = []
        self.tls: list[TlsAcceptor] = []
        self.accepting = trio.CancelScope()
        self.serving = trio.CancelScope()
        self.connections: set[ServerConnection] = set()
        self.connections_total = 0
        self.refused: Counter[int] = Counter()
        self.limits_hit: Counter[str] = Counter()
        limit = conf.max_connections
        self.most = default_max_connections() if limit is None else limit
        self.connection_limit_hits = 0
        self.accept_errors = 0
        #: Where accept loops and `drain` wait for a connection to end.
        self.ended = trio.lowlevel.ParkingLot()

    def statistics(self) -> Statistics:
        services = self.services
        return Statistics(
            connections=len(self.connections),
            connections_total=self.connections_total,
            sessions=services.sessions,
            sessions_total=services.sessions_total,
            refused=self.refused.total(),
            refusals=tuple(sorted(self.refused.items())),
            errors=tuple(sorted(services.errors.items())),
            limits_hit=tuple(sorted(self.limits_hit.items())),
            sessions_shed=services.sessions_shed,
            connection_limit_hits=self.connection_limit_hits,
            retries=services.retries,
            accept_errors=self.accept_errors,
            cache=tuple(sorted(services.cache_phases.items())),
            collapsed=services.collapsed,
            cache_storage=self.cache_storage(),
            pool=self.pool.statistics(),
        )

    def cache_storage(self) -> StorageStatistics | None:
        """Return the counters of the (first) storage that the proxy caches in."""
        for storage in storages(self.proxy):
            return storage.statistics()
        return None

    # -- accepting -------------------------------------------------------------------------------

    async def accept(self, listening: Acceptor, front: Front, nursery: trio.Nursery) -> None:
        """Accept for ever; want of descriptors backs off, nothing else gets in the way (R-06)."""
        logged = -ACCEPT_LOG_INTERVAL
        most = self.most
        failures = 0
        while True:
            while len(self.connections) >= most:
                self.connection_limit_hits += 1
                await self.ended.park()
            try:
                transport, info = await listening.accept()
            except trio.ClosedResourceError:
                return
            except OSError as exc:
                self.accept_errors += 1
                self.pool.close_idle()
                if trio.current_time() - logged >= ACCEPT_LOG_INTERVAL:
                    logged = trio.current_time()
                    log.error("cannot accept on %s: %s", listening.url, exc)
                await trio.sleep(ACCEPT_BACKOFF)
                continue
            except Exception:  # a bug costs a pause, never the listener (S-08)
                log.exception("accepting on %s failed; it is tried again", listening.url)
                await trio.sleep(min(ACCEPT_BACKOFF * 2**failures, ACCEPT_BACKOFF_MOST))
                failures = min(failures + 1, 10)
                continue
            failures = 0
            nursery.start_soon(self.connection, self.admit(transport, info, front))
            for _ in range(ACCEPT_BURST):
                # A round of the scheduler serves every busy connection once: with one new
                # connection a round, the last of a hundred would wait for a hundred rounds.
                more = listening.accept_ready() if len(self.connections) < most else None
                if more is None:
                    break
                nursery.start_soon(self.connection, self.admit(*more, front))
            # The new connections get their turn before the next ones are accepted.
            await trio.lowlevel.checkpoint()

    def front(
        self, tls: TlsAcceptor | None, http: str, h2c: bool, custom: Sequence[Protocol] = ()
    ) -> Front:
        """Return what a listener speaks."""
        if tls is not None:
            self.tls.append(tls)
        openers = {each.alpn: partial(self.open_custom, each) for each in custom}
        return Front(
            self.open_h1,
            self.open_h2,
            tls,
            http1=http in ("auto", "1"),
            http2=http == "2" or h2c or (tls is not None and http == "auto"),
            first_timeout=self.conf.header_timeout,
            custom=openers,
            only=openers[custom[0].alpn] if http == "off" else None,
        )

    def open_custom(
        self, protocol: Protocol, transport: ByteStream, info: ConnectionInfo
    ) -> CustomServerConnection:
        """Speak a protocol of the user's on an accepted transport."""
        return CustomServerConnection(
            transport, info, protocol.server(), self.custom_options, self.on_refused, self.on_limit
        )

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

    def admit(self, transport: ByteStream, info: ConnectionInfo, front: Front) -> ServerConnection:
        """Count a new connection at once, so that no accept loop goes beyond the limit."""
        connection = ServerConnection(transport, info, front, self.on_limit)
        self.connections.add(connection)
        self.connections_total += 1
        if self.services.draining:
            connection.drain()
        return connection

    async def connection(self, connection: ServerConnection) -> None:
        """Serve one connection; whatever goes wrong on it stays with it (row S-10)."""
        try:
            await connection.run(self.engine.handle)
        except Exception:
            log.exception("a connection from %s ended by an internal error", connection.info.peer)
        finally:
            connection.transport.close_now()
            self.connections.discard(connection)
            self.ended.unpark_all()

    def on_limit(self, name: str) -> None:
        self.limits_hit[name] += 1

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

    # -- stopping --------------------------------------------------------------------------------

    async def drain(self, timeout: float | None) -> None:
        self.services.draining = True
        self.stop_listening()
        self.pool.drain()
        for connection in list(self.connections):
            connection.drain()
        grace = self.conf.grace if timeout is None else timeout
        with trio.move_on_after(grace) as scope:
            await self.all_ended()
        if scope.cancelled_caught:
            log.warning("%d connections were still busy after grace", len(self.connections))
        self.serving.cancel()
        await self.all_ended()

    async def all_ended(self) -> None:
        while self.connections:
            await self.ended.park()

    def stop_listening(self) -> None:
        self.accepting.cancel()
        for listening, _ in self.listening:
            listening.close()


def storages(proxy: Proxy) -> list[Storage]:
    """Return the storages that a proxy caches in."""
    shared = [each.shared_cache for each in parts(proxy) if isinstance(each, CachingProxy)]
    return list(dict.fromkeys(each.storage for each in shared if each is not None))


async def serve(
    proxy: Proxy,
    *binds: str | Listener | Acceptor,
    conf: ServerConf | None = None,
    connector: Connector | None = None,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a proxy until it is cancelled (a hard stop) or drained.

    Args:
      proxy: The proxy object: a `ProxyHttp`, a `Chain` or a `Route`.
      *binds: Where to listen: ``"127.0.0.1:8080"``, ``"[::1]:0"``, ``"unix:PATH"`` or `Listener`;
        ``127.0.0.1:8080`` where none is given. An object that accepts by itself, such as a
        network in memory, is taken as it is.
      conf: Timeouts and limits.
      connector: Makes upstream connections in place of sockets.
      task_status: Gets a `Running` when all listeners accept connections.

    Raises:
      ProxyError: BindError, with the address and the reason; nothing runs then.
      TypeError: ``proxy`` is not a `ProxyHttp` object.
      ValueError: a bind cannot be understood, or TLS settings cannot be used.
    """
    if not isinstance(proxy, (ProxyHttp, Composite)):
        raise TypeError(f"serve() takes a ProxyHttp object, not {type(proxy).__name__}")
    conf = ServerConf() if conf is None else conf
    plans = [_Plan.of(bind, conf) for bind in (binds or ("127.0.0.1:8080",))]
    try:
        for plan in plans:
            await plan.open()
        async with trio.open_nursery() as pool_nursery:
            pool = Pool(
                connector if connector is not None else SocketConnector(conf),
                pool_nursery,
                size=conf.pool_size,
                size_per_peer=conf.pool_size_per_peer,
                connections_per_peer=conf.max_connections_per_peer,
                wait_timeout=conf.pool_wait_timeout,
                idle_timeout=conf.upstream_idle_timeout,
            )
            server = _Server(proxy, conf, pool)
            for plan in plans:
                front = server.front(plan.tls, plan.http, plan.h2c, plan.custom)
                server.listening += [(each, front) for each in plan.opened]
            with server.serving:
                async with trio.open_nursery() as nursery:
                    server.services.nursery = nursery
                    urls = tuple(each.url for each, _ in server.listening)
                    task_status.started(Running(server, urls))
                    with server.accepting:
                        async with trio.open_nursery() as accept_nursery:
                            for each, front in server.listening:
                                accept_nursery.start_soon(server.accept, each, front, nursery)
            pool_nursery.cancel_scope.cancel()
    finally:
        for plan in plans:
            for each in plan.opened:
                each.close()


@attrs.define(eq=False)
class _Plan:
    """What is to be served at one bind."""

    bind: Listener | Acceptor
    tls: TlsAcceptor | None
    http: str
    h2c: bool
    custom: tuple[Protocol, ...] = ()
    opened: list[Acceptor] = attrs.field(factory=list)

    @classmethod
    def of(cls, bind: str | Listener | Acceptor, conf: ServerConf) -> _Plan:
        """Fill in from the settings what the bind does not say.

        Raises:
          ValueError: the bind, or its TLS settings, cannot be used.
        """
        if isinstance(bind, str):
            bind = Listener.parse(bind)
        settings, http, h2c = conf.tls, conf.http, conf.h2c
        custom: tuple[Protocol, ...] = ()
        if isinstance(bind, Listener):
            settings = bind.tls if bind.tls is not None else settings
            http = bind.http if bind.http is not None else http
            custom = bind.custom
            h2c = bind.h2c if bind.h2c is not None else (h2c and http != "off")
            check_versions(http, h2c)
            if custom and settings is None and (http != "off" or len(custom) != 1):
                raise ValueError(
                    f"custom on {bind.address}: without TLS there is no ALPN to choose by; one "
                    "protocol and http='off' are right, or tls"
                )
        tls = None
        if settings is not None:
            offered = {"1": ["http/1.1"], "2": ["h2"], "off": []}
            names = offered.get(http, ["h2", "http/1.1"])
            tls = TlsAcceptor(settings, names, [each.alpn for each in custom])
            h2c = False
        return cls(bind, tls, http, h2c, custom)

    async def open(self) -> None:
        """Open the listeners.

        Raises:
          ProxyError: BindError.
        """
        if isinstance(self.bind, Acceptor):
            self.opened = [self.bind]
            return
        try:
            self.opened += await open_listeners(self.bind, secure=self.tls is not None)
        except OSError as exc:
            raise ProxyError.because(
                ErrorType.BindError,
                f"cannot bind {self.bind.address}: {exc.strerror or exc}",
                exc,
            ).into_in() from exc
