"""What a listener offers over TLS, and demands: values alone, of which the transport makes contexts."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ._options import file_name

#: What HTTP is called in ALPN, best first.
ALPN = ("h2", "http/1.1")
#: What a throw-away certificate is for.
SELF_SIGNED_NAMES = ("localhost", "127.0.0.1", "::1")

_TLS_VERSIONS = ("1.2", "1.3")
_CLIENT_AUTH = ("required", "optional")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


def _flag(_instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}={value!r}: True or False is right")


def _seconds(_instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(
            f"{attribute.name}={value!r}: seconds above 0 are right; math.inf means no limit"
        )


def _path(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _certificate(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not _path(value) and not callable(getattr(value, "configure_cert", None)):
        raise ValueError(
            f"{attribute.name}={value!r}: the path of a PEM file is right, or an object with "
            "configure_cert(context)"
        )
    if type(value).__hash__ is None:
        raise ValueError(f"{attribute.name}={value!r}: an object that can be hashed is right")


def _optional_path(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not _path(value):
        raise ValueError(f"{attribute.name}={value!r}: the path of a file, or None, is right")


def _password(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, (str, bytes)):
        raise ValueError(f"{attribute.name}: text or None is right")  # it is a secret


def _authority(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    knows_how = callable(getattr(value, "configure_trust", None))
    if value is None or _path(value) or (knows_how and type(value).__hash__ is not None):
        return
    raise ValueError(
        f"{attribute.name}={value!r}: the path of a PEM file is right, or an object with "
        "configure_trust(context), or None"
    )


def _one_of(*choices: str) -> Any:
    def check(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
        if value not in choices:
            raise ValueError(
                f"{attribute.name}={value!r}: one of {', '.join(map(repr, choices))} is right"
            )

    return check


def _words(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[ -~]+", value)):
        raise ValueError(
            f"{attribute.name}={value!r}: names of OpenSSL's cipher suites, joined by colons, are "
            "right, or None"
        )


def _protocols(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not value or not set(value) <= set(ALPN):
        raise ValueError(
            f"{attribute.name}={value!r}: one or more of {', '.join(map(repr, ALPN))}, best first, "
            "are right"
        )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_pairs(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, Mapping) else value


def _function(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{attribute.name}={value!r}: a function or None is right")


Choose = Callable[[str | None], Any]


@attrs.frozen
class TlsSettings:
    """What a listener offers over TLS: a certificate, and perhaps others by the client's SNI.

    Files are read when the server starts, and again when it is told to reload.

    Attributes:
      certificate: The path of a PEM file with the certificate, the intermediate ones behind it; or
        an object with ``configure_cert(context)``, such as trustme's.
      key: The path of the private key; None where it is in the same file.
      password: What the key is encrypted with.
      client_ca: The path of a PEM file with the authorities that client certificates must come
        from, or an object with ``configure_trust(context)``; None asks for none.
      client_auth: Whether a client certificate is ``"required"`` or ``"optional"`` where
        ``client_ca`` is given.
      min_tls_version: The oldest version, ``"1.2"`` or ``"1.3"``.
      ciphers: OpenSSL's names of the cipher suites for TLS 1.2; None takes those with forward
        secrecy and authenticated encryption. TLS 1.3 has its own, all of which are good.
      alpn: The protocols offered, best first. The listener's HTTP versions narrow them.
      session_tickets: Whether clients may resume sessions; never where one of the certificates
        comes with client certificates.
      sni: Settings by server name (``"example.com"``; ``"*.example.com"`` for one more label), which
        replace these for clients that ask for it; they must not have any of what follows.
      choose: Called with each client's server name, or None. Returns the settings to use, or an
        ``ssl.SSLContext``; None goes by ``sni``. It must not block.
      handshake_timeout: Seconds for a handshake.
      keylog_file: Where the keys of all connections are appended, so that Wireshark can read them.
        For debugging only.
    """

    certificate: Any = attrs.field(converter=file_name, validator=_certificate)
    key: str | None = attrs.field(default=None, converter=file_name, validator=_optional_path)
    password: str | bytes | None = attrs.field(
        default=None, kw_only=True, repr=False, validator=_password
    )
    client_ca: Any = attrs.field(
        default=None, kw_only=True, converter=file_name, validator=_authority
    )
    client_auth: str = attrs.field(
        default="required", kw_only=True, validator=_one_of(*_CLIENT_AUTH)
    )
    min_tls_version: str = attrs.field(
        default="1.2", kw_only=True, validator=_one_of(*_TLS_VERSIONS)
    )
    ciphers: str | None = attrs.field(default=None, kw_only=True, validator=_words)
    alpn: tuple[str, ...] = attrs.field(
        default=ALPN, kw_only=True, converter=_as_tuple, validator=_protocols
    )
    session_tickets: bool = attrs.field(default=True, kw_only=True, validator=_flag)
    sni: tuple[tuple[str, TlsSettings], ...] = attrs.field(
        default=(), kw_only=True, converter=_as_pairs
    )
    choose: Choose | None = attrs.field(default=None, kw_only=True, validator=_function)
    handshake_timeout: float = attrs.field(default=10.0, kw_only=True, validator=_seconds)
    keylog_file: str | None = attrs.field(
        default=None, kw_only=True, converter=file_name, validator=_optional_path
    )

    def __attrs_post_init__(self) -> None:
        if self.key is not None and not isinstance(self.certificate, str):
            raise ValueError(f"key={self.key!r}: the certificate that was given brings its own")
        entries: Any = self.sni
        if not isinstance(entries, tuple):
            raise ValueError(f"sni={entries!r}: a mapping of server names to TlsSettings is right")
        lowered = []
        for name, entry in entries:
            low = name.lower().removesuffix(".") if isinstance(name, str) else ""
            if not _NAME.fullmatch(low):
                raise ValueError(
                    f"sni: {name!r} is no server name: example.com or *.example.com is right, an "
                    "international name as punycode"
                )
            if not isinstance(entry, TlsSettings):
                raise ValueError(f"sni: {name!r} leads to {entry!r}: TlsSettings are right")
            _check_entry(name, entry)
            lowered.append((low, entry))
        if len(dict(lowered)) != len(lowered):
            raise ValueError(f"sni={[name for name, _ in lowered]}: a name is there twice")
        object.__setattr__(self, "sni", tuple(lowered))

    @classmethod
    def self_signed(cls, *names: str) -> TlsSettings:
        """Return settings with a throw-away certificate, which no client trusts.

        Args:
          names: Host names and IP addresses; none for localhost, 127.0.0.1 and ::1.

        Raises:
          ValueError: the package that makes it is not installed.
        """
        try:
            trustme: Any = importlib.import_module("trustme")
        except ImportError as exc:
            raise ValueError(
                "a self-signed certificate needs trustme: "
                "python -m pip install 'trioproxy[selfsigned]'"
            ) from exc
        return cls(trustme.CA().issue_cert(*(names or SELF_SIGNED_NAMES)))


def _check_entry(name: str, entry: TlsSettings) -> None:
    """Refuse what cannot differ by server name: it is needed before the name is known."""
    fields = attrs.fields_dict(TlsSettings)
    for option in ("sni", "choose", "handshake_timeout", "keylog_file"):
        value = getattr(entry, option)
        if value != fields[option].default:
            raise ValueError(
                f"sni: {name!r}: {option}={value!r} cannot be set by server name: set it in the "
                "settings that have sni"
            )
