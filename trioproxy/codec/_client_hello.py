"""What a TLS client asks for, read before the handshake starts (RFC 8446 section 4.1.2).

OpenSSL can change a server's certificate in the middle of a handshake, but then keeps the first
one's verify mode and minimum version. So the server name is read here, OpenSSL starts with what
belongs to it, and gets the same bytes again. OpenSSL is the judge of everything else in them.
"""

from __future__ import annotations

import re

import attrs

#: What a ClientHello may take on the wire, in bytes.
MAX_HELLO = 65536
_RECORD = 16384
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS = 0, 16, 43
_NAME = re.compile(rb"[!-~]{1,255}")
_HTTP = re.compile(rb"[A-Z]+ ")


class NotTls(ValueError):
    """What came is no ClientHello."""


@attrs.frozen
class ClientHello:
    """What a client asks for.

    Attributes:
      server_name: The server's name in lower case, None where it names none.
      alpn: The protocols that it speaks, best first.
      versions: The TLS versions that it speaks, such as 0x0304.
    """

    server_name: str | None = None
    alpn: tuple[bytes, ...] = ()
    versions: tuple[int, ...] = ()


class HelloReader:
    """Takes the bytes of a connection until they are a ClientHello.

    Attributes:
      received: All bytes that were taken; OpenSSL wants them too.
    """

    __slots__ = ("_message", "_next", "received")

    def __init__(self) -> None:
        self.received = bytearray()
        self._message = bytearray()
        self._next = 0  # where the next record starts

    def feed(self, data: bytes) -> ClientHello | None:
        """Take bytes; return the ClientHello once it is complete.

        Raises:
          NotTls: it will never be one.
        """
        received = self.received
        received += data
        while len(received) - self._next >= 5:
            start = self._next
            size = int.from_bytes(received[start + 3 : start + 5])
            if received[start] != _HANDSHAKE or received[start + 1] != 3:
                raise NotTls(_what(received))
            if not 0 < size <= _RECORD:
                raise NotTls("a TLS record of a forbidden size")
            end = start + 5 + size
            if len(received) < end:
                break
            self._message += received[start + 5 : end]
            self._next = end
            hello = self._complete()
            if hello is not None:
                return hello
        # One wrong byte is enough: a client that speaks something else may wait for an answer.
        if received and self._next == 0 and received[0] != _HANDSHAKE:
            raise NotTls(_what(received))
        if len(received) >= MAX_HELLO:
            raise NotTls(f"a ClientHello of more than {MAX_HELLO} bytes")
        return None

    def _complete(self) -> ClientHello | None:
        message = self._message
        if message[0] != _CLIENT_HELLO:
            raise NotTls("a TLS handshake that does not start with a ClientHello")
        if len(message) < 4:
            return None
        size = int.from_bytes(message[1:4])
        if size > MAX_HELLO:
            raise NotTls(f"a ClientHello of more than {MAX_HELLO} bytes")
        if len(message) < 4 + size:
            return None
        return _parse(bytes(message[4 : 4 + size]))


def _what(received: bytearray) -> str:
    return "plain HTTP" if _HTTP.match(received) else "something that is no TLS"


class _Reader:
    """Cuts values off the front of some bytes."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise NotTls("a malformed ClientHello")
        self._at += size
        return data

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """Take bytes that their length precedes, in so many bytes."""
        return self.take(self.number(size))


def _parse(body: bytes) -> ClientHello:
    reader = _Reader(body)
    version = reader.number(2)
    reader.take(32)  # random
    reader.vector(1)  # session
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression methods
    extensions: dict[int, bytes] = {}
    if reader:
        rest = _Reader(reader.vector(2))
        while rest:
            kind = rest.number(2)
            if kind in extensions:
                raise NotTls("a ClientHello with an extension twice")
            extensions[kind] = rest.vector(2)
    if reader:
        raise NotTls("a malformed ClientHello")
    return ClientHello(
        server_name=_server_name(extensions.get(_SERVER_NAME)),
        alpn=_alpn(extensions.get(_ALPN)),
        versions=_versions(extensions.get(_SUPPORTED_VERSIONS), version),
    )


def _server_name(value: bytes | None) -> str | None:
    """Read RFC 6066 section 3: a list that has one name of the one kind there is."""
    if value is None:
        return None
    names = _Reader(_all(value, 2))
    kind, name = names.number(1), names.vector(2)
    if kind != 0 or names or not _NAME.fullmatch(name):
        raise NotTls("a malformed server name in a ClientHello")
    return name.decode().lower().removesuffix(".")


def _alpn(value: bytes | None) -> tuple[bytes, ...]:
    if value is None:
        return ()
    reader = _Reader(_all(value, 2))
    protocols = []
    while reader:
        protocols.append(reader.vector(1))
    return tuple(protocols)


def _versions(value: bytes | None, legacy: int) -> tuple[int, ...]:
    if value is None:
        return (legacy,)
    reader = _Reader(_all(value, 1))
    versions = []
    while reader:
        versions.append(reader.number(2))
    return tuple(versions)


def _all(value: bytes, size: int) -> bytes:
    """Return the one vector that a value consists of."""
    reader = _Reader(value)
    vector = reader.vector(size)
    if reader:
        raise NotTls("a malformed ClientHello")
    return vector
