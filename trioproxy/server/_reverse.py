"""The proxy behind ``trioproxy reverse``: a reverse proxy in front of one or several origins."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

import attrs

from .._errors import ErrorSource, ErrorType, ProxyError
from .._headers import Headers
from .._messages import RequestHeader
from .._options import DEFAULT, PeerOptions
from .._peer import HttpPeer
from ..modules._abc import HttpModules
from ..modules._codings import installed
from ..modules._compression import ResponseCompressionBuilder
from ..proxy._cached import CachingProxy
from ..proxy._filters import CLIENT_GONE, FailToProxy, ProxyHttp
from ..proxy._session import Session
from ..transport._tls_client import client_context

log = logging.getLogger("trioproxy")

#: How often a request may pass through, for there may be several proxies of this name.
MAX_ROUNDS = 8

#: Requests at once on one HTTP/2 connection to an origin.
MAX_STREAMS = 100

# A peer that is not who it should be is told of, and not passed over (row F-03).
NOT_TRUSTED = frozenset({ErrorType.InvalidCert, ErrorType.TLSHandshakeFailure})
_TIMEOUTS = frozenset(
    {
        ErrorType.ConnectTimedout,
        ErrorType.TLSHandshakeTimedout,
        ErrorType.ReadTimedout,
        ErrorType.WriteTimedout,
    }
)
# What a client is told: which hop failed, never what is behind it.
_BODIES = {
    502: b"502 Bad Gateway: the proxy got no valid answer from the server behind it\n",
    503: b"503 Service Unavailable: the proxy has no capacity left, try again later\n",
    504: b"504 Gateway Timeout: the server behind the proxy did not answer in time\n",
    508: b"508 Loop Detected: the request came back to the proxy again and again\n",
    500: b"500 Internal Server Error: the proxy failed\n",
}


# For --upstream-http: the versions with TLS, and without.
_VERSIONS = {"1": ((1, 1), (1, 1)), "2": ((2, 2), (2, 2)), "auto": ((2, 1), (1, 1))}


def upstreams(
    origins: Sequence[HttpPeer], *, http: str, ca: str | None, insecure: bool
) -> list[HttpPeer]:
    """Return the origins with what the command line says of versions and trust.

    Args:
      origins: Peers without options.
      http: ``"1"``, ``"2"`` or ``"auto"``.
      ca: The path of a PEM file.
      insecure: Whether anybody is trusted.

    Raises:
      ValueError: an option is wrong, with its name.
    """
    if ca is not None and insecure:
        raise ValueError(f"--upstream-ca: {ca} is not used with --upstream-insecure: one is right")
    if (ca is not None or insecure) and all(peer.scheme == "http" for peer in origins):
        option = "--upstream-insecure" if ca is None else f"--upstream-ca: {ca}"
        raise ValueError(f"{option} is for https origins, and there is none: https://host is right")
    with_tls, without = _VERSIONS[http]
    plain = DEFAULT
    if without != (1, 1):
        plain = PeerOptions(http_version=without, max_h2_streams=MAX_STREAMS)
    try:
        secure = PeerOptions(
            http_version=with_tls,
            max_h2_streams=MAX_STREAMS,
            verify_cert=not insecure,
            verify_hostname=not insecure,
            ca=ca,
        )
    except ValueError:
        raise ValueError(f"--upstream-ca: {ca!r} is no file: the path of a PEM file is") from None
    peers = [
        attrs.evolve(peer, options=plain if peer.scheme == "http" else secure) for peer in origins
    ]
    if ca is not None:
        try:
            client_context(next(peer for peer in peers if peer.scheme == "https"))
        except ProxyError as exc:
            raise ValueError(f"--upstream-ca: {exc.cause}") from exc
    return peers


# For --compress: what a core compresses at 40 MB/s and more, each about as well as the others.
_LEVELS = {"zstd": 3, "br": 5, "gzip": 6, "deflate": 6}


def compression() -> ResponseCompressionBuilder:
    """Return what ``--compress`` does, with the codings that are installed."""
    levels = {coding: _LEVELS[coding] for coding in installed()}
    return ResponseCompressionBuilder(algorithm_levels=levels)


@attrs.define(eq=False)
class Turn:
    """Which of the peers a request is tried at.

    Attributes:
      index: The next one.
      left: How many have not been tried.
      of: How many there are.
    """

    index: int
    left: int
    of: int

    def take_next(self, failure: ProxyError) -> None:
        """Go on to the following peer, and mark a failure to connect for that, if it may be."""
        self.index = (self.index + 1) % self.of
        self.left -= 1
        failure.set_retry(self.left > 0 and failure.etype not in NOT_TRUSTED)


@attrs.define(eq=False)
class Reverse(ProxyHttp[Turn]):
    """Forwards to its peers in turn, and to the following ones where one cannot be reached.

    Attributes:
      peers: The origins.
      rewrite_host: Send the peer's own host as Host.
      pseudonym: How Via names this proxy.
      compression: How responses are compressed; None leaves them alone.
    """

    peers: Sequence[HttpPeer]
    rewrite_host: bool = False
    pseudonym: str = "trioproxy"
    compression: ResponseCompressionBuilder | None = None
    _starts: Iterator[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._starts = itertools.cycle(range(len(self.peers)))

    def init_downstream_modules(self, modules: HttpModules) -> None:
        """Add the compression, and tell where it could be better."""
        if self.compression is None:
            super().init_downstream_modules(modules)
            return
        modules.add_module(self.compression)
        missing = [coding for coding in _LEVELS if coding not in self.compression.algorithm_levels]
        if missing:
            log.info(
                "responses are not compressed in %s: "
                'python -m pip install "trioproxy[compress]" does that',
                " and ".join(missing),
            )

    def new_ctx(self) -> Turn:
        """Start with the next peer."""
        return Turn(next(self._starts), len(self.peers), len(self.peers))

    async def upstream_peer(self, session: Session, ctx: Turn) -> HttpPeer:
        """Return the peer whose turn it is, or the target that a CONNECT names.

        A request that goes in a circle gets 508 (row F-16).
        """
        via = session.req_header().headers
        if b"via" in via and self._rounds(via) >= MAX_ROUNDS:
            raise ProxyError.status(508, "the request came back to this proxy again and again")
        if session.is_connect_req():
            ctx.left = 1  # there is one way to what it names
            return session.connect_peer()
        return self.peers[ctx.index]

    def _rounds(self, headers: Headers) -> int:
        """Return how often a request has been here, by Via."""
        received = [part.split() for value in headers.get_all(b"via") for part in value.split(",")]
        return sum(len(part) > 1 and part[1] == self.pseudonym for part in received)

    def fail_to_connect(
        self, session: Session, peer: HttpPeer, ctx: Turn, e: ProxyError
    ) -> ProxyError:
        """Go on to the following peer, as long as one is left and this one just was not there."""
        ctx.take_next(e)
        return e

    async def upstream_request_filter(
        self, session: Session, upstream_request: RequestHeader, ctx: Turn
    ) -> None:
        """Set the forwarding fields, append Via, rewrite Host where asked to.

        What the client sent of X-Forwarded fields is dropped, but for that of a trusted proxy.
        """
        if session.is_connect_req():
            return  # nobody is sent this head
        session.set_forwarding_fields(upstream_request, via=self.pseudonym)
        if self.rewrite_host:
            upstream_request.headers.set(b"Host", self.peers[ctx.index].authority)

    async def fail_to_proxy(self, session: Session, e: ProxyError, ctx: Turn) -> FailToProxy:
        """Answer 504 for an origin's timeout, 502 for its other errors, with a short text."""
        outcome = failure_status(e)
        if outcome:
            # A status that a filter has chosen speaks for itself.
            chosen = e.etype.name == "HTTPStatus" and outcome not in (503, 508)
            body = None if chosen else _BODIES.get(outcome)
            if body is None:
                await session.respond_error(outcome)
            else:
                await session.respond_error_with_body(outcome, body)
        return FailToProxy(outcome)


@attrs.define(eq=False)
class CachingReverse(Reverse, CachingProxy[Turn]):
    """The same with a cache in front (``reverse --cache``), which stores what was compressed."""

    def request_cache_filter(self, session: Session, ctx: Turn) -> None:
        """Have what is going to be stored compressed before, once for all clients."""
        super().request_cache_filter(session, ctx)
        if self.compression is not None and session.cache.enabled():
            for coding, level in self.compression.algorithm_levels.items():
                session.upstream_compression.adjust_algorithm_level(coding, level)


def failure_status(error: ProxyError) -> int:
    """Return the status that ``reverse`` answers an error with, 0 where the client is gone."""
    if error.etype.name == "HTTPStatus" and error.etype.code is not None:
        return error.etype.code
    if error.esource is ErrorSource.UPSTREAM:
        return 504 if error.root_etype() in _TIMEOUTS or error.etype in _TIMEOUTS else 502
    if error.esource is ErrorSource.DOWNSTREAM:
        return 0 if error.etype in CLIENT_GONE else 400
    return 500
