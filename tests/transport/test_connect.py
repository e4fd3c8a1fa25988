from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trioproxy import ErrorSource, ErrorType, ProxyError
from trioproxy._info import ConnectionInfo
from trioproxy.transport import _connect
from trioproxy.transport._byte_stream import ByteStream
from trioproxy.transport._connect import Address, connect

Resolver = Callable[..., list[Any]]


async def _connect_to(
    host: str | None,
    port: int | None,
    *,
    path: str | None = None,
    connect_timeout: float = 5,
    dns_timeout: float = 5,
    limiter: trio.CapacityLimiter | None = None,
) -> tuple[ByteStream, ConnectionInfo]:
    return await connect(
        host,
        port,
        path=path,
        connect_timeout=connect_timeout,
        dns_timeout=dns_timeout,
        limiter=limiter or trio.CapacityLimiter(1),
    )


@pytest.fixture
def origin() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


@pytest.fixture
def refusing_port() -> Iterator[int]:
    with socket.socket() as sock:  # bound, so that nobody else gets it, but not listening
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def _resolving(*addresses: tuple[str, int]) -> Resolver:
    def getaddrinfo(*_args: object, **_kwargs: object) -> list[Any]:
        return [
            (
                socket.AF_INET6 if ":" in host else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (host, port, 0, 0) if ":" in host else (host, port),
            )
            for host, port in addresses
        ]

    return getaddrinfo


@pytest.mark.socket
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_literal_and_a_name_connect(origin: socket.socket, host: str) -> None:
    port = origin.getsockname()[1]
    with trio.fail_after(10):
        stream, info = await _connect_to(host, port)
    assert info.peer == f"127.0.0.1:{port}"
    accepted, address = origin.accept()
    assert info.local == f"127.0.0.1:{address[1]}"
    assert not info.secure
    await stream.send_parts([b"abc"], 5)
    assert accepted.recv(3) == b"abc"
    accepted.close()
    stream.close_now()


@pytest.mark.socket
async def test_an_ipv6_literal_connects() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        sock.listen()
        port = sock.getsockname()[1]
        with trio.fail_after(10):
            stream, info = await _connect_to("::1", port)
        assert info.peer == f"[::1]:{port}"
        stream.close_now()


@pytest.mark.socket
async def test_a_unix_socket_connects(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        with trio.fail_after(10):
            stream, info = await _connect_to(None, None, path=path)
        assert (info.peer, info.local) == (f"unix:{path}", None)
        stream.close_now()


@pytest.mark.socket
async def test_a_unix_socket_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        code = 0
        while not code:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            code = waiting[-1].connect_ex(path)
        assert code == errno.EAGAIN
        streams: list[ByteStream] = []

        async def go() -> None:
            streams.append((await _connect_to(None, None, path=path))[0])

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                await trio.testing.wait_all_tasks_blocked()
                assert not streams
                waiting.append(server.accept()[0])
        (stream,) = streams
        stream.close_now()
        for sock in waiting:
            sock.close()


@pytest.mark.socket
async def test_refused_names_the_address_and_the_reason(refusing_port: int) -> None:
    with trio.fail_after(10), pytest.raises(ProxyError) as caught:
        await _connect_to("127.0.0.1", refusing_port)
    error = caught.value
    assert error.etype == ErrorType.ConnectRefused
    assert error.esource is ErrorSource.UPSTREAM
    assert error.will_retry() is False
    assert isinstance(error.cause, ConnectionRefusedError)
    assert error.context == (
        f"connecting to 127.0.0.1:{refusing_port}: 127.0.0.1:{refusing_port}: Connection refused"
    )


@pytest.mark.socket
@pytest.mark.parametrize("kind", ["missing", "dead", "too long"])
async def test_a_unix_socket_that_nobody_serves_is_an_error(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "s")
    if kind == "dead":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
    elif kind == "too long":
        path = "/" + "x" * 200
    with trio.fail_after(10), pytest.raises(ProxyError) as caught:
        await _connect_to(None, None, path=path)
    expected = ErrorType.ConnectError if kind == "too long" else ErrorType.ConnectRefused
    assert caught.value.etype == expected
    assert f"unix:{path}" in str(caught.value)


@pytest.mark.socket
async def test_f_02_all_addresses_are_tried_and_every_cause_is_told(
    monkeypatch: pytest.MonkeyPatch, refusing_port: int
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        ports = [refusing_port, other.getsockname()[1]]
        resolver = _resolving(*[("127.0.0.1", port) for port in ports])
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        with trio.fail_after(10), pytest.raises(ProxyError) as caught:
            await _connect_to("two.example", 80)
    assert caught.value.etype == ErrorType.ConnectRefused
    for port in ports:
        assert f"127.0.0.1:{port}: Connection refused" in (caught.value.context or "")
    assert "connecting to two.example:80" in (caught.value.context or "")


@pytest.mark.socket
async def test_the_second_address_serves_where_the_first_does_not(
    monkeypatch: pytest.MonkeyPatch, refusing_port: int, origin: socket.socket
) -> None:
    port = origin.getsockname()[1]
    resolver = _resolving(("127.0.0.1", refusing_port), ("127.0.0.1", port))
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with trio.fail_after(10):
        stream, info = await _connect_to("two.example", 80)
    assert info.peer == f"127.0.0.1:{port}"
    stream.close_now()


@pytest.mark.parametrize(
    "failure", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")]
)
async def test_a_name_that_is_not_found_is_a_connect_error(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def getaddrinfo(*_args: object, **_kwargs: object) -> list[Any]:
        raise failure

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with trio.fail_after(10), pytest.raises(ProxyError) as caught:
        await _connect_to("nowhere.example", 80)
    assert caught.value.etype == ErrorType.ConnectError
    assert caught.value.esource is ErrorSource.UPSTREAM
    assert caught.value.cause is failure
    assert "looking up nowhere.example" in str(caught.value)


async def test_an_unanswered_connect_times_out(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def silent(*_args: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(_connect, "_try", silent)
    with trio.fail_after(1000), pytest.raises(ProxyError) as caught:
        await _connect_to("192.0.2.1", 80, connect_timeout=5)
    assert caught.value.etype == ErrorType.ConnectTimedout
    assert caught.value.esource is ErrorSource.UPSTREAM
    assert caught.value.context == "connecting to 192.0.2.1:80: no answer in 5 s"
    assert trio.current_time() == pytest.approx(5)


FOUR, SIX = socket.AF_INET, socket.AF_INET6


def test_the_families_take_turns_from_the_one_that_the_resolver_prefers() -> None:
    addresses: list[Address] = [(SIX, 1), (SIX, 2), (SIX, 3), (FOUR, 4)]
    assert _connect._interleaved(addresses) == [(SIX, 1), (FOUR, 4), (SIX, 2), (SIX, 3)]
    assert _connect._interleaved([(FOUR, 1), (SIX, 2)]) == [(FOUR, 1), (SIX, 2)]
    assert _connect._interleaved([]) == []


class Race:
    """Scripted attempts: seconds until each address answers, and whether it does so well."""

    def __init__(self, script: dict[int, tuple[float, bool]]) -> None:
        self.script = script
        self.started: list[tuple[int, float]] = []
        self.made: dict[int, socket.socket] = {}
        self.cancelled: list[int] = []

    async def attempt(
        self, address: Address, errors: list[str], causes: list[OSError], _options: object = None
    ) -> socket.socket | None:
        key = address[1]
        self.started.append((key, trio.current_time()))
        delay, good = self.script[key]
        try:
            await trio.sleep(delay)
        except trio.Cancelled:
            self.cancelled.append(key)
            raise
        if good:
            self.made[key] = socket.socket()
            return self.made[key]
        errors.append(f"{key}: failed")
        causes.append(ConnectionRefusedError(errno.ECONNREFUSED, "failed"))
        return None


async def test_the_next_address_starts_when_one_failed_or_was_slow(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    race = Race({1: (0.1, False), 2: (10, True), 3: (0.1, True), 4: (0, True)})
    monkeypatch.setattr(_connect, "_try", race.attempt)
    errors: list[str] = []
    with trio.fail_after(1000):
        winner = await _connect._first([(FOUR, key) for key in (1, 2, 3, 4)], errors, [])
    assert winner is race.made[3]
    assert [key for key, _ in race.started] == [1, 2, 3]
    assert [moment for _, moment in race.started] == pytest.approx([0, 0.1, 0.35])
    assert race.cancelled == [2]
    assert errors == ["1: failed"]
    winner.close()


async def test_a_timeout_tells_what_failed_before_it(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    race = Race({1: (0.1, False), 2: (1000, True)})

    async def resolve(*_args: object) -> list[Address]:
        return [(FOUR, 1), (FOUR, 2)]

    monkeypatch.setattr(_connect, "_try", race.attempt)
    monkeypatch.setattr(_connect, "_resolve", resolve)
    with trio.fail_after(1000), pytest.raises(ProxyError) as caught:
        await _connect_to("two.example", 80, connect_timeout=3)
    assert caught.value.context == "connecting to two.example:80: 1: failed; no answer in 3 s"


@pytest.mark.parametrize("loser_is_good", [True, False])
async def test_a_race_that_is_cancelled_after_it_was_won_leaves_no_socket(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    loser_is_good: bool,
) -> None:
    race = Race({1: (1, True), 2: (0, True)})

    async def attempt(
        address: Address, errors: list[str], causes: list[OSError], _options: object = None
    ) -> socket.socket | None:
        if address[1] == 2:  # is still busy when the race has been won
            with trio.CancelScope(shield=True):
                await trio.sleep(10)
            if not loser_is_good:
                return None
        return await race.attempt(address, errors, causes)

    monkeypatch.setattr(_connect, "_try", attempt)
    with trio.fail_after(1000), trio.move_on_after(5) as scope:
        await _connect._first([(FOUR, 1), (FOUR, 2)], [], [])
    assert scope.cancelled_caught
    assert race.made
    assert all(sock.fileno() == -1 for sock in race.made.values())


class SlowResolver:
    """A resolver that answers when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, *_args: object, **_kwargs: object) -> list[Any]:
        self.go.wait(10)
        raise socket.gaierror(-2, "too late")


async def _until_free(limiter: trio.CapacityLimiter) -> None:
    while limiter.borrowed_tokens:
        await trio.lowlevel.checkpoint()


async def test_r_09_a_cancelled_look_up_returns_at_once_and_holds_its_own_limiter_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = SlowResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    limiter = trio.CapacityLimiter(1)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: _connect_to("slow.example", 80, limiter=limiter))
            await trio.testing.wait_all_tasks_blocked()
            assert limiter.borrowed_tokens == 1
            nursery.cancel_scope.cancel()
        assert limiter.borrowed_tokens == 1
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        resolver.go.set()
        await _until_free(limiter)


async def test_r_09_a_look_up_times_out_also_while_it_waits_for_a_thread(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    resolver = SlowResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    limiter = trio.CapacityLimiter(1)
    with trio.fail_after(1000):
        for _ in range(2):
            with pytest.raises(ProxyError) as caught:
                await _connect_to("slow.example", 80, dns_timeout=5, limiter=limiter)
            assert caught.value.etype == ErrorType.ConnectTimedout
            assert caught.value.esource is ErrorSource.UPSTREAM
            assert caught.value.context == "looking up slow.example: no answer in 5 s"
    resolver.go.set()
    await _until_free(limiter)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ECONNREFUSED, ErrorType.ConnectRefused),
        (errno.ENOENT, ErrorType.ConnectRefused),
        (errno.ETIMEDOUT, ErrorType.ConnectTimedout),
        (errno.ENETUNREACH, ErrorType.ConnectNoRoute),
        (errno.EHOSTUNREACH, ErrorType.ConnectNoRoute),
        (errno.EADDRNOTAVAIL, ErrorType.ConnectNoRoute),
        (errno.EACCES, ErrorType.ConnectError),
        (errno.EMFILE, ErrorType.ConnectError),
    ],
)
def test_an_os_error_has_its_kind(code: int, kind: ErrorType) -> None:
    assert _connect._kind(OSError(code, "x")) == kind
