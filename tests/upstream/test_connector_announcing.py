"""The PROXY header that a new connection begins with: where it stands, and what it says of whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme

from tests._support.tls_wire import TlsWire, server_context
from trioproxy import HttpPeer, PeerOptions, ProxyError, ServerConf
from trioproxy._info import ConnectionInfo
from trioproxy._proxy_header import ProxyHeader
from trioproxy.codec._proxy_protocol import ProxyHeaderReader, encode_proxy_header
from trioproxy.transport._byte_stream import ByteStream, StreamAdapter
from trioproxy.upstream import _connector
from trioproxy.upstream._connector import SocketConnector

CLIENT = ConnectionInfo("192.0.2.1:80", "198.51.100.1:50000")
HEADER = ProxyHeader(source=CLIENT.peer, destination=CLIENT.local)
OUT = ServerConf(proxy_protocol="out")


@attrs.define(eq=False)
class Far:
    """The other end of every connection; it plays a script."""

    script: Callable[[Any], Any]
    nursery: trio.Nursery

    async def connect(self, address: tuple[str, int] | str) -> Any:
        near, far = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.script, far)
        return near


async def connected(
    script: Callable[[Any], Any], make: Callable[[PeerOptions], HttpPeer], **conf: Any
) -> None:
    """Connect to a peer whose other end plays a script, which has to come to its end."""
    done = trio.Event()

    async def play(stream: Any) -> None:
        await script(stream)
        done.set()

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            options = PeerOptions(custom_l4=Far(play, nursery))
            await SocketConnector(ServerConf(**conf)).connect(make(options))
            await done.wait()


async def read_header(stream: Any) -> ProxyHeader:
    """Read a header, and nothing behind it."""
    reader, header = ProxyHeaderReader(), None
    while header is None:
        header = reader.feed(await stream.receive_some())
    assert reader.rest == b""
    return header


@pytest.mark.parametrize("version", [1, 2])
async def test_a_client_is_announced(version: int, autojump_clock: trio.testing.MockClock) -> None:
    async def script(stream: Any) -> None:
        assert await read_header(stream) == attrs.evolve(HEADER, version=version)

    await connected(
        script,
        lambda options: HttpPeer("a", 80, options=options).announcing(CLIENT, version),
        proxy_protocol="out",
    )


async def test_a_connection_of_our_own_says_that_it_is_local(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """To see whether an origin is well, say; it wants a header all the same."""

    async def script(stream: Any) -> None:
        assert await read_header(stream) == ProxyHeader(local=True)

    await connected(
        script,
        lambda options: HttpPeer("a", 80, options=options),
        proxy_protocol="both",
        trusted_proxies=["unix"],
    )
    await connected(
        script,
        lambda options: HttpPeer("a", 80, options=attrs.evolve(options, proxy_protocol=2)),
    )


async def test_a_connection_of_our_own_has_no_word_for_that_in_version_1(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    near, far = trio.testing.memory_stream_pair()

    async def connect(*_args: Any, **_settings: Any) -> tuple[ByteStream, ConnectionInfo]:
        await trio.lowlevel.checkpoint()
        return StreamAdapter(near), ConnectionInfo("192.0.2.9:40000", "192.0.2.10:80")

    monkeypatch.setattr(_connector, "connect", connect)
    peer = HttpPeer("192.0.2.10", 80, options=PeerOptions(proxy_protocol=1))
    await SocketConnector(ServerConf()).connect(peer)
    assert await far.receive_some() == b"PROXY TCP4 192.0.2.9 192.0.2.10 40000 80\r\n"


async def test_what_a_proxy_before_us_told_may_be_too_long_to_be_handed_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = ProxyHeader(authority="x" * 4077)  # without addresses, which ours has
    assert ProxyHeaderReader().feed(encode_proxy_header(told)) == told
    client = attrs.evolve(CLIENT, proxy_header=told)

    async def script(stream: Any) -> None:
        assert await stream.receive_some() == b""  # closed, and nothing was sent

    with pytest.RaisesGroup(pytest.RaisesExc(ProxyError, match="at most 4096")):
        await connected(
            script,
            lambda options: HttpPeer("a", 80, options=options).announcing(client, 2),
            proxy_protocol="out",
        )


async def test_nothing_is_sent_where_the_peer_or_nobody_wants_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(stream: Any) -> None:
        with trio.move_on_after(5) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught

    await connected(script, lambda options: HttpPeer("a", 80, options=options))
    await connected(
        script,
        lambda options: HttpPeer("a", 80, options=attrs.evolve(options, proxy_protocol=0)),
        proxy_protocol="out",
    )


async def test_the_header_goes_through_a_connect_proxy_to_the_peer_before_tls(
    autojump_clock: trio.testing.MockClock,
) -> None:
    authority = trustme.CA()

    async def script(stream: Any) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += await stream.receive_some()
        assert asked.startswith(b"CONNECT a.test:443 HTTP/1.1\r\n")
        assert asked.endswith(b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        reader = ProxyHeaderReader()
        # Byte by byte, so that what comes behind it stays there.
        while (header := reader.feed(await stream.receive_some(1))) is None:
            pass
        assert header == HEADER
        tls = TlsWire.wrap(stream, context, server_side=True)
        await tls.handshake()

    context = server_context(authority.issue_cert("a.test"))
    await connected(
        script,
        lambda options: HttpPeer.new_proxy(
            "proxy.test:8080",
            "a.test",
            443,
            tls=True,
            options=attrs.evolve(options, ca=authority),
        ).announcing(CLIENT, 2),
        proxy_protocol="out",
    )


def test_a_peer_that_announces_is_the_same_peer_but_for_its_connections() -> None:
    peer = HttpPeer("a", 80)
    one, two = peer.announcing(CLIENT, 2), peer.announcing(attrs.evolve(CLIENT), 2)
    assert one == peer
    assert one.shared_key == peer.shared_key == peer.reuse_key
    assert one.reuse_key == two.reuse_key != peer.reuse_key  # a copy has the same life
    other = peer.announcing(ConnectionInfo(CLIENT.local, CLIENT.peer), 2)
    assert other.reuse_key != one.reuse_key
    assert peer.announcing(CLIENT, 1).reuse_key != one.reuse_key
    assert encode_proxy_header(HEADER) == encode_proxy_header(one.announce.header)  # type: ignore[union-attr]  # it has one


def test_a_tunnel_announces_only_where_its_peer_asks_for_that() -> None:
    peer = HttpPeer("a", 80)
    assert peer.raw().options.proxy_protocol == 0
    announcing = peer.announcing(CLIENT, 2).raw()
    assert announcing.announce is not None
    assert announcing.options.proxy_protocol is None


@pytest.mark.parametrize("wrong", [3, -1, True, "2"])
def test_a_version_that_there_is_not_is_refused(wrong: Any) -> None:
    with pytest.raises(
        ValueError, match=r"proxy_protocol=.*: the version of a PROXY header, 0 to 2"
    ):
        PeerOptions(proxy_protocol=wrong)
    with pytest.raises(TypeError, match="announce"):
        HttpPeer("a", 80, announce=wrong)
