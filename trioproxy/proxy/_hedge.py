"""A hedged attempt: where the first one is not answered in time, a second one joins, and one wins.

Both run in a nursery of their own. An attempt asks (connection, callbacks, the whole request) and
waits for a final head; who gets one first takes its connection and its head out of the race, and
the other one is cancelled. An attempt that is cancelled gives its lease back at once: the connection
is closed, or its stream reset, for its exchange is not over. No callback of the response has run by
then, so that there is nothing to undo.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._clock import wall_time
from .._errors import ProxyError
from .._messages import RequestHeader, ResponseEvent
from .._peer import HttpPeer
from ..streams._abc import UpstreamStream
from ..upstream._pool import Lease
from ._body import BodyEvent
from ._failure import as_proxy_error
from ._over import OverStream
from ._pump import Exchange, ask

if TYPE_CHECKING:
    from ._engine import Engine
    from ._session import Session


@attrs.define(eq=False)
class Asked:
    """The connection of an attempt; where ``request`` is not None, it was sent and answered.

    Attributes:
      peer: Where it leads.
      lease: The hold on it.
      upstream: The exchange over it.
      request: The head that was sent.
      rewritten: Whether that was made to fill the cache.
      asked_at: When it was sent (wall clock).
    """

    peer: HttpPeer
    lease: Lease
    upstream: UpstreamStream
    request: RequestHeader | None = None
    rewritten: bool = False
    asked_at: float = 0.0


class Answered(OverStream):
    """The origin's side of an exchange whose answer has begun to arrive."""

    def __init__(self, inner: UpstreamStream, first: list[ResponseEvent]) -> None:
        super().__init__(inner)
        self.write_pending_time = inner.write_pending_time
        self._first: list[ResponseEvent] | None = first

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what came first, then what the origin sends."""
        first = self._first
        if first is not None:
            self._first = None
            return first
        return await self._inner.receive_batch()


class Race:
    """One attempt of a session that another one may join."""

    def __init__(
        self,
        engine: Engine,
        session: Session,
        ctx: Any,
        whole: list[BodyEvent],
        *,
        fresh: bool,
    ) -> None:
        self._engine = engine
        self._session = session
        self._ctx = ctx
        self._whole = whole
        self._fresh = fresh
        #: Attempts that are neither answered nor failed.
        self._running = 0
        self._over = trio.Event()
        self._scopes: list[trio.CancelScope] = []
        #: Connections that they hold, the last one made at the end.
        self._held: list[tuple[HttpPeer, bool]] = []
        self._won: Asked | None = None
        self._error: ProxyError | None = None

    async def run(self, peer: HttpPeer) -> Asked | ProxyError:
        """Return the connection that has answered, which is then the caller's to give back.

        Returns an error where every attempt has failed: that of the last one.

        Args:
          peer: That of the first attempt.
        """
        session, services = self._session, self._engine.services
        delay = session._hedge
        assert delay is not None
        try:
            async with trio.open_nursery() as nursery:
                self._running = 1
                nursery.start_soon(self._run, self._try, peer)
                with trio.move_on_after(delay):
                    await self._over.wait()
                if not self._over.is_set() and session._attempts < services.conf.max_attempts:
                    services.hedges += 1
                    self._running += 1
                    nursery.start_soon(self._run, self._second)
                await self._over.wait()
                for scope in self._scopes:
                    scope.cancel()
        except BaseException:
            if self._won is not None:  # nobody is left to take it
                self._won.lease.release()
            raise
        session._held = None
        if self._won is not None:
            return self._won
        assert self._error is not None
        return self._error

    async def _run(self, attempt: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run an attempt until the race is over."""
        try:
            with trio.CancelScope() as scope:
                self._scopes.append(scope)
                await attempt(*arguments)
        except (
            Exception
        ) as exc:  # a callback's group that mixed errors with Cancelled: told, no more
            as_proxy_error(exc, self._session, "a callback of an attempt that has lost")

    async def _second(self) -> None:
        session = self._session
        try:
            peer = await self._engine.choose_peer(session, self._ctx)
        except Exception as exc:  # that attempt's error
            error = as_proxy_error(exc, session, "upstream_peer")
            error.decide_reuse(False)
            self._lost(error)
            return
        await self._try(peer, joined=True)

    async def _try(self, peer: HttpPeer, *, joined: bool = False) -> None:
        """Make one attempt, up to its answer."""
        engine, session, ctx = self._engine, self._session, self._ctx
        try:
            lease = await engine.lease(session, peer, fresh=self._fresh)
        except Exception as exc:  # a connector of the user's own may raise anything
            self._lost(engine.ending.connect_failed(session, ctx, peer, exc))
            return
        upstream = lease.stream
        held = (peer, upstream.reused)
        self._held.append(held)
        session._held = held
        keep = False
        try:
            request, rewritten = await engine.prepare(session, ctx, peer, upstream)
            asked_at = wall_time()
            exchange = Exchange(
                session, session._filters, ctx, upstream, request, engine.services.conf
            )
            first = await ask(exchange, self._whole)
            if self._won is None:
                keep = True
                engine.services.hedges_won += joined
                answered = Answered(upstream, first)
                self._won = Asked(peer, lease, answered, request, rewritten, asked_at)
                self._over.set()
        except Exception as exc:  # that attempt's fate
            error = as_proxy_error(exc, session, "request_body_filter")
            session._upstream = upstream
            self._let_go(held)
            self._lost(engine.ending.attempt_failed(session, ctx, peer, upstream, error))
        finally:
            if not keep:
                lease.release()

    def _let_go(self, held: tuple[HttpPeer, bool]) -> None:
        self._held.remove(held)
        self._session._held = self._held[-1] if self._held else None

    def _lost(self, error: ProxyError) -> None:
        """Take note that an attempt has failed."""
        self._error = error
        self._running -= 1
        if not self._running:
            self._over.set()
