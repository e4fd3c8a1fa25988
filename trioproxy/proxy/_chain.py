"""The modules of one request in a row: what one makes of a message is what the next one gets.

Towards the origin a row stands at the source of the body, before what is kept for another attempt,
so that a module sees each byte once. Towards the client it is the session's own way out; on the
upstream's side it lies around the stream to the origin, before any filter and the cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import attrs
import trio

from .._messages import (
    END,
    BodyChunk,
    Data,
    RequestEvent,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from ..modules._abc import HttpModule, ModulesCtx
from ..semantics._forwarding import strip_response
from ..streams._abc import UpstreamStream
from ._body import BodyEvent
from ._failure import log_failure
from ._over import OverStream
from ._pump import put, response_has_body

if TYPE_CHECKING:
    from ._bound import Filters
    from ._session import Session

RESPONSE_HOOKS = (
    "response_header_filter",
    "response_body_filter",
    "response_flush_filter",
    "response_trailer_filter",
)


async def request_through_modules(session: Session, modules: ModulesCtx) -> bool:
    """Let the modules see a request's head, and its body from here on; True where one answered."""
    for module in modules.with_hook("request_header_filter"):
        session._phase = f"{type(module).__name__}.request_header_filter"
        if await module.request_header_filter(session, session.req_header()):
            return True
    acting = modules.with_hook("request_body_filter")
    if acting and session._body.expected:
        session._body.go_through(request_row(session, acting))
    return False


def release_modules(session: Session) -> None:
    """Tell the modules of either side that the exchange is over."""
    if session._upstream_compression is not None:
        session._upstream_compression.response_done_filter(session)
    for modules in (session._modules, session._upstream_modules):
        if modules is None:
            continue
        for module in modules.with_hook("response_done_filter"):
            session._phase = f"{type(module).__name__}.response_done_filter"
            try:
                module.response_done_filter(session)
            except Exception as exc:  # it may not fail
                log_failure(exc, session)


@attrs.frozen
class _Rest:
    """Stands in a stage's queue where a module is not through with a piece.

    Attributes:
      last: Whether the piece was the last.
      trailers: Whether trailers follow.
    """

    last: bool
    trailers: bool


@final
class _Flush:
    """Stands behind the last event that is there, where more may come later."""

    __slots__ = ()


_FLUSH = _Flush()

Event = ResponseEvent | RequestEvent | _Rest | _Flush


class Stage(ABC):
    """One module's part of a message's way.

    A module may need to be asked again for more of a piece. What comes behind waits meanwhile, and
    what the module gave goes on first, so that a piece which becomes a thousand never takes more
    than the room of one.
    """

    __slots__ = ("_chunk", "_ended", "_module", "_session", "lost", "waiting")

    def __init__(self, session: Session, module: HttpModule) -> None:
        self._session = session
        self._module = module
        self._chunk = BodyChunk()
        #: Whether the module was told of the body's end.
        self._ended = False
        #: What the module has not seen yet.
        self.waiting: deque[Event] = deque()
        #: Whether the module has failed, or was cancelled, with what it was given.
        self.lost = False

    async def run(self, events: Iterable[Event]) -> list[Event]:
        """Return what the module makes of events, up to where it has to be asked again."""
        waiting, out = self.waiting, []  # type: deque[Event], list[Event]
        waiting.extend(events)
        self.lost = True
        while waiting:
            if await self._see(waiting.popleft(), out):
                break
        self.lost = False
        return out

    @abstractmethod
    async def _see(self, event: Event, out: list[Event]) -> bool:
        """Add what becomes of an event; True where there is more of it."""

    @abstractmethod
    async def _ask(self, chunk: BodyChunk, last: bool) -> bool | None:
        """Call the module's hook for a piece of the body."""

    async def _see_piece(
        self, data: bytes | None, last: bool, out: list[Event], *, trailers: bool = False
    ) -> bool:
        chunk = self._chunk
        chunk.data = data
        self._ended = last
        if await self._ask(chunk, last):
            if chunk.data:
                out.append(Data(chunk.data))
            self.waiting.appendleft(_Rest(last, trailers))
            return True
        ends = last and not trailers
        if chunk.data:
            out.append(Data(chunk.data, ends))
        elif ends:
            out.append(END)
        return False

    async def _see_end(self, event: Event, out: list[Event]) -> bool:
        """Tell the module of the body's end, and have the trailers wait until it is through."""
        if type(event) is not Trailers:
            return await self._see_piece(None, True, out)
        self.waiting.appendleft(event)
        return await self._see_piece(None, True, out, trailers=True)


class RequestStage(Stage):
    """One module's part of a request body's way."""

    __slots__ = ()

    async def _see(self, event: Event, out: list[Event]) -> bool:
        kind = type(event)
        if kind is Data:
            return await self._see_piece(event.data, event.end, out)  # type: ignore[union-attr]
        if kind is _Rest:
            return await self._see_piece(None, event.last, out, trailers=event.trailers)  # type: ignore[union-attr]
        if not self._ended:
            return await self._see_end(event, out)
        out.append(event)
        return False

    async def _ask(self, chunk: BodyChunk, last: bool) -> bool | None:
        self._session._phase = f"{type(self._module).__name__}.request_body_filter"
        return await self._module.request_body_filter(self._session, chunk, last)


class ResponseStage(Stage):
    """One module's part of a response's way."""

    __slots__ = ("_body", "_flush", "_has_body", "_head", "_replaced", "_trailer")

    def __init__(self, session: Session, module: HttpModule) -> None:
        super().__init__(session, module)
        hooks = module.overridden
        self._head = "response_header_filter" in hooks
        self._body = "response_body_filter" in hooks
        self._flush = "response_flush_filter" in hooks
        self._trailer = "response_trailer_filter" in hooks
        #: Whether the response has content.
        self._has_body = False
        #: Whether bytes have taken the place of the trailers: nothing follows them.
        self._replaced = False

    def _enter(self, hook: str) -> None:
        self._session._phase = f"{type(self._module).__name__}.{hook}"

    async def _see(self, event: Event, out: list[Event]) -> bool:
        kind = type(event)
        if kind is ResponseHeader:
            ends = bool(self.waiting) and self.waiting[0] is END
            await self._see_head(event, ends)  # type: ignore[arg-type]
        elif self._replaced:
            return False
        elif kind is _Rest:
            return await self._see_piece(None, event.last, out, trailers=event.trailers)  # type: ignore[union-attr]
        elif kind is _Flush:
            await self._see_flush(out)
        elif self._body and kind is Data:
            return await self._see_piece(event.data, event.end, out)  # type: ignore[union-attr]
        elif self._body and self._has_body and not self._ended:
            return await self._see_end(event, out)
        elif self._trailer and kind is Trailers:
            self._enter("response_trailer_filter")
            replacement = await self._module.response_trailer_filter(
                self._session,
                event.headers,  # type: ignore[union-attr]
            )
            if replacement:
                out.append(Data(replacement, True))
                self._replaced = True
                return False
        out.append(event)
        return False

    async def _see_head(self, head: ResponseHeader, ends: bool) -> None:
        # A tunnel's head, CONNECT's 200 too, is neither the end nor that of a message.
        final = head.status >= 200 and not self._session.req_header().switched_by(head.status)
        if final:
            length = head.headers.get_bytes(b"content-length")
            self._has_body = response_has_body(head, self._session.req_header().method, length)
            self._ended = self._replaced = False
        if self._head:
            self._enter("response_header_filter")
            over = final and (ends or not self._has_body)
            await self._module.response_header_filter(self._session, head, over)

    async def _see_flush(self, out: list[Event]) -> None:
        if self._flush and self._has_body and not self._ended:
            chunk = self._chunk
            put(chunk, None)
            self._enter("response_flush_filter")
            await self._module.response_flush_filter(self._session, chunk)
            if chunk.data:
                out.append(Data(chunk.data))

    async def _ask(self, chunk: BodyChunk, last: bool) -> bool | None:
        self._enter("response_body_filter")
        return await self._module.response_body_filter(self._session, chunk, last)


EventT = TypeVar("EventT", bound=ResponseEvent | RequestEvent)


class Row(Generic[EventT]):
    """The modules' part of a message's way, one behind the other.

    What `pass_on` and `go_on` return has to be taken before the next call; while there is `more`,
    that is `go_on`.
    """

    __slots__ = ("_flushes", "_stages")

    def __init__(self, stages: Sequence[Stage], *, flushes: bool = False) -> None:
        self._stages = stages
        self._flushes = flushes

    @property
    def more(self) -> bool:
        """Whether there is more of what was passed on already."""
        return any(stage.waiting for stage in self._stages)

    @property
    def lost(self) -> bool:
        """Whether something of it is gone, as a module has failed or was cancelled with it."""
        return any(stage.lost for stage in self._stages)

    async def pass_on(self, events: Sequence[EventT]) -> list[EventT]:
        """Return what the modules make of events, or the first of it."""
        if self._flushes and not _ends(events[-1]):
            return await self._run(0, (*events, _FLUSH))
        return await self._run(0, events)

    async def go_on(self) -> list[EventT]:
        """Return the next of what the modules make of the events that were passed on."""
        # What is made of a single piece may be taken without a wait as often as it is made.
        await trio.lowlevel.checkpoint()
        for index in reversed(range(len(self._stages))):
            if self._stages[index].waiting:
                return await self._run(index, ())
        return []

    async def _run(self, start: int, events: Sequence[Event]) -> list[EventT]:
        for stage in self._stages[start:]:
            events = await stage.run(events)
        if events and events[-1] is _FLUSH:
            events = events[:-1]
        return events  # type: ignore[return-value]


def _ends(event: ResponseEvent | RequestEvent) -> bool:
    return event is END or (type(event) is Data and event.end)


def request_row(session: Session, modules: Iterable[HttpModule]) -> Row[BodyEvent]:
    """Return the way of a request's body through modules."""
    return Row([RequestStage(session, module) for module in modules])


def response_row(session: Session, modules: Iterable[HttpModule]) -> Row[ResponseEvent]:
    """Return the way of a response through modules."""
    modules = tuple(modules)
    flushes = any("response_flush_filter" in module.overridden for module in modules)
    return Row([ResponseStage(session, module) for module in modules], flushes=flushes)


class ModuleStream(OverStream):
    """The origin's side of an exchange behind the modules of the upstream's side."""

    def __init__(self, inner: UpstreamStream, session: Session, filters: Filters, ctx: Any) -> None:
        super().__init__(inner)
        self._session = session
        self._filters = filters
        self._ctx = ctx
        self._row: Row[ResponseEvent] | None = None
        self._switched = False

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what the modules have made of what the origin sent."""
        while True:
            if self._row is not None and self._row.more:
                out = await self._row.go_on()
                if out:
                    return out
                continue
            batch = await self._inner.receive_batch()
            for event in batch:
                if type(event) is Data:
                    self._inner.body_bytes_received += len(event.data)
            if self._switched:
                return batch
            out = []
            start = 0
            for index, event in enumerate(batch):
                if type(event) is not ResponseHeader:
                    continue
                out += await self._pass_on(batch[start:index])
                start = index
                await self._see_head(event, batch[index + 1 :])
                if self._session.req_header().switched_by(event.status):
                    self._switched = True
                    return out + batch[index:]
            out += await self._pass_on(batch[start:])
            if out:
                return out

    async def _see_head(self, head: ResponseHeader, rest: list[ResponseEvent]) -> None:
        """Let the trait adjust the modules to a head, and take those that exist then."""
        session, adjust = self._session, self._filters.adjust_upstream_modules
        strip_response(head)
        if adjust is not None:
            length = head.headers.get_bytes(b"content-length")
            has_body = response_has_body(head, session.req_header().method, length)
            over = head.status >= 200 and (not has_body or rest[:1] == [END])
            over = over and not session.req_header().switched_by(head.status)
            session._phase = "adjust_upstream_modules"
            await adjust(session, head, over, self._ctx)
        self._row = None
        modules, compression = session._upstream_modules, session._upstream_compression
        acting = [] if modules is None else modules.with_hook(*RESPONSE_HOOKS)
        if compression is not None:
            acting.append(compression)
        if acting:
            self._row = response_row(session, acting)

    async def _pass_on(self, events: list[ResponseEvent]) -> list[ResponseEvent]:
        if self._row is None or not events:
            return events
        return await self._row.pass_on(events)
