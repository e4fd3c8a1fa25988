"""One stream, from its accepted connection to ``logging``: the phases, the attempts, the catch.

Read `StreamEngine.handle` from the top: the order of the calls is the order of the phases. It is
the one place where a session's `Exception` stops and is logged; ``Cancelled`` and other
`BaseException` pass.

::

    the connection's task
    `- session nursery
       |- its body            the phases up to a connected upstream; then upstream to client
       `- upload              reads ahead until then, which notices a client that resets; then
                              client to upstream
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
import trio

from .._callbacks import error_of, log_failure_of
from .._clock import wall_time
from .._config import ServerConf
from .._counts import SessionCounts
from .._errors import ErrorSource, ErrorType, ProxyError
from .._info import ConnectionInfo, Digest
from .._messages import BodyChunk
from .._util import TunnelLimits
from ..transport._byte_stream import ByteStream
from ..upstream._connector import Opener
from ._bound import StreamFilters
from ._peer import StreamPeer
from ._record import StreamRecord
from ._relay import Direction
from ._session import StreamSession


@attrs.define(eq=False)
class StreamServices(SessionCounts):
    """What the sessions of one server share."""

    conf: ServerConf
    opener: Opener
    filters: StreamFilters
    log: logging.Logger
    #: Called with a record of every stream, or None where nobody wants one.
    on_record: Callable[[StreamRecord], None] | None = None
    draining: bool = False
    #: Connections to upstreams that are open.
    upstreams: int = 0
    #: All that were made since the start.
    connects: int = 0


@attrs.define(eq=False)
class _Upload:
    """The direction towards the upstream as a task.

    Attributes:
      scope: Around all of it.
      ahead_scope: Around the reading ahead.
      connected: Set when the direction is known.
      direction: Where the bytes go.
      download_scope: Around the other direction: cancelled where this one has failed.
      departure: Why nothing can be read ahead: the client is gone.
      error: Why the direction has failed.
      ended: Set when the task has ended.
    """

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ahead_scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    connected: trio.Event = attrs.field(factory=trio.Event)
    direction: Direction | None = None
    download_scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    departure: ProxyError | None = None
    error: ProxyError | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)


class StreamEngine:
    """Runs the sessions of one proxy object."""

    def __init__(self, services: StreamServices) -> None:
        self._services = services
        self._filters = services.filters
        self._conf = services.conf

    async def handle(self, transport: ByteStream, info: ConnectionInfo) -> None:
        """Run one session; never raises an `Exception` of its callbacks.

        Args:
          transport: The client's side, which is closed when this returns.
          info: What is known of it.
        """
        services = self._services
        session = StreamSession(services, transport, info)
        services.sessions += 1
        services.sessions_total += 1
        ctx: Any = None
        over = False
        made = False
        try:
            if services.sessions > self._conf.max_sessions:
                self._shed(session)
                over = True
                return
            try:
                ctx = self._filters.new_ctx()
                made = True
            except Exception as exc:  # no context, so no other callback can run
                session.error = error_of(exc, "new_ctx")
                over = True
                return
            upload = _Upload()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._upload, session, upload, nursery.cancel_scope)
                    session.error = await self._run(session, ctx, upload)
                    upload.scope.cancel()
                left = nursery.cancel_scope.cancelled_caught
            except Exception as exc:  # a callback's group that mixed errors with Cancelled
                session.error = error_of(exc, session._phase)
                left = upload.departure is not None
            if left and session.error is None:
                assert upload.departure is not None  # nobody else cancels the session's scope
                cause = upload.departure.root_cause()
                error = ProxyError.because(ErrorType.ConnectionClosed, "the client left", cause)
                session.error = self._failed(session, ctx, error.into_down())
            over = True
        finally:
            services.sessions -= 1
            if not over:
                session.error = ProxyError.explain(
                    ErrorType.Custom("Cancelled"), "the session was cancelled"
                ).into_in()
            try:
                if made:
                    await self._log(session, ctx)
            finally:
                self._close(session)
            if session.error is not None:
                services.count_error(session.error)
            if services.on_record is not None:
                services.on_record(self._record(session))

    # -- the phases ------------------------------------------------------------------------------

    async def _run(self, session: StreamSession, ctx: Any, upload: _Upload) -> ProxyError | None:
        """Run every phase up to the stream's end; return the error that is left."""
        filters = self._filters
        try:
            if filters.accept_filter is not None:
                session._phase = "accept_filter"
                if not await filters.accept_filter(session, ctx):
                    session._dropped = True
                    return None
            failure = await self._attempts(session, ctx)
            if failure is None:
                await self._join(session, ctx, upload)
                return None
        except Exception as exc:  # the single catch
            failure = error_of(exc, session._phase)
        return self._failed(session, ctx, failure)

    async def _attempts(self, session: StreamSession, ctx: Any) -> ProxyError | None:
        """Try until a connection is made or a failure is not to be retried."""
        for left in reversed(range(self._conf.max_attempts)):
            error = await self._attempt(session, ctx)
            if error is None:
                return None
            if not left or not error.will_retry():
                break
            self._services.retries += 1
            self._services.log.warning("retrying: %s: %s", session._info.peer, error)
        return error

    async def _attempt(self, session: StreamSession, ctx: Any) -> ProxyError | None:
        """Choose a peer and connect to it.

        Raises:
          Exception: what `connected_to_upstream` raised: no other attempt makes up for that.
        """
        services, filters = self._services, self._filters
        session._peer = None
        try:
            session._phase = "upstream_peer"
            peer = await filters.upstream_peer(session, ctx)
            if not isinstance(peer, StreamPeer):
                raise TypeError(f"upstream_peer returned {peer!r}: a StreamPeer is right")
        except Exception as exc:  # that attempt's error; its own retry mark decides
            error = error_of(exc, session._phase)
            error.decide_reuse(False)
            return error
        session._peer = peer
        session._phase = "connecting"
        try:
            session._upstream, info = await services.opener.open(peer.way, peer.alpn)
        except Exception as exc:  # a connector of the user's own may raise anything
            return self._connect_failed(session, ctx, peer, error_of(exc, session._phase))
        services.upstreams += 1
        services.connects += 1
        if filters.connected_to_upstream is not None:
            session._phase = "connected_to_upstream"
            await filters.connected_to_upstream(session, peer, Digest.of(info), ctx)
        return None

    def _connect_failed(
        self, session: StreamSession, ctx: Any, peer: StreamPeer, error: ProxyError
    ) -> ProxyError:
        error.as_up()
        callback = self._filters.fail_to_connect
        if callback is not None:
            session._phase = "fail_to_connect"
            try:
                returned = callback(session, peer, ctx, error)
            except Exception as exc:  # it may not fail: the error that was passed in stands
                log_failure_of(exc, session._phase)
            else:
                if isinstance(returned, ProxyError):
                    error = returned
        error.decide_reuse(False)
        error.as_up()
        return error

    # -- bytes both ways -------------------------------------------------------------------------

    async def _join(self, session: StreamSession, ctx: Any, upload: _Upload) -> None:
        """Carry bytes both ways until both sides have ended their output, or one is cut.

        Raises:
          ProxyError: a side broke, or nothing moved for too long.
          Exception: what a filter raised.
        """
        upload.direction, download = self._directions(session, ctx)
        session._phase = "upstream_data_filter"
        session._ahead_over = True
        upload.ahead_scope.cancel()
        upload.connected.set()
        failure: Exception | None = None
        with upload.download_scope:
            try:
                await download.run()
                await upload.ended.wait()
            except Exception as exc:  # raised again below, when the other direction has ended
                failure = exc
        upload.scope.cancel()
        await upload.ended.wait()
        if upload.error is not None:
            raise upload.error
        if failure is not None:
            raise failure

    def _directions(self, session: StreamSession, ctx: Any) -> tuple[Direction, Direction]:
        """Return the direction to the upstream, and the one from it."""
        conf, filters = self._conf, self._filters
        client, upstream, peer = session._transport, session._upstream, session._peer
        assert upstream is not None
        assert peer is not None
        limits = TunnelLimits(conf.tunnel_idle_timeout, conf.tunnel_half_close_timeout)
        write_timeout = peer.options.write_timeout

        def bound(name: str) -> tuple[Callable[[BodyChunk, bool], Any] | None, bool, str]:
            callback = getattr(filters, name)
            if callback is None:
                return None, False, name
            return (
                lambda chunk, last: callback(session, chunk, last, ctx),
                (name in filters.is_async),
                name,
            )

        up = Direction(
            client,
            ErrorSource.DOWNSTREAM,
            upstream,
            ErrorSource.UPSTREAM,
            limits,
            conf.write_timeout if write_timeout is None else write_timeout,
            *bound("downstream_data_filter"),
            session._read_from_client,
            session._sent_to_upstream,
        )
        down = Direction(
            upstream,
            ErrorSource.UPSTREAM,
            client,
            ErrorSource.DOWNSTREAM,
            limits,
            conf.write_timeout,
            *bound("upstream_data_filter"),
            session._read_from_upstream,
            session._sent_to_client,
        )
        return up, down

    async def _upload(
        self, session: StreamSession, upload: _Upload, session_scope: trio.CancelScope
    ) -> None:
        """Run the direction towards the upstream as a task: its failure is told, never raised."""
        try:
            with upload.scope:
                try:
                    with upload.ahead_scope:
                        await session._read_ahead()
                except ProxyError as exc:
                    upload.departure = exc
                    session_scope.cancel()
                    return
                await upload.connected.wait()
                assert upload.direction is not None
                first = bytes(session._ahead)
                session._ahead.clear()
                await upload.direction.run(first, ended=session._ahead_ended)
        except Exception as exc:  # the session fails with it, in the task that owns it
            upload.error = error_of(exc, "downstream_data_filter")
            upload.download_scope.cancel()
        finally:
            upload.ended.set()

    # -- errors and the end ----------------------------------------------------------------------

    def _failed(self, session: StreamSession, ctx: Any, error: ProxyError) -> ProxyError:
        """Show an error to the callback that wants to see it, and give the log its line."""
        callback = self._filters.error_while_proxy
        if callback is not None:
            session._phase = "error_while_proxy"
            try:
                returned = callback(session, session._peer, error, ctx)
            except Exception as exc:  # it may not fail: the error that was passed in stands
                log_failure_of(exc, session._phase)
            else:
                if isinstance(returned, ProxyError):
                    error = returned
        # That clients break off is everyday life below HTTP, where most know no other end.
        level = logging.INFO if error.esource is ErrorSource.DOWNSTREAM else logging.ERROR
        self._services.log.log(
            level,
            "Fail to proxy: %s, %s to %s",
            error,
            session._info.peer or "unknown",
            session._peer or "no peer",
        )
        return error

    def _shed(self, session: StreamSession) -> None:
        """Refuse a session beyond the limit (row R-05)."""
        self._services.sessions_shed += 1
        session._shed = True
        self._services.log.warning("max_sessions (%d) reached", self._conf.max_sessions)

    async def _log(self, session: StreamSession, ctx: Any) -> None:
        """Run ``logging``: last, once, shielded, with a deadline of its own."""
        callback = self._filters.logging
        if callback is None:
            return
        session._phase = "logging"
        seconds = self._conf.logging_timeout
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds) as scope:
            try:
                await callback(session, session.error, ctx)
            except Exception as exc:  # it may not fail: ignored, but told
                log_failure_of(exc, session._phase)
        if scope.cancelled_caught:
            self._services.log.error(
                "logging was cut off by logging_timeout (%g s): %s", seconds, session._info.peer
            )

    def _close(self, session: StreamSession) -> None:
        """Close both sides: properly where both have ended, else as a cut that each can see."""
        upstream = session._upstream
        if upstream is not None:
            self._services.upstreams -= 1
        for side in (session._transport, upstream):
            if side is not None and session.error is None:
                side.close_now()
            elif side is not None:
                side.abort()

    def _record(self, session: StreamSession) -> StreamRecord:
        info, error = session._info, session.error
        hello = session._hello
        name = hello.server_name if hello is not None else None
        if info.tls is not None:
            name = info.tls.sni
        protocol = "unix" if (info.local or "").startswith("unix:") else "tcp"
        duration = trio.current_time() - session._started
        return StreamRecord(
            client=info.peer,
            protocol="tls" if info.secure else protocol,
            server_name=name,
            status=_status(session),
            bytes_sent=session.bytes_to_client(),
            bytes_received=session.bytes_from_client(),
            duration=duration,
            upstream=None if session._peer is None else session._peer.name,
            error=str(error) if error is not None else None,
            started_at=wall_time() - duration,
        )


_STATUSES = {
    ErrorSource.DOWNSTREAM: 400,
    ErrorSource.UPSTREAM: 502,
    ErrorSource.INTERNAL: 500,
    ErrorSource.UNSET: 500,
}


def _status(session: StreamSession) -> int:
    error = session.error
    if error is None:
        return 503 if session._shed else 403 if session._dropped else 200
    if error.etype.name == "HTTPStatus" and error.etype.code is not None:
        return error.etype.code
    return _STATUSES[error.esource]
