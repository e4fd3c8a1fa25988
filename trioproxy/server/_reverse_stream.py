"""The proxy behind ``trioproxy reverse tcp://...``: streams to one or several upstreams."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import attrs

from .._errors import ProxyError
from .._options import PeerOptions
from ..stream._filters import ProxyStream
from ..stream._peer import StreamPeer
from ..stream._session import StreamSession
from ..transport._tls_client import client_context
from ._reverse import Turn


def stream_upstreams(
    peers: Sequence[StreamPeer], *, ca: str | None, insecure: bool
) -> list[StreamPeer]:
    """Return the upstreams with what the command line says of trust.

    Args:
      peers: Peers without options.
      ca: The path of a PEM file.
      insecure: Whether anybody is trusted.

    Raises:
      ValueError: an option is wrong, with its name.
    """
    if ca is None and not insecure:
        return list(peers)
    if ca is not None and insecure:
        raise ValueError(f"--upstream-ca: {ca} is not used with --upstream-insecure: one is right")
    if all(peer.scheme == "tcp" for peer in peers):
        option = "--upstream-insecure" if ca is None else f"--upstream-ca: {ca}"
        raise ValueError(f"{option} is for TLS, and there is none: tls://host:port is right")
    try:
        options = PeerOptions(verify_cert=not insecure, verify_hostname=not insecure, ca=ca)
    except ValueError:
        raise ValueError(f"--upstream-ca: {ca!r} is no file: the path of a PEM file is") from None
    found = [
        attrs.evolve(peer, options=options) if peer.scheme == "tls" else peer for peer in peers
    ]
    if ca is not None:
        try:
            client_context(next(peer.way for peer in found if peer.scheme == "tls"))
        except ProxyError as exc:
            raise ValueError(f"--upstream-ca: {exc.cause}") from exc
    return found


@attrs.define(eq=False)
class StreamReverse(ProxyStream[Turn]):
    """Joins its clients to its peers in turn, and to the following ones where one cannot be reached.

    Attributes:
      peers: The upstreams.
    """

    peers: Sequence[StreamPeer]
    _starts: Iterator[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._starts = itertools.cycle(range(len(self.peers)))

    def new_ctx(self) -> Turn:
        """Start with the next peer."""
        return Turn(next(self._starts), len(self.peers), len(self.peers))

    async def upstream_peer(self, session: StreamSession, ctx: Turn) -> StreamPeer:
        """Return the peer whose turn it is."""
        return self.peers[ctx.index]

    def fail_to_connect(
        self, session: StreamSession, peer: StreamPeer, ctx: Turn, e: ProxyError
    ) -> ProxyError:
        """Go on to the following peer, as long as one is left and this one just was not there."""
        ctx.take_next(e)
        return e
