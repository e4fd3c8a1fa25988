"""Runs a scenario: a whole server between reference clients and a reference origin, in memory.

Time is virtual and the order of tasks comes from the scenario's seed, so that a run costs
milliseconds and is the same each time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio
from trio.testing import MockClock

from .._errors import ErrorType, ProxyError
from .._headers import Headers
from .._info import ConnectionInfo, Digest
from .._messages import BodyChunk, Data, RequestHeader, ResponseHeader
from .._peer import HttpPeer
from ..codec._h1 import HeadLimits, ResponseReader
from ..proxy._filters import FailToProxy, ProxyHttp
from ..proxy._session import Session
from ..server._serve import Running, serve
from ..streams._h1_client import H1ClientConnection
from ..upstream._connector import Connector
from ._network import PLAIN, Link, MemoryAcceptor, Network
from ._observed import (
    CONF,
    GROWN,
    OWN,
    PATIENCE,
    PROBE,
    Asked,
    Call,
    Ctx,
    Observed,
    OriginSide,
    Received,
)
from ._reference import BLOCK, CutError, MalformedError, Message, Wire, blocks
from ._scenario import NAMES, Answer, Client, Filter, Name, Request, Scenario
from ._schedule import AtStep, seeded_schedule

#: Calls of one callback that a filter's pause holds up, per request.
PAUSES = 5
EXTRA = b"HTTP/1.1 200 Extra\r\nX-Answer: 888.0\r\nContent-Length: 5\r\n\r\nextra"


# -- the proxy object ----------------------------------------------------------------------------


def _number(target: bytes) -> int:
    digits = target[2:5]
    if len(target) == 5 and target.startswith(b"/r") and digits.isdigit():
        return int(digits)
    return -1


class WorldProxy(ProxyHttp[Ctx]):
    """Writes each callback down, then does what the scenario's filters say."""

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.filters: tuple[Filter, ...] = observed.scenario.filters
        self.names: tuple[Name, ...] = observed.scenario.names or NAMES

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

    def new_ctx(self) -> Ctx:
        ctx = Ctx(-1, [Call("new_ctx")], trio.current_time())
        self.observed.contexts.append(ctx)
        return ctx

    async def early_request_filter(self, session: Session, ctx: Ctx) -> None:
        ctx.number = _number(session.req_header().target)
        await self._do("early_request_filter", ctx)
        if any(each.do == "stay" for each in self.filters):
            session.set_abort_on_close(False)

    async def request_filter(self, session: Session, ctx: Ctx) -> bool:
        await self._do("request_filter", ctx)
        for each in self._does("request_filter"):
            if each.do == "peek":
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
        await self._do("upstream_peer", ctx)
        failed = sum(call.name == "fail_to_connect" for call in ctx.calls)
        return HttpPeer(self.names[failed % len(self.names)].host, 80)

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
        await self._do("logging", ctx, "" if e is None else str(e.etype))


# -- the origin ----------------------------------------------------------------------------------


def answer_bytes(received: Received) -> bytes:
    """Return the whole response to a request."""
    answer, method = received.answer, received.head.start.split(b" ")[0]
    body = blocks(b"a", received.number, received.attempt, answer.blocks)
    if answer.status == 101:
        named = b"X-Answer: %d.%d\r\n" % (received.number, received.attempt)
        return b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: echo\r\n%s\r\n%s" % (
            named,
            body,
        )
    lines = [
        b"HTTP/1.1 %d Reason" % answer.status,
        b"X-Answer: %d.%d" % (received.number, received.attempt),
    ]
    if answer.after == "close" or answer.framing == "close":
        lines.append(b"Connection: close")
    bodiless = method == b"HEAD" or answer.status in (204, 304)
    if answer.framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        size = BLOCK * 100 + 7
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        tail = b"0\r\n" + (b"X-Sum: 1\r\n" if answer.trailer else b"") + b"\r\n"
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + tail
    elif answer.framing == "length" and answer.status != 204:
        lines.append(b"Content-Length: %d" % len(body))
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return head if bodiless else head + body


class World:
    """A scenario while it runs."""

    def __init__(self, scenario: Scenario, observed: Observed) -> None:
        self.scenario = scenario
        self.observed = observed
        self.network = Network(scenario.fail_operation)
        self.acceptor = MemoryAcceptor(self.network)
        self.origins: list[OriginSide] = []
        self.connections: list[H1ClientConnection] = []
        self.connects = 0
        self.clients: list[Wire] = []
        self.by_number = {number: request for number, _, request in scenario.requests()}

    def problem(self, text: str) -> None:
        """Write down what is wrong."""
        self.observed.problems.append(text)

    async def origin(self, side: OriginSide, index: int) -> None:
        """Serve one connection."""
        wire = Wire(side.end)
        try:
            while await self._answer(wire, side, index):
                pass
        except CutError:
            pass
        except MalformedError as exc:
            self.problem(f"5: the origin cannot read what the proxy sent: {exc}")
        finally:
            side.state = "gone"
            side.end.close_now()

    async def _answer(self, wire: Wire, side: OriginSide, index: int) -> bool:
        side.state = "idle"
        if await wire.idle_end():
            return False
        side.state = "busy"
        head = await wire.head()
        number = _number(head.start.split(b" ")[1])
        if number not in self.by_number:
            self.problem(f"5: the origin got a request that nobody sent: {head.start!r}")
            return False
        attempt = sum(each.number == number for each in self.observed.received)
        answers = self.by_number[number].answers or (Answer(),)
        answer = answers[min(attempt, len(answers) - 1)]
        received = Received(number, attempt, index, head, answer)
        self.observed.received.append(received)
        if not answer.early:
            if head.get(b"expect") and not await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n"):
                return False
            await wire.body(head)
            head.complete = answer.status != 101
        await trio.sleep(answer.wait)
        for status in answer.infos:
            await wire.send(b"HTTP/1.1 %d Info\r\nX-Info: 1\r\n\r\n" % status)
        data = answer_bytes(received)
        if answer.cut is not None and answer.cut < len(data):
            await wire.send(data[: answer.cut])
            if answer.leave == "reset":
                side.end.reset()
            return False
        if answer.after == "extra" and not answer.after_wait and answer.framing != "close":
            data += EXTRA  # in the same packet
        received.answered = await wire.send(data)
        if answer.status == 101:
            await self._far_end(wire, head, self.by_number[number].blocks * BLOCK)
        if answer.framing == "close" or answer.after == "close":
            return False
        if answer.early and not head.complete:
            await wire.body(head)
        return await self._after(wire, side, answer)

    async def _far_end(self, wire: Wire, head: Message, most: int) -> None:
        """Take what comes through a tunnel until it ends, or all of it has come."""
        while len(head.body) < most and not await wire.idle_end():
            head.body += wire.buffer
            wire.buffer.clear()

    async def _after(self, wire: Wire, side: OriginSide, answer: Answer) -> bool:
        if answer.after == "keep" or (answer.after == "extra" and not answer.after_wait):
            return True
        side.state = "idle"
        await trio.sleep(answer.after_wait)
        if answer.after == "extra":
            return await self._speak_out_of_turn(wire)
        return False

    async def _speak_out_of_turn(self, wire: Wire) -> bool:
        """Send a response that nobody asked for, unless the next request is under way already.

        One that arrives when the next request has left cannot be told from its answer.
        """
        end, before = wire.end, wire.end.incoming.sent
        if wire.buffer or end.incoming.size:
            return True
        await wire.send(EXTRA)
        path = end.outgoing.path
        fault = path.fault
        await trio.sleep(path.latency)
        stalled = fault is not None and fault.kind == "stall"
        if end.incoming.sent != before and (path.latency or stalled):
            self.observed.crossed = True
        return True

    # -- clients ---------------------------------------------------------------------------------

    async def client(self, index: int, client: Client, asked: list[Asked]) -> None:
        """Play one client; it connects again for what it could not ask."""
        await trio.sleep(client.start)
        with trio.CancelScope() as scope:
            if client.leaves is not None:
                scope.deadline = trio.current_time() + client.leaves
            link, left = client.link, asked
            while left:
                if not await self._connection(index, client, link, left):
                    scope.cancel()
                await trio.lowlevel.checkpoint()
                link, left = PLAIN, [each for each in left[1:] if not each.begun]
        if scope.cancelled_caught:
            for each in asked:
                each.outcome = each.outcome or "left"

    async def _connection(self, index: int, client: Client, link: Link, asked: list[Asked]) -> bool:
        """Play one connection of a client; False where nobody listens any more."""
        try:
            end = self.acceptor.connect(link)
        except ConnectionRefusedError:
            return False
        wire = Wire(end)
        self.clients.append(wire)
        try:
            await (self._pipeline if client.pipelined else self._in_turn)(wire, client, asked)
            await self._end(wire, client, asked)
        except MalformedError as exc:
            self.problem(f"2: client {index} cannot read what the proxy sent: {exc}")
        finally:
            if client.end == "reset":
                end.reset()
            end.close_now()
        for each in asked:
            if each.begun:
                each.outcome = each.outcome or "ended"
        return True

    async def _end(self, wire: Wire, client: Client, asked: list[Asked]) -> None:
        if client.end != "half-close" or wire.end.closed or client.fin:
            return
        await wire.end.send_eof()
        if asked[-1].outcome != "complete" or asked[-1].request.upgrade:
            return
        with trio.move_on_after(PATIENCE):
            try:
                if not await wire.idle_end():
                    self.problem(f"2: bytes behind the last response: {bytes(wire.buffer[:60])!r}")
            except CutError:
                pass

    async def _in_turn(self, wire: Wire, client: Client, asked: list[Asked]) -> None:
        for each in asked:
            await trio.sleep(each.request.wait)
            invited = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask, wire, each, invited)
                await trio.sleep(client.slow)
                goes_on = await self._listen(wire, each, invited)
                if not goes_on or each.request.stops is not None:
                    nursery.cancel_scope.cancel()
            if not goes_on or not each.whole:
                return

    async def _pipeline(self, wire: Wire, client: Client, asked: list[Asked]) -> None:
        async def ask_all() -> None:
            invited = trio.Event()
            invited.set()
            for each in asked:
                await trio.sleep(each.request.wait)
                await self._ask(wire, each, invited)
                if not each.whole:
                    return
            if client.fin:
                with suppress(trio.ClosedResourceError):
                    await wire.end.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_all)
            for each in asked:
                await trio.sleep(client.slow)
                if not await self._listen(wire, each, trio.Event()):
                    break
            nursery.cancel_scope.cancel()

    async def _ask(self, wire: Wire, asked: Asked, invited: trio.Event) -> None:
        request = asked.request
        body = blocks(b"q", asked.number, 0, request.blocks)
        if request.upgrade:
            await self._offer(wire, asked, invited, body)
            return
        lines = [
            b"%s /r%03d HTTP/1.%d" % (request.method.encode(), asked.number, not request.old),
            b"Host: site.test",
        ]
        if request.chunked and not request.old:
            lines.append(b"Transfer-Encoding: chunked")
            size = BLOCK * 70 + 3
            chunks = [body[at : at + size] for at in range(0, len(body), size)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"
        elif request.blocks or request.method in ("POST", "PUT"):
            lines.append(b"Content-Length: %d" % len(body))
        if request.expect and not request.old:
            lines.append(b"Expect: 100-continue")
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        asked.begun = True
        if request.expect and not request.old:
            if not await wire.send(head):
                return
            with trio.move_on_after(1):
                await invited.wait()
            head = b""
        if request.stops is not None and request.stops < len(body):
            await wire.send(head + body[: request.stops])
            return
        asked.whole = await wire.send(head + body)

    async def _offer(self, wire: Wire, asked: Asked, invited: trio.Event, body: bytes) -> None:
        head = (
            b"GET /r%03d HTTP/1.1\r\nHost: site.test\r\nConnection: upgrade\r\n"
            b"Upgrade: echo\r\n\r\n"
        ) % asked.number
        asked.begun = True
        if asked.request.chunked:  # it does not wait to be let through
            asked.whole = await wire.send(head + body)
            return
        asked.whole = await wire.send(head)
        await invited.wait()
        if asked.final is None and await wire.send(body):
            client = self.scenario.clients[asked.client]
            if client.end == "half-close":
                with suppress(trio.ClosedResourceError):
                    await wire.end.send_eof()

    async def _listen(self, wire: Wire, asked: Asked, invited: trio.Event) -> bool:
        """Read the answer to a request; False where the connection is over."""
        bodiless = asked.request.method == "HEAD"
        with trio.move_on_after(PATIENCE):
            try:
                while True:
                    message = await wire.head()
                    if message.status >= 200:
                        break
                    if message.status == 101:
                        return await self._near_end(wire, asked, message, invited)
                    await wire.body(message)
                    asked.interim.append(message.status)
                    if message.status == 100:
                        invited.set()
                invited.set()
                asked.final = message
                await wire.body(message, bodiless=bodiless)
            except CutError as exc:
                asked.outcome = "cut" if asked.final is not None else "ended"
                if exc.message is not None and asked.final is None:
                    asked.outcome = "cut"
                asked.reset = exc.reset
                return False
            asked.outcome = "complete"
            if asked.request.upgrade:
                return False
            close = message.get(b"connection") or b""
            return not message.until_close and b"close" not in close.lower()
        asked.outcome = "hang"
        return False

    async def _near_end(
        self, wire: Wire, asked: Asked, message: Message, invited: trio.Event
    ) -> bool:
        """Take what comes through a tunnel until it ends."""
        if not asked.request.upgrade:
            raise MalformedError("a 101 that was not asked for")
        invited.set()
        asked.outcome = "cut"  # unless it is known to have ended
        await trio.lowlevel.checkpoint()
        message.until_close = True
        try:
            while not await wire.idle_end():
                message.body += wire.buffer
                wire.buffer.clear()
            asked.outcome = "complete"
        finally:
            asked.final = message
        return False

    # -- the run ---------------------------------------------------------------------------------

    async def run(
        self, running: Running, nursery: trio.Nursery, proxy: WorldProxy, watch: AtStep
    ) -> None:
        """Play all of it, and ask in the end whether the proxy is still well."""
        by_client: dict[int, list[Asked]] = {n: [] for n in range(len(self.scenario.clients))}
        for number, client, request in self.scenario.requests():
            asked = Asked(number, client, request)
            self.observed.asked[number] = asked
            by_client[client].append(asked)
        stop = self.scenario.stop
        if stop is not None:
            nursery.start_soon(self._stop, running, stop.at, stop.kind)
        async with trio.open_nursery() as clients:
            for index, each in enumerate(self.scenario.clients):
                clients.start_soon(self.client, index, each, by_client[index])
        await self._settle(running)
        watch.started = False
        if stop is None and not self.observed.stopped:
            self._check_pool(running)
            await self._probe(proxy)
            await self._settle(running)
            self._check_pool(running)

    async def _stop(self, running: Running, at: float, kind: str) -> None:
        await trio.sleep(at)
        if kind == "drain":
            await running.drain()
        else:
            running._server.serving.cancel()  # noqa: SLF001  # a hard stop from inside

    async def _settle(self, running: Running) -> None:
        """Wait until no client connection is served any more; that takes no longer than timeouts."""
        for _ in range(int(PATIENCE)):
            statistics = running.statistics()
            if not statistics.connections:
                break
            await trio.sleep(1)
        else:
            self.problem("7: a client connection outlives its client and every timeout")
        statistics = running.statistics()
        if statistics.sessions or statistics.pool.leased or statistics.pool.waiting:
            self.problem(f"4: left when all clients had gone: {statistics}")
        await trio.sleep(0.2)

    def _check_pool(self, running: Running) -> None:
        alive = [each for each in self.connections if not each.dead]
        if len(alive) != running.statistics().pool.idle:
            self.problem(f"4: {len(alive)} live connections, {running.statistics().pool}")
        for connection in alive:
            end = connection.transport
            side = self.origins[self.connections.index(connection)]
            reader = connection.reader
            if reader.leftover or connection.events or end.incoming.arrived():  # type: ignore[attr-defined]  # an End
                self.problem("4: something lies unread on an idle connection")
            if side.state == "busy" and not end.outgoing.silent and not end.incoming.silent:  # type: ignore[attr-defined]  # an End
                self.problem("4: an idle connection is between messages, its origin is not")

    async def _probe(self, proxy: WorldProxy) -> None:
        """Ask, when faults have stopped, for one more answer."""
        self.network.calm()
        await trio.sleep(0.1)
        proxy.filters = ()
        request = Request()
        self.by_number[PROBE] = request
        asked = Asked(PROBE, -1, request)
        self.observed.asked[PROBE] = asked
        await self.client(-1, Client(), [asked])
        if asked.outcome != "complete" or asked.final is None or asked.final.status != 200:
            status = asked.final.status if asked.final is not None else None
            self.problem(f"7: a new request got {asked.outcome!r}, status {status}")

    def buffered(self, running: Running) -> int:
        """Return the bytes that the proxy holds of all sessions and connections."""
        held = 0
        for connection in running._server.connections:  # noqa: SLF001  # they are not told outside
            held += connection.buffered
        for upstream in self.connections:
            if not upstream.dead:
                held += upstream.reader.leftover
                held += sum(len(each.data) for each in upstream.events if type(each) is Data)
        return held + sum(end.pending for end in self.network.ends)


class WorldConnector(Connector):
    """Connects to the reference origin."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        """Make a connector; origins run in the nursery."""
        self._world = world
        self._nursery = nursery

    async def connect(self, peer: HttpPeer) -> H1ClientConnection:
        """Connect, or fail as the scenario says."""
        await trio.lowlevel.checkpoint()
        world, scenario = self._world, self._world.scenario
        number = world.connects
        world.connects += 1
        fate = scenario.connects[number] if number < len(scenario.connects) else "ok"
        addresses = {name.host: name.address for name in scenario.names or NAMES}
        address = addresses.get(str(peer.host))
        if address is None and world.network.faults:
            error = ProxyError.explain(ErrorType.ConnectError, f"looking up {peer.host}")
            raise error.into_up()
        if world.network.faults and fate == "refused":
            raise ProxyError.explain(ErrorType.ConnectRefused, "as the scenario says").into_up()
        if world.network.faults and fate == "hang":
            await trio.sleep(CONF.connect_timeout)
            raise ProxyError.explain(ErrorType.ConnectTimedout, "as the scenario says").into_up()
        index = len(world.origins)
        links = scenario.origin_links
        link = links[index] if index < len(links) else Link()
        ours, theirs = world.network.link(f"origin{index}", link, proxy_connects=True)
        side = OriginSide(theirs)
        world.origins.append(side)
        self._nursery.start_soon(world.origin, side, index)
        info = ConnectionInfo("192.0.2.10:40000", f"{address}:80", trio.current_time())
        connection = H1ClientConnection(ours, info, ResponseReader(HeadLimits()))
        world.connections.append(connection)
        return connection


class _Log(logging.Handler):
    """Finds what should never be logged: an error of our own that no filter made."""

    def __init__(self, observed: Observed) -> None:
        super().__init__()
        self._observed = observed

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and "the scenario wants this filter to" not in repr(record.exc_info[1]):
            error = repr(record.exc_info[1])
            self._observed.problems.append(f"6: logged: {record.getMessage()}: {error}")


class _Watch(AtStep):
    """Counts steps, and watches what is buffered."""

    def __init__(self, step: int, deed: Callable[[], None] | None) -> None:
        super().__init__(step, deed)
        self.look: Callable[[], None] = lambda: None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Look."""
        self.look()


#: What may be done to a run before one of its steps: to the whole server, or to the first client.
DEEDS = ("cancel", "drain", "leave", "half-close", "reset")


def run_scenario(scenario: Scenario, *, step: int = 0, deed: str = "cancel") -> Observed:
    """Run a scenario once.

    Args:
      scenario: What happens.
      step: The step of Trio's tasks before which the deed is done; 0 for never.
      deed: ``"cancel"`` or ``"drain"`` the server; or the first client ends by ``"leave"``,
        ``"half-close"`` or ``"reset"``.
    """
    observed = Observed(scenario, step, deed)
    world = World(scenario, observed)
    watch = _Watch(step, None)
    log = logging.getLogger("trioproxy")
    handler = _Log(observed)

    async def main() -> None:
        try:
            with trio.fail_after(100000):
                await _serve_world(world, watch, deed)
        except trio.TooSlowError:
            observed.problems.append("7: the run did not end")
        if trio.lowlevel.current_root_task() is not None:
            living = trio.lowlevel.current_statistics().tasks_living
            if living > watch_base[0]:
                observed.problems.append(f"6: {living - watch_base[0]} tasks are left")

    watch_base = [0]

    async def outer() -> None:
        watch_base[0] = trio.lowlevel.current_statistics().tasks_living
        await main()

    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        with seeded_schedule(scenario.seed):
            trio.run(outer, clock=MockClock(autojump_threshold=0), instruments=[watch])
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
    observed.steps = watch.count
    observed.trace = world.network.trace
    observed.operations = world.network.operations
    return observed


async def _serve_world(world: World, watch: _Watch, deed: str) -> None:
    observed, scenario = world.observed, world.scenario
    conf = attrs.evolve(
        CONF, max_connections_per_peer=scenario.per_peer, pool_size=scenario.pool_size
    )
    proxy = WorldProxy(observed)
    async with trio.open_nursery() as origins:
        async with trio.open_nursery() as servers:

            async def start(
                task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
            ) -> None:
                connector = WorldConnector(world, origins)
                await serve(
                    proxy, world.acceptor, conf=conf, connector=connector, task_status=task_status
                )

            running: Running = await servers.start(start)

            def do() -> None:
                observed.disturbed = True
                observed.stopped = deed in ("cancel", "drain")
                if deed == "cancel":
                    running._server.serving.cancel()  # noqa: SLF001  # a hard stop from inside
                elif deed == "drain":
                    servers.start_soon(running.drain)
                elif world.clients:
                    end = world.clients[0].end
                    if deed == "half-close":
                        end.outgoing.end()
                    elif deed == "reset":
                        end.reset()
                    else:
                        end.close_now()

            def look() -> None:
                observed.peak = max(observed.peak, world.buffered(running))

            watch.deed = do
            watch.look = look
            watch.started = True
            await world.run(running, servers, proxy, watch)
            watch.look = lambda: None
            if scenario.stop is None and not observed.stopped:
                await running.drain(5)
        for end in world.network.ends:
            if not end.closed:
                observed.problems.append(f"6: a link is still open: {end.outgoing.name}")
        await trio.sleep(60)  # an origin ends by what it reads, or by the end of its wait
        if any(side.state != "gone" and not side.end.incoming.silent for side in world.origins):
            observed.problems.append("6: an origin still waits on a connection")
        origins.cancel_scope.cancel()
