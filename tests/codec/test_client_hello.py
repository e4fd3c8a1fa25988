from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioproxy.codec._client_hello import MAX_HELLO, ClientHello, HelloReader, NotTls


def openssl_hello(name: str | None = "Example.COM", alpn: tuple[str, ...] = ()) -> bytes:
    """Return what OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = openssl_hello(alpn=("h2", "http/1.1"))


def vector(data: bytes, size: int = 2) -> bytes:
    return len(data).to_bytes(size) + data


def body(*extensions: tuple[int, bytes], tail: bytes = b"", end: bytes = b"") -> bytes:
    start = b"\x03\x03" + b"r" * 32 + vector(b"", 1) + vector(b"\x13\x01") + vector(b"\0", 1)
    made = b"".join(kind.to_bytes(2) + vector(value) for kind, value in extensions)
    return start + vector(made + tail) + end


def message(data: bytes) -> bytes:
    return b"\x01" + vector(data, 3)


def record(data: bytes) -> bytes:
    return b"\x16\x03\x01" + vector(data)


def read(data: bytes) -> ClientHello | None:
    return HelloReader().feed(data)


def name_list(name: bytes) -> bytes:
    return vector(b"\0" + vector(name))


def test_what_openssl_sends_is_understood() -> None:
    hello = read(HELLO)
    assert hello is not None
    assert hello.server_name == "example.com"
    assert hello.alpn == (b"h2", b"http/1.1")
    assert 0x0304 in hello.versions
    assert 0x0303 in hello.versions


def test_what_is_not_asked_for_is_none() -> None:
    hello = read(openssl_hello(None))
    assert hello is not None
    assert hello.server_name is None
    assert hello.alpn == ()


def test_an_old_hello_without_extensions_is_one() -> None:
    hello = read(record(message(body()[:-2])))
    assert hello == ClientHello(versions=(0x0303,))


@settings(max_examples=settings().max_examples // 2)
@given(
    cuts=st.lists(st.integers(0, len(HELLO)), max_size=6),
    records=st.lists(st.integers(1, 300), max_size=6),
)
def test_the_pieces_do_not_matter(cuts: list[int], records: list[int]) -> None:
    rest, wire = HELLO[5:], b""
    for size in records:
        if rest[:size]:
            wire += record(rest[:size])
            rest = rest[size:]
    if rest:
        wire += record(rest)
    wire += b"early data"
    reader = HelloReader()
    found = None
    start = 0
    for end in [*sorted(cuts), len(wire)]:
        if found is None:
            found = reader.feed(wire[start:end])
            start = end
    assert found == read(HELLO)
    assert wire.startswith(reader.received)


def test_each_byte_alone_gives_the_same() -> None:
    reader = HelloReader()
    found = [reader.feed(HELLO[at : at + 1]) for at in range(len(HELLO))]
    assert found[:-1] == [None] * (len(HELLO) - 1)
    assert found[-1] == read(HELLO)
    assert reader.received == HELLO


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "plain HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "plain HTTP"),
        (b"G", "no TLS"),
        (b"\x80\x2e\x01\x03\x01", "no TLS"),
        (b"\x15\x03\x01\x00\x02\x01\x00", "no TLS"),
        (b"\x16\x02\x01\x00\x02", "no TLS"),
        (b"\x16\x03\x01\x00\x00", "forbidden size"),
        (b"\x16\x03\x01\x40\x01", "forbidden size"),
        (record(b"\x02\0\0\0"), "does not start"),
        (record(b"\x01\x01\x00\x01"), "more than"),
        (record(message(b"\x03\x03")), "malformed"),
        (record(message(body(tail=b"\0"))), "malformed"),
        (record(message(body(end=b"\0"))), "malformed"),
        (record(message(body((5, b""), (5, b"")))), "twice"),
        (record(message(body((0, b"")))), "malformed"),
        (record(message(body((0, name_list(b""))))), "malformed server name"),
        (record(message(body((0, name_list(b"a\0b"))))), "malformed server name"),
        (record(message(body((0, name_list("ä".encode()))))), "malformed server name"),
        (record(message(body((0, vector(b"\x01" + vector(b"a")))))), "malformed server name"),
        (record(message(body((0, vector(2 * (b"\0" + vector(b"a"))))))), "malformed server name"),
        (record(message(body((0, name_list(b"a") + b"x")))), "malformed"),
        (record(message(body((16, vector(b"\x05h2"))))), "malformed"),
        (record(message(body((43, vector(b"\x03", 1))))), "malformed"),
    ],
)
def test_what_is_no_hello_is_told_at_once(data: bytes, why: str) -> None:
    with pytest.raises(NotTls, match=why):
        read(data)


def test_a_hello_is_bounded() -> None:
    reader = HelloReader()
    piece = record(b"\0")
    assert reader.feed(record(b"\x01\x00\xff\xff")) is None
    for _ in range((MAX_HELLO - 9) // len(piece)):
        assert reader.feed(piece) is None
    with pytest.raises(NotTls, match="more than"):
        reader.feed(piece)


@given(st.binary(max_size=200), st.booleans())
def test_nothing_else_is_raised_whatever_comes(data: bytes, framed: bool) -> None:
    try:
        found = read(record(message(data)) if framed else data)
    except NotTls:
        return
    assert found is None or isinstance(found, ClientHello)


@given(st.integers(5, len(HELLO) - 1), st.integers(0, 255))
def test_nothing_else_is_raised_where_a_byte_is_wrong(at: int, value: int) -> None:
    data = bytearray(HELLO)
    data[at] = value
    try:
        found = read(bytes(data))
    except NotTls:
        return
    assert found is None or isinstance(found, ClientHello)
