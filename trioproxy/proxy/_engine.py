"""One exchange, from its first head to ``logging``: the phases, the attempts, the single catch.

Read `Engine.handle` from the top: the order of the calls is the order of the phases. It is the one
place where an exchange's `Exception` stops, is logged and becomes an error response; ``Cancelled``
and other `BaseException` pass; what becomes of it is told in ``_ending``. Nothing here knows which protocol either side speaks.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Any

import trio

from .._clock import wall_time
from .._config import announced_version
from .._errors import ErrorSource, ErrorType, ProxyError
from .._info import Digest
from .._messages import RequestHeader
from .._peer import HttpPeer
from ..cache._http_cache import HttpCache
from ..cache._phase import CachePhase
from ..cache._policy import NoCacheReason
from ..modules._abc import ModulesCtx
from ..semantics._conditional import fill_request
from ..semantics._forwarding import to_upstream
from ..streams._abc import DownstreamStream, UpstreamStream
from ..upstream._pool import Lease
from ._body import BodyEvent
from ._caching import ServeStored, TapStream, cache_stage, serve_stored, stored_validators
from ._chain import ModuleStream, request_through_modules
from ._ending import IDEMPOTENT, Ending, let_go
from ._failure import as_proxy_error, canned_head
from ._hedge import Asked, Race
from ._max_forwards import METHODS, answer_as_last, count_down, forwards_left
from ._pump import Exchange, run_exchange
from ._relay import run_with_messages
from ._services import Services
from ._session import Session
from ._subrequest import SubrequestCtx, SubrequestSpawner
from ._tunnel import run_tunnel


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


def _named(exc: Exception, session: Session, name: str) -> ProxyError:
    """Return what a callback of an attempt raised, beside which another may be in another phase."""
    error = as_proxy_error(exc, session, name)
    if error is not exc:
        error.__cause__ = exc
    return error


class Engine:
    """Runs the exchanges of one proxy object."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._conf = services.conf
        #: What becomes of errors, and the end.
        self.ending = Ending(services)
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
        begun = over = False
        try:
            # What a request that was let in asks for by itself is not what the limit keeps out.
            asked = services.sessions - services.subrequests
            if asked > self._conf.max_sessions and subrequest is None:
                await self.ending.shed(session)
                over = True
                return
            serves = stream.info.serves if subrequest is None else None
            # A CONNECT names where it wants to go, not the name that this server is reached by.
            if (
                serves is not None
                and not session.is_connect_req()
                and not serves(request.authority)
            ):
                await self.ending.misdirected(session)
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
                await self.ending.answer_plainly(session, 500)
                return
            begun = True
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
            if left:
                late = nursery.cancel_scope.deadline <= trio.current_time()
                if late and session.error is None and stream.departure is None:
                    await self.ending.out_of_time(session, ctx)
                else:
                    await self.ending.client_left(session, ctx)
            over = True
            if filters.logging is not None or session._with_modules:
                await self.ending.log(session, ctx)
            if filters.persist_connection_context is not None and not left:
                self.ending.persist(session, ctx)
        finally:
            services.sessions -= 1
            services.subrequests -= subrequest is not None
            if not over:
                let_go(session)
                session.error = ProxyError.explain(
                    ErrorType.Custom("Cancelled"), "the session was cancelled"
                ).into_in()
                if begun:
                    await self.ending.log(session, ctx)
            if session.error is not None:
                services.count_error(session.error)
            if services.on_record is not None:
                services.on_record(self.ending.record(session))
            if session._cache is not None:
                let_go(session)
                services.count_cache(session._cache)
            if session.error is not None:
                stream.blame = session.error.esource
            if subrequest is not None:
                subrequest.error = session.error
            await stream.aclose()

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
            await self.ending.fail(session, ctx, error, before_upstream=True)
            return error
        error_left = await self._attempts(session, ctx, nursery)
        if error_left is not None and session._cache is not None:
            error_left = await self._without_origin(session, ctx, session._cache, error_left)
        if error_left is None:
            return session.error  # of what was served from the cache, and answered there
        session.downstream_session.keepalive = None
        await self.ending.fail(session, ctx, error_left, before_upstream=False)
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
                        "what is stored is served: %s: %s", self.ending.summary(session, ctx), error
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
                "%s returned True and answered nothing: %s", who, self.ending.summary(session)
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
            self._services.log.warning("retrying: %s: %s", self.ending.summary(session, ctx), error)

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
                return self.ending.connect_failed(session, ctx, peer, exc)
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
        error = self.ending.attempt_failed(session, ctx, peer, upstream, error)
        session._held = None
        return error

    def lease(self, session: Session, peer: HttpPeer, *, fresh: bool) -> Awaitable[Lease]:
        """Return, to be awaited, a hold on a connection to a peer."""
        request = session._request
        facts = request.facts
        tunnel = facts is not None and facts.connect is not None
        version = peer.options.proxy_protocol
        if version is None:  # what a CONNECT names is nobody that we have agreed with
            version = 0 if tunnel else self._announces
        if version:  # its connections are this client connection's own
            peer = peer.announcing(session.downstream_session.info, version)
        offers = facts is not None and bool(facts.offers) and request.offers is not None
        return self._services.pool.lease(peer, fresh=fresh, http1=offers, raw=tunnel)

    async def _replayable(self, session: Session, peer: HttpPeer) -> list[BodyEvent] | None:
        """Return the whole body of a request that may be sent twice at once, None of another one."""
        request = session.req_header()
        if request.method not in IDEMPOTENT or request.offers is not None:
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
            session._phase = "connected_to_upstream"
            try:
                await filters.connected_to_upstream(
                    session, upstream.reused, peer, upstream.fileno(), digest, ctx
                )
            except Exception as exc:
                raise _named(exc, session, "connected_to_upstream") from exc.__cause__
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
            session._phase = "upstream_request_filter"
            try:
                await filters.upstream_request_filter(session, request, ctx)
            except Exception as exc:
                raise _named(exc, session, "upstream_request_filter") from exc.__cause__
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
