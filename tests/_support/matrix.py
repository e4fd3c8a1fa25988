"""One harness for every pairing of protocols: HTTP/1.1, HTTP/1.1 and HTTP/2 over TLS, and h2c.

The gateway is the real one (`trioproxy.serve` with its own connector), only the network is in
memory (`trioproxy.testing`'s, with the capacity and the closing of TCP). Client and origin share no
code with it: `Wire` speaks HTTP/1, `H2Peer` HTTP/2, `TlsWire` TLS. A scenario is written once::

    @pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
    async def test_it(pairing: Pairing, autojump_clock: MockClock) -> None:
        async def origin(exchange: Exchange) -> None:          # one call per request
            request = await exchange.message()
            await exchange.respond(200, [("x", "1")], b"hello", trailers=[("t", "2")])

        recorder = Recorder()
        async with open_matrix(recorder, origin, pairing) as gateway:
            response = await gateway.exchange("POST", body=b"up")       # a connection of its own
            client = await gateway.connect()
            exchange = await client.open("POST", fields=[("x", "y")])   # the head alone
            await exchange.send_data(b"one")
            await exchange.send_data(b"two", end=True)
            response = await exchange.message()
        assert recorder.shown() == [...]

Origins are given as for `open_gateway`: one outcome, or by the peer's name one outcome for every
connection or several for the first, the second and so on; an outcome is a handler or the
`ErrorType` of a failed connection. The peers of a `Recorder` become peers of the pairing's kind;
`Matrix.peer` does that for others. Leaving checks that nothing is left: no lease, session or open
end, and that every byte of HTTP/2 content came back as credit.

`Exchange` is the same for both roles and protocols: `head`, `at_least`, `message` receive (a
`Message`, or CutError), ``send_head/-data/-trailers``, `respond` send, `reset` gives one exchange up
(HTTP/1 closes), `close` breaks the connection off. `hold` stops taking its content, `go_on` takes
it again.
"""

from __future__ import annotations

import contextlib
import functools
import math
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
import trio.testing
import trustme
from hyperframe.frame import SettingsFrame

import trioproxy
from tests._support.h2_wire import (
    CANCEL,
    AnyFields,
    H2Message,
    H2Peer,
    H2Stream,
    H2Wire,
    as_fields,
)
from tests._support.recording import ORIGIN, CutError, Message, Recorder, Wire
from tests._support.tls_wire import TlsWire, client_context, server_context
from trioproxy import ErrorType, HttpPeer, ProxyError, ServerConf, TlsSettings
from trioproxy.proxy._compose import Proxy
from trioproxy.proxy._record import ExchangeRecord
from trioproxy.server._http import HttpService
from trioproxy.server._serve import Running
from trioproxy.testing._network import PLAIN, End, Link, MemoryAcceptor, Network

#: The name in the gateway's certificate.
SITE = "site.test"


@attrs.frozen
class Leg:
    """What is spoken on one side of the gateway."""

    name: str
    h2: bool
    tls: bool

    def __str__(self) -> str:
        return self.name

    @property
    def scheme(self) -> str:
        """The scheme of its requests."""
        return "https" if self.tls else "http"

    @property
    def alpn(self) -> list[str]:
        """What is offered by ALPN."""
        return ["h2"] if self.h2 else ["http/1.1"]


H1 = Leg("h1", h2=False, tls=False)
H1_TLS = Leg("h1+tls", h2=False, tls=True)
H2_TLS = Leg("h2+tls", h2=True, tls=True)
H2C = Leg("h2c", h2=True, tls=False)
LEGS = (H1, H1_TLS, H2_TLS, H2C)


@attrs.frozen
class Pairing:
    """What the client speaks and what the origin does."""

    down: Leg
    up: Leg

    def __str__(self) -> str:
        return f"{self.down}-to-{self.up}"


PAIRINGS = [Pairing(down, up) for down in LEGS for up in LEGS]


@functools.cache
def authority() -> trustme.CA:
    """Return the authority that signed every certificate here."""
    return trustme.CA()


@functools.cache
def certificate(name: str) -> trustme.LeafCert:
    """Return a certificate for a name."""
    return authority().issue_cert(name)


@functools.cache
def origin_context(name: str, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Return what an origin offers over TLS."""
    return server_context(certificate(name), alpn=alpn)


@functools.cache
def visitor_context(leg: Leg) -> ssl.SSLContext:
    """Return what a client offers over TLS."""
    return client_context(authority(), alpn=leg.alpn)


# -- streams -------------------------------------------------------------------------------------


def stapled(end: End) -> trio.StapledStream[Any, Any]:
    """Return the other party's end of a link as a stream of Trio's."""
    return trio.StapledStream(_EndSender(end), _EndReceiver(end))


@attrs.define(eq=False)
class _EndSender(trio.abc.SendStream):
    end: End

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        try:
            # In pieces: as with TCP, only the next write fails when the other side has closed.
            for at in range(0, len(view), 16384):
                await self.end.send_parts([bytes(view[at : at + 16384])], math.inf)
        except ProxyError as exc:
            raise trio.BrokenResourceError from exc

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    def send_nowait(self, data: bytes) -> None:
        """Send what there is room for."""
        self.end.send_ready(data)

    async def send_eof(self) -> None:
        """End the output."""
        await self.end.send_eof()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close both directions."""
        self.end.close_now()


@attrs.define(eq=False)
class _EndReceiver(trio.abc.ReceiveStream):
    end: End

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self.end.receive_some(65536 if max_bytes is None else max_bytes)
        except ProxyError as exc:
            raise trio.BrokenResourceError from exc

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close both directions."""
        self.end.close_now()


# -- exchanges -----------------------------------------------------------------------------------


class Exchange(ABC):
    """One exchange as client or origin see it, whatever carries it."""

    #: How many connections to this origin were made before its own, and requests on that.
    connection: int = 0
    index: int = 0

    @abstractmethod
    async def head(self) -> Message:
        """Wait for the (final) head."""

    @abstractmethod
    async def at_least(self, count: int) -> Message:
        """Wait until so many bytes of content have come."""

    @abstractmethod
    async def message(self) -> Message:
        """Wait for the whole message, or raise CutError."""

    @abstractmethod
    async def informational(self, count: int = 1) -> list[Message]:
        """Wait until so many 1xx heads have come."""

    @abstractmethod
    async def gone(self) -> None:
        """Wait until the other side gives the exchange up."""

    @abstractmethod
    async def send_head(self, status: int, fields: AnyFields = (), *, end: bool = False) -> None:
        """Send a response's head."""

    @abstractmethod
    async def send_data(self, data: bytes, *, end: bool = False) -> None:
        """Send content."""

    @abstractmethod
    async def send_trailers(self, fields: AnyFields) -> None:
        """Send trailers and end the message."""

    @abstractmethod
    async def reset(self, code: int = CANCEL) -> None:
        """Give the exchange up; over HTTP/1 that ends the connection."""

    @abstractmethod
    def close(self) -> None:
        """Break the connection off."""

    @abstractmethod
    def one_write(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Let all that is sent in this block leave in one write."""

    @abstractmethod
    def hold(self) -> None:
        """Take no more content."""

    @abstractmethod
    def go_on(self) -> None:
        """Take content again."""

    async def respond(
        self,
        status: int = 200,
        fields: AnyFields = (),
        body: bytes = b"",
        trailers: AnyFields | None = None,
    ) -> None:
        """Send a whole response, a small one in one write."""
        plain = trailers is None
        async with self.one_write() if len(body) < 1024 else contextlib.nullcontext():
            await self.send_head(status, fields, end=plain and not body)
            if body:
                await self.send_data(body, end=plain)
            if trailers is not None:
                await self.send_trailers(trailers)


@attrs.define(eq=False, slots=False)
class H2Exchange(Exchange):
    """A stream of HTTP/2."""

    stream: H2Stream
    connection: int = 0
    index: int = 0

    async def head(self) -> Message:
        return await self.stream.head()

    async def at_least(self, count: int) -> Message:
        return await self.stream.at_least(count)

    async def message(self) -> Message:
        return await self.stream.message()

    async def informational(self, count: int = 1) -> list[Message]:
        await self.stream.informational_head(count - 1)
        return list(self.stream.informational)

    async def gone(self) -> None:
        await self.stream.gone()

    async def send_head(self, status: int, fields: AnyFields = (), *, end: bool = False) -> None:
        await self.stream.send_head(status, fields, end=end)

    async def send_data(self, data: bytes, *, end: bool = False) -> None:
        await self.stream.send_data(data, end=end)

    async def send_trailers(self, fields: AnyFields) -> None:
        await self.stream.send_trailers(fields)

    async def reset(self, code: int = CANCEL) -> None:
        await self.stream.reset(code)

    def close(self) -> None:
        self.stream.peer.close()

    def one_write(self) -> contextlib.AbstractAsyncContextManager[None]:
        return self.stream.peer.wire.one_write()

    def hold(self) -> None:
        self.stream.crediting = False

    def go_on(self) -> None:
        self.stream.crediting = True
        self.stream.peer.credit(self.stream)


@attrs.define(eq=False, slots=False)
class H1Exchange(Exchange):
    """A request and its response on a connection that has them one after another.

    It reads only while somebody waits for something.
    """

    wire: Wire
    connection: int = 0
    index: int = 0
    #: Whether the response has no content by its request, which was HEAD.
    to_head: bool = False
    incoming: Message | None = None
    ended: bool = False
    informational_heads: list[Message] = attrs.field(factory=list)
    #: Whether our message has ended.
    sent: bool = False
    closed: bool = False
    _framing: str = "none"
    _left: int = 0
    _sending: str = "none"
    _held: bytearray | None = None
    #: The body of `incoming`, which gets it whenever somebody looks.
    _body: bytearray = attrs.field(factory=bytearray)

    # -- receiving

    async def _until(self, ready: Callable[[], bool]) -> Message:
        try:
            while not ready():
                await self._step()
        except (EOFError, CutError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise CutError(self.incoming) from None
        finally:
            if self.incoming is not None and len(self.incoming.body) < len(self._body):
                self.incoming.body = bytes(self._body)
        assert self.incoming is not None
        return self.incoming

    async def _step(self) -> None:
        if self.incoming is None:
            head = await self.wire.head()
            if head.start.startswith(b"HTTP/") and head.status < 200 and head.status != 101:
                self.informational_heads.append(head)
            else:
                self._start(head)
        elif self._framing == "chunked" and not self._left:
            self._left = int(await self.wire._line(), 16)
            if not self._left:
                self.incoming.trailers = await self.wire._fields()
                self.ended = True
        elif self.wire.buffer or await self.wire.more():
            buffer = self.wire.buffer
            piece = bytes(buffer if self._framing == "close" else buffer[: self._left])
            del buffer[: len(piece)]
            self._body += piece
            self._left -= len(piece)
            if not self._left and self._framing == "chunked":
                assert await self.wire._line() == b""
            elif not self._left and self._framing == "length":
                self.ended = True
        elif self._framing == "close":
            self.ended = True
        else:
            raise EOFError

    def _start(self, head: Message) -> None:
        self.incoming = head
        length, coding = head.get("content-length"), head.get("transfer-encoding")
        assert length is None or coding is None, head
        response = head.start.startswith(b"HTTP/")
        if response and (self.to_head or head.status in (204, 304)):
            self.ended = True
        elif coding is not None:
            assert coding == "chunked", coding
            self._framing = "chunked"
        elif length is not None:
            self._framing, self._left = "length", int(length)
            self.ended = not self._left
        elif response:
            self._framing = "close"
        else:
            self.ended = True

    async def head(self) -> Message:
        return await self._until(lambda: self.incoming is not None)

    async def at_least(self, count: int) -> Message:
        return await self._until(lambda: self.incoming is not None and len(self._body) >= count)

    async def message(self) -> Message:
        return await self._until(lambda: self.ended)

    async def informational(self, count: int = 1) -> list[Message]:
        while len(self.informational_heads) < count:
            assert self.incoming is None, self.incoming
            await self._step()
        return list(self.informational_heads)

    async def gone(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await self.wire.more():
                pass

    # -- sending

    def _head(self, start: bytes, fields: AnyFields, *, bodiless: bool, end: bool) -> bytes:
        pairs = as_fields(fields)
        if bodiless:
            self.sent = True
        elif any(name.lower() == b"content-length" for name, _ in pairs):
            self._sending = "length"
            self.sent = end
        elif end:
            pairs.append((b"content-length", b"0"))
            self.sent = True
        else:
            self._sending = "chunked"
            pairs.append((b"transfer-encoding", b"chunked"))
        return b"".join([start, b"\r\n", *(b"%s: %s\r\n" % pair for pair in pairs), b"\r\n"])

    async def send_request_head(
        self, method: str, target: str, fields: AnyFields, authority: str, *, end: bool
    ) -> None:
        """Send a request's head."""
        self.to_head = method == "HEAD"
        start = f"{method} {target} HTTP/1.1".encode("latin-1")
        pairs = [*as_fields([("host", authority)]), *as_fields(fields)]
        await self._send(self._head(start, pairs, bodiless=end, end=end))

    async def send_head(self, status: int, fields: AnyFields = (), *, end: bool = False) -> None:
        start = b"HTTP/1.1 %d Said" % status
        bodiless = status < 200 or status in (204, 304) or self._is_answer_to_head()
        head = self._head(start, fields, bodiless=bodiless, end=end)
        self.sent = self.sent and status >= 200
        await self._send(head)

    def _is_answer_to_head(self) -> bool:
        return self.incoming is not None and self.incoming.start.startswith(b"HEAD ")

    async def send_data(self, data: bytes, *, end: bool = False) -> None:
        if self._sending == "chunked":
            data = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
            data += b"0\r\n\r\n" if end else b""
        self.sent = self.sent or end
        await self._send(data)

    async def send_trailers(self, fields: AnyFields) -> None:
        assert self._sending == "chunked"
        self.sent = True
        lines = b"".join(b"%s: %s\r\n" % pair for pair in as_fields(fields))
        await self._send(b"0\r\n" + lines + b"\r\n")

    async def _send(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
            return
        try:
            await self.wire.send(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise CutError(self.incoming) from None

    async def reset(self, code: int = CANCEL) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.closed = True
        self.wire.close()

    @asynccontextmanager
    async def one_write(self) -> AsyncIterator[None]:
        self._held = bytearray()
        try:
            yield
        finally:
            held, self._held = self._held, None
        await self._send(bytes(held))

    def hold(self) -> None:
        """Nothing is read while nobody asks."""

    def go_on(self) -> None:
        """Nothing was held."""


Handler = Callable[[Exchange], Awaitable[None]]


@attrs.frozen
class Frames:
    """An origin that plays a whole connection of HTTP/2 frame by frame."""

    script: Callable[[H2Wire], Awaitable[None]]


#: What happens to a connection attempt: a handler serves it, or it fails with this error.
Outcome = Handler | Frames | ErrorType
Origins = Mapping[str, Outcome | Sequence[Outcome]]


def answers(
    status: int = 200,
    fields: AnyFields = (),
    body: bytes = b"hello",
    trailers: AnyFields | None = None,
) -> Handler:
    """Return a handler that answers every request, once it is whole, alike."""
    fields = as_fields(fields)

    async def handler(exchange: Exchange) -> None:
        await exchange.message()
        await exchange.respond(status, fields, body, trailers)

    return handler


OK = answers(fields=[("content-length", "5")])


def keeps(into: list[Message], handler: Handler = OK) -> Handler:
    """Return a handler that also keeps the requests that it got whole."""

    async def keeper(exchange: Exchange) -> None:
        into.append(await exchange.message())
        await handler(exchange)

    return keeper


def essence(message: Message) -> tuple[object, ...]:
    """Return what a message is, whatever carried it: status, fields, content, trailers."""
    carriers = {b"connection", b"transfer-encoding", b"host", b"date", b"keep-alive"}
    fields = [pair for pair in message.fields if pair[0] not in carriers]
    response = message.start.startswith(b"HTTP/")
    start = message.status if response else message.start.rpartition(b" ")[0]
    return start, sorted(fields), message.body, message.trailers


def authority_of(request: Message) -> str | None:
    """Return the authority of a request."""
    if isinstance(request, H2Message):
        return request.pseudo.get(":authority")
    return request.get("host")


# -- the client ------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Client:
    """One client connection."""

    leg: Leg
    #: One of these two is there.
    wire: Wire | None
    peer: H2Peer | None
    tls: TlsWire | None
    stream: trio.StapledStream[Any, Any]
    _count: int = 0

    async def open(
        self,
        method: str = "GET",
        target: str = "/path",
        fields: AnyFields = (),
        *,
        end: bool = False,
        authority: str = SITE,
    ) -> Exchange:
        """Send a request's head; over HTTP/1 one at a time."""
        index, self._count = self._count, self._count + 1
        if self.peer is not None:
            stream = await self.peer.open(
                method, target, fields, end=end, authority=authority, scheme=self.leg.scheme
            )
            return H2Exchange(stream, index=index)
        assert self.wire is not None
        exchange = H1Exchange(self.wire, index=index)
        await exchange.send_request_head(method, target, fields, authority, end=end)
        return exchange

    async def request(
        self,
        method: str = "GET",
        target: str = "/path",
        fields: AnyFields = (),
        *,
        body: bytes | None = None,
        trailers: AnyFields | None = None,
        authority: str = SITE,
    ) -> Exchange:
        """Send a whole request."""
        end = body is None and trailers is None
        exchange = await self.open(method, target, fields, end=end, authority=authority)
        if body is not None:
            await exchange.send_data(body, end=trailers is None)
        if trailers is not None:
            await exchange.send_trailers(trailers)
        return exchange

    async def exchange(self, *args: Any, **kwargs: Any) -> Message:
        """Send a whole request (see `request`) and return its final response."""
        return await (await self.request(*args, **kwargs)).message()

    def close(self) -> None:
        """Close the connection at once, by close_notify where there is TLS."""
        self.stream.send_stream.close()
        self.stream.receive_stream.close()


# -- the gateway -----------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Network:
    """Connects to origins that are functions of this process, as `PeerOptions.custom_l4`."""

    network: Network
    nursery: trio.Nursery
    leg: Leg
    origins: Origins
    link: Link
    #: What an origin with TLS takes.
    alpn: tuple[str, ...] = ()
    asked: list[str] = attrs.field(factory=list)
    #: What was agreed on with each of them.
    spoken: list[str | None] = attrs.field(factory=list)
    #: Origins' connections of HTTP/2.
    peers: list[H2Peer] = attrs.field(factory=list)

    async def connect(self, address: tuple[str, int] | str) -> Any:
        await trio.lowlevel.checkpoint()
        name = address if isinstance(address, str) else address[0]
        outcome = self.origins[name]
        number = self.asked.count(name)
        self.asked.append(name)
        if isinstance(outcome, Sequence):
            outcome = outcome[min(number, len(outcome) - 1)]
        if isinstance(outcome, ErrorType):
            raise ProxyError.new_up(outcome)
        ours, theirs = self.network.link(f"{name}{number}", self.link, proxy_connects=True)
        self.nursery.start_soon(self._serve, theirs, name, number, outcome)
        return ours

    async def _serve(self, end: End, name: str, number: int, handler: Handler | Frames) -> None:
        stream = stapled(end)
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                h2 = self.leg.h2
                if self.leg.tls:
                    tls = TlsWire.wrap(stream, origin_context(name, self.alpn), server_side=True)
                    await tls.handshake()
                    h2 = tls.alpn == "h2"
                    self.spoken.append(tls.alpn)
                    stream = tls.stapled
                if isinstance(handler, Frames):
                    with contextlib.suppress(EOFError):
                        await handler.script(H2Wire(stream, client=False, number=number))
                elif h2:
                    await self._serve_h2(stream, number, handler)
                else:
                    await self._serve_h1(Wire(stream, number), handler)
        finally:
            stream.send_stream.close()

    async def _serve_h1(self, wire: Wire, handler: Handler) -> None:
        index = 0
        while wire.buffer or await wire.more():
            exchange = H1Exchange(wire, wire.number, index)
            index += 1
            with contextlib.suppress(CutError):
                await handler(exchange)
            if exchange.closed or not exchange.sent or not exchange.ended:
                return

    async def _serve_h2(
        self, stream: trio.StapledStream[Any, Any], number: int, handler: Handler
    ) -> None:
        async def handle(stream: H2Stream) -> None:
            await handler(H2Exchange(stream, number, len(peer.streams) - 1))

        peer = H2Peer(H2Wire(stream, client=False, number=number), handle)
        self.peers.append(peer)
        await peer.run()


@attrs.define(eq=False)
class Matrix:
    """A running gateway: `connect` is its client."""

    pairing: Pairing
    nursery: trio.Nursery
    running: Running
    acceptor: MemoryAcceptor
    network: Network
    upstream: _Network
    link: Link
    records: list[ExchangeRecord]
    clients: list[Client] = attrs.field(factory=list)
    wires: list[H2Wire] = attrs.field(factory=list)

    @property
    def asked(self) -> list[str]:
        """The names of the origins in the order of the connections to them."""
        return self.upstream.asked

    def peer(self, peer: HttpPeer | str = ORIGIN, **options: Any) -> HttpPeer:
        """Return the peer of the pairing's kind that leads to the origin of this name."""
        return peer_for(self.upstream, peer, **options)

    async def stream(self) -> tuple[trio.StapledStream[Any, Any], TlsWire | None]:
        """Return a new client connection on which nothing was said, behind its TLS handshake."""
        leg = self.pairing.down
        stream = stapled(self.acceptor.connect(self.link))
        if not leg.tls:
            return stream, None
        tls = TlsWire.wrap(stream, visitor_context(leg), server_name=SITE)
        await tls.handshake()
        assert tls.alpn == leg.alpn[0] or not leg.h2, tls.alpn
        return tls.stapled, tls

    async def frames(self, *, start: bool = True) -> H2Wire:
        """Return a new client connection for a script of frames.

        Args:
          start: Whether the preface and SETTINGS are exchanged.
        """
        stream, _ = await self.stream()
        wire = H2Wire(stream)
        self.wires.append(wire)
        if start:
            await wire.start()
            await wire.until(SettingsFrame, where=lambda frame: "ACK" in frame.flags)
        return wire

    async def connect(self) -> Client:
        """Return a new client connection."""
        leg = self.pairing.down
        stream, tls = await self.stream()
        wire = peer = None
        if leg.h2:
            peer = H2Peer(H2Wire(stream, number=len(self.clients)))
            self.nursery.start_soon(peer.run)
        else:
            wire = Wire(stream, len(self.clients))
        client = Client(leg, wire, peer, tls, stream)
        self.clients.append(client)
        return client

    async def exchange(self, *args: Any, **kwargs: Any) -> Message:
        """Send one request (see `Client.request`) on a connection of its own."""
        client = await self.connect()
        return await client.exchange(*args, **kwargs)

    async def ended(self) -> None:
        """Return when no client connection is served any more."""
        await self.running._server.all_ended()

    async def sessions_ended(self) -> None:
        """Return when no request is in flight any more."""
        while self.running.statistics().sessions:
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.01)


def peer_for(upstream: _Network, peer: HttpPeer | str, **options: Any) -> HttpPeer:
    """Return a peer as the leg has it, reached over the network in memory."""
    if isinstance(peer, str):
        peer = HttpPeer(peer, 80)
    leg = upstream.leg
    more: dict[str, Any] = {"custom_l4": upstream}
    if leg.tls:
        more["ca"] = authority()
    if leg.h2:
        more |= {"http_version": (2, 2), "max_h2_streams": 100}
    return attrs.evolve(
        peer,
        port=443 if leg.tls else 80,
        scheme=leg.scheme,
        options=attrs.evolve(peer.options, **(more | options)),
    )


def _conf(conf: ServerConf, leg: Leg) -> ServerConf:
    """Return the settings of a server that speaks what the leg says, and nothing else."""
    changes: dict[str, Any] = {}
    if leg.tls:
        changes["tls"] = TlsSettings(certificate(SITE))
    if leg == H2C:
        changes["h2c"] = True
    return attrs.evolve(conf, **changes)


@asynccontextmanager
async def open_matrix(
    proxy: Proxy,
    origins: Outcome | Origins,
    pairing: Pairing,
    *,
    conf: ServerConf | None = None,
    link: Link = PLAIN,
    upstream_link: Link = PLAIN,
    alpn: Sequence[str] = (),
    check_windows: bool = True,
) -> AsyncIterator[Matrix]:
    """Run a proxy object between clients and origins of a pairing's kinds.

    Args:
      proxy: The proxy object; the peers of a `Recorder` are made to fit.
      origins: What becomes of connections, by the peer's name; or of those to `ORIGIN`.
      pairing: What is spoken.
      conf: Timeouts and limits.
      link: The links of clients.
      upstream_link: The links to origins.
      alpn: What origins with TLS take; nothing stands for what the pairing says.
      check_windows: Whether every byte must have come back as credit at the end.
    """
    if not isinstance(origins, Mapping):
        origins = {str(ORIGIN.host): origins}
    conf = _conf(ServerConf() if conf is None else conf, pairing.down)
    network = Network()
    acceptor = MemoryAcceptor(network)
    with trio.fail_after(7200):
        async with trio.open_nursery() as nursery:
            upstream = _Network(
                network,
                nursery,
                pairing.up,
                origins,
                upstream_link,
                tuple(alpn or pairing.up.alpn),
            )
            if isinstance(proxy, Recorder):
                proxy.peers = tuple([peer_for(upstream, each) for each in proxy.peers])
            async with trio.open_nursery() as serving:
                running = await serving.start(
                    functools.partial(trioproxy.serve, proxy, acceptor, conf=conf)
                )
                records: list[ExchangeRecord] = []
                service = running._server.service
                assert isinstance(service, HttpService)
                service.services.on_record = records.append
                gateway = Matrix(
                    pairing, nursery, running, acceptor, network, upstream, link, records
                )
                yield gateway
                await _leave(gateway, check_windows=check_windows)
            nursery.cancel_scope.cancel()


async def _leave(gateway: Matrix, *, check_windows: bool) -> None:
    await trio.testing.wait_all_tasks_blocked()
    if check_windows:
        for peer in [client.peer for client in gateway.clients] + gateway.upstream.peers:
            if peer is not None and not peer.ended.is_set():
                # The library saves on small updates: it gives back half a window at a time.
                peer.assert_windows_whole(peer.wire.accounts.out.connection.peak // 2)
    for client in gateway.clients:
        client.close()
    for wire in gateway.wires:
        wire.close()
    service = gateway.running._server.service
    assert isinstance(service, HttpService)
    await gateway.ended()
    assert service.pool.statistics().leased == 0
    assert service.services.sessions == 0
    service.pool.close_idle()
    await trio.testing.wait_all_tasks_blocked()
    if not all(end.closed for end in gateway.network.ends):
        await trio.sleep(2)  # a last GOAWAY waits for a second until it was read
    # Every connection has ended by itself, none had to be cancelled.
    assert all(end.closed for end in gateway.network.ends)
    await gateway.running.drain()
