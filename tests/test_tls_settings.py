from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from trioproxy import TlsSettings


class Certificate:
    """Stands for an object of the user's."""

    def configure_cert(self, context: ssl.SSLContext) -> None:
        raise AssertionError("nothing is read when settings are made")


class Unhashable(Certificate):
    __hash__ = None  # type: ignore[assignment]  # that is the point


OTHER = TlsSettings("other.pem")


def test_the_defaults_are_safe() -> None:
    settings = TlsSettings("cert.pem", "key.pem")
    assert settings.min_tls_version == "1.2"
    assert settings.alpn == ("h2", "http/1.1")
    assert settings.handshake_timeout == 10
    assert settings.client_ca is None
    assert settings.client_auth == "required"  # where authorities are given
    assert settings.keylog_file is None


def test_paths_may_be_objects(tmp_path: Path) -> None:
    settings = TlsSettings(
        tmp_path / "c", tmp_path / "k", client_ca=tmp_path / "a", keylog_file=tmp_path / "l"
    )
    assert settings.certificate == str(tmp_path / "c")
    assert settings.key == str(tmp_path / "k")
    assert settings.client_ca == str(tmp_path / "a")
    assert settings.keylog_file == str(tmp_path / "l")


def test_settings_are_values() -> None:
    one, two = (
        TlsSettings("a", sni={"b.example": OTHER}),
        TlsSettings("a", sni={"b.example": OTHER}),
    )
    assert one == two
    assert hash(one) == hash(two)
    assert attrs.evolve(one, key="k") != one


def test_the_password_is_not_shown() -> None:
    assert "hunter2" not in repr(TlsSettings("a", "b", password="hunter2"))
    with pytest.raises(ValueError, match="password") as caught:
        TlsSettings("a", "b", password=["hunter2"])  # type: ignore[arg-type]  # refused
    assert "hunter2" not in str(caught.value)


def test_server_names_are_compared_in_lower_case() -> None:
    settings = TlsSettings("a", sni={"B.Example.": OTHER, "*.C.example": OTHER})
    assert [name for name, _ in settings.sni] == ["b.example", "*.c.example"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"certificate": ""}, "certificate=''"),
        ({"certificate": 5}, "certificate=5"),
        ({"certificate": "a\0b"}, "certificate="),
        ({"certificate": Unhashable()}, "hashed"),
        ({"certificate": Certificate(), "key": "k"}, "brings its own"),
        ({"key": 5}, "key=5"),
        ({"client_ca": 5}, "client_ca=5"),
        ({"client_auth": "maybe"}, "client_auth='maybe'"),
        ({"min_tls_version": "1.1"}, "min_tls_version='1.1'"),
        ({"min_tls_version": 1.2}, r"min_tls_version=1\.2"),
        ({"ciphers": ""}, "ciphers=''"),
        ({"alpn": ()}, r"alpn=\(\)"),
        ({"alpn": ("h3",)}, "alpn="),
        ({"alpn": "h2"}, "alpn='h2'"),
        ({"session_tickets": 1}, "session_tickets=1"),
        ({"handshake_timeout": 0}, "handshake_timeout=0"),
        ({"handshake_timeout": True}, "handshake_timeout=True"),
        ({"keylog_file": 5}, "keylog_file=5"),
        ({"choose": "x"}, "choose='x'"),
        ({"sni": "x"}, "sni='x'"),
        ({"sni": {"a b": OTHER}}, "'a b' is no server name"),
        ({"sni": {"*.*.example": OTHER}}, "is no server name"),
        ({"sni": {"*": OTHER}}, "is no server name"),
        ({"sni": {"ä.example": OTHER}}, "punycode"),
        ({"sni": {5: OTHER}}, "5 is no server name"),
        ({"sni": {"a.example": "cert.pem"}}, "TlsSettings are right"),
        ({"sni": {"a.example": OTHER, "A.example": OTHER}}, "twice"),
        (
            {"sni": {"a.example": TlsSettings("b", handshake_timeout=5)}},
            "'a.example': handshake_timeout=5 cannot be set by server name",
        ),
        ({"sni": {"a.example": TlsSettings("b", choose=print)}}, "choose="),
        ({"sni": {"a.example": TlsSettings("b", keylog_file="k")}}, "keylog_file="),
        ({"sni": {"a.example": TlsSettings("b", sni={"c.example": OTHER})}}, "sni="),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TlsSettings(**{"certificate": "cert.pem", **options})


def test_a_throw_away_certificate_can_be_had() -> None:
    settings = TlsSettings.self_signed()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    settings.certificate.configure_cert(context)
    assert settings.key is None


def test_without_trustme_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ValueError, match=r"pip install 'trioproxy\[selfsigned\]'"):
        TlsSettings.self_signed()
