"""One exchange, from its first head to ``logging``: the phases, the attempts, the single catch.

Read `Engine.handle` from the top: the order of the calls is the order of the phases. It is the one
place where an exchange's `Exception` stops, is logged and becomes an error response; ``Cancelled``
and other `BaseException` pass. Nothing here knows which protocol either side speaks.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from .._clock import wall_time
from .._config import ServerConf, announced_version
from .._counts import SessionCounts
from .._errors import ErrorSource, ErrorType, ProxyError, RetryType
from .._info import Digest
from .._messages import RequestHeader
from .._peer import HttpPeer
from .._util import unwrap
from ..cache._http_cache import HttpCache, Spawn
from ..cache._phase import CachePhase
from ..cache._policy import NoCacheReason
from ..modules._abc import ModulesCtx
from ..semantics._conditional import fill_request
from ..semantics._forwarding import to_upstream
from ..streams._abc import DownstreamStream, UpstreamStream
from ..upstream._pool import Lease, Pool
from ._body import BodyEvent
from ._bound import Filters
from ._caching import ServeStored, TapStream, cache_stage, serve_stored, stored_validators
from ._chain import ModuleStream, release_modules, request_through_modules
from ._failure import as_proxy_error, canned_head, log_failure
from ._filters import FailToProxy, ProxyHttp
from ._hedge import Asked, Race
from ._max_forwards import METHODS, answer_as_last, count_down, forwards_left
from ._pump import Exchange, run_exchange
from ._record import ExchangeRecord
from ._relay import run_with_messages
from ._session import Session
from ._subrequest import SubrequestCtx, SubrequestSpawner
from ._tunnel import run_tunnel

# RFC 9110 section 9.2.2
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


@attrs.define(eq=False)
class Services(SessionCounts):
    """What the sessions of one server share."""

    conf: ServerConf
    pool: Pool
    filters: Filters
    log: logging.Logger
    #: Called with a record of every exchange, or None where nobody wants one.
    on_record: Callable[[ExchangeRecord], None] | None = None
    #: Owns what outlives the request that started it; None where nothing may.
    nursery: trio.Nursery | None = None
    #: Runs an exchange that the proxy makes of itself; the engine sets it.
    handle: Callable[[DownstreamStream, SubrequestCtx | None], Awaitable[None]] | None = None
    draining: bool = False
    #: Jobs in the background that make requests, now.
    background: int = 0
    #: Requests by the phase of the cache that they ended in, and those that waited for another one.
    cache_phases: Counter[str] = attrs.field(factory=Counter)
    collapsed: int = 0

    def count_cache(self, cache: HttpCache) -> None:
        """Count what the cache was to a request."""
        phase = cache.phase()
        if phase.reason != NoCacheReason.NeverEnabled:
            self.cache_phases[phase.text] += 1
        if cache.lock_duration() is not None:
            self.collapsed += 1

    def spawn(self) -> Spawn | None:
        """Return what starts a job that outlives its request, None where nothing may."""
        return None if self.nursery is None else self._spawn

    def _spawn(self, job: Callable[[], Awaitable[None]]) -> None:
        assert self.nursery is not None
        try:
            self.nursery.start_soon(job)
        except RuntimeError:  # it has ended: so does the server, and the job is for what it keeps
            self.log.warning("a job in the background was left out, as the server ends")

    def may_start_background(self) -> bool:
        """Tell whether a job may be started that makes a request nobody waits for (row S-09)."""
        return (
            self.nursery is not None
            and self.handle is not None
            and not self.draining
            and self.background < self.conf.max_background_requests
        )

    def start_background(self, job: Callable[[], Awaitable[None]]) -> bool:
        """Start a job in the server's nursery, bounded in time; False where that cannot be now.

        A job that was started runs at least up to its first checkpoint.
        """
        if not self.may_start_background():
            self.subrequests_refused += 1
            return False
        assert self.nursery is not None
        try:
            self.nursery.start_soon(self._bounded, job)
        except RuntimeError:  # it has ended: so does the server
            self.subrequests_refused += 1
            return False
        self.background += 1
        return True

    async def _bounded(self, job: Callable[[], Awaitable[None]]) -> None:
        seconds = self.conf.background_timeout
        try:
            with trio.move_on_after(seconds) as scope:
                await job()
            if scope.cancelled_caught:
                self.log.warning(
                    "a request in the background took longer than background_timeout (%g s)",
                    seconds,
                )
        except Exception as exc:  # nobody waits for it
            self.log.warning("a request in the background failed: %s", unwrap(exc))
        finally:
            self.background -= 1

    def summary(self, session: Session) -> str:
        """Return the built-in summary of a session's request."""
        return ProxyHttp.request_summary(_NOBODY, session, None)


class _Nobody(ProxyHttp[None]):
    """Lends the built-in `request_summary` where a user's own has failed."""

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise ProxyError.explain(ErrorType.InternalError, "this proxy has no peer")


_NOBODY = _Nobody()


def _let_go(session: Session) -> None:
    """Give back what a session holds of the cache, as others may wait for it."""
    if session._cache is not None:
        session._cache.close()


def _fill(request: RequestHeader, cache: HttpCache) -> bool:
    """Make a request one that fills the cache, where that is right; tell whether it was.

    The conditions of a method that may change something are for the origin alone (RFC 9110 section
    13.1.1: they keep updates from being lost).
    """
    if not cache.enabled():
        return False
    stored = stored_validators(cache)
    if stored is None and request.method not in ("GET", "HEAD"):
        return False
    fill_request(request, stored)
    return True


def _half_stored(cache: HttpCache) -> bool:
    """Tell whether an attempt has begun to store its response."""
    phase = cache.phase()
    return phase is CachePhase.Expired or (
        phase is CachePhase.Miss and cache.miss_handler() is not None
    )


async def _under(session: Session, name: str, callback: Awaitable[None]) -> None:
    """Await a callback of an attempt, beside which another one may be in another phase."""
    session._phase = name
    try:
        await callback
    except Exception as exc:
        error = as_proxy_error(exc, session, name)
        if error is exc:
            raise
        raise error from exc


class Engine:
    """Runs the exchanges of one proxy object."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._conf = services.conf
        self._announces = announced_version(services.conf)
        services.handle = self.handle

    @property
    def services(self) -> Services:
        """What the sessions share."""
        return self._services

    async def handle(
        self, stream: DownstreamStream, subrequest: SubrequestCtx | None = None
    ) -> None:
        """Run one exchange; never raises an `Exception` of its callbacks.

        Args:
          stream: The client's side.
          subrequest: What it is to another request, where that one makes it.

        The session runs in a nursery of its own, which the client's departure cancels.
        """
        batch = await stream.receive_batch()
        request = batch[0]
        assert isinstance(request, RequestHeader)
        services = self._services
        filters = services.filters
        if subrequest is not None and subrequest.filters is not None:
            filters = subrequest.filters
        elif filters.choose is not None:
            filters = filters.choose(request)
        session = Session(services, stream, request, batch[1:], filters)
        session.subrequest_ctx = subrequest
        services.sessions += 1
        services.sessions_total += 1
        if subrequest is not None:
            services.subrequests += 1
            services.subrequests_total += 1
        ctx: Any = None
        over = False
        try:
            # What a request that was let in asks for by itself is not what the limit keeps out.
            asked = services.sessions - services.subrequests
            if asked > self._conf.max_sessions and subrequest is None:
                await self._shed(session)
                over = True
                return
            serves = stream.info.serves if subrequest is None else None
            # A CONNECT names where it wants to go, not the name that this server is reached by.
            if (
                serves is not None
                and not session.is_connect_req()
                and not serves(request.authority)
            ):
                await self._misdirected(session)
                over = True
                return
            try:
                session._phase = "new_ctx"
                ctx = filters.new_ctx()
                if filters.modules_at_once:
                    session._phase = "making modules"
                    session._modules = ModulesCtx(filters.modules)
                if filters.upstream_modules_at_once:
                    session._phase = "making modules"
                    session._upstream_modules = ModulesCtx(filters.upstream_modules)
            except Exception as exc:  # no context, so no other callback can run
                session.error = as_proxy_error(exc, session)
                over = True
                await self._answer_plainly(session, 500)
                return
            try:
                async with trio.open_nursery() as nursery:
                    early = filters.early_request_filter
                    stream.watch(nursery.cancel_scope, half_close=early is None)
                    if self._conf.request_timeout != math.inf:
                        nursery.cancel_scope.deadline = (
                            session._started + self._conf.request_timeout
                        )
                    session.error = await self._run(session, ctx, nursery)
                    stream.unwatch()
                left = nursery.cancel_scope.cancelled_caught
            except Exception as exc:  # a callback's group that mixed errors with Cancelled
                session.error = as_proxy_error(exc, session)
                left = True
            late = nursery.cancel_scope.deadline <= trio.current_time()
            if left and late and session.error is None and stream.departure is None:
                await self._out_of_time(session, ctx)
            elif left:
                await self._client_left(session, ctx)
            over = True
            await self._log(session, ctx)
            if filters.persist_connection_context is not None and not left:
                self._persist(session, ctx)
        finally:
            services.sessions -= 1
            services.subrequests -= subrequest is not None
            if not over:
                _let_go(session)
                session.error = ProxyError.explain(
                    ErrorType.Custom("Cancelled"), "the session was cancelled"
                ).into_in()
                await self._log(session, ctx)
            if session.error is not None:
                services.count_error(session.error)
            if services.on_record is not None:
                services.on_record(self._record(session))
            _let_go(session)
            if session._cache is not None:
                services.count_cache(session._cache)
            if session.error is not None:
                stream.blame = session.error.esource
            if subrequest is not None:
                subrequest.error = session.error
            await stream.aclose()

    async def _out_of_time(self, session: Session, ctx: Any) -> None:
        """End what ``request_timeout`` has cancelled: 504 where nothing was sent, else a cut (T-08)."""
        _let_go(session)
        stream = session.downstream_session
        stream.keepalive = None
        seconds = self._conf.request_timeout
        error = ProxyError.because(
            ErrorType.HTTPStatus(504),
            f"the request took longer than request_timeout ({seconds:g} s)",
            ProxyError.explain(ErrorType.ReadTimedout, f"the whole request, in {session._phase}"),
        ).into_in()
        if session._held is not None:
            peer, reused = session._held
            session._held = None
            error = self._call_error_while_proxy(session, ctx, peer, error, reused)
        session.error = error
        # A filter that answers is not to outlive the deadline for ever either.
        with trio.move_on_after(self._conf.write_timeout) as scope:
            stream.watch(scope)
            if session._failed:  # its answer is what took too long
                await self._answer_plainly(session, 504)
            else:
                await self._fail(session, ctx, error, before_upstream=False)
        stream.unwatch()

    # -- before the upstream ---------------------------------------------------------------------

    async def _run(self, session: Session, ctx: Any, nursery: trio.Nursery) -> ProxyError | None:
        """Run every phase up to the response's end; return the error that is left."""
        filters = session._filters
        try:
            stream = session.downstream_session
            if filters.on_connection_reuse is not None and stream.kept is not None:
                session._phase = "on_connection_reuse"
                owner, left = stream.kept
                if owner is filters:
                    filters.on_connection_reuse(session, ctx, left)
            if filters.early_request_filter is not None:
                session._phase = "early_request_filter"
                await filters.early_request_filter(session, ctx)
                stream.watch(nursery.cancel_scope)
            if filters.allow_spawning_subrequest is not None:
                session._phase = "allow_spawning_subrequest"
                if filters.allow_spawning_subrequest(session, ctx):
                    session.subrequest_spawner = SubrequestSpawner(session)
            if session._modules is not None and await request_through_modules(
                session, session._modules
            ):
                return await self._answered(session)
            if filters.request_filter is not None:
                session._phase = "request_filter"
                if await filters.request_filter(session, ctx):
                    return await self._answered(session)
            if (
                filters.caches
                and not session.is_connect_req()  # a tunnel is no matter of a cache
                and await cache_stage(session, filters, ctx, self._conf)
            ):
                return session.error
            if filters.proxy_upstream_filter is not None:
                session._phase = "proxy_upstream_filter"
                if not await filters.proxy_upstream_filter(session, ctx):
                    return await self._declined(session)
            request = session.req_header()
            if request.method in METHODS and forwards_left(request) == 0:
                session._phase = "answering for Max-Forwards"
                await answer_as_last(session)
                return None
        except Exception as exc:  # the single catch, first half: before a peer was chosen
            error = as_proxy_error(exc, session)
            if session._cache is not None:
                session._cache.disable(NoCacheReason.InternalError)
            await self._fail(session, ctx, error, before_upstream=True)
            return error
        error_left = await self._attempts(session, ctx, nursery)
        if error_left is not None and session._cache is not None:
            error_left = await self._without_origin(session, ctx, session._cache, error_left)
        if error_left is None:
            return session.error  # of what was served from the cache, and answered there
        session.downstream_session.keepalive = None
        await self._fail(session, ctx, error_left, before_upstream=False)
        return error_left

    async def _without_origin(
        self, session: Session, ctx: Any, cache: HttpCache, error: ProxyError
    ) -> ProxyError | None:
        """Serve what is stored where the origin has failed, if it may be; return what error is left."""
        if not session.response_started() and cache.can_serve_stale_error():
            session._phase = "should_serve_stale"
            try:
                serves = session._filters.should_serve_stale(session, ctx, error)
            except Exception as exc:
                error = as_proxy_error(exc, session)
            else:
                if serves:
                    self._services.log.warning(
                        "what is stored is served: %s: %s", self._summary(session, ctx), error
                    )
                    cache.release_write_lock(NoCacheReason.UpstreamError)
                    await serve_stored(session, session._filters, ctx, self._conf, cache)
                    return None
        internal = error.esource is ErrorSource.INTERNAL
        cache.disable(NoCacheReason.InternalError if internal else NoCacheReason.UpstreamError)
        return error

    async def _answered(self, session: Session) -> ProxyError | None:
        """End a request that a filter or a module says it answered; a 500 where it did not."""
        if not session.response_started():
            who = session._phase
            self._services.log.error(
                "%s returned True and answered nothing: %s", who, self._summary(session)
            )
            await session.respond_error(500)
        else:
            await session.finish()
        return None

    async def _declined(self, session: Session) -> ProxyError | None:
        """End a request that `proxy_upstream_filter` keeps from going on."""
        if session._cache is not None:
            session._cache.disable(NoCacheReason.DeclinedToUpstream)
        if session.response_started():
            await session.finish()
        else:
            head = canned_head(self._conf.server_name, 502)
            await session.write_response_header(head, end_of_stream=True)
        return None

    # -- the attempts ----------------------------------------------------------------------------

    async def _attempts(
        self, session: Session, ctx: Any, nursery: trio.Nursery
    ) -> ProxyError | None:
        """Try until an attempt succeeds or its error is not to be retried."""
        fresh = False
        while True:
            error = await self._attempt(session, ctx, nursery, fresh=fresh)
            if error is None:
                return None
            if (
                session._attempts >= self._conf.max_attempts
                or session.response_started()
                or session.retry_buffer_truncated()
                or not error.will_retry()
            ):
                return error
            # A stale connection, or one that refused this request, is not to be tried again.
            fresh = session._upstream is not None
            self._services.retries += 1
            self._services.log.warning("retrying: %s: %s", self._summary(session, ctx), error)

    async def choose_peer(self, session: Session, ctx: Any) -> HttpPeer:
        """Ask the trait where to connect."""
        session._attempts += 1
        session._phase = "upstream_peer"
        peer = await session._filters.upstream_peer(session, ctx)
        if not isinstance(peer, HttpPeer):
            raise TypeError(f"upstream_peer returned {peer!r}: an HttpPeer is right")
        session._peer_name = peer.name
        return peer

    async def _attempt(
        self, session: Session, ctx: Any, nursery: trio.Nursery, *, fresh: bool
    ) -> ProxyError | None:
        """Choose a peer, get a connection and carry the exchange over it."""
        session._upstream = None
        session._asked = False
        try:
            peer = await self.choose_peer(session, ctx)
            whole = None if session._hedge is None else await self._replayable(session, peer)
        except Exception as exc:  # that attempt's error; its own retry mark decides
            error = as_proxy_error(exc, session)
            error.decide_reuse(False)
            return error
        if whole is not None:
            raced = await Race(self, session, ctx, whole, fresh=fresh).run(peer)
            if isinstance(raced, ProxyError):
                return raced
            asked = raced
        else:
            try:
                lease = await self.lease(session, peer, fresh=fresh)
            except Exception as exc:  # a connector of the user's own may raise anything
                return self.connect_failed(session, ctx, peer, exc)
            asked = Asked(peer, lease, lease.stream)
        peer, upstream = asked.peer, asked.upstream
        session._upstream, session._peer_name = upstream, peer.name
        session._held = (peer, upstream.reused)
        stored = False
        try:
            stored = await self._carry(session, ctx, nursery, asked)
        except Exception as exc:  # the single catch, second half: this attempt's fate
            error = as_proxy_error(exc, session)
        else:
            session._held = None
            if not stored:
                return None
        finally:
            asked.lease.release()
        cache = session._cache
        if stored:  # a slow client is not to keep the origin's connection from others meanwhile
            assert cache is not None
            await serve_stored(session, session._filters, ctx, self._conf, cache)
            return None
        if cache is not None and _half_stored(cache):
            cache.disable(NoCacheReason.UpstreamError)  # another attempt cannot go on with it
        error = self.attempt_failed(session, ctx, peer, upstream, error)
        session._held = None
        return error

    async def lease(self, session: Session, peer: HttpPeer, *, fresh: bool) -> Lease:
        """Return a hold on a connection to a peer."""
        tunnel = session.is_connect_req()
        version = peer.options.proxy_protocol
        if version is None:  # what a CONNECT names is nobody that we have agreed with
            version = 0 if tunnel else self._announces
        if version:  # its connections are this client connection's own
            peer = peer.announcing(session.downstream_session.info, version)
        offers = session.req_header().offers is not None
        return await self._services.pool.lease(peer, fresh=fresh, http1=offers, raw=tunnel)

    async def _replayable(self, session: Session, peer: HttpPeer) -> list[BodyEvent] | None:
        """Return the whole body of a request that may be sent twice at once, None of another one."""
        request = session.req_header()
        if request.method not in _IDEMPOTENT or request.offers is not None:
            return None
        if session.downstream_session.messages is not None or peer.options.custom is not None:
            return None  # what goes beside the content goes once
        await session._invite_body()
        return await session._body.whole()

    async def prepare(
        self, session: Session, ctx: Any, peer: HttpPeer, upstream: UpstreamStream
    ) -> tuple[RequestHeader, bool]:
        """Return the head that an attempt sends, and whether it was made to fill the cache."""
        filters, conf, options = session._filters, self._conf, peer.options
        read_timeout, write_timeout = options.read_timeout, options.write_timeout
        upstream.read_timeout = conf.read_timeout if read_timeout is None else read_timeout
        upstream.write_timeout = conf.write_timeout if write_timeout is None else write_timeout
        if filters.connected_to_upstream is not None:
            digest = Digest.of(upstream.info)
            connected = filters.connected_to_upstream(
                session, upstream.reused, peer, upstream.fileno(), digest, ctx
            )
            await _under(session, "connected_to_upstream", connected)
        request = to_upstream(session.req_header())
        made = session.subrequest_ctx is not None
        if (made or request.version not in ("HTTP/1.1", "HTTP/2")) and (
            b"host" not in request.headers
        ):
            # What goes on needs one (RFC 9112 section 3.2), and HTTP/1.0, a protocol of the user's
            # or a callback that makes a request may have none.
            request.headers.set(b"Host", peer.authority)
        if request.method in METHODS:
            count_down(request)
        cache = session._cache
        rewritten = cache is not None and _fill(request, cache)
        if filters.upstream_request_filter is not None:
            rewriting = filters.upstream_request_filter(session, request, ctx)
            await _under(session, "upstream_request_filter", rewriting)
        session._asked = True
        return request, rewritten

    async def _carry(self, session: Session, ctx: Any, nursery: trio.Nursery, asked: Asked) -> bool:
        """Carry the exchange; True where what is stored is to be served in place of its response."""
        filters, conf = session._filters, self._conf
        upstream = asked.upstream
        if asked.request is None:
            request, rewritten = await self.prepare(session, ctx, asked.peer, upstream)
            asked_at = 0.0
        else:
            request, rewritten, asked_at = asked.request, asked.rewritten, asked.asked_at
        over_tunnel = session._over_tunnel
        if over_tunnel is not None:
            upstream = over_tunnel.over(upstream, request)
        cache = session._cache
        tap = None
        staged = (
            filters.adjust_upstream_modules is not None
            or session._upstream_modules is not None
            or session._upstream_compression is not None
        )
        if staged:
            upstream = ModuleStream(upstream, session, filters, ctx)
        if cache is not None:
            session._sent, session._not_modified = request, None
            session._asked_at = asked_at or wall_time()
        if cache is not None and (rewritten or cache.enabled() or cache.bypassing()):
            tap = upstream = TapStream(upstream, session, filters, ctx, cache, rewritten=rewritten)
            filters = filters.of_client
        exchange = Exchange(session, filters, ctx, upstream, request, conf)
        exchange.asked = asked.request is not None
        exchange.altered = staged or (tap is not None and tap.alters)
        try:
            if session.downstream_session.messages is None and upstream.messages is None:
                first = await run_exchange(exchange, nursery)
            else:
                first = await run_with_messages(exchange)
        except ServeStored:
            return True
        except ProxyError as exc:
            if (
                tap is None
                or not tap.outlives_client
                or exc.esource is not ErrorSource.DOWNSTREAM
                or not session._body.done
            ):
                raise
            # The client is gone, others may want what it asked for (trait 6.4).
            self._services.log.info("ignored during caching: %s", exc)
            session.downstream_session.keepalive = None
            first = None
        if tap is not None and first is None:
            # The client has its answer: a fill that takes too long is no failure of its request.
            deadline, nursery.cancel_scope.deadline = nursery.cancel_scope.deadline, math.inf
            with trio.move_on_at(deadline) as scope:
                await tap.finish_fill()
            if scope.cancelled_caught:
                assert cache is not None
                cache.disable(NoCacheReason.UpstreamError)
        if first is not None:
            # A tunnel has limits of its own (row T-05).
            nursery.cancel_scope.deadline = math.inf
            run = run_tunnel if over_tunnel is None else over_tunnel.run
            await run(exchange, nursery, first)
        return False

    def connect_failed(
        self, session: Session, ctx: Any, peer: HttpPeer, exc: Exception
    ) -> ProxyError:
        """Return the error of an attempt that got no connection."""
        error = as_proxy_error(exc, session, "connecting")
        error.as_up()
        callback = session._filters.fail_to_connect
        if callback is not None:
            session._phase = "fail_to_connect"
            try:
                returned = callback(session, peer, ctx, error)
            except Exception as exc:  # it may not fail: the error that was passed in stands
                log_failure(exc, session)
            else:
                if isinstance(returned, ProxyError):
                    error = returned
        error.decide_reuse(False)
        error.as_up()
        return error

    def attempt_failed(
        self,
        session: Session,
        ctx: Any,
        peer: HttpPeer,
        upstream: UpstreamStream,
        error: ProxyError,
    ) -> ProxyError:
        """Return the error of an attempt that had a connection."""
        if error.root_etype() == ErrorType.H2Downgrade:
            if peer.http1() is None:
                error.set_retry(False)  # there is no other way to ask it
            else:
                self._services.pool.remember_http1(peer)
        if (
            error.retry == RetryType.ReusedOnly
            and upstream.anything_sent
            and session.req_header().method not in _IDEMPOTENT
        ):
            error.set_retry(False)  # never a second POST on a guess (RFC 9110 section 9.2.2)
        return self._call_error_while_proxy(session, ctx, peer, error, upstream.reused)

    def _call_error_while_proxy(
        self, session: Session, ctx: Any, peer: HttpPeer, error: ProxyError, reused: bool
    ) -> ProxyError:
        session._phase = "error_while_proxy"
        try:
            returned = session._filters.error_while_proxy(peer, session, error, ctx, reused)
        except Exception as exc:  # it may not fail: the error that was passed in stands
            log_failure(exc, session)
        else:
            if isinstance(returned, ProxyError):
                error = returned
        error.decide_reuse(reused and not session.retry_buffer_truncated())
        return error

    # -- errors and the end ----------------------------------------------------------------------

    async def _fail(
        self, session: Session, ctx: Any, error: ProxyError, *, before_upstream: bool
    ) -> None:
        """Give the request its error response, or its abort, and the log its line."""
        if session._failed:  # the client left while it ran
            return
        session._failed = True
        started = session.response_started()
        session._phase = "fail_to_proxy"
        try:
            outcome = await session._filters.fail_to_proxy(session, error, ctx)
            if not isinstance(outcome, FailToProxy):
                raise TypeError(f"it returned {outcome!r}, which is no FailToProxy")
        except Exception as exc:  # it may not fail: a plain 500, and no reuse
            log_failure(exc, session)
            outcome = FailToProxy(500, False)
            await self._answer_plainly(session, 500)
        if not (before_upstream and outcome.can_reuse_downstream):
            session.downstream_session.keepalive = None
        if session.response_started() and not started:
            try:  # a head of its own without an end; what was cut before stays cut
                await session.finish()
            except ProxyError:
                session.downstream_session.keepalive = None
        if not self._suppressed(session, ctx, error):
            self._services.log.error(
                "Fail to proxy: %s, status: %d, %s",
                error,
                outcome.error_code,
                self._summary(session, ctx),
            )

    async def _answer_plainly(self, session: Session, code: int) -> None:
        try:
            await session.respond_error(code)
        except ProxyError:
            session.downstream_session.keepalive = None

    async def _shed(self, session: Session) -> None:
        """Refuse a session beyond the limit (row R-05)."""
        self._services.sessions_shed += 1
        self._services.log.warning("max_sessions (%d) reached", self._conf.max_sessions)
        body = b"503 Service Unavailable: the proxy has no capacity left, try again later\n"
        head = canned_head(self._conf.server_name, 503, body)
        head.headers.add("Retry-After", "1")
        try:
            await session.write_error_response(head, body)
        except ProxyError:
            session.downstream_session.keepalive = None

    async def _misdirected(self, session: Session) -> None:
        """Refuse what belongs to another name than TLS was opened for (row TLS-02)."""
        body = b"421 Misdirected Request: this connection was opened for another name\n"
        head = canned_head(self._conf.server_name, 421, body)
        try:
            await session.write_response_header(head)
            await session.write_response_body(body, True)
        except ProxyError:
            session.downstream_session.keepalive = None

    async def _client_left(self, session: Session, ctx: Any) -> None:
        """Tell the callbacks that the client is gone, shielded and bounded."""
        _let_go(session)
        stream = session.downstream_session
        stream.keepalive = None
        error = session.error or stream.departure
        if error is None:
            error = ProxyError.explain(ErrorType.ConnectionClosed, "the client left").into_down()
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + self._conf.logging_timeout
        ):
            if session._held is not None:
                peer, reused = session._held
                session._held = None
                error = self._call_error_while_proxy(session, ctx, peer, error, reused)
            await self._fail(session, ctx, error, before_upstream=False)
        session.error = error

    async def _log(self, session: Session, ctx: Any) -> None:
        """Run ``logging``: last, once, shielded, with a deadline of its own."""
        release_modules(session)
        callback = session._filters.logging
        if callback is None:
            return
        session._phase = "logging"
        seconds = self._conf.logging_timeout
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds) as scope:
            try:
                await callback(session, session.error, ctx)
            except Exception as exc:  # it may not fail: ignored, but told
                log_failure(exc, session)
        if scope.cancelled_caught:
            self._services.log.error(
                "logging was cut off by logging_timeout (%g s): %s",
                seconds,
                self._services.summary(session),
            )

    def _persist(self, session: Session, ctx: Any) -> None:
        """Keep what the next request on the connection is to have."""
        stream = session.downstream_session
        if stream.keepalive is None or not stream.sequential:
            return
        session._phase = "persist_connection_context"
        callback = session._filters.persist_connection_context
        assert callback is not None
        stream.kept = None
        try:
            left = callback(session, ctx)
        except Exception as exc:  # it may not fail: nothing is left
            log_failure(exc, session)
        else:
            stream.kept = None if left is None else (session._filters, left)

    def _suppressed(self, session: Session, ctx: Any, error: ProxyError) -> bool:
        callback = session._filters.suppress_error_log
        if callback is None:
            return False
        session._phase = "suppress_error_log"
        try:
            return bool(callback(session, ctx, error))
        except Exception as exc:  # it may not fail: the line is logged
            log_failure(exc, session)
            return False

    def _summary(self, session: Session, ctx: Any = None) -> str:
        session._phase = "request_summary"
        try:
            return str(session._filters.request_summary(session, ctx))
        except Exception as exc:  # it may not fail: the built-in text stands in
            log_failure(exc, session)
            return self._services.summary(session)

    def _record(self, session: Session) -> ExchangeRecord:
        request = session.req_header()
        response = session.response_written()
        return ExchangeRecord(
            client=session.client_addr(),
            method=request.method,
            target=request.target,
            version=request.version,
            status=response.status if response is not None else 0,
            body_bytes_sent=session.body_bytes_sent(),
            body_bytes_received=session.body_bytes_read(),
            duration=trio.current_time() - session._started,
            upstream=session._peer_name,
            error=str(session.error) if session.error is not None else None,
            started_at=wall_time() - (trio.current_time() - session._started),
        )
