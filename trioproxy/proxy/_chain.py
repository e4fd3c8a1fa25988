"""The modules of one request in a row: what one makes of a message is what the next one gets.

Towards the origin a row stands at the source of the body, before what is kept for another attempt,
so that a module sees each byte once. Towards the client it is the session's own way out; on the
upstream's side it lies around the stream to the origin, before any filter and the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._messages import (
    END,
    BodyChunk,
    Data,
    End,
    ResponseEvent,
    ResponseHeader,
    Trailers,
)
from ..modules._abc import HttpModule, ModulesCtx
from ..semantics._forwarding import strip_response
from ..streams._abc import UpstreamStream
from ._failure import log_failure
from ._over import OverStream
from ._pump import response_has_body

if TYPE_CHECKING:
    from ._bound import Filters
    from ._session import Session

BodyEvent = Data | Trailers | End

RESPONSE_HOOKS = (
    "response_header_filter",
    "response_body_filter",
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
        session._body.go_through(RequestRow(session, acting).pass_on)
    return False


def release_modules(session: Session) -> None:
    """Tell the modules of either side that the exchange is over."""
    for modules in (session._modules, session._upstream_modules):
        if modules is None:
            continue
        for module in modules.with_hook("response_done_filter"):
            session._phase = f"{type(module).__name__}.response_done_filter"
            try:
                module.response_done_filter(session)
            except Exception as exc:  # it may not fail
                log_failure(exc, session)


class RequestStage:
    """One module's part of a request body's way."""

    __slots__ = ("_chunk", "_module", "_over", "_session")

    def __init__(self, session: Session, module: HttpModule) -> None:
        self._session = session
        self._module = module
        self._chunk = BodyChunk()
        #: Whether the module was told of the end.
        self._over = False

    async def run(self, events: list[BodyEvent]) -> list[BodyEvent]:
        """Return what the module makes of events."""
        out: list[BodyEvent] = []
        for event in events:
            kind = type(event)
            if self._over:  # behind the trailers
                out.append(event)
                continue
            data = event.data if kind is Data else None  # type: ignore[union-attr]
            last = self._over = kind is not Data or event.end  # type: ignore[union-attr]
            self._chunk.data = data
            self._session._phase = f"{type(self._module).__name__}.request_body_filter"
            await self._module.request_body_filter(self._session, self._chunk, last)
            data = self._chunk.data
            if kind is Trailers:
                if data:
                    out.append(Data(data))
                out.append(event)
            elif data:
                out.append(Data(data, last))
            elif last:
                out.append(END)
        return out


class RequestRow:
    """The modules' part of a request body's way, one behind the other."""

    __slots__ = ("_stages",)

    def __init__(self, session: Session, modules: Sequence[HttpModule]) -> None:
        self._stages = [RequestStage(session, module) for module in modules]

    async def pass_on(self, events: list[BodyEvent]) -> list[BodyEvent]:
        """Return what the modules make of events."""
        for stage in self._stages:
            events = await stage.run(events)
        return events


class ResponseStage:
    """One module's part of a response's way."""

    __slots__ = (
        "_body",
        "_chunk",
        "_ended",
        "_has_body",
        "_head",
        "_module",
        "_replaced",
        "_session",
        "_trailer",
    )

    def __init__(self, session: Session, module: HttpModule) -> None:
        hooks = module.overridden
        self._session = session
        self._module = module
        self._head = "response_header_filter" in hooks
        self._body = "response_body_filter" in hooks
        self._trailer = "response_trailer_filter" in hooks
        self._chunk = BodyChunk()
        #: Whether the response has content, whose end the module has not been told of.
        self._has_body = False
        self._ended = False
        #: Whether bytes have taken the place of the trailers: nothing follows them.
        self._replaced = False

    def _enter(self, hook: str) -> None:
        self._session._phase = f"{type(self._module).__name__}.{hook}"

    async def run(self, events: Sequence[ResponseEvent]) -> list[ResponseEvent]:
        """Return what the module makes of events."""
        out: list[ResponseEvent] = []
        for index, event in enumerate(events):
            kind = type(event)
            if kind is ResponseHeader:
                ends = index + 1 < len(events) and events[index + 1] is END
                await self._see_head(event, ends)  # type: ignore[arg-type]
                out.append(event)
            elif self._replaced:
                continue
            elif kind is Data:
                last = event.end  # type: ignore[union-attr]
                if self._body:
                    await self._see_piece(event.data, last, out)  # type: ignore[union-attr]
                else:
                    out.append(event)
            elif kind is Trailers:
                await self._see_trailers(event, out)  # type: ignore[arg-type]
            elif self._body and self._has_body and not self._ended:
                await self._see_piece(None, True, out)
            else:
                out.append(event)
        return out

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

    async def _see_piece(
        self, data: bytes | None, last: bool, out: list[ResponseEvent], *, trailers: bool = False
    ) -> None:
        chunk = self._chunk
        chunk.data = data
        self._ended = last
        self._enter("response_body_filter")
        await self._module.response_body_filter(self._session, chunk, last)
        if chunk.data:
            out.append(Data(chunk.data, last and not trailers))
        elif last and not trailers:
            out.append(END)

    async def _see_trailers(self, event: Trailers, out: list[ResponseEvent]) -> None:
        if self._body and self._has_body and not self._ended:
            await self._see_piece(None, True, out, trailers=True)
        replacement = None
        if self._trailer:
            self._enter("response_trailer_filter")
            replacement = await self._module.response_trailer_filter(self._session, event.headers)
        if replacement:
            out.append(Data(replacement, True))
            self._replaced = True
        else:
            out.append(event)


class ResponseRow:
    """The modules' part of a response's way, one behind the other."""

    __slots__ = ("stages",)

    def __init__(self, session: Session, modules: Sequence[HttpModule]) -> None:
        self.stages = [ResponseStage(session, module) for module in modules]

    async def pass_on(self, events: Sequence[ResponseEvent]) -> Sequence[ResponseEvent]:
        """Return what the modules make of events."""
        for stage in self.stages:
            events = await stage.run(events)
        return events


class ModuleStream(OverStream):
    """The origin's side of an exchange behind the modules of the upstream's side."""

    def __init__(self, inner: UpstreamStream, session: Session, filters: Filters, ctx: Any) -> None:
        super().__init__(inner)
        self._session = session
        self._filters = filters
        self._ctx = ctx
        self._row: ResponseRow | None = None
        self._switched = False

    async def receive_batch(self) -> list[ResponseEvent]:
        """Return what the modules have made of what the origin sent."""
        while True:
            batch = await self._inner.receive_batch()
            for event in batch:
                if type(event) is Data:
                    self._inner.body_bytes_received += len(event.data)
            if self._switched:
                return batch
            out: list[ResponseEvent] = []
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
        modules = session._upstream_modules
        if modules is not None:
            acting = modules.with_hook(*RESPONSE_HOOKS)
            if acting:
                self._row = ResponseRow(session, acting)

    async def _pass_on(self, events: list[ResponseEvent]) -> list[ResponseEvent]:
        if self._row is None or not events:
            return events
        return list(await self._row.pass_on(events))
