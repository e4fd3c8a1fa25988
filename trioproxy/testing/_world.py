"""Runs a scenario: a whole server between reference clients and a reference origin, in memory.

Time is virtual and the order of tasks comes from the scenario's seed, so that a run costs
milliseconds and is the same each time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import trio
from trio.testing import MockClock

from .._clock import stopped_clock
from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from .._messages import Data
from .._options import PeerOptions
from .._peer import HttpPeer, Proxy
from .._tls_settings import TlsSettings
from ..server._serve import Running, serve
from ..streams._abc import UpstreamConnection
from ..streams._h1_client import H1ClientConnection
from ..streams._h2 import H2Base
from ..streams._h2_client import H2ClientConnection
from ..streams._serve import ServerConnection
from ..transport._byte_stream import ByteStream
from ..upstream._connector import SocketConnector
from ._clients import Clients
from ._h2_reference import H2Peer
from ._network import End, Link
from ._observed import CONF, PATIENCE, PROBE, Asked, Observed, OriginSide
from ._origins import Origins
from ._proxy import SHADOW, WorldProxy
from ._scenario import NAMES, Client, Http2, Request, Scenario
from ._schedule import AtStep, seeded_schedule
from ._secure import credentials
from ._shadow import serve_shadow
from ._stage import Stage

#: Seconds after which a connection that carries nothing has its windows back.
WHOLE_TIME = 20.0


class World(Stage):
    """A scenario with its parties."""

    def __init__(self, scenario: Scenario, observed: Observed) -> None:
        super().__init__(scenario, observed)
        #: The connections to the origin, by their number there.
        self.by_origin: dict[int, UpstreamConnection] = {}
        self.running: Running | None = None
        self.dials = 0
        self.parties = Clients(self, self.check_whole)
        self.origin = Origins(self)

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
                clients.start_soon(self.parties.client, index, each, by_client[index])
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
            if not statistics.connections and not statistics.subrequests:
                break
            await trio.sleep(1)
        else:
            self.problem(
                "7: a client connection, or a mirror, outlives its client and every timeout"
            )
        statistics = running.statistics()
        if statistics.sessions or statistics.pool.leased or statistics.pool.waiting:
            self.problem(f"4: left when all clients had gone: {statistics}")
        await trio.sleep(0.2)

    def _check_pool(self, running: Running) -> None:
        alive = [each for each in self.by_origin.values() if not each.dead]
        if len(alive) != running.statistics().pool.idle:
            self.problem(f"4: {len(alive)} live connections, {running.statistics().pool}")
        for index, connection in self.by_origin.items():
            if connection.dead:
                continue
            side = self.origins[index]
            end = side.end
            both = (end.outgoing, end.incoming)
            lost = any(each.silent for each in both)
            quiet = not lost and not any(each.size for each in both)
            if isinstance(connection, H1ClientConnection):
                if connection.reader.leftover or connection.events or end.outgoing.arrived():
                    self.problem("4: something lies unread on an idle connection")
            elif isinstance(connection, H2ClientConnection):
                if connection.streams or connection.busy:
                    self.problem(f"4: streams on an idle connection: {connection}")
                if side.peer is not None and quiet:
                    self._check_windows(connection, side.peer, "the connection to the origin")
            if side.state == "busy" and quiet:
                self.problem("4: an idle connection is between messages, its origin is not")

    # -- windows ---------------------------------------------------------------------------------

    def _windows(self, ours: H2Base, peer: H2Peer) -> list[str]:
        """Compare what both ends think of the connection's windows while it carries nothing."""
        codec, found = ours.codec, []
        whole = codec.options.connection_window
        # What h2 keeps back to save on small updates: the proxy knows of it, so it is not lost.
        kept = codec._h2._inbound_flow_control_window_manager._bytes_processed  # noqa: SLF001  # asked of nobody else
        if peer.out.connection + kept != whole:
            found.append(f"its window is {peer.out.connection} and {kept} kept back, not {whole}")
        if codec.connection_window != peer.back.connection:
            found.append(f"it may send {codec.connection_window}, not {peer.back.connection}")
        return found

    def _check_windows(self, ours: H2Base, peer: H2Peer, where: str) -> None:
        if not peer.dead and ours.lost is None:
            for each in self._windows(ours, peer):
                self.problem(f"10: {where}: {each}")

    async def check_whole(self, peer: H2Peer) -> None:
        """Check a client's connection that carries nothing any more."""
        ours = None
        for _ in range(int(WHOLE_TIME)):
            with trio.move_on_after(1):
                await peer.ping()
            ours = self._connection_of(peer)
            if peer.dead or ours is None or ours.lost is not None or self._held_up(peer):
                return
            if not ours.streams and not self._windows(ours, peer):
                return
            await trio.sleep(1)
        if ours is not None and not ours.streams:
            self._check_windows(ours, peer, "a client's connection")

    def _held_up(self, peer: H2Peer) -> bool:
        """Tell whether something does not arrive by a fault of the link, or of the client."""
        now = trio.current_time()
        return peer.plan.stall != 0 or any(
            each.silent or each.held_until > now for each in (peer.end.incoming, peer.end.outgoing)
        )

    def _connection_of(self, peer: H2Peer) -> H2Base | None:
        """Return the proxy's end of a client's connection."""
        assert self.running is not None
        for each in self.running._server.connections:  # noqa: SLF001  # they are not told outside
            assert isinstance(each, ServerConnection)
            connection = each._connection  # noqa: SLF001  # as above
            if isinstance(connection, H2Base) and (
                _end_of(connection.transport).outgoing is peer.end.incoming
            ):
                return connection
        return None

    async def _probe(self, proxy: WorldProxy) -> None:
        """Ask, when faults have stopped, for one more answer."""
        self.network.calm()
        for side in self.origins:
            if side.peer is not None and not side.peer.dead:
                side.peer.calm()
        await trio.sleep(0.1)
        proxy.filters = ()
        request = Request()
        self.by_number[PROBE] = request
        asked = Asked(PROBE, -1, request)
        self.observed.asked[PROBE] = asked
        http2 = Http2() if any(each.http2 for each in self.scenario.clients) else None
        await self.parties.client(-1, Client(http2=http2), [asked])
        if asked.outcome != "complete" or asked.final is None or asked.final.status != 200:
            status = asked.final.status if asked.final is not None else None
            self.problem(f"7: a new request got {asked.outcome!r}, status {status}")

    def buffered(self, running: Running) -> int:
        """Return the bytes that the proxy holds of all sessions and connections."""
        held = 0
        for connection in running._server.connections:  # noqa: SLF001  # they are not told outside
            assert isinstance(connection, ServerConnection)
            held += connection.buffered
        for upstream in self.by_origin.values():
            if upstream.dead:
                continue
            if isinstance(upstream, H1ClientConnection):
                held += upstream.reader.leftover
                held += sum(len(each.data) for each in upstream.events if type(each) is Data)
            elif isinstance(upstream, H2Base):
                held += upstream.buffered
        return held + sum(end.pending for end in self.network.ends)


def _end_of(transport: ByteStream) -> End:
    """Return the link's end under a transport."""
    end = getattr(transport, "_inner", transport)
    assert isinstance(end, End)
    return end


class WorldConnector(SocketConnector):
    """Connects to the reference origin; what comes on top of the bytes is the real thing."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        """Make a connector; origins run in the nursery."""
        super().__init__(CONF)
        self._world = world
        self._nursery = nursery

    async def connect(self, peer: HttpPeer) -> UpstreamConnection:
        """Connect, or fail as the scenario says."""
        connection = await super().connect(peer)
        world = self._world
        if peer.host == SHADOW.host:
            return connection
        end = _end_of(connection.transport)  # type: ignore[attr-defined]  # both kinds have one
        index = next(n for n, each in enumerate(world.origins) if each.end.incoming is end.outgoing)
        world.by_origin[index] = connection
        return connection

    async def _dial(
        self, next_hop: HttpPeer | Proxy, options: PeerOptions, timeout: float
    ) -> tuple[ByteStream, ConnectionInfo]:
        await trio.lowlevel.checkpoint()
        world, scenario = self._world, self._world.scenario
        if next_hop.host == SHADOW.host:
            return self._dial_shadow()
        number = world.dials
        world.dials += 1
        fate = scenario.connects[number] if number < len(scenario.connects) else "ok"
        names = {name.host: name for name in scenario.names or NAMES}
        name = names[str(next_hop.host)]
        address = name.address
        if world.network.faults:
            if address is None:
                error = ProxyError.explain(ErrorType.ConnectError, f"looking up {name.host}")
                raise error.into_up()
            if fate == "refused":
                raise ProxyError.explain(ErrorType.ConnectRefused, "as the scenario says").into_up()
            if fate == "hang":
                await trio.sleep(timeout)
                raise ProxyError.explain(
                    ErrorType.ConnectTimedout, "as the scenario says"
                ).into_up()
        index = len(world.origins)
        links = scenario.origin_links
        link = links[index] if index < len(links) else Link()
        ours, theirs = world.network.link(f"origin{index}", link, proxy_connects=True)
        side = OriginSide(theirs)
        world.origins.append(side)
        self._nursery.start_soon(world.origin.serve, side, index, name)
        info = ConnectionInfo("192.0.2.10:40000", f"{address}:80", trio.current_time())
        return ours, info

    def _dial_shadow(self) -> tuple[ByteStream, ConnectionInfo]:
        """Connect to where requests are mirrored."""
        world = self._world
        plan = world.scenario.shadow
        assert plan is not None
        if plan.refuses:
            raise ProxyError.explain(ErrorType.ConnectRefused, "as the scenario says").into_up()
        ours, theirs = world.network.link("shadow", Link(), proxy_connects=True)
        self._nursery.start_soon(serve_shadow, world, theirs, plan)
        info = ConnectionInfo("192.0.2.10:40001", "192.0.2.30:80", trio.current_time())
        return ours, info


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
        with stopped_clock(), seeded_schedule(scenario.seed):
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
        CONF,
        max_connections_per_peer=scenario.per_peer,
        pool_size=scenario.pool_size,
        h2_max_streams=scenario.most_streams,
        h2c=not scenario.secure and any(each.http2 is not None for each in scenario.clients),
    )
    if scenario.secure:
        settings = TlsSettings(credentials().good, session_tickets=False, handshake_timeout=5)
        conf = attrs.evolve(conf, tls=settings)
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
            world.running = running

            def do() -> None:
                observed.disturbed = True
                observed.stopped = deed in ("cancel", "drain")
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
