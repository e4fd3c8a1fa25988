"""The trait: every phase of a request as a callback, in the order in which they run.

Subclass `ProxyHttp` and override what you need. Only `new_ctx` and `upstream_peer` must be. A
callback that is not overridden is never called.

Filters of one session that belong to different directions run in two tasks: a slow upload filter
never stalls the download. A callback without an ``await`` is atomic; callbacks that await may
interleave with those of the other direction at their own checkpoints. There is no lock.

A callback that may fail raises `ProxyError`; any other exception becomes an internal error with
that exception as its cause, its traceback is logged once, and the error path runs. What escapes a
callback ends its own session only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import attrs

from .._errors import ErrorSource, ErrorType, ProxyError
from ..cache._key import default_cache_key
from ..cache._policy import NoCacheReason, Uncacheable
from ..modules._compression import ResponseCompressionBuilder
from ..semantics._conditional import evaluate_conditions
from ..semantics._range import range_header
from ._plan import CALLBACKS, Plan, check_class, make_plan

if TYPE_CHECKING:
    import trio

    from .._headers import Headers
    from .._info import Digest
    from .._messages import BodyChunk, RequestHeader, ResponseHeader
    from .._peer import HttpPeer
    from ..cache._key import CacheKey
    from ..cache._meta import CacheMeta
    from ..cache._phase import ForcedFreshness, PurgeStatus
    from ..cache._policy import RespCacheable
    from ..cache._storage import HitHandler
    from ..modules._abc import HttpModules
    from ..semantics._range import RangeType
    from ._session import Session

CtxT = TypeVar("CtxT")

#: Kinds of a downstream error that mean that nobody is there to be answered.
CLIENT_GONE = frozenset({ErrorType.WriteError, ErrorType.ReadError, ErrorType.ConnectionClosed})
#: Characters of a request that a log line shows of one part (row R-11).
MAX_LOGGED = 1024


@attrs.frozen
class FailToProxy:
    """What became of a request that failed (Pingora's ``FailToProxy``).

    Attributes:
      error_code: The status that was answered, 0 where nothing could be.
      can_reuse_downstream: Whether the client's connection may be used again; honoured only for
        errors before a peer was chosen.
    """

    error_code: int
    can_reuse_downstream: bool = False


def escaped(text: str) -> str:
    """Return text of a request as a log may show it: printable, at most 1 KiB."""
    if len(text) > MAX_LOGGED:
        text = text[:MAX_LOGGED] + "..."
    return (
        text.encode("ascii", "backslashreplace").decode()
        if text.isprintable()
        else "".join(
            c if c.isprintable() and c.isascii() else c.encode("unicode_escape").decode()
            for c in text
        )
    )


@attrs.define(slots=False)
class ProxyHttp(ABC, Generic[CtxT]):
    """A proxy: one object whose callbacks see every request (Pingora's ``ProxyHttp``).

    ``CtxT`` is the type of the per-request context that `new_ctx` makes and that every other
    callback gets.
    """

    _trioproxy_plan: ClassVar[Plan]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the overrides of a new class, and remember them."""
        super().__init_subclass__(**kwargs)
        check_class(cls, ProxyHttp, CALLBACKS)
        cls._trioproxy_plan = make_plan(cls, ProxyHttp, CALLBACKS)

    # -- set-up ----------------------------------------------------------------------------------

    @abstractmethod
    def new_ctx(self) -> CtxT:
        """Return the context of a new request.

        When: once per request, after its head was read and before any other callback; never
        shared. An exception answers 500; no other callback runs then, as there is no context.
        Pingora: ``new_ctx``.
        """

    def init_downstream_modules(self, modules: HttpModules) -> None:
        """Add the modules of the client's side: ``modules.add_module(builder)``.

        When: once, when the object begins to be served. An exception keeps it from being served.
        Default: `trioproxy.modules.ResponseCompressionBuilder` at level 0, which a filter switches
        on; where you override this, add it yourself or do without. Pingora:
        ``init_downstream_modules``.
        """
        modules.add_module(ResponseCompressionBuilder())

    def init_upstream_modules(self, modules: HttpModules) -> None:
        """Add the modules of the upstream's side, which act before any filter and the cache.

        When: once, when the object begins to be served. Of a module's hooks those of the response
        are called. Default: none. Pingora: ``init_upstream_modules``.
        """

    def on_connection_reuse(self, session: Session, ctx: CtxT, prev_ctx: object) -> None:
        """Take over what the request before on the same connection has left.

        When: right behind `new_ctx`, where `persist_connection_context` gave something for the
        last request of a kept-alive HTTP/1 connection. An exception goes to `fail_to_proxy`.
        Default: nothing. Pingora: ``on_connection_reuse``.
        """

    # -- the request -----------------------------------------------------------------------------

    async def early_request_filter(self, session: Session, ctx: CtxT) -> None:
        """Set the session up: timeouts and other knobs.

        When: once, first of the filters. An exception goes to `fail_to_proxy`. Default: nothing.
        Pingora: ``early_request_filter``.
        """

    def allow_spawning_subrequest(self, session: Session, ctx: CtxT) -> bool:
        """Return True where callbacks of this request may make requests of their own.

        When: once, behind `early_request_filter` and before the modules, for subrequests too: there
        ``session.is_subrequest()`` is True, and False is usually right. With True
        ``session.subrequest_spawner`` makes them from here on; with False it is None. What the
        framework makes of itself, such as the renewal of what is stale in a cache, does not ask. An
        exception goes to `fail_to_proxy`. Default: False. Pingora: ``allow_spawning_subrequest``.
        """
        return False

    async def request_filter(self, session: Session, ctx: CtxT) -> bool:
        """Check or rewrite the request, or answer it.

        When: once. Edits of ``session.req_header()`` are seen by every later step. Return True
        where you answered by yourself: only `logging` runs then, and the connection is kept where
        it can be; having answered nothing is a mistake, logged and answered 500. False goes on.
        An exception goes to `fail_to_proxy`: ``raise ProxyError.status(403)`` refuses. Default:
        False. Pingora: ``request_filter``.
        """
        return False

    # -- the cache -------------------------------------------------------------------------------

    def request_cache_filter(self, session: Session, ctx: CtxT) -> None:
        """Switch caching on for this request: ``session.cache.enable(storage, ...)``.

        When: once, after `request_filter`, for every request. An exception is logged and the cache
        stays as it was. Default: nothing, so nothing is cached. Pingora: ``request_cache_filter``.
        """

    def cache_key_callback(self, session: Session, ctx: CtxT) -> CacheKey:
        """Return what a response is stored under.

        When: once, where the cache is enabled. Whatever makes two responses differ must be in the
        key, or one client gets what was meant for another. An exception is logged and switches the
        cache off for the request. Default: scheme, authority (lower case, without the default
        port), target, and GET for both GET and HEAD; Pingora has no default. Pingora:
        ``cache_key_callback``.
        """
        return default_cache_key(session.req_header())

    def is_purge(self, session: Session, ctx: CtxT) -> bool:
        """Return True where the request is to delete what is stored under its key.

        When: once for every request, after the key is known. Check who asks before you say so.
        An exception goes to `fail_to_proxy`. Default: False. Pingora: ``is_purge``.
        """
        return False

    def purge_response_filter(
        self,
        session: Session,
        ctx: CtxT,
        purge_status: PurgeStatus,
        purge_response: ResponseHeader,
    ) -> None:
        """Rewrite the answer to a purge: 200, 404, or 405 where the cache is off, without content.

        When: once per purge. An exception answers 500. Default: nothing. Pingora:
        ``purge_response_filter``.
        """

    async def cache_hit_filter(
        self,
        session: Session,
        meta: CacheMeta,
        hit_handler: HitHandler,
        is_fresh: bool,
        ctx: CtxT,
    ) -> ForcedFreshness | None:
        """Look at what was found in the cache, and overrule its freshness.

        When: after each look-up that found the right variant, fresh or stale; again after a wait
        for another request that fills. An exception is logged and counts as a miss. Default: None,
        nothing is overruled. Pingora: ``cache_hit_filter``.
        """
        return None

    def cache_miss(self, session: Session, ctx: CtxT) -> None:
        """Say whether a response that is not stored yet is to be.

        When: after a look-up that found nothing, before the upstream is asked; not for what is
        stale. Call ``session.cache.cache_miss()``, or ``session.cache.disable(reason)``. An
        exception goes to `fail_to_proxy`. Default: the former. Pingora: ``cache_miss``.
        """
        session.cache.cache_miss()

    async def proxy_upstream_filter(self, session: Session, ctx: CtxT) -> bool:
        """Decide whether the request may go upstream.

        When: once, before the first attempt. Return True to go on. With False the session ends:
        with your answer, or with an empty 502; the connection is kept where it can be. An
        exception goes to `fail_to_proxy`. Default: True. Pingora: ``proxy_upstream_filter``.
        """
        return True

    # -- each attempt ----------------------------------------------------------------------------

    @abstractmethod
    async def upstream_peer(self, session: Session, ctx: CtxT) -> HttpPeer:
        """Return where to connect.

        When: once per attempt; return another peer on the next call to fail over. An exception is
        the attempt's error, and its own retry mark decides. Pingora: ``upstream_peer``.
        """

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: CtxT, e: ProxyError
    ) -> ProxyError:
        """Look at a failure to connect, and mark it to be retried.

        When: once per connection that could not be made. Nothing was sent, so any method may be
        retried: ``e.set_retry(True)``. Return the error to use from here on; its source is set to
        upstream. It may not fail: an exception is logged and ``e`` stands. Default: ``e``
        unchanged, so connect errors are not retried. Pingora: ``fail_to_connect``.
        """
        return e

    async def connected_to_upstream(
        self,
        session: Session,
        reused: bool,
        peer: HttpPeer,
        fd: int,
        digest: Digest | None,
        ctx: CtxT,
    ) -> None:
        """See the connection of an attempt, from the pool (``reused``) or new.

        When: once per attempt that got one, before `upstream_request_filter`. ``fd`` is for
        looking at, -1 where there is none. An exception fails the attempt (`error_while_proxy`).
        Default: nothing. Pingora: ``connected_to_upstream``.
        """

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: CtxT
    ) -> None:
        """Rewrite the request that goes to the origin.

        When: once per attempt, before a byte of it is sent. ``upstream_request`` is a fresh copy
        of the client's request without hop-by-hop fields; edits go to the origin only. Remove
        Content-Length here if `request_body_filter` changes the length. An exception fails the
        attempt (`error_while_proxy`). Default: nothing. Pingora: ``upstream_request_filter``.
        """

    async def custom_forwarding(
        self,
        session: Session,
        ctx: CtxT,
        custom_message_to_upstream: trio.MemorySendChannel[bytes] | None,
        custom_message_to_downstream: trio.MemorySendChannel[bytes],
    ) -> None:
        """Take the channels by which messages of your own go to either side.

        When: once per attempt of a client or an origin that speaks a protocol of your own, before
        its request goes out; and once behind the 101 of a WebSocket whose messages are filtered.
        Keep the channels to send messages later; 128 of them may wait in each. Such a message
        passes no filter. Closing a channel ends that direction and nothing else; when the attempt
        is over it is closed, so that sending raises `trio.ClosedResourceError`. The first one is None where the origin
        has no messages; what goes to a client that has none is dropped. An exception fails the
        attempt (`error_while_proxy`). Default: nothing. Pingora: ``custom_forwarding``.
        """

    async def downstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: CtxT, final_hop: bool
    ) -> bytes | None:
        """Return what goes to the origin in place of a message of the client; None drops it.

        When: for every message from a client that speaks a protocol of your own, and for every
        message of a WebSocket that is filtered (there ``custom_message`` is a `TextMessage` or a
        `BinaryMessage`), in a task of its own. With ``final_hop`` the origin has no messages, and
        the result goes nowhere. Await to slow the client down. An exception fails the attempt
        (`error_while_proxy`). Default: the message. Pingora:
        ``downstream_custom_message_proxy_filter``.
        """
        return custom_message

    async def upstream_custom_message_proxy_filter(
        self, session: Session, custom_message: bytes, ctx: CtxT, final_hop: bool
    ) -> bytes | None:
        """Return what goes to the client in place of a message of the origin; None drops it.

        When: for every message from such an origin, as above; with ``final_hop`` the client has no
        messages. A response ends for the client when the messages before its end have gone. An
        exception fails the attempt (`error_while_proxy`). Default: the message. Pingora:
        ``upstream_custom_message_proxy_filter``.
        """
        return custom_message

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: CtxT
    ) -> None:
        """Rewrite a piece of the request's body: set ``body.data``.

        When: for every piece, in a task of its own beside the response. ``end_of_stream`` is True
        exactly once per attempt for a body that ended properly, with ``data`` None where nothing
        else carried it; a request without a body gets one ``(None, True)``. A repeated attempt
        sees what was read so far again, as one piece. None and ``b""`` send nothing of this piece.
        Await to slow the upload down. An exception fails the attempt (`error_while_proxy`).
        Default: nothing. Pingora: ``request_body_filter``.
        """

    # -- the response ----------------------------------------------------------------------------

    async def adjust_upstream_modules(
        self, session: Session, upstream_response: ResponseHeader, end_of_stream: bool, ctx: CtxT
    ) -> None:
        """Set the modules of the upstream's side up for a response, before they act on it.

        When: for every head from the origin, each informational one included;
        ``session.upstream_modules_ctx.get(Type)`` is the module. ``end_of_stream`` says that
        nothing follows. An exception fails the attempt (`error_while_proxy`). Default: nothing.
        Pingora: ``adjust_upstream_modules``.
        """

    async def upstream_response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: CtxT
    ) -> None:
        """Rewrite a response head as it came from the origin, before it would be cached.

        When: for every head, each informational one included. An exception fails the attempt
        (`error_while_proxy`). Default: nothing. Pingora: ``upstream_response_filter``.
        """

    def response_cache_filter(
        self, session: Session, resp: ResponseHeader, ctx: CtxT
    ) -> RespCacheable:
        """Decide whether a response is stored, and for how long it is fresh.

        When: on the final head from the origin, behind `upstream_response_filter`, where the cache
        is enabled or bypassed; on the merged head when the origin answered 304. Return
        ``Cacheable(meta)`` or ``Uncacheable(reason)``; `trioproxy.cache.resp_cacheable` helps. An
        exception is logged and nothing is stored. Default: uncacheable. Pingora:
        ``response_cache_filter``.
        """
        return Uncacheable(NoCacheReason.Custom("default"))

    def cache_vary_filter(self, meta: CacheMeta, ctx: CtxT, req: RequestHeader) -> bytes | None:
        """Return what tells the variants of a resource apart, None where there is one only.

        When: on a look-up that found the primary slot, and when a response is stored; a pure
        function of its arguments. `trioproxy.cache.VarianceBuilder` makes it from the fields that
        Vary names. Default: None, Vary is ignored. Pingora: ``cache_vary_filter``.
        """
        return None

    def cache_not_modified_filter(self, session: Session, resp: ResponseHeader, ctx: CtxT) -> bool:
        """Return True where the client's copy is as good as ``resp``: it gets a 304.

        When: on a hit, and on a response whose request was rewritten for the cache. An exception
        is logged and the whole response is sent. Default: RFC 9110 section 13. Pingora:
        ``cache_not_modified_filter``.
        """
        return evaluate_conditions(session.req_header(), resp) == 304

    def range_header_filter(self, session: Session, resp: ResponseHeader, ctx: CtxT) -> RangeType:
        """Return the part of the content that the client gets, and make ``resp`` say so.

        When: behind `cache_not_modified_filter`, unless ``session.ignore_downstream_range``.
        Default: single and several ranges (RFC 9110 section 14). Pingora: ``range_header_filter``.
        """
        return range_header(session.req_header(), resp)

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: CtxT
    ) -> None:
        """Rewrite a response head on its way to this client.

        When: for every head, each informational one included. Remove Content-Length here if a body
        filter changes the length. An exception fails the attempt (`error_while_proxy`). Default:
        nothing. Pingora: ``response_filter``.
        """

    def upstream_response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: CtxT
    ) -> float | Awaitable[float | None] | None:
        """Rewrite a piece of the response's body as it came: set ``body.data``.

        When: for every piece; ``def`` and ``async def`` both do. Return seconds to wait before the
        piece goes on, which slows the reading from the origin down. ``end_of_stream`` is True
        exactly once for a body that ended properly. A response without a body gets no call. An
        exception fails the attempt (`error_while_proxy`). Default: None. Pingora:
        ``upstream_response_body_filter``.
        """
        return None

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: CtxT
    ) -> float | Awaitable[float | None] | None:
        """Rewrite a piece of the response's body on its way to this client: set ``body.data``.

        When: for every piece, after `upstream_response_body_filter`; ``def`` and ``async def`` both
        do. Return seconds to wait before this piece is written. ``end_of_stream`` as there. An
        exception fails the attempt (`error_while_proxy`). Default: None. Pingora:
        ``response_body_filter``.
        """
        return None

    def upstream_response_trailer_filter(
        self, session: Session, upstream_trailers: Headers, ctx: CtxT
    ) -> None:
        """Rewrite the response's trailers as they came, in place.

        When: once, for a response with trailers, after the body's end. An exception fails the
        attempt. Default: nothing. Pingora: ``upstream_response_trailer_filter``.
        """

    async def response_trailer_filter(
        self, session: Session, upstream_trailers: Headers, ctx: CtxT
    ) -> bytes | None:
        """Rewrite the trailers on their way to this client, or replace them by bytes.

        When: once, after `upstream_response_trailer_filter`. Bytes that you return become a last
        piece of the body, in place of the trailers. An exception is logged and the trailers go on
        as they were. Default: None. Pingora: ``response_trailer_filter``.
        """
        return None

    # (custom_forwarding and the custom message filters have their places here.)

    # -- errors and the end ----------------------------------------------------------------------

    def error_while_proxy(
        self, peer: HttpPeer, session: Session, e: ProxyError, ctx: CtxT, client_reused: bool
    ) -> ProxyError:
        """Look at the failure of an attempt that had a connection, and decide about a retry.

        When: once per such attempt, a failing filter's included. ``client_reused`` says that the
        connection came from the pool, so that it may just have been stale. Nothing is retried once
        a final response head went out or more than 65,536 bytes of the body were read. It may not
        fail: an exception is logged and ``e`` stands. Default: adds the peer to the context, and
        settles an open mark to ``client_reused``. Pingora: ``error_while_proxy``.
        """
        error = e.more_context(f"Peer: {peer}")
        error.decide_reuse(client_reused and not session.retry_buffer_truncated())
        return error

    def should_serve_stale(self, session: Session, ctx: CtxT, error: ProxyError | None) -> bool:
        """Return True to serve what is stored although it is stale.

        When: with None where the asset is within its stale-while-revalidate time and somebody
        renews it; with the error where the origin failed, or answered 5xx (its status is in the
        error), the asset is within its stale-if-error time and nothing was sent. It may not fail.
        Default: True for an error of the upstream, False without one. Pingora:
        ``should_serve_stale``.
        """
        return error is not None and error.esource is ErrorSource.UPSTREAM

    async def fail_to_proxy(self, session: Session, e: ProxyError, ctx: CtxT) -> FailToProxy:
        """Answer a request that has failed for good.

        When: once, before `logging`. It may not fail: an exception is logged and answered 500.
        Default: the status of an `ErrorType.HTTPStatus`; 502 for an error of the upstream; nothing
        and code 0 where the client is gone; 400 for another error of the client; 500 otherwise.
        Pingora: ``fail_to_proxy``.
        """
        if e.etype.name == "HTTPStatus" and e.etype.code is not None:
            code = e.etype.code
        elif e.esource is ErrorSource.UPSTREAM:
            code = 502
        elif e.esource is ErrorSource.DOWNSTREAM:
            code = 0 if e.etype in CLIENT_GONE else 400
        else:
            code = 500
        if code:
            await session.respond_error(code)
        return FailToProxy(code, can_reuse_downstream=False)

    def suppress_error_log(self, session: Session, ctx: CtxT, error: ProxyError) -> bool:
        """Return True to keep the line of a final error out of the log.

        When: after `fail_to_proxy`. It may not fail. Default: False. Pingora:
        ``suppress_error_log``.
        """
        return False

    def request_summary(self, session: Session, ctx: CtxT) -> str:
        """Return the words by which a log line names the request.

        When: for each such line. It may not fail. Default: ``METHOD PATH, Host: HOST``, escaped.
        Pingora: ``request_summary``.
        """
        head = session.req_header()
        return f"{head.method} {escaped(head.path)}, Host: {escaped(head.authority)}"

    async def logging(self, session: Session, e: ProxyError | None, ctx: CtxT) -> None:
        """See how the request ended; write your access log here.

        When: exactly once, last, on success, error, early answer and cancellation, shielded from
        cancellation for ``ServerConf.logging_timeout`` (one second). The response is out: writing
        is useless. It may not fail. Default: nothing. Pingora: ``logging``.
        """

    def persist_connection_context(self, session: Session, ctx: CtxT) -> object | None:
        """Return what the next request on this connection is to have in `on_connection_reuse`.

        When: last of all, behind `logging`, where an HTTP/1 connection is kept; never over HTTP/2,
        whose requests share their connection. None leaves nothing. It may not fail: an exception
        is logged and nothing is left. Default: None. Pingora: ``persist_connection_context``.
        """
        return None
