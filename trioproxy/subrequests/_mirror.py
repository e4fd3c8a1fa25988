"""Traffic mirrored to a second peer: a copy of each request, or of a sample, whose answer is dropped.

The mirrored request is a subrequest in the background with callbacks of its own: none of the
proxy's run for it, and no module. Its body is a tee at the place where the module stands in the
row. The client's request never waits for it: the tee takes what comes up to a bound, and a mirror
that falls further behind is given up, and counted.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._errors import ProxyError
from .._info import ConnectionInfo
from .._messages import BodyChunk, RequestHeader, ResponseHeader
from .._peer import HttpPeer
from .._util import Bell
from ..modules._abc import HttpModule, HttpModuleBuilder
from ..proxy._bound import Filters
from ..proxy._filters import ProxyHttp
from ..proxy._subrequest import (
    BodyMode,
    SubrequestCtx,
    depth_below,
    prepare,
    run_subrequest,
    services_of,
)

if TYPE_CHECKING:
    from ..proxy._services import Services
    from ..proxy._session import Session


@attrs.frozen(kw_only=True)
class Mirrored:
    """What came of a mirrored request, for ``Mirror.on_mirrored`` to compare.

    Attributes:
      request: The head that the mirror was sent.
      answer: The final head that the client got, None where it got none.
      response: The final head that the mirror sent, None where it failed.
      body_bytes: Payload bytes of the mirror's response.
      error: Why it failed, None where it did not.
      duration: Seconds that it took.
    """

    request: RequestHeader
    answer: ResponseHeader | None
    response: ResponseHeader | None
    body_bytes: int
    error: ProxyError | None
    duration: float


@attrs.define(slots=False)
class _MirrorTrait(ProxyHttp[None]):
    """The callbacks of a mirrored request."""

    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer

    def suppress_error_log(self, session: Session, ctx: None, error: ProxyError) -> bool:
        return True  # the mirror says so itself, as a warning


#: Pieces that wait are joined up to this size: single bytes would take far more than they count for.
JOINED_PIECE = 8192


class _Tee:
    """The copy of a body on its way to the mirror."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: deque[bytes] = deque()
        self._behind = 0
        self._bell = Bell()
        #: Whether the whole body was seen.
        self.ended = False
        #: Whether the mirror takes no more of it.
        self.closed = False

    def put(self, data: bytes) -> bool:
        """Take a piece; False where the mirror is too far behind."""
        if self.closed:
            return True
        self._behind += len(data)
        if self._behind > self._limit:
            return False
        pieces = self._pieces
        if pieces and len(pieces[-1]) + len(data) <= JOINED_PIECE:
            pieces[-1] += data
        else:
            pieces.append(data)
        self._bell.ring()
        return True

    def end(self) -> None:
        """Note the end of the body."""
        self.ended = True
        self._bell.ring()

    def close(self) -> None:
        """Take no more, and let go of what waits."""
        self.closed = True
        self._pieces.clear()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self.ended:
                raise StopAsyncIteration
            await self._bell.wait()
        piece = self._pieces.popleft()
        self._behind -= len(piece)
        return piece


class MirrorModule(HttpModule):
    """One request's part of a `Mirror`."""

    def __init__(self, mirror: Mirror, filters: Filters, *, chosen: bool) -> None:
        self._mirror = mirror
        self._filters = filters
        self._chosen = chosen
        self._started = False
        #: Whether the body has begun to pass by.
        self._begun = False
        self._tee: _Tee | None = None
        self._scope = trio.CancelScope()
        self._services: Services | None = None
        self._answer: ResponseHeader | None = None
        self._answered = trio.Event()

    def start(self, session: Session) -> bool:
        """Mirror the request, in the sample or not, and return whether that has begun.

        For a `Mirror` with ``at_once=False``: call it once the request is known to be a good one,
        before anything has read its body. Neither upgrades, CONNECT nor subrequests are mirrored,
        and nothing is while the server drains or as many background requests run as may.
        """
        request = session.req_header()
        if self._started or request.asks_to_switch or session.is_subrequest():
            return False
        services, mirror = services_of(session), self._mirror
        has_body = not session.is_body_empty()
        if has_body and self._begun:
            return False
        self._started = True
        length = request.headers.get_bytes(b"content-length") or b""
        head = prepare(request, length=int(length) if length.isdigit() else None, body=has_body)
        if mirror.rewrite is not None:
            try:
                mirror.rewrite(head)
            except Exception:  # the client is not to feel it
                services.log.exception("Mirror.rewrite failed: %s", session.request_summary())
                return False
        ctx = SubrequestCtx(
            body_mode=BodyMode.EXPECT_BODY if has_body else BodyMode.NO_BODY,
            depth=depth_below(session),
            background=True,
        )
        ctx.run_with(self._filters)
        tee = _Tee(mirror.max_behind) if has_body else None
        info = session.downstream_session.info
        if not services.start_background(partial(self._run, services, head, tee, ctx, info)):
            services.mirrors_dropped += 1
            return False
        self._services, self._tee = services, tee
        return True

    async def _run(
        self,
        services: Services,
        head: RequestHeader,
        tee: _Tee | None,
        ctx: SubrequestCtx,
        info: ConnectionInfo,
    ) -> None:
        started = trio.current_time()
        response: ResponseHeader | None = None
        error: ProxyError | None = None
        size = 0
        with self._scope:
            try:
                async with run_subrequest(services, head, tee, ctx, info) as subrequest:
                    response = await subrequest.response_header()
                    size = await subrequest.drain()
            except ProxyError as exc:
                error = exc
            finally:
                if tee is not None:
                    tee.close()
        if self._scope.cancelled_caught:
            return
        error = ctx.error or error
        duration = trio.current_time() - started
        if error is not None:
            response = None  # what there was of it was made here
            services.log.warning("a mirrored request failed: %s", error)
        if self._mirror.on_mirrored is not None:
            await self._answered.wait()
            self._mirror.on_mirrored(
                Mirrored(
                    request=head,
                    answer=self._answer,
                    response=response,
                    body_bytes=size,
                    error=error,
                    duration=duration,
                )
            )

    # -- the hooks -------------------------------------------------------------------------------

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Start the mirror, where the request is in the sample."""
        if self._mirror.at_once and self._chosen:
            self.start(session)
        return False

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool
    ) -> None:
        """Pass a copy on, which waits for nobody."""
        self._begun = True
        tee = self._tee
        if tee is None:
            return
        if body.data and not tee.put(bytes(body.data)):
            self._tee = None
            tee.close()
            self._scope.cancel()
            assert self._services is not None
            self._services.mirrors_dropped += 1
            self._services.log.warning(
                "a mirror fell behind by more than %d bytes and was dropped: %s",
                self._mirror.max_behind,
                session.request_summary(),
            )
            return
        if end_of_stream:
            tee.end()

    async def response_header_filter(
        self, session: Session, response: ResponseHeader, end_of_stream: bool
    ) -> None:
        """Keep the head that the client gets."""
        if response.status >= 200:
            self._answer = response.copy() if self._mirror.on_mirrored is not None else None
            self._answered.set()

    def response_done_filter(self, session: Session) -> None:
        """Give a mirror up whose body will never be whole."""
        if self._answer is None and session.response_started():
            self._answer = session.response_written()  # an error of ours: no module has seen it
        self._answered.set()
        if self._tee is not None and not self._tee.ended:
            self._scope.cancel()


def _peer(value: HttpPeer | str) -> HttpPeer:
    return HttpPeer.parse(value) if isinstance(value, str) else value


def _is_share(_instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{attribute.name}={value!r}: a share between 0 and 1 is right")


def _is_size(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name}={value!r}: a number of bytes, 1 or more, is right")


@attrs.frozen(eq=False)
class Mirror(HttpModuleBuilder):
    """Mirrors requests to a second peer: ``modules.add_module(Mirror("http://127.0.0.1:9001"))``.

    It goes into `init_downstream_modules`. The client's request never waits for its mirror and
    knows nothing of it: a mirror that fails is a warning in the log, one that falls behind is given
    up. It goes on where the client is gone, if the whole request was seen by then, for as long as
    ``ServerConf.background_timeout`` allows, and ends with the server;
    ``ServerConf.max_background_requests`` bounds how many there are at once. What was dropped for
    want of room is counted in ``Statistics.mirrors_dropped``.

    Attributes:
      peer: Where the copies go, an `HttpPeer` or its URL.
      sample: Which share of the requests is mirrored, from 0 to 1.
      at_once: Whether the mirror starts where the module stands, before `request_filter`. With
        False a callback starts it: ``session.downstream_modules_ctx.get(MirrorModule).start(session)``,
        in `proxy_upstream_filter` for one, where what is refused or found in a cache does not come.
      max_behind: Bytes of a body that the mirror may be behind the client.
      rewrite: Edits the head that the mirror gets, such as its Host.
      on_mirrored: Is told what came of each mirrored request, to compare it with what the client
        got; those that were given up are left out.
      order: Where the module stands: the mirror gets what modules of a higher order made of the
        request.
    """

    peer: HttpPeer = attrs.field(converter=_peer)
    sample: float = attrs.field(default=1.0, kw_only=True, validator=_is_share)
    at_once: bool = attrs.field(default=True, kw_only=True)
    max_behind: int = attrs.field(default=262144, kw_only=True, validator=_is_size)
    rewrite: Callable[[RequestHeader], None] | None = attrs.field(default=None, kw_only=True)
    on_mirrored: Callable[[Mirrored], None] | None = attrs.field(default=None, kw_only=True)
    order: int = attrs.field(default=0, kw_only=True)
    _filters: Any = attrs.field(init=False, repr=False)
    _random: random.Random = attrs.field(init=False, repr=False, factory=random.Random)

    module_type = MirrorModule

    @_filters.default
    def _bind(self) -> Filters:
        return Filters.bind(_MirrorTrait(self.peer))

    def init(self) -> MirrorModule:
        """Return the instance of a new request."""
        chosen = self._random.random() < self.sample
        return MirrorModule(self, self._filters, chosen=chosen)
