"""TLS for accepted connections: a context per certificate, chosen before the handshake starts."""

from __future__ import annotations

import ipaddress
import logging
import math
import ssl
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import trio

from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from .._tls_settings import TlsSettings
from ..codec._client_hello import ClientHello, HelloReader, NotTls
from ._byte_stream import SLICE, ByteStream
from ._tls import TlsStream, tls_server

_log = logging.getLogger("trioproxy")

#: Contexts kept of settings that `TlsSettings.choose` returns; the ones used last stay.
CHOSEN = 1024
#: Forward secrecy and authenticated encryption; RFC 9113 appendix A forbids the others to HTTP/2.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_NO_PROTOCOL = b"\x15\x03\x03\x00\x02\x02\x78"  # the alert no_application_protocol (RFC 7301)

Entry = TlsSettings | ssl.SSLContext


class TlsAcceptor:
    """Turns accepted connections into TLS ones."""

    def __init__(
        self, settings: TlsSettings, alpn: Sequence[str] | None, custom: Sequence[str] = ()
    ) -> None:
        """Read the certificates.

        Args:
          settings: What is offered.
          alpn: What the listener speaks, of ``h2`` and ``http/1.1``; the settings say what is best.
            None where it is not HTTP: then a protocol is agreed on only if a context of the user's
            own has one.
          custom: What it speaks beside that, or in place of it where ``alpn`` is empty; it is offered
            first.

        Raises:
          ValueError: the settings cannot be used: it names the field, the value and the fix.
        """
        self.settings = settings
        self._alpn = None if alpn is None else (*custom, *alpn)
        self._custom = tuple(custom)
        #: What a client speaks that says nothing by ALPN.
        self._silent = custom[0] if custom and not alpn else "http/1.1"
        self._exact = {name: entry for name, entry in settings.sni if name[0] != "*"}
        # By what is behind the star, the dot included.
        self._wild = {name[1:]: entry for name, entry in settings.sni if name[0] == "*"}
        self._contexts = self._make_all()
        self._chosen: OrderedDict[TlsSettings, ssl.SSLContext] = OrderedDict()

    def reload(self) -> bool:
        """Read the certificates again, for connections to come.

        Returns whether that went well. If not, the ones before stay, and the log says why.
        """
        try:
            contexts = self._make_all()
        except ValueError as exc:
            _log.error("the TLS certificates were not reloaded: %s", exc)
            return False
        self._contexts = contexts
        self._chosen.clear()
        return True

    async def accept(
        self, inner: ByteStream, info: ConnectionInfo, received: bytes = b""
    ) -> tuple[TlsStream, ConnectionInfo]:
        """Open TLS on an accepted connection, which is closed where that fails.

        Args:
          inner: The connection.
          info: What is known of it.
          received: What was read of it already.

        Returns:
          The stream, and what is known of it now.

        Raises:
          ProxyError: TLSHandshakeFailure, TLSHandshakeTimedout or InvalidCert, of unset source; a
            debug line tells of it already.
        """
        try:
            return await self._accept(inner, info, received)
        except ProxyError as exc:
            inner.close_now()
            _log.debug("no TLS with %s: %s", info.peer, exc)
            raise
        except BaseException:
            inner.close_now()
            raise

    async def _accept(
        self, inner: ByteStream, info: ConnectionInfo, received: bytes
    ) -> tuple[TlsStream, ConnectionInfo]:
        started = trio.current_time()
        timeout = self.settings.handshake_timeout
        reader = HelloReader()
        stream = None
        with trio.move_on_after(timeout):
            hello = await _read_hello(inner, reader, received)
            entry = self._choose(hello.server_name)
            context = await self._context(entry)
            await self._check_protocols(inner, entry, hello)
            stream = await tls_server(
                inner,
                context,
                timeout=math.inf,
                received=bytes(reader.received),
                server_name=hello.server_name,
            )
        if stream is None:
            raise ProxyError.explain(
                ErrorType.TLSHandshakeTimedout, f"no TLS handshake within {timeout:g} s"
            )
        spoken = self._alpn
        # A context of the user's own may allow others.
        if spoken is not None and (stream.alpn or self._silent) not in spoken:
            stream.close_now()
            raise ProxyError.explain(
                ErrorType.TLSHandshakeFailure,
                f"{stream.alpn or 'no protocol'} was agreed on by ALPN, and is not spoken here",
            )
        stream.tls = attrs.evolve(stream.tls, handshake_time=trio.current_time() - started)
        serves = self._serves(entry, hello.server_name)
        return stream, attrs.evolve(info, secure=True, tls=stream.tls, serves=serves)

    # -- choosing --------------------------------------------------------------------------------

    def _choose(self, name: str | None) -> Entry:
        """Return what belongs to a server name.

        Raises:
          ProxyError: TLSHandshakeFailure, the user's function failed.
        """
        choose = self.settings.choose
        if choose is not None:
            try:
                chosen = choose(name)
                if chosen is not None:
                    return _checked(chosen)
            except Exception as exc:
                _log.exception("TlsSettings.choose(%r) failed", name)
                raise ProxyError.because(
                    ErrorType.TLSHandshakeFailure, "TlsSettings.choose", exc
                ) from exc
        if name is None:
            return self.settings
        entry = self._exact.get(name)
        if entry is None:
            label, dot, _ = name.partition(".")
            entry = self._wild.get(name[len(label) :]) if label and dot else None
        return self.settings if entry is None else entry

    def _serves(self, entry: Entry, name: str | None) -> Callable[[str], bool] | None:
        """Return what tells whether an authority belongs to an entry; None if there is no other."""
        if not self.settings.sni and self.settings.choose is None:
            return None

        def serves(authority: str) -> bool:
            host = _host(authority)
            if host == name:
                return True
            try:
                return self._choose(host) == entry
            except ProxyError:
                return False

        return serves

    # -- contexts --------------------------------------------------------------------------------

    async def _context(self, entry: Entry) -> ssl.SSLContext:
        if isinstance(entry, ssl.SSLContext):
            _harden(entry)
            return entry
        known = self._contexts.get(id(entry))
        if known is not None:
            return known
        context = self._chosen.get(entry)
        if context is None:
            # Files are read, while other connections go on.
            try:
                context = await trio.to_thread.run_sync(self._make, entry)
            except ValueError as exc:
                _log.error("what TlsSettings.choose returned cannot be used: %s", exc)
                raise ProxyError.because(
                    ErrorType.TLSHandshakeFailure, "TlsSettings.choose", exc
                ) from exc
            self._chosen[entry] = context
            while len(self._chosen) > CHOSEN:
                self._chosen.popitem(last=False)
        self._chosen.move_to_end(entry)
        return context

    def _entries(self) -> Iterator[tuple[str, TlsSettings]]:
        yield "", self.settings
        for name, entry in self.settings.sni:
            yield f"sni {name!r}: ", entry

    def _make_all(self) -> dict[int, ssl.SSLContext]:
        made: dict[int, ssl.SSLContext] = {}  # by id, as a value with many names is slow to hash
        for where, entry in self._entries():
            if id(entry) not in made:
                try:
                    made[id(entry)] = self._make(entry)
                except ValueError as exc:
                    raise ValueError(f"{where}{exc}") from exc
        return made

    def _make(self, entry: TlsSettings) -> ssl.SSLContext:
        # A session that one name's rules admitted must not be taken up where others hold (TLS-03).
        verifying = any(each.client_ca is not None for _, each in self._entries())
        tickets = entry.session_tickets and not verifying and entry.client_ca is None
        return _make_context(
            entry, self._protocols(entry), tickets=tickets, keylog_file=self.settings.keylog_file
        )

    # -- protocols -------------------------------------------------------------------------------

    def _protocols(self, entry: TlsSettings) -> tuple[str, ...]:
        spoken = self._alpn
        if spoken is None:
            return ()
        return (*self._custom, *(each for each in entry.alpn if each in spoken))

    async def _check_protocols(self, inner: ByteStream, entry: Entry, hello: ClientHello) -> None:
        """Refuse a client with which no protocol is left: HTTP/1.1 needs no ALPN, HTTP/2 does."""
        if isinstance(entry, ssl.SSLContext) or self._alpn is None:
            return
        ours = self._protocols(entry)
        if self._silent in ours and (self._silent == "http/1.1" or not hello.alpn):
            return
        if any(each.encode() in hello.alpn for each in ours):
            return
        try:
            await inner.send_parts([_NO_PROTOCOL], math.inf)
        except ProxyError:
            pass
        offered = ", ".join(repr(each)[1:] for each in hello.alpn) or "nothing"
        raise ProxyError.explain(
            ErrorType.TLSHandshakeFailure,
            f"no common protocol: {' or '.join(ours) or 'nothing'} is spoken here, the client "
            f"offers {offered} by ALPN",
        )


async def _read_hello(inner: ByteStream, reader: HelloReader, received: bytes) -> ClientHello:
    hello = None
    while hello is None:
        try:
            data = received or await inner.receive_some(SLICE)
        except ProxyError as exc:
            raise ProxyError.because(
                ErrorType.TLSHandshakeFailure, "the connection broke before a ClientHello", exc
            ) from exc
        if not data:
            raise ProxyError.explain(
                ErrorType.TLSHandshakeFailure, "the connection ended before a ClientHello"
            )
        received = b""
        try:
            hello = reader.feed(data)
        except NotTls as exc:
            raise ProxyError.explain(
                ErrorType.TLSHandshakeFailure, f"{exc} came to a TLS port"
            ) from exc
    return hello


def _checked(chosen: object) -> Entry:
    if isinstance(chosen, (TlsSettings, ssl.SSLContext)):
        return chosen
    raise TypeError(f"{chosen!r} was returned: TlsSettings, an ssl.SSLContext or None is right")


def _host(authority: str) -> str | None:
    """Return the server name that goes with an authority; an address has none."""
    host = authority
    if host.startswith("["):
        return None
    host = host.partition(":")[0].lower().removesuffix(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host or None
    return None


# -- making contexts -----------------------------------------------------------------------------


def _harden(context: ssl.SSLContext) -> None:
    """Set what HTTP needs of every context (row TLS-05)."""
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        context.minimum_version = ssl.TLSVersion.TLSv1_2


def _make_context(
    entry: TlsSettings, protocols: Sequence[str], *, tickets: bool, keylog_file: str | None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[entry.min_tls_version]
    _harden(context)
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    ciphers = CIPHERS if entry.ciphers is None else entry.ciphers
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError as exc:
        raise ValueError(
            f"ciphers={ciphers!r}: OpenSSL knows none of them; see openssl ciphers -v"
        ) from exc
    _load_certificate(context, entry)
    if entry.client_ca is not None:
        _load_authority(context, entry.client_ca)
        required = entry.client_auth == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if keylog_file is not None:
        try:
            context.keylog_filename = keylog_file
        except OSError as exc:
            raise ValueError(
                f"keylog_file={keylog_file!r}: {_reason(exc)}; a file that can be written is right"
            ) from exc
    return context


def _load_certificate(context: ssl.SSLContext, entry: TlsSettings) -> None:
    certificate, key = entry.certificate, entry.key
    if not isinstance(certificate, str):
        try:
            certificate.configure_cert(context)
        except Exception as exc:  # it is the user's object
            raise ValueError(f"certificate={certificate!r}: configure_cert failed: {exc}") from exc
        return
    if b"-----BEGIN CERTIFICATE-----" not in _read("certificate", certificate):
        raise ValueError(
            f"certificate={certificate!r}: there is no certificate in it; a file in PEM, with "
            "-----BEGIN CERTIFICATE-----, is right"
        )
    name, path = ("certificate", certificate) if key is None else ("key", key)
    if b"PRIVATE KEY-----" not in _read(name, path):
        told = "key=None" if key is None else f"key={key!r}"
        raise ValueError(
            f"{told}: there is no private key in {path!r}; a file in PEM, with "
            "-----BEGIN PRIVATE KEY-----, is right"
        )
    try:
        # Without a password OpenSSL would ask at the terminal.
        context.load_cert_chain(certificate, key, "" if entry.password is None else entry.password)
    except ssl.SSLError as exc:
        told = f"certificate={certificate!r}, key={key!r}"
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(
                f"{told}: the key is not the certificate's; give the one it was made for"
            ) from exc
        if b"ENCRYPTED" in _read(name, path):
            given = "there is none" if entry.password is None else "the one given is wrong"
            raise ValueError(
                f"password: the key in {path!r} is encrypted and {given}; give its password"
            ) from exc
        raise ValueError(f"{told}: OpenSSL cannot read them: {_reason(exc)}") from exc
    except (OSError, ValueError) as exc:
        raise ValueError(f"certificate={certificate!r}, key={key!r}: {_reason(exc)}") from exc


def _load_authority(context: ssl.SSLContext, authority: Any) -> None:
    if not isinstance(authority, str):
        try:
            authority.configure_trust(context)
        except Exception as exc:  # it is the user's object
            raise ValueError(f"client_ca={authority!r}: configure_trust failed: {exc}") from exc
        return
    _read("client_ca", authority)
    try:
        context.load_verify_locations(authority)
    except (OSError, ValueError) as exc:
        raise ValueError(
            f"client_ca={authority!r}: there is no certificate in it ({_reason(exc)}); a file in "
            "PEM, with -----BEGIN CERTIFICATE-----, is right"
        ) from exc


def _read(option: str, path: str) -> bytes:
    """Return a file's bytes, for OpenSSL does not say which file it misses."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        raise ValueError(
            f"{option}={path!r}: {_reason(exc)}; the path of a file that can be read is right"
        ) from exc


def _reason(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLError):
        return exc.reason or str(exc)
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return str(exc)
