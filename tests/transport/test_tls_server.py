from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme

from tests._support.wire import WireEnd, wires
from trioproxy import ErrorType, ProxyError, TlsSettings
from trioproxy._info import ConnectionInfo
from trioproxy.transport._tls import TlsStream, tls_client
from trioproxy.transport._tls_server import TlsAcceptor

CA = trustme.CA()
A, B, WILD = (CA.issue_cert(name) for name in ("a.example", "b.example", "*.c.example"))
BOTH = ("h2", "http/1.1")
INFO = ConnectionInfo("192.0.2.1:443", "198.51.100.1:5000")


def client(**options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    CA.configure_trust(context)
    for option, value in options.items():
        if option == "alpn":
            context.set_alpn_protocols(value)
        else:
            setattr(context, option, value)
    return context


CLIENT = client(alpn=["h2", "http/1.1"])


@attrs.frozen
class Met:
    """Both ends of a connection; an end that failed has None."""

    client: TlsStream | None
    server: TlsStream | None
    info: ConnectionInfo | None
    client_error: ProxyError | None
    server_error: ProxyError | None
    client_wire: WireEnd
    server_wire: WireEnd

    @property
    def served(self) -> str:
        """The names of the certificate that the client got."""
        assert self.client is not None
        told: Any = self.client._object.getpeercert()
        return ",".join(value for _, value in told["subjectAltName"])


async def meet(
    acceptor: TlsAcceptor, name: str | None = "a.example", context: ssl.SSLContext = CLIENT
) -> Met:
    one, two = wires()
    result: dict[str, Any] = dict.fromkeys(["client", "server", "client_error", "server_error"])
    result["info"] = None

    async def accept() -> None:
        try:
            result["server"], result["info"] = await acceptor.accept(two, INFO)
        except ProxyError as exc:
            result["server_error"] = exc

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            try:
                result["client"] = await tls_client(one, context, name, timeout=20)
            except ProxyError as exc:
                result["client_error"] = exc
                one.close_now()
    return Met(**result, client_wire=one, server_wire=two)


# -- choosing by name ----------------------------------------------------------------------------

SNI = {
    "b.example": TlsSettings(B),
    "*.c.example": TlsSettings(WILD),
    "b.c.example": TlsSettings(B),
}


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("a.example", "a.example"),
        ("b.example", "b.example"),
        ("B.EXAMPLE", "b.example"),
        ("x.c.example", "*.c.example"),
        ("b.c.example", "b.example"),  # a name goes before a pattern
        ("x.y.c.example", "a.example"),
        ("c.example", "a.example"),
        ("other.example", "a.example"),
        ("localhost", "a.example"),
        (None, "a.example"),
    ],
)
async def test_the_certificate_goes_by_the_name(name: str | None, served: str) -> None:
    met = await meet(TlsAcceptor(TlsSettings(A, sni=SNI), BOTH), name)
    assert met.served == served
    assert met.info is not None
    assert met.info.secure
    assert met.info.peer == INFO.peer
    assert met.info.tls is not None
    assert met.server is not None
    assert met.info.tls is met.server.tls
    assert met.info.tls.sni == (None if name is None else name.lower())
    assert met.info.tls.alpn == "h2"


async def test_the_function_goes_before_the_names() -> None:
    asked = []
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.minimum_version = ssl.TLSVersion.TLSv1_2
    B.configure_cert(own)
    wild = TlsSettings(WILD)

    def choose(name: str | None) -> Any:
        asked.append(name)
        return {"own.example": own, "wild.example": wild}.get(name or "")

    acceptor = TlsAcceptor(TlsSettings(A, sni=SNI, choose=choose), BOTH)
    for name, served in [
        ("own.example", "b.example"),
        ("wild.example", "*.c.example"),
        ("wild.example", "*.c.example"),
        ("b.example", "b.example"),
        (None, "a.example"),
    ]:
        assert (await meet(acceptor, name)).served == served
    assert asked == ["own.example", "wild.example", "wild.example", "b.example", None]
    assert list(acceptor._chosen) == [wild]
    assert own.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize(
    ("choose", "told"),
    [
        (lambda _name: 1 / 0, "division by zero"),
        (lambda _name: "cert.pem", "ssl.SSLContext or None is right"),
        (lambda _name: TlsSettings("/nowhere.pem"), "certificate='/nowhere.pem'"),
    ],
)
async def test_a_function_that_fails_costs_the_handshake_alone(
    choose: Callable[[str | None], Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    met = await meet(TlsAcceptor(TlsSettings(A, choose=choose), BOTH))
    assert met.server_error is not None
    assert met.server_error.etype == ErrorType.TLSHandshakeFailure
    assert met.server_wire.closed
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert told in (record.exc_text or "") + record.getMessage()


async def test_contexts_are_made_once() -> None:
    made = []

    class Counting:
        def configure_cert(self, context: ssl.SSLContext) -> None:
            made.append(context)
            A.configure_cert(context)

    shared = TlsSettings(Counting())
    chosen = TlsSettings(Counting())
    acceptor = TlsAcceptor(
        TlsSettings(
            Counting(),
            sni={"b.example": shared, "c.example": shared},
            choose=lambda name: chosen if name == "d.example" else None,
        ),
        BOTH,
    )
    assert len(made) == 2
    for name in ("a.example", "b.example", "c.example", "d.example", "d.example"):
        assert (await meet(acceptor, name)).server
    assert len(made) == 3


# -- reload --------------------------------------------------------------------------------------


def write(leaf: trustme.LeafCert, certificate: Path, key: Path) -> None:
    certificate.write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())


async def test_a_reload_serves_new_connections_and_keeps_the_ones_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write(A, certificate, key)
    acceptor = TlsAcceptor(TlsSettings(certificate, key), BOTH)
    before = await meet(acceptor)
    assert before.served == "a.example"
    write(B, certificate, key)
    assert (await meet(acceptor)).served == "a.example"  # not before it is told to
    assert acceptor.reload()
    assert (await meet(acceptor)).served == "b.example"
    # Half of the files is new: nothing changes.
    certificate.write_bytes(A.cert_chain_pems[0].bytes())
    assert not acceptor.reload()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is None
    assert "the key is not the certificate's" in record.getMessage()
    assert (await meet(acceptor)).served == "b.example"
    with trio.fail_after(10):
        assert before.client is not None
        assert before.server is not None
        await before.client.send_parts([b"still here"], 5)
        assert await before.server.receive_some() == b"still here"


async def test_a_reload_reads_what_was_chosen_again(tmp_path: Path) -> None:
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    write(A, *files)
    chosen = TlsSettings(*files)
    acceptor = TlsAcceptor(TlsSettings(WILD, choose=lambda _name: chosen), BOTH)
    assert (await meet(acceptor)).served == "a.example"
    write(B, *files)
    assert acceptor.reload()
    assert (await meet(acceptor)).served == "b.example"


# -- settings that cannot be used ----------------------------------------------------------------


def encrypted_key(leaf: trustme.LeafCert, password: bytes) -> bytes:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    made: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    return made


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(A, tmp_path / "a.pem", tmp_path / "a.key")
    write(B, tmp_path / "b.pem", tmp_path / "b.key")
    (tmp_path / "locked.key").write_bytes(encrypted_key(A, b"open sesame"))
    (tmp_path / "text").write_text("not PEM")
    (tmp_path / "broken.pem").write_bytes(
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"certificate": "none.pem", "key": "a.key"}, "certificate='{}/none.pem': No such file"),
        ({"certificate": "text", "key": "a.key"}, "certificate='{}/text': there is no certificate"),
        ({"certificate": "a.pem"}, "key=None: there is no private key in '{}/a.pem'"),
        ({"certificate": "a.pem", "key": "none.key"}, "key='{}/none.key': No such file"),
        ({"certificate": "a.pem", "key": "text"}, "key='{}/text': there is no private key"),
        ({"certificate": "a.pem", "key": "b.key"}, "key='{}/b.key': the key is not the cert"),
        ({"certificate": "broken.pem", "key": "a.key"}, "OpenSSL cannot read them"),
        ({"certificate": "a.pem", "key": "locked.key"}, "password: the key in '{}/locked.key'"),
        ({"certificate": ".", "key": "a.key"}, "certificate='{}/.': Is a directory"),
        ({"client_ca": "none.pem"}, "client_ca='{}/none.pem': No such file"),
        ({"client_ca": "text"}, "client_ca='{}/text': there is no certificate"),
        ({"keylog_file": "none/keys"}, "keylog_file='{}/none/keys': No such file"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    files: Path, options: dict[str, str], told: str
) -> None:
    paths = {"certificate": "a.pem", "key": "a.key"} if "certificate" not in options else {}
    absolute: Any = {each: f"{files}/{name}" for each, name in {**paths, **options}.items()}
    with pytest.raises(ValueError, match=r"right|give|cannot") as caught:
        TlsAcceptor(TlsSettings(**absolute), BOTH)
    assert told.format(files) in str(caught.value)


def test_a_wrong_password_is_told_and_never_shown(files: Path) -> None:
    with pytest.raises(ValueError, match="the one given is wrong") as caught:
        TlsAcceptor(TlsSettings(files / "a.pem", files / "locked.key", password="hunter2"), BOTH)
    assert "hunter2" not in str(caught.value)


async def test_the_right_password_opens_the_key(files: Path) -> None:
    settings = TlsSettings(files / "a.pem", files / "locked.key", password="open sesame")
    assert (await meet(TlsAcceptor(settings, BOTH))).served == "a.example"


async def test_certificate_and_key_may_be_one_file(files: Path) -> None:
    (files / "both.pem").write_bytes(A.private_key_and_cert_chain_pem.bytes())
    assert (await meet(TlsAcceptor(TlsSettings(files / "both.pem"), BOTH))).served == "a.example"


def test_the_name_of_an_entry_is_told_too(files: Path) -> None:
    settings = TlsSettings(A, sni={"b.example": TlsSettings(files / "none.pem")})
    with pytest.raises(ValueError, match=r"sni 'b\.example': certificate="):
        TlsAcceptor(settings, BOTH)


def test_other_settings_that_openssl_refuses_are_named() -> None:
    class Broken:
        def configure_cert(self, context: ssl.SSLContext) -> None:
            raise OSError("no token")

        def configure_trust(self, context: ssl.SSLContext) -> None:
            raise OSError("no token")

    for settings, told in [
        (TlsSettings(A, ciphers="NONSENSE"), "ciphers='NONSENSE'"),
        (TlsSettings(Broken()), "configure_cert failed: no token"),
        (TlsSettings(A, client_ca=Broken()), "configure_trust failed: no token"),
    ]:
        with pytest.raises(ValueError, match=told):
            TlsAcceptor(settings, BOTH)


# -- other options -------------------------------------------------------------------------------


async def test_a_certificate_authority_may_be_a_file(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(str(authority))
    context = client()
    CA.issue_cert("me@example.com", common_name="me").configure_cert(context)
    met = await meet(TlsAcceptor(TlsSettings(A, client_ca=authority), BOTH), context=context)
    assert met.info is not None
    assert met.info.tls is not None
    assert "CN=me" in (met.info.tls.peer_subject or "")


@pytest.mark.parametrize("with_certificate", [False, True])
async def test_a_client_certificate_may_be_optional(with_certificate: bool) -> None:
    context = client()
    if with_certificate:
        CA.issue_cert("me@example.com").configure_cert(context)
    settings = TlsSettings(A, client_ca=CA, client_auth="optional")
    met = await meet(TlsAcceptor(settings, BOTH), context=context)
    assert met.info is not None
    assert met.info.tls is not None
    assert (met.info.tls.peer_sha256 is not None) is with_certificate


async def test_a_stranger_s_certificate_is_invalid_even_where_it_is_optional() -> None:
    context = client()
    trustme.CA().issue_cert("me@example.com").configure_cert(context)
    settings = TlsSettings(A, client_ca=CA, client_auth="optional")
    met = await meet(TlsAcceptor(settings, BOTH), context=context)
    assert met.server_error is not None
    assert met.server_error.etype == ErrorType.InvalidCert
    assert met.server_wire.closed
    # The client learns it behind its own handshake.
    assert met.client is not None
    with trio.fail_after(10), pytest.raises(ProxyError) as caught:
        await met.client.receive_some()
    assert caught.value.etype == ErrorType.ReadError
    assert "alert" in str(caught.value).lower()


async def test_the_order_of_protocols_is_the_server_s() -> None:
    for order in (["h2", "http/1.1"], ["http/1.1", "h2"]):
        met = await meet(TlsAcceptor(TlsSettings(A, alpn=order), BOTH))
        assert met.client is not None
        assert met.client.alpn == order[0]


async def test_keys_are_logged_for_debugging(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    acceptor = TlsAcceptor(
        TlsSettings(A, keylog_file=keys, sni={"b.example": TlsSettings(B)}), BOTH
    )
    await meet(acceptor, "b.example")
    assert "CLIENT_TRAFFIC_SECRET_0" in keys.read_text()


async def test_tickets_can_be_turned_off() -> None:
    for on in (True, False):
        met = await meet(TlsAcceptor(TlsSettings(A, session_tickets=on), BOTH))
        assert met.client is not None
        assert bool(met.client_wire.unread) is on
        assert met.client.receive_ready() is None


async def test_cancelling_closes_the_connection() -> None:
    _, two = wires()
    acceptor = TlsAcceptor(TlsSettings(A), BOTH)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acceptor.accept, two, INFO)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert two.closed


async def test_bytes_behind_the_hello_are_not_lost() -> None:
    # A client of TLS 1.2 that resumes nothing sends one flight; split it anywhere.
    one, two = wires(cut=7)
    acceptor = TlsAcceptor(TlsSettings(A), BOTH)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _accept() -> None:
                stream, _ = await acceptor.accept(two, INFO)
                assert await stream.receive_some() == b"early"

            stream = await tls_client(one, CLIENT, "a.example", timeout=5)
            await stream.send_parts([b"early"], 5)


async def test_a_throw_away_certificate_serves() -> None:
    context = client(verify_mode=ssl.CERT_NONE)
    met = await meet(TlsAcceptor(TlsSettings.self_signed(), BOTH), "localhost", context)
    assert met.server is not None
