from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trioproxy
from trioproxy import ErrorSource, ErrorType, HttpPeer, Listener, ProxyError, Session
from trioproxy.transport import _listen
from trioproxy.transport._listen import ListenSocket, address_text, open_listeners

pytestmark = pytest.mark.socket


def _resolving(*hosts: str) -> Callable[..., list[Any]]:
    def getaddrinfo(_host: str, port: int, **_kwargs: object) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, port, 0, 0))
            if ":" in host
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
            for host in hosts
        ]

    return getaddrinfo


async def test_port_0_gets_a_port_and_the_url_names_it() -> None:
    (listening,) = await open_listeners(Listener("127.0.0.1:0"))
    port = int(listening.url.removeprefix("http://127.0.0.1:"))
    assert port > 0
    client = socket.create_connection(("127.0.0.1", port))
    with trio.fail_after(10):
        stream, info = await listening.accept()
    assert info.local == f"127.0.0.1:{port}"
    assert info.peer == f"127.0.0.1:{client.getsockname()[1]}"
    stream.close_now()
    client.close()
    listening.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_a_name_with_two_addresses_gets_one_port_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound: list[int] = []
    real = _listen._bind

    def bind(family: int, address: tuple[Any, ...]) -> socket.socket:
        # The second address stands in for ::1, which not every machine has.
        sock = real(socket.AF_INET, ("127.0.0.1", 0)) if family == socket.AF_INET6 else None
        bound.append(address[1])
        return sock or real(family, address)

    monkeypatch.setattr(socket, "getaddrinfo", _resolving("127.0.0.1", "::1"))
    monkeypatch.setattr(_listen, "_bind", bind)
    listening = await open_listeners(Listener("localhost:0"))
    assert len(listening) == 2
    assert bound == [0, int(listening[0].url.rpartition(":")[2])]
    for each in listening:
        each.close()


async def test_localhost_listens_on_every_address_it_has() -> None:
    listening = await open_listeners(Listener("localhost:0"))
    ports = {each.url.rpartition(":")[2] for each in listening}
    assert len(ports) == 1
    hosts = {each.url.removeprefix("http://").rpartition(":")[0] for each in listening}
    assert hosts <= {"127.0.0.1", "[::1]"}
    for each in listening:
        each.close()


async def test_a_port_that_is_taken_in_one_family_is_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = 0
    made: list[socket.socket] = []
    real = _listen._bind

    def bind(family: int, address: tuple[Any, ...]) -> socket.socket:
        nonlocal tries
        if family == socket.AF_INET6:
            tries += 1
            if tries < 3:
                raise OSError(errno.EADDRINUSE, "taken")
        made.append(real(socket.AF_INET, ("127.0.0.1", 0)))
        return made[-1]

    monkeypatch.setattr(socket, "getaddrinfo", _resolving("127.0.0.1", "::1"))
    monkeypatch.setattr(_listen, "_bind", bind)
    listening = await open_listeners(Listener("localhost:0"))
    assert tries == 3
    assert len(listening) == 2
    for each in listening:
        each.close()
    assert all(sock.fileno() == -1 for sock in made)


@pytest.mark.parametrize("hosts", [("127.0.0.1", "2001:db8::1"), ("2001:db8::1", "127.0.0.1")])
async def test_a_family_that_the_machine_lacks_is_left_out(
    monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _resolving(*hosts))
    (listening,) = await open_listeners(Listener("some.example:0"))
    assert listening.url.startswith("http://127.0.0.1:")
    listening.close()


async def test_an_address_that_is_taken_is_an_os_error() -> None:
    (first,) = await open_listeners(Listener("127.0.0.1:0"))
    with pytest.raises(OSError, match="in use") as caught:
        await open_listeners(Listener(first.url.removeprefix("http://")))
    assert caught.value.errno == errno.EADDRINUSE
    first.close()


async def test_a_name_that_cannot_be_one_is_an_os_error() -> None:
    with pytest.raises(OSError, match="is not a host name"):
        await open_listeners(Listener("x" * 80 + ":0"))


async def test_a_unix_socket_comes_and_goes_with_its_listener(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (listening,) = await open_listeners(Listener(f"unix:{path}"))
    assert listening.url == f"http+unix:{path}"
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    with trio.fail_after(10):
        stream, info = await listening.accept()
    assert (info.local, info.peer) == (f"unix:{path}", None)
    stream.close_now()
    client.close()
    listening.close()
    listening.close()
    assert not path.exists()


async def test_a_stale_unix_socket_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    (listening,) = await open_listeners(Listener(f"unix:{path}"))
    listening.close()


@pytest.mark.parametrize("full", [False, True])
async def test_a_unix_socket_that_is_served_is_left_alone(tmp_path: Path, full: bool) -> None:
    path = tmp_path / "s"
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen(0)
        while full and (not waiting or not waiting[-1].connect_ex(str(path))):
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
        with pytest.raises(OSError, match="in use"):
            await open_listeners(Listener(f"unix:{path}"))
        assert path.exists()
    for sock in waiting:
        sock.close()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        await open_listeners(Listener(f"unix:{path}"))
    assert path.read_text() == "precious"


async def test_closing_leaves_a_file_that_took_the_sockets_place(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (listening,) = await open_listeners(Listener(f"unix:{path}"))
    os.rename(path, tmp_path / "away")
    path.write_text("new")
    listening.close()
    assert path.read_text() == "new"


async def test_closing_wakes_who_waits_in_accept() -> None:
    (listening,) = await open_listeners(Listener("127.0.0.1:0"))

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listening.accept()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            listening.close()
        with pytest.raises(trio.ClosedResourceError):
            await listening.accept()


class Failing:
    """A listening socket whose accept fails as scripted before it works."""

    def __init__(self, sock: socket.socket, codes: list[int]) -> None:
        self.sock = sock
        self.codes = codes

    def fileno(self) -> int:
        return self.sock.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.codes:
            raise OSError(self.codes.pop(0), "scripted")
        return self.sock.accept()

    def close(self) -> None:
        self.sock.close()


def _failing(codes: list[int]) -> ListenSocket:
    sock: Any = Failing(_listen._bind(socket.AF_INET, ("127.0.0.1", 0)), codes)
    return ListenSocket(sock, "http://test")


async def test_r_06_a_connection_that_failed_in_the_queue_is_skipped() -> None:
    codes = [errno.ECONNABORTED, errno.EPROTO, errno.EAGAIN]
    listening = _failing(codes)
    client = socket.create_connection(listening._sock.sock.getsockname())  # type: ignore[attr-defined]  # see _failing
    with trio.fail_after(10):
        stream, _ = await listening.accept()
    assert not codes
    stream.close_now()
    client.close()
    listening.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_r_06_running_out_of_descriptors_or_memory_is_told(code: int) -> None:
    listening = _failing([code])
    client = socket.create_connection(listening._sock.sock.getsockname())  # type: ignore[attr-defined]  # see _failing
    with trio.fail_after(10), pytest.raises(OSError, match="scripted") as caught:
        await listening.accept()
    assert caught.value.errno == code
    client.close()
    listening.close()


@pytest.mark.parametrize(
    ("sockname", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        ("/run/s", "unix:/run/s"),
        (b"\0abstract", "unix:\0abstract"),
        ("", None),
        (b"", None),
        (None, None),
    ],
)
def test_an_address_reads_as_text(sockname: object, text: str | None) -> None:
    assert address_text(sockname) == text


class Nothing(trioproxy.ProxyHttp[None]):
    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        raise NotImplementedError


async def test_a_bind_that_fails_names_the_address_and_the_reason(tmp_path: Path) -> None:
    (taken,) = await open_listeners(Listener("127.0.0.1:0"))
    address = taken.url.removeprefix("http://")
    path = tmp_path / "no" / "s"
    for bind, reason in ((address, "in use"), (f"unix:{path}", "No such file")):
        with trio.fail_after(10), pytest.raises(ProxyError) as caught:
            await trioproxy.serve(Nothing(), f"unix:{tmp_path / 'good'}", bind)
        error = caught.value
        assert error.etype == ErrorType.BindError
        assert error.esource is ErrorSource.INTERNAL
        assert (error.context or "").startswith(f"cannot bind {bind}: ")
        assert reason in (error.context or "")
        assert isinstance(error.cause, OSError)
        assert not (tmp_path / "good").exists()
    taken.close()
