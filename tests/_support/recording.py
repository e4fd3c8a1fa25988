"""A gateway in memory that writes down which callbacks ran: engine, pool and HTTP/1 are the real ones.

Client and origin speak through `Wire`, whose small strict parser shares nothing with the codecs. An
origin is an async function that gets the `Wire` of each connection made to it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NoReturn

import attrs
import trio
import trio.testing

from trioproxy import (
    BodyChunk,
    Digest,
    ErrorType,
    FailToProxy,
    Headers,
    HttpPeer,
    ProxyError,
    ProxyHttp,
    RequestHeader,
    ResponseHeader,
    ServerConf,
    Session,
)
from trioproxy._custom import Protocol
from trioproxy._info import ConnectionInfo
from trioproxy.codec._h1 import HeadLimits, RequestReader, ResponseReader
from trioproxy.proxy._bound import Filters
from trioproxy.proxy._engine import Engine
from trioproxy.proxy._record import ExchangeRecord
from trioproxy.proxy._services import Services
from trioproxy.streams._abc import UpstreamConnection
from trioproxy.streams._custom_client import CustomClientConnection
from trioproxy.streams._custom_server import CustomServerConnection, CustomServerOptions
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.streams._h1_server import H1ServerConnection, H1ServerOptions
from trioproxy.streams._raw import RawConnection
from trioproxy.transport._byte_stream import StreamAdapter
from trioproxy.upstream._connector import Connector
from trioproxy.upstream._pool import Pool

GET = b"GET /path HTTP/1.1\r\nHost: site.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

#: The peer that `Recorder` chooses when it is not told otherwise.
ORIGIN = HttpPeer("origin.test", 80)
ORIGIN_2 = HttpPeer("second.test", 80)


def post(*chunks: bytes, framing: Literal["length", "chunked"] = "length") -> bytes:
    """Return the bytes of a POST with this body."""
    head = b"POST /path HTTP/1.1\r\nHost: site.test\r\n"
    if framing == "length":
        body = b"".join(chunks)
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*chunks)


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    """Return a chunked body, with trailer lines if there are any."""
    parts = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk]
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


# -- the wire ------------------------------------------------------------------------------------


@attrs.define
class Message:
    """A message as the other party received it."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = attrs.field(factory=list)

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.start.split(b" ")[1])

    def get(self, name: str) -> str | None:
        """Return a field's only value, None where it is absent."""
        values = [value for key, value in self.fields if key == name.lower().encode()]
        assert len(values) < 2, (name, values)
        return values[0].decode("latin-1") if values else None


class CutError(Exception):
    """The message ended before its proper end; ``message`` has what came."""

    def __init__(self, message: Message | None) -> None:
        super().__init__(message)
        self.message = message


@attrs.define(eq=False)
class Wire:
    """One end of a byte stream, read message by message."""

    stream: trio.StapledStream[Any, Any]
    #: How many connections to this origin were made before.
    number: int = 0
    buffer: bytearray = attrs.field(factory=bytearray)

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self.stream.send_all(data)

    async def half_close(self) -> None:
        """End our output."""
        await self.stream.send_eof()

    def close(self) -> None:
        """Close both directions at once."""
        self.stream.send_stream.close()
        self.stream.receive_stream.close()

    async def more(self) -> bool:
        """Read once; False at the end of input."""
        data = await self.stream.receive_some(65536)
        self.buffer += data
        return bool(data)

    async def at_end(self) -> bool:
        """Tell whether the other party closes now, and sends nothing before."""
        return not self.buffer and not await self.more()

    async def _line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            if not await self.more():
                raise EOFError
        line, _, rest = bytes(self.buffer).partition(b"\r\n")
        self.buffer[:] = rest
        return line

    async def _take(self, count: int, into: Message) -> None:
        while count:
            if not self.buffer and not await self.more():
                raise EOFError
            piece = bytes(self.buffer[:count])
            del self.buffer[: len(piece)]
            into.body += piece
            count -= len(piece)

    async def _fields(self) -> list[tuple[bytes, bytes]]:
        fields = []
        while line := await self._line():
            name, colon, value = line.partition(b":")
            assert colon, line
            assert name, line
            assert name == name.strip(), line
            fields.append((name.lower(), value.strip()))
        return fields

    async def head(self) -> Message:
        """Read a message's head."""
        try:
            start = await self._line()
            return Message(start, await self._fields())
        except EOFError:
            raise CutError(None) from None

    async def message(self, *, bodiless: bool = False) -> Message:
        """Read a whole message; a response without framing ends with the connection."""
        message = await self.head()
        if not bodiless:
            await self.body(message)
        return message

    async def body(self, message: Message) -> None:
        """Read the body that belongs to a head."""
        length = message.get("content-length")
        coding = message.get("transfer-encoding")
        assert length is None or coding is None, message
        response = message.start.startswith(b"HTTP/")
        if response and (message.status < 200 or message.status in (204, 304)):
            return
        try:
            if coding is not None:
                assert coding == "chunked"
                while size := int(await self._line(), 16):
                    await self._take(size, message)
                    assert await self._line() == b""
                message.trailers = await self._fields()
            elif length is not None:
                await self._take(int(length), message)
            elif response:
                while self.buffer or await self.more():
                    await self._take(len(self.buffer), message)
        except EOFError:
            raise CutError(message) from None


Origin = Callable[[Wire], Awaitable[None]]
#: What happens to a connection attempt: an origin serves it, or it fails with this error.
Outcome = Origin | ErrorType
#: By the peer's name: what becomes of every connection, or of the first, the second and so on.
Origins = Mapping[str, Outcome | Sequence[Outcome]]


def answers(*responses: bytes, bodiless: bool = False) -> Origin:
    """Return an origin that reads a request for each of its responses, the last one repeated."""

    async def serve(wire: Wire) -> None:
        queue = list(responses)
        while True:
            try:
                await wire.message()
            except CutError:
                return
            await wire.send(queue.pop(0) if len(queue) > 1 else queue[0])

    return serve


def in_pieces(*pieces: bytes) -> Origin:
    """Return an origin that reads a request and sends some bytes, each piece read by itself."""

    async def serve(wire: Wire) -> None:
        await wire.message()
        for piece in pieces:
            await wire.send(piece)
            await trio.testing.wait_all_tasks_blocked()
        await wire.more()

    return serve


def cuts(*pieces: bytes) -> Origin:
    """Return an origin that reads a request, sends some bytes likewise and closes."""

    async def serve(wire: Wire) -> None:
        await wire.message()
        for piece in pieces:
            await wire.send(piece)
            await trio.testing.wait_all_tasks_blocked()

    return serve


def keeps(into: list[Message], response: bytes = OK) -> Origin:
    """Return an origin that keeps the requests it got whole, and answers them all alike."""

    async def serve(wire: Wire) -> None:
        while True:
            try:
                into.append(await wire.message())
            except CutError:
                return
            await wire.send(response)

    return serve


# -- the recorder --------------------------------------------------------------------------------


@attrs.define(eq=False)
class Ctx:
    """The context of one request."""

    number: int
    attempts: int = 0


@attrs.frozen(eq=False)
class Call:
    """One call of a callback, with copies of what may change later."""

    name: str
    ctx: Ctx
    args: dict[str, Any]
    #: The copy that a transcript shows.
    shown: str


def raises(error: Exception) -> Callable[..., NoReturn]:
    """Return a hook that raises."""

    def hook(*_args: object) -> NoReturn:
        raise error

    return hook


def returns(value: object) -> Callable[..., object]:
    """Return a hook that returns a value."""
    return lambda *_args: value


@attrs.define(eq=False, slots=False)
class Recorder(ProxyHttp[Ctx]):
    """Overrides all callbacks, writes each call down, then does what its hook of that name says.

    Hooks get the callback's own arguments, and may be async where the callback is.
    """

    peers: Sequence[HttpPeer] = (ORIGIN,)
    hooks: dict[str, Callable[..., Any]] = attrs.field(factory=dict)
    calls: list[Call] = attrs.field(factory=list)

    # -- looking

    def names(self) -> list[str]:
        """Return the names of the callbacks that ran, in order."""
        return [call.name for call in self.calls]

    def shown(self) -> list[str]:
        """Return the transcript."""
        return [call.shown for call in self.calls]

    def of(self, name: str) -> list[Call]:
        """Return the calls of one callback."""
        return [call for call in self.calls if call.name == name]

    def the(self, name: str) -> Call:
        """Return the only call of one callback."""
        (call,) = self.of(name)
        return call

    def pieces(self, name: str) -> list[tuple[bytes | None, bool]]:
        """Return what a body filter was given."""
        return [(call.args["data"], call.args["end_of_stream"]) for call in self.of(name)]

    # -- writing down

    def _note(self, name: str, ctx: Ctx, shown: object = None, **args: Any) -> None:
        text = name if shown is None else f"{name}({shown})"
        self.calls.append(Call(name, ctx, args, text))

    async def _async(self, name: str, default: Any, *args: Any) -> Any:
        hook = self.hooks.get(name)
        result = default if hook is None else hook(*args)
        return await result if inspect.isawaitable(result) else result

    # -- the callbacks

    def new_ctx(self) -> Ctx:
        made = (call.ctx.number + 1 for call in reversed(self.calls) if call.name == "new_ctx")
        ctx = Ctx(next(made, 0))
        self._note("new_ctx", ctx)
        hook = self.hooks.get("new_ctx")
        return ctx if hook is None else hook()

    async def early_request_filter(self, session: Session, ctx: Ctx) -> None:
        self._note("early_request_filter", ctx, session=session)
        await self._async("early_request_filter", None, session, ctx)

    async def request_filter(self, session: Session, ctx: Ctx) -> bool:
        self._note("request_filter", ctx, session=session)
        return bool(await self._async("request_filter", False, session, ctx))

    async def proxy_upstream_filter(self, session: Session, ctx: Ctx) -> bool:
        self._note("proxy_upstream_filter", ctx, session=session)
        return bool(await self._async("proxy_upstream_filter", True, session, ctx))

    async def upstream_peer(self, session: Session, ctx: Ctx) -> HttpPeer:
        self._note("upstream_peer", ctx, session=session)
        peer = self.peers[min(ctx.attempts, len(self.peers) - 1)]
        ctx.attempts += 1
        return await self._async("upstream_peer", peer, session, ctx)  # type: ignore[no-any-return]  # a test's hook

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: Ctx, e: ProxyError
    ) -> ProxyError:
        self._note("fail_to_connect", ctx, session=session, peer=peer, e=e)
        hook = self.hooks.get("fail_to_connect")
        return e if hook is None else hook(session, peer, ctx, e)

    async def connected_to_upstream(
        self,
        session: Session,
        reused: bool,
        peer: HttpPeer,
        fd: int,
        digest: Digest | None,
        ctx: Ctx,
    ) -> None:
        self._note(
            "connected_to_upstream",
            ctx,
            session=session,
            reused=reused,
            peer=peer,
            fd=fd,
            digest=digest,
        )
        await self._async("connected_to_upstream", None, session, reused, peer, fd, digest, ctx)

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: Ctx
    ) -> None:
        self._note("upstream_request_filter", ctx, session=session, head=upstream_request)
        await self._async("upstream_request_filter", None, session, upstream_request, ctx)

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> None:
        self._body("request_body_filter", session, body, end_of_stream, ctx)
        await self._async("request_body_filter", None, session, body, end_of_stream, ctx)

    async def upstream_response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Ctx
    ) -> None:
        self._head("upstream_response_filter", session, upstream_response, ctx)
        await self._async("upstream_response_filter", None, session, upstream_response, ctx)

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: Ctx
    ) -> None:
        self._head("response_filter", session, upstream_response, ctx)
        await self._async("response_filter", None, session, upstream_response, ctx)

    def upstream_response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> float | None:
        self._body("upstream_response_body_filter", session, body, end_of_stream, ctx)
        hook = self.hooks.get("upstream_response_body_filter")
        return None if hook is None else hook(session, body, end_of_stream, ctx)

    async def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> float | None:
        self._body("response_body_filter", session, body, end_of_stream, ctx)
        return await self._async(  # type: ignore[no-any-return]  # a test's hook
            "response_body_filter", None, session, body, end_of_stream, ctx
        )

    def upstream_response_trailer_filter(
        self, session: Session, upstream_trailers: Headers, ctx: Ctx
    ) -> None:
        self._note(
            "upstream_response_trailer_filter",
            ctx,
            session=session,
            trailers=upstream_trailers.copy(),
        )
        hook = self.hooks.get("upstream_response_trailer_filter")
        if hook is not None:
            hook(session, upstream_trailers, ctx)

    async def response_trailer_filter(
        self, session: Session, upstream_trailers: Headers, ctx: Ctx
    ) -> bytes | None:
        self._note(
            "response_trailer_filter", ctx, session=session, trailers=upstream_trailers.copy()
        )
        return await self._async(  # type: ignore[no-any-return]  # a test's hook
            "response_trailer_filter", None, session, upstream_trailers, ctx
        )

    def error_while_proxy(
        self, peer: HttpPeer, session: Session, e: ProxyError, ctx: Ctx, client_reused: bool
    ) -> ProxyError:
        self._note(
            "error_while_proxy",
            ctx,
            session=session,
            peer=peer,
            e=e,
            retry=e.retry,
            client_reused=client_reused,
        )
        hook = self.hooks.get("error_while_proxy")
        if hook is not None:
            return hook(peer, session, e, ctx, client_reused)  # type: ignore[no-any-return]  # a test's hook
        return super().error_while_proxy(peer, session, e, ctx, client_reused)

    async def fail_to_proxy(self, session: Session, e: ProxyError, ctx: Ctx) -> FailToProxy:
        self._note("fail_to_proxy", ctx, session=session, e=e)
        hook = self.hooks.get("fail_to_proxy")
        if hook is not None:
            return await hook(session, e, ctx)  # type: ignore[no-any-return]  # a test's hook
        return await super().fail_to_proxy(session, e, ctx)

    def suppress_error_log(self, session: Session, ctx: Ctx, error: ProxyError) -> bool:
        self._note("suppress_error_log", ctx, session=session, e=error)
        hook = self.hooks.get("suppress_error_log")
        return False if hook is None else hook(session, ctx, error)

    def request_summary(self, session: Session, ctx: Ctx) -> str:
        self._note("request_summary", ctx, session=session)
        hook = self.hooks.get("request_summary")
        if hook is not None:
            return hook(session, ctx)  # type: ignore[no-any-return]  # a test's hook
        return super().request_summary(session, ctx)

    async def logging(self, session: Session, e: ProxyError | None, ctx: Ctx) -> None:
        self._note("logging", ctx, None if e is None else e.etype, session=session, e=e)
        await self._async("logging", None, session, e, ctx)

    def _head(self, name: str, session: Session, head: ResponseHeader, ctx: Ctx) -> None:
        self._note(name, ctx, head.status, session=session, head=head.copy())

    def _body(
        self, name: str, session: Session, body: BodyChunk, end_of_stream: bool, ctx: Ctx
    ) -> None:
        data = body.data
        shown = f"{data!r}, {end_of_stream}"
        self._note(name, ctx, shown, session=session, data=data, end_of_stream=end_of_stream)


#: Makes a transport of one end of a stream.
Adapt = Callable[[trio.StapledStream[Any, Any]], StreamAdapter]


Connection = H1ServerConnection | CustomServerConnection


# -- the gateway ---------------------------------------------------------------------------------


@attrs.define(eq=False)
class MemoryConnector(Connector):
    """Connects to origins that are functions of this process."""

    nursery: trio.Nursery
    origins: Origins
    #: Whether a write waits until the other party has read it all.
    adapt: Adapt
    lockstep: bool = False
    limits: HeadLimits = attrs.field(factory=HeadLimits)
    asked: list[str] = attrs.field(factory=list)

    async def connect(self, peer: HttpPeer) -> UpstreamConnection:
        await trio.lowlevel.checkpoint()
        outcome = self.origins[peer.name]
        number = self.asked.count(peer.name)
        self.asked.append(peer.name)
        if isinstance(outcome, Sequence):
            outcome = outcome[min(number, len(outcome) - 1)]
        if isinstance(outcome, ErrorType):
            raise ProxyError.new_up(outcome)
        ours, theirs = _pair(self.lockstep)
        self.nursery.start_soon(self._serve, outcome, Wire(theirs, number))
        info = ConnectionInfo("192.0.2.10:40000", f"192.0.2.20:{peer.port}", trio.current_time())
        if peer.carries_bytes:
            return RawConnection(self.adapt(ours), info)
        protocol = peer.options.custom
        if protocol is not None:
            return CustomClientConnection(self.adapt(ours), info, protocol.client())
        return H1ClientConnection(self.adapt(ours), info, ResponseReader(self.limits))

    async def _serve(self, origin: Origin, wire: Wire) -> None:
        try:
            await origin(wire)
        except trio.BrokenResourceError:
            pass  # the gateway closed while this origin was sending
        finally:
            wire.close()


def _pair(lockstep: bool) -> tuple[trio.StapledStream[Any, Any], trio.StapledStream[Any, Any]]:
    return trio.testing.lockstep_stream_pair() if lockstep else trio.testing.memory_stream_pair()


@attrs.define(eq=False)
class Gateway:
    """A running proxy object without a listener: `connect` is its client."""

    nursery: trio.Nursery
    services: Services
    engine: Engine
    connector: MemoryConnector
    conf: ServerConf
    #: Every exchange, as an access log would have it.
    records: list[ExchangeRecord]
    lockstep: bool
    clients: list[Wire] = attrs.field(factory=list)
    connections: dict[Connection, trio.CancelScope] = attrs.field(factory=dict)
    refused: list[int] = attrs.field(factory=list)
    _gone: trio.Event = attrs.field(factory=trio.Event)

    @property
    def pool(self) -> Pool:
        """The upstream connections."""
        return self.services.pool

    def connect(self) -> Wire:
        """Return a new client connection."""
        ours, theirs = _pair(self.lockstep)
        client = Wire(ours, len(self.clients))
        self.clients.append(client)
        conf = self.conf
        connection = H1ServerConnection(
            self.connector.adapt(theirs),
            ConnectionInfo("192.0.2.1:80", f"198.51.100.1:{50000 + client.number}"),
            RequestReader(
                HeadLimits(allow_connect=conf.allow_connect), max_body_bytes=conf.max_body_bytes
            ),
            H1ServerOptions(
                header_timeout=conf.header_timeout,
                idle_timeout=conf.idle_timeout,
                body_timeout=conf.body_timeout,
                min_receive_rate=conf.min_receive_rate,
                write_timeout=conf.write_timeout,
                drain_timeout=conf.drain_timeout,
                drain_bytes=conf.drain_bytes,
                server_name=conf.server_name.encode(),
            ),
            lambda _info, status, _reason: self.refused.append(status),
        )
        self.connections[connection] = trio.CancelScope()
        self.nursery.start_soon(self._serve, connection)
        return client

    def connect_custom(self, protocol: Protocol) -> Wire:
        """Return a new client connection that speaks a protocol of its own."""
        ours, theirs = _pair(self.lockstep)
        client = Wire(ours, len(self.clients))
        self.clients.append(client)
        conf = self.conf
        connection = CustomServerConnection(
            self.connector.adapt(theirs),
            ConnectionInfo("192.0.2.1:80", f"198.51.100.1:{50000 + client.number}"),
            protocol.server(),
            CustomServerOptions(
                header_timeout=conf.header_timeout,
                idle_timeout=conf.idle_timeout,
                body_timeout=conf.body_timeout,
                min_receive_rate=conf.min_receive_rate,
                max_body_bytes=conf.max_body_bytes,
                request_limit=conf.keepalive_request_limit,
                drain_bytes=conf.drain_bytes,
                write_timeout=conf.write_timeout,
                drain_timeout=conf.drain_timeout,
            ),
            lambda _info, status, _reason: self.refused.append(status),
        )
        self.connections[connection] = trio.CancelScope()
        self.nursery.start_soon(self._serve, connection)
        return client

    def stop(self) -> None:
        """Stop hard: cancel every client connection."""
        for scope in self.connections.values():
            scope.cancel()

    async def _serve(self, connection: Connection) -> None:
        try:
            with self.connections[connection]:
                await connection.run(self.engine.handle)
        finally:
            del self.connections[connection]
            self._gone.set()

    async def exchange(self, request: bytes, *, bodiless: bool = False) -> Message:
        """Send one request on a connection of its own, and return the final response."""
        client = self.connect()
        await client.send(request)
        response = await client.message(bodiless=bodiless)
        while response.status < 200:
            response = await client.message(bodiless=bodiless)
        return response

    async def ended(self) -> None:
        """Return when no client connection is served any more."""
        while self.connections:
            self._gone = trio.Event()
            await self._gone.wait()


@asynccontextmanager
async def open_gateway(
    proxy: ProxyHttp[Any],
    origins: Outcome | Origins,
    *,
    conf: ServerConf | None = None,
    lockstep: bool = False,
    adapt: Adapt = StreamAdapter,
) -> AsyncIterator[Gateway]:
    """Run a proxy object in memory; leaving checks that no lease, task or open stream is left.

    Args:
      proxy: The proxy object.
      origins: What becomes of connections, by the peer's name; or of those to `ORIGIN`.
      conf: Timeouts and limits.
      lockstep: Let every write wait until the other party has read it all.
      adapt: Makes the gateway's transports.
    """
    transports: list[StreamAdapter] = []

    def adapt_and_keep(stream: trio.StapledStream[Any, Any]) -> StreamAdapter:
        transports.append(adapt(stream))
        return transports[-1]

    conf = ServerConf() if conf is None else conf
    if not isinstance(origins, Mapping):
        origins = {ORIGIN.name: origins}
    records: list[ExchangeRecord] = []
    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery, trio.open_nursery() as pool_nursery:
            limits = HeadLimits(
                max_bytes=conf.max_response_header_bytes,
                max_fields=conf.max_response_header_fields,
            )
            connector = MemoryConnector(nursery, origins, adapt_and_keep, lockstep, limits)
            pool = Pool(connector, pool_nursery, size=conf.pool_size)
            services = Services(
                conf=conf,
                pool=pool,
                filters=Filters.bind(proxy),
                log=logging.getLogger("trioproxy"),
                on_record=records.append,
            )
            engine = Engine(services)
            gateway = Gateway(nursery, services, engine, connector, conf, records, lockstep)
            yield gateway
            for client in gateway.clients:
                client.close()
            await gateway.ended()
            assert pool.statistics().leased == 0
            assert services.sessions == 0
            pool.close_idle()
            await trio.testing.wait_all_tasks_blocked()
            # Every connection has ended by itself, none had to be cancelled.
            assert not pool_nursery.child_tasks
            assert all(transport._closed for transport in transports)
            nursery.cancel_scope.cancel()
