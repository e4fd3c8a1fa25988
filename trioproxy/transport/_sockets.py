"""Sockets made to a peer's options: what is set, what is bound, and what this platform lacks."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import sys
from collections.abc import Iterator
from typing import Any

import trio

from .._options import BindTo, PeerOptions, TcpKeepalive

# Linux's numbers for what this version of Python has no name for.
_LINUX = {"TCP_FASTOPEN_CONNECT": 30, "IP_BIND_ADDRESS_NO_PORT": 24}
# A port that somebody has, or that already leads to the same address.
_TAKEN = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})
#: Taken ports that are tried without letting other tasks run.
_IN_A_ROW = 32


class OptionError(OSError):
    """An option that cannot be had here; its text names it."""


class BindFailed(OSError):
    """A local address that cannot be had."""


def _constant(option: str, *names: str) -> int:
    """Return the number of a socket option by the first name that the platform knows."""
    for name in names:
        number = getattr(socket, name, None)
        if number is None and sys.platform == "linux":
            number = _LINUX.get(name)
        if number is not None:
            return int(number)
    raise OptionError(errno.ENOPROTOOPT, f"{option}: this platform has no {names[0]}")


def _set(sock: socket.socket, option: str, level: int, number: int, value: int) -> None:
    try:
        sock.setsockopt(level, number, value)
    except OSError as exc:
        raise OptionError(exc.errno, f"{option}: {exc.strerror or exc}") from exc


def _keep_alive(sock: socket.socket, keep: TcpKeepalive) -> None:
    tcp = socket.IPPROTO_TCP
    _set(sock, "tcp_keepalive", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for value, names in (
        (keep.idle, ("TCP_KEEPIDLE", "TCP_KEEPALIVE")),  # the second one is macOS's
        (keep.interval, ("TCP_KEEPINTVL",)),
        (keep.count, ("TCP_KEEPCNT",)),
    ):
        _set(sock, "tcp_keepalive", tcp, _constant("tcp_keepalive", *names), value)
    if keep.user_timeout is not None:
        option = "tcp_keepalive.user_timeout"
        number = _constant(option, "TCP_USER_TIMEOUT")
        _set(sock, option, tcp, number, max(1, round(keep.user_timeout * 1000)))


def _configure(sock: socket.socket, family: int, options: PeerOptions) -> None:
    """Set what must be set before connecting."""
    if options.tcp_recv_buf is not None:
        # Before the connection, for it decides the window scale.
        _set(sock, "tcp_recv_buf", socket.SOL_SOCKET, socket.SO_RCVBUF, options.tcp_recv_buf)
    if options.tcp_keepalive is not None:
        _keep_alive(sock, options.tcp_keepalive)
    if options.dscp is not None:
        level, name = (
            (socket.IPPROTO_IPV6, "IPV6_TCLASS")
            if family == socket.AF_INET6
            else (socket.IPPROTO_IP, "IP_TOS")
        )
        _set(sock, "dscp", level, _constant("dscp", name), options.dscp << 2)
    if options.tcp_fast_open:
        number = _constant("tcp_fast_open", "TCP_FASTOPEN_CONNECT")
        _set(sock, "tcp_fast_open", socket.IPPROTO_TCP, number, 1)


def _ports(bind_to: BindTo) -> Iterator[int]:
    """Give the ports to try, 0 for any: a range from a random place on, so that tries spread."""
    if bind_to.ports is None:
        yield 0
        return
    first, last = bind_to.ports
    size = last - first + 1
    start = random.randrange(size)
    for index in range(size):
        yield first + (start + index) % size
    if bind_to.fallback:
        yield 0


def _bind(sock: socket.socket, bind_to: BindTo, port: int) -> None:
    if port and os.name == "posix":
        # Lets one port lead to several origins, and a port be used again that has just been closed.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif sys.platform == "linux":
        # The port is then chosen when connecting: each origin has all of them.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _LINUX["IP_BIND_ADDRESS_NO_PORT"], 1)
    sock.bind((bind_to.ip, port))


async def open_towards(
    family: int, where: Any, options: PeerOptions | None
) -> tuple[socket.socket, int]:
    """Make a socket and start to connect it; return it and what `connect_ex` said.

    Args:
      family: The address family.
      where: The address.
      options: What to set, None for nothing.

    Raises:
      OSError: it cannot be made as the options say.
    """
    bind_to = None if options is None else options.bind_to
    if bind_to is None:
        sock = _open(family, options)
        return sock, _start(sock, where)
    for tried, port in enumerate(_ports(bind_to), 1):
        sock = _open(family, options)
        try:
            _bind(sock, bind_to, port)
        except OSError as exc:
            sock.close()
            if port and exc.errno == errno.EADDRINUSE:
                code = exc.errno
            else:
                raise BindFailed(exc.errno, f"bind_to {bind_to.ip}: {exc.strerror or exc}") from exc
        else:
            code = _start(sock, where)
            if code not in _TAKEN:
                return sock, code
            sock.close()
        if tried % _IN_A_ROW == 0:
            await trio.lowlevel.checkpoint()
    ports = "any port" if bind_to.ports is None else "ports {} to {}".format(*bind_to.ports)
    raise BindFailed(errno.EADDRINUSE, f"bind_to {bind_to.ip}: {ports}: all are taken")


def _open(family: int, options: PeerOptions | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if options is not None:
            _configure(sock, family, options)
    except BaseException:
        sock.close()
        raise
    return sock


def _start(sock: socket.socket, where: Any) -> int:
    try:
        return sock.connect_ex(where)
    except BaseException:
        sock.close()
        raise
