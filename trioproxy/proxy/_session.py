"""What a filter sees of one request and its response, and what it may do to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import trio

from .._errors import ErrorSource, ErrorType, ProxyError
from .._headers import Headers
from .._info import Digest
from .._messages import (
    END,
    Data,
    RequestEvent,
    RequestHeader,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from .._options import DEFAULT
from .._peer import HttpPeer
from .._websocket import WebSocketOptions
from ..cache._http_cache import HttpCache
from ..codec._h1_write import Framing, encode_request_head
from ..modules._abc import ModulesCtx
from ..modules._compression import ResponseCompression, upstream_compression
from ..semantics._forwarding import append_forwarded, append_via, set_forwarded
from ..upstream._fetch import Fetched, fetch
from ._body import RequestBody
from ._chain import RESPONSE_HOOKS, Row, response_row
from ._failure import canned_head
from ._websocket import MessageFilter

if TYPE_CHECKING:
    from .._custom import MessageChannel
    from .._peer import PeerOptions, Proxy
    from ..streams._abc import DownstreamStream, UpstreamStream
    from ._bound import Filters
    from ._services import Services
    from ._subrequest import SubrequestCtx, SubrequestSpawner


@attrs.frozen
class Peeked:
    """What `Session.peek_request_body` found.

    Attributes:
      data: The body's first bytes, at most as many as were asked for.
      complete: Whether they are the whole body.
    """

    data: bytes
    complete: bool


class Session:
    """One request and its response, as every callback gets it (Pingora's ``Session``).

    Filters of the two directions run in two tasks. A callback without an ``await`` is atomic;
    callbacks that await may interleave with those of the other direction at their own checkpoints.
    There is no lock.
    """

    __slots__ = (
        "_asked",
        "_asked_at",
        "_attempts",
        "_body",
        "_body_bytes_sent",
        "_cache",
        "_continue_sent",
        "_failed",
        "_filters",
        "_finished",
        "_hedge",
        "_held",
        "_ignore_info",
        "_kept_messages",
        "_modules",
        "_not_modified",
        "_over_tunnel",
        "_peer_name",
        "_phase",
        "_plain",
        "_request",
        "_response",
        "_row",
        "_sent",
        "_services",
        "_started",
        "_upstream",
        "_upstream_compression",
        "_upstream_modules",
        "downstream_session",
        "error",
        "ignore_downstream_range",
        "subrequest_ctx",
        "subrequest_spawner",
    )

    def __init__(
        self,
        services: Services,
        stream: DownstreamStream,
        request: RequestHeader,
        pending: list[RequestEvent],
        filters: Filters,
    ) -> None:
        self._services = services
        self._filters = filters
        #: The modules of either side; None where nobody has asked for one yet.
        self._modules: ModulesCtx | None = None
        self._upstream_modules: ModulesCtx | None = None
        self._upstream_compression: ResponseCompression | None = None
        #: The modules that the response goes through, and whether it goes past them.
        self._row: Row[ResponseEvent] | None = None
        self._plain = False
        #: The client's side of the exchange, a message stream.
        self.downstream_session = stream
        self._request = request
        facts = request.facts
        expected = facts.has_body if facts is not None else bool(pending and pending[0] is not END)
        self._body = RequestBody(stream, expected, pending)
        self._response: ResponseHeader | None = None
        #: The client's messages that an attempt has taken, for another one.
        self._kept_messages: list[bytes] = []
        self._body_bytes_sent = 0
        self._finished = False
        self._continue_sent = False
        self._ignore_info = False
        self._started = trio.current_time()
        self._phase = ""
        self.error: ProxyError | None = None
        #: Whether `fail_to_proxy` has been called.
        self._failed = False
        #: How often a peer was chosen, and the seconds after which another attempt joins one.
        self._attempts = 0
        self._hedge: float | None = None
        #: The peer whose connection the running attempt holds, and whether it was reused.
        self._held: tuple[HttpPeer, bool] | None = None
        self._peer_name: str | None = None
        self._upstream: UpstreamStream | None = None
        #: Whether the running attempt's request is settled.
        self._asked = False
        #: What is laid over a tunnel, should there be one.
        self._over_tunnel: MessageFilter | None = None
        self._cache: HttpCache | None = None
        #: What this request is to the one that made it, None for a client's own.
        self.subrequest_ctx: SubrequestCtx | None = None
        #: Makes requests inside of this one, where `allow_spawning_subrequest` has allowed that.
        self.subrequest_spawner: SubrequestSpawner | None = None
        #: The request that the last attempt sent, when it did (wall clock), and the 304 to it.
        self._sent: RequestHeader | None = None
        self._asked_at = 0.0
        self._not_modified: ResponseHeader | None = None
        #: Whether a Range of the client is passed over, where a cache has the whole content.
        self.ignore_downstream_range = False

    def __repr__(self) -> str:
        return f"<Session {self._request.method} {self._request.path!r} from {self.client_addr()}>"

    @property
    def cache(self) -> HttpCache:
        """What this request has to do with the cache; `request_cache_filter` switches it on."""
        cache = self._cache
        if cache is None:
            cache = self._cache = HttpCache(self._services.spawn())
        return cache

    @property
    def downstream_modules_ctx(self) -> ModulesCtx:
        """This request's instances of the modules that `init_downstream_modules` has added.

        Ask for one that acts on the request in `early_request_filter`, for one that acts on the
        response before its head is written.
        """
        if self._modules is None:
            self._modules = ModulesCtx(self._filters.modules)
        return self._modules

    @property
    def upstream_modules_ctx(self) -> ModulesCtx:
        """This request's instances of the modules that `init_upstream_modules` has added.

        An instance sees the response of every attempt: it begins anew with each final head.
        """
        if self._upstream_modules is None:
            self._upstream_modules = ModulesCtx(self._filters.upstream_modules)
        return self._upstream_modules

    @property
    def upstream_compression(self) -> ResponseCompression:
        """The compression that acts on what the origin sends, before the filters and the cache.

        It is off until it is adjusted. What it made is what the cache stores, once for all clients;
        the compression on the client's side then decodes it for those that do not take it. Adjust it
        in `request_filter` or before, for every request that may be answered with what was stored
        like that.
        """
        if self._upstream_compression is None:
            self._upstream_compression = upstream_compression(self)
        return self._upstream_compression

    @property
    def _with_modules(self) -> bool:
        """Whether there are instances of modules on either side."""
        return (
            self._modules is not None
            or self._upstream_modules is not None
            or self._upstream_compression is not None
        )

    # -- the request -----------------------------------------------------------------------------

    def req_header(self) -> RequestHeader:
        """Return the request's head; edits are seen by every later step."""
        return self._request

    def get_header(self, name: str | bytes) -> str | None:
        """Return the first value of a request field, or None."""
        return self._request.headers.get(name)

    def get_header_bytes(self, name: str | bytes) -> bytes:
        """Return the first value of a request field, or ``b""``."""
        return self._request.headers.get_bytes(name) or b""

    async def read_request_body(self) -> bytes | None:
        """Return the next bytes of the request's body, or None when it is finished.

        What a filter reads before the proxying starts is still proxied, as long as it fits the
        replay buffer of 65,536 bytes; a body of which more was read cannot be sent on, and the
        request then fails with an internal error. Where the client waits for
        ``100 Continue``, it is sent (row H1-23).

        Raises:
          ProxyError: the client left, stalled, or its body is malformed.
        """
        await self._invite_body()
        return await self._body.read()

    async def peek_request_body(self, limit: int) -> Peeked:
        """Read ahead in the request's body without consuming it.

        May be called from `request_filter` on, so that a peer can be chosen by the body; the bytes
        then travel as if nobody had looked. Where ``complete`` is False the limit was reached:
        refuse (``raise ProxyError.status(413)``) or decide without the rest. Where the client waits
        for ``100 Continue``, it is sent.

        Args:
          limit: Bytes to read at most; they are held in memory beside the session's buffers.

        Raises:
          ProxyError: the client left, stalled, or its body is malformed.
        """
        if limit < 0:
            raise ValueError(f"limit={limit}: 0 or more bytes are right")
        await self._invite_body()
        return Peeked(*await self._body.peek(limit))

    async def _invite_body(self) -> None:
        """Send the 100 Continue that the client may wait for (row H1-23)."""
        facts = self._request.facts
        if facts is not None and facts.expect_continue and not self._body.ended:
            await self.write_continue_response()

    async def drain_request_body(self) -> None:
        """Read the request's body to its end and drop it, within the total drain timeout."""
        with trio.move_on_after(self.downstream_session.drain_timeout) as scope:
            while await self.read_request_body() is not None:
                pass
        if scope.cancelled_caught:
            raise ProxyError.explain(
                ErrorType.ReadTimedout, "draining the request's body"
            ).into_down()

    def is_body_done(self) -> bool:
        """Tell whether the request's body was read to its end."""
        return self._body.done

    def is_body_empty(self) -> bool:
        """Tell whether the request has no body, or one of length zero."""
        return not self._body.expected

    def body_bytes_read(self) -> int:
        """Return the payload bytes of the request read so far."""
        return self._body.bytes_read

    def retry_buffer_truncated(self) -> bool:
        """Tell whether more of the body was read than can be sent again (65,536 bytes)."""
        return self._body.truncated

    def is_upgrade_req(self) -> bool:
        """Tell whether the request asks to switch protocols.

        It is HTTP/1.1 with an Upgrade field, or an extended CONNECT of HTTP/2 (RFC 8441).
        """
        return self._request.version != "HTTP/1.0" and b"upgrade" in self._request.headers

    def is_connect_req(self) -> bool:
        """Tell whether the request asks for a tunnel to the target that it names: CONNECT."""
        facts = self._request.facts
        return facts is not None and facts.connect is not None

    def connect_peer(
        self, *, proxy: Proxy | None = None, options: PeerOptions | None = None
    ) -> HttpPeer:
        """Return the target of a CONNECT request as a peer, which `upstream_peer` may return.

        Args:
          proxy: The HTTP CONNECT proxy that leads there, None for a direct way.
          options: Timeouts and socket options.

        Raises:
          ValueError: the request is no CONNECT.
        """
        facts = self._request.facts
        target = None if facts is None else facts.connect
        if target is None:
            raise ValueError(f"{self._request.method} has no such target: CONNECT has")
        return HttpPeer(target.host, target.port, proxy=proxy, options=options or DEFAULT)

    def was_upgraded(self) -> bool:
        """Tell whether the exchange became a tunnel: a 101 was sent, or a 2xx to CONNECT."""
        response = self._response
        return response is not None and self._request.switched_by(response.status)

    def is_http2(self) -> bool:
        """Tell whether the client speaks HTTP/2."""
        return self._request.version == "HTTP/2"

    def is_subrequest(self) -> bool:
        """Tell whether the request was made by another request: `subrequest_ctx` says what for."""
        return self.subrequest_ctx is not None

    def is_custom(self) -> bool:
        """Tell whether the client speaks a protocol of your own (`trioproxy.custom`)."""
        return self.downstream_session.messages is not None

    def downstream_custom_message(self) -> MessageChannel | None:
        """Return the client's messages where it speaks a protocol of your own, else None.

        The engine takes them from each attempt's start until the response has ended: receive them
        yourself only where you answer the request by yourself.
        """
        return self.downstream_session.messages

    def client_addr(self) -> str | None:
        """Return the client's address as text (``127.0.0.1:5000``), None for unnamed sockets."""
        return self.downstream_session.info.peer

    def server_addr(self) -> str | None:
        """Return the address the client connected to, as text."""
        return self.downstream_session.info.local

    def from_trusted_proxy(self) -> bool:
        """Tell whether the request comes from one of ``ServerConf.trusted_proxies``.

        Where a PROXY header was believed, it is whom it announces that counts: whoever sends the
        header passes the client's bytes on, and what the client wrote into them is its own word.
        """
        trusted = self._services.conf.trusted_proxies
        return bool(trusted.entries) and self.downstream_session.info.peer in trusted

    def digest(self) -> Digest:
        """Return the facts of the client's connection: addresses, times, what TCP knows of it."""
        return Digest.of(self.downstream_session.info)

    def request_summary(self) -> str:
        """Return the built-in one-line summary of the request, escaped for a log."""
        return self._services.summary(self)

    def to_h1_raw(self) -> bytes:
        """Return the request's head as HTTP/1.1 bytes."""
        return encode_request_head(self._request, Framing.NONE)

    def as_downstream(self) -> DownstreamStream:
        """Return the client's side of the exchange."""
        return self.downstream_session

    def is_process_shutting_down(self) -> bool:
        """Tell whether the server is draining."""
        return self._services.draining

    # -- the response ----------------------------------------------------------------------------

    def response_written(self) -> ResponseHeader | None:
        """Return the last response head that was written, or None."""
        return self._response

    def response_started(self) -> bool:
        """Tell whether a final response head went out: nothing can be retried any more."""
        response = self._response
        return response is not None and (response.status >= 200 or response.status == 101)

    def body_bytes_sent(self) -> int:
        """Return the payload bytes of the response written so far."""
        return self._body_bytes_sent

    async def write_response_header(
        self, resp: ResponseHeader, end_of_stream: bool = False
    ) -> None:
        """Write a response head.

        Informational heads may be written repeatedly before the final one; a second final head is
        ignored with a warning.

        Raises:
          ProxyError: the client left.
          TypeError: it is no `ResponseHeader`.
        """
        if not isinstance(resp, ResponseHeader):
            raise TypeError(f"{resp!r} is not a response head: a ResponseHeader is right")
        if self.response_started():
            self._services.log.warning(
                "a second response head is ignored: %s", self.request_summary()
            )
            return
        if end_of_stream:
            await self._send_events(resp, END)
        else:
            await self._send_events(resp)

    async def write_response_header_ref(
        self, resp: ResponseHeader, end_of_stream: bool = False
    ) -> None:
        """Write a copy of a response head, so that later edits of it change nothing."""
        await self.write_response_header(resp.copy(), end_of_stream)

    async def write_response_body(self, data: bytes | None, end_of_stream: bool) -> None:
        """Write a piece of the response's body; without data and end it does nothing.

        Raises:
          ProxyError: the client left; no head was written; or the body does not fit its
            Content-Length.
        """
        if data:
            await self._send_events(Data(bytes(data), end_of_stream))
        elif end_of_stream and not self._finished:
            await self._send_events(END)

    async def write_response_trailers(self, trailers: Headers) -> None:
        """Write the trailers and end the response; an HTTP/1.0 client gets the end alone."""
        await self._send_events(Trailers(trailers), END)

    async def respond_error(self, code: int) -> None:
        """Answer with an empty canned response; see `respond_error_with_body`."""
        await self.respond_error_with_body(code, b"")

    async def respond_error_with_body(self, code: int, body: bytes) -> None:
        """Answer with a canned head and a body, and close the connection afterwards.

        Does nothing where a final response head is already out.
        """
        head = canned_head(self._services.conf.server_name, code, body)
        await self.write_error_response(head, body)

    async def write_error_response(self, resp: ResponseHeader, body: bytes) -> None:
        """Answer with your own head and a body, and close the connection afterwards.

        Does nothing where a final response head is already out. The modules do not see it.

        Raises:
          ProxyError: the client left.
          ValueError: the status is that of an informational response, which answers nothing.
        """
        if resp.status < 200:
            raise ValueError(f"status {resp.status} does not end a request: 200 to 999 are right")
        if self.response_started():
            return
        self.downstream_session.keepalive = None
        self._plain = True
        if body:
            await self._send_events(resp, Data(body, True))
        else:
            await self._send_events(resp, END)

    async def write_continue_response(self) -> None:
        """Send ``100 Continue``, unless something was already written."""
        if self._response is None and not self._continue_sent:
            self._continue_sent = True
            await self._send_events(ResponseHeader(100))

    async def finish_body(self) -> None:
        """End a response whose head was written; does nothing where it has ended."""
        if self.response_started() and not self._finished:
            await self._send_events(END)

    async def finish(self) -> None:
        """Do the same as `finish_body`; the connection is settled by the server."""
        await self.finish_body()

    async def shutdown(self) -> None:
        """Give the exchange up: the client sees that its response was cut."""
        self.downstream_session.keepalive = None
        await self.downstream_session.aclose()

    async def _send_events(self, *events: ResponseEvent) -> None:
        """Send events of the response through the modules, and count them: the one way out."""
        row = None
        if self._modules is not None and not self._plain and not self.was_upgraded():
            row = self._row_for(self._modules, events)
            if row is not None:
                events = tuple(await row.pass_on(events))
        while True:
            before = (self._body_bytes_sent, self._finished, self._response)
            for event in events:
                kind = type(event)
                if kind is Data:
                    self._body_bytes_sent += len(event.data)  # type: ignore[union-attr]
                    if event.end:  # type: ignore[union-attr]
                        self._finished = True
                elif kind is ResponseHeader:
                    self._response = event  # type: ignore[assignment]
                elif event is END:
                    self._finished = True
            if events:
                try:
                    await self.downstream_session.send(*events)
                except ProxyError as exc:
                    if exc.esource is not ErrorSource.DOWNSTREAM:  # refused: nothing was sent
                        self._body_bytes_sent, self._finished, self._response = before
                    raise
            if row is None or not row.more:
                return
            events = tuple(await row.go_on())

    def _row_for(
        self, modules: ModulesCtx, events: tuple[ResponseEvent, ...]
    ) -> Row[ResponseEvent] | None:
        """Return the modules that events of the response go through; a tunnel has none.

        For what is to come those count that exist at its head. An informational head that comes
        alone has a row of its own: a task beside may send it while modules look at the final one.
        """
        first = events[0]
        if type(first) is ResponseHeader:
            acting = modules.with_hook(*RESPONSE_HOOKS)
            row = response_row(self, acting) if acting else None
            if len(events) == 1 and first.status < 200:
                return row
            self._row = row
        row = self._row
        if row is not None and row.lost:
            raise ProxyError.explain(
                ErrorType.InternalError,
                "a module was not through with a piece of the response, which is lost",
            ).into_in()
        return row

    # -- the upstream ----------------------------------------------------------------------------

    def filter_websocket_messages(self, options: WebSocketOptions | None = None) -> None:
        """Filter the messages of this session's WebSocket, should it become one.

        They go through `downstream_custom_message_proxy_filter` and
        `upstream_custom_message_proxy_filter`, and `custom_forwarding` gets the channels to put
        others in; the body filters see nothing of the WebSocket then. Call it before the request
        goes to the origin: in `upstream_request_filter` at the latest.

        Args:
          options: Bounds, a `trioproxy.websocket.WebSocketOptions`; None takes the defaults.

        Raises:
          RuntimeError: the request has gone out; or wsproto is not installed, which the extra
            ``websocket`` brings.
        """
        if self._asked:
            raise RuntimeError(
                "filter_websocket_messages() came too late: upstream_request_filter is the last "
                "callback that may call it"
            )
        self._over_tunnel = MessageFilter(options or WebSocketOptions())

    def upstream_body_bytes_received(self) -> int:
        """Return the payload bytes that the last attempt received from the origin."""
        return self._upstream.body_bytes_received if self._upstream is not None else 0

    def upstream_write_pending_time(self) -> float:
        """Return the seconds that the last attempt was parked in writing to the origin."""
        return self._upstream.write_pending_time if self._upstream is not None else 0.0

    def set_forwarding_fields(
        self,
        upstream_request: RequestHeader,
        *,
        trusted: bool | None = None,
        via: str | None = None,
        forwarded: bool = False,
    ) -> None:
        """Tell the origin who asks, in a request that `upstream_request_filter` has in hand.

        Sets X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host anew; the engine by itself adds
        none of them, and drops none that the client sent.

        Args:
          upstream_request: The request that goes to the origin.
          trusted: Believe what the client sent of these fields, and append to it; None does so where
            `from_trusted_proxy` is true.
          via: Append this name to Via (RFC 9110 section 7.6.3).
          forwarded: Append an element to Forwarded (RFC 7239) as well; where the client is not
            trusted, what it sent of that field is dropped.
        """
        if trusted is None:
            trusted = self.from_trusted_proxy()
        request = self._request
        headers = upstream_request.headers
        client, host = self.client_addr(), request.authority
        set_forwarded(headers, client=client, proto=request.scheme, host=host, trusted=trusted)
        if forwarded:
            if not trusted:
                headers.remove(b"forwarded")
            append_forwarded(headers, client=client, proto=request.scheme, host=host)
        if via is not None:
            append_via(headers, request.version, via)

    async def fetch(
        self,
        peer: HttpPeer,
        request: RequestHeader,
        content: bytes = b"",
        *,
        timeout: float = 10.0,
        max_bytes: int = 65536,
    ) -> Fetched:
        """Ask an origin something on the side, over the pool's connections.

        It passes by every callback and module. Redirects are answers like others.

        Args:
          peer: Whom to ask.
          request: The head; Host is the peer's own where it says nothing else.
          content: The content.
          timeout: Seconds for all of it.
          max_bytes: Bytes of content that the answer may have; they are held in memory.

        Returns:
          What was answered, as ``head`` and ``body``.

        Raises:
          ProxyError: there is no such answer; its source is upstream.
        """
        pool = self._services.pool
        return await fetch(pool, peer, request, content, timeout=timeout, max_bytes=max_bytes)

    # -- knobs -----------------------------------------------------------------------------------

    def hedge(self, delay: float | None) -> None:
        """Have a second attempt join one that is not answered in time; the first answer wins.

        To be called in `upstream_peer` or before. `upstream_peer` is called again for the second
        attempt, and may return the same peer or another one; each attempt that gets a connection
        has its `connected_to_upstream`, `upstream_request_filter` and ``request_body_filter``, and
        one that fails its `fail_to_connect` or `error_while_proxy`. An answer is a final response
        head, whatever its status: the attempt that got it goes on, with all filters of the
        response, and the other one is cancelled without a word. Only where both fail the request
        has failed, and may be tried again.

        Hedged are idempotent methods (RFC 9110 section 9.2.2) whose whole body can be sent again:
        where it fits the replay buffer of 65,536 bytes it is read before the first attempt. Other
        requests, and those that offer an upgrade, go on as if this had not been called.
        Informational responses that come before the answer are left out.

        Args:
          delay: Seconds that the first attempt has for its answer; 0 makes two at once, None none.
        """
        if delay is not None and not 0 <= delay < math.inf:
            raise ValueError(f"delay={delay!r}: seconds, 0 or more, are right, or None")
        self._hedge = delay

    def set_keepalive(self, seconds: float | None) -> None:
        """Set how long the connection may be idle after this exchange.

        Args:
          seconds: None closes it; 0 keeps it without limit; else seconds. A client that asked for
            ``Connection: close`` gets its way.
        """
        stream = self.downstream_session
        limit = _limit(seconds)
        if seconds is None:
            stream.keepalive = None
        elif stream.keepalive is not None:
            stream.keepalive = limit or math.inf

    def set_read_timeout(self, seconds: float | None) -> None:
        """Set how long to wait for more of the request's body; None is no limit."""
        self.downstream_session.read_timeout = _limit(seconds)

    def set_write_timeout(self, seconds: float | None) -> None:
        """Set how long a write may be without progress; None is no limit."""
        self.downstream_session.write_timeout = _limit(seconds)

    def set_min_send_rate(self, rate: float | None) -> None:
        """Set how many bytes a second the client must take at least; None or 0 is no such rule.

        A write then has as many seconds as its bytes take at this rate, and at least one; that wins
        over `set_write_timeout`.
        """
        if rate is not None and not 0 <= rate < math.inf:
            raise ValueError(f"rate={rate!r}: 0 or more bytes a second are right")
        self.downstream_session.min_send_rate = rate or 0.0

    def set_keepalive_reuses_remaining(self, requests: int | None) -> None:
        """Set how many requests the connection may carry after this one; None is no limit."""
        if requests is not None and requests < 0:
            raise ValueError(f"requests={requests!r}: 0 or more are right, or None")
        self.downstream_session.reuses_remaining = requests

    def set_total_drain_timeout(self, seconds: float | None) -> None:
        """Set how long an unread rest of the request may take; None is no limit."""
        self.downstream_session.drain_timeout = _limit(seconds)

    def set_ignore_info_resp(self, ignore: bool) -> None:
        """Drop informational responses, but 101, and 100 where the client expects it."""
        self._ignore_info = ignore

    def _ignores_info(self, status: int) -> bool:
        """Tell whether an informational response of this status is kept from the client."""
        facts = self._request.facts
        expects = facts is not None and facts.expect_continue
        if status == 100:
            return not expects or self._continue_sent
        return self._ignore_info and status != 101

    def set_close_on_response_before_downstream_finish(self, close: bool) -> None:
        """Choose whether a response that starts before the request's end closes the connection."""
        self.downstream_session.close_on_early_response = close

    def set_abort_on_close(self, abort: bool) -> None:
        """Choose whether the client's half-close after its request aborts the exchange."""
        self.downstream_session.abort_on_close = abort


def _limit(seconds: float | None) -> float:
    """Return a limit as the streams take it: None is no limit."""
    if seconds is None:
        return math.inf
    if not seconds >= 0:
        raise ValueError(f"seconds={seconds!r}: 0 or more are right, or None")
    return float(seconds)
