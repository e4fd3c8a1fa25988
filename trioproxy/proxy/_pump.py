"""The way of a body, both directions, on one page.

Towards the origin: ``RequestBody`` -> `request_body_filter` -> ``upstream.send``.
Towards the client: ``upstream.receive_batch`` -> upstream filters (head, body, trailers) ->
response filters (head, body, trailers) -> ``downstream.send``.

The response pump is the body of the session's nursery; the request pump is a child, started only
where a body is to flow. Backpressure is `send` itself: neither pump receives again before the other
side has taken what the last batch became. A batch that became a head, data and an end leaves in one
write. No filter is called that the trait does not override.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._errors import ErrorSource, ErrorType, ProxyError
from .._headers import Headers
from .._messages import (
    END,
    BodyChunk,
    Data,
    RequestEvent,
    RequestHeader,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from ..semantics._forwarding import filter_trailers, strip_response
from ..streams._abc import UpstreamStream
from ._body import BodyEvent, RequestBody, WholeBody
from ._failure import as_proxy_error, log_failure

if TYPE_CHECKING:
    from .._config import ServerConf
    from ._bound import Filters
    from ._session import Session


@attrs.define(eq=False)
class Exchange:
    """One attempt: a session and the upstream stream it holds."""

    session: Session
    filters: Filters
    ctx: Any
    upstream: UpstreamStream
    request: RequestHeader
    conf: ServerConf
    #: Why the origin no longer takes the upload: the response may still come.
    send_error: ProxyError | None = None
    #: Whether filters of the upstream's side have run already, so that lengths are to be checked.
    altered: bool = False
    #: Whether the request was sent already, and answered.
    asked: bool = False


@attrs.define(eq=False)
class Upload:
    """The request pump as a task of its own, which only a request with a body has.

    Attributes:
      scope: Around the request pump.
      response_scope: Around the response pump: cancelled where the whole attempt has failed.
      done: Set when the request pump has ended.
      error: Why it failed on our or the client's side: fatal to the attempt.
    """

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    response_scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    done: trio.Event = attrs.field(factory=trio.Event)
    error: ProxyError | None = None


async def run_exchange(exchange: Exchange, nursery: trio.Nursery) -> list[ResponseEvent] | None:
    """Carry one attempt's request and response to their ends, and return None.

    Where the answer made a tunnel of it, what came behind its head is returned: that follows.

    Raises:
      ProxyError: the attempt failed.
      Exception: what a filter raised.
    """
    if exchange.asked:
        return await _respond(exchange)
    body = exchange.session._body
    body.start_attempt()
    if not body.expected:
        if exchange.request.asks_to_switch:
            return await _ask_to_switch(exchange)
        await _send_without_body(exchange)
        return await _respond(exchange)
    if exchange.filters.request_body_filter is None and body.complete_and_pending:
        # All of it is here and nobody wants to see it: one write, and no task for it.
        whole = [
            Trailers(filter_trailers(event.headers)) if type(event) is Trailers else event
            for event in await body.next_batch()
        ]
        await _send(exchange, exchange.request, *whole)
        return await _respond(exchange)
    await _invite(exchange)
    upload = Upload()
    nursery.start_soon(_upload, exchange, upload)
    failure: Exception | None = None
    first: list[ResponseEvent] | None = None
    with upload.response_scope:
        try:
            first = await pump_response(exchange)
        except Exception as exc:  # raised again below, when the other pump has ended
            failure = exc
    # Neither connection may be given back while the request pump still runs.
    upload.scope.cancel()
    await upload.done.wait()
    if upload.error is not None:
        raise upload.error
    if failure is not None:
        raise _which_failure(exchange, failure)
    return first


async def ask(exchange: Exchange, whole: list[BodyEvent]) -> list[ResponseEvent]:
    """Send a request with its whole body, and return what was answered, from the final head on.

    Informational responses are left out: another attempt may be the one that answers the client.

    Raises:
      ProxyError: the attempt failed.
      Exception: what a filter raised.
    """
    if exchange.session._body.expected:
        await pump_request(exchange, WholeBody(whole))
    else:
        await _send_without_body(exchange)
    try:
        while True:
            batch = await exchange.upstream.receive_batch()
            for index, event in enumerate(batch):
                if type(event) is ResponseHeader and event.status >= 200:
                    return batch[index:]
    except ProxyError as exc:
        if exchange.send_error is None:
            raise
        failure = exc
    raise _which_failure(exchange, failure)


async def _invite(exchange: Exchange) -> None:
    """Send the 100 that the client waits for, where its expectation does not go on (row H1-23)."""
    session = exchange.session
    facts = session.req_header().facts
    if facts is None or not facts.expect_continue or session._body.ended:
        return
    if b"expect" not in exchange.request.headers:
        await session.write_continue_response()


async def _respond(exchange: Exchange) -> list[ResponseEvent] | None:
    """Carry the response of a request that left in one piece."""
    try:
        return await pump_response(exchange)
    except ProxyError as exc:
        if exchange.send_error is None:
            raise
        failure = exc
    raise _which_failure(exchange, failure)


def _which_failure(exchange: Exchange, failure: Exception) -> Exception:
    """Return why an attempt failed: the write that failed first, where no response came of it."""
    error = exchange.send_error
    if error is None or not isinstance(failure, ProxyError):
        return failure
    if failure.esource is not ErrorSource.UPSTREAM:
        return failure
    # Whether it may be repeated is known from what came behind: a response that had begun says no.
    error.retry = failure.retry
    return error


async def _send(exchange: Exchange, *events: RequestEvent) -> bool:
    """Send events of the request; False where the origin takes no more of it.

    Its response may still come, or be here already (row U1-05), so that it is looked for first.
    """
    try:
        await exchange.upstream.send(*events)
    except ProxyError as exc:
        if exc.esource is not ErrorSource.UPSTREAM:
            raise
        exchange.send_error = exc
        return False
    return True


async def _ask_to_switch(exchange: Exchange) -> list[ResponseEvent] | None:
    """Send a request whose answer may open a tunnel, and go on as the origin decides.

    The end of the request's body is told once: now, where the origin answered as to any request, or
    by the tunnel when the client half-closes.
    """
    await _send(exchange, exchange.request, END)
    first = await _respond(exchange)
    if first is None and exchange.filters.request_body_filter is not None:
        await exchange.filters.request_body_filter(
            exchange.session, BodyChunk(), True, exchange.ctx
        )
    return first


# -- towards the origin --------------------------------------------------------------------------


async def _send_without_body(exchange: Exchange) -> None:
    """Send a request that has no body; its filter may give it one."""
    request = exchange.request
    body_filter = exchange.filters.request_body_filter
    if body_filter is not None:
        session = exchange.session
        chunk = BodyChunk()
        session._phase = "request_body_filter"
        await body_filter(session, chunk, True, exchange.ctx)
        declared = Declared.of(request.headers, "request_body_filter")
        declared.count(chunk.data)
        declared.finish()
        if chunk.data:
            await _send(exchange, request, Data(chunk.data, True))
            return
    await _send(exchange, request, END)


async def _upload(exchange: Exchange, upload: Upload) -> None:
    """Run the request pump as a task: its failure is told, never raised."""
    try:
        with upload.scope:
            await pump_request(exchange, exchange.session._body)
    except Exception as exc:  # the attempt fails with it, in the task that owns the attempt
        upload.error = as_proxy_error(exc, exchange.session, "request_body_filter")
        upload.response_scope.cancel()
    finally:
        upload.done.set()


async def pump_request(exchange: Exchange, body: RequestBody | WholeBody) -> None:
    """Carry the request, head first, from the client to the origin until its end."""
    session, ctx = exchange.session, exchange.ctx
    body_filter = exchange.filters.request_body_filter
    declared = Declared.of(
        exchange.request.headers,
        "upstream_request_filter" if body_filter is None else "request_body_filter",
    )
    chunk = BodyChunk()
    out: list[Any] = [exchange.request]
    # The head does not wait for a body that may wait for 100 Continue, nor for a slow filter.
    if body_filter is not None or not body.readable_now:
        if not await _send(exchange, *out):
            return
        out = []
    ended = False
    while not ended:
        for event in await body.next_batch():
            kind = type(event)
            if kind is Trailers:
                trailers = filter_trailers(event.headers)  # type: ignore[union-attr]
                if body_filter is not None:
                    put(chunk, None)
                    await body_filter(session, chunk, True, ctx)
                    declared.count(chunk.data)
                    if chunk.data:
                        out.append(Data(chunk.data))
                declared.finish()
                out += (Trailers(trailers), END)
                ended = True
                break
            last = event is END or event.end  # type: ignore[union-attr]
            data: bytes | None = None if event is END else event.data  # type: ignore[union-attr]
            if body_filter is not None:
                chunk.data = data
                await body_filter(session, chunk, last, ctx)
                data = chunk.data
                if data:
                    out.append(Data(data, last))
                elif last:
                    out.append(END)
            else:
                out.append(event)
            declared.count(data)
            if last:
                declared.finish()
                ended = True
                break
        if out:
            if not await _send(exchange, *out):
                return
            out = []


# -- towards the client --------------------------------------------------------------------------


async def pump_response(exchange: Exchange) -> list[ResponseEvent] | None:
    """Carry the response from the origin to the client until its end, and return None.

    Where a head opens a tunnel it ends behind that, and returns what came with it.
    """
    session, upstream, filters, ctx = (
        exchange.session,
        exchange.upstream,
        exchange.filters,
        exchange.ctx,
    )
    upstream_body_filter = filters.upstream_response_body_filter
    body_filter = filters.response_body_filter
    # A 2xx to CONNECT opens a tunnel, as a 101 does: `RequestHeader.switched_by`.
    facts = session._request.facts
    tunnels = facts is not None and facts.connect is not None
    filtered = upstream_body_filter is not None or body_filter is not None
    chunk = BodyChunk()
    declared = Declared.none()
    has_body = True
    out: list[ResponseEvent] = []
    while True:
        batch = await upstream.receive_batch()
        for index, event in enumerate(batch):
            kind = type(event)
            if kind is Data:
                data: bytes | None = event.data  # type: ignore[union-attr]
                upstream.body_bytes_received += len(data)  # type: ignore[arg-type]
                if not filtered:
                    if declared.changed:
                        declared.count(data)
                        if event.end:  # type: ignore[union-attr]
                            declared.finish()
                    out.append(event)
                    if event.end:  # type: ignore[union-attr]
                        await session._send_events(*out)
                        return None
                    continue
                last = event.end  # type: ignore[union-attr]
                chunk.data = data
                out = await filter_chunk(exchange, chunk, last, out)
                declared.count(chunk.data)
                if last:
                    declared.finish()
                if chunk.data:
                    out.append(Data(chunk.data, last))
                elif last:
                    out.append(END)
                if last:
                    await session._send_events(*out)
                    return None
            elif kind is ResponseHeader:
                head: ResponseHeader = event  # type: ignore[assignment]
                strip_response(head)
                length_as_received = head.headers.get_bytes(b"content-length")
                switches = head.status == 101 or (tunnels and head.status // 100 == 2)
                if filters.upstream_response_filter is not None:
                    session._phase = "upstream_response_filter"
                    await filters.upstream_response_filter(session, head, ctx)
                if filters.response_filter is not None:
                    session._phase = "response_filter"
                    await filters.response_filter(session, head, ctx)
                if (head.status == 101 or (tunnels and head.status // 100 == 2)) is not switches:
                    # The origin alone switches protocols (row U1-07): what follows its head is
                    # either a message or a tunnel, whatever a filter writes there.
                    raise ProxyError.explain(
                        ErrorType.InternalError,
                        "a filter has made or unmade a status that opens a tunnel",
                    ).into_in()
                if switches:
                    await session._send_events(*out, head)
                    return batch[index + 1 :]
                if head.status < 200:
                    if not session._ignores_info(head.status):
                        out.append(head)
                    continue
                has_body = response_has_body(head, exchange.request.method, length_as_received)
                if has_body:
                    declared = Declared.of(
                        head.headers,
                        "response_body_filter"
                        if body_filter is not None
                        else "upstream_response_body_filter"
                        if upstream_body_filter is not None or exchange.altered
                        else "response_filter",
                    )
                    declared.changed = (
                        filtered
                        or exchange.altered
                        or head.headers.get_bytes(b"content-length") != length_as_received
                    )
                out.append(head)
            elif kind is Trailers:
                if filtered and has_body:
                    put(chunk, None)
                    out = await filter_chunk(exchange, chunk, True, out)
                    declared.count(chunk.data)
                    if chunk.data:
                        out.append(Data(chunk.data))
                await _end_with_trailers(exchange, event.headers, declared, out)  # type: ignore[union-attr]
                return None
            else:
                if filtered and has_body:
                    put(chunk, None)
                    out = await filter_chunk(exchange, chunk, True, out)
                    declared.count(chunk.data)
                    if chunk.data:
                        out.append(Data(chunk.data))
                if declared.changed:
                    declared.finish()
                out.append(END)
                await session._send_events(*out)
                return None
        if out:
            await session._send_events(*out)
            out = []


def put(chunk: BodyChunk, data: bytes | None) -> None:
    """Lay bytes into the holder for a filter's next call; the filter may change what is in it."""
    chunk.data = data


async def filter_chunk(
    exchange: Exchange, chunk: BodyChunk, last: bool, out: list[ResponseEvent]
) -> list[ResponseEvent]:
    """Run both body filters over a chunk; a delay sends what is due before it, then waits."""
    session, filters, ctx = exchange.session, exchange.filters, exchange.ctx
    body_filter = filters.upstream_response_body_filter
    if body_filter is not None:
        session._phase = "upstream_response_body_filter"
        delay = body_filter(session, chunk, last, ctx)
        if filters.upstream_response_body_filter_is_async:
            delay = await delay
        if delay:
            out = await _delayed(session, out, delay)
    body_filter = filters.response_body_filter
    if body_filter is not None:
        session._phase = "response_body_filter"
        delay = body_filter(session, chunk, last, ctx)
        if filters.response_body_filter_is_async:
            delay = await delay
        if delay:
            out = await _delayed(session, out, delay)
    return out


async def _delayed(session: Session, out: list[ResponseEvent], seconds: Any) -> list[ResponseEvent]:
    check_delay(session, seconds)
    if out:
        await session._send_events(*out)
    await trio.sleep(seconds)
    return []


def check_delay(session: Session, seconds: Any) -> None:
    """Refuse what a body filter cannot mean as a delay."""
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise ValueError(f"{session._phase} returned {seconds!r}: seconds, 0 or more, are right")


async def _end_with_trailers(
    exchange: Exchange, trailers: Headers, declared: Declared, out: list[ResponseEvent]
) -> None:
    """Filter the trailers and end the response with them, or with the bytes that replace them."""
    session, filters, ctx = exchange.session, exchange.filters, exchange.ctx
    trailers = filter_trailers(trailers)
    if filters.upstream_response_trailer_filter is not None:
        session._phase = "upstream_response_trailer_filter"
        filters.upstream_response_trailer_filter(session, trailers, ctx)
    replacement: bytes | None = None
    if filters.response_trailer_filter is not None:
        session._phase = "response_trailer_filter"
        received = trailers.copy()
        try:
            replacement = await filters.response_trailer_filter(session, trailers, ctx)
        except Exception as exc:  # logged; the trailers go on unfiltered (Pingora)
            log_failure(exc, session)
            trailers = received
    declared.count(replacement)
    if declared.changed:
        declared.finish()
    if replacement:
        out.append(Data(replacement, True))
    else:
        out += (Trailers(trailers), END)
    await session._send_events(*out)


def response_has_body(head: ResponseHeader, method: str, length: bytes | None) -> bool:
    """Tell whether a response has content as received (RFC 9112 section 6.3)."""
    facts = head.facts
    if facts is not None:
        return facts.has_body
    return not (method == "HEAD" or head.status in (204, 304) or length == b"0")


@attrs.define(eq=False)
class Declared:
    """What a head says of its body's length, against what the filters make of it."""

    length: int | None
    culprit: str
    remaining: int = 0
    changed: bool = True

    @classmethod
    def none(cls) -> Declared:
        """Return the count for a body without a declared length."""
        return cls(None, "", 0, False)

    @classmethod
    def of(cls, headers: Headers, culprit: str) -> Declared:
        """Return the count for a head; ``culprit`` is the filter to name."""
        text = headers.get_bytes(b"content-length")
        if text is None:
            return cls(None, culprit)
        if not text.isdigit():
            raise ProxyError.explain(
                ErrorType.InternalError, f"{culprit}: Content-Length is not a number: {text!r}"
            ).into_in()
        return cls(int(text), culprit, int(text))

    def count(self, data: bytes | None) -> None:
        """Count bytes that go out."""
        if self.length is not None and data:
            self.remaining -= len(data)
            if self.remaining < 0:
                self._mismatch("more")

    def finish(self) -> None:
        """Check the count at the end of the body."""
        if self.length is not None and self.remaining > 0:
            self._mismatch("fewer")

    def _mismatch(self, which: str) -> None:
        where = (
            "upstream_request_filter"
            if self.culprit in ("request_body_filter", "upstream_request_filter")
            else "response_filter"
        )
        raise ProxyError.explain(
            ErrorType.InternalError,
            f"{self.culprit} made {which} bytes than the Content-Length of {self.length} says; "
            f"remove Content-Length in {where}, and the body is framed by itself",
        ).into_in()
