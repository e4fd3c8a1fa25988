"""A proxy object on its listeners: who owns which task, and how all of it stops.

::

    serve's nursery
    |- pool nursery          one reader per upstream connection
    `- connection nursery    one accept loop per listening socket
       `- connection         TLS first; then HTTP/1: its reader, and its exchanges one after
                             another; or HTTP/2: its reader, its writer, a task per exchange; or a
                             stream below HTTP: a task per direction

Stopping walks the tree from the outside in: stop accepting, close what is idle, say
``Connection: close`` on the rest, wait within grace, cancel.
"""

from __future__ import annotations

import logging

import attrs
import trio

from .._config import Listener, ServerConf, check_trust, reads_headers
from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from ..cache._storage import StorageStatistics
from ..transport._byte_stream import ByteStream
from ..transport._listen import Acceptor, open_listeners
from ..transport._tls_server import TlsAcceptor
from ..upstream._connector import Connector, Opener, SocketConnector
from ..upstream._pool import PoolStatistics
from ._descriptors import default_max_connections
from ._kinds import Proxy, kind_of
from ._service import Open, Served, Service

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
      sessions: Requests in flight; below HTTP streams.
      sessions_total: Requests that reached the proxy object since the start.
      refused: Requests answered before any callback, for bad syntax or a limit.
      refusals: The same by status, as pairs of status and number.
      errors: Sessions that ended with an error, by its source and kind, such as
        ``("Upstream ReadTimedout", 3)``; every timeout and limit within a session is among them.
      limits_hit: What ended client connections beside their requests, by the setting or the limit:
        ``idle_timeout``, ``drain_bytes`` or ``drain_timeout``; ``tls_`` and an error's kind for TLS
        handshakes; ``proxy_protocol`` for a trusted proxy that sent no PROXY header or a wrong
        one; ``connection_filter`` for what that dropped; for HTTP/2 the limits that the
        documentation's page on it lists.
      sessions_shed: Requests answered 503 as ``max_sessions`` were in flight.
      connection_limit_hits: Times that accepting paused as ``max_connections`` were open.
      retries: Attempts after the first of a request.
      hedges: Attempts that joined one which was not answered in time (`Session.hedge`).
      hedges_won: Those of them that were answered first.
      subrequests: Requests in flight that the proxy makes of itself; they are among ``sessions``.
      subrequests_total: The same since the start.
      subrequests_refused: Subrequests that were not made, as they were too deep or too many.
      mirrors_dropped: Requests whose mirror was given up, as it fell behind or too many ran.
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
    hedges: int
    hedges_won: int
    subrequests: int
    subrequests_total: int
    subrequests_refused: int
    mirrors_dropped: int
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
    def __init__(self, service: Service, conf: ServerConf) -> None:
        self.service = service
        self.conf = conf
        #: What is spoken on each listener.
        self.listening: list[tuple[Acceptor, Open]] = []
        self.tls: list[TlsAcceptor] = []
        self.accepting = trio.CancelScope()
        self.serving = trio.CancelScope()
        self.connections: set[Served] = set()
        self.connections_total = 0
        limit = conf.max_connections
        self.most = default_max_connections() if limit is None else limit
        self.connection_limit_hits = 0
        self.accept_errors = 0
        #: Where accept loops and `drain` wait for a connection to end.
        self.ended = trio.lowlevel.ParkingLot()

    def statistics(self) -> Statistics:
        service, counts = self.service, self.service.counts
        cache, collapsed, storage = service.cache_statistics()
        return Statistics(
            connections=len(self.connections),
            connections_total=self.connections_total,
            sessions=counts.sessions,
            sessions_total=counts.sessions_total,
            refused=service.refused.total(),
            refusals=tuple(sorted(service.refused.items())),
            errors=tuple(sorted(counts.errors.items())),
            limits_hit=tuple(sorted(service.limits_hit.items())),
            sessions_shed=counts.sessions_shed,
            connection_limit_hits=self.connection_limit_hits,
            retries=counts.retries,
            hedges=counts.hedges,
            hedges_won=counts.hedges_won,
            subrequests=counts.subrequests,
            subrequests_total=counts.subrequests_total,
            subrequests_refused=counts.subrequests_refused,
            mirrors_dropped=counts.mirrors_dropped,
            accept_errors=self.accept_errors,
            cache=tuple(sorted(cache.items())),
            collapsed=collapsed,
            cache_storage=storage,
            pool=service.pool_statistics(),
        )

    # -- accepting -------------------------------------------------------------------------------

    async def accept(self, listening: Acceptor, front: Open, nursery: trio.Nursery) -> None:
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
                self.service.shed()
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

    def admit(self, transport: ByteStream, info: ConnectionInfo, front: Open) -> Served:
        """Count a new connection at once, so that no accept loop goes beyond the limit."""
        connection = front(transport, info)
        self.connections.add(connection)
        self.connections_total += 1
        if self.service.draining:
            connection.drain()
        return connection

    async def connection(self, connection: Served) -> None:
        """Serve one connection; whatever goes wrong on it stays with it (row S-10)."""
        try:
            await connection.run(self.service.handler)
        except Exception:
            log.exception("a connection from %s ended by an internal error", connection.info.peer)
        finally:
            connection.transport.close_now()
            self.connections.discard(connection)
            self.ended.unpark_all()

    # -- stopping --------------------------------------------------------------------------------

    async def drain(self, timeout: float | None) -> None:
        self.service.drain()
        self.stop_listening()
        for connection in list(self.connections):
            connection.drain()
        grace = self.conf.grace if timeout is None else timeout
        with trio.move_on_after(grace) as scope:
            await self.all_ended()
        if scope.cancelled_caught:
            log.warning("%d connections were still busy after grace", len(self.connections))
            with trio.move_on_after(self.conf.drain_timeout):
                await self.service.part()
        self.serving.cancel()
        await self.all_ended()

    async def all_ended(self) -> None:
        while self.connections:
            await self.ended.park()

    def stop_listening(self) -> None:
        self.accepting.cancel()
        for listening, _ in self.listening:
            listening.close()


async def serve(
    proxy: Proxy,
    *binds: str | Listener | Acceptor,
    conf: ServerConf | None = None,
    connector: Connector | Opener | None = None,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a proxy until it is cancelled (a hard stop) or drained.

    Args:
      proxy: The proxy object: a `ProxyHttp`, a `Chain` or a `Route`, or a
        `trioproxy.stream.ProxyStream`.
      *binds: Where to listen: ``"127.0.0.1:8080"``, ``"[::1]:0"``, ``"unix:PATH"`` or `Listener`;
        ``127.0.0.1:8080`` where none is given. An object that accepts by itself, such as a
        network in memory, is taken as it is.
      conf: Timeouts and limits.
      connector: Makes upstream connections in place of sockets.
      task_status: Gets a `Running` when all listeners accept connections.

    Raises:
      ProxyError: BindError, with the address and the reason; nothing runs then.
      TypeError: ``proxy`` is no such object.
      ValueError: a bind cannot be understood, TLS settings cannot be used, or a bind is to read
        PROXY headers and ``trusted_proxies`` is empty.
    """
    kind = kind_of(proxy)
    if kind is None:
        raise TypeError(
            f"serve() takes a ProxyHttp or a ProxyStream object, not {type(proxy).__name__}"
        )
    conf = ServerConf() if conf is None else conf
    plans = [_Plan.of(bind, conf, kind) for bind in (binds or ("127.0.0.1:8080",))]
    try:
        for plan in plans:
            await plan.open(kind)
        async with trio.open_nursery() as pool_nursery:
            made = SocketConnector(conf) if connector is None else connector
            service = kind.open(proxy, conf, made, pool_nursery)
            server = _Server(service, conf)
            for plan in plans:
                front = service.front(plan.tls, plan.listener)
                server.listening += [(each, front) for each in plan.opened]
            server.tls += [plan.tls for plan in plans if plan.tls is not None]
            with server.serving:
                async with trio.open_nursery() as nursery:
                    service.start(nursery)
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
    opened: list[Acceptor] = attrs.field(factory=list)

    @property
    def listener(self) -> Listener | None:
        """What the bind says of itself, None for an object that accepts."""
        return self.bind if isinstance(self.bind, Listener) else None

    @classmethod
    def of(cls, bind: str | Listener | Acceptor, conf: ServerConf, kind: type[Service]) -> _Plan:
        """Fill in from the settings what the bind does not say.

        Raises:
          ValueError: the bind, or its TLS settings, cannot be used.
        """
        if isinstance(bind, str):
            bind = Listener.parse(bind)
        listener = bind if isinstance(bind, Listener) else None
        check_trust(reads_headers(conf, listener), conf.trusted_proxies)
        return cls(bind, kind.acceptor(listener, conf))

    async def open(self, kind: type[Service]) -> None:
        """Open the listeners.

        Raises:
          ProxyError: BindError.
        """
        if isinstance(self.bind, Acceptor):
            self.opened = [self.bind]
            return
        scheme = kind.schemes[self.tls is not None]
        try:
            self.opened += await open_listeners(self.bind, scheme=scheme)
        except OSError as exc:
            raise ProxyError.because(
                ErrorType.BindError,
                f"cannot bind {self.bind.address}: {exc.strerror or exc}",
                exc,
            ).into_in() from exc
