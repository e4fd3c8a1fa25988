"""How attempts and exchanges end: who is told of an error, what the client gets, what is logged.

Every callback that runs here may not fail: what it raises is logged, and something stands in for it.
"""

from __future__ import annotations

from typing import Any

import trio

from .._clock import wall_time
from .._errors import ErrorType, ProxyError, RetryType
from .._peer import HttpPeer
from ..streams._abc import UpstreamStream
from ._chain import release_modules
from ._failure import as_proxy_error, canned_head, log_failure
from ._filters import FailToProxy
from ._record import ExchangeRecord
from ._services import Services
from ._session import Session

#: Methods that may be repeated on a guess (RFC 9110 section 9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


def let_go(session: Session) -> None:
    """Give back what a session holds of the cache, as others may wait for it."""
    if session._cache is not None:
        session._cache.close()


class Ending:
    """What becomes of the exchanges of one proxy object when something went wrong, and at the end."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._conf = services.conf

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
            and session.req_header().method not in IDEMPOTENT
        ):
            error.set_retry(False)  # never a second POST on a guess (RFC 9110 section 9.2.2)
        return self.call_error_while_proxy(session, ctx, peer, error, upstream.reused)

    def call_error_while_proxy(
        self, session: Session, ctx: Any, peer: HttpPeer, error: ProxyError, reused: bool
    ) -> ProxyError:
        """Let `error_while_proxy` see an attempt that had a connection fail, and settle its mark."""
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

    async def fail(
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
            await self.answer_plainly(session, 500)
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
                self.summary(session, ctx),
            )

    async def answer_plainly(self, session: Session, code: int) -> None:
        """Answer without asking anybody."""
        try:
            await session.respond_error(code)
        except ProxyError:
            session.downstream_session.keepalive = None

    async def shed(self, session: Session) -> None:
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

    async def misdirected(self, session: Session) -> None:
        """Refuse what belongs to another name than TLS was opened for (row TLS-02)."""
        body = b"421 Misdirected Request: this connection was opened for another name\n"
        head = canned_head(self._conf.server_name, 421, body)
        try:
            await session.write_response_header(head)
            await session.write_response_body(body, True)
        except ProxyError:
            session.downstream_session.keepalive = None

    async def client_left(self, session: Session, ctx: Any) -> None:
        """Tell the callbacks that the client is gone, shielded and bounded."""
        let_go(session)
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
                error = self.call_error_while_proxy(session, ctx, peer, error, reused)
            await self.fail(session, ctx, error, before_upstream=False)
        session.error = error

    async def log(self, session: Session, ctx: Any) -> None:
        """Run ``logging``: last, once, shielded, with a deadline of its own."""
        if session._with_modules:
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

    def persist(self, session: Session, ctx: Any) -> None:
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

    def summary(self, session: Session, ctx: Any = None) -> str:
        """Return the words by which a log line names the request."""
        session._phase = "request_summary"
        try:
            return str(session._filters.request_summary(session, ctx))
        except Exception as exc:  # it may not fail: the built-in text stands in
            log_failure(exc, session)
            return self._services.summary(session)

    def record(self, session: Session) -> ExchangeRecord:
        """Return what an access log wants to know."""
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

    async def out_of_time(self, session: Session, ctx: Any) -> None:
        """End what ``request_timeout`` has cancelled: 504 where nothing was sent, else a cut (T-08)."""
        let_go(session)
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
            error = self.call_error_while_proxy(session, ctx, peer, error, reused)
        session.error = error
        # A filter that answers is not to outlive the deadline for ever either.
        with trio.move_on_after(self._conf.write_timeout) as scope:
            stream.watch(scope)
            if session._failed:  # its answer is what took too long
                await self.answer_plainly(session, 504)
            else:
                await self.fail(session, ctx, error, before_upstream=False)
        stream.unwatch()
