"""From a peer to a connection that can carry exchanges."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import attrs
import trio

from .._config import ServerConf, announced_version
from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo, Digest, TlsInfo
from .._options import PeerOptions, Tracer
from .._peer import HttpPeer, Proxy
from .._proxy_header import ProxyHeader
from ..codec._h1 import HeadLimits, ResponseReader
from ..codec._h1_codec import H1Codec, http1_codec
from ..codec._h2 import H2Codec, H2Options
from ..codec._proxy_protocol import encode_proxy_header
from ..streams._abc import UpstreamConnection
from ..streams._custom_client import CustomClientConnection
from ..streams._h1_client import H1ClientConnection
from ..streams._h2_client import H2ClientConnection, H2ClientOptions
from ..streams._raw import RawConnection
from ..transport._byte_stream import ByteStream
from ..transport._connect import connect
from ..transport._greeted import GreetedStream
from ..transport._tls import tls_client
from ..transport._tls_client import ClientContexts
from ..transport._watched import WatchedStream
from ._negotiate import open_tunnel

_log = logging.getLogger("trioproxy")

#: What an origin may send on an HTTP/2 stream, and on all of a connection, before it is taken.
STREAM_WINDOW = 65535
#: What a connection's window is larger than those of all its streams together.
CONNECTION_WINDOW = 1 << 20
MAX_WINDOW = 2**31 - 1  # RFC 9113 section 6.9.1

#: Host-name look-ups at once: an abandoned one keeps its thread until the resolver answers (R-09).
LOOKUPS = 8


class Connector(ABC):
    """Makes connections; a test puts an in-memory one in its place."""

    @abstractmethod
    async def connect(self, peer: HttpPeer) -> UpstreamConnection:
        """Return a new connection to the peer.

        Raises:
          ProxyError: it could not be made, with all causes in its context.
        """


class Opener(ABC):
    """Makes connections that carry bytes, whatever these say."""

    @abstractmethod
    async def open(
        self, peer: HttpPeer, alpn: tuple[str, ...] | None = None
    ) -> tuple[ByteStream, ConnectionInfo]:
        """Return a new connection to the peer, and what is known of it.

        Args:
          peer: The peer.
          alpn: What TLS offers by ALPN, the best first; None for the peer's versions of HTTP.

        Raises:
          ProxyError: it could not be made, with all causes in its context.
        """


@attrs.define(eq=False)
class SocketConnector(Connector, Opener):
    """Connects over TCP and unix sockets, with TLS where the peer has it."""

    conf: ServerConf
    _limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(LOOKUPS))
    _limits: HeadLimits = attrs.field(init=False)
    _codec: H1Codec = attrs.field(init=False)
    _contexts: ClientContexts = attrs.field(init=False, factory=ClientContexts)
    #: The PROXY header that connections begin with where their peer does not say.
    _announces: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._codec = http1_codec(self.conf.http1_codec)
        self._announces = announced_version(self.conf)
        self._limits = HeadLimits(
            max_bytes=self.conf.max_response_header_bytes,
            max_fields=self.conf.max_response_header_fields,
        )

    async def connect(self, peer: HttpPeer) -> UpstreamConnection:
        """Connect within the peer's timeouts, or the server's where the peer has none."""
        if peer.carries_bytes:
            return RawConnection(*await self.open(peer, ()))
        transport, info = await self.open(peer)
        return self._over(transport, info, peer)

    async def open(
        self, peer: HttpPeer, alpn: tuple[str, ...] | None = None
    ) -> tuple[ByteStream, ConnectionInfo]:
        """Connect, with no word said on the connection; see `Opener.open`."""
        total = peer.options.total_connection_timeout
        if total is None:
            transport, info = await self._connect(peer, alpn)
        else:
            made: tuple[ByteStream, ConnectionInfo] | None = None
            with trio.move_on_after(total):
                made = await self._connect(peer, alpn)
            if made is None:
                raise ProxyError.explain(
                    ErrorType.ConnectTimedout, f"connecting to {peer}: no answer in {total:g} s"
                ).into_up()
            transport, info = made
        tracer = peer.options.tracer
        if tracer is not None:
            transport = _traced(transport, tracer, Digest.of(info))
        return transport, info

    def _over(
        self, transport: ByteStream, info: ConnectionInfo, peer: HttpPeer
    ) -> UpstreamConnection:
        """Speak the peer's protocol over a new transport: HTTP in the version agreed on, mostly."""
        if peer.options.custom is not None:
            return CustomClientConnection(transport, info, peer.options.custom.client())
        if speaks_http2(peer, info):
            return self._over_http2(transport, info, peer)
        limits = self._limits
        if peer.options.allow_h1_response_invalid_content_length:
            limits = attrs.evolve(limits, allow_invalid_length=True)
        return H1ClientConnection(transport, info, ResponseReader(limits, self._codec))

    def _over_http2(
        self, transport: ByteStream, info: ConnectionInfo, peer: HttpPeer
    ) -> H2ClientConnection:
        options = peer.options
        stream_window = options.h2_stream_window_size or STREAM_WINDOW
        # Room for a whole window of every stream: clients share this connection, and those that do
        # not read what they asked for must not be able to stop the others.
        window = min(CONNECTION_WINDOW + options.max_h2_streams * stream_window, MAX_WINDOW)
        codec_options = H2Options(
            stream_window=stream_window,
            connection_window=options.h2_connection_window_size or window,
            head_limits=self._limits,
            limits=self.conf.h2_limits,
            scheme=peer.scheme,
        )
        codec = H2Codec(server=False, options=codec_options, now=trio.current_time)
        interval = options.h2_ping_interval
        client_options = H2ClientOptions(
            max_streams=options.max_h2_streams,
            write_timeout=self.conf.write_timeout,
            ping_interval=math.inf if interval is None else interval,
        )
        return H2ClientConnection(transport, info, codec, client_options)

    async def _connect(
        self, peer: HttpPeer, alpn: tuple[str, ...] | None
    ) -> tuple[ByteStream, ConnectionInfo]:
        """Connect to the peer, or to its proxy and through that to the peer."""
        options = peer.options
        timeout = options.connection_timeout
        if timeout is None:
            timeout = self.conf.connect_timeout
        proxy = peer.proxy
        next_hop = peer if proxy is None else proxy
        transport, info = await self._dial(next_hop, options, timeout)
        try:
            if proxy is not None:
                started = trio.current_time()
                reply, received = await open_tunnel(
                    transport,
                    peer,
                    self._limits,
                    self._codec,
                    timeout,
                    # HTTP and TLS wait for our word; of anything else nobody knows.
                    speaks_first=alpn is not None and peer.scheme == "http",
                )
                if received:
                    transport = GreetedStream(transport, received)
                now = trio.current_time()
                info = attrs.evolve(
                    info, established=now, proxy_time=now - started, proxy_reply=reply
                )
            version = self._announces if options.proxy_protocol is None else options.proxy_protocol
            if version:
                await _announce(transport, info, peer, version, timeout)
            if peer.scheme == "https":
                return await self._secure(transport, info, peer, alpn)
        except BaseException:
            transport.close_now()
            raise
        return transport, info

    async def _dial(
        self, next_hop: HttpPeer | Proxy, options: PeerOptions, timeout: float
    ) -> tuple[ByteStream, ConnectionInfo]:
        """Connect to a peer, or to the proxy before it: where a network in memory steps in."""
        return await connect(
            next_hop.host,
            next_hop.port,
            path=next_hop.path,
            connect_timeout=timeout,
            dns_timeout=self.conf.dns_timeout,
            limiter=self._limiter,
            options=None if options.reuse_key is None else options,
        )

    async def _secure(
        self,
        transport: ByteStream,
        info: ConnectionInfo,
        peer: HttpPeer,
        alpn: tuple[str, ...] | None,
    ) -> tuple[ByteStream, ConnectionInfo]:
        """Open TLS over a connection; whoever made that closes it when this raises."""
        options = peer.options
        timeout = options.tls_handshake_timeout
        if timeout is None:
            timeout = self.conf.upstream_tls_timeout
        context = self._contexts.get(peer, alpn)
        try:
            stream = await tls_client(transport, context, peer.server_name, timeout=timeout)
        except ProxyError as exc:
            raise exc.more_context(f"TLS with {peer}").into_up() from exc
        now = trio.current_time()
        info = attrs.evolve(info, established=now, secure=True, tls=stream.tls)
        if peer.http_version == (2, 2) and stream.alpn != "h2":
            raise ProxyError.explain(
                ErrorType.H2Downgrade, f"TLS with {peer}: it agreed to no HTTP/2 by ALPN"
            ).into_up()
        if options.custom is not None and stream.alpn != options.custom.alpn:
            raise ProxyError.explain(
                ErrorType.TLSHandshakeFailure,
                f"TLS with {peer}: it agreed to no {options.custom.alpn} by ALPN",
            ).into_up()
        hook = options.upstream_tls_handshake_complete_hook
        if hook is not None:
            _ask_hook(hook, stream.tls, peer)
        return stream, info


async def _announce(
    transport: ByteStream, info: ConnectionInfo, peer: HttpPeer, version: int, timeout: float
) -> None:
    """Send the PROXY header that a connection begins with, before TLS."""
    if peer.announce is not None:
        header = peer.announce.header
    elif version == 1:  # which has no word for a connection of our own
        header = ProxyHeader(version=1, source=info.local, destination=info.peer)
    else:
        header = ProxyHeader(local=True)
    try:
        encoded = encode_proxy_header(header)
    except ValueError as exc:  # what a proxy before us has told, which just fitted there
        raise ProxyError.explain(
            ErrorType.ConnectError, f"the PROXY header to {peer} cannot be written: {exc}"
        ).into_up() from exc
    try:
        await transport.send_parts([encoded], timeout)
    except ProxyError as exc:
        raise exc.more_context(f"the PROXY header to {peer}").into_up() from exc


def speaks_http2(peer: HttpPeer, info: ConnectionInfo) -> bool:
    """Tell whether a connection is HTTP/2: by ALPN, without TLS by prior knowledge."""
    if info.tls is not None:
        return info.tls.alpn == "h2"
    return peer.http_version == (2, 2)


def _ask_hook(hook: Callable[[TlsInfo], None], tls: TlsInfo, peer: HttpPeer) -> None:
    """Let a function of the user's see what was agreed on, and refuse it."""
    text = f"upstream_tls_handshake_complete_hook of {peer}"
    try:
        hook(tls)
    except ProxyError as exc:
        raise exc.into_up() from exc.cause
    except Exception as exc:  # the user's mistake costs this attempt, and is told
        _log.exception("%s failed", text)
        raise ProxyError.because(ErrorType.InternalError, text, exc).into_in() from exc


def _traced(transport: ByteStream, tracer: Tracer, digest: Digest) -> ByteStream:
    """Tell a tracer of a connection, and have it told of its end."""

    def tell(what: Callable[[Digest], None]) -> None:
        try:
            what(digest)
        except Exception:  # it may not fail: told, and no matter of the connection
            _log.exception("a tracer of %s failed", digest.peer_addr)

    tell(tracer.on_connected)
    return WatchedStream(transport, lambda: tell(tracer.on_disconnected))
