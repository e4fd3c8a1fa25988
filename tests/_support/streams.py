"""A stream proxy on a network in memory: the real server, with clients and upstreams of the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
import trio.testing

from trioproxy import BodyChunk, Digest, ErrorType, HttpPeer, ProxyError, ServerConf, serve
from trioproxy._info import ConnectionInfo
from trioproxy.server import Running
from trioproxy.server._stream import StreamService
from trioproxy.stream import ProxyStream, StreamPeer, StreamSession
from trioproxy.testing._network import PLAIN, End, Link, MemoryAcceptor, Network
from trioproxy.transport._byte_stream import ByteStream
from trioproxy.upstream._connector import Opener

#: The peer that `Recorder` chooses when it is not told otherwise.
UPSTREAM = StreamPeer("upstream.test", 7000)
UPSTREAM_2 = StreamPeer("second.test", 7000)


class Ctx:
    """The context of one session."""


@attrs.frozen
class Call:
    """A callback that ran."""

    name: str
    ctx: Ctx | None
    shown: str
    args: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({self.shown})"


@attrs.define(eq=False)
class Recorder(ProxyStream[Ctx]):
    """Writes each callback down, then does what a hook of its name says."""

    peers: tuple[StreamPeer, ...] = (UPSTREAM,)
    hooks: dict[str, Callable[..., Any]] = attrs.field(factory=dict)
    calls: list[Call] = attrs.field(factory=list)

    def of(self, name: str) -> list[Call]:
        """Return the calls of one callback."""
        return [call for call in self.calls if call.name == name]

    def the(self, name: str) -> Call:
        """Return the only call of a callback."""
        (call,) = self.of(name)
        return call

    def shown(self) -> list[str]:
        """Return all calls as text."""
        return [str(call) for call in self.calls]

    def _note(self, name: str, ctx: Ctx | None, shown: object = "", **args: Any) -> None:
        self.calls.append(Call(name, ctx, str(shown), args))

    def new_ctx(self) -> Ctx:
        ctx = Ctx()
        self._note("new_ctx", ctx)
        hook = self.hooks.get("new_ctx")
        if hook is not None:
            hook()
        return ctx

    async def accept_filter(self, session: StreamSession, ctx: Ctx) -> bool:
        self._note("accept_filter", ctx, session=session)
        hook = self.hooks.get("accept_filter")
        return True if hook is None else await hook(session, ctx)

    async def upstream_peer(self, session: StreamSession, ctx: Ctx) -> StreamPeer:
        self._note("upstream_peer", ctx, session=session)
        hook = self.hooks.get("upstream_peer")
        if hook is not None:
            return await hook(session, ctx)  # type: ignore[no-any-return]  # a test's hook
        tried = sum(call.name == "upstream_peer" and call.ctx is ctx for call in self.calls)
        return self.peers[(tried - 1) % len(self.peers)]

    def fail_to_connect(
        self, session: StreamSession, peer: StreamPeer, ctx: Ctx, e: ProxyError
    ) -> ProxyError:
        self._note("fail_to_connect", ctx, f"{peer}, {e.etype}", e=e)
        hook = self.hooks.get("fail_to_connect")
        return e if hook is None else hook(session, peer, ctx, e)

    async def connected_to_upstream(
        self, session: StreamSession, peer: StreamPeer, digest: Digest, ctx: Ctx
    ) -> None:
        self._note("connected_to_upstream", ctx, peer, digest=digest)
        hook = self.hooks.get("connected_to_upstream")
        if hook is not None:
            await hook(session, peer, digest, ctx)

    async def downstream_data_filter(
        self, session: StreamSession, chunk: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> float | None:
        return await self._data("downstream_data_filter", session, chunk, end_of_stream, ctx)

    async def upstream_data_filter(
        self, session: StreamSession, chunk: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> float | None:
        return await self._data("upstream_data_filter", session, chunk, end_of_stream, ctx)

    async def _data(
        self, name: str, session: StreamSession, chunk: BodyChunk, end: bool, ctx: Ctx
    ) -> float | None:
        self._note(name, ctx, f"{chunk.data!r}, {end}", data=chunk.data, end=end)
        hook = self.hooks.get(name)
        return None if hook is None else await hook(session, chunk, end, ctx)

    def error_while_proxy(
        self, session: StreamSession, peer: StreamPeer | None, e: ProxyError, ctx: Ctx
    ) -> ProxyError:
        self._note("error_while_proxy", ctx, f"{peer}, {e.etype}", e=e)
        hook = self.hooks.get("error_while_proxy")
        return e if hook is None else hook(session, peer, e, ctx)

    async def logging(self, session: StreamSession, e: ProxyError | None, ctx: Ctx) -> None:
        self._note("logging", ctx, None if e is None else e.etype, session=session, e=e)
        hook = self.hooks.get("logging")
        if hook is not None:
            await hook(session, e, ctx)


#: What becomes of a connection to a peer: it is refused with an error, or made on a link.
Outcome = ErrorType | Link


@attrs.define(eq=False)
class MemoryOpener(Opener):
    """Makes links to upstreams, whose ends the test gets one after the other."""

    network: Network
    outcomes: Mapping[str, Outcome]
    delay: float = 0.0
    asked: list[tuple[HttpPeer, tuple[str, ...] | None]] = attrs.field(factory=list)
    ends: list[End] = attrs.field(factory=list)
    _made: trio.Event = attrs.field(factory=trio.Event)

    async def open(
        self, peer: HttpPeer, alpn: tuple[str, ...] | None = None
    ) -> tuple[ByteStream, ConnectionInfo]:
        self.asked.append((peer, alpn))
        await trio.sleep(self.delay)
        outcome = self.outcomes.get(peer.name, PLAIN)
        if isinstance(outcome, ErrorType):
            raise ProxyError.new_up(outcome)
        name = f"upstream{len(self.ends) + 1}"
        ours, theirs = self.network.link(name, outcome, proxy_connects=True)
        self.ends.append(theirs)
        self._made.set()
        self._made = trio.Event()
        return ours, ConnectionInfo("192.0.2.10:40000", "192.0.2.20:7000", trio.current_time())

    async def upstream(self, number: int = 0) -> End:
        """Wait until so many connections more have been made; return the last one's far end."""
        while len(self.ends) <= number:
            await self._made.wait()
        return self.ends[number]


@attrs.define(eq=False)
class Streams:
    """A stream proxy that runs."""

    running: Running
    network: Network
    acceptor: MemoryAcceptor
    opener: MemoryOpener
    scope: trio.CancelScope
    clients: list[End] = attrs.field(factory=list)

    @property
    def service(self) -> StreamService:
        """What serves the connections."""
        service = self.running._server.service
        assert isinstance(service, StreamService)
        return service

    def connect(self, link: Link = PLAIN) -> End:
        """Return the client's end of a new connection."""
        self.clients.append(self.acceptor.connect(link))
        return self.clients[-1]

    async def upstream(self, number: int = 0) -> End:
        """Return the upstream's end of a connection, once it is made."""
        return await self.opener.upstream(number)

    async def joined(self) -> tuple[End, End]:
        """Return both outer ends of a new stream."""
        client, number = self.connect(), len(self.opener.ends)
        return client, await self.upstream(number)

    async def ended(self) -> None:
        """Return when no connection is served any more."""
        await trio.testing.wait_all_tasks_blocked()
        await self.running._server.all_ended()

    def stop(self) -> None:
        """Stop hard."""
        self.scope.cancel()


@asynccontextmanager
async def open_streams(
    proxy: ProxyStream[Any],
    outcomes: Mapping[str, Outcome] | None = None,
    *,
    conf: ServerConf | None = None,
    delay: float = 0.0,
) -> AsyncIterator[Streams]:
    """Serve a stream proxy in memory; leaving checks that no session and no open stream is left.

    Args:
      proxy: The proxy object.
      outcomes: What becomes of connections, by the peer's name; they are made where it says nothing.
      conf: Timeouts and limits.
      delay: Seconds that each connection takes to be made.
    """
    network = Network()
    acceptor = MemoryAcceptor(network, "tcp://proxy.test")
    opener = MemoryOpener(network, outcomes or {}, delay)
    with trio.fail_after(36000):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(
                lambda task_status: serve(
                    proxy, acceptor, conf=conf, connector=opener, task_status=task_status
                )
            )
            streams = Streams(running, network, acceptor, opener, nursery.cancel_scope)
            yield streams
            for end in (*streams.clients, *opener.ends):
                end.close_now()
            await streams.ended()
            assert streams.service.services.sessions == 0
            assert streams.service.services.upstreams == 0
            assert all(end.closed for end in network.ends)
            nursery.cancel_scope.cancel()


async def send(end: End, data: bytes) -> None:
    """Send bytes from an outer end."""
    await end.send_parts([data], 1e9)


async def send_and_end(end: End, data: bytes) -> None:
    """Send bytes and end the output."""
    await send(end, data)
    await end.send_eof()


async def receive(end: End, size: int) -> bytes:
    """Return so many bytes."""
    data = b""
    while len(data) < size:
        more = await end.receive_some(size - len(data))
        assert more, f"the input ended behind {data!r}"
        data += more
    return data


async def receive_all(end: End) -> bytes:
    """Return what comes until the other side has ended its output."""
    data = b""
    while more := await end.receive_some():
        data += more
    return data


async def is_cut(end: End) -> bool:
    """Tell whether the stream was cut, and not ended."""
    try:
        await receive_all(end)
    except ProxyError as exc:
        return exc.etype == ErrorType.ReadError
    return False
