"""What TLS offers to a peer and demands of it: a context for each set of TLS options, made once."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections import OrderedDict
from typing import Any

import attrs

from .._errors import ErrorType, ProxyError
from .._options import CertKey
from .._peer import HttpPeer

#: Contexts kept at most: each holds a whole store of trusted certificates.
CONTEXTS = 128

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# X509_V_ERR_HOSTNAME_MISMATCH, as OpenSSL itself says it of a name.
_WRONG_NAME = 62


@attrs.frozen
class _Recipe:
    """All that a context is made of."""

    ca: Any
    client_cert_key: Any
    verify_cert: bool
    verify_hostname: bool
    alternative_cn: str | None
    own_check: bool
    min_tls_version: str
    ciphers: str | None
    alpn: tuple[str, ...]

    @classmethod
    def of(cls, peer: HttpPeer, alpn: tuple[str, ...] | None) -> _Recipe:
        options = peer.options
        first_label = (peer.server_name or "").partition(".")[0]
        named = options.verify_cert and options.verify_hostname
        return cls(
            options.ca,
            options.client_cert_key if peer.client_cert_key is None else peer.client_cert_key,
            options.verify_cert,
            named,
            options.alternative_cn,
            # OpenSSL verifies one name alone, and "*" never stands for an underscore there.
            named and (options.alternative_cn is not None or "_" in first_label),
            options.min_tls_version,
            options.ciphers,
            options.alpn if alpn is None else alpn,
        )


class ClientContexts:
    """Contexts by TLS options, the ones used last; files are read when a context is made."""

    def __init__(self, size: int = CONTEXTS) -> None:
        self._size = size
        self._made: OrderedDict[_Recipe, ssl.SSLContext] = OrderedDict()

    def get(self, peer: HttpPeer, alpn: tuple[str, ...] | None = None) -> ssl.SSLContext:
        """Return the context for a peer.

        Args:
          peer: The peer.
          alpn: The protocols to offer, the best first; None for the peer's versions of HTTP.

        Raises:
          ProxyError: its options cannot be followed, for a file of theirs cannot be read say.
        """
        recipe = _Recipe.of(peer, alpn)
        context = self._made.get(recipe)
        if context is None:
            try:
                context = _make(recipe)
            except Exception as exc:  # an object of the user's may raise anything
                raise ProxyError.because(
                    ErrorType.InternalError, f"the TLS options of {peer}: {exc}", exc
                ).into_in() from exc
            self._made[recipe] = context
            if len(self._made) > self._size:
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(recipe)
        return context


class _OptionRefused(Exception):
    """An option of a peer that does not work, with its name."""


def client_context(peer: HttpPeer) -> ssl.SSLContext:
    """Return a new context for a peer.

    Raises:
      ProxyError: its options cannot be followed.
    """
    return ClientContexts().get(peer)


def _make(recipe: _Recipe) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Whom the user trusts need be no root; from Python 3.13 on this is ssl's own default.
    context.verify_flags |= getattr(ssl, "VERIFY_X509_PARTIAL_CHAIN", 0)
    context.minimum_version = _VERSIONS[recipe.min_tls_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # A certificate's names are the alternative ones (RFC 9525 section 2).
    context.hostname_checks_common_name = False
    if not (recipe.verify_hostname and not recipe.own_check):
        context.check_hostname = False
    if not recipe.verify_cert:
        context.verify_mode = ssl.CERT_NONE
    elif recipe.ca is None:
        context.load_default_certs()
    else:
        for each in recipe.ca:
            _trust(context, each)
    if recipe.client_cert_key is not None:
        _identify(context, recipe.client_cert_key)
    if recipe.ciphers is not None:
        try:
            context.set_ciphers(recipe.ciphers)
        except ssl.SSLError as exc:
            raise _OptionRefused(
                f"ciphers={recipe.ciphers!r}: names of OpenSSL's cipher suites are right"
            ) from exc
    if recipe.alpn:
        context.set_alpn_protocols(list(recipe.alpn))
    if recipe.own_check:
        context.sslobject_class = _checking(recipe.alternative_cn)
    return context


def _trust(context: ssl.SSLContext, anchor: Any) -> None:
    """Trust a file, a directory, a text or an object that knows how."""
    configure = getattr(anchor, "configure_trust", None)
    if configure is not None:
        configure(context)
        return
    try:
        if isinstance(anchor, bytes):
            text = b"-----BEGIN" in anchor
            context.load_verify_locations(cadata=anchor.decode("ascii") if text else anchor)
        elif "-----BEGIN" in anchor:
            context.load_verify_locations(cadata=anchor)
        elif os.path.isdir(anchor):
            context.load_verify_locations(capath=anchor)
        else:
            context.load_verify_locations(cafile=anchor)
    except (OSError, ValueError) as exc:
        what = anchor if isinstance(anchor, str) and "\n" not in anchor else "what was given"
        raise _OptionRefused(
            f"ca: {what} cannot be used: {_reason(exc)}; certificates in PEM are right"
        ) from exc


def _identify(context: ssl.SSLContext, identity: Any) -> None:
    """Have a certificate of ours for peers that want one."""
    if not isinstance(identity, CertKey):
        identity.configure_cert(context)
        return
    try:
        # Without a password OpenSSL would ask at the terminal.
        context.load_cert_chain(identity.chain, identity.key, identity.password or "")
    except (OSError, ValueError) as exc:
        raise _OptionRefused(
            f"client_cert_key: {identity.chain} with {identity.key or 'the key in it'} cannot be "
            f"used: {_reason(exc)}; a chain and its key in PEM are right"
        ) from exc


def _reason(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLError):
        return exc.reason or "it is none"
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return str(exc)


def _checking(alternative: str | None) -> type[ssl.SSLObject]:
    """Return a kind of TLS object that verifies names by itself, when the chain was verified."""

    class Checking(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            names = [each for each in (self.server_hostname, alternative) if each is not None]
            certificate: Any = self.getpeercert()
            if not any(has_name(certificate, name) for name in names):
                error = ssl.SSLCertVerificationError("certificate verify failed")
                error.verify_code = _WRONG_NAME
                error.verify_message = (
                    f"the certificate is not valid for {' or '.join(map(repr, names))}"
                )
                raise error

    return Checking


def has_name(certificate: Any, name: str) -> bool:
    """Tell whether a certificate is for a name (RFC 9525 section 6).

    Args:
      certificate: As `ssl.SSLObject.getpeercert` returns it.
      name: A host name or an IP address.
    """
    entries = certificate.get("subjectAltName", ())
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        wanted = name.lower()
        rest = wanted.partition(".")[2]
        found = [value.lower() for kind, value in entries if kind == "DNS"]
        # "*" stands for the whole first label, and never for that of a top-level domain.
        return wanted in found or ("." in rest and f"*.{rest}" in found)
    return any(kind == "IP Address" and _same_address(value, address) for kind, value in entries)


def _same_address(text: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return ipaddress.ip_address(text.strip()) == address
    except ValueError:
        return False
