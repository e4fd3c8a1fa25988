"""TLS over any byte stream of a test, by `ssl.MemoryBIO`; shares nothing with the transport's.

::

    authority = trustme.CA()
    client = TlsWire.client(stream, "site.test", authority, alpn=["h2", "http/1.1"])
    server = TlsWire.server(stream, authority, "site.test", alpn=["h2"])
    await client.handshake()              # both sides at once, as tasks
    wire = Wire(client.stapled)           # or H2Wire(client.stapled): what sits on top
    client.alpn, client.version, client.peer_certificate

`stapled` ends its output by close_notify (`send_eof`), and closes with one where the stream below
has a ``send_nowait`` (``close``); `truncate` closes the stream below without. Input that ends without close_notify raises
`TruncatedError`, a BrokenResourceError, so a cut can never look like a clean end.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence
from typing import Any, NoReturn

import attrs
import trio
import trustme


class TruncatedError(trio.BrokenResourceError):
    """The stream below ended without close_notify."""


def client_context(
    authority: trustme.CA | None,
    *,
    alpn: Sequence[str] = (),
    certificate: trustme.LeafCert | None = None,
) -> ssl.SSLContext:
    """Return the context of a client.

    Args:
      authority: Who signs what it trusts; None trusts everybody.
      alpn: The protocols it offers.
      certificate: Its own.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        authority.configure_trust(context)
    return _context(context, alpn, certificate)


def server_context(
    certificate: trustme.LeafCert,
    *,
    alpn: Sequence[str] = (),
    clients: trustme.CA | None = None,
) -> ssl.SSLContext:
    """Return the context of a server.

    Args:
      certificate: Its own.
      alpn: The protocols it takes, the best first.
      clients: Who signs the certificates that clients must have; None wants none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return _context(context, alpn, certificate)


def _context(
    context: ssl.SSLContext, alpn: Sequence[str], certificate: trustme.LeafCert | None
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if certificate is not None:
        certificate.configure_cert(context)
    return context


@attrs.define(eq=False)
class TlsWire:
    """One end of a TLS connection."""

    inner: trio.StapledStream[Any, Any]
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    #: What the exchange of messages happens on.
    stapled: trio.StapledStream[Any, Any] = attrs.field(init=False)
    #: Whether the other side has sent close_notify.
    ended: bool = False
    _sending: trio.Lock = attrs.field(factory=trio.Lock)
    _notified: bool = False

    def __attrs_post_init__(self) -> None:
        self.stapled = trio.StapledStream(_Sender(self), _Receiver(self))

    @classmethod
    def wrap(
        cls,
        inner: trio.StapledStream[Any, Any],
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> TlsWire:
        """Wrap a stream by a context of the caller's."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(
            incoming,
            outgoing,
            server_side=server_side,
            server_hostname=server_name,
            session=session,
        )
        return cls(inner, tls, incoming, outgoing)

    @classmethod
    def client(
        cls,
        inner: trio.StapledStream[Any, Any],
        server_name: str | None = "site.test",
        authority: trustme.CA | None = None,
        *,
        alpn: Sequence[str] = (),
        certificate: trustme.LeafCert | None = None,
    ) -> TlsWire:
        """Make a client; see `client_context`. Without a name no SNI is sent."""
        context = client_context(authority, alpn=alpn, certificate=certificate)
        if server_name is None:
            context.check_hostname = False
        return cls.wrap(inner, context, server_name=server_name)

    @classmethod
    def server(
        cls,
        inner: trio.StapledStream[Any, Any],
        authority: trustme.CA,
        *names: str,
        alpn: Sequence[str] = (),
        clients: trustme.CA | None = None,
    ) -> TlsWire:
        """Make a server whose certificate is for these names; see `server_context`."""
        context = server_context(authority.issue_cert(*names), alpn=alpn, clients=clients)
        return cls.wrap(inner, context, server_side=True)

    # -- what was agreed

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed on."""
        return self.tls.selected_alpn_protocol()

    @property
    def version(self) -> str | None:
        """The version of TLS."""
        return self.tls.version()

    @property
    def peer_certificate(self) -> bytes | None:
        """The other side's certificate, as DER."""
        return self.tls.getpeercert(binary_form=True)

    # -- the stream

    async def handshake(self) -> None:
        """Shake hands.

        Raises:
          ssl.SSLError: it failed here.
          TruncatedError: the other side closed instead.
          trio.BrokenResourceError: it broke off.
        """
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                await self._feed()
            except ssl.SSLError:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self.flush()  # the alert
                raise
            else:
                await self.flush()
                return

    async def flush(self) -> None:
        """Send the records that are ready."""
        async with self._sending:
            data = self.outgoing.read()
            if data:
                await self.inner.send_all(data)

    async def _feed(self) -> None:
        data = await self.inner.receive_some(65536)
        if data:
            self.incoming.write(data)
        elif self.incoming.eof:
            raise TruncatedError
        else:
            self.incoming.write_eof()

    async def send_all(self, data: bytes) -> None:
        """Encrypt and send bytes."""
        await trio.lowlevel.checkpoint()
        if self._notified:
            raise trio.ClosedResourceError
        if data:
            self.tls.write(data)
            await self.flush()

    async def receive_some(self, most: int | None = None) -> bytes:
        """Return bytes as they come, ``b""`` for close_notify."""
        await trio.lowlevel.checkpoint()
        while not self.ended:
            try:
                data = self.tls.read(65536 if most is None else most)
            except ssl.SSLWantReadError:
                await self.flush()
                await self._feed()
            except ssl.SSLZeroReturnError:
                self.ended = True
            except ssl.SSLError as exc:
                self._broken(exc)
            else:
                # CPython reads b"" for close_notify where ragged ends are told apart by an error.
                self.ended = not data
                return data
        return b""

    def _broken(self, exc: ssl.SSLError) -> NoReturn:
        if self.incoming.eof:
            raise TruncatedError from exc
        raise trio.BrokenResourceError from exc

    async def close_notify(self) -> None:
        """Say that no more comes from us; reading goes on."""
        self._notify()
        await self.flush()

    def _notify(self) -> None:
        if not self._notified:
            self._notified = True
            # It would wait for the other side's: sending ours is all that is wanted.
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()

    def close(self) -> None:
        """Close at once, with close_notify where the stream below takes it without waiting."""
        if not self._notified:
            self._notify()
            send_nowait = getattr(self.inner.send_stream, "send_nowait", None)
            if send_nowait is not None:
                send_nowait(self.outgoing.read())
        self.truncate()

    def truncate(self) -> None:
        """Close the stream below, without a word."""
        self._notified = True
        self.inner.send_stream.close()
        self.inner.receive_stream.close()


@attrs.define(eq=False)
class _Sender(trio.abc.SendStream):
    wire: TlsWire

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.wire.send_all(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await self.wire.close_notify()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.wire.close()


@attrs.define(eq=False)
class _Receiver(trio.abc.ReceiveStream):
    wire: TlsWire

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.wire.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.wire.close()
