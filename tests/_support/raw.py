"""Raw bytes through the real server in memory: what came back, what the origin got, which callbacks ran.

The client sends its bytes in the given pieces, letting the server come to rest after each, and reads
until the connection ends. Time is virtual (ask for the ``autojump_clock`` fixture), so that an idle
timeout costs nothing. Client and origin read with the small strict parser of this file, which
shares nothing with the codecs.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import attrs
import trio
import trio.testing

from trioproxy import (
    BodyChunk,
    Digest,
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
from trioproxy._info import ConnectionInfo
from trioproxy.codec._h1 import HeadLimits, ResponseReader
from trioproxy.codec._h1_codec import http1_codec
from trioproxy.server._http import HttpService
from trioproxy.server._serve import _Server
from trioproxy.streams._abc import UpstreamConnection
from trioproxy.streams._h1_client import H1ClientConnection
from trioproxy.transport._byte_stream import StreamAdapter
from trioproxy.upstream._connector import Connector
from trioproxy.upstream._pool import Pool

#: The ways in which every row's input is cut into pieces.
CUTS = ("whole", "bytes", "line ends")
#: Virtual seconds within which a refused connection has ended, lingering close included.
SOON = 3.0


def cut(data: bytes, how: str) -> list[bytes]:
    """Return the pieces of some bytes, cut in one of the ways of `CUTS`, or by sevens."""
    if how == "whole":
        return [data]
    if how == "bytes":
        return [data[i : i + 1] for i in range(len(data))]
    if how == "sevens":
        return [data[i : i + 7] for i in range(0, len(data), 7)]
    assert how == "line ends"
    return [piece for piece in data.replace(b"\r", b"\r\0\0\0").split(b"\0\0\0") if piece]


# -- an independent reading of HTTP/1 --------------------------------------------------------------


@attrs.frozen
class Message:
    """A message as the test's own parser reads it."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    trailers: list[tuple[bytes, bytes]]
    complete: bool

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def one(self, name: bytes) -> bytes:
        (value,) = self.all(name)
        return value


class Cut(Exception):
    """The bytes end in the middle of a message."""


class Cursor:
    """Reads bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise Cut
        line = self.data[self.at : end + 1]
        assert line.endswith(b"\r\n"), line
        assert b"\r" not in line[:-2], line
        self.at = end + 1
        return line[:-2]

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise Cut
        data = self.data[self.at : self.at + count]
        self.at += count
        return data

    def fields(self) -> list[tuple[bytes, bytes]]:
        fields = []
        while line := self.line():
            name, colon, value = line.partition(b": ")
            assert colon, line
            fields.append((name, value))
        return fields


def read_message(cursor: Cursor, *, to_head: bool = False) -> Message:
    """Read one message; raise `Cut` where not even its head is whole."""
    start = cursor.line()
    fields = cursor.fields()
    values = {name.lower(): value for name, value in fields}
    body = bytearray()
    trailers: list[tuple[bytes, bytes]] = []
    response = start.startswith(b"HTTP/")
    status = int(start.split(b" ")[1]) if response else 0
    try:
        if response and (to_head or status < 200 or status in (204, 304)):
            pass
        elif values.get(b"transfer-encoding") == b"chunked":
            assert b"content-length" not in values
            while size := int(cursor.line(), 16):
                body += cursor.take(size)
                assert cursor.take(2) == b"\r\n"
            trailers = cursor.fields()
        elif b"content-length" in values:
            length = int(values[b"content-length"])
            body += cursor.data[cursor.at : cursor.at + length]
            cursor.take(length)
        elif response:
            body += cursor.take(len(cursor.data) - cursor.at)
    except Cut:
        cursor.at = len(cursor.data)
        return Message(start, fields, bytes(body), trailers, False)
    return Message(start, fields, bytes(body), trailers, True)


def read_messages(data: bytes, *, to_heads: Iterator[bool] | None = None) -> list[Message]:
    """Read all messages that some bytes hold; the last one may be incomplete."""
    cursor = Cursor(data)
    messages = []
    while cursor.at < len(data):
        to_head = next(to_heads, False) if to_heads is not None else False
        messages.append(read_message(cursor, to_head=to_head))
    return messages


# -- the origin ------------------------------------------------------------------------------------


class Origin:
    """One connection as a scripted origin sees it."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.received = bytearray()
        self._read = 0
        self.eof = False

    async def receive(self) -> bytes:
        """Wait for more bytes; ``b""`` when the proxy has closed."""
        try:
            data = bytes(await self.stream.receive_some(65536))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        self.received += data
        self.eof = not data
        return data

    async def head(self) -> bytes | None:
        """Wait for the next request's head."""
        while (end := self.received.find(b"\r\n\r\n", self._read)) < 0:
            if not await self.receive():
                return None
        head = bytes(self.received[self._read : end + 4])
        self._read = end + 4
        return head

    async def request(self) -> Message | None:
        """Wait for the next whole request; None where the connection ends before."""
        while True:
            cursor = Cursor(bytes(self.received[self._read :]))
            try:
                message = read_message(cursor)
            except Cut:
                pass
            else:
                if message.complete:
                    self._read += cursor.at
                    return message
            if not await self.receive():
                return None

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def to_end(self) -> None:
        """Read until the proxy closes."""
        while await self.receive():
            pass


Script = Callable[[Origin], Awaitable[None]]


def answering(*responses: bytes) -> Script:
    """Return an origin that answers each request, once it is whole, with the next of these."""

    async def script(origin: Origin) -> None:
        for response in responses:
            if await origin.request() is None:
                return
            await origin.send(response)
        await origin.to_end()

    return script


async def hello(origin: Origin) -> None:
    """Answer every request with its number on this connection."""
    count = 0
    while await origin.request() is not None:
        count += 1
        body = b"hello %d" % count
        await origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


# -- the proxy -------------------------------------------------------------------------------------


@attrs.define
class Recorder(ProxyHttp[None]):
    """Writes down each callback, and what the body filters and the error path saw."""

    calls: list[str] = attrs.field(factory=list)
    body_in: list[bytes | None] = attrs.field(factory=list)
    ends_in: list[bool] = attrs.field(factory=list)
    errors: list[ProxyError | None] = attrs.field(factory=list)
    targets: list[bytes] = attrs.field(factory=list)

    def new_ctx(self) -> None:
        self.calls.append("new_ctx")

    async def early_request_filter(self, session: Session, ctx: None) -> None:
        self.calls.append("early_request_filter")

    async def request_filter(self, session: Session, ctx: None) -> bool:
        self.calls.append("request_filter")
        self.targets.append(session.req_header().target)
        return False

    async def proxy_upstream_filter(self, session: Session, ctx: None) -> bool:
        self.calls.append("proxy_upstream_filter")
        return True

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        self.calls.append("upstream_peer")
        return HttpPeer("origin.test", 80)

    async def connected_to_upstream(
        self,
        session: Session,
        reused: bool,
        peer: HttpPeer,
        fd: int,
        digest: Digest | None,
        ctx: None,
    ) -> None:
        self.calls.append("connected_to_upstream")

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: None, e: ProxyError
    ) -> ProxyError:
        self.calls.append("fail_to_connect")
        return e

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: None
    ) -> None:
        self.calls.append("upstream_request_filter")

    async def request_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> None:
        self.calls.append("request_body_filter")
        self.body_in.append(body.data)
        self.ends_in.append(end_of_stream)

    async def upstream_response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        self.calls.append("upstream_response_filter")

    async def response_filter(
        self, session: Session, upstream_response: ResponseHeader, ctx: None
    ) -> None:
        self.calls.append("response_filter")

    def response_body_filter(
        self, session: Session, body: BodyChunk, end_of_stream: bool, ctx: None
    ) -> float | None:
        self.calls.append("response_body_filter")
        return None

    async def response_trailer_filter(
        self, session: Session, upstream_trailers: Headers, ctx: None
    ) -> bytes | None:
        self.calls.append("response_trailer_filter")
        return None

    def error_while_proxy(
        self, peer: HttpPeer, session: Session, e: ProxyError, ctx: None, client_reused: bool
    ) -> ProxyError:
        self.calls.append("error_while_proxy")
        return super().error_while_proxy(peer, session, e, ctx, client_reused)

    async def fail_to_proxy(self, session: Session, e: ProxyError, ctx: None) -> FailToProxy:
        self.calls.append("fail_to_proxy")
        return await super().fail_to_proxy(session, e, ctx)

    async def logging(self, session: Session, e: ProxyError | None, ctx: None) -> None:
        self.calls.append("logging")
        self.errors.append(e)


class MemoryConnector(Connector):
    """Connects to a script instead of a socket."""

    def __init__(self, conf: ServerConf, nursery: trio.Nursery, script: Script) -> None:
        self._conf = conf
        self._nursery = nursery
        self._script = script
        self.origins: list[Origin] = []

    async def connect(self, peer: HttpPeer) -> UpstreamConnection:
        await trio.lowlevel.checkpoint()
        ours, theirs = trio.testing.memory_stream_pair()
        origin = Origin(theirs)
        self.origins.append(origin)
        self._nursery.start_soon(self._play, origin)
        limits = HeadLimits(
            max_bytes=self._conf.max_response_header_bytes,
            max_fields=self._conf.max_response_header_fields,
        )
        reader = ResponseReader(limits, http1_codec(self._conf.http1_codec))
        return H1ClientConnection(StreamAdapter(ours), ConnectionInfo(None, peer.name), reader)

    async def _play(self, origin: Origin) -> None:
        try:
            await self._script(origin)
        except trio.BrokenResourceError:
            return  # the proxy went away while the origin was sending
        finally:
            with trio.CancelScope(shield=True):
                await origin.stream.aclose()


# -- an exchange -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of some bytes that a client sent.

    Attributes:
      response: Everything the client received.
      origins: What each connection to the origin received.
      calls: The callbacks that ran, in order.
      proxy: The proxy object.
      seconds: Virtual time until the client saw the end of the connection.
      after_end: Whether the server still took bytes when it had ended its side (H1-31).
      refused: The server's count of requests refused before any callback.
    """

    response: bytes
    origins: list[bytes]
    calls: list[str]
    proxy: Recorder
    seconds: float
    after_end: bool
    refused: int

    @property
    def origin(self) -> bytes:
        """Return what all connections to the origin received."""
        return b"".join(self.origins)

    @property
    def answers(self) -> list[Message]:
        """Return the responses as the test's own parser reads them."""
        return read_messages(self.response)

    @property
    def answer(self) -> Message:
        """Return the only response."""
        (answer,) = self.answers
        return answer

    @property
    def requests(self) -> list[Message]:
        """Return the requests that the origin got, over all its connections."""
        return [message for data in self.origins for message in read_messages(data)]


@attrs.frozen
class Pause:
    """A step of the client: let virtual time pass."""

    seconds: float


class HalfClose:
    """A step of the client: end its side."""


Step = bytes | Pause | HalfClose


async def raw_exchange(
    request: bytes,
    splits: str | Sequence[Step] = "whole",
    *,
    origin: Script = hello,
    proxy: Recorder | None = None,
    conf: ServerConf | None = None,
) -> Outcome:
    """Send bytes to the real server over a memory stream until the connection ends.

    Args:
      request: What the client sends.
      splits: How it is cut, one of `CUTS` or "sevens"; or the steps of the client themselves.
      origin: Plays each connection to the origin.
      proxy: The proxy object.
      conf: Timeouts and limits.
    """
    steps: Sequence[Step] = cut(request, splits) if isinstance(splits, str) else splits
    conf = ServerConf() if conf is None else conf
    proxy = Recorder() if proxy is None else proxy
    received = bytearray()
    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            connector = MemoryConnector(conf, nursery, origin)
            pool = Pool(connector, nursery)
            service = HttpService(proxy, conf, pool)
            server = _Server(service, conf)
            client, accepted = trio.testing.memory_stream_pair()
            start = trio.current_time()
            ended = trio.Event()
            seconds = 0.0
            after_end = False

            async def serve() -> None:
                info = ConnectionInfo("127.0.0.1:80", "127.0.0.1:5000", start)
                front = service.front(None, None)
                await server.connection(server.admit(StreamAdapter(accepted), info, front))
                ended.set()

            async def read() -> None:
                nonlocal seconds, after_end
                while data := await _receive(client):
                    received.extend(data)
                seconds = trio.current_time() - start
                after_end = not ended.is_set()

            nursery.start_soon(serve)
            async with trio.open_nursery() as client_nursery:
                client_nursery.start_soon(read)
                for step in steps:
                    if not await _take(client, step):
                        break
                    await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
            await ended.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    return Outcome(
        response=bytes(received),
        origins=[bytes(each.received) for each in connector.origins],
        calls=list(proxy.calls),
        proxy=proxy,
        seconds=seconds,
        after_end=after_end,
        refused=server.statistics().refused,
    )


async def _receive(stream: trio.abc.ReceiveStream) -> bytes:
    try:
        return bytes(await stream.receive_some(65536))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


async def _take(client: Any, step: Step) -> bool:
    if isinstance(step, Pause):
        await trio.sleep(step.seconds)
    elif isinstance(step, HalfClose):
        await client.send_eof()
    else:
        try:
            await client.send_all(step)
        except trio.BrokenResourceError:
            return False
    return True


def assert_refused(outcome: Outcome, status: int, case: object = None) -> None:
    """Check everything that a refusal of bad syntax owes: status, close, linger, and no effect."""
    assert outcome.calls == [], case
    assert outcome.origins == [], case
    assert outcome.response, case
    answer = outcome.answer
    assert answer.status == status, (case, answer)
    assert answer.one(b"connection") == b"close", (case, answer)
    assert answer.complete, (case, answer)
    assert 0 < len(answer.body) < 200, (case, answer)
    assert outcome.seconds < SOON, (case, outcome.seconds)
    assert outcome.after_end, case
    assert outcome.refused == 1, case


def silence(caplog: Any) -> None:
    """Keep the expected error lines of a test out of its report."""
    caplog.set_level(logging.CRITICAL, "trioproxy")
