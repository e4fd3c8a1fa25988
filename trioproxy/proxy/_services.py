"""What the sessions of one server share: its settings, its pool, its counters, its background."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import attrs
import trio

from .._config import ServerConf
from .._counts import SessionCounts
from .._errors import ErrorType, ProxyError
from .._peer import HttpPeer
from .._util import unwrap
from ..cache._http_cache import HttpCache, Spawn
from ..cache._policy import NoCacheReason
from ..streams._abc import DownstreamStream
from ..upstream._pool import Pool
from ._bound import Filters
from ._filters import ProxyHttp
from ._record import ExchangeRecord

if TYPE_CHECKING:
    from ._session import Session
    from ._subrequest import SubrequestCtx


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
    #: Part from both ends of an exchange that has no end of its own, and wait for them.
    farewells: set[Callable[[], Awaitable[None]]] = attrs.field(factory=set)

    async def part(self) -> None:
        """Part from those whose protocol has a word for that; the caller bounds how long."""
        async with trio.open_nursery() as nursery:
            for farewell in self.farewells:
                nursery.start_soon(farewell)

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
