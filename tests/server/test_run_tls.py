"""The program over TLS and HTTP/2: what its options do on a wire, and SIGHUP."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from hyperframe.frame import DataFrame, GoAwayFrame

from tests._support.h2_wire import NO_ERROR, H2Wire, request
from tests._support.tls_wire import TlsWire
from tests.server._network import Program, an_origin, ask, connect, mirror, receive_until

pytestmark = pytest.mark.socket

ERROR_IF_LATE = 30


@attrs.frozen
class Files:
    """An authority, and the files of the certificate that the program serves."""

    authority: trustme.CA
    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Files:
        files = cls(trustme.CA(), directory)
        files.authority.cert_pem.write_to_path(files.ca)
        files.renew()
        return files

    @property
    def ca(self) -> str:
        return str(self.directory / "ca.pem")

    @property
    def cert(self) -> Path:
        return self.directory / "cert.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def renew(self) -> None:
        """Put another certificate and its key into the files."""
        leaf = self.authority.issue_cert("localhost")
        leaf.private_key_pem.write_to_path(str(self.key))
        leaf.cert_chain_pems[0].write_to_path(str(self.cert))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files.make(tmp_path)


@attrs.define(eq=False)
class Served:
    """The running program, its URL and our connections to it."""

    program: Program
    url: str
    sockets: list[trio.SocketStream] = attrs.field(factory=list)

    async def plain(self) -> trio.StapledStream[Any, Any]:
        """Open a connection without TLS."""
        sock = await connect(self.url.replace("https:", "http:"))
        self.sockets.append(sock)
        return trio.StapledStream(sock, sock)

    async def tls(
        self,
        authority: trustme.CA | None,
        *alpn: str,
        certificate: trustme.LeafCert | None = None,
    ) -> TlsWire:
        """Open TLS, which the program must be offering on that very URL."""
        assert self.url.startswith("https://127.0.0.1:")
        tls = TlsWire.client(
            await self.plain(), "localhost", authority, alpn=alpn, certificate=certificate
        )
        await tls.handshake()
        return tls

    async def refuses(self, authority: trustme.CA, *alpn: str) -> None:
        """Check that TLS ends before any answer."""
        tls = TlsWire.client(await self.plain(), "localhost", authority, alpn=alpn)
        answer = b""
        try:
            await tls.handshake()
            await tls.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = await tls.receive_some()
        except (OSError, trio.BrokenResourceError):  # ssl.SSLError is an OSError
            return
        assert answer == b""


@asynccontextmanager
async def reverse(*options: str) -> AsyncIterator[Served]:
    """Run the program in front of an origin that mirrors requests; it must stop well."""
    with trio.fail_after(ERROR_IF_LATE):
        async with (
            an_origin(mirror) as origin,
            Program.start(
                "trioproxy", "reverse", origin, "--bind", "127.0.0.1:0", *options
            ) as program,
        ):
            served = Served(program, await program.until(r"listening on (\S+)\n"))
            try:
                yield served
            finally:
                for sock in served.sockets:
                    await trio.aclose_forcefully(sock)
            signals = [signal.SIGTERM] if program.process.returncode is None else []
            assert await program.ends(*signals) == 0
            assert "Traceback" not in program.err


async def mirrored(tls: TlsWire, target: str) -> bytes:
    """Send a request over HTTP/1.1 and return what the origin got of it."""
    await tls.send_all(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    reply = await receive_until(tls.stapled, b"\r\n\r\n")
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    if not body.endswith(b"\r\n\r\n"):
        body += await receive_until(tls.stapled, b"\r\n\r\n")
    return body


async def mirrored_h2(wire: H2Wire, scheme: str) -> bytes:
    """Send the connection's first request and return what the origin got of it."""
    await wire.start()
    await wire.headers(1, request("GET", "/two", authority="localhost", scheme=scheme), end=True)
    assert (await wire.head(1)).get(":status") == "200"
    return (await wire.until(DataFrame, 1)).data


async def test_a_certificate_serves_http1_and_http2_by_alpn(files: Files) -> None:
    async with reverse(*files.options, "--access-log", "json") as served:
        one = await served.tls(files.authority, "http/1.1")
        body = await mirrored(one, "/one")
        assert body.startswith(b"GET /one HTTP/1.1\r\n")
        assert b"\r\nx-forwarded-proto: https\r\n" in body.lower()
        two = await served.tls(files.authority, "h2", "http/1.1")
        assert two.alpn == "h2"
        body = await mirrored_h2(H2Wire(two.stapled), "https")
        assert body.startswith(b"GET /two HTTP/1.1\r\nHost: localhost\r\n")
        assert b"\r\nvia: 2 " in body.lower()
    first, second = served.program.out.splitlines()
    assert json.loads(first)["version"] == "HTTP/1.1"
    assert json.loads(second)["version"] == "HTTP/2"


async def test_a_throw_away_certificate_serves_who_trusts_anybody() -> None:
    async with reverse("--tls-self-signed") as served:
        tls = await served.tls(None, "h2")
        assert (await mirrored_h2(H2Wire(tls.stapled), "https")).startswith(b"GET /two ")
        await served.refuses(trustme.CA())


async def test_client_certificates_are_asked_for_and_verified(files: Files) -> None:
    async with reverse(*files.options, "--tls-client-ca", files.ca) as served:
        known = files.authority.issue_cert("me@site.test", common_name="me")
        tls = await served.tls(files.authority, certificate=known)
        assert (await mirrored(tls, "/mine")).startswith(b"GET /mine ")
        await served.refuses(files.authority)


async def test_cleartext_takes_prior_knowledge_where_it_is_told_to() -> None:
    async with reverse("--h2c") as served:
        assert served.url.startswith("http://")
        body = await mirrored_h2(H2Wire(await served.plain()), "http")
        assert body.startswith(b"GET /two ")
        assert (await ask(served.url)).status == 200


async def test_http_2_alone_takes_no_http_1(files: Files) -> None:
    async with reverse(*files.options, "--http", "2") as served:
        tls = await served.tls(files.authority, "h2")
        assert (await mirrored_h2(H2Wire(tls.stapled), "https")).startswith(b"GET /two ")
        await served.refuses(files.authority, "http/1.1")


async def test_http_1_alone_offers_no_http_2(files: Files) -> None:
    async with reverse(*files.options, "--http", "1") as served:
        tls = await served.tls(files.authority, "h2", "http/1.1")
        assert tls.alpn == "http/1.1"
        assert (await mirrored(tls, "/one")).startswith(b"GET /one ")


# -- SIGHUP ----------------------------------------------------------------------------------------


async def test_sighup_reads_the_certificate_again_and_drops_no_connection(files: Files) -> None:
    async with reverse(*files.options) as served:
        before = await served.tls(files.authority)
        before_h2 = H2Wire((await served.tls(files.authority, "h2")).stapled)
        assert (await mirrored(before, "/1")).startswith(b"GET /1 ")
        files.renew()
        served.program.process.send_signal(signal.SIGHUP)
        await served.program.until("SIGHUP: the certificates were read again")
        after = await served.tls(files.authority)
        assert after.peer_certificate != before.peer_certificate
        assert (await mirrored(after, "/2")).startswith(b"GET /2 ")
        assert (await mirrored(before, "/3")).startswith(b"GET /3 ")
        assert (await mirrored_h2(before_h2, "https")).startswith(b"GET /two ")


async def test_a_certificate_that_cannot_be_read_again_changes_nothing(files: Files) -> None:
    async with reverse(*files.options) as served:
        before = await served.tls(files.authority)
        files.cert.write_text("nothing")
        served.program.process.send_signal(signal.SIGHUP)
        await served.program.until("the TLS certificates were not reloaded: certificate=.*cert.pem")
        assert "were read again" not in served.program.err
        after = await served.tls(files.authority)
        assert after.peer_certificate == before.peer_certificate
        assert (await mirrored(after, "/2")).startswith(b"GET /2 ")


async def test_sighup_without_tls_is_nothing(files: Files) -> None:
    async with reverse() as served:
        served.program.process.send_signal(signal.SIGHUP)
        assert (await ask(served.url)).status == 200


async def test_s_07_a_signal_says_goodbye_to_an_idle_http2_connection(files: Files) -> None:
    async with reverse(*files.options, "--access-log", "common") as served:
        wire = H2Wire((await served.tls(files.authority, "h2")).stapled)
        await mirrored_h2(wire, "https")
        served.program.process.send_signal(signal.SIGTERM)
        assert (await wire.until(GoAwayFrame)).error_code == NO_ERROR
        assert await served.program.process.wait() == 0
    assert '"GET /two HTTP/2" 200' in served.program.out
