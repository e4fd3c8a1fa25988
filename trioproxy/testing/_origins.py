"""The reference origin: what it does with each request is in the scenario."""

from __future__ import annotations

import base64
import hashlib

import trio
from hyperframe.frame import DataFrame

from .._errors import ProxyError
from ._h2_reference import Fields, H2Peer, Stream
from ._observed import OriginSide, Received
from ._proxy import number_of
from ._reference import BLOCK, CutError, MalformedError, Message, Wire, blocks
from ._scenario import Answer, Http2, Name
from ._secure import AnyEnd, SecureEnd, server_context, truncate
from ._stage import Stage

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
EXTRA = b"HTTP/1.1 200 Extra\r\nX-Answer: 888.0\r\nContent-Length: 5\r\n\r\nextra"


def answer_bytes(received: Received) -> bytes:
    """Return the whole response to a request."""
    answer, method = received.answer, received.head.start.split(b" ")[0]
    body = blocks(b"a", received.number, received.attempt, answer.blocks)
    if answer.status == 101:
        named = b"X-Answer: %d.%d\r\n" % (received.number, received.attempt)
        offer = received.head.get(b"upgrade") or b""
        key = received.head.get(b"sec-websocket-key")
        if key is not None:
            accept = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
            named += b"Sec-WebSocket-Accept: %s\r\n" % base64.b64encode(accept)
        return b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: %s\r\n%s\r\n%s" % (
            offer,
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


async def leave(end: AnyEnd, answer: Answer) -> None:
    """Go as an answer says."""
    if answer.leave == "hush" and isinstance(end, SecureEnd):
        await end.hush()
    if answer.leave == "reset":
        end.reset()
    elif answer.leave == "truncate":
        truncate(end)
    end.close_now()


class Origins:
    """Every connection of the origin."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def serve(self, side: OriginSide, index: int, name: Name) -> None:
        """Serve one connection."""
        speaks = name.speaks
        try:
            if speaks in ("h1-tls", "h2-tls", "stranger"):
                alpn = ("h2", "http/1.1") if speaks == "h2-tls" else ("http/1.1",)
                strange = speaks == "stranger" and self.stage.network.faults
                context = server_context(alpn, strange=strange)
                assert not isinstance(side.end, SecureEnd)
                end = SecureEnd(side.end, context)
                await end.handshake()
                side.end = end
                speaks = "h2c" if end.alpn == "h2" else "h1"
            if speaks == "h2c":
                await self._streams(side, index)
                return
            wire = Wire(side.end)
            while await self._answer(wire, side, index):
                pass
        except (CutError, ProxyError):
            pass
        except MalformedError as exc:
            self.stage.problem(f"5: the origin cannot read what the proxy sent: {exc}")
        finally:
            side.state = "gone"
            side.end.close_now()

    def _received(self, head: Message, side: OriginSide, index: int) -> Received | None:
        """Write a request down; None where nobody sent it."""
        stage = self.stage
        number = number_of(head.start.split(b" ")[1])
        if number not in stage.by_number:
            stage.problem(f"5: the origin got a request that nobody sent: {head.start!r}")
            return None
        attempt = sum(each.number == number for each in stage.observed.received)
        answers = stage.by_number[number].answers or (Answer(),)
        answer = answers[min(attempt, len(answers) - 1)]
        received = Received(number, attempt, index, head, answer)
        received.secure = isinstance(side.end, SecureEnd)
        stage.observed.received.append(received)
        return received

    # -- HTTP/1 ----------------------------------------------------------------------------------

    async def _answer(self, wire: Wire, side: OriginSide, index: int) -> bool:
        side.state = "idle"
        if await wire.idle_end():
            return False
        side.state = "busy"
        head = await wire.head()
        received = self._received(head, side, index)
        if received is None:
            return False
        answer = received.answer
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
            await leave(side.end, answer)
            return False
        if answer.after == "extra" and not answer.after_wait and answer.framing != "close":
            data += EXTRA  # in the same packet
        received.answered = await wire.send(data)
        if answer.status == 101:
            await self._far_end(wire, head, self.stage.by_number[received.number].blocks * BLOCK)
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
            self.stage.observed.crossed = True
        return True

    # -- HTTP/2 ----------------------------------------------------------------------------------

    async def _streams(self, side: OriginSide, index: int) -> None:
        """Serve an HTTP/2 connection, each of its streams in a task of its own."""
        plans = self.stage.scenario.origin_http2
        plan = plans[index] if index < len(plans) and self.stage.network.faults else Http2()
        async with trio.open_nursery() as nursery:

            def begin(stream: Stream) -> None:
                side.state = "busy"
                if not stream.disowned:
                    nursery.start_soon(self._stream, peer, stream, side, index)

            peer = H2Peer(side.end, plan, client=False, found=self.stage.problem, on_stream=begin)
            side.peer = peer
            nursery.start_soon(peer.run)
            while not peer.dead:
                side.state = "busy" if peer.open_streams else "idle"
                if peer.goaway_here is not None and (
                    not peer.open_streams or (plan.goaway is not None and plan.goaway.leaves)
                ):
                    await peer.close()
                    break
                await peer.lot.park()
            side.end.close_now()
            nursery.cancel_scope.cancel()

    async def _stream(self, peer: H2Peer, stream: Stream, side: OriginSide, index: int) -> None:
        received = self._received(stream.started, side, index)
        if received is None:
            return
        received.stream = stream
        # Whatever it does, it does no more once the stream has ended.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_broken, peer, stream, nursery.cancel_scope)
            await self._exchange(peer, stream, received)
            nursery.cancel_scope.cancel()

    async def _until_broken(self, peer: H2Peer, stream: Stream, scope: trio.CancelScope) -> None:
        while not stream.broken and not peer.dead:
            await stream.lot.park()
        scope.cancel()

    async def _exchange(self, peer: H2Peer, stream: Stream, received: Received) -> None:
        answer, head = received.answer, stream.started
        if stream.method == b"CONNECT":
            await self._tunnel(peer, stream, received)
            return
        if not answer.early:
            if head.get(b"expect") and not stream.complete:
                peer.head(stream, [(b":status", b"100")])
            while not stream.complete:
                await stream.lot.park()
        await trio.sleep(answer.wait)
        for status in answer.infos:
            peer.head(stream, [(b":status", b"%d" % status), (b"x-info", b"1")])
        received.answered = await self._respond(peer, stream, received)
        await trio.sleep(answer.after_wait)
        if answer.after == "close":
            peer.goaway()
        elif answer.after == "drop":
            await peer.close()
            peer.end.close_now()
            peer.die()
        elif answer.after == "extra":
            peer.odd()

    async def _tunnel(self, peer: H2Peer, stream: Stream, received: Received) -> None:
        """Answer an extended CONNECT: open a tunnel, or say no."""
        answer = received.answer
        await trio.sleep(answer.wait)
        if answer.cut == 0:
            await self._leave(peer, stream, received)
            return
        status = b"200" if answer.status == 101 else b"404"
        named = b"%d.%d" % (received.number, received.attempt)
        peer.head(stream, [(b":status", status), (b"x-answer", named)])
        body = blocks(b"a", received.number, received.attempt, answer.blocks)
        if answer.cut is not None:
            body = body[: answer.cut - 1]
        await peer.data(stream, body, end=False)
        if answer.cut is not None:
            await self._leave(peer, stream, received)
            return
        most = self.stage.by_number[received.number].blocks * BLOCK
        while status == b"200" and len(stream.started.body) < most and not stream.complete:
            await stream.lot.park()
        received.answered = await peer.data(stream, b"", end=True)

    async def _respond(self, peer: H2Peer, stream: Stream, received: Received) -> bool:
        """Send the response, or what there is of it; True where it went out whole."""
        answer = received.answer
        cut = answer.cut
        if cut == 0:
            await self._leave(peer, stream, received)
            return False
        body = blocks(b"a", received.number, received.attempt, answer.blocks)
        bodiless = stream.method == b"HEAD" or answer.status in (204, 304)
        fields: Fields = [
            (b":status", b"%d" % (200 if answer.status == 101 else answer.status)),
            (b"x-answer", b"%d.%d" % (received.number, received.attempt)),
        ]
        if answer.framing == "length" and answer.status != 204:
            fields.append((b"content-length", b"%d" % len(body)))
        if answer.wrong is not None:
            self._wrong(peer, stream, answer.wrong, fields)
            return False
        if bodiless:
            body = b""
        trailers = answer.trailer and not bodiless
        whole = cut is None
        if cut is not None:
            body, trailers = body[: cut - 1], False
        ends = whole and not trailers
        peer.head(stream, fields, end=ends and not body)
        if not stream.sent_end:
            await peer.data(stream, body, end=ends)
        if whole and trailers:
            peer.head(stream, [(b"x-sum", b"1")], end=True)
        if cut is not None or answer.code is not None:
            await self._leave(peer, stream, received)
        return whole

    async def _leave(self, peer: H2Peer, stream: Stream, received: Received) -> None:
        """Reset the stream, or go with all others."""
        answer = received.answer
        if answer.code is not None:
            received.refused = answer.code in (7, 13) and answer.cut == 0
            peer.reset_stream(stream, answer.code)
            return
        await peer.close()
        if answer.leave == "hush":
            await peer.hush()
        else:
            await leave(peer.end, answer)
        peer.die()

    def _wrong(self, peer: H2Peer, stream: Stream, wrong: str, fields: Fields) -> None:
        """Send a malformed response; the stream is the proxy's to reset."""
        plain = [each for each in fields if each[0] != b"content-length"]
        if wrong == "status":
            peer.head(stream, [(b":status", b"2x0"), *plain[1:]], end=True)
        elif wrong == "name":
            peer.head(stream, [*plain, (b"X-Upper", b"1")], end=True)
        elif wrong == "field":
            peer.head(stream, [*plain, (b"connection", b"close")], end=True)
        elif wrong == "length":
            peer.head(stream, [*plain, (b"content-length", b"7")])
            peer.send(DataFrame(stream.number, data=b"8 bytes.", flags=["END_STREAM"]))
            stream.sent_end = True
        elif wrong == "interim":
            peer.head(stream, [(b":status", b"103")], end=True)
        else:
            peer.head(stream, plain)
            peer.head(stream, [(b"x-sum", b"1")])
