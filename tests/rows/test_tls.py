"""Rows TLS-01 to TLS-09, as far as they are the transport's."""

from __future__ import annotations

import functools
import logging
import shutil
import ssl
import subprocess
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme

from tests._support.wire import WireEnd, wires
from trioproxy import ErrorType, ProxyError, TlsSettings
from trioproxy._info import ConnectionInfo
from trioproxy.transport._byte_stream import SLICE, StreamAdapter
from trioproxy.transport._tls import TlsStream, tls_client
from trioproxy.transport._tls_server import TlsAcceptor

CA = trustme.CA()
OTHER_CA = trustme.CA()
OPEN, GUARDED, MODERN = (CA.issue_cert(f"{name}.example") for name in ("open", "guarded", "modern"))
FRIEND = CA.issue_cert("friend@example.com", common_name="friend")
INFO = ConnectionInfo("192.0.2.1:443", "198.51.100.1:5000")
BOTH = ("h2", "http/1.1")
SETTINGS = TlsSettings(
    OPEN,
    sni={
        "guarded.example": TlsSettings(GUARDED, client_ca=CA),
        "modern.example": TlsSettings(MODERN, min_tls_version="1.3"),
    },
)


def client(
    *, alpn: list[str] | None = None, friend: bool = False, newest: str = "1.3"
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    CA.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(alpn)
    if friend:
        FRIEND.configure_cert(context)
    if newest == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@attrs.define
class Accepted:
    """What became of an accepted connection."""

    stream: TlsStream | None = None
    info: ConnectionInfo | None = None
    error: ProxyError | None = None

    async def run(self, acceptor: TlsAcceptor, wire: WireEnd) -> None:
        try:
            self.stream, self.info = await acceptor.accept(wire, INFO)
        except ProxyError as exc:
            self.error = exc


async def handshake(
    acceptor: TlsAcceptor, name: str | None, context: ssl.SSLContext
) -> tuple[TlsStream | ProxyError, Accepted]:
    """Connect; a client of TLS 1.3 learns of a refusal where it first reads."""
    one, two = wires()
    accepted = Accepted()
    told: TlsStream | ProxyError
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accepted.run, acceptor, two)
            try:
                told = await tls_client(one, context, name, timeout=20)
            except ProxyError as exc:
                told = exc
                one.close_now()
    return told, accepted


async def is_refused(acceptor: TlsAcceptor, name: str | None, context: ssl.SSLContext) -> bool:
    told, accepted = await handshake(acceptor, name, context)
    if isinstance(told, TlsStream):
        try:
            told.receive_ready()
        except ProxyError as exc:
            told = exc
    if accepted.error is None:
        assert not isinstance(told, ProxyError)
        return False
    # It was the server's verdict, of which it has told the client.
    assert isinstance(told, ProxyError)
    assert "alert" in str(told).lower()
    return True


# -- TLS-01 --------------------------------------------------------------------------------------

HTTP = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [HTTP],
        [HTTP[:1]],
        [b"\x16", b"\x02" + b"\0" * 10],
        [b"\0" * 70000],
        [b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"],
        [b"\x80\x2e\x01\x03\x01"],
    ],
    ids=["http", "one byte", "odd version", "zeros", "short hello", "ssl 2"],
)
async def test_tls_01_what_is_no_tls_is_closed_at_once_with_one_line(
    pieces: list[bytes], caplog: pytest.LogCaptureFixture, autojump_clock: object
) -> None:
    caplog.set_level(logging.DEBUG, "trioproxy")
    one, two = wires()
    accepted = Accepted()
    with trio.fail_after(30):
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accepted.run, TlsAcceptor(SETTINGS, BOTH), two)
            for piece in pieces:
                await trio.testing.wait_all_tasks_blocked()
                one.send_ready(piece)
        assert trio.current_time() == started
    assert two.closed
    assert accepted.error is not None
    assert accepted.error.etype == ErrorType.TLSHandshakeFailure
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info is None
    assert "\n" not in record.getMessage()
    assert "198.51.100.1:5000" in record.getMessage()


@pytest.mark.parametrize("sent", [0, 1, 100])
async def test_tls_01_a_handshake_that_stalls_is_closed_in_time(
    sent: int, caplog: pytest.LogCaptureFixture, autojump_clock: object
) -> None:
    caplog.set_level(logging.DEBUG, "trioproxy")
    outgoing = ssl.MemoryBIO()
    tls = client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="open.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    # The last one is a whole hello, whose answer the client never takes up.
    pieces = [hello[:sent]] if sent != 100 else [hello]
    one, two = wires()
    accepted = Accepted()
    with trio.fail_after(100):
        started = trio.current_time()
        one.send_ready(pieces[0])
        await accepted.run(TlsAcceptor(SETTINGS, BOTH), two)
        assert trio.current_time() - started == pytest.approx(10)
    assert two.closed
    assert accepted.error is not None
    assert accepted.error.etype == ErrorType.TLSHandshakeTimedout
    assert "10 s" in str(accepted.error)
    assert len(caplog.records) == 1


async def test_tls_01_a_dribbled_hello_does_not_stretch_the_time(autojump_clock: object) -> None:
    one, two = wires()
    accepted = Accepted()
    acceptor = TlsAcceptor(TlsSettings(OPEN, handshake_timeout=5), BOTH)
    with trio.fail_after(100):
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accepted.run, acceptor, two)
            for byte in b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4":
                one.send_ready(bytes([byte]))
                await trio.sleep(1)
        assert trio.current_time() - started == pytest.approx(9)
    assert accepted.error is not None
    assert accepted.error.etype == ErrorType.TLSHandshakeTimedout


async def test_tls_01_a_client_that_leaves_is_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "trioproxy")
    one, two = wires()
    one.close_now()
    accepted = Accepted()
    with trio.fail_after(10):
        await accepted.run(TlsAcceptor(SETTINGS, BOTH), two)
    assert accepted.error is not None
    assert two.closed
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.DEBUG, None)


# -- TLS-02 --------------------------------------------------------------------------------------


async def test_tls_02_a_name_with_client_certificates_lets_nobody_else_in() -> None:
    acceptor = TlsAcceptor(SETTINGS, BOTH)
    assert not await is_refused(acceptor, "open.example", client())
    assert await is_refused(acceptor, "guarded.example", client())
    assert not await is_refused(acceptor, "guarded.example", client(friend=True))
    assert await is_refused(acceptor, "guarded.example", client(newest="1.2"))


async def test_tls_02_a_name_s_minimum_version_holds() -> None:
    acceptor = TlsAcceptor(SETTINGS, BOTH)
    assert not await is_refused(acceptor, "open.example", client(newest="1.2"))
    assert await is_refused(acceptor, "modern.example", client(newest="1.2"))
    assert not await is_refused(acceptor, "modern.example", client())


async def test_tls_02_openssl_s_own_switch_would_let_everybody_in() -> None:
    # The reason for all this; if it ever fails, OpenSSL has changed.
    first = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    OPEN.configure_cert(first)
    second = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    GUARDED.configure_cert(second)
    CA.configure_trust(second)
    second.verify_mode = ssl.CERT_REQUIRED

    def switch(tls: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _c: ssl.SSLContext) -> None:
        tls.context = second

    first.sni_callback = switch
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = first.wrap_bio(to_server, to_client, server_side=True)
    stranger = client().wrap_bio(to_client, to_server, server_hostname="guarded.example")
    for _ in range(4):
        for end in (stranger, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert server.version()
    assert server.getpeercert() is None


@pytest.mark.parametrize(
    ("name", "authority", "serves"),
    [
        ("open.example", "open.example", True),
        ("open.example", "OPEN.example:443", True),
        ("open.example", "open.example.", True),
        ("open.example", "other.example", True),  # the default serves what nobody else does
        ("open.example", "192.0.2.1", True),
        ("open.example", "guarded.example", False),
        ("open.example", "GUARDED.example:8443", False),
        ("open.example", "guarded.example.", False),
        ("open.example", "modern.example", False),
        ("guarded.example", "guarded.example", True),
        ("guarded.example", "open.example", False),
        ("guarded.example", "192.0.2.1:443", False),
        ("guarded.example", "[2001:db8::1]:443", False),
        (None, "guarded.example", False),
        (None, "open.example", True),
        (None, "[::1]", True),
        (None, "", True),
    ],
)
async def test_tls_02_an_authority_of_another_entry_is_told(
    name: str | None, authority: str, serves: bool
) -> None:
    _, accepted = await handshake(TlsAcceptor(SETTINGS, BOTH), name, client(friend=True))
    assert accepted.info is not None
    assert accepted.info.serves is not None
    assert accepted.info.serves(authority) is serves


async def test_tls_02_names_that_share_their_settings_share_a_connection() -> None:
    shared = TlsSettings(GUARDED, client_ca=CA)
    settings = TlsSettings(OPEN, sni={"a.example": shared, "*.b.example": shared})
    _, accepted = await handshake(TlsAcceptor(settings, BOTH), "a.example", client(friend=True))
    assert accepted.info is not None
    assert accepted.info.serves is not None
    assert accepted.info.serves("x.b.example")
    assert not accepted.info.serves("b.example")


async def test_tls_02_one_entry_serves_whatever_is_asked_for() -> None:
    _, accepted = await handshake(TlsAcceptor(TlsSettings(OPEN), BOTH), "x.example", client())
    assert accepted.info is not None
    assert accepted.info.serves is None


async def test_tls_02_entries_that_a_function_makes_are_told_apart_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def choose(name: str | None) -> Any:
        if name == "broken.example":
            raise LookupError(name)
        if name in ("a.example", "b.example"):
            return TlsSettings(GUARDED, alpn=["http/1.1"])  # a new one each time, of equal value
        if name == "c.example":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            MODERN.configure_cert(context)
            return context
        return None

    acceptor = TlsAcceptor(TlsSettings(OPEN, choose=choose), BOTH)
    _, accepted = await handshake(acceptor, "a.example", client())
    assert accepted.info is not None
    assert accepted.info.serves is not None
    serves = accepted.info.serves
    assert [serves(f"{each}.example") for each in "abcd"] == [True, True, False, False]
    assert not serves("broken.example")
    _, accepted = await handshake(acceptor, "c.example", client())
    assert accepted.info is not None
    assert accepted.info.serves is not None
    assert accepted.info.serves("c.example")
    assert not accepted.info.serves("a.example")


# -- TLS-03 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", ["1.2", "1.3"])
@pytest.mark.parametrize("guarded", [True, False])
async def test_tls_03_no_tickets_where_a_name_wants_client_certificates(
    newest: str, guarded: bool
) -> None:
    settings = SETTINGS if guarded else TlsSettings(OPEN)
    context = client(friend=True, newest=newest)
    told, _ = await handshake(TlsAcceptor(settings, BOTH), "open.example", context)
    assert isinstance(told, TlsStream)
    assert told.receive_ready() is None
    session = told._object.session
    assert (session is not None and session.has_ticket) is not guarded


@pytest.mark.parametrize("newest", ["1.2", "1.3"])
async def test_tls_03_a_session_of_one_name_opens_no_other(newest: str) -> None:
    acceptor = TlsAcceptor(
        TlsSettings(OPEN, sni={"guarded.example": TlsSettings(GUARDED, client_ca=CA)}), BOTH
    )
    context = client(newest=newest)  # no certificate
    told, _ = await handshake(acceptor, "open.example", context)
    assert isinstance(told, TlsStream)
    told.receive_ready()
    session = told._object.session
    one, two = wires()
    accepted = Accepted()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="guarded.example", session=session)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accepted.run, acceptor, two)
            while not two.closed:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    one.end()
                one.send_ready(outgoing.read())
                await trio.testing.wait_all_tasks_blocked()
                incoming.write(one.receive_ready() or b"")
    assert accepted.error is not None
    assert not tls.session_reused


# -- TLS-04 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoken", "offered", "agreed"),
    [
        (BOTH, ["h2", "http/1.1"], "h2"),
        (BOTH, ["http/1.1"], "http/1.1"),
        (BOTH, ["h3"], None),  # HTTP/1.1 goes without
        (BOTH, None, None),
        (("http/1.1",), ["h2", "http/1.1"], "http/1.1"),
        (("http/1.1",), ["h2"], None),
        (("h2",), ["h2", "http/1.1"], "h2"),
    ],
)
async def test_tls_04_a_common_protocol_is_found_or_http_1_spoken(
    spoken: tuple[str, ...], offered: list[str] | None, agreed: str | None
) -> None:
    acceptor = TlsAcceptor(SETTINGS, spoken)
    told, accepted = await handshake(acceptor, "open.example", client(alpn=offered))
    assert isinstance(told, TlsStream)
    assert accepted.stream is not None
    assert told.alpn == accepted.stream.alpn == agreed


@pytest.mark.parametrize("offered", [None, ["http/1.1"], ["h3"]])
async def test_tls_04_without_http_1_a_client_of_nothing_common_is_refused(
    offered: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trioproxy")
    acceptor = TlsAcceptor(SETTINGS, ("h2",))
    told, accepted = await handshake(acceptor, "open.example", client(alpn=offered))
    assert isinstance(told, ProxyError)
    assert "no application protocol" in str(told).replace("_", " ").lower()
    assert accepted.error is not None
    assert accepted.error.etype == ErrorType.TLSHandshakeFailure
    assert "no common protocol" in caplog.text


@pytest.mark.parametrize(
    ("spoken", "allowed"), [(("h2",), []), (("h2",), ["http/1.1"]), (("http/1.1",), ["h2"])]
)
async def test_tls_04_a_context_of_the_user_s_adds_no_protocol(
    spoken: tuple[str, ...], allowed: list[str]
) -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    OPEN.configure_cert(own)
    if allowed:
        own.set_alpn_protocols(allowed)
    acceptor = TlsAcceptor(TlsSettings(OPEN, choose=lambda _name: own), spoken)
    _, accepted = await handshake(acceptor, "open.example", client(alpn=list(BOTH)))
    assert accepted.error is not None
    assert "not spoken here" in str(accepted.error)


# -- TLS-05 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2]
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_05_old_versions_are_refused(version: ssl.TLSVersion) -> None:
    context = client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    refused = await is_refused(TlsAcceptor(SETTINGS, BOTH), "open.example", context)
    assert refused is (version < ssl.TLSVersion.TLSv1_2)


async def test_tls_05_every_context_is_without_compression_and_renegotiation() -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.options &= ~(ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION)
    OPEN.configure_cert(own)
    acceptor = TlsAcceptor(
        attrs.evolve(SETTINGS, choose=lambda name: own if name == "own.example" else None), BOTH
    )
    for name in ("open.example", "guarded.example", "own.example"):
        for newest in ("1.2", "1.3"):
            _, accepted = await handshake(acceptor, name, client(friend=True, newest=newest))
            assert accepted.stream is not None
            tls = accepted.stream._object
            assert tls.compression() is None
            assert tls.context.options & ssl.OP_NO_COMPRESSION
            assert tls.context.options & ssl.OP_NO_RENEGOTIATION
            assert tls.context.minimum_version >= ssl.TLSVersion.TLSv1_2


async def test_tls_05_ciphers_have_forward_secrecy_and_authenticated_encryption() -> None:
    context = client(newest="1.2")
    context.set_ciphers("ECDHE+AES128:RSA+AES128:@SECLEVEL=0")
    _, accepted = await handshake(TlsAcceptor(SETTINGS, BOTH), "open.example", context)
    assert accepted.info is not None
    assert accepted.info.tls is not None
    assert "GCM" in accepted.info.tls.cipher
    weak = client(newest="1.2")
    weak.set_ciphers("AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0")
    assert await is_refused(TlsAcceptor(SETTINGS, BOTH), "open.example", weak)


# -- TLS-06, TLS-07, TLS-09 ----------------------------------------------------------------------


@attrs.frozen
class Open:
    client: TlsStream
    server: TlsStream
    client_wire: WireEnd
    server_wire: WireEnd


async def opened(newest: str = "1.3") -> Open:
    told, accepted = await handshake(
        TlsAcceptor(SETTINGS, BOTH), "open.example", client(newest=newest)
    )
    assert isinstance(told, TlsStream)
    assert accepted.stream is not None
    ends: list[Any] = [told._inner, accepted.stream._inner]
    return Open(told, accepted.stream, *ends)


@pytest.mark.parametrize("newest", ["1.2", "1.3"])
@pytest.mark.parametrize("cut", [1, 3, 10, None])
async def test_tls_06_a_cut_is_told_from_an_end_wherever_it_falls(
    newest: str, cut: int | None
) -> None:
    made = await opened(newest)
    with trio.fail_after(10):
        await made.client.send_parts([b"all of it"], 5)
        await made.client.send_eof()
        if cut is not None:
            del made.server_wire.unread[-cut:]
        made.client_wire.end()
        assert await made.server.receive_some() == b"all of it"
        if cut is None:
            assert await made.server.receive_some() == b""
        else:
            with pytest.raises(ProxyError, match="close_notify"):
                await made.server.receive_some()


@pytest.mark.parametrize("room", [0, 10, 1000])
async def test_tls_07_closing_never_waits(room: int) -> None:
    made = await opened()
    made.server_wire.room = len(made.client_wire.unread) + room
    made.server.close_now()
    assert made.server_wire.closed
    with trio.fail_after(10):
        if room == 1000:
            assert await made.client.receive_some() == b""
        else:
            with pytest.raises(ProxyError, match="close_notify"):
                await made.client.receive_some()


async def test_tls_07_an_end_that_nobody_takes_is_given_up_in_a_second(
    autojump_clock: object,
) -> None:
    made = await opened()
    made.server_wire.room = 0
    with trio.fail_after(10):
        started = trio.current_time()
        await made.server.send_eof()
        assert trio.current_time() - started == pytest.approx(1)
        made.server.close_now()


async def test_tls_09_half_a_record_is_never_followed_by_another() -> None:
    made = await opened()
    made.client_wire.room = 1000
    with trio.fail_after(10):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.client.send_parts, [b"x" * 100000], 5)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        made.client_wire.room = float("inf")
        with pytest.raises(ProxyError) as caught:
            await made.client.send_parts([b"more"], 5)
        assert caught.value.etype == ErrorType.WriteError
        made.client.close_now()
        with pytest.raises(ProxyError, match="close_notify"):
            await made.server.receive_some()


class Telling(StreamAdapter):
    """Tells when bytes have come."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self.came = trio.Event()

    async def receive_some(self, max_bytes: int = SLICE) -> bytes:
        data = await super().receive_some(max_bytes)
        self.came.set()
        return data


@pytest.mark.interop
@pytest.mark.socket
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
async def test_tls_05_a_client_that_renegotiates_is_told_no() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, listener:
            run = functools.partial(trio.run_process, command, check=False)
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = await nursery.start(functools.partial(run, stderr=subprocess.STDOUT, **pipes))
            inner = Telling(await listener.accept())
            stream, _ = await TlsAcceptor(SETTINGS, BOTH).accept(inner, INFO)
            inner.came = trio.Event()
            await process.stdin.send_all(b"R\n")
            async with trio.open_nursery() as reading:
                reading.start_soon(stream.receive_some)
                await inner.came.wait()
                await trio.testing.wait_all_tasks_blocked()
                reading.cancel_scope.cancel()
            assert stream._outgoing.pending  # the answer goes out with the next write
            await stream.send_parts([b"content"], 5)
            told = b""
            async for piece in process.stdout:
                told += piece
            stream.close_now()
    assert b"no renegotiation" in told
