from __future__ import annotations

import math
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme

import trioproxy
from tests.server._network import Program, an_origin, answering, ask, get
from trioproxy import ConnectRule
from trioproxy._networks import Networks
from trioproxy.cache import DiskStorage, MemoryStorage, Storage
from trioproxy.modules import HttpModules, _codings
from trioproxy.server import _cli
from trioproxy.server._cli import main
from trioproxy.server._reverse import CachingReverse, Reverse
from trioproxy.server._reverse_stream import StreamReverse
from trioproxy.stream import ProxyStream, StreamPeer, StreamSession

URL = "http://127.0.0.1:9000"


class Ran(Exception):
    """Tells what the command line would have run."""

    def __init__(self, proxy: Any, binds: tuple[str, ...], conf: trioproxy.ServerConf) -> None:
        super().__init__(proxy, binds, conf)
        self.proxy, self.binds, self.conf = proxy, binds, conf


@pytest.fixture(autouse=True)
def not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(proxy: Any, *binds: trioproxy.Listener, conf: trioproxy.ServerConf) -> None:
        raise Ran(proxy, tuple(bind.address for bind in binds), conf)

    monkeypatch.setattr(_cli, "run", run)


@pytest.fixture(autouse=True)
def no_module_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "gateway_of_a_test" in name:
            del sys.modules[name]


def parse(*arguments: str) -> Ran:
    with pytest.raises(Ran) as caught:
        main(arguments)
    return caught.value


def reverse(*arguments: str) -> Reverse:
    proxy = parse("reverse", *arguments).proxy
    assert isinstance(proxy, Reverse)
    return proxy


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("trioproxy")
    assert told.err.count("\n") == 1
    assert told.err.endswith("\n")
    return told.err


# -- what every option does ------------------------------------------------------------------------


def test_without_options_everything_has_the_default() -> None:
    ran = parse("reverse", URL)
    assert ran.binds == ()
    assert ran.conf == trioproxy.ServerConf()
    assert ran.proxy.rewrite_host is False
    assert [peer.name for peer in ran.proxy.peers] == ["127.0.0.1:9000"]


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        (("--connect-timeout", "1.5"), "connect_timeout", 1.5),
        (("--read-timeout", "7"), "read_timeout", 7.0),
        (("--write-timeout", "8"), "write_timeout", 8.0),
        (("--idle-timeout", "9"), "idle_timeout", 9.0),
        (("--header-timeout", "3"), "header_timeout", 3.0),
        (("--connect-timeout", "0"), "connect_timeout", math.inf),
        (("--idle-timeout=0",), "idle_timeout", math.inf),
        (("--max-header-bytes", "64"), "max_header_bytes", 64),
        (("--max-header-bytes", "8K"), "max_header_bytes", 8192),
        (("--max-body-bytes", "0"), "max_body_bytes", 0),
        (("--max-body-bytes", "10M"), "max_body_bytes", 10 << 20),
        (("--max-body-bytes", "2g"), "max_body_bytes", 2 << 30),
        (("--grace", "2.5"), "grace", 2.5),
        (("--grace", "0"), "grace", 0.0),
        (("--log-level", "WARNING"), "log_level", "warning"),
        (("--log-level", "debug"), "log_level", "debug"),
        (("--access-log", "common"), "access_log", "common"),
        (("--access-log", "json"), "access_log", "json"),
        (("--http1-codec", "h11"), "http1_codec", "h11"),
        (("--http", "1"), "http", "1"),
        (("--http", "2"), "http", "2"),
        (("--h2c",), "h2c", True),
        (
            ("--allow-connect", "*.A.test:443", "--allow-connect", "[::1]:*"),
            "allow_connect",
            (ConnectRule("*.a.test", 443), ConnectRule("::1", None)),
        ),
        (("--proxy-protocol", "out"), "proxy_protocol", "out"),
        (("--proxy-protocol", "in", "--trusted-proxy", "unix"), "proxy_protocol", "in"),
        (("--proxy-protocol", "both", "--trusted-proxy", "::1"), "proxy_protocol", "both"),
        (
            ("--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "::1"),
            "trusted_proxies",
            Networks.parse(["10.0.0.0/8", "::1"]),
        ),
    ],
)
def test_an_option_becomes_the_setting_of_its_name(
    arguments: tuple[str, ...], name: str, expected: object
) -> None:
    conf = parse("reverse", URL, *arguments).conf
    assert getattr(conf, name) == expected
    assert parse("reverse", *arguments, URL).conf == conf


def test_binds_add_up() -> None:
    binds = ("127.0.0.1:0", "[::1]:8080", "unix:/run/x.sock", "localhost:80")
    arguments = [part for bind in binds for part in ("--bind", bind)]
    assert parse("reverse", URL, *arguments).binds == binds


def test_rewrite_host_is_a_switch() -> None:
    assert reverse(URL, "--rewrite-host").rewrite_host is True


def test_every_form_of_an_origin_is_taken() -> None:
    proxy = reverse("http://a", "http://b:81", "http://[::1]:82", "http+unix:/x y", "http://c/")
    names = [peer.name for peer in proxy.peers]
    assert names == ["a", "b:81", "[::1]:82", "unix:/x y", "c"]
    assert [peer.name for peer in reverse("https://a").peers] == ["https://a"]


def test_origins_may_stand_behind_options() -> None:
    proxy = reverse("http://a", "--rewrite-host", "http://b", "http://c")
    assert [peer.name for peer in proxy.peers] == ["a", "b", "c"]


def test_run_takes_the_same_options_but_rewrite_host(capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, "run", "tests.server.test_cli:Plain", "--rewrite-host")
    assert "'--rewrite-host' is not understood" in told
    ran = parse("run", "tests.server.test_cli:Plain", "--grace", "1", "--bind", "127.0.0.1:0")
    assert (ran.conf.grace, ran.binds) == (1.0, ("127.0.0.1:0",))


@pytest.mark.parametrize(
    ("arguments", "with_tls", "without"),
    [
        ((), (2, 1), (1, 1)),
        (("--upstream-http", "auto"), (2, 1), (1, 1)),
        (("--upstream-http", "1"), (1, 1), (1, 1)),
        (("--upstream-http", "2"), (2, 2), (2, 2)),
    ],
)
def test_the_http_version_is_one_for_all_origins_or_what_each_can(
    arguments: tuple[str, ...], with_tls: tuple[int, int], without: tuple[int, int]
) -> None:
    peers = reverse("https://a", "http://a", "http+unix:/a", *arguments).peers
    assert [peer.http_version for peer in peers] == [with_tls, without, without]
    assert all(peer.options.max_h2_streams == 100 for peer in peers if peer.http_version[0] == 2)
    assert all(peer.options.verify_cert and peer.options.verify_hostname for peer in peers)


def test_https_origins_are_trusted_by_a_file_or_in_any_case(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    secure, plain = reverse("https://a", "http://b", "--upstream-ca", str(file)).peers
    assert secure.options.ca == (str(file),)
    assert plain.options.ca is None
    (insecure,) = reverse("https://a", "--upstream-insecure").peers
    assert (insecure.options.verify_cert, insecure.options.verify_hostname) == (False, False)


def test_a_file_that_nobody_can_be_trusted_by_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ca.pem"
    told = refusal(capsys, "reverse", "https://a", "--upstream-ca", str(file))
    assert f"argument --upstream-ca: ca: {file} cannot be used: No such file" in told
    file.write_text("nothing")
    told = refusal(capsys, "reverse", "https://a", "--upstream-ca", str(file))
    assert f"argument --upstream-ca: ca: {file} cannot be used" in told
    assert "certificates in PEM are right" in told


# -- TLS -------------------------------------------------------------------------------------------


@attrs.frozen
class Files:
    """Certificates in PEM."""

    cert: str
    key: str
    both: str
    other_key: str
    ca: str
    empty: str


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    ours, other = authority.issue_cert("site.test"), authority.issue_cert("other.test")
    made = Files(
        *(
            str(directory / name)
            for name in ("cert.pem", "key.pem", "both.pem", "other.pem", "ca.pem", "empty.pem")
        )
    )
    ours.cert_chain_pems[0].write_to_path(made.cert)
    ours.private_key_pem.write_to_path(made.key)
    ours.private_key_and_cert_chain_pem.write_to_path(made.both)
    other.private_key_pem.write_to_path(made.other_key)
    authority.cert_pem.write_to_path(made.ca)
    Path(made.empty).write_text("")
    return made


def test_no_option_of_tls_is_no_tls() -> None:
    assert parse("reverse", URL, "--h2c").conf.tls is None


def test_a_certificate_is_taken_with_its_key(files: Files) -> None:
    tls = parse("reverse", URL, "--tls-cert", files.cert, "--tls-key", files.key).conf.tls
    assert tls == trioproxy.TlsSettings(files.cert, files.key)


def test_a_certificate_may_have_its_key_in_the_same_file(files: Files) -> None:
    assert parse("reverse", URL, "--tls-cert", files.both).conf.tls == trioproxy.TlsSettings(
        files.both
    )


def test_a_throw_away_certificate_is_made() -> None:
    tls = parse("reverse", URL, "--tls-self-signed").conf.tls
    assert tls is not None
    assert callable(tls.certificate.configure_cert)
    assert tls.client_ca is None


@pytest.mark.parametrize("own", [True, False])
def test_client_certificates_are_required(own: bool, files: Files) -> None:
    certificate = ("--tls-self-signed",) if own else ("--tls-cert", files.both)
    tls = parse("reverse", URL, *certificate, "--tls-client-ca", files.ca).conf.tls
    assert tls is not None
    assert (tls.client_ca, tls.client_auth) == (files.ca, "required")


def test_run_serves_tls_as_well(files: Files) -> None:
    target = "tests.server.test_cli:Plain"
    conf = parse("run", target, "--tls-cert", files.both, "--http", "2").conf
    assert (conf.tls, conf.http) == (trioproxy.TlsSettings(files.both), "2")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--tls-cert no-such.pem", "argument --tls-cert: certificate='no-such.pem': No such file"),
        ("--tls-cert {empty}", "argument --tls-cert: certificate='{empty}': there is no certifi"),
        ("--tls-cert {cert}", "argument --tls-cert: key=None: there is no private key in '{cert}'"),
        ("--tls-cert {cert} --tls-key no-such.pem", "argument --tls-cert: key='no-such.pem': No s"),
        ("--tls-cert {cert} --tls-key {other_key}", "the key is not the certificate's; give the"),
        ("--tls-key {key}", "argument --tls-key: '{key}' needs a certificate: --tls-cert FILE or"),
        ("--tls-client-ca {ca}", "argument --tls-client-ca: '{ca}' needs a certificate: --tls-ce"),
        ("--tls-self-signed --tls-client-ca {empty}", "-client-ca: client_ca='{empty}': there"),
        ("--tls-self-signed --tls-client-ca no.pem", "argument --tls-client-ca: client_ca='no.pem"),
        ("--tls-self-signed --tls-cert {both}", "argument --tls-self-signed: it takes the place"),
        ("--tls-self-signed --tls-key {key}", "argument --tls-self-signed: it takes the place of"),
    ],
)
def test_a_mistake_in_tls_options_is_one_line_that_names_option_file_and_fix(
    arguments: str, expected: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = attrs.asdict(files)
    given = [part.format(**paths) for part in arguments.split()]
    told = refusal(capsys, "reverse", URL, *given)
    assert told.startswith("trioproxy reverse: error: argument --tls-")
    assert expected.format(**paths) in told


def test_without_trustme_a_throw_away_certificate_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    told = refusal(capsys, "reverse", URL, "--tls-self-signed")
    assert "argument --tls-self-signed: a self-signed certificate needs trustme: " in told
    assert "pip install 'trioproxy[selfsigned]'" in told


# -- the cache -------------------------------------------------------------------------------------


def storage(*arguments: str) -> Storage:
    proxy = reverse(*arguments)
    assert isinstance(proxy, CachingReverse)
    assert proxy.shared_cache is not None
    return proxy.shared_cache.storage


@pytest.mark.parametrize("arguments", [(), ("--cache", "off"), ("--cache-size", "1M")])
def test_nothing_is_cached_unless_it_is_asked_for(arguments: tuple[str, ...]) -> None:
    assert not isinstance(reverse(URL, *arguments), CachingReverse)


@pytest.mark.parametrize(
    ("arguments", "limit"), [((), 256 << 20), (("--cache-size", "64K"), 65536)]
)
def test_a_cache_in_memory_has_the_size_that_it_is_given(
    arguments: tuple[str, ...], limit: int
) -> None:
    made = storage(URL, "--cache", "memory", *arguments)
    assert isinstance(made, MemoryStorage)
    assert made.eviction.limit_bytes == limit


@pytest.mark.parametrize("name", ["cache", "deep/er", "./memory", "./off"])
def test_a_cache_on_disk_makes_its_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = storage(URL, "--cache", name, "--cache-size", "2G")
    assert isinstance(made, DiskStorage)
    assert made.directory == tmp_path / name
    assert made.directory.is_dir()
    assert made.max_bytes == 2 << 30


def test_a_cache_needs_a_directory_that_can_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    told = refusal(capsys, "reverse", URL, "--cache", str(tmp_path / "file"))
    assert "argument --cache: " in told
    assert "off, memory or a directory that can be written is right" in told
    told = refusal(capsys, "reverse", URL, "--cache", str(tmp_path / "file" / "below"))
    assert "Not a directory" in told


def test_the_origins_and_the_host_are_kept_where_there_is_a_cache() -> None:
    proxy = reverse(URL, "http://127.0.0.1:9001", "--rewrite-host", "--cache", "memory")
    assert proxy.rewrite_host
    assert [peer.port for peer in proxy.peers] == [9000, 9001]


@pytest.mark.socket
async def test_what_is_stored_on_disk_is_served_after_a_restart(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: 5\r\n\r\nhello"
    with trio.fail_after(30):
        async with an_origin(answering(answer)) as origin:
            arguments = ("trioproxy", "reverse", origin, "--bind", "127.0.0.1:0")
            for expected in (";fwd=uri-miss;stored", ";hit;"):
                async with Program.start(*arguments, "--cache", str(tmp_path)) as program:
                    url = await program.until(r"listening on (\S+)\n")
                    reply = await ask(url, get("/a"))
                    assert reply.body == b"hello"
                    assert expected in reply.fields["cache-status"]
                    assert await program.ends(signal.SIGTERM) == 0


# -- compression -----------------------------------------------------------------------------------


def test_nothing_is_compressed_unless_it_is_asked_for() -> None:
    assert reverse(URL).compression is None


@pytest.mark.parametrize("more", [(), ("--cache", "memory")])
def test_compression_takes_what_is_installed_at_levels_of_its_own(more: tuple[str, ...]) -> None:
    builder = reverse(URL, "--compress", *more).compression
    assert builder is not None
    assert builder.algorithm_levels == {"zstd": 3, "br": 5, "gzip": 6, "deflate": 6}
    assert not builder.on_demand


def test_compression_says_what_would_make_it_better(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trioproxy")
    reverse(URL, "--compress").init_downstream_modules(HttpModules())
    assert caplog.messages == []
    for name in ("brotli", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(_codings._MODULES, name, None)
    proxy = reverse(URL, "--compress")
    modules = HttpModules()
    proxy.init_downstream_modules(modules)
    assert proxy.compression is not None
    assert proxy.compression.algorithm_levels == {"gzip": 6, "deflate": 6}
    assert modules.builders == (proxy.compression,)
    assert caplog.messages == [
        "responses are not compressed in zstd and br: "
        'python -m pip install "trioproxy[compress]" does that'
    ]


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "required: COMMAND"),
        (("forward", URL), "invalid choice: 'forward' (choose from"),
        (("reverse",), "required: URL"),
        (("run",), "required: MODULE:OBJECT"),
        (("reverse", "localhost:80"), "argument URL: 'localhost:80' is not an origin: http://host"),
        (("reverse", "https://a..b"), "argument URL: host='a..b' is no name that a certificate"),
        (("reverse", "ftp://a"), "argument URL: 'ftp://a' is not an origin: http://host"),
        (("reverse", "http://a/path"), "argument URL: 'http://a/path' is not an origin"),
        (("reverse", "http://a:0"), "argument URL: 'http://a:0' has no such port: 1 to 65535"),
        (("reverse", "http+unix:"), "argument URL: 'http+unix:' has no path: http+unix:PATH"),
        (("reverse", URL, "--grace", "1", "x"), "argument URL: 'x' is not an origin: http://host"),
        (("reverse", URL, "--bind", "8080"), "argument --bind: '8080' is not a bind address: host"),
        (("reverse", URL, "--bind", "::1:80"), "argument --bind: '::1:80' is not a bind address"),
        (("reverse", URL, "--bind", "a:65536"), "argument --bind: 'a:65536' is not a bind address"),
        (("reverse", URL, "--bind", "unix:"), "argument --bind: 'unix:' is not a bind address"),
        (("reverse", URL, "--bind"), "argument --bind: expected one argument"),
        (("reverse", URL, "--allow-connect", "a.test"), "--allow-connect: 'a.test' allows nothing"),
        (("run", "x:y", "--allow-connect", "a/8:1"), "--allow-connect: 'a/8:1' allows nothing"),
        (("run", "x:y", "--allow-connect", "127.1:1"), "HOST:PORT is right, such as example.com:4"),
        (("reverse", URL, "--grace", "x"), "argument --grace: 'x' is not a number of seconds: 0"),
        (("reverse", URL, "--grace", "-1"), "argument --grace: '-1' is not a number of seconds"),
        (("reverse", URL, "--grace", "nan"), "argument --grace: 'nan' is not a number of seconds"),
        (("reverse", URL, "--read-timeout", "inf"), "argument --read-timeout: 'inf' is not a num"),
        (("reverse", URL, "--idle-timeout", "1s"), "argument --idle-timeout: '1s' is not a number"),
        (("reverse", URL, "--max-header-bytes", "63"), "'63' is not a size: 64 or more bytes are"),
        (("reverse", URL, "--max-body-bytes", "1.5M"), "argument --max-body-bytes: '1.5M' is not"),
        (("reverse", URL, "--max-body-bytes", "-1"), "'-1' is not a size: 0 or more bytes are"),
        (("reverse", URL, "--max-body-bytes", "1T"), "'1T' is not a size"),
        (("reverse", URL, "--log-level", "Loud"), "--log-level: 'Loud' is not a level: one of de"),
        (("reverse", URL, "--access-log", "xml"), "argument --access-log: invalid choice: 'xml' ("),
        (("reverse", URL, "--http1-codec", "x"), "argument --http1-codec: invalid choice: 'x' ("),
        (("reverse", URL, "--http", "3"), "argument --http: invalid choice: '3' (choose from"),
        (("reverse", URL, "--tls"), "'--tls' is not understood: trioproxy reverse --help lists"),
        (("reverse", URL, "--tls-cert"), "argument --tls-cert: expected one argument"),
        (("reverse", URL, "--tls-cert", ""), "argument --tls-cert: certificate='': the path of a"),
        (("reverse", URL, "--tls-key", "x"), "argument --tls-key: 'x' needs a certificate: --tls"),
        (("reverse", URL, "--http", "1", "--h2c"), "argument --h2c: it is HTTP/2, which --http 1"),
        (("reverse", URL, "--rewrite"), "'--rewrite' is not understood: trioproxy reverse --help"),
        (
            ("reverse", URL, "--upstream-http", "3"),
            "argument --upstream-http: invalid choice: '3' (choose from",
        ),
        (
            ("reverse", URL, "--upstream-insecure"),
            "argument --upstream-insecure is for https origins, and there is none",
        ),
        (
            ("reverse", URL, "--upstream-ca", "x"),
            "argument --upstream-ca: x is for https origins, and there is none",
        ),
        (
            ("reverse", "https://a", "--upstream-ca", "x", "--upstream-insecure"),
            "argument --upstream-ca: x is not used with --upstream-insecure",
        ),
        (("reverse", "https://a", "--upstream-ca", ""), "--upstream-ca: '' is no file: the path"),
        (("reverse", URL, "--cache"), "argument --cache: expected one argument"),
        (("reverse", URL, "--cache", ""), "argument --cache: '' is no directory: off, memory or"),
        (
            ("reverse", URL, "--cache-size", "63K"),
            "argument --cache-size: '63K' is not a size: 65536 or more bytes are right",
        ),
        (("run", "x:y", "--cache", "memory"), "'--cache' is not understood: trioproxy run --help"),
        (
            ("reverse", URL, "--proxy-protocol", "in"),
            "argument --proxy-protocol: 'in' believes nobody without a trusted proxy: "
            "--trusted-proxy CIDR is right beside it",
        ),
        (("run", "x:y", "--proxy-protocol", "both"), "--proxy-protocol: 'both' believes nobody"),
        (
            ("reverse", URL, "--proxy-protocol", "v2"),
            "argument --proxy-protocol: invalid choice: 'v2' (choose from",
        ),
        (
            ("reverse", URL, "--trusted-proxy", "10.0.0.1/8"),
            "argument --trusted-proxy: '10.0.0.1/8' has bits behind its prefix: 10.0.0.0/8 is right",
        ),
        (("reverse", URL, "--trusted-proxy", "lb"), "--trusted-proxy: 'lb' is no network: CIDR"),
        (("run", "x:y", "z"), "'z' is not understood: trioproxy run --help lists what is"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_be_right(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, *arguments)


# -- MODULE:OBJECT ---------------------------------------------------------------------------------


class Plain(trioproxy.ProxyHttp[None]):
    def new_ctx(self) -> None:
        return None

    async def upstream_peer(
        self, session: trioproxy.Session, ctx: None
    ) -> trioproxy.HttpPeer:  # pragma: no cover
        raise NotImplementedError


class Holder:
    proxy = Plain()


plain = Plain()
nothing = 5


class Unfinished(trioproxy.ProxyHttp[None]):
    def new_ctx(self) -> None:
        return None


def factory() -> Plain:
    return Plain()


def needs_more(origin: str) -> Plain:
    raise AssertionError(origin)


def fails() -> Plain:
    raise TypeError("the factory's own")


def gives_another() -> int:
    return 5


@pytest.mark.parametrize("name", ["plain", "Plain", "factory", "Holder.proxy"])
def test_an_object_a_class_a_factory_or_a_dotted_name_is_taken(name: str) -> None:
    proxy = parse("run", f"tests.server.test_cli:{name}").proxy
    assert type(proxy).__name__ == "Plain"


SOURCE = """
import trioproxy
import neighbour_of_gateway_of_a_test

class Gateway(trioproxy.ProxyHttp[None]):
    def new_ctx(self):
        return None
    async def upstream_peer(self, session, ctx):
        return trioproxy.HttpPeer("127.0.0.1", 9000)

proxy = Gateway()
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "gateway_of_a_test.py").write_text(SOURCE)
    (tmp_path / "neighbour_of_gateway_of_a_test.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_current_directory_is_importable(directory: Path) -> None:
    assert type(parse("run", "gateway_of_a_test:proxy").proxy).__name__ == "Gateway"


def test_a_path_works_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(parse("run", "gateway_of_a_test.py:Gateway").proxy).__name__ == "Gateway"
    monkeypatch.chdir("/")
    path = directory / "gateway_of_a_test.py"
    assert type(parse("run", f"{path}:proxy").proxy).__name__ == "Gateway"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("gateway", "'gateway' is not MODULE:OBJECT: gateway:proxy or gateway.py:Gateway is right"),
        (":proxy", "':proxy' is not MODULE:OBJECT"),
        ("gateway:", "'gateway:' is not MODULE:OBJECT"),
        ("no_such_module:x", "there is no module no_such_module; the current directory and"),
        ("tests.no_such:x", "there is no module tests.no_such; the current directory and"),
        ("no/such.py:x", "there is no file no/such.py"),
        ("a-b:x", "'a-b' is no module name; a.b or path/to/file.py is right"),
        (
            "tests.server.test_cli:nope",
            "tests.server.test_cli has no nope; the name of a ProxyHttp",
        ),
        ("tests.server.test_cli:Holder.nope", "has no Holder.nope"),
        (
            "tests.server.test_cli:nothing",
            "gives a int: a ProxyHttp or ProxyStream object, class or",
        ),
        ("tests.server.test_cli:gives_another", "gives a int: a ProxyHttp or ProxyStream object"),
        ("tests.server.test_cli:needs_more", "cannot be called without arguments (needs_more()"),
        ("tests.server.test_cli:Unfinished", "cannot be called without arguments (Can't inst"),
    ],
)
def test_a_wrong_target_is_one_line(
    target: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(capsys, "run", target)
    assert told.startswith(f"trioproxy run: error: argument MODULE:OBJECT: {target!r}")
    assert expected in told


def test_an_error_inside_a_factory_is_not_hidden() -> None:
    with pytest.raises(TypeError, match="the factory's own"):
        main(["run", "tests.server.test_cli:fails"])


def test_a_module_that_cannot_import_another_is_not_hidden(directory: Path) -> None:
    (directory / "neighbour_of_gateway_of_a_test.py").write_text("import no_such_module_at_all")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        main(["run", "gateway_of_a_test:proxy"])


# -- help ------------------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--version") == f"trioproxy {trioproxy.__version__}\n"


def test_help_lists_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, "--help")
    assert "reverse" in told
    assert "run" in told


OF_REVERSE = {
    "--cache",
    "--cache-size",
    "--compress",
    "--rewrite-host",
    "--upstream-http",
    "--upstream-ca",
    "--upstream-insecure",
}
SHARED = {
    "--help", "--bind", "--tls-cert", "--tls-key", "--tls-self-signed", "--tls-client-ca", "--http",
    "--h2c", "--allow-connect", "--http1-codec", "--access-log", "--connect-timeout", "--read-timeout",
    "--write-timeout", "--idle-timeout", "--header-timeout", "--max-header-bytes",
    "--max-body-bytes", "--grace", "--log-level", "--proxy-protocol", "--trusted-proxy",
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "expected"), [("reverse", {*SHARED, *OF_REVERSE}), ("run", SHARED)]
)
def test_help_lists_what_exists_and_nothing_else(
    command: str, expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = shown(capsys, command, "--help").replace("[", " ").replace("]", " ").split()
    told = {word.rstrip(",") for word in words if word.startswith("--")}
    assert told == expected


# -- streams below HTTP ----------------------------------------------------------------------------


def streams(*arguments: str) -> StreamReverse:
    proxy = parse("reverse", *arguments).proxy
    assert isinstance(proxy, StreamReverse)
    return proxy


def test_every_form_of_a_streams_url_is_taken() -> None:
    proxy = streams("tcp://127.0.0.1:5432", "tls://db.example:5433", "unix:/run/db.sock")
    assert [peer.name for peer in proxy.peers] == [
        "127.0.0.1:5432",
        "tls://db.example:5433",
        "unix:/run/db.sock",
    ]


def test_tls_urls_are_trusted_by_a_file_or_in_any_case(tmp_path: Path) -> None:
    anchor = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(anchor))
    proxy = streams("tcp://a:1", "tls://b:2", "--upstream-ca", str(anchor))
    assert [peer.options.ca for peer in proxy.peers] == [None, (str(anchor),)]
    proxy = streams("tls://b:2", "--upstream-insecure")
    assert [peer.options.verify_cert for peer in proxy.peers] == [False]


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        (("--idle-timeout", "9"), "tunnel_idle_timeout", 9.0),
        (("--idle-timeout", "60"), "tunnel_idle_timeout", 60.0),
        (("--idle-timeout", "0"), "tunnel_idle_timeout", math.inf),
        ((), "tunnel_idle_timeout", 300.0),
        (("--connect-timeout", "2"), "connect_timeout", 2.0),
        (("--write-timeout", "3"), "write_timeout", 3.0),
        (("--grace", "4"), "grace", 4.0),
        (("--access-log", "json"), "access_log", "json"),
    ],
)
def test_options_that_streams_have_become_their_settings(
    arguments: tuple[str, ...], name: str, expected: object
) -> None:
    assert getattr(parse("reverse", "tcp://a:1", *arguments).conf, name) == expected


#: An argument for each option that is for HTTP alone.
FOR_HTTP = {
    "--allow-connect": "a.test:443",
    "--cache": "memory",
    "--cache-size": "1M",
    "--compress": None,
    "--h2c": None,
    "--header-timeout": "15",
    "--http": "auto",
    "--http1-codec": "auto",
    "--max-body-bytes": "10",
    "--max-header-bytes": "65536",
    "--read-timeout": "60",
    "--rewrite-host": None,
    "--upstream-http": "auto",
}
#: The options that streams have, too.
FOR_BOTH = {
    "--access-log",
    "--bind",
    "--connect-timeout",
    "--grace",
    "--help",
    "--idle-timeout",
    "--log-level",
    "--proxy-protocol",
    "--trusted-proxy",
    "--tls-cert",
    "--tls-client-ca",
    "--tls-key",
    "--tls-self-signed",
    "--upstream-ca",
    "--upstream-insecure",
    "--write-timeout",
}


def test_every_option_is_for_streams_or_refused_with_them() -> None:
    _, commands = _cli._parser()
    options = {
        text
        for action in commands["reverse"]._actions
        for text in action.option_strings
        if text.startswith("--")
    }
    assert options == FOR_HTTP.keys() | FOR_BOTH
    assert not FOR_HTTP.keys() & FOR_BOTH


@pytest.mark.parametrize("option", FOR_HTTP)
def test_an_option_of_http_beside_a_streams_url_is_one_line(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = FOR_HTTP[option]
    arguments = [option] if value is None else [option, value]
    for line in (("tcp://a:1", *arguments), (*arguments, "tcp://a:1")):
        told = refusal(capsys, "reverse", *line)
        assert told.startswith(f"trioproxy reverse: error: argument {option}: ")
        assert told.endswith(f"is for HTTP, and a:1 is for streams: leave {option} out\n")
        if option in ("--allow-connect", "--cache", "--http", "--http1-codec", "--upstream-http"):
            assert f": {value} is for HTTP" in told


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("tcp://a:1", "http://b:2"),
            "argument URL: a:1 is for streams and b:2 is for HTTP: URLs of one kind are right",
        ),
        (("http://b:2", "unix:x"), "argument URL: unix:x is for streams and b:2 is for HTTP"),
        (("tcp://a",), "argument URL: 'tcp://a' is not the address of a stream: tcp://host:port"),
        (("tcp:a:1",), "argument URL: 'tcp:a:1' is not the address of a stream"),
        (("tls+unix:x",), "argument URL: sni=None: without a name no certificate can be verified"),
        (("--h2c", "--", "tcp://a"), "argument URL: 'tcp://a' is not the address"),
        (
            ("tcp://a:1", "--upstream-insecure"),
            "argument --upstream-insecure is for TLS, and there is none: tls://host:port is right",
        ),
        (
            ("tcp://a:1", "--upstream-ca", "x.pem"),
            "argument --upstream-ca: x.pem is for TLS, and there is none",
        ),
        (
            ("tls://a:1", "--upstream-ca", "x.pem", "--upstream-insecure"),
            "argument --upstream-ca: x.pem is not used with --upstream-insecure: one is right",
        ),
        (("tls://a:1", "--upstream-ca", "none.pem"), "argument --upstream-ca: "),
        (
            ("tcp://a:1", "--trusted-proxy", "10.0.0.0/8"),
            "argument --trusted-proxy: 10.0.0.0/8 is believed in PROXY headers alone where a:1 is for "
            "streams: --proxy-protocol in is right beside it",
        ),
        (
            ("tcp://a:1", "--header-timeout", "3", "--proxy-protocol", "out"),
            "argument --header-timeout: 3",
        ),
        (("tls://a:1", "--upstream-ca", ""), "argument --upstream-ca: '' is no file"),
    ],
)
def test_a_mistake_with_a_streams_url_is_one_line(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, "reverse", *arguments).startswith(
        f"trioproxy reverse: error: {expected}"
    )


def test_streams_have_headers_of_proxies_and_a_time_for_them() -> None:
    trusted = ("--trusted-proxy", "10.0.0.0/8", "--proxy-protocol", "both")
    conf = parse("reverse", "tcp://a:1", *trusted, "--header-timeout", "3").conf
    assert (conf.proxy_protocol, conf.header_timeout) == ("both", 3)
    assert tuple(conf.trusted_proxies) == ("10.0.0.0/8",)


class Joined(ProxyStream[None]):
    """Serves streams, as a program does."""

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: StreamSession, ctx: None) -> StreamPeer:
        return StreamPeer("127.0.0.1", 1)


JOINED = Joined()


@pytest.mark.parametrize("name", ["Joined", "JOINED"])
def test_run_serves_an_object_or_a_class_of_streams(name: str) -> None:
    ran = parse("run", f"tests.server.test_cli:{name}", "--header-timeout", "3")
    assert type(ran.proxy).__name__ == "Joined"
    assert ran.conf.header_timeout == 3


def test_run_refuses_options_of_http_beside_streams(capsys: pytest.CaptureFixture[str]) -> None:
    target = "tests.server.test_cli:Joined"
    assert refusal(capsys, "run", target, "--h2c") == (
        f"trioproxy run: error: argument --h2c: it is for HTTP, and {target} is for streams: leave "
        "--h2c out\n"
    )


@pytest.mark.socket
async def test_streams_are_joined_to_the_upstreams_in_turn_and_past_one_that_is_not_there() -> None:
    async def answer(stream: trio.SocketStream, name: bytes) -> None:
        await stream.send_all(name + await stream.receive_some())

    with trio.fail_after(20), socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with (
            an_origin(lambda stream: answer(stream, b"one ")) as one,
            an_origin(lambda stream: answer(stream, b"two ")) as two,
        ):
            urls = [url.replace("http:", "tcp:") for url in (one, two)]
            urls.insert(1, f"tcp://127.0.0.1:{nobody.getsockname()[1]}")
            async with Program.start(
                "trioproxy", "reverse", *urls, "--bind", "127.0.0.1:0", "--access-log", "common"
            ) as program:
                url = await program.until(r"listening on tcp://(\S+)\n")
                host, _, port = url.rpartition(":")
                replies = []
                for _ in range(4):
                    async with await trio.open_tcp_stream(host, int(port)) as stream:
                        await stream.send_all(b"hello")
                        replies.append(b"".join([piece async for piece in stream]))
                assert replies == [b"one hello", b"two hello", b"two hello", b"one hello"]
                assert await program.ends(signal.SIGTERM) == 0
        lines = program.out.splitlines()
        assert len(lines) == 4
        assert lines[0].startswith("127.0.0.1 - - [")
        assert lines[0].endswith(f'"STREAM {urls[0].removeprefix("tcp://")} tcp" 200 9')
        assert "Traceback" not in program.err
