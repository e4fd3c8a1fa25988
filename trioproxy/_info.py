"""Facts about a connection, captured once when it is made and handed along as a value."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from ._messages import ResponseHeader


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


@attrs.frozen
class ConnectionInfo:
    """Where a connection leads.

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
        )

    def tcp_info(self) -> TcpInfo | None:
        """Ask the kernel about the connection, now.

        Returns None where it is no TCP connection, is closed, or the platform does not tell.
        """
        return None if self._read_tcp_info is None else self._read_tcp_info()
