"""A protocol of your own through the proxy: a chat of length-prefixed messages over TLS.

nox -s demo -- custom_protocol          with an origin and a client of its own; or by hand:
python examples/_certificates.py /tmp/certificates localhost
python examples/custom_protocol.py /tmp/certificates

the client asks for a room, says hello twice, and leaves:
-> hello, room 7
<- the gateway says: welcome
<- HELLO, ROOM 7
-> goodbye
<- GOODBYE
closed with 200

It needs trustme for the certificates: pip install 'trioproxy[selfsigned]'.
"""

from __future__ import annotations

import ssl
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

import attrs
import trio

import trioproxy
from trioproxy import HttpPeer, Listener, PeerOptions, RequestHeader, ResponseHeader, TlsSettings
from trioproxy.custom import (
    END,
    Codec,
    Data,
    End,
    Event,
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

    def feed(self, data: bytes) -> list[Event]:
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

    def _event(self, kind: int, payload: bytes) -> Event:
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
                return Trailers(trioproxy.Headers(fields))
            if kind == HEAD and self._requests:
                method, target = first.split(" ")
                return RequestHeader(method, target, fields, version="lp/1", scheme="https")
            if kind == HEAD:
                return ResponseHeader(int(first), fields, version="lp/1")
        except ValueError as exc:
            raise ProtocolError(str(exc)) from exc
        raise ProtocolError(f"kind {kind}")

    def encode(self, event: Event) -> bytes:
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


# -- the gateway -----------------------------------------------------------------------------------


@attrs.define
class Chat(trioproxy.ProxyHttp[None]):
    peer: HttpPeer

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: trioproxy.Session, ctx: None) -> HttpPeer:
        return self.peer

    async def custom_forwarding(
        self,
        session: trioproxy.Session,
        ctx: None,
        custom_message_to_upstream: trio.MemorySendChannel[bytes] | None,
        custom_message_to_downstream: trio.MemorySendChannel[bytes],
    ) -> None:
        # A channel may be kept and used at any time; with the last message it can be closed.
        async with custom_message_to_downstream:
            await custom_message_to_downstream.send(b"the gateway says: welcome")

    async def downstream_custom_message_proxy_filter(
        self, session: trioproxy.Session, custom_message: bytes, ctx: None, final_hop: bool
    ) -> bytes | None:
        return None if custom_message.startswith(b"secret") else custom_message

    async def upstream_custom_message_proxy_filter(
        self, session: trioproxy.Session, custom_message: bytes, ctx: None, final_hop: bool
    ) -> bytes | None:
        return custom_message.upper()


# -- a client and an origin, which use the codec alone ---------------------------------------------


@attrs.define
class Party:
    """One end of a connection, event by event."""

    stream: trio.abc.Stream
    codec: Codec
    waiting: list[Event] = attrs.field(factory=list)

    async def send(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(map(self.codec.encode, events)))

    async def receive(self) -> Event:
        while not self.waiting:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self.waiting += self.codec.feed(data)
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
        await stream.aclose()


async def talk(stream: trio.abc.Stream, *messages: bytes) -> list[bytes]:
    """Say something, and return what came back."""
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


async def run(directory: Path, *messages: bytes) -> list[bytes]:
    """Run an origin, the gateway and a client, all over TLS; return what the client heard."""
    authority, certificate = str(directory / "ca.pem"), str(directory / "localhost.pem")
    protocol = LengthPrefixed()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols([protocol.alpn])
    asking = ssl.create_default_context(cafile=authority)
    asking.set_alpn_protocols([protocol.alpn])
    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        options = PeerOptions(custom=protocol, ca=authority)
        gateway = Chat(HttpPeer("127.0.0.1", port, scheme="https", options=options))
        listener = Listener("127.0.0.1:0", tls=TlsSettings(certificate), custom=protocol)
        running = await nursery.start(trioproxy.serve, gateway, listener)
        port = int(running.urls[0].rpartition(":")[2])
        stream = await trio.open_ssl_over_tcp_stream(
            "localhost", port, ssl_context=asking, https_compatible=True
        )
        async with stream:
            heard = await talk(stream, *messages)
        nursery.cancel_scope.cancel()
    return heard


def main(directory: str) -> None:
    for line in trio.run(run, Path(directory), b"hello, room 7", b"secret plans"):
        print("<-", line.decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
