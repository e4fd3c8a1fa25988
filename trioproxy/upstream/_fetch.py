"""A small request of the proxy's own: one origin, one answer held in memory, within a bound and a time."""

from __future__ import annotations

import attrs
import trio

from .._errors import ErrorType, ProxyError
from .._messages import END, Data, RequestHeader, ResponseEvent, ResponseHeader
from .._peer import HttpPeer
from ..semantics._forwarding import to_upstream
from ..streams._abc import UpstreamStream
from ._pool import Pool


@attrs.frozen
class Fetched:
    """An answer as a whole.

    Attributes:
      head: Its final head.
      body: Its content.
    """

    head: ResponseHeader
    body: bytes


async def fetch(
    pool: Pool,
    peer: HttpPeer,
    request: RequestHeader,
    content: bytes = b"",
    *,
    timeout: float,
    max_bytes: int,
) -> Fetched:
    """Ask a peer over the pool's connections; redirects are answers like others.

    A connection that turns out to be lost before it answered is replaced once, where the request
    has a safe method.

    Args:
      pool: Where connections come from.
      peer: Whom to ask.
      request: The head. Host is the peer's authority where it says nothing else.
      content: The content.
      timeout: Seconds for everything.
      max_bytes: Bytes of content that an answer may have.

    Raises:
      ProxyError: it could not be connected to, broke the protocol, took too long or answered more;
        its source is upstream.
    """
    head = to_upstream(request)
    if b"host" not in head.headers:
        head.headers.set(b"Host", peer.authority)
    head.headers.remove(b"content-length")
    if content:
        head.headers.set(b"Content-Length", str(len(content)))
    fetched = None
    with trio.move_on_after(timeout):
        fetched = await _fetch(pool, peer, head, content, max_bytes)
    if fetched is None:
        raise ProxyError.explain(
            ErrorType.ReadTimedout, f"asking {peer}: no whole answer in {timeout:g} s"
        ).into_up()
    return fetched


async def _fetch(
    pool: Pool, peer: HttpPeer, head: RequestHeader, content: bytes, max_bytes: int
) -> Fetched:
    async with await pool.lease(peer) as stream:
        try:
            return await _exchange(stream, peer, head, content, max_bytes)
        except ProxyError as exc:
            error = exc.into_up()
            lost = stream.reused and error.root_etype() != ErrorType.Custom("TooLarge")
    if not lost or head.method not in ("GET", "HEAD"):
        raise error
    async with await pool.lease(peer, fresh=True) as stream:
        return await _exchange(stream, peer, head, content, max_bytes)


async def _exchange(
    stream: UpstreamStream, peer: HttpPeer, head: RequestHeader, content: bytes, max_bytes: int
) -> Fetched:
    if content:
        await stream.send(head, Data(content, True))
    else:
        await stream.send(head, END)
    answer: ResponseHeader | None = None
    body = bytearray()
    while True:
        for event in await stream.receive_batch():
            if type(event) is ResponseHeader:
                answer = event
            elif type(event) is Data:
                body += event.data
                if len(body) > max_bytes:
                    raise ProxyError.explain(
                        ErrorType.Custom("TooLarge"),
                        f"asking {peer}: more than {max_bytes} bytes of content",
                    ).into_up()
            if _ends(event):
                assert answer is not None
                return Fetched(answer, bytes(body))


def _ends(event: ResponseEvent) -> bool:
    return event is END or (type(event) is Data and event.end)
