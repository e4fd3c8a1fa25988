"""Sockets out: names looked up, all addresses tried, every cause kept."""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import socket
from typing import Any

import trio

from .._errors import ErrorSource, ErrorType, ProxyError
from .._info import ConnectionInfo
from ._byte_stream import ByteStream, SocketStream
from ._listen import address_text

#: Seconds before the next address is tried beside the ones under way (RFC 8305 section 5).
STAGGER = 0.25
#: Seconds between tries at a unix socket whose queue is full: nothing tells when it has room.
QUEUE_FULL = 0.01
_UNDER_WAY = (errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS))

Address = tuple[int, Any]


async def connect(
    host: str | None,
    port: int | None,
    *,
    path: str | None = None,
    connect_timeout: float,
    dns_timeout: float,
    limiter: trio.CapacityLimiter,
) -> tuple[ByteStream, ConnectionInfo]:
    """Connect to a host's first address that answers, or to a unix socket.

    Args:
      host: A name or an IP literal; None with ``path``.
      port: The TCP port.
      path: The path of a unix socket.
      connect_timeout: Seconds for connecting, over all addresses.
      dns_timeout: Seconds for the look-up.
      limiter: Bounds the look-ups that run at once.

    Raises:
      ProxyError: ConnectRefused, ConnectTimedout, ConnectNoRoute or ConnectError.
    """
    if path is not None:
        addresses: list[Address] = [(socket.AF_UNIX, path)]
        name = f"unix:{path}"
    else:
        assert host is not None
        assert port is not None
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        addresses = await _resolve(host, port, dns_timeout, limiter)
    sock: socket.socket | None = None
    errors: list[str] = []
    causes: list[OSError] = []
    with trio.move_on_after(connect_timeout) as scope:
        sock = await _first(addresses, errors, causes)
    if sock is None:
        text = f"connecting to {name}"
        if scope.cancelled_caught:
            errors.append(f"no answer in {connect_timeout:g} s")
            error = ProxyError.explain(ErrorType.ConnectTimedout, f"{text}: {'; '.join(errors)}")
        else:
            cause = causes[-1]
            error = ProxyError.because(
                _kind(cause), f"{text}: {'; '.join(dict.fromkeys(errors))}", cause
            )
        error.esource = ErrorSource.UPSTREAM
        raise error
    try:
        info = ConnectionInfo(
            address_text(sock.getsockname()),
            address_text(sock.getpeername()),
            trio.current_time(),
        )
        return SocketStream(sock), info
    except OSError as exc:
        sock.close()
        raise ProxyError.because(_kind(exc), f"connecting to {name}", exc).into_up() from exc


def _kind(exc: OSError) -> ErrorType:
    if isinstance(exc, ConnectionRefusedError) or exc.errno == errno.ENOENT:
        return ErrorType.ConnectRefused
    if isinstance(exc, TimeoutError):
        return ErrorType.ConnectTimedout
    if exc.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
        return ErrorType.ConnectNoRoute
    return ErrorType.ConnectError


async def _resolve(
    host: str, port: int, timeout: float, limiter: trio.CapacityLimiter
) -> list[Address]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if address.version == 4:
            return [(socket.AF_INET, (host, port))]
        return [(socket.AF_INET6, (host, port))]
    found: list[Any] | None = None
    try:
        with trio.move_on_after(timeout):
            found = await trio.to_thread.run_sync(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
                abandon_on_cancel=True,
                limiter=limiter,
            )
    except (OSError, UnicodeError) as exc:
        raise ProxyError.because(
            ErrorType.ConnectError, f"looking up {host}", exc
        ).into_up() from exc
    if found is None:
        raise ProxyError.explain(
            ErrorType.ConnectTimedout, f"looking up {host}: no answer in {timeout:g} s"
        ).into_up()
    return _interleaved(list(dict.fromkeys((info[0], info[4]) for info in found)))


def _interleaved(addresses: list[Address]) -> list[Address]:
    """Order addresses so that the families take turns (RFC 8305 section 4)."""
    if not addresses:
        return addresses
    first = addresses[0][0]
    mine = [each for each in addresses if each[0] == first]
    other = [each for each in addresses if each[0] != first]
    merged: list[Address] = []
    for index in range(max(len(mine), len(other))):
        merged += mine[index : index + 1] + other[index : index + 1]
    return merged


async def _first(
    addresses: list[Address], errors: list[str], causes: list[OSError]
) -> socket.socket | None:
    """Race the addresses, each starting when the one before it failed or was slow."""
    if len(addresses) == 1:
        return await _try(addresses[0], errors, causes)
    winner: socket.socket | None = None

    async def attempt(address: Address, failed: trio.Event, scope: trio.CancelScope) -> None:
        nonlocal winner
        sock = await _try(address, errors, causes)
        if sock is None:
            failed.set()
        elif winner is None:
            winner = sock
            scope.cancel()
        else:
            sock.close()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed, nursery.cancel_scope)
                with trio.move_on_after(STAGGER if address is not addresses[-1] else math.inf):
                    await failed.wait()
    except BaseException:
        if winner is not None:  # cancelled between the race's end and here
            winner.close()
        raise
    return winner


async def _try(address: Address, errors: list[str], causes: list[OSError]) -> socket.socket | None:
    family, where = address
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        code = sock.connect_ex(where)
        while code == errno.EAGAIN and family == socket.AF_UNIX:
            await trio.sleep(QUEUE_FULL)
            code = sock.connect_ex(where)
        if code in _UNDER_WAY:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except OSError as exc:
        if sock is not None:
            sock.close()
        errors.append(f"{address_text(where)}: {exc.strerror or exc}")
        causes.append(exc)
        return None
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    return sock
