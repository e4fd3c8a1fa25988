from __future__ import annotations

import math
import socket
from typing import Any

import pytest
import trio
import trio.testing

from trioproxy import ErrorType, HttpPeer, PeerOptions, ProxyError, ServerConf
from trioproxy._info import ConnectionInfo
from trioproxy.transport._byte_stream import ByteStream, StreamAdapter
from trioproxy.upstream import _connector
from trioproxy.upstream._connector import LOOKUPS, SocketConnector


@pytest.mark.parametrize(
    ("of_the_peer", "expected"), [(None, 5.0), (0.5, 0.5), (math.inf, math.inf)]
)
async def test_a_peers_timeout_goes_before_the_servers(
    monkeypatch: pytest.MonkeyPatch, of_the_peer: float | None, expected: float
) -> None:
    seen: dict[str, Any] = {}

    async def connect(
        host: str | None, port: int | None, **settings: Any
    ) -> tuple[ByteStream, ConnectionInfo]:
        await trio.lowlevel.checkpoint()
        seen.update(settings, host=host, port=port)
        return StreamAdapter(trio.testing.memory_stream_pair()[0]), ConnectionInfo(None, "x")

    monkeypatch.setattr(_connector, "connect", connect)
    conf = ServerConf(connect_timeout=5, dns_timeout=3)
    options = PeerOptions(connection_timeout=of_the_peer)
    connection = await SocketConnector(conf).connect(HttpPeer("a.example", 81, options=options))
    assert connection.info.peer == "x"
    limiter = seen.pop("limiter")
    assert limiter.total_tokens == LOOKUPS
    assert limiter is not trio.to_thread.current_default_thread_limiter()
    assert seen == {
        "host": "a.example",
        "port": 81,
        "path": None,
        "connect_timeout": expected,
        "dns_timeout": 3,
        "options": None,
    }


@pytest.mark.socket
async def test_f_01_a_refused_connection_is_the_connectors_error() -> None:
    with socket.socket() as sock:  # bound, but not listening
        sock.bind(("127.0.0.1", 0))
        peer = HttpPeer("127.0.0.1", sock.getsockname()[1])
        with trio.fail_after(10), pytest.raises(ProxyError) as caught:
            await SocketConnector(ServerConf()).connect(peer)
    assert caught.value.etype == ErrorType.ConnectRefused


async def test_r_09_the_total_timeout_is_for_the_look_up_too(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def resolve(*_args: object) -> Any:
        await trio.sleep_forever()

    monkeypatch.setattr("trioproxy.transport._connect._resolve", resolve)
    peer = HttpPeer("slow.example", 80, options=PeerOptions(total_connection_timeout=3))
    with trio.fail_after(100), pytest.raises(ProxyError) as caught:
        await SocketConnector(ServerConf()).connect(peer)
    assert caught.value.etype == ErrorType.ConnectTimedout
    assert caught.value.context == "connecting to slow.example: no answer in 3 s"
    assert trio.current_time() == pytest.approx(3)
