"""The proxy object of a run: it writes each callback down, then does what the filters say."""

from __future__ import annotations

import trio

from .._errors import ProxyError
from .._headers import Headers
from .._info import Digest
from .._messages import BodyChunk, RequestHeader, ResponseHeader
from .._options import PeerOptions
from .._peer import HttpPeer
from ..modules._abc import HttpModules
from ..proxy._filters import FailToProxy, ProxyHttp
from ..proxy._session import Session
from ..subrequests._mirror import Mirror
from ._observed import ATTEMPT, GROWN, OWN, Call, Ctx, Observed
from ._scenario import NAMES, Filter, Name, Scenario
from ._secure import credentials

#: Where the mirror is found. Its connections are never used again, as the origin's accounts are.
SHADOW = HttpPeer("shadow.test", 80, options=PeerOptions(idle_timeout=0))
#: Calls of one callback that a filter's pause holds up, per request.
PAUSES = 5


def number_of(target: bytes) -> int:
    """Return the number of the request that has this target, -1 where none has."""
    digits = target[2:5]
    if len(target) == 5 and target.startswith(b"/r") and digits.isdigit():
        return int(digits)
    return -1


def peer_of(name: Name, scenario: Scenario) -> HttpPeer:
    """Return how the origin behind a name is spoken to."""
    if name.speaks == "h1":
        return HttpPeer(name.host, 80)
    if name.speaks == "h2c":
        options = PeerOptions(
            http_version=(2, 2), max_h2_streams=scenario.shared, h2_ping_interval=scenario.ping
        )
        return HttpPeer(name.host, 80, options=options)
    options = PeerOptions(
        http_version=(2, 1),
        max_h2_streams=scenario.shared,
        h2_ping_interval=scenario.ping,
        ca=credentials().authority,
    )
    return HttpPeer(name.host, 443, scheme="https", options=options)


class WorldProxy(ProxyHttp[Ctx]):
    """Writes each callback down, then does what the scenario's filters say."""

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.filters: tuple[Filter, ...] = observed.scenario.filters
        names: tuple[Name, ...] = observed.scenario.names or NAMES
        self.peers = [peer_of(each, observed.scenario) for each in names]

    def _does(self, name: str) -> list[Filter]:
        return [each for each in self.filters if each.name == name]

    async def _do(self, name: str, ctx: Ctx, note: str = "") -> None:
        ctx.calls.append(Call(name, note=note))
        await self._act(name, ctx)

    async def _act(self, name: str, ctx: Ctx) -> None:
        for each in self._does(name):
            if each.do == "pause":
                if sum(call.name == name for call in ctx.calls) <= PAUSES:
                    await trio.sleep(each.seconds)
            elif each.do == "refuse":
                raise ProxyError.status(403, "the scenario wants this filter to refuse")
            elif each.do == "fail":
                raise ValueError("the scenario wants this filter to fail")

    def init_downstream_modules(self, modules: HttpModules) -> None:
        shadow = self.observed.scenario.shadow
        if shadow is not None:
            modules.add_module(Mirror(SHADOW, sample=shadow.share))

    def new_ctx(self) -> Ctx:
        ATTEMPT.set(0)
        ctx = Ctx(-1, [Call("new_ctx")], trio.current_time())
        self.observed.contexts.append(ctx)
        return ctx

    async def early_request_filter(self, session: Session, ctx: Ctx) -> None:
        ctx.number = number_of(session.req_header().target)
        ctx.client = session.client_addr()
        self._count_live(ctx)
        await self._do("early_request_filter", ctx)
        if any(each.do == "stay" for each in self.filters):
            session.set_abort_on_close(False)

    def _count_live(self, ctx: Ctx) -> None:
        """Write down which sessions of a client's connection live now."""
        observed = self.observed
        alive = tuple(
            each.number
            for each in observed.contexts
            if each.client == ctx.client and each.number >= 0 and not each.over
        )
        if len(alive) > observed.scenario.most_streams:
            observed.alive.append(alive)

    async def request_filter(self, session: Session, ctx: Ctx) -> bool:
        await self._do("request_filter", ctx)
        for each in self._does("request_filter"):
            if each.do == "hedge":
                session.hedge(each.seconds)
            elif each.do == "peek":
                await session.peek_request_body(1000)
            elif each.do in ("answer", "keep", "read"):
                if each.do == "keep":
                    session.set_close_on_response_before_downstream_finish(False)
                while each.do == "read" and await session.read_request_body() is not None:
                    pass
                head = ResponseHeader(200, {"Content-Length": str(len(OWN))})
                await session.write_response_header(head)
                await session.write_response_body(OWN, True)
                return True
        return False

    async def proxy_upstream_filter(self, session: Session, ctx: Ctx) -> bool:
        await self._do("proxy_upstream_filter", ctx)
        return True

    async def upstream_peer(self, session: Session, ctx: Ctx) -> HttpPeer:
        ATTEMPT.set(1 + sum(call.name == "upstream_peer" for call in ctx.calls))
        await self._do("upstream_peer", ctx)
        failed = sum(call.name == "fail_to_connect" for call in ctx.calls)
        return self.peers[failed % len(self.peers)]

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: Ctx, e: ProxyError
    ) -> ProxyError:
        ctx.calls.append(Call("fail_to_connect"))
        if any(each.do == "retry" for each in self._does("fail_to_connect")):
            e.set_retry(True)
        return e

    async def connected_to_upstream(
        self,
        session: Session,
        reused: bool,
        peer: HttpPeer,
        fd: int,
        digest: Digest | None,
        ctx: Ctx,
    ) -> None:
        await self._do("connected_to_upstream", ctx, "reused" if reused else "")

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: Ctx
    ) -> None:
        if any(each.do == "grow" for each in self._does("request_body_filter")):
            upstream_request.headers.remove("Content-Length")
        await self._do("upstream_request_filter", ctx)

    async def _body(self, name: str, body: BodyChunk, end: bool, ctx: Ctx) -> None:
        got = bytes(body.data or b"")
        if got and any(each.do == "grow" for each in self._does(name)):
            body.data = got + GROWN
        ctx.calls.append(Call(name, end, got, bytes(body.data or b"")))
        await self._act(name, ctx)

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> None:
        await self._body("request_body_filter", body, end_of_stream, ctx)

    async def upstream_response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Ctx
    ) -> None:
        await self._do("upstream_response_filter", ctx, str(upstream_response.status))

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Ctx
    ) -> None:
        grows = any(each.do == "grow" for each in self._does("response_body_filter"))
        if grows and session.req_header().method != "HEAD":
            upstream_response.headers.remove("Content-Length")
        await self._do("response_filter", ctx, str(upstream_response.status))

    def upstream_response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> float | None:
        data = bytes(body.data or b"")
        ctx.calls.append(Call("upstream_response_body_filter", end_of_stream, data, data))
        return None

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> float | None:
        await self._body("response_body_filter", body, end_of_stream, ctx)
        return None

    async def response_trailer_filter(
        self, session: Session, upstream_trailers: Headers, ctx: Ctx
    ) -> bytes | None:
        await self._do("response_trailer_filter", ctx)
        return None

    def error_while_proxy(
        self, peer: HttpPeer, session: Session, e: ProxyError, ctx: Ctx, client_reused: bool
    ) -> ProxyError:
        ctx.calls.append(Call("error_while_proxy", note=str(e.etype)))
        if any(each.do == "retry" for each in self._does("error_while_proxy")):
            e.set_retry(True)
        return super().error_while_proxy(peer, session, e, ctx, client_reused)

    async def fail_to_proxy(self, session: Session, e: ProxyError, ctx: Ctx) -> FailToProxy:
        await self._do("fail_to_proxy", ctx, str(e.etype))
        return await super().fail_to_proxy(session, e, ctx)

    async def logging(self, session: Session, e: ProxyError | None, ctx: Ctx) -> None:
        ctx.ended = trio.current_time()
        try:
            await self._do("logging", ctx, "" if e is None else str(e.etype))
        finally:
            ctx.over = True
