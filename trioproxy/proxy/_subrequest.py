"""Requests that the proxy makes of itself: an exchange in memory, given to the same engine.

A subrequest is a whole request of its own, from `new_ctx` to `logging`. What asks is one end of
`memory_exchange`, what answers is the engine with the other one, so that nothing of a session is
special about it but its `SubrequestCtx`. Both directions are bounded: whoever makes more waits.

Who owns it: `SubrequestSpawner.open` runs it in a nursery inside the callback that asked, so that
it ends with the block, and with the client. What `SubrequestSpawner.spawn_background` starts lives
in the server's nursery instead: it outlives its request, is bounded in number and time, ends with
the server, and nobody but the log hears of its failure.
"""

from __future__ import annotations

import enum
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from .._errors import ErrorType, ProxyError
from .._headers import Headers
from .._info import ConnectionInfo
from .._messages import (
    END,
    Data,
    RequestEvent,
    RequestFacts,
    RequestHeader,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from ..semantics._forwarding import strip_response, to_upstream
from ..streams._memory import CAPACITY, memory_exchange
from ._pump import response_has_body

if TYPE_CHECKING:
    from ..cache._http_cache import HttpCache
    from ..cache._lock import WritePermit
    from ._bound import Filters
    from ._services import Services
    from ._session import Session

#: How deep subrequests of subrequests may be.
MAX_DEPTH = 8
#: The kind of the error that a subrequest's failure is in the request that made it.
SUBREQUEST_ERROR = ErrorType.Custom("SubrequestError")

#: What describes content, or asks for leave to send it: gone where there is none.
_OF_CONTENT = (
    b"content-length",
    b"content-type",
    b"content-encoding",
    b"content-language",
    b"content-location",
    b"content-range",
    b"content-digest",
    b"repr-digest",
    b"expect",
    b"trailer",
)
#: What holds of the client's own message alone.
_OF_MESSAGE = (b"content-length", b"transfer-encoding", b"expect", b"trailer", b"upgrade")

#: A head, a piece of the body, or the trailers.
Task = ResponseHeader | bytes | Headers
#: Sees what a subrequest answers on its way to the client: returns what goes on, None for nothing.
TaskFilter = Callable[[Task], Awaitable[Task | None] | Task | None]


class BodyMode(enum.Enum):
    """Whether a subrequest has a body (Pingora's ``BodyMode``)."""

    #: It has none, nor the fields that describe one.
    NO_BODY = "NoBody"
    #: It has one.
    EXPECT_BODY = "ExpectBody"


@attrs.define(eq=False, kw_only=True)
class SubrequestCtx:
    """What a subrequest is to its own callbacks: ``session.subrequest_ctx`` (Pingora's name too).

    Attributes:
      user_ctx: What whoever made it gave along.
      body_mode: Whether it has a body.
      depth: How deep it is: 1 where a client's request made it, 2 where such a one did, and so on.
      background: Whether nobody waits for its answer.
      error: What it ended with, None while it runs and where nothing failed.
    """

    user_ctx: object = None
    body_mode: BodyMode = BodyMode.NO_BODY
    depth: int = 1
    background: bool = False
    error: ProxyError | None = attrs.field(default=None, init=False)
    #: The right to fill the cache, which another request has handed on.
    _permit: WritePermit | None = attrs.field(default=None, init=False)
    #: Whose callbacks run: a `Route` chooses by what a client sends, and not by this head.
    _filters: Filters | None = attrs.field(default=None, init=False)

    @property
    def filters(self) -> Filters | None:
        """Whose callbacks run, None for those of the proxy object."""
        return self._filters

    def run_with(self, filters: Filters) -> None:
        """Have other callbacks than those of the proxy object run."""
        self._filters = filters

    def hand_on(self, permit: WritePermit) -> None:
        """Give it the right to fill the cache."""
        self._permit = permit

    def take_permit(self) -> WritePermit | None:
        """Return the right to fill the cache, once."""
        permit, self._permit = self._permit, None
        return permit

    def drop_permit(self) -> None:
        """Let go of the right to fill the cache, where nobody took it."""
        permit = self.take_permit()
        if permit is not None:
            permit.drop()


def prepare(request: RequestHeader, *, length: int | None, body: bool) -> RequestHeader:
    """Return the head that a subrequest is made with: a copy, framed anew.

    Args:
      request: The head to copy.
      length: The body's length, where it is known.
      body: Whether there is one.
    """
    head = to_upstream(request)
    headers = head.headers
    for name in _OF_MESSAGE if body else (*_OF_MESSAGE, *_OF_CONTENT):
        headers.remove(name)
    if body and length is not None:
        headers.set(b"Content-Length", str(length))
    head.version = "HTTP/1.1"
    te_trailers = request.facts is not None and request.facts.te_trailers
    head.facts = RequestFacts(
        content_length=length if body else None,
        chunked=body and length is None,
        te_trailers=te_trailers,
    )
    return head


class SharedBody:
    """A request's own body, for subrequests one after another; see `SubrequestSpawner.share_body`.

    Each subrequest that it is given to reads it from the start: first what is saved, then what
    still comes from the client, whose speed that of the subrequest is then.
    """

    def __init__(self, session: Session, save: int) -> None:
        self._session = session
        self._save = save
        #: What was read before is the session's to keep, whatever is to be saved here.
        self._kept: list[bytes] | None = session._body.read_before
        self._size = 0
        #: Whether the body was read to its end.
        self.complete = session.is_body_done()

    def __repr__(self) -> str:
        state = "more than can be saved" if self._kept is None else f"{self._size} bytes saved"
        return f"<SharedBody {state}{', complete' if self.complete else ''}>"

    @property
    def saved(self) -> bytes | None:
        """What was read so far, None where that is more than is saved."""
        return None if self._kept is None else b"".join(self._kept)

    def framed(self) -> tuple[SharedBody | None, int | None]:
        """Return the body, None where the request has none, and its length where that is known."""
        if self._session.is_body_empty():
            return None, None
        length = self._session.get_header_bytes(b"content-length")
        return self, int(length) if length.isdigit() else None

    async def _pieces(self) -> AsyncIterator[bytes]:
        if self._kept is None:
            raise ProxyError.explain(
                ErrorType.InternalError,
                f"more than the {self._save} bytes that are saved of the request's body were read: "
                "it cannot be given to a second subrequest",
            ).into_in()
        for piece in list(self._kept):
            yield piece
        while not self.complete:
            data = await self._session.read_request_body()
            if data is None:
                self.complete = True
                return
            self._keep(data)
            yield data

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._save:
            self._kept = None
        elif self._kept is not None:
            self._kept.append(data)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()


#: What a subrequest may be sent as its body.
Body = bytes | AsyncIterable[bytes] | None


class Subrequest:
    """A subrequest that runs: its response, which is read or piped on (Pingora's ``SubrequestHandle``).

    `SubrequestSpawner.open` makes it. ``async for piece in subrequest`` gives the pieces of the
    body; nothing is read ahead of whoever reads. One task at a time may read.
    """

    def __init__(
        self, services: Services, request: RequestHeader, ctx: SubrequestCtx, info: ConnectionInfo
    ) -> None:
        self._services = services
        self._up, self._down = memory_exchange(info)
        self._events: deque[ResponseEvent] = deque()
        self._feeding = trio.CancelScope()
        self._feed_error: Exception | None = None
        #: The head that it was asked with.
        self.request = request
        #: What its own callbacks see of it.
        self.ctx = ctx
        #: Its final head, once that was read.
        self.response: ResponseHeader | None = None
        #: Its trailers, once its end was read and where there were any.
        self.trailers: Headers | None = None
        #: Whether its end was read.
        self.ended = False

    def __repr__(self) -> str:
        state = "ended" if self.ended else "not asked" if self.response is None else "answering"
        return f"<Subrequest {self.request.method} {self.request.path!r} {state}>"

    @property
    def error(self) -> ProxyError | None:
        """What it ended with, None while it runs and where nothing failed."""
        return self.ctx.error

    # -- its tasks -------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Run its session."""
        assert self._services.handle is not None
        try:
            await self._services.handle(self._down, self.ctx)
        except ProxyError as exc:  # given up before its session has begun
            self.ctx.error = exc
        finally:
            await self._down.aclose()

    async def _feed(self, body: AsyncIterable[bytes]) -> None:
        """Send the body as it comes; where that fails, the subrequest is given up."""
        with self._feeding:
            try:
                pieces = aiter(body)
                try:
                    async for data in pieces:
                        if data and not await self._put(Data(bytes(data))):
                            return
                finally:
                    close = getattr(pieces, "aclose", None)
                    if close is not None:
                        await close()
            except Exception as exc:  # raised again where its response is read
                self._feed_error = exc
                self._up.release()
            else:
                await self._put(END)

    async def _put(self, *events: RequestEvent) -> bool:
        """Send events; False where the subrequest has answered without waiting for them."""
        try:
            await self._up.send(*events)
        except ProxyError:
            return False
        return True

    def _leave(self) -> None:
        """Cancel it, unless its response has ended."""
        self._feeding.cancel()
        self._up.release()

    # -- its response ----------------------------------------------------------------------------

    async def _next(self) -> ResponseEvent:
        while not self._events:
            try:
                self._events.extend(await self._up.receive_batch())
            except ProxyError as exc:
                raise self._failure(exc) from None
        event = self._events.popleft()
        if type(event) is ResponseHeader:
            if event.status >= 200:
                strip_response(event)
                self.response = event
        elif type(event) is Trailers:
            self.trailers = event.headers
        elif _ends(event):
            self.ended = True
        return event

    def _failure(self, exc: ProxyError) -> Exception:
        if self._feed_error is not None:
            return self._feed_error
        error = ProxyError.because(
            SUBREQUEST_ERROR,
            f"the subrequest {self.request.method} {self.request.path} was cut",
            self.ctx.error if self.ctx.error is not None else exc,
        ).into_up()
        error.set_retry(False)
        return error

    async def response_header(self) -> ResponseHeader:
        """Return the final head of its response, for which it waits; the same one every time.

        A subrequest that fails before it has answered is answered as a client would be, with 502
        for one: look at ``status``.

        Raises:
          ProxyError: it was cut (its kind is `SUBREQUEST_ERROR`), or its body could not be had.
        """
        while self.response is None:
            event = await self._next()
            if type(event) is ResponseHeader and event.status >= 200:
                self._events.appendleft(event)  # for `pipe_to`, which begins with it
                return event
        return self.response

    def __aiter__(self) -> Subrequest:
        return self

    async def __anext__(self) -> bytes:
        while not self.ended:
            event = await self._next()
            if type(event) is Data:
                return event.data
        raise StopAsyncIteration

    async def read(self, limit: int = 65536) -> bytes:
        """Return the rest of its response's body, which may have so many bytes.

        Raises:
          ProxyError: it is longer, or was cut; both are of the kind `SUBREQUEST_ERROR`.
        """
        pieces: list[bytes] = []
        size = 0
        async for data in self:
            size += len(data)
            if size > limit:
                error = ProxyError.explain(
                    SUBREQUEST_ERROR,
                    f"the subrequest {self.request.method} {self.request.path} has answered with "
                    f"more than {limit} bytes",
                ).into_up()
                error.set_retry(False)
                raise error
            pieces.append(data)
        return b"".join(pieces)

    async def drain(self) -> int:
        """Read the rest of its response's body, drop it, and return how many bytes that was."""
        size = 0
        async for data in self:
            size += len(data)
        return size

    async def pipe_to(
        self, session: Session, task_filter: TaskFilter | None = None, *, end_of_stream: bool = True
    ) -> None:
        """Write the rest of its response to the client of a session, as fast as that one takes it.

        A final head is left out where the session has one already, so that the bodies of several
        subrequests can become one response: with ``end_of_stream=False`` for all but the last.

        Args:
          session: Usually the one that made it. Where this answers its request, say so to the
            engine: return True from `request_filter`, False from `proxy_upstream_filter`.
          task_filter: Gets each head (`ResponseHeader`, informational ones too), each piece of the
            body (bytes) and the trailers (`Headers`), and returns what goes on in its place, None
            for nothing; ``def`` or ``async def``. One that changes how long the body is removes
            Content-Length.
          end_of_stream: Whether the response ends with it.

        Raises:
          ProxyError: it was cut (of the kind `SUBREQUEST_ERROR`), or the client left.
          TypeError: the filter returned something else.
        """
        has_body = True
        while not self.ended:
            out: list[ResponseEvent] = []
            more = True
            while more:  # what has come by now leaves in one write
                event = await self._next()
                last = _ends(event)
                more = bool(self._events) and not last
                last = last and end_of_stream
                task = _task_of(event)
                if type(task) is ResponseHeader:
                    if task.status >= 200:
                        length = task.headers.get_bytes(b"content-length")
                        has_body = response_has_body(task, session.req_header().method, length)
                    if session.response_started() or (
                        task.status < 200 and session._ignores_info(task.status)
                    ):
                        task = None
                elif not has_body:
                    task = None
                if task is not None and task_filter is not None:
                    task = await _filtered(task_filter, task)
                if isinstance(task, bytes):
                    if task:
                        out.append(Data(task, last))
                        last = False
                elif isinstance(task, Headers):
                    if end_of_stream:
                        out.append(Trailers(task))
                elif task is not None:
                    out.append(task)
                if last:
                    out.append(END)
            if out:
                await session._send_events(*out)


def _ends(event: ResponseEvent) -> bool:
    return event is END or (type(event) is Data and event.end)


def _task_of(event: ResponseEvent) -> Task | None:
    if type(event) is Data:
        return event.data
    if type(event) is Trailers:
        return event.headers
    return event if type(event) is ResponseHeader else None


async def _filtered(task_filter: TaskFilter, task: Task) -> Task | None:
    made = task_filter(task)
    if inspect.isawaitable(made):
        made = await made
    if made is None or isinstance(made, type(task)):
        return made
    raise TypeError(
        f"the task filter returned {made!r} for {type(task).__name__}: that, or None, is right"
    )


@asynccontextmanager
async def run_subrequest(
    services: Services,
    request: RequestHeader,
    body: Body,
    ctx: SubrequestCtx,
    info: ConnectionInfo,
) -> AsyncIterator[Subrequest]:
    """Run a subrequest beside the block; leaving it cancels what has not ended.

    Args:
      services: What it runs in.
      request: Its head, from `prepare`.
      body: Its body.
      ctx: What it is to its callbacks; its permit is let go of in the end.
      info: What its session is told of the client's connection.
    """
    subrequest = Subrequest(services, request, ctx, info)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            # Head and body together where nothing has to wait, and the head first of all anyway.
            if not body:
                await subrequest._put(request, END)
            elif isinstance(body, bytes) and len(body) < CAPACITY:
                await subrequest._put(request, Data(body, True))
            else:
                await subrequest._put(request)
                nursery.start_soon(
                    subrequest._feed, _whole(body) if isinstance(body, bytes) else body
                )
            nursery.start_soon(subrequest._serve)
            try:
                yield subrequest
            except Exception as exc:  # raised again below, as itself and in no group
                failure = exc
            finally:
                subrequest._leave()
    finally:
        ctx.drop_permit()
    if failure is not None:
        raise failure


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), CAPACITY):
        yield body[start : start + CAPACITY]


async def _discard(
    services: Services,
    request: RequestHeader,
    body: bytes,
    ctx: SubrequestCtx,
    info: ConnectionInfo,
) -> None:
    """Run a subrequest that nobody waits for."""
    async with run_subrequest(services, request, body, ctx, info) as subrequest:
        await subrequest.drain()


def renew(session: Session, cache: HttpCache) -> bool:
    """Have what is stale fetched anew in the background; False where that cannot be now.

    The request is a whole one of its own, from `new_ctx` to `logging`, and what comes of it is for
    the cache alone (trait 8.15, 12). The framework makes it, so that
    `ProxyHttp.allow_spawning_subrequest` is not asked.
    """
    services = session._services
    if session.req_header().method not in ("GET", "HEAD") or not services.may_start_background():
        return False
    request = prepare(session.req_header(), length=None, body=False)
    request.method = "GET"
    permit = cache.take_write_lock()
    ctx = SubrequestCtx(depth=depth_below(session), background=True)
    ctx.hand_on(permit)
    ctx.run_with(session._filters)
    info = session.downstream_session.info
    if services.start_background(partial(_discard, services, request, b"", ctx, info)):
        return True
    cache.set_write_lock(permit)
    return False


def services_of(session: Session) -> Services:
    """Return what a session shares with the others of its server."""
    return session._services


def depth_below(session: Session) -> int:
    """Return how deep a subrequest of this session is."""
    return 1 if session.subrequest_ctx is None else session.subrequest_ctx.depth + 1


class SubrequestSpawner:
    """Makes subrequests of one session: ``session.subrequest_spawner`` (Pingora's name too).

    It is there where `ProxyHttp.allow_spawning_subrequest` has returned True. A subrequest goes
    through the same proxy object as a whole request of its own; its ``session.subrequest_ctx`` is
    what tells its callbacks that it is one, and what for.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._services = session._services

    def __repr__(self) -> str:
        return f"<SubrequestSpawner of {self._session!r}>"

    def _made(
        self, request: RequestHeader | None, body: Body, user_ctx: object, *, background: bool
    ) -> tuple[RequestHeader, SubrequestCtx]:
        length = len(body) if isinstance(body, bytes) else None
        if isinstance(body, SharedBody):
            body, length = body.framed()
        head = self._session.req_header() if request is None else request
        if head.method == "CONNECT":  # what answers it is a tunnel, and no message
            raise ProxyError.explain(
                ErrorType.InternalError,
                "a subrequest cannot be CONNECT: a head with another method is right",
            ).into_in()
        mode = BodyMode.EXPECT_BODY if body else BodyMode.NO_BODY
        ctx = SubrequestCtx(
            user_ctx=user_ctx,
            body_mode=mode,
            depth=depth_below(self._session),
            background=background,
        )
        ctx.run_with(self._session._filters)
        return prepare(head, length=length, body=bool(body)), ctx

    @asynccontextmanager
    async def open(
        self, request: RequestHeader | None = None, *, body: Body = None, user_ctx: object = None
    ) -> AsyncIterator[Subrequest]:
        """Run a subrequest inside a block: ``async with spawner.open() as subrequest``.

        Leaving the block before its response has ended cancels it; a client that leaves cancels
        the callback, and with it the block.

        Args:
          request: The head to make it with, such as an edited ``session.req_header().copy()``; None
            takes that of the session as it stands now. Hop-by-hop fields are left out, and without
            a body the fields that describe one.
          body: Bytes, an async iterable of bytes, or what `share_body` returns; None for none.
          user_ctx: Anything, for its callbacks to find in ``session.subrequest_ctx.user_ctx``.

        Raises:
          ProxyError: InternalError, the method is CONNECT, or this is a subrequest already that is
            eight deep.
        """
        head, ctx = self._made(request, body, user_ctx, background=False)
        if ctx.depth > MAX_DEPTH:
            self._services.subrequests_refused += 1
            raise ProxyError.explain(
                ErrorType.InternalError,
                f"a subrequest of a subrequest, more than {MAX_DEPTH} deep: "
                "allow_spawning_subrequest is to return False somewhere",
            ).into_in()
        info = self._session.downstream_session.info
        async with run_subrequest(self._services, head, body, ctx, info) as subrequest:
            yield subrequest

    async def pipe(
        self,
        request: RequestHeader | None = None,
        *,
        body: Body = None,
        user_ctx: object = None,
        task_filter: TaskFilter | None = None,
        end_of_stream: bool = True,
    ) -> Subrequest:
        """Run a subrequest, write its response to the client, and return it, which has ended.

        Pingora: ``pipe_subrequest``.

        Args:
          request: See `open`.
          body: See `open`.
          user_ctx: See `open`.
          task_filter: See `Subrequest.pipe_to`.
          end_of_stream: See `Subrequest.pipe_to`.

        Raises:
          ProxyError: See `open` and `Subrequest.pipe_to`.
        """
        async with self.open(request, body=body, user_ctx=user_ctx) as subrequest:
            await subrequest.pipe_to(self._session, task_filter, end_of_stream=end_of_stream)
        return subrequest

    def spawn_background(
        self, request: RequestHeader | None = None, *, body: bytes = b"", user_ctx: object = None
    ) -> bool:
        """Start a subrequest that nobody waits for, and return whether it was started.

        It outlives the request and ends with the server; ``ServerConf.max_background_requests``
        bounds how many there are at once and ``ServerConf.background_timeout`` how long one may
        take. While the server drains none is started. Its response is read and dropped, and a
        failure is nobody's but the log's (Pingora's ``spawn_background_subrequest``).

        Args:
          request: See `open`.
          body: Its body.
          user_ctx: See `open`.

        Raises:
          ProxyError: InternalError, the method is CONNECT.
        """
        head, ctx = self._made(request, body, user_ctx, background=True)
        services = self._services
        if ctx.depth > MAX_DEPTH:
            services.subrequests_refused += 1
            services.log.error(
                "a subrequest of a subrequest, more than %d deep, was not started: %s",
                MAX_DEPTH,
                self._session.request_summary(),
            )
            return False
        info = self._session.downstream_session.info
        return services.start_background(partial(_discard, services, head, body, ctx, info))

    def share_body(self, save: int = 65536) -> SharedBody:
        """Return the client's request body, to be given to one subrequest after another.

        A session reads its body once: what a subrequest got is kept for the next one, and for the
        origin up to the 65,536 bytes that another attempt could be made with.

        Args:
          save: Bytes kept for a second subrequest, in memory beside the session's own.
        """
        if save < 0:
            raise ValueError(f"save={save}: 0 or more bytes are right")
        return SharedBody(self._session, save)
