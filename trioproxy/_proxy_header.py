"""What a header of the PROXY protocol says of a connection: who is at its two ends, and how.

The protocol is HAProxy's (``doc/proxy-protocol.txt`` there); `codec._proxy_protocol` reads and
writes it.
"""

from __future__ import annotations

import attrs

#: The bits of `ProxyTls.client`: PP2_CLIENT_SSL, PP2_CLIENT_CERT_CONN and PP2_CLIENT_CERT_SESS.
CLIENT_TLS = 0x01
CLIENT_CERT_CONN = 0x02
CLIENT_CERT_SESS = 0x04

Tlvs = tuple[tuple[int, bytes], ...]


@attrs.frozen(kw_only=True)
class ProxyTls:
    """The client's TLS as the proxy before us tells of it (``PP2_TYPE_SSL``).

    Attributes:
      client: The bits that were sent; ``secure``, ``cert_conn`` and ``cert_sess`` read them.
      verify: 0 where the client gave a certificate that was verified.
      version: The TLS version, such as ``TLSv1.3``.
      common_name: The common name in the client's certificate.
      cipher: The cipher suite.
      sig_alg: What the proxy's own certificate was signed with, such as ``SHA256``.
      key_alg: The kind of that certificate's key, such as ``RSA2048``.
      others: Further values, as pairs of their type and their bytes.
    """

    client: int = CLIENT_TLS
    verify: int = 1
    version: str | None = None
    common_name: str | None = None
    cipher: str | None = None
    sig_alg: str | None = None
    key_alg: str | None = None
    others: Tlvs = ()

    @property
    def secure(self) -> bool:
        """Whether the client came over TLS."""
        return bool(self.client & CLIENT_TLS)

    @property
    def cert_conn(self) -> bool:
        """Whether the client gave a certificate on this connection."""
        return bool(self.client & CLIENT_CERT_CONN)

    @property
    def cert_sess(self) -> bool:
        """Whether the client gave a certificate in this TLS session."""
        return bool(self.client & CLIENT_CERT_SESS)

    @property
    def verified(self) -> bool:
        """Whether the client gave a certificate and the proxy verified it."""
        return self.verify == 0 and (self.cert_conn or self.cert_sess)


@attrs.frozen(kw_only=True)
class ProxyHeader:
    """A header of the PROXY protocol.

    Attributes:
      version: 1 for a line of text, 2 for the binary form.
      local: Whether the proxy speaks for itself (LOCAL), to see whether we are alive say.
      source: The client's address as in `client_addr`; None where the header tells none that we
        know, and then that of the connection holds.
      destination: The address that the client connected to, likewise.
      alpn: The protocol that the client and the proxy agreed on.
      authority: The host name that the client asked for: the server name of its TLS.
      unique_id: What the proxy calls the connection, at most 128 bytes.
      tls: The client's TLS; None where the header does not speak of it.
      netns: The name of the network namespace.
      others: Further values, as pairs of their type and their bytes.
    """

    version: int = 2
    local: bool = False
    source: str | None = None
    destination: str | None = None
    alpn: bytes | None = None
    authority: str | None = None
    unique_id: bytes | None = None
    tls: ProxyTls | None = None
    netns: str | None = None
    others: Tlvs = ()
