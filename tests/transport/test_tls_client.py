"""Handshakes in memory: whom a peer's options trust, and what they offer."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme
from cryptography.hazmat.primitives import serialization

from tests._support.tls_wire import TlsWire, server_context
from trioproxy import ErrorSource, ErrorType, HttpPeer, PeerOptions, ProxyError
from trioproxy.peers import CertKey, TlsInfo
from trioproxy.transport._byte_stream import StreamAdapter
from trioproxy.transport._tls import tls_client
from trioproxy.transport._tls_client import ClientContexts, client_context, has_name

CA = trustme.CA()
OTHER = trustme.CA()
SITE = CA.issue_cert("site.test")


def https(host: str = "site.test", sni: str | None = None, **options: Any) -> HttpPeer:
    """Return a peer that trusts `CA`, unless its options say otherwise."""
    if options.get("verify_cert", True):
        options.setdefault("ca", CA)
    return HttpPeer(host, 443, scheme="https", sni=sni, options=PeerOptions(**options))


@attrs.define
class Met:
    """What a handshake came to."""

    ours: TlsInfo | ProxyError
    sni: str | None = None
    their_error: Exception | None = None
    client_subject: str | None = None


async def meet(
    peer: HttpPeer,
    certificate: trustme.LeafCert = SITE,
    *,
    alpn: Sequence[str] = (),
    clients: trustme.CA | None = None,
    highest: ssl.TLSVersion | None = None,
    suites: str | None = None,
) -> Met:
    """Shake hands with a server in memory, and have it send and receive a byte."""
    context = server_context(certificate, alpn=alpn, clients=clients)
    if highest is not None:
        context.maximum_version = highest
    if suites is not None:
        context.set_ciphers(suites)
    met = Met(ProxyError.new(ErrorType.UnknownError))

    def note(_object: object, name: str | None, _context: object) -> None:
        met.sni = name

    context.sni_callback = note
    ours, theirs = trio.testing.memory_stream_pair()
    wire = TlsWire.wrap(theirs, context, server_side=True)

    async def serve() -> None:
        try:
            await wire.handshake()
            await wire.send_all(b"!")
        except (ssl.SSLError, trio.BrokenResourceError) as exc:
            met.their_error = exc
            wire.truncate()
            return
        if clients is not None:
            told: Any = wire.tls.getpeercert()
            met.client_subject = str(told["subject"])

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            inner = StreamAdapter(ours)
            try:
                stream = await tls_client(inner, client_context(peer), peer.server_name, timeout=5)
                met.ours = stream.tls
                assert await stream.receive_some() == b"!"
            except ProxyError as exc:
                met.ours = exc
            inner.close_now()
    return met


def refused(met: Met, *etypes: ErrorType) -> str:
    """Return why a handshake was refused, of a kind."""
    assert isinstance(met.ours, ProxyError)
    assert met.ours.etype in etypes
    return str(met.ours)


# -- whom it trusts --------------------------------------------------------------------------------


def forms(directory: Path) -> list[Any]:
    """Return all the forms in which an authority may be given."""
    pem = CA.cert_pem.bytes()
    file = directory / "ca.pem"
    file.write_bytes(OTHER.cert_pem.bytes() + pem)
    return [
        file,
        str(file),
        pem,
        pem.decode(),
        ssl.PEM_cert_to_DER_cert(pem.decode()),
        CA,
        (OTHER, CA),
        [OTHER.cert_pem.bytes(), pem.decode()],
    ]


async def test_an_authority_is_given_as_a_file_as_text_or_as_an_object(tmp_path: Path) -> None:
    for form in forms(tmp_path):
        met = await meet(https(ca=form))
        assert isinstance(met.ours, TlsInfo), form
        assert (met.sni, met.ours.sni, met.ours.version) == ("site.test", "site.test", "TLSv1.3")


async def test_our_own_authorities_replace_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "system.pem"
    CA.cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert isinstance((await meet(https(ca=None))).ours, TlsInfo)
    why = refused(await meet(https(ca=OTHER)), ErrorType.InvalidCert)
    assert "unable to get local issuer certificate" in why


async def test_who_is_signed_by_nobody_we_know_is_refused_with_the_reason() -> None:
    met = await meet(https(), OTHER.issue_cert("site.test"))
    assert "unable to get local issuer certificate" in refused(met, ErrorType.InvalidCert)


async def test_an_expired_certificate_is_refused_with_the_reason() -> None:
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    old = CA.issue_cert("site.test", not_before=past, not_after=past + dt.timedelta(days=9))
    assert "certificate has expired" in refused(await meet(https(), old), ErrorType.InvalidCert)


@pytest.mark.parametrize("options", [{}, {"alternative_cn": "c.test"}])
async def test_a_certificate_for_another_name_is_refused_with_the_reason(
    options: dict[str, Any],
) -> None:
    met = await meet(https("b.test", **options))
    why = refused(met, ErrorType.InvalidCert)
    assert "not valid for" in why
    assert "b.test" in why
    assert met.sni == "b.test"


@pytest.mark.parametrize(
    ("host", "options", "certificate"),
    [
        ("site.test", {}, SITE),
        ("SITE.test.", {}, SITE),
        ("b.test", {"sni": "site.test"}, SITE),
        ("b.test", {"alternative_cn": "site.test"}, SITE),
        ("site.test", {"alternative_cn": "b.test"}, SITE),
        ("b.test", {"verify_hostname": False}, SITE),
        ("a.wild.test", {}, CA.issue_cert("*.wild.test")),
        ("a_b.wild.test", {}, CA.issue_cert("*.wild.test")),
        ("127.0.0.1", {}, CA.issue_cert("127.0.0.1")),
        ("::1", {}, CA.issue_cert("::1")),
        ("fe80::1%lo", {}, CA.issue_cert("fe80::1")),
        ("127.0.0.1", {"alternative_cn": "::1"}, CA.issue_cert("::1")),
        ("127.0.0.1", {"sni": "site.test"}, SITE),
        ("site.test", {"verify_cert": False}, OTHER.issue_cert("b.test")),
    ],
)
async def test_a_certificate_for_the_name_is_accepted(
    host: str, options: dict[str, Any], certificate: trustme.LeafCert
) -> None:
    peer = https(host, **options)
    met = await meet(peer, certificate)
    assert isinstance(met.ours, TlsInfo)
    address = host[0] in "1:f" and "sni" not in options
    assert met.sni == met.ours.sni == (None if address else peer.server_name)


@pytest.mark.parametrize(
    ("host", "certificate"),
    [
        ("127.0.0.2", CA.issue_cert("127.0.0.1")),
        ("::2", CA.issue_cert("::1")),
        ("127.0.0.1", SITE),
        ("a_b.c.wild.test", CA.issue_cert("*.wild.test")),
        ("a_b.test", CA.issue_cert("a-b.test")),
        ("wild.test", CA.issue_cert("*.wild.test")),
    ],
)
async def test_a_certificate_for_something_near_is_refused(
    host: str, certificate: trustme.LeafCert
) -> None:
    refused(await meet(https(host), certificate), ErrorType.InvalidCert)


async def test_without_a_name_none_is_sent_and_nobody_verified() -> None:
    met = await meet(https("b.test", "", verify_cert=False))
    assert isinstance(met.ours, TlsInfo)
    assert (met.sni, met.ours.sni) == (None, None)


@pytest.mark.parametrize(
    ("names", "name", "expected"),
    [
        ([("DNS", "a.test")], "a.test", True),
        ([("DNS", "A.Test")], "a.tEST", True),
        ([("DNS", "x.test"), ("DNS", "a.test")], "a.test", True),
        ([("DNS", "*.a.test")], "b.a.test", True),
        ([("DNS", "*.a.test")], "b_c.a.test", True),
        ([("DNS", "*.a.test")], "a.test", False),
        ([("DNS", "*.a.test")], "c.b.a.test", False),
        ([("DNS", "*.test")], "a.test", False),
        ([("DNS", "*")], "test", False),
        ([("DNS", "b*.a.test")], "b1.a.test", False),
        ([("DNS", "127.0.0.1")], "127.0.0.1", False),
        ([("IP Address", "127.0.0.1")], "127.0.0.1", True),
        ([("IP Address", "0:0:0:0:0:0:0:1")], "::1", True),
        ([("IP Address", "<invalid>")], "::1", False),
        ([("email", "a.test")], "a.test", False),
        ([], "a.test", False),
    ],
)
def test_only_alternative_names_count_and_a_star_is_one_label(
    names: list[tuple[str, str]], name: str, expected: bool
) -> None:
    certificate = {
        "subject": ((("commonName", name),),),
        "subjectAltName": tuple(names),
    }
    assert has_name(certificate, name) is expected


def test_a_common_name_is_no_name() -> None:
    assert has_name({"subject": ((("commonName", "a.test"),),)}, "a.test") is False
    assert client_context(https()).hostname_checks_common_name is False


# -- what it offers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "theirs", "agreed"),
    [
        ((1, 1), ["h2", "http/1.1"], "http/1.1"),
        ((2, 1), ["h2", "http/1.1"], "h2"),
        ((2, 1), ["http/1.1"], "http/1.1"),
        ((2, 1), [], None),
        ((2, 2), ["h2", "http/1.1"], "h2"),
    ],
)
async def test_alpn_offers_the_versions_of_the_peer(
    version: tuple[int, int], theirs: list[str], agreed: str | None
) -> None:
    met = await meet(https(http_version=version), alpn=theirs)
    assert isinstance(met.ours, TlsInfo)
    assert met.ours.alpn == agreed


@pytest.mark.parametrize("lowest", ["1.2", "1.3"])
async def test_the_lowest_version_is_that_of_the_options(lowest: str) -> None:
    met = await meet(https(min_tls_version=lowest), highest=ssl.TLSVersion.TLSv1_2)
    if lowest == "1.2":
        assert isinstance(met.ours, TlsInfo)
        assert met.ours.version == "TLSv1.2"
    else:
        assert "version" in refused(met, ErrorType.TLSHandshakeFailure).lower()


async def test_cipher_suites_are_those_of_the_options() -> None:
    peer = https(ciphers="ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-GCM-SHA384")
    met = await meet(peer, highest=ssl.TLSVersion.TLSv1_2)
    assert isinstance(met.ours, TlsInfo)
    assert met.ours.cipher.endswith("AES256-GCM-SHA384")
    met = await meet(peer, highest=ssl.TLSVersion.TLSv1_2, suites="AES128")
    refused(met, ErrorType.TLSHandshakeFailure)


def identities(directory: Path) -> list[Any]:
    """Return all the forms in which our certificate may be given."""
    leaf = CA.issue_cert("proxy@site.test")
    both, chain, key = (directory / name for name in ("both.pem", "chain.pem", "key.pem"))
    leaf.private_key_and_cert_chain_pem.write_to_path(both)
    leaf.cert_chain_pems[0].write_to_path(chain)
    leaf.private_key_pem.write_to_path(key)
    return [leaf, CertKey(str(both)), CertKey(str(chain), str(key)), (chain, key)]


async def test_our_certificate_is_shown_to_who_wants_one(tmp_path: Path) -> None:
    for form in identities(tmp_path):
        for peer in (
            https(client_cert_key=form),
            HttpPeer.new_mtls("a.test", 1, "site.test", form, options=PeerOptions(ca=CA)),
        ):
            met = await meet(peer, clients=CA)
            assert isinstance(met.ours, TlsInfo), form
            assert met.client_subject is not None


@pytest.mark.parametrize("highest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("ours", [None, OTHER.issue_cert("proxy@site.test")])
async def test_who_wants_a_certificate_of_ours_and_gets_none_that_it_knows_refuses(
    highest: ssl.TLSVersion, ours: trustme.LeafCert | None
) -> None:
    met = await meet(https(client_cert_key=ours), clients=CA, highest=highest)
    # With TLS 1.3 we hear of it when the handshake is over for us.
    refused(met, ErrorType.TLSHandshakeFailure, ErrorType.ReadError)
    assert isinstance(met.their_error, ssl.SSLError)


# -- options that cannot be followed, and the cache ------------------------------------------------


def locked(directory: Path) -> str:
    """Write a private key that needs a password, with its certificate."""
    leaf = CA.issue_cert("proxy@site.test")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    file = directory / "locked.pem"
    file.write_bytes(pem + leaf.cert_chain_pems[0].bytes())
    return str(file)


def test_a_locked_key_opens_with_its_password_and_never_asks_for_one(tmp_path: Path) -> None:
    file = locked(tmp_path)
    client_context(https(client_cert_key=CertKey(file, password="secret")))
    for password in (None, "wrong"):
        with pytest.raises(ProxyError, match=r"locked.pem .* cannot be used"):
            client_context(https(client_cert_key=CertKey(file, password=password)))


def test_openssl_is_never_left_to_ask_at_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def load(_context: ssl.SSLContext, _chain: str, _key: str | None, password: object) -> None:
        given.append(password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    client_context(https(client_cert_key=CertKey("/a")))
    assert given == [""]


class Broken:
    def configure_trust(self, _context: ssl.SSLContext) -> None:
        raise RuntimeError("my own mistake")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ca": "/no/such/ca.pem"}, "ca: /no/such/ca.pem cannot be used: No such file"),
        ({"ca": "-----BEGIN CERTIFICATE-----\nx"}, "ca: what was given cannot be used"),
        ({"ca": b"\xff"}, "ca: what was given cannot be used"),
        ({"ca": Broken()}, "my own mistake"),
        ({"client_cert_key": ("/no/chain", "/no/key")}, "client_cert_key: /no/chain with /no/key"),
        ({"client_cert_key": CertKey("/no/chain")}, "/no/chain with the key in it cannot be used"),
        ({"ciphers": "NONE-SUCH"}, "ciphers='NONE-SUCH': names of OpenSSL's cipher suites"),
    ],
)
def test_options_that_cannot_be_followed_are_our_own_error(
    options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ProxyError) as caught:
        client_context(https(**options))
    assert caught.value.etype == ErrorType.InternalError
    assert caught.value.esource is ErrorSource.INTERNAL
    assert "the TLS options of https://site.test: " in str(caught.value)
    assert why in str(caught.value)


def test_peers_with_the_same_tls_options_share_a_context() -> None:
    contexts = ClientContexts()
    first = contexts.get(https())
    assert contexts.get(https("other.test", read_timeout=1, max_h2_streams=5)) is first
    assert contexts.get(https(http_version=(2, 1))) is not first
    assert contexts.get(https("a_b.test")) is not first


def test_contexts_that_were_not_used_for_long_are_let_go() -> None:
    contexts = ClientContexts(2)
    peers = [https(alternative_cn=f"{name}.test") for name in "abc"]
    first, second = contexts.get(peers[0]), contexts.get(peers[1])
    assert contexts.get(peers[0]) is first
    contexts.get(peers[2])
    assert contexts.get(peers[0]) is first
    assert contexts.get(peers[1]) is not second


@pytest.mark.parametrize("options", [{}, {"verify_cert": False}, {"alternative_cn": "a.test"}])
def test_tls_is_never_older_and_neither_compresses_nor_renegotiates(
    options: dict[str, Any],
) -> None:
    context = client_context(https(**options))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert (context.verify_mode is ssl.CERT_NONE) == ("verify_cert" in options)
