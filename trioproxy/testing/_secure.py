"""TLS for the reference client and origin: OpenSSL over memory, sharing no code with ours.

Certificates are made once per process, and so that every run sends the same number of bytes: RSA
signatures have one length, those over elliptic curves do not.
"""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import attrs
import trio

from .._errors import ErrorType, ProxyError
from ..transport._byte_stream import SLICE
from ._network import End, _Direction

#: Virtual seconds that a handshake may take.
PATIENCE = 100.0
#: What the certificates are for: the proxy's own name, and those of origins.
NAMES = ("site.test", "origin.test", "second.test")


@attrs.frozen
class Credentials:
    """An authority, and certificates of it."""

    authority: Any
    #: For every name here.
    good: Any
    #: For a name that nobody asks for.
    strange: Any


@cache
def credentials() -> Credentials:
    """Return the certificates of this process.

    Raises:
      RuntimeError: trustme is not installed.
    """
    try:
        trustme: Any = importlib.import_module("trustme")  # for scenarios with TLS alone
    except ImportError as exc:
        raise RuntimeError(
            "scenarios with TLS need trustme: pip install trioproxy[selfsigned]"
        ) from exc
    kind = trustme.KeyType.RSA
    authority = trustme.CA(key_type=kind)
    return Credentials(
        authority,
        authority.issue_cert(*NAMES, key_type=kind),
        authority.issue_cert("stranger.test", key_type=kind),
    )


@cache
def server_context(alpn: tuple[str, ...], *, strange: bool = False) -> ssl.SSLContext:
    """Return what an origin offers."""
    found = credentials()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Tickets that carry their state are longer or shorter by chance.
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols(list(alpn))
    (found.strange if strange else found.good).configure_cert(context)
    return context


@cache
def client_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Return what a client offers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(list(alpn))
    credentials().authority.configure_trust(context)
    return context


class SecureEnd:
    """One end of a link with TLS on it; used like an `End`."""

    def __init__(self, end: End, context: ssl.SSLContext, name: str | None = None) -> None:
        """Take over an end; `handshake` comes first.

        Args:
          end: The end.
          context: Of a server or a client.
          name: The server's, for a client.
        """
        self.end = end
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._in, self._out, server_side=name is None, server_hostname=name
        )
        self._plain = bytearray()
        self._ended = False
        self._said_goodbye = False
        self._lock = trio.Lock()

    @property
    def closed(self) -> bool:
        """Whether it was closed here."""
        return self.end.closed

    @property
    def incoming(self) -> _Direction:
        """The link's direction hither."""
        return self.end.incoming

    @property
    def outgoing(self) -> _Direction:
        """The link's direction thither."""
        return self.end.outgoing

    @property
    def alpn(self) -> str | None:
        """What was agreed on."""
        return self._tls.selected_alpn_protocol()

    async def handshake(self) -> None:
        """Agree with the other side.

        Raises:
          ProxyError: it failed, or takes for ever.
        """
        with trio.move_on_after(PATIENCE) as scope:
            await self._handshake()
        if scope.cancelled_caught:
            raise ProxyError.explain(ErrorType.TLSHandshakeTimedout, "no end of the handshake")

    async def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush(1000.0)
                received = await self.end.receive_some()
                if not received:
                    raise ProxyError.explain(
                        ErrorType.ReadError, "an end in the handshake"
                    ) from None
                self._in.write(received)
            except ssl.SSLError as exc:
                with suppress(ProxyError):
                    await self._flush(1.0)
                raise ProxyError.because(ErrorType.TLSHandshakeFailure, "TLS", exc) from exc
            else:
                await self._flush(1000.0)
                return

    async def _flush(self, timeout: float) -> None:
        async with self._lock:
            data = self._out.read()
            if data:
                await self.end.send_parts([data], timeout)

    def _decrypt(self) -> None:
        try:
            while True:
                data = self._tls.read(SLICE)
                if not data:
                    self._ended = True
                    return
                self._plain += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as exc:
            raise ProxyError.because(ErrorType.ReadError, "TLS", exc) from exc

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        """Wait for content; ``b""`` means close_notify.

        Raises:
          ProxyError: the link broke, or ended without that.
        """
        while True:
            if not self._plain and not self._ended:
                self._decrypt()
            if self._plain:
                data = bytes(self._plain[:max_bytes])
                del self._plain[:max_bytes]
                return data
            if self._ended:
                await trio.lowlevel.checkpoint()
                return b""
            received = await self.end.receive_some()
            if not received:
                raise ProxyError.explain(ErrorType.ReadError, "an end without close_notify")
            self._in.write(received)

    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        """Send all parts."""
        data = b"".join(parts)
        if self.end.closed:
            raise trio.ClosedResourceError("this end is closed")
        if self._said_goodbye:
            raise ProxyError.explain(ErrorType.WriteError, "the output has ended")
        try:
            view = memoryview(data)
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as exc:
            raise ProxyError.because(ErrorType.WriteError, "TLS", exc) from exc
        await self._flush(timeout)

    def _goodbye(self) -> None:
        if not self._said_goodbye:
            self._said_goodbye = True
            with suppress(ProxyError):
                self._decrypt()
            with suppress(ssl.SSLError):
                self._tls.unwrap()

    async def send_eof(self, *, fin: bool = True) -> None:
        """Say that no more content comes, in TLS's words and in TCP's."""
        if self.end.closed:
            raise trio.ClosedResourceError("this end is closed")
        self._goodbye()
        with suppress(ProxyError):
            await self._flush(1.0)
            if fin:
                await self.end.send_eof()

    async def hush(self) -> None:
        """Send close_notify, and then nothing, until the other side goes or patience ends."""
        with suppress(trio.ClosedResourceError, ProxyError), trio.move_on_after(PATIENCE):
            await self.send_eof(fin=False)
            while await self.receive_some():
                pass
            while await self.end.receive_some():
                pass

    def truncate(self) -> None:
        """Close without a word of TLS's."""
        self.end.close_now()

    def reset(self) -> None:
        """Break the link."""
        self.end.reset()

    def close_now(self) -> None:
        """Close at once, with close_notify as far as it goes out."""
        if not self.end.closed and not self._lock.locked():
            self._goodbye()
            self.end.send_ready(self._out.read())
        self.end.close_now()


AnyEnd = End | SecureEnd


def truncate(end: AnyEnd) -> None:
    """Close without a word of TLS's."""
    (end.end if isinstance(end, SecureEnd) else end).close_now()
