"""An origin for the examples of the cache: it counts, and says of its answers what it is asked to.

    python examples/_cache_origin.py [HOST:PORT]    (127.0.0.1:9000 where none is given)

``/page?max-age=60`` is answered with that Cache-Control and with the number of answers so far, and
a name that ends in ``.png`` with 100,000 bytes. ``POST /break`` makes the origin hang up on whatever
comes next, and ``POST /mend`` ends that.
"""

from __future__ import annotations

import sys
from http import HTTPStatus

import attrs
import h11
import trio

IMAGE = bytes(range(250)) * 400


@attrs.define
class Origin:
    """What the connections of one origin share.

    Attributes:
      asked: Requests that were answered with content.
      broken: Whether it hangs up.
    """

    asked: int = 0
    broken: bool = False

    async def connection(self, stream: trio.SocketStream) -> None:
        """Serve a connection to its end."""
        parser = h11.Connection(h11.SERVER)
        try:
            while await self.exchange(stream, parser):
                pass
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def exchange(self, stream: trio.abc.Stream, connection: h11.Connection) -> bool:
        """Read one request and answer it; return whether another may follow."""
        request: h11.Request | None = None
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.ConnectionClosed):
                return False
        assert request is not None
        if request.method == b"POST":
            self.broken = request.target == b"/break"
        elif self.broken:
            return False
        status, fields, body = self.answer(request)
        if status == 200:
            fields.append(("Content-Length", str(len(body))))
        reason = HTTPStatus(status).phrase.encode()
        head = h11.Response(status_code=status, headers=fields, reason=reason)
        out = connection.send(head) or b""
        if request.method != b"HEAD" and status == 200:
            out += connection.send(h11.Data(body)) or b""
        await stream.send_all(out + (connection.send(h11.EndOfMessage()) or b""))
        if connection.our_state is h11.MUST_CLOSE:
            return False
        connection.start_next_cycle()
        return True

    def answer(self, request: h11.Request) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return status, fields and content."""
        if request.method == b"POST":
            return 200, [("Content-Type", "text/plain")], b"broken\n" if self.broken else b"fine\n"
        sent = dict(request.headers)
        path, _, says = request.target.decode().partition("?")
        tag = '"1"'
        fields = [("ETag", tag), ("Cache-Tag", path.strip("/").partition("/")[0])]
        if says:
            fields.append(("Cache-Control", says))
        if sent.get(b"if-none-match") == tag.encode():
            return 304, fields, b""
        if path.endswith(".png"):
            return 200, [*fields, ("Content-Type", "image/png")], IMAGE
        self.asked += 1
        user = sent.get(b"x-user", b"").decode("latin-1")
        language = sent.get(b"accept-language", b"").decode("latin-1")
        text = f"{path}: answer {self.asked}\nuser: {user}\nlanguage: {language}\n"
        fields += [("Content-Type", "text/plain"), ("Vary", "Accept-Language")]
        return 200, fields, text.encode()


async def serve(
    bind: str = "127.0.0.1:9000", *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the origin; the task status gets its URL."""
    host, _, port = bind.rpartition(":")
    listeners = await trio.open_tcp_listeners(int(port), host=host)
    task_status.started("http://{}:{}".format(*listeners[0].socket.getsockname()[:2]))
    await trio.serve_listeners(Origin().connection, listeners)


async def main(bind: str = "127.0.0.1:9000") -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, bind)
        print(f"listening on {url}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        trio.run(lambda: main(*sys.argv[1:]))
    except* KeyboardInterrupt:
        pass
