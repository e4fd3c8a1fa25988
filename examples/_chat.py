"""A protocol of length-prefixed messages, with an origin and a client that speak it.

An exchange is a request and a response as in HTTP; messages go both ways meanwhile. The origin sends
each message back and ends the response behind ``goodbye``:

    python -m examples._chat origin 127.0.0.1:9000
    python -m examples._chat talk 127.0.0.1:8080 certs/ca.pem MESSAGE ...
"""

from __future__ import annotations

import ssl
import struct
import sys
from collections.abc import Iterable

import attrs
import trio

from trioproxy import Headers, RequestHeader, ResponseHeader
from trioproxy.custom import (
    END,
    Codec,
    CodecEvent,
    Data,
    End,
    Message,
    Protocol,
    ProtocolError,
    Trailers,
)

# -- the protocol: four bytes of length, one that says what it is, and that ------------------------

PREFIX = struct.Struct(">IB")
HEAD, DATA, TRAILERS, END_, MESSAGE = range(5)
MOST = 65536


def _lines(first: str, fields: Iterable[tuple[str, str]]) -> bytes:
    return "\n".join([first, *(f"{name}: {value}" for name, value in fields)]).encode("latin-1")


class LengthPrefixedCodec(Codec):
    """Reads requests or responses, and writes both."""

    def __init__(self, *, requests: bool) -> None:
        self._requests = requests
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[CodecEvent]:
        self._buffer += data
        events = []
        while len(self._buffer) >= PREFIX.size:
            length, kind = PREFIX.unpack_from(self._buffer)
            if length > MOST:
                raise ProtocolError(f"{length} bytes are more than {MOST}")
            if len(self._buffer) < PREFIX.size + length:
                break
            payload = bytes(self._buffer[PREFIX.size : PREFIX.size + length])
            del self._buffer[: PREFIX.size + length]
            events.append(self._event(kind, payload))
        return events

    def _event(self, kind: int, payload: bytes) -> CodecEvent:
        if kind == MESSAGE:
            return Message(payload)
        if kind == DATA:
            return Data(payload)
        if kind == END_:
            return END
        first, *lines = payload.decode("latin-1").split("\n")
        try:
            fields = [(name, value) for name, _, value in (x.partition(": ") for x in lines)]
            if kind == TRAILERS:
                return Trailers(Headers(fields))
            if kind == HEAD and self._requests:
                method, target = first.split(" ")
                return RequestHeader(method, target, fields, version="lp/1", scheme="https")
            if kind == HEAD:
                return ResponseHeader(int(first), fields, version="lp/1")
        except ValueError as exc:
            raise ProtocolError(str(exc)) from exc
        raise ProtocolError(f"kind {kind}")

    def encode(self, event: CodecEvent) -> bytes:
        if isinstance(event, Message):
            return self._frame(MESSAGE, event.data)
        if isinstance(event, Data):
            pieces = [event.data[at : at + MOST] for at in range(0, len(event.data), MOST)]
            out = b"".join(self._frame(DATA, piece) for piece in pieces)
            return out + self._frame(END_, b"") if event.end else out
        if isinstance(event, End):
            return self._frame(END_, b"")
        if isinstance(event, Trailers):
            return self._frame(TRAILERS, _lines("", event.headers.items()))
        first = (
            f"{event.method} {event.target.decode()}"
            if isinstance(event, RequestHeader)
            else str(event.status)
        )
        return self._frame(HEAD, _lines(first, event.headers.items()))

    def _frame(self, kind: int, payload: bytes) -> bytes:
        if len(payload) > MOST:
            raise ValueError(f"{len(payload)} bytes are more than {MOST}")
        return PREFIX.pack(len(payload), kind) + payload


@attrs.frozen
class LengthPrefixed(Protocol):
    alpn: str = "lp/1"

    def server(self) -> Codec:
        return LengthPrefixedCodec(requests=True)

    def client(self) -> Codec:
        return LengthPrefixedCodec(requests=False)


# -- an origin and a client ------------------------------------------------------------------------


@attrs.define
class Party:
    """One end of a connection, event by event."""

    stream: trio.abc.Stream
    codec: Codec
    waiting: list[CodecEvent] = attrs.field(factory=list)

    async def send(self, *events: CodecEvent) -> None:
        await self.stream.send_all(b"".join(map(self.codec.encode, events)))

    async def receive(self) -> CodecEvent:
        while not self.waiting:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self.waiting += self.codec.feed(bytes(data))
        return self.waiting.pop(0)


async def echo(stream: trio.abc.Stream) -> None:
    """Answer each request at once, send its messages back, and end when it says goodbye."""
    party = Party(stream, LengthPrefixed().server())
    try:
        while True:
            event = await party.receive()
            if isinstance(event, RequestHeader):
                await party.send(ResponseHeader(200))
            elif isinstance(event, Message):
                await party.send(event)
                if event.data == b"goodbye":
                    await party.send(END)
    except (EOFError, trio.BrokenResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def talk(stream: trio.abc.Stream, *messages: bytes) -> list[bytes]:
    """Join a room and say something; return what came back."""
    party = Party(stream, LengthPrefixed().client())
    room = RequestHeader("JOIN", "/rooms/7", [("Host", "localhost")])
    said = [Message(each) for each in (*messages, b"goodbye")]
    await party.send(room, END, *said)
    heard = []
    status = 0
    while (event := await party.receive()) is not END:
        if isinstance(event, ResponseHeader):
            status = event.status
        elif isinstance(event, Message):
            heard.append(event.data)
    return [*heard, b"closed with %d" % status]


async def serve(
    bind: str = "127.0.0.1:9000", *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the origin, in clear text; the task status gets its URL."""
    host, _, port = bind.rpartition(":")
    listeners = await trio.open_tcp_listeners(int(port), host=host)
    task_status.started("http://{}:{}".format(*listeners[0].socket.getsockname()))
    await trio.serve_listeners(echo, listeners)


async def talk_over_tls(address: str, authority: str, *messages: bytes) -> list[bytes]:
    """Do so through a gateway at ``host:port``; ``authority`` is the file of whom to trust."""
    context = ssl.create_default_context(cafile=authority)
    context.set_alpn_protocols([LengthPrefixed().alpn])
    host, _, port = address.rpartition(":")
    stream = await trio.open_ssl_over_tcp_stream(
        host, int(port), ssl_context=context, https_compatible=True
    )
    async with stream:
        return await talk(stream, *messages)


def main(what: str, address: str, *arguments: str) -> None:
    if what == "origin":
        trio.run(serve, address)
        return
    authority, *messages = arguments
    said = [message.encode() for message in messages]
    for message in trio.run(talk_over_tls, address, authority, *said):
        print("<-", message.decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
