"""Facts about a connection, captured once when it is made and handed along as a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable

import attrs

from ._messages import ResponseHeader
from ._proxy_header import CLIENT_CERT_CONN, CLIENT_CERT_SESS, CLIENT_TLS, ProxyHeader, ProxyTls


@attrs.frozen
class TcpInfo:
    """What the kernel knows of a TCP connection at one moment.

    Attributes:
      state: Its state, 1 being established.
      rtt: The smoothed round-trip time, in seconds.
      rtt_var: Its variation, in seconds.
      snd_mss: The size of a segment that is sent, in bytes.
      snd_cwnd: The congestion window, in segments.
      unacked: Segments sent and not acknowledged.
      lost: Segments taken for lost.
      retransmits: Segments that were sent again since the connection was made.
    """

    state: int
    rtt: float
    rtt_var: float
    snd_mss: int
    snd_cwnd: int
    unacked: int
    lost: int
    retransmits: int


ReadTcpInfo = Callable[[], TcpInfo | None]


@attrs.frozen
class TlsInfo:
    """What a TLS handshake agreed on (Pingora's ``SslDigest``).

    Attributes:
      version: The protocol version, such as ``TLSv1.3``.
      cipher: The cipher suite by OpenSSL's name.
      sni: The server name that the client asked for, None where it asked for none.
      alpn: The protocol that ALPN chose, None where it chose none.
      peer_subject: The subject of the peer's verified certificate, such as ``O=Us,CN=client``, in
        the certificate's order and with the escapes of RFC 4514 section 2.4.
      peer_serial: The serial number of that certificate, in hexadecimal digits.
      peer_sha256: The SHA-256 of the peer's certificate, verified or not, in hexadecimal digits.
      handshake_time: Seconds that the handshake took.
    """

    version: str
    cipher: str
    sni: str | None = None
    alpn: str | None = None
    peer_subject: str | None = None
    peer_serial: str | None = None
    peer_sha256: str | None = None
    handshake_time: float = 0.0


# One attribute of a subject, with the escapes of RFC 4514 section 2.4.
_ATTRIBUTE = re.compile(r"([^=]*)=((?:[^,+\\]|\\.)*)[,+]?")
_ESCAPE = re.compile(r"\\([0-9a-f]{2}|.)")


def _common_name(subject: str) -> str | None:
    for name, value in _ATTRIBUTE.findall(subject):
        if name == "CN":
            return _ESCAPE.sub(lambda e: chr(int(e[1], 16)) if len(e[1]) == 2 else e[1], value)
    return None


class ConnectionLife:
    """How long a client's connection lasts, for what belongs to it alone and is to end with it."""

    __slots__ = ("_held", "ended")

    def __init__(self) -> None:
        #: Whether the connection has ended.
        self.ended = False
        self._held: dict[Hashable, Callable[[], None]] | None = None

    def hold(self, what: Hashable, end: Callable[[], None]) -> None:
        """Have something ended with the connection; at once where that has ended already.

        Args:
          what: The thing; `let_go` takes it back.
          end: Called then; it must not raise.
        """
        if self.ended:
            end()
            return
        if self._held is None:
            self._held = {}
        self._held[what] = end

    def let_go(self, what: Hashable) -> None:
        """Forget a thing, which has ended by itself."""
        if self._held is not None:
            self._held.pop(what, None)

    def end(self) -> None:
        """End it, and all that it holds."""
        self.ended = True
        held, self._held = self._held, None
        for end in list((held or {}).values()):
            end()


@attrs.frozen
class ConnectionInfo:
    """Where a connection leads.

    Where a PROXY header was believed, ``local`` and ``peer`` are what it announces.

    Attributes:
      local: Our address as text (``127.0.0.1:80``, ``[::1]:80``, ``unix:PATH``), None if unnamed.
      peer: The other party's address, likewise.
      established: When it was made, in seconds of Trio's clock.
      secure: Whether it is TLS.
      lookup_time: Seconds that looking its name up took.
      connect_time: Seconds that connecting took.
      proxy_time: Seconds that a CONNECT proxy on the way took to answer.
      proxy_reply: That answer's head.
      read_tcp_info: Reads what the kernel knows of it, where there is a TCP socket.
      tls: What its TLS handshake agreed on, None without TLS.
      serves: Tells whether an authority belongs to the certificate that was chosen by the client's
        server name (RFC 9110 section 15.5.20); None where there is only one.
      proxy_header: The PROXY header that it began with and that was believed, None without one.
      connected: Our address and the other party's as the socket has them, where that header
        announces others.
      life: Its life, the same object in every copy.
    """

    local: str | None
    peer: str | None
    established: float = 0.0
    secure: bool = False
    lookup_time: float = 0.0
    connect_time: float = 0.0
    proxy_time: float = 0.0
    proxy_reply: ResponseHeader | None = attrs.field(default=None, eq=False)
    read_tcp_info: ReadTcpInfo | None = attrs.field(default=None, eq=False, repr=False)
    tls: TlsInfo | None = None
    serves: Callable[[str], bool] | None = attrs.field(default=None, eq=False, repr=False)
    proxy_header: ProxyHeader | None = None
    connected: tuple[str | None, str | None] | None = None
    life: ConnectionLife = attrs.field(factory=ConnectionLife, eq=False, repr=False)

    @property
    def connected_local(self) -> str | None:
        """Our own address, and not what a PROXY header announces."""
        return self.local if self.connected is None else self.connected[0]

    @property
    def connected_peer(self) -> str | None:
        """The address at the other end, and not what a PROXY header announces."""
        return self.peer if self.connected is None else self.connected[1]

    def believing(self, header: ProxyHeader) -> ConnectionInfo:
        """Return what is known where a PROXY header is believed."""
        if header.local or (header.source is None and header.destination is None):
            return attrs.evolve(self, proxy_header=header)
        return attrs.evolve(
            self,
            local=header.destination,
            peer=header.source,
            proxy_header=header,
            connected=(self.local, self.peer),
        )

    def announcement(self, version: int) -> Announcement:
        """Return what a connection that is made for this client is to announce.

        Where we have no TLS with the client ourselves, what a PROXY header of its own says of that
        is handed on.

        Args:
          version: That of the PROXY protocol, 1 or 2.
        """
        tls, before = self.tls, self.proxy_header
        header = ProxyHeader(version=version, source=self.peer, destination=self.local)
        if version == 2 and before is not None:
            header = attrs.evolve(header, unique_id=before.unique_id)
        if version == 2 and tls is not None:
            header = attrs.evolve(
                header,
                alpn=None if tls.alpn is None else tls.alpn.encode("latin-1"),
                authority=tls.sni,
                tls=_announced(tls),
            )
        elif version == 2 and before is not None:
            header = attrs.evolve(
                header, alpn=before.alpn, authority=before.authority, tls=before.tls
            )
        return Announcement(version, self.life, header)


def _announced(tls: TlsInfo) -> ProxyTls:
    given = tls.peer_sha256 is not None
    return ProxyTls(
        client=CLIENT_TLS | (CLIENT_CERT_CONN | CLIENT_CERT_SESS if given else 0),
        verify=0 if given and tls.peer_subject is not None else 1,
        version=tls.version,
        common_name=None if tls.peer_subject is None else _common_name(tls.peer_subject),
        cipher=tls.cipher,
    )


@attrs.frozen
class Announcement:
    """What a connection to a peer announces by a PROXY header, and so whom alone it serves.

    Attributes:
      version: That of the PROXY protocol.
      life: The life of the client's connection.
      header: What is announced.
    """

    version: int
    life: ConnectionLife
    header: ProxyHeader = attrs.field(eq=False)


@attrs.frozen
class Digest:
    """What `connected_to_upstream` is told of the connection (Pingora's ``Digest``).

    Attributes:
      peer_addr: The address at the connection's other end as text: the origin's, or that of the
        proxy on the way; None for an unnamed socket.
      local_addr: Our address as text.
      established: When the connection was made, in seconds of Trio's clock.
      lookup_time: Seconds that looking the name up took, 0 where there was none.
      connect_time: Seconds that connecting took.
      proxy_time: Seconds that an HTTP CONNECT proxy on the way took to answer.
      proxy_reply: That answer's head, None where there is no proxy.
      tls: What the TLS handshake agreed on, None without TLS.
      proxy_header: The PROXY header that a client's connection began with and that was believed.
        ``peer_addr`` and ``local_addr`` are then what it announces.
      connected_peer_addr: The address that is really at the other end: that of the proxy before us
        where a PROXY header announces another one.
      connected_local_addr: Our address as it really is.
    """

    peer_addr: str | None
    local_addr: str | None
    established: float
    lookup_time: float = 0.0
    connect_time: float = 0.0
    proxy_time: float = 0.0
    proxy_reply: ResponseHeader | None = attrs.field(default=None, eq=False)
    _read_tcp_info: ReadTcpInfo | None = attrs.field(default=None, eq=False, repr=False)
    tls: TlsInfo | None = None
    proxy_header: ProxyHeader | None = None
    connected_peer_addr: str | None = None
    connected_local_addr: str | None = None

    @classmethod
    def of(cls, info: ConnectionInfo) -> Digest:
        """Return the digest of a connection."""
        return cls(
            info.peer,
            info.local,
            info.established,
            info.lookup_time,
            info.connect_time,
            info.proxy_time,
            info.proxy_reply,
            info.read_tcp_info,
            info.tls,
            info.proxy_header,
            info.connected_peer,
            info.connected_local,
        )

    def tcp_info(self) -> TcpInfo | None:
        """Ask the kernel about the connection, now.

        Returns None where it is no TCP connection, is closed, or the platform does not tell.
        """
        return None if self._read_tcp_info is None else self._read_tcp_info()
