"""Runs a scenario with a cache: a whole caching proxy between clients and an origin, in memory.

Time is virtual, and the wall clock goes with it, so that what is stored grows old.
"""

from __future__ import annotations

import logging
from email.utils import formatdate

import attrs
import trio
from trio.testing import MockClock

from .._clock import clock_from
from .._errors import ProxyError
from .._peer import HttpPeer
from ..cache._lock import CacheLock
from ..cache._memory import MemoryStorage
from ..cache._policy import SharedPolicy
from ..cache._shared import SharedCache
from ..proxy._cached import CachingProxy
from ..proxy._session import Session
from ..server._serve import Running, serve
from ._cache_scenario import Ask, CacheClient, CacheScenario, Resource
from ._h2_reference import Fields, H2Peer
from ._network import PLAIN, Link
from ._observed import CONF, PATIENCE, Observed, OriginSide
from ._reference import CutError, MalformedError, Message, Wire
from ._scenario import Http2, Name, Scenario
from ._schedule import AtStep, seeded_schedule
from ._world import World, WorldConnector

#: The wall clock when a run begins.
EPOCH = 1.5e9
#: How old the first version of each resource is then.
OLD = 50
#: Seconds without a word behind which a client makes a new connection.
STALE = 20.0
#: What a client has of a resource and kind: its validators.
Known = dict[tuple[int, str], tuple[bytes | None, int | None]]
#: What else the origin changes resources by.
UNSAFE = ("POST", "PUT", "DELETE")


@attrs.define(eq=False)
class Said:
    """A response as the origin gave it.

    Attributes:
      number: Its own, in X-Said.
      of: The number of the resource.
      ask: The request's number, -1 where it had none.
      method: Of the request.
      kind: The request's X-Kind.
      refused: Whether the request forbade to store the response.
      came: When the request was there.
      sent: When the head went out, infinity where it did not.
      status: Of the response.
      body: All of the content, of a 206 its part.
      etag: The validator, if there is one.
      modified: Last-Modified in seconds, if there is one.
      whole: Whether all of it was handed to the link.
      over: When that was.
    """

    number: int
    of: int
    ask: int
    method: str
    kind: str
    refused: bool
    came: float
    sent: float = float("inf")
    status: int = 200
    body: bytes = b""
    etag: bytes | None = None
    modified: int | None = None
    whole: bool = False
    over: float = float("inf")


@attrs.define(eq=False)
class Got:
    """A request as its client saw it.

    Attributes:
      number: Its own, in X-Ask.
      ask: What was asked.
      begun: When it was asked, infinity for never.
      heard: When the head of the answer was there.
      over: When it was over.
      etag: The validator in its condition.
      since: The seconds in its If-Modified-Since.
      final: The answer.
      outcome: ``complete``, ``cut``, ``ended``, ``hang``, ``left`` or ``""``.
    """

    number: int
    ask: Ask
    begun: float = float("inf")
    heard: float = float("inf")
    over: float = float("inf")
    etag: bytes | None = None
    since: int | None = None
    final: Message | None = None
    outcome: str = ""


@attrs.define(eq=False)
class CacheObserved:
    """All that a run with a cache showed."""

    scenario: CacheScenario
    step: int = 0
    deed: str = "cancel"
    got: list[Got] = attrs.field(factory=list)
    said: list[Said] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    #: When changes of resources were asked for, and were told to be done: resource, from, to.
    changes: list[tuple[int, float, float]] = attrs.field(factory=list)
    #: Calls of new_ctx and of logging, by context.
    logged: dict[int, int] = attrs.field(factory=dict)
    #: How often a phase of the cache was the last of a request.
    phases: dict[str, int] = attrs.field(factory=dict)
    evictions: int = 0
    steps: int = 0
    disturbed: bool = False
    stopped: bool = False


def content(of: int, version: int, kind: str, status: int, blocks: int) -> bytes:
    """Return the content of a resource, in which each piece says what it belongs to."""
    mark = f"{of}.{version}.{kind or '-'}.{status}".encode()
    return b"".join(b"<%s:%07d>" % (mark, n) for n in range(blocks))


def _control(resource: Resource) -> bytes:
    parts = list(resource.flags)
    named = (
        ("max-age", resource.max_age),
        ("s-maxage", resource.s_maxage),
        ("stale-while-revalidate", resource.behind),
        ("stale-if-error", resource.error),
    )
    said = [f"{name}={value}" for name, value in named if value is not None]
    return ", ".join([*said, *parts]).encode()


class CacheOrigin:
    """The origin: it has resources, and changes them."""

    def __init__(self, world: CacheWorld) -> None:
        self.world = world
        self.observed = world.cached
        self.resources = world.plan.resources
        #: When the versions of each resource began.
        self.versions: list[list[float]] = [[-float(OLD)] for _ in self.resources]
        self.served = [0 for _ in self.resources]
        self.calm = False

    async def serve(self, side: OriginSide, index: int, name: Name) -> None:
        """Serve one connection."""
        wire = Wire(side.end)
        try:
            while await self._answer(wire, side):
                pass
        except (CutError, ProxyError):
            pass
        except MalformedError as exc:
            self.world.problem(f"5: the origin cannot read what the proxy sent: {exc}")
        finally:
            side.state = "gone"
            side.end.close_now()

    def _version(self, of: int) -> int:
        """Return the number of the version of a resource now, and begin it where it is due."""
        every, versions, now = self.resources[of].changes, self.versions[of], trio.current_time()
        if every and not self.calm:
            while now - max(versions[-1], 0.0) >= every:
                versions.append(max(versions[-1], 0.0) + every)
        return len(versions) - 1

    def _modified(self, of: int) -> int | None:
        """Return Last-Modified where it tells this version from others, by its seconds."""
        if not self.resources[of].modified:
            return None
        versions = self.versions[of]
        latest = int(EPOCH + versions[-1])
        if latest >= int(EPOCH + trio.current_time()):
            return None
        if len(versions) > 1 and int(EPOCH + versions[-2]) == latest:
            return None
        return latest

    async def _answer(self, wire: Wire, side: OriginSide) -> bool:
        side.state = "idle"
        if await wire.idle_end():
            return False
        side.state = "busy"
        request = await wire.head()
        await wire.body(request)
        method, target, _ = request.start.decode().split(" ")
        of = int(target[2:])
        said = Said(
            len(self.observed.said),
            of,
            int(request.get(b"x-ask") or b"-1"),
            method,
            (request.get(b"x-kind") or b"").decode(),
            b"no-store" in (request.get(b"cache-control") or b""),
            trio.current_time(),
        )
        self.observed.said.append(said)
        if method in UNSAFE:
            return await self._change(wire, said)
        resource = self.resources[of]
        number, self.served[of] = self.served[of], self.served[of] + 1
        deeds = resource.deeds
        deed = None if self.calm or number >= len(deeds) else deeds[number]
        if deed is not None:
            await trio.sleep(deed.wait)
        lines, body = self._response(said, request, deed.status if deed is not None else 200)
        data = b"\r\n".join(lines) + b"\r\n\r\n" + body
        cut = deed.cut if deed is not None else None
        if cut is not None and cut < len(data):
            data = data[:cut]
        else:
            cut = None
        said.sent = trio.current_time()
        half = len(data) - len(body) // 2
        if deed is not None and deed.pause and body and half < len(data):
            if not await wire.send(data[:half]):
                return False
            await trio.sleep(deed.pause)
            data = data[half:]
        # Handed to the link is whole: the proxy may have it all before this comes to its end.
        said.whole = cut is None
        said.over = trio.current_time()
        if not await wire.send(data):
            said.whole = False
            return False
        if cut is not None:
            if deed is not None and deed.reset:
                side.end.reset()
            return False
        return True

    def _response(self, said: Said, request: Message, status: int) -> tuple[list[bytes], bytes]:
        """Return the head and the content of a response to GET or HEAD."""
        resource = self.resources[said.of]
        version = self._version(said.of)
        kind = said.kind if resource.vary is not None else ""
        said.body = body = content(said.of, version, kind, status, resource.blocks)
        lines = [b"X-Said: %d" % said.number]
        lines.append(b"Date: " + formatdate(EPOCH + trio.current_time(), usegmt=True).encode())
        if status < 500:
            control = _control(resource)
            if control:
                lines.append(b"Cache-Control: " + control)
            if resource.age:
                lines.append(b"Age: %d" % resource.age)
            if resource.vary is not None:
                lines.append(b"Vary: " + resource.vary.encode())
        if status == 200:
            if resource.etag is not None:
                weak = b"W/" if resource.etag == "weak" else b""
                said.etag = b'%s"%d.%d.%s"' % (weak, said.of, version, kind.encode())
                lines.append(b"ETag: " + said.etag)
            said.modified = self._modified(said.of)
            if said.modified is not None:
                date = formatdate(said.modified, usegmt=True).encode()
                lines.append(b"Last-Modified: " + date)
            status = self._conditions(said, request)
        whole = len(body)
        if status == 200:
            lines.append(b"X-Body: %d" % said.number)
            part = self._range(said, request)
            if part is not None:
                status = 206
                said.body = body = body[part[0] : part[1] + 1]
                lines.append(b"Content-Range: bytes %d-%d/%d" % (*part, whole))
        elif status not in (304, 412):
            lines.append(b"X-Body: %d" % said.number)
        if status == 412:
            said.body = body = b""
        said.status = status
        bodiless = said.method == "HEAD" or status == 304
        if resource.chunked and status != 412 and status != 304:
            lines.append(b"Transfer-Encoding: chunked")
            chunks = [body[at : at + 1607] for at in range(0, len(body), 1607)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"
        elif status != 304:
            lines.append(b"Content-Length: %d" % len(body))
        return [b"HTTP/1.1 %d Reason" % status, *lines], b"" if bodiless else body

    def _conditions(self, said: Said, request: Message) -> int:
        match, none = request.get(b"if-match"), request.get(b"if-none-match")
        if match is not None and match != said.etag:
            return 412
        if match is not None and match.startswith(b"W/"):
            return 412
        if none is not None:
            tags = {each.strip().removeprefix(b"W/") for each in none.split(b",")}
            mine = said.etag.removeprefix(b"W/") if said.etag is not None else None
            return 304 if mine in tags or b"*" in tags else 200
        since = request.get(b"if-modified-since")
        if since is not None and said.modified is not None:
            date = formatdate(said.modified, usegmt=True).encode()
            return 304 if since == date else 200
        return 200

    def _range(self, said: Said, request: Message) -> tuple[int, int] | None:
        value, condition = request.get(b"range"), request.get(b"if-range")
        if value is None or not self.resources[said.of].ranges or said.method != "GET":
            return None
        if condition is not None and (condition != said.etag or condition.startswith(b"W/")):
            return None
        first, _, last = value.removeprefix(b"bytes=").partition(b"-")
        if b"," in value or not first or int(first) >= len(said.body):
            return None
        return int(first), min(int(last), len(said.body) - 1) if last else len(said.body) - 1

    async def _change(self, wire: Wire, said: Said) -> bool:
        asks = [each for each in self.observed.got if each.number == said.ask]
        said.status = status = asks[0].ask.status
        if status < 400:
            self._version(said.of)
            self.versions[said.of].append(trio.current_time())
        said.sent = trio.current_time()
        length = b"" if status == 204 else b"Content-Length: 0\r\n"
        head = b"HTTP/1.1 %d Reason\r\nX-Said: %d\r\n%s\r\n" % (status, said.number, length)
        said.whole = await wire.send(head)
        said.over = trio.current_time()
        return said.whole


class CacheWorld(World):
    """A scenario with a cache, with its parties."""

    def __init__(self, plan: CacheScenario, cached: CacheObserved) -> None:
        scenario = Scenario(
            origin_links=plan.origin_links,
            connects=plan.connects,
            stop=plan.stop,
            fail_operation=plan.fail_operation,
            seed=plan.seed,
        )
        super().__init__(scenario, Observed(scenario, problems=cached.problems))
        self.plan = plan
        self.cached = cached
        self.source = CacheOrigin(self)
        self.origin = self.source  # type: ignore[assignment]  # it serves as the other does
        self.storage = MemoryStorage(plan.store)
        lock = CacheLock(plan.lock_age) if plan.lock_age is not None else None
        self.shared = SharedCache(
            storage=self.storage,
            policy=SharedPolicy(stale_on_error=plan.on_error),
            lock=lock,
            wait_timeout=plan.patience,
            max_file_size=plan.longest,
        )

    async def play(self, running: Running, nursery: trio.Nursery, watch: AtStep) -> None:
        """Play all of it, and ask in the end for everything once more."""
        number = 0
        stop = self.plan.stop
        if stop is not None:
            nursery.start_soon(self._stop, running, stop.at, stop.kind)
        async with trio.open_nursery() as clients:
            for client in self.plan.clients:
                asks = [Got(number + n, ask) for n, ask in enumerate(client.asks)]
                number += len(asks)
                self.cached.got += asks
                clients.start_soon(self._client, client, asks)
        await self._settle(running)
        watch.started = False
        self.check_store()
        if stop is not None or self.cached.stopped:
            return
        self._check_pool(running)
        self.network.calm()
        self.source.calm = True
        await trio.sleep(0.1)
        probes = [
            Got(number + n, Ask(of, kind=kind))
            for n, (of, kind) in enumerate(
                (of, kind) for of in range(len(self.plan.resources)) for kind in ("", "a", "b")
            )
        ]
        self.cached.got += probes
        await self._client(CacheClient(), probes)
        for each in probes:
            final = each.final
            if each.outcome != "complete" or final is None or final.status not in (200, 404):
                status = final.status if final is not None else None
                self.problem(f"7: a new request got {each.outcome!r}, status {status}")
        await self._settle(running)
        self.check_store()

    async def _settle(self, running: Running) -> None:
        for _ in range(int(PATIENCE)):
            if not running.statistics().connections:
                break
            await trio.sleep(1)
        # What the proxy asks by itself in the background ends by its own timeouts.
        await trio.sleep(CONF.background_timeout + 1)
        await super()._settle(running)

    def check_store(self) -> None:
        """Check that nothing is being written, read or locked when all is over."""
        state = self.storage.statistics()
        shelf = self.storage._shelf  # noqa: SLF001  # its readers are not told outside
        if state.writing or state.reserved or shelf.pinned:
            self.problem(f"9: the store is not at rest: {state}")
        if state.bytes > self.plan.store:
            self.problem(f"9: the store holds more than it may: {state}")
        self.cached.evictions = state.evictions
        lock = self.shared.lock
        if lock is not None:
            held = lock.statistics()
            if held.held or held.waiting:
                self.problem(f"9: a lock without an owner: {held}")

    # -- clients ---------------------------------------------------------------------------------

    async def _client(self, client: CacheClient, asks: list[Got]) -> None:
        await trio.sleep(client.start)
        known: Known = {}
        if client.http2 is not None:
            await self._streams(client, client.http2, asks, known)
            return
        link: Link = client.link
        wire: Wire | None = None
        for got in asks:
            if wire is not None and got.ask.wait > STALE:
                wire.end.close_now()
                wire = None
            await trio.sleep(got.ask.wait)
            try:
                if wire is None:
                    wire = Wire(self.acceptor.connect(link))
                    self.clients.append(wire.end)
            except ConnectionRefusedError:
                return
            link = PLAIN
            goes_on = False
            patience = PATIENCE if got.ask.quits is None else got.ask.quits
            try:
                with trio.move_on_after(patience) as scope:
                    goes_on = await self._turn(wire, got, known)
                if scope.cancelled_caught:
                    got.outcome = "hang" if got.ask.quits is None else "left"
            except CutError as exc:
                got.outcome = "ended" if exc.message is None and got.final is None else "cut"
            except MalformedError as exc:
                self.problem(f"2: a client cannot read what the proxy sent: {exc}")
            self._over(got)
            if not goes_on:
                wire.end.close_now()
                wire = None
        if wire is not None:
            wire.end.close_now()

    def _over(self, got: Got) -> None:
        """Write down when a request was over, and what it changed."""
        got.over = trio.current_time()
        done = got.outcome == "complete" and got.final is not None and got.final.status < 400
        if done and got.ask.method in UNSAFE:
            self.cached.changes.append((got.ask.of, got.begun, got.over))

    def _learn(self, got: Got, message: Message, known: Known) -> None:
        """Remember the validators of an answer."""
        number = message.get(b"x-body")
        if message.status in (200, 206) and number is not None:
            said = self.cached.said[int(number)]
            known[got.ask.of, got.ask.kind] = (message.get(b"etag"), said.modified)

    def _fields(self, got: Got, known: Known) -> Fields:
        """Return the fields of a request."""
        ask = got.ask
        fields: Fields = [(b"x-ask", b"%d" % got.number)]
        if ask.method in ("POST", "PUT"):
            fields.append((b"content-length", b"0"))
        if ask.kind:
            fields.append((b"x-kind", ask.kind.encode()))
        if ask.control is not None:
            value = b"=%d" % ask.seconds if ask.control.startswith("m") else b""
            fields.append((b"cache-control", ask.control.encode() + value))
        if ask.ranges:
            text = ", ".join(
                f"{'' if first is None else first}-{'' if last is None else last}"
                for first, last in ask.ranges
            )
            fields.append((b"range", b"bytes=" + text.encode()))
        etag, since = known.get((ask.of, ask.kind), (None, None))
        names = {"etag": b"if-none-match", "match": b"if-match", "if-range": b"if-range"}
        if ask.condition in names:
            got.etag = etag or b'"none"'
            fields.append((names[ask.condition], got.etag))
        elif ask.condition == "star":
            fields.append((b"if-none-match", b"*"))
        elif ask.condition == "since":
            got.since = since if since is not None else int(EPOCH) - 10000
            fields.append((b"if-modified-since", formatdate(got.since, usegmt=True).encode()))
        return fields

    async def _streams(
        self, client: CacheClient, plan: Http2, asks: list[Got], known: Known
    ) -> None:
        """Ask all on one connection of HTTP/2, each when the waits before it are over."""
        try:
            end = self.acceptor.connect(client.link)
        except ConnectionRefusedError:
            return
        self.clients.append(end)
        peer = H2Peer(end, plan, client=True, found=self.problem)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.run)
                wait = 0.0
                async with trio.open_nursery() as asking:
                    for got in asks:
                        wait += got.ask.wait
                        asking.start_soon(self._stream, peer, got, known, wait)
                if not peer.dead:
                    peer.goaway()
                    await peer.close()
                nursery.cancel_scope.cancel()
        finally:
            end.close_now()

    async def _stream(self, peer: H2Peer, got: Got, known: Known, wait: float) -> None:
        await trio.sleep(wait)
        if peer.dead or peer.goaway_there is not None:
            return
        ask = got.ask
        got.begun = trio.current_time()
        head: Fields = [
            (b":method", ask.method.encode()),
            (b":scheme", b"http"),
            (b":authority", b"site.test"),
            (b":path", b"/c%d" % ask.of),
        ]
        stream = peer.open(head + self._fields(got, known), end=True)
        with trio.move_on_after(PATIENCE if ask.quits is None else ask.quits) as scope:
            while not (stream.complete or stream.broken or peer.dead):
                if stream.head is not None and got.final is None:
                    got.final, got.heard = stream.head, trio.current_time()
                await stream.lot.park()
        if stream.head is not None and got.final is None:
            got.final, got.heard = stream.head, trio.current_time()
        if scope.cancelled_caught:
            got.outcome = "hang" if ask.quits is None else "left"
            peer.reset_stream(stream, 8)
        elif stream.complete and got.final is not None:
            got.outcome = "complete"
            self._learn(got, got.final, known)
        else:
            got.outcome = "ended" if got.final is None else "cut"
        self._over(got)

    async def _turn(self, wire: Wire, got: Got, known: Known) -> bool:
        ask = got.ask
        lines = [b"%s /c%d HTTP/1.1" % (ask.method.encode(), ask.of), b"Host: site.test"]
        lines += [name + b": " + value for name, value in self._fields(got, known)]
        got.begun = trio.current_time()
        if not await wire.send(b"\r\n".join(lines) + b"\r\n\r\n"):
            raise CutError(None, reset=True)
        message = await wire.head()
        while message.status < 200:
            await wire.body(message)
            message = await wire.head()
        got.final, got.heard = message, trio.current_time()
        await trio.sleep(ask.slow)
        await wire.body(message, bodiless=ask.method == "HEAD")
        got.outcome = "complete"
        self._learn(got, message, known)
        close = message.get(b"connection") or b""
        return not message.until_close and b"close" not in close.lower()


class CachedProxy(CachingProxy[int]):
    """Counts its contexts."""

    def __init__(self, world: CacheWorld) -> None:
        super().__init__(shared_cache=world.shared)
        self.observed = world.cached

    def new_ctx(self) -> int:
        number = len(self.observed.logged)
        self.observed.logged[number] = 0
        return number

    async def upstream_peer(self, session: Session, ctx: int) -> HttpPeer:
        return HttpPeer("origin.test", 80)

    async def logging(self, session: Session, e: ProxyError | None, ctx: int) -> None:
        self.observed.logged[ctx] += 1
        text = session.cache.phase().text
        self.observed.phases[text] = self.observed.phases.get(text, 0) + 1


class _Log(logging.Handler):
    """Finds what should never be logged: an error of our own."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self._problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # A store may have no room for something, and the origin may fail what nobody waits for.
        if isinstance(error, ProxyError) and record.levelno < logging.ERROR:
            return
        if error is not None:
            self._problems.append(f"6: logged: {record.getMessage()}: {error!r}")


def run_cached(plan: CacheScenario, *, step: int = 0, deed: str = "cancel") -> CacheObserved:
    """Run a scenario with a cache once.

    Args:
      plan: What happens.
      step: The step of Trio's tasks before which the deed is done; 0 for never.
      deed: ``"cancel"`` or ``"drain"`` the server; or the first client ends by ``"leave"``,
        ``"half-close"`` or ``"reset"``.
    """
    cached = CacheObserved(plan, step, deed)
    world = CacheWorld(plan, cached)
    watch = AtStep(step)
    log = logging.getLogger("trioproxy")
    handler = _Log(cached.problems)

    def wall() -> float:
        return EPOCH + (trio.current_time() if trio.lowlevel.in_trio_run() else 0.0)

    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        try:
            with trio.fail_after(100000):
                await _serve_cached(world, watch, deed)
        except trio.TooSlowError:
            cached.problems.append("7: the run did not end")
        left = trio.lowlevel.current_statistics().tasks_living - before
        if left > 0:
            cached.problems.append(f"6: {left} tasks are left")

    propagate = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        with clock_from(wall), seeded_schedule(plan.seed):
            trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[watch])
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
    cached.steps = watch.count
    return cached


async def _serve_cached(world: CacheWorld, watch: AtStep, deed: str) -> None:
    cached = world.cached
    proxy = CachedProxy(world)
    async with trio.open_nursery() as origins:
        async with trio.open_nursery() as servers:

            async def start(
                task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
            ) -> None:
                await serve(
                    proxy,
                    world.acceptor,
                    conf=attrs.evolve(CONF, h2c=any(each.http2 for each in world.plan.clients)),
                    connector=WorldConnector(world, origins),
                    task_status=task_status,
                )

            running: Running = await servers.start(start)
            world.running = running

            def do() -> None:
                cached.disturbed = True
                cached.stopped = deed in ("cancel", "drain")
                if deed == "cancel":
                    running._server.serving.cancel()  # noqa: SLF001  # a hard stop from inside
                elif deed == "drain":
                    servers.start_soon(running.drain)
                elif world.clients:
                    end = world.clients[0]
                    if deed == "half-close":
                        end.outgoing.end()
                    elif deed == "reset":
                        end.reset()
                    else:
                        end.close_now()

            watch.deed = do
            watch.started = True
            await world.play(running, servers, watch)
            if world.plan.stop is None and not cached.stopped:
                await running.drain(5)
        for end in world.network.ends:
            if not end.closed:
                cached.problems.append(f"6: a link is still open: {end.outgoing.name}")
        await trio.sleep(60)  # an origin ends by what it reads, or by the end of its wait
        if any(side.state != "gone" and not side.end.incoming.silent for side in world.origins):
            cached.problems.append("6: an origin still waits on a connection")
        origins.cancel_scope.cancel()
