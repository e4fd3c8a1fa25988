"""TLS over any byte stream: OpenSSL works on memory, the bytes go in and out through the stream.

Trio's own `trio.SSLStream` has no half-close, cannot be asked without waiting, and hides where a
connection was cut; so this is a stream of its own. Reading never writes: what OpenSSL wants to say
while it reads goes out in front of the next write.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import math
import re
import ssl
from collections.abc import Sequence

import trio

from .._errors import ErrorType, ProxyError
from .._info import TcpInfo, TlsInfo
from ._byte_stream import SLICE, ByteStream

#: What a TLS record carries at most.
RECORD = 16384
#: What is received at once: content of `SLICE`, with what records add to it.
RECEIVE = SLICE + SLICE // RECORD * 256
#: Unasked answers of OpenSSL's (to offers to renegotiate) that wait for a write at most, in bytes.
UNSENT = 65536
#: Rounds in which bytes without content (tickets, parts of records) are skipped without waiting.
ROUNDS = 8
#: Seconds for the alert that tells why a handshake failed.
ALERT_TIMEOUT = 1.0


class TlsStream(ByteStream):
    """A connection on which a TLS handshake has succeeded. One task may read while one writes.

    Attributes:
      tls: What was agreed on.
    """

    __slots__ = (
        "_broken",
        "_closed",
        "_ended",
        "_eof_sent",
        "_failure",
        "_incoming",
        "_inner",
        "_more",
        "_object",
        "_outgoing",
        "_plain",
        "_sending",
        "tls",
    )

    def __init__(
        self,
        inner: ByteStream,
        tls_object: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        tls: TlsInfo,
    ) -> None:
        self._inner = inner
        self._object = tls_object
        self._incoming = incoming
        self._outgoing = outgoing
        self.tls = tls
        self._plain = bytearray()  # what was decrypted before anybody asked
        self._more = True  # whether OpenSSL may have content without more bytes
        self._ended = False  # close_notify came
        self._failure: ProxyError | None = None  # why nothing can be read any more
        self._sending = False
        self._broken = False  # a write ended midway: perhaps in the middle of a record
        self._eof_sent = False
        self._closed = False

    @property
    def alpn(self) -> str | None:
        """The protocol that ALPN chose."""
        return self.tls.alpn

    # -- reading ---------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        """Wait for content; see `ByteStream.receive_some`. ``b""`` means that close_notify came."""
        while True:
            data = self._take(max_bytes)
            if data is not None:
                return data
            self._feed(await self._inner.receive_some(RECEIVE))

    def receive_ready(self, max_bytes: int = SLICE) -> bytes | None:
        """Return what is there; see `ByteStream.receive_ready`. A session ticket is nothing."""
        for _ in range(ROUNDS):
            data = self._take(max_bytes)
            if data is not None:
                return data
            received = self._inner.receive_ready(RECEIVE)
            if received is None:
                return None
            self._feed(received)
        return self._take(max_bytes)

    def _feed(self, received: bytes) -> None:
        if received:
            self._incoming.write(received)
            self._more = True
        elif not self._ended:
            self._failure = ProxyError.explain(
                ErrorType.ReadError, "the connection was cut: it ended without TLS's close_notify"
            )

    def _take(self, max_bytes: int) -> bytes | None:
        """Return content that is here already, ``b""`` behind the last, None where there is none.

        Raises:
          ProxyError: there will never be any.
          trio.ClosedResourceError: the stream is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        if self._plain:
            data = bytes(self._plain[:max_bytes])
            del self._plain[:max_bytes]
            return data
        if self._more:
            chunk = self._decrypt(max_bytes)
            if chunk:
                return chunk
        if self._ended:
            return b""
        if self._failure is not None:
            # A new one each time, for an error that is raised twice collects tracebacks.
            raise ProxyError.because(
                self._failure.etype, self._failure.context or "reading", self._failure
            )
        return None

    def _decrypt(self, max_bytes: int) -> bytes:
        """Return what OpenSSL makes of the bytes it has, up to a size."""
        read = self._object.read
        pending = self._object.pending
        incoming = self._incoming
        room = max_bytes
        pieces: list[bytes] = []
        try:
            while room:
                data = read(min(room, RECORD))
                if not data:  # OpenSSL says so for ever after close_notify
                    self._ended = True
                    self._more = False
                    break
                pieces.append(data)
                room -= len(data)
                if not incoming.pending and not pending():
                    self._more = False
                    break
        except ssl.SSLWantReadError:
            self._more = False
        except ssl.SSLZeroReturnError:
            self._ended = True
            self._more = False
        except ssl.SSLError as exc:
            self._more = False
            self._failure = ProxyError.because(ErrorType.ReadError, "reading TLS", exc)
        if self._outgoing.pending > UNSENT and not self._sending:
            self._failure = ProxyError.explain(
                ErrorType.ReadError, "the peer has TLS answer without end, and reads nothing"
            )
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- writing ---------------------------------------------------------------------------------

    async def send_parts(self, parts: Sequence[bytes], timeout: float) -> None:
        """Send all parts; see `ByteStream.send_parts`."""
        self._check_writable()
        if len(parts) == 1:
            data = parts[0]
            if len(data) > SLICE:
                await self._send_large(parts, timeout)
                return
        else:
            if sum(map(len, parts)) > SLICE:
                await self._send_large(parts, timeout)
                return
            data = b"".join(parts)
        if data:
            self._encrypt(data)
            await self._flush(timeout)

    async def _send_large(self, parts: Sequence[bytes], timeout: float) -> None:
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), SLICE):
                self._encrypt(view[start : start + SLICE])
                if self._outgoing.pending >= SLICE:
                    await self._flush(timeout)
                    self._check_writable()
        if self._outgoing.pending:
            await self._flush(timeout)

    def _check_writable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        if self._sending:
            raise trio.BusyResourceError("another task is writing here")
        if self._broken:
            raise ProxyError.explain(
                ErrorType.WriteError, "an earlier write ended midway: the TLS connection is broken"
            )
        if self._eof_sent:
            raise ProxyError.explain(ErrorType.WriteError, "the output has ended")

    def _encrypt(self, data: bytes | memoryview) -> None:
        write = self._object.write
        try:
            sent = write(data)
            if sent != len(data):  # OpenSSL may be set to write a record each time
                view = memoryview(data)
                while sent != len(view):
                    view = view[sent:]
                    sent = write(view)
        except ssl.SSLError as exc:
            self._broken = True
            raise ProxyError.because(ErrorType.WriteError, "writing TLS", exc) from exc

    async def _flush(self, timeout: float) -> None:
        """Send what OpenSSL has written; if that ends midway, the stream is broken."""
        self._sending = True
        try:
            await self._inner.send_parts([self._outgoing.read()], timeout)
        except BaseException:
            self._broken = True
            raise
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Send close_notify; input goes on."""
        if self._closed:
            raise trio.ClosedResourceError("this connection is closed")
        if self._sending:
            raise trio.BusyResourceError("another task is writing here")
        if self._eof_sent or self._broken:
            return
        # OpenSSL would take content that it has for an error of the peer's.
        while self._more and self._failure is None:
            self._plain += self._decrypt(SLICE)
        self._shut_down()
        # As with a socket, an end that nobody hears is no error; no peer lets this wait for long.
        with contextlib.suppress(ProxyError):
            await self._flush(ALERT_TIMEOUT)
            # For peers that look at the connection alone.
            await self._inner.send_eof()

    def _shut_down(self) -> None:
        self._eof_sent = True
        # It wants to read the peer's close_notify at once, which may come much later.
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()

    def close_now(self) -> None:
        """Close at once; close_notify is sent if that can be done without waiting."""
        if self._closed:
            return
        self._closed = True
        if not self._sending and not self._broken:
            if not self._eof_sent:
                self._shut_down()
            with contextlib.suppress(ProxyError, trio.ClosedResourceError):
                self._inner.send_ready(self._outgoing.read())
        self._plain.clear()
        self._inner.close_now()

    def abort(self) -> None:
        """Close at once by a reset below, without close_notify."""
        self._closed = True
        self._plain.clear()
        self._inner.abort()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._inner.fileno()

    def tcp_info(self) -> TcpInfo | None:
        """Return what the kernel knows; see `ByteStream.tcp_info`."""
        return self._inner.tcp_info()


# -- handshakes ----------------------------------------------------------------------------------


async def tls_client(
    inner: ByteStream, context: ssl.SSLContext, server_name: str | None, *, timeout: float
) -> TlsStream:
    """Open TLS as the client. The caller closes ``inner`` where this fails.

    Args:
      inner: The connection.
      context: What is offered, and how the server is verified.
      server_name: The name that is asked for and verified; of an IP address only the latter.
      timeout: Seconds for the handshake.

    Raises:
      ProxyError: TLSHandshakeFailure, TLSHandshakeTimedout or InvalidCert, of unset source.
    """
    sni = None if server_name is None or _is_address(server_name) else server_name
    return await _open(inner, context, server_name, sni, b"", timeout, server_side=False)


async def tls_server(
    inner: ByteStream,
    context: ssl.SSLContext,
    *,
    timeout: float,
    received: bytes = b"",
    server_name: str | None = None,
) -> TlsStream:
    """Open TLS as the server. The caller closes ``inner`` where this fails.

    Args:
      inner: The connection.
      context: What is offered, and how the client is verified.
      timeout: Seconds for the handshake.
      received: What was read of the connection already.
      server_name: The name that was read there.

    Raises:
      ProxyError: TLSHandshakeFailure, TLSHandshakeTimedout or InvalidCert, of unset source.
    """
    return await _open(inner, context, None, server_name, received, timeout, server_side=True)


async def _open(
    inner: ByteStream,
    context: ssl.SSLContext,
    verified: str | None,
    sni: str | None,
    received: bytes,
    timeout: float,
    *,
    server_side: bool,
) -> TlsStream:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    started = trio.current_time()
    with trio.move_on_after(timeout) as scope:
        try:
            tls_object = context.wrap_bio(
                incoming, outgoing, server_side=server_side, server_hostname=verified
            )
            if received:
                incoming.write(received)
            await _handshake(inner, tls_object, incoming, outgoing)
        except ssl.SSLCertVerificationError as exc:
            raise ProxyError.because(ErrorType.InvalidCert, exc.verify_message, exc) from exc
        except (ssl.SSLError, ValueError) as exc:
            raise ProxyError.because(
                ErrorType.TLSHandshakeFailure, "the TLS handshake", exc
            ) from exc
    if scope.cancelled_caught:
        raise ProxyError.explain(
            ErrorType.TLSHandshakeTimedout, f"no TLS handshake within {timeout:g} s"
        )
    info = _describe(tls_object, sni, trio.current_time() - started)
    return TlsStream(inner, tls_object, incoming, outgoing, info)


async def _handshake(
    inner: ByteStream,
    tls_object: ssl.SSLObject,
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
) -> None:
    done = False
    while not done:
        try:
            tls_object.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            if outgoing.pending:  # the alert that tells the peer
                with contextlib.suppress(ProxyError):
                    await inner.send_parts([outgoing.read()], ALERT_TIMEOUT)
            raise
        try:
            if outgoing.pending:
                await inner.send_parts([outgoing.read()], math.inf)
            if not done:
                received = await inner.receive_some(SLICE)
        except ProxyError as exc:
            raise ProxyError.because(
                ErrorType.TLSHandshakeFailure, "the connection broke in the TLS handshake", exc
            ) from exc
        if not done:
            if not received:
                raise ProxyError.explain(
                    ErrorType.TLSHandshakeFailure, "the connection ended in the TLS handshake"
                )
            incoming.write(received)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# Attribute types by the short names that people know (RFC 4514 section 3).
_SHORT = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "domainComponent": "DC",
    "userId": "UID",
}


# What must not be taken for the end of a value, nor be lost in a log (RFC 4514 section 2.4).
_SPECIAL = re.compile(r"[\x00-\x1f\x7f\"+,;<>\\]|^[ #]| $")


def _escaped(value: str) -> str:
    def escape(found: re.Match[str]) -> str:
        character = found[0]
        return f"\\{character}" if character.isprintable() else f"\\{ord(character):02x}"

    return _SPECIAL.sub(escape, value)


def _describe(tls_object: ssl.SSLObject, sni: str | None, took: float) -> TlsInfo:
    cipher = tls_object.cipher()
    der = tls_object.getpeercert(binary_form=True)
    subject = serial = digest = None
    if der:
        digest = hashlib.sha256(der).hexdigest()
        told = tls_object.getpeercert()  # empty where it was not verified
        if told:
            serial = str(told["serialNumber"])
            names: tuple[tuple[tuple[str, str], ...], ...] = told["subject"]  # type: ignore[assignment]  # typeshed has one type for all keys
            subject = ",".join(
                "+".join(f"{_SHORT.get(key, key)}={_escaped(value)}" for key, value in part)
                for part in names
            )
    return TlsInfo(
        version=tls_object.version() or "",
        cipher=cipher[0] if cipher else "",
        sni=sni,
        alpn=tls_object.selected_alpn_protocol(),
        peer_subject=subject,
        peer_serial=serial,
        peer_sha256=digest,
        handshake_time=took,
    )
