"""Sockets out: names looked up, all addresses tried, every cause kept."""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import os
import socket
from typing import Any

import trio

from .._errors import ErrorType, ProxyError
from .._info import ConnectionInfo
from .._options import BindTo, L4Connect, PeerOptions
from .._peer import host_and_port
from ._byte_stream import ByteStream, SocketStream, StreamAdapter
from ._listen import address_text
from ._sockets import BindFailed, OptionError, open_towards

_log = logging.getLogger("trioproxy")

#: Seconds before the next address is tried beside the ones under way (RFC 8305 section 5).
STAGGER = 0.25
#: Seconds between tries at a unix socket whose queue is full: nothing tells when it has room.
QUEUE_FULL = 0.01
_UNDER_WAY = (errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS))
# What we have run out of, the peer being fine.
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Address = tuple[int, Any]


async def connect(
    host: str | None,
    port: int | None,
    *,
    path: str | None = None,
    connect_timeout: float,
    dns_timeout: float,
    limiter: trio.CapacityLimiter,
    options: PeerOptions | None = None,
) -> tuple[ByteStream, ConnectionInfo]:
    """Connect to a host's first address that answers, or to a unix socket.

    Args:
      host: A name or an IP literal; None with ``path``.
      port: The TCP port.
      path: The path of a unix socket.
      connect_timeout: Seconds for connecting, over all addresses.
      dns_timeout: Seconds for the look-up.
      limiter: Bounds the look-ups that run at once.
      options: What to set on the socket, or who connects in its place; None for nothing of it.

    Raises:
      ProxyError: ConnectRefused, ConnectTimedout, ConnectNoRoute, ConnectError, BindError,
        SocketError (an option that cannot be had), or HTTPStatus(503): nothing is wrong with the
        peer, we have run out of descriptors or memory.
    """
    if path is not None:
        name = f"unix:{path}"
    else:
        assert host is not None
        assert port is not None
        name = host_and_port(host, port)
    if options is not None and options.custom_l4 is not None:
        address = path if path is not None else (host, port)
        return await _custom(options.custom_l4, address, name, connect_timeout)
    asked = trio.current_time()
    if path is not None:
        addresses: list[Address] = [(socket.AF_UNIX, path)]
    else:
        assert host is not None
        assert port is not None
        addresses = await _resolve(host, port, dns_timeout, limiter)
        if options is not None and options.bind_to is not None:
            addresses = _of_family(addresses, options.bind_to, name)
    started = trio.current_time()
    sock: socket.socket | None = None
    errors: list[str] = []
    causes: list[OSError] = []
    with trio.move_on_after(connect_timeout) as scope:
        sock = await _first(addresses, errors, causes, options)
    if sock is None:
        waited = connect_timeout if scope.cancelled_caught else None
        raise _failure(f"connecting to {name}", errors, causes, waited)
    try:
        now = trio.current_time()
        stream = SocketStream(sock)
        info = ConnectionInfo(
            address_text(sock.getsockname()),
            _peer_text(sock, addresses, name, options),
            now,
            lookup_time=started - asked,
            connect_time=now - started,
            read_tcp_info=stream.tcp_info,
        )
    except OSError as exc:
        sock.close()
        raise ProxyError.because(_kind(exc), f"connecting to {name}", exc).into_up() from exc
    return stream, info


def _failure(
    text: str, errors: list[str], causes: list[OSError], waited: float | None
) -> ProxyError:
    """Return the error of an attempt, with what went wrong at every address."""
    if waited is not None:
        told = "; ".join([*errors, f"no answer in {waited:g} s"])
        return ProxyError.explain(ErrorType.ConnectTimedout, f"{text}: {told}").into_up()
    short = [exc for exc in causes if exc.errno in _SHORTAGE]
    cause = short[0] if short else causes[-1]
    told = "; ".join(dict.fromkeys(errors))
    error = ProxyError.because(_kind(cause), f"{text}: {told}", cause)
    if not short:
        return error.into_up()
    # Ours is the lack (row R-06): the client gets a 503 and may try again. The kind carries that,
    # whatever source the engine gives to what it could not connect to; the cause is an internal one.
    lack = ProxyError.because(
        ErrorType.HTTPStatus(503), "no descriptor or memory for a connection", error.into_in()
    )
    return lack.into_up()


def _peer_text(
    sock: socket.socket, addresses: list[Address], name: str, options: PeerOptions | None
) -> str | None:
    try:
        return address_text(sock.getpeername())
    except OSError:
        # With fast open the SYN has perhaps not left yet, and the socket has no peer until then.
        if options is None or not options.tcp_fast_open:
            raise
        return address_text(addresses[0][1]) if len(addresses) == 1 else name


async def _custom(
    l4: L4Connect, address: Any, name: str, timeout: float
) -> tuple[ByteStream, ConnectionInfo]:
    """Let a connector object of the user's connect."""
    text = f"custom_l4 connecting to {name}"
    stream: Any = None
    started = trio.current_time()
    try:
        with trio.move_on_after(timeout):
            stream = await l4.connect(address)
        if stream is None:
            raise ProxyError.explain(
                ErrorType.ConnectTimedout, f"{text}: no answer in {timeout:g} s"
            )
        if not isinstance(stream, (trio.abc.Stream, ByteStream)):
            raise TypeError(f"it returned {stream!r}: a trio.abc.Stream is right")
    except ProxyError as exc:
        raise exc.into_up() from exc.cause
    except OSError as exc:
        raise ProxyError.because(_kind(exc), text, exc).into_up() from exc
    except trio.BrokenResourceError as exc:
        raise ProxyError.because(ErrorType.ConnectError, text, exc).into_up() from exc
    except Exception as exc:  # the user's mistake costs this attempt, and is told
        _log.exception("%s failed", text)
        raise ProxyError.because(ErrorType.ConnectError, text, exc).into_up() from exc
    now = trio.current_time()
    info = ConnectionInfo(None, name, now, connect_time=now - started)
    # A network in memory gives what sockets would: it can be asked without waiting.
    return stream if isinstance(stream, ByteStream) else StreamAdapter(stream), info


def _of_family(addresses: list[Address], bind_to: BindTo, name: str) -> list[Address]:
    """Keep the addresses that can be reached from a local one."""
    family = socket.AF_INET if bind_to.version == 4 else socket.AF_INET6
    kept = [each for each in addresses if each[0] == family]
    if not kept:
        raise ProxyError.explain(
            ErrorType.ConnectNoRoute,
            f"connecting to {name}: it has no IPv{bind_to.version} address, "
            f"and bind_to is {bind_to.ip}",
        ).into_up()
    return kept


def _kind(exc: OSError) -> ErrorType:
    if isinstance(exc, OptionError):
        return ErrorType.SocketError
    if isinstance(exc, BindFailed):
        return ErrorType.BindError
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
    addresses: list[Address],
    errors: list[str],
    causes: list[OSError],
    options: PeerOptions | None = None,
) -> socket.socket | None:
    """Race the addresses, each starting when the one before it failed or was slow."""
    if len(addresses) == 1:
        return await _try(addresses[0], errors, causes, options)
    winner: socket.socket | None = None

    async def attempt(address: Address, failed: trio.Event, scope: trio.CancelScope) -> None:
        nonlocal winner
        sock = await _try(address, errors, causes, options)
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


async def _try(
    address: Address,
    errors: list[str],
    causes: list[OSError],
    options: PeerOptions | None = None,
) -> socket.socket | None:
    family, where = address
    sock: socket.socket | None = None
    try:
        sock, code = await open_towards(family, where, options)
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
