r"""The PROXY protocol, versions 1 and 2: bytes to a `ProxyHeader` and back.

Version 1 is a line of text (section 2.1 of HAProxy's ``proxy-protocol.txt``)::

    PROXY TCP4 192.0.2.1 192.0.2.9 50000 443\r\n

Version 2 is binary (section 2.2): a signature, version and command, family and transport, a length,
two addresses, and then values of many kinds, each with its type and length (TLV). Whoever accepts a
header believes it, so nothing is read into what is not exactly one: an unknown command, a value that
ends behind the header, a value given twice and a wrong checksum are all refused.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import struct
from collections.abc import Container, Iterator

from .._networks import address_of
from .._peer import host_and_port
from .._proxy_header import ProxyHeader, ProxyTls, Tlvs

#: The longest line of version 1, its end included.
MAX_LINE = 107
#: The longest header of version 2 that is read; its length field could say 65,551 bytes.
MAX_BYTES = 4096
MAX_UNIQUE_ID = 128

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LINE = b"PROXY "
_UNKNOWN = b"PROXY UNKNOWN\r\n"
_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_INET = struct.Struct("!4s4sHH")
_INET6 = struct.Struct("!16s16sHH")
_PATHS = struct.Struct("!108s108s")
_DATAGRAMS = (0x12, 0x22, 0x32)
_TLV = struct.Struct("!BH")
_SSL = struct.Struct("!BI")

_ALPN, _AUTHORITY, _CRC32C, _NOOP, _UNIQUE_ID, _TYPE_SSL, _NETNS = 1, 2, 3, 4, 5, 0x20, 0x30
_SSL_VERSION, _SSL_CN, _SSL_CIPHER, _SSL_SIG_ALG, _SSL_KEY_ALG = 0x21, 0x22, 0x23, 0x24, 0x25

#: Types that a header has once at most, and those within its SSL value with what they are.
_ONCE = frozenset({_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _TYPE_SSL, _NETNS})
_OF_TLS = {
    _SSL_VERSION: ("version", "ascii"),
    _SSL_CN: ("common_name", "utf-8"),
    _SSL_CIPHER: ("cipher", "ascii"),
    _SSL_SIG_ALG: ("sig_alg", "ascii"),
    _SSL_KEY_ALG: ("key_alg", "ascii"),
}

_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_ENDPOINT = re.compile(r"(\[[^]]+\]|[0-9.]+):([0-9]{1,5})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


class ProxyHeaderError(ValueError):
    """What came is no PROXY header, or none that can be accepted."""


# -- reading -------------------------------------------------------------------------------------


class ProxyHeaderReader:
    """Reads one header from the first bytes of a connection, however they are cut."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """Start at a connection's first byte.

        Args:
          max_bytes: The longest header of version 2 that is accepted.
        """
        self._max_bytes = max_bytes
        self._received = bytearray()
        #: What was fed beyond the header.
        self.rest = b""

    @property
    def started(self) -> bool:
        """Whether anything was fed."""
        return bool(self._received)

    def feed(self, data: bytes) -> ProxyHeader | None:
        """Take the next bytes; return the header where it is whole, None where more is needed.

        Raises:
          ProxyHeaderError: it is none, which the very first bytes tell where something else speaks,
            or none that can be accepted.
        """
        received = self._received
        received += data
        if SIGNATURE.startswith(received[: len(SIGNATURE)]):
            size = self._binary_size()
        elif _LINE.startswith(received[: len(_LINE)]):
            size = self._line_size()
        else:
            raise ProxyHeaderError(f"no PROXY header, but {bytes(received[:16])!r}")
        if size is None or len(received) < size:
            return None
        header = bytes(received[:size])
        self.rest = bytes(received[size:])
        return _read_line(header[:-2]) if header[:1] == b"P" else _read_binary(header)

    def _line_size(self) -> int | None:
        """Return how long the line is, None where its end has not come."""
        # A lone LF or CR ends no line, and everything before the end has to be text.
        at = self._received.find(b"\n", 0, MAX_LINE)
        if at > 0 and self._received[at - 1] == 0x0D:
            return at + 1
        if at >= 0:
            raise ProxyHeaderError("a PROXY line that ends without a CR")
        if len(self._received) >= MAX_LINE:
            raise ProxyHeaderError(f"a PROXY line of more than {MAX_LINE} bytes")
        return None

    def _binary_size(self) -> int | None:
        """Return how long the header is, None where it does not say yet."""
        if len(self._received) < _HEAD.size:
            return None
        size: int = _HEAD.size + _HEAD.unpack_from(self._received)[3]
        if size > self._max_bytes:
            raise ProxyHeaderError(
                f"a PROXY header of {size} bytes, where {self._max_bytes} are allowed"
            )
        return size


def _read_line(line: bytes) -> ProxyHeader:
    parts = line.split(b" ")
    family = parts[1]
    if family == b"UNKNOWN":  # what stands behind it means nothing
        return ProxyHeader(version=1)
    if family not in (b"TCP4", b"TCP6"):
        raise ProxyHeaderError(f"a PROXY line for {family!r}, not TCP4, TCP6 or UNKNOWN")
    if len(parts) != 6:
        raise ProxyHeaderError("a PROXY line that has not two addresses and two ports")
    source, destination = (_read_address(part, family) for part in parts[2:4])
    source_port, destination_port = (_read_port(part) for part in parts[4:])
    return ProxyHeader(
        version=1,
        source=_text_of(source, source_port),
        destination=_text_of(destination, destination_port),
    )


def _read_address(text: bytes, family: bytes) -> _Ip:
    try:
        if b"%" not in text:  # a zone means something on the proxy's machine alone
            decoded = text.decode("ascii")
            if family == b"TCP4":
                return ipaddress.IPv4Address(decoded)
            return ipaddress.IPv6Address(decoded)
    except ValueError:
        pass
    raise ProxyHeaderError(f"a PROXY line with {text!r} for an address of {family.decode()}")


def _read_port(text: bytes) -> int:
    if _PORT.fullmatch(text) and int(text) <= 65535:
        return int(text)
    raise ProxyHeaderError(f"a PROXY line with {text!r} for a port")


def _text_of(address: _Ip, port: int) -> str:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return f"[::ffff:{address.ipv4_mapped}]:{port}"  # as the system would write it
    return host_and_port(str(address), port)


def _read_binary(header: bytes) -> ProxyHeader:
    _, command, family, _ = _HEAD.unpack_from(header)
    if command == _LOCAL:  # all that follows is to be passed over
        return ProxyHeader(local=True)
    if command != _PROXY:
        raise ProxyHeaderError(f"a PROXY header of version and command {command:#04x}")
    source: str | None = None
    destination: str | None = None
    start = _HEAD.size
    try:
        if family == _TCP4:
            one, two, port, port_two = _INET.unpack_from(header, start)
            source = _text_of(ipaddress.IPv4Address(one), port)
            destination = _text_of(ipaddress.IPv4Address(two), port_two)
            start += _INET.size
        elif family == _TCP6:
            one, two, port, port_two = _INET6.unpack_from(header, start)
            source = _text_of(ipaddress.IPv6Address(one), port)
            destination = _text_of(ipaddress.IPv6Address(two), port_two)
            start += _INET6.size
        elif family == _UNIX:
            source, destination = map(_read_path, _PATHS.unpack_from(header, start))
            start += _PATHS.size
        elif family in _DATAGRAMS:
            raise ProxyHeaderError("a PROXY header for datagrams, which no HTTP here comes in")
        elif family != _UNSPEC:
            raise ProxyHeaderError(f"a PROXY header for family and transport {family:#04x}")
    except struct.error:
        raise ProxyHeaderError("a PROXY header too short for its addresses") from None
    return _read_values(header, start, source, destination)


def _read_path(padded: bytes) -> str | None:
    path = padded.partition(b"\0")[0]  # an abstract name is as good as none: it is no path
    return f"unix:{_read_text(path, 'utf-8', 'the path of a socket')}" if path else None


def _read_text(value: bytes, encoding: str, what: str) -> str:
    """Return text that may be logged as it is."""
    try:
        text = value.decode(encoding)
    except ValueError:
        raise ProxyHeaderError(f"a PROXY header with {what} that is not {encoding}") from None
    if _CONTROL.search(text):
        raise ProxyHeaderError(f"a PROXY header with control characters in {what}")
    return text


def _walk(data: bytes, once: Container[int]) -> Iterator[tuple[int, int, bytes]]:
    """Return each value's type, its place and its bytes; refuse a type that comes twice."""
    at, seen = 0, set()
    while at < len(data):
        if len(data) - at < _TLV.size:
            raise ProxyHeaderError("a PROXY header that ends within a value")
        kind, size = _TLV.unpack_from(data, at)
        at += _TLV.size
        if size > len(data) - at:
            raise ProxyHeaderError("a PROXY header with a value that is longer than it")
        if kind in seen and kind in once:
            raise ProxyHeaderError(f"a PROXY header with two values of type {kind:#04x}")
        seen.add(kind)
        yield kind, at, data[at : at + size]
        at += size


def _read_values(
    header: bytes, start: int, source: str | None, destination: str | None
) -> ProxyHeader:
    found: dict[int, bytes] = {}
    others: list[tuple[int, bytes]] = []
    for kind, at, value in _walk(header[start:], _ONCE):
        if kind == _CRC32C:
            _check(header, start + at, value)
        elif kind in _ONCE:
            found[kind] = value
        elif kind != _NOOP:
            others.append((kind, value))
    unique_id = found.get(_UNIQUE_ID)
    if unique_id is not None and len(unique_id) > MAX_UNIQUE_ID:
        raise ProxyHeaderError(
            f"a PROXY header with a unique id of {len(unique_id)} bytes, above {MAX_UNIQUE_ID}"
        )
    authority, netns, tls = found.get(_AUTHORITY), found.get(_NETNS), found.get(_TYPE_SSL)
    return ProxyHeader(
        source=source,
        destination=destination,
        alpn=found.get(_ALPN),
        authority=None if authority is None else _read_text(authority, "utf-8", "its authority"),
        unique_id=unique_id,
        tls=None if tls is None else _read_tls(tls),
        netns=None if netns is None else _read_text(netns, "ascii", "its namespace"),
        others=tuple(others),
    )


def _read_tls(value: bytes) -> ProxyTls:
    if len(value) < _SSL.size:
        raise ProxyHeaderError(f"a PROXY header with an SSL value of {len(value)} bytes")
    client, verify = _SSL.unpack_from(value)
    found: dict[str, str] = {}
    others: list[tuple[int, bytes]] = []
    for kind, _, part in _walk(value[_SSL.size :], _OF_TLS):
        if kind in _OF_TLS:
            name, encoding = _OF_TLS[kind]
            found[name] = _read_text(part, encoding, f"the {name} of its SSL value")
        else:
            others.append((kind, part))
    return ProxyTls(client=client, verify=verify, others=tuple(others), **found)


def _check(header: bytes, at: int, value: bytes) -> None:
    """Compare the checksum, which is over the whole header with zeros in its own place."""
    if len(value) != 4:
        raise ProxyHeaderError(f"a PROXY header with a checksum of {len(value)} bytes")
    if crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(value, "big"):
        raise ProxyHeaderError("a PROXY header whose checksum is wrong")


@functools.cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """Return the CRC32c of bytes (RFC 4960 appendix B)."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# -- writing -------------------------------------------------------------------------------------


def encode_proxy_header(header: ProxyHeader) -> bytes:
    """Return a header's bytes.

    Addresses of which one is IPv4 and the other IPv6 are both written as IPv6. Where they are of
    other kinds, or not both known, none is written (UNKNOWN, AF_UNSPEC); version 1 knows no unix
    sockets, and nothing but addresses.

    Raises:
      ValueError: a value is too long for its field, or the header longer than `MAX_BYTES`.
    """
    if header.version == 1:
        return _write_line(header)
    if header.local:
        return _HEAD.pack(SIGNATURE, _LOCAL, _UNSPEC, 0)
    family, addresses = _write_addresses(header.source, header.destination)
    body = addresses + _write_values(header)
    if _HEAD.size + len(body) > MAX_BYTES:
        raise ValueError(
            f"a PROXY header of {_HEAD.size + len(body)} bytes: at most {MAX_BYTES} are right"
        )
    return _HEAD.pack(SIGNATURE, _PROXY, family, len(body)) + body


def _write_line(header: ProxyHeader) -> bytes:
    pair = _ip_pair(header.source, header.destination)
    if header.local or pair is None:
        return _UNKNOWN
    (source, source_port), (destination, destination_port) = pair
    family = "TCP4" if source.version == 4 else "TCP6"
    line = f"PROXY {family} {source} {destination} {source_port} {destination_port}\r\n"
    return line.encode("ascii")


def _write_addresses(source: str | None, destination: str | None) -> tuple[int, bytes]:
    pair = _ip_pair(source, destination)
    if pair is not None:
        (one, port), (two, port_two) = pair
        if one.version == 4:
            return _TCP4, _INET.pack(one.packed, two.packed, port, port_two)
        return _TCP6, _INET6.pack(one.packed, two.packed, port, port_two)
    paths = [_path_of(text) for text in (source, destination)]
    if any(paths) and None not in paths:
        return _UNIX, _PATHS.pack(*paths)
    return _UNSPEC, b""


def _ip_pair(
    source: str | None, destination: str | None
) -> tuple[tuple[_Ip, int], tuple[_Ip, int]] | None:
    """Return both addresses, of one family; None where they are no IP addresses with ports."""
    found: list[tuple[_Ip, int]] = []
    for text in (source, destination):
        match = None if text is None else _ENDPOINT.fullmatch(text)
        address = None if match is None else address_of(match[1])
        if match is None or address is None or int(match[2]) > 65535:
            return None
        found.append((address, int(match[2])))
    (one, port), (two, port_two) = found
    if one.version != two.version:
        one, two = _mapped(one), _mapped(two)
    return (one, port), (two, port_two)


def _mapped(address: _Ip) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(0xFFFF << 32 | int(address))


def _path_of(text: str | None) -> bytes | None:
    """Return the path of a unix socket, empty for an unnamed one; None where there is none."""
    if text is None:
        return b""
    path = text.removeprefix("unix:").encode("utf-8", "surrogateescape")
    return path if text.startswith("unix:") and len(path) <= 108 and b"\0" not in path else None


def _write_values(header: ProxyHeader) -> bytes:
    if header.unique_id is not None and len(header.unique_id) > MAX_UNIQUE_ID:
        raise ValueError(f"unique_id={header.unique_id!r}: at most {MAX_UNIQUE_ID} bytes are right")
    values: list[tuple[int, bytes | None]] = [
        (_ALPN, header.alpn),
        (_AUTHORITY, None if header.authority is None else header.authority.encode("utf-8")),
        (_UNIQUE_ID, header.unique_id),
        (_TYPE_SSL, None if header.tls is None else _write_tls(header.tls)),
        (_NETNS, None if header.netns is None else header.netns.encode("ascii")),
        *header.others,
    ]
    return _join(values)


def _write_tls(tls: ProxyTls) -> bytes:
    values: list[tuple[int, bytes | None]] = []
    for kind, (name, encoding) in _OF_TLS.items():
        text: str | None = getattr(tls, name)
        values.append((kind, None if text is None else text.encode(encoding)))
    return _SSL.pack(tls.client, tls.verify) + _join([*values, *tls.others])


def _join(values: list[tuple[int, bytes | None]] | Tlvs) -> bytes:
    try:
        return b"".join(
            _TLV.pack(kind, len(value)) + value for kind, value in values if value is not None
        )
    except struct.error as exc:
        raise ValueError(f"a PROXY header with a value that does not fit: {exc}") from None
