"""Patterns of hosts and paths, by which requests are told apart."""

from __future__ import annotations

import re
from typing import Final

import attrs

from .._messages import RequestHeader
from ._framing import valid_host

_PORTS: Final = {"http": 80, "https": 443}
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
# RFC 3986 section 2.3
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def split_authority(authority: str) -> tuple[str, int | None]:
    """Return host and port of an authority: in lower case, without a last dot, None for no port."""
    host, _, digits = authority.rpartition(":")
    if not digits.isdigit() or (":" in host and not host.endswith("]")):
        host, digits = authority.removesuffix(":"), ""
    return host.lower().removesuffix("."), int(digits) if digits else None


def normal_path(target: bytes) -> bytes:
    """Return a target's path as it is compared (RFC 3986 section 6.2.2).

    Escapes of unreserved characters are undone, dot segments are removed, several slashes count as
    one.
    """
    path = target.partition(b"?")[0]
    if b"%" in path:
        path = _ESCAPE.sub(_unescaped, path)
    if b"/." not in path and b"//" not in path:
        return path
    segments: list[bytes] = []
    parts = path.split(b"/")
    for part in parts:
        if part == b"..":
            if segments:
                segments.pop()
        elif part not in (b".", b""):
            segments.append(part)
    below = b"/" if segments and parts[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(segments) + below


def _unescaped(match: re.Match[bytes]) -> bytes:
    byte = int(match[1], 16)
    return bytes([byte]) if byte in _UNRESERVED else match[0].upper()


@attrs.frozen
class Pattern:
    """A host, perhaps all names below one, perhaps with a port, and a path with what lies below it.

    Attributes:
      host: The name or address in lower case, ``.name`` for all names below one, or nothing for any.
      port: The port, None for any.
      path: The path without a last slash; nothing for any.
    """

    host: str
    port: int | None
    path: bytes

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``HOST``, ``HOST:PORT``, ``HOST/PATH`` or ``/PATH``.

        Raises:
          ValueError: it is none of these.
        """
        wrong = ValueError(
            f"{text!r} is not a pattern: host, *.name, host:port, host/path or /path is right"
        )
        if not text or not text.isascii():
            raise wrong
        authority, slash, path = text.partition("/")
        if "://" in text or any(char in path for char in "?#\\ *"):
            raise wrong
        host, port = split_authority(authority)
        if host.startswith("*."):
            host = host[1:]
        if "*" in host or (host and not valid_host(host.lstrip(".").encode("ascii"))):
            raise wrong
        if (authority and not host) or (port is not None and not 0 < port < 65536):
            raise wrong
        normal = normal_path(f"/{path}".encode("ascii")).rstrip(b"/") if slash else b""
        return cls(host, port, normal)

    def __str__(self) -> str:
        host = f"*{self.host}" if self.host.startswith(".") else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{host}{port}{self.path.decode('ascii')}" or "/"

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """What patterns are sorted by: the most specific one first."""
        if not self.host:
            kind = 2
        else:
            kind = 1 if self.host.startswith(".") else 0
        return kind, -len(self.host), self.port is None, -len(self.path)

    def matches(self, request: RequestHeader) -> bool:
        """Tell whether a request is meant."""
        if self.host or self.port is not None:
            host, port = split_authority(request.authority)
            if self.port is not None and self.port != (port or _PORTS.get(request.scheme)):
                return False
            if self.host.startswith("."):
                if not host.endswith(self.host) or host == self.host:
                    return False
            elif self.host and host != self.host:
                return False
        if not self.path:
            return True
        path = normal_path(request.target)
        return path == self.path or path.startswith(self.path + b"/")
