"""The reference clients: what each of them asks is in the scenario."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from .._errors import ProxyError
from ._h2_reference import Fields, H2Peer, Stream
from ._network import PLAIN, Link
from ._observed import PATIENCE, Asked
from ._reference import BLOCK, CutError, MalformedError, Message, Wire, blocks
from ._scenario import Client, Http2
from ._secure import AnyEnd, SecureEnd, client_context, truncate
from ._stage import Stage

Whole = Callable[[H2Peer], Awaitable[None]]


class Clients:
    """Every client."""

    def __init__(self, stage: Stage, whole: Whole) -> None:
        """Make the clients.

        Args:
          stage: What they share with the rest.
          whole: Checks the windows of a connection that carries nothing.
        """
        self.stage = stage
        self._whole = whole

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
            plain = self.stage.acceptor.connect(link)
        except ConnectionRefusedError:
            return False
        end: AnyEnd = plain
        self.stage.clients.append(end)
        try:
            if self.stage.scenario.secure:
                alpn = "http/1.1" if client.http2 is None else "h2"
                secure = SecureEnd(plain, client_context((alpn,)), "site.test")
                await secure.handshake()
                self.stage.clients[-1] = end = secure
            if client.http2 is None:
                wire = Wire(end)
                await (self._pipeline if client.pipelined else self._in_turn)(wire, client, asked)
                await self._end(wire, client, asked)
            else:
                await self._streams(end, client, client.http2, asked)
        except (ProxyError, trio.ClosedResourceError):
            asked[0].outcome = asked[0].outcome or "ended"  # no handshake: the next may be luckier
        except MalformedError as exc:
            self.stage.problem(f"2: client {index} cannot read what the proxy sent: {exc}")
        finally:
            if client.end == "reset":
                end.reset()
            elif client.end == "truncate":
                truncate(end)
            end.close_now()
        for each in asked:
            if each.begun:
                each.outcome = each.outcome or "ended"
        return True

    # -- HTTP/1 ----------------------------------------------------------------------------------

    async def _end(self, wire: Wire, client: Client, asked: list[Asked]) -> None:
        if client.end == "hush" and isinstance(wire.end, SecureEnd):
            await wire.end.hush()
            return
        if client.end != "half-close" or wire.end.closed or client.fin:
            return
        await wire.end.send_eof()
        if asked[-1].outcome != "complete" or asked[-1].request.upgrade:
            return
        with trio.move_on_after(PATIENCE):
            try:
                if not await wire.idle_end():
                    self.stage.problem(
                        f"2: bytes behind the last response: {bytes(wire.buffer[:60])!r}"
                    )
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
            b"GET /r%03d HTTP/1.1\r\nHost: site.test\r\nConnection: upgrade\r\nUpgrade: %s\r\n"
        ) % (asked.number, asked.request.protocol.encode())
        if asked.request.protocol == "websocket":
            head += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        head += b"\r\n"
        asked.begun = True
        if asked.request.chunked:  # it does not wait to be let through
            asked.whole = await wire.send(head + body)
            return
        asked.whole = await wire.send(head)
        await invited.wait()
        if asked.final is None and await wire.send(body):
            client = self.stage.scenario.clients[asked.client]
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

    # -- HTTP/2 ----------------------------------------------------------------------------------

    async def _streams(self, end: AnyEnd, client: Client, plan: Http2, asked: list[Asked]) -> None:
        """Play an HTTP/2 connection."""
        peer = H2Peer(end, plan, client=True, found=self.stage.problem)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            if client.pipelined:
                async with trio.open_nursery() as asking:
                    for each in asked:
                        asking.start_soon(self._turn, peer, client, each)
            else:
                for each in asked:
                    await self._turn(peer, client, each)
            if client.leaves is None:
                await self._whole(peer)
            if client.end == "half-close" and not peer.dead:
                await peer.close()
                with suppress(trio.ClosedResourceError):
                    await end.send_eof()
                with trio.move_on_after(PATIENCE):
                    while not peer.dead:
                        await peer.lot.park()
            elif client.end == "close" and not peer.dead:
                peer.goaway()
                await peer.close()
            elif client.end == "hush":
                await peer.hush()
            nursery.cancel_scope.cancel()

    async def _turn(self, peer: H2Peer, client: Client, asked: Asked) -> None:
        """Ask for one thing, if there is a place for it."""
        await trio.sleep(asked.request.wait)
        most = self.stage.scenario.most_streams
        with trio.move_on_after(PATIENCE):
            while not (peer.dead or peer.plan.greedy) and (
                (not peer.settled and peer.streams)
                or peer.open_streams >= min(most, peer.most_streams)
            ):
                await peer.lot.park()
        if peer.dead or peer.goaway_there is not None:
            return
        request = asked.request
        if request.upgrade:
            await self._connect(peer, client, asked)
            return
        secure = isinstance(peer.end, SecureEnd)
        fields: Fields = [
            (b":method", request.method.encode()),
            (b":scheme", b"https" if secure else b"http"),
            (b":authority", b"site.test"),
            (b":path", b"/r%03d" % asked.number),
        ]
        body = blocks(b"q", asked.number, 0, request.blocks)
        if request.urgency is not None:
            fields.append((b"priority", b"u=%d, i" % request.urgency))
        if request.wrong == "name":
            fields.append((b"X-Upper", b"1"))
        elif request.wrong == "field":
            fields.append((b"connection", b"keep-alive"))
        elif request.wrong == "path":
            fields[3] = (b":path", b"r%03d" % asked.number)
        if request.wrong == "length":
            fields.append((b"content-length", b"%d" % (len(body) + 1)))
        elif request.blocks and not request.chunked:
            fields.append((b"content-length", b"%d" % len(body)))
        if request.expect and body:
            fields.append((b"expect", b"100-continue"))
        asked.begun = True
        stream = asked.stream = peer.open(fields, end=not body)
        asked.whole = not body
        async with trio.open_nursery() as nursery:
            if body:
                nursery.start_soon(self._upload, peer, stream, asked, body)
            if request.reset is not None:
                nursery.start_soon(self._reset, peer, stream, asked)
            await self._hear(peer, stream, asked)
            await self._let_go(peer, stream, asked)
            nursery.cancel_scope.cancel()

    async def _connect(self, peer: H2Peer, client: Client, asked: Asked) -> None:
        """Ask for a tunnel by an extended CONNECT (RFC 8441)."""
        with trio.move_on_after(PATIENCE):
            while not (peer.settled or peer.dead):
                await peer.lot.park()
        if peer.dead or not peer.takes_connect:
            return
        secure = isinstance(peer.end, SecureEnd)
        fields: Fields = [
            (b":method", b"CONNECT"),
            (b":protocol", b"websocket"),
            (b":scheme", b"https" if secure else b"http"),
            (b":authority", b"site.test"),
            (b":path", b"/r%03d" % asked.number),
            (b"sec-websocket-version", b"13"),
        ]
        asked.begun = asked.whole = True
        stream = asked.stream = peer.open(fields, end=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._near_half, peer, stream, client, asked)
            if asked.request.reset is not None:
                nursery.start_soon(self._reset, peer, stream, asked)
            await self._hear(peer, stream, asked)
            nursery.cancel_scope.cancel()
        if asked.final is not None and asked.final.status == 200:
            asked.final.until_close = True
        peer.reset_stream(stream, 8)

    async def _near_half(self, peer: H2Peer, stream: Stream, client: Client, asked: Asked) -> None:
        """Send what goes through a tunnel."""
        while not asked.request.chunked and stream.head is None:
            await stream.lot.park()
        if stream.head is None or stream.head.status == 200:
            body = blocks(b"q", asked.number, 0, asked.request.blocks)
            await peer.data(stream, body, end=client.end == "half-close")

    async def _upload(self, peer: H2Peer, stream: Stream, asked: Asked, body: bytes) -> None:
        request = asked.request
        if request.expect:
            with trio.move_on_after(1):
                while 100 not in stream.interim and stream.head is None and not stream.broken:
                    await stream.lot.park()
        if request.stops is not None and request.stops < len(body):
            await peer.data(stream, body[: request.stops], end=False)
            return
        asked.whole = await peer.data(stream, body, end=not request.trailer)
        if request.trailer and asked.whole:
            peer.head(stream, [(b"x-sum", b"1")], end=True)

    async def _reset(self, peer: H2Peer, stream: Stream, asked: Asked) -> None:
        reset = asked.request.reset
        assert reset is not None
        while stream.frames < reset.frames:
            await stream.lot.park()
        await trio.sleep(reset.wait)
        peer.reset_stream(stream, reset.code)

    async def _hear(self, peer: H2Peer, stream: Stream, asked: Asked) -> None:
        """Wait for the response's end, or for whatever comes in its place."""
        with trio.move_on_after(PATIENCE) as scope:
            while not (stream.complete or stream.broken or peer.dead):
                await stream.lot.park()
        asked.interim = stream.interim
        asked.final = stream.head
        if scope.cancelled_caught:
            asked.outcome = "hang"
        elif stream.reset_here is not None:
            asked.outcome = "left"
        elif stream.complete:
            asked.outcome = "complete"
        else:
            asked.outcome = "ended" if stream.head is None else "cut"
            asked.reset = True

    async def _let_go(self, peer: H2Peer, stream: Stream, asked: Asked) -> None:
        """Bring the stream to its end: what is still to be sent is taken, or it is reset."""
        if asked.request.stops is None:
            with trio.move_on_after(PATIENCE) as scope:
                while not stream.over and not peer.dead:
                    await stream.lot.park()
            if scope.cancelled_caught and asked.outcome == "complete":
                self.stage.problem(f"2: nobody takes the rest of request {asked.number}")
        peer.reset_stream(stream, 8)
